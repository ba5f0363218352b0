"""The solver that chooses: from what is known of the parameters, and from how fast each sample's own residual falls.

    A is block triangular                                       block by block (`Substitution`), each by the rules below
    A = L R^T                                                   Picard on ``r = R^T x`` (`reduced`)
    a large diagonal, and the growth of the splitting           `Jacobi`, otherwise Picard
      is the smaller one
    a sample's own rate predicts many more steps                `Anderson`, for this sample, on top of that
    a sample has failed                                         forward: damped Picard, then `Newton`
                                                                adjoint: `GMRES`, then `Direct`

Neither the clock nor a sample's neighbours have a say, so an answer can be repeated. `Solution.method` says what was chosen,
and why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyidl.backend import take_rows
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.base import Iterative, Solver
from pyidl.solvers.direct import Direct
from pyidl.solvers.gmres import GMRES
from pyidl.solvers.jacobi import can_split, split
from pyidl.solvers.loop import iterate
from pyidl.solvers.newton import Newton
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import AffineMap, LinearProblem, Problem
from pyidl.solvers.reduced import Reduced, reduce
from pyidl.solvers.solution import Solution
from pyidl.solvers.substitution import Substitution
from pyidl.structure import Full, Tiled
from pyidl.typing import Array

__all__ = ["Auto"]

MEMORY = 3
DENSE = 1024
"""Largest n for which a failed sample is worth a factorisation."""


def pays_from(n: int) -> float:
    """Steps to go from which acceleration pays, for states of n numbers.

    An accelerated step costs about c = 1 + 100 / n + 40000 / n^2 plain ones (measured: 1.5 at n = 512, 4 to 7 at n = 112), and s
    plain steps become about 5 + s / 10 of them (on the cases of the benchmark): it pays where s > c (5 + s / 10).
    """
    c = 1.0 + 100.0 / n + 40000.0 / n**2
    return 5.0 * c / max(0.1, 1.0 - c / 10.0)


@dataclass(frozen=True)
class Auto(Iterative):
    """The default, forward and adjoint: chooses a method, watches it, and repairs what fails.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 50, rng=0)
    >>> model.equilibrium(np.ones((4, 3))).method
    'Auto(Picard)'
    """

    def __call__(self, problem: Problem, x0: Array | None = None, *, trace: bool = False) -> Solution:
        """Choose, solve, repair."""
        if isinstance(problem, AffineMap) and isinstance(problem.matrix, Tiled):
            solution = Substitution(self)(problem, x0, trace=trace)
            return replace(solution, method=f"Auto({solution.method})")
        reason = _splits(problem)
        target = split(problem) if reason else reduce(problem) or problem
        mixing = Mixing(target, MEMORY, pays_from(problem.like.size // problem.like.shape[0]))
        name = (
            f"Jacobi, since {reason}"
            if reason
            else f"Picard in {target.R.shape[1]} dimensions"
            if isinstance(target, Reduced)
            else "Picard"
        )
        solution = iterate(target, x0, mixing, tol=self.tol, max_iter=self.max_iter, method=f"Auto({name})", trace=trace)
        solution = target.restore(solution)
        if mixing.count:
            slow = f"Anderson({MEMORY}) for {mixing.count} slow samples of {len(solution.status)}"
            solution = replace(solution, method=f"Auto({name}, {slow})")
        for repair in [] if solution.all_converged else self._repairs(problem, bool(reason)):
            failed = np.flatnonzero(~solution.converged)
            if len(failed) == 0:
                break
            start = take_rows(problem.xp, solution.value, failed)
            solution = solution.merged(repair(problem.take(failed), start), failed, problem.xp)
        return solution

    def _repairs(self, problem: Problem, was_split: bool) -> list[Solver]:
        """What is tried next, on the samples that failed."""
        n = problem.like.size // problem.like.shape[0]
        repairs: list[Solver] = [Picard(self.tol, self.max_iter)] if was_split else []
        if isinstance(problem, LinearProblem):
            return [*repairs, GMRES(self.tol), Direct(self.tol)]
        repairs.append(Picard(self.tol, self.max_iter, damping=0.5))
        if isinstance(problem, AffineMap) and n <= DENSE:
            repairs.append(Newton(self.tol))
        return repairs


def _splits(problem: Problem) -> str:
    """Why the diagonal is taken implicitly; "" where it is not."""
    if not (isinstance(problem, AffineMap) and isinstance(problem.matrix, Full) and problem.matrix.gains):
        return ""
    picard, jacobi = problem.matrix.gains
    if not jacobi < min(picard, 1.0) or can_split(problem):
        return ""
    return f"a step grows by {jacobi:.2g}, by {picard:.2g} without the splitting"
