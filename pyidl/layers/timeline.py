"""Which sample takes part in which time step, and how rows of all steps are stacked.

A stack holds the rows of step 0, then those of step 1, ...: N rows in all, N = m T
where every sample takes part in every step. What is to be done for all steps at once is
one product with a stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace, read_array, to_numpy
from pyidl.arrays.batch import put_rows, take_rows
from pyidl.errors import InputError

__all__ = ["Timeline"]


@dataclass(frozen=True)
class Timeline:
    """Which of m samples take part in which of T steps; on the host.

    The rows of all steps are stacked, those of the first step first.
    """

    m: int
    T: int
    mask: np.ndarray | None = None
    """Boolean, (m, T); None where every sample takes part in every step."""

    @classmethod
    def read(cls, lengths: Any, m: int, T: int) -> Timeline:
        """From the user's lengths.

        An integer for each sample, a boolean for each of its steps, or None for all.
        """
        if lengths is None:
            return cls(m, T)
        host = to_numpy(read_array(lengths, "lengths"))
        if host.shape == (m,) and host.dtype.kind in "iu":
            if host.min() < 1 or host.max() > T:
                raise InputError(
                    f"lengths lie between {host.min()} and {host.max()}; "
                    f"with {T} steps they are 1, ..., {T}"
                )
            mask = np.arange(T) < host[:, None]
        elif host.shape == (m, T) and host.dtype == np.bool_:
            mask, empty = host.copy(), np.flatnonzero(~host.any(axis=1))
            if empty.size:
                raise InputError(
                    f"{empty.size} sequences have no step, the first is number {empty[0]}; "
                    "leave them out"
                )
        else:
            raise InputError(
                f"lengths has shape {host.shape} and dtype {host.dtype}; "
                f"it holds an integer for each of the {m} sequences, ({m},), "
                f"or a boolean for each of their steps, ({m}, {T})"
            )
        return cls(m, T, None if mask.all() else mask)

    def of(self, samples: slice) -> Timeline:
        """That of some of the samples."""
        mask = None if self.mask is None else self.mask[samples]
        return Timeline(len(range(*samples.indices(self.m))), self.T, mask)

    @cached_property
    def ends(self) -> np.ndarray:
        """Where the rows of each step begin, and the last ones end: (T + 1,)."""
        counts = (
            np.full(self.T, self.m) if self.mask is None else np.count_nonzero(self.mask, axis=0)
        )
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def left(self) -> np.ndarray:
        """How many steps of a sample are left, this one included, (m, T).

        0 where it takes no part.
        """
        mask = np.ones((self.m, self.T), bool) if self.mask is None else self.mask
        left: np.ndarray = np.where(mask, np.cumsum(mask[:, ::-1], axis=1)[:, ::-1], 0)
        return left

    def at(self, t: int) -> slice:
        """The place of step t in a stack."""
        return slice(int(self.ends[t]), int(self.ends[t + 1]))

    def rows(self, t: int) -> np.ndarray | None:
        """The samples of step t; None for all of them."""
        return (
            None
            if self.mask is None or self.ends[t + 1] - self.ends[t] == self.m
            else np.flatnonzero(self.mask[:, t])
        )

    def steps(self, first: int = 0) -> list[tuple[int, slice, np.ndarray | None]]:
        """t, the place of step t in a stack, and its samples, from a first step on."""
        return [(t, self.at(t), self.rows(t)) for t in range(first, self.T)]

    def stack(self, a: Any) -> Any:
        """``(m, T, k) -> (N, k)``."""
        xp = namespace(a)
        return self.chosen(xp.permute_dims(a, (1, 0, 2)))

    def chosen(self, a: Any) -> Any:
        """``(T, m, k) -> (N, k)``."""
        xp = namespace(a)
        flat = xp.reshape(a, (-1, a.shape[2]))
        return flat if self.mask is None else take_rows(xp, flat, np.flatnonzero(self.mask.T))

    def unstack(self, a: Any) -> Any:
        """``(N, k) -> (m, T, k)``, zero where a sample does not take part."""
        xp = namespace(a)
        if self.mask is not None:
            full = xp.zeros((self.T * self.m, a.shape[1]), dtype=a.dtype)
            a = put_rows(xp, full, np.flatnonzero(self.mask.T), a, np.arange(a.shape[0]))
        return xp.permute_dims(xp.reshape(a, (self.T, self.m, a.shape[1])), (1, 0, 2))

    def every(self, rows: np.ndarray) -> np.ndarray:
        """Which samples have True in all of their rows of a stack, (N,) -> (m,)."""
        table = np.ones((self.T, self.m), bool)
        table[np.ones((self.T, self.m), bool) if self.mask is None else self.mask.T] = rows
        return np.asarray(table.all(axis=0))

    def reverse(self, a: Any) -> Any:
        """``(m, T, k)`` with the steps of every sample in the opposite order.

        What lies between them stays. Twice, it is nothing.
        """
        xp = namespace(a)
        if self.mask is None:
            return xp.flip(a, axis=1)
        sample, step = np.nonzero(self.mask)
        source = np.arange(self.m * self.T)
        source[sample * self.T + step] = sample * self.T + step[np.lexsort((-step, sample))]
        return xp.reshape(take_rows(xp, xp.reshape(a, (-1, a.shape[2])), source), a.shape)

    def cuts(self, length: int) -> np.ndarray:
        """Before which steps of a sample the gradient is cut, (m, T).

        Every `length` steps, from its end, but not before the first.
        """
        inside: np.ndarray = self.left < self.left.max(axis=1, keepdims=True)
        cut: np.ndarray = inside & (self.left > 0) & (self.left % length == 0)
        return cut

    def since(self, length: int) -> int:
        """The first step that is one of the last `length` of some sample."""
        return int(np.argmax(np.any((self.left > 0) & (self.left <= length), axis=0)))
