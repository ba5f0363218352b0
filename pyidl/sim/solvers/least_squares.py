"""Least squares alone, ``W = H G^+`` on the allowed entries.

The fit without any bound, and whether it happens to keep the bound.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from pyidl.arrays.backend import namespace, to_numpy
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.sim.penalties import ElasticNet
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers.base import Rows, RowSolver
from pyidl.typing import Array

__all__ = ["LeastSquares"]


@dataclass(frozen=True)
class LeastSquares(RowSolver):
    """One pseudo-inverse; the bound is ignored, and broken bounds are told.

    It is for comparison: a model made from rows beyond their bound is not known to be
    well-posed. Rows within the bound are optimal for the bounded problem too.

    Raises
    ------
    InputError
        If the penalty has a part that is not quadratic.

    Warns
    -----
    WellPosednessWarning
        If some rows exceed their bound; their gap is infinite.

    Examples
    --------
    >>> from pyidl.sim import Moments, NoPenalty, RowProblem
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X[:, :1] - 2 * X[:, 1:2])
    >>> LeastSquares()(RowProblem.of(moments, NoPenalty())).W.round(3) + 0.0
    array([[ 1., -2.,  0.,  0.]])
    """

    def __call__(self, problem: RowProblem, start: Array | None = None) -> Rows:
        """Solve all rows; `start` plays no part."""
        if not (isinstance(problem.penalty, ElasticNet) and problem.penalty.lam == 0.0):
            raise InputError(
                f"least squares knows no penalty {problem.penalty}; use Ridge or NoPenalty, or "
                "another solver"
            )
        rows = self._without_free(replace(problem, ball=0, radius=None), problem.zeros())
        if problem.radius is None:
            return rows
        xp = namespace(rows.W)
        sums = to_numpy(xp.sum(xp.abs(rows.W[:, : problem.ball]), axis=1))
        broken = sums > problem.radius
        if not broken.any():
            return rows
        some = f"{int(broken.sum())} of {len(sums)} rows"
        warnings.warn(
            f"least squares gave {some} with sums up to {sums.max():.4g}, where "
            f"{problem.radius.min():.4g} is allowed: the model is not known to be well-posed; use "
            "ADMM, which keeps the bound",
            WellPosednessWarning,
            stacklevel=2,
        )
        return replace(
            rows,
            gap=np.where(broken, np.inf, rows.gap),
            converged=rows.converged & ~broken,
            method=f"least squares, {some} beyond their bound: not known to be well-posed",
        )

    def _solve(self, problem: RowProblem, start: Array) -> Rows:
        raise NotImplementedError("least squares has no free weights to spare")
