"""Matrices as the solvers see them.

Whole, in compressed rows, as factors ``A = L R^T`` that are never multiplied out, or in
tiles.

Samples are rows, so the forward pass multiplies by A^T from the right, and its adjoint,
the same thing with A transposed, by A. What a solver can use of A beyond its products
is read once, when the parameters are set (`read`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace, to_numpy, writes_in_place
from pyidl.matrices import sparse
from pyidl.matrices.pattern import Groups, Pattern, levels
from pyidl.typing import Array, Params

__all__ = ["Full", "LowRank", "Matrix", "Sparse", "Tiled", "growth", "read", "read_model"]


class Matrix(Protocol):
    """A linear map of rows."""

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``, a new array or `out`."""
        ...

    @property
    def T(self) -> Matrix:
        """The transpose, without a copy."""
        ...

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """Gradients of ``sum(v * (x A^T))`` with respect to the arrays that make up the parameter of this name."""
        ...

    def dense(self) -> Any:
        """A itself."""
        ...

    def diagonal(self) -> Any:
        """``A_ii``, shape (n,)."""
        ...

    def off_diagonal(self, scale: Any) -> Matrix:
        """``diag(scale) (A - diag(A))``, scale of shape (n,).

        What the Jacobi splitting iterates with.
        """
        ...


def _product(a: Any, b: Any, out: Any) -> Any:
    return a @ b if out is None else namespace(a).matmul(a, b, out=out)


@dataclass(frozen=True)
class Full:
    """A, (r, c). `gains`, where known, are the growth of A and of its Jacobi splitting per step, as `read` estimates them."""

    A: Array
    gains: tuple[float, float] | None = None
    At: Array | None = None
    """A^T in the order of its rows, where products are many.

    With a transposed view they take up to 2.8 times as long.
    """

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``."""
        if self.At is None:
            return _product(x, self.A.T, out)
        if out is None:
            return x @ self.At
        At: Any = self.At
        return np.dot(x, At, out=out) if out.flags.c_contiguous else np.matmul(x, At, out=out)

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dA = v^T x``.

        Of a single sample an outer product, which a matrix product is slow at.
        """
        return {name: v.T * x if v.shape[0] == 1 else v.T @ x}

    @property
    def T(self) -> Full:
        """``A^T``; a product of transposes has the same eigenvalues, so the gains stay."""
        return Full(self.A.T, self.gains) if self.At is None else Full(self.At, self.gains, self.A)

    def dense(self) -> Any:
        """A."""
        return self.A

    def diagonal(self) -> Any:
        """``A_ii``."""
        xp = namespace(self.A)
        if writes_in_place(xp):
            return xp.diagonal(self.A)
        return xp.sum(
            self.A * xp.eye(self.A.shape[0], dtype=self.A.dtype), axis=1
        )  # where the standard's `diagonal` is missing

    def off_diagonal(self, scale: Any) -> Full:
        """A copy."""
        off = 1.0 - namespace(self.A).eye(self.A.shape[0], dtype=self.A.dtype)
        return _laid_out(Full(scale[:, None] * off * self.A))


