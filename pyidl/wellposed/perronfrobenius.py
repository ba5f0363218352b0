r"""The Perron-Frobenius condition, on the spectral radius of a nonnegative matrix.

    lambda_pf(B) <= kappa < 1,    B = diag(L) |A|.

**A positive scaling proves it.** If ``B s <= c s`` with s > 0, entry by entry, then f
contracts by c in ``max_i |x_i| / s_i``, for ``|f(x) - f(x')| <= B |x - x'| <= B s max_j
|x_j - x'_j| / s_j``; and ``lambda_pf(B) <= c`` (Collatz, Wielandt). No eigenvalue is
trusted: whatever s a computation finds, ``c = max_i (B s)_i / s_i`` is evaluated and
rounded up.

**Finding s** (Noda's iteration). For ``rho > lambda_pf`` the inverse of ``rho I - B``
is nonnegative with a positive diagonal, so ``t = (rho I - B)^{-1} s`` is positive, and
``B t = rho t - s < rho t``: the factor falls below rho in every step, quadratically
towards lambda_pf where B is irreducible. The solves are made in the scaled variables,
``S^{-1} B S``, whose row sums are already even.

**Entry by entry**, ``|x - x*| <= B |x - x*| + |f(x) - x|``: M = I - B is the comparison
matrix.

**The set is not convex** (``[[0, t], [1/t, 0]]`` has lambda_pf = 1 for every t > 0, the
mean of two such matrices more). But for a fixed s, ``{A : B s <= kappa s}`` is a
weighted l1 ball for every row, and contained in it.

Sources: El Ghaoui, Gu, Travacca, Askari, Tsai, SIAM J. Math. Data Sci. 3(3), 2021,
section 2; Noda, "Note on the computation of the maximal eigenvalue of a non-negative
irreducible matrix", Numer. Math. 17, 1971.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace
from pyidl.typing import Array, Params
from pyidl.wellposed import projections
from pyidl.wellposed.base import (
    Constraint,
    check_kappa,
    known_lipschitz,
    lipschitz_rows,
    lowered,
    rowwise,
    size_of,
    unknown_lipschitz,
    unproven,
)
from pyidl.wellposed.blocknorms import Gains, gains, scale_rows
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate
from pyidl.wellposed.comparison import lower

__all__ = ["PerronFrobenius", "factor_of", "positive_scaling"]

STEPS = 12


def factor_of(B: np.ndarray, s: np.ndarray) -> float:
    """``max_i (B s)_i / s_i``, rounded up; ``inf`` unless s is positive and finite."""
    if not (np.all(s > 0) and np.all(np.isfinite(s))):
        return np.inf
    underflow = len(s) * np.finfo(np.float64).smallest_subnormal if np.any(B) else 0.0
    with np.errstate(all="ignore"):
        c = float(np.max((B @ s + underflow) / s)) * (1.0 + 2 * (len(s) + 4) * EPS)
    return c if c == c else np.inf


def positive_scaling(
    B: np.ndarray, goal: float = 0.0, spread: float = 1e300
) -> tuple[np.ndarray, float]:
    """A positive s, and the factor that it proves: near ``lambda_pf(B)``, or `goal`.

    Parameters
    ----------
    B : numpy.ndarray, shape (n, n)
        Nonnegative.
    goal : float
        Where the search may stop; if positive, ``(goal I - B)^{-1}`` is tried before
        the first step.
    spread : float
        Largest ratio of two entries of s.
    """
    s = np.ones(len(B))
    c = factor_of(B, s)
    if not 0 < c < np.inf or c <= goal:
        return s, c
    # Badly scaled matrices are balanced first (powers of 2 that bring row and column
    # norms together): Noda's steps are slow from afar.
    from scipy.linalg import matrix_balance

    with np.errstate(all="ignore"):  # it also casts the scales to integers, in vain
        balanced = np.asarray(matrix_balance(B, permute=False, separate=True)[1][0])
        balanced = np.maximum(balanced / np.max(balanced), 1.0 / spread)
    if (d := factor_of(B, balanced)) < c:
        s, c = balanced, d
    for k in range(STEPS + 4):
        if c <= goal:
            break
        before = c
        # With a fixed shift the solves are plain inverse iteration.
        fixed = [rho for rho in (goal, 1.0) if k < 4 and 0 < rho < c]
        for rho in [*fixed, c * (1.0 + 1e-10)]:
            t = _step(B, s, rho, spread)
            if t is not None and (d := factor_of(B, t)) < c:
                s, c = t, d
                break
        gained = (before - c) / before
        if gained == 0 or (gained < 1e-3 and c < 0.999 and not goal):
            break
    return s, c


def _step(B: np.ndarray, s: np.ndarray, rho: float, spread: float) -> np.ndarray | None:
    """``(rho I - B)^{-1} s``, in the variables scaled by s; None if not positive."""
    with np.errstate(all="ignore"):
        even = B / s[:, None] * s / rho
        if not np.all(np.isfinite(even)):
            return None
        try:
            t = np.linalg.solve(np.eye(len(B)) - even, np.ones(len(B)))
        except np.linalg.LinAlgError:
            return None
        if not (np.all(t > 0) and np.all(np.isfinite(t))):
            return None
        t = s * (t / np.max(t))
        t = t / np.max(t)
        return np.asarray(np.maximum(t, 1.0 / spread))


@dataclass(frozen=True)
class PerronFrobenius(Constraint):
    """The set ``lambda_pf(diag(L) |A|) <= kappa``.

    It is the largest in which the absolute values of A alone decide.

    The set is not convex. `project` goes to the nearest point of a convex part of it,
    ``{A : diag(L) |A| s <= kappa s}`` with the s of the given A, its rows being
    projected onto weighted l1 balls: feasible, idempotent, and not the nearest point of
    the whole set. For factors, and where the activation acts on several components
    together, rows are scaled instead.

    A is copied to the host, and factorised there some times in float64.

    Parameters
    ----------
    kappa : float
        Radius, between 0 and 1.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = np.array([[0.0, 16.0], [0.01, 0.0]])
    >>> PerronFrobenius(0.9).certificate({"A": A}, activations.relu).reason
    'lambda_pf(|A|) <= 0.4, relu is 1-Lipschitz'
    """

    kappa: float = 0.99

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", check_kappa(self.kappa))

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with ``lambda_pf <= kappa``; feasible ones as they are."""
        found = gains(params, activation)
        if self._holds(found):
            return dict(params)
        n, tiny = size_of(params), np.finfo(np.float64).tiny
        s, _ = positive_scaling(found.matrix / np.max(found.matrix), spread=1e6)
        A = rowwise(params)
        eps = float(namespace(A).finfo(A.dtype).eps)

        # Entries that are rounded, and a test that is made with another s, need a
        # little room.
        def balls(t: float) -> dict[str, Array]:
            radii = np.maximum(t * self.kappa * s / lipschitz_rows(activation, n), tiny)
            return {**params, "A": projections.weighted_l1_ball_rows(params["A"], radii, s)}

        def rows(t: float) -> dict[str, Array]:
            shrink = np.minimum(1.0, t * self.kappa * s / np.maximum(found.matrix @ s, tiny))
            return scale_rows(params, found.spread(shrink))

        make = balls if "A" in params and not found.vectors else rows
        return lowered(make, lambda p: self._holds(gains(p, activation)), max(4 * eps, 1e-9))

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether a scaling proves ``lambda_pf <= kappa``.

        On the boundary itself that may be out of reach of rounding.
        """
        return self._holds(gains(params, activation))

    def _holds(self, found: Gains) -> bool:
        return positive_scaling(found.matrix, self.kappa)[1] <= self.kappa

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """``contraction = max_i (B s)_i / s_i``, for an s near the best."""
        if known_lipschitz(activation, size_of(params)) is None:
            return unknown_lipschitz(activation)
        found = gains(params, activation)
        s, factor = positive_scaling(found.matrix)
        what = "lambda_pf of the block norms" if found.vectors else "lambda_pf(|A|)"
        lipschitz = float(np.max(lipschitz_rows(activation, size_of(params))))
        words = f"{activation.name} is {lipschitz:.4g}-Lipschitz"
        what = what if lipschitz == 1.0 else f"{what}, rows times their Lipschitz constants,"
        if not factor < 1:
            return unproven(
                f"{words}, and no scaling shows {what} to be below 1; the best found shows "
                f"{factor:.4g}"
            )
        M = None if found.vectors else lower(np.eye(len(s)) - found.matrix)
        reason = f"{what} <= {factor:.4g}, {words}"
        return Certificate(True, factor, found.norm(s), "Picard", reason, comparison=M)
