r"""The infinity-norm condition ``L ||A||_inf <= kappa < 1``.

    ||A||_inf = max_i sum_j |A_ij| eta_j / eta_i,    eta = 1 at first.

Row i of ``x = phi(A x + z)`` moves by at most ``L_i sum_j |A_ij| eta_j`` times ``max_j
|x_j| / eta_j``, so f contracts by kappa in the norm ``max_i |x_i| / eta_i``. The
adjoint ``v = s * (A^T v + g)``, written for ``w = A^T v + g``, contracts by the same
factor in ``sum_i eta_i |w_i|``, the dual norm.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.typing import Array, Params
from pyidl.wellposed import projections
from pyidl.wellposed.base import (
    Constraint,
    check_kappa,
    check_weights,
    known_lipschitz,
    lipschitz_rows,
    rowwise,
    size_of,
    unknown_lipschitz,
    unproven,
    weights_for,
)
from pyidl.wellposed.blocknorms import Gains, acts_together, gains, scale_rows, shrunk_rows
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm

__all__ = ["InfNorm", "absolute_row_sums", "scale_factors", "slabs"]

CHUNK = 2**22  # entries of L R^T that are formed at a time


def absolute_row_sums(params: Params, weights: np.ndarray | None = None) -> np.ndarray:
    """``sum_j |A_ij| w_j`` for every row, in float64, on the host.

    A is never formed whole when it is given by factors.
    """
    xp = namespace(rowwise(params))
    if "A" in params and weights is None:
        return backend.to_numpy(xp.sum(xp.abs(params["A"]), axis=1, dtype=xp.float64))
    w = 1.0 if weights is None else backend.from_host(xp, weights)
    sums = [xp.sum(xp.abs(slab) * w, axis=1) for _, slab in slabs(params)]
    return backend.to_numpy(xp.concat(sums))


def slabs(params: Params) -> Iterator[tuple[int, Any]]:
    """``(i, rows of A from the i-th on)``, in float64.

    A product of factors is formed some rows at a time.
    """
    if "A" in params:
        yield 0, backend.astype(namespace(params["A"]), params["A"], "float64")
        return
    xp, n = namespace(params["L"], params["R"]), params["L"].shape[0]
    L, R = (backend.astype(xp, params[key], "float64") for key in "LR")
    rows = max(1, CHUNK // n)
    for i in range(0, n, rows):
        yield i, L[i : min(i + rows, n), :] @ R.T


def factor_rounding(params: Params, weights: np.ndarray | None) -> np.ndarray:
    """``|L| (|R|^T w)``: what roundings of rows of L, and of L R^T, are relative to."""
    L, R = params["L"], params["R"]
    xp = namespace(L)
    magnitude = xp.abs(backend.astype(xp, R, "float64"))
    w = xp.ones(R.shape[0], dtype=xp.float64) if weights is None else backend.from_host(xp, weights)
    return backend.to_numpy(xp.abs(backend.astype(xp, L, "float64")) @ (magnitude.T @ w))


def scale_factors(
    params: Params, weights: np.ndarray | None, radii: np.ndarray
) -> dict[str, Array]:
    """Factors whose rows have ``sum_j |A_ij| w_j <= radii_i``.

    The rows of L that are too large are scaled onto the boundary.
    """
    sums = absolute_row_sums(params, weights)
    if bool(np.all(sums <= radii)):
        return dict(params)
    # Rounding the scaled row changes entry j of A by at most eps |L_i| |R_j|, so its
    # sum by eps |L_i| sum_j |R_j| w_j.
    eps = float(namespace(params["L"]).finfo(params["L"].dtype).eps)
    rounding = factor_rounding(params, weights) * (2.0 * eps + 4 * len(sums) * EPS)
    shrink = radii / (np.maximum(sums, radii) + rounding)
    return scale_rows(params, np.where(sums <= radii, 1.0, shrink))


@dataclass(frozen=True)
class InfNorm(Constraint):
    """The set ``L_i sum_j |A_ij| eta_j / eta_i <= kappa`` for every row i.

    L_i is the Lipschitz constant of the activation of component i.

    `project` is the exact Euclidean projection for a full A: every row goes to the
    nearest point of a weighted l1 ball. For factors ``A = L R^T`` the set is not
    convex; there the rows of L that are too large are scaled onto its boundary (R and
    the other rows stay), which is feasible and idempotent but not the nearest point.
    The same is done with the rows of A where the activation acts on several components
    together; the condition is then one on the matrix of block norms
    (`pyidl.wellposed.blocknorms`).

    Parameters
    ----------
    kappa : float
        Radius, between 0 and 1.
    weights : sequence of float, optional
        eta, n numbers between 1e-150 and 1e150; 1 if left out. Equal within a block on
        which the activation acts as a whole.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import activations
    >>> ball = InfNorm(0.9)
    >>> outside = {"A": np.array([[3.0, 1.0], [0.2, 0.1]])}
    >>> A = ball.project(outside, activations.relu)["A"]
    >>> A.round(6)
    array([[0.9, 0. ],
           [0.2, 0.1]])
    >>> ball.certificate({"A": A}, activations.relu).reason
    '||A||_inf = 0.9, relu is 1-Lipschitz'
    """

    kappa: float = 0.99
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", check_kappa(self.kappa))
        object.__setattr__(self, "weights", check_weights(self.weights))

    def refusal(self, activation: Activation) -> str:
        """Unequal weights within a block, which is Lipschitz in the plain norm only."""
        eta = np.asarray(self.weights or [1.0])
        blocks = acts_together(activation, len(eta))
        if any(len(set(eta[start:stop])) > 1 for start, stop in blocks):
            return "it acts on several components together, and their weights differ"
        return ""

    def _radii(self, n: int, activation: Activation) -> np.ndarray:
        """``kappa eta_i / L_i``."""
        eta = weights_for(self.weights, n)
        return self.kappa / lipschitz_rows(activation, n) * (1.0 if eta is None else eta)

    def _rows(self, found: Gains) -> np.ndarray:
        """``sum_J (G N)_IJ eta_J / eta_I`` for every block."""
        eta = weights_for(self.weights, int(found.sizes.sum()))
        if eta is None:
            return np.asarray(found.matrix.sum(axis=1))
        return np.asarray((found.matrix @ eta[found.starts]) / eta[found.starts])

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with every row sum of A at most ``kappa / L_i``."""
        n = size_of(params)
        if acts_together(activation, n):
            return self._shrink(params, activation)
        eta, radii = weights_for(self.weights, n), self._radii(n, activation)
        if "A" in params:
            return {**params, "A": projections.weighted_l1_ball_rows(params["A"], radii, eta)}
        return scale_factors(params, eta, radii)

    def _shrink(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Rows of blocks that are too large, scaled onto the boundary."""
        found = gains(params, activation)
        sums = self._rows(found)
        if np.all(sums <= self.kappa):
            return dict(params)
        shrink = found.spread(np.minimum(self.kappa / np.maximum(sums, self.kappa), 1.0))
        outside = found.spread(sums > self.kappa)
        return shrunk_rows(params, outside, shrink, lambda p: self.contains(p, activation))

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether every row sum is at most ``kappa / L_i``."""
        n = size_of(params)
        if acts_together(activation, n):
            return bool(np.all(self._rows(gains(params, activation)) <= self.kappa))
        sums = absolute_row_sums(params, weights_for(self.weights, n))
        return bool(np.all(sums <= self._radii(n, activation)))

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """``contraction = max_i L_i sum_j |A_ij| eta_j / eta_i``, rounded up."""
        n = size_of(params)
        lipschitz, eta = known_lipschitz(activation, n), weights_for(self.weights, n)
        if lipschitz is None:
            return unknown_lipschitz(activation)
        refused = self.refusal(activation)
        if refused:
            return unproven(refused)
        words = f"{activation.name} is {max(lipschitz):.4g}-Lipschitz"
        up = 1.0 + 4 * (n + 4) * EPS
        if acts_together(activation, n):
            found, words = gains(params, activation), f"of block norms; {words}"
            factor = float(np.max(self._rows(found))) * up
            norm = found.norm(None if eta is None else eta[found.starts])
            size = factor / max(lipschitz)
        else:
            sums, norm = absolute_row_sums(params, eta), Norm(weights=eta)
            if "L" in params:
                sums = sums + (params["L"].shape[1] + 2) * EPS * factor_rounding(params, eta)
            sums = sums if eta is None else sums / eta
            factor, size = float(np.max(np.asarray(lipschitz) * sums)) * up, float(np.max(sums))
        if not factor < 1:
            return unproven(
                f"||A||_inf = {size:.4g} and {words}, and the product {factor:.4g} is not below 1"
            )
        return Certificate(True, factor, norm, "Picard", f"||A||_inf = {size:.4g}, {words}")
