"""The rate of Adam in a fit.

A number is where it starts, and it falls to 0 by the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.layers.base import check_width
from pyidl.optim import Adam, Cosine, Schedule

__all__ = ["falling", "going_on"]


def falling(adam: Adam, data: list[Any], batch: Any, epochs: int) -> Adam:
    """From the present step to the last of these epochs, if the rate is a number."""
    rate = adam.learning_rate
    if callable(rate):
        return adam
    inputs, _, weights = data
    m = len(inputs) if weights is None else max(int(np.count_nonzero(weights)), 1)  # no others
    each = 1 if batch is None else -(-m // min(check_width("batch_size", batch), m))
    return going_on(adam, _Later(Cosine(rate, steps=each * epochs), adam.count))


def going_on(adam: Adam, rate: float | Schedule) -> Adam:
    """Another one, with the state of this one."""
    other = Adam(rate)
    other.state, other.count = adam.state, adam.count
    return other


@dataclass(frozen=True)
class _Later:
    """A schedule, from a step on that is not the first."""

    schedule: Cosine
    start: int

    def __call__(self, count: int) -> float:
        return self.schedule(count - self.start)
