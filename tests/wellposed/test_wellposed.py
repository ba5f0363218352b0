"""The projection is exact, and no search finds a counterexample to a certificate."""

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from pyidl import InfNorm, activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers import Fallback, Picard
from pyidl.solvers.problem import Affine
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.infnorm import absolute_row_sums
from pyidl.wellposed.projections import l1_ball_rows, measure_rows, weighted_l1_ball_rows

BUILT_IN = [activations.named(name) for name in activations.builtin.BUILT_IN]

# --------------------------------------------------------------------------- projection


def adversarial(rng, n, k):
    """Rows that a careless projection gets wrong."""
    kind = rng.integers(0, 8)
    A = rng.normal(size=(n, k))
    if kind == 1:
        A = np.sign(A)  # ties
    elif kind == 2:
        A[:, 0] *= 1e6
    elif kind == 3:
        A *= rng.random((n, k)) < 0.2  # zeros
    elif kind == 4:
        A = np.outer(rng.normal(size=n), rng.normal(size=k))
    elif kind == 5:
        A /= np.abs(A).sum(axis=1, keepdims=True)  # on the boundary of the unit ball
    elif kind == 6:
        A *= 10.0 ** rng.integers(-30, 30, size=(n, 1))
    elif kind == 7:
        A = rng.standard_cauchy(size=(n, k))
    return A


def by_root_finding(row, radius):
    """Oracle: theta = max |a| - t, with t the root of sum (|a| - max |a| + t)_+ = radius."""
    below = np.abs(row) - np.abs(row).max()
    if np.abs(row).sum() <= radius:
        return row
    t = brentq(
        lambda t: np.maximum(below + t, 0).sum() - radius, 0, radius, xtol=1e-300, rtol=1e-15
    )
    return np.sign(row) * np.maximum(below + t, 0)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 60), st.floats(0.01, 100))
def test_projection_is_exact(seed, n, k, radius):
    A = adversarial(np.random.default_rng(seed), n, k)
    P = l1_ball_rows(A, radius)
    for row, projected in zip(A, P):
        np.testing.assert_allclose(
            projected, by_root_finding(row, radius), rtol=1e-9, atol=1e-9 * max(radius, 1e-3)
        )


@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.integers(1, 60),
    st.floats(0.01, 100),
    st.sampled_from(["float32", "float64"]),
)
def test_projection_is_feasible_idempotent_and_leaves_feasible_rows_alone(
    seed, n, k, radius, dtype
):
    A = adversarial(np.random.default_rng(seed), n, k).astype(dtype)
    P = l1_ball_rows(A, radius)
    assert P.dtype == dtype
    sums = np.abs(P).sum(axis=1, dtype=np.float64)
    assert np.all(sums <= radius)
    assert l1_ball_rows(P, radius) is P
    feasible = np.abs(A).sum(axis=1, dtype=np.float64) <= radius
    assert np.array_equal(P[feasible], A[feasible])
    assert np.all(sums[~feasible] >= radius * (1 - 1e-5))
    assert np.all(P * A >= 0)


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_nothing_feasible_is_nearer(seed, k):
    rng = np.random.default_rng(seed)
    a, radius = adversarial(rng, 1, k), 1.0
    p = l1_ball_rows(a, radius)
    others = np.concatenate(
        [p + 10.0 ** rng.uniform(-6, 1) * rng.normal(size=(100, k)), rng.normal(size=(100, k))]
    )
    others *= np.minimum(1, radius / np.maximum(np.abs(others).sum(axis=1, keepdims=True), 1e-300))
    others[:100] = 0.5 * (others[:100] + p)
    distance = np.linalg.norm(a - p)
    assert np.all(np.linalg.norm(a - others, axis=1) >= distance * (1 - 1e-12))


