"""Read-outs that pool over time, and the time scales of a new network.

The three oracles of their gradients are those of all networks, in `test_rnn.py`.
"""

import numpy as np
import pytest
from helpers import assert_close, host, moved, relative
from recurrences import M, N, P, Q, R, build, by_pyidl, inputs, oracle, problem, run, weights

import pyidl
from pyidl import Bidirectional, ImplicitRNN, Pattern, Sequential, losses, metrics, optim
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.recurrent.cell import RNNState
from pyidl.testing import check_pullback

POOLS = ["mean", "max"]
HOLES = np.ones((M, 6), bool)
HOLES[0, [1, 4]] = HOLES[1, 0] = HOLES[2, [0, 5]] = False
HOLES[3, 1:] = False


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("with_h0", [False, True])
def test_a_mask_may_have_holes(pool, with_h0, xp):
    """H_0 is none of the states, and a step without the sample counts for nothing."""
    model, U = build(pool), inputs(6)
    *_, G, _, start = problem(model, 6, with_h0, False)
    start = start + 100.0 * with_h0  # the largest, if it counted
    Y, found = by_pyidl(model, U, HOLES, start if with_h0 else None, G, xp)
    assert_close(Y, run(model, U, HOLES, start)[0], rtol=1e-9, atol=1e-9, xp=xp)
    truth = oracle(model, U, HOLES, start, G, "dense")
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize("pool", POOLS)
def test_it_pools_the_states_that_there_are(pool):
    model, U = build(pool), inputs(6)
    Y, pull = model(U, HOLES)
    read = {"mean": np.mean, "max": np.max}[pool]
    for i, part in enumerate(HOLES):
        h = read(pull.hidden[i, part], axis=0)
        assert_close(Y[i], model.params["E"] @ h + model.params["e"], rtol=1e-12, atol=1e-12)
        assert_close(model(U[i : i + 1, part])[0], Y[i : i + 1], rtol=1e-9, atol=1e-9)
    noisy = np.where(HOLES[:, :, None], U, 1e6)
    assert np.array_equal(model(noisy, HOLES)[0], Y)
    assert_close(model.predict(U, HOLES, batch_size=3), Y, rtol=1e-9, atol=1e-9)
    assert not np.allclose(Y, model.replace(pool="last").predict(U, HOLES))


def test_where_several_are_largest_the_first_learns(xp):
    """H of a network without a past and with equal inputs is the same in all steps."""
    model = build("max", bias=False)
    model.params = {
        **model.params,
        "B": model.params["B"] * np.repeat([1.0, 0.0], [P, R]),
        "D": model.params["D"] * np.repeat([1.0, 0.0], [P, R]),
    }
    model = moved(model.replace(warm_start=False), xp)
    U = from_host(xp, np.repeat(inputs(1), 5, axis=1))
    mask = np.ones((M, 5), bool)
    mask[0, :2] = False
    _, pull = model(U, mask)
    (dU, _), _ = pull(from_host(xp, np.ones((M, Q))))
    learns = host(dU).any(axis=2)
    assert learns.sum(axis=1).tolist() == [1] * M
    assert learns.argmax(axis=1).tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize("pool", POOLS)
def test_truncation(pool):
    """Every sample is cut from its own end; all steps are visited, as all are read."""
    model, U, lengths = build(pool).with_tol(1e-14), inputs(7), np.array([7, 4, 1, 6])
    mask, rng = np.arange(7) < lengths[:, None], np.random.default_rng(0)
    G, zero = rng.normal(size=(M, Q)), np.zeros((M, R))
    _, full = model(U, lengths)
    _, pull = model.replace(truncate=3)(U, lengths, zero)
    (dU, _, dh0), grads = pull(G)
    every = model.replace(pool="last", return_sequences=True, truncate=3)
    spread = weights(model, full.hidden, mask) * (G @ model.params["E"])[:, None]
    (dV, _, dg0), expected = _reading_all(every)(U, lengths, zero)[1](spread)
    assert relative(dU, dV) < 1e-10
    assert relative(dh0, dg0) < 1e-10
    for key in "ABCDbd":
        assert relative(grads[key], expected[key]) < 1e-10, key
    untouched, _ = model.replace(truncate=7)(U, lengths)[1](G)
    assert np.array_equal(untouched[0], full(G)[0][0])
    assert relative(dU, untouched[0]) > 1e-3


def _reading_all(model):
    """The same recurrence, whose output is H itself."""
    twin = ImplicitRNN(
        P,
        R,
        R,
        N,
        return_sequences=True,
        truncate=model.truncate,
        rng=0,
        dtype="float64",
        activation=model.activation,
    )
    twin.params = {**model.params, "E": np.eye(R), "e": np.zeros(R)}
    return twin.with_tol(1e-14)


