"""The one iteration loop: ``y <- advance(y, y(x))``, ``x = image(y)``, stopped for every sample on its own.

    converged   max|f(x) - x| <= tolerance(x)           the sample is frozen, and soon leaves the product
    otherwise   the best iterate of the sample is returned, with a status that says why it stopped

No decision depends on another sample or on the clock. Residuals are compared on the host, where all the per-sample
bookkeeping lives; between two checks a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.backend import from_host, max_abs, to_numpy, writes_in_place
from pyidl.errors import InputError
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.typing import Array, Namespace

__all__ = ["Advance", "iterate", "resolve_tol", "tol_floor"]

Advance = Callable[[Any, Any], Any]
"""``(y, y(image(y))) -> next y``; it may write into the first of them."""

RUNNING = -1
PATIENCE = 50


def tol_floor(like: Array, xp: Namespace) -> float:
    """``8 eps``: the least residual, relative to the state, that a dtype can resolve."""
    return 8.0 * float(xp.finfo(like.dtype).eps)


def resolve_tol(tol: float | None, like: Array, xp: Namespace) -> float:
    """Return the tolerance for this dtype: 1e-6 in float32, 1e-12 in float64, unless one is given.

    Raises
    ------
    InputError
        If the given one is below `tol_floor`: it could not be met.
    """
    if tol is None:
        return 1e-6 if like.dtype == xp.float32 else 1e-12
    if tol < tol_floor(like, xp):
        raise InputError(
            f"tol = {tol:.3g} is below {tol_floor(like, xp):.3g}, the least that {like.dtype} can resolve; "
            "raise it, leave it out, or use dtype='float64'"
        )
    return tol


def _next_check(k: int) -> int:
    """When to look at the residual again: at every step at first, later after an eighth of the steps done."""
    return k + max(1, k // 8)


@dataclass(frozen=True)
class _Book:
    """The host's book of one solve: a line for each sample."""

    status: np.ndarray
    n_iter: np.ndarray
    residual: np.ndarray  # the smallest so far, and
    tolerance: np.ndarray  # the tolerance, and
    best: np.ndarray  # the step that belong to it
    first: np.ndarray

    @classmethod
    def empty(cls, m: int) -> _Book:
        """Nothing is known of m samples."""
        return cls(np.full(m, RUNNING), np.zeros(m, int), np.full(m, np.inf), np.zeros(m), np.zeros(m, int), np.zeros(m))

    def enter(self, rows: np.ndarray, k: int, residual: np.ndarray, tolerance: np.ndarray, *, growth: float, last: bool) -> np.ndarray:
        """Enter the residuals of step k and the statuses that follow; return where there is a new best."""
        if k == 1:
            self.first[rows] = residual
        improved: np.ndarray = (residual < self.residual[rows]) | (residual <= tolerance)  # what is returned is what is entered
        better = rows[improved]
        self.residual[better], self.tolerance[better], self.best[better] = residual[improved], tolerance[improved], k
        self.n_iter[rows] = k
        status = np.full(len(rows), Status.MAX_ITER if last else RUNNING)
        lost = k - self.best[rows] > np.maximum(PATIENCE, self.best[rows] // 4)
        status[lost] = Status.STAGNATED
        status[(lost | last) & (residual > 10.0 * self.residual[rows])] = Status.DIVERGED
        status[residual > growth * (self.first[rows] + tolerance)] = Status.DIVERGED
        status[~np.isfinite(residual)] = Status.NONFINITE
        status[residual <= tolerance] = Status.CONVERGED
        self.status[rows] = status
        return improved


def iterate(
    problem: Problem,
    x0: Array | None,
    advance: Advance | None,
    *,
    tol: float | None,
    max_iter: int,
    method: str,
    trace: bool = False,
) -> Solution:
    """Solve ``x = f(x)``; ``advance=None`` is Picard's ``y <- y(x)``, which only swaps two buffers."""
    xp, m = problem.xp, problem.like.shape[0]
    tol = resolve_tol(tol, problem.like, xp)
    growth = 1.0 / float(xp.finfo(problem.like.dtype).eps)
    book, traces = _Book.empty(m), []
    pieces: list[tuple[np.ndarray, Any, Any]] = []  # (samples, y, x) of those that have left
    rows, running = np.arange(m), np.ones(m, bool)  # the samples at hand, and which of them are not frozen
    here, there = problem.buffers(), problem.buffers()
    best: Any = None
    k, due = 0, 1
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the status NONFINITE says it
        y, x = problem.start(x0, here)
        while True:
            k += 1
            y_image, image = problem.f(x, there)
            last = k == max_iter
            checked = k == due or last
            if checked or trace:
                residual = to_numpy(max_abs(xp, image, x)).astype(np.float64)
            if trace:
                traces.append(np.full(m, np.nan))
                traces[-1][rows[running]] = residual[running]
            if checked:
                due = _next_check(k)
                tolerance = to_numpy(problem.tolerance(x, tol)).astype(np.float64)
                improved = np.zeros(len(rows), bool)
                improved[running] = book.enter(rows[running], k, residual[running], tolerance[running], growth=growth, last=last)
                converged = running & (book.status[rows] == Status.CONVERGED)
                if converged.any():
                    pieces.append((rows[converged], *_select(xp, converged, y, x)))
                if not converged.all():
                    best = _keep(xp, best, y, improved)
                hopeless = running & (book.status[rows] > Status.CONVERGED)
                if hopeless.any():
                    pieces.append((rows[hopeless], *_best(problem, hopeless, best)))
                running = book.status[rows] == RUNNING
                if not running.any():
                    break  # before the buffers that the last pieces may share are written into again
            if advance is None:
                y, x, here, there = y_image, image, there, here
            else:
                y = advance(y, y_image)
                x = problem.image(y, None if here is None else here[1])
            if checked and 2 * running.sum() <= len(rows):  # the frozen ones leave the product
                keep = from_host(xp, np.flatnonzero(running))
                problem, rows, running = problem.take(keep), rows[running], running[running]
                y, x, best = (xp.take(a, keep, axis=0) for a in (y, x, best))
                here, there = None if here is None else (y, x), problem.buffers()
    y, x = _assemble(xp, pieces)
    return Solution(
        value=x,
        pre=y,
        status=book.status,
        n_iter=book.n_iter,
        residual=book.residual,
        tolerance=book.tolerance,
        method=method,
        trace=np.stack(traces) if trace else None,
    )


def _select(xp: Namespace, mask: np.ndarray, *arrays: Any) -> tuple[Any, ...]:
    """The rows under the mask; without a copy where that is all of them, since nothing then overwrites them."""
    if mask.all():
        return arrays
    index = from_host(xp, np.flatnonzero(mask))
    return tuple(xp.take(a, index, axis=0) for a in arrays)


def _keep(xp: Namespace, best: Any, y: Any, improved: np.ndarray) -> Any:
    """Copy the improved rows of y into best."""
    if best is None:
        return xp.asarray(y, copy=True)
    mask = from_host(xp, improved.reshape(-1, *[1] * (y.ndim - 1)))
    if not writes_in_place(xp):
        return xp.where(mask, y, best)
    xp.copyto(best, y, where=mask)
    return best


def _best(problem: Problem, mask: np.ndarray, best: Any) -> tuple[Any, Any]:
    """The best iterates of the samples under the mask, and their images."""
    index = from_host(problem.xp, np.flatnonzero(mask))
    y = problem.xp.take(best, index, axis=0)
    return y, problem.take(index).image(y)


def _assemble(xp: Namespace, pieces: list[tuple[np.ndarray, Any, Any]]) -> tuple[Any, ...]:
    """Put the samples back in order."""
    if len(pieces) == 1:
        return pieces[0][1:]
    order = from_host(xp, np.argsort(np.concatenate([rows for rows, _, _ in pieces])))
    return tuple(xp.take(xp.concat([piece[i] for piece in pieces]), order, axis=0) for i in (1, 2))
