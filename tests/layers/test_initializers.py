"""Initial matrices: reproducible, and with the moments that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyidl.layers import initializers

RECTANGULAR = [initializers.lecun_normal, initializers.he_normal, initializers.glorot_uniform]
ROWS, COLUMNS = 300, 400
VARIANCE = {
    "lecun_normal": 1 / COLUMNS,
    "he_normal": 2 / COLUMNS,
    "glorot_uniform": 2 / (ROWS + COLUMNS),
}


@pytest.mark.parametrize("draw", RECTANGULAR)
def test_moments(draw):
    W = draw(np.random.default_rng(0), ROWS, COLUMNS)
    variance = VARIANCE[draw.__name__]
    assert W.shape == (ROWS, COLUMNS)
    assert W.dtype == np.float64
    # Standard errors over N entries: sqrt(var / N) of the mean, at most sqrt(2 / N) var
    # of the variance; five of each.
    assert abs(W.mean()) < 5 * math.sqrt(variance / W.size)
    assert W.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / W.size))


@pytest.mark.parametrize("draw", RECTANGULAR)
def test_same_seed_same_matrix(draw):
    first, again, other = (draw(np.random.default_rng(seed), 3, 5) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("draw", [initializers.lecun_normal, initializers.he_normal])
def test_normal_entries_leave_the_uniform_range(draw):
    W = draw(np.random.default_rng(0), ROWS, COLUMNS)
    assert np.mean(np.abs(W) < W.std()) == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01)


def test_glorot_fills_its_range():
    a = math.sqrt(6 / (ROWS + COLUMNS))
    W = initializers.glorot_uniform(np.random.default_rng(0), ROWS, COLUMNS)
    assert 0.999 * a < W.max() < a
    assert -a <= W.min() < -0.999 * a


def test_he_keeps_the_mean_square_through_a_relu():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(200, 400)), 0.0)
    y = np.maximum(x @ initializers.he_normal(rng, 400, 400).T, 0.0)
    assert np.mean(y**2) == pytest.approx(np.mean(x**2), rel=0.05)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60))
def test_contraction(seed, n):
    A = initializers.uniform_contraction(np.random.default_rng(seed), n)
    assert A.shape == (n, n)
    assert A.dtype == np.float64
    assert np.abs(A).sum(axis=1).max() < 1


def test_row_sums_are_one_half_on_average():
    A = initializers.uniform_contraction(np.random.default_rng(0), 200)
    # |a| is uniform in (0, 1/n): a row sum has standard deviation 1 / sqrt(12 n), their
    # mean over n rows 1 / (n sqrt(12)).
    assert np.abs(A).sum(axis=1).mean() == pytest.approx(0.5, abs=5 / (200 * math.sqrt(12)))
    assert A.min() < 0 < A.max()
