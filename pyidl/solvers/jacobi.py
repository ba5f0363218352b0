r"""Jacobi splitting: take the diagonal of A implicitly.

With ``A = diag(d) + N``, N with zero diagonal, solve ``x_i = phi(d_i x_i + r_i)`` for x_i entry by entry, and iterate
over ``r = N x + z``. Where the scalar equation has a closed form, a step costs no more than Picard's:

    ReLU, identity, hard tanh     x_i = phi(r_i / (1 - d_i))
    adjoint, v = s * (A^T v + g)  v_i = s_i w_i / (1 - s_i d_i),   w = N^T v + g

**Theorem.** Let phi have slopes in [0, 1] and ``mu_i = d_i + sum_{j != i} |A_ij| < 1`` for all i. Then there is exactly one
fixed point, and the iteration contracts in the largest-entry norm by ``rho = max_i sum_{j != i} |A_ij| / (1 - d_i) < 1``.
*Proof.* r -> x_i has slopes ``s / (1 - s d_i)``, increasing in s, hence at most ``1 / (1 - d_i)``: so
``|x_i - x'_i| <= |r_i - r'_i| / (1 - d_i) <= (sum_{j != i} |A_ij|) / (1 - d_i) |x - x'|``, and the factor is below 1 iff
``mu_i < 1``. The fixed points are those of the equation. Likewise the adjoint's map w -> w contracts by at most rho in the
sum of entries.

The condition is weaker than ``||A||_inf < 1``: nothing bounds d from below. For ``||A||_inf <= kappa < 1`` and ``d >= 0``,
``rho <= max (kappa - d_i) / (1 - d_i) <= kappa``: the bound is never worse than Picard's. The rate can be:
``0.99 [[.5, .5], [-.5, .5]]`` has spectral radius 0.70, its splitting 0.98.

Source of the condition: Jafarpour, Davydov, Proskurnikov, Bullo, "Robust implicit networks via non-Euclidean
contractions", NeurIPS 2021 (there with an averaged iteration; taking the diagonal implicitly needs no step size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.backend import to_numpy
from pyidl.errors import InputError
from pyidl.fusion import fused
from pyidl.rows import CHUNK, change_and_size, take_rows
from pyidl.solvers.base import Iterative
from pyidl.solvers.loop import iterate
from pyidl.solvers.problem import Affine, AffineMap, Iteration, LinearAffine, Problem, product
from pyidl.solvers.solution import Solution
from pyidl.structure import Matrix
from pyidl.typing import Array

__all__ = ["Jacobi", "can_split", "split"]


@dataclass(frozen=True)
class Split(Iteration):
    """The same equation, iterated over r: ``r = scale (N x + z)``, with image ``x = phi(d x + r / scale)``.

    The residual is that of the original equation, at the pre-activation ``y = d x + r / scale``.
    """

    original: AffineMap
    matrix: Matrix
    offset: Array
    d: Array
    scale: Array | None
    """``1 / (1 - d)`` where that makes x = phi(r), otherwise None for 1."""
    slope: Array | None
    """Of the adjoint: ``s / (1 - s d)``."""

    def entrywise(self) -> tuple[Any, ...]:
        """A product with the slopes, phi, or the solution of the scalar equation."""
        if self.slope is not None:
            return product, self.slope
        if self.scale is not None:
            return self.original.entrywise()
        solve = self.original.activation.scalar_solve  # type: ignore[attr-defined]
        return (solve, self.d) if isinstance(solve, fused) else (None,)

    def image_of(self, rows: slice, y: Any, out: Any = None) -> Any:
        """The scalar equation, solved entry by entry."""
        if self.slope is not None:
            slope = self.slope[rows, ...]
            return y * slope if out is None else self.xp.multiply(y, slope, out=out)
        activation = self.original.activation  # type: ignore[attr-defined]
        if self.scale is not None:
            return activation(y, out)
        x = activation.scalar_solve(y, self.d)
        if out is None:
            return x
        out[...] = x
        return out

    def back(self, y: Any, x: Any) -> Any:
        """The original pre-activation, ``d x + r / scale``."""
        return self.d * x + (y if self.scale is None else y * (1.0 - self.d))

    def measure(
        self, x: Any, y_image: Any, image: Any, tol: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The original residual, ``|phi(d x + r / scale) - x|``; on NumPy in pieces that stay in the cache."""
        m = x.shape[0]
        count = max(1, CHUNK // x.shape[1]) if self.xp is np else m
        pieces = []
        for i in range(0, m, count):
            s = slice(i, min(i + count, m))
            image_of_x = self.original.image_of(s, self.back(y_image[s, ...], x[s, ...]))
            pieces.append(change_and_size(self.xp, image_of_x, x[s, ...]))
        residual, size = (
            pieces[0]
            if len(pieces) == 1
            else (np.concatenate([piece[j] for piece in pieces]) for j in range(2))
        )
        return residual, self.original.tolerance(size, tol)

    def take(self, rows: np.ndarray) -> Split:
        """The same equation for some of the samples."""
        slope = None if self.slope is None else take_rows(self.xp, self.slope, rows)
        return Split(
            self.original.take(rows),
            self.matrix,
            take_rows(self.xp, self.offset, rows),
            self.d,
            self.scale,
            slope,
        )

    def restore(self, solution: Solution) -> Solution:
        """The solution in the terms of the original equation."""
        y = self.back(solution.pre, solution.value)
        return replace(solution, pre=y, value=self.original.image(y))


def can_split(problem: Problem) -> str:
    """Why the splitting does not apply, in words; "" if it does: ``x = phi(d x + r)`` is solved if ``s d_i < 1`` for all slopes s."""
    if not isinstance(problem, AffineMap):
        return f"it needs the matrix A and a componentwise phi, and {problem.lacking}"
    d, slopes = problem.matrix.diagonal(), (0.0, 1.0)
    if isinstance(problem, Affine):
        if problem.activation.scalar_solve is None:
            return f"the scalar equation x = phi(d x + r) has no closed form for {problem.activation.name}"
        slopes = problem.activation.slope_range or slopes
        host = to_numpy(d)
        largest = max(s * float(e) for s in slopes for e in (np.min(host), np.max(host)))
    else:
        largest = float(problem.xp.max(problem.slopes(None) * d))
    if not largest < 1:
        return (
            f"phi'(.) times the diagonal of A reaches {largest:.4g}, and x = phi(d x + r) has a unique solution only below 1 "
            "(project the parameters)"
        )
    return ""


def split(problem: Problem) -> Split:
    """Take the diagonal implicitly.

    Raises
    ------
    InputError
        If the scalar equation has no closed form, or no unique solution.
    """
    reason = can_split(problem)
    if reason:
        raise InputError(
            f"Jacobi cannot solve this problem: {reason}; use Picard, Anderson or Newton"
        )
    assert isinstance(problem, AffineMap)
    xp, d = problem.xp, problem.matrix.diagonal()
    if isinstance(problem, LinearAffine):
        s = problem.slope
        return Split(
            problem,
            problem.matrix.off_diagonal(xp.ones_like(d)),
            problem.offset,
            d,
            None,
            s / (1.0 - s * d),
        )
    assert isinstance(problem, Affine)
    if problem.activation.divides:
        scale = 1.0 / (1.0 - d)
        return Split(
            problem, problem.matrix.off_diagonal(scale), problem.offset * scale, d, scale, None
        )
    return Split(
        problem, problem.matrix.off_diagonal(xp.ones_like(d)), problem.offset, d, None, None
    )


@dataclass(frozen=True)
class Jacobi(Iterative):
    """The Jacobi splitting: few steps where the diagonal of A is large, as in models learnt from a network's states.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.structure import Full
    >>> stiff = Affine(Full(np.array([[0.98, 0.01], [0.0, 0.95]])), np.ones((1, 2)), activations.relu)
    >>> Jacobi()(stiff).n_iter.tolist()
    [3]
    """

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Iterate over r, from that of x0."""
        parts = split(problem)
        return parts.restore(
            iterate(
                parts, x0, None, tol=self.tol, max_iter=self.max_iter, method="Jacobi", trace=trace
            )
        )
