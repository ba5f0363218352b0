r"""Optimisers: ``step(params, grads) -> params``, new arrays, the old ones untouched.

An optimiser is the one stateful object of the library: a configuration, fixed when it
is built, a flat dictionary `state` of arrays, and the number of steps `count`. Both can
be read, saved and set, and a run then continues to the last bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, freeze, is_array, looks_are_free, namespace, to_numpy
from pyidl.errors import InputError, expect, is_real, is_whole
from pyidl.optim.schedules import Schedule, check_positive
from pyidl.typing import Array, Params

__all__ = ["Optimizer", "below"]


@dataclass(eq=False, repr=False)
class Optimizer(ABC):
    """What all optimisers share: the step count, the state, clipping, and the door.

    A subclass is a dataclass with ``eq=False, repr=False``, whose fields are its
    configuration. It says how one parameter moves:

        _validate()                    check the fields, and put them into normal form
        slots                          names of the arrays kept for each parameter
        _update(p, g, own, lr)         the new parameter, and the new arrays

    Everything else is written here, once.

    Parameters
    ----------
    learning_rate : float or Schedule
        Positive; or a function of the number of steps taken.
    clip_norm : float, optional
        Gradients are scaled down together so that their common Euclidean norm is at
        most this.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    One that keeps a running maximum of the gradient, entry by entry, and divides by it:

    >>> @dataclass(eq=False, repr=False)
    ... class Max(Optimizer):
    ...     _: KW_ONLY
    ...     forget: float = 0.9
    ...     def _validate(self):
    ...         self.forget = below(1.0, "forget", self.forget)
    ...     @property
    ...     def slots(self):
    ...         return ("largest",)
    ...     def _update(self, p, g, own, lr):
    ...         size = np.abs(g)
    ...         if own[0] is not None:
    ...             size = np.maximum(size, self.forget * own[0])
    ...         return p - lr * g / size, (size,)
    >>> optimizer = Max(0.5)
    >>> optimizer.step({"w": np.array([1.0, 1.0])}, {"w": np.array([2.0, -3.0])})["w"]
    array([0.5, 1.5])
    >>> optimizer, optimizer.state
    (Max(0.5), 1 steps, {'largest.w': array([2., 3.])})
    """

    learning_rate: float | Schedule
    _: KW_ONLY
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        # a schedule is callable; so is its class, which is none
        if isinstance(self.learning_rate, type) or not callable(self.learning_rate):
            self.learning_rate = check_positive("learning_rate", self.learning_rate)
        if self.clip_norm is not None:
            self.clip_norm = check_positive("clip_norm", self.clip_norm)
        self._validate()
        self._count = 0
        self._state: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if "_state" in self.__dict__ and name not in ("state", "count", "_state", "_count"):
            raise AttributeError(
                f"{name} cannot be set: an optimiser is fixed when it is built; "
                "build another, hand it `state` and `count`"
            )
        super().__setattr__(name, value)

    # ------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def _validate(self) -> None:
        """Check the configuration, and put it into its normal form."""

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that are kept for each parameter, with its shape.

        "k", its own step count, is a number on the host.
        """

    @abstractmethod
    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        """The new value of one parameter, and what is kept of it.

        Parameters
        ----------
        p, g : array
            The parameter and its gradient, which may be read but not written into.
        own : list of array
            What is kept, in the order of `slots`; None before the first step. Not to be
            written into either.
        lr : float
            The learning rate of this step.

        Returns
        -------
        p : array
        kept : tuple of arrays, one for each slot
        """

    # ------------------------------------------------------------------------ its state

    @property
    def state(self) -> dict[str, Any]:
        """The flat dictionary ``{"m.A": array, ...}``, empty before the first step.

        A copy, of arrays that are read-only.
        """
        return dict(self._state)

    @state.setter
    def state(self, new: Mapping[str, Any]) -> None:
        if not isinstance(new, Mapping):
            raise InputError(
                f"the state is {new!r}; "
                "a mapping of names to arrays is needed, such as `state` gave"
            )
        for key, a in new.items():
            slot, _, name = str(key).partition(".")
            if slot not in self.slots or not name:
                kept = (
                    f"keeps {', '.join(self.slots)} of every parameter"
                    if self.slots
                    else "keeps no state"
                )
                raise InputError(
                    f"{key!r} is no state of {type(self).__name__}, which {kept}; "
                    "set what `state` gave"
                )
            if not is_array(a) or (slot == "k" and not _counts(a)):
                raise InputError(
                    f"the state {key!r} is {a!r}; an array is needed, "
                    "and for k a number of steps, from 1 on"
                )
            missing = [f"{other}.{name}" for other in self.slots if f"{other}.{name}" not in new]
            if missing:
                raise InputError(
                    f"{', '.join(missing)} is missing from the state; "
                    "a run goes on only with all of it"
                )
        self._state = {
            key: freeze(_copy(a, to_host=key.startswith("k."))) for key, a in new.items()
        }

    @property
    def count(self) -> int:
        """The number of steps taken."""
        return self._count

    @count.setter
    def count(self, new: int) -> None:
        if not (is_whole(new) and new >= 0):
            raise InputError(f"count is {new!r}; it is a number of steps, 0, 1, 2, ...")
        self._count = int(new)

    @property
    def current_rate(self) -> float:
        """The learning rate of the next step."""
        given = (
            self.learning_rate(self._count) if callable(self.learning_rate) else self.learning_rate
        )
        try:
            rate = float(given)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise InputError(
                f"the schedule gives {given!r} at step {self._count}; "
                "a learning rate is finite and not negative"
            )
        return rate

    # ------------------------------------------------------------------------- the step

    def step(self, params: Params, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Return new parameters, read-only.

        Those without a gradient stay the same arrays.

        A layer keeps read-only arrays as they are when they are set, without a copy.

        Parameters
        ----------
        params : mapping of str to array
            Left as they are.
        grads : mapping of str to array
            For some or all of the parameters.

        Returns
        -------
        dict of str to array

        Raises
        ------
        InputError
            If a gradient belongs to no parameter, or its shape or dtype, or those of
            the state, are not the parameter's. Nothing is changed then.
        DeviceMismatchError
            If parameter, gradient and state live on different devices. Nothing is
            changed then.
        """
        self._check(params, grads)
        lr, state, new = self.current_rate, dict(self._state), dict(params)
        scale = None if self.clip_norm is None or not grads else _clip_factor(grads, self.clip_norm)
        for key, g in grads.items():
            xp = namespace(g)
            if scale is not None:
                g = g * astype(xp, scale, g.dtype)
            own = [state.get(f"{slot}.{key}") for slot in self.slots]
            p, after = self._update(params[key], g, own, lr)
            new[key] = freeze(xp.asarray(p))  # NumPy turns arrays without dimensions into scalars
            state |= {
                f"{slot}.{key}": freeze(a if slot == "k" else xp.asarray(a))
                for slot, a in zip(self.slots, after, strict=True)
            }
        self._state, self._count = state, self._count + 1
        return new

    def _check(self, params: Params, grads: Mapping[str, Array]) -> None:
        """Refuse gradients that do not fit the parameters, or the state."""
        for name, arrays in (("params", params), ("grads", grads)):
            expect(
                name,
                arrays,
                Mapping,
                "a mapping of names to arrays is needed, such as model.params",
            )
        unknown = sorted(set(grads) - set(params))
        if unknown:
            raise InputError(
                f"there are gradients of {', '.join(unknown)}, "
                f"but the parameters are {', '.join(params)}; leave them out"
            )
        slots = [slot for slot in self.slots if slot != "k"]
        for key, g in grads.items():
            p = params[key]
            kept = [a for slot in slots if (a := self._state.get(f"{slot}.{key}")) is not None]
            namespace(p, g, *kept)
            for a in (g, *kept):
                if a.shape != p.shape or a.dtype != p.dtype:
                    raise InputError(
                        f"parameter {key} is {p.dtype} of shape {p.shape}, its "
                        f"{'gradient' if a is g else 'state'} {a.dtype} of shape {a.shape}; "
                        "for a changed model use a new optimiser"
                    )

    def __repr__(self) -> str:
        chosen = [f for f in dataclasses.fields(self)[1:] if getattr(self, f.name) != f.default]
        options = [
            repr(self.learning_rate),
            *(f"{f.name}={getattr(self, f.name)!r}" for f in chosen),
        ]
        return f"{type(self).__name__}({', '.join(options)}), {self._count} steps"


def _clip_factor(grads: Mapping[str, Array], clip_norm: float) -> Any:
    """``min(1, clip / norm)`` of all gradients together, 1 where the norm is 0.

    An array without dimensions.
    """
    xp = namespace(*grads.values())
    with np.errstate(over="ignore"):
        square = sum(xp.sum(astype(xp, g, "float64") ** 2) for g in grads.values())
    factor = clip_norm / xp.maximum(xp.sqrt(square), clip_norm)
    if looks_are_free(xp) and not bool(square == math.inf):
        return factor
    wide = [g for g in grads.values() if g.dtype == xp.float64]
    if not wide:
        return factor
    # From 2^512 on squares overflow; in a unit of 2^540 they do not, and what is too
    # small for it is no part of such a norm.
    small = clip_norm * 2.0**-540
    return xp.where(
        square == math.inf,
        small / xp.maximum(xp.sqrt(sum(xp.sum((g * 2.0**-540) ** 2) for g in wide)), small),
        factor,
    )


def below(bound: float, name: str, value: Any) -> float:
    """A number in [0, bound), as a float."""
    if not (is_real(value) and 0 <= float(value) < bound):
        raise InputError(f"{name} is {value!r}; it must be a number in [0, {bound:g})")
    return float(value)


def _counts(k: Any) -> bool:
    """Whether an array is a number of steps, at least one."""
    return k.shape == () and namespace(k).isdtype(k.dtype, "integral") and int(k) >= 1


def _copy(a: Any, *, to_host: bool) -> Any:
    return np.array(to_numpy(a)) if to_host else namespace(a).asarray(a, copy=True)
