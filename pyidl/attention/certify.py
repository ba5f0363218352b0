r"""What can be proven of an attention head for given inputs.

Where its parameters alone prove nothing, or less. What depends on the map stands there:
`Attention.box_factor`, `rates`, `curvature`, `own_motion`.

**From the input** (softmax). If col(R_v) < 1, every solution has ``|X|_inf <= r = |U
S_v|_inf / (1 - col(R_v))``, since outputs are means of values, and that box is mapped
into itself. In it ``|k_jb| <= K_b = max_j |U S_k|_jb + r col_b(R_k)``, Q_b likewise,
and the map bounds the Lipschitz constant there by some kappa_U. If it is below 1, there
is one solution and no other.

**At the solution.** The Jacobian has at most the norm (from largest entry to largest
entry)

    kappa_loc = max_(i,a) sum_j w_ij H_ij |u_ja - out_ia| + col_a(R_v) sum_j w_ij u'_ja,
    |dZ_ij| <= H_ij (+ what does not depend on j),

and second derivatives along directions of size 1 are at most M, everywhere or within
some distance. Let ``r = |F(X) - X|`` and ``l = 1 - kappa_loc > 0``. **Theorem**
(Newton, Kantorovich). If ``2 M r < l^2``, there is a solution within ``(l - sqrt(l^2 -
2 M r)) / M`` of X, and no other one within ``l / M``. *Proof.* ``|F(Y) - F(X)| <=
kappa_loc d + M d^2 / 2`` and ``|J(Y)| <= kappa_loc + M d`` for Y at the distance d. ∎

**Causal masks.** J is block triangular over tokens, so its eigenvalues are those of its
diagonal blocks, one a token: the largest of them, `diagonal`, is below 1 if and only if
Picard converges near the solution. It is computed, not bounded: a diagnosis, no proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pyidl.arrays.backend import as_real, to_numpy
from pyidl.arrays.table import Table, abridged
from pyidl.attention.cell import AttentionCell, parts
from pyidl.attention.feedback import Feedback
from pyidl.attention.head import ImplicitAttentionHead
from pyidl.attention.maps import Attended
from pyidl.attention.weighted_mean import Mask
from pyidl.errors import InputError, expect
from pyidl.layers.timeline import Timeline
from pyidl.typing import Array
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate

__all__ = [
    "AttentionCertificate",
    "Box",
    "certify_attention",
    "curvature",
    "diagonal_blocks",
    "input_factor",
    "local_factor",
]


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

    def _repr_html_(self) -> str:
        """What Jupyter shows: a row for each sample."""
        columns = zip(self.proven, self.error, self.radius, self.local, strict=True)
        rows = [
            (f"{i}", "yes" if proven else "no", *(f"{number:.3g}" for number in numbers))
            for i, (proven, *numbers) in enumerate(columns)
        ]
        head = ("sample", "proven", "error at most", "no other within", "kappa_loc")
        return Table("Certificate of attention", head, abridged(rows))._repr_html_()

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
    """Prove, sample by sample, that there is one solution near a given point.

    And how near, and how far away no other one is.

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

    Returns
    -------
    AttentionCertificate

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
    >>> U = 0.3 * np.random.default_rng(0).normal(size=(2, 5, 6))
    >>> found = certify_attention(head, U)
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
    Z, reach = (
        np.stack([u @ S for S in weights], axis=1)
        for u, weights in ((tokens, p["S"]), (np.abs(tokens), np.abs(p["S"])))
    )
    wrong = (tokens.shape[2] + 2) * EPS * reach
    certificate = head.certificate()
    samples = [_examine(cell, Z, wrong, points, i, certificate) for i in range(m)]
    found = _Found(*map(np.array, zip(*samples, strict=True)))
    return AttentionCertificate(found.radius > 0, points, *found)


class _Found(NamedTuple):
    """What `AttentionCertificate` says of one sample, or of all, in its words."""

    error: Any
    radius: Any
    factor: Any
    local: Any
    diagonal: Any


NOTHING = _Found(error=math.inf, radius=0.0, factor=math.inf, local=math.inf, diagonal=math.nan)


def _examine(
    whole: AttentionCell,
    Zs: np.ndarray,
    wrong: np.ndarray,
    Xs: np.ndarray,
    i: int,
    certificate: Certificate,
) -> _Found:
    """The i-th sample: what its parameters, its input and the point X prove.

    Z may be wrong by so much, entry by entry.
    """
    Z, off, X = (a[i : i + 1] for a in (Zs, wrong, Xs))
    if not np.all(np.isfinite(X)):
        return NOTHING
    cell = replace(whole, mask=whole.mask.take(slice(i, i + 1)))
    at, heads = cell.at(X, Z), Feedback.of({"R": cell.R})
    up = _rounded(cell, at, X, off)
    local = local_factor(cell, at, heads) * (1.0 + up)
    residual = float(np.abs(np.asarray(at.out) - X).max()) + up
    factor, alone = certificate.contraction, certificate.proven
    error = residual / certificate.margin if certificate.margin > 0 else math.inf
    if not alone:
        box = input_factor(cell, np.abs(Z) + off, heads)
        factor, alone = box.factor, box.factor < 1
        if alone and np.all(np.abs(X[0]).max(axis=(1, 2)) <= box.sizes):
            error = residual / (1.0 - factor)
    slack, radius = 1.0 - local, 0.0
    for d in cell.attention.distances:
        M = curvature(cell, at, heads, d) * (1.0 + up)
        if slack > 0 and 2.0 * M * residual < slack * slack:
            root = math.sqrt(slack * slack - 2.0 * M * residual)
            near = 2.0 * residual / (slack + root) * (1.0 + 8 * EPS)
            far = min(slack / M if M > 0 else math.inf, d) * (1.0 - 8 * EPS)
            if near <= far:
                error, radius = min(error, near), max(radius, far)
    radius = math.inf if alone else radius
    return _Found(error, radius, factor, local, _spectral_radius(cell, at))


