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


# ------------------------------------------------------------ beside those of scikit-learn


def problem(seed, m, q):
    """Logits, of which some are equal, and labels, of which some do not occur."""
    rng = np.random.default_rng(seed)
    Y = rng.integers(-3, 4, (m, q)) + 0.5 * rng.integers(0, 2, (m, q))
    return Y.astype(float), rng.integers(0, max(1, q - rng.integers(0, 2)), m)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 20), q=st.integers(2, 5))
def test_log_loss_and_f1_are_those_of_scikit_learn(seed, m, q):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    Y, labels = problem(seed, m, q)
    P = np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True)
    expected = theirs.log_loss(labels, P, labels=np.arange(q))
    assert metrics.log_loss(Y, labels) == pytest.approx(expected, rel=1e-12)
    average = {"average": "binary" if q == 2 else "macro", "zero_division": 0.0}
    expected = theirs.f1_score(labels, Y.argmax(axis=1), **average)
    assert metrics.f1(Y, labels) == pytest.approx(expected, abs=1e-15)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 20), q=st.integers(3, 6))
def test_top_k_is_that_of_scikit_learn(seed, m, q):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    Y, labels = problem(seed, m, q)
    Y += np.arange(q) * 1e-6  # theirs takes the last of equal logits, ours the first
    for k in range(1, q):
        expected = theirs.top_k_accuracy_score(labels, Y, k=k, labels=np.arange(q))
        assert metrics.top_k(k)(Y, labels) == pytest.approx(expected, abs=1e-15)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 20), q=st.integers(2, 5))
def test_top_1_is_accuracy_also_of_equal_logits(seed, m, q):
    Y, labels = problem(seed, m, q)
    assert metrics.top_k(1)(Y, labels) == metrics.accuracy(Y, labels)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 20))
def test_mae_is_that_of_scikit_learn(seed, m):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    Y, target = np.random.default_rng(seed).normal(size=(2, m, 3))
    expected = theirs.mean_absolute_error(target, Y)
    assert metrics.mae(Y, target) == pytest.approx(expected, rel=1e-14)


def test_the_metrics_by_hand(xp):
    Y = from_host(xp, np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 3.0]]))
    labels = from_host(xp, np.array([1, 0, 2]))
    assert metrics.top_k(1)(Y, labels) == 2 / 3
    assert metrics.top_k(2)(Y, labels) == 1.0
    # said 0, 0, 2: the first class has a hit and a false alarm, the second none, the third all
    assert metrics.f1(Y, labels) == pytest.approx((2 / 3 + 0 + 1) / 3, rel=1e-15)
    e = np.exp(np.arange(4.0))
    expected = np.log([1 + e[1] + e[2], 3.0, 1 + e[1] + e[3]]) - [1.0, 0.0, 3.0]
    assert metrics.log_loss(Y, labels) == pytest.approx(expected.mean(), rel=1e-14)
    t = from_host(xp, np.array([[2.0, 1.0, 1.0], [0.0, 3.0, 0.0], [0.0, 1.0, 3.0]]))
    assert metrics.mae(Y, t) == pytest.approx(4 / 9, rel=1e-15)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_stands_for_two_classes(shape):
    y, labels = np.array([0.5, 2.0, -1.0, 0.0]), np.array([1, 0, 0, 1])
    Y, two = y.reshape(shape), np.stack([0 * y, y], axis=1)
    for metric in (metrics.accuracy, metrics.log_loss, metrics.f1, metrics.top_k(1)):
        assert metric(Y, labels) == metric(two, labels)
    expected = np.mean(np.log1p(np.exp(y)) - labels * y)
    assert metrics.log_loss(Y, labels) == pytest.approx(expected, rel=1e-14)
    assert metrics.f1(Y, labels) == 0.5  # said 1, 1, 0, 0: one hit, one false alarm, one missed


def test_f1_where_nothing_is_to_be_found():
    assert metrics.f1(np.array([-1.0, -2.0]), np.array([0, 0])) == 0.0
    # of four classes the last two occur nowhere, and do not count
    Y = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert metrics.f1(Y, np.array([0, 1])) == 1.0


def test_a_sure_answer_that_is_wrong_has_a_large_finite_loss():
    assert metrics.log_loss(np.array([[1e5, 0.0]]), np.array([1])) == 1e5
    assert metrics.log_loss(np.array([[1e5, 0.0]]), np.array([0])) == 0.0
    assert metrics.log_loss(np.array([-1e5]), np.array([1])) == 1e5


def test_positions_count_alike():
    Y, labels = np.random.default_rng(0).normal(size=(2, 5, 4)), np.arange(10).reshape(2, 5) % 4
    for metric in (metrics.accuracy, metrics.log_loss, metrics.f1, metrics.top_k(2)):
        flat = metric(Y.reshape(10, 4), labels.reshape(10))
        assert metric(Y, labels) == pytest.approx(flat, rel=1e-15)


def test_top_k_has_a_name_and_bounds():
    assert metrics.top_k(5).__name__ == "top_5"
    for k in (0, -1, 1.5, True, "1", None):
        with pytest.raises(InputError, match=r"k of top_k is .*; it must be a positive integer"):
            metrics.top_k(k)
    with pytest.raises(InputError, match="k of top_k is 3, and there are 3 classes"):
        metrics.top_k(3)(np.zeros((2, 3)), np.array([0, 1]))


@pytest.mark.parametrize("name", ["log_loss", "f1", "top_1"])
def test_the_doors_are_those_of_accuracy(name):
    metric = getattr(metrics, name, metrics.top_k(1))
    for Y, labels, words in (
        (np.zeros((2, 3)), np.array([0, 3]), "1 labels belong to no class, the first is 3"),
        (np.zeros((2, 3)), np.array([0.5, 1.0]), "the first is 0.5"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "Y has 1 entries that are NaN"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "labels have shape"),
        (np.zeros((0, 3)), np.zeros(0), f"{name} needs at least one sample"),
        (np.zeros((2, 3)), ["a", "b"], "target has dtype"),
    ):
        with pytest.raises(InputError, match=words):
            metric(Y, labels)


@pytest.mark.parametrize(
    ("Y", "target", "words"),
    [
        (np.array([np.nan, 1.0]), np.array([0.0, 1.0]), "Y has 1 entries that are NaN"),
        (np.zeros((2, 1)), np.zeros(2), r"Y has shape \(2, 1\), target \(2,\)"),
        (np.zeros((0, 1)), np.zeros((0, 1)), "mae needs at least one sample"),
        (np.asarray(1.0), np.asarray(1.0), "mae needs at least one sample"),
    ],
)
def test_mae_refuses(Y, target, words):
    with pytest.raises(InputError, match=words):
        metrics.mae(Y, target)
