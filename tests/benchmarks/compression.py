"""How far bounds of a compression lie above what it changes, and how many bytes are left.

``OMP_NUM_THREADS=1 python tests/benchmarks/compression.py [--seeds 20]``

Random models in MatrixMeasure(0.95), with large negative diagonal entries, of 2 to 50
states, float64. At given inputs: the bound by absolute values, |C| K^-1 L (|A - A0|
|x0| + ...) + ..., the same with a signed difference, K^-1 L |(A - A0) x0 + ...|, and
that of `robustness.compress`; each over the actual change of an output. On boxes: over
the largest change that sampled and attacked inputs attain; beside it the difference of
the bounds of both models. Printed are medians, 90 % quantiles and largest values, and
violations, of which there may be none.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import boxes
from changes import attained, own_answers
from helpers import host

from pyidl import robustness

KINDS = [f"{name} measure" for name in ("relu", "tanh", "sigmoid", "hard_tanh", "elu", "softplus")]
SIZES = (2, 5, 10, 20, 50)


def first_order(model, twin, U):
    """The bounds of K, by absolute values and signed; without rounding."""
    P, P0 = ({k: host(a).astype(float) for k, a in m.params.items()} for m in (model, twin))
    x0, L, A = twin.equilibrium(U).value, model.activation.lipschitz, P["A"]
    K = np.eye(len(A)) - L * (np.abs(A) - np.diag(np.abs(np.diag(A)) - np.diag(A)))
    dP = {key: P[key] - P0[key] for key in P}
    G = L * np.abs(P["C"]) @ np.linalg.inv(K)
    signed = np.abs(x0 @ dP["A"].T + U @ dP["B"].T + dP["b"])
    out = np.abs(x0 @ dP["C"].T + U @ dP["D"].T + dP["d"])
    size = {key: np.abs(a) for key, a in dP.items()}
    absolute = np.abs(x0) @ size["A"].T + np.abs(U) @ size["B"].T + size["b"]
    out_absolute = np.abs(x0) @ size["C"].T + np.abs(U) @ size["D"].T + size["d"]
    return absolute @ G.T + out_absolute, signed @ G.T + out


def main():
    """Print both tables."""
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=20)
    seeds = range(options.parse_args().seeds)
    ratios, missed, left, models = defaultdict(list), Counter(), defaultdict(list), 0
    for seed in seeds:
        for number, kind in enumerate(KINDS):
            rng = np.random.default_rng([seed, number])
            model = boxes.drawn(kind, int(rng.choice(SIZES)), seed=seed)
            U = rng.normal(size=(4, 3))
            lo, hi = boxes.boxes(rng, 2, 3, 10.0 ** rng.uniform(-3, 0))
            for way in ("float16", "int8", "prune"):
                models += 1
                twin, report = robustness.compress(model, way, U=U)
                left[way].append(report.after / report.before)
                change, off, *_ = own_answers(model, twin, U)
                size = np.abs(change)
                missed[way, "points"] += np.count_nonzero(size - off > report.change)
                seen = size > 1e-7
                bounds = (*first_order(model, twin, U), report.change)
                names = ("absolute values", "signed", "compress")
                for name, bound in zip(names, bounds, strict=True):
                    ratios[way, name] += list(bound[seen] / size[seen])
                twin, report = robustness.compress(model, way, lower=lo, upper=hi)
                least, lost = attained(model, twin, lo, hi, rng)
                missed[way, "boxes"] += np.count_nonzero(least > report.change)
                missed[way, "classes"] += np.count_nonzero(lost & report.kept)
                y, y0 = (robustness.bounds(m, lo, hi).outputs for m in (model, twin))
                seen = least > 1e-7
                apart = np.maximum(y[1] - y0[0], y0[1] - y[0])
                for name, bound in (("box: apart", apart), ("box: compress", report.change)):
                    ratios[way, name] += list(bound[seen] / least[seen])
    print(f"{models} compressed models")
    print("| format | bytes left | bound | median | 90 % | largest |\n" + "|---" * 6 + "|")
    for (way, name), found in ratios.items():
        numbers = " | ".join(f"{f:.4g}" for f in np.quantile(found, [0.5, 0.9, 1.0]))
        print(f"| {way} | {np.mean(left[way]):.2f} | {name} | {numbers} |")
    print("violations:", ", ".join(f"{' '.join(key)} {count}" for key, count in missed.items()))
    assert not any(missed.values())


if __name__ == "__main__":
    main()
