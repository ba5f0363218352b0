"""The matrix measure.

Its projection against root finding, its certificate against a search for
counterexamples.
"""

from fractions import Fraction

import numpy as np
import pytest
from conditions import is_p_matrix
from helpers import host
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from pyidl import ImplicitModel, activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers import Jacobi, Newton, Picard
from pyidl.solvers.problem import Affine
from pyidl.wellposed.measure import MatrixMeasure
from pyidl.wellposed.projections import measure_rows

RELU, TANH = activations.relu, activations.tanh


def adversarial(rng, n):
    """Matrices that a careless projection gets wrong."""
    A = rng.normal(size=(n, n))
    kind = rng.integers(0, 7)
    if kind == 1:
        A = np.sign(A)
    elif kind == 2:
        A *= 10.0 ** rng.integers(-8, 9, size=(n, 1))
    elif kind == 3:
        A = rng.standard_cauchy((n, n))
    elif kind == 4:
        A -= 10 * np.eye(n)
    elif kind == 5:
        A = np.diag(rng.normal(size=n)) * 3
    elif kind == 6:
        A *= rng.random((n, n)) < 0.3
    return A


def weights_of(rng, n, some):
    return tuple(float(w) for w in 10.0 ** rng.uniform(-1, 1, n)) if some else None


def measures(A, eta):
    eta = np.ones(len(A)) if eta is None else np.asarray(eta)
    off = np.abs(A) * eta / eta[:, None]
    return np.diagonal(A) + off.sum(axis=1) - np.diagonal(off)


def by_root_finding(A, bound, eta):
    """Oracle: for each row the multiplier tau is the root of a monotone function."""
    n, eta = len(A), np.ones(len(A)) if eta is None else np.asarray(eta)
    P = A.copy()
    for i in range(n):
        w = eta / eta[i]

        def row(tau):
            p = np.sign(A[i]) * np.maximum(np.abs(A[i]) - tau * w, 0)
            p[i] = A[i, i] - tau
            return p

        def excess(tau):
            p = row(tau)
            return p[i] + np.sum(np.delete(w * np.abs(p), i)) - bound

        if excess(0.0) > 0:
            top = 1.0 + np.abs(A[i]).max() * (1 + (1 / w).max()) + abs(bound)
            P[i] = row(brentq(excess, 0, top, xtol=1e-300, rtol=1e-15))
    return P


