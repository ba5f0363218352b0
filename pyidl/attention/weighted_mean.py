r"""Means whose weights are exponentials of inner products, with their derivatives.

Keys may be visited in tiles.

Rows of A are features of queries, rows of B of keys, rows of U are values, of samples
(m) and heads (H): shapes (m, H, T, f), (m, H, n, f), (m, H, n, h). With c >= 0 the
weight of a *null key*, whose value is 0,

    Z = A B^T,   E_ij = exp Z_ij where query i may see key j, else 0,
    s_i = 1 / (c + sum_l E_il),   out_i = s_i sum_j E_ij u_j.

*Derivatives.* With weights ``w_ij = s_i E_ij`` and ``dE = E * dZ``, ``dw_ij = w_ij
(dZ_ij - sum_l w_il dZ_il)``. Hence, in rows,

    dOut = (W * dZ) U - rowsum(W * dZ) * Out + W dU,      dZ = dA B^T + A dB^T,

and for a cotangent G of Out, ``<G, dOut> = <M, dZ> + <W^T G, dU>`` with ``M = W * (G
U^T - rowsum(G * Out))``:

    gU = W^T G,     gA = M B,     gB = M^T A.

The mask enters through E alone and the null key through c alone. W is never formed: it
is E with s * G in the place of G. Sums over keys come with the products, from a column
of ones in U. Out and its derivatives do not change if a constant is added to a row of Z
and c = 0; so, where exponents may be large, the largest of each row is subtracted.

*Tiles.* ``E [U, 1]`` is a running sum over tiles of keys. When the largest exponent of
a row grows, what was summed before is scaled (Milakov, Gimelshein, "Online normalizer
calculation for softmax", 2018). The derivatives form the tiles of E again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, is_array, namespace, writes_in_place
from pyidl.arrays.batch import take_rows
from pyidl.arrays.fusion import fused
from pyidl.errors import InputError, expect_flags
from pyidl.typing import Array, Namespace

__all__ = ["Average", "Averaged", "Mask", "row_sums", "some"]

KEPT = 2**25
"""Largest number of weights that are held at a time.

Above it, keys are visited in tiles.
"""
CACHED = 2**18
"""On NumPy, weights that are formed at a time.

So few that they are still in the cache when they are used.
"""
CAUSAL = 64
"""On NumPy, keys of a tile under a causal mask, from four of them on.

The weights of queries before a tile, nearly half, are not formed.
"""
SAFE = 40.0
"""Exponents of at most this size need no shift.

Their exponentials, and sums of them, are normal numbers in float32.
"""


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see.

    All of them, less those that one of the following excludes.

    Parameters
    ----------
    causal : bool
        Query i sees the keys 1, ..., i.
    tokens : array of bool, shape (m, T), optional
        The tokens that are there; the others, padding, neither see nor are seen.
    pairs : array of bool, shape (T, T), optional
        ``pairs[i, j]``: query i sees key j.
    """

    causal: bool = False
    tokens: Array | None = None
    pairs: Array | None = None

    def __post_init__(self) -> None:
        expect_flags(self, "causal")
        for name in ("tokens", "pairs"):
            table = getattr(self, name)
            if not (
                table is None or (is_array(table) and namespace(table).isdtype(table.dtype, "bool"))
            ):
                raise InputError(
                    f"{name} is {type(table).__name__} {getattr(table, 'dtype', '')}; an array of "
                    "booleans is needed, or None"
                )

    def first(self, keys: slice) -> int:
        """The first query that may see one of these keys."""
        return int(keys.start) if self.causal else 0

    def seen(self, xp: Namespace, T: int, keys: slice) -> Any:
        """Booleans, to be broadcast to (m, H, queries from `first` on, keys).

        None for all.
        """
        first, parts = self.first(keys), []
        if self.causal:
            parts.append(xp.arange(first, T)[:, None] >= xp.arange(keys.start, keys.stop)[None, :])
        if self.pairs is not None:
            parts.append(self.pairs[first:, keys])
        if self.tokens is not None:
            parts.append(self.tokens[:, None, first:, None] & self.tokens[:, None, None, keys])
        both = parts[0] if parts else None
        for other in parts[1:]:
            both = both & other
        return both

    @property
    def keyed(self) -> bool:
        """Whether every query, from `first` on, sees a key in every tile.

        Without a mask, or with a causal one alone, the first.
        """
        return self.tokens is None and self.pairs is None

    def take(self, rows: Any) -> Mask:
        """That of some of the samples, numbered on the host or by a slice."""
        return self if self.tokens is None else replace(self, tokens=some(self.tokens, rows))

    def check(self) -> None:
        """Refuse a table that leaves a query without keys.

        Causal masks and padding alone leave none.
        """
        if self.pairs is None:
            return
        xp, (T, n) = namespace(self.pairs), self.pairs.shape
        keyed = xp.any(self.seen(xp, T, slice(0, n)), axis=-1)
        if self.tokens is not None:
            keyed = keyed | ~self.tokens[:, None, :]
        if not bool(xp.all(keyed)):
            raise InputError(
                "a query sees no key, and a softmax over no keys has no value; let it see itself, "
                "or use KernelAttention"
            )


