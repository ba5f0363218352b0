"""The one iteration loop: ``y <- advance(y, y(x))``, ``x = image(y)``, stopped for every sample on its own.

    converged   max|f(x) - x| <= tolerance(x)           the sample is frozen, and soon leaves the product
    otherwise   the best iterate of the sample is returned, with a status that says why it stopped

No decision depends on another sample or on the clock: when a sample is measured next follows from how fast its own
residual fell. The per-sample bookkeeping lives on the host; between two measurements a GPU is never waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyidl.backend import from_host, looks_are_free, writes_in_place
from pyidl.errors import InputError
from pyidl.rows import put_rows
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.typing import Array, Namespace

__all__ = ["PATIENCE", "Advance", "iterate", "resolve_tol", "tol_floor"]

RUNNING, CONVERGED = -1, int(Status.CONVERGED)
PATIENCE = 50
OPENING = {1: 3, 2: 7, 3: 7}
"""By stride, the step before which all samples are measured together, and nothing is planned for one of them: in steps 1, 3, 5; on a GPU
in 1, 4; or, for large n and from f(0), in 2. (The first step often brings more than the later ones, and its rate misleads.)"""


class Advance:
    """How the next pre-activation follows from ``(y, y(x))``; this one is Picard's, ``y <- y(x)``.

    An advance belongs to one solve and may remember its past, one row a sample.
    """

    @property
    def steady(self) -> bool:
        """Whether its residuals fall at a steady rate from the start: then not every one of the first steps is measured."""
        return True

    @property
    def plain(self) -> bool:
        """Whether the next step is likely to be Picard's: then its image is computed on the way."""
        return True

    def __call__(self, y: Any, y_image: Any) -> Any:
        """The next y: a new array, either argument overwritten, or None for y_image as it stands."""
        return None

    def observe(self, rows: np.ndarray, to_go: np.ndarray) -> np.ndarray | None:
        """Hear how many steps the rates of some rows predict from here; return which of them to measure often."""
        return None

    def take(self, rows: np.ndarray) -> None:
        """Forget all but these rows."""


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


