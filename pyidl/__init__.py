"""Implicit Deep Learning on NumPy and CuPy, with gradients derived by hand.

A model's hidden state is the solution of ``x = phi(A x + B u + b)``; its output is ``y = C x + D u + d``.
"""

from pyidl import activations, losses, metrics, optim, solvers, testing, wellposed
from pyidl.backend import to_device, to_numpy
from pyidl.certify import LocalCertificate, certify_solution, rescale
from pyidl.errors import ConvergenceError, ConvergenceWarning, PyidlError, PyidlWarning
from pyidl.io import load, save
from pyidl.layers import Bidirectional, ImplicitModel, ImplicitRNN, ImplicitRNNCell, Layer, Linear, Pointwise, Sequential
from pyidl.pattern import Pattern
from pyidl.training import Checkpoint, EarlyStopping, History, fit
from pyidl.wellposed import InfNorm

__version__ = "0.1.0"

__all__ = [
    "Bidirectional",
    "Checkpoint",
    "ConvergenceError",
    "ConvergenceWarning",
    "EarlyStopping",
    "History",
    "ImplicitModel",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "InfNorm",
    "Layer",
    "Linear",
    "LocalCertificate",
    "Pattern",
    "Pointwise",
    "PyidlError",
    "PyidlWarning",
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
