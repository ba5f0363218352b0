"""Perceptrons of scikit-learn as implicit models."""

import warnings

import numpy as np
import pytest
from helpers import relative
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from pyidl.errors import InputError
from pyidl.interop.sklearn import to_implicit

SCALERS = [
    [],
    [StandardScaler()],
    [StandardScaler(with_mean=False)],
    [StandardScaler(with_std=False), MaxAbsScaler()],
    [MinMaxScaler((-1, 2)), StandardScaler()],
]


def fitted(network, U, y, scalers=()):
    network.set_params(max_iter=15, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(*scalers, network).fit(U, y)


@pytest.mark.parametrize("scalers", SCALERS, ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_a_regression(activation, scalers):
    U, y = load_diabetes(return_X_y=True, scaled=False)
    network = fitted(MLPRegressor(hidden_layer_sizes=(7, 5), activation=activation), U, y, scalers)
    model = to_implicit(network)
    assert relative(model.predict(U)[:, 0], network.predict(U)) < 1e-12
    assert (model.hidden_dim, model.dtype) == (12, "float64")
    assert model.certificate().applies_to == "Substitution"


@pytest.mark.parametrize(("load", "last"), [(load_wine, softmax), (load_breast_cancer, expit)])
def test_a_classifier_gives_logits(load, last):
    U, y = load(return_X_y=True)
    network = fitted(MLPClassifier(hidden_layer_sizes=(7,)), U, y, [StandardScaler()])
    logits = to_implicit(network).predict(U)
    shares = last(logits, axis=1) if last is softmax else last(logits)
    assert relative(shares[:, -1], network.predict_proba(U)[:, -1]) < 1e-12


def test_single_precision_stays():
    U, y = load_diabetes(return_X_y=True)
    network = fitted(
        MLPRegressor(hidden_layer_sizes=(7,)), U.astype(np.float32), y.astype(np.float32)
    )
    model = to_implicit(network[-1])
    assert model.dtype == "float32"
    assert relative(model.predict(U)[:, 0], network.predict(U.astype(np.float32))) < 1e-6


def test_what_is_passed_through_is_no_step():
    U, y = load_diabetes(return_X_y=True)
    network = fitted(MLPRegressor(hidden_layer_sizes=(3,)), U, y)[-1]
    steps = Pipeline([("none", "passthrough"), ("network", network)])
    np.testing.assert_array_equal(to_implicit(steps).predict(U), to_implicit(network).predict(U))


def test_refusals():
    U, y = load_diabetes(return_X_y=True)
    with pytest.raises(NotFittedError):
        to_implicit(MLPRegressor())
    with pytest.raises(InputError, match="PCA"):
        to_implicit(fitted(MLPRegressor(hidden_layer_sizes=(3,)), U, y, [PCA(3)]))
    with pytest.raises(InputError, match=r"clip=True.*clip=False"):
        to_implicit(fitted(MLPRegressor(hidden_layer_sizes=(3,)), U, y, [MinMaxScaler(clip=True)]))
    for wrong in (None, StandardScaler(), make_pipeline(StandardScaler())):
        with pytest.raises(InputError, match="perceptron"):
            to_implicit(wrong)
