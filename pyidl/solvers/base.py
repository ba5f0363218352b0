"""A solver is a frozen configuration that, called with a problem, returns a `Solution`.

To write one, subclass `Iterative`, and leave the loop, the stopping and the failures to
`iterate`; or subclass `Solver`, and give `at` and `__call__`. A solver that needs more
than the map f refuses, by name, before it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Self

import numpy as np

from pyidl.errors import InputError, expect, is_real, is_whole
from pyidl.solvers.loop import PATIENCE, Advance, iterate
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution

__all__ = ["Iterative", "Solver", "check_count", "check_limits", "check_solvers", "right_side"]


class Solver(ABC):
    """How a fixed-point equation is solved, forward or adjoint.

    A subclass gives `__call__` and `at`. It holds its configuration and nothing of a
    solve, so that one solver serves many models.

    Examples
    --------
    Thirty steps, and another method where they are not enough:

    >>> from pyidl.solvers import Anderson, Picard
    >>> class Safe(Solver):
    ...     def __call__(self, problem, x0=None, *, trace=False):
    ...         found = Picard(max_iter=30)(problem, x0, trace=trace)
    ...         if found.all_converged:
    ...             return found
    ...         return Anderson()(problem, found.value)
    ...
    ...     def at(self, tol):
    ...         return self
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 20, forward=Safe(), rng=0)
    >>> model.equilibrium(np.ones((4, 3))).method
    'Picard'
    """

    @abstractmethod
    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Solve a problem.

        Parameters
        ----------
        problem : Problem
            Of m samples, one a row.
        x0 : array with the shape of the state, optional
            Where the solver starts, if it starts anywhere.
        trace : bool
            Whether to keep the residual of every step.

        Returns
        -------
        Solution
            With a status for every sample. Samples that fail raise nothing here.
        """

    @abstractmethod
    def at(self, tol: float | None) -> Self:
        """The same solver with another tolerance; None is the default of the dtype."""


def check_solvers(forward: Any, adjoint: Any) -> None:
    """Refuse what is neither a solver nor None, for which the default stands."""
    cure = "use one of pyidl.solvers, such as Picard(tol=1e-6), or None"
    for name, solver in (("forward", forward), ("adjoint", adjoint)):
        expect(name, solver, (Solver, NoneType), cure)


def check_count(name: str, count: Any) -> None:
    """Refuse what is not a whole number, at least 1."""
    if not (is_whole(count) and count >= 1):
        raise InputError(f"{name} is {count!r}; an integer is needed, at least 1")


def check_limits(tol: float | None, max_iter: int) -> float | None:
    """The tolerance as Python's number, after it and max_iter have been checked."""
    if tol is not None and not (is_real(tol) and 0 < tol < 1):
        raise InputError(
            f"tol is {tol!r}; it is relative to the size of the state and lies between 0 and 1"
        )
    check_count("max_iter", max_iter)
    return None if tol is None else float(tol)


def right_side(problem: Problem, solver: str) -> np.ndarray:
    """``max|h|`` of every sample of a linear problem; a forward problem is refused."""
    if problem.reference is None:
        raise InputError(
            f"{solver} solves linear equations, such as the adjoint; forward, use Picard, "
            "Anderson or Newton"
        )
    return problem.reference


@dataclass(frozen=True)
class Iterative(Solver):
    """Base class of solvers that take steps until a tolerance is met.

    A subclass gives `__call__`, and leaves the loop to `iterate`.

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

    Examples
    --------
    Picard's iteration that goes half of the way:

    >>> from pyidl import ImplicitModel
    >>> class Halfway(Advance):
    ...     def __call__(self, y, y_image):
    ...         return 0.5 * (y + y_image)
    >>> class Half(Iterative):
    ...     def __call__(self, problem, x0=None, *, trace=False):
    ...         limits = self.tol, self.max_iter
    ...         return iterate(problem, x0, Halfway(), *limits, "Half", trace)
    >>> model = ImplicitModel(3, 2, 20, forward=Half(tol=1e-5), rng=0)
    >>> model.equilibrium(np.ones((4, 3))).all_converged
    True
    """

    tol: float | None = None
    max_iter: int = 5000

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", check_limits(self.tol, self.max_iter))

    def at(self, tol: float | None) -> Self:
        """The same solver with another tolerance; None is the default of the dtype."""
        return replace(self, tol=tol)

    def _iterate(
        self, problem: Problem, x0: Start, trace: bool, method: str,
        advance: Advance | None = None, patience: int = PATIENCE,
    ) -> Solution:  # fmt: skip
        """By the one loop, within the limits of this solver."""
        return iterate(problem, x0, advance, self.tol, self.max_iter, method, trace, patience)
