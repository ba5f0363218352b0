r"""Attention maps ``out = att(K, Q, V)``, one class each.

Three of them, which differ in features, values, and the weight c of a null key.

Tokens are rows, of samples (m) and heads (H): K, Q, V have the shape (m, H, T, h). With
``phi(s) = s / sqrt(1 + s^2)``,

    out_i = sum_j w_ij u(v_j),     w_ij = E_ij / (c + sum_l E_il),
    E_ij = exp Z_ij where query i may see key j, else 0,

    kernel           Z_ij = -g |q_i - k_j|^2             u = phi       c > 0
    bounded softmax  Z_ij = tau <phi(q_i), phi(k_j)>     u = phi       c = 0
    softmax          Z_ij = tau <q_i, k_j>               u(v) = v      c = 0

In all three Z is an inner product of features of a row, ``Z_ij = <a(q_i), b(k_j)>``:

    kernel           a(x) = (sqrt(2g) x, -g |x|^2, 1),
                     b(x) the same with the last two components swapped
    bounded softmax  a(x) = b(x) = sqrt(tau) phi(x)
    softmax          a(x) = b(x) = sqrt(tau) x

**Rounding.** An inner product is wrong by some roundings of its largest term. For the
softmax that is no more than a rounding of q or k would change it. A distance is more
delicate: ``2 <q, k> - |q|^2 - |k|^2`` of keys close to q, far from 0, is a difference
of large numbers. As the distance stays the same if one vector c is taken from q and k
alike, the mean of the keys is, ``att(K, Q, V) = att(K - c, Q - c, V)``: as an identity
in K and Q, so that derivatives with respect to them are equal as well, and nothing goes
through c. What is still large then is multiplied in double precision (`placed`).

So their derivatives are those of `pyidl.attention.weighted_mean`, and of a and u row by
row: for a cotangent of the output, (gA, gB, gU) go to ``gQ = a'(q)^T gA``, ``gK =
b'(k)^T gB``, ``gV = u'(v) gU``.

**What is proven.** A map also says how much it can expand what feeds back into it, for
`pyidl.attention.wellposed` and `pyidl.attention.certify`, which ask nothing else of it.
Let the state change by at most 1, so that q, k and v move by dq, dk and dv, with
``|dq_b| <= col_b(R_q)``, ``|dq|_2 <= nu(R_q)``, and k and v alike (norms:
`pyidl.attention.feedback`). Then

    dout_i = sum_j w_ij dZ_ij (u_j - out_i) + sum_j w_ij du_j,

``|u_j| <= 1`` and ``phi' = (1 - phi^2)^(3/2) <= 1 - phi^2``, so Lemma 1 applies with
d = dZ, t = du. Second derivatives along the same directions are

    out'' = E[(Z' - EZ')^2 (u - out)] + Cov(Z'', u) + 2 Cov(Z', u') + E[u''],

where the null key counts as a key whose exponent and value stay 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, namespace
from pyidl.arrays.fusion import fused
from pyidl.attention.feedback import UP, Feedback, combined, lambert, mu, own_key
from pyidl.attention.weighted_mean import Average, Averaged, Mask, row_sums, some
from pyidl.errors import InputError, is_real, is_whole
from pyidl.typing import Array, Setting
from pyidl.wellposed.bounds import EPS

__all__ = [
    "ETA",
    "FAR",
    "Attended",
    "Attention",
    "BoundedSoftmax",
    "KernelAttention",
    "Mask",
    "Softmax",
    "phi",
    "phi_slope",
]

UNMASKED = Mask()
FAR = 1e9
"""From here on phi is 1 to the last digit, and FAR^2 is still a number in float32."""
WIDE = 4.0
"""Up to this ``g |x|^2`` exponents may be formed in float32.

They round near its tolerance.
"""
ETA: float = 1.5 * 1.25**-2.5 * (1 + 8 * EPS)
"""``eta = max |phi''|``, ``phi'' = -3 s (1 + s^2)^(-5/2)``, attained at 1/2."""


@fused
def phi(s: Any) -> Any:
    """``s / sqrt(1 + s^2)``, in (-1, 1)."""
    xp = namespace(s)
    s = xp.clip(s, -FAR, FAR)
    return s / xp.sqrt(1.0 + s * s)


@fused
def phi_slope(s: Any) -> Any:
    """``phi'(s) = (1 + s^2)^(-3/2) = (1 - phi^2)^(3/2)``."""
    xp = namespace(s)
    s = xp.clip(s, -FAR, FAR)
    r = 1.0 / xp.sqrt(1.0 + s * s)
    return r * r * r


