"""Layers and models: callables that return ``(Y, pullback)``."""

from pyidl.layers.attention import ImplicitAttentionHead
from pyidl.layers.base import Layer, Pullback
from pyidl.layers.bidirectional import Bidirectional
from pyidl.layers.composite import Composite
from pyidl.layers.dropout import Dropout
from pyidl.layers.embedding import Embedding, PositionEmbedding
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.linear import Linear, Pointwise
from pyidl.layers.normalisation import LayerNorm
from pyidl.layers.recurrence import Recurrence
from pyidl.layers.residual import Residual
from pyidl.layers.rnn import ImplicitRNN
from pyidl.layers.rnn_cell import ImplicitRNNCell
from pyidl.layers.sequential import Sequential
from pyidl.layers.transformer import ImplicitTransformerBlock

__all__ = [
    "Bidirectional",
    "Composite",
    "Dropout",
    "Embedding",
    "ImplicitAttentionHead",
    "ImplicitModel",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "ImplicitTransformerBlock",
    "Layer",
    "LayerNorm",
    "Linear",
    "Pointwise",
    "PositionEmbedding",
    "Pullback",
    "Recurrence",
    "Residual",
    "Sequential",
]