@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans(), st.floats(-2, 2))
# a bound below the smallest normal number, by which the projection stays inside
@example(79, 1, False, -2.225073858507e-311)
def test_projection_is_exact(seed, n, weighted, bound):
    rng = np.random.default_rng(seed)
    A, eta = adversarial(rng, n), weights_of(rng, n, weighted)
    P = measure_rows(A, bound, eta)
    scale = np.abs(A).max(axis=1, keepdims=True) + abs(bound)
    assert np.all(
        np.abs(P - by_root_finding(A, bound, eta))
        <= 1e-9 * scale + 2 * np.finfo(float).smallest_normal
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_projection_against_a_general_optimiser(weighted):
    rng = np.random.default_rng(3)
    A, eta = rng.normal(size=(4, 4)), np.array([1.0, 2.0, 0.5, 1.5]) if weighted else None
    w = np.ones(4) if eta is None else eta / eta[0]

    def measure(p):  # smooth: |p| is split into parts
        return 0.3 - (p[0] + np.sum(w[1:] * (p[1:4] + p[4:7])))

    start = np.concatenate([A[0], np.zeros(3)])
    found = minimize(
        lambda p: np.sum((np.array([p[0], *(p[1:4] - p[4:7])]) - A[0]) ** 2),
        start,
        method="SLSQP",
        constraints={"type": "ineq", "fun": measure},
        bounds=[(None, None)] + [(0, None)] * 6,
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    np.testing.assert_allclose(
        measure_rows(A, 0.3, eta)[0], [found.x[0], *(found.x[1:4] - found.x[4:7])], atol=1e-5
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([0.5, 0.99]),
)
def test_projection_is_feasible_idempotent_and_leaves_feasible_rows_alone(
    seed, n, weighted, dtype, kappa
):
    rng = np.random.default_rng(seed)
    A, constraint = (
        adversarial(rng, n).astype(dtype),
        MatrixMeasure(kappa, weights_of(rng, n, weighted)),
    )
    P = constraint.project({"A": A}, RELU)
    assert P["A"].dtype == dtype
    assert constraint.contains(P, RELU)
    assert np.array_equal(constraint.project(P, RELU)["A"], P["A"])
    inside = measures(A.astype(float), constraint.weights) <= kappa * (1 - 1e-12)
    assert np.array_equal(P["A"][inside], A[inside])
    outside = measures(A.astype(float), constraint.weights) > kappa * (1 + 1e-12)
    slack = 1e-5 * (1 + np.abs(P["A"]).max(axis=1)) * (100 if weighted else 1)
    assert np.all(
        measures(P["A"].astype(float), constraint.weights)[outside] >= (kappa - slack)[outside]
    )


@given(st.integers(0, 10**6))
def test_nothing_feasible_is_nearer(seed):
    rng = np.random.default_rng(seed)
    A, eta = rng.normal(size=(5, 5)), weights_of(rng, 5, seed % 2)
    P = measure_rows(A, 0.4, eta)
    for _ in range(50):
        other = measure_rows(P + 10.0 ** rng.uniform(-5, 0) * rng.normal(size=(5, 5)), 0.4, eta)
        other = 0.5 * (other + P)
        assert np.linalg.norm(A - other) >= np.linalg.norm(A - P) * (1 - 1e-12)
    # the broken twin: feasible, and not the nearest
    subtracted = A - np.diag(np.maximum(measures(A, eta) - 0.4, 0))
    if np.any(measures(A, eta) > 0.5):
        assert np.linalg.norm(A - subtracted) > np.linalg.norm(A - P)


def test_projection_everywhere(xp):
    rng = np.random.default_rng(0)
    A, constraint = rng.normal(size=(6, 6)), MatrixMeasure(0.9, weights_of(rng, 6, True))
    P = constraint.project({"A": from_host(xp, A)}, RELU)
    np.testing.assert_allclose(
        host(P["A"]), by_root_finding(A, 0.9, constraint.weights), rtol=1e-9, atol=1e-12
    )
    assert constraint.contains(P, RELU)
    L, R = from_host(xp, rng.normal(size=(6, 2))), from_host(xp, rng.normal(size=(6, 2)))
    factors = constraint.project({"L": L, "R": R}, RELU)
    assert constraint.contains(factors, RELU)
    assert not constraint.contains({"L": L, "R": R}, RELU)
    assert factors["R"] is R


@given(
    st.integers(0, 10**6), st.integers(1, 9), st.booleans(), st.sampled_from(["float32", "float64"])
)
def test_factors_are_scaled_into_the_set(seed, n, weighted, dtype):
    rng = np.random.default_rng(seed)
    L, R = (
        10.0 ** rng.integers(-3, 4) * rng.normal(size=(n, min(n, 3))).astype(dtype)
        for _ in range(2)
    )
    L, R = L.astype(dtype), R.astype(dtype)
    constraint = MatrixMeasure(0.9, weights_of(rng, n, weighted))
    P = constraint.project({"L": L, "R": R}, RELU)
    assert constraint.contains(P, RELU)
    again = constraint.project(P, RELU)
    assert np.array_equal(again["L"], P["L"])
    inside = measures(L.astype(float) @ R.T.astype(float), constraint.weights) <= 0.9 * (1 - 1e-6)
    assert np.array_equal(P["L"][inside], L[inside])


# -------------------------------------------------------------------------- certificate


def inside(rng, n, kappa, weighted):
    constraint = MatrixMeasure(kappa, weights_of(rng, n, weighted))
    A = adversarial(rng, n)
    return constraint, constraint.project(
        {"A": A * min(1.0, 30 / max(1e-9, np.abs(A).max()))}, RELU
    )


@given(st.integers(0, 10**6), st.integers(1, 7), st.booleans(), st.sampled_from([0.3, 0.9, 0.99]))
def test_what_is_proven_is_true_of_the_exact_condition(seed, n, weighted, kappa):
    constraint, params = inside(np.random.default_rng(seed), n, kappa, weighted)
    c = constraint.certificate(params, RELU)
    assert c.proven
    assert 0 <= c.contraction < 1
    assert is_p_matrix(np.eye(n) - params["A"])


@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([RELU, TANH, activations.softplus, activations.hard_tanh]),
)
def test_no_search_beats_the_factor_or_the_error_bound(seed, n, weighted, activation):
    """Random and worst slopes beat neither the factor nor the error bound.

    The Jacobian of the named iteration, in the named norm, and the error of random
    points.
    """
    rng = np.random.default_rng(seed)
    constraint, params = inside(rng, n, 0.95, weighted)
    c = constraint.certificate(params, activation)
    A, eta = (
        params["A"],
        np.ones(n) if constraint.weights is None else np.asarray(constraint.weights),
    )
    for _ in range(30):
        s = rng.integers(0, 2, n) * 1.0 if rng.random() < 0.5 else rng.random(n)
        if c.applies_to == "Jacobi":
            d = np.diagonal(A)
            J = (s / (1 - s * d))[:, None] * (A - np.diag(d))
        else:
            a = 1.0 - (
                float(c.applies_to[len("Picard(damping=") : -1])
                if "damping" in c.applies_to
                else 0.0
            )
            J = (1 - a) * np.eye(n) + a * s[:, None] * A
        factor = np.max(np.abs(J) @ eta / eta)
        assert factor <= c.contraction * (1 + 1e-9) + 1e-12
        # e = (I - S A)^{-1} r: the error that a residual r leaves
        r = np.sign(rng.normal(size=n)) * eta if rng.random() < 0.5 else rng.normal(size=n)
        e = np.linalg.solve(np.eye(n) - s[:, None] * A, r)
        assert c.norm(e[None, :])[0] <= c.error(c.norm(r[None, :])[0]) * (1 + 1e-9)
        assert np.all(np.abs(e) <= c.entrywise(r[None, :])[0] * (1 + 1e-9))


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([RELU, TANH]))
def test_the_named_solver_needs_no_more_steps_than_certified(seed, weighted, activation):
    rng = np.random.default_rng(seed)
    constraint, params = inside(rng, 6, 0.9, weighted)
    c = constraint.certificate(params, activation)
    p = Affine(Full(params["A"]), rng.normal(size=(5, 6)), activation)
    if c.applies_to == "Jacobi":
        solver = Jacobi(tol=1e-10, max_iter=10**5)
    else:
        a = 1.0 / (1.0 + max(-float(np.diagonal(params["A"]).min()), 0.0))
        solver = Picard(tol=1e-10, max_iter=10**5, damping=1.0 - a)
    s = solver(p, trace=True)
    if s.converged.all():  # a coarse rounding of a large A may forbid it
        # f(0) - 0
        first = np.abs(p.start()[1]) / (
            1 if constraint.weights is None else np.asarray(constraint.weights)
        )
        for k in range(1, len(s.trace), 7):
            weights = 1.0 if constraint.weights is None else np.asarray(constraint.weights)
            # in the plain norm, in which the trace is
            bound = c.constant * c.contraction**k * first.max(axis=1) * np.max(weights)
            ok = np.isnan(s.trace[k]) | (
                s.trace[k] <= bound * (1 + 1e-6) + 1e-9 * (1 + np.abs(s.value).max(axis=1))
            )
            assert ok.all()


