"""Implicit recurrent networks: ``X_t = phi(A X_t + B [U_t, H_{t-1}] + b)``.

=====================  ================================================================
`rnn`                  `ImplicitRNN`, the layer: parameters, calls, output
`bptt`                 the recurrence and its derivative, back-propagation through time
`blocks`               how either is solved, many steps at once
`step`                 the parameters of one step, and its maps
`pooling`              what an output reads of the states: the last, mean, maximum
`cell`                 `ImplicitRNNCell`, one step at a time for inputs that arrive so
`bidirectional`        `Bidirectional`, two layers that read in either direction
`error_bound`          `Recurrence`, how errors of solves travel from step to step
=====================  ================================================================

Which samples take part in which step is told by `pyidl.layers.timeline`.
"""

from pyidl.recurrent.bidirectional import Bidirectional
from pyidl.recurrent.cell import ImplicitRNNCell
from pyidl.recurrent.error_bound import Recurrence
from pyidl.recurrent.rnn import ImplicitRNN

__all__ = [
    "Bidirectional",
    "ImplicitRNN",
    "ImplicitRNNCell",
    "Recurrence",
]
