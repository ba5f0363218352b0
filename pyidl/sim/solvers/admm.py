r"""The alternating direction method of multipliers, with one factorisation for all.

Split ``minimise f(x) + p(y)`` subject to ``x = y``, f the loss, p the penalty with mask
and bound; u is the multiplier over rho:

    x = (G + rho I)^{-1} (h + rho (y - u)),
    y' = prox_{p / rho}(c x + (1 - c) y + u),    c = 1.6,
    u' = u + c x + (1 - c) y - y'.

With ``G = Q diag(e) Q^T``, factored once, ``(G + rho I)^{-1} = Q diag(1 / (e + rho))
Q^T`` for every rho, so every row has a rho of its own and changes it for the price of a
division. It is changed where the residuals ``|x - y| / max(|x|, |y|)`` and ``|y' - y| /
|u|`` differ by more than a factor two, less and less often, so that in the end it
stands. y is returned: feasible, with exact zeros.

Source: Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical
learning via the alternating direction method of multipliers", Found. Trends Mach.
Learn. 3(1), 2011, sections 3.4 and 6.4; Wohlberg, "ADMM penalty parameter selection by
residual balancing", 2017 (relative residuals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers.base import Rows, RowSolver, iterate_rows
from pyidl.typing import Array

__all__ = ["ADMM"]

RELAX = 1.6
TINY = 1e-300


class _Steps:
    def __init__(self, problem: RowProblem, start: Array) -> None:
        xp = namespace(start)
        r, k = start.shape
        self.problem, self.y = problem, start
        self.e, self.Q = xp.linalg.eigh(problem.G)
        self.u = xp.zeros_like(start)
        mean = float(xp.sum(self.e)) / k
        self.rho = xp.full((r, 1), mean if mean > 0 else 1.0, dtype=xp.float64)
        self.work, self.steps, self.next_balance = 4.0 * k * k, 0, 10

    def step(self, count: int) -> Array:
        for _ in range(count):
            self._once()
        return self.y

    def _once(self) -> None:
        y, u, rho = self.y, self.u, self.rho
        right = self.problem.H + rho * (y - u)
        x = (right @ self.Q / (self.e + rho)) @ self.Q.T
        v = RELAX * x + (1.0 - RELAX) * y + u
        self.y = self.problem.prox(v, 1.0 / rho)
        self.u = v - self.y
        self.steps += 1
        if self.steps == self.next_balance:
            self.next_balance += max(10, self.steps // 4)
            self._balance(x, y)

    def _balance(self, x: Any, before: Any) -> None:
        xp = namespace(x)
        primal = _norm(x - self.y) / xp.maximum(xp.maximum(_norm(x), _norm(self.y)), TINY)
        with np.errstate(over="ignore"):  # u is 0 where neither penalty nor bound is felt
            dual = _norm(self.y - before) / xp.maximum(_norm(self.u), TINY)
        factor = xp.clip(xp.sqrt(primal / xp.maximum(dual, TINY)), 0.2, 5.0)
        factor = xp.where(
            (factor > 0.5) & (factor < 2.0) | (primal == 0), xp.ones_like(factor), factor
        )
        self.rho, self.u = self.rho * factor, self.u / factor

    def keep(self, kept: np.ndarray) -> None:
        xp = namespace(self.y)
        self.problem = self.problem.take(kept)
        self.y, self.u, self.rho = (take_rows(xp, a, kept) for a in (self.y, self.u, self.rho))


def _norm(a: Any) -> Any:
    xp = namespace(a)
    return xp.sqrt(xp.sum(a * a, axis=1, keepdims=True))


@dataclass(frozen=True)
class ADMM(RowSolver):
    """The default: two matrix products a step for all rows, any penalty, any mask.

    Examples
    --------
    >>> from pyidl.sim import L1, Moments, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X[:, :1] - 2 * X[:, 1:2])
    >>> problem = RowProblem.of(moments, L1(0.01), ball=4, radius=0.9)
    >>> rows = ADMM(tol=1e-8)(problem)
    >>> rows.W.round(3), bool(rows.converged.all())
    (array([[ 0.05, -0.85,  0.  ,  0.  ]]), True)
    """

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        return iterate_rows(self, problem, start, _Steps(problem, start), "ADMM")
