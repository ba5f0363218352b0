"""Layers and models: callables that return ``(Y, pullback)``.

=====================  ================================================================
`base`                 `Layer` and `Pullback`, which all layers are; `Explicit`, the
                       pullback of a layer without a solve; `Call`
`implicit`             `ImplicitModel`, whose state solves ``x = phi(A x + B u + b)``
`parameter_space`      the parameters of such equations: shapes, patterns, constraint
`linear`               `Linear`, ``y = W u + b``, and `Pointwise`, an activation
`embedding`            `Embedding` of tokens, `PositionEmbedding`
`normalisation`        `LayerNorm`
`dropout`              `Dropout`
`composite`            what layers made of layers share
`sequential`           `Sequential`, one layer after another
`residual`             `Residual`, a branch around layers
`timeline`             sequences of several lengths: who takes part in which step
`initializers`         where training starts
`tolerance`            the solvers of a layer at another tolerance
=====================  ================================================================

Recurrent layers are in `pyidl.recurrent`, those with attention in `pyidl.attention`.
"""

from pyidl.layers.base import Call, Explicit, Layer, Pullback, check_widths
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
    "check_widths",
]
