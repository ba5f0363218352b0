r"""How much attention can expand what feeds back into it: norms of R, and two lemmas.

States are measured by their largest entry, over tokens, heads and coordinates. For
``o -> o M`` on row vectors with ``|o|_inf <= 1``,

    col_b(M) = sum_a |M_ab| >= |(o M)_b|,     col(M) = max_b col_b(M),
    nu(M) = min{ |(col_1, ..., col_h)|_2,  sqrt(rows) |M|_2,  sum_a |M_a.|_2 }
          >= |o M|_2.

**Lemma 1.** Let ``p_j >= 0, s = sum p_j <= 1, |u_j| <= 1, o = sum p_j u_j, |t_j| <=
beta (1 - u_j^2)``. Then, for any d_j, ``|sum p_j d_j (u_j - o) + sum p_j t_j| <=
N(sqrt(s sum p_j d_j^2), s beta)``, where

    N(a, b) = max over x in [0, 1] of a x + b (1 - x^2)
            = a if a >= 2b, otherwise b + a^2 / (4b).

*Proof.* ``sum p (u - o)^2 = sum p u^2 - (2 - s) o^2 <= sum p u^2 = s x^2`` with x in
[0, 1]. Cauchy and Schwarz bound the first sum by ``sqrt(sum p d^2) sqrt(s) x``; the
second is at most ``beta (s - s x^2)``. ∎

**Lemma 2.** For ``p_j = e^(-y_j) / (c + sum_l e^(-y_l))``, y in R_+^n: ``s sum p_j y_j
<= mu(c/n)^2``, with Lambert's function W_0 and

    mu(t) = max_(y >= 0) sqrt(y) / (1 + t e^y)
          = (2y - 1) / (2 sqrt(y))  at  y = 1/2 + W_0(1 / (2 t sqrt(e))),

and ``sum p_j y_j <= W_0(n / (e c))``.

*Proof.* With ``S = sum e^(-y_j)``, concavity gives ``sum p_j y_j <= S log(n/S) / (c +
S)``. Put y = log(n/S). ∎
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.typing import Params
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.eigenvalues import spectral_bound

__all__ = ["UP", "Feedback", "combined", "lambert", "mu", "own_key"]

UP = 1.0 + 64 * EPS
"""What a handful of operations may have rounded down."""


def lambert(z: float) -> float:
    """``W_0(z)``, the w >= 0 with ``w e^w = z``, for z >= 0."""
    import scipy.special

    return float(scipy.special.lambertw(z).real)


def mu(t: float) -> float:
    """``max_(y >= 0) sqrt(y) / (1 + t e^y)`` for t > 0; the constant of Lemma 2."""
    y = 0.5 + lambert(0.5 / (t * math.sqrt(math.e)))
    return (2.0 * y - 1.0) / (2.0 * math.sqrt(y)) * UP


def own_key(c: float) -> float:
    """``max sqrt(y E S) / (c + S)`` over y >= 0 and ``S >= E = e^(-y)``.

    What Lemma 2 is for the own key alone. ``S / (c + S)^2`` is largest at S = c, where
    it is 1 / (4c), or at S = E if that is above c.
    """
    y = max(1.0, math.log(1.0 / c))
    return max(mu(c), math.sqrt(y * math.exp(-y) / (4.0 * c)) * UP)


def combined(a: float, b: float) -> float:
    """``N(a, b)`` of Lemma 1, which lies between max(a, b) and a + b."""
    return a if a >= 2.0 * b else b + a * a / (4.0 * b)


@dataclass(frozen=True)
class Feedback:
    """Norms of the blocks of R for one head, rounded up.

    Attributes
    ----------
    k, q, v : numpy.ndarray, shape (h,)
        ``col_b`` of R_k, R_q and R_v.
    nu_k, nu_q : float
        Bounds of the norms from largest entry to Euclidean.
    """

    k: np.ndarray
    q: np.ndarray
    v: np.ndarray
    nu_k: float
    nu_q: float

    @classmethod
    def of(cls, params: Params) -> list[Feedback]:
        """Those of every head, from R or from its factors L and M."""
        R, error = _entries(params)
        h, found = R.shape[2] // 3, []
        for M, E in zip(R, error, strict=True):
            columns = np.sum(np.abs(M) + E, axis=0) * (1.0 + (len(M) + 2) * EPS)
            k, q = slice(0, h), slice(h, 2 * h)
            nu_k, nu_q = _nu(M[:, k], E[:, k]), _nu(M[:, q], E[:, q])
            found.append(cls(columns[k], columns[q], columns[2 * h :], nu_k, nu_q))
        return found

    @property
    def values(self) -> float:
        """``col(R_v)``."""
        return float(self.v.max())


def _entries(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """R, (H, rows, 3h), in float64 on the host, and a bound of its rounding errors."""
    if "R" in params:
        R = to_numpy(params["R"]).astype(np.float64)
        return R, np.zeros_like(R)
    L, M = (to_numpy(params[key]).astype(np.float64) for key in "LM")
    return L @ M, (L.shape[2] + 2) * EPS * (np.abs(L) @ np.abs(M))


def _nu(M: np.ndarray, E: np.ndarray) -> float:
    """``nu(M)``, where M may be wrong by E, entry by entry."""
    size = np.abs(M) + E
    forms = (
        float(np.linalg.norm(size.sum(axis=0))),
        math.sqrt(len(M)) * (spectral_bound(M) + float(np.linalg.norm(E))),
        float(np.linalg.norm(size, axis=1).sum()),
    )
    return min(forms) * (1.0 + 4 * (M.size + 4) * EPS)
