"""Perceptrons of scikit-learn, or what looks like one, as layers.

``x_l = phi(W_l x_(l-1) + b_l)``, with W_l = ``coefs_[l]`` transposed. scikit-learn is
not imported here: whoever has a perceptron has imported it.
"""

from __future__ import annotations

from typing import Any

from pyidl import activations
from pyidl.errors import InputError
from pyidl.layers import Layer, Linear, Pointwise

__all__ = ["is_perceptron", "layers_of_perceptron", "linear"]

PERCEPTRON = {
    "identity": activations.identity,
    "logistic": activations.sigmoid,
    "relu": activations.relu,
    "tanh": activations.tanh,
}
"""scikit-learn's names of activations."""


def is_perceptron(network: Any) -> bool:
    """Whether it is scikit-learn's MLPClassifier or MLPRegressor, or looks like one."""
    return hasattr(network, "hidden_layer_sizes") and hasattr(network, "activation")


def layers_of_perceptron(network: Any) -> list[Layer]:
    """Linear layers with activations between them; without one of the output."""
    if not hasattr(network, "coefs_"):
        raise InputError(f"{type(network).__name__} is not fitted; call fit(X, y) first")
    if network.activation not in PERCEPTRON:
        raise InputError(
            f"the activation {network.activation!r} of {type(network).__name__} is not one of "
            f"{', '.join(PERCEPTRON)}"
        )
    pairs = list(zip(network.coefs_, network.intercepts_, strict=True))
    dtype = "float32" if all(W.dtype == "float32" for W, _ in pairs) else "float64"
    phi = Pointwise(PERCEPTRON[network.activation])
    layers: list[Layer] = [
        layer for W, b in pairs for layer in (linear(W.T, b, dtype), phi.replace())
    ]
    return layers[:-1]


def linear(W: Any, b: Any, dtype: str) -> Linear:
    """``W v + b`` as a layer, or ``W v``."""
    config = {"input_dim": W.shape[1], "output_dim": W.shape[0], "bias": b is not None}
    params = {"W": W} if b is None else {"W": W, "b": b}
    return Linear._with({**config, "dtype": dtype}, params)
