"""Compressed models: what the rounding keeps, and that no output changes by more than proved."""

import importlib

import boxes
import numpy as np
import pytest
from changes import Q, attained, own_answers
from helpers import host

from pyidl import ImplicitModel, Linear, Pattern, Residual, Sequential, activations, robustness
from pyidl.errors import InputError
from pyidl.robustness.states import States
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    LipschitzBound,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
)

compress = importlib.import_module("pyidl.robustness.compress")

WAYS = ("float16", "int8", "prune")
SAFE = [k for k in boxes.kinds(5) if "measure" in k or k in ("silu", "gelu", "sin", "pattern")]
SAFE += ["perron", "triangular", "block triangular", "no bias", "no D"]


def inputs(seed, m=4, p=3):
    return np.random.default_rng(seed).normal(size=(m, p)).astype("float32")


# ----------------------------------------------------------------------- given inputs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SAFE)
def test_no_output_changes_by_more(kind, way):
    for n, dtype in ((5, "float64"), (20, "float32")):
        model, U = boxes.drawn(kind, n, seed=n, dtype=dtype), inputs(n)
        twin, report = robustness.compress(model, way, U=U)
        change, off, Y, Y0 = own_answers(model, twin, U)
        assert np.all(np.abs(change) - off <= report.change)
        assert np.all(report.change <= 1.001 * np.abs(change) + off + 1e-6)  # and hardly more
        lost = Y.argmax(axis=1) != Y0.argmax(axis=1)
        assert not np.any(lost & report.kept)
        assert model.constraint.contains(twin.params, twin.activation)
        assert twin.dtype == dtype
        assert report.change.shape == (4, Q)
        assert report.after < report.before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 100])
def test_small_and_wide(n, way):
    model, U = boxes.drawn("tanh measure", n, seed=n), inputs(n)
    twin, report = robustness.compress(model, way, U=U)
    change, off, *_ = own_answers(model, twin, U)
    assert np.all(np.abs(change) - off <= report.change)


def test_classes_may_be_lost_and_are_then_not_certain():
    """Of inputs on the border some change their class; all others are certain."""
    model, U = boxes.drawn("relu measure", 5, seed=0), inputs(0, m=2000)
    twin, report = robustness.compress(model, "prune", U=U)
    _, _, Y, Y0 = own_answers(model, twin, U)
    lost = Y.argmax(axis=1) != Y0.argmax(axis=1)
    assert lost.any()
    np.testing.assert_array_equal(report.kept, ~lost)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_changes_where_there_is_nothing_to_round(way):
    model, U = boxes.drawn("perron", 5, seed=0), inputs(0)
    twin, _ = robustness.compress(model, way, U=U)
    lower, upper = U - 0.5, U + 0.5
    other, report = robustness.compress(twin, way, lower=lower, upper=upper, share=0.01)
    for key, a in twin.params.items():
        np.testing.assert_array_equal(a, other.params[key])
    assert report.change.max() < 1e-12
    assert robustness.compress(twin, way, U=U, share=0.01)[1].change.max() < 1e-6


def one_entry(entry=0.501):
    """``x = relu(x / 2 + u)``, ``y = x``: with A rounded to 1/2, y = 2 u."""
    model = ImplicitModel(1, 1, 1, bias=False, feedthrough=False, dtype="float64", rng=0)
    model.params = {"A": [[entry]], "B": [[1.0]], "C": [[1.0]]}
    return model


def test_one_entry_by_hand():
    """In float16 0.501 becomes 0.5009765625, towards zero; ``y = u / (1 - A)``."""
    twin, report = robustness.compress(one_entry(), U=[[2.0], [-1.0]])
    assert twin.params["A"][0, 0] == 0.5009765625
    expected = 2.0 / (1 - 0.501) - 2.0 / (1 - 0.5009765625)
    np.testing.assert_allclose(report.change, [[expected], [0.0]], rtol=1e-6, atol=1e-8)
    _, report = robustness.compress(one_entry(), lower=[[1.0]], upper=[[2.0]])
    np.testing.assert_allclose(report.change, [[expected]], rtol=1e-9)
    assert (report.before, report.after) == (24, 6)


