"""Layers made of layers.

Lengths reach those that take them, both directions of time, copies that share nothing.
"""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_close, host, moved, random_model
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import (
    Bidirectional,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Pointwise,
    Residual,
    Sequential,
    activations,
    losses,
    optim,
    solvers,
)
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.layers.timeline import Timeline
from pyidl.testing import check_pullback

P, Q, R, N, M, T = 3, 2, 5, 8, 4, 5
LENGTHS = [5, 1, 3, 2]
HOLES = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 0, 1, 0]], bool)
U = np.random.default_rng(0).normal(size=(M, T, P))


def rnn(p=P, q=Q, seed=0, **options):
    options = {"dtype": "float64", "return_sequences": True, **options}
    return random_model(ImplicitRNN, p, q, R, N, seed=seed, spread=0.3, **options).with_tol(1e-14)


def both(**options):
    return Bidirectional(rnn(**options), rnn(seed=1, **options))


MODELS = {
    "stacked": lambda: Sequential(
        rnn(), rnn(Q, 4, 1, return_sequences=False), Linear(4, Q, rng=0, dtype="float64")
    ),
    "every step": lambda: Sequential(
        rnn(), activations.tanh, Linear(Q, 3, rng=0, dtype="float64"), rnn(3, Q, 1)
    ),
    "both directions": both,
    "both ends": lambda: both(return_sequences=False),
    "stacked in both directions": lambda: Sequential(
        both(), both(p=2 * Q), Linear(2 * Q, Q, rng=0, dtype="float64")
    ),
    "a chain in each direction": lambda: Bidirectional(
        Sequential(rnn(), rnn(Q, Q, 1)), rnn(seed=2)
    ),
}


def alone(model, i):
    """Sample i by itself, without what it lacks."""
    kept = HOLES[i]
    return model(U[i : i + 1, kept])[0]


