"""Estimators of sparse tables: the scale of columns, steps, answers, and what is refused."""

import pickle
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import scipy.sparse as sp
from helpers import host, same_fit
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MaxAbsScaler, OneHotEncoder

from pyidl.errors import InputError
from pyidl.sklearn import (
    ImplicitClassifier,
    ImplicitRegressor,
    ImplicitSequenceClassifier,
    SIMClassifier,
)
from pyidl.training.standardise import Standardiser

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = pytest.mark.parametrize("cls", [ImplicitClassifier, ImplicitRegressor])
DIGITS, LABELS = load_digits(return_X_y=True)
X, LABELS = DIGITS[:200], LABELS[:200]
X = np.where(np.arange(200)[:, None] % 50 == 7, 0.0, X)  # some rows are empty, as columns are
S = sp.csr_array(X)


def made(cls, **options):
    return cls(**{"hidden_dim": 6, "max_iter": 4, "random_state": 0} | options)


def target(cls):
    return LABELS if cls is ImplicitClassifier else np.stack([LABELS, LABELS**2], 1) * 10.0


def answers(estimator, given):
    return getattr(estimator, "decision_function", estimator.predict)(given)


# --------------------------------------------------------------------------------- scaling


def test_columns_are_divided_by_their_largest_entry():
    scaling = Standardiser.of(-S, np.arange(1.0, 201.0))
    largest = np.max(X, axis=0)
    assert not scaling.mean.any()
    assert np.array_equal(scaling.scale, np.where(largest > 0, largest, 1.0))
    scaled = scaling(S)
    assert scaled.nnz == S.nnz
    assert np.array_equal(np.max(scaled.toarray(), axis=0), largest > 0)
    assert np.array_equal(S.toarray(), X)


@pytest.mark.parametrize("size", [5e-324, 1e-20, 1e300])
def test_scales_of_any_size(size):
    entries = np.array([[3.0, 0.0], [-4.0, 0.0]])
    scaling = Standardiser.of(sp.csr_array(size * entries))
    assert scaling.scale.tolist() == [4 * size, 1.0]
    assert scaling(sp.csr_array(size * entries)).toarray().tolist() == [[0.75, 0.0], [-1.0, 0.0]]


def test_scales_of_untidy_entries():
    """Several entries of one place are their sum; the order of the caller's is kept."""
    data, columns = np.array([1.0, -4.0, 5.0, 0.0]), np.array([1, 1, 0, 2])
    given = sp.csr_array((data, columns, [0, 4]), shape=(1, 3))
    assert Standardiser.of(given).scale.tolist() == [5, 3, 1]
    assert given.indices.tolist() == [1, 1, 0, 2]


def test_a_shift_would_fill_a_table():
    with pytest.raises(InputError, match=r"U is sparse, and .* would fill it.*Give U.toarray\(\)"):
        Standardiser(np.ones(2), np.ones(2))(sp.eye_array(2))


# ----------------------------------------------------------------- the same as full tables

SAME = {
    "plain": {},
    "small batches": {"batch_size": 16},
    "early stopping": {"early_stopping": True},
    "low rank": {"rank": 2},
    "no penalty": {"alpha": 0.0},
    "float32": {"dtype": "float32"},
}


@BOTH
@pytest.mark.parametrize("case", SAME)
def test_as_they_are_they_train_as_full_tables_do(case, cls):
    options, weights = {"standardize": False} | SAME[case], 1.0 + np.arange(200) % 3
    bound = 1e-3 if case == "float32" else 1e-7
    full = made(cls, **options).fit(X / 16, target(cls), sample_weight=weights)
    sparse = made(cls, **options).fit(S / 16, target(cls), sample_weight=weights)
    for key, a in full.model_.params.items():
        assert np.allclose(host(sparse.model_.params[key]), host(a), rtol=bound, atol=bound)
    ours, wanted = answers(sparse, S / 16), answers(full, X / 16)
    assert np.allclose(ours, wanted, rtol=bound, atol=30 * bound)
    assert sparse.n_features_in_ == 64


@BOTH
def test_scaled_they_train_as_full_tables_scaled_alike(cls):
    size = Standardiser.of(S).scale
    sparse = made(cls).fit(S, target(cls))
    full = made(cls, standardize=False).fit(X / size, target(cls))
    assert np.allclose(answers(sparse, S), answers(full, X / size), rtol=1e-7, atol=1e-6)


@BOTH
def test_the_model_takes_them_as_they_are(cls):
    estimator = made(cls).fit(S, target(cls))
    Y = estimator.model_.predict(S)
    if cls is ImplicitClassifier:
        assert np.array_equal(estimator.classes_[Y.argmax(axis=1)], estimator.predict(S))
        P = estimator.predict_proba(S)
        assert np.allclose(P, estimator.predict_proba(X), atol=1e-9)
        assert np.allclose(np.log(P), estimator.predict_log_proba(S))
    else:
        assert np.allclose(Y, estimator.predict(S), rtol=1e-7)
    assert np.isclose(estimator.score(S, target(cls)), estimator.score(X, target(cls)))
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(answers(again, S), answers(estimator, S))


