"""The estimators of sequences.

Scikit-learn's own checks, in which an array (m, T) is m sequences of one channel, and
what those do not ask.
"""

import inspect
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from helpers import same_fit
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator

import pyidl
from pyidl import activations, optim
from pyidl.errors import InputError
from pyidl.layers import Sequential
from pyidl.recurrent import ImplicitRNN
from pyidl.sklearn import ImplicitSequenceClassifier, ImplicitSequenceRegressor
from pyidl.sklearn.sequences import Sequences
from pyidl.wellposed import InfNorm, SpectralNorm

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = pytest.mark.parametrize("cls", [ImplicitSequenceClassifier, ImplicitSequenceRegressor])

LENGTH = "a column is a time step: another number of them is another length, which is allowed"
CHANNELS = "n_features_in_ is the number of channels, which is 1 here"
NOT_OURS = {
    "check_classifiers_train": f"its last question: {LENGTH}",
    "check_estimators_partial_fit_n_features": LENGTH,
    "check_n_features_in": CHANNELS,
    "check_n_features_in_after_fitting": CHANNELS,
}
"""Checks that do not apply, and why."""
ONE_BATCH = {"learning_rate": 0.04, "batch_size": None}  # a weight of 2 is twice the sample
QUICK = [
    ImplicitSequenceClassifier(5, 5, max_iter=40, **ONE_BATCH),
    ImplicitSequenceRegressor(5, 5, pool="last", max_iter=80, **ONE_BATCH),
]
CHECKS = [
    pytest.param(estimator, check, id=f"{type(estimator).__name__}-{check.func.__name__}-{i}")
    for estimator in QUICK
    for i, (estimator, check) in enumerate(estimator_checks_generator(estimator))
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_conforms(estimator, check):
    if check.func.__name__ in NOT_OURS:
        with pytest.raises(AssertionError):  # none is left out that would pass
            check(estimator)
    else:
        check(estimator)


# ------------------------------------------------------------------------ data, and what is made


def some(m=24, p=2, seed=0):
    """Sequences of 3 to 7 steps, as a list, around -1, 0 or 1: that is y, from 0 on."""
    rng, y = np.random.default_rng(seed), np.arange(m) % 3
    return [0.7 * rng.standard_normal((rng.integers(3, 8), p)) + i - 1 for i in y], y


LIST, LABELS = some()
ARRAY = np.random.default_rng(1).standard_normal((24, 5, 2))


def made(cls, **options):
    few = {"hidden_dim": 4, "implicit_hidden_dim": 3, "max_iter": 3, "random_state": 0}
    return cls(**few | options)


def target(cls, labels=LABELS):
    return labels if cls is ImplicitSequenceClassifier else np.stack([labels, labels**2], 1) * 10.0


def answers(estimator, X):
    """Logits, up to a shift, or targets."""
    return getattr(estimator, "predict_log_proba", estimator.predict)(X)


# --------------------------------------------------------------------------------- real data


def rows_of_digits():
    """Images as sequences of 8 rows of 8 pixels."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X.reshape(-1, 8, 8), y, random_state=0)


def test_digits_read_row_by_row():
    X, V, y, s = rows_of_digits()
    model = ImplicitSequenceClassifier(24, 24, max_iter=12, random_state=0).fit(X, y)
    assert model.score(V, s) > 0.95
    assert model.model_.certificate().proven
    assert model.n_features_in_ == 8


def test_digits_of_different_lengths():
    """Without up to three of their last rows."""
    X, V, y, s = rows_of_digits()
    rng = np.random.default_rng(0)
    X, V = ([x[: 8 - rng.integers(4)] for x in some] for some in (X, V))
    model = ImplicitSequenceClassifier(24, 24, max_iter=12, random_state=0).fit(X, y)
    assert model.score(V, s) > 0.8


def test_a_regression_with_a_known_answer():
    """A linear memory, ``h_t = 0.7 h_{t-1} + u_t``; so is ImplicitRNN's H with C = 0."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 12))
    y = 500 + 30 * X @ 0.7 ** np.arange(11, -1, -1)
    model = ImplicitSequenceRegressor(8, 8, alpha=1e-5, pool="last", random_state=0)
    model.set_params(max_iter=50)
    model.fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > 0.99
    far = X[300:] * 5
    assert model.score(far, 500 + 30 * far @ 0.7 ** np.arange(11, -1, -1)) > 0.95


# ----------------------------------------------------------------------- ways to give sequences


@BOTH
def test_one_set_of_sequences_in_several_ways(cls):
    y = target(cls)
    model = made(cls).fit(ARRAY, y)
    objects = np.empty(24, object)
    objects[:] = list(ARRAY)
    for X in (list(ARRAY), tuple(ARRAY), objects, ARRAY.tolist(), ARRAY.astype(object)):
        same_fit(made(cls).fit(X, y), model)
        assert np.array_equal(model.predict(X), model.predict(ARRAY))
    one = made(cls).fit(ARRAY[:, :, :1], y)
    for X in (ARRAY[:, :, 0], ARRAY[:, :, 0].tolist(), list(ARRAY[:, :, 0])):
        same_fit(made(cls).fit(X, y), one)


@BOTH
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_list_is_a_padded_array_and_its_lengths(cls, bidirectional):
    """Whatever stands in the padding, for the model that takes the sequences as they are."""
    X, y = [1000 + 50 * x for x in LIST], target(cls)
    model = made(cls, bidirectional=bidirectional).fit(X, y)
    read = Sequences.read(X)
    padded = np.where(read.mask[:, :, None], read.values, 1e3)
    assert isinstance(model.model_, Sequential if bidirectional else ImplicitRNN)
    for lengths in (read.lengths, read.mask):
        Y = model.model_.predict(padded, lengths)
        if cls is ImplicitSequenceClassifier:
            Y = Y - np.log(np.exp(Y).sum(axis=1, keepdims=True))
        assert np.allclose(Y, answers(model, X), rtol=1e-8, atol=1e-8)
    alone = np.concatenate([answers(model, [x]) for x in X])
    assert np.allclose(alone, answers(model, X), rtol=1e-9, atol=1e-9)


def test_standardised_over_the_true_steps():
    weights = np.arange(24) % 3
    model = made(ImplicitSequenceClassifier).fit(LIST, LABELS, sample_weight=weights)
    flat = np.concatenate([x for w, x in zip(weights, LIST, strict=True) for _ in range(w)])
    scaling = model._standardised.inputs
    assert np.allclose(scaling.mean, flat.mean(axis=0), rtol=1e-13)
    assert np.allclose(scaling.scale, flat.std(axis=0), rtol=1e-13)
    as_they_are = made(ImplicitSequenceClassifier, standardize=False).fit(LIST, LABELS)
    assert as_they_are._standardised.inputs.scale.tolist() == [1, 1]


@BOTH
def test_other_lengths_than_those_of_fit(cls):
    model = made(cls).fit(LIST, target(cls))
    long, _ = some(5)
    long = [np.tile(x, (9, 1)) for x in long]
    assert len(model.predict(long)) == 5
    assert np.allclose(answers(model, long[:1]), answers(model, long)[:1], rtol=1e-9, atol=1e-9)
    assert len(model.predict([LIST[0][:1]])) == 1
    assert len(model.predict(LIST[0][None])) == 1


def test_large_inputs_are_answered_in_pieces(monkeypatch):
    model = made(ImplicitSequenceRegressor).fit(LIST, target(ImplicitSequenceRegressor))
    whole, seen, predict = model.predict(LIST), [], ImplicitRNN.predict

    def noted(self, *arguments, batch_size):
        seen.append(batch_size)
        return predict(self, *arguments, batch_size=batch_size)

    monkeypatch.setattr(ImplicitRNN, "predict", noted)
    monkeypatch.setattr("pyidl.sklearn.recurrent.NUMBERS", 300)
    assert np.allclose(model.predict(LIST), whole, rtol=1e-9, atol=1e-9)
    assert 1 < seen[0] < 24


# ------------------------------------------------------------------------------- what is refused

BAD = {
    "one sequence": (ARRAY[0, :, 0], "Reshape your data"),
    "one sequence in a list": ([1.0, 2.0], "sequence 0 of X has 0 axes"),
    "four axes": (ARRAY[None], r"X has shape \(1, 24, 5, 2\); sequences are"),
    "no channels": (ARRAY[:, :, :0], r"X has shape \(24, 5, 0\)"),
    "no steps": (ARRAY[:, :0], r"X has shape \(24, 0, 2\)"),
    "no sequences": (ARRAY[:0], "0 sample"),
    "an empty list": ([], "X has 0 sequences"),
    "an empty sequence": ([*LIST[:3], LIST[3][:0]], r"sequence 3 of X has shape \(0, 2\)"),
    "mixed channels": ([*LIST[:2], LIST[2].T], "sequence 2 of X has shape .*T for x in X"),
    "mixed axes": ([LIST[0], LIST[1][:, 0]], r"sequence 1 of X has shape .*sequence 0 \("),
    "four axes in a list": ([ARRAY], "sequence 0 of X has 3 axes"),
    "ragged steps": ([[[1.0, 2.0], [3.0]]], "sequence 0 of X is no array"),
    "words": ("wrong", "Expected 2D array|could not convert"),
    "words in a list": (["ab", "c"], "sequence 0 of X has 0 axes"),
    "words in sequences": ([["a", "b"], ["c"]], "could not convert"),
    "complex numbers": (ARRAY + 1j, "Complex data not supported"),
    "complex numbers in a list": ([x + 1j for x in LIST], "Complex data not supported"),
    "NaN": (np.where(np.arange(5)[:, None] == 3, np.nan, ARRAY), "sequence 0 .* NaN .* step 3"),
    "NaN at the end": ([*LIST[:2], np.r_[LIST[2], [[0, np.nan]]]], "sequence 2 .* give a list"),
    "infinity": ([*LIST[:2], np.r_[LIST[2], [[0, np.inf]]]], "sequence 2 of X .* infinite at step"),
}


@BOTH
@pytest.mark.parametrize("case", BAD)
def test_what_no_sequences_are(case, cls):
    X, words = BAD[case]
    y = target(cls)
    model = made(cls).fit(LIST, y)
    with pytest.raises(ValueError, match=words):
        made(cls).fit(X, y[: len(X)])
    with pytest.raises(ValueError, match=words):
        model.predict(X)


@BOTH
def test_other_channels_than_those_of_fit(cls):
    model = made(cls).fit(ARRAY, target(cls))
    for call in (model.predict, lambda X: model.partial_fit(X, target(cls))):
        with pytest.raises(InputError, match=r"X has 5 channels, and had 2 .*transpose\(0, 2, 1\)"):
            call(ARRAY.transpose(0, 2, 1))
        with pytest.raises(InputError, match="X has 1 channels, and had 2"):
            call(ARRAY[:, :, 0])
    assert len(model.predict(ARRAY.transpose(0, 2, 1).transpose(0, 2, 1))) == 24


@BOTH
def test_other_numbers_of_targets(cls):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        made(cls).fit(LIST, target(cls)[:-1])
    with pytest.raises(ValueError, match="requires y to be passed"):
        made(cls).fit(LIST, None)


OPTIONS = [
    (cls, name)
    for cls in (ImplicitSequenceClassifier, ImplicitSequenceRegressor)
    for name in inspect.signature(cls).parameters
]


@pytest.mark.parametrize(("cls", "name"), OPTIONS)
def test_what_an_option_is_not(cls, name):
    words = "cannot be used to seed" if name == "random_state" else f"{name}|activation 'wrong'"
    for value in ("wrong", [1.5], object(), np.nan, dict):
        with pytest.raises(ValueError, match=words):
            made(cls, **{name: value}).fit(LIST, target(cls))


# ---------------------------------------------------------------------------------------- weights

OTHERS = {
    "plain": {},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.3},
    "small batches": {"batch_size": 5},
    "both directions": {"bidirectional": True},
    "as they are": {"standardize": False},
    "float32": {"dtype": "float32"},
    "low rank": {"rank": 2},
    "a schedule": {"learning_rate": optim.Exponential(0.02, rate=0.9)},
}


