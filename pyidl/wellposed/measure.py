r"""The condition on the matrix measure, for phi with slopes in [0, 1].

    mu(A) = max_i (A_ii + sum_{j != i} |A_ij| eta_j / eta_i) <= kappa < 1.

A condition that nothing bounds from below: a unit may inhibit itself as strongly as it
likes. With slopes in [0, L_i] it is one on diag(L) A. Write ``d_i = L_i A_ii``, ``o_i =
L_i sum_{j != i} |A_ij| eta_j / eta_i`` and ``mu = max_i (d_i + o_i) < 1``.

**Uniqueness and error.** Let e = x - x*, r = f(x) - x. By the mean value theorem ``e +
r = s * (A e)`` with s_i in [0, L_i], so

    |e_i| (1 - s_i A_ii) <= s_i sum_{j != i} |A_ij| |e_j| + |r_i|.

At an i where ``|e_i| / eta_i`` is largest, this is ``(1 - s_i (d_i + o_i) / L_i) |e| <=
|r|`` in the norm ``max |x_i| / eta_i``, hence

    |e| <= |r| / m,   m = 1 - max(mu, 0).

Entry by entry: for A_ii >= 0 the worst s_i is L_i, and ``(1 - d_i) |e_i| - L_i sum
|A_ij| |e_j| <= |r_i|``; for A_ii < 0 divide by ``1 - s_i A_ii >= 1``, and the worst is
again L_i: ``|e_i| - L_i / (1 - d_i) sum |A_ij| |e_j| <= |r_i|``.

**Iterations.** The Jacobi splitting contracts by ``max_i o_i / (1 - d_i)``
(`pyidl.solvers.jacobi`). Without a closed-form scalar solution, the average ``x <- (1 -
a) x + a f(x)`` does: row i of its derivative is ``1 - a + a s_i A_ii``, which is not
negative for ``a <= 1 / (1 - min(d_i, 0))``, and ``a s_i |A_ij|``, so that it contracts
by ``1 - a (1 - max(mu, 0))``, best for the largest a that all rows allow. Averaging
pre-activations is the same thing, seen after the product: from ``y = A x + z`` follows
``(1 - a) y + a (A phi(y) + z) = A x' + z``, x' the averaged x.

Source: Jafarpour, Davydov, Proskurnikov, Bullo, "Robust implicit networks via
non-Euclidean contractions", NeurIPS 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import Array, Params
from pyidl.wellposed import projections
from pyidl.wellposed.base import (
    SMALLEST,
    Constraint,
    check_weights,
    lipschitz_rows,
    needs_slopes,
    rowwise,
    size_of,
    unproven,
    weights_for,
)
from pyidl.wellposed.blocknorms import shrunk_rows
from pyidl.wellposed.bounds import EPS, complement, entries
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.comparison import lower
from pyidl.wellposed.infnorm import factor_rounding, slabs

__all__ = ["MatrixMeasure", "optimal_weights", "parts"]


def parts(params: Params, eta: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """``A_ii`` and ``sum_{j != i} |A_ij| eta_j / eta_i`` for every row, on the host.

    A product of factors is never formed whole.
    """
    xp = namespace(rowwise(params))
    w = None if eta is None else backend.from_host(xp, eta)[None, :]
    found = (projections.measure_parts(xp, slab, w, i) for i, slab in slabs(params))
    diagonal, off = (
        backend.to_numpy(xp.concat(column))[:, 0] for column in zip(*found, strict=True)
    )
    return diagonal, off


@dataclass(frozen=True)
class MatrixMeasure(Constraint):
    """The set ``A_ii + sum_{j != i} |A_ij| eta_j / eta_i <= kappa / L_i`` for all i.

    It is for activations with slopes in [0, L_i].

    `project` is the exact Euclidean projection for a full A, row by row. For factors,
    rows of L that are too large are scaled onto the boundary: feasible and idempotent,
    not the nearest point.

    Parameters
    ----------
    kappa : float
        Below 1; 0 and less are allowed, for a full A.
    weights : sequence of float, optional
        eta, n numbers between 1e-150 and 1e150; 1 if left out. Those that make the
        measure smallest are found by `optimal_weights`.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import activations
    >>> outside = {"A": np.array([[1.0, 1.0], [0.5, -9.0]])}
    >>> A = MatrixMeasure(0.5).project(outside, activations.relu)["A"]
    >>> A.round(6)
    array([[ 0.25,  0.25],
           [ 0.5 , -9.  ]])
    >>> c = MatrixMeasure().certificate({"A": A}, activations.tanh)
    >>> c.applies_to[:19], round(c.contraction, 6), c.reason
    ('Picard(damping=0.90', 0.95, 'mu(A) = 0.5, tanh has slopes in [0, 1]')
    """

    contracts = False
    keeps_zeros = False  # a zero on the diagonal may become negative

    kappa: float = 0.95
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (is_real(self.kappa) and -math.inf < self.kappa < 1):
            raise InputError(
                f"kappa is {self.kappa!r}; the matrix measure needs a finite kappa < 1"
            )
        object.__setattr__(self, "kappa", float(self.kappa))
        object.__setattr__(self, "weights", check_weights(self.weights))

    def refusal(self, activation: Activation) -> str:
        """Slopes must lie in [0, L]."""
        return needs_slopes(activation)

    def _bounds(self, n: int, activation: Activation) -> np.ndarray:
        return self.kappa / lipschitz_rows(activation, n)

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with a measure of at most ``kappa / L_i`` in every row."""
        n = size_of(params)
        eta, bounds = weights_for(self.weights, n), self._bounds(n, activation)
        if "A" in params:
            return {**params, "A": projections.measure_rows(params["A"], bounds, eta)}
        if self.kappa < 0:
            raise InputError(
                f"kappa is {self.kappa}: rows of factors A = L R^T are scaled, which does not lead "
                "below 0; use rank=None"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            measure = np.sum(parts(params, eta), axis=0)
        if not np.all(np.isfinite(measure)):
            raise InputError(
                "the row sums of A = L R^T overflow, so that no factor shrinks them; use a smaller "
                "step"
            )
        outside = measure > bounds
        if not outside.any():
            return dict(params)
        shrink = bounds / np.where(outside, measure, 1.0)
        return shrunk_rows(params, outside, shrink, lambda p: self.contains(p, activation))

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether the measure of every row is at most ``kappa / L_i``."""
        n = size_of(params)
        measure = np.sum(parts(params, weights_for(self.weights, n)), axis=0)
        return bool(np.all(measure <= self._bounds(n, activation)))

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """The factor of the Jacobi splitting, or of the averaged iteration.

        The latter where the scalar equation has no closed form.
        """
        refused, n = needs_slopes(activation), size_of(params)
        if refused:
            return unproven(f"{activation.name}: {refused}")
        return measure_certificate(params, activation, weights_for(self.weights, n))


def measure_certificate(
    params: Params, activation: Activation, eta: np.ndarray | None
) -> Certificate:
    """What the measure with weights eta proves; slopes are known to lie in [0, L]."""
    n = size_of(params)
    lipschitz, (a, off) = lipschitz_rows(activation, n), parts(params, eta)
    rounding: np.ndarray | float = 0.0
    if "L" in params:  # of the product, for the diagonal and the rest together
        rounding = (params["L"].shape[1] + 2) * EPS * factor_rounding(params, eta)
        rounding = rounding / (1.0 if eta is None else eta)
    d = lipschitz * (a + rounding) + 4 * EPS * lipschitz * np.abs(a)
    o = lipschitz * (off + rounding) * (1.0 + 4 * (n + 4) * EPS)
    low = lipschitz * (a - rounding) - 4 * EPS * lipschitz * np.abs(a)  # d, rounded down
    least, gain = max(-float(np.min(low)), 0.0), float(np.max(np.maximum(d, -low) + o))
    mu = float(np.max(d + o + 2 * EPS * (np.abs(d) + o)))
    words = f"mu(A) = {mu:.4g}" + ("" if eta is None else " with weights")
    L = float(np.max(lipschitz))
    words += "" if L == 1.0 else ", rows times their slopes"
    words += f", {activation.name} has slopes in [0, {L:.4g}]"
    if not mu < 1:
        return unproven(f"{words}, and the measure is not below 1")
    margin = complement(max(mu, 0.0))
    if activation.scalar_solve is not None and L * float(np.max(a + rounding)) < 1:
        name, factor = "Jacobi", float(np.max(o / (1.0 - d))) * (1.0 + 8 * EPS)
        # |f(x) - x|_i lies between (1 - max(d_i, 0)) and (1 + max(-d_i, 0)) times the
        # change of x_i in a step of the splitting.
        constant = (1.0 + least) / (1.0 - max(float(np.max(d)), 0.0)) * (1.0 + 8 * EPS)
    else:
        # 1 - a, rounded up: then a is one of those that all rows allow.
        damping = min(least / (1.0 + least) * (1.0 + 4 * EPS), 1.0)
        name = f"Picard(damping={damping!r})" if damping > 0 else "Picard"
        factor = (damping + (1.0 - damping) * max(mu, 0.0)) * (1.0 + 8 * EPS)
        # Picard returns phi(y) = f(x) for the averaged x, whose residual f(f(x)) - f(x)
        # is at most that of x times the gain of f.
        constant = max(1.0, gain) * (1.0 + 8 * EPS)
    M = _comparison(params, lipschitz)
    norm = Norm(weights=eta)
    return Certificate(True, min(1.0, factor), norm, name, words, margin, M, constant)


def _comparison(params: Params, lipschitz: np.ndarray) -> np.ndarray:
    """M of the file's head, rounded down."""
    A, error = entries(params)
    A_up = np.diagonal(A) + (0.0 if isinstance(error, float) else np.diagonal(error))
    d = lipschitz * A_up
    M = -lipschitz[:, None] * (np.abs(A) + error) * (1.0 + 4 * EPS)
    M = np.where((d < 0)[:, None], M / (1.0 - d)[:, None], M)
    np.fill_diagonal(M, np.where(d < 0, 1.0, 1.0 - d - 4 * EPS * np.abs(d)))
    return np.asarray(lower(M))


def optimal_weights(params: Params, activation: Activation) -> np.ndarray | None:
    """Weights for which the measure of diag(L) A is nearly as small as it can be.

    The smallest is the largest real eigenvalue of C, which is diag(L) A with absolute
    values off the diagonal: ``C eta <= mu eta``. With a multiple of I added, C is
    nonnegative, and the weights are the scaling of `pyidl.wellposed.perronfrobenius`.

    Parameters
    ----------
    params : mapping
        With A, or L and R.
    activation : Activation
        phi, with slopes in [0, L].

    Returns
    -------
    numpy.ndarray, shape (n,), or None
        The largest is 1. None where floating point finds none.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = np.array([[0.0, 16.0], [0.01, 0.0]])
    >>> optimal_weights({"A": A}, activations.relu).round(4)
    array([1.   , 0.025])
    """
    from pyidl.wellposed.perronfrobenius import positive_scaling

    lipschitz, (A, error) = lipschitz_rows(activation, size_of(params)), entries(params)
    C = lipschitz[:, None] * (np.abs(A) + error)
    d = lipschitz * np.diagonal(A)
    shift = max(0.0, -float(np.min(d)))
    np.fill_diagonal(C, d + shift)
    with np.errstate(all="ignore"):
        # At mu = 1 the factor is 1: there the search begins.
        eta, factor = positive_scaling(C / (1.0 + shift), spread=1.0 / SMALLEST)
    return eta / np.max(eta) if np.isfinite(factor) else None
