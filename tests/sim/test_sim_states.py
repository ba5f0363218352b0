"""States of networks.

What is collected, from whatever network, and the network itself as an implicit model.
"""

import itertools
import types

import numpy as np
import pytest
from helpers import assert_close, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl import (
    Dropout,
    ImplicitModel,
    ImplicitRNN,
    InfNorm,
    Linear,
    Pattern,
    Residual,
    Sequential,
    activations,
    sim,
    solvers,
    to_numpy,
)
from pyidl.activations import Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.matrices.tiled import Tiled

PHIS = [activations.relu, activations.tanh, activations.sigmoid, activations.leaky_relu(0.2)]


def network(widths=(4, 6, 5, 3), phis=None, dtype="float64", seed=0, bias=True):
    """Linear layers with activations between them, all parameters random."""
    layers = []
    for i, (p, q) in enumerate(itertools.pairwise(widths)):
        layers += [
            random_model(Linear, p, q, seed=seed + i, dtype=dtype, bias=bias),
            (phis or PHIS)[i % len(phis or PHIS)],
        ]
    return Sequential(*layers[:-1])


def samples(m=7, p=4, seed=0, dtype="float64"):
    return np.random.default_rng(seed).normal(size=(m, p)).astype(dtype)


def by_hand(net, U):
    """Pre-activations, states, output of a plain chain; the last layer first."""
    Z, X, value = [], [], U
    for layer in net.layers:
        if isinstance(layer, Linear):
            value = value @ host(layer.params["W"]).T + host(layer.params.get("b", np.zeros(1)))
        else:
            Z.insert(0, value)
            value = layer.activation(value)
            X.insert(0, value)
    return np.hstack(Z), np.hstack(X), value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_states_of_a_sequential(xp, dtype):
    net = network(dtype=dtype)
    U = samples(dtype=dtype)
    states = sim.collect_states(moved_sequential(net, xp), xp.asarray(U))
    Z, X, Y = by_hand(net, U)
    eps = 1e-6 if dtype == "float32" else 1e-14
    for name, expected in (("U", U), ("Z", Z), ("X", X), ("Y", Y)):
        assert_close(getattr(states, name), expected, rtol=10 * eps, atol=10 * eps, xp=xp)
    assert states.widths == (5, 6)
    assert states.activation.name == "Blocks((tanh, 5), (relu, 6))"
    assert_close(states.inputs, np.hstack([X, U]), rtol=10 * eps, atol=10 * eps, xp=xp)
    assert_close(states.targets, np.hstack([Z, Y]), rtol=10 * eps, atol=10 * eps, xp=xp)
    moments = states.moments()
    assert moments.count == 7
    assert tuple(moments.H.shape) == (14, 15)


def moved_sequential(net, xp):
    return Sequential(
        *(moved(layer, xp) if layer.params else layer.replace() for layer in net.layers)
    )


def test_one_activation_needs_no_blocks():
    assert (
        sim.collect_states(network(phis=[activations.relu]), samples()).activation
        is activations.relu
    )


@pytest.mark.parametrize("bias", [True, False])
def test_plain_arrays_are_a_network(xp, bias):
    net = network(phis=[activations.tanh], bias=bias)
    layers = [layer for layer in net.layers if layer.params]
    plain = [
        (
            from_host(xp, np.array(a.params["W"])),
            from_host(xp, np.array(a.params["b"])) if bias else None,
        )
        for a in layers
    ]
    one = sim.collect_states(net, samples())
    for activation in (activations.tanh, [activations.tanh] * 2):
        two = sim.collect_states(sim.Feedforward(plain, activation), from_host(xp, samples()))
        for name in ("U", "Z", "X", "Y"):
            assert_close(getattr(two, name), getattr(one, name), rtol=1e-13, atol=1e-13, xp=xp)


