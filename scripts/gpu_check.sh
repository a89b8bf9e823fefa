#!/usr/bin/env bash
# Checks a binary built with `--features cuda` on a machine with a GPU. Needs neither Rust nor network there: only this
# checkout and the binary; and Python with torch and transformers for its last part, which says so where it has none.
#
#   scripts/gpu_check.sh BINARY [OUT]      OUT defaults to runs/gpu-check
#
# BINARY may be a stripped copy, which is smaller: `strip -o skipbench-cuda target/release/skipbench`.
#
#   part           at most   what
#   correctness    4:00      tiny models of every family (crates/model/tests/fixtures), as GGUF files too, and the shipped
#                            checkpoint, under every strategy, alone and in a batch: the GPU's tokens in f32 must equal the
#                            CPU's; in 16 bits they must come
#   bandwidth      0:30      how fast the GPU copies its own memory
#   table4         3:30      experiments/paper/bloomz-7b-shape.yaml, with fewer and shorter batches
#   transformers   1:30      the same shape in transformers, on the same machine in the same run
#
# A part that takes longer is stopped and fails. All parts run, whatever the others found. OUT/gpu-check.txt has what was printed,
# OUT/table4 the report.
#
# Exit code 0: all parts passed. SKIPBENCH_DEVICE=cpu tries the script itself where there is no GPU, on a small shape.
# SKIPBENCH_JOBS (4) comparisons of tokens run at once. PYTHON (python3) is the interpreter.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
binary=$(realpath "$1")
cd "$(dirname "$0")/.."
out=${2:-runs/gpu-check}
device=${SKIPBENCH_DEVICE:-cuda}
jobs_at_once=${SKIPBENCH_JOBS:-4}
python=${PYTHON:-python3}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log="$out/gpu-check.txt"
errors="$out/stderr.txt"
: >"$log"
: >"$errors"
failed=0
say() { echo "$*" | tee -a "$log"; }
fail() {
    failed=1
    say "FAILED  $*"
}

# part NAME: says how long the one before took.
part=""
part() {
    [ -z "$part" ] || say "$part took $((SECONDS - began)) s"
    part=$1
    began=$SECONDS
    [ -z "$part" ] || say "== $part"
}

# within SECONDS COMMAND...
within() { timeout --kill-after=5 "$@" 2>>"$errors"; }

say "$(date -u '+%Y-%m-%d %H:%M UTC') on $device"
say "$("$binary" --version), checkout $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"

# --- correctness -----------------------------------------------------------------------------------------------------------
part correctness
deadline=$((SECONDS + 240))
# What is left of the part, for whatever begins now.
left() { echo $((deadline > SECONDS ? deadline - SECONDS : 1)); }
shipped=$PWD/data/checkpoints/adapted
verdicts="$work/verdicts"
mkdir "$verdicts"
asked=0

# The fixtures have no tokenizer: ids are written as the words t0, t1, ...
tokenizer() {
    local size=$1 vocab="" id
    for ((id = 0; id < size; id++)); do vocab+="\"t$id\":$id,"; done
    cat <<JSON
{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
"model":{"type":"WordLevel","vocab":{${vocab%,}},"unk_token":"t0"}}
JSON
}

# compare NAME MODEL PROMPTS STRATEGY BATCH: f32 on both, beside other comparisons.
# comes NAME MODEL PROMPTS STRATEGY BATCH DTYPE: tokens come in 16 bits, in which they may differ.
compare() { beside check equal "$@" f32; }
comes() { beside check came "$@"; }
# beside COMMAND...: gets the file of its verdict behind its name.
beside() {
    asked=$((asked + 1))
    while [ "$(jobs -rp | wc -l)" -ge "$jobs_at_once" ]; do wait -n || true; done
    "$1" "$verdicts/$(printf %03d "$asked")" "${@:2}" &
}

