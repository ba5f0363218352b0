"""The default solver against every fixed choice, forward and adjoint.

    python tests/benchmarks/auto.py                      the suite, then the families
    python tests/benchmarks/auto.py suite                56 models, forward
    python tests/benchmarks/auto.py "suite: roll" trained     some kinds of either
    python tests/benchmarks/auto.py suite --bars 0.95 2  fail where these are missed
    python tests/benchmarks/auto.py families --shapes 4x1 64x128 --direction adjoint
    python tests/benchmarks/auto.py --counts             no times: what is counted
    python tests/benchmarks/auto.py --list

A model is solved by `Auto` and by each of Picard, Jacobi, Anderson, Newton,
PeacemanRachford and Substitution, the adjoint also by GMRES and Direct, where they
apply and all samples converge. What is timed is `model.equilibrium(U)`, or the adjoint
solve of its pullback: medians of 9 rounds in which each has a turn, in an order drawn
anew. A choice that took five times as long as the fastest in its first call (the
second, if that was below 20 ms) is not measured further.

The ratio is that of `Auto` to the best of the others: infinite where `Auto` fails, 0
where only `Auto` solves. Of each family: the share of ratios within 1.25, the worst
one, and, for `Auto`, what `counting.Counts` counts, added up over the family.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
from counting import Counts, counting
from timing import turns

import pyidl
from pyidl import activations, losses, optim, solvers
from pyidl.cells import AffineCell
from pyidl.wellposed import InfNorm, Monotone

NEAR = 1.25
HOPELESS = 5.0
WARM = 0.02
"""Seconds below which a first call is repeated before it is judged."""
TURN = 1e-3
"""Seconds that a turn should take at least."""
LARGEST = 2**30
"""Newton and Direct are tried up to this m n^3."""

FIXED = {
    "Picard": solvers.Picard(),
    "Jacobi": solvers.Jacobi(),
    "Anderson": solvers.Anderson(),
    "Newton": solvers.Newton(),
    "PeacemanRachford": solvers.PeacemanRachford(),
    "Substitution": solvers.Substitution(),
}
LINEAR = {"GMRES": solvers.GMRES(), "Direct": solvers.Direct()}
DENSE = ("Newton", "Direct")


@dataclass
class Case:
    """A model, its inputs U, and a cotangent dY of its outputs."""

    family: str
    model: pyidl.ImplicitModel
    U: np.ndarray
    dY: np.ndarray

    def __str__(self):
        model = self.model
        return (
            f"{self.family}, n {model.hidden_dim}, m {len(self.U)}, {model.activation.name}, "
            f"{model.dtype}"
        )

    def choices(self, direction):
        """The fixed choices, by name."""
        found = FIXED | (LINEAR if direction == "adjoint" else {})
        large = len(self.U) * self.model.hidden_dim**3 > LARGEST
        return {name: s for name, s in found.items() if not (large and name in DENSE)}

    def run(self, direction, solver):
        """A function that solves; None as solver is the default."""
        if direction == "forward":
            model = self.model.replace(forward=solver)
            return lambda: model.equilibrium(self.U, on_fail="ignore")
        pull, g = self._pull()
        if solver is not None:
            pull = dataclasses.replace(pull, adjoint=solver)
        return lambda: pull.solve(g)

    def count(self, direction="forward", solver=None):
        """What is counted in one solve, the product with B not among it: `Counts`."""
        if direction == "forward":
            problem = self._cell().bind(self.U.astype(self.model.dtype))
        else:
            pull, g = self._pull()
            problem = pull.cell.linearize(pull.forward, pull.u, g)
        solver = solver or solvers.Auto()
        with counting(self.model.hidden_dim) as counts:
            solution = solver(problem)
        counts.steps = int(solution.n_iter.max())
        return counts

    def _cell(self):
        maps, b = self.model.maps, self.model.params.get("b")
        return AffineCell(maps["A"], maps["B"], b, self.model.activation)

    def _pull(self):
        """The pullback of the equilibrium, and the cotangent of the state."""
        pull = self.model(self.U, on_fail="ignore")[1]
        return pull.equilibrium, self.dY.astype(self.model.dtype) @ self.model.params["C"]


# ------------------------------------------------------------------------------------- the suite


SUITE = (
    "gaussian",
    "positive",
    "positive .9",
    "roll",
    "stiff",
    "zeros",
    "rank2",
    "negative diagonal",
)


def suite(wanted=None):
    """8 kinds of A, each with 7 sizes: 56 models, or those of one kind.

    All are drawn from one stream of random numbers, in this order.
    """
    rng = np.random.default_rng(1)

    def rows(A, kappa):
        return A * (kappa / np.abs(A).sum(axis=1, keepdims=True))

    def largest(A, kappa):
        return A * (kappa / np.abs(A).sum(axis=1, keepdims=True).max())

    def stiff(n):
        d = np.where(rng.random(n) < 0.3, rng.uniform(0.9, 0.985, n), 0.0)
        N = rng.normal(size=(n, n)) * (1 - np.eye(n))
        return np.diag(d) + N * ((0.99 - d) / np.abs(N).sum(axis=1))[:, None]

    def zeros(n):  # exact ones, between two large cyclic groups
        A, h = rows(rng.normal(size=(n, n)), 0.97), n // 2
        A[:h, h:] *= 1e-3
        A[h:, :h] = 0
        return A

    def rank2(n):
        return largest(rng.normal(size=(n, 2)) @ rng.normal(size=(2, n)), 0.97)

    kinds = {
        "gaussian": lambda n: rows(rng.normal(size=(n, n)), 0.99),
        "positive": lambda n: rows(rng.random((n, n)), 0.99),
        "positive .9": lambda n: rows(rng.random((n, n)), 0.9),
        "roll": lambda n: 0.99 * np.roll(np.eye(n), 1, 1),
        "stiff": stiff,
        "zeros": zeros,
        "rank2": rank2,
        "negative diagonal": lambda n: rows(rng.normal(size=(n, n)), 0.5) - 0.4 * np.eye(n),
    }
    sizes = (
        (8, 4, "relu", "float64"),
        (8, 4, "tanh", "float64"),
        (40, 16, "relu", "float64"),
        (40, 1, "relu", "float32"),
        (100, 64, "relu", "float32"),
        (100, 64, "tanh", "float32"),
        (256, 256, "relu", "float32"),
    )
    for kind in SUITE:
        for n, m, phi, dtype in sizes:
            activation = getattr(activations, phi)
            model = pyidl.ImplicitModel(5, 2, n, activation=activation, dtype=dtype, rng=0)
            new = {"A": kinds[kind](n), "b": np.abs(rng.normal(size=n))}
            model.params = {**model.params, **new}
            U = rng.normal(size=(m, 5))
            if wanted in (None, f"suite: {kind}"):
                yield Case(f"suite: {kind}", model, U, np.ones((m, 2)) / m)


# ---------------------------------------------------------------------------------- the families


@dataclass
class Draw:
    """What a family may draw from, and how large its model is."""

    rng: np.random.Generator
    n: int
    m: int
    activation: activations.Activation
    dtype: str

    def normal(self, *shape):
        return self.rng.normal(size=shape or (self.n, self.n))

    def rows(self, A, kappa):
        """Row sums of kappa."""
        return A * (kappa / np.maximum(np.abs(A).sum(axis=1, keepdims=True), 1e-300))

    def case(self, A=None, scale=1.0, U=None, B=None, constraint=None, factors=None):
        """A model with this A, or these factors; U is drawn, unless it is given."""
        U = scale * self.normal(self.m, 5) if U is None else U
        model = pyidl.ImplicitModel(
            U.shape[1],
            2,
            self.n,
            activation=self.activation,
            constraint=constraint or InfNorm(0.99),
            rank=None if factors is None else factors[0].shape[1],
            dtype=self.dtype,
            rng=0,
        )
        new = {"A": A} if factors is None else dict(zip("LR", factors))
        if B is not None:
            new["B"] = B
        model.params = {**model.params, **new, "b": 0.3 * scale * self.normal(self.n)}
        return Case("", model, U, self.normal(self.m, 2) / self.m)


def gaussian(draw):
    return draw.case(draw.rows(draw.normal(), 0.99))


def positive(kappa):
    return lambda draw: draw.case(draw.rows(draw.rng.random((draw.n, draw.n)), kappa))


def stiff_diagonal(draw):
    """As in models fitted to a network's states: a quarter of the diagonal is large."""
    rng, n = draw.rng, draw.n
    d = np.where(rng.random(n) < 0.26, rng.uniform(0.9, 0.985, n), rng.uniform(0, 0.3, n))
    off = draw.rows(draw.normal() * (1 - np.eye(n)), 1.0)
    return draw.case(np.diag(d) + off * (0.99 - d)[:, None])


