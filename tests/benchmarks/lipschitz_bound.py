"""Accuracy against gamma, of models in `LipschitzBound`.

    python tests/benchmarks/lipschitz_bound.py digits [--seeds 5] [--epochs 25]
    python tests/benchmarks/lipschitz_bound.py mnist [--seeds 2] [--epochs 25]

float32, n = 50, batches of 64, margin 0.1. Digits of scikit-learn: 1,437 to learn from, 360 left
out. mnist: the 5,000 digits of `examples/certified_mnist.py`, 4,000 to learn from, 1,000 left out.
Drawn by the seed. A row has the accuracy on what is left out; the largest norm of a Jacobian at
100 images left out; and the share of images that are right, and proven to stay so under every
change of a Euclidean length of 0.1, and of 0.3. Rates were chosen on seed 10. Last comes
`InfNorm(0.95)`, of which no gamma is proven.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import metrics, optim
from pyidl.wellposed import InfNorm, LipschitzBound

GAMMAS, CHANGES, WIDTH, BATCH = (0.5, 1.0, 2.0, 5.0, 10.0), (0.1, 0.3), 50, 64


def load(name):
    if name == "digits":
        U, t = load_digits(return_X_y=True)
        return (U / 16).astype(np.float32), t, 360
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from certified_mnist import digits

    return *digits(None), 1000


def trained(constraint, U, t, seed, epochs, rate):
    model = pyidl.ImplicitModel(U.shape[1], 10, WIDTH, constraint=constraint, rng=seed)
    steps = epochs * -(-len(U) // BATCH)
    fall = optim.Ramp(rate, rate / 5, steps=max(1, 3 * steps // 10))
    optimizer = optim.Adam(lambda k: fall(max(0, k - 7 * steps // 10)))
    options = {"epochs": epochs, "batch_size": BATCH, "rng": seed, "verbose": 0}
    pyidl.fit(model, (U, t), loss="cross_entropy", optimizer=optimizer, **options)
    return model


def attained(model, U):
    """The largest ``|dy/du|_2`` at these inputs."""
    Y, pull = model(U)
    rows = [pull(np.tile(e, (len(U), 1)))[0] for e in np.eye(Y.shape[1], dtype=Y.dtype)]
    return np.linalg.norm(np.stack(rows, axis=1), 2, axis=(1, 2)).max()


def kept(Y, t, gamma, change):
    """The share of images that are right, and stay so for every change of this size."""
    own = Y[np.arange(len(t)), t]
    rest = np.where(np.eye(Y.shape[1], dtype=bool)[t], -np.inf, Y).max(axis=1)
    return np.mean(own - rest > 2**0.5 * gamma * change)


def row(name, constraint, given, U, t, left_out):
    found = []
    for seed in range(given.first, given.first + given.seeds):
        U0, V, t0, s = train_test_split(U, t, test_size=left_out, random_state=seed)
        model = trained(constraint, U0, t0, seed, given.epochs, given.rate)
        Y = model.predict(V)
        gamma = getattr(constraint, "gamma", np.inf)
        if gamma < np.inf:
            assert constraint.contains(model.params, model.activation)
        shares = [kept(Y, s, gamma, change) for change in CHANGES]
        found.append([metrics.accuracy(Y, s), attained(model, V[:100]), *shares])
    mean = np.mean(found, axis=0)
    error = np.std(found, axis=0, ddof=1)[0] / len(found) ** 0.5 if len(found) > 1 else np.nan
    numbers = f"{mean[0]:.3f} +- {error:.3f} | " + " | ".join(f"{x:.3g}" for x in mean[1:])
    print(f"| {name} | {numbers} |", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("data", choices=["digits", "mnist"])
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--epochs", type=int, default=25)
    options.add_argument("--rate", type=float, default=1e-2)
    options.add_argument("--margin", type=float, default=0.1)
    given = options.parse_args()
    data = load(given.data)
    print("| gamma | accuracy | attained |", *(f"{c} |" for c in CHANGES))
    for gamma in GAMMAS:
        row(f"{gamma:g}", LipschitzBound(gamma, given.margin), given, *data)
    row("InfNorm(0.95)", InfNorm(0.95), given, *data)


if __name__ == "__main__":
    main()
