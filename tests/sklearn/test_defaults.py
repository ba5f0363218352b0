"""What the defaults do with few samples: they finish, and not too early."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn import datasets
from sklearn.model_selection import train_test_split

from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor
from pyidl.training import recipe

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def three_hundred(name, seed):
    """300 rows to train on, or three quarters of fewer, and the others."""
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    labels = None if name == "diabetes" else y
    rows = min(300, 3 * len(X) // 4)
    return train_test_split(X, y, train_size=rows, random_state=seed, stratify=labels)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SETS)
def test_real_tables_of_few_rows_are_finished(name, seed):
    """Without a warning, and the loss has come to its end."""
    U, V, s, t = three_hundred(name, seed)
    cls = ImplicitRegressor if name == "diabetes" else ImplicitClassifier
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = cls(random_state=seed).fit(U, s)
    steps = model.n_iter_ * -(-len(U) // 200)
    assert steps >= recipe.STEPS or model.n_iter_ > 10
    late = model.loss_curve_[-11] - model.loss_curve_[-1]
    assert late < 0.01 * (model.loss_curve_[0] - model.loss_curve_[-1])
    assert model.score(V[:500], t[:500]) > (0.3 if name == "diabetes" else 0.9)


def test_a_function_without_much_noise_is_learnt():
    """With 50 epochs of two steps it was not, and nothing said so (R^2 of 0.77)."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (800, 1))
    y = np.sin(4 * X[:, 0]) + 0.1 * rng.normal(size=800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ImplicitRegressor(random_state=0).fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > 0.9


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("rows", "options", "epochs"),
    [
        (150, {}, 150),
        (300, {}, 75),
        (600, {}, 50),
        (300, {"batch_size": 10}, 50),
        (300, {"batch_size": None}, 150),
        (300, {"max_iter": 3}, 3),
        (400, {"early_stopping": True, "validation_fraction": 0.5}, 150),
    ],
)
def test_how_long(rows, options, epochs):
    """50 epochs, or 150 steps; what is held out takes none."""
    X = np.random.default_rng(0).normal(size=(rows, 2))
    model = ImplicitRegressor(3, n_iter_no_change=1000, random_state=0, **options)
    assert model.fit(X, X[:, 0]).n_iter_ == epochs
    half = ImplicitRegressor(3, n_iter_no_change=1000, random_state=0, **options)
    if not model.early_stopping:
        weights = np.repeat([1.0, 0.0], rows)
        twice = np.tile(X, (2, 1))
        assert half.fit(twice, twice[:, 0], sample_weight=weights).n_iter_ == epochs


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_how_much_the_penalty_counts(monkeypatch):
    """As much as 5 samples, and at most 1/40; a number is taken as it is."""
    ridge, seen = recipe.ridge, []

    def noted(alpha):
        seen.append(alpha)
        return ridge(alpha)

    monkeypatch.setattr(recipe, "ridge", noted)
    X = np.random.default_rng(0).normal(size=(1000, 2))
    for rows, given in ((1000, None), (100, None), (100, 0.5)):
        model = ImplicitRegressor(3, alpha=given, max_iter=1)
        model.fit(X[:rows], X[:rows, 0])
        model.partial_fit(X[:rows], X[:rows, 0])
    assert seen == [0.005, 0.005, 0.025, 0.025, 0.5, 0.5]
