"""Running an example in a folder of its own, and the small data that it reads."""

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, folder, *arguments):
    """Run a copy of an example, so that what it writes stays out of the repository."""
    shutil.copy(EXAMPLES / name, folder)
    command = [sys.executable, str(folder / name), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL
    )


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_ts(path, rng, m, label_of):
    lines = ["# made up", "@equalLength false", "@classLabel true 1 2 3", "@data"]
    for _ in range(m):
        label, steps = rng.integers(1, 4), rng.integers(7, 30)
        channels = rng.normal(size=(12, steps))
        channels[label_of(label)] += 3.0
        lines.append(":".join(",".join(f"{x:.4f}" for x in row) for row in channels) + f":{label}")
    path.write_text("\n".join(lines) + "\n")
