"""``python -m pyidl``: see `pyidl.cli`."""

import sys

from pyidl.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
