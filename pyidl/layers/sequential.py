"""Layers one after another, and the chain rule: ``Y = f_k(... f_1(U))``, pulled back from the last to the first."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from pyidl import backend
from pyidl.activations import Activation
from pyidl.certificate import Certificate
from pyidl.errors import InputError
from pyidl.layers.base import Layer, Pullback
from pyidl.layers.linear import Pointwise
from pyidl.solvers import Solution
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array, Grads, Params, Rng

__all__ = ["Sequential"]


@dataclass(frozen=True, repr=False)
class SequentialPullback(Pullback):
    """The pullbacks of the layers, the first layer's first."""

    pulls: tuple[Pullback, ...]

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solves of all layers."""
        return tuple(s for pull in self.pulls for s in pull.solutions)

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """The chain rule; the first layer forms its input gradient only if it is wanted."""
        grads: Grads = {}
        for i in range(len(self.pulls) - 1, -1, -1):
            dY, own = self.pulls[i].rule(dY, inputs or i > 0)
            grads |= {f"{i}.{key}": g for key, g in own.items()}
        return dY, grads


@dataclass(eq=False, repr=False)
class Sequential(Layer):
    """``Y = f_k(... f_1(U))``.

    The parameters are those of the layers with their position before the name: "0.A", "2.W". They belong to the layers, which
    are shared with the caller: assigning `params` assigns theirs.

    Parameters
    ----------
    *layers : Layer or Activation
        At least one; all with parameters in one dtype and on one device. A `Sequential` may contain another.

    Examples
    --------
    >>> from pyidl import ImplicitModel, Linear, Sequential, activations
    >>> model = Sequential(Linear(8, 5, rng=0), activations.tanh, ImplicitModel(5, 3, 10, rng=0))
    >>> Y, pull = model(np.ones((4, 8)))
    >>> dU, grads = pull(np.ones((4, 3)))
    >>> sorted(grads)
    ['0.W', '0.b', '2.A', '2.B', '2.C', '2.D', '2.b', '2.d']
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer | Activation) -> None:
        self.layers = tuple(Pointwise(f) if isinstance(f, Activation) else f for f in layers)
        self._validate()
        object.__setattr__(self, "_params", MappingProxyType({}))  # nothing of its own; from here on it is sealed

    def _validate(self) -> None:
        if not self.layers:
            raise InputError("Sequential needs at least one layer")
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise InputError(f"layer {i} of Sequential is {layer!r}; a Layer or an Activation is needed")
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise InputError("one layer stands twice in Sequential, so that it would be stepped twice; use layer.replace() for a copy")
        dtypes = sorted({layer.dtype for layer in self.layers if layer.params})
        if len(dtypes) > 1:
            raise InputError(f"the layers of Sequential compute in {' and '.join(dtypes)}; bring them together with layer.astype(...)")
        self.dtype = dtypes[0] if dtypes else "float64"
        width = None
        for i, layer in enumerate(self.layers):
            needs, gives = layer._widths()
            if width is not None and needs is not None and needs != width:
                raise InputError(f"layer {i} of Sequential takes {needs} inputs, the layers before it give {width}")
            width = gives or width

    def _widths(self) -> tuple[int | None, int | None]:
        widths = [layer._widths() for layer in self.layers]
        return widths[0][0], next((gives for _, gives in reversed(widths) if gives), None)

    # ------------------------------------------------------------------------------- the parameters are the layers' own

    @property
    def params(self) -> Params:
        """All parameters: ``{"0.W": ..., "2.A": ...}``."""
        return MappingProxyType(_joined(layer.params for layer in self.layers))

    @params.setter
    def params(self, new: Mapping[str, Any]) -> None:
        self._store(self._checked(new))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return _joined(layer._shapes() for layer in self.layers)

    def support(self, name: str) -> np.ndarray | None:
        """That of the layer whose parameter it is."""
        i, _, key = name.partition(".")
        return self.layers[int(i)].support(key)

    def _store(self, checked: Params) -> None:
        for layer, own in zip(self.layers, self._split(checked), strict=True):
            layer._store(own)

    def _split(self, params: Params) -> list[Params]:
        """The parameters of each layer, under its own names."""
        return [MappingProxyType({key: params[f"{i}.{key}"] for key in layer._shapes()}) for i, layer in enumerate(self.layers)]

    def project(self, params: Params) -> dict[str, Array]:
        """Project those of every layer."""
        return _joined(layer.project(own) for layer, own in zip(self.layers, self._split(params), strict=True))

    def certificate(self, explain: bool = False) -> Certificate:
        """The weakest of the layers' certificates: all fixed points are unique if that one is proven."""
        i, weakest = max(
            ((i, layer.certificate(explain)) for i, layer in enumerate(self.layers)), key=lambda c: (not c[1].proven, c[1].contraction)
        )
        return dataclasses.replace(weakest, reason=f"layer {i}: {weakest.reason}")

    # ---------------------------------------------------------------------------------------------------- the chain

    def _admit(self, U: Any) -> Any:
        if any(layer.params for layer in self.layers):
            U = backend.as_real(U, name="U", xp=self.xp, dtype=self.dtype)
            self._check(U)
            return U
        return self.layers[0]._admit(U)

    def _check(self, U: Any) -> None:
        self.layers[0]._check(U)

    def _forward(self, U: Any, rng: Rng, on_fail: OnFail) -> tuple[Any, SequentialPullback]:
        generator = rng if rng is None else np.random.default_rng(rng)
        pulls, Y = [], U
        for layer in self.layers:
            layer._check(Y)
            Y, pull = layer._forward(Y, generator, on_fail)
            pulls.append(pull)
        return Y, SequentialPullback(Y, tuple(pulls))

    # ---------------------------------------------------------------------------------------------- copies that differ

    def to(self, device: str) -> Sequential:
        """Every layer on another device."""
        return Sequential(*(layer.to(device) for layer in self.layers))

    def astype(self, dtype: str) -> Sequential:
        """Every layer in another dtype."""
        return Sequential(*(layer.astype(dtype) for layer in self.layers))

    def with_tol(self, tol: float | None) -> Sequential:
        """Every layer with another tolerance."""
        return Sequential(*(layer.with_tol(tol) for layer in self.layers))

    def replace(self, **changes: Any) -> Sequential:
        """Return copies of the layers in a new `Sequential`, or that of the given ``layers=``."""
        if set(changes) - {"layers"}:
            raise InputError(f"Sequential has no option {', '.join(sorted(set(changes) - {'layers'}))}; it has layers")
        return Sequential(*changes.get("layers", [layer.replace() for layer in self.layers]))

    def __reduce__(self) -> tuple[Any, ...]:
        return Sequential, self.layers

    def __deepcopy__(self, memo: dict[int, Any]) -> Sequential:
        return Sequential(*(copy.deepcopy(layer, memo) for layer in self.layers))

    def __repr__(self) -> str:
        return "Sequential(\n" + "".join(f"  {i}: {layer!r}\n" for i, layer in enumerate(self.layers)) + ")"


def _joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``{"0.A": ..., "1.W": ...}``."""
    return {f"{i}.{key}": value for i, part in enumerate(parts) for key, value in part.items()}
