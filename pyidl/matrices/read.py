"""What is known of a model's A, B, C, D, read once, when the parameters are set.

A pattern prescribes where they may be nonzero, or A's own zeros show it. If they cut
the state into groups that are solved one after the other (`pyidl.matrices.pattern`),
all four matrices are cut alike. Else they are whole, or in compressed rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyidl.arrays.backend import namespace, to_numpy
from pyidl.matrices.base import Matrix
from pyidl.matrices.growth import with_gains
from pyidl.matrices.low_rank import LowRank
from pyidl.matrices.pattern import Groups, Pattern, levels
from pyidl.matrices.sparse import Sparse, zeros
from pyidl.matrices.tiled import Tiled
from pyidl.typing import Array, Params

__all__ = ["read_model"]


def read_model(
    params: Params,
    pattern: Pattern | None,
    before: Mapping[str, Matrix] | None,
    doubtful: bool = False,
    below: float = 0.0,
) -> dict[str, Matrix]:
    """The maps A, B, C and D of a model, with the structure that they have.

    Parameters
    ----------
    params : mapping
        A or L and R, B, C, perhaps D.
    pattern : Pattern, optional
        What is prescribed.
    before : mapping, optional
        The maps of the parameters before these: groups are found anew only if zeros
        have moved.
    doubtful : bool
        Whether nothing says that Picard contracts; then its growth is estimated in any
        case.
    below : float
        Matrices and tiles with at most this share of nonzero entries are multiplied in
        compressed rows.

    Returns
    -------
    dict of str to Matrix
        By the letters A, B, C and, if it is among the parameters, D.

    Examples
    --------
    >>> A = np.triu(np.full((40, 40), 0.1), 20)
    >>> params = {"A": A, "B": np.ones((40, 3)), "C": np.ones((2, 40))}
    >>> maps = read_model(params, None, None)
    >>> type(maps["A"]).__name__, maps["A"].row_groups.sizes
    ('Tiled', (20, 20))
    """
    masks = {key: getattr(pattern, key, None) for key in "ABCD"}
    maps: dict[str, Matrix] = {}
    cut = None
    if "A" in params:
        A, mask = params["A"], masks["A"]
        cut = _cut(A, mask, (before or {}).get("A"))
        if cut is None:
            maps["A"] = with_gains(Sparse.of(A, below), doubtful)
        else:
            groups, support = cut
            maps["A"] = Tiled.of(A, groups, groups, support, mask is not None, doubtful, below)
    else:
        maps["A"] = LowRank(params["L"], params["R"])
    for key in "BCD":
        if key in params:
            M, mask = params[key], masks[key]
            if cut is None and mask is None:
                maps[key] = Sparse.of(M, below)
                continue
            rows = cut[0] if cut and key == "B" else Groups.whole(M.shape[0])
            columns = cut[0] if cut and key == "C" else Groups.whole(M.shape[1])
            support = to_numpy(M) != 0 if mask is None else mask
            maps[key] = Tiled.of(M, rows, columns, support, mask is not None, below=below)
    return maps


def _cut(
    A: Array, mask: np.ndarray | None, before: Matrix | None
) -> tuple[Groups, np.ndarray] | None:
    """The groups of the state, and where A may be nonzero; None where A stays whole.

    A prescribed mask always cuts, into one group if need be, because gradients are
    confined to it. Zeros that were found cut only where that saves work.
    """
    n = A.shape[0]
    if mask is not None:
        support = mask
    elif zeros(A) < A.size // 4:  # where no group is larger than half of A there are more
        return None
    else:  # a comparison first: what travels from a GPU in every training step are bytes
        support = to_numpy(namespace(A).abs(A) > 0)
    if isinstance(before, Tiled) and np.array_equal(before.support, support):
        groups: Groups | None = before.row_groups
    else:
        groups = levels(support)
    if mask is not None:
        return groups or Groups.whole(n), support
    if groups is None or _largest_cycle(groups) > n // 2:
        return None  # to go through its groups would save next to nothing
    return groups, support


def _largest_cycle(groups: Groups) -> int:
    return max(
        (size for size, cyclic in zip(groups.sizes, groups.cyclic, strict=True) if cyclic),
        default=0,
    )
