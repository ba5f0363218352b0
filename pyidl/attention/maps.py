r"""Attention maps ``out = att(K, Q, V)``.

Three of them, which differ in features, values, and the weight c of a null key.

Tokens are rows, of samples (m) and heads (H): K, Q, V have the shape (m, H, T, h). With
``phi(s) = s / sqrt(1 + s^2)``,

    out_i = sum_j w_ij u(v_j),     w_ij = E_ij / (c + sum_l E_il),     E_ij = exp Z_ij where query i may see key j, else 0,

    kernel           Z_ij = -g |q_i - k_j|^2             u = phi       c > 0
    bounded softmax  Z_ij = tau <phi(q_i), phi(k_j)>     u = phi       c = 0
    softmax          Z_ij = tau <q_i, k_j>               u(v) = v      c = 0

In all three Z is an inner product of features of a row, ``Z_ij = <a(q_i), b(k_j)>``:

    kernel           a(x) = (sqrt(2g) x, -g |x|^2, 1),     b(x) the same with the last two components swapped
    bounded softmax  a(x) = b(x) = sqrt(tau) phi(x)
    softmax          a(x) = b(x) = sqrt(tau) x

So their derivatives are those of `pyidl.attention.weighted_mean`, and of a and u row by
row: for a cotangent of the output, (gA, gB, gU) go to ``gQ = a'(q)^T gA``, ``gK =
b'(k)^T gB``, ``gV = u'(v) gU``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.arrays.fusion import fused
from pyidl.attention.weighted_mean import Average, Averaged, Mask, row_sums, some
from pyidl.errors import InputError, is_real, is_whole
from pyidl.typing import Array

__all__ = [
    "Attended",
    "Attention",
    "BoundedSoftmax",
    "KernelAttention",
    "Mask",
    "Softmax",
    "phi",
    "phi_slope",
]


FAR = 1e9
"""From here on phi is 1 to the last digit, and its square is still a number in float32."""


@fused
def phi(s: Any) -> Any:
    """``s / sqrt(1 + s^2)``, in (-1, 1)."""
    xp = namespace(s)
    s = xp.clip(s, -FAR, FAR)
    return s / xp.sqrt(1.0 + s * s)


@fused
def phi_slope(s: Any) -> Any:
    """``phi'(s) = (1 + s^2)^(-3/2) = (1 - phi^2)^(3/2)``."""
    xp = namespace(s)
    s = xp.clip(s, -FAR, FAR)
    r = 1.0 / xp.sqrt(1.0 + s * s)
    return r * r * r


@dataclass(frozen=True)
class Attention(ABC):
    """What the three maps share; see the head of this file."""

    @abstractmethod
    def features(self, x: Any) -> Any:
        """a(x), (..., h) -> (..., f)."""

    @abstractmethod
    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """The derivative of a at x, applied to dx."""

    @abstractmethod
    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """The transposed derivative of a at x, applied to a cotangent G, (..., f)."""

    def slope(self, x: Any) -> Any:
        """What `push` and `pull` use of x, formed once."""
        return x

    @abstractmethod
    def average(self, h: int, mask: Mask) -> Average:
        """The mean over keys, for a head of size h."""

    def mirrored(self, a: Any) -> Any:
        """Exchange a and b."""
        return a

    def values(self, V: Any) -> Any:
        """u(v)."""
        return phi(V)

    def slopes(self, V: Any) -> Any:
        """u'(v)."""
        return phi_slope(V)

    def keys(self, K: Any) -> Any:
        """b(k)."""
        return self.mirrored(self.features(K))

    def __call__(self, K: Array, Q: Array, V: Array, mask: Mask = Mask()) -> Any:  # noqa: B008 (frozen)
        """``att(K, Q, V)``, (m, H, T, h).

        There may be fewer queries than keys where nothing is masked.
        """
        return self.average(Q.shape[-1], mask)(self.features(Q), self.keys(K), self.values(V))

    def at(self, K: Array, Q: Array, V: Array, mask: Mask = Mask()) -> Attended:  # noqa: B008 (frozen)
        """The map at a point, with its derivatives."""
        mean = self.average(Q.shape[-1], mask).at(self.features(Q), self.keys(K), self.values(V))
        return Attended(self, K, Q, V, (self.slope(K), self.slope(Q), self.slopes(V)), mean)


