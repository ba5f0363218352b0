r"""Gradient descent.

``v <- mu v + g``, ``theta <- theta - lr v`` (Nesterov: g + mu v in place of v).

Source: Sutskever, Martens, Dahl, Hinton, ICML 2013.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pyidl.errors import InputError
from pyidl.optim.base import Optimizer, below

__all__ = ["SGD"]


@dataclass(eq=False, repr=False)
class SGD(Optimizer):
    """``v <- mu v + g``, ``theta <- theta - lr v``.

    For Nesterov's method ``g + mu v`` stands in place of v. Decay adds a multiple of
    theta to g.

    Parameters
    ----------
    learning_rate : float or Schedule
        lr.
    momentum : float
        mu in [0, 1).
    nesterov : bool
        Needs momentum.
    weight_decay : float
        decay.
    clip_norm : float, optional
        Gradients are scaled down together so that their common Euclidean norm is at
        most this.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> SGD(0.5).step({"w": np.array([1.0])}, {"w": np.array([1.0])})["w"]
    array([0.5])
    """

    _: KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def _validate(self) -> None:
        self.momentum = below(1.0, "momentum", self.momentum)
        self.weight_decay = below(math.inf, "weight_decay", self.weight_decay)
        if not isinstance(self.nesterov, bool) or (self.nesterov and not self.momentum):
            raise InputError(
                f"nesterov is {self.nesterov!r} and momentum {self.momentum}; "
                "it is True or False, and True needs momentum"
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        if self.weight_decay:
            g = g + self.weight_decay * p
        if not self.momentum:
            return p - lr * g, ()
        if own[0] is None:
            v = 1.0 * g  # a copy: the caller may write into its gradient
        else:
            v = self.momentum * own[0]
            v += g
        return p - lr * (g + self.momentum * v if self.nesterov else v), (v,)
