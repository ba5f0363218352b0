"""Layers and models: callables that return ``(Y, pullback)``."""

from pyidl.layers.base import Call, Explicit, Layer, Pullback, check_dtype
from pyidl.layers.composite import Composite
from pyidl.layers.dropout import Dropout
from pyidl.layers.embedding import Embedding, PositionEmbedding
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.linear import Linear, Pointwise
from pyidl.layers.normalisation import LayerNorm
from pyidl.layers.residual import Residual
from pyidl.layers.sequential import Sequential

__all__ = [
    "Call",
    "Composite",
    "Dropout",
    "Embedding",
    "Explicit",
    "ImplicitModel",
    "Layer",
    "LayerNorm",
    "Linear",
    "Pointwise",
    "PositionEmbedding",
    "Pullback",
    "Residual",
    "Sequential",
    "check_dtype",
]
