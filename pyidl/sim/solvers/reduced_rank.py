r"""Rows of low rank, ``A = L R^T``: projected gradient on the factors.

Without penalty on B, which is eliminated, the loss is ``f(A) = sum_i a_i G a_i / 2 -
h_i a_i``, with gradient ``E = A G - H``, and by the chain rule

    dL = E R,        dR = E^T L.

A step is taken in L, then in R, each of the length 1 / Lipschitz constant of that
gradient (``|R^T G R|`` and ``|L^T L| |G|``); after each, R is made orthonormal, which
leaves A as it is, and the rows of L that exceed their bound are scaled onto it. A step
that does not make f smaller is halved, so f never grows. The first factors are those of
the best A of this rank without bound: with ``G = S^2`` and Q the leading left singular
vectors of ``H G^+ S``, ``A = Q Q^T H G^+``.

The set of matrices of rank k is not convex: what is reached is stationary, not proven
optimal. The gap that is reported is the one to the best A of *any* rank, so it is a
true bound, and it need not become small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace, to_numpy
from pyidl.errors import InputError, is_whole
from pyidl.sim.penalties import ElasticNet
from pyidl.sim.row_problem import RowProblem, Spectrum
from pyidl.sim.solvers.base import Rows, RowSolver
from pyidl.typing import Array
from pyidl.wellposed.infnorm import scale_factors

__all__ = ["ReducedRank"]

PATIENCE = 10
"""Steps over which the loss must fall by `tol` of its value.

Otherwise the factors count as stationary.
"""


@dataclass(frozen=True)
class ReducedRank(RowSolver):
    """A of at most a given rank, B free or with a ridge.

    Without mask and L1, which do not go with a rank.

    Parameters
    ----------
    tol : float
        The factors count as stationary when ten steps make the objective smaller by
        less than this part of it; `converged` says that.
    max_iter : int
        Largest number of steps.
    rank : int
        Of A.

    Raises
    ------
    InputError
        If the rank is not positive, or the problem has a mask or a penalty that is not
        quadratic, or bounds other weights than A's.

    Examples
    --------
    >>> from pyidl.sim import Moments, NoPenalty, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X @ np.full((4, 4), 0.1))
    >>> problem = RowProblem.of(moments, NoPenalty(), ball=4, radius=0.9)
    >>> rows = ReducedRank(rank=1)(problem)
    >>> rows.W.round(3)[0], rows.factors[0].shape
    (array([0.1, 0.1, 0.1, 0.1]), (4, 1))
    """

    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_whole(self.rank) and self.rank >= 1):
            raise InputError(f"rank is {self.rank!r}; it is a number of columns, at least 1")

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        plain = isinstance(problem.penalty, ElasticNet) and problem.penalty.lam == 0.0
        if problem.mask is not None or not plain:
            raise InputError(
                "a matrix of low rank is not sparse: ReducedRank takes no mask and no penalty "
                f"{problem.penalty}; use Ridge or ADMM"
            )
        if problem.radius is None or problem.ball < problem.H.shape[1]:
            raise InputError(
                f"ReducedRank needs a bound of the rows of A, and counts {problem.ball} of "
                f"{problem.H.shape[1]} weights; give a radius"
            )
        L, R = self._first(problem)
        loss, recent, steps = _loss(problem, L, R), [np.inf], 0
        size = float(namespace(L).max(namespace(L).linalg.eigvalsh(problem.G)))
        while steps < self.max_iter and not recent[0] - loss <= self.tol * max(
            abs(loss), np.finfo(float).tiny
        ):
            E = (L @ R.T) @ problem.G - problem.H
            inner = R.T @ problem.G @ R
            L, R, loss = _descend(problem, L, R, loss, E @ R, None, _size(inner))
            E = (L @ R.T) @ problem.G - problem.H
            L, R, loss = _descend(problem, L, R, loss, None, E.T @ L, size * _size(L.T @ L))
            steps, recent = steps + 1, [*recent[-PATIENCE + 1 :], loss]
        W = L @ R.T
        m = problem.measure(problem.project(W))
        words = (
            f"projected gradient on factors of rank {self.rank}, {steps} steps; the gap is to the "
            "best A of any rank"
        )
        done = np.full(len(m.gap), steps < self.max_iter)
        return Rows(
            W,
            m.gap,
            m.objective,
            np.full(len(m.gap), steps),
            done,
            words,
            np.maximum(m.objective, m.scale),
            (L, R),
        )

    def _first(self, problem: RowProblem) -> tuple[Array, Array]:
        spectrum = Spectrum.of(problem.G)
        xp, free = namespace(problem.G), spectrum.solve(problem.H)
        U = xp.linalg.svd((free @ spectrum.Q) * xp.sqrt(spectrum.values), full_matrices=False)[0][
            :, : self.rank
        ]
        return _bounded(problem, U, free.T @ U)


def _bounded(problem: RowProblem, L: Any, R: Any) -> tuple[Any, Any]:
    """Orthonormal R, and rows of L within their bounds."""
    Q, T = namespace(R).linalg.qr(R)
    inside = scale_factors({"L": L @ T.T, "R": Q}, None, np.asarray(problem.radius))
    return inside["L"], inside["R"]


def _size(M: Any) -> float:
    """The Frobenius norm, a bound of the largest singular value."""
    return float(float(namespace(M).sum(M * M)) ** 0.5)


def _loss(problem: RowProblem, L: Any, R: Any) -> float:
    """``sum |r_i|^2 / 2``."""
    xp, A = namespace(L), L @ R.T
    return float(
        to_numpy(0.5 * xp.sum(problem.square) + xp.sum(A * (0.5 * (A @ problem.G) - problem.H)))
    )


def _descend(
    problem: RowProblem, L: Any, R: Any, loss: float, dL: Any, dR: Any, curvature: float
) -> tuple[Any, Any, float]:
    """A step in one factor, halved until the loss falls; none after thirty halvings."""
    step = 1.0 / max(curvature, np.finfo(float).tiny)
    for _ in range(30):
        trial = _bounded(
            problem, L if dL is None else L - step * dL, R if dR is None else R - step * dR
        )
        new = _loss(problem, *trial)
        if new < loss:
            return (*trial, new)
        step *= 0.5
    return L, R, loss
