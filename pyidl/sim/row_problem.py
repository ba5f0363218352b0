r"""The problem of all rows, its objective, and a bound of what it is above the optimum.

    minimise  P(w) = |z - M w|^2 / (2m) + p(w)    subject to  |a|_1 <= kappa_i,

with w = (a, b), for every row i.

With G = M^T M / m, h = M^T z / m and square = |z|^2 / m the samples are not needed. A
square in the penalty is a part of the loss: further samples ``(m ridge)^(1/2) I`` with
target 0, so G + ridge I takes the place of G.

**The duality gap.** Let r be the residual (divided by m^(1/2)), and g = h - G w = M^T
r. For any s, ``theta = s r`` gives the lower bound

    P* >= D = theta.z - |theta|^2 / 2 - p^*(M^T theta),
    p^*(xi) = sup { xi.v - p(v) : |v_a|_1 <= kappa },

since ``|r_v|^2 / 2 >= theta.r_v - |theta|^2 / 2`` for every v, and ``theta.(z - M v) +
p(v) >= theta.z - p^*(M^T theta)``. With ``r.z = |r|^2 + g.w`` the difference is

    gap = P(w) - D = (1 - s)^2 |r|^2 / 2 + [ p(w) - s g.w + p^*(s g) ],

two terms that are not negative and vanish at the optimum: no large numbers cancel, so
it is good down to the rounding of g. What that rounding may be is added: in any order
of summation ``|fl(g) - g|_j <= (k + 4) u (|h_j| + sum_l |G_jl| |w_l|)``, u = 2^-53, by
Cauchy and Schwarz at most ``e_j = (k + 4) u G_jj^(1/2) (|z| / m^(1/2) + sum_l
G_ll^(1/2) |w_l|)``, a vector product. So the gap is an upper bound in floating point
too, for the G and H at hand.

**Weights without penalty and without bound** (lam = 0, or least squares) have a
conjugate that is finite at 0 only. They are eliminated: given a, ``b = G_bb^+ (h_b -
G_ba a)``, and a solves the same problem with the Schur complement ``G_aa - G_ab G_bb^+
G_ba``. What is missing at another b is ``g_b.(G_bb^+ g_b) / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import all_finite, from_host, namespace, to_numpy
from pyidl.errors import InputError
from pyidl.sim.moments import Moments
from pyidl.sim.penalties import ElasticNet, NoPenalty, Penalty, ball_project
from pyidl.typing import Array

__all__ = ["Measure", "RowProblem", "Spectrum", "free_groups"]

UNIT = float(np.finfo(np.float64).eps) / 2
TINY = float(np.finfo(np.float64).tiny)
FLOOR = 1e-8
"""A row with a loss below this part of its target's square counts as fitted exactly."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Objective and duality gap of some rows.

    `rounding` is the part of the gap that float64 cannot avoid. Shape (r,), on the
    host.
    """

    gap: np.ndarray
    objective: np.ndarray
    rounding: np.ndarray
    scale: np.ndarray
    """``FLOOR |z|^2 / (2m)``."""

    def enough(self, tol: float) -> np.ndarray:
        """Which rows have ``gap <= tol max(P, scale)``, or little but rounding."""
        wanted = tol * np.maximum(self.objective, self.scale)
        return np.asarray(self.gap <= np.maximum(wanted, 8.0 * self.rounding))


@dataclass(frozen=True, eq=False)
class RowProblem:
    """Rows w = (a, b) that share G; float64, in the library of the moments.

    Made by `RowProblem.of`.

    Parameters
    ----------
    G : array, shape (k, k)
        ``M^T M / m``, with the ridge on its diagonal.
    H : array, shape (r, k)
        ``M^T z / m``, one row each.
    square : array, shape (r,)
        ``|z|^2 / m``.
    penalty : Penalty
        Without its ridge.
    ball : int
        How many leading entries of a row are bounded.
    radius : numpy.ndarray of shape (r,), or None
        The bounds; None for no bound.
    mask : array of bool, shape (r, k), or None
        Which entries may differ from zero; None for all.
    spread : array, shape (k,)
        ``G_jj^(1/2)``, before an elimination: what roundings are relative to.
    reach : array, shape (r,)
        ``|z| / m^(1/2)``, likewise.

    Examples
    --------
    >>> from pyidl.sim import ADMM, L1
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> moments = Moments.of(X, X[:, :1] - 2 * X[:, 1:2])
    >>> problem = RowProblem.of(moments, L1(0.01), ball=4, radius=0.9)
    >>> rows = ADMM(tol=1e-8)(problem)
    >>> bool(problem.measure(rows.W).gap[0] <= 1e-8 * rows.objective[0])
    True
    """

    G: Array
    H: Array
    square: Array
    penalty: Penalty
    ball: int
    radius: np.ndarray | None
    mask: Array | None
    spread: Array
    reach: Array

    @classmethod
    def of(
        cls,
        moments: Moments,
        penalty: Penalty,
        *,
        rows: slice = slice(None),
        ball: int = 0,
        radius: Any = None,
        mask: Any = None,
    ) -> RowProblem:
        """The rows of some targets.

        Parameters
        ----------
        moments : Moments
            Of inputs [X, U] and targets.
        penalty : Penalty
            On the mean loss.
        rows : slice
            Which of the targets.
        ball : int
            How many leading inputs the bound counts: n for ``|a|_1 <= radius``, n + p
            for the whole row.
        radius : float or array of shape (r,), optional
            Positive bounds; none if left out.
        mask : array of bool, shape (r, n + p), optional
            Which weights may differ from zero.

        Raises
        ------
        InputError
            If a radius is not positive, `ball` or the mask does not fit, or the moments
            overflowed.
        """
        xp, m = namespace(moments.G), moments.count
        if not all_finite(xp, moments.G, moments.H, moments.square):
            raise InputError(
                "sums of products of inputs and targets are too large for float64; divide the data "
                "by their size, which is above 1e150"
            )
        G, H, square = moments.G / m, moments.H[rows, :] / m, moments.square[rows] / m
        r, k = H.shape
        ridge, rest = penalty.split()
        if ridge:
            G = G + ridge * xp.eye(k, dtype=xp.float64)
        if not 0 <= ball <= k or (radius is not None and ball == 0):
            raise InputError(
                f"ball is {ball}: the number of leading inputs that the bound counts lies between "
                f"1 and {k}"
            )
        radii = (
            None
            if radius is None
            else np.array(np.broadcast_to(to_numpy(radius).astype(np.float64), (r,)))
        )
        if radii is not None and not (np.all(radii > 0) and np.all(np.isfinite(radii))):
            raise InputError(
                f"the smallest radius is {radii.min()}; a bound of the weights is positive and "
                "finite, or None"
            )
        if mask is not None:
            allowed = to_numpy(mask)
            if allowed.shape != (r, k) or allowed.dtype != np.bool_:
                raise InputError(
                    f"the mask has shape {allowed.shape} and dtype {allowed.dtype}; it needs ({r}, "
                    f"{k}) and bool"
                )
            mask = from_host(xp, np.ascontiguousarray(allowed))
        spread = xp.sqrt(xp.sum(G * xp.eye(k, dtype=xp.float64), axis=1))
        return cls(
            G, H, square, rest, 0 if radii is None else ball, radii, mask, spread, xp.sqrt(square)
        )

    def take(self, rows: np.ndarray) -> RowProblem:
        """Some of the rows, numbered on the host."""
        xp = namespace(self.G)
        index = from_host(xp, rows)
        return RowProblem(
            self.G,
            xp.take(self.H, index, axis=0),
            xp.take(self.square, index, axis=0),
            self.penalty,
            self.ball,
            None if self.radius is None else self.radius[rows],
            None if self.mask is None else xp.take(self.mask, index, axis=0),
            self.spread,
            xp.take(self.reach, index, axis=0),
        )

    def zeros(self) -> Array:
        """All weights zero, which is feasible."""
        return namespace(self.H).zeros_like(self.H)  # type: ignore[no-any-return]

    def masked(self, W: Array) -> Array:
        """W with zeros where the mask wants them."""
        if self.mask is None:
            return W
        xp = namespace(W)
        return xp.where(self.mask, W, xp.zeros_like(W))  # type: ignore[no-any-return]

    def project(self, W: Array) -> Array:
        """The nearest feasible rows."""
        return ball_project(self.masked(W), self.ball, self.radius)

    def prox(self, V: Array, t: Any) -> Array:
        """The proximal map of t times the penalty under mask and bound; feasible."""
        return self.penalty.prox_ball(self.masked(V), t, self.ball, self.radius)

    @property
    def lam_max(self) -> float:
        """The least slope of the penalty at 0 (lam of L1) that makes all weights 0."""
        xp = namespace(self.H)
        return float(xp.max(xp.abs(self.masked(self.H)))) if self.H.size else 0.0

    @property
    def has_free(self) -> bool:
        """Whether some weights have neither penalty nor bound."""
        return (
            isinstance(self.penalty, ElasticNet)
            and self.penalty.lam == 0.0
            and self.ball < self.H.shape[1]
        )

    def correlation(self, W: Array) -> Array:
        """``h - G w``, minus the gradient of the loss, zero where the mask is."""
        return self.masked(self.H - W @ self.G)

    def doubt(self, W: Array) -> Array:
        """E, what rounding may have changed in `correlation`."""
        size = (self.reach + namespace(W).abs(W) @ self.spread) * ((self.H.shape[1] + 4) * UNIT)
        return self.masked(size[:, None] * self.spread)

    def measure(self, W: Array) -> Measure:
        """Objective and gap of feasible rows, rounding counted.

        With free weights (`has_free`) the gap is infinite.
        """
        xp = namespace(self.G)
        k = self.H.shape[1]
        gamma, size = (k + 4) * UNIT, xp.abs(W)
        g, e = self.correlation(W), self.doubt(W)
        up = xp.abs(g) + e
        held = 0 if self.radius is None else self.ball
        columns = [
            xp.sum(W * (self.H + g), axis=1),
            xp.sum(g * W, axis=1),
            xp.sum(xp.abs(g) * size, axis=1),
            xp.sum(e * size, axis=1),
            self.penalty.value(W),
            self.square,
            self.reach,
            *(
                xp.max(a[:, part], axis=1) if a[:, part].shape[1] else 0.0 * self.square
                for a in (up, e)
                for part in _parts(held)
            ),
        ]
        fit, gain, mass, error, value, square, reach, top, free, top_error, free_error = to_numpy(
            xp.stack(columns)
        )
        # |r|^2 = |z|^2 - w.(h + g), and what rounding may have changed in it
        doubt = gamma * (reach**2 + np.abs(fit) + 2.0 * mass) + error
        loss = np.maximum(square - fit, 0.0)
        s = self.penalty.dual_scale(loss, gain, top, free, self.radius)
        conjugate = to_numpy(
            self.penalty.conjugate(up * from_host(xp, s)[:, None], held, self.radius)
        )
        rounding = 0.5 * (1.0 - s) ** 2 * doubt + s * error + gamma * (value + s * mass + conjugate)
        gap = 0.5 * (1.0 - s) ** 2 * loss + np.maximum(value - s * gain + conjugate, 0.0) + rounding
        # How much less the gap could be without e: the largest entries count for the
        # bound and for s <= lam / free.
        less = s * top_error * (
            0.0 if self.radius is None else self.radius
        ) + value * free_error / np.maximum(free, TINY)
        return Measure(gap, 0.5 * loss + value, rounding + less, FLOOR * 0.5 * reach**2)

    def eliminate(self, free: np.ndarray) -> tuple[RowProblem, Spectrum]:
        """The problem of the bounded weights alone, and the spectrum of G_bb.

        The columns `free` take their best values.
        """
        xp, n = namespace(self.G), self.ball
        index = from_host(xp, free)
        Gb, Hb = xp.take(self.G, index, axis=0), xp.take(self.H, index, axis=1)
        spectrum = Spectrum.of(xp.take(Gb, index, axis=1))
        best, Gba = spectrum.solve(Hb), Gb[:, :n]
        G, H = self.G[:n, :n] - spectrum.solve(Gba.T) @ Gba, self.H[:, :n] - best @ Gba
        mask = None if self.mask is None else self.mask[:, :n]
        square = xp.maximum(self.square - xp.sum(Hb * best, axis=1), 0.0)
        return RowProblem(
            0.5 * (G + G.T),
            H,
            square,
            NoPenalty(),
            n,
            self.radius,
            mask,
            self.spread[:n],
            self.reach,
        ), spectrum


@dataclass(frozen=True, eq=False)
class Spectrum:
    """``Q diag(values) Q^T``, for the pseudo-inverse of a positive semidefinite matrix.

    Eigenvalues below k times the rounding of the largest count as zero: the data do not
    tell them from it.
    """

    values: Array
    Q: Array
    kept: Array

    @classmethod
    def of(cls, G: Array) -> Spectrum:
        """The spectrum of G, by one symmetric eigendecomposition."""
        xp = namespace(G)
        if not G.shape[0]:
            return cls(G[:, :0], G, G[:, :0])
        values, Q = xp.linalg.eigh(G)
        largest = xp.max(xp.abs(values))
        return cls(
            xp.maximum(values, UNIT * largest + TINY), Q, values > 2 * G.shape[0] * UNIT * largest
        )

    def solve(self, g: Array) -> Array:
        """``g G^+``, for rows g."""
        if not self.Q.shape[0]:
            return g
        xp = namespace(g)
        p = g @ self.Q
        p = xp.where(self.kept, p / self.values, xp.zeros_like(p))
        return p @ self.Q.T  # type: ignore[no-any-return]

    def missing(self, g: Array, e: Array) -> np.ndarray:
        """``g G^{-1} g / 2``, what a loss with gradient g is above its minimum.

        All directions are counted; g is known up to e.
        """
        xp = namespace(g)
        if not self.Q.shape[0]:
            return np.zeros(g.shape[0])
        p = xp.abs(g @ self.Q)
        p = xp.where(self.kept, p, p + e @ xp.abs(self.Q))
        return to_numpy(0.5 * xp.sum(p * p / self.values, axis=1))


def _parts(held: int) -> tuple[slice, slice]:
    return slice(0, held), slice(held, None)


def free_groups(problem: RowProblem) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows that allow the same free weights, with those weights.

    Pairs of numbers, on the host.
    """
    r, k = problem.H.shape
    if problem.mask is None:
        return [(np.arange(r), np.arange(problem.ball, k))]
    allowed = to_numpy(problem.mask)[:, problem.ball :]
    kinds, kind = np.unique(allowed, axis=0, return_inverse=True)
    return [
        (np.flatnonzero(kind.reshape(-1) == i), problem.ball + np.flatnonzero(kinds[i]))
        for i in range(len(kinds))
    ]
