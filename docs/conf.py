"""How the documentation is built: ``sphinx-build -W --keep-going docs docs/_build/html``.

Every notebook runs in the build.
"""

import inspect
import re
import sys
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  (it builds a cache, and would say so in the first cell that draws)

import pyidl
import pyidl.sklearn  # before torch is mocked: SciPy asks a torch that is there for its classes

project, author, copyright = "pyidl", "The pyidl developers", "The pyidl developers"
version = release = pyidl.__version__

sys.path.insert(0, str(Path(__file__).parent))  # where notebooks.py lies
extensions = ["notebooks", "myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
templates_path = ["_templates"]
default_role = "code"  # a name between single backticks, as docstrings have them
highlight_language = "none"  # an equation is no Python

html_theme = "furo"
html_title = f"pyidl {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

# Pages: mathematics between dollar signs, links to headings.
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

# Notebooks run anew in every build; an error, or a word on stderr, fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "warn"
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "A solution"  # what cells are folded for

# The reference: one page for each public module, made of what its __all__ names.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = ["torch", "onnx"]  # their doors are described without them
autodoc_typehints = "none"  # shapes and meanings stand in the text
numpydoc_show_class_members = False


def equations_stand_as_they_are_written(app, what, name, obj, options, lines):
    """Make literal blocks of the indented equations in docstrings, up to their first section."""
    sections = (i for i, line in enumerate(lines) if re.fullmatch(r"-{3,}", line.strip()))
    for i in range(next(sections, len(lines)) - 1, 0, -1):
        if (
            lines[i].startswith("    ")
            and not lines[i - 1].strip()
            and not previous(lines, i).startswith("    ")
        ):
            lines[i:i] = ["::", ""]


def previous(lines, i):
    """The last line above i that is not empty."""
    return next((line for line in reversed(lines[:i]) if line.strip()), "")


def without_metadata_routing(app, what, name, obj, skip, options):
    """Leave out the methods that scikit-learn adds to every estimator."""
    return True if name.endswith("_request") or name == "get_metadata_routing" else None


def signature_of_its_own(app, what, name, obj, options, signature, returns):
    """Of a class whose base is not there: that of its own __init__."""
    if what == "class" and signature == "(*args, **kwargs)" and "__init__" in vars(obj):
        own = inspect.signature(obj.__init__)
        plain = [p.replace(annotation=p.empty) for p in own.parameters.values()][1:]
        return str(inspect.Signature(plain)), returns
    return None


def setup(app):
    """Sphinx calls this; numpydoc comes after, at 500."""
    app.connect("autodoc-skip-member", without_metadata_routing)
    app.connect("autodoc-process-signature", signature_of_its_own)
    app.connect("autodoc-process-docstring", equations_stand_as_they_are_written, priority=400)
