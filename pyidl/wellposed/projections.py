r"""Euclidean projections onto convex sets, exact and vectorised.

**Weighted l1 ball.** The nearest row p to a with ``sum_j w_j |p_j| <= r`` is, with
``u_j = |a_j| / w_j``,

    p_j = sign(a_j) w_j max(u_j - theta, 0),
    theta = max(0, max_k (w_1^2 u_1 + ... + w_k^2 u_k - r) / (w_1^2 + ... + w_k^2)),

where u_1 >= u_2 >= ... (Optimality: ``p_j = a_j - theta w_j sign(p_j)`` with ``sum_j
w_j |p_j| = r``. With k entries left, theta is that quotient; the next quotient is a
weighted mean of it and u_{k+1}, so it grows exactly as long as u_{k+1} lies above it.)

**Matrix measure.** The nearest row with ``p_i + sum_{j != i} w_j |p_j| <= kappa`` has
``p_i = a_i - theta`` and the other entries as above: the diagonal is an entry of weight
1 that never leaves, with a_i - kappa in place of its u, and r = 0.

Source: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the
l1-ball", ICML 2008, figure 1 (w = 1).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import looks_are_free, namespace
from pyidl.errors import InputError
from pyidl.typing import Array, Namespace

__all__ = ["l1_ball_rows", "measure_rows", "weighted_l1_ball_rows"]

EPS = float(np.finfo(np.float64).eps)


def l1_ball_rows(A: Array, radius: Any) -> Array:
    """Project every row of A onto the l1 ball.

    The result is the nearest matrix with ``sum_j |A_ij| <= radius_i``.

    Sums are taken in float64. The radius is lowered by the rounding of the result, so
    that the result is feasible, and rows that are feasible are returned bit for bit:
    projecting twice changes nothing.

    Parameters
    ----------
    A : array, shape (n, k)
        Any real floating dtype, kept by the result.
    radius : float or array of shape (n,)
        Positive.

    Returns
    -------
    array, shape (n, k)
        A itself where every row is feasible, on a GPU a copy: to know, the host would
        have to wait.

    Raises
    ------
    InputError
        If A is not two-dimensional or a radius is not positive.

    Examples
    --------
    >>> l1_ball_rows(np.array([[3.0, 1.0], [0.5, 0.25]]), 2.0).round(6)
    array([[2.  , 0.  ],
           [0.5 , 0.25]])
    """
    return weighted_l1_ball_rows(A, radius, None)


def weighted_l1_ball_rows(A: Array, radius: Any, weights: Any) -> Array:
    """Project every row of A onto a weighted l1 ball.

    The result is the nearest matrix with ``sum_j w_j |A_ij| <= radius_i``. As careful
    as `l1_ball_rows`, which is the case w = 1.

    Parameters
    ----------
    A : array, shape (n, k)
        Any real floating dtype, kept by the result.
    radius : float or array of shape (n,)
        Positive.
    weights : array of shape (k,), or None
        Positive; 1 for None.

    Raises
    ------
    InputError
        If A is not two-dimensional, or a radius or a weight is not positive, or weights
        differ so much that the projection overflows.

    Examples
    --------
    >>> A, w = np.array([[1.0, 1.0]]), np.array([1.0, 3.0])
    >>> weighted_l1_ball_rows(A, 2.0, w).round(6)
    array([[0.8, 0.4]])
    """
    xp = namespace(A)
    w, radii = _row_weights(xp, A, weights), _rows(A, radius)
    if not (radii > 0).all():
        raise InputError(f"an l1 ball needs a positive radius, got {radii.min()}")
    r = backend.from_host(xp, np.ascontiguousarray(radii))[:, None]
    magnitude = backend.astype(xp, xp.abs(A), "float64")
    inside = _sums(xp, magnitude, w) <= r
    if looks_are_free(xp) and bool(xp.all(inside)):
        return A
    if xp is np:  # only rows that left their balls are sorted; on a GPU, to know them is to wait
        rows = (~inside).nonzero()[0]
        result: Any = np.array(A)
        result[rows] = _onto_spheres(xp, A[rows], magnitude[rows], r[rows], w)
    else:
        result = xp.where(inside, A, _onto_spheres(xp, A, magnitude, r, w))
    return _whole(xp, result, A, w)


def _onto_spheres(xp: Namespace, A: Any, u: Any, r: Any, w: Any) -> Any:
    """The projection of rows outside their balls; u, overwritten, is |A| in float64."""
    k = A.shape[1]
    # The slack is for the final cast, and for the sums of the result.
    slack = float(xp.finfo(A.dtype).eps) + 2 * (k + 2) * EPS
    # Measured from the largest u_1, theta = u_1 - t: nothing cancels, however far
    # outside the row is.
    if w is None:  # sorted in the dtype of A, which is faster
        own = u if u.dtype == A.dtype else xp.abs(A)
        falling = backend.astype(xp, xp.sort(own, axis=1)[:, ::-1], "float64")
        top = falling[:, :1]
        totals = backend.cumsum(xp, falling - top, axis=1)
        mass = backend.astype(xp, xp.arange(1, k + 1), "float64")
    else:
        u /= w
        top = xp.max(u, axis=1, keepdims=True)
        totals, mass = _running(xp, u - top, w)
    t = xp.min((r * (1.0 - slack) - totals) / mass, axis=1, keepdims=True)
    # w_j^2 |u_j| is at most w_j^2 t where anything is left, which may be more than r.
    if w is not None:
        t = t * (1.0 - 2 * (k + 2) * EPS)
    u -= top
    u += t
    shrunk = xp.maximum(u, 0.0)
    return backend.astype(xp, shrunk if w is None else shrunk * w, A.dtype) * xp.sign(A)


def measure_rows(A: Array, bound: Any, weights: Any) -> Array:
    """The nearest matrix with ``A_ii + sum_{j != i} |A_ij| w_ij <= bound_i``.

    Nothing bounds the diagonal from below. Feasible and idempotent in floating point,
    like `l1_ball_rows`: feasible rows are returned bit for bit.

    Parameters
    ----------
    A : array, shape (n, n)
        Any real floating dtype, kept by the result.
    bound : float or array of shape (n,)
        Of any sign.
    weights : array of shape (n,), or None
        Positive numbers eta, with ``w_ij = eta_j / eta_i``; 1 for None.

    Raises
    ------
    InputError
        If A is not square, a bound does not fit its dtype, or a weight is not positive.

    Examples
    --------
    >>> measure_rows(np.array([[1.0, 1.0], [0.5, -9.0]]), 0.5, None).round(6)
    array([[ 0.25,  0.25],
           [ 0.5 , -9.  ]])
    """
    xp = namespace(A)
    eta, bounds = _row_weights(xp, A, weights), _rows(A, bound)
    if A.shape[0] != A.shape[1] or not np.all(np.abs(bounds) < 0.5 * float(xp.finfo(A.dtype).max)):
        raise InputError(
            f"measure_rows needs a square matrix and bounds that fit {A.dtype}, got {A.shape} and "
            f"{bounds.min()} at least"
        )
    n = A.shape[0]
    kappa = backend.from_host(xp, np.ascontiguousarray(bounds))[:, None]
    diagonal, off = measure_parts(xp, A, eta)
    inside = diagonal + off <= kappa
    if looks_are_free(xp) and bool(xp.all(inside)):
        return A
    w = xp.ones((n, n), dtype=xp.float64) if eta is None else eta / xp.reshape(eta, (n, 1))
    others = 1.0 - xp.eye(n, dtype=xp.float64)
    magnitude = backend.astype(xp, xp.abs(A), "float64") * others
    # Measured from the largest u off the diagonal, theta = top - t; sorted last, the
    # diagonal has u = 0 - top there, and no share.
    u = magnitude / w
    top = xp.max(u, axis=1, keepdims=True)
    u = u - top
    totals, mass = _running(xp, u, w * others)
    first = (diagonal - top) - kappa
    t = xp.minimum(-first, xp.min((-first - totals) / (1.0 + mass), axis=1, keepdims=True))
    shrunk = xp.sign(A) * backend.astype(xp, others * w * xp.maximum(u + t, 0.0), A.dtype)
    rest = measure_parts(xp, shrunk, eta)[1]
    # p_i = a_i - theta = kappa - the rest, written so that it does not cancel, and less
    # by the roundings.
    limits = xp.finfo(A.dtype)
    rounding = (
        float(limits.eps) * xp.abs(kappa - rest)
        + 4 * n * EPS * (xp.abs(kappa) + rest)
        + float(limits.smallest_normal)
    )
    middle = backend.astype(xp, kappa - rest - rounding, A.dtype)
    return _whole(xp, xp.where(inside, A, xp.where(others > 0, shrunk, middle)), A, eta)


def measure_parts(xp: Namespace, A: Any, eta: Any, first: int = 0) -> tuple[Any, Any]:
    """``A_ii`` and ``sum_{j != i} |A_ij| eta_j / eta_i`` of rows numbered from `first`.

    Two columns, in float64.
    """
    rows, n = A.shape
    mine = xp.eye(rows, n, k=first, dtype=xp.float64)
    entries = backend.astype(xp, A, "float64")
    off = xp.abs(entries) * (1.0 - mine)
    sums = _sums(xp, off, eta)
    if eta is not None:
        sums = sums / xp.reshape(eta[:, first : first + rows], (rows, 1))
    return xp.sum(entries * mine, axis=1, keepdims=True), sums


def _rows(A: Array, number: Any) -> np.ndarray:
    """One number for each row, on the host."""
    numbers = backend.to_numpy(number).astype(np.float64)
    return numbers if numbers.shape == A.shape[:1] else np.broadcast_to(numbers, A.shape[:1])


def _row_weights(xp: Namespace, A: Array, weights: Any) -> Any:
    """The weights as one row of `xp`, or None, after A and they have been checked."""
    if A.ndim != 2:
        raise InputError(
            f"the rows of A are projected, so A must have two dimensions, not {A.ndim}"
        )
    if weights is None:
        return None
    w = backend.to_numpy(weights).astype(np.float64)
    if w.shape != (A.shape[1],) or not (np.all(w > 0) and np.all(np.isfinite(w))):
        raise InputError(
            f"{A.shape[1]} positive weights are needed, got shape {w.shape}, the smallest "
            f"{w.min() if w.size else None}"
        )
    return backend.from_host(xp, w)[None, :]


def _whole(xp: Namespace, projected: Any, A: Array, w: Any) -> Array:
    """The projection; refused where weights have led out of the range of float64."""
    if w is not None and looks_are_free(xp) and not backend.all_finite(xp, projected):
        raise InputError(
            f"A has entries up to {float(xp.max(xp.abs(A))):.3g}, weights lie between "
            f"{float(xp.min(w)):.3g} and {float(xp.max(w)):.3g}, and the projection overflows; use "
            "weights that differ less, or a smaller step"
        )
    return cast(Array, projected)


def _sums(xp: Namespace, magnitude: Any, w: Any) -> Any:
    return xp.sum(magnitude if w is None else magnitude * w, axis=1, keepdims=True)


def _running(xp: Namespace, u: Any, w: Any) -> tuple[Any, Any]:
    """Running sums of ``w_j^2 u_j`` and of ``w_j^2``, in the order of falling u."""
    order = xp.argsort(-u, axis=1)
    shares = xp.take_along_axis(xp.broadcast_to(w * w, u.shape), order, axis=1)
    weighted = shares * xp.take_along_axis(u, order, axis=1)
    return backend.cumsum(xp, weighted, axis=1), backend.cumsum(xp, shares, axis=1)
