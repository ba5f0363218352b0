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
from pyidl.arrays.batch import take_rows, total
from pyidl.matrices.base import Matrix
from pyidl.solvers.image import Jacobians, Times
from pyidl.solvers.problem import Affine, Problem, sizes
from pyidl.solvers.solution import Solution
from pyidl.typing import Array, Grads, Setting

__all__ = ["AffineCell", "Cell", "FunctionCell"]


class Cell(Setting, ABC):
    """A map ``x -> f(x, u)``, for the equation ``x = f(x, u)`` and its gradient.

    Subclasses are frozen dataclasses that hold the parameters. Where nothing is known
    of f but itself and its derivative, subclass `FunctionCell`.

    Examples
    --------
    ``x = a x + u`` with a number ``|a| < 1``:

    >>> from pyidl.equilibrium import equilibrium
    >>> from pyidl.activations import identity
    >>> from pyidl.matrices import Full
    >>> @dataclass(frozen=True)
    ... class Echo(Cell):
    ...     a: float
    ...
    ...     def bind(self, u):
    ...         return Affine(Full(self.a * np.eye(u.shape[1])), u, identity)
    ...
    ...     def linearize(self, solution, u, g):
    ...         A = Full(self.a * np.eye(u.shape[1]))
    ...         return Affine(A.T, g, Times(np.ones_like(g)), sizes(g))
    ...
    ...     def grads(self, x, u, v, inputs=True):
    ...         return (v if inputs else None), {"a": np.sum(v * x)}
    >>> x, pull = equilibrium(Echo(0.5), np.array([[1.0, 3.0]]))
    >>> du, grads = pull(np.ones((1, 2)))
    >>> x.round(6), du.round(6), float(grads["a"].round(6))
    (array([[2., 6.]]), array([[2., 2.]]), 16.0)
    """

    @abstractmethod
    def bind(self, u: Array) -> Problem:
        """The forward problem ``x = f(x, u)`` for this input.

        Parameters
        ----------
        u : array
            One sample a row.

        Returns
        -------
        Problem
            What does not depend on x is computed here, once.
        """

    @abstractmethod
    def linearize(self, solution: Solution, u: Array, g: Array) -> Problem:
        """The adjoint problem ``v = J^T v + g`` at a solution.

        Parameters
        ----------
        solution : Solution
            Of the forward problem. Slopes are taken at `Solution.pre`.
        u : array
            The input of the forward problem.
        g : array with the shape of x
            The cotangent of x: the gradient of a loss.

        Returns
        -------
        Problem
            A linear one, with a `reference`.
        """

    @abstractmethod
    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """The gradients ``<v, df>`` from the adjoint's answer.

        Parameters
        ----------
        x, u, v : array
            The solution, the input, and the answer of the adjoint problem.
        inputs : bool
            Whether du is wanted.

        Returns
        -------
        du, grads : array or None, dict of arrays
            The gradients with respect to u, and to the parameters by their names.
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
        """``V = S * (V A + G)``.

        Slopes, or Jacobians, at the returned pre-activation.
        """
        phi, Y = self.activation, solution.pre
        if phi.vector_blocks(g.shape[1]):
            return Affine(self.A.T, g, Jacobians(phi, Y), sizes(phi.vjp(Y, g)))
        S = phi.dphi(Y)
        return Affine(self.A.T, g, Times(S), sizes(g, S))

    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """The four products above."""
        grads = self.A.grads("A", v, x) | self.B.grads("B", v, u)
        if self.b is not None:
            grads["b"] = total(v)
        return (self.B.T.rows(v) if inputs else None), grads


class FunctionCell(Cell):
    """Base class for a cell of your own: any ``f(x, u)`` and its derivative.

    With v the total derivative of the loss with respect to x, and g the direct one,

        v = g + v df/dx.

    A subclass gives `zero`, `f`, `vjp_state` and `grads`. Solvers know only the map:
    those that need a matrix refuse such a cell.

    Examples
    --------
    ``x = a cos(x) + u``, entry by entry:

    >>> from pyidl.equilibrium import equilibrium
    >>> @dataclass(frozen=True)
    ... class Cosine(FunctionCell):
    ...     a: float
    ...
    ...     def zero(self, u):
    ...         return np.zeros_like(u)
    ...
    ...     def f(self, x, u):
    ...         return self.a * np.cos(x) + u
    ...
    ...     def vjp_state(self, x, u, v):
    ...         return -self.a * np.sin(x) * v
    ...
    ...     def grads(self, x, u, v, inputs=True):
    ...         return (v if inputs else None), {"a": np.sum(v * np.cos(x))}
    >>> x, pull = equilibrium(Cosine(1.0), np.zeros((1, 1)))
    >>> du, grads = pull(np.ones((1, 1)))
    >>> x.round(4), du.round(4)
    (array([[0.7391]]), array([[0.5975]]))
    """

    @abstractmethod
    def zero(self, u: Array) -> Array:
        """The state at which the iteration starts.

        Zeros of the right shape and dtype.
        """

    @abstractmethod
    def f(self, x: Array, u: Array) -> Array:
        """``f(x, u)``, one sample a row."""

    @abstractmethod
    def vjp_state(self, x: Array, u: Array, v: Array) -> Array:
        """``v df/dx`` for every sample: the product with the transposed Jacobian."""

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
        u, zero = (take_rows(self.xp, a, rows) for a in (self.u, self.like))
        return _FunctionProblem(self.cell, u, zero)


class _FunctionAdjoint(Problem):
    def __init__(self, cell: FunctionCell, x: Array, u: Array, g: Array, size: np.ndarray) -> None:
        super().__init__(g, size)
        self.cell, self.x, self.u = cell, x, u

    def pre(self, x: Any, out: Any = None) -> Any:
        return self.like + self.cell.vjp_state(self.x, self.u, x)

    def take(self, rows: np.ndarray) -> _FunctionAdjoint:
        x, u, g = (take_rows(self.xp, a, rows) for a in (self.x, self.u, self.like))
        assert self.reference is not None
        return _FunctionAdjoint(self.cell, x, u, g, self.reference[rows])
