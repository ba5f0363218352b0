"""Both directions of time: ``Y_t = [f(U)_t, g(U reversed)_t reversed]``.

Reversal is a permutation that is its own inverse, so that it is its own transpose too:
gradients are reversed as the values are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.errors import InputError
from pyidl.layers.base import Call, Layer
from pyidl.layers.composite import Composite, CompositePullback, joined
from pyidl.layers.timeline import Timeline
from pyidl.typing import Grads

__all__ = ["Bidirectional"]


@dataclass(frozen=True, repr=False)
class BidirectionalPullback(CompositePullback):
    """The pullbacks of the two layers."""

    line: Timeline
    width: int

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """``dU = f'(dY_1) + reversed g'(dY_2 reversed)``."""
        dY2 = dY[..., self.width :]
        dU1, of_ahead = self.pulls["ahead"].rule(dY[..., : self.width], inputs)
        dU2, of_back = self.pulls["back"].rule(
            self.line.reverse(dY2) if dY.ndim == 3 else dY2, inputs
        )
        grads = joined([("ahead", of_ahead), ("back", of_back)])
        return (dU1 + self.line.reverse(dU2) if inputs else None), grads


@dataclass(eq=False, repr=False)
class Bidirectional(Composite):
    """``Y_t = [f(U)_t, g(U reversed)_t reversed]``.

    Two layers, one in either direction.

    Where f and g give a single output, that of the last step, ``Y = [f(U)_T, g(U
    reversed)_T]``. With lengths, the steps of every sequence are reversed among
    themselves.

    Parameters
    ----------
    ahead, back : Layer
        f and g: two recurrent layers, or chains of them; with or without an output for
        every step, but both alike.

    Raises
    ------
    InputError
        If they differ in the width of their inputs, or, in a call, in the shape of
        their outputs but for the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import Bidirectional, ImplicitRNN
    >>> ahead = ImplicitRNN(3, 2, 5, 8, return_sequences=True, rng=0)
    >>> model = Bidirectional(ahead, ahead.replace())
    >>> Y, pull = model(np.ones((4, 7, 3)), lengths=[7, 3, 1, 5])
    >>> (dU, _), grads = pull(np.ones((4, 7, 4)))
    >>> Y.shape, dU.shape, "back.A" in grads
    ((4, 7, 4), (4, 7, 3), True)
    """

    ahead: Layer
    back: Layer

    @property
    def parts(self) -> Mapping[str, Layer]:
        """The two layers."""
        return {"ahead": self.ahead, "back": self.back}

    @classmethod
    def of(cls, parts: Mapping[str, Layer]) -> Bidirectional:
        """The layer of these two."""
        return Bidirectional(**parts)

    def _validate(self) -> None:
        super()._validate()
        one, other = (layer._widths()[0] for layer in (self.ahead, self.back))
        if one is not None and other is not None and one != other:
            raise InputError(
                "the layers of Bidirectional read the same sequence, "
                f"but take {one} and {other} inputs"
            )

    def _widths(self) -> tuple[int | None, int | None]:
        (needs, one), (also, other) = self.ahead._widths(), self.back._widths()
        return needs or also, None if one is None or other is None else one + other

    def _check(self, U: Any) -> None:
        self.ahead._check(U)  # a recurrent layer says more of what is wrong
        if U.ndim != 3:
            raise InputError(
                f"U has shape {U.shape}; Bidirectional takes sequences, (m, T, input_dim)"
            )

    def _forward(self, U: Any, call: Call) -> tuple[Any, BidirectionalPullback]:
        line = Timeline(U.shape[0], U.shape[1]) if call.line is None else call.line
        Y1, ahead = self.ahead._forward(U, call)
        Y2, back = self.back._forward(line.reverse(U), call)
        if Y1.shape[:-1] != Y2.shape[:-1]:
            raise InputError(
                f"the layers of Bidirectional give {Y1.shape} and {Y2.shape}; "
                "choose the same return_sequences for both"
            )
        Y = namespace(U).concat([Y1, line.reverse(Y2) if Y2.ndim == 3 else Y2], axis=-1)
        return Y, BidirectionalPullback(Y, {"ahead": ahead, "back": back}, line, Y1.shape[-1])
