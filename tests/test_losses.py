"""Losses against central differences, against each other, and against everything that
must be refused."""

from __future__ import annotations

import math
from functools import partial

import array_api_strict
import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st

from pyidl import losses
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.errors import DeviceMismatchError, InputError

REAL = [
    losses.mse,
    losses.mae,
    losses.huber,
    partial(losses.huber, delta=0.3),
    losses.binary_cross_entropy,
]
SHAPES = [(5,), (4, 3), (3, 2, 2)]
LOGITS = [(5, 4), (3, 2, 4)]


def draw(loss, shape, rng):
    """Y and target, with Y - target away from the kinks of mae and huber by far more
    than a difference step."""
    if loss is losses.binary_cross_entropy:
        return rng.normal(size=shape), rng.uniform(size=shape)
    target = rng.normal(size=shape)
    gap = np.where(
        rng.uniform(size=shape) < 0.5, rng.uniform(0.05, 0.25, shape), rng.uniform(1.1, 2.0, shape)
    )
    return target + gap * rng.choice([-1.0, 1.0], shape), target


def probabilities(rng, shape):
    p = rng.uniform(0.1, 1.0, shape)
    return p / p.sum(axis=-1, keepdims=True)


def check_gradient(loss, Y, *, h=1e-5):
    """Every entry of dY by the central difference of order 4, whose error is of the
    order of h^4 and eps / h."""
    _, dY = loss(Y)
    numeric = np.empty_like(Y)
    for i in np.ndindex(*Y.shape):
        E = np.zeros_like(Y)
        E[i] = h
        f = [float(loss(Y + k * E)[0]) for k in (-2, -1, 1, 2)]
        numeric[i] = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    assert_close(dY, numeric, rtol=0, atol=1e-7 * np.abs(dY).max())


# ------------------------------------------------------------------------------- values


def test_values_by_hand():
    Y, target = np.array([[1.0, 2.0], [0.0, -3.0]]), np.array([[0.0, 2.5], [0.0, 1.0]])
    assert float(losses.mse(Y, target)[0]) == (1.0 + 0.25 + 0.0 + 16.0) / 4
    assert float(losses.mae(Y, target)[0]) == (1.0 + 0.5 + 0.0 + 4.0) / 4
    assert (
        float(losses.huber(Y, target, delta=2.0)[0]) == (0.5 + 0.125 + 0.0 + 2.0 * (4.0 - 1.0)) / 4
    )
    assert float(losses.huber(Y, target)[0]) == (0.5 + 0.125 + 0.0 + 3.5) / 4


def test_cross_entropies_by_the_textbook_formula():
    rng = np.random.default_rng(0)
    Y, t, p = rng.normal(size=(6, 3)), probabilities(rng, (6, 3)), rng.uniform(size=(6, 3))
    softmax = np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-Y))
    assert float(losses.cross_entropy(Y, t)[0]) == pytest.approx(
        -(t * np.log(softmax)).sum(axis=1).mean(), rel=1e-13
    )
    textbook = -(p * np.log(sigmoid) + (1 - p) * np.log(1 - sigmoid)).mean()
    assert float(losses.binary_cross_entropy(Y, p)[0]) == pytest.approx(textbook, rel=1e-13)


def test_two_classes_are_one_logit():
    rng = np.random.default_rng(0)
    y, labels = rng.normal(size=8), rng.integers(0, 2, 8)
    two = losses.cross_entropy(np.stack([np.zeros(8), y], axis=1), labels)[0]
    assert float(losses.binary_cross_entropy(y, labels)[0]) == pytest.approx(float(two), rel=1e-13)


