"""The types of signatures: arrays of any library, and flat dictionaries of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

__all__ = ["END", "Array", "Grads", "Namespace", "Params", "Rng", "Setting", "Tol"]


@runtime_checkable
class Array(Protocol):
    """What pyidl asks of an array; NumPy, CuPy and array-API arrays all have it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def T(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __neg__(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...


Namespace: TypeAlias = Any
"""The module that owns an array: numpy, cupy, or any array-API namespace."""

Params: TypeAlias = Mapping[str, Array]
"""A layer's parameters: flat, replaced as a whole, never edited."""

Grads: TypeAlias = dict[str, Array]
"""Gradients, with exactly the keys of the parameters."""

Tol: TypeAlias = float | tuple[float | None, float | None] | None
"""A tolerance for all solves, or one forward and one adjoint.

None is the default of the dtype.
"""

Rng: TypeAlias = np.random.Generator | int | None
"""A NumPy generator, a seed, or None for fresh entropy."""


class Setting:
    """Base class of frozen dataclasses that configure a layer, and that files may name.

    Besides constraints and solvers: kinds of attention, cells, and schedules. See
    `pyidl.io`.
    """


END = 10**15
"""A step of training that none reaches: there a schedule has its last value."""
