#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth: the tests that run on CuPy,
# examples among them, and the measurements. From the root of a checkout:
#
#   tests/gpu.sh [cuda12|cuda13] [folder for the results]
#
# PYTHON may name an interpreter that has CuPy, pytest, hypothesis and array-api-strict;
# otherwise an environment is made. A part that fails does not end the run; the exit
# status says how many did.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${2:-gpu-results}
mkdir -p "$out"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet -e ".[test,${1:-cuda12}]"
    PYTHON=$out/venv/bin/python
fi
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
failed=0

echo "== the test suite on CuPy =="
timeout 420 "$PYTHON" -m pytest -q -m "gpu and not slow" -p no:cacheprovider 2>&1 |
    tee "$out/tests.txt" || failed=$((failed + 1))

echo "== measurements =="
timeout 540 "$PYTHON" tests/benchmarks/gpu.py --out "$out/gpu.md" --limit "${LIMIT:-480}" ||
    failed=$((failed + 1))

exit "$failed"
