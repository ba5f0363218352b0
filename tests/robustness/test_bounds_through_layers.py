"""Bounds through layers and through time, against an adversary; and what forms share."""

import boxes
import numpy as np
import pytest
from helpers import host

from pyidl import (
    Bidirectional,
    Dropout,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Residual,
    Sequential,
    activations,
    robustness,
)
from pyidl.certify import forms
from pyidl.robustness import recurrent, states
from pyidl.wellposed import MatrixMeasure

M, T, P = 3, 5, 3
WAYS = (("box", 5), ("affine", 1), ("affine", 2))
LENGTHS = {
    "all": None,
    "integers": np.array([5, 1, 3]),
    "booleans": np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]) > 0,
}


def gaps(Y, labels):
    """``y_k - y_label`` of (m, S, ..., q)."""
    t = np.broadcast_to(labels[:, None, ..., None], (*Y.shape[:-1], 1))
    return Y - np.take_along_axis(Y, t, -1)


def some_boxes(name, table, rng, eps):
    shape = (5,) if name == "pointwise" else (P,) if table is boxes.NETS else (T, P)
    centre = rng.normal(size=(M, *shape))
    radius = eps * rng.uniform(0.3, 1.0, size=centre.shape) * (rng.random(centre.shape) < 0.9)
    return centre, centre - radius, centre + radius


def search(name, table, seed, eps, lengths=None, ways=WAYS):
    """How many outputs and margins lie outside of their bounds, and how wide those are."""
    rng, model = np.random.default_rng(seed), boxes.net(table, name, seed)
    centre, lo, hi = some_boxes(name, table, rng, eps)
    more = {} if lengths is None else {"lengths": lengths}
    Y = host(model.predict(centre, **more))
    tried = boxes.net_attacked(model, lo, hi, range(Y.shape[-1]), lengths)
    U = np.concatenate([boxes.points(rng, lo, hi, 12), tried], axis=1)
    values, labels = boxes.net_values(model, U, lengths), np.argmax(Y, axis=-1)
    outside, wide = 0, []
    for method, rounds in ways:
        options = {"method": method, "rounds": rounds, **more}
        found = robustness.bounds(model, lo, hi, **options)
        margins = robustness.margins(model, lo, hi, labels, **options)
        outside += boxes.net_outside(values, found.outputs)
        below = np.full_like(margins, -np.inf)
        outside += boxes.net_outside(gaps(values, labels), (below, margins))
        attained = np.ptp(values, axis=1)
        seen = attained > 1e-9
        wide.append(float(np.median(found.width[seen] / attained[seen])))
    return outside, wide


@pytest.mark.parametrize("name", boxes.NETS)
@pytest.mark.parametrize("eps", [1e-3, 0.3, 3.0])
def test_layers(name, eps):
    outside, _ = search(name, boxes.NETS, 0, eps)
    assert outside == 0


@pytest.mark.parametrize("lengths", ["all", "booleans"])
@pytest.mark.parametrize("name", boxes.SEQUENCES)
def test_sequences(name, lengths):
    outside, wide = search(name, boxes.SEQUENCES, 1, 0.1, LENGTHS[lengths], WAYS[::2])
    assert outside == 0
    assert wide[1] < wide[0]


@pytest.fixture(params=[2, 12])
def few_columns(request, monkeypatch):
    for module in (forms, recurrent, states):
        monkeypatch.setattr(module, "LIMIT", request.param)
    return request.param


@pytest.mark.parametrize("name", boxes.SEQUENCES)
def test_columns_that_are_merged_stay_sound(name, few_columns):
    outside, _ = search(name, boxes.SEQUENCES, few_columns, 0.2, LENGTHS["integers"], WAYS[2:])
    assert outside == 0


@pytest.mark.parametrize("name", ["layers", "residual", "nested"])
def test_layers_with_few_columns_stay_sound(name, few_columns):
    outside, _ = search(name, boxes.NETS, 3, 0.2, ways=WAYS[2:])
    assert outside == 0


def test_what_columns_share_is_worth_much():
    for name in ("nested", "last", "both ways"):
        table = boxes.NETS if name == "nested" else boxes.SEQUENCES
        wide = np.array([search(name, table, seed, 0.05)[1] for seed in range(2)])
        assert np.median(wide[:, 2]) < 1.5 < 3 < np.median(wide[:, 0])


# ----------------------------------------------- columns of one place are the same noise


