"""Layers made of layers.

The parameters are those of the parts, with the part's name before them:

    params = {"0.W": ..., "2.A": ...}

Nothing is stored twice: the parts own their parameters, and assigning `params` assigns
theirs. A subclass says which parts it has and how to build itself from others; its
`_forward` is its own. It may have `options` beside its parts.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from pyidl.arrays import backend
from pyidl.errors import InputError, expect
from pyidl.layers.base import Call, Layer, Pullback, finite_output
from pyidl.layers.timeline import Timeline
from pyidl.solvers.solution import OnFail, Solution
from pyidl.typing import Array, Grads, Params, Rng, Tol
from pyidl.wellposed.certificate import Certificate

__all__ = ["Composite", "joined"]


@dataclass(frozen=True, repr=False)
class CompositePullback(Pullback):
    """The pullbacks of the parts.

    What is returned for the inputs mirrors them: dU, or ``(dU, None)`` where lengths
    were given.
    """

    pulls: Mapping[str, Pullback]
    lengths: bool = field(default=False, kw_only=True)

    def __call__(self, dY: Any, inputs: bool = True) -> tuple[Any, Grads]:
        """Return ``(dU, grads)``, as for every `Pullback`."""
        dU, grads = super().__call__(dY, inputs)
        return ((dU, None) if self.lengths and inputs else dU), grads

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solves of all parts."""
        return tuple(s for pull in self.pulls.values() for s in pull.solutions)

    @property
    def converged(self) -> np.ndarray:
        """Which samples converged in all parts."""
        return np.asarray(np.all([pull.converged for pull in self.pulls.values()], axis=0))