@pytest.mark.parametrize("loss", REAL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_slope_belong_to_the_library_of_Y(xp, loss, dtype, weighted):
    rng = np.random.default_rng(1)
    Y, target = (a.astype(dtype) for a in draw(loss, (4, 3), rng))
    w = rng.uniform(0.5, 1.0, 4).astype(dtype) if weighted else None
    value, dY = loss(Y, target, weights=w)
    assert type(value) is np.ndarray
    there = loss(
        from_host(xp, Y), from_host(xp, target), weights=None if w is None else from_host(xp, w)
    )
    tol = 8 * np.finfo(dtype).eps
    assert_close(there[0], from_host(xp, np.asarray(value, dtype)), rtol=tol)
    assert_close(there[1], from_host(xp, dY.astype(dtype)), rtol=tol, atol=tol / 4)
    assert there[1].dtype == from_host(xp, Y).dtype
    assert value.shape == ()


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", [False, True])
def test_cross_entropy_belongs_to_the_library_of_Y(xp, shape, dtype, labels):
    rng = np.random.default_rng(1)
    Y = rng.normal(size=shape).astype(dtype)
    target = (
        rng.integers(0, shape[-1], shape[:-1])
        if labels
        else probabilities(rng, shape).astype(dtype)
    )
    w = rng.uniform(0.5, 1.0, shape[0]).astype(dtype)
    value, dY = losses.cross_entropy(Y, target, weights=w)
    there = losses.cross_entropy(from_host(xp, Y), from_host(xp, target), weights=from_host(xp, w))
    tol = 8 * np.finfo(dtype).eps
    assert value.dtype == dY.dtype == np.dtype(dtype)
    assert_close(there[0], from_host(xp, value), rtol=tol)
    assert_close(there[1], from_host(xp, dY), rtol=tol, atol=tol / 4)


@pytest.mark.parametrize("loss", REAL)
def test_arguments_stay_as_they_are(loss):
    Y, target = draw(loss, (4, 3), np.random.default_rng(2))
    w = np.ones(4)
    kept = Y.copy(), target.copy()
    for a in (Y, target, w):
        a.flags.writeable = False
    for weights in (None, w):
        _, dY = loss(Y, target, weights=weights)
        dY *= 2.0  # the slope is the caller's
    assert np.array_equal(Y, kept[0])
    assert np.array_equal(target, kept[1])


def test_lists_and_integers_are_cast_to_the_dtype_of_Y():
    Y = np.array([[1.0], [3.0]], np.float32)
    value, dY = losses.mse(Y, [[0], [1]], weights=[1, 3])
    assert_close(value, np.asarray((1 + 3 * 4) / 4, np.float32), rtol=1e-6)
    assert_close(dY, np.array([[0.5], [3.0]], np.float32), rtol=1e-6)
    same = losses.cross_entropy(np.eye(2), [0, 1])[0]
    assert (
        float(same)
        == float(losses.cross_entropy(np.eye(2), np.eye(2, dtype=int))[0])
        == pytest.approx(math.log1p(math.exp(-1)))
    )


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", REAL)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(loss, shape, weighted):
    rng = np.random.default_rng(3)
    Y, target = draw(loss, shape, rng)
    check_gradient(
        partial(loss, target=target, weights=rng.uniform(0.2, 2.0, shape[0]) if weighted else None),
        Y,
    )


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_cross_entropy(shape, labels, weighted):
    rng = np.random.default_rng(4)
    target = rng.integers(0, shape[-1], shape[:-1]) if labels else probabilities(rng, shape)
    weights = rng.uniform(0.2, 2.0, shape[0]) if weighted else None
    check_gradient(
        partial(losses.cross_entropy, target=target, weights=weights), rng.normal(size=shape)
    )


def test_the_gradient_belongs_to_the_value_where_probabilities_sum_to_1_only_roughly():
    rng = np.random.default_rng(7)
    target = probabilities(rng, (5, 4)) * rng.uniform(0.9995, 1.0005, (5, 1))
    check_gradient(partial(losses.cross_entropy, target=target), rng.normal(size=(5, 4)))


def test_the_gradient_check_can_fail():
    with pytest.raises(AssertionError):
        check_gradient(
            lambda Y: (losses.mse(Y, np.zeros(3))[0], losses.mse(Y, np.zeros(3))[1] * (1 + 1e-6)),
            np.ones(3),
        )


def test_slopes_at_kinks():
    zero = np.zeros((2, 1))
    assert np.array_equal(losses.mae(zero, zero)[1], zero)
    assert np.array_equal(losses.huber(zero + 1.0, zero)[1], zero + 0.5)


# --------------------------------------------------------------------------- properties


def every_loss(rng, m):
    """(loss, Y, target) for m samples.

    The real losses, and cross_entropy with labels and probabilities.
    """
    for loss in REAL:
        yield (loss, *draw(loss, (m, 3), rng))
    for shape in ((m, 4), (m, 2, 4)):
        yield losses.cross_entropy, rng.normal(size=shape), rng.integers(0, 4, shape[:-1])
        yield losses.cross_entropy, rng.normal(size=shape), probabilities(rng, shape)


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
)
def test_a_weight_is_a_repetition(seed, counts):
    for loss, Y, target in every_loss(np.random.default_rng(seed), len(counts)):
        value, dY = loss(Y, target, weights=np.array(counts))
        repeated, dY_repeated = loss(
            np.repeat(Y, counts, axis=0), np.repeat(target, counts, axis=0)
        )
        assert_close(value, repeated, rtol=1e-12)
        owner = np.repeat(np.arange(len(counts)), counts)
        total = np.stack([dY_repeated[owner == i].sum(axis=0) for i in range(len(counts))])
        assert_close(dY, total, rtol=1e-12, atol=1e-15)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 5))