def _steps_to_go(
    residual: np.ndarray, tolerance: np.ndarray, before: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Steps until a residual that fell from `before` within `steps` reaches its tolerance; inf where it does not fall."""
    rate = np.log(residual / before) / steps
    to_go: np.ndarray = np.log(tolerance / residual) / rate
    to_go[~(rate < 0)] = np.inf
    return to_go


class _Measured(NamedTuple):
    """A measurement of all samples."""

    k: int
    residual: np.ndarray
    tolerance: np.ndarray


@dataclass(frozen=True)
class _Book:
    """The host's book of one solve: a line for each sample."""

    status: np.ndarray
    n_iter: np.ndarray  # the step of the last measurement,
    last: np.ndarray  # the residual then,
    due: np.ndarray  # and the step of the next one
    residual: np.ndarray  # the smallest so far, and
    tolerance: np.ndarray  # the tolerance, and
    best: np.ndarray  # the step that belong to it
    first: np.ndarray
    stride: int  # the least number of steps between two measurements
    patience: int  # the least number of steps without a new best that count as stagnation

    @classmethod
    def after(
        cls, opening: list[_Measured], first: np.ndarray, stride: int, patience: int
    ) -> _Book:
        """What is known after the opening, in which every residual fell; `first` is the first one."""
        m = len(first)
        book = cls(
            status=np.full(m, RUNNING),
            n_iter=np.zeros(m, int),
            last=np.full(m, np.inf),
            due=np.ones(m, int),
            residual=np.full(m, np.inf),
            tolerance=np.zeros(m),
            best=np.zeros(m, int),
            first=first,
            stride=stride,
            patience=patience,
        )
        for now in opening:
            book.n_iter[:], book.last[:], book.best[:] = now.k, now.residual, now.k
            book.residual[:], book.tolerance[:] = now.residual, now.tolerance
        return book

    def enter(
        self,
        rows: np.ndarray,
        k: int,
        residual: np.ndarray,
        tolerance: np.ndarray,
        *,
        growth: float,
        to_go_allowed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Enter what was measured in step k, and the statuses that follow; return (where there is a new best, steps to go)."""
        at = self.at(rows)
        done = residual <= tolerance
        improved: np.ndarray = (
            residual < self.residual[at]
        ) | done  # what is returned is what is entered
        all_improved = improved.all()
        if all_improved:
            self.residual[at], self.tolerance[at], self.best[at] = residual, tolerance, k
        else:
            better = rows[improved]
            self.residual[better], self.tolerance[better], self.best[better] = (
                residual[improved],
                tolerance[improved],
                k,
            )
        to_go = _steps_to_go(residual, tolerance, self.last[at], k - self.n_iter[at])
        self.last[at], self.n_iter[at] = residual, k
        if done.any():
            self.status[rows[done]] = CONVERGED
        if to_go_allowed == 0 or not all_improved:
            self._blame(
                rows[~done],
                k,
                residual[~done],
                tolerance[~done],
                growth,
                to_go[~done],
                to_go_allowed,
            )
        return improved, to_go

    def at(self, rows: np.ndarray) -> Any:
        """The same rows; a slice, which is faster, where they are all."""
        return slice(None) if len(rows) == len(self.status) else rows

    def plan(self, rows: np.ndarray, k: int, to_go: np.ndarray, often: np.ndarray | None) -> None:
        """When to measure again: shortly before the sample will have converged if it goes on like this.

        That is not before the next step (for small n the one after it) and not long after 1.5 k, on a grid that widens with
        k, so that a batch is measured in few steps. Where the past rate says little of the future, it is at once.
        """
        grid = max(self.stride, k // 8)
        far = np.minimum(0.8 * to_go, 1 + k // 2)
        self.due[self.at(rows)] = k + grid * np.maximum(1, far // grid)
        if (
            often is not None and often.any()
        ):  # after an odd number of steps: those of a safeguard, good and bad, may alternate
            self.due[rows[often]] = k + self.stride - 1 + self.stride % 2 + 2 * (k // 32)

    def _blame(
        self,
        rows: np.ndarray,
        k: int,
        residual: np.ndarray,
        tolerance: np.ndarray,
        growth: float,
        to_go: np.ndarray,
        allowed: int,
    ) -> None:
        """Why samples that have not converged go no further, if they do not: lost is who has no new best, and no prospect."""
        last = allowed == 0
        status = np.full(len(rows), int(Status.MAX_ITER) if last else RUNNING)
        lost = k - self.best[rows] > np.maximum(self.patience, self.best[rows] // 4)
        lost &= ~(to_go < allowed)
        status[lost] = Status.STAGNATED
        status[(lost | last) & (residual > 10.0 * self.residual[rows])] = Status.DIVERGED
        status[residual > growth * (self.first[rows] + tolerance)] = Status.DIVERGED
        status[~np.isfinite(residual)] = Status.NONFINITE
        self.status[rows] = status


def _stride(xp: Namespace, n: int) -> int:
    """The least number of steps between two measurements of a sample of n numbers: more than 1 where a step costs less than a measurement.

    On a GPU a step is two launches, while a measurement makes the host wait and then do its books.
    """
    if looks_are_free(xp):
        return 2 if n < 256 else 1
    return 3 if n < 2048 else 1


def iterate(
    problem: Problem,
    x0: Array | None,
    advance: Advance | None,
    *,
    tol: float | None,
    max_iter: int,
    method: str,
    trace: bool = False,
    patience: int = PATIENCE,
) -> Solution:
    """Solve ``x = f(x)``; ``advance=None`` is Picard's ``y <- y(x)``, which only swaps two buffers.

    A sample that has no new best residual for `patience` steps, and for a quarter of those that led to the last one, stagnates.
    """
    xp, m, whole = problem.xp, problem.like.shape[0], problem
    tol = resolve_tol(tol, problem.like, xp)
    growth = 1.0 / float(xp.finfo(problem.like.dtype).eps)
    stride = _stride(xp, problem.like.size // max(m, 1))
    opening_ends = OPENING[stride] if advance is None or advance.steady else 0
    book: _Book | None = None
    opening: list[_Measured] = []
    traces: list[np.ndarray] = []
    rows = now = np.arange(m)  # the samples at hand, those of them that are measured,
    running = np.ones(m, bool)  # and which of them are not frozen
    here, there = problem.buffers()
    best: Any = None
    k, due = 0, 2 if stride == 1 and x0 is None and opening_ends else 1
    with np.errstate(
        over="ignore", invalid="ignore", divide="ignore"
    ):  # the status NONFINITE says it
        y, x = problem.start(x0, here)
        while True:
            k += 1
            last = k == max_iter
            checked = k >= due or last
            if checked or trace or advance is None or advance.plain:
                y_image, image = problem.step(x, there)
            else:
                y_image, image = problem.pre(x, there and there[0]), None
            if trace:
                traces.append(np.full(m, np.nan))
                measured = problem.measure(x, y_image, image, tol)[0]
                traces[-1][rows] = np.where(running, measured, np.nan)
            if checked and book is None:
                residual, tolerance = problem.measure(x, y_image, image, tol)
                done = int(np.count_nonzero(residual <= tolerance))
                if done == m:
                    if here is not None:
                        y, x = _kept(xp, y, best), xp.asarray(x, copy=True)
                    status, n_iter = np.full(m, CONVERGED), np.full(m, k)
                    return Solution(
                        x,
                        y,
                        status,
                        n_iter,
                        residual,
                        tolerance,
                        method,
                        np.stack(traces) if trace else None,
                    )
                falls = (
                    np.count_nonzero(residual < (opening[-1].residual if opening else np.inf)) == m
                )
                if k < opening_ends and falls and not last and not done:
                    opening.append(_Measured(k, residual, tolerance))
                    best = _kept(xp, y, best)
                    due, checked = k + stride, False
                else:
                    book = _Book.after(
                        opening, opening[0].residual if opening else residual, stride, patience
                    )
            elif checked and book is not None:
                now = np.flatnonzero(running if last else running & (book.due[book.at(rows)] <= k))
                residual, tolerance = _measure(problem, now, x, y_image, image, tol)
            if checked and book is not None:
                improved, to_go = book.enter(
                    rows[now], k, residual, tolerance, growth=growth, to_go_allowed=max_iter - k
                )
                running = book.status[book.at(rows)] == RUNNING
                left = int(np.count_nonzero(running))
                if left == 0 and len(now) == m and improved.all():
                    if here is not None:
                        y, x = _kept(xp, y, best), xp.asarray(x, copy=True)
                    break  # all at once
                if best is None:
                    best = xp.asarray(y, copy=True)
                elif improved.any():
                    best = put_rows(xp, best, rows[now[improved]], y, now[improved])
                if left == 0:
                    del (
                        y,
                        x,
                        y_image,
                        image,
                        here,
                        there,
                    )  # the work space makes room for the answer
                    y, x = best, whole.image(best)
                    break
                if (
                    k < opening_ends
                ):  # whoever opened the book, the others are measured, and heard, no earlier than they would be alone
                    book.plan(rows[now], k, np.zeros(len(now)), None)
                else:
                    book.plan(
                        rows[now],
                        k,
                        to_go,
                        None if advance is None else advance.observe(now, to_go),
                    )
                due = int((book.due if left == m else book.due[rows[running]]).min())
            following = None if advance is None else advance(y, y_image)
            if following is None:
                if image is None:
                    image = problem.image(y_image, there and there[1])
                y, x, here, there = y_image, image, there, here
            else:
                y, x = following, problem.image(following, here and here[1])
                if there is not None and y is there[0]:
                    here, there = (y, x), (here[0], there[1])
            if checked and 2 * left <= len(rows):  # the frozen ones leave the product
                keep = np.flatnonzero(running)
                running = running[keep]
                index = from_host(xp, keep)
                problem, rows = problem.take(keep), rows[keep]
                here, there = problem.buffers()
                y, x = (_gather(xp, a, index, here and here[i]) for i, a in enumerate((y, x)))
                if advance is not None:
                    advance.take(keep)
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


def _kept(xp: Namespace, y: Any, room: Any) -> Any:
    """A copy of y that outlives the work space, in `room` if there is one."""
    if room is None or not writes_in_place(xp):
        return xp.asarray(y, copy=True)
    room[...] = y
    return room


def _measure(
    problem: Problem, now: np.ndarray, x: Any, y_image: Any, image: Any, tol: float
) -> tuple[np.ndarray, np.ndarray]:
    """Residual and tolerance of the rows `now`: of all at hand if they are many, of a copy if they are few."""
    if 2 * len(now) > x.shape[0]:
        residual, tolerance = problem.measure(x, y_image, image, tol)
        return (residual, tolerance) if len(now) == x.shape[0] else (residual[now], tolerance[now])
    index = from_host(problem.xp, now)
    x, y_image, image = (problem.xp.take(a, index, axis=0) for a in (x, y_image, image))
    return problem.take(now).measure(x, y_image, image, tol)


def _gather(xp: Namespace, a: Any, index: Any, out: Any) -> Any:
    """``a[index]``, into `out` if given."""
    if out is None:
        return xp.take(a, index, axis=0)
    return (
        np.take(a, index, axis=0, out=out, mode="clip")
        if xp is np
        else xp.take(a, index, axis=0, out=out)
    )  # NumPy buffers without it
