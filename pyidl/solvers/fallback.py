"""One solver, then another for the samples that it could not solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyidl.backend import from_host
from pyidl.solvers.base import Solver
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Fallback"]


@dataclass(frozen=True)
class Fallback(Solver):
    """Run `first`; solve the samples that have not converged by `then`. `Solution.method` says what happened.

    ``Fallback(Picard(), Direct())`` is the default for the adjoint: wherever the forward equation is certified, the
    adjoint iteration contracts by the same factor, so that the fallback is needed only where nothing is certified.
    """

    first: Solver
    then: Solver

    def __call__(self, problem: Problem, x0: Array | None = None, *, trace: bool = False) -> Solution:
        """Solve, and repair."""
        solution = self.first(problem, x0, trace=trace)
        rows = np.flatnonzero(~solution.converged)
        if len(rows) == 0:
            return solution
        return solution.merged(self.then(problem.take(from_host(problem.xp, rows))), rows, problem.xp)

    def at(self, tol: float | None) -> Fallback:
        """Both with another tolerance."""
        return replace(self, first=self.first.at(tol), then=self.then.at(tol))
