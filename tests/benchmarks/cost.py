"""What the parts of a solve cost on this machine, and a model of it, as Python source.

    python tests/benchmarks/cost.py                              all: some 4 minutes
    python tests/benchmarks/cost.py step mixing --dtype float32  some parts, one dtype
    python tests/benchmarks/cost.py step --raw raw.json          keep the numbers, too
    python tests/benchmarks/cost.py none --raw raw.json          the table from a file

For states of n numbers and m samples, on NumPy, in microseconds. A model is a sum of
constants times 1, m, m n, m n^2, n^2, n^3, m n^3: those terms that `PARTS` names, no
constant negative, with the least squares of relative errors. n^2 has another constant
where m > 1: there BLAS first repacks A. With `--raw` the numbers are added to those in
the file, so that they can be measured in pieces.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from pyidl import activations
from pyidl.arrays.batch import change_and_size
from pyidl.matrices.full import Full
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.direct import CHUNK, solve_each
from pyidl.solvers.problem import Affine

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MEMORY = 3
TURNS = 11
TURN = 1.5e-3
"""Seconds that a turn should take at least; shorter calls are repeated."""

TERMS = {
    "1": lambda n, m: 1.0,
    "m": lambda n, m: m,
    "m n": lambda n, m: m * n,
    "m n^2": lambda n, m: m * n**2,
    "n^2": lambda n, m: n**2,
    "n^2, m > 1": lambda n, m: n**2 * (m > 1),  # A is repacked; not in the product with one vector
    "n^3": lambda n, m: n**3,
    "m n^3": lambda n, m: m * n**3,
}


def problem(n, m, dtype):
    """``x = relu(A x + z)``, A positive with row sums of 0.99: slow enough to mix."""
    rng = np.random.default_rng(0)
    A = rng.random((n, n))
    A *= 0.99 / A.sum(axis=1, keepdims=True)
    return Affine(Full(A.astype(dtype)), rng.normal(size=(m, n)).astype(dtype), activations.relu)


def seconds(call):
    """The median of some turns."""
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    calls, times = max(1, int(TURN / max(once, 1e-7))), []
    for _ in range(TURNS if once < 0.1 else 1):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return float(np.median(times))


def arrays(n, m, dtype):
    """A, Z, x and two arrays to write to."""
    p = problem(n, m, dtype)
    x = np.maximum(p.offset, 0)
    return p.matrix.A, p.offset, x, np.empty_like(x), np.empty_like(x)


def step(n, m, dtype):
    """A step in bare NumPy, the transpose as it lies in memory: product, sum, ReLU."""
    A, Z, x, y, image = arrays(n, m, dtype)

    def call():
        np.matmul(x, A.T, out=y)
        np.add(y, Z, out=y)
        np.maximum(y, 0, out=image)

    return seconds(call)


def step_contiguous(n, m, dtype):
    """The same with a contiguous transpose, and `np.dot`, which has less to decide."""
    A, Z, x, y, image = arrays(n, m, dtype)
    At = np.ascontiguousarray(A.T)

    def call():
        np.dot(x, At, out=y)
        np.add(y, Z, out=y)
        np.maximum(y, 0, out=image)

    return seconds(call)


def library_step(n, m, dtype):
    """The step of `pyidl`, `Affine.step`."""
    p = problem(n, m, dtype)
    _, _, x, y, image = arrays(n, m, dtype)
    return seconds(lambda: p.step(x, (y, image)))


def product_view(n, m, dtype):
    """``x A^T`` with the transpose as it lies in memory."""
    A, _, x, y, _ = arrays(n, m, dtype)
    return seconds(lambda: np.matmul(x, A.T, out=y))


def product_contiguous(n, m, dtype):
    """``x A^T`` with a contiguous copy of the transpose."""
    A, _, x, y, _ = arrays(n, m, dtype)
    At = np.ascontiguousarray(A.T)
    return seconds(lambda: np.matmul(x, At, out=y))


def product_dot(n, m, dtype):
    """``x A^T`` by `np.dot`, with a contiguous copy of the transpose."""
    A, _, x, y, _ = arrays(n, m, dtype)
    At = np.ascontiguousarray(A.T)
    return seconds(lambda: np.dot(x, At, out=y))


def measurement(n, m, dtype):
    """Residuals, sizes, who has converged, and a copy of the best iterate."""
    _, Z, x, y, image = arrays(n, m, dtype)
    image[...] = x * 0.5

    def call():
        residual, size = change_and_size(np, image, x)
        np.count_nonzero(residual <= 1e-6 * (1.0 + size))
        y[...] = Z

    return seconds(call)


def mixing(n, m, dtype):
    """A step of Anderson's method, all samples, without the product: steps 4 to 10."""
    p, times = problem(n, m, dtype), []
    began = time.perf_counter()
    while len(times) < 5 * TURNS or time.perf_counter() - began < 10 * TURN:
        mix, y = Mixing(p, MEMORY), p.offset.copy()
        for k in range(1, 11):
            y_image = p.pre(p.image(y))
            start = time.perf_counter()
            following = mix(y, y_image)
            if k > MEMORY:
                times.append(time.perf_counter() - start)
            y = y_image if following is None else following
        if times[-1] > 0.1:
            break
    return float(np.median(times))


