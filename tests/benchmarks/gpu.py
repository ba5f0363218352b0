"""pyidl on a GPU, measured: one command, a Markdown file that grows section by section.

    python tests/benchmarks/gpu.py --out gpu.md                     all, in eight minutes
    python tests/benchmarks/gpu.py products launches --out gpu.md   some sections
    python tests/benchmarks/gpu.py --dry --out gpu.md               tiny sizes, on NumPy

It takes at most eight minutes; a dry run asks whether every section runs.

Times are medians after a warm-up, by CUDA events. A section that fails says so in the
file, and the next one begins. Peers (torch with torchidl, jaxopt) are measured where
they are installed; torch's profiler also counts the kernels.
"""

import argparse
import importlib.util
import inspect
import os
import platform
import subprocess
import sys
import time
import traceback
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import pyidl
from pyidl import activations, losses, optim, sim, solvers
from pyidl.arrays.backend import to_numpy
from pyidl.layers import Embedding, ImplicitModel, Linear, Sequential
from pyidl.matrices.full import Full
from pyidl.recurrent import ImplicitRNN
from pyidl.solvers.cost import Costs
from pyidl.solvers.image import Times
from pyidl.solvers.loop import iterate
from pyidl.solvers.problem import Affine

KIND = {"float32": np.float32, "float64": np.float64}


@dataclass
class Bench:
    """Where is measured, for how long, and where it is written."""

    xp: object
    out: Path
    limit: float
    dry: bool
    began: float = field(default_factory=time.perf_counter)

    @property
    def card(self):
        return self.xp.__name__ == "cupy" and hasattr(self.xp.cuda, "Event")

    def left(self):
        return self.limit - (time.perf_counter() - self.began)

    def sizes(self, *real, dry=(8, 16)):
        """Sizes of a sweep; it ends where the time does."""
        for size in dry if self.dry else real:
            if self.left() < 5 and not self.dry:
                self.say("\nThe time was up here.")
                return
            yield size

    def say(self, text):
        print(text, flush=True)
        with self.out.open("a") as file:
            file.write(f"{text}\n")

    def table(self, *heads):
        self.say("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        return lambda *cells: self.say(
            "| " + " | ".join(c if isinstance(c, str) else f"{c:.4g}" for c in cells) + " |"
        )

    def there(self, a, dtype="float32"):
        return self.xp.asarray(np.asarray(a, dtype=KIND[dtype]))

    def seconds(self, run, budget=0.3, least=3, warm=2):
        """The median time of a call, after two that do not count.

        In the first, kernels are compiled.
        """
        for _ in range(warm):
            run()
        self.wait()
        times, began = [], time.perf_counter()
        while len(times) < least or (time.perf_counter() - began < budget and len(times) < 200):
            times.append(self.once(run))
            if self.dry:
                break
        return float(np.median(times))

    def once(self, run):
        if not self.card:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        first, second = self.xp.cuda.Event(), self.xp.cuda.Event()
        first.record()
        run()
        second.record()
        second.synchronize()
        return self.xp.cuda.get_elapsed_time(first, second) / 1e3

    def wait(self):
        if self.card:
            self.xp.cuda.Device().synchronize()

    def pool(self):
        """Bytes that CuPy's pool holds; 0 elsewhere."""
        return self.xp.get_default_memory_pool().total_bytes() if self.card else 0

    def peak(self, run):
        """The most bytes that a call needs beyond what is there."""
        if self.card:
            pool = self.xp.get_default_memory_pool()
            run()
            pool.free_all_blocks()
            before = pool.total_bytes()
            run()
            return pool.total_bytes() - before
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak


def model(n, *, dtype="float32", p=64, q=16, kappa=0.9, **options):
    return ImplicitModel(p, q, n, dtype=dtype, constraint=pyidl.InfNorm(kappa), rng=0, **options)


def problem(bench, n, m, dtype="float32", kappa=0.9, nonnegative=False):
    """``X = relu(X A^T + Z)`` with row sums kappa.

    Nonnegative, so its residual falls by kappa a step and no faster.
    """
    A = numbers(n, n, dtype)
    A = np.abs(A) if nonnegative else A
    A *= (kappa / np.abs(A).sum(axis=1, keepdims=True)).astype(dtype)
    return Affine(
        Full(bench.there(A, dtype)), bench.there(numbers(m, n, dtype), dtype), activations.relu
    )


