"""Penalties of sensitivity and of gamma: their gradients, and what training with them does."""

import boxes
import numpy as np
import pytest
from gains import angles
from helpers import host, moved

from pyidl import ImplicitModel, Linear, Sequential, activations, fit, losses, optim, robustness
from pyidl.errors import InputError
from pyidl.robustness import LipschitzPenalty, SensitivityPenalty
from pyidl.wellposed import InfNorm, MatrixMeasure, Monotone

KINDS = ["relu measure", "tanh measure", f"{boxes.STEEP.name} measure", "rank", "pattern", "no D"]
T, DELTA = [1.0, 0.0, 2.0], [0.3, 1.0, 0.0]


def differences(penalty, params, way, h=1e-7):
    ahead, behind = (
        penalty({key: a + t * h * way[key] for key, a in params.items()})[0] for t in (1, -1)
    )
    return (ahead - behind) / (2 * h)


def complex_step(penalty, model, way):
    """``Im f(theta + i h) / h``, without a difference: signs and solves as they are."""
    p = {key: host(a) + 1e-30j * way[key] for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    L, absolute = model.activation.lipschitz, lambda W: W * np.sign(W.real)
    n, eye = len(A), np.eye(len(A)) > 0
    rises = model.activation.slope_range[0] >= 0
    K = np.eye(n) - L * np.where(eye & rises, A, absolute(A))
    D = p.get("D", np.zeros((len(T), len(DELTA))))
    S = absolute(p["C"]) @ np.linalg.solve(K, L * absolute(p["B"])) + absolute(D)
    return penalty.weight * (penalty.outputs @ S @ penalty.inputs).imag * 1e30


def unrolled(penalty, model, way, steps=12000):
    """``a <- a + h (L A' a - a + L |B| delta)``, differentiated along the way step by step."""
    p = {key: host(a) for key, a in model.params.items()}
    A, dA = p.get("A"), way.get("A")
    if A is None:
        A, dA = p["L"] @ p["R"].T, way["L"] @ p["R"].T + p["L"] @ way["R"].T
    L, (t, delta) = model.activation.lipschitz, (penalty.outputs, penalty.inputs)
    kept = np.diag(np.full(len(A), model.activation.slope_range[0] >= 0))
    M, dM = L * np.where(kept, A, np.abs(A)), L * np.where(kept, dA, np.sign(A) * dA)
    (B, dB), (C, dC) = ((np.abs(p[k]), np.sign(p[k]) * way[k]) for k in "BC")
    h = 1.0 / (1.0 + np.abs(np.diagonal(M)).max())
    a = da = np.zeros(len(A))
    for _ in range(steps):
        da = da + h * (M @ da + dM @ a - da + L * dB @ delta)
        a = a + h * (M @ a - a + L * B @ delta)
    dD = np.sign(p["D"]) * way["D"] if "D" in p else np.zeros((len(t), len(delta)))
    return penalty.weight * t @ (dC @ a + C @ da + dD @ delta)


def direction(model, rng):
    """Where an entry is 0 it stays: there is a kink, with the slope 0 in between."""
    way = {key: rng.normal(size=a.shape) * (host(a) != 0) for key, a in model.params.items()}
    return way


@pytest.mark.parametrize("kind", [*KINDS, "silu", "sin"])
def test_the_gradient_of_sensitivity_has_three_oracles(kind):
    rng, model = np.random.default_rng(0), boxes.drawn(kind, 7, 0)
    penalty = SensitivityPenalty(model, 0.7, T, DELTA)
    value, grads = penalty(model.params)
    S = robustness.sensitivity(model)
    np.testing.assert_allclose(value, 0.7 * np.array(T) @ S @ DELTA, rtol=1e-11)
    for _ in range(2):
        way = direction(model, rng)
        slope = sum(np.sum(grads[key] * way[key]) for key in grads)
        np.testing.assert_allclose(slope, differences(penalty, model.params, way), rtol=2e-6)
        np.testing.assert_allclose(slope, complex_step(penalty, model, way), rtol=1e-10)
        np.testing.assert_allclose(slope, unrolled(penalty, model, way), rtol=1e-6)


def quadratic(model, lam, p):
    """``N^T H^{-1} N - [[0, D^T], [D, 0]]``, whose largest eigenvalue is gamma; no conjugate."""
    A, L = p["A"] if "A" in p else p["L"] @ p["R"].T, model.activation.lipschitz
    B, C = p["B"], L * p["C"]
    D = p.get("D", np.zeros((len(C), B.shape[1])))
    H = 2 * np.diag(lam) - L * (lam[:, None] * A + (lam[:, None] * A).T)
    N = np.concatenate([-lam[:, None] * B, C.T], axis=1)
    Q = N.T @ np.linalg.solve(H, N)
    Q[3:, :3] -= D
    Q[:3, 3:] -= D.T
    return Q


def bordered(Q, dQ):
    """The equations of an eigenpair, ``Q z = g z, z^T z = 1``, differentiated and solved."""
    values, Z = np.linalg.eigh(Q)
    z, n = Z[:, -1], len(Q)
    J = np.zeros((n + 1, n + 1))
    J[:n, :n], J[:n, n], J[n, :n] = Q - values[-1] * np.eye(n), -z, z
    return np.linalg.solve(J, np.concatenate([-dQ @ z, [0.0]]))[n]


def squared(Q, dQ, times=40):
    """``M <- M M / tr(M M)``, M = Q + c I at first, differentiated step by step: M -> z z^T."""
    M, dM = Q + np.linalg.norm(Q) * np.eye(len(Q)), dQ
    for _ in range(times):
        M, dM = M @ M, M @ dM + dM @ M
        size, dsize = np.trace(M), np.trace(dM)
        M, dM = M / size, dM / size - M * dsize / size**2
    return np.trace(dQ @ M) + np.trace(Q @ dM)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_gamma_has_three_oracles(kind):
    rng, model = np.random.default_rng(1), boxes.drawn(kind, 7, 1)
    found = angles(model)
    lam = found.best()[1] * np.exp(0.05 * rng.normal(size=7)) * found.scale[1] / found.scale[0]
    penalty = LipschitzPenalty(model, 0.5, lam)
    value, grads = penalty(model.params)
    p = {key: host(a) for key, a in model.params.items()}
    Q = quadratic(model, lam, p)
    np.testing.assert_allclose(value, 0.5 * np.linalg.eigvalsh(Q)[-1], rtol=1e-9)
    assert value / 0.5 >= robustness.lipschitz(model, 2) * (1 - 1e-3) or kind == "rank"
    for _ in range(5):
        way = direction(model, rng)
        slope = sum(np.sum(grads[key] * way[key]) for key in grads)
        np.testing.assert_allclose(slope, differences(penalty, model.params, way), rtol=1e-5)
        dQ = quadratic(model, lam, {key: a + 1e-30j * way[key] for key, a in p.items()}).imag * 1e30
        np.testing.assert_allclose(slope, 0.5 * bordered(Q, dQ), rtol=1e-8)
        np.testing.assert_allclose(slope, 0.5 * squared(Q, dQ), rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "constraint", "measure"),
    [
        (SensitivityPenalty, MatrixMeasure(0.9), lambda m: robustness.sensitivity(m).sum()),
        (LipschitzPenalty, Monotone(0.1), lambda m: robustness.lipschitz(m, 2)),
    ],
    ids=["sensitivity", "gamma"],
)
def test_training_with_it_makes_a_model_insensitive(make, constraint, measure):
    rng = np.random.default_rng(0)
    U = rng.normal(size=(64, 3))
    Y, found = np.sin(2 * U[:, :1]) + U[:, 1:2], []
    for weight in (0.0, 0.3):
        model = ImplicitModel(3, 4, 8, constraint=constraint, dtype="float64", rng=0)
        net = Sequential(model, Linear(4, 1, dtype="float64", rng=1))
        penalty, step = make(model, weight, prefix="0."), optim.Adam(0.02)
        fit(net, (U, Y), loss=losses.mse, optimizer=step, epochs=20, rng=0, verbose=0,
            penalty=penalty)  # fmt: skip
        found.append(measure(model))
    assert found[1] < 0.7 * found[0]


