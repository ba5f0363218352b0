"""What a transformer is made of.

Embeddings, layer norm, dropout, residual branches, and the block composed of them.
"""

import copy
import pickle

import numpy as np
import pytest
from helpers import ONE_LIBRARY, assert_close, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import (
    Checkpoint,
    Dropout,
    Embedding,
    ImplicitModel,
    ImplicitRNN,
    InfNorm,
    LayerNorm,
    Linear,
    Pattern,
    PositionEmbedding,
    Residual,
    Sequential,
    activations,
    fit,
    losses,
    metrics,
    optim,
)
from pyidl.arrays.backend import from_host
from pyidl.errors import DeviceMismatchError, GradientMismatchError, InputError
from pyidl.layers.base import Explicit
from pyidl.layers.sequential import SequentialPullback
from pyidl.testing import check_pullback

V, E, T, M = 7, 4, 5, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (M, T))
U2, U3 = RNG.normal(size=(M, E)), RNG.normal(size=(M, T, E))


def norm(seed=0, dim=E):
    return random_model_like(LayerNorm(dim, 0.1, dtype="float64"), seed)


def random_model_like(layer, seed=0):
    """The same layer, and no parameter is zero or one."""
    rng = np.random.default_rng(seed)
    layer.params = {
        key: host(a) + 0.5 * rng.normal(size=a.shape) for key, a in layer.params.items()
    }
    return layer


def linear(p, q, seed=0):
    return random_model(Linear, p, q, seed=seed, dtype="float64")


def implicit(p, q, seed=0):
    return random_model(ImplicitModel, p, q, 6, seed=seed, dtype="float64")


CASES = {
    "embedding": (lambda: Embedding(V, E, dtype="float64", rng=0), TOKENS),
    "embedding of one token": (lambda: Embedding(V, E, dtype="float64", rng=0), TOKENS[:, 0]),
    "position": (lambda: PositionEmbedding(T + 2, E, dtype="float64", rng=0), U3),
    "position, full": (lambda: PositionEmbedding(T, E, dtype="float64", rng=0), U3),
    "norm": (norm, U2),
    "norm of sequences": (norm, U3),
    "dropout": (lambda: Dropout(0.4), U3),
    "no dropout": (lambda: Dropout(0.0), U2),
    "residual": (lambda: Residual(norm(), linear(E, E), Dropout(0.4)), U3),
    "residual of an activation": (lambda: Residual(activations.tanh), U2),
    "residual of residuals": (
        lambda: Residual(Residual(linear(E, E)), Residual(linear(E, E, 1), activations.gelu)),
        U2,
    ),
    "all": (
        lambda: Sequential(
            Embedding(V, E, dtype="float64", rng=0),
            PositionEmbedding(T, E, dtype="float64", rng=1),
            Residual(norm(), linear(E, 6), activations.silu, linear(6, E, 1), Dropout(0.2)),
            norm(1),
            linear(E, V),
        ),
        TOKENS,
    ),
}

UNDER = {
    "tokens into a model": (
        lambda: Sequential(Embedding(V, E, dtype="float64", rng=0), implicit(E, 3)),
        TOKENS[:, 0],
    ),
    "norm before and after": (lambda: Sequential(norm(), implicit(E, 3), norm(1, 3)), U2),
    "a branch around a model": (lambda: Residual(norm(), implicit(E, E), Dropout(0.4)), U2),
    "tokens into a recurrent network": (
        lambda: Sequential(
            Embedding(V, E, dtype="float64", rng=0),
            PositionEmbedding(T, E, dtype="float64", rng=1),
            ImplicitRNN(E, 3, 4, 5, return_sequences=True, dtype="float64", rng=0),
            Residual(norm(1, 3), linear(3, 3)),
        ),
        TOKENS,
    ),
}


# ---------------------------------------------------------- the same maps, written anew


def written_anew(layer, p, U, rng):
    """The map as its docstring says it, in complex arithmetic if need be.

    An oracle for values and for J d.
    """
    match layer:
        case Embedding():
            return (U[..., None] == np.arange(V)) @ p["W"]
        case PositionEmbedding():
            return U + p["P"][: U.shape[1]]
        case LayerNorm():
            c = U - U.mean(axis=-1, keepdims=True)
            return c / np.sqrt(layer.eps + (c**2).mean(axis=-1, keepdims=True)) * p["g"] + p["b"]
        case Dropout():
            return (
                U * (rng.random(U.shape, dtype=np.float32) >= layer.rate) / (1 - layer.rate)
                if layer.rate
                else U
            )
        case Linear():
            return U @ p["W"].T + p["b"]
        case Sequential():
            Y = U
            for i, inner in enumerate(layer.layers):
                own = {key.partition(".")[2]: a for key, a in p.items() if key.startswith(f"{i}.")}
                Y = written_anew(inner, own, Y, rng)
            return U + Y if isinstance(layer, Residual) else Y
        case _:
            return SMOOTH[layer.activation.name](U)


