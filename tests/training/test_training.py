"""`fit` trains, counts what failed, and goes on from a checkpoint as if nothing had happened."""

import logging
import warnings

import numpy as np
import pytest
from helpers import moved, random_model

from pyidl import (
    Checkpoint,
    EarlyStopping,
    History,
    ImplicitModel,
    InfNorm,
    Linear,
    Sequential,
    activations,
    fit,
    losses,
    metrics,
    optim,
)
from pyidl import save as save_model
from pyidl.arrays.backend import from_host
from pyidl.errors import ConvergenceError, ConvergenceWarning, FileFormatError, InputError
from pyidl.io import read_npz, write_npz
from pyidl.layers.base import Call, Explicit
from pyidl.solvers import Picard
from pyidl.training import Run

RNG = np.random.default_rng(0)
U = RNG.normal(size=(90, 4))
TARGET = np.sin(U[:, :1]) + U[:, 1:2] * U[:, 2:3]
SPOILT = np.where(np.arange(90)[:, None] == 7, np.nan, U)
LABELS = (U[:, 0] > 0).astype(int) + (U[:, 1] > 0)


def train(model, epochs=5, target=TARGET, loss=losses.mse, optimizer=None, **options):
    settings = {"batch_size": 16, "rng": 0, "verbose": 0} | options
    return fit(
        model,
        (U, target),
        loss=loss,
        optimizer=optimizer or optim.Adam(1e-2),
        epochs=epochs,
        **settings,
    )