def solve_batched(n, m, dtype):
    """``(I - A D)^{-1} F``, another D for every sample, formed and solved in chunks."""
    A, F, x, _, _ = arrays(n, m, dtype)
    D, eye = (x > 0).astype(dtype), np.eye(n, dtype=dtype)
    count = max(1, CHUNK // n**2)

    def call():
        for i in range(0, m, count):
            d = D[i : i + count]
            solve_each(np, eye[None] - A[None] * d[:, None, :], F[i : i + count, :, None])

    return seconds(call)


def solve_shared(n, m, dtype):
    """The same with one D: one factorisation."""
    A, F, x, _, _ = arrays(n, m, dtype)
    d, eye = (x[0] > 0).astype(dtype), np.eye(n, dtype=dtype)
    return seconds(lambda: np.linalg.solve(eye - A * d, F.T))


PASS = "1", "m", "m n"
PRODUCT = "1", "m", "m n", "n^2", "n^2, m > 1", "m n^2"
PARTS = {
    "step": (step, PRODUCT, 2**31),
    "step_contiguous": (step_contiguous, PRODUCT, 2**31),
    "library_step": (library_step, PRODUCT, 2**31),
    "product_view": (product_view, PRODUCT, 2**31),
    "product_contiguous": (product_contiguous, PRODUCT, 2**31),
    "product_dot": (product_dot, PRODUCT, 2**31),
    "measurement": (measurement, PASS, 2**31),
    "mixing": (mixing, PASS, 2**31),
    "solve_batched": (solve_batched, ("1", "m", "m n", "m n^2", "m n^3"), 2**31),
    "solve_shared": (solve_shared, ("1", "m n", "n^2", "n^3", "m n^2"), 2**33),
}
"""What is measured, its terms, and the most multiplications that are tried."""


def grid(part):
    """The pairs (n, m) that are measured; m is thinned where n is no power of 2."""
    most = PARTS[part][2]
    for n in SIZES:
        for m in SAMPLES if n & (n - 1) == 0 else SAMPLES[::2]:
            work = m * n**2
            if part == "solve_batched":
                work *= n
            elif part == "solve_shared":
                work += n**3
            if work <= most:
                yield n, m


def measure(parts, dtypes, pairs=None):
    """A list of ``{"part", "dtype", "n", "m", "us"}``."""
    found = []
    for part in parts:
        for dtype in dtypes:
            for n, m in pairs or grid(part):
                us = 1e6 * PARTS[part][0](n, m, dtype)
                found.append({"part": part, "dtype": dtype, "n": n, "m": m, "us": us})
    return found


def fit(terms, found):
    """``({term: constant}, median relative error, the worst, where)``."""
    t = np.array([one["us"] for one in found])
    M = (
        np.array([[TERMS[term](one["n"], one["m"]) for term in terms] for one in found], float)
        / t[:, None]
    )
    largest = M.max(axis=0)
    constants = nnls(M / largest, np.ones(len(t)))[0] / largest
    errors = np.abs(M @ constants - 1)
    worst = found[int(np.argmax(errors))]
    return (
        dict(zip(terms, map(float, constants))),
        float(np.median(errors)),
        float(errors.max()),
        (worst["n"], worst["m"]),
    )


def table(found):
    """The models, as Python source."""
    lines = ["COST = {  # microseconds"]
    for part, (_, terms, _) in PARTS.items():
        for dtype in ("float32", "float64"):
            rows = [one for one in found if one["part"] == part and one["dtype"] == dtype]
            if len(rows) < len(terms):
                continue
            constants, median, worst, where = fit(terms, rows)
            text = ", ".join(f'"{term}": {value:.3g}' for term, value in constants.items() if value)
            lines.append(f"    # error {median:.0%}, at worst {worst:.0%} (n, m = {where})")
            lines.append(f'    ("{part}", "{dtype}"): {{{text}}},')
    return "\n".join([*lines, "}"])


def main(arguments=None):
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "none", []])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--raw", type=Path)
    options = parser.parse_args(arguments)
    found = json.loads(options.raw.read_text()) if options.raw and options.raw.exists() else []
    parts = [part for part in options.parts or PARTS if part != "none"]
    began = time.perf_counter()
    new = measure(parts, options.dtype)
    seen = {(one["part"], one["dtype"]) for one in new}
    found = [one for one in found if (one["part"], one["dtype"]) not in seen] + new
    if options.raw:
        options.raw.write_text(json.dumps(found))
    print(table(found))
    print(f"# {len(new)} measurements in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