SMOOTH = {
    "tanh": np.tanh,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu": lambda z: z * phi(z),
}


def phi(z):
    """The normal distribution function for z with a small imaginary part."""
    from scipy.special import ndtr

    x = np.real(z)
    return (
        ndtr(x) + 1j * np.imag(z) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        if np.iscomplexobj(z)
        else ndtr(z)
    )


@pytest.mark.parametrize("name", CASES)
def test_values_and_the_dot_test(name, xp):
    """Y is the map of the docstring, and ``<G, J d> = <J^T G, d>``.

    J d comes from a complex step of that map, in all directions at once.
    """
    build, U = CASES[name]
    layer = build()
    twin = moved(layer, xp) if layer.params else layer
    Y, pull = twin(from_host(xp, U), rng=3)
    p = {key: host(a) for key, a in layer.params.items()}
    assert_close(
        Y, written_anew(layer, p, U, np.random.default_rng(3)), rtol=1e-13, atol=1e-13, xp=xp
    )
    rng = np.random.default_rng(1)
    G, d = rng.normal(size=Y.shape), {key: rng.normal(size=a.shape) for key, a in p.items()}
    dU, grads = pull(from_host(xp, G))
    right = sum(np.sum(host(grads[key]) * d[key]) for key in p)
    z = U
    if U.dtype == np.float64:
        e = rng.normal(size=U.shape)
        z = U + 1e-30j * e
        right += np.sum(host(dU) * e)
    else:
        assert dU is None
    Jd = (
        written_anew(
            layer, {key: a + 1e-30j * d[key] for key, a in p.items()}, z, np.random.default_rng(3)
        ).imag
        / 1e-30
    )
    assert np.sum(G * Jd) == pytest.approx(right, rel=1e-11)


@ONE_LIBRARY
@pytest.mark.parametrize("name", [*CASES, *UNDER])
def test_against_central_differences(name, xp):
    build, U = (CASES | UNDER)[name]
    layer = build()
    report = check_pullback(moved(layer, xp) if layer.params else layer, from_host(xp, U), rng=3)
    assert set(report.errors) == {*layer.params, *(["U"] if U.dtype == np.float64 else [])}
    assert report.max_error < 1e-6


def test_wrong_derivatives_are_found():
    """Twins that are broken on purpose: each forgets one term."""

    class NoMean(LayerNorm):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            _, r = pyidl.activations.blocks.normed(U, self.eps)
            return Y, Explicit(
                Y,
                lambda dY, inputs: (
                    dY * self.params["g"] / r if inputs else None,
                    pull.rule(dY, False)[1],
                ),
            )

    class LastPlace(Embedding):
        def _forward(self, U, call):
            Y, _ = super()._forward(U, call)

            def backward(dY, inputs):
                G = np.zeros((V, E))
                G[U.reshape(-1)] = dY.reshape(-1, E)  # a token that is there twice counts once
                return None, {"W": G}

            return Y, Explicit(Y, backward)

    class NoBranch(Residual):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            return Y, SequentialPullback(Y, pull.pulls)

    broken = [
        (NoMean(E, 0.1), U3, "U"),
        (LastPlace(V, E, rng=0), TOKENS, "W"),
        (NoBranch(linear(E, E)), U2, "U"),
    ]
    for layer, U, key in broken:
        with pytest.raises(GradientMismatchError, match=f"respect to {key} is wrong"):
            check_pullback(layer, U)


