"""Real tables from training to prediction, as a user's shell runs it."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyidl
from pyidl.cli.main import main
from pyidl.training import EarlyStopping, recipe

datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def started(folder, *arguments, given=None):
    """A process as a user starts it: code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pyidl", *map(str, arguments)],
        input=given,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def run(capsys, *arguments):
    """The same without a process."""
    code = main([str(a) for a in arguments])
    return (code, *capsys.readouterr())


def number(text, after):
    """What stands behind some words."""
    return float(text.split(after)[1].split()[0])


def write(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def patients(m=300, seed=0, index=True, gaps=0.06):
    """Their risk: of age, of being a smoker, and of one town; rows without some values.

    Beside these an index without a name, a name, and a date.
    """
    rng = np.random.default_rng(seed)
    age, income = rng.normal(45, 12, m).round(1), rng.lognormal(10, 0.4, m).round(2)
    town = rng.choice(["Bonn", "Ulm", "Köln", "Homburg, Saar"], m, p=[0.4, 0.3, 0.2, 0.1])
    smoker = rng.choice(["True", "False"], m)
    score = (age - 45) / 12 + 1.5 * (smoker == "True") + (town == "Ulm") - 1
    risk = np.where(score + 0.2 * rng.normal(size=m) > 0, "high", "low")
    columns = [column.astype(object) for column in (age, income, town, smoker)]
    for column, spelling in zip(columns, ("", "NA", "", "null")):
        column[rng.random(m) < gaps] = spelling
    people = [f"Person {i}" for i in range(m)]
    days = [f"20{i % 20 + 10}-0{i % 9 + 1}-1{i % 8}" for i in range(m)]
    header = ["", "name", "seen", "age", "income", "town", "smoker", "risk"]
    rows = list(zip(range(m), people, days, *columns, risk))
    return (header, rows) if index else (header[1:], [row[1:] for row in rows])


# ----------------------------------------------------------------------- the two stories


def test_wine_with_its_names(tmp_path):
    """Train on a text target, predict beside an id, and read the answers."""
    wine = datasets.load_wine()
    names = wine.target_names[wine.target]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(names))
    header = ["bottle", *wine.feature_names, "cultivar"]
    rows = [[f"W{i}", *map(repr, wine.data[i].tolist()), names[i]] for i in order]
    write(tmp_path / "wine.csv", header, rows[:140])
    write(tmp_path / "new.csv", header[:-1], [row[:-1] for row in rows[140:]])

    train = ("train", "wine.csv", "--target", "cultivar")
    code, out, err = started(tmp_path, *train)
    assert (code, out) == (2, "")
    assert err == (
        "pyidl: wine.csv, line 2, column 'bottle' holds 140 different texts in 140 rows, the first "
        f"'{rows[0][0]}'; if they are categories, use --categories bottle, or leave the column out "
        "with --ignore bottle\n"
    )
    code, out, err = started(tmp_path, *train, "--ignore", "bottle")
    assert code == 0
    assert "classification: cultivar from 13 columns, 101 training, 11 validation, 28 held-" in err
    assert "val_accuracy" in err
    assert "of 100 epochs; the model is that of epoch" in err
    assert number(out, "accuracy on 28 held-out rows: ") > 0.9
    assert "accuracy on 11 validation rows" in out

    code, out, err = started(tmp_path, "predict", "wine.npz", "new.csv", "--id", "bottle")
    assert (code, err) == (0, "")
    answers = list(csv.reader(io.StringIO(out)))
    assert answers[0] == ["bottle", "cultivar"]
    assert [row[0] for row in answers[1:]] == [row[0] for row in rows[140:]]
    right = np.mean([row[1] == true[-1] for row, true in zip(answers[1:], rows[140:])])
    frequent = max(np.mean(names == name) for name in wine.target_names)
    assert right > 2 * frequent  # twice as often as who always names the most frequent
    logits = pyidl.load(tmp_path / "wine.npz").predict(wine.data[order[140:]])
    classes = pyidl.load_notes(tmp_path / "wine.npz")["classes"]
    assert [row[1] for row in answers[1:]] == [classes[k] for k in logits.argmax(axis=1)]


