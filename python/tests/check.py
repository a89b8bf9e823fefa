"""What the package gives, checked in an environment that holds nothing but it, pandas and polars.

`scripts/python/check_package.sh` builds the wheel and calls this from the root of the repository.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pandas
import polars

import skipbench

ARCHIVE = Path("reports/2026-11-26-amd-epyc-2c-quickstart")


def refused(call) -> str:
    try:
        call()
    except skipbench.SkipbenchError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def check_archive() -> None:
    run = skipbench.load(ARCHIVE)
    assert isinstance(run.cells, pandas.DataFrame), type(run.cells)
    assert run.info["name"] == "quickstart"
    assert len(run.cells) == len(run.records) == len(run.info["cells"]), len(run.cells)
    full = run.cells[run.cells.label == "full"]
    assert set(full.batch_size) == {1, 8}
    # Every answer is of a cell that a row names, and was asked something.
    assert set(run.answers.cell) == set(run.cells.cell)
    assert run.answers.prompt.notna().all() and run.answers.references.map(len).ge(1).all()
    assert (run.answers.tokens.map(len) == run.answers.layers.map(len)).all()
    # The geometric mean over batches is the speedup of the row.
    times = run.times.assign(ratio=run.times.full_decode_s / run.times.strategy_decode_s)
    assert (times.groupby("cell").size() == 24).all()
    medians = times.groupby(["cell", "batch"]).ratio.median()
    speedup = medians.groupby("cell").agg(lambda ratios: ratios.prod() ** (1 / len(ratios)))
    rows = run.cells.set_index("cell").achieved_speedup
    assert ((speedup / rows - 1).abs() < 1e-9).all(), (speedup / rows - 1).abs().max()

    as_polars = skipbench.load(str(ARCHIVE), frames="polars")
    assert isinstance(as_polars.cells, polars.DataFrame)
    assert as_polars.cells.height == len(run.cells)
    assert as_polars.answers.height == len(run.answers) and as_polars.times.height == len(run.times)
    assert as_polars.cells["target_speedup"].null_count() == 2


def check_run(folder: Path) -> None:
    experiment = {
        "name": "from-python",
        "models": [{"path": "data/checkpoints/base"}],
        "tasks": [{"builtin": "translation", "prompts": 4}],
        "strategies": ["unified", "top"],
        "speedups": [2],
        "timing": {"batches": 2, "repeats": 1},
    }
    before = set(Path(".").iterdir())
    run = skipbench.run(experiment, out=folder / "run")
    assert set(Path(".").iterdir()) == before, "nothing is left behind"
    assert list(run.cells.label) == ["full", "unified@2", "top@2"], list(run.cells.label)
    assert len(run.answers) == 12 and run.cells.bleu.notna().all()
    experiment["strategies"] = ["no-such-strategy"]
    assert "ended with 2" in refused(lambda: skipbench.run(experiment, out=folder / "other"))


def main() -> None:
    check_archive()
    with tempfile.TemporaryDirectory() as folder:
        check_run(Path(folder))
        assert "holds no run.json" in refused(lambda: skipbench.load(folder))
    assert skipbench.binary().is_file()
    print("the package works")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