# ------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "uint64"])
def test_tokens_are_integers_of_any_width(dtype, xp):
    layer = moved(Embedding(V, E, rng=0), xp)
    Y, _ = layer(from_host(xp, TOKENS.astype(dtype)))
    assert_close(Y, host(layer.params["W"])[TOKENS], rtol=0, xp=xp)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (TOKENS + 2.0, "dtype float64"),
        (TOKENS > 2, "dtype bool"),
        (TOKENS - 3, r"tokens lie between -3 and \d; there are 7 tokens, 0, ..., 6"),
        ([[0, 7]], "tokens lie between 0 and 7"),
        ([[2**24 + 1]], "tokens lie between 16777217 and 16777217"),
        (np.zeros((2, 0), int), "shape"),
        (np.zeros((2, 2, 2), int), r"shape \(2, 2, 2\)"),
        ([[1, 2], [3]], "cannot be read"),
        ([["a"]], "dtype"),
        (np.ma.masked_array([[1]]), "masked"),
    ],
)
def test_what_is_no_token_is_refused(bad, words):
    alone = Embedding(V, E, rng=0)
    within = Sequential(Sequential(alone.replace(), Linear(E, E, rng=0)), PositionEmbedding(T, E))
    for model in (alone, within):
        for call in (model, model.predict):
            with pytest.raises(InputError, match=words):
                call(bad)
    if isinstance(bad, np.ndarray) and bad.size:
        with pytest.raises(InputError, match=words):
            fit(alone, (bad, bad), loss=losses.mse, optimizer=optim.SGD(0.1), epochs=1, verbose=0)


def test_tokens_elsewhere_and_tokens_in_second_place():
    import array_api_strict

    with pytest.raises(DeviceMismatchError):
        Embedding(V, E, rng=0)(array_api_strict.asarray(TOKENS))
    with pytest.raises(InputError, match="no layer stand before it"):
        Sequential(Dropout(0.1), Embedding(V, E, rng=0))(TOKENS)
    with pytest.raises(InputError, match="shapes must be equal"):
        Residual(Embedding(V, E, rng=0))(TOKENS)


def test_a_context_longer_than_the_table_is_refused():
    layer = PositionEmbedding(4, E, rng=0)
    with pytest.raises(InputError, match="5 positions, the table 4"):
        layer(U3)
    _, grads = layer(U3[:, :2])[1](np.ones((M, 2, E)))
    assert not grads["P"][2:].any()
    for bad in (U2, U3[..., :2], np.zeros((0, 2, E))):
        with pytest.raises(InputError, match="PositionEmbedding takes"):
            layer(bad)


# --------------------------------------------------------------------------------- norm


@given(st.integers(0, 100), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([2, 3]))
def test_rows_have_mean_0_and_variance_1(seed, size, ndim):
    rng = np.random.default_rng(seed)
    U = size * (rng.normal(size=(3, 4, 16)[-ndim:]) + rng.normal())
    Y = LayerNorm(16, 1e-12, dtype="float64").predict(U)
    np.testing.assert_allclose(Y.mean(axis=-1), 0, atol=1e-10)
    np.testing.assert_allclose((Y**2).mean(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        LayerNorm(16, 1e-12, dtype="float64").predict(8 * U + 3 * size), Y, atol=1e-5
    )


def test_a_constant_row_and_a_huge_one():
    layer = LayerNorm(E)
    Y, pull = layer(np.array([[5.0] * E, [3e38, -3e38, 1e38, 0]]))
    assert not Y[0].any()
    assert np.isfinite(Y).all()
    assert np.isfinite(pull(np.ones((2, E)))[0]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerNorm(0),
        lambda: LayerNorm(3, 0.0),
        lambda: LayerNorm(3, np.inf),
        lambda: LayerNorm(3)(U2),
    ],
)
def test_bad_norms_are_refused(make):
    with pytest.raises(InputError, match=r"LayerNorm|dim"):
        make()


# ------------------------------------------------------------------------------ dropout


def test_dropout_draws_only_with_a_generator(xp):
    layer, U = Dropout(0.3), from_host(xp, U3)
    Y, pull = layer(U)
    assert_close(Y, U3, rtol=0, xp=xp)
    assert_close(pull(U)[0], U3, rtol=0, xp=xp)
    assert_close(layer.predict(U), U3, rtol=0, xp=xp)
    one, two = (host(layer(U, rng=7)[0]) for _ in range(2))
    assert np.array_equal(one, two)
    generator = np.random.default_rng(7)
    first, second = (host(layer(U, rng=generator)[0]) for _ in range(2))
    assert np.array_equal(first, one)
    assert not np.array_equal(second, one)


def test_dropout_is_unbiased_and_its_pullback_uses_the_same_mask():
    U, rate, n = np.ones((100, 1000)), 0.25, 1e5
    Y, pull = Dropout(rate)(U, rng=0)
    assert abs(np.mean(Y == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(Y.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / n)
    assert np.array_equal(pull(U)[0], Y)
    single = Dropout(rate)(U.astype("float32"), rng=0)[0]
    assert single.dtype == np.float32
    assert np.array_equal(single == 0, Y == 0)


def test_two_dropouts_of_one_call_draw_differently():
    zeros = Sequential(Dropout(0.5), Dropout(0.5))(np.ones((100, 100)), rng=0)[0] == 0
    assert abs(zeros.mean() - 0.75) < 0.03  # equal masks would leave one half


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, np.nan, True, "0.1", None])
def test_bad_rates_are_refused(rate):
    with pytest.raises(InputError, match="rate of Dropout"):
        Dropout(rate)


