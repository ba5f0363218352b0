r"""What can be proven of an attention head for given inputs, where its parameters alone prove nothing, or less.

**From the input** (softmax). If col(R_v) < 1, every solution has ``|X|_inf <= r = |U
S_v|_inf / (1 - col(R_v))``, since outputs are means of values, and that box is mapped
into itself. In it ``|k_jb| <= K_b = max_j |U S_k|_jb + r col_b(R_k)``, Q_b likewise,
and

    kappa_U = r tau sum_b (K_b col_b(R_q) + Q_b col_b(R_k)) + col(R_v)

bounds the Lipschitz constant, because ``|Cov(dZ, v)| <= max |dZ| r``. If it is below 1,
there is one solution and no other.

**At the solution.** The Jacobian has at most the norm (from largest entry to largest
entry)

    kappa_loc = max_(i,a) sum_j w_ij H_ij |u_ja - out_ia| + col_a(R_v) sum_j w_ij u'_ja,     |dZ_ij| <= H_ij (+ what does not depend on j),

    kernel            H_ij = 2g (|(q_i - k_j) R_q^T|_1 + |(q_i - k_j) R_k^T|_1)
    bounded softmax   H_ij = tau (|(phi'(q_i) * k^_j) R_q^T|_1 + |(q^_i * phi'(k_j)) R_k^T|_1)
    softmax           H_ij = tau (|(k_j - sum_l w_il k_l) R_q^T|_1 + |q_i R_k^T|_1)

and second derivatives along directions of size 1 are at most M. From ``out'' = E[(Z' -
EZ')^2 (u - out)] + Cov(Z'', u) + 2 Cov(Z', u') + E[u'']``, with eta = max |phi''|, beta
= col(R_v), q_b, k_b the columns of R_q, R_k, B = nu(R_q) + nu(R_k), w = W_0(n / (e c)):

    kernel            M = 8 g B^2 w + 2 g B^2 + 4 sqrt(g w) B beta + eta beta^2
    bounded softmax   M = 2 D^2 + tau sum_b (eta q_b^2 + 2 q_b k_b + eta k_b^2) + 2 D beta + eta beta^2
    softmax           M = 2 V D^2 + 2 V tau sum_b q_b k_b + 2 D beta, where |v| <= V and |Z'| <= D in a ball around the point

(the null key counts as a key whose exponent and value stay 0). Let ``r = |F(X) - X|``
and ``l = 1 - kappa_loc > 0``. **Theorem** (Newton, Kantorovich). If ``2 M r < l^2``,
there is a solution within ``(l - sqrt(l^2 - 2 M r)) / M`` of X, and no other one within
``l / M``. *Proof.* ``|F(Y) - F(X)| <= kappa_loc d + M d^2 / 2`` and ``|J(Y)| <=
kappa_loc + M d`` for Y at the distance d. ∎

**Causal masks.** J is block triangular over tokens, so its eigenvalues are those of its
diagonal blocks, one a token: the largest of them, `diagonal`, is below 1 if and only if
Picard converges near the solution. It is computed, not bounded: a diagnosis, no proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import as_real, to_numpy
from pyidl.attention.cell import AttentionCell, parts
from pyidl.attention.head import ImplicitAttentionHead
from pyidl.attention.maps import Attended, BoundedSoftmax, KernelAttention, Softmax, phi, phi_slope
from pyidl.attention.weighted_mean import Mask
from pyidl.attention.wellposed import Feedback, lambert
from pyidl.errors import InputError, expect
from pyidl.layers.timeline import Timeline
from pyidl.typing import Array
from pyidl.wellposed.certificate import Certificate

__all__ = [
    "AttentionCertificate",
    "certify_attention",
    "curvature",
    "diagonal_blocks",
    "input_factor",
    "local_factor",
]

EPS = float(np.finfo(np.float64).eps)
ETA = 1.5 * 1.25**-2.5 * (1 + 8 * EPS)
"""``max |phi''|``, ``phi'' = -3 s (1 + s^2)^(-5/2)``, attained at 1/2."""


@dataclass(frozen=True, repr=False, eq=False)
class AttentionCertificate:
    """What `certify_attention` found, for each of m samples; float64, on the host.

    Distances are in the largest entry.

    Attributes
    ----------
    proven : numpy.ndarray of bool, shape (m,)
        Whether there is a solution near `X`, and no other within `radius`.
    X : numpy.ndarray, shape (m, H, T, h)
        The points.
    error : numpy.ndarray, shape (m,)
        Bound of the distance from X to that solution; ``inf`` if unproven.
    radius : numpy.ndarray, shape (m,)
        How far from X there is no other solution: ``inf`` where it is the only one.
    factor : numpy.ndarray, shape (m,)
        A proven bound of the contraction for all states (from parameters and input);
        ``inf`` for none.
    local : numpy.ndarray, shape (m,)
        kappa_loc, at X.
    diagonal : numpy.ndarray, shape (m,)
        For a causal mask, the largest absolute eigenvalue of the Jacobian at X,
        computed; otherwise NaN.
    """

    proven: np.ndarray
    X: np.ndarray
    error: np.ndarray
    radius: np.ndarray
    factor: np.ndarray
    local: np.ndarray
    diagonal: np.ndarray

    def __repr__(self) -> str:
        m, alone = len(self.proven), int(np.isinf(self.radius[self.proven]).sum())
        words = [
            f"{int(self.proven.sum())} of {m} solutions proven, {alone} of them to be the only one"
        ]
        if self.proven.any():
            words.append(f"errors at most {self.error[self.proven].max():.3g}")
        words.append(f"kappa_loc at most {self.local.max():.4g}")
        if not np.isnan(self.diagonal).any():
            words.append(f"spectral radius (computed) at most {self.diagonal.max():.4g}")
        return "; ".join(words)


def certify_attention(
    head: ImplicitAttentionHead, U: Array, lengths: Any = None, X: Array | None = None
) -> AttentionCertificate:
    """Prove, sample by sample, that there is one solution near a given point, how near, and how far away no other one is.

    Parameters
    ----------
    head : ImplicitAttentionHead
        Its parameters are taken as they are; they may violate its constraint.
    U : array, shape (m, T, e)
        Inputs, as the head takes them.
    lengths : optional
        As in a call of the head.
    X : array, shape (m, H, T, h), optional
        The points; the states that the head solves for if left out (whether or not that
        solve converged).

    Raises
    ------
    InputError
        If an argument does not fit.

    Notes
    -----
    Unless `radius` is ``inf``, other solutions may exist farther away, and another
    start may lead to them. All is evaluated in float64 on the host with an allowance of
    some hundred roundings for each number; unlike those of `certify_solution`, these
    are not bounded one by one. Time and memory grow with T^2, and time with h: a tool
    for examination.

    Examples
    --------
    >>> from pyidl import ImplicitAttentionHead, Softmax
    >>> head = ImplicitAttentionHead(6, 4, attention=Softmax(), rng=0)
    >>> found = certify_attention(head, 0.3 * np.random.default_rng(0).normal(size=(2, 5, 6)))
    >>> head.certificate().proven, found.proven
    (False, array([ True,  True]))
    """
    expect("head", head, ImplicitAttentionHead, "certify_attention takes an ImplicitAttentionHead")
    inputs = head._admit(U)
    m, T = inputs.shape[:2]
    present = None if lengths is None else Timeline.read(lengths, m, T).mask
    p = {key: to_numpy(a).astype(np.float64) for key, a in head.params.items()}
    tokens = to_numpy(inputs).astype(np.float64)
    shape = (m, head.num_heads, T, head.head_dim)
    if X is None:
        X = head.equilibrium(inputs, lengths, on_fail="ignore").value
    else:
        X = as_real(X, name="X", xp=head.xp, dtype="float64")
    points = to_numpy(X).astype(np.float64)
    if points.shape != shape:
        raise InputError(f"X has shape {points.shape}; the states of these inputs have {shape}")
    cell = AttentionCell(
        p["R"] if "R" in p else p["L"] @ p["M"], head.attention, Mask(head.causal, present)
    )
    Z = np.stack([tokens @ S for S in p["S"]], axis=1)
    certificate = head.certificate()
    rows = [_examine(cell, Z, points, i, certificate) for i in range(m)]
    proven, error, radius, factor, local, diagonal = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return AttentionCertificate(proven.astype(bool), points, error, radius, factor, local, diagonal)


def _examine(
    whole: AttentionCell, Zs: np.ndarray, Xs: np.ndarray, i: int, certificate: Certificate
) -> tuple[Any, ...]:
    """``(proven, error, radius, factor, local, diagonal)`` of one sample."""
    Z, X = Zs[i : i + 1], Xs[i : i + 1]
    if not np.all(np.isfinite(X)):
        return False, math.inf, 0.0, math.inf, math.inf, math.nan
    cell = replace(whole, mask=whole.mask.take(slice(i, i + 1)))
    attention, at, heads = cell.attention, cell.at(X, Z), Feedback.of({"R": cell.R})
    size = 1.0 + max(float(np.abs(np.asarray(a)).max()) for a in (at.K, at.Q, at.V))
    allowance = 64 * EPS * (X.shape[2] + X.shape[3] + 8) * size**2
    local = local_factor(cell, at, heads) * (1.0 + allowance)
    residual = float(np.abs(np.asarray(at.out) - X).max()) + allowance
    factor, alone = certificate.contraction, certificate.proven
    error = residual / certificate.margin if certificate.margin > 0 else math.inf
    if isinstance(attention, Softmax) and not alone:
        boxes, factor = input_factor(cell, Z, heads)
        alone = factor < 1
        error = (
            residual / (1.0 - factor)
            if alone and np.all(np.abs(X[0]).max(axis=(1, 2)) <= boxes)
            else math.inf
        )
    diagonal = math.nan
    if cell.mask.causal:
        blocks = list(diagonal_blocks(cell, at))
        if all(np.all(np.isfinite(J)) for J in blocks):  # otherwise they have overflowed
            diagonal = max(float(np.abs(np.linalg.eigvals(J)).max()) for J in blocks)
    slack, radius = 1.0 - local, 0.0
    for d in 2.0 ** -np.arange(0.0, 40.0, 2.0) if isinstance(attention, Softmax) else (math.inf,):
        M = curvature(attention, heads, at, float(d), X.shape[2]) * (1.0 + allowance)
        if slack > 0 and 2.0 * M * residual < slack * slack:
            near = (
                2.0
                * residual
                / (slack + math.sqrt(slack * slack - 2.0 * M * residual))
                * (1.0 + 8 * EPS)
            )
            far = min(slack / M if M > 0 else math.inf, float(d)) * (1.0 - 8 * EPS)
            if near <= far:
                error, radius = min(error, near), max(radius, far)
    radius = math.inf if alone else radius
    return radius > 0, error if radius > 0 else math.inf, radius, factor, local, diagonal


def local_factor(cell: AttentionCell, at: Attended, heads: list[Feedback]) -> float:
    """kappa_loc of one sample: a bound of the Jacobian's norm at a point."""
    of, h = cell.attention, at.V.shape[-1]
    W, K, Q, V, out = (np.asarray(a)[0] for a in (at.mean.weights(), at.K, at.Q, at.V, at.out))
    u, slope, worst = np.asarray(of.values(V)), np.asarray(of.slopes(V)), 0.0
    for i, head in enumerate(heads):
        R_k, R_q, _ = parts(cell.R[i])
        own = [a[i] for a in (W, K, Q, out, u)]
        for t in range(Q.shape[1]):
            w, k, q, o, v = own[0][t], own[1], own[2][t], own[3][t], own[4]
            if isinstance(of, KernelAttention):
                d = q - k
                H = (
                    2.0
                    * of.scale(h)
                    * (np.abs(d @ R_q.T).sum(axis=1) + np.abs(d @ R_k.T).sum(axis=1))
                )
            elif isinstance(of, BoundedSoftmax):
                moved = np.abs((phi_slope(q) * phi(k)) @ R_q.T).sum(axis=1) + np.abs(
                    (phi(q) * phi_slope(k)) @ R_k.T
                ).sum(axis=1)
                H = of.scale(h) * moved
            else:
                assert isinstance(of, Softmax)
                H = of.scale(h) * (
                    np.abs((k - w @ k) @ R_q.T).sum(axis=1) + np.abs(q @ R_k.T).sum()
                )
            worst = max(worst, float(((w * H) @ np.abs(v - o) + head.v * (w @ slope[i])).max()))
    return worst


