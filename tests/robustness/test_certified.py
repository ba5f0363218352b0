"""Verdicts: margins and certified sets against attacks, options, and what is refused."""

import importlib
from dataclasses import dataclass

import boxes
import numpy as np
import pytest
import scipy.sparse
from helpers import moved

import pyidl
from pyidl import ImplicitModel, ImplicitRNN, Linear, Residual, Sequential, activations, robustness
from pyidl.errors import InputError
from pyidl.wellposed import Monotone, Unconstrained

M, P, Q = 12, 3, 3
MODEL = ImplicitModel(P, Q, 8, rng=0, dtype="float64")
U = np.random.default_rng(0).normal(size=(M, P))
LABELS = MODEL.predict(U).argmax(axis=1)


def broken(model, U, labels, eps, rng, norm="inf", clip=None, count=60, steps=6):
    """Whether an attack within the distance changes a class: random, and by gradients."""
    lo, hi = U - eps, U + eps
    if clip is not None:
        lo, hi = np.clip(lo, *clip), np.clip(hi, *clip)
    V = boxes.points(rng, lo, hi, count)
    step = 2.5 * eps / steps
    for _ in range(steps):
        Y, pull = model(V.reshape(-1, *U.shape[1:]))
        Y = Y.reshape(len(U), count, -1)
        others = np.where(np.arange(Y.shape[-1]) == labels[:, None, None], -np.inf, Y)
        gone = np.argmax(others, axis=-1)
        dY = np.zeros(Y.shape)
        np.put_along_axis(dY, gone[..., None], 1.0, -1)
        dY[np.arange(len(U)), :, labels] -= 1.0
        g = pull(dY.reshape(-1, dY.shape[-1]))[0].reshape(V.shape)
        if norm == "inf":
            V = np.clip(V + step * np.sign(g), lo[:, None], hi[:, None])
        else:
            size = np.linalg.norm(g, axis=-1, keepdims=True)
            V = V + step * g / np.maximum(size, 1e-300)
            far = V - U[:, None]
            size = np.linalg.norm(far, axis=-1, keepdims=True) / (eps * (1 - 1e-12) + 1e-300)
            V = U[:, None] + far / np.maximum(size, 1.0)
            V = V if clip is None else np.clip(V, *clip)
    Y = boxes.net_values(model, V)
    return np.any(np.argmax(Y, axis=-1) != labels[:, None], axis=1)


@boxes.QUESTIONS
def test_no_certified_sample_is_broken(kind, seed, norm, clipped):
    rng, model, V, clip, labels, eps = boxes.question(kind, seed, clipped)
    sure = robustness.certified(model, V, labels, eps, norm=norm, clip=clip, rounds=2)
    assert not np.any(sure & broken(model, V, labels, eps, rng, norm, clip, 20, 4))
    others = (labels + 1) % model.output_dim
    assert not np.any(robustness.certified(model, V, others, eps, rounds=1))


def test_most_of_what_no_attack_breaks_is_certified():
    rng = np.random.default_rng(1)
    sure = lost = 0
    for seed in range(6):
        model = boxes.drawn("relu measure", 12, seed).with_tol(1e-12)
        V = rng.normal(size=(40, P))
        labels = model.predict(V).argmax(axis=1)
        found = robustness.certified(model, V, labels, 0.05)
        left = ~broken(model, V, labels, 0.05, rng)
        assert not np.any(found & ~left)
        sure, lost = sure + int(found.sum()), lost + int((left & ~found).sum())
    assert lost < 0.1 * sure


def test_a_verdict_is_that_of_margins():
    eps = 0.05
    for rounds in (1, 5):
        V = robustness.margins(MODEL, U - eps, U + eps, LABELS, rounds=rounds)
        assert np.array_equal(V[np.arange(M), LABELS], np.zeros(M))
        off = np.delete(V.reshape(-1), np.arange(M) * Q + LABELS).reshape(M, Q - 1)
        sure = robustness.certified(MODEL, U, LABELS, eps, rounds=rounds)
        assert np.array_equal(sure, np.all(off < 0, axis=1))
    assert 0 < sure.sum() < M


def test_rows_are_subtracted_before_bounds_are_taken():
    """What two outputs share cancels, also without affine forms."""
    model = MODEL.replace()
    C, D = np.array(model.params["C"]), np.array(model.params["D"])
    C[1], D[1] = C[0], D[0]
    d = np.array([0.0, -0.5, 0.0])
    model.params = {**model.params, "C": C, "D": D, "d": d}
    for method in ("box", "affine"):
        V = robustness.margins(model, U - 1, U + 1, np.zeros(M, int), method=method)
        np.testing.assert_allclose(V[:, 1], -0.5, atol=1e-9)