@BOTH
@pytest.mark.parametrize("case", OTHERS)
def test_a_weight_of_zero_is_absence(case, cls):
    """Also of the longest sequences, and of entries that would spoil the scales."""
    y, lengths = target(cls), np.array([len(x) for x in LIST])
    weights = np.where(lengths == 7, 0, 1 + np.arange(24) % 2)
    rows = np.flatnonzero(weights)
    assert 0 < len(rows) < 24
    spoilt = [1e3 * x if w == 0 else x for x, w in zip(LIST, weights, strict=True)]
    one = made(cls, **OTHERS[case]).fit(spoilt, y, sample_weight=weights)
    kept = [LIST[i] for i in rows]
    same_fit(one, made(cls, **OTHERS[case]).fit(kept, y[rows], sample_weight=weights[rows]))


@BOTH
def test_a_weight_of_two_is_a_sequence_that_is_there_twice(cls):
    y, weights = target(cls), np.random.default_rng(0).integers(0, 3, 24)
    twice = np.repeat(np.arange(24), weights)
    options = {"batch_size": None, "max_iter": 20}
    weighted = made(cls, **options).fit(LIST, y, sample_weight=weights)
    repeated = made(cls, **options).fit([LIST[i] for i in twice], y[twice])
    assert np.allclose(answers(weighted, LIST), answers(repeated, LIST), rtol=1e-6, atol=1e-7)
    plain = made(cls, **options).fit(LIST, y)
    assert not np.allclose(answers(weighted, LIST), answers(plain, LIST), rtol=1e-3)


