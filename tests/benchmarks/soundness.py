"""How many values lie outside of proven bounds: none of a million may.

``OMP_NUM_THREADS=1 python tests/benchmarks/soundness.py [--seeds 6]``

Random models of all activations and constraints, of 1 to 100 states, with boxes of
1e-4 to 10, in float64 and float32. In each box: ends, corners, faces, random points,
and for many states, pre-activations and outputs the corner to which the gradient of
that very quantity points. Counted are states, pre-activations, outputs and margins,
evaluated in float64 to 1e-13; and the states and outputs that float32 models themselves
return, each up to the error that its own residual proves.

Widths are those of bounds over what was attained, of outputs that move at all. Last
come samples that are certified, and attacks on them, and widths for models in sets in
which boxes may not exist. It takes some minutes.
"""

import argparse
import itertools
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import boxes
from helpers import host

from pyidl import ImplicitModel, robustness
from pyidl.errors import InputError
from pyidl.wellposed import Monotone, SpectralNorm

WAYS = {
    "boxes": {"method": "box"},
    "affine, 1 round": {"rounds": 1},
    "affine, 5 rounds": {"rounds": 5},
}
SIZES = (1, 2, 5, 10, 20, 50, 100)


def own_answers(model, U, found):
    """Of a float32 model: how many of its states and outputs there are, and lie outside."""
    m, count = U.shape[:2]
    rows = U.reshape(-1, U.shape[-1])
    twin = boxes.spelled_out(model)
    p, n, q = twin.params, model.hidden_dim, model.output_dim
    # The inputs are rounded to float32: so are the boxes' ends, and nothing leaves them.
    X = host(model.equilibrium(rows, on_fail="ignore").value).astype(float)
    pre = X @ p["A"].T + rows @ p["B"].T + p["b"]
    off = model.certificate().entrywise(np.abs(X - twin.activation(pre)) + 1e-13)
    C, D = p["C"][-q:], p["D"][-q:]
    Y = host(model.predict(rows)).astype(float)
    size = np.abs(X) @ np.abs(C).T + np.abs(rows) @ np.abs(D).T + np.abs(p["d"][-q:])
    slack = off @ np.abs(C).T + 2 * (n + U.shape[-1] + 4) * 2.0**-23 * size
    outside = boxes.outside(X.reshape(m, count, n), off.reshape(m, count, n), found.states)
    outside += boxes.outside(Y.reshape(m, count, q), slack.reshape(m, count, q), found.outputs)
    return X.size + Y.size, outside


def single(rng, lo, hi):
    """The same boxes with float32 ends, and the points in them."""
    lo, hi = lo.astype(np.float32), hi.astype(np.float32)
    U = boxes.points(rng, lo, hi, 30).astype(np.float32)
    return lo.astype(float), hi.astype(float), np.clip(U, lo[:, None], hi[:, None])


def case(kind, n, seed, count, violations, widths):
    """One model with four boxes."""
    rng = np.random.default_rng([seed, n])
    dtype = "float32" if seed % 3 == 2 else "float64"
    model = boxes.drawn(kind, n, seed, dtype=dtype, scale=10.0 ** rng.uniform(-1, 0.5))
    lo, hi = boxes.boxes(rng, 4, 3, 10.0 ** rng.uniform(-4, 1))
    own = None
    if dtype == "float32":
        lo, hi, own = single(rng, lo, hi)
    labels = rng.integers(0, model.output_dim, 4)
    _, values, slack = boxes.attained(model, lo, hi, rng, count=30, most=24)
    q, moved = model.output_dim, np.ptp(values, axis=1)
    for way, options in WAYS.items():
        try:
            found = robustness.bounds(model, lo, hi, **options)
        except InputError:
            count[way, "refused"] += 1
            continue
        margins = robustness.margins(model, lo, hi, labels, **options)
        for name, bad in boxes.violations(model, found, margins, labels, values, slack).items():
            size = values.shape[0] * values.shape[1]
            count[way, name] += size * (q if name in ("outputs", "margins") else n)
            violations[way, name] += bad
        if own is not None:
            tried, bad = own_answers(model, own, found)
            count[way, "float32 answers"] += tried
            violations[way, "float32 answers"] += bad
        for name, pair, at in (
            ("states", found.states, moved[:, :n]),
            ("outputs", found.outputs, moved[:, -q:]),
        ):
            seen = at > 1e-7
            widths[way, name].extend((pair[1] - pair[0])[seen] / at[seen])


