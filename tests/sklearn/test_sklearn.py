"""The estimators.

Scikit-learn's own checks, with no failure expected, and what those do not ask.
"""

import inspect
import math
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from helpers import host
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import pyidl
from pyidl import activations, losses, optim, sim
from pyidl.cli.parser import build_parser
from pyidl.errors import InputError
from pyidl.sklearn import ImplicitClassifier, ImplicitRegressor, SIMClassifier
from pyidl.training.standardise import Standardiser, fold
from pyidl.wellposed import InfNorm, SpectralNorm

IRIS, DIABETES = load_iris(return_X_y=True), load_diabetes(return_X_y=True)
QUICK = [
    ImplicitClassifier(hidden_dim=5, learning_rate=0.04, max_iter=40),
    ImplicitRegressor(hidden_dim=8, max_iter=120),
    SIMClassifier(MLPClassifier((5,), learning_rate_init=0.03)),
]


def every_check(*estimators):
    """What scikit-learn asks of an estimator, a case for each question.

    With pytest 9 its own decorator, in 1.6, is a warning.
    """
    pairs = [pair for estimator in estimators for pair in estimator_checks_generator(estimator)]
    ids = [
        f"{type(estimator).__name__}-{check.func.__name__}-{i}"
        for i, (estimator, check) in enumerate(pairs)
    ]
    return pytest.mark.parametrize(("estimator", "check"), pairs, ids=ids)


@every_check(*QUICK)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # 40 epochs are few
def test_conforms(estimator, check):
    check(estimator)


@pytest.mark.slow
@every_check(ImplicitClassifier(), ImplicitRegressor(), SIMClassifier())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_conforms_as_it_is(estimator, check):
    check(estimator)


def classifier(**options):
    few = {"hidden_dim": 10, "max_iter": 60, "n_iter_no_change": 100, "random_state": 0}
    return ImplicitClassifier(**(few | {"learning_rate": 0.04} | options))