def test_scales_of_int8_are_exact():
    """Entries are whole multiples of one number a row, in float32 too, tiny ones as well."""
    for scale in (1.0, 1e-30, 1e-43):
        model = Linear(4, 3, rng=0)
        model.params = {key: host(a) * np.float32(scale) for key, a in model.params.items()}
        twin, report = robustness.compress(model, "int8", U=inputs(0, p=4))
        W = host(twin.params["W"]).astype(float)
        for row in W[W.any(axis=1)]:
            unit = np.abs(row).max() / np.arange(100, 129)
            whole = row / unit[:, None]
            whole = np.abs(whole - np.rint(whole)).max(axis=1)
            assert whole.min() < 1e-9
        assert report.after == 12 + 3 * 4 + 3 + 4


def test_the_smallest_entries_are_pruned():
    model = Linear(5, 4, rng=0, dtype="float64")
    twin, report = robustness.compress(model, "prune", U=inputs(0, p=5), share=0.3)
    W, left = host(model.params["W"]), host(twin.params["W"])
    gone = left == 0
    assert gone.sum() == 6
    assert np.abs(W[gone]).max() <= np.abs(W[~gone]).min()
    np.testing.assert_array_equal(left[~gone], W[~gone])
    assert report.after == 14 * 8 + 3 + 4 * 8


# ----------------------------------------------------------------------------- the set


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", range(6))
def test_no_model_leaves_its_set(place, way):
    """On the boundary, and the measure and row sums do not grow."""
    for seed in range(16):
        n = 2 + seed % 6
        ball = (InfNorm(0.9), PerronFrobenius(0.9), MatrixMeasure(0.8), StrictlyTriangular())
        ball = (*ball, BlockTriangular((1, n - 1), MatrixMeasure(0.7)))
        sets = (MatrixMeasure(0.7), PerronFrobenius(0.9))
        ball = (*ball, BlockTriangular((1, n - 1), sets))[place]
        rng = np.random.default_rng(seed)
        model = ImplicitModel(3, Q, n, constraint=ball, rng=seed, dtype="float64")
        A = 3.0 * rng.normal(size=(n, n)) - np.diag(rng.integers(0, 2, n) * 5.0)
        model.params = model.project({**model.params, "A": A})
        twin, _ = robustness.compress(model, way, U=inputs(seed), share=0.3)
        A, A0 = model.params["A"], twin.params["A"]
        assert ball.contains(twin.params, twin.activation)
        assert np.all(A0[A == 0] == 0)
        if place < 2:
            assert np.all(np.abs(A0) <= np.abs(A))
        elif place == 2:
            grown = [np.abs(W).sum(axis=1) - np.abs(np.diag(W)) + np.diag(W) for W in (A0, A)]
            assert np.all(grown[0] <= grown[1])
            assert np.all(np.diag(A0) <= np.diag(A))


def test_rounding_to_nearest_would_leave_it(monkeypatch):
    monkeypatch.setattr(compress, "_limits", lambda layer, key, W: (W * 0 - 9e9, W * 0 + 9e9))
    monkeypatch.setattr(compress, "SHRUNK", (0.0,))
    refused = 0
    for seed in range(8):
        try:
            robustness.compress(boxes.drawn("relu measure", 5, seed=seed), "int8", U=inputs(0))
        except InputError as error:
            assert "leave the set MatrixMeasure" in str(error)  # noqa: PT017
            refused += 1
    assert refused >= 6


def on_the_boundary(ball, seed, n=6, rank=None):
    model = ImplicitModel(3, Q, n, constraint=ball, rng=seed, rank=rank, dtype="float64")
    rng = np.random.default_rng(seed)
    large = {key: 3.0 * rng.normal(size=a.shape) for key, a in model.params.items() if key in "AL"}
    model.params = model.project({**model.params, **large})
    return model


