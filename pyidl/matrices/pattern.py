"""Which entries of A, B, C, D may differ from zero, and the order that follows.

The units that feed each other, directly or through others, form a *strongly connected
component* of A's pattern. Taken in topological order, the components make A block
triangular, and the equation can be solved block by block:

    x_i = phi(A_ii x_i + sum over earlier j of A_ij x_j + z_i)

Components of a single unit that does not feed itself need no iteration. Gathered by
depth they are the layers of a feed-forward network, and one pass through them is exact.
Only the diagonal blocks decide well-posedness.

A pattern without cycles may be as deep as it has units (a dense strictly triangular A).
Consecutive layers are then joined to groups of about n^(1/2) units; k layers in one
group are exact after k applications of ``x_i -> phi(A_ii x_i + ...)``, because A_ii^k =
0.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import from_host, is_array, namespace, to_numpy, writes_in_place
from pyidl.errors import InputError

__all__ = ["Groups", "Pattern", "levels"]


@dataclass(frozen=True)
class Groups:
    """A partition of the columns of an array, in the order of solving.

    Parameters
    ----------
    members : tuple of slice or numpy.ndarray
        The columns of each group.
    sizes : tuple of int
        How many they are.
    cyclic : tuple of bool
        Whether units of the group feed each other or themselves, in a cycle.
    layers : tuple of int
        How many layers a group without cycles has: so many applications of the map are
        exact. Empty for one each.

    Examples
    --------
    >>> groups = Groups.of([np.array([2]), np.array([0, 1])], [False, True])
    >>> groups.members[0], groups.piece(np.array([[5, 6, 7]]), 1)
    (slice(2, 3, None), array([[5, 6]]))
    """

    members: tuple[slice | np.ndarray, ...]
    sizes: tuple[int, ...]
    cyclic: tuple[bool, ...]
    layers: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, lists: list[np.ndarray], cyclic: list[bool], layers: tuple[int, ...] = ()
    ) -> Groups:
        """From lists of columns; those that follow one another become slices."""
        members = [
            slice(int(c[0]), int(c[-1]) + 1)
            if np.array_equal(c, np.arange(c[0], c[0] + len(c)))
            else c
            for c in lists
        ]
        return cls(tuple(members), tuple(len(c) for c in lists), tuple(cyclic), layers)

    @classmethod
    def whole(cls, n: int) -> Groups:
        """One group of all n columns."""
        return cls((slice(0, n),), (n,), (True,))

    def cut(self, x: Any) -> dict[int, Any]:
        """The columns of each group; views where they are ranges."""
        return {i: self.piece(x, i) for i in range(len(self.members))}

    def piece(self, x: Any, i: int) -> Any:
        """The columns of one group."""
        member = self.members[i]
        if isinstance(member, slice):
            return x[:, member]
        return namespace(x).take(x, from_host(namespace(x), member), axis=1)

    def view(self, target: Any, i: int) -> Any:
        """The columns of one group, to be written; None where there is no such view."""
        member = self.members[i]
        writable = isinstance(member, slice) and writes_in_place(namespace(target))
        return target[:, member] if writable else None

    def put(self, target: Any, i: int, piece: Any) -> None:
        """Write the columns of one group; `piece` may be a number."""
        member = self.members[i]
        place = member if isinstance(member, slice) else from_host(namespace(target), member)
        target[:, place] = piece


MOST, SMALLEST = 32, 8
"""A pattern with cycles is solved block by block if it has few blocks, or large ones.

