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

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from pyidl import backend
from pyidl.activations import Activation
from pyidl.backend import namespace
from pyidl.fusion import fused
from pyidl.pattern import Groups
from pyidl.rows import CHUNK, change_and_size, take_rows
from pyidl.solvers.solution import Solution
from pyidl.structure import Matrix
from pyidl.typing import Array, Namespace

__all__ = [
    "Affine",
    "AffineMap",
    "Buffers",
    "Iteration",
    "LinearAffine",
    "LinearProblem",
    "Problem",
    "product",
]

Buffers = tuple[Any, Any] | None
"""Where y and its image are written; None where the library has no ``out=``."""


class Problem(ABC):
    """``x = f(x)`` for m samples."""

    lacking: ClassVar[str] = "of this problem only the map is known"
    """Why a solver that needs the parts of an `AffineMap` finds none."""

    @property
    @abstractmethod
    def like(self) -> Array:
        """An array with the shape, dtype and library of the state."""

    @abstractmethod
    def pre(self, x: Any, out: Any = None) -> Any:
        """The pre-activation ``y(x)``; f(x) itself where f has no halves."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """The same problem for some of the samples, numbered on the host."""

    def image(self, y: Any, out: Any = None) -> Any:
        """The value that belongs to the pre-activation y: y itself (a copy in `out`) where f has no halves."""
        if out is None:
            return y
        out[...] = y
        return out

    def f(self, x: Any) -> Any:
        """``image(y(x))``."""
        return self.step(x)[1]

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """``(y, f(x0))``, with x0 = 0 unless a warm start is given."""
        return self.step(self.xp.zeros_like(self.like) if x0 is None else x0, out)

    def step(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``(y(x), f(x))``."""
        into_y, into_x = out or (None, None)
        y = self.pre(x, into_y)
        return y, self.image(y, into_x)

    def measure(
        self, x: Any, y_image: Any, image: Any, tol: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """``max|f(x) - x|`` of every sample, where ``y_image = y(x)`` and ``image = f(x)``, and what it must reach; on the host."""
        residual, size = change_and_size(self.xp, image, x)
        return residual, self.tolerance(size, tol)

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """What the residual of each sample must reach, ``tol (1 + max|x|)``, for samples of that size ``max|x|``."""
        return tol * (1.0 + size)

    def restore(self, solution: Solution) -> Solution:
        """The solution in the terms of the equation that this one was made from; itself where there is none."""
        return solution

    @property
    def in_place(self) -> bool:
        """Whether a solve may work in buffers of its own."""
        return backend.writes_in_place(self.xp)

    def buffers(self) -> tuple[Buffers, Buffers]:
        """Room for two y and their images, which serve a whole solve.

        They are one block of memory: an allocator gives one block back in the next solve without asking the system for it,
        while for several (measured on Linux) it asks again each time, which costs as much as a product with A.
        """
        if not self.in_place:
            return None, None
        block = self.xp.empty((4, *self.like.shape), dtype=self.like.dtype)
        return (block[0, ...], block[1, ...]), (block[2, ...], block[3, ...])

    @property
    def xp(self) -> Namespace:
        """The module that owns the arrays."""
        return namespace(self.like)


class Iteration(Problem):
    """The loop body that `Affine`, `LinearAffine` and their splittings share: one product, one sum, one componentwise pass."""

    matrix: Matrix
    offset: Array

    @property
    def like(self) -> Array:
        """The offset has the shape of the state."""
        return self.offset

    def pre(self, x: Any, out: Any = None) -> Any:
        """``y = x M^T + offset``."""
        y = self.matrix.rows(x, out)
        y += self.offset
        return y

    def step(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``(y(x), f(x))``: the product, and one pass for the sum and the image.

        On CuPy that pass is one kernel; on NumPy it is made piece by piece, while a piece is in the cache.
        """
        if out is None:
            return super().step(x, out)
        (y, image), xp = out, self.xp
        self.matrix.rows(x, y)
        if xp is not np:
            function, *others = self.entrywise()
            if xp.__name__ == "cupy" and function is not None:
                _sum_and_image(function)(y, self.offset, *others, out=(y, image))
            else:
                y += self.offset
                self.image(y, image)
            return y, image
        if y.size <= CHUNK:
            y += self.offset
            return y, self.image(y, image)
        rows = max(1, CHUNK // y.shape[1])
        for i in range(0, y.shape[0], rows):
            piece = slice(i, i + rows)
            y[piece] += self.offset[piece]
            self.image_of(piece, y[piece], image[piece])
        return y, image

    def image(self, y: Any, out: Any = None) -> Any:
        """The image of all samples."""
        return self.image_of(slice(None), y, out)

    def entrywise(self) -> tuple[Any, ...]:
        """The image of y as a `fused` function of y and of the operands that follow here; None where it is none."""
        return (None,)

    @abstractmethod
    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """The image of the samples `rows`, of which y holds the pre-activations."""

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """f(0) needs no product: its y is the offset."""
        if x0 is not None:
            return super().start(x0, out)
        if out is None:
            return self.offset, self.image(self.offset)
        out[0][...] = self.offset
        return out[0], self.image(out[0], out[1])


@fused
def product(y: Any, s: Any) -> Any:
    """``y s``."""
    return y * s


@functools.lru_cache(maxsize=1024)
def _sum_and_image(image: fused) -> fused:
    def step(y: Any, offset: Any, *others: Any) -> tuple[Any, Any]:
        y = y + offset
        return y, image(y, *others)

    return fused(step)


class AffineMap(Iteration):
    """What `Affine` and `LinearAffine` have in common for the solvers that use their parts."""

    @abstractmethod
    def slopes(self, y: Any) -> Any:
        """The derivative of the image with respect to y, entry by entry."""

    @abstractmethod
    def resolvent(self, u: Any, alpha: float) -> Any:
        """The y with ``(1 - alpha) image(y) + alpha y = u``, for slopes in [0, 1]; u itself for alpha = 1."""

    @abstractmethod
    def part(self, matrix: Matrix, offset: Array, groups: Groups, i: int) -> AffineMap:
        """The equation of one group of components."""


@dataclass(frozen=True)
class Affine(AffineMap):
    """``X = phi(X A^T + Z)``, with the offset Z = U B^T + b formed once."""

    matrix: Matrix
    offset: Array
    activation: Activation

    def entrywise(self) -> tuple[Any, ...]:
        """Phi, if it is fused."""
        return (self.activation.phi if isinstance(self.activation.phi, fused) else None,)

    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """``phi(y)``."""
        return self.activation(y, out)

    def slopes(self, y: Any) -> Any:
        """``phi'(y)``."""
        return self.activation.dphi(y)

    def resolvent(self, u: Any, alpha: float) -> Any:
        """That of the activation, which needs none for alpha = 1."""
        return u if alpha == 1 else self.activation.resolvent(u, alpha)  # type: ignore[misc]

    def part(self, matrix: Matrix, offset: Array, groups: Groups, i: int) -> Affine:
        """The equation of one group of components, given what the others contribute to the offset."""
        return Affine(matrix, offset, self.activation.columns(groups.members[i]))

    def take(self, rows: np.ndarray) -> Affine:
        """The same equation with some rows of Z."""
        return Affine(self.matrix, take_rows(self.xp, self.offset, rows), self.activation)


class LinearProblem(Problem):
    """A fixed-point equation that is linear, ``v = J^T v + h``: every adjoint equation is one.

    Its answer scales with its right-hand side, ``pull(c dY) = c pull(dY)``, and so must its stopping rule:
    ``residual <= max(tol max|h|, 8 eps max|v|)``, where the second term is what the dtype can resolve. (Below its smallest normal
    number it resolves nothing, and CuPy's kernels of float32 make all of that 0: a residual of 8 such numbers counts as none. Cotangents
    do get there, those of confidently classified samples, and those that vanish in a long recurrence.)
    """

    reference: np.ndarray
    """``max|h|`` of every sample, shape (m,), float64, on the host."""

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """``max(tol max|h|, 8 eps max|v|)``, and some of the smallest normal numbers."""
        limits = self.xp.finfo(self.like.dtype)
        return np.maximum(
            tol * self.reference, 8.0 * (float(limits.eps) * size + float(limits.smallest_normal))
        )

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
            columns.append(xp.reshape(e - (self.f(e) - h), (m, n)))
        return xp.stack(columns, axis=2), xp.reshape(h, (m, n))


@dataclass(frozen=True)
class LinearAffine(AffineMap, LinearProblem):
    """``V = S * W, W = V A + G``, with slopes S and the cotangent G of the state as offset; `matrix` is A transposed.

    At the solution W is the total derivative of the loss with respect to the state, V that with respect to Y.
    """

    matrix: Matrix
    offset: Array
    slope: Array
    reference: np.ndarray

    def entrywise(self) -> tuple[Any, ...]:
        """A product with the slopes."""
        return product, self.slope

    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """``S * y``."""
        slope = self.slope[rows, ...]
        return y * slope if out is None else self.xp.multiply(y, slope, out=out)

    def slopes(self, y: Any) -> Any:
        """S, whatever y."""
        return self.slope

    def resolvent(self, u: Any, alpha: float) -> Any:
        """``(1 - alpha) s w + alpha w = u``."""
        return u if alpha == 1 else u / ((1.0 - alpha) * self.slope + alpha)

    def part(self, matrix: Matrix, offset: Array, groups: Groups, i: int) -> LinearAffine:
        """The equation of one group of components; its residual counts against the whole right-hand side."""
        return LinearAffine(matrix, offset, groups.piece(self.slope, i), self.reference)

    def take(self, rows: np.ndarray) -> LinearAffine:
        """The same equation with some rows of G and S."""
        G, S = (take_rows(self.xp, a, rows) for a in (self.offset, self.slope))
        return LinearAffine(self.matrix, G, S, self.reference[rows])

    def system(self) -> tuple[Any, Any]:
        """``I - diag(s) A^T`` and ``s * g``, written down instead of probed."""
        eye = self.xp.eye(self.slope.shape[1], dtype=self.slope.dtype)
        return eye - self.slope[:, :, None] * self.matrix.dense()[
            None, :, :
        ], self.slope * self.offset