def test_weights_of_classes():
    cls, names = ImplicitSequenceClassifier, np.array(["a", "b", "c"])[LABELS]
    rows = np.r_[np.flatnonzero(names == "a")[:2], np.flatnonzero(names != "a")]
    X, y = [LIST[i] for i in rows], names[rows]  # of b and c 8 each
    own = {"a": 3.0, "b": 0.75, "c": 0.75}
    by_hand = made(cls).fit(X, y, sample_weight=[own[label] for label in y])
    for given in ("balanced", own, {"a": 4.0}):
        same_fit(made(cls, class_weight=given).fit(X, y), by_hand)
    both = made(cls, class_weight={"a": 4}).fit(X, y, sample_weight=1 + np.arange(18) % 2)
    ratios = np.where(y == "a", 4.0, 1.0) * (1 + np.arange(18) % 2)
    same_fit(both, made(cls).fit(X, y, sample_weight=ratios))
    # "balanced" counts what has a weight.
    doubled = made(cls, class_weight="balanced").fit(
        [*X, *X], [*y, *y], sample_weight=np.repeat([2.0, 0.0], 18)
    )
    same_fit(doubled, by_hand)
    left_out = made(cls, class_weight={"b": 0}).fit(X, y)
    assert left_out.classes_.tolist() == ["a", "b", "c"]
    same_fit(left_out, made(cls).fit(X, y, sample_weight=y != "b"))
    for given, words in {
        "even": "class_weight is 'even'; use None",
        -1: "class_weight is -1",
        (("a", -1.0),): r"class_weight is \{'a': -1.0\}",
        (("a", np.inf),): "a finite weight",
        (("d", 1.0),): r"class_weight has \['d'\]; the labels are",
        (("a", 0), ("b", 0), ("c", 0)): "leaves no sample a weight",
    }.items():
        value = dict(given) if isinstance(given, tuple) else given
        with pytest.raises(InputError, match=words):
            made(cls, class_weight=value).fit(X, y)


