"""A stand-in for CuPy on machines without a GPU: NumPy underneath, as strict as CuPy.

It refuses NumPy operands, implicit conversion, and arrays of a device that is not the
current one, returns arrays without dimensions where NumPy returns scalars, and has only
the names that CuPy has, with the parameters that they have there. It counts how often
the host waits for a value (`waits`), sends one (`uploads`), and starts work
(`launches`: at least the kernels that CuPy would launch, where a function of several
kernels counts as one). So the code path that is taken on a GPU runs in every test run.
It says nothing about speed or rounding on a real device.
"""

import itertools
import re
import types
from pathlib import Path

import numpy as np
import scipy.special

from pyidl.arrays import tracing

PARAMETERS = {
    name: parameters
    for name, *parameters in map(
        str.split, (Path(__file__).parent / "cupy_names.txt").read_text().splitlines()
    )
}
"""What CuPy has, and the parameters of its functions where they can be read
(test_architecture.py compares them with CuPy's)."""
SCALARS = (bool, int, float, type(None), str, slice, type(Ellipsis), np.dtype, type)
VIEWS = {
    "reshape",
    "permute_dims",
    "broadcast_to",
    "matrix_transpose",
    "diagonal",
    "flip",
    "expand_dims",
    "squeeze",
    "empty",
    "empty_like",
}
WAITING = {
    "nonzero",
    "flatnonzero",
    "argwhere",
    "unique",
    "isin",
    "array_equal",
    "allclose",
    "linalg.lstsq",
    "linalg.matrix_rank",
}


class ndarray:
    """An array that lives on no host."""

    __array_priority__ = 100
    __array_ufunc__ = None  # NumPy's operators give way, and then fail, as with CuPy

    def __init__(self, a):
        self._a = np.asarray(a)
        self.device = Device()

    def __array__(self, *arguments, **options):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __reduce__(self):
        return ndarray, (self._a,)  # a pickle is opened on the current device

    def __getattr__(self, name):
        if name not in ("shape", "ndim", "size", "dtype", "T", "nbytes"):
            raise AttributeError(name)
        return wrap(getattr(self._a, name))

    def __getitem__(self, key):
        keys = [k for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, ndarray)]
        cupy.waits += any(k.dtype == bool for k in keys)  # how many there are, the host must know
        cupy.launches += bool(keys)
        return wrap(self._a[bare(key)])

    def __setitem__(self, key, value):
        # so many values are taken, though it be one number
        cupy.waits += isinstance(key, ndarray) and key.dtype == bool
        cupy.launches += 1
        self._a[bare(key)] = bare(value)

    def __len__(self):
        return len(self._a)

    def __bool__(self):
        cupy.waits += 1
        return bool(self._a)

    def __float__(self):
        cupy.waits += 1
        return float(self._a)

    def __int__(self):
        cupy.waits += 1
        return int(self._a)

    def item(self):
        cupy.waits += 1
        return self._a.item()

    def argmax(self):
        return cupy.argmax(self)

    __hash__ = None


def bare(x):
    """The NumPy array inside; host arrays are refused."""
    if isinstance(x, ndarray):
        if x.device.id != Device.current:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {x.device.id} while current = {Device.current}"
            )
        return x._a
    if isinstance(x, (list, tuple)):
        return type(x)(bare(item) for item in x)
    if isinstance(x, (np.ndarray, np.generic)) or not isinstance(x, SCALARS):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def wrap(x):
    if isinstance(x, tuple):  # CuPy returns plain ones
        return tuple(map(wrap, x))
    return ndarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def wrapped(function, name):
    parameters = PARAMETERS.get(name) or None

    def call(*arguments, **options):
        if parameters is not None and not (
            len(arguments) <= len(parameters) and set(options) <= set(parameters[len(arguments) :])
        ):
            raise TypeError(
                f"cupy.{name} has the parameters {parameters}; "
                f"got {len(arguments)} and {sorted(options)}"
            )
        cupy.waits += name in WAITING
        cupy.launches += name not in VIEWS
        out = options.get("out")
        result = function(
            *map(bare, arguments), **{key: bare(value) for key, value in options.items()}
        )
        return wrap(result) if out is None else out

    return call


def operator(name):
    def call(self, other):
        cupy.launches += 1
        result = getattr(self._a, name)(bare(other))
        if name.startswith("__i") and name != "__invert__":
            return self
        return wrap(result)

    return call


ARITHMETIC = [
    f"__{prefix}{name}__"
    for name in ("add", "sub", "mul", "truediv", "pow", "matmul")
    for prefix in ("", "r", "i")
]
for name in (
    *ARITHMETIC,
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__eq__",
    "__ne__",
    "__and__",
    "__or__",
):
    setattr(ndarray, name, operator(name))
ndarray.__neg__ = lambda self: wrap(-self._a)
ndarray.__invert__ = lambda self: wrap(~self._a)