def test_eps_zero_is_the_class_itself():
    assert robustness.certified(MODEL, U, LABELS, 0.0).all()
    assert robustness.certified(MODEL, U, LABELS, 0, norm=2).all()
    assert not robustness.certified(MODEL, U, (LABELS + 1) % Q, 0.0).any()
    V = robustness.margins(MODEL, U, U, LABELS)
    Y = MODEL.with_tol(1e-13).predict(U)
    np.testing.assert_allclose(V, Y - Y[np.arange(M), LABELS][:, None], atol=1e-7)


def test_a_tie_is_not_certified():
    model = Linear(2, 2, bias=False, rng=0, dtype="float64")
    model.params = {"W": np.eye(2)}
    V = np.array([[1.0, 1.0], [1.0, 0.5]])
    assert robustness.certified(model, V, [0, 0], 0.0).tolist() == [False, True]
    # At a distance of 1/4 in each entry, or sqrt(1/8) in all, both are as large.
    assert robustness.certified(model, V, [0, 0], 0.2499)[1]
    assert not robustness.certified(model, V, [0, 0], 0.25)[1]
    assert robustness.certified(model, V, [0, 0], 0.3535, norm=2)[1]
    assert not robustness.certified(model, V, [0, 0], 0.3536, norm=2)[1]


def test_euclidean_balls_are_not_boxes():
    """A ball lies in the box of its radius, and is certified at least as far."""
    for eps in (0.02, 0.1, 0.3):
        box = robustness.certified(MODEL, U, LABELS, eps)
        ball = robustness.certified(MODEL, U, LABELS, eps, norm=2)
        assert np.all(box <= ball)
    assert np.sum(ball) > np.sum(box)


def test_clip_takes_away_what_is_no_input():
    model = Linear(1, 2, bias=False, rng=0, dtype="float64")
    model.params = {"W": np.array([[1.0], [-1.0]])}
    V = np.array([[0.1]])
    assert not robustness.certified(model, V, [0], 0.5)[0]
    assert robustness.certified(model, V, [0], 0.5, clip=(0.05, 1))[0]
    assert not robustness.certified(model, V, [0], 0.5, clip=(0.0, 1))[0]  # a tie at 0
    assert robustness.certified(model, V, [0], 0.5, norm=2, clip=[0.05, 1.0])[0]


def test_single_precision_inputs_are_taken_as_they_are():
    """``u - eps`` and ``u + eps`` are rounded outwards from the float32 numbers."""
    model = Linear(1, 2, bias=False, rng=0)
    model.params = {"W": np.array([[1.0], [0.0]], np.float32)}
    V = np.array([[0.1]], np.float32)
    exact = float(V[0, 0])
    assert robustness.certified(model, V, [0], np.nextafter(exact, 0) * (1 - 1e-13))[0]
    assert not robustness.certified(model, V, [0], exact)[0]


@pytest.mark.parametrize("norm", ["inf", 2])
def test_the_largest_distance_certifies_nothing_and_the_smallest_something(norm):
    V = np.array([[-1.7e308, 0.0, 1.0], [0.1, 0.2, 0.3]])
    labels = MODEL.predict(V[1:]).argmax(axis=1).repeat(2)
    assert not robustness.certified(MODEL, V, labels, 1.7e308, norm=norm).any()
    assert robustness.certified(MODEL, V[1:], labels[1:], 5e-324, norm=norm).all()


def test_a_label_for_every_step():
    model = ImplicitRNN(P, Q, 4, 5, return_sequences=True, rng=0, dtype="float64")
    S = np.random.default_rng(0).normal(size=(4, 3, P))
    labels = model.predict(S).argmax(axis=-1)
    V = robustness.margins(model, S - 0.01, S + 0.01, labels)
    assert V.shape == (4, 3, Q)
    sure = robustness.certified(model, S, labels, 1e-6)
    assert sure.shape == (4,)
    assert sure.all()
    labels[2, 1] = (labels[2, 1] + 1) % Q
    assert robustness.certified(model, S, labels, 1e-6).tolist() == [True, True, False, True]


def test_many_samples_are_taken_in_pieces(monkeypatch):
    V = np.random.default_rng(2).normal(size=(50, P))
    labels = MODEL.predict(V).argmax(axis=1)
    whole = [
        robustness.certified(MODEL, V, labels, 0.05),
        robustness.margins(MODEL, V - 0.05, V + 0.05, labels),
        *robustness.bounds(MODEL, V - 0.05, V + 0.05).states,
    ]
    monkeypatch.setattr(importlib.import_module("pyidl.robustness.bounds"), "ROOM", 1)
    pieces = [
        robustness.certified(MODEL, V, labels, 0.05),
        robustness.margins(MODEL, V - 0.05, V + 0.05, labels),
        *robustness.bounds(MODEL, V - 0.05, V + 0.05).states,
    ]
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), atol=1e-8)


