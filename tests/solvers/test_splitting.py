"""Operator splittings.

Proximal maps keep their equation, rates are those of the theorem, answers those of the
original equation.
"""

import numpy as np
import pytest
from helpers import assert_close, host, relative
from hypothesis import given
from hypothesis import strategies as st
from problems import FAMILIES, Tanh, adjoint, adjoint_solution, affine, linear, monotone, residual

from pyidl import ImplicitModel, InfNorm, activations
from pyidl.activations import Activation, Blocks, resolvents
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.matrices.low_rank import LowRank
from pyidl.matrices.tiled import Tiled
from pyidl.solvers import Auto, ForwardBackward, Newton, PeacemanRachford, Picard, Status
from pyidl.solvers.auto import DENSE
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import _best_step, is_monotone, reflected
from pyidl.testing import check_pullback

PROXIMAL = [a for a in map(activations.named, activations.builtin.BUILT_IN) if a.resolvent] + [
    activations.leaky_relu(0.1)
]
SLOPES = [
    a
    for a in map(activations.named, activations.builtin.BUILT_IN)
    if a.slope_range[0] >= 0 and a.slope_range[1] <= 1
]


def constants(A):
    F = np.eye(len(A)) - A
    return np.linalg.eigvalsh((F + F.T) / 2)[0], np.linalg.norm(F, 2)


def hard(activation=activations.relu, size=5.0, n=15, m=6, dtype="float64", seed=0, margin=0.5):
    """A monotone problem on which Picard fails, and its solution by Newton's method in float64."""
    rng = np.random.default_rng(seed)
    A, Z = monotone(n, margin, size, rng), rng.normal(size=(m, n))
    p = affine(A, Z, activation, dtype)
    exact = Newton()(affine(host(p.matrix.dense()), host(p.offset), activation))
    assert exact.converged.all()
    return p, exact.value


# ------------------------------------------------------------------------ proximal maps


def arguments(alpha, dtype, seed):
    """Of every size, near the kinks of both sides, and where tanh saturates."""
    rng = np.random.default_rng(seed)
    top = {"float32": 36, "float64": 300}[dtype]
    u = np.concatenate(
        [
            10 ** rng.uniform(-12, top, 300) * min(alpha, 1),
            rng.uniform(0, 3, 300),
            abs(1 - alpha) * rng.uniform(0.9, 1.1, 300),
        ]
    )
    return np.concatenate([u, -u, [0.0, 1.0, -1.0]]).astype(dtype)


@given(
    st.sampled_from(PROXIMAL),
    st.floats(-3, 3),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 1000),
)
def test_proximal_maps_solve_their_equation_to_rounding(activation, exponent, dtype, seed):
    alpha = 10.0**exponent
    u = arguments(alpha, dtype, seed)
    y = activation.resolvent(u, alpha)
    assert y.dtype == dtype
    u, y = u.astype(np.longdouble), y.astype(np.longdouble)
    exactly = {"tanh": np.tanh, "sigmoid": lambda z: 0.5 + 0.5 * np.tanh(z / 2)}.get(
        activation.name, activation.phi
    )
    terms = (1 - np.longdouble(alpha)) * exactly(y), np.longdouble(alpha) * y, -u
    # sigmoid is not 0 at 0
    size = sum(np.abs(t) for t in terms) + (
        abs(1 - alpha) if activation is activations.sigmoid else 0.0
    )
    assert np.all(
        np.abs(sum(terms)) <= 2 * np.finfo(dtype).eps * size + np.finfo(dtype).smallest_normal
    )


