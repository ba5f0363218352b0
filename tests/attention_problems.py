"""Random attention heads, as the theory asks for them, and a plain oracle.

Complex steps pass through the oracle.
"""

import numpy as np

from pyidl.attention import BoundedSoftmax, KernelAttention, Softmax
from pyidl.attention.cell import AttentionCell
from pyidl.attention.feedback import Feedback
from pyidl.attention.weighted_mean import Mask

CERTIFIED = (
    KernelAttention(),
    KernelAttention(bandwidth=1.0),
    KernelAttention(c=2.0),
    BoundedSoftmax(),
    BoundedSoftmax(tau=0.3),
)
ALL = (*CERTIFIED, Softmax())


def feedback(rng, H, rows, h):
    """R, (H, rows, 3h): dense, sparse, of signs, or of rank one.

    With a value block of a size of its own.
    """
    kind = rng.choice(["dense", "sparse", "sign", "rank one"])
    R = rng.normal(size=(H, rows, 3 * h))
    if kind == "sparse":
        R *= rng.random(R.shape) < 0.3
        R[:, 0, 0] = 1.0
    elif kind == "sign":
        R = np.sign(R)
    elif kind == "rank one":
        R = rng.normal(size=(H, rows, 1)) * rng.normal(size=(H, 1, 3 * h))
    R[..., 2 * h :] *= rng.choice([0.3, 3.0, 30.0])
    return R


def kappa(R, attention, n):
    """The largest factor of a head."""
    return max(attention.factor(head, n) for head in Feedback.of({"R": R}))


def cell(seed, attention, size=0.95, mask=None, dtype=np.float64):
    """``(cell, Z)`` with random sizes and a random mask.

    R is scaled to the factor `size`, which is 1-homogeneous in R.
    """
    rng = np.random.default_rng(seed)
    m, H, T, h = (int(rng.integers(1, top + 1)) for top in (3, 3, 8, 5))
    R = feedback(rng, H, h if rng.random() < 0.7 else H * h, h)
    if size:
        R *= size / kappa(R, attention, T)
    Z = rng.normal(size=(m, H, T, 3 * h)) * rng.choice([0.1, 1.0, 3.0])
    mask = mask or rng.choice(["full", "causal", "pairs", "padded"])
    pairs = (rng.random((T, T)) < 0.5) | np.eye(T, dtype=bool) if mask == "pairs" else None
    tokens = (
        np.arange(T)[None, :] < rng.integers(1, T + 1, m)[:, None] if mask == "padded" else None
    )
    return AttentionCell(
        R.astype(dtype), attention, Mask(mask == "causal", tokens, pairs)
    ), Z.astype(dtype)


def jacobian(cell_, X, Z):
    """J of one sample, (n, n) on flat row vectors.

    Column j is the derivative along the j-th unit vector.
    """
    at = cell_.at(X, Z)
    h, columns = X.shape[-1], []
    for j in range(X.size):
        e = np.zeros(X.size)
        e[j] = 1.0
        d = cell_.feed(e.reshape(X.shape))
        columns.append(at.jvp(d[..., :h], d[..., h : 2 * h], d[..., 2 * h :]).ravel())
    return np.stack(columns, axis=1)


def solved(cell_, Z, steps=3000):
    """The plainest iteration, until nothing moves."""
    X = np.zeros((*Z.shape[:-1], Z.shape[-1] // 3))
    problem = cell_.bind(Z)
    for _ in range(steps):
        X, old = problem.f(X), X
        if np.abs(X - old).max() <= 1e-15:
            break
    return X


def squash(s):
    return s / np.sqrt(1 + s * s)


def plain(attention, R, S, U, causal, X, present=None):
    """Oracle: one step of a head, sample by sample and head by head.

    The numbers may be complex.
    """
    out = np.zeros_like(X)
    for r, i in np.ndindex(*X.shape[:2]):
        h = X.shape[-1]
        heard = X[r, i] if R.shape[1] == h else np.concatenate(list(X[r]), axis=-1)
        K, Q, V = np.split(heard @ R[i] + U[r] @ S[i], 3, axis=-1)
        see = np.tril(np.ones((len(Q), len(Q)))) if causal else np.ones((len(Q), len(Q)))
        if present is not None:
            see = see * np.outer(present[r], present[r])
        if isinstance(attention, KernelAttention):
            g = attention.bandwidth or 1 / h
            E, c, V = (
                np.exp(-g * ((Q[:, None, :] - K[None, :, :]) ** 2).sum(axis=-1)) * see,
                attention.c,
                squash(V),
            )
        else:
            if isinstance(attention, BoundedSoftmax):
                K, Q, V = squash(K), squash(Q), squash(V)
            E, c = np.exp((attention.tau or h**-0.5) * Q @ K.T) * see, 0.0
        total = c + E.sum(axis=1, keepdims=True)
        out[r, i] = np.where(
            see.any(axis=1, keepdims=True), E @ V / np.where(total == 0, 1, total), 0
        )
    return out


def unrolled(attention, R, S, U, causal, steps, present=None):
    """Oracle: so many steps of the iteration from 0."""
    X = np.zeros((len(U), len(R), U.shape[1], R.shape[2] // 3), dtype=np.result_type(R, S, U))
    for _ in range(steps):
        X = plain(attention, R, S, U, causal, X, present)
    return X