def numbers(m, n, dtype):
    """Normal numbers that repeat after 1048573.

    Large arrays would take longer to draw than to multiply.
    """
    return np.resize(
        np.random.default_rng(0).normal(size=min(m * n, 1_048_573)).astype(dtype), (m, n)
    )


def adjoint(bench, p):
    """The adjoint of a problem, at slopes of which half are 1."""
    dtype = str(p.like.dtype)
    G = numbers(*p.like.shape, dtype)
    S = (np.roll(G, 1) > 0).astype(dtype)
    image, reference = Times(bench.there(S, dtype)), np.abs(S * G).max(axis=1)
    return Affine(p.matrix.T, bench.there(G, dtype), image, reference)


def stepping(bench, p):
    """One step of Picard's iteration, and the same bare product.

    A call that takes the one, and a call that makes the other.
    """
    out, y = p.buffers()[0], bench.xp.empty(p.like.shape, dtype=p.like.dtype)
    x = p.start()[1]
    At = p.matrix.A.T
    return lambda: p.step(x, out), lambda: bench.xp.matmul(x, At, out=y)


# ----------------------------------------------------------------------------- sections


def products(bench):
    """The rate of a step, forward and adjoint, beside a bare product of the same shape.

    Goal: 85 % for n >= 2048, m >= 4096.
    """
    tf32 = os.environ.get("CUPY_TF32") == "1"
    row = bench.table("dtype", "n", "m", "product, TFLOP/s", "step, share", "adjoint step, share")
    for dtype in ("float32",) if tf32 else ("float32", "float64"):
        for n in bench.sizes(512, 2048, 8192):
            for m in bench.sizes(256, 4096, 16384):
                p = problem(bench, n, m, dtype)
                (step, bare), (back, bare_back) = (
                    stepping(bench, p),
                    stepping(bench, adjoint(bench, p)),
                )
                product = bench.seconds(bare, 0.1)
                share = (
                    product / bench.seconds(step, 0.1),
                    bench.seconds(bare_back, 0.1) / bench.seconds(back, 0.1),
                )
                row(
                    dtype + (" (TF32)" if tf32 else ""),
                    str(n),
                    str(m),
                    2e-12 * n * n * m / product,
                    *share,
                )
    if bench.card and not tf32:
        bench.say("\nThe same with CUPY_TF32=1:")
        command = [
            sys.executable,
            __file__,
            "products",
            "--bare",
            "--out",
            str(bench.out),
            "--limit",
            str(min(60.0, bench.left())),
        ]
        subprocess.run(
            [*command, *["--dry"] * bench.dry], env={**os.environ, "CUPY_TF32": "1"}, check=False
        )


def checks(bench):
    """What looking at the residual costs.

    Time per step, measured every step, every 4, every 16, and as a solve plans it
    itself.
    """
    row = bench.table(
        "n",
        "m",
        "never, us a step",
        "every step",
        "every 4",
        "every 16",
        "as planned",
        "steps",
        "measurements",
    )
    for n in bench.sizes(128, 1024, 4096):
        for m in bench.sizes(64, 4096):
            p = problem(bench, n, m, kappa=0.98, nonnegative=True)
            count = 16 if bench.dry else 64

            def loop(every, p=p, count=count):
                here, there = p.buffers()
                x = p.start(None, here)[1]
                for k in range(1, count + 1):
                    y, image = p.step(x, there)
                    if every and k % every == 0:
                        p.measure(x, y, image)
                    x, here, there = image, there, here

            times = [
                1e6 * bench.seconds(lambda every=every: loop(every)) / count
                for every in (0, 1, 4, 16)
            ]
            looks = []
            watched = Watched(p.matrix, p.offset, p.map)
            watched.looks = looks
            steps = int(solvers.Picard()(watched).n_iter.max())
            row(
                str(n),
                str(m),
                *times,
                1e6 * bench.seconds(lambda p=p: solvers.Picard()(p)) / steps,
                str(steps),
                str(len(looks)),
            )


class Watched(Affine):
    """A problem that counts its measurements."""

    looks: list

    def measure(self, *arguments):
        self.looks.append(1)
        return super().measure(*arguments)


