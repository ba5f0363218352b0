"""What can go wrong, by name. Every message says the cause, the number and the cure."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "DeviceError",
    "DeviceMismatchError",
    "FileFormatError",
    "GradientConvergenceError",
    "GradientConvergenceWarning",
    "GradientMismatchError",
    "InputError",
    "PyidlError",
    "PyidlWarning",
    "WellPosednessWarning",
]


class PyidlError(Exception):
    """Base class of all errors that pyidl raises on purpose."""


class InputError(PyidlError, ValueError):
    """An argument was refused at the door: shape, dtype, value or name."""


class DeviceError(PyidlError, RuntimeError):
    """A device was asked for that is not there."""


class DeviceMismatchError(PyidlError, TypeError):
    """Arrays of two different libraries or devices met in one call."""


class FileFormatError(PyidlError, ValueError):
    """A file is not a pyidl file, is damaged, or was written by a newer version."""


class GradientMismatchError(PyidlError, AssertionError):
    """A hand-derived gradient disagrees with finite differences."""


class ConvergenceError(PyidlError, RuntimeError):
    """A fixed-point solve did not reach its tolerance for some samples.

    Attributes
    ----------
    converged : numpy.ndarray of bool, shape (m,)
        Which samples of the batch did converge; the others are the cause.
    """

    def __init__(self, message: str, converged: np.ndarray) -> None:
        super().__init__(message)
        self.converged = converged


class GradientConvergenceError(ConvergenceError):
    """The adjoint solve, and hence the gradient, did not reach its tolerance."""


class PyidlWarning(UserWarning):
    """Base class of all warnings that pyidl gives."""


class ConvergenceWarning(PyidlWarning):
    """A fixed-point solve did not reach its tolerance.

    The best iterate was returned.
    """


class GradientConvergenceWarning(ConvergenceWarning):
    """An adjoint solve did not reach its tolerance; the gradient is inexact."""


class WellPosednessWarning(PyidlWarning):
    """Nothing guarantees that the fixed point exists or is unique."""


# --------------------------------------------------------- what no check can do without


def is_real(value: Any) -> bool:
    """Whether it is one real number.

    One of Python or NumPy, or an array without dimensions; no boolean, nor "0.9" or
    10**400.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_whole(value: Any) -> bool:
    """Whether it is an integer, of Python or of NumPy; a boolean is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def expect(name: str, value: Any, kind: Any, wanted: str) -> None:
    """Refuse by name what is not of this kind.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : object
        What was given.
    kind : type, tuple of types, or str
        What it must be an instance of; ``(Solver, NoneType)`` admits None too. A word
        is the name of a method that it must have (a class has none: it lacks an
        instance).
    wanted : str
        The cure.

    Raises
    ------
    InputError
        ``"{name} is {value}; {wanted}"``.

    Examples
    --------
    >>> expect("epochs", 3, int, "give a number of epochs")
    >>> expect("epochs", "three", int, "give a number of epochs")
    Traceback (most recent call last):
    ...
    pyidl.errors.InputError: epochs is 'three'; give a number of epochs
    """
    if isinstance(kind, str):
        fits = callable(getattr(value, kind, None)) and not isinstance(value, type)
    else:
        fits = isinstance(value, kind)
    if not fits:
        given = " ".join(repr(value).split())
        if isinstance(value, type):
            given = f"the class {value.__name__}, and an instance is needed"
        given = given if len(given) <= 100 else given[:97] + "..."
        raise InputError(f"{name} is {given}; {wanted}")


def expect_flags(owner: Any, *names: str) -> None:
    """Refuse options of an object that are neither True nor False."""
    for name in names:
        expect(name, getattr(owner, name), bool, "use True or False")


def by_name(argument: str, name: str, room: Any, fits: Callable[[Any], bool]) -> Any:
    """What a name of a module's `__all__` stands for; of a class, an object.

    Parameters
    ----------
    argument : str
        What the caller calls it.
    name : str
        What was given.
    room : module
        Where it is looked up.
    fits : callable
        Which of the module's values are meant.

    Raises
    ------
    InputError
        If there is no such name: with all that there are, and the nearest. If it stands
        for what must be called with options first: with the words to write.

    Examples
    --------
    >>> from pyidl import activations, optim
    >>> by_name("optimizer", "Adam", optim, lambda value: value is optim.Adam)
    Adam(0.001), 0 steps
    >>> is_relu = lambda value: value is activations.relu
    >>> by_name("phi", "leaky_relu", activations, is_relu)
    Traceback (most recent call last):
    ...
    pyidl.errors.InputError: phi is 'leaky_relu', which has options; write
    pyidl.activations.leaky_relu(slope=0.01) instead of the name
    """
    offered = {key: getattr(room, key) for key in room.__all__}
    names = [key for key, value in offered.items() if fits(value)]
    found: Any = offered.get(name)
    if name in names and not isinstance(found, type):
        return found
    if name in names or inspect.isfunction(found):
        options = [
            p for p in inspect.signature(found).parameters.values() if p.kind is not p.KEYWORD_ONLY
        ]
        if name in names and all(p.default is not p.empty for p in options):
            return found()
        said = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in options)
        raise InputError(
            f"{argument} is {name!r}, which has options; write "
            f"{room.__name__}.{name}({', '.join(said)}) instead of the name"
        )
    makers = [key for key, value in offered.items() if inspect.isfunction(value)]
    lower = {key.lower(): key for key in [*names, *makers]}
    near = difflib.get_close_matches(name.lower(), lower, 1)
    meant = f", did you mean {lower[near[0]]!r}?" if near else ";"
    raise InputError(
        f"{argument}: there is no {name!r}{meant} {room.__name__} has {', '.join(names)}"
    )
