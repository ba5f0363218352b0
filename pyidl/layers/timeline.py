"""Which sample takes part in which time step, and how rows of all steps are stacked.

A sample that takes no part in a step is left as it was. So its own steps can be counted
without the gaps, and the samples sorted, those with most steps first: then the samples
of step k are always the first ones, m_k of them, and no row is ever looked up.

    stack      the rows of step 0 (m_0 of them), those of step 1 (m_1 <= m_0), ...
    states     H_0 of all m samples, then a stack of what each step has left behind

What is to be done for all steps at once is one product with a stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyidl.arrays.backend import from_host, namespace, read_array, to_numpy
from pyidl.arrays.batch import put_rows, sum_rows, take_rows
from pyidl.errors import InputError

__all__ = ["Timeline"]


@dataclass(frozen=True)
class Timeline:
    """Which of m samples take part in which of T steps; on the host."""

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

    def of(self, samples: slice | np.ndarray) -> Timeline:
        """That of some of the samples."""
        mask = None if self.mask is None else self.mask[samples]
        return Timeline(len(np.arange(self.m)[samples]), self.T, mask)

    # ------------------------------------------------------------- the order of a stack

    @cached_property
    def lengths(self) -> np.ndarray:
        """How many steps each sample has, (m,)."""
        if self.mask is None:
            return np.full(self.m, self.T)
        return np.asarray(np.count_nonzero(self.mask, axis=1))

    @cached_property
    def order(self) -> np.ndarray:
        """The samples, those with most steps first."""
        return np.asarray(np.argsort(-self.lengths, kind="stable"))

    @cached_property
    def counts(self) -> np.ndarray:
        """How many samples have a step 0, 1, ...: m_0 >= m_1 >= ... >= 1."""
        longer = self.lengths[:, None] > np.arange(self.lengths.max())
        return np.asarray(np.count_nonzero(longer, axis=0))

    @cached_property
    def ends(self) -> np.ndarray:
        """Where the rows of each step begin in a stack, and the last ones end."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of each sample in `order`."""
        return np.argsort(self.order)

    @property
    def samples(self) -> np.ndarray:
        """The place in `order` of the sample of each row of a stack."""
        starts = np.repeat(self.ends[:-1], self.counts)
        return np.asarray(np.arange(self.ends[-1]) - starts)

    @cached_property
    def _before(self) -> np.ndarray:
        """The row of `states` with what each row of a stack meets."""
        starts = np.concatenate([[0], self.m + self.ends[:-2]])
        return np.asarray(np.repeat(starts, self.counts) + self.samples)

    @cached_property
    def _seen(self) -> np.ndarray:
        """The row of `states` with what each sample has after each of the T steps."""
        steps = np.cumsum(np.ones((self.m, self.T), int) if self.mask is None else self.mask, 1)
        left = self.m + self.ends[steps - 1] + self.rank[:, None]
        return np.asarray(np.where(steps == 0, self.rank[:, None], left))

    @cached_property
    def _source(self) -> np.ndarray:
        """The place in (m, T) that each row of a stack comes from."""
        assert self.mask is not None
        source = np.empty(self.ends[-1], int)
        source[self._seen[self.mask] - self.m] = np.flatnonzero(self.mask)
        return source

    @cached_property
    def steps(self) -> list[tuple[slice, slice, slice]]:
        """The place of each step in a stack; what it meets and leaves in `states`."""
        ends, m = self.ends.tolist(), self.m
        met = [0, *(m + end for end in ends)]
        return [
            (slice(i, j), slice(k, k + j - i), slice(m + i, m + j))
            for i, j, k in zip(ends, ends[1:], met, strict=False)
        ]

    def step(self, sample: int, k: int) -> int:
        """Which of the T steps is the step k of a sample."""
        return k if self.mask is None else int(np.flatnonzero(self.mask[sample])[k])

    # ------------------------------------------------------------------- to it, and back

    def stack(self, a: Any) -> Any:
        """``(m, T, k) -> (N, k)``."""
        xp = namespace(a)
        if self.mask is None:
            return xp.reshape(xp.permute_dims(a, (1, 0, 2)), (-1, a.shape[2]))
        return take_rows(xp, xp.reshape(a, (-1, a.shape[2])), self._source)

    def unstack(self, a: Any) -> Any:
        """``(N, k) -> (m, T, k)``, zero where a sample does not take part."""
        xp = namespace(a)
        if self.mask is None:
            return xp.permute_dims(xp.reshape(a, (self.T, self.m, a.shape[1])), (1, 0, 2))
        full = xp.zeros((self.m * self.T, a.shape[1]), dtype=a.dtype)
        full = put_rows(xp, full, self._source, a, np.arange(a.shape[0]))
        return xp.reshape(full, (self.m, self.T, a.shape[1]))

    def sorted(self, a: Any) -> Any:
        """Rows of samples, in `order`."""
        return a if self.mask is None else take_rows(namespace(a), a, self.order)

    def unsorted(self, a: Any) -> Any:
        """Rows in `order`, back in their places."""
        return a if self.mask is None else take_rows(namespace(a), a, self.rank)

    def met(self, states: Any) -> Any:
        """What every row of a stack meets: ``(m + N, k) -> (N, k)``."""
        if self.mask is None:
            return states[: -self.m, ...]
        return take_rows(namespace(states), states, self._before)

    def last(self, states: Any) -> Any:
        """What every sample ends with: ``(m + N, k) -> (m, k)``."""
        if self.mask is None:
            return states[-self.m :, ...]
        return take_rows(namespace(states), states, self._seen[:, -1])

    def last_transposed(self, a: Any) -> Any:
        """``(m, k) -> (m + N, k)``: each row where its sample ends, zero elsewhere."""
        xp, rows = namespace(a), int(self.ends[-1])
        if self.mask is None:
            return xp.concat([xp.zeros((rows, a.shape[1]), dtype=a.dtype), a])
        states = xp.zeros((self.m + rows, a.shape[1]), dtype=a.dtype)
        return put_rows(xp, states, self._seen[:, -1], a, np.arange(self.m))

    def spread(self, states: Any) -> Any:
        """What every sample has after every step: ``(m + N, k) -> (m, T, k)``.

        A step in which it takes no part repeats what it had before.
        """
        xp = namespace(states)
        if self.mask is None:
            return self.unstack(states[self.m :, ...])
        rows = take_rows(xp, states, self._seen.reshape(-1))
        return xp.reshape(rows, (self.m, self.T, states.shape[1]))

    def spread_transposed(self, a: Any) -> Any:
        """``(m, T, k) -> (m + N, k)``: sums over the steps that show the same."""
        xp = namespace(a)
        if self.mask is None:
            none = xp.zeros((self.m, a.shape[2]), dtype=a.dtype)
            return xp.concat([none, self.stack(a)])
        flat, place = xp.reshape(a, (-1, a.shape[2])), from_host(xp, self._seen.reshape(-1))
        return sum_rows(xp, flat, place, self.m + int(self.ends[-1]))

    def in_time(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of rows of a stack, in the order of time and samples."""
        return rows if self.mask is None else rows[self._seen.T[self.mask.T] - self.m]

    def every(self, rows: np.ndarray) -> np.ndarray:
        """Which samples have True in all of their rows of a stack, (N,) -> (m,)."""
        missing = np.bincount(self.samples[~rows], minlength=self.m)
        return np.asarray(missing[self.rank] == 0)

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

    # ---------------------------------------------------------------------- parts of it

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Where the stack of some samples, ``of(samples)``, lies in this one."""
        part = self.of(samples)
        starts = np.repeat(self.ends[: len(part.counts)], part.counts)
        return np.asarray(starts + self.rank[samples[part.order]][part.samples])

    def tail(self, first: int) -> Timeline:
        """The steps from `first` on, of the samples in `order`."""
        left = self.lengths[self.order] - first
        mask = None if self.mask is None else np.arange(left.max()) < left[:, None]
        return Timeline(self.m, int(left.max()), mask)

    def since(self, length: int) -> int:
        """The first step that is one of the last `length` of some sample."""
        return max(0, int(self.lengths.min()) - length)

    def cuts(self, length: int) -> np.ndarray:
        """Before which rows of a stack the gradient is cut, (N,).

        Every `length` steps of a sample, from its end, but not before its first.
        """
        step = np.repeat(np.arange(len(self.counts)), self.counts)
        left = self.lengths[self.order][self.samples] - step
        return np.asarray((step > 0) & (left % length == 0))
