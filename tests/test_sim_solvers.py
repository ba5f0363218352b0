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


def test_after_the_reverse_huber_map_a_projection_is_too_much():
    """The order of the proximal map matters: threshold, then map. The other way round is feasible, and worse."""
    penalty, radius = sim.ReverseHuber(0.3, 1.0), np.array([0.5])
    V = np.random.default_rng(4).normal(size=(200, 4)) * 2

    def objective(W):
        return 0.7 * penalty.value(W) + 0.5 * np.sum((W - V) ** 2, axis=1)

    radii = np.repeat(radius, len(V))
    right, wrong = penalty.prox_ball(V, 0.7, 4, radii), sim.penalties.ball_project(penalty.prox(V, 0.7), 4, radii)
    assert np.all(objective(right) <= objective(wrong) + 1e-12)
    assert np.max(objective(wrong) - objective(right)) > 0.01


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("radius", [0.7, None])
def test_weights_that_cost_nothing_are_eliminated(radius, copies):
    """Also where they are not determined: inputs given twice leave G singular."""
    rng, n = np.random.default_rng(5), 3
    M = np.concatenate([rng.normal(size=(40, n)), *[rng.normal(size=(40, 4))] * copies], axis=1)
    Z = M @ rng.normal(size=(M.shape[1], 5)) + rng.normal(size=(40, 5))
    task = sim.Problem.of(sim.Moments.of(M, Z), sim.NoPenalty(), ball=n if radius else 0, radius=radius)
    for solver in SOLVERS:
        rows = solver(tol=1e-9)(task)
        assert rows.converged.all()
        best = np.full(5, np.inf)
        for a in [rows.W[:, :n], *(task.project(rows.W + 1e-3 * rng.normal(size=rows.W.shape))[:, :n] for _ in range(20))]:
            rest = Z - Z.mean(axis=0) - (M[:, :n] - M[:, :n].mean(axis=0)) @ a.T
            V = M[:, n:] - M[:, n:].mean(axis=0)
            best = np.minimum(best, np.mean((rest - V @ np.linalg.lstsq(V, rest, rcond=None)[0]) ** 2, axis=0) / 2)
        np.testing.assert_allclose(rows.objective, best, rtol=1e-8)
        fit = np.mean((Z - Z.mean(axis=0) - (M - M.mean(axis=0)) @ rows.W.T) ** 2, axis=0) / 2
        np.testing.assert_allclose(rows.objective, fit, rtol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_an_interior_point_method_finds_the_same(penalty, masked):
    cvxpy = pytest.importorskip("cvxpy", reason="cvxpy is not installed")
    pytest.importorskip("clarabel", reason="Clarabel is not installed")
    task = problem(penalty, masked=masked)
    found = sim.ADMM(tol=1e-9, max_iter=100_000)(task)
    rest = penalty.split()[1]
    assert task.penalty == rest  # the square is in G
    root = np.linalg.cholesky(task.G).T
    for i in range(len(task.H)):
        w = cvxpy.Variable(9)
        loss = 0.5 * cvxpy.sum_squares(root @ w) - task.H[i] @ w + 0.5 * float(task.square[i])
        if isinstance(rest, sim.ReverseHuber):
            c, size = rest.corner, cvxpy.abs(w)
            cost = rest.ridge * cvxpy.sum(0.5 * cvxpy.square(cvxpy.pos(size - c)) + c * size)
        else:
            cost = rest.lam * cvxpy.norm1(w)
        limits = [cvxpy.norm1(w[:5]) <= 0.7]
        if masked:
            limits.append(w[np.flatnonzero(~np.asarray(task.mask[i]))] == 0)
        best = cvxpy.Problem(cvxpy.Minimize(loss + cost), limits).solve(solver=cvxpy.CLARABEL)
        assert best == pytest.approx(found.objective[i], rel=1e-6)


def test_the_largest_useful_penalty():
    task = problem(sim.L1(1.0))
    above, below = (sim.ADMM(tol=1e-10)(problem(sim.L1(t * task.lam_max))).W for t in (1.001, 0.9))
    assert not np.any(above)
    assert np.any(below)


def test_an_exact_fit_is_done_up_to_rounding():
    """More weights than samples, all free, and a target that is zero: what is missing is rounding, relative to nothing."""
    rng = np.random.default_rng(0)
    targets = np.stack([rng.normal(size=3), np.zeros(3)], axis=1)
    rows = sim.ADMM(tol=1e-8)(sim.Problem.of(sim.Moments.of(rng.normal(size=(3, 6)), targets), sim.NoPenalty()))
    assert rows.converged.all()


def test_weights_that_are_large_and_cost_nothing():
    """No multiplier to measure a step of the weights by, and no warning of an overflow."""
    rng = np.random.default_rng(0)
    moments = sim.Moments.of(rng.normal(size=(60, 3)) * [1e-6, 1e-7, 1e-8], 1e6 * rng.normal(size=(60, 1)))
    assert sim.ADMM()(sim.Problem.of(moments, sim.NoPenalty(), ball=3, radius=1e15)).converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_data_that_say_nothing(solver):
    """A single sample about its own mean: nothing to divide by, and no warning."""
    rng = np.random.default_rng(0)
    task = sim.Problem.of(sim.Moments.of(rng.normal(size=(1, 3)), rng.normal(size=(1, 2))), sim.L1(10.0), ball=3, radius=0.7)
    rows = solver()(task)
    assert rows.converged.all()
    assert not rows.W.any()


def test_a_wrong_gap_would_be_seen(monkeypatch):
    """A gap of a tenth of what it is breaks the bound that the tests above rest on."""
    task = problem(PENALTIES[0])
    best = sim.ADMM(tol=1e-10)(task)
    W = task.project(0.9 * best.W)
    measured = task.measure(W)
    assert np.any(measured.objective - 0.1 * measured.gap > best.objective)