@dataclass(frozen=True)
class KernelAttention(Attention):
    """``w_ij = e_ij / (c + sum_l e_il)``, ``e_ij = exp(-g |q_i - k_j|^2)``, and values phi(v).

    Lipschitz without any bound of q and k, so that feedback can be certified from the
    parameters. A query that sees no key, or none that is near, has the output 0.

    Parameters
    ----------
    bandwidth : float, optional
        g. Default ``1 / h``: for entries of unit variance ``|q - k|^2`` is about 2 h,
        and with g = 1 all weights vanish from h = 16 on.
    c : float
        The weight of the null key, positive. With c = 0 the map would not be Lipschitz.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    bandwidth: float | None = None
    c: float = 0.25
    tile: int | None = None

    def __post_init__(self) -> None:
        _check(self, "bandwidth", "c", "tile")

    def scale(self, h: int) -> float:
        """Return g for a head of size h."""
        return 1.0 / h if self.bandwidth is None else self.bandwidth

    def average(self, h: int, mask: Mask) -> Average:
        """With a null key; exponents are at most 0."""
        return Average(self.c, 0.0, mask, self.tile)

    def features(self, x: Any) -> Any:
        """``(sqrt(2g) x, -g |x|^2, 1)``."""
        xp, g = namespace(x), self.scale(x.shape[-1])
        square = row_sums(x * x)
        return xp.concat([math.sqrt(2 * g) * x, -g * square, xp.ones_like(square)], axis=-1)

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``(sqrt(2g) dx, -2g <x, dx>, 0)``."""
        xp, g = namespace(x), self.scale(x.shape[-1])
        inner = row_sums(x * dx)
        return xp.concat([math.sqrt(2 * g) * dx, -2 * g * inner, xp.zeros_like(inner)], axis=-1)

    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """``sqrt(2g) G_(1..h) - 2g x G_(h+1)``."""
        h, g = x.shape[-1], self.scale(x.shape[-1])
        return _difference(x, G[..., :h], G[..., h : h + 1], math.sqrt(2 * g), 2 * g)

    def mirrored(self, a: Any) -> Any:
        """The last two components swapped."""
        h = a.shape[-1] - 2
        return namespace(a).concat([a[..., :h], a[..., h + 1 :], a[..., h : h + 1]], axis=-1)


@fused
def _difference(x: Any, head: Any, last: Any, a: Any, b: Any) -> Any:
    return a * head - b * x * last


@dataclass(frozen=True)
class _InnerProduct(Attention):
    """Exponents tau times an inner product."""

    tau: float | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        _check(self, "tau", "tile")

    def scale(self, h: int) -> float:
        """Tau for a head of size h."""
        return 1.0 / math.sqrt(h) if self.tau is None else self.tau


@dataclass(frozen=True)
class Softmax(_InnerProduct):
    """``w_i = softmax of tau <q_i, k_j>`` over the keys that i sees, and values v.

    The usual attention.

    Not Lipschitz: feedback through q or k cannot be certified from the parameters
    (`pyidl.certify_attention` certifies inputs). A mask that leaves a query without
    keys is refused.

    Parameters
    ----------
    tau : float, optional
        Default ``1 / sqrt(h)``.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    def average(self, h: int, mask: Mask) -> Average:
        """Without a null key; nothing bounds the exponents."""
        mask.check()
        return Average(0.0, math.inf, mask, self.tile)

    def features(self, x: Any) -> Any:
        """``sqrt(tau) x``."""
        return math.sqrt(self.scale(x.shape[-1])) * x

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``sqrt(tau) dx``."""
        return math.sqrt(self.scale(x.shape[-1])) * dx

    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """``sqrt(tau) G``."""
        return math.sqrt(self.scale(x.shape[-1])) * G

    def values(self, V: Any) -> Any:
        """Return v itself."""
        return V

    def slopes(self, V: Any) -> Any:
        """1."""
        return namespace(V).ones_like(V)


