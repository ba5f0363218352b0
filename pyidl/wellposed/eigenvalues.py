r"""Upper bounds of eigenvalues and singular values that are proven in floating point.

Each is a guess, with a Cholesky factorisation as its proof.

An algorithm for eigenvalues returns numbers with an error for which its documentation
gives an order, and no constant; power iteration approaches from below. Neither bounds
anything. But S <= t I (in the order of symmetric matrices) can be proven, for any t,
however it was guessed.

**Lemma.** Let n be the order of S and eps = 2 u = 2^-52. Off the diagonal, S may carry
one rounding. Lower the computed diagonal of t I - S by the factor ``1 - eta``, ``eta =
(n + 4)^2 eps``. If the Cholesky factorisation of this G runs to its end, then S <= t I.
*Proof.* The computed R has ``R^T R = G + D`` with ``|D_ij| <= g |r_i| |r_j|``, ``g = (n
+ 1) u / (1 - (n + 1) u)``, in whatever order the sums are taken. The diagonal of this
says ``|r_i|^2 <= G_ii / (1 - g)``. Hence ``|D_ij|`` and the rounding of the entry S_ij
together are at most ``h (G_ii G_jj)^(1/2)`` with h about ``(n + 3) u``, and the matrix
of these errors lies between -/+ ``n h diag(G)``. So ``t I - S >= diag(t - S_ii - (1 + n
h) G_ii)``, and that is nonnegative since ``eta > n h + 2 u``, twice over; what
underflows is covered by the rest, as no G_ii is below 1e-280.

For a norm, ``|A|_2^2`` is the largest eigenvalue of A^T A. With columns a_i, its
computed entries are wrong by at most ``n eps |a_i| |a_j|``, so A^T A by at most ``n eps
|A|_F^2``. All is scaled by powers of two first, which is exact.

For factors, ``A = W J V^T`` with tall W, V and a small J, let W = Q T + E be a QR
decomposition with its error. Then ``|W J V^T|_2 <= |Q|_2 |Q'|_2 |T J T'^T|_2`` + terms
in E; E and ``Q^T Q - I`` are measured, not believed.

Source: Demmel, "On floating point errors in Cholesky", LAPACK Working Note 14, 1989;
Rump, "Verification of positive definiteness", BIT 46, 2006; Higham, "Accuracy and
stability of numerical algorithms", 2nd ed., 2002, theorem 10.3 and section 3.5.
"""

from __future__ import annotations

import math

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array
from pyidl.wellposed.bounds import EPS

__all__ = [
    "distance_bound",
    "eigenvalue_bound",
    "factored_distance_bound",
    "factored_eigenvalue_bound",
    "factored_spectral_bound",
    "finite64",
    "host64",
    "is_below",
    "norm_is_at_most",
    "spectral_bound",
    "symmetric_part",
]

DENSE = 2048
"""Up to this order a guess costs all eigenvalues; beyond, it is a Krylov method's."""


def host64(A: Array) -> np.ndarray:
    """A in float64, on the host."""
    return np.asarray(to_numpy(A), dtype=np.float64)


def finite64(name: str, A: Array) -> np.ndarray:
    """A in float64, on the host; refused if an entry is not finite."""
    host = host64(A)
    if bad := int(np.sum(~np.isfinite(host))):
        raise InputError(
            f"{name} has {bad} entries that are not finite, and no nearest point; use a smaller "
            "step"
        )
    return host


def _power_of_two(size: float) -> float:
    """The power of two in ``(size, 2 size]``, or the largest one."""
    return math.ldexp(1.0, min(math.frexp(size)[1], 1023))


def _up(value: float) -> float:
    """A little larger: for a result of few operations on numbers of one sign."""
    return float(np.nextafter(value * (1.0 + 8 * EPS), math.inf))


def _frobenius(A: np.ndarray) -> float:
    """``|A|_F``, rounded up by the error of the sum."""
    return _up(float(np.linalg.norm(A)) * (1.0 + A.size * EPS))


def symmetric_part(A: Array) -> np.ndarray:
    """``(A + A^T) / 2`` in float64, on the host; an entry carries one rounding."""
    H = 0.5 * host64(A)
    S: np.ndarray = H + H.T
    return S


