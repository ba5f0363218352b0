"""The recipe that the estimators and the command line train by where nothing else is asked for.

All of it was chosen together, on five small tables, by ``tests/benchmarks/estimators.py
--select``; docs/estimators.md has the numbers.
"""

__all__ = ["ALPHA", "KAPPA", "LEARNING_RATE", "TOL"]

KAPPA = 0.5
"""Of `InfNorm`.

Each step of a solve at least halves the error, forward and backward.
"""
LEARNING_RATE = 1e-2
"""Of Adam, at the start; it falls to 0 along half a cosine."""
ALPHA = 3e-3
"""Of `ridge`."""
TOL = (1e-3, 1e-2)
"""Of the solves of training, forward and adjoint.

With tighter ones no table was answered better.
"""
