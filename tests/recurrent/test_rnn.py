"""The implicit RNN.

Three oracles for its gradients through time, and what it promises about time, memory
and errors.
"""

import copy
import pickle
import sys
import tracemalloc
import warnings
from itertools import pairwise

import array_api_strict
import numpy as np
import pytest
import stand_in
from helpers import assert_close, host, moved, random_model, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import (
    OPTIONS,
    M,
    N,
    P,
    Q,
    R,
    build,
    by_pyidl,
    inputs,
    oracle,
    parts,
    problem,
    run,
)

import pyidl
from pyidl import (
    ImplicitModel,
    ImplicitRNN,
    InfNorm,
    Linear,
    Pattern,
    Sequential,
    losses,
    optim,
    solvers,
)
from pyidl.activations import Activation
from pyidl.arrays.backend import from_host
from pyidl.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DeviceMismatchError,
    GradientConvergenceError,
    GradientConvergenceWarning,
    InputError,
)
from pyidl.testing import check_pullback

CASES = [(1, False, False), (2, True, False), (7, False, True), (7, True, True)]


@pytest.mark.parametrize("way", ["dense", "unrolled"])
@pytest.mark.parametrize(("T", "with_h0", "ragged"), CASES)
@pytest.mark.parametrize("option", OPTIONS)
def test_against_gradients_by_hand(option, T, with_h0, ragged, way):
    model = build(option, seed=T)
    U, lengths, h0, G, mask, start = problem(model, T, with_h0, ragged)
    Y, found = by_pyidl(model, U, lengths, h0, G, np)
    expected, *_ = run(model, U, mask, start)
    assert_close(Y, expected, rtol=1e-10, atol=1e-10)
    truth = oracle(model, U, mask, start, G, way)
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize(
    "option", ["default", "sequences", "mean", "max", "rank 2", "no feedback", "patterns"]
)
def test_on_every_library(option, xp):
    model = build(option)
    U, lengths, h0, G, mask, start = problem(model, 5, True, True)
    Y, found = by_pyidl(model, U, lengths, h0, G, xp)
    assert_close(Y, run(model, U, mask, start)[0], rtol=1e-10, atol=1e-10, xp=xp)
    truth = oracle(model, U, mask, start, G, "dense")
    for key, gradient in found.items():
        assert relative(gradient, truth[key]) < 1e-9, key


@pytest.mark.parametrize(
    ("option", "T"),
    [*((option, 2) for option in OPTIONS), ("default", 1), ("default", 7), ("sequences", 7)],
)
def test_against_central_differences(option, T):
    report = check_pullback(build(option, seed=3), inputs(T, m=2), rng=1)
    assert report.max_error < 1e-6
    assert "U" in report.errors


@pytest.mark.parametrize("option", ["default", "sequences", "mean", "max"])
def test_central_differences_with_lengths_and_h0(option):
    model = build(option, seed=2).with_tol(1e-14)
    U, lengths, h0, G, *_ = problem(model, 7, True, True)
    _, pull = model(U, lengths, h0)
    (dU, _, dh0), grads = pull(G)
    rng = np.random.default_rng(0)
    for key, point, gradient in [
        ("U", U, dU),
        ("h0", h0, dh0),
        *((k, model.params[k], g) for k, g in grads.items()),
    ]:
        direction = rng.normal(size=point.shape)

        def at(t):
            if key == "U":
                return np.sum(G * model.predict(U + t * direction, lengths, h0))
            if key == "h0":
                return np.sum(G * model.predict(U, lengths, h0 + t * direction))
            twin = model.replace()
            twin.params = {**model.params, key: point + t * direction}
            return np.sum(G * twin.predict(U, lengths, h0))

        measured = (at(1e-6) - at(-1e-6)) / 2e-6
        assert abs(measured - np.sum(gradient * direction)) < 1e-6 * np.linalg.norm(
            gradient
        ) * np.linalg.norm(direction), key


def test_the_oracles_see_a_missing_term(monkeypatch):
    """The twin that is broken on purpose.

    Without the way through D, and without that through B, a gradient is wrong.
    """
    model = build()
    U, lengths, h0, G, mask, start = problem(model, 7, True, True)
    truth = oracle(model, U, mask, start, G, "dense")
    for name in ("dh", "bh"):
        broken = model.replace()
        step = broken.__dict__["_step"]
        _, pull = broken.with_tol(1e-14)(U, lengths, h0)
        object.__setattr__(pull, "step", copy.copy(step))
        object.__setattr__(pull.step, name, type(step.dh)(0.0 * getattr(step, name).A))
        (dU, _, dh0), grads = pull(G)
        assert relative(dU, truth["U"]) > 1e-3
        assert relative(dh0, truth["h0"]) > 1e-3
        assert relative(grads["B"], truth["B"]) > 1e-3