def test_categories_and_missing_values(tmp_path):
    """What has to be decided is asked at once; then train, and predict other rows."""
    header, rows = patients()
    write(tmp_path / "patients.csv", header, rows)
    share = np.mean([row[-1] == "high" for row in rows])
    always = max(share, 1 - share)  # right, if one always says the same
    train = ("train", "patients.csv", "--target", "risk")
    code, out, err = started(tmp_path, *train)
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert lines[0] == "pyidl: patients.csv: the first column has no name: an index, and left out"
    assert lines[1] == "pyidl: patients.csv cannot be used as it is:"
    assert [line.split("column ")[1].split()[0] for line in lines[2:8]] == [
        f"'{name}'" for name in ("name", "seen", "age", "income", "town", "smoker")
    ]
    assert lines[8] == "  or use --impute --ignore name,seen"
    assert [path.name for path in tmp_path.iterdir()] == ["patients.csv"]

    options = lines[8].split("use ")[1].split()
    code, out, err = started(tmp_path, *train, *options, "--plot", "training.png")
    assert code == 0
    assert "missing values were replaced" in err
    assert "one-hot encoded: town (5 categories), smoker (3 categories)" in err
    assert number(out, "held-out rows: ") > always + 0.2
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")

    header, rows = patients(120, seed=1, index=False)
    write(tmp_path / "new.csv", header[::-1], [row[::-1] for row in rows])
    code, out, err = started(
        tmp_path, "predict", "patients.npz", "new.csv", "--id", "name", "--probabilities"
    )
    answers = list(csv.reader(io.StringIO(out)))
    assert (code, err.count("\n")) == (0, 1)
    assert "missing values were replaced" in err
    assert answers[0] == ["name", "risk", "probability of high", "probability of low"]
    assert [row[0] for row in answers[1:]] == [row[0] for row in rows]
    assert np.mean([a[1] == row[-1] for a, row in zip(answers[1:], rows)]) > always + 0.2


# -------------------------------------------------------------------- parts of the stories

FAST = ("--epochs", 20, "--hidden-dim", 6, "--quiet")


@pytest.fixture
def people(tmp_path, monkeypatch):
    """A folder with a table without missing values, as the working directory."""
    monkeypatch.chdir(tmp_path)
    write("p.csv", *patients(120, gaps=0))
    return ("train", "p.csv", "--target", "risk", "--ignore", "name,seen", *FAST)


def test_a_prediction_does_not_hang_on_its_neighbours_or_the_order_of_columns(people, capsys):
    assert run(capsys, *people)[0] == 0
    header, rows = patients(30, seed=2, gaps=0, index=False)
    whole = run(capsys, "predict", "p.npz", write("n.csv", header, rows), "--probabilities")
    for chosen, columns in ((slice(3, 4), slice(None)), (slice(None), slice(None, None, -1))):
        write("n.csv", header[columns], [row[columns] for row in rows[chosen]])
        code, out, err = run(capsys, "predict", "p.npz", "n.csv", "--probabilities")
        assert (code, err) == (0, "")
        assert out.splitlines()[1:] == whole[1].splitlines()[1:][chosen]


def test_the_model_in_python(people, capsys):
    """The encoding of the file gives what the loaded model takes."""
    from pyidl.cli import Encoding, opened

    run(capsys, *people)
    encoding = Encoding.from_notes(pyidl.load_notes("p.npz"))
    with opened("p.csv") as source:
        U = encoding.apply(source.read(encoding.kinds, missing=encoding.missing))
    Y = pyidl.load("p.npz").predict(U)
    said = run(capsys, "predict", "p.npz", "p.csv")[1].split()[1:]
    assert [encoding.classes[k] for k in Y.argmax(axis=1)] == said
    assert encoding.columns[2].categories == ("Bonn", "Homburg, Saar", "Köln", "Ulm")
    assert encoding.columns[3].categories == ("false", "true")


