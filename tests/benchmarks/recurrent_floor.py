"""A floor for `ImplicitRNN`: the same recurrence and its derivative in plain NumPy.

One matrix does a whole step,

    M = [[A, B_h, B_u, b], [C, D_h, D_u, d]],    M [X_t; H_{t-1}; U_t; 1] = [Z_t; H_t],

X_t = max(Z_t, 0), so that the gradients of all parameters are one product as well. ReLU,
one length, a cotangent of H_T alone. There are no statuses, no checks of what comes in,
and no choice: how many rounds, and how long a block, is known beforehand. `met` and
`adjoint_met` measure what `steps` and `back_steps` have found, all steps at once.

steps    K rounds a step, nothing is measured. A state is a column [X; H; U; 1], (k, m)
         for a batch, so that its parts are contiguous: 2 calls a round, 2 K a step;
         `split`: what H and U do is formed once a step, 3 calls a round, smaller
         products. Backward, rounds fall with the cotangents
blocks   w steps solved together: rounds of X for all rows of the block, 3 calls each,
         then H of the block, by 2 calls a step or by doubling, then a measurement
"""

from itertools import pairwise

import numpy as np


def matrix(params, p):
    """M, from the parameters of an `ImplicitRNN` with p inputs."""
    B, D = params["B"], params["D"]
    top, bottom = [params["A"], B[:, p:], B[:, :p]], [params["C"], D[:, p:], D[:, :p]]
    if "b" in params:
        top.append(params["b"][:, None])
        bottom.append(params["d"][:, None])
    return np.concatenate([np.concatenate(top, axis=1), np.concatenate(bottom, axis=1)])


def steps(M, n, U, rounds, split, changes=None):
    """S, (T + 1, k, m): S_t = [X_t; H_{t-1}; U_t; 1], and in the last place H_T.

    The largest residual of every step goes to the list `changes`, if there is one: for
    large batches that is quicker than `met` afterwards.
    """
    (m, T, p), nr = U.shape, len(M)
    S = np.empty((T + 1, M.shape[1], m), M.dtype)
    S[0, :nr], S[:T, nr : nr + p], S[:, nr + p :] = 0.0, U.transpose(1, 2, 0), 1.0
    N, B = (np.ascontiguousarray(M[:n, :n]) if split else M[:n]), np.ascontiguousarray(M[:n, n:])
    y, c, zero = np.empty((n, m), M.dtype), np.empty((n, m), M.dtype), np.zeros((n, m), M.dtype)
    K = 2 * rounds  # the first step starts from zero
    for s, x, following, first in zip(S[:T], S[:T, :n], S[1:, :nr], S[1:, :n], strict=True):
        read = x if split else s
        if split:
            np.dot(B, s[n:], out=c)
        for _ in range(K - 1):
            np.dot(N, read, out=y)
            if split:
                np.add(y, c, out=y)
            np.maximum(y, zero, out=x)
        np.dot(M, s, out=following)  # H_t, and Z_t: the next step starts there
        np.maximum(first, zero, out=first)
        if changes is not None:
            changes.append(np.abs(np.subtract(first, x, out=y), out=y).max())
        K = rounds
    return S