def test_libraries_and_dtypes(xp):
    for make, constraint in ((SensitivityPenalty, InfNorm(0.9)), (LipschitzPenalty, Monotone(0.2))):
        model = ImplicitModel(3, 2, 5, constraint=constraint, rng=0)
        value, grads = make(model, 1.0)(model.params)
        other, found = make(model, 1.0)(moved(model, xp).params)
        assert found.keys() == grads.keys()
        assert value == other
        for key, g in grads.items():
            assert found[key].dtype == xp.float32
            np.testing.assert_array_equal(host(found[key]), g)


def test_what_is_refused():
    model = ImplicitModel(3, 2, 4, dtype="float64", rng=0)
    soft = ImplicitModel(3, 2, 4, activation=activations.softmax, rng=0)
    with pytest.raises(InputError, match="softmax"):
        SensitivityPenalty(soft, 1.0)
    with pytest.raises(InputError, match="silu"):
        LipschitzPenalty(ImplicitModel(3, 2, 4, activation=activations.silu, rng=0), 1.0)
    for name, wrong in (("outputs", [1.0]), ("inputs", [1.0, -1.0, 1.0])):
        with pytest.raises(InputError, match=name):
            SensitivityPenalty(model, 1.0, **{name: wrong})
    with pytest.raises(InputError, match="prefix"):
        SensitivityPenalty(model, 1.0, prefix="1.")(model.params)
    large = {**model.params, "A": 3.0 * np.eye(4)}
    for make in (SensitivityPenalty, LipschitzPenalty):
        with pytest.raises(InputError, match="outside of the set"):
            make(model, 1.0)(large)