@pytest.mark.parametrize("way", ["float16", "int8"])
@pytest.mark.parametrize(
    ("ball", "rank", "scaled"),
    [
        (SpectralNorm(0.9), None, "A"),
        (SpectralNorm(0.9), 2, "L"),
        (InfNorm(0.9), 2, "L"),
        (Monotone(0.1), None, "A"),
        (BlockTriangular((2, 4), Monotone(0.1)), None, "A"),
        (LipschitzBound(2.0), None, "ABCD"),
    ],
    ids=str,
)
def test_sets_without_a_safe_side(ball, rank, scaled, way):
    """On their boundary A is made smaller before, by what is needed, and that is told."""
    needed = 0
    for seed in range(6):
        model, U = on_the_boundary(ball, seed, rank=rank), inputs(seed)
        twin, report = robustness.compress(model, way, U=U)
        assert ball.contains(twin.params, twin.activation)
        change, off, *_ = own_answers(model, twin, U)
        assert np.all(np.abs(change) - off <= report.change)
        assert ("was made smaller by" in repr(report)) == (report.shrunk > 0)
        needed += report.shrunk > 0
        dtype, far = model.params["B"].dtype, report.shrunk
        for key, W in model.params.items():
            W = host(W) * (1.0 - far if key in scaled else 1.0)
            wide = (np.full(W.shape, s * np.inf) for s in (-1, 1))
            expected, _ = compress._rounded(W, way, 0.2, dtype, key, *wide)
            np.testing.assert_array_equal(twin.params[key], expected)
    assert needed >= 3


def test_no_more_than_is_needed(monkeypatch):
    """With half of the t that was taken the set is left; inside of it nothing is scaled."""
    model, U = on_the_boundary(Monotone(0.1), 0), inputs(0)
    _, report = robustness.compress(model, "int8", U=U)
    assert 0 < report.shrunk < 0.1
    monkeypatch.setattr(compress, "SHRUNK", (0.0, report.shrunk / 2))
    with pytest.raises(InputError, match=r"leave the set Monotone.*smaller by .*%; .*smaller set"):
        robustness.compress(model, "int8", U=U)
    assert robustness.compress(model.replace(constraint=Monotone(0.05)), "int8", U=U)[1].shrunk == 0


def test_float16_overflows():
    model = Linear(2, 2, rng=0)
    model.params = {"W": np.full((2, 2), 7e4), "b": np.zeros(2)}
    with pytest.raises(InputError, match=r"W has an entry of size 7e\+04, which overflows"):
        robustness.compress(model, U=inputs(0, p=2))


# ---------------------------------------------------------------- chains, other models


@pytest.mark.parametrize("way", WAYS)
def test_models_of_layers(way):
    for table, name in (
        (boxes.NETS, "nested"),
        (boxes.NETS, "implicit residual"),
        (boxes.SEQUENCES, "sequences"),
        (boxes.SEQUENCES, "both ways"),
    ):
        model = boxes.net(table, name, seed=1)
        U = np.random.default_rng(0).normal(size=(3, 3) if table is boxes.NETS else (3, 4, 3))
        twin, report = robustness.compress(model, way, U=U)
        change = np.abs(model.predict(U) - twin.predict(U))
        assert np.all(change <= report.change + 1e-9)
        assert np.all(report.change <= 1.01 * change + 1e-6)
        assert report.largest.shape == change.shape[-1:]


def test_a_model_is_not_touched():
    model = Sequential(Residual(ImplicitModel(3, 3, 4, rng=0)), Linear(3, 2, rng=0))
    before = {key: a.copy() for key, a in model.params.items()}
    robustness.compress(model, "prune", U=inputs(0))
    for key, a in before.items():
        np.testing.assert_array_equal(a, model.params[key])


