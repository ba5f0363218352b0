"""Trained here, run anywhere: layers as ONNX graphs, beside pyidl itself: ``python examples/onnx_export.py [folder]``.

Three layers are written and run by onnxruntime on new inputs: the largest difference, and the time of a call. Needs the extra `onnx`.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

import pyidl
from pyidl.interop.onnx import export

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)


def stiff(model):
    """Larger feedback than a new model has, so that there is something to solve."""
    model.params = model.project({key: 3 * a if key in "ALR" else a for key, a in model.params.items()})
    return model


layers = {
    "ImplicitModel": (stiff(pyidl.ImplicitModel(64, 10, 100, rng=0)), (1, 64), (1000, 64)),
    "ImplicitRNN": (stiff(pyidl.ImplicitRNN(8, 4, 32, 32, rng=0)), (1, 50, 8), (100, 50, 8)),
    "ImplicitAttentionHead": (stiff(pyidl.ImplicitAttentionHead(64, 16, num_heads=4, block_size=128, rng=0)), (1, 128, 64), (16, 128, 64)),
}


def milliseconds(call):
    """The median of some calls."""
    call()
    times = []
    for _ in range(15):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return np.median(times)


for name, (layer, *shapes) in layers.items():
    path = FOLDER / f"{name}.onnx"
    export(layer, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in shapes:
        U = rng.normal(size=shape).astype(np.float32)
        Y, converged = session.run(["Y", "converged"], {"U": U})
        apart = np.abs(Y - layer.predict(U)).max()
        ours, theirs = milliseconds(lambda U=U, f=layer: f.predict(U)), milliseconds(lambda U=U, f=session: f.run(["Y"], {"U": U}))
        print(
            f"{name:22s} {shape!s:15s} largest difference {apart:.0e}, {converged.sum()} of {len(converged)} converged; "
            f"pyidl {ours:.2f} ms, onnxruntime {theirs:.2f} ms"
        )
print(f"written to {FOLDER}")