@dataclass(frozen=True)
class Attention(Setting, ABC):
    """Base class of the maps: a frozen dataclass with the formulas of this file's head.

    For use, see `KernelAttention`, `BoundedSoftmax` and `Softmax`. Another map gives
    the methods that are abstract here; those about `Feedback` are all that certificates
    ask of it.
    """

    def placed(self, K: Any, Q: Any, mask: Mask) -> tuple[Any, Any]:
        """K and Q with the same exponents, or the same weights, that round less."""
        return K, Q

    @abstractmethod
    def features(self, x: Any) -> Any:
        """a(x), (..., h) -> (..., f)."""

    @abstractmethod
    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """The derivative of a at x, applied to dx."""

    @abstractmethod
    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """The transposed derivative of a at x, applied to a cotangent G, (..., f)."""

    def slope(self, x: Any) -> Any:
        """What `push` and `pull` use of x, formed once."""
        return x

    @abstractmethod
    def average(self, h: int, mask: Mask) -> Average:
        """The mean over keys, for a head of size h."""

    def mirrored(self, a: Any) -> Any:
        """Exchange a and b."""
        return a

    def values(self, V: Any) -> Any:
        """What is averaged: u(v), ``phi(v)`` unless a map says otherwise."""
        return phi(V)

    def slopes(self, V: Any) -> Any:
        """The derivative u'(v), entry by entry."""
        return phi_slope(V)

    def keys(self, K: Any) -> Any:
        """The features of keys: b(k), (..., h) -> (..., f)."""
        return self.mirrored(self.features(K))

    def __call__(self, K: Array, Q: Array, V: Array, mask: Mask = UNMASKED) -> Any:
        """``att(K, Q, V)``, (m, H, T, h).

        There may be fewer queries than keys where nothing is masked.
        """
        K, Q = self.placed(K, Q, mask)
        return self.average(Q.shape[-1], mask)(self.features(Q), self.keys(K), self.values(V))

    def at(self, K: Array, Q: Array, V: Array, mask: Mask = UNMASKED) -> Attended:
        """The map at a point, with its derivatives."""
        return self.at_placed(*self.placed(K, Q, mask), V, mask)

    def at_placed(self, K: Any, Q: Any, V: Any, mask: Mask) -> Attended:
        """The same for K and Q that `placed` has returned."""
        mean = self.average(Q.shape[-1], mask).at(self.features(Q), self.keys(K), self.values(V))
        return Attended(self, K, Q, V, (self.slope(K), self.slope(Q), self.slopes(V)), mean)

    # ------------------------------------------------- what is proven for every input

    @abstractmethod
    def gains(self, R: Feedback, keys: int | None) -> tuple[float, float]:
        """``(a, b)`` of Lemma 1 for one head and at most `keys` keys.

        a is inf where nothing is known; `refusal` then says why.
        """

    def factor(self, R: Feedback, keys: int | None) -> float:
        """``kappa = N(a, b)``: how much a step expands at most."""
        return combined(*self.gains(R, keys)) * UP

    def refusal(self, keys: int | None) -> str:
        """Why no bound follows from R for so many keys, in words; "" where one does."""
        return ""

    @abstractmethod
    def radii(self, a: float, b: float, h: int, keys: int | None) -> tuple[float, float]:
        """Bounds of the columns of R_q and R_k, and of R_v, that keep gains below a, b.

        ``nu <= sqrt(h) max_b col_b``, so that such bounds follow from `gains`.
        """

    def size(self, R: Feedback, keys: int | None) -> float:
        """What `AttentionBall` keeps below its radius; homogeneous in R."""
        return self.factor(R, keys)

    def own_gains(self, R: Feedback, keys: int) -> tuple[float, float] | None:
        """``(a, b)`` for the motion of a token alone, under a causal mask.

        None where no better ones are known than `gains`.
        """
        return None

    # ------------------------------------------ what is proven for a state, or an input

    @property
    def distances(self) -> tuple[float, ...]:
        """How far around a point `curvature` is asked for: everywhere, or so far."""
        return (math.inf,)

    @abstractmethod
    def rates(self, R_q: Any, R_k: Any, q: Any, k: Any, w: Any) -> Any:
        """``H_j >= |dZ_j|`` up to what does not depend on j, for one query, (n,).

        q is (h,), k (n, h), w the weights (n,), R_q and R_k are (rows, h).
        """

    @abstractmethod
    def curvature(self, R: Feedback, point: tuple[Any, Any, Any], d: float, n: int) -> float:
        """M: a bound of second derivatives within the distance d of a point (K, Q, V).

        For directions of size 1, one head, and at most n keys.
        """

    @abstractmethod
    def own_motion(self, q: Any, k: Any, t: int, w: Any, away: Any) -> tuple[Any, Any]:
        """``(dZ_tt / dk_t, sum_j w_j (dZ_tj / dq_t)^T away_j)``, (h,) and (h, h).

        For the query q of token t; away, (n, h), is ``u_j - out_t``.
        """

    def box_factor(self, R: Feedback, r: float, q: Any, k: Any) -> float:
        """A bound of the expansion where the state, q and k are bounded.

        By ``|X| <= r``, and entry by entry by the given q and k, (h,). inf where
        nothing is known beyond `factor`.
        """
        return math.inf


