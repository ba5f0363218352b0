"""The set of a block triangular A, from the sets of its diagonal blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from pyidl.activations import Activation
from pyidl.activations.base import joint
from pyidl.wellposed import (
    BlockTriangular,
    Constraint,
    PerronFrobenius,
    StrictlyTriangular,
    Unconstrained,
)

__all__ = ["Block", "set_of"]

Block: TypeAlias = tuple[Sequence[tuple[Activation, int]], Constraint | None]
"""The activations of its states, and its set; None where its numbers must tell."""


def set_of(blocks: Sequence[Block], A: np.ndarray) -> Constraint:
    """The set of A, block upper triangular with these blocks in the order of the state.

    Neighbours without feedback are one block without feedback. Where no set is given,
    it is `PerronFrobenius` if the block lies in it, else `Unconstrained`.
    """
    sizes, each, start = list[int](), list[Constraint](), 0
    for phis, own in blocks:
        width = sum(n for _, n in phis)
        if own is None:
            piece = slice(start, start + width)
            lies = PerronFrobenius().contains({"A": A[piece, piece]}, joint(phis))
            own = PerronFrobenius() if lies else Unconstrained()
        start += width
        if each and own == each[-1] == StrictlyTriangular():
            sizes[-1] += width
        else:
            sizes.append(width)
            each.append(own)
    if len(each) == 1:
        return each[0]
    alike = all(one == each[0] for one in each)
    return BlockTriangular(tuple(sizes), each[0] if alike else tuple(each))
