"""Every solver finds the same point, says so truthfully, and certified rates hold."""

import numpy as np
import pytest
from helpers import host, relative
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    ADJOINT,
    FAMILIES,
    FORWARD,
    Tanh,
    adjoint,
    adjoint_solution,
    affine,
    fixed_point,
    linear,
    residual,
    splits,
)

from pyidl import ImplicitModel, InfNorm, activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers import (
    GMRES,
    Anderson,
    Auto,
    Direct,
    Fallback,
    Jacobi,
    JacobianFree,
    Neumann,
    Newton,
    Phantom,
    Picard,
    Status,
    Substitution,
)
from pyidl.solvers.adaptive import Adaptive
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.cost import Costs
from pyidl.solvers.loop import iterate, stride_of
from pyidl.solvers.low_rank import low_rank_problem
from pyidl.solvers.problem import Affine

CLOSED = [a for a in map(activations.named, activations.builtin.BUILT_IN) if a.scalar_solve] + [
    activations.leaky_relu(0.1)
]
ALL = [*map(activations.named, activations.builtin.BUILT_IN), activations.leaky_relu(0.1)]


def make(
    family="gaussian",
    n=12,
    m=6,
    kappa=0.9,
    seed=0,
    activation=activations.relu,
    dtype="float64",
    xp=np,
):
    rng = np.random.default_rng(seed)
    radius = kappa / max(activation.lipschitz, 1.0)
    return affine(FAMILIES[family](n, radius, rng), rng.normal(size=(m, n)), activation, dtype, xp)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ALL, ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_solvers_agree(family, activation, dtype):
    """Solver x activation x family x dtype, forward and adjoint, against plain NumPy in float64."""
    p = make(family, activation=activation, dtype=dtype)
    exact = fixed_point(p)
    tol = 1e-6 if dtype == "float32" else 1e-12
    bound = 100 * tol  # 1 / (1 - kappa) is 10
    for name, solver in FORWARD.items():
        if splits(name, p):
            s = solver(p)
            assert s.converged.all(), name
            assert relative(s.value, exact) < bound, name
            assert np.array_equal(s.value, activation(s.pre)), name
            assert np.all(
                residual(p, s.value)
                <= s.tolerance + 50 * np.finfo(dtype).eps * (1 + np.abs(exact).max())
            ), name
            assert np.array_equal(s.status, np.zeros(6)), name
    q = adjoint(p, Picard()(p), np.random.default_rng(1).normal(size=(6, 12)))
    exact = adjoint_solution(q)
    for name, solver in ADJOINT.items():
        if not splits(name, q):
            continue
        s = solver(q)
        assert s.converged.all(), name
        assert relative(s.value, exact) < bound, name
        assert np.all(
            residual(q, s.value) <= s.tolerance + 50 * np.finfo(dtype).eps * np.abs(exact).max()
        ), name


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("family", ["stiff", "nonnegative"])
def test_on_every_library(name, family, xp):
    p = make(family, xp=xp)
    s = FORWARD[name](p)
    assert s.converged.all()
    assert relative(s.value, fixed_point(p)) < 1e-10
    q = adjoint(p, s, np.random.default_rng(1).normal(size=(6, 12)))
    for solver in (FORWARD[name], GMRES(), Direct()):
        v = solver(q)
        assert v.converged.all()
        assert relative(v.value, adjoint_solution(q)) < 1e-10


@pytest.mark.parametrize("slow", [np.arange(6), np.array([4, 1])], ids=["all", "some"])
@pytest.mark.parametrize("in_place", [True, False])
def test_anderson_takes_the_same_steps_on_every_library(in_place, slow, xp):
    """On CuPy in a kernel.

    Also for problems that own what they return, which is not written into then.
    """
    ends = []
    for library in (np, xp):
        p = make("nonnegative", xp=library)
        mixing = Mixing(p if in_place else _Owned(p.matrix, p.offset, p.map.activation), 3)
        mixing.new = slow
        y, x = p.start()
        for _ in range(10):
            y_image = p.pre(x)
            before = host(y_image).copy()
            following = mixing(y, y_image)
            assert in_place or np.array_equal(host(y_image), before)
            y = from_host(library, host(following).copy())
            x = p.image(y)
        ends.append(host(y))
    plain = fixed_point(p)
    assert relative(ends[1], ends[0]) < 1e-9
    assert np.all(np.abs(activations.relu(ends[1]) - plain).max(axis=1)[slow] < 1e-5), (
        "ten plain steps leave 1e-1"
    )


class _Owned(Affine):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.in_place = False


