"""Activations by name, wherever one is taken."""

import copy
import pickle

import numpy as np
import pytest

from pyidl import (
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Pointwise,
    Residual,
    Sequential,
    activations,
    sim,
)
from pyidl.activations import Activation
from pyidl.errors import InputError

NAMES = [n for n in activations.__all__ if isinstance(getattr(activations, n), Activation)]
TAKE = {
    "implicit model": lambda phi: ImplicitModel(2, 1, 3, activation=phi, rng=0).activation,
    "recurrent": lambda phi: ImplicitRNN(2, 1, 2, 3, activation=phi, rng=0).activation,
    "pointwise": lambda phi: Pointwise(phi).activation,
    "sequential": lambda phi: Sequential(Linear(2, 3, rng=0), phi).layers[1].activation,
    "residual": lambda phi: Residual(Linear(2, 2, rng=0), phi).layers[1].activation,
    "replace": lambda phi: ImplicitModel(2, 1, 3, rng=0).replace(activation=phi).activation,
    "feedforward": lambda phi: sim.Feedforward(
        [(np.ones((2, 2)), None), (np.ones((1, 2)), None)], phi
    ).activation[0],
}


# Layer norm as a state's activation is refused by its constraint, whatever its name.
FREE = [take for take in TAKE if take not in ("implicit model", "recurrent", "replace")]


@pytest.mark.parametrize(
    ("take", "name"),
    [(take, name) for take in TAKE for name in ["leaky_relu(0.25)", *NAMES]]
    + [(take, "layer_norm(1.0)") for take in FREE],
)
def test_the_name_is_the_activation(take, name):
    phi = TAKE[take](name)
    assert phi is activations.named(name)
    assert TAKE[take](phi) is phi


def test_there_is_a_default_and_it_is_told():
    assert ImplicitModel(2, 1, 3, rng=0).activation is activations.relu
    assert ImplicitModel.activation is activations.relu
    with pytest.raises(TypeError, match="activation"):
        Pointwise()


def test_copies_keep_it():
    model = ImplicitModel(2, 1, 3, activation="tanh", rng=0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.astype("float64")):
        assert twin.activation is activations.tanh
    with pytest.raises(AttributeError, match="activation cannot be set"):
        model.activation = "relu"


@pytest.mark.parametrize("take", TAKE)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tahn", r"there is no 'tahn', did you mean 'tanh'\? pyidl.activations has abs, elu"),
        ("ReLU", "did you mean 'relu'"),
        ("swish", "there is no 'swish'"),
        ("leaky", r"did you mean 'leaky_relu'\?"),
        ("leaky_relu", r"write pyidl.activations.leaky_relu\(slope=0.01\) instead of the name"),
        ("layer_norm", r"write pyidl.activations.layer_norm\(eps=1.0\) instead of the name"),
        ("leaky_relu(7)", "the slope of leaky_relu is 7.0; it must lie between 0 and 1"),
        ("leaky_relu(steep)", "is the activation 'leaky_relu.steep.': could not convert"),
        ("Blocks", "there is no 'Blocks'"),
        ("", "there is no ''"),
    ],
)
def test_a_wrong_name_is_told_which_there_are(take, given, words):
    with pytest.raises(InputError, match=words) as error:
        TAKE[take](given)
    assert "activation" in str(error.value)


def test_a_sequential_takes_a_list():
    parts = [Linear(2, 3, rng=0), "tanh", Linear(3, 1, rng=1)]
    U = np.ones((4, 2))
    one, other = Sequential(*parts), Sequential(parts)
    assert np.array_equal(one.predict(U), other.predict(U))
    assert repr(one) == repr(other) == repr(Sequential(tuple(parts)))
    assert repr(Residual([Linear(2, 2, rng=0)])) == repr(Residual(Linear(2, 2, rng=0)))
    for mixed in ((parts, "relu"), ("relu", parts), (parts, parts)):
        with pytest.raises(InputError, match="all of them in one list, or each as an argument"):
            Sequential(*mixed)
    for empty in ((), ([],)):
        with pytest.raises(InputError, match="at least one layer"):
            Sequential(*empty)
