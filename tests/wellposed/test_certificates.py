"""No search beats a certified factor or bound; what is just outside is refused.

The search is for a pair of states, or for an error.
"""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from conditions import AROUND, CONSTRAINTS, ETA, N, SoftmaxInside, hard_matrix, is_p_matrix, mixed
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyidl import ImplicitModel, Linear, Sequential, activations
from pyidl.activations import Activation
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.matrices.full import Full
from pyidl.solvers import Jacobi, Picard
from pyidl.solvers.problem import Affine
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
    optimal_weights,
    strongest,
)
from pyidl.wellposed.certificate import Certificate, Norm

CERTIFIED = [c for c in CONSTRAINTS if not isinstance(c, Unconstrained)]
PHIS = [
    activations.relu,
    activations.tanh,
    activations.sigmoid,
    activations.hard_tanh,
    activations.leaky_relu(0.3),
    mixed,
]
together = SoftmaxInside()


def problem(seed, constraint, activation, n=N):
    """A hard matrix inside the set, and offsets."""
    rng = np.random.default_rng(seed)
    A = np.clip(hard_matrix(rng, n), -1e8, 1e8)
    return rng, constraint.project({**AROUND, "A": A}, activation)["A"]


def iteration(certificate, A, activation):
    """The map that a certificate speaks of, written down here once more.

    As a function of states and offsets.
    """
    name, d = certificate.applies_to, np.diagonal(A)
    if name == "Picard":
        return lambda X, Z: activation.phi(X @ A.T + Z)
    if name == "Jacobi":
        return lambda X, Z: activation.scalar_solve(X @ (A - np.diag(d)).T + Z, d)
    if name.startswith("Picard(damping="):
        share = 1 / (1 - min(0.0, (np.array(activation.row_lipschitz(len(A))) * d).min()))
        assert float(name[15:-1]) == pytest.approx(1 - share, rel=1e-3)
        return lambda X, Z: (1 - share) * X + share * activation.phi(X @ A.T + Z)
    assert name == "ForwardBackward"
    w = np.ones(len(A)) if certificate.norm.weights is None else certificate.norm.weights
    gap, even = np.eye(len(A)) - A, np.eye(len(A)) - A * w / w[:, None]
    alpha = np.linalg.eigvalsh((even + even.T) / 2)[0] / np.linalg.norm(even, 2) ** 2
    # projections: the proximal maps of all multiples of f are equal
    assert activation in (
        activations.relu,
        activations.hard_tanh,
    )
    return lambda X, Z: activation.phi(X - alpha * (X @ gap.T - Z))


def pairs(rng, A, norm, activation):
    """States and steps that try to grow, tiny and large.

    Signs of rows, singular and eigenvectors, powers, single entries, noise.
    """
    n = len(A)
    w = np.ones(n) if norm.weights is None else norm.weights
    even = A * w / w[:, None]
    grow = np.linalg.matrix_power(np.abs(even) + 1e-3, 8) @ np.ones(n)
    steps = [
        np.sign(even),
        np.linalg.svd(even)[2],
        np.real(np.linalg.eig(even)[1].T),
        np.eye(n),
        grow[None],
        rng.normal(size=(40, n)),
    ]
    D = np.concatenate(steps) * w
    D = np.concatenate([D, np.sign(np.where(D == 0, 1, D)) * w])
    D /= np.abs(D).max(axis=1, keepdims=True) + 1e-300
    D = np.repeat(D, 3, axis=0) * 10.0 ** rng.uniform(-3, 1, size=(3 * len(D), 1))
    X = rng.normal(size=D.shape) * 10.0 ** rng.uniform(-1, 1, size=(len(D), 1))
    Z = rng.normal(size=D.shape)
    steepest = np.linspace(-3, 3, 601)
    steepest = steepest[np.argmax(activation.dphi(np.repeat(steepest[:, None], n, axis=1)), axis=0)]
    Z[::2] = steepest - X[::2] @ A.T  # there, f moves as fast as it can
    return X, D, Z