@pytest.mark.filterwarnings("ignore::pyidl.errors.PyidlWarning")
@pytest.mark.parametrize("kind", ["relu measure", "blocks", "rank"])
def test_every_library_has_the_same_bounds(kind, xp):
    model = boxes.drawn(kind, 6, 0)
    twin = moved(model, xp)
    lo, hi = U - 0.1, U + 0.1
    from_host = pyidl.arrays.backend.from_host
    theirs = robustness.bounds(twin, from_host(xp, lo), from_host(xp, hi))
    ours = robustness.bounds(model, lo, hi)
    for name in ("states", "pre", "outputs"):
        for one, other in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            assert isinstance(one, np.ndarray)
            assert one.dtype == np.float64
            np.testing.assert_array_equal(one, other)
    labels = np.zeros(M, int)
    V = robustness.margins(twin, from_host(xp, lo), from_host(xp, hi), from_host(xp, labels))
    np.testing.assert_array_equal(V, robustness.margins(model, lo, hi, labels))
    sure = robustness.certified(twin, from_host(xp, U), from_host(xp, labels), 0.1)
    np.testing.assert_array_equal(sure, robustness.certified(model, U, labels, 0.1))


# -------------------------------------------------------------------------- refusals


@dataclass(eq=False, repr=False)
class Own(Linear):
    """A subclass may do anything."""


class Sideways(Sequential):
    """So may a chain."""


def attention():
    return pyidl.ImplicitAttentionHead(P, 2, block_size=4, rng=0, dtype="float64")


def block():
    return pyidl.ImplicitTransformerBlock(4, 2, block_size=4, rng=0, dtype="float64")


wave = activations.Activation("wave", np.cos, lambda z: -np.sin(z), lipschitz=1.0)
SEQUENCE, FOUR = np.zeros((2, 4, P)), np.zeros((2, 4, 4))

