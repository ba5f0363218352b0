"""Implicit layers as ONNX files, run by onnxruntime.

``python examples/onnx_export.py``; the extra `onnx`.

A classifier, a recurrent network and a transformer block. Either each solve is a loop
that ends at a tolerance, and the file says for every sample whether it did; or it is a
fixed number of steps, as many as the certificate asks for.
"""

from pathlib import Path

import numpy as np
import onnxruntime

import pyidl
from pyidl.interop.onnx import export

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
rng = np.random.default_rng(0)
models = {
    "classifier": (
        pyidl.Sequential(
            pyidl.Linear(64, 30, rng=0),
            pyidl.activations.tanh,
            pyidl.ImplicitModel(30, 10, 60, rng=1),
        ),
        rng.normal(size=(100, 64)),
    ),
    "recurrent": (
        pyidl.ImplicitRNN(3, 2, hidden_dim=16, implicit_hidden_dim=24, rng=2),
        rng.normal(size=(20, 50, 3)),
    ),
    "language model": (
        pyidl.Sequential(
            pyidl.Embedding(27, 32, rng=3),
            pyidl.PositionEmbedding(40, 32, rng=4),
            pyidl.ImplicitTransformerBlock(32, 4, block_size=40, rng=5),
            pyidl.LayerNorm(32),
            pyidl.Linear(32, 27, rng=6),
        ),
        rng.integers(27, size=(4, 40)),
    ),
}
for name, (model, U) in models.items():
    file = OUTPUT / f"{name.replace(' ', '_')}.onnx"
    export(model, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    U = U if U.dtype == np.int64 else U.astype("float32")
    Y, converged = session.run(None, {"U": U})
    print(
        f"{file.name}: {converged.sum()} of {len(U)} samples converged; "
        f"largest difference {np.abs(Y - model.predict(U)).max():.1e}"
    )

# A fixed number of steps: those after which the certificate puts the residual of every
# input below 1e-5. Entries of the first step are at most 1 in size, as those of tanh
# are, and norms grow with the entries.
model = pyidl.ImplicitModel(
    30, 10, 60, activation=pyidl.activations.tanh, constraint=pyidl.wellposed.InfNorm(0.5), rng=1
)
certificate = model.certificate()
steps = certificate.steps(1e-5, first=float(certificate.norm(np.ones((1, 60)))[0]))
file, U = OUTPUT / "fixed.onnx", rng.normal(size=(100, 30)).astype("float32")
export(model, file, steps=steps)
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
print(
    f"fixed.onnx: {steps} steps; largest difference "
    f"{np.abs(session.run(None, {'U': U})[0] - model.predict(U)).max():.1e}"
)
