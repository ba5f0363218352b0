"""Who says /ae/? 640 utterances of nine speakers, of 7 to 29 steps each.

``python examples/japanese_vowels.py [folder]``

The data (Kudo, Toyama, Shimbo 1999; UCI archive) come with the package aeon, ``pip
install --no-deps aeon``; its files are read, the package itself is not imported. Or
give a folder with JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts. The network reads
each utterance in one direction; what lies beyond its length is not computed.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np

import pyidl
from pyidl import losses, metrics, optim, testing

EPOCHS, BATCH = 60, 30


def folder():
    """The folder given, or that of aeon."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    spec = importlib.util.find_spec("aeon")
    if spec is None:
        sys.exit(
            "the data come with the package aeon: pip install --no-deps aeon, "
            "or give a folder with the two .ts files"
        )
    return Path(spec.origin).parent / "datasets" / "data" / "JapaneseVowels"


def read_ts(path):
    """``(U, lengths, labels)`` of a file.

    A line holds the channels of a sequence, a colon between them, and its label at the
    end.
    """
    if not path.exists():
        sys.exit(f"{path} is not there; it is one of the two files of the data set")
    lines = path.read_text().split("@data", 1)[1].split()
    rows = [line.rsplit(":", 1) for line in lines]
    sequences = [
        np.array([channel.split(",") for channel in values.split(":")], float).T
        for values, _ in rows
    ]
    lengths = np.array([len(s) for s in sequences])
    U = np.zeros((len(rows), 29, sequences[0].shape[1]))
    for place, s in zip(U, sequences, strict=True):
        place[: len(s)] = s
    return U, lengths, np.array([int(label) - 1 for _, label in rows])


def main():
    """Train, certify, check, report."""
    (U, lengths, labels), (U_test, lengths_test, labels_test) = (
        read_ts(folder() / f"JapaneseVowels_{kind}.ts") for kind in ("TRAIN", "TEST")
    )
    print(
        f"{len(U)} utterances to learn from, {len(U_test)} to be recognised; "
        f"{lengths.min()} to {lengths.max()} steps"
    )
    heard = U[np.arange(U.shape[1]) < lengths[:, None]]
    mean, spread = heard.mean(axis=0), heard.std(axis=0)
    U, U_test = (U - mean) / spread, (U_test - mean) / spread

    model = pyidl.ImplicitRNN(12, 9, 32, 32, constraint=pyidl.InfNorm(0.5), rng=0)
    began = time.perf_counter()
    pyidl.fit(
        model,
        ((U, lengths), labels),
        loss=losses.cross_entropy,
        optimizer=optim.AdamW(
            optim.Cosine(5e-3, steps=EPOCHS * -(-len(U) // BATCH)), weight_decay=0.1, clip_norm=1.0
        ),
        epochs=EPOCHS,
        batch_size=BATCH,
        validation=((U_test, lengths_test), labels_test),
        metrics=[metrics.accuracy],
        rng=0,
    )
    print(model)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    print(f"each step is {model.certificate()}")
    error = testing.check_pullback(model, U_test[:4, :10]).max_error
    print(f"worst gradient error against central differences (float64): {error:.1e}")
    print(
        f"test accuracy: {metrics.accuracy(model.predict(U_test, lengths_test), labels_test):.3f}"
    )
    cell, said = model.cell, []
    for y, _ in cell.stream(U_test[:1, k] for k in range(int(lengths_test[0]))):
        said.append(int(y.argmax()) + 1)
    print(
        f"the first test utterance is by speaker {labels_test[0] + 1}; heard step by step: {said}"
    )


if __name__ == "__main__":
    main()