@dataclass(frozen=True)
class Sparse(Full):
    """A, few entries of which differ from zero.

    Large products skip the zeros, small ones and gradients are those of `Full`.
    """

    stored: Any = None
    """The same in compressed rows, or in compressed columns.

    A product is as fast with either.
    """
    turned: Any = None
    """Its transpose."""

    @classmethod
    def of(cls, A: Array, below: float) -> Full:
        """Compressed if A is large, at most the share `below` of it differs from zero, and its library can; otherwise `Full`."""
        few = below > 0 and A.size >= sparse.SMALLEST and A.size - _zeros(A) <= below * A.size
        stored = sparse.compressed(A) if few else None
        return Full(A) if stored is None else cls(A, None, None, stored, stored.T)

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``; whether it skips the zeros depends on the number of samples alone."""
        return (
            sparse.product(self.stored, x, out)
            if self.A.size * x.shape[0] >= sparse.WORK
            else super().rows(x, out)
        )

    @property
    def T(self) -> Sparse:
        """``A^T``; compressed rows become compressed columns, without a copy."""
        return Sparse(self.A.T, self.gains, None, self.turned, self.stored)

    def off_diagonal(self, scale: Any) -> Sparse:
        """A copy, with its own compressed rows."""
        stored = sparse.off_diagonal(self.stored, scale)
        return Sparse(super().off_diagonal(scale).A, None, None, stored, stored.T)


@dataclass(frozen=True)
class LowRank:
    """``A = L R^T`` with L, R of shape (n, k): 4 n k flops a product instead of 2 n^2.

    Minus diag(`minus`) if that is given.
    """

    L: Array
    R: Array
    minus: Array | None = None

    def rows(self, x: Any, out: Any = None) -> Any:
        """``(x R) L^T``.

        What goes from one step to the next is the k-vector ``r = R^T x``.
        """
        y = _product(x @ self.R, self.L.T, out)
        if self.minus is not None:
            y -= x * self.minus
        return y

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dL = dA R = v^T (x R)`` and ``dR = dA^T L = x^T (v L)``, from ``dA = v^T x``."""
        return {"L": v.T @ (x @ self.R), "R": x.T @ (v @ self.L)}

    @property
    def T(self) -> LowRank:
        """``A^T = R L^T``."""
        return LowRank(self.R, self.L, self.minus)

    def dense(self) -> Any:
        """``L R^T``."""
        product = self.L @ self.R.T
        return (
            product
            if self.minus is None
            else product - namespace(product).eye(self.L.shape[0], dtype=product.dtype) * self.minus
        )

    def diagonal(self) -> Any:
        """``sum_k L_ik R_ik``."""
        d = namespace(self.L).sum(self.L * self.R, axis=1)
        return d if self.minus is None else d - self.minus

    def off_diagonal(self, scale: Any) -> LowRank:
        """Scaled factors, and the diagonal to subtract."""
        return LowRank(scale[:, None] * self.L, self.R, scale * self.diagonal())


TILE = 3000
"""Entries of A that a tile must spare.

Besides its arithmetic its product costs 2.5 us, as much as these with 64 rows
(measured).
"""


