"""Every bound of one implicit model against corners, faces, random points and an adversary.

States, pre-activations, outputs and margins; each quantity is driven to its largest and
least value by its own gradient.
"""

import boxes
import numpy as np
import pytest
from helpers import host
from hypothesis import given
from hypothesis import strategies as st

from pyidl import robustness
from pyidl.errors import InputError

WAYS = (("box", 5), ("affine", 1), ("affine", 5))
KINDS = tuple(boxes.kinds(5))
EUCLIDEAN = ("monotone", "spectral", "softmax")


def searched(model, lo, hi, rng, ways=WAYS, **more):
    """Violations of each kind, summed over ways of bounding; how many values were tried."""
    labels = rng.integers(0, len(model.params["C"]), len(lo))
    _, values, slack = boxes.attained(model, lo, hi, rng, **more)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slack))
    total, ways_that_did = {}, 0
    for method, rounds in ways:
        options = {"method": method, "rounds": rounds}
        try:
            found = robustness.bounds(model, lo, hi, **options)
        except InputError as error:
            assert "boxes need" in str(error)  # noqa: PT017
            continue
        margins = robustness.margins(model, lo, hi, labels, **options)
        bad = boxes.violations(model, found, margins, labels, values, slack)
        total = {key: total.get(key, 0) + count for key, count in bad.items()}
        ways_that_did += 1
    assert ways_that_did >= len(ways) - 1
    return total, values.size


DRAWN = [(kind, n) for n in (1, 2, 5, 20) for kind in KINDS if kind in boxes.kinds(n)]
"""Blocks need several states."""


@pytest.mark.parametrize(("kind", "n"), DRAWN)
def test_nothing_lies_outside(kind, n):
    rng = np.random.default_rng([n, KINDS.index(kind)])
    model = boxes.drawn(kind, n, seed=n)
    box = boxes.boxes(rng, 2, 3, 10.0 ** rng.uniform(-4, 1))
    bad, _ = searched(model, *box, rng, count=16, most=12)
    assert not any(bad.values()), bad


@pytest.mark.parametrize("kind", ["relu measure", "gelu", "blocks", "rank", "monotone"])
@pytest.mark.parametrize("n", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_nothing_lies_outside_of_wide_models(kind, n):
    rng, model = np.random.default_rng(n), boxes.drawn(kind, n, seed=n)
    lo, hi = boxes.boxes(rng, 2, 3, 0.3)
    bad, _ = searched(model, lo, hi, rng, WAYS[:2], count=20, most=12, steps=1)
    assert not any(bad.values()), bad


@pytest.mark.parametrize("kind", ["relu measure", "tanh measure", "silu", "sin", "blocks", "rank"])
@pytest.mark.parametrize("inputs", [1e-30, 1e12])
@pytest.mark.parametrize("outputs", [1e-30, 1e30])
def test_scales(kind, inputs, outputs):
    """Inputs of a scale, and weights that bring them back; outputs of another."""
    rng = np.random.default_rng(0)
    model = boxes.drawn(kind, 5, seed=1)
    params = dict(model.params)
    params["B"] = params["B"] / inputs
    params["D"] = params["D"] * (outputs / inputs)
    for key in ("C", "d"):
        params[key] = params[key] * outputs
    model.params = params
    lo, hi = boxes.boxes(rng, 3, 3, 0.3 * inputs, inputs)
    radius = 0.5 * inputs * rng.random(lo.shape)
    bad, _ = searched(model, lo - radius, hi + radius, rng)
    assert not any(bad.values()), bad
    wide = robustness.bounds(model, lo - radius, hi + radius).width
    assert np.median(wide) < 100 * outputs


@pytest.mark.parametrize("kind", ["relu measure", "leaky_relu(0.3) measure", "abs", "perron"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_of_a_homogeneous_model(kind, scale):
    """Inputs, states and outputs all of that size."""
    rng = np.random.default_rng(1)
    model = boxes.drawn(kind, 5, seed=1)
    model.params = {key: a * scale if key in ("b", "d") else a for key, a in model.params.items()}
    lo, hi = boxes.boxes(rng, 3, 3, 0.5 * scale, scale)
    bad, _ = searched(model, lo, hi, rng)
    assert not any(bad.values()), bad
    assert np.median(robustness.bounds(model, lo, hi).width) < 1e3 * scale


@pytest.mark.parametrize("kind", ["relu measure", "tanh measure", "abs", "blocks", "monotone"])
def test_what_overflows_is_unbounded_and_leaves_others_alone(kind):
    rng, model = np.random.default_rng(2), boxes.drawn(kind, 5, seed=2)
    lo, hi = boxes.boxes(rng, 3, 3, 0.3)
    alone = robustness.bounds(model, lo[:1], hi[:1])
    lo[1], hi[1] = -1.7e308, 1.7e308
    found = robustness.bounds(model, lo, hi)
    for name in ("states", "pre", "outputs"):
        low, high = getattr(found, name)
        assert not np.any(np.isnan(low) | np.isnan(high))
        if name == "pre":
            assert np.all(np.isinf(low[1]) & np.isinf(high[1]))
        for one, few in zip(getattr(found, name), getattr(alone, name), strict=True):
            np.testing.assert_allclose(one[0], few[0], atol=1e-7)
    assert np.all(np.isposinf(robustness.margins(model, lo, hi, [0, 0, 0])[1, 1:]))
    assert not robustness.certified(model, lo, [0, 0, 0], 1e300)[1]


@pytest.mark.parametrize("kind", ["relu measure", "silu", "rank", "blocks", "spectral"])
def test_single_precision_models_and_their_own_answers(kind):
    """Exact statements about float32 parameters; the model's answers, up to their error."""
    rng = np.random.default_rng(3)
    for seed in range(4):
        model = boxes.drawn(kind, 20, seed=seed, dtype="float32")
        lo, hi = boxes.boxes(rng, 3, 3, 0.3)
        bad, _ = searched(model, lo, hi, rng)
        assert not any(bad.values()), bad
        U = boxes.points(rng, lo, hi, 40)
        rows = U.reshape(-1, 3)
        solution = model.equilibrium(rows.astype(np.float32))
        # What the answer is off by is proven from its own residual, in float64.
        twin = boxes.spelled_out(model)
        X, p = host(solution.value).astype(float), twin.params
        pre = X @ p["A"].T + rows @ p["B"].T + p["b"]
        off = model.certificate().entrywise(np.abs(X - twin.activation(pre)) + 1e-13)
        assert np.max(off) < 0.1
        for method, rounds in WAYS[1:]:
            found = robustness.bounds(model, lo, hi, method=method, rounds=rounds)
            shape = (3, 40, -1)
            assert boxes.outside(X.reshape(shape), off.reshape(shape), found.states) == 0
            Y = host(model.predict(rows.astype(np.float32))).astype(float)
            blur = 1e-5 * (1 + np.abs(Y))  # of a product in float32
            slack = (off @ np.abs(p["C"][-3:]).T + blur).reshape(shape)
            assert boxes.outside(Y.reshape(shape), slack, found.outputs) == 0


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 10.0]),
)
def test_no_model_is_found_with_a_value_outside(kind, n, seed, eps):
    if kind in boxes.kinds(n):
        rng = np.random.default_rng(seed)
        model = boxes.drawn(kind, n, seed, scale=10.0 ** rng.uniform(-1, 1))
        bad, _ = searched(model, *boxes.boxes(rng, 2, 3, eps), rng, count=16, most=8)
        assert not any(bad.values()), bad
