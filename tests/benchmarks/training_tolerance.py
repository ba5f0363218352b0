"""How accurate must the solves of training be? Paired runs over a grid of tolerances.

    python tests/benchmarks/training_tolerance.py run CASE SEEDS [TOL ...] >> results.txt
    python tests/benchmarks/training_tolerance.py table results.txt ...

CASE is digits, fashion, argmax or spiky; SEEDS is FIRST:LAST, the last one left out; TOL is none
or FORWARD,ADJOINT, and the grid below without any. A seed fixes parameters, split, series and
order of the samples, so that runs of one seed differ in the tolerance alone; a run is a line.

The rule for the default of `fit`: the loosest pair for which neither the mean score on the test
data nor the mean final loss is worse than with None by more than one standard error of the paired
difference, and no relative error of a gradient is above 1e-2. Scores and final losses are those of
the trained model at its own tolerances. A gradient is that of a batch, all parameters together,
beside the one of the same parameters in float64 at 1e-10; the largest of four batches counts, after
the first, the middle and the last epoch.

ReLU's gradient jumps where a unit changes sides: no tolerance makes such a sample's gradient exact.
So the error is given again for the samples none of whose units is on another side, with the share
of those left out.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyidl import ImplicitModel, ImplicitRNN, InfNorm, fit, losses, metrics, optim

GRID = (None, (1e-5, 1e-4), (1e-5, 1e-3), (1e-4, 1e-3), (1e-4, 1e-2), (1e-3, 1e-2), (1e-2, 1e-1))
EXACT, WATCHED, ALLOWED, ERRORS = 1e-10, 4, 1e-2, ("errors", "smooth")


@dataclass(frozen=True)
class Case:
    """What is trained, on what, and how."""

    model: Any
    train: tuple
    test: tuple
    loss: Any
    score: Any
    optimizer: Any
    epochs: int
    batch: int


def digits(seed):
    """The case of `examples/digits.py`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    U, t = load_digits(return_X_y=True)
    parts = train_test_split(U / 16, t, test_size=0.2, stratify=t, random_state=seed)
    U, U_test, t, t_test = parts
    model = ImplicitModel(64, 10, 100, constraint=InfNorm(0.9), rng=seed)
    adam = optim.AdamW(optim.Cosine(2e-2, steps=30 * 23), weight_decay=0.1)
    return classes(model, (U, t), (U_test, t_test), adam, 30, 64)


