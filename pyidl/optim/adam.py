r"""Adam, and AdamW with decoupled decay.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    theta <- theta - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

AdamW first sets ``theta <- (1 - lr decay) theta``. Sources: Kingma, Ba, ICLR 2015;
Loshchilov, Hutter, ICLR 2019.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.fusion import fused
from pyidl.errors import InputError
from pyidl.optim.base import Optimizer, below
from pyidl.optim.schedules import Schedule, check_positive

__all__ = ["Adam", "AdamW"]


@dataclass(eq=False, repr=False)
class Adam(Optimizer):
    """``theta <- theta - lr m^ / (sqrt(v^) + eps)``.

    Here m and v are running means of g and g^2, corrected for their start at 0: after k
    steps ``m^ = m / (1 - b1^k)`` and ``v^ = v / (1 - b2^k)``.

    Parameters
    ----------
    learning_rate : float or Schedule
        lr.
    betas : (float, float)
        Shares of the past in m and v.
    eps : float
        Bounds the step where gradients vanish.
    clip_norm : float, optional
        As for `SGD`.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> Adam(0.1).step({"w": np.array([1.0])}, {"w": np.array([3.0])})["w"].round(6)
    array([0.9])
    """

    learning_rate: float | Schedule = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def _validate(self) -> None:
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise InputError(
                f"betas is {self.betas!r}; "
                "two numbers are needed, the shares of the past in m and v"
            )
        self.betas = (below(1.0, "betas[0]", self.betas[0]), below(1.0, "betas[1]", self.betas[1]))
        self.eps = check_positive("eps", self.eps)

    @property
    def slots(self) -> tuple[str, ...]:
        """The running means, and the number of steps behind them."""
        return "m", "v", "k"

    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        b1, b2 = self.betas
        k = 1 if own[2] is None else 1 + int(own[2])
        root = math.sqrt(1.0 - b2**k)
        m, v = (0.0, 0.0) if k == 1 else own[:2]
        p, m, v = _adam(p, g, m, v, b1, b2, self.eps * root, -lr * root / (1.0 - b1**k))
        return p, (m, v, np.asarray(k))


@fused
def _adam(p: Any, g: Any, m: Any, v: Any, b1: Any, b2: Any, eps: Any, rate: Any) -> Any:
    """The new p, m and v, in new arrays.

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
        p <- p + rate m / (sqrt(v) + eps)

    The corrections for the start at 0 are in the numbers:
    with c = sqrt(1 - b2^k), ``m^ / (sqrt(v / c^2) + eps)`` is ``m^ c / (sqrt(v) + eps
    c)``.
    """
    spare = (1.0 - b1) * g
    mean = b1 * m
    mean += spare
    spare = _over(spare, "multiply", g, g)
    spare *= 1.0 - b2
    square = b2 * v
    square += spare
    new = _over(spare, "sqrt", square)
    new += eps
    new = _over(new, "divide", mean, new)
    new *= rate
    new += p
    return new, mean, square


def _over(spare: Any, name: str, *operands: Any) -> Any:
    """What a function of the library gives, in the place of `spare` if it can be.

    `spare` is an array that is not needed any more.
    """
    if type(spare) is np.ndarray:  # a new array may lie in memory that is in no cache
        return getattr(np, name)(*operands, out=spare)
    return getattr(namespace(spare), name)(*operands)


@dataclass(eq=False, repr=False)
class AdamW(Adam):
    """Adam with decoupled decay.

    Theta shrinks by ``lr * weight_decay`` of itself in every step, whatever its
    gradient.

    Parameters
    ----------
    learning_rate, betas, eps, clip_norm
        As for `Adam`.
    weight_decay : float
        All parameters decay that have a gradient, biases too.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> optimizer = AdamW(0.1, weight_decay=0.5)
    >>> optimizer.step({"w": np.array([1.0])}, {"w": np.array([0.0])})["w"]
    array([0.95])
    """

    _: KW_ONLY
    weight_decay: float = 1e-2

    def _validate(self) -> None:
        super()._validate()
        self.weight_decay = below(math.inf, "weight_decay", self.weight_decay)

    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        return super()._update((1.0 - lr * self.weight_decay) * p, g, own, lr)
