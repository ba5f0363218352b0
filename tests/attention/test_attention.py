"""The attention maps.

Values against the plainest loop, derivatives against differences and each other, masks,
tiles.
"""

import numpy as np
import pytest
from helpers import host, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl.arrays.backend import from_host
from pyidl.attention import BoundedSoftmax, KernelAttention, Softmax
from pyidl.attention import weighted_mean as averaging
from pyidl.attention.maps import Mask, phi, phi_slope
from pyidl.errors import InputError

MAPS = [
    KernelAttention(),
    KernelAttention(bandwidth=1.0, c=2.0),
    BoundedSoftmax(),
    BoundedSoftmax(tau=30.0),
    Softmax(),
    Softmax(tau=2.0),
]
MASKS = ("full", "causal", "padded", "causal and padded", "pairs")


def problem(seed, mask="full", spread=None):
    """Keys, queries and values of a random shape, and a mask."""
    rng = np.random.default_rng(seed)
    m, H, T, h = (int(rng.integers(1, top + 1)) for top in (3, 3, 8, 5))
    K, Q, V = rng.normal(size=(3, m, H, T, h)) * (spread or rng.choice([0.1, 1.0, 3.0]))
    lengths = rng.integers(1, T + 1, m)
    tokens = np.arange(T)[None, :] < lengths[:, None] if "padded" in mask else None
    pairs = (rng.random((T, T)) < 0.5) | np.eye(T, dtype=bool) if mask == "pairs" else None
    return K, Q, V, Mask("causal" in mask, tokens, pairs)


def seen(mask, m, T):
    """Which keys are seen, (m, T, T), in words."""
    see = np.ones((m, T, T), bool)
    if mask.causal:
        see &= np.tril(np.ones((T, T), bool))
    if mask.tokens is not None:
        see &= host(mask.tokens)[:, :, None] & host(mask.tokens)[:, None, :]
    if mask.pairs is not None:
        see &= host(mask.pairs)
    return see


def squash(s):
    return s / np.sqrt(1 + s * s)


def by_loops(attention, K, Q, V, mask):
    """Oracle: the definition, weight by weight."""
    m, H, T, h = Q.shape
    see, out, W = seen(mask, m, T), np.zeros_like(Q), np.zeros((m, H, T, T))
    for r, i, t in np.ndindex(m, H, T):
        js = np.flatnonzero(see[r, t])
        q, k, v = Q[r, i, t], K[r, i, js], V[r, i, js]
        if isinstance(attention, KernelAttention):
            g = 1 / h if attention.bandwidth is None else attention.bandwidth
            e, c, u = np.exp(-g * ((q - k) ** 2).sum(axis=1)), attention.c, squash(v)
        else:
            tau = h**-0.5 if attention.tau is None else attention.tau
            q, k, u = (
                (squash(q), squash(k), squash(v))
                if isinstance(attention, BoundedSoftmax)
                else (q, k, v)
            )
            z = tau * k @ q
            e, c = np.exp(z - z.max(initial=-np.inf)), 0.0
        if len(js):
            W[r, i, t, js] = e / (c + e.sum())
            out[r, i, t] = W[r, i, t, js] @ u
    return out, W


def moved(xp, K, Q, V, mask):
    arrays = (None if a is None else from_host(xp, a) for a in (mask.tokens, mask.pairs))
    return *(from_host(xp, a) for a in (K, Q, V)), Mask(mask.causal, *arrays)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", MAPS, ids=repr)
def test_the_map_is_its_definition(attention, mask, xp):
    for seed in range(4):
        given_ = problem(seed, mask)
        desired, W = by_loops(attention, *given_)
        at = attention.at(*moved(xp, *given_))
        assert np.abs(host(attention(*moved(xp, *given_))) - desired).max() < 1e-13 * max(
            1, np.abs(desired).max()
        )
        assert np.abs(host(at.out) - desired).max() < 1e-13 * max(1, np.abs(desired).max())
        assert np.abs(host(at.mean.weights()) - W).max() < 1e-13
        assert not np.any(host(at.mean.weights())[W == 0])


@given(st.sampled_from(MAPS), st.sampled_from(MASKS), st.integers(0, 10**6))
def test_rows_sum_to_one_or_to_less(attention, mask, seed):
    K, Q, V, mask = problem(seed, mask, 100.0 if seed % 5 == 0 else None)
    at = attention.at(K, Q, V, mask)
    sums, there = (
        at.mean.weights().sum(axis=-1),
        seen(mask, len(K), K.shape[2]).sum(axis=-1)[:, None, :],
    )
    if isinstance(attention, KernelAttention):
        assert np.all(sums <= there / (there + attention.c) + 1e-14)
    else:
        assert np.abs(sums - (there > 0)).max() < 1e-14
    assert isinstance(attention, Softmax) or np.abs(at.out).max() <= 1 + 1e-14


