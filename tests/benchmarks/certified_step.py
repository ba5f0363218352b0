"""What a step of certified training costs, beside a plain one.

    python tests/benchmarks/certified_step.py

The digits of scikit-learn, batches of 64, float32, MatrixMeasure(0.95), the tolerances of `fit`.
A step is forward, loss and backward, of a model that has been trained: plainly for the plain step,
for eps 0.08 for the certified one. Also shown: the certified step on the plainly trained model,
whose boxes are wide, and the forward steps a sample of both solves. Medians of rounds in which all
take their turns. Last come bounds of new models of several widths, in ms a sample.
"""

import statistics
import time

import numpy as np
from sklearn.datasets import load_digits

import pyidl
from pyidl import losses, optim, robustness, wellposed

EPS, TOL, BATCH, EPOCHS, ROUNDS = 0.08, (1e-4, 1e-3), 64, 10, 60


def data():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.data[order] / 16).astype(np.float32), digits.target[order]


def trained(n, U, labels, robust):
    constraint = wellposed.MatrixMeasure(0.95)
    model = pyidl.ImplicitModel(64, 10, n, constraint=constraint, rng=0)
    half = EPOCHS * -(-len(U) // BATCH) // 2
    options = {"optimizer": optim.Adam(5e-3), "epochs": EPOCHS, "rng": 0, "verbose": 0}
    if robust:
        layer = pyidl.WorstCase(model, optim.Ramp(0.0, EPS, half), clip=(0, 1))
        price = losses.certified(optim.Ramp(0.0, 0.5, half))
        pyidl.fit(layer, ((U, labels), labels), loss=price, **options)
    else:
        pyidl.fit(model, U, labels, loss="cross_entropy", **options)
    return model.with_tol(TOL)


def step(layer, inputs, labels, loss):
    Y, pull = layer(*inputs)
    _, dY = loss(Y, labels)
    pull(dY, inputs=False)
    return [solution.n_iter.mean() for solution in pull.solutions]


def bounded(inputs, n, m):
    """Milliseconds a sample, by boxes and by one and five rounds of affine forms."""
    constraint = wellposed.MatrixMeasure(0.95)
    model = pyidl.ImplicitModel(inputs, 10, n, constraint=constraint, rng=0)
    U = np.random.default_rng(0).random((m, inputs), dtype=np.float32)
    ways = {"method": "box"}, {"rounds": 1}, {"rounds": 5}
    times = [[] for _ in ways]
    for _ in range(5):
        for found, options in zip(times, ways, strict=True):
            began = time.perf_counter()
            robustness.bounds(model, U - 0.01, U + 0.01, **options)
            found.append(time.perf_counter() - began)
    return [1e3 * statistics.median(found) / m for found in times]


def main():
    U, labels = data()
    for n in (50, 100):
        plain, robust = (trained(n, U, labels, robust) for robust in (False, True))
        half = losses.certified(0.5)
        wide, narrow = (pyidl.WorstCase(m, EPS, clip=(0, 1)) for m in (plain, robust))
        steps = {
            "plain": lambda u, t, model=plain: step(model, (u,), t, losses.cross_entropy),
            "plain, robust model": lambda u, t, m=robust: step(m, (u,), t, losses.cross_entropy),
            "certified": lambda u, t, layer=narrow: step(layer, (u, t), t, half),
            "certified, plain model": lambda u, t, layer=wide: step(layer, (u, t), t, half),
        }
        times, counts = ({name: [] for name in steps} for _ in range(2))
        for i in range(ROUNDS):
            rows = np.random.default_rng(i).integers(0, len(U), BATCH)
            u, t = U[rows], labels[rows]
            for name, one in steps.items():
                began = time.perf_counter()
                counts[name].append(one(u, t))
                times[name].append(time.perf_counter() - began)
        base = statistics.median(times["plain"])
        for name, found in times.items():
            seconds, mean = statistics.median(found), np.mean(counts[name], axis=0).round(1)
            print(f"n {n:3d}  {name:24s} {1e3 * seconds:.2f} ms  {seconds / base:.2f}", mean)
    for inputs, n, m in ((64, 50, 256), (784, 100, 64), (784, 300, 16)):
        print(f"p {inputs}, n {n}: " + ", ".join(f"{ms:.2f}" for ms in bounded(inputs, n, m)))


if __name__ == "__main__":
    main()
