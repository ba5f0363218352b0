"""Optimisers, and the schedules of their learning rates."""

from pyidl.optim.adam import Adam, AdamW
from pyidl.optim.base import Optimizer
from pyidl.optim.schedules import Constant, Cosine, Exponential, Piecewise, Ramp, Schedule
from pyidl.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Exponential",
    "Optimizer",
    "Piecewise",
    "Ramp",
    "Schedule",
]
