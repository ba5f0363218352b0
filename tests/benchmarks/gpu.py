"""pyidl on a GPU: ``python tests/benchmarks/gpu.py [--report FILE] [--seconds 480] [section ...]``; a table in Markdown for every section.

Times are medians of several runs after a warm-up, between two events of CUDA. ``--device cpu --small`` tries the script where there is
no GPU, with sizes that mean nothing. A section that has no time left says so. What is measured, and what came of it: `docs/gpu.md`.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import pyidl
from pyidl import ImplicitModel, InfNorm, losses, optim, sim
from pyidl.backend import synchronize, to_device, to_numpy
from pyidl.solvers import Anderson, Auto, Jacobi, Picard

sys.path.insert(0, str(Path(__file__).parent))


class Bench:
    """The device, the clock, and the report."""

    def __init__(self, options):
        self.device, self.small, self.end = options.device, options.small, time.perf_counter() + options.seconds
        self.gpu = options.device.startswith("cuda")
        self.lines = []
        if self.gpu:
            import cupy

            self.xp = cupy
        else:
            self.xp = np

    def say(self, line=""):
        print(line, flush=True)
        self.lines.append(line)

    def table(self, title, *columns):
        self.say(f"\n### {title}\n")
        self.say("| " + " | ".join(columns) + " |")
        self.say("|" + "---|" * len(columns))

    def row(self, *cells):
        self.say("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.3g}" for cell in cells) + " |")

    def left(self):
        """Whether there is time for more."""
        return time.perf_counter() < self.end

    def seconds(self, call, repeats=5, inner=1, device=True):
        """The median time of a call, after one to warm up; with `inner`, of one of so many in a row."""
        call()
        times = []
        for _ in range(1 if self.small else repeats):
            if self.gpu and device:
                start, stop = self.xp.cuda.Event(), self.xp.cuda.Event()
                start.record()
                for _ in range(inner):
                    call()
                stop.record()
                stop.synchronize()
                times.append(self.xp.cuda.get_elapsed_time(start, stop) / 1e3 / inner)
            else:
                began = time.perf_counter()
                for _ in range(inner):
                    call()
                times.append((time.perf_counter() - began) / inner)
        return float(np.median(times))

    def there(self, a):
        return to_device(np.ascontiguousarray(a), self.device)

    def pool(self, free=False):
        """Bytes that CuPy's pool holds."""
        if not self.gpu:
            return 0
        pool = self.xp.get_default_memory_pool()
        if free:
            pool.free_all_blocks()
        return pool.total_bytes()


def gaussian(n, p, q, dtype, row_sum=0.9, diagonal=0.0):
    """A model whose rows of A have the same absolute sum, a part of it on the diagonal."""
    rng = np.random.default_rng(0)
    model = ImplicitModel(p, q, n, dtype=dtype, constraint=InfNorm(0.99), rng=0)
    A = rng.normal(size=(n, n))
    A *= (row_sum - diagonal) / np.abs(A).sum(axis=1, keepdims=True)
    model.params = {**model.params, "A": A + diagonal * np.eye(n)}
    return model


def inputs(m, p, dtype, seed=1):
    return np.random.default_rng(seed).normal(size=(m, p)).astype(dtype)


# ------------------------------------------------------------------------------------------------------------------------- sections


