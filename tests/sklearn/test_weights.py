"""Weights of samples: 0 is absence, and only ratios matter, of whatever size they are."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from helpers import same_fit
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight

from pyidl import optim
from pyidl.errors import InputError
from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor, ImplicitSequenceClassifier
from pyidl.training.standardise import Standardiser

X, LABELS = load_iris(return_X_y=True)
BOTH = pytest.mark.parametrize("cls", [ImplicitClassifier, ImplicitRegressor])
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def made(cls, **options):
    return cls(**{"hidden_dim": 6, "max_iter": 4, "random_state": 0} | options)


def target(cls):
    return LABELS if cls is ImplicitClassifier else X[:, :2] ** 2


OPTIONS = {
    "plain": {},
    "early stopping": {"early_stopping": True},
    "early stopping, few held out": {"early_stopping": True, "validation_fraction": 0.02},
    "one batch": {"batch_size": None},
    "small batches": {"batch_size": 7},
    "as they are": {"standardize": False},
    "low rank": {"rank": 2},
    "float32": {"dtype": "float32"},
    "a schedule": {"learning_rate": optim.Exponential(0.02, rate=0.9)},
}


@BOTH
@pytest.mark.parametrize("case", OPTIONS)
def test_a_weight_of_zero_is_absence(case, cls):
    """In the split, the scales, the order of samples, the fall of the rate, the loss."""
    y, weights = target(cls), np.random.default_rng(1).integers(0, 2, 150)
    spoilt = np.where(weights[:, None] == 0, 1e3, 1.0) * X
    rows = np.flatnonzero(weights)
    one = made(cls, **OPTIONS[case]).fit(spoilt, y, sample_weight=weights)
    same_fit(one, made(cls, **OPTIONS[case]).fit(X[rows], y[rows]))
    weights = weights * np.linspace(0.5, 2, 150)
    one = made(cls, **OPTIONS[case]).fit(spoilt, y, sample_weight=weights)
    same_fit(one, made(cls, **OPTIONS[case]).fit(X[rows], y[rows], sample_weight=weights[rows]))


@BOTH
@pytest.mark.parametrize("later", ["fit", "partial_fit"])
def test_a_weight_of_zero_is_absence_also_later(later, cls):
    y, weights = target(cls), np.arange(150) % 3
    rows = np.flatnonzero(weights)
    one, other = (made(cls, warm_start=True, early_stopping=True).fit(X, y) for _ in range(2))
    getattr(one, later)(X, y, sample_weight=weights)
    getattr(other, later)(X[rows], y[rows], sample_weight=weights[rows])
    same_fit(one, other)


def test_a_label_without_weight_is_known_but_none_that_must_be():
    """As in scikit-learn's own classifiers; columns of probabilities then agree."""
    weights = LABELS < 2
    one = made(ImplicitClassifier, max_iter=40).fit(X, LABELS, sample_weight=weights)
    assert one.classes_.tolist() == [0, 1, 2]
    assert one.score(X[:100], LABELS[:100]) > 0.9
    two = made(ImplicitClassifier, warm_start=True).fit(X[:100], LABELS[:100])
    two.partial_fit(X, LABELS, sample_weight=weights)
    two.fit(X, LABELS, sample_weight=weights)
    with pytest.raises(InputError, match=r"y or classes has \[2\]"):
        two.partial_fit(X, LABELS)


@pytest.mark.parametrize("samples", [3, 7, 15, 45])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_bagging_of_small_samples(samples, early_stopping):
    """Bags give weights of 0: of 3 samples, say, one is watched."""
    options = {"max_samples": samples, "n_estimators": 8, "random_state": 0}
    inner = made(ImplicitClassifier, early_stopping=early_stopping, max_iter=2)
    bag = BaggingClassifier(inner, **options).fit(X, LABELS)
    assert np.allclose(bag.predict_proba(X).sum(axis=1), 1)
    inner = made(ImplicitRegressor, early_stopping=early_stopping, max_iter=2)
    assert np.isfinite(BaggingRegressor(inner, **options).fit(X, X[:, 0]).predict(X)).all()


def test_small_samples_are_split_as_they_can_be():
    """A class of one sample, more classes than samples that are watched; else by class."""
    for rows in ([0, 1, 2, 3, 50], [0, 50, 100, 1, 51, 101], range(0, 150, 10)):
        X_, y_ = X[list(rows)], LABELS[list(rows)]
        model = made(ImplicitClassifier, early_stopping=True).fit(X_, y_)
        assert np.isfinite(model.history_["val_loss"]).all()
    with pytest.raises(InputError, match="there is 1 with a weight; give two or more"):
        model.fit(X_, y_, sample_weight=np.arange(len(y_)) == 3)
    model._rng = np.random.default_rng(0)
    _, (_, T, _) = model._split((X, LABELS, None))
    assert np.bincount(T).tolist() == [5, 5, 5]


SIZES = {
    "huge": np.full(150, 1e306),
    "the largest": np.full(150, np.finfo(np.float64).max),
    "tiny": np.full(150, 1e-300),
    "the smallest": np.full(150, 5e-324),
}


