"""`fit` takes data together or apart, and losses, optimisers and metrics by their names."""

import numpy as np
import pytest

from pyidl import ImplicitModel, ImplicitRNN, Sequential, fit, losses, metrics, optim
from pyidl.errors import InputError

RNG = np.random.default_rng(0)
U = RNG.normal(size=(40, 3))
T = np.sin(U[:, :1])
LABELS = (U[:, 0] > 0).astype(int)
W = RNG.uniform(0.5, 2.0, 40)


def trained(*data, q=1, **options):
    """The history's losses, and the parameters, of two epochs."""
    model = ImplicitModel(3, q, 6, rng=0)
    options = {"loss": losses.mse, "optimizer": optim.Adam(1e-3)} | options
    history = fit(model, *data, epochs=2, rng=0, verbose=0, **options)
    return history, model.params


def same(one, other):
    assert all(np.array_equal(a, other[1][key]) for key, a in one[1].items())
    assert list(one[0].records[0]) == list(other[0].records[0])
    assert np.array_equal(one[0]["loss"], other[0]["loss"])


def test_data_together_and_apart_are_the_same():
    same(trained((U, T)), trained(U, T))
    same(trained((U, T)), trained(U, targets=T))
    same(trained((U, T, W)), trained(U, T, W))
    same(trained((U, T, W)), trained(U.tolist(), T.tolist(), weights=W.tolist()))
    assert not np.array_equal(trained(U, T, W)[1]["C"], trained(U, T)[1]["C"])


def test_several_inputs_stand_in_a_tuple_with_the_targets():
    S, lengths = RNG.normal(size=(8, 5, 2)), np.array([5, 1, 2, 3, 4, 5, 5, 2])
    model = Sequential(ImplicitRNN(2, 1, 3, 4, rng=0))
    options = {"loss": "mse", "epochs": 1, "verbose": 0}
    fit(model, ((S, lengths), np.ones((8, 1))), **options)
    for data in ((S, lengths), (S,), (S, np.ones((8, 1)))):
        with pytest.raises(InputError, match=r"fit\(model, \(\(U, lengths\), targets\), ...\)"):
            fit(model, data, np.ones((8, 1)), **options)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((U,), r"no targets are given; write fit\(model, U, targets, ...\)"),
        ((U, None, W), r"no targets; write fit\(model, U, targets, weights, ...\)"),
        (((U, T), None, W), r"fit\(model, \(U, targets, weights\), ...\)"),
        ((U, T[:3]), "must share a first axis"),
        ((U, T, -W), "weights of data must be one number >= 0"),
        ((U, [[1.0], [2.0, 3.0]]), "targets of data cannot be read as an array"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, words):
    with pytest.raises(InputError, match=words):
        trained(*data)


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name != "certified"])
def test_every_loss_by_its_name(name):
    target = LABELS if name == "cross_entropy" else np.repeat(LABELS[:, None], 2, axis=1)
    options = {"q": 2, "loss": getattr(losses, name)}
    same(trained(U, target, **options), trained(U, target, **options | {"loss": name}))


def test_a_loss_that_is_yet_to_be_made_has_no_name_here():
    with pytest.raises(InputError, match=r"write pyidl.losses.certified\(mix\)"):
        trained(U, T, loss="certified")


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_optimisers_by_their_names_have_their_defaults(name):
    same(trained(U, T, optimizer=getattr(optim, name)()), trained(U, T, optimizer=name))


def test_without_an_optimiser_it_is_a_new_adam():
    same(trained(U, T, optimizer=None), trained(U, T, optimizer=optim.Adam(1e-3)))
    same(trained(U, T, optimizer=None), trained(U, T, optimizer=None))


def test_metrics_by_their_names():
    named, _ = trained(U, LABELS, q=2, loss="cross_entropy", metrics=["accuracy", "log_loss", "f1"])
    given, _ = trained(
        U,
        LABELS,
        q=2,
        loss="cross_entropy",
        metrics=[metrics.accuracy, metrics.log_loss, metrics.f1, metrics.top_k(1)],
    )
    for key in ("accuracy", "log_loss", "f1"):
        assert np.array_equal(named[key], given[key])
    assert np.array_equal(given["top_1"], given["accuracy"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "MSE"}, r"loss: there is no 'MSE', did you mean 'mse'\? pyidl.losses has binary"),
        ({"loss": "cross-entropy"}, "did you mean 'cross_entropy'"),
        (
            {"loss": "nothing like it"},
            "there is no 'nothing like it'; pyidl.losses has .* mae, mse$",
        ),
        ({"optimizer": "adam"}, r"did you mean 'Adam'\? pyidl.optim has SGD, Adam, AdamW$"),
        ({"optimizer": "SGD"}, r"write pyidl.optim.SGD\(learning_rate\) instead of the name"),
        ({"optimizer": "Cosine"}, "there is no 'Cosine'; pyidl.optim has SGD, Adam, AdamW"),
        ({"optimizer": "Optimizer"}, "there is no 'Optimizer'"),
        ({"optimizer": optim.Adam}, "optimizer is .*or its name"),
        ({"metrics": ["acc"]}, r"metrics: there is no 'acc'.*accuracy, f1, log_loss, mae, r2$"),
        ({"metrics": ["top_k"]}, r"write pyidl.metrics.top_k\(k\) instead of the name"),
        ({"metrics": "accuracy"}, r"metrics is 'accuracy'; .*: metrics=\[...\]"),
        ({"callbacks": ["EarlyStopping"]}, "callbacks is 'EarlyStopping'; it must be callable"),
    ],
)
def test_a_wrong_name_is_told_which_there_are(options, words):
    with pytest.raises(InputError, match=words):
        trained(U, T, **options)
