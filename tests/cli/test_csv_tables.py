"""Tables as they are read, and how their columns become numbers, held against plain Python."""

import csv
import gzip
import io
import json
import re
import statistics
import sys
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import read_table

from pyidl.cli.csv_table import BLOCK, MISSING, Numbers, Texts, opened
from pyidl.cli.encoding import Category, Encoding, Number
from pyidl.cli.faults import COMMA, Fault, check_inputs, refuse
from pyidl.errors import FileFormatError, InputError, PyidlWarning

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROWS = "a,b\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(20))


def table(tmp_path, text, kinds=None, **how):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    delimiter = how.pop("delimiter", ",")
    with opened(path, delimiter) as source:
        return source.read(kinds, **how)


def faults(read, categories=(), impute=False):
    return {
        f.name: f for f in check_inputs(read, read.columns, categories=categories, impute=impute)
    }


# ----------------------------------------------------------------------------- reading


def test_a_column_is_read_as_what_it_holds(tmp_path):
    read = table(tmp_path, 'n,t,e\n1,,\n NA ,"x, y",NaN\n 2.5e3 , x ,null\n')
    n, t, e = (read.columns[name] for name in "nte")
    np.testing.assert_array_equal(n.values, [1, np.nan, 2500])
    assert (n.missing.tolist(), n.odd, n.infinite) == ([1], None, None)
    assert (t.words, t.codes.tolist(), t.missing.tolist()) == (("x", "x, y"), [-1, 1, 0], [0])
    assert (type(e), e.missing.tolist()) == (Numbers, [0, 1, 2])
    assert read.lines.tolist() == [2, 3, 4]


@pytest.mark.parametrize("spelling", sorted(MISSING))
def test_every_spelling_of_a_missing_value(spelling, tmp_path):
    for text in (f"a,b\n1,x\n{spelling},{spelling}\n", f"a,b\n{spelling},{spelling}\n1,x\n"):
        read = table(tmp_path, text)
        assert len(read.columns["a"].missing) == len(read.columns["b"].missing) == 1
        assert isinstance(read.columns["b"], Texts)


def test_the_kind_does_not_hang_on_where_a_block_ends(tmp_path, monkeypatch):
    """Nothing for more than a block, then numbers, then a word; and the same with texts."""
    rows = ["", *["" for _ in range(7)], *"12", "w", *"34"]
    whole = table(tmp_path, "a,b,c\n" + "".join(f"{r},{r and 't' + r},1\n" for r in rows))
    for size in (1, 2, 3, 8):
        monkeypatch.setattr("pyidl.cli.csv_table.BLOCK", size)
        cut = table(tmp_path, "a,b,c\n" + "".join(f"{r},{r and 't' + r},1\n" for r in rows))
        np.testing.assert_array_equal(cut.columns["a"].values, whole.columns["a"].values)
        assert cut.columns["a"].odd == whole.columns["a"].odd
        assert cut.columns["b"].words == whole.columns["b"].words
        np.testing.assert_array_equal(cut.columns["b"].codes, whole.columns["b"].codes)
        np.testing.assert_array_equal(cut.lines, whole.lines)
    assert (whole.columns["a"].odd.count, whole.columns["a"].odd.row) == (1, 10)
    assert len(whole.columns["a"].missing) == 8


FIELD = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6).map(str.strip)


