r"""The spectral condition, with L the largest Lipschitz constant of phi.

    L ||A||_2 <= kappa < 1.

phi moves by at most L times as much as its argument in the Euclidean norm:
componentwise with constants L_i, or in blocks with constants of their own Euclidean
norms, in both cases by the sum of the squares. So ``x -> phi(A x + z)`` contracts by
``L ||A||_2`` in the Euclidean norm, and its adjoint ``v -> J^T (A^T v) + ...``, the
norm being its own dual, by the same factor.

**Projection.** Let ``A = U diag(sigma) V^T``. The nearest point of the ball ``||X||_2
<= r`` is ``U diag(min(sigma, r)) V^T``. *Proof.* The singular values of X are at most
r, and by von Neumann's trace inequality ``<A, X> <= sum sigma_i(A) sigma_i(X)``, so
``|A - X|_F^2 >= sum (sigma_i(A) - sigma_i(X))^2 >= sum max(sigma_i(A) - r, 0)^2``,
which the point attains.

For factors that point is ``(P L) R^T`` with ``P = U diag(min(1, r / sigma)) U^T`` on
the range of L: it has factors with the same R.

Source: Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative
adversarial networks", ICLR 2018 (by power iteration, a lower bound); Lewis, "The convex
analysis of unitarily invariant matrix functions", J. Convex Anal. 2, 1995.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.typing import Array, Params
from pyidl.wellposed.base import (
    Constraint,
    check_kappa,
    known_lipschitz,
    lipschitz_rows,
    size_of,
    unknown_lipschitz,
    unproven,
)
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.eigenvalues import (
    factored_spectral_bound,
    finite64,
    host64,
    norm_is_at_most,
    spectral_bound,
)

__all__ = ["SpectralNorm", "clipped", "spectral_bound"]


@dataclass(frozen=True)
class SpectralNorm(Constraint):
    """The set ``||A||_2 <= kappa / L``.

    L is the largest Lipschitz constant of the activation.

    `project` is the exact Euclidean projection of A, up to its rounding: singular
    values above the radius are lowered to it. For factors ``A = L R^T`` it is the
    nearest product to L R^T, with the same R. Zeros of A do not stay zeros. The work is
    done on the host, in float64; parameters of which membership is proven are returned
    as they are.

    Parameters
    ----------
    kappa : float
        Between 0 and 1.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import activations
    >>> outside = {"A": np.array([[0.0, 2.0], [0.25, 0.0]])}
    >>> SpectralNorm(0.5).project(outside, activations.relu)["A"].round(6)
    array([[0.  , 0.5 ],
           [0.25, 0.  ]])
    """

    kappa: float = 0.99
    keeps_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", check_kappa(self.kappa))

    def _radius(self, params: Params, activation: Activation) -> float:
        """``kappa / L``."""
        return self.kappa / float(np.max(lipschitz_rows(activation, size_of(params))))

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with ``||A||_2 <= kappa / L``.

        Raises
        ------
        InputError
            If an entry of A, L or R is not finite.
        """
        if self.contains(params, activation):
            return dict(params)
        radius = self._radius(params, activation)
        if "A" in params:
            return {**params, "A": clipped(params["A"], radius)}
        return {**params, "L": _clipped_factor(params["L"], params["R"], radius)}

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether that is proven (on the boundary itself, it fails by rounding)."""
        radius = self._radius(params, activation)
        if "A" in params:
            return norm_is_at_most(params["A"], radius)
        return factored_spectral_bound(params["L"], params["R"]) <= radius

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """``contraction = L ||A||_2``, with an upper bound of that norm."""
        lipschitz = known_lipschitz(activation, size_of(params))
        if lipschitz is None:
            return unknown_lipschitz(activation)
        if "A" in params:
            size = spectral_bound(params["A"])
        else:
            size = factored_spectral_bound(params["L"], params["R"])
        factor = max(lipschitz) * size * (1.0 + EPS)
        norm, words = (
            f"||A||_2 = {size:.4g}",
            f"{activation.name} is {max(lipschitz):.4g}-Lipschitz",
        )
        if not factor < 1:
            return unproven(f"{norm} and {words}, and the product {factor:.4g} is not below 1")
        return Certificate(True, factor, Norm("Euclidean"), "Picard", f"{norm}, {words}")


def clipped(A: Array, radius: float) -> Array:
    """A with singular values of at most `radius`: the projection of A.

    A little inside, where its rounding asks for it: the cast may add about eps, and the
    proof takes n^2 eps.
    """
    xp, n = namespace(A), max(A.shape)
    U, sigma, Vt = np.linalg.svd(finite64("A", A), full_matrices=False)
    inside = 2.0 * float(xp.finfo(A.dtype).eps) + 2.0 * (n + 4) ** 2 * EPS
    while True:  # ends: where nothing else is inside, 0 is
        clipped = (U * np.minimum(sigma, radius * max(1.0 - inside, 0.0))) @ Vt
        P: Array = backend.astype(xp, backend.from_host(xp, clipped), A.dtype)
        if norm_is_at_most(P, radius):
            return P
        inside *= 4.0


def _clipped_factor(L: Array, R: Array, radius: float) -> Array:
    """``P L`` as in the head of this file.

    It is formed several times if L is so large that rounding leaves it outside, and
    scaled in the end.
    """
    xp = namespace(L)
    T2 = np.linalg.qr(finite64("R", R))[1]
    n, k = L.shape
    # The cast, and what the bound adds.
    inside = 2.0 * float(xp.finfo(L.dtype).eps) + (4.0 * (k + 4) ** 2 + 2.0 * n * k) * EPS
    given: Array = L
    left = finite64("L", L)
    for _ in range(3):
        Q1, T1 = np.linalg.qr(left)
        with np.errstate(over="ignore", invalid="ignore"):
            product = T1 @ T2.T
        if not np.all(np.isfinite(product)):
            break
        U, sigma, _ = np.linalg.svd(product)
        positive = np.maximum(sigma, np.finfo(np.float64).tiny)
        shrink = np.minimum(1.0, radius * (1.0 - inside) / positive)
        left = (Q1 @ U) @ (shrink[:, None] * (U.T @ T1))
        given = backend.astype(xp, backend.from_host(xp, left), L.dtype)
        if factored_spectral_bound(given, R) <= radius:
            return given
        left = host64(given)
        inside *= 4.0
    while not (bound := factored_spectral_bound(given, R)) <= radius:
        left = left * (0.0 if inside >= 1 else max(radius / bound, 2.0**-500) * (1.0 - inside))
        given = backend.astype(xp, backend.from_host(xp, left), L.dtype)
        inside *= 2.0
    return given
