"""Matrices, oracles and an activation for tests of constraints and certificates.

The matrices are hard on conditions, the oracles are exact, the activation has several
components.
"""

from fractions import Fraction
from itertools import combinations

import numpy as np

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    LipschitzBound,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    Unconstrained,
)

N = 6
ETA = (0.1, 3.0, 1.0, 40.0, 0.7, 1.0)

CONSTRAINTS = [
    InfNorm(0.9),
    InfNorm(0.9, weights=ETA),
    PerronFrobenius(0.9),
    StrictlyTriangular(),
    SpectralNorm(0.9),
    MatrixMeasure(0.9),
    MatrixMeasure(-0.3, weights=ETA),
    Monotone(0.2),
    Monotone(0.9),
    LipschitzBound(0.5),
    LipschitzBound(3.0, 0.3, weights=ETA),
    BlockTriangular((2, 1, 3), InfNorm(0.8)),
    BlockTriangular((3, 3), MatrixMeasure(0.5)),
    BlockTriangular((2, 4), SpectralNorm(0.5)),
    BlockTriangular((3, 3), BlockTriangular((1, 2), PerronFrobenius(0.9))),
    BlockTriangular((2, 4), (SpectralNorm(0.5), InfNorm(0.7))),
    Unconstrained(),
]

AROUND = {
    "B": np.cos(np.arange(2.0 * N)).reshape(N, 2),
    "C": np.sin(np.arange(3.0 * N)).reshape(3, N),
    "D": 0.2 * np.cos(np.arange(6.0)).reshape(3, 2),
}
"""What stands beside A, where a condition looks at it: B, C and D."""

mixed = Blocks((activations.relu, 2), (activations.sigmoid, 3), (activations.tanh, 1))


def hard_matrix(rng, n):
    """A matrix that a careless condition, projection or bound gets wrong."""
    kind = rng.integers(0, 11)
    A = rng.normal(size=(n, n))
    if kind == 1:
        A = np.sign(A)  # ties
    elif kind == 2:
        A *= rng.random((n, n)) < 0.3  # reducible
    elif kind == 3:
        A = np.triu(A, 1) * 10.0 ** rng.uniform(-2, 3)  # nilpotent
    elif kind == 4:
        A = np.triu(A) * 3.0
    elif kind == 5:
        d = 10.0 ** rng.uniform(-4, 4, size=n)
        A = A * d[:, None] / d  # badly scaled
    elif kind == 6:
        A *= 10.0 ** rng.integers(-25, 25)
    elif kind == 7:
        A = np.outer(rng.normal(size=n), rng.normal(size=n))
    elif kind == 8:
        A = A - A.T + np.diag(rng.normal(size=n))  # almost skew
    elif kind == 9:
        A -= 5.0 * np.diag(rng.random(n))  # inhibits itself
    elif kind == 10:
        # one eigenvalue, one vector
        A = 0.9 * np.eye(n) + np.diag(np.full(n - 1, 10.0 ** rng.uniform(-3, 3)), 1)
    return A


def slack_of(gamma, A, B, C, D, lam=None, margin=0.0):
    """What must be positive semidefinite for the Lipschitz bound gamma, in its metric."""
    lam = np.ones(len(A)) if lam is None else np.asarray(lam)
    R = gamma * np.eye(D.shape[1]) - D.T @ D / gamma
    X = lam[:, None] * B + C.T @ D / gamma
    F = np.eye(len(A)) - A
    left = lam[:, None] * F + F.T * lam
    both = left - C.T @ C / gamma - X @ np.linalg.solve(R, X.T)
    return both / np.sqrt(lam[:, None] * lam) - 2 * margin * np.eye(len(A))


EXACT = np.vectorize(lambda number: Fraction(float(number)), otypes=[object])


def cancelling(rng, size, kind="any", n=4):
    """Factors with ``|L| |R|^T`` 1e6 times larger than A: ``P Q^T - (P + E)(Q + F)^T``."""
    P, Q = rng.normal(size=(2, n, 2))
    E, F = 1e-6 * rng.normal(size=(2, n, 2))
    L, R = np.concatenate([P, P + E], axis=1), np.concatenate([Q, -Q - F], axis=1)
    return {"L": size * L / np.abs(L @ R.T).sum(axis=1).max(), "R": R}


def exactly(params):
    """A in fractions."""
    if "A" in params:
        return EXACT(params["A"])
    return EXACT(params["L"]) @ EXACT(params["R"]).T


def is_p_matrix(M):
    """Whether all principal minors are positive.

    For I - A and ReLU that is the same as one solution for every input.
    """
    n = len(M)
    return all(
        np.linalg.slogdet(M[np.ix_(rows, rows)])[0] > 0
        for size in range(1, n + 1)
        for rows in map(list, combinations(range(n), size))
    )


def solve_exactly(K, z):
    """Gauss in fractions; None where K is singular."""
    n = len(z)
    rows = [[*row, value] for row, value in zip(K, z)]
    for j in range(n):
        pivot = next((i for i in range(j, n) if rows[i][j] != 0), None)
        if pivot is None:
            return None
        rows[j], rows[pivot] = rows[pivot], rows[j]
        for i in range(n):
            if i != j and rows[i][j] != 0:
                factor = rows[i][j] / rows[j][j]
                rows[i] = [a - factor * c for a, c in zip(rows[i], rows[j])]
    return [rows[i][n] / rows[i][i] for i in range(n)]


class SoftmaxInside(Activation):
    """ReLU, but the components 1, 2 and 3 are a softmax: 1/2-Lipschitz together."""

    def __init__(self):
        super().__init__("softmax inside", softmax_inside, lambda z: z * 0, lipschitz=1.0)

    def vector_blocks(self, n):
        return ((1, 4),)

    def row_lipschitz(self, n):
        return [1.0, 0.5, 0.5, 0.5, *[1.0] * (n - 4)]


def softmax_inside(z):
    e = np.exp(z[..., 1:4] - z[..., 1:4].max(axis=-1, keepdims=True))
    return np.concatenate(
        [np.maximum(z[..., :1], 0), e / e.sum(axis=-1, keepdims=True), np.maximum(z[..., 4:], 0)],
        axis=-1,
    )
