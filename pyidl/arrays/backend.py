"""One code, two devices: ``xp`` is the module that owns the arrays at hand.

NumPy arrays in, NumPy arrays out; CuPy in, CuPy out. Nothing is moved unless
`to_device` or `to_numpy` says so. Any other library that implements the array-API
standard works too, without in-place kernels. Below are the lookup, the door through
which outside data comes in, and the few places where NumPy 2.0, CuPy 14.1 and the
standard differ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np

from pyidl.errors import DeviceError, DeviceMismatchError, InputError
from pyidl.typing import Array, Namespace, Rng

__all__ = [
    "all_as_real",
    "all_finite",
    "as_generator",
    "as_real",
    "astype",
    "compressed_rows",
    "cumsum",
    "device_of",
    "erf",
    "expit",
    "from_host",
    "freeze",
    "frozen",
    "holds_real",
    "is_array",
    "is_frozen",
    "is_integral",
    "is_sparse",
    "looks_are_free",
    "namespace",
    "on_device_of",
    "own",
    "read_array",
    "real_dtype",
    "synchronize",
    "to_device",
    "to_numpy",
    "writes_in_place",
]

DTYPES = ("float32", "float64")


# ------------------------------------------------------------------------------- lookup


def _cupy() -> Any:
    """CuPy if the caller has already imported it.

    An array of CuPy cannot exist otherwise.
    """
    return sys.modules.get("cupy")


def _in_standard(x: Any) -> bool:
    """Whether it is an array of a library that implements the standard, no class."""
    return hasattr(x, "__array_namespace__") and not isinstance(x, type)


def is_array(x: object) -> bool:
    """True for arrays of NumPy, CuPy, or an array-API library.

    False for lists, scalars and data frames.
    """
    if isinstance(x, np.ndarray):  # asked in every step of a solve
        return True
    cupy = _cupy()
    return (cupy is not None and isinstance(x, cupy.ndarray)) or _in_standard(x)


def is_sparse(x: object) -> bool:
    """Whether it is a sparse matrix or array, of SciPy or CuPy.

    Those are no arrays to `is_array`: of what the standard has they know next to
    nothing.
    """
    return not isinstance(x, np.ndarray) and hasattr(x, "tocsr") and not is_array(x)


def namespace(*arrays: object) -> Namespace:
    """Return the module that owns `arrays`: numpy, cupy, or another library.

    Raises
    ------
    DeviceMismatchError
        If they belong to different libraries or different GPUs, or to one that is not
        the current GPU: CuPy would read them from there, if it can, and what comes out
        would live on the current one.
    TypeError
        If one of them is not an array.

    Examples
    --------
    >>> namespace(np.ones(3)).__name__
    'numpy'
    """
    if len(arrays) == 1 and type(arrays[0]) is np.ndarray:
        return np
    if all(type(a) is np.ndarray for a in arrays):
        return np
    cupy = _cupy()
    if cupy is not None and isinstance(arrays[0], cupy.ndarray):
        current = cupy.cuda.runtime.getDevice()
        if all(isinstance(a, cupy.ndarray) and cast(Any, a).device.id == current for a in arrays):
            return cast(Namespace, cupy)
    homes = {_home(a) for a in arrays}
    if len(homes) > 1:
        names = " and ".join(sorted(device for _, device in homes))
        raise DeviceMismatchError(
            f"arrays on {names} met in one call; "
            "bring them together with to_device(array, device) or model.to(device)"
        )
    module, device = homes.pop()
    if module == "cupy":
        raise _elsewhere(
            device,
            "parameters or arrays live",
            "them: model.to('cuda'), or to_device(array, 'cuda')",
        )
    return sys.modules[module]


def _elsewhere(device: str, what: str, how: str) -> DeviceMismatchError:
    """Arrays of one GPU, while another one is current."""
    there = device.removeprefix("cuda:").removesuffix(" (cupy)")
    return DeviceMismatchError(
        f"{what} on cuda:{there}, but the current GPU is cuda:{_cupy().cuda.runtime.getDevice()}, "
        "and new arrays are made there; "
        f"call cupy.cuda.Device({there}).use() first, or move {how}"
    )


def _home(a: object) -> tuple[str, str]:
    """(module name, device in words) of one array."""
    if isinstance(a, (np.ndarray, np.generic)):
        return "numpy", "cpu (numpy)"
    cupy = _cupy()
    if cupy is not None and isinstance(a, cupy.ndarray):
        return "cupy", f"cuda:{cast(Any, a).device.id} (cupy)"
    if _in_standard(a):
        name = cast(Any, a).__array_namespace__().__name__
        return name, name
    raise TypeError(
        f"expected an array of NumPy or CuPy, got {type(a).__name__}; "
        "convert it with numpy.asarray first"
    )


def writes_in_place(xp: Namespace) -> bool:
    """Whether functions of `xp` take ``out=``.

    Then a solve allocates its buffers once.
    """
    return xp.__name__ in ("numpy", "cupy")


# ------------------------------------------------------------------------------ devices


def device_of(a: Array) -> str:
    """``"cpu"``, ``"cuda:0"``, ... or the name of another array library.

    Raises
    ------
    TypeError
        If it is no array.

    Examples
    --------
    >>> device_of(np.ones(3))
    'cpu'
    """
    return _home(a)[1].split(" ")[0]


def to_numpy(a: Any) -> np.ndarray:
    """The array on the host; from a GPU a copy, for which the host waits.

    For files, figures, and per-sample bookkeeping.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    cupy = _cupy()
    if cupy is not None and isinstance(a, cupy.ndarray):
        return cast(np.ndarray, cupy.asnumpy(a))
    return np.asarray(a)