def curvature(attention: Any, heads: list[Feedback], at: Attended, d: float, n: int) -> float:
    """M: a bound of second derivatives along directions of size 1, within the distance d of the point, with at most n keys."""
    found = 0.0
    for i, head in enumerate(heads):
        h, beta = len(head.v), float(head.v.max())
        if isinstance(attention, KernelAttention):
            g, B, w = attention.scale(h), head.nu_q + head.nu_k, lambert(n / (math.e * attention.c))
            M = (
                8.0 * g * B * B * w
                + 2.0 * g * B * B
                + 4.0 * math.sqrt(g * w) * B * beta
                + ETA * beta**2
            )
        elif isinstance(attention, BoundedSoftmax):
            D, _ = head.gains(attention, n)
            M = 2.0 * D * D + attention.scale(h) * float(
                np.sum(ETA * head.q**2 + 2.0 * head.q * head.k + ETA * head.k**2)
            )
            M += 2.0 * D * beta + ETA * beta**2
        else:
            K, Q, V = (
                np.abs(np.asarray(a)[0, i]).max(axis=0) + d * c
                for a, c in ((at.K, head.k), (at.Q, head.q), (at.V, head.v))
            )
            tau, largest = attention.scale(h), float(V.max())
            D = tau * float(K @ head.q + Q @ head.k)
            M = (
                2.0 * largest * D * D
                + 2.0 * largest * tau * float(head.q @ head.k)
                + 2.0 * D * beta
            )
        found = max(found, M)
    return found


