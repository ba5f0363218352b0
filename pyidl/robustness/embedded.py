r"""The embedded model: boxes of inputs in, boxes of states out.

Write A as the sum of M, what rises with the other states, and N <= 0, what falls:

    M_ij = max(A_ij, 0),   N_ij = min(A_ij, 0),   but M_ii = A_ii where phi_i rises.

    x_lo = phi(M x_lo + N x_hi + z_lo),    z_lo = B+ lo + B- hi + b,
    x_hi = phi(M x_hi + N x_lo + z_hi),    z_hi = B+ hi + B- lo + b,

with the range of phi for phi where that falls. It is an implicit model of width 2n with
the matrix ``E = [[M, N], [N, M]]``, of the same `AffineCell`. By centre and radius a
product with E is two of width n, not four:

    M x_lo + N x_hi = A c - A' r,    c = (x_lo + x_hi) / 2,
    M x_hi + N x_lo = A c + A' r,    r = (x_hi - x_lo) / 2,    A' = M - N.

*Theorem.* Let ``diag(L) A' s < s`` for some s > 0. Then the embedded model has exactly
one solution, and the state of every u in [lo, hi] lies in [x_lo, x_hi].

*Proof.* Let psi_i(r) solve ``t = phi_i(A_ii t + r)`` where phi_i rises; it rises in r,
with slope ``s / (1 - s A_ii)``. Take rows one by one: ``x_lo,i <- psi_i(what the others
and the input give)``, the mirror image for x_hi, and the range of phi where it falls.
This map of boxes contracts, and a larger box has a larger image. Start it at the box
that holds x(u) alone: ``x_i(u) = psi_i(sum_{j != i} A_ij x_j(u) + z_i(u))`` lies in the
image, and so in all that follow, and in their limit.

Source: Jafarpour, Davydov, Abate, Bullo, Coogan, "Robust training and verification of
implicit neural networks: a non-Euclidean contractive approach", arXiv 2208.03889, 2022,
for phi with slopes in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.activations import Activation, Blocks
from pyidl.activations.ranges import ends, falls
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.cells import AffineCell
from pyidl.layers import ImplicitModel
from pyidl.matrices.full import Full, laid_out
from pyidl.matrices.growth import with_gains
from pyidl.typing import Array

__all__ = ["Embedded", "embedded_cell", "rising", "split"]


WIDE = 100
"""From this width on, two products and six sums take less time than four products.