def negative_diagonal(draw):
    d = -draw.rng.uniform(0.3, 0.9, draw.n)
    off = draw.rows(draw.normal() * (1 - np.eye(draw.n)), 1.0)
    return draw.case(np.diag(d) + off * (0.99 + d)[:, None])


def monotone(scale):
    """A skew part that Picard diverges on, inside the set `Monotone`."""

    def make(draw):
        K, S = draw.normal() / draw.n**0.5, draw.normal() / draw.n**0.5
        constraint = Monotone(0.1)
        params = {"A": (S + 1.5 * (K - K.T)).astype(draw.dtype)}
        A = constraint.project(params, draw.activation)["A"]
        return draw.case(A, scale=scale, constraint=constraint)

    return make


def trained(draw):
    """A and inputs of a classifier of digits, after 60 steps of Adam."""
    from sklearn.datasets import load_digits

    U, t = load_digits(return_X_y=True)
    U = (U / 16).astype(draw.dtype)
    model = pyidl.ImplicitModel(64, 10, draw.n, activation=draw.activation, dtype=draw.dtype, rng=0)
    optimizer = optim.Adam(1e-2)
    for _ in range(60):
        rows = draw.rng.integers(0, len(U), 64)
        Y, pull = model(U[rows])
        grads = pull(losses.cross_entropy(Y, t[rows])[1], inputs=False)[1]
        model.params = model.project(optimizer.step(model.params, grads))
    rows = draw.rng.integers(0, len(U), draw.m)
    return Case("", model, U[rows], losses.cross_entropy(model.predict(U[rows]), t[rows])[1])