@pytest.mark.parametrize("name", [*FORWARD, "direct", "gmres"])
def test_low_rank_is_the_same_equation(name, xp):
    rng = np.random.default_rng(0)
    L, R = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    L *= 0.9 / np.abs(L @ R.T).sum(axis=1).max()
    Z = rng.normal(size=(6, 12))
    thin = Affine(LowRank(from_host(xp, L), from_host(xp, R)), from_host(xp, Z), activations.relu)
    full = affine(L @ R.T, Z, xp=xp)
    x = Picard()(thin)
    assert relative(x.value, host(Picard()(full).value)) < 1e-10
    if name in FORWARD:
        assert relative(FORWARD[name](thin).value, fixed_point(full)) < 1e-10
    G = rng.normal(size=(6, 12))
    assert (
        relative(ADJOINT[name](adjoint(thin, x, G)).value, adjoint_solution(adjoint(full, x, G)))
        < 1e-10
    )


@pytest.mark.parametrize(
    "activation", [activations.relu, activations.tanh, activations.silu], ids=repr
)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("x0", [None, 2.0])
def test_low_rank_is_iterated_in_as_many_dimensions(rank, activation, x0, xp):
    rng = np.random.default_rng(0)
    L, R = rng.normal(size=(40, rank)), rng.normal(size=(40, rank))
    L *= 0.97 / activation.lipschitz / np.abs(L @ R.T).sum(axis=1).max()
    p = Affine(
        LowRank(from_host(xp, L), from_host(xp, R)),
        from_host(xp, rng.normal(size=(900, 40))),
        activation,
    )
    start = None if x0 is None else from_host(xp, np.full((900, 40), x0))
    x = Auto()(p, start)
    assert x.method.startswith(f"Auto(Picard in {rank} dimensions")
    assert x.converged.all()
    assert relative(x.value, fixed_point(p)) < 1e-10
    np.testing.assert_allclose(residual(p, x.value), x.residual, atol=1e-13)
    np.testing.assert_allclose(host(activation(x.pre)), host(x.value), rtol=1e-14)
    q = adjoint(p, x, rng.normal(size=(900, 40)))
    v = Auto()(q, start)
    assert "dimensions" in v.method
    assert relative(v.value, adjoint_solution(q)) < 1e-10
    thick = LowRank(*(from_host(xp, rng.normal(size=(4, 2)) / 9) for _ in range(2)))
    wide = Affine(thick, p.offset[:, :4], activation)
    assert Auto()(wide).method == "Auto(Picard)"
    assert Auto()(p.take(np.arange(300))).method.startswith("Auto(Picard")
    assert "dimensions" not in Auto()(p.take(np.arange(300))).method


@pytest.mark.parametrize("name", [*FORWARD, "gmres"])
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_in_a_batch_and_shuffled(name, family):
    """The answer of a sample does not depend on its neighbours; nor does its status.

    The answer up to 2 tol / (1 - kappa).
    """
    p = make(family, n=16, m=9, kappa=0.9)
    G = np.random.default_rng(1).normal(size=(9, 16))
    q = adjoint(p, Picard()(p), G)
    order = np.random.default_rng(2).permutation(9)
    for problem, solver in ((p, FORWARD.get(name)), (q, ADJOINT[name])):
        if solver is None:
            continue
        together = solver(problem)
        shuffled = solver(problem.take(order))
        bound = 2e-12 / (1 - 0.9) * (1 + np.abs(together.value).max())
        assert np.abs(shuffled.value - together.value[order]).max() <= bound
        for i in range(9):
            alone = solver(problem.take(np.array([i])))
            assert np.abs(alone.value[0] - together.value[i]).max() <= bound
            assert alone.status[0] == together.status[i]
        first = solver(problem)
        # and the same to the last bit when repeated
        assert np.array_equal(first.value, together.value)
        assert first.method == together.method


@pytest.mark.parametrize("name", [*FORWARD, "gmres"])
def test_a_warm_start_changes_the_answer_by_no_more_than_the_tolerance(name):
    p = make("stiff", n=16, m=5, kappa=0.9)
    q = adjoint(p, Picard()(p), np.random.default_rng(1).normal(size=(5, 16)))
    for problem, solver in ((p, FORWARD.get(name)), (q, ADJOINT[name])):
        if solver is None:
            continue
        cold = solver(problem)
        for start in (cold.value, cold.value + 0.1, np.full((5, 16), -3.0)):
            warm = solver(problem, start.copy())
            assert warm.converged.all()
            assert np.abs(warm.value - cold.value).max() <= 2e-12 / (1 - 0.9) * (
                1 + np.abs(cold.value).max()
            )
        if name != "damped":
            assert solver(problem, cold.value).n_iter.max() <= 2


