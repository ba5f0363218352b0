"""Implicit Deep Learning on NumPy and CuPy, with gradients derived by hand.

A model's hidden state is the solution of ``x = phi(A x + B u + b)``; its output is ``y
= C x + D u + d``.
"""

from pyidl import (
    activations,
    compose,
    losses,
    metrics,
    optim,
    plotting,
    robustness,
    sim,
    solvers,
    testing,
    wellposed,
)
from pyidl.arrays.backend import to_device, to_numpy
from pyidl.arrays.fusion import fused
from pyidl.attention import (
    AttentionBall,
    AttentionCertificate,
    BoundedSoftmax,
    ImplicitAttentionHead,
    ImplicitTransformerBlock,
    KernelAttention,
    Softmax,
    certify_attention,
)
from pyidl.certify import LocalCertificate, certify_solution, rescale
from pyidl.errors import ConvergenceError, ConvergenceWarning, PyidlError, PyidlWarning
from pyidl.io import load, load_notes, save
from pyidl.layers import (
    Dropout,
    Embedding,
    ImplicitModel,
    Layer,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)
from pyidl.matrices.pattern import Pattern
from pyidl.recurrent import Bidirectional, ImplicitRNN, ImplicitRNNCell
from pyidl.robustness import WorstCase
from pyidl.training import Checkpoint, EarlyStopping, History, fit, readout
from pyidl.wellposed import InfNorm

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
    "WorstCase",
    "activations",
    "certify_attention",
    "certify_solution",
    "compose",
    "fit",
    "fused",
    "load",
    "load_notes",
    "losses",
    "metrics",
    "optim",
    "plotting",
    "readout",
    "rescale",
    "robustness",
    "save",
    "sim",
    "solvers",
    "testing",
    "to_device",
    "to_numpy",
    "wellposed",
]
