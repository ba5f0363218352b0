"""Tables in CSV files: named columns of numbers, or of text.

A file is UTF-8 with a header, perhaps packed by gzip. It is read once, in blocks of
rows, and kept by columns: a number takes 8 bytes, a text 4 and each different text one
string. A field is read as Python's `float` reads it.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyidl.errors import InputError

__all__ = ["MISSING", "Fields", "Numbers", "Source", "Table", "Texts", "opened"]

_NAN = "NaN nan NAN Nan -NaN -nan -1.#IND -1.#QNAN 1.#IND 1.#QNAN"
MISSING = frozenset(["", "#N/A N/A", *f"#N/A #NA <NA> N/A NA n/a NULL null None {_NAN}".split()])
"""Spellings of a missing value: those of pandas, and an empty field."""
BLOCK = 4096
"""Rows that are held as text at a time."""

Kind = Literal["any", "number", "text"]


@dataclass(frozen=True)
class Fields:
    """Some fields of a column: how many, the row of the first, and what that holds."""

    count: int
    row: int
    first: str


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column of numbers.

    Attributes
    ----------
    values : numpy.ndarray, shape (m,)
        NaN where one is missing, infinite where a field is no finite number.
    odd, infinite : Fields or None
        What is no number; what is not finite in double precision.
    """

    values: np.ndarray
    odd: Fields | None = None
    infinite: Fields | None = None

    @property
    def missing(self) -> np.ndarray:
        """The rows without a value."""
        return np.flatnonzero(np.isnan(self.values))


@dataclass(frozen=True, eq=False)
class Texts:
    """A column of texts.

    Attributes
    ----------
    words : tuple of str
        The different ones, sorted.
    codes : numpy.ndarray of int, shape (m,)
        The place of each row's in `words`; -1 where it is missing.
    """

    words: tuple[str, ...]
    codes: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """The rows without a value."""
        return np.flatnonzero(self.codes < 0)

    def fields(self, chosen: Callable[[str], bool]) -> Fields | None:
        """Those whose words are chosen; None if there are none."""
        mask = np.array([*map(chosen, self.words), False])  # the last one: missing
        rows = np.flatnonzero(mask[self.codes])
        if not len(rows):
            return None
        return Fields(len(rows), int(rows[0]), self.words[self.codes[rows[0]]])


@dataclass(frozen=True, eq=False)
class Table:
    """Columns with their names.

    Attributes
    ----------
    path : str
        Where it comes from, for messages.
    lines : numpy.ndarray of int, shape (m,)
        The line of the file on which each row ends.
    columns : dict of str to Numbers or Texts
        In the order of the file.
    carried : dict of str to list of str
        Columns that are only passed on, as they stand.
    number : callable
        ``number(field) -> float``; ValueError where it is none.
    """

    path: str
    lines: np.ndarray
    columns: dict[str, Numbers | Texts]
    carried: dict[str, list[str]]
    number: Callable[[str], float]

    def __len__(self) -> int:
        return len(self.lines)

    def is_number(self, field: str) -> bool:
        """Whether a field can be read as a number."""
        return _is_number(field, self.number)

    def as_numbers(self, texts: Texts) -> Numbers:
        """A column of texts, read as one of numbers."""
        read = [self.number(word) if self.is_number(word) else np.inf for word in texts.words]
        return Numbers(
            np.array([*read, np.nan])[texts.codes],
            texts.fields(lambda word: not self.is_number(word)),
            texts.fields(lambda word: self.is_number(word) and not np.isfinite(self.number(word))),
        )