def test_the_input_and_the_start_are_not_written_into(xp):
    for name, solver in ADJOINT.items():
        p = make("stiff", xp=xp)
        x0 = from_host(xp, np.ones((6, 12)))
        Z = host(p.offset).copy()
        if name in FORWARD:
            x = solver(p, x0)
        q = adjoint(p, x, np.ones((6, 12)))
        G, S = host(q.offset).copy(), host(q.map.S).copy()
        solver(q, x0)
        assert np.array_equal(host(x0), np.ones((6, 12))), name
        assert np.array_equal(host(p.offset), Z), name
        assert np.array_equal(host(q.offset), G), name
        assert np.array_equal(host(q.map.S), S), name


# ------------------------------------------------------------------------------- Jacobi


@given(
    st.integers(1, 12),
    st.floats(0.05, 0.97),
    st.sampled_from([a for a in CLOSED if a.slope_range[0] >= 0]),
    st.floats(-30, 0.9),
    st.integers(0, 1000),
)
def test_the_certified_rate_of_the_splitting(n, mu, activation, low, seed):
    """``mu_inf(A) = mu < 1``, with a diagonal as negative as you like.

    The steps contract by rho, and both equations are solved.
    """
    rng = np.random.default_rng(seed)
    d = rng.uniform(min(low, mu), mu, n)
    A = rng.normal(size=(n, n))
    np.fill_diagonal(A, 0.0)
    off = np.abs(A).sum(axis=1)
    A = A * np.where(off > 0, (mu - d) / np.where(off > 0, off, 1.0), 0.0)[:, None] + np.diag(d)
    rho = np.max((np.abs(A).sum(axis=1) - np.abs(d)) / (1 - d))
    assert rho < 1
    p = affine(A, rng.normal(size=(3, n)), activation)
    # rho^steps < 1e-19: the residual is then below its tolerance
    steps = 60 if rho <= 0 else 60 + int(45 / -np.log(rho))
    solver = Jacobi(max_iter=steps)
    x = solver(p)
    assert x.converged.all()
    state, old, change = np.zeros((3, n)), None, None
    N = A - np.diag(d)
    for _ in range(20):
        new = activation.scalar_solve(state @ N.T + host(p.offset), d)
        move = np.abs(new - state).max(axis=1)
        if old is not None:
            assert np.all(move <= rho * old * (1 + 1e-9) + 1e-13)
        state, old = new, move
    q = adjoint(p, x, rng.normal(size=(3, n)))
    v = solver(q)
    assert v.converged.all()
    assert relative(v.value, adjoint_solution(q)) < 1e-8
    w, old, S = host(q.offset), None, host(q.map.S)
    for _ in range(20):
        new = (S * w / (1 - S * d)) @ N + host(q.offset)
        change = np.abs(new - w).sum(axis=1)
        if old is not None:
            assert np.all(change <= rho * old * (1 + 1e-9) + 1e-12 * np.abs(w).max())
        w, old = new, change


def test_blocks_can_be_split():
    mixed = Blocks(
        (activations.relu, 4), (activations.leaky_relu(0.2), 5), (activations.hard_tanh, 3)
    )
    p = make("stiff", activation=mixed)
    assert relative(Jacobi()(p).value, fixed_point(p)) < 1e-10
    plain = Blocks((activations.relu, 4), (activations.hard_tanh, 8))
    assert plain.divides
    assert (
        relative(
            Jacobi()(make("stiff", activation=plain)).value,
            fixed_point(make("stiff", activation=plain)),
        )
        < 1e-10
    )


def test_jacobi_refuses_by_name_and_before_it_starts():
    with pytest.raises(InputError, match=r"closed form for tanh"):
        Jacobi()(make(activation=activations.tanh))
    with pytest.raises(InputError, match=r"diagonal of A reaches 1\.5,"):
        Jacobi()(affine(np.diag([0.5, 1.5]), np.ones((1, 2))))
    with pytest.raises(InputError, match="diagonal"):
        Jacobi()(affine(np.diag([0.5, -1.5]), np.ones((1, 2)), activations.abs))
    assert Jacobi()(affine(np.diag([0.5, -1.5]), np.ones((1, 2)))).converged.all()
    # silu has such slopes
    q = linear(Full(np.eye(2) * 0.95), np.ones((1, 2)), np.full((1, 2), 1.09), np.ones(1))
    with pytest.raises(InputError, match=r"reaches 1\.036"):
        Jacobi()(q)
    with pytest.raises(InputError, match="only the map is known"):
        Jacobi()(Tanh(np.eye(2) / 3).bind(np.ones((1, 2))))


# --------------------------------------------------------------------------------- Auto


def test_auto_takes_the_splitting_where_it_is_faster():
    p = make("stiff", n=60, m=40, kappa=0.99)
    x = Auto()(p)
    assert x.method.startswith("Auto(Jacobi, since a step grows by")
    assert 5 * x.n_iter.max() < Picard()(p).n_iter.max()
    q = adjoint(p, x, np.ones((40, 60)))
    assert "Jacobi" in Auto()(q).method
    assert 5 * Auto()(q).n_iter.max() < Picard()(q).n_iter.max()