# ----------------------------------------------------------------------------- residual


def branch():
    feed = random_model(
        ImplicitModel,
        E,
        E,
        6,
        pattern=Pattern(B=np.arange(24).reshape(6, E) % 3 > 0),
        constraint=InfNorm(0.7),
    )
    return Residual(LayerNorm(E), feed, Dropout(0.1))


def test_residual_hands_everything_through():
    layer, plain = branch(), Sequential(*branch().layers)
    assert set(layer.params) == set(plain.params)
    Y, pull = layer(U2)
    assert np.array_equal(Y, U2.astype("float32") + plain(U2)[0])
    assert len(pull.solutions) == 1
    assert layer.certificate().proven
    assert layer.certificate().contraction == plain.certificate().contraction < 0.71
    assert layer.support("1.B").sum() == 16
    big = {key: 100 * a for key, a in layer.params.items()}
    projected = layer.project(big)
    assert np.abs(projected["1.A"]).sum(axis=1).max() <= 0.7
    assert np.array_equal(projected["0.g"], big["0.g"])
    tight = layer.with_tol(1e-5).layers[1]
    assert (tight.forward.tol, tight.adjoint.tol) == (1e-5, 1e-5)
    wide = layer.astype("float64")
    assert type(wide) is type(layer.to("cpu")) is type(layer.replace()) is Residual
    assert wide(U2)[0].dtype == np.float64
    assert "Residual(\n  0: LayerNorm(dim=4)" in repr(layer)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: layer.replace()],
)
def test_copies_of_a_residual_are_residuals(copied):
    layer = branch()
    twin = copied(layer)
    assert type(twin) is Residual
    assert np.array_equal(twin.predict(U2), layer.predict(U2))
    twin.params = {key: 0 * a for key, a in twin.params.items()}
    assert layer.params["0.g"].all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Residual(Linear(3, 4)), "width 3 to an output of its layers of width 4"),
        (lambda: Residual(), "at least one layer"),
        (
            lambda: Residual(activations.relu, Linear(3, 2))(np.ones((2, 3))),
            r"\(2, 3\) to an output of its layers \(2, 2\)",
        ),
        (
            lambda: Residual(ImplicitRNN(E, E, 3, 3, rng=0))(U3),
            r"\(3, 5, 4\) to an output of its layers \(3, 4\)",
        ),
    ],
)
def test_what_does_not_keep_the_shape_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_lengths_reach_the_layer_that_takes_them():
    """A sequence of its own length has the outputs that it has alone."""
    model, lengths = (
        Residual(LayerNorm(E), ImplicitRNN(E, E, 3, 3, return_sequences=True, rng=0)),
        [2, 5, 3],
    )
    Y, pull = model(U3, lengths)
    dU, none = pull(np.ones(Y.shape))[0]
    assert none is None
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(
            Y[i, :n], model.predict(U3[i : i + 1, :n])[0], rtol=1e-4, atol=1e-5
        )
        assert np.all(dU[i, n:] == 1)  # nothing but the branch


# ------------------------------------------------------------------ one token at a time


def test_steps_are_the_rows_of_the_whole(xp):
    model = Sequential(
        Embedding(V, E, dtype="float64", rng=0),
        PositionEmbedding(T, E, dtype="float64", rng=1),
        Dropout(0.4),
        Residual(norm(), Residual(linear(E, E)), activations.silu),
        linear(E, V),
    )
    model = moved(model, xp)
    whole, cache, caches = host(model.predict(from_host(xp, TOKENS))), model.start(M), []
    for t in range(T):
        caches.append(cache)
        y, cache = model.step(from_host(xp, TOKENS[:, t].copy()), cache)
        assert_close(y, whole[:, t], rtol=1e-12, atol=1e-12, xp=xp)
    # the cache of two tokens is as it was
    again, _ = model.step(from_host(xp, TOKENS[:, 2].copy()), caches[2])
    assert_close(again, whole[:, 2], rtol=1e-12, atol=1e-12, xp=xp)
    with pytest.raises(InputError, match="holds 5 tokens, the table 5"):
        model.step(from_host(xp, TOKENS[:, 0].copy()), cache)
    with pytest.raises(InputError, match="tokens lie between"):
        model.step(from_host(xp, TOKENS[:, 0] + V), model.start(M))


