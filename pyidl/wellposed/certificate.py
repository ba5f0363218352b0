"""What is proven about a fixed point, with which number.

If ``x -> f(x)`` contracts by ``kappa < 1`` in some norm, Banach's theorem gives
everything at once: the fixed point exists, it is unique, Picard's residual falls by
kappa per step, and the error at a point follows from its residual,

    |x - x*| <= |f(x) - x| / (1 - kappa).

Other conditions prove the same with other numbers: the factor per step is that of
another iteration, and the error is at most the residual divided by a *margin* that is
not 1 - kappa. Where a condition compares the entries one by one, there is a matrix M,
without positive entries off the diagonal, such that ``M |x - x*| <= |f(x) - x|`` entry
by entry. If ``M s > 0`` for some s > 0, M is a nonsingular M-matrix: ``M^{-1} >= 0``,
so that ``|x - x*| <= M^{-1} |f(x) - x|``, and every e with ``M e >= |f(x) - x|`` is a
bound, however it was found.

Source of the last statement: Berman, Plemmons, "Nonnegative matrices in the
mathematical sciences", 1979, theorem 6.2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from pyidl.arrays.backend import is_array, to_numpy
from pyidl.arrays.table import Table
from pyidl.errors import InputError, is_real
from pyidl.typing import Array
from pyidl.wellposed.bounds import EPS, complement

__all__ = ["Certificate", "Norm"]

FEW = 4096
"""So many steps are counted exactly."""


@dataclass(frozen=True, eq=False)
class Norm:
    """The norm of every sample in which something is stated.

        largest entry   max_i |x_i| / w_i
        Euclidean       (sum_i (x_i / w_i)^2)^(1/2)

    With blocks, an entry of the former is a whole block, measured by its Euclidean
    norm.

    Parameters
    ----------
    kind : {"largest entry", "Euclidean"}
        Which of the two.
    weights : numpy.ndarray, shape (n,), optional
        Positive; 1 if left out.
    blocks : tuple of (int, int)
        ``(start, stop)`` of components that count as one entry of the largest-entry
        norm.

    Examples
    --------
    >>> Norm("largest entry", np.array([1.0, 10.0]))(np.array([[1.0, -5.0]]))
    array([1.])
    """

    kind: Literal["largest entry", "Euclidean"] = "largest entry"
    weights: np.ndarray | None = None
    blocks: tuple[tuple[int, int], ...] = ()

    def __call__(self, x: Array) -> np.ndarray:
        """The norm of every row of x, (m, n); float64, on the host."""
        rows = to_numpy(x).astype(np.float64)
        rows = np.abs(rows if self.weights is None else rows / self.weights)
        for start, stop in self.blocks:
            rows[..., start:stop] = np.linalg.norm(rows[..., start:stop], axis=-1, keepdims=True)
        entry = self.kind == "largest entry"
        return np.asarray(rows.max(axis=-1) if entry else np.linalg.norm(rows, axis=-1))

    def __str__(self) -> str:
        kind = "largest block" if self.blocks else self.kind
        return kind if self.weights is None else f"{kind}, weighted"


@dataclass(frozen=True, repr=False, eq=False)
class Certificate:
    """A statement about the equilibrium of a model, whatever its input.

    `Constraint.certificate` and `ImplicitModel.certificate` return one. Its numbers are
    rounded to the side on which the statement stays true. It is shown as a sentence, in
    which they are rounded to four digits. It speaks of the equation, not of a dtype: a
    residual below the rounding of ``A x + z`` is promised by nobody.

    Parameters
    ----------
    proven : bool
        Whether existence and uniqueness are proven for every input.
    contraction : float
        The proven factor per step; ``inf`` where nothing is proven, 0 where one pass is
        exact, and 1 where it is proven to be smaller, but floating point cannot say by
        how much.
    norm : Norm
        The norm in which it holds.
    applies_to : str
        The iteration that contracts by that factor.
    reason : str
        What the statement rests on or, where nothing is proven, why.
    margin : float
        In ``|x - x*| <= |f(x) - x| / margin``; ``1 - contraction``, rounded down,
        unless it is given.
    comparison : numpy.ndarray, shape (n, n), optional
        M with ``M |x - x*| <= |f(x) - x|``, entry by entry, and a nonnegative inverse.
    constant : float
        K: after k steps the residual is at most ``K contraction^k`` times that of the
        start; 1 where a step contracts the residual itself.
    others : tuple of Certificate
        The other conditions that were examined, if that was asked for.

    Examples
    --------
    >>> reason = "||A||_inf = 0.5, relu is 1-Lipschitz"
    >>> c = Certificate(True, 0.5, Norm(), "Picard", reason)
    >>> c.steps(1e-6, first=1.0), float(c.error(1e-6))
    (20, 2.0000000000000003e-06)
    """

    proven: bool
    contraction: float
    norm: Norm
    applies_to: str
    reason: str
    margin: float = math.nan
    comparison: np.ndarray | None = field(default=None)
    constant: float = 1.0
    others: tuple[Certificate, ...] = ()

    def __post_init__(self) -> None:
        if math.isnan(self.margin):
            object.__setattr__(self, "margin", complement(self.contraction) if self.proven else 0.0)

    def steps(self, tol: float, first: float) -> int:
        """Steps after which the residual is at most `tol`, if it is at first `first`.

        The smallest k with ``constant contraction^k first <= tol``; beyond 4096, what
        logarithms may be wrong by is added.

        Parameters
        ----------
        tol, first : float
            Residuals in `norm`, the latter finite.

        Returns
        -------
        int
            k.

        Raises
        ------
        InputError
            If a number is out of range, or none is proven.
        """
        if not (is_real(tol) and tol > 0 and is_real(first) and 0 <= first < math.inf):
            raise InputError(
                f"tol is {tol!r} and first {first!r}; steps needs tol > 0 and a finite first >= 0"
            )
        tol, first = float(tol), float(first)
        if first <= tol:
            return 0
        if not self.proven:
            raise InputError(f"no number of steps is proven: {self.reason}")
        if self.contraction == 1:
            raise InputError(
                f"the factor of {self.applies_to} is proven to be below 1, but is 1 to the last "
                f"digit: {self.reason}"
            )
        if self.contraction == 0:
            return 1
        logs = [math.log(self.constant), math.log(first), -math.log(tol)]
        gap = sum(logs) + 4 * EPS * sum(map(abs, logs))
        k = math.ceil(gap / -math.log(self.contraction) * (1.0 + 4 * EPS))
        factor, left = Fraction(self.contraction), Fraction(tol) / Fraction(self.constant)
        while 1 < k <= FEW and factor ** (k - 1) * Fraction(first) <= left:
            k -= 1
        return k

    def error(self, residual: float | np.ndarray) -> float | np.ndarray:
        """Bound of the distance to the fixed point, ``residual / margin``, rounded up.

        Parameters
        ----------
        residual : float or numpy.ndarray
            ``|f(x) - x|`` at the returned point, in `norm`.

        Returns
        -------
        float or numpy.ndarray
            In the same norm, float64; ``inf`` if nothing is proven.
        """
        r = np.asarray(residual, dtype=np.float64)
        if not (self.proven and self.margin > 0):
            return np.full(r.shape, math.inf)[()]
        with np.errstate(over="ignore"):
            found: np.ndarray = np.where(r > 0, np.nextafter(r / self.margin, math.inf), r)[()]
        return found

    def entrywise(self, residual: Array) -> np.ndarray:
        """Bounds of ``|x_i - x*_i|``, entry by entry, from the residual ``f(x) - x``.

        They are ``M^{-1} |f(x) - x|``, made a little larger until ``M e >= |f(x) - x|``
        holds with all roundings accounted for, and at most what the norm gives, which
        is all there is without a comparison matrix.

        Parameters
        ----------
        residual : array, shape (m, n)
            One sample a row.

        Returns
        -------
        numpy.ndarray, shape (m, n)
            float64; ``inf`` where nothing is proven.
        """
        if not (is_array(residual) and residual.ndim == 2):
            raise InputError(
                f"residual is {type(residual).__name__} {getattr(residual, 'shape', '')}; an array "
                "(m, n) is needed"
            )
        r = np.abs(to_numpy(residual).astype(np.float64))
        if not self.proven:
            return np.full(r.shape, math.inf)
        # |x_i| <= w_i |x| in either kind of norm; a share more for the roundings of the
        # norm.
        up = 1.0 + 4 * (r.shape[-1] + 4) * EPS
        bound = np.asarray(self.error(self.norm(r)))[..., None] * up
        if self.norm.weights is not None:
            bound = bound * self.norm.weights
        bound = np.broadcast_to(bound, r.shape)
        found = None if self.comparison is None else _solve_comparison(self.comparison, r)
        return np.array(bound) if found is None else np.fmin(found, bound)

    def in_a_line(self) -> str:
        """The statement without its reason or, where nothing is proven, with it."""
        if not self.proven:
            return f"not certified: {self.reason}"
        if self.contraction == 0:
            return f"certified, {self.reason}"
        return f"certified, {self.applies_to} contracts by {self.contraction:.4g} per step"

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        rows = tuple(
            (
                "yes" if c.proven else "no",
                c.applies_to,
                f"{c.contraction:.4g}" if c.proven else "",
                str(c.norm) if c.proven else "",
                f"{1.0 / c.margin:.4g}" if c.margin > 0 else "",
                c.reason,
            )
            for c in (self, *self.others)
        )
        head = ("certified", "iteration", "factor per step", "norm", "error / residual", "reason")
        return Table("Certificate", head, rows)._repr_html_()

    def __repr__(self) -> str:
        lines = [self._sentence()]
        for other in self.others:
            name = "" if other.proven else f"{other.applies_to}: "
            lines.append(f"  {name}{other._sentence()}")
        return "\n".join(lines)

    def _sentence(self) -> str:
        if not self.proven:
            return f"not certified: {self.reason}"
        error = steps = ""
        if self.margin > 0:
            error = f"; the error is at most {1.0 / self.margin:.4g} times the residual"
        if self.contraction == 0:
            known = f"{error}, in the norm '{self.norm}'" if self.comparison is not None else ""
            return f"certified: {self.reason}{known}"
        if self.contraction < 1:
            steps = f", by 1e-6 in {self.steps(1e-6, 1.0)} steps"
        return (
            "certified: the fixed point exists and is unique for every input; "
            f"{self.applies_to} contracts by {self.contraction:.4g} per step in the norm "
            f"'{self.norm}'{steps}{error} ({self.reason})"
        )


def _solve_comparison(M: np.ndarray, r: np.ndarray) -> np.ndarray | None:
    """An e with ``M e >= r`` for every row of r.

    None if floating point does not verify that M is an M-matrix, and e a bound.

    A product ``M e`` is computed with an error of at most ``gamma |M| e``, gamma = (n +
    2) eps; that much is taken off before comparing. With ``M s >= floor > 0``, what is
    missing somewhere is made good by adding ``(missing / floor) s``, or so much that it
    is not lost in rounding.
    """
    n = len(M)
    gamma, size = (n + 2) * EPS, np.abs(M)

    def image(e: np.ndarray) -> np.ndarray:
        lower: np.ndarray = e @ M.T - gamma * (e @ size.T)
        return lower

    with np.errstate(all="ignore"):
        try:
            columns = np.linalg.solve(M, np.concatenate([np.ones((1, n)), r.reshape(-1, n)]).T)
        except np.linalg.LinAlgError:
            return None
        s, e = columns[:, 0], np.maximum(columns[:, 1:].T, 0.0)
        floor = np.min(image(s)) if np.all(s > 0) and np.all(np.isfinite(s)) else 0.0
        if not floor > 0:
            return None
        for _ in range(4):
            missing = np.max(r.reshape(-1, n) - image(e), axis=1, keepdims=True)
            if np.all(missing <= 0):
                return e.reshape(r.shape)
            least = 4 * EPS * np.max(e / s, axis=1, keepdims=True)  # less is lost in rounding
            t = np.maximum(missing * (1.0 + 8 * EPS) / floor, least)
            e = e + np.where(missing > 0, t, 0.0) * s
    return None