def many_zeros(draw):
    """As after training on random labels: projected, with few entries left in a row."""
    heavy = draw.rng.standard_t(2, size=(draw.n, draw.n)).astype(draw.dtype)
    A = InfNorm(0.99).project({"A": heavy}, draw.activation)["A"]
    return draw.case(A)


def triangular(draw):
    return draw.case(np.triu(draw.normal() / draw.n**0.5, 1))


def small_cycle(draw):
    """Block triangular, with one small cyclic group."""
    A = np.triu(draw.normal() / draw.n**0.5, 1)
    k = min(5, draw.n - 1)
    i = (draw.n - k) // 2
    A[i : i + k, i : i + k] = draw.rows(draw.normal(k, k), 0.9)
    return draw.case(A)


def roll(gain):
    return lambda draw: draw.case(gain * np.roll(np.eye(draw.n), 1, axis=1))


def orthogonal(draw):
    return draw.case(0.95 * np.linalg.qr(draw.normal())[0])


def low_rank(factored):
    def make(draw):
        k = min(3, draw.n)
        L, R = draw.normal(draw.n, k), draw.normal(draw.n, k)
        L *= 0.97 / np.abs(L @ R.T).sum(axis=1).max()
        return draw.case(factors=(L, R)) if factored else draw.case(L @ R.T)

    return make


def slow_sample(draw):
    """One sample that converges slowly, in an easy batch.

    Half of the units converge slowly where they are active (with ReLU), or small (with
    tanh). The first input switches them off, or saturates them, for all samples but
    one.
    """
    n, h = draw.n, draw.n // 2
    A = np.zeros((n, n))
    A[:h, :h] = draw.rows(draw.normal(h, h), 0.5)
    A[h:, h:] = draw.rows(draw.rng.random((n - h, n - h)), 0.995)
    B, U = draw.normal(n, 5) / 20, draw.normal(draw.m, 5)
    B[h:, 0], U[:, 0], U[0, 0] = -10.0, 1.0, 0.0
    return draw.case(A, U=U, B=B)


def large_inputs(draw):
    return draw.case(draw.rows(draw.normal(), 0.95), scale=1e4)


FAMILIES = {
    "gaussian": gaussian,
    "stiff diagonal": stiff_diagonal,
    "negative diagonal": negative_diagonal,
    "monotone": monotone(1.0),
    "monotone, saturated": monotone(30.0),
    "trained": trained,
    "many zeros": many_zeros,
    "triangular": triangular,
    "small cycle": small_cycle,
    "roll .5": roll(0.5),
    "roll .9": roll(0.9),
    "roll .99": roll(0.99),
    "orthogonal": orthogonal,
    "low rank": low_rank(False),
    "low rank, factors": low_rank(True),
    "positive .9": positive(0.9),
    "positive .99": positive(0.99),
    "positive .999": positive(0.999),
    "slow sample": slow_sample,
    "large inputs": large_inputs,
}
SHAPES = ((4, 1), (4, 300), (20, 16), (64, 1), (64, 128), (150, 30), (300, 300))
KINDS = (("relu", "float32"), ("tanh", "float64"), ("relu", "float64"), ("tanh", "float32"))


