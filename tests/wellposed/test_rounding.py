"""Every number of a certificate is on the safe side in exact arithmetic.

Factor, margin, comparison matrix, error bound, steps and constant, for A and for factors
that cancel massively; the oracle reckons with fractions.
"""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from conditions import EXACT, cancelling, exactly, solve_exactly
from hypothesis import given
from hypothesis import strategies as st

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.errors import InputError
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    infnorm,
)
from pyidl.wellposed.blocknorms import gains
from pyidl.wellposed.certificate import FEW, Certificate, Norm
from pyidl.wellposed.infnorm import absolute_row_sums
from pyidl.wellposed.measure import parts
from pyidl.wellposed.perronfrobenius import factor_of

N = 4
ETA = (0.3, 7.0, 1.0, 0.11)

steep = Activation(
    "steep", lambda z: 1.3 * np.tanh(z), lambda z: 1.3 - 1.3 * np.tanh(z) ** 2, slope_range=(0, 1.3)
)
PHIS = [activations.relu, activations.tanh, activations.sigmoid, steep]

seeds = st.integers(0, 10**6)


def full(rng, size, kind="any"):
    """A with ``|A|_inf = size``; kind "triangle" is strictly so, "blocks" in blocks of 2."""
    A = rng.normal(size=(N, N)) * 10.0 ** rng.uniform(-3, 0, (N, N))
    if kind == "negative":
        A -= np.diag(rng.uniform(0, 3, N))
    if kind == "triangle":
        A = np.triu(A, 1)
    if kind == "blocks":
        A[2:, :2] = 0.0
    return {"A": size * A / np.abs(A).sum(axis=1).max()}


def terms(params, phi, eta):
    """``d_i = L_i A_ii`` and ``o_i = L_i sum_{j != i} |A_ij| eta_j / eta_i``, exactly."""
    A, L = exactly(params), EXACT(phi.row_lipschitz(N))
    w = EXACT(np.ones(N) if eta is None else eta)
    sums = L * (abs(A) @ w) / w
    d = L * np.diagonal(A)
    return d, sums - abs(d)


def least_margin(c, params, phi):
    """The largest m with ``M s >= m s``, for ``M = I - diag(L) |A|`` and s of the norm."""
    d, o = terms(params, phi, c.norm.weights)
    return 1 - max(abs(d) + o)


DRAWN = [full, cancelling]


@pytest.mark.parametrize("draw", DRAWN)
@given(seeds, st.sampled_from(PHIS), st.booleans())
def test_of_row_sums(draw, seed, phi, weighted):
    rng = np.random.default_rng(seed)
    params = draw(rng, rng.uniform(0.1, 0.7))
    for condition in (InfNorm(weights=ETA if weighted else None), PerronFrobenius()):
        c = condition.certificate(params, phi)
        if not c.proven:
            continue
        exact = least_margin(c, params, phi)
        assert Fraction(c.contraction) >= 1 - exact
        assert Fraction(c.margin) <= 1 - Fraction(c.contraction)
        if c.comparison is not None:
            M = EXACT(np.eye(N)) - EXACT(phi.row_lipschitz(N))[:, None] * abs(exactly(params))
            assert np.all(EXACT(c.comparison) <= M)