def products(b):
    """The solve against bare products of the same shape."""
    tf32 = "TF32" if os.environ.get("CUPY_TF32") == "1" else "float32"
    sizes = [(64, 32)] if b.small else [(512, 4096), (1024, 4096), (2048, 4096), (2048, 16384), (4096, 4096), (4096, 16384), (8192, 4096)]
    b.table(
        "Products: (steps of the slowest sample x bare product) / time of the solve",
        "dtype",
        "n",
        "m",
        "steps",
        "product, ms",
        "solve, ms",
        "rate",
    )
    for dtype in ("float32",) if tf32 == "TF32" else ("float32", "float64"):
        for n, m in sizes:
            if not b.left():
                return b.row("out of time", *[""] * 6)
            model = gaussian(n, 32, 8, dtype).replace(forward=Picard()).to(b.device)
            U, A = b.there(inputs(m, 32, dtype)), model.params["A"]
            X, out = b.there(inputs(m, n, dtype)), b.there(inputs(m, n, dtype))
            product = b.seconds(lambda X=X, A=A, out=out: b.xp.matmul(X, A.T, out=out), inner=10)
            steps = int(model.equilibrium(U).n_iter.max())
            solve = b.seconds(lambda model=model, U=U: model.equilibrium(U))
            b.row(tf32 if dtype == "float32" else dtype, str(n), str(m), str(steps), 1e3 * product, 1e3 * solve, steps * product / solve)
    if b.gpu and tf32 != "TF32":
        command = [sys.executable, __file__, "products", "--seconds", str(max(10, b.end - time.perf_counter()))]
        done = subprocess.run(command, env={**os.environ, "CUPY_TF32": "1"}, capture_output=True, text=True, check=False)
        for line in [row for row in done.stdout.splitlines() if row.startswith("| TF32")]:
            b.say(line)


def checks(b):
    """What a measurement costs: a step with one after every k steps, against steps alone."""
    sizes = [(64, 32)] if b.small else [(128, 64), (128, 4096), (1024, 1024), (2048, 4096)]
    b.table(
        "Measurements: time of a step / time of a step without",
        "n",
        "m",
        "step, us",
        "every step",
        "every 4",
        "every 16",
        "`Picard` (adaptive)",
    )
    for n, m in sizes:
        model = gaussian(n, 32, 8, "float32").replace(forward=Picard()).to(b.device)
        problem = model._cell().bind(b.there(inputs(m, 32, "float32")))

        def run(every, problem=problem, steps=64):
            here, there = problem.buffers() if problem.in_place else (None, None)
            _, x = problem.start(None, here)
            for k in range(1, steps + 1):
                y_image, image = problem.step(x, there)
                if every and k % every == 0:
                    problem.measure(x, y_image, image, 1e-30)
                x, here, there = image, there, here

        bare = b.seconds(lambda: run(0)) / 64
        shares = [b.seconds(lambda k=k: run(k)) / 64 / bare for k in (1, 4, 16)]
        steps = int(Picard()(problem).n_iter.max())
        adaptive = b.seconds(lambda problem=problem: Picard()(problem)) / steps / bare
        b.row(str(n), str(m), 1e6 * bare, *shares, adaptive)


def launches(b):
    """Where a step is bound by launches: against one bare product and one bare kernel, which is what it should be."""
    b.table("Small states: microseconds of a step", "n", "m", "step", "product + one elementwise kernel", "ratio")
    for n, m in [(16, 8)] if b.small else [(16, 64), (64, 64), (128, 64), (256, 64)]:
        model = gaussian(n, 8, 4, "float32").to(b.device)
        problem = model._cell().bind(b.there(inputs(m, 8, "float32")))
        X, A = b.there(inputs(m, n, "float32")), model.params["A"]
        out = b.xp.empty_like(X)

        def two(X=X, A=A, out=out):
            b.xp.matmul(X, A.T, out=out)
            b.xp.maximum(out, 0, out=out)

        buffers = problem.buffers()[0] if problem.in_place else None
        step = b.seconds(lambda problem=problem, X=X, buffers=buffers: problem.step(X, buffers), inner=50)
        bare = b.seconds(two, inner=50)
        b.row(str(n), str(m), 1e6 * step, 1e6 * bare, step / bare)


