"""Sequences as users have them, read into one padded array and their lengths.

    array (m, T, p)            m sequences of T steps and p channels
    array (m, T)               ... of one channel
    list of (T_i, p) or (T_i,) ... of different lengths; a tuple, or an array of objects

Time comes before channels, as everywhere in pyidl. Arrays of aeon and sktime have
channels first, (m, p, T): give ``X.transpose(0, 2, 1)``, and of a list ``[x.T for x in
X]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_array

from pyidl.errors import InputError

__all__ = ["Sequences"]

TRANSPOSE = (
    "sequences are (time, channels); where channels come first, as in aeon and sktime, give "
    "X.transpose(0, 2, 1), of a list [x.T for x in X]"
)


@dataclass(frozen=True, eq=False)
class Sequences:
    """m sequences of p channels; beyond the end of a sequence there are zeros.

    Attributes
    ----------
    values : numpy.ndarray, shape (m, T, p)
        In float64; T is the largest length.
    lengths : numpy.ndarray of int, shape (m,)

    Examples
    --------
    >>> X = Sequences.read([[1.0, 2.0, 3.0], [4.0]])
    >>> X.values[:, :, 0].tolist(), X.lengths.tolist()
    ([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]], [3, 1])
    """

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def read(cls, X: Any, estimator: Any = None) -> Sequences:
        """What a user gives, checked.

        Parameters
        ----------
        X : array or list
            As the head of this file says.
        estimator : estimator, optional
            Is named in the messages of scikit-learn.

        Raises
        ------
        InputError
            If a sequence has no steps, entries are not finite real numbers, or the
            numbers of channels or axes differ.
        """
        if _is_ragged(X):
            parts = [_one(i, x) for i, x in enumerate(X)]
            _expect_alike(parts)
            lengths = np.array([len(x) for x in parts])
            flat = np.concatenate(parts)
            flat = _numbers(flat[:, None] if flat.ndim == 1 else flat, estimator)
            values = np.zeros((len(parts), lengths.max(), flat.shape[1]))
            values[np.arange(lengths.max()) < lengths[:, None]] = flat
        else:
            values = _numbers(X, estimator)
            values = values[:, :, None] if values.ndim == 2 else values
            if values.ndim != 3 or values.size == 0:
                raise InputError(
                    f"X has shape {values.shape}; sequences are an array (m, T, p) or (m, T) with "
                    "T, p >= 1, or a list of arrays (T_i, p) or (T_i,)"
                )
            lengths = np.full(len(values), values.shape[1])
        read = cls(values, lengths)
        finite = np.isfinite(values).all(axis=2)
        if not finite.all():
            i, t = np.argwhere(~finite)[0]
            raise InputError(
                f"sequence {i} of X has an entry that is NaN or infinite at step {t}; fill it "
                "in, or leave the sequence out. Where NaN marks the end of a shorter sequence, "
                "cut it there and give a list"
            )
        return read

    def expect_channels(self, wanted: int) -> None:
        """Refuse others than those of `fit`."""
        if self.values.shape[2] != wanted:
            raise InputError(
                f"X has {self.values.shape[2]} channels, and had {wanted} in fit; {TRANSPOSE}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the values."""
        return tuple(self.values.shape)

    @property
    def mask(self) -> np.ndarray:
        """Which steps a sequence has, (m, T)."""
        mask: np.ndarray = np.arange(self.shape[1]) < self.lengths[:, None]
        return mask

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Sequences:
        """Some of them, as if there were no others."""
        lengths = self.lengths[rows]
        return Sequences(self.values[rows, : lengths.max(initial=0)], lengths)


def _is_ragged(X: Any) -> bool:
    """Whether it is a list, a tuple, or a vector of objects."""
    if isinstance(X, np.ndarray):
        return X.dtype == object and X.ndim == 1
    return isinstance(X, Sequence) and not isinstance(X, (str, bytes))


def _one(i: int, x: Any) -> np.ndarray:
    """One sequence of a list, of a dtype that is not known yet."""
    try:
        one: np.ndarray = np.asarray(x)
    except ValueError as error:
        raise InputError(
            f"sequence {i} of X is no array ({error}); its steps have one number of channels"
        ) from None
    if one.ndim not in (1, 2):
        raise InputError(
            f"sequence {i} of X has {one.ndim} axes; it is an array (T_i, p) or (T_i,), and X a "
            "list of such, also of a single one"
        )
    if one.size == 0:
        raise InputError(
            f"sequence {i} of X has shape {one.shape}, without an entry; leave it out, or give it "
            "one step or more"
        )
    return one


def _expect_alike(parts: list[np.ndarray]) -> None:
    """Refuse a list of none, and mixed numbers of axes or channels."""
    if not parts:
        raise InputError("X has 0 sequences; at least 1 is needed")
    first = parts[0]
    for i, x in enumerate(parts):
        if x.shape[1:] != first.shape[1:]:
            raise InputError(
                f"sequence {i} of X has shape {x.shape}, sequence 0 {first.shape}; all have the "
                f"same number of channels. {TRANSPOSE[0].upper()}{TRANSPOSE[1:]}"
            )


def _numbers(X: Any, estimator: Any) -> np.ndarray:
    """An array of float64, refused in the words of scikit-learn; finite or not."""
    values: np.ndarray = check_array(
        X,
        dtype=np.float64,
        allow_nd=True,
        ensure_all_finite=False,
        input_name="X",
        estimator=estimator,
    )
    return values