@pytest.mark.parametrize("draw", DRAWN)
@given(seeds, st.sampled_from(PHIS), st.booleans(), st.sampled_from(["any", "negative"]))
def test_of_the_matrix_measure(draw, seed, phi, weighted, kind):
    rng = np.random.default_rng(seed)
    params, eta = draw(rng, 10.0 ** rng.uniform(-20, -0.1), kind), ETA if weighted else None
    c = MatrixMeasure(weights=eta).certificate(params, phi)
    d, o = terms(params, phi, eta)
    if not c.proven:
        return
    mu = max(0, max(d + o))
    assert Fraction(c.margin) <= 1 - mu
    if c.applies_to == "Jacobi":
        factor = max(o / (1 - d))
        constant = (1 + max(0, max(-d))) / (1 - max(0, max(d)))
    else:
        name = c.applies_to
        a = 1 - Fraction(0 if name == "Picard" else float(name[len("Picard(damping=") : -1]))
        # row i of the derivative, for slopes 0 and L_i, between which it is convex
        factor = max(max(1 - a, abs(1 - a + a * di) + a * oi) for di, oi in zip(d, o, strict=True))
        constant = max(1, max(abs(d) + o))
    assert Fraction(c.contraction) >= factor
    assert Fraction(c.constant) >= constant
    # of the head of the file, row by row
    L, A = EXACT(phi.row_lipschitz(N)), abs(exactly(params))
    M = -L[:, None] * A / np.array([max(1, 1 - di) for di in d], object)[:, None]
    for i in range(N):
        M[i, i] = min(1 - d[i], Fraction(1))
    assert np.all(EXACT(c.comparison) <= M)


@given(st.floats(-30, 1), st.floats(-30, 1), st.sampled_from(PHIS))
def test_of_the_euclidean_conditions(a, b, phi):
    """For a diagonal A all numbers have a closed form."""
    params, L = {"A": np.diag([a, b])}, Fraction(phi.lipschitz)
    values = [Fraction(a), Fraction(b)]
    largest = L * max(map(abs, values))
    c = SpectralNorm().certificate(params, phi)
    if c.proven:
        assert Fraction(c.contraction) >= largest
        assert Fraction(c.margin) <= 1 - largest
    c = Monotone().certificate(params, phi)
    if not c.proven:
        return
    # the margin is the smaller root of t^2 - (1 + gap) t + m, and near it
    m, gap = 1 - L * max(values), max(abs(1 - L * value) for value in values)
    t = Fraction(c.margin)
    assert t <= (1 + gap) / 2
    assert t * t - (1 + gap) * t + m >= 0
    t *= 1 + Fraction(1e-6)
    assert t > (1 + gap) / 2 or t * t - (1 + gap) * t + m < 0
    assert Fraction(c.constant) * Fraction(c.margin) >= 1 + largest
    g = 1 if c.applies_to == "ForwardBackward" else L
    m, gap = 1 - g * max(values), max(abs(1 - g * value) for value in values)
    assert Fraction(c.contraction) ** 2 >= 1 - (m / gap) ** 2


@pytest.mark.parametrize(
    "condition",
    [
        StrictlyTriangular(),
        BlockTriangular((1, 3), StrictlyTriangular()),
        BlockTriangular((2, 2), InfNorm()),
        BlockTriangular((2, 2), InfNorm(weights=(0.3, 7.0))),
        BlockTriangular((2, 2), PerronFrobenius()),
        BlockTriangular((2, 2), BlockTriangular((1, 1), InfNorm())),
    ],
    ids=repr,
)
@given(seeds, st.sampled_from(PHIS))
def test_of_triangles(condition, seed, phi):
    rng = np.random.default_rng(seed)
    strict = "Strict" in repr(condition)
    params = full(rng, rng.uniform(0.1, 3), "triangle" if strict else "blocks")
    c = condition.certificate(params, phi)
    if not c.proven:
        return
    M = EXACT(np.eye(N)) - EXACT(phi.row_lipschitz(N))[:, None] * abs(exactly(params))
    assert np.all(EXACT(c.comparison) <= M)
    assert Fraction(c.margin) <= least_margin(c, params, phi)


@given(st.floats(0.7, 0.7692))
def test_of_blocks_with_slopes_that_round(a):
    """``1 - 1.3 a``, which is small, is off by the rounding of 1.3 a, which is not."""
    c = BlockTriangular((1, 1), InfNorm()).certificate({"A": a * np.eye(2)}, steep)
    exact = 1 - Fraction(1.3) * Fraction(a)
    assert Fraction(c.comparison[0, 0]) <= exact
    assert Fraction(c.margin) <= exact