@pytest.mark.parametrize("pool", ["last", *POOLS])
def test_step_by_step_is_the_whole(pool, xp):
    model = moved(build("default", pool=pool), xp)
    U = from_host(xp, inputs(7))
    cell, state = model.cell, None
    for t in range(7):
        y, state = cell.step(U[:, t, ...], state)
        whole = model.predict(U[:, : t + 1, ...])
        assert_close(host(y), host(whole), rtol=1e-9, atol=1e-9)
    *_, (y, _) = cell.stream((U[:, t, ...] for t in range(1, 7)), cell.step(U[:, 0, ...])[1])
    assert_close(host(y), host(whole), rtol=1e-9, atol=1e-9)
    # a hidden state alone has no past
    for bare in (state.h, RNNState(state.h)):
        y, _ = cell.step(U[:, 0, ...], bare)
        alone = model.predict(U[:, :1, ...], None, state.h)
        assert_close(host(y), host(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", POOLS)
def test_in_layers_of_layers_and_files(pool, tmp_path):
    ahead, back = (build("default", seed=i, pool=pool) for i in (0, 1))
    model = Sequential(Bidirectional(ahead, back), pyidl.Linear(2 * Q, 3, dtype="float64", rng=0))
    U, lengths = inputs(6), np.array([6, 1, 3, 2])
    Y, _ = model(U, lengths)
    one, other = ahead.predict(U, lengths), back.predict(_reversed(U, lengths), lengths)
    both = np.concatenate([one, other], axis=1)
    assert_close(Y, model.layers[1].predict(both), rtol=1e-9, atol=1e-9)
    assert check_pullback(model, U[:2], rng=0).max_error < 1e-6
    pyidl.save(tmp_path / "model.npz", model)
    again = pyidl.load(tmp_path / "model.npz")
    assert np.array_equal(again.predict(U, lengths), model.predict(U, lengths))
    assert f"pool={pool!r}" in repr(ahead)


def _reversed(U, lengths):
    return np.stack([np.concatenate([u[:k][::-1], u[k:]]) for u, k in zip(U, lengths)])


@pytest.mark.parametrize("pool", POOLS)
def test_an_error_of_a_pooled_output_is_bounded_too(pool):
    """The bound of an output grows with time, and pooling takes no more than the largest."""
    model = build("default", pool=pool, constraint=pyidl.InfNorm(0.5))
    U = inputs(6)
    coarse, pull = model.with_tol(1e-3)(U)
    error = np.abs(coarse - model.with_tol(1e-14).predict(U)).max()
    residual = pull.solutions[0].residual.max()
    assert 0 < error <= model.recurrence().amplification(6) * residual


# ----------------------------------------------------------------------- the time scales


def far(model, T):
    """How much of a unit cotangent of H_T arrives at H_0, as a share in length."""
    U = np.zeros((1, T, P))
    _, pull = model(U, None, np.zeros((1, R)))
    (_, dh0), _ = pull(np.ones((1, Q)))
    return np.linalg.norm(dh0) / np.linalg.norm(np.ones(Q) @ model.params["E"])


def test_a_new_network_remembers_as_long_as_it_is_told():
    for T in (20, 150):
        fresh, told = (
            ImplicitRNN(P, Q, R, N, rng=0, dtype="float64", timescale=s) for s in (None, T)
        )
        assert far(fresh, T) < 0.9**T
        assert 0.1 < far(told, T) < 1.0
        D_h = told.params["D"][:, P:]
        assert np.array_equal(D_h, np.diag(np.diagonal(D_h)))
        assert -1 / np.log(np.diagonal(D_h)) == pytest.approx(np.geomspace(T, 1, R))
        for key in "Ebde":  # a seed gives the rest as ever
            assert np.array_equal(fresh.params[key], told.params[key])
    single = ImplicitRNN(P, Q, 1, N, rng=0, timescale=7).params["D"]
    assert single[0, P] == pytest.approx(np.exp(-1 / 7))


@pytest.mark.parametrize("timescale", [1, 30, 1000.0])
def test_a_new_step_does_not_expand(timescale):
    for seed in range(5):
        model = ImplicitRNN(P, Q, R, N, rng=seed, dtype="float64", timescale=timescale)
        rng = np.random.default_rng(seed)
        u = rng.normal(size=(200, P))
        h, d = rng.normal(size=(2, 200, R))
        apart = model.cell.step(u, h)[1].h - model.cell.step(u, h + d)[1].h
        assert np.all(np.linalg.norm(apart, axis=1) <= (1 + 1e-9) * np.linalg.norm(d, axis=1))


def test_a_pattern_confines_it():
    mask = np.ones((R, P + R), bool)
    mask[1, P + 1] = False
    model = ImplicitRNN(P, Q, R, N, rng=0, timescale=9, pattern=Pattern(D=mask))
    assert np.count_nonzero(model.params["D"][:, P:]) == R - 1


def test_what_stood_at_the_beginning_is_learnt():
    """The sign of the first input, 100 steps later; in series that were not trained on."""
    rng, label = np.random.default_rng(0), np.arange(240) % 2
    U = 0.1 * rng.normal(size=(240, 100, 1))
    U[:, 0, 0] = 2.0 * label - 1.0
    right = {}
    for timescale, pool in ((None, "last"), (100, "last"), (None, "max")):
        model = ImplicitRNN(1, 2, 6, 6, rng=0, timescale=timescale, pool=pool)
        pyidl.fit(
            model,
            (U[:40], label[:40]),
            loss=losses.cross_entropy,
            optimizer=optim.Adam(1e-2),
            epochs=10,
            batch_size=10,
            rng=0,
            verbose=False,
        )
        right[timescale, pool] = metrics.accuracy(model.predict(U[40:]), label[40:])
    assert right[None, "last"] < 0.7
    assert right[100, "last"] == right[None, "max"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "first"}, "pool is 'first'; use 'last', 'mean', or 'max'"),
        ({"pool": None}, "pool is None"),
        ({"pool": ["mean"]}, "pool is"),
        ({"pool": "max", "return_sequences": True}, "every step has an output, and pool='max'"),
        ({"timescale": 0.5}, "timescale is 0.5; it is a number of steps, at least 1"),
        ({"timescale": np.inf}, "timescale is inf"),
        ({"timescale": np.nan}, "timescale is nan"),
        ({"timescale": "long"}, "timescale is 'long'"),
        ({"timescale": True}, "timescale is True"),
        ({"timescale": 9, "feedthrough": "input"}, "feedthrough='input' does not have"),
        ({"timescale": 9, "feedthrough": False}, "feedthrough=False does not have"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ImplicitRNN(P, Q, R, N, **options)
    if "feedthrough" not in options:
        with pytest.raises(InputError, match=message):
            build().replace(**options)
