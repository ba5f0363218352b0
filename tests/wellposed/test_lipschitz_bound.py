"""Outputs move at most gamma times as far as inputs, and nearly that far.

Properties that all constraints share are in test_constraints.py and test_certificates.py.
"""

import numpy as np
import pytest
from conditions import AROUND, N, slack_of

import pyidl
from pyidl import ImplicitModel, ImplicitRNN, Pattern, activations, optim
from pyidl.activations import Activation
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.solvers import Auto, ForwardBackward, PeacemanRachford
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import is_monotone
from pyidl.wellposed import BlockTriangular, LipschitzBound

RELU = activations.relu


def drawn(seed):
    """A set, and parameters outside it; every second set has weights."""
    rng = np.random.default_rng(seed)
    n, p, q = rng.integers(2, 9, size=3)
    gamma = 10.0 ** rng.uniform(-1, 1)
    weights = None if seed % 2 else 10.0 ** rng.uniform(-1, 1, size=n)
    size = 10.0 ** rng.uniform(-0.5, 0.5, size=3)
    params = {
        "A": 3.0 * size[0] * rng.normal(size=(n, n)),
        "B": size[1] * rng.normal(size=(n, p)),
        "C": size[2] * rng.normal(size=(q, n)),
        "D": 0.7 * gamma * rng.normal(size=(q, p)) / p**0.5,
    }
    return rng, LipschitzBound(gamma, 0.05, weights), params


def steepest(params, rng, tries=6):
    """The largest ``|C (I - S A)^{-1} S B + D|_2`` met, over slopes S in [0, 1]."""
    A, B, C, D = (params[key] for key in "ABCD")
    n, best = len(A), 0.0

    def size(s):
        J = C @ np.linalg.solve(np.eye(n) - s[:, None] * A, s[:, None] * B) + D
        return np.linalg.norm(J, 2)

    for _ in range(tries):
        s = rng.random(n) if rng.random() < 0.5 else rng.integers(0, 2, size=n).astype(float)
        value = size(s)
        for i in [*range(n), *range(n)]:
            for slope in (0.0, 0.5, 1.0):
                t = s.copy()
                t[i] = slope
                if (found := size(t)) > value:
                    s, value = t, found
        best = max(best, value)
    return best


def by_outputs(params, rng):
    """The largest quotient of differences of outputs, over pairs that were solved."""
    phi = RELU if rng.random() < 0.5 else activations.hard_tanh
    A, B, C, D = (params[key] for key in "ABCD")
    U = rng.normal(size=(40, B.shape[1])) * 10.0 ** rng.uniform(-1, 1, size=(40, 1))
    V = U + rng.normal(size=U.shape) * 10.0 ** rng.uniform(-3, 0, size=(40, 1))
    solver = PeacemanRachford(1e-13, 2000, 1 / np.linalg.norm(np.eye(len(A)) - A, 2))
    found = [solver(Affine(Full(A), W @ B.T, phi)) for W in (U, V)]
    X, Y = (s.value for s in found)
    both = np.logical_and(*(s.residual < 1e-11 for s in found))
    moved = np.linalg.norm((X - Y) @ C.T + (U - V) @ D.T, axis=1)
    return (moved / np.linalg.norm(U - V, axis=1))[both].max(initial=0.0)


def search(project, seeds):
    """The shares of gamma that are attained; asserts what must hold."""
    shares = []
    for seed in seeds:
        rng, ball, params = drawn(seed)
        inside = project(ball, params)
        F = slack_of(ball.gamma, *(inside[key] for key in "ABCD"), ball.weights, ball.margin)
        scale = 1 + np.abs(F).max()
        assert np.linalg.eigvalsh(F)[0] >= -1e-10 * scale
        assert np.linalg.norm(inside["D"], 2) < ball.gamma
        assert inside["B"] is params["B"]
        assert inside["C"] is params["C"]
        assert ball.contains(inside, RELU)
        certificate = ball.certificate(inside, RELU)
        assert certificate.proven
        assert f"outputs move at most {ball.gamma:.4g}" in certificate.reason
        assert "not proven" not in certificate.reason
        slopes, outputs = steepest(inside, rng), by_outputs(inside, rng)
        assert slopes <= ball.gamma * (1 + 1e-9)
        assert outputs <= ball.gamma * (1 + 1e-4)  # solved to 1e-11, a thousandth apart
        shares.append((slopes / ball.gamma, outputs / ball.gamma))
    return np.array(shares).T


