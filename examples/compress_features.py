"""A model of breast tumours: which features matter, and what is left of it in int8.

``python examples/compress_features.py [epochs]``

30 features of 569 cells, standardised; 398 of them to train, 171 to test. Features are
ranked by how far the margin between the two classes moves with each of them: the mean
of its derivative's absolute value over the training set (inputs have the standard
deviation 1). Then the model is compressed; what is printed of that is proved.
"""

import sys

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import metrics, optim, robustness, wellposed

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40


def sensitivities(model, U):
    """``mean |d(y_1 - y_0) / du_j|`` for every feature j: one pullback for all samples."""
    Y, pull = model(U)
    dU, _ = pull(np.tile(np.array([-1.0, 1.0], Y.dtype), (len(Y), 1)))
    return np.abs(dU).mean(axis=0)


def main():
    """Train, rank, compress."""
    data = load_breast_cancer()
    U, V, t, s = train_test_split(
        data.data, data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    mean, spread = U.mean(axis=0), U.std(axis=0)
    U, V = (((a - mean) / spread).astype(np.float32) for a in (U, V))
    model = pyidl.ImplicitModel(30, 2, 40, constraint=wellposed.MatrixMeasure(0.9), rng=0)
    pyidl.fit(
        model,
        (U, t),
        loss="cross_entropy",
        optimizer=optim.AdamW(5e-3, weight_decay=1e-2),
        epochs=EPOCHS,
        rng=0,
        verbose=0,
    )
    print(f"test accuracy: {metrics.accuracy(model.predict(V), s):.3f}")

    moved = sensitivities(model, U)
    order = np.argsort(-moved)
    print("\nthe margin moves most with")
    for j in order[:5]:
        print(f"  {data.feature_names[j]:24} {moved[j]:.3f}")
    print("and least with")
    for j in order[-3:]:
        print(f"  {data.feature_names[j]:24} {moved[j]:.3f}")
    few = np.where(moved >= moved[order[9]], V, 0.0).astype(np.float32)
    print(f"with the first ten alone, others at their mean: {accuracy(model, few, s):.3f}")

    print("\n| format | bytes | largest change, proved | largest seen | class certain | accuracy |")
    print("|---" * 6 + "|")
    print(f"| float32 | {sum(a.nbytes for a in model.params.values()):,} | | | | "
          f"{accuracy(model, V, s):.3f} |")  # fmt: skip
    for kind in ("float16", "int8", "prune"):
        small, proof = robustness.compress(model, kind, U=V)
        seen = np.abs(small.predict(V) - model.predict(V)).max()
        assert seen <= proof.largest.max() + 1e-4, "an output has changed by more than is proved"
        same = small.predict(V).argmax(axis=1) == model.predict(V).argmax(axis=1)
        assert np.all(same[proof.kept]), "a class that was certain is lost"
        print(f"| {kind} | {proof.after:,} | {proof.largest.max():.4f} | {seen:.4f} | "
              f"{proof.kept.mean():.3f} | {accuracy(small, V, s):.3f} |")  # fmt: skip

    eps = 0.1
    _, proof = robustness.compress(model, "int8", lower=V[:20] - eps, upper=V[:20] + eps)
    print(f"\nint8, every feature of the first 20 moved by up to {eps} standard deviations:")
    print(f"no output changes by more than {proof.largest.max():.4f}; "
          f"the class is certain for {proof.kept.sum()} of 20 boxes")  # fmt: skip


def accuracy(model, U, t):
    """The share of right classes."""
    return metrics.accuracy(model.predict(U), t)


if __name__ == "__main__":
    main()
