"""The command line: ``python -m pyidl``."""

from pyidl.cli.main import main

__all__ = ["main"]
