"""A fixed-point problem ``x = f(x)`` for a batch, one sample a row, as the solvers see it.

Always there: the map f, in two halves. A *pre-activation* y is computed from x, and x is its *image*: ``f(x) =
image(y(x))``. A value is thus always returned with the y that it came from, and slopes are taken at that same y. A map
without halves lets y = f(x).

Where the map is affine followed by a componentwise function, its parts are there too, because structure is where speed
comes from:

    forward   X = phi(Y),  Y = X A^T + Z       `Affine`
    adjoint   V = S * W,   W = V A + G         `LinearAffine`: A transposed, phi replaced by the slopes S = phi'(Y*)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl import backend
from pyidl.activations import Activation
from pyidl.backend import namespace
from pyidl.structure import Matrix
from pyidl.typing import Array, Namespace

__all__ = ["Affine", "Buffers", "LinearAffine", "LinearProblem", "Problem"]

Buffers = tuple[Any, Any] | None
"""Where f writes y and its image; None where the library has no ``out=``."""


class Problem(ABC):
    """``x = f(x)`` for m samples."""

    @property
    @abstractmethod
    def like(self) -> Array:
        """An array with the shape, dtype and library of the state."""

    @abstractmethod
    def f(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``(y, f(x))``; y is f(x) itself where f has no halves."""

    @abstractmethod
    def take(self, rows: Array) -> Problem:
        """The same problem for some of the samples."""

    def image(self, y: Any, out: Any = None) -> Any:
        """The value that belongs to the pre-activation y."""
        return y

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """``(y, f(x0))``, with x0 = 0 unless a warm start is given."""
        return self.f(self.xp.zeros_like(self.like) if x0 is None else x0, out)

    def tolerance(self, x: Any, tol: float) -> Any:
        """What the residual of each sample must reach: ``tol (1 + max|x|)``."""
        return tol * (1.0 + backend.max_abs(self.xp, x))

    def buffers(self) -> Buffers:
        """Room for one `f`: two of them serve a whole solve."""
        return (self.xp.empty_like(self.like), self.xp.empty_like(self.like)) if backend.writes_in_place(self.xp) else None

    @property
    def xp(self) -> Namespace:
        """The module that owns the arrays."""
        return namespace(self.like)


class _AffineMap(Problem):
    """The loop body that `Affine` and `LinearAffine` share: one product, one sum, one componentwise pass."""

    matrix: Matrix
    offset: Array

    @property
    def like(self) -> Array:
        """The offset has the shape of the state."""
        return self.offset

    def f(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``y = x M^T + offset`` and its image."""
        into_y, into_x = out or (None, None)
        y = self.matrix.rows(x, into_y)
        y += self.offset
        return y, self.image(y, into_x)

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """f(0) needs no product: its y is the offset."""
        if x0 is not None:
            return self.f(x0, out)
        if out is None:
            return self.offset, self.image(self.offset)
        out[0][...] = self.offset
        return out[0], self.image(out[0], out[1])


@dataclass(frozen=True)
class Affine(_AffineMap):
    """``X = phi(X A^T + Z)``, with the offset Z = U B^T + b formed once."""

    matrix: Matrix
    offset: Array
    activation: Activation

    def image(self, y: Any, out: Any = None) -> Any:
        """``phi(y)``."""
        return self.activation(y, out)

    def take(self, rows: Array) -> Affine:
        """The same equation with some rows of Z."""
        return Affine(self.matrix, self.xp.take(self.offset, rows, axis=0), self.activation)


class LinearProblem(Problem):
    """A fixed-point equation that is linear, ``v = J^T v + h``: every adjoint equation is one.

    Its answer scales with its right-hand side, ``pull(c dY) = c pull(dY)``, and so must its stopping rule:
    ``residual <= max(tol max|h|, 8 eps max|v|)``, where the second term is what the dtype can resolve. (Below its smallest
    normal number it resolves nothing: there, and for confidently classified samples cotangents do get there, any residual is 0.)
    """

    reference: Array
    """``max|h|`` of every sample, shape (m,)."""

    def tolerance(self, x: Any, tol: float) -> Any:
        """``max(tol max|h|, 8 eps max|v|)``, and no less than the smallest normal number."""
        limits = self.xp.finfo(self.like.dtype)
        resolved = 8.0 * float(limits.eps) * backend.max_abs(self.xp, x) + float(limits.smallest_normal)
        return self.xp.maximum(tol * self.reference, resolved)

    @abstractmethod
    def take(self, rows: Array) -> LinearProblem:
        """The same problem for some of the samples."""

    def system(self) -> tuple[Any, Any]:
        """``I - J^T``, shape (m, n, n), and h, shape (m, n); column j of J^T is ``f(e_j) - f(0)``."""
        xp, shape, dtype = self.xp, self.like.shape, self.like.dtype
        m, n = shape[0], self.like.size // shape[0]
        h = self.start()[1]
        columns = []
        for j in range(n):
            unit = np.zeros((m, n))
            unit[:, j] = 1.0
            e = xp.reshape(backend.astype(xp, backend.from_host(xp, unit), dtype), shape)
            columns.append(xp.reshape(e - (self.f(e)[1] - h), (m, n)))
        return xp.stack(columns, axis=2), xp.reshape(h, (m, n))


@dataclass(frozen=True)
class LinearAffine(_AffineMap, LinearProblem):
    """``V = S * W, W = V A + G``, with slopes S and the cotangent G of the state as offset; `matrix` is A transposed.

    At the solution W is the total derivative of the loss with respect to the state, V that with respect to Y.
    """

    matrix: Matrix
    offset: Array
    slope: Array
    reference: Array

    def image(self, y: Any, out: Any = None) -> Any:
        """``S * y``."""
        return y * self.slope if out is None else self.xp.multiply(y, self.slope, out=out)

    def take(self, rows: Array) -> LinearAffine:
        """The same equation with some rows of G and S."""
        return LinearAffine(self.matrix, *(self.xp.take(a, rows, axis=0) for a in (self.offset, self.slope, self.reference)))

    def system(self) -> tuple[Any, Any]:
        """``I - diag(s) A^T`` and ``s * g``, written down instead of probed."""
        eye = self.xp.eye(self.slope.shape[1], dtype=self.slope.dtype)
        return eye - self.slope[:, :, None] * self.matrix.dense()[None, :, :], self.slope * self.offset