def test_an_old_file_still_predicts(people, capsys):
    table = write("old.csv", ["a", "b", "y"], [[i, i % 3, 2 * i] for i in range(20)])
    run(capsys, "train", table, "--target", "y", *FAST)
    new = run(capsys, "predict", "old.npz", table)
    pyidl.save(
        "old.npz",
        pyidl.load("old.npz"),
        notes={"columns": ["a", "b"], "target": "y", "classes": None},
    )
    assert run(capsys, "predict", "old.npz", table) == new
    pyidl.save("old.npz", pyidl.load("old.npz"), notes={"version": 3})
    code, out, err = run(capsys, "predict", "old.npz", table)
    assert (code, out) == (2, "")
    assert "version 3, this pyidl reads up to 2; install a newer one" in err


def test_unknown_categories_and_missing_values_of_new_rows(people, capsys):
    run(capsys, *people)
    header, rows = patients(4, seed=3, gaps=0)
    rows = [list(row) for row in rows]
    rows[1][5], rows[2][6] = "Ürzig", "true"  # true is True
    code, out, err = run(capsys, "predict", "p.npz", write("n.csv", header, rows))
    assert (code, len(out.splitlines())) == (0, 5)
    assert err == (
        "pyidl: n.csv: no row that was trained on has the category of 'town' in 1 rows (line 3: "
        "'Ürzig'); it counts as none of those that are known\n"
    )
    rows[0][3], rows[3][5] = "", "NA"
    code, out, err = run(capsys, "predict", "p.npz", write("n.csv", header, rows))
    assert (code, out) == (2, "")
    assert "line 2, column 'age' has no value" in err
    assert "line 5, column 'town' has no value" in err
    assert "train with --impute" in err


def test_the_held_out_rows_are_not_learnt_from(people, capsys):
    """Nor what replaces a missing value: the last seen is that of the training rows."""
    rng = np.random.default_rng(0)
    rows = [[repr(x), "", "x" if x > 0 else "y"] for x in rng.normal(size=40).tolist()]
    for i, row in enumerate(rows):
        row[1] = "" if i == 0 else i
    table = write("h.csv", ["a", "b", "y"], rows)
    train = ("train", table, "--target", "y", "--impute", "mean", "--force", *FAST)
    run(capsys, *train)
    order = np.random.default_rng(0).permutation(40)
    used = [i for i in order[8:] if i]
    assert pyidl.load_notes("h.npz")["columns"][1]["fill"] == pytest.approx(np.mean(used))
    run(capsys, *train, "--validation-share", 0.5)
    used = [i for i in order[8 + 16 :] if i]
    assert pyidl.load_notes("h.npz")["columns"][1]["fill"] == pytest.approx(np.mean(used))


def test_ways_to_impute(people, capsys):
    rows = [[i, "x" if i % 3 else "z", i % 2] for i in [0, 1, 1, 4, 9, 16, 2, 5] * 4]
    rows[0][0], rows[1][1] = "", ""
    table = write("i.csv", ["n", "t", "y"], rows)
    train = ("train", table, "--target", "y", "--test-share", 0, "--force", *FAST)
    values = [row[0] for row in rows[1:]]
    for how, fill, own in (
        (("mean",), np.mean(values), ""),
        (("median",), np.median(values), ""),
        ((), np.median(values), ""),
        (("most-frequent",), 1.0, "x"),
    ):
        code, _, err = run(capsys, *train, "--impute", *how)
        assert code == 0
        n, t = pyidl.load_notes("i.npz")["columns"]
        assert n["fill"] == pytest.approx(fill)
        assert (t["fill"], t["categories"]) == (own, ["x", "z"] if own else ["", "x", "z"])
        assert f"1 of 'n' by {n['fill']!r}" in err
    with pytest.raises(SystemExit, match="2"):
        run(capsys, *train, "--impute", "mode")


