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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from pyidl import activations
from pyidl.activations import Activation
from pyidl.activations.names import as_activation
from pyidl.arrays import backend
from pyidl.arrays.backend import is_array, namespace
from pyidl.errors import InputError, expect
from pyidl.layers import Dropout, ImplicitModel, Linear, Pointwise, Residual, Sequential
from pyidl.typing import Array, Namespace

__all__ = [
    "AffineMap",
    "Branch",
    "Chain",
    "Feedforward",
    "Network",
    "Record",
    "Step",
    "biased",
    "chain",
    "is_perceptron",
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
class Branch:
    """Steps around which the value is carried, and to whose result it is added."""

    steps: tuple[Step, ...]


Step: TypeAlias = "AffineMap | Activation | ImplicitModel | Branch"


@dataclass(frozen=True, eq=False)
class Chain:
    """Affine maps, activations and implicit models, one after another.

    Without an activation of the output.
    """

    steps: tuple[Step, ...]
    xp: Namespace
    dtype: str

    def run(self, U: Any) -> tuple[Array, list[Record], Array]:
        """Step by step."""
        value: Any = backend.as_real(U, name="U", xp=self.xp, dtype=self.dtype)
        width = self.input_dim
        if value.ndim != 2 or width not in (None, value.shape[1]) or value.shape[0] == 0:
            raise InputError(
                f"U has shape {value.shape}; the network takes (m, {width or 'p'}), one sample a "
                "row, m >= 1"
            )
        records: list[Record] = []
        return value, records, _through(self.steps, value, records)

    @property
    def input_dim(self) -> int | None:
        """The number of inputs; None where only activations tell it."""
        for step in _flat(self.steps):
            if isinstance(step, ImplicitModel):
                return step.input_dim
            if isinstance(step, AffineMap):
                return int(step.W.shape[1])
        return None


def _through(steps: tuple[Step, ...], value: Any, records: list[Record]) -> Any:
    """The value after all steps; states are recorded on the way."""
    for step in steps:
        if isinstance(step, Activation):
            records.append(Record(value, step(value), step))
            value = records[-1].X
        elif isinstance(step, ImplicitModel):
            value, pull = step(value)
            records.append(Record(pull.forward.pre, pull.forward.value, step.activation))
        elif isinstance(step, Branch):
            value = value + _through(step.steps, value, records)
        else:
            value = value @ step.W.T
            value = value if step.b is None else value + step.b
    return value


def _flat(steps: tuple[Step, ...]) -> Iterator[AffineMap | Activation | ImplicitModel]:
    """All steps, those of branches too."""
    for step in steps:
        if isinstance(step, Branch):
            yield from _flat(step.steps)
        else:
            yield step


def biased(steps: tuple[Step, ...]) -> bool:
    """Whether some affine map has a b."""
    return any(isinstance(step, AffineMap) and step.b is not None for step in _flat(steps))


def chain(steps: Iterable[Step], xp: Namespace, dtype: str) -> Chain:
    """Drop the activation of the output.

    y is what goes into it, the logits of a classifier.
    """
    kept = tuple(steps)
    kept = kept[:-1] if kept and isinstance(kept[-1], Activation) else kept
    if not any(isinstance(step, (Activation, ImplicitModel)) for step in _flat(kept)):
        raise InputError(
            "the network has no hidden activation, and so no state; it is the affine map y = D u + "
            "d already"
        )
    return Chain(kept, xp, dtype)


def is_perceptron(network: Any) -> bool:
    """Whether it is scikit-learn's MLPClassifier or MLPRegressor, or looks like one."""
    return hasattr(network, "hidden_layer_sizes") and hasattr(network, "activation")


def read_chain(network: Any) -> Chain:
    """A network of which every step is known."""
    if isinstance(network, Feedforward):
        steps: list[Step] = [network.layers[0]]
        for phi, layer in zip(network.activation, network.layers[1:], strict=True):
            steps += [phi, layer]
        W = network.layers[0].W
        return chain(steps, namespace(W), backend.real_dtype(W))
    if is_perceptron(network):
        return read_chain(_from_perceptron(network))
    if isinstance(network, (ImplicitModel, Sequential)):
        return chain(_of_layers(network), network.xp, network.dtype)
    raise InputError(
        f"network is {type(network).__name__}, whose layers are not known one by one; use "
        "Sequential or sim.Feedforward"
    )


def _of_layers(layer: Any) -> list[Step]:
    if isinstance(layer, Residual):
        return [Branch(tuple(step for part in layer.layers for step in _of_layers(part)))]
    if isinstance(layer, Dropout):  # without a generator it does nothing
        return []
    if isinstance(layer, Sequential):
        return [step for part in layer.layers for step in _of_layers(part)]
    if isinstance(layer, Pointwise):
        return [layer.activation]
    if isinstance(layer, Linear):
        return [AffineMap(layer.params["W"], layer.params.get("b"))]
    if isinstance(layer, ImplicitModel):
        return [layer]
    raise InputError(
        f"{type(layer).__name__} has no states of its own to collect; use Linear, Residual, "
        "ImplicitModel and activations"
    )


PERCEPTRON = {
    "identity": activations.identity,
    "logistic": activations.sigmoid,
    "relu": activations.relu,
    "tanh": activations.tanh,
}
"""scikit-learn's names of activations."""


def _from_perceptron(network: Any) -> Feedforward:
    """scikit-learn's ``coefs_`` multiply from the right."""
    if not hasattr(network, "coefs_"):
        raise InputError(f"{type(network).__name__} is not fitted; call fit(X, y) first")
    if network.activation not in PERCEPTRON:
        raise InputError(
            f"the activation {network.activation!r} of {type(network).__name__} is not one of "
            f"{', '.join(PERCEPTRON)}"
        )
    layers = [(W.T, b) for W, b in zip(network.coefs_, network.intercepts_, strict=True)]
    return Feedforward(layers, PERCEPTRON[network.activation])
