r"""The monotone condition, for a componentwise phi with slopes in [0, L].

    (A + A^T) / 2 <= (1 - m) / L I,    m > 0.

It bounds A from one side only: the skew part of A is free, and so are negative
eigenvalues. Write ``F = I - L A``; the condition is ``<d, F d> >= m |d|^2``. With ``w =
x / L`` the equation is ``w = psi(L A w + z)``, where ``psi = phi / L`` has slopes in
[0, 1]. By the theorem of `pyidl.solvers.splitting` there is exactly one solution, and
forward-backward with the step ``m / l^2``, ``l = |F|_2``, contracts its u, and w, by
``(1 - (m / l)^2)^(1/2)`` in the Euclidean norm.

**Error.** Let x* be the solution, ``r = phi(A x + z) - x``, ``e = x - x*``. Then ``|e|
<= |r| / margin`` with

    margin = 2 m / (1 + l + ((1 + l)^2 - 4 m)^(1/2)).

*Proof.* ``delta = e + r = S A e`` with a diagonal S, 0 <= S <= L, so ``<delta, L A e -
delta> >= 0``. As ``L A e - delta = -F e - r``, ``0 >= <e + r, F e + r> = <e, F e> + <e,
r> + <r, F e> + |r|^2 >= m |e|^2 - (1 + l) |e| |r| + |r|^2``: the quotient |e| / |r| is
at most the larger root of ``m t^2 - (1 + l) t + 1``, real since m <= l, and at most
``(1 + l) / m``. For A = c I it is attained: by the slope L if c > 0, by the slope 0
otherwise.

**Projection.** Symmetric and skew matrices are orthogonal, as ``<S, K> = <S^T, K^T> =
-<S, K>``: the nearest point has the skew part of A, and as its symmetric part the one
nearest to ``S = Q diag(lambda) Q^T`` among those ``<= c I``, that is ``Q
diag(min(lambda, c)) Q^T``. *Proof.* ``S - P`` has the part ``(lambda_i - c)_+`` in the
direction q_i, and ``<S - P, X - P>``, the sum of the ``(lambda_i - c)_+ (q_i^T X q_i -
c)``, is not positive for any X in the set.

Source: Winston, Kolter, "Monotone operator equilibrium networks", NeurIPS 2020 (with A
parametrised, not projected).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, lipschitz_rows, needs_slopes, size_of, unproven
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.eigenvalues import (
    distance_bound,
    eigenvalue_bound,
    factored_distance_bound,
    factored_eigenvalue_bound,
    finite64,
    host64,
    is_below,
    symmetric_part,
)

__all__ = ["Monotone", "splitting_certificate"]


@dataclass(frozen=True)
class Monotone(Constraint):
    """The set ``(A + A^T) / 2 <= (1 - margin) / L I``.

    L is the largest Lipschitz constant of the activation.

    `project` is the exact Euclidean projection of A, up to its rounding: eigenvalues of
    the symmetric part above the bound are lowered to it. For factors ``A = L R^T`` both
    are scaled alike, which is feasible and idempotent but not the nearest point. Zeros
    of A do not stay zeros. The work is done on the host, in float64; parameters of
    which membership is proven are returned as they are.

    Picard need not converge in this set. `solvers.PeacemanRachford` and
    `solvers.ForwardBackward` do, for slopes in [0, 1], if ``(A + A^T) / 2 < I``. For L
    < 1 the set is larger than that.

    Parameters
    ----------
    margin : float
        Between 0 and 1. From 1 on, A = 0 would not be inside, and a projection would
        push every A away from it.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import activations
    >>> outside = {"A": np.array([[2.0, 9.0], [-9.0, 0.0]])}
    >>> Monotone(0.5).project(outside, activations.relu)["A"].round(6)
    array([[ 0.5,  9. ],
           [-9. ,  0. ]])
    """

    margin: float = 0.01
    contracts: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (is_real(self.margin) and 0 < self.margin < 1):
            raise InputError(
                f"margin is {self.margin!r}; a monotone A with A = 0 inside the set needs "
                "0 < margin < 1"
            )
        object.__setattr__(self, "margin", float(self.margin))

    def refusal(self, activation: Activation) -> str:
        """Slopes must be known, and lie in [0, L]."""
        return needs_slopes(activation)

    def _ceiling(self, params: Params, activation: Activation) -> float:
        """``(1 - margin) / L``."""
        return (1.0 - self.margin) / float(np.max(lipschitz_rows(activation, size_of(params))))

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Return params with ``(A + A^T) / 2 <= (1 - margin) / L I``.

        Raises
        ------
        InputError
            If an entry of A, L or R is not finite.
        """
        ceiling = self._ceiling(params, activation)
        for name in {"A", "L", "R"} & set(params):
            finite64(name, params[name])
        if self.contains(params, activation):
            return dict(params)
        if "A" in params:
            return {**params, "A": _clipped(params["A"], ceiling)}
        L, R = _shrunk(params["L"], params["R"], ceiling)
        return {**params, "L": L, "R": R}

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether that is proven (on the boundary itself, it fails by rounding)."""
        ceiling = self._ceiling(params, activation)
        if "A" in params:
            return is_below(symmetric_part(params["A"]), ceiling)
        return factored_eigenvalue_bound(params["L"], params["R"]) <= ceiling

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """The factor of forward-backward, and the margin of the error.

        The factor is that of the distance to the solution, not of the residual. For L
        <= 1 it is that of `solvers.ForwardBackward`, which works with L = 1, where that
        has one; otherwise that of the same method for ``x / L``.
        """
        why = self.refusal(activation)
        if why or activation.row_lipschitz(size_of(params)) is None:
            return unproven(f"{activation.name}: {why}")
        if "A" in params:
            top = eigenvalue_bound(symmetric_part(params["A"]))
        else:
            top = factored_eigenvalue_bound(params["L"], params["R"])
        return splitting_certificate(params, activation, top, Norm("Euclidean"))


def splitting_certificate(
    params: Params, activation: Activation, top: float, norm: Norm, blur: float = 0.0
) -> Certificate:
    """That of forward-backward, for ``(A + A^T) / 2 <= top I``.

    Parameters
    ----------
    params : mapping
        With A, or L and R, as they are in the norm.
    activation : Activation
        With known slopes, in [0, L].
    top : float
        An upper bound.
    norm : Norm
        A Euclidean one.
    blur : float
        A bound, in the 2-norm, of the rounding that A carries.
    """
    slope = max(activation.row_lipschitz(size_of(params)) or [math.inf])
    m, size = _numbers(params, top, slope, blur)
    words = (
        f"the largest eigenvalue of (A + A^T) / 2 is {top:.4g}, slopes of {activation.name} "
        f"lie in [0, {slope:.4g}]"
    )
    if not (m > 0 and size < math.inf):
        return unproven(f"{words}, and 1 - {slope:.4g} * {top:.4g} is not above 0")
    # (1 + l)^2 - 4 m without cancellation; m <= l, so that l - m < 0 is rounding
    root = math.hypot(1.0 - size, 2.0 * math.sqrt(max(size - m, 0.0)))
    margin = 2.0 * m / (1.0 + size + root) * (1.0 - 8 * EPS)
    method, g, gap = f"ForwardBackward for x / {slope:.4g}", slope, size
    if slope <= 1 and top < 1:
        method, g = "ForwardBackward", 1.0
        m, gap = _numbers(params, top, g, blur)
    ratio = m / gap * (1.0 - 4 * EPS)
    # 1 where no number below it is proven.
    factor = min(math.sqrt((1.0 - ratio) * (1.0 + ratio)) * (1.0 + 4 * EPS), 1.0)
    words += f", |I - {'' if g == 1 else f'{g:.4g} '}A|_2 = {gap:.4g}"
    # |f(x) - x| <= (1 + L |A|_2) |x - x*|, and |x - x*| is at first at most the
    # residual / margin; L |A|_2 <= 1 + |I - L A|_2.
    constant = (2.0 + size) / margin * (1.0 + 8 * EPS)
    return Certificate(True, factor, norm, method, words, margin, constant=constant)


def _numbers(params: Params, top: float, g: float, blur: float) -> tuple[float, float]:
    """``1 - g top`` from below, and ``|I - g A|_2`` from above."""
    if "A" in params:
        size = distance_bound(params["A"], g)
    else:
        size = factored_distance_bound(params["L"], params["R"], g)
    return 1.0 - g * top - 2 * EPS * (1.0 + abs(g * top)), size + g * blur * (1.0 + 4 * EPS)


def _clipped(A: Array, ceiling: float) -> Array:
    """The projection of A, a little inside where its rounding asks for it.

    The cast may add about eps |A|, the proof takes n^2 eps.
    """
    xp, n = namespace(A), A.shape[0]
    S = symmetric_part(A)
    K = host64(A) - S
    values, Q = np.linalg.eigh(S)
    lower = float(np.max(np.abs(np.minimum(values, ceiling)))) + float(np.max(np.abs(K))) + ceiling
    inside = (2.0 * float(xp.finfo(A.dtype).eps) + 4.0 * (n + 4) ** 2 * EPS) * lower
    while inside < math.inf:  # ends long before: what rounding adds is at most n eps lower
        half = 0.5 * ((Q * np.minimum(values, ceiling - inside)) @ Q.T)
        with np.errstate(over="ignore", invalid="ignore"):
            P: Array = backend.astype(xp, backend.from_host(xp, half + half.T + K), A.dtype)
        if is_below(symmetric_part(P), ceiling):
            return P
        inside *= 4.0
    raise InputError(
        f"A has entries of size {float(np.max(np.abs(S + K))):.4g}, and its projection overflows; "
        "use a smaller step"
    )


def _shrunk(L: Array, R: Array, ceiling: float) -> tuple[Array, Array]:
    """Both factors times one number: the largest eigenvalue changes by its square."""
    xp = namespace(L, R)
    left, right = host64(L), host64(R)
    inside = 4.0 * float(xp.finfo(L.dtype).eps)
    while not (bound := factored_eigenvalue_bound(L, R)) <= ceiling:
        t = 0.0 if inside >= 1 else math.sqrt(max(ceiling / bound, 2.0**-1000)) * (1.0 - inside)
        left, right = t * left, t * right
        L, R = (backend.astype(xp, backend.from_host(xp, M), L.dtype) for M in (left, right))
        inside *= 2.0
    return L, R
