"""Models from models: cascades, sums, feedback loops, any wiring; from networks."""

from pyidl.compose.algebra import (
    add,
    affine_after,
    affine_before,
    cascade,
    concatenate,
    feedback,
    interconnect,
    parallel,
)
from pyidl.compose.interconnection import Interconnection
from pyidl.compose.networks import to_implicit

__all__ = [
    "Interconnection",
    "add",
    "affine_after",
    "affine_before",
    "cascade",
    "concatenate",
    "feedback",
    "interconnect",
    "parallel",
    "to_implicit",
]