def test_the_safeguard_is_needed():
    """Newton's method from y = u, without a bracket, cycles between the two flat ends."""
    y = u = np.array([3.0])
    for _ in range(200):
        y = y - ((1 - 1e-3) * np.tanh(y) + 1e-3 * y - 0.7 * u / 3) / (
            (1 - 1e-3) * (1 - np.tanh(y) ** 2) + 1e-3
        )
    assert abs((1 - 1e-3) * np.tanh(y) + 1e-3 * y - 0.7) > 0.1
    y = activations.tanh.resolvent(np.array([0.7]), 1e-3)
    assert abs((1 - 1e-3) * np.tanh(y) + 1e-3 * y - 0.7) < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_arguments_of_proximal_maps(dtype):
    """What the dtype cannot hold is not reached, and no NaN appears.

    The value is right all the same.
    """
    u = np.array([1e38, -1e38, 0.0, 1e-38, -1e-38], dtype)
    for alpha in (1e-3, 0.5, 1e3):
        for name, ends in (("tanh", (1, -1)), ("sigmoid", (1, 0))):
            activation = activations.named(name)
            with np.errstate(over="ignore", under="ignore"):
                y = activation.resolvent(u, alpha)
            assert np.all(np.isfinite(y))
            assert tuple(activation(y)[:2]) == ends


def test_the_value_of_a_proximal_map_is_that_of_alpha_f(xp):
    """Of ReLU, f is the indicator of x >= 0, and alpha f the same.

    Of tanh, prox minimises ``alpha f(x) + (x - u)^2 / 2``.
    """
    u = np.linspace(-5, 5, 101)
    assert_close(
        activations.relu(activations.relu.resolvent(from_host(xp, u), 0.3)),
        np.maximum(u, 0),
        rtol=1e-15,
        xp=xp,
    )
    x = np.tanh(host(activations.tanh.resolvent(from_host(xp, u), 0.3)))
    grid = np.linspace(-1, 1, 20001)[1:-1]
    f = grid * np.arctanh(grid) + 0.5 * np.log1p(-(grid**2)) - grid**2 / 2  # f' = artanh x - x
    best = grid[np.argmin(0.3 * f[None, :] + 0.5 * (grid[None, :] - u[:, None]) ** 2, axis=1)]
    np.testing.assert_allclose(x, best, atol=2e-4)
    for activation in PROXIMAL:
        y = activation.resolvent(from_host(xp, u), 2.5)
        assert_close(y, activation.resolvent(u, 2.5), rtol=1e-13, atol=1e-15, xp=xp)


def test_blocks_have_a_proximal_map_where_all_parts_do():
    mixed = Blocks((activations.relu, 2), (activations.tanh, 3))
    u = np.random.default_rng(0).normal(size=(4, 5))
    y = mixed.resolvent(u, 0.4)
    np.testing.assert_allclose(0.6 * mixed(y) + 0.4 * y, u, rtol=1e-13)
    assert Blocks((activations.relu, 2), (activations.elu, 3)).resolvent is None


# -------------------------------------------------------------------------------- rates


@given(
    st.integers(1, 8),
    st.floats(0.02, 3.0),
    st.floats(0.0, 10.0),
    st.floats(-1.5, 1.0),
    st.sampled_from(PROXIMAL),
    st.integers(0, 1000),
)
def test_the_rates_of_the_theorem(n, margin, size, exponent, activation, seed):
    """No two points come closer more slowly than the theorem says, forward and adjoint."""
    rng = np.random.default_rng(seed)
    A = monotone(n, margin, size, rng)
    m, L = constants(A)
    assert m == pytest.approx(margin, abs=1e-9 * (1 + size))
    alpha = 10.0**exponent
    p = affine(A, rng.normal(size=(5, n)), activation)
    S = rng.uniform(0, 1, (5, n))
    q = linear(p.matrix.T, rng.normal(size=(5, n)), S, np.ones(5))
    # 1 - 4 alpha m / (1 + alpha L)^2, not cancelled
    rate = np.sqrt((1 - alpha * L) ** 2 + max(0.0, 4 * alpha * (L - m))) / (1 + alpha * L)
    for problem in (p, q):
        step = reflected(problem, alpha)
        a, b = rng.normal(size=(5, n)), rng.normal(size=(5, n)) * 3
        near = np.linalg.norm(step.image(step.pre(a)) - step.image(step.pre(b)), axis=1)
        assert np.all(near <= rate * np.linalg.norm(a - b, axis=1) * (1 + 1e-9) + 1e-12)
        best, _ = _best_step(A)
        assert best == pytest.approx(m / L**2)
        for t in (best, 1.9 * best):
            rate_fb = np.sqrt(max(0.0, 1 - 2 * t * m + t**2 * L**2))
            assert rate_fb < 1
            x, y = (
                (1 - t) * c + t * (c @ host(problem.matrix.dense()).T + problem.offset)
                for c in (a, b)
            )
            x, y = (problem.image(problem.map.resolvent(c, t)) for c in (x, y))
            assert np.all(
                np.linalg.norm(x - y, axis=1)
                <= rate_fb * np.linalg.norm(a - b, axis=1) * (1 + 1e-9) + 1e-12
            )


