"""Who is accelerated, from when, by what, and for how long.

Each sample by its own rate.

Where a residual fell by the factor q in the last step, the tolerance is ``s = log(tol /
residual) / log(q)`` steps away. `Costs` says what s plain steps cost, and what others
would:

    Newton      2.5 dense solves, one for each set of slopes; one where f is linear
    Anderson    R plain rounds become about ``2 + R / 10`` of its own

Either is taken where it promises to save enough, and is then judged by what it
achieves. Anderson's steps must bring the best residual down, in `TRIAL` rounds, by more
than plain steps of the same cost would have done at the rate before, and not so slowly
that Newton's method is cheaper; of Newton's steps, so many may fail to halve it as cost
a share of the plain steps to go. What does not pay is handed back, and the sample goes
on from its best iterate. First rates may mislead, so there is another trial: as soon as
the plain rate falls below what Anderson's steps had achieved, or when as many steps
more have been taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from pyidl.arrays.batch import put_rows, take_rows
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.cost import SURE, Costs
from pyidl.solvers.loop import Advance, Book
from pyidl.solvers.newton import newton_direction
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution

__all__ = ["Adaptive"]

MEMORY = 3
"""Differences that Anderson's method keeps."""

TRIAL = 4
"""Rounds after which Anderson's method is judged."""

TRIES = 12
"""At most so many steps of Newton's may fail to halve the residual."""

PLAIN, MIXED, DIRECT = range(3)