def test_the_constant_of_a_certificate_is_attained():
    """A step of the splitting moves an error from one component to the other.

    It brings component 2 as far from its equation as component 1 was, times
    9.5 / (1 - 0.9).
    """
    A, z = np.array([[0.9, 0.0], [9.5, -9.0]]), np.array([1.0, 1.0])
    c = MatrixMeasure(0.95).certificate({"A": A}, RELU)
    off, d = A * [[0, 1], [1, 0]], np.diagonal(A)
    # the second equation holds, the first, x = 10, does not
    x = np.array([11.0, (9.5 * 11.0 + 1.0) / 10.0])
    after = np.maximum((off @ x + z) / (1 - d), 0.0)
    first, second = (np.max(np.abs(np.maximum(A @ p + z, 0.0) - p)) for p in (x, after))
    assert c.applies_to == "Jacobi"
    assert second <= c.constant * c.contraction * first
    assert second > 0.999 * c.constant * c.contraction * first
    # so are the bounds of the entries
    np.testing.assert_allclose(c.entrywise(np.array([[1.0, 0.0]])), [[10.0, 9.5]], rtol=1e-12)


def test_three_starts_reach_one_point_where_picard_diverges():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(8, 8)) - 12 * np.eye(8)
    A = MatrixMeasure(0.9).project({"A": A}, RELU)["A"]
    p = Affine(Full(A), rng.normal(size=(5, 8)), RELU)
    assert np.abs(A).sum(axis=1).max() > 10
    assert not Picard(max_iter=300)(p).converged.any()
    answers = [
        Jacobi()(p, x0).value for x0 in (None, np.full((5, 8), 50.0), rng.normal(size=(5, 8)))
    ]
    answers.append(Newton()(p).value)
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-9)