@dataclass(frozen=True, eq=False)
class Source:
    """An open table, of which the header has been read."""

    path: str
    names: tuple[str, ...]
    rows: Any

    def listed(self, given: Iterable[str]) -> list[str]:
        """Names of columns, of which each text holds one or, between commas, several.

        A name with a comma in it is taken as it is, or stands in quotes as in a file.

        Raises
        ------
        InputError
            If there is no such column.
        """
        found: list[str] = []
        for text in given:
            one = text in self.names
            found += [text] if one else next(csv.reader([text], skipinitialspace=True), [""])
        return self.known(name.strip() for name in found)

    def known(self, given: Iterable[str]) -> list[str]:
        """The same names; InputError says which of them the file does not have."""
        wanted = list(given)
        missing = [name for name in wanted if name not in self.names]
        if missing:
            near = difflib.get_close_matches(missing[0], self.names, 1)
            more = f", and {len(self.names) - 30} more" if len(self.names) > 30 else ""
            raise InputError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; its columns are "
                f"{', '.join(self.names[:30])}{more}{_unsplit(self.names)}"
                + (f"; is {near[0]!r} meant?" if near else "")
            )
        return wanted

    def read(
        self,
        kinds: Mapping[str, Kind] | None = None,
        *,
        carried: Sequence[str] = (),
        missing: Iterable[str] = (),
        decimal: str = ".",
    ) -> Table:
        """Read the rows.

        Parameters
        ----------
        kinds : mapping, optional
            The columns to be kept, and what each holds; with "any" the first value that
            is not missing decides. All columns are kept, as "any", if left out.
        carried : sequence of str
            Columns to be kept as they stand.
        missing : iterable of str
            Spellings of a missing value, besides `MISSING`.
        decimal : {".", ","}
            What stands before the decimals.

        Raises
        ------
        InputError
            If a column is not there, there are no rows, or they differ in length.
        """
        if decimal not in (".", ","):
            raise InputError(f"--decimal is {decimal!r}; it is a point or a comma")
        number = float if decimal == "." else _with_comma
        kinds = dict.fromkeys(self.names, "any") if kinds is None else kinds
        absent = MISSING | set(missing)
        places = {name: self.names.index(name) for name in self.known([*kinds, *carried])}
        made = {name: _Column(kind, absent, number) for name, kind in kinds.items()}
        passed: dict[str, list[str]] = {name: [] for name in carried}
        lines = array("q")
        while block := self._block(lines):
            for name, column in made.items():
                j = places[name]
                column.add([row[j].strip() for row in block])
            for name, fields in passed.items():
                fields += [row[places[name]] for row in block]
        if not lines:
            raise InputError(f"{self.path} has a header and no data")
        columns = {name: made.pop(name).done() for name in self.names if name in made}
        return Table(self.path, np.array(lines), columns, passed, number)

    def _block(self, lines: array[int]) -> list[list[str]]:
        """The next rows; their lines are added."""
        block: list[list[str]] = []
        begun = self.rows.line_num + 1
        try:
            for row in self.rows:
                begun = self.rows.line_num + 1
                if not row:  # a blank line
                    continue
                if len(row) != len(self.names):
                    raise InputError(
                        f"{self.path}, line {self.rows.line_num} has {len(row)} fields, the header "
                        f"has {len(self.names)}{_unsplit(self.names)}"
                    )
                block.append(row)
                lines.append(self.rows.line_num)
                if len(block) == BLOCK:
                    break
        except csv.Error as error:
            raise _no_csv(self.path, self.rows, error, begun) from None
        return block


class _Column:
    """A column that is being read."""

    def __init__(self, kind: Kind, missing: frozenset[str], number: Callable[[str], float]) -> None:
        self.kind, self.missing, self.number = kind, missing, number
        self.m = 0
        self.chunks: list[np.ndarray] = []
        self.places = dict.fromkeys(missing, -1)
        self.strange: dict[str, Fields] = {}
        # A number may stand for a missing value, as -999 does: then each field is looked at.
        self.plain = not any(_is_number(field, number) for field in missing - MISSING)

    def add(self, fields: list[str]) -> None:
        """More fields."""
        if self.kind == "any":
            present = next((field for field in fields if field not in self.missing), None)
            if present is not None:
                self.kind = "number" if _is_number(present, self.number) else "text"
                empty = np.int32(-1) if self.kind == "text" else np.nan
                self.chunks.append(np.full(self.m, empty))
        if self.kind == "text":
            places, known = self.places, len(self.missing)
            codes = (places.setdefault(field, len(places) - known) for field in fields)
            self.chunks.append(np.fromiter(codes, np.int32, len(fields)))
        elif self.kind == "number":
            self.chunks.append(self._numbers(fields))
        self.m += len(fields)

    def _numbers(self, fields: list[str]) -> np.ndarray:
        """As numbers; at once where all of them are."""
        try:
            values = np.fromiter(map(self.number, fields), np.float64, len(fields))
            if self.plain and np.all(np.isfinite(values)):
                return values
        except ValueError:
            pass
        return np.array([self._read(field, self.m + i) for i, field in enumerate(fields)])

    def _read(self, field: str, row: int) -> float:
        """A number, NaN for a missing value; with a note if it is neither."""
        if field in self.missing:
            return np.nan
        number = _is_number(field, self.number)
        value = self.number(field) if number else np.inf
        if np.isinf(value):
            what = "infinite" if number else "odd"
            first = self.strange.get(what, Fields(0, row, field))
            self.strange[what] = Fields(first.count + 1, first.row, first.first)
        return value

    def done(self) -> Numbers | Texts:
        """What has been read."""
        if self.kind == "any":  # nothing but missing values
            return Numbers(np.full(self.m, np.nan))
        joined = np.concatenate(self.chunks)
        if self.kind == "number":
            return Numbers(joined, self.strange.get("odd"), self.strange.get("infinite"))
        words = [word for word, code in self.places.items() if code >= 0]
        order = sorted(range(len(words)), key=words.__getitem__)
        rank = np.full(len(words) + 1, -1, np.int32)  # the last one: missing
        rank[order] = np.arange(len(words))
        return Texts(tuple(words[k] for k in order), rank[joined])


