"""Handwritten digits: an implicit model is trained, certified, checked, saved, drawn."""

from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import losses, metrics, optim, plotting, testing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

U, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
parts = train_test_split(U / 16, labels, test_size=0.2, stratify=labels, random_state=0)
U_train, U_test, t_train, t_test = parts

model = pyidl.ImplicitModel(64, 10, 100, constraint=pyidl.InfNorm(0.9), rng=0)
history = pyidl.fit(
    model,
    (U_train, t_train),
    loss="cross_entropy",
    optimizer=optim.AdamW(optim.Cosine(2e-2, steps=30 * 23), weight_decay=0.1),
    epochs=30,
    validation=(U_test, t_test),
    metrics=["accuracy"],
    rng=0,
)
print(model.summary(), model.certificate(), sep="\n")
error = testing.check_pullback(model, U_test[:32]).max_error
print(f"worst gradient error against central differences (float64): {error:.1e}")
Y, pull = model(U_test)
print(f"test accuracy: {metrics.accuracy(Y, t_test):.3f}")
dY = losses.cross_entropy(Y, t_test)[1]
there, back = pull.forward.n_iter.mean(), pull.solve(dY).n_iter.mean()
print(f"steps per solve: forward {there:.1f}, adjoint {back:.1f}")
# `Auto` may solve block by block: no curve
picard = model.replace(forward=pyidl.solvers.Picard(), adjoint=pyidl.solvers.Picard())
forward, adjoint = picard.equilibrium(U_test, trace=True), picard(U_test)[1].solve(dY, trace=True)
output = Path(__file__).parent / "output"
output.mkdir(exist_ok=True)
pyidl.save(output / "digits.npz", model)
again = pyidl.load(output / "digits.npz", device=pyidl.arrays.device_of(Y))
assert np.array_equal(pyidl.to_numpy(again.predict(U_test)), pyidl.to_numpy(model.predict(U_test)))
print(f"model: {output / 'digits.npz'}; saved, reloaded: equal predictions")
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.3), layout="constrained")
plotting.training(history, ax=left).set(ylabel="cross-entropy; share of errors")
left.plot(history["epoch"], 1 - history["val_accuracy"], label="test error")
plotting.residuals({"forward": forward, "adjoint": adjoint}, model.certificate(), ax=middle)
plotting.spectrum(model, ax=right)
left.legend()
figure.suptitle("Handwritten digits: an implicit model of 100 states, row sums of |A| at most 0.9")
figure.savefig(output / "digits.png", dpi=120)
print(f"""figure: {output / "digits.png"}
left: the losses and the share of wrong answers, epoch by epoch, as fit has recorded them
middle: the residuals of both solves, step by step; they fall faster than is certified (dashed)
right: the eigenvalues of A; the certificate keeps them in the circle, of a radius below 1""")
