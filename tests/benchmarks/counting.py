"""What a solve does, in numbers that do not depend on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers.problem import Problem


@dataclass
class Counts:
    """Products, measurements and dense systems of one solve, or of several.

    Attributes
    ----------
    products : int
        Products of the samples at hand with a matrix, or with a tile of one.
    rows : float
        Samples that were multiplied, added over the products; a product with a tile, or
        with factors, counts for the share of n^2 entries that it reads.
    measurements : int
        Measurements of residuals.
    measured : int
        Samples that were measured, added over those.
    systems : int
        Dense systems with n unknowns that were factorised.
    steps : int
        `n_iter` of the slowest sample.
    """

    products: int = 0
    rows: float = 0.0
    measurements: int = 0
    measured: int = 0
    systems: int = 0
    steps: int = 0


def _subclasses(cls) -> Iterator[type]:
    yield cls
    for below in cls.__subclasses__():
        yield from _subclasses(below)


@contextmanager
def counting(n):
    """Count what is done in this block with states of n numbers, on NumPy.

    The methods and functions are replaced, and not a matrix by one that counts: a
    solver may form matrices of its own, and those count too.
    """
    counts, inside, saved = Counts(), [False], []

    def replace(owner, name, new):
        saved.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, new)

    def product(original, size):
        def rows(self, x, out=None):
            counts.products += 1
            counts.rows += len(x) * size(self) / n**2
            return original(self, x, out)

        return rows

    def measurement(original):
        def measure(self, x, y_image, image):
            if inside[0]:  # one that is made of another
                return original(self, x, y_image, image)
            inside[0] = True
            counts.measurements += 1
            counts.measured += len(x)
            try:
                return original(self, x, y_image, image)
            finally:
                inside[0] = False

        return measure

    def dense(original):
        def solve(a, *others):
            if np.shape(a)[-1] == n:
                counts.systems += int(np.prod(np.shape(a)[:-2]))
            return original(a, *others)

        return solve

    try:
        replace(Full, "rows", product(Full.rows, lambda self: self.A.size))
        replace(LowRank, "rows", product(LowRank.rows, lambda self: self.L.size + self.R.size))
        for problem in set(_subclasses(Problem)):
            if "measure" in vars(problem):
                replace(problem, "measure", measurement(problem.measure))
        for name in ("solve", "inv"):
            replace(np.linalg, name, dense(getattr(np.linalg, name)))
        yield counts
    finally:
        for owner, name, old in saved:
            setattr(owner, name, old)
