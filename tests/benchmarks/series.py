"""Real series, classified: pyidl beside GRU and LSTM of torch.

    python tests/benchmarks/series.py                          all sets, three seeds
    python tests/benchmarks/series.py GunPoint --seeds 0 1
    python tests/benchmarks/series.py --pool last --epochs 10  not those of SETTINGS

The sets are in the package aeon (``pip install --no-deps aeon``); its `.ts` files are
read, it is not imported. What is the same for all: the split that comes with the set,
channels standardised on its training part, width, epochs, batches, AdamW with a cosine,
weight decay, clipping at 1. Step size and pooling (`SETTINGS`) are each one's own: ours
those of `examples/time_series.py`; for GRU and LSTM the best found on the test part
among 1e-2, 3e-2 and last, mean, max, which favours them. Accuracy is that after the
last epoch, on the test part; time is that of the training, one after another.
"""

import argparse
import importlib.util
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

import pyidl
from pyidl import ImplicitRNN, losses, metrics, optim


@dataclass(frozen=True)
class Setting:
    """How a set is learnt; `torch_lr` and `torch_pool` are for GRU and LSTM."""

    name: str
    width: int
    epochs: int
    batch: int
    lr: float
    pool: str
    torch_lr: float
    torch_pool: str
    decay: float = 0.0


SETTINGS = (
    Setting("GunPoint", 16, 100, 10, 5e-3, "max", 3e-2, "max", 0.1),
    Setting("ItalyPowerDemand", 16, 100, 10, 5e-3, "max", 1e-2, "last", 0.1),
    Setting("JapaneseVowels", 32, 50, 10, 5e-3, "max", 3e-2, "max", 0.1),
)
SEEDS = (0, 1, 2)
POOLS = ("last", "mean", "max")


def locate(name, part):
    """The file of a set in the package aeon, TRAIN or TEST; None without aeon."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / name / f"{name}_{part}.ts"
    return path if path.exists() else None


def read(path):
    """``(sequences, labels)``: arrays (T_i, p), and integers from the names of classes."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if line.lower() == "@data")
    names = next(line.split()[2:] for line in lines if line.lower().startswith("@classlabel"))
    sequences, labels = [], []
    for line in filter(None, lines[at + 1 :]):
        *channels, label = line.split(":")
        sequences.append(np.array([c.split(",") for c in channels], dtype=float).T)
        labels.append(names.index(label.strip()))
    return sequences, np.array(labels)


def load(name):
    """``(U, lengths, labels)`` of training and of test: U (m, T, p), zero beyond a length."""
    paths = [locate(name, part) for part in ("TRAIN", "TEST")]
    if None in paths:
        sys.exit(f"{name} comes with the package aeon: pip install --no-deps aeon")
    sets = [read(path) for path in paths]
    heard = np.concatenate(sets[0][0])
    mean, spread = heard.mean(axis=0), heard.std(axis=0)
    T = max(len(s) for sequences, _ in sets for s in sequences)
    found = []
    for sequences, labels in sets:
        U = np.zeros((len(sequences), T, len(mean)), "f4")
        for place, s in zip(U, sequences, strict=True):
            place[: len(s)] = (s - mean) / spread
        found.append((U, np.array([len(s) for s in sequences]), labels))
    return found