def test_the_constant_of_the_blocks_is_that_of_triangles():
    """An inner iteration that does not contract the residual itself."""
    A = np.array([[0.5, 0.1], [0.1, -9.0]])
    inner = MatrixMeasure().certificate({"A": A}, activations.relu)
    both = BlockTriangular((2, 1), MatrixMeasure()).certificate(
        {"A": np.block([[A, np.ones((2, 1))], [np.zeros((1, 2)), 0.25]])}, activations.relu
    )
    assert both.constant == inner.constant > 1
    assert both.steps(1e-6, 1.0) == inner.steps(1e-6, 1.0)


@given(seeds)
def test_of_scalings_that_underflow(seed):
    """``B s`` vanishes where s is tiny; ``B s / s`` does not."""
    rng = np.random.default_rng(seed)
    B, s = np.diag(10.0 ** rng.uniform(-40, -20, N)), 10.0 ** rng.uniform(-300, -280, N)
    assert Fraction(factor_of(B, s)) >= np.max((EXACT(B) @ EXACT(s)) / EXACT(s))
    assert factor_of(np.zeros((N, N)), s) == 0


@given(seeds, st.sampled_from(PHIS))
def test_bounds_of_errors(seed, phi):
    """``error`` is at least the quotient, and ``M e >= r`` of what is entrywise."""
    rng = np.random.default_rng(seed)
    params = full(rng, rng.uniform(0.1, 0.7))
    c = PerronFrobenius().certificate(params, phi)
    r = rng.normal(size=(3, N)) * 10.0 ** rng.uniform(-9, 3)
    for residual in (r[0, 0] ** 2, r[0] ** 2, (r[0] ** 2).astype("float32"), np.float32(0.1)):
        assert np.all(EXACT(c.error(residual)) * Fraction(c.margin) >= EXACT(residual))
    e = c.entrywise(r)
    for found, row in zip(EXACT(e), abs(EXACT(r)), strict=True):
        assert np.all(found >= np.array(solve_exactly(EXACT(c.comparison), row)))
    for plain in (replace(c, comparison=None), InfNorm().certificate(params, phi)):
        if plain.proven:
            w = EXACT(np.ones(N) if plain.norm.weights is None else plain.norm.weights)
            least = np.max(abs(EXACT(r)) / w, axis=1, keepdims=True) / Fraction(plain.margin) * w
            assert np.all(EXACT(plain.entrywise(r)) >= least)


def test_errors_of_nothing_and_of_all():
    """A residual of 0 has the error 0, one that is infinite an infinite one."""
    c = Certificate(True, 0.3, Norm(), "Picard", "")
    assert (c.error(0.0), c.error(math.inf)) == (0.0, math.inf)
    assert np.array_equal(c.error(np.array([0.0, math.inf])), [0.0, math.inf])
    unknown = Certificate(False, math.inf, Norm(), "no iteration", "")
    for residual in (0.0, 1.0, math.inf):
        assert unknown.error(residual) == math.inf
    assert np.array_equal(unknown.error(np.array([0.0, math.inf])), [math.inf, math.inf])


@given(
    st.floats(1e-3, 0.999),
    st.floats(1e-320, 1e308),
    st.floats(1e-320, 1e308),
    st.sampled_from([1.0, 1.7, 300.0]),
)
def test_steps_are_enough_and_no_more(factor, tol, first, constant):
    """Also where no quotient of the two residuals is a number."""
    k = Certificate(True, factor, Norm(), "Picard", "", constant=constant).steps(tol, first)

    def left(k):
        return Fraction(constant) * Fraction(first) * Fraction(factor) ** k

    assert (first if k == 0 else left(k)) <= tol
    spare = 1 if k <= FEW else 2
    assert k <= spare or left(k - spare) > tol


