"""Layers, cells, constraints and solvers of one's own, saved and loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import pytest

import pyidl
from pyidl import Linear, Sequential, activations, fit, load, save, testing
from pyidl.activations import Activation
from pyidl.cells import FunctionCell
from pyidl.equilibrium import equilibrium
from pyidl.errors import FileFormatError, InputError
from pyidl.io import read_npz, write_npz
from pyidl.layers import Composite, Explicit, Layer, check_widths
from pyidl.solvers import Picard, Solver
from pyidl.wellposed import InfNorm

U = np.random.default_rng(0).normal(size=(6, 4))


@dataclass(frozen=True)
class Gated(FunctionCell):
    """x = gain u * sigmoid(W x)."""

    W: Any = None
    gain: float = 1.0

    def zero(self, u):
        return 0 * u

    def f(self, x, u):
        return self.gain * u * activations.sigmoid(x @ self.W.T)

    def vjp_state(self, x, u, v):
        return (v * self.gain * u * activations.sigmoid.dphi(x @ self.W.T)) @ self.W

    def grads(self, x, u, v, inputs=True):
        y = x @ self.W.T
        du = v * self.gain * activations.sigmoid(y) if inputs else None
        return du, {"W": (v * self.gain * u * activations.sigmoid.dphi(y)).T @ x}


@dataclass(eq=False, repr=False)
class GatedLayer(Layer):
    """The equilibrium of such a cell, of which an option holds the class and another the gain."""

    width: int
    cell: Gated = Gated()
    made_of: type = Gated
    solver: Solver | None = None
    dtype: str = "float32"
    rng: InitVar[Any] = 0

    def _validate(self):
        check_widths(self, "width")

    def _draw(self, generator):
        return {"W": generator.normal(size=(self.width, self.width)) / self.width}

    def _shapes(self):
        return {"W": (self.width, self.width)}

    def _widths(self):
        return self.width, self.width

    def _check(self, U):
        assert U.shape[1] == self.width

    def _forward(self, U, call):
        cell = self.made_of(self.params["W"], self.cell.gain)
        X, pull = equilibrium(cell, U, forward=self.solver, on_fail=call.on_fail)
        return X, Explicit(X, pull)


@dataclass(frozen=True)
class Half(InfNorm):
    """A ball of one's own."""

    name: str = "half"


@dataclass(frozen=True)
class Slow(Picard):
    """A solver of one's own."""


class Chain(Sequential):
    """A layer of layers of one's own."""


def bend(z):
    return z - z**3 / (1 + 3 * z * z)


def dbend(z):
    return 1 - (3 * z**2 + 3 * z**4) / (1 + 3 * z * z) ** 2


BEND = Activation("bend", bend, dbend, lipschitz=1.0)


def gated(**options):
    return GatedLayer(4, cell=Gated(gain=0.5), solver=Picard(max_iter=300), rng=3, **options)


def test_the_layer_of_the_story_is_right():
    assert testing.check_pullback(gated(), U).max_error < 1e-6


def test_an_own_cell_and_its_layer_come_back_as_they_were(tmp_path):
    path = tmp_path / "gated.npz"
    model = gated(dtype="float64")
    fit(model, U, np.tanh(U), loss="mse", epochs=2, rng=0, verbose=0)
    save(path, model, notes={"what": "mine"})
    back = load(path, classes=(GatedLayer, Gated))
    assert type(back) is GatedLayer
    assert back.cell == model.cell
    assert back.made_of is Gated
    assert back.solver == model.solver
    assert np.array_equal(back.predict(U), model.predict(U))
    assert np.array_equal(back.params["W"], model.params["W"])
    assert pyidl.load_notes(path) == {"what": "mine"}
    # training goes on as that of the model does
    for one in (model, back):
        fit(one, U, np.tanh(U), loss="mse", epochs=1, rng=1, verbose=0)
    assert np.array_equal(back.params["W"], model.params["W"])


def test_deep_inside_a_model_with_an_own_activation(tmp_path):
    model = Sequential(
        [
            Linear(4, 4, rng=0),
            BEND,
            Chain(gated(), "tanh"),
            pyidl.ImplicitModel(4, 2, 5, constraint=Half(0.5), forward=Slow(), rng=0),
        ]
    )
    path = tmp_path / "deep.npz"
    save(path, model)
    classes = [Slow, Half, Chain, Gated, GatedLayer, Linear]  # one of pyidl does no harm
    back = load(path, activation=BEND, classes=classes)
    assert repr(back) == repr(model)
    assert isinstance(back.layers[2], Chain)
    assert isinstance(back.layers[3].constraint, Half)
    assert np.array_equal(back.predict(U), model.predict(U))
    with pytest.raises(InputError, match="'bend'"):
        load(path, classes=classes)


def test_the_error_gives_the_line_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("x.npz", Sequential(Chain("tanh")))
    with pytest.raises(InputError, match=r"holds Chain, .* load\('x.npz', classes=\(Chain,\)\)$"):
        load("x.npz")
    save("x.npz", gated())
    line = r"write load\('x.npz', classes=\(GatedLayer, Gated\)\)$"
    with pytest.raises(InputError, match=f"x.npz holds GatedLayer, Gated, which .* {line}"):
        load("x.npz")
    with pytest.raises(InputError, match=f"x.npz holds Gated, which pyidl does not have.*{line}"):
        load("x.npz", classes=(GatedLayer,))