@pytest.mark.parametrize("lengths", [LENGTHS, HOLES, None], ids=["lengths", "holes", "none"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_with_lengths(kind, lengths):
    model, rng = MODELS[kind](), np.random.default_rng(1)
    arguments = () if lengths is None else (lengths,)
    Y, pull = model(U, *arguments)
    G = rng.normal(size=Y.shape)
    dU, grads = pull(G)
    if lengths is not None:
        dU, nothing = dU
        assert nothing is None
    assert set(grads) == set(model.params)
    directions = {key: rng.normal(size=a.shape) for key, a in model.params.items()} | {
        "U": rng.normal(size=U.shape)
    }
    for key, direction in directions.items():
        ends = []
        for h in (1e-5, -1e-5):
            twin = model.replace()
            if key != "U":
                twin.params = {**twin.params, key: twin.params[key] + h * direction}
            ends.append(twin(U + h * direction if key == "U" else U, *arguments)[0])
        measured = np.sum(G * (ends[0] - ends[1])) / 2e-5
        found = np.sum((dU if key == "U" else grads[key]) * direction)
        scale = np.sum(np.abs(dU if key == "U" else grads[key]) * np.abs(direction)) + 1e-3
        assert abs(found - measured) < 2e-6 * scale, key


@pytest.mark.parametrize("kind", MODELS)
def test_a_sample_in_a_batch_is_the_sample_alone(kind):
    """What is padded, or lies in a hole, does not matter to the others."""
    model = MODELS[kind]()
    Y = model(U, HOLES)[0]
    for i in range(M):
        single = alone(model, i)[0]
        assert_close(Y[i, HOLES[i]] if Y.ndim == 3 else Y[i], single, rtol=1e-10, atol=1e-12)
    noise = np.where(HOLES[:, :, None], U, 7.0)
    again = model(noise, HOLES)[0]
    assert_close(
        again[HOLES] if Y.ndim == 3 else again,
        Y[HOLES] if Y.ndim == 3 else Y,
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("kind", MODELS)
def test_on_every_library(kind, xp):
    model = MODELS[kind]()
    Y, pull = model(U, LENGTHS)
    twin = moved(model, xp)
    Z, other = twin(from_host(xp, U), LENGTHS)
    assert_close(Z, Y, rtol=1e-9, atol=1e-12, xp=xp)
    (dU, _), grads = pull(np.ones(Y.shape))
    (dV, _), others = other(from_host(xp, np.ones(Y.shape)))
    assert_close(dV, dU, rtol=1e-7, atol=1e-10, xp=xp)
    for key in grads:
        assert_close(others[key], grads[key], rtol=1e-7, atol=1e-9, xp=xp)


@pytest.mark.parametrize("kind", MODELS)
def test_the_public_check_and_batches(kind):
    model = MODELS[kind]()
    assert check_pullback(model, U).max_error < 1e-6
    assert_close(
        model.predict(U, LENGTHS, batch_size=3), model(U, LENGTHS)[0], rtol=1e-10, atol=1e-12
    )
    assert_close(model.predict(U, batch_size=3), model(U)[0], rtol=1e-10, atol=1e-12)


def test_the_first_output_knows_of_the_last_input():
    model, changed = both(), U.copy()
    changed[:, -1] += 1.0
    assert np.all(np.abs(model(changed)[0] - model(U)[0]).max(axis=2) > 0)
    assert np.array_equal(rnn()(changed)[0][:, 0], rnn()(U)[0][:, 0])


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9))
def test_reversal_is_its_own_inverse_and_its_own_transpose(seed, m, length):
    rng = np.random.default_rng(seed)
    mask = rng.random((m, length)) < 0.6
    mask[:, 0] = True
    line = Timeline.read(mask, m, length)
    a, b = rng.normal(size=(2, m, length, 2))
    assert np.array_equal(line.reverse(line.reverse(a)), a)
    assert np.isclose(np.sum(line.reverse(a) * b), np.sum(a * line.reverse(b)))
    for i in range(m):
        assert np.array_equal(line.reverse(a)[i, mask[i]], a[i, mask[i]][::-1])
        assert np.array_equal(line.reverse(a)[i, ~mask[i]], a[i, ~mask[i]])


@pytest.mark.parametrize("kind", MODELS)
def test_copies_share_nothing(kind, tmp_path):
    model = MODELS[kind]()
    pyidl.save(tmp_path / "model.npz", model)
    for twin in (
        model.replace(),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        pyidl.load(tmp_path / "model.npz"),
    ):
        assert repr(twin) == repr(model)
        assert np.array_equal(twin(U, LENGTHS)[0], model(U, LENGTHS)[0])
        before = {key: host(a).copy() for key, a in model.params.items()}
        twin.params = {key: 0 * a for key, a in twin.params.items()}
        assert all(np.array_equal(before[key], a) for key, a in model.params.items())
    assert model.astype("float32").dtype == "float32"


def test_fit_counts_samples_not_solves():
    """A sequence of five steps that fail is one failed sample."""
    model = Sequential(rnn(), Linear(Q, 1, rng=0, dtype="float64"))
    target, lengths = np.zeros((M, T, 1)), np.array(LENGTHS)
    history = pyidl.fit(
        model,
        ((U, lengths), target),
        loss=losses.mse,
        optimizer=optim.SGD(1e-3),
        epochs=1,
        validation=((U, lengths), target),
        on_fail="ignore",
        rng=0,
        verbose=0,
    )
    assert history["val_failed"] == [0]
    hasty = model.replace(
        layers=[model.layers[0].replace(forward=solvers.Picard(max_iter=1)), model.layers[1]]
    )
    history = pyidl.fit(
        hasty,
        ((U, lengths), target),
        loss=losses.mse,
        optimizer=optim.SGD(1e-9),
        epochs=1,
        validation=((U, lengths), target),
        on_fail="ignore",
        rng=0,
        verbose=0,
    )
    assert history["val_failed"] == [M]
    converged = model(U, lengths)[1].converged
    assert converged.shape == (M,)
    assert converged.all()


def test_lengths_are_refused_where_nobody_takes_them():
    plain = Sequential(Linear(P, 4, rng=0), activations.tanh)
    with pytest.raises(InputError, match="no layer of Sequential takes the lengths"):
        plain(U, LENGTHS)
    with pytest.raises(
        InputError, match=r"lengths lie between 0 and 5; with 5 steps they are 1, \.\.\., 5"
    ):
        MODELS["stacked"]()(U, [0, 5, 3, 2])
    with pytest.raises(TypeError):
        ImplicitModel(P, Q, N)(U[:, 0], LENGTHS)


def test_bad_parts_are_refused():
    with pytest.raises(InputError, match="take 3 and 2 inputs"):
        Bidirectional(rnn(), rnn(Q))
    same = rnn()
    with pytest.raises(InputError, match="stands twice in Bidirectional"):
        Bidirectional(same, same)
    with pytest.raises(InputError, match="choose the same return_sequences"):
        Bidirectional(rnn(), rnn(seed=1, return_sequences=False))(U)
    with pytest.raises(InputError, match="layer back of Bidirectional"):
        Bidirectional(rnn(), activations.tanh)
    with pytest.raises(InputError, match="takes sequences"):
        both()(U[:, 0])
    with pytest.raises(InputError, match="has no part there"):
        both().replace(there=rnn())
    with pytest.raises(InputError, match="float32 and float64"):
        Bidirectional(rnn(), rnn(seed=1, dtype="float32").with_tol(None))


def test_a_layer_with_parameters_stands_once_however_deep():
    """Only the gradient of its last use would have counted."""
    layer = ImplicitModel(4, 4, 12, rng=0)
    with pytest.raises(InputError, match="one layer stands twice in Sequential"):
        Sequential(Residual(layer), layer)
    tanh = Pointwise(activations.tanh)
    assert Sequential(Residual(tanh), tanh, layer).predict(np.ones((2, 4))).shape == (2, 4)