@dataclass(frozen=True)
class Tiled:
    """A matrix of which whole tiles are zero: products with those are not computed.

    Rows and columns fall into groups; ``tiles[i, j]`` is ``A[rows group i, columns
    group j]``, absent where it is zero. For the A of a feed-forward network the groups
    are its layers.
    """

    A: Array
    row_groups: Groups
    column_groups: Groups
    tiles: dict[tuple[int, int], Full]
    support: np.ndarray
    """Where A may be nonzero; on the host."""
    mask: Array | None = None
    """The same as numbers, if it is prescribed: gradients are confined to it.

    Otherwise they are full.
    """
    whole: Full | None = None
    """A in one piece, where its tiles are so many that products with all of them take longer."""

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
        """Cut A, the nonzero entries of which lie in `support` (on the host).

        `doubtful` as in `read`, `below` in `Sparse.of`.
        """
        xp = namespace(A)
        tiles = {}
        for i, rows in enumerate(row_groups.members):
            for j, columns in enumerate(column_groups.members):
                if support[rows][:, columns].any():
                    tile = Sparse.of(_cut(_cut(A, rows, 0), columns, 1), below)
                    tiles[i, j] = (
                        read(tile, doubtful) if i == j and row_groups is column_groups else tile
                    )
        mask = astype(xp, from_host(xp, support), A.dtype) if confined else None
        spared = A.size - sum(tile.A.size for tile in tiles.values())
        many = (len(tiles) - 1) * TILE > spared
        whole = (_laid_out(Full(A)) if row_groups is column_groups else Full(A)) if many else None
        return cls(A, row_groups, column_groups, tiles, support, mask, whole)

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
        pieces = self.column_groups.cut(x)
        shape, xp = (x.shape[0],), namespace(x)
        if out is None and self.row_groups.in_order and writes_in_place(xp):
            out = xp.empty((*shape, self.A.shape[0]), dtype=x.dtype)
        if out is None or not self.row_groups.in_order:
            zero = [xp.zeros((*shape, size), dtype=x.dtype) for size in self.row_groups.sizes]
            parts = [self.product(i, pieces) for i in range(len(zero))]
            joined = self.row_groups.join(
                [z if part is None else part for z, part in zip(zero, parts, strict=True)]
            )
            if out is None:
                return joined
            out[...] = joined
            return out
        for i, columns in enumerate(self.row_groups.members):
            if self.product(i, pieces, out[:, columns]) is None:
                out[:, columns] = 0.0
        return out

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``dA = v^T x``, of the tiles alone where A is confined to its pattern."""
        if self.mask is None or self.whole is not None:
            return {name: v.T @ x if self.mask is None else (v.T @ x) * self.mask}
        left, right, xp = self.row_groups.cut(v), self.column_groups.cut(x), namespace(v)
        rows = []
        for i, r in enumerate(self.row_groups.sizes):
            row = [
                left[i].T @ right[j] if (i, j) in self.tiles else xp.zeros((r, c), dtype=v.dtype)
                for j, c in enumerate(self.column_groups.sizes)
            ]
            rows.append(self.column_groups.join(row).T)
        return {name: self.row_groups.join(rows).T * self.mask}

    @property
    def T(self) -> Tiled:
        """Tiles transposed, in transposed places."""
        tiles = {(j, i): tile.T for (i, j), tile in self.tiles.items()}
        mask = None if self.mask is None else self.mask.T
        whole = None if self.whole is None else self.whole.T
        return Tiled(
            self.A.T, self.column_groups, self.row_groups, tiles, self.support.T, mask, whole
        )

    def dense(self) -> Any:
        """A."""
        return self.A

    def diagonal(self) -> Any:
        """``A_ii``."""
        return Full(self.A).diagonal()

    def off_diagonal(self, scale: Any) -> Full:
        """A copy, whole."""
        return Full(self.A).off_diagonal(scale)


def _cut(a: Any, index: slice | np.ndarray, axis: int) -> Any:
    if isinstance(index, slice):
        return a[index, :] if axis == 0 else a[:, index]
    return namespace(a).take(a, from_host(namespace(a), index), axis=axis)


SPLIT_FROM, SPLIT_BELOW = 0.5, -0.3
"""The Jacobi splitting is considered where an entry of the diagonal reaches one of these."""

POWERS = 12


def growth(matrix: Matrix, xp: Any, dtype: Any, n: int) -> float:
    """``(|A^k w| / |w|)^(1/k)`` for k = 12 and a fixed w of mixed signs.

    An estimate of the spectral radius, no bound.
    """
    w = np.random.default_rng(0).normal(size=(1, n))
    w /= np.max(np.abs(w))
    x = astype(xp, from_host(xp, w), dtype)
    total = 0.0
    for _ in range(0, POWERS, 3):
        with np.errstate(over="ignore", invalid="ignore"):
            x = matrix.rows(matrix.rows(matrix.rows(x)))
        size = float(xp.max(xp.abs(x)))
        if not 0 < size < np.inf:
            return size
        x, total = x / size, total + np.log(size)
    return float(np.exp(total / POWERS))


TURNED_UP_TO = 512
"""Up to this n, A^T is laid out.

