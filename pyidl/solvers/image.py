"""The second half of a step, ``x = image(y)``, where a problem is affine but for it.

It is one of three:

    forward   phi(y)                                                    `Phi`
    adjoint   S * y,  S = phi'(Y*), entry by entry                      `Times`
              J(Y*)^T y, where phi acts on several components together  `Jacobians`
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.arrays.fusion import fused
from pyidl.typing import Array

__all__ = ["Image", "Jacobians", "Phi", "Times"]

TOGETHER = "here phi acts on several components together"


class Image(ABC):
    """``x = image(y)``, one sample a row: the nonlinear half of an `Affine` problem."""

    def lacking(self, n: int) -> str:
        """Why it has no slopes, for n components; "" where it has."""
        return ""

    @abstractmethod
    def __call__(self, y: Any, out: Any = None) -> Any:
        """The image, into `out` if given."""

    def ready(self, like: Any) -> Callable[..., Any]:
        """The image for NumPy arrays of this shape, with as few calls as may be."""
        return self

    def entrywise(self) -> tuple[Any, ...]:
        """A `fused` function and its operands after y; None where there is none."""
        return (None,)

    def slopes(self, y: Any) -> Any:
        """Its derivative at y, entry by entry."""
        raise AssertionError("asked for slopes of an image without")

    def resolvent(self, u: Any, alpha: float) -> Any:
        """The y with ``(1 - alpha) image(y) + alpha y = u``, for slopes in [0, 1]."""
        raise AssertionError("asked for the proximal map of an image without")

    def take(self, rows: Any) -> Image:
        """The image for some samples: host numbers, or a slice."""
        return self


@dataclass(frozen=True)
class Phi(Image):
    """``x = phi(y)``: the image of a forward equation."""

    activation: Activation

    def __call__(self, y: Any, out: Any = None) -> Any:
        """``phi(y)``, into `out` if given."""
        return self.activation(y, out)

    def lacking(self, n: int) -> str:
        """A phi that acts on blocks has no slopes."""
        return TOGETHER if self.activation.vector_blocks(n) else ""

    def ready(self, like: Any) -> Callable[..., Any]:
        """A ufunc, where phi is one."""
        return self if self.activation.ready is None else self.activation.ready(like)

    def entrywise(self) -> tuple[Any, ...]:
        """The function of the activation, if it is fused."""
        return (self.activation.phi if isinstance(self.activation.phi, fused) else None,)

    def slopes(self, y: Any) -> Any:
        """``phi'(y)``, entry by entry."""
        return self.activation.dphi(y)

    def resolvent(self, u: Any, alpha: float) -> Any:
        """That of the activation, which needs none for alpha = 1."""
        return u if alpha == 1 else self.activation.resolvent(u, alpha)  # type: ignore[misc]


@dataclass(frozen=True)
class Times(Image):
    """``S y``, entry by entry: the image of an adjoint equation, with S = phi'(Y*)."""

    S: Array

    def __call__(self, y: Any, out: Any = None) -> Any:
        """``S y``, into `out` if given."""
        return y * self.S if out is None else namespace(y).multiply(y, self.S, out=out)

    def ready(self, like: Any) -> Callable[..., Any]:
        """NumPy's product."""
        return functools.partial(np.multiply, self.S)

    def entrywise(self) -> tuple[Any, ...]:
        """The product, and S."""
        return _product, self.S

    def slopes(self, y: Any) -> Any:
        """S, whatever y."""
        return self.S

    def resolvent(self, u: Any, alpha: float) -> Any:
        """``(1 - alpha) s y + alpha y = u``."""
        return u if alpha == 1 else u / ((1.0 - alpha) * self.S + alpha)

    def take(self, rows: Any) -> Times:
        """Some rows of S."""
        return Times(_some(self.S, rows))


@dataclass(frozen=True)
class Jacobians(Image):
    """``J(Y*)^T y``, where phi acts on blocks of components, such as softmax.

    Let ``y = A phi(y) + z``; along any direction ``dy = A J dy + dz``, and a loss with
    gradient g with respect to x = phi(y) changes by ``<g, J dy> = <v, dz>``, ``v = J^T
    (A^T v + g)``.
    """

    activation: Activation
    Y: Array

    def lacking(self, n: int) -> str:
        """Jacobians, but no slopes."""
        return TOGETHER

    def __call__(self, y: Any, out: Any = None) -> Any:
        """The product with the transposed Jacobian."""
        v = self.activation.vjp(self.Y, y)
        if out is None:
            return v
        out[...] = v
        return out

    def take(self, rows: Any) -> Jacobians:
        """Some rows of Y*."""
        return Jacobians(self.activation, _some(self.Y, rows))


def _some(a: Any, rows: Any) -> Any:
    return a[rows, ...] if isinstance(rows, slice) else take_rows(namespace(a), a, rows)


@fused
def _product(y: Any, s: Any) -> Any:
    return y * s