def in_a_ball(model, U, labels, eps, rng, count=60):
    """Whether a class changes within a Euclidean distance eps."""
    d = rng.normal(size=(len(U), count, *U.shape[1:]))
    axes = tuple(range(2, d.ndim))
    d *= eps * (1 - 1e-9) / np.sqrt(np.square(d).sum(axis=axes, keepdims=True))
    changed = np.argmax(boxes.net_values(model, U[:, None] + d), axis=-1) != labels[:, None]
    return changed.reshape(len(U), -1).any(axis=1)


@pytest.mark.parametrize("name", ["residual", "implicit residual", "nested"])
def test_balls_through_residual_layers(name):
    """Without rounds a box has no columns: those of the ball are not those of layers."""
    for seed in range(6):
        rng, model = np.random.default_rng(seed), boxes.net(boxes.NETS, name, seed, 1.0)
        U = rng.normal(size=(30, P))
        labels = np.argmax(model.predict(U), axis=-1)
        for eps in (0.03, 0.1, 0.3):
            sure = robustness.certified(model, U, labels, eps, norm=2)
            assert not np.any(sure & in_a_ball(model, U, labels, eps, rng))


@pytest.mark.parametrize("name", boxes.SEQUENCES)
def test_balls_of_sequences(name):
    rng, model = np.random.default_rng(0), boxes.net(boxes.SEQUENCES, name, 0)
    U = rng.normal(size=(8, 3, P))
    labels = np.argmax(model.predict(U), axis=-1)
    some = 0
    for eps in (0.002, 0.3):
        sure = robustness.certified(model, U, labels, eps, norm=2, rounds=2)
        some += int(sure.sum())
        assert not np.any(sure & in_a_ball(model, U, labels, eps, rng))
    assert some > 0


def test_one_sample_without_a_round_leaves_the_columns_in_place():
    """What overflows has no lines; the others' states keep the columns of the inputs."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        model = boxes.net(boxes.NETS, "implicit residual", seed, 1.0)
        U = rng.normal(size=(2, P))
        lo, hi = U - 0.5, U + 0.5
        alone = robustness.bounds(model, lo[:1], hi[:1])
        lo[1], hi[1] = -1e308, 1e308
        found = robustness.bounds(model, lo, hi)
        values = boxes.net_values(model, boxes.points(rng, lo[:1], hi[:1], 200))
        pair = tuple(a[:1] for a in found.outputs)
        assert boxes.net_outside(values, pair) == 0
        np.testing.assert_allclose(pair, alone.outputs, atol=1e-7)


def test_a_maximum_over_steps_keeps_the_columns_in_place():
    """``[max_t f, max_t g]``, where both directions read the same single step."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        model = boxes.net(boxes.SEQUENCES, "both ways, max", seed, 1.0)
        U = rng.normal(size=(10, 1, P))
        labels = np.argmax(model.predict(U), axis=-1)
        for eps in (0.1, 1.0):
            tried = boxes.points(rng, U - eps, U + eps, 60)
            values = gaps(boxes.net_values(model, tried), labels)
            margins = robustness.margins(model, U - eps, U + eps, labels)
            below = np.full_like(margins, -np.inf)
            assert boxes.net_outside(values, (below, margins)) == 0


def test_a_residual_layer_cancels():
    """``u + (-u)`` is 0, and so is what both directions of one sequence share."""
    minus = Linear(P, P, bias=False, dtype="float64", rng=0)
    minus.params = {"W": -np.eye(P)}
    U = np.random.default_rng(0).normal(size=(M, P))
    found = robustness.bounds(Residual(minus), U - 1, U + 1)
    assert np.max(np.abs(found.outputs)) < 1e-12
    ahead = ImplicitRNN(P, 2, 4, 5, pool="mean", feedthrough=True, rng=0, dtype="float64")
    params = {key: 0.0 * a for key, a in ahead.params.items()}
    params["D"] = np.eye(4, P + 4) * np.array([[1.0], [1.0], [1.0], [0.0]])
    params["E"] = np.ones((2, 4))
    ahead.params = params
    both = Bidirectional(ahead, ahead.replace())
    S = np.random.default_rng(1).normal(size=(M, T, P))
    # Each output is the sum of all entries over the steps, whichever way it is read.
    margins = robustness.margins(both, S - 1, S + 1, np.zeros(M, int))
    assert np.max(np.abs(margins)) < 1e-9


# -------------------------------------------------------------------- what is reported


