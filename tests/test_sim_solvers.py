"""The row problems: solvers agree, the gap is an upper bound, no feasible move improves a claimed optimum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyidl import sim

PENALTIES = [sim.L1(0.02), sim.ElasticNet(0.02, 0.05), sim.ReverseHuber(0.002, 0.1), sim.Ridge(0.05)]
SOLVERS = [sim.ADMM, sim.FISTA, sim.CoordinateDescent]


def problem(penalty, seed=0, n=5, p=4, m=60, radius=0.7, masked=False):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(m, n + p)) @ rng.normal(size=(n + p, n + p)) / 3
    Z = M @ rng.normal(size=(n + p, 6)) * rng.uniform(0.1, 1, 6) + 0.1 * rng.normal(size=(m, 6))
    mask = rng.random((6, n + p)) < 0.7 if masked else None
    return sim.Problem.of(sim.Moments.of(M, Z), penalty, ball=n if radius else 0, radius=radius, mask=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("radius", [0.7, None])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_solvers_agree_and_reach_their_gap(penalty, radius, masked):
    task = problem(penalty, radius=radius, masked=masked)
    found = [solver(tol=1e-9, max_iter=100_000)(task) for solver in SOLVERS]
    for rows in found:
        assert rows.converged.all()
        assert np.all(rows.gap >= 0)
        assert np.array_equal(task.project(rows.W), rows.W)  # feasible
        np.testing.assert_allclose(rows.objective, found[0].objective, rtol=1e-7, atol=1e-12)


@given(st.integers(0, 10**6), st.sampled_from(PENALTIES), st.booleans(), st.floats(0.1, 3))
def test_the_gap_is_an_upper_bound(seed, penalty, masked, radius):
    """At any feasible point, not only at the end."""
    task, rng = problem(penalty, seed, radius=radius, masked=masked), np.random.default_rng(seed)
    best = sim.ADMM(tol=1e-10, max_iter=50_000)(task)
    optimum = best.objective - best.gap  # a proven lower bound
    for scale in (1e-6, 1e-2, 1.0, 10.0):
        W = task.project(best.W + scale * rng.normal(size=best.W.shape))
        measured = task.measure(W)
        assert np.all(measured.objective - measured.gap <= best.objective * (1 + 1e-12))
        assert np.all(measured.objective >= optimum * (1 - 1e-12))


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_no_feasible_move_improves_an_optimum(penalty):
    task, rng = problem(penalty), np.random.default_rng(1)
    best = sim.ADMM(tol=1e-10, max_iter=50_000)(task)
    for i in range(100):
        W = task.project(best.W + 10.0 ** rng.uniform(-6, 0) * rng.normal(size=best.W.shape) * (rng.random(best.W.shape) < 0.1 + 0.009 * i))
        assert np.all(task.measure(W).objective >= best.objective - best.gap - 1e-14)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_the_proximal_map_with_the_ball_against_a_general_optimiser(penalty):
    from scipy.optimize import minimize

    rng, n, radius = np.random.default_rng(2), 2, 0.5
    for _ in range(5):
        v = rng.normal(size=(1, 4)) * 1.5
        found = penalty.prox_ball(v, 0.7, n, np.array([radius]))

        def objective(parts, v=v):  # w = parts[:4] - parts[4:], smooth in the parts
            w = parts[:4] - parts[4:]
            return 0.7 * float(penalty.value(w[None, :])[0]) + 0.5 * float(np.sum((w - v) ** 2))

        best = np.inf
        for _ in range(6):
            start = np.abs(rng.normal(size=8)) * 0.2
            bound = {"type": "ineq", "fun": lambda x: radius - np.sum(x[[0, 1, 4, 5]])}
            best = min(
                best, minimize(objective, start, method="SLSQP", bounds=[(0, None)] * 8, constraints=bound, options={"ftol": 1e-14}).fun
            )
        mine = 0.7 * float(penalty.value(found)[0]) + 0.5 * float(np.sum((found - v) ** 2))
        assert np.abs(found[0, :n]).sum() <= radius * (1 + 1e-15)
        assert mine <= best + 1e-7


def test_the_largest_useful_penalty():
    task = problem(sim.L1(1.0))
    above, below = (sim.ADMM(tol=1e-10)(problem(sim.L1(t * task.lam_max))).W for t in (1.001, 0.9))
    assert not np.any(above)
    assert np.any(below)


def test_a_wrong_gap_would_be_seen(monkeypatch):
    """A gap of a tenth of what it is breaks the bound that the tests above rest on."""
    task = problem(PENALTIES[0])
    best = sim.ADMM(tol=1e-10)(task)
    W = task.project(0.9 * best.W)
    measured = task.measure(W)
    assert np.any(measured.objective - 0.1 * measured.gap > best.objective)
