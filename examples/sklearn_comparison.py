"""Implicit estimators beside scikit-learn's perceptrons, on its five small data sets.

``python examples/sklearn_comparison.py [repeats]``

All have the same budget: hidden units, epochs, batches, Adam's rate, ridge; inputs (and
targets) standardised. Five-fold cross-validation, repeated with other folds and seeds.
Accuracy for classes, R2 for the diabetes data; mean, and standard deviation over all
folds.
"""

import sys
import time
import warnings

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyidl import InfNorm, optim, sim
from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor, SIMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the budget
REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
UNITS, EPOCHS, RATE, ALPHA = 50, 100, 5e-3, 1e-4
THEIRS = {
    "max_iter": EPOCHS,
    "learning_rate_init": RATE,
    "alpha": ALPHA,
    "n_iter_no_change": EPOCHS,
    "batch_size": 100,
}
OURS = {
    "max_iter": EPOCHS,
    "learning_rate": optim.Constant(RATE),
    "alpha": ALPHA,
    "n_iter_no_change": EPOCHS,
}
OURS |= {"batch_size": 100, "constraint": InfNorm(0.95)}


def classifiers(seed):
    """Two hidden layers for the teacher of SIM, as one layer leaves nothing to feed back."""
    deep = MLPClassifier((UNITS // 2, UNITS // 2), random_state=seed, **THEIRS)
    return {
        "MLPClassifier, one layer": make_pipeline(
            StandardScaler(), MLPClassifier((UNITS,), random_state=seed, **THEIRS)
        ),
        "MLPClassifier, two layers": make_pipeline(StandardScaler(), deep),
        "ImplicitClassifier": ImplicitClassifier(UNITS, random_state=seed, **OURS),
        "SIMClassifier of the two": SIMClassifier(
            deep, penalty=sim.L1(1e-3), relaxed=sim.L1(1e-5), random_state=seed
        ),
    }


def regressors(seed):
    nets = {"MLP, one layer": (UNITS,), "MLP, two layers": (UNITS // 2, UNITS // 2)}
    found = {
        name: TransformedTargetRegressor(
            make_pipeline(
                StandardScaler(),
                MLPRegressor(hidden_layer_sizes=widths, random_state=seed, **THEIRS),
            ),
            transformer=StandardScaler(),
        )
        for name, widths in nets.items()
    }
    return found | {"ImplicitRegressor": ImplicitRegressor(UNITS, random_state=seed, **OURS)}


sets = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
    "digits": load_digits,
    "diabetes": load_diabetes,
}
for name, load in sets.items():
    X, y = load(return_X_y=True)
    regression = name == "diabetes"
    print(
        f"{name}: {X.shape[0]} samples, {X.shape[1]} columns, "
        f"{'R2' if regression else f'{len(np.unique(y))} classes, accuracy'}"
    )
    scores, seconds = {}, {}
    for repeat in range(REPEATS):
        folds = (KFold if regression else StratifiedKFold)(5, shuffle=True, random_state=repeat)
        for title, estimator in (regressors if regression else classifiers)(repeat).items():
            began = time.perf_counter()
            scores.setdefault(title, []).extend(cross_val_score(estimator, X, y, cv=folds))
            seconds[title] = seconds.get(title, 0.0) + (time.perf_counter() - began) / (5 * REPEATS)
    for title, values in scores.items():
        print(
            f"    {title:26s} {np.mean(values):.4f} +- {np.std(values):.4f}   "
            f"{seconds[title]:.2f} s a fit"
        )
