"""The reference has a page for everything public.

The pages themselves are checked by their build, in which they run.
"""

import importlib
import re
import types
from pathlib import Path

import numpy as np
import pytest

import pyidl
from pyidl import sim

DOCS = Path(__file__).parent.parent / "docs"
LISTED = re.findall(r"^   (pyidl[.\w]*)$", (DOCS / "api.md").read_text(), re.M)


@pytest.mark.parametrize("name", pyidl.__all__)
def test_the_reference_has_every_public_name(name):
    home = getattr(pyidl, name)
    if isinstance(home, types.ModuleType):
        assert home.__name__ in LISTED
    else:
        assert any(
            name in importlib.import_module(module).__all__
            for module in LISTED
            if not module.startswith("pyidl.interop")
        )


def test_the_solvers_of_sim_can_be_made_as_the_page_writes_them():
    text = (DOCS / "sim.md").read_text()
    (section,) = re.findall(r"^## Solvers$(.*?)^## ", text, re.M | re.S)
    found = [eval(code, vars(sim)) for code in re.findall(r"^\* `(.*?)`", section, re.M)]
    assert len(found) == 5
    made = [solver if isinstance(solver, sim.RowSolver) else solver() for solver in found]
    assert all(isinstance(solver, sim.RowSolver) for solver in made)


def scaled_by_hand(A, kappa=0.99):
    return A * min(1.0, kappa / np.abs(A).sum(axis=1).max())


@pytest.fixture(scope="module")
def converter():
    """The first cell of the page on torchidl."""
    cell = re.search(
        r"```\{code-cell\} ipython3\n(.*?)```", (DOCS / "from_torchidl.md").read_text(), re.S
    ).group(1)
    names = {}
    exec(cell, names)
    return names


def test_the_converter_of_the_page_reads_a_bias_without_a_feedthrough(converter):
    rng = np.random.default_rng(0)
    state = {
        name: rng.normal(size=shape)
        for name, shape in {"A": (6, 6), "B": (6, 4), "C": (2, 6)}.items()
    }
    U, X = rng.normal(size=(5, 3)), np.zeros((5, 6))
    for _ in range(100):
        X = np.maximum(
            X @ scaled_by_hand(state["A"], 0.5).T
            + np.append(U, np.ones((5, 1)), axis=1) @ state["B"].T,
            0,
        )
    model = pyidl.ImplicitModel(3, 2, 6, feedthrough=False, dtype="float64")
    model.params = converter["from_torchidl"](state, bias=True, kappa=0.5)
    np.testing.assert_allclose(model.predict(U), X @ state["C"].T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_the_converter_of_the_page_reads_a_recurrent_network(converter, bias):
    rng, width = np.random.default_rng(0), 3 + 2 + bias
    shapes = {"A": (6, 6), "B": (6, width), "C": (2, 6), "D": (2, width)}
    step = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    E, e, U, H = (
        rng.normal(size=(1, 2)),
        rng.normal(size=1),
        rng.normal(size=(4, 5, 3)),
        np.zeros((4, 2)),
    )
    for t in range(5):
        V, X = np.concatenate([U[:, t], H, np.ones((4, int(bias)))], axis=1), np.zeros((4, 6))
        for _ in range(100):
            X = np.maximum(X @ scaled_by_hand(step["A"], 0.5).T + V @ step["B"].T, 0)
        H = X @ step["C"].T + V @ step["D"].T
    rnn = pyidl.ImplicitRNN(3, 1, 2, 6, dtype="float64")
    state = {f"recurrent.layer.{name}": a for name, a in step.items()} | {
        "linear.weight": E,
        "linear.bias": e,
    }
    rnn.params = converter["rnn_from_torchidl"](state, bias, kappa=0.5)
    np.testing.assert_allclose(rnn.predict(U), H @ E.T + e, rtol=0, atol=1e-9)
