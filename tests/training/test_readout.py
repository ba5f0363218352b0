"""The read-out in closed form: that of other libraries, and what it is without each sample."""

import numpy as np
import pytest
import scipy.sparse
from helpers import host, moved, random_model, relative

from pyidl import (
    Dropout,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Pattern,
    Residual,
    Sequential,
    activations,
    fit,
    losses,
    optim,
    readout,
    wellposed,
)
from pyidl.errors import ConvergenceError, ConvergenceWarning, InputError
from pyidl.solvers import Picard
from pyidl.training import readout as solve

RNG = np.random.default_rng(0)
U = RNG.normal(size=(60, 4))
TARGET = np.stack([np.sin(U[:, 0]) + U[:, 1] * U[:, 2], U[:, 3] ** 2, np.cos(U[:, 0])], axis=1)
WEIGHTS = RNG.uniform(0.5, 2.0, 60)
EYE = np.eye


def model_of(**options):
    return random_model(ImplicitModel, 4, 3, 12, **{"dtype": "float64", **options})


def columns(model, inputs):
    """X and U side by side: what K = [C D] multiplies."""
    X = model.equilibrium(inputs).value
    return np.hstack([X, inputs]) if model.feedthrough else X


def by_qr(F, Y, ridge, bias, w=None):
    """K and d by QR of [F - mean; ridge^{1/2} I], with the square roots of weights."""
    w = np.ones(len(F)) if w is None else w
    f, y = (np.average(a, axis=0, weights=w) * bias for a in (F, Y))
    root, k = np.sqrt(w)[:, None], F.shape[1]
    Q, R = np.linalg.qr(np.vstack([root * (F - f), np.sqrt(ridge) * EYE(k)]))
    K = np.linalg.solve(R, Q.T @ np.vstack([root * (Y - y), np.zeros((k, Y.shape[1]))])).T
    return K, y - K @ f


def found(model):
    """K and d as the model has them."""
    params = model.params
    K = np.hstack([params[key] for key in "CD" if key in params])
    return K, params.get("d", np.zeros(len(K)))


# ---------------------------------------------------------------- against other ways to it


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weights"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("feedthrough", [True, False], ids=["D", "no D"])
@pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e4])
def test_it_is_the_ridge_regression_of_scikit_learn(ridge, feedthrough, bias, weights):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    model = model_of(bias=bias, feedthrough=feedthrough)
    readout(model, U, TARGET, weights, ridge=ridge)
    F = columns(model, U)
    theirs = linear.Ridge(ridge, fit_intercept=bias, solver="svd").fit(F, TARGET, weights)
    K, d = found(model)
    assert relative(K, theirs.coef_) < 1e-12
    assert np.allclose(d, theirs.intercept_, atol=1e-13)
    for ours, by in zip((K, d), by_qr(F, TARGET, ridge, bias, weights), strict=True):
        assert np.max(np.abs(ours - by)) < 1e-12 * np.max(np.abs(K))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weights"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("m", [60, 16, 9], ids=["many", "as many as columns", "few"])
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-2, 10.0])
def test_a_sample_that_is_left_out(ridge, m, bias, weights):
    """Against the fit without it; with fewer samples than columns all samples are met."""
    model, w = model_of(bias=bias), None if weights is None else weights[:m]
    result = readout(model, U[:m], TARGET[:m], w, ridge=ridge)
    w = np.ones(m) if w is None else w
    F = columns(model, U[:m])
    for i in (0, 5, m - 1):
        others = np.arange(m) != i
        f, y = (np.average(a[others], axis=0, weights=w[others]) * bias for a in (F, TARGET[:m]))
        root = np.sqrt(w[others])[:, None]
        K = (
            np.linalg.pinv(root * (F[others] - f)) @ (root * (TARGET[:m][others] - y))
            if ridge == 0
            else by_qr(F[others], TARGET[:m][others], ridge, bias, w[others])[0].T
        )
        # With a ridge of 1e-9, QR of the others itself is known to 1e-8 no better.
        assert np.allclose((F[i] - f) @ K + y, result.left_out[i], rtol=1e-7, atol=1e-7)
    misses = TARGET[:m] - result.left_out
    assert np.allclose(np.average(misses**2, axis=0, weights=w), result.left_out_error)
    fitted = TARGET[:m] - model.predict(U[:m])
    assert np.allclose(np.average(fitted**2, axis=0, weights=w), result.error, atol=1e-20)
    assert result.rank == min(16, m - bias)
    if m == 9 and ridge < 1e-2:
        assert np.all(result.error < 1e-14)
        assert np.all(result.left_out_error > 1e-3)


