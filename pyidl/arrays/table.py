"""Rows of words, as text and as HTML: what is shown of models, solves and trainings.

The HTML is a plain table without colours, so that it is read in light and dark
notebooks; every word in it is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Table", "abridged"]

MOST = 20
"""So many rows are shown where there may be thousands."""


@dataclass(frozen=True, repr=False)
class Table:
    """A title, a head, rows of the same length, and notes below; shown as it is.

    Parameters
    ----------
    title : str
        One line.
    head : tuple of str
        A word for each column.
    rows : tuple of tuple of str
        The cells.
    notes : tuple of str
        A line each.

    Examples
    --------
    >>> rows = (("A", "100"), ("b", "10"))
    >>> Table("Sizes", ("name", "numbers"), rows, ("in all 110",))
    Sizes
    name  numbers
    A         100
    b          10
    in all 110
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        columns = list(zip(self.head, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        numbers = [all(not cell or cell[0].isdigit() for cell in column[1:]) for column in columns]
        lines = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(row, widths, numbers, strict=True)
            ).rstrip()
            for row in (self.head, *self.rows)
        ]
        return "\n".join([self.title, *lines, *self.notes])

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        head, *rows = (
            "".join(f'<{tag} style="text-align: left">{escape(cell)}</{tag}>' for cell in row)
            for tag, row in (("th", self.head), *(("td", row) for row in self.rows))
        )
        return (
            f"<div><b>{escape(self.title)}</b><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
            f"{''.join(f'<div>{escape(note)}</div>' for note in self.notes)}</div>"
        )


def abridged(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """At most `MOST` rows: the first and the last, and dots between them."""
    if len(rows) <= MOST:
        return tuple(rows)
    half = MOST // 2
    return (*rows[:half], ("…",) * len(rows[0]), *rows[-half:])
