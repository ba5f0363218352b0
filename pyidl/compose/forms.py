r"""Affine forms of states and input, and what is done to them.

    v = M_u u + M_1 x_1 + ... + M_l x_l + c

An affine map makes of it ``W v + b``, with ``W M_j`` and ``W c + b``; a sum adds the
matrices of the same x_j.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["INPUT", "Entries", "Form", "add", "applied", "minus", "stack", "take"]

INPUT = -1
"""The number of u among the x_j."""


class Entries(NamedTuple):
    """A matrix in compressed rows, and the places where it may differ from zero.

    A weight that happens to be zero has its place; an entry outside a kernel has none.
    """

    values: Any
    places: Any

    @classmethod
    def of(cls, values: Any, mask: np.ndarray | None = None) -> Entries:
        """Of an array, everywhere or where `mask` is true, or of stored entries."""
        from scipy.sparse import csr_array, issparse

        if issparse(values):
            values = values.tocsr().astype(np.float64)
            places = values.copy()
            places.data[:] = 1.0
            return cls(values, places)
        values = np.asarray(values, np.float64)
        return cls(
            csr_array(values), csr_array(np.ones(values.shape) if mask is None else 1.0 * mask)
        )

    @classmethod
    def identity(cls, n: int) -> Entries:
        """The identity."""
        from scipy.sparse import eye_array

        return cls.of(eye_array(n))

    def __matmul__(self, other: Entries) -> Entries:
        places = self.places @ other.places
        places.data[:] = 1.0  # and not how many terms there are
        return Entries(self.values @ other.values, places)

    def plus(self, other: Entries) -> Entries:
        """The sum."""
        places = self.places + other.places
        places.data[:] = 1.0
        return Entries(self.values + other.values, places)

    def block(self, rows: Any = slice(None), columns: Any = slice(None)) -> Entries:
        """Some of the rows and columns."""
        return Entries(self.values[rows, columns], self.places[rows, columns])

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return int(self.places.nnz)


@dataclass(eq=False)
class Form:
    """``sum_j M_j x_j + c``, with x_{-1} for u; and how many will read it.

    `Assembly` may put the states that are its name in its place.
    """

    matrices: dict[int, Entries]
    constant: np.ndarray
    readers: int = 1

    @property
    def width(self) -> int:
        """How many components it has."""
        return len(self.constant)

    @property
    def nnz(self) -> int:
        """How many entries its matrices have."""
        return sum(M.nnz for M in self.matrices.values())


def add(*forms: Form) -> Form:
    """``v_1 + v_2 + ...``."""
    found: dict[int, Entries] = {}
    for key, M in itertools.chain.from_iterable(form.matrices.items() for form in forms):
        found[key] = found[key].plus(M) if key in found else M
    return Form(found, np.sum([form.constant for form in forms], axis=0))


def take(form: Form, rows: Any) -> Form:
    """Some of the components, by a slice or by their numbers."""
    return Form({key: M.block(rows) for key, M in form.matrices.items()}, form.constant[rows])


def applied(W: Entries, form: Form) -> Form:
    """``W v``, multiplied out."""
    return Form({key: W @ M for key, M in form.matrices.items()}, W.values @ form.constant)


def stack(forms: Sequence[Form]) -> Form:
    """All components, one form after the other."""
    ends = np.cumsum([0, *(form.width for form in forms)])
    whole = Entries.identity(int(ends[-1]))
    pieces = itertools.pairwise(ends)
    return add(
        *(
            applied(whole.block(columns=slice(start, stop)), form)
            for form, (start, stop) in zip(forms, pieces, strict=True)
        )
    )


def minus(form: Form) -> Form:
    """``-v``."""
    one = Entries.identity(form.width)
    return applied(one._replace(values=-one.values), form)