@pytest.mark.parametrize(
    "ignored",
    [["name,seen"], ["name", "seen"], ["name, seen"], ['"name",seen'], ["name,seen", "income"]],
    ids=str,
)
def test_columns_are_left_out(ignored, people, capsys):
    options = [word for names in ignored for word in ("--ignore", names)]
    assert run(capsys, "train", "p.csv", "--target", "risk", *FAST, *options)[0] == 0
    names = [column["name"] for column in pyidl.load_notes("p.npz")["columns"]]
    assert names == [n for n in ("age", "income", "town", "smoker") if n not in ignored]


def test_an_index_without_a_name(people, capsys):
    code, _, err = run(capsys, *people)
    assert (code, err) == (
        0,
        "pyidl: p.csv: the first column has no name: an index, and left out\n",
    )
    header, rows = patients(5, seed=1, gaps=0)
    write("n.csv", header, rows)
    out = run(capsys, "predict", "p.npz", "n.csv", "--id", "", "--id", "name")[1]
    answers = list(csv.reader(io.StringIO(out)))
    assert answers[0] == ["", "name", "risk"]
    assert answers[3][:2] == ["2", "Person 2"]
    write("p.csv", ["Unnamed: 0", *header[1:]], patients(120, gaps=0)[1])  # as pandas reads it
    code, _, err = run(capsys, *people, "--force")
    assert "the first column is named 'Unnamed: 0': an index, and left out" in err
    write("p.csv", [*header[:-1], "risk", ""], [[*row, 1] for row in rows])
    code, _, err = run(capsys, *people, "--force")
    assert "line 1: column 9 has no name; give it one, or delete the column" in err


def test_a_number_that_counts_the_rows_is_told(people, capsys):
    write("c.csv", ["id", "x", "y"], [[i + 5, i % 3, "ab"[i % 2]] for i in range(40)])
    code, _, err = run(capsys, "train", "c.csv", "--target", "y", *FAST)
    assert (code, err) == (
        0,
        "pyidl: id counts the rows, and is learnt from; if it means nothing else, use --ignore "
        "id\n",
    )


def test_an_id_may_be_the_target_or_an_input(people, capsys):
    run(capsys, *people)
    out = run(capsys, "predict", "p.npz", "p.csv", "--id", "risk,age")[1]
    answers = list(csv.reader(io.StringIO(out)))
    assert answers[0] == ["risk", "age", "predicted risk"]
    rows = patients(120, gaps=0)[1]
    assert [row[:2] for row in answers[1:]] == [[row[-1], str(row[3])] for row in rows]
    code, out, err = run(capsys, "predict", "p.npz", "p.csv", "--id", "nme")
    assert (code, out) == (2, "")
    assert "has no column 'nme'" in err
    assert "is 'name' meant?" in err


def test_nothing_is_overwritten_without_force(people, capsys, monkeypatch):
    for name in ("p.npz", "p.png", "a.csv"):
        Path(name).write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "fit", None)  # refused before the training
        for options, name in (
            ((), "p.npz"),
            (("--output", "q.npz", "--plot", "p.png"), "p.png"),
        ):
            code, out, err = run(capsys, *people, *options)
            assert (code, out) == (2, "")
            assert f"{name} is there already; give --force to replace it, or another --" in err
        for plot in ("q.npz", "p.csv"):
            options = ("--output", "q.npz", "--plot", plot, "--force")
            assert f"--plot would replace {plot}" in run(capsys, *people, *options)[2]
    assert run(capsys, *people, "--plot", "p.png", "--force")[0] == 0
    assert Path("p.npz").read_bytes()[:2] == b"PK"
    assert Path("p.png").read_bytes()[1:4] == b"PNG"
    answers = ("predict", "p.npz", "p.csv", "--output", "a.csv")
    assert "a.csv is there already" in run(capsys, *answers)[2]
    assert Path("a.csv").read_text() == "mine"
    assert run(capsys, *answers, "--force") == (0, "", "")
    assert Path("a.csv").read_text().startswith("risk\n")
    for forced in (("--output", "p.csv"), ("--output", "p.npz")):
        assert "would replace" in run(capsys, "predict", "p.npz", "p.csv", *forced, "--force")[2]


