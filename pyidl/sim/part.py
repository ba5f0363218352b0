"""A part of a fit: the rows of (A, B), or those of (C, D), and their solution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pyidl.arrays.backend import from_host, namespace, on_device_of, to_numpy
from pyidl.arrays.batch import take_rows
from pyidl.sim.accumulate import map_rows
from pyidl.sim.moments import Moments
from pyidl.sim.penalties import Penalty
from pyidl.sim.report import Solved
from pyidl.sim.row_problem import TINY, RowProblem
from pyidl.sim.solvers import Rows, RowSolver
from pyidl.typing import Array

__all__ = ["Answer", "Part"]

ROW_BLOCKS = 8
"""Into how many tasks the rows are divided where a scheduler solves them."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The weights of a part, the factors of A if it has some, and how well they fit."""

    W: Array
    factors: tuple[Array, Array] | None
    solved: Solved


@dataclass(frozen=True, eq=False)
class Part:
    """What is asked of some rows.

    Attributes
    ----------
    rows : slice
        Which of the targets.
    penalty, relaxed : Penalty
        The one that chooses weights, and the one (or None) under which the chosen ones
        are fitted once more.
    mask : array of bool, or None
        Which weights may differ from zero.
    cost : numpy.ndarray
        How many times the penalty counts each weight. The problem is solved for ``cost
        * w``, of inputs divided by it.
    ball : int
        How many leading entries of ``cost * w`` are bounded.
    radius : numpy.ndarray or None
        By how much.
    solver, scheduler
        As for `pyidl.sim.fit`.
    """

    rows: slice
    penalty: Penalty
    relaxed: Penalty | None
    mask: np.ndarray | None
    cost: np.ndarray
    ball: int
    radius: np.ndarray | None
    solver: RowSolver
    scheduler: Any

    def solve(self, moments: Moments, start: Array | None, *, chosen: bool = False) -> Answer:
        """Solve for the rows; `chosen` says that the support of `start` is to stay."""
        cost = from_host(namespace(moments.G), self.cost)
        scaled = replace(
            moments,
            mean=moments.mean / cost,
            G=moments.G / cost / cost[:, None],
            H=moments.H / cost,
        )
        of = partial(RowProblem.of, scaled, rows=self.rows, ball=self.ball, radius=self.radius)
        problem = of(self.penalty, mask=self.mask)
        lam_max = problem.lam_max
        if start is not None:
            start = start * cost
        if start is None or not chosen:
            found = self._solved(problem, start)
            start = found.W
        if self.relaxed is not None:
            problem = of(self.relaxed, mask=to_numpy(start) != 0)
            found = self._solved(problem, start)
        factors = None if found.factors is None else (found.factors[0] / cost[0], found.factors[1])
        return Answer(found.W / cost, factors, _told(found, problem, scaled, lam_max))

    def _solved(self, problem: RowProblem, start: Array | None) -> Rows:
        """Solve here, or in blocks wherever the scheduler says."""
        if self.scheduler is None:
            return self.solver(problem, start)
        count = problem.H.shape[0]
        blocks = np.array_split(np.arange(count), min(ROW_BLOCKS, count))
        parts = map_rows(partial(_block, self.solver, problem, start), blocks, self.scheduler)
        return Rows.joined(parts, blocks, f"{parts[0].method}; in {len(parts)} tasks")


def _block(solver: RowSolver, problem: RowProblem, start: Array | None, rows: np.ndarray) -> Rows:
    with on_device_of(problem.H):
        begin = None if start is None else take_rows(namespace(start), start, rows)
        return solver(problem.take(rows), begin)


def _told(found: Rows, problem: RowProblem, moments: Moments, lam_max: float) -> Solved:
    """What is said of the rows.

    ``|z|^2 / m - |z - M w|^2 / m = w.(2 h - G w)`` is what they explain, without the
    ridge, which is part of the problem's G.
    """
    W = found.W
    explained = to_numpy(
        namespace(W).sum(W * (2.0 * problem.H - W @ (moments.G / moments.count)), axis=1)
    )
    square = to_numpy(problem.square)
    left_over = np.maximum(1.0 - explained / np.where(square > 0, square, 1.0), 0.0)
    return Solved(
        found.objective,
        found.gap,
        float(np.max(found.gap / np.maximum(found.scale, TINY))),
        found.n_iter,
        found.converged,
        np.where(square > 0, left_over, 0.0),
        lam_max,
        found.method,
    )
