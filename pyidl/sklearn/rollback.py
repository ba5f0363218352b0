"""A fit that is refused, fails or is interrupted leaves the estimator as it was.

Not half of the new beside half of the old.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.base import BaseEstimator

from pyidl.errors import expect

__all__ = ["as_it_was", "check_flags"]


@contextmanager
def as_it_was(estimator: BaseEstimator) -> Iterator[None]:
    """Put back the attributes if the block does not end.

    It sets them, and must not change what they hold.
    """
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def check_flags(estimator: BaseEstimator, *names: str) -> None:
    """Refuse options that are neither True nor False.

    A search over an array of them sets NumPy's.
    """
    for name in names:
        expect(name, getattr(estimator, name), (bool, np.bool_), "use True or False")
