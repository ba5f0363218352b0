r"""The infinity-norm condition: ``L ||A||_inf <= kappa < 1``, with ``||A||_inf = max_i sum_j |A_ij|``.

Row i of ``x = phi(A x + z)`` moves by at most ``L_i sum_j |A_ij|`` times the largest entry of the change of x, so f
contracts by kappa in the largest-entry norm. The adjoint ``v = s * (A^T v + g)`` contracts by the same factor in the
sum of absolute entries, the dual norm.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math. Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyidl import backend, projections
from pyidl.activations import Activation
from pyidl.backend import namespace
from pyidl.certificate import Certificate, Norm
from pyidl.errors import InputError
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint

__all__ = ["InfNorm", "row_sums"]

CHUNK = 2**22  # entries of L R^T that are formed at a time


def row_sums(params: Params) -> np.ndarray:
    """``sum_j |A_ij|`` for every row, in float64, on the host; A is never formed whole when it is given by factors."""
    if "A" in params:
        A = params["A"]
        xp = namespace(A)
        return backend.to_numpy(xp.sum(xp.abs(A), axis=1, dtype=xp.float64))
    L, R = params["L"], params["R"]
    xp = namespace(L, R)
    Rt = backend.astype(xp, R, "float64").T
    rows = max(1, CHUNK // R.shape[0])
    n = L.shape[0]
    L = backend.astype(xp, L, "float64")
    sums = [xp.sum(xp.abs(L[i : min(i + rows, n), :] @ Rt), axis=1) for i in range(0, n, rows)]
    return backend.to_numpy(xp.concat(sums))


@dataclass(frozen=True)
class InfNorm(Constraint):
    """The set ``L_i sum_j |A_ij| <= kappa`` for every row i, where L_i is the Lipschitz constant of its activation.

    `project` is the exact Euclidean projection for a full A: every row goes to the nearest point of an l1 ball. For
    factors ``A = L R^T`` the set is not convex; there the rows of L that are too large are scaled onto its boundary (R
    and the other rows stay), which is feasible and idempotent but not the nearest point.

    Parameters
    ----------
    kappa : float
        Radius, between 0 and 1.

    Examples
    --------
    >>> from pyidl import activations
    >>> ball = InfNorm(0.9)
    >>> A = ball.project({"A": np.array([[2.0, 0.5], [0.1, 0.2]])}, activations.relu)["A"]
    >>> A.round(6)
    array([[0.9, 0. ],
           [0.1, 0.2]])
    """

    kappa: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.kappa < 1:
            raise InputError(f"kappa is {self.kappa}; a contraction needs 0 < kappa < 1")
        object.__setattr__(self, "kappa", float(self.kappa))

    def _radii(self, n: int, activation: Activation) -> np.ndarray:
        """``kappa / L_i``; with an unknown L nothing can be certified, and L = 1 is taken."""
        return self.kappa / np.asarray(activation.row_lipschitz(n) or [1.0] * n)

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with every row sum of A at most ``kappa / L_i``."""
        if "A" in params:
            A = params["A"]
            return {**params, "A": projections.l1_ball_rows(A, self._radii(A.shape[0], activation))}
        L, radii = params["L"], self._radii(params["L"].shape[0], activation)
        sums = row_sums(params)
        if bool(np.all(sums <= radii)):
            return dict(params)
        xp = namespace(L)
        # Rounding the scaled row changes entry j of A by at most eps |L_i| |R_j|, so its sum by eps |L_i| sum_j |R_j|.
        rounding = backend.to_numpy(backend.astype(xp, xp.abs(L) @ xp.sum(xp.abs(params["R"]), axis=0), "float64"))
        rounding *= 2.0 * float(xp.finfo(L.dtype).eps) + 4 * len(sums) * np.finfo(np.float64).eps
        shrink = np.where(sums <= radii, 1.0, radii / (np.maximum(sums, radii) + rounding))
        return {**params, "L": L * backend.astype(xp, backend.from_host(xp, shrink), L.dtype)[:, None]}

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether every row sum is at most ``kappa / L_i``."""
        sums = row_sums(params)
        return bool(np.all(sums <= self._radii(len(sums), activation)))

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """``contraction = max_i L_i sum_j |A_ij|``, rounded up by the error of the summation."""
        sums = row_sums(params)
        lipschitz = activation.row_lipschitz(len(sums))
        if lipschitz is None:
            return _unproven(f"the Lipschitz constant of the activation {activation.name!r} is not known")
        factor = float(np.max(np.asarray(lipschitz) * sums)) * (1.0 + 4 * len(sums) * np.finfo(np.float64).eps)
        norm, words = float(np.max(sums)), f"{activation.name} is {max(lipschitz):.4g}-Lipschitz"
        if not factor < 1:
            return _unproven(f"||A||_inf = {norm:.4g} and {words}, and the product {factor:.4g} is not below 1")
        return Certificate(True, factor, Norm(), "Picard", f"||A||_inf = {norm:.4g}, {words}")


def _unproven(reason: str) -> Certificate:
    return Certificate(False, float("inf"), Norm(), "no iteration", reason)