@dataclass(frozen=True)
class KernelAttention(Attention):
    """``w_ij = e_ij / (c + sum_l e_il)``, ``e_ij = exp(-g |q_i - k_j|^2)``.

    The mean is taken of phi(v). Lipschitz without any bound of q and k, so that
    feedback can be certified from the parameters. A query that sees no key, or none
    that is near, has the output 0.

    Distances keep their digits where tokens share an offset or lie far apart: q and k
    are measured from the mean of the keys and, in float32, multiplied in double
    precision where exponents are still large. In float64 a spread of s bandwidths ``1 /
    sqrt(g)`` rounds outputs by about ``2e-16 s^2``: from s = 300 on solves may end
    STAGNATED, and without feedback through q and k nothing says so.

    Parameters
    ----------
    bandwidth : float, optional
        g. Default ``1 / h``: for entries of unit variance ``|q - k|^2`` is about 2 h,
        and with g = 1 all weights vanish from h = 16 on.
    c : float
        The weight of the null key, positive. With c = 0 the map would not be Lipschitz.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.

    Examples
    --------
    >>> att, X = KernelAttention(bandwidth=0.5), np.ones((1, 1, 3, 2))
    >>> at = att.at(X, X, X)
    >>> at.out.shape, [gradient.shape for gradient in at.vjp(X)]
    ((1, 1, 3, 2), [(1, 1, 3, 2), (1, 1, 3, 2), (1, 1, 3, 2)])
    """

    bandwidth: float | None = None
    c: float = 0.25
    tile: int | None = None

    def __post_init__(self) -> None:
        _check(self, "bandwidth", "c", "tile")

    def scale(self, h: int) -> float:
        """Return g for a head of size h."""
        return 1.0 / h if self.bandwidth is None else self.bandwidth

    def average(self, h: int, mask: Mask) -> Average:
        """With a null key; exponents are at most 0."""
        return Average(self.c, 0.0, mask, self.tile)

    def placed(self, K: Any, Q: Any, mask: Mask) -> tuple[Any, Any]:
        """Both less the mean of the keys; in float64 where exponents are large."""
        xp, near = namespace(K), _centred(K, Q, mask)
        if K.dtype == xp.float32:
            size = float(xp.maximum(*(xp.max(xp.sum(x * x, axis=-1)) for x in near)))
            if not self.scale(K.shape[-1]) * size <= WIDE:
                return _centred(astype(xp, K, xp.float64), astype(xp, Q, xp.float64), mask)
        return near

    def features(self, x: Any) -> Any:
        """``(sqrt(2g) x, -g |x|^2, 1)``."""
        xp, g = namespace(x), self.scale(x.shape[-1])
        square = row_sums(x * x)
        return xp.concat([math.sqrt(2 * g) * x, -g * square, xp.ones_like(square)], axis=-1)

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``(sqrt(2g) dx, -2g <x, dx>, 0)``."""
        xp, g = namespace(x), self.scale(x.shape[-1])
        inner = row_sums(x * dx)
        return xp.concat([math.sqrt(2 * g) * dx, -2 * g * inner, xp.zeros_like(inner)], axis=-1)

    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """``sqrt(2g) G_(1..h) - 2g x G_(h+1)``."""
        h, g = x.shape[-1], self.scale(x.shape[-1])
        return _difference(x, G[..., :h], G[..., h : h + 1], math.sqrt(2 * g), 2 * g)

    def mirrored(self, a: Any) -> Any:
        """The last two components swapped."""
        h = a.shape[-1] - 2
        return namespace(a).concat([a[..., :h], a[..., h + 1 :], a[..., h : h + 1]], axis=-1)

    def gains(self, R: Feedback, keys: int | None) -> tuple[float, float]:
        """``a = 2 sqrt(g) mu(c/n) (nu(R_q) + nu(R_k))``, ``b = n/(n + c) col(R_v)``.

        By Lemma 2, as ``|dZ_ij| <= 2 sqrt(g) sqrt(y_j) |dq_i - dk_j|_2`` with ``y_j =
        g |q_i - k_j|^2``.
        """
        if keys is None:
            return math.inf, R.values
        a = 2.0 * math.sqrt(self.scale(len(R.v))) * mu(self.c / keys) * (R.nu_q + R.nu_k)
        return a, keys / (keys + self.c) * R.values * UP

    def refusal(self, keys: int | None) -> str:
        """The number of keys must be bounded."""
        return (
            "the bound grows with the number of keys, which is not bounded; give the head a "
            "block_size"
            if keys is None
            else ""
        )

    def radii(self, a: float, b: float, h: int, keys: int | None) -> tuple[float, float]:
        """``a / (4 sqrt(g h) mu(c/n))`` and ``b (n + c) / n``.

        Raises
        ------
        InputError
            If the number of keys is not bounded.
        """
        if keys is None:
            raise InputError(
                "the bound of KernelAttention grows with the number of keys; give the head a "
                "block_size"
            )
        pair = a / (4.0 * math.sqrt(self.scale(h) * h) * mu(self.c / keys))
        return pair, b * ((keys + self.c) / keys)

    def own_gains(self, R: Feedback, keys: int) -> tuple[float, float] | None:
        """Own motion moves q in all terms but k and v in one.

        So for k, in Lemma 1, ``s p_i y_i`` of the own key takes the place of the sum:
        it is ``y E S / (c + S)^2`` with ``E = e^(-y) <= S``, at most the square of
        `own_key`.
        """
        pair = mu(self.c / keys) * R.nu_q + own_key(self.c) * R.nu_k
        return 2.0 * math.sqrt(self.scale(len(R.v))) * pair, keys / (keys + self.c) * R.values

    def rates(self, R_q: Any, R_k: Any, q: Any, k: Any, w: Any) -> Any:
        """``H_j = 2g (|(q - k_j) R_q^T|_1 + |(q - k_j) R_k^T|_1)``."""
        d = q - k
        return 2.0 * self.scale(len(q)) * (_sizes(d @ R_q.T) + _sizes(d @ R_k.T))

    def curvature(self, R: Feedback, point: tuple[Any, Any, Any], d: float, n: int) -> float:
        """``8 g B^2 w + 2 g B^2 + 4 sqrt(g w) B beta + eta beta^2``, everywhere.

        ``B = nu(R_q) + nu(R_k)``, ``beta = col(R_v)``, ``w = W_0(n / (e c))``.
        """
        g, B, w = self.scale(len(R.v)), R.nu_q + R.nu_k, lambert(n / (math.e * self.c))
        of_pairs = 8.0 * g * B * B * w + 2.0 * g * B * B
        return of_pairs + 4.0 * math.sqrt(g * w) * B * R.values + ETA * R.values**2

    def own_motion(self, q: Any, k: Any, t: int, w: Any, away: Any) -> tuple[Any, Any]:
        """``2g (q - k_t)`` and ``-2g sum_j w_j (q - k_j)^T away_j``."""
        g = 2.0 * self.scale(len(q))
        return g * (q - k[t]), -g * ((w[:, None] * (q - k)).T @ away)


def _centred(K: Any, Q: Any, mask: Mask) -> tuple[Any, Any]:
    """K and Q less the mean of the keys, of those that are there; 0 for the others."""
    xp = namespace(K)
    if mask.tokens is None:
        centre = xp.sum(K / K.shape[2], axis=2, keepdims=True)  # so that no sum overflows
        return K - centre, Q - centre
    there = mask.tokens[:, None, :, None]
    count = xp.sum(astype(xp, there, K.dtype), axis=2, keepdims=True)
    centre = xp.sum(xp.where(there, K / xp.maximum(count, 1.0), 0.0), axis=2, keepdims=True)
    return xp.where(there, K - centre, 0.0), xp.where(there, Q - centre, 0.0)


@fused
def _difference(x: Any, head: Any, last: Any, a: Any, b: Any) -> Any:
    return a * head - b * x * last


@dataclass(frozen=True)
class _InnerProduct(Attention):
    """Exponents tau times an inner product."""

    tau: float | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        _check(self, "tau", "tile")

    def scale(self, h: int) -> float:
        """Tau for a head of size h."""
        return 1.0 / math.sqrt(h) if self.tau is None else self.tau

    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """Features act entry by entry, so that the derivative is its own transpose."""
        return self.push(x, slope, G)


@dataclass(frozen=True)
class Softmax(_InnerProduct):
    """``w_i = softmax of tau <q_i, k_j>`` over the keys that i sees, and values v.

    The usual attention.

    Not Lipschitz: feedback through q or k cannot be certified from the parameters
    (`pyidl.certify_attention` certifies inputs). A mask that leaves a query without
    keys is refused.

    Parameters
    ----------
    tau : float, optional
        Default ``1 / sqrt(h)``.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.

    Examples
    --------
    >>> att, X = Softmax(), np.eye(3)[None, None]
    >>> at = att.at(X, X, X, Mask(causal=True))
    >>> np.round(at.mean.weights()[0, 0], 2)
    array([[1.  , 0.  , 0.  ],
           [0.36, 0.64, 0.  ],
           [0.26, 0.26, 0.47]])
    """

    def average(self, h: int, mask: Mask) -> Average:
        """Without a null key; nothing bounds the exponents."""
        mask.check()
        return Average(0.0, math.inf, mask, self.tile)

    def features(self, x: Any) -> Any:
        """``sqrt(tau) x``."""
        return math.sqrt(self.scale(x.shape[-1])) * x

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``sqrt(tau) dx``."""
        return math.sqrt(self.scale(x.shape[-1])) * dx

    def values(self, V: Any) -> Any:
        """Return v itself."""
        return V

    def slopes(self, V: Any) -> Any:
        """The derivative of ``u(v) = v``: ones."""
        return namespace(V).ones_like(V)

    def gains(self, R: Feedback, keys: int | None) -> tuple[float, float]:
        """Without bounds of q and k, nothing is known unless R_q = R_k = 0."""
        return (math.inf if R.nu_q + R.nu_k > 0 else 0.0), R.values

    def refusal(self, keys: int | None) -> str:
        """Whatever the number of keys."""
        return (
            "a softmax of unbounded q and k has no Lipschitz constant, so nothing follows from "
            "the parameters alone; certify_attention(head, U) examines inputs, BoundedSoftmax "
            "and KernelAttention can be certified"
        )

    def radii(self, a: float, b: float, h: int, keys: int | None) -> tuple[float, float]:
        """R_v is bounded, so that solutions exist; R_q and R_k are not."""
        return math.inf, b

    def size(self, R: Feedback, keys: int | None) -> float:
        """``col(R_v)``, for the same reason."""
        return R.values * UP

    @property
    def distances(self) -> tuple[float, ...]:
        """Second derivatives grow with q, k and v, so that several are tried."""
        return tuple(4.0**-i for i in range(20))

    def rates(self, R_q: Any, R_k: Any, q: Any, k: Any, w: Any) -> Any:
        """``H_j = tau (|(k_j - sum_l w_l k_l) R_q^T|_1 + |q R_k^T|_1)``."""
        return self.scale(len(q)) * (_sizes((k - w @ k) @ R_q.T) + np.abs(q @ R_k.T).sum())

    def curvature(self, R: Feedback, point: tuple[Any, Any, Any], d: float, n: int) -> float:
        """``2 V D^2 + 2 V tau sum_b q_b k_b + 2 D beta`` within the distance d.

        There ``|v| <= V`` and ``|Z'| <= D``; q_b, k_b are the columns of R_q and R_k,
        ``beta = col(R_v)``.
        """
        K, Q, V = (
            np.abs(x).max(axis=0) + d * column
            for x, column in zip(point, (R.k, R.q, R.v), strict=True)
        )
        tau, largest = self.scale(len(R.v)), float(V.max())
        D = tau * float(K @ R.q + Q @ R.k)
        of_pairs = 2.0 * largest * D * D + 2.0 * largest * tau * float(R.q @ R.k)
        return of_pairs + 2.0 * D * R.values

    def own_motion(self, q: Any, k: Any, t: int, w: Any, away: Any) -> tuple[Any, Any]:
        """``tau q`` and ``tau sum_j w_j k_j^T away_j``."""
        tau = self.scale(len(q))
        return tau * q, tau * ((w[:, None] * k).T @ away)

    def box_factor(self, R: Feedback, r: float, q: Any, k: Any) -> float:
        """``r tau sum_b (k_b col_b(R_q) + q_b col_b(R_k)) + col(R_v)``.

        Because ``|Cov(dZ, v)| <= max |dZ| r``.
        """
        return r * self.scale(len(R.v)) * float(k @ R.q + q @ R.k) + R.values


