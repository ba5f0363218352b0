"""State-driven implicit modelling.

An implicit model from the states of a trained network, by convex optimisation.
"""

from pyidl.sim.accumulate import accumulate, map_rows
from pyidl.sim.exact import exact_model
from pyidl.sim.fit import fit
from pyidl.sim.moments import Moments
from pyidl.sim.networks import Feedforward
from pyidl.sim.penalties import L1, ElasticNet, NoPenalty, Penalty, ReverseHuber, Ridge
from pyidl.sim.penalty_path import PenaltyPath, path
from pyidl.sim.report import Report, SIMResult, Solved
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers import (
    ADMM,
    FISTA,
    CoordinateDescent,
    LeastSquares,
    ReducedRank,
    Rows,
    RowSolver,
)
from pyidl.sim.states import States, collect_states, iter_states

__all__ = [
    "ADMM",
    "CoordinateDescent",
    "ElasticNet",
    "FISTA",
    "Feedforward",
    "L1",
    "LeastSquares",
    "Moments",
    "NoPenalty",
    "Penalty",
    "PenaltyPath",
    "ReducedRank",
    "Report",
    "ReverseHuber",
    "Ridge",
    "RowProblem",
    "RowSolver",
    "Rows",
    "SIMResult",
    "Solved",
    "States",
    "accumulate",
    "collect_states",
    "exact_model",
    "fit",
    "iter_states",
    "map_rows",
    "path",
]