class Namespace(types.ModuleType):
    """A module that has what CuPy has."""

    def __init__(self, name, source, prefix=""):
        super().__init__(name)
        self.__dict__.update(source=source, prefix=prefix)

    def __getattr__(self, name):
        if f"{self.prefix}{name}" not in PARAMETERS or name.startswith("__"):
            raise AttributeError(f"module 'cupy' has no attribute {self.prefix}{name!r}")
        found = getattr(self.source, name)
        return (
            wrapped(found, f"{self.prefix}{name}")
            if callable(found) and not isinstance(found, type)
            else found
        )


class ElementwiseKernel:
    """Its C++ statements, with their ternary operators, read by Python."""

    compiled = 0

    def __init__(self, inputs, outputs, operation, name):
        if not re.fullmatch("[a-zA-Z_][a-zA-Z_0-9]*", name):
            raise ValueError(f'Invalid kernel name: "{name}"')
        (self.kinds, self.inputs), (_, self.outputs) = (
            zip(*(p.split() for p in text.split(", "))) for text in (inputs, outputs)
        )
        self.statements = [
            statement.removeprefix("const ").split(" = ") for statement in operation.split("; ")
        ]
        ElementwiseKernel.compiled += 1

    def __call__(self, *operands):
        cupy.launches += 1
        arrays = [bare(a) for a in operands]
        entries, targets = arrays[: len(self.inputs)], arrays[len(self.inputs) :]
        dtypes = {
            a.dtype
            for a, kind in zip([*entries, *targets], [*self.kinds, *["T"] * len(targets)])
            if kind == "T"
        }
        booleans = all(a.dtype == bool for a, kind in zip(entries, self.kinds) if kind == "bool")
        if (
            len(dtypes) != 1
            or not booleans
            or not all(
                type(a) is float for a, kind in zip(entries, self.kinds) if kind == "float64"
            )
        ):
            raise TypeError(
                f"Type is mismatched. {self.kinds} {[type(a) for a in entries]} {dtypes}"
            )
        (dtype,) = dtypes
        assert dtype in (np.float32, np.float64), "the text is of real numbers"
        for target, entry in itertools.product(
            targets, (a for a in entries if isinstance(a, np.ndarray))
        ):
            same = target.__array_interface__ == entry.__array_interface__
            assert same or not np.shares_memory(target, entry), (
                "CuPy copies no operand that overlaps an output"
            )
        values = {"T": dtype.type, "double": np.float64, "fabs": np.abs, "where": np.where}
        values |= {name: getattr(np, name, None) for name in (*tracing.SAME.split(), "fmax")} | {
            "erf": scipy.special.erf
        }
        values |= dict(
            zip(self.inputs, (np.float64(a) if isinstance(a, (float, int)) else a for a in entries))
        )
        with np.errstate(all="ignore"):
            for target, expression in self.statements:
                values[target.split()[-1]] = eval(self.python(expression), values)
        if not targets:
            shape = np.broadcast_shapes(*(np.shape(a) for a in entries))
            targets = [np.empty(shape, dtype) for _ in self.outputs]
        for name, target in zip(self.outputs, targets):
            assert values[name].dtype == dtype, f"{name} was computed in {values[name].dtype}"
            target[...] = values[name]
        results = list(operands[len(self.inputs) :]) or [wrap(target) for target in targets]
        return results[0] if len(results) == 1 else tuple(results)

    def python(self, expression):
        expression = expression.replace("!=", "<>").replace("!", "~").replace("<>", "!=")
        condition, mark, rest = expression.partition(" ? ")
        condition = (
            " & ".join(f"({part})" for part in condition.split(" && "))
            if " && " in condition
            else condition
        )
        condition = (
            " | ".join(f"({part})" for part in condition.split(" || "))
            if " || " in condition
            else condition
        )
        if not mark:
            return condition
        first, second = rest.split(" : ", 1)
        return f"where({condition}, {first}, {self.python(second)})"


class RawKernel:
    """What a kernel of pyidl.arrays.kernels computes, sample by sample in NumPy.

    Test_kernels.py compares its text with that.
    """

    def __init__(self, code, name):
        self.compute = PLAIN[name]
        self.dtype = {"float": np.float32, "double": np.float64}[code.split()[1]]
        ElementwiseKernel.compiled += 1

    def __call__(self, grid, block, arguments):
        cupy.launches += 1
        (threads,) = block
        assert threads in [2**i for i in range(5, 11)]
        assert all(isinstance(a, (ndarray, np.generic)) for a in arguments), (
            "CuPy sends Python's numbers in sizes of its own"
        )
        arrays = [bare(a) if isinstance(a, ndarray) else a for a in arguments]
        assert all(a.flags.c_contiguous for a in arrays if isinstance(a, np.ndarray))
        assert arrays[1].dtype == self.dtype
        self.compute(*grid, *arrays)


def measure(m, a, b, out, n):
    """``max|a - b|`` and ``max|b|``."""
    assert a.dtype == b.dtype
    assert out.shape == (2, m)
    a, b = a.reshape(m, n), b.reshape(m, n)
    out[0], out[1] = np.max(np.abs(a - b), axis=1), np.max(np.abs(b), axis=1)


