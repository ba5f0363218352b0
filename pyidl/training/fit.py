"""Training: the loop that everyone would otherwise write, and a record of it.

    Y, pull = model(U);  value, dY = loss(Y, target);  _, grads = pull(dY)
    model.params = model.project(optimizer.step(model.params, grads))

The projection belongs to the step: after each one the model lies in its well-posed set
again, and the forward pass and its gradient use the parameters as they are.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from pyidl import losses as all_losses
from pyidl import metrics as all_metrics
from pyidl import optim
from pyidl.arrays import backend
from pyidl.errors import (
    ConvergenceError,
    InputError,
    by_name,
    expect,
    is_real,
    is_whole,
)
from pyidl.layers.base import Layer, check_width
from pyidl.optim import Optimizer
from pyidl.training.callbacks import Checkpoint, EarlyStopping, restore
from pyidl.training.run import Callback, History, Run, in_words
from pyidl.training.samples import (
    Failed,
    OnFailedSamples,
    Samples,
    check_on_fail,
    gathered,
    returned_pair,
)
from pyidl.training.tolerance import Tolerances, Twin, read_tol
from pyidl.typing import Array, Grads, Params, Rng

__all__ = ["Loss", "Metric", "OnFailedSamples", "ParameterPenalty", "fit"]

LOGGER = logging.getLogger("pyidl")

Loss = Callable[..., tuple[Any, Any]]
Metric = Callable[[Any, Any], Any]
ParameterPenalty = Callable[[Params], tuple[Any, Mapping[str, Array]]]


def fit(
    model: Layer,
    data: Any,
    targets: Any = None,
    weights: Any = None,
    *,
    loss: Loss | str,
    optimizer: Optimizer | str | None = None,
    epochs: int,
    batch_size: int | None = 64,
    validation: tuple[Any, ...] | None = None,
    rng: Rng = None,
    metrics: Sequence[Metric | str] = (),
    penalty: ParameterPenalty | None = None,
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
    data : array, or (inputs, targets) or (inputs, targets, weights)
        The inputs, one sample a row, with `targets` after them; or a tuple of all, in
        which `inputs` may be a tuple itself, of arrays that share their first axis:
        ``((U, lengths), targets)``.
    targets : array, optional
        Where `data` is an array.
    weights : array, optional
        Those of shape (m,) weigh the samples, those of (m, T) the positions of
        sequences. Samples all of whose weights are 0 are left out.
    loss : callable or str
        ``loss(Y, target) -> (value, dY)``, with ``weights=`` where weights are given;
        or the name of one of `pyidl.losses`, such as "mse". If it has ``at_step(k)``,
        that is the loss of step k + 1, as `Layer.at_step` is the layer.
    optimizer : Optimizer or str, optional
        One of `pyidl.optim`, of which learning-rate schedules and gradient clipping are
        options; or its name, for its defaults. Without it, a new ``Adam(1e-3)``.
    epochs : int
        How often every sample is seen; with `resume`, including the epochs already
        done.
    batch_size : int or None
        Samples per step; None takes all at once.
    validation : (inputs, targets) or (inputs, targets, weights), optional
        Evaluated after each epoch.
    rng : Generator, int or None
        Draws the order of the samples, on the host, and is handed to layers that draw.
    metrics : sequence of callables or str
        ``metric(Y, target) -> float``, or names of `pyidl.metrics`; evaluated after
        each epoch on the validation data, or else on the training data.
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
        Called with the `Run` after every epoch, a `Checkpoint` after all others; True
        ends the training. See `EarlyStopping`.
    verbose : int
        1 shows progress, by tqdm where it is installed and by the logger "pyidl" where
        not; 0 is silent.
    resume : path, optional
        A file of `Checkpoint`: the run goes on as if it had not been interrupted, to
        the last bit. One that `EarlyStopping` ended goes on with more patience only.

    Returns
    -------
    History

    Raises
    ------
    InputError
        Before any work, if the data do not fit together, or are not finite, or if the
        dtype of the model cannot resolve `tol`. In the first epoch, in which every
        sample is met, if the loss refuses a target, say, or a callback what it finds;
        model, optimiser and generator are then as they were, before a `resume` too.
    ConvergenceError
        As `on_fail` says.

    Examples
    --------
    >>> import pyidl
    >>> U = np.linspace(-2, 2, 64)[:, None]
    >>> model = pyidl.ImplicitModel(1, 1, 20, rng=0)
    >>> history = pyidl.fit(
    ...     model, U, np.sin(U), loss="mse", epochs=20, rng=0, verbose=0
    ... )
    >>> bool(history["loss"][-1] < history["loss"][0])
    True
    """
    expect("model", model, Layer, "fit trains a Layer")
    tol = read_tol(tol, model)
    epochs = check_width("epochs", epochs)
    if batch_size is not None:
        batch_size = check_width("batch_size", batch_size)
    _check_options(on_fail, verbose, resume)
    measures: tuple[Metric, ...] = _functions("metrics", metrics, all_metrics)
    callbacks = _functions("callbacks", callbacks)
    (price,) = _functions("loss", [loss], all_losses)
    _functions("penalty", [] if penalty is None else [penalty])
    train = Samples.read(gathered("fit", data, targets, weights), model, "data")
    held_out = None if validation is None else Samples.read(validation, model, "validation")
    run = Run(model, _optimizer(optimizer), backend.as_generator(rng), epochs, tol)
    twin = Twin.of(model, tol)
    before = _state(run)
    if resume is not None:
        restore(run, resume)
    size = train.m if batch_size is None else min(batch_size, train.m)
    others = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    checkpoints = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    stops = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
    run.ended = run.epoch >= epochs or any(stop.is_over(run) for stop in stops)
    with _progress(run, verbose) as report:
        while not run.ended:
            began = time.perf_counter()
            with _taken_back(before):
                with twin.learning() as pupil:
                    lent = replace(run, model=pupil)
                    steps = _train_epoch(lent, train, size, price, penalty, on_fail)
                scores = _scores(model, train, held_out, size, price, measures)
                seconds = time.perf_counter() - began
                run.records.append({"epoch": run.epoch + 1, **steps, **scores, "seconds": seconds})
                report(run.records[-1])
                run.ended = run.epoch == epochs
                # All are called, whatever the first of them says.
                run.ended |= True in [callback(run) is True for callback in others]
                for checkpoint in checkpoints:  # last: they hold what the others remember
                    checkpoint(run)
    for stop in sorted(stops, key=lambda stop: stop.is_over(run)):
        stop.restore(run)
    return History(tuple(run.records), tol)