@BOTH
@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")  # dia
@pytest.mark.parametrize("name", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_every_format_is_the_same_table(name, cls):
    wanted = made(cls).fit(S, target(cls))
    for kind in ("array", "matrix"):
        given = getattr(sp, f"{name}_{kind}")(X)
        one = made(cls).fit(given, target(cls))
        same_fit(one, wanted)
        assert np.array_equal(answers(one, given), answers(wanted, S))


@BOTH
def test_long_indices_and_untidy_entries(cls):
    wanted = made(cls).fit(S, target(cls))
    halves = sp.csr_array(
        (
            np.repeat(S.data / 2, 2)[::-1],  # every entry twice, rows and columns backwards
            np.repeat(S.indices, 2)[::-1].astype(np.int64),
            2 * (S.indptr[-1] - S.indptr[::-1]).astype(np.int64),
        ),
        shape=S.shape,
    )[::-1]
    assert np.allclose(halves.toarray(), X)
    one = made(cls).fit(halves, target(cls))
    assert np.allclose(answers(one, halves), answers(wanted, S), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------- later calls


@BOTH
def test_partial_fit_and_warm_starts_go_on(cls):
    y, extra = target(cls), {"classes": range(10)} if cls is ImplicitClassifier else {}
    one, other = (made(cls, warm_start=True, standardize=False) for _ in range(2))
    for rows in (slice(0, 120), slice(80, 200)):
        one.partial_fit(S[rows], y[rows], **extra)
        other.partial_fit(X[rows], y[rows], **extra)
    one.fit(S, y)
    other.fit(X, y)
    assert np.allclose(answers(one, S), answers(other, X), rtol=1e-6, atol=1e-5)
    assert one.n_iter_ == 4


@BOTH
def test_full_and_sparse_tables_after_one_another(cls):
    y = target(cls)
    full = made(cls, warm_start=True).fit(X, y)
    assert np.allclose(answers(full, S), answers(full, X), rtol=1e-9, atol=1e-9)
    for call in (full.fit, full.partial_fit):
        with pytest.raises(InputError, match="the first data were a full array"):
            call(S, y)
    sparse = made(cls, warm_start=True).fit(S, y)
    sparse.partial_fit(X, y).fit(X, y)
    assert np.allclose(answers(sparse, S), answers(sparse, X), rtol=1e-9, atol=1e-9)


@BOTH
def test_a_weight_of_zero_is_absence(cls):
    weights = np.arange(200) % 3
    rows, y = np.flatnonzero(weights), target(cls)
    for options in ({}, {"early_stopping": True}):
        one = made(cls, **options).fit(S, y, sample_weight=weights)
        same_fit(one, made(cls, **options).fit(S[rows], y[rows], sample_weight=weights[rows]))


# -------------------------------------------------------------------------- real tables, sizes


def test_digits_as_counts():
    """Images are half zeros; the accuracy is that of the full table."""
    U, V, s, t = train_test_split(DIGITS, load_digits().target, random_state=0)
    model = ImplicitClassifier(30, max_iter=20, random_state=0)
    sparse = model.fit(sp.csr_array(U), s).score(sp.csr_array(V), t)
    assert sparse > 0.95
    assert model.model_.certificate().proven


def test_in_pipelines_and_searches():
    U, y = load_diabetes(return_X_y=True)
    bins = KBinsDiscretizer(8, encode="onehot", strategy="uniform")
    model = make_pipeline(bins, ImplicitRegressor(20, max_iter=30, random_state=0))
    assert model.fit(U[:300], y[:300]).score(U[300:], y[300:]) > 0.1
    words = np.array([["red", "a"], ["green", "b"], ["blue", "a"]])[np.arange(60) % 3]
    search = GridSearchCV(
        make_pipeline(OneHotEncoder(), MaxAbsScaler(), made(ImplicitClassifier, max_iter=30)),
        {"implicitclassifier__hidden_dim": [4, 8]},
        cv=2,
    ).fit(words, words[:, 0])
    assert search.best_score_ == 1.0


def test_a_table_that_would_not_fit_if_it_were_filled():
    """2,000 rows of 200,000 columns, 20 entries a row; filled, 3.2 GB."""
    m, p = 2000, 200_000
    rng = np.random.default_rng(0)
    columns = rng.integers(10, p, (m, 20))
    y = rng.integers(0, 2, m)
    columns[:, 0] = y  # what there is to learn
    wide = sp.csr_array((np.ones(20 * m), columns.ravel(), 20 * np.arange(m + 1)), shape=(m, p))
    model = ImplicitClassifier(4, max_iter=2, batch_size=500, random_state=0)
    tracemalloc.start()
    score = model.fit(wide, y).score(wide, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert score > 0.9
    assert peak < 8 * m * p / 10


# ---------------------------------------------------------------------------------- refused


@BOTH
def test_what_is_refused(cls):
    y, model = target(cls), made(cls).fit(S, target(cls))
    bad = S.copy()
    bad.data[5] = np.nan
    for given, words in (
        (bad, "contains NaN"),
        (S[:, :10], "X has 10 features, but .* is expecting 64 features"),
        (S * 1j, "Complex data not supported"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(given)
        if "features" not in words:
            with pytest.raises(ValueError, match=words):
                made(cls).fit(given, y)
    with pytest.raises((ValueError, TypeError), match=r"[sS]parse|sequence"):
        made(cls).fit(X, sp.csr_array(y.reshape(200, -1)))


def test_estimators_that_take_full_arrays_say_so():
    for estimator in (SIMClassifier(), ImplicitSequenceClassifier()):
        with pytest.raises(TypeError, match="Sparse data was passed"):
            estimator.fit(S, LABELS)
