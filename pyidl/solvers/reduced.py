r"""Low rank: iterate the k numbers ``r = R^T x`` of a sample instead of its n.

With ``A = L R^T`` the equation ``x = phi(L R^T x + z)`` is one for r alone,

    r = R^T phi(L r + z),        x = phi(L r + z),

so a state between two steps has k numbers, and x is never stored: on NumPy a piece of it is formed in the cache, used, and forgotten.
The adjoint ``V = S * (V A + G)`` is of the same form, with L and R exchanged and multiplication by S in place of phi. The
residual is that of x, ``|phi(L r' + z) - phi(L r + z)|`` with ``r' = R^T x``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.backend import to_numpy
from pyidl.rows import CHUNK, change_and_size, max_abs, take_rows
from pyidl.solvers.problem import AffineMap, Problem
from pyidl.solvers.solution import Solution
from pyidl.structure import LowRank
from pyidl.typing import Array

__all__ = ["Reduced", "reduce"]

SCREEN = 100.0
"""A sample is near if its bound is at most that many tolerances."""


@dataclass(frozen=True)
class Reduced(Problem):
    """The equation of r; its pre-activation is r itself."""

    original: AffineMap
    Lt: Array
    """L^T, (k, n)."""
    R: Array
    zero: Array
    gain: float
    """``||L||_inf``."""

    @property
    def like(self) -> Array:
        """A state of k numbers."""
        return self.zero

    def _pieces(self) -> list[slice]:
        m, n = self.original.like.shape
        if self.xp is not np:
            return [slice(0, m)]
        step = max(1, 2 * CHUNK // n)
        return [slice(i, min(i + step, m)) for i in range(0, m, step)]

    def _room(self, count: int) -> list[Any]:
        """States of a piece, to be used again for every piece; None where nothing is written in place."""
        if self.xp is not np:
            return [None] * count
        m, n = self.original.like.shape
        return list(np.empty((count, min(m, max(1, 2 * CHUNK // n)), n), self.zero.dtype))

    def _states(self, rows: slice, r: Any, y: Any = None, x: Any = None) -> tuple[Any, Any]:
        """``y = L r + z`` and its image, for some samples; in y and x if they are given."""
        offset = self.original.offset[rows, ...]
        if y is None:
            y = r @ self.Lt + offset
            return y, self.original.image_of(rows, y)
        y, x = y[: len(r)], x[: len(r)]
        self.xp.matmul(r, self.Lt, out=y)
        y += offset
        return y, self.original.image_of(rows, y, x)

    def _gather(self, parts: list[Any], out: Any) -> Any:
        joined = parts[0] if len(parts) == 1 else self.xp.concat(parts)
        if out is None:
            return joined
        out[...] = joined
        return out

    def pre(self, x: Any, out: Any = None) -> Any:
        """``R^T phi(L r + z)``."""
        room = self._room(2)
        return self._gather(
            [self._states(rows, x[rows, ...], *room)[1] @ self.R for rows in self._pieces()], out
        )

    def start(self, x0: Any = None, out: Any = None) -> tuple[Any, Any]:
        """From ``R^T f(x0)``; f(0) = phi(z)."""
        into_y, into_x = out or (None, None)
        if x0 is not None:
            r = self.pre(x0 @ self.R, into_y)
        else:
            offset, (room,) = self.original.offset, self._room(1)
            images = (
                self.original.image_of(
                    s, offset[s, ...], room if room is None else room[: s.stop - s.start]
                )
                for s in self._pieces()
            )
            r = self._gather([image @ self.R for image in images], into_y)
        return r, self.image(r, into_x)

    def measure(
        self, x: Any, y_image: Any, image: Any, tol: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The residual of the original equation, for samples that are near; for the others ``max|r' - r|`` times ||L||_inf.

        That bounds the residual where phi is 1-Lipschitz, and costs k numbers a sample instead of the products of two steps.
        """
        change = to_numpy(max_abs(self.xp, y_image - x)).astype(np.float64)
        residual, tolerance = (
            self.gain * change,
            self.original.tolerance(np.zeros_like(change), tol),
        )
        near = np.flatnonzero(~(residual > SCREEN * tolerance))
        if len(near) == len(residual):
            return self._measured(x, y_image, tol)
        if len(near):
            r, after = take_rows(self.xp, x, near), take_rows(self.xp, y_image, near)
            residual[near], tolerance[near] = self.take(near)._measured(r, after, tol)
        return residual, tolerance

    def _measured(self, r: Any, after: Any, tol: float) -> tuple[np.ndarray, np.ndarray]:
        """``|phi(L r' + z) - phi(L r + z)|`` of every sample, and what it must reach."""
        y, x, image = self._room(3)
        parts = []
        for rows in self._pieces():
            new = self._states(rows, after[rows, ...], y, image)[1]
            parts.append(change_and_size(self.xp, new, self._states(rows, r[rows, ...], y, x)[1]))
        residual, size = (np.concatenate([part[i] for part in parts]) for i in range(2))
        return residual, self.original.tolerance(size, tol)

    def take(self, rows: np.ndarray) -> Reduced:
        """The same equation for some of the samples."""
        return Reduced(
            self.original.take(rows),
            self.Lt,
            self.R,
            take_rows(self.xp, self.zero, rows),
            self.gain,
        )

    def restore(self, solution: Solution) -> Solution:
        """X and its pre-activation, from r."""
        xp, r, pieces = self.xp, solution.pre, self._pieces()
        if xp is np:
            y, x = (np.empty_like(self.original.offset) for _ in range(2))
            for rows in pieces:
                self._states(rows, r[rows], y[rows], x[rows])
        else:
            y, x = self._states(slice(None), r)
        failed = np.flatnonzero(~solution.converged)
        residual = solution.residual.copy()
        if len(failed):  # of these only a bound may be known
            far, state = self.take(failed), take_rows(xp, r, failed)
            with np.errstate(over="ignore", invalid="ignore"):
                residual[failed] = far._measured(state, far.pre(state), 1.0)[0]
        return replace(solution, pre=y, value=x, residual=residual)


def reduce(problem: Problem) -> Reduced | None:
    """The equation of r, where A has factors that are thin enough for it to pay (k <= n / 4)."""
    if not (
        isinstance(problem, AffineMap)
        and isinstance(problem.matrix, LowRank)
        and problem.matrix.minus is None
    ):
        return None
    xp, L, R = problem.xp, problem.matrix.L, problem.matrix.R
    n, k = R.shape
    if 4 * k > n:
        return None
    Lt = (
        np.ascontiguousarray(L.T) if xp is np else L.T
    )  # as a view a product with a few rows takes twice as long
    gain = float(xp.max(xp.sum(xp.abs(L), axis=1)))
    return Reduced(
        problem, Lt, R, xp.zeros((problem.like.shape[0], k), dtype=problem.like.dtype), gain
    )
