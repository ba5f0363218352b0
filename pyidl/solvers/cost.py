"""What the parts of a solve cost, in microseconds: the model by which `Auto` chooses.

    cost(m, n) = a + b m + c m n + d n^2 + e m n^2 + f m n^3

with the constants of `TABLE`: nonnegative least squares of relative errors over n = 1
... 2048 and m = 1 ... 4096 (`tests/benchmarks/cost.py`; two cores of an AMD EPYC,
OpenBLAS; median error 5 to 10 %, at most twofold), rounded, the fixed costs those of
this library's loop. Only ratios matter. The clock is never asked: a choice follows from
n, the dtype and the number of rows of a call alone, and can be repeated.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

__all__ = ["ORDINARY", "SURE", "TABLE", "Costs"]

#                        1     m        m n      n^2      m n^2    m n^3
TABLE = {
    "float32": {
        "step": (1.8, 0.0, 7.4e-4, 3.1e-5, 1.25e-5, 0.0),
        "measure": (16.0, 5.0e-2, 5.0e-4, 0.0, 0.0, 0.0),
        "mix": (50.0, 4.5e-1, 4.0e-3, 0.0, 0.0, 0.0),
        "factor": (20.0, 2.0e-2, 3.4e-2, 0.0, 5.4e-3, 2.35e-5),
    },
    "float64": {
        "step": (1.8, 0.0, 1.3e-3, 5.7e-5, 2.2e-5, 0.0),
        "measure": (16.0, 5.0e-2, 1.0e-3, 0.0, 0.0, 0.0),
        "mix": (50.0, 4.5e-1, 8.0e-3, 0.0, 0.0, 0.0),
        "factor": (20.0, 2.2e-2, 3.1e-2, 0.0, 5.7e-3, 2.2e-5),
    },
}
"""A plain step; a measurement with its books; a step of Anderson.

A dense solve a row.
"""

NEWTON = 2.5
"""Dense solves that Newton's method needs if phi is not linear, more than usual."""

ORDINARY = 15
"""Steps of an ordinary solve, as default models need them when they are trained."""


MARGIN, SURE = 1.3, 6.0
"""How many times its cost Anderson's method, or Newton's, must promise to save."""

ENGAGED = 60.0
"""What the books of an acceleration cost in all."""


@dataclass(frozen=True)
class Costs:
    """The costs of a call with m rows of n numbers, in microseconds, and what follows.

    Attributes
    ----------
    step, measure, mix, factor : float
        As in the table.
    stride : int
        Steps in a round.
    fair : float
        A round with Anderson's step, in plain rounds.
    mixing_from, newton_from, direct_from : float
        Steps to go from which Anderson's method pays, Newton's, and Newton's on linear
        equations.
    """

    step: float
    measure: float
    mix: float
    factor: float
    stride: int
    fair: float
    mixing_from: float
    newton_from: float
    direct_from: float

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(cls, m: int, n: int, dtype: str, stride: int) -> Costs:
        """From the table; `dtype` is "f" for float32, as NumPy has it."""
        terms = 1.0, m, m * n, n**2, m * n**2, m * n**3
        parts = TABLE["float32" if dtype == "f" else "float64"]
        step, measure, mix, factor = (
            sum(a * t for a, t in zip(row, terms, strict=True)) for row in parts.values()
        )
        return cls._with(step, measure, mix, factor, stride)

    @classmethod
    def of_launches(cls, stride: int) -> Costs:
        """On a GPU, launches at 5 µs each.

        A step is 2, one of Anderson's 3; a measurement waits, and takes the time of 4.
        """
        return cls._with(10.0, 20.0, 15.0, math.inf, stride)

    @classmethod
    def _with(cls, step: float, measure: float, mix: float, factor: float, stride: int) -> Costs:
        plain = stride * step + measure
        # R plain rounds cost more than 2 + R / 10 mixed ones.
        mixed = MARGIN * (plain + mix)
        rounds = (2.0 * mixed + ENGAGED) / max(0.02 * plain, plain - 0.1 * mixed)
        newton, one = factor + step + measure, plain / stride
        fair, mixing_from = 1.0 + mix / plain, rounds * stride
        newton_from = SURE * (ENGAGED + NEWTON * newton) / one
        direct_from = MARGIN * (ENGAGED + newton) / one
        parts = step, measure, mix, factor, stride, fair, mixing_from, newton_from, direct_from
        return cls(*parts)

    @property
    def direct_at_once(self) -> bool:
        """Whether linear equations are solved in the time of twenty plain steps."""
        return self.factor < self.plain(20)

    def plain(self, steps: float) -> float:
        """So many plain steps."""
        return steps * (self.step + self.measure / self.stride)
