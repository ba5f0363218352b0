"""The commands, their options, and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyidl
from pyidl.cli.certify import certify
from pyidl.cli.check import check
from pyidl.cli.info import info
from pyidl.cli.predict import predict
from pyidl.cli.train import train
from pyidl.training import recipe

__all__ = ["build_parser"]

EXAMPLES = """examples:
  python -m pyidl train flowers.csv --target species
  python -m pyidl train patients.csv --target risk --impute --ignore name,seen
  python -m pyidl predict patients.npz new.csv --id name --probabilities --output answers.csv
  python -m pyidl certify flowers.npz
  python -m pyidl check --device cuda

python -m pyidl COMMAND --help says more of one command.
exit codes: 0 done; 1 a check or a solve failed, or nothing is certified; 2 the input was refused"""

TRAIN = """
The file is UTF-8 with a header, or such a file packed by gzip. A column \
holds numbers,
or texts, which are one-hot encoded. Numbers are standardised within; the scaling is part of the \
model. How
columns are encoded stands in the file that is written, and 'predict' does the same.\
"""

PREDICT = """
It needs the columns that the model was trained on, in any order, and passes over others. They are \
encoded, and
missing values replaced, as in training. A category that training did not have counts as none of \
those that it
had, and is told on stderr.\
"""

TRAIN_NUMBERS: tuple[tuple[str, Callable[[str], Any], Any, str | None, str], ...] = (
    ("--hidden-dim", int, 50, "N", "hidden units"),
    ("--activation", str, "relu", "NAME", "as in pyidl.activations"),
    ("--kappa", float, recipe.KAPPA, None, "bound of the row sums of |A|, below 1"),
    ("--epochs", int, 100, "N", ""),
    ("--batch-size", int, 100, "N", ""),
    ("--learning-rate", float, recipe.LEARNING_RATE, "RATE", "of Adam, falling to 0"),
    (
        "--alpha",
        float,
        None,
        None,
        "weight of the squares of all matrices (default: 5 / training rows, at most 0.025)",
    ),
    ("--test-share", float, 0.2, "SHARE", "of the rows, held out, to judge the model by"),
    ("--seed", int, 0, "N", ""),
)
"""Of the options with a number or a name: name, type, default, metavar, meaning."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser.

    The options that it returns have the function of their command in `run`.
    """
    parser = argparse.ArgumentParser(
        "python -m pyidl",
        description="Implicit models from the command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyidl {pyidl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[Any], int], text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    command(info, "versions, devices, BLAS and threads")
    _add_train(command(train, "learn to predict one column of a CSV file from the others", TRAIN))
    _add_predict(
        command(
            predict,
            "predict the rows of a CSV file",
            PREDICT,
        )
    )
    certifying = command(
        certify, "say what is proven about a model, for every input", "Exit code 1 if nothing is."
    )
    certifying.add_argument("model", type=Path, help="a file of pyidl.save, or of train")
    checking = command(check, "check the gradients of all layers against finite differences")
    checking.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)"
    )
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("data", type=Path, help="a CSV file; - is standard input")
    train.add_argument("--target", required=True, metavar="COLUMN", help="the column to predict")
    train.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="where the model goes (default: DATA with the ending .npz)",
    )
    train.add_argument(
        "--task",
        choices=("classification", "regression"),
        help="default: regression if the target holds numbers only",
    )
    _add_columns(train, "--ignore", "columns to leave out, such as names and dates")
    _add_columns(
        train, "--categories", "columns whose texts or numbers are categories, however many"
    )
    train.add_argument(
        "--impute",
        nargs="?",
        type=_strategy,
        const="median",
        metavar="HOW",
        help="replace missing numbers by their mean, median or most-frequent (alone: median); a "
        "missing text is a category of its own, or, with most-frequent, the most frequent one "
        "(default: they are refused)",
    )
    train.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="TEXT",
        help="one more spelling of a missing value, such as '?'; may be repeated",
    )
    for name, kind, default, metavar, meaning in TRAIN_NUMBERS:
        text = meaning if default is None else f"{meaning} (default: %(default)s)".strip()
        train.add_argument(name, type=kind, default=default, metavar=metavar, help=text)
    train.add_argument(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help="of the other rows, held out, to stop early by; 0 trains all epochs (default: 0.1, if "
        "that is 10 rows or more)",
    )
    train.add_argument(
        "--patience",
        type=int,
        default=20,
        metavar="N",
        help="epochs without a better validation loss before it stops (default: %(default)s)",
    )
    train.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the losses: a file .png, .svg or .pdf"
    )
    train.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _add_format(train)


def _strategy(text: str) -> str:
    known = ("mean", "median", "most-frequent")
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(known)}; if it is the table, write it before --impute"
        )
    return text


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", type=Path, help="a file that train has written")
    predict.add_argument("data", type=Path, help="a CSV file; - is standard input")
    predict.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="a CSV file; - is standard output (the default)",
    )
    _add_columns(predict, "--id", "columns to pass on before the prediction, as they stand")
    predict.add_argument("--probabilities", action="store_true", help="of all classes too")
    _add_format(predict)


def _add_columns(command: argparse.ArgumentParser, name: str, meaning: str) -> None:
    command.add_argument(
        name,
        action="append",
        default=[],
        metavar="A,B",
        help=f"{meaning}; may be repeated",
    )


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--delimiter",
        default=",",
        metavar="CHARACTER",
        help="between fields (default: a comma; 'tab' for a tab)",
    )
    command.add_argument(
        "--decimal",
        default=".",
        metavar="CHARACTER",
        help="before decimals (default: a point; ',' for a comma)",
    )
    command.add_argument("--force", action="store_true", help="replace files that are there")
