"""``check``: the gradients of all layers against finite differences, on one device."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import pyidl
from pyidl import activations, wellposed
from pyidl.errors import GradientMismatchError, PyidlWarning
from pyidl.layers import (
    Dropout,
    Embedding,
    ImplicitModel,
    Layer,
    LayerNorm,
    Linear,
    PositionEmbedding,
    Sequential,
)
from pyidl.testing import check_pullback

__all__ = ["check"]


def check(options: Any) -> int:
    """Print the relative error of every layer's gradients."""
    worst, failed = 0.0, 0
    for name, layer, U in _layers():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PyidlWarning)
            there = layer.to(options.device)
            try:
                error = check_pullback(there, pyidl.to_device(U, options.device)).max_error
                print(f"{name:40s} {error:.1e}")
                worst = max(worst, error)
            except GradientMismatchError as mismatch:
                failed += 1
                print(f"{name:40s} WRONG: {mismatch}")
    print(f"largest relative error on {options.device}: {worst:.1e}; {failed} layers failed")
    return 1 if failed else 0


def _layers() -> list[tuple[str, Layer, np.ndarray]]:
    """Every kind of layer, with inputs.

    The wings of recurrent networks and of attention are imported by whoever asks.
    """
    from pyidl.attention import (
        BoundedSoftmax,
        ImplicitAttentionHead,
        ImplicitTransformerBlock,
        KernelAttention,
        Softmax,
    )
    from pyidl.recurrent import Bidirectional, ImplicitRNN

    rng = np.random.default_rng(0)
    U, S, tokens = rng.normal(size=(5, 4)), rng.normal(size=(3, 6, 4)), rng.integers(0, 7, (3, 6))
    activated = [
        ImplicitModel(4, 3, 8, activation=phi, rng=0)
        for phi in (activations.relu, activations.tanh, activations.softmax)
    ]
    constrained = [
        ImplicitModel(4, 3, 8, constraint=constraint, activation=activations.tanh, rng=0)
        for constraint in (
            wellposed.SpectralNorm(0.8),
            wellposed.StrictlyTriangular(),
            wellposed.Monotone(0.3),
            wellposed.LipschitzBound(2.0),
            wellposed.MatrixMeasure(0.5),
        )
    ]
    heads = [
        ImplicitAttentionHead(4, 3, num_heads=2, attention=attention, block_size=6, rng=0)
        for attention in (KernelAttention(), BoundedSoftmax(), Softmax())
    ]
    both_ways = Bidirectional(
        *(ImplicitRNN(4, 2, 3, 4, return_sequences=True, rng=i) for i in (0, 1))
    )
    block = ImplicitTransformerBlock(4, 2, block_size=6, rng=0)
    return [
        ("Linear", Linear(4, 3, rng=0), U),
        *((f"ImplicitModel, {model.activation.name}", model, U) for model in activated),
        *((f"ImplicitModel, {model.constraint!r}", model, U) for model in constrained),
        ("ImplicitModel, rank 2", ImplicitModel(4, 3, 8, rank=2, rng=0), U),
        ("ImplicitRNN", ImplicitRNN(4, 3, 5, 6, rng=0), S),
        ("Bidirectional", both_ways, S),
        *((f"ImplicitAttentionHead, {type(head.attention).__name__}", head, S) for head in heads),
        ("LayerNorm", LayerNorm(4), S),
        ("Dropout", Dropout(0.3), S),
        ("PositionEmbedding", PositionEmbedding(6, 4, rng=0), S),
        (
            "Embedding and ImplicitTransformerBlock",
            Sequential(Embedding(7, 4, rng=0), block),
            tokens,
        ),
    ]
