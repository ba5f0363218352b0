"""What rounding may have changed, above all in a matrix given by factors.

In float64, on the host.

``fl(L R^T)`` differs from L R^T by at most ``gamma |L| |R|^T``, entry by entry, gamma =
(k + 2) eps. Bounds of norms and eigenvalues: `pyidl.wellposed.eigenvalues`.
"""

from __future__ import annotations

import math

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.typing import Params

__all__ = ["EPS", "LARGEST", "absolute", "complement", "entries"]

EPS = float(np.finfo(np.float64).eps)
LARGEST = 2000
"""Largest n for which conditions that take n^3 operations are examined unasked."""


def complement(c: float) -> float:
    """``1 - c``, rounded down, for 0 <= c <= 1."""
    m = 1.0 - c
    return m if 1.0 - m >= c else math.nextafter(m, 0.0)  # 1 - m is exact


def entries(params: Params) -> tuple[np.ndarray, np.ndarray | float]:
    """A itself and 0; of factors, their product and what rounding may have changed."""
    if "A" in params:
        return to_numpy(params["A"]).astype(np.float64), 0.0
    L, R = (to_numpy(params[key]).astype(np.float64) for key in "LR")
    product: np.ndarray = L @ R.T
    return product, (L.shape[1] + 2) * EPS * (np.abs(L) @ np.abs(R).T)


def absolute(params: Params) -> np.ndarray:
    """``|A|``, entry by entry, not too small."""
    A, error = entries(params)
    size = np.abs(A)
    return np.asarray(size if isinstance(error, float) else (size + error) * (1.0 + 4 * EPS))
