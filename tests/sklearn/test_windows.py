"""A newcomer's own data: windows of a series, and what comes next."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib, which has the series, is not installed")

from matplotlib import cbook
from numpy.lib.stride_tricks import sliding_window_view

from pyidl.sklearn import ImplicitRegressor, ImplicitSequenceRegressor

LENGTH, FIRST = 20, 600


@pytest.fixture(scope="module")
def windows():
    """Of an EEG, 800 steps of 4 channels; trained on the first 600 steps."""
    with cbook.get_sample_data("eeg.dat") as file:
        series = np.frombuffer(file.read(), dtype=np.float64).reshape(800, 4)[:, 0]
    seen = sliding_window_view(series, LENGTH + 1)
    X, y = seen[:, :-1], seen[:, -1]
    last = FIRST - LENGTH
    return X[:last], y[:last], X[FIRST:], y[FIRST:]


def error(answers, y):
    return np.sqrt(np.mean((answers - y) ** 2))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "model",
    [
        ImplicitRegressor(random_state=0),
        ImplicitSequenceRegressor(16, 16, pool="last", max_iter=20, random_state=0),
    ],
)
def test_the_next_value_is_forecast(model, windows):
    """Better than by the last value again."""
    X, y, V, s = windows
    naive = error(V[:, -1], s)
    assert error(model.fit(X, y).predict(V), s) < 0.85 * naive
    assert model.model_.certificate().proven


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_windows_are_views_of_the_series_and_may_have_channels(windows):
    X, y, V, _ = windows
    assert not X.flags.owndata
    model = ImplicitSequenceRegressor(8, 8, pool="last", max_iter=2, random_state=0)
    flat = model.fit(X, y).predict(V)
    assert np.array_equal(model.fit(X[:, :, None], y).predict(V[:, :, None]), flat)