@dataclass(frozen=True)
class BoundedSoftmax(_InnerProduct):
    """``w_i = softmax of tau <phi(q_i), phi(k_j)>`` over the keys that i sees, and values phi(v).

    Exponents lie between ``-tau h`` and ``tau h``: the map is Lipschitz, with a
    constant that does not depend on the number of keys. A mask that leaves a query
    without keys is refused.

    Parameters
    ----------
    tau : float, optional
        Default ``1 / sqrt(h)``. A larger tau lets attention be sharper, and leaves less
        room for feedback.
    tile : int, optional
        Keys visited at a time; as many as memory allows if left out. It changes the
        answer by roundings.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    def average(self, h: int, mask: Mask) -> Average:
        """Without a null key; exponents are at most tau h."""
        mask.check()
        return Average(0.0, self.scale(h) * h, mask, self.tile)

    def features(self, x: Any) -> Any:
        """``sqrt(tau) phi(x)``."""
        return math.sqrt(self.scale(x.shape[-1])) * phi(x)

    def push(self, x: Any, slope: Any, dx: Any) -> Any:
        """``sqrt(tau) phi'(x) dx``."""
        return math.sqrt(self.scale(x.shape[-1])) * (slope * dx)

    def pull(self, x: Any, slope: Any, G: Any) -> Any:
        """``sqrt(tau) phi'(x) G``."""
        return math.sqrt(self.scale(x.shape[-1])) * (slope * G)

    def slope(self, x: Any) -> Any:
        """``phi'(x)``."""
        return phi_slope(x)


@dataclass(frozen=True, repr=False)
class Attended:
    """An attention map at a point: its value and its two derivatives.

    Attributes
    ----------
    mean : Averaged
        The mean over keys, of features.
    """

    attention: Attention
    K: Array
    Q: Array
    V: Array
    slopes: tuple[Any, Any, Any]
    mean: Averaged

    @property
    def out(self) -> Array:
        """``att(K, Q, V)``."""
        return self.mean.out

    def jvp(self, dK: Any, dQ: Any, dV: Any) -> Any:
        """The derivative along (dK, dQ, dV)."""
        of, (k, q, v) = self.attention, self.slopes
        return self.mean.jvp(of.push(self.Q, q, dQ), of.mirrored(of.push(self.K, k, dK)), v * dV)

    def vjp(self, G: Any) -> tuple[Any, Any, Any]:
        """``(gK, gQ, gV)``, with ``<G, jvp(dK, dQ, dV)> = <gK, dK> + <gQ, dQ> + <gV, dV>``."""
        of, (k, q, v) = self.attention, self.slopes
        ga, gb, gU = self.mean.vjp(G)
        return of.pull(self.K, k, of.mirrored(gb)), of.pull(self.Q, q, ga), v * gU

    def take(self, rows: Any) -> Attended:
        """The same for some of the samples, numbered on the host or by a slice."""
        K, Q, V, k, q, v = (some(a, rows) for a in (self.K, self.Q, self.V, *self.slopes))
        return Attended(self.attention, K, Q, V, (k, q, v), self.mean.take(rows))


def _check(attention: Attention, *names: str) -> None:
    """Numbers become Python's: one of NumPy's would make float64 of float32."""
    for name in names:
        value = getattr(attention, name)
        number = is_whole(value) if name == "tile" else is_real(value)
        if not (number and 0 < value < math.inf) and (value is not None or name == "c"):
            kind = "a positive integer" if name == "tile" else "a positive number"
            raise InputError(
                f"{name} is {value!r}; it must be {kind}"
                + ("" if name == "c" else ", or None for the default")
            )
        if value is not None:
            object.__setattr__(attention, name, int(value) if name == "tile" else float(value))