@pytest.mark.parametrize(
    ("layers", "activation", "words"),
    [
        ([(np.ones((2, 2)), None)], activations.relu, "at least two"),
        ([np.ones((2, 2)), np.ones((1, 2))], activations.relu, "pairs"),
        ([(np.ones((2, 2)), None), (np.ones((1, 3)), None)], activations.relu, "layer 1"),
        ([(np.ones((2, 2)), np.ones(3)), (np.ones((1, 2)), None)], activations.relu, "layer 0"),
        (
            [(np.ones((2, 2)), None), (np.full((1, 2), np.nan), None)],
            activations.relu,
            "W of layer 1 has 2",
        ),
        (
            [(np.ones((2, 2)), None), (np.ones((1, 2)), None)],
            [activations.relu] * 2,
            "1 activations between",
        ),
    ],
)
def test_plain_arrays_must_fit(layers, activation, words):
    with pytest.raises(InputError, match=words):
        sim.Feedforward(layers, activation)


# ---------------------------------------------------------------------- the exact model


@given(
    st.lists(
        st.sampled_from(["linear", "wide", "relu", "tanh", "leaky", "branch"]),
        min_size=1,
        max_size=7,
    ),
    st.booleans(),
    st.integers(0, 5),
)
def test_a_network_is_an_implicit_model(names, bias, seed):
    """Whatever the order of its layers: activations first, two in a row, linear layers in a row."""
    steps, width = [], 3
    for i, name in enumerate(names):
        if name in ("linear", "wide"):
            steps.append(
                random_model(
                    Linear,
                    width,
                    2 if name == "linear" else 5,
                    seed=seed + i,
                    dtype="float64",
                    bias=bias,
                )
            )
            width = steps[-1].output_dim
        elif name == "branch":
            inside = random_model(Linear, width, width, seed=seed + i, dtype="float64", bias=bias)
            steps.append(
                Residual(
                    activations.tanh,
                    inside,
                    Dropout(0.5),
                    Residual(inside.replace(), activations.relu),
                )
            )
        else:
            steps.append(
                {
                    "relu": activations.relu,
                    "tanh": activations.tanh,
                    "leaky": activations.leaky_relu(0.3),
                }[name]
            )
    steps = [
        *steps,
        activations.tanh,
        random_model(Linear, width, 2, seed=9, dtype="float64", bias=bias),
    ]
    net, U = Sequential(*steps), samples(p=3)
    model, states = sim.exact_model(net), sim.collect_states(net, U)
    # within the tolerance of an iteration
    assert relative(model.predict(U), net.predict(U)) < 1e-11
    exact = (
        model.replace(forward=solvers.Substitution())
        if isinstance(model.maps["A"], Tiled)
        else model
    )
    assert relative(exact.predict(U), net.predict(U)) < 1e-13
    solution = exact.equilibrium(U)
    assert relative(solution.value, states.X) < 1e-13
    assert relative(solution.pre, states.Z) < 1e-13
    assert model.activation.name == states.activation.name
    assert not np.tril(to_numpy(model.params["A"])).any()
    assert model.certificate().proven
    assert model.bias == bias


def test_the_pattern_is_that_of_the_layers(xp):
    net = network((4, 6, 5, 2, 3), phis=[activations.relu], dtype="float32")
    model = sim.exact_model(moved_sequential(net, xp))
    assert model.pattern == Pattern.feed_forward(4, 6, 5, 2, 3)
    assert (model.xp, model.dtype, model.feedthrough) == (xp, "float32", False)
    assert_close(model.params["A"][2:7, 7:], net.params["2.W"], rtol=0, xp=xp)


def test_blocks_on_which_phi_acts_as_a_whole():
    net = network(phis=[activations.softmax, activations.layer_norm()])
    model, states = sim.exact_model(net), sim.collect_states(net, samples())
    assert isinstance(states.activation, Blocks)
    assert relative(model.predict(samples()), net.predict(samples())) < 1e-12
    assert relative(model.equilibrium(samples()).value, states.X) < 1e-12
    twice = network(phis=[activations.softmax], widths=(4, 3, 3, 2))  # one name, and yet two blocks
    assert sim.collect_states(twice, samples()).activation.vector_blocks(6) == ((0, 3), (3, 6))


