"""Running the binary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path
from typing import Any, Mapping, Optional, Union

from ._errors import SkipbenchError
from ._reader import Frames, Run, load


def binary() -> Path:
    """The ``skipbench`` that was installed with this package, or the first one of the search path."""
    name = "skipbench.exe" if os.name == "nt" else "skipbench"
    beside = [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    for path in beside:
        if path.is_file():
            return path
    found = shutil.which("skipbench")
    if found is None:
        raise SkipbenchError("there is no `skipbench` beside this Python, nor on the search path; `pip install skipbench`")
    return Path(found)


def run(
    experiment: Union[Mapping[str, Any], str, Path],
    out: Union[str, Path, None] = None,
    frames: Optional[Frames] = None,
) -> Run:
    """Runs an experiment, resuming what was cut off, and reads its folder.

    ``experiment``: a YAML file, or what such a file would hold as a ``dict``; its paths are then taken from the current
    folder. ``out``: the folder of the results; if not given, the experiment's own. What goes on is told on stderr.

    A cell that fails is a warning, and its row says why.
    """
    if isinstance(experiment, Mapping):
        # Beside what its paths are relative to. YAML reads JSON.
        handle, name = tempfile.mkstemp(prefix=".skipbench-", suffix=".yaml", dir=".")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(experiment, file)
        try:
            return _run(Path(name), out, frames)
        finally:
            os.unlink(name)
    return _run(Path(experiment), out, frames)


def _run(experiment: Path, out: Union[str, Path, None], frames: Optional[Frames]) -> Run:
    to = [] if out is None else ["--out", str(out)]
    done = subprocess.run(
        [str(binary()), "run", str(experiment), *to], stdout=subprocess.PIPE, stderr=None, encoding="utf-8", check=False
    )
    if done.returncode not in (0, 1):
        raise SkipbenchError(f"`skipbench run` ended with {done.returncode}; what is wrong stands on stderr")
    report = [line[len("Report: ") :] for line in done.stdout.splitlines() if line.startswith("Report: ")]
    if not report:
        raise SkipbenchError("`skipbench run` wrote no report")
    if done.returncode == 1:
        warnings.warn("some cells failed; the column `failure` says why", stacklevel=3)
    return load(Path(report[-1]).parent, frames)
