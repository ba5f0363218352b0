"""What a newcomer gets wrong in the first hour, and what the message says to do instead."""

import numpy as np
import pytest

import pyidl
from pyidl import losses, metrics, optim, solvers
from pyidl.errors import InputError

U = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 2
NAMES = np.array(["cat", "dog"])[LABELS]


@pytest.fixture(scope="module")
def model():
    return pyidl.ImplicitModel(3, 2, 10, rng=0)


def fit(model, *data, loss="cross_entropy", **options):
    return pyidl.fit(model, *data, loss=loss, epochs=1, verbose=0, **options)


WRONG = {
    # the shape and kind of data
    "samples as columns": (lambda m: m(U.T), r"takes \(m, 3\), one sample a row"),
    "a single sample": (lambda m: m(U[0]), r"for one sample use U\[None, :\]"),
    "text": (lambda m: m([["a", "b", "c"]]), "real numbers are needed"),
    "a missing value": (
        lambda m: m(np.append(U, [[0, np.nan, 0]], axis=0)),
        r"NaN.*\(20, 1\)\); clean",
    ),
    "a table for a network of sequences": (
        lambda m: pyidl.ImplicitRNN(3, 2, 4, 5, rng=0)(U),
        r"takes sequences, \(m, T, 3\)",
    ),
    "names of classes": (lambda m: fit(m, U, NAMES), "return_inverse=True"),
    "labels from 1": (lambda m: fit(m, U, LABELS + 1), r"with 2 classes they are 0, ..., 1"),
    "a row of targets": (
        lambda m: losses.mse(m.predict(U)[:, :1], U[:, 0]),
        r"reshape it, target.reshape\(\(20, 1\)\)",
    ),
    # what a call returns
    "Y = model(U), into a loss": (
        lambda m: losses.cross_entropy(m(U), LABELS),
        r"Y, pull = model\(U\)",
    ),
    "Y = model(U), into a metric": (
        lambda m: metrics.accuracy(m(U), LABELS),
        r"Y, pull = model\(U\)",
    ),
    "both of what a loss returns, into the pullback": (
        lambda m: m(U)[1](losses.cross_entropy(m.predict(U), LABELS)),
        r"value, dY = loss\(Y, target\)",
    ),
    "both of what a pullback returns, into the optimiser": (
        lambda m: optim.Adam().step(m.params, m(U)[1](np.ones((20, 2)))),
        "a mapping of names to arrays is needed",
    ),
    # what other libraries call it
    "model.fit": (lambda m: m.fit(U, LABELS), r"pyidl.fit\(model, U, targets, loss="),
    "model.parameters": (lambda m: m.parameters(), r"model\.params"),
    "model.backward": (lambda m: m.backward(), r"dU, grads = pull\(dY\)"),
    "model.state_dict": (lambda m: m.state_dict(), r"pyidl\.save\(path, model\)"),
    "a GPU by another name": (lambda m: m.to("gpu"), "use 'cpu', 'cuda'"),
    # options
    "an activation, misspelt": (
        lambda m: pyidl.ImplicitModel(3, 2, 10, activation="rleu"),
        "'relu'",
    ),
    "an activation of NumPy": (
        lambda m: pyidl.ImplicitModel(3, 2, 10, activation=np.tanh),
        "use one of pyidl.activations",
    ),
    "a bound in place of a constraint": (
        lambda m: pyidl.ImplicitModel(3, 2, 10, constraint=0.9),
        r"such as InfNorm\(0.99\)",
    ),
    "a bound that is none": (lambda m: pyidl.InfNorm(1.5), "0 < kappa < 1"),
    "a class in place of a solver": (
        lambda m: pyidl.ImplicitModel(3, 2, 10, forward=solvers.Picard),
        "the class Picard, and an instance is needed",
    ),
    "a class in place of an optimiser": (
        lambda m: fit(m, U, LABELS, optimizer=optim.Adam),
        r"the class Adam, and an instance is needed.*Adam\(1e-3\)",
    ),
    "layers of different widths": (
        lambda m: pyidl.Sequential(m, pyidl.Linear(3, 2)),
        "takes 3 inputs, the layers before it give 2",
    ),
    # training
    "no targets": (lambda m: fit(m, U), "targets"),
    "a loss, misspelt": (lambda m: fit(m, U, LABELS, loss="crossentropy"), "'cross_entropy'"),
    "a loss, called": (
        lambda m: fit(m, U, LABELS, loss=losses.cross_entropy(m.predict(U), LABELS)),
        "^loss is .*callable",
    ),
    "a share in place of validation data": (
        lambda m: fit(m, U, LABELS, validation=0.2),
        r"validation must be \(inputs, targets\)",
    ),
    "a number that was not recorded": (
        lambda m: fit(m, U, LABELS)["accuracy"],
        "was not recorded; there are",
    ),
    # files
    "save, the wrong way round": (lambda m: pyidl.save(m, "model.npz"), r"save\(path, model\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_leads_to_the_right_one(model, what):
    call, words = WRONG[what]
    mine = model.replace()
    before = dict(mine.params)
    with pytest.raises((InputError, AttributeError, KeyError), match=words):
        call(mine)
    if what != "a number that was not recorded":  # which is asked after a training
        assert all(mine.params[key] is before[key] for key in before)
