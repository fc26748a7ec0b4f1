#!/usr/bin/env bash
# Copyright 2026 The glip_hf authors. MIT licence.
# The quick tests in other environments: scripts/matrix.sh NAME...   (scripts/matrix.sh --help lists them)
# Prints a row of docs/versions.md for each, and fails if a test failed. KEEP=1 leaves the environments in out/matrix.
# Interpreters: python3.X on the PATH or of pyenv; environments whose names begin with "5." lie over .venv (make test).
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=out/matrix
WORKERS="${WORKERS:-2}"

# name: Python, then what pip installs before the package itself; "over" takes all else from .venv.
environment() {
    case "$1" in
        pinned) echo "over" ;;
        oldest) echo "over transformers==5.13.0" ;;
        newest) echo "3.11 torch torchvision transformers" ;;
        bottom) echo "3.10 torch==2.6.0 torchvision==0.21.0 transformers==5.13.0" ;;
        python3.12 | python3.13 | python3.14) echo "${1#python} torch transformers" ;;
        5.*) echo "over transformers==$1" ;;
        *) return 1 ;;
    esac
}

usage() {
    echo "usage: scripts/matrix.sh NAME...; NAME is pinned, oldest, newest, bottom, python3.12, python3.13, python3.14 or a"
    echo "version of Transformers such as 5.16.1, which is installed over .venv"
}

interpreter() {
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python 2>/dev/null | tail -n 1 | grep . || command -v "python$1" || {
        echo "no Python $1 found: install it, or put python$1 on the PATH" >&2
        return 1
    }
}

# Make $ROOT/NAME: a virtual environment with the package, editable, and what it needs.
create() {
    local name=$1 python=$2
    shift 2
    rm -rf "${ROOT:?}/$name"
    mkdir -p "$ROOT"
    local pip="$ROOT/$name/bin/python -m pip --disable-pip-version-check --quiet --no-input install"
    if [ "$python" = over ]; then
        scripts/layer.sh .venv/bin/python "$ROOT/$name"
        # pip also counts what .venv holds, and reports conflicts with the package that is installed there.
        [ $# = 0 ] || $pip "$@" 2>&1 | { grep -v '^ERROR: pip.s dependency resolver\|^glip-hf .* requires' || true; }
        $pip --no-deps --editable . # for its command
    else
        "$(interpreter "$python")" -m venv "$ROOT/$name"
        $pip "$@"
        $pip "$@" --editable '.[dev]'
    fi
}

row='
import importlib.metadata as m, platform, re, sys
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return "none"
line = open(sys.argv[2]).read().strip().splitlines()[-1]
counts = {k: n for n, k in re.findall(r"(\d+) (passed|skipped|failed|errors?)", line)}
names = [version(n) for n in ("torch", "torchvision", "transformers", "huggingface_hub")]
failed = sum(int(counts.get(k, 0)) for k in ("failed", "error", "errors"))
print("|", " | ".join([sys.argv[1], platform.python_version(), *names, counts.get("passed", "0"), counts.get("skipped", "0"), str(failed)]), "|")
'

[ $# -gt 0 ] || { usage >&2; exit 2; }
[ "$1" != --help ] || { usage; exit 0; }
for name in "$@"; do environment "$name" >/dev/null || { echo "unknown environment '$name'" >&2; usage >&2; exit 2; }; done
failed=0
for name in "$@"; do
    # shellcheck disable=SC2046
    create "$name" $(environment "$name")
    PYTHONPATH="$PWD/src" OMP_NUM_THREADS=1 nice "$ROOT/$name/bin/python" -m pytest -q -n "$WORKERS" --dist loadfile \
        -p no:cacheprovider ${TESTS:-} >"$ROOT/$name.log" 2>&1 || { failed=1; grep -E '^(FAILED|ERROR)' "$ROOT/$name.log" || tail -n 5 "$ROOT/$name.log"; }
    "$ROOT/$name/bin/python" -c "$row" "$name" "$ROOT/$name.log"
    [ -n "${KEEP:-}" ] || rm -rf "${ROOT:?}/$name"
done
exit "$failed"
