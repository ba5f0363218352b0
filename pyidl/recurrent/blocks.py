r"""A recurrence solved in blocks of steps, by plain steps in place.

In the order of the run, with h what goes from step to step,

    x_t = image(A x_t + B h_t + z_t),      h_{t+1} = C x_t + D h_t + w_t.

The adjoint of a recurrence is one too: every matrix transposed, B and C exchanged, time
reversed (`bptt.py`).

    forward    image = phi       z_t = B_u U_t + b    w_t = D_u U_t + d      h = H
    backward   image = phi'(Z)*  z_t = 0              w_t = direct part      h = G

A block is *swept* until one measurement of all its rows finds every residual within its
tolerance, so that its steps share what it costs to measure and to keep books. A sweep
goes

    one by one   some rounds of x_t, then h_{t+1}: no row is computed in vain
    jointly      some rounds of all x_t of the block, each one product, then all h: step
                 after step, or by doubling. Fewer calls, and more rounds

How follows from shapes and parameters (`Plan`). Joint sweeps converge whatever the gain
through time, but where h couples the steps tightly they take as many rounds as there
are steps. So they are given up where they have cost as much as steps one by one, which
the rest of the run then takes. Sequences that these do not solve either are left to a
solver of their own (`bptt.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import change_and_size
from pyidl.layers.timeline import Timeline
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.solvers.image import Image
from pyidl.solvers.problem import sizes
from pyidl.typing import Array

__all__ = ["Chain", "Plan", "Swept", "sweep"]

CACHED = 2**15
"""Numbers in the states of a block: more leave the cache, and a round costs twice."""

WIDTH = 64
"""Steps of a joint block where a step has at most `SCAN` numbers, half of it beyond.

More of them save few calls, and take many more rounds.
"""

FEW, SLOW = 256, 30
"""Joint sweeps are faster up to so many numbers in the states of a step.

