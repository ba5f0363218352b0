"""Cells: a map ``x -> f(x, u)`` with its two local derivatives, written by hand.

A cell solves nothing. `bind` does the work that does not depend on x; `linearize`
writes down the adjoint equation at a solution; `grads` turns the adjoint's answer into
gradients of inputs and parameters. The last two are separate, so that a recurrence can
solve one adjoint per time step and form the gradients of all steps in one product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.matrices.base import Matrix
from pyidl.solvers.image import Jacobians, Times
from pyidl.solvers.problem import Affine, Problem, sizes
from pyidl.solvers.solution import Solution
from pyidl.typing import Array, Grads

__all__ = ["AffineCell", "Cell", "FunctionCell"]


class Cell(ABC):
    """``x = f(x, u)``; subclasses are frozen dataclasses that hold the parameters."""

    @abstractmethod
    def bind(self, u: Array) -> Problem:
        """The forward problem for this input."""

    @abstractmethod
    def linearize(self, solution: Solution, u: Array, g: Array) -> Problem:
        """The adjoint problem at a solution, for the cotangent g of x."""

    @abstractmethod
    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """``(du, gradients by name)`` from the adjoint's answer v.

        Du is None without `inputs`.
        """


@dataclass(frozen=True)
class AffineCell(Cell):
    r"""``x = phi(A x + B u + b)``; in rows ``X = phi(Y), Y = X A^T + U B^T + b``.

    Let V be the derivative of the loss with respect to Y, row by row. Y acts through X
    only, so with G the direct derivative with respect to X and S = phi'(Y),

        V = S * (G + V A),

    because X reappears in Y through A. With V known, Y = X A^T + U B^T + b is linear in
    everything else:

        dA = V^T X,    dB = V^T U,    db = sum of the rows of V,    dU = V B.

    Where phi acts on blocks of components together, the product with S is one with the
    transposed Jacobian of phi, row by row.
    """

    A: Matrix
    B: Matrix
    b: Array | None
    activation: Activation

    def bind(self, u: Array) -> Affine:
        """``Z = U B^T + b``, once per solve."""
        Z = self.B.rows(u)
        if self.b is not None:
            Z += self.b
        return Affine(self.A, Z, self.activation)

    def linearize(self, solution: Solution, u: Array, g: Array) -> Problem:
        """``V = S * (V A + G)``, with slopes, or Jacobians, at the pre-activation from which the returned X came."""
        if self.activation.vector_blocks(g.shape[1]):
            Y = solution.pre
            return Affine(
                self.A.T, g, Jacobians(self.activation, Y), sizes(self.activation.vjp(Y, g))
            )
        S = self.activation.dphi(solution.pre)
        return Affine(self.A.T, g, Times(S), sizes(g, S))

    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """The four products above."""
        grads = self.A.grads("A", v, x) | self.B.grads("B", v, u)
        if self.b is not None:
            grads["b"] = namespace(v).sum(v, axis=0)
        return (self.B.T.rows(v) if inputs else None), grads


class FunctionCell(Cell):
    """Base class for a cell of your own.

    Any ``f(x, u)`` and its derivative, as plain functions.

    With v the total derivative of the loss with respect to x, and g the direct one, ``v
    = g + v df/dx``.
    """

    @abstractmethod
    def zero(self, u: Array) -> Array:
        """The state at which the iteration starts: zeros of the right shape."""

    @abstractmethod
    def f(self, x: Array, u: Array) -> Array:
        """``f(x, u)``, one sample a row."""

    @abstractmethod
    def vjp_state(self, x: Array, u: Array, v: Array) -> Array:
        """``v df/dx`` for every sample."""

    def bind(self, u: Array) -> Problem:
        """The problem of which only the map is known."""
        return _FunctionProblem(self, u, self.zero(u))

    def linearize(self, solution: Solution, u: Array, g: Array) -> Problem:
        """``v = g + v df/dx`` at the solution."""
        return _FunctionAdjoint(self, solution.value, u, g, sizes(g))


class _FunctionProblem(Problem):
    def __init__(self, cell: FunctionCell, u: Array, zero: Array) -> None:
        super().__init__(zero)
        self.cell, self.u = cell, u

    def pre(self, x: Any, out: Any = None) -> Any:
        return self.cell.f(x, self.u)

    def take(self, rows: np.ndarray) -> _FunctionProblem:
        return _FunctionProblem(
            self.cell, *(take_rows(self.xp, a, rows) for a in (self.u, self.like))
        )


class _FunctionAdjoint(Problem):
    def __init__(
        self, cell: FunctionCell, x: Array, u: Array, g: Array, reference: np.ndarray
    ) -> None:
        super().__init__(g, reference)
        self.cell, self.x, self.u = cell, x, u

    def pre(self, x: Any, out: Any = None) -> Any:
        return self.like + self.cell.vjp_state(self.x, self.u, x)

    def take(self, rows: np.ndarray) -> _FunctionAdjoint:
        x, u, g = (take_rows(self.xp, a, rows) for a in (self.x, self.u, self.like))
        assert self.reference is not None
        return _FunctionAdjoint(self.cell, x, u, g, self.reference[rows])
