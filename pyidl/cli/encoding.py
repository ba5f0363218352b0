r"""How the columns of a table become numbers, written down so that it can be repeated.

A column of numbers is one input, and a missing value becomes its `fill`. A column of
texts is one-hot encoded: it has an input for each of its categories, which is 1 in the
rows of that category and 0 elsewhere; the category of a missing value is "", or the
most frequent one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyidl.cli.csv_table import Numbers, Table, Texts
from pyidl.cli.faults import Fault, no_numbers, refuse, shown, without_value
from pyidl.errors import FileFormatError, InputError, PyidlWarning, is_real

__all__ = ["Category", "Encoding", "Number"]

VERSION = 2
"""Of the notes. The first had the names of columns alone, all of them numbers."""

Strategy = Literal["mean", "median", "most-frequent"]


@dataclass(frozen=True)
class Number:
    """A column of numbers; `fill` stands for a missing one, None refuses it."""

    name: str
    fill: float | None = None

    @property
    def width(self) -> int:
        """How many inputs it is."""
        return 1

    @property
    def is_filled(self) -> bool:
        """Whether `fill` can be what it is."""
        return self.fill is None or (is_real(self.fill) and math.isfinite(self.fill))


@dataclass(frozen=True)
class Category:
    """A column of texts, one-hot encoded; `fill` stands for a missing one, or None."""

    name: str
    categories: tuple[str, ...]
    fill: str | None = None

    @property
    def width(self) -> int:
        """How many inputs it is."""
        return len(self.categories)

    @property
    def is_filled(self) -> bool:
        """Whether `fill` can be what it is."""
        return self.fill in (None, "", *self.categories)

    def codes(self, texts: Texts) -> np.ndarray:
        """The place of each row's category; -1 for one that is not known."""
        place = {category: k for k, category in enumerate(self.categories)}
        known = [place.get(_spelt(word), -1) for word in texts.words]
        missing = -1 if self.fill is None else place.get(self.fill, -1)
        places: np.ndarray = np.array([*known, missing])[texts.codes]
        return places


