"""Solvers of fixed-point equations: one loop, one `Solution`, one file each."""

from pyidl.solvers.base import Solver
from pyidl.solvers.direct import Direct
from pyidl.solvers.fallback import Fallback
from pyidl.solvers.picard import Picard
from pyidl.solvers.solution import Solution, Status

__all__ = ["Direct", "Fallback", "Picard", "Solution", "Solver", "Status"]