def test_an_activation_of_the_output_is_no_state():
    net = network()
    ended = Sequential(*(layer.replace() for layer in net.layers), activations.softmax)
    one, two = (sim.collect_states(n, samples()) for n in (net, ended))
    assert two.widths == one.widths
    np.testing.assert_array_equal(two.Y, one.Y)
    np.testing.assert_array_equal(
        sim.exact_model(ended).predict(samples()), sim.exact_model(net).predict(samples())
    )


def test_implicit_models_have_states_of_their_own():
    inner = random_model(
        ImplicitModel,
        6,
        5,
        8,
        dtype="float64",
        constraint=InfNorm(0.5),
        activation=activations.tanh,
    )
    net = Sequential(
        Linear(4, 6, rng=0, dtype="float64"),
        activations.relu,
        inner,
        activations.relu,
        Linear(5, 3, rng=1, dtype="float64"),
    )
    states = sim.collect_states(net, samples())
    assert states.widths == (5, 8, 6)
    np.testing.assert_array_equal(states.Y, net.predict(samples()))
    np.testing.assert_allclose(states.X[:, 5:13], inner.equilibrium(states.X[:, 13:]).value)
    exact = sim.exact_model(net)
    assert relative(exact.predict(samples()), states.Y) < 1e-11
    assert relative(exact.equilibrium(samples()).value, states.X) < 1e-11
    alone = sim.collect_states(inner, samples(p=6))
    np.testing.assert_array_equal(alone.Y, inner.predict(samples(p=6)))


# ------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_chunked_equals_whole(batch_size):
    net, U = network(), samples()
    whole, parts = sim.collect_states(net, U), sim.collect_states(net, U, batch_size=batch_size)
    for name in ("U", "Z", "X", "Y"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=1e-14
        )
    sizes = [chunk.Z.shape[0] for chunk in sim.iter_states(net, U, batch_size)]
    assert sum(sizes) == 7
    assert max(sizes) == min(batch_size, 7)


def test_chunks_are_asked_for_one_at_a_time():
    net, asked = network(), []

    def chunks():
        for i in range(3):
            asked.append(i)
            yield samples(4, seed=i)

    states = sim.iter_states(net, chunks(), 3)
    assert asked == []
    assert [next(states).Z.shape[0] for _ in range(2)] == [3, 1]
    assert asked == [0]
    assert sim.collect_states(net, chunks()).Z.shape[0] == 12


def test_memory_maps_and_lists(tmp_path):
    np.save(tmp_path / "U.npy", samples())
    mapped = np.load(tmp_path / "U.npy", mmap_mode="r")
    whole = sim.collect_states(network(), samples())
    for U in (mapped, samples().tolist()):
        np.testing.assert_allclose(
            sim.collect_states(network(), U, batch_size=3).Z, whole.Z, rtol=1e-13, atol=1e-14
        )


