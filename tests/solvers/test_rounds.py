"""The loop of rounds and what accelerates it.

Books, grids, hand-backs, refusals, and work that is cut in pieces.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import relative
from hypothesis import given
from hypothesis import strategies as st
from problems import FAMILIES, adjoint, affine, linear

from pyidl import ImplicitModel, Pattern, activations
from pyidl.arrays import batch as rows
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers import (
    GMRES,
    Anderson,
    Auto,
    Direct,
    ForwardBackward,
    Jacobi,
    Newton,
    PeacemanRachford,
    Picard,
    Status,
    direct,
    jacobi,
    low_rank,
    newton,
)
from pyidl.solvers import problem as problems_
from pyidl.solvers.adaptive import Adaptive
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.cost import Costs
from pyidl.solvers.loop import GROWTH, iterate, stride_of
from pyidl.solvers.problem import Affine
from pyidl.wellposed import MatrixMeasure, Unconstrained

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import auto
from counting import counting

BAR = {
    "positive .99": 3.0,
    "stiff diagonal": 1.3,
    "gaussian": 1.3,
    "roll .99": 3.5,
    "monotone": 2.5,
    "monotone, saturated": 2.5,
}
"""How many times the products of the best fixed choice `Auto` may need.

On `roll` Picard ends all at once, where ReLU cuts the cycle.
"""

EVERY = [Picard(), Picard(damping=0.3), Anderson(), Newton(), Auto()]


def roll(n, gain=0.99):
    return gain * np.roll(np.eye(n), 1, axis=1)


def random_rows(n, kappa, seed=0):
    return FAMILIES["gaussian"](n, kappa, np.random.default_rng(seed))


# ----------------------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("n", "stride"),
    [(1, 6), (128, 6), (129, 4), (256, 4), (257, 3), (511, 3), (512, 2), (2047, 2), (2048, 1)],
)
def test_measurements_come_at_the_ends_of_rounds(n, stride):
    """`n_iter` is one of them, for every sample; max_iter cuts a round short."""
    p = Affine(
        Full(0.9 * np.eye(n)),
        np.linspace(1.0, 1e3, 4)[:, None] * np.ones((4, n)),
        activations.identity,
    )
    ends, k = [], 0
    while k < 1000:
        k += max(stride, k // 8)
        ends.append(k)
    assert set(Picard()(p).n_iter.tolist()) <= set(ends)
    assert Picard(max_iter=7)(p).n_iter.tolist() == [7] * 4
    warm = Picard()(p, Picard()(p).value)
    assert warm.n_iter.tolist() == [1] * 4, "a start is looked at after one step"


def test_each_step_is_one_product_and_each_round_one_measurement():
    p = affine(random_rows(40, 0.9), np.random.default_rng(1).normal(size=(7, 40)))
    with counting(40) as counts:
        steps = int(Picard()(p).n_iter.max())
    assert (counts.products, counts.measurements) == (steps, steps // 6)


# ------------------------------------------------------------------------- acceleration


@pytest.mark.parametrize("m", [1, 30, 300])
@pytest.mark.parametrize("solver", [Auto(), Auto(tol=1e-8)], ids=repr)
def test_what_does_not_pay_is_handed_back(solver, m):
    """A rotation of 40 units.

    Every mode is as slow as every other, and a memory of three removes none.
    """
    p = affine(roll(40), np.random.default_rng(0).normal(size=(m, 40)), activations.identity)
    found = {}
    for name, one in {
        "auto": solver,
        "picard": Picard(tol=solver.tol),
        "newton": Newton(tol=solver.tol),
    }.items():
        with counting(40) as counts:
            s = one(p)
        assert s.converged.all(), name
        found[name] = int(s.n_iter.max()), counts.rows
    (steps, products), least = found["auto"], found["picard"]
    assert steps <= 1.3 * max(least[0], found["newton"][0])
    assert products <= 1.3 * max(least[1], found["newton"][1])


@pytest.mark.parametrize("newton", [False, True])
@pytest.mark.parametrize("n", [40, 200, 600])
def test_a_slow_sample_and_a_fast_one_take_the_steps_that_they_take_alone(n, newton):
    """Half of the units are slow where they are active.

    Inputs switch them off for all samples but one.
    """
    rng, h = np.random.default_rng(0), n // 2
    A = np.zeros((n, n))
    A[:h, :h], A[h:, h:] = random_rows(h, 0.5), FAMILIES["nonnegative"](n - h, 0.995, rng)
    Z = rng.normal(size=(6, n))
    Z[:, h:] -= 20.0
    Z[2, h:] += 21.0
    p = Affine(Full(A), Z, activations.relu)
    costs = Costs.of(6, n, "d", stride_of(np, n))
    advance = Adaptive(p, costs, newton=newton)
    together = iterate(p, None, advance, 1e-10, 5000, "")
    assert together.converged.all()
    assert sum(advance.counts) >= 1
    for i in range(6):
        one = p.take(np.array([i]))
        alone = iterate(one, None, Adaptive(one, costs, newton=newton), 1e-10, 5000, "")
        assert alone.n_iter[0] == together.n_iter[i]
        assert relative(alone.value[0], together.value[i]) < 1e-12
    assert together.n_iter[2] > np.delete(together.n_iter, 2).max()


def test_who_is_accelerated_later_does_not_disturb_those_before():
    """Four samples, engaged in three rounds; each as if alone."""
    rng, begin = np.random.default_rng(0), {0: [1, 3], 2: [0], 3: [2]}
    p = affine(random_rows(20, 0.9), rng.normal(size=(4, 20)), activations.tanh)
    alone = [Mixing(p.take(np.array([i])), 3) for i in range(4)]
    together, y = Mixing(p, 3), p.start()[0]
    for one in (*alone, together):
        one.new = np.empty(0, int)
    for step in range(8):
        together.new = np.array(begin.get(step, []), int)
        for i in together.new:
            alone[i].new = np.array([0])
        y_image = p.pre(p.image(y))
        rows = [one(y[[i]], y_image[[i]].copy()) for i, one in enumerate(alone)]
        y = together(y, y_image.copy())
        assert relative(np.concatenate(rows), y) < 1e-12


@pytest.mark.parametrize(
    "shape", [(40, 8), (128, 64), pytest.param((300, 30), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("family", BAR)
def test_auto_makes_few_more_products_than_the_best_fixed_choice(family, shape):
    """Samples that are multiplied, forward and adjoint.

    A dense system counts for as many as `Costs` says.

    The others are those that do nothing but multiply.
    """
    n, m = shape
    case = auto.FAMILIES[family](
        auto.Draw(np.random.default_rng(0), n, m, activations.relu, "float64")
    )
    costs = Costs.of(m, n, "d", stride_of(np, n))
    for direction in ("forward", "adjoint"):
        spent = {}
        for solver in (Auto(), Picard(), Jacobi(), Anderson(), PeacemanRachford()):
            if not case.run(direction, solver)().all_converged:
                assert family.startswith("monotone")
                assert not isinstance(solver, (Auto, PeacemanRachford))
                continue
            counts = case.count(direction, solver)
            spent[type(solver).__name__] = counts.rows + counts.systems * costs.factor / costs.step
        ours = spent.pop("Auto")
        assert ours <= BAR[family] * min(spent.values()), (direction, ours, spent)


def test_a_small_triangular_matrix_is_multiplied_in_one_piece():
    """By its 190 tiles a step of n = 20 took 0.5 ms instead of 5 us.

    Large tiles of zeros are still spared.
    """
    case = auto.FAMILIES["triangular"](
        auto.Draw(np.random.default_rng(0), 20, 16, activations.relu, "float64")
    )
    counts = case.count()
    assert counts.products <= 24
    network = Pattern.feed_forward(64, 128, 128, 10)
    model = ImplicitModel(64, 10, 256, pattern=network, rng=0)
    assert model.maps["A"].whole is None
    assert case.model.maps["A"].whole is not None
    X = np.random.default_rng(1).normal(size=(16, 20))
    for M in (case.model.maps["A"], case.model.maps["A"].T):
        assert relative(M.rows(X), X @ M.dense().T) < 1e-15
        out = np.empty_like(X)
        assert M.rows(X, out) is out
        assert relative(out, X @ M.dense().T) < 1e-15


# --------------------------------------------------------------------- the best iterate


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "solver",
    [Picard(max_iter=40), Anderson(max_iter=40), Picard(damping=0.1, max_iter=40)],
    ids=repr,
)
def test_the_best_of_what_was_measured_is_returned(solver, seed):
    """Transients of a matrix far from normal.

    Residuals rise between measurements, and some never come back.
    """
    rng = np.random.default_rng(seed)
    A = np.triu(rng.normal(size=(30, 30)), 1) + 1.02 * np.diag(rng.choice([-1.0, 0.5], 30))
    p = Affine(Full(A), rng.normal(size=(12, 30)), activations.relu)
    s = solver(p, trace=True)
    ends = np.array([6, 12, 18, 24, 30, 36, 40])
    measured = s.trace[ends - 1]
    assert np.any(np.diff(measured, axis=0) > 0)
    best = np.nanmin(measured, axis=0)
    assert not s.converged.all()
    np.testing.assert_array_equal(s.residual, best)
    true = np.abs(np.maximum(s.value @ A.T + p.offset, 0) - s.value).max(axis=1)
    np.testing.assert_allclose(true, s.residual, rtol=1e-9, atol=1e-12)


KINKED = [activations.relu, activations.leaky_relu(0.1), activations.hard_tanh, activations.abs]


@given(
    st.sampled_from(KINKED),
    st.sampled_from([*EVERY, Jacobi()]),
    st.integers(0, 200),
    st.sampled_from(["float32", "float64"]),
)
def test_value_slopes_and_pre_activation_belong_together_at_kinks(activation, solver, seed, dtype):
    """Small integers and eighths.

    Many pre-activations are exactly at a kink, or are left there by rounding.
    """
    rng = np.random.default_rng(seed)
    A = rng.integers(-1, 2, (6, 6)) / 8.0
    p = affine(A, rng.integers(-2, 3, (9, 6)) * 1.0, activation, dtype)
    if isinstance(solver, Jacobi) and activation.scalar_solve is None:
        return
    s = solver(p)
    assert s.converged.all()
    np.testing.assert_array_equal(s.value, activation.phi(s.pre))
    G = rng.normal(size=(9, 6))
    S = activation.dphi(s.pre)
    v = Auto()(adjoint(p, s, G)).value
    exact = np.stack(
        [np.linalg.solve(np.eye(6) - d[:, None] * A.T, d * g) for d, g in zip(S.astype(float), G)]
    )
    assert relative(v, exact) < (1e-4 if dtype == "float32" else 1e-9)


# ------------------------------------------------------------ no solution, no CONVERGED


def singular(seed, dtype):
    """A positive A of spectral radius 1, as good as the dtype can hold.

    So ``x = A x + 1`` has no solution.
    """
    rng = np.random.default_rng(seed)
    A = rng.random((2 + seed % 7, 2 + seed % 7)) + 0.1
    for _ in range(3):
        A /= np.abs(np.linalg.eigvals(A)).max()
    return A.astype(dtype)


@pytest.mark.parametrize("solver", [Auto(), Picard(), Anderson(), Newton()], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seeds", [60, pytest.param(240, marks=pytest.mark.slow)])
def test_what_has_no_solution_does_not_converge(seeds, dtype, solver):
    """Unless the residual is small beside the solution: then the rounding of A has made one."""
    wrong = []
    for seed in range(seeds):
        A = singular(seed, dtype)
        n, one = len(A), np.ones((1, len(A)), dtype)
        p = affine(A, one, activations.relu, dtype)
        q = linear(with_gains(Full(np.ascontiguousarray(A.T))), one, one, np.ones(1))
        for which, problem in (("forward", p), ("adjoint", q)):
            for x0 in (None, np.full((1, n), 1e3, dtype), np.full((1, n), 1e6, dtype)):
                s = solver(problem, x0)
                if s.converged[0] and not s.residual[0] <= 1e-2 * np.abs(problem.offset).max():
                    wrong.append(
                        (
                            seed,
                            which,
                            None if x0 is None else float(x0[0, 0]),
                            s.method,
                            float(s.residual[0]),
                        )
                    )
    assert wrong == [], f"{len(wrong)} of {seeds * 6}: {wrong[:4]}"


@pytest.mark.parametrize("solver", [Auto(), Picard(), Anderson(), Newton()], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_of_thirds_has_no_solution(dtype, solver):
    model = ImplicitModel(
        1,
        1,
        3,
        dtype=dtype,
        bias=False,
        constraint=Unconstrained(),
        rng=0,
        forward=solver,
        adjoint=solver,
    )
    model.params = {**model.params, "A": np.full((3, 3), 1 / 3), "B": np.ones((3, 1))}
    U = np.array([[1.0], [1e3], [1e-3]])
    for x0 in (None, np.full((3, 3), 1e5), np.full((3, 3), 1e7)):
        s = model.equilibrium(U, x0=x0, on_fail="ignore")
        assert np.all(~s.converged | (s.residual <= 1e-2 * U[:, 0])), s


# --------------------------------------------------------------- strong self-inhibition


@pytest.mark.parametrize("a", [-100.0, -1e6])
@pytest.mark.parametrize("solver", [Jacobi(), Auto()], ids=repr)
def test_strong_self_inhibition_in_single_precision(a, solver):
    model = ImplicitModel(1, 1, 1, constraint=MatrixMeasure(0.5), rng=0, forward=solver)
    model.params = {**model.params, "A": [[a]], "B": [[1.0]], "b": [100.0]}
    U = np.random.default_rng(0).normal(size=(50, 1)).astype("f4")
    s = model.equilibrium(U, on_fail="ignore")
    assert s.converged.all(), s
    x, z = s.value.astype(float), U.astype(float) + 100.0
    true = np.abs(np.maximum(a * x + z, 0.0) - x).max(axis=1)
    rounding = np.finfo("f4").eps * (abs(a) * np.abs(x).max(axis=1) + z[:, 0])
    assert np.all(np.abs(true - s.residual) <= 4 * rounding)


def test_damped_picard_keeps_the_promise_of_its_certificate_from_afar():
    """Saturated, y moves for long before x does: that is no stagnation."""
    model = ImplicitModel(
        2, 1, 6, activation=activations.tanh, constraint=MatrixMeasure(0.5), dtype="float64", rng=0
    )
    rng = np.random.default_rng(0)
    A = model.project({**model.params, "A": 3 * rng.normal(size=(6, 6)) - 40 * np.eye(6)})["A"]
    model.params = {**model.params, "A": A}
    named = model.constraint.certificate({"A": A}, activations.tanh)
    damping = float(named.applies_to[len("Picard(damping=") : -1])
    U = rng.normal(size=(8, 2))
    exact = model.replace(forward=Newton()).equilibrium(U, on_fail="ignore")
    for x0 in (1e3 * rng.normal(size=(8, 6)), np.full((8, 6), -1e4)):
        promised = named.steps(1e-9, 2e3 + np.abs(x0).max())
        s = model.replace(forward=Picard(tol=1e-9, max_iter=promised, damping=damping)).equilibrium(
            U, x0=x0, on_fail="ignore"
        )
        assert not np.any(s.status == Status.STAGNATED), s
        assert s.converged.all(), s
        assert relative(s.value[exact.converged], exact.value[exact.converged]) < 1e-6


def test_growth_is_what_the_loop_says():
    """A solution that is large, but not beyond the limit, is one."""
    for dtype, gap in (("float32", 1e-2), ("float64", 1e-6)):
        limit = GROWTH / np.finfo(dtype).eps ** 0.5
        assert 1 / gap < limit
        s = Newton()(affine([[1 - gap]], [[1.0]], activations.relu, dtype))
        assert s.converged.all()
        assert s.value[0, 0] == pytest.approx(1 / gap, rel=1e-2)


# ------------------------------------------------------------------- work cut in pieces

ALL = [
    Picard(),
    Picard(damping=0.3),
    Jacobi(),
    Anderson(),
    Anderson(splitting=True),
    Newton(),
    ForwardBackward(alpha=0.9),
    PeacemanRachford(),
    Auto(),
]
MATRICES = {
    "full": lambda rng: Full(FAMILIES["stiff"](24, 0.9, rng)),
    "thin": lambda rng: LowRank(rng.normal(size=(24, 3)) / 12, rng.normal(size=(24, 3)) / 12),
}


def small_pieces(monkeypatch, size=64):
    for module in (rows, problems_, jacobi):
        monkeypatch.setattr(module, "CHUNK", size)
    for module in (direct, newton):
        monkeypatch.setattr(module, "CHUNK", 3 * 24**2)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_work_in_small_pieces_gives_the_same_answer(solver, matrix, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(low_rank, "LARGE", 64)  # so that k numbers a sample are iterated
    p = Affine(MATRICES[matrix](rng), rng.normal(size=(50, 24)), activations.relu)
    G = rng.normal(size=(50, 24))
    whole = solver(p)
    q = adjoint(p, whole, G)
    backward = {one: one(q) for one in (solver, GMRES(), Direct())}
    small_pieces(monkeypatch)
    pieces = solver(p)
    for a, b in ((pieces, whole), *((one(q), s) for one, s in backward.items())):
        assert b.converged.all()
        assert np.array_equal(a.status, b.status)
        assert np.array_equal(a.n_iter, b.n_iter)
        assert relative(a.value, b.value) < 1e-13
        assert relative(a.pre, b.pre) < 1e-13
        np.testing.assert_allclose(
            a.residual, b.residual, rtol=1e-3, atol=1e-14 * np.abs(b.value).max()
        )


@pytest.mark.parametrize("solver", [Picard(), Jacobi(), Anderson(), Newton(), Auto()], ids=repr)
def test_two_thousand_rows_and_each_alone(solver):
    rng = np.random.default_rng(0)
    p = affine(FAMILIES["stiff"](24, 0.9, rng), rng.normal(size=(2000, 24)))
    q = adjoint(p, Picard()(p), rng.normal(size=(2000, 24)) * 10.0 ** rng.uniform(-3, 3, (2000, 1)))
    for problem in (p, q):
        together = solver(problem)
        assert together.converged.all()
        for i in range(0, 2000, 83):
            alone = solver(problem.take(np.array([i])))
            bound = (
                2e-12
                / (1 - 0.9)
                * (1 + np.abs(alone.value).max() if problem is p else problem.reference[i])
            )
            assert alone.converged[0]
            assert (
                np.abs(alone.value[0] - together.value[i]).max()
                <= bound + 1e-14 * np.abs(alone.value).max()
            )


@pytest.mark.parametrize("size", [30.0, 100.0, 300.0])
def test_a_monotone_model_with_a_large_skew_part_is_solved(size):
    """The step of Peaceman and Rachford's follows |I - A|.

    With 1, and residuals asked for below rounding, up to 16 of 40 failed.
    """
    for seed in range(10):
        rng = np.random.default_rng(seed)
        S, K = rng.normal(size=(2, 20, 20))
        S, K = (S + S.T) / 2, K - K.T
        A = S - (np.linalg.eigvalsh(S)[-1] - 0.5) * np.eye(20) + size / np.linalg.norm(K, 2) * K
        p = Affine(Full(A), rng.normal(size=(1, 20)), activations.relu)
        s = Auto()(p)
        assert s.converged.all()
        assert (
            s.tolerance[0]
            <= 1e-12 * (1 + np.abs(s.value).max())
            + 1e-15 * np.abs(A).sum(axis=1).max() * np.abs(s.value).max()
        )
