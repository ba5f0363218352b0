"""`SIMClassifier` learns from a teacher that is fitted as it is, also behind a pipeline."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, PowerTransformer, StandardScaler

from pyidl import sim
from pyidl.sklearn import SIMClassifier

IRIS = load_iris(return_X_y=True)
X = IRIS[0] * [1, 100, 1e-3, 1] + [0, 1e6, 0, -5]
Y = np.array(["setosa", "versicolor", "virginica"])[IRIS[1]]


def perceptron():
    return MLPClassifier((8,), learning_rate_init=0.03, max_iter=3000, random_state=0)


def pipeline(*steps):
    return make_pipeline(*steps, perceptron())


TEACHERS = {
    "a perceptron": (perceptron, IRIS[0]),
    "a frozen perceptron": (lambda: FrozenEstimator(perceptron().fit(IRIS[0], Y)), IRIS[0]),
    "a pipeline": (lambda: pipeline(StandardScaler()), X),
    "a frozen pipeline": (lambda: FrozenEstimator(pipeline(StandardScaler()).fit(X, Y)), X),
    "a pipeline of frozen steps": (
        lambda: make_pipeline(
            FrozenEstimator(StandardScaler().fit(X)),
            FrozenEstimator(perceptron().fit(StandardScaler().fit_transform(X), Y)),
        ),
        X,
    ),
    "fewer columns": (
        lambda: pipeline(StandardScaler(), "passthrough", None, PCA(3), MinMaxScaler()),
        X,
    ),
    "a pipeline in a pipeline": (
        lambda: make_pipeline(MinMaxScaler(), pipeline(StandardScaler())),
        X,
    ),
    "a pipeline of one step": (lambda: Pipeline([("network", perceptron())]), IRIS[0]),
}


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_fitted_teacher_is_taken_as_it_is(name, standardize):
    """Untouched; with one hidden layer, and nearly without a penalty, it comes out again."""
    make, U = TEACHERS[name]
    if not standardize:  # a penalty on weights then depends on the units of X
        U = IRIS[0]
    teacher = make().fit(U, Y)
    before = teacher.predict_proba(U)
    model = SIMClassifier(teacher, penalty=sim.L1(1e-7), standardize=standardize).fit(U, Y)
    assert model.teacher_ is teacher
    assert np.array_equal(teacher.predict_proba(U), before)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    np.testing.assert_allclose(model.predict_proba(U), before, atol=2e-3)
    logits = model.model_.predict(U)
    assert np.array_equal(model.classes_[logits.argmax(axis=1)], model.predict(U))


def test_a_fitted_teacher_of_two_classes():
    rows = Y != "setosa"
    teacher = pipeline(StandardScaler()).fit(X[rows], Y[rows])
    model = SIMClassifier(teacher, penalty=sim.L1(1e-7)).fit(X[rows], Y[rows])
    assert model.model_.output_dim == 1
    np.testing.assert_allclose(model.predict_proba(X), teacher.predict_proba(X), atol=2e-3)


@pytest.mark.parametrize("penalty", [sim.L1(1e-3), sim.L1(1e-2)])
def test_what_is_learnt_does_not_depend_on_who_scales(penalty):
    """A teacher that was trained here, or before, on the same standardised columns."""
    inside = SIMClassifier(perceptron(), penalty=penalty).fit(X, Y)
    before = SIMClassifier(pipeline(StandardScaler()).fit(X, Y), penalty=penalty).fit(X, Y)
    np.testing.assert_allclose(before.predict_proba(X), inside.predict_proba(X), atol=1e-5)


def test_a_teacher_that_is_not_fitted_is_cloned_and_trained():
    teacher = pipeline(StandardScaler()).set_params(mlpclassifier__random_state=None)
    model, again = (SIMClassifier(teacher, random_state=5).fit(X, Y) for _ in range(2))
    assert not hasattr(teacher[-1], "coefs_")
    assert teacher[-1].random_state is None
    assert np.array_equal(model.predict_proba(X), again.predict_proba(X))
    assert model.score(X, Y) > 0.9
    assert model.score(X, Y) == (model.teacher_.predict(model._inputs(X)) == IRIS[1]).mean()


def test_what_a_clone_keeps():
    """A search, or a cross-validation, trains anew what is not frozen."""
    fitted = perceptron().fit(IRIS[0], Y)
    assert (
        clone(SIMClassifier(FrozenEstimator(fitted))).fit(IRIS[0], Y).teacher_.estimator is fitted
    )
    copied = clone(SIMClassifier(fitted)).fit(IRIS[0], Y)
    assert not np.array_equal(copied.teacher_.coefs_[0], fitted.coefs_[0])
    scores = cross_val_score(SIMClassifier(FrozenEstimator(fitted)), IRIS[0], Y, cv=3)
    assert scores.mean() > 0.9


def test_names_of_columns_are_those_of_the_teacher():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(X, columns=list("abcd"))
    for scaler in (StandardScaler(), StandardScaler().set_output(transform="pandas")):
        teacher = pipeline(scaler).fit(table, Y)
        model = SIMClassifier(teacher, penalty=sim.L1(1e-7)).fit(table, Y)
        np.testing.assert_allclose(
            model.predict_proba(table), teacher.predict_proba(table), atol=2e-3
        )
        with pytest.raises(ValueError, match="feature names"):
            SIMClassifier(teacher).fit(table[list("bacd")], Y)


def many():
    return perceptron().fit(IRIS[0], np.eye(3)[IRIS[1]])


REFUSED = {
    "not affine": (lambda: pipeline(PolynomialFeatures()).fit(IRIS[0], Y), "no affine map of X"),
    "bent": (lambda: pipeline(PowerTransformer()).fit(IRIS[0], Y), "no affine map of X"),
    "other columns": (lambda: perceptron().fit(IRIS[0][:, :2], Y), "expecting 2 features"),
    "other classes": (
        lambda: perceptron().fit(IRIS[0][:100], Y[:100]),
        r"y has \['virginica'\]; the teacher tells apart \['setosa', 'versicolor'\]",
    ),
    "several labels": (many, "any of 3 labels"),
    "no network": (lambda: make_pipeline(StandardScaler()), "use an MLPClassifier"),
    "nothing": (lambda: Pipeline([("nothing", "passthrough")]), "use an MLPClassifier"),
    "a regressor": (lambda: make_pipeline(MLPRegressor()), "use an MLPClassifier"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_teacher_is(name):
    make, words = REFUSED[name]
    model = SIMClassifier(make())
    before = dict(vars(model))
    with pytest.raises(ValueError, match=words):
        model.fit(IRIS[0], Y)
    assert vars(model) == before


def test_a_frozen_teacher_must_be_fitted():
    inside = MLPClassifier()
    for frozen in (FrozenEstimator(inside), make_pipeline(FrozenEstimator(inside))):
        with pytest.raises(NotFittedError, match="FrozenEstimator instance is not fitted"):
            SIMClassifier(frozen).fit(IRIS[0], Y)
    assert inside.random_state is None
