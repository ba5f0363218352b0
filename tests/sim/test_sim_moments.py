"""Moments: sums over chunks are those of the whole, and nothing cancels."""

import itertools

import numpy as np
import pytest
from helpers import assert_close, host, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl.arrays.backend import from_host
from pyidl.errors import DeviceMismatchError, InputError
from pyidl.sim import Moments


def data(m=30, k=5, targets=3, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, k)) + shift, rng.normal(size=(m, targets)) - shift


FIELDS = ("mean", "target_mean", "G", "H", "square")


def largest_difference(a, b):
    return max(relative(getattr(a, name), getattr(b, name)) for name in FIELDS)


def test_moments_are_what_they_say(xp):
    R, T = data()
    M = Moments.of(from_host(xp, R), from_host(xp, T))
    Rc, Tc = R - R.mean(axis=0), T - T.mean(axis=0)
    wanted = {
        "mean": R.mean(axis=0),
        "target_mean": T.mean(axis=0),
        "G": Rc.T @ Rc,
        "H": Tc.T @ Rc,
        "square": (Tc**2).sum(axis=0),
    }
    for name, value in wanted.items():
        assert_close(getattr(M, name), value, rtol=1e-12, atol=1e-13, xp=xp)
    W = from_host(xp, np.arange(15.0).reshape(3, 5))
    assert_close(M.intercept(W), (T - R @ host(W).T).mean(axis=0), rtol=1e-11, xp=xp)


def test_chunks_of_any_library_add_up(xp):
    R, T = data(seed=1)
    parts = [
        Moments.of(from_host(xp, R[i : i + 7]), from_host(xp, T[i : i + 7]))
        for i in range(0, 30, 7)
    ]
    whole = parts[0] + parts[1] + (parts[2] + (parts[3] + parts[4]))
    assert whole.count == 30
    assert largest_difference(whole, Moments.of(R, T)) < 1e-13


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.integers(0, 99),
    st.sampled_from([0.0, 1e3, -1e6]),
)
def test_chunked_equals_whole_also_far_from_zero(sizes, seed, shift):
    """The centred sums of data shifted by 1e6 are those of the data.

    A sum of squares less m times the mean's would have lost 12 digits.
    """
    m = sum(sizes)
    R, T = data(m, seed=seed, shift=shift)
    ends = np.cumsum([0, *sizes])
    parts = [Moments.of(R[i:j], T[i:j]) for i, j in itertools.pairwise(ends)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = Moments.of(R, T)
    tolerance = 1e-12 + 1e-15 * abs(shift)  # the shifted data themselves are rounded
    assert np.abs(total.G - whole.G).max() <= tolerance * max(1.0, whole.G.max())
    assert np.abs(total.H - whole.H).max() <= tolerance * max(1.0, whole.G.max())
    assert np.abs(total.square - whole.square).max() <= tolerance * max(1.0, whole.square.max())


def test_a_naive_update_would_be_caught():
    """The broken twin: sums of chunks about their own means, without the shift between them."""
    R, T = data(seed=2, shift=3.0)
    a, b = Moments.of(R[:10], T[:10]), Moments.of(R[10:] + 5.0, T[10:])
    whole = Moments.of(np.concatenate([R[:10], R[10:] + 5.0]), T)
    assert largest_difference(a + b, whole) < 1e-12
    assert relative(a.G + b.G, whole.G) > 0.1


def test_uncentred_sums_are_about_zero():
    R, T = data(seed=3, shift=2.0)
    M = Moments.of(R, T).uncentred()
    np.testing.assert_allclose(M.G, R.T @ R, rtol=1e-13)
    np.testing.assert_allclose(M.H, T.T @ R, rtol=1e-13)
    np.testing.assert_allclose(M.square, (T**2).sum(axis=0), rtol=1e-13)
    assert np.all(M.intercept(np.ones((3, 5))) == 0)


def test_single_precision_and_integers_are_summed_in_double_precision():
    R, T = data(seed=4)
    assert Moments.of(R.astype(np.float32), T).G.dtype == np.float64
    assert Moments.of([[1, 2], [3, 4]], np.array([[1], [2]])).G.tolist() == [[2.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(bad):
    R, T = data()
    R[3, 1] = bad
    with pytest.raises(InputError, match=r"inputs has 1 entries .* \(3, 1\)"):
        Moments.of(R, T)


def test_other_shapes_are_refused():
    R, T = data()
    for inputs, targets in ((R[:-1], T), (R[0], T[0]), (R[:0], T[:0])):
        with pytest.raises(InputError, match="one row for each"):
            Moments.of(inputs, targets)
    with pytest.raises(InputError, match="cannot be added"):
        Moments.of(R, T) + Moments.of(R[:, 1:], T)


def test_libraries_do_not_mix(xp):
    R, T = data()
    if xp is not np:
        with pytest.raises(DeviceMismatchError):
            Moments.of(from_host(xp, R), T)