def crossover(b):
    """A prediction and a training step there, against the same on the CPU of this machine."""
    b.table(
        f"Beside NumPy on {os.cpu_count()} cores: time on the CPU / time there",
        "n",
        "m",
        "one prediction",
        "one training step",
        "training step there, ms",
    )
    for n in [32] if b.small else [64, 128, 256, 512, 1024, 2048]:
        for m in [16] if b.small else [1, 64, 1024, 16384]:
            if not b.left():
                return b.row("out of time", "", "", "", "")
            if n * m > 2**24:
                continue
            near = gaussian(n, 64, 10, "float32")
            U, t = inputs(m, 64, "float32"), np.random.default_rng(2).integers(0, 10, m)
            predict, train = [], []
            for model, V, s in ((near, U, t), (near.to(b.device), b.there(U), b.there(t))):
                far = model is not near
                predict.append(b.seconds(lambda model=model, V=V: model.predict(V), repeats=3, device=far))
                optimizer = optim.Adam(1e-3)
                train.append(b.seconds(lambda *_, model=model, V=V, s=s, o=optimizer: trained(model, V, s, o), repeats=3, device=far))
            b.row(str(n), str(m), predict[0] / predict[1], train[0] / train[1], 1e3 * train[1])


def trained(model, U, t, optimizer):
    """One step."""
    Y, pull = model(U)
    _, dY = losses.cross_entropy(Y, t)
    model.params = model.project(optimizer.step(model.params, pull(dY, inputs=False)[1]))


def peers(b):
    """A training step and a stiff solve against torchidl on the same card."""
    try:
        import torch
        from torchidl import ImplicitModel as Theirs
    except ImportError as error:
        return b.say(f"\n### Beside torchidl\n\nnot measured: {error}")
    place = "cuda" if b.gpu else "cpu"
    if b.gpu and not torch.cuda.is_available():
        return b.say("\n### Beside torchidl\n\nnot measured: this torch has no CUDA")
    warnings.simplefilter("ignore")
    b.table("Beside torchidl on the same device, tolerance 3e-6", "case", "pyidl, ms", "torchidl, ms", "ratio")
    cases = {
        "training step, n 100, m 64": (100, 64, 0.0),
        "training step, n 1000, m 4096": (1000, 4096, 0.0),
        "stiff, n 112, m 1000": (112, 1000, 0.95),
    }
    for name, (n, m, diagonal) in list(cases.items())[:1] if b.small else cases.items():
        near = gaussian(n, 784, 10, "float32", 0.985, diagonal).with_tol(3e-6)
        model, U, t = near.to(b.device), inputs(m, 784, "float32"), np.random.default_rng(2).integers(0, 10, m)
        net = Theirs(784, 10, n, kappa=0.99, tol=3e-6, mitr=5000, grad_mitr=5000).to(place)
        with torch.no_grad():
            for key in "ABCD":
                getattr(net, key).copy_(torch.tensor(to_numpy(model.params[key])))
        adam, optimizer = torch.optim.Adam(net.parameters()), optim.Adam(1e-3)
        V, s, W, r = b.there(U), b.there(t), torch.tensor(U, device=place), torch.tensor(t, device=place)

        def theirs(net=net, adam=adam, W=W, r=r):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(net(W), r).backward()
            adam.step()
            if b.gpu:
                torch.cuda.synchronize()

        def ours(model=model, V=V, s=s, optimizer=optimizer):
            trained(model, V, s, optimizer)
            synchronize(b.xp)

        mine, other = b.seconds(ours, device=False), b.seconds(theirs, device=False)
        b.row(name, 1e3 * mine, 1e3 * other, other / mine)