def fashion(seed):
    """20,000 of the images, three epochs, and a ball that hardly binds."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from fashion_mnist import DEBIAN, read_idx

    parts = []
    for kind, m in (("train", 20_000), ("t10k", 10_000)):
        images = read_idx(DEBIAN, f"{kind}-images-idx3-ubyte")[:m].reshape(m, 784)
        labels = read_idx(DEBIAN, f"{kind}-labels-idx1-ubyte")[:m]
        parts.append((images.astype("f4") / 255, labels.astype(int)))
    model = ImplicitModel(784, 10, 100, bias=False, rng=seed)
    return classes(model, *parts, optim.Adam(1e-3), 3, 64)


def argmax(seed):
    """The example with a third of its sequences, and two thirds of its epochs."""
    rng = np.random.default_rng(seed)
    U = rng.uniform(-1, 1, (6000, 10, 1))
    t = U[:, :, 0].argmax(axis=1)
    model = ImplicitRNN(1, 10, 20, 20, bias=False, constraint=InfNorm(0.5), rng=seed)
    adam = optim.Adam(optim.Cosine(2e-2, steps=14 * 12), clip_norm=1.0)
    return classes(model, (U[:3500], t[:3500]), (U[3500:], t[3500:]), adam, 14, 300)


def spiky(seed, level=7, window=60):
    """The example with half of its series, and half of its epochs."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 50, 5000)
    y = np.sin(x) + rng.normal(0, 0.05 * level, x.size)
    for start in rng.integers(0, x.size - (100 + level), (20 + level) // 2):
        at = slice(start, start + 100 + level)
        y[at] = level / 2 * sum(np.sin(k * x[at]) for k in (2, 23, 78, 100))
    y = 2 * (y - y.min()) / (y.max() - y.min()) - 1
    windows = np.lib.stride_tricks.sliding_window_view(y, window)
    U, t = windows[:, :-1, None], windows[:, -1:]
    model = ImplicitRNN(1, 1, 20, 20, constraint=InfNorm(0.5), rng=seed)
    adam = optim.Adam(optim.Cosine(1e-2, steps=6 * 12), clip_norm=1.0)
    train, test = (U[:3000], t[:3000]), (U[3000:], t[3000:])
    return Case(model, train, test, losses.mse, metrics.r2, adam, 6, 256)


def classes(model, train, test, optimizer, epochs, batch):
    """A task with labels."""
    given = losses.cross_entropy, metrics.accuracy, optimizer, epochs, batch
    return Case(model, train, test, *given)


CASES = {"digits": digits, "fashion": fashion, "argmax": argmax, "spiky": spiky}


def flat(grads):
    """All parameters together, in float64."""
    return np.concatenate([np.ravel(grads[key]).astype(float) for key in sorted(grads)])


def relative(pulls, dYs):
    """The error of the first gradient, in the 2-norm."""
    g, desired = (flat(pull(dY, inputs=False)[1]) for pull, dY in zip(pulls, dYs, strict=True))
    return np.linalg.norm(g - desired) / np.linalg.norm(desired)


def gradient_errors(case, tol):
    """Of a few batches: the largest error, the largest without changed sides, their share."""
    model = case.model if tol is None else case.model.with_tol(tol)
    exact, (U, t), found = case.model.astype("float64").with_tol(EXACT), case.train, []
    order = np.random.default_rng(0).permutation(len(t))
    for i in range(0, WATCHED * case.batch, case.batch):
        rows = order[i : i + case.batch]
        (Y, pull), (Y_exact, pull_exact) = (m(U[rows]) for m in (model, exact))
        pulls, outputs = (pull, pull_exact), (Y, Y_exact)
        dYs = [case.loss(y, t[rows])[1] for y in outputs]
        sides = [one.forward.pre > 0 for one in pulls]
        other = (sides[0] != sides[1]).any(axis=1)  # of a recurrence, step after step
        same = ~other.reshape(-1, len(rows)).any(axis=0)
        kept = [dY * same[:, None].astype(dY.dtype) for dY in dYs]
        smooth = relative(pulls, kept) if same.any() else 0.0
        found.append((relative(pulls, dYs), smooth, np.mean(~same)))
    errors, smooth, changed = zip(*found, strict=True)
    return float(max(errors)), float(max(smooth)), float(np.mean(changed))


def run(name, seed, tol):
    """Train once; what came of it."""
    case = CASES[name](seed)
    watched, errors = (1, (case.epochs + 1) // 2, case.epochs), []

    def watch(state):
        if state.epoch in watched:
            errors.append(gradient_errors(case, tol))

    history = fit(
        case.model,
        case.train,
        loss=case.loss,
        optimizer=case.optimizer,
        epochs=case.epochs,
        batch_size=case.batch,
        rng=seed,
        tol=tol,
        callbacks=[watch],
        verbose=0,
    )
    spent = float(history["seconds"].sum())
    (U, t), (U_test, t_test) = case.train, case.test
    score = case.score(case.model.predict(U_test, batch_size=1000), t_test)
    loss = case.loss(case.model.predict(U, batch_size=1000), t)[0]
    found = {"case": name, "seed": seed, "tol": tol, "score": float(score), "loss": float(loss)}
    found |= dict(zip(("errors", "smooth", "changed"), zip(*errors, strict=True), strict=True))
    return found | {"steps": float(history["steps"].mean()), "seconds": spent}


def in_words(tol):
    """``1e-4, 1e-3``."""
    return "None" if tol is None else ", ".join(f"{a:.0e}".replace("e-0", "e-") for a in tol)


def difference(values):
    """Mean and standard error, and whether the mean is not below 0 by more than that."""
    mean, error = np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:+.5f} ± {error:.5f}", bool(mean >= -error)


def row(tol, found, own):
    """What is said of one pair, beside None at the same seeds."""

    def mean(key):
        return np.mean([one[key] for one in found.values()])

    score, keeps_score = difference([found[s]["score"] - own[s]["score"] for s in found])
    loss, keeps_loss = difference([own[s]["loss"] - found[s]["loss"] for s in found])
    worst, smooth = (np.max([one[key] for one in found.values()], axis=0) for key in ERRORS)
    holds = keeps_score and keeps_loss and bool(np.all(worst < ALLOWED))
    cells = [in_words(tol), f"{mean('score'):.4f}", score, f"{mean('loss'):.5f}", loss]
    cells += [", ".join(f"{error:.1e}" for error in errors) for errors in (worst, smooth)]
    cells += [f"{mean('changed'):.2%}", f"{mean('steps'):.1f}"]
    return [*cells, f"{mean('seconds'):.1f}", "yes" if holds else "no"]


HEAD = (
    "forward, adjoint",
    "test score",
    "above None by",
    "final loss",
    "below None by",
    "gradient error: first, middle, last epoch",
    "the same without changed sides",
    "changed",
    "steps a solve",
    "s",
    "holds",
)


def table(lines):
    """One table for each case, in Markdown, with the verdict of the rule."""
    runs: dict = defaultdict(dict)
    for line in lines:
        found = json.loads(line)
        tol = None if found["tol"] is None else tuple(found["tol"])
        runs[found["case"], tol][found["seed"]] = found
    for name in CASES:
        own = runs.pop((name, None), {})
        rest = [(tol, found) for (case, tol), found in runs.items() if case == name]
        if len(own) < 2:
            continue
        print(f"\n{name}, {len(own)} seeds\n")
        rows = [HEAD, ["---"] * len(HEAD), row(None, own, own)]
        for tol, found in sorted(rest, key=lambda pair: pair[0]):
            paired = {seed: one for seed, one in found.items() if seed in own}
            if len(paired) > 1:
                rows.append(row(tol, paired, own))
        print("\n".join("| " + " | ".join(cells) + " |" for cells in rows))


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "table":
        table([line for path in given for line in Path(path).read_text().splitlines()])
    else:
        case, seeds, *pairs = given
        grid = [None if p == "none" else tuple(map(float, p.split(","))) for p in pairs] or GRID
        for seed in range(*map(int, seeds.split(":"))):
            for tol in grid:
                print(json.dumps(run(case, seed, tol)), flush=True)
