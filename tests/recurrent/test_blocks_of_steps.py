"""Recurrences solved in blocks of steps, against one equilibrium after another."""

import numpy as np
import pytest
from helpers import assert_close, host, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import OPTIONS, M, N, Q, R, build, by_pyidl, inputs, oracle, problem, run

from pyidl import (
    Bidirectional,
    Dropout,
    ImplicitRNN,
    InfNorm,
    Pattern,
    Sequential,
    solvers,
    wellposed,
)
from pyidl.errors import ConvergenceError, ConvergenceWarning
from pyidl.recurrent import blocks, bptt
from pyidl.recurrent.blocks import FEW, SLOW, Plan

WAYS = {
    "step by step": Plan(steps=1000, rounds=40),
    "step by step, blocks of 3": Plan(steps=3, rounds=40),
    "too few rounds": Plan(steps=4, rounds=30),
    "jointly, one step": Plan(steps=1, rounds=40, joint=4),
    "jointly, 3 steps": Plan(steps=3, rounds=40, joint=4),
    "jointly, all": Plan(steps=1000, rounds=40, joint=2),
}
PICARD = {
    option: rest
    for option, rest in OPTIONS.items()
    if "forward" not in rest and option != "patterns"
}


@pytest.fixture
def by(monkeypatch):
    """Sweeps by a given plan; None solves one step after another."""

    def choose(plan):
        given = classmethod(lambda cls, m, n, rounds: plan)
        monkeypatch.setattr(Plan, "of", given)
        monkeypatch.setattr(bptt, "MANY", -1.0 if plan is None else np.inf)

    return choose


# ----------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("way", ["dense", "unrolled"])
@pytest.mark.parametrize("plan", WAYS)
@pytest.mark.parametrize("option", PICARD)
def test_every_way_against_gradients_by_hand(option, plan, way, by):
    by(WAYS[plan])
    model = build(option, seed=5)
    U, lengths, h0, G, mask, start = problem(model, 7, True, True)
    Y, found = by_pyidl(model, U, lengths, h0, G, np)
    assert_close(Y, run(model, U, mask, start)[0], rtol=1e-10, atol=1e-10)
    truth = oracle(model, U, mask, start, G, way)
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize("plan", ["jointly, 3 steps", "jointly, all"])
@pytest.mark.parametrize("option", ["default", "sequences", "no D", "tanh"])
@pytest.mark.parametrize("ragged", [False, True])
def test_hidden_states_step_after_step(option, plan, ragged, by, monkeypatch):
    """They are found by doubling where they are few: the other way, too."""
    by(WAYS[plan])
    monkeypatch.setattr(blocks, "SCAN", 0)
    model = build(option, seed=6)
    U, lengths, h0, G, mask, start = problem(model, 7, True, ragged)
    Y, found = by_pyidl(model, U, lengths, h0, G, np)
    assert_close(Y, run(model, U, mask, start)[0], rtol=1e-10, atol=1e-10)
    truth = oracle(model, U, mask, start, G, "dense")
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


def test_powers_that_grow_are_not_used(monkeypatch):
    """Doubling multiplies by D^32, which rounding would not survive if it is large."""
    model, U = recurrence(1.3, "float64", 2)
    seen = []
    powers = blocks._powers
    monkeypatch.setattr(blocks, "_powers", lambda *given: seen.append(powers(*given)) or seen[-1])
    model(U)
    recurrence(1.0, "float64", 2)[0](U)
    assert [bool(found) for found in seen] == [False, True]


@pytest.mark.parametrize("plan", ["step by step, blocks of 3", "jointly, 3 steps"])
@pytest.mark.parametrize("mask", ["holes", "nobody"])
def test_holes_and_h0_by_every_way(plan, mask, by):
    by(WAYS[plan])
    model = build("sequences", seed=2)
    U, _, h0, G, kept, start = problem(model, 8, True, False)
    kept[0, [1, 4]] = kept[2, [0, 5, 7]] = False
    if mask == "nobody":
        kept[:, [3, 7]] = False
    Y, found = by_pyidl(model, U, kept, h0, G, np)
    assert_close(Y, run(model, U, kept, start)[0], rtol=1e-10, atol=1e-10)
    truth = oracle(model, U, kept, start, G, "dense")
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize("plan", WAYS)
@pytest.mark.parametrize("option", ["default", "sequences"])
@pytest.mark.parametrize("ragged", [False, True])
def test_truncation_by_every_way(option, plan, ragged, by):
    model = build(option, truncate=3)
    U, lengths, h0, G, *_ = problem(model, 8, True, ragged)
    by(None)
    Y, truth = by_pyidl(model, U, lengths, h0, G, np)
    by(WAYS[plan])
    same, found = by_pyidl(model, U, lengths, h0, G, np)
    assert_close(same, Y, rtol=1e-10, atol=1e-10)
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


