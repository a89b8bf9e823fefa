#!/usr/bin/env python3
"""transformers on a shape with random weights: what `skipbench run experiments/paper/bloomz-7b-shape.yaml` is held against.

    python scripts/bench/shape_peer.py CONFIG.json [--device cuda] [--dtype float16] [--batch-sizes 1,2,8] [--new-tokens 64]
                                       [--rounds 3] [--results RESULTS.csv]

CONFIG.json holds keys of a `config.json`. Every row decodes greedily behind a prompt of 16 tokens, a step at a time, and each step
ends with its tokens on the host, as skipbench's do. A line for each batch size says tokens per second of decoding: the median of the
rounds behind one that warms up. With the `results.csv` of a run on the same machine, the full network's there stand beside it.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from pathlib import Path

PROMPT = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch-sizes", default="1,2,8")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    keys = json.loads(args.config.read_text())
    config = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"transformers {transformers.__version__} on torch {torch.__version__}, {args.device}, {args.dtype}, {weights / 1e9:.2f}e9 weights"
    )
    ours = full_network(args.results) if args.results else {}
    for rows in map(int, args.batch_sizes.split(",")):
        rates = [decode(torch, transformers, model, rows, args) for _ in range(args.rounds + 1)][1:]
        theirs = statistics.median(rates)
        line = f"batch {rows}: transformers {theirs:.1f} tokens/s [{min(rates):.1f}, {max(rates):.1f}]"
        if rows in ours:
            line += f", skipbench's full network {ours[rows]:.1f} ({ours[rows] / theirs:.2f} times)"
        print(line, flush=True)


def decode(torch, transformers, model, rows, args):
    """Tokens per second of decoding, all rows together."""
    ids = torch.randint(3, model.config.vocab_size, (rows, PROMPT), device=args.device)
    cache = transformers.DynamicCache(config=model.config)

    def step(ids):
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        # On the host, as an answer is.
        ids.tolist()
        return ids

    with torch.inference_mode():
        ids = step(ids)
        start = time.perf_counter()
        for _ in range(args.new_tokens - 1):
            ids = step(ids)
        return rows * (args.new_tokens - 1) / (time.perf_counter() - start)


def full_network(results):
    """Tokens per second of the full network by batch size: timed in turn with each strategy, so the median of those."""
    found = {}
    with open(results, newline="") as file:
        for row in csv.DictReader(file):
            if row["strategy"] == "full" and row["tokens_per_s"]:
                found.setdefault(int(row["batch_size"]), []).append(float(row["tokens_per_s"]))
    return {rows: statistics.median(rates) for rows, rates in found.items()}


if __name__ == "__main__":
    sys.exit(main())
