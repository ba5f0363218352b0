r"""Jacobi splitting: take the diagonal of A implicitly.

With ``A = diag(d) + N``, N with zero diagonal, solve ``x_i = phi(d_i x_i + r_i)`` for
x_i entry by entry, and iterate over ``r = N x + z``. Where the scalar equation has a
closed form, a step costs no more than Picard's:

    ReLU, identity, hard tanh     x_i = phi(r_i / (1 - d_i))
    adjoint, v = s * (A^T v + g)  v_i = s_i w_i / (1 - s_i d_i),   w = N^T v + g

**Theorem.** Let phi have slopes in [0, 1] and ``mu_i = d_i + sum_{j != i} |A_ij| < 1``
for all i. Then there is exactly one fixed point, and the iteration contracts in the
largest-entry norm by ``rho = max_i sum_{j != i} |A_ij| / (1 - d_i) < 1``. *Proof.* r ->
x_i has slopes ``s / (1 - s d_i)``, increasing in s, hence at most ``1 / (1 - d_i)``: so
``|x_i - x'_i| <= |r_i - r'_i| / (1 - d_i) <= (sum_{j != i} |A_ij|) / (1 - d_i) |x -
x'|``, and the factor is below 1 iff ``mu_i < 1``. The fixed points are those of the
equation. Likewise the adjoint's map w -> w contracts by at most rho in the sum of
entries.

The condition is weaker than ``||A||_inf < 1``: nothing bounds d from below. For
``||A||_inf <= kappa < 1`` and ``d >= 0``, ``rho <= max (kappa - d_i) / (1 - d_i) <=
kappa``: the bound is never worse than Picard's. The rate can be: ``0.99 [[.5, .5],
[-.5, .5]]`` has spectral radius 0.70, its splitting 0.98.

Source of the condition: Jafarpour, Davydov, Proskurnikov, Bullo, "Robust implicit
networks via non-Euclidean contractions", NeurIPS 2021 (there with an averaged
iteration; taking the diagonal implicitly needs no step size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.arrays.batch import CHUNK, change_and_size
from pyidl.arrays.fusion import fused
from pyidl.solvers.base import Iterative
from pyidl.solvers.image import Image, Phi, Times
from pyidl.solvers.problem import Affine, Problem, Rewritten, Start, admitted, pieces
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = ["Jacobi", "can_split", "split"]


@dataclass(frozen=True)
class Scalar(Image):
    """The solution of ``x = phi(d x + y)``, entry by entry."""

    phi: Phi
    d: Array

    def __call__(self, y: Any, out: Any = None) -> Any:
        """The closed form of the solution, into `out` if given."""
        x = self.phi.activation.scalar_solve(y, self.d)  # type: ignore[misc]
        if out is None:
            return x
        out[...] = x
        return out

    def entrywise(self) -> tuple[Any, ...]:
        """The closed form, where it is fused."""
        solve = self.phi.activation.scalar_solve
        return (solve, self.d) if isinstance(solve, fused) else (None,)


class Split(Rewritten):
    """The equation over ``r = N x + z``; x solves ``x = phi(d x + r)``.

    `divided`: over ``r / (1 - d)`` instead, where then x = phi(r / (1 - d)).
    """

    def __init__(self, original: Affine, d: Array) -> None:
        offset, image, scale = original.offset, original.map, original.xp.ones_like(d)
        self.d, self.divided = d, isinstance(image, Phi) and image.activation.divides
        if self.divided:
            scale = 1.0 / (1.0 - d)
            offset = offset * scale
        elif isinstance(image, Phi):
            image = Scalar(image, d)
        else:
            assert isinstance(image, Times)
            image = Times(image.S / (1.0 - image.S * d))
        super().__init__(original, original.matrix.off_diagonal(scale), offset, image)

    def _original_y(self, y: Any, x: Any) -> Any:
        """The pre-activation of the given equation, ``d x + r``."""
        return self.d * x + (y * (1.0 - self.d) if self.divided else y)

    def measure(self, x: Any, y_image: Any, image: Any) -> np.ndarray:
        """The original residual, ``|phi(d x + r) - x|``.

        On NumPy it is taken in pieces that the cache holds.
        """
        if self.xp is not np or x.size <= CHUNK:
            image_of_x = self.original.image(self._original_y(y_image, x))
            return change_and_size(self.xp, image_of_x, x)
        found = []
        for s in pieces(*x.shape):
            image_of_x = self.original.map.take(s)(self._original_y(y_image[s], x[s]))
            found.append(change_and_size(np, image_of_x, x[s]))
        return np.concatenate(found, axis=1)

    def restore(self, solution: Solution) -> Solution:
        """The same x, with a y that belongs to it.

        Where ``phi(r / (1 - d))`` is x, that is one, on the same side of every kink.
        Otherwise it is ``d x + r``, which cancels where d is large; for a homogeneous
        phi, x / phi' is better.
        """
        if self.divided:
            return solution
        x = solution.value
        y = self._original_y(solution.pre, x)
        if self.reference is not None:
            return replace(solution, pre=y)
        xp, s = self.xp, self.original.slopes(y)
        if self.original.map.activation.homogeneous:  # type: ignore[attr-defined]
            y = xp.where(s == 0, y, x / xp.where(s == 0, 1.0, s))
        return replace(solution, pre=y, value=self.original.image(y))


def can_split(problem: Problem) -> str:
    """Why the splitting does not apply, in words; "" if it does.

    ``x = phi(d x + r)`` is solved if ``s d_i < 1`` for all slopes s.
    """
    if problem.lacking:
        return f"it needs the matrix A and a componentwise phi, and {problem.lacking}"
    assert isinstance(problem, Affine)
    d, slopes = problem.matrix.diagonal(), (0.0, 1.0)
    if isinstance(problem.map, Phi):
        activation = problem.map.activation
        if activation.scalar_solve is None:
            return f"the scalar equation x = phi(d x + r) has no closed form for {activation.name}"
        slopes = activation.slope_range or slopes
        host = to_numpy(d)
        largest = max(s * float(e) for s in slopes for e in (np.min(host), np.max(host)))
    else:
        largest = float(problem.xp.max(problem.slopes(None) * d))
    if not largest < 1:
        return (
            f"phi'(.) times the diagonal of A reaches {largest:.4g}, and x = phi(d x + r) has a "
            "unique solution only below 1 (project the parameters)"
        )
    return ""


def split(problem: Problem) -> Split:
    """The problem with the diagonal taken implicitly.

    Raises
    ------
    InputError
        If the scalar equation has no closed form, or no unique solution.
    """
    original = admitted(problem, "Jacobi", can_split(problem))
    return Split(original, original.matrix.diagonal())


@dataclass(frozen=True)
class Jacobi(Iterative):
    """The Jacobi splitting: few steps where the diagonal of A is large.

    Models learnt from a network's states have such a diagonal.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.

    Raises
    ------
    InputError
        In a call, if the scalar equation has no closed form, or no unique solution.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.solvers import Picard
    >>> from pyidl.matrices.full import Full
    >>> A = np.array([[0.98, 0.01], [0.0, 0.95]])
    >>> stiff = Affine(Full(A), np.ones((1, 2)), activations.relu)
    >>> int(Jacobi()(stiff).n_iter[0]) <= 6, int(Picard()(stiff).n_iter[0]) > 1000
    (True, True)
    """

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Iterate over r, from that of x0."""
        target = split(problem)
        return target.restore(self._iterate(target, x0, trace, "Jacobi"))
