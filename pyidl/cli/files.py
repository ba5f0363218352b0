"""The files that a command is given, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyidl.cli.csv_table import Table, read_table
from pyidl.errors import InputError

__all__ = ["check_destination", "given_table"]


def given_table(options: Any) -> Table:
    """The table of ``data`` and ``--delimiter``.

    Raises
    ------
    InputError
        If the delimiter is no character, or the file no table.
    """
    delimiter = "\t" if options.delimiter == "tab" else options.delimiter
    if len(delimiter) != 1:
        raise InputError(f"--delimiter is {delimiter!r}; it is one character, or 'tab'")
    return read_table(options.data, delimiter)


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
