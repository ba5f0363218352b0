"""``train``: a model that predicts one column of a CSV file from the others."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyidl import metrics
from pyidl.activations import Activation
from pyidl.activations.names import as_activation
from pyidl.cli.csv_table import Numbers, Source, Table, Texts, opened
from pyidl.cli.destination import check_destination
from pyidl.cli.encoding import Category, Encoding
from pyidl.cli.faults import (
    Fault,
    check_inputs,
    no_numbers,
    option,
    refuse,
    shown,
    without_value,
)
from pyidl.errors import InputError
from pyidl.io import replacing, save
from pyidl.optim import Adam
from pyidl.training import EarlyStopping, History
from pyidl.training.recipe import Data, Standardised, falling
from pyidl.wellposed import InfNorm

__all__ = ["train"]

FEW = 20
"""A target of so few different numbers may be meant as classes."""
SHARE = 0.1
"""Of the rows that are not held out, what is watched to stop early by."""
WATCHED = 10
"""Fewer rows than these are not held out to stop early by, unless it is asked for."""
TARGET = "fill it in, or leave out the row (NA, None and the like are no values)"
INDEX = ("", "Unnamed: 0")
"""What the first column is called where pandas has written its index."""


def train(options: Any) -> int:
    """Train by the recipe of `pyidl.training.recipe`, and write the model."""
    output = _outputs(options)
    activation = _checked(options)
    with opened(options.data, options.delimiter) as source:
        read = _read(options, source)
    rng = np.random.default_rng(options.seed)
    parts = _split(options, read.table, rng)
    encoding = Encoding.of(
        read.table,
        read.columns,
        parts["training"],
        target=options.target,
        classes=read.classes,
        impute=options.impute,
        missing=options.missing,
    )
    U = encoding.apply(read.table)
    data: dict[str, Data] = {
        kind: (U[rows], read.target[rows], None) for kind, rows in parts.items()
    }
    model = Standardised.build(
        data["training"],
        classes=None if read.classes is None else len(read.classes),
        hidden_dim=options.hidden_dim,
        activation=activation,
        constraint=InfNorm(options.kappa),
        rng=rng,
    )
    if not options.quiet:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        _say(_plan(encoding, parts))
    history = _trained(options, model, data["training"], data.get("validation"), rng)
    folded = model.folded()
    save(output, folded, notes=encoding.to_notes())
    for kind, (inputs, target, _) in data.items():
        score, value = _score(folded.predict(inputs), target, read.classes)
        print(f"{score} on {len(target)} {kind} rows: {value}")
    print(folded.certificate())
    print(f"written: {output}")
    if options.plot is not None:
        from pyidl import plotting  # it needs matplotlib

        with replacing(options.plot) as file:
            drawn = plotting.training(history)
            drawn.figure.savefig(file, format=options.plot.suffix[1:])
        print(f"written: {options.plot}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# -------------------------------------------------------------------- before the training


def _outputs(options: Any) -> Path:
    """Where the model goes; both places are checked."""
    data: Path = options.data
    piped = str(data) == "-" or (data.exists() and not data.is_file())
    if options.output is None and piped:
        raise InputError(
            f"{data} is no file beside which the model could be written; give --output"
        )
    if str(options.output) == "-":
        raise InputError("a model goes to a file; give --output its name")
    plain = data.with_suffix("") if data.suffix == ".gz" else data
    output: Path = options.output or plain.with_suffix(".npz")
    check_destination(output, data, force=options.force)
    if options.plot is not None:
        check_destination(options.plot, data, output, force=options.force, option="--plot")
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError(
                "--plot needs matplotlib, which is not installed: pip install matplotlib"
            )
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.filetypes
        if options.plot.suffix[1:] not in known:
            raise InputError(
                f"--plot is {options.plot}; its ending says which kind of picture it is: "
                f"{', '.join(sorted(known))}"
            )
    return output


def _checked(options: Any) -> Activation:
    """The activation; numbers that nobody else would refuse in time are refused."""
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; it is at least 0")
    shares = {"--test-share": options.test_share, "--validation-share": options.validation_share}
    for name, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise InputError(f"{name} is {share}; it lies between 0 and 1")
    if not (options.epochs >= 1 and options.batch_size >= 1):
        raise InputError(
            f"--epochs is {options.epochs} and --batch-size {options.batch_size}; both are at "
            "least 1"
        )
    if options.alpha is not None and not 0 <= options.alpha < np.inf:
        raise InputError(
            f"--alpha is {options.alpha}; the weight of the squares is a finite number, at least 0"
        )
    if options.patience < 1:
        raise InputError(f"--patience is {options.patience}; it counts epochs, at least 1")
    return as_activation(options.activation, "--activation")


@dataclass(frozen=True, eq=False)
class _Read:
    """A table, the columns to predict from, and the target: values, or labels."""

    table: Table
    columns: list[str]
    target: np.ndarray
    classes: list[str] | None


def _read(options: Any, source: Source) -> _Read:
    """Read what is needed of a table, and examine it."""
    source.known([options.target])
    left_out = {options.target, *source.listed(options.ignore)}
    texts = [options.target, *source.listed(options.categories)]
    index = source.names[0]
    if index in INDEX and index not in (*left_out, *texts):
        words = f"is named {index!r}" if index else "has no name"
        _say(f"pyidl: {source.path}: the first column {words}: an index, and left out")
        left_out.add(index)
    columns = [name for name in source.names if name not in left_out]
    if not columns:
        raise InputError(
            f"{source.path} has no column besides {options.target!r} to predict it from"
        )
    table = source.read(
        {name: "text" if name in texts else "any" for name in [*columns, options.target]},
        missing=options.missing,
        decimal=options.decimal,
    )
    faults = check_inputs(
        table,
        columns,
        categories=source.listed(options.categories),
        impute=options.impute is not None,
    )
    more, target, classes = _target(options, table)
    refuse(table, [*faults, *more], optional=columns)
    k = len(np.unique(target))
    if options.task is None and classes is None and k <= FEW and 2 * k <= len(table):
        _say(
            f"pyidl: {options.target} holds {k} different numbers, and is learnt as a number "
            "(regression); if they are classes, use --task classification"
        )
    for name in columns:
        column = table.columns[name]
        if (
            isinstance(column, Numbers)
            and len(table) >= FEW
            and np.all(np.diff(column.values) == 1)
        ):
            _say(
                f"pyidl: {name} counts the rows, and is learnt from; if it means nothing else, use "
                f"{option('--ignore', [name])}"
            )
    return _Read(table, columns, target, classes)


def _target(options: Any, table: Table) -> tuple[list[Fault], np.ndarray, list[str] | None]:
    """What is wrong with the target; its values (m, 1), or labels and names."""
    name, faults = options.target, []
    texts = table.columns[name]
    assert isinstance(texts, Texts)
    numbers = table.as_numbers(texts)
    some = any(map(table.is_number, texts.words))
    task = options.task or ("regression" if some else "classification")
    if len(texts.missing):
        faults.append(without_value(table, name, TARGET))
    if task == "regression":
        faults += no_numbers(table, name, numbers, "use --task classification")
        values: np.ndarray = np.unique(numbers.values)
    else:
        values = np.unique(texts.codes)
        if len(values) > max(len(table) // 2, 1):
            what = f"holds {len(values)} classes in {len(table)} rows"
            faults.append(Fault(name, 0, what, "with numbers use --task regression"))
    if len(values) < 2 and not faults:
        what = f"holds only {shown(texts.words[0])}"
        faults.append(Fault(name, 0, what, "at least two values are needed"))
    if task == "regression":
        return faults, numbers.values[:, None], None
    return faults, texts.codes, list(texts.words)


def _split(options: Any, table: Table, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows that are trained on, watched, and held out."""
    m = len(table)
    held_out, rest = np.split(rng.permutation(m), [round(options.test_share * m)])
    share = SHARE if options.validation_share is None else options.validation_share
    count = round(share * len(rest))
    if options.validation_share is None and count < WATCHED:
        count = 0
    watched, rows = np.split(rest, [count])
    if len(rows) < 2:
        raise InputError(
            f"{table.path} leaves {len(rows)} rows to train on; give it more, or a smaller "
            "--test-share or --validation-share"
        )
    parts = {"training": rows, "validation": watched, "held-out": held_out}
    return {kind: some for kind, some in parts.items() if len(some)}