@given(st.integers(0, 10**6))
def test_projection_does_not_expand(seed):
    rng = np.random.default_rng(seed)
    A, B = adversarial(rng, 5, 9), adversarial(rng, 5, 9)
    assert np.linalg.norm(l1_ball_rows(A, 1.0) - l1_ball_rows(B, 1.0)) <= np.linalg.norm(A - B) * (
        1 + 1e-12
    )


def test_a_cheaper_rescaling_is_not_the_projection():
    """The broken twin, which divides by the norm.

    It is feasible, but the test above must know it from the nearest point.
    """
    A = np.array([[3.0, 0.1]])
    assert np.linalg.norm(A - A / 3.1) > np.linalg.norm(A - l1_ball_rows(A, 1.0)) * (1 + 1e-4)


def test_projection_everywhere(xp):
    A = adversarial(np.random.default_rng(0), 6, 40)
    radii = np.linspace(0.1, 5, 6)
    rows = [by_root_finding(row, radius) for row, radius in zip(A, radii)]
    assert_close(
        l1_ball_rows(from_host(xp, A), radii), np.stack(rows), rtol=1e-9, atol=1e-12, xp=xp
    )


def test_bounds_and_weights_may_live_with_the_matrix(xp):
    rng = np.random.default_rng(0)
    A, bound, w = rng.normal(size=(6, 6)), rng.uniform(0.1, 1, 6), rng.uniform(1, 2, 6)
    for project in (weighted_l1_ball_rows, measure_rows):
        found = project(*(from_host(xp, a) for a in (A, bound, w)))
        assert_close(found, project(A, bound, w), rtol=1e-12, atol=1e-15, xp=xp)


def test_projection_of_a_large_matrix():
    A = np.random.default_rng(0).normal(size=(3000, 3000)).astype(np.float32)
    P = l1_ball_rows(A, 0.99)
    assert np.abs(P).sum(axis=1, dtype=np.float64).max() <= 0.99


@pytest.mark.parametrize(
    ("A", "radius"),
    [(np.ones(3), 1.0), (np.ones((2, 2)), 0.0), (np.ones((2, 2)), -1.0), (np.ones((2, 2)), np.nan)],
)
def test_bad_projections_are_refused(A, radius):
    with pytest.raises(InputError):
        l1_ball_rows(A, radius)


# ------------------------------------------------------------------------------ InfNorm


@pytest.mark.parametrize("kappa", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_kappa_must_make_a_contraction(kappa):
    with pytest.raises(InputError, match="kappa"):
        InfNorm(kappa)


@pytest.mark.parametrize(
    "activation",
    [*BUILT_IN, Blocks((activations.relu, 3), (activations.silu, 3), (activations.sigmoid, 4))],
)
def test_the_radius_follows_the_lipschitz_constant_row_by_row(activation):
    A = 10 * np.random.default_rng(0).normal(size=(10, 10))
    params = InfNorm(0.9).project({"A": A, "B": A}, activation)
    assert params["B"] is A
    np.testing.assert_allclose(
        np.array(activation.row_lipschitz(10)) * absolute_row_sums(params), 0.9, rtol=1e-9
    )
    assert InfNorm(0.9).contains(params, activation)
    assert not InfNorm(0.899).contains(params, activation)
    assert InfNorm(0.9).certificate(params, activation).contraction == pytest.approx(0.9, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["float32", "float64"]))
def test_factors_are_made_feasible(seed, k, dtype):
    rng = np.random.default_rng(seed)
    L, R = adversarial(rng, 12, k), adversarial(rng, 12, k)
    if seed % 3 == 0 and k > 1:  # heavy cancellation in L R^T
        L[:, 0], R[:, 0] = L[:, 1] * (1 + 1e-6), -R[:, 1]
    L, R = np.clip(L, -1e15, 1e15).astype(dtype), np.clip(R, -1e15, 1e15).astype(dtype)
    ball, params = InfNorm(0.9), {"L": L, "R": R}
    projected = ball.project(params, activations.relu)
    assert ball.contains(projected, activations.relu)
    again = ball.project(projected, activations.relu)
    assert np.array_equal(again["L"], projected["L"])
    assert projected["R"] is R
    inside = absolute_row_sums(params) <= 0.9
    assert np.array_equal(projected["L"][inside], L[inside])
    exact = np.abs(projected["L"].astype(float) @ projected["R"].astype(float).T).sum(axis=1)
    assert exact.max() <= 0.9 * (1 + 1e-12)


