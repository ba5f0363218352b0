"""The command line: ``python -m pyidl``.

What a model file of ``train`` says of its columns is an `Encoding`, for use in Python
too.
"""

from pyidl.cli.csv_table import opened
from pyidl.cli.encoding import Encoding
from pyidl.cli.main import main

__all__ = ["Encoding", "main", "opened"]
