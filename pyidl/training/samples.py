"""The samples of a training run, checked before any work, and which of them failed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import from_host
from pyidl.errors import ConvergenceError, ConvergenceWarning, InputError
from pyidl.layers.base import Layer

__all__ = ["Failed", "OnFailedSamples", "Samples", "check_on_fail", "gathered", "returned_pair"]

MAX_FAILED = 0.1

OnFailedSamples = Literal["skip", "raise", "warn", "ignore"]


@dataclass(frozen=True)
class Samples:
    """Inputs, targets and weights of m samples."""

    inputs: tuple[Any, ...]
    target: Any
    weights: Any
    m: int
    unit: float = 1.0
    """The largest weight of all samples.

    In this unit weights are added up, so that no sum of them overflows.
    """

    @classmethod
    def read(cls, data: Any, model: Layer, name: str) -> Samples:
        """``(inputs, targets)`` or ``(inputs, targets, weights)``, as given to `fit`.

        Raises
        ------
        InputError
            If they do not fit together, or are not finite.
        DeviceMismatchError
            If they do not live where the model does.
        """
        if not (isinstance(data, (tuple, list)) and len(data) in (2, 3)):
            raise InputError(f"{name} must be (inputs, targets) or (inputs, targets, weights)")
        inputs = data[0] if isinstance(data[0], tuple) else (data[0],)
        given = (*inputs, data[1], *(w for w in data[2:] if w is not None))
        parts_of = ["inputs"] * len(inputs) + ["targets", "weights"]
        # Rows are taken of sparse inputs, which is done by compressed rows; nothing else
        # that is given may be sparse.
        parts = [
            a.tocsr()
            if word == "inputs" and backend.is_sparse(a)
            else a
            if backend.is_array(a)
            else from_host(model.xp, backend.read_array(a, f"{word} of {name}"))
            for word, a in zip(parts_of, given)  # noqa: B905 (there may be no weights)
        ]
        lengths = {a.shape[0] if a.ndim else 0 for a in parts}
        if len(lengths) != 1 or lengths == {0}:
            raise InputError(
                f"inputs, targets and weights of {name} have {[a.shape for a in parts]}; they must "
                "share a first axis of at least 1"
            )
        full = [a for a in parts if backend.is_array(a)]
        backend.namespace(*full, *model.params.values())
        weights = parts[-1] if len(data) == 3 and data[2] is not None else None
        read = cls(tuple(parts[: len(inputs)]), parts[len(inputs)], weights, lengths.pop())
        read = read if weights is None else read._with_weight(name)
        for words, arrays in (("inputs", read.inputs), ("targets", (read.target,))):
            if not all(_finite(a) for a in arrays):
                raise InputError(
                    f"the {words} of {name} have entries that are NaN or infinite; clean them, or "
                    "give their samples the weight 0"
                )
        return read

    def _with_weight(self, name: str) -> Samples:
        """Without the samples of weight 0.

        They would only be able to fill a batch with nothing.
        """
        host, words = backend.to_numpy(self.weights), f"weights of {name}"
        weights = np.asarray(backend.as_real(host, name=words, xp=np, dtype="float64"))
        if weights.ndim not in (1, 2) or np.any(weights < 0) or not np.any(weights > 0):
            raise InputError(
                f"the {words} must be one number >= 0 for each sample or position, and not all of "
                "them 0"
            )
        some = weights.reshape(self.m, -1).any(axis=1)
        read = replace(self, unit=float(weights.max()))
        return read if np.all(some) else read.take(np.flatnonzero(some))

    def take(self, rows: np.ndarray) -> Samples:
        """Some of the samples."""
        xp = backend.namespace(self.target)
        index = from_host(xp, rows)
        weights = None if self.weights is None else xp.take(self.weights, index, axis=0)
        # Frozen, since nobody else has them: a model does not copy them again.
        inputs = tuple(
            a[rows] if backend.is_sparse(a) else backend.freeze(xp.take(a, index, axis=0))
            for a in self.inputs
        )
        target = xp.take(self.target, index, axis=0)
        return replace(self, inputs=inputs, target=target, weights=weights, m=len(rows))

    def loss(self, loss: Callable[..., Any], Y: Any) -> tuple[Any, Any]:
        """Value and derivative of the mean loss of these samples."""
        if self.weights is None:
            return returned_pair("loss", loss(Y, self.target))
        return returned_pair("loss", loss(Y, self.target, weights=self.weights))

    @property
    def total(self) -> Any:
        """The weight of these samples in a mean over all batches."""
        if self.weights is None:
            return self.m
        xp = backend.namespace(self.weights)
        return xp.sum(backend.astype(xp, self.weights, "float64") / self.unit)


@dataclass
class Failed:
    """Which samples failed and were left out, and what the last of them said."""

    samples: np.ndarray
    last: str = ""

    def note(self, rows: np.ndarray, error: ConvergenceError) -> np.ndarray:
        """Those of the rows that are left."""
        self.samples[rows[~error.converged]] = True
        self.last = str(error)
        return np.asarray(rows[error.converged])

    def count(self, where: str, stacklevel: int) -> int:
        """How many they are: a warning, and an error if more than a tenth.

        `stacklevel` is that of `warnings.warn` where this is called.
        """
        count, m = int(self.samples.sum()), len(self.samples)
        words = f"the solves of {count} of {m} samples {where}"
        if count > MAX_FAILED * m:
            raise ConvergenceError(
                f"{words}, more than a tenth. The last of them: {self.last}", ~self.samples
            )
        if count:
            warnings.warn(
                f"{words}; they were left out. The last of them: {self.last}",
                ConvergenceWarning,
                stacklevel=stacklevel + 1,
            )
        return count


def check_on_fail(on_fail: Any) -> None:
    """Refuse what is no choice for samples that fail."""
    if on_fail not in ("skip", "raise", "warn", "ignore"):
        raise InputError(f"on_fail is {on_fail!r}; use 'skip', 'raise', 'warn' or 'ignore'")


def gathered(door: str, data: Any, targets: Any, weights: Any) -> Any:
    """``(inputs, targets, weights)``, in whichever way they were given to this door."""
    if targets is not None:
        if isinstance(data, tuple):
            raise InputError(
                "data is a tuple, and targets are given as well; a tuple holds the targets too: "
                f"{door}(model, (U, targets), ...), and with several inputs "
                f"{door}(model, ((U, lengths), targets), ...)"
            )
        return data, targets, weights
    if weights is not None:
        raise InputError(
            f"weights are given, and no targets; write {door}(model, U, targets, weights, ...), "
            f"or {door}(model, (U, targets, weights), ...)"
        )
    if backend.is_array(data):
        raise InputError(
            f"data is one array, and no targets are given; write {door}(model, U, targets, ...)"
        )
    return data


def returned_pair(name: str, given: Any) -> tuple[Any, Any]:
    """Value and derivative, as a function of the caller's has returned them."""
    if not (isinstance(given, (tuple, list)) and len(given) == 2):
        raise InputError(
            f"{name} has returned {given!r}; it returns a pair, the value and its derivative"
        )
    return given[0], given[1]


def _finite(a: Any) -> bool:
    """Whether no entry of an array of real numbers is NaN or infinite."""
    a = a.data if backend.is_sparse(a) else a
    xp = backend.namespace(a)
    return not xp.isdtype(a.dtype, "real floating") or backend.all_finite(xp, a)
