#!/usr/bin/env python3
"""Kills a run at random moments until it is through, and compares what is left with a run that was left alone.

    scripts/stress/kills.py target/release/skipbench --kills 50

No finished cell may be lost or run twice, and every score must be that of the other run. Needs Python 3.9 and nothing else.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """\
name: kills
models: [{path: %s}]
tasks: [{builtin: translation, prompts: 16, calibration-prompts: 8}, {builtin: summarization, prompts: 8, calibration-prompts: 8}]
strategies: [unified, sleb, early-exit, shallow-deep]
speedups: [1.5, 3]
batch-sizes: [1, 8]
timing: {batches: 2, repeats: 2}
"""
# What times alone determine differs from run to run.
SCORES = ["bleu", "chrf", "rougeL", "rouge1", "layers_per_token", "bound_speedup", "executed", "n_failed"]


def finished(folder):
    """Ids of the cells whose line is whole."""
    path = folder / "cells.jsonl"
    ids = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            ids.append(json.loads(line)["id"])
        except (ValueError, KeyError):
            pass
    return ids


def rows(folder):
    with open(folder / "results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    name = lambda row: (row["task"], row["batch_size"], row["label"])
    return {name(row): {key: row.get(key) for key in SCORES} for row in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        experiment = scratch / "kills.yaml"
        experiment.write_text(EXPERIMENT % (ROOT / "data/checkpoints/adapted"))
        command = lambda out: [args.binary.resolve(), "run", experiment, "--out", out]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command(scratch / "alone"), check=True, **quiet)
        killed, lost, made = scratch / "killed", 0, {}
        kills = 0
        while kills < args.kills:
            process = subprocess.Popen(command(killed), **quiet)
            try:
                process.wait(timeout=rng.uniform(0.02, args.longest))
                if process.returncode != 0:
                    sys.exit(f"a run after {kills} kills ended with exit code {process.returncode}")
                # Through before the last kill: everything again, so that all kills hit a run at work.
                check(scratch / "alone", killed)
                for name in ("cells.jsonl", "samples.jsonl", "calibration.jsonl"):
                    (killed / name).unlink()
                made = {}
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                now = finished(killed)
                lost += len([cell for cell in made if cell not in now])
                made = dict.fromkeys(now)
        subprocess.run(command(killed), check=True, **quiet)
        check(scratch / "alone", killed)
        if lost:
            sys.exit(f"{lost} finished cells were lost")
        print(f"{kills} kills: no finished cell lost or repeated, scores as without kills")


def check(alone, killed):
    ids = finished(killed)
    if len(ids) != len(set(ids)):
        sys.exit("a cell stands twice")
    if set(ids) != set(finished(alone)):
        sys.exit("the runs have different cells")
    a, b = rows(alone), rows(killed)
    differ = [name for name in a if a[name] != b.get(name)]
    if differ or a.keys() != b.keys():
        sys.exit(f"scores differ: {differ}")


if __name__ == "__main__":
    main()
