r"""Coordinate descent on an active set, for very sparse rows.

With the others fixed, the best value of weight j is, for ``v = w_j + g_j / G_jj``, g =
h - G w, and the multiplier nu of the bound,

    w_j = prox_{q / G_jj}( soft(v, nu / G_jj) )        (nu = 0 off the ball).

All rows take it together, and ``g -= G_j (w_j' - w_j)`` is needed on the active columns
only: those with a weight of some row, and those that would enter. They are looked for
in all columns, by one product, before every round of sweeps.

The bound couples its weights, and coordinates alone can get stuck on it, so it is left
to nu: ``|a(nu)|_1`` falls as nu grows, and ``|a(nu)|_1 = kappa`` is solved by secants
between rounds, inside a bracket. What is returned is projected, and its gap measured.

Source: Friedman, Hastie, Tibshirani, "Regularization paths for generalized linear
models via coordinate descent", J. Stat. Softw. 33(1), 2010, section 2.2 (covariance
updates).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import from_host, namespace, to_numpy
from pyidl.sim.penalties import soft
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers.base import Rows, RowSolver, iterate_rows
from pyidl.typing import Array

__all__ = ["CoordinateDescent"]


class _Steps:
    """Rows are columns here, so that a coordinate of all of them is contiguous.

    On the host: a coordinate is too small for a device.
    """

    def __init__(self, problem: RowProblem, start: Array) -> None:
        self.xp, self.penalty, self.radius = namespace(start), problem.penalty, problem.radius
        self.G, self.H, self.W = (
            to_numpy(problem.G),
            to_numpy(problem.H).T.copy(),
            to_numpy(start).T.copy(),
        )
        self.allowed = None if problem.mask is None else to_numpy(problem.mask).T.copy()
        k, r = self.W.shape
        self.held = (np.arange(k) < problem.ball).astype(float)
        self.ball, self.problem = problem.ball, problem
        # Half of what keeps all bounded weights zero: supports grow from small ones.
        top = np.abs(to_numpy(problem.masked(problem.H)))[:, : problem.ball].max(
            axis=1, initial=0.0
        )
        self.nu = 0.5 * np.maximum(top - self.penalty.slope, 0.0)
        self.low, self.high = np.zeros(r), np.full(r, np.inf)
        self.before = np.full((2, r), np.nan)  # nu and |a|_1 of the round before
        self.work = 2.0 * k * k

    def step(self, count: int) -> Array:
        g = self.H - self.G @ self.W
        enter = (np.abs(g) > self.penalty.slope + self.nu * self.held[:, None]) & (
            np.diagonal(self.G) > 0
        )[:, None]
        if self.allowed is not None:
            enter &= self.allowed
        S = np.flatnonzero((enter | (self.W != 0)).any(axis=1))
        self._sweep(S, g[S], count)
        if self.radius is not None:
            self._price()
        return self.problem.project(from_host(self.xp, np.ascontiguousarray(self.W.T)))

    def _sweep(self, S: np.ndarray, g: np.ndarray, count: int) -> None:
        K, W = self.G[np.ix_(S, S)], self.W[S]
        allowed = None if self.allowed is None else self.allowed[S]
        for _ in range(count):
            largest = 0.0
            for i, j in enumerate(S):
                t = 1.0 / K[i, i]
                new: Any = self.penalty.prox(soft(W[i] + t * g[i], t * self.nu * self.held[j]), t)
                if allowed is not None:
                    new = np.where(allowed[i], new, 0.0)
                change = new - W[i]
                size = float(np.abs(change).max())
                if size > 0:
                    g -= np.outer(K[i], change)
                    W[i] = new
                    largest = max(largest, size)
            if largest <= 1e-12 * np.abs(W).max(initial=0.0):
                break
        self.W[S] = W

    def _price(self) -> None:
        """A secant step for ``|a(nu)|_1 = radius`` in every row, inside the bracket."""
        a = np.abs(self.W[: self.ball]).sum(axis=0)
        over = a - self.radius
        self.low = np.where(over > 0, np.maximum(self.low, self.nu), self.low)
        self.high = np.where(over <= 0, np.minimum(self.high, self.nu), self.high)
        # Rounds are not exact: a bracket that contradicts itself is forgotten.
        crossed = self.low >= self.high
        self.low, self.high = np.where(crossed, 0.0, self.low), np.where(crossed, np.inf, self.high)
        diagonal = np.maximum(np.diagonal(self.G)[: self.ball], np.finfo(np.float64).tiny)[:, None]
        first = np.sum((self.W[: self.ball] != 0) / diagonal, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fall = -(a - self.before[1]) / (self.nu - self.before[0])
            fall = np.where(np.isfinite(fall) & (fall > 0), fall, first)
            nu = np.where(fall > 0, np.maximum(self.nu + over / fall, 0.0), 0.0)
        inside = (nu >= self.low) & (nu <= self.high)
        middle = np.where(np.isfinite(self.high), 0.5 * (self.low + self.high), 2.0 * self.nu)
        self.before = np.stack([self.nu, a])
        self.nu = np.where(inside, nu, middle)

    def keep(self, kept: np.ndarray) -> None:
        self.problem = self.problem.take(kept)
        self.radius = self.problem.radius
        self.H, self.W, self.before = self.H[:, kept], self.W[:, kept], self.before[:, kept]
        self.nu, self.low, self.high = self.nu[kept], self.low[kept], self.high[kept]
        self.allowed = None if self.allowed is None else self.allowed[:, kept]


@dataclass(frozen=True)
class CoordinateDescent(RowSolver):
    """Sweeps over the active weights, on the host.

    Fast where few of them differ from zero.

    Examples
    --------
    >>> from pyidl.sim import L1, Moments, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X[:, :1] - 2 * X[:, 1:2])
    >>> problem = RowProblem.of(moments, L1(0.01), ball=4, radius=0.9)
    >>> CoordinateDescent(tol=1e-8)(problem).W.round(3)
    array([[ 0.05, -0.85,  0.  ,  0.  ]])
    """

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        return iterate_rows(self, problem, start, _Steps(problem, start), "coordinate descent")