def test_the_value_is_a_mean_over_samples(seed, m):
    for loss, Y, target in every_loss(np.random.default_rng(seed), m):
        value, dY = loss(Y, target)
        doubled, dY_doubled = loss(np.concatenate([Y, Y]), np.concatenate([target, target]))
        assert_close(doubled, value, rtol=1e-12)
        assert_close(dY_doubled[:m], 0.5 * dY, rtol=1e-12, atol=1e-16)
        alone = [float(loss(Y[i : i + 1], target[i : i + 1])[0]) for i in range(m)]
        assert float(value) == pytest.approx(np.mean(alone), rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 7.0]))
def test_the_scale_of_weights_does_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1.0, 3)
    for loss, Y, target in every_loss(rng, 3):
        value, dY = loss(Y, target, weights=weights)
        scaled, dY_scaled = loss(Y, target, weights=scale * weights)
        assert_close(scaled, value, rtol=1e-12)
        assert_close(dY_scaled, dY, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "size", [np.float32(1e-37), np.float32(3e38), 5e-324, 1e-300, 1e306, 2**62], ids=repr
)
def test_weights_at_the_ends_of_their_dtype(xp, size, dtype):
    """Theirs, which need not be that of the outputs."""
    Y = from_host(xp, np.array([[1.0], [3.0]], dtype))
    value, dY = losses.mse(Y, 0.0 * Y, weights=from_host(xp, np.array([size, size])))
    assert_close(value, from_host(xp, np.asarray(5.0, dtype)), rtol=1e-6)
    assert_close(dY, from_host(xp, np.array([[1.0], [3.0]], dtype)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weights", [[1e306, 1e-300], [1e306, 0.0], [1e-9, 5e-324], [1.0, 1e-60]])
def test_a_weight_that_is_nothing_beside_another(xp, weights, dtype):
    for loss, Y, target in every_loss(np.random.default_rng(0), 2):
        Y, target = Y.astype(dtype), target.astype(dtype if target.dtype == float else target.dtype)
        value, dY = loss(
            from_host(xp, Y), from_host(xp, target), weights=np.array(weights).tolist()
        )
        alone, slope = loss(Y[:1], target[:1])
        assert float(value) == pytest.approx(float(alone), rel=1e-6)
        np.testing.assert_allclose(to_numpy(dY)[:1], slope, rtol=1e-5)
        assert np.all(np.abs(to_numpy(dY)[1:]) <= 1e-50)


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_labels_are_one_hot_probabilities(xp, shape, dtype):
    rng = np.random.default_rng(5)
    Y, labels = rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])
    by_label = losses.cross_entropy(from_host(xp, Y), from_host(xp, labels.astype(dtype)))
    by_row = losses.cross_entropy(from_host(xp, Y), from_host(xp, np.eye(shape[-1])[labels]))
    for a, b in zip(by_label, by_row, strict=True):
        assert_close(a, b, rtol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_more_classes_than_the_labels_dtype_can_count(dtype):
    _, dY = losses.cross_entropy(np.zeros((1, 300)), np.array([0], dtype))
    assert np.argwhere(dY[0] < 0).ravel().tolist() == [0]


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits(xp, size):
    Y = np.array([[size, -size, 0.0], [-size, size, size]], np.float32)
    for target, desired in (
        ([0, 1], [0.0, math.log(2.0)]),
        ([2, 0], [size, 2 * size + math.log(2.0)]),
    ):
        value, dY = losses.cross_entropy(from_host(xp, Y), from_host(xp, np.array(target)))
        assert_close(value, from_host(xp, np.asarray(np.mean(desired), np.float32)), rtol=1e-6)
        assert np.isfinite(to_numpy(dY)).all()
    target = np.array([[1, 0, 0], [1, 1, 0]], np.float32)
    value, dY = losses.binary_cross_entropy(from_host(xp, Y), from_host(xp, target))
    assert_close(
        value, from_host(xp, np.asarray((math.log(2.0) + 2 * size) / 6, np.float32)), rtol=1e-6
    )
    assert_close(
        dY,
        from_host(xp, np.array([[0, 0, 0.5], [-1, 0, 1]], np.float32) / np.float32(6)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("target", "desired"),
    [
        ([1, 0, 0], 0.0),
        ([0, 0, 1], 1.0),
        ([0.5, 0.5, 0], 1.0),
        ([0, 1, 0], math.inf),
        ([0.25, 0.75, 0], 1.5),
    ],
)
def test_logits_whose_difference_is_larger_than_any_number(xp, dtype, target, desired):
    """The loss of (y, -y, 0) is ``2 y t_2 + y t_3``, and its derivative (1, 0, 0) - t."""
    y, t = 0.6 * np.finfo(dtype).max, np.array([target], dtype)
    value, dY = losses.cross_entropy(
        from_host(xp, np.array([[y, -y, 0.0]], dtype)), from_host(xp, t)
    )
    assert float(value) == pytest.approx(desired * y, rel=1e-6)
    assert_close(dY, from_host(xp, np.array([[1, 0, 0]], dtype) - t), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loss_larger_than_any_number_has_its_slope(xp, dtype):
    y = 0.9 * np.finfo(dtype).max
    Y = from_host(xp, np.array([[y], [1.0], [0.0]], dtype))
    with np.errstate(over="ignore"):
        value, dY = losses.mse(Y, 0.0 * Y)
    assert float(value) == math.inf
    assert_close(dY, from_host(xp, np.array([[y / 1.5], [1 / 1.5], [0.0]], dtype)), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.mse, losses.cross_entropy])
def test_what_has_weight_0_is_not_there_even_if_its_loss_is_infinite(xp, loss):
    Y = np.array([[[3e38, -3e38], [1.0, 2.0]], [[-1.0, 2.0], [3e38, 0.0]]], np.float32)
    target = np.zeros_like(Y) if loss is losses.mse else np.ones((2, 2), int)
    with np.errstate(over="ignore"):
        value, dY = loss(
            from_host(xp, Y),
            from_host(xp, target),
            weights=from_host(xp, np.array([[0.0, 1.0], [3.0, 0.0]], np.float32)),
        )
    there, slope = loss(Y[[0, 1], [1, 0]], target[[0, 1], [1, 0]], weights=[1.0, 3.0])
    assert_close(value, there, rtol=1e-6, xp=xp)
    assert_close(
        dY, np.array([[0 * slope[0], slope[0]], [slope[1], 0 * slope[1]]]), rtol=1e-6, xp=xp
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_weighted_mean_that_is_a_number_is_found_though_the_sum_is_none(xp, dtype):
    y = 0.3 * math.sqrt(np.finfo(dtype).max)
    Y = from_host(xp, np.full((2, 30), y, dtype))
    value, _ = losses.mse(Y, 0.0 * Y, weights=from_host(xp, np.array([1.0, 3.0], dtype)))
    assert float(value) == pytest.approx(y * y, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "desired"), [(losses.mse, 1.0), (losses.huber, 0.5), (losses.mae, None)]
)
def test_a_mean_that_is_a_number_is_found_though_the_sum_is_none(xp, loss, desired, dtype):
    """Where looking costs nothing: on a GPU it is inf."""
    largest = float(np.finfo(dtype).max)
    y = 0.9 * largest if desired is None else math.sqrt(0.9 * largest)
    Y, options = (
        from_host(xp, np.full((2, 30), y, dtype)),
        {"delta": 2 * y} if loss is losses.huber else {},
    )
    free = losses.looks_are_free(xp)
    with np.errstate() if free else np.errstate(over="ignore"):
        value, dY = loss(Y, 0.0 * Y, **options)
    if free:
        assert float(value) == pytest.approx((desired or 1.0) * 0.9 * largest, rel=1e-5)
    assert bool(xp.all(xp.isfinite(dY)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_has_weight_0_has_no_slope_even_if_its_error_is_infinite(xp, dtype):
    y = 0.9 * np.finfo(dtype).max
    Y, weights = (from_host(xp, np.array(a, dtype)) for a in ([[y, 1.0], [2.0, 4.0]], [0.0, 2.0]))
    with np.errstate(over="ignore"):
        value, dY = losses.mse(
            Y, from_host(xp, np.array([[-y, 0.0], [1.0, 1.0]], dtype)), weights=weights
        )
    assert float(value) == 5.0
    assert_close(dY, from_host(xp, np.array([[0.0, 0.0], [1.0, 3.0]], dtype)), rtol=0)


def test_a_small_binary_cross_entropy_keeps_its_digits():
    value, _ = losses.binary_cross_entropy(np.array([[30.0], [-30.0]]), np.array([[1.0], [0.0]]))
    assert_close(value, np.asarray(math.log1p(math.exp(-30.0))), rtol=1e-14)


# ----------------------------------------------------------------- weights of positions


@pytest.mark.parametrize("loss", [losses.mse, losses.huber, losses.cross_entropy])
def test_weights_of_positions(loss, xp):
    """The mean is that over all positions as samples, and what has weight 0 can be any
    admissible target."""
    rng = np.random.default_rng(8)
    Y, w = (
        rng.normal(size=(3, 4, 5)),
        rng.uniform(0.5, 2.0, (3, 4)) * (rng.uniform(size=(3, 4)) < 0.6),
    )
    target = (
        rng.integers(0, 5, (3, 4)) if loss is losses.cross_entropy else rng.normal(size=Y.shape)
    )
    value, dY = loss(from_host(xp, Y), from_host(xp, target), weights=from_host(xp, w))
    flat, dY_flat = loss(Y.reshape(12, 5), target.reshape(12, *target.shape[2:]), weights=w.ravel())
    assert_close(value, flat, rtol=1e-14, xp=xp)
    assert_close(dY, dY_flat.reshape(3, 4, 5), rtol=1e-14, xp=xp)
    hidden = np.where((w > 0).reshape(3, 4, *[1] * (target.ndim - 2)), target, 0)
    assert float(loss(Y, hidden, weights=w)[0]) == float(loss(Y, target, weights=w)[0])
    check_gradient(partial(loss, target=target, weights=w), Y)
    assert float(loss(Y, target, weights=np.ones((3, 4)))[0]) == pytest.approx(
        float(loss(Y, target)[0]), rel=1e-14
    )
    with pytest.raises(
        InputError, match=r"one for each of the 3 samples, or of the positions \(3, 4\) is needed"
    ):
        loss(Y, target, weights=w.T)


# ----------------------------------------------------------------------------- refusals

Y21 = np.ones((2, 1))
Y23 = np.zeros((2, 3))


@pytest.mark.parametrize(
    "loss", [losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy]
)
@pytest.mark.parametrize(
    ("Y", "target", "words"),
    [
        (Y21, np.ones(2), r"reshape it, target.reshape\(\(2, 1\)\)"),
        (np.ones(2), Y21, "nothing is broadcast"),
        (Y21, np.ones((3, 1)), r"target has shape \(3, 1\), Y has \(2, 1\)"),
        (Y21, np.asarray(1.0), "nothing is broadcast"),
        (Y21.astype(int), Y21, "Y has dtype int64"),
        (Y21.astype(np.float16), Y21, "Y has dtype float16"),
        (Y21.astype(complex), Y21, "Y has dtype complex128"),
        (np.ones((0, 1)), np.ones((0, 1)), "at least one sample"),
        (np.asarray(1.0), np.asarray(1.0), "at least one sample"),
        (Y21, Y21 * np.nan, "target has 2 entries that are NaN"),
        (Y21, Y21 * 1j, "target has dtype complex128"),
        (Y21, np.ma.array(Y21, mask=[[0], [1]]), "masked"),
        (Y21, [[1.0], [1.0, 2.0]], "cannot be read as an array"),
    ],
)
def test_bad_real_targets(loss, Y, target, words):
    with pytest.raises(InputError, match=words):
        loss(Y, target)


@pytest.mark.parametrize(
    ("Y", "target", "words"),
    [
        (Y23, np.array([0, 3]), r"between 0 and 3; with 3 classes they are 0, ..., 2"),
        (Y23, np.array([-1, 2]), "between -1 and 2"),
        (Y23, np.array([0, 1, 2]), r"target has shape \(3,\)"),
        (Y23, np.array([[0], [1]]), r"target has shape \(2, 1\)"),
        (Y23, np.array([0.0, 1.0]), "labels have dtype float64"),
        (Y23, np.array([True, False]), "labels have dtype bool"),
        (Y23, [0.0, 1.0], "labels have dtype float64"),
        (Y23, np.array(["a", "b"]), "labels have dtype <U1"),
        (Y23, np.array([0, 1j]), "labels have dtype complex128"),
        (Y23, np.ma.array([0, 1], mask=[0, 1]), "masked"),
        (Y23, [[0], [1, 2]], "cannot be read as an array"),
        (Y23, np.full((2, 3), 0.5), "nonnegative, with sum 1"),
        (Y23, np.array([[1.5, -0.5, 0.0], [1.0, 0.0, 0.0]]), "nonnegative, with sum 1"),
        (Y23, np.full((2, 3), np.nan), "NaN"),
        (np.zeros(3), np.array([1, 2, 0]), "takes logits"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one sample"),
        (Y23.astype(int), np.array([0, 1]), "Y has dtype int64"),
    ],
)
def test_bad_cross_entropy_targets(Y, target, words):
    with pytest.raises(InputError, match=words):
        losses.cross_entropy(Y, target)


@pytest.mark.parametrize("target", [-0.1, 1.1])
def test_binary_targets_outside_the_unit_interval(target):
    with pytest.raises(InputError, match=r"between 0 and 1; labels -1, 1 become \(1 \+ t\) / 2"):
        losses.binary_cross_entropy(Y21, np.full((2, 1), target))


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan, "1", None, np.ones(2)])
def test_bad_delta(delta):
    with pytest.raises(InputError, match="delta is"):
        losses.huber(Y21, Y21, delta=delta)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(3), r"weights has shape \(3,\); one for each of the 2 samples"),
        (np.ones((2, 1)), r"weights has shape \(2, 1\)"),
        (1.0, r"weights has shape \(\)"),
        (np.array([1.0, -1.0]), "between -1.0 and 1.0; they must be nonnegative"),
        (np.zeros(2), "not all zero"),
        (np.array([1.0, np.inf]), "weights has 1 entries"),
    ],
)
def test_bad_weights(weights, words):
    for loss, target in ((losses.mse, Y21), (losses.cross_entropy, np.array([0, 0]))):
        with pytest.raises(InputError, match=words):
            loss(Y21, target, weights=weights)


