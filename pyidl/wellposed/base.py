"""A constraint is a set of parameters in which well-posedness is certain.

It works on a layer's flat dictionary, so that a matrix A and a pair of factors ``A = L R^T`` fit alike. It never acts
behind the forward pass: a training step projects, ``model.params = model.project(params)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pyidl.activations import Activation
from pyidl.certificate import Certificate
from pyidl.typing import Array, Params

__all__ = ["Constraint"]


class Constraint(ABC):
    """A set of parameters; subclasses are frozen dataclasses."""

    contracts: ClassVar[bool] = True
    """Whether the plain iteration contracts in the whole set."""

    def refusal(self, activation: Activation) -> str:
        """Why the condition says nothing for this activation, in words; "" where it does."""
        return ""

    @abstractmethod
    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return feasible parameters: the nearest ones where the set is convex, those given where they are feasible."""

    @abstractmethod
    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether the parameters lie in the set."""

    @abstractmethod
    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """What is proven for these parameters, inside the set or not."""
