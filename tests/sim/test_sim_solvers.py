"""The row problems.

Solvers agree, the gap is an upper bound, no feasible move improves a claimed optimum.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import cupy

from pyidl import sim
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.sim.row_problem import Spectrum

PENALTIES = [
    sim.L1(0.02),
    sim.ElasticNet(0.02, 0.05),
    sim.ReverseHuber(0.002, 0.1),
    sim.Ridge(0.05),
]
SOLVERS = [sim.ADMM, sim.FISTA, sim.CoordinateDescent]


def problem(penalty, seed=0, n=5, p=4, m=60, radius=0.7, masked=False):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(m, n + p)) @ rng.normal(size=(n + p, n + p)) / 3
    Z = M @ rng.normal(size=(n + p, 6)) * rng.uniform(0.1, 1, 6) + 0.1 * rng.normal(size=(m, 6))
    mask = rng.random((6, n + p)) < 0.7 if masked else None
    return sim.RowProblem.of(
        sim.Moments.of(M, Z), penalty, ball=n if radius else 0, radius=radius, mask=mask
    )


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
        W = task.project(
            best.W
            + 10.0 ** rng.uniform(-6, 0)
            * rng.normal(size=best.W.shape)
            * (rng.random(best.W.shape) < 0.1 + 0.009 * i)
        )
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
                best,
                minimize(
                    objective,
                    start,
                    method="SLSQP",
                    bounds=[(0, None)] * 8,
                    constraints=bound,
                    options={"ftol": 1e-14},
                ).fun,
            )
        mine = 0.7 * float(penalty.value(found)[0]) + 0.5 * float(np.sum((found - v) ** 2))
        assert np.abs(found[0, :n]).sum() <= radius * (1 + 1e-15)
        assert mine <= best + 1e-7


def test_after_the_reverse_huber_map_a_projection_is_too_much():
    """The order of the proximal map matters: threshold, then map.

    The other way round is feasible, and worse.
    """
    penalty, radius = sim.ReverseHuber(0.3, 1.0), np.array([0.5])
    V = np.random.default_rng(4).normal(size=(200, 4)) * 2

    def objective(W):
        return 0.7 * penalty.value(W) + 0.5 * np.sum((W - V) ** 2, axis=1)

    radii = np.repeat(radius, len(V))
    right, wrong = (
        penalty.prox_ball(V, 0.7, 4, radii),
        sim.penalties.ball_project(penalty.prox(V, 0.7), 4, radii),
    )
    assert np.all(objective(right) <= objective(wrong) + 1e-12)
    assert np.max(objective(wrong) - objective(right)) > 0.01


# ----------------------------------------------------------- the multiplier of the ball


def by_bisection(falling, bound, high):
    """The least nu >= 0 with ``falling(nu) <= bound``, up to rounding from above.

    It holds at `high`. An oracle for the formulas.
    """
    low, done = np.zeros_like(high), falling(np.zeros_like(high)) <= bound
    for _ in range(100):
        middle = 0.5 * (low + high)
        enough = falling(middle) <= bound
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(done, 0.0, high)


def awkward(seed, decades):
    """A penalty, t as a number or one a row, and parts for bounds; of many sizes.

    Rows have ties, zeros or very different entries.
    """
    rng = np.random.default_rng(seed)

    def size(*shape):
        return 10.0 ** rng.uniform(-decades, decades, shape)

    V = rng.normal(size=(4, rng.integers(1, 30)))
    ties = np.round(2 * V)
    V = [
        V,
        ties,
        np.sign(V),
        10.0 + 1e-9 * ties,
        V * (rng.random(V.shape) < 0.3),
        V * 10.0 ** rng.uniform(-12, 0, V.shape),
    ][rng.integers(6)]
    t = size(4, 1) if rng.random() < 0.5 else float(size())
    return (
        sim.ReverseHuber(float(size()), float(size())),
        t,
        V * size(4, 1),
        10.0 ** rng.uniform(-6, 0.2, 4),
    )


def bounds(sums, parts):
    return np.where(sums > 0, sums, 1.0) * parts


@given(st.integers(0, 10**6))
def test_the_reverse_huber_map_on_the_ball_against_bisection(seed):
    penalty, t, V, parts = awkward(seed, 8)
    radius = bounds(np.abs(penalty.prox(V, t)).sum(axis=1), parts)
    high = np.abs(V).max(axis=1, keepdims=True)
    nu = by_bisection(
        lambda nu: np.abs(penalty.prox(sim.penalties.soft(V, nu), t)).sum(axis=1, keepdims=True),
        radius[:, None],
        high,
    )
    W = penalty.prox_ball(V, t, V.shape[1], radius)
    assert np.all(np.abs(W).sum(axis=1) <= radius)
    assert np.all(np.abs(W - penalty.prox(sim.penalties.soft(V, nu), t)) <= 1e-12 * high)


@given(st.integers(0, 10**6))
def test_the_reverse_huber_map_on_the_ball_is_optimal(seed):
    """One multiplier for all weights that are not zero, a smaller one for the others.

    And none at all where the bound is not felt.
    """
    penalty, t, V, parts = awkward(seed, 1)
    radius = bounds(np.abs(penalty.prox(V, t)).sum(axis=1), parts)
    W = penalty.prox_ball(V, t, V.shape[1], radius)
    size, rounding = np.abs(W), 1e-12 * np.abs(V).max(axis=1, keepdims=True)
    assert np.all(size.sum(axis=1) <= radius)
    assert np.all(W * V >= 0)
    slope, curvature = penalty.pieces(size)
    multiplier = np.abs(V) - size - t * (slope + curvature * size)
    nu = np.maximum(multiplier.max(axis=1, keepdims=True), 0.0)
    assert np.all((multiplier >= nu - rounding) | (size == 0))
    assert np.all((nu <= rounding)[:, 0] | (size.sum(axis=1) >= radius * (1 - 1e-12)))


@given(st.integers(0, 10**6))
def test_the_reverse_huber_map_far_outside_the_ball(seed):
    """Against rational numbers.

    Errors are relative to the bound and the level that it leaves, not to the row.
    """
    penalty, t, V, parts = awkward(seed, 8)
    sums = np.abs(penalty.prox(V, t)).sum(axis=1)
    radius = bounds(sums, 1e-9 * parts)
    W = penalty.prox_ball(V, t, V.shape[1], radius)
    c, ridge = Fraction(penalty.corner), Fraction(penalty.ridge)
    for i in np.flatnonzero(sums):
        v = [Fraction(abs(x)) for x in V[i]]
        d = [max(v) - x for x in v]
        rho = 1 / (1 + Fraction(float(np.broadcast_to(t, (4, 1))[i, 0])) * ridge)

        def sizes(level, d=d, rho=rho):
            return [min(max(level - x, 0), c) + rho * max(level - x - c, 0) for x in d]

        # where the sum is the bound at least
        first, last = (
            0,
            max(d) + c + Fraction(radius[i]) / rho,
        )
        for corner in sorted({*d, *(x + c for x in d)}):
            first, last = (
                (corner, last) if sum(sizes(corner)) <= radius[i] else (first, min(last, corner))
            )
        low, high = sum(sizes(first)), sum(sizes(last))
        level = first + (last - first) * (Fraction(radius[i]) - low) / (high - low)
        assert sum(sizes(level)) == Fraction(radius[i])
        np.testing.assert_allclose(
            np.abs(W[i]),
            np.array(sizes(level), dtype=float),
            rtol=0,
            atol=1e-12 * (radius[i] + float(level)),
        )


@given(st.integers(0, 10**6), st.booleans())
def test_the_conjugate_on_the_ball_is_as_small_as_bisection_makes_it(seed, free):
    penalty, _, V, parts = awkward(seed, 8)
    ridge, price = penalty.ridge, 0.0 if free else penalty.price
    size, s = np.abs(V), np.sqrt(2 * ridge * price)

    def falling(nu):
        return np.sum(np.maximum(size - nu, 0) * (size - nu > s), axis=1, keepdims=True) / ridge

    radius = bounds(falling(0.0)[:, 0], parts)

    def bound_at(nu):
        return radius * nu[:, 0] + np.sum(
            np.maximum(np.maximum(size - nu, 0) ** 2 / (2 * ridge) - price, 0), axis=1
        )

    best = bound_at(by_bisection(falling, radius[:, None], size.max(axis=1, keepdims=True)))
    found = sim.penalties._conjugate(size, size.shape[1], radius, ridge, price)
    rounding = 1e-15 * price * size.shape[1]  # of q* at its kink
    assert np.all(found <= best * (1 + 1e-12) + rounding)
    assert np.all(found >= best * (1 - 1e-12) - rounding)


def test_the_conjugate_does_not_round_across_its_kink():
    """Far above it, a rounding of nu in the wrong direction would cost more than the value."""
    price, ridge, rng = 2.0, 0.1, np.random.default_rng(0)
    s = np.sqrt(2 * price * ridge)
    size, radius = s * 10.0 ** rng.uniform(0, 8, (1000, 1)), np.full(1000, 1e-9 * s / ridge)
    best = radius * (size[:, 0] - s)  # nu = |xi| - s
    assert np.all(
        sim.penalties._conjugate(size, 1, radius, ridge, price)
        <= best * (1 + 1e-12) + 1e-15 * price
    )


@pytest.mark.parametrize("target", [2.0**-440, 2.0**440])
@pytest.mark.parametrize("inputs", [2.0**-440, 2.0**440])
def test_reverse_huber_in_any_unit(target, inputs):
    """Price and ridge may have a product or a quotient that is no number.

    It is too small or too large for one, and nobody needs it.
    """
    weight, xi, t = target / inputs, target * inputs, 1.0 / inputs**2
    plain, scaled = sim.ReverseHuber(0.3, 0.7), sim.ReverseHuber(0.3 * target**2, 0.7 * inputs**2)
    V, Xi = np.random.default_rng(0).normal(size=(2, 20, 6)) * [[[1]], [[3]]]
    radius = np.random.default_rng(1).uniform(0.1, 2, 20)
    assert scaled.slope == plain.slope * xi
    assert scaled.corner == plain.corner * weight
    assert np.array_equal(scaled.value(V * weight), plain.value(V) * target**2)
    assert np.array_equal(
        scaled.prox_ball(V * weight, t, 6, radius * weight),
        plain.prox_ball(V, 1.0, 6, radius) * weight,
    )
    for ball in (0, 4):
        assert np.array_equal(
            scaled.conjugate(Xi * xi, ball, radius * weight),
            plain.conjugate(Xi, ball, radius) * target**2,
        )


def test_bounds_and_masks_may_live_with_the_moments(xp):
    rng = np.random.default_rng(0)
    M, Z, radius, mask = (
        rng.normal(size=(60, 9)),
        rng.normal(size=(60, 6)),
        rng.uniform(0.1, 1, 6),
        rng.random((6, 9)) < 0.7,
    )

    def solved(M, Z, radius, mask):
        return sim.FISTA()(
            sim.RowProblem.of(sim.Moments.of(M, Z), sim.L1(0.02), ball=5, radius=radius, mask=mask)
        ).W

    found = solved(*(from_host(xp, a) for a in (M, Z, radius, mask)))
    np.testing.assert_allclose(to_numpy(found), solved(M, Z, radius, mask), rtol=1e-6, atol=1e-9)


def test_the_formulas_in_every_library(xp):
    """Also next to entries without bound; on a GPU in few launches, without waiting."""
    penalty, rng = sim.ReverseHuber(0.3, 1.0), np.random.default_rng(0)
    V, radius = 2 * rng.normal(size=(50, 9)), 10.0 ** rng.uniform(-1, 1, 50)
    there = xp.asarray(V)
    for t in (0.7, rng.uniform(0.1, 2, (50, 1))):
        step = t if isinstance(t, float) else xp.asarray(t)
        for ball in (9, 5):
            cupy.launches = cupy.waits = 0
            found = [
                penalty.prox_ball(there, step, ball, radius),
                penalty.conjugate(there, ball, radius),
            ]
            assert cupy.launches <= 110
            assert cupy.waits == 0
            for mine, plain in zip(
                found, [penalty.prox_ball(V, t, ball, radius), penalty.conjugate(V, ball, radius)]
            ):
                np.testing.assert_allclose(to_numpy(mine), plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("radius", [0.7, None])
def test_weights_that_cost_nothing_are_eliminated(radius, copies):
    """Also where they are not determined: inputs given twice leave G singular."""
    rng, n = np.random.default_rng(5), 3
    M = np.concatenate([rng.normal(size=(40, n)), *[rng.normal(size=(40, 4))] * copies], axis=1)
    Z = M @ rng.normal(size=(M.shape[1], 5)) + rng.normal(size=(40, 5))
    task = sim.RowProblem.of(
        sim.Moments.of(M, Z), sim.NoPenalty(), ball=n if radius else 0, radius=radius
    )
    for solver in SOLVERS:
        rows = solver(tol=1e-9)(task)
        assert rows.converged.all()
        best = np.full(5, np.inf)
        for a in [
            rows.W[:, :n],
            *(
                task.project(rows.W + 1e-3 * rng.normal(size=rows.W.shape))[:, :n]
                for _ in range(20)
            ),
        ]:
            rest = Z - Z.mean(axis=0) - (M[:, :n] - M[:, :n].mean(axis=0)) @ a.T
            V = M[:, n:] - M[:, n:].mean(axis=0)
            best = np.minimum(
                best, np.mean((rest - V @ np.linalg.lstsq(V, rest, rcond=None)[0]) ** 2, axis=0) / 2
            )
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


FREE_WEIGHTS = {  # G, and a point away from the minimum, in whole numbers
    "one weight": ([[5]], [3]),
    "two weights": ([[4, 1], [1, 3]], [2, -1]),
    "three weights, correlated": ([[9, 8, 1], [8, 9, -1], [1, -1, 7]], [1, -4, 2]),
    "of several sizes": ([[10**8, 10], [10, 1]], [-3, 7]),
}


@pytest.mark.parametrize("case", FREE_WEIGHTS)
def test_what_free_weights_miss_is_known_exactly(case, xp):
    """The loss at w above its minimum, in fractions: with ``d = w - w*``, ``d G d / 2``."""
    G, d = FREE_WEIGHTS[case]
    g = [sum(a * b for a, b in zip(row, d, strict=True)) for row in G]
    above = sum(Fraction(a * b, 2) for a, b in zip(d, g, strict=True))
    spectrum = Spectrum.of(from_host(xp, np.array(G, float)))
    gradient = from_host(xp, np.array([g, [-2 * a for a in g], [0] * len(g)], float))
    missing = spectrum.missing(gradient, 0.0 * gradient)
    assert missing == pytest.approx([float(above), 4 * float(above), 0], rel=1e-7)


def test_what_free_weights_miss_in_directions_that_data_do_not_tell():
    """There G is known to be zero up to its rounding, and g up to e: both are counted."""
    spectrum = Spectrum.of(np.diag([2.0, 0.0]))
    g, e = np.array([[3.0, 1e-9]]), np.array([[1e-2, 1e-9]])
    least = np.finfo(float).eps  # of an eigenvalue beside 2, rounding may have made it zero
    unknown = (1e-9 + 1e-9) ** 2 / 2 / least
    assert spectrum.missing(g, e) == pytest.approx([9 / 4 + unknown], rel=1e-9)
    nothing = Spectrum.of(np.zeros((0, 0)))
    assert nothing.missing(g[:, :0], e[:, :0]) == [0.0]


def test_an_exact_fit_is_done_up_to_rounding():
    """More weights than samples, all free, and a target that is zero.

    What is missing is rounding, relative to nothing.
    """
    rng = np.random.default_rng(0)
    targets = np.stack([rng.normal(size=3), np.zeros(3)], axis=1)
    rows = sim.ADMM(tol=1e-8)(
        sim.RowProblem.of(sim.Moments.of(rng.normal(size=(3, 6)), targets), sim.NoPenalty())
    )
    assert rows.converged.all()


def test_weights_that_are_large_and_cost_nothing():
    """No multiplier to measure a step of the weights by, and no warning of an overflow."""
    rng = np.random.default_rng(0)
    moments = sim.Moments.of(
        rng.normal(size=(60, 3)) * [1e-6, 1e-7, 1e-8], 1e6 * rng.normal(size=(60, 1))
    )
    assert sim.ADMM()(
        sim.RowProblem.of(moments, sim.NoPenalty(), ball=3, radius=1e15)
    ).converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_data_that_say_nothing(solver):
    """A single sample about its own mean: nothing to divide by, and no warning."""
    rng = np.random.default_rng(0)
    task = sim.RowProblem.of(
        sim.Moments.of(rng.normal(size=(1, 3)), rng.normal(size=(1, 2))),
        sim.L1(10.0),
        ball=3,
        radius=0.7,
    )
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