def test_row_sums_never_form_the_product(xp, monkeypatch):
    monkeypatch.setattr("pyidl.wellposed.infnorm.CHUNK", 50)
    rng = np.random.default_rng(0)
    L, R = rng.normal(size=(23, 3)), rng.normal(size=(23, 3))
    sums = absolute_row_sums({"L": from_host(xp, L), "R": from_host(xp, R)})
    np.testing.assert_allclose(sums, np.abs(L @ R.T).sum(axis=1), rtol=1e-12)


def test_a_matrix_just_outside_is_not_certified():
    ball = InfNorm(0.99)
    A = np.zeros((2, 2))
    A[0] = [0.5, np.nextafter(0.5, 1)]
    assert not ball.contains({"A": A}, activations.relu)
    certificate = ball.certificate({"A": A}, activations.relu)
    assert not certificate.proven
    assert "not below 1" in repr(certificate)
    assert not ball.certificate({"A": 0.95 * np.eye(2)}, activations.silu).proven
    assert ball.certificate({"A": 0.9 * np.eye(2)}, activations.silu).proven


def test_an_unknown_lipschitz_constant_proves_nothing():
    with pytest.warns(WellPosednessWarning, match="mine"):
        mine = Activation("mine", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    certificate = InfNorm(0.5).certificate({"A": np.zeros((2, 2))}, mine)
    assert not certificate.proven
    assert "'mine' is not known" in certificate.reason
    assert InfNorm(0.5).project({"A": np.eye(2)}, mine)["A"][0, 0] == pytest.approx(0.5)


# -------------------------------------------------------------------------- certificate


def test_certificate_in_numbers():
    c = Certificate(True, 0.5, Norm(), "Picard", "")
    assert c.steps(1.0, first=0.5) == 0
    assert c.steps(0.25, first=1.0) == 2
    assert 2.0 <= c.error(1.0) <= math.nextafter(2.0, 3.0)
    nothing = Certificate(False, math.inf, Norm(), "no iteration", "because")
    assert nothing.error(1e-9) == math.inf
    with pytest.raises(InputError, match="because"):
        nothing.steps(1e-6, first=1.0)
    with pytest.raises(InputError):
        c.steps(0.0, first=1.0)


@given(
    st.integers(0, 10**6),
    st.sampled_from([*BUILT_IN, activations.leaky_relu(0.3)]),
    st.integers(1, 12),
    st.floats(0.05, 0.99),
)
def test_no_pair_of_states_beats_the_certified_factor(seed, activation, n, kappa):
    """Searches for the worst pair of states.

    Random search, sign vectors aligned with the rows of A, and pairs around the
    steepest point of the activation.
    """
    rng = np.random.default_rng(seed)
    ball = InfNorm(kappa)
    A = ball.project({"A": 3 * adversarial(rng, n, n)}, activation)["A"]
    factor = ball.certificate({"A": A}, activation).contraction
    Z = rng.normal(size=(200, n)) * 10.0 ** rng.uniform(-2, 1)
    steepest = np.linspace(-6, 6, 4001)
    steepest = steepest[np.argmax(np.abs(activation.dphi(steepest)))]
    X = rng.normal(size=(200, n))
    D = np.where(
        rng.random((200, 1)) < 0.5, np.sign(A)[rng.integers(0, n, 200)], rng.normal(size=(200, n))
    )
    D *= 10.0 ** rng.uniform(-5, 1, size=(200, 1))
    Z[::2] = steepest - X[::2] @ A.T  # there, f moves as fast as it can
    moved = np.abs(activation.phi((X + D) @ A.T + Z) - activation.phi(X @ A.T + Z)).max(axis=1)
    assert np.all(
        moved
        <= factor * np.abs(D).max(axis=1) * (1 + 1e-9)
        + 1e-14 * (1 + np.abs(X).max() + np.abs(Z).max())
    )


def test_the_factor_is_attained():
    """A tighter claim would be false: for relu and a sign vector the bound holds with equality."""
    A = np.array([[0.5, -0.4], [0.1, 0.2]])
    factor = InfNorm().certificate({"A": A}, activations.relu).contraction
    d = np.sign(A[0])
    assert np.abs(
        activations.relu(A @ d + 5) - activations.relu(np.full(2, 5.0))
    ).max() == pytest.approx(factor, rel=1e-12)


@given(
    st.integers(0, 10**6),
    st.sampled_from(BUILT_IN),
    st.sampled_from([0.3, 0.9, 0.99]),
    st.booleans(),
)
def test_several_starts_reach_one_point_within_the_certified_steps_and_error(
    seed, activation, kappa, factors
):
    rng = np.random.default_rng(seed)
    ball, n = InfNorm(kappa), 10
    drawn = (
        {"L": rng.normal(size=(n, 2)), "R": rng.normal(size=(n, 2))}
        if factors
        else {"A": rng.normal(size=(n, n))}
    )
    params = ball.project(drawn, activation)
    certificate = ball.certificate(params, activation)
    assert certificate.proven
    matrix = LowRank(params["L"], params["R"]) if factors else Full(params["A"])
    problem = Affine(matrix, 3 * rng.normal(size=(4, n)), activation)
    solver = Fallback(Picard(), Picard(damping=0.5))
    solutions = [
        solver(problem, x0) for x0 in (None, 10 * rng.normal(size=(4, n)), np.full((4, n), -100.0))
    ]
    for s in solutions:
        assert s.converged.all()
        distance = np.abs(s.value - solutions[0].value).max(axis=1)
        bound = certificate.error(s.residual) + certificate.error(solutions[0].residual)
        assert np.all(distance <= bound + 1e-12 * np.abs(s.value).max())
    traced = Picard(tol=1e-8)(problem, trace=True)
    first = traced.trace[0]
    for i in range(4):
        needed = (
            int(np.argmax(traced.trace[:, i] <= 1e-8))
            if np.any(traced.trace[:, i] <= 1e-8)
            else None
        )
        assert needed is None or needed <= certificate.steps(1e-8, first=float(first[i]))


def test_words():
    text = repr(InfNorm(0.9).certificate({"A": 0.5 * np.eye(3)}, activations.relu))
    for part in (
        "exists and is unique for every input",
        "0.5 per step",
        "||A||_inf = 0.5",
        "relu is 1-Lipschitz",
    ):
        assert part in text


@pytest.mark.parametrize("rank", [None, 2])
def test_the_factor_is_rounded_up(rank):
    """Against sums of fractions, which are exact; factors nearly cancel."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        if rank is None:
            A = rng.normal(size=(1, 40)) / 60
            params = {"A": np.concatenate([A, np.zeros((39, 40))])}
            exact = sum(abs(Fraction(a)) for a in A[0])
        else:
            L = 1e6 * rng.normal() * np.array([[1.0, -1.0]])
            R = rng.normal(size=(1, 1)) * np.array([[1.0, 1.0 + 1e-7]])
            params = {"L": L, "R": R}
            exact = abs(sum(Fraction(a) * Fraction(b) for a, b in zip(L[0], R[0], strict=True)))
        certificate = InfNorm().certificate(params, activations.relu)
        assert certificate.proven
        assert exact <= Fraction(certificate.contraction) <= exact * Fraction(1.001)
