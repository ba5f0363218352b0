r"""The model's equation where phi acts on blocks of components together (softmax, layer norm).

    forward   X = phi(Y),       Y = X A^T + Z       `VectorAffine`
    adjoint   V = J(Y*)^T W,    W = V A + G         `VectorAdjoint`: J the Jacobian of phi at the solution, sample by sample

The loop body is that of a componentwise phi: one product, one sum, one pass over the rows. But there are no slopes, so solvers that
need them (`Jacobi`, `Newton`, `Substitution`, operator splittings) refuse. Let ``y = A phi(y) + z``; along any direction
``dy = A J dy + dz``, and a loss with gradient g with respect to x = phi(y) changes by ``<g, J dy> = <v, dz>``, ``v = J^T (A^T v + g)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pyidl.activations import Activation
from pyidl.rows import take_rows
from pyidl.solvers.problem import Iteration, LinearProblem
from pyidl.structure import Matrix
from pyidl.typing import Array

__all__ = ["VectorAdjoint", "VectorAffine"]

TOGETHER = "here phi acts on several components together"


@dataclass(frozen=True)
class VectorAffine(Iteration):
    """``X = phi(X A^T + Z)``, with the offset Z = U B^T + b formed once."""

    matrix: Matrix
    offset: Array
    activation: Activation
    lacking: ClassVar[str] = TOGETHER

    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """``phi(y)``."""
        return self.activation(y, out)

    def take(self, rows: np.ndarray) -> VectorAffine:
        """The same equation with some rows of Z."""
        return VectorAffine(self.matrix, take_rows(self.xp, self.offset, rows), self.activation)


@dataclass(frozen=True)
class VectorAdjoint(Iteration, LinearProblem):
    """``V = J(Y*)^T W, W = V A + G``, with the cotangent G of the state as offset; `matrix` is A transposed, `pre_activation` Y*."""

    matrix: Matrix
    offset: Array
    activation: Activation
    pre_activation: Array
    reference: np.ndarray
    lacking: ClassVar[str] = TOGETHER

    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """``J(Y*)^T y`` for the samples `rows`."""
        v = self.activation.vjp(self.pre_activation[rows, ...], y)
        if out is None:
            return v
        out[...] = v
        return out

    def take(self, rows: np.ndarray) -> VectorAdjoint:
        """The same equation with some rows of G and Y*."""
        G, Y = (take_rows(self.xp, a, rows) for a in (self.offset, self.pre_activation))
        return VectorAdjoint(self.matrix, G, self.activation, Y, self.reference[rows])
