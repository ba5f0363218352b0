"""How fast Picard's iteration and the Jacobi splitting of a matrix go, estimated.

Bounds do not tell: that of the splitting is never the larger one, and yet there are
matrices where it needs 15 times as many steps (``0.99 [[.5, .5], [-.5, .5]]``). The
growth of a vector does, up to the part that phi plays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace, to_numpy
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full, laid_out

__all__ = ["growth", "with_gains"]

SPLIT_FROM, SPLIT_BELOW = 0.5, -0.3
"""The splitting is considered where an entry of the diagonal reaches one of these."""

POWERS = 12


def growth(matrix: Matrix, after: int = 0) -> float:
    """``(|A^k w| / |w|)^(1/k)`` for k = 12, and a w of mixed signs.

    An estimate of the spectral radius, no bound; a better one where w has gone through
    some products before. It is 0 where A^k is.

    Examples
    --------
    >>> round(growth(Full(np.array([[0.0, 0.9], [0.9, 0.0]]))), 12)
    0.9
    """
    d = matrix.diagonal()
    xp, n = namespace(d), d.shape[0]
    w = np.random.default_rng(0).normal(size=(1, n))
    w /= np.max(np.abs(w))
    x = astype(xp, from_host(xp, w), d.dtype)
    total = 0.0
    for k in range(0, after + POWERS, 3):  # seldom enough to look, often enough not to overflow
        with np.errstate(over="ignore", invalid="ignore"):
            x = matrix.rows(matrix.rows(matrix.rows(x)))
        size = float(xp.max(xp.abs(x)))
        if not 0 < size < np.inf:
            return size
        x /= size
        total += float(np.log(size)) if k >= after else 0.0
    return float(np.exp(total / POWERS))


def with_gains(matrix: Full, doubtful: bool = False) -> Full:
    """The matrix, laid out, with its `gains` where they matter.

    They do where the diagonal is large, or Picard may not contract: the splitting
    iterates with ``(I - diag(A))^-1 (A - diag(A))``, and may be faster.

    Parameters
    ----------
    matrix : Full
        Square.
    doubtful : bool
        Whether nothing says that Picard contracts; then gains are estimated in any
        case.

    Returns
    -------
    Full
        With ``gains = (growth of A, growth of the splitting)``; the latter is infinite
        where an entry of the diagonal reaches 1 and there is no splitting.
    """
    matrix = laid_out(matrix)
    d = to_numpy(matrix.diagonal()).astype(np.float64)
    if not (doubtful or SPLIT_FROM <= np.max(d) < 1.0 or np.min(d) <= SPLIT_BELOW):
        return matrix
    plain, split = growth(matrix), np.inf
    if np.max(d) < 1.0:
        xp = namespace(matrix.A)
        scale = astype(xp, from_host(xp, 1.0 / (1.0 - d)), matrix.A.dtype)
        split = growth(matrix.off_diagonal(scale))
    return replace(matrix, gains=(plain, split))