def ratio(T, X, D, Z, norm):
    """The largest growth of a step by T, and what rounding makes of it."""
    before, after = norm(D), norm(T(X + D, Z) - T(X, Z))
    return after, before


@pytest.mark.parametrize("constraint", CERTIFIED, ids=repr)
@given(st.integers(0, 10**6), st.sampled_from(PHIS))
def test_no_step_beats_the_factor(constraint, seed, activation):
    if isinstance(constraint, (LipschitzBound, Monotone)):
        activation = activations.relu if seed % 2 else activations.hard_tanh
    rng, A = problem(seed, constraint, activation)
    certificate = constraint.certificate({**AROUND, "A": A}, activation)
    assert certificate.proven
    assert 0 <= certificate.contraction <= 1
    if isinstance(constraint, (BlockTriangular, StrictlyTriangular)):
        return  # one block after the other: below
    assume(np.abs(A).max() < 1e7)
    T, (X, D, Z) = (
        iteration(certificate, A, activation),
        pairs(rng, A, certificate.norm, activation),
    )
    after, before = ratio(T, X, D, Z, certificate.norm)
    w = 1.0 if certificate.norm.weights is None else certificate.norm.weights
    noise = 1e-14 * ((np.abs(X) + np.abs(D)) @ np.abs(A).T + np.abs(X) + np.abs(D) + np.abs(Z))
    noise = (noise / w).max(axis=1) * N * max(1.0, 1 / (1 - min(0.999, np.diagonal(A).max())))
    assert np.all(after <= certificate.contraction * before * (1 + 1e-9) + noise)


@pytest.mark.parametrize(
    ("A", "constraint", "phi"),
    [
        (np.array([[0.5, -0.4], [0.1, 0.2]]), InfNorm(), activations.relu),
        (np.array([[0.5, -0.4], [0.1, 0.2]]), InfNorm(weights=(1.0, 0.5)), activations.relu),
        (np.array([[0.1, 16.0], [0.01, 0.3]]), PerronFrobenius(), activations.relu),
        (np.array([[0.5, -0.4], [0.1, 0.2]]), SpectralNorm(), activations.identity),
        (np.array([[0.5, 0.3], [0.1, 0.2]]), MatrixMeasure(), activations.relu),
        (np.array([[-1.0, 0.2], [0.1, 0.7]]), MatrixMeasure(), activations.tanh),
        (np.array([[0.8, 0.0], [0.0, -9.0]]), Monotone(), activations.relu),
    ],
)
def test_factors_are_attained(A, constraint, phi):
    """A tighter claim would be false, and the search above would notice.

    With one a thousandth smaller it fails.
    """
    certificate = constraint.certificate({"A": A}, phi)
    T, (X, D, Z) = (
        iteration(certificate, A, phi),
        pairs(np.random.default_rng(0), A, certificate.norm, phi),
    )
    if phi is activations.tanh:  # steepest at 0
        X, D, Z = X * 0, D * 1e-6, Z * 0
    else:  # all units are active
        X, Z = X + 100.0, Z * 0 + 1e4
    after, before = ratio(T, X, D, Z, certificate.norm)
    best = np.max(after / before)
    assert best <= certificate.contraction * (1 + 1e-7)
    assert best > certificate.contraction * (1 - 1e-3)


def equilibrium(A, Z, activation):
    """The fixed point in float64, by Newton with damping, checked."""
    X = np.zeros_like(Z)
    for row in range(len(Z)):
        x = np.zeros(len(A))
        for _ in range(400):
            r = activation.phi((A @ x + Z[row])[None])[0] - x
            if np.abs(r).max() <= 1e-15 * (1 + np.abs(x).max()):
                break
            s = activation.dphi((A @ x + Z[row])[None])[0]
            step, t = np.linalg.solve(np.eye(len(A)) - s[:, None] * A, r), 1.0
            while t > 1e-3 and np.linalg.norm(
                activation.phi((A @ (x + t * step) + Z[row])[None])[0] - x - t * step
            ) > np.linalg.norm(r):
                t *= 0.5
            x = x + t * step
        X[row] = x
    return X