def is_below(S: np.ndarray, t: float) -> bool:
    """Whether ``S <= t I`` is proven by the lemma, for a symmetric S in float64.

    False proves nothing. A Cholesky factorisation, ``n^3 / 3`` flops.
    """
    n = len(S)
    G = -S
    diagonal = (t - np.diagonal(S)) * (1.0 - (n + 4) ** 2 * EPS)
    if not np.min(diagonal) >= 1e-280:
        return False
    np.fill_diagonal(G, diagonal)
    try:
        return bool(np.all(np.isfinite(np.linalg.cholesky(G))))
    except np.linalg.LinAlgError:
        return False


def _guess(S: np.ndarray) -> float:
    """About the largest eigenvalue; nothing is proven."""
    if len(S) <= DENSE:
        return float(np.linalg.eigvalsh(S)[-1])
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    start = np.random.default_rng(0).normal(size=len(S))
    try:
        return float(eigsh(S, k=1, which="LA", v0=start, tol=1e-9, return_eigenvectors=False)[0])
    except ArpackNoConvergence:
        x = S @ (S @ start)
        return float(x @ (S @ x) / (x @ x))


def eigenvalue_bound(S: np.ndarray) -> float:
    """An upper bound of the largest eigenvalue of a symmetric S in float64.

    It lies above it by about ``n^2 eps`` times the spread of S.

    Examples
    --------
    >>> bool(2 <= eigenvalue_bound(np.array([[0.0, 2.0], [2.0, 0.0]])) < 2 + 1e-12)
    True
    """
    size = float(np.max(np.abs(S)))
    if not size < math.inf:
        return math.inf
    if size == 0:
        return 0.0
    scale = _power_of_two(size)
    S = S / scale
    top = _guess(S)
    step = 3.0 * (len(S) + 4) ** 2 * EPS * (top - float(np.min(np.diagonal(S)))) + 8 * EPS
    while step < 16.0 * len(S):  # at the latest, t exceeds every sum |S_i1| + ... + |S_in|
        if is_below(S, top + step):
            bound = top + step + 4 * EPS
            return float(np.nextafter(bound * scale, math.inf))
        step *= 4.0
    return math.inf


def _gram(A: np.ndarray) -> tuple[np.ndarray, float]:
    """``A^T A``, or ``A A^T`` where that is smaller, and a bound of its rounding.

    The entries of A are at most 1.
    """
    A = A if A.shape[0] >= A.shape[1] else A.T
    return A.T @ A, _up(A.shape[0] * EPS * _frobenius(A) ** 2)


def spectral_bound(A: Array) -> float:
    """An upper bound of ``|A|_2``; ``inf`` if an entry is not finite.

    It is larger by a factor of about ``1 + n^2 eps`` at most. The largest eigenvalue of
    A^T A is guessed, all eigenvalues up to order 2048, a Krylov method beyond, and the
    guess is proven.

    Examples
    --------
    >>> 5 <= spectral_bound(np.array([[3.0, 0.0], [4.0, 0.0]])) < 5 + 1e-12
    True
    """
    host = host64(A)
    size = float(np.max(np.abs(host)))
    if not size < math.inf:
        return math.inf
    if size == 0:
        return 0.0
    scale = _power_of_two(size)
    G, rounding = _gram(host / scale)
    with np.errstate(over="ignore"):
        return _up(_up(math.sqrt(_up(eigenvalue_bound(G) + rounding))) * scale)


def distance_bound(A: Array, g: float) -> float:
    """An upper bound of ``|I - g A|_2``, A square."""
    with np.errstate(over="ignore", invalid="ignore"):
        gA = g * host64(A)
        F = np.eye(len(gA)) - gA
        return _up(spectral_bound(F) + EPS * (_frobenius(gA) + _frobenius(F)))


def norm_is_at_most(A: Array, radius: float) -> bool:
    """Whether ``|A|_2 <= radius`` is proven; no eigenvalue is computed.

    False proves nothing.
    """
    host = host64(A)
    size = float(np.max(np.abs(host)))
    if not size <= radius:  # an entry is no larger than the norm
        return False
    if size == 0:
        return True
    scale = _power_of_two(size)
    host, radius = host / scale, radius / scale
    if _frobenius(host) <= radius:
        return True
    G, rounding = _gram(host)
    return is_below(G, radius * radius * (1.0 - 4 * EPS) - rounding)