def fitted(estimator, *data, **options):
    """Trained; all epochs are wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*data, **options)


# ------------------------------------------------------------ in scikit-learn's company


def test_pipelines_searches_and_validation():
    X, y = IRIS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(make_pipeline(StandardScaler(), classifier()), X, y, cv=3)
        assert scores.mean() > 0.9
        search = GridSearchCV(
            classifier(), {"hidden_dim": [4, 8], "activation": ["relu", activations.tanh]}, cv=2
        ).fit(X, y)
    assert search.best_score_ > 0.85
    twin = clone(search.best_estimator_)
    assert twin.get_params() == search.best_estimator_.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(X)


def test_pickles_and_files(tmp_path):
    X, y = IRIS
    model = fitted(classifier(constraint=SpectralNorm(0.8), rank=3), X, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    pyidl.save(tmp_path / "model.npz", model.model_)
    Y = pyidl.load(tmp_path / "model.npz").predict(X)
    assert np.array_equal(model.classes_[Y.argmax(axis=1)], model.predict(X))


def test_names_of_columns_are_kept():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X = pandas.DataFrame(IRIS[0], columns=["a", "b", "c", "d"])
    model = fitted(classifier(), X, IRIS[1])
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[["b", "a", "c", "d"]])


# ------------------------------------------------------------------------------ answers


def test_probabilities_and_labels():
    X, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = fitted(classifier(), X, names)
    P = model.predict_proba(X)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert np.allclose(P.sum(axis=1), 1, rtol=1e-14)
    assert np.allclose(np.log(P), model.predict_log_proba(X))
    assert model.score(X, names) > 0.9
    two = fitted(classifier(), X[:100], names[:100])
    odds = two.decision_function(X[:100])
    assert odds.shape == (100,)
    assert np.allclose(1 / (1 + np.exp(-odds)), two.predict_proba(X[:100])[:, 1])


def regressor():
    return ImplicitRegressor(8, learning_rate=0.04, max_iter=30, random_state=0)


@pytest.mark.parametrize("make", [classifier, regressor])
def test_the_model_takes_inputs_as_they_are(make):
    X = 1000 + 50 * IRIS[0]
    y = IRIS[1] if make is classifier else np.stack([1e4 * IRIS[0][:, 0], IRIS[0][:, 1]], axis=1)
    estimator = fitted(make(), X, y)
    Y = estimator.model_.predict(X)
    if make is classifier:
        assert np.allclose(
            np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True), estimator.predict_proba(X), atol=1e-9
        )
    else:
        assert np.allclose(Y, estimator.predict(X), rtol=1e-9)
        assert estimator.score(X, y) > 0.5
    assert estimator.model_.certificate().proven


def test_a_single_target_is_a_column_or_a_vector():
    X, y = DIABETES
    flat = fitted(ImplicitRegressor(6, max_iter=20, random_state=0), X, y)
    column = fitted(ImplicitRegressor(6, max_iter=20, random_state=0), X, y[:, None])
    assert flat.predict(X).shape == (442,)
    assert column.predict(X).shape == (442, 1)
    assert np.array_equal(flat.predict(X), column.predict(X)[:, 0])


# ----------------------------------------------------------------------------- training


def test_the_same_seed_gives_the_same_model():
    X, y = IRIS
    first, second, other = (
        fitted(classifier(random_state=seed, max_iter=5), X, y).predict_proba(X)
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "make",
    [classifier, lambda: ImplicitRegressor(8, max_iter=60, n_iter_no_change=100, random_state=0)],
)
def test_a_weight_of_two_is_a_sample_that_is_there_twice(make):
    """With one batch; both sums have the same terms in another order."""
    X, y = IRIS[0][::3], IRIS[1][::3] if make is classifier else IRIS[0][::3, 0]
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    twice = np.repeat(np.arange(len(X)), weights)
    weighted, repeated = (
        fitted(make(), X, y, sample_weight=weights),
        fitted(make(), X[twice], y[twice]),
    )
    answer = "predict_proba" if make is classifier else "predict"
    assert np.allclose(
        getattr(weighted, answer)(X), getattr(repeated, answer)(X), rtol=1e-6, atol=1e-8
    )
    plain = fitted(make(), X, y)
    assert not np.allclose(getattr(weighted, answer)(X), getattr(plain, answer)(X), rtol=1e-3)


def test_partial_fit_goes_on():
    X, y = IRIS
    model = classifier()
    for _ in range(60):
        for rows in (slice(0, 100), slice(50, 150)):
            model.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    assert model.score(X, y) > 0.9
    assert model.n_iter_ == 120
    assert len(model.loss_curve_) == 120
    for wrong, data, words in (
        ([], y, r"got 0 class: \[\]; at least two"),
        (None, np.zeros(150), r"got 1 class: \[0.0\]; at least two"),
    ):
        with pytest.raises(InputError, match=words):
            classifier().partial_fit(X, data, classes=wrong)
    with pytest.raises(
        InputError, match=r"y or classes has \[5\]; the model was built for the classes \[0, 1, 2\]"
    ):
        model.partial_fit(X, np.full(150, 5))
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :2], y)


def test_a_warm_start_goes_on_and_a_cold_one_does_not():
    X, y = IRIS
    warm = fitted(classifier(warm_start=True, max_iter=20), X, y)
    before = warm.loss_curve_[-1]
    fitted(warm, X, y)
    assert warm.loss_curve_[0] < 1.2 * before
    assert warm.n_iter_ == 20
    cold = fitted(classifier(max_iter=20), X, y)
    first = cold.loss_curve_[0]
    assert fitted(cold, X, y).loss_curve_[0] == first
    with pytest.raises(InputError, match="the model was built for the classes"):
        fitted(warm, X, y + 1)


def test_what_a_later_call_may_change():
    X, y = IRIS
    model = fitted(classifier(warm_start=True, max_iter=2), X, y)
    before = host(model.model_.params["A"])
    fitted(model.set_params(learning_rate=1e-12), X, y)
    assert np.allclose(host(model.model_.params["A"]), before, rtol=0, atol=1e-9)
    assert model._optimizer.count == 4
    for name, value in {
        "hidden_dim": 7,
        "activation": "tanh",
        "dtype": "float32",
        "standardize": False,
    }.items():
        built = getattr(model, name)
        for call in (model.fit, model.partial_fit):
            model.set_params(**{name: value})
            with pytest.raises(
                InputError, match=f"{name} is {value!r}, but the network was built with {built!r}"
            ):
                call(X, y)
        model.set_params(**{name: built})
    two = ImplicitRegressor(4, random_state=0).partial_fit(X, X[:, :2])
    # and not one target for both
    with pytest.raises(InputError, match="y has 1 targets a sample; the model was built for 2"):
        two.partial_fit(X, y)


SPELLINGS = {
    "activation": ("relu", activations.relu, pickle.loads(pickle.dumps(activations.relu))),
    "activation with a slope": ("leaky_relu(0.1)", activations.leaky_relu(0.1)),
    "dtype": ("float64", np.float64, np.dtype("float64"), "f8", float),
    "constraint": (None, InfNorm(0.5), InfNorm(kappa=np.float32(0.5))),
    "rank": (3, np.int64(3)),
    "hidden_dim": (5, np.int64(5)),
    "standardize": (True, np.True_),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_option_in_several_spellings(name):
    """A warm start, and `partial_fit`, take each for what it means."""
    X, y = IRIS
    option, spellings = name.split()[0], SPELLINGS[name]
    for first in spellings:
        model = fitted(classifier(warm_start=True, max_iter=1, **{option: first}), X, y)
        for later in spellings:
            fitted(model.set_params(**{option: later}), X, y)
            model.partial_fit(X, y)
    other = {"hidden_dim": 6, "rank": None, "standardize": False, "dtype": "float32"}
    other |= {"activation": "tanh", "constraint": InfNorm(0.6)}
    with pytest.raises(InputError, match=f"{option} is .*, but the network was built with"):
        model.set_params(**{option: other[option]}).partial_fit(X, y)


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step."""
    step, seen = optim.Adam.step, []

    def noted(self, *arguments):
        seen.append(self.current_rate)
        return step(self, *arguments)

    monkeypatch.setattr(optim.Adam, "step", noted)
    return seen


