"""The problems, with a reference in float64.

They are in float32, scaled so that the largest state is about 4.
"""

from dataclasses import dataclass

import numpy as np

KINK = 3e-4


@dataclass(frozen=True)
class Case:
    """``x = relu(A x + B u)`` for m samples, and a cotangent G of x; exact answers in float64."""

    name: str
    A: np.ndarray
    B: np.ndarray
    U: np.ndarray
    G: np.ndarray
    x: np.ndarray
    dA: np.ndarray

    @classmethod
    def of(cls, name, A, m, shift=0.0, spare=2, seed=0):
        """Random samples, without those that have a unit near the kink.

        There the gradient jumps, and nobody's is comparable.
        """
        rng = np.random.default_rng(seed)
        n, p = len(A), 17
        B, U = rng.normal(size=(n, p)) / p**0.5, rng.normal(size=(int(spare * m), p))
        B[:, 0], U[:, 0] = shift, 1.0
        # the reference is that of the rounded arrays
        A, B = (
            A.astype("f4").astype("f8"),
            B.astype("f4").astype("f8"),
        )
        # relu is homogeneous: so is the solution
        U = (U * (4.0 / solve(A, U[:64] @ B.T).max())).astype("f4").astype("f8")
        x = solve(A, U @ B.T)
        pre = x @ A.T + U @ B.T
        keep = np.flatnonzero(np.abs(pre).min(axis=1) > KINK)[:m]
        assert len(keep) == m, f"only {len(keep)} samples are further than {KINK} from a kink"
        x, U, pre = x[keep], U[keep], pre[keep]
        G = rng.normal(size=(m, n)).astype("f4").astype("f8") / m
        G = G.astype("f4").astype("f8")
        v = adjoint(A, pre > 0, G)
        return cls(name, *(np.ascontiguousarray(a.astype("f4")) for a in (A, B, U, G)), x, v.T @ x)

    def pre(self, x):
        """``A x + B u`` in float64."""
        return np.asarray(x, "f8") @ self.A.T.astype("f8") + self.U.astype("f8") @ self.B.T.astype(
            "f8"
        )

    def residual(self, x):
        """The largest ``|f(x) - x|`` over entries and samples, in float64."""
        return float(np.abs(np.maximum(self.pre(x), 0) - x).max())

    def error(self, x):
        """The largest distance to the solution."""
        return float(np.abs(np.asarray(x, np.float64) - self.x).max())

    def adjoint_error(self, dA):
        """Of the gradient with respect to A, relative to its largest entry."""
        return float(np.abs(np.asarray(dA, np.float64) - self.dA).max() / np.abs(self.dA).max())


def solve(A, Z):
    """The solution in float64, by the plainest iteration.

    For ``x = relu(d x + N x + z)`` with the diagonal implicit; independent of the
    library.
    """
    d = np.diag(A)
    N, x = A - np.diag(d), np.zeros_like(Z)
    for _ in range(100_000):
        new = np.maximum(x @ N.T + Z, 0) / (1 - d)
        done = np.abs(new - x).max() <= 1e-13 * (1 + np.abs(new).max())
        x = new
        if done:
            break
    return x


def adjoint(A, S, G):
    """``(I - diag(s) A^T)^{-1} s g`` for every sample.

    Factorised in float32, 64 at a time, and refined twice in float64.
    """
    parts = []
    for i in range(0, len(G), 64):
        s, g = S[i : i + 64] * 1.0, G[i : i + 64]
        matrix = (np.eye(len(A)) - s[:, :, None] * A.T[None]).astype("f4")
        inverse = np.linalg.inv(matrix)
        v = np.zeros_like(g)
        for _ in range(3):
            r = s * (v @ A + g) - v
            v = v + (inverse @ r.astype("f4")[:, :, None])[:, :, 0]
        parts.append(v)
    return np.concatenate(parts)


def stiff(n, kappa=0.99):
    """A quarter of the diagonal in 0.9 to 0.985, other entries of both signs filling the row."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(n, n))
    np.fill_diagonal(A, 0)
    d = np.where(rng.random(n) < 0.26, rng.uniform(0.9, 0.985, n), rng.uniform(0, 0.3, n))
    return A * ((kappa - d) / np.abs(A).sum(axis=1))[:, None] + np.diag(d)


def nonnegative(n, kappa=0.99):
    A = np.random.default_rng(2).random((n, n))
    return kappa * A / A.sum(axis=1, keepdims=True)


def gaussian(n, kappa=0.99):
    A = np.random.default_rng(3).normal(size=(n, n))
    return kappa * A / np.abs(A).sum(axis=1, keepdims=True)


def turning(n, kappa=0.99):
    """Picard 36 steps, the splitting 558."""
    return np.kron(np.eye(n // 2), kappa * np.array([[0.5, 0.5], [-0.5, 0.5]]))
