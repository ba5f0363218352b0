"""Networks as models: values, gradients, what is kept, certificates, refusals."""

import numpy as np
import pytest
from helpers import host, moved, random_model, relative
from wirings import exact

from pyidl import (
    Bidirectional,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    LayerNorm,
    Linear,
    Residual,
    Sequential,
    activations,
)
from pyidl.activations import Blocks
from pyidl.compose import to_implicit
from pyidl.compose.assembly import Assembly
from pyidl.compose.forms import Entries
from pyidl.errors import InputError
from pyidl.matrices.pattern import Pattern
from pyidl.wellposed import InfNorm, LipschitzBound, PerronFrobenius, SpectralNorm, Unconstrained

PHIS = (activations.relu, activations.tanh, activations.leaky_relu(0.2), activations.softmax)
SETS = (InfNorm(0.7), PerronFrobenius(0.7), SpectralNorm(0.7))


def seeds(count, more=200):
    """So many by default, all of them where time does not matter."""
    return [*range(count), *(pytest.param(s, marks=pytest.mark.slow) for s in range(count, more))]


def some(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def linear(rng, p, q, bias=None):
    bias = bool(rng.random() < 0.8) if bias is None else bias
    return random_model(Linear, p, q, seed=int(rng.integers(1e6)), dtype="float64", bias=bias)


def normed(rng, p):
    layer = LayerNorm(p, 0.1, dtype="float64")
    layer.params = {key: a + 0.5 * rng.normal(size=p) for key, a in layer.params.items()}
    return layer


def implicit(rng, p, q, **options):
    n = int(rng.integers(2, 6))
    options = {
        "activation": some(
            rng, [activations.tanh, Blocks((activations.relu, 1), (PHIS[1], n - 1))]
        ),
        "constraint": some(rng, SETS),
        "rank": 2 if rng.random() < 0.3 else None,
        "bias": bool(rng.random() < 0.8),
        "feedthrough": bool(rng.random() < 0.8),
    } | options
    seed = int(rng.integers(1e6))
    return random_model(ImplicitModel, p, q, n, seed=seed, dtype="float64", **options)


def recurrent(rng, p, q, **options):
    options = {
        "constraint": some(rng, SETS),
        "rank": 2 if rng.random() < 0.2 else None,
        "bias": bool(rng.random() < 0.8),
        "feedthrough": some(rng, [True, False, "input"]),
    } | options
    r, n, seed = (int(i) for i in (rng.integers(1, 4), rng.integers(2, 5), rng.integers(1e6)))
    return random_model(ImplicitRNN, p, q, r, n, seed=seed, dtype="float64", spread=0.3, **options)


def of_layers(rng, implicit_too=False):
    """A chain of three to six blocks, with branches and without."""
    width = int(rng.integers(2, 6))
    layers, p = [], width
    for _ in range(int(rng.integers(3, 7))):
        wide = int(rng.integers(2, 7))
        kinds = [
            lambda w=wide: ([linear(rng, width, w), some(rng, PHIS)], w),
            lambda w=wide: ([linear(rng, width, w), Dropout(0.5), linear(rng, w, width)], width),
            lambda w=wide: (
                [Residual(linear(rng, width, w), some(rng, PHIS), linear(rng, w, width))],
                width,
            ),
            lambda: ([Residual(some(rng, PHIS), linear(rng, width, width))], width),
            lambda: ([normed(rng, width)], width),
        ]
        if implicit_too:
            kinds += [lambda w=wide: ([implicit(rng, width, w)], w)] * 3
        new, width = some(rng, kinds)()
        layers += new
    ends = (implicit if implicit_too else linear)(rng, width, 2, bias=True)
    return Sequential(*layers, some(rng, PHIS[:3]), ends), p, None


def of_sequences(rng):
    T, p = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    pool = some(rng, ["last", "mean", "max"])
    layers = [
        [recurrent(rng, p, 2, pool=pool)],
        [recurrent(rng, p, 2, return_sequences=True), "tanh", linear(rng, 2, 3)],
        [
            linear(rng, p, 2),
            recurrent(rng, 2, 3, return_sequences=True),
            recurrent(rng, 3, 2, pool=pool),
        ],
        [Residual(linear(rng, p, p), recurrent(rng, p, p, return_sequences=True))],
    ]
    return Sequential(*some(rng, layers)), p, T


KINDS = {
    "feed-forward": of_layers,
    "with implicit models": lambda rng: of_layers(rng, implicit_too=True),
    "sequences": of_sequences,
}


def inputs(rng, p, T, m=6):
    return rng.normal(size=(m, p) if T is None else (m, T, p))


def rows(a):
    return host(a).reshape(len(a), -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", seeds(12))
def test_a_network_is_a_model(kind, seed):
    """Values in both dtypes, and the gradient of the inputs, kept and multiplied out."""
    rng = np.random.default_rng(seed)
    net, p, T = KINDS[kind](rng)
    U = inputs(rng, p, T)
    fine = net.with_tol(1e-14)
    Y, pull = fine(U)
    dY = rng.normal(size=Y.shape)
    dU = pull(dY)[0]
    for keep in (None, True, False):
        model = to_implicit(net, steps=T, keep=keep)
        Z, back = exact(model)(rows(U))
        assert relative(Z, rows(Y)) < 1e-12
        # to which the tolerance of an adjoint solve is relative, and dU may have decayed
        size = max(np.abs(dY).max(), np.abs(dU).max())
        assert np.abs(back(rows(dY))[0] - rows(dU)).max() < 1e-12 * size
    assert model.certificate().proven
    single = net.astype("float32")
    model = to_implicit(single, steps=T)
    assert model.dtype == "float32"
    wanted = rows(single.astype("float64").with_tol(1e-14).predict(U))
    # Of the 200 networks of each kind, 1, 0 and 0 pass 1e-6 by the rounding of A, B, C, D.
    # In float32 the networks do so themselves (3, 47, 6), as do the models (2, 63, 47).
    assert relative(exact(model).predict(rows(U)), wanted) < 5e-6
    if kind == "feed-forward":  # elsewhere, a solve is as near as its tolerance asks
        assert relative(model.predict(rows(U)), wanted) < 5e-6


def stream(blocks, width=16):
    """``h + W2 relu(W1 h)``, over and over."""
    return Sequential(
        *(
            Residual(
                Linear(width, width, bias=False, dtype="float64", rng=2 * i),
                "relu",
                Linear(width, width, bias=False, dtype="float64", rng=2 * i + 1),
            )
            for i in range(blocks)
        )
    )


def test_what_is_kept_is_what_costs_less():
    L, w = 8, 16
    out, kept, chosen = (to_implicit(stream(L), keep=keep) for keep in (False, True, None))
    products, both = L * (L - 1) // 2 * w * w, L * w * w  # W1 W2, and what reads u
    assert np.count_nonzero(out.params["A"]) == products
    assert out.hidden_dim == L * w
    assert chosen.hidden_dim == (2 * L - 1) * w
    # each block has W1 of the stream, and the stream W2 of the block and what it was
    assert np.count_nonzero(chosen.params["A"]) == 2 * both - 2 * w * w + (L - 2) * w
    assert chosen.pattern.A.sum() <= kept.pattern.A.sum()
    narrow = Sequential(
        *(Linear(a, b, dtype="float64", rng=0) for a, b in ((30, 2), (2, 30))), "relu"
    )
    assert to_implicit(narrow).hidden_dim == 32
    wide = Sequential(
        *(Linear(a, b, dtype="float64", rng=0) for a, b in ((3, 30), (30, 3))), "relu"
    )
    assert to_implicit(wide).hidden_dim == 3


@pytest.mark.parametrize("seed", range(20))
def test_counting_is_no_worse_than_either_way(seed):
    """Of entries and states, on random chains."""
    net, _, _ = of_layers(np.random.default_rng(seed))

    def cost(keep):
        model = to_implicit(net, keep=keep)
        return model.hidden_dim + sum(int(getattr(model.pattern, key).sum()) for key in "ABCD")

    assert cost(None) <= min(cost(True), cost(False))


def test_large_weights_need_no_set():
    """Without feedback everything is certified, and solved in one pass."""
    rng = np.random.default_rng(0)
    net = Sequential(*(part for _ in range(4) for part in (linear(rng, 40, 40), activations.tanh)))
    for layer in net.layers[::2]:
        layer.params = {key: 1e3 * a for key, a in layer.params.items()}
    model, U = to_implicit(net), rng.normal(size=(50, 40))
    assert model.certificate().applies_to == "Substitution"
    solution = model.equilibrium(U)
    assert "Substitution(4 groups, 0 with cycles)" in solution.method
    np.testing.assert_array_equal(solution.n_iter, 1)
    assert relative(model.predict(U), net.predict(U)) < 1e-12


def test_what_is_not_certified_is_not_called_so():
    rng = np.random.default_rng(0)
    inner = random_model(
        ImplicitModel, 3, 3, 5, dtype="float64", constraint=Unconstrained(), spread=2
    )
    model = to_implicit(Sequential(linear(rng, 2, 3), "relu", inner))
    assert not inner.certificate().proven
    assert not model.certificate().proven
    assert model.constraint.inner[0] == Unconstrained()
    # nor where B and C had a say, which are others now
    bounded = random_model(ImplicitModel, 3, 3, 5, dtype="float64", constraint=LipschitzBound(2.0))
    assert bounded.certificate().proven
    model = to_implicit(Sequential(linear(rng, 2, 3), "relu", bounded))
    assert isinstance(model.constraint.inner[0], (PerronFrobenius, Unconstrained))


def test_gradients_of_the_layers_stand_in_their_places():
    """Of a perceptron: dW1 in dB, dW2 in dA, dW3 in dC; nothing outside the pattern."""
    rng = np.random.default_rng(0)
    layers = [linear(rng, 3, 4), linear(rng, 4, 5), linear(rng, 5, 2)]
    layers[1].params = {**layers[1].params, "W": np.zeros((5, 4))}  # zero, and yet trained
    net = Sequential(layers[0], "tanh", layers[1], "tanh", layers[2])
    model, U, dY = to_implicit(net), rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    of_net, of_model = net(U)[1](dY)[1], model(U)[1](dY)[1]
    np.testing.assert_allclose(of_model["B"][5:], of_net["0.W"], rtol=1e-12)
    np.testing.assert_allclose(of_model["A"][:5, 5:], of_net["2.W"], rtol=1e-12)
    np.testing.assert_allclose(of_model["C"][:, :5], of_net["4.W"], rtol=1e-12)
    for key in "ABC":
        assert not host(of_model[key])[~getattr(model.pattern, key)].any()


def test_a_pattern_goes_along():
    mask = np.triu(np.ones((5, 5), bool), 1)
    inner = random_model(ImplicitModel, 2, 2, 5, dtype="float64", pattern=Pattern(A=mask))
    model = to_implicit(Sequential(Linear(3, 2, dtype="float64", rng=0), inner))
    np.testing.assert_array_equal(model.pattern.A[:5, :5], mask)
    # a projection that moves zeros leaves A its freedom
    free = random_model(ImplicitModel, 2, 2, 5, dtype="float64", constraint=SpectralNorm(0.5))
    assert (
        to_implicit(Sequential(Linear(3, 2, dtype="float64", rng=0), free, "relu")).pattern.A
        is None
    )


def test_maxima_are_exact_up_to_the_larger_of_the_two():
    rng = np.random.default_rng(0)
    windows = np.array([[0, 2, 4], [1, 3, 5], [1, 3, 0]])
    for dtype, eps in (("float64", 2e-16), ("float32", 1.2e-7)):
        assembly = Assembly(6)
        model = assembly.model(assembly.maximum(assembly.input, windows), np, dtype)
        U = rng.normal(size=(50, 6)).astype(dtype)
        error = np.abs(model.predict(U) - U[:, windows].max(axis=1))
        assert np.all(error <= 2 * eps * np.abs(U).max(axis=1, keepdims=True))
    # max(a, b) = b + relu(a - b) loses a beside a b that is a million times as large
    far = np.array([[0.1, -1e6, 0, 0, 0, 0]], np.float32)
    assert float(model.predict(far)[0, 0]) == 0.125


def test_where_it_is(xp):
    net = Sequential(Linear(3, 4, rng=0), "relu", Linear(4, 2, rng=1))
    twin = Sequential(*(moved(layer, xp) if layer.params else layer for layer in net.layers))
    model = to_implicit(twin)
    assert (model.xp, model.dtype) == (xp, "float32")
    np.testing.assert_array_equal(host(model.params["C"]), host(to_implicit(net).params["C"]))


def test_a_zero_has_its_place():
    one = Entries.of(np.array([[0.0, 1.0]]))
    other = Entries.of(np.array([[1.0], [0.0]]))
    assert (one.nnz, (one @ other).nnz, one.plus(one).nnz) == (2, 1, 2)
    masked = Entries.of(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    assert (masked.nnz, (masked @ other).nnz) == (1, 1)


L3 = Linear(3, 3, rng=0)
HEAD = ImplicitAttentionHead(3, 4, block_size=5, rng=0)


@pytest.mark.parametrize(
    ("network", "options", "match"),
    [
        (None, {}, "network is None"),
        ([L3], {}, "network"),
        (Sequential("relu"), {}, "activations alone"),
        (Sequential(L3, Dropout(0.5)), {}, "no activation"),
        (Sequential(Embedding(5, 3, rng=0), "relu"), {}, "reads tokens"),
        (HEAD, {}, "ImplicitAttentionHead is not written"),
        (Sequential(L3, ImplicitRNN(3, 2, 2, 2, rng=0)), {}, "give steps=T"),
        (
            Bidirectional(ImplicitRNN(3, 2, 2, 2, rng=0), ImplicitRNN(3, 2, 2, 2, rng=1)),
            {"steps": 3},
            "Bidirectional is not unrolled",
        ),
        (Sequential(L3, "relu"), {"steps": 0}, "steps"),
        (Sequential(L3, "relu"), {"steps": 1.5}, "steps"),
        (Sequential(L3, "relu"), {"keep": 1}, "keep"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(network, options, match):
    with pytest.raises(InputError, match=match):
        to_implicit(network, **options)


def test_overflow_is_refused():
    big = Linear(1, 1, rng=0)
    big.params = {"W": np.full((1, 1), 1e30, np.float32), "b": np.zeros(1, np.float32)}
    with pytest.raises(InputError, match="finite"):
        to_implicit(Sequential(big, big.replace(), "relu"))
