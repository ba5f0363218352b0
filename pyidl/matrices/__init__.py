"""A, B, C, D as the solvers see them, and where they may differ from zero.

    Full      whole
    Sparse    few entries nonzero, in compressed rows
    LowRank   factors ``L R^T`` that are never multiplied out
    Tiled     in tiles, the zero ones left out

`Matrix` is what all of them promise. A `Pattern` prescribes zeros; which structure a
model's parameters have is read once, when they are set (`pyidl.matrices.read`).
"""

from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.matrices.pattern import Pattern
from pyidl.matrices.sparse import Sparse
from pyidl.matrices.tiled import Tiled

__all__ = ["Full", "LowRank", "Matrix", "Pattern", "Sparse", "Tiled"]
