"""Where a result goes, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

from pyidl.errors import InputError

__all__ = ["check_destination"]


def check_destination(
    output: Path, *others: Path, force: bool = False, option: str = "--output"
) -> None:
    """Refuse an output that cannot be written, or would replace a file.

    Parameters
    ----------
    output : Path
        A file to be written.
    *others : Path
        What is read, or written too.
    force : bool
        Whether a file that is there, but is none of these, may be replaced.
    option : str
        What names the output.

    Raises
    ------
    InputError
        With the reason.
    """
    # A pipe or a device is written to itself, a file through another one beside it.
    written = output if output.exists() and not output.is_file() else output.parent
    if output.is_dir():
        raise InputError(f"{output} is a folder; give {option} the name of a file")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}; make it, or give another {option}")
    if not os.access(written, os.W_OK):
        raise InputError(f"{output} cannot be written: permission denied; give another {option}")
    for other in others:
        if output.resolve() == other.resolve() or (
            output.exists() and other.exists() and output.samefile(other)
        ):
            raise InputError(
                f"{option} would replace {output}, which is another file of this command; give "
                f"another {option}"
            )
    if output.is_file() and not force:
        raise InputError(
            f"{output} is there already; give --force to replace it, or another {option}"
        )