def test_no_search_beats_gamma_and_most_come_near():
    slopes, outputs = search(lambda ball, params: ball.project(params, RELU), range(120))
    assert np.median(slopes) > 0.8
    assert np.mean(outputs > 0) > 0.8  # of so many models, pairs were solved


def nearest(ball, params, c_term=1.0, d=1.0, skew=1.0):
    """The projection by its formula, in the metric; or, by other numbers, a broken one."""
    U, sigma, V = np.linalg.svd(params["D"], full_matrices=False)
    D = (U * np.minimum(sigma, (1 - ball.margin) * ball.gamma)) @ V
    lam = np.ones(len(params["A"])) if ball.weights is None else np.array(ball.weights)
    s = np.sqrt(lam)
    A, B, C = params["A"] * s[:, None] / s, params["B"] * s[:, None], params["C"] / s
    X = B + d * C.T @ D / ball.gamma
    R = ball.gamma * np.eye(D.shape[1]) - d * D.T @ D / ball.gamma
    Z = (1 - ball.margin) * np.eye(len(A))
    Z = Z - (c_term * C.T @ C / ball.gamma + X @ np.linalg.solve(R, X.T)) / 2
    w, Q = np.linalg.eigh(Z - (A + A.T) / 2)
    P = skew * (A - A.T) / 2 + (A + A.T) / 2 + (Q * np.minimum(w, 0)) @ Q.T
    return {**params, "A": P * s / s[:, None], "D": D}


def test_the_projection_is_the_formula():
    for seed in range(120):
        _, ball, params = drawn(seed)
        found, exact = ball.project(params, RELU), nearest(ball, params)
        size = np.abs(exact["A"]).max() + np.abs(params["A"]).max()
        np.testing.assert_allclose(found["A"], exact["A"], rtol=0, atol=1e-9 * size)
        np.testing.assert_allclose(found["D"], exact["D"], rtol=0, atol=1e-11 * ball.gamma)


def worst_product(project, seeds, count=10):
    """The largest ``<A - P, Q - P>``, relative, in the metric, over feasible Q."""
    worst = 0.0
    for seed in seeds:
        rng, ball, params = drawn(seed)
        inside = project(ball, params)
        P, A, s = inside["A"], params["A"], np.sqrt(ball.weights or np.ones(len(params["A"])))
        for _ in range(count):
            step = rng.normal(size=A.shape) * 10.0 ** rng.uniform(-3, 1)
            Q = ball.project({**inside, "A": P + step}, RELU)["A"]
            left, right = ((M - P) * s[:, None] / s for M in (A, Q))
            size = np.linalg.norm(left) * np.linalg.norm(right) + 1e-300
            worst = max(worst, (left * right).sum() / size)
    return worst


def test_the_projection_passes_the_variational_inequality():
    """1,200 times: no feasible Q lies at an acute angle."""
    assert worst_product(lambda ball, params: ball.project(params, RELU), range(120)) < 1e-6


@pytest.mark.parametrize("broken", [{"c_term": 0.5}, {"d": 0.0}, {"skew": -1.0}], ids=str)
def test_broken_twins_are_caught(broken):
    """Half of the C^T C, no D in X and R, the skew part turned round."""

    def twin(ball, params):
        return nearest(ball, params, **broken)

    if "skew" in broken:  # feasible, but not near
        assert worst_product(twin, range(10)) > 1e-2
    else:
        with pytest.raises(AssertionError):
            search(twin, range(1, 20))


