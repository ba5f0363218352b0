r"""A trained network, read for its states.

What goes into every activation and what comes out.

A network of affine maps and activations computes, activation by activation,

    z_l = (an affine function of x_1, ..., x_(l-1) and u),    x_l = phi_l(z_l),
    y = (an affine function of x_1, ..., x_L and u).

Layers that follow one another are that with ``z_l = W_l x_(l-1) + b_l``. So the
pre-activations z, stacked, are affine in the stacked states x and in u, and the network
is an implicit model (`pyidl.sim.exact`). To collect states nothing of this needs to be
known: a network of PyTorch, whatever stands between its activations, is watched by
hooks on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pyidl.activations import Activation
from pyidl.activations.names import as_activation
from pyidl.arrays import backend
from pyidl.arrays.backend import is_array, namespace
from pyidl.compose.networks import input_width
from pyidl.compose.perceptron import is_perceptron, layers_of_perceptron, linear
from pyidl.errors import InputError, expect
from pyidl.layers import Dropout, ImplicitModel, Layer, Linear, Pointwise, Residual, Sequential
from pyidl.typing import Array

__all__ = [
    "AffineMap",
    "Chain",
    "Feedforward",
    "Network",
    "Record",
    "chain",
    "read_chain",
]


class Record(NamedTuple):
    """What one activation does to the samples at hand.

    ``X = phi(Z)``, both (m, n_l).
    """

    Z: Array
    X: Array
    activation: Activation


class AffineMap(NamedTuple):
    """A linear layer, ``x -> W x + b``."""

    W: Array
    b: Array | None


class Network(Protocol):
    """A network that tells its states."""

    def run(self, U: Any) -> tuple[Array, list[Record], Array]:
        """``(U, records, Y)``.

        The inputs (m, p) as they were read, the activations in the order of evaluation,
        the outputs (m, q).
        """
        ...


@dataclass(frozen=True, eq=False)
class Feedforward:
    """``x_l = phi_l(W_l x_(l-1) + b_l)``, ``y = W_L x_(L-1) + b_L``.

    A network as plain arrays.

    Parameters
    ----------
    layers : sequence of (W, b)
        W_l of shape (n_l, n_(l-1)), b_l of shape (n_l,) or None; the last pair is the
        output. At least two.
    activation : Activation or str, or a sequence of them
        One for all hidden layers, or one for each; by name if you like.

    Raises
    ------
    InputError
        If shapes or numbers do not fit.

    Examples
    --------
    >>> from pyidl import activations
    >>> layers = [(np.ones((3, 2)), None), (np.ones((1, 3)), np.zeros(1))]
    >>> net = Feedforward(layers, activations.relu)
    >>> read_chain(net).run(np.ones((5, 2)))[2][0].tolist()
    [6.0]
    """

    layers: tuple[AffineMap, ...]
    activation: tuple[Activation, ...]

    def __init__(
        self,
        layers: Iterable[Any],
        activation: Activation | str | Iterable[Activation | str],
    ) -> None:
        expect("layers", layers, Iterable, "give at least two pairs (W, b), where b may be None")
        expect(
            "activation",
            activation,
            (Activation, Iterable),
            "use one of pyidl.activations, or one for each hidden layer",
        )
        pairs = [
            pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else None for pair in layers
        ]
        if len(pairs) < 2 or None in pairs:
            raise InputError(
                f"layers has {len(pairs)} items; give at least two pairs (W, b), where b may be "
                "None"
            )
        single = isinstance(activation, (Activation, str))
        every: Any = [activation] * (len(pairs) - 1) if single else activation
        phis = tuple(map(as_activation, every))
        if len(phis) != len(pairs) - 1:
            raise InputError(
                f"{len(pairs)} layers have {len(pairs) - 1} activations between them; got "
                f"{len(phis)}: use pyidl.activations"
            )
        given = [a for pair in pairs for a in pair if a is not None]  # type: ignore[union-attr]
        owners = [a for a in given if is_array(a)]
        xp = namespace(*owners) if owners else np
        narrow = len(owners) == len(given) and all(a.dtype == xp.float32 for a in owners)
        dtype = "float32" if narrow else "float64"
        affine, width = [], None
        for i, (W, b) in enumerate(pairs):  # type: ignore[misc]
            W = backend.as_real(W, name=f"W of layer {i}", xp=xp, dtype=dtype)
            if b is not None:
                b = backend.as_real(b, name=f"b of layer {i}", xp=xp, dtype=dtype)
            if (
                W.ndim != 2
                or width not in (None, W.shape[1])
                or (b is not None and b.shape != W.shape[:1])
            ):
                raise InputError(
                    f"layer {i} has W of shape {W.shape} and b of shape "
                    f"{getattr(b, 'shape', None)}, the layer before it {width} outputs; "
                    "W must be (outputs, inputs), b (outputs,)"
                )
            affine.append(AffineMap(W, b))
            width = W.shape[0]
        object.__setattr__(self, "layers", tuple(affine))
        object.__setattr__(self, "activation", phis)


@dataclass(frozen=True, eq=False)
class Chain:
    """Linear layers, activations, implicit models and residual blocks of these.

    One after another, without an activation of the output.
    """

    layers: tuple[Layer, ...]

    def run(self, U: Any) -> tuple[Array, list[Record], Array]:
        """Layer by layer."""
        whole = Sequential(*self.layers)
        value: Any = backend.as_real(U, name="U", xp=whole.xp, dtype=whole.dtype)
        width = input_width(whole)
        if value.ndim != 2 or width not in (None, value.shape[1]) or value.shape[0] == 0:
            raise InputError(
                f"U has shape {value.shape}; the network takes (m, {width or 'p'}), one sample a "
                "row, m >= 1"
            )
        records: list[Record] = []
        return value, records, _through(self.layers, value, records)


def _through(layers: Iterable[Layer], value: Any, records: list[Record]) -> Any:
    """The value after all layers; states are recorded on the way."""
    for layer in layers:
        if isinstance(layer, Residual):
            value = value + _through(_flat(layer.layers), value, records)
        elif isinstance(layer, Linear):
            value = value @ layer.params["W"].T
            value = value + layer.params["b"] if layer.bias else value
        elif isinstance(layer, Pointwise):
            records.append(Record(value, layer.activation(value), layer.activation))
            value = records[-1].X
        elif isinstance(layer, ImplicitModel):
            value, pull = layer(value)
            records.append(Record(pull.forward.pre, pull.forward.value, layer.activation))
    return value


def _flat(layers: Iterable[Layer]) -> list[Layer]:
    """What computes something, not what it is grouped in; others are refused."""
    found: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Residual):
            _flat(layer.layers)
            found.append(layer)
        elif isinstance(layer, Sequential):
            found += _flat(layer.layers)
        elif isinstance(layer, (Linear, Pointwise, ImplicitModel)):
            found.append(layer)
        elif not isinstance(layer, Dropout):  # without a generator it does nothing
            raise InputError(
                f"{type(layer).__name__} has no states of its own to collect; use Linear, "
                "Residual, ImplicitModel and activations"
            )
    return found


def chain(layers: Iterable[Layer]) -> Chain:
    """Drop the activation of the output.

    y is what goes into it, the logits of a classifier.
    """
    kept = _flat(layers)
    kept = kept[:-1] if kept and isinstance(kept[-1], Pointwise) else kept
    if not _has_state(kept):
        raise InputError(
            "the network has no hidden activation, and so no state; it is the affine map y = D u + "
            "d already"
        )
    return Chain(tuple(kept))


def _has_state(layers: Iterable[Layer]) -> bool:
    return any(
        _has_state(layer.layers)
        if isinstance(layer, Sequential)
        else isinstance(layer, (Pointwise, ImplicitModel))
        for layer in layers
    )


def read_chain(network: Any) -> Chain:
    """A network of which every step is known."""
    if isinstance(network, Feedforward):
        dtype = backend.real_dtype(network.layers[0].W)
        layers: list[Layer] = [linear(*network.layers[0], dtype)]
        for phi, pair in zip(network.activation, network.layers[1:], strict=True):
            layers += [Pointwise(phi), linear(*pair, dtype)]
        return chain(layers)
    if is_perceptron(network):
        return chain(layers_of_perceptron(network))
    if isinstance(network, (ImplicitModel, Sequential)):
        return chain([network])
    raise InputError(
        f"network is {type(network).__name__}, whose layers are not known one by one; use "
        "Sequential or sim.Feedforward"
    )