def test_the_ridge_is_the_best_of_those_that_are_tried():
    model = model_of()
    chosen = readout(model, U, TARGET)
    assert 0 < chosen.ridge < np.inf
    tried = [readout(model, U, TARGET, ridge=chosen.ridge * factor) for factor in (0.3, 1, 3)]
    errors = [np.mean(other.left_out_error) for other in tried]
    assert errors[1] == min(errors)
    assert errors[1] < errors[0]  # of these targets the curve is not flat
    assert errors[1] < errors[2]
    assert errors[1] == pytest.approx(np.mean(chosen.left_out_error), rel=1e-12)


@pytest.mark.parametrize(("cond", "ours", "normal"), [(1e2, 1e-13, 1e-13), (1e6, 1e-9, 1e-7)])
def test_conditioning(cond, ours, normal):
    """The error of normal equations grows with the square of the condition."""
    rng = np.random.default_rng(1)
    P, Q = np.linalg.qr(rng.normal(size=(200, 8)))[0], np.linalg.qr(rng.normal(size=(8, 8)))[0]
    F = P * np.geomspace(1, 1 / cond, 8) @ Q
    W = rng.normal(size=(1, 8))
    layer = Linear(8, 1, bias=False, dtype="float64", rng=0)
    result = readout(layer, F, F @ W.T, ridge=0)
    assert result.condition == pytest.approx(cond, rel=1e-3)
    assert relative(layer.params["W"], W) < ours
    if normal > ours:
        squared = np.linalg.solve(F.T @ F, F.T @ (F @ W.T)).T
        assert relative(squared, W) > normal


def test_conditioning_where_normal_equations_know_nothing():
    rng = np.random.default_rng(1)
    P, Q = np.linalg.qr(rng.normal(size=(200, 8)))[0], np.linalg.qr(rng.normal(size=(8, 8)))[0]
    F = P * np.geomspace(1, 1e-9, 8) @ Q
    W = rng.normal(size=(1, 8))
    layer = Linear(8, 1, bias=False, dtype="float64", rng=0)
    readout(layer, F, F @ W.T, ridge=0)
    assert relative(layer.params["W"], W) < 1e-6
    assert relative(np.linalg.solve(F.T @ F, F.T @ (F @ W.T)).T, W) > 0.1


# --------------------------------------------------------------------------- hard columns


def test_dead_units_are_not_read():
    """Their columns are zero: of all solutions the one of least norm is taken."""
    model = model_of()
    dead = np.arange(12) < 5
    model.params = {
        **model.params,
        "A": model.params["A"] * ~dead[:, None],
        "B": model.params["B"] * ~dead[:, None],
        "b": np.where(dead, -1.0, model.params["b"]),
    }
    result = readout(model, U, TARGET, ridge=0)
    assert (result.rank, result.width) == (11, 16)
    assert np.max(np.abs(model.params["C"][:, dead])) == 0.0
    K = by_qr(columns(model, U)[:, np.append(~dead, [True] * 4)], TARGET, 0.0, True)[0]
    assert relative(found(model)[0][:, np.append(~dead, [True] * 4)], K) < 1e-12


def test_a_constant_column_is_that_of_the_bias():
    """Its rounding, about its mean, is not taken for a direction."""
    constant = np.concatenate([U, np.full((60, 1), 1e6 / 3)], axis=1)
    layer, less = (Linear(p, 3, dtype="float64", rng=0) for p in (5, 4))
    result = readout(layer, constant, TARGET, ridge=0)
    readout(less, U, TARGET, ridge=0)
    assert (result.rank, result.width) == (4, 5)
    assert not layer.params["W"][:, 4].any()
    assert np.allclose(layer.params["W"][:, :4], less.params["W"], rtol=1e-12)
    with_none = Linear(5, 3, bias=False, dtype="float64", rng=0)
    assert readout(with_none, constant, TARGET, ridge=0).rank == 5


