"""Metrics: ``metric(Y, target) -> float``, for reports; nothing is differentiated.

They are computed on the host, in float64. Any function with this contract is a metric
for `pyidl.fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyidl.arrays.backend import as_real, is_array, to_numpy
from pyidl.errors import InputError, is_whole
from pyidl.typing import Array

__all__ = [
    "accuracy",
    "certified_accuracy",
    "clean_accuracy",
    "f1",
    "log_loss",
    "mae",
    "r2",
    "top_k",
]


def accuracy(Y: Array, target: Any) -> float:
    """Share of samples whose largest logit stands at the label.

    A single logit says 1 where it is positive, and 0 elsewhere.

    Parameters
    ----------
    Y : array, shape (m, q), (m, T, q), or (m, 1) or (m,) for two classes
        Logits.
    target : array of whole numbers, shape (m,) or (m, T)
        Labels in 0, ..., q - 1; for a single logit 0 or 1, and also of shape (m, 1).

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    InputError
        If the shapes do not fit, a logit is not finite, or a label belongs to no class.

    Examples
    --------
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    logits, labels = _classes(Y, target, "accuracy")
    return float(np.mean(logits.argmax(axis=-1) == labels))


def log_loss(Y: Array, target: Any) -> float:
    """Mean of ``-log p``, p the probability that the model gives to the label.

    That is ``log sum_k e^(y_k) - y_t``, as in `pyidl.losses.cross_entropy`; for a
    single logit ``log(1 + e^y) - t y``. It is at least 0; q classes that are all the
    same to the model give log q.

    Parameters
    ----------
    Y, target
        As for `accuracy`.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    InputError
        As `accuracy`.

    Examples
    --------
    >>> round(log_loss(np.zeros((1, 4)), np.array([2])), 4)
    1.3863
    """
    logits, labels = _classes(Y, target, "log_loss")
    below = logits - logits.max(axis=-1, keepdims=True)  # so that no power overflows
    own = np.take_along_axis(below, labels[..., None], axis=-1)[..., 0]
    return float(np.mean(np.log(np.exp(below).sum(axis=-1)) - own))


def top_k(k: int) -> Callable[[Array, Any], float]:
    """Make a metric: the share of samples whose label is among the k largest logits.

    Of equal logits the first counts as the largest, so that ``top_k(1)`` is `accuracy`.

    Parameters
    ----------
    k : int
        Fewer than there are classes: all of them always hold the label.

    Returns
    -------
    callable
        ``metric(Y, target) -> float``, named ``"top_3"`` in a history; Y and target are
        as for `accuracy`.

    Raises
    ------
    InputError
        If k is no positive integer; in a call, if it is not below the number of
        classes, or as `accuracy`.

    Examples
    --------
    >>> metric = top_k(2)
    >>> metric.__name__, metric(np.array([[0.1, 0.9, 0.5]]), np.array([2]))
    ('top_2', 1.0)
    """
    if not (is_whole(k) and k >= 1):
        raise InputError(f"k of top_k is {k!r}; it must be a positive integer")

    def metric(Y: Array, target: Any) -> float:
        logits, labels = _classes(Y, target, metric.__name__)
        q = logits.shape[-1]
        if k >= q:
            raise InputError(
                f"k of top_k is {k}, and there are {q} classes, so that every label is among "
                "them; choose a smaller k"
            )
        best = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
        return float(np.mean((best == labels[..., None]).any(axis=-1)))

    metric.__name__ = metric.__qualname__ = f"top_{k}"
    return metric


def clean_accuracy(Y: Array, target: Any) -> float:
    """Share of samples whose largest logit stands at the label.

    Parameters
    ----------
    Y : array, shape (m, 2, q)
        What `pyidl.WorstCase` returns.
    target : array of integers, shape (m,)
        Labels.

    Returns
    -------
    float

    Raises
    ------
    InputError
        As `accuracy`.

    Examples
    --------
    >>> Y = np.array([[[0.0, 2.0], [1.0, 0.0]]])  # right, but not for all of the box
    >>> clean_accuracy(Y, np.array([1])), certified_accuracy(Y, np.array([1]))
    (1.0, 0.0)
    """
    return accuracy(_half(Y, 0), target)


def certified_accuracy(Y: Array, target: Any) -> float:
    """Share of samples that have their class for sure, within the whole box.

    Parameters
    ----------
    Y, target
        As for `clean_accuracy`; V was measured against the same labels.

    Returns
    -------
    float

    Raises
    ------
    InputError
        As `accuracy`.

    Examples
    --------
    >>> Y = np.array([[[0.0, 2.0], [-1.0, 0.0]]])
    >>> certified_accuracy(Y, np.array([1]))
    1.0
    """
    return accuracy(_half(Y, 1), target)


