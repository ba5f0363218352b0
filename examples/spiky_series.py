"""The spiky series: a noisy sine with bursts, one step ahead, by an implicit RNN.

Beside two baselines that it has to beat.

The recipe is that of Decugis et al., "The extrapolation power of implicit models",
IJCAI 2024: 10,000 points, spikiness 7, scaled to [-1, 1], windows of 60 (59 seen, one
foretold), the first 60 % for training.
"""

import time
from pathlib import Path

import matplotlib
import numpy as np

import pyidl
from pyidl import metrics, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
LEVEL, WINDOW, TRAIN, EPOCHS, BATCH = 7, 60, 5964, 12, 256


def spiky_series(rng):
    """A sine with noise of spread 0.05 L, and stretches of a wilder one.

    In 20 + L random stretches of 100 + L points, L / 2 times four sines of other
    frequencies.
    """
    x = np.linspace(0, 100, 10_000)
    y = np.sin(x) + rng.normal(0, 0.05 * LEVEL, x.size)
    for start in rng.integers(0, x.size - (100 + LEVEL), 20 + LEVEL):
        at = slice(start, start + 100 + LEVEL)
        y[at] = LEVEL / 2 * sum(np.sin(k * x[at]) for k in (2, 23, 78, 100))
    return 2 * (y - y.min()) / (y.max() - y.min()) - 1


def ridge(U, t, alpha=1.0):
    """Weights and intercept that minimise ``|U w + c - t|^2 + alpha |w|^2``."""
    mean, level = U.mean(axis=0), t.mean(axis=0)
    w = np.linalg.solve(
        (U - mean).T @ (U - mean) + alpha * np.eye(U.shape[1]), (U - mean).T @ (t - level)
    )
    return w, level - mean @ w


windows = np.lib.stride_tricks.sliding_window_view(spiky_series(np.random.default_rng(0)), WINDOW)[
    : 10_000 - WINDOW
]
U, t = windows[:, :-1], windows[:, -1:]
U_train, t_train, U_test, t_test = U[:TRAIN], t[:TRAIN], U[TRAIN:], t[TRAIN:]
w, c = ridge(U_train, t_train)
baselines = {"ridge regression on the window": U_test @ w + c, "the last value": U_test[:, -1:]}

model = pyidl.ImplicitRNN(1, 1, 20, 20, constraint=pyidl.InfNorm(0.5), rng=0)
began = time.perf_counter()
history = pyidl.fit(
    model,
    U_train[:, :, None],
    t_train,
    loss="mse",
    optimizer=optim.Adam(optim.Cosine(1e-2, steps=EPOCHS * -(-TRAIN // BATCH)), clip_norm=1.0),
    epochs=EPOCHS,
    batch_size=BATCH,
    rng=0,
)
print(model)
print(f"trained in {time.perf_counter() - began:.0f} s, {history['steps'][-1]:.1f} steps a solve")
print(f"each step is {model.certificate()}")
print(f"through time: {model.recurrence()}")

foretold = {
    "implicit RNN": pyidl.to_numpy(model.predict(U_test[:, :, None], batch_size=1000))
} | baselines
print(f"\n{'':32s}{'R2':>8s}{'MAE':>8s}{'MAPE':>8s}")
for name, y in foretold.items():
    error = np.abs(y - t_test)
    print(
        f"{name:32s}{metrics.r2(y, t_test):8.3f}{error.mean():8.4f}"
        f"{np.mean(error / np.abs(t_test)):8.2f}"
    )
print(
    "(MAPE only because the paper reports it: some targets are nearly 0, "
    "and a single one of them can decide it.)"
)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(13, 4), width_ratios=[2.4, 1], layout="constrained"
)
burst = int(np.argmax(np.abs(t_test)))
shown = slice(max(0, burst - 160), burst + 160)
steps = np.arange(len(t_test))[shown]
left.plot(steps, t_test[shown], "k", lw=1, label="truth")
left.plot(steps, foretold["implicit RNN"][shown], "C1", lw=1, label="implicit RNN, one step ahead")
left.plot(steps, foretold["the last value"][shown], "C0:", lw=0.8, label="the last value")
left.set(
    xlabel="test window", ylabel="scaled series", title="a burst, and the noisy sine around it"
)
left.legend(loc="upper right")
right.plot(t_test, foretold["ridge regression on the window"], ".", ms=2, label="ridge")
right.plot(t_test, foretold["implicit RNN"], ".", ms=2, label="implicit RNN")
right.plot([-1, 1], [-1, 1], "k", lw=0.8)
right.set(
    xlabel="truth",
    ylabel="prediction",
    title="all 3,976 test windows",
    aspect="equal",
    xlim=(-1.05, 1.05),
    ylim=(-1.05, 1.05),
)
right.legend(loc="upper left", markerscale=5)
figure.savefig(OUTPUT / "spiky_series.png", dpi=100)
