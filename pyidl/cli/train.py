"""``train``: a model that predicts one column of a CSV file from the others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyidl import activations, metrics
from pyidl.activations import Activation
from pyidl.cli.csv_table import Table, read_table
from pyidl.cli.destination import check_destination
from pyidl.errors import InputError
from pyidl.io import save
from pyidl.optim import Adam
from pyidl.training.recipe import Data, Standardised, falling
from pyidl.wellposed import InfNorm

__all__ = ["train"]


def train(options: Any) -> int:
    """Train by the recipe of `pyidl.training.recipe`, and write the model."""
    table = read_table(options.data, options.delimiter)
    columns, U = _inputs(options, table)
    target, classes = _target(options, table)
    output = _output(options)
    activation = _checked(options)
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(U))
    held_out, rows = np.split(order, [round(options.test_share * len(U))])
    if len(rows) < 2:
        raise InputError(
            f"{table.path} leaves {len(rows)} rows to train on; give it more, or a smaller "
            "--test-share"
        )
    data: Data = U[rows], target[rows], None
    model = Standardised.build(
        data,
        classes=None if classes is None else len(classes),
        hidden_dim=options.hidden_dim,
        activation=activation,
        constraint=InfNorm(options.kappa),
        rng=rng,
    )
    adam = falling(Adam(options.learning_rate), data, options.batch_size, options.epochs)
    if not options.quiet:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        print(
            f"{'regression' if classes is None else 'classification'}: {options.target} from "
            f"{len(columns)} columns, {len(rows)} rows; {len(held_out)} held out",
            file=sys.stderr,
        )
    model.train(
        data,
        optimizer=adam,
        epochs=options.epochs,
        batch_size=options.batch_size,
        rng=rng,
        alpha=options.alpha,
        verbose=0 if options.quiet else 1,
    )
    folded = model.folded()
    save(output, folded, notes={"columns": columns, "target": options.target, "classes": classes})
    for kind, some in (("training", rows), ("held-out", held_out)):
        if len(some):
            score, value = _score(folded.predict(U[some]), target[some], classes)
            print(f"{score} on {len(some)} {kind} rows: {value}")
    print(folded.certificate())
    print(f"written: {output}")
    return 0


def _inputs(options: Any, table: Table) -> tuple[list[str], np.ndarray]:
    """The names of the columns to predict from, and what they hold."""
    left_out = (options.target, *options.ignore)
    table.places(left_out)
    columns = [name for name in table.names if name not in left_out]
    if not columns:
        raise InputError(
            f"{table.path} has no column besides {options.target!r} to predict it from"
        )
    cure = "correct it, leave out the row, or leave out the column with --ignore"
    return columns, table.numbers(columns, cure)


def _target(options: Any, table: Table) -> tuple[np.ndarray, list[str] | None]:
    """Values (m, 1) and None, or the numbers of classes (m,) and their names."""
    name = options.target
    task = options.task or ("regression" if table.is_numeric(name) else "classification")
    classes: list[str] | None = None
    if task == "regression":
        cure = "correct it, leave out the row, or use --task classification"
        target = table.numbers([name], cure)
        values = np.unique(target)
    else:
        values, target = np.unique(table.text(name), return_inverse=True)
        classes = values.tolist()
        if len(values) > max(len(target) // 2, 1):
            raise InputError(
                f"{table.path}, column {name!r} holds {len(values)} classes in {len(target)} "
                "rows; with numbers use --task regression"
            )
    if len(values) < 2:
        raise InputError(
            f"{table.path}, column {name!r} holds only {values.tolist()[0]!r}; at least two "
            "values are needed"
        )
    return target, classes


def _output(options: Any) -> Path:
    """Where the model goes."""
    if options.output is None and not options.data.is_file():
        raise InputError(
            f"{options.data} is no file beside which the model could be written; give --output"
        )
    output: Path = options.output or options.data.with_suffix(".npz")
    check_destination(output, options.data)
    return output


def _checked(options: Any) -> Activation:
    """The activation; numbers that nobody else would refuse in time are refused."""
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; it is at least 0")
    if not 0 <= options.test_share < 1:
        raise InputError(f"--test-share is {options.test_share}; it lies between 0 and 1")
    if not (options.epochs >= 1 and options.batch_size >= 1):
        raise InputError(
            f"--epochs is {options.epochs} and --batch-size {options.batch_size}; both are at "
            "least 1"
        )
    if not 0 <= options.alpha < np.inf:
        raise InputError(
            f"--alpha is {options.alpha}; the weight of the squares is a finite number, at least 0"
        )
    activation = activations.named(options.activation)
    if not isinstance(activation, Activation):
        raise InputError(
            f"there is no activation {options.activation!r}; try relu, tanh, sigmoid, softplus, "
            "silu or gelu"
        )
    return activation


def _score(Y: np.ndarray, target: np.ndarray, classes: list[str] | None) -> tuple[str, str]:
    """The share of right classes, or R2."""
    if classes is not None:
        return "accuracy", f"{metrics.accuracy(Y, target):.4f}"
    if np.all(target == target[0]):
        return "R2", "not defined, their targets are equal"
    return "R2", f"{metrics.r2(Y, target):.4f}"
