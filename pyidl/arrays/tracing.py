"""An array library that computes nothing: its functions write the text of a kernel.

Its arrays are the variables of the kernel.

    z * (1.0 - xp.exp(z))

    writes    const T t0 = exp(z); const T t1 = T(1.0) - t0; const T t2 = z * t1

So an elementwise function of arrays becomes a kernel in CUDA's C++ by being called once
(`pyidl.arrays.fusion` does). A variable is a ``T``, an entry of an array; a ``double``,
a number that is told at every call; or a ``bool``. As with arrays, a number takes the
dtype of the entry that it meets, numbers meet in float64, and NaN passes through maxima
and minima.

The library is this module, as NumPy is the module `numpy`: by the array-API standard an
array names the module that owns it (``__array_namespace__``), and that is how
`pyidl.arrays.namespace` finds ``xp`` for a variable too. A function that is one line of
text stands in a table, and `__getattr__` makes it when ``xp.exp`` is looked up; one
that is more stands at the end of the file. What is in neither cannot be in a kernel.
"""

from __future__ import annotations

import functools
import math
import numbers
import sys
from typing import Any

import numpy as np

__all__ = ["Variable", "text_of", "write"]

T, double = "T", "double"
"""The dtypes: `pyidl.arrays.backend.astype` looks them up by their names."""


def _table(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.strip().splitlines())


SAME = (
    "exp exp2 expm1 log log2 log10 log1p sqrt sin cos tan atan sinh cosh tanh asinh erf floor ceil"
)
VALUES = {name: f"{name}({{}})" for name in SAME.split()} | _table("""
    add            {} + {}
    subtract       {} - {}
    multiply       {} * {}
    divide         {} / {}
    negative       -{}
    positive       {}
    square         {0} * {0}
    abs            fabs({})
    absolute       fabs({})
    arctan         atan({})
    arcsinh        asinh({})
    maximum        {0} >= {1} || {0} != {0} ? {0} : {1}
    minimum        {0} <= {1} || {0} != {0} ? {0} : {1}
    sign           {0} > 0 ? 1 : {0} < 0 ? -1 : {0}
    expit          1 / (1 + exp(-{}))
""")
CONDITIONS = _table("""
    less           {} < {}
    less_equal     {} <= {}
    greater        {} > {}
    greater_equal  {} >= {}
    equal          {} == {}
    not_equal      {} != {}
    logical_and    {} && {}
    logical_or     {} || {}
    logical_not    !{}
""")
OPERATORS = _table("""
    __add__        add
    __radd__       add
    __sub__        subtract
    __rsub__       subtract
    __mul__        multiply
    __rmul__       multiply
    __truediv__    divide
    __rtruediv__   divide
    __pow__        power
    __rpow__       power
    __neg__        negative
    __pos__        positive
    __abs__        absolute
    __lt__         less
    __le__         less_equal
    __gt__         greater
    __ge__         greater_equal
    __eq__         equal
    __ne__         not_equal
    __and__        logical_and
    __or__         logical_or
    __invert__     logical_not
""")


def __getattr__(name: str) -> Any:
    """A function of the tables: Python asks here for what a module lacks (PEP 562)."""
    if name in VALUES:
        return functools.partial(write, VALUES[name])
    if name in CONDITIONS:
        return functools.partial(write, CONDITIONS[name], kind="bool")
    raise AttributeError(
        f"{name} is not among the functions of single entries that a kernel can have"
    )


def _named(name: str) -> Any:
    """The function of that name, from the tables or written out below."""
    return getattr(sys.modules[__name__], name)


