"""How near sensitivities and Lipschitz bounds are to what is attained.

``python tests/benchmarks/sensitivity.py [--models 120]``

Random models of ReLU, tanh and softplus, 2 to 20 states, in the set of the matrix
measure, with boxes of 0.003 to 1; and monotone ones. Jacobians are taken at random
points and corners of each box; slopes are tried off and on, flipped one after another
while that gains. No times are taken, so the machine need not be quiet. Any bound that
is beaten ends the run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import boxes
from gains import P, Q, attained, monotone, random, weights

from pyidl import robustness
from pyidl.wellposed import Monotone

KINDS = ("relu measure", "tanh measure", "softplus measure")


def shares(seed):
    """S and that of boxes over the largest Jacobians, entry by entry."""
    rng = np.random.default_rng(seed)
    model = boxes.drawn(KINDS[seed % 3], int(rng.integers(2, 21)), seed)
    centre, size = rng.normal(size=(4, P)), 10.0 ** rng.uniform(-2.5, 0.0)
    lo, hi = centre - size, centre + size
    S, local = robustness.sensitivity(model), robustness.sensitivity(model, lo, hi)
    U = boxes.points(rng, lo, hi, 100)
    J = np.abs(robustness.jacobian(model, U.reshape(-1, P))).reshape(4, 100, Q, P).max(axis=1)
    room = 1e-9 * local.max()
    assert np.all(local + room >= J)
    assert np.all(local <= S)
    there = 1e-6 * local.max() < J
    return (S / np.where(there, J, 1.0))[there], (local / np.where(there, J, 1.0))[there]


def gains(seed):
    """Euclidean bounds over what slopes attain: gamma, |S|, and |C||B|/m + |D|."""
    rng = np.random.default_rng(seed)
    model = boxes.drawn(KINDS[seed % 2], int(rng.integers(2, 21)), seed)
    best, gamma = attained(model, rng, 30, 2), robustness.lipschitz(model, 2)
    assert best <= gamma * (1 + 1e-12)
    norm = np.linalg.norm(robustness.sensitivity(model), 2)
    n = int(rng.integers(2, 21))
    other = random(rng, n, monotone(rng, n, 0.1), constraint=Monotone(0.1))
    A, B, C, D = weights(other)
    m = 1 - np.linalg.eigvalsh(0.5 * (A + A.T))[-1]
    plain = np.linalg.norm(C, 2) * np.linalg.norm(B, 2) / m + np.linalg.norm(D, 2)
    top, found = attained(other, rng, 30, 2), robustness.lipschitz(other, 2)
    assert top <= found * (1 + 1e-12)
    return gamma / best, norm / best, found / top, plain / top


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=120)
    count = parser.parse_args().models
    S, local = (np.concatenate(x) for x in zip(*map(shares, range(count)), strict=True))
    euclidean = zip(*map(gains, range(count)), strict=True)
    names = ("gamma, measure", "|S|_2, measure", "gamma, monotone", "norms, monotone")
    print(f"{'bound over attained':24} median   90 %    most")
    for name, found in (("S", S), ("S on boxes", local), *zip(names, euclidean, strict=True)):
        row = np.quantile(found, [0.5, 0.9, 1.0])
        print(f"{name:24}" + "".join(f"{x:8.2f}" for x in row))


if __name__ == "__main__":
    main()
