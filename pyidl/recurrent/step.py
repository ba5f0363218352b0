r"""The parameters of one step of a recurrence, and its maps.

    X_t = phi(A X_t + B_u U_t + B_h H_{t-1} + b)
    H_t = C X_t + D_u U_t + D_h H_{t-1} + d
    Y_t = E H_t + e

and of its adjoint, from the last step to the first,

    V_t = phi'(Z_t) * (V_t A + G_t C),    G_{t-1} = (direct part) + V_t B_h + G_t D_h.

Both run through time in `bptt.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace
from pyidl.cells import AffineCell
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full, laid_out
from pyidl.matrices.growth import growth
from pyidl.solvers import Solution, Solver
from pyidl.solvers.image import Image, Jacobians, Times
from pyidl.solvers.problem import Affine, sizes
from pyidl.typing import Array

__all__ = ["Slopes", "Step"]

SETTLED = 36
"""Products after which a growth is estimated: 12 alone are too few for a positive A."""


@dataclass(frozen=True)
class Slopes(Image):
    """``v -> phi'(Z) v``, row by row; slopes are formed for the rows that are taken."""

    activation: Activation
    Z: Array

    def __call__(self, y: Any, out: Any = None) -> Any:
        """Of all rows."""
        return self.take(slice(None))(y, out)

    def take(self, rows: slice) -> Image:
        """The image for some rows."""
        Z: Any = self.Z[rows, ...]
        if self.activation.vector_blocks(Z.shape[1]):
            return Jacobians(self.activation, Z)
        return Times(self.activation.dphi(Z))


@dataclass(frozen=True)
class Step:
    """The parameters of one step, its maps, and their derivatives.

    B acts on ``[U_t, H_{t-1}]``. D does too, or on U_t alone, or is not there. bu and
    bh, du and dh are their columns for U_t and for H_{t-1}.
    """

    A: Matrix
    B: Matrix
    C: Matrix
    D: Matrix | None
    E: Array
    b: Array | None
    d: Array | None
    e: Array | None
    activation: Activation
    input_dim: int
    bu: Full
    bh: Full
    du: Full | None
    dh: Full | None

    @classmethod
    def of(
        cls, maps: Mapping[str, Matrix], params: Any, activation: Activation, input_dim: int
    ) -> Step:
        """From the maps A, B, C, D and the other parameters of a layer."""
        p, B, D = input_dim, params["B"], params.get("D")
        return cls(
            A=maps["A"],
            B=maps["B"],
            C=laid_out(maps["C"]) if isinstance(maps["C"], Full) else maps["C"],
            D=maps.get("D"),
            E=params["E"],
            b=params.get("b"),
            d=params.get("d"),
            e=params.get("e"),
            activation=activation,
            input_dim=p,
            bu=Full(B[:, :p]),
            bh=laid_out(Full(B[:, p:])),
            du=None if D is None else Full(D[:, :p]),
            dh=None if D is None or D.shape[1] == p else laid_out(Full(D[:, p:])),
        )

    @property
    def width(self) -> tuple[int, int]:
        """Those of the state X and of H: n and r."""
        n, r = self.bh.A.shape
        return n, r

    def before(self, U: Any) -> Any:
        """``B_u U + b`` for all rows of a stack at once: what does not wait for H."""
        Z = self.bu.rows(U)
        if self.b is not None:
            Z += self.b
        return Z

    def cell(self, Z: Any) -> AffineCell:
        """``x = phi(A x + B_h h + z)``, with a bias z that differs from row to row."""
        return AffineCell(self.A, self.bh, Z, self.activation)

    def beside(self, U: Any) -> Any:
        """``D_u U + d`` for all rows of a stack; zeros where there is neither."""
        xp, r = namespace(U), self.width[1]
        W = self.du.rows(U) if self.du else xp.zeros((U.shape[0], r), dtype=U.dtype)
        if self.d is not None:
            W += self.d
        return W

    def after(self, X: Any, w: Any, h: Any) -> Any:
        """``C X + D_h h + w`` with ``w = D_u u + d``."""
        H = self.C.rows(X)
        if self.dh is not None:
            H += self.dh.rows(h)
        H += w
        return H

    def adjoint(self, Z: Any, G: Any, solver: Solver, v0: Any) -> Solution:
        """``V = phi'(Z) * (V A + G C)``, solved from v0."""
        g, slopes = self.C.T.rows(G), Slopes(self.activation, Z).take(slice(None))
        return solver(Affine(self.A.T, g, slopes, sizes(slopes(g))), v0)

    def handed_back(self, V: Any, G: Any) -> Any:
        """``V B_h + G D_h``: what the step before hears."""
        dh = self.bh.T.rows(V)
        if self.dh is not None:
            dh += self.dh.T.rows(G)
        return dh

    def read(self, H: Any) -> Any:
        """``H E^T + e``."""
        Y = H @ self.E.T
        if self.e is not None:
            Y += self.e
        return Y

    @cached_property
    def factor(self) -> float:
        """By how much a plain step is seen to shrink what is left; inf if unknown.

        An estimate from A and the steepest slope of phi, no bound. (Powers of A that
        end at zero say nothing of how many steps that takes; A = 0 takes none.)
        """
        L = self.activation.row_lipschitz(self.width[0])
        found = math.inf if L is None else max(L) * growth(self.A, SETTLED)
        xp = namespace(self.E)
        ends = found == 0.0 and bool(xp.any(self.A.dense() != 0))
        return math.inf if ends else found
