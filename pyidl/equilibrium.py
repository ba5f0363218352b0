r"""The implicit function theorem, written once.

Let x* solve ``x = f(x, u, theta)``, let a loss depend on x* with gradient g, and let J
be the Jacobian of f with respect to x at x*. Differentiating the equation along any
direction,

    dx = J dx + df    =>    dx = (I - J)^{-1} df,    where df is the change of f at fixed x.

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
from pyidl.solvers.solution import OnFail, Solution, settle
from pyidl.typing import Array, Grads
from pyidl.wellposed.certificate import Certificate

__all__ = ["DEFAULT_ADJOINT", "DEFAULT_FORWARD", "EquilibriumPullback", "equilibrium"]

DEFAULT_FORWARD = DEFAULT_ADJOINT = Auto()


@dataclass(frozen=True)
class EquilibriumPullback:
    """From the gradient with respect to x* to those with respect to u and the parameters.

    It holds the solution, not the iterates: its memory does not grow with the number of
    steps. Calling it touches nothing.
    """

    cell: Cell
    u: Array
    forward: Solution
    adjoint: Solver
    on_fail: OnFail = "raise"

    def solve(self, g: Array, *, v0: Array | None = None, trace: bool = False) -> Solution:
        """The adjoint solve alone: v with ``v = J^T v + g``, from v0 if it is given."""
        return self.adjoint(self.cell.linearize(self.forward, self.u, g), v0, trace=trace)

    def __call__(
        self, g: Array, inputs: bool = True, *, v0: Array | None = None
    ) -> tuple[Any, Grads]:
        """``(du, grads)``: one adjoint solve, from v0 if it is given, then ``<v, df>``.

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

    The pullback keeps a copy of u, unless u is frozen.

    Raises
    ------
    ConvergenceError
        If the solve fails and `on_fail` is "raise"; the message quotes the certificate,
        computed only then.
    """
    expect("cell", cell, Cell, "give a Cell, such as a FunctionCell of yours")
    check_solvers(forward, adjoint)
    if not (certificate is None or callable(certificate)):
        raise InputError(
            f"certificate is {certificate!r}; give a function without arguments that computes it, such as model.certificate"
        )
    if not (x0 is None or is_array(x0)):
        raise InputError(
            f"x0 is {type(x0).__name__}; an array with the shape of the state is needed, or None"
        )
    kept = own(u, u) if is_array(u) else u
    return settled(
        cell,
        kept,
        forward=forward,
        adjoint=adjoint,
        x0=x0,
        on_fail=on_fail,
        certificate=certificate,
    )


def settled(
    cell: Cell,
    u: Array,
    *,
    forward: Solver | None = None,
    adjoint: Solver | None = None,
    x0: Array | None = None,
    on_fail: OnFail = "raise",
    certificate: Callable[[], Certificate] | None = None,
) -> tuple[Array, EquilibriumPullback]:
    """The same for arguments that have been checked, and a u that nobody writes into."""
    solution = (forward or DEFAULT_FORWARD)(cell.bind(u), x0)
    settle(solution, on_fail, adjoint=False, certificate=certificate)
    return solution.value, EquilibriumPullback(
        cell, u, solution, adjoint or DEFAULT_ADJOINT, on_fail
    )
