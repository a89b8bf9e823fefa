#!/usr/bin/env bash
# How often the gate calls an identical build worse: runs experiments/gate.yaml RUNS times with one binary, compares every run
# with the one before it, and prints a table of the verdicts.
#
#   scripts/gate/real.sh target/release/skipbench OUT [RUNS]
set -euo pipefail

binary=$(realpath "$1")
out=$2
runs=${3:-20}
experiment=$(realpath "$(dirname "$0")/../../experiments/gate.yaml")
mkdir -p "$out"

declare -A count
worse_pairs=0
{
    echo "| baseline | new | exit | worse | cannot tell | better | same |"
    echo "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
} >"$out/summary.md"
for ((run = 1; run <= runs; run++)); do
    "$binary" run "$experiment" --out "$out/run-$run" >"$out/run-$run.log" 2>&1
    ((run > 1)) || continue
    before=$((run - 1))
    code=0
    "$binary" compare "$out/run-$before" "$out/run-$run" --json "$out/compare-$run.json" >"$out/compare-$run.txt" || code=$?
    ((code <= 1)) || exit "$code"
    ((code == 0)) || worse_pairs=$((worse_pairs + 1))
    row="| $before | $run | $code |"
    for verdict in worse cannot-tell better same; do
        found=$(grep -c "\"verdict\": \"$verdict\"" "$out/compare-$run.json" || true)
        count[$verdict]=$((${count[$verdict]:-0} + found))
        row+=" $found |"
    done
    echo "$row" >>"$out/summary.md"
done
{
    echo "| all | | | ${count[worse]:-0} | ${count[cannot-tell]:-0} | ${count[better]:-0} | ${count[same]:-0} |"
    echo
    echo "An identical build was called worse in $worse_pairs of $((runs - 1)) comparisons."
} >>"$out/summary.md"
cat "$out/summary.md"
