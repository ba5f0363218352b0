"""Where the states of a fit come from.

Chunk by chunk, as often as they are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.errors import ConvergenceError, InputError, is_whole
from pyidl.layers import ImplicitModel
from pyidl.layers.base import check_width
from pyidl.sim.moments import Moments
from pyidl.sim.states import States, iter_states
from pyidl.typing import Array

__all__ = ["Shape", "Source"]

ENTRIES = 2**20
"""Numbers in a chunk, if nothing is said of its size: 8 MB, of which a fit makes 30."""


@dataclass(frozen=True)
class Shape:
    """Widths of states, inputs, outputs, and blocks of states; and the activation."""

    n: int
    p: int
    q: int
    widths: tuple[int, ...]
    activation: Activation

    @property
    def rows(self) -> int:
        """Samples in a chunk, which is not smaller than the sums that it adds to."""
        return max(self.n + self.p, ENTRIES // (2 * self.n + self.p + self.q))


@dataclass(frozen=True)
class Source:
    """A network and its inputs, or states that were collected before."""

    network: Any
    U: Any
    batch_size: int | None
    at: tuple[int, ...] | None
    shape: Shape

    @classmethod
    def of(
        cls,
        network: Any,
        U: Any,
        samples: int | None,
        batch_size: int | None,
        at: tuple[int, ...] | None,
        rng: np.random.Generator,
    ) -> Source:
        """From the arguments of `fit`; one sample is run to learn the shapes."""
        if batch_size is not None:
            check_width("batch_size", batch_size)
        if isinstance(network, States):
            if U is not None or at is not None:
                raise InputError("states were given, with their inputs; leave out U and at")
            if samples is not None:
                network = network.take(_drawn(rng, samples, network.U.shape[0]))
            return cls(network, None, batch_size, None, _shape(network))
        if U is None:
            raise InputError(
                "U is missing: the inputs on which the states of the network are collected"
            )
        U, head = _with_head(U)
        if isinstance(U, type) or not getattr(head, "ndim", 0):
            raise InputError(f"U is {U!r}; arrays with one sample a row are needed")
        if samples is not None:
            if head is not U:
                raise InputError(
                    "samples are drawn from one array, and U comes in chunks; draw from each of "
                    "them, or leave out samples"
                )
            drawn = _drawn(rng, samples, U.shape[0])
            U = take_rows(namespace(U), U, drawn) if backend.is_array(U) else U[drawn]
        head = head[:1, ...]
        if hasattr(head, "__dask_graph__"):
            head = head.compute()
        return cls(network, U, batch_size, at, _shape(next(iter_states(network, head, at=at))))

    def states(self) -> Iterable[Any]:
        """The states, in chunks; delayed ones for inputs of Dask."""
        size = self.batch_size or self.shape.rows
        if isinstance(self.network, States):
            m = self.network.U.shape[0]
            return (self.network.take(np.arange(i, min(i + size, m))) for i in range(0, m, size))
        U = iter(self.U) if isinstance(self.U, tuple) else self.U
        own = hasattr(U, "__dask_graph__")
        return iter_states(self.network, U, self.batch_size if own else size, at=self.at)

    def regenerated(self, model: ImplicitModel) -> Iterable[Any]:
        """The moments of every chunk, of the model's fixed points.

        They stand in the place of the network's states.
        """
        for chunk in self.states():
            if hasattr(chunk, "__dask_graph__"):
                import dask

                yield dask.delayed(_regenerated, pure=False)(model, chunk)
            else:
                yield _regenerated(model, chunk)


def _with_head(U: Any) -> tuple[Any, Any]:
    """The inputs, and the first of their chunks."""
    if isinstance(U, Iterator):
        head = next(U, None)
        if head is None:
            raise InputError("U is an iterator without chunks; at least one sample is needed")
        return itertools.chain([head], U), head
    if isinstance(U, (list, tuple)) and U and all(getattr(part, "ndim", 0) >= 2 for part in U):
        return tuple(U), U[0]
    U = U if hasattr(U, "shape") and not hasattr(U, "iloc") else np.asarray(U)
    return U, U


def _shape(states: States) -> Shape:
    return Shape(
        states.X.shape[1], states.U.shape[1], states.Y.shape[1], states.widths, states.activation
    )


def _drawn(rng: np.random.Generator, samples: int, m: int) -> np.ndarray:
    if not (is_whole(samples) and 1 <= samples <= m):
        raise InputError(f"samples is {samples!r}; there are {m}: draw from 1 to {m} of them")
    return np.sort(rng.choice(m, int(samples), replace=False))


def _regenerated(model: ImplicitModel, states: States) -> Moments:
    """The moments of the samples whose fixed points are found."""
    xp = namespace(states.U)
    solution = model.equilibrium(states.U, on_fail="ignore")
    found = np.flatnonzero(solution.converged)
    if not len(found):
        raise ConvergenceError(
            f"no fixed point of the model was found for {len(solution.converged)} samples; use a "
            "constraint that makes it well-posed, or "
            "refit_rounds=0",
            solution.converged,
        )
    X = backend.astype(xp, solution.value, states.U.dtype)

    def some(a: Array) -> Array:
        return take_rows(xp, a, found)  # type: ignore[no-any-return]

    return Moments.of(xp.concat([some(X), some(states.U)], axis=1), some(states.targets))
