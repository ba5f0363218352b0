r"""Attacks: inputs near u for which the loss is large, found by its gradient.

Let g be the gradient of the loss with respect to u. The best step of first order is

    |delta|_inf <= eps:   eps sign g,       gain eps |g|_1;
    |delta|_2   <= eps:   eps g / |g|_2,    gain eps |g|_2.

`fgsm` takes it once. `pgd` takes small ones, ``u <- P(u + a sign g)``, from random
points, where P leads back to what is allowed, and keeps the worst point met.

**Feasible in floating point.** The ends ``u -+ eps`` of a box are rounded towards u by
the exact error of their sums, so that ``|u' - u| <= eps`` holds of real numbers. In a
ball the point ``u + t delta`` is off by at most ``e (max|u| + eps)`` an entry, e the
precision; the radius is smaller by that. What is cut to a domain afterwards moves
towards u, in every entry.

**A wrong gradient.** With h in its place, ``g . sign h = |h|_1 + (g - h) . sign h >=
|g|_1 - 2 |g - h|_1``: at most twice the relative error is lost of the gain. So a
truncated adjoint weakens an attack a little; a state that is not one would deceive it,
and no point counts whose solve has failed.

Sources: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples",
ICLR 2015; Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models
resistant to adversarial attacks", ICLR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from pyidl import losses
from pyidl.arrays import backend
from pyidl.arrays.backend import astype, from_host, namespace, to_numpy
from pyidl.errors import InputError, expect, is_real
from pyidl.layers import Layer
from pyidl.layers.base import check_width
from pyidl.layers.implicit import ImplicitPullback
from pyidl.robustness.door import distance, domain, timeline
from pyidl.solvers.solution import OnFail, settle
from pyidl.typing import Array, Namespace, Rng

__all__ = ["fgsm", "pgd"]


def fgsm(
    model: Layer,
    U: Array,
    labels: Any,
    eps: float,
    lengths: Any = None,
    *,
    clip: tuple[float, float] | None = None,
    loss: Callable[..., tuple[Any, Any]] = losses.cross_entropy,
    on_fail: OnFail = "raise",
) -> Any:
    """One step of first order: ``u' = u + eps sign g``, g the gradient of the loss.

    No step of this size gains more if the loss is linear in u. Where g is 0, u stays.

    Parameters
    ----------
    model, U, labels, eps, lengths, clip, loss, on_fail
        As for `pgd`.

    Returns
    -------
    array
        U', of the shape of U, in the dtype and library of the model.

    Raises
    ------
    InputError, DeviceMismatchError, ConvergenceError, GradientConvergenceError
        As `pgd`.

    Notes
    -----
    Source: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial
    examples", ICLR 2015.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.zeros((1, 3))
    >>> robustness.fgsm(model, U, [0], 0.5)
    array([[ 0.5, -0.5, -0.5]], dtype=float32)
    """
    attack = _Attack.read(model, U, labels, eps, lengths, "inf", clip, loss, on_fail)
    _, g, _ = attack.look(attack.U)
    return attack.allowed(attack.U + attack.eps * attack.uphill(g))


def pgd(
    model: Layer,
    U: Array,
    labels: Any,
    eps: float,
    lengths: Any = None,
    *,
    norm: Literal["inf", 2] = "inf",
    steps: int = 20,
    step: float | None = None,
    restarts: int = 1,
    clip: tuple[float, float] | None = None,
    loss: Callable[..., tuple[Any, Any]] = losses.cross_entropy,
    rng: Rng = None,
    on_fail: OnFail = "raise",
) -> Any:
    """Projected gradient ascent on the loss: the worst input found near each of U.

    ``u <- P(u + step sign g)``, or ``g / |g|`` in the Euclidean norm, from random
    points of the box (moved onto the ball). P leads back to distances of at most eps.
    Of all points met, and u itself, the one with the largest loss is kept, sample by
    sample; where labels are classes, one that is misclassified goes before all that are
    not. So more restarts never do worse, with the same rng.

    What it finds is a proof, what it does not find is none: see
    `pyidl.robustness.certified`. Where g is 0 (units that are off, or saturated) a
    point stays where it is. That is no robustness: take more restarts, or compare with
    the bounds.

    Parameters
    ----------
    model : Layer
        Any with a real input. Behind an `Embedding`: the other layers, with U what it
        returns.
    U : array, shape (m, ...)
        Inputs, cast to the model's dtype; distances are from what they are then.
    labels : array
        What the loss takes as target, a row a sample: classes for cross-entropy.
    eps : float
        The distance, at least 0, in the units of U. With 0, U is returned.
    lengths : array, optional
        For sequences of several lengths, as the model takes them. Steps that a sequence
        does not have are left alone, and do not count in the loss.
    norm : {"inf", 2}
        Of a whole sample: the largest entry, or the Euclidean norm.
    steps : int
        How many steps from each random point.
    step : float, optional
        How long each of them is; 2.5 eps / steps if left out.
    restarts : int
        How many random points, one after the other.
    clip : (float, float), optional
        The domain, such as (0, 1) for pixels, in which U lies and U' stays.
    loss : callable
        One of `pyidl.losses`, or with their contract. To compare points, all but
        `cross_entropy` are called for every sample by itself.
    rng : Generator, int or None
        Draws the points, on the host.
    on_fail : {"raise", "warn", "ignore"}
        What happens to samples whose solve, forward or adjoint, does not converge. A
        point at which the forward solve fails is never returned, unless it is u.

    Returns
    -------
    array
        U', of the shape of U, in the dtype and library of the model. As real numbers,
        ``|u' - u| <= eps``, exactly.

    Raises
    ------
    InputError
        If the model takes tokens or is a `WorstCase`, an argument is out of range, U
        lies outside of clip, or labels do not fit.
    DeviceMismatchError
        If U lives elsewhere than the model.
    ConvergenceError, GradientConvergenceError
        If a solve fails and `on_fail` is "raise".

    Notes
    -----
    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models
    resistant to adversarial attacks", ICLR 2018.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.random.default_rng(0).normal(size=(50, 3))
    >>> labels = model.predict(U).argmax(axis=1)
    >>> attacked = robustness.pgd(model, U, labels, 0.2, rng=0)
    >>> survive = model.predict(attacked).argmax(axis=1) == labels
    >>> sure = robustness.certified(model, U.astype("float32"), labels, 0.2)
    >>> bool(survive.mean() < 1), bool(survive[sure].all())
    (True, True)
    """
    attack = _Attack.read(model, U, labels, eps, lengths, norm, clip, loss, on_fail)
    steps, restarts = check_width("steps", steps), check_width("restarts", restarts)
    length = 2.5 * attack.eps / steps if step is None else step
    if not (is_real(length) and 0 <= length < math.inf and (step is None or step > 0)):
        raise InputError(f"step is {step!r}; a finite length, above 0, is needed")
    generator, xp = backend.as_generator(rng), namespace(attack.U)
    worst, _, warm = attack.look(attack.U)
    for _ in range(restarts if attack.eps else 0):
        r = astype(xp, from_host(xp, generator.random(attack.U.shape)), attack.U.dtype)
        V = attack.allowed((1.0 - r) * attack.low + r * attack.high)
        for _ in range(steps + 1):
            now, g, warm = attack.look(V, *warm)
            worst, V = _worse(worst, now), attack.allowed(V + float(length) * attack.uphill(g))
    return worst[0]


class _Attack(NamedTuple):
    """What is attacked, and where it may go."""

    call: Callable[..., Any]
    loss: Callable[..., tuple[Any, Any]]
    U: Any
    labels: Any
    present: Any  # (m, T), the steps that there are; None for all
    eps: float
    norm: Any
    domain: tuple[float, float]
    low: Any  # the box, within the domain
    high: Any

    @classmethod
    def read(
        cls, model: Any, U: Any, labels: Any, eps: Any, lengths: Any, norm: Any, clip: Any,
        loss: Any, on_fail: Any,
    ) -> _Attack:  # fmt: skip
        """Check everything; round the ends of the boxes."""
        expect("model", model, Layer, "attacks are those of a Layer")
        expect("loss", loss, "__call__", "give one of pyidl.losses, or your own")
        eps = distance(eps)
        if norm not in ("inf", 2):
            raise InputError(f"norm is {norm!r}; use 'inf' or 2")
        U = backend.own(model._admit(backend.read_array(U, "U")), U)
        xp, u = namespace(U), to_numpy(U)
        if not xp.isdtype(U.dtype, "real floating"):
            raise InputError("U holds tokens; attack what is behind the Embedding, on its output")
        mask: Any = getattr(timeline(model, u, lengths), "mask", None)
        labels = backend.read_array(labels, "labels")
        labels = from_host(xp, to_numpy(labels)) if backend.holds_real(labels) else labels
        floor, ceiling = within = domain(clip, u)
        width = eps if mask is None else eps * mask[..., None]
        low, high = -_inwards(-u, width, -floor), _inwards(u, width, ceiling)
        call = partial(model, on_fail=on_fail, **({} if lengths is None else {"lengths": lengths}))
        mask, low, high = (a if a is None else from_host(xp, a) for a in (mask, low, high))
        return cls(call, loss, U, labels, mask, eps, norm, within, low, high)

    def look(self, V: Any, x0: Any = None, v0: Any = None) -> tuple[Any, Any, Any]:
        """``(V, loss, wrong)`` of each sample; dU; where the next solves may start."""
        xp, (m, *_) = namespace(V), V.shape
        Y, pull = self.call(V) if x0 is None else self.call(V, x0=x0)
        steps = self.present is not None and Y.shape[:2] == self.present.shape and Y.ndim > 2
        w = astype(xp, self.present, Y.dtype) if steps else None
        _, dY = self.loss(Y, self.labels, **({} if w is None else {"weights": w}))
        dY = xp.where(xp.isfinite(dY), dY, 0.0)
        converged = from_host(xp, pull.converged)  # where it is not, no loss is known
        loss = xp.where(converged, losses.each(self.loss, Y, self.labels, w), -math.inf)
        wrong = xp.zeros((m, 1), dtype=xp.bool)
        if self.labels.shape == Y.shape[:-1] and backend.is_integral(self.labels):
            wrong = xp.argmax(Y, axis=-1) != self.labels
            wrong = xp.reshape(wrong & self.present if steps else wrong, (m, -1))
        point = V, loss, xp.any(wrong, axis=1) & converged
        if not isinstance(pull, ImplicitPullback):
            dU, _ = pull(dY)
            dU = dU[0] if isinstance(dU, tuple) else dU
            return point, xp.where(xp.isfinite(dU), dU, 0.0), (None, None)
        # its rule, without the gradients of the parameters
        adjoint = settle(pull.solve(dY, v0=v0), pull.equilibrium.on_fail, adjoint=True)
        dU = pull.maps["B"].T.rows(adjoint.value)
        dU = dU + pull.maps["D"].T.rows(dY) if "D" in pull.maps else dU
        warm = (s.value if s.all_converged else None for s in (pull.forward, adjoint))
        return point, xp.where(xp.isfinite(dU), dU, 0.0), warm

    def uphill(self, g: Any) -> Any:
        """The direction of the best step of length 1; 0 where g is."""
        xp = namespace(g)
        if self.norm == "inf":
            return xp.sign(g)
        flat = xp.reshape(astype(xp, g, "float64"), (g.shape[0], -1))
        size = _length(xp, flat)
        return xp.reshape(astype(xp, flat / xp.where(size > 0, size, 1.0), g.dtype), g.shape)

    def allowed(self, V: Any) -> Any:
        """Into the domain, the ball, and the box: always towards U."""
        xp = namespace(V)
        if self.norm == 2:
            V = xp.clip(V, *self.domain)
            u, far = (xp.reshape(astype(xp, a, "float64"), (V.shape[0], -1)) for a in (self.U, V))
            far, k, limits = far - u, u.shape[1], np.finfo(backend.real_dtype(V))
            # the radius, less what the roundings below may add, entry by entry
            most = xp.max(xp.abs(u), axis=1, keepdims=True) + self.eps
            off = k**0.5 * (float(limits.eps) * most + float(limits.tiny))
            room = xp.clip((1.0 - (k + 8) * 2.0**-52) * self.eps - off, 0.0, math.inf)
            u = u + far * (room / xp.maximum(_length(xp, far), room + 1e-300))
            V = xp.reshape(astype(xp, u, V.dtype), V.shape)
        return xp.minimum(xp.maximum(V, self.low), self.high)


def _length(xp: Namespace, rows: Any) -> Any:
    """Of every row, in float64, (m, 1); squares do not vanish."""
    most = xp.max(xp.abs(rows), axis=1, keepdims=True)
    parts = rows / xp.where(most > 0, most, 1.0)
    return most * xp.sqrt(xp.sum(parts * parts, axis=1, keepdims=True))


def _worse(old: Any, new: Any) -> Any:
    """Of each sample the worse of two points ``(V, loss, wrong)``."""
    xp = namespace(old[0])
    more = xp.where(old[2] == new[2], new[1] > old[1], new[2])
    tall = (xp.reshape(more, (-1, *[1] * (a.ndim - 1))) for a in old)
    return tuple(xp.where(*both) for both in zip(tall, new, old, strict=True))


def _inwards(u: np.ndarray, eps: Any, ceiling: float) -> Any:
    """The largest number of u's dtype that is at most ``u + eps`` and `ceiling`."""
    wide, most = u.astype(np.float64), float(np.finfo(u.dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):
        s = wide + eps
        b = s - wide  # the error of the sum, exactly (Knuth)
        s = np.where((wide - (s - b)) + (eps - b) < 0, np.nextafter(s, -np.inf), s)
    s = np.minimum(s, min(ceiling, most))
    near = s.astype(u.dtype)
    return np.where(near > s, np.nextafter(near, u.dtype.type(-np.inf)), near)
