"""Implicit Deep Learning on NumPy and CuPy, with gradients derived by hand.

A model's hidden state is the solution of ``x = phi(A x + B u + b)``; its output is ``y = C x + D u + d``.
"""

from pyidl import activations, solvers, wellposed
from pyidl.layers import ImplicitModel, Layer, Linear, Pointwise, Sequential
from pyidl.wellposed import InfNorm

__version__ = "0.1.0"

__all__ = [
    "ImplicitModel",
    "InfNorm",
    "Layer",
    "Linear",
    "Pointwise",
    "Sequential",
    "activations",
    "solvers",
    "wellposed",
]
