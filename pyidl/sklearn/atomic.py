"""A fit that is refused, fails or is interrupted leaves the estimator as it was: not half of the new beside half of the old."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sklearn.base import BaseEstimator

__all__ = ["as_it_was"]


@contextmanager
def as_it_was(estimator: BaseEstimator) -> Iterator[None]:
    """Put back the attributes if the block does not end; it sets them, and must not change what they hold."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