class Variable:
    """An entry of an array, or a number, in the kernel whose statements these are.

    Parameters
    ----------
    statements : list of str
        Of the kernel; what is done to a variable is appended.
    kind : {"T", "double", "bool"}
        An entry, a number, or a condition; also its dtype.
    name : str
        In the kernel.
    """

    shape: tuple[int, ...] = ()
    ndim, size = 0, 1

    def __init__(self, statements: list[str], kind: str, name: str) -> None:
        self.statements, self.kind, self.name = statements, kind, name
        self.dtype = kind

    def __array_namespace__(self) -> Any:
        """What `namespace` is to return: the module that you are reading."""
        return sys.modules[__name__]

    def __array_ufunc__(self, function: Any, method: str, *operands: Any) -> Any:
        """``np.exp(z)``, where ``xp.exp(z)`` was meant: NumPy asks its operand."""
        if method != "__call__":
            raise TypeError(f"{function.__name__}.{method} works on several entries")
        return _named(function.__name__)(*operands)

    def __array_function__(self, function: Any, types: Any, operands: Any, options: Any) -> Any:
        """The same for NumPy's functions that are no ufuncs, such as ``np.where``."""
        return _named(function.__name__)(*operands, **options)

    def __bool__(self) -> bool:
        raise TypeError(
            "a branch on the value of an entry, where each has its own; use where(condition, a, b)"
        )


def _operator(name: str, mirrored: bool) -> Any:
    def call(*operands: Any) -> Any:
        return _named(name)(*(operands[::-1] if mirrored else operands))

    return call


# z + 1 calls add(z, 1), and 1 + z, which Python turns into z.__radd__(1), add(1, z).
for _python, _array in OPERATORS.items():
    setattr(Variable, _python, _operator(_array, _python.startswith("__r")))


def write(text: str, *operands: Any, kind: str = "", out: None = None) -> Variable:
    """A new variable: `text` with the operands in its braces.

    It is a number where all of them are, if its kind is not given.
    """
    variables = [a for a in operands if isinstance(a, Variable)]
    kinds, statements = {v.kind for v in variables}, variables[0].statements
    common = kinds.pop() if len(kinds) == 1 else "T"
    if common == "bool" and kind != "bool":
        common = "T"
    new = Variable(statements, kind or common, f"t{len(statements)}")
    statements.append(
        f"const {new.kind} {new.name} = {text.format(*(text_of(common, a) for a in operands))}"
    )
    return new


def text_of(kind: str, a: Any) -> str:
    """A variable or a number as a text of this kind."""
    if isinstance(a, Variable):
        return a.name if a.kind == kind else f"{kind}({a.name})"
    if not isinstance(a, (numbers.Real, np.bool_)) or not math.isfinite(a):
        raise TypeError(f"{a!r} met an entry of an array; other entries can, and finite numbers")
    return f"{kind}({float(a)!r})"


# -------------------------------------------------- functions that are more than a text


def where(condition: Any, a: Any, b: Any) -> Variable:
    """``condition ? a : b``."""
    kind = "double" if all(isinstance(x, Variable) and x.kind == "double" for x in (a, b)) else "T"
    if condition.kind != "bool":
        condition = write("{} != 0", condition, kind="bool")
    return write(f"{{}} ? {text_of(kind, a)} : {text_of(kind, b)}", condition, kind=kind)


def power(a: Any, b: Any) -> Variable:
    """``a^b``; squares and cubes are products."""
    if not isinstance(b, Variable) and b in (2, 3):
        return write(" * ".join(["{0}"] * int(b)), a)
    return write("pow({}, {})", a, b)


def clip(a: Any, low: Any, high: Any, out: None = None) -> Variable:
    """``min(max(a, low), high)``."""
    if isinstance(a, Variable) or isinstance(low, Variable):
        larger = write(VALUES["maximum"], a, low)
    else:  # two numbers of Python, clipped by a variable
        larger = max(a, low)
    return write(VALUES["minimum"], larger, high)


def logaddexp(a: Any, b: Any, out: None = None) -> Variable:
    """``log(e^a + e^b)``, from the larger one; equal ones may be infinite."""
    return where(
        write("{} == {}", a, b, kind="bool"),
        a + math.log(2.0),
        write("fmax({0}, {1}) + log1p(exp(-fabs({0} - {1})))", a, b),
    )


def astype(a: Variable, dtype: str, copy: bool = False) -> Variable:
    """The variable as another kind; of a condition 1 or 0."""
    return write("{}" if dtype == a.kind else f"{dtype}({a.name})", a, kind=dtype)


def zeros_like(a: Any) -> float:
    """The number 0, which becomes an entry where it meets one."""
    return 0.0


def ones_like(a: Any) -> float:
    """The number 1, as above."""
    return 1.0


def full_like(a: Any, value: Any) -> Any:
    """The value itself, a number or a variable."""
    return value
