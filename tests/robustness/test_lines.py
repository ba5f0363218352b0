"""Ranges of activations over intervals, and lines beside them, against dense samples."""

import boxes
import numpy as np
import pytest
from conditions import EXACT
from hypothesis import given
from hypothesis import strategies as st

from pyidl import activations
from pyidl.activations import Blocks, softmax
from pyidl.errors import InputError
from pyidl.robustness.slopes import lines, range_of

PLAIN = boxes.RISING + boxes.FALLING
EVERY = pytest.mark.parametrize("phi", PLAIN, ids=lambda phi: phi.name)
SPECIAL = {"silu": -1.2784645428, "gelu": -0.7517915247, "abs": 0.0, "hard_tanh": -1.0, "bent": 2.0}
EPS = float(np.finfo(float).eps)


@pytest.fixture(autouse=True)
def _quiet():
    """As bounds call it: what overflows is unbounded."""
    with np.errstate(all="ignore"):
        yield


def intervals(rng, k, special=0.0):
    """(1, k) ends: of all widths and places, points, and ends at and beside a kink."""
    w = 10.0 ** rng.uniform(-17, 3, size=k) * (rng.random(k) < 0.95)
    at = np.where(rng.random(k) < 0.5, special, 0.0)
    low = at + rng.normal(size=k) * 10.0 ** rng.uniform(-16, 3, size=k)
    low = np.where(rng.random(k) < 0.2, at - rng.random(k) * w, low)
    low = np.where(rng.random(k) < 0.05, at, low)
    low = np.where(rng.random(k) < 0.05, np.nextafter(at, -1.0) - w, low)
    return low[None], (low + w)[None]


def dense(rng, low, high, count=257, kinks=()):
    """(count, ...) points of each interval, its ends and its kinks among them."""
    share = np.concatenate([np.linspace(0, 1, count), rng.random(count)])
    y = low + share.reshape(-1, *[1] * low.ndim) * (high - low)
    y = np.concatenate(
        [y, low[None], high[None], *(np.full_like(low, kink)[None] for kink in kinks)]
    )
    return np.clip(y, low, high)


@EVERY
def test_lines_hold_phi_on_the_whole_interval(phi):
    rng = np.random.default_rng(0)
    low, high = intervals(rng, 600, SPECIAL.get(phi.name, 0.0))
    D, k, rho = lines(phi, low, high)
    y = dense(rng, low, high, kinks=phi.kinks)
    value = phi(y)
    # What the sample's own evaluation may be off by.
    off = 32 * EPS * (np.abs(y) * (1 + np.abs(D)) + np.abs(value) + np.abs(k))
    assert np.all(np.abs(value - D * y - k) <= rho + off)
    assert np.all(np.isfinite(rho))


@EVERY
def test_lines_are_as_close_as_they_can_be(phi):
    """What chords attain, up to the cells in which nothing but slopes is known."""
    rng = np.random.default_rng(1)
    low, high = intervals(rng, 600)
    wide = (high - low > 1e-3) & (np.abs(low) < 30)
    low, high = low[wide][None], high[wide][None]
    D, k, rho = lines(phi, low, high)
    y = dense(rng, low, high, kinks=phi.kinks)
    attained = np.abs(phi(y) - D * y - k).max(axis=0)
    flat = 0.5 * (phi(y).max(axis=0) - phi(y).min(axis=0))
    w, steep = high - low, phi.slope_range[1] - phi.slope_range[0]
    unseen = 0.25 * steep * w / 16
    if phi.curvature is not None:
        unseen = np.minimum(unseen, 0.125 * phi.curvature * (w / 16) ** 2)
    blur = 1e-13 * (np.abs(low) + np.abs(high))
    assert np.all(rho <= attained + 2 * unseen + blur)
    assert np.all(rho <= flat * (1 + 1e-9) + steep * w / 512 + blur)  # a horizontal line at worst


def test_relu_by_hand():
    low, high = np.array([[-1.0, 2.0, -3.0, 0.0]]), np.array([[3.0, 5.0, -2.0, 0.0]])
    D, k, rho = lines(activations.relu, low, high)
    np.testing.assert_allclose(D[0, :3], [0.75, 1, 0])
    np.testing.assert_allclose(k[0], [0.375, 0, 0, 0], atol=1e-14)
    np.testing.assert_allclose(rho[0], [0.375, 0, 0, 0], atol=1e-13)


@EVERY
@pytest.mark.parametrize(
    ("low", "high"),
    [(-np.inf, 1.0), (-1.0, np.inf), (-np.inf, np.inf), (-1e308, 1e308), (1e308, 1.7e308)],
)
def test_infinite_ends_bound_nothing_falsely(phi, low, high):
    low, high = np.array([[low]]), np.array([[high]])
    y = np.clip(np.array([-1e307, -2.0, 0.0, 0.5, 1e307]), low, high)
    D, k, rho = lines(phi, low, high)
    lo, hi = range_of(phi, low, high)
    value = phi(y)
    off = np.abs(value - D * y - k)
    assert np.all((lo <= value) & (value <= hi))
    assert np.all(np.isnan(rho) | ~(off > rho * (1 + 1e-12)))


