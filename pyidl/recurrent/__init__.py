"""Implicit recurrent networks.

Every step solves ``X_t = phi(A X_t + B [U_t, H_{t-1}] + b)``.
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