def test_a_rate_that_is_attained():
    """The bounds can be met: A = c I with the identity, where every step is a multiplication."""
    p = affine(-3 * np.eye(2), np.ones((1, 2)), activations.identity)
    step = reflected(p, 0.25)  # m = L = 4: alpha = 1 / L has the rate 0
    assert (
        np.abs(
            step.image(step.pre(np.array([[1.0, 2.0]]))) - step.image(step.pre(np.zeros((1, 2))))
        ).max()
        < 1e-14
    )
    for solver in (PeacemanRachford(alpha=0.25), ForwardBackward()):
        assert np.all(solver(p, trace=True).trace[1:] <= 1e-14)


# ------------------------------------------------------------------------------ answers

SOLVERS = {
    "fb": ForwardBackward(max_iter=20000),
    "pr": PeacemanRachford(),
    "pr 0.2": PeacemanRachford(alpha=0.2),
    "pr 3": PeacemanRachford(alpha=3.0),
}


@pytest.mark.parametrize(
    "activation",
    [*PROXIMAL, activations.softplus, Blocks((activations.relu, 9), (activations.tanh, 6))],
    ids=repr,
)
@pytest.mark.parametrize("size", [2.0, 10.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_point_of_newton_where_picard_fails(name, size, activation):
    p, exact = hard(activation, size if name != "fb" else 0.5 * size)
    solver = SOLVERS[name]
    if activation.resolvent is None and name != "pr":
        with pytest.raises(InputError, match=r"proximal map of alpha f, and softplus has none"):
            PeacemanRachford(alpha=0.2)(p)
        return
    if size == 10 and activation is not activations.sigmoid:
        assert not Picard()(p).converged.all()
    s = solver(p)
    assert s.converged.all(), s
    assert relative(s.value, exact) < 1e-10
    assert np.array_equal(s.value, activation(s.pre))
    np.testing.assert_allclose(residual(p, s.value), s.residual, atol=1e-13)
    q = adjoint(p, s, np.random.default_rng(1).normal(size=(6, 15)))
    v = solver(q)
    assert v.converged.all(), v
    assert relative(v.value, adjoint_solution(q)) < 1e-9
    np.testing.assert_allclose(residual(q, v.value), v.residual, atol=1e-13)


@pytest.mark.parametrize(
    "activation", [activations.relu, activations.tanh, activations.elu], ids=repr
)
def test_peaceman_rachford_in_float32(activation):
    p, exact = hard(activation, size=8.0, dtype="float32")
    s = PeacemanRachford()(p)
    assert s.converged.all()
    assert s.value.dtype == np.float32
    assert relative(s.value, exact.astype("f4")) < 1e-4
    assert np.all(
        residual(p, s.value) <= s.tolerance + 20 * np.finfo("f4").eps * (1 + np.abs(exact).max())
    )
    q = adjoint(p, s, np.random.default_rng(1).normal(size=(6, 15)))
    assert relative(PeacemanRachford()(q).value, adjoint_solution(q).astype("f4")) < 1e-4


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
def test_a_step_of_numpy_leaves_float32_as_it_is(solver):
    A, Z = monotone(4, 0.5, 1.5, np.random.default_rng(0)), np.ones((2, 4))
    p = affine(A, Z, activations.relu, "float32")
    for alpha in (np.float64(0.25), np.array(0.25)):
        s = solver(alpha=alpha)(p)
        assert s.value.dtype == s.pre.dtype == np.float32
        assert np.array_equal(s.value, solver(alpha=0.25)(p).value)


@pytest.mark.parametrize("name", SOLVERS)
def test_on_every_library(name, xp):
    rng = np.random.default_rng(0)
    A, Z = monotone(10, 0.5, 1.5, rng), rng.normal(size=(5, 10))
    there, here = affine(A, Z, activations.tanh, xp=xp), affine(A, Z, activations.tanh)
    x = SOLVERS[name](there)
    assert_close(x.value, Newton()(here).value, rtol=1e-9, atol=1e-10, xp=xp)
    q = adjoint(there, x, rng.normal(size=(5, 10)))
    v = SOLVERS[name](q)
    assert v.converged.all()
    assert relative(v.value, adjoint_solution(q)) < 1e-9
    x0 = from_host(xp, np.ones((5, 10)))
    assert_close(SOLVERS[name](there, x0).value, Newton()(here).value, rtol=1e-9, atol=1e-10, xp=xp)
    assert np.array_equal(host(x0), np.ones((5, 10)))


@pytest.mark.parametrize("name", SOLVERS)
def test_alone_in_a_batch_and_shuffled(name):
    p, _ = hard(activations.relu, size=4.0, m=9)
    q = adjoint(p, Newton()(p), np.random.default_rng(1).normal(size=(9, 15)))
    order = np.random.default_rng(2).permutation(9)
    for problem in (p, q):
        together, shuffled = SOLVERS[name](problem), SOLVERS[name](problem.take(order))
        bound = 1e-10 * (1 + np.abs(together.value).max())
        assert np.abs(shuffled.value - together.value[order]).max() <= bound
        for i in range(9):
            alone = SOLVERS[name](problem.take(np.array([i])))
            assert np.abs(alone.value[0] - together.value[i]).max() <= bound
            assert alone.status[0] == together.status[i]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_start_at_the_solution_is_recognised(name):
    p, exact = hard(activations.tanh, size=4.0)
    assert SOLVERS[name].at(1e-11)(p, exact).n_iter.max() <= 2
    far = SOLVERS[name](p, exact + 100.0)
    assert relative(far.value, exact) < 1e-10


def test_statuses_and_traces():
    p, _ = hard(size=5.0)
    s = PeacemanRachford(max_iter=5)(p, trace=True)
    assert np.all(s.status == Status.MAX_ITER)
    assert s.trace.shape == (5, 6)
    assert np.all(np.any(np.isclose(s.trace, s.residual, rtol=1e-9), axis=0))
    np.testing.assert_allclose(residual(p, s.value), s.residual, rtol=1e-9)
    assert s.method == "PeacemanRachford(alpha=1)"
    wild = ForwardBackward(alpha=2.0)(p)  # far beyond 2 m / L^2
    assert not wild.converged.any()
    np.testing.assert_allclose(residual(p, wild.value), wild.residual, rtol=1e-9)
    blown = ForwardBackward(alpha=2.0)(
        affine([[-1e30, 0.0], [0.0, -1e30]], [[1.0, 1.0]], activations.identity, "float32")
    )
    assert blown.status[0] in (Status.NONFINITE, Status.DIVERGED)


def test_slow_is_not_stagnant():
    """With a proven rate, patience is in proportion.

    The distance falls by one in a thousand a step, the residual rises at first.
    """
    p, exact = hard(activations.tanh, size=10.0)
    step, patience = _best_step(p.matrix.A)
    assert patience > 5000
    assert relative(ForwardBackward(max_iter=20000)(p).value, exact) < 1e-10
    assert np.any(ForwardBackward(max_iter=20000, alpha=step)(p).status == Status.STAGNATED)


def test_what_is_refused_and_by_which_name():
    with pytest.raises(
        InputError,
        match=r"PeacemanRachford .* slopes in \[0, 1\], "
        r"and those of silu lie in \[-0\.09984, 1\.1\]",
    ):
        PeacemanRachford()(affine(np.eye(2) / 2, np.ones((1, 2)), activations.silu))
    with pytest.raises(
        InputError, match=r"ForwardBackward .* slopes in \[0, 1\], and those of abs"
    ):
        ForwardBackward()(affine(np.eye(2) / 2, np.ones((1, 2)), activations.abs))
    with pytest.raises(InputError, match=r"elu has none \(`resolvent`\); use alpha = 1"):
        ForwardBackward(alpha=0.5)(affine(np.eye(2) / 2, np.ones((1, 2)), activations.elu))
    assert ForwardBackward(alpha=1.0)(
        affine(np.eye(2) / 2, np.ones((1, 2)), activations.elu)
    ).converged.all()
    with pytest.raises(InputError, match=r"largest eigenvalue of \(A \+ A\^T\) / 2 is 1\.2,"):
        ForwardBackward()(affine(np.diag([0.5, 1.2]), np.ones((1, 2))))
    with pytest.raises(InputError, match="2 I - 1 A is singular"):
        PeacemanRachford()(affine(np.diag([0.5, 2.0]), np.ones((1, 2))))
    with pytest.raises(
        InputError, match=r"slopes in \[0, 1\], and those at this solution lie in \[1\.09, 1\.09\]"
    ):
        PeacemanRachford()(
            linear(Full(np.eye(2) / 2), np.ones((1, 2)), np.full((1, 2), 1.09), np.ones(1))
        )
    with pytest.raises(InputError, match="only the map is known"):
        PeacemanRachford()(Tanh(np.eye(2) / 3).bind(np.ones((1, 2))))
    own = Activation("own", lambda z: z / 2, lambda z: 0 * z + 0.5, lipschitz=0.5)
    with pytest.raises(InputError, match=r"\[-0\.5, 0\.5\], as far as is known"):
        PeacemanRachford()(affine(np.eye(2) / 2, np.ones((1, 2)), own))
    for solver in (ForwardBackward, PeacemanRachford):
        for alpha in (0.0, -1.0, np.inf, np.nan):
            with pytest.raises(InputError, match="alpha is"):
                solver(alpha=alpha)
        assert solver(alpha=0.3).at(1e-5) == solver(1e-5, alpha=0.3)


def test_low_rank_and_tiled_matrices_are_multiplied_out():
    rng = np.random.default_rng(0)
    L = rng.normal(size=(8, 2))
    thin, Z = LowRank(-L, L), rng.normal(size=(4, 8))
    full = affine(-L @ L.T, Z)
    for solver in (ForwardBackward(), PeacemanRachford()):
        assert (
            relative(solver(Affine(thin, Z, activations.relu)).value, Newton()(full).value) < 1e-10
        )


# --------------------------------------------------------------------------------- Auto


def doubtful(A, Z, activation=activations.relu):
    return Affine(
        with_gains(Full(np.array(A, float)), doubtful=True), np.array(Z, float), activation
    )


def test_auto_repairs_where_picard_fails():
    p, exact = hard(size=6.0, m=20)
    p = doubtful(p.matrix.A, p.offset)
    x = Auto()(p)
    assert x.converged.all()
    assert x.method.startswith("Auto(Picard")
    assert "then PeacemanRachford(alpha=" in x.method
    assert relative(x.value, exact) < 1e-10
    q = adjoint(p, x, np.ones((20, 15)))
    v = Auto()(q)
    assert v.converged.all()
    assert relative(v.value, adjoint_solution(q)) < 1e-9


def test_auto_takes_the_splitting_of_a_negative_diagonal():
    """Matrix measure -1 with a diagonal of -9: Picard diverges, Jacobi's steps shrink by 0.8."""
    rng = np.random.default_rng(0)
    N = rng.normal(size=(12, 12))
    np.fill_diagonal(N, 0)
    A = 8 * N / np.abs(N).sum(axis=1)[:, None] - 9 * np.eye(12)
    p = doubtful(A, rng.normal(size=(5, 12)))
    assert p.matrix.gains[1] < 1 < p.matrix.gains[0]
    x = Auto()(p)
    assert x.method.startswith("Auto(Jacobi, since")
    assert x.converged.all()
    assert relative(x.value, Newton()(p).value) < 1e-10
    # no closed form of the scalar equation
    smooth = doubtful(A, rng.normal(size=(5, 12)), activations.tanh)
    assert "PeacemanRachford" in Auto()(smooth).method
    assert relative(Auto()(smooth).value, Newton()(smooth).value) < 1e-10


def test_auto_goes_on_with_picard_where_nothing_else_applies():
    rng = np.random.default_rng(0)
    wild = 3 * rng.normal(size=(20, 20)) / 20**0.5
    assert not is_monotone(Full(wild))
    assert Auto()(doubtful(wild, rng.normal(size=(3, 20)))).method.startswith("Auto(Picard")
    A = monotone(20, 0.5, 5.0, rng)
    assert Auto()(doubtful(A, rng.normal(size=(3, 20)), activations.silu)).method.startswith(
        "Auto(Picard"
    )
    easy = doubtful(FAMILIES["gaussian"](20, 0.9, rng), rng.normal(size=(3, 20)))
    assert "Peaceman" not in Auto()(easy).method
    # no splitting where an entry of the diagonal reaches 1
    steep = doubtful(np.diag([1.5, -0.3]), [[-1.0, 1.0]])
    assert steep.matrix.gains[1] == np.inf
    assert Auto()(steep).method.startswith("Auto(Picard")


def test_auto_repairs_with_peaceman_and_rachford(monkeypatch):
    """Parameters outside a constraint that contracts are repaired."""
    p, exact = hard(size=6.0)
    assert p.matrix.gains[0] > 1
    x = Auto()(p)
    assert x.converged.all()
    assert "then PeacemanRachford(alpha=" in x.method
    assert "then Newton" not in x.method
    assert relative(x.value, exact) < 1e-10
    asked = []
    monkeypatch.setattr(
        "pyidl.solvers.auto.is_monotone", lambda matrix: asked.append(matrix) or False
    )
    assert "then Newton for" in Auto()(p).method
    # before the first step, for its growth is known; and for those that failed
    assert len(asked) == 2
    asked.clear()
    Auto()(affine(FAMILIES["gaussian"](15, 0.9, np.random.default_rng(0)), np.ones((3, 15))))
    assert not asked  # where nothing grows or fails, nothing is asked


def test_auto_does_not_factorise_what_is_too_large():
    n = DENSE + 1
    A = np.zeros((n, n))
    A[0, 1], A[1, 0] = 3.0, -3.0
    A[2:, 2:] = np.eye(n - 2) * -2.0
    p = Affine(Full(A, gains=(3.0, 9.0)), np.zeros((1, n)), activations.relu)
    assert "Peaceman" not in Auto()(p).method


def test_is_monotone():
    rng = np.random.default_rng(0)
    A = monotone(12, 1e-6, 4.0, rng)
    assert is_monotone(Full(A))
    assert is_monotone(Full(A.T))
    assert not is_monotone(Full(A + 2e-6 * np.eye(12)))


class Free(InfNorm):
    """A constraint of which nothing says that Picard contracts."""

    contracts = False

    def project(self, params, activation):
        return dict(params)


def test_the_model_reads_growths_where_its_constraint_does_not_contract():
    rng = np.random.default_rng(0)
    A = monotone(20, 0.3, 4.0, rng)
    assert ImplicitModel(4, 2, 20, rng=0).maps["A"].gains is None
    model = ImplicitModel(4, 2, 20, rng=0, constraint=Free(), dtype="float64")
    assert model.maps["A"].gains is not None
    model.params = {**model.params, "A": A}
    assert model.maps["A"].gains[0] > 1
    U = rng.normal(size=(7, 4))
    _, pull = model(U)
    assert "then PeacemanRachford(alpha=" in pull.forward.method
    assert pull.solve(np.ones((7, 2))).converged.all()
    tiled = np.zeros((20, 20))
    tiled[:10, :10], tiled[10:, 10:] = monotone(10, 0.5, 3.0, rng), monotone(10, 0.5, 3.0, rng)
    tiled[:10, 10:] = 1.0
    model.params = {**model.params, "A": tiled}
    assert isinstance(model.maps["A"], Tiled)
    assert all(model.maps["A"].tiles[i, i].gains for i in range(2))
    assert model.equilibrium(U).converged.all()


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "solver",
    [PeacemanRachford(), PeacemanRachford(alpha=0.5), ForwardBackward(max_iter=20000), Auto()],
    ids=repr,
)
def test_three_oracles_for_a_model_on_which_picard_fails(solver):
    """Gradients by central differences, a dense adjoint solve, and by unrolling.

    The latter is forward-backward, differentiated by hand.
    """
    rng = np.random.default_rng(3)
    model = ImplicitModel(
        4, 3, 10, rng=0, constraint=Free(), dtype="float64", forward=solver, adjoint=solver
    )
    model.params = {**model.params, "A": monotone(10, 0.6, 2.5, rng), "b": rng.normal(size=10)}
    U, G = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    assert check_pullback(model, U, rng=1).max_error < 1e-6
    p = {key: host(a) for key, a in model.params.items()}
    A, Z = p["A"], U @ p["B"].T + p["b"]
    t, _ = _best_step(A)
    states, active = [np.zeros((6, 10))], []
    for _ in range(4000):  # x <- max(0, (1 - t) x + t (A x + z)): ReLU is its own proximal map
        u = (1 - t) * states[-1] + t * (states[-1] @ A.T + Z)
        states.append(np.maximum(u, 0))
        active.append(u > 0)
    gX, dA, dZ = G @ p["C"], 0.0, 0.0
    for k in range(len(active), 0, -1):
        v = active[k - 1] * gX
        dA, dZ = dA + t * v.T @ states[k - 1], dZ + t * v
        gX = (1 - t) * v + t * v @ A
    X, S = states[-1], active[-1] * 1.0
    V = np.stack(
        [np.linalg.solve(np.eye(10) - s[:, None] * A.T, s * (p["C"].T @ g)) for s, g in zip(S, G)]
    )
    _, pull = model.with_tol(1e-14)(U)
    dU, grads = pull(G)
    for oracle in ({"A": dA, "Z": dZ}, {"A": V.T @ X, "Z": V}):
        expected = {
            "A": oracle["A"],
            "B": oracle["Z"].T @ U,
            "b": oracle["Z"].sum(axis=0),
            "C": G.T @ X,
            "D": G.T @ U,
            "d": G.sum(axis=0),
        }
        assert relative(dU, oracle["Z"] @ p["B"] + G @ p["D"]) < 1e-10
        for key, g in grads.items():
            assert relative(g, expected[key]) < 1e-10, key


def test_the_room_of_proximal_maps_is_complete():
    assert {a.name.split("(")[0] for a in PROXIMAL} == set(resolvents.__all__)
    assert {a.name for a in SLOPES} >= {a.name for a in PROXIMAL if "leaky" not in a.name}
