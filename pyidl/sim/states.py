r"""The states of a trained network.

Its inputs U, pre-activations Z, states ``X = phi(Z)``, outputs Y, one sample a row.

Z and X hold one block of columns for each activation, the last one first: x = (x_L,
..., x_1), in which the network's own A is strictly block upper triangular. From these
alone an implicit model is learned, ``Z ~ X A^T + U B^T + b``, ``Y ~ X C^T + U D^T +
d``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation, Blocks
from pyidl.activations.base import joint
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import take_rows
from pyidl.compose.perceptron import is_perceptron
from pyidl.errors import InputError, is_whole
from pyidl.layers import ImplicitModel, Sequential
from pyidl.layers.base import check_width
from pyidl.sim.moments import Moments
from pyidl.sim.networks import Feedforward, Network, Record, read_chain
from pyidl.sim.torch_network import Watched, is_torch
from pyidl.typing import Array

__all__ = ["States", "collect_states", "iter_states"]


@dataclass(frozen=True, eq=False)
class States:
    """What an implicit model is learned from.

    Parameters
    ----------
    U : array, shape (m, p)
        Inputs.
    Z, X : array, shape (m, n)
        Pre-activations and states, ``X = phi(Z)``; the blocks of the last activation
        first.
    Y : array, shape (m, q)
        Outputs, before an activation of the output.
    activation : Activation
        phi: one for all components, or `Blocks` of total width n.
    widths : tuple of int
        The widths of the blocks, last activation first; empty for one block.

    Raises
    ------
    InputError
        If shapes do not fit, an entry is not finite, or X is not phi(Z).
    DeviceMismatchError
        If the arrays belong to different libraries.

    Examples
    --------
    >>> from pyidl import activations
    >>> Z, one = np.array([[1.0, -1.0]]), np.ones((1, 1))
    >>> States(one, Z, np.maximum(Z, 0), one, activation=activations.relu).widths
    (2,)
    """

    U: Array
    Z: Array
    X: Array
    Y: Array
    activation: Activation
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        xp = namespace(*(a for a in (self.U, self.Z, self.X, self.Y) if backend.is_array(a)))
        Z = backend.as_real(self.Z, name="Z", xp=xp, dtype=_dtype(xp, self.Z))
        object.__setattr__(self, "Z", Z)
        for name in ("U", "X", "Y"):
            object.__setattr__(
                self,
                name,
                backend.as_real(getattr(self, name), name=name, xp=xp, dtype=backend.real_dtype(Z)),
            )
        arrays = {name: getattr(self, name) for name in ("U", "Z", "X", "Y")}
        if (
            Z.ndim != 2
            or any(a.ndim != 2 or a.shape[0] != Z.shape[0] or a.size == 0 for a in arrays.values())
            or self.X.shape != Z.shape
        ):
            shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
            raise InputError(
                f"states have the shapes {shapes}; needed are U (m, p), Z and X (m, n), Y (m, q), "
                "none empty"
            )
        n, phi = Z.shape[1], self.activation
        if not isinstance(phi, Activation) or (isinstance(phi, Blocks) and phi.width != n):
            raise InputError(
                f"activation is {phi!r}, the states have {n} components; use one of "
                "pyidl.activations, or Blocks of that width"
            )
        if not (
            isinstance(self.widths, (tuple, list))
            and all(is_whole(width) and width >= 1 for width in self.widths)
        ):
            raise InputError(
                f"widths is {self.widths!r}; it holds the widths of the blocks, positive integers"
            )
        object.__setattr__(self, "widths", tuple(self.widths) or (n,))
        if sum(self.widths) != n:
            raise InputError(
                f"the blocks have widths {self.widths}, {sum(self.widths)} in all, and the states "
                f"{n} components"
            )
        # What is rounded elsewhere may differ in half of the digits; a block in the
        # wrong place differs in all of them.
        error = float(xp.max(xp.abs(phi(Z) - self.X) / (1.0 + xp.abs(self.X))))
        if not error <= float(xp.finfo(Z.dtype).eps) ** 0.5:
            raise InputError(
                f"X is not {phi.name}(Z): they differ by {error:.3g} of 1 + |X|; give the "
                "activation of every block, in the blocks' order"
            )

    @property
    def inputs(self) -> Array:
        """``[X, U]``, shape (m, n + p).

        What a least-squares fit explains `targets` with.
        """
        return namespace(self.X).concat([self.X, self.U], axis=1)  # type: ignore[no-any-return]

    @property
    def targets(self) -> Array:
        """``[Z, Y]``, shape (m, n + q)."""
        return namespace(self.Z).concat([self.Z, self.Y], axis=1)  # type: ignore[no-any-return]

    def moments(self) -> Moments:
        """What a least-squares fit needs of them."""
        return Moments.of(self.inputs, self.targets)

    def take(self, rows: np.ndarray) -> States:
        """Some of the samples, numbered on the host."""
        xp = namespace(self.Z)
        U, Z, X, Y = (take_rows(xp, a, rows) for a in (self.U, self.Z, self.X, self.Y))
        return States(U, Z, X, Y, self.activation, self.widths)

    @classmethod
    def joined(cls, chunks: Iterable[States]) -> States:
        """The samples of all chunks, one below the other."""
        parts = list(chunks)
        if not parts:
            raise InputError("there are no chunks to join; give at least one sample")
        if len(parts) == 1:
            return parts[0]
        xp, first = namespace(parts[0].Z), parts[0]
        U, Z, X, Y = (
            xp.concat([getattr(part, name) for part in parts]) for name in ("U", "Z", "X", "Y")
        )
        return cls(U, Z, X, Y, first.activation, first.widths)

    def __repr__(self) -> str:
        m, n = self.Z.shape
        return (
            f"States({m} samples, {self.U.shape[1]} inputs, {n} states in blocks of {self.widths}, "
            f"{self.Y.shape[1]} outputs)"
        )


def _dtype(xp: Any, a: Any) -> str:
    return "float32" if backend.is_array(a) and a.dtype == xp.float32 else "float64"


def collect_states(
    network: Any, U: Any, *, batch_size: int | None = None, at: tuple[int, ...] | None = None
) -> States:
    """Run a network and keep what goes into its activations and what comes out.

    The network is left as it was. An activation of its output is not a state: Y is what
    goes into it (logits).

    Parameters
    ----------
    network : Sequential, ImplicitModel, Feedforward, a perceptron, or a Module
        A `Sequential` of linear layers, activations and implicit models; plain arrays
        as `Feedforward`; scikit-learn's fitted perceptrons; any module of PyTorch whose
        activations are modules. Its states are collected in evaluation mode.
    U : array, shape (m, p)
        The inputs (for PyTorch of any shape that its module takes, the samples along
        the first axis); a `dask.array` in chunks of rows, which is computed where its
        owner's scheduler says; or an iterator of chunks.
    batch_size : int, optional
        At most so many samples pass the network at a time.
    at : tuple of int, optional
        Which activations are states, numbered from 0 in the order of evaluation;
        negative numbers count from the last. By default all. Those inside a block of a
        deep network may be left out, say, and only its last one kept.

    Returns
    -------
    States
        The blocks of the last activation first.

    Raises
    ------
    InputError
        If the network is not one of these, has no hidden activation, or one that pyidl
        has not; if U does not fit.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations
    >>> relu, tanh = activations.relu, activations.tanh
    >>> layers = [Linear(4, 3, rng=0), Linear(3, 2, rng=1), Linear(2, 1, rng=2)]
    >>> net = Sequential(layers[0], relu, layers[1], tanh, layers[2])
    >>> states = collect_states(net, np.ones((5, 4)))
    >>> states.widths, states.activation.name
    ((2, 3), 'Blocks((tanh, 2), (relu, 3))')
    """
    chunks = iter_states(network, U, batch_size, at=at)
    if _is_dask(U):
        import dask

        return States.joined(dask.compute(*chunks))
    return States.joined(chunks)


def iter_states(
    network: Any, U: Any, batch_size: int | None = None, *, at: tuple[int, ...] | None = None
) -> Iterator[Any]:
    """The states in chunks, one at a time: neither they nor U need fit in memory.

    Parameters
    ----------
    network, at
        As for `collect_states`.
    U : array, iterator of arrays, or dask.array
        U may be a memory-mapped file. Of a `dask.array` the chunks are delayed objects,
        for `accumulate`.
    batch_size : int, optional
        The number of samples in a chunk; without it, those of the iterator, or all. A
        `dask.array` has chunks of its own.

    Yields
    ------
    States
        Of one chunk.

    Raises
    ------
    InputError
        As for `collect_states`; if there is a `batch_size` for a `dask.array`.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations
    >>> net = Sequential(Linear(4, 3, rng=0), activations.relu, Linear(3, 1, rng=1))
    >>> [len(states.U) for states in iter_states(net, np.ones((5, 4)), 2)]
    [2, 2, 1]
    """
    if batch_size is not None:
        check_width("batch_size", batch_size)
    reader = _reader(network)  # before any work, and before the first chunk is asked for
    if _is_dask(U):
        if batch_size is not None:
            raise InputError(
                f"batch_size is {batch_size}, and U has chunks of its own; use "
                f"U.rechunk({{0: {batch_size}}})"
            )
        return _delayed(network, U, at)
    pieces = U if isinstance(U, Iterator) else iter((U,))
    return (_states(reader, piece, at) for whole in pieces for piece in _cut(whole, batch_size))


def _reader(network: Any) -> Network:
    """Find out what kind of network it is."""
    if isinstance(network, (Feedforward, ImplicitModel, Sequential)) or is_perceptron(network):
        return read_chain(network)
    if is_torch(network):
        return Watched(network)
    raise InputError(
        f"network: no states can be read from {type(network).__name__}; use a Sequential of Linear "
        "layers and activations, an "
        "ImplicitModel, sim.Feedforward([(W, b), ...], activation), a fitted MLP of scikit-learn, "
        "a torch.nn.Module, or give the arrays: "
        "sim.States(...)"
    )


def _cut(U: Any, batch_size: int | None) -> Iterator[Any]:
    if batch_size is None:
        yield U
        return
    U = U if hasattr(U, "shape") and not hasattr(U, "iloc") else np.asarray(U)
    for i in range(0, max(1, U.shape[0]), batch_size):
        yield U[i : min(i + batch_size, U.shape[0]), ...]


def _states(reader: Network, U: Any, at: tuple[int, ...] | None) -> States:
    """One chunk, its chosen activations stacked."""
    U, records, Y = reader.run(U)
    chosen = _chosen(records, at)[::-1]
    xp = namespace(Y)
    widths = tuple(record.Z.shape[1] for record in chosen)
    phi = joint([(record.activation, width) for record, width in zip(chosen, widths, strict=True)])
    Z, X = (xp.concat([getattr(record, name) for record in chosen], axis=1) for name in ("Z", "X"))
    return States(U, Z, X, Y, phi, widths)


def _chosen(records: list[Record], at: tuple[int, ...] | None) -> list[Record]:
    if at is None:
        return records
    count = len(records)
    numbers = isinstance(at, (tuple, list)) and all(is_whole(i) and -count <= i < count for i in at)
    if not (at and numbers and len({i % count for i in at}) == len(at)):
        raise InputError(
            f"at is {at!r}; the network has {count} hidden activations: give different numbers "
            f"from 0 to {count - 1}"
        )
    return [records[i] for i in sorted(i % count for i in at)]


def _is_dask(U: Any) -> bool:
    return hasattr(U, "to_delayed") and hasattr(U, "__dask_graph__")


def _delayed(network: Any, U: Any, at: tuple[int, ...] | None) -> Iterator[Any]:
    """One task for each chunk of rows; the network is in the graph once."""
    import dask

    shared = dask.delayed(network, traverse=False)
    rows = U.rechunk(dict.fromkeys(range(1, U.ndim), -1)).to_delayed().reshape(-1)
    task = dask.delayed(collect_states, pure=False)
    return (task(shared, block, at=at) for block in rows)
