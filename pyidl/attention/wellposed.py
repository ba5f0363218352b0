r"""When ``X = att(X R + Z)`` has exactly one solution, whatever Z.

A bound of how much one step can expand, from R alone.

States are measured by their largest entry, over tokens, heads and coordinates. For o ->
o M on row vectors with ``|o|_inf <= 1``,

    col_b(M) = sum_a |M_ab| >= |(o M)_b|,     col(M) = max_b col_b(M),
    nu(M) = min{ |(col_1, ..., col_h)|_2,  sqrt(rows) |M|_2,  sum_a |M_a.|_2 } >= |o M|_2.

**Lemma 1.** Let ``p_j >= 0, s = sum p_j <= 1, |u_j| <= 1, o = sum p_j u_j, |t_j| <=
beta (1 - u_j^2)``. Then, for any d_j, ``|sum p_j d_j (u_j - o) + sum p_j t_j| <=
N(sqrt(s sum p_j d_j^2), s beta)``, where

    N(a, b) = max over x in [0, 1] of a x + b (1 - x^2) = a if a >= 2b, otherwise b + a^2 / (4b).

*Proof.* ``sum p (u - o)^2 = sum p u^2 - (2 - s) o^2 <= sum p u^2 = s x^2`` with x in
[0, 1]. Cauchy and Schwarz bound the first sum by ``sqrt(sum p d^2) sqrt(s) x``; the
second is at most ``beta (s - s x^2)``. ∎

**Lemma 2.** For ``p_j = e^(-y_j) / (c + sum_l e^(-y_l))``, y in R_+^n: ``s sum p_j y_j
<= mu(c/n)^2``, with

    mu(t) = max_(y >= 0) sqrt(y) / (1 + t e^y) = (2y - 1) / (2 sqrt(y)) at y = 1/2 + W_0(1 / (2 t sqrt(e))),   W_0 Lambert's function,

and ``sum p_j y_j <= W_0(n / (e c))``.

*Proof.* With ``S = sum e^(-y_j)``, concavity gives ``sum p_j y_j <= S log(n/S) / (c +
S)``. Put y = log(n/S). ∎

The derivative of the map is ``sum_j w_ij dZ_ij (u_j - out_i) + sum_j w_ij du_j`` and
``phi' = (1 - phi^2)^(3/2) <= 1 - phi^2``, so Lemma 1 applies with d = dZ, t = du, for
changes of the state by at most 1:

    kernel            |dZ_ij| <= 2 sqrt(g) sqrt(y_j) |dq_i - dk_j|_2, y_j = g |q_i - k_j|^2     a = 2 sqrt(g) mu(c/n) (nu(R_q) + nu(R_k))
                                                                                                b = n/(n + c) col(R_v)
    bounded softmax   |d(q^ k^)| <= max(|dq|, |dk|), hence |dZ| <= D                            a = D, b = col(R_v)
                      D = tau min{ sum_b max(col_b(R_q), col_b(R_k)), sqrt(h (nu(R_q)^2 + nu(R_k)^2)) }

**Theorem.** If ``kappa = N(a, b) < 1``, there is exactly one solution for every Z, and
Picard contracts by kappa in the largest entry; the adjoint equation contracts by kappa
in the sum of absolute entries. n is the largest number of keys that a query sees.

A softmax whose q and k are not bounded has no such constant: see
`pyidl.certify_attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace, to_numpy
from pyidl.attention.maps import Attention, BoundedSoftmax, KernelAttention, Softmax
from pyidl.errors import InputError, expect, is_real
from pyidl.typing import Array, Params
from pyidl.wellposed import projections
from pyidl.wellposed.base import check_kappa, lowered, unproven
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.eigenvalues import spectral_bound

__all__ = ["AttentionBall", "Feedback", "attention_certificate", "combined", "lambert", "mu"]

UP = 1.0 + 64 * EPS
"""What a handful of operations may have rounded down."""


def lambert(z: float) -> float:
    """``W_0(z)``, the w >= 0 with ``w e^w = z``, for z >= 0."""
    import scipy.special

    return float(scipy.special.lambertw(z).real)


def mu(t: float) -> float:
    """``max_(y >= 0) sqrt(y) / (1 + t e^y)`` for t > 0; the constant of Lemma 2."""
    y = 0.5 + lambert(0.5 / (t * math.sqrt(math.e)))
    return (2.0 * y - 1.0) / (2.0 * math.sqrt(y)) * UP


def own_key(c: float) -> float:
    """``max sqrt(y E S) / (c + S)`` over y >= 0 and ``S >= E = e^(-y)``.

    What Lemma 2 is for the own key alone.

    ``S / (c + S)^2`` is largest at S = c, where it is 1 / (4c), or at S = E if that is
    above c.
    """
    y = max(1.0, math.log(1.0 / c))
    return max(mu(c), math.sqrt(y * math.exp(-y) / (4.0 * c)) * UP)


def combined(a: float, b: float) -> float:
    """``N(a, b) = max over x in [0, 1] of a x + b (1 - x^2)``.

    Between max(a, b) and a + b.
    """
    return a if a >= 2.0 * b else b + a * a / (4.0 * b)


@dataclass(frozen=True)
class Feedback:
    """Norms of the blocks of R for one head, rounded up.

    Attributes
    ----------
    k, q, v : numpy.ndarray, shape (h,)
        ``col_b`` of R_k, R_q and R_v.
    nu_k, nu_q : float
        Bounds of the norms from largest entry to Euclidean.
    """

    k: np.ndarray
    q: np.ndarray
    v: np.ndarray
    nu_k: float
    nu_q: float

    @classmethod
    def of(cls, params: Params) -> list[Feedback]:
        """Those of every head."""
        R, error = blocks(params)
        h, found = R.shape[2] // 3, []
        for M, E in zip(R, error, strict=True):
            columns = np.sum(np.abs(M) + E, axis=0) * (1.0 + (len(M) + 2) * EPS)
            found.append(
                cls(
                    columns[:h],
                    columns[h : 2 * h],
                    columns[2 * h :],
                    _nu(M[:, :h], E[:, :h]),
                    _nu(M[:, h : 2 * h], E[:, h : 2 * h]),
                )
            )
        return found

    def gains(self, attention: Attention, keys: int | None) -> tuple[float, float]:
        """``(a, b)`` of the head of this file; a is inf where nothing is known."""
        h, b = len(self.v), float(self.v.max())
        if isinstance(attention, KernelAttention):
            if keys is None:
                return math.inf, b
            g, c = attention.scale(h), attention.c
            return 2.0 * math.sqrt(g) * mu(c / keys) * (self.nu_q + self.nu_k), keys / (
                keys + c
            ) * b * UP
        if isinstance(attention, BoundedSoftmax):
            D = min(
                float(np.sum(np.maximum(self.q, self.k))),
                math.sqrt(h * (self.nu_q**2 + self.nu_k**2)),
            )
            return attention.scale(h) * D * (1.0 + (h + 4) * EPS), b
        return (math.inf if self.nu_q + self.nu_k > 0 else 0.0), b

    def factor(self, attention: Attention, keys: int | None) -> float:
        """Kappa."""
        return combined(*self.gains(attention, keys)) * UP


def blocks(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """R, (H, rows, 3h), in float64 on the host, and what rounding may have changed in it, entry by entry."""
    if "R" in params:
        R = to_numpy(params["R"]).astype(np.float64)
        return R, np.zeros_like(R)
    L, M = (to_numpy(params[key]).astype(np.float64) for key in "LM")
    return L @ M, (L.shape[2] + 2) * EPS * (np.abs(L) @ np.abs(M))


def _nu(M: np.ndarray, E: np.ndarray) -> float:
    size = np.abs(M) + E
    forms = (
        float(np.linalg.norm(size.sum(axis=0))),
        math.sqrt(len(M)) * (spectral_bound(M) + float(np.linalg.norm(E))),
        float(np.linalg.norm(size, axis=1).sum()),
    )
    return min(forms) * (1.0 + 4 * (M.size + 4) * EPS)


def attention_certificate(
    params: Params, attention: Attention, keys: int | None, causal: bool, explain: bool = False
) -> Certificate:
    """What is proven for the feedback R, or ``R = L M``, of a head that sees at most `keys` keys, for every input."""
    expect("explain", explain, bool, "use True or False")
    heads = Feedback.of(params)
    factors = [head.factor(attention, keys) for head in heads]
    i = int(np.argmax(factors))
    a, b = heads[i].gains(attention, keys)
    kappa, words = (
        factors[i],
        f"head {i} is the largest: N({a:.4g}, {b:.4g}) by what feeds back through q and k, and through v",
    )
    if kappa < 1:
        found = Certificate(
            True, kappa, Norm(), "Picard", f"{words}, with {type(attention).__name__}"
        )
    elif math.isinf(a) and isinstance(attention, Softmax):
        found = unproven(
            "a softmax of unbounded q and k has no Lipschitz constant, so nothing follows from the parameters alone; "
            "certify_attention(head, U) examines inputs, BoundedSoftmax and KernelAttention can be certified"
        )
    elif math.isinf(a):
        found = unproven(
            "the bound grows with the number of keys, which is not bounded; give the head a block_size"
        )
    else:
        found = unproven(
            f"{words}, which is {kappa:.4g} and not below 1; head.params = head.project(head.params) brings it below"
        )
    others = (
        [_token_by_token(heads, attention, keys, max(factors))]
        if causal and isinstance(attention, KernelAttention) and keys
        else []
    )
    better = next((other for other in others if other.proven and not found.proven), None)
    if better is not None:
        found, others = better, [found]
    return replace(found, others=tuple(others)) if explain else found


def _token_by_token(
    heads: list[Feedback], attention: KernelAttention, keys: int | None, kappa: float
) -> Certificate:
    r"""For a causal mask.

    Uniqueness already if a token's own motion is damped, while the tokens before it
    stand still.

    Own motion moves q in all terms but k and v in one, so that in Lemma 1 ``s p_i
    y_i``, for the own key, takes the place of the sum: it is ``y E S / (c + S)^2`` with
    E = e^(-y) <= S, at most the square of `own_key`. So token i alone contracts by some
    f, uniformly; all of them move token i by at most kappa. In the norm ``max_i |X_i| /
    w^i`` with ``w = 2 kappa / (1 - f)`` a step contracts by ``(1 + f) / 2``, and that
    norm differs from the largest entry by a factor of at most ``w^(n - 1)``.
    """
    n = int(keys or 1)
    c, own, f = attention.c, own_key(attention.c), 0.0
    for head in heads:
        g = attention.scale(len(head.v))
        a = 2.0 * math.sqrt(g) * (mu(c / n) * head.nu_q + own * head.nu_k)
        f = max(f, combined(a, n / (n + c) * float(head.v.max())) * UP)
    if not f < 1:
        return unproven(
            f"with the tokens before it at rest, a token expands by {f:.4g}, which is not below 1"
        )
    logarithm = (n - 1) * math.log(max(2.0 * kappa / (1.0 - f), 1.0))
    K = math.exp(logarithm) * (1.0 + (logarithm + 4) * 8 * EPS) if logarithm < 600 else math.inf
    reason = f"token by token: with the tokens before it at rest, a token contracts by {f:.4g}"
    if math.isinf(K):
        return Certificate(True, 1.0, Norm(), "Picard", reason, margin=0.0)
    return Certificate(
        True, 0.5 * (1.0 + f) * UP, Norm(), "Picard", reason, margin=0.5 * (1.0 - f) / K, constant=K
    )


@dataclass(frozen=True)
class AttentionBall:
    """The set in which every column of R_k, R_q and R_v is small enough for ``N(a, b) <= kappa``.

    The budget is divided: ``b <= theta kappa`` for what feeds back through the values,
    ``a <= 2 kappa sqrt(theta (1 - theta))`` for what feeds back through keys and
    queries; then ``b + a^2 / (4b) <= theta kappa + (1 - theta) kappa``. Since ``nu <=
    sqrt(h) max_b col_b``, that holds if the absolute sums of the columns are at most

        R_v      theta kappa (n + c) / n                                   theta kappa
        R_q, R_k 2 kappa sqrt(theta (1 - theta)) / (4 sqrt(g h) mu(c/n))   2 kappa sqrt(theta (1 - theta)) / (tau h)
                 with `KernelAttention`                                    with `BoundedSoftmax`

    `project` is the exact Euclidean projection onto that product of l1 balls. A product
    L M of factors is scaled, both alike, until ``N(a, b) <= kappa``. With `Softmax`,
    only R_v is bounded (by theta kappa, so that solutions exist), and nothing is
    certified.

    Parameters
    ----------
    kappa : float
        Radius, between 0 and 1.
    theta : float
        The share of the values, from 1/2 (which gives keys and queries all they can
        have) to 1.

    Raises
    ------
    InputError
        If one of them is out of range.

    Examples
    --------
    >>> ball = AttentionBall(0.9)
    >>> R = ball.project({"R": np.ones((1, 2, 6))}, BoundedSoftmax(), None)["R"]
    >>> attention_certificate({"R": R}, BoundedSoftmax(), None, True).contraction <= 0.9 * (1 + 1e-12)
    True
    """

    kappa: float = 0.95
    theta: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", check_kappa(self.kappa))
        if not (is_real(self.theta) and 0.5 <= self.theta < 1):
            raise InputError(f"theta is {self.theta!r}; the share of the values lies in [1/2, 1)")
        object.__setattr__(self, "theta", float(self.theta))

    def radii(self, h: int, attention: Attention, keys: int | None) -> np.ndarray:
        """The radius of every column of [R_k R_q R_v], (3h,); inf for none."""
        value, pair = (
            self.theta * self.kappa,
            2.0 * self.kappa * math.sqrt(self.theta * (1.0 - self.theta)),
        )
        if isinstance(attention, KernelAttention):
            if keys is None:
                raise InputError(
                    "the bound of KernelAttention grows with the number of keys; give the head a block_size"
                )
            value *= (keys + attention.c) / keys
            pair /= 4.0 * math.sqrt(attention.scale(h) * h) * mu(attention.c / keys)
        elif isinstance(attention, BoundedSoftmax):
            pair /= attention.scale(h) * h
        else:
            pair = math.inf
        return np.repeat([pair, pair, value], h) / UP

    def project(self, params: Params, attention: Attention, keys: int | None) -> dict[str, Array]:
        """Return feasible parameters: the nearest ones for a full R."""
        if "R" not in params:
            return self._shrink(params, attention, keys)
        R = params["R"]
        xp, (H, rows, width) = namespace(R), R.shape
        radii = self.radii(width // 3, attention, keys)
        kept = int(np.count_nonzero(np.isinf(radii)))  # the first ones
        columns = xp.reshape(xp.matrix_transpose(R)[:, kept:, :], (H * (width - kept), rows))
        inside = projections.l1_ball_rows(columns, np.tile(radii[kept:], H))
        if inside is columns:
            return dict(params)
        inside = xp.matrix_transpose(xp.reshape(inside, (H, width - kept, rows)))
        return {**params, "R": xp.concat([R[..., :kept], inside], axis=-1)}

    def contains(self, params: Params, attention: Attention, keys: int | None) -> bool:
        """Whether every column is within its radius.

        For factors, whether ``N(a, b) <= kappa``.
        """
        if "R" not in params:
            return bool(self._size(params, attention, keys) <= self.kappa)
        columns = np.abs(to_numpy(params["R"]).astype(np.float64)).sum(axis=1)
        return bool(np.all(columns <= self.radii(columns.shape[1] // 3, attention, keys)))

    def _size(self, params: Params, attention: Attention, keys: int | None) -> float:
        """The largest factor of a head; for a plain softmax, that of the values."""
        heads = Feedback.of(params)
        if isinstance(attention, Softmax):
            return max(float(head.v.max()) for head in heads) * UP
        return max(head.factor(attention, keys) for head in heads)

    def _shrink(self, params: Params, attention: Attention, keys: int | None) -> dict[str, Array]:
        """Both factors scaled alike, so that their product lies on the boundary.

        Kappa is homogeneous.
        """
        if isinstance(attention, KernelAttention):
            self.radii(1, attention, keys)
        size = self._size(params, attention, keys)
        if size <= self.kappa:
            return dict(params)
        scale = math.sqrt(self.kappa / size)
        eps = float(namespace(params["L"]).finfo(params["L"].dtype).eps)

        def scaled(t: float) -> dict[str, Any]:
            return {**params, "L": (t * scale) * params["L"], "M": (t * scale) * params["M"]}

        found: dict[str, Array] = lowered(scaled, lambda p: self.contains(p, attention, keys), eps)
        return found
