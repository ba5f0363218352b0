"""Kernels for CuPy that need several entries at a time: one block of threads a sample.

    measure   max |a - b|,  max |b|
    mix       Anderson's step (its derivation is in `pyidl.solvers.anderson`)

What for: on CuPy every array function is a launch, and a step of a solve is two. A
measurement is one more, and so is all of Anderson's method (counted on the emulated
card, tests/arrays/test_waits.py; no real card has timed them, docs/gpu.md). On other
libraries the callers do the same with array functions. Kernels of single entries are in
`pyidl.arrays.fusion`.

Sums and maxima of a block are taken in a fixed order, in float64, so that a solve can
be repeated to the last bit. A block has up to 1024 threads, and a card 65536 registers
for them: the compiler has to know (`__launch_bounds__`), or a kernel that uses more
than 64 is not launched.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pyidl.typing import Namespace

__all__ = ["measure", "mix"]

MEMORY = 64
"""So many differences of Anderson's method fit the memory that a block shares.

That is 48 KiB, for K^2 numbers of 8 bytes.
"""

BLOCKS = """
// NaN is the largest
__device__ double larger(double a, double b) { return b > a || b != b ? b : a; }

__device__ double block_reduce(double value, double* room, bool add)
{   // the sum, or the largest, of the values of all threads of the block; all of them hear it
    int t = threadIdx.x;
    room[t] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) room[t] = add ? room[t] + room[t + half] : larger(room[t], room[t + half]);
        __syncthreads();
    }
    value = room[0];
    __syncthreads();
    return value;
}
"""

MEASURE = """
extern "C" __global__ __launch_bounds__(1024) void measure(
    const T* a, const T* b, double* out, long long n)
{
    __shared__ double room[1024];
    long long first = blockIdx.x * n;
    double change = 0, size = 0;
    for (long long i = first + threadIdx.x; i < first + n; i += blockDim.x) {
        change = larger(change, fabs(a[i] - b[i]));
        size = larger(size, fabs(b[i]));
    }
    change = block_reduce(change, room, false);
    size = block_reduce(size, room, false);
    if (threadIdx.x == 0) { out[blockIdx.x] = change; out[gridDim.x + blockIdx.x] = size; }
}
"""

MIX = """
__device__ void solve(const double* gram, const double* right, double ridge, double* gamma)
{   // H gamma = dF . F, differences scaled to length 1; 0 for those that are 0
    // One thread comes here. Were H its own, every thread of the card would have room for one.
    __shared__ double H[K][K], inverse[K];
    for (int i = 0; i < K; ++i) {
        double length = sqrt(gram[i * K + i]);
        inverse[i] = length > 0 && length - length == 0 ? 1 / length : 0;
    }
    for (int i = 0; i < K; ++i) {
        for (int j = 0; j < K; ++j) {
            double g = gram[i * K + j];
            H[i][j] = (g - g == 0 ? g : 0) * inverse[i] * inverse[j];
        }
        H[i][i] += ridge + (inverse[i] > 0 ? 0 : 1);
        gamma[i] = inverse[i] > 0 ? right[i] * inverse[i] : 0;
    }
    for (int p = 0; p < K; ++p)  // H is positive definite: no pivots are sought
        for (int i = p + 1; i < K; ++i) {
            double factor = H[i][p] / H[p][p];
            for (int j = p + 1; j < K; ++j) H[i][j] -= factor * H[p][j];
            gamma[i] -= factor * gamma[p];
        }
    for (int p = K - 1; p >= 0; --p) {
        for (int j = p + 1; j < K; ++j) gamma[p] -= H[p][j] * gamma[j];
        gamma[p] /= H[p][p];
    }
    for (int i = 0; i < K; ++i) gamma[i] *= inverse[i];
}