def test_gzip_and_standard_streams(people, capsys):
    assert run(capsys, *people, "--output", "plain.npz")[0] == 0
    data = Path("p.csv").read_bytes()
    Path("p.csv.gz").write_bytes(gzip.compress(data))
    code, out, _ = run(capsys, people[0], "p.csv.gz", *people[2:])
    assert code == 0
    assert "written: p.npz" in out
    assert Path("p.npz").read_bytes() == Path("plain.npz").read_bytes()
    code, out, err = started(".", people[0], "-", *people[2:], given=data)
    assert (code, out) == (2, "")
    assert err == "pyidl: - is no file beside which the model could be written; give --output\n"
    for given in (data, gzip.compress(data)):
        options = (*people[2:], "--output", "s.npz", "--force")
        assert started(".", people[0], "-", *options, given=given)[0] == 0
        assert Path("s.npz").read_bytes() == Path("plain.npz").read_bytes()
    answers = run(capsys, "predict", "p.npz", "p.csv")
    for options in (("-",), ("-", "--output", "-")):
        assert started(".", "predict", "p.npz", *options, given=data) == answers
    assert started(".", "predict", "p.npz", "-", given=b"age,town\n1,Bonn\n")[2].startswith(
        "pyidl: standard input has no column 'income', 'smoker'; its columns are age, town"
    )
    assert not Path("-").exists()
    left_open = (
        "import os; from pyidl.cli import main; main(['predict', 'p.npz', '-']); os.fstat(0)"
    )
    done = subprocess.run([sys.executable, "-c", left_open], input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "a model goes to a file" in run(capsys, *people, "--output", "-")[2]


# ------------------------------------------------------------------- task, stopping, plot


@pytest.mark.parametrize(
    ("k", "m", "options", "told"),
    [
        (3, 80, (), True),
        (20, 80, (), True),
        (20, 40, (), True),
        (20, 39, (), False),
        (21, 80, (), False),
        (3, 80, ("--task", "regression"), False),
        (3, 80, ("--task", "classification"), False),
    ],
)
def test_a_target_of_few_numbers_says_what_it_is_taken_for(k, m, options, told, people, capsys):
    write("d.csv", ["a", "grade"], [[i * 0.5, i % k] for i in range(m)])
    code, out, err = run(capsys, "train", "d.csv", "--target", "grade", *FAST, *options)
    note = (
        f"pyidl: grade holds {k} different numbers, and is learnt as a number (regression); if "
        "they are classes, use --task classification\n"
    )
    assert (code, err) == (0, note if told else "")
    assert ("accuracy" if "classification" in options else "R2") in out


def test_a_target_that_is_neither(people, capsys):
    rows = [[i, i + 0.5] for i in range(30)]
    rows[7][1] = "n.a."
    table = write("d.csv", ["a", "y"], rows)
    code, _, err = run(capsys, "train", table, "--target", "y", *FAST)
    assert (code, err.count("\n")) == (2, 1)
    assert "line 9, column 'y' holds 'n.a.', which is no number; correct it" in err
    assert "use --task classification" in err
    code, _, err = run(capsys, "train", table, "--target", "y", "--missing", "n.a.", *FAST)
    assert (
        "column 'y' has no value (1 of 30 rows have none); fill it in, or leave out the row" in err
    )
    code, _, err = run(
        capsys, "train", table, "--target", "y", "--missing", "n.a.", "--impute", *FAST
    )
    assert code == 2  # a target is not invented


def test_training_stops_early_on_rows_of_their_own(people, capsys, monkeypatch):
    """Not on the held-out ones, which are the same with and without."""
    seen = []
    monkeypatch.setattr(recipe, "fit", lambda *a, **k: seen.append((a, k)) or fit(*a, **k))
    rng = np.random.default_rng(0)
    rows = [[*map(repr, x.tolist()), int(rng.integers(2))] for x in rng.normal(size=(150, 8))]
    write("noise.csv", [*"abcdefgh", "y"], rows)
    train = ("train", "noise.csv", "--target", "y", "--task", "classification", "--force")
    train = (*train, "--epochs", 60)
    code, out, err = run(capsys, *train, "--patience", 5)
    assert code == 0
    assert "108 training, 12 validation, 30 held-out rows" in err
    (_, data), how = seen[-1]
    assert (len(data[1]), len(how["validation"][1])) == (108, 12)
    assert how["callbacks"] == [EarlyStopping(5)]
    epochs = int(err.split(" of 60 epochs; the model is that of epoch ")[0].split()[-1])
    best = int(err.split("that of epoch ")[1].split(",")[0])
    assert (epochs, epochs < 60) == (best + 5, True)
    code, out, err = run(capsys, *train, "--validation-share", 0)
    assert "120 training, 30 held-out rows" in err
    assert "validation" not in err + out
    assert (seen[-1][1]["validation"], seen[-1][1]["callbacks"]) == (None, [])
    code, out, err = run(capsys, *train, "--validation-share", 0.05)  # asked for, though few
    assert "114 training, 6 validation" in err
    for options, words in (
        (("--patience", 0), "--patience is 0"),
        (("--validation-share", 1), "--validation-share is 1.0; it lies between 0 and 1"),
        (("--validation-share", 0.999), "leaves 0 rows to train on; give it more, or a smaller"),
    ):
        code, _, err = run(capsys, *train, *options)
        assert (code, words in err) == (2, True)


fit = recipe.fit


def test_one_watched_row_has_no_r2(people, capsys):
    write("r.csv", ["a", "y"], [[i, i * 0.5] for i in range(12)])
    code, out, err = run(
        capsys, "train", "r.csv", "--target", "y", "--validation-share", 0.1, "--epochs", 3
    )
    assert code == 0
    assert "R2 on 1 validation rows: not defined" in out
    assert "val_r2" not in err


def test_a_plot(people, capsys, monkeypatch):
    for name in ("t.svg", "t.pdf"):
        assert f"written: {name}" in run(capsys, *people, "--plot", name, "--force")[1]
        assert Path(name).stat().st_size > 1000
    monkeypatch.setattr(recipe, "fit", None)  # refused before the training
    options = (*people, "--force", "--plot")
    assert "its ending says which kind of picture it is: " in run(capsys, *options, "t.doc")[2]
    assert "there is no folder nowhere" in run(capsys, *options, "nowhere/t.png")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(capsys, *options, "u.png") == (
        2,
        "",
        "pyidl: --plot needs matplotlib, which is not installed: pip install matplotlib\n",
    )


def test_without_sklearn_numbers_work_and_the_rest_says_what_is_missing(
    people, capsys, monkeypatch
):
    assert run(capsys, *people)[0] == 0
    write("m.csv", ["a", "y"], [[i if i % 5 else "", i * i] for i in range(40)])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    texts = "encoding the texts of 'town', 'smoker'"
    cure = "needs scikit-learn, which is not installed: pip install scikit-learn\n"
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "fit", None)
        assert run(capsys, *people, "--force")[2].endswith(f"pyidl: {texts} {cure}")
        imputed = ("train", "m.csv", "--target", "y", "--impute", *FAST)
        assert run(capsys, *imputed) == (2, "", f"pyidl: --impute {cure}")
    code, out, err = run(capsys, "predict", "p.npz", "p.csv")
    assert (code, out, err) == (2, "", f"pyidl: {texts} {cure}")
    options = ("--ignore", "town,smoker")
    assert run(capsys, *people, *options, "--force")[0] == 0
    assert run(capsys, "predict", "p.npz", "p.csv")[0] == 0


