"""What a solve achieved, sample by sample, and what follows where it failed."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pyidl.arrays.backend import from_host
from pyidl.arrays.table import Table
from pyidl.errors import (
    ConvergenceError,
    ConvergenceWarning,
    GradientConvergenceError,
    GradientConvergenceWarning,
    InputError,
)
from pyidl.typing import Array, Namespace

__all__ = ["OnFail", "Solution", "Status", "check_on_fail", "settle"]

OnFail = Literal["raise", "warn", "ignore"]


class Status(enum.IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    MAX_ITER = 1
    STAGNATED = 2
    DIVERGED = 3
    NONFINITE = 4


CURE = {
    Status.MAX_ITER: "raise max_iter, or lower kappa so that the iteration contracts faster",
    Status.STAGNATED: "the residual stopped falling: at the limit of the dtype use dtype='float64' "
    "or a larger tol; far above it the iteration cycles, so project the parameters, or try "
    "Picard(damping=0.5)",
    Status.DIVERGED: "the iteration grows: bring the parameters into a well-posed set, "
    "model.params = model.project(model.params)",
    Status.NONFINITE: "the iteration left the range of the dtype: rescale the inputs, or project "
    "the parameters",
}


@dataclass(frozen=True, repr=False)
class Solution:
    """The answer to ``x = f(x)`` for a batch of m samples.

    Bookkeeping lives on the host, in NumPy.

    Parameters
    ----------
    value : array, shape (m, ...)
        The returned point x: converged, or the best one seen, for each sample.
    pre : array
        The pre-activation with ``value = phi(pre)``; slopes are taken here. The value
        itself where f has none.
    status : numpy.ndarray of int, shape (m,)
        A `Status` for each sample.
    n_iter : numpy.ndarray of int, shape (m,)
        Applications of f (products with A) that each sample needed.
    residual : numpy.ndarray of float64, shape (m,)
        ``max |f(x) - x|`` at the returned x.
    tolerance : numpy.ndarray of float64, shape (m,)
        What the residual had to reach.
    method : str
        Which solver, and why.
    trace : numpy.ndarray, shape (steps, m), or None
        The residual of every step, if asked for; NaN once a sample has left. After a
        fallback, that of the first solver.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 20, forward=pyidl.solvers.Picard(), rng=0)
    >>> solution = model.equilibrium(np.ones((4, 3)))
    >>> solution
    Solution of 4 samples by Picard: 4 CONVERGED; ...
    >>> solution.value.shape, bool((solution.residual <= solution.tolerance).all())
    ((4, 20), True)
    """

    value: Array
    pre: Array
    status: np.ndarray
    n_iter: np.ndarray
    residual: np.ndarray
    tolerance: np.ndarray
    method: str
    trace: np.ndarray | None = None

    @property
    def converged(self) -> np.ndarray:
        """Which samples reached their tolerance; shape (m,), bool."""
        return np.asarray(self.status == Status.CONVERGED)

    @property
    def all_converged(self) -> bool:
        """Whether every sample reached its tolerance."""
        return not self.status.any()  # CONVERGED is 0

    def __repr__(self) -> str:
        m = len(self.status)
        counts = {s.name: int(np.sum(self.status == s)) for s in Status}
        words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return (
            f"Solution of {m} samples by {self.method}: {words}; "
            f"{np.mean(self.n_iter):.1f} steps on average, {np.max(self.n_iter)} at most; "
            f"worst residual {np.max(self.residual):.3g}"
        )

    def _repr_html_(self) -> str:
        """What Jupyter shows: a row for each way in which samples ended."""
        rows = []
        for status in Status:
            some = self.status == status
            if some.any():
                steps = self.n_iter[some]
                cells = [status.name, f"{int(some.sum())}", f"{steps.mean():.1f}", f"{steps.max()}"]
                worst = (f"{a[some].max():.3g}" for a in (self.residual, self.tolerance))
                rows.append((*cells, *worst))
        head = ("status", "samples", "mean steps", "most steps", "worst residual", "tolerance")
        return Table(f"Solution by {self.method}", head, tuple(rows))._repr_html_()

    def merged(self, other: Solution, rows: np.ndarray, xp: Namespace) -> Solution:
        """The solution with the samples `rows` of `other` where that came closer."""
        m = len(self.status)
        index = np.arange(m)
        before = self.residual[rows]
        closer = np.flatnonzero(other.converged | (other.residual < before) | np.isnan(before))
        index[rows[closer]] = m + closer
        host = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])[index]
            for name in ("status", "residual", "tolerance")
        }
        n_iter = self.n_iter.copy()
        n_iter[rows] += other.n_iter
        device = from_host(xp, index)
        return replace(
            self,
            value=xp.take(xp.concat([self.value, other.value]), device, axis=0),
            pre=xp.take(xp.concat([self.pre, other.pre]), device, axis=0),
            n_iter=n_iter,
            method=f"{self.method}, then {other.method} for {len(rows)} of {m} samples",
            **host,
        )


def check_on_fail(on_fail: OnFail) -> None:
    """Refuse another word, before any work."""
    if on_fail not in ("raise", "warn", "ignore"):
        raise InputError(f"on_fail is {on_fail!r}; use 'raise', 'warn' or 'ignore'")


def settle(
    solution: Solution,
    on_fail: OnFail,
    *,
    adjoint: bool,
    certificate: Callable[[], object] | None = None,
) -> Solution:
    """Return `solution`; where samples failed, raise, warn or pass, as `on_fail` says.

    Raises
    ------
    ConvergenceError, GradientConvergenceError
        With the cause, the numbers, the model's certificate, and the cure for the most
        frequent status.
    """
    check_on_fail(on_fail)
    if on_fail == "ignore" or solution.all_converged:
        return solution
    failed = ~solution.converged
    values, counts = np.unique(solution.status[failed], return_counts=True)
    status = Status(int(values[np.argmax(counts)]))
    excess = solution.residual / np.maximum(solution.tolerance, np.finfo(np.float64).tiny)
    worst = int(np.argmax(np.where(failed, excess, -1.0)))
    message = (
        f"the {'adjoint' if adjoint else 'forward'} solve of {int(failed.sum())} of {len(failed)} "
        f"samples ended {status.name} after {int(solution.n_iter[worst])} steps of "
        f"{solution.method}, with a residual of {solution.residual[worst]:.3g} where "
        f"{solution.tolerance[worst]:.3g} is asked. "
    )
    if certificate is not None:
        message += f"The model is {certificate()!r}. "
    message += f"Cure: {CURE[status]}."
    if on_fail == "raise":
        error = GradientConvergenceError if adjoint else ConvergenceError
        raise error(message, solution.converged)
    warning = GradientConvergenceWarning if adjoint else ConvergenceWarning
    warnings.warn(message, warning, stacklevel=4)
    return solution