# ------------------------------------------------------------------------------ answers, training


def test_probabilities_and_labels():
    names = np.array(["low", "middle", "high"])[LABELS]
    model = made(ImplicitSequenceClassifier, max_iter=80).fit(LIST, names)
    assert model.classes_.tolist() == ["high", "low", "middle"]
    P = model.predict_proba(LIST)
    assert np.allclose(P.sum(axis=1), 1, rtol=1e-14)
    assert np.allclose(np.log(P), model.predict_log_proba(LIST))
    assert model.score(LIST, names) > 0.9
    two = made(ImplicitSequenceClassifier).fit(LIST, LABELS > 0)
    odds = two.decision_function(LIST)
    assert odds.shape == (24,)
    assert np.allclose(1 / (1 + np.exp(-odds)), two.predict_proba(LIST)[:, 1])
    with pytest.raises(InputError, match=r"got 1 class: \['low'\]"):
        model.fit(LIST, ["low"] * 24)


def test_targets_are_a_column_several_or_a_vector():
    y = 1e4 + 300.0 * LABELS
    flat, column = (made(ImplicitSequenceRegressor).fit(LIST, t) for t in (y, y[:, None]))
    assert flat.predict(LIST).shape == (24,)
    assert column.predict(LIST).shape == (24, 1)
    assert np.array_equal(flat.predict(LIST), column.predict(LIST)[:, 0])
    two = made(ImplicitSequenceRegressor).fit(LIST, np.stack([y, -y], 1))
    assert two.predict(LIST).shape == (24, 2)
    with pytest.raises(InputError, match="y has 1 targets a sample; the model was built for 2"):
        two.partial_fit(LIST, y)