def test_some_of_the_activations():
    net = network((4, 6, 5, 2, 3))
    whole = sim.collect_states(net, samples())
    for at, columns in (((0, 2), [0, 1, *range(7, 13)]), ((-1,), [0, 1]), ((2, 1, 0), range(13))):
        some = sim.collect_states(net, samples(), at=at)
        np.testing.assert_array_equal(some.X, whole.X[:, list(columns)])
        np.testing.assert_array_equal(some.Y, whole.Y)
    for at in ((), (3,), (0, -3), ("last",)):
        with pytest.raises(InputError, match="3 hidden activations"):
            sim.collect_states(net, samples(), at=at)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("net", "U", "words"),
    [
        (network(), np.ones((2, 5)), r"\(m, 4\)"),
        (network(), np.ones(4), r"\(m, 4\)"),
        (network(), np.ones((0, 4)), "m >= 1"),
        (network(), np.full((2, 4), np.nan), "U has 8 entries"),
        (Sequential(Linear(4, 3, rng=0)), np.ones((2, 4)), "no hidden activation"),
        (
            Sequential(Linear(4, 3, rng=0), activations.relu),
            np.ones((2, 4)),
            "no hidden activation",
        ),
        (ImplicitRNN(4, 3, 5, 6, rng=0), np.ones((2, 4)), "no states can be read from ImplicitRNN"),
        (
            Sequential(ImplicitRNN(4, 3, 5, 6, rng=0), activations.relu, Linear(3, 1, rng=0)),
            np.ones((2, 4)),
            "ImplicitRNN has no states",
        ),
        (object(), np.ones((2, 4)), "no states can be read from object"),
        (
            types.SimpleNamespace(hidden_layer_sizes=(3,), activation="relu"),
            np.ones((2, 4)),
            "not fitted",
        ),
        (
            types.SimpleNamespace(hidden_layer_sizes=(3,), activation="exp", coefs_=[]),
            np.ones((2, 4)),
            "'exp'",
        ),
    ],
)
def test_what_is_refused(net, U, words):
    with pytest.raises(InputError, match=words):
        sim.collect_states(net, U)


def test_refusals_come_before_the_work():
    with pytest.raises(InputError, match="batch_size is 0"):
        sim.iter_states(network(), samples(), 0)
    with pytest.raises(InputError, match="no states can be read"):
        sim.iter_states(None, samples())
    with pytest.raises(InputError, match="not known one by one"):
        sim.exact_model(None)
    with pytest.raises(InputError, match="activations alone"):
        sim.exact_model(Sequential(activations.relu, activations.tanh))
    with pytest.raises(InputError, match="no chunks"):
        sim.collect_states(network(), iter(()))


def test_states_are_checked():
    whole = sim.collect_states(network(), samples())
    arrays = {name: getattr(whole, name) for name in ("U", "Z", "X", "Y")}
    given = {**arrays, "activation": whole.activation, "widths": whole.widths}
    assert (
        repr(sim.States(**given))
        == "States(7 samples, 4 inputs, 11 states in blocks of (5, 6), 3 outputs)"
    )
    swapped = Blocks((activations.relu, 6), (activations.tanh, 5))
    for change, words in (
        ({"activation": swapped}, "X is not"),
        ({"activation": activations.relu}, "X is not relu"),
        ({"activation": Blocks((activations.relu, 3))}, "have 11 components"),
        ({"activation": "relu"}, "use one of pyidl.activations"),
        ({"widths": (5, 5)}, "10 in all"),
        ({"U": np.ones((6, 4))}, r"shapes U \(6, 4\)"),
        ({"X": whole.X[:, :5]}, "shapes"),
        ({"Y": np.full((7, 3), np.inf)}, "Y has 21 entries"),
    ):
        with pytest.raises(InputError, match=words):
            sim.States(**{**given, **change})


# ------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_perceptrons_of_scikit_learn(activation, classes):
    networks = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    U, target = (
        rng.normal(size=(30, 4)),
        rng.integers(0, classes, 30) if classes else rng.normal(size=30),
    )
    kind = networks.MLPClassifier if classes else networks.MLPRegressor
    options = {"solver": "lbfgs", "max_iter": 2000, "alpha": 1.0, "tol": 1e-2, "random_state": 0}
    net = kind(hidden_layer_sizes=(6, 5), activation=activation, **options).fit(U, target)
    states, model = sim.collect_states(net, U), sim.exact_model(net)
    assert states.widths == (5, 6)
    assert relative(model.predict(U), states.Y) < 1e-12
    Y = states.Y
    if classes == 0:
        np.testing.assert_allclose(Y[:, 0], net.predict(U), rtol=1e-10)
    elif classes == 2:
        np.testing.assert_allclose(
            1 / (1 + np.exp(-Y[:, 0])), net.predict_proba(U)[:, 1], rtol=1e-10
        )
    else:
        np.testing.assert_allclose(activations.softmax(Y), net.predict_proba(U), rtol=1e-10)
