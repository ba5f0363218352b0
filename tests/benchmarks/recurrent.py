"""The recurrent network beside its peers, and beside a floor in plain NumPy.

    python tests/benchmarks/recurrent.py                  everything but `counts`
    python tests/benchmarks/recurrent.py training floor   some of it
    python tests/benchmarks/recurrent.py --rounds 3       fewer turns

training  a training step on 16 sequences of 150 steps, 16 / 16 units: pyidl, torchidl,
          LSTM and GRU of torch with 16 units, each with all of torch's threads and with
          one; and the floor. GunPoint where the package aeon is, else smooth series
large     an epoch of 5,964 windows of 59 steps, hidden 22, implicit 20, full batch:
          pyidl, torchidl and the floor
single    one sequence of 150 and of 1,000 steps, forward
floor     pyidl against the floor (`recurrent_floor.py`), forward and backward, over
          m, T and n, and for a nonnegative A with row sums of 0.9
counts    calls of Python functions, and of built-in ones, and rounds, a time step

All are float32 and in turns; times are medians, +- half the interquartile range.
Training and `large` run at a tolerance of 3e-6 (that of torchidl; its adjoint one is
that divided by m, since cotangents are), `single` and `floor` at pyidl's default.

Each way of the floor is held to float64 before it is timed: H within 1e-5 of its
largest entry, every gradient within 1e-4, both times 1 / (1 - the spectral radius of
|A|), what a residual can grow to. The fastest of the ways that agree is the floor.
Rounds a step are the fewest that meet the tolerance, found beforehand. In `training`
and `large` the floor measures all its residuals as well; alone only its blocks do.
"""

import argparse
import os
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import recurrent_floor as plain
from latency import count_calls
from series import locate, read
from timing import ROUNDS, alternate

from pyidl import ImplicitRNN, losses, optim
from pyidl.wellposed import InfNorm

TOL = 3e-6
DEFAULT = 1e-6
"""That of pyidl in float32."""

SHAPES = [(m, 150, n, "") for n in (16, 64) for m in (1, 4, 16, 64, 256)]
SHAPES += [(1, 1000, 16, ""), *((m, 150, 16, "slow") for m in (1, 16, 64))]
"""m, T, n = r, and whether A is the slow one."""


def table(title, head, rows):
    """Print a table in Markdown."""
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def ms(time):
    """``median +- spread`` in milliseconds."""
    return f"{1e3 * time[0]:.2f} +- {1e3 * time[1]:.2f}"


def smooth(m, T, seed=0):
    """Sines of one to four periods, (m, T, 1)."""
    rng = np.random.default_rng(seed)
    turns = rng.uniform(1, 4, (m, 1)) * np.linspace(0, 1, T) + rng.random((m, 1))
    return np.sin(2 * np.pi * turns).astype("f4")[:, :, None]


def sequences(m, T):
    """``(U, t, where from)``: m series of T steps, and their classes."""
    if T == 150 and m <= 50 and (path := locate("GunPoint", "TRAIN")):
        U, t = read(path)
        return np.stack(U[:m]).astype("f4"), t[:m], "GunPoint"
    return smooth(m, T), np.arange(m) % 2, "sines (GunPoint not found)"


# -------------------------------------------------------------------------- the floor


@dataclass(frozen=True)
class Way:
    """How the floor goes through time: by steps, or by blocks of `width` steps."""

    rounds: int
    split: bool = False
    width: int = 0
    doubling: bool = False

    def __str__(self):
        if self.width:
            scan = "doubling" if self.doubling else "scan"
            return f"blocks of {self.width}, {self.rounds} rounds a {scan}"
        return f"steps, K = {self.rounds}, {3 if self.split else 2} calls"


def forward(way, M, n, U, tol=DEFAULT):
    """What `plain.steps` or `plain.blocks` returns, as a tuple."""
    if way.width:
        return plain.blocks(M, n, U, way.width, way.rounds, way.doubling, tol)
    return (plain.steps(M, n, U, way.rounds, way.split),)


def backward(way, M, n, found, dH, tol=DEFAULT):
    """The gradient of M; `found` is that of `forward`, by the same kind of way."""
    if way.width:
        X, H, u = found
        V, G = plain.back_blocks(M, n, X, dH, way.width, way.rounds, way.doubling, tol)
        return plain.gradient_of_blocks(V, G, X, H, u)
    return plain.gradient(
        plain.back_steps(M, n, found[0], dH, way.rounds, way.split, tol), found[0]
    )


