"""Callbacks in any order, and runs that are interrupted in any epoch.

A run that goes on from a checkpoint ends as the one that was left alone: with the same
parameters, records and memory, to the last bit.
"""

from itertools import permutations

import numpy as np
import pytest

from pyidl import Checkpoint, EarlyStopping, ImplicitModel, fit, losses, optim
from pyidl.io import read_npz
from pyidl.training import Run

RNG = np.random.default_rng(0)
U = RNG.normal(size=(24, 2))
DATA = U, np.sin(U[:, :1]) * U[:, 1:]
HELD_OUT = -U[:8], DATA[1][:8]


class Interrupted(Exception):
    """What ends a run in its midst."""


def train(callbacks, epochs=9, resume=None, model=None, **options):
    """A small model, for a few epochs; after the fourth the steps are far too large."""
    model = model or ImplicitModel(2, 1, 3, dtype="float64", rng=0)
    settings = {
        "loss": losses.mse,
        "optimizer": optim.Adam(optim.Piecewise((16,), (0.02, 0.5))),
        "validation": HELD_OUT,
        "batch_size": 6,
        "rng": 0,
        "verbose": 0,
    }
    history = fit(
        model, DATA, epochs=epochs, callbacks=callbacks, resume=resume, **(settings | options)
    )
    records = [{key: v for key, v in r.items() if key != "seconds"} for r in history.records]
    return dict(model.params), records


def remembering(run):
    """A callback with a memory, which it edits in place."""
    mean = run.memory.setdefault("mean", np.zeros(3))
    mean += 0.5 * (np.asarray(run.model.params["b"]) - mean)
    run.memory["seen"] = np.append(run.memory.get("seen", np.zeros(0, int)), run.epoch)


def at(epoch):
    """What interrupts a run when callbacks are called after an epoch."""

    def interrupt(run):
        if run.epoch == epoch:
            raise Interrupted

    return interrupt


def same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    assert all(np.array_equal(one[0][key], a) for key, a in other[0].items())


STOP = EarlyStopping(patience=3)
WHOLE = train([STOP])


def test_the_run_that_is_interrupted_below_has_its_best_in_its_midst():
    values = [record["val_loss"] for record in WHOLE[1]]
    assert 2 <= int(np.argmin(values)) == len(values) - 4 < 5


SLOW = pytest.mark.slow


@pytest.mark.parametrize("every", [3, *(pytest.param(k, marks=SLOW) for k in (1, 100))])
@pytest.mark.parametrize("order", [*permutations(range(3))], ids=str)
def test_any_order_and_any_epoch(order, every, tmp_path):
    """Interrupted by a callback that stands first, or last."""
    path = tmp_path / "run.npz"

    def callbacks():
        return [(Checkpoint(path, every), STOP, remembering)[i] for i in order]

    whole = train(callbacks())
    same(whole, WHOLE)
    memory = read_npz(path)[1]
    last = len(whole[1])
    for epoch in range(1, last + 1):
        path.unlink()
        interrupted = [at(epoch), *callbacks()] if epoch % 2 else [*callbacks(), at(epoch)]
        with pytest.raises(Interrupted):
            train(interrupted)
        written = (epoch - 1) // every * every
        assert path.exists() == (written > 0)
        same(train(callbacks(), resume=path if written else None), whole)
        again = read_npz(path)[1]
        assert again.keys() == memory.keys()
        assert all(np.array_equal(again[key], a) for key, a in memory.items())
    same(train(callbacks(), resume=path), whole)  # when all is done, nothing is left to do


@pytest.mark.parametrize("epochs", [5, 7])
def test_the_last_checkpoint_is_written_where_every_does_not_divide(epochs, tmp_path):
    """Whatever ends the run: all epochs are done, patience, another callback."""
    for name, ending, done in (
        ("epochs", [], epochs),
        ("patience", [EarlyStopping(1, "val_loss", min_delta=1e9)], 2),
        ("callback", [lambda run: run.epoch == 3], 3),
    ):
        path = tmp_path / name
        records = train([Checkpoint(path, every=4), *ending], epochs)[1]
        assert len(records) == len(read_npz(path)[0]["records"]) == done