def test_just_outside_nothing_is_certified():
    A = np.array([[0.5, 0.5], [0.0, -3.0]])
    assert not MatrixMeasure().certificate({"A": A}, RELU).proven
    assert MatrixMeasure().certificate({"A": A * (1 - 1e-9)}, RELU).proven
    assert not MatrixMeasure().contains({"A": A}, RELU)
    weights = (1.0, 0.5)
    assert MatrixMeasure(weights=weights).certificate({"A": A}, RELU).proven
    singular = np.array([[0.5, 0.5], [0.5, 0.5]])  # I - A is singular: no condition may accept it
    assert not MatrixMeasure().certificate({"A": singular}, RELU).proven


def test_lipschitz_constants_scale_the_rows():
    A = np.array([[2.0, 1.0], [1.0, 0.5]])
    assert MatrixMeasure(0.99).contains({"A": A}, activations.sigmoid)  # slopes up to 1/4
    assert not MatrixMeasure(0.99).contains({"A": A}, TANH)
    mixed = Blocks((activations.sigmoid, 1), (RELU, 1))
    P = MatrixMeasure(0.99).project({"A": A}, mixed)["A"]
    np.testing.assert_array_equal(P[0], A[0])
    assert P[1, 1] + abs(P[1, 0]) <= 0.99 < A[1, 1] + abs(A[1, 0])
    assert MatrixMeasure(0.99).certificate({"A": P}, mixed).proven


@pytest.mark.parametrize(
    "activation", [activations.abs, activations.sin, activations.silu, activations.softmax]
)
def test_negative_and_unknown_slopes_are_refused(activation):
    with pytest.raises(InputError, match="MatrixMeasure"):
        ImplicitModel(2, 1, 4, activation=activation, constraint=MatrixMeasure())
    assert not MatrixMeasure().certificate({"A": np.zeros((4, 4))}, activation).proven


@pytest.mark.parametrize("bad", [1.0, 2.0, float("nan"), float("-inf"), float("inf")])
def test_bad_radii_are_refused(bad):
    with pytest.raises(InputError, match="kappa"):
        MatrixMeasure(bad)


@pytest.mark.parametrize(
    "bad", [(), (1.0, 0.0), (1.0, -1.0), (float("inf"),), ((1.0, 2.0), (3.0, 4.0))]
)
def test_bad_weights_are_refused(bad):
    with pytest.raises(InputError, match="weights"):
        MatrixMeasure(weights=bad)
    with pytest.raises(InputError, match="2 weights"):
        ImplicitModel(2, 1, 4, constraint=MatrixMeasure(weights=(1.0, 2.0)))


