"""A matrix kept whole, and how it is laid out in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import is_array, namespace, writes_in_place
from pyidl.matrices.base import product
from pyidl.typing import Array

__all__ = ["TURNED_UP_TO", "Full", "laid_out"]


@dataclass(frozen=True)
class Full:
    """A matrix as one array.

    Parameters
    ----------
    A : array, shape (r, c)
        The matrix.
    gains : (float, float), optional
        The growth of A and of its Jacobi splitting per step, as `growth.with_gains`
        estimates them.
    At : array, shape (c, r), optional
        A^T in the order of its rows, where products are many: with a transposed view
        they take up to 2.8 times as long.
    metric : numpy.ndarray, shape (r,), optional
        lam > 0, where ``lam A + A^T lam < 2 lam`` is to be asked of A, and not only
        ``A + A^T < 2``.

    Examples
    --------
    >>> Full(np.array([[1.0, 2.0]])).rows(np.array([[3.0, 4.0]]))
    array([[11.]])
    """

    A: Array
    gains: tuple[float, float] | None = None
    At: Array | None = None
    metric: np.ndarray | None = field(default=None, kw_only=True)

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``, a new array or `out`."""
        if self.At is None:
            return product(x, self.A.T, out)
        if out is None:
            return x @ self.At
        At: Any = self.At
        return x.dot(At, out) if out.flags.c_contiguous else np.matmul(x, At, out=out)

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dA = v^T x``.

        Of a single sample an outer product, which a matrix product is slow at.
        """
        return {name: v.T * x if v.shape[0] == 1 and is_array(x) else v.T @ x}

    @property
    def T(self) -> Full:
        """``A^T``; it has the same eigenvalues, so the gains stay."""
        At, A = (self.A.T, None) if self.At is None else (self.At, self.A)
        metric = None if self.metric is None else 1.0 / self.metric
        return Full(At, self.gains, A, metric=metric)

    def dense(self) -> Any:
        """The array itself."""
        return self.A

    def diagonal(self) -> Any:
        """``A_ii``, a view where the library has one."""
        xp = namespace(self.A)
        if writes_in_place(xp):
            return xp.diagonal(self.A)
        return xp.sum(self.A * xp.eye(self.A.shape[0], dtype=self.A.dtype), axis=1)

    def off_diagonal(self, scale: Any) -> Full:
        """``diag(scale) (A - diag(A))``, a copy."""
        off = 1.0 - namespace(self.A).eye(self.A.shape[0], dtype=self.A.dtype)
        return laid_out(Full(scale[:, None] * off * self.A))


TURNED_UP_TO = 512
"""Up to this n, A^T is laid out.

At n = 512 that costs as much as it saves in 14 products of 64 rows (measured).
"""


def laid_out(matrix: Full) -> Full:
    """The matrix with its transpose beside it, if small and an array of NumPy."""
    A = matrix.A
    if type(matrix) is not Full or type(A) is not np.ndarray or A.shape[0] > TURNED_UP_TO:
        return matrix
    return replace(matrix, A=np.ascontiguousarray(A), At=np.ascontiguousarray(A.T))