def back_steps(M, n, S, dH, rounds, split, tol, changes=None):
    """Q, (T + 1, n + r, m): Q_{t+1} = [V_t; G_t], and in the first place that of H_0.

    V is wanted to `tol` beside the largest of its sequence. K rounds gain 1 / tol, so
    where C^T G has fallen to `ratio` of that, K (1 - log(ratio) / log(tol)) rounds do,
    and one for safety. (V itself does not tell: it is zero where all slopes are.)
    The largest of every step goes to the list `changes`, beside the largest V so far.
    """
    (T, m), nr = (len(S) - 1, S.shape[2]), len(M)
    slopes = (S[:T, :n] > 0).astype(M.dtype)
    Q = np.empty((T + 1, nr, m), M.dtype)
    Q[T, :n], Q[T, n:] = 0.0, dH.T
    N, C = np.ascontiguousarray((M[:n] if split else M)[:, :n].T), np.ascontiguousarray(M[n:, :n].T)
    full = np.ascontiguousarray(M[:, :nr].T)
    y, c = np.empty((n, m), M.dtype), np.empty((n, m), M.dtype)
    size, K = np.full(m, np.finfo(M.dtype).tiny, M.dtype), 2 * rounds
    for t in range(T - 1, -1, -1):
        q, v, s, before = Q[t + 1], Q[t + 1, :n], slopes[t], Q[t]
        read = v if split else q
        if split:
            np.dot(C, q[n:], out=c)
        for _ in range(K - 1):
            np.dot(N, read, out=y)
            if split:
                np.add(y, c, out=y)
            np.multiply(y, s, out=v)
        np.dot(full, q, out=before)  # G_{t-1}, and A^T V_t + C^T G_t: the step before starts there
        if changes is not None or t % 8 == 0 or t == T - 1:
            np.maximum(size, np.abs(v).max(axis=0), out=size)
        if changes is not None:
            np.subtract(np.multiply(before[:n], s, out=y), v, out=y)
            changes.append((np.abs(y, out=y).max(axis=0) / size).max())
        if t % 8 == 0 or t == T - 1:
            ratio = max(float((np.abs(np.dot(C, q[n:], out=c)).max(axis=0) / size).max()), tol)
            K = min(rounds, 1 + int(np.ceil(rounds * (1 - np.log(ratio) / np.log(tol)))))
    return Q


def scan(F, D, doubling):
    """``F_t += F_{t-1} D`` from the second on, in place; F (w + 1, m, r)."""
    if not doubling:
        work = np.empty_like(F[0])
        for before, f in pairwise(F):
            np.dot(before, D, out=work)
            np.add(f, work, out=f)
        return
    s = 1
    while s < len(F):
        F[s:] += F[:-s] @ D
        s, D = 2 * s, D @ D


def blocks(M, n, U, width, inner, doubling, tol):
    """``(X, H, u)``, (T, m, n) and (T + 1, m, r), H_0 first, and the inputs and 1, (T, m, .)."""
    (m, T, p), nr = U.shape, len(M)
    A, Bh, C, Dh = (np.ascontiguousarray(a.T) for a in _parts(M, n))
    u = np.ones((T, m, M.shape[1] - nr), M.dtype)
    u[:, :, :p] = U.transpose(1, 0, 2)
    Z = u.reshape(T * m, -1) @ M[:, nr:].T
    Z, W = np.ascontiguousarray(Z[:, :n]), np.ascontiguousarray(Z[:, n:])
    X, H = np.zeros((T, m, n), M.dtype), np.zeros((T + 1, m, nr - n), M.dtype)
    for t in range(0, T, width):
        end = min(t + width, T)
        h, at = H[t : end + 1], slice(t * m, end * m)
        z, w, rows = Z[at], W[at], (end - t) * m
        x = np.tile(X[max(t - 1, 0)], (end - t, 1))
        y, new, zero = np.empty_like(x), np.empty_like(x), np.zeros_like(x)
        h[1:] = h[0]
        c, g, before = z + h[:-1].reshape(rows, -1) @ Bh, np.empty_like(w), h[:-1].reshape(rows, -1)
        while True:
            for _ in range(inner):
                np.dot(x, A, out=y)
                np.add(y, c, out=y)
                np.maximum(y, zero, out=x)
            np.dot(x, C, out=g)
            np.add(g, w, out=h[1:].reshape(rows, -1))
            scan(h, Dh, doubling)
            np.dot(before, Bh, out=c)
            np.add(c, z, out=c)
            np.dot(x, A, out=y)
            np.add(y, c, out=y)
            np.maximum(y, zero, out=new)
            if _settled(np.abs(np.subtract(new, x, out=y), out=y), x, tol):
                break
            x, new = new, x
        X[t:end] = x.reshape(end - t, m, n)
    return X, H, u


