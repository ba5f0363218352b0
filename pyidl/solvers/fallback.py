"""One solver, then another for the samples that it could not solve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from pyidl.arrays.batch import take_rows
from pyidl.errors import expect
from pyidl.solvers.base import Solver
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Fallback"]


@dataclass(frozen=True)
class Fallback(Solver):
    """Run `first`; solve the samples that have not converged by `then`, from where they are.

    `Solution.method` says what happened.

    Forward, ``Fallback(Picard(), Picard(damping=0.5))``: where Picard ends in a cycle,
    an average of two iterates leaves it. That happens without a contraction, but also
    with one: if f is computed with errors e and contracts by kappa, a cycle of width
    ``2 e / (1 - kappa)`` can persist, which in float32 may be above the tolerance.
    Adjoint, ``Fallback(Picard(), Direct())``: the direct solve needs no contraction at
    all. `Auto` repairs in the same way.
    """

    first: Solver
    then: Solver

    def __post_init__(self) -> None:
        for name in ("first", "then"):
            expect(name, getattr(self, name), Solver, "use one of pyidl.solvers, such as Picard()")

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Solve, and repair."""
        solution = self.first(problem, x0, trace=trace)
        rows = np.flatnonzero(~solution.converged)
        if len(rows) == 0:
            return solution
        best = take_rows(problem.xp, solution.value, rows)
        return solution.merged(self.then(problem.take(rows), best), rows, problem.xp)

    def at(self, tol: float | None) -> Self:
        """Both with another tolerance."""
        return replace(self, first=self.first.at(tol), then=self.then.at(tol))
