r"""What an output reads of the states H_1, ..., H_T, and how its gradient goes back.

    last    R = H_T                    dH_T = dR
    mean    R = (1/k) sum_t H_t        dH_t = dR / k
    max     R = max_t H_t              dH_t = dR where H_t is the first largest

entry by entry, over the k steps in which a sample takes part. Then ``Y = E R + e``: H
is pooled, and read once. To read every step and pool the outputs would be the same for
the mean; for the maximum it would leave only one step for each output to learn from,
and not one for each entry of H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from pyidl.arrays.backend import astype, from_host, namespace
from pyidl.errors import InputError
from pyidl.layers.timeline import Timeline

__all__ = ["Pool", "check_pool", "joined", "pooled"]

Pool = Literal["last", "mean", "max"]


def check_pool(pool: Any, return_sequences: bool) -> None:
    """Refuse what is no way of pooling, and pooling where every step has its output."""
    if not (isinstance(pool, str) and pool in get_args(Pool)):
        raise InputError(f"pool is {pool!r}; use 'last', 'mean', or 'max'")
    if return_sequences and pool != "last":
        raise InputError(
            f"with return_sequences=True every step has an output, and pool={pool!r} has nothing "
            "to pool; leave one of them out"
        )


def pooled(
    pool: Pool | Literal["every"], states: Any, line: Timeline
) -> tuple[Any, Callable[[Any], Any]]:
    """R, (m, r), of the states of a line; or all H_t, (m, T, r).

    And the map of its gradient to the direct derivative of the states.
    """
    if pool == "every":
        return line.spread(states), line.spread_transposed
    if pool == "last":
        return line.last(states), line.last_transposed
    xp, H = namespace(states), line.spread(states)
    mask = np.ones((line.m, line.T), bool) if line.mask is None else line.mask
    part = from_host(xp, mask[:, :, None])
    if pool == "mean":
        share = astype(xp, part, H.dtype)
        share = share / xp.sum(share, axis=1, keepdims=True)
        R = xp.sum(share * H, axis=1)
        return R, lambda dR: line.spread_transposed(share * dR[:, None, :])
    if line.mask is not None:
        H = xp.where(part, H, -np.inf)
    first = xp.argmax(H, axis=1, keepdims=True)
    steps = from_host(xp, np.arange(line.T)[:, None])
    R = xp.max(H, axis=1)
    return R, lambda dR: line.spread_transposed(xp.where(steps == first, dR[:, None, :], 0.0))


def joined(pool: Pool, R: Any, count: int, h: Any) -> Any:
    """R of count + 1 steps, from that of the first `count` and the h of the last."""
    if pool == "last" or count == 0:
        return h
    return R + (h - R) / (count + 1) if pool == "mean" else namespace(h).maximum(R, h)
