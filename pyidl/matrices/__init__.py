"""A as the solvers see it: whole, in compressed rows, in factors, in tiles.

And where it may differ from zero.
"""

from pyidl.matrices.pattern import Pattern
from pyidl.matrices.structure import (
    Full,
    LowRank,
    Matrix,
    Sparse,
    Tiled,
)

__all__ = [
    "Full",
    "LowRank",
    "Matrix",
    "Pattern",
    "Sparse",
    "Tiled",
]
