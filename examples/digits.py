"""Handwritten digits with an implicit model: train, check the gradient, certify, save, reload, and draw what happened."""

import matplotlib
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl import losses, metrics, optim, testing

matplotlib.use("Agg")

U, labels = load_digits(return_X_y=True)
train_U, test_U, train_t, test_t = train_test_split(U / 16, labels, test_size=0.2, stratify=labels, random_state=0)

model = pyidl.ImplicitModel(64, 10, 64, constraint=pyidl.InfNorm(0.9), rng=0)
print(model)
history = pyidl.fit(
    model, (train_U, train_t), loss=losses.cross_entropy, optimizer=optim.AdamW(optim.Cosine(4e-3, 30 * 23), weight_decay=0.05),
    epochs=30, batch_size=64, validation=(test_U, test_t), metrics=[metrics.accuracy], rng=0,
)  # fmt: skip

print(model.certificate())
print(f"worst gradient error against finite differences: {testing.check_pullback(model, test_U[:16]).max_error:.1e}")
print(f"test accuracy: {metrics.accuracy(model.predict(test_U), test_t):.3f}")

Y, pull = model(test_U)
forward, adjoint = pull.forward, pull.solve(losses.cross_entropy(Y, test_t)[1])
print(f"steps per solve: forward {forward.n_iter.mean():.1f}, adjoint {adjoint.n_iter.mean():.1f} on average")
