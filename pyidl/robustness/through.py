r"""Sets through layers: what comes out of a layer for all inputs of a form.

    Linear         W u + b                    the form's own map
    Pointwise      phi(u)                     lines beside phi: D u + k, off by rho
    ImplicitModel  C x + D u + d              `pyidl.robustness.states`
    Sequential     one after another
    Residual       u + f(u)                   columns of u and f(u) cancel
    Dropout        u                          it draws nothing where it predicts
    ImplicitRNN, Bidirectional                `pyidl.robustness.recurrent`

Without rounds each layer hands on a box alone: sound, but what entries have in common
is lost at every layer. Only at the last one forms are kept in either case, so that
differences of outputs are those of rows: what two rows of C share cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyidl.certify.forms import Form
from pyidl.errors import InputError
from pyidl.layers import (
    Dropout,
    ImplicitModel,
    Layer,
    Linear,
    Pointwise,
    Residual,
    Sequential,
)
from pyidl.layers.composite import Composite
from pyidl.layers.timeline import Timeline
from pyidl.robustness.slopes import lines, range_of
from pyidl.robustness.states import States, exactly

__all__ = ["Walk", "refuse"]

NOT_COVERED = {
    "LayerNorm": "of a norm over its entries nothing is known but |y_i| <= (k - 1)^(1/2)",
    "Embedding": "tokens have no box; give bounds of what is behind it",
    "ImplicitAttentionHead": "a product of two bounded quantities has no slopes",
    "ImplicitTransformerBlock": "its attention multiplies two bounded quantities",
    "WorstCase": "give its model",
}
"""Why."""


def refuse(layer: Layer, name: str = "") -> None:
    """Refuse what is not covered, by its name and with the reason."""
    kind = type(layer)  # of a class of one's own nothing is known, whatever it is made of
    recurrent = kind.__module__.startswith("pyidl.recurrent.")
    if isinstance(layer, Composite) and (kind in (Sequential, Residual) or recurrent):
        for key, part in layer.parts.items():
            refuse(part, f"{name}.{key}" if name else key)
    elif not (kind in (Linear, Pointwise, Dropout, ImplicitModel) or recurrent):
        why = NOT_COVERED.get(kind.__name__, "nothing is known of what it does to a box")
        where = f" (layer {name})" if name else ""
        raise InputError(f"bounds do not cover {kind.__name__}{where}: {why}")


@dataclass(frozen=True)
class Walk:
    """Through a model, for m samples.

    Attributes
    ----------
    rounds : int
        Of affine forms at every fixed point; 0 for boxes.
    line : Timeline or None
        The steps that sequences have.
    found : dict
        By the names of layers: the outputs of each, and the states and pre-activations
        of those with a fixed point. That of the model has the name "".
    """

    rounds: int
    line: Timeline | None = None
    found: dict[str, tuple[Form, ...]] = field(default_factory=dict)

    @property
    def out(self) -> Form:
        """The outputs of the model."""
        return self.found[""][0]

    def through(self, layer: Layer, u: Form, name: str = "") -> Form:
        """The form of the outputs, of a layer that is covered."""
        answer = self._of(layer, u, name)
        self.found[name] = tuple(form.boxed() for form in answer) if name else answer
        return answer[0]

    def _of(self, layer: Any, u: Form, name: str) -> tuple[Form, ...]:
        kind = type(layer)
        if kind in (Sequential, Residual):
            return (self._chain(layer, u, name),)
        if kind is Dropout:
            return (u,)
        if kind is Pointwise:
            phi = layer.activation
            return (u.scaled(*lines(phi, u.lo, u.hi), *range_of(phi, u.lo, u.hi)),)
        params = exactly(layer)
        if kind is Linear:
            return (u.linear(params["W"], params.get("b", 0.0)),)
        if kind is ImplicitModel:
            return States.of(layer, params).answered(u, self.rounds)
        from pyidl.robustness import recurrent  # there, since one of its layers is

        prefix = f"{name}." if name else ""
        return recurrent.through(layer, u, self.rounds, self.line, self.through, prefix)

    def _chain(self, layer: Sequential, u: Form, name: str) -> Form:
        around = type(layer) is Residual
        v = u = u.promoted() if around and self.rounds else u
        for i, part in enumerate(layer.layers):
            v = v.boxed() if i and not self.rounds else v
            v = self.through(part, v, f"{name}.{i}" if name else str(i))
        return u.plus(v) if around else v
