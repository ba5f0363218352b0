"""Bounds that hold for every input of a box, and training for them."""

from pyidl.robustness.bounds import Bounds, bounds, certified, margins
from pyidl.robustness.worst_case import WorstCase

__all__ = [
    "Bounds",
    "WorstCase",
    "bounds",
    "certified",
    "margins",
]
