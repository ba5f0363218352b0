"""Converted perceptrons beside plain NumPy: ``python tests/benchmarks/composition.py``.

Perceptrons of scikit-learn are trained on its digits (widths 64-128-128-10) and on the
first 6,000 images of fashion-MNIST (784-256-256-10, if Debian's package is there) for a
few epochs, and become implicit models. All contenders predict the same test images:

    NumPy        ``maximum(X @ W + b, 0)``, layer by layer: the floor
    layers       the same layers as a `Sequential` of pyidl
    model        the implicit model, with the default solvers

Run it once as it is and once with OPENBLAS_NUM_THREADS=1.
"""

import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from timing import alternate, report

from pyidl import Sequential
from pyidl.compose.perceptron import layers_of_perceptron
from pyidl.interop.sklearn import to_implicit

BATCHES = (1, 64, 1024)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def digits():
    U, t = load_digits(return_X_y=True)
    return (U / 16).astype(np.float32), t, (128, 128)


def fashion():
    import gzip

    def read(name, offset):
        whole = gzip.decompress((FASHION / name).read_bytes())
        return np.frombuffer(whole, np.uint8, offset=offset)

    U = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 784)[:6000]
    t = read("train-labels-idx1-ubyte.gz", 8)[:6000]
    return (U / 255).astype(np.float32), t, (256, 256)


def floor(network, U):
    X = U
    for W, b in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        X = np.maximum(X @ W + b, 0)
    return X @ network.coefs_[-1] + network.intercepts_[-1]


def compare(title, U, t, hidden, rounds):
    network = MLPClassifier(hidden, max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(U, t)
    model, layers = to_implicit(network), Sequential(*layers_of_perceptron(network))
    wanted = floor(network, U)
    apart = np.abs(model.predict(U) - wanted).max() / np.abs(wanted).max()
    print(f"\n{title}: {model.dtype}, {model.hidden_dim} states, apart {apart:.0e}")
    for m in BATCHES:
        batch = np.ascontiguousarray(np.resize(U, (m, U.shape[1])))
        runs = {
            "NumPy": lambda batch=batch: floor(network, batch),
            "layers": lambda batch=batch: layers.predict(batch),
            "model": lambda batch=batch: model.predict(batch),
        }
        report(f"{m} samples", alternate(runs, rounds, calls=max(5, 200 // m)), "NumPy")


def main(rounds=15):
    compare("digits", *digits(), rounds)
    if FASHION.exists():
        compare("fashion-MNIST", *fashion(), rounds)


if __name__ == "__main__":
    main()
