"""The estimators beside the perceptrons of scikit-learn, all at their defaults.

    python tests/benchmarks/estimators.py
    python tests/benchmarks/estimators.py --sets iris wine --splits 2
    python tests/benchmarks/estimators.py --select
    python tests/benchmarks/estimators.py --few

Of each data set ten splits, three quarters for training, classes in proportion. The
columns are standardised by the training part before anyone sees them: perceptrons need
it, and the implicit estimators do it anyway. So are the targets of the regression, for
the perceptron too; in "diabetes_raw" it gets them as they are, from 25 to 346, and is
far from done after its 200 epochs. Printed are the median time of a fit of either; the
median ratio of the two, split by split; the mean accuracy on the rest (of the
regression R^2); and the mean difference, split by split, with its standard error. The
two take turns, in an order drawn anew.

``--select`` tries the candidates for a default, on ten other splits. Each set is left out
once, and a default chosen on the other four: of those with a median ratio of at most 5 on
each of the four, the one with the largest

    mean over the sets of min(0, mean difference / deviation of the perceptron's scores),

that is, the one that falls short least; what one set wins does not pay for another. Ties
go to the faster one. The chosen default is then judged on the set that was left out. The
last choice is on all five.

``--few`` trains on 300 rows, or three quarters of fewer, of these sets and of two
functions, a sine of one variable and a sum of squares of four: with the defaults for few
samples, and with those for many. It prints scores and counts warnings; it takes no times.
"""

import argparse
import itertools
import time
import warnings

import numpy as np

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")
RAW = "diabetes_raw"
SPLITS = 10
SLOWEST = 5.0
"""The largest ratio of times that a default may have."""
KAPPAS, RATES = (0.5, 0.9), (1e-2, 2e-2, 4e-2)
ALPHAS, EPOCHS = (1e-3, 3e-3, 1e-2), (25, 50)


def load(name):
    """``(X, y, whether y are labels)``."""
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name.removesuffix('_raw')}")(return_X_y=True)
    return X, y, not name.startswith("diabetes")


def pair(labels, seed):
    """An implicit estimator and a perceptron, at their defaults."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor

    kinds = (ImplicitClassifier, MLPClassifier) if labels else (ImplicitRegressor, MLPRegressor)
    return dict(zip(("pyidl", "scikit-learn"), (kind(random_state=seed) for kind in kinds)))


def split(name, seed):
    """``(U, V, s, t)``: columns and targets of both parts, and whether those are labels."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    X, y, labels = load(name)
    U, V, s, t = train_test_split(X, y, random_state=seed, stratify=y if labels else None)
    scaler = StandardScaler().fit(U)
    if not labels and name != RAW:
        middle, size = s.mean(), s.std()
        s, t = (s - middle) / size, (t - middle) / size
    return (scaler.transform(U), scaler.transform(V), s, t), labels


def timed(estimator, data):
    """``(seconds, score)`` of one fit."""
    U, V, s, t = data
    start = time.perf_counter()
    estimator.fit(U, s)
    return time.perf_counter() - start, estimator.score(V, t)


def measure(name, splits=SPLITS):
    """``(seconds, scores)`` of both, a number for each split."""
    seconds, scores = ({"pyidl": [], "scikit-learn": []} for _ in range(2))
    rng = np.random.default_rng(0)
    for seed in range(splits):
        data, labels = split(name, seed)
        both = pair(labels, seed)
        for i in rng.permutation(2):
            who = list(both)[i]
            for kept, value in zip((seconds, scores), timed(both[who], data)):
                kept[who].append(value)
    return seconds, scores


