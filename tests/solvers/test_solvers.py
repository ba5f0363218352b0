"""Solutions tell the truth, every failure has its status, and samples are solved one by one."""

import tracemalloc

import numpy as np
import pytest
from helpers import assert_close, host
from hypothesis import given
from hypothesis import strategies as st
from problems import Tanh, linear

from pyidl import activations
from pyidl.activations import Activation
from pyidl.arrays.backend import from_host
from pyidl.cells import AffineCell
from pyidl.equilibrium import equilibrium
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers import Anderson, Auto, Direct, Fallback, Phantom, Picard, Status
from pyidl.solvers.problem import Affine, Problem

PICARD = Picard()
FIRST = 6
"""Step of the first measurement of a small problem: who is solved at once is seen then."""


class Counting(Full):
    """A matrix that counts its products."""

    def __init__(self, A):
        super().__init__(A)
        object.__setattr__(self, "products", [])

    def rows(self, x, out=None):
        self.products.append(x.shape)
        return super().rows(x, out)


def contraction(n, kappa, rng):
    A = rng.normal(size=(n, n))
    return kappa * A / np.abs(A).sum(axis=1, keepdims=True)


def problem(
    xp=np, n=8, m=5, kappa=0.8, seed=0, activation=activations.relu, dtype="float64", matrix=Full
):
    rng = np.random.default_rng(seed)
    A, Z = contraction(n, kappa, rng).astype(dtype), rng.normal(size=(m, n)).astype(dtype)
    return Affine(matrix(from_host(xp, A)), from_host(xp, Z), activation)


def f(p, x):
    return p.map.activation.phi(x @ host(p.matrix.dense()).T + host(p.offset))


@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.9, 0.99]),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([activations.relu, activations.tanh, activations.abs]),
    st.integers(0, 100),
)
def test_a_solution_tells_the_truth(n, m, kappa, dtype, activation, seed):
    p = problem(n=n, m=m, kappa=kappa, dtype=dtype, activation=activation, seed=seed)
    s = Fallback(Picard(), Picard(damping=0.5))(p)
    eps = np.finfo(dtype).eps
    assert s.converged.all()
    assert np.array_equal(s.value, activation.phi(s.pre))
    measured = np.abs(f(p, s.value) - s.value).max(axis=1)
    np.testing.assert_allclose(
        s.residual, measured, rtol=1e-3, atol=20 * n * eps * (1 + np.abs(s.value).max())
    )
    tol = 1e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(s.tolerance, tol * (1 + np.abs(s.value).max(axis=1)), rtol=1e-6)
    assert np.all(s.residual <= s.tolerance)


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("x0", [None, 3.0])
def test_value_and_pre_activation_belong_together_after_damping(xp, m, x0):
    """A bug once: the next damped step was written into the buffer that was returned.

    It happened when all samples at hand had converged.
    """
    p = problem(xp, m=m, kappa=0.95)
    s = Picard(damping=0.5)(p, None if x0 is None else from_host(xp, np.full((m, 8), x0)))
    assert s.converged.all()
    assert np.array_equal(host(s.value), np.maximum(host(s.pre), 0))
    np.testing.assert_allclose(
        np.abs(f(p, host(s.value)) - host(s.value)).max(axis=1), s.residual, rtol=1e-6, atol=1e-15
    )


def test_steps_are_products(xp):
    p = problem(xp, matrix=Counting)
    s = PICARD(p)
    assert len(p.matrix.products) == s.n_iter.max() > 3
    assert_close(s.value, host(s.value), rtol=0, xp=xp)


def test_frozen_samples_leave_the_product():
    rng = np.random.default_rng(0)
    A = contraction(8, 0.9, rng)
    Z = rng.normal(size=(64, 8))
    Z[4:] = -1.0  # x = 0 from the start: 60 samples have converged when first measured
    p = Affine(Counting(A), Z, activations.relu)
    s = PICARD(p)
    assert np.all(s.n_iter[4:] == FIRST)
    assert s.n_iter[:4].min() > FIRST
    assert p.matrix.products[:FIRST] == [(64, 8)] * FIRST
    assert max(p.matrix.products[FIRST:]) <= (4, 8)


@pytest.mark.parametrize("kappa", [0.5, 0.99])
def test_the_certified_rate_holds_step_by_step(kappa):
    s = PICARD(problem(kappa=kappa, n=20, m=10, activation=activations.tanh), trace=True)
    falling = s.trace[1:] <= kappa * s.trace[:-1] * (1 + 1e-9) + 1e-15
    assert np.all(falling | np.isnan(s.trace[1:]))