UNCOVERED = {
    "attention": (attention, SEQUENCE, "ImplicitAttentionHead: a product of two bounded"),
    "block": (block, FOUR, r"LayerNorm \(layer 0\.0\): of a norm"),
    "norm": (lambda: pyidl.LayerNorm(P, dtype="float64"), U, "LayerNorm: of a norm"),
    "norm inside": (
        lambda: Sequential(Linear(P, 4, rng=0), Residual(pyidl.LayerNorm(4), Linear(4, 4, rng=0))),
        U,
        r"LayerNorm \(layer 1\.0\): of a norm",
    ),
    "tokens": (
        lambda: Sequential(Linear(P, 3, rng=0), pyidl.Embedding(5, 3, rng=0)),
        U,
        r"Embedding \(layer 1\): tokens have no box; give bounds of what is behind",
    ),
    "places": (
        lambda: pyidl.PositionEmbedding(4, 3, rng=0),
        SEQUENCE,
        "PositionEmbedding: nothing is known",
    ),
    "own": (lambda: Own(P, Q, rng=0), U, "Own: nothing is known of what it does to a box"),
    "own chain": (lambda: Sideways(Linear(P, Q, rng=0)), U, "Sideways: nothing is known"),
    "unknown phi": (
        lambda: Sequential(Linear(P, 4, rng=0), wave),
        U,
        "range of wave over an interval is not known; .*silu, gelu",
    ),
    "unknown phi of a fixed point": (
        lambda: ImplicitModel(P, Q, 4, activation=wave, rng=0),
        U,
        "range of wave",
    ),
    "worst case": (
        lambda: pyidl.WorstCase(ImplicitModel(P, Q, 4, rng=0), 0.1),
        U,
        "WorstCase: give its model",
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_is_not_covered_is_refused_by_name(name):
    make, inputs, message = UNCOVERED[name]
    model = make()
    for method in ("box", "affine"):
        with pytest.raises(InputError, match=message):
            robustness.bounds(model, inputs, inputs, method=method)
    with pytest.raises(InputError, match=message):
        robustness.certified(model, inputs, np.zeros(len(inputs), int), 0.1)


@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")
def test_a_fixed_point_that_is_not_proven():
    model = ImplicitModel(P, Q, 4, constraint=Unconstrained(), rng=0, dtype="float64")
    model.params = {**model.params, "A": 3.0 * np.ones((4, 4))}
    for method in ("box", "affine"):
        with pytest.raises(InputError, match=r"boxes need an s > 0 .*project the model"):
            robustness.bounds(model, U, U, method=method)
    with pytest.raises(InputError, match="project the model"):
        robustness.certified(model, U, LABELS, 0.1)
    euclidean = ImplicitModel(P, Q, 12, constraint=Monotone(0.1), rng=0, dtype="float64")
    A = np.random.default_rng(0).normal(size=(12, 12))
    euclidean.params = euclidean.project({**euclidean.params, "A": A - A.T})
    with pytest.raises(InputError, match=r"use method='affine', or train with .*MatrixMeasure"):
        robustness.bounds(euclidean, U, U, method="box")


BAD = {
    "lower above upper": ({"lower": U + 1, "upper": U}, "no entry of lower larger"),
    "shapes": ({"lower": U, "upper": U[:3]}, r"lower has shape \(12, 3\) and upper \(3, 3\)"),
    "columns": ({"lower": U[:, :2], "upper": U[:, :2]}, "3"),
    "a vector": ({"lower": U[0], "upper": U[0]}, "shape"),
    "nan": ({"lower": np.nan * U, "upper": U}, "lower .*(nan|NaN|finite)"),
    "infinite": ({"lower": U, "upper": np.inf * np.ones_like(U)}, "upper .*(inf|finite)"),
    "sparse": ({"lower": scipy.sparse.csr_array(U), "upper": U}, "lower.*(sparse|array)"),
    "no rows": ({"lower": U[:0], "upper": U[:0]}, "no rows; at least one"),
    "method": ({"method": "exact"}, "method is 'exact'; use 'affine' or 'box'"),
    "no rounds": ({"rounds": 0}, "rounds"),
    "half a round": ({"rounds": 0.5}, "rounds"),
    "lengths": ({"lengths": [1] * M}, "ImplicitModel takes no lengths .* leave them out"),
    "model": ({"model": np.tanh}, "model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_boxes_are_refused(name):
    more, message = BAD[name]
    given = {"model": MODEL, "lower": U - 0.1, "upper": U + 0.1, **more}
    for door, extra in ((robustness.bounds, {}), (robustness.margins, {"labels": LABELS})):
        with pytest.raises(InputError, match=message):
            door(**given, **extra)


SURE = {
    "eps below 0": ({"eps": -0.1}, "eps is -0.1; a finite distance, at least 0"),
    "eps nan": ({"eps": float("nan")}, "eps is nan"),
    "eps infinite": ({"eps": float("inf")}, "eps is inf"),
    "eps an array": ({"eps": np.ones(3)}, "eps is array"),
    "norm": ({"norm": 1}, "norm is 1; use 'inf' or 2"),
    "norm as a number": ({"norm": np.inf}, "norm is inf; use 'inf' or 2"),
    "clip": ({"clip": 1.0}, r"clip is 1.0; give \(smallest, largest\)"),
    "clip turned": ({"clip": (1, 0)}, r"clip is \(1, 0\)"),
    "clip nan": ({"clip": (0, float("nan"))}, "clip is"),
    "clip too narrow": ({"clip": (-0.1, 0.1)}, "entries of U lie outside of clip"),
    "rounds": ({"rounds": 0}, "rounds"),
    "labels of floats": ({"labels": LABELS * 1.0}, "labels have shape .* and dtype float64"),
    "labels of booleans": ({"labels": LABELS > 0}, "labels have .* dtype bool"),
    "too few labels": ({"labels": LABELS[:3]}, r"labels have shape \(3,\)"),
    "labels below 0": ({"labels": LABELS - 5}, "labels .* lie between -5"),
    "labels above q": ({"labels": LABELS + 5}, "0, ..., 2"),
    "labels of steps": ({"labels": np.zeros((M, P), int)}, r"labels have shape \(12, 3\)"),
    "lengths": ({"lengths": [1] * M}, "takes no lengths"),
}


@pytest.mark.parametrize("name", SURE)
def test_bad_questions_are_refused(name):
    more, message = SURE[name]
    with pytest.raises(InputError, match=message):
        robustness.certified(**{"model": MODEL, "U": U, "labels": LABELS, "eps": 0.1, **more})


def test_lengths_that_do_not_fit():
    model = ImplicitRNN(P, Q, 4, 5, rng=0, dtype="float64")
    S = np.zeros((2, 4, P))
    for lengths, message in (
        ([0, 4], "lengths lie between 0 and 4"),
        ([1, 5], "lengths lie between 1 and 5"),
        ([1, 2, 3], r"lengths has shape \(3,\)"),
        (np.zeros((2, 4), bool), "2 sequences have no step"),
    ):
        with pytest.raises(InputError, match=message):
            robustness.bounds(model, S, S, lengths)