@pytest.mark.parametrize("constraint", CERTIFIED, ids=repr)
@given(
    st.integers(0, 10**6),
    st.sampled_from([activations.relu, activations.tanh, activations.leaky_relu(0.3), mixed]),
)
def test_no_error_exceeds_its_bound(constraint, seed, activation):
    """Points near and far, and points that are wrong in one component alone."""
    rng, A = problem(seed, constraint, activation)
    assume(np.abs(A).max() < 1e3)
    certificate = constraint.certificate({**AROUND, "A": A}, activation)
    Z = rng.normal(size=(3, N))
    exact = equilibrium(A, Z, activation)
    for scale in (1e-3, 1.0, 30.0):
        X = exact + scale * rng.normal(size=exact.shape) * (rng.random(exact.shape) < 0.5)
        residual, own = activation.phi(X @ A.T + Z) - X, activation.phi(exact @ A.T + Z) - exact
        assume(np.abs(own).max() < 1e-12)
        bound = certificate.error(certificate.norm(residual)) + certificate.error(
            certificate.norm(own) + 1e-15
        )
        assert np.all(certificate.norm(X - exact) <= bound * (1 + 1e-9))
        entries = certificate.entrywise(residual) + certificate.entrywise(np.abs(own) + 1e-15)
        assert np.all(np.abs(X - exact) <= entries * (1 + 1e-9))


@pytest.mark.parametrize("constraint", CERTIFIED, ids=repr)
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([activations.relu, activations.tanh]))
def test_three_starts_reach_one_point(constraint, seed, activation):
    rng, A = problem(seed, constraint, activation)
    assume(np.abs(A).max() < 1e2)
    model = ImplicitModel(
        2, 3, N, activation=activation, constraint=constraint, dtype="float64", rng=0
    )
    model.params = {**model.params, **AROUND, "A": A}
    U = rng.normal(size=(3, 2))
    certificate = model.certificate()
    assert certificate.proven
    found = [
        model.equilibrium(U, x0=x0, on_fail="ignore")
        for x0 in (None, 10 * rng.normal(size=(3, N)), np.full((3, N), -50.0))
    ]
    Z = U @ model.params["B"].T
    for s in found:
        assert s.converged.all()
        bound = certificate.entrywise(activation.phi(s.value @ A.T + Z) - s.value)
        bound += certificate.entrywise(activation.phi(found[0].value @ A.T + Z) - found[0].value)
        size = 1e-13 * (1 + np.abs(A).max()) * (1 + np.abs(s.value).max())
        assert np.all(
            np.abs(s.value - found[0].value)
            <= bound * (1 + 1e-9) + certificate.entrywise(np.full((1, N), size))
        )


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_what_is_certified_is_a_p_matrix(seed, n):
    """The exact oracle, I - A is a P-matrix.

    ``x = relu(A x + z)`` has one solution for every z if and only if it is.
    """
    rng = np.random.default_rng(seed)
    A = hard_matrix(rng, n) * 10.0 ** rng.uniform(-1, 0.3)
    certificate = strongest({"A": A}, activations.relu, Unconstrained(), explain=True)
    if certificate.proven:
        assert is_p_matrix(np.eye(n) - A)
    for other in certificate.others:
        assert is_p_matrix(np.eye(n) - A) or not other.proven


def test_the_oracle_can_say_no():
    assert is_p_matrix(np.eye(3))
    assert not is_p_matrix(np.eye(2) - np.array([[1.1, 0.0], [0.0, 0.0]]))
    assert not is_p_matrix(np.eye(2) - np.array([[0.0, 2.0], [0.6, 0.0]]))