@given(st.sampled_from(MAPS), st.sampled_from(MASKS), st.integers(0, 10**6))
def test_derivatives(attention, mask, seed):
    """The JVP against a fourth-order difference, and the VJP against the JVP."""
    K, Q, V, mask = problem(
        seed, mask, 0.3 if attention in (Softmax(tau=2.0), BoundedSoftmax(tau=30.0)) else None
    )
    rng, h = np.random.default_rng(seed + 1), 1e-3
    d, G = rng.normal(size=(3, *Q.shape)), rng.normal(size=Q.shape)
    scale = h / max(1.0, np.abs(d).max())
    at = attention.at(K, Q, V, mask)
    moves = [
        attention(*(x + t * scale * e for x, e in zip((K, Q, V), d)), mask) for t in (1, -1, 2, -2)
    ]
    measured = (8 * (moves[0] - moves[1]) - (moves[2] - moves[3])) / (12 * scale)
    derived = at.jvp(*d)
    assert np.abs(derived - measured).max() <= 1e-7 * max(np.abs(derived).max(), 1.0)
    pulled = at.vjp(G)
    products = np.concatenate([(a * b).ravel() for a, b in zip(pulled, d)])
    assert abs((G * derived).sum() - products.sum()) <= 1e-12 * (
        np.abs(products).sum() + np.abs(G * derived).sum()
    )


@pytest.mark.parametrize("attention", MAPS, ids=repr)
def test_derivatives_on_every_library(attention, xp):
    K, Q, V, mask = problem(3, "causal and padded")
    d = np.random.default_rng(0).normal(size=(4, *Q.shape))
    desired = attention.at(K, Q, V, mask)
    at = attention.at(*moved(xp, K, Q, V, mask))
    dK, dQ, dV, G = (from_host(xp, a) for a in d)
    assert relative(at.jvp(dK, dQ, dV), desired.jvp(*d[:3])) < 1e-12
    for a, b in zip(at.vjp(G), desired.vjp(d[3])):
        assert relative(a, b) < 1e-12
    assert relative(at.take(np.array([0])).vjp(G[:1, ...])[0], desired.vjp(d[3])[0][:1]) < 1e-12


def test_a_wrong_derivative_is_noticed():
    """The twin that is broken on purpose.

    The weights depend on the queries too, and forgetting it must show.
    """
    K, Q, V = np.random.default_rng(5).normal(size=(3, 2, 2, 5, 3))
    mask = Mask(causal=True)
    at = Softmax().at(K, Q, V, mask)
    d, G = np.random.default_rng(0).normal(size=(2, *Q.shape))
    gK, gQ, gV = at.vjp(G)
    zero = np.zeros_like(d)
    assert (
        abs((G * at.jvp(d, d, d)).sum() - (gK * d).sum() - (gQ * d).sum() - (gV * d).sum()) < 1e-12
    )
    assert (
        abs((G * at.jvp(d, zero, d)).sum() - (gK * d).sum() - (gQ * d).sum() - (gV * d).sum())
        > 1e-3
    )


@pytest.mark.parametrize("tile", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "attention",
    [KernelAttention(), BoundedSoftmax(), BoundedSoftmax(tau=30.0), Softmax()],
    ids=repr,
)
def test_tiles_change_roundings_alone(attention, mask, tile):
    tiled = type(attention)(
        *(getattr(attention, name) for name in attention.__dataclass_fields__ if name != "tile"),
        tile=tile,
    )
    for seed in (0, 5):
        given_ = problem(seed, mask)
        d = np.random.default_rng(0).normal(size=(4, *given_[0].shape))
        whole, at = attention.at(*given_), tiled.at(*given_)
        assert relative(at.out, whole.out) < 1e-13
        assert relative(tiled(*given_), whole.out) < 1e-13
        assert relative(at.jvp(*d[:3]), whole.jvp(*d[:3])) < 1e-12
        assert relative(at.mean.weights(), whole.mean.weights()) < 1e-12
        for a, b in zip(at.vjp(d[3]), whole.vjp(d[3])):
            assert np.abs(a - b).max() < 1e-12 * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("attention", MAPS)
@pytest.mark.parametrize("padded", [False, True])
def test_causal_tiles_that_numpy_chooses(attention, padded):
    """From 256 keys on, a causal mask is visited in tiles.

    Values and derivatives are those of one tile.
    """
    rng = np.random.default_rng(3)
    K, Q, V, G = rng.normal(size=(4, 2, 2, 260, 3))
    mask = Mask(True, np.arange(260)[None, :] < np.array([[70], [260]]) if padded else None)
    whole = type(attention)(
        *(getattr(attention, name) for name in attention.__dataclass_fields__ if name != "tile"),
        tile=260,
    )
    at, one = attention.at(K, Q, V, mask), whole.at(K, Q, V, mask)
    assert len(list(at.mean.average.tiles(at.mean.a, at.mean.b))) == 5
    assert at.mean.E is None
    assert one.mean.E is not None
    assert relative(attention(K, Q, V, mask), one.out) < 1e-13
    assert relative(at.jvp(K, G, Q), one.jvp(K, G, Q)) < 1e-12
    for mine, theirs in zip(at.vjp(G), one.vjp(G)):
        assert relative(mine, theirs) < 1e-12


