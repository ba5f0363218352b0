"""No condition at all: nothing is promised before a solve has succeeded."""

from __future__ import annotations

from dataclasses import dataclass

from pyidl.activations import Activation
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, unproven
from pyidl.wellposed.certificate import Certificate

__all__ = ["Unconstrained"]


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """The set of all parameters; `project` changes nothing.

    Solves may fail, and where one succeeds there may be other solutions; its status
    says how it went.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import activations
    >>> Unconstrained().certificate({"A": np.eye(2)}, activations.relu)
    not certified: the model is unconstrained, and nothing is proven for all inputs
    """

    contracts = False

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """The parameters themselves."""
        return dict(params)

    def contains(self, params: Params, activation: Activation) -> bool:
        """Always: every parameter belongs to the set."""
        return True

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """Nothing is proven."""
        return unproven("the model is unconstrained, and nothing is proven for all inputs")