def just_outside(rng, n):
    """For every condition matrices on which it is exact.

    Scaled to a bit more than 1, I - A is no P-matrix.
    """
    M = np.abs(rng.normal(size=(n, n)))
    yield InfNorm(), M / M.sum(axis=1, keepdims=True)
    yield PerronFrobenius(), M / np.abs(np.linalg.eigvals(M)).max()
    S = M + M.T
    yield SpectralNorm(), S / np.linalg.norm(S, 2)
    off = M * (1 - np.eye(n))
    yield MatrixMeasure(), off + np.diag(1 - off.sum(axis=1))
    K = rng.normal(size=(n, n))
    K = K + K.T
    yield Monotone(), K + (1 - np.linalg.eigvalsh(K)[-1]) * np.eye(n)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_matrix_just_outside_is_refused(seed, n):
    for constraint, A in just_outside(np.random.default_rng(seed), n):
        assert not is_p_matrix((1 - 1e-7) * np.eye(n) - A)
        for beyond in (A, A + 1e-9 * np.eye(n)):
            certificate = strongest({"A": beyond}, activations.relu, constraint)
            assert not certificate.proven, certificate
        inside = (
            A - 1e-6 * np.eye(n)
            if isinstance(constraint, (MatrixMeasure, Monotone))
            else A * (1 - 1e-6)
        )
        assert constraint.certificate({"A": inside}, activations.relu).proven


# -------------------------------------------------------------------- single conditions


def test_the_averaged_iteration_converges_at_its_rate():
    """The solver averages pre-activations.

    Its states are images of the averaged ones, so the rate is theirs.
    """
    rng = np.random.default_rng(0)
    A = MatrixMeasure(0.8).project(
        {"A": rng.normal(size=(20, 20)) - 3 * np.diag(rng.random(20))}, activations.tanh
    )["A"]
    certificate = MatrixMeasure().certificate({"A": A}, activations.tanh)
    assert certificate.applies_to.startswith("Picard(damping=")
    share = 1 / (1 - np.diagonal(A).min())
    p = Affine(Full(A), rng.normal(size=(5, 20)), activations.tanh)
    trace = Picard(damping=1 - share, max_iter=3000)(p, trace=True).trace
    # from a change of the averaged states to the residual at their images
    gain = np.abs(A).sum(axis=1).max() / share
    steps = np.arange(len(trace))[:, None]
    first = np.abs(np.tanh(p.offset)).max()
    assert np.all(~(trace > gain * first * certificate.contraction**steps + 1e-11))


@given(st.integers(0, 10**6))
def test_jacobi_converges_at_its_rate(seed):
    rng = np.random.default_rng(seed)
    A = MatrixMeasure(0.7).project(
        {"A": rng.normal(size=(8, 8)) - 3 * np.diag(rng.random(8))}, activations.relu
    )["A"]
    certificate = MatrixMeasure().certificate({"A": A}, activations.relu)
    assert certificate.applies_to == "Jacobi"
    Z = rng.normal(size=(4, 8))
    n_iter = Jacobi(tol=1e-9)(Affine(Full(A), Z, activations.relu)).n_iter
    gain = np.abs(A).sum(axis=1).max() + 1
    assert np.all(n_iter <= certificate.steps(1e-9, first=10 * gain * np.abs(Z).max()) + 2)


def test_the_best_weights_of_the_measure():
    """Among them the measure is the largest real eigenvalue.

    It is that of A with absolute values off the diagonal.
    """
    A = np.array([[-3.0, 50.0, 0.0], [0.02, 0.1, -0.3], [0.1, 0.4, -1.0]])
    eta = optimal_weights({"A": A}, activations.relu)
    ceiling = np.abs(A) * (1 - np.eye(3)) + np.diag(np.diagonal(A))
    best = np.linalg.eigvals(ceiling).real.max()
    certificate = MatrixMeasure(weights=eta).certificate({"A": A}, activations.relu)
    assert 1 - certificate.margin == pytest.approx(best, abs=1e-3)
    assert not MatrixMeasure().certificate({"A": A}, activations.relu).proven
    assert strongest({"A": A}, activations.relu, InfNorm()).norm.weights is not None


