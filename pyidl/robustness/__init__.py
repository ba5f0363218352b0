"""Bounds for all inputs of a box or everywhere, attacks, training, and pictures."""

import pyidl.robustness.pictures as pictures
from pyidl.robustness.attacks import fgsm, pgd
from pyidl.robustness.bounds import Bounds, bounds, certified, margins
from pyidl.robustness.compress import Compression, compress
from pyidl.robustness.jacobian import jacobian
from pyidl.robustness.lipschitz import lipschitz
from pyidl.robustness.penalties import LipschitzPenalty, SensitivityPenalty
from pyidl.robustness.sensitivity import sensitivity
from pyidl.robustness.worst_case import WorstCase

__all__ = [
    "Bounds",
    "Compression",
    "LipschitzPenalty",
    "SensitivityPenalty",
    "WorstCase",
    "bounds",
    "certified",
    "compress",
    "fgsm",
    "jacobian",
    "lipschitz",
    "margins",
    "pgd",
    "pictures",
    "sensitivity",
]
