"""Digits under every constraint, with one recipe.

Accuracy, steps per solve, time, and what is certified.
"""

import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import losses, metrics, optim, wellposed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
SEEDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)

MODELS = {  # constraint and rank
    "InfNorm(0.9)": (wellposed.InfNorm(0.9), None),
    "PerronFrobenius(0.9)": (wellposed.PerronFrobenius(0.9), None),
    "SpectralNorm(0.9)": (wellposed.SpectralNorm(0.9), None),
    "MatrixMeasure(0.9)": (wellposed.MatrixMeasure(0.9), None),
    "Monotone(0.1)": (wellposed.Monotone(0.1), None),
    "StrictlyTriangular()": (wellposed.StrictlyTriangular(), None),
    "BlockTriangular((50, 50), InfNorm(0.9))": (
        wellposed.BlockTriangular((50, 50), wellposed.InfNorm(0.9)),
        None,
    ),
    "Unconstrained()": (wellposed.Unconstrained(), None),
    "InfNorm(0.9), rank=10": (wellposed.InfNorm(0.9), 10),
    "SpectralNorm(0.9), rank=10": (wellposed.SpectralNorm(0.9), 10),
}
U, labels = load_digits(return_X_y=True)


def train(constraint, rank, seed):
    """A model and its figures; None if training fails.

    ``(test accuracy, forward steps, adjoint steps, seconds, share certified at its
    solutions)``.
    """
    U_train, U_test, t_train, t_test = train_test_split(
        U / 16, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    model = pyidl.ImplicitModel(64, 10, 100, constraint=constraint, rank=rank, rng=seed)
    began = time.perf_counter()
    optimizer = optim.AdamW(optim.Cosine(2e-2, steps=EPOCHS * 23), weight_decay=0.1)
    try:
        pyidl.fit(
            model,
            U_train,
            t_train,
            loss="cross_entropy",
            optimizer=optimizer,
            epochs=EPOCHS,
            rng=seed,
            verbose=0,
        )
    except pyidl.ConvergenceError:
        # more than a tenth of the samples of an epoch had no solution that was found
        return None
    seconds = time.perf_counter() - began
    Y, pull = model(U_test, on_fail="warn")
    adjoint = pull.solve(losses.cross_entropy(Y, t_test)[1])
    local = pyidl.certify_solution(model, U_test, pull.forward.value).proven.mean()
    return model, (
        metrics.accuracy(Y, t_test),
        pull.forward.n_iter.mean(),
        adjoint.n_iter.mean(),
        seconds,
        local,
    )


print(
    "| constraint | test accuracy | steps, forward | steps, adjoint | seconds of training | "
    "certified locally | certificate of the first |"
)
print("|---|---|---|---|---|---|---|", flush=True)
found = {}
for name, (constraint, rank) in MODELS.items():
    runs = [run for seed in range(SEEDS) if (run := train(constraint, rank, seed))]
    failed = f" ({SEEDS - len(runs)} of {SEEDS} runs failed)" if len(runs) < SEEDS else ""
    if not runs:
        print(f"| `{name}`{failed} | | | | | | |", flush=True)
        continue
    found[name] = np.array([numbers for _, numbers in runs], dtype=float)
    accuracy, forward, adjoint, seconds, local = found[name].mean(axis=0)
    c = runs[0][0].certificate()
    words = (
        f"{c.applies_to}, {c.contraction:.4g}: {c.reason}"
        if c.proven
        else f"not certified: {c.reason}"
    )
    words = words.replace("|", r"\|")
    print(
        f"| `{name}`{failed} | {accuracy:.3f} | {forward:.1f} | {adjoint:.1f} | {seconds:.1f} | "
        f"{local:.1%} | {words} |",
        flush=True,
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
for row, numbers in enumerate(found.values()):
    for axes, column in ((left, numbers[:, 0]), (right, numbers[:, 1])):
        axes.plot(column, np.full(len(column), row), "o", mfc="none", color="C0")
        axes.plot(column.mean(), row, "|", ms=16, mew=2, color="C1")
left.set(yticks=range(len(found)), yticklabels=list(found), ylabel="constraint")
left.set(xlabel="test accuracy")
left.invert_yaxis()
left.locator_params(axis="x", nbins=5)
right.set(xlabel="steps of a forward solve (mean)", xlim=(0, None))
for axes in (left, right):
    axes.grid(alpha=0.3)
meaning = [f"one of {SEEDS} splits and seeds", "their mean"]
figure.legend(right.lines[:2], meaning, loc="outside lower center", ncols=2)
figure.suptitle("Handwritten digits: implicit models of 100 states, under ten constraints")
figure.savefig(OUTPUT / "constraints.png", dpi=120)
