"""Where is the largest of ten numbers?

Learnt on numbers in (-1, 1), asked for numbers up to 50,000 times as large.

A bias-free implicit RNN with ReLU is homogeneous, ``Y(t U) = t Y(U)`` for t > 0: what
is largest among its logits does not depend on the scale, so its accuracy cannot either.
Beside it an ordinary tanh RNN of the same size, written with the library as the special
case A = 0, D = 0: ``H_t = C tanh(B [U_t, H_{t-1}] + b) + d``. The task is that of
Decugis et al., "The extrapolation power of implicit models", IJCAI 2024.
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
STEPS, TRAIN, TEST, EPOCHS, BATCH = 10, 10_000, 3_000, 20, 500
RANGES = np.logspace(0, np.log10(5e4), 10)


def sequences(rng, m):
    """m sequences of numbers in (-1, 1), and the place of the largest."""
    U = rng.uniform(-1, 1, (m, STEPS, 1))
    return U, U[:, :, 0].argmax(axis=1)


rng = np.random.default_rng(0)
train, test = sequences(rng, TRAIN), sequences(rng, TEST)
no_feedback = pyidl.Pattern(A=np.zeros((38, 38), bool))
models = {
    "implicit RNN, no bias": pyidl.ImplicitRNN(
        1, STEPS, 20, 20, bias=False, constraint=pyidl.InfNorm(0.5), rng=0
    ),
    "tanh RNN": pyidl.ImplicitRNN(
        1, STEPS, 20, 38, activation="tanh", pattern=no_feedback, feedthrough=False, rng=0
    ),
}
accuracies = {}
for name, model in models.items():
    began = time.perf_counter()
    history = pyidl.fit(
        model,
        train,
        loss="cross_entropy",
        optimizer=optim.Adam(optim.Cosine(2e-2, steps=EPOCHS * TRAIN // BATCH), clip_norm=1.0),
        epochs=EPOCHS,
        batch_size=BATCH,
        rng=0,
    )
    free = sum(
        p.size if (mask := model.support(key)) is None else int(mask.sum())
        for key, p in model.params.items()
    )
    print(
        f"{name}: {free} parameters, trained in {time.perf_counter() - began:.0f} s, "
        f"last training loss {history['loss'][-1]:.3f}"
    )
    accuracies[name] = [
        metrics.accuracy(model.predict(s * test[0]), test[1]) for s in RANGES.tolist()
    ]

print(f"\n{'numbers in (-s, s), s =':26s}" + "".join(f"{s:9.0f}" for s in RANGES))
for name, values in accuracies.items():
    print(f"{name:26s}" + "".join(f"{value:9.3f}" for value in values))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in accuracies.items():
    axes.semilogx(RANGES, values, "o-", label=name)
axes.axhline(1 / STEPS, color="k", ls=":", lw=1, label="chance")
axes.axvspan(0.8, 1, color="0.9", label="training range")
axes.set(
    xlabel="s; the test numbers lie in (-s, s)",
    ylabel="accuracy",
    ylim=(0, 1.02),
    title="which of ten numbers is the largest?",
)
axes.legend(loc="center right")
figure.savefig(OUTPUT / "rolling_argmax.png", dpi=100)