Up to four times as many where a step needs more rounds than `SLOW`.
"""

SCAN, LARGEST = 64, 100.0
"""Numbers in h of a step up to which it is found by doubling, and of powers of D."""

PASSES = 3
"""Sweeps, one by one, that a block is given."""


@dataclass(frozen=True)
class Chain:
    """The recurrence at the head of this file, for the rows of a stack.

    Forward, h starts at `start`, (m, r), and ``given(rows)`` forms z and w for some
    rows, where they are wanted. Backward, z is zero and w the `direct` derivative of
    all `states`; what a row hands on is multiplied by `keep`, (N, 1), if there is one:
    0 where a gradient is cut.
    """

    A: Matrix
    B: Matrix
    C: Matrix
    D: Matrix | None
    image: Image
    line: Timeline
    start: Array | None = None
    given: Callable[[slice], tuple[Any, Any]] | None = None
    direct: Array | None = None
    keep: Array | None = None

    @property
    def backward(self) -> bool:
        """Whether time is reversed."""
        return self.given is None

    def states(self, rows: int) -> Any:
        """Room for h; where no step leaves anything, it is what is given."""
        m, direct = self.line.m, self.direct
        if direct is None:
            assert self.start is not None
            xp, (_, r) = namespace(self.start), self.start.shape
            h = xp.empty((m + rows, r), dtype=self.start.dtype)
            h[:m, ...] = self.start
            return h
        if self.line.mask is not None:  # sequences end everywhere
            return namespace(direct).asarray(direct, copy=True)
        h = namespace(direct).empty_like(direct)
        h[-m:, ...] = direct[-m:, ...]
        return h


@dataclass(frozen=True)
class Plan:
    """How a chain is swept.

    Attributes
    ----------
    steps : int
        In a block, at most.
    rounds : int
        Of a step, in a sweep one by one.
    joint : int
        Of the whole block, in a joint sweep; 0 for none.
    """

    steps: int
    rounds: int
    joint: int = 0

    @property
    def most(self) -> int:
        """Rounds after which a joint sweep has cost more than one step by step."""
        return 3 * self.rounds

    @property
    def name(self) -> str:
        """For `Solution.method`."""
        joint = self.joint and self.steps > 1
        return f"Picard, {self.steps} steps at once" if joint else "Picard, step by step"

    @classmethod
    def of(cls, m: int, n: int, rounds: float) -> Plan:
        """For m sequences and states of n numbers that need so many rounds."""
        fits = max(1, CACHED // (m * n))
        if rounds == 0:  # A = 0
            return cls(fits, 1)
        joint, K = max(2, round(rounds / 10)), math.ceil(rounds) + 1
        if m * n <= FEW * (4 if rounds > SLOW else 1):
            return cls(min(WIDTH if m * n <= SCAN else WIDTH // 2, fits), K, joint)
        return cls(fits, K)


@dataclass(frozen=True)
class Swept:
    """What a sweep has found.

    Attributes
    ----------
    h : array
        What goes from step to step: `states` of the `Timeline`.
    status, residual, tolerance, n_iter : numpy.ndarray
        A number for each row of the stack. A sequence that is lost has a row that did
        not converge; what follows that is void.
    lost : numpy.ndarray of bool
        Which sequences those are, in the order of the line.
    method : str
        How.
    """

    h: Array
    status: np.ndarray
    residual: np.ndarray
    tolerance: np.ndarray
    n_iter: np.ndarray
    lost: np.ndarray
    method: str


def sweep(chain: Chain, plan: Plan, tol: float, warm: bool, out: Array) -> Swept:
    """Solve all steps, block after block.

    Parameters
    ----------
    chain : Chain
        N rows of n numbers.
    plan : Plan
        How.
    tol : float
        As for `Picard`. Backward it is relative to the largest right-hand side of a
        sequence from its end to the step, but no step is solved worse than to sqrt(tol)
        of its own: cotangents that decay may grow again.
    warm : bool
        Whether a step starts from the x of the one before.
    out : array, shape (N, n)
        Where the pre-activations go, backward x.
    """
    rows, line = out.shape[0], chain.line
    h = chain.states(rows)
    lost, status, n_iter = (
        np.zeros(k, t) for k, t in ((line.m, bool), (rows, np.int8), (rows, np.int32))
    )
    found = Swept(h, status, np.zeros(rows), np.zeros(rows), n_iter, lost, plan.name)
    judge = _Judge(tol, chain.backward, np.zeros(line.m), lost)
    room, last = _Room(chain, plan, out, h.shape[1], warm), None
    with np.errstate(over="ignore", invalid="ignore"):
        for steps in _blocks(line, plan, chain.backward):
            block = _Block(chain, steps, h, room)
            at, limit = block.rows, plan.most
            found.n_iter[at] = rounds = _solve(block, plan, last, judge)
            if rounds > limit:  # h couples the steps too tightly
                plan = replace(plan, joint=0)
            found.residual[at], found.tolerance[at] = judge.residual, judge.allowed
            out[at, ...] = block.x if chain.backward else block.y
            last = block.end() if warm else None
    return found


def _blocks(line: Timeline, plan: Plan, backward: bool) -> list[slice]:
    """The steps of every block, in the order of the run.

    A joint sweep needs the same samples in all of them.
    """
    counts = line.counts
    ends: list[int] = (np.flatnonzero(np.diff(counts)) + 1).tolist() if plan.joint else []
    pieces = [range(i, j) for i, j in pairwise([0, *ends, len(counts)])]
    blocks = [slice(i, min(i + plan.steps, p.stop)) for p in pieces for i in p[:: plan.steps]]
    return blocks[::-1] if backward else blocks


def _solve(block: _Block, plan: Plan, last: Any, judge: _Judge) -> int:
    """Sweep one block until it passes; return the rounds of each of its steps."""
    jointly, rounds, passes = plan.joint > 0 and len(block.here) > 1, 0, 0
    if jointly:
        block.guess(last)
    while True:
        if jointly:
            block.jointly(plan.joint)
            rounds += plan.joint
        else:
            few = judge.rounds(block, plan.rounds) if passes == 0 else max(2, plan.rounds // 3)
            block.one_by_one(few, last, own=passes > 0)
            rounds, passes = rounds + few, passes + 1
        if judge.passes(block, jointly, final=passes == PASSES):
            return rounds
        jointly = jointly and rounds < plan.most
        if jointly:
            block.x[...] = block.fx  # the measurement was a round, too
            rounds += 1


@dataclass
class _Judge:
    """Which rows are within their tolerance, and which sequences are given up."""

    tol: float
    backward: bool
    largest: np.ndarray
    lost: np.ndarray
    residual: Any = None
    allowed: Any = None

    def rounds(self, block: _Block, most: int) -> int:
        """How many rounds a block needs, one by one.

        `most` of them gain 1 / tol. Backward, where the right-hand side of the first
        step has fallen to a share of the largest, fewer do, down to half of them.
        """
        if not self.backward:
            return most
        size = block.first_reference()
        largest = self.largest[: len(size)]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(size > 0, size / largest, 0.0)
        share = min(1.0, max(float(np.max(shares)), math.sqrt(self.tol)))
        return min(most, 1 + math.ceil(most * (1.0 - math.log(share) / math.log(self.tol))))

    def passes(self, block: _Block, jointly: bool, final: bool) -> bool:
        """Measure; forward ``tol (1 + max|x|)``, backward as `sweep` says."""
        block.step()
        if jointly and block.room.on_host and self._is_far(block):
            return False
        samples = block.samples
        self.residual, size = change_and_size(namespace(block.x), block.fx, block.x)
        if self.backward:
            own = block.reference()
            limits, largest = self._so_far(block, own)
            limits = np.minimum(self.tol * limits, math.sqrt(self.tol) * own)
            self.allowed = np.maximum(limits, self._resolved(block.x, size))
        else:
            self.allowed = self.tol * (1.0 + size)
        missing = ~(self.residual <= self.allowed)
        if missing.any():
            missing &= ~self.lost[samples]
        if missing.any() and not final:
            return False
        self.lost[samples[missing]] = True
        if self.backward:
            self.largest = largest
        return True

    def _so_far(self, block: _Block, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest right-hand side of a sequence up to each row, and to the last."""
        largest, first = self.largest.copy(), block.here[0]
        w, m = len(block.here), first.stop - first.start
        if w * m == len(own):  # samples only join in the run: so all take part in every step
            table = np.concatenate([largest[None, :m], own.reshape(w, m)[::-1]])
            table = np.maximum.accumulate(table)[1:]
            largest[:m] = table[-1]
            return table[::-1].ravel(), largest
        size = own.copy()
        for here in block.here:
            now = largest[: here.stop - here.start]
            np.maximum(now, size[here], out=now)
            size[here] = now
        return size, largest

    def _is_far(self, block: _Block) -> bool:
        """Whether the largest residual of all rows is beyond what any row allows.

        Nothing need be known of single rows then.
        """
        if self.lost.any():
            return False
        residual = np.abs(block.fx - block.x).max()
        size = max(block.x.max(), -block.x.min())
        if not self.backward:
            return bool(residual > self.tol * (1.0 + size))
        block.phi(block.c, out=block.fy)
        own = max(block.fy.max(), -block.fy.min())
        limit = min(self.tol * max(self.largest.max(), own), math.sqrt(self.tol) * own)
        return bool(residual > max(limit, self._resolved(block.x, size)))

    def _resolved(self, like: Any, size: Any) -> Any:
        """What the dtype can resolve of numbers of this size, as for any adjoint."""
        limits = namespace(like).finfo(like.dtype)
        return 8.0 * float(limits.eps) * size + 8.0 * float(limits.smallest_normal)


