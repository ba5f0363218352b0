"""Summaries, and what a notebook shows: right numbers, escaped words, nothing computed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

import pyidl
from pyidl import (
    Bidirectional,
    Dropout,
    Embedding,
    History,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    LayerNorm,
    Linear,
    Pointwise,
    Residual,
    Sequential,
    wellposed,
)
from pyidl.arrays.table import MOST, Table, abridged
from pyidl.errors import InputError
from pyidl.layers.base import Layer

RNN = {"input_dim": 2, "output_dim": 1, "hidden_dim": 3, "implicit_hidden_dim": 4, "rng": 0}
MODELS = {
    "implicit": lambda: ImplicitModel(2, 3, 4, rng=0),
    "low rank": lambda: ImplicitModel(2, 3, 4, rank=2, bias=False, dtype="float64", rng=0),
    "recurrent": lambda: ImplicitRNN(**RNN),
    "both ways": lambda: Bidirectional(ImplicitRNN(**RNN), ImplicitRNN(**RNN)),
    "attention": lambda: ImplicitAttentionHead(4, 2, num_heads=2, block_size=5, rng=0),
    "transformer": lambda: ImplicitTransformerBlock(4, 2, block_size=5, dropout=0.1, rng=0),
    "nothing": lambda: Sequential(Dropout(0.5), "relu"),
    "explicit": lambda: Linear(3, 2, rng=0),
    "tokens": lambda: Sequential(Embedding(7, 4, rng=0), LayerNorm(4)),
    "deep": lambda: Sequential(
        Linear(3, 4, rng=0), "tanh", Residual([ImplicitModel(4, 4, 6, activation="tanh", rng=0)])
    ),
}


class Reader(HTMLParser):
    """The cells of the rows, the words, and the tags that are still open."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.words, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(shown):
    html = shown._repr_html_()
    assert not re.search("color|background|<script|<style", html)  # light and dark alike
    found = Reader(html)
    assert found.open == []
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_summary_has_every_parameter_and_their_sum(name):
    model = MODELS[name]()
    table = model.summary()
    at, shapes = "", {}
    for part, layer, key, shape, count in table.rows:
        at = part if layer else at
        if key:
            shapes[f"{at}.{key}" if at else key] = (shape, count)
    assert shapes == {k: (str(a.shape), f"{a.size:,}") for k, a in model.params.items()}
    numbers = sum(a.size for a in model.params.values())
    size = sum(a.nbytes for a in model.params.values())
    assert f"in all {numbers:,} numbers, {size:,} bytes" in table.notes[-1]
    own = [row for row in table.rows if row[1] and row[4]]
    assert sum(int(row[4].replace(",", "")) for row in own) == numbers
    text = str(table).split("\n")
    assert text[0] == type(model).__name__
    assert len(text) == 2 + len(table.rows) + len(table.notes)


def test_a_summary_says_equation_solvers_and_certificate():
    model = ImplicitModel(2, 3, 4, constraint=wellposed.InfNorm(0.5), rng=0)
    state, proof, total = model.summary().notes
    assert (
        state
        == "4 states a sample in InfNorm(kappa=0.5, weights=None), solved by Auto, adjoint by Auto"
    )
    assert proof == f"certified, Picard contracts by {model.certificate().contraction:.4g} per step"
    assert total == "in all 49 numbers, 196 bytes, float32 on cpu"
    solved = model.replace(forward=pyidl.solvers.Picard(), adjoint=pyidl.solvers.Direct())
    assert solved.summary().notes[0].endswith("solved by Picard, adjoint by Direct")
    wild = model.replace(constraint=wellposed.Unconstrained())
    wild.params = {**wild.params, "A": np.full((4, 4), 2.0)}
    assert wild.summary().notes[1].startswith("not certified: ")
    assert ImplicitRNN(**RNN).summary().notes[0].startswith("4 states a step in InfNorm")
    head = ImplicitAttentionHead(4, 2, num_heads=3, block_size=5, rng=0)
    assert head.summary().notes[0].startswith("6 states a token in AttentionBall")


def test_parts_stand_under_their_names():
    model = MODELS["deep"]()
    table = model.summary()
    assert [(row[0], row[1]) for row in table.rows if row[1]] == [
        ("", "Sequential"),
        ("0", "Linear 3 -> 4"),
        ("1", "Pointwise, tanh"),
        ("2", "Residual"),
        ("2.0", "ImplicitModel 4 -> 4, tanh"),
    ]
    assert [note[:5] for note in table.notes[:-1]] == ["2.0: "] * 2


@pytest.mark.parametrize("name", MODELS)
def test_a_notebook_shows_the_summary_and_computes_no_certificate(name, monkeypatch):
    model = MODELS[name]()

    def fail(*given):
        raise AssertionError("a certificate was computed")

    for kind in (ImplicitModel, ImplicitRNN, ImplicitAttentionHead, Sequential):
        monkeypatch.setattr(kind, "certificate", fail)
    found = read(model)
    assert [tuple(row) for row in found.rows[1:]] == list(model.summary(certificate=False).rows)
    assert any("bytes" in words for words in found.words)