# ------------------------------------------------------------------- one after another


def recurrence(gain, dtype, m, *, slow=False, **more):
    """A network whose D_h is `gain` times orthogonal; and its input."""
    model = ImplicitRNN(1, 2, 12, 16, rng=3, dtype=dtype, **more)
    params = {key: a.astype(float) for key, a in model.params.items()}
    if "D" in params and params["D"].shape[1] > 1:
        params["D"][:, 1:] *= gain / 0.8
    if slow:
        A = np.abs(np.random.default_rng(1).normal(size=(16, 16)))
        params["A"] = 0.9 * A / A.sum(axis=1, keepdims=True)
    model.params = {key: a.astype(dtype) for key, a in params.items()}
    U = np.cumsum(np.random.default_rng(0).normal(size=(m, 40, 1)), axis=1)
    return model, (U / 6).astype(dtype)


NETWORKS = {
    "forgets": (0.5, {}),
    "remembers": (1.0, {}),
    "grows": (1.05, {}),
    "no D": (1.0, {"feedthrough": False}),
    "no A": (0.8, {"pattern": Pattern(A=np.zeros((16, 16), bool))}),
    "slow": (0.95, {"slow": True}),
    "every step": (0.8, {"return_sequences": True}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_are_one_step_after_another(network, m, dtype, by):
    gain, more = NETWORKS[network]
    model, U = recurrence(gain, dtype, m, **more)
    near = 2e-5 if dtype == "float32" else 2e-10
    by(None)
    Y, pull = model(U)
    G = np.random.default_rng(2).normal(size=Y.shape)
    dU, grads = pull(G)
    joint = 12 if network == "slow" else 4
    for plan in (Plan(1, 200), Plan(7, 200), Plan(7, 200, joint), Plan(40, 200, joint)):
        by(plan)
        same, pull = model(U)
        assert "Picard, " in pull.forward.method
        assert relative(same, Y) < near
        du, found = pull(G)
        assert pull.solve(G).all_converged
        assert relative(du, dU) < near
        for key in grads:
            assert relative(found[key], grads[key]) < near, (key, plan)


@pytest.mark.parametrize("plan", WAYS)
def test_reported_residuals_are_those_of_what_is_returned(plan, by):
    by(WAYS[plan])
    model = build("sequences", dtype="float32")
    _, pull = model(inputs(9), h0=np.ones((M, R)))
    p = {key: host(a).astype(float) for key, a in model.params.items()}
    H = host(pull.hidden).astype(float)
    before = np.concatenate([np.ones((M, 1, R)), H[:, :-1]], axis=1)
    both = np.concatenate([inputs(9), before], axis=2)
    X = pull.forward.value.reshape(9, M, N).transpose(1, 0, 2).astype(float)
    image = np.maximum(X @ p["A"].T + both @ p["B"].T + p["b"], 0.0)
    residual = np.abs(image - X).max(axis=2).T.ravel()
    assert np.all(np.abs(residual - pull.forward.residual) < 1e-6)
    assert np.all(pull.forward.residual <= pull.forward.tolerance)
    assert_close(H, X @ p["C"].T + both @ p["D"].T + p["d"], rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------- the choice of way


def test_the_plan_follows_from_sizes_and_rounds():
    """Its borders: few numbers in a step, slow steps, blocks that fill the cache."""
    side = int(FEW**0.5)
    assert Plan.of(side, side, 10.0).joint
    assert not Plan.of(side + 1, side, 10.0).joint
    assert Plan.of(side + 1, side, SLOW + 1.0).joint
    assert not Plan.of(2 * side + 1, 2 * side, SLOW + 1.0).joint
    for m, n in ((1, 1), (3, 50), (1000, 40), (10**6, 10)):
        plan = Plan.of(m, n, 7.2)
        assert plan.steps == 1 or plan.steps * m * n <= blocks.CACHED
        assert plan.rounds == 9


def test_what_blocks_are_for_and_what_not():
    _, pull = build("default")(inputs())
    assert pull.forward.method == "Picard, 64 steps at once"
    for option in ("cold, other solvers", "diagonal taken implicitly", "patterns"):
        _, pull = build(option)(inputs())
        assert "Picard, " not in pull.forward.method
    for solver in (solvers.Picard(damping=0.1), solvers.Picard(max_iter=40), solvers.Anderson()):
        _, pull = build("default", forward=solver)(inputs())
        assert "Picard, " not in pull.forward.method


def test_a_solver_made_of_picard_is_asked():
    """What is not Picard itself may do anything, and is not replaced by plain steps."""
    asked = []

    class Counting(solvers.Picard):
        def __call__(self, problem, x0=None, *, trace=False):
            asked.append(problem.like.shape[0])
            return super().__call__(problem, x0, trace=trace)

    model = build("default", forward=Counting(), adjoint=Counting())
    Y, pull = model(inputs(5))
    assert asked == 5 * [M]
    pull(np.ones_like(Y))
    assert asked == 10 * [M]


def test_without_feedback_a_round_is_enough():
    model = build("no feedback")
    _, pull = model(inputs())
    assert pull.forward.n_iter.max() == 1
    assert pull.solve(np.ones((M, Q))).n_iter.max() == 1


@settings(max_examples=20)
@given(st.integers(0, 100))
def test_the_same_alone_in_a_batch_and_step_by_step(seed):
    """Within what tolerance and gain through time allow, and with the same status."""
    rng = np.random.default_rng(seed)
    model = build("sequences", seed=seed, dtype="float32")
    U = (inputs(12, m=40, seed=seed) * rng.uniform(0.1, 3, (40, 1, 1))).astype("float32")
    Y, pull = model(U)
    rho = pull.forward.residual.reshape(12, 40).T
    bound = 2.0 * model.recurrence().errors(np.maximum(rho, pull.forward.tolerance.max())) + 1e-5
    for i in (0, 7, 39):
        alone, own = model(U[i : i + 1])
        assert np.all(np.abs(alone[0] - Y[i]).max(axis=1) <= bound[i])
        assert own.converged.all()
        cell, state = model.cell, None
        for t in range(12):
            y, state = cell.step(U[i : i + 1, t], state)
            assert np.abs(y[0] - Y[i, t]).max() <= bound[i, t]


# ------------------------------------------------------------------------------ failures


def runaway(**more):
    """A network of one active unit that expands, where another stays silent.

    The spectral radius of A is 0.67, but ``x_1 = relu(1.2 x_1 + u)`` while x_2 = 0.
    """
    model = ImplicitRNN(
        1, 1, 2, 2, rng=0, constraint=wellposed.Unconstrained(), bias=False,
        return_sequences=True, dtype="float64", **more,
    )  # fmt: skip
    model.params = {
        **model.params,
        "A": np.array([[1.2, 1.5], [-1.5, -1.5]]),
        "B": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        "C": np.eye(2),
        "D": np.zeros((2, 3)),
    }
    U = np.zeros((4, 6, 1))
    U[1, 4] = U[3, 2] = 1.0
    return model, U


def test_a_sequence_that_fails_is_named_and_leaves_the_others_alone():
    model, U = runaway()
    with pytest.raises(
        ConvergenceError, match="at time step 2, the forward solve of 1 of"
    ) as error:
        model(U)
    assert error.value.converged.tolist() == [True, True, True, False]
    with pytest.warns(ConvergenceWarning, match="of 24 samples"):
        model(U, on_fail="warn")
    Y, pull = model(U, on_fail="ignore")
    assert pull.converged.tolist() == [True, False, True, False]
    failed = ~pull.forward.converged.reshape(6, 4).T
    for i in range(4):
        alone, own = model(U[i : i + 1], on_fail="ignore")
        assert np.array_equal(~own.forward.converged, failed[i])
        first = np.argmax(failed[i]) if failed[i].any() else 6
        assert_close(alone[0, :first], Y[i, :first], rtol=1e-10, atol=1e-10)


def test_a_mask_keeps_the_names_of_steps():
    model, U = runaway()
    mask = np.ones((4, 6), bool)
    mask[3, [0, 1]] = False  # its step 2 is the first in which it takes part
    with pytest.raises(ConvergenceError, match="at time step 2") as error:
        model(U, mask)
    assert error.value.converged.tolist() == [True, True, True, False]


def test_one_slow_sample_in_a_batch():
    """Its rows ask for more sweeps; the others get the same answer as without it."""
    model, U = recurrence(0.9, "float64", 6, slow=True, return_sequences=True)
    U[:5] = -np.abs(U[:5])  # mostly silent units
    Y, pull = model(U)
    assert pull.converged.all()
    without, _ = model(U[:5])
    assert_close(Y[:5], without, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------- cotangents, devices


def test_cotangents_that_underflow():
    """0.5^150 is no number of float32; what is left of it is no error."""
    model, _ = recurrence(0.5, "float32", 4, slow=False)
    U = np.random.default_rng(0).normal(size=(4, 200, 1)).astype("float32")
    _, pull = model(U)
    for scale in (1.0, 1e-30):
        dU, _ = pull(np.full((4, 2), scale))
        assert np.isfinite(dU).all()
        assert pull.solve(np.full((4, 2), scale)).all_converged
    exact, _ = recurrence(0.5, "float64", 4)
    _, truth = exact(U.astype(float))[1](np.ones((4, 2)))
    for key, gradient in pull(np.ones((4, 2)))[1].items():
        assert relative(gradient, truth[key]) < 1e-4, key


@pytest.mark.parametrize("plan", ["step by step, blocks of 3", "jointly, 3 steps"])
@pytest.mark.parametrize("option", ["default", "sequences", "rank 2"])
def test_every_way_on_every_library(option, plan, xp, by):
    by(WAYS[plan])
    model = build(option)
    U, lengths, h0, G, mask, start = problem(model, 5, True, True)
    _, found = by_pyidl(model, U, lengths, h0, G, xp)
    truth = oracle(model, U, mask, start, G, "dense")
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize("phase", [13, 40])
def test_cotangents_that_decay_and_grow_again(phase):
    """By 0.1 a step in the later half, by 10.1 in the earlier one.

    One unit is active as long as the input is positive, the other always.
    """
    model = ImplicitRNN(
        1, 1, 1, 2, rng=0, dtype="float64", bias=False, feedthrough=False, constraint=InfNorm(0.5)
    )
    model.params = {
        "A": np.diag([0.3, 0.3]),
        "B": np.array([[1.0, 10 * 0.7], [-1e-3, 0.1 * 0.7]]),
        "C": np.ones((1, 2)),
        "E": np.ones((1, 1)),
    }
    U = np.repeat([1.0, -(10.0 ** (3 * phase))], phase)[None, :, None]
    _, pull = model(U, h0=np.ones((1, 1)))
    assert "Picard, " in pull.forward.method
    (_, dh0), _ = pull(np.ones((1, 1)))
    assert abs(dh0[0, 0] / 1.01**phase - 1.0) < 1e-4


@pytest.mark.parametrize("plan", ["step by step, blocks of 3", "jointly, 3 steps"])
def test_stacked_in_both_directions_with_dropout_between(plan, by):
    """The same as with steps one after another, forward and back."""
    ahead, back = (build("sequences", seed=seed) for seed in (1, 2))
    last = ImplicitRNN(2 * Q, Q, R, N, rng=0, dtype="float64", pool="mean")
    model = Sequential(Bidirectional(ahead, back), Dropout(0.3), last).with_tol(1e-13)
    U, lengths, *_ = problem(ahead, 8, False, True)
    G = np.random.default_rng(0).normal(size=(M, Q))
    answers = []
    for way in (None, WAYS[plan]):
        by(way)
        Y, pull = model(U, lengths, rng=5)
        (dU, _), grads = pull(G)
        answers.append({"Y": Y, "dU": dU, **grads})
    for key, expected in answers[0].items():
        assert relative(answers[1][key], expected) < 1e-9, key