def test_tracing_changes_nothing(xp):
    p = problem(xp, kappa=0.95, m=30)
    plain, traced = PICARD(p), PICARD(p, trace=True)
    assert np.array_equal(host(plain.value), host(traced.value))
    assert np.array_equal(plain.n_iter, traced.n_iter)
    assert traced.trace.shape == (plain.n_iter.max(), 30)
    last = [traced.trace[k - 1, i] for i, k in enumerate(plain.n_iter)]
    np.testing.assert_allclose(last, plain.residual, rtol=1e-12)
    assert plain.trace is None


# ----------------------------------------------------------------------------- statuses


def one(A, z, solver=PICARD, activation=activations.relu, dtype="float64"):
    return solver(Affine(Full(np.array(A, dtype)), np.array(z, dtype), activation))


def test_converged_on_the_last_allowed_step():
    p = problem(kappa=0.3, m=1)
    needed = next(k for k in range(1, 100) if Picard(max_iter=k)(p).converged.all())
    assert 3 < needed <= int(PICARD(p).n_iter[0])
    assert Picard(max_iter=needed)(p).status.tolist() == [Status.CONVERGED]
    assert Picard(max_iter=needed - 1)(p).status.tolist() == [Status.MAX_ITER]
    assert Picard(max_iter=1)(p).status.tolist() == [Status.MAX_ITER]


def test_a_cycle_is_stagnation_and_damping_ends_it():
    s = one(-np.eye(2), [[1.0, 2.0]])
    assert s.status.tolist() == [Status.STAGNATED]
    assert s.n_iter[0] < 100
    damped = one(-np.eye(2), [[1.0, 2.0]], Picard(damping=0.5))
    np.testing.assert_allclose(damped.value, [[0.5, 1.0]], atol=1e-11)
    repaired = one(-np.eye(2), [[1.0, 2.0], [-1.0, -1.0]], Fallback(Picard(), Picard(damping=0.5)))
    assert repaired.converged.all()
    assert "for 1 of 2 samples" in repaired.method


def test_divergence_keeps_the_best_iterate():
    s = one([[2.0]], [[1.0], [-1.0]])
    assert s.status.tolist() == [Status.DIVERGED, Status.CONVERGED]
    assert s.value[0, 0] == 2**FIRST - 1  # the first that was measured is the best of all
    assert s.residual[0] == 2**FIRST
    assert s.n_iter[0] < 100
    slow = one([[1.05]], [[1.0]])
    assert slow.status.tolist() == [Status.DIVERGED]


def test_leaving_the_range_of_the_dtype():
    square = Activation("square", lambda z: z * z, lambda z: 2 * z, lipschitz=1.0)
    s = one([[1e10]], [[1e10], [0.0]], Picard(max_iter=100), square, "float32")
    assert s.status[0] in (Status.NONFINITE, Status.DIVERGED)
    assert s.status[1] == Status.CONVERGED
    assert np.all(np.isfinite(s.value))
    overflow = one(
        [[0.5]],
        [[1.0]],
        PICARD,
        Activation("nan", lambda z: z / (z - z), lambda z: z, lipschitz=1.0),
    )
    assert overflow.status.tolist() == [Status.NONFINITE]


def test_slow_is_max_iter():
    s = one([[0.9999]], [[1.0]], Picard(max_iter=50))
    assert s.status.tolist() == [Status.MAX_ITER]
    assert 0.9 < s.residual[0] < 1.0


def test_stagnation_at_the_limit_of_float32():
    """sin of a number near 1e4 is known to about 1e-3 only.

    No tolerance of 1e-6 can be met, and that is said.
    """
    rng = np.random.default_rng(0)
    s = Fallback(Picard(), Picard(damping=0.5))(
        Affine(
            Full(contraction(50, 0.99, rng).astype("f4")),
            (1e4 * rng.normal(size=(20, 50))).astype("f4"),
            activations.sin,
        )
    )
    assert np.any(s.status == Status.STAGNATED)
    assert s.residual.max() < 0.1


def test_all_statuses_in_one_batch():
    """Diverging, cycling and converging samples side by side: each gets what it would get alone."""
    A = np.diag([2.0, -1.0, 0.5])
    Z = np.array([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, -1, -1]])
    together = one(A, Z)
    assert together.status.tolist() == [
        Status.DIVERGED,
        Status.STAGNATED,
        Status.CONVERGED,
        Status.CONVERGED,
    ]
    for i in range(4):
        alone = one(A, Z[i : i + 1])
        assert alone.status[0] == together.status[i]
        assert alone.n_iter[0] == together.n_iter[i]
        assert np.array_equal(alone.value[0], together.value[i])
    assert "2 CONVERGED, 1 STAGNATED, 1 DIVERGED" in repr(together)


