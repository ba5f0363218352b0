"""What is no number is refused with the cure for its kind, wherever it comes in."""

import warnings

import numpy as np
import pytest

from pyidl import ImplicitModel, Linear, fit, losses, metrics, optim
from pyidl.errors import InputError

Y, U = np.array([[0.3, 0.5], [0.1, 0.2]]), np.eye(2)
NAMES = np.array(["no", "yes"])
NUMBERED = "numbered by numpy.unique(names, return_inverse=True)[1]"


def train(U=U, target=(0, 1), weights=None, loss=losses.cross_entropy):
    model = ImplicitModel(np.shape(U)[1], 2, 3, rng=0)
    options = {"loss": loss, "optimizer": optim.Adam(), "epochs": 1, "rng": 0, "verbose": 0}
    return fit(model, (U, target, weights), **options)


DATES = np.array(["2026-01-01", "2026-01-02"], "M8[D]")
NO_NUMBERS = {
    "text": (NAMES, NUMBERED),
    "a list of text": (NAMES.tolist(), NUMBERED),
    "bytes": (NAMES.astype(bytes), NUMBERED),
    "objects": (NAMES.astype(object), NUMBERED),
    "digits": (np.array(["0", "1"]), "text that spells numbers is cast"),
    "integers in objects": (np.array([0, 1], dtype=object), "is cast"),
    "dates": (DATES, "count from a date, (dates - date) / numpy.timedelta64(1, 'D')"),
    "times": (DATES - DATES[0], "divide by a unit, numpy.timedelta64(1, 'D')"),
    "complex": (np.array([1j, 0]), "take its real part, or both parts as columns"),
    "records": (np.zeros(2, dtype=[("a", int)]), NUMBERED),
}
PLACES = {
    "target of mse": lambda x: losses.mse(Y[:, 0], x),
    "target of huber": lambda x: losses.huber(Y[:, 0], x),
    "target of binary_cross_entropy": lambda x: losses.binary_cross_entropy(Y[:, 0], x),
    "weights of a loss": lambda x: losses.mae(Y, Y, weights=x),
    "target of accuracy": lambda x: metrics.accuracy(Y, x),
    "target of r2": lambda x: metrics.r2(Y[:, 0], x),
    "what a model takes": lambda x: Linear(1, 1, rng=0).predict(np.asarray(x)[:, None]),
    "inputs of fit": lambda x: train(U=np.asarray(x)[:, None]),
    "weights of fit": lambda x: train(weights=x),
    "targets of fit": lambda x: train(target=np.stack([x, x], 1), loss=losses.mse),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_refused_with_its_cure(kind, place):
    given, cure = NO_NUMBERS[kind]
    with pytest.raises(InputError) as error:
        PLACES[place](given)
    assert f"{np.asarray(given).dtype}; real numbers are needed: " in str(error.value)
    assert cure in str(error.value)


LABELS = {
    "cross_entropy": lambda x: losses.cross_entropy(Y, x),
    "fit": lambda x: train(target=x),
}


@pytest.mark.parametrize("place", LABELS)
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_names_of_classes_are_answered_with_how_they_are_numbered(kind, place):
    """By whoever takes labels; the cure cures."""
    given, _ = NO_NUMBERS[kind]
    with pytest.raises(InputError, match="the labels have dtype") as error:
        LABELS[place](given)
    assert NUMBERED in str(error.value)
    numbers = np.unique(given, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LABELS[place](numbers)


@pytest.mark.parametrize("place", LABELS)
@pytest.mark.parametrize("dtype", [float, bool, np.float32])
def test_whole_numbers_are_cast(dtype, place):
    given = np.array([0, 1]).astype(dtype)
    with pytest.raises(InputError, match="cast whole numbers to integers") as error:
        LABELS[place](given)
    assert "numpy.unique" not in str(error.value)
    LABELS[place](given.astype(int))
