"""The one loop.

Rounds of plain steps, each ended by one measurement of all samples at hand.

    start                       y, x = f(x0)
    repeat   a round of steps   y = y(x);  x = image(y)      in place, nothing else
             one measurement    residual max|f(x) - x|, size max|x| of every sample
             enter              statuses; the best iterate, where it improved
             retire             when half are done, they leave the product
             advance            what accelerates changes the last step of the round

A sample has converged when its residual is at most its tolerance, ``tol (1 + max|x|)``;
otherwise its best iterate is returned, with a status that says why it stopped. (Where
there is no solution, x may run to infinity until any residual is small beside it; so x
counts up to ``1e3`` times its first size in float32, ``2e7`` in float64.) When rounds
end depends on n and k alone, never on a neighbour or the clock. Books are kept on the
host; within a round a GPU is never waited for.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from pyidl.arrays.backend import looks_are_free, writes_in_place
from pyidl.arrays.batch import put_rows, take_rows
from pyidl.errors import InputError
from pyidl.solvers.problem import Buffers, Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.typing import Array, Namespace

__all__ = ["PATIENCE", "Advance", "Book", "growth_limit", "iterate", "resolve_tol", "tol_floor"]

RUNNING, CONVERGED = -1, int(Status.CONVERGED)
PATIENCE = 50
GROWTH = 0.35
"""In ``1 / sqrt(eps)``, see `growth_limit`."""


class Advance:
    """How the next pre-activation follows, where it is not ``y(x)`` itself.

    A subclass gives `__call__`. An instance belongs to one solve and may remember its
    past, one row a sample; then it gives `take` too.

    Examples
    --------
    Picard's iteration that goes half of the way:

    >>> import pyidl
    >>> from pyidl.solvers import Affine
    >>> from pyidl.matrices import Full
    >>> class Halfway(Advance):
    ...     def __call__(self, y, y_image):
    ...         return 0.5 * (y + y_image)
    >>> A, z = Full(np.array([[-1.0]])), np.ones((1, 1))  # x = 1 - x
    >>> turn = Affine(A, z, pyidl.activations.identity)
    >>> iterate(turn, None, Halfway(), 1e-9, 100, "Halfway").value
    array([[0.5]])
    """

    stride: ClassVar[int | None] = None
    """Steps in a round, where it does not leave them to the loop."""

    every_step: ClassVar[bool] = True
    """Whether it replaces every step, or only the last one of a round."""

    def __call__(self, y: Any, y_image: Any) -> Any:
        """The next pre-activation of all samples at hand.

        Parameters
        ----------
        y, y_image : array, shape (m, ...)
            The present pre-activation, and ``y(image(y))``, which would be the next.

        Returns
        -------
        array, shape (m, ...)
            A new one or, if the library can overwrite arrays, either argument.
        """
        raise NotImplementedError(f"{type(self).__name__} needs __call__(y, y_image)")

    def acts(self, book: Book) -> bool:
        """Whether it changes the last step of this round, of which `book` knows all."""
        return True

    def take(self, rows: np.ndarray) -> None:
        """Forget all but these of the samples at hand."""


def tol_floor(like: Array, xp: Namespace) -> float:
    """``8 eps``: the least residual, relative to the state, that a dtype resolves."""
    return 8.0 * float(xp.finfo(like.dtype).eps)


def growth_limit(like: Array, xp: Namespace) -> float:
    """Up to how many times its first size a state counts.

    One that is larger runs to infinity.
    """
    return GROWTH / math.sqrt(xp.finfo(like.dtype).eps)


def resolve_tol(tol: float | None, like: Array, xp: Namespace) -> float:
    """The tolerance that is given, or 1e-6 in float32 and 1e-12 in float64.

    Raises
    ------
    InputError
        If the given one is below `tol_floor`: it could not be met.
    """
    if tol is None:
        return 1e-6 if like.dtype == xp.float32 else 1e-12
    if tol < tol_floor(like, xp):
        raise InputError(
            f"tol = {tol:.3g} is below {tol_floor(like, xp):.3g}, the least that {like.dtype} can "
            "resolve; raise it, leave it out, or use dtype='float64'"
        )
    return tol


def stride_of(xp: Namespace, n: int) -> int:
    """Steps in the first rounds, for a sample of n numbers.

    A measurement costs about as much as they do. On a GPU a step is two launches, while
    a measurement makes the host wait and do its books.
    """
    if looks_are_free(xp):
        return 6 if n <= 128 else 4 if n <= 256 else 3 if n < 512 else 2 if n < 2048 else 1
    return 3 if n < 2048 else 1


def iterate(
    problem: Problem,
    x0: Array | None,
    advance: Advance | None,
    tol: float | None,
    max_iter: int,
    method: str,
    trace: bool = False,
    patience: int = PATIENCE,
) -> Solution:
    """Solve ``x = f(x)`` by rounds of plain steps, or as `advance` says.

    Parameters
    ----------
    problem : Problem
        Of m samples.
    x0 : array with the shape of the state, optional
        The iteration starts from f(x0), or from f(0).
    advance : Advance, optional
        A new one for every solve.
    tol : float, optional
        As for `Picard`.
    max_iter : int
        Largest number of steps.
    method : str
        For `Solution.method`.
    trace : bool
        Whether to measure every step, and keep the residuals.
    patience : int
        A sample that has no new best residual for so many steps, and for a quarter of
        those that led to the last one, stagnates.

    Returns
    -------
    Solution
        The best iterate of every sample, and how its solve ended.

    Raises
    ------
    InputError
        If `tol` is below what the dtype can resolve.

    Examples
    --------
    >>> import pyidl
    >>> from pyidl.solvers import Affine
    >>> from pyidl.matrices import Full
    >>> half = Affine(Full(np.array([[0.5]])), np.ones((1, 1)), pyidl.activations.relu)
    >>> solution = iterate(half, None, None, 1e-6, 100, "plain steps")
    >>> solution.value.round(5), solution
    (array([[2.]]), Solution of 1 samples by plain steps: 1 CONVERGED; ...)
    """
    whole, xp = problem, problem.xp
    stride = (advance and advance.stride) or problem.stride
    stride = stride or stride_of(xp, problem.like[:1, ...].size)
    follows = advance if advance is not None and advance.every_step else None
    book = Book(problem, x0, resolve_tol(tol, problem.like, xp), max_iter, patience)
    log: list[np.ndarray] | None = [] if trace else None
    k, (here, there) = 0, problem.buffers()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # NONFINITE says it
        y, x = problem.start(x0, here)
        while True:
            steps = min(1 if k == 0 and x0 is not None else max(stride, k // 8), max_iter - k)
            for _ in range(steps - 1):
                if log is not None:
                    log.append(book.spread(problem.measure(x, *problem.step(x))[0]))
                if follows is None:
                    y, x = problem.step(x, here)
                else:
                    y, x = _follow(problem, follows, y, problem.pre(x, there and there[0]), here)
            k += steps
            y_image, image = problem.step(x, there)
            book.enter(k, problem.measure(x, y_image, image), y)
            if log is not None:
                log.append(book.spread(book.now[0]))
            if book.left == 0:
                del y, x, y_image, image, here, there  # the work space makes room for the answer
                return book.solution(whole, method, log)
            if advance is None or not advance.acts(book):
                y, x, here, there = y_image, image, there, here
            else:
                y, x = _follow(problem, advance, y, y_image, here)
            if 2 * book.left <= len(book.rows):
                keep = book.retire()
                y, x = (take_rows(xp, a, keep) for a in (y, x))
                problem = book.problem = problem.take(keep)
                here, there = problem.buffers()
                if advance is not None:
                    advance.take(keep)


def _follow(problem: Problem, advance: Advance, y: Any, y_image: Any, here: Buffers) -> Any:
    """``(y, image(y))`` for the y that `advance` gives."""
    following = advance(y, y_image)
    if here is None:
        return following, problem.image(following)
    if following is not here[0]:
        here[0][...] = following
    return here[0], problem.image(here[0], out=here[1])


class Book:
    """What is known of every sample at hand, in arrays that shrink with them.

    Attributes
    ----------
    problem : Problem
        That of those at hand.
    rows : numpy.ndarray of int
        Their numbers among all.
    going, left : numpy.ndarray of bool, int
        Which of them go on, and how many.
    k, now, allowed : int, numpy.ndarray (2, m), numpy.ndarray (m,)
        The last measurement: its step, residuals and sizes; and what residuals had to
        reach.
    k_before, before
        The measurement before.
    smallest, best, y
        Of those that go on: residual and size where the residual was smallest, in which
        step, and the pre-activation.
    status, n_iter, residual, tolerance, answer
        Of those that go no further, each in its place among all.
    """

    def __init__(self, problem: Problem, x0: Any, tol: float, max_iter: int, patience: int) -> None:
        m = problem.like.shape[0]
        self.problem, self.x0, self.tol = problem, x0, tol
        self.max_iter, self.patience = max_iter, patience
        self.xp, self.eps = problem.xp, float(problem.xp.finfo(problem.like.dtype).eps)
        self.status, self.n_iter = np.zeros(m, int), np.zeros(m, int)
        self.residual, self.tolerance = np.zeros(m), np.zeros(m)
        self.answer: Any = None
        self.rows, self.going, self.left = np.arange(m), np.ones(m, bool), m
        self.k = self.k_before = 0
        self.now = self.before = self.smallest = np.full((2, m), np.inf)
        self.best: Any = 0
        self.y: Any = None
        self.first: Any = None
        self.growth = growth_limit(problem.like, self.xp)
        self.limit: Any = None if x0 is None else self.growth * problem.given()

    def enter(self, k: int, measured: np.ndarray, y: Any) -> None:
        """Enter residuals and sizes, (2, m), in step k, and draw the conclusions."""
        self.k, self.k_before, self.now, self.before = k, self.k, measured, self.now
        residual, size = measured
        if self.first is None:
            self.first = residual
            self.limit = self.growth * size if self.limit is None else self.limit
        self.allowed = self._tolerance(measured)
        done, improved = residual <= self.allowed, residual < self.smallest[0]
        if self.left < len(done):
            done &= self.going
            improved &= self.going
        if np.count_nonzero(improved) == self.left and k < self.max_iter:
            self.smallest, self.best = measured, k
            if self.y is None or not writes_in_place(self.xp):
                self.y = self.xp.asarray(y, copy=True)
            else:
                self.y[...] = y
            if np.count_nonzero(done):
                self._close(done, None, self.allowed)
            return
        improved |= done  # what is returned is what is entered
        self.smallest = np.where(improved, measured, self.smallest)
        self.best = np.where(improved, k, self.best)
        chosen = improved.nonzero()[0]
        if self.y is None:  # what has left the range of the dtype keeps the start
            start = self.xp.asarray(self.problem.start(self.x0)[0], copy=True)
            self.y = put_rows(self.xp, start, chosen, y, chosen)
        else:
            self.y = put_rows(self.xp, self.y, chosen, y, chosen)
        status = np.where(done, CONVERGED, self._blame())
        self._close(self.going & (status != RUNNING), status, self._tolerance(self.smallest))

    def _tolerance(self, measured: np.ndarray) -> np.ndarray:
        """What residuals must reach.

        A size beyond the limit of growth does not count.
        """
        return self.problem.tolerance(np.minimum(measured[1], self.limit), self.tol)

    def _close(self, mask: np.ndarray, status: np.ndarray | None, allowed: np.ndarray) -> None:
        """Put on record those that go no further.

        Without a `status` they have converged.
        """
        places = mask.nonzero()[0]
        if len(places) == 0:
            return
        rows = self.rows.take(places)
        if status is not None:
            self.status[rows] = status.take(places)
        self.n_iter[rows] = self.k
        self.residual[rows] = self.smallest[0].take(places)
        self.tolerance[rows] = allowed.take(places)
        if len(places) == len(self.status):
            self.answer = self.y
        else:
            if self.answer is None:  # nobody has left yet
                self.answer = self.xp.empty_like(self.y)
            self.answer = put_rows(self.xp, self.answer, rows, self.y, places)
        self.going, self.left = self.going & ~mask, self.left - len(places)

    def misses(self, steps: float) -> np.ndarray:
        """Which samples, at their rate, will not converge in so many steps."""
        share = steps / (self.k - self.k_before)
        ahead = self.now[0] * (self.now[0] / self.before[0]) ** share
        return np.asarray(~(ahead <= self.allowed) & self.going)

    def rate(self) -> np.ndarray:
        """The change of the log of each residual a step, between measurements."""
        return np.asarray(np.log(self.now[0] / self.before[0]) / (self.k - self.k_before))

    def steps_to_go(self) -> np.ndarray:
        """Steps to the tolerance at that rate; inf where it does not fall."""
        rate = self.rate()
        return np.where(rate < 0, np.log(self.allowed / self.now[0]) / rate, np.inf)

    def _blame(self) -> np.ndarray:
        """Why samples that have not converged go no further, if they do not.

        Lost is who has no new best, and no prospect of one within the steps that are
        left.
        """
        residual, last = self.now[0], self.k == self.max_iter
        status = np.full(len(residual), int(Status.MAX_ITER) if last else RUNNING)
        lost = self.k - self.best > np.maximum(self.patience, self.best // 4)
        lost &= ~(self.steps_to_go() < self.max_iter - self.k)
        status[lost] = Status.STAGNATED
        status[(lost | last) & (residual > 10.0 * self.smallest[0])] = Status.DIVERGED
        status[residual > (self.first + self.allowed) / self.eps] = Status.DIVERGED
        status[~np.isfinite(residual)] = Status.NONFINITE
        return status

    def retire(self) -> np.ndarray:
        """Forget those that are closed; return the others, by their places at hand."""
        keep = self.going.nonzero()[0]
        self.rows, self.going, self.first, self.limit = (
            a.take(keep) for a in (self.rows, self.going, self.first, self.limit)
        )
        now, self.now = self.now, self.now.take(keep, axis=1)
        same = self.smallest is now
        self.smallest = self.now if same else self.smallest.take(keep, axis=1)
        self.best = self.best if isinstance(self.best, int) else self.best[keep]
        self.y = take_rows(self.xp, self.y, keep)
        return keep

    def spread(self, residual: np.ndarray) -> np.ndarray:
        """Residuals of those at hand, in their places among all."""
        row = np.full(len(self.status), np.nan)
        row[self.rows] = residual
        return row

    def solution(self, whole: Problem, method: str, log: list[np.ndarray] | None) -> Solution:
        """The answer, when all are closed."""
        trace = None if log is None else np.stack(log)
        if trace is not None:
            trace[np.arange(len(trace))[:, None] >= self.n_iter] = np.nan
        known = self.status, self.n_iter, self.residual, self.tolerance
        return Solution(whole.image(self.answer), self.answer, *known, method, trace)
