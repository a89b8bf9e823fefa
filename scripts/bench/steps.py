#!/usr/bin/env python3
"""What a step of decoding takes, against the layers that it runs and against the context that it reads.

    cargo build --release -p skipbench-engine --example pace
    python scripts/bench/peers.py make MODELS
    python scripts/bench/steps.py run MODELS OUT [--types f32,bf16,q8_0,q4_1] [--rounds 5]
    python scripts/bench/steps.py draw OUT                    OUT/README.md and OUT/steps.svg again

Points are the medians of the rounds, each of which asks for all of them in an order drawn anew: the first k layers of n with a
prompt of 16 tokens (the strategy `top`), and all layers behind prompts of up to 4,096. A line is fitted through the points by least
squares; how far they lie from it is said. Versions: requirements.txt.
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

import peers

CONTEXTS = [16, 256, 512, 1024, 2048, 4096]
BATCHES = [1, 8]


def points(shape):
    """Name of a curve, where on it, rows, length of the prompt, strategy."""
    layers = shape["num_hidden_layers"]
    for rows in BATCHES:
        for kept in sorted({max(1, round(layers * part / 6)) for part in range(1, 7)}):
            strategy = "full" if kept == layers else f"top@{layers / kept!r}"
            yield f"layers, batch {rows}", kept, rows, 16, strategy
    for length in CONTEXTS:
        yield "context, batch 1", length, 1, length, "full"


def run(models, out, types, rounds, pace):
    out.mkdir(parents=True, exist_ok=True)
    shape = json.loads((models / "shape.json").read_text())
    asked = list(points(shape))
    found = {}
    for kind in types:
        worker = peers.Worker("skipbench", kind, models, pace)
        times = {}
        for number in range(rounds + 1):
            order = asked[:]
            random.Random(number).shuffle(order)
            for curve, at, rows, length, strategy in order:
                steps = worker.ask(rows, length, 13, strategy)["step_s"]
                # The first round warms up.
                if number:
                    times.setdefault(curve, {}).setdefault(at, []).append(statistics.median(steps))
            print(f"{kind}: round {number} of {rounds}", file=sys.stderr)
        worker.close()
        found[kind] = {curve: sorted([at, statistics.median(all)] for at, all in times[curve].items()) for curve in times}
    results = {"machine": peers.machine(), "shape": shape["name"], "rounds": rounds, "step_s": found}
    (out / "steps.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(out)


def fit(curve):
    """Of a line through the points: seconds at nothing, seconds per unit, and the largest distance from it as a share of the value."""
    slope, start = statistics.linear_regression([at for at, _ in curve], [y for _, y in curve])
    return start, slope, max(abs(start + slope * at - y) / y for at, y in curve)


def draw(out):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    results = json.loads((out / "steps.json").read_text())
    m, curves = results["machine"], list(dict.fromkeys(curve for curve, *_ in points(peers.SHAPES[results["shape"]])))
    plt.rcParams |= {"font.size": 9, "svg.hashsalt": "steps", "svg.fonttype": "none"}
    figure, panes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.2), layout="constrained")
    lines = [
        f"# What a step takes on {peers.SHAPE_NAMES[results['shape']]}, {m['date']}",
        "",
        f"{m['cpu']}, {m['threads']} threads, skipbench {m['commit']}, medians of {results['rounds']} rounds of twelve steps. Random "
        "weights; `scripts/bench/steps.py` says what was asked.",
        "",
        "![Milliseconds per step](steps.svg)",
        "",
        "| curve | weights | line begins at, ms | slope, ms | farthest point from the line |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for pane, curve in zip(panes, curves):
        unit = "layer" if curve.startswith("layers") else "1,000 tokens"
        for kind, found in results["step_s"].items():
            start, slope, apart = fit(found[curve])
            xs = [at for at, _ in found[curve]]
            (dots,) = pane.plot(xs, [1e3 * y for _, y in found[curve]], "o", markersize=4, label=kind)
            pane.plot([0, xs[-1]], [1e3 * start, 1e3 * (start + slope * xs[-1])], "-", color=dots.get_color(), linewidth=1)
            per = 1e3 * slope * (1 if unit == "layer" else 1000)
            lines.append(f"| {curve} | {kind} | {1e3 * start:.2f} | {per:.3f} per {unit} | {apart:.0%} |")
        pane.set(xlabel="layers run" if unit == "layer" else "tokens of context", ylabel="ms per step", title=curve.split(", ")[1], ylim=(0, None))
        pane.spines[["top", "right"]].set_visible(False)
    panes[0].legend(frameon=False)
    figure.savefig(out / "steps.svg", metadata={"Date": None})
    (out / "README.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("models", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--types", default=",".join(peers.TYPES))
    running.add_argument("--rounds", type=int, default=5)
    running.add_argument("--pace", type=Path, default=peers.PACE)
    drawing = commands.add_parser("draw")
    drawing.add_argument("out", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            run(arguments.models, arguments.out, arguments.types.split(","), arguments.rounds, arguments.pace)
        case "draw":
            draw(arguments.out)


if __name__ == "__main__":
    main()
