"""Direct solution of the adjoint equation, one dense system for each sample.

    (I - J^T) v = h

It needs no contraction, only that ``I - J^T`` is invertible, and costs ``2 n^3 / 3``
flops and ``n^2`` numbers a sample: for small n, and where an iteration has failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.arrays.batch import max_abs
from pyidl.solvers.base import Solver, check_limits, right_side
from pyidl.solvers.loop import growth_limit, resolve_tol, tol_floor
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution, Status

__all__ = ["CHUNK", "Direct", "solve_each"]

CHUNK = 2**24
"""Matrix entries that are formed at a time."""


@dataclass(frozen=True)
class Direct(Solver):
    """LU factorisation of ``I - J^T`` for each sample.

    The residual ``|J^T v + h - v|`` is verified as for any other solver, except that it
    need not be smaller than what rounding allows for this system,

        8 eps max(|I - J^T| |v| + |h|)

    (Oettli, Prager, Numer. Math. 6, 1964): where nothing contracts, J is large, and so
    is the rounding of J^T v. A singular system ends NONFINITE, one that
    is singular to rounding STAGNATED: as in an iteration, sizes count only up to
    ``1e3`` times that of the right-hand side in float32, ``2e7`` times in float64.

    Parameters
    ----------
    tol : float, optional
        As for `Picard`.

    Raises
    ------
    InputError
        If tol is out of range; in a call, if the problem is a forward one.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 20, adjoint=Direct(), rng=0)
    >>> Y, pull = model(np.ones((4, 3)))
    >>> pull(np.ones((4, 2)))[1]["A"].shape
    (20, 20)
    """

    tol: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", check_limits(self.tol, 1))

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Solve; a starting point is of no use, and there are no steps to trace."""
        right_side(problem, "Direct")
        xp, m = problem.xp, problem.like.shape[0]
        n, tol = problem.like.size // m, resolve_tol(self.tol, problem.like, xp)
        step = max(1, CHUNK // n**2)
        with np.errstate(over="ignore", invalid="ignore"):
            if m <= step:
                value, y, residual, tolerance = _solved(problem, tol)
            else:
                chunks = (np.arange(i, min(i + step, m)) for i in range(0, m, step))
                parts = zip(*(_solved(problem.take(rows), tol) for rows in chunks), strict=True)
                values, ys, residuals, tolerances = map(list, parts)
                value, y = xp.concat(values), xp.concat(ys)
                residual, tolerance = np.concatenate(residuals), np.concatenate(tolerances)
        status = np.zeros(m, int)  # CONVERGED
        if not (residual <= tolerance).all():
            failed = np.where(np.isfinite(residual), Status.STAGNATED, Status.NONFINITE)
            status = np.where(residual <= tolerance, status, failed)
        return Solution(value, y, status, np.ones(m, int), residual, tolerance, "Direct")

    def at(self, tol: float | None) -> Self:
        """The same solver with another tolerance; None is the default of the dtype."""
        return replace(self, tol=tol)


def _solved(problem: Problem, tol: float) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """v, y(v), residuals and tolerances.

    v itself is returned, not f(v), the error of which |J| makes larger.
    """
    xp = problem.xp
    matrix, h = problem.system()
    v = xp.reshape(solve_each(xp, matrix, h[:, :, None])[:, :, 0], problem.like.shape)
    y, image = problem.step(v)
    residual, size = problem.measure(v, y, image)
    most = growth_limit(problem.like, xp) * right_side(problem, "Direct")
    tolerance = problem.tolerance(np.minimum(size, most), tol)
    if not (residual <= tolerance).all():
        products = (xp.abs(matrix) @ xp.abs(xp.reshape(v, h.shape))[:, :, None])[:, :, 0]
        terms = to_numpy(max_abs(xp, products + xp.abs(h))).astype(np.float64)
        tolerance = np.maximum(tolerance, tol_floor(problem.like, xp) * np.minimum(terms, most))
    return v, y, residual, tolerance


def solve_each(xp: Any, matrix: Any, right: Any) -> Any:
    """``matrix^{-1} right`` for every sample, (m, n, k); NaN for the singular ones.

    NumPy raises for the whole batch, CuPy for none.
    """
    try:
        return xp.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        if matrix.shape[0] == 1:
            return xp.full_like(right, xp.nan)
        each = (slice(i, i + 1) for i in range(matrix.shape[0]))
        return xp.concat([solve_each(xp, matrix[i, ...], right[i, ...]) for i in each])
