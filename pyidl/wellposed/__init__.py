"""Conditions for well-posedness, one file each, on parameters alone."""

from pyidl.wellposed.base import Constraint
from pyidl.wellposed.infnorm import InfNorm

__all__ = ["Constraint", "InfNorm"]