def _optimizer(given: Any) -> Optimizer:
    """An optimiser as it is, a new one of this name, or a new Adam."""
    if isinstance(given, str):
        given = by_name("optimizer", given, optim, _is_optimizer)
    optimizer: Optimizer = optim.Adam(1e-3) if given is None else given
    cure = "use one of pyidl.optim, such as Adam(1e-3), or its name"
    expect("optimizer", optimizer, "step", cure)
    return optimizer


def _is_optimizer(value: Any) -> bool:
    return (
        isinstance(value, type) and issubclass(value, Optimizer) and not inspect.isabstract(value)
    )


def _check_options(on_fail: Any, verbose: Any, resume: Any) -> None:
    check_on_fail(on_fail)
    if not (is_whole(verbose) or isinstance(verbose, bool)):
        raise InputError(f"verbose is {verbose!r}; 1 shows progress, 0 is silent")
    cure = "the name of a file of Checkpoint is needed, a str or a Path"
    expect("resume", resume, (str, os.PathLike, NoneType), cure)


def _functions(name: str, given: Iterable[Any], room: Any = None) -> tuple[Any, ...]:
    """Several functions as a tuple; those that are named, from this module."""
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, str)):
        raise InputError(
            f"{name} is {given!r}; a sequence of functions is needed, also of a single one: "
            f"{name}=[...]"
        )
    functions = tuple(
        by_name(name, item, room, _of_output) if room and isinstance(item, str) else item
        for item in given
    )
    for function in functions:
        expect(name, function, Callable, "it must be callable, such as a function")
    return functions


def _of_output(function: Any) -> bool:
    """Whether it is called with a model's output, and not to make what is."""
    return next(iter(inspect.signature(function).parameters)) == "Y"


