"""The solver that chooses: from what is known of the parameters, and from how fast each sample's own residual falls.

    A is block triangular                                       block by block (`Substitution`), each by the rules below
    A = L R^T                                                   Picard on ``r = R^T x`` (`reduced`)
    a large diagonal, or a constraint that does not contract:   `Jacobi` where its growth is the smaller one,
      growths are known                                         `PeacemanRachford` where Picard's is not below 1 and A is
                                                                monotone, otherwise Picard
    a sample's own rate predicts many more steps                `Anderson`, for this sample, on top of that
    a sample has failed                                         forward: damped Picard, `PeacemanRachford`, then `Newton`
                                                                adjoint: `GMRES`, then `Direct`

Neither the clock nor a sample's neighbours have a say, so an answer can be repeated. `Solution.method` says what was chosen,
and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pyidl.rows import take_rows
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.base import Iterative, Solver
from pyidl.solvers.direct import Direct
from pyidl.solvers.gmres import GMRES
from pyidl.solvers.jacobi import Split, can_split, split
from pyidl.solvers.loop import iterate
from pyidl.solvers.newton import Newton
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import AffineMap, LinearProblem, Problem
from pyidl.solvers.reduced import reduce
from pyidl.solvers.solution import Solution
from pyidl.solvers.splitting import PeacemanRachford, Proximal, cannot_split, is_monotone, reflected
from pyidl.solvers.substitution import Substitution
from pyidl.structure import Full, Tiled
from pyidl.typing import Array

__all__ = ["Auto"]

MEMORY = 3
DENSE = 1024
"""Largest n for which a failed sample, or one that Picard would fail on, is worth a factorisation."""


def cost(n: int, fused: bool) -> float:
    """What an accelerated step costs, in plain steps, for states of n numbers.

    Measured on CPUs: 1.5 at n = 512, 4 to 7 at n = 112. Where it is fused, on a GPU, two launches become four.
    """
    return 2.0 if fused else 1.0 + 100.0 / n + 40000.0 / n**2


def pays_from(n: int, fused: bool = False) -> float:
    """Steps to go from which acceleration pays: s plain steps become about 5 + s / 10 others (on the cases of the benchmark)."""
    c = cost(n, fused)
    return 5.0 * c / max(0.1, 1.0 - c / 10.0)  # s > c (5 + s / 10)


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

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Choose, solve, repair."""
        if isinstance(problem, AffineMap) and isinstance(problem.matrix, Tiled):
            solution = Substitution(self)(problem, x0, trace=trace)
            return replace(solution, method=f"Auto({solution.method})")
        target, name = _choose(problem)
        mixing = Mixing(
            target,
            MEMORY,
            pays_from(problem.like.size // problem.like.shape[0], problem.xp.__name__ == "cupy"),
        )
        solution = iterate(
            target,
            x0,
            mixing,
            tol=self.tol,
            max_iter=self.max_iter,
            method=f"Auto({name})",
            trace=trace,
        )
        solution = target.restore(solution)
        if mixing.count:
            slow = f"Anderson({MEMORY}) for {mixing.count} slow samples of {len(solution.status)}"
            solution = replace(solution, method=f"Auto({name}, {slow})")
        if solution.all_converged:
            return solution
        failed = np.flatnonzero(~solution.converged)
        for repair in self._repairs(problem, target):
            start = take_rows(problem.xp, solution.value, failed)
            solution = solution.merged(repair(problem.take(failed), start), failed, problem.xp)
            failed = np.flatnonzero(~solution.converged)
            if len(failed) == 0:
                break
        return solution

    def _repairs(self, problem: Problem, failed: Problem) -> Iterator[Solver]:
        """What is tried next on the samples for which the iteration `failed` did."""
        if isinstance(failed, Split):
            yield Picard(self.tol, self.max_iter)
        if isinstance(problem, LinearProblem):
            yield GMRES(self.tol)
            yield Direct(self.tol)
            return
        reflected_before = isinstance(failed, Proximal)  # then Picard's steps grow
        if not reflected_before:
            yield Picard(self.tol, self.max_iter, damping=0.5)
        if isinstance(problem, AffineMap) and problem.like.shape[1] <= DENSE:
            if not (reflected_before or cannot_split(problem, 1.0)) and is_monotone(problem.matrix):
                yield PeacemanRachford(self.tol, self.max_iter)
            yield Newton(self.tol)


def _choose(problem: Problem) -> tuple[Problem, str]:
    """The problem that is iterated, and its name with the reason."""
    reason = _splits(problem)
    if reason:
        return split(problem), f"Jacobi, since {reason}"
    reason = _reflects(problem)
    if reason:
        return reflected(problem, 1.0), f"PeacemanRachford, since {reason}"
    thin = reduce(problem)
    return (
        (problem, "Picard") if thin is None else (thin, f"Picard in {thin.R.shape[1]} dimensions")
    )


def _splits(problem: Problem) -> str:
    """Why the diagonal is taken implicitly; "" where it is not."""
    if not (
        isinstance(problem, AffineMap) and isinstance(problem.matrix, Full) and problem.matrix.gains
    ):
        return ""
    picard, jacobi = problem.matrix.gains
    if not jacobi < min(picard, 1.0) or can_split(problem):
        return ""
    return f"a step grows by {jacobi:.2g}, by {picard:.2g} without the splitting"


def _reflects(problem: Problem) -> str:
    """Why Peaceman and Rachford's iteration is the first choice; "" where it is not."""
    if not (
        isinstance(problem, AffineMap) and isinstance(problem.matrix, Full) and problem.matrix.gains
    ):
        return ""
    picard, n = problem.matrix.gains[0], problem.like.shape[1]
    if (
        not picard >= 1.0
        or n > DENSE
        or cannot_split(problem, 1.0)
        or not is_monotone(problem.matrix)
    ):
        return ""
    return f"a step of Picard grows by {picard:.2g} and A is monotone"
