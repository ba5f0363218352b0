"""Training at tolerances of its own.

A twin of the model takes the steps, and the model gets them.

The twin has the same parameters and other solvers, so that whoever looks at the model
between two epochs, be it an evaluation or a callback, sees its own tolerances.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyidl.errors import InputError, expect, is_real
from pyidl.layers.base import Layer
from pyidl.solvers.loop import resolve_tol

__all__ = ["Tolerances", "Twin", "read_tol"]

Tolerances = tuple[float, float]
"""Of the forward solves, and of the adjoint ones."""


def read_tol(tol: Any, model: Layer) -> Tolerances | None:
    """Return the pair as floats, or None.

    Refuse what no solve of the model could meet.
    """
    if tol is None:
        return None
    pair = tuple(tol) if isinstance(tol, (tuple, list)) else ()
    if len(pair) != 2 or not all(is_real(value) and 0 < value < 1 for value in pair):
        wanted = "a pair (forward, adjoint) of numbers between 0 and 1, or None for the model's own"
        raise InputError(f"tol is {tol!r}; {wanted}")
    forward, adjoint = (float(value) for value in pair)
    like = next(iter(model.params.values()), None)
    if like is not None:  # without parameters there is no solve
        resolve_tol(min(forward, adjoint), like, model.xp)
    return forward, adjoint


@dataclass(frozen=True, eq=False)
class Twin:
    """A model, and the same at other tolerances.

    Attributes
    ----------
    layer : Layer
        The twin: the model itself without tolerances, or where no solver is to be
        changed.
    """

    layer: Layer
    pairs: tuple[tuple[Layer, Layer, tuple[str, ...]], ...] = ()
    """A layer of the model, that of the twin, and what both read from parameters."""

    @classmethod
    def of(cls, model: Layer, tol: Tolerances | None) -> Twin:
        """The twin of a model."""
        if tol is None:
            return cls(model)
        layer = model.with_tol(tol)
        expect("model.with_tol(tol)", layer, type(model), "it returns a layer of the same class")
        both = zip(model._read(model.params), layer._read(layer.params), strict=True)
        return cls(layer, tuple((mine, other, tuple(kept)) for (mine, kept), (other, _) in both))

    @contextmanager
    def learning(self) -> Iterator[Layer]:
        """Lend the twin.

        The model has what it has learnt afterwards, also after an error.
        """
        for mine, other, names in self.pairs:
            _share(mine, other, names)
        try:
            yield self.layer
        finally:
            for mine, other, names in self.pairs:
                _share(other, mine, names)


def _share(source: Layer, target: Layer, names: tuple[str, ...]) -> None:
    """Hand over what stands there already.

    Nothing is copied, and memory cannot run out.
    """
    for name in names:
        object.__setattr__(target, name, source.__dict__[name])
