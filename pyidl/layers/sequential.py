"""Layers one after another, and the chain rule.

``Y = f_k(... f_1(U))``, pulled back from the last to the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from pyidl.activations import Activation
from pyidl.activations.names import as_activation
from pyidl.arrays import backend
from pyidl.errors import InputError
from pyidl.layers.base import Call, Layer
from pyidl.layers.composite import Composite, CompositePullback
from pyidl.layers.linear import Pointwise
from pyidl.solvers.solution import OnFail
from pyidl.typing import Grads

__all__ = ["Sequential"]

_Part: TypeAlias = Layer | Activation | str


@dataclass(frozen=True, repr=False)
class SequentialPullback(CompositePullback):
    """The pullbacks of the layers, the first layer's first."""

    @property
    def reads(self) -> Mapping[str, Any]:
        """Those of the last layer."""
        name, last = list(self.pulls.items())[-1]
        return {f"{name}.{key}": seen for key, seen in last.reads.items()}

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """The chain rule.

        The first layer forms its input gradient only if it is wanted.
        """
        grads: Grads = {}
        for name, pull in reversed(list(self.pulls.items())):
            dY, own = pull.rule(dY, inputs or name != "0")
            grads |= {f"{name}.{key}": g for key, g in own.items()}
        return dY, grads


@dataclass(eq=False, repr=False)
class Sequential(Composite):
    """``Y = f_k(... f_1(U))``.

    The parameters are those of the layers with their position before the name: "0.A",
    "2.W". They belong to the layers, which are shared with the caller: assigning
    `params` assigns theirs.

    Parameters
    ----------
    *layers : Layer, Activation or str
        At least one, or a list of them; all with parameters in one dtype and on one
        device. An activation may be given by its name. A `Sequential` may contain
        another.

    Raises
    ------
    InputError
        If there is no layer, one stands twice, or widths, dtypes or devices do not fit.

    Examples
    --------
    >>> from pyidl import ImplicitModel, Linear, Sequential
    >>> last = ImplicitModel(5, 3, 10, rng=0)
    >>> model = Sequential([Linear(8, 5, rng=0), "tanh", last])
    >>> Y, pull = model(np.ones((4, 8)))
    >>> dU, grads = pull(np.ones((4, 3)))
    >>> sorted(grads)
    ['0.W', '0.b', '2.A', '2.B', '2.C', '2.D', '2.b', '2.d']
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: _Part | Sequence[_Part]) -> None:
        listed = [isinstance(given, (list, tuple)) for given in layers]
        if any(listed) and len(layers) > 1:
            raise InputError(
                f"{type(self).__name__} has been given layers and a list of layers; "
                "give all of them in one list, or each as an argument"
            )
        parts: Any = layers[0] if any(listed) else layers
        self.layers = tuple(
            Pointwise(as_activation(part, f"layer {i} of {type(self).__name__}"))
            if isinstance(part, (Activation, str))
            else part
            for i, part in enumerate(parts)
        )
        self.__post_init__()

    @property
    def parts(self) -> Mapping[str, Layer]:
        """The layers by their positions."""
        return {str(i): layer for i, layer in enumerate(self.layers)}

    @classmethod
    def of(cls, parts: Mapping[str, Layer]) -> Self:
        """The layers in the order of the mapping."""
        return cls(*parts.values())

    def _validate(self) -> None:
        if not self.layers:
            raise InputError(f"{type(self).__name__} needs at least one layer")
        super()._validate()
        width = None
        for i, layer in enumerate(self.layers):
            needs, gives = layer._widths()
            if width is not None and needs is not None and needs != width:
                raise InputError(
                    f"layer {i} of {type(self).__name__} takes {needs} inputs, "
                    f"the layers before it give {width}"
                )
            width = gives or width

    def _widths(self) -> tuple[int | None, int | None]:
        widths = [layer._widths() for layer in self.layers]
        return widths[0][0], next((gives for _, gives in reversed(widths) if gives), None)

    def _admit(self, U: Any) -> Any:
        xp, first = self.xp, self.layers[0]  # xp refuses layers that live on several devices
        if first.params or not self.params:
            return first._admit(U)  # which knows whether it takes real numbers or tokens
        U = backend.as_real(U, name="U", xp=xp, dtype=self.dtype)
        self._check(U)
        return U

    def _check(self, U: Any) -> None:
        self.layers[0]._check(U)

    def _forward(self, U: Any, call: Call) -> tuple[Any, SequentialPullback]:
        pulls, Y = {}, U
        for name, layer in self.parts.items():
            layer._check(Y)
            Y, pulls[name] = layer._forward(Y, call)
        return Y, SequentialPullback(Y, pulls)

    def start(self, m: int) -> tuple[Any, ...]:
        """The caches of the layers."""
        return tuple(layer.start(m) for layer in self.layers)

    def step(
        self, u: Any, cache: tuple[Any, ...], *, on_fail: OnFail = "raise"
    ) -> tuple[Any, tuple[Any, ...]]:
        """One token through all layers.

        Examples
        --------
        >>> from pyidl import Embedding, Linear, Sequential
        >>> model = Sequential(Embedding(5, 8, rng=0), Linear(8, 5, rng=1))
        >>> tokens, cache = np.array([[0, 3, 1]]), model.start(1)
        >>> for t in range(3):
        ...     y, cache = model.step(tokens[:, t], cache)
        >>> bool(np.allclose(y, model.predict(tokens)[:, -1]))
        True
        """
        if not (isinstance(cache, tuple) and len(cache) == len(self.layers)):
            raise InputError(f"cache is {cache!r}; give what start(m) or the last step returned")
        after = []
        for layer, own in zip(self.layers, cache, strict=True):
            u, own = layer.step(u, own, on_fail=on_fail)
            after.append(own)
        return u, tuple(after)

    def replace(self, **changes: Any) -> Self:
        """Return one of copies of the layers or of the given ``layers=``.

        Raises
        ------
        InputError
            If another name is given, or the layers do not fit.
        """
        unknown = ", ".join(sorted(set(changes) - {"layers"}))
        if unknown:
            raise InputError(f"{type(self).__name__} has no option {unknown}; it has layers")
        return type(self)(*changes.get("layers", [layer.replace() for layer in self.layers]))

    def __repr__(self) -> str:
        lines = "\n".join(f"{name}: {layer!r}" for name, layer in self.parts.items()).replace(
            "\n", "\n  "
        )
        return f"{type(self).__name__}(\n  {lines}\n)"
