"""The squares of all matrices, a penalty for `fit`.

    p(theta) = alpha / 2 * sum of theta_i^2 over all entries of matrices,
    dp/dtheta_i = alpha theta_i.

Biases cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import Array, Params

__all__ = ["ridge"]


def ridge(alpha: float) -> Callable[[Params], tuple[Any, Mapping[str, Array]]]:
    """The penalty ``alpha / 2 |theta|^2``, for ``fit(penalty=...)``.

    Parameters
    ----------
    alpha : float
        Its weight, not negative.

    Returns
    -------
    callable
        ``params -> (value, grads)``.

    Raises
    ------
    InputError
        If `alpha` is no such number.

    Examples
    --------
    >>> value, grads = ridge(2.0)({"A": np.ones((2, 2)), "b": np.ones(2)})
    >>> float(value), grads
    (4.0, {'A': array([[2., 2.],
           [2., 2.]])})
    """
    if not (is_real(alpha) and 0 <= alpha < math.inf):
        raise InputError(
            f"alpha is {alpha!r}; the weight of a penalty is a finite number, not negative"
        )
    alpha = float(alpha)

    def penalty(params: Params) -> tuple[Any, Mapping[str, Array]]:
        matrices = {key: a for key, a in params.items() if a.ndim > 1}
        value = sum(namespace(a).sum(a * a) for a in matrices.values())
        return 0.5 * alpha * value, {key: alpha * a for key, a in matrices.items()}

    return penalty
