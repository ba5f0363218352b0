"""The reference has a page for everything public; the pages themselves are checked by their build, in which they run."""

import importlib
import re
import types
from pathlib import Path

import pytest

import pyidl
from pyidl import sim

DOCS = Path(__file__).parent.parent / "docs"
LISTED = re.findall(r"^   (pyidl[.\w]*)$", (DOCS / "api.md").read_text(), re.M)


@pytest.mark.parametrize("name", pyidl.__all__)
def test_the_reference_has_every_public_name(name):
    home = getattr(pyidl, name)
    if isinstance(home, types.ModuleType):
        assert home.__name__ in LISTED
    else:
        assert any(name in importlib.import_module(module).__all__ for module in LISTED if not module.startswith("pyidl.interop"))


def test_the_solvers_of_sim_can_be_made_as_the_page_writes_them():
    (row,) = re.findall(r"^\| solvers \| (.*) \|$", (DOCS / "sim.md").read_text(), re.M)
    found = [eval(code, vars(sim)) for code in re.findall(r"`(.*?)`", row)]
    assert len(found) == 5
    made = [solver if isinstance(solver, sim.RowSolver) else solver() for solver in found]
    assert all(isinstance(solver, sim.RowSolver) for solver in made)


def test_notebooks_can_be_taken_along():
    """Every page with cells says where its notebook is, and has the head by which Jupyter knows it."""
    pages = {path: path.read_text() for path in DOCS.glob("*.md")}
    notebooks = {path.stem: text for path, text in pages.items() if "{code-cell}" in text}
    assert {"tutorial", "gradient_by_hand", "write_your_own"} <= set(notebooks)
    for name, text in notebooks.items():
        assert f"{{nb-download}}`{name}.ipynb`" in text
        assert text.startswith("---\njupytext:")
