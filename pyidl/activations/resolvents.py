r"""Resolvents: the y with ``(1 - alpha) phi(y) + alpha y = u``, alpha > 0.

They are found entry by entry, and lead to proximal maps: a nondecreasing phi with
slopes in [0, 1] is the proximal map of a convex f (Moreau): ``x = phi(y)`` iff y - x
lies in the subdifferential of f at x. Hence x is the proximal map of alpha f at u, that
is u - x lies in alpha times that set, iff

    u - x = alpha (y - x)    <=>    (1 - alpha) phi(y) + alpha y = u,      x = phi(y).

The left-hand side has slopes between min(alpha, 1) and max(alpha, 1): there is exactly
one y, and piece by piece it is found in closed form where phi is piecewise linear.

**tanh and sigmoid.** Both lead to ``a tanh(t) + b t = w`` with b > 0, a + b > 0; it is
odd, so let w >= 0. For a >= 0 the left-hand side is concave on t >= 0, and Newton's
method increases to the solution from any point below it; for a < 0 it is convex, and
Newton's method decreases to it from any point above. Since ``0 <= tanh t <= min(t,
1)``, the points ``w / (a + b)`` and ``(w - a) / b`` lie on that side, and ``w / b`` on
the other: every step is confined to the bracket that they form. From the better of the
two points, ``5 + |log alpha|`` steps reach the rounding of the equation (tested for
alpha from 1e-6 to 1e6). Their number depends on nothing else, so an entry's answer does
not depend on its neighbours, and a GPU is not waited for.

Source: Moreau, Bull. Soc. Math. France 93, 1965; Combettes and Pesquet, Set-Valued Var.
Anal. 28, 2020.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.fusion import fused

__all__ = ["hard_tanh", "identity", "leaky_relu", "relu", "sigmoid", "tanh"]


@fused
def identity(u: Any, alpha: float) -> Any:
    """Of y: ``(1 - alpha) y + alpha y = u``."""
    return u


@fused
def relu(u: Any, alpha: float) -> Any:
    """Of ``max(y, 0)``.

    The equation is ``y = u`` for y >= 0, ``alpha y = u`` for y < 0.
    """
    return namespace(u).where(u < 0, u / alpha, u)


def leaky_relu(u: Any, alpha: float, *, slope: float) -> Any:
    """Of ``max(y, slope y)``: for y < 0, ``((1 - alpha) slope + alpha) y = u``."""
    return namespace(u).where(u < 0, u / ((1.0 - alpha) * slope + alpha), u)


@fused
def hard_tanh(u: Any, alpha: float) -> Any:
    """Of the nearest point c of [-1, 1].

    ``(1 - alpha) c + alpha y = u``, where c is also the one nearest to u.
    """
    c = namespace(u).clip(u, -1.0, 1.0)
    return c + (u - c) / alpha


def tanh(u: Any, alpha: float) -> Any:
    """Of tanh: a = 1 - alpha, b = alpha."""
    return _solve(1.0 - alpha, alpha, u, alpha)


def sigmoid(u: Any, alpha: float) -> Any:
    """Of ``(1 + tanh t) / 2`` with y = 2 t: a = (1 - alpha) / 2, b = 2 alpha."""
    return 2.0 * _solve(0.5 * (1.0 - alpha), 2.0 * alpha, u - 0.5 * (1.0 - alpha), alpha)


def _solve(a: float, b: float, w: Any, alpha: float) -> Any:
    """The t with ``a tanh(t) + b t = w``."""
    xp, size = namespace(w), namespace(w).abs(w)
    ceiling = xp.full_like(size, 0.25 * float(xp.finfo(w.dtype).max))
    with np.errstate(over="ignore"):  # what the dtype cannot hold stays at the ceiling
        near, far, other = (
            xp.minimum(point, ceiling) for point in (size / (a + b), (size - a) / b, size / b)
        )
        low, high = (xp.maximum(near, far), other) if a >= 0 else (other, xp.minimum(near, far))
        t = low if a >= 0 else high
        for _ in range(5 + math.ceil(abs(math.log(alpha)))):
            x = xp.tanh(t)
            slope = a * (1.0 - x * x) + b  # of a tanh t + b t, between b and a + b
            t = xp.minimum(xp.maximum(t - (a * x + b * t - size) / slope, low), high)
    return xp.sign(w) * t