@pytest.mark.parametrize("kappa", [0.99, 1.2])
def test_auto_is_not_deceived_by_bounds(kappa):
    """Fifty turning blocks.

    The bound of the splitting is no worse than Picard's, its rate is; with kappa = 1.2
    d reaches 0.6.
    """
    p = make("turning", n=100, m=30, kappa=kappa, dtype="float32")
    picard, jacobi = Picard()(p), Jacobi(max_iter=800)(p)
    assert picard.converged.all()
    assert picard.n_iter.max() < (50 if kappa < 1 else 200)
    assert jacobi.n_iter.max() > 10 * picard.n_iter.max() or not jacobi.converged.all()
    auto = Auto()(p)
    assert auto.converged.all()
    assert "Jacobi" not in auto.method
    assert auto.n_iter.max() <= picard.n_iter.max() + max(5, picard.n_iter.max() // 8), (
        "one round more"
    )


def test_auto_does_not_choose_what_would_be_refused():
    """A bug once: a large diagonal suggested the splitting.

    It then refused the problem, in the middle of a default solve.
    """
    p = affine(np.diag([0.9, -1.5]), np.ones((1, 2)), activations.abs)
    assert p.matrix.gains[1] < p.matrix.gains[0]
    assert residual(p, Auto()(p).value).max() < 1e-11
    q = linear(
        with_gains(Full(np.eye(2) * 0.95)), np.ones((1, 2)), np.full((1, 2), 1.09), np.ones(1)
    )
    np.testing.assert_allclose(Auto()(q).value, 1.09 / (1 - 1.09 * 0.95), rtol=1e-9)


def test_auto_accelerates_the_slow_samples_alone():
    rng = np.random.default_rng(0)
    A = FAMILIES["nonnegative"](128, 0.99, rng)
    Z = rng.normal(size=(20, 128)) - 8.0  # no unit is ever active: solved when first measured
    Z[:4] += 8.5
    p = affine(A, Z)
    x = Auto()(p)
    assert x.converged.all()
    assert "Anderson(3) for 4 slow samples of 20" in x.method
    assert 10 * x.n_iter.max() < Picard()(p).n_iter.max()
    assert x.n_iter[4:].max() == stride_of(np, 128)
    easy = Auto()(make("gaussian", n=64, m=10))
    assert easy.method == "Auto(Picard)"


def test_auto_repairs_forward_and_adjoint():
    """A diagonal of -1.2: Picard diverges.

    Acceleration, an average of steps, or Newton finds the solution.
    """
    z = np.array([[1.0, 2.0], [-1.0, -1.0]])
    for activation in (activations.relu, activations.tanh):
        p = affine([[-1.2, -0.4], [0.4, -1.2]], z, activation)
        x = Auto()(p)
        assert x.converged.all()
        assert residual(p, x.value).max() < 1e-11
        q = adjoint(p, x, np.ones((2, 2)))
        assert relative(Auto()(q).value, adjoint_solution(q)) < 1e-9


def test_auto_falls_back_on_a_factorisation():
    """A of spectral radius 3: no iteration contracts.

    For the adjoint GMRES or a direct solve gives the answer all the same.
    """
    rng = np.random.default_rng(0)
    A, S, G = (
        3 * rng.normal(size=(80, 80)) / 80**0.5,
        (rng.random((5, 80)) < 0.7) * 1.0,
        rng.normal(size=(5, 80)),
    )
    q = linear(Full(A.T.copy()), G, S, np.abs(S * G).max(axis=1))
    assert not Picard()(q).converged.any()
    v = Auto()(q)
    assert v.converged.all()
    assert "GMRES" in v.method
    assert relative(v.value, adjoint_solution(q)) < 1e-7


def test_a_repair_that_comes_no_closer_changes_nothing():
    p = affine([[2.0]], [[1.0]])  # x = 2 x + 1 has no solution with x >= 0
    first, both = Picard()(p), Fallback(Picard(), Picard(damping=0.5))(p)
    assert not both.converged.any()
    assert both.residual[0] <= first.residual[0]
    assert not Auto()(p).converged.any()
    assert Auto()(p).residual[0] <= first.residual[0]


# ----------------------------------------------------------------------------- Anderson


def test_anderson_removes_a_slow_mode():
    p = make("nonnegative", n=64, m=10, kappa=0.99)
    assert Picard()(p).n_iter.max() > 500
    assert Anderson()(p).n_iter.max() < 40
    q = adjoint(p, Picard()(p), np.ones((10, 64)))
    assert Anderson()(q).n_iter.max() < 40


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.integers(1, 5),
    st.integers(0, 200),
)
def test_the_safeguard_keeps_anderson_convergent(family, kappa, memory, seed):
    p = make(family, n=10, m=4, kappa=kappa, seed=seed)
    for solver in (
        Fallback(Anderson(memory=memory), Picard()),
        Fallback(Anderson(memory=memory, splitting=True), Picard()),
    ):
        s = solver(p)
        assert s.converged.all()
    assert relative(s.value, fixed_point(p)) < 1e-8


