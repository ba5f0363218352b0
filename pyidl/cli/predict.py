"""``predict``: the rows of a CSV file, by a model that ``train`` has written."""

from __future__ import annotations

import csv
import io
from typing import Any

from pyidl.activations import softmax
from pyidl.cli.csv_table import read_table
from pyidl.cli.destination import check_destination
from pyidl.errors import InputError
from pyidl.io import load, load_notes, replacing
from pyidl.layers import ImplicitModel

__all__ = ["predict"]


def predict(options: Any) -> int:
    """Write a CSV file with the predicted column, and probabilities if asked for."""
    model, notes = load(options.model), load_notes(options.model)
    columns, target, classes = (notes.get(key) for key in ("columns", "target", "classes"))
    if not (
        isinstance(model, ImplicitModel)
        and isinstance(columns, list)
        and isinstance(classes, list | None)
        and (len(columns), len(classes or [target])) == (model.input_dim, model.output_dim)
    ):
        raise InputError(
            f"{options.model} does not say which columns it takes and what it predicts: it was "
            "not made by 'train', or was edited; train it again, or use pyidl.load in Python"
        )
    if options.output is not None:
        check_destination(options.output, options.data, options.model)
    if options.probabilities and classes is None:
        raise InputError(f"{options.model} predicts a number; --probabilities are for classes")
    Y = model.predict(read_table(options.data, options.delimiter).numbers(columns))
    header, rows = [target], [[repr(float(y[0]))] for y in Y]
    if classes is not None:
        rows = [[classes[int(k)]] for k in Y.argmax(axis=1)]
        if options.probabilities:
            header += [f"probability of {name}" for name in classes]
            for row, probabilities in zip(rows, softmax.phi(Y), strict=True):
                row += [f"{p:.6g}" for p in probabilities]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    if options.output is None:
        print(text.getvalue(), end="")
    else:
        with replacing(options.output) as file:
            file.write(text.getvalue().encode())
    return 0
