r"""Penalties on the weights of a row, their proximal maps, and their conjugates.

A penalty is ``p(w) = sum_j q(w_j)`` with q convex, even, and least at 0; it is added to
the *mean* loss ``|z - M w|^2 / (2m)``.

**With the ball** ``|a|_1 <= kappa``. The bound's multiplier nu >= 0 adds ``nu |a|_1``,
so the proximal map is the one of ``t q + nu |.|`` for the least nu that makes the point
feasible. And ``prox(t q + nu |.|)(v) = prox(t q)(soft(v, nu))``, with ``soft(v, nu) =
sign(v) max(|v| - nu, 0)``: for ``u = soft(v, nu)`` and x the right-hand side, ``u - x``
is in ``t dq(x)`` and ``v - u`` in ``nu d|u|``, a subset of ``nu d|x|`` because x has
the sign of u or is zero; the sum is the optimality condition. For L1 and the elastic
net this is the projection of ``prox(t q)(v)`` onto the ball: thresholds add. For the
reverse Huber penalty it is not, and nu is found by sorting (below).

**The conjugate with the ball** is, by the same multiplier,

    sup { xi.w - p(w) : |a|_1 <= kappa }
        = min over nu >= 0 of  kappa nu + sum over a of q*(soft(xi_j, nu))
                                        + sum over b of q*(xi_j),

and every nu gives an upper bound, which is all that a certificate needs. For ``q*(x) =
max(x^2 / (2 ridge) - price, 0)``, with its kink at ``s = (2 price ridge)^(1/2)``, the
best nu is the least one >= 0 with

    slope(nu) = sum over x_j - nu > s of (x_j - nu) <= ridge kappa,

where x_1 >= x_2 >= ... are the sizes ``|xi_a|``, and that is

    nu = max(0, max_j min((x_1 + ... + x_j - ridge kappa) / j, x_j - s)).

(For nu below ``x_j - s`` at least the first j entries count, so ``slope(nu) >= x_1 +
... + x_j - j nu``: if nu is below both numbers, it is too small. And where it is too
small, and j > 0 entries count, this is an equality, so nu is below both numbers of this
j.)

**Reverse Huber.** Let a nonzero weight cost `price`, and its square ``ridge / 2``. The
conjugate of ``price [w != 0] + ridge w^2 / 2`` is ``q*(xi) = max(xi^2 / (2 ridge) -
price, 0)``, and the conjugate of that, the largest convex function below the price, is

    q(w) = s |w|  for |w| <= c,    price + ridge w^2 / 2  beyond,
    s = (2 price ridge)^(1/2),    c = (2 price / ridge)^(1/2).

**Its proximal map on the ball**, where the bound is felt: with d_j the distance of
``|v_j|`` from the largest, the sizes are

    f(level - d_j),    f(y) = min(y+, c) + rho (y - c)+,    y+ = max(y, 0),
    rho = 1 / (1 + t ridge),    level = max_j |v_j| - nu - t s.

Neither nu nor t s is needed, and nothing cancels, however large the row is against its
bound. The sum of the sizes is piecewise linear in the level: its slope gains 1 at every
d_j and loses ``1 - rho`` at every ``d_j + c``. Between two neighbours of these 2k
numbers it rises by slope times length; rises and their running sums are not negative.
The part of a segment that lies below the bound is that part of its rise, divided by its
slope, and the level is the sum of these parts.

Source: Pilanci, Wainwright, El Ghaoui, "Sparse learning via Boolean relaxations", Math.
Program. 151, 2015; Owen, "A robust hybrid of lasso and ridge regression", 2007 (its
name).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, cumsum, from_host, looks_are_free, namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import Array
from pyidl.wellposed.projections import l1_ball_rows

__all__ = [
    "ElasticNet",
    "L1",
    "NoPenalty",
    "Penalty",
    "ReverseHuber",
    "Ridge",
    "ball_project",
    "soft",
]

EPS = float(np.finfo(np.float64).eps)


def soft(V: Any, threshold: Any) -> Any:
    """``sign(v) max(|v| - threshold, 0)``, entry by entry."""
    xp = namespace(V)
    return xp.sign(V) * xp.maximum(xp.abs(V) - threshold, 0.0)


def ball_project(W: Array, ball: int, radius: np.ndarray | None) -> Array:
    """The nearest W with ``sum |W_ij| <= radius_i`` over the first `ball` columns j.

    W itself where there is no radius.
    """
    if radius is None or ball == 0:
        return W
    if ball == W.shape[1]:
        return l1_ball_rows(W, radius)
    held = l1_ball_rows(W[:, :ball], radius)
    return namespace(W).concat([held, W[:, ball:]], axis=1)  # type: ignore[no-any-return]


def _positive(name: str, number: Any, *, zero: bool) -> float:
    """A finite number as a float, which keeps the dtype of an array that it meets."""
    value = float(number) if is_real(number) else math.nan
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise InputError(
            f"{name} is {number!r}; a penalty takes a finite "
            f"{'nonnegative' if zero else 'positive'} number, on the mean loss"
        )
    return value


class Penalty(ABC):
    """A separable, even, convex penalty on the mean loss.

    Subclasses are frozen dataclasses.

    Examples
    --------
    >>> ridge, rest = ElasticNet(0.1, 0.2).split()  # what may join G, and what is left
    >>> ridge, rest.slope
    (0.2, 0.1)
    """

    def split(self) -> tuple[float, Penalty]:
        """``(ridge, rest)`` with ``p(w) = ridge |w|^2 / 2 + rest(w)``.

        The first part may join the quadratic loss, as ``G + ridge I``.
        """
        return 0.0, self

    @property
    @abstractmethod
    def slope(self) -> float:
        """``q'(0+)``: entries whose ``|h - G w|`` is at most this stay zero."""

    @abstractmethod
    def pieces(self, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope and curvature of the quadratic piece around each ``|w|``.

        There ``q'(w) = sign(w) (slope + curvature |w|)``.
        """

    @abstractmethod
    def value(self, W: Array) -> Array:
        """``p(w)`` for every row, shape (r,)."""

    @abstractmethod
    def prox(self, V: Array, t: Any) -> Array:
        """``argmin_w t q(w) + (w - v)^2 / 2``, entry by entry.

        t is a number, or a column of one number a row.
        """

    @abstractmethod
    def prox_ball(self, V: Array, t: Any, ball: int, radius: np.ndarray | None) -> Array:
        """``argmin_w t p(w) + |w - v|^2 / 2`` under a bound of every row.

        ``sum |w_j| <= radius_i`` over the first `ball` entries of row i; feasible in
        floating point. `radius` has shape (r,), on the host, positive; None
        for no bound.
        """

    @abstractmethod
    def conjugate(self, Xi: Array, ball: int, radius: np.ndarray | None) -> Array:
        """``sup_w xi.w - p(w)`` under the same bound, for every row, or an upper bound.

        Infinite where it is.
        """

    def dual_scale(
        self,
        loss: np.ndarray,
        gain: np.ndarray,
        top: np.ndarray,
        free: np.ndarray,
        radius: np.ndarray | None,
    ) -> np.ndarray:
        """A factor s for which the dual point s r is good.

        1 where every point is feasible.
        """
        return np.ones_like(loss)


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """``lam |w|_1 + ridge |w|^2 / 2``.

    Parameters
    ----------
    lam, ridge : float
        Not negative; on the mean loss, so that their meaning does not change with the
        number of samples.

    Examples
    --------
    >>> ElasticNet(1.0, 1.0).prox(np.array([[3.0, -0.5]]), 1.0)
    array([[ 1., -0.]])
    """

    lam: float
    ridge: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", _positive("lam", self.lam, zero=True))
        object.__setattr__(self, "ridge", _positive("ridge", self.ridge, zero=True))

    def split(self) -> tuple[float, Penalty]:
        """The square, and L1."""
        return self.ridge, L1(self.lam)

    @property
    def slope(self) -> float:
        """``q'(0+) = lam``."""
        return self.lam

    def pieces(self, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``lam + ridge |w|`` everywhere."""
        return np.full_like(size, self.lam), np.full_like(size, self.ridge)

    def value(self, W: Array) -> Array:
        """``lam |w|_1 + ridge |w|^2 / 2``."""
        xp = namespace(W)
        size, square = xp.sum(xp.abs(W), axis=1), xp.sum(W * W, axis=1)
        return self.lam * size + (0.5 * self.ridge) * square  # type: ignore[no-any-return]

    def prox(self, V: Array, t: Any) -> Array:
        """``soft(v, t lam) / (1 + t ridge)``."""
        return soft(V, t * self.lam) / (1.0 + t * self.ridge)  # type: ignore[no-any-return]

    def prox_ball(self, V: Array, t: Any, ball: int, radius: np.ndarray | None) -> Array:
        """A projection after the proximal map: the thresholds t lam and nu add."""
        return ball_project(self.prox(V, t), ball, radius)

    def conjugate(self, Xi: Array, ball: int, radius: np.ndarray | None) -> Array:
        """``q* = max(|xi| - lam, 0)^2 / (2 ridge)``.

        Without ridge 0 up to lam, and ``radius max(max |xi_a| - lam, 0)`` on the ball.
        """
        xp = namespace(Xi)
        excess = xp.maximum(xp.abs(Xi) - self.lam, 0.0)
        if self.ridge:
            return _conjugate(excess, ball, radius, self.ridge, 0.0)
        held = 0 if radius is None else ball
        beyond = _top(excess[:, held:])
        total = xp.where(beyond > 0, xp.full_like(beyond, math.inf), beyond)
        if radius is None:
            return total  # type: ignore[no-any-return]
        return total + _top(excess[:, :held]) * from_host(xp, radius)  # type: ignore[no-any-return]

    def dual_scale(
        self,
        loss: np.ndarray,
        gain: np.ndarray,
        top: np.ndarray,
        free: np.ndarray,
        radius: np.ndarray | None,
    ) -> np.ndarray:
        r"""The s >= 0 with ``s free <= lam`` that makes the gap least.

            (1 - s)^2 loss / 2 - s gain + radius max(s top - lam, 0)

        The function is convex, with the minimiser ``1 + gain / loss`` left of the kink
        ``lam / top`` and ``1 + (gain - radius top) / loss`` right of it: the middle one
        of the three numbers is the minimum.
        """
        tiny = np.finfo(np.float64).tiny
        with np.errstate(over="ignore"):
            kink = self.lam / np.maximum(top, tiny)
            left = 1.0 + gain / np.maximum(loss, tiny)
            right = left if radius is None else 1.0 + (gain - radius * top) / np.maximum(loss, tiny)
            largest = np.where(
                free > 0,
                self.lam / np.maximum(free, tiny) * (1.0 - 4 * np.finfo(np.float64).eps),
                np.inf,
            )
        best = np.maximum(right, np.minimum(left, kink)) if radius is not None else left
        return np.asarray(np.clip(best, 0.0, np.minimum(largest, 2.0)))


@dataclass(frozen=True)
class L1(ElasticNet):
    """``lam |w|_1``, a price for size that leaves weights out.

    Parameters
    ----------
    lam : float
        Not negative; on the mean loss.

    Examples
    --------
    >>> L1(1.0).prox(np.array([[3.0, 0.5]]), 1.0)
    array([[2., 0.]])
    """

    ridge: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class Ridge(ElasticNet):
    """``ridge |w|^2 / 2``, which keeps weights small and leaves none out.

    Parameters
    ----------
    ridge : float
        Not negative; on the mean loss.

    Examples
    --------
    >>> Ridge(1.0).prox(np.array([[3.0, 0.5]]), 1.0)
    array([[1.5 , 0.25]])
    """

    lam: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class NoPenalty(ElasticNet):
    """Least squares alone.

    Examples
    --------
    >>> NoPenalty().value(np.array([[3.0, 0.5]]))
    array([0.])
    """

    lam: float = field(default=0.0, init=False)
    ridge: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class ReverseHuber(Penalty):
    """The convex envelope of ``ridge |w|^2 / 2`` and a price for each nonzero weight.

    Parameters
    ----------
    price : float
        What a nonzero weight costs of the mean loss; positive.
    ridge : float
        Positive: without it no convex function tells a small weight from none.

    Examples
    --------
    >>> ReverseHuber(price=2.0, ridge=1.0).value(np.array([[1.0], [4.0]]))
    array([ 2., 10.])
    """

    price: float
    ridge: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", _positive("price", self.price, zero=False))
        object.__setattr__(self, "ridge", _positive("ridge", self.ridge, zero=False))

    @property
    def slope(self) -> float:
        """``(2 price ridge)^(1/2)``."""
        return math.sqrt(2.0 * self.ridge) * math.sqrt(
            self.price
        )  # the product alone may be no number

    @property
    def corner(self) -> float:
        """``c = (2 price / ridge)^(1/2)``, where the line meets the parabola."""
        return math.sqrt(2.0 * self.price) / math.sqrt(self.ridge)

    def pieces(self, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``q' = s`` up to c, ``ridge |w|`` beyond."""
        return np.where(size <= self.corner, self.slope, 0.0), np.where(
            size <= self.corner, 0.0, self.ridge
        )

    def value(self, W: Array) -> Array:
        """``s |w|`` up to c, ``price + ridge w^2 / 2`` beyond."""
        xp = namespace(W)
        size = xp.abs(W)
        beyond = self.price + (0.5 * self.ridge) * W * W
        q = xp.where(size <= self.corner, self.slope * size, beyond)
        return xp.sum(q, axis=1)  # type: ignore[no-any-return]

    def prox(self, V: Array, t: Any) -> Array:
        """``soft(v, t s)`` where that is at most c, and ``v / (1 + t ridge)`` beyond.

        ``v - w`` is ``t s`` and ``t ridge w``.
        """
        xp, small = namespace(V), soft(V, t * self.slope)
        found: Array = xp.where(xp.abs(small) <= self.corner, small, V / (1.0 + t * self.ridge))
        return found

    def prox_ball(self, V: Array, t: Any, ball: int, radius: np.ndarray | None) -> Array:
        """`prox` where that is feasible.

        Elsewhere ``prox(soft(v, nu))`` on the ball's entries, with sizes whose sum is
        the bound.
        """
        xp, W = namespace(V), self.prox(V, t)
        if radius is None or ball == 0:
            return W
        v, head = V[:, :ball], W[:, :ball]
        bound = from_host(xp, np.ascontiguousarray(radius))[:, None]
        inside = xp.sum(xp.abs(head), axis=1, keepdims=True) <= bound
        if looks_are_free(xp) and bool(xp.all(inside)):
            return W
        size, corner, rho = xp.abs(v), self.corner, 1.0 / (1.0 + t * self.ridge)
        top = xp.max(size, axis=1, keepdims=True)
        d = top - size
        # A bound less by the usual rounding saves l1_ball_rows the second sort.
        level = _level(d, corner, rho, bound * (1.0 - ball * EPS), top)
        y = xp.maximum(level - d, 0.0)
        outside = xp.sign(v) * (xp.minimum(y, corner) + rho * xp.maximum(y - corner, 0.0))
        head = l1_ball_rows(xp.where(inside, head, outside), radius)
        return head if ball == V.shape[1] else xp.concat([head, W[:, ball:]], axis=1)

    def conjugate(self, Xi: Array, ball: int, radius: np.ndarray | None) -> Array:
        """``q* = max(xi^2 / (2 ridge) - price, 0)``."""
        return _conjugate(namespace(Xi).abs(Xi), ball, radius, self.ridge, self.price)


def _top(A: Array) -> Array:
    """The largest entry of every row; 0 where there are no columns."""
    xp = namespace(A)
    top: Array = xp.max(A, axis=1) if A.shape[1] else xp.zeros(A.shape[0], dtype=A.dtype)
    return top


def _level(d: Any, corner: float, rho: Any, bound: Any, top: Any) -> Any:
    """The level at which ``sum f(level - d)`` is the bound; the least d is 0.

    Good up to `top`.
    """
    xp, k = namespace(d), d.shape[1]
    both = xp.concat([d, d + corner], axis=1)
    order = xp.argsort(both, axis=1)
    start = xp.take_along_axis(both, order, axis=1)
    bent = cumsum(xp, astype(xp, order >= k, "float64"), axis=1)
    # Among equal numbers the order is any, and some slopes are wrong, of segments
    # without length; all others are at least rho.
    slope = xp.maximum((xp.arange(1, 2 * k + 1, dtype=xp.float64) - 2.0 * bent) + rho * bent, rho)
    rise = slope * (xp.concat([start[:, 1:], start[:, -1:] + top], axis=1) - start)
    below = xp.concat([start[:, :1], cumsum(xp, rise[:, :-1], axis=1)], axis=1)
    return xp.sum(xp.minimum(xp.maximum(bound - below, 0.0), rise) / slope, axis=1, keepdims=True)


def _conjugate(
    size: Array, ball: int, radius: np.ndarray | None, ridge: float, price: float
) -> Array:
    """The conjugate of every row, with the best nu (above).

    ``min_nu radius nu + sum q*(soft(size, nu))`` on the ball, ``sum q*(size)`` off it,
    with ``q* = max(x^2 / (2 ridge) - price, 0)``.
    """
    xp, unit = namespace(size), math.sqrt(2.0 * ridge)

    def star(x: Any) -> Any:
        return xp.sum(xp.maximum((x / unit) ** 2 - price, 0.0), axis=1)

    if radius is None or ball == 0:
        return star(size)  # type: ignore[no-any-return]
    head, corner = size[:, :ball], unit * math.sqrt(price)
    bound = from_host(xp, np.ascontiguousarray(radius))[:, None]
    x = xp.flip(xp.sort(head, axis=1), axis=1)
    top = x[:, :1]
    means = (cumsum(xp, top - x, axis=1) + ridge * bound) / xp.arange(1, ball + 1, dtype=xp.float64)
    # x_j - s is rounded up, so that what should be at the kink of q* is not above it,
    # where q* may be steep.
    nu = xp.maximum(
        xp.max(xp.minimum(top - means, (x - corner) * (1.0 + 2 * EPS)), axis=1, keepdims=True), 0.0
    )
    found: Array = star(size[:, ball:]) + star(xp.maximum(head - nu, 0.0)) + (bound * nu)[:, 0]
    return found
