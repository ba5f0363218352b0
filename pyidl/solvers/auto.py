"""The solver that chooses.

From what is known of the parameters, and from each sample's own rate.

    A is block triangular, and that      block by block (`Substitution`), each block
      saves work                         by these rules
    A = L R^T, of few columns            Picard on ``r = R^T x`` (`low_rank`)
    the growths of A and its splitting   `Jacobi` where its growth is the smaller
      are known: its diagonal is large   one, otherwise Picard
    an adjoint whose systems are solved  `Direct`
      in the time of 20 plain steps
    a sample's own rate predicts many    Anderson's or Newton's steps for this sample,
      more steps                         as long as they pay (`adaptive`)
    plain steps would grow, as far as    a few of them, which do where phi saturates;
      the growth of A says               then `PeacemanRachford` where A is monotone,
                                         or `Direct` in an adjoint
    a sample has failed                  forward: `PeacemanRachford` where A is
                                         monotone, damped Picard, then `Newton`
                                         adjoint: `GMRES`, then `Direct`

Neither the clock nor a sample's neighbours have a say, so an answer can be repeated;
what things cost stands in `pyidl.solvers.cost`. `Solution.method` says what was chosen,
and why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.batch import put_rows, take_rows
from pyidl.matrices.full import Full
from pyidl.matrices.tiled import Tiled
from pyidl.solvers.adaptive import Adaptive
from pyidl.solvers.base import Iterative, Solver
from pyidl.solvers.cost import ORDINARY, Costs
from pyidl.solvers.direct import Direct
from pyidl.solvers.gmres import GMRES
from pyidl.solvers.jacobi import Split, can_split, split
from pyidl.solvers.loop import iterate, stride_of
from pyidl.solvers.low_rank import is_thin, low_rank_problem
from pyidl.solvers.newton import Newton
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import Affine, Problem, Start
from pyidl.solvers.solution import Solution, Status
from pyidl.solvers.splitting import PeacemanRachford, best_alpha, cannot_split, is_monotone
from pyidl.solvers.substitution import Substitution, worthwhile

__all__ = ["Auto"]

DENSE = 1024
"""Largest n for which a failed sample is worth a factorisation."""

TRIAL, BRIEF = 32, 3
"""Plain steps where another method is sure, and how many of them may bring nothing."""

FACTORS = 4.0
"""What Peaceman and Rachford's method needs before its first step, in dense solves."""


@dataclass(frozen=True)
class Auto(Iterative):
    """The default, forward and adjoint: it chooses, watches, and repairs what fails.

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

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Choose, solve, repair."""
        solution, repairs = self._first(problem, x0, trace)
        if solution.all_converged:
            return solution
        xp = problem.xp
        for repair in repairs:
            failed = np.flatnonzero(~solution.converged)
            if len(failed) == 0:
                break
            start = take_rows(xp, solution.value, failed)
            lost = np.flatnonzero(solution.status[failed] >= int(Status.DIVERGED))
            if len(lost):  # far away: they begin again at 0
                start = put_rows(xp, start, lost, xp.zeros_like(start), lost)
            solution = solution.merged(repair(problem.take(failed), start), failed, xp)
        return solution

    def _first(self, problem: Problem, x0: Any, trace: bool) -> tuple[Solution, Iterator[Solver]]:
        """What the chosen method achieves, and what repairs there are."""
        m, xp = problem.like.shape[0], problem.xp
        n, dtype = problem.like.size // m, problem.like.dtype.char if xp is np else "f"
        stride = problem.stride or stride_of(xp, n)
        costs = Costs.of(m, n, dtype, stride) if xp is np else Costs.of_launches(stride)
        if worthwhile(problem, costs, dtype):
            solution = Substitution(self)(problem, x0, trace=trace)
            return replace(solution, method=f"Auto({solution.method})"), iter(())
        if (
            problem.reference is not None
            and costs.direct_at_once
            and not (trace or problem.lacking)
        ):
            solution = replace(Direct(self.tol)(problem), method="Auto(Direct)")
            return solution, self._repairs(problem, None)
        target, name = _choose(problem, self.tol or 1e-6)
        if not (xp is np and _is_dense(problem) and target is problem):
            advance = Adaptive(target, costs, newton=False)
            solution = target.restore(self._iterate(target, x0, trace, f"Auto({name})", advance))
            return advance.named(solution, name), self._repairs(problem, target)
        instead = self._where_steps_grow(problem, costs)
        if instead is not None:  # a few plain steps, which do where phi saturates
            few = self.tol, min(self.max_iter, TRIAL)
            solution = iterate(problem, x0, None, *few, "Auto(Picard)", trace, BRIEF)
            return solution, itertools.chain((instead,), self._repairs(problem, problem))
        advance = Adaptive(problem, costs, newton=True)
        solution = self._iterate(problem, x0, trace, "Auto(Picard)", advance)
        return advance.named(solution, name), self._repairs(problem, problem)

    def _where_steps_grow(self, problem: Problem, costs: Costs) -> Solver | None:
        """What solves for certain where plain steps seem to grow, if anything does."""
        assert isinstance(problem, Affine)
        n, A = problem.like.shape[1], problem.matrix
        if not isinstance(A, Full | Tiled) or not A.gains or min(A.gains) < 1 or n > DENSE:
            return None
        if problem.reference is not None:
            one = Costs.of(1, n, problem.like.dtype.char, costs.stride)
            if costs.factor < FACTORS * one.factor + costs.plain(2 * ORDINARY):
                return Direct(self.tol)
        if _is_monotone(problem):
            return PeacemanRachford(self.tol, self.max_iter, best_alpha(problem))
        return None if problem.reference is None else Direct(self.tol)

    def _repairs(self, problem: Problem, failed: Problem | None) -> Iterator[Solver]:
        """What is tried where the iteration `failed`, or `Direct` (None), did."""
        if failed is None or isinstance(failed, Split):
            yield Picard(self.tol, self.max_iter)
        A = None if problem.lacking or not isinstance(problem, Affine) else problem.matrix
        if isinstance(A, Tiled):
            yield Substitution(self)
        if problem.reference is not None:
            yield GMRES(self.tol)
            if failed is not None:
                yield Direct(self.tol)
            return
        small = not problem.lacking and problem.like.shape[1] <= DENSE
        if small and isinstance(problem, Affine) and _is_monotone(problem):
            yield PeacemanRachford(self.tol, self.max_iter, best_alpha(problem))
        yield Picard(self.tol, self.max_iter, damping=0.5)
        if small:
            yield Newton(self.tol)


def _is_monotone(problem: Affine) -> bool:
    return not cannot_split(problem, 1.0) and is_monotone(problem.matrix)


def _is_dense(problem: Problem) -> bool:
    if problem.lacking or not isinstance(problem, Affine):
        return False
    A = problem.matrix
    return type(A) is Full or (isinstance(A, Tiled) and A.whole is not None)


def _choose(problem: Problem, tol: float) -> tuple[Problem, str]:
    """The problem that is iterated, and its name with the reason."""
    A = problem.matrix if isinstance(problem, Affine) else None
    if isinstance(A, Full | Tiled) and A.gains:
        picard, jacobi = A.gains
        if jacobi < min(picard, 1.0) and not can_split(problem):
            reason = f"a step grows by {jacobi:.2g}, by {picard:.2g} without the splitting"
            return split(problem), f"Jacobi, since {reason}"
    if isinstance(problem, Affine) and is_thin(problem):
        thin = low_rank_problem(problem, tol)
        return thin, f"Picard in {thin.R.shape[1]} dimensions"
    return problem, "Picard"
