r"""One recurrence through time, and its derivative.

Back-propagation through time, written once. Z_t is the pre-activation of step t:

    X_t = phi(Z_t),    Z_t = A X_t + B_u U_t + B_h H_{t-1} + b
    H_t = C X_t + D_u U_t + D_h H_{t-1} + d

Let G_t be the total derivative of a loss with respect to H_t, and V_t that with respect
to Z_t. H_t is seen by the loss directly and by the next step, X_t by H_t and, through
A, by itself:

    V_t = phi'(Z_t) * (V_t A + G_t C)                  one adjoint solve a step
    G_{t-1} = (direct part) + V_t B_h + G_t D_h

and with every V_t and G_t known, all that is left is linear, so that one product serves
all time steps:

    dA = sum_t V_t^T X_t,   dB = sum_t V_t^T [U_t, H_{t-1}],   db = sum_t V_t,
    dC = sum_t G_t^T X_t,   dD = sum_t G_t^T [U_t, H_{t-1}],   dd = sum_t G_t,
    dU_t = V_t B_u + G_t D_u.

What is kept for each time step: Z_t (X_t is phi of it) and H_t; no iterate of any
solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import astype, from_host, namespace
from pyidl.arrays.batch import max_abs, put_rows, take_rows
from pyidl.cells import AffineCell
from pyidl.equilibrium import EquilibriumPullback, solved
from pyidl.errors import ConvergenceError
from pyidl.layers.timeline import Timeline
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.matrices.tiled import Tiled
from pyidl.solvers import Solution, Solver
from pyidl.solvers.solution import OnFail, settle
from pyidl.typing import Array, Grads, Namespace
from pyidl.wellposed.certificate import Certificate

__all__ = ["Backward", "Trajectory", "Step", "back", "gradients", "unroll"]


@dataclass(frozen=True)
class Step:
    """The parameters of one step, its maps, and their derivatives.

    B acts on ``[U_t, H_{t-1}]``. D does too, or on U_t alone, or is not there. bu and
    bh, du and dh are their columns for U_t and for H_{t-1}.
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
    def of(
        cls, maps: Mapping[str, Matrix], params: Any, activation: Activation, input_dim: int
    ) -> Step:
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
        """Those of the state X and of H: n and r."""
        n, r = self.bh.A.shape
        return n, r

    def before(self, U: Any) -> Any:
        """``B_u U + b`` for all rows of a stack at once: what does not wait for H."""
        Z = self.bu.rows(U)
        if self.b is not None:
            Z += self.b
        return Z

    def cell(self, Z: Any) -> AffineCell:
        """``x = phi(A x + B_h h + z)``, with a bias z that differs from row to row."""
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

    def adjoint(self, Z: Solution, G: Any, solver: Solver, v0: Any) -> Solution:
        """``V = phi'(Z) * (V A + G C)``, solved from v0."""
        pull = EquilibriumPullback(self.cell(None), G, Z, solver)
        return pull.solve(self.C.T.rows(G), v0=v0)

    def handed_back(self, V: Any, G: Any) -> Any:
        """``V B_h + G D_h``: what the step before hears."""
        dh = self.bh.T.rows(V)
        if self.dh is not None:
            dh += self.dh.T.rows(G)
        return dh

    def read(self, H: Any) -> Any:
        """``H E^T + e``."""
        Y = H @ self.E.T
        if self.e is not None:
            Y += self.e
        return Y


class _Book:
    """How the solves of all steps ended, row by row of the stack; on the host."""

    def __init__(self, rows: int) -> None:
        self.status, self.n_iter = np.zeros(rows, np.int8), np.zeros(rows, np.int32)
        self.residual, self.tolerance = np.zeros(rows), np.zeros(rows)
        self.method = ""

    def enter(self, at: slice, solution: Solution) -> None:
        self.method = self.method or solution.method
        for name in ("status", "n_iter", "residual", "tolerance"):
            getattr(self, name)[at] = getattr(solution, name)

    def solution(self, value: Any, pre: Any, at: slice = slice(None)) -> Solution:
        """The solves of some rows, with what they found."""
        status, n_iter, residual = self.status[at], self.n_iter[at], self.residual[at]
        return Solution(value, pre, status, n_iter, residual, self.tolerance[at], self.method)


