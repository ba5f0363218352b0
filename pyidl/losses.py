r"""Losses, each with its derivative under it.

    loss(Y, target, weights=None) -> (value, dY)

The value is the mean over samples, dY its derivative with respect to Y. With weights w
the mean is ``sum_i w_i l_i / sum_i w_i``, so that a weight of 2 is the same as a sample
that is there twice. The loss l_i of one sample is the mean over its entries (its
positions, for `cross_entropy`). Weights (m, T) weigh the positions of sequences: i then
counts all of them, and zeros are a mask, behind which targets need only be admissible.
The value is an array without dimensions, so that nothing waits for a GPU.

A loss that is too large for its dtype makes the value inf (on a GPU, also a sum of
losses that is); the derivative is then still right, as long as y - t fits.

Any function with this contract is a loss for `pyidl.fit`; the argument `weights` is
needed only where weights are given.

Examples
--------
A loss of your own, the mean of ``log cosh(y - t)`` with the derivative ``tanh(y - t)``:

>>> def log_cosh(Y, target):
...     E = Y - target
...     return np.mean(np.logaddexp(E, -E) - np.log(2.0)), np.tanh(E) / E.size
>>> value, dY = log_cosh(np.array([[0.0], [1.0]]), np.zeros((2, 1)))
>>> round(float(value), 4), dY.round(4).ravel()
(0.2169, array([0.    , 0.3808]))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import looks_are_free, namespace
from pyidl.errors import InputError, is_real
from pyidl.typing import END, Array, Namespace

__all__ = ["binary_cross_entropy", "certified", "cross_entropy", "huber", "mae", "mse"]


def mse(Y: Array, target: Any, *, weights: Any = None) -> tuple[Any, Any]:
    """Squared error, ``l = mean (y - t)^2`` and ``dl/dy = 2 (y - t) / entries``.

    Parameters
    ----------
    Y : array, shape (m, ...)
        What the model says.
    target : array of the same shape
        What it should say.
    weights : array, shape (m,) or (m, T), optional
        Nonnegative weights of the samples, or of their positions.

    Returns
    -------
    value : array without dimensions
    dY : array with the shape, dtype and library of Y

    Raises
    ------
    InputError
        If shapes differ (nothing is broadcast), a dtype does not fit, or target or
        weights are not finite (values are looked at on the CPU only: on a GPU that
        would wait for the device, and what is not finite shows in the value).
    DeviceMismatchError
        If Y and target live on different devices.

    Examples
    --------
    >>> value, dY = mse(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    >>> float(value), dY
    (2.0, array([[0.],
           [2.]]))
    """
    xp, target = _real_target(Y, target)
    E = Y - target
    value, dY = _mean(xp, E * E, E, weights)
    dY *= 2.0  # last: before the division by the entries it might overflow
    return value, dY


def mae(Y: Array, target: Any, *, weights: Any = None) -> tuple[Any, Any]:
    """Absolute error, ``l = mean |y - t|`` and ``dl/dy = sign(y - t) / entries``.

    Parameters
    ----------
    Y, target, weights
        As for `mse`.

    Returns
    -------
    value, dY
        As for `mse`.

    Raises
    ------
    InputError, DeviceMismatchError
        As for `mse`.

    Examples
    --------
    >>> value, dY = mae(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    >>> float(value)
    1.0
    """
    xp, target = _real_target(Y, target)
    E = Y - target
    return _mean(xp, xp.abs(E), xp.sign(E), weights)


def huber(Y: Array, target: Any, *, delta: float = 1.0, weights: Any = None) -> tuple[Any, Any]:
    """``e^2 / 2`` for ``|e| <= delta``, else ``delta (|e| - delta / 2)``, e = y - t.

    Squared near 0, absolute beyond delta. With c = clip(e, -delta, delta) both branches
    are ``c (e - c / 2)``, and the derivative is c.

    Parameters
    ----------
    Y, target, weights
        As for `mse`.
    delta : float
        Half the width of the quadratic part.

    Returns
    -------
    value, dY
        As for `mse`.

    Raises
    ------
    InputError, DeviceMismatchError
        As for `mse`, and if delta is not positive and finite.

    Notes
    -----
    Source: Huber, "Robust estimation of a location parameter", Ann. Math. Statist.
    35(1), 1964.

    Examples
    --------
    >>> value, dY = huber(np.array([[0.5], [3.0]]), np.zeros((2, 1)))
    >>> float(value), dY.ravel()
    (1.3125, array([0.25, 0.5 ]))
    """
    if not (is_real(delta) and 0 < delta < math.inf):
        raise InputError(
            f"delta is {delta!r}; the width of the quadratic part must be positive and finite"
        )
    xp, target = _real_target(Y, target)
    E = Y - target
    c = xp.clip(E, -float(delta), float(delta))
    return _mean(xp, c * (E - 0.5 * c), c, weights)


def binary_cross_entropy(Y: Array, target: Any, *, weights: Any = None) -> tuple[Any, Any]:
    """``l = mean (log(1 + e^y) - t y)`` and ``dl/dy = (sigmoid(y) - t) / entries``.

    For logits y and targets t in [0, 1]. Since ``log(1 + e^y) = max(y, 0) + log(1 +
    e^{-|y|})``, nothing overflows, and for t = 0 or 1 a small loss keeps its digits.

    Parameters
    ----------
    Y, target, weights
        As for `mse`.

    Returns
    -------
    value, dY
        As for `mse`.

    Raises
    ------
    InputError, DeviceMismatchError
        As for `mse`, and if a target lies outside [0, 1] (looked at on the CPU only).

    Examples
    --------
    >>> Y, target = np.array([[0.0], [1000.0]]), np.array([[1.0], [1.0]])
    >>> value, dY = binary_cross_entropy(Y, target)
    >>> round(float(value), 4)
    0.3466
    """
    xp, target = _real_target(Y, target)
    if looks_are_free(xp) and not bool(xp.all((target >= 0) & (target <= 1))):
        raise InputError(
            "the targets of binary_cross_entropy are probabilities, between 0 and 1; "
            "labels -1, 1 become (1 + t) / 2"
        )
    loss = xp.maximum(Y, 0.0) - target * Y + xp.log1p(xp.exp(-xp.abs(Y)))
    return _mean(xp, loss, backend.expit(xp, Y) - target, weights)


def cross_entropy(Y: Array, target: Any, *, weights: Any = None) -> tuple[Any, Any]:
    """``l = -sum_k t_k log softmax(y)_k``, ``dl/dy = (sum_k t_k) softmax(y) - t``.

    For logits y over q classes and probabilities t. Their sum is 1, but only up to
    rounding; kept, it makes dY the derivative of the value for any t.

    Parameters
    ----------
    Y : array, shape (m, q) or (m, T, q)
        Logits; large ones are safe, since the largest is subtracted. With T positions,
        l is their mean, and ``e^value`` is the perplexity of a language model.
    target : array
        Labels, integers in 0, ..., q - 1 of shape (m,) or (m, T); or probabilities with
        the shape of Y, rows that are nonnegative and sum to 1.
    weights : array, shape (m,) or (m, T), optional
        Nonnegative weights of the samples, or of their positions.

    Returns
    -------
    value : array without dimensions
    dY : array with the shape, dtype and library of Y

    Raises
    ------
    InputError
        If shapes do not fit, labels are not in 0, ..., q - 1, or probabilities do not
        sum to 1 (values are looked at on the CPU only: on a GPU that would wait for the
        device, and a label out of range makes the value NaN).
    DeviceMismatchError
        If Y and target live on different devices.

    Examples
    --------
    >>> value, dY = cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(float(value), 4), dY
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    xp, loss, slope = _cross_entropies(Y, target)
    return _mean(xp, loss, slope, weights)


def _cross_entropies(Y: Array, target: Any) -> tuple[Namespace, Any, Any]:
    """Library, the cross-entropy of every position, and its derivative."""
    xp = _check_output(Y)
    t, mass = _probabilities(xp, Y, target)
    half = 0.5 * Y  # the difference of two logits may overflow, half of it does not
    half -= xp.max(half, axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        slope = xp.exp(2.0 * half)
        total = xp.sum(slope, axis=-1, keepdims=True)
        loss = (mass * xp.log(total) - 2.0 * xp.sum(t * half, axis=-1, keepdims=True))[..., 0]
    slope *= mass / total
    slope -= t
    return xp, loss, slope


def each(loss: Callable[..., Any], Y: Array, target: Any, weights: Any = None) -> Any:
    """The loss of every sample by itself, (m,); of positions of weight 0, nothing."""
    if loss is not cross_entropy:
        rows = [slice(i, i + 1) for i in range(Y.shape[0])]
        more = [{} if weights is None else {"weights": weights[i, ...]} for i in rows]
        found = [
            loss(Y[i, ...], target[i, ...], **some)[0] for i, some in zip(rows, more, strict=True)
        ]
        return namespace(Y).stack([namespace(Y).asarray(value, dtype=Y.dtype) for value in found])
    xp, value, _ = _cross_entropies(Y, target)
    value = xp.reshape(value, (value.shape[0], -1))
    w = xp.ones_like(value) if weights is None else weights
    return xp.sum(xp.where(w > 0, value, 0.0) * w, axis=1) / xp.sum(w, axis=1)


@dataclass(frozen=True)
class Certified:
    """What `certified` returns: a loss for `pyidl.WorstCase`."""

    mix: float | Callable[[int], float]

    def __post_init__(self) -> None:
        mix = self.mix(END) if callable(self.mix) else self.mix
        if not (is_real(mix) and 0 <= mix <= 1):
            raise InputError(
                f"mix is {mix!r}; it is the share of the worst case, between 0 and 1, or a "
                "schedule of it, such as optim.Ramp(0.0, 0.5, steps)"
            )

    def at_step(self, count: int) -> Certified:
        """The loss of step `count` + 1 of a training."""
        return replace(self, mix=self.mix(count)) if callable(self.mix) else self

    def __call__(self, Y: Array, target: Any, *, weights: Any = None) -> tuple[Any, Any]:
        """Both halves of Y are positions of a sample, of weights 1 - mix and mix."""
        mix = float(self.mix(END) if callable(self.mix) else self.mix)
        xp = _check_output(Y)
        if Y.ndim != 3 or Y.shape[1] != 2:
            raise InputError(
                f"Y has shape {Y.shape}; losses.certified takes (m, 2, classes), what "
                "pyidl.WorstCase returns"
            )
        target, (m, _, q) = backend.read_array(target, "target"), Y.shape
        if target.shape not in ((m,), (m, q)):
            raise InputError(
                f"target has shape {target.shape}; for logits of {m} samples labels have "
                f"{(m,)}, and probabilities {(m, q)}"
            )
        w = xp.ones(m, dtype=xp.float64)
        if weights is not None:
            w = _real(xp, Y, weights, "weights", "float64")
            if w.shape != (m,):
                raise InputError(
                    f"weights has shape {w.shape}; one for each of the {m} samples is needed"
                )
        share = xp.asarray([1.0 - mix, mix], dtype=xp.float64)
        twice = namespace(target).stack([target, target], axis=1)
        return cross_entropy(Y, twice, weights=w[:, None] * share)


def certified(mix: float | Callable[[int], float]) -> Certified:
    """``(1 - mix) ce(y, t) + mix ce(V, t)``, ce the `cross_entropy`.

    y are the logits and V the bounds that `pyidl.WorstCase` puts beside them: ``V_k >=
    y_k(u') - y_t(u')`` for all u' of a box around u, ``V_t = 0``. The second part is at
    least the cross-entropy at any of these u', since ``log sum_k exp(y_k - y_t)`` rises
    with every difference.

    Parameters
    ----------
    mix : float or Schedule
        Between 0 and 1; or a function of the number of steps taken, which `pyidl.fit`
        follows. Elsewhere a schedule has its last value.

    Returns
    -------
    loss
        For Y of shape (m, 2, q), with the contract of all losses.

    Raises
    ------
    InputError
        If `mix` is not between 0 and 1; in a call as `cross_entropy`.

    Notes
    -----
    Source: Gowal et al., "On the effectiveness of interval bound propagation for
    training verifiably robust models", arXiv 1810.12715, 2018.

    Examples
    --------
    >>> Y = np.array([[[0.0, 2.0], [1.0, 0.0]]])  # right, but not for all of the box
    >>> value, dY = certified(0.5)(Y, np.array([1]))
    >>> round(float(value), 4), dY.shape
    (0.7201, (1, 2, 2))
    """
    return Certified(mix)


# ----------------------------------------------------------------------------- the door


def _check_output(Y: Array) -> Namespace:
    if not backend.is_array(Y):
        raise InputError(
            f"Y is {type(Y).__name__}; an array is needed, the Y of Y, pull = model(U)"
        )
    xp = namespace(Y)
    if Y.dtype not in (xp.float32, xp.float64):
        raise InputError(
            f"Y has dtype {Y.dtype}; a loss is differentiated with respect to it: "
            "cast the model to float32 or float64"
        )
    if Y.ndim == 0 or Y.size == 0:
        raise InputError(
            f"Y has shape {Y.shape}; a loss needs at least one sample, along the first axis, "
            "and one entry of each"
        )
    return xp


def _real(xp: Namespace, Y: Array, x: Any, name: str, dtype: str | None = None) -> Any:
    """Target or weights, in the library and, unless told otherwise, the dtype of Y."""
    dtype = dtype or backend.real_dtype(Y)
    if (
        not looks_are_free(xp)
        and backend.is_array(x)
        and namespace(Y, x).isdtype(x.dtype, ("real floating", "integral", "bool"))
    ):
        return backend.astype(xp, x, dtype)
    return backend.as_real(x, name=name, xp=xp, dtype=dtype)


def _real_target(Y: Array, target: Any) -> tuple[Namespace, Any]:
    """Library, and the target with the shape of Y."""
    xp = _check_output(Y)
    target = _real(xp, Y, target, "target")
    if target.shape != Y.shape:
        hint = f"; reshape it, target.reshape({Y.shape})" if target.size == Y.size else ""
        raise InputError(
            f"target has shape {target.shape}, Y has {Y.shape}; they must be equal, "
            f"nothing is broadcast{hint}"
        )
    return xp, target


def _probabilities(xp: Namespace, Y: Array, target: Any) -> tuple[Any, Any]:
    """The given probabilities, or those that labels stand for, and their sums.

    A label stands for 1 at its place and 0 elsewhere.
    """
    if Y.ndim < 2:
        raise InputError(
            f"Y has shape {Y.shape}; cross_entropy takes logits (m, classes) or (m, T, classes)"
        )
    given, q = backend.read_array(target, "target"), Y.shape[-1]
    if given.shape == Y.shape:
        t = _real(xp, Y, target, "target")
        mass = xp.sum(t, axis=-1, keepdims=True)
        if looks_are_free(xp) and not bool(xp.all(t >= 0) & xp.all(xp.abs(mass - 1.0) < 1e-3)):
            raise InputError(
                "the target has the shape of Y, but its rows are no probabilities: nonnegative, "
                "with sum 1; divide by the sum"
            )
        return t, mass
    if given.shape != Y.shape[:-1]:
        raise InputError(
            f"target has shape {given.shape}; for logits {Y.shape} labels have {Y.shape[:-1]}, "
            f"and probabilities {Y.shape}"
        )
    return one_hot(Y, target, q), 1.0


def one_hot(like: Array, target: Any, q: int) -> Any:
    """The rows that labels stand for, (..., q): 1 at its place, and 0 elsewhere.

    They are labels of the rows of `like`, and get its dtype and library.
    """
    xp, given = namespace(like), backend.read_array(target, "target")
    if not backend.is_integral(given):
        names = "names of classes are numbered by numpy.unique(names, return_inverse=True)[1], "
        raise InputError(
            f"the labels have dtype {given.dtype}; {'' if backend.holds_real(given) else names}"
            f"cast whole numbers to integers, or give probabilities, {q} for each"
        )
    labels = given if xp is np and type(given) is np.ndarray else _real(xp, like, target, "target")
    if looks_are_free(xp) and (int(xp.min(labels)) < 0 or int(xp.max(labels)) >= q):
        raise InputError(
            f"the labels lie between {int(xp.min(labels))} and {int(xp.max(labels))}; "
            f"with {q} classes they are 0, ..., {q - 1}"
        )
    labels = backend.astype(xp, labels, xp.int64)  # in uint8 the classes 0 and 256 would be one
    found = backend.astype(xp, labels[..., None] == xp.arange(q, dtype=xp.int64), like.dtype)
    if looks_are_free(xp):
        return found
    return xp.where(((labels >= 0) & (labels < q))[..., None], found, math.nan)


def _mean(xp: Namespace, loss: Any, slope: Any, weights: Any) -> tuple[Any, Any]:
    """The mean over entries and samples, and its derivative.

    `loss` may lack the last axis of `slope`, which is overwritten.
    """
    if weights is None:
        slope *= 1.0 / loss.size
        if not looks_are_free(xp):
            return xp.asarray(xp.mean(loss)), slope
        with np.errstate(over="ignore"):
            value = xp.sum(loss) / loss.size
        return xp.asarray(value if math.isfinite(value) else xp.sum(loss / loss.size)), slope
    w = _real(xp, loss, weights, "weights", "float64")  # also of a size that float32 lacks
    positions = slope.shape[: max(1, slope.ndim - 1)]
    if w.shape not in (loss.shape[:1], positions):
        other = f", or of the positions {positions}" if len(positions) > 1 else ""
        raise InputError(
            f"weights has shape {w.shape}; one for each of the {loss.shape[0]} samples{other} "
            "is needed"
        )
    largest = xp.max(w)
    if looks_are_free(xp) and not (bool(xp.min(w) >= 0) and bool(largest > 0)):
        raise InputError(
            f"weights lie between {float(xp.min(w))} and {float(largest)}; "
            "they must be nonnegative, and not all zero"
        )
    w = w / largest  # their sum could overflow, and every slope would be 0
    w = backend.astype(xp, w / (xp.sum(w) * (loss.size // w.size)), loss.dtype)
    weight, wide = (xp.reshape(w, (*w.shape, *[1] * (a.ndim - w.ndim))) for a in (loss, slope))
    with np.errstate(invalid="ignore"):
        parts = weight * loss
        value = xp.sum(parts)
    if not (looks_are_free(xp) and bool(xp.isfinite(value))):
        # What has weight 0 is not there, even if its loss or its slope is infinite.
        value, slope = xp.sum(xp.where(weight == 0, 0.0, parts)), xp.where(wide == 0, 0.0, slope)
    slope *= wide
    return xp.asarray(value), slope