@dataclass(frozen=True)
class BoundedSoftmax(_InnerProduct):
    """``w_i = softmax of tau <phi(q_i), phi(k_j)>``, and values phi(v).

    The softmax is taken over the keys that i sees. Exponents lie between ``-tau h`` and
    ``tau h``: the map is Lipschitz, with a constant that does not depend on the number
    of keys. A mask that leaves a query without keys is refused.

    Parameters
    ----------
    tau : float, optional
        Default ``1 / sqrt(h)``. A larger tau lets attention be sharper, and leaves less
        room for feedback.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.

    Examples
    --------
    >>> att, X = BoundedSoftmax(tau=0.5), np.eye(3)[None, None]
    >>> at = att.at(X, X, X, Mask(causal=True))
    >>> np.round(at.mean.weights()[0, 0], 2)
    array([[1.  , 0.  , 0.  ],
           [0.44, 0.56, 0.  ],
           [0.3 , 0.3 , 0.39]])
    """

    def average(self, h: int, mask: Mask) -> Average:
        """Without a null key; exponents are at most tau h."""
        mask.check()
        return Average(0.0, self.scale(h) * h, mask, self.tile)

    def features(self, x: Any) -> Any:
        """``sqrt(tau) phi(x)``."""
        return math.sqrt(self.scale(x.shape[-1])) * phi(x)

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``sqrt(tau) phi'(x) dx``."""
        return math.sqrt(self.scale(x.shape[-1])) * (slope * dx)

    def slope(self, x: Any) -> Any:
        """The derivative ``phi'(x)``, entry by entry."""
        return phi_slope(x)

    def gains(self, R: Feedback, keys: int | None) -> tuple[float, float]:
        """``a = D`` and ``b = col(R_v)``, where ``|dZ| <= D``.

            D = tau min{ sum_b max(col_b(R_q), col_b(R_k)),
                         sqrt(h (nu(R_q)^2 + nu(R_k)^2)) },

        because ``|d(phi(q) phi(k))| <= max(|dq|, |dk|)``, entry by entry.
        """
        h = len(R.v)
        D = min(float(np.sum(np.maximum(R.q, R.k))), math.sqrt(h * (R.nu_q**2 + R.nu_k**2)))
        return self.scale(h) * D * (1.0 + (h + 4) * EPS), R.values

    def radii(self, a: float, b: float, h: int, keys: int | None) -> tuple[float, float]:
        """``a / (tau h)`` and b."""
        return a / (self.scale(h) * h), b

    def rates(self, R_q: Any, R_k: Any, q: Any, k: Any, w: Any) -> Any:
        """``tau (|(phi'(q) * phi(k_j)) R_q^T|_1 + |(phi(q) * phi'(k_j)) R_k^T|_1)``."""
        of_query, of_key = phi_slope(q) * phi(k), phi(q) * phi_slope(k)
        return self.scale(len(q)) * (_sizes(of_query @ R_q.T) + _sizes(of_key @ R_k.T))

    def curvature(self, R: Feedback, point: tuple[Any, Any, Any], d: float, n: int) -> float:
        """M, everywhere, from the columns q_b and k_b of R_q and R_k.

            2 D^2 + tau sum_b (eta q_b^2 + 2 q_b k_b + eta k_b^2)
            + 2 D beta + eta beta^2,

        with D of `gains` and ``beta = col(R_v)``.
        """
        D, beta = self.gains(R, n)
        of_pairs = float(np.sum(ETA * R.q**2 + 2.0 * R.q * R.k + ETA * R.k**2))
        M = 2.0 * D * D + self.scale(len(R.v)) * of_pairs
        return M + (2.0 * D * beta + ETA * beta**2)

    def own_motion(self, q: Any, k: Any, t: int, w: Any, away: Any) -> tuple[Any, Any]:
        """``tau phi'(k_t) * phi(q)`` and the other with ``phi'(q)`` in front.

        It is ``tau diag(phi'(q)) sum_j w_j phi(k_j)^T away_j``.
        """
        tau = self.scale(len(q))
        of_query = tau * phi_slope(q)[:, None] * ((w[:, None] * phi(k)).T @ away)
        return tau * phi_slope(k[t]) * phi(q), of_query