def _balanced(L: Array, R: Array) -> tuple[np.ndarray, np.ndarray, float]:
    """L and R with columns of like sizes and entries of at most 1, and s.

    ``s^2`` times their product is L R^T. Column i of L times c, column i of R by c, c a
    power of two: nothing is rounded. s is ``inf`` if an entry is not finite.
    """
    left, right = host64(L), host64(R)
    if not (np.all(np.isfinite(left)) and np.all(np.isfinite(right))):
        return left, right, math.inf
    (a, p), (b, q) = (np.frexp(np.max(np.abs(M), axis=0)) for M in (left, right))
    shift = (p - q) // 2
    zero = (a == 0) | (b == 0)
    left, right = (np.where(zero, 0.0, np.ldexp(M, e)) for M, e in ((left, -shift), (right, shift)))
    size = float(max(np.max(np.abs(left)), np.max(np.abs(right))))
    if size == 0:
        return left, right, 1.0
    scale = _power_of_two(size)
    return left / scale, right / scale, scale


def _tall(W: np.ndarray) -> tuple[np.ndarray, float, float]:
    """T, p >= |Q^T Q - I|_F and e >= |W - Q T|_F for some Q: ``|Q|_2^2 <= 1 + p``."""
    Q, T = np.linalg.qr(W)
    n, k = Q.shape
    size = _frobenius(Q)
    e = _frobenius(W - Q @ T) + (k + 2) * EPS * (_frobenius(W) + size * _frobenius(T))
    defect = _frobenius(Q.T @ Q - np.eye(k)) + (n + 1) * EPS * (size**2 + 1.0)
    return T, _up(defect), _up(e)


def _scaled_up(bound: float, scale: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.nextafter(_up(bound * scale) * scale, math.inf))


def factored_spectral_bound(L: Array, R: Array) -> float:
    """An upper bound of ``|L R^T|_2``, larger by about ``n k eps |L|_F |R|_F``.

    ``inf`` if an entry is not finite. A is not formed.
    """
    left, right, scale = _balanced(L, R)
    if scale == math.inf:
        return math.inf
    if not (left.any() and right.any()):
        return 0.0
    (T1, p1, e1), (T2, p2, e2) = _tall(left), _tall(right)
    product = spectral_bound(T1 @ T2.T) + T1.shape[0] * EPS * _frobenius(T1) * _frobenius(T2)
    size, other = _frobenius(left), _frobenius(right)
    return _scaled_up(
        (1.0 + max(p1, p2)) * _up(product) + e1 * other + (size + e1) * e2, scale
    )  # L R^T = (Q T)(Q' T')^T + E R^T + (Q T) E'^T


def factored_eigenvalue_bound(L: Array, R: Array) -> float:
    """An upper bound, at least 0, of the largest eigenvalue of ``(L R^T + R L^T) / 2``.

    That is ``W J W^T / 2`` with ``W = (L R)``, J the exchange of the two halves: 0
    outside the range of W. ``inf`` if an entry is not finite.
    """
    left, right, scale = _balanced(L, R)
    if scale == math.inf:
        return math.inf
    if not (left.any() and right.any()):
        return 0.0
    inner, defect, error = _exchanged(left, right)
    top = max(eigenvalue_bound(symmetric_part(inner)), 0.0)
    return _scaled_up((1.0 + defect) * top + error, scale)


def factored_distance_bound(L: Array, R: Array, g: float) -> float:
    """An upper bound of ``|I - g L R^T|_2``, g > 0.

    Outside the range of ``W = (L R)`` it is 1; inside it is that of ``I - g N``, which
    is no less where there is an outside: N is then 2k by 2k, of rank k at most.
    """
    left, right, scale = _balanced(L, R)
    if scale == math.inf:
        return math.inf
    if not (left.any() and right.any()):
        return 1.0
    inner, defect, error = _exchanged(left, right)
    with np.errstate(over="ignore"):
        factor = _up(_up(g * scale) * scale)
        # Some P with orthonormal columns has |Q - P| <= |Q^T Q - I|, so |Q N Q^T - P N
        # P^T| <= |N| (|Q| + 1) |Q^T Q - I|.
        rest = error + _frobenius(inner) * (2.0 + defect) * defect
        return _up(
            distance_bound(inner, g * scale * scale)
            + factor * _up(rest + 4 * EPS * _frobenius(inner))
        )


def _exchanged(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float, float]:
    """N, p and e with ``|left right^T - Q N Q^T| <= e`` and ``|Q^T Q - I| <= p``."""
    W = np.concatenate([left, right], axis=1)
    k = left.shape[1]
    T, defect, e = _tall(W)
    inner = T[:, :k] @ T[:, k:].T
    error = (1.0 + defect) * k * EPS * _frobenius(T) ** 2 + e * (2.0 * _frobenius(W) + e)
    return inner, defect, _up(error)
