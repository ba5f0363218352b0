"""The Euclidean conditions.

Bounds hold in exact arithmetic, projections are nearest, and no search finds a
counterexample.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_close, host
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import polar

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.matrices.full import Full
from pyidl.solvers import ForwardBackward, PeacemanRachford, Picard
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import _best_step
from pyidl.wellposed import eigenvalues as bounds
from pyidl.wellposed.monotone import Monotone
from pyidl.wellposed.spectral import SpectralNorm, spectral_bound

BUILT_IN = [activations.named(name) for name in activations.builtin.BUILT_IN]
STEEP = Activation(
    "steep", lambda z: 2 * np.maximum(z, 0), lambda z: 2.0 * (z > 0), slope_range=(0.0, 2.0)
)
TOGETHER = Blocks((activations.softmax, 3), (activations.layer_norm(0.5), 3), (activations.silu, 2))
UPWARD = [a for a in BUILT_IN if not Monotone().refusal(a)]
SEEDS = st.integers(0, 10**6)
DTYPES = st.sampled_from(["float32", "float64"])


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def adversarial(rng, n, kinds=12):
    """Matrices that a careless bound or projection gets wrong."""
    kind = rng.integers(0, kinds)
    A = rng.normal(size=(n, n))
    if kind == 1:
        A = np.outer(A[0], rng.normal(size=n))
    elif kind == 2:
        A = 0.9 * orthogonal(rng, n)  # on the boundary
    elif kind == 3:
        A = orthogonal(rng, n) @ np.diag(1 + 1e-9 * rng.normal(size=n)) @ orthogonal(rng, n)
    elif kind == 4:
        A *= 0
    elif kind == 5:
        A = np.triu(5 * A, 1) + 0.5 * np.eye(n)  # far from normal
    elif kind == 6:
        A = 10 * (A - A.T) + 0.5 * np.eye(n)
    elif kind == 7:
        A = A + A.T
    elif kind == 8:
        A *= 10.0 ** rng.uniform(-4, 4, size=(n, 1))
    elif kind == 9:
        A = 2 * np.ones((n, n))
    elif kind == 10:
        A *= 1e-30
    elif kind == 11:
        A *= 1e30
    return A


def factors(rng, n, k, dtype):
    """Factors, some of them lopsided, of deficient rank, or cancelling in the product."""
    kind = rng.integers(0, 6)
    L, R = rng.normal(size=(n, k)), rng.normal(size=(n, k))
    if kind == 1:
        L, R = 1e12 * L, 1e-12 * R
    elif kind == 2:
        R[:, 0] = R[:, -1]
    elif kind == 3 and k > 1:
        L[:, 0], R[:, 0] = L[:, 1] * (1 + 1e-5), -R[:, 1]
    elif kind == 4:
        L[:, 0] *= 0
    elif kind == 5:
        L *= 1e15
    return L.astype(dtype), R.astype(dtype)


# ------------------------------------------------------------------------------- bounds


def exact(A):
    return [[Fraction(float(a)) for a in row] for row in np.asarray(A)]


def times(A, B):
    return [
        [sum((x * y for x, y in zip(row, column)), Fraction(0)) for column in zip(*B)] for row in A
    ]


def transposed(A):
    return [list(column) for column in zip(*A)]


def part(A):
    return [[(A[i][j] + A[j][i]) / 2 for j in range(len(A))] for i in range(len(A))]


def pivots(G):
    """Those of Gaussian elimination without exchanges, exactly; it ends at the first that is 0."""
    G = [list(row) for row in G]
    for k in range(len(G)):
        yield G[k][k]
        if G[k][k] == 0:
            return
        for i in range(k + 1, len(G)):
            q = G[i][k] / G[k][k]
            G[i] = [a - q * b for a, b in zip(G[i], G[k])]


def really_below(S, t):
    """Whether ``t I - S`` is positive definite, or 0, in exact arithmetic."""
    G = [[(Fraction(t) if i == j else 0) - s for j, s in enumerate(row)] for i, row in enumerate(S)]
    return all(p > 0 for p in pivots(G)) or not any(map(any, G))


def really_a_norm_bound(A, t):
    return really_below(times(transposed(A), A), Fraction(t) ** 2)


@given(SEEDS, st.integers(1, 6))
def test_bounds_hold_in_exact_arithmetic_and_are_tight(seed, n):
    A = adversarial(np.random.default_rng(seed), n)
    bound, norm = spectral_bound(A), np.linalg.norm(A, 2)
    assert really_a_norm_bound(exact(A), bound)
    assert bound <= norm * (1 + 1e-12) + 1e-300
    assert bounds.norm_is_at_most(A, bound * (1 + 1e-12))
    assert norm == 0 or not bounds.norm_is_at_most(A, norm * (1 - 1e-12))
    top = bounds.eigenvalue_bound(bounds.symmetric_part(A))
    assert really_below(part(exact(A)), top)
    assert top - np.linalg.eigvalsh(bounds.symmetric_part(A))[-1] <= 1e-11 * norm
    F = exact(A)
    F = [[(i == j) - Fraction(0.3) * a for j, a in enumerate(row)] for i, row in enumerate(F)]
    assert really_a_norm_bound(F, bounds.distance_bound(A, 0.3))


def claims(seed, below):
    """What is said of t within some roundings of the largest eigenvalue, and whether it is so."""
    rng = np.random.default_rng(seed)
    for n in (2, 3, 4, 5):
        S = bounds.symmetric_part(adversarial(rng, n, 10))
        exactly = part(exact(S))  # S is symmetric to the bit, so nothing is rounded here
        top, size = np.linalg.eigvalsh(S)[-1], np.abs(S).max()
        for t in top + size * bounds.EPS * rng.uniform(-4, 4, size=4):
            yield below(S, float(t)), really_below(exactly, float(t))
        yield below(S, float(top + 1e-12 * size)), True


@given(SEEDS)
def test_the_lemma_is_never_wrong_at_the_boundary(seed):
    assert all(true for claimed, true in claims(seed, bounds.is_below) if claimed)


def test_cholesky_without_a_margin_is_caught():
    def naive(S, t):
        try:
            return bool(np.linalg.cholesky(t * np.eye(len(S)) - S).any())
        except np.linalg.LinAlgError:
            return False

    assert any(claimed and not true for seed in range(20) for claimed, true in claims(seed, naive))
    # and the test above is not empty
    assert any(claimed for claimed, _ in claims(0, bounds.is_below))


@given(SEEDS, st.integers(2, 6), st.integers(1, 2), DTYPES)
def test_bounds_of_factors_hold_in_exact_arithmetic(seed, n, k, dtype):
    L, R = factors(np.random.default_rng(seed), n, k, dtype)
    A = times(exact(L), transposed(exact(R)))
    size = float(
        np.sum(np.linalg.norm(L.astype(float), axis=0) * np.linalg.norm(R.astype(float), axis=0))
    )
    norm, top = bounds.factored_spectral_bound(L, R), bounds.factored_eigenvalue_bound(L, R)
    assert really_a_norm_bound(A, norm)
    assert really_below(part(A), top)
    rounded = np.array([[float(a) for a in row] for row in A])
    assert norm <= np.linalg.norm(rounded, 2) + 1e-11 * size
    assert top <= max(np.linalg.eigvalsh(bounds.symmetric_part(rounded))[-1], 0) + 1e-11 * size
    F = [[(i == j) - Fraction(0.3) * a for j, a in enumerate(row)] for i, row in enumerate(A)]
    distance = bounds.factored_distance_bound(L, R, 0.3)
    assert really_a_norm_bound(F, distance)
    assert distance <= np.linalg.norm(np.eye(n) - 0.3 * rounded, 2) + 1e-11 * (1 + size)


def by_power_iteration(A, steps=50):
    x = np.random.default_rng(0).normal(size=A.shape[1])
    for _ in range(steps):
        x = A.T @ (A @ x)
        x /= np.linalg.norm(x)
    return np.linalg.norm(A @ x)


@pytest.mark.parametrize(
    "twin",
    [by_power_iteration, lambda A: np.linalg.norm(A, 2)],
    ids=["power iteration", "LAPACK's value"],
)
def test_what_only_approaches_the_norm_is_caught(twin):
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(5, 5)) for _ in range(20)]
    assert not all(really_a_norm_bound(exact(A), float(twin(A))) for A in drawn)
    assert all(really_a_norm_bound(exact(A), spectral_bound(A)) for A in drawn)


@pytest.mark.parametrize("n", [64, 300])
def test_bounds_of_larger_matrices_with_a_known_norm(n):
    rng = np.random.default_rng(n)
    u, v = rng.integers(-9, 10, size=n), rng.integers(-9, 10, size=n)
    square = int(u @ u) * int(v @ v)
    bound = spectral_bound(np.outer(u, v).astype(float))
    assert square <= Fraction(bound) ** 2 <= square * (1 + Fraction(1, 10**9))
    clustered = orthogonal(rng, n) * np.linspace(1 - 1e-7, 1, n)
    assert 1 - 1e-14 * n <= spectral_bound(clustered) <= 1 + 1e-10


def test_beyond_the_dense_order_a_krylov_method_guesses(monkeypatch):
    A = np.random.default_rng(0).normal(size=(60, 60))
    direct = spectral_bound(A)
    monkeypatch.setattr(bounds, "DENSE", 10)
    assert spectral_bound(A) == pytest.approx(direct, rel=1e-8)
    assert spectral_bound(A) >= np.linalg.norm(A, 2)
    # a bad guess costs tightness, not truth
    monkeypatch.setattr(bounds, "_guess", lambda S: 0.5 * float(np.linalg.eigvalsh(S)[-1]))
    assert direct * (1 - 1e-9) <= spectral_bound(A) <= 4 * direct


def test_bounds_at_the_ends_of_the_range():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    for scale in (1e-300, 1e300):
        assert (
            np.linalg.norm(A, 2)
            <= spectral_bound(A * scale) / scale * (1 + 1e-15)
            <= np.linalg.norm(A, 2) * (1 + 1e-12)
        )
    assert spectral_bound(np.zeros((3, 3))) == 0
    assert (
        spectral_bound(np.full((2, 2), np.nan)) == spectral_bound(np.array([[np.inf]])) == math.inf
    )
    assert bounds.factored_spectral_bound(np.full((2, 1), np.inf), np.zeros((2, 1))) == math.inf
    assert bounds.factored_spectral_bound(np.full((2, 1), 1e-300), np.full((2, 1), 1e-300)) > 0
    assert not bounds.is_below(np.full((2, 2), np.nan), 1.0)


# -------------------------------------------------------------------------- projections

SETS = [SpectralNorm(0.9), Monotone(0.1)]


def nearest(constraint, A):
    """Nearest points by other formulas: an oracle.

    ``A (A^T A)^(-1/2)`` where it is too large; the positive part by the polar
    decomposition.
    """
    if isinstance(constraint, SpectralNorm):
        values, V = np.linalg.eigh(A.T @ A)
        return A @ (V * np.minimum(1, 0.9 / np.sqrt(np.maximum(values, 1e-300)))) @ V.T
    X = 0.9 * np.eye(len(A)) - (A + A.T) / 2
    return 0.9 * np.eye(len(A)) - (X + polar(X)[1]) / 2 + (A - A.T) / 2


def projected(constraint, A, activation=activations.relu):
    return constraint.project({"A": A}, activation)["A"]


@pytest.mark.parametrize("constraint", SETS, ids=str)
@given(SEEDS, st.integers(1, 12), DTYPES)
def test_projection_is_feasible_idempotent_and_leaves_what_is_inside_alone(
    constraint, seed, n, dtype
):
    A = adversarial(np.random.default_rng(seed), n).astype(dtype)
    P = projected(constraint, A)
    assert P.dtype == dtype
    assert constraint.contains({"A": P}, activations.relu)
    assert projected(constraint, P) is P
    S = P.astype(float)
    top = (
        np.linalg.norm(S, 2)
        if isinstance(constraint, SpectralNorm)
        else np.linalg.eigvalsh((S + S.T) / 2)[-1]
    )
    assert top <= 0.9 + 1e-14 * np.linalg.norm(S, 2)
    inside = constraint.contains({"A": A}, activations.relu)
    assert (P is A) == inside
    assert constraint.certificate({"A": P}, activations.relu).proven


@pytest.mark.parametrize("constraint", SETS, ids=str)
@given(SEEDS, st.integers(1, 10), DTYPES)
def test_projection_is_the_nearest_point_and_firmly_nonexpansive(constraint, seed, n, dtype):
    rng = np.random.default_rng(seed)
    A, B = (adversarial(rng, n, 10).astype(dtype) for _ in range(2))
    P, Q = (projected(constraint, M).astype(float) for M in (A, B))
    A, B = A.astype(float), B.astype(float)
    # the projection goes inside by what the cast and the proof take, and once more by a
    # factor of 4 if need be
    inside = 4 * (2 * np.finfo(dtype).eps + 4 * (n + 4) ** 2 * bounds.EPS)
    unit = n**0.5 * inside * (1 + 2 * np.linalg.norm(A) + 2 * np.linalg.norm(B))
    assert np.linalg.norm(P - nearest(constraint, A)) <= unit
    assert np.sum((P - Q) * (A - B)) >= np.sum((P - Q) ** 2) - unit * (1 + np.linalg.norm(A - B))
    for X in [
        Q,
        *(
            projected(constraint, P + 10.0 ** rng.uniform(-4, 1) * rng.normal(size=(n, n)))
            for _ in range(5)
        ),
    ]:
        assert np.linalg.norm(A - X) >= np.linalg.norm(A - P) - unit


def test_cheaper_rescalings_are_not_the_projections():
    """The broken twins: feasible, and the test above must know them from the nearest points."""
    A = np.diag([2.0, 0.5])
    for constraint in SETS:
        assert np.linalg.norm(A - 0.45 * A) > np.linalg.norm(A - projected(constraint, A)) * 1.01


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_projection_everywhere(xp, constraint, dtype):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(7, 7)).astype(dtype)
    L, R = rng.normal(size=(2, 7, 2)).astype(dtype)
    P = constraint.project({"A": from_host(xp, A)}, activations.relu)
    assert_close(P["A"], projected(constraint, A), rtol=0, atol=0, xp=xp)
    assert constraint.contains(P, activations.relu)
    given = {"L": from_host(xp, L), "R": from_host(xp, R)}
    P, Q = (
        constraint.project(given, activations.relu),
        constraint.project({"L": L, "R": R}, activations.relu),
    )
    for key in "LR":
        assert_close(P[key], Q[key], rtol=0, atol=0, xp=xp)
    assert (
        constraint.certificate(P, activations.relu).contraction
        == constraint.certificate(Q, activations.relu).contraction
    )


@pytest.mark.parametrize("constraint", SETS, ids=str)
@given(SEEDS, st.integers(2, 12), st.integers(1, 4), DTYPES)
def test_factors_are_made_feasible(constraint, seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    L, R = factors(rng, n, min(k, n), dtype)
    params = {"L": L, "R": R, "B": L}
    P = constraint.project(params, activations.relu)
    assert P["L"].dtype == P["R"].dtype == dtype
    assert P["B"] is L
    assert constraint.contains(P, activations.relu)
    again = constraint.project(P, activations.relu)
    assert all(again[key] is P[key] for key in P)
    A = P["L"].astype(float) @ P["R"].astype(float).T
    top = (
        np.linalg.norm(A, 2)
        if isinstance(constraint, SpectralNorm)
        else np.linalg.eigvalsh((A + A.T) / 2)[-1]
    )
    size = float(
        np.sum(
            np.linalg.norm(P["L"].astype(float), axis=0)
            * np.linalg.norm(P["R"].astype(float), axis=0)
        )
    )
    assert top <= 0.9 + 1e-13 * size
    if isinstance(constraint, SpectralNorm):
        assert P["R"] is R
        product = L.astype(float) @ R.astype(float).T
        scale = np.linalg.norm(L.astype(float)) * np.linalg.norm(R.astype(float))
        inside = 4 * (
            2 * np.finfo(dtype).eps + (4 * (L.shape[1] + 4) ** 2 + 2 * n * L.shape[1]) * bounds.EPS
        )
        assert np.linalg.norm(A - nearest(constraint, product)) <= n**0.5 * inside * (1 + scale)
    assert constraint.certificate(P, activations.relu).proven


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_one_bad_entry_is_refused(constraint):
    A = np.eye(3)
    A[0, 1] = np.nan
    with pytest.raises(InputError, match="A has 1 entries that are not finite"):
        projected(constraint, A)
    with pytest.raises(InputError, match="R has 1 entries"):
        constraint.project({"L": np.ones((3, 3)), "R": A}, activations.relu)
    assert not constraint.contains({"A": A}, activations.relu)
    assert not constraint.certificate({"A": A}, activations.relu).proven


# ------------------------------------------------------------------------- certificates


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_the_parameters_are_checked(value):
    with pytest.raises(InputError, match="kappa"):
        SpectralNorm(value)
    with pytest.raises(InputError, match="margin"):
        Monotone(value)


def test_a_matrix_just_outside_is_not_certified():
    Q, relu = orthogonal(np.random.default_rng(0), 6), activations.relu
    spin = np.kron(np.eye(3), np.array([[0.0, 7.0], [-7.0, 0.0]]))
    for constraint, A in ((SpectralNorm(0.9), Q), (Monotone(0.1), np.eye(6) + spin)):
        edge = 0.9 * Q if constraint == SpectralNorm(0.9) else 0.9 * np.eye(6) + spin
        step = 1e-11 * Q if constraint == SpectralNorm(0.9) else 1e-11 * np.eye(6)
        assert constraint.contains({"A": edge - step}, relu)
        assert not constraint.contains({"A": edge + step}, relu)
        assert constraint.certificate({"A": A - step}, relu).proven
        for outside in (A, A + step):
            certificate = constraint.certificate({"A": outside}, relu)
            assert not certificate.proven
            assert "is not" in repr(certificate)


def test_the_radius_follows_the_lipschitz_constant():
    A = 10 * orthogonal(np.random.default_rng(0), 8)
    for activation, L in ((activations.sigmoid, 0.25), (STEEP, 2.0), (activations.relu, 1.0)):
        assert np.linalg.norm(projected(SpectralNorm(0.8), A, activation), 2) == pytest.approx(
            0.8 / L, rel=1e-9
        )
        P = projected(Monotone(0.2), A, activation)
        assert np.linalg.eigvalsh((P + P.T) / 2)[-1] == pytest.approx(0.8 / L, rel=1e-9)
    assert np.linalg.norm(projected(SpectralNorm(0.8), A, TOGETHER), 2) == pytest.approx(
        0.8 / max(TOGETHER.row_lipschitz(8)), rel=1e-9
    )


def test_what_is_refused_and_what_is_unknown():
    for activation in (TOGETHER, activations.softmax):
        assert "together" in Monotone().refusal(activation)
    for activation in (activations.abs, activations.silu, activations.sin):
        assert "its slopes reach -" in Monotone().refusal(activation)
        assert not Monotone().certificate({"A": np.zeros((2, 2))}, activation).proven
    with pytest.warns(WellPosednessWarning, match="mine"):
        mine = Activation("mine", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    assert "not known" in Monotone().refusal(mine)
    for constraint in (SpectralNorm(0.5), Monotone(0.5)):
        certificate = constraint.certificate({"A": np.zeros((2, 2))}, mine)
        assert not certificate.proven
        assert "mine" in certificate.reason
        assert projected(constraint, np.eye(2), mine)[0, 0] == pytest.approx(0.5)
    assert Monotone().contracts is False


def steepest(activation):
    grid = np.linspace(-6, 6, 4001)
    return grid[np.argmax(np.abs(activation.dphi(grid)))]


@given(SEEDS, st.sampled_from([*BUILT_IN, STEEP, TOGETHER]), st.booleans())
def test_no_pair_of_states_beats_the_factor_of_picard(seed, activation, thin):
    rng, n = np.random.default_rng(seed), 8
    L, R = rng.normal(size=(2, n, 2))
    params = SpectralNorm(rng.uniform(0.05, 0.99)).project(
        {"L": L, "R": R} if thin else {"A": 3 * adversarial(rng, n)}, activation
    )
    A = params["L"] @ params["R"].T if thin else params["A"]
    certificate = SpectralNorm(0.5).certificate(params, activation)
    assert certificate.proven
    assert certificate.applies_to == "Picard"
    X, Z = rng.normal(size=(2, 200, n))
    D = np.where(rng.random((200, 1)) < 0.5, np.linalg.svd(A)[2][0], rng.normal(size=(200, n)))
    D *= 10.0 ** rng.uniform(-5, 1, size=(200, 1))
    if activation is not TOGETHER:
        Z[::2] = steepest(activation) - X[::2] @ A.T
    moved = certificate.norm(activation.phi((X + D) @ A.T + Z) - activation.phi(X @ A.T + Z))
    assert np.all(
        moved
        <= certificate.contraction * certificate.norm(D) * (1 + 1e-9)
        + 1e-13 * (1 + np.abs(Z).max())
    )


def test_the_factor_of_picard_is_attained():
    A = projected(SpectralNorm(0.9), np.random.default_rng(0).normal(size=(5, 5)))
    d = np.linalg.svd(A)[2][0]
    moved = np.linalg.norm(activations.relu(A @ d + 9) - activations.relu(np.full(5, 9.0)))
    assert moved == pytest.approx(
        SpectralNorm().certificate({"A": A}, activations.relu).contraction, rel=1e-11
    )


def proximal(psi, u, alpha):
    """``psi(y)`` with ``(1 - alpha) psi(y) + alpha y = u``, by bisection.

    The left-hand side grows by min(alpha, 1) at least.
    """
    reach = (np.abs(u) + abs(float(psi(np.zeros(1))[0])) + 1) * (2 + 1 / min(alpha, 1.0))
    low, high = -reach, reach
    for _ in range(200):
        y = 0.5 * (low + high)
        above = (1 - alpha) * psi(y) + alpha * y > u
        low, high = np.where(above, low, y), np.where(above, y, high)
    return psi(0.5 * (low + high))


@given(SEEDS, st.sampled_from([*UPWARD, STEEP]), st.integers(1, 6), st.booleans())
def test_no_pair_of_states_beats_the_factor_of_forward_backward(seed, activation, n, thin):
    rng = np.random.default_rng(seed)
    constraint = Monotone(rng.uniform(0.02, 0.98))
    L, R = rng.normal(size=(2, n, 1))
    params = constraint.project(
        {"L": L, "R": R} if thin else {"A": adversarial(rng, n, 10)}, activation
    )
    A = params["L"] @ params["R"].T if thin else params["A"]
    certificate = constraint.certificate(params, activation)
    assert certificate.proven
    assert certificate.applies_to.startswith("ForwardBackward")
    g = 1.0 if certificate.applies_to == "ForwardBackward" else activation.lipschitz
    alpha = _best_step(g * A)[0]
    Z, X = rng.normal(size=(2, 60, n))
    D = rng.normal(size=(60, n)) * 10.0 ** rng.uniform(-2, 1, size=(60, 1))
    F = np.eye(n) - g * A
    D[::3] = np.linalg.eigh((F + F.T) / 2)[1][:, 0]  # slow
    D[1::3] = np.linalg.svd(np.eye(n) - alpha * F)[2][0]  # slowest without phi
    X[::2] = np.abs(X[::2]) + 10
    Z[::2] = 1 + np.abs(D[::2]) - X[::2] @ (g * A).T
    before = certificate.norm(D)

    def step(x):
        return proximal(
            lambda y: activation.phi(y) / g, (1 - alpha) * x + alpha * (x @ (g * A).T + Z), alpha
        )

    after = certificate.norm(step(X + D) - step(X))
    assert np.all(
        after
        <= certificate.contraction * before * (1 + 1e-9)
        + 1e-12 * (1 + np.abs(Z).max() + np.abs(X).max())
    )


@given(
    SEEDS,
    st.sampled_from([*UPWARD, STEEP]),
    st.integers(1, 8),
    st.sampled_from(["spectral", "monotone", "factors"]),
)
def test_no_state_is_further_from_the_solution_than_is_proven(seed, activation, n, kind):
    """The problem is made from its solution, so that the error is known."""
    rng = np.random.default_rng(seed)
    constraint = (
        SpectralNorm(rng.uniform(0.1, 0.99))
        if kind == "spectral"
        else Monotone(rng.uniform(0.01, 0.9))
    )
    L, R = rng.normal(size=(2, n, 1))
    params = constraint.project(
        {"L": L, "R": R} if kind == "factors" else {"A": adversarial(rng, n, 10)}, activation
    )
    A = params["L"] @ params["R"].T if kind == "factors" else params["A"]
    certificate = constraint.certificate(params, activation)
    Y = np.where(rng.random((80, 1)) < 0.5, rng.normal(size=(80, n)), steepest(activation))
    solution = activation.phi(Y)
    Z = Y - solution @ A.T
    D = rng.normal(size=(80, n))
    D[::3] = np.linalg.eigh((A + A.T) / 2)[1][:, -1]
    # what moves the residual least
    D[1::3] = np.linalg.svd(np.eye(n) - activation.lipschitz * A)[2][-1]
    D *= 10.0 ** rng.uniform(-3, 1, size=(80, 1))
    X = solution + D
    residual = certificate.norm(activation.phi(X @ A.T + Z) - X)
    rounding = 1e-13 * (1 + np.abs(Z).max() + np.abs(A).max() * np.abs(X).max())
    assert np.all(certificate.norm(D) <= certificate.error(residual + rounding) * (1 + 1e-9))


def test_the_error_bound_is_attained():
    for c in (-3.0, 0.0, 0.9):
        certificate = Monotone().certificate({"A": c * np.eye(3)}, activations.relu)
        z = 1.0 if c > 0 else -9.0  # where the slope is 1, and where it is 0
        solution = np.maximum(z / (1 - c), 0)
        x = solution + 0.25
        error = 0.25 * 3**0.5
        residual = abs(max(c * x + z, 0) - x) * 3**0.5
        assert error <= certificate.error(residual) <= error * (1 + 1e-6)


@given(
    SEEDS, st.integers(1, 5), st.sampled_from([SpectralNorm(0.99), Monotone(0.01), Monotone(0.7)])
)
def test_what_is_proven_is_a_p_matrix(seed, n, constraint):
    """Every principal minor of I - A is positive, exactly.

    For relu that holds if and only if there is one solution for every input.
    """
    A = projected(constraint, adversarial(np.random.default_rng(seed), n))
    if not constraint.certificate({"A": A}, activations.relu).proven:
        return
    M = [[(i == j) - a for j, a in enumerate(row)] for i, row in enumerate(exact(A))]
    for size in range(1, n + 1):
        for rows in itertools.combinations(range(n), size):
            # a principal submatrix of a monotone matrix is monotone: even all pivots are positive
            assert all(p > 0 for p in pivots([[M[i][j] for j in rows] for i in rows]))


def test_the_p_matrix_oracle_can_fail():
    A = np.array([[0.0, 1.5], [1.5, 0.0]])  # 1 - 2.25 < 0
    assert not all(
        p > 0
        for p in pivots(
            [[(i == j) - a for j, a in enumerate(row)] for i, row in enumerate(exact(A))]
        )
    )
    assert not any(constraint.certificate({"A": A}, activations.relu).proven for constraint in SETS)


@given(
    SEEDS, st.sampled_from([activations.relu, activations.tanh, activations.sigmoid]), st.booleans()
)
def test_three_starts_reach_one_point(seed, activation, monotone):
    rng, n = np.random.default_rng(seed), 6
    constraint = Monotone(0.4) if monotone else SpectralNorm(0.9)
    A = projected(constraint, rng.normal(size=(n, n)) if monotone else adversarial(rng, n))
    certificate = constraint.certificate({"A": A}, activation)
    problem = Affine(Full(A), rng.normal(size=(3, n)), activation)
    starts = [None, 10 * rng.normal(size=(3, n)), np.full((3, n), -100.0)]
    solvers = (
        [ForwardBackward(tol=1e-9, max_iter=20000), PeacemanRachford(tol=1e-9)]
        if monotone
        else [Picard(tol=1e-9)]
    )
    solutions = [solver(problem, x0) for solver in solvers for x0 in starts]
    for s in solutions:
        assert s.converged.all()
        residuals = [
            certificate.norm(activation.phi(t.value @ A.T + problem.offset) - t.value)
            for t in (s, solutions[0])
        ]
        assert np.all(
            certificate.norm(s.value - solutions[0].value)
            <= certificate.error(residuals[0] + residuals[1]) + 1e-12
        )


def test_words_and_a_factor_that_rounds_to_one():
    text = repr(SpectralNorm(0.9).certificate({"A": 0.5 * np.eye(3)}, activations.relu))
    for words in (
        "exists and is unique",
        "0.5 per step",
        "Euclidean",
        "||A||_2 = 0.5",
        "relu is 1-Lipschitz",
    ):
        assert words in text
    text = repr(Monotone().certificate({"A": 0.5 * np.eye(3)}, activations.relu))
    for words in (
        "exists and is unique",
        "ForwardBackward",
        "(A + A^T) / 2 is 0.5",
        "|I - A|_2 = 0.5",
    ):
        assert words in text
    assert Monotone().certificate({"A": 0.5 * np.eye(3)}, STEEP).proven is False
    assert (
        Monotone().certificate({"A": 2 * np.eye(3)}, activations.sigmoid).applies_to
        == "ForwardBackward for x / 0.25"
    )
    spin = Monotone().certificate({"A": np.array([[0.0, 1e12], [-1e12, 0.0]])}, activations.relu)
    assert spin.proven
    assert spin.contraction == 1
    assert spin.error(1.0) == pytest.approx(1e12, rel=1e-6)
    with pytest.raises(InputError, match="1 to the last digit"):
        spin.steps(1e-6, first=1.0)


def test_host_arrays_are_not_written_into(xp):
    A = 3 * np.random.default_rng(0).normal(size=(4, 4))
    given = from_host(xp, A.copy())
    for constraint in SETS:
        constraint.project({"A": given}, activations.relu)
        constraint.certificate({"A": given}, activations.relu)
    assert np.array_equal(host(given), A)
