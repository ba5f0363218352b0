"""What all tests rely on: comparisons that can fail, skips that say why, files apart."""

import ast
from pathlib import Path
from types import SimpleNamespace

import array_api_strict
import conftest
import numpy as np
import pytest
from helpers import assert_close

TESTS = Path(__file__).parent
GOOD = np.array([1.0, 2.0])


def test_equal_arrays_pass():
    assert_close(GOOD, GOOD.copy(), rtol=0)
    assert_close(array_api_strict.asarray(GOOD), GOOD, rtol=0, xp=array_api_strict)


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.astype("float32"),
        GOOD[:, None],
        GOOD * (1 + 1e-6),
        np.array([1.0, np.nan]),
        array_api_strict.asarray(GOOD),
    ],
    ids=["dtype", "shape", "value", "nan", "library"],
)
def test_differences_are_found(bad):
    with pytest.raises(AssertionError):
        assert_close(bad, GOOD, rtol=1e-9)


def test_wrong_library_is_found_when_one_is_asked_for():
    with pytest.raises(AssertionError):
        assert_close(GOOD, GOOD, rtol=0, xp=array_api_strict)


def test_skips_are_counted_by_reason():
    said = []
    reasons = ("Skipped: needs torch", "Skipped: needs a GPU:\nas said", "Skipped: needs torch")
    reporter = SimpleNamespace(
        stats={"skipped": [SimpleNamespace(longrepr=("t.py", 1, each)) for each in reasons]},
        section=said.append,
        write_line=said.append,
    )
    conftest.pytest_terminal_summary(reporter)
    assert said == ["skipped", "     2  needs torch", "     1  needs a GPU:"]
    reporter.stats, said[:] = {}, []
    conftest.pytest_terminal_summary(reporter)
    assert not said


def test_every_skip_has_a_reason():
    for path in TESTS.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if name.endswith(("importorskip", "mark.skip", "mark.skipif")):
                assert "reason" in {key.arg for key in call.keywords}, (path, ast.unparse(call))
            if name == "pytest.skip":
                assert call.args, path


def test_no_test_file_imports_another():
    files = sorted(TESTS.rglob("test_*.py"))
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        assert not imported & {file.stem for file in files}, path
