"""Training: the loop that everyone would otherwise write, with everything in it counted.

    Y, pull = model(U);  value, dY = loss(Y, target);  _, grads = pull(dY)
    model.params = model.project(optimizer.step(model.params, grads))

The projection belongs to the step: after each one the model lies in its well-posed set
again, and the forward pass and its gradient use the parameters as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import from_host
from pyidl.errors import ConvergenceError, ConvergenceWarning, InputError, expect, is_real, is_whole
from pyidl.layers.base import Layer, check_width
from pyidl.training.callbacks import restore
from pyidl.training.run import Callback, History, Optimizer, Run, in_words
from pyidl.training.tolerance import Tolerances, Twin, read_tol
from pyidl.typing import Array, Params, Rng

__all__ = ["Loss", "Metric", "OnFailedSamples", "Penalty", "fit"]

LOGGER = logging.getLogger("pyidl")
MAX_FAILED = 0.1

Loss = Callable[..., tuple[Any, Any]]
Metric = Callable[[Any, Any], Any]
Penalty = Callable[[Params], tuple[Any, Mapping[str, Array]]]
OnFailedSamples = Literal["skip", "raise", "warn", "ignore"]


def fit(
    model: Layer,
    data: tuple[Any, ...],
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = 64,
    validation: tuple[Any, ...] | None = None,
    rng: Rng = None,
    metrics: Sequence[Metric] = (),
    penalty: Penalty | None = None,
    tol: Tolerances | None = (1e-4, 1e-3),
    on_fail: OnFailedSamples = "skip",
    callbacks: Iterable[Callback] = (),
    verbose: int = 1,
    resume: str | Path | None = None,
) -> History:
    """Train a model in place and return what happened.

    Parameters
    ----------
    model : Layer
        Its `params` are replaced after every step, and projected into its well-posed
        set.
    data : (inputs, targets) or (inputs, targets, weights)
        `inputs` is one array or a tuple of arrays that share their first axis;
        `weights` (m,) weigh the samples, those of (m, T) the positions of sequences.
        Samples all of whose weights are 0 are left out.
    loss : callable
        ``loss(Y, target) -> (value, dY)``, with ``weights=`` where weights are given;
        see `pyidl.losses`.
    optimizer : Optimizer
        See `pyidl.optim`; learning-rate schedules and gradient clipping are options of
        it.
    epochs : int
        How often every sample is seen; with `resume`, including the epochs already
        done.
    batch_size : int or None
        Samples per step; None takes all at once.
    validation : like `data`, optional
        Evaluated after each epoch.
    rng : Generator, int or None
        Draws the order of the samples, on the host, and is handed to layers that draw.
    metrics : sequence of callables
        ``metric(Y, target) -> float``, evaluated after each epoch on the validation
        data, or else on the training data.
    penalty : callable, optional
        ``penalty(params) -> (value, grads)``, added to the loss; `grads` may leave out
        keys.
    tol : (float, float), optional
        Tolerances of the solves of training, wherever in the model they are: forward,
        relative to the state, and adjoint, relative to its right-hand side. Evaluation,
        metrics, callbacks and whoever uses the model afterwards keep the model's own,
        which None also trains with. The default costs no accuracy that could be
        measured, and up to a quarter of the time less (docs/performance.md).
    on_fail : {"skip", "raise", "warn", "ignore"}
        What happens to samples whose solve does not converge. "skip" leaves them out of
        the step, counts them in the history and reports them once per epoch; it raises
        when more than a tenth of an epoch fails.
    callbacks : iterable of callables
        Called with the `Run` after every epoch; True ends the training. See
        `EarlyStopping`, `Checkpoint`.
    verbose : int
        1 shows progress, by tqdm where it is installed and by the logger "pyidl" where
        not; 0 is silent.
    resume : path, optional
        A file of `Checkpoint`: the run goes on as if it had not been interrupted, to
        the last bit.

    Returns
    -------
    History

    Raises
    ------
    InputError
        Before any work, if the data do not fit together, or are not finite, or if the
        dtype of the model cannot resolve `tol`. In the first epoch, in which every
        sample is met, if the loss refuses a target, say; model, optimiser and generator
        are then as they were.
    ConvergenceError
        As `on_fail` says.

    Examples
    --------
    >>> import pyidl
    >>> U = np.linspace(-2, 2, 64)[:, None]
    >>> model = pyidl.ImplicitModel(1, 1, 20, rng=0)
    >>> adam = pyidl.optim.Adam(1e-2)
    >>> history = pyidl.fit(model, (U, np.sin(U)), loss=pyidl.losses.mse, optimizer=adam, epochs=20, rng=0, verbose=0)
    >>> bool(history["loss"][-1] < history["loss"][0])
    True
    """
    expect("model", model, Layer, "fit trains a Layer")
    tol = read_tol(tol, model)
    if on_fail not in ("skip", "raise", "warn", "ignore"):
        raise InputError(f"on_fail is {on_fail!r}; use 'skip', 'raise', 'warn' or 'ignore'")
    epochs = check_width("epochs", epochs)
    if batch_size is not None:
        batch_size = check_width("batch_size", batch_size)
    for name, several in (("metrics", metrics), ("callbacks", callbacks)):
        if not isinstance(several, Iterable) or isinstance(several, Mapping):
            raise InputError(
                f"{name} is {several!r}; a sequence of functions is needed, also of a single one"
            )
    callbacks = tuple(callbacks)
    expect("optimizer", optimizer, "step", "use one of pyidl.optim, such as Adam(1e-3)")
    if not (is_whole(verbose) or isinstance(verbose, bool)):
        raise InputError(f"verbose is {verbose!r}; 1 shows progress, 0 is silent")
    expect(
        "resume",
        resume,
        (str, os.PathLike, NoneType),
        "the name of a file of Checkpoint is needed, a str or a Path",
    )
    given = {
        "loss": [loss],
        "metrics": metrics,
        "callbacks": callbacks,
        "penalty": [] if penalty is None else [penalty],
    }
    for name, functions in given.items():
        if not all(callable(function) for function in functions):
            raise InputError(f"{name}: {functions!r} must be callable")
    train = _Data.read(data, model, "data")
    held_out = None if validation is None else _Data.read(validation, model, "validation")
    run = Run(model, optimizer, backend.as_generator(rng), epochs, tol)
    twin = Twin.of(model, tol)
    if resume is not None:
        restore(run, resume)
    size, first = train.m if batch_size is None else min(batch_size, train.m), run.epoch
    with _progress(run, verbose) as report:
        while run.epoch < epochs:
            began = time.perf_counter()
            with _as_it_was(run) if run.epoch == first else nullcontext():
                with twin.learning() as pupil:
                    lent = replace(run, model=pupil)
                    steps = _train_epoch(lent, train, size, loss, penalty, on_fail)
                record = {"epoch": run.epoch + 1, **steps}
                if held_out is not None:
                    record |= {
                        f"val_{key}": value
                        for key, value in _evaluate(model, held_out, size, loss, metrics).items()
                    }
                elif metrics:
                    record |= _evaluate(model, train, size, None, metrics)
            record["seconds"] = time.perf_counter() - began
            run.records.append(record)
            report(record)
            if [
                callback for callback in callbacks if callback(run) is True
            ]:  # all of them are called
                break
    return History(tuple(run.records), tol)


@contextmanager
def _as_it_was(run: Run) -> Iterator[None]:
    """What is refused in this block changes neither model nor optimiser nor generator."""
    parts = [
        (run.model, "params"),
        (run.optimizer, "state"),
        (run.optimizer, "count"),
        (run.rng.bit_generator, "state"),
    ]
    before = [getattr(owner, name, None) for owner, name in parts]
    try:
        yield
    except InputError:
        for (owner, name), value in zip(parts, before, strict=True):
            if value is not None:  # an optimiser of one's own may have no state
                setattr(owner, name, value)
        raise


@contextmanager
def _together(optimizer: Optimizer) -> Iterator[None]:
    """An optimiser that has taken a step that the model did not, for want of memory, say, goes back. Its arrays are not edited."""
    own = getattr(optimizer, "__dict__", {})
    before = dict(own)
    try:
        yield
    except BaseException:
        own.clear()
        own.update(before)
        raise


# ------------------------------------------------------------------------------- epochs


@dataclass(frozen=True)
class _Data:
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
    def read(cls, data: Any, model: Layer, name: str) -> _Data:
        if not (isinstance(data, (tuple, list)) and len(data) in (2, 3)):
            raise InputError(f"{name} must be (inputs, targets) or (inputs, targets, weights)")
        inputs = data[0] if isinstance(data[0], tuple) else (data[0],)
        given = (*inputs, data[1], *(w for w in data[2:] if w is not None))
        parts = [
            a
            if backend.is_array(a)
            else from_host(model.xp, backend.read_array(a, f"an array of {name}"))
            for a in given
        ]
        lengths = {a.shape[0] if a.ndim else 0 for a in parts}
        if len(lengths) != 1 or lengths == {0}:
            raise InputError(
                f"the arrays of {name} have {[a.shape for a in parts]}; they must share a first "
                "axis of at least 1"
            )
        backend.namespace(*parts, *model.params.values())
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

    def _with_weight(self, name: str) -> _Data:
        """Without the samples of weight 0.

        They would only be able to fill a batch with nothing.
        """
        weights = backend.to_numpy(self.weights)
        if (
            weights.ndim not in (1, 2)
            or not np.all(np.isfinite(weights))
            or np.any(weights < 0)
            or not np.any(weights > 0)
        ):
            raise InputError(
                f"the weights of {name} must be one finite number >= 0 for each sample or "
                "position, and not all of them 0"
            )
        some = weights.reshape(self.m, -1).any(axis=1)
        read = replace(self, unit=float(weights.max()))
        return read if np.all(some) else read.take(np.flatnonzero(some))

    def take(self, rows: np.ndarray) -> _Data:
        """Some of the samples."""
        xp = backend.namespace(self.target)
        index = from_host(xp, rows)
        weights = None if self.weights is None else xp.take(self.weights, index, axis=0)
        # Frozen, since nobody else has them: a model does not copy them again.
        inputs = tuple(backend.freeze(xp.take(a, index, axis=0)) for a in self.inputs)
        target = xp.take(self.target, index, axis=0)
        return replace(self, inputs=inputs, target=target, weights=weights, m=len(rows))

    def loss(self, loss: Loss, Y: Any) -> tuple[Any, Any]:
        return _pair(
            "loss",
            loss(Y, self.target)
            if self.weights is None
            else loss(Y, self.target, weights=self.weights),
        )

    @property
    def total(self) -> Any:
        """The weight of these samples in a mean over all batches."""
        if self.weights is None:
            return self.m
        xp = backend.namespace(self.weights)
        return xp.sum(backend.astype(xp, self.weights, "float64") / self.unit)


def _pair(name: str, given: Any) -> tuple[Any, Any]:
    """What a function of the caller's has returned."""
    if not (isinstance(given, (tuple, list)) and len(given) == 2):
        raise InputError(
            f"{name} has returned {given!r}; it returns a pair, the value and its derivative"
        )
    return given[0], given[1]


