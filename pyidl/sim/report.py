"""What a fit of states has found, and how well.

The model, and the numbers of the convex problems behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.wellposed.certificate import Certificate

__all__ = ["Report", "SIMResult", "Solved"]


@dataclass(frozen=True, eq=False)
class Solved:
    """How the problems of some rows were solved.

    Arrays of one number a row, on the host.

    Attributes
    ----------
    objective : numpy.ndarray
        Mean loss and penalty, ``|z - M w|^2 / (2m) + p(w)``.
    gap : numpy.ndarray
        An upper bound of what it is above its minimum: the duality gap.
    relative_gap : float
        The largest gap divided by its objective (rows that are fitted exactly count
        with 1e-8 of their target's square).
    n_iter : numpy.ndarray of int
        Steps.
    converged : numpy.ndarray of bool
        Whether the gap is within the solver's tolerance.
    unexplained : numpy.ndarray
        The share of a target's variance (of its square, without intercepts) that the
        row leaves over; 0 for a constant target.
    lam_max : float
        The smallest lam of L1 for which all weights are zero.
    method : str
        What was done, in words.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 2, rng=2))
    >>> result = sim.fit(net, np.random.default_rng(0).normal(size=(99, 5)))
    >>> solved = result.report.states
    >>> solved.objective.shape, solved.relative_gap < 1e-4
    ((8,), True)
    """

    objective: np.ndarray
    gap: np.ndarray
    relative_gap: float
    n_iter: np.ndarray
    converged: np.ndarray
    unexplained: np.ndarray
    lam_max: float
    method: str

    def __str__(self) -> str:
        done, lost = int(np.count_nonzero(self.converged)), float(np.mean(self.unexplained))
        return (
            f"objective {float(self.objective.sum()):.4g}, relative gap {self.relative_gap:.1e} "
            f"({done} of {len(self.converged)} rows "
            f"within the tolerance), unexplained {lost:.2%} on average, lam_max {self.lam_max:.3g} "
            f"({self.method})"
        )


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a fit knows.

    Attributes
    ----------
    samples : int
        Number of samples m.
    states, outputs : Solved
        The rows of (A, B), and those of (C, D), in the last round.
    nonzeros : mapping of str to (int, int)
        For A (or its factors L and R), B, C and D, the entries that differ from zero,
        and all.
    norm : float
        ``||A||_inf``.
    certificate : Certificate
        What is proven about the model.
    dropped : int
        Samples for which the model's own fixed point did not converge, in the last
        round; they did not count in it.
    seconds : mapping of str to float
        Time by part: "collect", "states", "regenerate", "outputs".

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 2, rng=2))
    >>> result = sim.fit(net, np.random.default_rng(0).normal(size=(99, 5)))
    >>> report = result.report
    >>> report.samples, report.nonzeros["D"][1], report.certificate.proven
    (99, 10, True)
    """

    samples: int
    states: Solved
    outputs: Solved
    nonzeros: Mapping[str, tuple[int, int]]
    norm: float
    certificate: Certificate
    dropped: int
    seconds: Mapping[str, float]

    @property
    def density(self) -> float:
        """The share of all entries of A, B, C and D that differ from zero."""
        some, all_ = np.sum(list(self.nonzeros.values()), axis=0)
        return float(some / all_)

    def __str__(self) -> str:
        shares = ", ".join(
            f"{key} {some / all_:.1%}" for key, (some, all_) in self.nonzeros.items()
        )
        times = ", ".join(f"{key} {value:.2f} s" for key, value in self.seconds.items())
        lines = [
            f"{self.samples} samples"
            + (
                f", {self.dropped} of them dropped: their fixed points were not found"
                if self.dropped
                else ""
            ),
            f"(A, B): {self.states}",
            f"(C, D): {self.outputs}",
            f"nonzero: {shares}; {self.density:.1%} of all",
            f"||A||_inf = {self.norm:.4g}; {self.certificate}",
            f"time: {times}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class SIMResult:
    """A model learned from states, and the report.

    Attributes
    ----------
    model : ImplicitModel
        An ordinary model: it can be trained further, saved, certified.
    report : Report

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 2, rng=2))
    >>> result = sim.fit(net, np.random.default_rng(0).normal(size=(99, 5)))
    >>> sparse = result.model.replace(pattern=result.support)
    >>> bool(np.all(sparse.params["A"][~result.support.A] == 0))
    True
    """

    model: ImplicitModel
    report: Report

    @property
    def support(self) -> Pattern:
        """Where A, B, C and D differ from zero.

        With ``model.replace(pattern=result.support)`` further training keeps the zeros.
        """
        return Pattern(
            **{key: to_numpy(a) != 0 for key, a in self.model.params.items() if key in "ABCD"}
        )

    def __str__(self) -> str:
        return f"{self.model!r}\n{self.report}"
