"""Dropout: ``Y = U * M`` with a random M, hence ``dU = dY * M``.

The entries of M are independent, 0 with probability `rate` and 1 / (1 - rate)
otherwise. The mean of M is 1, so that without drawing, where Y = U, sizes are those met
in training.

Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15,
2014, section 10 for the scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace
from pyidl.errors import InputError, is_real
from pyidl.layers.base import Call, Explicit, Parameterless

__all__ = ["Dropout"]


@dataclass(eq=False, repr=False)
class Dropout(Parameterless):
    """``Y = U * M`` where the call has an `rng` that draws M.

    ``Y = U`` where it has none.

    The steps of `fit` have one; `predict` and the validation of `fit` draw nothing. M
    is drawn on the host: the same generator gives the same M on every device and in
    either dtype.

    Parameters
    ----------
    rate : float
        In [0, 1): the probability of a zero.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import Dropout
    >>> U = np.ones((1, 4))
    >>> Y, pull = Dropout(0.5)(U, rng=0)
    >>> Y, pull(np.ones((1, 4)))[0]
    (array([[2., 2., 2., 0.]]), array([[2., 2., 2., 0.]]))
    >>> Dropout(0.5).predict(U)
    array([[1., 1., 1., 1.]])
    """

    rate: float

    def _validate(self) -> None:
        if not (is_real(self.rate) and 0 <= self.rate < 1):
            raise InputError(
                f"rate of Dropout is {self.rate!r}; it is the share of zeros, in [0, 1)"
            )
        self.rate = float(self.rate)

    def _forward(self, U: Any, call: Call) -> tuple[Any, Explicit]:
        if call.rng is None or self.rate == 0:
            return U, Explicit(U, lambda dY, inputs: (dY if inputs else None, {}))
        xp = namespace(U)
        kept = from_host(xp, call.rng.random(U.shape, dtype=np.float32) >= self.rate)
        M = astype(xp, kept, U.dtype) * (1.0 / (1.0 - self.rate))
        Y = U * M

        def backward(dY: Any, inputs: bool) -> tuple[Any, dict[str, Any]]:
            return (dY * M if inputs else None), {}

        return Y, Explicit(Y, backward)
