"""How often the host waits for a GPU: in no step, once a measurement.

Counted on the stand-in, and of CuPy itself on the emulated card. A wait costs more than
a step of a small problem, and ends the overlap of the host's work with the device's. So
every solver, layer and training step has an explicit bound here.
"""

import sys
import warnings

import numpy as np
import pytest
import stand_in
from counted import counted
from helpers import moved, random_model
from problems import FAMILIES, adjoint, affine, monotone

import pyidl
from pyidl import activations, losses, optim, sim, solvers
from pyidl.arrays import kernels
from pyidl.attention import ImplicitAttentionHead
from pyidl.layers import ImplicitModel, LayerNorm, Linear, Residual, Sequential
from pyidl.matrices.low_rank import LowRank
from pyidl.recurrent import ImplicitRNN
from pyidl.sim.solvers import admm, fista
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
    Substitution,
)
from pyidl.solvers.anderson import Mixing
from pyidl.solvers.image import Phi
from pyidl.solvers.jacobi import split
from pyidl.solvers.loop import _follow
from pyidl.solvers.problem import Affine
from pyidl.wellposed import Unconstrained

M, N = 12, 30


cupy = stand_in.cupy


@pytest.fixture(autouse=True, params=["stand_in", pytest.param("cupy", marks=pytest.mark.gpu)])
def library(request, monkeypatch):
    """The stand-in, or CuPy itself where it counts."""
    if request.param == "cupy":
        monkeypatch.setattr(sys.modules[__name__], "cupy", counted())
    else:
        for name, module in stand_in.MODULES.items():
            monkeypatch.setitem(sys.modules, name, module)
    cupy.waits = cupy.uploads = cupy.launches = 0


def there(a):
    return cupy.asarray(np.asarray(a))