def states(b):
    """SIM: the sums, the factor, the steps."""
    n, p, m = (16, 20, 200) if b.small else (500, 784, 60_000)
    rng = np.random.default_rng(0)
    X, U, Z = (b.there(rng.normal(size=(m, k))) for k in (n, p, n))
    b.table(f"SIM: {n} states, {p} inputs, {m} samples, float64", "part", "ms")
    M = b.xp.concat([X, U], axis=1) if hasattr(b.xp, "concat") else b.xp.concatenate([X, U], axis=1)
    b.row("sums over the samples", 1e3 * b.seconds(lambda: sim.Moments.of(M, Z), repeats=3))
    moments = sim.Moments.of(M, Z)
    problem = sim.Problem.of(moments, sim.L1(1e-3), ball=n, radius=0.99)
    b.row("eigenvalues of the shared matrix", 1e3 * b.seconds(lambda: b.xp.linalg.eigh(problem.G), repeats=3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = sim.ADMM(tol=1e-4, max_iter=200)(problem)
        whole = b.seconds(lambda: sim.ADMM(tol=1e-4, max_iter=200)(problem), repeats=1)
    b.row(f"ADMM, {int(rows.n_iter.max())} steps, gap {float((rows.gap / rows.scale).max()):.0e}", 1e3 * whole)


def memory(b):
    """What the pool holds after a solve and its pullback, in states; and that it stays so."""
    n, m, steps = (32, 64, 20) if b.small else (1024, 16384, 10_000)
    b.table("Memory of the pool, in states of m x n", "solver", "n", "m", "forward", "and pullback")
    for solver in (Auto(), Picard(), Jacobi(), Anderson()):
        model = gaussian(n, 32, 8, "float32").replace(forward=solver).to(b.device)
        U, state = b.there(inputs(m, 32, "float32")), 4.0 * m * n
        b.pool(free=True)
        before = b.pool()
        Y, pull = model(U)
        synchronize(b.xp)
        forward = b.pool() - before
        pull(b.xp.ones_like(Y))
        synchronize(b.xp)
        b.row(type(solver).__name__, str(n), str(m), forward / state, (b.pool() - before) / state)
    if b.gpu:
        free, whole = (bytes_ / 2**30 for bytes_ in b.xp.cuda.runtime.memGetInfo())
        fits = f"at 12 states, m x n = {free * 2**30 / 48:.2g} fit in float32"
        b.say(f"\nThe card has {whole:.0f} GiB, {free:.0f} GiB of them free: {fits}.")
    model, optimizer = gaussian(64, 16, 10, "float32").to(b.device), optim.Adam(1e-3)
    U, t, sizes = b.there(inputs(64, 16, "float32")), b.there(np.random.default_rng(2).integers(0, 10, 64)), []
    for k in range(steps):
        trained(model, U, t, optimizer)
        if k in (steps // 10, steps - 1) or not b.left():
            sizes.append((k + 1, b.pool()))
        if not b.left():
            break
    b.say("\nThe pool after training steps: " + ", ".join(f"{size / 2**20:.1f} MiB after {k}" for k, size in sizes) + ".")


def rounding(b):
    """The same bits from run to run; float32 beside float64."""
    n, m = (16, 8) if b.small else (512, 1024)
    model = gaussian(n, 32, 8, "float32", 0.95).to(b.device)
    U = b.there(inputs(m, 32, "float32"))
    runs = []
    for _ in range(3):
        Y, pull = model(U)
        dU, grads = pull(b.xp.ones_like(Y))
        runs.append([to_numpy(a) for a in (Y, dU, *grads.values())])
    same = all(np.array_equal(a, c) for run in runs[1:] for a, c in zip(runs[0], run, strict=True))
    exact = model.astype("float64")
    Y, pull = exact(b.there(inputs(m, 32, "float64")))
    dU, grads = pull(b.xp.ones_like(Y))
    exact_run = [to_numpy(a) for a in (Y, dU, *grads.values())]
    b.table("Rounding", "what", "found")
    b.row("three runs give the same bits", str(same))
    for name, a, c in zip(("Y", "dU", *grads), runs[0], exact_run, strict=True):
        b.row(f"{name}, float32 beside float64, largest relative difference", float(np.abs(a - c).max() / np.abs(c).max()))


SECTIONS = {f.__name__: f for f in (products, checks, launches, crossover, peers, states, memory, rounding)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    b = Bench(options)
    b.say(f"pyidl {pyidl.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    if b.gpu:
        card = b.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
        b.say(f"CuPy {b.xp.__version__}, CUDA {b.xp.cuda.runtime.runtimeGetVersion()}, {card}")
    for name in options.sections or SECTIONS:
        try:
            SECTIONS[name](b) if b.left() else b.say(f"\n### {name}\n\nout of time")
        except Exception as error:  # the others are measured all the same
            b.say(f"\n{name} failed: {type(error).__name__}: {error}")
    if options.report:
        options.report.write_text("\n".join(b.lines) + "\n")


if __name__ == "__main__":
    main()
