"""A fixed-point problem ``x = f(x)`` for a batch, one sample a row.

The map has two halves: a *pre-activation* y is computed from x, and x is its *image*,

    y = y(x),      x = image(y),      f(x) = image(y(x)).

A value is always returned with the y that it came from, and slopes are taken at that
same y, so the two cannot disagree at a kink. A map without halves lets y = f(x). Most
problems are `Affine`,

    y = M x + z,   x = image(y)

    forward   X = phi(Y),   Y = X A^T + Z,   Z = U B^T + b   `Phi`
    adjoint   V = S * W,    W = V A + G,     S = phi'(Y*)    `Times`, or `Jacobians`

because structure is where speed comes from: M may be sparse, of low rank, in tiles; the
image may be known to have slopes. An adjoint equation is linear, and has a `reference`,
the size of its right-hand side.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import (
    astype,
    from_host,
    looks_are_free,
    namespace,
    to_numpy,
    writes_in_place,
)
from pyidl.arrays.batch import CHUNK, change_and_size, max_abs, take_rows
from pyidl.arrays.fusion import fused
from pyidl.errors import InputError
from pyidl.matrices.base import Matrix
from pyidl.matrices.pattern import Groups
from pyidl.solvers.image import Image, Phi, Times
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Affine", "Buffers", "Problem", "Rewritten", "Start", "admitted", "pieces", "sizes"]

Start = Array | None
"""Where an iteration starts; None for 0."""

Buffers = tuple[Any, Any] | None
"""Where y and its image are written; None where the library has no ``out=``."""


class Problem(ABC):
    """``x = f(x)`` for m samples, as the solvers see it.

    A subclass gives `pre` and `take`, and perhaps `image`.

    Parameters
    ----------
    like : array, shape (m, ...)
        Any array with the shape, dtype and library of the state.
    reference : numpy.ndarray, shape (m,), optional
        For a linear problem ``v = J^T v + h``, and only for one: ``max|h|`` of every
        sample.

    Examples
    --------
    Kepler's equation for two times, ``x = t + sin(x) / 2``:

    >>> from pyidl.solvers import Picard
    >>> class Kepler(Problem):
    ...     def pre(self, x, out=None):
    ...         return self.like + 0.5 * np.sin(x)
    ...
    ...     def take(self, rows):
    ...         return Kepler(self.like[rows])
    >>> Picard()(Kepler(np.array([[1.0], [2.0]]))).value.round(6)
    array([[1.498701],
           [2.354243]])
    """

    def __init__(self, like: Array, reference: np.ndarray | None = None) -> None:
        self.like, self.reference, self.xp = like, reference, namespace(like)
        self.in_place = False
        """Whether a solve may work in buffers of its own."""
        if reference is not None:
            limits = self.xp.finfo(like.dtype)
            self.resolved = 8.0 * float(limits.eps), 8.0 * float(limits.smallest_normal)
        self.stride: int | None = 1 if looks_are_free(self.xp) else None
        """Steps in a first round.

        A map of which nothing is known may cost more than a look.
        """
        self.lacking = "of this problem only the map is known"
        """Why a solver that needs an affine map and slopes finds none, or ""."""

    @abstractmethod
    def pre(self, x: Any, out: Any = None) -> Any:
        """The pre-activation ``y(x)``; f(x) itself where f has no halves."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Problem:
        """The same problem for some of the samples, numbered on the host."""

    def image(self, y: Any, out: Any = None) -> Any:
        """The value that belongs to y.

        y itself, copied to `out`, if f has no halves.
        """
        if out is None:
            return y
        out[...] = y
        return out

    def f(self, x: Any) -> Any:
        """``image(y(x))``."""
        return self.step(x)[1]

    def step(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``(y(x), f(x))``; the second buffer may be x itself."""
        into_y, into_x = out or (None, None)
        y = self.pre(x, into_y)
        return y, self.image(y, into_x)

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """``(y, f(x0))``, with x0 = 0 unless a warm start is given."""
        return self.step(self.xp.zeros_like(self.like) if x0 is None else x0, out)

    def measure(self, x: Any, y_image: Any, image: Any) -> np.ndarray:
        """``max|f(x) - x|`` and ``max|x|`` of every sample, (2, m), on the host.

        Known are ``y_image = y(x)`` and ``image = f(x)``.
        """
        return change_and_size(self.xp, image, x)

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """What the residual of each sample must reach, for sizes ``max|x|``.

        Forward ``tol (1 + max|x|)``. The answer of a linear problem scales with its
        right-hand side, ``pull(c dY) = c pull(dY)``, and so must its stopping rule:
        there it is ``max(tol max|h|, 8 eps max|v|)``, the second being what the dtype
        can resolve. Below its smallest normal number it resolves nothing (CuPy makes it
        0), so a residual of 8 of those counts as none: cotangents of confidently
        classified samples get there.
        """
        if self.reference is None:
            return tol * (1.0 + size)
        return np.maximum(tol * self.reference, self.resolved[0] * size + self.resolved[1])

    def given(self) -> np.ndarray:
        """``max|f(0)|`` of every sample, on the host: the size of what is given."""
        return sizes(self.start()[1]) if self.reference is None else self.reference

    def restore(self, solution: Solution) -> Solution:
        """The solution in the terms of the equation that this one was made from."""
        return solution

    def system(self) -> tuple[Any, Any]:
        """``I - J^T``, (m, n, n), and h, (m, n), of a linear problem.

        Column by column, ``J^T e = f(e) - f(0)``.
        """
        xp, shape, dtype = self.xp, self.like.shape, self.like.dtype
        m, n = shape[0], self.like.size // shape[0]
        h = self.start()[1]
        columns = []
        for j in range(n):
            unit = np.zeros((m, n))
            unit[:, j] = 1.0
            e = xp.reshape(astype(xp, from_host(xp, unit), dtype), shape)
            columns.append(xp.reshape(e - (self.f(e) - h), (m, n)))
        return xp.stack(columns, axis=2), xp.reshape(h, (m, n))

    def buffers(self) -> tuple[Buffers, Buffers]:
        """Room for two y and their images, which serve a whole solve.

        They are one block of memory: an allocator gives one block back in the next
        solve without asking the system for it, while for several (measured on Linux) it
        asks again each time, which costs as much as a product with A.
        """
        if not self.in_place:
            return None, None
        block = self.xp.empty((4, *self.like.shape), dtype=self.like.dtype)
        return (block[0, ...], block[1, ...]), (block[2, ...], block[3, ...])


@functools.lru_cache(maxsize=1024)
def _sum_and_image(image: fused) -> fused:
    def step(y: Any, offset: Any, *others: Any) -> tuple[Any, Any]:
        y = y + offset
        return y, image(y, *others)

    return fused(step)


class Affine(Problem):
    """``y = x M^T + offset``, ``x = image(y)``: one product, one sum, one pass.

    Parameters
    ----------
    matrix : Matrix
        M: A forward, A^T in the adjoint.
    offset : array, shape (m, n)
        Z = U B^T + b, formed once; in the adjoint the cotangent G of the state.
    image : Image or Activation
        An activation phi stands for ``Phi(phi)``.
    reference : numpy.ndarray, shape (m,), optional
        In the adjoint, ``max|S G|`` of every sample.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.matrices.full import Full
    >>> half = Affine(Full(np.array([[0.5]])), np.ones((1, 1)), activations.relu)
    >>> half.f(np.array([[2.0]]))
    array([[2.]])
    """

    def __init__(
        self,
        matrix: Matrix,
        offset: Array,
        image: Image | Activation,
        reference: np.ndarray | None = None,
    ) -> None:
        super().__init__(offset, reference)
        self.matrix = matrix
        self.in_place, self.stride = writes_in_place(self.xp), None
        self.rounding = 0.0
        """How much a rounding of x, relative to its size, may change f(x)."""
        self._hold(offset, Phi(image) if isinstance(image, Activation) else image)
        self.lacking = self.map.lacking(offset.shape[1])

    def _hold(self, offset: Array, image: Image) -> None:
        self.like = self.offset = offset
        self.map = image
        self.image = image.ready(offset) if self.xp is np else image  # type: ignore[method-assign]

    def pre(self, x: Any, out: Any = None) -> Any:
        """``y = x M^T + offset``."""
        y = self.matrix.rows(x, out)
        y += self.offset
        return y

    def step(self, x: Any, out: Buffers = None) -> tuple[Any, Any]:
        """``(y(x), f(x))``.

        On CuPy sum and image are one kernel; on NumPy they are made piece by piece,
        while a piece is in the cache.
        """
        if out is None:
            y = self.pre(x)
            return y, self.image(y)
        y, image = out
        self.matrix.rows(x, y)
        if self.xp is np and y.size <= CHUNK:
            y += self.offset
            return y, self.image(y, out=image)
        if self.xp is np:
            for piece in pieces(*y.shape):
                y[piece] += self.offset[piece]
                self.map.take(piece)(y[piece], image[piece])
            return y, image
        function, *others = self.map.entrywise()
        if self.xp.__name__ == "cupy" and function is not None:
            _sum_and_image(function)(y, self.offset, *others, out=(y, image))
            return y, image
        y += self.offset
        return y, self.map(y, image)

    def start(self, x0: Any = None, out: Buffers = None) -> tuple[Any, Any]:
        """f(0) needs no product: its y is the offset."""
        if x0 is not None:
            return self.step(astype(self.xp, x0, self.like.dtype), out)
        if out is None:
            return self.offset, self.image(self.offset)
        out[0][...] = self.offset
        return out[0], self.image(out[0], out=out[1])

    def _copy(self) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        return part

    def take(self, rows: np.ndarray) -> Self:
        """The same equation for some of the samples."""
        part = self._copy()
        part._hold(take_rows(self.xp, self.offset, rows), self.map.take(rows))
        part.reference = None if self.reference is None else self.reference[rows]
        return part

    def resolvable(self) -> Self:
        """The same equation, to be solved as far as its dtype can where A is large.

        x is known to ``eps |x|``, and so f(x) to ``eps ||A||_inf |x|``: no residual
        below is asked for.
        """
        part = self._copy()
        xp, A = self.xp, self.matrix.dense()
        norm = float(xp.max(xp.sum(xp.abs(A), axis=1)))
        part.rounding = 4.0 * float(xp.finfo(self.like.dtype).eps) * norm
        return part

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """As for any problem, but not below the rounding of f(x)."""
        tolerance = super().tolerance(size, tol)
        return np.maximum(tolerance, self.rounding * size) if self.rounding else tolerance

    def slopes(self, y: Any) -> Any:
        """The derivative of the image with respect to y, entry by entry."""
        return self.map.slopes(y)

    def part(self, matrix: Matrix, offset: Array, groups: Groups, i: int) -> Affine:
        """The equation of one group of components; the offset has what the others add.

        In the adjoint its residual counts against the whole right-hand side.
        """
        if isinstance(self.map, Times):
            return Affine(matrix, offset, Times(groups.piece(self.map.S, i)), self.reference)
        assert isinstance(self.map, Phi)
        return Affine(matrix, offset, self.map.activation.columns(groups.members[i]))

    def system(self) -> tuple[Any, Any]:
        """``I - diag(s) A^T`` and ``s * g``, written down instead of probed."""
        if not isinstance(self.map, Times):
            return super().system()
        S, xp = self.map.S, self.xp
        eye = xp.eye(S.shape[1], dtype=S.dtype)
        return eye - S[:, :, None] * self.matrix.dense()[None, :, :], S * self.offset


class Rewritten(Affine):
    """The same equation, iterated over another pre-activation.

    A splitting is such an equation, and no solver of its own. The residual is that of
    the original equation: a subclass says how it is measured, and how the solution is
    restored.
    """

    def __init__(self, original: Affine, matrix: Matrix, offset: Array, image: Image) -> None:
        super().__init__(matrix, offset, image, original.reference)
        self.original = original

    def tolerance(self, size: np.ndarray, tol: float) -> np.ndarray:
        """That of the original equation."""
        return self.original.tolerance(size, tol)

    def given(self) -> np.ndarray:
        """That of the original equation."""
        return self.original.given()

    def take(self, rows: np.ndarray) -> Self:
        """The same equation for some of the samples."""
        part = super().take(rows)
        part.original = self.original.take(rows)
        return part


def admitted(problem: Problem, solver: str, reason: str) -> Affine:
    """The problem, solved as far as its dtype can; refused if there is a `reason`."""
    if reason:
        raise InputError(
            f"{solver} cannot solve this problem: {reason}; use Picard, Anderson or Newton"
        )
    assert isinstance(problem, Affine)
    return problem.resolvable()


def pieces(m: int, n: int) -> list[slice]:
    """The rows of an (m, n) array in pieces that stay in the cache."""
    count = max(1, CHUNK // n)
    return [slice(i, min(i + count, m)) for i in range(0, m, count)]


def sizes(h: Any, factor: Any = None) -> np.ndarray:
    """``max|h|``, or ``max|factor h|``, of every sample, on the host."""
    return to_numpy(max_abs(namespace(h), h, factor)).astype(np.float64)