def test_two_libraries_in_one_call():
    there = array_api_strict.asarray(Y21)
    labels = array_api_strict.asarray(np.array([0, 0]))
    for call in (
        lambda: losses.mse(Y21, there),
        lambda: losses.mse(there, Y21),
        lambda: losses.mse(Y21, Y21, weights=there[:, 0]),
        lambda: losses.cross_entropy(Y21, labels),
    ):
        with pytest.raises(DeviceMismatchError):
            call()


def test_Y_must_be_an_array():
    with pytest.raises(InputError, match="Y is list"):
        losses.mse([[1.0]], np.ones((1, 1)))


# ----------------------------------------------------------------------------- on a GPU


def test_without_looking_at_values_the_results_are_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    cases = list(every_loss(rng, 4))
    weights = rng.uniform(0.1, 1.0, 4)
    looked = [loss(Y, target, weights=weights) for loss, Y, target in cases]
    monkeypatch.setattr(losses, "looks_are_free", lambda xp: False)
    monkeypatch.setattr(losses.backend, "as_real", None)  # it looks for NaN
    for (loss, Y, target), (value, dY) in zip(cases, looked, strict=True):
        unseen = loss(Y, target, weights=weights)
        assert_close(unseen[0], value, rtol=0)
        assert_close(unseen[1], dY, rtol=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_shows_where_it_is_not_looked_at(monkeypatch, label):
    monkeypatch.setattr(losses, "looks_are_free", lambda xp: False)
    value, dY = losses.cross_entropy(Y23, np.array([1, label]))
    assert math.isnan(float(value))
    assert np.isnan(dY).all(axis=1).tolist() == [False, True]
