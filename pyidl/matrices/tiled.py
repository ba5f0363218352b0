"""A matrix in tiles, the zero ones of which are never multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace
from pyidl.matrices.base import product
from pyidl.matrices.full import Full, laid_out
from pyidl.matrices.growth import with_gains
from pyidl.matrices.pattern import Groups
from pyidl.matrices.sparse import Sparse
from pyidl.typing import Array

__all__ = ["TILE", "Tiled"]

TILE = 3000
"""Entries of A that a tile must spare.

Besides its arithmetic its product costs 2.5 us, as much as these with 64 rows
(measured).
"""


@dataclass(frozen=True)
class Tiled:
    """A matrix of which whole tiles are zero: products with those are not computed.

    Rows and columns fall into groups. For the A of a feed-forward network the groups
    are its layers.

    Parameters
    ----------
    A : array, shape (r, c)
        The matrix.
    row_groups, column_groups : Groups
        How its rows and columns are cut.
    tiles : dict of (int, int) to Full
        ``tiles[i, j]`` is ``A[rows of group i, columns of group j]``, absent where it
        is zero.
    support : numpy.ndarray of bool, shape (r, c)
        Where A may be nonzero.
    mask : array, shape (r, c), optional
        The same as numbers, if it is prescribed: gradients are confined to it.
        Otherwise they are full.
    whole : Full, optional
        A in one piece, where its tiles are so many that products with all of them take
        longer.
    filled : bool
        Whether A may be nonzero everywhere in its tiles.
    gains : (float, float), optional
        As of a `Full`, the largest of the tiles on the diagonal: A is block triangular,
        so its eigenvalues are theirs.

    Examples
    --------
    >>> halves = Groups.of([np.array([0, 1]), np.array([2, 3])], [False, False])
    >>> A = np.kron([[0.0, 1.0], [0.0, 0.0]], np.ones((2, 2)))
    >>> sorted(Tiled.of(A, halves, halves, A != 0, confined=False).tiles)
    [(0, 1)]
    """

    A: Array
    row_groups: Groups
    column_groups: Groups
    tiles: dict[tuple[int, int], Full]
    support: np.ndarray
    mask: Array | None = None
    whole: Full | None = None
    filled: bool = False
    gains: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        A: Array,
        row_groups: Groups,
        column_groups: Groups,
        support: np.ndarray,
        confined: bool,
        doubtful: bool = False,
        below: float = 0.0,
    ) -> Tiled:
        """Cut A, the nonzero entries of which lie in `support`.

        Parameters
        ----------
        A, row_groups, column_groups, support
            As above.
        confined : bool
            Whether gradients are confined to the support.
        doubtful : bool
            As in `growth.with_gains`, for the tiles on the diagonal of a square A.
        below : float
            As in `Sparse.of`, for every tile.
        """
        xp, square = namespace(A), row_groups is column_groups
        tiles, filled = {}, True
        for i, rows in enumerate(row_groups.members):
            strip = (
                A[rows, :] if isinstance(rows, slice) else xp.take(A, from_host(xp, rows), axis=0)
            )
            for j, columns in enumerate(column_groups.members):
                places = support[rows][:, columns]
                if places.any():
                    filled &= bool(places.all())
                    tile = Sparse.of(column_groups.piece(strip, j), below)
                    tiles[i, j] = with_gains(tile, doubtful) if square and i == j else tile
        mask = astype(xp, from_host(xp, support), A.dtype) if confined else None
        spared = A.size - sum(tile.A.size for tile in tiles.values())
        many = (len(tiles) - 1) * TILE > spared
        whole = (laid_out(Full(A)) if square else Full(A)) if many else None
        gains = _largest_gains([tiles[i, i] for i, j in tiles if i == j]) if square else None
        return cls(A, row_groups, column_groups, tiles, support, mask, whole, filled, gains)

    def product(self, i: int, pieces: dict[int, Any], out: Any = None) -> Any:
        """``sum_j x_j A_ij^T`` over the column groups whose x_j is among the pieces.

        None if there are none.
        """
        total: Any = None
        for (row, j), tile in self.tiles.items():
            if row == i and j in pieces:
                if total is None:
                    total = tile.rows(pieces[j], out)
                else:
                    total += tile.rows(pieces[j])
        return total

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``, tile by tile, or in one piece; which does not depend on x."""
        if self.whole is not None:
            return self.whole.rows(x, out)
        pieces, groups = self.column_groups.cut(x), self.row_groups
        if out is None:
            out = namespace(self.A).empty((x.shape[0], self.A.shape[0]), dtype=x.dtype)
        for i in range(len(groups.members)):
            here = groups.view(out, i)
            total = self.product(i, pieces, here)
            if total is None or total is not here:
                groups.put(out, i, 0.0 if total is None else total)
        return out

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dA = v^T x``, of the tiles alone where A is confined to its pattern."""
        if self.mask is None or self.whole is not None:
            return {name: v.T @ x if self.mask is None else (v.T @ x) * self.mask}
        left, right, xp = self.row_groups.cut(v), self.column_groups.cut(x), namespace(v)
        dA = xp.zeros(self.A.shape, dtype=v.dtype)
        for i, member in enumerate(self.row_groups.members):
            strip = self.row_groups.piece(dA.T, i).T  # a view, where the rows are a range
            for j in range(len(self.column_groups.members)):
                if (i, j) in self.tiles:
                    here = self.column_groups.view(strip, j)
                    part = product(left[i].T, right[j], here)
                    if part is not here:
                        self.column_groups.put(strip, j, part)
            if not isinstance(member, slice):
                self.row_groups.put(dA.T, i, strip.T)
        return {name: dA if self.filled else dA * self.mask}

    @property
    def T(self) -> Tiled:
        """Tiles transposed, in transposed places."""
        tiles = {(j, i): tile.T for (i, j), tile in self.tiles.items()}
        mask = None if self.mask is None else self.mask.T
        whole = None if self.whole is None else self.whole.T
        groups, support = (self.column_groups, self.row_groups), self.support.T
        return Tiled(self.A.T, *groups, tiles, support, mask, whole, self.filled, self.gains)

    def dense(self) -> Any:
        """The array itself."""
        return self.A

    def diagonal(self) -> Any:
        """``A_ii``, as of a whole A."""
        return Full(self.A).diagonal()

    def off_diagonal(self, scale: Any) -> Full:
        """``diag(scale) (A - diag(A))``, a whole copy."""
        return Full(self.A).off_diagonal(scale)


def _largest_gains(blocks: list[Full]) -> tuple[float, float] | None:
    """Of the blocks of a block triangular matrix; None where they do not matter."""
    if not any(block.gains for block in blocks):
        return None
    plain, split = zip(*(with_gains(block, True).gains for block in blocks), strict=True)
    return max(plain), max(split)
