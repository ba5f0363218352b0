"""Solvers of fixed-point equations: one loop, one `Solution`, one file each.

For a solver of your own: `Problem` is what a solver receives, `Affine` one of which the
matrix is known, `Solution` what it returns. Subclass `Iterative` and call `iterate`,
with an `Advance` where steps are not plain ones; or subclass `Solver`.
"""

from pyidl.solvers.anderson import Anderson
from pyidl.solvers.auto import Auto
from pyidl.solvers.base import Iterative, Solver
from pyidl.solvers.direct import Direct
from pyidl.solvers.fallback import Fallback
from pyidl.solvers.gmres import GMRES
from pyidl.solvers.jacobi import Jacobi
from pyidl.solvers.loop import Advance, iterate
from pyidl.solvers.newton import Newton
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import Affine, Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.solvers.splitting import ForwardBackward, PeacemanRachford
from pyidl.solvers.substitution import Substitution
from pyidl.solvers.truncated import JacobianFree, Neumann, Phantom

__all__ = [
    "GMRES",
    "Advance",
    "Affine",
    "Anderson",
    "Auto",
    "Direct",
    "Fallback",
    "ForwardBackward",
    "Iterative",
    "Jacobi",
    "JacobianFree",
    "Neumann",
    "Newton",
    "PeacemanRachford",
    "Phantom",
    "Picard",
    "Problem",
    "Solution",
    "Solver",
    "Status",
    "Substitution",
    "iterate",
]
