"""Elementwise functions that are one kernel on a GPU: ``@fused`` above a function.

What for: on CuPy every array function is a launch. With fusion a step of a solve is two
launches, a product and one kernel, and Adam is one for each parameter (counted on the
stand-in and on the emulated card, tests/arrays/test_waits.py; no real card has timed
them, docs/gpu.md). So it stands where launches are many: above activations, their
derivatives and resolvents, the steps of solvers, and Adam, and not above a loss, which
is computed once in a training step. On NumPy it costs 0.3 to 0.5 us a call (measured,
docs/design.md).

On NumPy, and other libraries, the function runs as it stands, an array operation after
the other. On CuPy each of those operations would be a kernel of its own; instead the
function is called once with variables that write down what is done to them
(`pyidl.arrays.tracing`), and what they have written is compiled to one kernel. Sums and
whatever else needs several entries are not elementwise.
"""

from __future__ import annotations

import functools
import numbers
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.arrays.tracing import Variable, text_of
from pyidl.errors import InputError
from pyidl.typing import Namespace

__all__ = ["fused"]


class fused:  # noqa: N801 - a decorator, as property is one
    """An elementwise function that is one kernel on a GPU.

    Its operands are arrays of one dtype that can be broadcast together, and numbers;
    the first one is an array. Each entry of what it returns, an array or a tuple of
    them, is computed from the entries that belong to it, by array functions that work
    entry by entry. It changes no operand and depends on nothing else: on a GPU it is
    traced once.

    Parameters
    ----------
    function : callable
        ``(array, arrays or numbers, ...) -> array or tuple of arrays``, in float32 or
        float64; with a parameter ``out`` if it is called so.

    Raises
    ------
    InputError
        If it is no function; on a GPU, or by `text` anywhere, if something in it is not
        elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> @fused
    ... def bend(z):
    ...     return z - z**3 / 3
    >>> bend(np.array([0.0, 3.0]))
    array([ 0., -6.])
    >>> bend.text("T")[2]
    'const T t0 = a0 * a0 * a0; const T t1 = t0 / T(3.0); const T t2 = a0 - t1; x0 = t2'
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise InputError(f"fused was given {function!r}; it takes a function of arrays")
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, first: Any, *others: Any, out: Any = None) -> Any:
        """What the function returns; into `out`, an array or a tuple of them, if given.

        Arrays of different dtypes, or of other ones than float32 and float64, are no
        kernel: the function runs as it stands.
        """
        if (
            type(first) is not np.ndarray
            and (xp := namespace(first)).__name__ == "cupy"
            and first.dtype.char in "fd"
        ):
            kinds = [_kind(a, first.dtype) for a in others]
            if "" not in kinds:
                operands = (
                    float(a) if kind == "double" else a
                    for a, kind in zip(others, kinds, strict=True)
                )
                outputs = () if out is None else out if isinstance(out, tuple) else (out,)
                return _kernel(xp, self, ("T", *kinds))(first, *operands, *outputs)
        if out is None:
            return self.function(first, *others)
        return self.function(first, *others, out=out)

    def text(self, *kinds: str) -> tuple[str, str, str]:
        """Inputs, outputs and statements of the kernel.

        Parameters
        ----------
        *kinds : {"T", "double", "bool"}
            What the operands are: arrays, numbers, arrays of truth values.

        Raises
        ------
        InputError
            If something in the function is not elementwise.
        """
        statements: list[str] = []
        try:
            operands = [Variable(statements, kind, f"a{i}") for i, kind in enumerate(kinds)]
            results = self.function(*operands)
            several = results if isinstance(results, tuple) else (results,)
            values = [text_of("T", value) for value in several]
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{self!r} cannot be one kernel: {error}; use elementwise array functions, "
                "or leave out @fused"
            ) from error
        if len(values) > 1:  # an output may be an input too: all are read before one is written
            statements += [f"const T y{i} = {value}" for i, value in enumerate(values)]
            values = [f"y{i}" for i in range(len(values))]
        statements += [f"x{i} = {value}" for i, value in enumerate(values)]
        inputs = ", ".join(
            f"{'float64' if kind == 'double' else kind} a{i}" for i, kind in enumerate(kinds)
        )
        return inputs, ", ".join(f"T x{i}" for i in range(len(values))), "; ".join(statements)

    def __repr__(self) -> str:
        return f"fused {getattr(self.function, '__qualname__', self.function)}"

    def __reduce__(self) -> Any:
        """By its name where that is its own, as functions are."""
        name = getattr(self, "__qualname__", "")
        known = getattr(sys.modules.get(self.__module__), name, None) is self
        return name if known else (fused, (self.function,))


def _kind(a: Any, dtype: Any) -> str:
    """What the kernel calls it; "" if it has no place in one."""
    if isinstance(a, numbers.Real):
        return "double"
    if not hasattr(a, "dtype"):  # a list, or None for what is left out
        return ""
    return "T" if a.dtype == dtype else "bool" if a.dtype == bool else ""


@functools.lru_cache(maxsize=1024)
def _kernel(xp: Namespace, function: fused, kinds: tuple[str, ...]) -> Any:
    name = getattr(function, "__name__", "")
    name = name if name.isidentifier() and name.isascii() else "fused"
    return xp.ElementwiseKernel(*function.text(*kinds), f"pyidl_{name}")  # as profilers show it
