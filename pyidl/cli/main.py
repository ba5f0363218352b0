"""The command line: ``python -m pyidl info | train | predict | certify | check``.

Exit codes: 0, done; 1, a check or a solve failed, or nothing is certified; 2, the input
was refused, in one line on stderr, or one for each column.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from pyidl.cli.parser import build_parser
from pyidl.errors import DeviceError, FileFormatError, InputError, PyidlError, PyidlWarning

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those after ``python -m pyidl``; of the running process if left out.

    Returns
    -------
    int
        0, 1 or 2, as above; 130 if interrupted.

    Examples
    --------
    >>> main(["certify", "nowhere.npz"])  # says so on stderr
    2
    """
    options = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PyidlWarning)
            warnings.showwarning = _told  # type: ignore[assignment]
            code: int = options.run(options)
        print(end="", flush=True)
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("pyidl: interrupted", file=sys.stderr)
        return 130
    except UnicodeEncodeError as error:
        name = error.object[error.start]
        print(
            f"pyidl: {error.encoding} has no {name!r}; set PYTHONUTF8=1, or write to a file with "
            "--output",
            file=sys.stderr,
        )
        return 2
    except (PyidlError, OSError, MemoryError) as error:
        refused = isinstance(
            error, (InputError, FileFormatError, DeviceError, OSError, MemoryError)
        )
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        print("pyidl: " + "\n  ".join(lines), file=sys.stderr)
        return 2 if refused else 1


def _told(message: Warning | str, *_: Any) -> None:
    """A warning as a line for the user, without the place in the code."""
    print(f"pyidl: {message}", file=sys.stderr)
