"""State-driven implicit modelling: an implicit model from the states of a trained network, by convex optimisation."""

from pyidl.sim.moments import Moments

__all__ = ["Moments"]
