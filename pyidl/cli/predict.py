"""``predict``: the rows of a CSV file, by a model that ``train`` has written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from pyidl.activations import softmax
from pyidl.cli.csv_table import opened
from pyidl.cli.destination import check_destination
from pyidl.cli.encoding import Encoding
from pyidl.errors import InputError
from pyidl.io import load, load_notes, replacing
from pyidl.layers import ImplicitModel

__all__ = ["predict"]


def predict(options: Any) -> int:
    """Write a CSV file with the predicted column, and probabilities if asked for."""
    model, encoding = _model(options)
    if options.output is not None and str(options.output) != "-":
        check_destination(options.output, options.data, options.model, force=options.force)
    target, classes = encoding.target, encoding.classes
    if options.probabilities and classes is None:
        raise InputError(f"{options.model} predicts a number; --probabilities are for classes")
    with opened(options.data, options.delimiter) as source:
        carried = list(dict.fromkeys(source.listed(options.id)))
        table = source.read(
            encoding.kinds, carried=carried, missing=encoding.missing, decimal=options.decimal
        )
    Y = model.predict(encoding.apply(table))
    # Beside the true values the predicted ones need another name.
    header = [*carried, f"predicted {target}" if target in carried else target]
    answers: list[Iterable[str]]
    if classes is None:
        answers = [map(repr, Y[:, 0].tolist())]
    else:
        answers = [(classes[k] for k in Y.argmax(axis=1))]
        if options.probabilities:
            header += [f"probability of {name}" for name in classes]
            answers += [(f"{p:.6g}" for p in column) for column in softmax.phi(Y).T]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*table.carried.values(), *answers, strict=True))
    if options.output is None or str(options.output) == "-":
        print(text.getvalue(), end="")
    else:
        with replacing(options.output) as file:
            file.write(text.getvalue().encode())
    return 0


def _model(options: Any) -> tuple[ImplicitModel, Encoding]:
    """What `train` has written, examined."""
    model, notes = load(options.model), load_notes(options.model)
    try:
        encoding = Encoding.from_notes(notes)
        widths = encoding.width, len(encoding.classes or "1")
        if not isinstance(model, ImplicitModel) or widths != (model.input_dim, model.output_dim):
            raise InputError(f"it is no model of {widths[0]} inputs and {widths[1]} outputs")
    except InputError as error:
        raise InputError(
            f"{options.model} does not say which columns it takes and what it predicts ({error}): "
            "it was not made by 'train', or was edited; train it again, or use pyidl.load in Python"
        ) from None
    return model, encoding
