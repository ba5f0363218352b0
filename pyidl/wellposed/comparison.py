r"""From a comparison matrix to an error bound in a norm.

Let ``M |x - x*| <= |f(x) - x|`` entry by entry, M without positive entries off the
diagonal. If ``M s >= m s`` with s > 0, m > 0, then M is a nonsingular M-matrix,
``M^{-1} s <= s / m``, and with r = max_i |f(x) - x|_i / s_i

    |x - x*| <= M^{-1} |f(x) - x| <= r M^{-1} s <= (r / m) s:

the error in the norm ``max_i |x_i| / s_i`` is at most r / m.
"""

from __future__ import annotations

import numpy as np

from pyidl.wellposed.bounds import EPS

__all__ = ["lower", "positive_solution", "scaled_margin"]


def lower(M: np.ndarray) -> np.ndarray:
    """M with every entry one rounding lower; zeros stay.

    What is proven with less holds with more.
    """
    return np.where(M == 0, M, np.nextafter(M, -np.inf))


def scaled_margin(M: np.ndarray, s: np.ndarray) -> float:
    """The largest m with ``M s >= m s``, rounded down; 0 where none is found."""
    if not (np.all(s > 0) and np.all(np.isfinite(s))):
        return 0.0
    with np.errstate(all="ignore"):
        image = M @ s - 2 * (len(s) + 4) * EPS * (np.abs(M) @ s)
        m = float(np.min(image / s)) * (1.0 - 4 * EPS)
    return m if m > 0 else 0.0


def positive_solution(M: np.ndarray) -> tuple[np.ndarray, float]:
    """``s = M^{-1} 1``, scaled to a largest entry of 1, and its margin.

    Where M proves nothing, they are ones and 0.
    """
    with np.errstate(all="ignore"):
        try:
            s = np.linalg.solve(M, np.ones(len(M)))
        except np.linalg.LinAlgError:
            return np.ones(len(M)), 0.0
        s = s / np.max(s)
        m = scaled_margin(M, s)
    return (s, m) if m > 0 else (np.ones(len(M)), 0.0)
