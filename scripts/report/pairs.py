#!/usr/bin/env python3
"""Paired tests between cells of different models, which a report does not have: it tests each cell against its own full network.

    scripts/report/pairs.py --run runs/adapted-dialogsum [--run ...] --references FILE --id fname --reference summary1 ...
        --pair "unified-even unified:even@1.5" "skip-decode skip-decode@1.5" [--pair ...]

Each name of a pair is a model and the label of a strategy, as in results.csv, the first against the second; `--list` prints all.
`skipbench score --paired` does the test, approximate randomisation for ROUGE. Needs Python 3.11 and target/release/skipbench
(another: SKIPBENCH=FILE). The runs must hold their answers (samples.jsonl).
"""

import argparse
import gzip
import json
import os
import subprocess
import tempfile
from pathlib import Path

BINARY = os.environ.get("SKIPBENCH", str(Path(__file__).parents[2] / "target/release/skipbench"))


def lines(path: Path):
    """The JSON lines of a file, gzipped or not."""
    path = path if path.exists() else path.with_name(path.name + ".gz")
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as file:
        for line in file:
            yield json.loads(line)


def answers_of(runs: list[Path], batch: int | None) -> dict[str, dict[str, str]]:
    """The answers of each cell by their ids, under `MODEL LABEL`."""
    names, found = {}, {}
    for run in runs:
        for cell in lines(run / "cells.jsonl"):
            if batch in (None, cell["search"]["batch_size"]):
                name = f"{cell['model']['name']} {cell['strategy']['label']}"
                if any(name == known and cell["id"] != id for id, known in names.items()):
                    raise SystemExit(f"several cells are called `{name}`: give --batch-size, or fewer runs")
                names[cell["id"]] = name
        for answer in lines(run / "samples.jsonl"):
            if name := names.get(answer["cell"]):
                found.setdefault(name, {})[answer["id"]] = answer["text"]
    return found


def test(one: dict[str, str], other: dict[str, str], references: dict[str, list[str]], metric: str) -> str:
    """What `skipbench score` says of `one` beside `other`, on the prompts that both have."""
    ids = sorted(one.keys() & other.keys())
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, answers in (("new", one), ("baseline", other)):
            files.append(Path(folder) / f"{name}.jsonl")
            rows = [{"hypothesis": answers[i], "references": references[i]} for i in ids]
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [BINARY, "score", "--metric", metric, "--input", files[0], "--paired", files[1]]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--references", type=Path, help="JSON lines (.gz too)")
    parser.add_argument("--id", default="id")
    parser.add_argument("--reference", nargs="+", default=["reference"])
    parser.add_argument("--metric", default="rougeL")
    parser.add_argument("--batch-size", type=int, help="if the runs have several")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("NEW", "BASELINE"))
    given = parser.parse_args()
    cells = answers_of(given.run, given.batch_size)
    if given.list:
        print("\n".join(cells))
    if not given.pair:
        return
    if given.references is None:
        parser.error("--pair needs --references")
    references = {row[given.id]: [row[key] for key in given.reference] for row in lines(given.references)}
    for pair in given.pair:
        for name in pair:
            if name not in cells:
                parser.error(f"no cell is called `{name}`; --list prints all")
        print(f"{pair[0]} against {pair[1]}")
        print(test(cells[pair[0]], cells[pair[1]], references, given.metric))


if __name__ == "__main__":
    main()