Measured with 64 rows in float32: at 50 columns 18 and 13 microseconds, at 100 as much
as each other, at 300 0.19 and 0.27 ms.
"""


@dataclass(frozen=True)
class Embedded(Full):
    """``[lo, hi] -> [M lo + N hi, M hi + N lo]``, and perhaps ``u -> A u`` beside it.

    Attributes
    ----------
    A : array
        E.
    parts : (Full, Full) or None
        A / 2 and A' / 2, where products are made by centre and radius.
    plain : Full or None
        A, where a third part of the state is that of the model itself.
    """

    parts: tuple[Full, Full] | None = None
    plain: Full | None = None

    @classmethod
    def of(cls, M: Array, N: Array, plain: Array | None = None) -> Embedded:
        """From the two parts of A, and A."""
        E = Full(_blocks([[M, N], [N, M]]))
        third = None if plain is None else laid_out(Full(plain))
        if M.shape[1] < WIDE:
            E = laid_out(E)
            return cls(E.A, None, E.At, None, third)
        parts = laid_out(Full(0.5 * (M + N))), laid_out(Full(0.5 * (M - N)))
        return cls(E.A, None, None, parts, third)

    def rows(self, x: Any, out: Any = None) -> Any:
        """The ends for ``x = [lo, hi]``, (m, 2c), or for [lo, hi, u] those and A u."""
        if self.plain is None:
            return self._ends(x, out)
        (n, k), xp = self.A.shape, namespace(x)
        if out is None:
            return xp.concat([self._ends(x[:, :k]), self.plain.rows(x[:, k:])], axis=1)
        self._ends(x[:, :k], out[:, :n])
        self.plain.rows(x[:, k:], out[:, n:])
        return out

    def _ends(self, x: Any, out: Any = None) -> Any:
        if self.parts is None:
            return super().rows(x, out)
        (A, size), k, xp = self.parts, x.shape[1] // 2, namespace(x)
        c, r = A.rows(x[:, :k] + x[:, k:]), size.rows(x[:, k:] - x[:, :k])
        n = c.shape[1]
        if out is None:
            return xp.concat([c - r, c + r], axis=1)
        xp.subtract(c, r, out=out[:, :n])
        xp.add(c, r, out=out[:, n:])
        return out

    @property
    def T(self) -> Embedded:
        """``E^T``, which is made of M^T and N^T as E of M and N."""
        E, third = super().T, None if self.plain is None else self.plain.T
        parts = None if self.parts is None else (self.parts[0].T, self.parts[1].T)
        return Embedded(E.A, E.gains, E.At, parts, third)

    def dense(self) -> Any:
        """E, or the block diagonal matrix of E and A."""
        if self.plain is None:
            return self.A
        beside = namespace(self.A).zeros_like(self.A[:, : self.plain.A.shape[1]])
        return _blocks([[self.A, beside], [beside.T, self.plain.A]])

    def diagonal(self) -> Any:
        """That of `dense`."""
        return Full(self.dense()).diagonal()

    def off_diagonal(self, scale: Any) -> Embedded:
        """``diag(scale) (E - diag(E))``, for a scale of equal parts."""
        xp, n = namespace(scale), self.A.shape[0] // 2
        s, off = scale[:n, None], 1.0 - xp.eye(n, dtype=scale.dtype)
        third = None if self.plain is None else s * off * self.plain.A
        return Embedded.of(s * off * self.A[:n, :n], s * self.A[:n, n:], third)

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """``(P, Q)``: what A_ij gets if it belongs to M, and what if to N.

        ``P = v_lo^T x_lo + v_hi^T x_hi`` and ``Q = v_lo^T x_hi + v_hi^T x_lo``: their
        sum and their difference are one product each. To both comes what it gets from
        the model beside them, ``v^T u``.
        """
        n, k = (size // 2 for size in self.A.shape)
        both = (v[:, :n] + v[:, n : 2 * n]).T @ (x[:, :k] + x[:, k : 2 * k])
        apart = (v[:, n : 2 * n] - v[:, :n]).T @ (x[:, k : 2 * k] - x[:, :k])
        P, Q = 0.5 * (both + apart), 0.5 * (both - apart)
        if self.plain is not None:
            g = v[:, 2 * n :].T @ x[:, 2 * k :]
            P, Q = P + g, Q + g
        return {name: (P, Q)}


def _blocks(rows: list[list[Any]]) -> Any:
    xp = namespace(rows[0][0])
    return xp.concat([xp.concat(row, axis=1) for row in rows])


def rising(A: Array, phi: Activation | None = None) -> Any:
    """1 where A_ij belongs to M whatever its sign, 0 elsewhere: a diagonal, or none."""
    xp, n = namespace(A), A.shape[0]
    if phi is None:
        return xp.zeros_like(A)
    own = backend.from_host(xp, np.diag(~falls(phi, n)))
    return backend.astype(xp, own, A.dtype)


def split(A: Array, phi: Activation | None = None) -> tuple[Array, Array]:
    """``(M, N)``; of B, which has no diagonal of its own, without phi."""
    N = namespace(A).minimum(A, namespace(A).zeros_like(A)) * (1.0 - rising(A, phi))
    return A - N, N


def embedded_cell(model: ImplicitModel) -> AffineCell:
    """``[x_lo, x_hi, x]`` of ``[lo, hi, u]``: the embedded model and the model."""
    phi, n, params = model.activation, model.hidden_dim, model.params
    A, B, b = model.maps["A"].dense(), params["B"], params.get("b")
    both = ends(phi, n)
    if isinstance(phi, Blocks) or both is not phi:
        both = Blocks((both, 2 * n), (phi, n))
    M, N = split(A, phi)
    gains = with_gains(Full(M - N)).gains  # E has the eigenvalues of A and of A'
    E = replace(Embedded.of(M, N, A), gains=gains)
    thrice = None if b is None else namespace(b).concat([b, b, b])
    return AffineCell(E, Embedded.of(*split(B), B), thrice, both)
