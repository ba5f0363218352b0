"""A training run: what it consists of, and what it leaves behind."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyidl.arrays.table import Table, abridged
from pyidl.errors import InputError
from pyidl.layers.base import Layer
from pyidl.optim import Optimizer

__all__ = ["Callback", "History", "Run", "in_words"]


@dataclass(frozen=True)
class History:
    """One record for each epoch.

    ``history["loss"]`` is an array over the epochs; `keys` and `items` go over what was
    recorded, ``len(history)`` is the number of epochs, and `to_frame` makes a table of
    pandas. The keys: epoch, loss, val_loss and the metrics (of the validation data if
    there are any, with ``"val_"`` before the name, otherwise of the training data),
    steps (mean forward steps a sample and solve), failed (samples whose solve failed
    and that were left out), seconds.

    Attributes
    ----------
    records : tuple of mappings
        One for each epoch.
    tol : (float, float) or None
        Tolerances of the solves of training, forward and adjoint; None where they were
        the model's.

    Examples
    --------
    >>> history = History(({"epoch": 1, "loss": 0.5, "seconds": 0.1},))
    >>> history["loss"], history
    (array([0.5]), epoch 1: loss 0.5 (0.10 s))
    >>> history.keys(), dict(history)["epoch"]
    (['epoch', 'loss', 'seconds'], array([1]))
    """

    records: tuple[Mapping[str, float], ...] = ()
    tol: tuple[float, float] | None = None

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.keys():
            raise KeyError(f"{key!r} was not recorded; there are {self.keys() or 'no epochs'}")
        return np.array([record.get(key, math.nan) for record in self.records])

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """What was recorded, in any epoch; where one lacks it, it is NaN.

        A resumed run may have other metrics than its beginning.
        """
        return list(dict.fromkeys(key for record in self.records for key in record))

    def items(self) -> list[tuple[str, np.ndarray]]:
        """Pairs of a key and its array over the epochs."""
        return [(key, self[key]) for key in self.keys()]

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each epoch, which is its index.

        Raises
        ------
        InputError
            If pandas is not installed.
        """
        if importlib.util.find_spec("pandas") is None:
            raise InputError("to_frame needs pandas, which is not installed: pip install pandas")
        import pandas

        columns = dict(self.items())
        epochs = pandas.Index(columns.pop("epoch", []), name="epoch")
        return pandas.DataFrame(columns, index=epochs)

    def _repr_html_(self) -> str:
        """What Jupyter shows: a row for each epoch, of many the first and the last."""
        digits = {"epoch": ".0f"}
        rows = [
            tuple(format(row.get(key, math.nan), digits.get(key, ".4g")) for key in self)
            for row in self.records
        ]
        title = f"History of {len(self)} epochs"
        return Table(title, tuple(self), abridged(rows))._repr_html_()

    def __repr__(self) -> str:
        return "\n".join(map(in_words, self.records)) or "History of no epochs"


def in_words(record: Mapping[str, float]) -> str:
    """One epoch in a line."""
    parts = [
        f"{key} {value:.4g}" for key, value in record.items() if key not in ("epoch", "seconds")
    ]
    return f"epoch {int(record['epoch'])}: " + ", ".join(parts) + f" ({record['seconds']:.2f} s)"


@dataclass
class Run:
    """The state of a training run, as callbacks see it after each epoch.

    Attributes
    ----------
    model, optimizer : Layer, Optimizer
        As they are now.
    rng : numpy.random.Generator
        Draws the order of the samples, and whatever the layers draw.
    epochs : int
        How many were asked for.
    tol : (float, float) or None
        Tolerances of the solves of training, forward and adjoint; None for the model's
        own.
    records : list of dict
        One for each epoch done.
    memory : dict of str to numpy.ndarray
        Where callbacks keep what they must remember; a checkpoint saves it.
    ended : bool
        Whether the last epoch is done. Callbacks see it when all epochs are, and
        checkpoints also when a callback has ended the run.

    Examples
    --------
    >>> def enough(run):  # a callback: True ends the training
    ...     return run.records[-1]["loss"] < 0.1
    >>> from pyidl import ImplicitModel, optim
    >>> rng = np.random.default_rng(0)
    >>> run = Run(ImplicitModel(1, 1, 9, rng=rng), optim.Adam(), rng, epochs=5)
    >>> run.records.append({"epoch": 1, "loss": 0.05, "seconds": 0.1})
    >>> run.epoch, enough(run)
    (1, True)
    """

    model: Layer
    optimizer: Optimizer
    rng: np.random.Generator
    epochs: int
    tol: tuple[float, float] | None = None
    records: list[dict[str, float]] = field(default_factory=list)
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    ended: bool = False

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return len(self.records)


Callback = Callable[[Run], Any]
"""Called after every epoch; returning True ends the training."""