def test_a_rate_that_is_a_number_falls_to_zero_in_every_fit(rates):
    X, y = IRIS
    options = {"max_iter": 5, "batch_size": 40, "warm_start": True}
    cosine = optim.Cosine(0.02, steps=20)  # 4 steps an epoch
    model = fitted(classifier(learning_rate=0.02, **options), X, y)
    assert rates == [cosine(i) for i in range(20)]
    fitted(model.set_params(learning_rate=0.01), X, y)
    assert rates[20:] == pytest.approx([0.5 * cosine(i) for i in range(20)], rel=1e-14)
    again = pickle.loads(pickle.dumps(model))
    model.partial_fit(X, y)  # nobody knows how many are to come
    again.partial_fit(X, y)
    assert rates[40:] == 8 * [0.01]


def test_samples_without_weight_are_no_steps_of_the_fall(rates):
    X, y = IRIS
    weights = np.where(np.arange(150) % 3 == 0, 0.0, 1.0)
    fitted(classifier(learning_rate=0.02, max_iter=3, batch_size=40), X, y, sample_weight=weights)
    assert rates == [optim.Cosine(0.02, steps=9)(i) for i in range(9)]
    rates.clear()
    fitted(classifier(learning_rate=0.02, max_iter=3, early_stopping=True, batch_size=45), X, y)
    assert rates == [optim.Cosine(0.02, steps=9)(i) for i in range(9)]  # of 135


def test_a_schedule_is_taken_as_it_is(rates):
    X, y = IRIS
    options = {"max_iter": 3, "warm_start": True}
    model = fitted(classifier(learning_rate=optim.Constant(0.01), **options), X, y)
    assert rates == 3 * [0.01]
    fitted(model.set_params(learning_rate=optim.Exponential(0.5, rate=0.5)), X, y)
    assert rates[3:] == [0.5**i for i in (4, 5, 6)]


