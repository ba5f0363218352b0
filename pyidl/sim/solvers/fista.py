r"""The accelerated proximal gradient method on the Gram matrix, restarted.

    x' = prox_{p / L}(y + (h - G y) / L),    L = the largest eigenvalue of G,
    y' = x' + (t - 1) / t' (x' - x),         t' = (1 + (1 + 4 t^2)^(1/2)) / 2,

and t = 1 again for a row where the momentum points uphill, ``(y - x').(x' - x) > 0``.
One product a step instead of ADMM's two, but many more steps where G is
ill-conditioned.

Source: Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
inverse problems", SIAM J. Imaging Sci. 2(1), 2009; O'Donoghue, Candès, "Adaptive
restart for accelerated gradient schemes", Found. Comput. Math. 15, 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.arrays.fusion import fused
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers.base import Rows, RowSolver, iterate
from pyidl.typing import Array

__all__ = ["FISTA"]


class _Steps:
    def __init__(self, problem: RowProblem, start: Array) -> None:
        xp = namespace(start)
        r, k = start.shape
        self.problem, self.x, self.y = problem, start, start
        largest = float(xp.max(xp.linalg.eigvalsh(problem.G)))
        # Rounded up, since a step that is too long may diverge.
        self.step_size = 1.0 / (largest * (1.0 + 1e-10)) if largest > 0 else 1.0
        self.t = xp.ones((r, 1), dtype=xp.float64)
        self.work = 2.0 * k * k

    def step(self, count: int) -> Array:
        xp = namespace(self.x)
        for _ in range(count):
            x = self.problem.prox(
                self.y + self.step_size * self.problem.correlation(self.y), self.step_size
            )
            uphill = xp.sum(_moves(self.y, x, self.x), axis=1, keepdims=True) > 0
            self.t, momentum = _ahead(self.t, uphill)
            self.x, self.y = x, _beyond(x, self.x, momentum)
        return self.x

    def keep(self, kept: np.ndarray) -> None:
        xp = namespace(self.x)
        self.problem = self.problem.take(kept)
        self.x, self.y, self.t = (take_rows(xp, a, kept) for a in (self.x, self.y, self.t))


@fused
def _moves(y: Any, x: Any, before: Any) -> Any:
    """Terms of an inner product, positive where the step from y went against the last move of x."""
    return (y - x) * (x - before)


@fused
def _ahead(t: Any, uphill: Any) -> tuple[Any, Any]:
    """The next t, and the momentum; both begin anew where the last step went uphill."""
    xp = namespace(t)
    following = xp.where(uphill, xp.ones_like(t), 0.5 * (1.0 + xp.sqrt(1.0 + 4.0 * t * t)))
    return following, xp.where(uphill, xp.zeros_like(t), (t - 1.0) / following)


@fused
def _beyond(x: Any, before: Any, momentum: Any) -> Any:
    """Where the next step begins."""
    return x + momentum * (x - before)


@dataclass(frozen=True)
class FISTA(RowSolver):
    """One matrix product a step for all rows, any penalty, any mask.

    For well-conditioned data, or memory for one matrix only.

    Examples
    --------
    >>> from pyidl.sim import L1, Moments, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> problem = RowProblem.of(Moments.of(X, X[:, :1] - 2 * X[:, 1:2]), L1(0.01), ball=4, radius=0.9)
    >>> FISTA(tol=1e-8)(problem).W.round(3)
    array([[ 0.05, -0.85,  0.  ,  0.  ]])
    """

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        return iterate(self, problem, start, _Steps(problem, start), "FISTA")
