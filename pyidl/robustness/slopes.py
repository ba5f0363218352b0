r"""Lines beside phi: ``|phi(y) - D y - k| <= rho`` for ``l <= y <= h``.

D is the slope of the chord, ``(phi(h) - phi(l)) / (h - l)``. The interval is cut into
cells, at the kinks too. Between the ends of a cell of length t, ``g(y) = phi(y) - D y``
leaves its own chord by at most ``c t^2 / 8``, where c bounds the curvature, and by at
most ``(hi - lo) t / 4``, where [lo, hi] bounds the slopes: so the least and the
greatest value of g are known up to that, and k and rho are the middle and half of their
range. For a phi of straight pieces they are exact; for ReLU with ``l < 0 < h``

    D = h / (h - l),    k = rho = -D l / 2.

*Proof of the second bound.* With the slope s of the cell's chord, g lies below the two
lines of slopes hi and lo through its ends, which meet ``t (hi - s)(s - lo) / (hi - lo)
<= t (hi - lo) / 4`` above the chord; and not further below it.

Where a horizontal line does better (a saturated phi, a softmax), it is taken: D = 0.

Source of the chord for ReLU and sigmoids: Singh, Gehr, Mirman, Püschel, Vechev, "Fast
and effective robustness certification", NeurIPS 2018; Zhang, Weng, Chen, Hsieh, Daniel,
"Efficient neural network robustness certification with general activation functions",
NeurIPS 2018.
"""

from __future__ import annotations

import numpy as np

from pyidl.activations import Activation
from pyidl.activations.blocks import softmax
from pyidl.activations.ranges import parts, ranged
from pyidl.certify.enclosure import up
from pyidl.certify.forms import EPS, outward

__all__ = ["evaluation", "lines", "range_of"]

CELLS = 16
"""So many cells the interval is cut into, beside the kinks."""


def range_of(phi: Activation, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of phi over ``[l, h]``, (m, n), rounded outwards."""
    lo, hi = ranged(phi, low, high)
    return outward(lo, hi, evaluation(phi, low, high, lo, hi))


def evaluation(phi: Activation, *ends: np.ndarray) -> np.ndarray:
    """How far ends may be off as they are evaluated, from all ends of y and x.

    phi is assumed to be right to within ``16 eps (|y| + |phi(y)|)``, as everywhere in
    certificates; a softmax of k to within ``16 eps (max|y| + k)``.
    """
    reach = np.abs(ends).max(axis=0)
    for part, c in parts(phi, reach.shape[-1]):
        if part is softmax:
            reach[..., c] = reach[..., c].max(axis=-1, keepdims=True) + (c.stop - c.start)
    return up(32 * EPS * reach, 2)


def lines(
    phi: Activation, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(D, k, rho)`` for intervals [l, h], (..., n)."""
    lo, hi = range_of(phi, low, high)
    D, k = np.zeros_like(low), 0.5 * lo + 0.5 * hi
    rho = up(np.maximum(hi - k, k - lo), 1)
    for part, columns in parts(phi, low.shape[-1]):
        if part is not softmax:
            d, middle, off = _chord(part, low[..., columns], high[..., columns])
            better = off < rho[..., columns]
            for whole, piece in ((D, d), (k, middle), (rho, off)):
                whole[..., columns] = np.where(better, piece, whole[..., columns])
    return D, k, rho


def _chord(
    phi: Activation, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    least, most = phi.slope_range or (-np.inf, np.inf)
    w = high - low
    D = np.where(w > 0, (phi(high) - phi(low)) / w, phi.dphi(low))
    D = np.where(np.isfinite(D), np.clip(D, least, most), 0.0)
    cuts = [low + w * (j / CELLS) for j in range(CELLS)] + [high]
    cuts += [np.clip(kink, low, high) for kink in phi.kinks]
    y = np.sort(np.stack([np.clip(cut, low, high) for cut in cuts]), axis=0)
    image = phi(y)
    g, t = image - D * y, np.diff(y, axis=0)
    beyond = 0.25 * (most - least) * t
    if phi.curvature is not None:
        beyond = np.minimum(beyond, 0.125 * phi.curvature * t * t)
    top = (np.maximum(g[1:], g[:-1]) + beyond).max(axis=0)
    bottom = (np.minimum(g[1:], g[:-1]) - beyond).min(axis=0)
    reach = np.maximum(np.abs(low), np.abs(high))
    blur = 24 * EPS * (reach * (1.0 + np.abs(D)) + np.abs(image).max(axis=0))
    k = 0.5 * top + 0.5 * bottom
    rho = up(np.maximum(top - k, k - bottom) + blur, 4)
    return D, k, np.where(np.isnan(rho), np.inf, rho)