def _finite(a: Any) -> bool:
    """Whether no entry of an array of real numbers is NaN or infinite."""
    xp = backend.namespace(a)
    return not xp.isdtype(a.dtype, "real floating") or backend.all_finite(xp, a)


@dataclass
class _Mean:
    """A weighted mean, collected without waiting for a GPU."""

    value: Any = 0.0
    weight: Any = 0.0

    def add(self, value: Any, weight: Any) -> None:
        self.value, self.weight = self.value + value * weight, self.weight + weight

    def __float__(self) -> float:
        return float(self.value) / float(self.weight)


@dataclass
class _Failed:
    """Which samples of an epoch failed, and what the last of them said."""

    samples: np.ndarray
    last: str = ""


def _train_epoch(
    run: Run, data: _Data, size: int, loss: Loss, penalty: Penalty | None, on_fail: OnFailedSamples
) -> dict[str, float]:
    """One pass over the samples in random order, a step for each batch."""
    order = run.rng.permutation(data.m)
    mean, steps, failed = _Mean(), _Mean(), _Failed(np.zeros(data.m, bool))
    for i in range(0, data.m, size):
        rows = order[i : i + size]
        try:
            batch = _attempt(run, data, rows, loss, on_fail, failed)
            if batch is None:
                continue
            value, grads, total, counts = batch
            if penalty is not None:
                extra, slopes = _pair("penalty", penalty(run.model.params))
                if not set(slopes) <= set(grads):
                    raise InputError(
                        f"penalty gives gradients of {sorted(slopes)}, the parameters are "
                        f"{sorted(grads)}"
                    )
                backend.namespace(
                    *grads.values(), *(g for g in slopes.values() if backend.is_array(g))
                )
                value, grads = (
                    value + extra,
                    {
                        key: grads[key] + slopes[key] if key in slopes else grads[key]
                        for key in grads
                    },
                )
            with _together(run.optimizer):
                run.model.params = run.model.project(run.optimizer.step(run.model.params, grads))
        except Exception as error:
            error.add_note(
                f"in fit: epoch {run.epoch + 1}, step {i // size + 1} of {-(-data.m // size)}"
            )
            raise
        mean.add(value, total)
        for n_iter in counts:
            steps.add(float(np.mean(n_iter)), len(n_iter))
    count = int(failed.samples.sum())
    words = f"the solves of {count} of {data.m} samples failed in epoch {run.epoch + 1}"
    if count > MAX_FAILED * data.m:
        raise ConvergenceError(
            f"{words}, more than a tenth. The last of them: {failed.last}", ~failed.samples
        )
    if count:
        warnings.warn(
            f"{words}; they were left out. The last of them: {failed.last}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return {
        "loss": float(mean),
        "steps": float(steps) if steps.weight else 0.0,
        "failed": float(count),
    }


