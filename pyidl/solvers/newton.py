r"""Semismooth Newton: the fixed point of a piecewise linear phi in a few dense solves.

On pre-activations the equation is ``F(y) = A phi(y) + z - y = 0``, with generalised
Jacobian ``A D - I, D = diag(phi'(y))``:

    (I - A D) dy = F(y),      y <- y + t dy.

For ReLU and its kin D says which units are active, and once it is right one step is
exact. Samples with the same D share one factorisation. t starts at 1 and is halved
while the residual does not fall: undamped, the method can cycle even where the solution
is unique (``I - A = [[1, 0, 2], [2, 1, 0], [0, 2, 1]], z = 1``: period 3). There is no
global guarantee.

Source: Qi and Sun, Math. Programming 58, 1993.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace, to_numpy
from pyidl.arrays.batch import max_abs, put_rows, take_rows
from pyidl.errors import InputError
from pyidl.solvers.base import Iterative
from pyidl.solvers.direct import CHUNK, solve_each
from pyidl.solvers.loop import Advance
from pyidl.solvers.problem import Affine, Problem, Start
from pyidl.solvers.solution import Solution

__all__ = ["Newton", "newton_direction"]


def newton_direction(A: Any, D: Any, F: Any, *, share: bool) -> Any:
    """``(I - A D)^{-1} F`` for every row of D, the slopes, and of F; NaN if singular.

    With `share`, those with the same D share a factorisation: to find them costs as
    much as to factorise for n = 30.
    """
    xp = namespace(F)
    (m, n), eye = F.shape, xp.eye(F.shape[1], dtype=F.dtype)
    if share and m > 1:
        sets, member = np.unique(to_numpy(D), axis=0, return_inverse=True)
        if 2 * len(sets) <= m:
            dy = xp.zeros_like(F)
            for i, d in enumerate(sets):
                same = np.flatnonzero(member.reshape(-1) == i)
                matrix = (eye - A * from_host(xp, d)[None, :])[None, :, :]
                right = xp.matrix_transpose(take_rows(xp, F, same))[None, :, :]
                shared = xp.matrix_transpose(solve_each(xp, matrix, right)[0, ...])
                dy = put_rows(xp, dy, same, shared, np.arange(len(same)))
            return dy
    count, parts = max(1, CHUNK // n**2), []
    for i in range(0, m, count):
        some = slice(i, min(i + count, m))
        d, right = D[some, :], F[some, :]
        matrix = eye[None, :, :] - A[None, :, :] * d[:, None, :]
        parts.append(solve_each(xp, matrix, right[:, :, None])[:, :, 0])
    return parts[0] if len(parts) == 1 else xp.concat(parts)


class _Descent(Advance):
    """Newton's step with halving, per sample."""

    stride = 1

    def __init__(self, problem: Affine) -> None:
        self.problem, self.A = problem, problem.matrix.dense()
        m = problem.like.shape[0]
        self.base: Any = None
        self.direction: Any = None
        self.size, self.t = np.full(m, np.inf), np.ones(m)

    def take(self, rows: np.ndarray) -> None:
        xp, self.problem = self.problem.xp, self.problem.take(rows)
        self.base, self.direction = (take_rows(xp, a, rows) for a in (self.base, self.direction))
        self.size, self.t = self.size[rows], self.t[rows]

    def __call__(self, y: Any, y_image: Any) -> Any:
        xp = self.problem.xp
        F = y_image - y
        size = to_numpy(max_abs(xp, F)).astype(np.float64)
        good = (size < (1.0 - 1e-4 * self.t) * self.size) | np.isinf(self.size)
        self.t = np.where(good, 1.0, 0.5 * self.t)
        self.size = np.where(good, size, self.size)
        rows = np.flatnonzero(good)
        if self.base is None:
            self.base = xp.asarray(y, copy=True)
            self.direction = newton_direction(self.A, self.problem.slopes(y), F, share=True)
        elif len(rows):
            own, F = take_rows(xp, y, rows), take_rows(xp, F, rows)
            slopes = self.problem.take(rows).slopes(own)
            direction = newton_direction(self.A, slopes, F, share=True)
            self.base = put_rows(xp, self.base, rows, y, rows)
            every = np.arange(len(rows))
            self.direction = put_rows(xp, self.direction, rows, direction, every)
        t = astype(xp, from_host(xp, self.t), y.dtype)
        return self.base + t[:, None] * self.direction


@dataclass(frozen=True)
class Newton(Iterative):
    """Semismooth Newton with halving: for small n, or where nothing else converges.

    It needs A and phi', and ``2 n^3 / 3`` flops for each set of slopes. A sample that
    stops descending ends STAGNATED, one with a singular Jacobian NONFINITE; put it
    first in a `Fallback` to try something else for those.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.

    Raises
    ------
    InputError
        In a call, if A or the slopes of phi are not known.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.matrices.full import Full
    >>> slow = Affine(Full(np.array([[0.9999]])), np.ones((1, 1)), activations.relu)
    >>> Newton()(slow).n_iter.tolist()
    [2]
    """

    max_iter: int = 200

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Descend from f(x0), or from f(0)."""
        if problem.lacking:
            raise InputError(
                f"Newton needs the matrix A and the slopes of phi, and {problem.lacking}; "
                "use Anderson"
            )
        assert isinstance(problem, Affine)
        problem = problem.resolvable()
        return self._iterate(problem, x0, trace, "Newton", _Descent(problem))
