"""The parts of a proof at a solution, in exact arithmetic: pre-activations, Q, slopes, radius."""

import numpy as np
import pytest
from conditions import EXACT, cancelling, exactly
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, activations, certify_solution
from pyidl.activations import leaky_relu
from pyidl.activations.base import pieces
from pyidl.certify.enclosure import Equation
from pyidl.wellposed import Unconstrained

N, P = 4, 2
ALL = [*activations.builtin.BUILT_IN.values(), leaky_relu(0.3)]


def plain(rng, size):
    return {"A": size * rng.normal(size=(N, N))}


def equation(params, activation=activations.relu, rng=0):
    model = ImplicitModel(
        P,
        1,
        N,
        rank=None if "A" in params else params["L"].shape[1],
        activation=activation,
        constraint=Unconstrained(),
        dtype="float64",
        rng=rng,
    )
    model.params = {**model.params, **params}
    return model, Equation.of(model, pieces(activation, 0, N))


DRAWN = pytest.mark.parametrize("draw", [plain, cancelling])


@DRAWN
@given(st.integers(0, 10**6))
def test_pre_activations_lie_within_their_blur(draw, seed):
    rng = np.random.default_rng(seed)
    params = draw(rng, 1.0)
    model, problem = equation(params, rng=rng)
    x, u = rng.normal(size=(3, N)), rng.normal(size=(3, P))
    y, blur = problem.pre(x, u)
    B, b = EXACT(model.params["B"]), EXACT(model.params["b"])
    exact = EXACT(x) @ exactly(params).T + EXACT(u) @ B.T + b
    assert np.all(abs(EXACT(y) - exact) <= EXACT(blur))


@DRAWN
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("slope", [0.0, 1.0])
@given(st.integers(0, 10**6))
def test_the_newton_map_grows_by_no_more_than_is_said(draw, slope, spread, seed):
    """``Q w`` with the exact A; slopes of 0, or known exactly, leave single terms of it."""
    rng = np.random.default_rng(seed)
    params = draw(rng, 0.5)
    _, problem = equation(params)
    D, Delta = slope * rng.uniform(0, 1, N), spread * rng.uniform(0, 1, N)
    w = rng.uniform(0, 1, N)
    linear = problem.linear(D)
    A, M = exactly(params), EXACT(linear.M)
    eye = EXACT(np.eye(N))
    Q = abs(eye - M @ (eye - EXACT(D)[:, None] * A)) + abs(M) @ (EXACT(Delta)[:, None] * abs(A))
    assert np.all(Q @ EXACT(w) <= EXACT(problem.grow(linear, Delta, w)))


@pytest.mark.parametrize("activation", ALL, ids=repr)
def test_no_difference_quotient_leaves_the_slopes(activation):
    """Of pairs of points in intervals of all lengths, and of the ends alone."""
    rng, n, m = np.random.default_rng(0), 3000, 41
    y, reach = rng.uniform(-4, 4, n), 10.0 ** rng.uniform(-6, 0.6, n)
    problem = Equation(
        np.zeros((n, n)),
        np.zeros((n, n)),
        None,
        np.zeros((n, 1)),
        np.zeros(n),
        pieces(activation, 0, n),
    )
    low, high, _ = problem.slopes(y, reach)
    points = y + reach * np.linspace(-1, 1, m)[:, None]
    a, b = points[rng.integers(0, m, (2, 200, n)), np.arange(n)]
    apart = np.abs(a - b) > 0.01 * reach
    quotient = (activation.phi(a) - activation.phi(b)) / np.where(apart, a - b, 1.0)
    noise = np.where(apart, 8e-16 * (1 + np.abs(a) + np.abs(b)) / reach / 0.01, np.inf)
    assert np.all(quotient >= low - noise)
    assert np.all(quotient <= high + noise)
    slope = activation.dphi(points)
    away = np.all([np.abs(points - kink) > 1e-9 for kink in (*activation.kinks, np.inf)], axis=0)
    assert np.all((slope >= low - 1e-12) & (slope <= high + 1e-12) | ~away)


def test_a_long_thin_box_has_a_small_radius():
    """``x_1 = 5`` is wrong by 1 at the point, ``x_2 = max(2 x_2 - 0.1, 0)`` by nothing.

    The box is long, and the other solution, ``x_2 = 0``, lies within its length.
    """
    model = ImplicitModel(1, 1, 2, constraint=Unconstrained(), dtype="float64", rng=0)
    A, B = np.diag([0.0, 2.0]), np.zeros((2, 1))
    model.params = {**model.params, "A": A, "B": B, "b": np.array([5.0, -0.1])}
    found = certify_solution(model, np.zeros((1, 1)), np.array([[6.0, 0.1]]))
    assert found.proven.all()
    assert found.error[0, 0] >= 1
    assert found.radius[0] < 0.1


def test_the_error_of_factors_that_cancel():
    """A linear system in fractions: the error holds for L R^T, not for its rounding."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        params = cancelling(rng, 0.5)
        model, _ = equation(params, activations.identity)
        u = rng.normal(size=(1, P))
        found = certify_solution(model, u)
        assert found.proven.all()
        B, b = EXACT(model.params["B"]), EXACT(model.params["b"])
        x = EXACT(found.point[0])
        residual = x - exactly(params) @ x - B @ EXACT(u[0]) - b
        inverse = np.linalg.inv(np.eye(N) - params["L"] @ params["R"].T)
        # |x - x*| = |(I - A)^{-1} residual|, to many digits
        distance = np.abs(inverse @ residual.astype(float))
        assert np.all(distance <= found.error[0])
