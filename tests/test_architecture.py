"""The house.

Imports go strictly downwards, array names exist everywhere, and `import pyidl` is
light.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rooms import LEVEL, PACKAGE, ROOT, arrows, imported, room_of, sources

import pyidl

# What a room of its own may import, and nothing else.
OPTIONAL = {"sklearn", "torch", "onnx"}

# Names that NumPy gained after 2.0, the oldest version that pyidl supports.
AFTER_NUMPY_2_0 = {"astype", "cumulative_sum", "cumulative_prod", "unstack", "matvec", "vecmat"}


def violations(module, source):
    """What is wrong with the imports of a module."""
    own = room_of(module)
    if own not in LEVEL:
        return [f"{module} has no level"]
    wrong = []
    for name in imported(source):
        other = room_of(name)
        if other not in LEVEL:
            wrong.append(f"{module} imports {name}, which has no level")
        elif other != own and LEVEL[other] >= LEVEL[own]:
            wrong.append(f"{module} (level {LEVEL[own]}) imports {name} (level {LEVEL[other]})")
    return wrong


@pytest.mark.parametrize(
    ("module", "path"), list(sources()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_go_down(module, path):
    assert violations(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyidl.arrays.backend", "from pyidl import layers"),
        ("pyidl.activations.builtin", "import pyidl.losses"),
        ("pyidl.solvers.picard", "def f():\n    from pyidl.cells import Cell"),
        ("pyidl.cells", "from pyidl.equilibrium import equilibrium"),
        ("pyidl.unheard_of", ""),
    ],
)
def test_the_checker_catches(module, source):
    assert violations(module, source)


def cycle(graph):
    """A cycle of imports among these modules and what they import, or None.

    A folder's own __init__ only gathers names.
    """
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in graph:
            return None
        path.append(module)
        for other in sorted(graph[module]):
            if not module.startswith(f"{other}.") and (found := visit(other)):
                return found
        path.pop()
        done.add(module)
        return None

    return next((found for module in graph if (found := visit(module))), None)


def test_there_are_no_cycles():
    assert cycle({module: set(imported(path.read_text())) for module, path in sources()}) is None


@pytest.mark.parametrize(
    ("za", "zb"),
    [
        ("from pyidl.room import zb", "from pyidl.room import za"),
        ("from pyidl.room.zb import f", "from pyidl.room.za import g"),
        ("import pyidl.room.zb", "from pyidl.room import za"),
        ("def f():\n    from pyidl.room import zb", "from pyidl.room.za import f"),
    ],
)
def test_a_cycle_is_found_however_it_is_written(za, zb):
    gathering = set(imported("from pyidl.room.za import f\nfrom pyidl.room.zb import g"))
    graph = {
        "pyidl.room": gathering,
        "pyidl.room.za": set(imported(za)),
        "pyidl.room.zb": set(imported(zb)),
    }
    assert cycle(graph)
    assert cycle({**graph, "pyidl.room.zb": set()}) is None


def array_name(node):
    """``name`` of ``xp.name`` or ``namespace(z).name``; None for anything else.

    ``linalg.name`` of ``xp.linalg.name``.
    """

    def is_xp(node):
        if isinstance(node, ast.Name):
            return node.id == "xp"
        if isinstance(node, ast.Attribute):
            return node.attr == "xp"
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "namespace"
        )

    if not isinstance(node, ast.Attribute):
        return None
    if is_xp(node.value):
        return node.attr
    return f"linalg.{node.attr}" if array_name(node.value) == "linalg" else None


def used_names(source):
    """Names of array functions in a source."""
    return {name for node in ast.walk(ast.parse(source)) if (name := array_name(node))}


def strange_calls(source):
    """Calls of array functions with parameters that CuPy's have not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (parameters := PARAMETERS.get(array_name(node.func))):
            given = {keyword.arg for keyword in node.keywords}
            if len(node.args) > len(parameters) or not given <= {None, *parameters}:
                yield f"{ast.unparse(node)}, line {node.lineno}"


