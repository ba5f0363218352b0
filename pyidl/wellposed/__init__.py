"""Conditions for well-posedness, one file each, on parameters alone."""

from pyidl.wellposed.base import Constraint
from pyidl.wellposed.blocktriangular import BlockTriangular
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.infnorm import InfNorm
from pyidl.wellposed.lipschitz import LipschitzBound
from pyidl.wellposed.measure import MatrixMeasure, optimal_weights
from pyidl.wellposed.monotone import Monotone
from pyidl.wellposed.perronfrobenius import PerronFrobenius
from pyidl.wellposed.spectral import SpectralNorm
from pyidl.wellposed.strongest import strongest
from pyidl.wellposed.triangular import StrictlyTriangular
from pyidl.wellposed.unconstrained import Unconstrained

__all__ = [
    "BlockTriangular",
    "Certificate",
    "Constraint",
    "InfNorm",
    "LipschitzBound",
    "MatrixMeasure",
    "Monotone",
    "Norm",
    "PerronFrobenius",
    "SpectralNorm",
    "StrictlyTriangular",
    "Unconstrained",
    "optimal_weights",
    "strongest",
]
