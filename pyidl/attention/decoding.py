"""One token at a time through a causal attention head: the tokens before it are final.

With a causal mask, ``X_i = att_i(X_1, ..., X_i)``: the fixed point of a prefix is the
prefix of the fixed point. So a new token solves

    o = att(K, q, V),    K = [K_past; k],  V = [V_past; v],    [k q v] = o R + u S,

an equation of H h numbers, and leaves its own key and value behind. What is kept of a
token are the features of its key, and its value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.attention.cell import AttentionCell, AttentionProblem, Past, parts
from pyidl.equilibrium import solved
from pyidl.solvers import Solver
from pyidl.solvers.solution import OnFail
from pyidl.wellposed.certificate import Certificate

__all__ = ["Cache", "advance", "begin"]


@dataclass(frozen=True, repr=False)
class Cache:
    """What a head remembers of m sequences.

    Never changed, a step returns a longer one.
    """

    past: Past

    @property
    def length(self) -> int:
        """The number of tokens."""
        return int(self.past.b.shape[2])

    def __repr__(self) -> str:
        return f"Cache({self.past.b.shape[0]} sequences of {self.length} tokens)"


def begin(cell: AttentionCell, m: int) -> Cache:
    """The cache of m sequences without a token."""
    xp, (H, _, width) = namespace(cell.R), cell.R.shape
    empty = xp.zeros((m, H, 0, width // 3), dtype=cell.R.dtype)
    return Cache(Past(cell.attention.keys(empty), cell.attention.values(empty)))


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
    problem = AttentionProblem(cell, Z, cache.past)
    solution = solved(problem, solver, on_fail=on_fail, certificate=certificate)
    K, _, V = parts(cell.feed(solution.value) + Z)
    return solution.value, Cache(
        Past(*cache.past.with_token(cell.attention.keys(K), cell.attention.values(V)))
    )
