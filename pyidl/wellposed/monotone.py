r"""The monotone condition: ``(A + A^T) / 2 <= (1 - m) I`` with m > 0, for phi with slopes in [0, 1].

With slopes in [0, L] it is one on W = L A: phi(y) = psi(L y), and psi has slopes in [0, 1].

**Error.** Such a psi is firmly nonexpansive, ``(p - p') . (y - y') >= |p - p'|^2`` for p = psi(y), being monotone and 1-Lipschitz in every
component. Let e = x - x*, r = f(x) - x. With p = f(x) = x + r, p' = x* and y - y' = W e,

    (e + r) . (W e - e - r) >= 0,   that is   e . (I - W) e <= - e . r - r . (I - W) e - |r|^2,

and ``e . (I - W) e >= m |e|^2``, so ``m |e|^2 <= |e| |r| (1 + ||I - W||_2)`` and

    |x - x*| <= (1 + ||I - W||_2) / m  |f(x) - x|   (Euclidean).   Two solutions have r = 0, hence coincide.

**Existence, and a rate.** psi is the proximal map of a convex f, and x solves the equation iff
``x = prox_{a f}(x - a ((I - W) x - L z))``, for every a > 0. The proximal map is nonexpansive, and
``|d - a (I - W) d|^2 <= (1 - 2 a m + a^2 l^2) |d|^2``, l = ||I - W||_2: forward-backward with ``a = m / l^2`` contracts by
``(1 - m^2 / l^2)^(1/2)``.

**Projection.** Symmetric and skew matrices are orthogonal to each other, so the nearest A keeps its skew part, and the eigenvalues of its
symmetric part are clipped.

Source: Winston, Kolter, "Monotone operator equilibrium networks", NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.backend import namespace, to_numpy
from pyidl.certificate import Certificate, Norm
from pyidl.errors import InputError
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, lipschitz_rows, lowered, needs_slopes, size_of, unproven
from pyidl.wellposed.blocknorms import scale_rows
from pyidl.wellposed.bounds import EPS, entries, largest_eigenvalue, spectral_norm
from pyidl.wellposed.spectral import back

__all__ = ["Monotone"]


@dataclass(frozen=True)
class Monotone(Constraint):
    """The set ``(A + A^T) / 2 <= (1 - margin) / L I``, for activations with slopes in [0, L]. The skew part of A is free.

    `project` is the exact Euclidean projection for a full A; eigenvalues are computed on the host in float64. Factors are scaled:
    feasible and idempotent, not the nearest point.

    Parameters
    ----------
    margin : float
        m, positive; less than 1 for factors.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = Monotone(0.5).project({"A": np.array([[0.7, 5.0], [-5.0, -2.0]])}, activations.relu)["A"]
    >>> A.round(6)
    array([[ 0.5,  5. ],
           [-5. , -2. ]])
    """

    contracts = False

    margin: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise InputError(f"margin is {self.margin}; the monotone condition needs a positive one")
        object.__setattr__(self, "margin", float(self.margin))

    def refusal(self, activation: Activation) -> str:
        """Slopes must lie in [0, L]."""
        return needs_slopes(activation)

    def _radius(self, params: Params, activation: Activation) -> float:
        return (1.0 - self.margin) / float(np.max(lipschitz_rows(activation, size_of(params))))

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params whose symmetric part has eigenvalues of at most ``(1 - margin) / L``."""
        if self.contains(params, activation):
            return dict(params)
        r, key = self._radius(params, activation), "A" if "A" in params else "L"
        like = params[key]
        eps = float(namespace(like).finfo(like.dtype).eps)
        if key == "L":
            if self.margin >= 1:
                raise InputError(f"margin is {self.margin}: factors A = L R^T are scaled, which leads to 0 and no further; use margin < 1")
            shrink = r / max(sum(largest_eigenvalue(params)), r)
            scaled: dict[str, Array] = lowered(
                lambda t: scale_rows(params, np.full(size_of(params), t * shrink)), lambda p: self.contains(p, activation), 4 * eps
            )
            return scaled
        host = to_numpy(like).astype(np.float64)
        symmetric = 0.5 * (host + host.T)
        values, V = np.linalg.eigh(symmetric)
        skew, size = host - symmetric, float(np.linalg.norm(host)) + abs(r)

        def clipped(t: float) -> Array:
            return back(like, skew + (V * np.minimum(values, r - (1.0 - t) * size)) @ V.T)

        # Rounding the entries of the result moves its eigenvalues by at most eps |A|_F / 2. At t = 0 the clip is far below r.
        projected: dict[str, Array] = lowered(
            lambda t: {**params, "A": clipped(t)}, lambda p: self.contains(p, activation), 0.5 * eps + 16 * len(host) * EPS
        )
        return projected

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether the largest eigenvalue, with its rounding added, is at most ``(1 - margin) / L``."""
        return sum(largest_eigenvalue(params)) <= self._radius(params, activation)

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """The rate of forward-backward with its best step, and the margin of the error, in the Euclidean norm."""
        refused = needs_slopes(activation)
        if refused:
            return unproven(f"{activation.name}: {refused}")
        L = float(np.max(lipschitz_rows(activation, size_of(params))))
        m = _margin(params, L)
        words = f"{activation.name} has slopes in [0, {L:.4g}]"
        if not m > 0:
            what = "A" if L == 1 else f"{L:.4g} A"
            return unproven(f"the symmetric part of {what} has an eigenvalue of {1 - m:.4g}, not below 1 ({words})")
        gap = _distance(params, L)
        words = f"(A + A^T) / 2 <= {(1 - m) / L:.4g} I, {words}"
        margin = m / (1.0 + gap) * (1.0 - 8 * EPS)
        # The solver works with A itself and needs slopes in [0, 1]; with L < 1 both statements hold, with different numbers.
        name, rate = "ForwardBackward", _rate(m, gap)
        if L < 1:
            plain = _margin(params, 1.0)
            rate, name = (_rate(plain, _distance(params, 1.0)), name) if plain > 0 else (rate, "")
        if L > 1 or not name:
            name = f"forward-backward on {L:.4g} A, with a phi of slopes in [0, 1],"
        return Certificate(True, rate, Norm("Euclidean"), name, words, margin=margin)


def _margin(params: Params, scale: float) -> float:
    """The largest m with ``scale (A + A^T) / 2 <= (1 - m) I``, rounded down."""
    top, rounding = largest_eigenvalue(params, scale)
    return 1.0 - top - rounding - 4 * EPS * (1.0 + abs(top))


def _distance(params: Params, scale: float) -> float:
    """``||I - scale A||_2``, rounded up."""
    A, error = entries(params)
    rest = 0.0 if isinstance(error, float) else float(np.linalg.norm(error))
    return (spectral_norm(np.eye(len(A)) - scale * A) + scale * rest) * (1.0 + 4 * EPS) + 4 * EPS * scale * float(np.linalg.norm(A))


def _rate(m: float, gap: float) -> float:
    """``(1 - m^2 / l^2)^(1/2)``, rounded up; m is at most l."""
    return float(np.sqrt(max(0.0, 1.0 - (m / gap) ** 2 * (1.0 - 8 * EPS)))) * (1.0 + 2 * EPS)
