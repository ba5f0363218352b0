"""The command line: ``python -m pyidl info | train | predict | certify | check``.

Exit codes: 0, done; 1, a check or a solve failed, or nothing is certified; 2, the input
was refused, in one line on stderr.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pyidl
from pyidl import activations, losses, metrics, optim, testing, wellposed
from pyidl.arrays import backend
from pyidl.cli.csv_files import Table, read_table
from pyidl.errors import DeviceError, FileFormatError, InputError, PyidlError
from pyidl.io import replacing
from pyidl.layers import ImplicitModel, Layer
from pyidl.training import recipe
from pyidl.training.ridge import ridge
from pyidl.training.standardise import Standardiser, fold

__all__ = ["main"]

OPTIONAL = (
    "cupy-cuda12x",
    "cupy-cuda13x",
    "scikit-learn",
    "matplotlib",
    "tqdm",
    "dask",
    "torch",
    "onnx",
    "onnxruntime",
    "threadpoolctl",
)

EXAMPLES = """examples:
  python -m pyidl train flowers.csv --target species
  python -m pyidl predict flowers.npz new.csv --output answers.csv --probabilities
  python -m pyidl certify flowers.npz
  python -m pyidl check --device cuda

python -m pyidl COMMAND --help says more of one command.
exit codes: 0 done; 1 a check or a solve failed, or nothing is certified; 2 the input was refused"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        print(end="", flush=True)
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("pyidl: interrupted", file=sys.stderr)
        return 130
    except UnicodeEncodeError as error:
        name = error.object[error.start]
        print(
            f"pyidl: {error.encoding} has no {name!r}; set PYTHONUTF8=1, or write to a file with --output",
            file=sys.stderr,
        )
        return 2
    except (PyidlError, OSError, MemoryError) as error:
        refused = isinstance(
            error, (InputError, FileFormatError, DeviceError, OSError, MemoryError)
        )
        print(f"pyidl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if refused else 1


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m pyidl",
        description="Implicit models from the command line.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    parser.add_argument("--version", action="version", version=f"pyidl {pyidl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[Any], int], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
            formatter_class=plain,
        )
        added.set_defaults(run=run)
        return added

    command("info", _info, "versions, devices, BLAS and threads")

    train = command(
        "train",
        _train,
        "learn to predict one column of a CSV file from the others",
        "\nThe file is UTF-8 with a header; all columns but the target are numbers. Columns are standardised within, and the\n"
        "scaling is part of the model: the file that is written takes data as they are, also by pyidl.load.",
    )
    train.add_argument("data", type=Path, help="a CSV file")
    train.add_argument("--target", required=True, metavar="COLUMN", help="the column to predict")
    train.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the model goes (default: DATA with the ending .npz)",
    )
    train.add_argument(
        "--task",
        choices=("classification", "regression"),
        help="default: regression if the target holds numbers only",
    )
    train.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="COLUMN",
        help="leave out a column; may be repeated",
    )
    train.add_argument(
        "--hidden-dim",
        type=int,
        default=50,
        metavar="N",
        help="hidden units (default: %(default)s)",
    )
    train.add_argument(
        "--activation",
        default="relu",
        metavar="NAME",
        help="as in pyidl.activations (default: %(default)s)",
    )
    kappa = "bound of the row sums of |A|, below 1 (default: %(default)s)"
    train.add_argument("--kappa", type=float, default=recipe.KAPPA, help=kappa)
    train.add_argument(
        "--epochs", type=int, default=100, metavar="N", help="(default: %(default)s)"
    )
    train.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="(default: %(default)s)"
    )
    rate = "of Adam, falling to 0 (default: %(default)s)"
    initial = recipe.LEARNING_RATE
    train.add_argument("--learning-rate", type=float, default=initial, metavar="RATE", help=rate)
    alpha = "weight of the squares of all matrices (default: %(default)s)"
    train.add_argument("--alpha", type=float, default=recipe.ALPHA, help=alpha)
    train.add_argument(
        "--test-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the rows, held out (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    train.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _delimiter(train)

    predict = command(
        "predict",
        _predict,
        "predict the rows of a CSV file",
        "It needs the columns that the model was trained on, in any order.",
    )
    predict.add_argument("model", type=Path, help="a file that train has written")
    predict.add_argument("data", type=Path, help="a CSV file")
    predict.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="a CSV file (default: standard output)"
    )
    predict.add_argument("--probabilities", action="store_true", help="of all classes too")
    _delimiter(predict)

    certify = command(
        "certify",
        _certify,
        "say what is proven about a model, for every input",
        "Exit code 1 if nothing is.",
    )
    certify.add_argument("model", type=Path, help="a file of pyidl.save, or of train")

    check = command("check", _check, "check the gradients of all layers against finite differences")
    check.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    return parser