# check VERDICT WANTED NAME MODEL PROMPTS STRATEGY BATCH DTYPE: writes one line.
check() {
    local verdict=$1 wanted=$2 name="$3, $6, batch $7, $8" mine="$1.found" theirs="$1.expected"
    local args=(generate --model "$4" --input "$5" --strategy "$6" --batch-size "$7" --dtype "$8" --max-new-tokens 24 --ignore-eos)
    if [ "$SECONDS" -ge "$deadline" ]; then
        echo "NO TIME $name" >"$verdict"
    elif ! within "$(left)" "$binary" "${args[@]}" --device "$device" >"$mine"; then
        echo "FAILED  $name: see $errors" >"$verdict"
    elif [ "$wanted" = came ] && [ "$(wc -l <"$mine")" -eq "$(wc -l <"$5")" ]; then
        echo "came    $name" >"$verdict"
    elif [ "$wanted" = came ]; then
        echo "FEWER   $name" >"$verdict"
    elif ! within "$(left)" "$binary" "${args[@]}" --device cpu --composed >"$theirs"; then
        echo "FAILED  $name on the CPU: see $errors" >"$verdict"
    elif cmp -s "$theirs" "$mine"; then
        echo "equal   $name" >"$verdict"
    else
        { echo "DIFFERS $name"; diff "$theirs" "$mine" | head -4; } >"$verdict"
    fi
}

# oracle_depth VERDICT: what the shipped checkpoint says under it, on both.
oracle_depth() {
    local name="shipped, oracle-depth, batch 8, f32" on
    cat >"$work/oracle.yaml" <<YAML
name: oracle-depth
device: $device
dtype: f32
models: [{name: adapted, path: "$shipped"}]
tasks: [{builtin: translation, prompts: 16}]
strategies: [oracle-depth]
batch-sizes: [8]
timing: {batches: 0}
YAML
    for on in "$device" cpu; do
        within "$(left)" "$binary" run "$work/oracle.yaml" --set "device=$on" --out "$work/oracle-$on" >/dev/null &&
            grep -o '"text":"[^"]*"' "$work/oracle-$on/samples.jsonl" >"$1.$on" || {
            echo "FAILED  $name on $on: see $errors" >"$1"
            return
        }
    done
    cmp -s "$1.$device" "$1.cpu" && echo "equal   $name" >"$1" || echo "DIFFERS $name" >"$1"
}

# Every strategy that `layers --list` names, oracle-depth apart, which only an experiment can run. Thresholds are given: on random
# weights a calibrated one may lie between two devices' roundings.
strategies=(
    full unified@2 top@2 bottom@2 middle@2 random@2 every-other 'drop-list {drop: [2, 3]}'
    block-influence@2 angular@2 sleb@2 perplexity@2 sublayer-drop@1.5 sublayer-drop:mlp@1.5
    skip-decode@2 position-decay@2
    'early-exit {threshold: 0.4}' 'early-exit {threshold: 0.4, kv-fill: copy}' 'early-exit {threshold: 0.4, kv-fill: mask}'
    'early-exit {threshold: 0.4, kv-fill: deferred}' 'early-exit {threshold: 0.4, batch-mode: sync}'
    'early-exit {threshold: 0.4, check: candidates}' 'early-exit:cosine {threshold: 0.9}' 'early-exit:patience {patience: 2}'
    'shallow-deep {threshold: 0.4}' 'prompt-depth {threshold: 0.4}' adaskip@1.5
    self-speculative:top@2 'self-speculative {draft: {early-exit: {threshold: 0.4}}}' oracle-exit
)
beside oracle_depth
checked=" oracle-depth "
for strategy in "${strategies[@]}"; do checked+="${strategy%%[^a-z-]*} "; done
for name in $("$binary" layers --list | sed -n 's/^\([a-z-]*\):.*/\1/p'); do
    case "$checked" in *" $name "*) ;; *) fail "no check of the strategy $name" ;; esac
done

printf 't3 t17 t40 t9\nt5\nt60 t2 t33 t8 t21 t7 t11\n' >"$work/words.txt"
# Longer than the windows and the 16 positions behind which LongRoPE takes other frequencies.
for length in 18 33 25; do
    for ((i = 0; i < length; i++)); do printf 't%d ' $((3 + (i * 31 + length) % 90)); done
    echo
