"""Where a result goes, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

from pyidl.errors import InputError

__all__ = ["check_destination"]


def check_destination(output: Path, *inputs: Path) -> None:
    """Refuse an output that cannot be written, or would replace an input.

    Raises
    ------
    InputError
        With the reason.
    """
    # A pipe or a device is written to itself, a file through another one beside it.
    written = output if output.exists() and not output.is_file() else output.parent
    if output.is_dir():
        raise InputError(f"{output} is a folder; give --output the name of a file")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}; make it, or give another --output")
    if not os.access(written, os.W_OK):
        raise InputError(f"{output} cannot be written: permission denied; give another --output")
    if output.exists() and any(output.samefile(file) for file in inputs):
        raise InputError(f"--output would replace {output}, which is read; give another --output")
