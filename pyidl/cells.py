"""Cells: a map ``x -> f(x, u)`` with its two local derivatives, written by hand.

A cell solves nothing. `bind` does the work that does not depend on x; `linearize` writes down the adjoint equation at a
solution; `grads` turns the adjoint's answer into gradients of inputs and parameters. The last two are separate, so that
a recurrence can solve one adjoint per time step and form the gradients of all steps in one product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.backend import namespace, to_numpy
from pyidl.rows import max_abs, take_rows
from pyidl.solvers.problem import Affine, Iteration, LinearAffine, LinearProblem, Problem
from pyidl.solvers.solution import Solution
from pyidl.solvers.vector import VectorAdjoint, VectorAffine
from pyidl.structure import Matrix
from pyidl.typing import Array, Grads

__all__ = ["AffineCell", "Cell", "FunctionCell"]


class Cell(ABC):
    """``x = f(x, u)``; subclasses are frozen dataclasses that hold the parameters."""

    @abstractmethod
    def bind(self, u: Array) -> Problem:
        """The forward problem for this input."""

    @abstractmethod
    def linearize(self, solution: Solution, u: Array, g: Array) -> LinearProblem:
        """The adjoint problem at a solution, for the cotangent g of x."""

    @abstractmethod
    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """``(du, gradients by name)`` from the adjoint's answer v; du is None without `inputs`."""


@dataclass(frozen=True)
class AffineCell(Cell):
    r"""``x = phi(A x + B u + b)``; in rows ``X = phi(Y), Y = X A^T + U B^T + b``.

    Let V be the derivative of the loss with respect to Y, row by row. Y acts through X only, so with G the direct
    derivative with respect to X and S = phi'(Y),

        V = S * (G + V A),

    because X reappears in Y through A. With V known, Y = X A^T + U B^T + b is linear in everything else:

        dA = V^T X,    dB = V^T U,    db = sum of the rows of V,    dU = V B.

    Where phi acts on blocks of components together, the product with S is one with the transposed Jacobian of phi, row by row.
    """

    A: Matrix
    B: Matrix
    b: Array | None
    activation: Activation

    def bind(self, u: Array) -> Iteration:
        """``Z = U B^T + b``, once per solve."""
        Z = self.B.rows(u)
        if self.b is not None:
            Z += self.b
        return (VectorAffine if self.activation.vector_blocks(Z.shape[1]) else Affine)(self.A, Z, self.activation)

    def linearize(self, solution: Solution, u: Array, g: Array) -> LinearProblem:
        """``V = S * (V A + G)``, with slopes, or Jacobians, at the pre-activation from which the returned X came."""
        if self.activation.vector_blocks(g.shape[1]):
            Y = solution.pre
            return VectorAdjoint(self.A.T, g, self.activation, Y, _sizes(self.activation.vjp(Y, g)))
        S = self.activation.dphi(solution.pre)
        return LinearAffine(self.A.T, g, S, _sizes(g, S))

    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """The four products above."""
        grads = self.A.grads("A", v, x) | self.B.grads("B", v, u)
        if self.b is not None:
            grads["b"] = namespace(v).sum(v, axis=0)
        return (self.B.T.rows(v) if inputs else None), grads


class FunctionCell(Cell):
    """Base class for a cell of your own: any ``f(x, u)`` and its derivative, as plain functions.

    With v the total derivative of the loss with respect to x, and g the direct one, ``v = g + v df/dx``.
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

    def linearize(self, solution: Solution, u: Array, g: Array) -> LinearProblem:
        """``v = g + v df/dx`` at the solution."""
        return _FunctionAdjoint(self, solution.value, u, g, _sizes(g))


@dataclass(frozen=True)
class _FunctionProblem(Problem):
    cell: FunctionCell
    u: Array
    zero: Array

    @property
    def like(self) -> Array:
        return self.zero

    def pre(self, x: Any, out: Any = None) -> Any:
        return self.cell.f(x, self.u)

    def take(self, rows: np.ndarray) -> _FunctionProblem:
        return _FunctionProblem(self.cell, *(take_rows(self.xp, a, rows) for a in (self.u, self.zero)))

    @property
    def in_place(self) -> bool:
        return False


@dataclass(frozen=True)
class _FunctionAdjoint(LinearProblem):
    cell: FunctionCell
    x: Array
    u: Array
    g: Array
    reference: np.ndarray

    @property
    def like(self) -> Array:
        return self.g

    def pre(self, x: Any, out: Any = None) -> Any:
        return self.g + self.cell.vjp_state(self.x, self.u, x)

    def take(self, rows: np.ndarray) -> _FunctionAdjoint:
        x, u, g = (take_rows(self.xp, a, rows) for a in (self.x, self.u, self.g))
        return _FunctionAdjoint(self.cell, x, u, g, self.reference[rows])

    @property
    def in_place(self) -> bool:
        return False


def _sizes(h: Any, factor: Any = None) -> np.ndarray:
    """``max|h|`` (or ``max|factor h|``) of every sample, on the host."""
    return to_numpy(max_abs(namespace(h), h, factor)).astype(np.float64)
