"""Arrays on two devices.

Whose they are, how they come in, and what the libraries lack.
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
