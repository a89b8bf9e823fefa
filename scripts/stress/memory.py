#!/usr/bin/env python3
"""Resident memory of a run over its cells: it has to stay flat.

    scripts/stress/memory.py target/release/skipbench --cells 200

Prints the memory in MiB at every tenth of the run. Needs Linux, Python 3.9 and nothing else.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """\
name: memory
models: [{path: %s}]
tasks: [{builtin: translation, prompts: 32}]
strategies: [{random: {seeds: %d, speedup: 2}}]
batch-sizes: [8]
timing: {batches: 0}
"""


def resident_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--cells", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        experiment = Path(scratch) / "memory.yaml"
        experiment.write_text(EXPERIMENT % (ROOT / "data/checkpoints/adapted", args.cells - 1))
        process = subprocess.Popen(
            [args.binary.resolve(), "run", experiment, "--out", out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seen = []
        while process.poll() is None:
            cells = out / "cells.jsonl"
            done = cells.read_bytes().count(b"\n") if cells.exists() else 0
            try:
                memory = resident_mib(process.pid)
            except (FileNotFoundError, ProcessLookupError):
                break
            if memory and 0 < done < args.cells:
                seen.append((done, memory))
            time.sleep(0.02)
        if process.wait() != 0 or not seen:
            sys.exit("the run failed")
        for tenth in range(10):
            part = [m for done, m in seen if tenth * args.cells // 10 <= done < (tenth + 1) * args.cells // 10]
            if part:
                print(f"cells {tenth * args.cells // 10:4} to {(tenth + 1) * args.cells // 10:4}: at most {max(part):6.1f} MiB")


if __name__ == "__main__":
    main()
