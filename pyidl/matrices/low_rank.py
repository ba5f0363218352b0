"""A matrix of low rank, as factors ``A = L R^T`` that are never multiplied out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.matrices.base import product
from pyidl.typing import Array

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank:
    """``A = L R^T - diag(minus)``: 4 n k flops a product instead of 2 n^2.

    Parameters
    ----------
    L, R : array, shape (n, k)
        The factors.
    minus : array, shape (n,), optional
        What is taken from the diagonal; nothing, if left out.

    Examples
    --------
    >>> A = LowRank(np.array([[1.0], [2.0]]), R=np.array([[3.0], [4.0]]))
    >>> A.rows(np.array([[1.0, 1.0]])), A.diagonal()
    (array([[ 7., 14.]]), array([3., 8.]))
    """

    L: Array
    R: Array
    minus: Array | None = None

    def rows(self, x: Any, out: Any = None) -> Any:
        """``(x R) L^T``.

        What goes from one step to the next is the k-vector ``r = R^T x``.
        """
        y = product(x @ self.R, self.L.T, out)
        if self.minus is not None:
            y -= x * self.minus
        return y

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dL = dA R = v^T (x R)``, ``dR = dA^T L = x^T (v L)``, as dA = v^T x."""
        return {"L": v.T @ (x @ self.R), "R": x.T @ (v @ self.L)}

    @property
    def T(self) -> LowRank:
        """``A^T = R L^T``."""
        return LowRank(self.R, self.L, self.minus)

    def dense(self) -> Any:
        """``L R^T``, multiplied out."""
        A = self.L @ self.R.T
        if self.minus is None:
            return A
        return A - namespace(A).eye(self.L.shape[0], dtype=A.dtype) * self.minus

    def diagonal(self) -> Any:
        """``sum_k L_ik R_ik``."""
        d = namespace(self.L).sum(self.L * self.R, axis=1)
        return d if self.minus is None else d - self.minus

    def off_diagonal(self, scale: Any) -> LowRank:
        """Scaled factors, and the diagonal to subtract."""
        return LowRank(scale[:, None] * self.L, self.R, scale * self.diagonal())
