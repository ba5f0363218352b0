"""The picture of the wings, drawn from the imports: ``python docs/wings.py`` writes wings.svg.

Rooms are the folders of the package and the files at its top. They stand on the levels that
tests/rooms.py keeps. An arrow leads from a room to a room that it imports, and is left out where
a longer way leads there.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from rooms import LEVELS, arrows

SHOWN = "#1f4e79"


def shown():
    """The arrows without those that others imply."""
    below = {room: {b for a, b in arrows() if a == room} for rooms in LEVELS for room in rooms}
    reach = {}
    for rooms in LEVELS:
        for room in rooms:
            reach[room] = below[room].union(*(reach[b] for b in below[room]))
    return [
        (room, b)
        for room, direct in below.items()
        for b in sorted(direct)
        if not any(b in reach[other] for other in direct - {b})
    ]


def places():
    """Where each room stands: ``room -> (x, y)``, a level a row, the ground floor at the bottom."""
    found = {}
    for y, rooms in enumerate(LEVELS):
        for i, room in enumerate(sorted(rooms)):
            found[room] = (i - (len(rooms) - 1) / 2, y)
    return found


def draw(path):
    """Write the picture."""
    matplotlib.rcParams["svg.hashsalt"] = "wings"
    where = places()
    figure, ax = plt.subplots(figsize=(9, 8), layout="constrained")
    for room, other in shown():
        (x, y), (u, v) = where[room], where[other]
        ax.annotate(
            "", (1.9 * u, v + 0.22), (1.9 * x, y - 0.22),
            arrowprops={"arrowstyle": "->", "color": "#9aa5b1", "lw": 1.0},
        )  # fmt: skip
    for room, (x, y) in where.items():
        folder = (ROOT / "pyidl" / room).is_dir()
        ax.text(
            1.9 * x, y, f"{room}/" if folder else room, ha="center", va="center", fontsize=10,
            color="white" if folder else SHOWN,
            bbox={"boxstyle": "round,pad=0.35", "fc": SHOWN if folder else "white", "ec": SHOWN},
        )  # fmt: skip
    ax.set(xlim=(-5.4, 5.4), ylim=(-0.6, len(LEVELS) - 0.4))
    ax.axis("off")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(ROOT / "docs" / "_static" / "wings.svg")