def test_numbers_may_be_categories(people, capsys):
    write("z.csv", ["zip", "y"], [[f"0{i % 4}", i % 4 == 2] for i in range(60)])
    train = ("train", "z.csv", "--target", "y", "--categories", "zip", "--test-share", 0, *FAST)
    code, out, _ = run(capsys, *train, "--epochs", 100)
    assert code == 0
    (column,) = pyidl.load_notes("z.npz")["columns"]
    assert column == {"name": "zip", "fill": None, "categories": ["00", "01", "02", "03"]}
    assert number(out, "accuracy on 60 training rows: ") == 1
    assert run(capsys, "predict", "z.npz", "z.csv")[1].split()[3] == "True"
    assert "has no column 'zap'" in run(capsys, *train, "--categories", "zap", "--force")[2]


def test_other_spellings_of_a_missing_value_go_with_the_model(people, capsys):
    rows = [
        ["?" if i % 9 == 4 else i, "-" if i % 7 == 3 else "ab"[i % 2], i % 2] for i in range(60)
    ]
    write("u.csv", ["n", "t", "y"], rows)
    train = ("train", "u.csv", "--target", "y", "--impute", "--missing", "?", *FAST)
    assert run(capsys, *train, "--missing", "-")[0] == 0
    notes = pyidl.load_notes("u.npz")
    assert notes["missing"] == ["?", "-"]
    assert notes["columns"][1]["categories"] == ["", "a", "b"]
    write("v.csv", ["n", "t"], [["?", "-"], [1, "a"]])
    code, out, err = run(capsys, "predict", "u.npz", "v.csv")
    assert (code, len(out.splitlines())) == (0, 3)
    assert "1 of 'n' by" in err


