"""Every example in a docstring runs and says what it says."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import pyidl

MODULES = ["pyidl", *(m.name for m in pkgutil.walk_packages(pyidl.__path__, "pyidl."))]
OPTIONAL = {
    "pyidl.interop.torch": "torch",
    "pyidl.interop.torchidl": "torch",
    "pyidl.interop.torch_compose": "torch",
    "pyidl.interop.sklearn": "sklearn",
    "pyidl.sklearn": "sklearn",
    "pyidl.cli.encoding": "sklearn",
    "pyidl.plotting": "matplotlib",
}
OPTIONAL |= {name: "onnx" for name in MODULES if name.startswith("pyidl.interop.onnx")}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    needs = next(
        (
            library
            for prefix, library in OPTIONAL.items()
            if name == prefix or name.startswith(f"{prefix}.")
        ),
        "numpy",
    )
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    globs = {**vars(module), "np": np, "pyidl": pyidl}
    result = doctest.testmod(module, extraglobs=globs, optionflags=flags)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [
        importlib.import_module(name)
        for name in MODULES
        if not name.startswith(("pyidl.interop.", "pyidl.sklearn"))
    ]
    examples = sum(len(test.examples) for module in modules for test in finder.find(module))
    assert examples > 50
