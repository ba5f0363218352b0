"""From a network to an implicit model.

The fit is optimal, bounded, sparse where it should be, and the same however the data
come.
"""

import dataclasses
import tracemalloc
from functools import partial

import numpy as np
import pytest
from example_runs import check_figure
from helpers import assert_close, host, moved, random_model

import pyidl
from pyidl import (
    ImplicitModel,
    InfNorm,
    Linear,
    Pattern,
    Sequential,
    activations,
    losses,
    optim,
    sim,
)
from pyidl.arrays.backend import from_host
from pyidl.errors import ConvergenceError, ConvergenceWarning, InputError, WellPosednessWarning
from pyidl.sim import source
from pyidl.solvers.solution import Status
from pyidl.wellposed import MatrixMeasure, PerronFrobenius, StrictlyTriangular, Unconstrained

P, Q, M = 6, 2, 300
WIDTHS = (4, 7)  # of the states, the last block first
N = sum(WIDTHS)
rng = np.random.default_rng(0)
U = rng.normal(size=(M, P))
NEW = rng.normal(size=(50, P))
FREE = partial(sim.fit, dtype="float64", solver=sim.ADMM(tol=1e-9))
TRIANGULAR = partial(FREE, constraint=StrictlyTriangular(), pattern="block_triangular")


def network(phi=activations.relu, dtype="float64", bias=True):
    layers = [
        Linear(P, 7, rng=0, dtype=dtype),
        phi,
        Linear(7, 4, rng=1, dtype=dtype),
        phi,
        Linear(4, Q, rng=2, dtype=dtype),
    ]
    net, noise = Sequential(*layers), np.random.default_rng(3)
    net.params = {
        key: host(a) + (0.3 * noise.normal(size=a.shape) if bias else 0.0) * (key[-1] == "b")
        for key, a in net.params.items()
    }
    return net


NET = network()
STATES = sim.collect_states(NET, U)


def loss(model, states, kind="states"):
    """Mean loss of the rows, written anew."""
    p = {key: host(a).astype(float) for key, a in model.params.items()}
    X, V = host(states.X), host(states.U)
    if kind == "states":
        return np.mean((host(states.Z) - X @ p["A"].T - V @ p["B"].T - p["b"]) ** 2, axis=0) / 2
    return np.mean((host(states.Y) - X @ p["C"].T - V @ p["D"].T - p["d"]) ** 2, axis=0) / 2


# ------------------------------------------------------------------------ what is found


def test_a_network_is_found_again():
    """Without feedback and nearly without penalty the network itself is the optimum."""
    result = TRIANGULAR(NET, U, penalty=sim.Ridge(1e-12))
    assert_close(result.model.predict(NEW), NET.predict(NEW), rtol=1e-5, atol=1e-6)
    exact = sim.exact_model(NET)
    assert np.max(np.abs(host(result.model.params["A"]) - host(exact.params["A"]))) < 1e-4


