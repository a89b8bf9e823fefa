#!/usr/bin/env bash
# Holds what skipbench_model::ops says that a GPU is asked for, and docs/gpu.md with it, against the calls that candle makes: on
# driver.c, a driver that computes nothing. It takes no GPU, but the toolkit and the link shims of ../shared/cuda:
#
#   ../shared/cuda/setup_cuda.sh target/cuda      once
#   scripts/cuda/count.sh                         builds candle with CUDA (ten minutes on two cores), then a minute
#
# Exit code 0: the decode steps of every strategy make as many calls as are counted.
set -euo pipefail
cd "$(dirname "$0")/../.."
. target/cuda/env.sh
cargo build --release -p skipbench-engine --features cuda --example asked
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O1 -shared -fPIC -o "$work/driver.so" scripts/cuda/driver.c
for name in libcuda.so.1 libcublas.so.13 libcurand.so.10; do ln -s driver.so "$work/$name"; done

# asked MODEL STRATEGY ROWS TOKENS: two lines of launches, uploads (of layouts too) and waits: as counted, as called.
asked() {
    LD_LIBRARY_PATH="$work" target/release/examples/asked "$@" 2>"$work/stderr" | tee "$work/counted" >/dev/null ||
        { cat "$work/stderr"; return 1; }
    sed -n 's/^counted //p' "$work/counted"
    sed -n 's/^driver //p' "$work/stderr"
}

compared=0
differ=0
# What comes back is zero, so thresholds of 0 and 1 decide: all leave, or none.
for model in llama1 bloom gpt-neox gemma3; do
    for strategy in full unified@2 'drop-list {drop: [2, 3]}' sublayer-drop@1.5 sublayer-drop:mlp@1.5 skip-decode@2 position-decay@2 \
        'early-exit {threshold: 0}' 'early-exit {threshold: 1}' 'early-exit {threshold: 0, kv-fill: copy}' \
        'early-exit {threshold: 0, kv-fill: mask}' 'early-exit {threshold: 0, kv-fill: deferred}' \
        'early-exit {threshold: 1, check: candidates}' 'early-exit:cosine {threshold: 0.9}' 'early-exit:patience {patience: 2}' \
        'shallow-deep {threshold: 0}' 'prompt-depth {threshold: 0.4}' adaskip@1.5 self-speculative:top@2 oracle-exit; do
        for rows in 1 4; do
            # Steps alone: a longer answer less a shorter one.
            read -r -d '' -a few <<<"$(asked "crates/model/tests/fixtures/$model" "$strategy" "$rows" 2) end" || true
            read -r -d '' -a many <<<"$(asked "crates/model/tests/fixtures/$model" "$strategy" "$rows" 18) end" || true
            counted="" called=""
            for i in 0 1 2; do
                counted+=" $((many[i] - few[i]))"
                called+=" $((many[i + 3] - few[i + 3]))"
            done
            compared=$((compared + 1))
            if [ "$counted" != "$called" ] || [ "$counted" = " 0 0 0" ]; then
                differ=$((differ + 1))
                echo "DIFFERS $model, $strategy, $rows rows: counted$counted, called$called"
            fi
        done
    done
done
echo "$differ of $compared differ"
[ "$differ" = 0 ]
