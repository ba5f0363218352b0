"""Digits that no small change can turn: trained plainly and robustly, certified, attacked.

``python examples/certified_digits.py [--seeds 5] [--epochs 25] [--first 0]``

A box holds all images of which no pixel differs by more than eps. Printed, for several
eps: the share of test images that are certified, so that the whole box has the right
class, by boxes and by affine forms; and the share that survives an attack. Rates were
chosen on other seeds than 0 to 4, namely 10 to 14.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import WorstCase, losses, metrics, optim, robustness, wellposed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, SIZES = 64, (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
WAYS = "boxes", "affine, 1 round", "affine, 5 rounds", "survive PGD"


def train(U, t, width, eps, rate, epochs, seed):
    """An implicit model, trained for boxes of size eps; plainly for 0."""
    model = pyidl.ImplicitModel(
        U.shape[1], 10, width, constraint=wellposed.MatrixMeasure(0.95), dtype="float32", rng=seed
    )
    steps = epochs * -(-len(U) // BATCH)
    fall = optim.Ramp(rate, rate / 5, steps=max(1, 3 * steps // 10))
    options = {
        "optimizer": optim.Adam(lambda k: fall(max(0, k - 7 * steps // 10))),
        "epochs": epochs, "batch_size": BATCH, "rng": seed, "verbose": 0,
    }  # fmt: skip
    if not eps:
        pyidl.fit(model, (U, t), loss="cross_entropy", **options)
        return model
    half = max(1, steps // 2)
    layer = WorstCase(model, optim.Ramp(0.0, eps, steps=half), clip=(0, 1))
    loss = losses.certified(optim.Ramp(0.0, 0.5, steps=half))
    pyidl.fit(layer, ((U, t), t), loss=loss, **options)
    return model


def verdicts(model, U, t, eps, seed):
    """The shares of images for which each of WAYS says yes."""
    low, high = np.nextafter(U - np.float64(eps), -1), np.nextafter(U + np.float64(eps), 2)
    V = robustness.margins(model, np.maximum(low, 0), np.minimum(high, 1), t, method="box")
    V[np.arange(len(t)), t] = -np.inf
    found = [V.max(axis=1) < 0]
    for rounds in (1, 5):  # affine forms, for what is left
        found.append(found[-1].copy())
        left = np.flatnonzero(~found[-1])
        if len(left):
            some = robustness.certified(model, U[left], t[left], eps, clip=(0, 1), rounds=rounds)
            found[-1][left] = some
    attacked = robustness.pgd(model, U, t, eps, clip=(0, 1), rng=seed)
    found.append(model.predict(attacked).argmax(axis=1) == t)
    assert np.all(found[-1][found[-2]]), "an attack has broken what is certified"
    return [share.mean() for share in found]


def asked(epochs, *places):
    """What the command line says: seeds, epochs, and places of data."""
    options = argparse.ArgumentParser()
    for name in places:
        options.add_argument(name, nargs="?")
    options.add_argument("--seeds", type=int, default=1, help="how many trainings of a kind")
    options.add_argument("--first", type=int, default=0, help="the first seed")
    options.add_argument("--epochs", type=int, default=epochs)
    given = options.parse_args()
    given.seeds = range(given.first, given.first + given.seeds)
    return given


def spread(numbers):
    """Mean and, for several seeds, its standard error, as text."""
    mean, count = f"{np.mean(numbers):.3f}", len(numbers)
    return mean if count < 2 else f"{mean} +- {np.std(numbers, ddof=1) / count**0.5:.3f}"


def table(kinds, data, width, sizes, seeds, epochs):
    """Train each of `kinds`, ``{name: (eps, rate)}``; print a line for each size of a box.

    Returns ``{name: (seeds, sizes, ways)}``.
    """
    print("| trained | clean | eps | " + " | ".join(WAYS) + " |\n" + "|---" * 7 + "|", flush=True)
    found = {}
    for name, (goal, rate) in kinds.items():
        clean, shares = [], []
        for seed in seeds:
            U, V, t, s = data(seed)
            model = train(U, t, width, goal, rate, epochs, seed)
            clean.append(metrics.accuracy(model.predict(V), s))
            shares.append([verdicts(model, V, s, eps, seed) for eps in sizes])
        found[name] = np.array(shares)
        for i, eps in enumerate(sizes):
            row = " | ".join(spread(found[name][:, i, way]) for way in range(len(WAYS)))
            print(f"| {name} | {spread(clean)} | {eps} | {row} |", flush=True)
    return found


def main():
    """Digits, trained plainly and for boxes; a table and a picture."""
    given = asked(25)
    images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
    images = (images / 16).astype(np.float32)

    def data(seed):
        return train_test_split(images, labels, test_size=360, random_state=seed)

    kinds = {"plainly": (0.0, 2e-2), "for boxes of 0.08": (0.08, 2e-2)}
    found = table(kinds, data, 50, SIZES, given.seeds, given.epochs)
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for ax, (name, shares) in zip(panels, found.items(), strict=True):
        mean = shares.mean(axis=0)
        for way, style in ((3, "C3o-"), (2, "C0s-"), (0, "C1^--")):
            ax.plot(SIZES, mean[:, way], style, label=WAYS[way])
        ax.set(title=f"trained {name}", xlabel="eps: how far every pixel may move", ylim=(0, 1.02))
        ax.grid(alpha=0.3)
        ax.legend()
    panels[0].set_ylabel("share of test images")
    seeds = "one seed" if len(given.seeds) == 1 else f"mean of {len(given.seeds)} seeds"
    figure.suptitle(f"Handwritten digits: what is certified, what survives ({seeds})")
    output = Path(__file__).parent / "output"
    output.mkdir(exist_ok=True)
    figure.savefig(output / "certified_digits.png", dpi=120)
    print(f"figure: {output / 'certified_digits.png'}")


if __name__ == "__main__":
    main()