def test_a_fixed_point_for_every_token_alone():
    model = Sequential(Embedding(V, E, dtype="float64", rng=0), implicit(E, 3))
    y, _ = model.step(TOKENS[:, 0], model.start(M))
    assert np.array_equal(y, model.predict(TOKENS[:, 0]))


def test_what_looks_ahead_has_no_steps():
    with pytest.raises(InputError, match="ImplicitRNN does not go on token by token"):
        Sequential(Linear(E, E), ImplicitRNN(E, E, 3, 3, rng=0)).start(1)


# ------------------------------------------------------------------- files and training


@pytest.mark.parametrize("name", [*CASES, *UNDER])
def test_saved_and_loaded(name, tmp_path):
    build, U = (CASES | UNDER)[name]
    layer = build()
    pyidl.save(tmp_path / "m", layer)
    back = pyidl.load(tmp_path / "m")
    assert repr(back) == repr(layer)
    assert np.array_equal(back(U, rng=0)[0], layer(U, rng=0)[0])


def language_model(rate=0.2):
    return Sequential(
        Embedding(V, 8, rng=0),
        PositionEmbedding(6, 8, rng=1),
        ImplicitRNN(8, 8, 8, 8, return_sequences=True, rng=2),
        Residual(
            LayerNorm(8),
            Linear(8, 16, rng=3),
            activations.relu,
            Linear(16, 8, rng=4),
            Dropout(rate),
        ),
        Linear(8, V, rng=5),
    )


def counting(m=40, seed=0):
    """Sequences that count modulo V: the next token is known."""
    start = np.random.default_rng(seed).integers(0, V, (m, 1))
    whole = (start + np.arange(7)) % V
    return whole[:, :-1], whole[:, 1:]


def test_fit_learns_to_count_and_validation_draws_nothing():
    model, (tokens, targets) = language_model(), counting()
    history = fit(
        model,
        (tokens, targets),
        loss=losses.cross_entropy,
        optimizer=optim.Adam(1e-2),
        epochs=16,
        batch_size=10,
        validation=(tokens, targets),
        metrics=[metrics.accuracy],
        rng=0,
        verbose=0,
    )
    assert history["val_accuracy"][-1] == 1.0
    assert history["val_loss"][-1] == pytest.approx(
        float(losses.cross_entropy(model.predict(tokens), targets)[0]), rel=1e-5
    )


def test_a_resumed_run_draws_as_if_it_had_not_stopped(tmp_path):
    def run(epochs, **options):
        model = language_model(0.5)
        settings = {
            "loss": losses.cross_entropy,
            "optimizer": optim.Adam(1e-2),
            "batch_size": 9,
            "rng": 0,
            "verbose": 0,
        }
        fit(
            model,
            counting(),
            epochs=epochs,
            callbacks=[Checkpoint(tmp_path / "c")],
            **settings,
            **options,
        )
        return model.params

    whole = run(4)
    run(2)
    resumed = run(4, resume=tmp_path / "c")
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    assert relative(run(2)["4.W"], whole["4.W"]) > 1e-3


def test_weights_of_positions_are_a_mask_in_fit():
    """What stands behind weights of zero does not matter.

    And a sequence without any weight takes no part.
    """
    tokens, targets = counting()
    mask = np.arange(6) < np.random.default_rng(1).integers(0, 7, (40, 1))
    other = np.where(mask, targets, 0)

    def run(target, chosen, weights):
        model = language_model(0.0)
        settings = {
            "loss": losses.cross_entropy,
            "optimizer": optim.SGD(0.1),
            "epochs": 2,
            "batch_size": None,
            "rng": 0,
            "verbose": 0,
        }
        history = fit(model, (tokens[chosen], target[chosen], weights[chosen]), **settings)
        return model.params, history["loss"]

    everyone, some = np.arange(40), np.flatnonzero(mask.any(axis=1))
    assert len(some) < 40
    reference, loss = run(targets, everyone, mask.astype(float))
    for target, chosen in ((other, everyone), (targets, some)):
        params, same = run(target, chosen, mask.astype(float))
        assert all(np.array_equal(params[key], reference[key]) for key in params)
        assert np.array_equal(same, loss)
    assert relative(run(targets, everyone, np.ones((40, 6)))[0]["4.W"], reference["4.W"]) > 1e-3
    with pytest.raises(InputError, match="for each sample or position"):
        run(targets, everyone, np.zeros((40, 6)))