def test_an_own_layer_has_a_summary_and_its_names_are_escaped():
    @dataclass(eq=False, repr=False)
    class Mine(Layer):
        dtype: str = "float64"

        def _validate(self):
            """Nothing to check."""

        def _draw(self, generator):
            return {"<b>&": np.zeros(3)}

        def _shapes(self):
            return {"<b>&": (3,)}

        def _check(self, U):
            """Nothing to check."""

        def _forward(self, U, call):
            raise NotImplementedError

    assert "<b>&" in str(Mine().summary())
    assert "<b>" not in Mine()._repr_html_().replace("<b>Mine", "")
    assert read(Mine()).rows[2][2] == "<b>&"
    with pytest.raises(InputError, match="certificate is 3; use True or False"):
        Mine().summary(certificate=3)


def test_certificates_are_tables():
    model = ImplicitModel(2, 3, 4, rng=0)
    c = model.certificate(explain=True)
    head, first, *others = read(c).rows
    assert head[0] == "certified"
    assert first[0] == "yes"
    assert first[2] == f"{c.contraction:.4g}"
    assert len(others) == len(c.others) > 1
    assert all(row[-1] == other.reason for row, other in zip(others, c.others, strict=True))
    local = pyidl.certify_solution(model, np.ones((30, 2)))
    rows = read(local).rows[1:]
    assert len(rows) == MOST + 1
    assert [row[0] for row in rows][:: MOST // 2] == ["0", "…", "29"]
    assert rows[0][1] == "yes"
    head = ImplicitAttentionHead(4, 2, block_size=5, rng=0)
    attention = pyidl.certify_attention(head, np.ones((2, 3, 4)))
    rows = read(attention).rows
    assert [row[1] for row in rows[1:]] == ["yes" if p else "no" for p in attention.proven]


def test_a_solution_is_a_table():
    model = ImplicitModel(2, 3, 4, forward=pyidl.solvers.Picard(max_iter=1), rng=0)
    U = np.random.default_rng(0).normal(size=(5, 2))
    solution = model.equilibrium(U, on_fail="ignore")
    rows = read(solution).rows[1:]
    assert {row[0] for row in rows} == {pyidl.solvers.Status(s).name for s in solution.status}
    assert sum(int(row[1]) for row in rows) == 5
    good = ImplicitModel(2, 3, 4, rng=0).equilibrium(U)
    (row,) = read(good).rows[1:]
    assert row[:2] == ["CONVERGED", "5"]
    assert row[3] == f"{good.n_iter.max()}"
    assert row[4] == f"{good.residual.max():.3g}"


def records(n):
    return tuple({"epoch": i + 1, "loss": 1 / (i + 1), "seconds": 0.1} for i in range(n))


def test_a_history_is_a_mapping_of_what_was_recorded():
    history = History(records(3))
    assert history.keys() == list(history) == ["epoch", "loss", "seconds"]
    assert len(history) == 3
    assert "loss" in history
    assert "val_loss" not in history
    assert [key for key, _ in history.items()] == history.keys()
    for key, values in history.items():
        assert np.array_equal(values, history[key])
    assert dict(history).keys() == set(history)
    with pytest.raises(KeyError, match=r"'val_loss' was not recorded; there are .*'loss'"):
        history["val_loss"]
    later = History((*records(1), {"epoch": 2, "loss": 0.5, "accuracy": 0.9, "seconds": 0.1}))
    assert np.array_equal(later["accuracy"], [np.nan, 0.9], equal_nan=True)
    assert History().keys() == History().items() == []
    with pytest.raises(KeyError, match="no epochs"):
        History()["loss"]


def test_a_history_is_a_table():
    rows = read(History(records(3))).rows
    assert rows == [
        ["epoch", "loss", "seconds"],
        ["1", "1", "0.1"],
        ["2", "0.5", "0.1"],
        ["3", "0.3333", "0.1"],
    ]
    rows = read(History(records(1000))).rows[1:]
    assert [row[0] for row in rows] == [*map(str, range(1, 11)), "…", *map(str, range(991, 1001))]
    assert read(History()).rows == [[]]
    wide = read(History(({"epoch": 123456, "loss": 1e-9, "seconds": 2.0},))).rows[1]
    assert wide[:2] == ["123456", "1e-09"]


def test_a_frame_has_an_epoch_a_row():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    history = History(records(3))
    frame = history.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["loss", "seconds"]
    assert frame.index.name == "epoch"
    assert frame.index.tolist() == [1, 2, 3]
    assert np.array_equal(frame["loss"], history["loss"])
    assert len(History().to_frame()) == 0


def test_without_pandas_the_error_has_the_line_that_installs_it():
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "import pyidl\n"
        "try: pyidl.History(({'epoch': 1, 'seconds': 1.0},)).to_frame()\n"
        "except pyidl.PyidlError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("which is not installed: pip install pandas")


def test_tables_are_aligned_and_abridged():
    table = Table("T", ("a", "number"), (("long", "1"), ("x", "1,234")), ("note",))
    assert repr(table) == "T\na     number\nlong       1\nx      1,234\nnote"
    assert abridged([("a",)] * MOST) == (("a",),) * MOST
    assert len(abridged([("a",)] * (MOST + 1))) == MOST + 1
    assert Pointwise("relu").summary().rows == (("", "Pointwise, relu", "", "", "0"),)
