"""Digits under every constraint, with one recipe: accuracy, steps per solve, time, and what is certified."""

import sys
import time
from pathlib import Path

import matplotlib
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import losses, metrics, optim, wellposed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

U, labels = load_digits(return_X_y=True)
U_train, U_test, t_train, t_test = train_test_split(U / 16, labels, test_size=0.2, stratify=labels, random_state=0)
EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
FIGURE = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent.parent / "docs" / "images" / "constraints.png"

MODELS = [  # constraint and rank
    (wellposed.InfNorm(0.9), None),
    (wellposed.PerronFrobenius(0.9), None),
    (wellposed.SpectralNorm(0.9), None),
    (wellposed.MatrixMeasure(0.9), None),
    (wellposed.Monotone(0.1), None),
    (wellposed.StrictlyTriangular(), None),
    (wellposed.BlockTriangular((50, 50), wellposed.InfNorm(0.9)), None),
    (wellposed.Unconstrained(), None),
    (wellposed.InfNorm(0.9), 10),
    (wellposed.SpectralNorm(0.9), 10),
]

print("| constraint | test accuracy | steps, forward | steps, adjoint | seconds of training | certified locally | certificate |")
print("|---|---|---|---|---|---|---|", flush=True)
figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
for constraint, rank in MODELS:
    name = f"{constraint!r}" + (f", rank {rank}" if rank else "")
    model = pyidl.ImplicitModel(64, 10, 100, constraint=constraint, rank=rank, rng=0)
    began = time.perf_counter()
    pyidl.fit(
        model,
        (U_train, t_train),
        loss=losses.cross_entropy,
        optimizer=optim.AdamW(optim.Cosine(2e-2, steps=EPOCHS * 23), weight_decay=0.1),
        epochs=EPOCHS,
        rng=0,
        verbose=0,
    )
    seconds = time.perf_counter() - began
    Y, pull = model(U_test, on_fail="warn")
    adjoint = pull.solve(losses.cross_entropy(Y, t_test)[1])
    accuracy, steps = metrics.accuracy(Y, t_test), pull.forward.n_iter.mean()
    local = pyidl.certify_solution(model, U_test, pull.forward.value).proven.mean()
    counts = f"{steps:.1f} | {adjoint.n_iter.mean():.1f} | {seconds:.1f}"
    words = repr(model.certificate()).replace("|", r"\|")
    print(f"| `{name}` | {accuracy:.3f} | {counts} | {local:.1%} | {words} |", flush=True)
    axes.plot(steps, 1 - accuracy, "o", label=name, mfc="none" if rank else None)
axes.set(xscale="log", xlabel="steps of a forward solve, mean over the test images", ylabel="test error", title="digits, n = 100")
figure.legend(loc="outside right upper", fontsize="small")
FIGURE.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(FIGURE, dpi=120)
