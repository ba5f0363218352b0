"""The transformer block.

Its equation, its gradients, its certificate, and a small language model of two of them.
"""

import numpy as np
import pytest
from helpers import assert_close, host, moved

import pyidl
from pyidl import (
    AttentionBall,
    BoundedSoftmax,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitTransformerBlock,
    LayerNorm,
    Linear,
    PositionEmbedding,
    Residual,
    Sequential,
    Softmax,
    fit,
    losses,
    metrics,
    optim,
)
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.testing import check_pullback
from pyidl.wellposed import Unconstrained

E, T, M, V = 4, 5, 3, 7
U = np.random.default_rng(0).normal(size=(M, T, E))

OPTIONS = {
    "default": {},
    "heads of their own width": {"head_dim": 3, "mlp_dim": 5},
    "dropout": {"dropout": 0.3},
    "bounded softmax": {"attention": BoundedSoftmax(), "block_size": None},
    "softmax": {"attention": Softmax(), "block_size": None, "constraint": Unconstrained()},
    "not causal": {"causal": False},
    "low rank": {"rank": 1},
}


def block(option="default", seed=0):
    options = {"block_size": T + 1, "dtype": "float64", "rng": seed} | OPTIONS[option]
    return spread(ImplicitTransformerBlock(E, 2, **options), seed)


def spread(model, seed=0):
    """The same model, and every parameter is random."""
    rng = np.random.default_rng(seed + 1)
    model.params = model.project(
        {
            key: (host(a) + 0.3 * rng.normal(size=a.shape)).astype(a.dtype)
            for key, a in model.params.items()
        }
    )
    return model


@pytest.mark.parametrize("option", OPTIONS)
def test_the_equation(option):
    """The block with n and the products written anew.

    ``z = x + W_o head(n(x)) + b_o``, ``y = z + W_2 relu(W_1 n(z) + b_1) + b_2``.
    """
    model = block(option)
    p = {key: host(a) for key, a in model.params.items()}
    (_, head, *_), (_, wide, _, narrow, *_) = (branch.layers for branch in model.layers)

    def n(x, g, b):
        c = x - x.mean(axis=-1, keepdims=True)
        return g * c / np.sqrt(1e-5 + (c * c).mean(axis=-1, keepdims=True)) + b

    z = U + head.predict(n(U, p["0.0.g"], p["0.0.b"])) @ p["0.2.W"].T + p["0.2.b"]
    y = (
        z
        + np.maximum(n(z, p["1.0.g"], p["1.0.b"]) @ p["1.1.W"].T + p["1.1.b"], 0) @ p["1.3.W"].T
        + p["1.3.b"]
    )
    assert isinstance(head, ImplicitAttentionHead)
    assert (wide.output_dim, narrow.input_dim) == ((5, 5) if "width" in option else (16, 16))
    np.testing.assert_allclose(model.predict(U), y, rtol=1e-11, atol=1e-11)
    assert (np.abs(model(U, rng=0)[0] - y).max() > 0.1) == (option == "dropout")


@pytest.mark.parametrize("option", OPTIONS)
def test_against_central_differences(option):
    assert check_pullback(block(option, 1), U[:2, :3]).max_error < 1e-6


def test_gradients_on_other_libraries(xp):
    model, G = block("dropout", 1), np.random.default_rng(2).normal(size=U.shape)
    dU, grads = model(U, rng=5)[1](G)
    Y, pull = moved(model, xp)(from_host(xp, U), rng=5)
    assert_close(Y, model(U, rng=5)[0], rtol=0, atol=1e-10, xp=xp)
    dU_there, there = pull(from_host(xp, G))
    assert_close(dU_there, dU, rtol=0, atol=1e-9, xp=xp)
    for key, g in grads.items():
        assert_close(there[key], g, rtol=0, atol=1e-9, xp=xp)


@pytest.mark.parametrize("option", OPTIONS)
def test_certified_projected_and_saved(option, tmp_path):
    model = block(option)
    assert model.certificate().proven == (option != "softmax")
    if option != "softmax":
        big = {key: 100 * a for key, a in model.params.items()}
        model.params = model.project(big)
        assert model.certificate().proven
        assert np.array_equal(model.params["1.1.W"], big["1.1.W"])
    pyidl.save(tmp_path / "m", model)
    back = pyidl.load(tmp_path / "m")
    assert repr(back) == repr(model)
    assert np.array_equal(back.predict(U), model.predict(U))


@pytest.mark.parametrize("t", range(T))
def test_a_causal_block_does_not_look_ahead(t):
    other = U.copy()
    other[:, t, 0] += 1.0
    model = block()
    change = np.abs(model.predict(other) - model.predict(U)).max(axis=(0, 2))
    assert np.all(change[:t] < 1e-9)
    assert np.all(change[t:] > 1e-6)  # it does look back
    np.testing.assert_allclose(
        model.predict(U[:, : t + 1]), model.predict(U)[:, : t + 1], rtol=0, atol=1e-9
    )
    everywhere = block("not causal")
    assert np.all(np.abs(everywhere.predict(other) - everywhere.predict(U)).max(axis=(0, 2)) > 1e-6)