def from_host(xp: Namespace, a: np.ndarray) -> Array:
    """Copy a NumPy array to the library `xp`, on its current device."""
    return cast(Array, a if xp is np else xp.asarray(a))


def to_device(a: Any, device: str) -> Array:
    """Move an array, to the host or to the current GPU.

    One GPU at a time: CuPy makes new arrays on its current GPU, so models and data have
    to live there.

    Parameters
    ----------
    a : array
        Of NumPy or CuPy, or what NumPy reads as one.
    device : str
        ``"cpu"`` gives NumPy, ``"cuda"`` CuPy on its current GPU, and so does that
        GPU's name, such as ``"cuda:1"``.

    Returns
    -------
    array
        The array itself where it lives there already.

    Raises
    ------
    InputError
        If the name of the device is none of these.
    DeviceError
        If CuPy is not installed, is older than 14.1.1, finds no such GPU, or another
        one is current.

    Examples
    --------
    >>> to_device(np.ones(2), "cpu")
    array([1., 1.])
    """
    if device == "cpu":
        return to_numpy(a)
    kind, _, index = str(device).partition(":")
    if kind != "cuda" or not (index == "" or index.isdecimal()):
        raise InputError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'cuda:1'")
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device {device!r} needs CuPy, which is not installed; "
            "install the extra cuda12 or cuda13 of implicit-pyidl"
        ) from error
    if not hasattr(cupy, "matrix_transpose"):  # a name of the standard that came with 14.1
        raise DeviceError(
            f"CuPy {cupy.__version__} lacks functions that pyidl needs; "
            "install 14.1.1 or newer: by the extra cuda12 or cuda13"
        )
    count = cupy.cuda.runtime.getDeviceCount() if cupy.is_available() else 0
    if int(index or 0) >= count:
        raise DeviceError(
            f"device {device!r} was asked for, but CuPy finds {count} GPUs; "
            "check the driver with nvidia-smi, or use 'cpu'"
        )
    current = cupy.cuda.Device().id
    if int(index or current) != current:
        raise DeviceError(
            f"device {device!r} was asked for, but the current GPU is cuda:{current}, and new "
            "arrays are made there; choose the other one first, "
            f"by cupy.cuda.Device({index}).use() "
            f"or by the environment variable CUDA_VISIBLE_DEVICES={index}"
        )
    elsewhere = isinstance(a, cupy.ndarray) and a.device.id != current
    return cast(Array, cupy.asarray(a, copy=True) if elsewhere else cupy.asarray(a))


