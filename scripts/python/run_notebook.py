"""Runs the code of a notebook from top to bottom, as its kernel would, without one.

    python scripts/python/run_notebook.py examples/figure.ipynb
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    path = Path(sys.argv[1])
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    os.chdir(path.parent)
    os.environ["MPLBACKEND"] = "Agg"
    names: dict = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec")
            exec(code, names)
    print(f"{path}: {sum(cell['cell_type'] == 'code' for cell in cells)} cells ran")


if __name__ == "__main__":
    main()
