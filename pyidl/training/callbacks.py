"""What `fit` calls after each epoch.

Stopping early, and writing checkpoints from which a run goes on to the last bit.

A callback is any function of the `Run`; returning True ends the training. These two are
frozen dataclasses: what they must remember is kept in ``run.memory``, and so in the
checkpoint.

In which order callbacks are given makes no difference to these two. A checkpoint is
written when all the others have been called, so that it holds what each of them
remembers of this epoch; the best parameters come back when training has ended, after
the last checkpoint, which holds those of the last epoch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pyidl import io
from pyidl.arrays import backend
from pyidl.arrays.backend import from_host
from pyidl.errors import FileFormatError, InputError, expect, expect_flags, is_real, is_whole
from pyidl.training.run import Run

__all__ = ["Checkpoint", "EarlyStopping", "restore"]

_NOTHING = (math.nan, 0, -1)
"""What is remembered at first: the best number, its epoch, the last that was seen."""


@dataclass(frozen=True)
class EarlyStopping:
    """End the training when a recorded number has not improved for some epochs.

    A NaN is no improvement. Epochs of a resumed run count as well, unless it was not
    watched in between.

    Parameters
    ----------
    patience : int
        Epochs without improvement before it ends.
    monitor : str
        A key of the history.
    mode : {"min", "max"}
        Which way is better.
    min_delta : float
        How much better it must be to count.
    restore_best : bool
        Whether the model gets back the parameters of the best epoch when training ends,
        whatever ends it but an error. (Of several, those of the one that ended it. If
        no epoch had a number, the model keeps what it has.)

    Raises
    ------
    InputError
        If a number is out of range; after the first epoch, if `monitor` is not
        recorded.

    Examples
    --------
    >>> import pyidl
    >>> U = np.linspace(-2, 2, 64)[:, None]
    >>> model = pyidl.ImplicitModel(1, 1, 9, rng=0)
    >>> stop = EarlyStopping(patience=2, monitor="loss", min_delta=1.0)
    >>> history = pyidl.fit(
    ...     model, U, np.sin(U), loss="mse", epochs=50, callbacks=[stop], rng=0,
    ...     verbose=0,
    ... )
    >>> len(history)
    3
    """

    patience: int = 10
    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        counts = is_whole(self.patience) and self.patience >= 1
        margin = is_real(self.min_delta) and self.min_delta >= 0
        if not (counts and margin and self.mode in ("min", "max")):
            raise InputError(
                f"{self} makes no sense: patience is an integer >= 1, mode 'min' or 'max', "
                "min_delta >= 0"
            )
        expect("monitor", self.monitor, str, "name a key of the history, such as 'val_loss'")
        expect_flags(self, "restore_best")
        object.__setattr__(self, "min_delta", float(self.min_delta))

    def __call__(self, run: Run) -> bool:
        """Remember the best epoch; True when patience is over."""
        if self.monitor not in run.records[-1]:
            raise InputError(
                f"EarlyStopping watches {self.monitor!r}, and this run records "
                f"{', '.join(run.records[-1])}; "
                "give fit a validation set, or watch another of them"
            )
        value = run.records[-1][self.monitor] * (1 if self.mode == "min" else -1)
        least, best, seen = run.memory.get(self._key, _NOTHING)
        improved = value < least - self.min_delta or (math.isnan(least) and value == value)
        if improved or seen < run.epoch - 1:  # without the epoch before, it begins anew
            least, best = value, run.epoch
            if self.restore_best:
                run.memory |= {
                    f"{self._key}: {key}": backend.to_numpy(a)
                    for key, a in run.model.params.items()
                }
        run.memory[self._key] = np.array([least, best, run.epoch])
        return self.is_over(run)

    @property
    def _key(self) -> str:
        """Under which it remembers: all that says which epoch is the best."""
        return f"best {self.monitor}, {self.mode} by {self.min_delta}, {self.restore_best}"

    def _best(self, run: Run) -> tuple[float, int]:
        """The best number so far, and its epoch; NaN where the last was not watched."""
        least, best, seen = run.memory.get(self._key, _NOTHING)
        return (float(least), int(best)) if seen == run.epoch else (math.nan, run.epoch)

    def is_over(self, run: Run) -> bool:
        """Whether patience is over, at the last epoch that was watched."""
        return run.epoch - self._best(run)[1] >= self.patience

    def restore(self, run: Run) -> None:
        """Give the model the parameters of the best epoch, if `restore_best`.

        `fit` does it at the end, for those that it was given as callbacks.
        """
        if self.restore_best and not math.isnan(self._best(run)[0]):
            run.model.params = {
                key: from_host(run.model.xp, run.memory[f"{self._key}: {key}"])
                for key in run.model.params
            }


@dataclass(frozen=True)
class Checkpoint:
    """Write everything that a run needs to go on, every few epochs and at the end.

    ``fit(..., resume=path)`` continues it. `fit` calls it after all other callbacks,
    wherever it stands; after an error, the file holds the last epoch that had none and
    was written. (Within a callback of your own it holds what the others have remembered
    until then.)

    Parameters
    ----------
    path : str or Path
        Overwritten atomically.
    every : int
        Epochs between two writes.

    Raises
    ------
    InputError
        If `path` is no name, or `every` no positive integer.

    Examples
    --------
    >>> import pyidl, tempfile
    >>> path, U = Path(tempfile.mkdtemp()) / "run.npz", np.linspace(-2, 2, 64)[:, None]
    >>> def run(epochs, resume=None):
    ...     return pyidl.fit(
    ...         pyidl.ImplicitModel(1, 1, 9, rng=0), U, np.sin(U), loss="mse", rng=0,
    ...         epochs=epochs, callbacks=[Checkpoint(path)], resume=resume, verbose=0,
    ...     )
    >>> _ = run(2)
    >>> bool(run(4, resume=path)["loss"][-1] == run(4)["loss"][-1])
    True
    """

    path: str | Path
    every: int = 1

    def __post_init__(self) -> None:
        expect(
            "path", self.path, (str, os.PathLike), "the name of a file is needed, a str or a Path"
        )
        if not (is_whole(self.every) and self.every >= 1):
            raise InputError(
                f"every is {self.every!r}; an integer is needed, a checkpoint is written every one "
                "or more epochs"
            )

    def __call__(self, run: Run) -> None:
        """Write the file."""
        if run.epoch % self.every and not run.ended:
            return
        groups = {
            "params": run.model.params,
            "optimizer": run.optimizer.state,
            "memory": run.memory,
        }
        arrays = {
            f"{group}/{key}": backend.to_numpy(a)
            for group, members in groups.items()
            for key, a in members.items()
        }
        header = {
            "kind": "checkpoint",
            "optimizer": type(run.optimizer).__name__,
            "count": run.optimizer.count,
            "rng": run.rng.bit_generator.state,
            "tol": run.tol,
            "records": run.records,
        }
        io.write_npz(self.path, arrays, header)


def restore(run: Run, path: str | Path) -> None:
    """Put a run into the state that a checkpoint has kept.

    Nothing is changed unless all of it fits.
    """
    header, arrays = io.read_npz(path)
    if header.get("kind") != "checkpoint":
        raise FileFormatError(
            f"{path} is not a checkpoint of fit; a model file is read by pyidl.load"
        )
    groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "optimizer": {}, "memory": {}}
    try:
        optimizer, count, bits, records = (
            header[key] for key in ("optimizer", "count", "rng", "records")
        )
        written_by = bits["bit_generator"]
        tol = None if header.get("tol") is None else tuple(map(float, header["tol"]))
        for key, a in arrays.items():
            group, _, name = key.partition("/")
            groups[group][name] = a
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not a complete checkpoint: {error!r} is missing; it was edited, or not "
            "written by fit"
        ) from error
    own, generator = type(run.optimizer).__name__, type(run.rng.bit_generator).__name__
    if optimizer != own:
        raise InputError(f"{path} was written with the optimiser {optimizer}, this run uses {own}")
    if written_by != generator:
        raise InputError(
            f"{path} was written with the generator {written_by}, this run uses {generator}"
        )
    if tol != run.tol:
        cure = f"go on with tol={tol}, or start anew without resume"
        raise InputError(f"{path} was written with tol = {tol}, this run uses {run.tol}; {cure}")
    xp = run.model.xp
    checked = run.model._checked({key: from_host(xp, a) for key, a in groups["params"].items()})
    run.optimizer.state = {key: from_host(xp, a) for key, a in groups["optimizer"].items()}
    run.optimizer.count = count
    run.model._store(checked)
    run.rng.bit_generator.state = bits
    run.records, run.memory = records, groups["memory"]
