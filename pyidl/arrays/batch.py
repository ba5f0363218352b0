"""Rows of a batch: taken, put, added up, and measured, sample by sample.

A sample is a row, whatever its shape. Which rows is decided on the host; the rows
themselves stay where they are. On NumPy everything that passes over large arrays works
in pieces that fit the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyidl.arrays import kernels
from pyidl.arrays.backend import astype, from_host, namespace, to_numpy, writes_in_place
from pyidl.typing import Namespace

__all__ = ["CHUNK", "change_and_size", "max_abs", "put_rows", "sum_rows", "take_rows", "total"]

CHUNK = 2**15
"""Entries that a pass over a NumPy array handles at a time.

So its intermediate results stay in the cache.
"""

FEW = 512
"""Up to this many sums of rows a product with zeros and ones is formed."""


def take_rows(xp: Namespace, a: Any, rows: np.ndarray) -> Any:
    """Some rows of an array, numbered on the host: ``a[rows]``, a copy.

    Examples
    --------
    >>> take_rows(np, np.array([[1.0], [2.0], [3.0]]), np.array([2, 0]))
    array([[3.],
           [1.]])
    """
    return a.take(rows, axis=0) if xp is np else xp.take(a, from_host(xp, rows), axis=0)


def put_rows(xp: Namespace, target: Any, rows: np.ndarray, source: Any, chosen: np.ndarray) -> Any:
    """``target[rows] = source[chosen]``, in place where the library can.

    Parameters
    ----------
    xp : module
        The library of both arrays.
    target, source : array
        One sample a row. Where both have the same shape, and where all rows of both are
        meant, `rows` and `chosen` are equal.
    rows, chosen : numpy.ndarray of int
        Numbers of rows, each at most once.

    Returns
    -------
    array
        `target`, or a new array where the library cannot write.

    Examples
    --------
    >>> target, source = np.zeros((3, 1)), np.array([[5.0]])
    >>> put_rows(np, target, np.array([2]), source, np.array([0])).T
    array([[0., 0., 5.]])
    """
    if writes_in_place(xp):
        if len(rows) == len(target) == len(source):
            target[...] = source
        elif target.shape == source.shape and 2 * len(rows) > len(target):
            rest = from_host(xp, np.delete(np.arange(len(target)), rows))
            kept = target[rest]
            target[...] = source
            target[rest] = kept
        else:
            target[from_host(xp, rows)] = take_rows(xp, source, chosen)
        return target
    index = np.arange(target.shape[0])
    index[rows] = target.shape[0] + chosen
    return take_rows(xp, xp.concat([target, source]), index)


def sum_rows(xp: Namespace, source: Any, place: Any, count: int) -> Any:
    """``out[k] = sum of source[i] over all i with place[i] = k``, k < count.

    The transpose of `take_rows`, added up in the same order every time. On NumPy a
    sparse product, 40 times as fast as ``add.at``. Elsewhere (a GPU's atomic additions
    come in any order, and a run could not be repeated to the last bit) the product with
    the matrix of zeros and ones, or for many k, of which it would be nearly all zeros,
    sums over the sorted rows.
    """
    if xp is np:
        from scipy.sparse import csr_array

        m = len(place)
        ones = np.ones(m, source.dtype)
        return csr_array((ones, place, np.arange(m + 1)), shape=(m, count)).T @ source
    if count <= FEW:
        one_hot = xp.arange(count, dtype=place.dtype)[:, None] == place[None, :]
        return astype(xp, one_hot, source.dtype) @ source
    order = xp.argsort(place)
    keys, sums = xp.take(place, order), xp.take(source, order, axis=0)
    # sums[i] is that of the last `reach` rows up to i, as far as they have the key of i
    reach = 1
    while reach < keys.shape[0]:
        same = (keys[reach:] == keys[:-reach])[:, None]
        sums = xp.concat([sums[:reach, :], sums[reach:, :] + xp.where(same, sums[:-reach, :], 0.0)])
        reach *= 2
    ends = xp.searchsorted(keys, xp.arange(1, count + 1, dtype=place.dtype))
    empty = ends == xp.searchsorted(keys, xp.arange(count, dtype=place.dtype))
    last = xp.take(sums, xp.where(empty, xp.zeros_like(ends), ends - 1), axis=0)
    return xp.where(empty[:, None], 0.0, last)


def total(a: Any) -> Any:
    """The sum of all rows.

    NumPy adds up tall arrays ten times as fast by a product with ones.

    Examples
    --------
    >>> total(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([4., 6.])
    """
    xp = namespace(a)
    return np.ones(len(a), a.dtype) @ a if xp is np else xp.sum(a, axis=0)


def max_abs(xp: Namespace, a: Any, factor: Any = None) -> Any:
    """``max |a|`` over all but the first axis: the size of each sample.

    With `factor`, an array of the same shape, ``max |factor a|``.

    On NumPy it is formed in pieces that fit the cache.
    """
    if xp is not np or a.size <= CHUNK:
        return xp.max(xp.abs(a if factor is None else factor * a), axis=tuple(range(1, a.ndim)))
    m = a.shape[0]
    sizes, count = np.empty(m, a.dtype), max(1, CHUNK * m // a.size)
    scratch = np.empty((count, *a.shape[1:]), a.dtype)
    starts = np.arange(0, scratch.size, a.size // m)
    for i in range(0, m, count):
        j = min(i + count, m)
        s = scratch[: j - i]
        np.abs(a[i:j] if factor is None else np.multiply(factor[i:j], a[i:j], out=s), out=s)
        _row_max(s, starts[: j - i], sizes[i:j])
    return sizes


def change_and_size(xp: Namespace, image: Any, x: Any) -> np.ndarray:
    """``max |image - x|`` and ``max |x|`` of every sample, (2, m), float64.

    On the host: one wait on a GPU. On NumPy both are formed in pieces that fit the
    cache, on CuPy in one kernel; no array of the size of x is allocated.
    """
    if xp.__name__ == "cupy":
        return to_numpy(kernels.measure(xp, image, x))
    if xp is not np:
        return to_numpy(xp.stack([max_abs(xp, image - x), max_abs(xp, x)])).astype(np.float64)
    m = x.shape[0]
    if x.size <= CHUNK:
        work = np.empty((2, *x.shape), x.dtype)
        np.subtract(image, x, out=work[0])
        work[1] = x
        both = np.empty((2, m), x.dtype)
        _row_max(np.abs(work, out=work), np.arange(0, work.size, x.size // m), both.reshape(-1))
        return both.astype(np.float64)
    both = np.empty((2, m), x.dtype)
    flat, there = x.reshape(m, -1), image.reshape(m, -1)
    n = flat.shape[1]
    step = min(m, max(1, CHUNK // n))
    scratch, starts = np.empty((step, n), x.dtype), np.arange(0, step * n, n)
    for i in range(0, m, step):
        j = min(i + step, m)
        s, rows = scratch[: j - i], starts[: j - i]
        np.abs(np.subtract(there[i:j], flat[i:j], out=s), out=s)
        _row_max(s, rows, both[0, i:j])
        _row_max(np.abs(flat[i:j], out=s), rows, both[1, i:j])
    return both.astype(np.float64)


def _row_max(a: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
    """The largest entry of every row of a nonnegative contiguous array, or NaN.

    The bits of nonnegative numbers, read as integers, are in the order of the numbers,
    infinity and NaN last; their maximum takes half the time, for no NaN is looked for.
    (`reduceat` takes a quarter of the time of a reduction along an axis.)
    """
    integer = np.int32 if a.dtype == np.float32 else np.int64
    np.maximum.reduceat(a.view(integer).reshape(-1), starts, out=out.view(integer))
