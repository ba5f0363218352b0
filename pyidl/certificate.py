"""What is proven about a fixed point, with which number.

If ``x -> f(x)`` contracts by ``kappa < 1`` in some norm, Banach's theorem gives everything at once: the fixed point
exists, it is unique, Picard's residual falls by kappa per step, and the error at a point follows from its residual,

    |x - x*| <= |f(x) - x| / (1 - kappa).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyidl.errors import InputError

__all__ = ["Certificate"]


@dataclass(frozen=True, repr=False)
class Certificate:
    """A statement about the equilibrium of a model, whatever its input.

    Attributes
    ----------
    proven : bool
        Whether existence and uniqueness are proven for every input.
    contraction : float
        The proven factor kappa per step; ``inf`` where nothing is proven.
    norm : str
        The norm in which it holds.
    applies_to : str
        The iteration that contracts by that factor.
    reason : str
        What the statement rests on or, where nothing is proven, why.

    Examples
    --------
    >>> c = Certificate(True, 0.5, "largest entry", "Picard", "||A||_inf = 0.5, relu is 1-Lipschitz")
    >>> c.steps(1e-6, first=1.0), c.error(1e-6)
    (20, 2e-06)
    """

    proven: bool
    contraction: float
    norm: str
    applies_to: str
    reason: str

    def steps(self, tol: float, first: float) -> int:
        """Smallest k with ``kappa^k first <= tol``: after k steps the residual, at first `first`, is at most `tol`."""
        if not (tol > 0 and first >= 0):
            raise InputError(f"steps needs tol > 0 and first >= 0, got {tol} and {first}")
        if first <= tol:
            return 0
        if not self.proven:
            raise InputError(f"no number of steps is proven: {self.reason}")
        return 1 if self.contraction == 0 else math.ceil(math.log(tol / first) / math.log(self.contraction))

    def error(self, residual: float) -> float:
        """Bound on the distance to the fixed point, in `norm`, from the residual at the returned point; ``inf`` if unproven."""
        return residual / (1.0 - self.contraction) if self.proven else math.inf

    def __repr__(self) -> str:
        if not self.proven:
            return f"not certified: {self.reason}"
        if self.contraction == 0:
            return f"certified: {self.reason}"
        return (
            f"certified: the fixed point exists and is unique for every input; {self.applies_to} contracts by "
            f"{self.contraction:.4g} per step in the norm '{self.norm}' ({self.reason})"
        )
