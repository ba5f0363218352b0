"""Random parts and wirings, and what is known of them by other means than pyidl's."""

import itertools

import numpy as np
from helpers import random_model

from pyidl import ImplicitModel, activations
from pyidl.activations import Blocks
from pyidl.wellposed import InfNorm

PHIS = (activations.relu, activations.tanh, activations.sigmoid)


def part(rng, p, q, n=None, dtype="float64", **options):
    """A model with random options and parameters, none of them zero."""
    n = int(rng.integers(2, 6)) if n is None else n
    one, two = (PHIS[i] for i in rng.integers(0, 3, 2))
    chosen = {
        "activation": one if rng.random() < 0.5 else Blocks((one, 1), (two, n - 1)),
        "rank": 2 if rng.random() < 0.3 else None,
        "bias": bool(rng.random() < 0.8),
        "feedthrough": bool(rng.random() < 0.8),
        "constraint": InfNorm(0.7),
    } | options
    return random_model(ImplicitModel, p, q, n, seed=int(rng.integers(1e6)), dtype=dtype, **chosen)


def exact(model):
    """The same numbers, solved in float64 to the last digits."""
    return model.astype("float64").with_tol(1e-14)


def after(model, U):
    return exact(model).predict(U)


def gain_by_hand(model):
    """``|C| (I - P)^{-1} L |B| + |D|``, without a thought of rounding."""
    m = exact(model)
    A = m.params["A"] if "A" in m.params else m.params["L"] @ m.params["R"].T
    L = np.array(m.activation.row_lipschitz(m.hidden_dim))[:, None]
    inside = np.linalg.solve(np.eye(len(A)) - L * np.abs(A), L * np.abs(m.params["B"]))
    return np.abs(m.params["C"]) @ inside + np.abs(m.params.get("D", 0.0))


def block_diagonal(blocks):
    rows, columns = (sum(b.shape[axis] for b in blocks) for axis in (0, 1))
    whole, i, j = np.zeros((rows, columns)), 0, 0
    for b in blocks:
        whole[i : i + len(b), j : j + b.shape[1]] = b
        i, j = i + len(b), j + b.shape[1]
    return whole


def spectral_radius(M):
    return np.abs(np.linalg.eigvals(M)).max()


def random_wiring(rng, parts, strength=0.5, loops=True):
    """K, E, F, H, k, f; K such that the small gain theorem holds, by half."""
    P, Q = sum(m.input_dim for m in parts), sum(m.output_dim for m in parts)
    K = rng.normal(size=(P, Q)) * (rng.random((P, Q)) < 0.7)
    if not loops:
        ends = np.cumsum([0, *(m.input_dim for m in parts)])
        outs = np.cumsum([0, *(m.output_dim for m in parts)])
        for (a, b), start in zip(itertools.pairwise(ends), outs, strict=False):
            K[a:b, start:] = 0.0
    else:
        radius = spectral_radius(block_diagonal([gain_by_hand(m) for m in parts]) @ np.abs(K))
        K *= strength / max(radius, 1e-3)
    shapes = {"inputs": (P, 2), "outputs": (3, Q), "direct": (3, 2), "offset": P, "shift": 3}
    return {"loop": K} | {name: rng.normal(size=shape) for name, shape in shapes.items()}
