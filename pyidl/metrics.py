"""Metrics: ``metric(Y, target) -> float``, for reports; nothing is differentiated."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyidl.backend import to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array

__all__ = ["accuracy", "r2"]


def accuracy(Y: Array, target: Any) -> float:
    """Share of samples whose largest logit stands at the label; with a single logit, whose sign says 1 or 0.

    Parameters
    ----------
    Y : array, shape (m, q), (m, T, q), or (m, 1) or (m,) for two classes
        Logits.
    target : array of integers, shape (m,) or (m, T)
        Labels; for a single logit also of shape (m, 1).

    Raises
    ------
    InputError
        If the shapes do not fit.

    Examples
    --------
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    logits, labels = to_numpy(Y), to_numpy(target)
    if logits.ndim == 0 or logits.size == 0:
        raise InputError(f"Y has shape {logits.shape}; accuracy needs at least one sample, along the first axis")
    single = logits.ndim >= 2 and logits.shape[-1] == 1
    if single and labels.shape == logits.shape:
        labels = labels[..., 0]
    logit = logits[..., 0] if single else logits
    said = (logit > 0).astype(int) if single or logits.ndim == 1 else logits.argmax(axis=-1)
    if labels.shape != said.shape:
        raise InputError(f"the labels have shape {labels.shape}; for logits {logits.shape} they must have {said.shape}")
    return float(np.mean(said == labels))


def r2(Y: Array, target: Any) -> float:
    """``1 - sum (t - y)^2 / sum (t - mean t)^2``, the mean taken for each output; 1 is perfect, 0 is as good as the mean.

    Parameters
    ----------
    Y, target : arrays of one shape, (m, ...)
        With at least two different targets.

    Raises
    ------
    InputError
        If the shapes differ, there is no sample, or all targets are equal, so that nothing is to be explained.

    Examples
    --------
    >>> r2(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    0.5
    """
    said, truth = to_numpy(Y).astype(np.float64), to_numpy(target).astype(np.float64)
    if said.shape != truth.shape:
        raise InputError(f"Y has shape {said.shape}, target {truth.shape}; they must be equal, nothing is broadcast")
    if truth.ndim == 0 or truth.size == 0:
        raise InputError(f"Y has shape {said.shape}; r2 needs at least two samples, along the first axis")
    if np.all(truth == truth[:1]):  # the sum below would be 0 only up to rounding
        raise InputError(f"all {len(truth)} targets are equal, so r2 has nothing to explain; report the squared error instead")
    spread = float(np.sum((truth - truth.mean(axis=0)) ** 2))
    return 1.0 - float(np.sum((truth - said) ** 2)) / spread
