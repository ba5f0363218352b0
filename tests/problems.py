"""Families of problems on which the solvers are compared, and oracles of their solutions."""

import numpy as np
from helpers import host

from pyidl import activations
from pyidl.arrays.backend import from_host
from pyidl.cells import FunctionCell
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.solvers import (
    GMRES,
    Anderson,
    Auto,
    Direct,
    ForwardBackward,
    Jacobi,
    Newton,
    PeacemanRachford,
    Picard,
)
from pyidl.solvers.image import Times
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import cannot_split


def gaussian(n, kappa, rng):
    """Easy: a row sum of kappa, a spectral radius of about kappa / sqrt(n)."""
    A = rng.normal(size=(n, n))
    return kappa * A / np.abs(A).sum(axis=1, keepdims=True)


def nonnegative(n, kappa, rng):
    """One slow mode: the row sum is an eigenvalue."""
    A = rng.random((n, n))
    return kappa * A / A.sum(axis=1, keepdims=True)


def stiff(n, kappa, rng):
    """A quarter of the diagonal close to kappa, other entries of both signs filling the row."""
    A = rng.normal(size=(n, n))
    np.fill_diagonal(A, 0)
    d = np.where(rng.random(n) < 0.25, rng.uniform(0.9, 0.99, n), rng.uniform(0, 0.3, n)) * kappa
    return A * ((kappa - d) / np.abs(A).sum(axis=1))[:, None] + np.diag(d)


def turning(n, kappa, rng):
    """``kappa [[.5, .5], [-.5, .5]]`` on the diagonal.

    Picard's spectral radius is 0.71 kappa, that of the splitting nearly 1.
    """
    return np.kron(np.eye((n + 1) // 2), kappa * np.array([[0.5, 0.5], [-0.5, 0.5]]))[:n, :n]


FAMILIES = {f.__name__: f for f in (gaussian, nonnegative, stiff, turning)}


def affine(A, Z, activation=activations.relu, dtype="float64", xp=np):
    """``X = phi(X A^T + Z)`` with the structure of A as a model reads it."""
    return Affine(
        with_gains(Full(from_host(xp, np.array(A, dtype)))),
        from_host(xp, np.array(Z, dtype)),
        activation,
    )


def linear(matrix, offset, S, reference):
    """``V = S * (V M^T + G)``; `reference` is max|S G| of every sample."""
    return Affine(matrix, offset, Times(S), reference)


def adjoint(p, x, G):
    """The adjoint of an `Affine` at a solution."""
    S = p.map.activation.dphi(x.pre)
    return linear(
        p.matrix.T, from_host(p.xp, G.astype(host(S).dtype)), S, np.abs(host(S) * G).max(axis=1)
    )


def fixed_point(p, steps=40_000):
    """Oracle: the plainest iteration, in float64, until nothing moves."""
    A, Z = host(p.matrix.dense()).astype(float), host(p.offset).astype(float)
    X = np.zeros_like(Z)
    for _ in range(steps):
        X, old = p.map.activation.phi(X @ A.T + Z), X
        if np.abs(X - old).max() <= 1e-15 * (1 + np.abs(X).max()):
            break
    return X


def adjoint_solution(q):
    """Oracle: one dense solve for each sample, in float64."""
    A = host(q.matrix.dense()).astype(float)
    S, G = host(q.map.S).astype(float), host(q.offset).astype(float)
    return np.stack([np.linalg.solve(np.eye(len(A)) - s[:, None] * A, s * g) for s, g in zip(S, G)])


def residual(p, x):
    """``max|f(x) - x|`` for every sample, in float64."""
    A, Z, x = (
        host(p.matrix.dense()).astype(float),
        host(p.offset).astype(float),
        host(x).astype(float),
    )
    y = x @ A.T + Z
    return np.abs((p.map.activation.phi(y) if p.reference is None else host(p.map.S) * y) - x).max(
        axis=1
    )


class Tanh(FunctionCell):
    """x = tanh(x W^T + u): a cell in a few lines, as a user would write it."""

    def __init__(self, W):
        self.W = W

    def zero(self, u):
        return np.zeros_like(u)

    def f(self, x, u):
        return np.tanh(x @ self.W.T + u)

    def vjp_state(self, x, u, v):
        return (v * (1 - self.f(x, u) ** 2)) @ self.W

    def grads(self, x, u, v, inputs=True):
        s = v * (1 - self.f(x, u) ** 2)
        return s, {"W": s.T @ x}


FORWARD = {
    "picard": Picard(),
    "damped": Picard(damping=0.3),
    "jacobi": Jacobi(),
    "anderson": Anderson(),
    "anderson 1": Anderson(memory=1),
    "anderson of jacobi": Anderson(splitting=True),
    "newton": Newton(),
    "forward-backward": ForwardBackward(alpha=0.5),
    "peaceman-rachford": PeacemanRachford(),
    "auto": Auto(),
}
ADJOINT = {**FORWARD, "gmres": GMRES(), "gmres 3": GMRES(restart=3), "direct": Direct()}


def splits(name, p):
    """Whether the solver of this name serves the problem."""
    if name in ("forward-backward", "peaceman-rachford"):
        return not cannot_split(p, FORWARD[name].alpha)
    return (
        "jacobi" not in name or p.reference is not None or p.map.activation.scalar_solve is not None
    )


def monotone(n, margin, size, rng):
    """``(A + A^T) / 2 <= (1 - margin) I``, with equality somewhere.

    And a Euclidean norm of about `size`.
    """
    G = rng.normal(size=(n, n))
    K, S = G - G.T, G @ G.T
    A = size * (K / max(np.linalg.norm(K, 2), 1e-300) - 0.5 * S / np.linalg.norm(S, 2))
    return A - np.eye(n) * (np.linalg.eigvalsh((A + A.T) / 2)[-1] - (1 - margin))
