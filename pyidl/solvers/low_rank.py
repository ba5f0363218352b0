r"""Low rank: iterate the k numbers ``r = R^T x`` of a sample instead of its n.

With ``A = L R^T`` the equation ``x = phi(L R^T x + z)`` is one for r alone,

    r = R^T phi(L r + z),        x = phi(L r + z),

so a state between two steps has k numbers, and x is never stored: on NumPy a piece of
it is formed in the cache, used, and forgotten. The adjoint ``V = S * (V A + G)`` is of
the same form, with L and R exchanged and multiplication by S in place of phi. The
residual is that of x, ``|phi(L r' + z) - phi(L r + z)|`` with ``r' = R^T x``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pyidl.arrays.batch import change_and_size, take_rows
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers.loop import stride_of
from pyidl.solvers.problem import Affine, Problem, pieces
from pyidl.solvers.solution import Solution

__all__ = ["LowRankProblem", "is_thin", "low_rank_problem"]

THIN, LARGE = 8, 2**15
"""Factors up to which it pays, and entries of all states beyond which it does.

Solves are 1.2 to 2 times as fast with 2 to 8 factors, slower with 16 (measured, n 512
to 4096), and slower too where all states stay in the cache anyway.
"""

STRIDE = 3
"""Steps in a first round, at least.

A measurement forms two states of n numbers, a step one.
"""

SCREEN = 100.0
"""A sample is near if its bound is at most that many tolerances."""


class LowRankProblem(Problem):
    """The equation of r; its pre-activation is r itself."""

    def __init__(self, original: Affine, Lt: Any, R: Any, tol: float) -> None:
        m, k = original.like.shape[0], R.shape[1]
        super().__init__(original.xp.zeros((m, k), dtype=R.dtype), original.reference)
        self.original, self.Lt, self.R, self.tol = original, Lt, R, tol
        self.in_place = original.in_place
        self.stride = max(STRIDE, stride_of(self.xp, original.like.shape[1]))
        self.gain = float(self.xp.max(self.xp.sum(self.xp.abs(Lt), axis=0)))  # ||L||_inf

    def _pieces(self) -> list[slice]:
        m, n = self.original.like.shape
        return pieces(m, max(1, n // 2)) if self.xp is np else [slice(0, m)]

    def _states(self, rows: slice, r: Any, y: Any = None, x: Any = None) -> tuple[Any, Any]:
        """``y = L r + z`` and its image for some samples, in y and x if given."""
        of = self.original
        y = r @ self.Lt if y is None else self.xp.matmul(r, self.Lt, out=y)
        y += of.offset[rows, ...]
        return y, of.map.take(rows)(y, x)

    def _joined(self, parts: list[Any], out: Any) -> Any:
        joined = parts[0] if len(parts) == 1 else self.xp.concat(parts)
        if out is None:
            return joined
        out[...] = joined
        return out

    def pre(self, x: Any, out: Any = None) -> Any:
        """``R^T phi(L r + z)``."""
        parts = [self._states(rows, x[rows, ...])[1] @ self.R for rows in self._pieces()]
        return self._joined(parts, out)

    def start(self, x0: Any = None, out: Any = None) -> tuple[Any, Any]:
        """From ``R^T f(x0)``; f(0) = phi(z)."""
        into_y, into_x = out or (None, None)
        if x0 is not None:
            r = self.pre(x0 @ self.R, into_y)
        else:
            z, phi = self.original.offset, self.original.map
            r = self._joined(
                [phi.take(rows)(z[rows, ...]) @ self.R for rows in self._pieces()], into_y
            )
        return r, self.image(r, into_x)

    def given(self) -> np.ndarray:
        """That of the original equation."""
        return self.original.given()

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """That of the original equation."""
        return self.original.tolerance(size, tol)

    def measure(self, x: Any, y_image: Any, image: Any) -> np.ndarray:
        """The original residual for samples that are near, else a bound of it.

        The bound is ``||L||_inf max|r' - r|``, where phi is 1-Lipschitz. It costs k
        numbers a sample, not two products.
        """
        bound = self.gain * change_and_size(self.xp, y_image, x)
        change, size = bound
        near = np.flatnonzero(~(change > SCREEN * self.tolerance(size, self.tol)))
        if len(near) == len(change):
            return self._measured(x, y_image)
        if len(near):
            r, after = (take_rows(self.xp, a, near) for a in (x, y_image))
            bound[:, near] = self.take(near)._measured(r, after)
        return bound

    def _measured(self, r: Any, after: Any) -> np.ndarray:
        """``max|phi(L r' + z) - phi(L r + z)|`` and the size of the latter."""
        found = []
        for rows in self._pieces():
            image, x = (self._states(rows, a[rows, ...])[1] for a in (after, r))
            found.append(change_and_size(self.xp, image, x))
        return np.concatenate(found, axis=1)

    def take(self, rows: np.ndarray) -> LowRankProblem:
        """The same equation for some of the samples."""
        return LowRankProblem(self.original.take(rows), self.Lt, self.R, self.tol)

    def restore(self, solution: Solution) -> Solution:
        """The state x and its pre-activation, from r."""
        xp, r = self.xp, solution.pre
        if xp is np:
            y, x = (np.empty_like(self.original.offset) for _ in range(2))
            for rows in self._pieces():
                self._states(rows, r[rows], y[rows], x[rows])
        else:
            y, x = self._states(slice(None), r)
        failed = np.flatnonzero(~solution.converged)
        residual = solution.residual.copy()
        if len(failed):  # of these only a bound may be known
            far, state = self.take(failed), take_rows(xp, r, failed)
            with np.errstate(over="ignore", invalid="ignore"):
                residual[failed] = far._measured(state, far.pre(state))[0]
        return replace(solution, pre=y, value=x, residual=residual)


def is_thin(problem: Problem) -> bool:
    """Whether the equation of r pays: few factors, and states beyond the cache."""
    if problem.lacking or not isinstance(problem, Affine):
        return False
    A = problem.matrix
    if not isinstance(A, LowRank) or A.minus is not None:
        return False
    n, k = A.R.shape
    return k <= min(THIN, n // 4) and problem.like.size > LARGE


def low_rank_problem(problem: Affine, tol: float = 0.0) -> LowRankProblem:
    """The equation of r, for a problem with ``A = L R^T``.

    Residuals of more than `SCREEN` times the tolerance `tol` may be bounds.
    """
    A = problem.matrix
    assert isinstance(A, LowRank)
    # As a view a product with a few rows takes twice as long.
    Lt = np.ascontiguousarray(A.L.T) if problem.xp is np else A.L.T
    return LowRankProblem(problem, Lt, A.R, tol)