def f1(Y: Array, target: Any) -> float:
    """``2 h / (2 h + a + b)``: h hits of a class, a false alarms, b labels missed.

    For a single logit, or two classes, that of class 1; for more, the mean over the
    classes that occur among labels or answers. Where class 1 does not occur in either,
    it is 0.

    Parameters
    ----------
    Y, target
        As for `accuracy`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    InputError
        As `accuracy`.

    Examples
    --------
    >>> f1(np.array([0.5, 2.0, -1.0]), np.array([1, 0, 0]))  # one hit, one false alarm
    0.6666666666666666
    """
    logits, labels = _classes(Y, target, "f1")
    q, said = logits.shape[-1], logits.argmax(axis=-1).ravel()
    right = np.bincount(said[said == labels.ravel()], minlength=q)
    both = np.bincount(said, minlength=q) + np.bincount(labels.ravel(), minlength=q)
    scores = 2.0 * right / np.maximum(both, 1)  # 2 h + a + b: answers and labels of the class
    return float(scores[1] if q == 2 else scores[both > 0].mean())


def mae(Y: Array, target: Any) -> float:
    """Mean of ``|y - t|``, in the unit of the target.

    Parameters
    ----------
    Y, target : arrays of one shape, (m, ...)
        What the model says, and what it should say.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    InputError
        If the shapes differ, a number is not finite, or there is no sample.

    Examples
    --------
    >>> mae(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    1.0
    """
    said, truth = _alike(Y, target, "mae needs at least one sample")
    return float(np.mean(np.abs(said - truth)))


def r2(Y: Array, target: Any) -> float:
    """``1 - sum (t - y)^2 / sum (t - mean t)^2``, the coefficient of determination.

    The mean is taken for each output. 1 is perfect, 0 is as good as the mean.

    Parameters
    ----------
    Y, target : arrays of one shape, (m, ...)
        With at least two different targets.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    InputError
        If the shapes differ, a number is not finite, there is no sample, or all targets
        are equal, so that nothing is to be explained.

    Examples
    --------
    >>> r2(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    0.5
    """
    said, truth = _alike(Y, target, "r2 needs at least two samples")
    if np.all(truth == truth[:1]):  # the sum below would be 0 only up to rounding
        raise InputError(
            f"all {len(truth)} targets are equal, so r2 has nothing to explain; "
            "report the squared error instead"
        )
    deviation = truth - truth.mean(axis=0)
    unit = np.max(np.abs(deviation))  # in other units the squares may overflow, or vanish
    missed, whole = (float(np.sum((e / unit) ** 2)) for e in (truth - said, deviation))
    return 1.0 - missed / whole


def _classes(Y: Any, target: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits (..., q) of q >= 2 classes, and as many labels as whole numbers.

    A single logit y becomes the two (0, y): the second is the larger where y > 0.
    """
    logits, labels = _host(Y, "Y"), _host(target, "target")
    if logits.ndim == 0 or logits.size == 0:
        raise InputError(
            f"Y has shape {logits.shape}; {metric} needs at least one sample, along the first axis"
        )
    shape = logits.shape
    column = logits.ndim >= 2 and shape[-1] == 1
    if column and labels.shape == shape:
        labels = labels[..., 0]
    if column or logits.ndim == 1:
        single = logits[..., 0] if column else logits
        logits = np.stack([np.zeros_like(single), single], axis=-1)
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"the target's labels have shape {labels.shape}; for logits {shape} they must "
            f"have {logits.shape[:-1]}"
        )
    classes = logits.shape[-1]
    strangers = labels[(labels < 0) | (labels >= classes) | (labels != np.floor(labels))]
    if strangers.size:
        raise InputError(
            f"{strangers.size} labels belong to no class, the first is {strangers[0]:g}; "
            f"they are 0, ..., {classes - 1}"
        )
    return logits, labels.astype(np.int64)


def _alike(Y: Any, target: Any, needs: str) -> tuple[np.ndarray, np.ndarray]:
    """Answers and targets of one shape."""
    said, truth = _host(Y, "Y"), _host(target, "target")
    if said.shape != truth.shape:
        raise InputError(
            f"Y has shape {said.shape}, target {truth.shape}; they must be equal, "
            "nothing is broadcast"
        )
    if truth.ndim == 0 or truth.size == 0:
        raise InputError(f"Y has shape {said.shape}; {needs}, along the first axis")
    return said, truth


def _host(x: Any, name: str) -> np.ndarray:
    """A finite NumPy array from any library or list."""
    if is_array(x) and not isinstance(x, np.ndarray):
        x = to_numpy(x)
    return np.asarray(as_real(x, name=name, xp=np, dtype="float64"))


def _half(Y: Any, which: int) -> Any:
    if not is_array(Y) or Y.ndim != 3 or Y.shape[1] != 2:
        raise InputError(
            f"Y is {getattr(Y, 'shape', Y)!r}; an array (m, 2, classes) is needed, such as "
            "WorstCase returns"
        )
    return Y[:, which, :]
