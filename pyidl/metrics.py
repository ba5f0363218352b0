"""Metrics: ``metric(Y, target) -> float``, for reports; nothing is differentiated.

They are computed on the host, in float64. Any function with this contract is a metric
for `pyidl.fit`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyidl.arrays.backend import as_real, is_array, to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array

__all__ = ["accuracy", "r2"]


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
    logits, labels = _host(Y, "Y"), _host(target, "target")
    if logits.ndim == 0 or logits.size == 0:
        raise InputError(
            f"Y has shape {logits.shape}; accuracy needs at least one sample, along the first axis"
        )
    column = logits.ndim >= 2 and logits.shape[-1] == 1
    if column and labels.shape == logits.shape:
        labels = labels[..., 0]
    if column or logits.ndim == 1:
        said, classes = (logits[..., 0] if column else logits) > 0, 2
    else:
        said, classes = logits.argmax(axis=-1), logits.shape[-1]
    if labels.shape != said.shape:
        raise InputError(
            f"the target's labels have shape {labels.shape}; for logits {logits.shape} they must "
            f"have {said.shape}"
        )
    strangers = labels[(labels < 0) | (labels >= classes) | (labels != np.floor(labels))]
    if strangers.size:
        raise InputError(
            f"{strangers.size} labels belong to no class, the first is {strangers[0]:g}; "
            f"they are 0, ..., {classes - 1}"
        )
    return float(np.mean(said == labels))


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
    said, truth = _host(Y, "Y"), _host(target, "target")
    if said.shape != truth.shape:
        raise InputError(
            f"Y has shape {said.shape}, target {truth.shape}; they must be equal, "
            "nothing is broadcast"
        )
    if truth.ndim == 0 or truth.size == 0:
        raise InputError(
            f"Y has shape {said.shape}; r2 needs at least two samples, along the first axis"
        )
    if np.all(truth == truth[:1]):  # the sum below would be 0 only up to rounding
        raise InputError(
            f"all {len(truth)} targets are equal, so r2 has nothing to explain; "
            "report the squared error instead"
        )
    deviation = truth - truth.mean(axis=0)
    unit = np.max(np.abs(deviation))  # in other units the squares may overflow, or vanish
    missed, whole = (float(np.sum((e / unit) ** 2)) for e in (truth - said, deviation))
    return 1.0 - missed / whole


def _host(x: Any, name: str) -> np.ndarray:
    """A finite NumPy array from any library or list."""
    if is_array(x) and not isinstance(x, np.ndarray):
        x = to_numpy(x)
    return np.asarray(as_real(x, name=name, xp=np, dtype="float64"))
