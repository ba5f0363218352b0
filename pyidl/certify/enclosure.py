r"""Proofs that a box contains exactly one solution.

They use Newton's map with slopes instead of derivatives, and sums that are rounded up.

Let ``F(x) = x - phi(A x + z)``, and let p be any point, such as a solver returns. On
the box ``|x - p| <= delta`` (entry by entry) the pre-activations lie in ``A p + z +-
|A| delta``, so that the slopes of phi between any two of them lie in known intervals,
``|s_i - D_i| <= Delta_i``. For two points of the box

    F(x) - F(x') = (I - S A)(x - x'),    S = diag(s),

and with any matrix M (an approximate inverse of I - D A) the map ``N(x) = x - M F(x)``
has

    |N(x) - N(x')| <= Q |x - x'|,    Q = |I - M (I - D A)| + |M| Delta |A|.

*Theorem.* If ``|M F(p)| + Q e < e`` for some e with 0 < e <= delta, then the box delta
contains exactly one solution, and it lies within e of p. *Proof.* ``|N(x) - p| <= |M
F(p)| + Q |x - p|``, so N maps the box e into itself. Since Q e < e, it contracts in the
norm ``max_i |x_i| / e_i`` on the box delta; so do the matrices I - M (I - S A), whence
M is nonsingular, and the fixed points of N are the solutions. Banach's theorem gives
one in the box e; the contraction allows no second in the box delta.

Source: Krawczyk's operator and the Newton-Kantorovich theorem, with slopes in place of
derivatives, so that phi may have kinks; S. M. Rump, "Verification methods: rigorous
results using floating-point arithmetic", Acta Numerica 19, 2010.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import to_numpy
from pyidl.layers.implicit import ImplicitModel

__all__ = ["Equation", "Search", "others", "up"]

EPS = float(np.finfo(np.float64).eps)
TINY = 1e-290  # more than underflow can cost in any sum below
ATTEMPTS = 8  # boxes that are tried for a sample
SWEEPS = 200  # steps of e <- g + Q e
WIDEST = 2.0**70  # how far the search for other solutions goes, in units of the first box


def up(a: np.ndarray, terms: int) -> np.ndarray:
    """An upper bound of what `a` >= 0 approximates after `terms` rounded steps."""
    return np.asarray(a * (1.0 + (2 * terms + 16) * EPS) + TINY)


@dataclass(frozen=True)
class _Linear:
    """The parts of Q that do not depend on the box."""

    D: np.ndarray
    M: np.ndarray
    size: np.ndarray  # |M|
    rest: np.ndarray  # |I - M (I - D A)|


@dataclass
class Equation:
    """``x = phi(A x + B u + b)`` on the host, in float64.

    `spread` bounds the error of A where it is a product, `size` bounds ``|A|``.
    """

    A: np.ndarray
    size: np.ndarray
    spread: np.ndarray | None
    B: np.ndarray
    b: np.ndarray
    parts: list[tuple[Activation, slice]]
    last: _Linear | None = None

    @classmethod
    def of(cls, model: ImplicitModel, parts: list[tuple[Activation, slice]]) -> Equation:
        """The parameters in float64, where they are exact."""
        params = {key: to_numpy(a).astype(np.float64) for key, a in model.params.items()}
        b = params.get("b", np.zeros(model.hidden_dim))
        if "A" in params:
            return cls(params["A"], np.abs(params["A"]), None, params["B"], b, parts)
        L, R = params["L"], params["R"]
        A, k = L @ R.T, L.shape[1]
        spread = up((k + 2) * EPS * (np.abs(L) @ np.abs(R).T), k)
        return cls(A, up(np.abs(A) + spread, 1), spread, params["B"], b, parts)

    def pre(self, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``y = A x + B u + b`` for every sample, and a bound of its error."""
        terms = self.A.shape[1] + self.B.shape[1] + 2
        y = x @ self.A.T + u @ self.B.T + self.b
        size = np.abs(x) @ self.size.T + np.abs(u) @ np.abs(self.B).T + np.abs(self.b)
        blur = terms * EPS * size
        if self.spread is not None:
            blur += np.abs(x) @ self.spread.T
        return y, up(blur, 2 * terms)

    def residual(
        self, x: np.ndarray, y: np.ndarray, blur: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``F(x) = x - phi(y)``, and a bound of its error.

        phi moves by at most L blur.
        """
        image, lipschitz = np.empty_like(y), np.empty_like(y)
        for activation, columns in self.parts:
            image[columns], lipschitz[columns] = activation.phi(y[columns]), _lipschitz(activation)
        F = x - image
        return F, up(lipschitz * blur + 16 * EPS * (np.abs(y) + np.abs(image)) + EPS * np.abs(F), 6)

    def slopes(self, y: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bounds of the slopes of phi between any two points of ``y +- reach``.

        Third is where a kink lies in between. The interval is cut at the kinks; on each
        piece phi' differs from its value in the middle by at most half the length times
        the curvature. A mean slope over several pieces is a mean of theirs.
        """
        low, high, kink = np.full_like(y, np.inf), np.full_like(y, -np.inf), np.zeros(y.shape, bool)
        for activation, c in self.parts:
            least, most = activation.slope_range or (-np.inf, np.inf)
            if activation.curvature is None:
                low[..., c], high[..., c] = least, most
                continue
            # Widened by a few roundings: a piece that matters is then longer than those
            # of its ends and of its middle.
            largest = np.abs(y[..., c]) + max(map(abs, activation.kinks), default=0.0)
            wide = up(reach[..., c] + 8 * EPS * largest, 2)
            left, right = y[..., c] - wide, y[..., c] + wide
            known = np.isfinite(right - left)  # else it is too long for its middle to exist
            cuts = [left, *(np.clip(k, left, right) for k in activation.kinks), right]
            for a, b in itertools.pairwise(cuts):
                half = 0.5 * (b - a)
                slope = activation.dphi(a + half)
                off = up(activation.curvature * half, 2) + 64 * EPS * (1.0 + _lipschitz(activation))
                lower = np.where(known, np.clip(slope - off, least, most), least)
                upper = np.where(known, np.clip(slope + off, least, most), most)
                low[..., c] = np.minimum(low[..., c], lower)
                high[..., c] = np.maximum(high[..., c], upper)
            for k in activation.kinks:
                kink[..., c] |= (left <= k) & (k <= right)
        return low, high, kink

    def middle(self, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
        """The slopes in the middle of what they may be at the points themselves."""
        low, high, _ = self.slopes(y, blur)
        return 0.5 * low + 0.5 * high

    def linear(self, D: np.ndarray) -> _Linear | None:
        """The parts of Q for these slopes, remembered.

        None where there is no inverse.
        """
        if self.last is None or not np.array_equal(self.last.D, D):
            eye = np.eye(len(D))
            K = eye - D[:, None] * self.A
            try:
                M = np.linalg.inv(K)
            except np.linalg.LinAlgError:
                return None
            self.last = _Linear(D, M, np.abs(M), np.abs(eye - M @ K))
        return self.last

    def grow(self, linear: _Linear, Delta: np.ndarray, w: np.ndarray) -> np.ndarray:
        """An upper bound of ``Q w`` for w >= 0.

        The entries of I - D A as computed are off by at most 2 eps (I + |D| |A|) and,
        for factors, |D| times the error of A; those of its product with M by gamma_n
        |M| (I + |D| |A|).
        """
        n = len(w)
        v, d = self.size @ w, np.abs(linear.D)
        inner = Delta * v + (n + 8) * EPS * (w + d * v)
        if self.spread is not None:
            inner += d * (self.spread @ w)
        return up(linear.rest @ w + linear.size @ inner, 3 * n + 16)

    def everywhere(self) -> bool:
        """Whether N contracts for all slopes of phi.

        Then no input has two solutions.
        """
        low, high = (np.empty(len(self.A)) for _ in range(2))
        for activation, c in self.parts:
            low[c], high[c] = activation.slope_range or (-np.inf, np.inf)
        D = 0.5 * low + 0.5 * high
        linear = self.linear(D)
        return linear is not None and self.contracts(linear, _distance(D, low, high))

    def contracts(self, linear: _Linear, Delta: np.ndarray) -> bool:
        """Whether ``Q w < w`` for a w > 0, sought among ``1 + Q 1 + Q^2 1 + ...``."""
        w = np.ones(len(Delta))
        for _ in range(SWEEPS // 4):
            grown = self.grow(linear, Delta, w)
            if np.all(grown < w):
                return True
            if not np.all(grown < 1e12):
                return False
            w = 1.0 + grown
        return False


def _lipschitz(activation: Activation) -> float:
    low, high = activation.slope_range or (-np.inf, np.inf)
    return max(-low, high)


def _distance(D: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``Delta``: how far a slope in [low, high] may be from D."""
    return up(np.maximum(high - D, D - low), 1)


class Search:
    """The box and the bound of one sample."""

    def __init__(self, problem: Equation, x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> None:
        self.problem, self.y, self.blur = problem, y, blur
        self.F, self.doubt = problem.residual(x, y, blur)

    def slopes(self, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bounds of the slopes between points of the box, and where kinks lie in it."""
        reach = up(self.problem.size @ delta + self.blur, len(delta) + 1)
        return self.problem.slopes(self.y, reach)

    def step(self, linear: _Linear) -> np.ndarray:
        """An upper bound of ``|M F(p)|``, positive in every entry."""
        n = len(self.F)
        doubt = self.doubt + (n + 2) * EPS * np.abs(self.F)
        return up(np.abs(linear.M @ self.F) + linear.size @ doubt, n + 4)

    def prove(self, everywhere: bool) -> tuple[bool, np.ndarray, float, int, str]:
        """``(proven, error, radius, at_kink, reason)``, by widening boxes."""
        problem = self.problem
        size = float(np.max(np.abs(self.F)))
        delta, D, kinks, growth = np.zeros(len(self.F)), None, 0, np.inf
        for attempt in range(ATTEMPTS):
            low, high, kink = self.slopes(delta)
            kinks = int(kink.sum())
            middle = 0.5 * low + 0.5 * high
            if D is None or np.max(np.abs(middle - D)) > 0.01:
                D = middle
            linear = problem.linear(D)
            if linear is None or not np.all(np.isfinite(linear.M)):
                return self.failure(f"I - D A is singular; the residual is {size:.3g}")
            g, Delta = self.step(linear), _distance(D, low, high)
            if attempt == 0:  # no box yet: a first guess
                delta = 2.0 * g + 0.01 * np.max(g)
                continue
            e, growth = self.bound(linear, Delta, g)
            if e is None:
                break
            if np.all(e <= delta):
                # N maps the box e into this one, which is not larger.
                error = up(g + problem.grow(linear, Delta, e), 2)
                radius = np.inf if everywhere else self.widen(linear, delta)
                reason = f"exactly one solution within {error.max():.3g}, {others(radius)}"
                return True, np.minimum(error, e), radius, kinks, reason
            delta = np.maximum(delta, 1.5 * e)
        bent = "no box holds it"
        if growth < np.inf:
            bent = f"it grows by {growth:.3g} on a box of {np.max(delta):.3g}"
        return self.failure(
            f"the Newton map is not seen to contract near the point ({bent}); the residual is "
            f"{size:.3g}"
        )

    def failure(self, words: str) -> tuple[bool, np.ndarray, float, int, str]:
        """Nothing is proven, and why; with the kinks within reach of the residual."""
        n, kinks = len(self.F), int(self.slopes(np.abs(self.F) + self.doubt)[2].sum())
        where = f", and {kinks} of {n} units lie within its reach of a kink" if kinks else ""
        return False, np.full(n, np.inf), 0.0, kinks, f"not certified: {words}{where}"

    def bound(
        self, linear: _Linear, Delta: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray | None, float]:
        """An e with ``g + Q e <= e``, near the least, and by how much Q makes it grow.

        ``e_k = g + Q g + ... + Q^k g`` rises to the least; 1.01 e_k is an answer as
        soon as ``Q^(k+1) g <= 0.01 g``, nearly.
        """
        e, growth = g, np.inf
        for _ in range(SWEEPS):
            wider = 1.01 * e
            grown = self.problem.grow(linear, Delta, wider)
            if np.all(up(g + grown, 2) <= wider):
                return wider, growth
            growth = float(np.max(grown / wider))
            e = up(g + grown / 1.01, 4)
            if not np.all(e <= 1e8 * np.max(g)):
                break
        return None, growth

    def widen(self, linear: _Linear, delta: np.ndarray) -> float:
        """The largest t that is found with N contracting on the box with all sides t.

        It is no less than the smallest side of delta.
        """

        def holds(t: float) -> bool:
            low, high, _ = self.slopes(np.full(len(delta), t))
            return self.problem.contracts(linear, _distance(linear.D, low, high))

        good, t = float(np.min(delta)), float(np.max(delta))
        limit = t * WIDEST
        while t < limit and holds(t):
            good, t = t, 8.0 * t
        for _ in range(4):
            middle = np.sqrt(good * t)
            good, t = (middle, t) if holds(middle) else (good, middle)
        return good


def others(radius: float) -> str:
    """Where other solutions may be, in words."""
    return "no other solution at all" if radius == np.inf else f"no other within {radius:.3g}"
