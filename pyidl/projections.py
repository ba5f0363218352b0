r"""Euclidean projections onto convex sets, exact and vectorised.

The projection of a row a onto the l1 ball of radius r shrinks every entry by one threshold,

    P(a)_j = sign(a_j) max(|a_j| - theta, 0),    theta = max(0, max_k (u_1 + ... + u_k - r) / k),

where u_1 >= u_2 >= ... are the sorted absolute values. (The optimality condition is sum_j |P(a)_j| = r; with k entries
left, theta = (u_1 + ... + u_k - r) / k, and that quotient grows in k exactly as long as u_k lies above it.)

Source: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the l1-ball", ICML 2008, figure 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyidl import backend
from pyidl.backend import namespace
from pyidl.errors import InputError
from pyidl.typing import Array

__all__ = ["l1_ball_rows"]


def l1_ball_rows(A: Array, radius: Any) -> Array:
    """Project every row of A onto the l1 ball: the nearest matrix with ``sum_j |A_ij| <= radius_i``.

    Sums are taken in float64. The radius is lowered by the rounding of the result, so that the result is feasible, and
    rows that are feasible are returned bit for bit: projecting twice changes nothing.

    Parameters
    ----------
    A : array, shape (n, k)
        Any real floating dtype, kept by the result.
    radius : float or array of shape (n,)
        Positive.

    Returns
    -------
    array, shape (n, k)
        A itself where every row is feasible.

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
    xp = namespace(A)
    if A.ndim != 2:
        raise InputError(f"the rows of A are projected, so A must have two dimensions, not {A.ndim}")
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (A.shape[0],))
    if not np.all(radii > 0):
        raise InputError(f"an l1 ball needs a positive radius, got {radii.min()}")
    r = backend.from_host(xp, np.ascontiguousarray(radii))[:, None]
    magnitude = backend.astype(xp, xp.abs(A), "float64")
    inside = xp.sum(magnitude, axis=1, keepdims=True) <= r
    if bool(xp.all(inside)):
        return A
    k = backend.astype(xp, xp.arange(1, A.shape[1] + 1), "float64")
    slack = float(xp.finfo(A.dtype).eps) + 2 * A.shape[1] * float(np.finfo(np.float64).eps)  # the final cast, and the sums
    # Measured from the largest entry u_1, theta = u_1 - t: nothing cancels, however large the row is against its radius.
    magnitude = magnitude - xp.max(magnitude, axis=1, keepdims=True)
    u = xp.flip(xp.sort(magnitude, axis=1), axis=1)
    t = xp.min((r * (1.0 - slack) - backend.cumsum(xp, u, axis=1)) / k, axis=1, keepdims=True)
    shrunk = backend.astype(xp, xp.maximum(magnitude + t, 0.0), A.dtype) * xp.sign(A)
    return xp.where(inside, A, shrunk)  # type: ignore[no-any-return]