@BOTH
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_same_seed_gives_the_same_model(bidirectional, cls):
    first, second, other = (
        made(cls, random_state=seed, bidirectional=bidirectional).fit(LIST, target(cls))
        for seed in (3, 3, 4)
    )
    same_fit(first, second)
    assert not np.array_equal(answers(first, LIST), answers(other, LIST))


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_options_reach_the_model(dtype, cls):
    options = {"rank": 2, "activation": "tanh", "constraint": SpectralNorm(0.8), "dtype": dtype}
    options |= {"pool": "mean", "timescale": 9}
    model = made(cls, **options).fit(LIST, target(cls)).model_
    assert (model.rank, model.activation, model.dtype) == (2, activations.tanh, dtype)
    assert (model.hidden_dim, model.implicit_hidden_dim) == (4, 3)
    assert (model.pool, model.timescale) == ("mean", 9.0)
    assert model.constraint == SpectralNorm(0.8)
    both = made(cls, bidirectional=True, **options).fit(LIST, target(cls)).model_
    assert both.dtype == dtype
    for reader in (both.layers[0].ahead, both.layers[0].back):
        assert (reader.rank, reader.hidden_dim, reader.implicit_hidden_dim) == (2, 4, 3)


@BOTH
def test_later_calls_go_on(cls):
    y = target(cls)
    warm = made(cls, warm_start=True, max_iter=20).fit(LIST, y)
    before = warm.loss_curve_[-1]
    assert warm.fit(LIST, y).loss_curve_[0] < 1.2 * before
    assert warm.n_iter_ == 20
    warm.partial_fit(ARRAY, y)
    assert (warm.n_iter_, len(warm.loss_curve_)) == (21, 21)
    built = {"hidden_dim": 4, "implicit_hidden_dim": 3, "bidirectional": False, "rank": None}
    others = {"hidden_dim": 5, "implicit_hidden_dim": 4, "bidirectional": True, "rank": 2}
    others |= {"activation": "tanh", "constraint": InfNorm(0.6), "standardize": False}
    others |= {"pool": "mean", "timescale": 9.0}
    for name, other in (others | {"dtype": "float32"}).items():
        given = getattr(warm, name)
        assert given == built.get(name, given)
        with pytest.raises(InputError, match=f"{name} is .*, but the network was built with"):
            warm.set_params(**{name: other}).fit(LIST, y)
        warm.set_params(**{name: given})
    warm.set_params(activation=activations.relu, constraint=InfNorm(0.5)).partial_fit(LIST, y)


def test_a_time_scale_that_is_chosen():
    """The mean length of long sequences, whatever the others are later."""
    long = [np.tile(x, (9, 1)) for x in LIST]
    mean = np.mean([len(x) for x in long])
    model = made(ImplicitSequenceClassifier, max_iter=1)
    assert model.fit(long, LABELS).model_.timescale == mean
    assert model.partial_fit(LIST, LABELS).model_.timescale == mean
    assert model.fit(LIST, LABELS).model_.timescale is None
    assert model.set_params(timescale=None).fit(long, LABELS).model_.timescale is None


def test_batches_that_are_chosen():
    """From 8 to 32, an eighth of the samples that have a weight."""
    X, weights = np.random.default_rng(0).standard_normal((600, 2)), np.arange(600) % 2
    for m, options, steps in (
        (5, {}, 1),
        (40, {}, 5),
        (120, {}, 8),
        (600, {}, 19),
        (600, {"sample_weight": weights}, 10),
    ):
        model = made(ImplicitSequenceRegressor, max_iter=1).fit(X[:m], X[:m, 0], **options)
        assert model._optimizer.count == steps