class Composite(Layer):
    """Base class of layers that are made of layers.

    A subclass has `parts`, `of`, `_check` and `_forward`; its constructor ends with
    `__post_init__`.
    """

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Layer]:
        """The layers by name."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What else there is to choose, by name: such as files may hold."""
        return {}

    @classmethod
    @abstractmethod
    def of(cls, parts: Mapping[str, Any]) -> Self:
        """The layer that has these parts, and these options."""

    def __post_init__(self, rng: Rng = None) -> None:
        """Validate the parts; nothing is drawn, since all parameters are theirs."""
        self._validate()
        object.__setattr__(self, "_params", MappingProxyType({}))

    def _validate(self) -> None:
        """The parts are different layers of one dtype."""
        what = type(self).__name__
        for name, layer in self.parts.items():
            cure = "a Layer, an Activation or its name is needed"
            expect(f"layer {name} of {what}", layer, Layer, cure)
        parts = list(self.parts.values())
        leaves = [leaf for leaf in _leaves(self) if leaf.params]
        if any(len({id(layer) for layer in some}) < len(some) for some in (parts, leaves)):
            raise InputError(
                f"one layer stands twice in {what}, so that it would be stepped twice; "
                "use layer.replace() for a copy"
            )
        dtypes = sorted({layer.dtype for layer in parts if layer.params})
        if len(dtypes) > 1:
            raise InputError(
                f"the layers of {what} compute in {' and '.join(dtypes)}; "
                "bring them together with layer.astype(...)"
            )
        self.dtype = dtypes[0] if dtypes else "float64"

    # ------------------------------------------------ the parameters are the parts' own

    @property
    def params(self) -> Params:
        """All parameters: ``{"0.W": ..., "2.A": ...}``."""
        return MappingProxyType(joined((name, layer.params) for name, layer in self.parts.items()))

    @params.setter
    def params(self, new: Mapping[str, Any]) -> None:
        self._store(self._checked(new))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return joined((name, layer._shapes()) for name, layer in self.parts.items())

    def support(self, name: str) -> np.ndarray | None:
        """That of the layer whose parameter it is."""
        part, _, key = name.partition(".")
        return self.parts[part].support(key)

    def _read(self, checked: Params) -> list[tuple[Layer, dict[str, Any]]]:
        return [
            kept
            for name, own in self._split(checked).items()
            for kept in self.parts[name]._read(own)
        ]

    def _split(self, params: Params) -> dict[str, Params]:
        """The parameters of each layer, under its own names."""
        return {
            name: MappingProxyType({key: params[f"{name}.{key}"] for key in layer._shapes()})
            for name, layer in self.parts.items()
        }

    def project(self, params: Params) -> dict[str, Array]:
        """Project those of every layer."""
        return joined(
            (name, self.parts[name].project(own)) for name, own in self._split(params).items()
        )

    def certificate(self, explain: bool = False) -> Certificate:
        """The weakest of the layers' certificates.

        All fixed points are unique if that one is proven.
        """
        name, weakest = max(
            ((name, layer.certificate(explain)) for name, layer in self.parts.items()),
            key=lambda c: (not c[1].proven, c[1].contraction),
        )
        return dataclasses.replace(weakest, reason=f"layer {name}: {weakest.reason}")

    def _outline(self, part: str, certify: bool) -> tuple[list[tuple[str, ...]], list[str]]:
        rows: list[tuple[str, ...]] = [(part, type(self).__name__, "", "", "")]
        notes: list[str] = []
        for name, layer in self.parts.items():
            found = layer._outline(f"{part}.{name}" if part else name, certify)
            rows += found[0]
            notes += found[1]
        return rows, notes

    @property
    def takes_lengths(self) -> bool:
        """Whether some part does."""
        return any(layer.takes_lengths for layer in self.parts.values())

    # ----------------------------------------------------------------------- calling it

    @abstractmethod
    def _forward(self, U: Any, call: Call) -> tuple[Any, CompositePullback]: ...

    def __call__(
        self, U: Any, lengths: Any = None, *, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, CompositePullback]:
        """Return ``(Y, pullback)``.

        As for every `Layer`; and for sequences of several lengths, where a part takes
        those:

        Parameters
        ----------
        lengths : array of integers, shape (m,), or of booleans, shape (m, T), optional
            How many steps each sequence of U, (m, T, ...), has, at least 1; or which.
            The pullback then returns ``(dU, None)``.
        """
        U = backend.own(self._admit(U), U)
        line = self._line(U, lengths)
        call = Call(None if rng is None else backend.as_generator(rng), on_fail, line)
        Y, pull = self._forward(U, call)
        return finite_output(Y, on_fail), dataclasses.replace(pull, lengths=lengths is not None)

    def predict(
        self,
        U: Any,
        lengths: Any = None,
        *,
        batch_size: int | None = None,
        on_fail: OnFail = "raise",
    ) -> Any:
        """Return Y alone, in batches of at most `batch_size` rows.

        Parameters
        ----------
        U, lengths, on_fail
            As in a call.
        batch_size : int, optional
            A number to choose where memory matters; all rows at once if left out.

        Examples
        --------
        >>> import numpy as np
        >>> from pyidl import Linear, Sequential
        >>> Sequential(Linear(3, 2, rng=0)).predict(np.ones((5, 3)), batch_size=2).shape
        (5, 2)
        """
        U = self._admit(U)
        return self._in_batches(U, batch_size, Call(on_fail=on_fail, line=self._line(U, lengths)))

    def _line(self, U: Any, lengths: Any) -> Timeline | None:
        if lengths is None:
            return None
        if not self.takes_lengths or U.ndim < 2:
            raise InputError(
                f"no layer of {type(self).__name__} takes the lengths of sequences; leave them out"
            )
        return Timeline.read(lengths, U.shape[0], U.shape[1])

    # --------------------------------------------------------------- copies that differ

    def _each(self, change: Callable[[Layer], Layer]) -> Self:
        changed = {name: change(layer) for name, layer in self.parts.items()}
        return self.of({**changed, **self.options})

    def at_step(self, count: int) -> Self:
        """The layer of the parts as they are then; itself if none changes."""
        now = {name: layer.at_step(count) for name, layer in self.parts.items()}
        same = all(now[name] is layer for name, layer in self.parts.items())
        return self if same else self.of({**now, **self.options})

    def to(self, device: str) -> Self:
        """Every layer on another device."""
        return self._each(lambda layer: layer.to(device))

    def astype(self, dtype: str) -> Self:
        """Every layer in another dtype."""
        return self._each(lambda layer: layer.astype(dtype))

    def with_tol(self, tol: Tol) -> Self:
        """Every layer with another tolerance, or a pair (forward, adjoint)."""
        return self._each(lambda layer: layer.with_tol(tol))

    def replace(self, **changes: Any) -> Self:
        """Return a layer of copies of the parts, some of them exchanged by name.

        So are its options, if it has any.
        """
        known = {**self.parts, **self.options}
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError(
                f"{type(self).__name__} has no part {', '.join(unknown)}; it has {', '.join(known)}"
            )
        copies = {k: part.replace() for k, part in self.parts.items() if k not in changes}
        return self.of({**known, **copies, **changes})

    def _holding(self, params: Mapping[str, Any]) -> Self:
        own = self._split(params)
        held = {name: layer._holding(own[name]) for name, layer in self.parts.items()}
        return self.of({**held, **self.options})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, ({**self.parts, **self.options},)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.of(copy.deepcopy({**self.parts, **self.options}, memo))


def _leaves(layer: Layer) -> list[Layer]:
    """The layers that are not made of others, however deep they are."""
    if not isinstance(layer, Composite):
        return [layer]
    return [leaf for part in layer.parts.values() for leaf in _leaves(part)]


def joined(parts: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """``{"0.A": ..., "1.W": ...}``."""
    return {f"{name}.{key}": value for name, part in parts for key, value in part.items()}
