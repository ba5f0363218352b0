"""Learnt on (-1, 1), asked up to 100,000: ``python examples/extrapolation.py [seeds [epochs]]``.

Sums, differences, copies and averages are linear in the input, a maximum is not. All are
homogeneous: f(t u) = t f(u) for t > 0. So is a model without biases whose phi is, such as
ReLU. Then its error grows as t does: log10 of its mean square by exactly 2 for each
factor of 10, no less and no more. What differs is how small the error is at first, and
for linear tasks least squares on the inputs say how small it can be.

Tasks: Decugis et al., "The extrapolation power of implicit models", IJCAI 2024.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import pyidl
from pyidl import optim
from pyidl.training import readout

OUTPUT = Path(__file__).parent / "output"
P, N, BATCH, RATES = 50, 20, 200, (1e-2, 3e-2, 0.1, 0.3, 1.0)
SAMPLES = {"train": 2_000, "validation": 1_000, "test": 1_000}
SCALES = np.logspace(0, 5, 6)
TASKS = {
    "sum": lambda U: U[:, 5:30].sum(axis=1) + U[:, 20:45].sum(axis=1),
    "difference": lambda U: U[:, 5:30].sum(axis=1) - U[:, 20:45].sum(axis=1),
    "copy": lambda U: U[:, 7],
    "average": lambda U: U[:, 10:20].mean(axis=1),
    "maximum": lambda U: U[:, :10].max(axis=1),
}


def implicit(seed, feedthrough=True):
    """1,470 parameters with D, 1,420 without."""
    options = {"bias": False, "feedthrough": feedthrough, "dtype": "float64"}
    return pyidl.ImplicitModel(P, 1, N, rng=seed, **options)


def perceptron(seed, phi, bias):
    """1,420 parameters, 1,461 with biases."""
    rng, options = np.random.default_rng(seed), {"bias": bias, "dtype": "float64"}
    ends = ((P, N), (N, N), (N, 1))
    first, second, last = (pyidl.Linear(a, b, rng=rng, **options) for a, b in ends)
    return pyidl.Sequential(first, phi, second, phi, last)


MODELS = {
    "implicit, Adam": implicit,
    "implicit without D, Adam": lambda seed: implicit(seed, feedthrough=False),
    "ReLU perceptron, Adam": lambda seed: perceptron(seed, "relu", bias=False),
    "tanh perceptron, Adam": lambda seed: perceptron(seed, "tanh", bias=True),
}


def trained(model, seed, rate, data, epochs):
    """The model, and its error on the validation set."""
    adam = optim.Adam(optim.Cosine(rate, steps=epochs * SAMPLES["train"] // BATCH), clip_norm=1.0)
    options = {"epochs": epochs, "batch_size": BATCH, "rng": seed, "verbose": 0}
    pyidl.fit(model, data["train"], loss="mse", optimizer=adam, **options)
    U, T = data["validation"]
    return model, float(np.mean((model.predict(U) - T) ** 2))


def errors(predict, data):
    """log10 of the mean squares of the error, at every scale."""
    U, T = data["test"]
    return [float(np.log10(np.mean((predict(s * U) - s * T) ** 2))) for s in SCALES.tolist()]


def run(job):
    """The errors of every contender, for every rate, and its validation error."""
    task, seed, epochs = job
    rng = np.random.default_rng(seed)
    draws = {name: rng.uniform(-1, 1, (m, P)) for name, m in SAMPLES.items()}
    data = {name: (U, TASKS[task](U)[:, None]) for name, U in draws.items()}
    W = np.linalg.lstsq(*data["train"], rcond=None)[0]
    found = {"least squares on the inputs": [(errors(lambda U: U @ W, data), 0.0)]}
    for name, feedthrough in (("random implicit", True), ("random implicit without D", False)):
        model = implicit(seed, feedthrough)
        readout(model, *data["train"])
        found[f"{name}, read-out"] = [(errors(model.predict, data), 0.0)]
    for name, make in MODELS.items():
        every = [trained(make(seed), seed, rate, data, epochs) for rate in RATES]
        found[name] = [(errors(model.predict, data), value) for model, value in every]
    return found


def of_logarithms(seed):
    """The relative error at scale 1e5 of u_3 u_7 / u_9, linear in the logarithms of positive u."""
    U, V = np.random.default_rng(seed).uniform(0.01, 1, (2, SAMPLES["train"], P))
    W = np.linalg.lstsq(np.log(U), np.log(U[:, 3] * U[:, 7] / U[:, 9]), rcond=None)[0]
    V = 1e5 * V
    return np.max(np.abs(np.exp(np.log(V) @ W) / (V[:, 3] * V[:, 7] / V[:, 9]) - 1))


def main(seeds=5, epochs=60):
    """The table, each with the rate that is best in the mean over seeds, and the figure."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels, lines = dict(zip(("sum", "maximum"), figure.subplots(1, 2), strict=True)), {}
    for task in TASKS:
        with ProcessPoolExecutor(2) as pool:
            runs = list(pool.map(run, [(task, seed, epochs) for seed in range(seeds)]))
        print(f"\n{task:36s}{'scale 1':>16s}{'scale 1e5':>18s}   slope  rate")
        for name in runs[0]:
            best = np.argmin(np.mean([[v for _, v in each[name]] for each in runs], axis=0))
            all_seeds = np.array([each[name][best][0] for each in runs])
            mean, spread = all_seeds.mean(axis=0), all_seeds.std(axis=0)
            ends = "  ".join(f"{mean[i]:7.2f} +- {spread[i]:4.2f}" for i in (0, -1))
            rate = f"  {RATES[best]:g}" if name in MODELS else ""
            print(f"{name:36s}{ends}  {(mean[-1] - mean[0]) / 5:6.3f}{rate}")
            if task in panels:  # divided by the square of the scale: a slope of 2 lies flat
                flat = mean - 2 * np.log10(SCALES)
                ax = panels[task]
                lines[name] = ax.errorbar(SCALES, flat, spread, marker=".", capsize=2)
    worst = max(of_logarithms(seed) for seed in range(seeds))
    print(f"\nproduct and quotient, least squares on logarithms: relative error {worst:.0e}")
    for title, ax in panels.items():
        ax.set(xscale="log", xlabel="scale of the inputs", title=title)
        ax.set_ylabel("log10 (mean square error / scale²)")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / "extrapolation.png", dpi=120)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