class Adaptive(Advance):
    """Plain steps; at the end of a round Anderson's or Newton's for slow samples.

    Parameters
    ----------
    problem : Problem
        What is solved.
    costs : Costs
        Of a call with so many rows.
    newton : bool
        Whether Newton's method may be used.
    """

    every_step = False

    def __init__(self, problem: Problem, costs: Costs, *, newton: bool) -> None:
        self.problem, self.costs = problem, costs
        solves = costs.newton_from if problem.reference is None else costs.direct_from
        self.newton_from = solves if newton else math.inf
        self.least = min(costs.mixing_from, self.newton_from)
        self.counts = [0, 0, 0]
        self.mode: Any = None

    def _begin(self, m: int) -> None:
        self.mode = np.full(m, PLAIN)
        self.banned = np.zeros(m, bool)  # for whom Newton's method has failed
        self.slow = np.zeros(m, bool)  # who was slow when last measured: once may be a transient
        # Where acceleration began: step, log of the residual, rate of plain steps. After
        # a trial that did not pay, the plain rate that it was as good as.
        self.start = np.zeros((3, m))
        self.tries = np.full(m, TRIES)  # steps of Newton's that may still fail
        self.until = np.zeros(m, int)  # the step before which no other trial begins
        self.back = np.empty(0, int)  # who goes on from its best iterate
        self.mixing = Mixing(self.problem, MEMORY)
        self.mixing.new = self.mixing.rows

    def acts(self, book: Book) -> bool:
        """Judge those accelerated, choose who will be."""
        self.book = book
        if self.mode is None:
            if book.k_before == 0 or not np.count_nonzero(book.misses(self.least)):
                return False
            self._begin(len(book.rows))
        self.back = self.back[:0]
        if np.count_nonzero(self.mode):
            self._judge(book, np.log(book.smallest[0]))
        slow = book.misses(self.least) & (self.mode == PLAIN)
        if np.count_nonzero(slow):
            self._choose(book, book.steps_to_go(), slow)
        self.slow = slow
        self.back = self.back[self.mode[self.back] == PLAIN]
        return bool(np.count_nonzero(self.mode) or len(self.back))

    def _judge(self, book: Book, log_best: np.ndarray) -> None:
        """Hand back what does not pay."""
        k, began, rate = self.start
        fell, steps = log_best - began, book.k - k
        tried = (self.mode == MIXED) & (steps >= TRIAL * self.costs.stride)
        pace = fell / (np.maximum(steps, 1.0) * self.costs.fair)
        poor = tried & ~(pace < np.minimum(rate, 0.0))
        to_go = np.where(pace < 0, (np.log(book.allowed) - log_best) / pace, np.inf)
        poor |= tried & (to_go > self.newton_from) & ~self.banned  # then that is cheaper
        again = tried & ~poor  # the next trial begins here, against the same rate
        self.start[0, again], self.start[1, again] = book.k, log_best[again]
        self.start[2, poor] = pace[poor]
        newton = self.mode == DIRECT
        self.tries[newton & ~(book.now[0] < 0.5 * book.before[0])] -= 1
        worse = newton & (self.tries <= 0)
        self.banned |= worse
        self.until[poor] = 2 * book.k
        self.mode[worse | poor | ~book.going] = PLAIN
        self.back = ((worse | poor) & book.going).nonzero()[0]
        if len(self.mixing.rows):
            self.mixing.release(self.mode[self.mixing.rows] != MIXED)

    def _choose(self, book: Book, to_go: np.ndarray, slow: np.ndarray) -> None:
        """Engage who is slow, and was so a round ago."""
        sure = slow & (self.slow | (to_go > 1.5 * self.least))
        direct = sure & (to_go > self.newton_from) & np.isfinite(to_go) & ~self.banned
        mixed = sure & (to_go > self.costs.mixing_from)
        # Earlier where the plain rate is now below what the last trial achieved.
        mixed &= (self.until <= book.k) | (~direct & (self.start[2] < book.rate()))
        if self.newton_from <= self.costs.mixing_from:
            mixed &= ~direct
        else:
            direct &= ~mixed
        new = direct | mixed
        self.mode = np.where(direct, DIRECT, np.where(mixed, MIXED, self.mode))
        self.counts[DIRECT] += int(np.count_nonzero(direct))
        self.counts[MIXED] += int(np.count_nonzero(mixed & (self.until == 0)))
        now = np.stack([np.full(len(new), float(book.k)), np.log(book.now[0]), book.rate()])
        self.start = np.where(new, now, self.start)
        if direct.any():  # as many as cost two fifths of the plain steps to go
            worth = np.minimum(SURE * to_go / self.newton_from, TRIES).astype(int)
            self.tries = np.where(direct, np.maximum(1, worth), self.tries)
        self.mixing.new = mixed.nonzero()[0]

    def __call__(self, y: Any, y_image: Any) -> Any:
        """The next y of all at hand."""
        xp, following = self.problem.xp, self.mixing(y, y_image)
        direct = np.flatnonzero(self.mode == DIRECT)
        if following is y_image and not self.problem.in_place:
            following = xp.asarray(y_image, copy=True)
        if len(direct):
            own, image = take_rows(xp, y, direct), take_rows(xp, y_image, direct)
            F = image - own
            problem: Any = self.book.problem.take(direct)
            slopes = problem.slopes(own)
            next_y = own + newton_direction(problem.matrix.dense(), slopes, F, share=False)
            finite = xp.all(xp.isfinite(next_y), axis=1)
            next_y = xp.where(finite[:, None], next_y, image)
            following = put_rows(xp, following, direct, next_y, np.arange(len(direct)))
        if len(self.back):
            following = put_rows(xp, following, self.back, self.book.y, self.back)
        return following

    def named(self, solution: Solution, name: str) -> Solution:
        """The solution, whose method says what was done: `name` for most samples."""
        if self.mode is None:
            return solution
        parts, m = [name], len(solution.status)
        for kind, word in (DIRECT, "Newton"), (MIXED, f"Anderson({MEMORY})"):
            if self.counts[kind]:
                parts.append(f"{word} for {self.counts[kind]} slow samples of {m}")
        return replace(solution, method=f"Auto({', '.join(parts)})")

    def take(self, rows: np.ndarray) -> None:
        """Forget all but these of the samples at hand."""
        if self.mode is not None:
            self.mode, self.slow = self.mode[rows], self.slow[rows]
            self.banned, self.start = self.banned[rows], self.start[:, rows]
            self.tries, self.until = self.tries[rows], self.until[rows]
            self.mixing.take(rows)
