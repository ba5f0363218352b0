"""The doors to torch and ONNX beside pyidl itself.

``OMP_NUM_THREADS=1 python tests/benchmarks/doors.py``

Needs torch, onnx and onnxruntime, and torchidl if it is there. Milliseconds, on one
thread: the median of rounds in which all contenders take their turns; a turn is the
best of some calls.
"""

import time
import warnings

import numpy as np
import onnxruntime
import torch

import pyidl
from pyidl.interop.onnx import export
from pyidl.interop.torch import Module, from_torchidl

torch.set_num_threads(1)
TOL = 3e-6


def times(contenders, rounds=9, calls=5):
    """``{name: milliseconds}``."""
    found = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, f in contenders.items():
            turn = []
            for _ in range(calls):
                began = time.perf_counter()
                f()
                turn.append(time.perf_counter() - began)
            found[name].append(min(turn))
    return {name: 1e3 * float(np.median(t)) for name, t in found.items()}


def session(layer, **options):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        export(layer, **options).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def onnx_row(title, layer, shape):
    """Prediction by pyidl, by the loop, by a fixed number of steps.

    As many as the slowest sample of pyidl's plain iteration needs.
    """
    layer = layer.with_tol(TOL)
    U = np.random.default_rng(0).normal(size=shape).astype("float32")
    plain = layer.replace(forward=pyidl.solvers.Picard(tol=TOL))(U)[1].solutions
    steps = max(int(s.n_iter.max()) for s in plain)
    loop, fixed = session(layer, tol=TOL), session(layer, steps=steps)
    apart = max(np.abs(s.run(None, {"U": U})[0] - layer.predict(U)).max() for s in (loop, fixed))
    t = times(
        {
            "pyidl": lambda: layer.predict(U),
            "loop": lambda: loop.run(None, {"U": U}),
            "steps": lambda: fixed.run(None, {"U": U}),
        }
    )
    print(
        f"| {title} | {t['pyidl']:.2f} | {t['loop']:.2f} | {t['steps']:.2f} ({steps}) | "
        f"{apart:.0e} |"
    )


def torch_row(title, p, n, q, m):
    """Forward and the gradients of all parameters."""
    theirs = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torchidl import ImplicitModel

            theirs = ImplicitModel(p, q, n, bias=True, tol=TOL, grad_tol=TOL)
        torch.manual_seed(0)
        theirs.A.data.copy_(torch.randn(n, n) / n**0.5)
        layer = from_torchidl(theirs).with_tol(TOL)
    except ImportError:
        layer = pyidl.ImplicitModel(p, q, n, rng=0).with_tol(TOL)
    module, U = Module(layer), torch.randn(m, p)
    dY = torch.randn(m, q)

    def ours():
        # as after a step: checked, copied, its structure read; the module does so in
        # every call
        layer.params = layer.params
        _, pull = layer(U.numpy())
        pull(dY.numpy(), inputs=False)

    def through(net):
        def step():
            for parameter in net.parameters():
                parameter.grad = None
            net(U).backward(dY)

        return step

    contenders = {"pyidl": ours, "Module": through(module)} | (
        {} if theirs is None else {"torchidl": through(theirs)}
    )
    t = times(contenders)
    print(
        f"| {title} | {t['pyidl']:.2f} | {t['Module']:.2f} | "
        f"{t.get('torchidl', float('nan')):.2f} |"
    )


if __name__ == "__main__":
    print(
        "| prediction | pyidl | onnxruntime, loop | onnxruntime, steps | "
        "apart |\n|---|---|---|---|---|"
    )
    base = pyidl.ImplicitModel(100, 10, 200, rng=0)
    onnx_row("base model, n 200, one sample", base, (1, 100))
    onnx_row("base model, n 200, 1,000 samples", base, (1000, 100))
    slow = pyidl.ImplicitModel(100, 10, 200, rng=0)
    slow.params = {
        **slow.params,
        "A": np.abs(slow.params["A"])
        * (0.98 / np.abs(slow.params["A"]).sum(axis=1, keepdims=True)),
    }
    onnx_row("the same with row sums of 0.98, no cancellation", slow, (1000, 100))
    network = pyidl.ImplicitRNN(8, 4, hidden_dim=32, implicit_hidden_dim=64, rng=0)
    onnx_row("recurrent, n 64, 50 steps, one sequence", network, (1, 50, 8))
    onnx_row("recurrent, n 64, 50 steps, 100 sequences", network, (100, 50, 8))
    head = pyidl.ImplicitAttentionHead(64, 32, num_heads=2, block_size=128, rng=0)
    onnx_row("attention, 2 heads of 32, 16 tokens, one sequence", head, (1, 16, 64))
    onnx_row("attention, 2 heads of 32, 128 tokens, 8 sequences", head, (8, 128, 64))
    print("\n| forward and gradients | pyidl | its torch module | torchidl |\n|---|---|---|---|")
    torch_row("p 784, n 100, q 10, m 64", 784, 100, 10, 64)
    torch_row("p 20, n 50, q 5, one sample", 20, 50, 5, 1)
    torch_row("p 100, n 500, q 10, m 1,000", 100, 500, 10, 1000)
