"""One token at a time through a causal attention head: the tokens before it are final.

With a causal mask, ``X_i = att_i(X_1, ..., X_i)``: the fixed point of a prefix is the
prefix of the fixed point. So a new token solves

    o = att(K, q, V),    K = [K_past; k],  V = [V_past; v],    [k q v] = o R + u S,

an equation of H h numbers, and leaves its own key and value behind. Features of keys
are formed anew for each token, as what is taken from all keys and queries alike
(`Attention.placed`) depends on which there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.attention.cell import AttentionCell, AttentionProblem, Past, parts
from pyidl.attention.weighted_mean import Mask
from pyidl.equilibrium import solved
from pyidl.solvers import Solver
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array
from pyidl.wellposed.certificate import Certificate

__all__ = ["Cache", "advance", "begin"]


@dataclass(frozen=True, repr=False)
class Cache:
    """What a head remembers of m sequences.

    Never changed, a step returns a longer one. K and U hold keys, and values u(v), (m,
    H, t, h).
    """

    K: Array
    U: Array

    @property
    def length(self) -> int:
        """The number of tokens."""
        return int(self.K.shape[2])

    def __repr__(self) -> str:
        return f"Cache({self.K.shape[0]} sequences of {self.length} tokens)"


def begin(cell: AttentionCell, m: int) -> Cache:
    """The cache of m sequences without a token."""
    xp, (H, _, width) = namespace(cell.R), cell.R.shape
    empty = xp.zeros((m, H, 0, width // 3), dtype=cell.R.dtype)
    return Cache(empty, empty)


def advance(
    cell: AttentionCell,
    Z: Any,
    cache: Cache,
    solver: Solver | None,
    on_fail: OnFail,
    certificate: Callable[[], Certificate],
) -> tuple[Any, Cache]:
    """``(o, cache)``.

    The output of one more token, (m, H, 1, h), of which Z, (m, H, 1, 3h), is ``u S``.
    """
    of, xp, (K, Q, V) = cell.attention, namespace(Z), parts(Z)
    longer = xp.concat([cache.K, K], axis=2)
    keys, Q = of.placed(longer, Q, Mask())
    past = Past(of.keys(keys[:, :, :-1, :]), cache.U)
    problem = AttentionProblem(cell, (keys[:, :, -1:, :], Q, V), past)
    solution = solved(problem, solver, on_fail=on_fail, certificate=certificate)
    K, _, V = parts(cell.feed(solution.value) + Z)
    longer[:, :, -1:, :] = K
    return solution.value, Cache(longer, xp.concat([cache.U, of.values(V)], axis=2))
