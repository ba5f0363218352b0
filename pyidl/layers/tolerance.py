"""The solvers of a layer: at another tolerance, and in words."""

from __future__ import annotations

from pyidl.equilibrium import DEFAULT_ADJOINT, DEFAULT_FORWARD
from pyidl.errors import InputError
from pyidl.solvers import Solver
from pyidl.typing import Tol

__all__ = ["in_words", "solvers_at"]


def solvers_at(
    forward: Solver | None,
    adjoint: Solver | None,
    tol: Tol,
) -> tuple[Solver, Solver]:
    """Return both at one tolerance, or each at its own of a pair (forward, adjoint).

    None stands for the default solver.

    Raises
    ------
    InputError
        If a tolerance is no number between 0 and 1, or `tol` has not two of them.
    """
    pair = tol if isinstance(tol, (tuple, list)) else (tol, tol)
    if len(pair) != 2:
        raise InputError(f"tol is {tol!r}; give one tolerance, or a pair (forward, adjoint)")
    return (forward or DEFAULT_FORWARD).at(pair[0]), (adjoint or DEFAULT_ADJOINT).at(pair[1])


def in_words(state: str, constraint: object, forward: Solver | None, adjoint: Solver | None) -> str:
    """How many states an equation has, in which set it lies, and who solves it."""
    there, back = forward or DEFAULT_FORWARD, adjoint or DEFAULT_ADJOINT
    names = f"solved by {type(there).__name__}, adjoint by {type(back).__name__}"
    return f"{state} in {constraint!r}, {names}"
