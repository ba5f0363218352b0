"""Solvers of fixed-point equations: one loop, one `Solution`, one file each."""

from pyidl.solvers.anderson import Anderson
from pyidl.solvers.auto import Auto
from pyidl.solvers.base import Solver
from pyidl.solvers.direct import Direct
from pyidl.solvers.fallback import Fallback
from pyidl.solvers.gmres import GMRES
from pyidl.solvers.jacobi import Jacobi
from pyidl.solvers.newton import Newton
from pyidl.solvers.picard import Picard
from pyidl.solvers.solution import Solution, Status
from pyidl.solvers.splitting import ForwardBackward, PeacemanRachford
from pyidl.solvers.substitution import Substitution
from pyidl.solvers.truncated import JacobianFree, Neumann, Phantom

__all__ = [
    "GMRES",
    "Anderson",
    "Auto",
    "Direct",
    "Fallback",
    "ForwardBackward",
    "Jacobi",
    "JacobianFree",
    "Neumann",
    "Newton",
    "PeacemanRachford",
    "Phantom",
    "Picard",
    "Solution",
    "Solver",
    "Status",
    "Substitution",
]