def test_constant_targets_and_no_live_column():
    layer = Linear(4, 2, dtype="float64", rng=0)
    result = readout(layer, np.ones((6, 4)), np.tile([2.0, -1.0], (6, 1)))
    assert result.rank == 0
    assert np.isnan(result.condition)
    assert not layer.params["W"].any()
    assert np.allclose(layer.params["b"], [2.0, -1.0], rtol=1e-15)
    assert "rank 0 of 4" in repr(result)
    found = readout(layer, U, np.zeros((60, 2)))  # all ridges are as good, and the largest is taken
    assert found.ridge == pytest.approx(1e3 * np.linalg.norm(U - U.mean(axis=0), 2) ** 2)


def test_directions_are_counted_up_to_rounding():
    rng = np.random.default_rng(1)
    P, Q = np.linalg.qr(rng.normal(size=(200, 8)))[0], np.linalg.qr(rng.normal(size=(8, 8)))[0]
    layer = Linear(8, 1, bias=False, dtype="float64", rng=0)
    for least, rank in ((1e-12, 8), (1e-17, 7)):
        s = np.append(np.ones(7), least)
        assert readout(layer, P * s @ Q, P[:, :1], ridge=0).rank == rank


def test_one_sample():
    layer = Linear(4, 3, dtype="float64", rng=0)
    before = dict(layer.params)
    with pytest.raises(InputError, match=r"ridge is 'loo'.* there is 1; give a number"):
        readout(layer, U[:1], TARGET[:1])
    with pytest.raises(InputError, match="there is 1"):
        readout(layer, U, TARGET, np.arange(60) == 3)
    assert all(layer.params[key] is a for key, a in before.items())
    result = readout(layer, U[:1], TARGET[:1], ridge=1.0)
    assert np.array_equal(layer.predict(U[:1]), TARGET[:1])
    assert np.isnan(result.left_out_error).all()
    free = Linear(4, 3, bias=False, dtype="float64", rng=0)
    assert np.allclose(readout(free, U[:1], TARGET[:1]).left_out, 0.0, atol=1e-15)


