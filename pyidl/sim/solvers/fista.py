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

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers.base import Rows, RowSolver, iterate_rows
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
            move = x - self.x
            uphill = xp.sum((self.y - x) * move, axis=1, keepdims=True) > 0
            t = 0.5 * (1.0 + xp.sqrt(1.0 + 4.0 * self.t * self.t))
            t = xp.where(uphill, xp.ones_like(t), t)
            momentum = xp.where(uphill, xp.zeros_like(t), (self.t - 1.0) / t)
            self.x, self.y, self.t = x, x + momentum * move, t
        return self.x

    def keep(self, kept: np.ndarray) -> None:
        xp = namespace(self.x)
        self.problem = self.problem.take(kept)
        self.x, self.y, self.t = (take_rows(xp, a, kept) for a in (self.x, self.y, self.t))


@dataclass(frozen=True)
class FISTA(RowSolver):
    """One matrix product a step for all rows, any penalty, any mask.

    For well-conditioned data, or memory for one matrix only.

    Examples
    --------
    >>> from pyidl.sim import L1, Moments, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X[:, :1] - 2 * X[:, 1:2])
    >>> problem = RowProblem.of(moments, L1(0.01), ball=4, radius=0.9)
    >>> FISTA(tol=1e-8)(problem).W.round(3)
    array([[ 0.05, -0.85,  0.  ,  0.  ]])
    """

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        return iterate_rows(self, problem, start, _Steps(problem, start), "FISTA")