def launches(bench):
    """Kernels a step, counted by torch's profiler (which sees CuPy's too); goal: 2.

    And time per step, for small n that of launching.
    """
    steps = 10 if bench.dry else 100
    if bench.card and importlib.util.find_spec("torch"):
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        row = bench.table("solve", "kernels a step")
        p = problem(bench, 256, 256)
        U, target = (
            bench.there(np.random.default_rng(0).normal(size=(64, 64))),
            bench.xp.asarray(np.arange(64) % 16),
        )
        tasks = {"forward": stepping(bench, p)[0], "adjoint": stepping(bench, adjoint(bench, p))[0]}
        for name, step in {
            **tasks,
            "training step": training(moved(bench, model(100)), U, target),
        }.items():
            step()
            bench.wait()
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                for _ in range(steps):
                    step()
                bench.wait()
            row(
                name,
                sum(
                    event.device_type == DeviceType.CUDA and "Mem" not in event.name
                    for event in seen.events()
                )
                / steps,
            )
    else:
        bench.say(
            "\nNot counted: torch, whose profiler counts kernels, is not installed, "
            "or there is no card."
        )
    row = bench.table(
        "n",
        "m",
        "step, us",
        "bare product, us",
        "Anderson step, us",
        "in plain steps",
        "assumed by Auto",
    )
    for n in bench.sizes(32, 128, 512, 2048, 8192):
        for m in bench.sizes(1, 64, 1024):
            p = problem(bench, n, m)
            step, bare = stepping(bench, p)
            plain = bench.seconds(step, 0.1)
            mixed = bench.seconds(lambda p=p: fixed(p, steps)) / steps
            row(
                str(n),
                str(m),
                1e6 * plain,
                1e6 * bench.seconds(bare, 0.1),
                1e6 * mixed,
                mixed / plain,
                assumed(m, n, bench.card),
            )


def assumed(m, n, card):
    """The same as `Auto` counts it: a plain step, and Anderson's, in plain steps."""
    costs = Costs.of_launches(1) if card else Costs.of(m, n, "f", 1)
    return (costs.step + costs.mix) / costs.step


def fixed(p, steps):
    """So many accelerated steps."""
    from pyidl.solvers.anderson import Mixing

    mixing = Mixing(p, 3)
    here, there = p.buffers()
    y, x = p.start(None, here)
    for _ in range(steps):
        y_image = p.pre(x, there[0])
        y = mixing(y, y_image)
        x = p.image(y, out=here[1])


def fusion(bench):
    """What `fused` brings.

    A step whose phi is a part of one kernel, beside array functions one after the
    other.
    """
    row = bench.table("phi", "n", "m", "step, us", "step without fused, us", "in fused steps")
    for phi in (activations.relu, activations.tanh, activations.gelu):
        plain = activations.Activation(
            "plain",
            phi.phi.function,
            phi.dphi.function,
            slope_range=phi.slope_range,
            takes_out=True,
        )
        for n, m in ((128, 64), (2048, 4096)) if not bench.dry else ((8, 8),):
            p = problem(bench, n, m)
            one, many = (
                bench.seconds(stepping(bench, Affine(p.matrix, p.offset, a))[0], 0.1)
                for a in (phi, plain)
            )
            row(phi.name, str(n), str(m), 1e6 * one, 1e6 * many, many / one)


def crossover(bench):
    """From which n and m a GPU pays.

    Predict, and a training step with Adam, beside NumPy on this machine's CPU.
    """
    rng = np.random.default_rng(0)
    row = bench.table(
        "n", "m", "predict, ms", "on the CPU", "ratio", "training step, ms", "on the CPU", "ratio"
    )
    for n in bench.sizes(64, 256, 1024, 4096):
        for m in bench.sizes(1, 64, 1024, 8192):
            if 2.0 * n * n * m > 2e10:  # seconds on a CPU
                continue
            near, U, target = (
                model(n),
                rng.normal(size=(m, 64)).astype(np.float32),
                rng.integers(0, 16, m),
            )
            far = moved(bench, near)
            V, labels = bench.there(U), bench.xp.asarray(target)
            times = [
                bench.seconds(lambda far=far, V=V: far.predict(V)),
                host_seconds(bench, lambda near=near, U=U: near.predict(U)),
            ]
            times += [
                bench.seconds(training(far, V, labels)),
                host_seconds(bench, training(near, U, target)),
            ]
            row(
                str(n),
                str(m),
                1e3 * times[0],
                1e3 * times[1],
                times[1] / times[0],
                1e3 * times[2],
                1e3 * times[3],
                times[3] / times[2],
            )