def test_tiles_and_pieces_are_chosen_by_memory(monkeypatch):
    K, Q, V = np.random.default_rng(0).normal(size=(3, 5, 2, 40, 3))
    G = np.random.default_rng(1).normal(size=Q.shape)
    whole = Softmax().at(K, Q, V, Mask(causal=True))
    assert whole.mean.E is not None
    monkeypatch.setattr(averaging, "KEPT", 5 * 2 * 40 * 20)
    monkeypatch.setattr(averaging, "CACHED", 2 * 2 * 40 * 40)
    split = Softmax().at(K, Q, V, Mask(causal=True))
    assert split.mean.E is None
    assert len(list(split.mean.average.tiles(split.mean.a, split.mean.b))) == 2
    assert relative(Softmax()(K, Q, V, Mask(causal=True)), whole.out) < 1e-13
    for a, b in zip(split.vjp(G), whole.vjp(G)):
        assert relative(a, b) < 1e-12


def test_nothing_overflows():
    """Extreme numbers are no harm.

    Exponents of a thousand, values of 1e30 in float32, and distances at which every
    weight vanishes.
    """
    K, Q, V = np.random.default_rng(0).normal(size=(3, 1, 1, 4, 3)).astype("float32")
    G = np.ones_like(Q)
    for attention in MAPS:
        at = attention.at(100 * K, 100 * Q, np.float32(1e30) * V)
        assert np.all(np.isfinite(at.out))
        assert all(np.all(np.isfinite(g)) for g in at.vjp(G * np.float32(1e-3)))
    far = KernelAttention().at(K, Q + 1000, V)
    assert not np.any(far.out)
    assert not any(np.any(g) for g in far.vjp(G))


def test_rows_without_keys():
    K, Q, V = np.random.default_rng(0).normal(size=(3, 2, 1, 3, 2))
    empty = Mask(pairs=np.array([[True, False, False], [False, False, False], [True, True, True]]))
    at = KernelAttention().at(K, Q, V, empty)
    assert not np.any(at.out[:, :, 1])
    assert not np.any(at.vjp(np.ones_like(Q))[1][:, :, 1])
    for attention in (Softmax(), BoundedSoftmax()):
        with pytest.raises(InputError, match="sees no key"):
            attention(K, Q, V, empty)
    padded = Mask(tokens=np.array([[True, True, False], [True, False, False]]))
    out = Softmax()(K, Q, V, padded)
    assert not np.any(out[0, :, 2])
    assert not np.any(out[1, :, 1:])
    assert np.allclose(out[1, :, 0], V[1, :, 0])


@given(st.floats(-1e6, 1e6))
def test_phi(s):
    s = np.array([s])
    assert np.abs(phi(s) - s / np.sqrt(1 + s * s)) <= 1e-15
    assert np.abs(phi_slope(s) - (1 + s * s) ** -1.5) <= 1e-15
    assert phi_slope(s) <= (1 - phi(s) ** 2) * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize(
    "make",
    [
        lambda: KernelAttention(bandwidth=0.0),
        lambda: KernelAttention(c=0.0),
        lambda: KernelAttention(c=-1.0),
        lambda: Softmax(tau=-1.0),
        lambda: BoundedSoftmax(tau=np.inf),
        lambda: Softmax(tile=0),
        lambda: Softmax(tile=1.5),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(InputError, match="must be a positive"):
        make()


def test_rounding_gives_no_key_more_than_its_weight():
    """Of large features the exponent ``-g |q - k|^2`` is a difference.

    It rounds to positive numbers too.
    """
    attention, K = KernelAttention(), 1e9 * np.random.default_rng(0).normal(size=(200, 1, 4, 8))
    weights = attention.at(K, K, K).mean.weights()
    assert np.max(weights) <= (1 + 1e-6) / (1 + attention.c)
    own = np.diagonal(weights, axis1=2, axis2=3)
    assert np.min(own) < 0.5 / (1 + attention.c)  # rounding plays a part


def test_padding_needs_no_key():
    """A softmax refuses a table in which a token sees nothing, unless it is none."""
    table = np.array([[True, False], [False, False]])
    X = np.ones((1, 1, 2, 3))
    out = Softmax()(X, X, X, Mask(tokens=np.array([[True, False]]), pairs=table))
    assert np.array_equal(out[0, 0], [[1.0] * 3, [0.0] * 3])
    with pytest.raises(InputError, match="sees no key"):
        Softmax()(X, X, X, Mask(pairs=table))


@pytest.mark.parametrize(
    "make",
    [
        lambda k: KernelAttention(bandwidth=k, c=k),
        lambda k: Softmax(tau=k),
        lambda k: BoundedSoftmax(tau=k),
    ],
)
def test_numbers_of_numpy_leave_float32_as_it_is(make):
    K, Q, V = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 3)).astype(np.float32)
    for k in (np.float64(0.3), np.array(0.3)):
        at, desired = make(k).at(K, Q, V), make(0.3).at(K, Q, V)
        assert make(k) == make(0.3)
        for a, b in zip((at.out, *at.vjp(V)), (desired.out, *desired.vjp(V))):
            assert a.dtype == np.float32
            assert np.array_equal(a, b)