def on_device_of(a: Array) -> AbstractContextManager[Any]:
    """A block in which new arrays are made where `a` lives.

    Of several GPUs, every thread begins on the first.
    """
    return cast(Any, a).device if _home(a)[0] == "cupy" else nullcontext()


def looks_are_free(xp: Namespace) -> bool:
    """Whether the host may look at a value at once; for a GPU's it waits first."""
    return bool(xp.__name__ != "cupy")


def synchronize(xp: Namespace) -> None:
    """Wait until the device has done its work; needed before reading a clock."""
    if xp.__name__ == "cupy":
        xp.cuda.get_current_stream().synchronize()


# ----------------------------------------------------------------------------- the door


def as_real(x: Any, *, name: str, xp: Namespace, dtype: str) -> Array:
    """Admit outside data: a finite real array of `xp` with the given dtype.

    It is copied only if it must be cast. Real and integer arrays are cast; nested lists
    and data frames are read by NumPy first. Complex, object, string and masked arrays
    are refused, and so is every NaN or infinity, before any work is done.

    Parameters
    ----------
    x : array, or what NumPy reads as one
        What a caller gave.
    name : str
        What messages call it.
    xp : module
        The library in which it is wanted.
    dtype : {"float32", "float64"}
        The dtype in which it is wanted.

    Returns
    -------
    array
        The given one where nothing is to be done.

    Raises
    ------
    InputError
        If `x` is not real, not rectangular, or not finite in `dtype`.
    DeviceMismatchError
        If `x` is an array of another library than `xp`, or of a GPU that is not the
        current one.

    Examples
    --------
    >>> as_real([1, 2], name="U", xp=np, dtype="float64")
    array([1., 2.])
    """
    if type(x) is np.ndarray and xp is np and x.dtype == dtype and _has_finite_squares(x):
        return cast(Array, x)  # nothing is to be done
    return all_as_real({name: x}, xp=xp, dtype=dtype)[name]


def read_array(x: Any, name: str) -> Any:
    """An array of any library as it is; a list or a data frame as NumPy reads it."""
    if is_array(x):
        return x
    if is_sparse(x):
        raise InputError(f"{name} is sparse; a full array is needed here, as its toarray() gives")
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        if isinstance(x, tuple):
            # Most often Y, pull = layer(U), or value, dY = loss(Y, target), not taken apart.
            kinds = ", ".join(type(part).__name__ for part in x)
            raise InputError(
                f"{name} is a tuple ({kinds}); one array is needed: take it apart, as in "
                "Y, pull = model(U) and value, dY = loss(Y, target)"
            ) from None
        raise InputError(f"{name} cannot be read as an array: {error}") from error


def compressed_rows(x: Any, *, name: str, xp: Namespace, dtype: str) -> Any:
    """Admit sparse outside data: real and finite, in compressed rows (CSR) of SciPy.

    Nothing is filled in, and the caller's matrix is not changed. Entries stay in the
    order that they have, and several of one place stay several: products add them up.

    Parameters
    ----------
    x : sparse matrix or array of SciPy
        In whatever format.
    name, xp, dtype
        As for `as_real`.

    Returns
    -------
    scipy.sparse.csr_array
        It shares the memory of `x` where nothing is to be done.

    Raises
    ------
    InputError
        If its entries are not real, or not finite in `dtype`, or its indices lead out
        of it.
    DeviceMismatchError
        If the matrix or the model lives on a GPU.

    Examples
    --------
    >>> from scipy.sparse import coo_array
    >>> eye = coo_array(np.eye(2, dtype=int))
    >>> compressed_rows(eye, name="U", xp=np, dtype="float64").data
    array([1., 1.])
    """
    from scipy.sparse import csr_array, issparse

    if xp is not np or not issparse(x):
        raise DeviceMismatchError(
            f"{name} is a sparse {type(x).__module__}.{type(x).__name__}, the model lives on "
            f"{xp.__name__}; sparse inputs are multiplied by SciPy, on the CPU: model.to('cpu') "
            f"and {name}.get(), or give {name}.toarray()"
        )
    try:
        rows = csr_array(x)
        rows.check_format(full_check=True)
    except ValueError as error:
        raise InputError(f"{name} cannot be read as compressed rows: {error}") from error
    data = as_real(rows.data, name=f"{name}.tocsr().data", xp=np, dtype=dtype)
    return csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def all_as_real(given: Mapping[str, Any], *, xp: Namespace, dtype: str) -> dict[str, Array]:
    """What `as_real` does, for several arrays by their names.

    On a GPU the host waits once for all of them.
    """
    arrays = {name: _cast(x, name, xp, dtype) for name, x in given.items()}
    if not all_finite(xp, *arrays.values()):
        for name, array in arrays.items():
            bad = ~np.isfinite(to_numpy(array))
            if bad.any():
                where = tuple(int(i) for i in np.argwhere(bad)[0])
                raise InputError(
                    f"{name} has {int(bad.sum())} entries that are NaN, infinite, or too large "
                    f"for {dtype} (the first at {where}); clean or rescale the data first"
                )
    return arrays