def moved(bench, layer):
    """A layer with its parameters where is measured."""
    return layer.to("cuda") if bench.xp.__name__ == "cupy" else layer.replace()


def training(layer, U, target):
    """A call that trains a copy of the layer by one step."""
    twin, adam = layer.replace(), optim.Adam(1e-3)

    def run():
        Y, pull = twin(U)
        _, dY = losses.cross_entropy(Y, target)
        twin.params = twin.project(adam.step(twin.params, pull(dY, inputs=False)[1]))

    return run


def host_seconds(bench, run):
    return Bench(np, bench.out, bench.limit, bench.dry).seconds(run, budget=0.2, least=2, warm=1)


def peers(bench):
    """Solves against peers on the same card.

    A training step's against torchidl (goal: 3 times), and a stiff one against torchidl
    and jaxopt (goal: 20 times).
    """
    rng = np.random.default_rng(0)
    row = bench.table("case", "n", "m", "pyidl, ms", "torchidl, ms", "jaxopt, ms")
    for case, n, m, kappa in (
        (("easy", 512, 512, 0.9), ("stiff", 512, 256, 0.99))
        if not bench.dry
        else (("stiff", 16, 8, 0.9),)
    ):
        A = np.abs(rng.normal(size=(n, n))) if case == "stiff" else rng.normal(size=(n, n))
        A *= kappa / np.abs(A).sum(axis=1, keepdims=True)
        arrays = [
            a.astype(np.float32)
            for a in (
                A,
                rng.normal(size=(n, n)) / n**0.5,
                rng.normal(size=(m, n)),
                rng.normal(size=(m, n)),
            )
        ]
        ours = bench.seconds(by_pyidl(bench, *arrays))
        row(
            case,
            str(n),
            str(m),
            1e3 * ours,
            *(peer(bench, run, arrays) for run in (by_torchidl, by_jaxopt)),
        )


def peer(bench, build, arrays):
    """Milliseconds, or why there are none."""
    if not bench.card:
        return "no card"
    try:
        return 1e3 * bench.seconds(build(*arrays), least=3)
    except Exception as error:
        return f"not measured ({type(error).__name__}: {str(error)[:60]})"


def by_pyidl(bench, A, B, U, G):
    A, B, U, G = map(bench.there, (A, B, U, G))

    def run():
        p = Affine(Full(A), U @ B.T, activations.relu)
        x = solvers.Auto(tol=1e-5)(p)
        S = activations.relu.dphi(x.pre)
        reference = to_numpy(bench.xp.max(bench.xp.abs(S * G), axis=1)).astype(float)
        v = solvers.Auto(tol=1e-5)(Affine(Full(A).T, G, Times(S), reference)).value
        return v.T @ x.value, v.T @ U, v @ B

    return run


def by_torchidl(A, B, U, G):
    import torch
    from torchidl.implicit_function import ImplicitFunction

    A, B, U = (torch.tensor(a, device="cuda", requires_grad=True) for a in (A, B, U.T.copy()))
    G = torch.tensor(G.T.copy(), device="cuda")

    def run():
        ImplicitFunction.set_parameters(
            mitr=2000, grad_mitr=2000, tol=1e-5, grad_tol=1e-5, kappa=0.99
        )
        ImplicitFunction.apply(A, B, torch.zeros_like(G), U).backward(G)
        torch.cuda.synchronize()

    return run


def by_jaxopt(A, B, U, G):
    import jax
    import jax.numpy as jnp
    from jaxopt import FixedPointIteration

    if jax.default_backend() != "gpu":
        raise RuntimeError("jax has no GPU")
    A, B, U, G = map(jnp.asarray, (A, B, U, G))
    solver = FixedPointIteration(
        lambda x, A, B, U: jnp.maximum(x @ A.T + U @ B.T, 0), tol=1e-5 * G.size**0.5, maxiter=2000
    )
    gradient = jax.jit(
        jax.grad(
            lambda A, B, U: jnp.sum(solver.run(jnp.zeros_like(G), A, B, U).params * G), (0, 1, 2)
        )
    )
    return lambda: jax.block_until_ready(gradient(A, B, U))