def _rounded(cell: AttentionCell, at: Attended, X: np.ndarray, off: np.ndarray) -> float:
    """An allowance for the rounding of a step, and of what is derived from it.

    Exponents are sums of products of features; where K and Q move by dK, they move by
    2 dK / size of themselves.
    """
    a, b, K, Q = (np.abs(np.asarray(x)) for x in (at.mean.a, at.mean.b, at.K, at.Q))
    exponents, size = float((a @ np.swapaxes(b, -1, -2)).max()), float(max(K.max(), Q.max()))
    R = np.abs(np.asarray(cell.R))
    fed = (R.shape[1] + 2) * EPS * replace(cell, R=R).feed(np.abs(X))
    moved = float((off + fed).max())
    some = 64 * EPS * (X.shape[2] + X.shape[3] + 8)
    relative = some + 4.0 * moved / max(size, moved, np.finfo(np.float64).tiny)
    value = 1.0 + float(np.abs(np.asarray(cell.attention.values(at.V))).max())
    return float(some + 4.0 * moved + value * relative * exponents)


def local_factor(cell: AttentionCell, at: Attended, heads: list[Feedback]) -> float:
    """kappa_loc of one sample: a bound of the Jacobian's norm at a point."""
    of, worst = cell.attention, 0.0
    W, K, Q, V, out = (np.asarray(a)[0] for a in (at.mean.weights(), at.K, at.Q, at.V, at.out))
    u, slope = np.asarray(of.values(V)), np.asarray(of.slopes(V))
    for i, head in enumerate(heads):
        R_k, R_q, _ = parts(cell.R[i])
        for w, q, o in zip(W[i], Q[i], out[i], strict=True):
            H = of.rates(R_q, R_k, q, K[i], w)
            moved = (w * H) @ np.abs(u[i] - o) + head.v * (w @ slope[i])
            worst = max(worst, float(moved.max()))
    return worst


def curvature(cell: AttentionCell, at: Attended, heads: list[Feedback], d: float) -> float:
    """M of one sample: a bound of second derivatives within the distance d."""
    K, Q, V = (np.asarray(a)[0] for a in (at.K, at.Q, at.V))
    points = zip(heads, K, Q, V, strict=True)
    return max(cell.attention.curvature(head, (k, q, v), d, K.shape[1]) for head, k, q, v in points)


class Box(NamedTuple):
    """A box that holds all solutions of one sample.

    Attributes
    ----------
    sizes : numpy.ndarray, shape (H,)
        r, a bound of the outputs of each head; inf where there is none.
    factor : float
        kappa_U, how much a step expands in it at most.
    """

    sizes: np.ndarray
    factor: float


def input_factor(cell: AttentionCell, Z: np.ndarray, heads: list[Feedback]) -> Box:
    """What follows from the input Z of one sample."""
    of, coupled = cell.attention, cell.R.shape[1] > Z.shape[-1] // 3
    gains = [head.values for head in heads]
    if max(gains) >= 1.0:
        return Box(np.full(len(heads), math.inf), math.inf)
    K, Q, V = (np.abs(a[0]).max(axis=1) for a in parts(Z))
    sizes = [float(v.max()) / (1.0 - gain) for v, gain in zip(V, gains, strict=True)]
    if coupled:
        sizes = [float(V.max()) / (1.0 - max(gains))] * len(heads)
    factor = max(
        of.box_factor(head, r, q + r * head.q, k + r * head.k)
        for head, r, q, k in zip(heads, sizes, Q, K, strict=True)
    )
    up = 1.0 + 64 * EPS * (len(heads[0].v) + 8)
    return Box(np.array(sizes) * up, factor * up)


def _spectral_radius(cell: AttentionCell, at: Attended) -> float:
    """Of the Jacobian of one sample, computed; NaN without a causal mask."""
    blocks = diagonal_blocks(cell, at) if cell.mask.causal else []
    if not blocks or not np.all(np.isfinite(blocks)):  # those have overflowed
        return math.nan
    return max(float(np.abs(np.linalg.eigvals(J)).max()) for J in blocks)


def diagonal_blocks(cell: AttentionCell, at: Attended) -> list[np.ndarray]:
    r"""The diagonal blocks of the Jacobian of one sample with a causal mask.

    ``do_t -> do_t J_tt`` on row vectors, a block for each token,

        J_tt = R_q C_t + w_tt (R_k (dZ_tt/dk_t)^T (u_t - out_t) + R_v diag(u'(v_t))),
        C_t = sum_j w_tj (dZ_tj/dq_t)^T (u_j - out_t).

    A block holds the outputs of all heads where they are coupled.
    """
    of, (H, rows, _), h = cell.attention, cell.R.shape, at.V.shape[-1]
    W, K, Q, V, out = (np.asarray(a)[0] for a in (at.mean.weights(), at.K, at.Q, at.V, at.out))
    u, slope = np.asarray(of.values(V)), np.asarray(of.slopes(V))
    found: list[np.ndarray] = []
    for t in range(Q.shape[1]):
        columns = []
        for i in range(H):
            R_k, R_q, R_v = parts(cell.R[i])
            w, away = W[i, t], u[i] - out[i, t]
            own, C = of.own_motion(Q[i, t], K[i], t, w, away)
            columns.append(R_q @ C + w[t] * (np.outer(R_k @ own, away[t]) + R_v * slope[i, t]))
        found += [np.concatenate(columns, axis=1)] if rows > h else columns
    return found