def test_without_D_the_published_parametrisation_lies_in_the_set():
    """``A = I - Lam^{-1} (C^T C / (2 gamma) + Lam B B^T Lam / (2 gamma) + V^T V + m Lam + T)``.

    With a skew T. With V = 0 it lies on the boundary.
    """
    for seed in range(40):
        rng, ball, params = drawn(seed)
        del params["D"]
        B, C, n = params["B"], params["C"], len(params["A"])
        lam = np.ones(n) if ball.weights is None else np.array(ball.weights)
        T = rng.normal(size=(n, n))
        X = lam[:, None] * B
        least = (C.T @ C + X @ X.T) / (2 * ball.gamma) + ball.margin * np.diag(lam) + T - T.T
        edge = np.eye(n) - least / lam[:, None]
        size = np.abs(edge).max() + 1
        found = ball.project({**params, "A": edge}, RELU)["A"]
        np.testing.assert_allclose(found, edge, rtol=0, atol=1e-9 * size * lam.max() / lam.min())
        for share, inside in ((1e-6, True), (-1e-6, False)):
            A = edge - share * size * np.eye(n)
            assert ball.contains({**params, "A": A}, RELU) == inside
        V = rng.normal(size=(n, n)) + 2 * np.eye(n)
        given = {**params, "A": edge - (V.T @ V + 1e-6 * np.diag(lam) * size) / lam[:, None]}
        assert ball.project(given, RELU)["A"] is given["A"]