extern "C" __global__ __launch_bounds__(1024) void mix(
    const long long* rows, const T* y, T* image, T* F, T* G, T* dF, T* dG,
    double* gram, T* size, T* plain, long long n, int slot, int known, double ridge)
{
    __shared__ double room[1024], gamma[K];
    long long s = blockIdx.x, past = gridDim.x * n;  // dF[j] begins at j * past
    y += rows[s] * n; image += rows[s] * n;
    F += s * n; G += s * n; dF += s * n; dG += s * n;

    double change = 0;  // max |F(y)|, F(y) = image - y
    for (long long i = threadIdx.x; i < n; i += blockDim.x)
        change = larger(change, fabs(image[i] - y[i]));
    change = block_reduce(change, room, false);
    bool good = plain[s] > 0 || change < size[s];

    // dF_j . dF_slot and dF_j . F; a point that is no good is dropped, and leaves zeros
    double row[K] = {}, right[K] = {};
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        T f = image[i] - y[i];
        T df = good ? f - F[i] : T(0), dg = good ? image[i] - G[i] : T(0);
        dF[slot * past + i] = df;
        dG[slot * past + i] = dg;
        if (good) { F[i] = f; G[i] = image[i]; }
        for (int j = 0; j < known; ++j) {
            double d = dF[j * past + i];
            row[j] += d * df;
            right[j] += d * F[i];
        }
    }
    for (int j = 0; j < known; ++j) {
        row[j] = block_reduce(row[j], room, true);
        right[j] = block_reduce(right[j], room, true);
    }
    if (threadIdx.x == 0) {
        gram += s * K * K;
        for (int j = 0; j < known; ++j) gram[j * K + slot] = gram[slot * K + j] = row[j];
        solve(gram, right, ridge, gamma);
        bool moved = false;
        for (int j = 0; j < K; ++j) {
            if (!good) gamma[j] = 0;
            moved = moved || T(gamma[j]) != 0;
        }
        plain[s] = !moved;
        if (good) size[s] = change;
    }
    __syncthreads();
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {  // y <- G - sum_j gamma_j dG_j
        T next = G[i];
        for (int j = 0; j < known; ++j) next -= T(gamma[j]) * dG[j * past + i];
        image[i] = next;
    }
}
"""


@functools.cache
def _block(xp: Any, name: str, dtype: str, memory: int) -> Any:
    return xp.RawKernel(source(name, dtype, memory), name)


def source(name: str, dtype: str, memory: int = 1) -> str:
    """The text of ``"measure"`` or ``"mix"``, for a dtype and so many differences."""
    kind = "float" if dtype == "float32" else "double"
    return f"typedef {kind} T;\n#define K {memory}\n{BLOCKS}{MEASURE if name == 'measure' else MIX}"


def _threads(n: int) -> int:
    """How many threads share n entries: a power of two, as `block_reduce` needs."""
    return int(min(1024, max(32, 1 << (max(n, 2) - 1).bit_length() >> 2)))


def measure(xp: Namespace, a: Any, b: Any) -> Any:
    """On CuPy: ``max |a - b|`` and ``max |b|`` of every sample, (2, m), float64."""
    m = a.shape[0]
    out = xp.empty((2, m), dtype=xp.float64)
    if m:
        n = a.size // m
        _block(xp, "measure", str(b.dtype), 1)(
            (m,), (_threads(n),), (_whole(xp, a, b), _whole(xp, b, b), out, np.int64(n))
        )
    return out


def mix(
    xp: Namespace, rows: Any, y: Any, image: Any, F: Any, G: Any, dF: Any, dG: Any,
    gram: Any, size: Any, plain: Any, slot: int, known: int, ridge: float,
) -> None:  # fmt: skip
    """On CuPy: Anderson's step for some rows of y.

    Parameters
    ----------
    rows : array of int64, shape (m,)
        Row s of all arrays but y and image belongs to row ``rows[s]`` of these.
    y, image : array
        The point, and its image, which is overwritten by what follows.
    F, G, size, plain : array
        Residual, image, largest entry of the residual, and whether nothing was mixed,
        at the last good point.
    dF, dG : array, shape (k, m, n)
        The differences, of which `known` exist and that in `slot` is new.
    gram : array, shape (m, k, k)
        The products ``dF_i . dF_j``.
    ridge : float
        What is added to the diagonal of the normal equations.
    """
    y, whole = _whole(xp, y, F), _whole(xp, image, F)
    n = F.size // F.shape[0]
    counts = np.int64(n), np.int32(slot), np.int32(known), np.float64(ridge)
    _block(xp, "mix", str(y.dtype), dF.shape[0])(
        (F.shape[0],), (_threads(n),), (rows, y, whole, F, G, dF, dG, gram, size, plain, *counts)
    )
    if whole is not image:
        image[...] = whole


def _whole(xp: Namespace, a: Any, like: Any) -> Any:
    """The array as a kernel expects it, itself where it is so.

    Its entries are in order, and of the dtype of `like`.
    """
    return xp.ascontiguousarray(a, dtype=like.dtype)