def sims(bench):
    """State-driven training, for k weights of k rows.

    Gram matrix, factorisation, and a step of ADMM and FISTA with its proximal map.
    """
    row = bench.table(
        "k",
        "Gram of 4 k samples, ms",
        "factors, ms",
        "ADMM step, ms",
        "FISTA step, ms",
        "proximal map, ms",
    )
    for k in bench.sizes(512, 2048, 4096):
        R = bench.there(np.random.default_rng(0).normal(size=(4 * k, k)), "float64")
        task = sim.RowProblem.of(sim.Moments.of(R, R), sim.L1(1e-2), ball=k, radius=0.9)
        steps = [
            s._Steps(task, task.zeros())
            for s in (sys.modules["pyidl.sim.solvers.admm"], sys.modules["pyidl.sim.solvers.fista"])
        ]
        runs = [lambda R=R: sim.Moments.of(R, R), lambda task=task: bench.xp.linalg.eigh(task.G)]
        runs += [lambda s=s: s.step(1) for s in steps] + [lambda task=task: task.prox(task.H, 0.1)]
        row(str(k), *(1e3 * bench.seconds(run, 0.2, least=2) for run in runs))


def memory(bench):
    """Memory of a solve in arrays of the size of the state, and the largest batch that fits."""
    row = bench.table("call", "state-sized arrays")
    n, m = (16, 32) if bench.dry else (2048, 16384)
    p, q = problem(bench, n, m), None
    q = adjoint(bench, p)
    state = p.like.size * p.like.dtype.itemsize
    for name, run in {
        "forward solve, Picard": lambda: solvers.Picard()(p),
        "forward solve, Auto": lambda: solvers.Auto()(p),
        "forward solve, Anderson": lambda: solvers.Anderson()(p),
        "adjoint solve, Picard": lambda: solvers.Picard()(q),
    }.items():
        row(name, bench.peak(run) / state)
    if not bench.card:
        return
    row = bench.table("n", "largest m that fits (powers of 2)", "states, GiB")
    for n in bench.sizes(2048, 8192):
        fits, m = 0, 2**14
        while bench.left() > 20 and not (bench.dry and m > 2**15) and fits_in(bench, n, m):
            fits, m = m, 2 * m
        row(str(n), str(fits), 4 * n * fits / 2**30)


def fits_in(bench, n, m):
    """Whether three steps for a batch of zeros fit."""
    xp, pool = bench.xp, bench.xp.get_default_memory_pool()
    try:
        p = Affine(
            Full(xp.zeros((n, n), dtype=xp.float32)),
            xp.ones((m, n), dtype=xp.float32),
            activations.relu,
        )
        iterate(p, None, None, None, 3, "Picard")
    except xp.cuda.memory.OutOfMemoryError:
        return False
    finally:
        p = None
        pool.free_all_blocks()
    return True


def leaks(bench):
    """The pool over 10,000 steps of solves and training: flat, or it leaks."""
    layer, steps, sizes = moved(bench, model(64)), 0, []
    U, target = (
        bench.there(np.random.default_rng(0).normal(size=(64, 64))),
        bench.xp.asarray(np.arange(64) % 16),
    )
    train = training(layer, U, target)
    wanted = 100 if bench.dry else 10_000
    while steps < wanted and (bench.dry or bench.left() > 5):
        train()
        steps += int(layer(U)[1].forward.n_iter.max()) * 3
        sizes.append(bench.pool())
    row = bench.table("steps", "pool after a tenth, MiB", "at the end, MiB")
    row(str(steps), sizes[len(sizes) // 10] / 2**20, sizes[-1] / 2**20)


def determinism(bench):
    """Twice the same: are all parameters equal to the last bit?"""
    rng = np.random.default_rng(0)
    rnn, sequences = (
        ImplicitRNN(8, 16, 8, 32, return_sequences=False, rng=0),
        rng.normal(size=(32, 6, 8)).astype(np.float32),
    )
    tokens = rng.integers(0, 50, (16, 12))
    cases = {
        "implicit model": (
            model(64),
            rng.normal(size=(64, 64)).astype(np.float32),
            rng.integers(0, 16, 64),
        ),
        "recurrent": (rnn, sequences, rng.integers(0, 16, 32)),
        "embedding": (
            Sequential(Embedding(50, 16, rng=0), Linear(16, 50, rng=1)),
            tokens,
            tokens[:, ::-1].copy(),
        ),
    }
    row = bench.table("ten training steps", "equal to the last bit")
    for name, (layer, U, target) in cases.items():
        V, labels, ends = bench.xp.asarray(U), bench.xp.asarray(target), []
        for _ in range(2):
            twin = moved(bench, layer)
            adam = optim.Adam(1e-2)
            for _ in range(10):
                Y, pull = twin(V)
                twin.params = twin.project(
                    adam.step(twin.params, pull(losses.cross_entropy(Y, labels)[1])[1])
                )
            ends.append({key: to_numpy(a) for key, a in twin.params.items()})
        row(
            name,
            "yes" if all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0]) else "NO",
        )