def _cast(x: Any, name: str, xp: Namespace, dtype: str) -> Array:
    """A real array of `xp` in this dtype, not yet known to be finite."""
    if type(x) is np.ndarray and xp is np and x.dtype == dtype:
        return cast(Array, x)
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(
            f"{name} is a masked array, and masked entries have no value here; "
            f"fill them first, {name}.filled(...)"
        )
    if not is_array(x):
        host = read_array(x, name)
        _refuse_unreal(host, name)
        array: Any = from_host(xp, host)
    elif _home(x)[0] != xp.__name__:
        there = "cpu" if xp is np else "cuda"
        raise DeviceMismatchError(
            f"{name} lives on {_home(x)[1]}, the model on {xp.__name__}; "
            f"move one of them: model.to(...) or to_device({name}, {there!r})"
        )
    else:
        array = x
        if xp.__name__ == "cupy" and array.device.id != xp.cuda.runtime.getDevice():
            raise _elsewhere(_home(array)[1], f"{name} lives", f"{name}: to_device({name}, 'cuda')")
        _refuse_unreal(array, name)
    with np.errstate(over="ignore", invalid="ignore"):
        return cast(Array, astype(xp, array, dtype))


def as_generator(rng: Rng) -> np.random.Generator:
    """``numpy.random.default_rng(rng)``, which refuses by name what is no seed."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"rng is {rng!r}; "
            "use a numpy.random.Generator, a seed (an integer, at least 0), or None"
        ) from error


def real_dtype(a: Array) -> str:
    """``"float32"`` or ``"float64"``, that of an array in which pyidl computes."""
    return "float32" if a.dtype == namespace(a).float32 else "float64"


def _refuse_unreal(array: Any, name: str) -> None:
    if holds_real(array):
        return
    cure = {
        "c": "take its real part, or both parts as columns",
        "M": "count from a date, (dates - date) / numpy.timedelta64(1, 'D')",
        "m": "divide by a unit, numpy.timedelta64(1, 'D')",
    }.get(
        getattr(array.dtype, "kind", "c"),  # other libraries have numbers only
        "names of classes are numbered by numpy.unique(names, return_inverse=True)[1], text that "
        "spells numbers is cast",
    )
    raise InputError(f"{name} has dtype {array.dtype}; real numbers are needed: {cure}")


def holds_real(a: Any) -> bool:
    """Whether an array holds real numbers or truth values, in whatever dtype."""
    try:
        return bool(namespace(a).isdtype(a.dtype, ("real floating", "integral", "bool")))
    except TypeError:  # a dtype that the standard does not know, such as a structured one
        return False


def is_integral(a: Any) -> bool:
    """Whether an array holds integers, in whatever dtype."""
    return (
        a.dtype.kind in "iu"
        if type(a) is np.ndarray
        else bool(namespace(a).isdtype(a.dtype, "integral"))
    )


def all_finite(xp: Namespace, *arrays: Any) -> bool:
    """True when no entry is NaN or infinite (one synchronisation on a GPU).

    On NumPy a finite sum of squares says so, in one pass and without an array of truth
    values; one that is not finite says nothing, it may have overflowed.
    """
    if xp is np:
        return _has_finite_squares(*arrays) or all(bool(np.all(np.isfinite(a))) for a in arrays)
    finite = [xp.all(xp.isfinite(a)) for a in arrays]
    return bool(finite[0] if len(finite) == 1 else xp.all(xp.stack(finite)))


def _has_finite_squares(*arrays: np.ndarray) -> bool:
    """Whether all sums of squares are finite.

    By BLAS, which takes a third of the time of a sum.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for a in arrays:
            flat = a.ravel(order="K")
            # what is not one piece would have to be joined first
            if not (a.flags.forc and math.isfinite(flat.dot(flat))):
                return False
    return True