@pytest.mark.parametrize(
    "phi", [activations.relu, activations.tanh, activations.silu], ids=lambda phi: phi.name
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("whole_row", [False, True])
def test_rows_keep_their_bound_and_the_model_is_certified(phi, dtype, whole_row):
    kappa = 0.7
    result = sim.fit(
        network(phi),
        U,
        constraint=InfNorm(kappa),
        penalty=sim.L1(1e-4),
        dtype=dtype,
        whole_row=whole_row,
    )
    params = {key: host(a).astype(float) for key, a in result.model.params.items()}
    sums = np.abs(params["A"]).sum(axis=1) + (np.abs(params["B"]).sum(axis=1) if whole_row else 0.0)
    assert sums.max() <= kappa / phi.lipschitz * (1 + 1e-6)
    assert sums.max() > 0.9 * kappa / phi.lipschitz  # the bound is felt
    assert result.model.constraint.contains(result.model.params, phi)
    assert result.report.certificate.proven
    assert result.model.dtype == dtype
    assert result.report.norm == pytest.approx(np.abs(params["A"]).sum(axis=1).max())


def test_the_report_tells_the_objective_that_the_model_has():
    result = FREE(STATES, penalty=sim.L1(0.01), refit_rounds=0)
    sizes = np.abs(host(result.model.params["A"])).sum(axis=1) + np.abs(
        host(result.model.params["B"])
    ).sum(axis=1)
    np.testing.assert_allclose(
        result.report.states.objective, loss(result.model, STATES) + 0.01 * sizes, rtol=1e-6
    )
    variance = np.var(host(STATES.Z), axis=0)
    np.testing.assert_allclose(
        result.report.states.unexplained, 2 * loss(result.model, STATES) / variance, rtol=1e-5
    )
    sizes = np.abs(host(result.model.params["C"])).sum(axis=1) + np.abs(
        host(result.model.params["D"])
    ).sum(axis=1)
    np.testing.assert_allclose(
        result.report.outputs.objective,
        loss(result.model, STATES, "outputs") + 0.01 * sizes,
        rtol=1e-6,
    )
    assert np.all(result.report.states.gap >= 0)
    assert result.report.states.relative_gap <= 1e-9
    assert result.report.samples == M
    assert set(result.report.seconds) == {"collect", "states", "outputs"}


@pytest.mark.parametrize("cost", [1.0, 5.0, 0.2])
def test_optimality_with_weights_that_cost_differently(cost):
    """Subgradients: correlations with the residual are at most lam times the cost.

    And equal to it where a weight is not zero.
    """
    lam = 0.02
    result = TRIANGULAR(STATES, penalty=sim.L1(lam), state_cost=cost, refit_rounds=0)
    p = {key: host(a) for key, a in result.model.params.items()}
    W = np.concatenate([p["A"], p["B"]], axis=1)
    R = host(STATES.Z) - host(STATES.inputs) @ W.T - p["b"]
    g = R.T @ (host(STATES.inputs) - host(STATES.inputs).mean(axis=0)) / M
    block = np.repeat([0, 1], WIDTHS)
    allowed = np.concatenate([block[None, :] > block[:, None], np.ones((N, P), bool)], axis=1)
    limit = lam * np.concatenate([np.full(N, cost), np.ones(P)])
    assert np.all(np.abs(g)[allowed] <= np.broadcast_to(limit, g.shape)[allowed] + 1e-7)
    on = W != 0
    assert np.max(np.abs(g - np.sign(W) * limit)[on]) < 1e-6
    assert not np.any(on & ~allowed)
    assert np.max(np.abs(R.mean(axis=0))) < 1e-9  # intercepts are not penalised


def test_a_bound_and_a_cost_go_together():
    result = FREE(STATES, penalty=sim.L1(1e-3), state_cost=4.0, constraint=InfNorm(0.5))
    assert 0.45 < result.report.norm <= 0.5
    dear = FREE(STATES, penalty=sim.L1(1e-2), state_cost=10.0, constraint=InfNorm(0.5))
    cheap = FREE(STATES, penalty=sim.L1(1e-2), state_cost=0.1, constraint=InfNorm(0.5))
    assert dear.report.nonzeros["A"][0] < cheap.report.nonzeros["A"][0]


def test_without_intercepts():
    result = FREE(
        sim.collect_states(network(bias=False), U), penalty=sim.L1(1e-3), bias=False, refit_rounds=0
    )
    assert not result.model.bias
    states, p = (
        sim.collect_states(network(bias=False), U),
        {key: host(a) for key, a in result.model.params.items()},
    )
    residual = host(states.Z) - host(states.inputs) @ np.concatenate([p["A"], p["B"]], axis=1).T
    sizes = np.abs(p["A"]).sum(axis=1) + np.abs(p["B"]).sum(axis=1)
    np.testing.assert_allclose(
        result.report.states.objective, np.mean(residual**2, axis=0) / 2 + 1e-3 * sizes, rtol=1e-6
    )


def test_fitting_the_model_s_own_states_brings_the_outputs_closer():
    """A model that is held back drifts from the network's states.

    (C, D) is then fitted to where it is.
    """

    def miss(rounds):
        result = FREE(NET, U, penalty=sim.L1(1e-3), constraint=InfNorm(0.3), refit_rounds=rounds)
        error = np.mean((result.model.predict(U) - NET.predict(U)) ** 2, axis=0)
        return error, result

    before, _ = miss(0)
    once, result = miss(1)
    assert np.sum(once) < 0.7 * np.sum(before)
    np.testing.assert_allclose(
        result.report.outputs.unexplained, once / np.var(NET.predict(U), axis=0), rtol=1e-4
    )
    thrice, _ = miss(3)
    assert np.sum(thrice) < 1.05 * np.sum(once)


def test_relaxation_keeps_the_support_and_fits_better():
    strict = TRIANGULAR(STATES, penalty=sim.L1(0.05), refit_rounds=0)
    loose = TRIANGULAR(STATES, penalty=sim.L1(0.05), relaxed=sim.L1(1e-6), refit_rounds=0)
    for key in "ABCD":
        assert not np.any(getattr(loose.support, key) & ~getattr(strict.support, key))
    assert np.all(loss(loose.model, STATES) <= loss(strict.model, STATES) + 1e-12)
    assert loss(loose.model, STATES).sum() < 0.8 * loss(strict.model, STATES).sum()
    again = TRIANGULAR(STATES, penalty=sim.L1(0.05), relaxed=sim.L1(1e-6), refit_rounds=3)
    assert not np.any(again.support.A & ~strict.support.A)


# ----------------------------------------------------------------- where weights may be


def test_patterns():
    block = np.repeat([0, 1], WIDTHS)
    free = FREE(STATES, penalty=sim.L1(1e-4))
    assert np.any(np.diagonal(free.support.A))
    assert free.model.pattern is None
    loops = FREE(STATES, penalty=sim.L1(1e-4), pattern="no_self_loops")
    assert not np.any(np.diagonal(loops.support.A))
    assert np.array_equal(loops.model.pattern.A, ~np.eye(N, dtype=bool))
    layers = FREE(STATES, penalty=sim.L1(1e-4), pattern="block_triangular")
    assert not np.any(layers.support.A & ~(block[None, :] > block[:, None]))
    own = np.random.default_rng(0).random((N, N)) < 0.3
    assert not np.any(FREE(STATES, penalty=sim.L1(1e-4), pattern=own).support.A & ~own)
    whole = Pattern(
        B=np.arange(N * P).reshape(N, P) % 2 > 0, C=np.eye(Q, N) > 0, D=np.zeros((Q, P), bool)
    )
    found = FREE(STATES, penalty=sim.L1(1e-4), pattern=whole)
    for key in "BCD":
        assert not np.any(getattr(found.support, key) & ~getattr(whole, key))
    assert found.report.nonzeros["D"] == (0, Q * P)


def test_the_zeros_stay_in_further_training(tmp_path):
    result = sim.fit(NET, U, penalty=sim.L1(0.02), dtype="float32")
    model = result.model.replace(pattern=result.support)
    target = NET.predict(U)
    history = pyidl.fit(
        model, (U, target), loss=losses.mse, optimizer=optim.Adam(1e-3), epochs=5, rng=0, verbose=0
    )
    assert history["loss"][-1] < history["loss"][0]
    for key in "ABCD":
        assert not np.any(host(model.params[key])[~getattr(result.support, key)])
    pyidl.save(tmp_path / "sim.npz", model)
    assert np.array_equal(pyidl.load(tmp_path / "sim.npz").predict(NEW), model.predict(NEW))


# ------------------------------------------------------------------- penalties, solvers


@pytest.mark.parametrize(
    "penalty",
    [sim.NoPenalty(), sim.Ridge(1e-3), sim.ElasticNet(1e-2, 1e-3), sim.ReverseHuber(1e-4, 1e-2)],
    ids=lambda p: type(p).__name__,
)
def test_every_penalty(penalty):
    result = sim.fit(NET, U, penalty=penalty, solver=sim.ADMM(tol=1e-6, max_iter=20000))
    assert result.report.states.converged.all()
    assert result.report.outputs.converged.all()
    assert result.report.norm <= 0.99 * (1 + 1e-6)


def test_low_rank():
    result = sim.fit(NET, U, penalty=sim.Ridge(1e-4), solver=sim.ReducedRank(rank=3))
    assert result.model.rank == 3
    assert result.model.params["L"].shape == (N, 3)
    assert result.report.certificate.proven
    with pytest.raises(InputError, match="not sparse"):
        sim.fit(NET, U, penalty=sim.L1(1e-4), solver=sim.ReducedRank(rank=3))
    with pytest.raises(InputError, match="all rows together"):
        sim.fit(
            NET, U, penalty=sim.Ridge(1e-4), solver=sim.ReducedRank(rank=3), scheduler="threads"
        )


def test_least_squares_says_when_it_is_not_well_posed():
    with pytest.warns(WellPosednessWarning, match="not known to be well-posed"):
        result = sim.fit(
            NET, U, penalty=sim.NoPenalty(), solver=sim.LeastSquares(), constraint=InfNorm(0.2)
        )
    assert not result.report.states.converged.all()
    assert result.report.norm <= 0.2 * (1 + 1e-6)  # what it became by projection


def test_samples_without_a_fixed_point_are_dropped_and_counted(monkeypatch):
    solve, some = ImplicitModel.equilibrium, U[:, 0] > 1

    def failing(self, V, **more):
        solution = solve(self, V, **more)
        return dataclasses.replace(
            solution, status=np.where(some[: len(V)], int(Status.MAX_ITER), solution.status)
        )

    monkeypatch.setattr(ImplicitModel, "equilibrium", failing)
    with pytest.warns(
        ConvergenceWarning, match=f"fixed points of {some.sum()} of {M} samples were not found"
    ):
        result = FREE(NET, U, penalty=sim.L1(0.01))
    assert result.report.dropped == some.sum()
    assert f"{some.sum()} of them dropped" in str(result.report)
    monkeypatch.undo()
    X = result.model.equilibrium(U).value[~some]
    left = sim.Moments.of(np.concatenate([X, U[~some]], axis=1), NET.predict(U)[~some])
    np.testing.assert_allclose(
        result.report.outputs.objective,
        sim.ADMM(1e-9)(sim.RowProblem.of(left, sim.L1(0.01))).objective,
        rtol=1e-6,
    )
    some[:] = True
    monkeypatch.setattr(ImplicitModel, "equilibrium", failing)
    with pytest.raises(
        ConvergenceError, match="no fixed point of the model was found for 300 samples"
    ):
        FREE(NET, U, penalty=sim.L1(0.01))


# ----------------------------------------------------------- the same, however it comes


CHUNKS = {
    "batches": lambda: (U, {"batch_size": 70}),
    "a list of chunks": lambda: ([U[:100], U[100:130], U[130:]], {}),
    "chunks in batches": lambda: ((U[:100], U[100:]), {"batch_size": 33}),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_give_what_the_whole_gives(kind):
    whole = FREE(NET, U, penalty=sim.L1(0.01), refit_rounds=2)
    V, more = CHUNKS[kind]()
    parts = FREE(NET, V, penalty=sim.L1(0.01), refit_rounds=2, **more)
    for key, a in whole.model.params.items():
        assert_close(parts.model.params[key], a, rtol=1e-5, atol=1e-7)
    states = FREE(STATES, penalty=sim.L1(0.01), refit_rounds=2, batch_size=64)
    for key, a in whole.model.params.items():
        assert_close(states.model.params[key], a, rtol=1e-5, atol=1e-7)


WIDE = 50


def stored(tmp_path):
    """10,000 samples in a file, 4 MB."""
    V = np.random.default_rng(5).normal(size=(10_000, WIDE))
    np.save(tmp_path / "V.npy", V)
    return np.load(tmp_path / "V.npy", mmap_mode="r")


LARGE = {
    "a file": lambda net, V: (net, V),
    "an array": lambda net, V: (net, np.array(V)),
    "a list of one chunk": lambda net, V: (net, [V]),
    "states": lambda net, V: (sim.collect_states(net, V),),
    "float32": lambda net, V: (net.astype("float32"), V.astype("float32")),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_array_is_cut_by_itself(kind, tmp_path, monkeypatch):
    """The memory of a fit is that of a chunk, not of the data."""
    V = stored(tmp_path)
    net = Sequential(
        Linear(WIDE, 6, rng=0, dtype="float64"),
        activations.relu,
        Linear(6, Q, rng=1, dtype="float64"),
    )
    given = LARGE[kind](net, V)
    told = FREE(*given, penalty=sim.L1(0.01), batch_size=1000)
    monkeypatch.setattr(source, "ENTRIES", 2**15)
    tracemalloc.start()
    try:
        alone = FREE(*given, penalty=sim.L1(0.01))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < V.nbytes / 2
    for key, a in told.model.params.items():
        assert_close(alone.model.params[key], a, rtol=1e-5, atol=1e-7)


def test_an_iterator_is_read_once():
    whole = FREE(NET, U, penalty=sim.L1(0.01), refit_rounds=0)
    once = FREE(NET, iter([U[:100], U[100:]]), penalty=sim.L1(0.01), refit_rounds=0)
    for key, a in whole.model.params.items():
        assert_close(once.model.params[key], a, rtol=1e-5, atol=1e-8)
    with pytest.raises(InputError, match="refit_rounds=0"):
        sim.fit(NET, iter([U]))
    with pytest.raises(InputError, match="without chunks"):
        sim.fit(NET, iter([]), refit_rounds=0)


@pytest.mark.filterwarnings("ignore:Sending large graph")
def test_dask_gives_what_the_whole_gives():
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    whole = FREE(NET, U, penalty=sim.L1(0.01))
    parts = FREE(
        NET, array.from_array(U, chunks=(90, P)), penalty=sim.L1(0.01), scheduler="threads"
    )
    for key, a in whole.model.params.items():
        assert_close(parts.model.params[key], a, rtol=1e-5, atol=1e-7)
    assert "in 8 tasks" in parts.report.states.method


def test_samples_are_drawn():
    one, two = (sim.fit(NET, U, samples=100, rng=0) for _ in range(2))
    assert one.report.samples == 100
    assert all(np.array_equal(one.model.params[key], a) for key, a in two.model.params.items())
    other = sim.fit(NET, U, samples=100, rng=1)
    assert not np.array_equal(other.model.params["B"], one.model.params["B"])
    assert sim.fit(STATES, samples=100, rng=0).report.samples == 100


def test_on_every_library(xp):
    net = moved(NET, xp)
    here = FREE(NET, U, penalty=sim.L1(0.01))
    there = FREE(
        net, from_host(xp, U), penalty=sim.L1(0.01), pattern=from_host(xp, np.ones((N, N), bool))
    )
    for key, a in here.model.params.items():
        assert_close(there.model.params[key], a, rtol=1e-5, atol=1e-7, xp=xp)
    assert_close(
        there.model.predict(from_host(xp, NEW)),
        here.model.predict(NEW),
        rtol=1e-5,
        atol=1e-6,
        xp=xp,
    )


def test_an_implicit_model_is_learned_from_an_implicit_model():
    """Its own states fit it exactly; a sparser one comes close."""
    teacher = random_model(ImplicitModel, P, Q, 8, dtype="float64", constraint=InfNorm(0.8))
    exact = FREE(teacher, U, penalty=sim.Ridge(1e-5), constraint=InfNorm(0.8))
    assert_close(exact.model.predict(NEW), teacher.predict(NEW), rtol=2e-3, atol=2e-3)
    assert exact.report.states.unexplained.max() < 1e-6


def test_a_homogeneous_network_is_rescaled_first():
    """Its own weights then fit the bound and are the optimum.

    As the network has them, they do not, and are not.
    """
    exact = sim.exact_model(NET)
    scaled = pyidl.rescale(exact)
    kappa = 1.0 - 1e-3
    norm, scaled_norm = (
        float(np.max(np.sum(np.abs(host(model.params["A"])), axis=1))) for model in (exact, scaled)
    )
    assert scaled_norm <= kappa < norm
    settings = {
        "constraint": InfNorm(kappa),
        "pattern": "block_triangular",
        "penalty": sim.Ridge(1e-12),
    }
    before, after = (
        FREE(NET, U, **settings),
        FREE(scaled, U, **(settings | {"pattern": scaled.pattern})),
    )
    assert_close(after.model.predict(NEW), NET.predict(NEW), rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(before.model.predict(NEW) - NET.predict(NEW))) > 0.05


def test_a_perceptron_of_scikit_learn():
    neural = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    labels = (U[:, 0] * U[:, 1] > 0).astype(int)
    teacher = neural.MLPClassifier((8, 4), max_iter=300, tol=1e-2, random_state=0).fit(U, labels)
    result = TRIANGULAR(teacher, U, penalty=sim.Ridge(1e-10))
    agree = (result.model.predict(NEW)[:, 0] > 0) == teacher.predict(NEW)
    assert agree.all()


# ----------------------------------------------------------------------------- the path


def test_a_path_of_penalties():
    lams = [0.3, 0.1, 0.03, 0.01]

    def score(model):
        return -float(np.mean((model.predict(NEW) - NET.predict(NEW)) ** 2))

    found = sim.path(STATES, [sim.L1(lam) for lam in lams], score, fit=TRIANGULAR)
    assert len(found) == 4
    assert np.all(np.diff(found.densities) > 0)
    assert found.scores[-1] > found.scores[0]
    for lam, (penalty, result, value) in zip(lams, found, strict=True):
        assert penalty == sim.L1(lam)
        alone = TRIANGULAR(STATES, penalty=penalty)
        assert_close(result.model.params["A"], alone.model.params["A"], rtol=1e-4, atol=1e-5)
        assert value == pytest.approx(score(result.model))
    assert found.best() is found.results[-1]
    assert found.best(density=found.densities[1]) in found.results[:2]
    with pytest.raises(InputError, match="the sparsest model"):
        found.best(density=0.0)
    assert len(str(found).splitlines()) == 5
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ax = found.plot(reference=0.0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.scores)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), found.densities)
    assert all(label.get_text().endswith("%") for label in ax.get_xticklabels())
    assert found.plot(ax) is ax
    for drawn in (found.plot(), ax):
        check_figure(drawn.figure)
    with pytest.raises(InputError, match="at least one"):
        sim.path(STATES, [], score)


# ---------------------------------------------------------------------- degenerate data


DEGENERATE = {
    "dead units": lambda Z: np.where(np.arange(N) % 3 == 0, -1.0, Z),
    "constant units": lambda Z: np.where(np.arange(N) % 3 == 0, 2.0, Z),
    "duplicate samples": lambda Z: np.repeat(Z[:10], M // 10, axis=0),
    "duplicate units": lambda Z: np.where(np.arange(N) % 2 == 0, Z[:, :1], Z),
    "nothing but zeros": lambda Z: 0 * Z,
}


@pytest.mark.parametrize("m", [M, 5])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_states_have_an_answer(case, m):
    Z = DEGENERATE[case](np.random.default_rng(1).normal(size=(M, N)))[:m]
    states = sim.States(U=U[:m], Z=Z, X=np.maximum(Z, 0), Y=Z[:, :Q], activation=activations.relu)
    for penalty in (sim.L1(1e-3), sim.Ridge(1e-6)):
        result = sim.fit(states, penalty=penalty, solver=sim.ADMM(max_iter=20000))
        assert result.report.states.converged.all()
        assert all(np.all(np.isfinite(host(a))) for a in result.model.params.values())
        assert result.report.certificate.proven


BAD = {
    "no inputs": (lambda: sim.fit(NET), "U is missing"),
    "inputs twice": (lambda: sim.fit(STATES, U), "leave out U"),
    "an unknown network": (lambda: sim.fit("net", U), "no states can be read"),
    "NaN": (lambda: sim.fit(NET, np.where(U > 2, np.nan, U)), "finite"),
    "a wrong width": (lambda: sim.fit(NET, U[:, :3]), "shape"),
    "no samples": (lambda: sim.fit(NET, U[:0]), r"U has shape \(0, 6\)"),
    "too many samples": (lambda: sim.fit(NET, U, samples=M + 1), "draw from 1 to 300"),
    "samples of chunks": (lambda: sim.fit(NET, [U, U], samples=10), "comes in chunks"),
    "rounds": (lambda: sim.fit(NET, U, refit_rounds=-1), "refit_rounds is -1"),
    "a number for a penalty": (
        lambda: sim.fit(NET, U, penalty=0.1),
        "^penalty is 0.1; use a penalty of pyidl.sim",
    ),
    "no penalty": (lambda: sim.fit(NET, U, penalty=None), "^penalty is None"),
    "a number to relax": (lambda: sim.fit(NET, U, relaxed=0), "^relaxed is 0"),
    "a cost": (lambda: sim.fit(NET, U, state_cost=0.0), "state_cost is 0.0"),
    "a cost and whole rows": (
        lambda: sim.fit(NET, U, state_cost=2.0, whole_row=True),
        "use one of them",
    ),
    "whole rows without bound": (
        lambda: sim.fit(NET, U, constraint=Unconstrained(), whole_row=True),
        "has none",
    ),
    "a constraint on more than rows": (
        lambda: sim.fit(NET, U, constraint=MatrixMeasure(0.5)),
        "no condition on single rows",
    ),
    "weights": (
        lambda: sim.fit(NET, U, constraint=InfNorm(0.9, weights=(1.0,) * N)),
        "no condition on single rows",
    ),
    "a pattern's name": (lambda: sim.fit(NET, U, pattern="diagonal"), "pattern is 'diagonal'"),
    "a pattern's shape": (lambda: sim.fit(NET, U, pattern=np.ones((2, 2), bool)), "mask of A"),
    "a pattern's type": (lambda: sim.fit(NET, U, pattern=np.ones((N, N))), "mask of A"),
    "a pattern of B": (
        lambda: sim.fit(NET, U, pattern=Pattern(B=np.ones((2, 2), bool))),
        "pattern",
    ),
    "a dtype": (lambda: sim.fit(NET, U, dtype="float16"), "float16"),
    "a batch of none": (lambda: sim.fit(NET, U, batch_size=0), "batch_size is 0"),
    "a batch of no states": (lambda: sim.fit(STATES, batch_size=0), "batch_size is 0"),
}


HUGE = {
    "a network": lambda size: sim.fit(NET, size * U),
    "chunks": lambda size: sim.fit(NET, size * U, batch_size=70),
    "states": lambda size: sim.fit(sim.collect_states(NET, size * U)),
    "without intercepts": lambda size: sim.fit(NET, size * U, bias=False),
    "the sums": lambda size: sim.RowProblem.of(sim.Moments.of(size * U, U), sim.L1(1.0)),
    "sums of sums": lambda size: sim.RowProblem.of(
        sim.Moments.of(size + 0 * U, U) + sim.Moments.of(-size + 0 * U, U), sim.L1(1.0)
    ),
}


@pytest.mark.parametrize("case", HUGE)
def test_squares_that_overflow_are_refused_by_name(case):
    for size in (1e155, 1e160, 1e300):
        with pytest.raises(InputError, match="too large for float64; divide the data"):
            HUGE[case](size)
    HUGE[case](1.0)  # the unscaled twin is not


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    call, words = BAD[case]
    with pytest.raises(InputError, match=words):
        call()


def test_perron_frobenius_is_met_by_its_row_sums():
    result = sim.fit(NET, U, constraint=PerronFrobenius(0.8), penalty=sim.L1(1e-4))
    assert result.report.norm <= 0.8 * (1 + 1e-6)
    assert result.model.constraint == PerronFrobenius(0.8)