MODELS = {
    "implicit": lambda: ImplicitModel(4, 1, 12, rng=0),
    "low rank": lambda: ImplicitModel(4, 1, 12, rank=3, rng=0),
    "float64": lambda: ImplicitModel(4, 1, 12, dtype="float64", rng=0),
    "blocks": lambda: ImplicitModel(
        4, 1, 12, activation=activations.Blocks((activations.relu, 6), (activations.silu, 6)), rng=0
    ),
    "mlp": lambda: Sequential(Linear(4, 12, rng=0), activations.tanh, Linear(12, 1, rng=1)),
    "implicit inside": lambda: Sequential(
        Linear(4, 6, rng=0), activations.gelu, ImplicitModel(6, 5, 8, rng=1), Linear(5, 1, rng=2)
    ),
    "two implicit": lambda: Sequential(
        ImplicitModel(4, 5, 8, rng=1), activations.relu, ImplicitModel(5, 1, 8, rng=2)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_and_stays_in_its_set(name):
    model = MODELS[name]()
    certified = []
    history = train(
        model, epochs=15, callbacks=[lambda run: certified.append(run.model.certificate().proven)]
    )
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert all(certified)
    assert len(certified) == len(history) == 15


def test_training_on_another_library(xp):
    reference, model = ImplicitModel(4, 1, 12, rng=0, dtype="float64"), None
    model = moved(reference, xp)
    data = (from_host(xp, U), from_host(xp, TARGET))
    history = fit(
        model,
        data,
        loss=losses.mse,
        optimizer=optim.Adam(1e-2),
        epochs=3,
        batch_size=30,
        tol=None,
        rng=0,
        verbose=0,
    )
    same = fit(
        reference,
        (U, TARGET),
        loss=losses.mse,
        optimizer=optim.Adam(1e-2),
        epochs=3,
        batch_size=30,
        tol=None,
        rng=0,
        verbose=0,
    )
    np.testing.assert_allclose(history["loss"], same["loss"], rtol=1e-6)


@pytest.mark.parametrize("failing", ["project", "_checked", "_read"])
def test_a_step_that_fails_is_no_step(failing, monkeypatch):
    """Neither the optimiser nor the model has taken it, whatever failed.

    With more memory, say, the run goes on as it would have.
    """
    data = (U, TARGET)

    def trained(model, adam, epochs):
        fit(
            model,
            data,
            loss=losses.mse,
            optimizer=adam,
            epochs=epochs,
            batch_size=None,
            rng=0,
            verbose=0,
        )

    model, adam = ImplicitModel(4, 1, 12, rng=0, dtype="float64"), optim.Adam(1e-2)
    trained(model, adam, 2)
    before, state = dict(model.params), adam.state
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise MemoryError

        patch.setattr(ImplicitModel, failing, full)
        with pytest.raises(MemoryError):
            trained(model, adam, 1)
    assert adam.count == 2
    assert all(adam.state[key] is a for key, a in state.items())
    assert all(model.params[key] is a for key, a in before.items())
    trained(model, adam, 1)
    whole, fresh = ImplicitModel(4, 1, 12, rng=0, dtype="float64"), optim.Adam(1e-2)
    trained(whole, fresh, 2)
    trained(whole, fresh, 1)
    assert all(np.array_equal(model.params[key], a) for key, a in whole.params.items())


def test_data_that_cannot_be_read_are_refused(xp):
    """On a GPU also a list of its arrays: one array is needed."""
    model = moved(ImplicitModel(4, 1, 12, rng=0, dtype="float64"), xp)
    ragged, whole = [[0.0] * 4, [0.0] * 3], [[0.0] * 4] * 2
    rows = [from_host(xp, row) for row in U[:2]]
    for inputs in (ragged, *([rows] if xp.__name__ == "cupy" else [])):
        bad = {"inputs": (inputs, whole), "targets": (whole, inputs)}
        for words, data in (bad | {"weights": (whole, whole, inputs)}).items():
            with pytest.raises(InputError, match=f"{words} of data cannot be read as an array"):
                fit(model, data, loss=losses.mse, optimizer=optim.Adam(1e-2), epochs=1, verbose=0)


def test_the_tight_ball_is_kept_after_every_step():
    model = ImplicitModel(4, 1, 12, constraint=InfNorm(0.1), rng=0)
    train(model, epochs=3, optimizer=optim.Adam(0.2))
    assert InfNorm(0.1).contains(model.params, model.activation)


def test_history_holds_what_happened():
    history = train(
        ImplicitModel(4, 3, 12, rng=0),
        target=LABELS,
        loss=losses.cross_entropy,
        validation=(U[:30], LABELS[:30]),
        metrics=[metrics.accuracy],
    )
    assert list(history.records[0]) == [
        "epoch",
        "loss",
        "steps",
        "failed",
        "val_loss",
        "val_failed",
        "val_accuracy",
        "seconds",
    ]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert np.all(history["steps"] > 2)
    assert not history["failed"].any()
    assert history["val_accuracy"][-1] > history["val_accuracy"][0] - 0.2
    assert "epoch 5: loss" in repr(history)
    with pytest.raises(KeyError, match="val_loss"):
        history["nothing"]
    assert repr(History()) == "History of no epochs"


def test_metrics_without_validation_are_of_the_training_data():
    model = ImplicitModel(4, 3, 12, rng=0)
    history = train(model, target=LABELS, loss=losses.cross_entropy, metrics=[metrics.accuracy])
    assert history["accuracy"][-1] == metrics.accuracy(model.predict(U), LABELS)


def test_the_recorded_loss_is_the_mean_over_samples():
    """With a tiny learning rate the epoch's loss is that of the whole set.

    The ragged last batch included.
    """
    model = ImplicitModel(4, 1, 12, rng=0, dtype="float64")
    expected = float(losses.mse(model.predict(U), TARGET)[0])
    history = train(model, epochs=1, optimizer=optim.SGD(1e-12), batch_size=40, tol=None)
    assert history["loss"][0] == pytest.approx(expected, rel=1e-9)


def test_weights_are_repetition():
    """Solved as exactly as can be: which solver is chosen may depend on the number of rows."""
    weights = RNG.integers(1, 4, 90)
    one, two = (ImplicitModel(4, 1, 12, rng=0, dtype="float64") for _ in range(2))
    fit(
        one,
        (U, TARGET, weights.astype(float)),
        loss=losses.mse,
        optimizer=optim.SGD(0.1),
        epochs=3,
        batch_size=None,
        verbose=0,
        tol=(1e-12, 1e-12),
    )
    rows = np.repeat(np.arange(90), weights)
    fit(
        two,
        (U[rows], TARGET[rows]),
        loss=losses.mse,
        optimizer=optim.SGD(0.1),
        epochs=3,
        batch_size=None,
        verbose=0,
        tol=(1e-12, 1e-12),
    )
    for key in one.params:
        np.testing.assert_allclose(one.params[key], two.params[key], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("of", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_ratios_of_weights_matter(dtype, of):
    """The sum of large ones overflows their dtype, which need not be the model's."""
    weights = np.where(np.arange(90) < 50, 1.0, 0.5)
    losses_of = []
    for unit in (1.0, 0.99 * float(np.finfo(of).max), 2 * float(np.finfo(of).smallest_subnormal)):
        data = U, TARGET, (unit * weights).astype(of)
        options = {
            "optimizer": optim.SGD(0.1),
            "epochs": 2,
            "tol": None,
            "rng": 0,
            "verbose": 0,
            "validation": data,
        }
        history = fit(ImplicitModel(4, 1, 12, rng=0, dtype=dtype), data, loss=losses.mse, **options)
        losses_of.append([*history["loss"], *history["val_loss"]])
    np.testing.assert_allclose(losses_of[1:], 2 * losses_of[:1], rtol=1e-5)


def test_a_weight_of_zero_is_absence():
    weights = (np.arange(90) % 3 > 0).astype(float)
    one, two = (ImplicitModel(4, 1, 12, rng=0) for _ in range(2))
    options = {"loss": losses.mse, "epochs": 3, "batch_size": 8, "rng": 0, "verbose": 0}
    fit(one, (U, TARGET, weights), optimizer=optim.Adam(0.01), **options)
    rows = np.flatnonzero(weights)
    fit(two, (U[rows], TARGET[rows], np.ones(60)), optimizer=optim.Adam(0.01), **options)
    assert all(np.array_equal(one.params[k], two.params[k]) for k in one.params)


def test_a_penalty_on_an_unknown_parameter_is_refused():
    with pytest.raises(InputError, match="penalty gives gradients"):
        train(ImplicitModel(4, 1, 12, rng=0), penalty=lambda params: (0.0, {"W": params["A"]}))


def test_a_penalty_is_added_to_loss_and_gradient():
    def ridge(params):
        return 50 * np.sum(params["B"] ** 2), {"B": 100 * params["B"]}

    plain, shrunk = ImplicitModel(4, 1, 12, rng=0), ImplicitModel(4, 1, 12, rng=0)
    first, second = train(plain, epochs=10), train(shrunk, epochs=10, penalty=ridge)
    assert np.linalg.norm(shrunk.params["B"]) < 0.5 * np.linalg.norm(plain.params["B"])
    assert second["loss"][0] > first["loss"][0] + 1


def test_only_given_gradients_move():
    model = ImplicitModel(4, 1, 12, rng=0)
    Y, pull = model(U)
    grads = pull(losses.mse(Y, TARGET)[1])[1]
    new = optim.Adam(0.1).step(model.params, {key: grads[key] for key in ("C", "D")})
    assert new["A"] is model.params["A"]
    assert np.any(new["C"] != model.params["C"])


# -------------------------------------------------------------------- callbacks, resume


def test_early_stopping_says_what_it_could_watch():
    with pytest.raises(
        InputError,
        match=r"'val_loss', and this run records epoch, loss, .* give fit a validation set",
    ):
        train(ImplicitModel(4, 1, 12, rng=0), epochs=2, callbacks=[EarlyStopping()])


def test_early_stopping_ends_and_restores():
    model = ImplicitModel(4, 1, 12, rng=0)
    seen = []
    stop = EarlyStopping(patience=2, monitor="val_loss")
    history = train(
        model,
        epochs=200,
        # after ten epochs the steps are far too large
        optimizer=optim.Adam(optim.Piecewise((60,), (0.01, 0.5))),
        validation=(U, TARGET),
        callbacks=[
            lambda run: seen.append({k: a.copy() for k, a in run.model.params.items()}),
            stop,
        ],
    )
    best = int(np.argmin(history["val_loss"]))
    assert len(history) == best + 3 < 200
    assert all(np.array_equal(model.params[k], seen[best][k]) for k in model.params)


def test_early_stopping_restores_also_when_epochs_run_out():
    model = ImplicitModel(4, 1, 12, rng=0)
    options = {
        "optimizer": optim.Adam(optim.Piecewise((12,), (0.01, 0.5))),
        "validation": (U, TARGET),
    }
    history = train(model, epochs=4, callbacks=[EarlyStopping(patience=50)], **options)
    assert float(losses.mse(model.predict(U), TARGET)[0]) == pytest.approx(
        history["val_loss"].min(), rel=1e-4
    )


def test_early_stopping_never_takes_nan_for_the_best():
    run = Run(ImplicitModel(1, 1, 2, rng=0), optim.SGD(1.0), np.random.default_rng(0), 100)
    stop = EarlyStopping(patience=2, monitor="loss", restore_best=False)
    answers = []
    for loss in (np.nan, 0.5, np.nan, np.nan):
        run.records.append({"epoch": run.epoch + 1, "loss": loss})
        answers.append(stop(run))
    assert answers == [False, False, False, True]


def test_early_stopping_upwards():
    run = Run(ImplicitModel(1, 1, 2, rng=0), optim.SGD(1.0), np.random.default_rng(0), 100)
    stop = EarlyStopping(patience=2, monitor="score", mode="max", min_delta=0.1, restore_best=False)
    answers = []
    for score in (0.5, 0.7, 0.75, 0.72):
        run.records.append({"epoch": run.epoch + 1, "score": score})
        answers.append(stop(run))
    assert answers == [False, False, False, True]
    with pytest.raises(InputError):
        EarlyStopping(patience=0)
    with pytest.raises(InputError):
        EarlyStopping(mode="up")
    with pytest.raises(InputError):
        Checkpoint("x", every=0)


OPTIMIZERS = {
    "adam": lambda: optim.Adam(optim.Cosine(1e-2, 60), clip_norm=1.0),
    "adamw": lambda: optim.AdamW(1e-2),
    "momentum": lambda: optim.SGD(1e-2, momentum=0.9, nesterov=True),
    "sgd": lambda: optim.SGD(optim.Exponential(0.1, 0.9, 6)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["implicit", "implicit inside"])
def test_resume_is_exact_to_the_last_bit(name, kind, tmp_path):
    whole, broken = MODELS[kind](), MODELS[kind]()
    options = {"validation": (U[:20], TARGET[:20])}
    stopping = EarlyStopping(patience=50)
    full = train(whole, epochs=8, optimizer=OPTIMIZERS[name](), callbacks=[stopping], **options)
    path = tmp_path / "run.npz"
    train(
        broken,
        epochs=8,
        optimizer=OPTIMIZERS[name](),
        callbacks=[stopping, Checkpoint(path, every=2), lambda run: run.epoch == 5],
        **options,
    )
    fresh = MODELS[kind]()
    resumed = train(
        fresh, epochs=8, optimizer=OPTIMIZERS[name](), callbacks=[stopping], resume=path, **options
    )
    for key in whole.params:
        assert np.array_equal(whole.params[key], fresh.params[key]), key
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.records] == [
        {k: v for k, v in r.items() if k != "seconds"} for r in full.records
    ]


def test_resume_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "run.npz"
    train(ImplicitModel(4, 1, 12, rng=0), epochs=1, callbacks=[Checkpoint(path)])
    with pytest.raises(InputError, match="optimiser"):
        train(ImplicitModel(4, 1, 12, rng=0), optimizer=optim.SGD(0.1), resume=path)
    other = ImplicitModel(4, 1, 13, rng=0)
    before = dict(other.params)
    adam = optim.Adam(1e-2)
    with pytest.raises(InputError, match="shape"):
        train(other, optimizer=adam, resume=path)
    assert all(other.params[k] is before[k] for k in before)
    assert adam.count == 0
    with pytest.raises(InputError, match="generator"):
        train(
            ImplicitModel(4, 1, 12, rng=0),
            resume=path,
            rng=np.random.Generator(np.random.MT19937(0)),
        )
    header, arrays = read_npz(path)
    for spoil in (lambda: header.pop("count"), lambda: arrays.update({"other/a": np.ones(1)})):
        spoil()
        write_npz(tmp_path / "edited.npz", arrays, header)
        with pytest.raises(FileFormatError, match="not a complete checkpoint"):
            train(other, optimizer=adam, resume=tmp_path / "edited.npz")
        header, arrays = read_npz(path)
    arrays.pop("optimizer/v.A")
    write_npz(tmp_path / "edited.npz", arrays, header)
    same = ImplicitModel(4, 1, 12, rng=1)
    before = dict(same.params)
    with pytest.raises(InputError, match=r"v\.A"):
        train(same, optimizer=adam, resume=tmp_path / "edited.npz")
    assert all(same.params[k] is before[k] for k in before)
    with pytest.raises(FileNotFoundError):
        train(ImplicitModel(4, 1, 12, rng=0), resume=tmp_path / "nothing.npz")
    save_model(tmp_path / "model.npz", other)
    with pytest.raises(FileFormatError, match="checkpoint"):
        train(ImplicitModel(4, 1, 12, rng=0), resume=tmp_path / "model.npz")


def test_the_same_seed_trains_the_same_model():
    one, two, other = (ImplicitModel(4, 1, 12, rng=0) for _ in range(3))
    train(one)
    train(two)
    train(other, rng=1)
    assert all(np.array_equal(one.params[k], two.params[k]) for k in one.params)
    assert not np.array_equal(one.params["A"], other.params["A"])


# ------------------------------------------------------------------------ failed solves


def fragile(share):
    """A model whose solve fails for the samples with a large first input, and its data.

    They are a given share of all.
    """
    model = random_model(
        ImplicitModel,
        1,
        1,
        1,
        activation=activations.abs,
        bias=False,
        feedthrough=False,
        forward=Picard(max_iter=3),
    )
    model.params = {"A": [[0.9]], "B": [[1.0]], "C": [[1.0]]}
    inputs = np.zeros((100, 1))
    inputs[: int(100 * share)] = (
        1.0  # x = 0.9 x + 1 needs more than three steps; x = 0.9 x + 0 needs one
    )
    return model, (inputs, np.ones((100, 1)))


def test_failed_samples_are_skipped_counted_and_reported():
    model, data = fragile(0.05)
    with pytest.warns(
        ConvergenceWarning, match=r"5 of 100 samples failed in epoch 1.* MAX_ITER after 3 steps"
    ) as warned:
        history = fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.SGD(1e-9),
            epochs=1,
            batch_size=10,
            rng=0,
            verbose=0,
        )
    assert warned[0].filename == __file__
    assert history["failed"].tolist() == [5.0]
    assert history["loss"][0] == pytest.approx(1.0)  # of the samples with x = 0 alone


def test_too_many_failures_are_an_error():
    model, data = fragile(0.2)
    with pytest.raises(
        ConvergenceError, match=r"20 of 100.* MAX_ITER .*Cure: raise max_iter"
    ) as error:
        fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.SGD(1e-9),
            epochs=1,
            batch_size=10,
            rng=0,
            verbose=0,
        )
    assert np.flatnonzero(~error.value.converged).tolist() == list(range(20))


def test_a_batch_of_failures_is_no_step():
    model, data = fragile(1.0)
    before = model.params
    with pytest.raises(ConvergenceError):
        fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.SGD(1.0),
            epochs=1,
            batch_size=10,
            rng=0,
            verbose=0,
        )
    assert model.params is before


@pytest.mark.parametrize(
    ("on_fail", "kind"), [("raise", ConvergenceError), ("warn", ConvergenceWarning)]
)
def test_other_policies(on_fail, kind):
    model, data = fragile(0.05)
    with pytest.raises(kind):  # warnings are errors here
        fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.SGD(1e-9),
            epochs=1,
            rng=0,
            verbose=0,
            on_fail=on_fail,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.SGD(1e-9),
            epochs=1,
            rng=0,
            verbose=0,
            on_fail="ignore",
        )