def _attempt(
    run: Run, data: _Data, rows: np.ndarray, loss: Loss, on_fail: OnFailedSamples, failed: _Failed
) -> Any:
    """Loss and gradients of one batch.

    With "skip", of those of its samples whose solves converge.
    """
    while len(rows):
        batch = data.take(rows)
        try:
            Y, pull = run.model(
                *batch.inputs, rng=run.rng, on_fail="raise" if on_fail == "skip" else on_fail
            )
            value, dY = batch.loss(loss, Y)
            _, grads = pull(dY, inputs=False)
            return value, grads, batch.total, [s.n_iter for s in pull.solutions]
        except ConvergenceError as error:
            if on_fail != "skip":
                raise
            failed.samples[rows[~error.converged]] = True
            failed.last = str(error)
            rows = rows[error.converged]
    return None


def _evaluate(
    model: Layer, data: _Data, size: int, loss: Loss | None, metrics: Sequence[Metric]
) -> dict[str, float]:
    """Loss and metrics without a step.

    Samples whose solve fails count with the best state that was found.
    """
    outputs, mean, failed = [], _Mean(), 0
    for i in range(0, data.m, size):
        batch = data.take(np.arange(i, min(i + size, data.m)))
        Y, pull = model(*batch.inputs, on_fail="ignore")
        outputs.append(Y)
        failed += int(np.count_nonzero(~pull.converged))
        if loss is not None:
            mean.add(batch.loss(loss, Y)[0], batch.total)
    result = {} if loss is None else {"loss": float(mean), "failed": float(failed)}
    Y = backend.namespace(outputs[0]).concat(outputs)
    for metric in metrics:
        name, value = getattr(metric, "__name__", repr(metric)), metric(Y, data.target)
        if not is_real(value):
            raise InputError(f"the metric {name} has returned {value!r}; it returns a number")
        result[name] = float(value)
    return result


# ----------------------------------------------------------------------------- progress


@contextmanager
def _progress(run: Run, verbose: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A bar over the epochs where tqdm is installed, lines in the log where it is not."""
    if verbose == 0:
        yield lambda record: None
    elif importlib.util.find_spec("tqdm") is None:
        yield lambda record: LOGGER.info(in_words(record))
    else:
        from tqdm import tqdm

        with tqdm(total=run.epochs, initial=run.epoch, unit="epoch") as bar:

            def report(record: Mapping[str, float]) -> None:
                shown = {
                    key: f"{value:.4g}"
                    for key, value in record.items()
                    if key not in ("epoch", "seconds", "steps") and value == value
                }
                bar.set_postfix(
                    {
                        key: value
                        for key, value in shown.items()
                        if not (key.endswith("failed") and value == "0")
                    }
                )
                bar.update()

            yield report
