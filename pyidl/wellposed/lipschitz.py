r"""The output moves at most gamma times as far as the input, in the Euclidean norm.

For a componentwise phi with slopes in [0, 1], ``y = C x + D u + d``, a diagonal metric
Lam > 0 and m > 0:

    |D|_2 < gamma,    R = gamma I - D^T D / gamma,    X = Lam B + C^T D / gamma,
    Lam (I - A) + (I - A)^T Lam >= C^T C / gamma + X R^{-1} X^T + 2 m Lam.

**Theorem.** There is exactly one solution for every input, and ``|y - y'| <= gamma |u -
u'|``. *Proof.* Let w be the difference of two inputs, v that of their states. ``v = S
(A v + B w)`` with a diagonal S, 0 <= S <= I, so ``0 <= 2 <v, Lam (A v + B w - v)>``,
that is ``v^T Q v <= 2 v^T Lam B w``, Q the left side of the condition. With ``2 v^T X w
<= v^T X R^{-1} X^T v + w^T R w``,

    |C v + D w|^2 / gamma
        = v^T C^T C v / gamma + 2 v^T C^T D w / gamma + |D w|^2 / gamma
       <= 2 v^T X w - v^T X R^{-1} X^T v + |D w|^2 / gamma
       <= w^T R w + |D w|^2 / gamma = gamma |w|^2.

Existence and uniqueness: ``Lam^{1/2} A Lam^{-1/2}`` lies in the set of
`pyidl.wellposed.monotone`, and phi is a proximal map in every diagonal metric.

From here on, A, B, C stand for ``Lam^{1/2} A Lam^{-1/2}``, ``Lam^{1/2} B``, ``C
Lam^{-1/2}``, for which Lam = I.

**Projection.** For fixed B, C, D the condition is ``(A + A^T) / 2 <= Z := (1 - m) I -
(C^T C / gamma + X R^{-1} X^T) / 2``. As for `Monotone` the skew part stays, and with
``Z - (A + A^T) / 2 = O diag(w) O^T`` the nearest A is that plus ``O diag(min(w, 0))
O^T``. Z is defined for all B and C, so the set is never empty.

**Proof in floating point.** By Schur complements the condition is

    [[2 (1 - m) I - A - A^T, C^T], [C, gamma I]] - N N^T / gamma >= 0,    N = [-B; D],

of order n + q, whatever the number of inputs is. Its rounding is taken off its
diagonal, and a Cholesky factorisation decides (`eigenvalues.is_below`).

Source: Revay, Wang, Manchester, "Lipschitz bounded equilibrium networks", 2020 (with A
parametrised, not projected, and D = 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import Array, Params
from pyidl.wellposed.base import (
    Constraint,
    check_weights,
    expect_activation,
    needs_slopes,
    size_of,
    unproven,
    weights_for,
)
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.eigenvalues import (
    eigenvalue_bound,
    finite64,
    host64,
    is_below,
    norm_is_at_most,
    symmetric_part,
)
from pyidl.wellposed.monotone import splitting_certificate
from pyidl.wellposed.spectral import clipped

__all__ = ["LipschitzBound"]


@dataclass(frozen=True)
class LipschitzBound(Constraint):
    """The set in which the output moves at most gamma times as far as the input.

    With a margin m, ``Lam = diag(weights)``, R and X as at the head of this file:

        Lam (I - A) + (I - A)^T Lam >= C^T C / gamma + X R^{-1} X^T + 2 m Lam,
        |D|_2 <= (1 - m) gamma.

    Then ``|y - y'| <= gamma |u - u'|`` for any two inputs, in the Euclidean norm. So
    the class of u, the largest output, is that of every input nearer to it than the
    margin of the outputs divided by ``sqrt(2) gamma``.

    `project` clips the singular values of D, and then takes the nearest A, up to its
    rounding, in the metric Lam. B and C stay as they are. This is not the nearest point
    for all four together: where ``|B| |C| / gamma`` is large, A becomes strongly
    negative. Zeros of A and D do not stay zeros. The work is done on the host, in
    float64; parameters of which membership is proven are returned as they are.

    In an `ImplicitRNN` gamma bounds a step, from ``(u_t, h_{t-1})`` to h_t.

    Parameters
    ----------
    gamma : float
        Positive.
    margin : float
        Between 0 and 1. With a small one, a D near its bound makes A very negative.
    weights : sequence of n floats, optional
        The diagonal of Lam; 1 if left out. Their size matters, not only their ratios:
        they weigh B against C.

    Raises
    ------
    InputError
        If a number is out of range.

    Notes
    -----
    Source: Revay, Wang, Manchester, "Lipschitz bounded equilibrium networks", arXiv
    2010.01732, 2020 (with A parametrised, and D = 0).

    Examples
    --------
    >>> from pyidl import activations
    >>> one = np.ones((1, 1))
    >>> outside = {"A": one, "B": one, "C": one}
    >>> ball = LipschitzBound(0.5, margin=0.1)
    >>> inside = ball.project(outside, activations.relu)
    >>> inside["A"].round(6)  # 1 - m - 1 / gamma
    array([[-1.1]])
    >>> ball.certificate(inside, activations.relu).reason.split("; ")[1]
    'outputs move at most 0.5 times as far as inputs, in the Euclidean norm'
    """

    gamma: float
    margin: float = 0.1
    weights: tuple[float, ...] | None = None
    contracts: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = False
    projects: ClassVar[tuple[str, ...]] = ("A", "D")

    def __post_init__(self) -> None:
        if not (is_real(self.gamma) and 0 < self.gamma < math.inf):
            raise InputError(
                f"gamma is {self.gamma!r}; a Lipschitz constant is positive and finite"
            )
        if not (is_real(self.margin) and 0 < self.margin < 1):
            raise InputError(
                f"margin is {self.margin!r}; a set with A = 0 inside for small B and C needs "
                "0 < margin < 1"
            )
        object.__setattr__(self, "gamma", float(self.gamma))
        object.__setattr__(self, "margin", float(self.margin))
        object.__setattr__(self, "weights", check_weights(self.weights, why=""))

    @property
    def metric(self) -> np.ndarray | None:
        """lam, where it is not 1."""
        return None if self.weights is None else np.asarray(self.weights)

    def refusal(self, activation: Activation) -> str:
        """Slopes must be known, and lie in [0, 1]."""
        why = needs_slopes(activation)
        if not why and activation.slope_range is not None and activation.slope_range[1] > 1:
            top = activation.slope_range[1]
            why = f"its slopes reach {top:.4g}, and the condition needs them to lie in [0, 1]"
        return why

    def _matrices(self, params: Params, activation: Activation) -> tuple[np.ndarray, ...]:
        """The w of the norm, and A, B, C in the metric, and D; float64, on the host."""
        expect_activation(activation)
        size_of(params)
        if missing := [name for name in "ABC" if name not in params]:
            raise InputError(
                f"LipschitzBound is a condition on A, B, C and D together, and params lacks "
                f"{', '.join(missing)}; use an ImplicitModel with rank=None, and no BlockTriangular"
            )
        A, B, C = (host64(params[name]) for name in "ABC")
        D = host64(params["D"]) if "D" in params else np.zeros((C.shape[0], B.shape[1]))
        if D.shape != (C.shape[0], B.shape[1]):
            raise InputError(
                f"D has shape {D.shape}, and with B {B.shape} and C {C.shape} gamma is that of a D "
                f"{(C.shape[0], B.shape[1])}; for an ImplicitRNN use feedthrough=True or False"
            )
        weights = weights_for(self.weights, len(A))
        w = np.ones(len(A)) if weights is None else weights**-0.5
        with np.errstate(over="ignore", invalid="ignore"):
            return w, A * (w / w[:, None]), B / w[:, None], C * w, D

    def _holds(self, matrices: tuple[np.ndarray, ...], margin: float) -> bool:
        """Whether the condition is proven with this margin, for |D| <= gamma."""
        _, A, B, C, D = matrices
        n, (rows, p) = len(A), (len(A) + len(C), B.shape[1])
        N = np.concatenate([-B, D])
        with np.errstate(over="ignore", invalid="ignore"):
            F = -(N @ N.T) / self.gamma
            # Sums of p products are off by (p + 2) eps |N_i| |N_j|, and that is below
            # (p + 2) eps times the diagonal of their squares, once for every row. A
            # carries two roundings and is summed once, C and B carry one.
            blur = (p + 8) * rows * EPS * -np.diagonal(F)
            F[:n, :n] -= A + A.T
            F[:n, n:] += C.T
            F[n:, :n] += C
            blur[:n] += 4 * EPS * (np.abs(A).sum(axis=0) + np.abs(A).sum(axis=1))
            blur[:n] += 4 * EPS * np.abs(C).sum(axis=0)
            blur[n:] += 4 * EPS * np.abs(C).sum(axis=1)
            F += np.diag(np.repeat([2.0 * (1.0 - margin), self.gamma], [n, len(C)]) - blur)
        return bool(np.all(np.isfinite(F))) and is_below(-F, 0.0)

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params in the set: D clipped, A projected, B and C as they are.

        Raises
        ------
        InputError
            If A, B or C is missing, a shape does not fit, an entry is not finite, or a
            projection overflows.
        """
        self._matrices(params, activation)  # refuses what is missing, or no array
        for name in sorted(set("ABCD") & set(params)):
            finite64(name, params[name])
        inside = dict(params)
        if "D" in params:
            radius = (1.0 - self.margin) * self.gamma
            if not norm_is_at_most(params["D"], radius):
                inside["D"] = clipped(params["D"], radius)
        matrices = self._matrices(inside, activation)
        if not self._holds(matrices, self.margin):
            inside["A"] = self._nearest(inside["A"], matrices)
        return inside

    def _nearest(self, given: Array, matrices: tuple[np.ndarray, ...]) -> Array:
        """The projection of A, a little inside where its rounding asks for it."""
        w, A, B, C, D = matrices
        xp, gamma, n = namespace(given), self.gamma, len(A)
        _, sigma, V = np.linalg.svd(D, full_matrices=False)
        with np.errstate(over="ignore", invalid="ignore"):
            X = B + C.T @ D / gamma
            # R^{-1} is 1 / gamma, and in the directions of V sigma^2 / (gamma^2 - sigma^2)
            # times that more.
            Y = (X @ V.T) * (sigma / np.sqrt((gamma - sigma) * (gamma + sigma)))
            Z = (1.0 - self.margin) * np.eye(n) - 0.5 / gamma * (C.T @ C + X @ X.T + Y @ Y.T)
            S = symmetric_part(A)
            size = float(np.max(np.abs(Z))) + float(np.max(np.abs(A)))
        eps = 2.0 * float(xp.finfo(given.dtype).eps)
        inside = (eps + 4.0 * (n + B.shape[1] + 4) ** 2 * EPS) * size
        values, Q = np.linalg.eigh(Z - S) if size < math.inf else (w, S)
        while inside < math.inf:
            half = 0.5 * ((Q * np.minimum(values - inside, 0.0)) @ Q.T)
            with np.errstate(over="ignore", invalid="ignore"):
                moved = host64(given) + (half + half.T) * (w[:, None] / w)
                P: Array = backend.astype(xp, backend.from_host(xp, moved), given.dtype)
            if self._holds((w, host64(P) * (w / w[:, None]), B, C, D), self.margin):
                return P
            inside *= 4.0
        raise InputError(
            f"with gamma = {gamma:.4g}, A, B and C have entries of size {size:.4g} in the "
            "condition, and the projection of A overflows; use a smaller step, or a larger gamma"
        )

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether that is proven (on the boundary itself, it fails by rounding)."""
        matrices = self._matrices(params, activation)
        small = norm_is_at_most(matrices[-1], (1.0 - self.margin) * self.gamma)
        return small and self._holds(matrices, self.margin)

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """That of `Monotone`, in the metric; and whether gamma is proven, in words.

        The norm is Euclidean, with the weights ``lam^{-1/2}``.
        """
        why = self.refusal(activation)
        if why:
            return unproven(f"{activation.name}: {why}")
        if size_of(params) and "A" not in params:
            return unproven("the Lipschitz bound of factors A = L R^T is not examined")
        matrices = self._matrices(params, activation)
        w, A = matrices[:2]
        blur = 4 * EPS * float(np.linalg.norm(A)) if self.weights else 0.0
        norm = Norm("Euclidean", w if self.weights else None)
        top = eigenvalue_bound(symmetric_part(A)) + blur
        found = splitting_certificate({"A": A}, activation, top, norm, blur)
        moves = f"outputs move at most {self.gamma:.4g} times as far as inputs"
        if not (found.proven and self._holds(matrices, 0.0)):
            moves = f"that {moves} is not proven"
        where = ", in the metric of the weights" if self.weights else ""
        return replace(found, reason=f"{found.reason}{where}; {moves}, in the Euclidean norm")
