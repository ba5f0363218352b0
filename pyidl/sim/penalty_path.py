"""A path of fits.

The same network under a sequence of penalties, each fit started from the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.errors import InputError, expect, is_real
from pyidl.layers import ImplicitModel
from pyidl.sim.fit import fit
from pyidl.sim.penalties import Penalty
from pyidl.sim.report import SIMResult

__all__ = ["PenaltyPath", "path"]


@dataclass(frozen=True, eq=False)
class PenaltyPath:
    """The results of all penalties, in their order.

    Attributes
    ----------
    penalties : tuple of Penalty
    results : tuple of SIMResult
    scores : numpy.ndarray
        What the caller's score says of each model.
    densities : numpy.ndarray
        The share of entries of A, B, C and D that differ from zero.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 2, rng=2))
    >>> states = sim.collect_states(net, np.random.default_rng(0).normal(size=(99, 5)))
    >>> found = sim.path(states, [sim.L1(0.1), sim.L1(1e-3)], lambda model: 1.0)
    >>> found.best(density=0.5) is found.results[0]
    True
    """

    penalties: tuple[Penalty, ...]
    results: tuple[SIMResult, ...]
    scores: np.ndarray

    @property
    def densities(self) -> np.ndarray:
        """The share of nonzero entries of every model."""
        return np.array([result.report.density for result in self.results])

    def best(self, density: float = 1.0) -> SIMResult:
        """The best-scored result with at most this share of nonzero entries.

        Parameters
        ----------
        density : float
            A share between 0 and 1.

        Raises
        ------
        InputError
            If there is none.
        """
        if not is_real(density) or np.isnan(density):
            raise InputError(
                f"density is {density!r}; it is a share of nonzero entries, between 0 and 1"
            )
        few = np.flatnonzero(self.densities <= density)
        if not len(few):
            raise InputError(
                f"the sparsest model has {self.densities.min():.1%} nonzero entries, more than "
                f"{density:.1%}; raise the penalty"
            )
        return self.results[int(few[np.argmax(self.scores[few])])]

    def plot(self, ax: Any = None, *, reference: float | None = None) -> Any:
        """Draw the scores against the shares of nonzero entries, and return the Axes.

        Needs matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a figure of its own if left out.
        reference : float, optional
            The score of the network, drawn as a line.
        """
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        order = np.argsort(self.densities)
        ax.semilogx(self.densities[order], self.scores[order], "o-", label="implicit model")
        low, high = self.densities.min() / 1.2, self.densities.max() * 1.2
        ticks = [
            t
            for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
            if low <= t <= high
        ]
        ax.set_xticks(ticks, [f"{t:.1%}" if t < 0.01 else f"{t:.0%}" for t in ticks])
        ax.set_xticks([], minor=True)
        if reference is not None:
            ax.axhline(reference, color="0.5", linestyle="--", label="network")
        ax.set(
            xlabel="share of nonzero entries of A, B, C, D",
            ylabel="score",
            title=f"implicit models under {len(self)} penalties",
        )
        ax.legend()
        ax.grid(alpha=0.3)
        return ax

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[tuple[Penalty, SIMResult, float]]:
        return zip(self.penalties, self.results, map(float, self.scores), strict=True)

    def __str__(self) -> str:
        lines = [f"{'penalty':30} {'score':>8} {'nonzero':>8} {'A':>6} {'B':>6} {'gap':>8}"]
        for penalty, result, score in self:
            some = {key: count / size for key, (count, size) in result.report.nonzeros.items()}
            lines.append(
                f"{penalty!r:30} {score:8.4f} {result.report.density:8.1%} "
                f"{some.get('A', 1.0):6.1%} {some['B']:6.1%} "
                f"{result.report.states.relative_gap:8.1e}"
            )
        return "\n".join(lines)


def path(
    network: Any,
    penalties: Iterable[Penalty],
    score: Callable[[ImplicitModel], float],
    fit: Callable[..., SIMResult] = fit,
) -> PenaltyPath:
    """Fit the same states under one penalty after the other, and score every model.

    Parameters
    ----------
    network : States
        From `collect_states`, so that the network is run once. (Anything else that
        ``fit(network)`` takes by itself will do.)
    penalties : iterable of Penalty
        From the strongest to the weakest, say: neighbours are good starts for each
        other.
    score : callable
        ``score(model) -> float``: the accuracy on test data, for instance.
    fit : callable
        `sim.fit`, or ``functools.partial(sim.fit, constraint=..., pattern=...)`` where
        its options are chosen.

    Returns
    -------
    PenaltyPath

    Raises
    ------
    InputError
        If there are no penalties, or something else, or `score` returns no number.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 2, rng=2))
    >>> U = np.random.default_rng(0).normal(size=(200, 5))
    >>> Y = net.predict(U)
    >>> def score(model):
    ...     return -float(np.mean((model.predict(U) - Y) ** 2))
    >>> found = path(sim.collect_states(net, U), [sim.L1(0.1), sim.L1(1e-3)], score)
    >>> bool(found.densities[0] < found.densities[1])
    True
    >>> bool(found.scores[0] < found.scores[1])
    True
    """
    expect(
        "penalties",
        penalties,
        Iterable,
        "give them in a list, from the strongest to the weakest, say",
    )
    chosen, results, scores = tuple(penalties), [], []
    if not chosen:
        raise InputError("there are no penalties; a path needs at least one")
    for name, function in (("score", score), ("fit", fit)):
        expect(
            name,
            function,
            Callable,
            "a function is needed, score(model) -> float and fit(states, penalty=..., start=...) "
            "-> SIMResult",
        )
    for penalty in chosen:
        expect("one of penalties", penalty, Penalty, "use a penalty of pyidl.sim, such as L1(1e-3)")
    start: SIMResult | None = None
    for penalty in chosen:
        result: SIMResult = fit(network, penalty=penalty, start=start)
        results.append(result)
        found = score(result.model)
        if not is_real(found):
            raise InputError(f"score has returned {found!r}; a number is needed")
        scores.append(float(found))
        start = result
    return PenaltyPath(chosen, tuple(results), np.array(scores))
