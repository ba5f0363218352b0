"""Solvers of the row problems: one loop, one certificate, one file each."""

from pyidl.sim.solvers.admm import ADMM
from pyidl.sim.solvers.base import Rows, RowSolver
from pyidl.sim.solvers.coordinate import CoordinateDescent
from pyidl.sim.solvers.fista import FISTA
from pyidl.sim.solvers.least_squares import LeastSquares
from pyidl.sim.solvers.reduced_rank import ReducedRank

__all__ = ["ADMM", "CoordinateDescent", "FISTA", "LeastSquares", "ReducedRank", "RowSolver", "Rows"]
