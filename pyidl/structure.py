"""The matrix A as the solvers see it: whole, or as factors ``A = L R^T`` that are never multiplied out.

Samples are rows, so the forward pass multiplies by A^T from the right, and its adjoint, the same thing with A
transposed, by A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pyidl.backend import namespace
from pyidl.typing import Array

__all__ = ["Full", "LowRank", "Matrix"]


class Matrix(Protocol):
    """A square matrix acting on rows."""

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``, a new array or `out`."""
        ...

    @property
    def T(self) -> Matrix:
        """The transpose, a view."""
        ...

    def grads(self, v: Any, x: Any) -> dict[str, Any]:
        """Gradients of ``sum(v * (x A^T))`` with respect to the arrays that make up A."""
        ...

    def dense(self) -> Any:
        """A itself, (n, n)."""
        ...


def _product(a: Any, b: Any, out: Any) -> Any:
    return a @ b if out is None else namespace(a).matmul(a, b, out=out)


@dataclass(frozen=True)
class Full:
    """A, (n, n)."""

    A: Array

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``."""
        return _product(x, self.A.T, out)

    def grads(self, v: Any, x: Any) -> dict[str, Any]:
        """``dA = v^T x``."""
        return {"A": v.T @ x}

    @property
    def T(self) -> Full:
        """``A^T``."""
        return Full(self.A.T)

    def dense(self) -> Any:
        """A."""
        return self.A


@dataclass(frozen=True)
class LowRank:
    """``A = L R^T`` with L, R of shape (n, k): 4 n k flops a product instead of 2 n^2."""

    L: Array
    R: Array

    def rows(self, x: Any, out: Any = None) -> Any:
        """``(x R) L^T``."""
        return _product(x @ self.R, self.L.T, out)

    def grads(self, v: Any, x: Any) -> dict[str, Any]:
        """``dL = dA R = v^T (x R)`` and ``dR = dA^T L = x^T (v L)``, from ``dA = v^T x``."""
        return {"L": v.T @ (x @ self.R), "R": x.T @ (v @ self.L)}

    @property
    def T(self) -> LowRank:
        """``A^T = R L^T``."""
        return LowRank(self.R, self.L)

    def dense(self) -> Any:
        """``L R^T``."""
        return self.L @ self.R.T
