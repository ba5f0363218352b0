"""The command line.

What it does, and that every wrong file ends in one clear line and exit code 2.
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tables import read_table

import pyidl
from pyidl.cli.main import main
from pyidl.errors import InputError
from pyidl.io import write_npz
from pyidl.training import recipe


def flowers(m=60, seed=0):
    """Two kinds, which the sum of the columns tells apart; columns of very different size."""
    rng = np.random.default_rng(seed)
    U = rng.normal(size=(m, 3)) * [1.0, 100.0, 1e-3] + [0.0, 5000.0, 1.0]
    kind = np.where(
        rng.normal(size=m) * 0.1 + (U[:, 1] - 5000) / 100 + U[:, 0] > 0, "rose", "tulip"
    )
    return U, kind


def written(path, U, kind, extra=()):
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["a", "b", "c", "kind", *(name for name, _ in extra)])
        for i in range(len(U)):
            out.writerow([*map(repr, U[i].tolist()), kind[i], *(column[i] for _, column in extra)])
    return path


def run(capsys, *arguments):
    """Code, standard output, standard error."""
    code = main([str(a) for a in arguments])
    return (code, *capsys.readouterr())


FAST = ("--epochs", 30, "--hidden-dim", 8, "--quiet")


# -------------------------------------------------------------------- train and predict


def test_classes_from_training_to_prediction(tmp_path, capsys):
    U, kind = flowers()
    data = written(tmp_path / "flowers.csv", U, kind)
    code, out, err = run(capsys, "train", data, "--target", "kind", *FAST)
    assert (code, err) == (0, "")
    assert "accuracy on 48 training rows: 0.9" in out or "accuracy on 48 training rows: 1.0" in out
    assert "accuracy on 12 held-out rows" in out
    assert "certified: the fixed point exists and is unique for every input" in out
    model = tmp_path / "flowers.npz"
    assert f"written: {model}" in out

    new, names = flowers(20, seed=1)
    other = tmp_path / "new.csv"  # columns in another order, one more, and no target
    with open(other, "w", newline="") as file:
        csv.writer(file).writerows(
            [["c", "more", "a", "b"], *([row[2], "x", row[0], row[1]] for row in new.tolist())]
        )
    code, out, err = run(capsys, "predict", model, other, "--probabilities")
    rows = list(csv.reader(io.StringIO(out)))
    assert (code, err) == (0, "")
    assert rows[0] == ["kind", "probability of rose", "probability of tulip"]
    assert np.mean([row[0] == name for row, name in zip(rows[1:], names, strict=True)]) > 0.8
    P = np.array([row[1:] for row in rows[1:]], dtype=float)
    assert np.allclose(P.sum(axis=1), 1, atol=1e-5)

    loaded = pyidl.load(model)  # takes the data as they are
    assert pyidl.load_notes(model) == {
        "version": 2,
        "columns": [{"name": name, "fill": None} for name in "abc"],
        "target": "kind",
        "classes": ["rose", "tulip"],
        "missing": [],
    }
    Y = loaded.predict(new)
    assert [["rose", "tulip"][k] for k in Y.argmax(axis=1)] == [row[0] for row in rows[1:]]

    answers = tmp_path / "answers.csv"
    assert run(capsys, "predict", model, other, "-o", answers) == (0, "", "")
    assert answers.read_text().splitlines() == ["kind", *(row[0] for row in rows[1:])]


def test_numbers(tmp_path, capsys):
    U, _ = flowers(80)
    y = 3e4 + 1e4 * np.tanh(U[:, 0])
    data = written(tmp_path / "n.csv", U, [repr(v) for v in y.tolist()], [("id", np.arange(80))])
    model = tmp_path / "m.npz"
    code, out, _ = run(
        capsys,
        "train",
        data,
        "--target",
        "kind",
        "--ignore",
        "id",
        "--output",
        model,
        "--test-share",
        0,
        *FAST,
        "--epochs",
        300,
    )
    assert code == 0
    assert "R2 on 80 training rows: 0.9" in out
    assert "held-out" not in out
    code, out, _ = run(capsys, "predict", model, data)
    found = np.array(out.splitlines()[1:], dtype=float)
    assert np.corrcoef(found, y)[0, 1] > 0.95
    code, _, err = run(capsys, "predict", model, data, "--probabilities")
    assert code == 2
    assert "predicts a number" in err


def test_digits_may_be_classes(tmp_path, capsys):
    U, kind = flowers()
    data = written(tmp_path / "d.csv", U, np.where(kind == "rose", "1", "0"))
    assert "R2 on" in run(capsys, "train", data, "--target", "kind", *FAST)[1]
    assert (
        "accuracy on"
        in run(
            capsys,
            "train",
            data,
            "--force",
            "--target",
            "kind",
            "--task",
            "classification",
            *FAST,
        )[1]
    )
    assert pyidl.load_notes(tmp_path / "d.npz")["classes"] == ["0", "1"]


def test_the_same_seed_gives_the_same_file(tmp_path, capsys):
    data = written(tmp_path / "f.csv", *flowers())
    files = []
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        run(
            capsys,
            "train",
            data,
            "--target",
            "kind",
            "--output",
            tmp_path / name,
            "--seed",
            seed,
            *FAST,
        )
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_progress_goes_to_stderr(tmp_path, capsys):
    data = written(tmp_path / "f.csv", *flowers())
    code, out, err = run(
        capsys, "train", data, "--target", "kind", "--epochs", 3, "--hidden-dim", 4
    )
    assert code == 0
    assert "classification: kind from 3 columns, 48 training, 12 held-out rows" in err
    assert "epoch" not in out


# -------------------------------------------------------------------------- wrong files

GOOD = "a,b,kind\n" + "".join(f"{2 * i},{i * i % 7},{'xy'[i % 2]}\n" for i in range(20))
WRONG = {
    "empty": ("", "is empty"),
    "only blank lines": ("\n\n\n", "is empty"),
    "no data": ("a,b,kind\n", "has a header and no data"),
    "no header": ("1,2,3\n4,5,6\n", "line 1 holds numbers only"),
    "a name twice": ("a,b,a,kind\n1,2,3,x\n", "columns 1 and 3 are both named 'a'; rename one"),
    "no name": ("a,,kind\n1,2,x\n", "column 2 has no name; give it one, or delete the column"),
    "ragged": (GOOD + "1,2\n", "line 22 has 2 fields, the header has 3"),
    "too long": (GOOD + "1,2,x,4\n", "line 22 has 4 fields, the header has 3"),
    "a missing value": (
        GOOD + "1,,x\n",
        "line 22, column 'b' has no value (1 of 21 rows have none)",
    ),
    "a missing target": (
        GOOD + "1,2,\n",
        "line 22, column 'kind' has no value (1 of 21 rows have none)",
    ),
    "a word": (
        GOOD + "\n1,many,x\n",
        "line 23, column 'b' holds 'many', which is no number; correct it, use --missing many if "
        "that is a missing value, or use --categories b, or leave the column out with --ignore b",
    ),
    "a column of names": (
        "a,b,kind\n" + "".join(f"Mrs {i},{i},{'xy'[i % 2]}\n" for i in range(18)),
        "line 2, column 'a' holds 18 different texts in 18 rows, the first 'Mrs 0'; if they are "
        "categories, use --categories a, or leave the column out with --ignore a",
    ),
    "dates": (
        "a,day,kind\n" + "1,2024-01-31,x\n2,2024-02-01,y\n" * 9,
        "line 2, column 'day' holds dates or times, the first '2024-01-31'; turn them into numbers "
        "(days since a day, the month, the hour), or leave the column out with --ignore day",
    ),
    "not a number": (GOOD + "nan,2,x\n", "line 22, column 'a' has no value"),
    "infinite": (GOOD + "1,-inf,x\n", "line 22, column 'b' holds '-inf'"),
    "too large": (
        GOOD + "1e400,2,x\n",
        "line 22, column 'a' holds '1e400', which is not finite in double precision",
    ),
    "an open quote": (GOOD + '1,2,"x\n', "line 22: unexpected end of data"),
    "one class": (
        "a,kind\n" + "1,x\n" * 10,
        "column 'kind' holds only 'x'; at least two values are needed",
    ),
    "one number": (
        "a,kind\n" + "1,7.5\n2,7.5\n" * 9,
        "column 'kind' holds only '7.5'; at least two values are needed",
    ),
    "as many classes as rows": (
        "a,kind\n" + "".join(f"{i},x{i}\n" for i in range(10)),
        "10 classes in 10 rows",
    ),
    "no such column": (
        GOOD.replace("kind", "sort"),
        "has no column 'kind'; its columns are a, b, sort",
    ),
    "nothing but the target": ("kind\nx\ny\n", "no column besides 'kind'"),
    "one row": ("a,kind\n1,2\n", "column 'kind' holds only '2'; at least two values are needed"),
    "semicolons": (
        "a;b;kind\n1;2;x\n",
        "has no column 'kind'; its columns are a;b;kind; is ';' the delimiter?",
    ),
    "semicolons and decimal commas": (
        "a;kind\n1,5;x\n",
        "has no column 'kind'; its columns are a;kind; is ';' the delimiter?",
    ),
    "numbers too close together": (
        "a,kind\n" + "1e-320,x\n2e-320,y\n" * 9,
        "too large for float64",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(case, tmp_path, capsys):
    text, words = WRONG[case]
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    code, out, err = run(capsys, "train", path, "--target", "kind", *FAST)
    assert (code, out) == (2, "")
    assert err.startswith("pyidl: ")
    assert err.count("\n") == 1
    assert words in err
    assert not path.with_suffix(".npz").exists()


def test_other_encodings(tmp_path, capsys):
    path = tmp_path / "latin.csv"
    path.write_bytes(GOOD.encode() + "1,2,é\n".encode("latin-1"))
    code, _, err = run(capsys, "train", path, "--target", "kind", *FAST)
    assert code == 2
    assert "line 22 is not UTF-8 (byte 0xe9); save it as UTF-8" in err
    for codec in ("utf-16", "utf-32"):
        path.write_bytes(GOOD.encode(codec))
        assert run(capsys, "train", path, "--target", "kind", *FAST)[0] == 2
    path.write_bytes(GOOD.encode("utf-8-sig"))  # a byte-order mark belongs to no name
    assert (*read_table(path).columns,) == ("a", "b", "kind")
    path.write_bytes(b"\x00\x01\x02" * 50)
    assert run(capsys, "train", path, "--target", "kind", *FAST)[0] == 2


def test_numbers_near_the_end_of_the_range_are_trained_on(tmp_path, capsys):
    U, kind = flowers()
    data = written(tmp_path / "huge.csv", U * 1e290, kind)
    code, out, _ = run(capsys, "train", data, "--target", "kind", *FAST)
    assert code == 0
    assert float(out.split("training rows: ")[1].split()[0]) > 0.9


def test_tabs_and_semicolons(tmp_path, capsys):
    for mark, name in ((";", ";"), ("\t", "tab")):
        path = tmp_path / "d.csv"
        path.write_text(GOOD.replace(",", mark))
        options = ("--target", "kind", "--delimiter", name, "--force", *FAST)
        assert run(capsys, "train", path, *options)[0] == 0
    path.write_text("a, b, kind\n" + '1, "2", "x, y"\n3, "4", "z"\n' * 9)  # a space before a quote
    columns = read_table(path).columns
    assert [columns["kind"].words[k] for k in columns["kind"].codes[:2]] == ["x, y", "z"]
    assert columns["b"].values[1] == 4.0
    assert (
        "it is one character"
        in run(capsys, "train", path, "--target", "kind", "--delimiter", "ab", "--force", *FAST)[2]
    )


OPTIONS = {
    "epochs": (("--epochs", 0), "--epochs is 0"),
    "units": (("--hidden-dim", 0), "hidden_dim"),
    "kappa": (("--kappa", 1.5), "kappa"),
    "rate": (("--learning-rate", -1), "-1"),
    "activation": (("--activation", "rely"), "there is no 'rely', did you mean 'relu'?"),
    "ridge": (("--alpha", -1), "--alpha is -1"),
    "share": (("--test-share", 1.5), "--test-share is 1.5"),
    "too large a share": (("--test-share", 0.95), "leaves 1 rows to train on"),
    "a column to ignore": (("--ignore", "z"), "has no column 'z'"),
    "a folder": (("--output", "nowhere/m.npz"), "there is no folder nowhere"),
    "a folder in the model's place": (("--output", "."), ". is a folder"),
    "no name": (("--output", ""), ". is a folder"),
    "the data's place": (("--output", "good.csv"), "--output would replace good.csv"),
    "a seed": (("--seed", -1), "--seed is -1"),
    "more units than memory": (("--hidden-dim", 10**7), "Unable to allocate"),
    "a task": (
        ("--task", "regression"),
        "column 'kind' holds 'x', which is no number (20 such of 20 rows); correct it, use "
        "--missing x if that is a missing value, or use --task classification",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_wrong_options(case, tmp_path, capsys, monkeypatch):
    more, words = OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text(GOOD)
    monkeypatch.setattr(recipe, "fit", None)  # refused before the training
    code, _, err = run(capsys, "train", "good.csv", "--target", "kind", *FAST, *more)
    assert code == 2
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["good.csv"]
    assert Path("good.csv").read_text() == GOOD


def test_files_that_are_not_there_or_something_else(tmp_path, capsys):
    data, model = tmp_path / "d.csv", tmp_path / "m.npz"
    data.write_text(GOOD)
    for arguments in (
        ("train", tmp_path / "none.csv", "--target", "a"),
        ("predict", model, data),
        ("certify", model),
        ("certify", data),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert err.count("\n") == 1
    pyidl.save(model, pyidl.ImplicitModel(2, 1, 3, rng=0))
    assert "does not say which columns it takes" in run(capsys, "predict", model, data)[2]
    run(capsys, "train", data, "--target", "kind", "--output", model, "--force", *FAST)
    data.write_text("a,c\n1,2\n")
    code, out, err = run(capsys, "predict", model, data)
    assert (code, out) == (2, "")
    assert "has no column 'b'" in err
    data.write_text(GOOD)
    for output in (tmp_path / "none" / "x.csv", tmp_path, data, model):
        before = data.read_bytes(), model.read_bytes()
        assert run(capsys, "predict", model, data, "-o", output)[0] == 2
        assert (data.read_bytes(), model.read_bytes()) == before


def test_a_folder_that_is_closed_is_noticed_before_the_training(tmp_path, capsys, monkeypatch):
    data = tmp_path / "d.csv"
    data.write_text(GOOD)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(recipe, "fit", None)
    code, _, err = run(capsys, "train", data, "--target", "kind")
    assert code == 2
    assert "permission denied" in err


def test_an_interrupted_training_leaves_the_old_model(tmp_path, capsys, monkeypatch):
    data, model = tmp_path / "d.csv", tmp_path / "d.npz"
    data.write_text(GOOD)
    model.write_bytes(b"old")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "fit", interrupted)
    assert run(capsys, "train", data, "--target", "kind", "--quiet", "--force") == (
        130,
        "",
        "pyidl: interrupted\n",
    )
    assert model.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_one_held_out_row_has_no_r2(tmp_path, capsys):
    data = tmp_path / "five.csv"
    data.write_text("a,b\n0,0.5\n1,1.5\n2,4\n3,9\n4,16\n")
    code, out, _ = run(capsys, "train", data, "--target", "b", *FAST)
    assert code == 0
    assert "R2 on 1 held-out rows: not defined, their targets are equal" in out
    assert f"written: {tmp_path / 'five.npz'}" in out


def test_notes_that_do_not_fit_the_model_are_refused(tmp_path, capsys):
    data, model, edited = tmp_path / "d.csv", tmp_path / "d.npz", tmp_path / "edited.npz"
    data.write_text(GOOD)
    run(capsys, "train", data, "--target", "kind", *FAST)
    notes = pyidl.load_notes(model)
    for change in (
        {"columns": ["a"]},
        {"columns": 5},
        {"columns": None},
        {"classes": ["x"]},
        {"classes": 2},
        {"classes": None},
    ):
        pyidl.save(edited, pyidl.load(model), notes=notes | change)
        code, out, err = run(capsys, "predict", edited, data)
        assert (code, out) == (2, "")
        assert "was not made by 'train', or was edited" in err
    pyidl.save(edited, pyidl.ImplicitRNN(2, 2, 3, 4, rng=0), notes=notes)
    assert "was not made by 'train', or was edited" in run(capsys, "predict", edited, data)[2]


# ------------------------------------------------------------------- the other commands


def test_certify(tmp_path, capsys):
    model, path = (
        pyidl.ImplicitModel(2, 1, 3, constraint=pyidl.wellposed.Unconstrained(), rng=0),
        tmp_path / "m.npz",
    )
    pyidl.save(path, model)
    code, out, _ = run(capsys, "certify", path)
    assert code == 0
    assert "certified: the fixed point exists" in out
    assert "StrictlyTriangular: not certified" in out
    model.params = {**model.params, "A": 5 * np.eye(3)}
    pyidl.save(path, model)
    code, out, _ = run(capsys, "certify", path)
    assert code == 1
    assert "not certified" in out
    for layer in (
        pyidl.ImplicitRNN(2, 1, 3, 4, rng=0),
        pyidl.Sequential(pyidl.Linear(2, 3), pyidl.ImplicitModel(3, 1, 4, rng=0)),
    ):
        pyidl.save(path, layer)
        assert run(capsys, "certify", path)[0] == 0


def test_check(capsys, monkeypatch):
    code, out, _ = run(capsys, "check")
    assert code == 0
    assert "0 layers failed" in out
    assert len(out.splitlines()) > 15
    monkeypatch.setattr(pyidl.LayerNorm, "_forward", broken(pyidl.LayerNorm._forward))
    code, out, _ = run(capsys, "check")
    assert code == 1
    assert "LayerNorm" in out
    assert "WRONG" in out


def broken(forward):
    """A layer whose values are right and whose pullback is not."""

    def wrong(self, U, call):
        Y, pull = forward(self, U, call)
        return Y, type(pull)(Y, lambda dY, inputs: pull.backward(1.01 * dY, inputs))

    return wrong


def test_a_device_that_is_not_there(capsys):
    code, _, err = run(capsys, "check", "--device", "cuda:7")
    assert code == 2
    assert err.count("\n") == 1


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for word in ("pyidl", "numpy", "scipy", "BLAS", "threads", "devices       cpu"):
        assert word in out


def test_as_a_process(tmp_path):
    """As a user starts it: help, version, no command, a pipe that closes early."""

    def started(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "pyidl", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    shown = started("--help")
    assert shown.returncode == 0
    assert "exit codes: 0 done" in shown.stdout
    for command in ("info", "train", "predict", "certify", "check"):
        assert command in shown.stdout
        assert started(command, "--help").returncode == 0
    assert started("--version").stdout == f"pyidl {pyidl.__version__}\n"
    assert started().returncode == 2
    wrong = started("train", "none.csv", "--target", "x")
    assert wrong.returncode == 2
    assert wrong.stderr == "pyidl: [Errno 2] No such file or directory: 'none.csv'\n"


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="there is no /dev/stdin")
def test_pipes(tmp_path):
    data, train = (
        GOOD.replace("x", "猫"),
        ("train", "/dev/stdin", "--target", "kind", "--epochs", "1", "--quiet"),
    )

    def started(*arguments, **environment):
        command = [sys.executable, "-W", "error", "-m", "pyidl", *arguments]
        done = subprocess.run(
            command,
            input=data.encode(),
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    assert started(*train) == (
        2,
        "",
        "pyidl: /dev/stdin is no file beside which the model could be written; give --output\n",
    )
    assert started(*train, "--output", "m.npz")[0] == 0
    predict = "predict", "m.npz", "/dev/stdin", "--probabilities"
    code, out, _ = started(*predict, PYTHONUTF8="1")
    assert (code, out.splitlines()[0]) == (0, "kind,probability of y,probability of 猫")
    assert started(*predict, "-o", "/dev/stdout") == (0, out, "")
    code, shown, err = started(*predict, PYTHONIOENCODING="latin-1")
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert "set PYTHONUTF8=1" in err
    closed = subprocess.run(
        f"exec '{sys.executable}' -m pyidl info >&-", shell=True, capture_output=True, cwd=tmp_path
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_notes_are_kept_with_a_model(tmp_path):
    path, model = tmp_path / "m.npz", pyidl.ImplicitModel(2, 1, 3, rng=0)
    pyidl.save(path, model)
    assert pyidl.load_notes(path) == {}
    pyidl.save(path, model, notes={"classes": ["ä", "b"], "n": 3})
    assert pyidl.load_notes(path) == {"classes": ["ä", "b"], "n": 3}
    assert np.array_equal(pyidl.load(path).params["A"], model.params["A"])
    before = Path(path).read_bytes()
    for wrong in ({"x": np.zeros(3)}, ["a list"], "words"):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            pyidl.save(path, model, notes=wrong)
    assert Path(path).read_bytes() == before
    write_npz(path, {}, {"kind": "model", "config": {}, "notes": [1]})
    with pytest.raises(pyidl.errors.FileFormatError, match="no dictionary"):
        pyidl.load_notes(path)
