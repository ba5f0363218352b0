"""Tables in CSV files: named columns of finite numbers, or of text.

Every fault is told with its line and column.

A file is UTF-8 with a header. A field is read as Python's `float` reads it; empty
fields, NaN and numbers that are infinite in float64 are faults, since nothing sensible
can be put in their place without asking.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyidl.errors import InputError

__all__ = ["Table", "read_table"]

CURE = "correct it, or leave out the row"


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
        (j,) = self.places([name])
        for row, line in zip(self.rows, self.lines, strict=True):
            if not row[j].strip():
                raise self._fault(line, name, "is empty", CURE)
        return np.array([row[j].strip() for row in self.rows])

    def numbers(self, names: Sequence[str], cure: str = CURE) -> np.ndarray:
        """Some columns as numbers, (rows, columns), float64.

        Parameters
        ----------
        names : sequence of str
            The columns.
        cure : str
            What the user can do about a field that is no number, for the message.

        Raises
        ------
        InputError
            If a column is missing, or a field is empty, no number, or not finite.
        """
        places = self.places(names)
        found = np.empty((len(self.rows), len(names)))
        for i, row in enumerate(self.rows):
            for k, j in enumerate(places):
                try:
                    found[i, k] = float(row[j])
                except ValueError:
                    what = f"holds {row[j]!r}, which is no number" if row[j].strip() else "is empty"
                    raise self._fault(self.lines[i], names[k], what, cure) from None
                if not np.isfinite(found[i, k]):
                    raise self._fault(
                        self.lines[i],
                        names[k],
                        f"holds {row[j]!r}, which is not finite in double precision",
                        cure,
                    )
        return found

    def is_numeric(self, name: str) -> bool:
        """Whether every field of a column is a number."""
        (j,) = self.places([name])
        return all(_is_number(row[j]) for row in self.rows)

    def places(self, names: Iterable[str]) -> list[int]:
        """The positions of some columns; InputError names those that are missing."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; its columns are "
                f"{', '.join(self.names)}{_unsplit(self.names)}"
            )
        return [self.names.index(name) for name in names]

    def _fault(self, line: int, name: str, words: str, cure: str) -> InputError:
        return InputError(f"{self.path}, line {line}, column {name!r} {words}; {cure}")


def read_table(path: str | Path, delimiter: str = ",") -> Table:
    r"""Read a file.

    Parameters
    ----------
    path : str or Path
        UTF-8, with a header.
    delimiter : str
        One character, or "tab".

    Returns
    -------
    Table

    Raises
    ------
    OSError
        From the operating system.
    InputError
        If it is empty, has no header or two columns of one name, is not UTF-8, or its
        rows differ in length.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text("width,kind\n1.5,a\n2,b\n")
    >>> table = read_table(path)
    >>> table.numbers(["width"])[:, 0], table.text("kind")
    (array([1.5, 2. ]), array(['a', 'b'], dtype='<U1'))
    """
    delimiter = "\t" if delimiter == "tab" else delimiter
    if len(delimiter) != 1:
        raise InputError(f"--delimiter is {delimiter!r}; it is one character, or 'tab'")
    rows, lines = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            for row in reader:
                if row:  # not a blank line
                    rows.append(tuple(row))
                    lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); save "
            "it as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; it is no CSV file, or its quotes do not "
            "match"
        ) from None
    if not rows:
        raise InputError(
            f"{path} is empty; it needs a line with the names of its columns, and lines of data"
        )
    names = tuple(name.strip() for name in rows[0])
    if all(map(_is_number, names)):
        raise InputError(
            f"{path}, line {lines[0]} holds numbers only; the first line must name the columns"
        )
    for k, name in enumerate(names):
        if not name:
            raise InputError(
                f"{path}, line {lines[0]}: column {k + 1} has no name; give it one, or delete the "
                "column"
            )
        if name in names[:k]:
            raise InputError(
                f"{path}, line {lines[0]}: columns {names.index(name) + 1} and {k + 1} are both "
                f"named {name!r}; rename one"
            )
    if len(rows) == 1:
        raise InputError(f"{path} has a header and no data")
    for fields, line in zip(rows, lines, strict=True):
        if len(fields) != len(names):
            raise InputError(
                f"{path}, line {line} has {len(fields)} fields, the header has "
                f"{len(names)}{_unsplit(names)}"
            )
    return Table(str(path), names, tuple(rows[1:]), tuple(lines[1:]))


def _unsplit(names: Sequence[str]) -> str:
    """A question, where the header is one field with another delimiter in it."""
    marks = [mark for mark in ";\t|," if mark in names[0]] if len(names) == 1 else []
    return f"; is {marks[0]!r} the delimiter?" if marks else ""


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