def test_used_names_are_found():
    assert used_names("xp.abs(x); namespace(z).exp(z); self.xp.linalg.solve(a, b)") == {
        "abs",
        "exp",
        "linalg",
        "linalg.solve",
    }
    for strange in (
        "xp.take(a, i, axis=0, mode='clip')",
        "xp.exp(z, where=a)",
        "self.xp.linalg.inv(a, b)",
        "xp.max(a, initial=0)",
    ):
        assert list(strange_calls(strange))
    assert not list(
        strange_calls("xp.take(a, i, axis=0, out=b); xp.exp(z, out=z); xp.linalg.inv(a)")
    )


PARAMETERS = {
    name: parameters
    for name, *parameters in map(
        str.split, (Path(__file__).parent / "cupy_names.txt").read_text().splitlines()
    )
}
KNOWN = set(PARAMETERS)
# What these modules guard by the name of the library.
GUARDED = {
    "pyidl.arrays.backend": {"asnumpy", "cuda", "ndarray", "astype", "cumulative_sum"},
    "pyidl.arrays.fusion": {"ElementwiseKernel"},
    "pyidl.arrays.kernels": {"RawKernel"},
}


@pytest.mark.parametrize(
    ("module", "path"), list(sources()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_array_names_exist_in_cupy_and_in_the_oldest_numpy(module, path):
    names = used_names(path.read_text())
    assert list(strange_calls(path.read_text())) == [], "CuPy has no such parameter"
    guarded = GUARDED.get(module, set()) | {"__name__", "linalg"}
    assert names - guarded - KNOWN == set(), "not in CuPy"
    assert (names - guarded) & AFTER_NUMPY_2_0 == set(), (
        "not in NumPy 2.0; pyidl.arrays.backend fills that gap"
    )
    assert all(
        hasattr(np.linalg if name.startswith("linalg.") else np, name.removeprefix("linalg."))
        for name in names - guarded
    )


def test_the_list_of_cupy_names_is_true():
    """CuPy can be imported without a GPU."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    used = {name for _, path in sources() for name in used_names(path.read_text())} & KNOWN
    for name in used:
        found = functools.reduce(getattr, name.split("."), cupy)
        if isinstance(found, cupy.ufunc):
            assert PARAMETERS[name] == [
                *(f"x{i + 1}" for i in range(found.nin)),
                "out",
                "dtype",
                "casting",
            ], name
        elif inspect.isfunction(found):
            assert PARAMETERS[name] == list(inspect.signature(found).parameters), name


def test_importing_pyidl_is_light():
    code = "import sys, pyidl; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pyidl" in loaded
    assert {"cupy", "matplotlib", "sklearn", "torch", "tqdm", "pandas"} & set(loaded) == set()


def lines_of_docstrings(tree):
    """Numbers of lines in docstrings: whatever string is a statement."""
    strings = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )
    found = set()
    for node in strings:
        if isinstance(node.value.value, str):
            found |= set(range(node.lineno, node.end_lineno + 1))
    return found


def lines_of_code(text, first=1, last=None):
    """How many lines are neither docstring nor comment nor blank."""
    docstrings, lines = lines_of_docstrings(ast.parse(text)), text.splitlines()
    return sum(
        i not in docstrings and bool(lines[i - 1].split("#")[0].strip())
        for i in range(first, (last or len(lines)) + 1)
    )


def test_lines_of_code_are_counted():
    text = '"""One."""\n\n# a comment\ndef f():\n    """Two\n\n    lines."""\n    return "none"\n'
    assert lines_of_docstrings(ast.parse(text)) == {1, 5, 6, 7}
    assert lines_of_code(text) == 2


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=str)
def test_files_and_functions_are_short(module, path):
    """400 lines of code a file, 60 a function; docstrings of 88 columns."""
    text = path.read_text()
    assert lines_of_code(text) <= 400
    for node in ast.walk(ast.parse(text)):
        long = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            node.end_lineno - node.lineno >= 60
        )
        if long:
            assert lines_of_code(text, node.lineno, node.end_lineno) <= 60, node.name
    lines = text.splitlines()
    wide = [i for i in lines_of_docstrings(ast.parse(text)) if len(lines[i - 1]) > 88]
    assert wide == []


def test_every_room_has_its_level_and_arrows_are_few():
    """Folders, and files at the top; the picture in docs/design.md is drawn from them."""
    rooms = {room_of(module) for module, _ in sources()}
    assert rooms == set(LEVEL)
    assert len(arrows()) <= 187


WINGS = ["recurrent", "sim"]
WINGS += [
    pytest.param(wing, marks=pytest.mark.slow)
    for wing in ("attention", "robustness", "sklearn", "interop", "cli")
]


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_can_be_taken_away(wing, tmp_path):
    """Its folder, its lines in `__init__`, and the files above it that bear its name."""
    package = tmp_path / "pyidl"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(package / wing)
    for path in package.rglob(f"*{wing}*.py"):
        path.unlink()
    if wing == "cli":
        (package / "__main__.py").unlink()
    top = package / "__init__.py"
    gone, text = set(), top.read_text()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"pyidl.{wing}"):
            gone |= {alias.name for alias in node.names}
            lines = text.splitlines()
            text = "\n".join(lines[: node.lineno - 1] + lines[node.end_lineno :])
    text = re.sub("|".join(rf'    "{name}",\n' for name in gone | {wing}), "", text)
    text = re.sub(rf"^    {wing},\n", "", text, flags=re.M)
    top.write_text(text + "\n")
    code = f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f)]  # that of pip -e
import pyidl
assert pyidl.__file__.startswith({str(tmp_path)!r})
for found in pkgutil.walk_packages(pyidl.__path__, "pyidl."):
    try:
        loaded = importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {sorted(OPTIONAL)!r}:
            raise
assert all(hasattr(pyidl, name) for name in pyidl.__all__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


PUBLIC = (
    "activations losses optim metrics solvers wellposed robustness compose sim testing plotting "
    "training layers io"
)


@pytest.mark.parametrize("name", [*PUBLIC.split(), "certify", "sklearn", "interop", "arrays"])
def test_what_users_import_by_module_path_is_there(name):
    if name in OPTIONAL:
        pytest.importorskip(name, reason=f"{name} is not installed")
    importlib.import_module(f"pyidl.{name}")


def test_what_the_page_on_writing_your_own_teaches_has_one_address():
    """The table of docs/write_your_own.md: each name is public where it says, and nowhere else."""
    page = (ROOT / "docs" / "write_your_own.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(pyidl[\w.]*)` \|", page, re.M)
    assert len(rows) >= 20
    for name, module in rows:
        assert name in importlib.import_module(module).__all__, (name, module)
        others = {f"pyidl.{room}" for room in LEVEL if room[0] != "_"}
        for other in others - {module}:
            if importlib.util.find_spec(other) and other != "pyidl.sklearn":
                assert name not in importlib.import_module(other).__all__, (name, other)


def test_public_signatures_take_no_unnamed_options():
    for module, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None:
                assert (node.name, node.args.kwarg.arg) == ("replace", "changes"), (
                    f"{module}.{node.name}"
                )


def test_every_public_name_exists():
    for module in ["pyidl", *(m.name for m in pkgutil.walk_packages(pyidl.__path__, "pyidl."))]:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            continue
        assert loaded.__all__ or module == "pyidl.interop", module
        for name in loaded.__all__:
            assert hasattr(loaded, name), f"{module}.{name}"


def test_the_top_level_is_tidy():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("needs a git checkout")
    allowed = {
        "pyidl",
        "tests",
        "examples",
        "docs",
        ".ci",
        ".gitignore",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
    }
    allowed |= {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    assert {line.split("/")[0] for line in listing.stdout.splitlines()} <= allowed