twice = Activation(
    "twice", lambda z: 2 * np.tanh(z), lambda z: 2 - 2 * np.tanh(z) ** 2, slope_range=(0, 2)
)
thrice = Activation(
    "thrice", lambda z: 3 * np.tanh(z), lambda z: 3 - 3 * np.tanh(z) ** 2, slope_range=(0, 3)
)


@pytest.mark.parametrize("phi", [activations.sigmoid, twice])
def test_slopes_scale_the_condition(phi):
    L = phi.lipschitz
    for constraint in (
        InfNorm(0.9),
        PerronFrobenius(0.9),
        SpectralNorm(0.9),
        MatrixMeasure(0.9),
        Monotone(0.1),
    ):
        A = constraint.project({"A": np.full((3, 3), 2.0)}, phi)["A"]
        np.testing.assert_allclose(A, 0.3 / L, rtol=1e-6)
        assert constraint.certificate({"A": A}, phi).proven
        assert not constraint.certificate({"A": A * 1.12}, phi).proven


def test_monotone_names_the_solver_only_where_it_applies():
    A = 0.5 * np.eye(2)
    assert Monotone().certificate({"A": A}, activations.relu).applies_to == "ForwardBackward"
    quarter = Monotone().certificate({"A": A}, activations.sigmoid)
    assert quarter.applies_to == "ForwardBackward"
    assert (
        "for x / 0.25"
        in Monotone().certificate({"A": 2 * np.eye(2)}, activations.sigmoid).applies_to
    )
    # for slopes beyond 1 the solver's own L = 1 proves nothing
    for low in (-2.0, 0.2):
        steep = Monotone().certificate({"A": low * np.eye(2)}, thrice)
        assert (steep.proven, steep.applies_to) == (True, "ForwardBackward for x / 3")


@pytest.mark.parametrize(
    "constraint", [InfNorm(0.9), PerronFrobenius(0.9), SpectralNorm(0.9)], ids=repr
)
@given(st.integers(0, 10**6))
def test_no_step_of_vectors_beats_the_factor(constraint, seed):
    rng, A = problem(seed, constraint, together)
    certificate = constraint.certificate({"A": A}, together)
    assert certificate.proven
    X, D, Z = pairs(rng, A, certificate.norm, activations.relu)
    # softmax moves fastest where its inputs are equal
    Z[1::2] = rng.normal(size=Z[1::2].shape) * 0.1 - X[1::2] @ A.T
    after, before = ratio(lambda X, Z: together.phi(X @ A.T + Z), X, D, Z, certificate.norm)
    noise = 1e-14 * N * (np.abs(X) + np.abs(D)).max(axis=1) * (1 + np.abs(A).max())
    w = 1.0 if certificate.norm.weights is None else certificate.norm.weights.min()
    assert np.all(after <= certificate.contraction * before * (1 + 1e-9) + noise / w)
    residual = together.phi(X @ A.T + Z) - X
    for _ in range(3000):
        X_new = together.phi(X @ A.T + Z)
        if np.abs(X_new - X).max() < 1e-13:
            break
        X = X_new
    assert certificate.entrywise(residual).shape == residual.shape


def test_block_norms_are_those_of_vectors():
    norm = Norm("largest entry", np.array([1.0, 2.0, 2.0]), ((1, 3),))
    np.testing.assert_allclose(norm(np.array([[1.0, 6.0, 8.0], [-9.0, 0.0, 0.0]])), [5.0, 9.0])
    assert str(norm) == "largest block, weighted"