At most 32 of them, or 8 units in each on average.
"""


def levels(support: np.ndarray) -> Groups | None:
    """The blocks of a square pattern in topological order.

    Single units are gathered by depth, those that feed themselves apart from the
    others; a larger component is a block of its own.

    Parameters
    ----------
    support : numpy.ndarray of bool, shape (n, n)
        Where A may be nonzero.

    Returns
    -------
    Groups or None
        None where every unit feeds every other, directly or not, and where there are
        cycles and so many small blocks that going through them takes longer than
        iterating over the whole.

    Raises
    ------
    InputError
        If it is not a square boolean matrix of NumPy.

    Examples
    --------
    >>> levels(np.triu(np.ones((3, 3), bool), 1)).members
    (slice(2, 3, None), slice(1, 2, None), slice(0, 1, None))
    """
    if not (
        isinstance(support, np.ndarray)
        and support.dtype == np.bool_
        and support.ndim == 2
        and support.shape[0] == support.shape[1]
    ):
        raise InputError(
            f"support is {type(support).__name__} {getattr(support, 'shape', '')}; "
            "a square boolean NumPy matrix is needed"
        )
    n = len(support)
    if np.count_nonzero(support) > n * n - (n - 1) or _all_reach(support):
        return None
    label, depth, cyclic = components(support)
    size = np.bincount(label)
    lists, kinds = [], []
    alone, own_depth = size[label] == 1, depth[label]
    for level in range(int(depth.max()) + 1):
        for kind in (False, True):
            units = np.flatnonzero((own_depth == level) & alone & (cyclic[label] == kind))
            if units.size:
                lists.append(units)
                kinds.append(kind)
        for component in np.flatnonzero((depth == level) & (size > 1)):
            lists.append(np.flatnonzero(label == component))
            kinds.append(True)
    if len(lists) <= max(MOST, n // SMALLEST):
        return Groups.of(lists, kinds)
    return None if any(kinds) else _joined(lists, n)


def components(support: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strongly connected components of a square pattern.

    Parameters
    ----------
    support : numpy.ndarray of bool, shape (n, n)
        An entry (i, j) says that i needs j.

    Returns
    -------
    label, depth, cyclic : numpy.ndarray
        Of every unit the number of its component. Of every component the length of the
        longest way to it through others, so that what it needs lies less deep; and
        whether its units feed each other or themselves.

    Examples
    --------
    >>> needs = np.array([[0, 1, 0], [0, 0, 1], [0, 1, 0]], bool)
    >>> label, depth, cyclic = components(needs)
    >>> depth[label], cyclic[label]
    (array([1, 0, 0]), array([False,  True,  True]))
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(csr_array(support), connection="strong")
    cyclic = np.bincount(label, minlength=count) > 1
    cyclic[label[np.diagonal(support)]] = True
    ends = label[np.stack(np.nonzero(support))]
    edges = np.unique(ends[:, ends[0] != ends[1]], axis=1)
    depth: np.ndarray = np.zeros(count, int)
    while True:  # at most as often as the net is deep
        deeper = depth.copy()
        np.maximum.at(deeper, edges[0], depth[edges[1]] + 1)
        if np.array_equal(deeper, depth):
            return label, depth, cyclic
        depth[:] = deeper


def _joined(layers: list[np.ndarray], n: int) -> Groups:
    """Consecutive layers, joined to groups of at least ``n^(1/2)`` units."""
    groups: list[list[np.ndarray]] = [[]]
    for layer in layers:
        if sum(map(len, groups[-1])) >= n**0.5:
            groups.append([])
        groups[-1].append(layer)
    members = [np.sort(np.concatenate(group)) for group in groups]
    return Groups.of(members, [False] * len(members), tuple(map(len, groups)))


def _all_reach(support: np.ndarray) -> bool:
    """Whether unit 0 reaches all units and is reached by all.

    Then there is a single component.
    """
    for edges in (support.T, support):
        reached = np.zeros(len(support), bool)
        reached[0] = True
        while not reached.all():
            more = reached | edges[reached].any(axis=0)
            if np.array_equal(more, reached):
                return False
            reached = more
    return True


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where A (n, n), B (n, p), C (q, n) and D (q, p) may be nonzero.

    Entries outside stay zero, and neither their products nor their gradients are
    computed.

    Parameters
    ----------
    A, B, C, D : boolean array, optional
        Kept on the host; None where everything may be nonzero.

    Raises
    ------
    InputError
        If a mask is not a boolean matrix.

    Examples
    --------
    >>> Pattern.feed_forward(4, 3, 2, 1).A.astype(int)
    array([[0, 0, 1, 1, 1],
           [0, 0, 1, 1, 1],
           [0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0]])
    """

    A: np.ndarray | None = None
    B: np.ndarray | None = None
    C: np.ndarray | None = None
    D: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in "ABCD":
            mask = getattr(self, name)
            if mask is None:
                continue
            mask = to_numpy(mask).copy() if is_array(mask) else mask
            if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 2):
                raise InputError(
                    f"the pattern of {name} is {type(mask).__name__} "
                    f"{getattr(mask, 'dtype', '')}; use a boolean matrix"
                )
            mask.flags.writeable = False
            object.__setattr__(self, name, mask)

    @classmethod
    def feed_forward(cls, *widths: int) -> Pattern:
        """That of a feed-forward network.

        The last hidden layer comes first in the state, ``x = (x_L, ..., x_1)``, so that
        A is strictly block upper triangular.

        Parameters
        ----------
        *widths : int
            Of the input, of the hidden layers, and of the output.

        Raises
        ------
        InputError
            If there is no hidden layer, or a width is no positive number.

        Notes
        -----
        Source: El Ghaoui et al. 2021.
        """
        if len(widths) < 3 or min(widths) < 1:
            raise InputError(
                "feed_forward takes the widths of input, at least one hidden layer, and output; "
                f"got {widths}"
            )
        p, *hidden, q = widths
        ends = sum(hidden) - np.cumsum([0, *hidden])  # layer l occupies ends[l + 1] : ends[l]
        n = sum(hidden)
        A, B, C = np.zeros((n, n), bool), np.zeros((n, p), bool), np.zeros((q, n), bool)
        for layer in range(1, len(hidden)):
            A[ends[layer + 1] : ends[layer], ends[layer] : ends[layer - 1]] = True
        B[ends[1] : ends[0]] = True
        C[:, : hidden[-1]] = True
        return cls(A, B, C, np.zeros((q, p), bool))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        mine, theirs = ([getattr(p, name) for name in "ABCD"] for p in (self, other))
        return all(
            (a is None) == (b is None) and (a is None or np.array_equal(a, b))
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        words = [
            f"{name}: {int(mask.sum())} of {mask.size}"
            for name in "ABCD"
            if (mask := getattr(self, name)) is not None
        ]
        return f"Pattern({', '.join(words)})"
