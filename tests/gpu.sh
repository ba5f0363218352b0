#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth: the tests that run on CuPy, the measurements, the examples. From the root of a checkout:
#
#   tests/gpu.sh [cuda12|cuda13] [folder for the results]
#
# PYTHON may name an interpreter that has CuPy, pytest, hypothesis and array-api-strict; otherwise an environment is made. A part that fails
# does not end the run; the exit status says how many did.
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
timeout 420 "$PYTHON" -m pytest -q -m "gpu and not slow" -p no:cacheprovider 2>&1 | tee "$out/tests.txt" || failed=$((failed + 1))

echo "== measurements =="
timeout 540 "$PYTHON" tests/benchmarks/gpu.py --out "$out/gpu.md" --limit "${LIMIT:-480}" || failed=$((failed + 1))

echo "== an example, with one line more =="
sed 's/^model = \(.*\)$/model = \1.to("cuda")/; s/^history = /U_train, U_test, t_train, t_test = (pyidl.to_device(a, "cuda") for a in (U_train, U_test, t_train, t_test))\nhistory = /' \
    examples/digits.py > "$out/digits_gpu.py"
timeout 120 "$PYTHON" "$out/digits_gpu.py" 2>&1 | tee "$out/digits.txt" || failed=$((failed + 1))
exit "$failed"
