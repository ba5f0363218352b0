"""Real training: Fashion-MNIST, one implicit layer, pyidl, torchidl, and a floor.

    python tests/benchmarks/training.py              6 epochs of 20,000 images
    python tests/benchmarks/training.py --epochs 4 --lr 0.01
    python tests/benchmarks/training.py --random     labels drawn at random: long solves
    python tests/benchmarks/training.py --float64
    python tests/benchmarks/training.py --images 640 --seconds 5     whether it runs
    python tests/benchmarks/training.py FOLDER       four idx files, plain or gzipped

Without a folder, Debian's package dataset-fashion-mnist is used. p 784, n 100, q 10, no
biases, Adam, batches of 64, all from the same parameters (row sums of |A| 0.95).

pyidl, loop    a loop by hand, everything else at its default
pyidl, fit     the same by `pyidl.fit`
torchidl       with its defaults: absolute tolerances 3e-6, a batch stops at once
floor          the same computation in plain NumPy, written for this one case, with
               pyidl's stopping rule (each sample for itself) and tolerances; without
               statuses, best iterates and checks of inputs: what the arithmetic costs
floor, loose   the same at 1e-4 forward and 1e-3 adjoint

They take turns, an epoch each, in an order that is rotated. Ratios are medians over the
epochs but the first. A step's time is that of the epoch, evaluation left out, divided
by the number of batches. Steps are those of the slowest sample of a batch (by `fit`,
the mean over samples); those of torchidl, and adjoint ones of pyidl, are not counted.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from fashion_mnist import DEBIAN, read_idx

import pyidl
from pyidl import losses, optim

BATCH, HIDDEN, INPUTS, CLASSES = 64, 100, 784, 10
KAPPA = 0.99
TOL = {"float32": 1e-6, "float64": 1e-12}
MAX_ITER = 5000
PAUSE = 0.5
"""Seconds before an epoch: threads of the library before may still spin."""


def fashion(folder, dtype):
    """``(U, t)`` of training and of test, pixels in [0, 1]."""
    sets = []
    for kind in ("train", "t10k"):
        images = read_idx(folder, f"{kind}-images-idx3-ubyte").reshape(-1, INPUTS)
        labels = read_idx(folder, f"{kind}-labels-idx1-ubyte").astype(np.int64)
        sets.append((images.astype(dtype) / 255, labels))
    return sets


def start(dtype, p=INPUTS, n=HIDDEN, q=CLASSES):
    """The parameters that all begin with."""
    rng = np.random.default_rng(0)
    A = rng.uniform(-1, 1, (n, n))
    A *= 0.95 / np.abs(A).sum(axis=1, keepdims=True)
    B = rng.normal(size=(n, p)) * (2 / p) ** 0.5
    C = rng.normal(size=(q, n)) / n**0.5
    D = rng.normal(size=(q, p)) / p**0.5
    return {key: a.astype(dtype) for key, a in zip("ABCD", (A, B, C, D))}


class Contender:
    """Something that trains; `steps` adds up those of forward and adjoint solves."""

    steps = (0.0, 0.0)

    def epoch(self, U, t, order):
        """One pass over the data."""
        for i in range(0, len(order), BATCH):
            rows = order[i : i + BATCH]
            self.step(U[rows], t[rows])

    def step(self, U, t):
        """One step on a batch."""
        raise NotImplementedError

    def predict(self, U):
        """The logits of a batch."""
        raise NotImplementedError

    def count(self, forward=0, adjoint=0):
        """Add to `steps`."""
        self.steps = self.steps[0] + forward, self.steps[1] + adjoint


class Floor(Contender):
    """Plain NumPy: a few steps, a measurement of all samples at hand, and some leave."""

    stride = 3

    def __init__(self, lr, dtype, forward, adjoint):
        self.lr, self.forward, self.adjoint = lr, forward, adjoint
        self.params, self.t = start(dtype), 0
        self.dtype, self.eps = np.dtype(dtype).type, 8 * np.finfo(dtype).eps
        self.mean, self.square, self.work = (
            {key: np.zeros_like(a) for key, a in self.params.items()} for _ in range(3)
        )

    def solve(self, M, Z, tol, slopes=None, reference=None):
        """``(x, steps)``: ``x = relu(x M + Z)``, or, with slopes, ``s * (x M + Z)``."""
        x = np.maximum(Z, 0) if slopes is None else Z * slopes
        y, old = np.empty_like(x), np.empty_like(x)
        answer, rows, k = None, None, 0
        while True:
            for _ in range(self.stride):
                np.matmul(x, M, out=y)
                y += Z
                x, old = old, x
                if slopes is None:
                    np.maximum(y, 0, out=x)
                else:
                    np.multiply(y, slopes, out=x)
            k += self.stride
            old -= x
            np.abs(old, out=old)
            if slopes is None:
                limit = tol * (1 + x.max(axis=1))
            else:
                limit = np.maximum(tol * reference, self.eps * np.abs(x).max(axis=1))
            running = old.max(axis=1) > limit
            left = np.count_nonzero(running)
            if left == 0 or k >= MAX_ITER:
                if answer is None:
                    return x, k
                answer[rows] = x
                return answer, k
            if 2 * left <= len(x):
                if answer is None:
                    answer, rows = np.empty_like(x), np.arange(len(x))
                answer[rows] = x
                keep = np.flatnonzero(running)
                rows, x, Z = rows[keep], x[keep], Z[keep]
                y, old = np.empty_like(x), np.empty_like(x)
                if slopes is not None:
                    slopes, reference = slopes[keep], reference[keep]

    def step(self, U, t):
        P, m = self.params, len(U)
        x, forward = self.solve(np.ascontiguousarray(P["A"].T), U @ P["B"].T, self.forward)
        dY = x @ P["C"].T + U @ P["D"].T
        dY -= dY.max(axis=1, keepdims=True)
        np.exp(dY, out=dY)
        dY /= dY.sum(axis=1, keepdims=True)
        dY[np.arange(m), t] -= 1
        dY /= m
        slopes, g = (x > 0).astype(self.dtype), dY @ P["C"]
        reference = np.abs(g * slopes).max(axis=1)
        v, adjoint = self.solve(P["A"], g, self.adjoint, slopes, reference)
        self.count(forward, adjoint)
        self.adam({"A": v.T @ x, "B": v.T @ U, "C": dY.T @ x, "D": dY.T @ U})
        self.project()

    def adam(self, grads):
        """Adam, in the places of the gradients and of the moments."""
        self.t += 1
        correction = (1 - 0.999**self.t) ** 0.5
        rate = self.dtype(self.lr * correction / (1 - 0.9**self.t))
        least = self.dtype(1e-8 * correction)
        for key, d in grads.items():
            a, b, w = self.mean[key], self.square[key], self.work[key]
            a *= self.dtype(0.9)
            np.multiply(d, self.dtype(0.1), out=w)
            a += w
            b *= self.dtype(0.999)
            d *= d
            d *= self.dtype(0.001)
            b += d
            np.sqrt(b, out=w)
            w += least
            np.divide(a, w, out=w)
            w *= rate
            self.params[key] -= w

    def project(self):
        """Rows of A onto the ball ``|a|_1 <= kappa``."""
        A = self.params["A"]
        rows = np.flatnonzero(np.abs(A).sum(axis=1) > KAPPA)
        if len(rows) == 0:
            return
        size = np.abs(A[rows])
        falling = -np.sort(-size, axis=1)
        excess = np.cumsum(falling, axis=1) - KAPPA
        positive = falling - excess / np.arange(1, HIDDEN + 1) > 0
        last = HIDDEN - 1 - np.argmax(positive[:, ::-1], axis=1)
        threshold = excess[np.arange(len(rows)), last] / (last + 1)
        A[rows] = np.sign(A[rows]) * np.maximum(size - threshold[:, None], 0)

    def predict(self, U):
        P = self.params
        x = self.solve(np.ascontiguousarray(P["A"].T), U @ P["B"].T, self.forward)[0]
        return x @ P["C"].T + U @ P["D"].T


class Loop(Contender):
    """pyidl, by hand."""

    def __init__(self, lr, dtype):
        self.model = pyidl.ImplicitModel(INPUTS, CLASSES, HIDDEN, bias=False, dtype=dtype, rng=0)
        self.model.params = self.model.project(start(dtype))
        self.optimizer = optim.Adam(lr)

    def step(self, U, t):
        model = self.model
        Y, pull = model(U)
        _, dY = losses.cross_entropy(Y, t)
        grads = pull(dY, inputs=False)[1]
        model.params = model.project(self.optimizer.step(model.params, grads))
        self.count(pull.forward.n_iter.max())

    def predict(self, U):
        return self.model.predict(U)


class Fit(Loop):
    """pyidl, by `fit`."""

    def epoch(self, U, t, order):
        history = pyidl.fit(
            self.model,
            (U[order], t[order]),
            loss=losses.cross_entropy,
            optimizer=self.optimizer,
            epochs=1,
            batch_size=BATCH,
            rng=0,
            verbose=0,
        )
        self.count(float(history["steps"][-1]) * -(-len(order) // BATCH))


class Torchidl(Contender):
    """torchidl, with its defaults."""

    def __init__(self, lr, dtype):
        import torch
        from torchidl import ImplicitModel

        warnings.simplefilter("ignore")  # of solves that its absolute tolerance does not stop
        self.torch = torch
        torch.set_default_dtype(getattr(torch, dtype))
        self.model = ImplicitModel(INPUTS, CLASSES, HIDDEN)
        with torch.no_grad():
            for key, a in start(dtype).items():
                getattr(self.model, key).copy_(torch.tensor(a))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def step(self, U, t):
        torch = self.torch
        self.optimizer.zero_grad()
        Y = self.model(torch.from_numpy(U))
        torch.nn.functional.cross_entropy(Y, torch.from_numpy(t)).backward()
        self.optimizer.step()

    def predict(self, U):
        with self.torch.no_grad():
            return self.model(self.torch.from_numpy(U)).numpy()


RATIOS = (  # what is printed at the end
    ("torchidl", "pyidl, loop"),
    ("floor", "pyidl, loop"),
    ("torchidl", "pyidl, fit"),
)


def contenders(lr, dtype, peers=True):
    """All of them, by name."""
    tol = TOL[dtype]
    built = {"pyidl, loop": Loop(lr, dtype), "pyidl, fit": Fit(lr, dtype)}
    if peers:
        built["torchidl"] = Torchidl(lr, dtype)
    built["floor"] = Floor(lr, dtype, tol, tol)
    built["floor, loose"] = Floor(lr, dtype, 1e-4, 1e-3)
    return built


def race(built, train, test, epochs, seconds=np.inf):
    """An epoch each in turns; milliseconds a step, by name, a number for each epoch.

    No round begins after so many seconds.
    """
    (U, t), began = train, time.perf_counter()
    batches, times = -(-len(U) // BATCH), {name: [] for name in built}
    for epoch in range(epochs):
        if epoch and time.perf_counter() - began > seconds:
            print(f"stopped after {epoch} epochs: {seconds:g} s are over")
            break
        order = np.random.default_rng(epoch).permutation(len(U))
        names = list(built)
        for name in names[epoch % len(names) :] + names[: epoch % len(names)]:
            contender = built[name]
            contender.steps = 0.0, 0.0
            time.sleep(PAUSE)
            start_ = time.perf_counter()
            contender.epoch(U, t, order)
            times[name].append(1e3 * (time.perf_counter() - start_) / batches)
            forward, adjoint = (f"{k / batches:5.1f}" if k else "    -" for k in contender.steps)
            accuracy = np.mean(contender.predict(test[0]).argmax(axis=1) == test[1])
            print(
                f"epoch {epoch + 1}  {name:14s} {times[name][-1]:6.2f} ms a step   "
                f"steps {forward} forward {adjoint} adjoint   test accuracy {accuracy:.4f}",
                flush=True,
            )
    return times


def ratios(times):
    """The medians of `RATIOS`, over the epochs but the first."""
    found = {}
    for above, below in RATIOS:
        if above in times and below in times:
            quotients = np.divide(times[above], times[below])
            found[above, below] = float(
                np.median(quotients[1:] if len(quotients) > 1 else quotients)
            )
    return found


def main(arguments=None):
    """Race, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--random", action="store_true", help="labels drawn at random")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=np.inf, help="no epoch begins after these")
    parser.add_argument("--alone", action="store_true", help="without torchidl")
    options = parser.parse_args(arguments)
    dtype = "float64" if options.float64 else "float32"
    (U, t), test = fashion(options.folder, dtype)
    U, t = U[: options.images], t[: options.images]
    if options.random:
        t = np.random.default_rng(1).integers(0, CLASSES, len(t))
    built = contenders(options.lr, dtype, not options.alone)
    times = race(built, (U, t), test, options.epochs, options.seconds)
    print(f"{dtype}, floor at {TOL[dtype]:g}, loose floor at 1e-4 and 1e-3; medians:")
    for (above, below), ratio in ratios(times).items():
        print(f"    {above} / {below}  {ratio:.2f}")


if __name__ == "__main__":
    main()
