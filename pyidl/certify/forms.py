r"""Affine forms: a set of vectors that keeps what its entries have in common.

    v = c + sum_j G_j eta_j + r * xi,    |eta_j| <= 1,    |xi_i| <= 1,    lo <= v <= hi.

The columns G_j are shared by all entries, and by all that is computed from the same
inputs: where they cancel, they cancel. The noise r is each entry's own, and so is the
box. The first `ball` columns together lie in a Euclidean ball, ``eta_1^2 + eta_2^2 +
... <= 1``. An affine map acts on c and G as on numbers, and on r by absolute values;
what is rounded goes to r, so that the set holds the exact values.

Two forms may meet (in a sum, side by side) only if columns of the same place are the
same noise: so whatever is made of a form keeps its columns, if only as zeros, and puts
its own behind them.

An input box is c and r alone. Before a product with a matrix the entries of r become
columns, since behind it they are shared.

Sums of k products are off by at most ``gamma_k`` times the sum of absolute products
(Higham, "Accuracy and stability of numerical algorithms", 2nd ed., section 3.1).

Source: de Figueiredo, Stolfi, "Affine arithmetic: concepts and applications", Numer.
Algorithms 37, 2004.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pyidl.certify.enclosure import up

__all__ = ["EPS", "LIMIT", "Form", "concat", "merged", "outward", "padded", "where"]

EPS = float(np.finfo(np.float64).eps)

LIMIT = 6000
"""So many columns are carried; what is more stays each entry's own noise."""

UNDERFLOW = 1e-150
"""What squares that vanish may hide."""

NOTABLE = 1e-6
"""The share of an entry's radius from which its own noise is worth a column."""