def family(name, shapes=SHAPES, full=False):
    """The models of a family: two kinds of each shape, in turns, or all four."""
    for i, (n, m) in enumerate(shapes):
        chosen = KINDS if full else KINDS[:2] if i % 2 == 0 else KINDS[2:]
        for phi, dtype in chosen:
            rng = np.random.default_rng(
                [list(FAMILIES).index(name), n, m, KINDS.index((phi, dtype))]
            )
            case = FAMILIES[name](Draw(rng, n, m, getattr(activations, phi), dtype))
            case.family = name
            yield case


# ------------------------------------------------------------------------------------- measuring


@dataclass
class Result:
    """`Auto` beside the best fixed choice: seconds."""

    case: str
    auto: float
    best: str
    least: float

    @property
    def ratio(self):
        """Above 1, the fixed choice is faster."""
        if not np.isfinite(self.least):
            return 0.0 if np.isfinite(self.auto) else np.inf
        return self.auto / self.least

    def __str__(self):
        return (
            f"{self.ratio:5.2f}  {self.case}: best {self.best or 'none'}, "
            f"{1e3 * self.auto:.3g} ms against {1e3 * self.least:.3g}"
        )


def compare(case, direction="forward", rounds=9):
    """Measure one model."""
    runs, once = {}, {}
    for name, solver in {"Auto": None, **case.choices(direction)}.items():
        try:
            run = case.run(direction, solver)
            start = time.perf_counter()
            converged = run().all_converged
            seconds = time.perf_counter() - start
            if seconds < WARM:  # the first may have had to fetch this and that
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
        except pyidl.PyidlError:  # it does not apply
            continue
        if converged:
            runs[name], once[name] = run, seconds
    fast = HOPELESS * min(once.values(), default=0.0)
    runs = {name: run for name, run in runs.items() if name == "Auto" or once[name] <= fast}
    calls = int(np.clip(TURN / max(min(once.values(), default=TURN), 1e-9), 1, 20))
    times = {name: float(np.median(t)) for name, t in turns(runs, rounds, calls, pause=0).items()}
    auto = times.pop("Auto", np.inf)
    best = min(times, key=times.get, default="")
    return Result(f"{case}, {direction}", auto, best, times.get(best, np.inf))


def total(cases, direction="forward"):
    """`Counts` of `Auto`, added up over models."""
    found = [dataclasses.astuple(case.count(direction)) for case in cases]
    return Counts(*(type(one[0])(sum(one)) for one in zip(*found)))


def summary(title, results):
    """Print share and worst ratio; return them."""
    ratios = np.array([result.ratio for result in results])
    share, worst = float(np.mean(ratios <= NEAR)), float(ratios.max())
    print(f"{title:36s} {len(results):4d} solves  {share:4.0%} within {NEAR}  worst {worst:.2f}")
    return share, worst


def main(arguments=None):
    """Measure, print, and compare with bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="suite, families, or names of families")
    parser.add_argument("--direction", choices=["forward", "adjoint", "both"], default="both")
    parser.add_argument("--shapes", nargs="+", help="n x m, such as 64x128")
    parser.add_argument("--full", action="store_true", help="relu and tanh, float32 and float64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worst", type=int, default=12, help="how many of the worst to list")
    parser.add_argument("--counts", action="store_true", help="count, do not measure")
    parser.add_argument("--bars", nargs=2, type=float, metavar=("SHARE", "WORST"))
    parser.add_argument("--list", action="store_true", help="the names of the families")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(["suite", *(f"suite: {kind}" for kind in SUITE), "families", *FAMILIES]))
        return 0
    groups = {"suite": [f"suite: {kind}" for kind in SUITE], "families": list(FAMILIES)}
    names = []
    for name in options.names or groups:
        names += groups.get(name, [name])
    unknown = sorted(set(names) - {*groups["suite"], *groups["families"]})
    if unknown:
        sys.exit(f"no family {', '.join(unknown)}; --list has them")
    shapes = SHAPES
    if options.shapes:
        shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    warnings.simplefilter("ignore")
    directions = ("forward", "adjoint") if options.direction == "both" else (options.direction,)
    found = {"suite": [], "families": []}
    for name in names:
        given = name in groups["suite"]
        group = "suite" if given else "families"
        cases = list(suite(name) if given else family(name, shapes, options.full))
        for direction in ("forward",) if given else directions:
            title = f"{name}, {direction}"
            if not options.counts:
                results = [compare(case, direction, options.rounds) for case in cases]
                found[group] += results
                summary(title, results)
            print(f"    {title}: {total(cases, direction)}", flush=True)
    missed = False
    for group, results in found.items():
        if results:
            print()
            share, worst = summary(f"all of the {group}", results)
            for result in sorted(results, key=lambda one: -one.ratio)[: options.worst]:
                print(f"    {result}")
            if options.bars:
                missed |= share < options.bars[0] or worst > options.bars[1]
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
