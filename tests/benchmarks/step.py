"""What a training step pays after its gradients, beside plain NumPy.

    python tests/benchmarks/step.py

One implicit layer (p 784, n 100, q 10, float32), Adam, InfNorm(0.99), A at the boundary of its
ball. The floor is Adam and the projection of rows written for this case, in place, without a
check. Microseconds: medians of rounds in which both take their turns, with the same gradients.
"""

import time

import numpy as np

import pyidl

F, P, N, Q = np.float32, 784, 100, 10
RATE, KAPPA, ROUNDS, STEPS = 1e-3, 0.99, 15, 40


def start():
    rng = np.random.default_rng(0)
    A = rng.uniform(-1, 1, (N, N))
    A *= 0.95 / np.abs(A).sum(1, keepdims=True)
    scaled = {"B": (N, P), "C": (Q, N), "D": (Q, P)}
    rest = {key: rng.normal(size=shape) / shape[1] ** 0.5 for key, shape in scaled.items()}
    return {key: a.astype(F) for key, a in ({"A": A} | rest).items()}


def gradients(seed, size):
    """Of slowly changing signs; 60 of 100 rows of A press against their ball.

    So many lie at their boundary when this model is trained on Fashion-MNIST.
    """
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    draw = {k: fixed.normal(size=a.shape) + rng.normal(size=a.shape) for k, a in start().items()}
    draw["A"] = np.where(np.arange(N)[:, None] < 60, draw["A"], (-1.0) ** seed)
    return {key: (size * g).astype(F) for key, g in draw.items()}


class Floor:
    """In place, on arrays of its own."""

    def __init__(self):
        self.P, self.t = start(), 0
        self.M, self.V, self.W = (
            {k: np.zeros_like(a) for k, a in self.P.items()} for _ in range(3)
        )

    def adam(self, grads):
        self.t += 1
        rate = F(RATE * (1 - 0.999**self.t) ** 0.5 / (1 - 0.9**self.t))
        for key, d in grads.items():
            a, b, w = self.M[key], self.V[key], self.W[key]
            a *= F(0.9)
            np.multiply(d, F(0.1), out=w)
            a += w
            b *= F(0.999)
            d *= d
            d *= F(0.001)
            b += d
            np.sqrt(b, out=w)
            w += F(1e-8)
            np.divide(a, w, out=w)
            w *= rate
            self.P[key] -= w

    def project(self):
        A = self.P["A"]
        rows = np.flatnonzero(np.abs(A).sum(1) > KAPPA)
        if len(rows):
            R = np.abs(A[rows])
            S = -np.sort(-R, 1)
            c, j = np.cumsum(S, 1) - KAPPA, np.arange(1, N + 1)
            last = N - 1 - np.argmax((S - c / j > 0)[:, ::-1], 1)
            theta = c[np.arange(len(rows)), last] / (last + 1)
            A[rows] = np.sign(A[rows]) * np.maximum(R - theta[:, None], 0)
        return len(rows)


def main():
    clock = time.perf_counter
    floor, model, adam = (
        Floor(),
        pyidl.ImplicitModel(P, Q, N, bias=False, rng=0),
        pyidl.optim.Adam(RATE),
    )
    model.params = start()
    batches = [gradients(seed, 1e-3) for seed in range(8)]
    times = {name: [] for name in ("floor adam", "floor project", "adam", "project", "set")}
    outside = []
    for _ in range(ROUNDS):
        spent = dict.fromkeys(times, 0.0)
        for k in range(STEPS):
            grads = {key: g.copy() for key, g in batches[k % 8].items()}
            began = clock()
            floor.adam(grads)
            half = clock()
            outside.append(floor.project())
            spent["floor project"] += clock() - half
            spent["floor adam"] += half - began
        for k in range(STEPS):
            grads = {key: g.copy() for key, g in batches[k % 8].items()}
            marks = [clock()]
            params = adam.step(model.params, grads)
            marks.append(clock())
            params = model.project(params)
            marks.append(clock())
            model.params = params
            marks.append(clock())
            for name, seconds in zip(("adam", "project", "set"), np.diff(marks)):
                spent[name] += seconds
        for name, seconds in spent.items():
            times[name].append(seconds / STEPS * 1e6)
    t = {name: float(np.median(found)) for name, found in times.items()}
    print("   ".join(f"{name} {value:.0f}" for name, value in t.items()), " microseconds")
    ours, theirs = t["adam"] + t["project"], t["floor adam"] + t["floor project"]
    print(
        f"rows outside: {np.mean(outside):.0f} of {N}; Adam {t['adam'] / t['floor adam']:.2f}",
        end=", ",
    )
    print(
        f"projection {t['project'] / t['floor project']:.2f}, "
        f"both {ours / theirs:.2f} of the floor's time"
    )


if __name__ == "__main__":
    main()