def input_factor(
    cell: AttentionCell, Z: np.ndarray, heads: list[Feedback]
) -> tuple[np.ndarray, float]:
    """``(r, kappa_U)`` of one sample for a softmax.

    The box that holds all solutions, head by head, and how a step contracts in it.
    """
    of, coupled = cell.attention, cell.R.shape[1] > Z.shape[-1] // 3
    assert isinstance(of, Softmax)
    if max(float(head.v.max()) for head in heads) >= 1.0:
        return np.full(len(heads), math.inf), math.inf
    K, Q, V = (np.abs(a[0]).max(axis=1) for a in parts(Z))
    boxes = [float(v.max()) / (1.0 - float(head.v.max())) for v, head in zip(V, heads, strict=True)]
    if coupled:
        boxes = [float(V.max()) / (1.0 - max(float(head.v.max()) for head in heads))] * len(heads)
    found = 0.0
    for r, k, q, head in zip(boxes, K, Q, heads, strict=True):
        largest = (k + r * head.k) @ head.q + (q + r * head.q) @ head.k
        found = max(found, r * of.scale(len(head.v)) * float(largest) + float(head.v.max()))
    up = 1.0 + 64 * EPS * (len(heads[0].v) + 8)
    return np.array(boxes) * up, found * up


def diagonal_blocks(cell: AttentionCell, at: Attended) -> list[np.ndarray]:
    r"""The diagonal blocks of the Jacobian of one sample with a causal mask.

    ``do_i -> do_i J_ii`` on row vectors, a block for each token.

    With ``C_i = sum_j w_ij a_ij^T (u_j - out_i)``,

        kernel    a_ij = q_i - k_j:  J_ii = -2g R_q C_i + w_ii (2g (R_k (q_i - k_i)^T) (u_i - out_i) + R_v diag(u'(v_i)))
        softmax   a_ij = k^_j:       J_ii = tau R_q diag(phi'(q_i)) C_i
                                            + w_ii (tau (R_k (phi'(k_i) * q^_i)^T) (u_i - out_i) + R_v diag(u'(v_i)))

    (without hats and phi' for a plain softmax). A block holds the outputs of all heads
    where they are coupled.
    """
    of, (H, rows, _), h = cell.attention, cell.R.shape, at.V.shape[-1]
    W, K, Q, V, out = (np.asarray(a)[0] for a in (at.mean.weights(), at.K, at.Q, at.V, at.out))
    u, slope = np.asarray(of.values(V)), np.asarray(of.slopes(V))
    squashed = isinstance(of, BoundedSoftmax)
    found: list[np.ndarray] = []
    for t in range(Q.shape[1]):
        columns = []
        for i in range(H):
            R_k, R_q, R_v = parts(cell.R[i])
            k, q, w, away = K[i], Q[i, t], W[i, t], u[i] - out[i, t]
            if isinstance(of, KernelAttention):
                own, C = (
                    2.0 * of.scale(h) * (q - k[t]),
                    -2.0 * of.scale(h) * ((w[:, None] * (q - k)).T @ away),
                )
            else:
                assert isinstance(of, (Softmax, BoundedSoftmax))
                keys, sq, sk, query = (
                    (phi(k), phi_slope(q)[:, None], phi_slope(k[t]), phi(q))
                    if squashed
                    else (k, 1.0, 1.0, q)
                )
                own, C = of.scale(h) * sk * query, of.scale(h) * sq * ((w[:, None] * keys).T @ away)
            columns.append(R_q @ C + w[t] * (np.outer(R_k @ own, away[t]) + R_v * slope[i, t]))
        found += [np.concatenate(columns, axis=1)] if rows > h else columns
    return found