def test_another_process_loads_it_and_runs_nothing_of_the_file(tmp_path):
    save(tmp_path / "x.npz", gated())
    lines = (
        "import sys, pyidl, numpy as np",
        "try: pyidl.load('x.npz')",
        "except pyidl.PyidlError as error: print(error)",
        "assert 'test_own_classes' not in sys.modules",
        "from test_own_classes import GatedLayer, Gated, U",
        "print(pyidl.load('x.npz', classes=(GatedLayer, Gated)).predict(U).tobytes().hex())",
    )
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here)])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    refused, answer = done.stdout.split("\n")[:2]
    assert "classes=(GatedLayer, Gated))" in refused
    assert answer == gated().predict(U).tobytes().hex()


# ----------------------------------------------------------------- what files cannot hold


class Plain(GatedLayer):
    """Its parent's fields are all that it has."""


class Bare(Layer):
    """No dataclass."""

    dtype = "float64"
    _validate = _check = _forward = lambda self, *given: None

    def __init__(self):
        self.__post_init__()

    def _shapes(self):
        return {}


@dataclass(eq=False, repr=False)
class Forgetful(Bare):
    """It keeps something that is no field."""

    dtype: str = "float64"

    def __init__(self):
        self.secret = 7
        self.__post_init__()


@dataclass(eq=False, repr=False)
class Holding(Bare):
    """It has anything for an option."""

    what: Any = None
    dtype: str = field(default="float64")

    def __init__(self, what):
        self.what = what
        self.__post_init__()


def namesake(parent, name):
    return dataclass(eq=False, repr=False)(type(name, (parent,), {}))


def test_what_inherits_its_fields_is_saved(tmp_path):
    save(tmp_path / "m", Plain(4, rng=1))
    back = load(tmp_path / "m", classes=(Plain, Gated))
    assert type(back) is Plain
    assert np.array_equal(back.predict(U), Plain(4, rng=1).predict(U))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: Bare(), r"Bare cannot be saved, since it is no dataclass; .*@dataclass\(eq=False"),
        (lambda: Forgetful(), "Forgetful cannot be saved, since secret would be lost; make fields"),
        (lambda: Holding(U), "Holding.what: ndarray cannot be saved; .* saved as parameters"),
        (lambda: Holding(Gated(U)), "Holding.what: Gated.W: ndarray cannot be saved"),
        (lambda: Holding([1]), "Holding.what: list cannot be saved"),
        (lambda: Holding(print), "Holding.what: builtin_function_or_method cannot be saved"),
        (lambda: Holding(dict), "Holding.what: dict cannot be saved"),
        (lambda: Holding(Linear(1, 1)), "Linear is a layer among the options of another"),
        (lambda: namesake(Plain, "Linear")(4), "Linear is also the name of a class of pyidl"),
        (lambda: namesake(Plain, "Picard")(4), "Picard is also the name of a class of pyidl"),
        (
            lambda: Sequential(namesake(Plain, "Twin")(4), namesake(Plain, "Twin")(4)),
            "Twin is also the name of another class of yours; rename it",
        ),
    ],
)
def test_what_a_file_would_lose_is_refused_before_it_is_written(model, words, tmp_path):
    with pytest.raises(InputError, match=words):
        save(tmp_path / "m", model())
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (GatedLayer, r"classes is <class .*classes=\(MyLayer,\)"),
        (None, "classes is None"),
        ("GatedLayer", "classes holds 'G'"),
        ([gated()], "classes holds GatedLayer"),
        ([dict], "dict cannot be saved; files hold"),
        ([Bare], "no dataclass"),
        ([namesake(Plain, "Dropout")], "Dropout is also the name of a class of pyidl"),
        ([GatedLayer, namesake(Plain, "GatedLayer")], "the name of another class of yours"),
    ],
)
def test_classes_are_checked(classes, words, tmp_path):
    save(tmp_path / "m", gated())
    with pytest.raises(InputError, match=words):
        load(tmp_path / "m", classes=classes)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(classes=5),
        lambda header: header.update(classes=[["GatedLayer"]]),
        lambda header: header["config"].update(made_of={"class": "class", "name": "os.system"}),
        lambda header: header["config"].update(made_of={"class": "class", "name": ["Gated"]}),
        lambda header: header["config"].update(cell={"class": "GatedLayer", "width": 4}),
        lambda header: header["config"].update(cell={"class": "Gated", "strange": 4}),
        lambda header: header["config"].update({"class": "Gated"}),
        lambda header: header["config"].update({"class": "test_own_classes.GatedLayer"}),
    ],
)
def test_an_edited_file_fails_clearly(change, tmp_path):
    save(tmp_path / "m", gated())
    header, arrays = read_npz(tmp_path / "m")
    change(header)
    write_npz(tmp_path / "m", arrays, {k: v for k, v in header.items() if k not in ("format",)})
    with pytest.raises(FileFormatError):
        load(tmp_path / "m", classes=(GatedLayer, Gated))


def test_the_fixed_list_needs_no_classes(tmp_path):
    save(tmp_path / "m", Linear(4, 2, rng=0))
    assert "classes" not in read_npz(tmp_path / "m")[0]
    assert isinstance(load(tmp_path / "m"), Linear)
    assert issubclass(Chain, Composite)