def report(name, seconds, scores):
    """Print a line: times of fits, and scores with their difference."""
    ours, theirs = (np.array(seconds[who]) for who in ("pyidl", "scikit-learn"))
    apart = np.subtract(scores["pyidl"], scores["scikit-learn"])
    error = apart.std(ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.nan
    print(
        f"{name:14s} {np.median(ours):7.2f} s against {np.median(theirs):7.2f} = "
        f"{np.median(ours / theirs):6.2f} x   score {np.mean(scores['pyidl']):.4f} against "
        f"{np.mean(scores['scikit-learn']):.4f}, difference {apart.mean():+.4f} +- {error:.4f}",
        flush=True,
    )


# ----------------------------------------------------------------------- few samples

ROWS, TESTED = 300, 500
MANY = {"alpha": 3e-3, "max_iter": 50}
FUNCTIONS = {
    "sine": (1, lambda X: np.sin(4 * X[:, 0]), 0.1),
    "squares": (4, lambda X: np.sum(X**2, axis=1), 0.05),
}
"""Of variables between -1 and 1: how many, and the deviation of what is added."""


def few_rows(name, seed):
    """``(U, V, s, t)``, and whether targets are labels."""
    from sklearn.model_selection import train_test_split

    if name in FUNCTIONS:
        p, function, noise = FUNCTIONS[name]
        rng = np.random.default_rng(seed)
        X = rng.uniform(-1, 1, (ROWS + TESTED, p))
        y, labels = function(X) + noise * rng.normal(size=len(X)), False
    else:
        X, y, labels = load(name)
    rows = min(ROWS, 3 * len(X) // 4)
    U, V, s, t = train_test_split(
        X, y, train_size=rows, random_state=seed, stratify=y if labels else None
    )
    return (U, V[:TESTED], s, t[:TESTED]), labels


def few(sets, splits):
    """Print a line for each set: scores, their difference, and how many runs warned."""
    from sklearn.exceptions import ConvergenceWarning

    for name in sets:
        scores, warned = {"few": [], "many": []}, {"few": 0, "many": 0}
        for seed in range(splits):
            data, labels = few_rows(name, seed)
            for who, options in (("few", {}), ("many", MANY)):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", ConvergenceWarning)
                    estimator = pair(labels, seed)["pyidl"].set_params(**options)
                    scores[who].append(timed(estimator, data)[1])
                warned[who] += any(w.category is ConvergenceWarning for w in caught)
        apart = np.subtract(scores["few"], scores["many"])
        error = apart.std(ddof=1) / splits**0.5 if splits > 1 else np.nan
        print(
            f"{name:14s} {np.mean(scores['few']):.4f} against {np.mean(scores['many']):.4f}, "
            f"difference {apart.mean():+.4f} +- {error:.4f}, warnings {warned['few']} "
            f"against {warned['many']}",
            flush=True,
        )


# --------------------------------------------------------------------------- the choice


def candidates():
    """``{words: (kappa, options of an estimator)}``."""
    return {
        f"kappa {kappa}, rate {rate:g}, alpha {alpha:g}, {epochs} epochs": (
            kappa,
            {"learning_rate": rate, "alpha": alpha, "max_iter": epochs},
        )
        for kappa, rate, alpha, epochs in itertools.product(KAPPAS, RATES, ALPHAS, EPOCHS)
    }


def compare(name, offered, splits):
    """``{words: (median ratio, mean difference in deviations, mean difference)}``."""
    from pyidl import InfNorm

    seconds, scores = ({who: [] for who in ("scikit-learn", *offered)} for _ in range(2))
    rng = np.random.default_rng(1)
    for seed in range(SPLITS, SPLITS + splits):  # report takes the first ones
        data, labels = split(name, seed)
        each = {"scikit-learn": pair(labels, seed)["scikit-learn"]}
        for words, (kappa, options) in offered.items():
            one = pair(labels, seed)["pyidl"]
            each[words] = one.set_params(**{"constraint": InfNorm(kappa), **options})
        for i in rng.permutation(len(each)):
            who = list(each)[i]
            for kept, value in zip((seconds, scores), timed(each[who], data)):
                kept[who].append(value)
    spread = max(float(np.std(scores["scikit-learn"], ddof=1)), 1e-3)
    found = {}
    for words in offered:
        ratio = np.median(np.divide(seconds[words], seconds["scikit-learn"]))
        apart = float(np.mean(np.subtract(scores[words], scores["scikit-learn"])))
        found[words] = (float(ratio), apart / spread, apart)
    return found


def choose(found, sets):
    """The words of the candidate that falls short least on these sets, and how much."""
    best, value = "", (-np.inf, -np.inf)
    for words in found[sets[0]]:
        ratios, units, _ = zip(*(found[name][words] for name in sets))
        short = float(np.mean(np.minimum(units, 0.0)))
        if max(ratios) <= SLOWEST and (short, -np.mean(ratios)) > value:
            best, value = words, (short, -np.mean(ratios))
    return best, value[0]


def select(sets, splits, offered=None):
    """Leave out each set once; print every choice, and how it does on the set left out."""
    offered = candidates() if offered is None else offered
    found = {name: compare(name, offered, splits) for name in sets}
    for words in offered:
        rows = ((name, *found[name][words]) for name in sets)
        parts = (f"{name} {apart:+.4f} ({ratio:.1f} x)" for name, ratio, _, apart in rows)
        print(f"{words}: {', '.join(parts)}", flush=True)
    for left_out in sets:
        words, short = choose(found, [name for name in sets if name != left_out])
        if words:
            ratio, units, apart = found[left_out][words]
            print(
                f"without {left_out}: {words} ({short:+.3f}); there {apart:+.4f}, "
                f"{units:+.2f} deviations, {ratio:.2f} x"
            )
        else:
            print(f"without {left_out}: no candidate is fast enough")
    print("on all: {} ({:+.3f})".format(*choose(found, sets)))


def main(arguments=None):
    """Fit all sets of data, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--sets", nargs="+", choices=(*SETS, RAW, *FUNCTIONS), default=None)
    parser.add_argument("--few", action="store_true", help="train on 300 rows, with no times")
    parser.add_argument("--select", action="store_true", help="choose a default (an hour)")
    options = parser.parse_args(arguments)
    if not options.few and FUNCTIONS.keys() & set(options.sets or ()):
        parser.error("functions are for --few")
    warnings.simplefilter("ignore")  # that the epochs were not enough
    if options.select:
        select(options.sets or SETS, options.splits)
        return
    if options.few:
        few(options.sets or (*SETS, *FUNCTIONS), options.splits)
        return
    for name in options.sets or (*SETS, RAW):
        report(name, *measure(name, options.splits))


if __name__ == "__main__":
    main()
