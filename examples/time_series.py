"""Three sets of real series, beside logistic regression on the numbers of a series.

``python examples/time_series.py [folder [epochs]]``

=================  ==================================================================
GunPoint           is a gun drawn, or a finger pointed? (Ratanamahatana, Keogh 2004)
ItalyPowerDemand   winter or summer, from the demand of a day? (Keogh et al. 2006)
JapaneseVowels     which of nine speakers says /ae/? (Kudo, Toyama, Shimbo 1999)
=================  ==================================================================

They come with the package aeon, ``pip install --no-deps aeon``; its files are read, the
package itself is not imported. Or give a folder with GunPoint/GunPoint_TRAIN.ts and so
on. The setting is one for all but for width and epochs, chosen by cross-validation on
the series to learn from; that a new network should remember for as long as a series is
was learnt on GunPoint, from both of its parts. Whatever comes out after the last epoch
is taken.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

import pyidl
from pyidl import metrics, optim

SETS = {"GunPoint": (16, 100), "ItalyPowerDemand": (16, 100), "JapaneseVowels": (32, 50)}
"""Their width and epochs."""
BATCH, SEEDS = 10, 3


def folder():
    """The folder given, or that of aeon."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    spec = importlib.util.find_spec("aeon")
    if spec is None:
        sys.exit(
            "the data come with the package aeon: pip install --no-deps aeon, "
            "or give a folder with the folders of the data sets"
        )
    return Path(spec.origin).parent / "datasets" / "data"


def read_ts(path):
    """The series, each (steps, channels), and their labels.

    A line holds the channels, a colon between them, and the label at the end.
    """
    if not path.exists():
        sys.exit(f"{path} is not there; it is one of the files of the data set")
    lines = path.read_text().split("@data", 1)[1].split()
    rows = [line.rsplit(":", 1) for line in lines]
    series = [[channel.split(",") for channel in values.split(":")] for values, _ in rows]
    return [np.array(s, float).T for s in series], np.array([label for _, label in rows])


def read(name):
    """``(U, lengths, labels)`` to learn from, and to be recognised.

    Channels have mean 0 and variance 1 over all that is learnt from. Beyond the end of
    a series there are zeros, which the network does not compute.
    """
    pair = [read_ts(folder() / name / f"{name}_{kind}.ts") for kind in ("TRAIN", "TEST")]
    heard = np.concatenate(pair[0][0])
    mean, spread = heard.mean(axis=0), heard.std(axis=0)
    steps = max(len(s) for series, _ in pair for s in series)
    for series, labels in pair:
        U = np.zeros((len(series), steps, len(mean)))
        for place, s in zip(U, series, strict=True):
            place[: len(s)] = (s - mean) / spread
        classes = np.unique(pair[0][1])
        yield U, np.array([len(s) for s in series]), np.searchsorted(classes, labels)


def learn(train, test, width, epochs, seed):
    """A trained network, and its accuracy on series that it has not seen."""
    (U, lengths, labels), (V, its_lengths, truth) = train, test
    p, q, T = U.shape[2], 1 + int(labels.max()), U.shape[1]
    model = pyidl.ImplicitRNN(p, q, width, width, pool="max", timescale=T, rng=seed)
    rate = optim.Cosine(5e-3, steps=epochs * -(-len(U) // BATCH))
    pyidl.fit(
        model,
        ((U, lengths), labels),
        loss="cross_entropy",
        optimizer=optim.AdamW(rate, weight_decay=0.1, clip_norm=1.0),
        epochs=epochs,
        batch_size=BATCH,
        rng=seed,
        verbose=False,
    )
    return model, metrics.accuracy(model.predict(V, its_lengths), truth)


def main():
    """Train on each set, with several seeds; print the table."""
    print("| | series | steps | logistic regression | implicit RNN | seeds | seconds a seed |")
    print("|---|---|---|---|---|---|---|")
    for name, (width, epochs) in SETS.items():
        epochs = int(sys.argv[2]) if len(sys.argv) > 2 else epochs
        train, test = read(name)
        (U, lengths, labels), (V, _, truth) = train, test
        linear = LogisticRegression(max_iter=10_000).fit(U.reshape(len(U), -1), labels)
        known, began = linear.score(V.reshape(len(V), -1), truth), time.perf_counter()
        learnt = [learn(train, test, width, epochs, seed) for seed in range(SEEDS)]
        seconds, found = (time.perf_counter() - began) / SEEDS, [a for _, a in learnt]
        steps = f"{lengths.min()} to {lengths.max()}" if np.ptp(lengths) else lengths[0]
        print(
            f"| {name} | {len(U)}, {len(V)} | {steps} | {known:.3f} | {np.mean(found):.3f} | "
            f"{', '.join(f'{a:.3f}' for a in found)} | {seconds:.0f} |",
            flush=True,
        )
    model, inputs = learnt[-1][0].to("cpu"), (V[:1, k] for k in range(int(test[1][0])))
    said = [int(y.argmax()) + 1 for y, _ in model.cell.stream(inputs)]
    print(f"\nThe first of the last set, {truth[0] + 1}, as it comes in, step by step: {said}")
    print(f"Each step is {model.certificate()}.")


if __name__ == "__main__":
    main()
