"""The folder of a run as frames."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Union

from ._errors import SkipbenchError

#: A ``pandas.DataFrame`` or a ``polars.DataFrame``.
Frame = Any
Frames = Literal["pandas", "polars"]
Path_ = Union[str, Path]

#: The version of the folder's form that this reader knows.
VERSION = 4


@dataclass
class Run:
    """A finished run, or an archived one. Frames are made when they are first asked for."""

    path: Path
    #: ``run.json``: the experiment with every setting, models, tasks, the machine.
    info: Dict[str, Any]
    frames: Frames

    @cached_property
    def cells(self) -> Frame:
        """A row per cell: every column of ``results.csv``; ``docs/columns.md`` says what they are."""
        path = self.path / "results.csv"
        if not path.is_file():
            raise SkipbenchError(f"{path} is not there; `skipbench report {self.path}` writes it")
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        columns = {name: [_value(row[at]) for row in rows] for at, name in enumerate(header)}
        return _frame({name: _uniform(values) for name, values in columns.items()}, self.frames)

    @cached_property
    def answers(self) -> Frame:
        """A row per answer: cell, prompt and references, generated ids and their text, layers of each token."""
        tasks = {record["id"]: record["task"]["texts"] for record in self.records}
        prompts = {(line["task"], line["id"]): line for line in self._lines("prompts")}
        rows = []
        for answer in self._lines("samples"):
            asked = prompts.get((tasks.get(answer["cell"]), answer["id"]), {})
            rows.append(
                {
                    "cell": answer["cell"],
                    "id": answer["id"],
                    "prompt": asked.get("prompt"),
                    "references": asked.get("references"),
                    "text": answer["text"],
                    "tokens": answer["tokens"],
                    "layers": [float(count) for count in answer["layers"]],
                    "prompt_tokens": answer["prompt_tokens"],
                    "end": _word(answer.get("end")),
                    "error": answer.get("error"),
                }
            )
        names = ["cell", "id", "prompt", "references", "text", "tokens", "layers", "prompt_tokens", "end", "error"]
        return _of_rows(rows, names, self.frames)

    @cached_property
    def times(self) -> Frame:
        """A row per timed block: the full network's and the strategy's prefill and decode, seconds, one after the other."""
        rows = []
        for record in self.records:
            for block in (record.get("timing") or {}).get("blocks", []):
                row = {"cell": record["id"]}
                row.update({name: block[name] for name in _BLOCK})
                for side in ("full", "strategy"):
                    times = block[side]
                    row[f"{side}_prefill_s"] = times["prefill_s"]
                    row[f"{side}_decode_s"] = sum(times["step_s"])
                    row[f"{side}_step_s"] = times["step_s"]
                rows.append(row)
        sides = [f"{side}_{what}_s" for side in ("full", "strategy") for what in ("prefill", "decode", "step")]
        return _of_rows(rows, ["cell", *_BLOCK, *sides], self.frames)

    @cached_property
    def records(self) -> List[Dict[str, Any]]:
        """The record of every cell, as the run wrote it; of a cell that was run again the last one."""
        last = {}
        for record in self._lines("cells"):
            if record["version"] > VERSION:
                raise SkipbenchError(f"{self.path} was written by a newer skipbench; install that one")
            last[record["id"]] = record
        return list(last.values())

    def _lines(self, name: str) -> Iterator[Dict[str, Any]]:
        """The objects of a file of JSON lines, compressed in an archive."""
        plain, packed = self.path / f"{name}.jsonl", self.path / f"{name}.jsonl.gz"
        if plain.is_file():
            file: Any = plain.open(encoding="utf-8")
        elif packed.is_file():
            file = gzip.open(packed, "rt", encoding="utf-8")
        else:
            raise SkipbenchError(f"{self.path} has no {name}.jsonl; is it the folder of a run?")
        with file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    # A line that a killed run left half written; the next `skipbench run` makes it again.
                    continue


_BLOCK = ["batch", "pass", "strategy_first", "rows", "prompt_tokens", "decoded_tokens"]


def load(path: Path_, frames: Optional[Frames] = None) -> Run:
    """Reads the folder of a run, such as ``runs/quickstart``, or an archived one.

    ``frames``: the library of the frames; if not given, pandas where it is installed, and polars where only that is.
    """
    folder = Path(path)
    info = folder / "run.json"
    if not info.is_file():
        raise SkipbenchError(f"{folder} holds no run.json; give the folder that `skipbench run` has written")
    return Run(folder, json.loads(info.read_text(encoding="utf-8")), frames or _installed())


def _installed() -> Frames:
    if importlib.util.find_spec("pandas") is not None:
        return "pandas"
    if importlib.util.find_spec("polars") is not None:
        return "polars"
    raise SkipbenchError("neither pandas nor polars is installed; `pip install pandas` or `pip install polars`")


def _frame(columns: Dict[str, List[Any]], frames: Frames) -> Frame:
    if frames == "polars":
        import polars

        return polars.DataFrame(columns, strict=False)
    import pandas

    return pandas.DataFrame(columns)


def _of_rows(rows: List[Dict[str, Any]], names: List[str], frames: Frames) -> Frame:
    return _frame({name: [row[name] for row in rows] for name in names}, frames)


def _value(text: str) -> Union[None, int, float, str]:
    """A cell of a CSV file; an empty one is nothing."""
    if text == "":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _uniform(values: List[Any]) -> List[Any]:
    """Numbers of a column as one type, and all as text where any is: a digest may look like a number."""
    known = {type(value) for value in values if value is not None}
    if str in known:
        return [None if value is None else str(value) for value in values]
    if float in known:
        return [None if value is None else float(value) for value in values]
    return values


def _word(value: Any) -> Optional[str]:
    """Why an answer ended, in a word."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