@dataclass(frozen=True)
class Trajectory:
    """A forward pass: H of all steps, H_0 first, (T + 1, m, r).

    The pre-activations Z, stacked; and how the solves went.
    """

    line: Timeline
    H: Array
    Z: Array
    book: _Book

    def step(self, at: slice) -> Solution:
        """One step, as far as its adjoint needs it: where the slopes are taken."""
        Z = self.Z[at, ...]
        return self.book.solution(Z, Z, at)

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
) -> Trajectory:
    """Go through the T steps of U, (m, T, p).

    A step starts from the states of the one before, where `warm_start` says so.
    """
    xp, u = namespace(U), line.stack(U)
    Z = step.before(u)
    H = xp.empty((line.T + 1, line.m, step.width[1]), dtype=Z.dtype)
    H[0, ...] = 0.0 if h0 is None else h0
    book, last = _Book(Z.shape[0]), _Last(xp, line.m, warm_start)
    for t, at, rows in line.steps():
        before = H[t, ...]
        if at.start == at.stop:  # no sample takes part
            H[t + 1, ...] = before
            continue
        h, known = _taken(xp, before, rows), last.of(rows)
        with _named(t, rows, line.m):
            # X_t = phi(A X_t + B_u U_t + B_h H_{t-1} + b)
            problem, x0 = step.cell(Z[at, ...]).bind(h), None if known is None else known[0]
            found = solved(problem, forward, x0, on_fail=_inner(on_fail), certificate=certificate)
        X = found.value
        Z[at, ...] = found.pre  # what B_u U_t + b has been used for; the place is free
        # H_t = C X_t + D_u U_t + D_h H_{t-1} + d
        H[t + 1, ...] = _placed(xp, before, rows, step.after(X, u[at, ...], h))
        book.enter(at, found)
        last.keep(rows, X)
    settle(book.solution(None, None), on_fail, adjoint=False, certificate=certificate)
    return Trajectory(line, H, Z, book)


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
    step: Step,
    path: Trajectory,
    direct: Array,
    *,
    adjoint: Solver,
    warm_start: bool,
    truncate: int | None,
    on_fail: OnFail,
) -> Backward:
    """Go back through the steps, and find V_t and G_t.

    `direct` is the direct derivative of a loss with respect to every H_t, (T, m, r), or
    to H_T alone, (m, r).
    """
    line, xp, every = path.line, namespace(path.Z), direct.ndim == 3
    first = 0 if truncate is None or every else line.since(truncate)
    cuts = None if truncate is None else line.cuts(truncate)
    start, end = int(line.ends[first]), int(line.ends[-1])
    V, G = (xp.empty((end - start, k), dtype=direct.dtype) for k in step.width)
    book, last = _Book(end - start), _Last(xp, line.m, warm_start)
    g = direct[line.T - 1, ...] if every else direct
    for t, at, rows in reversed(line.steps(first)):
        if at.start < at.stop:
            G_t = _taken(xp, g, rows)
            size = max_abs(xp, G_t)
            with _named(t, rows, line.m):
                # V_t = phi'(Z_t) * (V_t A + G_t C)
                found = step.adjoint(path.step(at), G_t, adjoint, _scaled(xp, last.of(rows), size))
                V_t = settle(found, _inner(on_fail), adjoint=True).value
            # G_{t-1} = (direct part) + V_t B_h + G_t D_h
            g = _placed(xp, g, rows, _cut(xp, step.handed_back(V_t, G_t), cuts, rows, t))
            here = slice(at.start - start, at.stop - start)
            V[here, ...], G[here, ...] = V_t, G_t
            book.enter(here, found)
            last.keep(rows, V_t, size)
        if every and t > 0:
            g = g + direct[t - 1, ...]
    settle(book.solution(None, None), on_fail, adjoint=True)
    return Backward(first, V, G, g, book)


def gradients(
    step: Step, path: Trajectory, U: Array, found: Backward, inputs: bool
) -> tuple[Any, Grads]:
    """``(dU, grads)``.

    The products at the head of this file, over all steps at once.
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
    mask = matrix.mask if isinstance(matrix, Tiled) else None
    return gradient if mask is None else gradient * mask


def _inner(on_fail: OnFail) -> OnFail:
    """A failure is raised at its step; warnings are given once, for all steps."""
    return "raise" if on_fail == "raise" else "ignore"


@contextmanager
def _named(t: int, rows: np.ndarray | None, m: int) -> Iterator[None]:
    """An error of step t names the step, and which samples of the batch failed."""
    try:
        yield
    except ConvergenceError as error:
        converged = np.ones(m, bool)
        converged[slice(None) if rows is None else rows] = error.converged
        raise type(error)(f"at time step {t}, {error}", converged) from None


def _cut(xp: Namespace, dh: Any, cuts: np.ndarray | None, rows: np.ndarray | None, t: int) -> Any:
    """Truncation: zero for the samples whose gradient is cut before step t."""
    if cuts is None:
        return dh
    cut = cuts[slice(None) if rows is None else rows, t]
    return dh * astype(xp, from_host(xp, 1.0 - cut), dh.dtype)[:, None]


@dataclass
class _Last:
    """Warm starts: what the last solve of every sample found, zeros where none was."""

    xp: Namespace
    m: int
    remembers: bool
    found: tuple[Any, ...] | None = None

    def of(self, rows: np.ndarray | None) -> tuple[Any, ...] | None:
        """For these samples; None before the first solve."""
        return self.found and tuple(_taken(self.xp, a, rows) for a in self.found)

    def keep(self, rows: np.ndarray | None, *found: Any) -> None:
        """Take note of what a solve for these samples has found."""
        if self.remembers and rows is None:
            self.found = found
        elif self.remembers:
            old = self.found or tuple(
                self.xp.zeros((self.m, *a.shape[1:]), dtype=a.dtype) for a in found
            )
            self.found = tuple(
                _placed(self.xp, a, rows, new) for a, new in zip(old, found, strict=True)
            )


def _scaled(xp: Namespace, last: tuple[Any, ...] | None, size: Any) -> Any:
    """Where the adjoint solve of a step starts: from v of the step after, scaled.

    v scales with its right-hand side, so it is brought from the size of that to this
    size. (Where the new right-hand side is zero, the start must be zero too.) What is
    less than a thousandth of its new size says nothing.
    """
    if last is None:
        return None
    v, before = last
    known = 1e3 * before > size
    return v * xp.where(known, size / xp.where(known, before, 1.0), 0.0)[:, None]


def _taken(xp: Namespace, a: Any, rows: np.ndarray | None) -> Any:
    """Some rows; None for all."""
    return a if rows is None else take_rows(xp, a, rows)


def _placed(xp: Namespace, base: Any, rows: np.ndarray | None, new: Any) -> Any:
    """A copy of base with some of its rows replaced; None for all."""
    if rows is None:
        return new
    return put_rows(xp, xp.asarray(base, copy=True), rows, new, np.arange(len(rows)))