@dataclass(frozen=True)
class Encoding:
    """What a model takes, column by column, and what it predicts.

    Parameters
    ----------
    columns : tuple of Number or Category
        Their inputs follow one another.
    target : str
        The column that is predicted.
    classes : tuple of str, optional
        Its classes, in the order of the outputs; None for a number.
    missing : tuple of str
        Spellings of a missing value, besides the usual ones.

    Raises
    ------
    InputError
        If a name, a category or a class stands there twice, or a part is of a wrong
        kind.

    Examples
    --------
    >>> columns = (Number("age", fill=30.0), Category("town", ("Bonn", "Ulm")))
    >>> encoding = Encoding(columns, target="income")
    >>> age, town = Numbers(np.array([25.0, np.nan])), Texts(("Ulm",), np.array([0, 0]))
    >>> table = Table("", np.array([2, 3]), {"age": age, "town": town}, {}, float)
    >>> with warnings.catch_warnings(action="ignore"):  # that a value was replaced
    ...     encoding.apply(table)
    array([[25.,  0.,  1.],
           [30.,  0.,  1.]])
    >>> Encoding.from_notes(encoding.to_notes()) == encoding
    True
    """

    columns: tuple[Number | Category, ...]
    target: str
    classes: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lists = [[c.name for c in self.columns], self.classes or (), self.missing]
        lists += [c.categories for c in self.columns if isinstance(c, Category)]
        if not (
            all(isinstance(word, str) for words in [*lists, [self.target]] for word in words)
            and all(len(set(words)) == len(words) for words in lists)
            and all(column.width and column.is_filled for column in self.columns)
            and self.columns
            and self.classes != ()
        ):
            raise InputError(
                "columns, categories and classes are different names, and what replaces a missing "
                "number is a finite number"
            )

    @classmethod
    def of(
        cls,
        table: Table,
        names: Iterable[str],
        rows: np.ndarray,
        *,
        target: str,
        classes: Sequence[str] | None = None,
        impute: Strategy | None = None,
        missing: Sequence[str] = (),
    ) -> Encoding:
        """Learn it from some rows of a table.

        Parameters
        ----------
        table : Table
            Without the faults that `check_inputs` finds.
        names : iterable of str
            The columns to predict from.
        rows : numpy.ndarray of int
            Those that are trained on: categories and what replaces a missing value are
            theirs.
        target, classes, missing
            As above.
        impute : {"mean", "median", "most-frequent"}, optional
            What replaces a missing number. A missing text is a category of its own, or,
            with the last, the most frequent one.

        Raises
        ------
        InputError
            If one of these rows would need a value, and none of them has one.
        """
        columns: list[Number | Category] = []
        for name in names:
            column = table.columns[name]
            if impute and not len(np.setdiff1d(rows, column.missing)):
                raise InputError(
                    f"{table.path}, column {name!r} is empty in all rows that are trained on; "
                    "leave it out with --ignore"
                )
            if isinstance(column, Numbers):
                fill = _statistic(column.values[rows], np.nan, impute) if impute else None
                columns.append(Number(name, fill))
            else:
                columns.append(_category(name, column, rows, impute))
        return cls(tuple(columns), target, None if classes is None else (*classes,), (*missing,))

    @property
    def width(self) -> int:
        """The number of inputs of the model."""
        return sum(column.width for column in self.columns)

    @property
    def kinds(self) -> dict[str, Literal["number", "text"]]:
        """What each column holds, for `Source.read`."""
        return {c.name: "number" if isinstance(c, Number) else "text" for c in self.columns}

    def apply(self, table: Table) -> np.ndarray:
        """The inputs of a model, (m, width) in float64.

        What was replaced, or belongs to no category, is told by a warning. A category
        that is not known is encoded by zeros: it is none of those that are.

        Parameters
        ----------
        table : Table
            Its columns read as `kinds` says.

        Raises
        ------
        InputError
            With all columns that cannot be used; or if there are texts and scikit-learn
            is not installed.
        """
        texts = [repr(c.name) for c in self.columns if isinstance(c, Category)]
        if texts:
            _needs_sklearn(f"encoding the texts of {', '.join(texts)}")
        cure = "fill it in, leave out the row, or train with --impute"
        faults: list[Fault] = []
        for c in self.columns:
            kind = Numbers if isinstance(c, Number) else Texts
            if not isinstance(table.columns.get(c.name), kind):
                raise InputError(
                    f"{table.path} was not read with the column {c.name!r} of kind "
                    f"{self.kinds[c.name]!r}; read it by source.read(encoding.kinds)"
                )
            if c.fill is None and len(table.columns[c.name].missing):
                faults.append(without_value(table, c.name, cure))
            if isinstance(column := table.columns[c.name], Numbers):
                faults += no_numbers(table, c.name, column)
        refuse(table, faults)
        U, j = np.empty((len(table), self.width)), 0
        replaced, unknown = [], []
        for c in self.columns:
            column = table.columns[c.name]
            count = len(column.missing)
            if isinstance(column, Numbers):
                U[:, j] = column.values
                U[column.missing, j] = c.fill
            else:
                assert isinstance(c, Category)
                codes = c.codes(column)
                U[:, j : j + c.width] = _one_hot(codes, c.width)
                strange = np.flatnonzero(codes < 0)
                if len(strange):
                    word = (*column.words, "")[column.codes[strange[0]]]
                    unknown.append(
                        f"{c.name!r} in {len(strange)} rows (line {table.lines[strange[0]]}: "
                        f"{shown(word) if word else 'nothing'})"
                    )
                    count = 0 if c.fill not in c.categories else count
            if count:
                fill = "a category of their own" if c.fill == "" else repr(c.fill)
                replaced.append(f"{count} of {c.name!r} by {fill}")
            j += c.width
        if replaced:
            _warn(f"{table.path}: missing values were replaced: {', '.join(replaced)}")
        if unknown:
            _warn(
                f"{table.path}: no row that was trained on has the category of "
                f"{', '.join(unknown)}; it counts as none of those that are known"
            )
        return U

    def to_notes(self) -> dict[str, Any]:
        """What `pyidl.save` writes beside the model."""
        columns = [
            {"name": c.name, "fill": c.fill}
            | ({"categories": list(c.categories)} if isinstance(c, Category) else {})
            for c in self.columns
        ]
        classes = None if self.classes is None else list(self.classes)
        return {
            "version": VERSION,
            "columns": columns,
            "target": self.target,
            "classes": classes,
            "missing": list(self.missing),
        }

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Encoding:
        """Read what `to_notes` has written, or the notes of version 1.

        Raises
        ------
        FileFormatError
            If they are of a newer version.
        InputError
            If they say anything else.
        """
        version = notes.get("version", 1)
        if isinstance(version, int) and version > VERSION:
            raise FileFormatError(
                f"the notes of the model have version {version}, this pyidl reads up to {VERSION}; "
                "install a newer one"
            )
        try:
            said = dict(notes)
            columns, classes = said["columns"], said["classes"]
            if version == 1:
                said |= {"version": VERSION, "missing": []}
                columns = [{"name": name, "fill": None} for name in columns]
            made = cls(
                tuple(_column(**column) for column in columns),
                said["target"],
                None if classes is None else tuple(classes),
                tuple(said["missing"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{error} is missing or wrong") from None
        if json.dumps(made.to_notes(), sort_keys=True) != json.dumps(
            said | {"columns": columns}, sort_keys=True
        ):
            raise InputError("there is something that does not belong there")
        return made


def _needs_sklearn(why: str) -> None:
    """Refuse, if scikit-learn is not there."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError(
            f"{why} needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from None


def _spelt(word: str) -> str:
    """True, TRUE and true are one category."""
    return word.lower() if word.lower() in ("true", "false") else word


def _column(name: Any, fill: Any, categories: Any = None) -> Number | Category:
    if categories is None:
        return Number(name, fill)
    return Category(name, tuple(categories), fill)


def _category(name: str, column: Texts, rows: np.ndarray, impute: Strategy | None) -> Category:
    """The categories of these rows, sorted."""
    codes = column.codes[rows]
    found = {_spelt(column.words[k]) for k in np.unique(codes) if k >= 0}
    if impute != "most-frequent":
        own = {""} if impute and np.any(codes < 0) else set()
        return Category(name, tuple(sorted(found | own)), "" if impute else None)
    known = Category(name, tuple(sorted(found)))
    frequent = _statistic(known.codes(column)[rows], -1, impute)
    return Category(name, known.categories, known.categories[int(frequent)])


def _statistic(values: np.ndarray, missing: float, strategy: Strategy) -> float:
    """What replaces a missing value."""
    _needs_sklearn("--impute")
    from sklearn.impute import SimpleImputer

    imputer = SimpleImputer(missing_values=missing, strategy=strategy.replace("-", "_"))
    return float(imputer.fit(values[:, None]).statistics_[0])


def _one_hot(codes: np.ndarray, width: int) -> np.ndarray:
    """A column for each category, all 0 where a code is -1."""
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(
        categories=[np.arange(width)], handle_unknown="ignore", sparse_output=False
    )
    return np.asarray(encoder.fit([[0]]).transform(codes[:, None]))


def _warn(text: str) -> None:
    warnings.warn(text, PyidlWarning, stacklevel=3)
