r"""Picard iteration, ``x <- f(x)``, or averaged with the last pre-activation.

    y <- d y + (1 - d) (A phi(y) + z)

If f contracts by kappa, so does the iteration: after k steps the residual is at most
kappa^k times the first one, and the error at x is at most ``|f(x) - x| / (1 - kappa)``.
Both equations, forward and adjoint, are solved by the same loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyidl.errors import InputError, is_real
from pyidl.solvers.base import Iterative
from pyidl.solvers.loop import PATIENCE, Advance
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution

__all__ = ["Picard"]


@dataclass(frozen=True)
class _Average(Advance):
    d: float
    in_place: bool

    def __call__(self, y: Any, y_image: Any) -> Any:
        if not self.in_place:
            return self.d * y + (1.0 - self.d) * y_image
        y_image *= 1.0 - self.d
        y *= self.d
        y += y_image
        return y


@dataclass(frozen=True)
class Picard(Iterative):
    """Fixed-point iteration; it converges where a contraction is certified.

    Parameters
    ----------
    tol : float, optional
        Forward: ``max|f(x) - x| <= tol (1 + max|x|)`` for each sample. Adjoint:
        relative to the right-hand side. Default 1e-6 in float32, 1e-12 in float64.
    max_iter : int
        Largest number of steps.
    damping : float
        d in [0, 1): the share of the old pre-activation. It helps where f overshoots,
        and slows down where it does not.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> Picard(tol=1e-9, max_iter=200)
    Picard(tol=1e-09, max_iter=200, damping=0.0)
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_real(self.damping) and 0 <= self.damping < 1):
            raise InputError(
                f"damping is {self.damping!r}; it is the share of the old iterate, 0 <= damping < 1"
            )
        # A number of NumPy's would make float64 of float32.
        object.__setattr__(self, "damping", float(self.damping))

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Iterate from f(x0), or from f(0)."""
        d = self.damping
        if d == 0:
            return self._iterate(problem, x0, trace, "Picard")
        # A step goes a share 1 - d of the way; where phi saturates, y may go far before
        # x moves.
        patience, average = math.ceil(PATIENCE / (1.0 - d)), _Average(d, problem.in_place)
        return self._iterate(problem, x0, trace, f"Picard(damping={d:g})", average, patience)
