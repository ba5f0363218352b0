"""Models from models: cascades, sums, feedback loops, any wiring."""

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
]