def test_blocks_are_certified_for_their_own_activation():
    A = np.array([[0.9, 100.0, 100.0], [0.0, 3.0, 0.5], [0.0, 0.5, 3.0]])
    phi = activations.Blocks((activations.relu, 1), (activations.sigmoid, 2))
    constraint = BlockTriangular((1, 2), InfNorm(0.95))
    certificate = constraint.certificate({"A": A}, phi)
    assert certificate.proven
    assert certificate.contraction == pytest.approx(0.9)
    assert certificate.applies_to == "Picard within a block"
    assert not constraint.certificate({"A": A}, activations.relu).proven
    assert "diagonal block 1" in constraint.certificate({"A": A}, activations.relu).reason
    assert not constraint.certificate({"A": A.T}, phi).proven
    assert not BlockTriangular((2, 1), InfNorm()).certificate({"L": A, "R": A}, phi).proven


@pytest.mark.parametrize("inner", [SpectralNorm(0.8), Monotone(0.3)], ids=repr)
def test_blocks_in_the_euclidean_norm(inner):
    rng = np.random.default_rng(0)
    A = BlockTriangular((2, 4), inner).project(
        {"A": 3 * rng.normal(size=(N, N))}, activations.relu
    )["A"]
    certificate = BlockTriangular((2, 4), inner).certificate({"A": A}, activations.relu)
    assert certificate.comparison is None
    assert certificate.norm.blocks == ((0, 2), (2, 6))
    assert 0 < certificate.margin < 1
    two = BlockTriangular((1, 1), inner).certificate(
        {"A": np.array([[-0.5, 7.0], [0.0, -0.5]])}, activations.relu
    )
    m = inner.certificate({"A": np.array([[-0.5]])}, activations.relu).margin
    # the largest entry of M^{-1} 1, M = [[m, -7], [0, m]]
    assert two.margin == pytest.approx(1 / ((1 + 7 / m) / m))


