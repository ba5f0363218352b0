"""The rooms of the package, read from its imports: which level each has, and who imports whom."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyidl"

LEVELS = [
    {"errors", "typing"},
    {"arrays"},
    {"activations", "matrices", "losses", "metrics", "optim"},
    {"wellposed", "solvers"},
    {"cells"},
    {"equilibrium"},
    {"layers"},
    {"recurrent", "attention"},
    {"certify", "io", "testing", "plotting"},
    {"training"},
    {"robustness", "compose"},
    {"sim"},
    {"sklearn", "interop"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""From the ground floor up. Two rooms of one level do not know each other."""

LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(module):
    """The folder, or the file at the top, in which a module stands."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(source):
    """Modules of pyidl that a source imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "pyidl")
        elif isinstance(node, ast.ImportFrom):
            if not node.level and (node.module or "").split(".")[0] != "pyidl":
                continue
            assert not node.level, "relative imports hide the level"
            if node.module == "pyidl":
                yield from (f"pyidl.{alias.name}" for alias in node.names)
            else:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)  # perhaps


def sources(package=PACKAGE):
    """``(module, path)`` of every file of the package."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        last = parts[-1] == "__init__" and len(parts) > 1
        yield ".".join(parts[:-1] if last else parts), path


def arrows():
    """Pairs of rooms of which the first imports the second."""
    found = set()
    for module, path in sources():
        for name in imported(path.read_text()):
            if room_of(name) in LEVEL and room_of(name) != room_of(module):
                found.add((room_of(module), room_of(name)))
    return found
