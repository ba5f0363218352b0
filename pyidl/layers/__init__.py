"""Layers and models: callables that return ``(Y, pullback)``."""

from pyidl.layers.base import Layer, Pullback
from pyidl.layers.bidirectional import Bidirectional
from pyidl.layers.composite import Composite
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.linear import Linear, Pointwise
from pyidl.layers.recurrence import Recurrence
from pyidl.layers.rnn import ImplicitRNN
from pyidl.layers.rnn_cell import ImplicitRNNCell
from pyidl.layers.sequential import Sequential

__all__ = [
    "Bidirectional",
    "Composite",
    "ImplicitModel",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "Layer",
    "Linear",
    "Pointwise",
    "Pullback",
    "Recurrence",
    "Sequential",
]