@pytest.mark.parametrize("L", [1.0, 4.0])
def test_blocks_that_are_no_neighbours_count_in_the_error(L):
    A = np.array([[0.5, 0.0, 2.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]) / L
    phi = Activation(
        "a ramp", lambda z: L * np.maximum(z, 0), lambda z: L * (z > 0), slope_range=(0.0, L)
    )
    c = BlockTriangular((1, 1, 1), SpectralNorm(0.6)).certificate({"A": A}, phi)
    residual = c.norm.weights  # of norm 1
    error = np.linalg.solve(np.eye(3) - L * A, residual)  # where all units are active
    assert c.norm(error[None]) <= c.error(1.0)


def test_a_factor_that_rounds_to_1_says_so():
    A = np.array([[0.5, 1e9], [-1e9, 0.5]])
    certificate = Monotone(0.2).certificate({"A": A}, activations.relu)
    assert certificate.proven
    assert certificate.contraction == 1
    with pytest.raises(InputError, match="to the last digit"):
        certificate.steps(1e-6, first=1.0)
    averaged = MatrixMeasure().certificate(
        {"A": np.array([[-1e17, 0.0], [0.1, 0.0]])}, activations.tanh
    )
    assert averaged.proven
    assert averaged.contraction == 1


def test_no_common_norm_is_said_by_an_infinite_bound():
    nested = BlockTriangular((3, 3), BlockTriangular((1, 2), SpectralNorm(0.9)))
    A = nested.project({"A": np.ones((N, N))}, activations.relu)["A"]
    certificate = nested.certificate({"A": A}, activations.relu)
    assert certificate.proven
    assert certificate.error(1e-9) == math.inf
    assert np.all(certificate.entrywise(np.ones((1, N))) == math.inf)


def test_any_order_without_cycles_is_recognised():
    rng = np.random.default_rng(0)
    order = rng.permutation(9)
    A = (100 * np.triu(rng.normal(size=(9, 9)), 1))[order][:, order]
    certificate = strongest({"A": A}, activations.gelu, InfNorm())
    assert certificate.contraction == 0
    assert certificate.steps(1e-12, first=1e6) == 1
    A[order.argsort()[3], order.argsort()[3]] = 1.5
    assert not strongest({"A": A}, activations.relu, InfNorm()).proven


# -------------------------------------------------------------- the strongest statement


def test_the_smallest_factor_wins():
    A = np.array([[0.9, 0.0], [0.05, 0.4]])
    best = strongest({"A": A}, activations.relu, InfNorm(0.99), explain=True)
    assert best.applies_to == "Jacobi"
    assert best.contraction == pytest.approx(0.05 / 0.6) or best.contraction < 0.05 / 0.6
    assert all(best.contraction <= other.contraction for other in best.others)
    assert not strongest({"A": A}, activations.relu, InfNorm(0.99)).others
    assert any("A has cycles" in other.reason for other in best.others)
    assert "||A||_inf = 0.9" in repr(best)


def test_a_model_says_the_strongest(monkeypatch):
    model = ImplicitModel(2, 3, 8, constraint=Unconstrained(), dtype="float64", rng=0)
    assert model.certificate().proven
    model.params = {**model.params, "A": np.full((8, 8), 2.0)}
    certificate = model.certificate(explain=True)
    assert not certificate.proven
    assert "unconstrained" in certificate.reason
    assert {"InfNorm", "PerronFrobenius", "SpectralNorm", "Monotone", "MatrixMeasure"} <= {
        o.applies_to for o in certificate.others
    }
    assert Linear(2, 2).certificate(explain=True).proven
    assert not Sequential(Linear(2, 2, dtype="float64"), model).certificate(explain=True).proven
    monkeypatch.setattr(sys.modules["pyidl.wellposed.strongest"], "LARGEST", 4)
    assert any("above 4" in o.reason for o in model.certificate(explain=True).others)


@pytest.mark.parametrize(
    "constraint",
    [InfNorm(0.9), PerronFrobenius(0.9), SpectralNorm(0.9), MatrixMeasure(0.9), Monotone(0.1)],
    ids=repr,
)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_factors_and_their_product_are_certified_alike(constraint, seed, k):
    rng = np.random.default_rng(seed)
    params = constraint.project(
        {"L": rng.normal(size=(N, k)), "R": rng.normal(size=(N, k))}, activations.relu
    )
    whole = {"A": params["L"] @ params["R"].T}
    one, two = (
        constraint.certificate(params, activations.relu),
        constraint.certificate(whole, activations.relu),
    )
    assert one.proven
    assert two.proven
    assert one.contraction == pytest.approx(two.contraction, rel=1e-6)
    assert one.margin == pytest.approx(two.margin, rel=1e-6)


# ----------------------------------------------------------------------- entry by entry


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0.1, 0.999999))
def test_entrywise_bounds_solve_the_comparison_and_no_less(seed, n, radius):
    """In exact arithmetic, with fractions: M e >= |r|."""
    from fractions import Fraction

    rng = np.random.default_rng(seed)
    B = np.abs(hard_matrix(rng, n))
    top = np.abs(np.linalg.eigvals(B)).max()
    B = B if top == 0 else radius * B / top
    assume(B.max() < 1e12)
    certificate = PerronFrobenius().certificate({"A": B}, activations.relu)
    assume(certificate.proven)
    r = rng.normal(size=(2, n)) * 10.0 ** rng.uniform(-8, 3)
    r[0, 0] = 0.0
    e = certificate.entrywise(r)
    assert e.shape == r.shape
    for bound, given_r in zip(e, r):
        if np.all(np.isfinite(bound)):
            exact = [Fraction(float(v)) for v in bound]
            for i in range(n):
                image = exact[i] - sum(Fraction(float(B[i, j])) * exact[j] for j in range(n))
                assert image >= abs(Fraction(float(given_r[i]))) or not tight(
                    certificate, bound, given_r
                )


def tight(certificate, bound, r):
    """Whether the bound comes from the comparison matrix, and not from the norm."""
    w = 1.0 if certificate.norm.weights is None else certificate.norm.weights
    return np.all(bound < certificate.error(certificate.norm(r[None]))[0] * w)


