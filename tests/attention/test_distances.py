"""Distances of keys and queries that lie far from 0.

``|q - k|^2`` is small where q and k are close, however large they are. Formed from
features alone it cancels: steps become noisy, solves of certified heads fail, and others
converge to what is wrong.
"""

import numpy as np
import pytest
from helpers import host, moved, relative

from pyidl import (
    BoundedSoftmax,
    ImplicitAttentionHead,
    KernelAttention,
    Softmax,
    certify_attention,
)
from pyidl.arrays.backend import from_host
from pyidl.attention.fourblocks import to_four_blocks
from pyidl.attention.maps import Mask
from pyidl.errors import ConvergenceError
from pyidl.wellposed import Unconstrained

T, E, H = 12, 6, 2
TOL = {"float32": 1e-6, "float64": 1e-12}


def tokens(kind, size, seed, m=2):
    """Standard normal tokens, but for what makes them large."""
    rng = np.random.default_rng(1000 + seed)
    U = rng.normal(size=(m, T, E))
    if kind == "one offset":
        U += size
    elif kind == "spread":
        U *= size
    elif kind == "two clusters":
        U += size * rng.choice([-1.0, 1.0], (m, T, 1))
    elif kind == "one far token":
        U[:, T // 2] += size
    elif kind == "an offset for each sample":
        U += size * rng.normal(size=(m, 1, E))
    return U


KINDS = (
    "one offset",
    "spread",
    "two clusters",
    "one far token",
    "an offset for each sample",
)


def head(seed, dtype="float32", through="all", **options):
    """Certified, with q and k by the same matrix, so that tokens may be close to tokens."""
    options = {"num_heads": H, "block_size": T, "dtype": dtype, "rng": seed} | options
    made, rng = ImplicitAttentionHead(E, 4, **options), np.random.default_rng(seed)
    p = {key: host(a).astype(np.float64) for key, a in made.params.items()}
    h = made.head_dim
    p["S"][..., h : 2 * h] = p["S"][..., :h]
    p["R"] = rng.normal(size=p["R"].shape)
    if through == "values":
        p["R"][..., : 2 * h] = 0.0
    made.params = made.project({key: a.astype(dtype) for key, a in p.items()})
    assert made.certificate().proven
    return made


def solution(head, U):
    """Oracle: the states in long double, distances from differences."""
    R, S = (host(head.params[key]).astype(np.longdouble) for key in "RS")
    Z = np.einsum("mte,hef->mhtf", np.asarray(U, np.longdouble), S)
    X, h = np.zeros((*Z.shape[:-1], head.head_dim), np.longdouble), head.head_dim
    see = np.tri(U.shape[1]) if head.causal else np.ones((U.shape[1],) * 2)
    for _ in range(400):
        N = np.einsum("mhtd,hdf->mhtf", X, R) + Z
        K, Q, V = N[..., :h], N[..., h : 2 * h], N[..., 2 * h :]
        D = ((Q[..., :, None, :] - K[..., None, :, :]) ** 2).sum(axis=-1)
        W = np.exp(-np.longdouble(head.attention.scale(h)) * D) * see
        W /= head.attention.c + W.sum(axis=-1, keepdims=True)
        X, old = np.einsum("mhtj,mhjd->mhtd", W, V / np.sqrt(1 + V * V)), X
        if np.abs(X - old).max() < 1e-18:
            break
    return X


@pytest.mark.parametrize("size", [10.0, 30.0, 100.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["all", "values"])
def test_float32_keeps_its_promise(kind, size, through):
    """What converges is as near as the certificate says; and it converges, both ways."""
    for seed in range(4):
        layer = head(seed, through=through)
        U = tokens(kind, size, seed).astype(np.float32)
        Y, pull = layer(U)
        found, exact = pull.forward, solution(layer, U)
        off = np.abs(found.value - exact).max(axis=(1, 2, 3))
        assert np.all(off <= layer.certificate().error(found.tolerance))
        pull(np.ones_like(Y))


@pytest.mark.parametrize("size", [100.0, 1e3, 1e5])
@pytest.mark.parametrize("through", ["all", "values"])
def test_float64_keeps_its_promise_whatever_the_offset(size, through):
    for seed in range(2):
        layer, U = head(seed, "float64", through), tokens("one offset", size, seed)
        Y, pull = layer(U)
        # the tokens themselves are rounded, and so is U S
        data = 32 * np.finfo(float).eps * size
        off = np.abs(pull.forward.value - solution(layer, U)).max()
        assert off <= layer.certificate().error(pull.forward.tolerance + data).min()
        pull(np.ones_like(Y))


def test_what_float64_cannot_do_is_said():
    """Tokens spread over 300 bandwidths: the exponents are rounded by more than 1e-12."""
    with pytest.raises(ConvergenceError, match="STAGNATED"):
        head(0, "float64")(tokens("spread", 1000.0, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["all", "values"])
def test_gradients_of_float32_are_those_of_float64(kind, through):
    layer, U = head(1, through=through), tokens(kind, 30.0, 1).astype(np.float32)
    G = np.random.default_rng(0).normal(size=(2, T, 4 * H)).astype(np.float32)
    dU, grads = layer(U)[1](G)
    dU64, grads64 = layer.astype("float64")(U.astype(float))[1](G.astype(float))
    assert dU.dtype == np.float32
    for mine, exact in zip((dU, *grads.values()), (dU64, *grads64.values()), strict=True):
        assert relative(mine, exact) < 2e-5


@pytest.mark.parametrize("mask", ["none", "causal", "padded", "pairs"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [None, 5])
def test_the_map_and_its_derivatives(kind, mask, tile, xp):
    """In float32, beside float64 with one of the keys taken from all: other roundings."""
    rng = np.random.default_rng(3)
    K = tokens(kind, 100.0, 2, m=4).reshape(2, 2, T, E).astype(np.float32)
    Q = K + rng.normal(size=K.shape).astype(np.float32)
    V, G, *d = rng.normal(size=(5, *K.shape)).astype(np.float32)
    there = np.arange(T)[None, :] < np.array([[T], [7]]) if mask == "padded" else None
    pairs = rng.random((T, T)) < 0.5 if mask == "pairs" else None
    masks = Mask(mask == "causal", there, pairs)
    first = K[:, :, :1].astype(float)
    wide = KernelAttention().at(K - first, Q - first, V.astype(float), masks)
    attention = KernelAttention(tile=tile)
    moves = (None if a is None else from_host(xp, a) for a in (there, pairs))
    at = attention.at(*(from_host(xp, a) for a in (K, Q, V)), Mask(mask == "causal", *moves))
    exact = (wide.out, wide.jvp(Q - K, *d[:2]), *wide.vjp(G.astype(float)))
    e = [from_host(xp, a) for a in (Q - K, *d[:2])]
    for mine, expected in zip((at.out, at.jvp(*e), *at.vjp(from_host(xp, G))), exact, strict=True):
        assert host(mine).dtype == np.float32
        assert relative(mine, expected) < 3e-6
    again = attention(*(from_host(xp, a) for a in (K, Q, V)), at.mean.average.mask)
    assert relative(again, wide.out) < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_alone_padded_and_one_token_at_a_time(kind, xp):
    """What is taken from keys and queries is the sample's own, and padding has no part in it."""
    layer = moved(head(2), xp)
    near = float(layer.certificate().error(2e-6))
    U = tokens(kind, 100.0, 5, m=3).astype(np.float32)
    Y = host(layer.predict(from_host(xp, U)))
    assert np.abs(host(layer.predict(from_host(xp, U[1:2]))) - Y[1:2]).max() < near
    assert np.abs(host(layer.predict(from_host(xp, U[::-1].copy()))) - Y[::-1]).max() < near
    noise = np.concatenate([U[:, :7], np.full_like(U[:, 7:], 1e30)], axis=1)
    padded = host(layer.predict(from_host(xp, noise), [7, 7, 7]))
    assert np.abs(padded[:, :7] - Y[:, :7]).max() < near
    assert not np.any(padded[:, 7:])
    cache = layer.start(3)
    for t in range(T):
        y, cache = layer.step(from_host(xp, U[:, t]), cache)
        assert np.abs(host(y) - Y[:, t]).max() < near


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_another_order(kind):
    layer, order = head(3, causal=False), np.random.default_rng(0).permutation(T)
    U = tokens(kind, 100.0, 6).astype(np.float32)
    assert np.abs(
        layer.predict(U[:, order]) - layer.predict(U)[:, order]
    ).max() < layer.certificate().error(2e-6)


def test_the_form_of_four_blocks():
    layer = head(4)
    U = tokens("one offset", 100.0, 7).astype(np.float32)
    A, B = (host(a).astype(float) for a in to_four_blocks(layer.params))
    X = np.zeros((2, H, T, 16))
    for _ in range(500):
        k, q, v, _ = np.split(X @ A + U[:, None].astype(float) @ B, 4, axis=-1)
        W = np.exp(-((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(axis=-1) / 4) * np.tri(T)
        out = W / (0.25 + W.sum(axis=-1, keepdims=True)) @ (v / np.sqrt(1 + v * v))
        X = np.concatenate([k, q, v, out], axis=-1)
    found = layer.equilibrium(U)
    off = np.abs(found.value - X[..., 12:]).max()
    assert off <= layer.certificate().error(found.tolerance).min()


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("centred", [False, True])
def test_certificates_at_the_solution_know_of_rounding(offset, centred):
    """Also of that of ``U S``, where the columns of S sum to 0 and the offset cancels."""
    for seed in range(2):
        layer = head(seed, "float64")
        if centred:
            S = host(layer.params["S"])
            layer.params = {**layer.params, "S": S - S.mean(axis=1, keepdims=True)}
        U = tokens("one offset", offset, seed)
        exact = solution(layer, U)
        for X in (None, exact.astype(float)):
            found = certify_attention(layer, U, X=X)
            off = np.abs(found.X - exact).max(axis=(1, 2, 3))
            assert found.proven.all()
            assert np.all(off <= found.error)
            assert np.all(found.error < 1e-7 * max(1.0, offset / 1e4))


def test_the_box_of_an_input_knows_of_rounding():
    """Keys and values of 1 and -1 that float64 cannot see beside what cancels."""
    layer = ImplicitAttentionHead(
        3, 1, attention=Softmax(tau=1.0), constraint=Unconstrained(), dtype="float64", rng=0
    )
    layer.params = {"R": np.array([[[0.0, 0.9, 0.0]]]), "S": np.ones((1, 3, 3))}
    U = np.array([[[1.0, 1e17, -1e17], [-1.0, 1e17, -1e17]]])
    assert np.abs(layer._inject(U)).max() < 0.5
    assert certify_attention(layer, U).factor[0] >= 0.9


@pytest.mark.parametrize("attention", [Softmax(), BoundedSoftmax()], ids=repr)
@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_a_softmax_rounds_as_its_keys_do(attention, offset):
    """No more than if k, and q, were rounded once more."""
    rng, eps = np.random.default_rng(0), np.finfo(np.float32).eps
    K, Q, V = rng.normal(size=(3, 4, 2, T, 5))
    K, Q, V = (a.astype(np.float32) for a in (K + offset, Q, V))
    out = attention(K, Q, V)
    wide = attention(*(a.astype(float) for a in (K, Q, V)))
    turned = attention(K * (1 + 4 * eps * np.sign(Q[:, :, :1])), Q.astype(float), V.astype(float))
    assert np.abs(out - wide).max() <= 2 * np.abs(turned - wide).max() + 8 * eps * np.abs(V).max()