At n = 512 that costs as much as it saves in 14 products of 64 rows (measured).
"""


def _laid_out(matrix: Full) -> Full:
    A = matrix.A
    if type(matrix) is not Full or type(A) is not np.ndarray or A.shape[0] > TURNED_UP_TO:
        return matrix
    return replace(matrix, A=np.ascontiguousarray(A), At=np.ascontiguousarray(A.T))


def read(matrix: Full, doubtful: bool = False) -> Full:
    """Where the diagonal of A is large, or Picard may not contract.

    Estimate how fast it and how fast the Jacobi splitting do.

    Bounds do not tell: that of the splitting is never the larger one, and yet there are
    matrices where it needs 15 times as many steps (``0.99 [[.5, .5], [-.5, .5]]``). The
    growth of a vector does, up to the part that phi plays.
    """
    matrix = _laid_out(matrix)
    d = to_numpy(matrix.diagonal()).astype(np.float64)
    if not (doubtful or SPLIT_FROM <= np.max(d) < 1.0 or np.min(d) <= SPLIT_BELOW):
        return matrix
    xp, A = namespace(matrix.A), matrix.A
    if not np.max(d) < 1.0:  # there is no splitting
        return replace(matrix, gains=(growth(matrix, xp, A.dtype, len(d)), np.inf))
    off = matrix.off_diagonal(astype(xp, from_host(xp, 1.0 / (1.0 - d)), A.dtype))
    return replace(
        matrix, gains=(growth(matrix, xp, A.dtype, len(d)), growth(off, xp, A.dtype, len(d)))
    )


def read_model(
    params: Params,
    pattern: Pattern | None,
    before: Mapping[str, Matrix] | None,
    doubtful: bool = False,
    below: float = 0.0,
) -> dict[str, Matrix]:
    """The maps A, B, C and D of a model, with the structure that they have.

    Prescribed by a pattern, or found in A's zeros.

    Parameters
    ----------
    params : mapping
        A or L and R, B, C, perhaps D.
    pattern : Pattern, optional
        What is prescribed.
    before : mapping, optional
        The maps of the parameters before these: groups are found anew only if zeros
        have moved.
    doubtful : bool
        Whether nothing says that Picard contracts; then its growth is estimated in any
        case.
    below : float
        Matrices and tiles with at most this share of nonzero entries are multiplied in
        compressed rows.
    """
    masks = {key: getattr(pattern, key, None) for key in "ABCD"}
    maps: dict[str, Matrix] = {}
    groups: Groups | None = None
    if "A" in params:
        A, support = params["A"], masks["A"]
        if (
            support is None and _zeros(A) >= A.size // 4
        ):  # as many as there are where no group is larger than half of A
            support = to_numpy(
                namespace(A).abs(A) > 0
            )  # what travels from a GPU in every training step are bytes
        if support is not None:
            old = (before or {}).get("A")
            groups = (
                old.row_groups
                if isinstance(old, Tiled) and np.array_equal(old.support, support)
                else levels(support)
            )
        if groups and masks["A"] is None and _largest_cycle(groups) > A.shape[0] // 2:
            groups = None  # to go through its groups would save next to nothing
        if groups is None and masks["A"] is not None:
            groups = Groups.whole(A.shape[0])
        if groups and support is not None:
            maps["A"] = Tiled.of(
                A, groups, groups, support, masks["A"] is not None, doubtful, below
            )
        else:
            maps["A"] = read(Sparse.of(A, below), doubtful)
    else:
        maps["A"] = LowRank(params["L"], params["R"])
    state = groups or Groups.whole(params["B"].shape[0])
    for key, rows, columns in (("B", state, None), ("C", None, state), ("D", None, None)):
        if key in params:
            M, mask = params[key], masks[key]
            if groups is None and mask is None:
                maps[key] = Sparse.of(M, below)
                continue
            sides = rows or Groups.whole(M.shape[0]), columns or Groups.whole(M.shape[1])
            maps[key] = Tiled.of(
                M, *sides, to_numpy(M) != 0 if mask is None else mask, mask is not None, below=below
            )
    return maps


def _largest_cycle(groups: Groups) -> int:
    return max(
        (size for size, cyclic in zip(groups.sizes, groups.cyclic, strict=True) if cyclic),
        default=0,
    )


def _zeros(A: Array) -> int:
    xp = namespace(A)
    if xp is np:
        return A.size - int(
            np.count_nonzero(to_numpy(A) != 0)
        )  # of truth values, which are counted fastest
    return A.size - int(xp.sum(astype(xp, xp.abs(A) > 0, "float64")))