def verdicts(rng, models):
    """``(certified, broken)`` of samples, and how many of the certified were broken."""
    sure = broken = both = 0
    for seed in range(models):
        kind = ("relu measure", "tanh measure", "gelu", "blocks", "monotone")[seed % 5]
        model = boxes.drawn(kind, 20, seed).with_tol(1e-12)
        U = rng.normal(size=(40, 3))
        labels, eps = model.predict(U).argmax(axis=1), 10.0 ** rng.uniform(-2, 0)
        found = robustness.certified(model, U, labels, eps)
        tried = boxes.net_attacked(model, U - eps, U + eps, range(model.output_dim))
        tried = np.concatenate([boxes.points(rng, U - eps, U + eps, 60), tried], axis=1)
        Y = boxes.net_values(model, tried)
        lost = np.any(np.argmax(Y, axis=-1) != labels[:, None], axis=1)
        sure, broken, both = sure + found.sum(), broken + lost.sum(), both + (found & lost).sum()
    return models * 40, int(sure), int(broken), int(both)


def euclidean(constraint, models=40):
    """Medians of width / attained after 1, 5 and 30 rounds, where there may be no boxes."""
    corners, ratios = np.array(list(itertools.product((-1, 1), repeat=4))), []
    for seed in range(models):
        rng = np.random.default_rng(seed)
        model = ImplicitModel(4, 3, 10, constraint=constraint, dtype="float64", rng=seed)
        model.params = model.project({**model.params, "A": rng.normal(size=(10, 10))})
        U, moves = rng.normal(size=(3, 4)), np.concatenate([corners, rng.uniform(-1, 1, (200, 4))])
        attained = np.array([np.ptp(model.predict(u + 0.1 * moves), axis=0) for u in U])
        widths = [robustness.bounds(model, U - 0.1, U + 0.1, rounds=k).width for k in (1, 5, 30)]
        ratios.append([np.median(width / attained) for width in widths])
    return np.median(ratios, axis=0)


def main(seeds):
    """Print the tables; 0 if all holds."""
    count, violations, widths = Counter(), Counter(), defaultdict(list)
    for seed in range(seeds):
        for n in SIZES:
            for kind in boxes.kinds(n):
                # The widest are dear: one kind of model in four.
                if n < 50 or (seed + len(kind)) % 4 == 0:
                    case(kind, n, seed, count, violations, widths)
    names = ("states", "pre", "outputs", "margins", "float32 answers")
    print("| | " + " | ".join(names) + " | refused |")
    print("|---" * (len(names) + 2) + "|")
    for way in WAYS:
        row = [f"{violations[way, name]} of {count[way, name]:,}" for name in names]
        print(f"| {way} | " + " | ".join(row) + f" | {count[way, 'refused']} |")
    total = sum(k for (way, name), k in count.items() if name != "refused")
    print(f"\nviolations: {sum(violations.values())} of {total:,}\n")
    print("| width / attained | states: median | 90 % | outputs: median | 90 % |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        ends = [np.quantile(widths[way, name], (0.5, 0.9)) for name in ("states", "outputs")]
        print(f"| {way} | " + " | ".join(f"{v:.3g}" for pair in ends for v in pair) + " |")
    samples, sure, broken, both = verdicts(np.random.default_rng(0), 50)
    print(f"\nof {samples} samples {sure} are certified, {broken} broken, {both} both")
    print("\n| width / attained, n = 10 | 1 round | 5 rounds | 30 rounds |\n|---|---|---|---|")
    for constraint in (Monotone(0.1), Monotone(0.5), SpectralNorm(0.9)):
        print(f"| {constraint} | " + " | ".join(f"{v:.3g}" for v in euclidean(constraint)) + " |")
    return sum(violations.values()) + both


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    sys.exit(int(main(parser.parse_args().seeds) > 0))
