r"""One recurrence through time, and its derivative.

Back-propagation through time, written once.

    X_t = phi(A X_t + B_u U_t + B_h H_{t-1} + b)            Z_t, the pre-activation, is what phi is applied to
    H_t = C X_t + D_u U_t + D_h H_{t-1} + d

Let G_t be the total derivative of a loss with respect to H_t, and V_t that with respect
to Z_t. H_t is seen by the loss directly and by the next step, X_t by H_t and, through
A, by itself:

    V_t = phi'(Z_t) * (V_t A + G_t C)                       one adjoint solve for each time step
    G_{t-1} = (direct part) + V_t B_h + G_t D_h

and with every V_t and G_t known, all that is left is linear, so that one product serves
all time steps:

    dA = sum_t V_t^T X_t,  dB = sum_t V_t^T [U_t, H_{t-1}],  dC = sum_t G_t^T X_t,  dD = sum_t G_t^T [U_t, H_{t-1}],
    db = sum_t V_t,  dd = sum_t G_t,  dU_t = V_t B_u + G_t D_u.

What is kept for each time step: Z_t (X_t is phi of it) and H_t; no iterate of any
solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import astype, from_host, namespace
from pyidl.arrays.batch import max_abs, put_rows, take_rows
from pyidl.cells import AffineCell
from pyidl.equilibrium import EquilibriumPullback, settled
from pyidl.errors import ConvergenceError
from pyidl.layers.timeline import Timeline
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.matrices.tiled import Tiled
from pyidl.solvers import Solution, Solver
from pyidl.solvers.solution import OnFail, settle
from pyidl.typing import Array, Grads, Namespace
from pyidl.wellposed.certificate import Certificate

__all__ = ["Backward", "Path", "Step", "back", "gradients", "unroll"]


@dataclass(frozen=True)
class Step:
    """The parameters of one step. B acts on ``[U_t, H_{t-1}]``.

    D does too, or on U_t alone, or is not there.
    """

    A: Matrix
    B: Matrix
    C: Matrix
    D: Matrix | None
    E: Array
    b: Array | None
    d: Array | None
    e: Array | None
    activation: Activation
    input_dim: int
    bu: Full
    bh: Full
    du: Full | None
    dh: Full | None

    @classmethod
    def of(cls, maps: Any, params: Any, activation: Activation, input_dim: int) -> Step:
        """From the maps A, B, C, D and the other parameters of a layer."""
        p, B, D = input_dim, params["B"], params.get("D")
        return cls(
            A=maps["A"],
            B=maps["B"],
            C=maps["C"],
            D=maps.get("D"),
            E=params["E"],
            b=params.get("b"),
            d=params.get("d"),
            e=params.get("e"),
            activation=activation,
            input_dim=p,
            bu=Full(B[:, :p]),
            bh=Full(B[:, p:]),
            du=None if D is None else Full(D[:, :p]),
            dh=None if D is None or D.shape[1] == p else Full(D[:, p:]),
        )

    @property
    def width(self) -> tuple[int, int]:
        """Those of the state X and of H."""
        n, r = self.bh.A.shape
        return n, r

    def before(self, U: Any) -> Any:
        """``B_u U + b`` for all rows of a stack at once: what does not wait for H."""
        Z = self.bu.rows(U)
        if self.b is not None:
            Z += self.b
        return Z

    def cell(self, Z: Any) -> AffineCell:
        """``x = phi(A x + B_h h + z)``.

        The cell of a step, whose bias z differs from row to row.
        """
        return AffineCell(self.A, self.bh, Z, self.activation)

    def after(self, X: Any, u: Any, h: Any) -> Any:
        """``C X + D_u u + D_h h + d``."""
        H = self.C.rows(X)
        if self.du is not None:
            H += self.du.rows(u)
        if self.dh is not None:
            H += self.dh.rows(h)
        if self.d is not None:
            H += self.d
        return H

    def read(self, H: Any) -> Any:
        """``H E^T + e``."""
        Y = H @ self.E.T
        if self.e is not None:
            Y += self.e
        return Y


@dataclass
class _Book:
    """How the solves of all steps ended, row by row of the stack; on the host."""

    status: np.ndarray
    n_iter: np.ndarray
    residual: np.ndarray
    tolerance: np.ndarray
    method: str = ""

    @classmethod
    def empty(cls, rows: int) -> _Book:
        return cls(
            np.zeros(rows, np.int8), np.zeros(rows, np.int32), np.zeros(rows), np.zeros(rows)
        )

    def enter(self, at: slice, solution: Solution) -> None:
        self.method = self.method or solution.method
        for name in ("status", "n_iter", "residual", "tolerance"):
            getattr(self, name)[at] = getattr(solution, name)

    def solution(self, value: Any, pre: Any) -> Solution:
        return Solution(
            value, pre, self.status, self.n_iter, self.residual, self.tolerance, self.method
        )


@dataclass(frozen=True)
class Path:
    """A forward pass: H of all steps, H_0 first, (T + 1, m, r).

    The pre-activations Z, stacked; and how the solves went.
    """

    line: Timeline
    H: Array
    Z: Array
    book: _Book

    def step(self, at: slice) -> Solution:
        """One step, as far as its adjoint needs it: where the slopes are taken."""
        Z, book = self.Z[at, ...], self.book
        return Solution(
            Z,
            Z,
            book.status[at],
            book.n_iter[at],
            book.residual[at],
            book.tolerance[at],
            book.method,
        )

    def solution(self, activation: Activation) -> Solution:
        """All solves as one, a row for each sample and step."""
        return self.book.solution(activation(self.Z), self.Z)


def unroll(
    step: Step,
    line: Timeline,
    U: Array,
    h0: Array | None,
    *,
    forward: Solver | None,
    warm_start: bool,
    on_fail: OnFail,
    certificate: Callable[[], Certificate],
) -> Path:
    """Go through the T steps of U, (m, T, p).

    A step starts from the states of the one before, where `warm_start` says so.
    """
    xp, (n, width) = namespace(U), step.width
    u = line.stack(U)
    Z = step.before(u)
    H = xp.empty((line.T + 1, line.m, width), dtype=Z.dtype)
    H[0, ...] = 0.0 if h0 is None else h0
    book, last = _Book.empty(Z.shape[0]), None
    for t in range(line.T):
        at, rows, before = line.at(t), line.rows(t), H[t, ...]
        if at.start == at.stop:  # no sample takes part
            H[t + 1, ...] = before
            continue
        h = before if rows is None else take_rows(xp, before, rows)
        x0 = last if last is None or rows is None else take_rows(xp, last, rows)
        with _named(t, rows, line.m):
            X, pull = settled(
                step.cell(Z[at, ...]), h, forward=forward, x0=x0, on_fail=_inner(on_fail), certificate=certificate
            )  # fmt: skip
        Z[at, ...] = pull.forward.pre  # what B_u U_t + b has been used for; the place is free
        book.enter(at, pull.forward)
        new = step.after(X, u[at, ...], h)
        H[t + 1, ...] = new if rows is None else _placed(xp, before, rows, new)
        if warm_start:
            last = (
                X
                if rows is None
                else _placed(
                    xp, xp.zeros((line.m, n), dtype=Z.dtype) if last is None else last, rows, X
                )
            )
    path = Path(line, H, Z, book)
    settle(book.solution(None, None), on_fail, adjoint=False, certificate=certificate)
    return path


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


def back(
    step: Step, path: Path, direct: Array, *, adjoint: Solver, warm_start: bool, truncate: int | None, on_fail: OnFail
) -> Backward:  # fmt: skip
    """Go back through the steps, from the direct derivative of a loss with respect to every H_t, (T, m, r), or to H_T alone, (m, r)."""
    line, xp, (n, width) = path.line, namespace(path.Z), step.width
    every = direct.ndim == 3
    first = 0 if truncate is None or every else line.since(truncate)
    cuts = None if truncate is None else line.cuts(truncate)
    start, rows_in_all = int(line.ends[first]), int(line.ends[-1])
    V, G = (xp.empty((rows_in_all - start, k), dtype=direct.dtype) for k in (n, width))
    book = _Book.empty(rows_in_all - start)
    last: Any = None  # v and the size of its right-hand side, one step later in time
    g = direct[line.T - 1, ...] if every else direct
    for t in range(line.T - 1, first - 1, -1):
        at, rows = line.at(t), line.rows(t)
        here = slice(at.start - start, at.stop - start)
        if at.start == at.stop:  # no sample takes part: H_t = H_{t-1}
            g = g + direct[t - 1, ...] if every and t > 0 else g
            continue
        # H_t = C X_t + D_u U_t + D_h H_{t-1} + d
        own = g if rows is None else take_rows(xp, g, rows)
        dX = step.C.T.rows(own)
        # X_t = phi(Z_t),  Z_t = A X_t + B_u U_t + B_h H_{t-1} + b
        size = max_abs(xp, own)
        v0 = None if last is None else _scaled(xp, last, rows, size)
        pull = EquilibriumPullback(step.cell(None), own, path.step(at), adjoint)
        with _named(t, rows, line.m):
            solved = settle(pull.solve(dX, v0=v0), _inner(on_fail), adjoint=True)
        v = solved.value
        dh = step.bh.T.rows(v)
        if step.dh is not None:
            dh += step.dh.T.rows(own)
        if cuts is not None:
            cut = cuts[:, t] if rows is None else cuts[rows, t]
            dh = dh * astype(xp, from_host(xp, 1.0 - cut), dh.dtype)[:, None]
        V[here, ...], G[here, ...] = v, own
        book.enter(here, solved)
        g = dh if rows is None else _placed(xp, g, rows, dh)
        if every and t > 0:
            g = g + direct[t - 1, ...]
        if warm_start and rows is None:
            last = v, size
        elif warm_start and rows is not None:
            old = last or (xp.zeros((line.m, n), dtype=v.dtype), xp.zeros((line.m,), dtype=v.dtype))
            last = tuple(_placed(xp, a, rows, new) for a, new in zip(old, (v, size), strict=True))
    settle(book.solution(None, None), on_fail, adjoint=True)
    return Backward(first, V, G, g, book)


def gradients(step: Step, path: Path, U: Array, found: Backward, inputs: bool) -> tuple[Any, Grads]:
    """``(dU, grads)``.

    The products at the head of this file, each over all steps at once.
    """
    line, xp = path.line, namespace(path.Z)
    start, V, G = int(line.ends[found.first]), found.V, found.G
    u, h = line.stack(U)[start:, ...], line.chosen(path.H[:-1, ...])[start:, ...]
    X = step.activation(path.Z[start:, ...])
    _, grads = step.cell(step.b).grads(X, h, V, inputs=False)  # "B" is that of B_h
    grads["B"] = _confined(step.B, xp.concat([step.bu.grads("u", V, u)["u"], grads["B"]], axis=1))
    grads |= step.C.grads("C", G, X)
    if step.D is not None and step.du is not None:
        of_u = step.du.grads("u", G, u)["u"]
        both = of_u if step.dh is None else xp.concat([of_u, step.dh.grads("h", G, h)["h"]], axis=1)
        grads["D"] = _confined(step.D, both)
    if step.d is not None:
        grads["d"] = xp.sum(G, axis=0)
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
    return (
        gradient * matrix.mask
        if isinstance(matrix, Tiled) and matrix.mask is not None
        else gradient
    )


def _inner(on_fail: OnFail) -> OnFail:
    """A failure is raised at its step; warnings are given once, for all steps."""
    return "raise" if on_fail == "raise" else "ignore"


@contextmanager
def _named(t: int, rows: np.ndarray | None, m: int) -> Iterator[None]:
    """An error of step t names the step, and the failed samples by their places in the batch."""
    try:
        yield
    except ConvergenceError as error:
        converged = np.ones(m, bool)
        converged[slice(None) if rows is None else rows] = error.converged
        raise type(error)(f"at time step {t}, {error}", converged) from None


def _scaled(xp: Namespace, last: Any, rows: np.ndarray | None, size: Any) -> Any:
    """Where the adjoint solve of a step starts.

    v scales with its right-hand side, so that of the step after is brought to this
    size.

    (Where the new right-hand side is zero, the start must be zero too.) What is less
    than a thousandth of its new size says nothing.
    """
    v, before = last if rows is None else (take_rows(xp, a, rows) for a in last)
    known = 1e3 * before > size
    return v * xp.where(known, size / xp.where(known, before, 1.0), 0.0)[:, None]


def _placed(xp: Namespace, base: Any, rows: np.ndarray, new: Any) -> Any:
    """A copy of base with some of its rows replaced."""
    return put_rows(xp, xp.asarray(base, copy=True), rows, new, np.arange(len(rows)))
