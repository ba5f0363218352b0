"""Estimators whose read-out is solved for: before the training, or instead of it."""

from unittest import SkipTest

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from scipy.sparse import csr_array
from sklearn import datasets
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyidl import activations
from pyidl.errors import InputError
from pyidl.losses import cross_entropy
from pyidl.sklearn import (
    ImplicitClassifier,
    ImplicitRegressor,
    ImplicitSequenceClassifier,
    ImplicitSequenceRegressor,
)
from pyidl.training import recipe
from pyidl.wellposed import LipschitzBound

X, Y = datasets.load_diabetes(return_X_y=True)
IRIS = datasets.load_iris(return_X_y=True)


def sequences(m=60):
    rng = np.random.default_rng(0)
    S = [rng.standard_normal(rng.integers(3, 9)) for _ in range(m)]
    return S, np.array([[s.mean(), s.max()] for s in S])


def hidden(model):
    return {key: model.model_.params[key] for key in "ABb"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("readout", ["first", "only"])
@pytest.mark.parametrize("cls", [ImplicitClassifier, ImplicitRegressor])
def test_the_rules_of_scikit_learn(cls, readout):
    """All, but that "only" has no epochs.

    And that what is chosen by leaving samples out, the scale of logits here, is not the same for a
    weight of 2 and for a sample that is there twice, of which one is left.
    """
    options = {"batch_size": None, "alpha": 0.01, "max_iter": 20, "random_state": 0}
    estimator = cls(5, readout=readout, **options)
    failed = {}
    for own, check in estimator_checks_generator(estimator):
        try:
            check(own)
        except SkipTest:
            pass
        except Exception as error:
            failed[check.func.__name__] = error
    expected = set()
    if readout == "only":
        expected |= {"check_non_transformer_estimators_n_iter"}
    if cls is ImplicitClassifier:
        expected |= {"check_sample_weight_equivalence_on_dense_data"}
    assert set(failed) == expected, failed


def test_only_is_the_ridge_regression_of_the_drawn_states():
    """With alpha, in units in which targets have deviation 1."""
    found = ImplicitRegressor(30, readout="only", alpha=0.01, random_state=0).fit(X, Y)
    drawn = ImplicitRegressor(30, readout="only", alpha=0.9, random_state=0).fit(X, Y)
    assert all(np.array_equal(hidden(found)[key], a) for key, a in hidden(drawn).items())
    network, inputs = found._standardised.network, found._standardised.inputs
    V = inputs(X)
    F = np.hstack([network.equilibrium(V).value, V])
    theirs = Ridge(0.5 * 0.01 * len(X), solver="svd").fit(F, Y / Y.std())
    assert np.allclose(found.predict(X), theirs.predict(F) * Y.std(), rtol=1e-9)
    assert found.readout_.ridge == pytest.approx(0.5 * 0.01 * len(X))
    assert (found.n_iter_, found.loss_curve_, len(found.history_)) == (0, [], 0)
    assert found.model_.certificate().proven


def test_the_ridge_that_is_chosen_is_near_the_best_for_new_rows():
    U, V, s, t = train_test_split(X, Y, random_state=0)
    options = {"readout": "only", "random_state": 0}
    chosen = ImplicitRegressor(**options).fit(U, s)
    scores = [
        ImplicitRegressor(alpha=alpha, **options).fit(U, s).score(V, t)
        for alpha in (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    ]
    assert chosen.score(V, t) > max(scores) - 0.05 > min(scores) + 0.1


def test_labels_become_logits():
    """The one scale is that which is best for samples that are left out."""
    U, V, s, t = train_test_split(*IRIS, random_state=1)
    classifier = ImplicitClassifier(readout="only", random_state=1).fit(U, s)
    assert classifier.score(V, t) > 0.9
    said, before = classifier.predict_proba(V), classifier.readout_.left_out
    assert log_loss(t, said) < 0.15
    logits = classifier._standardised.predict(U)
    plain = recipe.Standardised.build(
        (U, s, None), classes=3, hidden_dim=100, activation=activations.relu, rng=_drawn(classifier)
    )
    found = recipe.readout(plain.network, plain._standardised((U, s, None)))
    assert np.allclose(found.left_out, before)
    Y = plain.predict(U)
    scale = np.sum(logits * Y) / np.sum(Y * Y)
    assert np.allclose(logits, scale * Y, rtol=1e-9)
    best = cross_entropy(scale * before, s)[0]
    assert all(best <= cross_entropy(r * scale * before, s)[0] for r in (0.98, 1.02))


def _drawn(estimator):
    """The generator of its parameters."""
    seed = check_random_state(estimator.random_state).randint(np.iinfo(np.int32).max)
    return np.random.default_rng(seed)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("cls", [ImplicitClassifier, ImplicitRegressor])
def test_first_is_a_start(cls):
    data = IRIS if cls is ImplicitClassifier else (X, Y)
    plain, first = (
        cls(20, readout=readout, alpha=1e-3, max_iter=3, random_state=0).fit(*data)
        for readout in ("trained", "first")
    )
    assert first.loss_curve_[0] < 0.6 * plain.loss_curve_[0]
    assert first.n_iter_ == 3
    assert not hasattr(plain, "readout_")
    assert not np.array_equal(hidden(first)["A"], hidden(plain)["A"])  # it went on


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_further_training_keeps_what_was_trained():
    first = ImplicitRegressor(20, readout="first", max_iter=3, random_state=0, warm_start=True)
    solved = first.fit(X, Y).readout_
    assert first.fit(X, Y).readout_ is solved
    assert first.partial_fit(X, Y).readout_ is solved
    only = first.set_params(readout="only").fit(X, Y)  # of the states that were trained
    assert only.readout_ is not solved
    assert np.mean(only.readout_.error) < np.mean(solved.error)
    fresh = ImplicitRegressor(20, readout="first", random_state=0).partial_fit(X, Y)
    assert fresh.readout_.error == pytest.approx(solved.error)


def test_what_is_held_out_is_not_fitted():
    options = {"max_iter": 2, "random_state": 0, "early_stopping": True}
    first = ImplicitRegressor(20, readout="first", validation_fraction=0.5, **options)
    with pytest.warns(match="max_iter"):
        first.fit(X, Y)
    assert len(first.readout_.left_out) == len(X) // 2
    assert len(ImplicitRegressor(20, readout="only", **options).fit(X, Y).readout_.left_out) == 442


def test_sequences():
    S, T = sequences()
    regressor = ImplicitSequenceRegressor(8, 8, readout="only", alpha=None, random_state=0)
    assert regressor.fit(S, T).score(S, T) > 0.8
    labels = np.where(T[:, 0] > 0, "up", "down")
    for both in (False, True):
        classifier = ImplicitSequenceClassifier(
            8, 8, readout="only", bidirectional=both, pool="mean", random_state=0
        )
        assert classifier.fit(S, labels).score(S, labels) > 0.9
        assert classifier.readout_.names == (("1.W", "1.b") if both else ("E", "e"))


def test_weights_by_their_ratios():
    w = np.random.default_rng(0).integers(0, 3, len(X)).astype(float)
    one, other, twice = (
        ImplicitRegressor(20, readout="only", alpha=0.01, random_state=0, standardize=False)
        for _ in range(3)
    )
    one.fit(X, Y, w)
    other.fit(X, Y, 7 * w)
    n = w.astype(int)
    twice.fit(np.repeat(X, n, axis=0), np.repeat(Y, n))
    assert np.allclose(one.predict(X), other.predict(X), rtol=1e-10)
    assert np.allclose(one.predict(X), twice.predict(X), rtol=1e-9)


def test_what_is_refused():
    for wrong in ("closed form", True, ["only"]):
        with pytest.raises(InputError, match=r"readout is .*; use 'trained', 'first' or 'only'"):
            ImplicitRegressor(5, readout=wrong).fit(X, Y)
    with pytest.raises(AttributeError, match="partial_fit") as error:
        ImplicitRegressor(5, readout="only").partial_fit(X, Y)
    assert "use fit, or readout='first'" in str(error.value.__cause__)
    with pytest.raises(InputError, match=r"sparse inputs, .* give U.toarray\(\)"):
        ImplicitRegressor(5, readout="first").fit(csr_array(X), Y)
    with pytest.raises(InputError, match="outside its constraint"):
        ImplicitRegressor(5, readout="only", alpha=0.0, constraint=LipschitzBound(0.01)).fit(X, Y)
