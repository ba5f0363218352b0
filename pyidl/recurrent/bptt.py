r"""One recurrence through time, and its derivative.

Back-propagation through time, written once. Z_t is the pre-activation of step t:

    X_t = phi(Z_t),    Z_t = A X_t + B_u U_t + B_h H_{t-1} + b
    H_t = C X_t + D_u U_t + D_h H_{t-1} + d

Let G_t be the total derivative of a loss with respect to H_t, and V_t that with respect
to Z_t. H_t is seen by the loss directly and by the next step, X_t by H_t and, through
A, by itself:

    V_t = phi'(Z_t) * (V_t A + G_t C)
    G_{t-1} = (direct part) + V_t B_h + G_t D_h

which is a recurrence of the same form, against time, with every matrix transposed. With
every V_t and G_t known, all that is left is linear, so that one product serves all time
steps:

    dA = sum_t V_t^T X_t,   dB = sum_t V_t^T [U_t, H_{t-1}],   db = sum_t V_t,
    dC = sum_t G_t^T X_t,   dD = sum_t G_t^T [U_t, H_{t-1}],   dd = sum_t G_t,
    dU_t = V_t B_u + G_t D_u.

What is kept for each time step: Z_t (X_t is phi of it) and H_t; no iterate of any
solver. Both recurrences are solved in blocks of steps (`blocks.py`) where plain steps
do, and one equilibrium after another where they do not, or another solver is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import astype, from_host, namespace, writes_in_place
from pyidl.arrays.batch import max_abs, put_rows, take_rows, total
from pyidl.equilibrium import solved
from pyidl.errors import ConvergenceError
from pyidl.layers.timeline import Timeline
from pyidl.matrices.base import Matrix
from pyidl.matrices.tiled import Tiled
from pyidl.recurrent.blocks import Chain, Plan, Swept, sweep
from pyidl.recurrent.step import Slopes, Step
from pyidl.solvers import Auto, Picard, Solution, Solver
from pyidl.solvers.image import Phi
from pyidl.solvers.loop import resolve_tol
from pyidl.solvers.solution import OnFail, settle
from pyidl.typing import Array, Grads, Namespace
from pyidl.wellposed.certificate import Certificate

__all__ = ["Backward", "Forward", "Traversal", "back", "gradients", "unroll"]

MANY = 400
"""Rounds of a step beyond which it is left to its solver, which may accelerate."""


class _Book:
    """How the solves of all steps ended, row by row of a stack; on the host."""

    def __init__(self, rows: int) -> None:
        self.status, self.n_iter = np.zeros(rows, np.int8), np.zeros(rows, np.int32)
        self.residual, self.tolerance = np.zeros(rows), np.zeros(rows)
        self.method = ""

    def enter(self, at: Any, found: Solution | Swept | _Book) -> None:
        """What is known of some rows."""
        self.method = self.method or found.method
        for name in ("status", "n_iter", "residual", "tolerance"):
            getattr(self, name)[at] = getattr(found, name)

    def solution(self, value: Any, pre: Any, at: Any = slice(None)) -> Solution:
        """The solves of some rows, with what they found."""
        status, n_iter, residual = self.status[at], self.n_iter[at], self.residual[at]
        return Solution(value, pre, status, n_iter, residual, self.tolerance[at], self.method)


@dataclass(frozen=True)
class Traversal:
    """How a recurrence is gone through, in either direction.

    Attributes
    ----------
    solver : Solver
        Of a step.
    warm_start : bool
        Whether a step starts from the one before it.
    on_fail : {"raise", "warn", "ignore"}
        What happens to samples that fail.
    certificate : callable, optional
        What is quoted then.
    """

    solver: Solver
    warm_start: bool
    on_fail: OnFail
    certificate: Callable[[], Certificate] | None = None

    def plan(self, step: Step, like: Any, m: int) -> tuple[Plan, float] | None:
        """How blocks of steps are swept, and to which tolerance.

        None where plain steps are not enough, or another solver is asked for.
        """
        xp, solver = namespace(like), self.solver
        if not (isinstance(solver, Auto | Picard) and type(solver) in (Auto, Picard)):
            return None  # a subclass may do anything
        damped = isinstance(solver, Picard) and solver.damping > 0
        if damped or not (writes_in_place(xp) and step.factor < 1.0):
            return None
        tol = resolve_tol(solver.tol, like, xp)
        rounds = math.log(tol) / math.log(step.factor) if step.factor > 0 else 0.0
        plan = Plan.of(m, step.width[0], rounds)
        return (plan, tol) if rounds <= MANY and plan.most <= solver.max_iter else None


@dataclass(frozen=True)
class Forward:
    """A forward pass.

    H, the `states` of the line; the pre-activations Z, stacked; how the solves went.
    """

    line: Timeline
    H: Array
    Z: Array
    book: _Book

    def solution(self, activation: Activation) -> Solution:
        """All solves as one, a row for each sample and step, in the order of time."""
        at = self.line.in_time(np.arange(len(self.book.status)))
        Z = take_rows(namespace(self.Z), self.Z, at)
        return self.book.solution(activation(Z), Z, at)


def unroll(step: Step, line: Timeline, U: Array, h0: Array | None, how: Traversal) -> Forward:
    """Go through the steps of U, (m, T, p).

        X_t = phi(A X_t + B_h H_{t-1} + z_t),    z_t = B_u U_t + b
        H_t = C X_t + D_h H_{t-1} + w_t,         w_t = D_u U_t + d

    H_0 is h0, (m, r), or zero.
    """
    xp, u, names = namespace(U), line.stack(U), _Names(line, line.order)
    m, (n, r) = line.m, step.width
    start = xp.zeros((m, r), dtype=u.dtype) if h0 is None else line.sorted(h0)
    planned = how.plan(step, u, m)
    if planned is None:
        Z, H, book = _one_after_another(step, line, u, start, how, names)
    else:

        def given(rows: slice) -> tuple[Any, Any]:
            return step.before(u[rows, ...]), step.beside(u[rows, ...])

        def again(lost: _Lost) -> tuple[Any, Any, _Book]:
            own, h = take_rows(xp, u, lost.rows), take_rows(xp, start, lost.places)
            return _one_after_another(step, lost.line, own, h, how, names.of(lost))

        image = Phi(step.activation)
        chain = Chain(step.A, step.bh, step.C, step.dh, image, line, start, given)
        Z = xp.empty((u.shape[0], n), dtype=u.dtype)
        swept = sweep(chain, *planned, how.warm_start, out=Z)
        Z, H, book = _mended(line, swept, Z, again)
    settle(book.solution(None, None), how.on_fail, adjoint=False, certificate=how.certificate)
    return Forward(line, H, Z, book)


def _one_after_another(
    step: Step, line: Timeline, u: Any, start: Any, how: Traversal, names: _Names
) -> tuple[Any, Any, _Book]:
    """``(Z, H, book)`` by a solve for each step; Z takes the place of z."""
    xp, Z, W, last = namespace(u), step.before(u), step.beside(u), None
    H, book = xp.concat([start, W]), _Book(u.shape[0])
    for k, (at, before, after) in enumerate(line.steps):
        h, x0 = H[before, ...], None if last is None else last[: at.stop - at.start, ...]
        with names.of_step(k):
            problem, on_fail = step.cell(Z[at, ...]).bind(h), _inner(how.on_fail)
            found = solved(problem, how.solver, x0, on_fail=on_fail, certificate=how.certificate)
        Z[at, ...] = found.pre
        H[after, ...] = step.after(found.value, W[at, ...], h)
        book.enter(at, found)
        last = found.value if how.warm_start else None
    return Z, H, book


@dataclass(frozen=True)
class Backward:
    """What a backward pass has found.

    V and G of the steps from `first` on, stacked, the derivative of H_0, and how the
    solves went.
    """

    first: int
    V: Array
    G: Array
    dh0: Array
    book: _Book

    def solution(self, line: Timeline) -> Solution:
        """All solves as one, in the order of time if no step was left out."""
        if self.first:
            return self.book.solution(self.V, self.V)
        at = line.in_time(np.arange(len(self.book.status)))
        V = take_rows(namespace(self.V), self.V, at)
        return self.book.solution(V, V, at)


def back(
    step: Step,
    path: Forward,
    direct: Array,
    how: Traversal,
    truncate: int | None,
    every: bool,
) -> Backward:
    """Go back through the steps, and find V_t and G_t.

        V_t = phi'(Z_t) * (V_t A + G_t C)
        G_{t-1} = (direct part) + V_t B_h + G_t D_h

    Parameters
    ----------
    direct : array, shape (m + N, r)
        The direct derivative of a loss with respect to `states`.
    truncate : int, optional
        What is handed back is cut every so many steps of a sample, from its end.
    every : bool
        Whether steps before the last ones have a direct derivative. Without it, what
        lies before a cut of all samples is not visited.
    """
    line, xp, keep, first = path.line, namespace(path.Z), None, 0
    names = _Names(line, line.order)
    Z, w = path.Z, direct
    if truncate is not None and (cuts := line.cuts(truncate)).any():
        keep = astype(xp, from_host(xp, ~cuts[:, None]), direct.dtype)
        first = 0 if every else line.since(truncate)
    if first:
        at, before, _ = line.steps[first]
        assert keep is not None
        Z, w, keep = Z[at.start :, ...], w[before.start :, ...], keep[at.start :, ...]
        line, names = line.tail(first), replace(names, first=first)
    planned = how.plan(step, Z, line.m)
    if planned is None:
        V, G, book = _back_one_after_another(step, line, Z, w, keep, how, names)
    else:
        A, B, C, D = step.A.T, step.C.T, step.bh.T, step.dh and step.dh.T
        image = Slopes(step.activation, Z)
        chain = Chain(A, B, C, D, image, line, direct=w, keep=keep)
        V = xp.empty_like(Z)
        swept = sweep(chain, *planned, warm=False, out=V)

        def again(lost: _Lost) -> tuple[Any, Any, _Book]:
            own, of_h = take_rows(xp, Z, lost.rows), take_rows(xp, w, lost.states)
            cut = None if keep is None else take_rows(xp, keep, lost.rows)
            return _back_one_after_another(step, lost.line, own, of_h, cut, how, names.of(lost))

        V, G, book = _mended(line, swept, V, again)
    settle(book.solution(None, None), how.on_fail, adjoint=True)
    dh0 = path.line.unsorted(G[: line.m, ...])
    return Backward(first, V, G[line.m :, ...], dh0, book)


def _back_one_after_another(
    step: Step, line: Timeline, Z: Any, w: Any, keep: Any, how: Traversal, names: _Names
) -> tuple[Any, Any, _Book]:
    """``(V, G, book)`` by a solve for each step, from the last to the first."""
    xp, last, book = namespace(w), None, _Book(Z.shape[0])
    V, G = xp.empty_like(Z), xp.asarray(w, copy=True)
    for k, (at, before, after) in reversed(list(enumerate(line.steps))):
        g = G[after, ...]
        size = max_abs(xp, g)
        with names.of_step(k):
            found = step.adjoint(Z[at, ...], g, how.solver, _scaled(xp, last, size))
            v = settle(found, _inner(how.on_fail), adjoint=True).value
        handed = step.handed_back(v, g)
        G[before, ...] = w[before, ...] + (handed if keep is None else keep[at, ...] * handed)
        V[at, ...] = v
        book.enter(at, found)
        last = (v, size) if how.warm_start else None
    return V, G, book


def gradients(
    step: Step, path: Forward, U: Array, found: Backward, inputs: bool
) -> tuple[Any, Grads]:
    """``(dU, grads)``.

    The products at the head of this file, over all steps at once.
    """
    line, xp = path.line, namespace(path.Z)
    start, V, G = int(line.ends[found.first]), found.V, found.G
    u, h = line.stack(U)[start:, ...], line.met(path.H)[start:, ...]
    X = step.activation(path.Z[start:, ...])
    _, grads = step.cell(step.b).grads(X, h, V, inputs=False)  # "B" is that of B_h
    grads["B"] = _confined(step.B, xp.concat([step.bu.grads("u", V, u)["u"], grads["B"]], axis=1))
    grads |= step.C.grads("C", G, X)
    if step.D is not None and step.du is not None:
        of_u = step.du.grads("u", G, u)["u"]
        both = of_u if step.dh is None else xp.concat([of_u, step.dh.grads("h", G, h)["h"]], axis=1)
        grads["D"] = _confined(step.D, both)
    if step.d is not None:
        grads["d"] = total(G)
    if not inputs:
        return None, grads
    du = step.bu.T.rows(V)
    if step.du is not None:
        du += step.du.T.rows(G)
    if start:
        du = xp.concat([xp.zeros((start, du.shape[1]), dtype=du.dtype), du])
    return line.unstack(du), grads


def _confined(matrix: Matrix, gradient: Any) -> Any:
    """The gradient, zero outside a prescribed pattern."""
    mask = matrix.mask if isinstance(matrix, Tiled) else None
    return gradient if mask is None else gradient * mask


def _inner(on_fail: OnFail) -> OnFail:
    """A failure is raised at its step; warnings are given once, for all steps."""
    return "raise" if on_fail == "raise" else "ignore"


@dataclass(frozen=True)
class _Lost:
    """Sequences that blocks of steps have not solved.

    Their places in the order of the whole, their line, and their rows in the stack and
    in `states` of the whole.
    """

    places: np.ndarray
    line: Timeline
    rows: np.ndarray
    states: np.ndarray


def _mended(
    line: Timeline, swept: Swept, out: Any, again: Callable[[_Lost], tuple[Any, Any, _Book]]
) -> tuple[Any, Any, _Book]:
    """What a sweep has found, with the lost sequences solved `again`."""
    h, book = swept.h, _Book(out.shape[0])
    book.enter(slice(None), swept)
    if swept.lost.any():
        xp, samples = namespace(h), line.order[swept.lost]
        rows = line.rows_of(samples)
        places = np.flatnonzero(swept.lost)
        states = np.concatenate([places, line.m + rows])
        part, of_h, of_book = again(_Lost(places, line.of(samples), rows, states))
        out = put_rows(xp, out, rows, part, np.arange(len(rows)))
        h = put_rows(xp, h, states, of_h, np.arange(len(states)))
        book.enter(rows, of_book)
    return out, h, book


@dataclass(frozen=True)
class _Names:
    """What the samples of a stack, and its steps, are called by who gave them."""

    line: Timeline
    samples: np.ndarray
    first: int = 0

    def of(self, lost: _Lost) -> _Names:
        """Of some of the samples."""
        return replace(self, samples=self.samples[lost.places])

    @contextmanager
    def of_step(self, k: int) -> Iterator[None]:
        """An error of step k names the step, and which samples of the batch failed."""
        try:
            yield
        except ConvergenceError as error:
            failed = self.samples[: len(error.converged)][~error.converged]
            converged = np.ones(self.line.m, bool)
            converged[failed] = False
            t = self.line.step(failed[0], k + self.first)
            raise type(error)(f"at time step {t}, {error}", converged) from None


def _scaled(xp: Namespace, last: tuple[Any, Any] | None, size: Any) -> Any:
    """Where the adjoint solve of a step starts: from v of the step after, scaled.

    v scales with its right-hand side, so it is brought from the size of that to this
    size. (Where the new right-hand side is zero, the start must be zero too.) What is
    less than a thousandth of its new size says nothing.
    """
    if last is None:
        return None
    v, before = last
    new = size.shape[0] - before.shape[0]  # samples that end here
    if new:
        v = xp.concat([v, xp.zeros((new, v.shape[1]), dtype=v.dtype)])
        before = xp.concat([before, xp.zeros((new,), dtype=v.dtype)])
    known = 1e3 * before > size
    return v * xp.where(known, size / xp.where(known, before, 1.0), 0.0)[:, None]
