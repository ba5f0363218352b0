"""Activation modules of torch, and their counterparts here.

torch is not imported: whoever has a module has imported it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyidl import activations
from pyidl.activations import Activation
from pyidl.errors import InputError

__all__ = ["activation_of"]

_SAME: dict[str, Activation] = {
    "ReLU": activations.relu,
    "Sigmoid": activations.sigmoid,
    "SiLU": activations.silu,
    "Softsign": activations.softsign,
    "Tanh": activations.tanh,
}

# Those with options: the activation, or None where the options are others than pyidl's.
_CHOSEN: dict[str, Callable[[Any], Activation | None]] = {
    "ELU": lambda f: activations.elu if f.alpha == 1 else None,
    "GELU": lambda f: activations.gelu if f.approximate == "none" else None,
    "Hardtanh": lambda f: activations.hard_tanh if (f.min_val, f.max_val) == (-1, 1) else None,
    "LeakyReLU": lambda f: (
        activations.leaky_relu(f.negative_slope) if 0 < f.negative_slope < 1 else None
    ),
    "Softmax": lambda f: activations.softmax if f.dim in (-1, 1) else None,
    "Softplus": lambda f: activations.softplus if f.beta == 1 and f.threshold >= 20 else None,
}


def activation_of(module: Any) -> Activation | None:
    """What the module computes, or None if it is no activation.

    Raises
    ------
    InputError
        If it is one that pyidl has not, or has with other options.
    """
    name = type(module).__name__
    if not type(module).__module__.startswith("torch.nn.modules.activation"):
        return None
    if name in _SAME:
        return _SAME[name]
    chosen = _CHOSEN[name](module) if name in _CHOSEN else None
    if chosen is None and name != "MultiheadAttention":
        raise InputError(
            f"{module} has no counterpart among pyidl.activations; use one of "
            f"{', '.join([*_SAME, *_CHOSEN])}, or collect arrays"
        )
    return chosen
