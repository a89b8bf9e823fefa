#!/usr/bin/env bash
# Checks a binary built with `--features cuda` on a machine with a GPU. Needs neither Rust nor network there: only this
# checkout and the binary.
#
#   scripts/gpu_check.sh BINARY [OUT]      OUT defaults to runs/gpu-check
#
# BINARY may be a stripped copy, which is smaller: `strip -o skipbench-cuda target/release/skipbench`.
#
# 1. Tiny models of every family (crates/model/tests/fixtures), as GGUF files too, and the shipped checkpoint: the GPU's
#    tokens in f32 must equal the CPU's, under the full network and under skipping, alone and in a batch.
# 2. `full` and `unified@2` are timed on the shipped checkpoint; the report lies in OUT/timing.
#
# Exit code 0: all equal and timed. SKIPBENCH_DEVICE=cpu tries the script itself where there is no GPU.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
binary=$(realpath "$1")
cd "$(dirname "$0")/.."
out=${2:-runs/gpu-check}
device=${SKIPBENCH_DEVICE:-cuda}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log="$out/gpu-check.txt"
{
    date -u '+%Y-%m-%d %H:%M UTC'
    "$binary" --version
    git rev-parse --short HEAD 2>/dev/null || true
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
} | tee "$log"

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

failed=0
say() { echo "$*" | tee -a "$log"; }

# compare NAME MODEL PROMPTS STRATEGY BATCH
compare() {
    local args=(generate --model "$2" --input "$3" --strategy "$4" --batch-size "$5"
        --max-new-tokens 24 --ignore-eos --dtype f32)
    "$binary" "${args[@]}" --device cpu --composed >"$work/expected" 2>>"$out/stderr.txt" &&
        "$binary" "${args[@]}" --device "$device" >"$work/found" 2>>"$out/stderr.txt" || {
        failed=1
        say "FAILED  $1 $4 batch $5: see $out/stderr.txt"
        return
    }
    if cmp -s "$work/expected" "$work/found"; then
        say "equal   $1 $4 batch $5"
    else
        failed=1
        say "DIFFERS $1 $4 batch $5"
        diff "$work/expected" "$work/found" | head -4 | tee -a "$log"
    fi
}

printf 't3 t17 t40 t9\nt5\nt60 t2 t33 t8 t21 t7 t11\n' >"$work/words.txt"
for fixture in crates/model/tests/fixtures/*/; do
    name=$(basename "$fixture")
    model="$work/$name"
    cp -r "$fixture" "$model"
    size=$(grep -o '"vocab_size": *[0-9]*' "$model/config.json" | grep -o '[0-9]*$')
    tokenizer "$size" >"$model/tokenizer.json"
    compare "$name" "$model" "$work/words.txt" full 3
    compare "$name" "$model" "$work/words.txt" unified@2 1
    compare "$name" "$model" "$work/words.txt" unified@2 3
done

for model in crates/model/tests/gguf/*.gguf; do
    name=$(basename "$model")
    # A file of block types alone is no model.
    [ "$name" = blocks.gguf ] || compare "$name" "$model" "$work/words.txt" full 3
done

shipped=data/checkpoints/adapted
"$binary" data translation -n 16 >"$work/prompts.jsonl"
for strategy in full unified@2 skip-decode@2 'early-exit: {threshold: 0.9}'; do
    compare shipped "$shipped" "$work/prompts.jsonl" "$strategy" 8
done

cat >"$work/gpu-check.yaml" <<YAML
name: gpu-check
title: The full network and unified skipping on this device
device: $device
models:
  - {name: adapted, path: "$PWD/$shipped"}
tasks:
  - {builtin: translation, prompts: 64}
strategies: [unified]
speedups: [2]
batch-sizes: [1, 8, 64]
YAML
"$binary" run "$work/gpu-check.yaml" --out "$out/timing" | tee -a "$log" || failed=1

if [ "$failed" != 0 ]; then
    say "gpu check FAILED on $device"
    exit 1
fi
say "gpu check passed on $device"