def test_the_command_line_has_the_same_recipe():
    given = build_parser().parse_args(["train", "x.csv", "--target", "y"])
    for cls in (ImplicitClassifier, ImplicitRegressor):
        defaults = cls().get_params()
        assert given.learning_rate == defaults["learning_rate"]
    model = classifier(max_iter=1).partial_fit(*IRIS).model_
    assert model.constraint.kappa == given.kappa


def test_a_step_that_fails_is_not_half_taken(monkeypatch):
    X, y = IRIS
    model = classifier(batch_size=50).partial_fit(X, y)
    before, twin = dict(vars(model)), pickle.loads(pickle.dumps(model))
    step, taken = optim.Adam.step, []

    def third(self, *arguments):
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(optim.Adam, "step", third)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X, y)
    monkeypatch.undo()
    assert vars(model) == before
    assert np.array_equal(
        model.partial_fit(X, y).predict_proba(X), twin.partial_fit(X, y).predict_proba(X)
    )


def test_early_stopping_watches_samples_that_it_holds_out():
    X, y = DIABETES
    model = ImplicitRegressor(
        40, early_stopping=True, max_iter=300, random_state=0, learning_rate=0.03
    ).fit(X, y)
    assert model.n_iter_ < 300
    held_out = model.history_["val_loss"]
    assert held_out[-1] > held_out.min()


@pytest.mark.parametrize("cls", [ImplicitClassifier, ImplicitRegressor])
def test_early_stopping_brings_back_the_least_loss_of_the_held_out(cls, monkeypatch):
    """Their loss, without the penalty; that of MLPClassifier watches the accuracy."""
    X, y = IRIS if cls is ImplicitClassifier else DIABETES
    split, kept = cls._split, []

    def noted(self, data):
        kept.append(split(self, data))
        return kept[-1]

    monkeypatch.setattr(cls, "_split", noted)
    options = {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 5}
    model = cls(20, max_iter=500, tol=1e-3, learning_rate=0.1, random_state=1, **options)
    model.fit(X, y)
    _, (V, T, _) = kept[0]
    assert len(T) == math.ceil(0.2 * len(y))
    if cls is ImplicitClassifier:
        loss = losses.cross_entropy(model.model_.predict(V), T)[0]
    else:
        units = model._standardised.outputs
        loss = losses.mse(units(model.model_.predict(V)), units(T))[0]
    watched = model.history_["val_loss"]
    assert float(loss) == pytest.approx(watched[: -options["n_iter_no_change"]].min(), abs=1e-5)
    assert loss <= watched.min() + model.tol
    assert watched[-1] > loss + model.tol
    assert model.n_iter_ == len(watched) < 500


def test_without_early_stopping_nothing_is_held_out():
    X, y = IRIS
    model = classifier(max_iter=2, early_stopping=False)
    assert model.early_stopping is ImplicitClassifier().early_stopping
    assert "val_loss" not in fitted(model, X, y).history_.records[0]
    model = classifier(early_stopping=True).partial_fit(X, y)  # nor by partial_fit
    assert "val_loss" not in model.history_.records[0]


def test_a_run_that_does_not_settle_says_so():
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter = 3 epochs"):
        ImplicitRegressor(5, max_iter=3, random_state=0).fit(*DIABETES)
    settled = ImplicitRegressor(5, tol=1.0, n_iter_no_change=2, random_state=0).fit(*DIABETES)
    assert settled.n_iter_ < 10


def test_a_rate_that_has_fallen_is_an_end_unless_much_was_still_gained():
    X, y = IRIS
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        done = ImplicitClassifier(10, max_iter=80, random_state=0).fit(X, y)
        assert done.n_iter_ == 80
        late = done.loss_curve_[-11] - done.loss_curve_[-1]
        assert 1e-4 < late < 0.01 * (done.loss_curve_[0] - done.loss_curve_[-1])
    for options in ({"max_iter": 12}, {"learning_rate": optim.Constant(0.02), "max_iter": 80}):
        with pytest.warns(ConvergenceWarning, match="while loss still fell"):
            ImplicitClassifier(10, random_state=0, tol=1e-9, **options).fit(X, y)