def test_zeros_of_a_pattern_stay():
    keep = np.random.default_rng(0).random((6, 6)) < 0.5
    model = ImplicitModel(3, Q, 6, pattern=Pattern(A=keep), constraint=InfNorm(0.9), rng=0)
    for way in WAYS:
        assert not robustness.compress(model, way, U=inputs(0))[0].params["A"][~keep].any()


# ------------------------------------------------------------------------------- boxes


def searched(kinds, ways=WAYS, sizes=(2, 5), small=1e-3, large=1.0):
    """Bounds over attained changes, of all boxes of these models; and violations."""
    ratios, missed = [], 0
    for number, kind in enumerate(kinds):
        for n in sizes:
            rng = np.random.default_rng([number, n])
            model = boxes.drawn(kind, n, seed=n)
            lo, hi = boxes.boxes(rng, 3, 3, 10.0 ** rng.uniform(np.log10(small), np.log10(large)))
            for way in ways:
                twin, report = robustness.compress(model, way, lower=lo, upper=hi)
                least, lost = attained(model, twin, lo, hi, rng)
                missed += np.count_nonzero(least > report.change) + np.count_nonzero(
                    lost & report.kept
                )
                ratios.append((report.change / np.maximum(least, 1e-12))[least > 1e-9])
    return np.concatenate(ratios), missed


def test_boxes():
    ratios, missed = searched(SAFE, sizes=(5,))
    assert missed == 0
    assert np.median(ratios) < 1.2


@pytest.mark.slow
def test_a_wide_model_on_boxes():
    ratios, missed = searched(["relu measure", "tanh measure"], ("int8",), (60,), 0.05, 0.1)
    assert missed == 0
    assert np.median(ratios) < 1.5


def test_without_weights_and_with_factors():
    """Monotone and low rank: on boxes too, far narrower than the outputs themselves."""
    model = boxes.drawn("monotone tanh", 6, seed=0).replace(constraint=Monotone(0.1))
    assert States.of(model, {k: host(a) for k, a in model.params.items()}).weights is None
    rank = boxes.drawn("rank", 6, seed=0).replace(constraint=InfNorm(0.99))
    for net in (model, rank):
        lo, hi = boxes.boxes(np.random.default_rng(0), 2, 3, 0.2)
        twin, report = robustness.compress(net, lower=lo, upper=hi)
        least, _ = attained(net, twin, lo, hi, np.random.default_rng(0))
        assert np.all(least <= report.change)
        assert np.all(report.change < 0.1 * robustness.bounds(net, lo, hi).width)


def test_softmax_has_the_width_of_its_outputs():
    model = boxes.drawn("softmax", 6, seed=0).replace(constraint=InfNorm(0.95))
    lo, hi = boxes.boxes(np.random.default_rng(0), 2, 3, 0.2)
    twin, report = robustness.compress(model, lower=lo, upper=hi)
    least, _ = attained(model, twin, lo, hi, np.random.default_rng(0))
    assert np.all(least <= report.change)


def test_boxes_alone_and_together():
    model = boxes.drawn("relu measure", 5, seed=0)
    lo, hi = boxes.boxes(np.random.default_rng(0), 3, 3, 0.3)
    together = robustness.compress(model, lower=lo, upper=hi)[1]
    for i in range(3):
        _, alone = robustness.compress(model, lower=lo[i : i + 1], upper=hi[i : i + 1])
        np.testing.assert_allclose(alone.change[0], together.change[i], rtol=1e-12)
        assert alone.kept[0] == together.kept[i]


# ------------------------------------------------------------------------------- twins


def test_a_twin_without_the_difference_of_parameters_is_caught(monkeypatch):
    apart = compress._apart
    monkeypatch.setattr(
        compress, "_apart", lambda v, W, b=0.0, doubt=0.0: apart(v, 0.5 * W, b, doubt)
    )
    assert searched(["relu measure", "tanh measure"])[1] > 0