def test_a_failed_adjoint_is_skipped_too():
    model = ImplicitModel(4, 1, 12, rng=0, adjoint=Picard(max_iter=1))
    with pytest.raises(ConvergenceError, match="more than a tenth"):
        train(model, epochs=1)


def test_validation_counts_failures():
    model, (inputs, target) = fragile(0.5)
    easy = (np.zeros((20, 1)), np.ones((20, 1)))
    history = fit(
        model,
        easy,
        loss=losses.mse,
        optimizer=optim.SGD(1e-9),
        epochs=1,
        validation=(inputs, target),
        rng=0,
        verbose=0,
    )
    assert history["val_failed"].tolist() == [50.0]


# ----------------------------------------------------------------------------- the door

BAD_CALLS = {
    "epochs": {"epochs": 0},
    "batch_size": {"batch_size": 0},
    "on_fail": {"on_fail": "shrug"},
    "validation": {"validation": U},
    "loss": {"loss": "msee"},
    "optimizer": {"optimizer": "adam"},
    "metrics": {"metrics": ["acuracy"]},
    "one metric": {"metrics": "accuracy"},
    "callbacks": {"callbacks": [3]},
    "penalty": {"penalty": 0.1},
    "validation lengths": {"validation": (U, TARGET[:3])},
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_refused(case):
    with pytest.raises(InputError):
        train(ImplicitModel(4, 1, 12, rng=0), **BAD_CALLS[case])


@pytest.mark.parametrize(
    "data",
    [
        U,
        (U,),
        (U, TARGET[:-1]),
        (U[:0], TARGET[:0]),
        (U, TARGET, np.ones(3)),
        (U, 3.0),
        (U, TARGET, np.zeros(90)),
        (U, TARGET, U[:, 0]),
        (U, None),
        (SPOILT, TARGET),
        (U, SPOILT[:, :1]),
    ],
    ids=[
        "array",
        "one",
        "short",
        "empty",
        "few weights",
        "number",
        "no weight",
        "negative weights",
        "nothing",
        "NaN",
        "NaN targets",
    ],
)
@pytest.mark.parametrize("validation", [False, True])
def test_bad_data_are_refused(data, validation):
    """Before the first step, although only the last of them sees what is bad."""
    model, adam = ImplicitModel(4, 1, 12, rng=0), optim.Adam()
    before = model.params
    with pytest.raises(InputError):
        fit(
            model,
            (U, TARGET) if validation else data,
            validation=data if validation else None,
            loss=losses.mse,
            optimizer=adam,
            epochs=1,
            verbose=0,
            batch_size=1,
            rng=0,
        )
    assert model.params is before
    assert adam.count == 0


def test_what_has_no_weight_may_be_anything():
    weights = np.ones(90)
    weights[7] = 0.0
    history = fit(
        ImplicitModel(4, 1, 12, rng=0),
        (SPOILT, TARGET, weights),
        loss=losses.mse,
        optimizer=optim.Adam(),
        epochs=1,
        verbose=0,
    )
    assert np.isfinite(history["loss"][0])


def test_an_error_says_where_it_happened():
    with pytest.raises(InputError, match="the labels lie between") as error:
        train(ImplicitModel(4, 2, 12, rng=0), target=LABELS, loss=losses.cross_entropy)
    assert any("epoch 1, step" in note for note in error.value.__notes__)
    with pytest.raises(InputError, match="Layer"):
        fit("model", (U, TARGET), loss=losses.mse, optimizer=optim.Adam(), epochs=1)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("where", ["training", "validation", "metric", "callback"])
def test_what_is_refused_in_the_first_epoch_changes_nothing(where, resumed, tmp_path):
    """A label that does not exist is met at some step, when others have been taken.

    Nor does a checkpoint, from which such a run was to go on.
    """
    model, adam, rng = ImplicitModel(4, 3, 12, rng=0), optim.Adam(0.01), np.random.default_rng(1)
    history = fit(
        model,
        (U, LABELS),
        loss=losses.cross_entropy,
        optimizer=adam,
        epochs=1,
        batch_size=10,
        rng=rng,
        verbose=0,
    )
    if resumed:
        fit(
            ImplicitModel(4, 3, 12, rng=1),
            (U, LABELS),
            loss=losses.cross_entropy,
            optimizer=optim.Adam(0.1),
            epochs=2,
            batch_size=10,
            rng=2,
            callbacks=[Checkpoint(tmp_path / "run.npz")],
            verbose=0,
        )
    before, state, count, bits = dict(model.params), adam.state, adam.count, rng.bit_generator.state
    wrong = np.append(LABELS[:-1], 7)
    steps = []

    def loss(Y, target, **options):
        steps.append(adam.count)
        return losses.cross_entropy(Y, target, **options)

    with pytest.raises(InputError, match=r"labels lie between|shape|watches 'nothing'"):
        fit(
            model,
            (U, wrong if where == "training" else LABELS),
            loss=loss,
            optimizer=adam,
            epochs=5,
            batch_size=10,
            validation=(U, wrong) if where == "validation" else None,
            metrics=[lambda Y, target: metrics.accuracy(Y, target[:3])]
            if where == "metric"
            else (),
            callbacks=[EarlyStopping(monitor="nothing")] if where == "callback" else (),
            resume=tmp_path / "run.npz" if resumed else None,
            rng=rng,
            verbose=0,
        )
    assert len(history) == 1
    assert len(set(steps)) > 1  # some had been taken
    assert adam.count == count
    assert rng.bit_generator.state == bits
    for found, kept in ((model.params, before), (adam.state, state)):
        assert all(np.array_equal(found[key], kept[key]) for key in kept)


def test_an_optimiser_needs_no_more_than_a_step():
    class Plain:
        def step(self, params, grads):
            return {key: params[key] - 0.1 * grads[key] for key in params}

    model = ImplicitModel(4, 1, 12, rng=0)
    assert (
        np.diff(
            fit(model, (U, TARGET), loss=losses.mse, optimizer=Plain(), epochs=2, rng=0, verbose=0)[
                "loss"
            ]
        )
        < 0
    )
    with pytest.raises(InputError, match="shape"):
        fit(
            model,
            (U, TARGET[:, :1] * np.ones(2)),
            loss=losses.mse,
            optimizer=Plain(),
            epochs=2,
            rng=0,
            verbose=0,
        )


def test_several_inputs_and_a_random_layer():
    """A layer of one's own with two inputs, which draws from the generator that `fit` hands it."""

    class Two(Linear):
        def __call__(self, U, V, *, rng=None, on_fail="raise"):
            draws.append(rng.normal() if rng is not None else None)
            return self._forward(self._admit(np.concatenate([U, V], axis=1)), Call(rng, on_fail))

        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            return Y, Explicit(Y, pull.backward)

    draws = []
    data = ((U[:, :1], U[:, 1:]), TARGET)
    history = fit(
        Two(4, 1, rng=0),
        data,
        loss=losses.mse,
        optimizer=optim.Adam(0.05),
        epochs=5,
        batch_size=30,
        rng=0,
        verbose=0,
    )
    assert history["loss"][-1] < history["loss"][0]
    assert len(set(draws)) == 15


# ----------------------------------------------------------------------------- progress


def test_progress(capsys, caplog, monkeypatch):
    train(ImplicitModel(4, 1, 12, rng=0), epochs=2)
    assert capsys.readouterr() == ("", "")
    train(ImplicitModel(4, 1, 12, rng=0), epochs=2, verbose=1)
    assert "2/2" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="pyidl"):
        train(ImplicitModel(4, 1, 12, rng=0), epochs=2, verbose=1)
    assert [record.message.split(",")[0].split(" ")[1] for record in caplog.records] == ["1:", "2:"]
    assert capsys.readouterr() == ("", "")