def accuracy(bench):
    """float32 beside float64, and the card beside the CPU.

    Differences of states and gradients, in parts of the largest entry.
    """
    rng = np.random.default_rng(0)
    row = bench.table(
        "n",
        "kappa",
        "states, float32 to float64",
        "gradient of A",
        "states, card to CPU (float64)",
        "gradient of A",
    )
    for n in bench.sizes(128, 1024):
        for kappa in (0.5, 0.9, 0.99):
            U, dY = rng.normal(size=(64, 64)), rng.normal(size=(64, 16))
            near = model(n, dtype="float64", kappa=kappa)
            ends = []
            for layer, xp in (
                (near, np),
                (moved(bench, near), bench.xp),
                (moved(bench, near.astype("float32")), bench.xp),
            ):
                _, pull = layer(xp.asarray(U))
                ends.append(
                    (
                        to_numpy(pull.forward.value).astype(float),
                        to_numpy(pull(xp.asarray(dY))[1]["A"]).astype(float),
                    )
                )
            row(
                str(n),
                str(kappa),
                *(apart(ends[2][i], ends[1][i]) for i in range(2)),
                *(apart(ends[1][i], ends[0][i]) for i in range(2)),
            )


def apart(a, b):
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


SECTIONS = [
    launches,
    fusion,
    accuracy,
    determinism,
    leaks,
    checks,
    products,
    crossover,
    memory,
    sims,
    peers,
]


def where(bench):
    """The machine, in words."""
    if not bench.card:
        where = f"{bench.xp.__name__} on {platform.machine()}"
        return f"{where}: a dry run, no figure of which means anything"
    cuda, device = bench.xp.cuda, bench.xp.cuda.Device()
    name = cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return (
        f"{name}, {device.mem_info[1] / 2**30:.0f} GiB, "
        f"CUDA {cuda.runtime.runtimeGetVersion()}, driver {cuda.runtime.driverGetVersion()}, "
        f"CuPy {bench.xp.__version__}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}"
    )


def main(arguments, xp=None):
    """Run the sections; return the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sections", nargs="*", help=", ".join(section.__name__ for section in SECTIONS)
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--limit", type=float, default=480.0, help="seconds")
    parser.add_argument("--dry", action="store_true", help="NumPy and tiny sizes")
    parser.add_argument("--bare", action="store_true", help="append, without a head")
    options = parser.parse_args(arguments)
    if xp is None:
        xp = np if options.dry else importlib.import_module("cupy")
    unknown = set(options.sections) - {section.__name__ for section in SECTIONS}
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    bench, failed = Bench(xp, options.out, options.limit, options.dry), 0
    if not options.bare:
        options.out.write_text("")
        bench.say(f"Measured by `tests/benchmarks/gpu.py` on {where(bench)}.")
    for section in SECTIONS:
        if options.sections and section.__name__ not in options.sections:
            continue
        if not options.bare:
            bench.say(f"\n## {section.__name__}\n\n{inspect.getdoc(section)}")
        began = time.perf_counter()
        try:
            section(bench)
        except Exception:
            failed += 1
            bench.say(f"\nFAILED:\n\n```text\n{traceback.format_exc()}```")
        print(f"({time.perf_counter() - began:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
