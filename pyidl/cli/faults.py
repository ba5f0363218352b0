"""What keeps the columns of a table from being used, all of it told at once."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace

from pyidl.cli.csv_table import Fields, Numbers, Table, Texts
from pyidl.errors import InputError

__all__ = [
    "MANY",
    "Fault",
    "check_inputs",
    "no_numbers",
    "option",
    "refuse",
    "shown",
    "without_value",
]

MANY = 100
"""More categories of one column than these are refused, unless it is asked for."""

_DATE = re.compile(
    r"""(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})? | \d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})
        | \d{1,2}[\s.-]+MONTH[\s.,-]+\d{2,4} | MONTH\s+\d{1,2}(st|nd|rd|th)?,?\s+\d{4})
        ([T\s]+\d{1,2}:\d{2}.*)? | \d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\s?[ap]m)?""".replace(
        "MONTH", "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
    ),
    re.VERBOSE | re.IGNORECASE,
)
_COMMA = re.compile(r"[+-]?\d+([.,]\d{3})*,\d+(\.\d+)?")
COMMA = "use --decimal ',' if decimals follow the comma, or take it out if it parts thousands"


@dataclass(frozen=True)
class Fault:
    """Why a column cannot be used: the first row that says so, and what helps."""

    name: str
    row: int
    what: str
    cure: str
    imputable: bool = False


def refuse(table: Table, faults: Iterable[Fault], *, optional: Container[str] = ()) -> None:
    """Raise an InputError that tells all faults, if there are any.

    One fault is one line; several have a line each, and the last one says which options
    help, where the `optional` columns are left out.
    """
    found = list(faults)
    told = [f"line {table.lines[f.row]}, column {f.name!r} {f.what}; {f.cure}" for f in found]
    if len(found) == 1 and found[0].name in optional:
        told[0] += f", or leave the column out with {option('--ignore', [found[0].name])}"
    if len(found) == 1:
        raise InputError(f"{table.path}, {told[0]}")
    useless = {f.name: None for f in found if f.name in optional and not f.imputable}
    options = ["--impute"] if any(f.imputable and f.name not in useless for f in found) else []
    options += [option("--ignore", useless)] if useless else []
    if options:
        told.append(f"or use {' '.join(options)}")
    if found:
        raise InputError("\n  ".join([f"{table.path} cannot be used as it is:", *told]))


def option(name: str, values: Iterable[str]) -> str:
    """An option as a shell takes it: names of columns, with commas between."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return spelt(name, text.getvalue())


def spelt(name: str, value: str) -> str:
    """An option with one value."""
    return f"{name}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"


def check_inputs(
    table: Table, names: Iterable[str], *, categories: Container[str], impute: bool
) -> list[Fault]:
    """What is wrong with the columns to predict from.

    Parameters
    ----------
    table : Table
        The columns are read as "any", or as "text".
    names : iterable of str
        The columns.
    categories : container of str
        Those whose texts are categories, however many there are.
    impute : bool
        Whether missing values will be replaced.
    """
    faults = []
    for name in names:
        column = table.columns[name]
        if len(column.missing) == len(table):
            faults.append(Fault(name, 0, "has no value, nor in any other row", "fill it in"))
            continue
        if len(column.missing) and not impute:
            fault = without_value(table, name, "fill it in, or use --impute")
            faults.append(replace(fault, imputable=True))
        if isinstance(column, Numbers):
            faults += no_numbers(table, name, column, f"use {option('--categories', [name])}")
        elif name not in categories:
            faults += _no_categories(table, name, column)
    return faults


def without_value(table: Table, name: str, cure: str) -> Fault:
    """That a column has missing values."""
    rows = table.columns[name].missing
    what = f"has no value ({len(rows)} of {len(table)} rows have none)"
    return Fault(name, int(rows[0]), what, cure)


def no_numbers(table: Table, name: str, column: Numbers, asked: str = "") -> list[Fault]:
    """What of a column of numbers is none; in training, what else may be asked for."""
    faults = []
    if column.odd:
        faults.append(
            Fault(
                name,
                column.odd.row,
                _counted(column.odd, table, "which is no number"),
                _corrected(column.odd.first, asked),
            )
        )
    if column.infinite:
        words = _counted(column.infinite, table, "which is not finite in double precision")
        faults.append(Fault(name, column.infinite.row, words, "correct it, or leave out the row"))
    return faults


def _no_categories(table: Table, name: str, column: Texts) -> list[Fault]:
    """Why texts are no categories: dates, numbers among them, too many."""
    k, asked = len(column.words), f"use {option('--categories', [name])}"

    def first(chosen: Callable[[str], bool]) -> Fields:
        fields = column.fields(chosen)
        assert fields is not None
        return fields

    def most(pattern: re.Pattern[str]) -> bool:
        return 2 * sum(pattern.fullmatch(word) is not None for word in column.words) >= k

    if most(_DATE):
        some = first(lambda word: _DATE.fullmatch(word) is not None)
        what = f"holds dates or times, the first {shown(some.first)}"
        cure = "turn them into numbers (days since a day, the month, the hour)"
        return [Fault(name, some.row, what, cure)]
    if any(map(table.is_number, column.words)):
        some = first(lambda word: not table.is_number(word))
        words = _counted(some, table, "which is no number, and numbers elsewhere")
        return [Fault(name, some.row, words, _corrected(some.first, asked))]
    if most(_COMMA):
        some = first(lambda word: _COMMA.fullmatch(word) is not None)
        what = f"holds numbers with commas, the first {shown(some.first)}"
        return [Fault(name, some.row, what, COMMA)]
    if k > MANY or k > max(len(table) // 2, 1):
        some = first(lambda word: True)
        what = f"holds {k} different texts in {len(table)} rows, the first {shown(some.first)}"
        return [Fault(name, some.row, what, f"if they are categories, {asked}")]
    return []


def _corrected(field: str, asked: str) -> str:
    """What helps where a number was expected."""
    if _COMMA.fullmatch(field):
        return COMMA
    if not asked or len(field) > 60:
        return "correct it, or leave out the row"
    missing = spelt("--missing", field)
    return f"correct it, use {missing} if that is a missing value, or {asked}"


def _counted(fields: Fields, table: Table, what: str) -> str:
    more = "" if fields.count == 1 else f" ({fields.count} such of {len(table)} rows)"
    return f"holds {shown(fields.first)}, {what}{more}"


def shown(field: str) -> str:
    """A field in quotes, shortened if it is long."""
    return repr(field if len(field) <= 60 else field[:57] + "...")
