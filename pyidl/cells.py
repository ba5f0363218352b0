"""Cells: a map ``x -> f(x, u)`` with its two local derivatives, written by hand.

A cell solves nothing. `bind` does the work that does not depend on x; `linearize` writes down the adjoint equation at a
solution; `grads` turns the adjoint's answer into gradients of inputs and parameters. The last two are separate, so that
a recurrence can solve one adjoint per time step and form the gradients of all steps in one product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from pyidl.activations import Activation
from pyidl.backend import max_abs, namespace
from pyidl.solvers.problem import Affine, LinearAffine, LinearProblem, Problem
from pyidl.solvers.solution import Solution
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
    """

    matrix: Matrix
    B: Array
    b: Array | None
    activation: Activation

    def bind(self, u: Array) -> Affine:
        """``Z = U B^T + b``, once per solve."""
        Z = u @ self.B.T
        if self.b is not None:
            Z += self.b
        return Affine(self.matrix, Z, self.activation)

    def linearize(self, solution: Solution, u: Array, g: Array) -> LinearAffine:
        """``V = S * (V A + G)``, with slopes at the pre-activation from which the returned X came."""
        S = self.activation.dphi(solution.pre)
        return LinearAffine(self.matrix.T, g, S, max_abs(namespace(g), S * g))

    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """The four products above."""
        grads = self.matrix.grads(v, x)
        grads["B"] = v.T @ u
        if self.b is not None:
            grads["b"] = namespace(v).sum(v, axis=0)
        return (v @ self.B if inputs else None), grads


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
        return _FunctionAdjoint(self, solution.value, u, g, max_abs(namespace(g), g))


@dataclass(frozen=True)
class _FunctionProblem(Problem):
    cell: FunctionCell
    u: Array
    zero: Array

    @property
    def like(self) -> Array:
        return self.zero

    def f(self, x: Any, out: Any = None) -> tuple[Any, Any]:
        image = self.cell.f(x, self.u)
        return image, image

    def take(self, rows: Array) -> _FunctionProblem:
        return _FunctionProblem(self.cell, *(self.xp.take(a, rows, axis=0) for a in (self.u, self.zero)))

    def buffers(self) -> None:
        return None


@dataclass(frozen=True)
class _FunctionAdjoint(LinearProblem):
    cell: FunctionCell
    x: Array
    u: Array
    g: Array
    reference: Array

    @property
    def like(self) -> Array:
        return self.g

    def f(self, x: Any, out: Any = None) -> tuple[Any, Any]:
        image = self.g + self.cell.vjp_state(self.x, self.u, x)
        return image, image

    def take(self, rows: Array) -> _FunctionAdjoint:
        return _FunctionAdjoint(self.cell, *(self.xp.take(a, rows, axis=0) for a in (self.x, self.u, self.g, self.reference)))

    def buffers(self) -> None:
        return None
