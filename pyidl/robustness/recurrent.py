r"""Sets through time: an `ImplicitRNN` for all sequences of a box.

Every step is an implicit model with the inputs ``[U_t, H_{t-1}]``, and so by induction
the form of H_t holds every state. The columns say what the steps have in common: a
network that forgets has columns that shrink, while boxes grow by the sum of absolute
values even where the network forgets.

Each step adds a column for every entry of U_t and for every undecided unit. Where that
would become too many, the smallest are merged into each entry's own noise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pyidl.certify.forms import EPS, LIMIT, Form, concat, merged, outward, padded, where
from pyidl.layers.timeline import Timeline
from pyidl.recurrent import Bidirectional, ImplicitRNN
from pyidl.robustness.states import States, exactly

__all__ = ["through"]


def through(
    layer: Any, u: Form, rounds: int, line: Timeline | None, part: Callable[..., Form], prefix: str
) -> tuple[Form, ...]:
    """Outputs, and the states and pre-activations of all steps, (m, T, n).

    `part` leads a form through a layer of layers, by its name after `prefix`.
    """
    line = line or Timeline(*u.c.shape[:2])
    if isinstance(layer, ImplicitRNN):
        return _unrolled(layer, u, rounds, line)
    return (_both_ways(layer, u.promoted() if rounds else u, line, part, prefix),)


def _unrolled(layer: ImplicitRNN, u: Form, rounds: int, line: Timeline) -> tuple[Form, ...]:
    params = exactly(layer)
    step, (m, T, p), (n, r) = States.of(layer, params), u.c.shape, params["C"].T.shape
    long = u.columns + T * (p + n + r) > LIMIT
    part = np.ones((m, T), bool) if line.mask is None else line.mask
    h, none = (Form.box(a, a) for a in (np.zeros((m, r)), np.full((m, n), np.nan)))
    H, X, Y = [], [], []
    for t in range(T):
        both = concat([u.of(operator.itemgetter((slice(None), t))), h])
        new, x, y = step.answered(both, rounds)
        new = new.reduced(u.columns, LIMIT // 2 if long else LIMIT) if rounds else new.boxed()
        h = where(part[:, t], new, h)
        H.append(h.reduced(u.columns, 0) if long else h)
        X.append(where(part[:, t], x.boxed(), none))
        Y.append(where(part[:, t], y.boxed(), none))
    R = h
    if layer.return_sequences or layer.pool != "last":
        R = _stacked(H) if layer.return_sequences else _pooled(_stacked(H), layer.pool, part)
    return R.linear(params["E"], params.get("e", 0.0)), _stacked(X), _stacked(Y)


def _stacked(steps: list[Form]) -> Form:
    """(m, T, k) of the forms of T steps."""
    return merged(lambda *parts: np.stack(parts, axis=-2), steps)


def _pooled(H: Form, pool: str, part: np.ndarray) -> Form:
    """The mean, or the maximum, over the steps in which a sample takes part."""
    if pool == "max":
        lo, hi = (np.where(part[:, :, None], a, -np.inf).max(axis=1) for a in (H.lo, H.hi))
        return padded([Form.box(lo, hi), H])[0]
    share = np.broadcast_to((part / part.sum(axis=1, keepdims=True))[:, :, None], H.c.shape)
    off = 4 * EPS * np.maximum(np.abs(H.lo), np.abs(H.hi))
    none = np.zeros_like(H.c)
    weighed = H.scaled(share, none, none, *outward(share * H.lo, share * H.hi, off))
    last = weighed.of(lambda a: np.moveaxis(a, 1, -1))
    return last.linear(np.ones((1, part.shape[1]))).of(lambda a: a[..., 0])


def _both_ways(
    layer: Bidirectional, u: Form, line: Timeline, part: Callable[..., Form], prefix: str
) -> Form:
    """Two directions of one sequence, with the same columns."""

    def turned(a: np.ndarray) -> np.ndarray:
        times = len(a) // line.m  # columns of a sample are turned as it is
        wide = np.moveaxis(a.reshape(line.m, times, *a.shape[1:]), 1, 2)
        back = line.reverse(wide.reshape(line.m, line.T, -1)).reshape(wide.shape)
        return np.asarray(np.moveaxis(back, 1, 2).reshape(a.shape))

    ahead = part(layer.ahead, u, f"{prefix}ahead")
    back = part(layer.back, u.of(turned), f"{prefix}back")
    back = back.of(turned) if back.c.ndim == 3 else back
    return concat([ahead, back.behind(ahead, u.columns)])