def test_a_twin_without_slopes_in_between_is_caught(monkeypatch):
    affine = States.affine

    def flat(self, z, x, D, k, rho):
        return affine(self, z, x, D, k, 0.0 * rho)

    monkeypatch.setattr(States, "affine", flat)
    assert searched(["relu measure", "hard_tanh measure"], small=0.5)[1] > 0


def test_a_twin_without_residuals_is_caught(monkeypatch):
    """A solver that stops early: bounds of points must be wider by its residual."""
    from pyidl.robustness import states

    model, U = boxes.drawn("relu measure", 5, seed=0), inputs(0)
    embedded = States._embedded

    def early(self, z):
        return embedded(self, z) + 1e-3

    monkeypatch.setattr(States, "_embedded", early)
    monkeypatch.setattr(compress, "SHARP", np.inf)
    twin, report = robustness.compress(model, "float16", U=U)
    change, off, *_ = own_answers(model, twin, U)
    assert np.all(np.abs(change) - off <= report.change)
    monkeypatch.setattr(states.Weights, "error", lambda self, r: 0.0 * r)
    broken = [robustness.compress(model, way, U=U) for way in WAYS]
    short = 0
    for twin, report in broken:
        change, off, *_ = own_answers(model, twin, U)
        short += np.count_nonzero(np.abs(change) - off > report.change)
    assert short > 0


def test_a_twin_that_compares_with_half_a_margin_is_caught(monkeypatch):
    """Margins that are half of what they are beyond the middle keep classes that are lost."""
    margins = compress.margins

    def half(model, lo, hi, labels):
        middle = 0.5 * lo + 0.5 * hi
        at, beyond = margins(model, middle, middle, labels), margins(model, lo, hi, labels)
        return 0.5 * at + 0.5 * beyond

    monkeypatch.setattr(compress, "margins", half)
    rng, kinds = np.random.default_rng(0), ("relu measure", "tanh measure")
    broken = 0
    for kind in kinds:
        model = boxes.drawn(kind, 5, seed=3)
        lo, hi = boxes.boxes(rng, 40, 3, 0.5)
        twin, report = robustness.compress(model, "int8", lower=lo, upper=hi)
        broken += np.count_nonzero(attained(model, twin, lo, hi, rng)[1] & report.kept)
    assert broken > 0


# ----------------------------------------------------------------- what is shown, and refused


def test_what_is_shown():
    model = boxes.drawn("relu measure", 5, seed=0)
    _, report = robustness.compress(model, "int8", U=inputs(0))
    text = repr(report)
    assert text.startswith("Compressed (int8)\noutput  changes at most by\n     0")
    assert f"{report.after:,} bytes, {report.before:,} before" in text
    assert f"{report.kept.sum()} of 4" in text
    assert "<table>" in report._repr_html_()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "int4"}, "kind is 'int4'; use 'float16'"),
        ({"share": 1.0}, "share is 1.0; a number between 0 and 1"),
        ({"U": None}, "give U, or else lower and upper"),
        ({"lower": np.zeros((1, 3))}, "give U, or else lower and upper"),
        ({"U": np.zeros((2, 4))}, r"U has shape \(2, 4\)"),
        ({"U": "wrong"}, "U"),
        ({"U": None, "lower": np.ones((1, 3)), "upper": np.zeros((1, 3))}, "no entry of lower"),
    ],
)
def test_what_is_refused(options, words):
    model = ImplicitModel(3, 2, 4, rng=0)
    with pytest.raises(InputError, match=words):
        robustness.compress(model, **{"U": inputs(0), **options})


def test_a_box_is_for_an_implicit_model():
    chain = Sequential(Linear(3, 3, rng=0), activations.relu)
    with pytest.raises(
        InputError, match=r"lower and upper are for an ImplicitModel, .* Sequential"
    ):
        robustness.compress(chain, lower=inputs(0), upper=inputs(0))
