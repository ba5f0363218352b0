"""Activations, each with its derivative under it.

Built-in ones (`builtin`), those of several components (`blocks`), and your own: an
`Activation` is a pair of functions, and what is known of their slopes.
"""

from pyidl.activations.base import Activation, Blocks
from pyidl.activations.blocks import VectorActivation, layer_norm, softmax
from pyidl.activations.builtin import (
    abs,
    elu,
    gelu,
    hard_tanh,
    identity,
    leaky_relu,
    named,
    relu,
    sigmoid,
    silu,
    sin,
    softplus,
    softsign,
    tanh,
)

__all__ = [
    "Activation",
    "Blocks",
    "VectorActivation",
    "abs",
    "elu",
    "gelu",
    "hard_tanh",
    "identity",
    "layer_norm",
    "leaky_relu",
    "named",
    "relu",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]
