"""Models whose outputs move with their inputs, and by how much they do."""

import numpy as np
from boxes import model_of
from helpers import host

from pyidl import activations
from pyidl.activations.ranges import gain
from pyidl.robustness.lipschitz import Angles
from pyidl.robustness.states import exactly
from pyidl.wellposed import Monotone
from pyidl.wellposed.bounds import entries

P, Q = 3, 3


def weights(model):
    """A, B, C, D in float64."""
    p = {key: host(a).astype(float) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    return A, p["B"], p["C"], p.get("D", np.zeros((len(p["C"]), p["B"].shape[1])))


def linear(model, s):
    """``C (I - diag(s) A)^{-1} diag(s) B + D``: what the model is with these slopes."""
    A, B, C, D = weights(model)
    return C @ np.linalg.solve(np.eye(len(A)) - s[:, None] * A, s[:, None] * B) + D


def random(rng, n, A, phi=activations.relu, sign=False, constraint=None):
    B, C, D = rng.normal(size=(n, P)), rng.normal(size=(Q, n)), rng.normal(size=(Q, P))
    B, C, D = (np.abs(W) for W in (B, C, D)) if sign else (B, C, D)
    return model_of(A, B, C, D, rng.normal(size=n), phi, constraint)


def angles(model):
    p, phi = exactly(model), model.activation
    return Angles.of(*entries(p), p, gain(phi, np.ones(model.hidden_dim)))


def attained(model, rng, tries=20, flips=1):
    """The largest Euclidean gain over slopes that are all off or on, with greedy flips."""
    n, largest, best = model.hidden_dim, model.activation.lipschitz, 0.0
    for _ in range(tries):
        s = largest * rng.integers(0, 2, n)
        gain = np.linalg.norm(linear(model, s), 2)
        for i in np.tile(np.arange(n), flips):
            other = np.where(np.arange(n) == i, largest - s, s)
            if (found := np.linalg.norm(linear(model, other), 2)) > gain:
                s, gain = other, found
        best = max(best, gain)
    return best


def monotone(rng, n, margin=0.2):
    return Monotone(margin).project({"A": rng.normal(size=(n, n))}, activations.relu)["A"]