# -------------------------------------------------------------------- training and after


def _plan(encoding: Encoding, parts: dict[str, np.ndarray]) -> str:
    """What will be learnt, from what."""
    task = "regression" if encoding.classes is None else "classification"
    encoded = [
        f"{c.name} ({len(c.categories)} categories)"
        for c in encoding.columns
        if isinstance(c, Category)
    ]
    return (
        f"{task}: {encoding.target} from {len(encoding.columns)} columns, "
        + ", ".join(f"{len(rows)} {kind}" for kind, rows in parts.items())
        + " rows"
        + (f"; one-hot encoded: {', '.join(encoded)}" if encoded else "")
    )


def _trained(
    options: Any, model: Standardised, data: Data, watched: Data | None, rng: np.random.Generator
) -> History:
    """Train, and say when it was stopped."""
    stop = EarlyStopping(options.patience)
    score = metrics.accuracy if data[1].ndim == 1 else metrics.r2
    scored = watched is not None and (data[1].ndim == 1 or len(np.unique(watched[1])) > 1)
    history = model.train(
        data,
        optimizer=falling(Adam(options.learning_rate), data, options.batch_size, options.epochs),
        epochs=options.epochs,
        batch_size=options.batch_size,
        rng=rng,
        alpha=options.alpha,
        validation=watched,
        metrics=[score] if scored else [],
        callbacks=[] if watched is None else [stop],
        verbose=0 if options.quiet else 1,
    )
    if watched is not None and not options.quiet:
        best = int(np.nanargmin(history["val_loss"]))
        _say(
            f"{len(history)} of {options.epochs} epochs; the model is that of epoch {best + 1}, "
            f"whose validation loss is least: {history['val_loss'][best]:.4g}"
        )
    return history


def _score(Y: np.ndarray, target: np.ndarray, classes: Any) -> tuple[str, str]:
    """The share of right classes, or R2."""
    if classes is not None:
        return "accuracy", f"{metrics.accuracy(Y, target):.4f}"
    if np.all(target == target[0]):
        return "R2", "not defined, their targets are equal"
    return "R2", f"{metrics.r2(Y, target):.4f}"
