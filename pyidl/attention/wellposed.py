r"""When ``X = att(X R + Z)`` has exactly one solution, whatever Z.

A bound of how much one step can expand, from R alone. Every map gives two gains
(`Attention.gains`, by Lemmas 1 and 2 of `pyidl.attention.feedback`): a bounds what a
change of the state by at most 1 does through keys and queries, b what it does through
values.

**Theorem.** If ``kappa = N(a, b) < 1``, where

    N(a, b) = max over x in [0, 1] of a x + b (1 - x^2),

there is exactly one solution for every Z, and Picard contracts by kappa in the largest
entry; the adjoint equation contracts by kappa in the sum of absolute entries.

*Proof.* By Lemma 1, kappa bounds the derivative of a step, so that a step contracts;
the adjoint equation has the transposed derivative, and the dual norm. ∎

A softmax whose q and k are not bounded has no such constant: see
`pyidl.certify_attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pyidl.arrays.backend import namespace, to_numpy
from pyidl.attention.feedback import UP, Feedback, combined
from pyidl.attention.maps import Attention
from pyidl.errors import InputError, expect, is_real
from pyidl.typing import Array, Params, Setting
from pyidl.wellposed import projections
from pyidl.wellposed.base import check_kappa, lowered, unproven
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm

__all__ = ["AttentionBall", "attention_certificate"]


def attention_certificate(
    params: Params, attention: Attention, keys: int | None, causal: bool, explain: bool = False
) -> Certificate:
    """What is proven for the feedback R, or ``R = L M``, of a head, for every input.

    Parameters
    ----------
    params : mapping
        With R, (H, rows, 3h), or its factors L and M.
    attention : Attention
        The map att.
    keys : int or None
        The largest number of keys that a query sees; None if nothing bounds it.
    causal : bool
        Whether a token sees only itself and those before it.
    explain : bool
        Whether to list in `Certificate.others` what was examined besides.

    Returns
    -------
    Certificate

    Examples
    --------
    >>> from pyidl import BoundedSoftmax
    >>> R = np.full((1, 2, 6), 0.1)
    >>> attention_certificate({"R": R}, BoundedSoftmax(), None, True).proven
    True
    """
    expect("explain", explain, bool, "use True or False")
    heads = Feedback.of(params)
    factors = [attention.factor(head, keys) for head in heads]
    i = int(np.argmax(factors))
    kappa, (a, b) = factors[i], attention.gains(heads[i], keys)
    words = (
        f"head {i} is the largest: N({a:.4g}, {b:.4g}) by what feeds back through q and k, "
        "and through v"
    )
    if kappa < 1:
        reason = f"{words}, with {type(attention).__name__}"
        found = Certificate(True, kappa, Norm(), "Picard", reason)
    elif math.isinf(a) and (refusal := attention.refusal(keys)):
        found = unproven(refusal)
    else:
        found = unproven(
            f"{words}, which is {kappa:.4g} and not below 1; "
            "head.params = head.project(head.params) brings it below"
        )
    others: list[Certificate] = []
    if causal and keys and (own := [g for R in heads if (g := attention.own_gains(R, keys))]):
        others = [_token_by_token(own, keys, kappa)]
    if others and others[0].proven and not found.proven:
        found, others = others[0], [found]
    return replace(found, others=tuple(others)) if explain else found


def _token_by_token(own: list[tuple[float, float]], n: int, kappa: float) -> Certificate:
    r"""What a causal mask adds.

    Own motion is damped while the tokens before stand still.

    That is enough for uniqueness. With the gains of its own motion, token i alone
    contracts by some f, uniformly; all of them move token i by at most kappa. In the
    norm ``max_i |X_i| / w^i`` with ``w = 2 kappa / (1 - f)`` a step contracts by ``(1 +
    f) / 2``, and that norm differs from the largest entry by a factor of at most ``w^(n
    - 1)``.
    """
    f = max(combined(a, b) * UP for a, b in own)
    if not f < 1:
        return unproven(
            f"with the tokens before it at rest, a token expands by {f:.4g}, which is not below 1"
        )
    logarithm = (n - 1) * math.log(max(2.0 * kappa / (1.0 - f), 1.0))
    K = math.exp(logarithm) * (1.0 + (logarithm + 4) * 8 * EPS) if logarithm < 600 else math.inf
    reason = f"token by token: with the tokens before it at rest, a token contracts by {f:.4g}"
    if math.isinf(K):
        return Certificate(True, 1.0, Norm(), "Picard", reason, margin=0.0)
    contraction, margin = 0.5 * (1.0 + f) * UP, 0.5 * (1.0 - f) / K
    return Certificate(True, contraction, Norm(), "Picard", reason, margin=margin, constant=K)


@dataclass(frozen=True)
class AttentionBall(Setting):
    """Every column of R_k, R_q and R_v is so small that ``N(a, b) <= kappa``.

    The budget is divided: ``b <= theta kappa`` for what feeds back through the values,
    ``a <= 2 kappa sqrt(theta (1 - theta))`` for what feeds back through keys and
    queries; then ``b + a^2 / (4b) <= theta kappa + (1 - theta) kappa``. That holds if
    the absolute sums of the columns are at most (`Attention.radii`)

        R_v         theta kappa (n + c) / n              with `KernelAttention`
                    theta kappa                          with `BoundedSoftmax`
        R_q, R_k    pair / (4 sqrt(g h) mu(c/n))         with `KernelAttention`
                    pair / (tau h)                       with `BoundedSoftmax`
        pair        2 kappa sqrt(theta (1 - theta))

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
    >>> from pyidl import BoundedSoftmax
    >>> ball = AttentionBall(0.9)
    >>> params = ball.project({"R": np.ones((1, 2, 6))}, BoundedSoftmax(), None)
    >>> found = attention_certificate(params, BoundedSoftmax(), None, True)
    >>> found.contraction <= 0.9 * (1 + 1e-12)
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
        budget = 2.0 * self.kappa * math.sqrt(self.theta * (1.0 - self.theta))
        pair, value = attention.radii(budget, self.theta * self.kappa, h, keys)
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
        """The largest size of a head."""
        return max(attention.size(head, keys) for head in Feedback.of(params))

    def _shrink(self, params: Params, attention: Attention, keys: int | None) -> dict[str, Array]:
        """Both factors scaled alike, so that their product lies on the boundary.

        Sizes are homogeneous.
        """
        attention.radii(0.0, 0.0, 1, keys)  # refuses where there is no bound
        size = self._size(params, attention, keys)
        if size <= self.kappa:
            return dict(params)
        scale = math.sqrt(self.kappa / size)
        eps = float(namespace(params["L"]).finfo(params["L"].dtype).eps)

        def scaled(t: float) -> dict[str, Array]:
            return {**params, "L": (t * scale) * params["L"], "M": (t * scale) * params["M"]}

        found: dict[str, Array] = lowered(scaled, lambda p: self.contains(p, attention, keys), eps)
        return found
