"""Runs skipbench and reads what it leaves.

>>> import skipbench
>>> run = skipbench.load("runs/quickstart")
>>> run.cells[["label", "achieved_speedup", "bleu"]]

A frame is pandas' where pandas is installed, or polars' with ``load(..., frames="polars")`` or where only polars is.
"""

from __future__ import annotations

from ._errors import SkipbenchError
from ._reader import Run, load
from ._runner import binary, run

__all__ = ["Run", "SkipbenchError", "binary", "load", "run"]
