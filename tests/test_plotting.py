"""Pictures show the numbers that they claim to show, and bounds that hold."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from example_runs import check_figure
from helpers import host, moved, random_model
from matplotlib.figure import Figure

import pyidl
from pyidl import activations, plotting, solvers, wellposed
from pyidl.errors import InputError, PyidlError
from pyidl.solvers import Solution
from pyidl.wellposed.certificate import Certificate, Norm

matplotlib.use("Agg")

U = np.random.default_rng(0).normal(size=(20, 3))


def lines(ax):
    """The drawn lines by their labels."""
    return {line.get_label(): line for line in ax.get_lines()}


def picard(**options):
    return random_model(
        pyidl.ImplicitModel,
        3,
        2,
        12,
        forward=solvers.Picard(),
        adjoint=solvers.Picard(),
        dtype="float64",
        **options,
    )


def fake(trace, tolerance):
    m = len(tolerance)
    return Solution(
        np.zeros((m, 2)),
        np.zeros((m, 2)),
        np.zeros(m, int),
        np.ones(m, int),
        np.zeros(m),
        tolerance,
        "a test",
        trace,
    )


@pytest.fixture(scope="module")
def history():
    model = pyidl.ImplicitModel(3, 1, 5, rng=0)
    data = (U, U.sum(axis=1, keepdims=True))
    return pyidl.fit(
        model,
        data,
        loss=pyidl.losses.mse,
        optimizer=pyidl.optim.Adam(1e-2),
        epochs=3,
        validation=data,
        metrics=[pyidl.metrics.r2],
        rng=0,
        verbose=0,
    )


def test_training_draws_the_losses(history):
    drawn = lines(plotting.training(history))
    assert list(drawn) == ["loss", "val_loss"]
    for key, line in drawn.items():
        assert np.array_equal(line.get_xdata(), [1, 2, 3])
        assert np.array_equal(line.get_ydata(), history[key])


def test_training_is_logarithmic_where_it_can_be(history):
    assert plotting.training(history).get_yscale() == "log"
    ax = plotting.training(history, keys=["failed"])
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "failed"


def test_training_refuses(history):
    with pytest.raises(InputError, match="has no accuracy; it has epoch, loss"):
        plotting.training(history, keys=["loss", "accuracy"])
    with pytest.raises(InputError, match="has no loss"):
        plotting.training(history, keys=[])
    with pytest.raises(InputError, match="no epochs"):
        plotting.training(pyidl.History())


def test_a_given_axes_is_drawn_into_and_returned():
    ax = Figure().subplots()
    assert plotting.spectrum(picard(), ax=ax) is ax
    assert plotting.spectrum(picard()) is not ax


def test_residuals_are_those_of_the_worst_sample():
    trace = np.array([[8.0, 1.0], [2.0, 3.0], [0.5, np.nan]])
    ax = plotting.residuals({"one": fake(trace, np.array([1.0, 0.5]))})
    drawn = lines(ax)["one"]
    assert drawn.get_ydata().tolist() == [8.0, 6.0, 0.5]
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize(
    ("constraint", "activation"),
    [
        (wellposed.InfNorm(0.9), activations.relu),
        (wellposed.InfNorm(0.9, weights=np.linspace(1, 9, 12)), activations.tanh),
        (wellposed.SpectralNorm(0.9), activations.relu),
        (
            wellposed.InfNorm(0.9),
            activations.Blocks((activations.softmax, 6), (activations.tanh, 6)),
        ),
        (wellposed.PerronFrobenius(0.9), activations.silu),
    ],
)
def test_certified_bounds_hold(constraint, activation):
    """The curve of the bound lies above the residuals, the circle around the
    eigenvalues, for whichever norm it is proven in."""
    model = picard(constraint=constraint, activation=activation, spread=3.0)
    certificate = constraint.certificate(model.params, activation)
    assert certificate.applies_to == "Picard"
    solution = model.equilibrium(5 * U, trace=True)
    drawn = lines(plotting.residuals(solution, certificate))
    bound = next(line for label, line in drawn.items() if "certified" in label).get_ydata()
    measured = drawn["residual"].get_ydata()
    assert np.all(measured <= bound * (1 + 1e-9))
    assert np.all(bound[1:] < bound[:-1])

    drawn = lines(plotting.spectrum(model))
    dots = next(line for label, line in drawn.items() if "eigenvalues" in label)
    circle = next(line for label, line in drawn.items() if "certified: within" in label)
    radius = np.hypot(circle.get_xdata(), circle.get_ydata())
    assert np.allclose(radius, model.certificate().contraction)
    assert np.all(np.hypot(dots.get_xdata(), dots.get_ydata()) <= radius[0])
    assert len(dots.get_xdata()) == 12


def test_the_slack_of_a_norm_is_needed():
    """Without it the bound would be false.

    A Euclidean contraction by 1/2 that first turns three entries into one.
    """
    solution = fake(np.array([[1.0], [0.8]]), np.array([1e-3]))
    for norm, share in (
        (Norm("Euclidean"), 2**0.5),
        (Norm(weights=np.array([1.0, 4.0])), 4.0),
        (Norm(blocks=((0, 2),)), 2**0.5),
    ):
        certificate = Certificate(True, 0.5, norm, "Picard", "a test", constant=3.0)
        drawn = lines(plotting.residuals(solution, certificate))
        assert drawn["certified: a factor 0.5 a step"].get_ydata() == pytest.approx(
            np.array([1.0, 0.5]) * 1e3 * 3 * share
        )


def test_an_unproven_certificate_draws_no_bound():
    model = picard(constraint=wellposed.Unconstrained(), spread=0.0)
    model.params = {**model.params, "A": 4.0 * np.eye(12) - 1.0}
    assert not model.certificate().proven
    assert list(lines(plotting.spectrum(model))) == ["eigenvalues of A"]
    solution = fake(np.array([[1.0], [0.8]]), np.array([1e-3]))
    assert not any(
        "certified" in label for label in lines(plotting.residuals(solution, model.certificate()))
    )
    assert not any(
        "certified" in label for label in lines(plotting.rates(solution, model.certificate()))
    )


def test_a_monotone_model_has_its_spectrum_left_of_one():
    model = random_model(
        pyidl.ImplicitModel, 3, 2, 12, constraint=wellposed.Monotone(0.1), spread=3.0
    )
    drawn = lines(plotting.spectrum(model))
    assert drawn["certified: real parts below 1"].get_xdata() == [1.0, 1.0]
    assert np.all(drawn["eigenvalues of A"].get_xdata() < 1)
    # or a circle would do
    assert (
        np.hypot(drawn["eigenvalues of A"].get_xdata(), drawn["eigenvalues of A"].get_ydata()).max()
        > 1
    )


def test_spectrum_of_factors_and_of_a_recurrent_network():
    model = picard(rank=2)
    values = lines(plotting.spectrum(model))["eigenvalues of A"].get_xdata()
    expected = np.linalg.eigvals(model.params["L"] @ model.params["R"].T).real
    assert np.allclose(np.sort(values), np.sort(expected))
    assert "eigenvalues of A" in lines(plotting.spectrum(pyidl.ImplicitRNN(1, 1, 3, 4, rng=0)))
    with pytest.raises(InputError, match="Linear has no parameter A"):
        plotting.spectrum(pyidl.Linear(3, 2))


def test_rates():
    trace = np.array(
        [[1.0, 4.0, 0.0, 1.0], [0.5, 2.0, np.nan, np.nan], [0.25, np.nan, np.nan, np.nan]]
    )
    certificate = Certificate(True, 0.9, Norm(), "Picard", "a test")
    ax = plotting.rates(fake(trace, np.full(4, 0.1)), certificate)
    counts = [(bar.get_x(), bar.get_height()) for bar in ax.patches if bar.get_height()]
    assert len(counts) == 1
    assert counts[0][1] == 2  # both halve; the other two took no step
    assert counts[0][0] == pytest.approx(0.5, abs=0.1)
    assert lines(ax)["certified: 0.9 (Picard)"].get_xdata() == [0.9, 0.9]
    with pytest.raises(InputError, match="no sample took two steps"):
        plotting.rates(fake(trace[:1], np.full(4, 0.1)), certificate)


def test_observed_rates_stay_below_the_certified_one():
    model = picard(spread=3.0)
    ax = plotting.rates(model.equilibrium(U, trace=True), model.certificate())
    factor = model.certificate().contraction
    assert sum(bar.get_height() for bar in ax.patches) == len(U)
    assert max(bar.get_x() for bar in ax.patches if bar.get_height()) <= factor


def test_a_trace_is_asked_for():
    solution = picard().equilibrium(U)
    for draw in (
        lambda: plotting.residuals(solution),
        lambda: plotting.rates(solution, picard().certificate()),
    ):
        with pytest.raises(InputError, match="trace=True"):
            draw()
    with pytest.raises(InputError, match="no solution was given"):
        plotting.residuals({})


def test_sparsity_shows_blocks_in_the_order_of_solving():
    mask = pyidl.Pattern.feed_forward(4, 3, 2, 1).A
    ax = plotting.sparsity(mask)
    shown = np.asarray(ax.images[0].get_array())
    assert shown.sum() == mask.sum()
    assert not np.triu(shown).any()  # units that are solved later feed none that are solved before
    A = np.zeros((4, 4))
    A[0, 2] = A[2, 0] = A[1, 0] = A[3, 3] = 1.0
    ax = plotting.sparsity(A)
    assert sorted((patch.get_width(), patch.get_edgecolor()[0] > 0.5) for patch in ax.patches) == [
        (1, False),
        (1, True),
        (2, True),
    ]
    assert ax.get_title() == "25% of A is not zero"
    full = plotting.sparsity(np.ones((3, 3)))
    assert not full.patches
    assert full.get_xlabel() == "from unit"
    with pytest.raises(InputError, match=r"shape \(2, 3\)"):
        plotting.sparsity(np.ones((2, 3)))


def test_attention():
    weights = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    ax = plotting.attention(weights, ["a", "b", "c"])
    assert np.array_equal(ax.images[0].get_array(), weights)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    assert len(ax.figure.axes) == 2  # the scale
    square = plotting.attention(np.eye(2), ["a", "b"])
    assert [text.get_text() for text in square.get_yticklabels()] == ["a", "b"]
    for bad, names, message in (
        (-weights, None, "smallest weight is -0.8"),
        (weights, ["a"], "1 names for 3"),
        (weights[0], None, "shape"),
    ):
        with pytest.raises(InputError, match=message):
            plotting.attention(bad, names)


def test_arrays_of_every_library(xp):
    model = moved(random_model(pyidl.ImplicitModel, 3, 2, 12), xp)
    eigenvalues = lines(plotting.spectrum(model))["eigenvalues of A"].get_xdata()
    assert np.allclose(
        np.sort(eigenvalues), np.sort(np.linalg.eigvals(host(model.params["A"]).astype(float)).real)
    )
    assert plotting.sparsity(model.params["A"]).images
    assert plotting.attention(xp.abs(model.params["A"])).images


def test_every_figure_says_what_it_shows(history):
    """Titles, labels, legends and scales, in figures that nobody has added to."""
    model = picard()
    solution = model.equilibrium(U, trace=True)
    for ax in (
        plotting.training(history),
        plotting.training(history, ["val_r2"]),
        plotting.residuals(solution),
        plotting.residuals({"one": solution, "other": solution}, model.certificate()),
        plotting.rates(solution, model.certificate()),
        plotting.spectrum(model),
        plotting.sparsity(pyidl.Pattern.feed_forward(4, 3, 2, 1).A),
        plotting.sparsity(np.ones((3, 3))),
        plotting.attention(np.full((3, 3), [0.2, 0.3, 0.5])),
    ):
        check_figure(ax.figure)
    assert lines(plotting.residuals(solution))["tolerance"].get_ydata() == [1.0, 1.0]
    cycles = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    named = [text.get_text() for text in plotting.sparsity(cycles).get_legend().get_texts()]
    assert named == ["a cycle, solved together", "without a cycle"]


def test_figures_can_be_written(tmp_path, history):
    plotting.training(history).figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PyidlError, match="pip install matplotlib"):
        plotting.spectrum(picard())
    with pytest.raises(PyidlError, match="pip install matplotlib"):
        plotting.sparsity(np.eye(3))


def test_pyplot_is_not_touched():
    """A drawing leaves no figure in the list of pyplot, and does not even load it."""
    code = (
        "import sys, numpy as np; from pyidl import plotting; plotting.sparsity(np.eye(3)); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