class _Room:
    """What all blocks share: the products, the image, and the work space."""

    def __init__(self, chain: Chain, plan: Plan, like: Any, r: int, warm: bool) -> None:
        xp, line, n = namespace(like), chain.line, like.shape[1]
        rows = min(plan.steps * int(line.counts[0]), like.shape[0])
        self.A, self.B, self.C = (_product(M) for M in (chain.A, chain.B, chain.C))
        self.D = None if chain.D is None else _product(chain.D)
        self.x, self.y, self.c, self.fx, self.fy = xp.empty((5, rows, n), dtype=like.dtype)
        self.s = xp.empty((rows, r), dtype=like.dtype)
        self.samples, self.warm, self.on_host = line.samples, warm, xp is np
        self.powers = _powers(chain, plan) if plan.joint and xp is np else []

    def ready(self, image: Image, like: Any) -> Callable[..., Any]:
        """The image for arrays of this shape, with as few calls as may be."""
        return image.ready(like) if self.on_host else image


def _powers(chain: Chain, plan: Plan) -> list[np.ndarray]:
    """``D^T, (D^2)^T, (D^4)^T, ...``; none where they grow or steps are cut apart."""
    if chain.D is None or chain.keep is not None:
        return []
    powers: list[np.ndarray] = [chain.D.T.dense()]
    while 2 ** len(powers) < plan.steps:
        powers.append(powers[-1] @ powers[-1])
    return powers if np.abs(powers[-1]).max() <= LARGEST else []