def test_dropped_points_are_not_returned():
    """Residuals of accelerated points may rise.

    The one that is returned is the smallest that was measured.
    """
    s = Anderson(max_iter=40)(make("stiff", n=40, m=20, kappa=1.2), trace=True)
    measured = s.trace[[5, 11, 17, 23, 29, 35, 39]]  # the others are of points that were passed by
    assert np.any(np.diff(measured, axis=0) > 0)
    assert np.sum(~s.converged) > 10
    for i in np.flatnonzero(~s.converged):
        assert s.residual[i] == np.nanmin(measured[:, i])


@pytest.mark.parametrize("solver", [Anderson(), Jacobi(), Anderson(splitting=True)])
def test_cotangents_far_from_one(solver):
    p = make("nonnegative", n=32, m=4, kappa=0.95, dtype="float32")
    x, G = Picard()(p), np.random.default_rng(0).normal(size=(4, 32))
    base = solver(adjoint(p, x, G)).value
    for c in (1e-12, 1e-6, 1e6, 1e12):
        s = solver(adjoint(p, x, c * G))
        assert s.converged.all()
        assert relative(s.value / c, base) < 2e-4


# ------------------------------------------------------------------------------- Newton

CYCLING = np.eye(3) - np.array([[1.0, 0, 2], [2, 1, 0], [0, 2, 1]])


def test_newton_needs_few_steps():
    p = make("stiff", n=40, m=30, kappa=0.99)
    s = Newton()(p)
    assert s.converged.all()
    assert s.n_iter.max() <= 12
    assert relative(s.value, Jacobi()(p).value) < 1e-10
    smooth = make("nonnegative", n=20, m=8, kappa=0.99, activation=activations.tanh)
    assert Newton()(smooth).n_iter.max() <= 10


def test_undamped_newton_cycles_and_ours_ends_in_a_fallback():
    """The P-matrix on which the undamped method has period 3. There is one solution, x = 1/3."""
    p = affine(CYCLING, np.ones((1, 3)))
    x, seen = np.array([0.0, 0.0, 1.0]), []
    for _ in range(9):  # the textbook's iteration, from a point of the cycle
        y = CYCLING @ x + 1
        D = (y > 0) * 1.0
        x = np.linalg.solve(np.eye(3) - D[:, None] * CYCLING, D * 1.0)
        seen.append(tuple(D))
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:6] == seen[6:9]
    for start in (None, np.array([[0.0, 0.0, 1.0]])):
        assert not Picard()(p, start).converged.any()
        short = Newton(max_iter=1)(p, start)
        assert not short.converged.any()
        for solver in (Newton(), Auto(), Fallback(Newton(max_iter=1), Newton())):
            s = solver(p, start)
            assert s.converged.all()
            np.testing.assert_allclose(s.value, 1 / 3, atol=1e-11)
        assert "Newton, then Newton for 1 of 1 samples" in s.method


def test_newton_with_shared_active_sets(xp):
    """Two hundred samples with few active sets are solved by few factorisations.

    The answer is the same.
    """
    rng = np.random.default_rng(0)
    A = FAMILIES["stiff"](6, 0.99, rng)
    Z = np.repeat(rng.normal(size=(4, 6)), 50, axis=0) + 1e-3 * rng.normal(size=(200, 6))
    p = affine(A, Z, xp=xp)
    assert relative(Newton()(p).value, fixed_point(p)) < 1e-10


def test_a_singular_newton_step_ends_nonfinite():
    p = affine([[1.0]], [[1.0]])  # x = x + 1
    assert Newton()(p).status[0] == Status.NONFINITE
    assert np.isfinite(Newton()(p).value).all()
    with pytest.raises(InputError, match="only the map is known"):
        Newton()(Tanh(np.eye(2) / 3).bind(np.ones((1, 2))))


# --------------------------------------------------------------------- linear equations


def test_gmres_solves_in_as_many_products_as_there_are_eigenvalues():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    A = Q @ np.diag(np.repeat([0.95, -0.9, 0.3], 10)) @ Q.T
    q = linear(Full(A.T.copy()), rng.normal(size=(4, 30)), np.ones((4, 30)), np.ones(4))
    s = GMRES()(q)
    assert s.converged.all()
    assert s.n_iter.max() <= 3 + 3  # and the residuals before and after
    assert relative(s.value, adjoint_solution(q)) < 1e-10
    assert "GMRES" in s.method
    assert GMRES()(q, trace=True).trace.shape[1] == 4


