r"""Where training starts.

Random matrices with entries of a chosen variance, drawn by NumPy on the host.

If the k inputs of a unit have mean square s, its pre-activation ``sum_j W_ij x_j`` has
variance ``k var(W) s``. ReLU keeps half of it, so ``var(W) = 2 / k`` carries the signal
through at constant size (He), and ``1 / k`` does so without a nonlinearity (LeCun). The
matrix A of a fixed point is another matter: its absolute row sums must stay below 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyidl.errors import InputError, expect, is_whole

__all__ = ["glorot_uniform", "he_normal", "lecun_normal", "orthogonal", "uniform_contraction"]


def _check(rng: Any, sizes: Mapping[str, Any]) -> None:
    expect("rng", rng, np.random.Generator, "use numpy.random.default_rng(seed)")
    for name, size in sizes.items():
        if not (is_whole(size) and size >= 1):
            raise InputError(f"{name} is {size!r}; it must be a positive integer")


def lecun_normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Normal entries with variance ``1 / columns``.

    Source: LeCun, Bottou, Orr, Muller, "Efficient BackProp", 1998, section 4.6.

    Parameters
    ----------
    rng : numpy.random.Generator
        What draws.
    rows, columns : int
        The shape.

    Returns
    -------
    numpy.ndarray, shape (rows, columns)

    Raises
    ------
    InputError
        If rng is no generator, or a size no positive integer.

    Examples
    --------
    >>> lecun_normal(np.random.default_rng(0), 2, 3).shape
    (2, 3)
    """
    _check(rng, {"rows": rows, "columns": columns})
    return rng.normal(0.0, math.sqrt(1.0 / columns), (rows, columns))


def he_normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Normal entries with variance ``2 / columns``.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2.

    Parameters
    ----------
    rng : numpy.random.Generator
        What draws.
    rows, columns : int
        The shape.

    Returns
    -------
    numpy.ndarray, shape (rows, columns)

    Raises
    ------
    InputError
        If rng is no generator, or a size no positive integer.

    Examples
    --------
    >>> he_normal(np.random.default_rng(0), 2, 3).shape
    (2, 3)
    """
    _check(rng, {"rows": rows, "columns": columns})
    return rng.normal(0.0, math.sqrt(2.0 / columns), (rows, columns))


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Entries uniform in ``(-a, a)``, ``a = sqrt(6 / (rows + columns))``.

    Their variance is ``2 / (rows + columns)``. Forward, signals keep their size with
    variance ``1 / columns``, backward, gradients with ``1 / rows``: this lies between.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", AISTATS 2010, eq. 16.

    Parameters
    ----------
    rng : numpy.random.Generator
        What draws.
    rows, columns : int
        The shape.

    Returns
    -------
    numpy.ndarray, shape (rows, columns)

    Raises
    ------
    InputError
        If rng is no generator, or a size no positive integer.

    Examples
    --------
    >>> bool(np.abs(glorot_uniform(np.random.default_rng(0), 2, 4)).max() < 1)
    True
    """
    _check(rng, {"rows": rows, "columns": columns})
    a = math.sqrt(6.0 / (rows + columns))
    return rng.uniform(-a, a, (rows, columns))


def uniform_contraction(rng: np.random.Generator, n: int) -> np.ndarray:
    """Entries uniform in ``(-1/n, 1/n)``.

    Absolute row sums are below 1 for certain, and 1/2 on average.

    Parameters
    ----------
    rng : numpy.random.Generator
        What draws.
    n : int
        The size.

    Returns
    -------
    numpy.ndarray, shape (n, n)

    Raises
    ------
    InputError
        If rng is no generator, or a size no positive integer.

    Examples
    --------
    >>> A = uniform_contraction(np.random.default_rng(0), 50)
    >>> bool(np.abs(A).sum(axis=1).max() < 1)
    True
    """
    _check(rng, {"n": n})
    return rng.uniform(-1.0 / n, 1.0 / n, (n, n))


def orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    """An orthogonal matrix, uniformly distributed.

    It turns a state and keeps its length, however often it is applied.

    Source: Mezzadri, "How to generate random matrices from the classical compact
    groups", Notices AMS 54(5), 2007: the Q of a normal matrix, with the signs that make
    the diagonal of R positive.

    Parameters
    ----------
    rng : numpy.random.Generator
        What draws.
    n : int
        The size.

    Returns
    -------
    numpy.ndarray, shape (n, n)

    Raises
    ------
    InputError
        If rng is no generator, or a size no positive integer.

    Examples
    --------
    >>> Q = orthogonal(np.random.default_rng(0), 5)
    >>> bool(np.allclose(Q @ Q.T, np.eye(5)))
    True
    """
    _check(rng, {"n": n})
    Q, R = np.linalg.qr(rng.normal(size=(n, n)))
    Q *= np.sign(np.diagonal(R))
    return Q