def back_blocks(M, n, X, dH, width, inner, doubling, tol):
    """V and G, (T, m, n) and (T + 1, m, r); G_0 is that of H_0.

    A block is done when every residual is small beside the largest V of its sequence.
    """
    (T, m, _), r = X.shape, len(M) - n
    A, Bh, C, Dh = (np.ascontiguousarray(a) for a in _parts(M, n))
    slopes = (X > 0).astype(M.dtype)
    V, G = np.empty_like(X), np.empty((T + 1, m, r), M.dtype)
    G[T], size = dH, np.zeros(m, M.dtype)
    for end in range(T, 0, -width):
        t = max(end - width, 0)
        rows = (end - t) * m
        s, g = slopes[t:end].reshape(rows, n), np.empty((end - t + 1, m, r), M.dtype)
        g[0] = G[end]
        turned = np.ascontiguousarray(s.reshape(end - t, m, n)[::-1]).reshape(rows, n)
        g[1:], v = g[0], np.tile(np.dot(g[0], C), (end - t, 1)) * turned
        c, y, new = np.tile(np.dot(g[0], C), (end - t, 1)), np.empty_like(v), np.empty_like(v)
        while True:
            for _ in range(inner):
                np.dot(v, A, out=y)
                np.add(y, c, out=y)
                np.multiply(y, turned, out=v)
            np.dot(v, Bh, out=g[1:].reshape(rows, r))
            scan(g, Dh, doubling)
            np.dot(g[:-1].reshape(rows, r), C, out=c)
            np.dot(v, A, out=y)
            np.add(y, c, out=y)
            np.multiply(y, turned, out=new)
            largest = np.abs(v).reshape(-1, m, n).max(axis=(0, 2))
            change = np.abs(np.subtract(new, v, out=y), out=y).reshape(-1, m, n)
            if np.all(change.max(axis=(0, 2)) <= tol * np.maximum(size, largest)):
                break
            v, new = new, v
        size = np.maximum(size, largest)
        V[t:end], G[t : end + 1] = v.reshape(-1, m, n)[::-1], g[::-1]
    return V, G


def gradient(Q, S):
    """That of M: ``sum_t [V_t; G_t] [X_t; H_{t-1}; U_t; 1]^T``, of columns."""
    Q, S = Q[1:], S[:-1]
    if S.shape[2] >= 16:  # a product a step costs less than copies
        return np.matmul(Q, S.swapaxes(1, 2)).sum(axis=0)
    Q, S = (np.moveaxis(a, 1, 0).reshape(a.shape[1], -1) for a in (Q, S))
    return Q @ S.T


def gradient_of_blocks(V, G, X, H, u):
    """The same, of rows."""
    Q, S = np.concatenate([V, G[1:]], axis=2), np.concatenate([X, H[:-1], u], axis=2)
    return Q.reshape(-1, Q.shape[2]).T @ S.reshape(-1, S.shape[2])


def met(M, n, S, tol):
    """Whether every state that `steps` has found meets its tolerance."""
    x = S[:-1, :n]
    change = np.maximum(np.matmul(M[:n], S[:-1]), 0)
    change -= x
    np.abs(change, out=change)
    return change.max() <= tol or bool(
        np.all(change.max(axis=1) <= tol * (1 + np.abs(x).max(axis=1)))
    )


def adjoint_met(M, n, S, Q, tol):
    """Whether those of `back_steps` are small beside the largest V of a sequence."""
    v = Q[1:, :n]
    change = np.matmul(np.ascontiguousarray(M[:, :n].T), Q[1:]) * (S[:-1, :n] > 0)
    change -= v
    size = np.abs(v).max(axis=(0, 1))
    return bool(np.all(np.abs(change, out=change).max(axis=(0, 1)) <= tol * size))


def _parts(M, n):
    """A, B_h, C, D_h."""
    return M[:n, :n], M[:n, n : len(M)], M[n:, :n], M[n:, n : len(M)]


def _settled(change, x, tol):
    """Whether every row has changed by no more than ``tol (1 + max|x|)``."""
    return change.max() <= tol or np.all(change.max(axis=1) <= tol * (1 + np.abs(x).max(axis=1)))