@dataclass(frozen=True)
class Average:
    """The map ``(A, B, U) -> out``.

    A query that sees no key has the output 0, and hands no gradient on.

    Parameters
    ----------
    null : float
        c.
    largest : float
        A bound of all exponents; inf for none. A bound of 0 is enforced against
        rounding.
    mask : Mask
        Which keys a query may see.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out.
    """

    null: float = 0.0
    largest: float = np.inf
    mask: Mask = Mask()
    tile: int | None = None

    def __call__(self, a: Any, b: Any, U: Any) -> Any:
        """``out``, (m, H, T, h)."""
        xp, m = namespace(a, b, U), a.shape[0]
        size = max(1, CACHED * m // (a[..., 0].size * self._tile(a, b)))
        U = with_ones(U)
        if xp is not np or size >= m:
            return self._sums(a, b, U, False)[0]
        pieces = [slice(i, min(i + size, m)) for i in range(0, m, size)]
        return np.concatenate([self.take(s)._sums(a[s], b[s], U[s], False)[0] for s in pieces])

    def at(self, a: Any, b: Any, U: Any) -> Averaged:
        """The map at a point, with its derivatives."""
        U = with_ones(U)
        return Averaged(self, a, b, U, *self._sums(a, b, U, True))

    def take(self, rows: Any) -> Average:
        """The same for some of the samples."""
        return replace(self, mask=self.mask.take(rows))

    def tiles(self, a: Any, b: Any) -> Iterator[tuple[int, slice]]:
        """The keys in their order, and the first query that sees one of them."""
        n, tile = b.shape[2], self._tile(a, b)
        for i in range(0, n, tile):
            keys = slice(i, min(i + tile, n))
            yield self.mask.first(keys), keys

    def _tile(self, a: Any, b: Any) -> int:
        """How many keys are visited at a time."""
        queries, n = int(a[..., 0].size), int(b.shape[2])
        if self.tile is not None:
            return min(self.tile, n)
        if self.mask.causal and n >= 4 * CAUSAL and namespace(a) is np:
            n = CAUSAL
        return n if queries * n <= KEPT else max(16, KEPT // queries)

    def _sums(self, a: Any, b: Any, U: Any, keep: bool) -> tuple[Any, Any, Any, Any]:
        """``(out, s, largest exponent of each row, E)``.

        U has a column of ones. E only if it is to be kept and has one tile.
        """
        xp, h, T = namespace(a, b, U), U.shape[-1] - 1, a.shape[2]
        shift: Any = None
        if self.largest > SAFE:
            shift = xp.full((*a.shape[:-1], 1), lowest(xp, U.dtype), dtype=U.dtype)
        total = xp.zeros((*a.shape[:-1], h + 1), dtype=U.dtype)
        E: Any = None
        for first, keys in self.tiles(a, b):
            rows = (..., slice(first, None), slice(None))
            Z, seen = self._exponents(a, b, U, keys)
            if shift is not None:
                grown = xp.maximum(shift[rows], xp.max(Z, axis=-1, keepdims=True))
                total[rows] *= xp.exp(shift[rows] - grown)
                shift[rows] = grown
            E = self._exponentials(xp, Z, seen, None if shift is None else grown)
            total[rows] += E @ U[..., keys, :]
        s = _inverse(total[..., h:], self.null)
        return (
            total[..., :h] * s,
            s,
            shift,
            E if keep and E is not None and E.shape[-2:] == (T, b.shape[2]) else None,
        )

    def _exponents(self, a: Any, b: Any, U: Any, keys: slice) -> tuple[Any, Any]:
        """``(Z, seen)`` for these keys.

        In the dtype of the values; features may be wider.
        """
        xp = namespace(a, b, U)
        seen = self.mask.seen(xp, a.shape[2], keys)
        Z = a[..., self.mask.first(keys) :, :] @ xp.matrix_transpose(b[..., keys, :])
        if Z.dtype != U.dtype:  # wider, and perhaps too large for that of the values
            Z = astype(xp, xp.maximum(Z, lowest(xp, U.dtype)), U.dtype)
        if seen is not None and self.largest > SAFE:
            Z = xp.where(seen, Z, lowest(xp, Z.dtype))
        return Z, seen

    def _exponentials(self, xp: Namespace, Z: Any, seen: Any, shift: Any) -> Any:
        """``exp(Z - shift)`` where seen, else 0; Z is overwritten."""
        if shift is not None:
            Z -= shift
        if self.largest <= 0:
            Z = xp.minimum(Z, 0.0, out=Z) if writes_in_place(xp) else xp.minimum(Z, 0.0)
        E = xp.exp(Z, out=Z) if writes_in_place(xp) else xp.exp(Z)
        if seen is not None and (
            shift is None or not self.mask.keyed
        ):  # else exp has made a hidden key's weight 0 already
            E *= astype(xp, seen, E.dtype)
        return E


@fused
def _inverse(total: Any, null: Any) -> Any:
    """``1 / (total + null)``; 0 where nothing is seen."""
    xp = namespace(total)
    normaliser = total + null
    return xp.where(normaliser > 0, 1.0 / xp.where(normaliser > 0, normaliser, 1.0), 0.0)


@dataclass(frozen=True, repr=False)
class Averaged:
    """An `Average` at a point: its value `out` and its two derivatives.

    What they need is formed once, for as many of them as are asked; with several tiles,
    E is formed again for each of them. U holds a column of ones here.
    """

    average: Average
    a: Array
    b: Array
    U: Array
    out: Array
    s: Array
    shift: Array | None
    E: Array | None

    def weights(self) -> Any:
        """``w_ij``, (m, H, T, n): rows sum to 1, or with a null key to less."""
        xp, parts = namespace(self.a), []
        for first, _, E in self._tiles():
            above = xp.zeros((*E.shape[:2], first, E.shape[3]), dtype=E.dtype)
            parts.append(xp.concat([above, E * self.s[..., first:, :]], axis=2))
        return xp.concat(parts, axis=-1)

    def jvp(self, da: Any, db: Any, dU: Any) -> Any:
        """``(W * dZ) U - rowsum(W * dZ) * Out + W dU``, ``dZ = dA B^T + A dB^T``."""
        xp, h, U = namespace(self.a), self.U.shape[-1] - 1, self.U
        left, right = xp.concat([da, self.a], axis=-1), xp.concat([self.b, db], axis=-1)
        total = xp.zeros((*self.a.shape[:-1], h + 1), dtype=self.a.dtype)
        for first, keys, E in self._tiles():
            M = E * (left[..., first:, :] @ xp.matrix_transpose(right[..., keys, :]))
            total[..., first:, :] += M @ U[..., keys, :]
            total[..., first:, :h] += E @ dU[..., keys, :]
        return self.s * (total[..., :h] - total[..., h:] * self.out)

    def vjp(self, G: Any) -> tuple[Any, Any, Any]:
        """``(gA, gB, gU)``.

        ``M = W * (G U^T - rowsum(G * Out))``, ``gA = M B``, ``gB = M^T A``, ``gU = W^T
        G``.
        """
        xp, m = namespace(self.a), self.a.shape[0]
        size = max(1, CACHED * m // (self.a[..., 0].size * self.average._tile(self.a, self.b)))
        ga, gb, gU = xp.zeros_like(self.a), xp.zeros_like(self.b), xp.zeros_like(self.U[..., 1:])
        if xp is not np or size >= m:
            self._vjp(G, ga, gb, gU)
        else:
            for i in range(0, m, size):
                s = slice(i, min(i + size, m))
                self.take(s)._vjp(G[s], ga[s], gb[s], gU[s])
        return ga, gb, gU

    def _vjp(self, G: Any, ga: Any, gb: Any, gU: Any) -> None:
        """Add the cotangents to zeros."""
        xp = namespace(self.a)
        G = self.s * G
        left = xp.concat([G, -row_sums(G * self.out)], axis=-1)
        for first, keys, E in self._tiles():
            M = left[..., first:, :] @ xp.matrix_transpose(self.U[..., keys, :])
            M *= E
            ga[..., first:, :] += M @ self.b[..., keys, :]
            gb[..., keys, :] = xp.matrix_transpose(M) @ self.a[..., first:, :]
            gU[..., keys, :] = xp.matrix_transpose(E) @ G[..., first:, :]

    def take(self, rows: Any) -> Averaged:
        """The same for some of the samples, numbered on the host or by a slice."""
        a, b, U, out, s = (some(x, rows) for x in (self.a, self.b, self.U, self.out, self.s))
        shift, E = (None if x is None else some(x, rows) for x in (self.shift, self.E))
        return Averaged(self.average.take(rows), a, b, U, out, s, shift, E)

    def _tiles(self) -> Iterator[tuple[int, slice, Any]]:
        """``(first query, keys, E)`` of every tile."""
        xp = namespace(self.a)
        if self.E is not None:
            yield 0, slice(0, self.b.shape[2]), self.E
            return
        for first, keys in self.average.tiles(self.a, self.b):
            Z, seen = self.average._exponents(self.a, self.b, self.U, keys)
            shift = None if self.shift is None else self.shift[..., first:, :]
            yield first, keys, self.average._exponentials(xp, Z, seen, shift)


def row_sums(x: Any) -> Any:
    """Sums over the last axis, (..., 1).

    One product, as NumPy's sums of short rows are several times slower.
    """
    xp, n = namespace(x), x.shape[-1]
    return xp.reshape(xp.reshape(x, (-1, n)) @ xp.ones((n, 1), dtype=x.dtype), (*x.shape[:-1], 1))


def lowest(xp: Namespace, dtype: Any) -> float:
    """The exponent of a hidden key.

    Differences from it are numbers, and their exponentials are 0.
    """
    return -0.25 * float(xp.finfo(dtype).max)


def with_ones(U: Any) -> Any:
    """``[U, 1]``: a product with it gives the sums too."""
    xp = namespace(U)
    return xp.concat([U, xp.ones_like(U[..., :1])], axis=-1)


def some(x: Any, rows: Any) -> Any:
    """Some of the samples, numbered on the host or by a slice."""
    return x[rows, ...] if isinstance(rows, slice) else take_rows(namespace(x), x, rows)
