"""What stopping early changes: the command line with it, and with all epochs.

    python tests/benchmarks/early_stopping.py

Scores of the held-out rows on five tables of scikit-learn, for seeds from 0 on, each with the same
held-out rows. Nothing is timed, so the machine need not be quiet.
"""

import contextlib
import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from sklearn import datasets

from pyidl.cli import main

TABLES = {"iris": 10, "wine": 10, "breast_cancer": 10, "digits": 4, "diabetes": 10}
"""How many seeds."""


def written(name, folder):
    """A table of scikit-learn as a file, and the options that it needs."""
    found = getattr(datasets, f"load_{name}")()
    path = folder / f"{name}.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*found.feature_names, "target"])
        rows = zip(found.data.tolist(), found.target.tolist(), strict=True)
        table.writerows([*map(repr, row), repr(target)] for row, target in rows)
    task = "regression" if name == "diabetes" else "classification"
    return ["train", str(path), "--target", "target", "--task", task, "--force", "--quiet"]


def score(train, *options):
    """The score of the held-out rows."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main([*train, *options]) == 0
    return float(text.getvalue().split("held-out rows: ")[1].split()[0])


def run():
    """Print a row for each table."""
    print("| | stopped early | all epochs | difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, seeds in TABLES.items():
            train = written(name, Path(folder))
            early, late = (
                np.array([score(train, "--seed", str(seed), *more) for seed in range(seeds)])
                for more in ((), ("--validation-share", "0"))
            )
            gain = early - late
            error = gain.std(ddof=1) / np.sqrt(seeds)
            print(
                f"| {name} | {early.mean():.4f} | {late.mean():.4f} | "
                f"{gain.mean():+.4f} ± {error:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    run()