def test_gmres_statuses():
    singular = linear(
        Full(np.array([[0.0, 1.0], [1.0, 0.0]])),
        np.array([[1.0, 0.0]]),
        np.ones((1, 2)),
        np.ones(1),
    )
    # I - A is singular, and the right-hand side is not in its range
    assert GMRES()(singular).status[0] == Status.STAGNATED
    slow = adjoint(
        make("stiff", n=40, kappa=0.99), Jacobi()(make("stiff", n=40, kappa=0.99)), np.ones((6, 40))
    )
    assert np.any(GMRES(max_iter=3)(slow).status == Status.MAX_ITER)
    zero = linear(Full(np.eye(2) / 2), np.zeros((2, 2)), np.ones((2, 2)), np.zeros(2))
    assert GMRES()(zero).converged.all()
    assert not GMRES()(zero).value.any()
    with pytest.raises(InputError, match="linear"):
        GMRES()(make())
    with pytest.raises(InputError, match="restart"):
        GMRES(restart=0)


@given(st.integers(1, 6), st.sampled_from([0.3, 0.9]), st.floats(0.1, 1.0), st.integers(0, 100))
def test_truncated_adjoints_are_as_wrong_as_their_bound_allows(k, rho, tau, seed):
    """In the norm in which J^T contracts.

    The sum of entries of w = A^T v + g, for phi' in [0, 1].
    """
    p = make("nonnegative", n=8, m=3, kappa=rho, seed=seed)
    q = adjoint(p, Picard()(p), np.random.default_rng(seed).normal(size=(3, 8)))
    # then J^T = A^T contracts in that norm itself
    q = linear(q.matrix, q.offset, np.ones((3, 8)), np.abs(q.offset).max(axis=1))
    exact = adjoint_solution(q)
    for solver, steps, damping in (
        (Phantom(k, tau), k, tau),
        (Neumann(k), k, 1.0),
        (JacobianFree(), 1, 1.0),
    ):
        s = solver(q, trace=True)
        error = np.abs(s.value - exact).sum(axis=1)
        assert np.all(
            error <= (1 - damping * (1 - rho)) ** steps * np.abs(exact).sum(axis=1) * (1 + 1e-9)
        )
        np.testing.assert_allclose(s.residual, residual(q, s.value), rtol=1e-9, atol=1e-15)
        assert np.all(np.isinf(s.tolerance))
        assert "biased" in s.method
        assert s.trace.shape == (steps, 3)
    terms, total = q.map.S * q.offset, 0.0
    for _ in range(k):
        total, terms = total + terms, terms @ host(q.matrix.dense()).T
    size = np.abs(total).max()  # an entry may cancel; its rounding is that of the terms
    np.testing.assert_allclose(Neumann(k)(q).value, total, rtol=1e-12, atol=1e-14 * size)
    np.testing.assert_allclose(JacobianFree()(q).value, q.map.S * q.offset, rtol=1e-14)
    averaged = 0.0 * q.offset
    for _ in range(k):
        averaged = (1 - tau) * averaged + tau * q.f(averaged)
    np.testing.assert_allclose(Phantom(k, tau)(q).value, averaged, rtol=1e-12, atol=1e-14 * size)


def test_truncated_adjoints_are_never_silent_and_never_forward():
    with pytest.raises(InputError, match="truncated"):
        Neumann(3)(make())
    with pytest.raises(InputError, match="steps"):
        Phantom(0)
    with pytest.raises(InputError, match="tau"):
        Phantom(2, 1.5)
    with pytest.raises(TypeError):
        JacobianFree(3)
    with pytest.raises(TypeError):
        Neumann(3, 0.5)
    assert repr(Neumann(3)) == "Neumann(steps=3)"
    assert Phantom(3).at(1e-8) == Phantom(3)
    model = ImplicitModel(3, 2, 10, adjoint=JacobianFree(), rng=0)
    _, pull = model(np.ones((2, 3)))
    assert "biased" in pull.solve(np.ones((2, 2))).method
    assert pull.solve(np.ones((2, 2))).residual.max() > 1e-3


# -------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("solver", [Picard(), Picard(damping=0.2), Anderson(), Auto()], ids=repr)
def test_a_problem_of_which_only_the_map_is_known(solver):
    rng = np.random.default_rng(0)
    W, u = FAMILIES["nonnegative"](6, 0.95, rng), rng.normal(size=(5, 6))
    kept = u.copy()
    x = solver(Tanh(W).bind(u))
    assert x.converged.all()
    assert np.abs(np.tanh(x.value @ W.T + u) - x.value).max() < 1e-11
    q = Tanh(W).linearize(x, u, np.ones((5, 6)))
    for adjoint_solver in (solver, GMRES(), Direct(), Auto()):
        v = adjoint_solver(q)
        assert v.converged.all()
        assert relative(v.value, Direct()(q).value) < 1e-10
    assert np.array_equal(u, kept)


