r"""Networks of PyTorch, watched.

Every activation module tells what it got and what it gave, ``x = phi(z)``.

What stands between the activations does not matter: convolutions, attention, skip
connections. Components are flattened, one sample a row. Arrays are copied to the host.
torch is never imported here: whoever has a module has imported it.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.compose.perceptron import linear
from pyidl.compose.torch_activations import activation_of
from pyidl.errors import InputError
from pyidl.layers import Layer, Pointwise
from pyidl.sim.networks import Record
from pyidl.typing import Array

__all__ = ["Watched", "is_torch", "layers_of"]

_ONE_AT_A_TIME = threading.Lock()
"""Hooks of two threads on the same module would hear each other's samples."""

_OUTPUT_ONLY = ("LogSigmoid", "LogSoftmax")


def is_torch(network: Any) -> bool:
    """Whether it is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def _host(tensor: Any, torch: Any) -> np.ndarray:
    """A copy in float32 or float64, one sample a row."""
    tensor = tensor.detach()
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    return np.array(tensor.cpu().numpy()).reshape(len(tensor), -1)


def layers_of(module: Any) -> list[Layer]:
    """The layers of a ``torch.nn.Sequential`` of linear layers and activations.

    Raises
    ------
    InputError
        If it has other parts, of which nothing is known.
    """
    torch = sys.modules["torch"]
    double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    return _layers_of(module, "float64" if double else "float32")


def _layers_of(module: Any, dtype: str) -> list[Layer]:
    torch = sys.modules["torch"]
    nn = torch.nn
    if isinstance(module, nn.Sequential):
        parts = list(module)
        parts = parts[:-1] if parts and type(parts[-1]).__name__ in _OUTPUT_ONLY else parts
        return [layer for part in parts for layer in _layers_of(part, dtype)]
    if isinstance(module, (nn.Dropout, nn.Flatten, nn.Identity)):
        return []
    if isinstance(module, nn.Linear):
        b = None if module.bias is None else _host(module.bias, torch).reshape(-1)
        return [linear(_host(module.weight, torch), b, dtype)]
    phi = activation_of(module)
    if phi is None:
        raise InputError(
            f"{type(module).__name__} is neither a linear layer nor an activation, and no implicit "
            "model is written down for it; its "
            "states can be collected (collect_states), and a model learned from them"
        )
    return [Pointwise(phi)]


@dataclass(frozen=True, eq=False)
class Watched:
    """A ``torch.nn.Module`` with hooks on its activations, while it runs.

    In evaluation mode, and left as it was found.
    """

    module: Any

    def run(self, U: Any) -> tuple[Array, list[Record], Array]:
        """One forward pass without gradients."""
        torch = sys.modules["torch"]
        known = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(0))
        inputs = torch.as_tensor(np.asarray(U) if not isinstance(U, torch.Tensor) else U).to(
            device=known.device, dtype=known.dtype
        )
        if inputs.ndim < 2 or inputs.numel() == 0 or not bool(torch.isfinite(inputs).all()):
            raise InputError(
                f"U has shape {tuple(inputs.shape)}; the network takes m >= 1 samples along the "
                "first axis, all finite"
            )
        with _ONE_AT_A_TIME:
            watch, handles = _Watch(torch), []
            modes = [(part, part.training) for part in self.module.modules()]
            try:
                self.module.eval()
                for part, _ in modes:
                    if type(part).__name__ in _OUTPUT_ONLY or activation_of(part) is not None:
                        handles += [
                            part.register_forward_pre_hook(watch.before),
                            part.register_forward_hook(watch.after),
                        ]
                with torch.no_grad():
                    Y = self.module(inputs)
            finally:
                for handle in handles:
                    handle.remove()
                for part, mode in modes:
                    part.training = mode
        if not isinstance(Y, torch.Tensor):
            raise InputError(
                f"the network returns {type(Y).__name__}; wrap it in a module that returns one "
                "tensor"
            )
        return _host(inputs, torch), *watch.records(Y)


class _Watch:
    """What the hooks write down.

    Inputs are copied before the activation runs, which may work in place.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.seen: list[tuple[Any, np.ndarray, np.ndarray, tuple[int, ...]]] = []
        self.Z: Any = None
        self.last: Any = None

    def before(self, part: Any, inputs: Any) -> None:
        self.Z = _host(inputs[0], self.torch)

    def after(self, part: Any, inputs: Any, output: Any) -> None:
        self.seen.append((part, self.Z, _host(output, self.torch), tuple(output.shape)))
        self.last = output

    def records(self, Y: Any) -> tuple[list[Record], np.ndarray]:
        """Without the activation of the output, if that is what came last."""
        ends = bool(self.seen) and Y is self.last
        seen, outputs = (
            (self.seen[:-1], self.seen[-1][1]) if ends else (self.seen, _host(Y, self.torch))
        )
        if not seen:
            raise InputError(
                "no hidden activation of the network is a module; give it torch.nn.ReLU() and the "
                "like in place of functions such as "
                "torch.relu, which cannot be watched"
            )
        records = []
        for part, Z, X, shape in seen:
            phi = None if type(part).__name__ in _OUTPUT_ONLY else activation_of(part)
            if phi is None or (phi.vector_blocks(Z.shape[1]) and len(shape) != 2):
                raise InputError(
                    f"{part} acts on shape {shape} inside the network; its state cannot be one of "
                    "an implicit model"
                )
            records.append(Record(Z, X, phi))
        return records, outputs
