r"""A recurrent network over T steps is one implicit model.

Each step is one, of the input and of the hidden state before it:

    x_t = phi(A x_t + B (u_t, h_{t-1}) + b)
    h_t = C x_t + D (u_t, h_{t-1}) + d,    h_0 = 0
    y   = E r + e,    r = h_T, or the mean or the maximum of h_1, ..., h_T

With the h_t kept as states, the whole has T (n + r) of them, and about T (n + r)^2
entries; multiplied out, each step would read all before it. Every block on the
diagonal is A: what is certain of a step is certain of all.

Source: derived here; the recurrence is that of Decugis, Tsai, Emerling, Ganesh, El
Ghaoui, "The extrapolation power of implicit models", IJCAI 2024.
"""

from __future__ import annotations

import numpy as np

from pyidl.compose.assembly import Assembly, Step, host, vector
from pyidl.compose.forms import Form, add, stack
from pyidl.errors import InputError
from pyidl.layers import Layer
from pyidl.recurrent import ImplicitRNN

__all__ = ["unrolled"]


def unrolled(assembly: Assembly, layer: Layer, tokens: list[Form], timed: bool) -> list[Form]:
    """The forms of the outputs, of every step or a single one."""
    if type(layer) is not ImplicitRNN:
        raise InputError(
            f"{type(layer).__name__} is not unrolled; of recurrent layers, use ImplicitRNN"
        )
    if not timed:
        raise InputError(
            "ImplicitRNN takes sequences, and a model rows of fixed length; give steps=T, the "
            "number of time steps"
        )
    step, states = Step.of(layer), list[Form]()
    h = Form({}, np.zeros(layer.hidden_dim))
    for u in tokens:
        h = assembly.implicit(step, u, h)
        h.readers += layer.return_sequences or layer.pool != "last"
        states.append(h)
    E, e = host(layer, "E"), vector(layer, "e")
    if layer.return_sequences:
        return [assembly.affine(h, E, e) for h in states]
    if layer.pool == "max":
        r = layer.hidden_dim
        h = assembly.maximum(stack(states), np.arange(len(states) * r).reshape(-1, r))
    elif layer.pool == "mean":
        h = assembly.affine(add(*states), np.eye(layer.hidden_dim) / len(states))
    return [assembly.affine(h, E, e)]
