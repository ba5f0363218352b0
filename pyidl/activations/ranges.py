r"""The range of phi over intervals: from the ends of the pre-activations to those of x.

    x_lo = min phi(y),    x_hi = max phi(y),    Y_lo <= y <= Y_hi.

A phi that does not fall has its range between the images of the ends. One that does is
largest at an end, or where it is 1 (sin), and smallest at an end, or at its minimum y*:
SiLU, GELU and abs have one. For softmax a component is smallest where its own
pre-activation is at its lower end and all others at their upper ones:

    x_lo,i = softmax(Y_hi with Y_lo,i in place i)_i,

and x_hi,i the mirror image: ``1 / (1 + sum_{j != i} exp(y_j - y_i))`` rises in y_i and
falls in the others.

**How far ends move.** Let all ends of pre-activations move by at most v, entry by
entry. Those of a componentwise phi move by at most L v, since the least and the
greatest value over an interval move by no more than phi does at its ends. Those of
softmax: its row above has the derivative ``p_i (1 - p_i)`` by its own entry and ``-p_i
p_j`` by the others, absolute values that sum to ``2 p_i (1 - p_i) <= 1/2``, so that
they move by at most ``max v / 2``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyidl.activations import builtin
from pyidl.activations.base import Activation, Blocks, pieces
from pyidl.activations.blocks import VectorActivation, softmax
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError

__all__ = ["ends", "falls", "gain", "parts", "ranged"]

LEAST = {
    "silu": -1.2784645427610738,  # 1 + (1 - sigmoid(y)) y = 0
    "gelu": -0.7517915246935645,  # Phi(y) + y Phi'(y) = 0
    "abs": 0.0,
}
"""Where an activation that falls and then rises is smallest."""

KNOWN = (builtin.silu, builtin.gelu, builtin.abs, builtin.sin, softmax)
"""What falls somewhere, and has a known range."""


def parts(phi: Activation, n: int) -> list[tuple[Activation, slice]]:
    """The activations of n components and their columns, each of them one with a range.

    Raises
    ------
    InputError
        If the range of one of them is not known.
    """
    found = pieces(phi, 0, n)
    for part, _ in found:
        if not (_rises(part) or part in KNOWN):
            raise InputError(
                f"the range of {part.name} over an interval is not known; bounds cover activations "
                "that do not fall (slope_range from 0 on), silu, gelu, abs, sin and softmax"
            )
    return found


def _rises(phi: Activation) -> bool:
    return phi.slope_range is not None and phi.slope_range[0] >= 0


def falls(phi: Activation, n: int) -> np.ndarray:
    """For which of n components phi may fall; (n,), on the host."""
    found = np.zeros(n, bool)
    for part, columns in parts(phi, n):
        found[columns] = not _rises(part)
    return found


def gain(phi: Activation, v: np.ndarray) -> np.ndarray:
    """How far the ends of x move where those of pre-activations move by v, (..., n)."""
    moved = np.empty_like(v)
    for part, columns in parts(phi, v.shape[-1]):
        far = v[..., columns]
        vector = part is softmax
        moved[..., columns] = (
            0.5 * np.max(far, axis=-1, keepdims=True) if vector else part.lipschitz * far
        )
    return moved


# In every pair below the ends come first, and under them stands the transposed
# derivative: which end is heard, and with which slope.


def ranged(phi: Activation, low: Any, high: Any) -> tuple[Any, Any]:
    """``(x_lo, x_hi)`` for ``(Y_lo, Y_hi)``, (m, n) each."""
    xp = namespace(low)
    found = [_of(part)[0](part, low[..., c], high[..., c]) for part, c in parts(phi, low.shape[-1])]
    lower, upper = zip(*found, strict=True)
    return xp.concat(list(lower), axis=-1), xp.concat(list(upper), axis=-1)


def _ranged_vjp(phi: Activation, low: Any, high: Any, g_low: Any, g_high: Any) -> Any:
    xp = namespace(low)
    found = [
        _of(part)[1](part, *(a[..., c] for a in (low, high, g_low, g_high)))
        for part, c in parts(phi, low.shape[-1])
    ]
    lower, upper = zip(*found, strict=True)
    return xp.concat([*lower, *upper], axis=-1)


def _of(part: Activation) -> Any:
    if part is softmax:
        return _softmax, _softmax_vjp
    return (_rising, _rising_vjp) if _rises(part) else (_bent, _bent_vjp)


def _rising(phi: Activation, low: Any, high: Any) -> tuple[Any, Any]:
    return phi(low), phi(high)


def _rising_vjp(phi: Activation, low: Any, high: Any, g_low: Any, g_high: Any) -> tuple[Any, Any]:
    return phi.dphi(low) * g_low, phi.dphi(high) * g_high


def _bent(phi: Activation, low: Any, high: Any) -> tuple[Any, Any]:
    xp, a, b = namespace(low), phi(low), phi(high)
    least, most, value = _inside(phi, low, high)
    return xp.where(least, value, xp.minimum(a, b)), xp.where(most, 1.0, xp.maximum(a, b))


def _bent_vjp(phi: Activation, low: Any, high: Any, g_low: Any, g_high: Any) -> tuple[Any, Any]:
    xp, first = namespace(low), phi(low) <= phi(high)
    least, most, _ = _inside(phi, low, high)
    g_low, g_high = xp.where(least, 0.0, g_low), xp.where(most, 0.0, g_high)
    return (
        phi.dphi(low) * xp.where(first, g_low, g_high),
        phi.dphi(high) * xp.where(first, g_high, g_low),
    )


def _inside(phi: Activation, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Whether phi is smallest inside of the interval, and largest; its least value."""
    xp = namespace(low)
    if phi.name in LEAST:
        at = xp.full_like(low[..., :1], LEAST[phi.name])
        return (low < at) & (at < high), xp.zeros_like(low) > 1.0, phi(at)
    turn = 2.0 * math.pi
    # A peak within a few roundings of an end counts: 1 is an upper bound in any case.
    near = 4.0 * float(xp.finfo(low.dtype).eps) * (1.0 + xp.maximum(xp.abs(low), xp.abs(high)))

    def reached(peak: float) -> Any:
        return peak + turn * xp.ceil((low - near - peak) / turn) <= high + near

    return reached(-0.5 * math.pi), reached(0.5 * math.pi), -1.0