def rounds_needed(enough):
    """The fewest rounds with which all residuals are small enough."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > 4096:
            raise RuntimeError("4,096 rounds a step do not meet the tolerance")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def step_rounds(M, n, U, dH, tol):
    """Those of the way by steps, forward and backward."""
    ahead = rounds_needed(lambda k: plain.met(M, n, plain.steps(M, n, U, k, False), tol))
    S = plain.steps(M, n, U, ahead, False)
    back = rounds_needed(
        lambda k: plain.adjoint_met(M, n, S, plain.back_steps(M, n, S, dH, k, False, tol), tol),
    )
    return ahead, back


def ways(m, T, n, rounds):
    """What is tried, where a step by itself needs so many rounds."""
    largest = max(1, min(T, 32_000 // (m * n)))
    found = [Way(rounds, split) for split in (False, True)]
    for width in sorted({min(16, T), min(64, T), largest, T}):
        if width * m * n <= 64_000:
            for inner in sorted({4, max(4, rounds // 10)}):
                found += [Way(inner, width=width, doubling=d) for d in (False, True)]
    return found


@dataclass(frozen=True)
class Truth:
    """H and the gradients in float64, and what residuals can grow to."""

    n: int
    p: int
    H: np.ndarray
    grads: dict
    gain: float

    @classmethod
    def of(cls, model, U, dY):
        """By pyidl; an error if the model as it is, in float32, is not as close."""
        (_, exact), (_, pull) = model.astype("float64")(U), model(U)
        H, grads = np.asarray(exact.hidden), exact(dY, inputs=False)[1]
        growth = float(np.abs(np.linalg.eigvals(np.abs(model.params["A"]))).max())
        n, p = model.implicit_hidden_dim, model.input_dim
        truth = cls(n, p, H, grads, 1 / (1 - growth))
        if not truth.close(pull.hidden, pull(dY, inputs=False)[1]):
            raise RuntimeError("float32 is too far from float64: nothing to compare with")
        return truth

    def distance_of(self, H):
        """That of H, relative to the largest entry."""
        return float(np.abs(H - self.H).max() / np.abs(self.H).max())

    def distance(self, grads):
        """The largest of the gradients' relative distances, but for the read-out's."""
        return max(
            float(np.abs(grads[key] - self.grads[key]).max() / np.abs(self.grads[key]).max())
            for key in self.grads
            if key not in "Ee"
        )

    def close(self, H, grads):
        """Whether H, (m, T, r), and the gradients, if there are any, are right."""
        right = self.distance_of(H) <= 1e-5 * self.gain
        return right and (grads is None or self.distance(grads) <= 1e-4 * self.gain)

    def accepts(self, found, dM):
        """The same, of what a way has found."""
        H = found[1][1:] if len(found) > 1 else found[0][1:, self.n : self._rows()].swapaxes(1, 2)
        return self.close(H.swapaxes(0, 1), None if dM is None else self.parts(dM))

    def _rows(self):
        return self.n + self.H.shape[2]

    def parts(self, dM):
        """The gradients of A, B, C and D, and of b and d where there are some."""
        n, p, nr = self.n, self.p, self._rows()
        grads = {"A": dM[:n, :n], "C": dM[n:, :n]}
        for key, rows in (("B", dM[:n]), ("D", dM[n:])):
            grads[key] = np.concatenate([rows[:, nr : nr + p], rows[:, n:nr]], axis=1)
        if dM.shape[1] > nr + p:
            grads |= {"b": dM[:n, -1], "d": dM[n:, -1]}
        return grads


def quickest(runs, turns=3):
    """The name of the one with the least time of some calls."""
    least = dict.fromkeys(runs, np.inf)
    for _ in range(turns):
        for name, run in runs.items():
            start = perf_counter()
            run()
            least[name] = min(least[name], perf_counter() - start)
    return min(least, key=least.get)


def network(n, slow, q=1, bias=True, seed=0):
    """A new network with one input and n = r units; `slow`: A is positive, row sums 0.9."""
    model = ImplicitRNN(1, q, n, n, bias=bias, rng=seed)
    if slow:
        A = np.random.default_rng(2).random((n, n))
        model.params = {**model.params, "A": 0.9 * A / A.sum(axis=1, keepdims=True)}
    return model


def best_ways(model, U, dY):
    """``(forward, its result), (backward, what it starts from)``: the fastest that are right."""
    (m, T, p), n = U.shape, model.implicit_hidden_dim
    M, dH, truth = plain.matrix(model.params, p), dY @ model.params["E"], Truth.of(model, U, dY)
    chosen = []
    for rounds, is_forward in zip(step_rounds(M, n, U, dH, DEFAULT), (True, False), strict=True):
        runs = {}
        for way in ways(m, T, n, rounds):
            # a backward way starts from the best that a forward one of its kind finds
            first = way if is_forward else (chosen[1] if way.width else chosen[0])
            found = forward(first, M, n, U)
            if truth.accepts(found, None if is_forward else backward(way, M, n, found, dH)):
                runs[way] = (
                    partial(forward, way, M, n, U)
                    if is_forward
                    else partial(backward, way, M, n, found, dH)
                )
        kinds = [{w: run for w, run in runs.items() if bool(w.width) == b} for b in (False, True)]
        if not kinds[0]:
            raise RuntimeError("the floor's steps do not agree with float64")
        winners = [quickest(kind) if kind else None for kind in kinds]
        if is_forward:
            chosen = [winners[0], winners[1] or Way(4, width=T)]
        best = quickest({way: runs[way] for way in winners if way})
        yield best, runs[best]


def against_floor(shapes=None, rounds=ROUNDS):
    """The table of ratios."""
    rows = []
    for m, T, n, slow in SHAPES if shapes is None else shapes:
        model, U = network(n, slow), smooth(m, T)
        Y, pull = model(U)
        dY = np.ones_like(Y)
        (ahead, run), (back, back_run) = best_ways(model, U, dY)
        times = alternate(
            {
                "pyidl": partial(model, U),
                "floor": run,
                "pull": partial(pull, dY, inputs=False),
                "back": back_run,
            },
            rounds,
        )
        shape = f"{m}, {T}, {n}" + (f", {slow}" if slow else "")
        row = [shape]
        for ours, floor, way in (("pyidl", "floor", ahead), ("pull", "back", back)):
            ratio = times[ours][0] / times[floor][0]
            row += [str(way), ms(times[floor]), ms(times[ours]), f"{ratio:.2f}"]
        rows.append(row)
    head = ["m, T, n"]
    for name in ("forward", "backward"):
        head += [f"floor {name}", "floor, ms", "pyidl, ms", "pyidl / floor"]
    table("pyidl against plain NumPy (backward: with all parameter gradients)", head, rows)


# ------------------------------------------------------------------------- training


def floor_training(start, U, t, loss, count):
    """``run() -> losses`` of some training steps of the floor, by steps, at `TOL`."""
    p, n = U.shape[2], len(start["A"])
    first = {"M": plain.matrix(start, p), "E": np.array(start["E"])}
    large, ball = len(U) > 64, InfNorm(0.99)

    def ahead(M, rounds):
        changes = [] if large else None
        S = plain.steps(M, n, U, rounds, large, changes)
        return S, max(changes) <= TOL if large else plain.met(M, n, S, TOL)

    def back(M, S, dH, rounds):
        changes = [] if large else None
        Q = plain.back_steps(M, n, S, dH, rounds, large, TOL, changes)
        return Q, max(changes) <= TOL if large else plain.adjoint_met(M, n, S, Q, TOL)

    def read(S, E):
        H = S[-1, n : n + E.shape[1]].T
        return H, *loss(H @ E.T, t)

    forth = rounds_needed(lambda k: ahead(first["M"], k)[1])
    S = ahead(first["M"], forth)[0]
    dH = read(S, first["E"])[2] @ first["E"]
    home = rounds_needed(lambda k: back(first["M"], S, dH, k)[1])

    def run():
        optimizer, params, values = optim.Adam(1e-3), first, []
        for _ in range(count):
            M, E = params["M"], params["E"]
            S, met = ahead(M, forth + 1)
            H, value, dY = read(S, E)
            Q, adjoint_met = back(M, S, dY @ E, home + 1)
            if not (met and adjoint_met):
                raise RuntimeError("the floor's rounds do not suffice for what was trained")
            params = optimizer.step(params, {"M": plain.gradient(Q, S), "E": dY.T @ H})
            if np.abs(params["M"][:n, :n]).sum(axis=1).max() > 0.99:
                M = np.array(params["M"])
                M[:n, :n] = ball.project({"A": M[:n, :n]})["A"]
                params = {**params, "M": M}
            values.append(float(value))
        return values

    return run


def our_training(model, U, t, loss, count):
    """``run() -> losses`` of some steps, always from the parameters of now."""
    start = dict(model.params)

    def run():
        optimizer, values = optim.Adam(1e-3), []
        model.params = start
        for _ in range(count):
            Y, pull = model(U)
            value, dY = loss(Y, t)
            values.append(float(value))
            model.params = model.project(optimizer.step(model.params, pull(dY, inputs=False)[1]))
        return values

    return run


def torch_training(build, U, t, loss, count, threads=None):
    """The same for a network of torch, with so many threads or all."""
    import torch

    u, target = torch.tensor(U), torch.tensor(t)

    def run():
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        net, values = build(), []
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(count):
            optimizer.zero_grad()
            value = loss(net(u), target)
            value.backward()
            optimizer.step()
            values.append(float(value.detach()))
        torch.set_num_threads(before)
        return values

    return run


def twin(start, p, q, r, n, m):
    """torchidl's network from the same parameters, at the same tolerance."""
    import torch
    from torchidl import ImplicitRNN as Theirs

    net = Theirs(p, q, n, r, kappa=0.99, tol=TOL, grad_tol=TOL / m)
    with torch.no_grad():
        for key in "ABCD":
            getattr(net.recurrent.layer, key).copy_(torch.tensor(np.array(start[key])))
        net.linear.weight.copy_(torch.tensor(np.array(start["E"])))
    net.linear.bias = None
    return net