@BOTH
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", SIZES)
def test_only_ratios_of_weights_matter(size, dtype, cls):
    y, weights = target(cls), SIZES[size]
    plain = made(cls, dtype=dtype).fit(X, y)
    same_fit(made(cls, dtype=dtype).fit(X, y, sample_weight=weights), plain)
    ratios = 2.0 ** -(np.arange(150) % 2) if size != "the smallest" else 1.0 + np.arange(150) % 2
    weighted = made(cls, dtype=dtype).fit(X, y, sample_weight=ratios)
    same_fit(made(cls, dtype=dtype).fit(X, y, sample_weight=ratios * weights), weighted)


@BOTH
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("little", [1e-300, 1e-9])
def test_what_weighs_nothing_beside_the_rest(little, dtype, cls):
    """Also a batch in which nothing else is: its step is as long as others."""
    y = target(cls)
    weights = np.where(np.arange(150) % 2, 1e306, little)
    model = made(cls, dtype=dtype, batch_size=3).fit(X, y, sample_weight=weights)
    scaling, heavy = model._standardised.inputs, Standardiser.of(X[1::2])
    np.testing.assert_allclose(scaling.mean, heavy.mean, rtol=1e-14)
    np.testing.assert_allclose(scaling.scale, heavy.scale, rtol=1e-14)
    assert np.isfinite(model.loss_curve_).all()


@BOTH
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.zeros(150), "not all of them 0|at least one non-zero"),
        (-np.ones(150), "sample_weight lies between -1 and -1"),
        (np.r_[1.0, -1.0, np.zeros(148)], "sample_weight lies between -1 and 1"),
        (np.r_[np.inf, np.ones(149)], "infinity"),
        (np.r_[np.nan, np.ones(149)], "NaN"),
    ],
    ids=["none", "negative", "sum 0", "infinite", "NaN"],
)
def test_what_no_weights_are(weights, words, cls):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ValueError, match=words):
            made(cls).fit(X, target(cls), sample_weight=weights)


# --------------------------------------------------------------------------- weights of classes

NAMES = np.array(["a", "b", "c"])[LABELS]
FEW = np.r_[0:10, 50:150]  # of a 10, of b and c 50 each
OWN = {"a": 110 / 30, "b": 110 / 150, "c": 110 / 150}


def test_weights_of_classes_are_weights_of_samples():
    U, names = X[FEW], NAMES[FEW]
    by_hand = made(ImplicitClassifier).fit(U, names, sample_weight=[OWN[label] for label in names])
    for given in ("balanced", OWN, {"a": 5.0}, {"a": 10, "b": 2, "c": 2}):
        one = made(ImplicitClassifier, class_weight=given).fit(U, names)
        assert np.allclose(one.predict_proba(X), by_hand.predict_proba(X), rtol=1e-9)
    both = made(ImplicitClassifier, class_weight={"a": 5}, early_stopping=True)
    both.fit(U, names, sample_weight=1 + np.arange(110) % 2)
    ratios = np.where(names == "a", 5.0, 1.0) * (1 + np.arange(110) % 2)
    same_fit(
        both, made(ImplicitClassifier, early_stopping=True).fit(U, names, sample_weight=ratios)
    )
    left_out = made(ImplicitClassifier, class_weight={"b": 0}).fit(U, names)
    assert left_out.classes_.tolist() == ["a", "b", "c"]
    kept = names != "b"
    wanted = made(ImplicitClassifier).fit(X[FEW], names, sample_weight=kept)
    same_fit(left_out, wanted)


def test_a_rare_class_is_found_more_often_when_balanced():
    rng = np.random.default_rng(0)
    labels = (rng.random(600) < 0.05).astype(int)
    U = rng.normal(size=(600, 2)) + 1.2 * labels[:, None]
    plain, balanced = (
        made(ImplicitClassifier, max_iter=60, class_weight=given).fit(U, labels)
        for given in (None, "balanced")
    )
    rare = labels == 1
    found, before = (np.mean(one.predict(U[rare])) for one in (balanced, plain))
    assert found > before + 0.3


@pytest.mark.parametrize(
    "make", [ImplicitClassifier, lambda **o: ImplicitSequenceClassifier(4, 4, **o)]
)
def test_what_partial_fit_makes_of_weights_of_classes(make):
    """A dict counts; "balanced" would count the labels of one call, and is refused."""
    options = {"max_iter": 3, "random_state": 0}
    weights = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=NAMES[FEW])
    given = dict(zip("abc", weights, strict=True))
    one = make(class_weight=given, **options).partial_fit(X[FEW], NAMES[FEW])
    other = make(**options).partial_fit(
        X[FEW], NAMES[FEW], sample_weight=[given[label] for label in NAMES[FEW]]
    )
    assert np.allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-9)
    refused = make(class_weight="balanced", **options)
    with pytest.raises(InputError, match=r"partial_fit sees some.*compute_class_weight"):
        refused.partial_fit(X[FEW], NAMES[FEW])
    assert not hasattr(refused, "classes_")
    refused.fit(X[FEW], NAMES[FEW])


def test_what_no_weight_of_a_class_is():
    for given, words in (
        ("even", "class_weight is 'even'; use None"),
        (-1.0, "class_weight is -1.0"),
        ({"a": -1.0}, r"class_weight is \{'a': -1.0\}"),
        ({"a": np.inf}, r"class_weight is \{'a': inf\}"),
        ({"a": 0, "b": 0, "c": 0}, "leaves no sample a weight"),
        ({"d": 1.0}, r"class_weight has \['d'\]; the labels are"),
    ):
        with pytest.raises(InputError, match=words):
            made(ImplicitClassifier, class_weight=given).fit(X, NAMES)