class Guarded(Tanh):
    """Its map returns arrays that must not be written into."""

    def f(self, x, u):
        image = super().f(x, u)
        image.flags.writeable = False
        return image


@pytest.mark.parametrize("solver", [Picard(damping=0.2), Anderson(), Auto()], ids=repr)
def test_arrays_of_a_cell_are_not_written_into(solver):
    """With samples of which some are slow, so that some are accelerated and others are not."""
    rng = np.random.default_rng(0)
    u = 1e-3 * rng.normal(size=(12, 80))
    u[4:] += 1.0  # saturated: few plain steps
    x = solver(Guarded(FAMILIES["nonnegative"](80, 0.99, rng)).bind(u))
    assert x.converged.all()
    if isinstance(solver, Auto):
        assert "for 4 slow samples of 12" in x.method


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 3}, {"constraint": InfNorm(0.4)}, {"activation": activations.silu}],
    ids=str,
)
def test_every_solver_serves_the_model(name, options):
    """Gradients of the model do not depend on the solvers, forward and adjoint."""
    if "activation" in options and not splits(name, make(activation=activations.silu)):
        pytest.skip("silu has no closed-form scalar equation, and negative slopes")
    U, dY = (
        np.random.default_rng(0).normal(size=(5, 4)),
        np.random.default_rng(1).normal(size=(5, 2)),
    )
    results = []
    for solver in (Picard(), FORWARD[name]):
        model = ImplicitModel(
            4, 2, 10, dtype="float64", rng=3, forward=solver, adjoint=solver, **options
        )
        Y, pull = model(U)
        results.append({"Y": Y, **pull(dY)[1]})
    for key, a in results[0].items():
        assert relative(results[1][key], a) < 1e-9, key


def test_own_activation_with_a_closed_form():
    half = Activation(
        "half",
        lambda z: 0.5 * z,
        lambda z: 0.5 * np.ones_like(z),
        slope_range=(0.5, 0.5),
        scalar_solve=lambda r, d: 0.5 * r / (1 - 0.5 * d),
    )
    p = make("stiff", activation=half)
    assert relative(Jacobi()(p).value, fixed_point(p)) < 1e-10
    divides = Activation(
        "id", lambda z: 1.0 * z, np.ones_like, slope_range=(1.0, 1.0), divides=True
    )
    assert (
        relative(
            Jacobi()(make("stiff", activation=divides)).value,
            fixed_point(make("stiff", activation=divides)),
        )
        < 1e-10
    )


def test_the_gains_are_read_where_the_diagonal_is_large():
    rng = np.random.default_rng(0)
    assert with_gains(Full(FAMILIES["gaussian"](30, 0.99, rng))).gains is None
    picard, jacobi = with_gains(Full(FAMILIES["stiff"](60, 0.99, rng))).gains
    assert picard > 0.8 > 0.4 > jacobi
    turned, split = with_gains(Full(FAMILIES["turning"](40, 1.2, rng))).gains
    assert turned < 1.0 < split
    assert with_gains(Full(np.diag([0.9, 0.1]))).gains[1] == 0.0
    assert Substitution().at(1e-3).inner == Picard(tol=1e-3)


def test_a_low_rank_solve_that_fails_reports_its_residual_and_not_the_bound_on_it():
    rng = np.random.default_rng(0)
    L, R = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    p = Affine(LowRank(3.0 * L, R), rng.normal(size=(7, 40)), activations.tanh)
    q = low_rank_problem(p)
    s = q.restore(iterate(q, None, None, tol=1e-10, max_iter=5, method="Picard"))
    assert not s.converged.any()
    np.testing.assert_allclose(s.residual, residual(p, s.value), rtol=1e-10)


def test_far_from_its_solution_a_low_rank_state_is_measured_by_a_bound():
    rng = np.random.default_rng(1)
    L, R = rng.normal(size=(40, 3)) / 20, rng.normal(size=(40, 3)) / 20
    p = Affine(LowRank(L, R), rng.normal(size=(7, 40)), activations.tanh)
    q = low_rank_problem(p)
    r = q.start()[0]
    after = q.pre(r)
    q.tol = 1e-9
    bound, true = q.measure(r, after, after)[0], q._measured(r, after)[0]
    assert np.all(bound >= true)
    assert np.all(bound > true * 1.0001)
    q.tol = 1e-2
    near = q.measure(r, after, after)  # so near that they are measured
    np.testing.assert_array_equal(near[0], true)