@pytest.mark.parametrize("first", [1, 3, 5, 6])
def test_a_run_that_was_done_goes_on_for_more_epochs(first, tmp_path):
    """The file holds the last parameters, and not the best, which the model has."""
    path = tmp_path / "run.npz"
    done, records = train([STOP, Checkpoint(path)], epochs=first)
    best = int(np.argmin([record["val_loss"] for record in records]))
    same((done, records[: best + 1]), train([], epochs=best + 1))
    same(train([Checkpoint(path), STOP], resume=path), WHOLE)


def test_more_patience_goes_on_where_less_had_ended(tmp_path):
    path = tmp_path / "run.npz"
    assert len(train([STOP, Checkpoint(path)])[1]) < 9
    more = EarlyStopping(patience=6)
    same(train([more], resume=path), train([more]))


@pytest.mark.parametrize(
    "ending",
    [
        lambda run: run.epoch == 6,
        lambda run: "val_loss" in run.records[-1] and run.epoch > 5,
        EarlyStopping(1, "loss", min_delta=1e9, restore_best=False),
    ],
    ids=["epoch", "number", "another of its kind"],
)
def test_the_best_comes_back_whatever_ends_the_run(ending):
    for callbacks in ([STOP, ending], [ending, STOP]):
        params, records = train(callbacks)
        assert len(records) < len(WHOLE[1])
        best = int(np.argmin([record["val_loss"] for record in records]))
        same((params, records[: best + 1]), train([], epochs=best + 1))


def test_of_two_the_one_that_ends_the_run_restores():
    """Each remembers for itself."""
    patient = EarlyStopping(50, "loss", mode="max")
    for callbacks in ([STOP, patient], [patient, STOP]):
        same(train(callbacks), WHOLE)


MONITORED = {
    "always": (8 * [np.nan], 3, None),
    "at first": ([np.nan, np.nan, 0.5, 0.6, 0.7, 0.8], 5, 3),
    "afterwards": ([0.5, np.nan, np.nan, np.nan], 3, 1),
    "now and then": ([0.5, np.nan, 0.4, np.nan, 0.4, np.nan], 5, 3),
    "infinite": (8 * [np.inf], 3, 1),
}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("case", MONITORED)
def test_a_number_that_is_nan_ends_when_patience_is_over(case, mode, tmp_path):
    """Also from a checkpoint; with no number at all the model keeps what it has."""
    values, done, best = MONITORED[case]
    sign = 1 if mode == "min" else -1

    def score(Y, target):
        return sign * values[len(scores)]

    def note(run):
        scores.append(run.records[-1]["val_score"])
        seen.append(dict(run.model.params))

    path, stop = tmp_path / "run.npz", EarlyStopping(2, "val_score", mode)
    for start in range(done):
        scores, seen, path = [], [], tmp_path / f"{start}.npz"
        if start:
            train([note, Checkpoint(path), stop], epochs=start, metrics=[score])
        params, records = train(
            [note, stop], epochs=8, metrics=[score], resume=path if start else None
        )
        assert len(records) == done
        kept = seen[(best or done) - 1]
        assert all(np.array_equal(params[key], a) for key, a in kept.items())


def test_epochs_that_were_not_watched_do_not_count(tmp_path):
    """A run that went on without early stopping is watched anew."""
    path = tmp_path / "run.npz"
    train([STOP, Checkpoint(path)], epochs=2)
    train([Checkpoint(path)], epochs=7, resume=path)
    params, records = train([EarlyStopping(patience=2)], epochs=8, resume=path)
    same((params, records), train([], epochs=8))
    _, records = train([EarlyStopping(2, min_delta=1e9)], epochs=20, resume=path)
    assert len(records) == 10  # the eighth, and two without improvement


def test_an_epoch_may_be_seen_twice():
    run = Run(ImplicitModel(1, 1, 2, rng=0), optim.SGD(1.0), np.random.default_rng(0), 100)
    stop, answers = EarlyStopping(patience=2, monitor="loss"), []
    for loss in (0.5, 0.7, 0.6):
        run.records.append({"epoch": run.epoch + 1, "loss": loss})
        answers.append((stop(run), stop(run)))
    assert answers == [(False, False), (False, False), (True, True)]