@pytest.mark.parametrize(
    ("factor", "constant", "tol", "first", "k"),
    [
        (0.5, 1.0, 2.0**-20, 1.0, 20),  # attained
        (0.5, 1.0, math.nextafter(2.0**-20, 0), 1.0, 21),
        (0.5, 1.0, math.nextafter(2.0**-20, 1), 1.0, 20),
        (0.125, 8.0, 2.0**-60, 1.0, 21),
        (0.5, 1.0, 5e-324, 5e-324, 0),
        (0.5, 1.0, np.float32(0.25), np.float32(1.0), 2),
        (0.0, 1.0, 1e-6, 1.0, 1),
    ],
)
def test_steps_in_numbers(factor, constant, tol, first, k):
    certificate = Certificate(True, factor, Norm(), "Picard", "", constant=constant)
    assert certificate.steps(tol, first) == k


@pytest.mark.parametrize(
    ("tol", "first"),
    [(1e-6, math.inf), (math.inf, math.inf), (1e-6, math.nan), (math.nan, 1.0), (0.0, 1.0)],
)
def test_no_number_of_steps_without_numbers(tol, first):
    for certificate in (
        Certificate(True, 0.5, Norm(), "Picard", ""),
        Certificate(True, 0.0, Norm(), "Substitution", ""),
    ):
        with pytest.raises(InputError, match="tol > 0 and a finite first >= 0"):
            certificate.steps(tol, first)


@pytest.mark.parametrize(
    "M",
    [
        [[1.0, -2.0, 0.0], [-2.0, 1.0, 0.0], [0.0, 0.0, 1.0]],  # M^{-1} 1 = (-1, -1, 1)
        [[1.0, -3.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -0.5, 1.0]],  # (-2, -1, 1/2)
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]],  # singular
    ],
)
def test_what_is_no_m_matrix_bounds_no_entry(M):
    """All that is left is the norm."""
    c = Certificate(True, 0.5, Norm(), "Picard", "", comparison=np.array(M))
    assert np.all(c.entrywise(np.array([[0.0, 0.0, 1.0]])) >= 2)


@pytest.mark.parametrize("weights", [None, ETA])
def test_rows_of_factors_in_pieces(monkeypatch, weights):
    """Some rows at a time, each with its own place on the diagonal."""
    params, eta = cancelling(np.random.default_rng(0), 0.5), None if weights is None else EXACT(ETA)
    d, o = terms(params, activations.relu, eta)
    for rows in (1, 2, 3, 4):
        monkeypatch.setattr(infnorm, "CHUNK", rows * N)
        diagonal, off = parts(params, None if weights is None else np.array(ETA))
        np.testing.assert_allclose(diagonal, d.astype(float), atol=1e-8)
        np.testing.assert_allclose(off, o.astype(float), rtol=1e-7)
        sums = absolute_row_sums(params, np.ones(N))
        np.testing.assert_allclose(sums, np.abs(exactly(params)).sum(axis=1).astype(float), 1e-7)


blocks = Blocks((activations.softmax, 2), (activations.relu, 1), (activations.layer_norm(), 3))


@given(seeds)
def test_of_block_norms_of_factors(seed):
    """``|A_IJ v| <= N_IJ |v|`` for the exact A and the v that it stretches most."""
    rng = np.random.default_rng(seed)
    params = cancelling(rng, 0.5, n=6)
    A, found = exactly(params), gains(params, blocks)
    L = EXACT(np.array(blocks.row_lipschitz(6))[found.starts])
    for i, j in itertools.product(range(3), repeat=2):
        rows, columns = (slice(s, s + k) for s, k in zip(found.starts[[i, j]], found.sizes[[i, j]]))
        block = A[rows, columns]
        v = EXACT(np.linalg.svd(block.astype(float))[2][0])
        image = L[i] * (block @ v)
        assert image @ image <= Fraction(found.matrix[i, j]) ** 2 * (v @ v)