@contextmanager
def opened(path: str | Path, delimiter: str = ",") -> Iterator[Source]:
    """A table whose header is read; its rows can be read while it is open.

    Parameters
    ----------
    path : str or Path
        UTF-8, with a header, perhaps packed by gzip; "-" is standard input.
    delimiter : str
        One character, or "tab".

    Raises
    ------
    OSError
        From the operating system.
    InputError
        If it is empty, has no header or two columns of one name, is not UTF-8, or is
        damaged; only the first column may have no name.
    """
    delimiter = "\t" if delimiter == "tab" else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"--delimiter is {delimiter!r}; it is one character, or 'tab'")
    standard, rows = str(path) == "-", None
    name = "standard input" if standard else str(path)
    with open(0 if standard else path, "rb", closefd=not standard) as file:
        head = file.peek(4)
        if head.startswith(b"PK\x03\x04"):
            raise InputError(f"{name} is a zip archive or an Excel file; save the table as CSV")
        packed = gzip.GzipFile(fileobj=file) if head.startswith(b"\x1f\x8b") else file
        text = io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")
        try:
            rows = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
            yield Source(name, _header(name, rows), rows)
        except UnicodeDecodeError as error:
            # What was decoded before the error has been given out by lines.
            line = error.object[: error.start].count(b"\n") + (rows.line_num if rows else 0) + 1
            raise InputError(
                f"{name}, line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save "
                "it as UTF-8"
            ) from None
        except csv.Error as error:
            raise _no_csv(name, rows, error, 1) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{name} is a damaged gzip file: {error}; pack it again") from None


def _header(path: str, rows: Any) -> tuple[str, ...]:
    """The names of the columns."""
    names = tuple(name.strip() for name in next((row for row in rows if row), ()))
    line = f"{path}, line {rows.line_num}"
    if not names:
        raise InputError(
            f"{path} is empty; it needs a line with the names of its columns, and lines of data"
        )
    if all(map(_is_number, names)):
        raise InputError(f"{line} holds numbers only; the first line must name the columns")
    first: dict[str, int] = {}
    for k, name in enumerate(names):
        if not name and k:
            raise InputError(
                f"{line}: column {k + 1} has no name; give it one, or delete the column"
            )
        if name in first:
            raise InputError(
                f"{line}: columns {first[name] + 1} and {k + 1} are both named {name!r}; rename one"
            )
        first[name] = k
    return names


def _no_csv(path: str, rows: Any, error: csv.Error, begun: int) -> InputError:
    """What the reader says, and the line in which a quote may have been left open."""
    row = "" if rows.line_num == begun else f" of the row that begins in line {begun}"
    return InputError(
        f"{path}, line {rows.line_num}: {error}; it is no CSV file, or the quotes{row} do not match"
    )


def _unsplit(names: Sequence[str]) -> str:
    """A question, where the header is one field with another delimiter in it."""
    marks = [mark for mark in ";\t|," if mark in names[0]] if len(names) == 1 else []
    return f"; is {marks[0]!r} the delimiter?" if marks else ""


def _with_comma(field: str) -> float:
    """A number with a decimal comma; a point, which may mean thousands, is refused."""
    return float(field.translate({ord(","): ".", ord("."): ","}))


def _is_number(field: str, number: Callable[[str], float] = float) -> bool:
    try:
        number(field)
    except ValueError:
        return False
    return True
