"""A branch around layers: ``Y = U + f(U)``, hence ``dU = dY + df^T dY``.

f is a chain of layers, ``f_k(... f_1(U))``, and df^T is ``df_1^T ... df_k^T``.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016,
eq. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError
from pyidl.layers.base import Call, finite_output
from pyidl.layers.sequential import Sequential, SequentialPullback
from pyidl.solvers.solution import OnFail
from pyidl.typing import Grads

__all__ = ["Residual"]


@dataclass(frozen=True, repr=False)
class ResidualPullback(SequentialPullback):
    """The chain rule, and the identity beside it."""

    @property
    def reads(self) -> Mapping[str, Any]:
        """Empty: U comes to what the last matrices give."""
        return {}

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """``dU = dY + f^T dY``.

        The gradients of the parameters are those of f alone.
        """
        dU, grads = super().rule(dY, inputs)
        return (dY + dU if inputs else None), grads


class Residual(Sequential):
    """``Y = U + f(U)``, f the given layers one after another.

    Everything else is as in a `Sequential` of them.

    Parameters
    ----------
    *layers : Layer, Activation or str
        As for `Sequential`; together they keep the shape of their input.

    Raises
    ------
    InputError
        If they do not.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import Linear, Residual
    >>> block = Residual(Linear(3, 5, rng=0), "relu", Linear(5, 3, rng=1))
    >>> Y, pull = block(np.ones((2, 3)))
    >>> Y.shape, sorted(block.params)
    ((2, 3), ['0.W', '0.b', '2.W', '2.b'])
    """

    def _validate(self) -> None:
        super()._validate()
        needs, gives = self._widths()
        if needs is not None and gives is not None and needs != gives:
            raise InputError(
                f"Residual adds an input of width {needs} to an output of its layers "
                f"of width {gives}; they must be equal"
            )

    def step(
        self, u: Any, cache: tuple[Any, ...], *, on_fail: OnFail = "raise"
    ) -> tuple[Any, tuple[Any, ...]]:
        """``u + f(u)`` for one token."""
        f, cache = super().step(u, cache, on_fail=on_fail)
        u = backend.as_real(u, name="u", xp=namespace(f), dtype=backend.real_dtype(f))
        return finite_output(u + f, on_fail), cache

    def _forward(self, U: Any, call: Call) -> tuple[Any, ResidualPullback]:
        f, pull = super()._forward(U, call)
        if f.shape != U.shape:
            raise InputError(
                f"Residual adds an input {U.shape} to an output of its layers {f.shape}; "
                "the shapes must be equal"
            )
        Y = U + f
        return Y, ResidualPullback(Y, pull.pulls)