def outward(
    low: np.ndarray, high: np.ndarray, off: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """``[low - off, high + off]``, outwards; infinite where nothing is known."""
    low, high = np.nextafter(low - off, -np.inf), np.nextafter(high + off, np.inf)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


@dataclass(frozen=True)
class Form:
    """m sets, one a sample: c, r, lo and hi (m, ..., k), G (m, s, ..., k); float64."""

    c: np.ndarray
    G: np.ndarray
    r: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    ball: int = 0

    @classmethod
    def box(cls, lo: np.ndarray, hi: np.ndarray) -> Form:
        """All v with ``lo <= v <= hi``."""
        c = 0.5 * lo + 0.5 * hi
        r = up(np.maximum(hi - c, c - lo), 1)
        return cls(c, np.empty((len(c), 0, *c.shape[1:])), r, lo, hi)

    @classmethod
    def around(cls, u: np.ndarray, eps: float, lo: np.ndarray, hi: np.ndarray) -> Form:
        """All v of the box with ``|v - u|_2 <= eps``."""
        size = u[0].size
        G = np.broadcast_to(
            eps * np.eye(size).reshape(size, *u.shape[1:]), (len(u), size, *u.shape[1:])
        )
        return cls(u, G, np.zeros_like(u), lo, hi, size)

    @property
    def columns(self) -> int:
        """How many columns there are: s."""
        return int(self.G.shape[1])

    def sizes(self) -> np.ndarray:
        """``sum_j |G_j|``."""
        return np.asarray(np.abs(self.G).sum(axis=1))

    def radius(self) -> np.ndarray:
        """How far v may be from c, rounded up."""
        free = np.abs(self.G[:, self.ball :]).sum(axis=1)
        together = np.sqrt(np.square(self.G[:, : self.ball]).sum(axis=1))
        return up(free + together + self.r, self.columns + 4) + UNDERFLOW

    def within(self, lo: np.ndarray, hi: np.ndarray) -> Form:
        """The same with a box that holds v, and with that of its own radius."""
        low, high = outward(self.c, self.c, self.radius())
        return replace(
            self, lo=np.fmax(np.fmax(lo, low), self.lo), hi=np.fmin(np.fmin(hi, high), self.hi)
        )

    def boxed(self) -> Form:
        """The box alone."""
        return Form.box(self.lo, self.hi)

    def promoted(self) -> Form:
        """With a column for every entry whose own noise counts."""
        own, place = self._own()
        G = np.zeros((len(self.c), len(place), self.c[0].size))
        G[:, np.arange(len(place)), place] = own.reshape(len(own), -1)[:, place]
        G = np.concatenate([self.G, G.reshape(len(own), -1, *own.shape[1:])], axis=1)
        return replace(self, G=G, r=np.where(own > 0, 0.0, self.r))

    def _own(self) -> tuple[np.ndarray, np.ndarray]:
        """The noise that is worth columns, and the places of its entries."""
        notable = (self.r > NOTABLE * self.radius()) & np.isfinite(self.r)
        place = np.flatnonzero(notable.any(axis=0).ravel())
        if len(place) > LIMIT - self.columns:
            return np.zeros_like(self.r), place[:0]
        return np.where(notable, self.r, 0.0), place

    def linear(self, W: np.ndarray, b: np.ndarray | float = 0.0) -> Form:
        """``W v + b``, on the last axis.

        Columns that noise becomes depend on v alone, so that ``V v`` and ``W v`` share
        them.
        """
        (q, k), size, (own, place) = W.shape, np.abs(W).T, self._own()
        m, ahead = len(self.c), self.c.shape[1:-1]
        # A column of v with one entry alone becomes that multiple of a column of W.
        G = np.zeros((m, len(place), math.prod(ahead), q))
        entry = own.reshape(m, -1)[:, place]
        G[:, np.arange(len(place)), place // k] = entry[:, :, None] * W.T[place % k]
        G = np.concatenate([self.G @ W.T, G.reshape(m, len(place), *ahead, q)], axis=1)
        c, r = self.c @ W.T + b, np.where(own > 0, 0.0, self.r)
        met = np.abs(self.c) + self.sizes() + own
        blur = (k + 4) * EPS * (met @ size + np.abs(b) + np.abs(c))
        lo, hi = self.interval(W, b)
        return Form(c, G, up(r @ size + blur, 2 * k + 4), lo, hi, self.ball).within(lo, hi)

    def interval(self, W: np.ndarray, b: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of ``W v + b`` by the box of v alone."""
        k, size, middle = W.shape[1], np.abs(W).T, 0.5 * self.lo + 0.5 * self.hi
        half, at = up(np.maximum(self.hi - middle, middle - self.lo), 1), middle @ W.T + b
        off = half @ size + (k + 4) * EPS * (np.abs(middle) @ size + np.abs(b) + np.abs(at))
        return outward(at, at, up(off, 2 * k + 4))

    def scaled(
        self, D: np.ndarray, k: np.ndarray, rho: np.ndarray, lo: np.ndarray, hi: np.ndarray
    ) -> Form:
        """``D v + k``, entry by entry, off by at most rho, in a known box."""
        size = np.abs(D)
        c, blur = D * self.c + k, 4 * EPS * (size * (np.abs(self.c) + self.sizes()) + np.abs(k))
        r = up(size * self.r + rho + blur, 6)
        return Form(c, D[:, None] * self.G, r, lo, hi, self.ball).within(lo, hi)

    def plus(self, other: Form) -> Form:
        """``v + w``; columns of the same place are the same noise."""
        a, b = padded([self, other])
        c, G = a.c + b.c, a.G + b.G
        r = up(a.r + b.r + EPS * (np.abs(c) + np.abs(G).sum(axis=1)), a.columns + 4)
        lo, hi = outward(a.lo + b.lo, a.hi + b.hi, 0.0)
        return Form(c, G, r, lo, hi, a.ball).within(lo, hi)

    def widened(self, off: np.ndarray) -> Form:
        """All that lies within `off` of it, entry by entry."""
        lo, hi = outward(self.lo, self.hi, off)
        return replace(self, r=up(self.r + off, 1), lo=lo, hi=hi)

    def of(self, change: Callable[[np.ndarray], np.ndarray]) -> Form:
        """With entries taken, joined or moved: `change` acts on (m, ..., k)."""
        m, s = self.G.shape[:2]
        G = change(self.G.reshape(m * s, *self.G.shape[2:])) if s else None
        c, r, lo, hi = (change(a) for a in (self.c, self.r, self.lo, self.hi))
        G = np.empty((m, 0, *c.shape[1:])) if G is None else G.reshape(m, s, *G.shape[1:])
        return Form(c, G, r, lo, hi, self.ball)

    def behind(self, other: Form, shared: int) -> Form:
        """With the columns after the first `shared` behind those of another form."""
        gap = np.zeros((len(self.c), other.columns - shared, *self.c.shape[1:]))
        return replace(
            self, G=np.concatenate([self.G[:, :shared], gap, self.G[:, shared:]], axis=1)
        )

    def reduced(self, keep: int, most: int) -> Form:
        """With at most `most` columns behind the first `keep`; others are own noise."""
        own = self.G[:, keep:]
        if own.shape[1] <= most:
            return self
        order = np.argsort(-np.abs(own).sum(axis=(0, *range(2, own.ndim))), kind="stable")
        left, gone = own[:, order[:most]], own[:, order[most:]]
        r = up(self.r + np.abs(gone).sum(axis=1), own.shape[1])
        return replace(self, G=np.concatenate([self.G[:, :keep], left], axis=1), r=r)


def padded(forms: Sequence[Form]) -> list[Form]:
    """With as many columns each, by zeros."""
    most = max(f.columns for f in forms)
    return [
        replace(
            f, G=np.concatenate([f.G, np.zeros((len(f.c), most - f.columns, *f.c.shape[1:]))], 1)
        )
        for f in forms
    ]


def merged(join: Callable[..., np.ndarray], forms: Sequence[Form]) -> Form:
    """One form of several: `join` acts on each of their five arrays."""
    forms = padded(forms)
    arrays = zip(*((f.c, f.G, f.r, f.lo, f.hi) for f in forms), strict=True)
    c, G, r, lo, hi = (join(*several) for several in arrays)
    return Form(c, G, r, lo, hi, max(f.ball for f in forms))


def concat(forms: Sequence[Form]) -> Form:
    """Side by side on the last axis."""
    return merged(lambda *parts: np.concatenate(parts, axis=-1), forms)


def where(there: np.ndarray, new: Form, old: Form) -> Form:
    """`new` for the samples that are there, `old` for the others."""
    if there.all():
        return new

    def chosen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return merged(chosen, [new, old])
