"""One solver, then another for the samples that it could not solve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from pyidl.arrays.batch import take_rows
from pyidl.errors import expect
from pyidl.solvers.base import Solver
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution

__all__ = ["Fallback"]


@dataclass(frozen=True)
class Fallback(Solver):
    """Run `first`; where it fails, `then`, from where the sample is.

    `Solution.method` says what happened. Forward, ``Fallback(Picard(),
    Picard(damping=0.5))``: where Picard ends in a cycle, an average of two iterates
    leaves it. That happens without a contraction, but also with one: if f is computed
    with errors e and contracts by kappa, a cycle of width ``2 e / (1 - kappa)`` can
    persist, which in float32 may be above the tolerance. Adjoint, ``Fallback(Picard(),
    Direct())``: the direct solve needs no contraction at all. `Auto` repairs in the
    same way.

    Parameters
    ----------
    first, then : Solver
        The second one sees only the samples that the first one could not solve.

    Raises
    ------
    InputError
        If one of them is no solver.

    Examples
    --------
    >>> import pyidl
    >>> from pyidl.solvers import Picard
    >>> both = Fallback(Picard(max_iter=2), Picard())
    >>> model = pyidl.ImplicitModel(3, 2, 20, forward=both, rng=0)
    >>> model.equilibrium(np.ones((4, 3))).method
    'Picard, then Picard for 4 of 4 samples'
    """

    first: Solver
    then: Solver

    def __post_init__(self) -> None:
        for name in ("first", "then"):
            expect(name, getattr(self, name), Solver, "use one of pyidl.solvers, such as Picard()")

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Solve, and repair."""
        solution = self.first(problem, x0, trace=trace)
        rows = np.flatnonzero(~solution.converged)
        if len(rows) == 0:
            return solution
        best = take_rows(problem.xp, solution.value, rows)
        return solution.merged(self.then(problem.take(rows), best), rows, problem.xp)

    def at(self, tol: float | None) -> Self:
        """The same with another tolerance of both solvers."""
        return replace(self, first=self.first.at(tol), then=self.then.at(tol))
