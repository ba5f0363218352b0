"""Tables in CSV files: named columns of finite numbers, or of text; every fault is told with its line and column.

A file is UTF-8 with a header. A field is read as Python's `float` reads it; empty fields, NaN and numbers that are infinite in float64
are faults, since nothing sensible can be put in their place without asking.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyidl.errors import InputError

__all__ = ["Table", "read_table"]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of text with the names of their columns.

    Attributes
    ----------
    path : str
        Where it comes from, for messages.
    names : tuple of str
        Of the columns.
    rows : tuple of tuple of str
        The fields.
    lines : tuple of int
        The line of the file on which each row ends.
    """

    path: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def text(self, name: str) -> np.ndarray:
        """One column as it stands, no field empty."""
        (j,) = self._places([name])
        for row, line in zip(self.rows, self.lines, strict=True):
            if not row[j].strip():
                raise self._fault(line, name, "is empty; fill it in, or leave out the row")
        return np.array([row[j].strip() for row in self.rows])

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Some columns as numbers, (rows, columns), float64.

        Raises
        ------
        InputError
            If a column is missing, or a field is empty, no number, or not finite.
        """
        places = self._places(names)
        found = np.empty((len(self.rows), len(names)))
        for i, row in enumerate(self.rows):
            for k, j in enumerate(places):
                try:
                    found[i, k] = float(row[j])
                except ValueError:
                    what = f"holds {row[j]!r}, which is no number" if row[j].strip() else "is empty"
                    raise self._fault(self.lines[i], names[k], f"{what}; fill it in, or leave out the row or the column") from None
                if not np.isfinite(found[i, k]):
                    raise self._fault(self.lines[i], names[k], f"holds {row[j]!r}, which is not finite in double precision")
        return found

    def is_numeric(self, name: str) -> bool:
        """Whether every field of a column is a number."""
        (j,) = self._places([name])
        return all(_is_number(row[j]) for row in self.rows)

    def _places(self, names: Iterable[str]) -> list[int]:
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(f"{self.path} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(self.names)}")
        return [self.names.index(name) for name in names]

    def _fault(self, line: int, name: str, words: str) -> InputError:
        return InputError(f"{self.path}, line {line}, column {name!r} {words}")


def read_table(path: str | Path, delimiter: str = ",") -> Table:
    r"""Read a file.

    Raises
    ------
    OSError
        From the operating system.
    InputError
        If it is empty, has no header or two columns of one name, is not UTF-8, or its rows differ in length.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text("width,kind\n1.5,a\n2,b\n")
    >>> table = read_table(path)
    >>> table.numbers(["width"])[:, 0], table.text("kind")
    (array([1.5, 2. ]), array(['a', 'b'], dtype='<U1'))
    """
    rows, lines = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if row:  # not a blank line
                    rows.append(tuple(row))
                    lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; it is no CSV file, or its quotes do not match") from None
    if not rows:
        raise InputError(f"{path} is empty; it needs a line with the names of its columns, and lines of data")
    names = tuple(name.strip() for name in rows[0])
    twice = sorted({name for name in names if names.count(name) > 1})
    if all(map(_is_number, names)):
        raise InputError(f"{path}, line {lines[0]} holds numbers only; the first line must name the columns")
    if twice or "" in names:
        raise InputError(f"{path}, line {lines[0]}: " + (f"the name {twice[0]!r} stands twice" if twice else "a column has no name"))
    if len(rows) == 1:
        raise InputError(f"{path} has a header and no data")
    for fields, line in zip(rows, lines, strict=True):
        if len(fields) != len(names):
            raise InputError(f"{path}, line {line} has {len(fields)} fields, the header has {len(names)}")
    return Table(str(path), names, tuple(rows[1:]), tuple(lines[1:]))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
