"""Where the other half of a layer stands: one file of this folder for each wing.

What ONNX knows of the layers in `pyidl.recurrent` stands in `onnx_recurrent`, and so
on. A wing that is taken out takes along the files named after it, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

__all__ = ["beside"]


def beside(door: str, cls: type) -> ModuleType | None:
    """The file `door_wing` for the wing in which a class, or a base of it, lives.

    None if there is no such file.
    """
    for base in cls.__mro__:
        package, *wing = base.__module__.split(".")
        if package == "pyidl":
            name = f"pyidl.interop.{'_'.join([door, *wing[:1]])}"
            return importlib.import_module(name) if importlib.util.find_spec(name) else None
    return None
