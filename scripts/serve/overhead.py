"""What serving adds to a decode step: the server against `skipbench generate` on the same model, in turn, in one run.

    python scripts/serve/overhead.py [--model MODEL] [--rounds 12] [--tokens 192] [--batch 1 8] [--stream]

A step's time is the difference between a long and a short answer over the difference of their tokens, so neither loading the
model, nor the prompt, nor the window of the queue is in it. Of `generate` it is the time of the process, of the server the
client's. Both are asked for the same tokens in every round, in random order; the ratio is the median over rounds, with the
quartiles. Run it alone on the machine.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server import ROOT, SKIPBENCH, Server

SHORT = 8


def prompts(batch):
    words = ["house", "dog", "report", "river", "city", "tree", "man", "year"]
    return [f"The {words[row % 8]} of the old" for row in range(batch)]


def generate_s(model, batch, tokens, folder):
    path = Path(folder) / f"prompts-{batch}.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts(batch)))
    command = [SKIPBENCH, "generate", "--model", str(model), "--input", str(path), "--batch-size", str(batch),
               "--max-new-tokens", str(tokens), "--ignore-eos"]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def serve_s(server, batch, tokens, stream):
    """The time until all of `batch` clients have their answers."""
    def ask(prompt):
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
        request = urllib.request.Request(f"{server.base_url}/completions", json.dumps(body).encode())
        return urllib.request.urlopen(request).read()

    with ThreadPoolExecutor(batch) as clients:
        begun = time.perf_counter()
        list(clients.map(ask, prompts(batch)))
        return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "data/checkpoints/base"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    rng = random.Random(0)
    # A window that is long enough for all clients of a batch to arrive in it.
    options = ["--name", "m", "--window-ms", "50"]
    with tempfile.TemporaryDirectory() as folder, Server(args.model, *options) as server:
        for batch in args.batch:
            ratios, steps = [], {"generate": [], "serve": []}
            for round_ in range(args.rounds + 1):
                times = {}
                tasks = [(who, tokens) for who in steps for tokens in (SHORT, args.tokens)]
                for who, tokens in rng.sample(tasks, len(tasks)):
                    if who == "generate":
                        times[who, tokens] = generate_s(args.model, batch, tokens, folder)
                    else:
                        times[who, tokens] = serve_s(server, batch, tokens, args.stream)
                if round_ == 0:
                    continue  # warm-up
                step = {who: (times[who, args.tokens] - times[who, SHORT]) / (args.tokens - SHORT) for who in steps}
                for who in steps:
                    steps[who].append(step[who] * 1e3)
                ratios.append(step["serve"] / step["generate"])
            low, middle, high = statistics.quantiles(ratios, n=4)
            medians = ", ".join(f"{who} {statistics.median(times):.3f} ms" for who, times in steps.items())
            print(f"batch {batch}: {medians} a step; serve / generate {middle:.3f} [{low:.3f}, {high:.3f}] over {args.rounds} rounds")


if __name__ == "__main__":
    main()