def _corner(own: Any, others: Any) -> Any:
    """Softmax of the rows ``others`` with own_i in place i: (m, k, k)."""
    xp = namespace(own)
    eye = xp.eye(own.shape[-1], dtype=own.dtype)
    return softmax(others[..., None, :] + eye * (own - others)[..., None, :])


def _softmax(phi: Activation, low: Any, high: Any) -> tuple[Any, Any]:
    xp = namespace(low)
    eye = xp.eye(low.shape[-1], dtype=low.dtype)
    return xp.sum(eye * _corner(low, high), axis=-1), xp.sum(eye * _corner(high, low), axis=-1)


def _softmax_vjp(phi: Activation, low: Any, high: Any, g_low: Any, g_high: Any) -> tuple[Any, Any]:
    xp = namespace(low)
    eye = xp.eye(low.shape[-1], dtype=low.dtype)

    def heard(own: Any, others: Any, g: Any) -> tuple[Any, Any]:
        P = _corner(own, others)
        p = xp.sum(eye * P, axis=-1)
        w = g * p  # dp_i = p_i ((1 - p_i) d own_i - sum_{j != i} P_ij d others_j)
        return w * (1.0 - p), w * p - xp.sum(w[..., :, None] * P, axis=-2)

    (a, b), (c, d) = heard(low, high, g_low), heard(high, low, g_high)
    return a + d, b + c


def ends(phi: Activation, n: int) -> Activation:
    """The map ``[Y_lo, Y_hi] -> [x_lo, x_hi]`` of 2n components as an activation.

    Where phi does not fall, it is phi at either end: componentwise, so that every
    solver takes it.
    """
    if not falls(phi, n).any():
        return Blocks(*2 * [(phi, n)]) if isinstance(phi, Blocks) else phi

    def image(Y: Any) -> Any:
        return namespace(Y).concat(list(ranged(phi, Y[..., :n], Y[..., n:])), axis=-1)

    def vjp(Y: Any, G: Any) -> Any:
        return _ranged_vjp(phi, Y[..., :n], Y[..., n:], G[..., :n], G[..., n:])

    # True of each part in the Euclidean norm: an end hears one end, with a slope of at
    # most L, and either end another; of softmax, 2k rows have at most the norm 2^(1/2) / 4.
    steep = max(0.5 * n**0.5, *(part.lipschitz or 0.0 for part, _ in parts(phi, n)))
    return VectorActivation(f"ends of {phi.name}", image, vjp, lipschitz=steep)