def test_every_layer_has_its_bounds_by_its_name():
    rng = np.random.default_rng(0)
    model, U = boxes.net(boxes.NETS, "nested", 0), rng.normal(size=(M, P))
    for method in ("box", "affine"):
        found = robustness.bounds(model, U - 0.1, U + 0.1, method=method)
        assert found.states is None
        assert found.pre is None
        assert sorted(found.layers) == sorted(
            ["0", "1", "2", "3", "3.0", "3.0.0", "3.1", "3.2", "4"]
        )
        inner, V = model.layers[2], model.layers[1].predict(model.layers[0].predict(U))
        X, Y = inner.with_tol(1e-12).equilibrium(V).value, inner.predict(V)
        at = found.layers["2"]
        for value, (low, high) in zip((X, Y), (at.states, at.outputs), strict=True):
            assert np.all((low <= value + 1e-6) & (value - 1e-6 <= high))
        assert at.pre[0].shape == (M, 6)
        assert found.layers["4"].states is None


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("method", ["box", "affine"])
def test_states_of_every_step(method, lengths):
    rng, model = np.random.default_rng(0), boxes.net(boxes.SEQUENCES, "input D", 4)
    U, mask = rng.normal(size=(M, T, P)), np.ones((M, T), bool)
    if lengths != "all":
        given = LENGTHS[lengths]
        mask = given if given.dtype == bool else np.arange(T) < given[:, None]
    eps = 0.2
    found = robustness.bounds(model, U - eps, U + eps, LENGTHS[lengths], method=method)
    p = {key: host(a) for key, a in model.params.items()}
    step = ImplicitModel(P + 4, 4, 5, bias=False, rng=0, dtype="float64").with_tol(1e-13)
    D = np.concatenate([p["D"], np.zeros((4, 4))], axis=1)
    step.params = {"A": p["A"], "B": p["B"], "C": p["C"], "D": D}
    for _ in range(30):
        S = U + rng.choice([-eps, eps, 0.0], size=U.shape)
        H = np.zeros((M, 4))
        for t in range(T):
            both = np.concatenate([S[:, t], H], axis=1)
            X = step.equilibrium(both).value
            part = mask[:, t]
            for value, (low, high) in (
                (X, found.states),
                (X @ p["A"].T + both @ p["B"].T, found.pre),
            ):
                assert np.all(low[part, t] <= value[part] + 1e-9)
                assert np.all(value[part] - 1e-9 <= high[part, t])
                assert np.all(np.isnan(low[~part, t]) & np.isnan(high[~part, t]))
            H = np.where(part[:, None], step.predict(both), H)


def test_dropout_and_float32_layers():
    rng = np.random.default_rng(0)
    plain = Sequential(Linear(P, 4, rng=0), activations.silu, ImplicitModel(4, 3, 6, rng=1))
    dropped = Sequential(plain.layers[0], Dropout(0.5), *plain.layers[1:])
    U = rng.normal(size=(M, P)).astype(np.float32)
    lo, hi = U - 0.1, U + 0.1
    one, other = (robustness.bounds(model, lo, hi) for model in (plain, dropped))
    np.testing.assert_array_equal(one.outputs, other.outputs)
    Y = plain.predict(U)
    assert np.all((one.outputs[0] <= Y + 1e-4) & (one.outputs[1] >= Y - 1e-4))


def test_a_fixed_point_without_boxes_among_layers():
    """Forms do where boxes are refused: named by what is missing."""
    inner = boxes.drawn("monotone", 8, 0, p=4, q=4)
    model = Sequential(Linear(P, 4, rng=0, dtype="float64"), inner)
    U = np.random.default_rng(0).normal(size=(M, P))
    with pytest.raises(Exception, match="boxes need"):
        robustness.bounds(model, U, U, method="box")
    found = robustness.bounds(model, U - 0.01, U + 0.01, rounds=20)
    values = boxes.net_values(
        model.with_tol(1e-12), boxes.points(np.random.default_rng(1), U - 0.01, U + 0.01, 50)
    )
    assert boxes.net_outside(values, found.outputs) == 0
    labels = np.argmax(model.predict(U), axis=-1)
    assert robustness.certified(model, U, labels, 1e-6).all()


def test_measure_of_a_chain_with_a_large_negative_diagonal():
    model = Sequential(
        ImplicitModel(3, 4, 6, constraint=MatrixMeasure(0.5), rng=0, dtype="float64"),
        ImplicitModel(4, 3, 6, constraint=MatrixMeasure(0.5), rng=1, dtype="float64"),
    )
    params = dict(model.params)
    for key in ("0.A", "1.A"):
        params[key] = params[key] - 8.0 * np.eye(6)
    model.params = model.project(params)
    rng = np.random.default_rng(0)
    U = rng.normal(size=(M, P))
    values = boxes.net_values(model.with_tol(1e-12), boxes.points(rng, U - 0.5, U + 0.5, 200))
    for method in ("box", "affine"):
        found = robustness.bounds(model, U - 0.5, U + 0.5, method=method)
        assert boxes.net_outside(values, found.outputs) == 0
