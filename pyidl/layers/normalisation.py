r"""Layer normalisation with a gain and an offset.

``y = g * n(u) + b``, ``n(u) = (u - mean u) / (eps + variance u)^{1/2}``.

With ``r = (eps + variance u)^{1/2}``, the projection P that takes away the mean, and k
components (see `vector_activations`),

    dn = (P - n n^T / k) du / r,        a symmetric map, and hence
    dU = (P - n n^T / k) (g * dY) / r,    dg = sum dY * n,    db = sum dY.

Source: Ba, Kiros, Hinton, "Layer normalization", 2016, eq. 4.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pyidl.activations.blocks import normed, normed_vjp
from pyidl.errors import InputError, is_real
from pyidl.layers.base import Call, Explicit, Layer, check_widths

__all__ = ["LayerNorm"]


@dataclass(eq=False, repr=False)
class LayerNorm(Layer):
    """``Y = g * (U - mean) / (eps + variance)^{1/2} + b``.

    Mean and variance are those along the last axis. g starts with ones, b with zeros.

    Parameters
    ----------
    dim : int
        The length of the last axis, and of g and b. Inputs have shape (m, dim) or (m,
        T, dim).
    eps : float
        Positive; what is small against its root is not blown up.
    dtype : {"float32", "float64"}
        In which everything is computed.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import LayerNorm
    >>> layer = LayerNorm(3, dtype="float64")
    >>> Y, pull = layer(np.array([[1.0, 4.0, 7.0]]))
    >>> Y.round(3), pull(np.ones((1, 3)))[0].round(3)
    (array([[-1.225,  0.   ,  1.225]]), array([[0., 0., 0.]]))
    """

    tokenwise = True

    dim: int
    eps: float = 1e-5
    _: KW_ONLY
    dtype: str = "float32"

    def _validate(self) -> None:
        check_widths(self, "dim")
        if not (is_real(self.eps) and 0 < self.eps < math.inf):
            raise InputError(
                f"eps of LayerNorm is {self.eps!r}; it must be positive and finite, "
                "since a constant row has no variance"
            )
        self.eps = float(self.eps)

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        return {"g": np.ones(self.dim), "b": np.zeros(self.dim)}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"g": (self.dim,), "b": (self.dim,)}

    def _widths(self) -> tuple[int, int]:
        return self.dim, self.dim

    def _check(self, U: Any) -> None:
        if U.ndim not in (2, 3) or U.shape[-1] != self.dim or U.size == 0:
            raise InputError(
                f"U has shape {U.shape}; LayerNorm takes (m, {self.dim}) "
                f"or (m, T, {self.dim}) with m, T >= 1"
            )

    def _forward(self, U: Any, call: Call) -> tuple[Any, Explicit]:
        xp, g = self.xp, self.params["g"]
        n, r = normed(U, self.eps)
        Y = n * g + self.params["b"]

        def backward(dY: Any, inputs: bool) -> tuple[Any, dict[str, Any]]:
            axes = tuple(range(dY.ndim - 1))
            grads = {"g": xp.sum(dY * n, axis=axes), "b": xp.sum(dY, axis=axes)}
            return (normed_vjp(n, r, dY * g) if inputs else None), grads

        return Y, Explicit(Y, backward)