def test_the_first_steps_are_measured_together():
    """In steps 5, 10, 15 for small n, whatever the neighbours do.

    The same sample alone is measured, and so frozen, in the same step.
    """
    p = affine(
        FAMILIES["gaussian"](40, 0.9, np.random.default_rng(0)),
        np.random.default_rng(1).normal(size=(50, 40)),
    )
    together = Picard()(p)
    for i in range(0, 50, 7):
        alone = Picard()(p.take(np.array([i])))
        assert alone.n_iter[0] == together.n_iter[i]
        np.testing.assert_allclose(alone.value[0], together.value[i], rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [300, 40])
@pytest.mark.parametrize("newton", [False, True])
@pytest.mark.parametrize("family", ["gaussian", "nonnegative"])
def test_neighbours_have_no_say_in_the_steps_of_a_sample(n, family, newton):
    """Each sample takes the steps that it takes alone.

    Beside samples that diverge, are solved at once, or are slow.
    """
    A = np.zeros((n + 1, n + 1))
    # the last unit grows without bound where it is active
    A[:n, :n], A[n, n] = (
        FAMILIES[family](n, 0.97, np.random.default_rng(0)),
        1.5,
    )
    Z = np.random.default_rng(1).normal(size=(12, n + 1))
    Z[:, n] = -1.0
    Z[3, n] = 1.0
    Z[5] = -1.0
    Z[7:9, :n] = 1.0 + np.abs(Z[7:9, :n])
    p = affine(A, Z)
    p = Affine(Full(p.matrix.A), p.offset, p.map.activation)
    costs = Costs.of(12, n + 1, "d", stride_of(np, n + 1))
    for make_advance in (lambda q: Mixing(q, 3), lambda q: Adaptive(q, costs, newton=newton)):
        advance = make_advance(p)
        together = iterate(p, None, advance, tol=1e-8, max_iter=3000, method="")
        assert together.status[3] != Status.CONVERGED
        assert together.n_iter.min() < together.n_iter.max()
        if isinstance(advance, Adaptive) and family == "nonnegative":
            assert 0 < sum(advance.counts) < 24
        for i in range(12):
            one = p.take(np.array([i]))
            alone = iterate(one, None, make_advance(one), tol=1e-8, max_iter=3000, method="")
            assert alone.n_iter[0] == together.n_iter[i], i
            assert alone.status[0] == together.status[i]


@pytest.mark.parametrize("n", [300, 40])
def test_auto_accelerates_early_what_is_slow_from_the_start(n):
    p = affine(
        FAMILIES["nonnegative"](n, 0.99, np.random.default_rng(0)),
        1.0 + np.random.default_rng(1).random((20, n)),
    )
    s = Auto()(p)
    assert "20 slow samples of 20" in s.method
    assert s.n_iter.max() < (20 if n == 300 else 60)
    assert Picard()(p).n_iter.min() > 1000


def test_steps_of_a_repair_are_added_up():
    p = make("stiff", n=16, m=5, kappa=0.9)
    first, then = Picard(max_iter=3), Picard()
    started = first(p)
    assert not started.converged.any()
    assert np.array_equal(Fallback(first, then)(p).n_iter, 3 + then(p, started.value).n_iter)


def test_the_reduced_equation_starts_where_it_is_told():
    p = make("stiff", n=40, m=900, kappa=0.9)
    thin = Affine(
        LowRank(0.2 * p.matrix.dense()[:, :4], p.matrix.dense()[:, 4:8]), p.offset, activations.tanh
    )
    cold = Auto()(thin)
    assert "in 4 dimensions" in cold.method
    assert cold.n_iter.min() > 3
    assert Auto()(thin, cold.value).n_iter.max() == 1


def test_a_repair_that_fails_changes_nothing():
    """I - J^T is singular: `Direct` gives NaN.

    The best iterate of the others is what is returned.
    """
    singular = linear(
        Full(np.eye(2)), np.array([[1.0, 2.0]]), np.array([[1.0, 0.5]]), np.array([1.0])
    )
    solution = Auto()(singular)
    assert not solution.converged.any()
    assert "Direct" in solution.method
    assert np.all(np.isfinite(solution.value))
    assert np.all(np.isfinite(solution.residual))


def test_gmres_makes_no_more_products_than_it_may():
    q = adjoint(p := make("stiff", n=40, m=3, kappa=0.99), Picard()(p), np.ones((3, 40)))
    s = GMRES(max_iter=5)(q)
    assert not s.converged.any()
    assert s.n_iter.max() <= 5 + 3  # and the residuals before and after


def test_what_an_adjoint_must_reach_is_not_below_the_rounding_of_its_answer():
    q = linear(
        Full(np.eye(1, dtype=np.float32)),
        np.ones((1, 1), np.float32),
        np.ones((1, 1), np.float32),
        np.ones(1),
    )
    eps = float(np.finfo(np.float32).eps)
    assert q.tolerance(np.array([1e4]), 1e-6)[0] == pytest.approx(8e4 * eps)
    assert q.tolerance(np.array([1e-4]), 1e-6)[0] == 1e-6