# ---------------------------------------------------------------------------- arguments


def test_bad_arguments_are_refused():
    for bad in (0.0, -1e-6, 1.0, float("nan")):
        with pytest.raises(InputError, match="tol"):
            Picard(tol=bad)
    for bad in (0, 2.5):
        with pytest.raises(InputError, match="max_iter"):
            Picard(max_iter=bad)
    for bad in (1.0, -0.1):
        with pytest.raises(InputError, match="damping"):
            Picard(damping=bad)


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 9e-7), ("float64", 1.7e-15)])
def test_a_tolerance_below_rounding_is_refused(dtype, tol):
    with pytest.raises(InputError, match=dtype):
        Picard(tol=tol)(problem(dtype=dtype))
    assert Picard(tol=1.2 * tol)(problem(dtype=dtype, kappa=0.1)).converged.all()


def test_the_direct_solver_refuses_what_is_not_linear():
    with pytest.raises(InputError, match="linear"):
        Direct()(problem())


# ------------------------------------------------------------------------ linear solves


def adjoint(xp=np, n=8, m=6, kappa=0.9, dtype="float64", seed=0, scale=1.0, factors=False):
    rng = np.random.default_rng(seed)
    A = contraction(n, kappa, rng)
    if factors:
        L, R = np.linalg.svd(A)[0][:, :2], rng.normal(size=(n, 2)) / n
        matrix, A = LowRank(from_host(xp, R.astype(dtype)), from_host(xp, L.astype(dtype))), L @ R.T
    else:
        matrix = Full(from_host(xp, np.ascontiguousarray(A.T.astype(dtype))))
    G, S = scale * rng.normal(size=(m, n)), rng.uniform(0, 1, (m, n))
    parts = [from_host(xp, a.astype(dtype)) for a in (G, S)]
    return linear(matrix, *parts, np.abs(S * G).max(axis=1)), A, G, S


@pytest.mark.parametrize("factors", [False, True])
def test_direct_picard_and_numpy_agree(xp, factors):
    p, A, G, S = adjoint(xp, factors=factors)
    exact = np.stack([np.linalg.solve(np.eye(8) - s[:, None] * A.T, s * g) for s, g in zip(S, G)])
    for solver in (Direct(), Picard(), Fallback(Picard(max_iter=2), Direct())):
        s = solver(p)
        assert s.converged.all()
        assert_close(s.value, exact, rtol=1e-9, atol=1e-11, xp=xp)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_direct_where_nothing_contracts(dtype):
    """Spectral radius 3, n = 300: the answer is as good as rounding allows.

    And it is not called a failure.
    """
    rng = np.random.default_rng(0)
    A, G, S = (
        3 * rng.normal(size=(300, 300)) / 300**0.5,
        rng.normal(size=(8, 300)),
        (rng.random((8, 300)) < 0.5) * 1.0,
    )
    parts = [G.astype(dtype), S.astype(dtype), np.abs(S * G).max(axis=1)]
    s = Direct()(linear(Full(np.ascontiguousarray(A.T.astype(dtype))), *parts))
    assert s.converged.all()
    exact = np.stack([np.linalg.solve(np.eye(300) - t[:, None] * A.T, t * g) for t, g in zip(S, G)])
    assert np.abs(s.value - exact).max() < 1e5 * np.finfo(dtype).eps * np.abs(exact).max()
    assert not Picard()(
        linear(Full(np.ascontiguousarray(A.T.astype(dtype))), *parts)
    ).converged.any()


def test_generic_and_written_down_systems_agree(xp):
    p, *_ = adjoint(xp)
    matrix, h = p.system()
    generic, h2 = Problem.system(p)
    assert_close(matrix, generic, rtol=0, atol=1e-14)
    assert_close(h, h2, rtol=0, atol=1e-14)


def test_one_singular_system_among_regular_ones(xp):
    n = 3
    S = np.ones((4, n))
    S[2] = 0.5
    p = linear(
        Full(from_host(xp, np.eye(n))),
        from_host(xp, np.ones((4, n))),
        from_host(xp, S),
        S.max(axis=1),
    )
    s = Direct()(p)
    assert s.status.tolist() == [
        Status.NONFINITE,
        Status.NONFINITE,
        Status.CONVERGED,
        Status.NONFINITE,
    ]
    np.testing.assert_allclose(host(s.value)[2], 1.0, atol=1e-14)


