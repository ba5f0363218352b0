r"""The implicit function theorem, written once.

Let x* solve ``x = f(x, u, theta)``, let a loss depend on x* with gradient g, and let J
be the Jacobian of f with respect to x at x*. Differentiating the equation along any
direction, with df the change of f at fixed x,

    dx = J dx + df    =>    dx = (I - J)^{-1} df.

The loss changes by ``<g, dx> = <v, df>``, where v solves the *adjoint equation*

    (I - J^T) v = g    <=>    v = J^T v + g.

That is again a fixed-point equation, linear. Where J contracts in some norm, J^T
contracts by the same factor in the dual norm, and both have the same eigenvalues. So
the backward pass needs a solver for the same reason as the forward pass: the state
feeds back into itself, and so does its gradient. The path that the forward solver took
is irrelevant and is not stored. Once v is known, gradients are those of one ordinary
layer f at fixed x: ``<v, df>``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import is_array, own
from pyidl.cells import Cell
from pyidl.errors import InputError, expect
from pyidl.solvers import Auto, Solver
from pyidl.solvers.base import check_solvers
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import OnFail, Solution, settle
from pyidl.typing import Array, Grads
from pyidl.wellposed.certificate import Certificate

__all__ = ["DEFAULT_ADJOINT", "DEFAULT_FORWARD", "EquilibriumPullback", "equilibrium"]

DEFAULT_FORWARD = DEFAULT_ADJOINT = Auto()


@dataclass(frozen=True)
class EquilibriumPullback:
    """From the gradient with respect to x* to those of u and the parameters.

    It holds the solution, not the iterates: its memory does not grow with the number of
    steps. Calling it touches nothing.
    """

    cell: Cell
    u: Array
    forward: Solution
    adjoint: Solver
    on_fail: OnFail = "raise"

    def solve(self, g: Array, *, v0: Start = None, trace: bool = False) -> Solution:
        """The adjoint solve alone: v with ``v = J^T v + g``, from v0 if it is given."""
        return self.adjoint(self.cell.linearize(self.forward, self.u, g), v0, trace=trace)

    def __call__(self, g: Array, inputs: bool = True, *, v0: Start = None) -> tuple[Any, Grads]:
        """``(du, grads)``: one adjoint solve, then ``<v, df>``.

        Parameters
        ----------
        g : array with the shape of x*
            The gradient of a loss with respect to x*.
        inputs : bool
            Whether du is wanted; None takes its place otherwise.
        v0 : array with the shape of x*, optional
            Where the adjoint solver starts.

        Returns
        -------
        du, grads : array or None, dict of arrays
            The gradients with respect to u, and to the parameters by their names.

        Raises
        ------
        GradientConvergenceError
            If the adjoint solve fails and `on_fail` is "raise". Its message says how
            far it came.
        """
        v = settle(self.solve(g, v0=v0), self.on_fail, adjoint=True).value
        return self.cell.grads(self.forward.value, self.u, v, inputs)


def equilibrium(
    cell: Cell,
    u: Array,
    *,
    forward: Solver | None = None,
    adjoint: Solver | None = None,
    x0: Array | None = None,
    on_fail: OnFail = "raise",
    certificate: Callable[[], Certificate] | None = None,
) -> tuple[Array, EquilibriumPullback]:
    """Solve ``x = f(x, u)`` and return ``(x, pullback)``.

    Parameters
    ----------
    cell : Cell
        f with its derivatives, such as a `FunctionCell` of yours.
    u : array
        The input. The pullback keeps a copy of it, unless it is frozen.
    forward, adjoint : Solver, optional
        For ``x = f(x, u)`` and for ``v = J^T v + g``; `Auto` if left out.
    x0 : array with the shape of the state, optional
        Where the forward solver starts.
    on_fail : {"raise", "warn", "ignore"}
        What happens if samples do not converge, now and in the pullback.
    certificate : callable without arguments, optional
        Its answer is quoted where the solve fails, and computed only then.

    Returns
    -------
    x : array
        The solution, one sample a row.
    pullback : EquilibriumPullback
        ``pullback(g)`` returns ``(du, grads)``.

    Raises
    ------
    ConvergenceError
        If the solve fails and `on_fail` is "raise".
    InputError
        If an argument is not what is described here.

    Examples
    --------
    >>> from pyidl.cells import AffineCell
    >>> from pyidl import activations
    >>> from pyidl.matrices import Full
    >>> A, B = Full(np.array([[0.5]])), Full(np.array([[1.0]]))
    >>> half = AffineCell(A, B, None, activations.relu)  # x = relu(x / 2 + u)
    >>> x, pull = equilibrium(half, np.array([[3.0]]))
    >>> du, grads = pull(np.ones((1, 1)))
    >>> x.round(6), du.round(6), grads["A"].round(6)
    (array([[6.]]), array([[2.]]), array([[12.]]))
    """
    expect("cell", cell, Cell, "give a Cell, such as a FunctionCell of yours")
    check_solvers(forward, adjoint)
    if not (certificate is None or callable(certificate)):
        raise InputError(
            f"certificate is {certificate!r}; give a function without arguments that computes it, "
            "such as model.certificate"
        )
    if not (x0 is None or is_array(x0)):
        raise InputError(
            f"x0 is {type(x0).__name__}; an array with the shape of the state is needed, or None"
        )
    kept = own(u, u) if is_array(u) else u
    solution = solved(cell.bind(kept), forward, x0, on_fail=on_fail, certificate=certificate)
    return solution.value, EquilibriumPullback(
        cell, kept, solution, adjoint or DEFAULT_ADJOINT, on_fail
    )


def solved(
    problem: Problem,
    solver: Solver | None,
    x0: Start = None,
    *,
    on_fail: OnFail,
    certificate: Callable[[], object] | None = None,
    trace: bool = False,
) -> Solution:
    """The forward solution, by `solver` or the default, settled as `on_fail` says."""
    solution = (solver or DEFAULT_FORWARD)(problem, x0, trace=trace)
    return settle(solution, on_fail, adjoint=False, certificate=certificate)
