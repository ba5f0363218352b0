"""What is proven about a fixed point, with which number.

If ``x -> f(x)`` contracts by ``kappa < 1`` in some norm, Banach's theorem gives everything at once: the fixed point
exists, it is unique, Picard's residual falls by kappa per step, and the error at a point follows from its residual,

    |x - x*| <= |f(x) - x| / (1 - kappa).

Other conditions prove the same with other numbers: the factor per step is that of another iteration, and the error is at
most the residual divided by a *margin* that is not 1 - kappa. Where a condition compares the entries one by one, there is a
matrix M with a nonnegative inverse, such that ``M |x - x*| <= |f(x) - x|`` entry by entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pyidl.backend import to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array

__all__ = ["Certificate", "Norm"]


@dataclass(frozen=True, eq=False)
class Norm:
    """``max_i |x_i| / w_i`` (kind "largest entry") or ``(sum_i (x_i / w_i)^2)^(1/2)`` ("Euclidean") of every sample.

    Parameters
    ----------
    kind : {"largest entry", "Euclidean"}
        Which of the two.
    weights : numpy.ndarray, shape (n,), optional
        Positive; 1 if left out.

    Examples
    --------
    >>> Norm("largest entry", np.array([1.0, 10.0]))(np.array([[1.0, -5.0]]))
    array([1.])
    """

    kind: Literal["largest entry", "Euclidean"] = "largest entry"
    weights: np.ndarray | None = None

    def __call__(self, x: Array) -> np.ndarray:
        """The norm of every row of x, (m, n); float64, on the host."""
        rows = to_numpy(x).astype(np.float64)
        rows = np.abs(rows if self.weights is None else rows / self.weights)
        size: np.ndarray = rows.max(axis=-1) if self.kind == "largest entry" else np.linalg.norm(rows, axis=-1)
        return size

    def __str__(self) -> str:
        return self.kind if self.weights is None else f"{self.kind}, weighted"


@dataclass(frozen=True, repr=False, eq=False)
class Certificate:
    """A statement about the equilibrium of a model, whatever its input.

    Attributes
    ----------
    proven : bool
        Whether existence and uniqueness are proven for every input.
    contraction : float
        The proven factor per step; ``inf`` where nothing is proven.
    norm : Norm
        The norm in which it holds.
    applies_to : str
        The iteration that contracts by that factor.
    reason : str
        What the statement rests on or, where nothing is proven, why.
    margin : float
        In ``|x - x*| <= |f(x) - x| / margin``; ``1 - contraction`` unless it is given.
    comparison : numpy.ndarray, shape (n, n), optional
        M with ``M |x - x*| <= |f(x) - x|``, entry by entry, and a nonnegative inverse.
    others : tuple of Certificate
        The other conditions that were examined, if that was asked for.

    Examples
    --------
    >>> c = Certificate(True, 0.5, Norm(), "Picard", "||A||_inf = 0.5, relu is 1-Lipschitz")
    >>> c.steps(1e-6, first=1.0), float(c.error(1e-6))
    (20, 2e-06)
    """

    proven: bool
    contraction: float
    norm: Norm
    applies_to: str
    reason: str
    margin: float = math.nan
    comparison: np.ndarray | None = field(default=None)
    others: tuple[Certificate, ...] = ()

    def __post_init__(self) -> None:
        if math.isnan(self.margin):
            object.__setattr__(self, "margin", 1.0 - self.contraction if self.proven else 0.0)

    def steps(self, tol: float, first: float) -> int:
        """Smallest k with ``contraction^k first <= tol``: after k steps the residual, at first `first`, is at most `tol`."""
        if not (tol > 0 and first >= 0):
            raise InputError(f"steps needs tol > 0 and first >= 0, got {tol} and {first}")
        if first <= tol:
            return 0
        if not self.proven:
            raise InputError(f"no number of steps is proven: {self.reason}")
        return 1 if self.contraction == 0 else math.ceil(math.log(tol / first) / math.log(self.contraction))

    def error(self, residual: float | np.ndarray) -> float | np.ndarray:
        """Bound on the distance to the fixed point from the residual at the returned point, both in `norm`; ``inf`` if unproven."""
        return residual / self.margin if self.proven else math.inf + 0.0 * residual

    def __repr__(self) -> str:
        text = self._sentence()
        return "\n".join([text, *(f"  {other.applies_to}: {other._sentence()}" for other in self.others)])

    def _sentence(self) -> str:
        if not self.proven:
            return f"not certified: {self.reason}"
        if self.contraction == 0:
            return f"certified: {self.reason}"
        return (
            f"certified: the fixed point exists and is unique for every input; {self.applies_to} contracts by "
            f"{self.contraction:.4g} per step in the norm '{self.norm}' ({self.reason})"
        )