def _state(run: Run) -> list[tuple[Any, str, Any]]:
    """Model, optimiser and generator as they are."""
    parts = [
        (run.model, "params"),
        (run.optimizer, "state"),
        (run.optimizer, "count"),
        (run.rng.bit_generator, "state"),
    ]
    # An optimiser of one's own may have no state.
    return [(owner, name, getattr(owner, name)) for owner, name in parts if hasattr(owner, name)]


@contextmanager
def _taken_back(before: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Put a state back if this block is refused; forget it if not."""
    try:
        yield
    except InputError:
        for owner, name, value in before:
            setattr(owner, name, value)
        raise
    before.clear()


@contextmanager
def _together(optimizer: Optimizer) -> Iterator[None]:
    """Take the optimiser back if the model does not follow its step.

    Memory may run out between the two. The optimiser's arrays are not edited in place.
    """
    own = getattr(optimizer, "__dict__", {})
    before = dict(own)
    try:
        yield
    except BaseException:
        own.clear()
        own.update(before)
        raise


# ------------------------------------------------------------------------------- epochs


@dataclass
class _Mean:
    """A weighted mean, collected without waiting for a GPU."""

    value: Any = 0.0
    weight: Any = 0.0

    def add(self, value: Any, weight: Any) -> None:
        self.value, self.weight = self.value + value * weight, self.weight + weight

    def __float__(self) -> float:
        return float(self.value) / float(self.weight)


def _train_epoch(
    run: Run,
    data: Samples,
    size: int,
    loss: Loss,
    penalty: ParameterPenalty | None,
    on_fail: OnFailedSamples,
) -> dict[str, float]:
    """One pass over the samples in random order, a step for each batch."""
    order = run.rng.permutation(data.m)
    mean, steps, failed = _Mean(), _Mean(), Failed(np.zeros(data.m, bool))
    for i in range(0, data.m, size):
        rows, count = order[i : i + size], run.epoch * -(-data.m // size) + i // size
        try:
            now = replace(run, model=run.model.at_step(count))
            price = loss.at_step(count) if hasattr(loss, "at_step") else loss
            batch = _attempt(now, data, rows, price, on_fail, failed)
            if batch is None:
                continue
            value, grads, total, counts = batch
            if penalty is not None:
                extra, grads = _penalised(penalty, run.model.params, grads)
                value = value + extra
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
    count = failed.count(f"failed in epoch {run.epoch + 1}", 3)  # first: of all there is no mean
    return {
        "loss": float(mean),
        "steps": float(steps) if steps.weight else 0.0,
        "failed": float(count),
    }


def _penalised(penalty: ParameterPenalty, params: Params, grads: Grads) -> tuple[Any, Grads]:
    """The value of the penalty, and the gradients with its own added."""
    value, slopes = returned_pair("penalty", penalty(params))
    if not set(slopes) <= set(grads):
        raise InputError(
            f"penalty gives gradients of {sorted(slopes)}, the parameters are {sorted(grads)}"
        )
    # Refuses what lives in two places.
    backend.namespace(*grads.values(), *(g for g in slopes.values() if backend.is_array(g)))
    return value, {key: g + slopes[key] if key in slopes else g for key, g in grads.items()}


def _attempt(
    run: Run, data: Samples, rows: np.ndarray, loss: Loss, on_fail: OnFailedSamples, failed: Failed
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
            rows = failed.note(rows, error)
    return None


def _scores(
    model: Layer,
    train: Samples,
    held_out: Samples | None,
    size: int,
    loss: Loss,
    metrics: Sequence[Metric],
) -> dict[str, float]:
    """Loss and metrics of the validation data, or metrics of the training data."""
    if held_out is None:
        return _evaluate(model, train, size, None, metrics) if metrics else {}
    found = _evaluate(model, held_out, size, loss, metrics)
    return {f"val_{key}": value for key, value in found.items()}


def _evaluate(
    model: Layer, data: Samples, size: int, loss: Loss | None, metrics: Sequence[Metric]
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
    """A bar over the epochs where tqdm is installed, else lines in the log."""
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
