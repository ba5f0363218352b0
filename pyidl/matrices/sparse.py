r"""A matrix of which few entries differ from zero, in compressed rows (CSR).

A product takes ``2 nnz m`` flops instead of ``2 r c m``. Samples are rows,
``Y = X A^T``. SciPy adds up ``Y^T = A X^T`` entry by entry of A, ``y_i += a_ij x_j``,
where y_i and x_j are rows of Y^T and X^T: one number of each sample, side by side. So X
is transposed on the way in and Y on the way out, and samples are taken `SAMPLES` at a
time, so that the transposed pieces stay in the cache. (Going through the compressed
rows once for each sample would need no transposes, but gathers single numbers; it is 5
to 20 times as slow.) A sparse factor cannot reuse what it loads as a dense product
does: an entry costs it 5 to 15 times as much. Measured in docs/performance.md.

On CuPy a transposed row-stored array is what cuSPARSE reads and writes, and nothing is
moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, is_array, namespace, to_numpy
from pyidl.matrices.full import Full
from pyidl.typing import Array, Namespace

__all__ = [
    "DENSITY",
    "SAMPLES",
    "SMALLEST",
    "WORK",
    "Sparse",
    "compressed",
    "product",
    "zeros",
]

DENSITY = 0.1
"""Up to this share of nonzero entries compressed rows are the faster form (measured).

On one core.
"""

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
    if out is None:
        if xp is not np:
            return (S @ x.T).T
        out = np.empty((m, S.shape[0]), x.dtype)
    if xp is not np:
        out[...] = (S @ x.T).T
    elif m == 1:
        out[0] = S @ x[0]
    else:
        for i in range(0, m, SAMPLES):
            out[i : i + SAMPLES] = (S @ x[i : i + SAMPLES].T).T
    return out


def zeros(A: Array) -> int:
    """How many entries of A are zero (one wait on a GPU)."""
    xp = namespace(A)
    if xp is np:  # truth values are counted fastest
        return A.size - int(np.count_nonzero(to_numpy(A) != 0))
    return A.size - int(xp.sum(astype(xp, xp.abs(A) > 0, "float64")))


@dataclass(frozen=True)
class Sparse(Full):
    """A, few entries of which differ from zero.

    Large products skip the zeros, small ones and gradients are those of `Full`.

    Parameters
    ----------
    A, gains, At
        As for `Full`; At is None.
    stored : compressed rows, or compressed columns
        The same matrix. A product is as fast with either.
    turned : compressed rows, or compressed columns
        Its transpose.
    """

    stored: Any = None
    turned: Any = None

    @classmethod
    def of(cls, A: Array, below: float) -> Full:
        """Compressed where that pays, otherwise `Full`.

        It pays if A is large and at most the share `below` of it differs from zero, and
        if its library has compressed rows.
        """
        few = below > 0 and A.size >= SMALLEST and A.size - zeros(A) <= below * A.size
        stored = compressed(A) if few else None
        return Full(A) if stored is None else cls(A, None, None, stored, stored.T)

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``; only the number of samples decides whether it skips the zeros.

        Of x in compressed rows it skips those, and not the zeros of A.
        """
        many = is_array(x) and self.A.size * x.shape[0] >= WORK
        return product(self.stored, x, out) if many else super().rows(x, out)

    @property
    def T(self) -> Sparse:
        """``A^T``; compressed rows become compressed columns, without a copy."""
        return Sparse(self.A.T, self.gains, None, self.turned, self.stored)

    def off_diagonal(self, scale: Any) -> Sparse:
        """``diag(scale) (A - diag(A))``, a copy with its own compressed rows.

        The zeros that take the place of the diagonal are stored.
        """
        xp, entries = namespace(scale), self.stored.tocoo()
        data = xp.where(
            entries.row == entries.col,
            xp.zeros_like(entries.data),
            xp.take(scale, entries.row) * entries.data,
        )
        stored = _library(xp)((data, (entries.row, entries.col)), shape=self.stored.shape)
        return Sparse(super().off_diagonal(scale).A, None, None, stored, stored.T)