def test_options_reach_the_model():
    X, y = IRIS
    model = fitted(
        classifier(
            rank=2,
            activation="tanh",
            dtype="float32",
            batch_size=None,
            learning_rate=optim.Cosine(1e-2, steps=60),
        ),
        X,
        y,
    )
    assert model.model_.rank == 2
    assert model.model_.activation is activations.tanh
    assert model.model_.dtype == "float32"
    large = fitted(classifier(alpha=10.0), X, y)
    small = fitted(classifier(alpha=0.0), X, y)
    assert (
        np.abs(host(large.model_.params["C"])).sum()
        < 0.5 * np.abs(host(small.model_.params["C"])).sum()
    )
    bare = fitted(classifier(standardize=False, max_iter=2), X, y)
    assert np.array_equal(
        host(bare.model_.params["B"]), host(bare._standardised.network.params["B"])
    )


BAD = {
    "an activation": ({"activation": "rely"}, "there is no 'rely', did you mean 'relu'"),
    "alpha": ({"alpha": -1.0}, "alpha is -1.0"),
    "hidden_dim": ({"hidden_dim": 0}, "hidden_dim"),
    "a constraint": ({"constraint": 0.9}, "constraint"),
    "a batch": ({"batch_size": 0}, "batch_size is 0"),
    "a batch in words": ({"batch_size": "all"}, "batch_size is 'all'"),
    "epochs": ({"max_iter": 0}, "max_iter is 0"),
    "half an epoch": ({"max_iter": 1.5}, "max_iter is 1.5"),
    "tol": ({"tol": np.nan}, "tol is nan"),
    "a dtype": ({"dtype": "float16"}, "float16"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_when_fitted(case):
    options, words = BAD[case]
    estimator = ImplicitClassifier(**options)
    with pytest.raises(InputError, match=words):
        estimator.fit(*IRIS)
    with pytest.raises(NotFittedError):
        estimator.predict(IRIS[0])


OPTIONS = [
    (cls, name)
    for cls in (ImplicitClassifier, ImplicitRegressor, SIMClassifier)
    for name in inspect.signature(cls).parameters
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("cls", "name"), OPTIONS)
def test_what_an_option_is_not(cls, name):
    """A seed is refused in the words of scikit-learn, as everywhere there."""
    valid = {"teacher": MLPClassifier((3,), max_iter=1)} if cls is SIMClassifier else {}
    for value in ("wrong", [1.5], {}, object(), np.nan, dict):
        if (name, value) == ("class_weight", {}):  # every label has the weight 1
            continue
        with pytest.raises(
            ValueError,
            match="cannot be used to seed"
            if name == "random_state"
            else f"{name}|activation 'wrong'",
        ):
            cls(**{**valid, name: value}).fit(*IRIS)


def test_numbers_of_numpy_are_numbers():
    for options in (
        {"alpha": np.int64(0)},
        {"alpha": np.float32(0.5)},
        {"dtype": np.float32},
        {"max_iter": np.int64(2)},
    ):
        assert (
            fitted(classifier(**({"max_iter": 2} | options)), *IRIS).model_.dtype
            == np.dtype(options.get("dtype", "float64")).name
        )


SMALL_SIM = MLPClassifier((5,), learning_rate_init=0.03, max_iter=20)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: classifier(**o, max_iter=3),
        lambda **o: ImplicitRegressor(5, max_iter=3, **o),
        lambda **o: SIMClassifier(SMALL_SIM, **o),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_refused_fit_leaves_the_estimator_as_it_was(make, monkeypatch):
    X, y = IRIS
    estimator = make(random_state=0).fit(X, y)
    before, answers = dict(vars(estimator)), estimator.predict(X)

    def refused(error, *data, **options):
        given = {name: getattr(estimator, name) for name in options}
        with pytest.raises(error):
            estimator.set_params(**options).fit(*data)
        estimator.set_params(**given)
        assert vars(estimator) == before
        assert np.array_equal(estimator.predict(X), answers)

    refused(ValueError, X[:, :2], np.where(y == 1, np.nan, y))
    refused(InputError, 8 + 7 * X[:, :3], 1 + y[::-1], constraint=0.9)
    refused(InputError, 8 + 7 * X, 1 + y[::-1], dtype="float16")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(optim.Adam, "step", interrupted)
    monkeypatch.setattr(sim, "fit", interrupted)
    refused(KeyboardInterrupt, X[:, :2], 1 + y)
    unfitted = make()
    with pytest.raises(KeyboardInterrupt):
        unfitted.fit(X, y)
    with pytest.raises(NotFittedError):
        unfitted.predict(X)


# ---------------------------------------------------------------------------------- SIM


def test_an_implicit_model_in_place_of_its_teacher():
    X, y = IRIS
    teacher = MLPClassifier((20, 10), max_iter=1000, random_state=1)
    model = SIMClassifier(teacher, penalty=sim.L1(1e-4)).fit(X, y)
    agree = model.predict(X) == model.teacher_.predict(StandardScaler().fit_transform(X))
    assert agree.mean() > 0.95
    assert not hasattr(teacher, "coefs_")  # a clone was trained
    assert model.report_.certificate.proven
    assert model.report_.states.converged.all()
    Y = model.model_.predict(X)
    assert np.array_equal(Y.argmax(axis=1), model.predict(X))
    sparse = SIMClassifier(
        teacher, penalty=sim.L1(3e-2), relaxed=sim.L1(1e-4), pattern="no_self_loops"
    ).fit(X, y)
    assert sparse.report_.density < 0.7 * model.report_.density
    assert not np.any(np.diag(host(sparse.model_.params["A"])))


def test_two_classes_have_one_logit():
    X, y = IRIS[0][:100], np.array(["no", "yes"])[IRIS[1][:100]]
    model = SIMClassifier(MLPClassifier((8,), max_iter=600, tol=1e-3), random_state=0).fit(X, y)
    assert model.model_.output_dim == 1
    assert model.score(X, y) >= 0.98
    assert np.allclose(model.decision_function(X), model.model_.predict(X)[:, 0])
    again = SIMClassifier(MLPClassifier((8,), max_iter=600, tol=1e-3), random_state=0).fit(X, y)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


def test_other_teachers_are_refused():
    with pytest.raises(
        InputError, match=r"teacher is ImplicitClassifier\(\); use an MLPClassifier"
    ):
        SIMClassifier(ImplicitClassifier()).fit(*IRIS)


# ------------------------------------------------------------------------------ scaling


def test_scalings_are_exact_for_any_size():
    for size in (1e-300, 1.0, 1e150):
        U = size * np.array([[1.0, 7.0], [3.0, 7.0]])
        scaling = Standardiser.of(U)
        assert np.allclose(scaling(U), [[-1, 0], [1, 0]])
        assert np.allclose(scaling.undo(scaling(U)), U, rtol=1e-15)
    assert Standardiser.of(np.array([[1.0], [3.0]]), np.array([3.0, 1.0])).mean == [1.5]


def test_folding_needs_biases():
    model = pyidl.ImplicitModel(2, 1, 3, bias=False, rng=0)
    with pytest.raises(InputError, match="without biases"):
        fold(model, Standardiser.identity(2), Standardiser.identity(1))
    with pytest.raises(InputError, match=r"\(3, 1\) columns, the model has \(2, 1\)"):
        fold(
            pyidl.ImplicitModel(2, 1, 3, rng=0), Standardiser.identity(3), Standardiser.identity(1)
        )
    bare = pyidl.ImplicitModel(2, 1, 3, feedthrough=False, dtype="float64", rng=0)
    U, scaling = (
        np.array([[1.0, 2.0], [5.0, -3.0]]),
        Standardiser(np.array([1.0, 2.0]), np.array([3.0, 4.0])),
    )
    assert np.allclose(
        fold(bare, scaling, Standardiser.identity(1)).predict(U), bare.predict(scaling(U))
    )
