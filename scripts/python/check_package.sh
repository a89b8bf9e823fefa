#!/usr/bin/env bash
# Builds the wheel, installs it in a fresh virtual environment and checks what it gives: the binary, the reader, the notebook.
#
#   scripts/python/check_package.sh [arguments of `maturin build`, such as --target-dir target]
#
# Needs Python 3.9 or later and a package index.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" -q install "maturin==1.16.0"
"$work/build/bin/maturin" build --release --out "$work/dist" "$@"

python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" -q install "$work"/dist/skipbench-*.whl pandas polars matplotlib mypy pandas-stubs
"$work/fresh/bin/skipbench" --version
"$work/fresh/bin/python" python/tests/check.py
"$work/fresh/bin/mypy" --strict python/skipbench
"$work/fresh/bin/python" scripts/python/run_notebook.py examples/figure.ipynb
