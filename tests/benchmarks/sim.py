"""SIM beside Clarabel through cvxpy: ``python tests/benchmarks/sim.py [folder of Fashion-MNIST [rows of Clarabel]]``.

The 112 rows of (A, B) of a network 784-64-32-16-10 on 2,000 images, lam = 1 on the sum of squares, kappa = 0.99. Both get the same G, h
and |z|^2; of Clarabel's rows the gap is measured by pyidl after they have been projected onto the bound. Clarabel solves some of the
rows, and its time for all is extrapolated.
"""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from fashion_mnist import DEBIAN, read_idx

import pyidl
from pyidl import activations, losses, optim, sim

KAPPA, SAMPLES = 0.99, 2000


def states(folder):
    U = read_idx(folder, "train-images-idx3-ubyte").reshape(-1, 784).astype(np.float32) / 255
    t = read_idx(folder, "train-labels-idx1-ubyte").astype(np.int64)
    widths, layers = (784, 64, 32, 16, 10), []
    for i in range(4):
        layers += [pyidl.Linear(widths[i], widths[i + 1], bias=False, rng=i), activations.relu]
    network = pyidl.Sequential(*layers[:-1])
    pyidl.fit(
        network,
        (U, t),
        loss=losses.cross_entropy,
        optimizer=optim.Adam(1e-3),
        epochs=10,
        rng=0,
        verbose=0,
    )
    return sim.collect_states(network, U[np.random.default_rng(0).permutation(len(U))[:SAMPLES]])


def clarabel(problem, i, tol):
    """One row, by an interior-point method on ``|S w - c|^2 / 2``, S^T S = G."""
    import cvxpy

    values, Q = np.linalg.eigh(problem.G)
    kept = values > 1e-13 * values[-1]
    root = np.sqrt(values[kept])[:, None] * Q[:, kept].T
    c = (Q[:, kept].T @ problem.H[i]) / np.sqrt(values[kept])
    w = cvxpy.Variable(problem.H.shape[1])
    loss = 0.5 * cvxpy.sum_squares(root @ w - c) + problem.penalty.lam * cvxpy.norm1(w)
    task = cvxpy.Problem(cvxpy.Minimize(loss), [cvxpy.norm1(w[: problem.ball]) <= KAPPA])
    start, cpu = time.perf_counter(), time.process_time()
    task.solve(solver=cvxpy.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    return w.value, time.perf_counter() - start, time.process_time() - cpu


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    print(
        platform.platform(),
        platform.python_version(),
        ", ".join(f"{p} {version(p)}" for p in ("numpy", "scipy", "cvxpy", "clarabel")),
    )
    found = states(folder)
    began = time.perf_counter()
    moments = found.moments()
    print(f"sums over {moments.count} samples: {time.perf_counter() - began:.2f} s")
    n = found.X.shape[1]
    problem = sim.RowProblem.of(
        moments, sim.L1(1 / SAMPLES), rows=slice(0, n), ball=n, radius=KAPPA
    )
    spent = {}
    for solver in (sim.ADMM, sim.FISTA, sim.CoordinateDescent):
        for tol in (1e-4, 1e-6):
            times = []
            for _ in range(3):
                start, cpu = time.perf_counter(), time.process_time()
                rows = solver(tol=tol, max_iter=100_000)(problem)
                times.append((time.perf_counter() - start, time.process_time() - cpu))
            wall, spent[solver.__name__, tol] = np.median(times, axis=0)
            gap = float(np.max(rows.gap / rows.scale))
            print(
                f"{solver.__name__:18} tol {tol:.0e}: {wall:6.2f} s, {spent[solver.__name__, tol]:6.2f} s of processor time, "
                f"gap {gap:.1e}; {rows.method}"
            )
    chosen = np.linspace(0, n - 1, count).astype(int)
    one, wall, cpu, gaps = [problem.take(np.array([i])) for i in chosen], 0.0, 0.0, []
    for i, alone in zip(chosen, one):
        for tol in (1e-8, 1e-10):
            w, seconds, used = clarabel(problem, i, tol)
            m = alone.measure(alone.project(w[None, :]))
            gap = float(m.gap[0] / max(m.objective[0], m.scale[0]))
            if gap <= 1e-6 or tol == 1e-10:
                wall, cpu = wall + seconds, cpu + used
                gaps.append(gap)
                break
    total = cpu / count * n
    print(
        f"Clarabel, {count} rows: {wall / count:.1f} s a row, gaps {max(gaps):.1e} at most; {total:.0f} s of processor time for {n} rows"
    )
    print(f"Clarabel's processor time / that of ADMM to 1e-6: {total / spent['ADMM', 1e-6]:.0f}")


if __name__ == "__main__":
    main()