def mix(m, rows, y, image, F, G, dF, dG, gram, size, plain, n, slot, known, ridge):
    """Anderson's step."""
    k = len(dF)
    assert {a.dtype for a in (y, image, F, G, dF, dG, size, plain)} == {y.dtype}
    y, image, F, G = (a.reshape(-1, n) for a in (y, image, F, G))
    dF, dG = dF.reshape(k, m, n), dG.reshape(k, m, n)
    for s, r in enumerate(rows):
        f = image[r] - y[r]
        good = plain[s] > 0 or np.max(np.abs(f)) < size[s]
        dF[slot, s], dG[slot, s] = (f - F[s], image[r] - G[s]) if good else (0.0, 0.0)
        if good:
            F[s], G[s], size[s] = f, image[r], np.max(np.abs(f))
        D = dF[:known, s].astype(float)
        gram[s, slot, :known] = gram[s, :known, slot] = D @ D[slot]
        right = np.append(D @ F[s], np.zeros(k - known))
        length = np.sqrt(np.diagonal(gram[s]))
        usable = (length > 0) & np.isfinite(length)
        scale = np.where(usable, 1.0 / np.where(usable, length, 1.0), 0.0)
        H = (
            np.where(np.isfinite(gram[s]), gram[s], 0.0) * np.outer(scale, scale)
            + ridge * np.eye(k)
            + np.diag(1.0 - usable)
        )
        gamma = good * scale * np.linalg.solve(H, np.where(usable, right, 0.0) * scale)
        gamma = gamma.astype(y.dtype)
        plain[s] = not gamma.any()
        image[r] = G[s] - gamma[:known] @ dG[:known, s]


PLAIN = {"measure": measure, "mix": mix}


def asarray(a, dtype=None, *, copy=None):
    """From the host or from the device; the one function that takes host arrays."""
    if isinstance(a, ndarray) and not copy and (dtype is None or np.dtype(dtype) == a.dtype):
        return a
    cupy.uploads += not isinstance(a, ndarray)
    cupy.launches += isinstance(a, ndarray)
    return ndarray(
        np.array(
            a._a if isinstance(a, ndarray) else a,
            dtype=dtype,
            copy=True if isinstance(a, np.ndarray) or copy else None,
        )
    )


def ascontiguousarray(a, dtype=None):
    """The array itself where it is so, as CuPy's."""
    if bare(a).flags.c_contiguous and a.dtype == (dtype or a.dtype):
        return a
    cupy.launches += 1
    return ndarray(np.ascontiguousarray(bare(a), dtype=dtype))


def asnumpy(a):
    cupy.waits += 1
    return a._a.copy()


class Device:
    """One of two; new arrays live on the current one."""

    current = 0

    def __init__(self, index=None):
        self.id = Device.current if index is None else index

    def __enter__(self):
        self.before, Device.current = Device.current, self.id
        return self

    def __exit__(self, *error):
        Device.current = self.before


def without_error(function, left):
    """A singular matrix raises nothing; what it leaves has no meaning."""

    def call(*arrays):
        try:
            return function(*arrays)
        except np.linalg.LinAlgError:
            return (
                left(arrays[-1])
                if arrays[0].ndim == 2
                else np.stack([call(*each) for each in zip(*arrays)])
            )

    return call


def no_numbers(a):
    return np.full_like(a, np.nan)


def inv(a):
    """That of one matrix comes from a solve.

    Of several, from another routine, which gives up.
    """
    return without_error(np.linalg.inv, no_numbers if a.ndim == 2 else np.copy)(a)


cupy = Namespace("cupy", np)
cupy.waits = cupy.uploads = cupy.launches = 0
cupy.ndarray, cupy.asarray, cupy.ascontiguousarray, cupy.asnumpy = (
    ndarray,
    asarray,
    ascontiguousarray,
    asnumpy,
)
cupy.finfo, cupy.isdtype = np.finfo, np.isdtype
cupy.is_available = lambda: True
cupy.ElementwiseKernel, cupy.RawKernel = ElementwiseKernel, RawKernel
cupy.linalg = Namespace("cupy.linalg", np.linalg, "linalg.")
cupy.linalg.solve = wrapped(without_error(np.linalg.solve, no_numbers), "linalg.solve")
cupy.linalg.inv = wrapped(inv, "linalg.inv")
cupy.cuda = types.SimpleNamespace(
    get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
    runtime=types.SimpleNamespace(getDeviceCount=lambda: 2, getDevice=lambda: Device.current),
    Device=Device,
)
special = types.ModuleType("cupyx.scipy.special")
special.erf, special.expit = (
    wrapped(scipy.special.erf, "special.erf"),
    wrapped(scipy.special.expit, "special.expit"),
)
scipy_module = types.ModuleType("cupyx.scipy")
scipy_module.special = special
cupyx = types.ModuleType("cupyx")
cupyx.scipy = scipy_module
MODULES = {
    "cupy": cupy,
    "cupyx": cupyx,
    "cupyx.scipy": scipy_module,
    "cupyx.scipy.special": special,
}
