r"""Products with a matrix of which few entries differ from zero, in compressed rows (CSR): ``2 nnz m`` flops instead of ``2 r c m``.

Samples are rows, ``Y = X A^T``. SciPy adds up ``Y^T = A X^T`` entry by entry of A,
``y_i += a_ij x_j``, where y_i and x_j are rows of Y^T and X^T: one number of each
sample, side by side. So X is transposed on the way in and Y on the way out, and samples
are taken `SAMPLES` at a time, so that the transposed pieces stay in the cache. (Going
through the compressed rows once for each sample would need no transposes, but gathers
single numbers; it is 5 to 20 times as slow.) A sparse factor cannot reuse what it loads
as a dense product does: an entry costs it 5 to 15 times as much. Measured in
docs/performance.md.

On CuPy a transposed row-stored array is what cuSPARSE reads and writes, and nothing is
moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.typing import Array, Namespace

__all__ = ["DENSITY", "SAMPLES", "SMALLEST", "WORK", "compressed", "off_diagonal", "product"]

DENSITY = 0.1
"""Up to this share of nonzero entries a product of one core is faster in compressed rows than in full ones (measured)."""

SMALLEST = 2**16
"""From so many entries of A on. A solve with a smaller A spends its time elsewhere.

At n = 112 nothing is gained at any density.
"""

WORK = 2**19
"""From so many entries of A times samples on.

Below, what SciPy does around a product costs as much as the product.
"""

SAMPLES = 128


def _library(xp: Namespace) -> Any:
    """The class of compressed rows that goes with `xp`, or None.

    Imported on first use, since few models need it.
    """
    if xp is np:
        from scipy.sparse import csr_array

        return csr_array
    if xp.__name__ == "cupy":
        try:
            from cupyx.scipy.sparse import csr_matrix
        except ImportError:
            return None
        return csr_matrix
    return None


def compressed(A: Array) -> Any:
    """A in compressed rows, or None where its library has none."""
    csr = _library(namespace(A))
    return None if csr is None else csr(A)


def product(S: Any, x: Any, out: Any = None) -> Any:
    """``x A^T`` for rows x, a new array or `out`."""
    xp, m = namespace(x), x.shape[0]
    if xp is not np:
        y = (S @ x.T).T
        if out is None:
            return y
        out[...] = y
        return out
    if out is None:
        out = np.empty((m, S.shape[0]), x.dtype)
    if m == 1:
        out[0] = S @ x[0]
        return out
    for i in range(0, m, SAMPLES):
        out[i : i + SAMPLES] = (S @ x[i : i + SAMPLES].T).T
    return out


def off_diagonal(S: Any, scale: Any) -> Any:
    """``diag(scale) (A - diag(A))``.

    The zeros that take the place of the diagonal are stored.
    """
    xp, csr, entries = namespace(scale), _library(namespace(scale)), S.tocoo()
    data = xp.where(
        entries.row == entries.col,
        xp.zeros_like(entries.data),
        xp.take(scale, entries.row) * entries.data,
    )
    return csr((data, (entries.row, entries.col)), shape=S.shape)
