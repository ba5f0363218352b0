r"""Upper bounds of what a matrix does, with the roundings on the safe side; float64, on the host.

**A product of factors.** ``fl(L R^T)`` differs from L R^T by at most ``gamma |L| |R|^T``, entry by entry, gamma = (k + 2) eps.

**The spectral norm** up to n = 2000 from singular values, which LAPACK computes with an error of a few n eps sigma_1; beyond that from
squares. For a symmetric C, ``|C|_2^2 = |C^2|_2``, and C^2 is computed with an error of at most ``gamma |C|_F^2`` in the Frobenius norm, so

    |A|_2^2 = |A^T A|_2 <= |C_0|_2 + gamma |A|_F^2,    |C_j|_2^2 <= |C_{j+1}|_2 + gamma |C_j|_F^2,    |C_k|_2 <= |C_k|_F,

read from right to left. Without roundings this is ``|(A^T A)^(2^k)|_F^(1 / 2^(k+1))``, at most ``n^(1 / 2^(k+2))`` times too large.
(A power iteration gives a *lower* bound, and proves nothing.)
"""

from __future__ import annotations

import numpy as np

from pyidl.backend import to_numpy
from pyidl.typing import Params

__all__ = ["EPS", "LARGEST", "absolute", "entries", "largest_eigenvalue", "spectral_norm", "spectral_norm_of"]

EPS = float(np.finfo(np.float64).eps)
LARGEST = 2000
"""Largest n for which singular values and eigenvalues are computed."""
SQUARES = 12


def entries(params: Params) -> tuple[np.ndarray, np.ndarray | float]:
    """A itself and 0; for factors, their product and what rounding may have changed in it."""
    if "A" in params:
        return to_numpy(params["A"]).astype(np.float64), 0.0
    L, R = (to_numpy(params[key]).astype(np.float64) for key in "LR")
    product: np.ndarray = L @ R.T
    return product, (L.shape[1] + 2) * EPS * (np.abs(L) @ np.abs(R).T)


def absolute(params: Params) -> np.ndarray:
    """``|A|``, entry by entry, not too small."""
    A, error = entries(params)
    return np.asarray(np.abs(A) if isinstance(error, float) else (np.abs(A) + error) * (1.0 + 4 * EPS))


def spectral_norm(A: np.ndarray) -> float:
    """A number that ``|A|_2`` does not exceed, for any rectangular A."""
    r, c = A.shape
    size = float(np.max(np.abs(A), initial=0.0))
    if not 0 < size < np.inf:
        return size
    A = A / size  # neither the squares below nor their sums overflow; the division's rounding is in what is added
    slack = 1.0 + 16 * (r + c) * EPS
    if min(r, c) == 1:
        found = float(np.sqrt(np.sum(A * A)))
    elif min(r, c) <= LARGEST:
        found = float(np.linalg.svd(A, compute_uv=False)[0])
    else:
        found = _by_squares(A)
    return float(size * found * slack)


def _by_squares(A: np.ndarray) -> float:
    """The chain of the file's head, every C_j divided by its Frobenius norm f_j."""
    if A.shape[0] < A.shape[1]:
        A = A.T
    gamma = (A.shape[0] + 2) * EPS
    scales, errors = [], [gamma * float(np.sum(A * A))]
    C = A.T @ A
    for _ in range(SQUARES):
        C = 0.5 * (C + C.T)
        f = float(np.linalg.norm(C))
        scales.append(f)
        C = C / f  # |C_j|_F = f_j (1 + a few eps), so the error of its square is gamma f_j^2
        errors.append(2 * gamma)
        C = C @ C
    bound = float(np.linalg.norm(C)) * (1.0 + 4 * len(C) * EPS)
    for f, error in zip(reversed(scales), reversed(errors[1:]), strict=True):
        bound = f * float(np.sqrt(bound + error)) * (1.0 + 8 * EPS)
    return float(np.sqrt(bound + errors[0]))


def spectral_norm_of(params: Params) -> float:
    """That of A; for factors, of the k by k matrix ``R_1 R_2^T``, where ``L = Q_1 R_1`` and ``R = Q_2 R_2``."""
    if "A" in params:
        return spectral_norm(to_numpy(params["A"]).astype(np.float64))
    L, R = (to_numpy(params[key]).astype(np.float64) for key in "LR")
    one, two = np.linalg.qr(L)[1], np.linalg.qr(R)[1]
    n, k = L.shape
    # Q_1 R_1 = L up to a few n eps |L|_F; the product inherits that times the norm of the other factor.
    rounding = 8 * (n + k) * EPS * float(np.linalg.norm(L)) * float(np.linalg.norm(R))
    return float(spectral_norm(one @ two.T) + rounding)


def largest_eigenvalue(params: Params, scale: float = 1.0) -> tuple[float, float]:
    """That of the symmetric part of ``scale * A``, and what rounding may have changed in it.

    For factors, ``(L R^T + R L^T) / 2 = W (R_w J R_w^T / 2) W^T`` with ``[L R] = W R_w``, W orthonormal, and J swapping the two halves: an
    eigenvalue problem of 2k numbers. All other eigenvalues are 0.
    """
    if "A" in params:
        A = to_numpy(params["A"]).astype(np.float64) * scale
        S = 0.5 * (A + A.T)
        return float(np.linalg.eigvalsh(S)[-1]), 8 * len(S) * EPS * float(np.linalg.norm(S))
    L, R = (to_numpy(params[key]).astype(np.float64) for key in "LR")
    n, k = L.shape
    both = np.linalg.qr(np.concatenate([L, R], axis=1))[1]
    half = 0.5 * both[:, :k] @ both[:, k:].T * scale
    top = float(np.linalg.eigvalsh(half + half.T)[-1])
    rounding = 16 * (n + 2 * k) * EPS * float(np.linalg.norm(L)) * float(np.linalg.norm(R)) * scale
    return (max(top, 0.0) if 2 * k < n else top), rounding
