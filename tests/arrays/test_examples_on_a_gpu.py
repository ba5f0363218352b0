"""Examples run on a GPU, unchanged but for one line that moves the model and its data;
cut short by default, and on the stand-in."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import require_gpu
from example_runs import write_idx, write_series

EXAMPLES = Path(__file__).parents[2] / "examples"
FAR = 'pyidl.to_device(a, "cuda")'
PRETEND = """
import sys
sys.path.insert(0, {tests!r})
import stand_in
sys.modules.update(stand_in.MODULES)
"""
RUN = """
exec(compile({source!r}, {path!r}, "exec"), {{"__name__": "__main__", "__file__": {path!r}}})
"""

LINES = {
    "digits.py": (
        r"^model = .*$",
        'model, U_train, U_test, t_train, t_test = model.to("cuda"), '
        f"*({FAR} for a in (U_train, U_test, t_train, t_test))",
    ),
    "fashion_mnist.py": (
        r"^    model = .*$",
        '    model, U_train, U_test, t_train, t_test = model.to("cuda"), '
        f"*({FAR} for a in (U_train, U_test, t_train, t_test))",
    ),
    "rolling_argmax.py": (
        r"^accuracies = .*$",
        'models, train, test = {n: m.to("cuda") for n, m in models.items()}, '
        f"*(tuple({FAR} for a in data) for data in (train, test))",
    ),
    "constraints.py": (
        r"^    model = .*$",
        '    model, U_train, U_test, t_train, t_test = model.to("cuda"), '
        f"*({FAR} for a in (U_train, U_test, t_train, t_test))",
    ),
    "char_lm.py": (
        r"^    model = models.*$",
        f"    data, validation = (tuple({FAR} for a in pair) for pair in (data, validation)); "
        'model = models[name] = model.to("cuda")',
    ),
    "time_series.py": (
        r"^    model = .*$",
        '    model, U, V, lengths, labels, truth = model.to("cuda"), '
        f"*({FAR} for a in (U, V, lengths, labels, truth))",
    ),
    "spiky_series.py": (
        r"^model = .*$",
        'model, U_train, t_train, U_test = model.to("cuda"), '
        f"*({FAR} for a in (U_train, t_train, U_test))",
    ),
    "pointers.py": (
        r"^    batches = .*$",
        '    model, test = model.to("cuda"), (pyidl.to_device(test[0], "cuda"), *test[1:]); '
        f"batches = (tuple({FAR} for a in batch) for batch in batches)",
    ),
    "sim_fashion_mnist.py": (
        r"^network = .*$",
        f'network, U, t, V, s, images = network.to("cuda"), *({FAR} for a in (U, t, V, s, images))',
    ),
    "torch_layer.py": (
        r"^print\(net\)$",
        'net, U, V, y, s = net.to("cuda"), *(a.to("cuda") for a in (U, V, y, s))',
    ),
}
"""The line after which the new one stands, and the new one."""

SHORTER = {
    "digits.py": {"epochs=30": "epochs=2"},
    "fashion_mnist.py": {"EPOCHS = 10": "EPOCHS = 1"},
    "rolling_argmax.py": {"10_000, 3_000, 20, 500": "1_000, 300, 1, 500"},
    "char_lm.py": {"in sorted(topics)": "in sorted(topics)[:35]"},
    "time_series.py": {"BATCH, SEEDS = 10, 3": "BATCH, SEEDS = 10, 1", "else epochs": "else 1"},
    "spiky_series.py": {"7, 60, 5964, 12, 256": "7, 10, 9_000, 1, 500"},
    "pointers.py": {"else 1000": "else 2", "warmup=50": "warmup=1", "trees(1000,": "trees(100,"},
    "sim_fashion_mnist.py": {
        "2000, 1000": "60, 5",
        "else 60": "else 2",
        "300, 1, 9": "300, 1, 2",
        "(1, 20)": "(1, 2)",
    },
}
ARGUMENTS = {
    "constraints.py": ["1", "1"],
    "char_lm.py": ["1"],
    "pointers.py": [],
    "sim_fashion_mnist.py": ["no folder"],
}
"""What they are told; the others are told where their data lie."""


LONG = {"constraints.py", "char_lm.py", "fashion_mnist.py", "spiky_series.py", "time_series.py"}
CASES = [
    pytest.param(name, "stand_in", False, marks=[pytest.mark.slow] if name in LONG else [])
    for name in LINES
    if name != "torch_layer.py"
]


CASES += [pytest.param(name, "cupy", False, marks=pytest.mark.gpu) for name in LINES]
CASES += [
    pytest.param(name, "cupy", True, marks=[pytest.mark.gpu, pytest.mark.slow]) for name in LINES
]


@pytest.mark.parametrize(("name", "library", "whole"), CASES)
def test_an_example_runs_on_a_gpu_with_one_line_more(name, library, whole, tmp_path):
    """Left out are `compose.py`, `sklearn_comparison.py`, `onnx_export.py` and the two of
    certified digits, whose other half reads arrays of the host, `state_tracking.py`, whose
    moves do, and `extrapolation.py`, with its processes; torch knows no stand-in."""
    source = (EXAMPLES / name).read_text()
    if library == "cupy":
        require_gpu()
        if name == "torch_layer.py":
            torch = pytest.importorskip("torch", reason="torch is not installed")
            if not torch.cuda.is_available():
                pytest.skip("needs a GPU that torch can use")
    for long, short in () if whole else SHORTER.get(name, {}).items():
        assert source.count(long) == 1
        source = source.replace(long, short)
    after, line = LINES[name]
    source, count = re.subn(after, lambda found: f"{found[0]}\n{line}", source, count=1, flags=re.M)
    assert count == 1
    code = (PRETEND if library == "stand_in" else "") + RUN
    code = code.format(
        tests=str(Path(__file__).parents[1]), source=source, path=str(tmp_path / name)
    )
    rng = np.random.default_rng(0)
    for kind, m in (("train", 200), ("t10k", 50)):  # what fashion_mnist.py reads
        write_idx(tmp_path / f"{kind}-images-idx3-ubyte", rng.integers(0, 256, (m, 28, 28)))
        write_idx(tmp_path / f"{kind}-labels-idx1-ubyte", rng.integers(0, 10, m))
    write_series(tmp_path, rng, 20, 20)
    shutil.copy(EXAMPLES / "fashion_mnist.py", tmp_path)  # sim_fashion_mnist.py imports it
    arguments = ARGUMENTS.get(name, [str(tmp_path)])
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("output/*.png")) or re.search(
        "equal predictions|step by step|without torch", result.stdout
    )
