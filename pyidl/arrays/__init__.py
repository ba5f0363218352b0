"""Arrays on two devices: whose they are, and how they move.

This is the address for your own activations, cells, layers and losses:

    namespace                whose arrays these are: ``xp``
    device_of, to_device, to_numpy    where they live, and how they get elsewhere
    take_rows, put_rows      some samples of a batch
    fused                    an elementwise function that is one kernel on a GPU

What the library needs besides stands in `pyidl.arrays.backend` (how outside data come
in, what libraries lack), `batch`, `fusion`, `kernels` and `tracing`.
"""

from pyidl.arrays.backend import device_of, namespace, to_device, to_numpy
from pyidl.arrays.batch import put_rows, take_rows
from pyidl.arrays.fusion import fused

__all__ = [
    "device_of",
    "fused",
    "namespace",
    "put_rows",
    "take_rows",
    "to_device",
    "to_numpy",
]
