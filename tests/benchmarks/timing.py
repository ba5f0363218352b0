"""Times: medians of turns, in an order that is drawn anew each round."""

import time

import numpy as np

ROUNDS = 9
PAUSE = 0.05
"""Seconds before a turn: a library whose threads still spin disturbs the next one."""


def turns(runs, rounds=ROUNDS, calls=1, pause=PAUSE, seed=0):
    """The seconds of every turn, by name; each contender has one in every round.

    A turn of several calls is their mean, after one that does not count.
    """
    rng = np.random.default_rng(seed)
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for i in rng.permutation(len(runs)):
            name = list(runs)[i]
            time.sleep(pause)
            if calls > 1:
                runs[name]()
            start = time.perf_counter()
            for _ in range(calls):
                runs[name]()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def alternate(runs, rounds=ROUNDS, calls=1):
    """Median seconds and half the interquartile range of each, measured in turns."""
    return {
        name: (float(np.median(t)), float(np.subtract(*np.percentile(t, [75, 25])) / 2))
        for name, t in turns(runs, rounds, calls).items()
    }


def report(title, times, base):
    """Print medians, their spread, and their ratio to that of `base`."""
    print(f"\n{title}")
    for name, (median, spread) in times.items():
        ratio = median / times[base][0]
        print(f"    {name:42s} {1e3 * median:9.3f} ms +- {1e3 * spread:6.3f}  {ratio:7.2f} x")
