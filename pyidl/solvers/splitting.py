r"""Operator splittings for monotone models: forward-backward and Peaceman-Rachford.

Let phi have slopes in [0, 1]. It is then the proximal map of a convex f
(`pyidl.activations.resolvents`), and ``x = phi(A x + z)`` says that ``F x +
(subdifferential of f at x)`` contains 0, with ``F x = (I - A) x - z``. Both methods
iterate over u, of which x is the proximal map of alpha f: ``x = phi(y)`` with ``(1 -
alpha) phi(y) + alpha y = u``.

    forward-backward     u <- x - alpha F x = (1 - alpha) x + alpha (A x + z)
    Peaceman-Rachford    r = 2 x - u,   s = (I + alpha (I - A))^{-1} (r + alpha z),
                         u <- 2 s - r

In either, u follows from x, or from r, by one product and one sum: again a loop of one
product, one sum, one componentwise pass.

**Theorem.** Let ``(A + A^T) / 2 <= (1 - m) I`` with m > 0, and ``L = |I - A|_2``. There
is exactly one solution. In the Euclidean norm forward-backward contracts by ``sqrt(1 -
2 alpha m + alpha^2 L^2)``, below 1 for ``alpha < 2 m / L^2`` and least, ``sqrt(1 - (m /
L)^2)``, for ``alpha = m / L^2``; Peaceman-Rachford contracts by ``sqrt(1 - 4 alpha m /
(1 + alpha L)^2)`` for every alpha > 0. *Proof.* For the difference d of two points,
with F linear, ``<d, F d> >= m |d|^2`` and ``|F d| <= L |d|``. Proximal maps do not
expand, so the first factor is that of ``d - alpha F d``: its square is ``|d|^2 - 2
alpha <d, F d> + alpha^2 |F d|^2``. A proximal map P is even firmly nonexpansive, so ``2
P - 1`` does not expand. Where d is the difference of two s, that of r is ``e = d +
alpha F d``, and ``|2 d - e|^2 = |d - alpha F d|^2 = |e|^2 - 4 alpha <d, F d>``, with
``<d, F d> >= m |d|^2 >= m |e|^2 / (1 + alpha L)^2``. A fixed point of either is a
solution: there ``y = A x + z``.

The adjoint ``v = S * (A^T v + g)`` has the same form with multiplication by the slopes
in place of phi, and the same m and L.

The residual is that of the original equation, not the change of u. The point that is
measured, and returned, is the x of the next u.

Source: Ryu, Boyd, "A primer on monotone operator methods", 2016; Winston, Kolter,
"Monotone operator equilibrium networks", NeurIPS 2020.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import all_finite, astype, to_numpy
from pyidl.arrays.batch import change_and_size
from pyidl.arrays.fusion import fused
from pyidl.errors import InputError, is_real
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.solvers.base import Iterative
from pyidl.solvers.image import Image, Phi, Times
from pyidl.solvers.loop import PATIENCE
from pyidl.solvers.problem import Affine, Problem, Rewritten, Start, admitted
from pyidl.solvers.solution import Solution
from pyidl.typing import Array

__all__ = [
    "ForwardBackward",
    "PeacemanRachford",
    "best_alpha",
    "cannot_split",
    "is_monotone",
    "reflected",
]


CURVED = 30.0
"""See `best_alpha`."""


@dataclass(frozen=True)
class Resolvent(Image):
    """``x = phi(y)`` with ``(1 - alpha) phi(y) + alpha y = u``.

    The image is x, or ``2 x - u`` if `reflect`.
    """

    phi: Phi
    alpha: float
    reflect: bool

    def __call__(self, u: Any, out: Any = None) -> Any:
        """The proximal map of alpha f, perhaps reflected."""
        x = self.phi(self.phi.resolvent(u, self.alpha), out)
        if not self.reflect:
            return x
        if out is None:
            return 2.0 * x - u
        x *= 2.0
        x -= u
        return x

    def entrywise(self) -> tuple[Any, ...]:
        """The proximal map, where its parts are fused."""
        (phi,), resolvent = self.phi.entrywise(), self.phi.activation.resolvent
        if phi is None or not (self.alpha == 1 or isinstance(resolvent, fused)):
            return (None,)
        return _proximal_map(phi, None if self.alpha == 1 else resolvent, self.reflect), self.alpha


class Proximal(Rewritten):
    """The same equation over u: ``u = M r + c``, with image r = x, or r = 2 x - u."""

    def __init__(
        self, original: Affine, M: Any, offset: Array, alpha: float, *, reflect: bool
    ) -> None:
        image = original.map
        if isinstance(image, Times):  # x / u = s / ((1 - alpha) s + alpha)
            factor = image.resolvent(image.S, alpha)
            image = Times(2.0 * factor - 1.0 if reflect else factor)
        else:
            assert isinstance(image, Phi)
            image = Resolvent(image, alpha, reflect)
        super().__init__(original, Full(M), offset, image)
        self.alpha, self.reflect = alpha, reflect

    def start(self, x0: Any = None, out: Any = None) -> tuple[Any, Any]:
        """From x0, or from r = 0."""
        if x0 is not None and self.reflect:  # 2 x - u with u = (1 - alpha) x + alpha (A x + z)
            x0 = (1.0 + self.alpha) * x0 - self.alpha * self.original.pre(x0)
        return super().start(x0, out)

    def measure(self, x: Any, y_image: Any, image: Any) -> np.ndarray:
        """The original residual, at the x of the next u."""
        following = self.original.image(self.original.map.resolvent(y_image, self.alpha))
        return change_and_size(self.xp, self.original.f(following), following)

    def restore(self, solution: Solution) -> Solution:
        """One step on, to the point that was measured."""
        with np.errstate(over="ignore", invalid="ignore"):
            y = self.original.map.resolvent(self.pre(solution.value), self.alpha)
            return replace(solution, pre=y, value=self.original.image(y))


@functools.lru_cache(maxsize=1024)
def _proximal_map(phi: fused, resolvent: fused | None, reflect: bool) -> fused:
    def image(u: Any, alpha: Any) -> Any:
        x = phi(u if resolvent is None else resolvent(u, alpha))
        return 2.0 * x - u if reflect else x

    return fused(image)


def cannot_split(problem: Problem, alpha: float) -> str:
    """Why an operator splitting with this step does not apply; "" if it does."""
    if problem.lacking:
        return f"it needs the matrix A and a componentwise phi, and {problem.lacking}"
    assert isinstance(problem, Affine)
    if isinstance(problem.map, Phi):
        phi = problem.map.activation
        low, high = phi.slope_range or (-math.inf, math.inf)
        if not 0 <= low <= high <= 1:
            return (
                f"it needs slopes in [0, 1], and those of {phi.name} lie in "
                f"[{low:.4g}, {high:.4g}], as far as is known"
            )
        if alpha != 1 and phi.resolvent is None:
            return (
                f"with alpha = {alpha:.4g} it needs the proximal map of alpha f, and {phi.name} "
                "has none (`resolvent`); use alpha = 1"
            )
        return ""
    xp, slopes = problem.xp, problem.slopes(None)
    slack = 8.0 * float(xp.finfo(problem.like.dtype).eps)
    low, high = to_numpy(xp.stack([xp.min(slopes), xp.max(slopes)])).tolist()  # one wait
    if not -slack <= low <= high <= 1 + slack:
        return (
            f"it needs slopes in [0, 1], and those at this solution lie in [{low:.4g}, {high:.4g}]"
        )
    return ""


def _in_its_metric(matrix: Matrix) -> np.ndarray:
    """``lam^{1/2} A lam^{-1/2}``, float64, on the host.

    Both methods have the same formulas in every diagonal metric, since phi acts on each
    component alone; what the theorem says of A, it then says of this matrix.
    """
    A = to_numpy(matrix.dense()).astype(np.float64)
    metric = matrix.metric if isinstance(matrix, Full) else None
    return A if metric is None else A * np.sqrt(metric[:, None] / metric)


def is_monotone(matrix: Matrix) -> bool:
    """Whether ``I - (A + A^T) / 2`` has a Cholesky factor, in its metric.

    Computed on the host.
    """
    A = _in_its_metric(matrix)
    try:
        np.linalg.cholesky(np.eye(len(A)) - 0.5 * (A + A.T))
    except np.linalg.LinAlgError:
        return False
    return True


def best_alpha(problem: Affine) -> float:
    """The alpha at which the rate of Peaceman and Rachford has its best bound, or 1.

    That is ``1 / |I - A|_2``. It is 1 where |I - A| is smaller, and where phi has no
    proximal map of another alpha f. Where that map is an iteration of its own, it takes
    14 to 33 times as long as phi (sigmoid, tanh; measured), and up to |I - A| =
    `CURVED` the bound says that 1 needs no more than 8 times the steps.
    """
    if cannot_split(problem, 0.5):
        return 1.0
    F = _in_its_metric(problem.matrix)
    F = np.eye(len(F)) - F
    w, square = np.random.default_rng(0).normal(size=len(F)), 0.0
    for _ in range(8):  # powers of F^T F: an estimate from below, which is as good
        w = F.T @ (F @ w)
        square = float(np.linalg.norm(w))
        if not 0 < square < math.inf:
            return 1.0
        w /= square
    phi = problem.map
    elementary = not isinstance(phi, Phi) or phi.activation.homogeneous
    return 1.0 / max(1.0, math.sqrt(square)) if elementary or square > CURVED**2 else 1.0


def reflected(problem: Problem, alpha: float) -> Proximal:
    """The iteration of Peaceman and Rachford: ``u = (2 V - I) r + 2 alpha V z``.

    ``V = (I + alpha (I - A))^{-1}`` is formed in float64, once: its rounding would
    otherwise grow by ``|I + alpha (I - A)|`` in the residual.

    Raises
    ------
    InputError
        If it does not apply, or there is no V.
    """
    original = admitted(problem, "PeacemanRachford", cannot_split(problem, alpha))
    xp, dtype = problem.xp, problem.like.dtype
    A = astype(xp, original.matrix.dense(), "float64")
    eye = xp.eye(A.shape[0], dtype=xp.float64)
    try:
        V = xp.linalg.inv((1.0 + alpha) * eye - alpha * A)
        invertible = all_finite(xp, V)
    except np.linalg.LinAlgError:
        invertible = False
    if not invertible:
        raise InputError(
            f"PeacemanRachford cannot solve this problem: {1 + alpha:.4g} I - {alpha:.4g} A is "
            "singular, which it is not where A is monotone; project the parameters, use another "
            "alpha, or Newton"
        )
    offset = original.offset @ astype(xp, 2.0 * alpha * V, dtype).T
    return Proximal(original, astype(xp, 2.0 * V - eye, dtype), offset, alpha, reflect=True)


def _step(alpha: Any) -> float:
    """As Python's number: one of NumPy's would make float64 of float32."""
    if not (is_real(alpha) and 0 < alpha < math.inf):
        raise InputError(f"alpha is {alpha!r}; a step is positive and finite")
    return float(alpha)


@dataclass(frozen=True)
class ForwardBackward(Iterative):
    """``x <- prox((1 - alpha) x + alpha (A x + z))``: products with A, many steps.

    A factored A is multiplied out. In float32 a small alpha limits what can be reached:
    u is rounded, and the residual at x is at least that rounding divided by alpha.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.
    alpha : float, optional
        The step; 1 is Picard. Others need an activation with a `resolvent`. By default
        ``m / L^2``, from the eigenvalues of the symmetric part and the singular values
        of I - A, on the host, in every solve.

    Raises
    ------
    InputError
        If a slope may lie outside [0, 1]; if alpha is left out and A is not monotone.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = np.array([[0.0, 2.0], [-2.0, 0.0]])  # Picard ends in a cycle
    >>> turn = Affine(Full(A), np.ones((1, 2)), activations.relu)
    >>> solution = ForwardBackward()(turn)
    >>> solution.value.round(6).tolist(), solution.method
    ([[1.0, 0.0]], 'ForwardBackward(alpha=0.2)')
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            object.__setattr__(self, "alpha", _step(self.alpha))

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Iterate from x0, or from 0."""
        alpha, patience = self.alpha, PATIENCE
        name, reason = "ForwardBackward", cannot_split(problem, alpha or 1.0)
        original = admitted(problem, name, reason)  # before anything is computed
        A = original.matrix.dense()
        if alpha is None:
            alpha, patience = _best_step(_in_its_metric(original.matrix))
            admitted(problem, name, cannot_split(problem, alpha))
        M = alpha * A + (1.0 - alpha) * original.xp.eye(A.shape[0], dtype=A.dtype)
        target = Proximal(original, M, alpha * original.offset, alpha, reflect=False)
        method = f"{name}(alpha={alpha:.3g})"
        return target.restore(self._iterate(target, x0, trace, method, patience=patience))


def _best_step(A: np.ndarray) -> tuple[float, int]:
    """``m / L^2``, and the steps in which the distance to the solution falls by e^-10.

    A step brings it down by ``(1 - (m / L)^2)^(1/2)``, in its own norm; the residual
    may rise.
    """
    F = np.eye(len(A)) - A
    m, L = float(np.linalg.eigvalsh(0.5 * (F + F.T))[0]), float(np.linalg.norm(F, 2))
    if not m > 0:
        raise InputError(
            "ForwardBackward has no step: the largest eigenvalue of (A + A^T) / 2 is "
            f"{1 - m:.4g}, and A is monotone only below 1; project the parameters onto "
            "wellposed.Monotone, or give alpha"
        )
    return m / L**2, max(PATIENCE, math.ceil(20.0 * (L / m) ** 2))


@dataclass(frozen=True)
class PeacemanRachford(Iterative):
    """Few steps where A is monotone, also where it is large; one inverse a solve.

    The inverse takes ``2 n^3`` flops. A factored A is multiplied out.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.
    alpha : float
        1 goes with every phi with slopes in [0, 1]. Others need an activation with a
        `resolvent`; ``1 / L`` has the best bound.

    Raises
    ------
    InputError
        If a slope may lie outside [0, 1], or ``(1 + alpha) I - alpha A`` is singular.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = np.array([[0.0, 2.0], [-2.0, 0.0]])  # Picard ends in a cycle
    >>> turn = Affine(Full(A), np.ones((1, 2)), activations.relu)
    >>> PeacemanRachford()(turn).value.round(6).tolist()
    [[1.0, 0.0]]
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "alpha", _step(self.alpha))

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Iterate from x0, or from r = 0."""
        target, method = reflected(problem, self.alpha), f"PeacemanRachford(alpha={self.alpha:.3g})"
        return target.restore(self._iterate(target, x0, trace, method))
