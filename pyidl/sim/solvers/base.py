"""What the solvers of row problems share.

A solver is a frozen configuration that, called with a `RowProblem`, returns `Rows`.
Iterations hand their feasible iterate to `iterate_rows`, which measures the duality gap
of every row, keeps the best rows seen, lets rows go that are good enough, and from time
to time guesses the optimum from the signs of an iterate
(`pyidl.sim.solvers.active_set`). A guess costs some factorisations for each row; it is
made when the steps since the last one have cost as much, so guessing takes half of the
time.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from pyidl.arrays.backend import from_host, namespace, to_numpy
from pyidl.arrays.batch import put_rows, take_rows
from pyidl.errors import ConvergenceWarning, InputError, is_real, is_whole
from pyidl.sim.row_problem import TINY, Measure, RowProblem, free_groups
from pyidl.sim.solvers import active_set
from pyidl.typing import Array

__all__ = ["RowIteration", "RowSolver", "Rows", "iterate_rows"]

SMALL_FACTOR = 1.0
"""What an operation in the factorisation of one support counts.

Relative to one in a product for all rows; it takes 3 to 5 times as long (measured).
"""


@dataclass(frozen=True, eq=False)
class Rows:
    """Weights and what is known of them.

    All but W and the factors live on the host, shape (r,).

    Parameters
    ----------
    W : array, shape (r, k)
        Feasible rows with exact zeros.
    gap : numpy.ndarray
        An upper bound of what the objective is above the optimum.
    objective : numpy.ndarray
        ``P(w)``.
    n_iter : numpy.ndarray of int
        Steps each row took.
    converged : numpy.ndarray of bool
        Whether the gap is within the tolerance.
    method : str
        What was done, in words.
    scale : numpy.ndarray
        ``max(P, 1e-8 |z|^2 / (2m))``, what the tolerance is relative to.
    factors : pair of arrays, optional
        L and R, both (n, rank), with ``A = L R^T``; of `ReducedRank` only.

    Examples
    --------
    >>> from pyidl.sim import ADMM, L1, Moments
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> rows = ADMM()(RowProblem.of(Moments.of(X, X[:, :1]), L1(0.01)))
    >>> rows.W.shape, bool(rows.converged[0]), rows.method
    ((1, 4), True, 'ADMM, 10 steps')
    """

    W: Array
    gap: np.ndarray
    objective: np.ndarray
    n_iter: np.ndarray
    converged: np.ndarray
    method: str
    scale: np.ndarray
    factors: tuple[Array, Array] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Rows], numbers: Sequence[np.ndarray], method: str) -> Rows:
        """The rows of all parts, in the order of their numbers.

        Factors belong to all rows together: there are none of several parts.
        """
        order = np.argsort(np.concatenate(numbers))
        gap, objective, n_iter, converged, scale = (
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("gap", "objective", "n_iter", "converged", "scale")
        )
        xp, factors = namespace(parts[0].W), parts[0].factors if len(parts) == 1 else None
        W = take_rows(xp, xp.concat([part.W for part in parts]), order)
        return cls(W, gap, objective, n_iter, converged, method, scale, factors)


@dataclass(frozen=True)
class RowSolver(ABC):
    """A solver that takes steps until the gap is small.

    Parameters
    ----------
    tol : float
        A row is done when ``gap <= tol max(P, 1e-8 |z|^2 / (2m))``, or when the gap is
        the rounding of float64.
    max_iter : int
        Largest number of steps.

    Raises
    ------
    InputError
        If one of them is not positive.

    Examples
    --------
    >>> from pyidl.sim import FISTA
    >>> FISTA().at(1e-6)
    FISTA(tol=1e-06, max_iter=5000)
    """

    tol: float = 1e-4
    max_iter: int = 5000

    def __post_init__(self) -> None:
        if not (is_real(self.tol) and 0 < self.tol < 1):
            raise InputError(
                f"tol is {self.tol!r}; it is relative to the objective and lies between 0 and 1"
            )
        object.__setattr__(self, "tol", float(self.tol))
        if not (is_whole(self.max_iter) and self.max_iter >= 1):
            raise InputError(f"max_iter is {self.max_iter!r}; an integer is needed, at least 1")

    def at(self, tol: float) -> Self:
        """The same with another tolerance."""
        return replace(self, tol=tol)

    def __call__(self, problem: RowProblem, start: Array | None = None) -> Rows:
        """Solve all rows, from `start` (r, k) if it is given.

        Warns
        -----
        ConvergenceWarning
            If some rows did not reach the tolerance; the best rows met are returned.
        """
        start = problem.zeros() if start is None else problem.project(start)
        rows = (
            self._without_free(problem, start) if problem.has_free else self._solve(problem, start)
        )
        missed = int(np.count_nonzero(~rows.converged))
        if missed:
            worst = float(
                np.max(rows.gap[~rows.converged] / np.maximum(rows.scale[~rows.converged], TINY))
            )
            warnings.warn(
                f"{missed} of {len(rows.gap)} rows did not reach a relative gap of {self.tol:.1e}; "
                f"the largest is {worst:.2e} after {int(rows.n_iter.max(initial=0))} steps "
                f"({rows.method}). Raise max_iter or tol, or add a ridge",
                ConvergenceWarning,
                stacklevel=2,
            )
        return rows

    @abstractmethod
    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        """Solve a problem without free weights."""

    def _without_free(self, problem: RowProblem, start: Array) -> Rows:
        """Eliminate the free weights, solve for the others, and complete.

        Group by group of rows that have the same free weights.
        """
        xp, n, k = namespace(problem.H), problem.ball, problem.H.shape[1]
        numbers, parts = [], []
        for rows, free in free_groups(problem):
            group = problem.take(rows)
            reduced, spectrum = group.eliminate(free)
            found = (
                self._solve(reduced, take_rows(xp, start, rows)[:, :n]) if n else _nothing(reduced)
            )
            W = xp.concat([found.W, xp.zeros((len(rows), k - n), dtype=xp.float64)], axis=1)
            # Columns of [b, 0] in the order of the weights.
            place = np.full(k, len(free))
            place[free] = np.arange(len(free))
            index, back = from_host(xp, free), from_host(xp, place)
            zero = xp.zeros((len(rows), 1), dtype=xp.float64)
            for _ in range(2):  # the second time corrects the rounding of the first
                g = xp.take(group.correlation(W), index, axis=1)
                W = W + xp.take(xp.concat([spectrum.solve(g), zero], axis=1), back, axis=1)
            g = xp.take(group.correlation(W), index, axis=1)
            doubt = xp.take(group.doubt(W), index, axis=1)
            missing, rounding = (spectrum.missing(part, doubt) for part in (g, 0.0 * g))
            gap = np.minimum(found.gap + missing, found.scale)
            enough = missing <= np.maximum(self.tol * found.scale, 8.0 * rounding)
            parts.append(replace(found, W=W, gap=gap, converged=found.converged & enough))
            numbers.append(rows)
        method = f"{parts[0].method}; weights without penalty eliminated"
        return Rows.joined(parts, numbers, method)


def _nothing(problem: RowProblem) -> Rows:
    """The answer for rows of no weights."""
    r = problem.H.shape[0]
    objective = 0.5 * to_numpy(problem.square)
    scale = np.maximum(objective, problem.measure(problem.H).scale)
    return Rows(
        problem.H,
        np.zeros(r),
        objective,
        np.zeros(r, int),
        np.ones(r, bool),
        "least squares",
        scale,
    )


class RowIteration(Protocol):
    """Steps of an iteration for the rows that are left."""

    work: float
    """Operations of one step for one row."""

    def step(self, count: int) -> Array:
        """Take some steps; return a feasible iterate."""
        ...

    def keep(self, kept: np.ndarray) -> None:
        """Go on with these rows only, numbered among those at hand."""
        ...


class Best:
    """The best rows met so far, and which are still open."""

    def __init__(self, problem: RowProblem, start: Array, tol: float) -> None:
        self.W, self.tol = start, tol
        m = problem.measure(start)
        self.gap, self.objective, self.converged = (
            m.gap.copy(),
            m.objective.copy(),
            m.enough(tol).copy(),
        )
        self.floor = m.scale
        self.n_iter = np.zeros(len(m.gap), int)

    def offer(self, rows: np.ndarray, W: Array, m: Measure, steps: int) -> None:
        """Take the rows whose gap is smaller than what is there."""
        better = np.flatnonzero(m.gap < self.gap[rows])
        self.n_iter[rows] = steps
        if len(better):
            at = rows[better]
            self.W = put_rows(namespace(W), self.W, at, W, better)
            self.gap[at], self.objective[at], self.converged[at] = (
                m.gap[better],
                m.objective[better],
                m.enough(self.tol)[better],
            )


def iterate_rows(
    solver: RowSolver, problem: RowProblem, start: Array, advance: RowIteration, name: str
) -> Rows:
    """Step, measure, guess, and let rows go, until all are done or steps run out."""
    xp = namespace(start)
    best = Best(problem, xp.asarray(start, copy=True), solver.tol)
    rows, here = np.arange(len(best.gap)), problem
    steps, since, guessed = 0, 0.0, 0

    def leave(W: Array) -> Array:
        nonlocal rows, here
        kept = np.flatnonzero(~best.converged[rows])
        if len(kept) < len(rows):
            rows, here = rows[kept], here.take(kept)
            advance.keep(kept)
            W = take_rows(xp, W, kept)
        return W

    leave(start)
    while len(rows) and steps < solver.max_iter:
        count = min(max(10, steps // 5), solver.max_iter - steps)
        W = advance.step(count)
        steps, since = steps + count, since + count * advance.work * len(rows)
        best.offer(rows, W, here.measure(W), steps)
        W = leave(W)
        if len(rows) and (since >= SMALL_FACTOR * active_set.work(W) or steps == solver.max_iter):
            W, left = here.project(active_set.guess(here, W)), len(rows)
            best.offer(rows, W, here.measure(W), steps)
            leave(W)
            guessed, since = guessed + left - len(rows), 0.0
    words = f"{name}, {steps} steps" + (
        f", {guessed} of {len(best.gap)} rows finished on their supports" if guessed else ""
    )
    return Rows(
        best.W,
        best.gap,
        best.objective,
        best.n_iter,
        best.converged,
        words,
        np.maximum(best.objective, best.floor),
    )