def test_entrywise_is_finer_than_the_norm_and_falls_back_to_it():
    A = np.array([[0.0, 0.5], [0.0, 0.0]])
    residual = np.array([[0.0, 1e-3]])
    certificate = PerronFrobenius().certificate({"A": A}, activations.relu)
    np.testing.assert_allclose(certificate.entrywise(residual), [[5e-4, 1e-3]], rtol=1e-12)
    flat = InfNorm().certificate({"A": A}, activations.relu)
    np.testing.assert_allclose(flat.entrywise(residual), [[2e-3, 2e-3]], rtol=1e-12)
    assert np.all(Certificate(False, math.inf, Norm(), "", "").entrywise(residual) == math.inf)
    # no M-matrix
    broken = Certificate(
        True, 0.5, Norm(), "Picard", "", comparison=np.array([[1.0, -2.0], [-2.0, 1.0]])
    )
    np.testing.assert_allclose(broken.entrywise(residual), [[2e-3, 2e-3]], rtol=1e-12)
    singular = Certificate(True, 0.5, Norm(), "Picard", "", comparison=np.zeros((2, 2)))
    np.testing.assert_allclose(singular.entrywise(residual), [[2e-3, 2e-3]], rtol=1e-12)


def test_a_bound_that_is_not_inflated_would_be_too_small():
    """The broken twin: the plain solution of M e = r misses in the last digits, for some r."""
    rng = np.random.default_rng(0)
    B = rng.random((30, 30))
    B *= 0.99 / np.abs(np.linalg.eigvals(B)).max()
    certificate = PerronFrobenius().certificate({"A": B}, activations.relu)
    r = rng.random((50, 30))
    M = certificate.comparison.astype(np.longdouble)
    naive = np.linalg.solve(certificate.comparison, r.T).T.astype(np.longdouble)
    assert (naive @ M.T < r).any()
    assert not (certificate.entrywise(r).astype(np.longdouble) @ M.T < r).any()


def test_nothing_is_certified_for_an_unknown_phi():
    with pytest.warns(WellPosednessWarning):
        mine = Activation("mine", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    assert not strongest({"A": np.diag([0.1, 0.0])}, mine, InfNorm()).proven
    feed_forward = strongest({"A": np.array([[0.0, 3.0], [0.0, 0.0]])}, mine, InfNorm())
    assert feed_forward.proven
    assert feed_forward.error(1e-3) == math.inf
    with pytest.raises(InputError):
        strongest({"A": np.eye(2)}, mine, InfNorm(weights=ETA)).steps(1e-3, first=1.0)


def test_a_hair_is_no_reason_to_quote_another_condition():
    """Nonnegative rows, projected: lambda_pf and the measure are the norm, but for roundings."""
    A = InfNorm(0.9).project({"A": np.random.default_rng(0).random((5, 5))}, activations.relu)["A"]
    found = strongest({"A": A}, activations.relu, InfNorm(0.9), explain=True)
    assert found.reason.startswith("||A||_inf")
    assert min(c.contraction for c in found.others if c.proven) < found.contraction
    better = strongest({"A": 0.5 * A}, activations.relu, Unconstrained())
    assert (
        better.contraction <= strongest({"A": 0.5 * A}, activations.relu, InfNorm(0.9)).contraction
    )


def test_what_is_missing_by_less_than_a_rounding_is_found():
    """The last row is an equation for e alone, and 0.3 e may fall short of r by an ulp."""
    M = np.array([[0.95, -0.07, -0.23], [0.0, 1.0, -0.7], [0.0, 0.0, 0.3]])
    c = Certificate(True, 0.7, Norm(), "Picard", "by hand", comparison=M)
    r = np.random.default_rng(0).uniform(0.1, 2.0, size=(500, 3))
    e, exact = c.entrywise(r), np.linalg.solve(M, r.T).T
    assert np.all(e <= exact * (1 + 1e-13))
    for row, found in zip(r[:50], e, strict=False):
        image = [sum(Fraction(a) * Fraction(b) for a, b in zip(m, found, strict=True)) for m in M]
        assert all(a >= Fraction(b) for a, b in zip(image, row, strict=True))