def checks(steps):
    """The measurements of a cold solve of so many steps.

    One every third at first, later one after an eighth of the steps done.
    """
    count, k = 0, 0
    while k < steps:
        count, k = count + 1, k + max(3, k // 8)
    return count


def problems(name):
    """A forward problem on the stand-in, and its adjoint, with cotangents from 1e-3 to
    1e3."""
    rng = np.random.default_rng(0)
    if name == "low rank":
        L, R = rng.normal(size=(2, 40, 5))
        L *= 0.9 / np.abs(L @ R.T).sum(axis=1).max()
        p = Affine(LowRank(there(L), there(R)), there(rng.normal(size=(M, 40))), activations.relu)
        x = Picard()(p)
        cupy.waits = 0
        return p, p, x
    A = monotone(N, 0.5, 5.0, rng) if name == "monotone" else FAMILIES[name](N, 0.95, rng)
    p = affine(A, rng.normal(size=(M, N)), xp=cupy)
    x = (PeacemanRachford() if name == "monotone" else Picard())(p)
    return p, adjoint(p, x, rng.normal(size=(M, N)) * 10.0 ** rng.uniform(-3, 3, (M, 1))), x


# ----------------------------------------------------------------------------- counting


def test_the_counters_count():
    a = there(np.arange(6.0))
    assert (cupy.waits, cupy.uploads, cupy.launches) == (0, 1, 0)
    b = a + 1.0
    cupy.exp(b, out=b)
    cupy.reshape(b, (2, 3))
    assert (cupy.waits, cupy.uploads, cupy.launches) == (0, 1, 2)
    for wait in (float, bool, int):
        wait(b[0])
    cupy.asnumpy(b)
    cupy.nonzero(b)
    assert cupy.waits == 5
    b[b > 0]
    b[cupy.reshape(b, (6,)) > 0] = b
    assert cupy.waits == 7
    b[b > 0] = 1.0
    assert cupy.waits == 8


def test_a_mask_in_a_loop_would_be_seen():
    """Broken twin: a problem that freezes rows by a boolean mask."""

    class Masking(Phi):
        def __call__(self, y, out=None):
            y[y < 0] = there(np.zeros(int(np.count_nonzero(cupy.asnumpy(y) < 0))))
            return super().__call__(y, out)

        def entrywise(self):
            return (None,)

    p, _, _ = problems("gaussian")
    twin = Affine(p.matrix, p.offset, Masking(p.map.activation))
    cupy.waits = 0
    x = Picard()(twin)
    assert cupy.waits > checks(x.n_iter.max())


# ------------------------------------------------------------------------------ solvers


SOLVERS = {
    "Picard": (Picard(), checks),
    "damped": (Picard(damping=0.3), checks),
    "Jacobi": (Jacobi(), checks),
    "Anderson": (Anderson(), checks),
    "Anderson of Jacobi": (Anderson(splitting=True), checks),
    "ForwardBackward": (ForwardBackward(alpha=0.9), checks),
    "PeacemanRachford": (PeacemanRachford(), checks),
    "Auto": (Auto(), checks),
    # a measurement, the size of the step, and the active sets
    "Newton": (
        Newton(),
        lambda steps: 3 * steps,
    ),
    # a product, and what begins and ends a cycle
    "GMRES": (
        GMRES(),
        lambda steps: steps + 2 + steps // 20,
    ),
    "Direct": (Direct(), lambda steps: 2),
    "Phantom": (solvers.Phantom(), lambda steps: 1),
    "Neumann": (solvers.Neumann(), lambda steps: 1),
    "JacobianFree": (solvers.JacobianFree(), lambda steps: 1),
}
LINEAR = ["GMRES", "Direct", "Phantom", "Neumann", "JacobianFree"]
SETUP = (
    3  # what can be split: the diagonal or the slopes; how large A is; whether an inverse is finite
)


@pytest.mark.parametrize("family", ["gaussian", "nonnegative", "stiff"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_waits_once_a_measurement(name, family):
    solver, bound = SOLVERS[name]
    forward, backward, _ = problems(family)
    for problem in (forward, backward):
        if name in (LINEAR if problem is forward else ["Newton"]):
            continue
        cupy.waits = 0
        solution = solver(problem)
        assert solution.converged.all()
        assert "Anderson" not in name or family == "stiff" or solution.n_iter.max() < 40
        assert cupy.waits <= SETUP + bound(int(solution.n_iter.max()))


@pytest.mark.parametrize("name", ["Picard", "Jacobi", "Anderson", "Auto"])
def test_a_warm_start_waits_twice_more(name):
    """For the size of f(0), and for a first measurement after one step."""
    solver, bound = SOLVERS[name]
    for problem in problems("stiff")[:2]:
        cold = solver(problem)
        for start in (cold.value, cupy.zeros_like(cold.value)):
            cupy.waits = 0
            solution = solver(problem, start)
            assert solution.converged.all()
            assert cupy.waits <= SETUP + 1 + 1 + bound(int(solution.n_iter.max()) - 1)


@pytest.mark.parametrize("family", ["low rank", "monotone"])
def test_what_auto_chooses_waits_no_more(family):
    problem, _, _ = problems(family)
    cupy.waits = 0
    solution = Auto()(problem)
    assert solution.converged.all()
    # each waits by itself; a low-rank solve looks at a bound, then at a residual
    tries = 1 + solution.method.count("then")
    assert cupy.waits <= (SETUP + checks(int(solution.n_iter.max()))) * (
        2 if family == "low rank" else tries
    )


@pytest.mark.parametrize("structure", ["feed-forward", "one cycle"])
def test_substitution_waits_for_its_cycles_only(structure):
    rng, A = (
        np.random.default_rng(0),
        np.tril(0.3 * np.random.default_rng(0).normal(size=(12, 12)), -1),
    )
    if structure == "one cycle":
        A[0, 1] = 0.5
    model = ImplicitModel(3, 2, 12, dtype="float64", constraint=Unconstrained(), rng=0)
    model.params = {**model.params, "A": A}
    problem = moved(model, cupy)._cell().bind(there(rng.normal(size=(M, 3))))
    cupy.waits = 0
    solution = Substitution()(problem)
    assert solution.converged.all()
    assert cupy.waits <= 1 + (checks(int(solution.n_iter.max())) if structure == "one cycle" else 0)


@pytest.mark.parametrize("family", ["nonnegative", "stiff"])
def test_a_step_is_two_launches_and_nothing_is_sent(family):
    """Picard, forward and adjoint, and its splitting.

    A product and a kernel; what a step allocates is nothing.
    """
    forward, backward, _ = problems(family)
    for problem in (forward, backward, split(forward), split(backward)):
        out = problem.buffers()
        x = problem.step(problem.start(None, out[0])[1], out[1])[1]
        cupy.waits = cupy.uploads = cupy.launches = 0
        y, image = problem.step(x, out[0])
        assert (cupy.launches, cupy.uploads, cupy.waits) == (2, 0, 0)
        assert y is out[0][0]
        assert image is out[0][1]


def test_a_measurement_is_one_launch_and_one_wait():
    for problem in problems("nonnegative")[:2]:
        x = problem.start()[1]
        y, image = problem.step(x, problem.buffers()[0])
        cupy.waits = cupy.uploads = cupy.launches = 0
        problem.measure(x, y, image)
        assert (cupy.launches, cupy.uploads, cupy.waits) == (1, 0, 1)


def test_a_step_of_anderson_is_five_launches_and_nothing_is_sent():
    """A plain step, all of Anderson's method, a copy into the work space, and phi.

    For every sample, or for some.
    """
    problem, _, _ = problems("nonnegative")
    for slow in (np.arange(M), np.arange(0, M, 3)):
        mixing = Mixing(problem, 3)
        mixing.new = slow
        here, there = problem.buffers()
        y, x = problem.start(None, here)
        for k in range(8):
            cupy.waits = cupy.uploads = cupy.launches = 0
            y_image, _ = problem.step(x, there)
            y, x = _follow(problem, mixing, y, y_image, here)
            assert y is here[0]
            if k > 1:  # who takes part is sent once
                assert (cupy.launches, cupy.uploads, cupy.waits) == (5, 0, 0)


@pytest.mark.parametrize("name", ["Picard", "PeacemanRachford"])
def test_a_long_solve_launches_little_more(name):
    """Measurements and rows that leave included."""
    problem, _, _ = problems("nonnegative")
    cupy.launches = 0
    solution = SOLVERS[name][0](problem)
    steps = int(solution.n_iter.max())
    assert steps > 200
    assert cupy.launches <= 2 * steps + 25 * checks(steps)


def test_no_step_of_anderson_sends_an_array():
    problem, _, _ = problems("nonnegative")
    one = problem.take(np.arange(1))
    cupy.waits = cupy.uploads = 0
    solution = Anderson()(one)
    assert cupy.uploads <= 2 * cupy.waits < 2 * solution.n_iter.max()


# ------------------------------------------------------------ layers, training, fitting


def test_a_recurrent_network_waits_for_its_solves_only():
    """One solve a time step, each with its own checks."""
    model = moved(random_model(ImplicitRNN, 3, 2, 6, 20, forward=Picard(), adjoint=Picard()), cupy)
    U, T = there(np.random.default_rng(0).normal(size=(4, 7, 3))), 7
    cupy.waits = 0
    Y, pull = model(U)
    steps = pull.forward.n_iter.max()
    assert cupy.waits <= 1 + T * checks(int(steps))
    dY = cupy.ones_like(Y)
    adjoint, cupy.waits = pull.solve(dY), 0
    pull(dY)
    assert cupy.waits <= 1 + T * (1 + checks(int(adjoint.n_iter.max())))


def test_an_attention_head_waits_for_its_solve_only():
    head = moved(ImplicitAttentionHead(6, 3, num_heads=2, block_size=5, rng=0), cupy)
    U = there(np.random.default_rng(0).normal(size=(3, 5, 6)))
    cupy.waits = 0
    Y, pull = head(U)
    forward = int(pull.solutions[0].n_iter.max())
    assert cupy.waits <= 2 + checks(forward)  # is U finite, and how large are exponents?
    adjoint, cupy.waits = pull.equilibrium.solve(cupy.ones_like(pull.forward.value)), 0
    pull(cupy.ones_like(Y))
    # dY, its sizes, and twice the exponents: for the adjoint, and for the gradients
    assert cupy.waits <= 4 + checks(int(adjoint.n_iter.max()))


def test_explicit_layers_wait_at_the_door_only():
    model = moved(
        Sequential(
            Linear(4, 6, rng=0), Residual(Linear(6, 6, rng=1)), LayerNorm(6), Linear(6, 3, rng=2)
        ),
        cupy,
    )
    U = there(np.random.default_rng(0).normal(size=(8, 4)))
    cupy.waits = 0
    Y, pull = model(U)
    assert cupy.waits == 1  # is U finite?
    cupy.waits = 0
    pull(cupy.ones_like(Y))
    assert cupy.waits == 1  # is dY?


@pytest.mark.parametrize(
    "loss",
    [losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy, losses.cross_entropy],
)
def test_losses_do_not_wait(loss):
    rng = np.random.default_rng(0)
    Y, target = there(rng.normal(size=(5, 3))), rng.random((5, 3))
    target = there(target / target.sum(axis=1, keepdims=True))
    cupy.waits = 0
    loss(Y, target, weights=there(rng.random(5)))
    assert cupy.waits == 0


def test_a_training_step_waits_for_its_solves_and_three_doors():
    """U, dY, and the new parameters, all at once, are looked at.

    Value, gradients, optimiser and projection are not waited for.
    """
    rng = np.random.default_rng(0)
    model = moved(ImplicitModel(5, 3, 20, rng=0), cupy)
    data = there(rng.normal(size=(64, 5))), there(rng.integers(0, 3, 64))
    solved = []
    counted = [type(solver) for solver in (model.forward, model.adjoint) if solver is not None]
    assert counted == [] or counted == [Auto, Auto]

    def waits(epochs):
        twin, before = model.replace(), cupy.waits
        history = pyidl.fit(
            twin,
            data,
            loss=losses.cross_entropy,
            optimizer=optim.Adam(1e-3, clip_norm=1.0),
            epochs=epochs,
            batch_size=32,
            rng=0,
            verbose=0,
        )
        solved.append(history["steps"].max())
        return cupy.waits - before

    first, second = waits(1), waits(2)
    per_step = (
        second - first
    ) / 2  # two steps an epoch; what an epoch itself waits for is counted too
    assert per_step <= 2 * checks(int(np.ceil(solved[-1])) + 10) + 2 + 1 + 4


@pytest.mark.parametrize("optimizer", [optim.Adam(), optim.AdamW()])
def test_a_step_of_adam_is_one_launch_a_parameter(optimizer):
    rng = np.random.default_rng(0)
    params = {name: there(rng.normal(size=(5, n))) for name, n in (("A", 5), ("B", 3))}
    for _ in range(2):
        cupy.waits = cupy.uploads = cupy.launches = 0
        params = optimizer.step(params, params)
    assert (cupy.launches, cupy.uploads, cupy.waits) == (
        2 if type(optimizer) is optim.Adam else 4,
        0,
        0,
    )


@pytest.mark.parametrize(("memory", "fused"), [(kernels.MEMORY, True), (kernels.MEMORY + 1, False)])
def test_a_long_memory_has_no_kernel(memory, fused, monkeypatch):
    """Its numbers would not fit the memory that threads share.

    The method is the same.
    """
    p, _, x = problems("nonnegative")
    calls, mix = [], kernels.mix
    monkeypatch.setattr(kernels, "mix", lambda *arguments: calls.append(1) or mix(*arguments))
    found = Anderson(memory=memory)(p)
    assert bool(calls) == fused
    np.testing.assert_allclose(cupy.asnumpy(found.value), cupy.asnumpy(x.value), atol=1e-9)


@pytest.mark.parametrize("steps", [admm._Steps, fista._Steps])
@pytest.mark.parametrize(
    ("penalty", "bound"),
    [(sim.L1(0.02), 50), (sim.ReverseHuber(0.002, 0.1), 95)],
    ids=lambda p: type(p).__name__,
)
def test_a_step_of_sim_is_few_launches(steps, penalty, bound):
    rng = np.random.default_rng(0)
    R, Z = rng.normal(size=(60, 9)), rng.normal(size=(60, 6))
    task = sim.RowProblem.of(sim.Moments.of(there(R), there(Z)), penalty, ball=9, radius=0.7)
    step = steps(task, task.zeros())
    step.step(1)
    cupy.waits = cupy.launches = 0
    step.step(1)
    # CuPy joins arrays, and sums along a row, by two kernels
    assert cupy.launches <= bound + 6 * (cupy is not stand_in.cupy)
    assert cupy.waits == 0


@pytest.mark.parametrize("solver", [sim.ADMM(), sim.FISTA()])
@pytest.mark.parametrize(
    "penalty", [sim.L1(0.02), sim.ReverseHuber(0.002, 0.1)], ids=lambda p: type(p).__name__
)
def test_solvers_of_sim_wait_once_a_measurement(solver, penalty):
    rng = np.random.default_rng(0)
    R, Z = rng.normal(size=(60, 9)), rng.normal(size=(60, 6))
    task = sim.RowProblem.of(sim.Moments.of(there(R), there(Z)), penalty, ball=5, radius=0.7)
    measured, old = [], sim.RowProblem.measure
    cupy.waits = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sim.RowProblem, "measure", lambda self, W: measured.append(1) or old(self, W))
        rows = type(solver)(tol=1e-6)(task)
    assert rows.n_iter.max() >= 10
    assert cupy.waits <= 2 + 5 * len(measured)  # two in a measurement, three in a guess
    assert cupy.uploads <= 2 * rows.n_iter.max() + 8 * len(measured)  # a step sends its radii