def test_notes_are_json(people, capsys):
    run(capsys, *people)
    notes = pyidl.load_notes("p.npz")
    assert json.loads(json.dumps(notes)) == notes
    assert set(notes) == {"version", "columns", "target", "classes", "missing"}
    with np.load("p.npz", allow_pickle=False) as arrays:
        assert all(not arrays[key].dtype.hasobject for key in arrays)


# ------------------------------------------------------------------------------ the page

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()


def test_the_page_says_what_happens(tmp_path):
    """Its table, its commands one after the other, and what they print; scores may differ."""
    writes, reads = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    subprocess.run([sys.executable, "-c", writes], cwd=tmp_path, check=True)
    story = PAGE.split("## From a table to predictions")[1].split("## What a column may hold")[0]
    blocks = re.findall(r"```bash\n(.*?)```\n(?:.*?)```text\n(.*?)```", story, re.S)
    assert len(blocks) == 3

    def words(text):
        return re.sub(r"[\d.]*\d", "#", " ".join(text.split()))

    for command, shown in blocks:
        program, *arguments = command.split()[0], *command.split()[3:]
        code, out, err = started(tmp_path, *arguments)
        assert program == "python"
        if code:
            assert " ".join(err.split()) == " ".join(shown.split())
            continue
        said = words(err.split("\r")[0]) + words(err.split("\r")[-1]) + words(out)
        for line in re.sub(r"\n  +", " ", shown).replace("...\n", "").splitlines():
            name = words(line)
            assert re.search(re.escape(name).replace("high", "(high|low)"), said), line
    done = subprocess.run([sys.executable, "-c", reads], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    assert re.fullmatch(r"\[('(high|low)'(, )?){3}\]", done.stdout.decode().strip())


def test_the_page_names_every_option():
    from pyidl.cli.parser import build_parser

    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        build_parser().parse_args(["predict", "--help"])
    assert all(option in PAGE for option in re.findall(r"^  (--[a-z]+)", text.getvalue(), re.M))
    data_options = "--ignore --categories --impute --missing --task --test-share --validation-share"
    for option in (*data_options.split(), "--patience", "--plot", "--target"):
        assert option in PAGE


@pytest.mark.slow
def test_the_measurement_of_early_stopping_runs(tmp_path):
    folder = str(Path(__file__).parents[1] / "benchmarks")
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import early_stopping as e; "
        "e.TABLES = {'iris': 2}; e.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert re.search(r"\| iris \| 0\.\d{4} \| 0\.\d{4} \| [+-]0", done.stdout.decode())
