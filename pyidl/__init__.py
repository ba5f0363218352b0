"""Implicit Deep Learning on NumPy and CuPy, with gradients derived by hand.

A model's hidden state is the solution of ``x = phi(A x + B u + b)``; its output is ``y = C x + D u + d``.
"""

from pyidl import activations, losses, metrics, optim, plotting, sim, solvers, testing, wellposed
from pyidl.attention import BoundedSoftmax, KernelAttention, Softmax
from pyidl.backend import to_device, to_numpy
from pyidl.certify import AttentionCertificate, LocalCertificate, certify_attention, certify_solution, rescale
from pyidl.errors import ConvergenceError, ConvergenceWarning, PyidlError, PyidlWarning
from pyidl.fusion import fused
from pyidl.io import load, load_notes, save
from pyidl.layers import (
    Bidirectional,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitRNNCell,
    ImplicitTransformerBlock,
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
from pyidl.wellposed import AttentionBall, InfNorm

__version__ = "0.1.0"

__all__ = [
    "AttentionBall",
    "Bidirectional",
    "AttentionCertificate",
    "BoundedSoftmax",
    "Checkpoint",
    "ConvergenceError",
    "ConvergenceWarning",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "History",
    "ImplicitAttentionHead",
    "ImplicitModel",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "ImplicitTransformerBlock",
    "InfNorm",
    "KernelAttention",
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
    "Softmax",
    "activations",
    "certify_attention",
    "certify_solution",
    "fit",
    "fused",
    "load",
    "load_notes",
    "losses",
    "metrics",
    "optim",
    "plotting",
    "rescale",
    "save",
    "sim",
    "solvers",
    "testing",
    "to_device",
    "to_numpy",
    "wellposed",
]