@given(st.integers(-8, 8), st.sampled_from(["float32", "float64"]), st.integers(0, 20))
def test_linear_solves_scale_with_their_right_hand_side(exponent, dtype, seed):
    base, scaled = (
        adjoint(dtype=dtype, seed=seed)[0],
        adjoint(dtype=dtype, seed=seed, scale=10.0**exponent)[0],
    )
    v, w = PICARD(base).value, PICARD(scaled).value
    rtol = 5e-5 if dtype == "float32" else 1e-10
    assert np.abs(w / 10.0**exponent - v).max() <= rtol * np.abs(v).max()


def test_cotangents_below_the_normal_numbers_are_no_failure():
    """A softmax that is sure of itself sends back 1e-40.

    In float32 such numbers have a digit or two, and no tolerance is met.
    """
    p, *_ = adjoint(dtype="float32", kappa=0.99, n=64, m=200, scale=1e-41)
    assert 0 < np.abs(p.offset).max() < np.finfo("float32").smallest_normal
    s = PICARD(p)
    assert s.converged.all()
    assert np.all(s.residual <= 1.2e-38)
    assert np.any(s.value)


def test_zero_rows_are_solved_when_first_measured():
    p, *_ = adjoint()
    G = host(p.offset).copy()
    G[1] = 0
    s = PICARD(linear(p.matrix, G, p.map.S, np.abs(p.map.S * G).max(axis=1)))
    assert s.n_iter[1] == FIRST
    assert not s.value[1].any()
    assert s.converged.all()


# ------------------------------------------------------------------------- a cell's own


def test_a_cell_of_which_only_the_map_is_known():
    rng = np.random.default_rng(0)
    W, u, g = contraction(6, 0.8, rng), rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    x, pull = equilibrium(Tanh(W), u)
    y, reference = equilibrium(AffineCell(Full(W), Full(np.eye(6)), None, activations.tanh), u)
    np.testing.assert_allclose(x, y, atol=1e-11)
    (du, grads), (du2, grads2) = pull(g), reference(g)
    np.testing.assert_allclose(du, du2, atol=1e-10)
    np.testing.assert_allclose(grads["W"], grads2["A"], atol=1e-10)
    direct = equilibrium(Tanh(W), u, adjoint=Direct())[1](g)
    np.testing.assert_allclose(direct[1]["W"], grads2["A"], atol=1e-10)
    assert pull.forward.converged.all()


# ------------------------------------------------------------------------------- memory


def peak(p, solver):
    tracemalloc.start()
    solver(p)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_the_hot_loop_allocates_nothing():
    """Memory does not grow with the number of steps, and is six states.

    Two pre-activations, two values, the best, the answer.
    """
    Z = np.ones((1024, 128))
    easy, stiff = (Affine(Full(kappa * np.eye(128)), Z, activations.relu) for kappa in (0.1, 0.9))
    assert PICARD(stiff).n_iter.min() > 10 * PICARD(easy).n_iter.max()
    assert peak(stiff, PICARD) < peak(easy, PICARD) + 0.1 * Z.nbytes
    assert peak(stiff, PICARD) < 6.5 * Z.nbytes


@pytest.mark.parametrize("memory", [1, 3])
def test_the_memory_of_anderson(memory):
    """2 k + 4 more, however many steps."""
    Z = np.ones((1024, 128))
    p = Affine(Full(np.full((128, 128), 0.9 / 128) + 0.05 * np.eye(128)), Z, activations.relu)
    assert peak(p, Anderson(memory=memory)) < (6.5 + 2 * memory + 4) * Z.nbytes


def test_the_memory_of_a_low_rank_solve():
    """The answer, and little else: a state between two steps has k numbers."""
    Z, L = np.ones((1024, 128)), np.full((128, 2), 0.06)
    assert peak(Affine(LowRank(L, L), Z, activations.relu), Auto()) < 3.5 * Z.nbytes


@pytest.mark.parametrize("number", [np.float64(0.5), np.array(0.5)])
def test_a_number_of_numpy_leaves_float32_as_it_is(number, xp):
    """The damping of Picard, forward, and the weight of Phantom, backward."""
    A, Z = (from_host(xp, a.astype("f4")) for a in (0.3 * np.eye(3), np.ones((2, 3))))
    p = Affine(Full(A), Z, activations.relu)
    assert Picard(damping=number)(p).value.dtype == xp.float32
    q = linear(Full(A), Z, Z, np.ones(2))
    assert Phantom(tau=number)(q).value.dtype == xp.float32
