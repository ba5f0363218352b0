"""Learning-rate schedules: from the steps taken to the learning rate of the next one.

    lr(k),    k = 0, 1, 2, ...

They are functions of the step count alone, so that a run which is resumed goes on where
it was. Any function of a whole number will do, such as ``lambda k: 0.1 / (1 + k)``; the
classes below check what they are given, have a `repr` that says it, and may be options
of a layer that is saved. What else changes during training follows them too: the radius
of a `pyidl.WorstCase`, the share in `pyidl.losses.certified`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pyidl.errors import InputError, is_real, is_whole
from pyidl.typing import Setting

__all__ = ["Constant", "Cosine", "Exponential", "Piecewise", "Ramp", "Schedule", "check_positive"]

Schedule = Callable[[int], float]
"""From the number of steps taken, 0, 1, 2, ..., to a finite rate, at least 0."""


@dataclass(frozen=True)
class Constant(Setting):
    """``lr(k) = value``.

    Parameters
    ----------
    value : float
        Positive.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", check_positive("value, the learning rate,", self.value))

    def __call__(self, count: int) -> float:
        """Return the learning rate of step `count` + 1."""
        return self.value


@dataclass(frozen=True)
class Cosine(Setting):
    """A linear rise to `peak`, then half a cosine down to `final`.

        lr(k) = peak (k + 1) / warmup,                              k < warmup,
        lr(k) = final + (peak - final) (1 + cos(pi s)) / 2,         k >= warmup,

    with ``s = (k - warmup) / (steps - warmup)``, at most 1.

    Parameters
    ----------
    peak, final : float
        The largest and the last rate, ``0 <= final <= peak``.
    steps : int
        From this step on the rate is `final`; usually the number of all steps.
    warmup : int
        Below `steps`.

    Raises
    ------
    InputError
        If a number is out of range.

    Notes
    -----
    Source: Loshchilov, Hutter, "SGDR", ICLR 2017.

    Examples
    --------
    >>> schedule = Cosine(1.0, steps=110, warmup=10)
    >>> schedule(0), schedule(10), round(schedule(60), 6), schedule(110)
    (0.1, 1.0, 0.5, 0.0)
    """

    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak", check_positive("peak", self.peak))
        _whole("steps and warmup", self.steps, self.warmup)
        if not (
            0 <= self.warmup < self.steps and is_real(self.final) and 0 <= self.final <= self.peak
        ):
            raise InputError(
                f"{self} makes no sense: 0 <= warmup < steps and 0 <= final <= peak are needed"
            )
        object.__setattr__(self, "final", float(self.final))

    def __call__(self, count: int) -> float:
        """Return the learning rate of step `count` + 1."""
        if count < self.warmup:
            return self.peak * (count + 1) / self.warmup
        share = min(1.0, (count - self.warmup) / (self.steps - self.warmup))
        return self.final + 0.5 * (self.peak - self.final) * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Exponential(Setting):
    """``lr(k) = initial * rate^(k // every)``.

    Parameters
    ----------
    initial : float
        Positive.
    rate : float
        In (0, 1].
    every : int
        Steps from one change to the next.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> Exponential(1.0, rate=0.5, every=10)(25)
    0.25
    """

    initial: float
    rate: float
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "initial", check_positive("initial", self.initial))
        _whole("every", self.every)
        if not (is_real(self.rate) and 0 < self.rate <= 1 and self.every >= 1):
            raise InputError(f"{self} makes no sense: 0 < rate <= 1 and every >= 1 are needed")
        object.__setattr__(self, "rate", float(self.rate))

    def __call__(self, count: int) -> float:
        """Return the learning rate of step `count` + 1."""
        return float(self.initial * self.rate ** (count // self.every))


@dataclass(frozen=True)
class Piecewise(Setting):
    """``values[i]`` from step ``boundaries[i - 1]`` up to step ``boundaries[i]``.

    Parameters
    ----------
    boundaries : tuple of int
        Increasing numbers of steps.
    values : tuple of float
        Positive; one more than boundaries.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> schedule = Piecewise(boundaries=(100, 200), values=(1.0, 0.1, 0.01))
    >>> schedule(99), schedule(100), schedule(500)
    (1.0, 0.1, 0.01)
    """

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.boundaries, Collection) and isinstance(self.values, Collection)):
            raise InputError(f"{self} makes no sense: boundaries and values are tuples")
        _whole("boundaries", *self.boundaries)
        increasing = list(self.boundaries) == sorted(set(self.boundaries))
        if len(self.values) != len(self.boundaries) + 1 or not increasing:
            raise InputError(
                f"{self} makes no sense: increasing boundaries, "
                "and one value more than boundaries, are needed"
            )
        rates = tuple(check_positive("the learning rate", value) for value in self.values)
        object.__setattr__(self, "values", rates)

    def __call__(self, count: int) -> float:
        """Return the learning rate of step `count` + 1."""
        return self.values[sum(count >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True)
class Ramp(Setting):
    """In a straight line from `first` to `last`, where it stays.

        lr(k) = (1 - s) first + s last,    s = min(1, k / steps).

    Parameters
    ----------
    first, last : float
        Nonnegative and finite.
    steps : int
        From this step on the value is `last`; positive.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> schedule = Ramp(0.0, 0.5, steps=100)
    >>> schedule(0), schedule(50), schedule(1000)
    (0.0, 0.25, 0.5)
    """

    first: float
    last: float
    steps: int

    def __post_init__(self) -> None:
        _whole("steps", self.steps)
        ends = (self.first, self.last)
        if self.steps < 1 or not all(is_real(x) and 0 <= x < math.inf for x in ends):
            raise InputError(
                f"{self} makes no sense: first and last >= 0, and steps >= 1 are needed"
            )
        for name in ("first", "last"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def __call__(self, count: int) -> float:
        """Return the value in step `count` + 1."""
        share = min(1.0, count / self.steps)
        return (1.0 - share) * self.first + share * self.last


def check_positive(name: str, value: Any) -> float:
    """The number as Python's, also one of a GPU, if it is positive and finite."""
    if not (is_real(value) and 0 < float(value) < math.inf):
        raise InputError(f"{name} is {value!r}; it must be a positive and finite number")
    return float(value)


def _whole(names: str, *values: Any) -> None:
    if not all(is_whole(value) and value >= 0 for value in values):
        raise InputError(
            f"{names} count steps, 0, 1, 2, ...; given: {', '.join(map(repr, values))}"
        )
