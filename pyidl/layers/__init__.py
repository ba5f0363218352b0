"""Layers and models: callables that return ``(Y, pullback)``."""

from pyidl.layers.base import Layer, Pullback
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.linear import Linear, Pointwise
from pyidl.layers.sequential import Sequential

__all__ = ["ImplicitModel", "Layer", "Linear", "Pointwise", "Pullback", "Sequential"]
