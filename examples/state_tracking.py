"""Who keeps track of a state for longer than it was trained to?

``python examples/state_tracking.py [seeds [tasks]]``

k cups are moved, and after every move a network says which cup stands where. Two that swap or
rest: parity. Five that go round: counting mod 5. Three, with all moves: products of S3. Five
that rest, go round by one or swap the first two: products of S5.
Trained on 4 to 32 moves, tested on up to 512. Beside the implicit network stand two with as
many parameters and no fixed point: the same with A = 0, and a tanh RNN, A = 0 and D = 0.
"""

import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

import pyidl
from pyidl import losses, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEEDS, NAMES = int((sys.argv[1:] or [5])[0]), sys.argv[2:]
OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
TRAINED, LENGTHS = 32, (8, 32, 128, 512)
ROUND = [[(i + s) % 5 for i in range(5)] for s in range(5)]
TASKS = {  # the moves; r and n of the implicit network; steps of training
    "parity": ([[0, 1], [1, 0]], 16, 24, 200),
    "counting mod 5": (ROUND, 24, 48, 300),
    "S3": ([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], 24, 48, 300),
    "S5": ([ROUND[0], ROUND[1], [1, 0, 2, 3, 4]], 40, 96, 1000),
}
CONTENDERS = {"implicit RNN": "o-", "the same, A = 0": "s--", "tanh RNN": "^:"}
RATE = 1e-2  # for all the best of three: tests/benchmarks/tracking.py --tune


def sequences(moves, m, T, rng):
    """Moves, one-hot (m, T, p), and after each of them the cup at every place, (m, T, k)."""
    told, cups = rng.integers(0, len(moves), (m, T)), [np.tile(np.arange(len(moves[0])), (m, 1))]
    for now in told.T:
        cups.append(np.take_along_axis(cups[-1], np.array(moves)[now], axis=1))
    return np.eye(len(moves), dtype="f4")[told], np.stack(cups[1:], axis=1)


def network(name, p, k, r, n, seed):
    """Without A, and for tanh without D, wider by as many parameters."""
    if name == "implicit RNN":
        return pyidl.ImplicitRNN(p, k * k, r, n, return_sequences=True, rng=seed)
    tanh = name == "tanh RNN"
    n += (n * n + tanh * r * (p + r)) // (p + 2 * r + 1)
    return pyidl.ImplicitRNN(
        p, k * k, r, n, return_sequences=True, activation="tanh" if tanh else "relu",
        feedthrough=not tanh, pattern=pyidl.Pattern(A=np.zeros((n, n), bool)), rng=seed,
    )  # fmt: skip


def train(model, moves, steps, rng):
    optimizer = optim.Adam(optim.Cosine(RATE, steps=steps, warmup=20), clip_norm=1.0)
    for step in range(steps):
        T = TRAINED if 2 * step >= steps else (4, 8, 16)[6 * step // steps]
        U, cups = sequences(moves, 64, T, rng)
        Y, pull = model(U, on_fail="warn")
        _, dY = losses.cross_entropy(Y.reshape(*cups.shape, -1), cups)
        grads = pull(dY.reshape(Y.shape), inputs=False)[1]
        model.params = model.project(optimizer.step(model.params, grads))


def right(model, moves, T, seed):
    """The share of sequences after whose last move every cup is where the network says."""
    U, cups = sequences(moves, 400, T, np.random.default_rng(seed))
    Y, last = model.predict(U)[:, -1], cups[:, -1]
    return (Y.reshape(*last.shape, -1).argmax(axis=-1) == last).all(axis=-1).mean()


figure = plt.figure(figsize=(7, 5.5), layout="constrained")
print("task, contender, parameters" + "".join(f"{T:16d}" for T in LENGTHS) + "  seconds")
for i, name in enumerate(NAMES or TASKS, 1):
    axis = figure.add_subplot(2, 2, i, title=name, xlabel="moves", ylabel="share right")
    moves, r, n, steps = TASKS[name]
    for contender, line in CONTENDERS.items():
        shares, seconds = [], 0.0
        for seed in range(SEEDS):
            model = network(contender, len(moves), len(moves[0]), r, n, seed).with_tol((1e-4, 1e-3))
            began = time.process_time()
            train(model, moves, steps, np.random.default_rng(seed))
            seconds += (time.process_time() - began) / SEEDS
            shares.append([right(model.with_tol(1e-6), moves, T, 1000 + seed) for T in LENGTHS])
        free = sum(p.size for key, p in model.params.items() if key != "A" or p.any())
        columns = "".join(f"  {a.mean():.3f} +- {a.std():.3f}" for a in np.array(shares).T)
        print(f"{name:14s} {contender:14s} {free:6d} {columns} {seconds:7.1f}", flush=True)
        axis.semilogx(LENGTHS, np.mean(shares, axis=0), line, base=2)
        axis.fill_between(LENGTHS, *np.quantile(shares, (0, 1), axis=0), alpha=0.2)
    axis.axvline(TRAINED, color="0.5", lw=1)
    axis.set(ylim=(-0.03, 1.05), xticks=LENGTHS, xticklabels=LENGTHS)
figure.legend(axis.lines[:3], CONTENDERS, loc="outside lower center", ncols=3)
figure.suptitle(f"Trained on up to {TRAINED} moves (grey line); mean and range of {SEEDS} seeds")
figure.savefig(OUTPUT / "state_tracking.png", dpi=100)