def gated(name, p, q, r):
    """LSTM or GRU of torch, and a linear read-out of the last step."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = getattr(torch.nn, name)(p, r, batch_first=True)
            self.linear = torch.nn.Linear(r, q)

        def forward(self, u):
            return self.linear(self.recurrent(u)[0][:, -1])

    return Net()


def compare(title, times, count, base="pyidl"):
    """Print times a step, and their ratios to that of `base`."""
    rows = [
        [name, ms((median / count, spread / count)), *(f"{q:.2f}" for q in (ratio, 1 / ratio))]
        for name, (median, spread) in times.items()
        for ratio in [median / times[base][0]]
    ]
    table(title, ["", "ms", f"it / {base}", f"{base} / it"], rows)


def training(m=16, T=150, n=16, count=5, rounds=ROUNDS):
    """A training step beside the peers."""
    import torch

    warnings.simplefilter("ignore")  # torchidl's solves, stopped by an absolute tolerance
    (U, t, source), threads = sequences(m, T), torch.get_num_threads()
    model = network(n, "", q=2, bias=False).with_tol(TOL)
    start, cross = dict(model.params), torch.nn.functional.cross_entropy
    runs = {
        "pyidl": our_training(model, U, t, losses.cross_entropy, count),
        "floor": floor_training(start, U, t, losses.cross_entropy, count),
    }
    nets = {
        "torchidl": partial(twin, start, 1, 2, n, n, m),
        "LSTM": partial(gated, "LSTM", 1, 2, n),
        "GRU": partial(gated, "GRU", 1, 2, n),
    }
    for name, build in nets.items():
        for k in sorted({threads, 1}, reverse=True):
            key = f"{name}, {k} thread" + "s" * (k > 1)
            runs[key] = torch_training(build, U, t, cross, count, k)
    ours = np.array(runs["pyidl"]())
    for name in ("floor", next(key for key in runs if key.startswith("torchidl"))):
        apart = np.max(np.abs(np.array(runs[name]()) / ours - 1))
        print(
            f"loss of {count} steps, {name} beside pyidl: largest relative difference {apart:.1e}"
        )
        if apart > 1e-3:
            raise RuntimeError(f"{name} does not train as pyidl does")
    title = f"A training step: m {m}, T {T}, {n} / {n}, p 1, {source}; forward, backward, Adam"
    compare(title, alternate(runs, rounds), count)


def windows(m, T):
    """``(U, t)``: m windows of a noisy sine, T values each, and the value that follows."""
    rng = np.random.default_rng(0)
    series = np.sin(np.linspace(0, 100, 10_000)) + 0.35 * rng.normal(size=10_000)
    cut = np.lib.stride_tricks.sliding_window_view(
        (series / np.abs(series).max()).astype("f4"), T + 1
    )[:m]
    return np.ascontiguousarray(cut[:, :T, None]), np.ascontiguousarray(cut[:, T:])


def large(m=5964, T=59, r=22, n=20, epochs=10, rounds=5):
    """Epochs of a large batch beside torchidl; their loss curves first."""
    import torch

    warnings.simplefilter("ignore")  # torchidl's solves, stopped by an absolute tolerance
    U, t = windows(m, T)
    model = ImplicitRNN(1, 1, r, n, bias=False, rng=0).with_tol(TOL)
    start, mse = dict(model.params), torch.nn.functional.mse_loss
    build = partial(twin, start, 1, 1, r, n, m)

    def runs(count):
        model.params = start
        return {
            "pyidl": our_training(model, U, t, losses.mse, count),
            "torchidl": torch_training(build, U, t, mse, count),
            "floor": floor_training(start, U, t, losses.mse, count),
        }

    curves = {name: np.array(run()) for name, run in runs(epochs).items()}
    a = curves["pyidl"]
    print(f"\nloss {a[0]:.4f} -> {a[-1]:.4f} in {epochs} epochs")
    for name in ("torchidl", "floor"):
        apart = np.max(np.abs(curves[name] / a - 1))
        print(f"{name} beside pyidl: largest relative difference {apart:.1e}")
        if apart > 1e-2:
            raise RuntimeError(f"{name} does not train as pyidl does")
    title = f"An epoch: m {m}, T {T}, hidden {r}, implicit {n}, one batch; forward, backward, Adam"
    compare(title, alternate(runs(1), rounds), 1)


# ------------------------------------------------------------------- one sequence, calls


def single(lengths=(150, 1000), n=16, rounds=ROUNDS):
    """One sequence, forward, beside the floor and the peers."""
    import torch

    warnings.simplefilter("ignore")  # torchidl's solves, stopped by an absolute tolerance
    for T in lengths:
        model, U = network(n, "", bias=False), smooth(1, T)
        (ahead, run), _ = best_ways(model, U, np.ones((1, 1), "f4"))
        u, nets = torch.tensor(U), {name: gated(name, 1, 1, n) for name in ("LSTM", "GRU")}
        nets["torchidl"] = twin(model.params, 1, 1, n, n, 1)

        def call(net, u=u):
            with torch.no_grad():
                return net(u)

        runs = {"pyidl, model(U)": partial(model, U), "pyidl, predict": partial(model.predict, U)}
        runs[f"floor, {ahead}"] = run
        runs |= {name: partial(call, net) for name, net in nets.items()}
        title = f"One sequence, T {T}, {n} / {n}, forward; torch: {torch.get_num_threads()} threads"
        compare(title, alternate(runs, rounds), 1, "pyidl, model(U)")


def counts(shapes=((1, 150, 16, ""), (16, 150, 16, ""), (16, 150, 16, "slow"))):
    """Calls and rounds a time step, forward and backward; no clock."""
    rows, found = [], []
    for m, T, n, slow in shapes:
        model, U = network(n, slow), smooth(m, T)
        Y, pull = model(U)
        dY = np.ones_like(Y)
        ahead, back = count_calls(partial(model, U)), count_calls(partial(pull, dY, inputs=False))
        rounds = pull.forward.n_iter.mean(), pull.solve(dY).n_iter.mean()
        found.append((*ahead, *back))
        row = [f"{m}, {T}, {n}" + (f", {slow}" if slow else "")]
        for (python, built_in), k in zip((ahead, back), rounds, strict=True):
            row += [f"{python / T:.1f}", f"{built_in / T:.1f}", f"{k:.1f}"]
        rows.append(row)
    head = ["m, T, n"]
    for name in ("forward", "backward"):
        head += [f"Python functions, {name}", "built-in", "rounds"]
    table("Calls a time step", head, rows)
    return found


PARTS = {
    "training": training,
    "large": large,
    "single": single,
    "floor": against_floor,
    "counts": lambda rounds: counts(),
}


def main(arguments=None):
    """Some parts, or all but `counts`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of every contender")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        sys.exit(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "as many as there are cores")
    print(f"NumPy {np.__version__}, threads of its BLAS: {blas}; cores: {os.cpu_count()}")
    for name in options.parts or [part for part in PARTS if part != "counts"]:
        PARTS[name](rounds=min(options.rounds, 5) if name == "large" else options.rounds)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