def is_frozen(a: Any) -> bool:
    """Whether an array of NumPy is read-only and owns its memory.

    It is then kept, and not copied. Such an array changes only if it is made writeable
    again, or through a view that is older than its being read-only. Both are acts
    against a promise that was made on purpose; a view that is read-only, on the other
    hand, says nothing about its owner.
    """
    return type(a) is np.ndarray and not a.flags.writeable and a.flags.owndata


def frozen(xp: Namespace, a: Any) -> Any:
    """A copy, read-only where the library knows how; what is frozen, as it is."""
    return a if is_frozen(a) else freeze(xp.asarray(a, copy=True))


def freeze(a: Any) -> Any:
    """The same array, read-only where the library knows how.

    For one that was just made and that nobody else has seen.
    """
    if isinstance(a, np.ndarray):
        a.flags.writeable = False
    return a


def own(admitted: Array, given: Any) -> Array:
    """What `as_real` made of `given`, in memory that the caller cannot write into.

    A pullback keeps it. That is a copy, unless the cast was one, or the array is
    frozen.
    """
    if is_sparse(admitted):
        return cast(Array, cast(Any, admitted).copy())
    cast_anew = is_array(given) and given.dtype != admitted.dtype
    if cast_anew or is_frozen(admitted):
        return admitted
    return cast(Array, namespace(admitted).asarray(admitted, copy=True))


# --------------------------------------------------------------- where libraries differ


def astype(xp: Namespace, a: Any, dtype: Any) -> Any:
    """Cast to a dtype of `xp`, or to one named by a string.

    Without a copy where the array has it. (NumPy 2.0 lacks ``xp.astype``.)
    """
    target = getattr(xp, dtype) if isinstance(dtype, str) else dtype
    if writes_in_place(xp):
        return xp.asarray(a, dtype=target)
    return xp.astype(a, target, copy=False)


def cumsum(xp: Namespace, a: Any, *, axis: int) -> Any:
    """Running sums along an axis (NumPy 2.0 lacks the standard's name)."""
    return xp.cumsum(a, axis=axis) if writes_in_place(xp) else xp.cumulative_sum(a, axis=axis)


def _special(xp: Namespace) -> Any:
    """The module of special functions that belongs to `xp`, or None.

    Imported on first use, since few models need it.
    """
    if xp is np:
        import scipy.special

        return scipy.special
    if xp.__name__ == "cupy":
        import cupyx.scipy.special

        return cupyx.scipy.special
    return xp if hasattr(xp, "expit") else None  # `pyidl.arrays.tracing` has them


def expit(xp: Namespace, a: Any, out: Any = None) -> Any:
    """The logistic function ``1 / (1 + exp(-a))``, accurate in both tails."""
    special = _special(xp)
    if special is not None:
        return special.expit(a, out=out)
    e = xp.exp(-xp.abs(a))
    return xp.where(a >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def erf(xp: Namespace, a: Any, out: Any = None) -> Any:
    """The error function.

    The standard has none, so other libraries than NumPy and CuPy go through the host.
    """
    special = _special(xp)
    if special is not None:
        return special.erf(a, out=out)
    return from_host(xp, _special(np).erf(to_numpy(a)))
