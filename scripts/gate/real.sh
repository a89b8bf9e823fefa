#!/usr/bin/env bash
# How often the gate is right on this machine: runs experiments/gate.yaml RUNS times with one binary and compares every run with
# the one before it. An identical build is not to be called worse. `unified` is also set against itself with one layer more of
# 16, which takes about a tenth longer: that is to be called worse.
#
# It is the clock that is tried here, so that only the first prompts are answered.
#
#   scripts/gate/real.sh target/release/skipbench OUT [RUNS]
set -euo pipefail

binary=$(realpath "$1")
out=$2
runs=${3:-21}
experiment=$(realpath "$(dirname "$0")/../../experiments/gate.yaml")
mkdir -p "$out"

# Exit code of a comparison; 2 ends the script.
compare() {
    local code=0
    "$binary" compare "$@" >"$out/last.txt" || code=$?
    ((code <= 1)) || { cat "$out/last.txt"; exit "$code"; }
    echo "$code"
}

# `achieved` of each cell, and tokens per second of the full network.
figures() {
    python3 - "$1" <<'PYTHON'
import csv, sys
cells = {row["label"]: row for row in csv.DictReader(open(sys.argv[1]))}
shown = [f"{float(cells['full']['tokens_per_s']):.0f}"]
shown += [f"{float(cells[label]['achieved_speedup']):.3f}x" for label in ("unified@2", "top@2", "early-exit@2", "unified@1.75")]
print(" | ".join(shown))
PYTHON
}

false_alarms=0
caught=0
{
    echo "| run | full tokens/s | unified@2 | top@2 | early-exit@2 | unified@1.75 | identical build | one layer more |"
    echo "| ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
} >"$out/summary.md"
for ((run = 1; run <= runs; run++)); do
    "$binary" run "$experiment" --set tasks.0.prompts=64 --set 'speedups=[2, 1.75]' --out "$out/run-$run" >"$out/run-$run.log" 2>&1
    row="| $run | $(figures "$out/run-$run/results.csv") |"
    if ((run > 1)); then
        before=$((run - 1))
        pairs=(--pair full=full --pair unified@2=unified@2 --pair top@2=top@2 --pair early-exit@2=early-exit@2)
        identical=$(compare "$out/run-$before" "$out/run-$run" "${pairs[@]}" --json "$out/identical-$run.json")
        slower=$(compare "$out/run-$before" "$out/run-$run" --pair unified@2=unified@1.75 --max-quality-drop 100 --json "$out/slower-$run.json")
        false_alarms=$((false_alarms + identical))
        caught=$((caught + slower))
        verdict=(same worse)
        row+=" ${verdict[$identical]} | ${verdict[$slower]} |"
    else
        row+=" | |"
    fi
    echo "$row" >>"$out/summary.md"
done
{
    echo
    echo "An identical build was called worse in $false_alarms of $((runs - 1)) comparisons, one layer more in $caught of $((runs - 1))."
} >>"$out/summary.md"
rm -f "$out/last.txt"
cat "$out/summary.md"
