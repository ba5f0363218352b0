"""A solver is a frozen configuration that, called with a problem, returns a `Solution`.

To write one, subclass `Solver`, give `at` and `__call__`, and leave the loop, the
stopping and the failures to `pyidl.solvers.loop.iterate`. A solver that needs more than
the map f refuses, by name, before it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Self

from pyidl.errors import InputError, expect, is_real, is_whole
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Iterative", "Solver", "check_limits", "check_solvers"]


class Solver(ABC):
    """How a fixed-point equation is solved."""

    @abstractmethod
    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Solve, from x0 if it is given.

        With `trace`, keep the residual of every step.
        """

    @abstractmethod
    def at(self, tol: float | None) -> Self:
        """Return the same solver with another tolerance.

        None is the default of the dtype.
        """


def check_solvers(forward: Any, adjoint: Any) -> None:
    """Refuse what is neither a solver nor None, for which the default stands."""
    for name, solver in (("forward", forward), ("adjoint", adjoint)):
        expect(
            name,
            solver,
            (Solver, NoneType),
            "use one of pyidl.solvers, such as Picard(tol=1e-6), or None",
        )


def check_limits(tol: float | None, max_iter: int) -> float | None:
    """Return the tolerance as Python's number.

    Refuse it, or max_iter, if it is not positive.
    """
    if tol is not None and not (is_real(tol) and 0 < tol < 1):
        raise InputError(
            f"tol is {tol!r}; it is relative to the size of the state and lies between 0 and 1"
        )
    if not (is_whole(max_iter) and max_iter >= 1):
        raise InputError(f"max_iter is {max_iter!r}; an integer is needed, at least 1")
    return None if tol is None else float(tol)


@dataclass(frozen=True)
class Iterative(Solver):
    """A solver that takes steps until a tolerance is met.

    Parameters
    ----------
    tol : float, optional
        Forward: ``max|f(x) - x| <= tol (1 + max|x|)`` for each sample. Adjoint:
        relative to the right-hand side. Default 1e-6 in float32, 1e-12 in float64.
    max_iter : int
        Largest number of steps.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    tol: float | None = None
    max_iter: int = 5000

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", check_limits(self.tol, self.max_iter))

    def at(self, tol: float | None) -> Self:
        """The same with another tolerance."""
        return replace(self, tol=tol)
