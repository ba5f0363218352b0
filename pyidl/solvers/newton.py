r"""Semismooth Newton: the fixed point of a piecewise linear phi in a few dense solves.

On pre-activations the equation is ``F(y) = A phi(y) + z - y = 0``, with generalised Jacobian ``A D - I, D = diag(phi'(y))``:

    (I - A D) dy = F(y),      y <- y + t dy.

For ReLU and its kin D says which units are active, and once it is right one step is exact. Samples with the same D share
one factorisation. t starts at 1 and is halved while the residual does not fall: undamped, the method can cycle even where
the solution is unique (``I - A = [[1, 0, 2], [2, 1, 0], [0, 2, 1]], z = 1``: period 3). There is no global guarantee.

Source: Qi and Sun, Math. Programming 58, 1993.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.backend import astype, from_host, to_numpy
from pyidl.errors import InputError
from pyidl.rows import max_abs, put_rows, take_rows
from pyidl.solvers.base import Iterative
from pyidl.solvers.direct import CHUNK, solve_each
from pyidl.solvers.loop import Advance, iterate
from pyidl.solvers.problem import AffineMap, Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Newton"]


class _Descent(Advance):
    """Newton's step with halving, per sample."""

    def __init__(self, problem: AffineMap) -> None:
        self.problem, self.A = problem, problem.matrix.dense()
        m = problem.like.shape[0]
        self.base: Any = None
        self.direction: Any = None
        self.size, self.t = np.full(m, np.inf), np.ones(m)

    @property
    def steady(self) -> bool:
        """Its convergence is not linear."""
        return False

    def observe(self, rows: np.ndarray, to_go: np.ndarray) -> np.ndarray:
        """Measure often."""
        return np.ones(len(rows), bool)

    def take(self, rows: np.ndarray) -> None:
        self.problem = self.problem.take(rows)
        self.base, self.direction = (
            take_rows(self.problem.xp, a, rows) for a in (self.base, self.direction)
        )
        self.size, self.t = self.size[rows], self.t[rows]

    def __call__(self, y: Any, y_image: Any) -> Any:
        xp = self.problem.xp
        F = y_image - y
        size = to_numpy(max_abs(xp, F)).astype(np.float64)
        good = size < (1.0 - 1e-4 * self.t) * self.size
        good |= np.isinf(self.size)
        self.t = np.where(good, 1.0, 0.5 * self.t)
        self.size = np.where(good, size, self.size)
        rows = np.flatnonzero(good)
        if self.base is None:
            self.base, self.direction = xp.asarray(y, copy=True), self._solve(rows, y, F)
        elif len(rows):
            self.base = put_rows(xp, self.base, rows, y, rows)
            step = self._solve(rows, take_rows(xp, y, rows), take_rows(xp, F, rows))
            self.direction = put_rows(xp, self.direction, rows, step, np.arange(len(rows)))
        t = astype(xp, from_host(xp, self.t), y.dtype)
        return self.base + t[:, None] * self.direction

    def _solve(self, rows: np.ndarray, y: Any, F: Any) -> Any:
        """``(I - A D)^{-1} F``, once for all samples with the same D where that saves factorisations."""
        problem, xp, n = self.problem.take(rows), self.problem.xp, y.shape[1]
        D, eye = problem.slopes(y), xp.eye(y.shape[1], dtype=y.dtype)
        sets, member = np.unique(to_numpy(D), axis=0, return_inverse=True)
        if 2 * len(sets) <= len(rows):
            step = xp.zeros_like(F)
            for i, d in enumerate(sets):
                same = np.flatnonzero(member.reshape(-1) == i)
                shared = _solve_shared(
                    xp, eye - self.A * from_host(xp, d)[None, :], take_rows(xp, F, same)
                )
                step = put_rows(xp, step, same, shared, np.arange(len(same)))
            return step
        count = max(1, CHUNK // n**2)
        pieces = []
        for i in range(0, len(rows), count):
            d = D[i : min(i + count, len(rows)), :]
            pieces.append(
                solve_each(
                    xp,
                    eye[None, :, :] - self.A[None, :, :] * d[:, None, :],
                    F[i : min(i + count, len(rows)), :],
                )
            )
        return xp.concat(pieces)


def _solve_shared(xp: Any, matrix: Any, right: Any) -> Any:
    try:
        return xp.linalg.solve(matrix, right.T).T
    except np.linalg.LinAlgError:
        return xp.full_like(right, xp.nan)


@dataclass(frozen=True)
class Newton(Iterative):
    """Semismooth Newton with halving. ``2 n^3 / 3`` flops for each active set: for small n, or where nothing else converges.

    Needs the parts of the problem (A and phi'). A sample that stops descending ends STAGNATED, one with a singular Jacobian
    NONFINITE; put it first in a `Fallback` to try something else for those.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.solvers.problem import Affine
    >>> from pyidl.structure import Full
    >>> slow = Affine(Full(np.array([[0.9999]])), np.ones((1, 1)), activations.relu)
    >>> Newton()(slow).n_iter.tolist()
    [2]
    """

    max_iter: int = 200

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Descend from f(x0), or from f(0)."""
        if not isinstance(problem, AffineMap):
            raise InputError(
                f"Newton needs the matrix A and the slopes of phi, and {problem.lacking}; use Anderson"
            )
        return iterate(
            problem,
            x0,
            _Descent(problem),
            tol=self.tol,
            max_iter=self.max_iter,
            method="Newton",
            trace=trace,
        )