def exact_measures(A, eta):
    """Of the numbers as they are, without any rounding."""
    A, eta = ([Fraction(float(x)) for x in a] for a in (A.ravel(), eta))
    n = len(eta)
    return [
        A[i * n + i] + sum(abs(A[i * n + j]) * eta[j] / eta[i] for j in range(n) if j != i)
        for i in range(n)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([0.95, 1e-30, 0.0, -1.0, -1e30]),
)
def test_sizes_of_which_squares_are_no_numbers(dtype, seed, n, weighted, kappa):
    rng, end = np.random.default_rng(seed), 37.0 if dtype == "float32" else 306.0
    sizes = rng.uniform(-end, end, (n, n) if seed % 2 else ())
    A, eta = (
        (rng.normal(size=(n, n)) * 10.0**sizes).astype(dtype),
        10.0 ** rng.uniform(-100, 100, n) if weighted else np.ones(n),
    )
    ball = MatrixMeasure(kappa, tuple(eta) if weighted else None)
    with np.errstate(all="ignore"):
        try:
            P = ball.project({"A": A}, RELU)["A"]
        except InputError:
            assert weighted
            P = A
        else:
            assert np.all(np.isfinite(P))
            assert ball.contains({"A": P}, RELU)
            np.testing.assert_array_equal(ball.project({"A": P}, RELU)["A"], P)
            assert max(exact_measures(P, eta)) <= kappa + Fraction(1, 10**12) * abs(
                Fraction(kappa)
            ) + Fraction(1, 10**200)
        for matrix in (A, P):
            found = ball.certificate({"A": matrix}, RELU)
            assert not np.isnan([found.contraction, found.margin, found.constant]).any()
            assert not (found.proven and max(exact_measures(matrix, eta)) >= 1)


def test_what_no_float_can_hold_is_refused():
    with pytest.raises(InputError, match="bounds that fit float32"):
        MatrixMeasure(-1e39).project({"A": np.eye(2, dtype=np.float32)}, RELU)
    with pytest.raises(InputError, match="only their ratios matter"):
        MatrixMeasure(weights=(1.0, 1e-151))
    with (
        pytest.raises(InputError, match="the projection overflows; use weights"),
        np.errstate(all="ignore"),
    ):
        MatrixMeasure(weights=(1e-100, 1e100)).project({"A": np.full((2, 2), 1e250)}, RELU)
    big = {"L": np.full((2, 1), 1e200), "R": np.full((2, 1), 1e200)}
    with pytest.raises(InputError, match="overflow"):
        MatrixMeasure(0.5).project(big, RELU)
    with np.errstate(all="ignore"):
        assert not MatrixMeasure(0.5).certificate(big, RELU).proven


def test_weights_whose_measure_would_be_rounded_below_1_are_refused():
    """With entries of 5e-324 a product 1.4 eta is rounded to eta, and a measure of 1.3 to 0.9."""
    A, eta = np.array([[-0.1, 1.4], [0.0, 0.0]]), (5e-324, 5e-324)
    assert max(exact_measures(A, eta)) > 1
    with pytest.raises(InputError, match="weights"):
        MatrixMeasure(weights=eta)


def test_a_custom_activation_with_known_slopes_is_admitted():
    bend = Activation(
        "bend", lambda z: 0.5 * np.tanh(z), lambda z: 0.5 / np.cosh(z) ** 2, slope_range=(0.0, 0.5)
    )
    model = ImplicitModel(
        2, 1, 6, activation=bend, constraint=MatrixMeasure(0.9), rng=0, dtype="float64"
    )
    assert model.certificate().proven
    model(np.ones((3, 2)))[1](np.ones((3, 1)))


@pytest.mark.parametrize("activation", [RELU, TANH])
def test_low_rank_certificates(activation):
    rng = np.random.default_rng(2)
    constraint = MatrixMeasure(0.9)
    P = constraint.project({"L": rng.normal(size=(9, 2)), "R": rng.normal(size=(9, 2))}, activation)
    low, full = (
        constraint.certificate(P, activation),
        constraint.certificate({"A": P["L"] @ P["R"].T}, activation),
    )
    assert low.proven
    assert low.contraction == pytest.approx(full.contraction, rel=1e-12)
    x = Picard()(Affine(LowRank(P["L"], P["R"]), rng.normal(size=(3, 9)), activation))
    assert x.converged.all() or activation is RELU
