r"""Softmax and layer norm, each with its transposed derivative under it.

They act on all components of a block together.
Such a phi has a Jacobian J(z), and no slopes. What a pullback needs is the product
``J(z)^T w``, written by hand: the *vjp*. Lipschitz constants are those of the Euclidean
norm of the block.

**softmax**, ``p_i = e^{z_i} / sum_j e^{z_j}``: ``J = diag(p) - p p^T``. It is
1/2-Lipschitz. *Proof.* J is symmetric, and ``d^T J d`` is the variance of d under the
probabilities p, at most ``(max d - min d)^2 / 4`` (Popoviciu), hence at most ``(max^2 +
min^2) / 2``, and that at most ``|d|^2 / 2``. For two components and p = (1/2, 1/2) it
is attained.

**layer norm**, ``y = c / r`` with ``c = z - mean(z)`` and ``r = (eps + |c|^2 /
k)^{1/2}``, k components. Let P be the projection, c = P z. Then ``dr = <c, dz> / (k
r)`` and

    J = (P - y y^T / k) / r,

symmetric. It is 1/sqrt(eps)-Lipschitz. *Proof.* y lies in the range of P, and ``|y|^2 /
k = 1 - eps / r^2 < 1``, so that ``0 <= J <= P / r`` with ``r >= sqrt(eps)``. At c = 0
it is attained. (eps is what bounds it: the usual 1e-5 would give 316.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from pyidl.activations.base import Activation
from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, expect, is_real

__all__ = ["VectorActivation", "layer_norm", "named", "normed", "normed_vjp", "softmax"]


class VectorActivation(Activation):
    """A map phi of all components together, with its transposed derivative.

    As the activation of a model it acts on the whole state, as a part of `Blocks` on
    its block. Solvers that need slopes refuse it.

    Parameters
    ----------
    name : str
        What messages and files call it.
    phi : callable
        ``z -> phi(z)`` along the last axis, keeping library and dtype.
    vjp : callable
        ``(z, w) -> J(z)^T w`` along the last axis.
    lipschitz : float, optional
        Smallest known L with ``|phi(a) - phi(b)| <= L |a - b|`` in the Euclidean norm.
    homogeneous : bool
        Whether ``phi(t z) = t phi(z)`` for all t >= 0.

    Raises
    ------
    InputError
        If phi or vjp is no function, or `lipschitz` is not positive and finite.

    Examples
    --------
    >>> mean = VectorActivation(
    ...     "mean",
    ...     lambda z: np.mean(z, axis=-1, keepdims=True) + 0 * z,
    ...     lambda z, w: np.mean(w, axis=-1, keepdims=True) + 0 * w,
    ...     lipschitz=1.0,
    ...     homogeneous=True,
    ... )
    >>> mean.vjp(np.zeros((1, 2)), np.array([[1.0, 3.0]]))
    array([[2., 2.]])
    """

    _vjp: Callable[[Any, Any], Any]

    def __init__(
        self,
        name: str,
        phi: Callable[[Any], Any],
        vjp: Callable[[Any, Any], Any],
        lipschitz: float | None = None,
        homogeneous: bool = False,
    ) -> None:
        expect("name", name, str, "it is what messages and files call the activation")
        if not callable(vjp):
            raise InputError(
                f"activation {name!r}: vjp must be a function (z, w) -> J(z)^T w of two arrays"
            )
        object.__setattr__(self, "_vjp", vjp)
        super().__init__(
            name,
            phi,
            functools.partial(_no_slopes, name),
            lipschitz=lipschitz,
            homogeneous=homogeneous,
        )
        object.__setattr__(self, "slope_range", None)

    def vjp(self, z: Any, w: Any) -> Any:
        """``J(z)^T w``."""
        return self._vjp(z, w)

    def vector_blocks(self, n: int) -> tuple[tuple[int, int], ...]:
        """All components are one block."""
        return ((0, n),)

    def columns(self, members: slice | np.ndarray) -> Activation:
        """Itself, for all components; some of them have no map of their own."""
        if isinstance(members, slice) and members == slice(None):
            return self
        raise InputError(
            f"{self.name} acts on its components together; "
            "some of them have no activation of their own"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if named(self.name) is self:
            return named, (self.name,)
        return VectorActivation, (self.name, self.phi, self._vjp, self.lipschitz, self.homogeneous)


def _no_slopes(name: str, z: Any) -> Any:
    raise InputError(f"{name} acts on its components together and has no slopes; use its vjp")


# In every pair below phi comes first and its transposed derivative stands under it.


def _softmax(z: Any) -> Any:
    xp = namespace(z)
    # p does not change when a number is taken from all z_i; e^z then does not overflow
    e = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _softmax_vjp(z: Any, w: Any) -> Any:
    p = _softmax(z)
    return p * (w - namespace(z).sum(p * w, axis=-1, keepdims=True))  # (diag(p) - p p^T) w


def normed(z: Any, eps: float) -> tuple[Any, Any]:
    """``(y, r)`` with y = c / r, along the last axis."""
    xp = namespace(z)
    c = z - xp.mean(z, axis=-1, keepdims=True)
    # it is divided by its size before it is squared, and no square overflows or
    # vanishes
    size = xp.max(xp.abs(c), axis=-1, keepdims=True)
    size = xp.maximum(size, xp.full_like(size, math.sqrt(eps)))
    c = c / size
    r = xp.sqrt((math.sqrt(eps) / size) ** 2 + xp.mean(c * c, axis=-1, keepdims=True))
    return c / r, r * size


def normed_vjp(y: Any, r: Any, w: Any) -> Any:
    """``(P - y y^T / k) w / r``, for the pair that `normed` has returned."""
    xp = namespace(y)
    return (w - xp.mean(w, axis=-1, keepdims=True) - y * xp.mean(y * w, axis=-1, keepdims=True)) / r


def _layer_norm(z: Any, *, eps: float) -> Any:
    return normed(z, eps)[0]


def _layer_norm_vjp(z: Any, w: Any, *, eps: float) -> Any:
    return normed_vjp(*normed(z, eps), w)


softmax = VectorActivation("softmax", _softmax, _softmax_vjp, lipschitz=0.5)


def layer_norm(eps: float = 1.0) -> VectorActivation:
    """``(z - mean) / (eps + variance)^{1/2}`` along the last axis, with eps > 0.

    ``1 / sqrt(eps)`` is its Lipschitz constant.

    Parameters
    ----------
    eps : float
        What bounds it.

    Raises
    ------
    InputError
        If eps is not positive and finite.

    Examples
    --------
    >>> layer_norm()(np.array([1.0, 4.0, 7.0])).round(3)
    array([-1.134,  0.   ,  1.134])
    """
    if not (is_real(eps) and 0 < float(eps) < math.inf):
        raise InputError(
            f"eps of layer_norm is {eps!r}; it must be positive and finite; "
            "it bounds the Lipschitz constant 1 / sqrt(eps)"
        )
    return _layer_norm_of(float(eps))


@functools.cache
def _layer_norm_of(eps: float) -> VectorActivation:
    L = 1.0 / math.sqrt(eps)
    while Fraction(L) ** 2 * Fraction(eps) < 1:  # rounded up
        L = math.nextafter(L, math.inf)
    return VectorActivation(
        f"layer_norm({eps!r})",
        functools.partial(_layer_norm, eps=eps),
        functools.partial(_layer_norm_vjp, eps=eps),
        lipschitz=L,
    )


def named(name: str) -> Activation | None:
    """The built-in activation of that name, or None for a name that is not built in."""
    if name.startswith("layer_norm(") and name.endswith(")"):
        return layer_norm(float(name[len("layer_norm(") : -1]))
    return softmax if name == "softmax" else None
