"""Real series, classified: pyidl beside GRU and LSTM of torch.

    python tests/benchmarks/series.py                          all sets, three seeds
    python tests/benchmarks/series.py GunPoint --seeds 0 1
    python tests/benchmarks/series.py --pool last --epochs 10

The sets are in the package aeon (``pip install --no-deps aeon``); its `.ts` files are
read, it is not imported. Every network has the same width, epochs, batches, pooling and
clipping, Adam at the best of its own step sizes in `STEPS` on a quarter of the training
set held out (seed 0), and channels standardised on the training set.
"""

import argparse
import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np

import pyidl
from pyidl import ImplicitRNN, losses, optim


def locate(name, part):
    """The file of a set that the package aeon ships, TRAIN or TEST; None without aeon."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / name / f"{name}_{part}.ts"
    return path if path.exists() else None


def read(path):
    """``(sequences, labels)``: arrays (T_i, p), and integers from the names of classes."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if line.lower() == "@data")
    names = next(line.split()[2:] for line in lines if line.lower().startswith("@classlabel"))
    sequences, labels = [], []
    for line in filter(None, lines[at + 1 :]):
        *channels, label = line.split(":")
        sequences.append(np.array([c.split(",") for c in channels], dtype=float).T)
        labels.append(names.index(label.strip()))
    return sequences, np.array(labels)
