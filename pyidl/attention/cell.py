r"""The cell of the implicit attention head.

``X = att(X R + Z)``, with ``[K Q V] = X R + Z`` and Z what the input contributes.

The state X has the shape (m, H, T, h), one row for each token; R is (H, h, 3h), one
block for each head, or (H, H h, 3h) where every head hears the outputs of all heads.
Write P(L) = [gK gQ gV], (m, H, T, 3h), for the transposed derivative of att at X,
applied to L. Along a direction, ``dO = D att [dO R + X dR + dZ]``, and a loss with
gradient g with respect to X changes by

    <g, dO> = <L, D att [X dR + dZ]> = <P(L), X dR + dZ>,
    where L = g + P(L) R^T     (the adjoint equation),

so that the gradients are ``G_R = X^T P(L)``, summed over samples, and ``G_Z = P(L)``.

What a map may take from all keys and queries alike (`Attention.placed`) is taken from
Z, before X R, which is small, is added: then X R is rounded by what it is, and not by
what all tokens share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.attention.maps import Attended, Attention
from pyidl.attention.weighted_mean import Mask, some
from pyidl.cells import Cell
from pyidl.solvers.problem import Buffers, Problem, sizes
from pyidl.solvers.solution import Solution
from pyidl.typing import Array, Grads

__all__ = ["AttentionCell", "AttentionProblem", "Past"]


@dataclass(frozen=True)
class Past:
    """Features and values of tokens that are final.

    What a new token sees besides itself.

    b is (m, H, t, f), U is (m, H, t, h); both grow by one token at a time, as new
    arrays.
    """

    b: Array
    U: Array

    def with_token(self, b: Any, U: Any) -> tuple[Any, Any]:
        """Those of one more token."""
        xp = namespace(self.b)
        return xp.concat([self.b, b], axis=2), xp.concat([self.U, U], axis=2)


@dataclass(frozen=True)
class AttentionCell(Cell):
    """``X = att(X R + Z)``; the input u of the cell is Z, (m, H, T, 3h).

    Parameters
    ----------
    R : array, shape (H, h, 3h) or (H, H h, 3h)
        Feedback into [K Q V] of each head, from its own outputs or from those of all
        heads.
    attention : Attention
        The map att.
    mask : Mask
        Which keys a query may see.
    """

    R: Array
    attention: Attention
    mask: Mask

    def bind(self, u: Array) -> AttentionProblem:
        """The forward problem."""
        return AttentionProblem(self, self.placed(u))

    def linearize(self, solution: Solution, u: Array, g: Array) -> AttentionAdjoint:
        """``L = g + P(L) R^T`` at the solution."""
        return AttentionAdjoint(self, self.at(solution.value, u), g, sizes(g))

    def grads(self, x: Array, u: Array, v: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """``(P(v), {"R": X^T P(v)})``."""
        xp = namespace(x)
        P = xp.concat(self.at(x, u).vjp(v), axis=-1)
        heard = xp.matrix_transpose(self.heard(x))
        return P, {"R": xp.sum(heard @ P, axis=0)}

    def at(self, X: Any, Z: Any) -> Attended:
        """The attention map at the state X, with its derivatives."""
        return self.attention.at_placed(*_sums(self.feed(X), self.placed(Z)), self.mask)

    def placed(self, Z: Any) -> tuple[Any, Any, Any]:
        """K, Q and V of Z, where they round least."""
        K, Q, V = parts(Z)
        return *self.attention.placed(K, Q, self.mask), V

    def heard(self, X: Any) -> Any:
        """The outputs that a head hears.

        (m, H, T, h), or (m, 1, T, H h) for those of all heads side by side.
        """
        xp, (m, H, T, h) = namespace(X), X.shape
        return (
            X
            if self.R.shape[1] == h
            else xp.reshape(xp.permute_dims(X, (0, 2, 1, 3)), (m, 1, T, H * h))
        )

    def feed(self, X: Any) -> Any:
        """``X R``, (m, H, T, 3h)."""
        return self.heard(X) @ self.R

    def feed_back(self, P: Any) -> Any:
        """``P R^T``, (m, H, T, h)."""
        xp, (m, H, T, width) = namespace(P), P.shape
        heard = P @ xp.matrix_transpose(self.R)
        if self.R.shape[1] == width // 3:
            return heard
        return xp.permute_dims(
            xp.reshape(xp.sum(heard, axis=1), (m, T, H, width // 3)), (0, 2, 1, 3)
        )


class AttentionProblem(Problem):
    """``X = att(X R + Z)`` for m samples; `past` tokens may be final already.

    Z is given as K, Q and V, placed.
    """

    def __init__(
        self, cell: AttentionCell, Z: tuple[Any, Any, Any], past: Past | None = None
    ) -> None:
        super().__init__(cast(Array, Z[2]))
        self.cell, self.Z, self.past = cell, Z, past

    def pre(self, x: Any, out: Any = None) -> Any:
        """``att(x R + Z)``; the map has no halves."""
        return self._attend(*_sums(self.cell.feed(x), self.Z))

    def _attend(self, K: Any, Q: Any, V: Any) -> Any:
        of = self.cell.attention
        b, U = of.keys(K), of.values(V)
        if self.past is not None:
            b, U = self.past.with_token(b, U)
        return of.average(Q.shape[-1], self.cell.mask)(of.features(Q), b, U)

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """``f(0) = att(Z)`` needs no product."""
        if x0 is not None:
            return super().start(x0, out)
        y = self._attend(*self.Z)
        return y, y

    def take(self, rows: np.ndarray) -> AttentionProblem:
        """The same equation with some rows of Z."""
        past = None if self.past is None else Past(some(self.past.b, rows), some(self.past.U, rows))
        K, Q, V = (take_rows(self.xp, a, rows) for a in self.Z)
        return AttentionProblem(_of_rows(self.cell, rows), (K, Q, V), past)


class AttentionAdjoint(Problem):
    """``L = g + P(L) R^T``.

    The weights of the solution are formed once, for all steps.
    """

    def __init__(self, cell: AttentionCell, at: Attended, g: Array, reference: np.ndarray) -> None:
        super().__init__(g, reference)
        self.cell, self.at, self.g = cell, at, g

    def pre(self, x: Any, out: Any = None) -> Any:
        """``g + P(x) R^T``."""
        return self.g + self.cell.feed_back(self.xp.concat(self.at.vjp(x), axis=-1))

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """From 0, the first step is g."""
        return super().start(x0, out) if x0 is not None else (self.g, self.g)

    def take(self, rows: np.ndarray) -> AttentionAdjoint:
        """The same equation for some of the samples."""
        assert self.reference is not None
        return AttentionAdjoint(
            _of_rows(self.cell, rows),
            self.at.take(rows),
            take_rows(self.xp, self.g, rows),
            self.reference[rows],
        )


def parts(N: Any) -> tuple[Any, Any, Any]:
    """K, Q and V, side by side in the last axis."""
    h = N.shape[-1] // 3
    return N[..., :h], N[..., h : 2 * h], N[..., 2 * h :]


def _sums(N: Any, Z: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """K, Q and V of ``N + Z``, Z in these parts."""
    K, Q, V = (n + z for n, z in zip(parts(N), Z, strict=True))
    return K, Q, V


def _of_rows(cell: AttentionCell, rows: np.ndarray) -> AttentionCell:
    return cell if cell.mask.tokens is None else replace(cell, mask=cell.mask.take(rows))