def _product(matrix: Matrix) -> Callable[[Any, Any], Any]:
    """``(x, out) -> x M^T``, in as few calls as may be."""
    if type(matrix) is Full and matrix.At is not None:
        Mt: Any = matrix.At
        return lambda x, out: x.dot(Mt, out)  # as a method in two thirds of the time
    return matrix.rows


class _Block:
    """Some steps, and views of what belongs to them, in the order of the run."""

    def __init__(self, chain: Chain, steps: slice, h: Any, room: _Room) -> None:
        chosen = chain.line.steps[steps]
        self.chain, self.room, self.h = chain, room, h
        start, stop = chosen[0][0].start, chosen[-1][0].stop
        self.rows, rows = slice(start, stop), slice(0, stop - start)
        self.samples = room.samples[self.rows]
        self.x, self.y, self.c, self.fx, self.fy, self.s = (
            a[rows, ...] for a in (room.x, room.y, room.c, room.fx, room.fy, room.s)
        )
        self.z: Any = None
        self.w: Any = None
        if chain.given is not None:
            self.z, self.w = chain.given(self.rows)
        self.image = chain.image.take(self.rows)
        self.phi = room.ready(self.image, self.x)
        self.at, self.come, self.go = zip(*chosen, strict=True)
        if chain.backward:
            self.at, self.come, self.go = self.at[::-1], self.go[::-1], self.come[::-1]
        self.here = [slice(i.start - start, i.stop - start) for i in self.at]
        self.views = [
            (h[i, ...], h[j, ...], self.s[k, ...])
            for i, j, k in zip(self.come, self.go, self.here, strict=True)
        ]
        self.entry, self.exit = _pieces(self.here, self.come), _pieces(self.here, self.go)

    def _own(self, here: slice, to: slice) -> Any:
        """The w of some rows, which are those of h that they leave."""
        if self.w is not None:
            return self.w[here, ...]
        assert self.chain.direct is not None
        return self.chain.direct[to, ...]

    def end(self) -> Any:
        """The x of the last step of the run, a copy."""
        return namespace(self.x).asarray(self.x[self.here[-1], ...], copy=True)

    def one_by_one(self, rounds: int, last: Any, own: bool) -> None:
        """Step after step: ``c = B h + z``, rounds of x, then the next h."""
        A, B, C, D = self.room.A, self.room.B, self.room.C, self.room.D
        chain, size = self.chain, 0
        for here, at, to, (before, after, s) in zip(
            self.here, self.at, self.go, self.views, strict=True
        ):
            x, y, c = self.x[here, ...], self.y[here, ...], self.c[here, ...]
            if chain.backward or size != x.shape[0]:
                phi, size = self.room.ready(self.image.take(here), x), x.shape[0]
            B(before, c)
            if self.z is not None:
                c += self.z[here, ...]
            start = x if own else last
            if start is None:
                y[...] = c
            else:
                A(start[:size, ...], y)
                y += c
            phi(y, out=x)
            for _ in repeat(None, rounds - 1):
                A(x, y)
                y += c
                phi(y, out=x)
            C(x, s)
            if D is None:
                after[...] = s
            else:
                D(before, after)
                after += s
            if chain.keep is not None:
                after *= chain.keep[at, ...]
            after += self._own(here, to)
            last = x if self.room.warm else None

    def guess(self, last: Any) -> None:
        """Everywhere the x of the step before the block, or zero; then h and c."""
        if last is None:
            self.x[...] = 0.0
        else:
            m, n = self.views[0][2].shape[0], self.x.shape[1]
            namespace(last).reshape(self.x, (-1, m, n))[...] = last[:m, ...]
        self._hand_on()

    def jointly(self, rounds: int) -> None:
        """Rounds of all x at fixed h, then h of all steps, and c."""
        A, x, y, c, phi = self.room.A, self.x, self.y, self.c, self.phi
        for _ in repeat(None, rounds):
            A(x, y)
            y += c
            phi(y, out=x)
        self._hand_on()

    def _hand_on(self) -> None:
        """``h_{t+1} = C x_t + w_t + D h_t``, step after step, and ``c = B h + z``."""
        chain, h, s, D = self.chain, self.h, self.s, self.room.D
        keep = None if chain.keep is None else chain.keep[self.rows, ...]
        self.room.C(self.x, s)
        if keep is not None:
            s *= keep
        for here, to in self.exit:
            s[here, ...] += self._own(here, to)
            if D is None:
                h[to, ...] = s[here, ...]
        if D is not None:
            self._scan(D, keep)
        for here, come in self.entry:
            self.room.B(h[come, ...], self.c[here, ...])
        if self.z is not None:
            self.c += self.z

    def _scan(self, D: Any, keep: Any) -> None:
        """``h_{t+1} = s_t + D h_t`` for all steps, one after another or by doubling.

        Sums over k steps give those over 2 k, ``h_t = sum_{i<k} D^i s_{t-i}`` and ``D^k
        h_{t-k}``: few calls, and many more products.
        """
        m = self.views[0][2].shape[0]
        if self.room.powers and len(self.exit) == 1 and m * self.s.shape[1] <= SCAN:
            before, after, _ = self.views[0]
            h = self.h[self.exit[0][1], ...]
            h[...] = self.s
            after += before.dot(self.room.powers[0])
            for j, power in enumerate(self.room.powers):
                if (k := m << j) >= h.shape[0]:
                    break
                later, earlier = (h[:-k], h[k:]) if self.chain.backward else (h[k:], h[:-k])
                later += earlier.dot(power)
            return
        for here, (before, after, own) in zip(self.here, self.views, strict=True):
            D(before, after)
            if keep is not None:
                after *= keep[here, ...]
            after += own

    def step(self) -> None:
        """``image(A x + c)`` of all rows, beside x."""
        self.room.A(self.x, self.fy)
        self.fy += self.c
        self.phi(self.fy, out=self.fx)

    def first_reference(self) -> np.ndarray:
        """``max|image(B h)|`` of the first step of the run."""
        here = self.here[0]
        c, x = self.c[here, ...], self.fx[here, ...]
        self.room.B(self.views[0][0], c)
        self.image.take(here)(c, x)
        return sizes(x)

    def reference(self) -> np.ndarray:
        """``max|image(c)|``: the right-hand sides of an adjoint."""
        self.phi(self.c, out=self.fy)
        return sizes(self.fy)


def _pieces(here: Sequence[slice], there: Sequence[slice]) -> list[tuple[slice, slice]]:
    """Rows of a block and of h, side by side, in as few pieces as may be.

    Rows that steps meet are the first ones of what the step before has left, so the
    first step may stand apart.
    """
    if here[0].start > here[-1].start:
        here, there = here[::-1], there[::-1]
    ends = slice(here[0].start, here[-1].stop), slice(there[0].start, there[-1].stop)
    if len(here) == 1 or there[0].stop == there[1].start:
        return [ends]
    return [
        (here[0], there[0]),
        (slice(here[1].start, ends[0].stop), slice(there[1].start, ends[1].stop)),
    ]
