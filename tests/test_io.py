"""Files: every model comes back as it was, and no bad file does anything but fail clearly."""

import copy
import io as stdio
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import array_api_strict
import numpy as np
import pytest
from helpers import moved, random_model
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import ImplicitModel, InfNorm, Linear, Pointwise, Sequential, activations, io, solvers
from pyidl.activations import Activation, Blocks
from pyidl.errors import DeviceError, FileFormatError, InputError
from pyidl.io import VERSION, read_npz, write_npz

P, Q, N = 4, 3, 10
U = np.random.default_rng(0).normal(size=(5, P))


def bend(z):
    return z - z**3 / (1 + 3 * z * z)


def dbend(z):
    return 1 - (3 * z**2 + 3 * z**4) / (1 + 3 * z * z) ** 2


BEND = Activation("bend", bend, dbend, lipschitz=1.0)

MODELS = {
    "implicit": lambda: random_model(ImplicitModel, P, Q, N),
    "every option": lambda: random_model(
        ImplicitModel,
        P,
        Q,
        N,
        activation=Blocks((activations.leaky_relu(0.07), 4), (activations.gelu, 6)),
        constraint=InfNorm(0.5),
        rank=2,
        bias=False,
        feedthrough=False,
        forward=solvers.Picard(tol=1e-9, max_iter=700, damping=0.25),
        adjoint=solvers.Fallback(
            solvers.Picard(max_iter=3), solvers.Fallback(solvers.Direct(tol=1e-9), solvers.Picard())
        ),
        dtype="float64",
    ),
    "linear": lambda: random_model(Linear, P, Q),
    "linear without bias": lambda: random_model(Linear, P, Q, bias=False, dtype="float64"),
    "activation": lambda: Pointwise(activations.softplus),
    "nested": lambda: Sequential(
        Linear(P, 6, rng=0),
        activations.tanh,
        Sequential(random_model(ImplicitModel, 6, 5, N), activations.abs),
        Linear(5, 2, rng=1),
    ),
    **{
        a.name: (lambda a=a: random_model(ImplicitModel, P, Q, N, activation=a))
        for a in activations.builtin.BUILT_IN.values()
    },
    "numpy numbers": lambda: ImplicitModel(
        np.int64(P), Q, N, constraint=InfNorm(np.float32(0.5)), rng=0
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model, path = MODELS[name](), tmp_path / "model.npz"
    pyidl.save(path, model)
    back = pyidl.load(path)
    assert repr(back) == repr(model)
    assert np.array_equal(back.predict(U), model.predict(U))
    Y, pull = model(U)
    assert all(np.array_equal(a, pull(Y)[1][key]) for key, a in back(U)[1](Y)[1].items())
    assert os.listdir(tmp_path) == ["model.npz"]


def test_names_and_paths(tmp_path):
    model = MODELS["implicit"]()
    for path in (str(tmp_path / "a.npz"), tmp_path / "no ending", tmp_path / "strange.tar.ünï"):
        pyidl.save(path, model)
        assert np.array_equal(pyidl.load(path).predict(U), model.predict(U))
    other = random_model(ImplicitModel, P, Q, N, seed=5)
    pyidl.save(tmp_path / "a.npz", other)
    assert np.array_equal(pyidl.load(tmp_path / "a.npz").predict(U), other.predict(U))
    with np.load(
        tmp_path / "a.npz", allow_pickle=False
    ) as plain:  # NumPy alone can read the numbers
        assert np.array_equal(plain["params/A"], other.params["A"])


def test_equal_models_give_equal_files(tmp_path):
    for name in "ab":
        pyidl.save(tmp_path / name, ImplicitModel(P, Q, N, rng=0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_library_is_saved_from_the_host(tmp_path):
    model = MODELS["implicit"]()
    pyidl.save(tmp_path / "m", moved(model, array_api_strict))
    assert type(pyidl.load(tmp_path / "m").params["A"]) is np.ndarray
    try:
        import cupy

        there = cupy.is_available()
    except ImportError:
        there = False
    if not there:
        with pytest.raises(DeviceError):
            pyidl.load(tmp_path / "m", device="cuda")


def test_copies_are_saved_like_the_original(tmp_path):
    model = MODELS["every option"]()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        pyidl.save(tmp_path / "m", twin)
        assert np.array_equal(pyidl.load(tmp_path / "m").predict(U), model.predict(U))


def test_an_activation_of_ones_own(tmp_path):
    path = tmp_path / "own"
    model = random_model(ImplicitModel, P, Q, N, activation=BEND)
    pyidl.save(path, model)
    with pytest.raises(InputError, match="'bend'"):
        pyidl.load(path)
    with pytest.raises(InputError, match="given: other"):
        pyidl.load(path, activation=Activation("other", bend, dbend, lipschitz=1.0))
    for given_activation in (BEND, {"bend": BEND}):
        assert np.array_equal(
            pyidl.load(path, activation=given_activation).predict(U), model.predict(U)
        )
    two = Sequential(model, Pointwise(Activation("second", bend, dbend, lipschitz=1.0)))
    pyidl.save(path, two)
    both = {"bend": BEND, "second": two.layers[1].activation}
    assert np.array_equal(pyidl.load(path, activation=both).predict(U), two.predict(U))
    with pytest.raises(InputError, match="'second'"):
        pyidl.load(path, activation=BEND)
    for wrong in ("bend", [BEND], {"bend": bend}, bend):
        with pytest.raises(InputError, match="give an Activation, or a dictionary of them by name"):
            pyidl.load(path, activation=wrong)


def test_a_namesake_is_not_the_built_in_one(tmp_path):
    false_relu = Activation("relu", bend, dbend, lipschitz=1.0)
    pyidl.save(tmp_path / "m", random_model(ImplicitModel, P, Q, N, activation=false_relu))
    with pytest.raises(InputError, match="'relu'"):
        pyidl.load(tmp_path / "m")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    for bad in ({"A": U}, None, Linear):
        with pytest.raises(InputError):
            pyidl.save(tmp_path / "m", bad)
    with pytest.raises(InputError, match="objects"):
        write_npz(tmp_path / "m", {"a": np.array([None])}, {})
    assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    old, new = MODELS["implicit"](), MODELS["linear"]()
    pyidl.save(path, old)
    before = path.read_bytes()
    write_array, calls = np.lib.format.write_array, []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return write_array(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "write_array", broken)
    with pytest.raises(OSError, match="the disk is full"):
        pyidl.save(path, new)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


HALF = """
import sys, pathlib
from pyidl.io import replacing
with replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    file.write(sys.stdin.readline().encode())
"""


@pytest.fixture
def half_written(request):
    """A function that starts a process which has written half of a file, and waits."""

    def begin(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HALF, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.communicate)
        request.addfinalizer(process.kill)
        assert process.stdout.readline() == "ready\n"
        return process

    return begin


@pytest.mark.parametrize("name", ["m.npz", "no ending", ".hidden", "[a-z]*?.npz"])
def test_what_a_killed_process_has_left_is_removed(name, half_written, tmp_path):
    path, model = tmp_path / name, MODELS["linear"]()
    for _ in range(2):
        process = half_written(path)
        process.kill()
        process.wait()
    neighbour = half_written(tmp_path / f"{name}.2")  # whose file has another name
    neighbour.kill()
    neighbour.wait()
    assert len(os.listdir(tmp_path)) == 2  # one of the first file, one of the neighbour
    pyidl.save(path, model)
    left = set(os.listdir(tmp_path)) - {name}
    assert [other.startswith(f".{name}.2.") for other in left] == [True]
    assert np.array_equal(pyidl.load(path).predict(U), model.predict(U))


def test_what_a_living_process_writes_stays(half_written, tmp_path):
    path = tmp_path / "m"
    process = half_written(path)
    pyidl.save(path, MODELS["linear"]())
    assert len(os.listdir(tmp_path)) == 2
    process.communicate("whole")
    assert process.returncode == 0
    assert path.read_bytes() == b"halfwhole"
    assert os.listdir(tmp_path) == ["m"]


def test_many_save_at_once(tmp_path):
    """Whoever ends last is what stays; nobody takes a file from another."""
    models = [random_model(Linear, P, Q, seed=seed) for seed in range(8)]

    def saves(model):
        for _ in range(25):
            pyidl.save(tmp_path / "m", model)

    with ThreadPoolExecutor(len(models)) as pool:
        list(pool.map(saves, models))
    assert os.listdir(tmp_path) == ["m"]
    back = pyidl.load(tmp_path / "m").params["W"]
    assert sum(np.array_equal(back, model.params["W"]) for model in models) == 1


def test_a_file_that_took_the_place_of_another_stays(monkeypatch, tmp_path):
    """Opened, but not yet locked, it was removed by a third; its writer made it anew."""
    left, lock = tmp_path / ".m.0123abcd.tmp", io._lock
    left.touch()

    def late(file, wait):
        if file.name == str(left):
            left.unlink()
            (tmp_path / "new").touch()  # another file, whatever becomes of the first one's number
            (tmp_path / "new").rename(left)
        return lock(file, wait)

    monkeypatch.setattr(io, "_lock", late)
    pyidl.save(tmp_path / "m", MODELS["linear"]())
    assert left.exists()


def test_a_file_without_locks_is_saved(monkeypatch, tmp_path):
    """As on Windows, and on networks that know no locks: then nothing is removed."""
    (tmp_path / ".m.0123abcd.tmp").touch()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    pyidl.save(tmp_path / "m", MODELS["linear"]())
    assert sorted(os.listdir(tmp_path)) == [".m.0123abcd.tmp", "m"]


def test_a_link_stays_and_leads_to_the_new_file(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "m", tmp_path / "link"
    link.symlink_to(target)
    pyidl.save(link, MODELS["implicit"]())
    assert link.is_symlink()
    assert os.listdir(tmp_path / "there") == ["m"]
    assert np.array_equal(pyidl.load(target).predict(U), MODELS["implicit"]().predict(U))


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    pyidl.save(pipe, MODELS["implicit"]())
    reader.join(10)
    assert pipe.is_fifo()
    (tmp_path / "m").write_bytes(got[0])
    assert np.array_equal(pyidl.load(tmp_path / "m").predict(U), MODELS["implicit"]().predict(U))
    for folder in (tmp_path, ""):
        with pytest.raises(IsADirectoryError):
            pyidl.save(folder, MODELS["implicit"]())


# ---------------------------------------------------------------------------- bad files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "m"
    pyidl.save(path, MODELS["implicit"]())
    return path.read_bytes()


def edited(good, change=None, arrays=None, header=None):
    """The bytes of a valid file after a change of its configuration or its arrays."""
    with np.load(stdio.BytesIO(good)) as file:
        members = {key: file[key] for key in file.files}
    content = json.loads(_header(good))
    del members["header"]
    if change:
        change(content)
    if arrays:
        arrays(members)
    text = json.dumps(content).encode() if header is None else header
    out = stdio.BytesIO()
    np.savez(out, header=np.frombuffer(text, np.uint8), **members)
    return out.getvalue()


def _header(good):
    with np.load(stdio.BytesIO(good)) as file:
        return file["header"].tobytes()


def config(**changes):
    return lambda content: content["config"].update(changes)


BAD_FILES = {
    "empty": lambda good: b"",
    "text": lambda good: b"not a zip file at all",
    "zip without arrays": lambda good: _zip({"readme.txt": b"hello"}),
    "no header": lambda good: edited(good, header=b""),
    "header is no JSON": lambda good: edited(good, header=b"{'a': 1}"),
    "header is a list": lambda good: edited(good, header=b"[1, 2]"),
    "header is deep": lambda good: edited(good, header=b"[" * 100000),
    "another format": lambda good: edited(good, lambda c: c.update(format="other")),
    "no format": lambda good: edited(good, lambda c: c.pop("format")),
    "newer": lambda good: edited(good, lambda c: c.update(version=VERSION + 1)),
    "version as text": lambda good: edited(good, lambda c: c.update(version="1")),
    "no configuration": lambda good: edited(good, lambda c: c.pop("config")),
    "unknown layer": lambda good: edited(good, config(**{"class": "os.system"})),
    "unknown constraint": lambda good: edited(good, config(constraint={"class": "ImplicitModel"})),
    "hostile class": lambda good: edited(
        good, config(forward={"class": "__import__", "name": "os"})
    ),
    "unknown activation": lambda good: edited(
        good, config(activation={"class": "Activation", "name": "rule"})
    ),
    "hostile activation": lambda good: edited(
        good, config(activation={"class": "Activation", "name": "leaky_relu(__import__('os'))"})
    ),
    "blocks of nonsense": lambda good: edited(
        good, config(activation={"class": "Blocks", "blocks": [["relu", 10]]})
    ),
    "blocks too wide": lambda good: edited(
        good,
        config(
            activation={
                "class": "Blocks",
                "blocks": [[{"class": "Activation", "name": "relu"}, 10**15]],
            }
        ),
    ),
    "hostile option": lambda good: edited(good, config(_params={})),
    "missing option": lambda good: edited(good, lambda c: c["config"].pop("hidden_dim")),
    "unknown setting": lambda good: edited(
        good, config(constraint={"class": "InfNorm", "kappa": 0.9, "extra": 1})
    ),
    "kappa out of range": lambda good: edited(
        good, config(constraint={"class": "InfNorm", "kappa": 7})
    ),
    "kappa as text": lambda good: edited(
        good, config(constraint={"class": "InfNorm", "kappa": "a"})
    ),
    "width as text": lambda good: edited(good, config(hidden_dim="ten")),
    "width negative": lambda good: edited(good, config(hidden_dim=-1)),
    "width enormous": lambda good: edited(good, config(hidden_dim=10**12)),
    "bias as a number": lambda good: edited(good, config(bias=1.5)),
    "dtype unheard of": lambda good: edited(good, config(dtype="float16")),
    "missing parameter": lambda good: edited(good, arrays=lambda a: a.pop("params/A")),
    "extra parameter": lambda good: edited(
        good, arrays=lambda a: a.update({"params/Z": np.ones(3)})
    ),
    "misshapen parameter": lambda good: edited(
        good, arrays=lambda a: a.update({"params/b": np.ones(3)})
    ),
    "nan parameter": lambda good: edited(
        good, arrays=lambda a: a.update({"params/b": np.full(N, np.nan)})
    ),
    "text parameter": lambda good: edited(
        good, arrays=lambda a: a.update({"params/b": np.array(["a"] * N)})
    ),
    "objects, which would need pickle": lambda good: _pickled(good),
    "compressed by another method": lambda good: _zip(_members(good), zipfile.ZIP_LZMA),
    "a parameter twice": lambda good: _twice(good, "params/b.npy"),
    "a parameter twice, once without an ending": lambda good: _twice(good, "params/b"),
    "the header twice": lambda good: _twice(good, "header.npy"),
    "a name twice in the header": lambda good: edited(good, header=_doubled(good, "version")),
    "an option twice": lambda good: edited(good, header=_doubled(good, "kappa")),
    "absurd shape": lambda good: _absurd(good),
    "trailing bytes in a member": lambda good: _trailing(good),
}


def _zip(members, kind=zipfile.ZIP_STORED):
    out = stdio.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _members(good):
    with zipfile.ZipFile(stdio.BytesIO(good)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch EXPLODED",)


def _pickled(good):
    out = stdio.BytesIO()
    np.lib.format.write_array(out, np.array([Bomb()] * N, object), allow_pickle=True)
    return _zip({**_members(good), "params/b.npy": out.getvalue()})


def _twice(good, name):
    """The file with one of its arrays once more at its end, under this name."""
    out = stdio.BytesIO(good)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile's, of the double name
        archive.writestr(name, _members(good)[name.removesuffix(".npy") + ".npy"])
    return out.getvalue()


def _doubled(good, key):
    """The text of the header, in which what this key says is said twice."""
    header = _header(good).decode()
    pair = re.search(rf'"{key}": [0-9.]+', header)[0]
    return header.replace(pair, f"{pair}, {pair}").encode()


def _absurd(good):
    out = stdio.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
    )
    return _zip({**_members(good), "params/b.npy": out.getvalue()})


def _trailing(good):
    members = _members(good)
    return _zip({**members, "params/b.npy": members["params/b.npy"] + b"more"})


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_fail_clearly(case, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_bytes(BAD_FILES[case](good))
    with pytest.raises(FileFormatError, match="bad"):
        pyidl.load("bad")
    assert os.listdir(tmp_path) == ["bad"]


def test_the_unedited_twin_loads(good, tmp_path):
    (tmp_path / "m").write_bytes(edited(good))
    assert isinstance(pyidl.load(tmp_path / "m"), ImplicitModel)


@pytest.mark.parametrize(
    "solver",
    [
        solvers.Anderson(memory=2, splitting=True),
        solvers.Auto(max_iter=9),
        solvers.Direct(tol=1e-3),
        solvers.GMRES(restart=3),
        solvers.Jacobi(tol=1e-4),
        solvers.JacobianFree(),
        solvers.Neumann(4),
        solvers.Newton(max_iter=7),
        solvers.Phantom(3, 0.7),
        solvers.Substitution(solvers.Jacobi(max_iter=8)),
        solvers.Fallback(solvers.Auto(), solvers.Newton()),
    ],
    ids=repr,
)
def test_every_solver_is_kept_in_files(solver, tmp_path):
    pyidl.save(tmp_path / "m", ImplicitModel(2, 2, 3, rng=0, adjoint=solver))
    assert pyidl.load(tmp_path / "m").adjoint == solver


def test_an_option_that_an_older_file_does_not_know_has_its_default(good, tmp_path):
    (tmp_path / "m").write_bytes(edited(good, lambda c: c["config"].pop("pattern")))
    assert pyidl.load(tmp_path / "m").pattern is None


def test_a_newer_version_asks_for_an_upgrade(good, tmp_path):
    (tmp_path / "m").write_bytes(BAD_FILES["newer"](good))
    with pytest.raises(FileFormatError, match="upgrade"):
        pyidl.load(tmp_path / "m")


def test_every_truncation_is_noticed(good, tmp_path):
    path = tmp_path / "m"
    for cut in {*range(0, len(good), 97), len(good) - 1}:
        path.write_bytes(good[:cut])
        with pytest.raises(FileFormatError):
            pyidl.load(path)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_numpy_has_compressed_is_read(name, tmp_path):
    """Models of every kind, and notes, a checkpoint's header, an array in columns."""
    model, path = MODELS[name](), tmp_path / "m.npz"
    pyidl.save(path, model, notes={"classes": ["cat", "dog"]})
    _compress(path)
    back = pyidl.load(path)
    assert repr(back) == repr(model)
    assert np.array_equal(back.predict(U), model.predict(U))
    assert pyidl.load_notes(path) == {"classes": ["cat", "dog"]}
    write_npz(path, {"a": np.asfortranarray(U), "b": np.zeros((500, 500))}, {"kind": "checkpoint"})
    _compress(path)
    header, arrays = read_npz(path)
    assert header["kind"] == "checkpoint"
    assert np.array_equal(arrays["a"], U)
    assert not arrays["b"].any()


def _compress(path):
    with np.load(path) as file:
        members = dict(file)
    np.savez_compressed(path, **members)


@pytest.mark.parametrize("compressed", [False, True])
@given(data=st.data())
def test_flipped_bytes_never_do_harm(compressed, good, tmp_path, data):
    """Whatever is flipped: a clear error, or the model that was saved.

    With exactly its parameters.
    """
    spoilt = bytearray(_zip(_members(good), zipfile.ZIP_DEFLATED) if compressed else good)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "m"
    path.write_bytes(bytes(spoilt))
    try:
        model = pyidl.load(path)
    except FileFormatError:
        return
    assert all(
        np.array_equal(a, MODELS["implicit"]().params[key]) for key, a in model.params.items()
    )


@pytest.mark.parametrize("path", [True, 7, None])
def test_a_number_is_no_path(path):
    """`open` takes it for a file that is open already, and closes that."""
    with pytest.raises(InputError, match=f"path is {path}"):
        pyidl.load(path)


def test_errors_of_the_operating_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        pyidl.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        pyidl.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        pyidl.save(tmp_path / "no folder" / "m", MODELS["linear"]())


def test_other_kinds_of_file(tmp_path):
    write_npz(tmp_path / "c", {"a": np.arange(3)}, {"kind": "checkpoint"})
    header, arrays = read_npz(tmp_path / "c")
    assert header["kind"] == "checkpoint"
    assert arrays["a"].tolist() == [0, 1, 2]
    with pytest.raises(FileFormatError, match="checkpoint"):
        pyidl.load(tmp_path / "c")
