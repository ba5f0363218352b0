"""Pictures of the wing show the numbers that they were given, and what these prove."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from example_runs import check_figure
from helpers import host, moved
from matplotlib.figure import Figure

from pyidl import ImplicitModel, robustness
from pyidl.errors import InputError, PyidlError
from pyidl.robustness import pictures

matplotlib.use("Agg")

LOW = np.array([[0.0, 2.0, -1.0], [0.0, 1.0, 3.0]])
HIGH = np.array([[1.0, 4.0, 1.5], [2.5, 2.0, 3.0]])
S = np.arange(12.0).reshape(2, 6)


def bars(ax):
    """``{label: [(middle, lower, upper), ...]}`` of the drawn bars."""
    return {
        box.get_label(): [
            (bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_y() + bar.get_height())
            for bar in box
        ]
        for box in ax.containers
    }


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_sensitivity_is_drawn_as_it_is():
    ax = pictures.sensitivity(S, outputs=["no", "yes"], inputs=list("abcdef"))
    np.testing.assert_array_equal(ax.images[0].get_array(), S)
    assert [text.get_text() for text in ax.get_xticklabels()] == list("abcdef")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["no", "yes"]
    assert ax.images[0].get_clim() == (0.0, 11.0)
    assert len(ax.figure.axes) == 2  # the scale
    bare = pictures.sensitivity(S)
    assert (bare.get_xlabel(), bare.get_ylabel()) == ("input", "output")


@pytest.mark.parametrize(("q", "h", "w"), [(1, 1, 1), (3, 2, 3), (12, 28, 20), (7, 9, 1)])
def test_every_output_has_its_image(q, h, w):
    """Below each name stands its row, and nothing else anywhere."""
    rows = np.random.default_rng(q).uniform(1, 2, size=(q, h * w))
    names = [f"name {k}" for k in range(q)]
    ax = pictures.sensitivity(rows, (h, w), outputs=names)
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.isfinite(shown).sum() == rows.size
    assert [text.get_text() for text in ax.texts] == names
    for row, text in zip(rows, ax.texts, strict=True):
        left, top = (int(np.ceil(x)) for x in text.get_position())
        np.testing.assert_array_equal(shown[top : top + h, left : left + w], row.reshape(h, w))
        assert np.isnan(shown[top - 1, left : left + w]).all()  # room for the name
    assert [text.get_text() for text in pictures.sensitivity(rows, (h, w)).texts] == [
        str(k) for k in range(q)
    ]


def test_bounds_are_bars_with_the_threshold_of_the_label():
    Y = 0.5 * (LOW + HIGH)
    ax = pictures.bounds(LOW, HIGH, Y, [1, 2])
    found = bars(ax)
    assert found["of the label"] == [(1.0, 2.0, 4.0), (6.0, 3.0, 3.0)]
    assert found["stays below it"] == [
        (0.0, 0.0, 1.0), (2.0, -1.0, 1.5), (4.0, 0.0, 2.5), (5.0, 1.0, 2.0)
    ]  # fmt: skip
    assert "may reach it" not in found
    dots = lines(ax)["the output itself"]
    np.testing.assert_array_equal(dots.get_xdata(), [0, 1, 2, 4, 5, 6])
    np.testing.assert_array_equal(dots.get_ydata(), Y.ravel())
    segments = ax.collections[0].get_segments()
    assert [part.tolist() for part in segments] == [
        [[-0.5, 2.0], [2.5, 2.0]], [[3.5, 3.0], [6.5, 3.0]]
    ]  # fmt: skip
    assert ax.get_title() == "bounds of outputs, 2 of 2 classes certain"


@pytest.mark.parametrize("top", [2.0, 3.0])
def test_what_reaches_the_threshold_is_told(top):
    """An equal value is enough: then the label is not alone at the top."""
    ax = pictures.bounds([0.0, 2.0, -1.0], [top, 4.0, 1.5], labels=1)
    assert bars(ax)["may reach it"] == [(0.0, 0.0, top)]
    assert ax.get_title() == "bounds of outputs, 0 of 1 classes certain"
    assert ax.get_xlabel() == "output"


def test_bounds_without_labels_and_of_many_samples():
    ax = pictures.bounds(LOW[0], HIGH[0])
    assert bars(ax) == {"proven": [(0.0, 0.0, 1.0), (1.0, 2.0, 4.0), (2.0, -1.0, 1.5)]}
    assert not ax.collections
    many = pictures.bounds(np.tile(LOW, (40, 1)), np.tile(HIGH, (40, 1)))
    assert [text.get_text() for text in many.get_xticklabels()] == [str(k) for k in range(0, 80, 4)]
    np.testing.assert_array_equal(many.get_xticks(), 1 + 16 * np.arange(20))


def test_what_bounds_call_certain_is_certified():
    model = ImplicitModel(3, 4, 12, rng=0)
    U = np.random.default_rng(0).normal(size=(30, 3)).astype("float32").astype("float64")
    labels = model.predict(U).argmax(axis=1)
    found = robustness.bounds(model, U - 0.05, U + 0.05)
    ax = pictures.bounds(*found.outputs, model.predict(U), labels)
    told = int(ax.get_title().split()[3])
    sure = robustness.certified(model, U, labels, 0.05)
    assert 0 < told <= sure.sum() < 30
    one = [
        pictures.bounds(*(end[i] for end in found.outputs), labels=t) for i, t in enumerate(labels)
    ]
    drawn = np.array(["1 of 1" in ax.get_title() for ax in one])
    assert drawn.sum() == told
    assert np.all(sure[drawn])


def test_a_curve_has_the_shares_of_what_was_found():
    eps, sure = [0.0, 0.1, 0.3], np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    ax = pictures.curve(eps, list(sure), sure | np.array([0, 0, 1, 0], bool), 0.75, name="one")
    drawn = lines(ax)
    assert list(drawn) == ["one: certified", "one: survive the attack", "one: clean"]
    np.testing.assert_array_equal(drawn["one: certified"].get_xdata(), eps)
    np.testing.assert_array_equal(drawn["one: certified"].get_ydata(), [0.75, 0.5, 0.25])
    np.testing.assert_array_equal(drawn["one: survive the attack"].get_ydata(), [0.75, 0.75, 0.5])
    assert drawn["one: clean"].get_ydata() == [0.75, 0.75]
    shade = ax.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in shade} == {
        (0.0, 0.75), (0.1, 0.5), (0.1, 0.75), (0.3, 0.25), (0.3, 0.5)
    }  # fmt: skip
    assert pictures.curve(eps, [0.9, 0.5, 0.4], name="other", ax=ax) is ax
    both = lines(ax)
    assert both["other: certified"].get_color() != both["one: certified"].get_color()
    assert both["one: clean"].get_color() == both["one: certified"].get_color()


def test_a_curve_is_not_smoothed():
    """Affine bounds of a wider box may be better by chance: what was found is drawn."""
    ax = pictures.curve([0.1, 0.2], [0.5, 0.6])
    np.testing.assert_array_equal(lines(ax)["certified"].get_ydata(), [0.5, 0.6])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: pictures.sensitivity(-S), "negative entry"),
        (lambda: pictures.sensitivity(S[None]), r"S has shape \(1, 2, 6\)"),
        (lambda: pictures.sensitivity(np.ones((0, 3))), r"S has shape \(0, 3\)"),
        (lambda: pictures.sensitivity(np.full((2, 2), np.inf)), "S .*infinit"),
        (lambda: pictures.sensitivity(S, (2, 2)), r"shape is \(2, 2\); .* of 6 pixels"),
        (lambda: pictures.sensitivity(S, (6,)), r"shape is \(6,\)"),
        (lambda: pictures.sensitivity(S, ()), r"shape is \(\)"),
        (lambda: pictures.sensitivity(S, (-2, -3)), "shape is -2; it must be a positive integer"),
        (lambda: pictures.sensitivity(S, inputs=["a"]), "1 inputs have names; give one to each"),
        (lambda: pictures.sensitivity(S, (2, 3), inputs=list("abcdef")), "none to pixels"),
        (lambda: pictures.sensitivity(S, outputs="abc"), "3 outputs have names"),
        (lambda: pictures.bounds(HIGH, LOW), "no entry of lower larger"),
        (lambda: pictures.bounds(LOW, HIGH[0]), r"upper \(1, 3\)"),
        (lambda: pictures.bounds(LOW[None], HIGH[None]), r"lower has shape \(1, 2, 3\)"),
        (lambda: pictures.bounds(LOW, HIGH * np.inf), "upper"),
        (lambda: pictures.bounds(LOW, HIGH, LOW[0]), r"outputs have shape \(1, 3\)"),
        (lambda: pictures.bounds(LOW, HIGH, labels=[1, 3]), "2 classes of 0, ..., 2"),
        (lambda: pictures.bounds(LOW, HIGH, labels=[1]), r"labels have shape \(1,\)"),
        (lambda: pictures.bounds(LOW, HIGH, labels=[1.0, 2.0]), "float64"),
        (lambda: pictures.curve([0.2, 0.1], [0.5, 0.5]), "eps is .*rising"),
        (lambda: pictures.curve([-0.1], [0.5]), "eps is .*at least 0"),
        (lambda: pictures.curve([], []), "eps"),
        (lambda: pictures.curve([0.1], [1.5]), r"certified has shape \(1,\), or leaves"),
        (lambda: pictures.curve([0.1], [0.5, 0.4]), r"certified has shape \(2,\), .* 1 distances"),
        (lambda: pictures.curve([0.1], np.zeros((1, 0), bool)), "certified"),
        (lambda: pictures.curve([0.1], [0.5], [[0.4]]), "attacked"),
        (lambda: pictures.curve([0.1], [0.5], clean=1.2), "clean has shape .* or leaves"),
        (lambda: pictures.curve([0.1, 0.2], [0.5, 0.4], [0.6, 0.3]), r"than attacked at .*0\.2"),
        (lambda: pictures.curve([0.1], [0.5], clean=0.4), "more than clean"),
    ],
)  # fmt: skip
def test_what_is_refused(draw, message):
    with pytest.raises(InputError, match=message):
        draw()


def test_a_given_axes_is_drawn_into_and_every_figure_says_what_it_shows():
    for draw in (
        lambda ax: pictures.sensitivity(S, ax=ax),
        lambda ax: pictures.sensitivity(S, (3, 2), ax=ax),
        lambda ax: pictures.bounds(LOW, HIGH, ax=ax),
        lambda ax: pictures.bounds(LOW, HIGH, LOW, [1, 2], ax=ax),
        lambda ax: pictures.curve([0.0, 0.1], [0.9, 0.5], ax=ax),
        lambda ax: pictures.curve([0.0, 0.1], [0.9, 0.5], [0.9, 0.6], 0.9, ax=ax),
    ):
        ax = Figure().subplots()
        assert draw(ax) is ax
        made = draw(None)
        assert made is not ax
        check_figure(made.figure)


def test_arrays_of_every_library(xp):
    model = moved(ImplicitModel(3, 2, 6, rng=0), xp)
    J = xp.abs(robustness.jacobian(model, xp.ones((1, 3), dtype=xp.float32)))[0, :, :]
    np.testing.assert_array_equal(pictures.sensitivity(J).images[0].get_array(), host(J))
    Y = model.predict(xp.ones((2, 3), dtype=xp.float32))
    ax = pictures.bounds(Y - 0.1, Y + 0.1, Y, xp.argmax(Y, axis=1))
    np.testing.assert_array_equal(lines(ax)["the output itself"].get_ydata(), host(Y).ravel())
    verdicts = xp.asarray([[True, False], [False, False]])
    ax = pictures.curve([0.0, 0.1], verdicts)
    np.testing.assert_array_equal(lines(ax)["certified"].get_ydata(), [0.5, 0.0])


def test_without_matplotlib_it_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (
        lambda: pictures.sensitivity(S),
        lambda: pictures.bounds(LOW, HIGH),
        lambda: pictures.curve([0.1], [0.5]),
    ):
        with pytest.raises(PyidlError, match="pip install matplotlib"):
            draw()


def test_pyplot_is_not_touched():
    code = (
        "import sys; from pyidl import robustness; loaded = 'matplotlib' in sys.modules; "
        "robustness.pictures.curve([0.1], [0.5]); print(loaded, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
