"""Lipschitz constants: proven, never beaten, and near what is attained."""

from fractions import Fraction

import boxes
import numpy as np
import pytest
from boxes import measured, model_of
from gains import P, Q, angles, attained, monotone, random, weights
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, activations, robustness
from pyidl.errors import InputError
from pyidl.robustness.lipschitz import Angles
from pyidl.wellposed import Monotone, SpectralNorm, Unconstrained


def test_row_sums_and_column_sums():
    model = boxes.drawn("tanh measure", 7, 0)
    S = robustness.sensitivity(model)
    for norm, axis in (("inf", 1), (1, 0)):
        found = robustness.lipschitz(model, norm)
        assert S.sum(axis=axis).max() <= found <= S.sum(axis=axis).max() * (1 + 1e-13)


@boxes.FEW
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 9, 20]), st.data())
def test_no_search_finds_more(seed, n, data):
    kind = data.draw(st.sampled_from(sorted(boxes.kinds(n))))
    model, rng = boxes.drawn(kind, n, seed), np.random.default_rng(seed)
    gamma = robustness.lipschitz(model, 2)
    J = robustness.jacobian(boxes.spelled_out(model), rng.normal(size=(20, P)))[:, -Q:]
    assert np.linalg.norm(J, 2, axis=(1, 2)).max() <= gamma * (1 + 1e-8)  # its solves
    if model.activation.slope_range is not None and model.activation.slope_range[0] == 0:
        assert attained(model, rng, tries=3) <= gamma * (1 + 1e-12)


def test_it_is_near_what_is_attained_and_nearer_than_norms():
    rng, near, gained = np.random.default_rng(0), [], []
    for k in range(12):
        phi = (activations.relu, activations.tanh)[k % 2]
        model = random(rng, 8, measured(rng, 8, phi), phi)
        gamma = robustness.lipschitz(model, 2)
        near.append(gamma / attained(model, rng, 10))
        assert near[-1] >= 1 - 1e-12
        other = random(rng, 8, monotone(rng, 8), constraint=Monotone(0.2))
        A, B, C, D = weights(other)
        m = 1 - np.linalg.eigvalsh(0.5 * (A + A.T))[-1]
        norms = np.linalg.norm(C, 2) * np.linalg.norm(B, 2) / m + np.linalg.norm(D, 2)
        gained.append(norms / robustness.lipschitz(other, 2))
    assert np.median(near) < 1.2
    assert min(gained) > 1
    assert np.median(gained) > 2


def test_by_hand():
    """``y = c x``, ``x = relu(-a x + b u)`` has the slope ``c b / (1 + a)``; without A, c b."""
    for a, b, c, d in [(3.0, 2.0, 5.0, 0.0), (0.0, 2.0, 5.0, 1.0), (-0.5, 1.0, 1.0, -1.0)]:
        model = model_of([[-a]], [[b]], [[c]], [[d]])
        want = max(abs(c * b / (1 + a) + d), abs(d))
        for norm in ("inf", 1):
            assert robustness.lipschitz(model, norm) >= want
        found = robustness.lipschitz(model, 2)
        assert want <= found <= want * (1 + 1e-3)


def test_slopes_that_are_not_one():
    """phi(z) = 5 z at most: the same as a model with five times A and C."""
    rng = np.random.default_rng(1)
    A = measured(rng, 6, boxes.STEEP)
    model = random(rng, 6, A, boxes.STEEP)
    _, B, C, D = weights(model)
    same = model_of(5 * A, B, 5 * C, D)
    np.testing.assert_allclose(
        robustness.lipschitz(model, 2), robustness.lipschitz(same, 2), rtol=1e-4
    )


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_in_any_units(scale):
    rng = np.random.default_rng(0)
    model = random(rng, 6, monotone(rng, 6), constraint=Monotone(0.2))
    A, B, C, D = weights(model)
    other = model_of(A, B / scale, C * scale**3, D * scale**2, constraint=Monotone(0.2))
    np.testing.assert_allclose(
        robustness.lipschitz(other, 2), robustness.lipschitz(model, 2) * scale**2, rtol=1e-3
    )


def test_the_derivative():
    rng = np.random.default_rng(0)
    for model in (boxes.drawn("relu measure", 9, 0), boxes.drawn("monotone", 9, 1)):
        found = angles(model)
        lam = list(found.starts())[-1] * np.exp(0.01 * rng.normal(size=9))
        for t in (0.0, 0.1):
            slope, way = found.least(lam, t)[1], rng.normal(size=9)
            ahead, behind = (found.least(lam * np.exp(h * way), t)[0] for h in (1e-6, -1e-6))
            np.testing.assert_allclose((ahead - behind) / 2e-6, slope @ way, rtol=1e-6)


def test_the_proof_is_one():
    """Below the least gamma F has a negative eigenvalue, and nothing is proven; above, it is."""
    for kind in ("relu measure", "monotone", "monotone tanh"):
        found = angles(boxes.drawn(kind, 8, 0))
        gamma, lam = found.best()
        assert found.holds(lam, gamma * (1 + 1e-9))
        assert not found.holds(lam, gamma * (1 - 1e-9))
        with np.errstate(invalid="ignore"):
            assert not found.holds(-lam, gamma * 2)
    wrong = angles(boxes.drawn("relu measure", 8, 0))
    vague = Angles(wrong.A, wrong.B, wrong.C, wrong.D, wrong.off + 1e-3, wrong.scale)
    gamma, lam = vague.best()
    assert not vague.holds(lam, gamma * (1 + 1e-9))  # what A may be is counted
    assert vague.proven() > wrong.proven()


def test_the_last_bit():
    """Without states gamma is |D|, and a row of D has the norm that Pythagoras gives it."""
    for d in ([3.0, 4.0], [1.0, 1.0], [0.1, 0.7]):
        model = model_of([[0.0]], [[0.0, 0.0]], [[0.0]], [d])
        assert Fraction(robustness.lipschitz(model, 2)) ** 2 >= sum(Fraction(x) ** 2 for x in d)
    assert robustness.lipschitz(model_of([[0.5]], [[0.0]], [[1.0]]), 2) == 0


def test_activations_that_fall_have_the_norms():
    rng = np.random.default_rng(0)
    A = SpectralNorm(0.8).project({"A": rng.normal(size=(8, 8))}, activations.sin)["A"]
    model = random(rng, 8, A, activations.sin, constraint=SpectralNorm(0.8))
    A, B, C, D = weights(model)
    norm = lambda W: np.linalg.norm(W, 2)  # noqa: E731
    want = norm(C) * norm(B) / (1 - norm(A)) + norm(D)
    np.testing.assert_allclose(robustness.lipschitz(model, 2), want, rtol=1e-10)


def test_what_is_refused():
    model = ImplicitModel(2, 2, 3, rng=0)
    for wrong in ("2", 3, None, True, np.inf):
        with pytest.raises(InputError, match="norm"):
            robustness.lipschitz(model, wrong)
    with pytest.raises(InputError, match="model"):
        robustness.lipschitz("model")
    loose = model_of(3 * np.eye(3), np.eye(3), constraint=Unconstrained())
    for norm in ("inf", 1, 2):
        with pytest.raises(InputError, match="not certified"):
            robustness.lipschitz(loose, norm)
    rng = np.random.default_rng(0)
    other = random(rng, 9, monotone(rng, 9, 0.05), constraint=Monotone(0.05))
    with pytest.raises(InputError, match="norm=2"):
        robustness.lipschitz(other, "inf")
    assert robustness.lipschitz(other, 2) < np.inf
