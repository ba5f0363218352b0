"""A solver is a frozen configuration that, called with a problem, returns a `Solution`.

To write one, subclass `Solver`, give `at` and `__call__`, and leave the loop, the stopping and the failures to
`pyidl.solvers.loop.iterate`. A solver that needs more than the map f refuses, by name, before it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyidl.errors import InputError
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Solver"]


class Solver(ABC):
    """How a fixed-point equation is solved."""

    @abstractmethod
    def __call__(self, problem: Problem, x0: Array | None = None, *, trace: bool = False) -> Solution:
        """Solve, from x0 if it is given; with `trace`, keep the residual of every step."""

    @abstractmethod
    def at(self, tol: float | None) -> Solver:
        """Return the same solver with another tolerance; None is the default of the dtype."""


def check_limits(tol: float | None, max_iter: int) -> None:
    """Refuse a tolerance or a number of steps that is not positive."""
    if tol is not None and not 0 < tol < 1:
        raise InputError(f"tol is {tol}; it is relative to the size of the state and lies between 0 and 1")
    if not (isinstance(max_iter, int) and max_iter >= 1):
        raise InputError(f"max_iter is {max_iter}; at least one step is needed")
