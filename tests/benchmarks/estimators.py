"""The estimators beside the perceptrons of scikit-learn, all at their defaults.

    python tests/benchmarks/estimators.py
    python tests/benchmarks/estimators.py --sets iris wine --splits 2

Of each data set ten splits, three quarters for training, classes in proportion. The
columns are standardised by the training part before anyone sees them: perceptrons need
it, and the implicit estimators do it anyway. Printed are the median time of a fit of
either; the median ratio of the two, split by split; the mean accuracy on the rest (of
the regression R^2); and the mean difference, split by split, with its standard error.
The two take turns, in an order drawn anew.
"""

import argparse
import time
import warnings

import numpy as np

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")
SPLITS = 10


def load(name):
    """``(X, y, whether y are labels)``."""
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return X, y, name != "diabetes"


def pair(labels, seed):
    """An implicit estimator and a perceptron, at their defaults."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor

    kinds = (ImplicitClassifier, MLPClassifier) if labels else (ImplicitRegressor, MLPRegressor)
    return dict(zip(("pyidl", "scikit-learn"), (kind(random_state=seed) for kind in kinds)))


def measure(name, splits=SPLITS):
    """``(seconds, scores)`` of both, a number for each split."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    X, y, labels = load(name)
    seconds, scores = ({"pyidl": [], "scikit-learn": []} for _ in range(2))
    rng = np.random.default_rng(0)
    for seed in range(splits):
        U, V, s, t = train_test_split(X, y, random_state=seed, stratify=y if labels else None)
        scaler = StandardScaler().fit(U)
        U, V = scaler.transform(U), scaler.transform(V)
        both = pair(labels, seed)
        for i in rng.permutation(2):
            who = list(both)[i]
            start = time.perf_counter()
            both[who].fit(U, s)
            seconds[who].append(time.perf_counter() - start)
            scores[who].append(both[who].score(V, t))
    return seconds, scores


def report(name, seconds, scores):
    """One line."""
    ours, theirs = (np.array(seconds[who]) for who in ("pyidl", "scikit-learn"))
    apart = np.subtract(scores["pyidl"], scores["scikit-learn"])
    error = apart.std(ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.nan
    print(
        f"{name:14s} {np.median(ours):7.2f} s against {np.median(theirs):7.2f} = "
        f"{np.median(ours / theirs):6.2f} x   score {np.mean(scores['pyidl']):.4f} against "
        f"{np.mean(scores['scikit-learn']):.4f}, difference {apart.mean():+.4f} +- {error:.4f}",
        flush=True,
    )


def main(arguments=None):
    """All sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # that 200 epochs were not enough
    for name in options.sets:
        report(name, *measure(name, options.splits))


if __name__ == "__main__":
    main()
