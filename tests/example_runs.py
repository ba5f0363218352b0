"""Running an example in a folder of its own, and the small data that it reads."""

import gzip
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"
SERIES = "GunPoint", "ItalyPowerDemand", "JapaneseVowels"


def run(name, folder, *arguments):
    """Run a copy of an example, so that what it writes stays out of the repository.

    It writes into its folder ``output`` alone, and its figures say what they show.
    """
    shutil.copy(EXAMPLES / name, folder)
    before = set(folder.iterdir())
    command = [sys.executable, __file__, str(folder / name), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL
    )
    assert {path.name for path in set(folder.iterdir()) - before} <= {"output", "__pycache__"}
    return result


def check_figure(figure):
    """Titles, labels of axes, scales of colours, and a legend where lines have names."""
    scales = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert all(ax.get_ylabel() for ax in scales), "a scale of colours without a label"
    for ax in (ax for ax in figure.axes if ax not in scales):
        beside = ax.get_shared_y_axes().get_siblings(ax)
        assert ax.get_title() or figure.get_suptitle(), "axes without a title"
        assert ax.get_xlabel(), f"{ax.get_title()}: no label below"
        assert any(other.get_ylabel() for other in beside), f"{ax.get_title()}: no label beside"
        shades = [image for image in ax.images if len(np.unique(image.get_array())) > 2]
        assert scales or not shades, f"{ax.get_title()}: colours without a scale"
        named = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert not named or ax.get_legend(), f"{ax.get_title()}: names without a legend"
        several = len({line.get_color() for line in ax.lines}) > 1
        assert named or not several or figure.legends, f"{ax.get_title()}: colours without names"


def main():
    """Run the example that is named, and look at the figures that it saves."""
    if importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure

        save = Figure.savefig

        def checked(figure, *arguments, **options):
            check_figure(figure)
            save(figure, *arguments, **options)

        Figure.savefig = checked
    path = sys.argv.pop(1)
    sys.argv[0], sys.path[0] = path, str(Path(path).parent)
    runpy.run_path(path, run_name="__main__")


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_series(folder, rng, *sizes):
    """What time_series.py reads: short series, of which one channel tells the class."""
    for name in SERIES:
        (folder / name).mkdir()
        for kind, m in zip(("TRAIN", "TEST"), sizes):
            lines = ["# made up", "@equalLength false", "@classLabel true 1 2 3", "@data"]
            for _ in range(m):
                label, steps = rng.integers(1, 4), rng.integers(4, 9)
                channels = rng.normal(size=(4, steps))
                channels[label] += 3.0
                values = ":".join(",".join(f"{x:.4f}" for x in row) for row in channels)
                lines.append(f"{values}:{label}")
            (folder / name / f"{name}_{kind}.ts").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