def test_a_very_negative_A_is_left_alone():
    for seed in range(20):
        _, ball, params = drawn(seed)
        params["D"] = ball.project(params, RELU)["D"]
        n = len(params["A"])
        params["A"] = -1e6 * np.eye(n)
        assert ball.project(params, RELU)["A"] is params["A"]
        params["A"] = 0.999 * np.eye(n)
        assert ball.project(params, RELU)["A"] is not params["A"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_projection_is_continuous(dtype):
    """A, B, C grow from 0.01 to 30 times their size in small steps; no step makes A jump."""
    for seed in range(4):
        _, ball, params = drawn(seed)
        sizes, found = np.geomspace(0.01, 30.0, 500), []
        for t in sizes:
            grown = {k: (M if k == "D" else t * M).astype(dtype) for k, M in params.items()}
            found.append(ball.project(grown, RELU)["A"].astype(float))
        found = np.array(found)
        steps = np.linalg.norm(np.diff(found, axis=0), axis=(1, 2))
        # A grows as t^2 at most, by 2 * 0.016 of itself a step
        size = np.linalg.norm(found, axis=(1, 2))[1:] + 1
        assert (steps / size).max() < 0.05


def test_what_does_not_fit_is_refused():
    ball = LipschitzBound(1.0)
    steep = Activation("steep", lambda z: 2 * z, lambda z: 0 * z + 2, slope_range=(2.0, 2.0))
    for phi in (activations.silu, activations.softmax, activations.abs, steep):
        assert ball.refusal(phi)
        assert not ball.certificate({**AROUND, "A": np.zeros((N, N))}, phi).proven
    assert "reach 2" in ball.refusal(steep)
    assert not ball.refusal(activations.sigmoid)
    with pytest.raises(InputError, match="lacks B, C"):
        ball.project({"A": np.eye(3)}, RELU)
    with pytest.raises(InputError, match="rank=None"):
        ImplicitModel(3, 2, 4, rank=2, constraint=ball)
    with pytest.raises(InputError, match="no BlockTriangular"):
        ImplicitModel(3, 2, 4, constraint=BlockTriangular((2, 2), ball))
    with pytest.raises(InputError, match="feedthrough=True or False"):
        ImplicitRNN(3, 2, 4, 5, constraint=ball, feedthrough="input")
    with pytest.raises(InputError, match="pattern of D"):
        ImplicitModel(3, 2, 4, constraint=ball, pattern=Pattern(D=np.eye(2, 3, dtype=bool)))
    huge = {"A": np.zeros((2, 2)), "B": np.full((2, 1), 1e200), "C": np.ones((1, 2))}
    with pytest.raises(InputError, match="overflows"):
        ball.project(huge, RELU)
    with pytest.raises(InputError, match="not finite"):
        ball.project({**AROUND, "A": np.full((N, N), np.nan)}, RELU)


def test_a_gamma_that_does_not_hold_is_not_proven():
    params = {"A": np.zeros((1, 1)), "B": np.ones((1, 1)), "C": np.ones((1, 1))}
    for gamma, holds in ((0.999, False), (1.001, True)):  # |y - y'| = |u - u'|
        reason = LipschitzBound(gamma).certificate(params, RELU).reason
        assert ("not proven" not in reason) == holds


# ------------------------------------------------------------------- solvers, and training


def in_a_metric(seed=0, n=12):
    """A monotone in the metric lam, and not in the plain one."""
    rng = np.random.default_rng(seed)
    lam = 10.0 ** rng.uniform(-1, 1, size=n)
    ball = LipschitzBound(2.0, weights=lam)
    params = {
        "A": 4.0 * rng.normal(size=(n, n)),
        "B": 0.3 * rng.normal(size=(n, 3)),
        "C": 0.3 * rng.normal(size=(2, n)),
    }
    return ball, ball.project(params, activations.tanh), rng.normal(size=(5, n))


def test_the_gate_of_the_splitting_knows_the_metric():
    for seed in range(5):
        ball, params, Z = in_a_metric(seed)
        plain, weighted = Full(params["A"]), Full(params["A"], metric=ball.metric)
        assert not is_monotone(plain)
        assert is_monotone(weighted)
        assert is_monotone(weighted.T)
        assert not is_monotone(Full(params["A"].T, metric=ball.metric))
        exact = PeacemanRachford(1e-12, 100000)(Affine(plain, Z, activations.tanh))
        assert exact.converged.all()
        with pytest.raises(InputError, match="has no step"):
            ForwardBackward()(Affine(plain, Z, RELU))
        ForwardBackward(1e-3)(Affine(weighted, Z, RELU))


def test_auto_takes_peaceman_rachford_in_the_metric():
    ball, params, _ = in_a_metric()
    model = ImplicitModel(
        3, 2, 12, feedthrough=False, constraint=ball, dtype="float64", bias=False, rng=0
    )
    model.params = params
    U = np.random.default_rng(0).normal(size=(6, 3)) * 3
    solution = model(U)[1].forward
    assert solution.converged.all()
    assert "PeacemanRachford" in solution.method
    without = Auto()(Affine(Full(params["A"], (9.0, 9.0)), U @ params["B"].T, RELU))
    assert "PeacemanRachford" not in without.method


@pytest.mark.parametrize("weights", [None, tuple(np.geomspace(0.3, 3.0, 8))])
def test_it_trains_is_saved_and_shown(tmp_path, weights):
    rng = np.random.default_rng(0)
    U = rng.normal(size=(64, 3))
    T = 4 * np.tanh(U @ rng.normal(size=(3, 2)))
    ball = LipschitzBound(0.8, weights=weights)
    model = ImplicitModel(3, 2, 8, constraint=ball, rng=0)
    assert ball.contains(model.params, RELU)
    history = pyidl.fit(
        model, (U, T), loss="mse", optimizer=optim.Adam(0.02), epochs=8, rng=0, verbose=0
    )
    assert history["loss"][-1] < history["loss"][0]
    assert ball.contains(model.params, RELU)
    moved = np.diff(model.predict(U).astype(float), axis=0)
    assert np.all(np.linalg.norm(moved, axis=1) <= 0.8 * np.linalg.norm(np.diff(U, axis=0), axis=1))
    pyidl.save(tmp_path / "model.npz", model)
    loaded = pyidl.load(tmp_path / "model.npz")
    assert loaded.constraint == ball
    assert np.array_equal(loaded.predict(U), model.predict(U))
    assert "LipschitzBound(gamma=0.8" in loaded.summary().notes[0]


def test_a_recurrent_step_is_bounded():
    """From (u_t, h_{t-1}) to h_t; what a new network balances is projected again."""
    ball = LipschitzBound(0.6)
    for feedthrough in (True, False):
        model = ImplicitRNN(2, 1, 3, 8, constraint=ball, feedthrough=feedthrough, rng=0)
        assert ball.contains(model.params, RELU)