# ------------------------------------------------------------------------- one and many


@pytest.mark.parametrize("option", ["default", "no D", "D on the input", "rank 2", "no bias"])
def test_one_step_is_an_implicit_model(option):
    rnn = build(option)
    _, B, C, D, b, d, E, e = parts(rnn)
    model = ImplicitModel(P, Q, N, dtype="float64", rng=0, rank=rnn.rank)
    weights = {key: rnn.params[key] for key in ("A", "L", "R") if key in rnn.params}
    model.params = {
        **weights,
        "B": B[:, :P],
        "C": E @ C,
        "D": E @ D[:, :P],
        "b": b + np.zeros(N),
        "d": E @ (d + np.zeros(R)) + e,
    }
    U, G = inputs(1), np.random.default_rng(0).normal(size=(M, Q))
    rnn, model = rnn.with_tol(1e-14), model.with_tol(1e-14)
    (Y, pull), (expected, reference) = rnn(U), model(U[:, 0])
    assert_close(Y[:, 0] if rnn.return_sequences else Y, expected, rtol=1e-12, atol=1e-12)
    dU, grads = pull(G[:, None] if rnn.return_sequences else G)
    dV, truth = reference(G)
    assert relative(dU[:, 0], dV) < 1e-11
    for key in weights:
        assert relative(grads[key], truth[key]) < 1e-11
    assert relative(grads["B"][:, :P], truth["B"]) < 1e-11
    assert not np.any(grads["B"][:, P:])


@settings(max_examples=15)
@given(st.integers(0, 30), st.booleans(), st.sampled_from([0.5, 0.95]))
def test_a_batch_equals_its_samples(seed, sequences, kappa):
    rng = np.random.default_rng(seed)
    model = build(
        seed=seed, return_sequences=sequences, constraint=InfNorm(kappa), feedthrough="input"
    ).with_tol(1e-13)
    U, lengths, h0 = (
        inputs(6, m=5, seed=seed) * rng.uniform(0.1, 3, (5, 1, 1)),
        rng.integers(1, 7, 5),
        rng.normal(size=(5, R)),
    )
    Y, pull = model(U, lengths, h0)
    G = rng.normal(size=Y.shape)
    (dU, _, dh0), grads = pull(G)
    total = {key: np.zeros_like(g) for key, g in grads.items()}
    for i in rng.permutation(5):
        one = slice(i, i + 1)
        alone, pull_one = model(U[one, : lengths[i]], None, h0[one])
        assert_close(alone, Y[one, : lengths[i]] if sequences else Y[one], rtol=1e-8, atol=1e-8)
        # Y stays what it was: so do its cotangents
        extra = G[one, lengths[i] :].sum(axis=1, keepdims=True) if sequences else 0.0
        cotangent = (
            np.concatenate(
                [G[one, : lengths[i] - 1], G[one, lengths[i] - 1 : lengths[i]] + extra], axis=1
            )
            if sequences
            else G[one]
        )
        (du, dh), own = pull_one(cotangent)
        assert relative(du, dU[one, : lengths[i]]) < 1e-7
        assert relative(dh, dh0[one]) < 1e-7
        assert not np.any(dU[i, lengths[i] :])
        total = {key: total[key] + own[key] for key in total}
    for key in grads:
        assert relative(total[key], grads[key]) < 1e-7, key


def test_what_is_padded_does_not_matter():
    model, U, lengths = build(return_sequences=True), inputs(6), np.array([6, 1, 3, 2])
    Y, pull = model(U, lengths)
    noisy = np.where(np.arange(6)[:, None] < lengths[:, None, None], U, 1e6)
    assert_close(model(noisy, lengths)[0], Y, rtol=0)
    assert_close(Y[1], np.repeat(Y[1, :1], 6, axis=0), rtol=0)
    mask = np.arange(6) < lengths[:, None]
    assert_close(model(U, mask)[0], Y, rtol=0)
    assert len(pull.forward.status) == lengths.sum()
    full, _ = model(U, np.full(M, 6))
    assert_close(full, model(U)[0], rtol=0)


def test_a_mask_may_have_holes():
    model = build(return_sequences=True).with_tol(1e-14)
    U, mask, rng = inputs(6), np.ones((M, 6), bool), np.random.default_rng(0)
    mask[0, [1, 4]] = mask[2, [0, 5]] = False
    Y, pull = model(U, mask)
    G = rng.normal(size=Y.shape)
    (dU, _), grads = pull(G)
    truth = oracle(model, U, mask, np.zeros((M, R)), G, "dense")
    for key, gradient in {"U": dU, **grads}.items():
        assert relative(gradient, truth[key]) < 1e-9, key
    kept = U[:1, mask[0]]
    assert_close(model(kept)[0], Y[:1, mask[0]], rtol=1e-9, atol=1e-9)


