"""Implicit Deep Learning on NumPy and CuPy, with gradients derived by hand.

A model's hidden state is the solution of ``x = phi(A x + B u + b)``; its output is ``y = C x + D u + d``.
"""

from pyidl import activations, losses, metrics, optim, solvers, testing, wellposed
from pyidl.backend import to_device, to_numpy
from pyidl.certify import LocalCertificate, certify_solution, rescale
from pyidl.errors import ConvergenceError, ConvergenceWarning, PyidlError, PyidlWarning
from pyidl.io import load, save
from pyidl.layers import (
    Bidirectional,
    Dropout,
    Embedding,
    ImplicitModel,
    ImplicitRNN,
    ImplicitRNNCell,
    Layer,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)
from pyidl.pattern import Pattern
from pyidl.training import Checkpoint, EarlyStopping, History, fit
from pyidl.wellposed import InfNorm

__version__ = "0.1.0"

__all__ = [
    "Bidirectional",
    "Checkpoint",
    "ConvergenceError",
    "ConvergenceWarning",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "History",
    "ImplicitModel",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "InfNorm",
    "Layer",
    "LayerNorm",
    "Linear",
    "LocalCertificate",
    "Pattern",
    "Pointwise",
    "PositionEmbedding",
    "PyidlError",
    "PyidlWarning",
    "Residual",
    "Sequential",
    "activations",
    "certify_solution",
    "fit",
    "load",
    "losses",
    "metrics",
    "optim",
    "rescale",
    "save",
    "solvers",
    "testing",
    "to_device",
    "to_numpy",
    "wellposed",
]