@dataclass(frozen=True, repr=False)
class Attended:
    """An attention map at a point: its value and its two derivatives.

    Attributes
    ----------
    mean : Averaged
        The mean over keys, of features.
    """

    attention: Attention
    K: Array
    Q: Array
    V: Array
    slopes: tuple[Any, Any, Any]
    mean: Averaged

    @property
    def out(self) -> Array:
        """``att(K, Q, V)``."""
        return self.mean.out

    def jvp(self, dK: Any, dQ: Any, dV: Any) -> Any:
        """The derivative along (dK, dQ, dV)."""
        of, (k, q, v) = self.attention, self.slopes
        da, db = of.push(self.Q, q, dQ), of.mirrored(of.push(self.K, k, dK))
        return astype(namespace(dV), self.mean.jvp(da, db, v * dV), dV.dtype)

    def vjp(self, G: Any) -> tuple[Any, Any, Any]:
        """``(gK, gQ, gV)``.

        ``<G, jvp(dK, dQ, dV)> = <gK, dK> + <gQ, dQ> + <gV, dV>``.
        """
        of, (k, q, v) = self.attention, self.slopes
        ga, gb, gU = self.mean.vjp(G)
        both = of.pull(self.K, k, of.mirrored(gb)), of.pull(self.Q, q, ga)
        gK, gQ = (astype(namespace(G), g, G.dtype) for g in both)
        return gK, gQ, v * gU

    def take(self, rows: Any) -> Attended:
        """The same for some of the samples, numbered on the host or by a slice."""
        K, Q, V, k, q, v = (some(a, rows) for a in (self.K, self.Q, self.V, *self.slopes))
        return Attended(self.attention, K, Q, V, (k, q, v), self.mean.take(rows))


def _sizes(rows: Any) -> Any:
    """Sums of absolute entries, row by row."""
    return np.abs(rows).sum(axis=1)


def _check(attention: Attention, *names: str) -> None:
    """Numbers become Python's: one of NumPy's would make float64 of float32."""
    for name in names:
        value = getattr(attention, name)
        number = is_whole(value) if name == "tile" else is_real(value)
        if not (number and 0 < value < math.inf) and (value is not None or name == "c"):
            kind = "a positive integer" if name == "tile" else "a positive number"
            raise InputError(
                f"{name} is {value!r}; it must be {kind}"
                + ("" if name == "c" else ", or None for the default")
            )
        if value is not None:
            object.__setattr__(attention, name, int(value) if name == "tile" else float(value))