def test_partial_fit_alone():
    model = made(ImplicitSequenceClassifier, learning_rate=0.02)
    for _ in range(60):
        for rows in (slice(0, 14), slice(10, 24)):
            model.partial_fit(LIST[rows], LABELS[rows], classes=[0, 1, 2])
    assert model.score(LIST, LABELS) > 0.9
    with pytest.raises(InputError, match=r"y or classes has \[5\]"):
        model.partial_fit(LIST, np.full(24, 5))


def test_early_stopping_and_an_end_that_is_none():
    X, y = some(120, 1)
    model = made(ImplicitSequenceClassifier, max_iter=300, early_stopping=True)
    model.set_params(n_iter_no_change=3, learning_rate=0.05).fit(X, y)
    assert model.n_iter_ < 300
    held_out = model.history_["val_loss"]
    assert held_out[-1] > held_out.min()
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter = 3 epochs"):
        made(ImplicitSequenceClassifier, max_iter=3).fit(X, y)


@BOTH
def test_a_refused_fit_leaves_the_estimator_as_it_was(cls, monkeypatch):
    y = target(cls)
    model = made(cls).fit(LIST, y)
    before, said = dict(vars(model)), model.predict(LIST)

    def refused(error, *data, **options):
        given = {name: getattr(model, name) for name in options}
        with pytest.raises(error):
            model.set_params(**options).fit(*data)
        model.set_params(**given)
        assert vars(model) == before
        assert np.array_equal(model.predict(LIST), said)

    refused(ValueError, ARRAY[:, :, :1], y[:-1])
    refused(InputError, ARRAY[:, :, :1], y, hidden_dim=0)
    refused(InputError, ARRAY[:, :, :1], y, dtype="float16")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(optim.Adam, "step", interrupted)
    refused(KeyboardInterrupt, ARRAY[:, :, :1], y)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(LIST, y)
    assert vars(model) == before
    unfitted = made(cls)
    with pytest.raises(KeyboardInterrupt):
        unfitted.fit(LIST, y)
    with pytest.raises(NotFittedError):
        unfitted.predict(LIST)


# ---------------------------------------------------------------------- in scikit-learn's company


def test_pipelines_searches_and_validation():
    X, y = some(60)
    lists, arrays = X, np.stack([x[:3] for x in X])
    model = made(ImplicitSequenceClassifier, max_iter=15, learning_rate=0.04)
    assert cross_val_score(model, lists, y, cv=3).mean() > 0.8
    assert cross_val_score(model, arrays, y, cv=3).mean() > 0.8
    transposed = FunctionTransformer(np.transpose, kw_args={"axes": (0, 2, 1)})
    line = make_pipeline(transposed, model).fit(arrays.transpose(0, 2, 1), y)
    assert np.array_equal(line.predict(arrays.transpose(0, 2, 1)), line[-1].predict(arrays))
    search = GridSearchCV(model, {"hidden_dim": [3, 4], "class_weight": ["balanced"]}, cv=2).fit(
        arrays, y
    )
    assert search.best_score_ > 0.8
    twin = clone(search.best_estimator_)
    assert twin.get_params() == search.best_estimator_.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(arrays)


@BOTH
@pytest.mark.parametrize("bidirectional", [False, True])
def test_pickles_and_files(cls, bidirectional, tmp_path):
    model = made(cls, bidirectional=bidirectional).fit(ARRAY, target(cls))
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(ARRAY), model.predict(ARRAY))
    same_fit(again.partial_fit(ARRAY, target(cls)), model.partial_fit(ARRAY, target(cls)))
    pyidl.save(tmp_path / "model.npz", model.model_)
    Y = pyidl.load(tmp_path / "model.npz").predict(ARRAY)
    assert np.array_equal(Y, model.model_.predict(ARRAY))


def test_the_door_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Sequences.read([[1, 2], [3]])
    assert read.values.dtype == np.float64
    assert len(read[[1]]) == 1
    assert read[[1]].shape == (1, 1, 1)
