"""A search for false promises, among models inside each constraint and just outside of it.

What is said to have converged is as near to the solution as is promised. What is
certified with a factor of at most 0.99 is solved by the defaults, forward and back,
unless a single rounding of each term of ``A x + z``, or of ``A^T v + g``, may exceed the
tolerance.
"""

import sys

import numpy as np
import pytest
from conditions import hard_matrix, mixed

from pyidl import ImplicitModel, activations
from pyidl.activations import Activation
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    LipschitzBound,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    Unconstrained,
)

N, P, M = 6, 2, 3
TOL = {"float32": 1e-6, "float64": 1e-12}  # of the defaults
PHIS = [
    *activations.builtin.BUILT_IN.values(),
    activations.leaky_relu(0.3),
    mixed,
]
SETS = [
    InfNorm(0.95),
    InfNorm(0.95, weights=(0.1, 3.0, 1.0, 40.0, 0.7, 1.0)),
    PerronFrobenius(0.95),
    StrictlyTriangular(),
    SpectralNorm(0.95),
    MatrixMeasure(0.9),
    Monotone(0.1),
    BlockTriangular((2, 1, 3), InfNorm(0.9)),
    LipschitzBound(5.0),
]


def draw(seed):
    """A model, inputs, and cotangents; every third is a bit outside its set."""
    rng = np.random.default_rng(seed)
    constraint, phi = SETS[seed % len(SETS)], PHIS[seed // len(SETS) % len(PHIS)]
    dtype = "float32" if rng.random() < 0.3 else "float64"
    # the set of one activation may be none of another's
    if constraint.refusal(phi):
        phi = activations.tanh
    model = ImplicitModel(
        P, 2, N, activation=phi, constraint=Unconstrained(), dtype=dtype, rng=seed
    )
    most = 1e6 if dtype == "float32" else 1e8  # states of N blocks are then numbers
    A = np.clip(hard_matrix(rng, N), -most, most).astype(dtype)
    params = {key: rng.normal(size=a.shape).astype(dtype) for key, a in model.params.items()}
    params = constraint.project({**params, "A": A}, phi)
    if seed % 3 == 0:
        params["A"] = params["A"] * np.dtype(dtype).type(1 + 10.0 ** rng.uniform(-7, 0))
    model.params = params
    U = (rng.normal(size=(M, P)) * 10.0 ** rng.uniform(-2, 2)).astype(dtype)
    return model, U, rng.normal(size=(M, 2)).astype(dtype)


def float64(model, U):
    """A, ``z = B u + b``, and the size of the terms of ``A x + z``."""
    p = {key: a.astype(float) for key, a in model.params.items()}
    U = U.astype(float)
    size = np.abs(U) @ np.abs(p["B"]).T + np.abs(p["b"])
    return p["A"], U @ p["B"].T + p["b"], lambda X: np.abs(X) @ np.abs(p["A"]).T + size


def newton(A, z, phi, x):
    """The solution near x: a damped Newton method on dense matrices."""
    f = lambda x: phi.phi((A @ x + z)[None])[0]  # noqa: E731
    for _ in range(100):
        r = f(x) - x
        if np.abs(r).max() <= 4e-16 * (1 + np.abs(x).max()):
            break
        s, t = phi.dphi((A @ x + z)[None])[0], 1.0
        step = np.linalg.lstsq(np.eye(N) - s[:, None] * A, r, rcond=None)[0]
        while t > 1e-4 and np.abs(f(x + t * step) - x - t * step).max() > np.abs(r).max():
            t *= 0.5
        x = x + t * step
    return x


def broken(seed):
    """What is false of this model, in words; and whether it is certified."""
    model, U, G = draw(seed)
    phi, certificate, eps = model.activation, model.certificate(), np.finfo(model.dtype).eps
    A, Z, terms = float64(model, U)
    easy = certificate.proven and certificate.contraction <= 0.99
    pull = model(U, on_fail="ignore")[1]
    found, wrong = pull.forward, []
    X = found.value.astype(float)
    residual = np.abs(phi.phi(X @ A.T + Z) - X)
    rounding, size = phi.lipschitz * eps * terms(X).max(axis=1), np.abs(X).max(axis=1)
    if easy and np.any(~found.converged & (rounding <= found.tolerance)):
        wrong.append(f"forward: {found.status}")
    resolved = 4 * eps * np.abs(A).sum(axis=1).max() * size
    asked = np.maximum(TOL[model.dtype] * (1 + size), resolved) * (1 + 1e-6)
    most = found.tolerance + 8 * (N + P) * rounding
    for i in np.flatnonzero(found.converged):
        if found.tolerance[i] > asked[i]:
            wrong.append(f"tolerance {found.tolerance[i]:.3g} for {asked[i]:.3g}")
        if residual[i].max() > most[i]:
            wrong.append(f"residual {residual[i].max():.3g} of {most[i]:.3g}")
        if certificate.proven:
            exact = newton(A, Z[i], phi, X[i])
            own = np.abs(phi.phi(exact @ A.T + Z[i]) - exact) + 1e-15 * (1 + np.abs(exact).max())
            promised = sum(certificate.entrywise(np.stack([np.full(N, most[i]), own])))
            if np.any(np.abs(X[i] - exact) > promised):
                wrong.append(f"distance {np.abs(X[i] - exact).max():.3g} of {promised.max():.3g}")
    if certificate.proven:  # there is one solution, wherever one starts
        x0 = (10 * (1 + size[:, None]) * np.cos(np.arange(M * N)).reshape(M, N)).astype(X.dtype)
        other = model.equilibrium(U, x0=x0.astype(model.dtype), on_fail="ignore")
        apart = np.abs(other.value.astype(float) - X)
        promised = certificate.entrywise(
            np.maximum(most, other.tolerance)[:, None] + np.zeros((M, N))
        )
        both = (found.converged & other.converged)[:, None]
        if np.any(both & (apart > 2 * promised)):
            wrong.append(f"two solutions, {apart[both[:, 0]].max():.3g} apart")
    # v = S (A^T v + g), with the slopes at the pre-activations of the solution
    back, g = pull.solve(G), G @ model.params["C"].astype(float)
    V, S = back.value.astype(float), phi.dphi(found.pre.astype(float))
    residual = np.abs(S * (V @ A + g) - V).max(axis=1)
    terms = np.abs(V) @ np.abs(A) + np.abs(g)
    lost = ~(eps * terms.max(axis=1) <= back.tolerance)
    if easy and np.any(found.converged & ~back.converged & ~lost):
        wrong.append(f"adjoint: {back.status}")
    blur = 8 * (N + 2) * eps * ((np.abs(S) + 0.5) * terms).max(axis=1)
    for i in np.flatnonzero(back.converged & found.converged):
        if residual[i] > back.tolerance[i] + blur[i]:
            wrong.append(f"adjoint residual {residual[i]:.3g} of {back.tolerance[i]:.3g}")
    return wrong, easy


def search(seeds):
    with np.errstate(all="ignore"):  # of states that run to infinity
        found = {seed: broken(seed) for seed in seeds}
    assert {seed: wrong for seed, (wrong, _) in found.items() if wrong} == {}
    return sum(easy for _, easy in found.values())


LIE = Activation(
    "lie", lambda z: 2 * np.tanh(z), lambda z: 2 - 2 * np.tanh(z) ** 2, slope_range=(0, 0.5)
)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_search_finds_an_activation_that_lies(monkeypatch, seed):
    monkeypatch.setattr(sys.modules[__name__], "PHIS", [LIE])
    monkeypatch.setattr(sys.modules[__name__], "SETS", [SETS[seed]])
    with pytest.raises(AssertionError, match=r"two solutions|distance"):
        search(range(24))


def test_a_short_search():
    assert search(range(120)) > 60


@pytest.mark.slow
def test_a_long_search():
    assert search(range(5000)) > 2500