def ours(setting, train, test, seed):
    """``(accuracy, seconds)`` of pyidl."""
    U, lengths, labels = train
    (_, T, p), q, r, began = U.shape, int(labels.max()) + 1, setting.width, perf_counter()
    model = ImplicitRNN(p, q, r, r, pool=setting.pool, timescale=T, rng=seed)
    steps = setting.epochs * -(-len(U) // setting.batch)
    optimizer = optim.AdamW(
        optim.Cosine(setting.lr, steps=steps), weight_decay=setting.decay, clip_norm=1.0
    )
    pyidl.fit(
        model,
        ((U, lengths), labels),
        loss=losses.cross_entropy,
        optimizer=optimizer,
        epochs=setting.epochs,
        batch_size=setting.batch,
        rng=seed,
        verbose=0,
    )
    seconds = perf_counter() - began
    return float(metrics.accuracy(model.predict(*test[:2]), test[2])), seconds


def pooled_network(kind, p, q, r, pool):
    """GRU or LSTM of torch, and a linear read-out that pools over a sequence."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = getattr(torch.nn, kind)(p, r, batch_first=True)
            self.linear = torch.nn.Linear(r, q)

        def forward(self, u, lengths):
            h = self.recurrent(u)[0]
            if pool == "last":
                return self.linear(h[torch.arange(len(h)), lengths - 1])
            there = (torch.arange(h.shape[1]) < lengths[:, None])[:, :, None]
            if pool == "mean":
                return self.linear((h * there).sum(dim=1) / lengths[:, None])
            return self.linear(h.masked_fill(~there, -torch.inf).amax(dim=1))

    return Net()


def theirs(kind, setting, train, test, seed):
    """``(accuracy, seconds)`` of a network of torch."""
    import torch

    torch.manual_seed(seed)
    U, lengths, labels = map(torch.as_tensor, train)
    began, rng = perf_counter(), np.random.default_rng(seed)
    net = pooled_network(kind, U.shape[2], int(labels.max()) + 1, setting.width, setting.torch_pool)
    optimizer = torch.optim.AdamW(net.parameters(), setting.torch_lr, weight_decay=setting.decay)
    steps = setting.epochs * -(-len(U) // setting.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(setting.epochs):
        order = torch.as_tensor(rng.permutation(len(U)))
        for rows in order.split(setting.batch):
            optimizer.zero_grad()
            Y = net(U[rows], lengths[rows])
            torch.nn.functional.cross_entropy(Y, labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = perf_counter() - began
    with torch.no_grad():
        Y = net(*map(torch.as_tensor, test[:2])).numpy()
    return float(metrics.accuracy(Y, test[2])), seconds


CONTENDERS = {
    "pyidl": ours,
    "GRU": lambda *a: theirs("GRU", *a),
    "LSTM": lambda *a: theirs("LSTM", *a),
}


def compare(settings, seeds, contenders=CONTENDERS):
    """Print the table; accuracies by set and contender, one for each seed."""
    found = {}
    head = [
        "set (m, T, p)",
        "width, epochs, pools",
        *contenders,
        "seconds: " + ", ".join(contenders),
    ]
    rows = []
    for setting in settings:
        train, test = load(setting.name)
        m, T, p = train[0].shape
        row = [f"{setting.name} ({m}, {T}, {p})"]
        row.append(f"{setting.width}, {setting.epochs}, {setting.pool} and {setting.torch_pool}")
        seconds = []
        for name, run in contenders.items():
            results = [run(setting, train, test, seed) for seed in seeds]
            accuracies, times = map(np.array, zip(*results, strict=True))
            found[setting.name, name] = accuracies
            row.append(f"{accuracies.mean():.3f} +- {accuracies.std():.3f}")
            seconds.append(f"{times.mean():.1f}")
            listed = ", ".join(f"{a:.3f}" for a in accuracies)
            print(f"{setting.name}, {name}: {listed}; {times.mean():.1f} s a run", flush=True)
        rows.append([*row, ", ".join(seconds)])
    print(
        f"\nTest accuracy, mean and standard deviation of the seeds {', '.join(map(str, seeds))}\n"
    )
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    return found


def main(arguments=None):
    """Some sets, or all."""
    names = [setting.name for setting in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, help="instead of those of the setting")
    parser.add_argument("--pool", choices=POOLS, help="instead of that of the setting")
    parser.add_argument("--alone", action="store_true", help="without torch")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sets) - set(names))
    if unknown:
        sys.exit(f"no set {', '.join(unknown)}; there are {', '.join(names)}")
    changes = {key: getattr(options, key) for key in ("epochs", "pool") if getattr(options, key)}
    if options.pool:
        changes["torch_pool"] = options.pool
    settings = [replace(s, **changes) for s in SETTINGS if s.name in (options.sets or names)]
    warnings.simplefilter("ignore")  # of samples that a step has skipped
    contenders = {"pyidl": ours} if options.alone else CONTENDERS
    return compare(settings, options.seeds, contenders)


if __name__ == "__main__":
    main()
