"""An activation or its name: what layers, estimators and the command line take."""

from __future__ import annotations

from typing import Any

from pyidl import activations
from pyidl.activations.base import Activation
from pyidl.activations.builtin import named
from pyidl.errors import InputError, by_name, expect

__all__ = ["ActivationOption", "as_activation"]


def as_activation(given: Any, argument: str = "activation") -> Activation:
    """An activation as it is, or the built-in one of that name.

    Parameters
    ----------
    given : Activation or str
        Such as ``"tanh"`` or ``"leaky_relu(0.1)"``.
    argument : str
        What the caller calls it.

    Raises
    ------
    InputError
        If it is neither, or there is none of that name.

    Examples
    --------
    >>> as_activation("tanh"), as_activation("leaky_relu(0.1)")
    (tanh, leaky_relu(0.1))
    >>> as_activation("tahn")
    Traceback (most recent call last):
    ...
    pyidl.errors.InputError: activation: there is no 'tahn', did you mean 'tanh'?
    pyidl.activations has abs, elu, gelu, ...
    """
    if isinstance(given, str):
        try:
            built_in = named(given)
        except ValueError as error:  # of the number in brackets
            raise InputError(f"{argument} is the activation {given!r}: {error}") from None
        return built_in or by_name(
            argument, given, activations, lambda value: isinstance(value, Activation)
        )
    cure = "use one of pyidl.activations or its name, or Activation(name, phi, dphi)"
    expect(argument, given, Activation, cure)
    activation: Activation = given
    return activation


class ActivationOption:
    """The option `activation` of a layer: set by an activation or its name.

    What is read is the activation.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> ImplicitModel(3, 2, 10, activation="tanh").activation.lipschitz
    1.0
    """

    def __init__(self, default: Activation | None = None) -> None:
        self.default = default

    def __get__(self, layer: object | None, owner: type) -> Activation:
        """What was set; of the class, the default."""
        if layer is not None:
            chosen: Activation = layer.__dict__["activation"]
            return chosen
        if self.default is None:
            raise AttributeError("activation")  # so a dataclass knows that there is no default
        return self.default

    def __set__(self, layer: object, given: Activation | str) -> None:
        layer.__dict__["activation"] = as_activation(given)