def _delimiter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delimiter",
        default=",",
        metavar="CHARACTER",
        help="between fields (default: a comma; 'tab' for a tab)",
    )


def _table(options: Any) -> Table:
    delimiter = "\t" if options.delimiter == "tab" else options.delimiter
    if len(delimiter) != 1:
        raise InputError(f"--delimiter is {delimiter!r}; it is one character, or 'tab'")
    return read_table(options.data, delimiter)


def _destination(output: Path, *inputs: Path) -> Path:
    """Where the result goes.

    Refused before any work if it cannot go there, or would replace what it is made
    from.
    """
    folder, special = (
        output.parent,
        output.exists() and not output.is_file(),
    )  # a pipe or a device is written to itself
    if output.is_dir():
        raise InputError(f"{output} is a folder; give --output the name of a file")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; make it, or give another --output")
    if not os.access(output if special else folder, os.W_OK):
        raise InputError(f"{output} cannot be written: permission denied; give another --output")
    if output.exists() and any(output.samefile(file) for file in inputs):
        raise InputError(f"--output would replace {output}, which is read; give another --output")
    return output


# --------------------------------------------------------------------------------- info


def _info(options: Any) -> int:
    print(f"pyidl         {pyidl.__version__}")
    print(f"Python        {platform.python_version()}, {platform.platform()}")
    for name in ("numpy", "scipy", *OPTIONAL):
        try:
            print(f"{name:13s} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in ("numpy", "scipy"):
                raise
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"BLAS          {blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip())
    print(f"processors    {os.cpu_count()}")
    try:
        from threadpoolctl import threadpool_info

        for pool in threadpool_info():
            print(
                f"threads       {pool['num_threads']} of {pool['internal_api']} {pool.get('version') or ''}".rstrip()
            )
    except ImportError:
        shown = {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            if name in os.environ
        }
        print(
            f"threads       {shown or 'not limited'} (install threadpoolctl to see those of each library)"
        )
    print(f"devices       {', '.join(_devices())}")
    return 0


def _devices() -> list[str]:
    """The host, and the GPUs that CuPy can use."""
    found = ["cpu"]
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount() if cupy.is_available() else 0
        found += [
            f"cuda:{i} {cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()}"
            for i in range(count)
        ]
    except ImportError:
        found.append("(no GPU: CuPy is not installed)")
    return found


# -------------------------------------------------------------------- train and predict


def _train(options: Any) -> int:
    table = _table(options)
    table.places([options.target, *options.ignore])
    columns = [name for name in table.names if name not in (options.target, *options.ignore)]
    if not columns:
        raise InputError(
            f"{table.path} has no column besides {options.target!r} to predict it from"
        )
    task = options.task or ("regression" if table.is_numeric(options.target) else "classification")
    U = table.numbers(
        columns, "correct it, leave out the row, or leave out the column with --ignore"
    )
    classes: list[str] | None = None
    if task == "regression":
        target = table.numbers(
            [options.target], "correct it, leave out the row, or use --task classification"
        )
        values = np.unique(target)
    else:
        values, target = np.unique(table.text(options.target), return_inverse=True)
        classes = values.tolist()
        if len(values) > max(len(U) // 2, 1):
            raise InputError(
                f"{table.path}, column {options.target!r} holds {len(values)} classes in {len(U)} rows; with numbers use --task regression"
            )
    if len(values) < 2:
        raise InputError(
            f"{table.path}, column {options.target!r} holds only {values.tolist()[0]!r}; at least two values are needed"
        )
    if options.output is None and not options.data.is_file():
        raise InputError(
            f"{options.data} is no file beside which the model could be written; give --output"
        )
    output = _destination(options.output or options.data.with_suffix(".npz"), options.data)
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; it is at least 0")
    if not 0 <= options.test_share < 1:
        raise InputError(f"--test-share is {options.test_share}; it lies between 0 and 1")
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(U))
    held_out, train = np.split(order, [round(options.test_share * len(U))])
    if len(train) < 2:
        raise InputError(
            f"{table.path} leaves {len(train)} rows to train on; give it more, or a smaller --test-share"
        )
    activation = activations.named(options.activation)
    if not isinstance(activation, activations.Activation):
        raise InputError(
            f"there is no activation {options.activation!r}; try relu, tanh, sigmoid, softplus, silu or gelu"
        )
    inputs = Standardiser.of(U[train])
    outputs = Standardiser.of(target[train]) if classes is None else Standardiser.identity(len(classes))
    model = ImplicitModel(
        len(columns),
        1 if classes is None else len(classes),
        options.hidden_dim,
        activation=activation,
        constraint=pyidl.InfNorm(options.kappa),
        dtype="float64",
        rng=rng,
    )
    if not (options.epochs >= 1 and options.batch_size >= 1):
        raise InputError(
            f"--epochs is {options.epochs} and --batch-size {options.batch_size}; both are at least 1"
        )
    if not 0 <= options.alpha < np.inf:
        raise InputError(
            f"--alpha is {options.alpha}; the weight of the squares is a finite number, at least 0"
        )
    steps = options.epochs * -(-len(train) // options.batch_size)
    optimizer = optim.Adam(optim.Cosine(options.learning_rate, steps=steps))
    if not options.quiet:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        print(
            f"{task}: {options.target} from {len(columns)} columns, {len(train)} rows; {len(held_out)} held out",
            file=sys.stderr,
        )
    pyidl.fit(
        model,
        (inputs(U[train]), outputs(target[train]) if classes is None else target[train]),
        loss=losses.mse if classes is None else losses.cross_entropy,
        optimizer=optimizer,
        epochs=options.epochs,
        batch_size=options.batch_size,
        penalty=ridge(options.alpha) if options.alpha else None,
        tol=recipe.TOL,
        rng=rng,
        verbose=0 if options.quiet else 1,
    )
    model = fold(model, inputs, outputs)
    notes = {"columns": columns, "target": options.target, "classes": classes}
    pyidl.save(output, model, notes=notes)
    for kind, rows in (("training", train), ("held-out", held_out)):
        if len(rows):
            score, value = _score(model.predict(U[rows]), target[rows], classes)
            print(f"{score} on {len(rows)} {kind} rows: {value}")
    print(model.certificate())
    print(f"written: {output}")
    return 0


def _score(Y: np.ndarray, target: np.ndarray, classes: list[str] | None) -> tuple[str, str]:
    """The share of right classes, or R2."""
    if classes is not None:
        return "accuracy", f"{metrics.accuracy(Y, target):.4f}"
    return "R2", f"{metrics.r2(Y, target):.4f}" if np.any(
        target != target[0]
    ) else "not defined, their targets are equal"


def _predict(options: Any) -> int:
    model, notes = pyidl.load(options.model), pyidl.load_notes(options.model)
    columns, target, classes = (notes.get(key) for key in ("columns", "target", "classes"))
    if not (
        isinstance(model, ImplicitModel)
        and isinstance(columns, list)
        and isinstance(classes, list | None)
        and (len(columns), len(classes or [target])) == (model.input_dim, model.output_dim)
    ):
        raise InputError(
            f"{options.model} does not say which columns it takes and what it predicts: it was not made by 'train', or was edited; "
            "train it again, or use pyidl.load in Python"
        )
    if options.output is not None:
        _destination(options.output, options.data, options.model)
    if options.probabilities and classes is None:
        raise InputError(f"{options.model} predicts a number; --probabilities are for classes")
    Y = model.predict(_table(options).numbers(columns))
    header, rows = [target], [[repr(float(y[0]))] for y in Y]
    if classes is not None:
        rows = [[classes[int(k)]] for k in Y.argmax(axis=1)]
        if options.probabilities:
            P = activations.softmax.phi(Y)
            header += [f"probability of {name}" for name in classes]
            rows = [
                [*row, *(f"{p:.6g}" for p in probabilities)]
                for row, probabilities in zip(rows, P, strict=True)
            ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    if options.output is None:
        print(text.getvalue(), end="")
    else:
        with replacing(options.output) as file:
            file.write(text.getvalue().encode())
    return 0


# -------------------------------------------------------------------- certify and check


def _certify(options: Any) -> int:
    model = pyidl.load(options.model)
    print(repr(model))
    certificate = model.certificate(explain=True)
    print(certificate)  # and, line by line, what the other conditions say
    return 0 if certificate.proven else 1


def _check(options: Any) -> int:
    rng, worst = np.random.default_rng(0), 0.0
    failed = []
    for name, layer, U in _layers(rng):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyidl.PyidlWarning)
            try:
                there = layer.to(options.device)
                error = testing.check_pullback(
                    there, backend.to_device(U, options.device)
                ).max_error
                print(f"{name:40s} {error:.1e}")
                worst = max(worst, error)
            except pyidl.errors.GradientMismatchError as mismatch:
                failed.append(name)
                print(f"{name:40s} WRONG: {mismatch}")
    print(f"largest relative error on {options.device}: {worst:.1e}; {len(failed)} layers failed")
    return 1 if failed else 0


def _layers(rng: np.random.Generator) -> list[tuple[str, Layer, np.ndarray]]:
    """Every kind of layer, with inputs."""
    U, S, tokens = rng.normal(size=(5, 4)), rng.normal(size=(3, 6, 4)), rng.integers(0, 7, (3, 6))
    found: list[tuple[str, Layer, np.ndarray]] = [("Linear", pyidl.Linear(4, 3, rng=0), U)]
    for phi in (activations.relu, activations.tanh, activations.softmax):
        found.append(
            (f"ImplicitModel, {phi.name}", ImplicitModel(4, 3, 8, activation=phi, rng=0), U)
        )
    for ball in (
        wellposed.SpectralNorm(0.8),
        wellposed.StrictlyTriangular(),
        wellposed.Monotone(0.3),
        wellposed.MatrixMeasure(0.5),
    ):
        found.append(
            (
                f"ImplicitModel, {ball!r}",
                ImplicitModel(4, 3, 8, constraint=ball, activation=activations.tanh, rng=0),
                U,
            )
        )
    found.append(("ImplicitModel, rank 2", ImplicitModel(4, 3, 8, rank=2, rng=0), U))
    found.append(("ImplicitRNN", pyidl.ImplicitRNN(4, 3, 5, 6, rng=0), S))
    found.append(
        (
            "Bidirectional",
            pyidl.Bidirectional(
                *(pyidl.ImplicitRNN(4, 2, 3, 4, return_sequences=True, rng=i) for i in (0, 1))
            ),
            S,
        )
    )
    for attention in (pyidl.KernelAttention(), pyidl.BoundedSoftmax(), pyidl.Softmax()):
        head = pyidl.ImplicitAttentionHead(
            4, 3, num_heads=2, attention=attention, block_size=6, rng=0
        )
        found.append((f"ImplicitAttentionHead, {type(attention).__name__}", head, S))
    block = pyidl.ImplicitTransformerBlock(4, 2, block_size=6, rng=0)
    found += [
        ("LayerNorm", pyidl.LayerNorm(4), S),
        ("Dropout", pyidl.Dropout(0.3), S),
        ("PositionEmbedding", pyidl.PositionEmbedding(6, 4, rng=0), S),
        (
            "Embedding and ImplicitTransformerBlock",
            pyidl.Sequential(pyidl.Embedding(7, 4, rng=0), block),
            tokens,
        ),
    ]
    return found
