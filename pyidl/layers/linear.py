"""The explicit layers: ``Y = U W^T + b``, and an activation on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np

from pyidl.activations.names import ActivationOption
from pyidl.arrays.batch import total
from pyidl.errors import InputError, expect_flags
from pyidl.layers import initializers
from pyidl.layers.base import Call, Explicit, Layer, Parameterless, check_widths
from pyidl.typing import Array, Rng

__all__ = ["Linear", "Pointwise"]


@dataclass(frozen=True, repr=False)
class LinearPullback(Explicit):
    """The pullback of a `Linear`, which knows U."""

    U: Array
    bias: bool

    @property
    def reads(self) -> Mapping[str, Any]:
        """``Y = U W^T + b``."""
        return {"W": self.U, "b": None} if self.bias else {"W": self.U}


@dataclass(eq=False, repr=False)
class Linear(Layer):
    """``y = W u + b``; in rows ``Y = U W^T + b``, on the last axis.

    Parameters
    ----------
    input_dim, output_dim : int
        W has shape (output_dim, input_dim), b (output_dim,). Inputs have shape (m,
        input_dim) or (m, T, input_dim).
    bias : bool
        Whether there is a b.
    dtype : {"float32", "float64"}
        In which everything is computed.
    rng : Generator, int or None
        Draws W with variance ``2 / input_dim``, for the ReLU that usually follows.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import Linear
    >>> layer = Linear(3, 2, rng=0)
    >>> Y, pull = layer(np.ones((5, 3)))
    >>> dU, grads = pull(np.ones((5, 2)))
    >>> Y.shape, dU.shape, grads["W"].shape
    ((5, 2), (5, 3), (2, 3))
    """

    tokenwise = takes_sparse = True

    input_dim: int
    output_dim: int
    _: KW_ONLY
    bias: bool = True
    dtype: str = "float32"
    rng: InitVar[Rng] = None

    def _validate(self) -> None:
        check_widths(self, "input_dim", "output_dim")
        expect_flags(self, "bias")

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        W = {"W": initializers.he_normal(generator, self.output_dim, self.input_dim)}
        return {**W, "b": np.zeros(self.output_dim)} if self.bias else W

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        W = {"W": (self.output_dim, self.input_dim)}
        return {**W, "b": (self.output_dim,)} if self.bias else {**W}

    def _widths(self) -> tuple[int, int]:
        return self.input_dim, self.output_dim

    def _check(self, U: Any) -> None:
        if U.ndim not in (2, 3) or U.shape[-1] != self.input_dim or 0 in U.shape:
            raise InputError(
                f"U has shape {U.shape}; Linear takes (m, {self.input_dim}) "
                f"or (m, T, {self.input_dim}) with m, T >= 1"
            )

    def _forward(self, U: Any, call: Call) -> tuple[Any, LinearPullback]:
        xp, W = self.xp, self.params["W"]
        Y = U @ W.T
        if self.bias:
            Y += self.params["b"]

        def backward(dY: Any, inputs: bool) -> tuple[Any, dict[str, Any]]:
            rows = xp.reshape(dY, (-1, dY.shape[-1]))
            of_rows = U if U.ndim == 2 else xp.reshape(U, (-1, U.shape[-1]))
            grads = {"W": rows.T @ of_rows}
            if self.bias:
                grads["b"] = total(rows)
            return (dY @ W if inputs else None), grads

        return Y, LinearPullback(Y, backward, U, self.bias)


@dataclass(eq=False, repr=False)
class Pointwise(Parameterless):
    """``Y = phi(U)``: an activation as a layer.

    `Sequential` makes one of every activation that it is given.

    Parameters
    ----------
    activation : Activation or str
        phi, or its name.

    Raises
    ------
    InputError
        If it is no activation.

    Examples
    --------
    >>> from pyidl import activations
    >>> Y, pull = Pointwise(activations.relu)(np.array([[-1.0, 2.0]]))
    >>> Y, pull(np.ones((1, 2)))[0]
    (array([[0., 2.]]), array([[0., 1.]]))
    """

    activation: ActivationOption = ActivationOption()  # noqa: RUF009 (a descriptor)

    def _validate(self) -> None:
        """The option has refused what is no activation."""

    def _forward(self, U: Any, call: Call) -> tuple[Any, Explicit]:
        Y = self.activation(U)

        def backward(dY: Any, inputs: bool) -> tuple[Any, dict[str, Any]]:
            return (self.activation.vjp(U, dY) if inputs else None), {}

        return Y, Explicit(Y, backward)
