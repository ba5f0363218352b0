"""Metrics by hand, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyidl import metrics
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError


def test_accuracy_by_hand(xp):
    Y = from_host(
        xp, np.array([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [-2.0, -1.0, -3.0], [0.0, 0.0, 1.0]])
    )
    assert metrics.accuracy(Y, from_host(xp, np.array([1, 1, 1, 2]))) == 0.75
    assert metrics.accuracy(Y, [0, 1, 2, 0]) == 0.0


def test_accuracy_over_positions(xp):
    Y, labels = np.zeros((2, 3, 4)), np.array([[0, 1, 2], [3, 3, 3]])
    Y[1, :, 3] = 1.0
    assert metrics.accuracy(from_host(xp, Y), from_host(xp, labels)) == 4 / 6


@pytest.mark.parametrize("logits", [(4,), (4, 1)])
@pytest.mark.parametrize("labels", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [int, float, bool])
def test_one_logit_says_1_where_it_is_positive(xp, logits, labels, dtype):
    if logits == (4,) and labels == (4, 1):
        with pytest.raises(InputError, match=r"labels have shape \(4, 1\)"):
            metrics.accuracy(np.zeros(4), np.zeros((4, 1)))
        return
    Y = from_host(xp, np.array([0.3, -0.3, 2.0, -1e-9]).reshape(logits))
    target = from_host(xp, np.array([1, 0, 0, 0], dtype).reshape(labels))
    assert metrics.accuracy(Y, target) == 0.75


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 20), q=st.integers(2, 5))
def test_accuracy_counts(seed, m, q):
    rng = np.random.default_rng(seed)
    Y, labels = rng.normal(size=(m, q)), rng.integers(0, q, m)
    said = [max(range(q), key=list(row).__getitem__) for row in Y]
    assert metrics.accuracy(Y, labels) == pytest.approx(
        sum(a == b for a, b in zip(said, labels, strict=True)) / m, abs=1e-15
    )
    assert metrics.accuracy(Y, Y.argmax(axis=1)) == 1.0


def test_r2_by_hand(xp):
    Y, target = (
        from_host(xp, np.array([[1.0, 0.0], [2.0, 4.0]], np.float32)),
        from_host(xp, np.array([[1.0, 0.0], [3.0, 6.0]], np.float32)),
    )
    assert metrics.r2(Y, target) == pytest.approx(1 - (1 + 4) / (2 + 18), rel=1e-14)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(2, 20))
def test_r2_is_1_for_the_target_and_0_for_its_mean(seed, m):
    target = np.random.default_rng(seed).normal(size=(m, 2))
    assert metrics.r2(target, target) == 1.0
    assert metrics.r2(np.broadcast_to(target.mean(axis=0), (m, 2)), target) == pytest.approx(
        0.0, abs=1e-12
    )
    worse = target + np.random.default_rng(seed + 1).normal(size=(m, 2))
    assert metrics.r2(worse, target) < 1.0
    assert metrics.r2(2 * worse + 3, 2 * target + 3) == pytest.approx(
        metrics.r2(worse, target), rel=1e-9
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e150])
def test_r2_has_no_unit(scale):
    Y, target = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 5.0])
    assert metrics.r2(scale * Y, scale * target) == pytest.approx(metrics.r2(Y, target), rel=1e-12)


@pytest.mark.parametrize(
    ("Y", "labels", "words"),
    [
        (
            np.zeros((2, 3)),
            np.array([0, 3]),
            r"1 labels belong to no class, the first is 3; they are 0, ..., 2",
        ),
        (np.zeros((2, 3)), np.array([-1, 7]), "2 labels belong to no class, the first is -1"),
        (np.zeros((2, 3)), np.array([0.5, 1.0]), "the first is 0.5"),
        (np.zeros(2), np.array([-1, 1]), "the first is -1; they are 0, ..., 1"),
        (np.zeros((2, 1)), np.array([[2], [1]]), "the first is 2; they are 0, ..., 1"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "Y has 1 entries that are NaN"),
        (np.zeros((1, 3)), np.array([np.nan]), "target has 1 entries that are NaN"),
        (np.zeros((2, 3)), np.ma.array([0, 1], mask=[0, 1]), "target is a masked array"),
        (np.zeros((2, 3)), ["a", "b"], "target has dtype"),
        ([[1.0], [1.0, 2.0]], np.array([0, 1]), "Y cannot be read as an array"),
        (
            np.zeros((2, 3)),
            np.zeros(3),
            r"labels have shape \(3,\); for logits \(2, 3\) they must have \(2,\)",
        ),
        (np.zeros((2, 3)), np.zeros((2, 3)), "labels have shape"),
        (np.zeros((2, 1)), np.zeros((2, 2)), "labels have shape"),
        (np.zeros((0, 3)), np.zeros(0), "at least one sample"),
        (np.asarray(1.0), np.asarray(1), "at least one sample"),
    ],
)
def test_accuracy_refuses(Y, labels, words):
    with pytest.raises(InputError, match=words):
        metrics.accuracy(Y, labels)


@pytest.mark.parametrize(
    ("Y", "target", "words"),
    [
        (np.array([np.nan, 1.0]), np.array([0.0, 1.0]), "Y has 1 entries that are NaN"),
        (np.array([0.0, 1.0]), np.array([0.0, np.inf]), "target has 1 entries that are NaN"),
        (np.array([0.0, 1j]), np.array([0.0, 1.0]), "Y has dtype complex128"),
        (np.array([0.0, 1.0]), np.ma.array([0.0, 1.0], mask=[0, 1]), "target is a masked array"),
        (np.zeros((2, 1)), np.zeros(2), r"Y has shape \(2, 1\), target \(2,\)"),
        (np.zeros((0, 1)), np.zeros((0, 1)), "at least two samples"),
        (np.asarray(1.0), np.asarray(1.0), "at least two samples"),
        # their mean is not 0.1 in floating point
        (
            np.zeros((3, 1)),
            np.full((3, 1), 0.1),
            "all 3 targets are equal",
        ),
        (np.zeros((1, 2)), np.array([[1.0, 2.0]]), "all 1 targets are equal"),
    ],
)
def test_r2_refuses(Y, target, words):
    with pytest.raises(InputError, match=words):
        metrics.r2(Y, target)