@given(rows=st.lists(st.tuples(FIELD, FIELD, st.floats()), min_size=1, max_size=9))
def test_what_is_written_is_read(rows, tmp_path_factory):
    """Texts of any kind, and every float to the last bit."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["s", "t", "x"], *rows])
    with opened(path) as source:
        read = source.read({"s": "text", "x": "number"}, carried=["t"])
    s, x = read.columns["s"], read.columns["x"]
    found = [None if k < 0 else s.words[k] for k in s.codes]
    assert found == [None if row[0] in MISSING else row[0] for row in rows]
    assert read.carried["t"] == [row[1] for row in rows]
    np.testing.assert_array_equal(x.values, [row[2] for row in rows])


def test_only_what_is_asked_for_is_kept(tmp_path):
    read = table(tmp_path, "a,b,c\n1,x,2\n", {"c": "number"}, carried=["b"])
    assert (list(read.columns), read.carried) == (["c"], {"b": ["x"]})
    assert isinstance(table(tmp_path, "a\n007\n", {"a": "text"}).columns["a"], Texts)
    for spelling in ("?", "-999"):
        for text in (f"a\n{spelling}\n1\n", f"a\n1\n{spelling}\n"):
            column = table(tmp_path, text, missing=[spelling]).columns["a"]
            assert (column.missing.tolist(), column.odd) == (
                [text.split().index(spelling) - 1],
                None,
            )


def test_decimal_commas(tmp_path):
    text = "a;b\n1,5;x\n-2;y\n1.000;z\n"
    column = table(tmp_path, text, delimiter=";", decimal=",").columns["a"]
    assert column.values[:2].tolist() == [1.5, -2]
    assert (column.odd.first, column.odd.row) == ("1.000", 2)  # one, or a thousand: refused
    with pytest.raises(InputError, match="--decimal is 'x'; it is a point or a comma"):
        table(tmp_path, text, delimiter=";", decimal="x")
    for rows in ("1,5;x\n1.000,25;y\n", '"1,200,000.50";x\n1,200;y\n'):
        fault = faults(table(tmp_path, "a;b\n" + rows, delimiter=";"))["a"]
        assert fault.what.startswith("holds numbers with commas, the first '1,")
        assert fault.cure == COMMA


def test_gzip(tmp_path):
    packed = gzip.compress(ROWS.encode("utf-8-sig"))
    path = tmp_path / "any name"
    path.write_bytes(packed)
    assert len(read_table(path)) == 20
    for damaged in (packed[: len(packed) // 2], packed[:-8] + bytes(8), packed[:12] + b"\xff" * 30):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"any name is a damaged gzip file: .*; pack it again"):
            read_table(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="is empty; it needs a line with the names"):
        read_table(path)
    path.write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(InputError, match="is a zip archive or an Excel file; save the table as"):
        read_table(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a,b\n" + "1,x\n" * 3000 + "1,é\n", "line 3002 is not UTF-8"),
        ("a,é\n1,x\n", "line 1 is not UTF-8"),
    ],
)
def test_the_line_of_a_wrong_byte_is_told(data, words, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(data.encode("latin-1"))
    with pytest.raises(InputError, match=words):
        read_table(path)


def test_a_huge_field(tmp_path):
    read = table(tmp_path, "a,b\n1," + "x" * 100_000 + "\n2,y\n")
    message = faults(read)["b"].what
    assert message.startswith("holds 2 different texts in 2 rows, the first 'xxx")
    assert len(message) < 200
    with pytest.raises(InputError, match="line 2: field larger than field limit"):
        table(tmp_path, "a,b\n1," + "x" * 200_000 + "\n2,y\n")


def test_names_in_a_list(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,"b, c",d e\n1,2,3\n')
    with opened(path) as source:
        assert source.listed(["a,d e"]) == ["a", "d e"]
        assert source.listed(["b, c", 'd e, "b, c"', "a"]) == ["b, c", "d e", "b, c", "a"]
        with pytest.raises(InputError, match=r"has no column 'D e', 'x'; .* is 'd e' meant\?"):
            source.listed(["a,D e,x"])
    path.write_text(",".join(f"column{i}" for i in range(500)) + "\n")
    with opened(path) as source, pytest.raises(InputError, match="and 470 more") as told:
        source.known(["x"])
    assert len(str(told.value)) < 600


def test_reading_grows_as_the_table_does(tmp_path):
    """Counted calls, and bytes: 8 for a number, 4 for a text, beside the rows of a block."""

    def calls_and_peak(m, path):
        with open(path, "w") as file:
            file.write("a,b,c,d,e,f\n")
            file.writelines(f"{i},{i}.5,,{i % 7},t{i % 5},x\n" for i in range(m))
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            read_table(path)
        finally:
            sys.setprofile(None)
        tracemalloc.start()
        try:
            read = read_table(path)
            return counted, tracemalloc.get_traced_memory(), read
        finally:
            tracemalloc.stop()

    path = tmp_path / "t.csv"
    m = 4 * BLOCK
    calls, (kept, peak), _ = calls_and_peak(m, path)
    more_calls, (more_kept, more_peak), read = calls_and_peak(4 * m, path)
    assert more_calls <= 4.1 * calls
    each = 4 * 8 + 2 * 4 + 8  # four columns of numbers, two of texts, the lines
    assert (more_kept - kept) / (3 * m) <= 1.02 * each
    assert (more_peak - peak) / (3 * m) <= 2 * each
    assert read.columns["e"].words == ("t0", "t1", "t2", "t3", "t4")


# -------------------------------------------------------------- what cannot be encoded

DATES = """2024-01-31|2024/1/31|2024-01|31.01.2024|1/31/24|31-1-2024|2024-01-31T12:00:00Z
2024-01-31T08:30|12:30|12:30:15|12:30:15.25|2024-01-31 12:00|31 Jan 2024|Jan 31, 2024|1-feb-24
March 3rd, 2024|9:30 pm"""


@pytest.mark.parametrize("date", re.split(r"[|\n]", DATES))
def test_dates_are_refused_with_the_cure(date, tmp_path):
    read = table(tmp_path, "a,b\n" + f'"{date}",1\n' * 9 + "soon,2\n")
    fault = faults(read)["a"]
    assert fault.what == f"holds dates or times, the first {date!r}"
    assert "turn them into numbers" in fault.cure
    assert faults(read, categories=["a"]) == {}


@pytest.mark.parametrize("text", ["12-24", "A-1-2", "10.0.0.1", "Mayor 3", "3 of 5", "1:2:3:4"])
def test_these_are_no_dates(text, tmp_path):
    assert faults(table(tmp_path, "a\n" + f"{text}\nother\n" * 9)) == {}


def test_all_columns_are_told_at_once(tmp_path):
    rows = [f"N{i},2024-01-0{i % 9 + 1},{i},x,{i}," for i in range(10)]
    rows[3], rows[7] = "N3,2024-01-01,,x,inf,", "N7,2024-01-01,,x,1,"
    read = table(tmp_path, "name,day,n,t,big,none\n" + "\n".join(rows) + "\n")
    found = list(faults(read).values())
    assert [f.name for f in found] == ["name", "day", "n", "big", "none"]
    with pytest.raises(InputError) as told:
        refuse(read, found, optional=read.columns)
    lines = str(told.value).split("\n  ")
    assert lines[0].endswith("t.csv cannot be used as it is:")
    assert lines[3] == (
        "line 5, column 'n' has no value (2 of 10 rows have none); fill it in, or use --impute"
    )
    assert lines[4].startswith("line 5, column 'big' holds 'inf', which is not finite in double")
    assert lines[5].startswith("line 2, column 'none' has no value, nor in any other row; fill it")
    assert lines[6] == "or use --impute --ignore name,day,big,none"
    names = [f.name for f in check_inputs(read, read.columns, categories=(), impute=True)]
    assert names == ["name", "day", "big", "none"]


@pytest.mark.parametrize(
    ("text", "what", "cure"),
    [
        ("1\n2\nx\ny\n", "holds 'x', which is no number (2 such of 4 rows)", "use --missing x if"),
        (
            "x\n1\n2\n3\n",
            "holds 'x', which is no number, and numbers elsewhere",
            "use --categories 'c d'",
        ),
        ("1\n-x\n2\n", "holds '-x', which is no number", "use --missing=-x if"),
        ("1\n? ?\n2\n", "holds '? ?', which is no number", "use --missing '? ?' if"),
        ("1\n2,5\n", "holds '2,5', which is no number", "use --decimal ',' if"),
        (
            "a\nb\nc\nd\n",
            "holds 4 different texts in 4 rows, the first 'a'",
            "if they are categories",
        ),
    ],
)
def test_mixtures_and_names(text, what, cure, tmp_path):
    read = table(tmp_path, "c d;e\n" + text.replace("\n", ";1\n"), delimiter=";")
    (fault,) = check_inputs(read, read.columns, categories=(), impute=False)
    assert fault.what == what
    assert cure in fault.cure
    as_text = table(
        tmp_path, "c d;e\n" + text.replace("\n", ";1\n"), {"c d": "text"}, delimiter=";"
    )
    assert faults(as_text, categories=["c d"]) == {}


def test_a_hundred_categories_are_enough(tmp_path):
    for k in (100, 101):
        read = table(tmp_path, "a\n" + "".join(f"t{i % k}\n" for i in range(1000)))
        assert bool(faults(read)) == (k > 100)


# ---------------------------------------------------------------------------- encoding

VALUE = st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-5, 5).map(float))
WORD = st.one_of(st.none(), st.sampled_from(["x", "y", "True", "true", "ä b"]))
COLUMN = st.integers(1, 12).flatmap(
    lambda m: st.tuples(
        st.lists(VALUE, min_size=m, max_size=m),
        st.lists(WORD, min_size=m, max_size=m),
        st.lists(st.booleans(), min_size=m, max_size=m),
    )
)
BY_HAND = {
    "mean": lambda values: sum(values) / len(values),
    "median": statistics.median,
    "most-frequent": lambda values: min(values, key=lambda v: (-values.count(v), v)),
}


def by_hand(numbers, words, chosen, impute):
    """Columns of plain Python: replaced numbers, and a 0 or 1 for each category."""
    some = [v for v, used in zip(numbers, chosen) if used and v is not None]
    fill = BY_HAND[impute](some) if impute else None
    spelt = [w.lower() if w and w.lower() == "true" else w for w in words]
    known = [w for w, used in zip(spelt, chosen) if used and w is not None]
    if impute == "most-frequent":
        spelt = [BY_HAND[impute](known) if w is None else w for w in spelt]
    elif impute:
        spelt = ["" if w is None else w for w in spelt]
        known = [w for w, used in zip(spelt, chosen) if used]
    categories = sorted(set(known))
    return [
        [fill if v is None else v, *(float(w == category) for category in categories)]
        for v, w in zip(numbers, spelt)
    ]


@given(COLUMN, st.sampled_from([None, *BY_HAND]))
def test_encoding_is_that_of_plain_python_and_is_repeated(columns, impute):
    """Learnt from some rows, applied to all; the same when it has been through JSON."""
    numbers, words, chosen = columns
    rows = np.flatnonzero(chosen)
    some = [(v, w) for v, w, used in zip(*columns) if used]
    usable = any(v is not None for v, _ in some) and any(w is not None for _, w in some)
    if impute is None and (None in numbers or None in words or not usable):
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["n", "t"])
    writer.writerows([("" if v is None else repr(v), w or "NA") for v, w in zip(numbers, words)])
    read = string_table(text.getvalue())
    if not usable:
        with pytest.raises(InputError, match="is empty in all rows that are trained on"):
            Encoding.of(read, ["n", "t"], rows, target="z", impute=impute)
        return
    encoding = Encoding.of(read, ["n", "t"], rows, target="z", classes=("p", "q"), impute=impute)
    again = Encoding.from_notes(json.loads(json.dumps(encoding.to_notes())))
    assert again == encoding
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        U, V = encoding.apply(read), again.apply(read)
    np.testing.assert_array_equal(U, V)
    np.testing.assert_allclose(U, by_hand(numbers, words, chosen, impute), rtol=1e-12)
    assert U.shape == (len(numbers), encoding.width)


def string_table(text, kinds=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text, encoding="utf-8")
        with opened(path) as source:
            return source.read(kinds or {"n": "number", "t": "text"})


PLAIN = Encoding((Number("n", 1.5), Category("t", ("", "x"), "")), "z", ("p", "q"), ("?",))


def test_what_was_replaced_or_is_not_known_is_told():
    read = string_table("n,t\n1,x\n,new\n3,\n4,new\n")
    with pytest.warns(PyidlWarning) as told:
        U = PLAIN.apply(read)
    assert U.tolist() == [[1, 0, 1], [1.5, 0, 0], [3, 1, 0], [4, 0, 0]]
    replaced, unknown = (str(w.message) for w in told)
    assert replaced.endswith(
        "missing values were replaced: 1 of 'n' by 1.5, 1 of 't' by a category of their own"
    )
    assert "no row that was trained on has the category of 't' in 2 rows (line 3: 'new')" in unknown
    with pytest.warns(PyidlWarning, match=r"category of 't' in 1 rows \(line 2: nothing\)"):
        Encoding((Category("t", ("x",), ""),), "z").apply(string_table("n,t\n1,\n"))


def test_what_cannot_be_applied_is_refused():
    encoding = Encoding((Number("n"), Category("t", ("x",))), "z")
    with pytest.raises(InputError) as told:
        encoding.apply(string_table("n,t\n,x\nmany,x\n1,\n1e999,x\n"))
    for words in (
        "line 2, column 'n' has no value (1 of 4 rows have none); fill it in, leave out the row",
        "line 3, column 'n' holds 'many', which is no number; correct it, or leave out the row",
        "line 5, column 'n' holds '1e999', which is not finite",
        "line 4, column 't' has no value",
    ):
        assert words in str(told.value)
    for kinds in ({"n": "any", "t": "text"}, {"n": "number"}):
        with pytest.raises(InputError, match="read it by source"):
            encoding.apply(string_table("n,t\nx,x\n", kinds))


COLUMN_N, COLUMN_T = PLAIN.to_notes()["columns"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": "2"},
        {"version": None},
        {"more": 1},
        {"target": 5},
        {"classes": []},
        {"classes": ["p", "p"]},
        {"classes": "pq"},
        {"classes": 3},
        {"missing": [1]},
        {"missing": "?"},
        {"columns": []},
        {"columns": None},
        {"columns": ["n", "t"]},
        {"columns": [COLUMN_N, COLUMN_N]},
        {"columns": [{"name": "n"}]},
        {"columns": [{**COLUMN_N, "fill": "1.5"}]},
        {"columns": [{**COLUMN_N, "fill": float("nan")}]},
        {"columns": [{**COLUMN_N, "fill": True}]},
        {"columns": [{**COLUMN_N, "name": 3}]},
        {"columns": [{**COLUMN_N, "scale": 3}]},
        {"columns": [{**COLUMN_T, "categories": []}]},
        {"columns": [{**COLUMN_T, "categories": ["x", "x"]}]},
        {"columns": [{**COLUMN_T, "categories": "xy"}]},
        {"columns": [{**COLUMN_T, "categories": [["x"]]}]},
        {"columns": [{**COLUMN_T, "fill": "y"}]},
        {"columns": [{**COLUMN_T, "fill": 1.5}]},
    ],
    ids=str,
)
def test_edited_notes_are_refused(change):
    assert Encoding.from_notes(PLAIN.to_notes()) == PLAIN
    with pytest.raises(InputError):
        Encoding.from_notes(PLAIN.to_notes() | change)


def test_newer_notes_are_refused_and_old_ones_read():
    with pytest.raises(FileFormatError, match="version 3, this pyidl reads up to 2; install a"):
        Encoding.from_notes(PLAIN.to_notes() | {"version": 3})
    old = {"columns": ["a", "b"], "target": "t", "classes": None}
    assert Encoding.from_notes(old) == Encoding((Number("a"), Number("b")), "t")
    with pytest.raises(InputError):
        Encoding.from_notes({"columns": [5], "target": "t", "classes": None})
    with pytest.raises(InputError):
        Encoding.from_notes({})


def test_a_fault_is_a_line(tmp_path):
    read = table(tmp_path, 'a,"b, c"\n1,x\n')
    with pytest.raises(
        InputError,
        match=r"line 2, column 'b, c' is bad; mend it, or leave the col"
        r"umn out with --ignore '\"b, c\"'$",
    ):
        refuse(read, [Fault("b, c", 0, "is bad", "mend it")], optional=["b, c"])
    with pytest.raises(InputError, match=r"mend it$"):
        refuse(read, [Fault("a", 0, "is bad", "mend it")])
    refuse(read, [])
