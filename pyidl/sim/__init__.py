"""State-driven implicit modelling: an implicit model from the states of a trained network, by convex optimisation."""

from pyidl.sim.accumulate import accumulate, map_rows
from pyidl.sim.exact import exact_model
from pyidl.sim.moments import Moments
from pyidl.sim.networks import Feedforward
from pyidl.sim.states import States, collect_states, iter_states

__all__ = ["Feedforward", "Moments", "States", "accumulate", "collect_states", "exact_model", "iter_states", "map_rows"]