done >"$work/long.txt"
# The same for the tokenizers of GGUF files, which make three or four tokens of a word.
printf 't31 t17 t40 t59 t22 t71\nt60 t25 t33 t18 t21 t74 t11 t52\nt44 t13 t95 t80 t19 t37 t66\n' >"$work/gguf.txt"
for fixture in crates/model/tests/fixtures/*/; do
    name=$(basename "$fixture")
    cp -r "$fixture" "$work/$name"
    size=$(grep -o '"vocab_size": *[0-9]*' "$work/$name/config.json" | grep -o '[0-9]*$')
    tokenizer "$size" >"$work/$name/tokenizer.json"
done
for name in llama1 bloom; do
    for strategy in "${strategies[@]}"; do compare "$name" "$work/$name" "$work/words.txt" "$strategy" 3; done
    for dtype in f16 bf16; do comes "$name" "$work/$name" "$work/words.txt" unified@2 3 "$dtype"; done
done
for fixture in crates/model/tests/fixtures/*/; do
    name=$(basename "$fixture")
    compare "$name" "$work/$name" "$work/long.txt" full 3
    compare "$name" "$work/$name" "$work/long.txt" unified@2 1
done
for model in crates/model/tests/gguf/*.gguf; do
    name=$(basename "$model")
    # A file of block types alone is no model.
    [ "$name" = blocks.gguf ] || compare "$name" "$model" "$work/gguf.txt" full 3
done
"$binary" data translation -n 16 >"$work/prompts.jsonl"
for strategy in full unified@2 skip-decode@2 'early-exit {threshold: 0.9}' self-speculative:top@2; do
    compare shipped "$shipped" "$work/prompts.jsonl" "$strategy" 8
done
wait
cat "$verdicts"/??? | tee -a "$log"
good=$(cat "$verdicts"/??? | grep -c '^equal\|^came' || true)
say "$good of $asked comparisons are as they should be"
[ "$good" = "$asked" ] || failed=1

# --- copy bandwidth --------------------------------------------------------------------------------------------------------
part bandwidth
# The last line is the GPU's; on a CPU there is the CPU's alone.
within 30 "$binary" doctor --device "$device" >"$work/doctor" || fail "doctor: see $errors"
grep 'copy bandwidth' "$work/doctor" | tee -a "$log" || fail "no copy bandwidth"
[ "$device" = cpu ] || grep -q 'GPU copy bandwidth' "$work/doctor" || fail "no copy bandwidth of the GPU"

# --- Table 4 ---------------------------------------------------------------------------------------------------------------
part table4
settings=(--set "device=$device" --set tasks.0.prompts=32 --set tasks.0.max-new-tokens=4)
if [ "$device" = cpu ]; then
    shape='{"model_type": "bloom", "hidden_size": 64, "n_layer": 10, "n_head": 4, "vocab_size": 1024}'
    settings+=(--set "models.0.shape=$shape")
    new_tokens=8
else
    # That of the experiment, for transformers.
    shape='{"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}'
    new_tokens=32
fi
settings+=(--set "timing={batches: 4, repeats: 1, warm-up: 1, new-tokens: $new_tokens}")
rm -rf "$out/table4"
if within 210 "$binary" run experiments/paper/bloomz-7b-shape.yaml --out "$out/table4" "${settings[@]}" >"$work/table4"; then
    sed '/^## Cost/,$d' "$out/table4/table.md" | tee -a "$log"
else
    fail "table4: see $errors"
fi

# --- transformers ----------------------------------------------------------------------------------------------------------
part transformers
if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
    say "not compared: $python has no torch with transformers"
elif [ "$device" != cpu ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    say "not compared: torch sees no GPU"
else
    echo "$shape" >"$work/shape.json"
    results=()
    [ ! -f "$out/table4/results.csv" ] || results=(--results "$out/table4/results.csv")
    within 90 "$python" scripts/bench/shape_peer.py "$work/shape.json" --device "$device" --new-tokens "$new_tokens" \
        "${results[@]}" | tee -a "$log" || fail "transformers: see $errors"
fi

part ""
if [ "$failed" != 0 ]; then
    say "gpu check FAILED on $device in $SECONDS s"
    exit 1
fi
say "gpu check passed on $device in $SECONDS s"
