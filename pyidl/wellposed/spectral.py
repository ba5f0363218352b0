r"""The spectral condition: ``L ||A||_2 <= kappa < 1``.

``|f(x) - f(x')|_2 <= L |A (x - x')|_2 <= kappa |x - x'|_2``: Picard contracts by kappa in the Euclidean norm, and so does the adjoint.
phi may act on several components together, L being its Lipschitz constant in that norm.

**Projection.** Among all P with ``||P||_2 <= r`` the nearest to ``A = U S V^T`` in the Frobenius norm is ``U min(S, r) V^T``, for
``|A - P|_F`` is at least the distance of the singular values (von Neumann, Mirsky). For factors, ``L R^T = Q_1 K Q_2^T`` with
``K = R_1 R_2^T = U S V^T``, k by k; the same P is ``L' R^T`` with ``L' = L - Q_1 U (I - D) U^T Q_1^T L`` and ``D = min(S, r) / S``: L
shrinks in the directions that stick out, and R stays.

Source of the rounding-safe bounds: `pyidl.wellposed.bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyidl import backend
from pyidl.activations import Activation
from pyidl.backend import namespace, to_numpy
from pyidl.certificate import Certificate, Norm
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, check_kappa, lipschitz_rows, lowered, size_of, unknown_lipschitz, unproven
from pyidl.wellposed.bounds import EPS, spectral_norm_of

__all__ = ["SpectralNorm", "back"]


def back(like: Array, host: np.ndarray) -> Array:
    """A float64 array of the host in the library and the dtype of another."""
    xp = namespace(like)
    array: Array = backend.astype(xp, backend.from_host(xp, host), like.dtype)
    return array


@dataclass(frozen=True)
class SpectralNorm(Constraint):
    """The set ``||A||_2 <= kappa / L``, L the largest Lipschitz constant.

    `project` is the exact Euclidean projection: singular values are clipped. For factors it is the nearest point too, as a matrix, and
    only L is changed. Singular values are computed on the host in float64.

    Parameters
    ----------
    kappa : float
        Radius, between 0 and 1.

    Examples
    --------
    >>> from pyidl import activations
    >>> ball = SpectralNorm(0.9)
    >>> A = ball.project({"A": np.array([[0.0, -3.0], [0.5, 0.0]])}, activations.relu)["A"]
    >>> A.round(6)
    array([[ 0. , -0.9],
           [ 0.5,  0. ]])
    >>> ball.certificate({"A": A}, activations.relu).reason
    '||A||_2 <= 0.9, relu is 1-Lipschitz'
    """

    kappa: float = 0.99

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", check_kappa(self.kappa))

    def _radius(self, params: Params, activation: Activation) -> float:
        return self.kappa / float(np.max(lipschitz_rows(activation, size_of(params))))

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with singular values of A of at most ``kappa / L``."""
        if self.contains(params, activation):
            return dict(params)
        r, key = self._radius(params, activation), "A" if "A" in params else "L"
        like = params[key]
        eps = float(namespace(like).finfo(like.dtype).eps)
        host = to_numpy(like).astype(np.float64)
        if key == "A":
            U, S, Vt = np.linalg.svd(host, full_matrices=False)

            def clipped(t: float) -> np.ndarray:
                return np.asarray((U * np.minimum(S, t * r)) @ Vt)
        else:
            Q, one = np.linalg.qr(host)
            two = np.linalg.qr(to_numpy(params["R"]).astype(np.float64))[1]
            U, S, _ = np.linalg.svd(one @ two.T)
            wide = Q @ U

            def clipped(t: float) -> np.ndarray:
                lost = 1.0 - np.minimum(1.0, t * r / np.maximum(S, np.finfo(np.float64).tiny))
                return np.asarray(host - (wide * lost) @ (wide.T @ host))

        projected: dict[str, Array] = lowered(
            lambda t: {**params, key: back(like, clipped(t))}, lambda p: self.contains(p, activation), eps + 32 * len(host) * EPS
        )
        return projected

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether the bound of ``||A||_2`` that is safe against rounding is at most ``kappa / L``."""
        return spectral_norm_of(params) <= self._radius(params, activation)

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """``contraction = L ||A||_2``, the norm bounded from above with its roundings."""
        if activation.row_lipschitz(size_of(params)) is None:
            return unknown_lipschitz(activation)
        size, lipschitz = spectral_norm_of(params), float(np.max(lipschitz_rows(activation, size_of(params))))
        factor, words = size * lipschitz * (1.0 + 2 * EPS), f"{activation.name} is {lipschitz:.4g}-Lipschitz"
        if not factor < 1:
            return unproven(f"||A||_2 <= {size:.4g} and {words}, and the product {factor:.4g} is not below 1")
        return Certificate(True, factor, Norm("Euclidean"), "Picard", f"||A||_2 <= {size:.4g}, {words}")