@EVERY
def test_ranges_hold_phi_and_are_attained(phi):
    rng = np.random.default_rng(2)
    low, high = intervals(rng, 600, SPECIAL.get(phi.name, 0.0))
    lo, hi = range_of(phi, low, high)
    kinks = (SPECIAL.get(phi.name, 0.0), *np.arange(-3.5, 4) * np.pi)
    value = phi(dense(rng, low, high, 1001, kinks))
    off = 32 * EPS * np.abs(value)
    assert np.all((lo <= value + off) & (value - off <= hi))
    slack = 100 * EPS * (np.abs(low) + np.abs(high) + np.abs(lo) + np.abs(hi)) + 1e-280
    fine = np.abs(high - low) < 20  # 1001 points see the peaks of a sine only so far
    missed = np.minimum(1.0, (high - low) / 1000) ** 2 if phi is activations.sin else 0.0
    assert np.all((value.min(axis=0) - lo <= slack + missed) | ~fine)
    assert np.all((hi - value.max(axis=0) <= slack + missed) | ~fine)


@pytest.mark.parametrize("turns", [0, 1, 3, 1000, 10**6])
def test_a_sine_over_several_periods(turns):
    turn = 2 * np.pi * turns
    low = turn + np.array([[0.1, 0.1, 0.1, 2.0, 2.0, -2.0, 0.0]])
    high = turn + np.array([[1.0, 2.0, 5.0, 3.0, 5.0, 2.0, 8.0]])
    lo, hi = range_of(activations.sin, low, high)
    expected = np.array(
        [
            [np.sin(0.1), np.sin(0.1), -1, np.sin(3), -1, -1, -1],
            [np.sin(1), 1, 1, np.sin(2), np.sin(2), 1, 1],
        ]
    )
    np.testing.assert_allclose(np.concatenate([lo, hi]), expected, atol=1e-14 * (1 + 10 * turn))


def corners(low, high):
    k = low.shape[-1]
    bits = (np.arange(2**k)[:, None] >> np.arange(k)) & 1
    return np.where(bits[:, None] == 1, high, low)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 30.0, 1e3])
def test_softmax_has_its_extremes_at_vertices_and_they_are_attained(k, size):
    rng = np.random.default_rng(k)
    low = size * rng.normal(size=(50, k))
    high = low + size * rng.exponential(size=(50, k)) * (rng.random((50, k)) < 0.8)
    lo, hi = range_of(softmax, low, high)
    value = softmax(corners(low, high))
    blur = 200 * EPS * (k + np.abs(low).max(1) + np.abs(high).max(1))[:, None]
    assert np.all(np.abs(lo - value.min(axis=0)) <= blur)
    assert np.all(np.abs(hi - value.max(axis=0)) <= blur)
    value = softmax(dense(rng, low, high))
    assert np.all((lo <= value + blur) & (value <= hi + blur))
    D, middle, rho = lines(softmax, low, high)
    assert np.all(np.abs(value - D * dense(rng, low, high) - middle) <= rho + blur)


def test_blocks_have_the_ranges_of_their_parts():
    rng = np.random.default_rng(3)
    low = rng.normal(size=(20, 7))
    high = low + rng.exponential(size=low.shape)
    phi, tail = boxes.mixed(7), Blocks((softmax, 3), (activations.sin, 1))
    for whole, first, last in zip(
        range_of(phi, low, high) + lines(phi, low, high),
        range_of(activations.silu, low[:, 1:2], high[:, 1:2])
        + lines(activations.silu, low[:, 1:2], high[:, 1:2]),
        range_of(tail, low[:, 3:], high[:, 3:]) + lines(tail, low[:, 3:], high[:, 3:]),
        strict=True,
    ):
        np.testing.assert_array_equal(whole[:, 1:2], first)
        np.testing.assert_array_equal(whole[:, 3:], last)


@given(st.integers(0, 10**6))
def test_lines_of_straight_pieces_in_exact_arithmetic(seed):
    """Every rounding counts: the largest distance is at an end or at a kink."""
    rng = np.random.default_rng(seed)
    low, high = intervals(rng, 8)
    for phi, slopes in ((activations.relu, (0, 1)), (activations.abs, (-1, 1))):
        D, k, rho = (EXACT(a) for a in lines(phi, low, high))
        for y in (low, high, np.clip(0.0, low, high)):
            y = EXACT(y)
            value = np.where(y < 0, slopes[0] * y, slopes[1] * y)
            assert np.all(abs(value - D * y - k) <= rho)


def test_the_slopes_of_a_custom_activation_are_not_overwritten():
    ones = np.ones((1, 3))
    ones.flags.writeable = False
    own = activations.Activation("own", lambda z: z, lambda z: ones, slope_range=(1.0, 1.0))
    D, *_ = lines(own, np.array([[0.0, 1.0, 2.0]]), np.array([[0.5, 1.5, 9.0]]))
    np.testing.assert_allclose(D, 1.0)


def test_an_unknown_range_is_refused_by_name():
    wave = activations.Activation("wave", np.cos, lambda z: -np.sin(z), lipschitz=1.0)
    with pytest.raises(InputError, match=r"range of wave .* not known; .*silu, gelu, abs, sin"):
        range_of(wave, np.zeros((1, 2)), np.ones((1, 2)))