def test_sizes_of_which_no_square_is_a_number():
    layer = Linear(4, 3, dtype="float64", rng=0)
    for size in (1e-150, 1e150):
        with pytest.raises(InputError, match="units in which they lie below 1e\\+100"):
            readout(layer, size * U, TARGET)
    usual = readout(layer, U, TARGET, ridge=0)
    fitted = layer.predict(U)
    for size in (1e-90, 1e90):
        result = readout(layer, size * U, TARGET, ridge=0)
        assert np.allclose(layer.predict(size * U), fitted, rtol=1e-12, atol=1e-13)
        assert np.allclose(result.left_out, usual.left_out, rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------- models and their data


def test_only_the_read_out_changes_and_samples_and_batches_do_not_matter():
    model, other = model_of(), model_of()
    before = dict(model.params)
    first = readout(model, (U, TARGET, WEIGHTS), ridge=0.1)
    assert all(model.params[key] is before[key] for key in "ABb")
    order = np.random.default_rng(3).permutation(60)
    second = readout(other, U[order], TARGET[order], WEIGHTS[order], ridge=0.1, batch_size=7)
    assert np.allclose(first.left_out[order], second.left_out, atol=1e-12)
    assert all(np.allclose(model.params[key], other.params[key], atol=1e-12) for key in "CDd")


def test_a_weight_is_a_number_of_samples():
    model, other = model_of(), model_of()
    counts = RNG.integers(0, 4, 60)
    readout(model, U, TARGET, counts.astype(float), ridge=0.1)
    readout(other, np.repeat(U, counts, axis=0), np.repeat(TARGET, counts, axis=0), ridge=0.1)
    assert all(relative(model.params[key], other.params[key]) < 1e-12 for key in "CDd")
    many = readout(model, U, TARGET, 1e300 * WEIGHTS)
    few = readout(other, U, TARGET, WEIGHTS)
    assert np.allclose(many.left_out, few.left_out, atol=1e-12)
    assert many.ridge == pytest.approx(1e300 * few.ridge)


def test_labels_are_one_and_minus_one():
    labels = (U[:, 0] > 0).astype(int) + (U[:, 1] > 0)
    model, other = model_of(), model_of()
    readout(model, U, labels, ridge=0.1)
    readout(other, U, 2.0 * EYE(3)[labels] - 1.0, ridge=0.1)
    assert all(np.array_equal(model.params[key], other.params[key]) for key in "CDd")
    assert np.mean(model.predict(U).argmax(axis=1) == labels) > 0.8
    with pytest.raises(InputError, match="labels between 1 and 3; with 3 outputs"):
        readout(model, U, labels + 1)


@pytest.mark.parametrize("D", [None, np.array([[1, 1, 0, 0]] * 3, bool)], ids=["D free", "D"])
def test_zeros_of_a_pattern_stay(D):
    """Outputs that read other columns are other problems, with one ridge."""
    C = np.ones((3, 12), bool)
    C[1, 4:] = C[2, :10] = False
    model = model_of(pattern=Pattern(C=C, D=D))
    result = readout(model, U, TARGET, ridge=0.5)
    inside = np.hstack([C, np.ones((3, 4), bool) if D is None else D])
    K, d = found(model)
    assert not K[~inside].any()
    F = columns(model, U)
    for k, mask in enumerate(inside):
        own, shift = by_qr(F[:, mask], TARGET[:, k : k + 1], 0.5, True)
        assert np.allclose(K[k, mask], own[0], atol=1e-12)
        assert np.allclose(d[k], shift, atol=1e-12)
    assert (result.rank, result.width) == (min(inside.sum(axis=1)),) * 2
    worst = max(np.linalg.cond((F - F.mean(axis=0))[:, mask]) for mask in inside)
    assert result.condition == pytest.approx(worst)
    assert readout(model, U, TARGET).ridge > 0


def test_an_output_that_reads_nothing_is_its_mean():
    C = np.ones((3, 12), bool)
    C[1] = False
    model = model_of(pattern=Pattern(C=C), feedthrough=False)
    result = readout(model, U, TARGET, ridge=0.5)
    assert np.allclose(model.predict(U)[:, 1], TARGET[:, 1].mean())
    others = (np.sum(TARGET[:, 1]) - TARGET[:, 1]) / 59
    assert np.allclose(result.left_out[:, 1], others)


def test_a_feed_forward_pattern_and_a_low_rank():
    pattern = Pattern.feed_forward(4, 6, 6, 3)
    for model in (model_of(pattern=pattern), model_of(rank=3)):
        result = readout(model, U, TARGET)
        assert np.all(result.error < np.var(TARGET, axis=0))
        assert np.allclose(np.mean((model.predict(U) - TARGET) ** 2, axis=0), result.error)


def test_other_layers_with_a_linear_end():
    S, lengths = RNG.normal(size=(40, 5, 2)), RNG.integers(1, 6, 40)
    for pool in ("last", "mean", "max"):
        network = random_model(ImplicitRNN, 2, 3, 6, 8, pool=pool, dtype="float64")
        before = dict(network.params)
        readout(network, ((S, lengths), TARGET[:40]), ridge=0.1)
        assert all(network.params[key] is a for key, a in before.items() if key not in "Ee")
        R = network(S, lengths)[1].R
        K, e = by_qr(R, TARGET[:40], 0.1, True)
        assert relative(network.params["E"], K) < 1e-11
        assert np.allclose(network.params["e"], e, atol=1e-11)
    inner = model_of()
    chain = Sequential(Linear(2, 4, rng=1, dtype="float64"), "tanh", Sequential(inner))
    V = U[:, :2]
    readout(chain, V, TARGET, ridge=0.1)
    K, _ = by_qr(columns(inner, Sequential(*chain.layers[:2]).predict(V)), TARGET, 0.1, True)
    assert relative(found(inner)[0], K) < 1e-12


def test_outputs_for_every_step():
    """Steps are rows, which weights may leave out."""
    S, T = RNG.normal(size=(20, 5, 2)), RNG.normal(size=(20, 5, 3))
    network = random_model(ImplicitRNN, 2, 3, 6, 8, return_sequences=True, dtype="float64")
    mask = RNG.uniform(size=(20, 5)) < 0.7
    result = readout(network, S, T, mask.astype(float), ridge=0.1)
    R = network(S)[1].R
    assert relative(network.params["E"], by_qr(R[mask], T[mask], 0.1, True)[0]) < 1e-11
    there = mask[mask.any(axis=1)]
    assert np.array_equal(np.isnan(result.left_out), np.repeat(~there[..., None], 3, axis=2))
    labels = RNG.integers(0, 3, (20, 5))
    twin = network.replace()
    readout(network, S, labels, WEIGHTS[:20], ridge=0.1)
    readout(twin, S, 2.0 * EYE(3)[labels] - 1, np.tile(WEIGHTS[:20, None], (1, 5)), ridge=0.1)
    assert np.array_equal(network.params["E"], twin.params["E"])


def test_float32_is_rounded_and_no_more():
    """Solved in float64 for the states that the model has, and then rounded."""
    model = model_of(dtype="float32")
    result = readout(model, U, TARGET, ridge=1e-3)
    X = host(model.equilibrium(U).value)
    K, _ = by_qr(np.hstack([X, U.astype(np.float32)]).astype(float), TARGET, 1e-3, True)
    assert model.params["C"].dtype == np.float32
    assert np.array_equal(model.params["C"], K[:, :12].astype(np.float32))
    assert np.allclose(np.mean((model.predict(U) - TARGET) ** 2, axis=0), result.error, rtol=1e-4)


def test_on_every_library(xp):
    model = model_of()
    twin = moved(model, xp)
    here = readout(model, U, TARGET)
    there = readout(twin, xp.asarray(U), xp.asarray(TARGET), xp.ones(60))
    assert here.ridge == pytest.approx(there.ridge)
    for key in "CDd":
        assert np.allclose(host(twin.params[key]), model.params[key], atol=1e-8)


# ------------------------------------------------------------------- what is refused, and how


def test_a_constraint_in_which_the_read_out_has_a_say():
    tight = model_of(constraint=wellposed.LipschitzBound(0.1), activation=activations.tanh)
    before = dict(tight.params)
    with pytest.raises(InputError, match=r"outside its constraint.* change A, D; give a larger"):
        readout(tight, U, TARGET, ridge=1e-6)
    assert all(tight.params[key] is a for key, a in before.items())
    wide = model_of(constraint=wellposed.LipschitzBound(100.0), activation=activations.tanh)
    readout(wide, U, TARGET, ridge=10.0)
    assert wide.constraint.contains(wide.params, wide.activation)
    outside = model_of()  # that A lies outside already is none of the read-out's business
    outside.params = {**outside.params, "A": 3.0 * outside.params["A"]}
    readout(outside, U, TARGET, ridge=1.0, on_fail="ignore")


def test_what_fails_is_left_out_and_said():
    model = random_model(
        ImplicitModel,
        *(2, 1, 1),
        activation=activations.abs,
        forward=Picard(max_iter=3),
        bias=False,
        feedthrough=False,
    )
    model.params = {"A": [[0.9]], "B": [[1.0, 0.0]], "C": [[1.0]]}
    inputs = np.zeros((100, 2))
    inputs[:5, 0] = 1.0
    left_out = r"5 of 100 samples failed; they were left out"
    with pytest.warns(ConvergenceWarning, match=left_out) as warned:
        result = readout(model, inputs, np.ones((100, 1)), batch_size=3)
    assert warned[0].filename == __file__
    assert result.failed == 5
    assert "5 samples failed" in repr(result)
    assert np.array_equal(np.isnan(result.left_out[:, 0]), inputs[:, 0] == 1.0)
    assert result.names == ("C",)
    assert not model.params["C"].any()
    inputs[:20, 0] = 1.0
    with pytest.raises(ConvergenceError, match=r"20 of 100.* more than a tenth"):
        readout(model, inputs, np.ones((100, 1)))
    with pytest.raises(ConvergenceError, match="100 of 100"):
        readout(model, inputs + 1.0, np.ones((100, 1)))
    with pytest.raises(ConvergenceError):
        readout(model, inputs[:99], np.ones((99, 1)), on_fail="raise")
    with pytest.warns(ConvergenceWarning):
        assert readout(model, inputs, np.ones((100, 1)), on_fail="warn").failed == 0
    assert len(readout(model, inputs, np.ones((100, 1)), on_fail="ignore").left_out) == 100


def test_what_is_refused():
    model, before = model_of(), None
    before = dict(model.params)
    refused = [
        ({"data": (U, TARGET[:, :1])}, r"targets has shape \(60, 1\).*, or labels"),
        ({"data": (U, TARGET[:, 0])}, r"targets has shape \(60,\)"),
        ({"data": (U, TARGET, np.ones((60, 2)))}, r"weights has shape \(60, 2\)"),
        ({"data": U}, r"write readout\(model, U, targets, ...\)"),
        ({"data": (U, TARGET), "ridge": -1.0}, "ridge is -1.0; use 'loo'"),
        ({"data": (U, TARGET), "ridge": "gcv"}, "ridge is 'gcv'; use 'loo'"),
        ({"data": (U, TARGET), "on_fail": "no"}, "on_fail is 'no'"),
        ({"data": (U, TARGET), "batch_size": 0}, "batch_size is 0"),
        ({"data": (np.where(U > 2, np.nan, U), TARGET)}, "NaN"),
        ({"data": (scipy.sparse.csr_array(U), TARGET)}, "sparse inputs, which D multiplies"),
    ]
    for options, message in refused:
        with pytest.raises(InputError, match=message):
            readout(model, **options)
    assert all(model.params[key] is a for key, a in before.items())
    for other in (Sequential(Linear(4, 4, rng=0), "tanh"), Residual(Linear(4, 4, rng=0))):
        with pytest.raises(InputError, match=f"a {type(other).__name__} whose output"):
            readout(other, U, U)


def test_sparse_inputs_that_only_the_states_read():
    model, other = model_of(feedthrough=False), model_of(feedthrough=False)
    counts = U * (U > 0.5)
    readout(model, scipy.sparse.csr_array(counts), TARGET, ridge=0.1)
    readout(other, counts, TARGET, ridge=0.1)
    assert relative(model.params["C"], other.params["C"]) < 1e-10


def test_noise_is_not_drawn():
    chain = Sequential(Dropout(0.5), Linear(4, 3, dtype="float64", rng=0))
    readout(chain, U, TARGET, ridge=0.1)
    assert relative(chain.params["1.W"], by_qr(U, TARGET, 0.1, True)[0]) < 1e-12


# -------------------------------------------------------------------------------- theorems


def test_the_gradient_of_the_least_error():
    """With the residual as the gradient of the output: against fits that are solved again."""
    model = model_of(activation=activations.tanh)
    ridge, eps = 0.3, 1e-5

    def least(params):
        model.params = params
        readout(model, U, TARGET, ridge=ridge)
        K, _ = found(model)
        return 0.5 * np.sum((model.predict(U) - TARGET) ** 2) + 0.5 * ridge * np.sum(K**2)

    start = {key: host(a) for key, a in model.params.items()}
    least(start)
    solved, (Y, pull) = dict(model.params), model(U)
    _, grads = pull(Y - TARGET)
    rng = np.random.default_rng(5)
    for key in "ABb":
        way = rng.normal(size=start[key].shape)
        up, down = (least({**start, key: start[key] + t * eps * way}) for t in (1, -1))
        slope = (up - down) / (2 * eps)
        assert np.sum(grads[key] * way) == pytest.approx(slope, rel=1e-7)
    # Elsewhere than at the best read-out it is another one.
    model.params = {**solved, "C": 1.1 * solved["C"]}
    Y, pull = model(U)
    assert np.sum(pull(Y - TARGET)[1]["b"] * way) != pytest.approx(slope, rel=1e-3)


def test_steps_between_read_outs_descend():
    model = model_of(activation=activations.tanh, constraint=wellposed.InfNorm(0.9))
    errors = []
    for _ in range(12):
        errors.append(np.mean(readout(model, U, TARGET, ridge=1e-3).error))
        Y, pull = model(U)
        grads = pull(Y - TARGET)[1]
        step = {key: a - 1e-4 * grads[key] * (key in "ABb") for key, a in model.params.items()}
        model.params = model.project(step)
    assert np.all(np.diff(errors) < 0)


def slopes(model, f, sizes=(10.0, 1e2, 1e3, 1e4, 1e5)):
    """How much log10 MSE grows for each decade of the inputs, from one of these to the next."""
    V = np.random.default_rng(7).uniform(-1, 1, (300, 4))
    errors = [np.mean((model.predict(t * V) - f(t * V)) ** 2) for t in sizes]
    return np.diff(np.log10(errors)) / np.diff(np.log10(sizes))


def test_the_error_is_homogeneous_without_biases():
    """x(t u) = t x(u), and so the error of a homogeneous target scales by t."""

    def f(V):
        return V[:, :1] + np.abs(V[:, 1:2]) - np.hypot(V[:, 2:3], V[:, 3:])

    T = f(U)
    free = random_model(
        ImplicitModel, 4, 1, 12, bias=False, feedthrough=False, dtype="float64", seed=2
    )
    readout(free, U, T)
    assert np.all(np.abs(slopes(free, f) - 2.0) < 5e-4)
    # Neither a biased model nor a target of another degree has it.
    biased = random_model(ImplicitModel, 4, 1, 12, dtype="float64", seed=2)
    biased.params = {**biased.params, "b": 30.0 * np.ones(12)}
    readout(biased, U, T)
    assert np.max(np.abs(slopes(biased, f) - 2.0)) > 5e-4
    assert np.max(np.abs(slopes(free, lambda V: f(V) ** 2 / 9) - 2.0)) > 0.5


def test_a_linear_target_belongs_to_D():
    """Then the error is that of rounding, in the dtype of the model, at every size."""
    w = np.array([[1.0], [1.0], [-1.0], [0.0]])
    V = np.random.default_rng(8).uniform(-1, 1, (400, 4))
    least = {}
    for dtype in ("float64", "float32"):
        for feedthrough in (True, False):
            model = random_model(
                ImplicitModel,
                *(4, 1, 12),
                bias=False,
                feedthrough=feedthrough,
                dtype=dtype,
                constraint=wellposed.InfNorm(0.5),
            )
            readout(model, V, V @ w, ridge=0)
            miss = host(model.predict(1e3 * V)).astype(float) - 1e3 * V @ w
            least[dtype, feedthrough] = np.sqrt(np.mean(miss**2)) / 1e3
    assert least["float64", True] < 1e-11
    assert 1e-9 < least["float32", True] < 1e-5
    assert least["float64", False] > 1e3 * least["float32", True]


def test_biases_move_states_by_a_bounded_offset():
    """|x(t u; b) - t x(u; 0)| <= (I - P)^{-1} L |b|, for every t; the bound is attained."""
    for seed in range(5):
        model = random_model(ImplicitModel, 4, 1, 12, dtype="float64", seed=seed)
        params = model.params
        plain = model.replace()
        plain.params = {**params, "b": np.zeros(12)}
        bound = np.linalg.solve(EYE(12) - np.abs(params["A"]), np.abs(params["b"]))
        X0 = plain.equilibrium(U).value
        for t in (0.0, 1.0, 1e3, 1e5):
            offset = np.abs(model.equilibrium(t * U).value - t * X0)
            assert np.all(offset <= bound * (1 + 1e-9) + 1e-10 * t)
    one = ImplicitModel(1, 1, 1, dtype="float64", rng=0)
    one.params = {**one.params, "A": [[0.5]], "B": [[1.0]], "b": [2.0]}
    assert one.equilibrium([[10.0]]).value - 20.0 == pytest.approx(4.0)  # (1 - 0.5)^{-1} 2


def test_it_is_a_start_for_fit():
    plain, started = (
        ImplicitModel(4, 3, 12, constraint=wellposed.InfNorm(0.5), dtype="float64", rng=0)
        for _ in range(2)
    )
    options = {"loss": losses.mse, "epochs": 3, "rng": 0, "verbose": 0}
    result = solve(started, U, TARGET, ridge=1e-3)
    first = fit(plain, (U, TARGET), optimizer=optim.Adam(1e-3), **options)["loss"]
    then = fit(started, (U, TARGET), optimizer=optim.Adam(1e-3), **options)["loss"]
    assert then[0] < 0.5 * first[0]
    assert then[0] == pytest.approx(np.mean(result.error), rel=0.1)
    assert losses.mse(started.predict(U), TARGET)[0] < np.mean(result.error)