def test_padding_is_neither_seen_nor_sees():
    model, lengths = block("not causal"), [2, 5, 3]
    Y, pull = model(U, lengths)
    G = (
        np.random.default_rng(1).normal(size=Y.shape)
        * (np.arange(T) < np.array(lengths)[:, None])[..., None]
    )
    dU, grads = pull(G)[0][0], pull(G)[1]
    total = dict.fromkeys(grads, 0.0)
    for i, n in enumerate(lengths):
        alone, pull_alone = model(U[i : i + 1, :n])
        np.testing.assert_allclose(Y[i : i + 1, :n], alone, rtol=0, atol=1e-10)
        dU_alone, own = pull_alone(G[i : i + 1, :n])
        np.testing.assert_allclose(dU[i : i + 1, :n], dU_alone, rtol=0, atol=1e-9)
        assert not dU[i, n:].any()
        total = {key: total[key] + own[key] for key in own}
    for key, g in grads.items():
        np.testing.assert_allclose(g, total[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ImplicitTransformerBlock(5, 2, block_size=3),
            "embed_dim = 5 is no multiple of num_heads = 2",
        ),
        (lambda: ImplicitTransformerBlock(4, 0, block_size=3), "num_heads is 0"),
        (lambda: ImplicitTransformerBlock(4, 2, block_size=3, dropout=1.0), "rate of Dropout"),
        (lambda: ImplicitTransformerBlock(4, 2, block_size=3, mlp_dim=0), "mlp_dim"),
        (lambda: ImplicitTransformerBlock(4, 2, block_size=3, head_dim=-1), "head_dim"),
        (lambda: ImplicitTransformerBlock(4, 2), "block_size"),
        (lambda: ImplicitTransformerBlock(4, 2, block_size=3, rng=0)(U), "3"),
    ],
)
def test_bad_blocks_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


# --------------------------------------------------------------------- a language model


def language_model(seed=0, dropout=0.1, dtype="float32"):
    rng = np.random.default_rng(seed)
    blocks = [
        ImplicitTransformerBlock(8, 2, block_size=6, dropout=dropout, dtype=dtype, rng=rng)
        for _ in range(2)
    ]
    embeddings = (
        Embedding(V, 8, dtype=dtype, rng=rng),
        PositionEmbedding(6, 8, dtype=dtype, rng=rng),
    )
    return Sequential(
        *embeddings, *blocks, LayerNorm(8, dtype=dtype), Linear(8, V, dtype=dtype, rng=rng)
    )


def repeating(m=60, seed=0):
    """Sequences of period 3: from the fourth token on, the next one is two places back."""
    whole = np.tile(np.random.default_rng(seed).integers(0, V, (m, 3)), 3)[:, :7]
    return whole[:, :-1], whole[:, 1:]


def test_steps_with_caches_are_the_rows_of_the_whole(xp):
    tokens = repeating(4)[0]
    model = moved(spread(language_model(dtype="float64")), xp)
    whole, cache, caches = host(model.predict(from_host(xp, tokens))), model.start(4), []
    for t in range(6):
        caches.append(cache)
        y, cache = model.step(from_host(xp, tokens[:, t].copy()), cache)
        assert_close(y, whole[:, t], rtol=0, atol=1e-9, xp=xp)
    again, _ = model.step(from_host(xp, tokens[:, 3].copy()), caches[3])
    assert_close(again, whole[:, 3], rtol=0, atol=1e-9, xp=xp)


def test_it_learns_to_look_back_and_stays_certified():
    model, certified = language_model(), []
    tokens, targets = repeating()
    seen = np.broadcast_to(np.arange(6) >= 2, tokens.shape)  # before, the next token is drawn anew

    def watch(run):
        certified.append(run.model.certificate().contraction)

    settings = {
        "loss": losses.cross_entropy,
        "optimizer": optim.Adam(2e-2, clip_norm=1.0),
        "batch_size": 15,
        "rng": 3,
        "verbose": 0,
    }
    history = fit(
        model, (tokens, targets, seen.astype(float)), epochs=40, callbacks=[watch], **settings
    )
    assert history["loss"][-1] < 0.2 < 1.5 < history["loss"][0]
    fresh = repeating(100, 1)
    assert metrics.accuracy(model.predict(fresh[0])[:, 2:], fresh[1][:, 2:]) > 0.8  # by chance 1/7
    assert max(certified) < 1
    assert not history["failed"].any()


def test_the_parts_can_be_exchanged():
    model = block()
    plain = Sequential(
        Residual(
            model.layers[0].layers[0].replace(), Linear(E, E, dtype="float64", rng=0), Dropout(0.1)
        ),
        model.layers[1],
    )
    assert plain.predict(U).shape == U.shape
    tight = ImplicitTransformerBlock(E, 2, block_size=T, constraint=AttentionBall(0.3), rng=0)
    assert tight.certificate().contraction <= 0.3