def test_a_step_in_which_nobody_takes_part():
    """Its output is that of the step before.

    And so its cotangent counts there: in the end for H_0.
    """
    model, U, rng = build("sequences").with_tol(1e-14), inputs(6), np.random.default_rng(0)
    mask, kept, h0 = np.ones((M, 6), bool), [1, 2, 4, 5], rng.normal(size=(M, R))
    mask[:, [0, 3]] = False
    Y, pull = model(U, mask, h0)
    alone, pull_alone = model(U[:, kept], None, h0)
    assert np.array_equal(Y[:, kept], alone)
    G = rng.normal(size=Y.shape)
    moved_on = G[:, kept] + G[:, [3, 3, 3, 3]] * (np.arange(4) == 1)[:, None]
    (dU, _, dh0), grads = pull(G)
    (truth, dh0_alone), expected = pull_alone(moved_on)
    assert relative(dU[:, kept], truth) < 1e-12
    assert relative(dh0, dh0_alone + G[:, 0] @ model.params["E"]) < 1e-12
    for key in "ABCDbd":
        assert relative(grads[key], expected[key]) < 1e-12


def test_step_by_step_is_the_whole(xp):
    model = moved(build(return_sequences=True), xp)
    U = from_host(xp, inputs(9))
    Y, _ = model(U)
    cell, state = model.cell, None
    for t in range(9):
        y, state = cell.step(U[:, t, ...], state)
        assert_close(host(y), host(Y)[:, t], rtol=1e-9, atol=1e-9)
    ys = [y for y, _ in cell.stream(U[:, t, ...] for t in range(9))]
    assert_close(host(ys[-1]), host(Y)[:, -1], rtol=1e-9, atol=1e-9)
    h = state.h
    assert_close(
        host(cell.step(U[:, 0, ...], h)[0]),
        host(model(U[:, :1, ...], None, h)[0])[:, 0],
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_cell_keeps_the_parameters_of_its_moment():
    model = build()
    cell, u = model.cell, inputs(1)[:, 0]
    before = cell.step(u)[0]
    model.params = {key: 0 * a for key, a in model.params.items()}
    assert np.array_equal(cell.step(u)[0], before)
    assert not np.any(model.cell.step(u)[0])
    assert repr(cell) == "ImplicitRNNCell(3 inputs, 5 hidden, 8 implicit, 2 outputs)"


@pytest.mark.parametrize("sequences", [False, True])
def test_warm_starts_save_steps_and_change_nothing_else(sequences):
    model = ImplicitRNN(
        1, 1, 12, 20, rng=0, return_sequences=sequences, dtype="float64", constraint=InfNorm(0.9)
    )
    model.params = model.project({**model.params, "A": 8 * model.params["A"]})
    U = np.lib.stride_tricks.sliding_window_view(np.sin(np.linspace(0, 12, 120)), 60)[::4, :, None]
    G = np.ones((15, 60, 1) if sequences else (15, 1)) + np.linspace(0, 1, 15).reshape(
        (15, 1, 1) if sequences else (15, 1)
    )
    for tol, apart in ((1e-5, 1e-3), (1e-14, 1e-11)):
        (Y, warm), (expected, cold) = (
            model.replace(warm_start=start).with_tol(tol)(U[:15]) for start in (True, False)
        )
        assert_close(Y, expected, rtol=0, atol=apart)
        one, two = warm(G), cold(G)
        assert relative(one[0], two[0]) < apart
        for key in one[1]:
            assert relative(one[1][key], two[1][key]) < apart
    # where steps are solved one after another, and each is watched
    stepwise = solvers.Picard(tol=1e-5, damping=0.01)
    pulls = [
        model.replace(warm_start=start, forward=stepwise, adjoint=stepwise)(U[:15])[1]
        for start in (True, False)
    ]
    warm_steps, cold_steps = (pull.forward.n_iter.mean() for pull in pulls)
    assert warm_steps < 0.8 * cold_steps
    warm_steps, cold_steps = (pull.solve(G).n_iter.mean() for pull in pulls)
    assert warm_steps <= (0.9 if sequences else 1.0) * cold_steps


@given(st.integers(-8, 8), st.integers(0, 5))
def test_the_pullback_is_homogeneous(exponent, seed):
    model = build(seed=seed, return_sequences=True)
    _, pull = model(inputs(5))
    G, c = np.random.default_rng(seed).normal(size=(M, 5, Q)), 10.0**exponent
    (dU, grads), (dU_c, grads_c) = pull(G), pull(c * G)
    assert relative(dU_c / c, dU) < 1e-9
    for key in grads:
        assert relative(grads_c[key] / c, grads[key]) < 1e-9


def test_cotangents_of_very_different_sizes():
    """A warm start is not scaled from the smallest to the largest of them.

    That would leave the range of float32.
    """
    model = build(dtype="float32", return_sequences=True)
    G = np.ones((M, 4, Q)) * np.array([1e12, 1e12, 1e12, 1e-36])[:, None]
    warm, cold = (model.replace(warm_start=start)(inputs(4))[1](G)[1] for start in (True, False))
    for key in warm:
        assert relative(warm[key], cold[key]) < 1e-4


def test_zero_cotangents_give_exact_zeros():
    model = build("no D", return_sequences=True)
    # no way back through time
    model.params = {
        **model.params,
        "B": model.params["B"] * np.repeat([1.0, 0.0], [P, R]),
    }
    _, pull = model(inputs(6))
    G = np.zeros((M, 6, Q))
    G[:, 3] = 1.0
    dU, _ = pull(G)
    assert dU[:, 3].any()
    assert not np.any(np.delete(dU, 3, axis=1))
    assert not any(np.any(g) for g in pull(0 * G)[1].values())


# ----------------------------------------------------------- truncation, long sequences


def test_truncation_cuts_where_it_says():
    """Truncated, the gradient is that of a network whose h0 at the cut is constant."""
    model, U = build().with_tol(1e-14), inputs(7)
    G = np.random.default_rng(0).normal(size=(M, Q))
    _, full = model(U)
    for k in (7, 8, 100):
        (dU, grads), (truth, expected) = model.replace(truncate=k)(U)[1](G), full(G)
        assert np.array_equal(dU, truth)
        assert all(np.array_equal(grads[key], expected[key]) for key in grads)
    _, pull = model.replace(truncate=3)(U)
    assert len(pull.solve(G).status) == 3 * M  # the other steps are not visited
    dU, grads = pull(G)
    truth, expected = model(U[:, 4:], None, full.hidden[:, 3])[1](G)
    assert not np.any(dU[:, :4])
    assert relative(dU[:, 4:], truth[0]) < 1e-10
    assert all(relative(grads[key], expected[key]) < 1e-10 for key in grads)


def test_truncation_with_sequences_and_lengths():
    """Every sample is cut from its own end; each piece has its own outputs."""
    model, U = build(return_sequences=True).with_tol(1e-14), inputs(7)
    lengths, rng = np.array([7, 4, 1, 6]), np.random.default_rng(0)
    Y, full = model(U, lengths)
    G = rng.normal(size=Y.shape) * (np.arange(7) < lengths[:, None])[:, :, None]
    (dU, _, dh0), grads = model.replace(truncate=3)(U, lengths, np.zeros((M, R)))[1](G)
    total = {key: np.zeros_like(g) for key, g in grads.items()}
    for i in range(M):
        cuts = [0, *range(lengths[i] % 3 or 3, lengths[i], 3), lengths[i]]
        for a, b in pairwise(cuts):
            h = np.zeros((1, R)) if a == 0 else full.hidden[i : i + 1, a - 1]
            (du, dh), own = model(U[i : i + 1, a:b], None, h)[1](G[i : i + 1, a:b])
            assert relative(dU[i : i + 1, a:b], du) < 1e-9
            assert a or relative(dh0[i : i + 1], dh) < 1e-9
            total = {key: total[key] + own[key] for key in total}
    for key in grads:
        assert relative(grads[key], total[key]) < 1e-9, key


def test_what_truncation_loses_is_bounded():
    model = build("no D", constraint=InfNorm(0.3)).with_tol(1e-14)
    model.params = {**model.params, "C": 0.03 * model.params["C"]}
    bound, U, G = model.recurrence(), inputs(12), np.ones((M, Q))
    _, pull = model(U, None, np.zeros((M, R)))
    for k in (1, 4, 12):
        (_, dh0), _ = model(
            U[:, 12 - k :], None, pull.hidden[:, 11 - k] if k < 12 else np.zeros((M, R))
        )[1](G)
        assert (
            np.abs(dh0).sum(axis=1).max()
            <= bound.memory(k) * np.abs(G @ model.params["E"]).sum(axis=1).max()
        )
    assert bound.memory(12) < 0.01 * bound.memory(1)


@pytest.mark.parametrize("feedthrough", [True, "input"])
def test_a_thousand_steps_stay_finite(feedthrough):
    for seed in range(2):
        model = ImplicitRNN(P, Q, R, N, rng=seed, feedthrough=feedthrough)
        U = inputs(1000, m=2, seed=seed)
        Y, pull = model(U)
        dU, grads = pull(np.ones_like(Y))
        assert np.all(np.isfinite(dU))
        assert all(np.all(np.isfinite(g)) for g in grads.values())
        assert np.abs(Y).max() < 100


def test_memory_is_linear_in_time_with_a_small_constant():
    model, m = ImplicitRNN(1, 1, 16, 16, rng=0), 64
    kept, peak = [], []
    for T in (100, 200, 400):
        U = np.zeros((m, T, 1), np.float32) + np.linspace(0, 1, T, dtype=np.float32)[:, None]
        tracemalloc.start()
        Y, pull = model(U)
        kept.append(tracemalloc.get_traced_memory()[0])
        pull(np.ones_like(Y), inputs=False)
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    unit = m * 16 * 4  # bytes of one state
    assert (kept[2] - kept[1]) / (200 * unit) < 2.6  # Z, H, and the book of the solves
    assert (peak[2] - peak[1]) / (200 * unit) < 9  # and back: V, G, X, [U, H]
    assert kept[2] - kept[1] < 2.1 * (kept[1] - kept[0])
    assert peak[2] - peak[1] < 2.1 * (peak[1] - peak[0])


# ---------------------------------------------------------------------- the certificate


def perturbed(model, U, h0, rho, rng):
    """The recurrence in NumPy with an error in every step.

    x_t is solved for a right-hand side that is off by rho, of random signs.
    """
    A, B, C, D, b, d, E, e = parts(model)
    phi, h, Y = model.activation.phi, h0, []
    for t in range(U.shape[1]):
        both = np.concatenate([U[:, t], h], axis=1)
        x, off = np.zeros((len(U), N)), rho[:, t, None] * rng.choice([-1.0, 1.0], (len(U), N))
        for _ in range(200):
            # so that phi(...) - x = -off: the residual is rho in every entry
            x = phi(x @ A.T + both @ B.T + b) + off
        h = x @ C.T + both @ D.T + d
        Y.append(h @ E.T + e)
    return np.stack(Y, axis=1)


@given(
    st.integers(0, 10**6),
    st.sampled_from(["default", "no D", "D on the input", "tanh", "rank 2", "blocks"]),
    st.sampled_from([0.3, 0.9]),
)
def test_no_error_is_larger_than_the_bound(seed, option, kappa):
    rng = np.random.default_rng(seed)
    model = build(option, seed=seed % 1000, constraint=InfNorm(kappa))
    bound = model.recurrence()
    assert bound.proven
    U, h0 = inputs(6, seed=seed), rng.normal(size=(M, R))
    rho, shift = (
        1e-3 * rng.uniform(0, 1, (M, 6)) * rng.integers(0, 2, (M, 6)),
        1e-3 * rng.integers(0, 2),
    )
    exact = perturbed(model, U, h0, 0 * rho, rng)
    moved_by = perturbed(model, U, h0 + shift * rng.choice([-1.0, 1.0], h0.shape), rho, rng)
    limit = bound.errors(rho, h0=shift)
    assert np.all(np.abs(moved_by - exact).max(axis=2) <= limit + 1e-11)


@pytest.mark.parametrize("option", ["no D", "default"])
def test_the_bound_is_attained_and_a_smaller_one_is_not_a_bound(option):
    """With nonnegative parameters and inputs nothing cancels.

    Then the error is the bound, up to rounding; also where D_h has the largest part in
    it.
    """
    model, U = nonnegative(option), np.abs(inputs(6))
    bound = model.recurrence()
    rho = np.full((M, 6), 1e-3)

    class Up:
        def choice(self, signs, shape):
            return np.ones(shape)

    error = np.abs(
        perturbed(model, U, np.zeros((M, R)), rho, Up())
        - perturbed(model, U, np.zeros((M, R)), 0 * rho, Up())
    ).max(axis=2)
    limit = bound.errors(rho)
    assert np.all(error <= limit)
    assert np.all(error > 0.999 * limit)
    assert bound.amplification(6) == pytest.approx(limit[0, -1] / 1e-3, rel=1e-9)
    # Broken on purpose: without the feedback through A, the "bound" is exceeded.
    blind = type(bound)(bound.step, True, "", *_without_feedback(model), bound.E)
    assert np.any(error > blind.errors(rho))


def nonnegative(option="no D"):
    model = build(option, constraint=InfNorm(0.8))
    positive = {key: np.abs(a) for key, a in model.params.items()}
    positive["C"] = 0.05 * positive["C"]
    if "D" in positive:
        positive["D"][:, P:] = 0.9 * np.eye(R)[::-1]
    model.params = model.project(positive)
    return model


def _without_feedback(model):
    _, B, C, *_ = parts(model)
    return np.abs(C) @ np.abs(B[:, P:]), np.abs(C).sum(axis=1)


def test_row_sums_are_never_better():
    """The well-known bound by row sums is at least that of the entries.

    It is ``(|C| k_B / (1 - kappa) + |D_h|)^t``.
    """
    for seed in range(10):
        model = build(seed=seed)
        A, B, C, D, *_ = parts(model)
        norm = lambda a: np.abs(a).sum(axis=1).max()  # noqa: E731
        bound = model.recurrence()
        rate = norm(C) * norm(B[:, P:]) / (1 - norm(A)) + norm(D[:, P:])
        assert bound.memory(1) <= rate * (1 + 1e-9)
        assert bound.rate <= bound.memory(1)
        assert bound.c.max() <= norm(C) / (1 - norm(A)) * (1 + 1e-9)


def test_the_tolerance_that_follows_is_enough():
    model, U = nonnegative(), np.abs(inputs(8))
    bound = model.recurrence()
    exact, pull = model.with_tol(1e-14)(U)
    size = np.abs(pull.forward.value).max()
    for error in (1e-2, 1e-5):
        tol = bound.tolerance(error, 8, size=1.1 * size)
        rough, _ = model.replace(forward=solvers.Picard(tol=tol))(U)
        assert 1e-2 * error < np.abs(rough - exact).max() <= error


def test_measured_residuals_bound_the_error():
    model = build(return_sequences=True, constraint=InfNorm(0.9))
    U = inputs(8)
    exact, _ = model.with_tol(1e-14)(U)
    for tol in (1e-2, 1e-4):
        rough, pull = model.replace(forward=solvers.Picard(tol=tol))(U)
        limit = model.recurrence().errors(pull.forward.residual.reshape(8, M).T)
        error = np.abs(rough - exact).max(axis=2)
        assert np.all(error <= limit + 1e-12)
        assert error.max() > 1e-6


def test_residuals_may_live_on_any_device(xp):
    bound, rho = build().recurrence(), np.full((M, 3), 1e-3)
    assert np.array_equal(bound.errors(from_host(xp, rho)), bound.errors(rho))


def test_where_nothing_is_proven_it_says_so():
    model = build()
    model.params = {**model.params, "A": np.eye(N)}
    bound = model.recurrence()
    assert not bound.proven
    assert bound.amplification(3) == bound.memory(3) == bound.rate == np.inf
    assert "no bound" in repr(bound)
    assert "spectral radius" in bound.reason
    with pytest.raises(InputError, match="no tolerance is proven"):
        bound.tolerance(1e-3, 5)
    for bad in (0, 2.5, True):
        with pytest.raises(InputError, match="steps"):
            build().recurrence().amplification(bad)
    with pytest.raises(InputError, match="residuals"):
        build().recurrence().errors([[-1.0]])
    with pytest.raises(InputError, match="error > 0"):
        build().recurrence().tolerance(-1.0, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unknown = Activation("unknown", lambda z: z / 2, lambda z: 0 * z + 0.5)
    assert "Lipschitz" in build(activation=unknown).recurrence().reason
    assert "errors are forgotten" in repr(
        ImplicitRNN(1, 1, 2, 3, rng=0, feedthrough=False, constraint=InfNorm(0.1)).recurrence()
    )


def test_a_spectral_radius_below_one_is_enough():
    """Row sums above 1 prove nothing for the step.

    But |A| of a small radius still gives a bound; at radius 1 there is none.
    """
    model = build("no D")
    A = np.zeros((N, N))
    A[0, 1:] = 3.0
    model.params = {**model.params, "A": A}
    assert not model.constraint.certificate(model.params, model.activation).proven
    assert model.recurrence().proven
    model.params = {**model.params, "A": np.roll(np.eye(N), 1, axis=1)}
    assert not model.recurrence().proven


# -------------------------------------------------------------------------- composition


def test_stacked_layers():
    model = Sequential(
        build(return_sequences=True),
        random_model(ImplicitRNN, Q, 4, R, N, spread=0.3, dtype="float64"),
        Linear(4, 2, rng=0, dtype="float64"),
    )
    assert check_pullback(model, inputs(5)).max_error < 1e-6
    with pytest.raises(InputError, match="takes 3 inputs"):
        Sequential(build(return_sequences=True), build())
    with pytest.raises(InputError, match="sequences"):
        Sequential(build(), random_model(ImplicitRNN, Q, 4, R, N, dtype="float64"))(inputs(5))


def test_fit_with_lengths_save_and_load(tmp_path):
    rng = np.random.default_rng(0)
    U, lengths = rng.normal(size=(200, 6, 1)), rng.integers(1, 7, 200)
    target = np.array([row[:k].mean() for row, k in zip(U[..., 0], lengths)])[:, None]
    model = ImplicitRNN(1, 1, 8, 8, rng=0)
    history = pyidl.fit(
        model,
        ((U, lengths), target),
        loss=losses.mse,
        optimizer=optim.Adam(1e-2),
        epochs=25,
        batch_size=50,
        validation=((U, lengths), target),
        metrics=[pyidl.metrics.r2],
        rng=0,
        verbose=0,
    )
    assert history["val_r2"][-1] > 0.8
    assert history["failed"][-1] == 0
    assert history["steps"][-1] > 1
    pyidl.save(tmp_path / "rnn.npz", model)
    back = pyidl.load(tmp_path / "rnn.npz")
    assert repr(back) == repr(model)
    assert np.array_equal(back.predict(U, lengths), model.predict(U, lengths))
    assert_close(
        model.predict(U, lengths, batch_size=17), model.predict(U, lengths), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_every_configuration_comes_back(option, tmp_path):
    model = build(option, truncate=5)
    pyidl.save(tmp_path / "m", model)
    for twin in (
        pyidl.load(tmp_path / "m"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        model.replace(),
        model.to("cpu"),
    ):
        assert repr(twin) == repr(model)
        assert np.array_equal(twin.predict(inputs()), model.predict(inputs()))
    single = model.astype("float32")
    Y, pull = single(inputs())
    dU, grads = pull(Y)
    assert {Y.dtype, dU.dtype, *(g.dtype for g in grads.values())} == {np.dtype("float32")}
    assert_close(Y.astype(float), model.predict(inputs()), rtol=1e-3, atol=1e-3)


def test_the_seed_decides_and_a_new_model_is_certified():
    one, two, other = (ImplicitRNN(P, Q, R, N, rng=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one.params[k], two.params[k]) for k in one.params)
    assert not np.array_equal(one.params["B"], other.params["B"])
    assert one.certificate().proven
    assert one.recurrence().proven
    assert repr(one) == (
        "ImplicitRNN(input_dim=3, output_dim=2, hidden_dim=5, implicit_hidden_dim=8), "
        "233 parameters on cpu"
    )


def test_without_biases_the_network_is_homogeneous():
    model = ImplicitRNN(P, Q, R, N, bias=False, rng=0)
    # (the tolerance of a solve is relative to 1 + max|x|: for small states it is
    # absolute)
    U = 100 * inputs()
    for scale in (1e3, 1e8):
        assert relative(model.predict(scale * U) / np.float32(scale), model.predict(U)) < 1e-4


# ---------------------------------------------------------------------- what is refused


BAD_CALLS = {
    "two dimensions": (lambda U: (U[0],), "U has shape"),
    "too narrow": (lambda U: (U[:, :, :2],), "U has shape"),
    "no step": (lambda U: (U[:, :0],), "U has shape"),
    "no sample": (lambda U: (U[:0],), "U has shape"),
    "nan": (lambda U: (np.where(U > 0, np.nan, U),), "U has"),
    "length 0": (lambda U: (U, [0, 1, 2, 3]), "lengths lie between 0 and 3"),
    "length beyond T": (lambda U: (U, [8, 1, 2, 3]), "with 7 steps they are 1, ..., 7"),
    "ragged lengths": (
        lambda U: (U, [[True], [True, False], [True], [True]]),
        "lengths cannot be read",
    ),
    "too few lengths": (lambda U: (U, [3, 3]), "lengths has shape"),
    "fractional lengths": (lambda U: (U, [3.0, 3.0, 3.0, 3.0]), "lengths has shape"),
    "an empty mask": (lambda U: (U, np.zeros((M, 7), bool)), "4 sequences have no step"),
    "a mask of numbers": (lambda U: (U, np.ones((M, 7))), "lengths has shape"),
    "h0 of another shape": (lambda U: (U, None, np.zeros((M, R + 1))), "h0 has shape"),
    "one h0 for all": (lambda U: (U, None, np.zeros(R)), "h0 has shape"),
    "h0 not finite": (lambda U: (U, None, np.full((M, R), np.inf)), "h0 has"),
}


@pytest.mark.parametrize("call", ["__call__", "predict"])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_refused_at_the_door(case, call):
    arguments, message = BAD_CALLS[case]
    with pytest.raises(InputError, match=message):
        getattr(build(), call)(*arguments(inputs()))


@pytest.mark.parametrize(
    "options",
    [
        {"feedthrough": "state"},
        {"feedthrough": 1.0},
        {"truncate": 0},
        {"truncate": 2.5},
        {"warm_start": "yes"},
        {"return_sequences": 1},
        {"bias": None},
        {"rank": N + 1},
        {"activation": "rely"},
        {"constraint": 0.9},
        {"forward": "picard"},
        {"dtype": "float16"},
        {"pattern": Pattern(A=np.ones((2, 2), bool))},
        {"pattern": Pattern(B=np.ones((N, P), bool))},
        {"pattern": Pattern(D=np.ones((R, P), bool)), "feedthrough": "input"},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        ImplicitRNN(P, Q, R, N, **options)


def test_bad_widths_are_named():
    for i, name in enumerate(("input_dim", "output_dim", "hidden_dim", "implicit_hidden_dim")):
        widths = [P, Q, R, N]
        widths[i] = 0
        with pytest.raises(InputError, match=f"^{name} is 0"):
            ImplicitRNN(*widths)
    with pytest.raises(AttributeError, match="replace"):
        build().truncate = 3
    with pytest.raises(InputError, match="batch_size"):
        build().predict(inputs(), batch_size=0)


def test_bad_steps_and_cotangents_are_refused():
    model = build()
    cell = model.cell
    for bad in (inputs(1), inputs(1)[0, 0], np.full((M, P), np.nan)):
        with pytest.raises(InputError, match="u has"):
            cell.step(bad)
    with pytest.raises(InputError, match="h has shape"):
        cell.step(inputs(1)[:, 0], np.zeros((M + 1, R)))
    _, pull = model(inputs())
    with pytest.raises(InputError, match="dY"):
        pull(np.ones((M, 7, Q)))
    with pytest.raises(DeviceMismatchError):
        model(array_api_strict.asarray(inputs()))
    with pytest.raises(DeviceMismatchError):
        cell.step(array_api_strict.asarray(inputs(1)[:, 0]))


def test_parameters_outside_a_pattern_are_refused():
    model = build("no feedback")
    with pytest.raises(InputError, match="outside its pattern"):
        model.params = {**model.params, "A": np.eye(N)}
    with pytest.raises(InputError, match="E has shape"):
        model.params = {**model.params, "E": np.eye(N)}
    assert not model.params["A"].any()


def test_pullbacks_are_pure_and_survive_new_parameters():
    model = build(return_sequences=True)
    Y, pull = model(inputs())
    one = pull(np.ones_like(Y))
    model.params = {key: 0 * a for key, a in model.params.items()}
    two = pull(np.ones_like(Y))
    assert np.array_equal(one[0], two[0])
    assert all(np.array_equal(one[1][key], two[1][key]) for key in one[1])
    assert pull(np.ones_like(Y), inputs=False)[0] is None


def test_a_failure_names_step_and_samples():
    model = build("no D", bias=False, forward=solvers.Picard(max_iter=3), warm_start=False)
    model.params = {**model.params, "C": 0 * model.params["C"]}
    U = np.zeros((M, 5, P))
    U[2, 3] = U[1, 4] = 1.0  # from zeros, the zero solution needs no step
    with pytest.raises(
        ConvergenceError, match="at time step 3, the forward solve of 1 of 4 samples"
    ) as error:
        model(U)
    assert error.value.converged.tolist() == [True, True, False, True]
    with pytest.raises(
        ConvergenceError, match="at time step 3, the forward solve of 1 of 2 samples"
    ) as error:
        model(U, [3, 2, 5, 4])
    assert error.value.converged.tolist() == [True, True, False, True]
    with pytest.warns(ConvergenceWarning, match="the forward solve of 2 of 20 samples") as caught:
        model(U, on_fail="warn")
    assert len(caught) == 1
    _, pull = model(U, on_fail="ignore")
    assert pull.forward.converged.reshape(5, M).T.tolist()[2] == [True, True, True, False, True]
    with pytest.raises(InputError, match="on_fail"):
        model(np.zeros((M, 5, P)), on_fail="nothing")


def test_a_failing_adjoint_says_so():
    model = build(adjoint=solvers.Picard(max_iter=2))
    _, pull = model(inputs(5))
    with pytest.raises(GradientConvergenceError, match="at time step 4, the adjoint solve"):
        pull(np.ones((M, Q)))
    _, pull = model(inputs(5), on_fail="warn")
    with pytest.warns(
        GradientConvergenceWarning, match=r"the adjoint solve of \d+ of 20 samples"
    ) as caught:
        pull(np.ones((M, Q)))
    assert len(caught) == 1


def test_nothing_waits_for_the_device_but_the_solves(monkeypatch):
    """On a GPU: one look at U, and the bookkeeping of the solves.

    Building the stacks costs no wait.
    """
    for name, module in stand_in.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    cupy = stand_in.cupy
    model = moved(build(forward=solvers.Picard(), adjoint=solvers.Picard()), cupy)
    U, G = from_host(cupy, inputs(6)), from_host(cupy, np.ones((M, Q)))
    cupy.waits = 0
    _, pull = model(U)
    assert cupy.waits <= 1 + pull.forward.n_iter.reshape(6, M).max(axis=1).sum()
    adjoint, cupy.waits = pull.solve(G), 0
    pull(G)
    assert cupy.waits <= 1 + 6 + adjoint.n_iter.reshape(6, M).max(axis=1).sum()
