r"""Biased adjoints, by name only: a few steps instead of a solve.

From v = 0, ``v <- (1 - tau) v + tau (J^T v + h)``, k times. In a norm in which J^T
contracts by rho, a step contracts by ``1 - tau (1 - rho)``; v starts at distance |v*|
from the answer. So

    |v_k - v*| <= (1 - tau (1 - rho))^k |v*|:

a relative error that no tolerance controls. For k = 1, tau = 1 it is up to rho. The
gradients made of such a v are wrong by as much; in exchange the backward pass costs k -
1 products (and one more, with which the residual is reported).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from pyidl.errors import InputError, is_real, is_whole
from pyidl.solvers.base import Solver, right_side
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution, Status

__all__ = ["JacobianFree", "Neumann", "Phantom"]


@dataclass(frozen=True)
class Phantom(Solver):
    """k averaged steps, ``v <- (1 - tau) v + tau (J^T v + h)``: the phantom gradient.

    Biased: relative error up to ``(1 - tau (1 - rho))^steps`` where J^T contracts by
    rho. The residual is reported, but no tolerance is asked of it (`Solution.tolerance`
    is infinite).

    Parameters
    ----------
    steps : int
        k.
    tau : float
        0 < tau <= 1.

    Raises
    ------
    InputError
        If one of them is out of range; in a call, if the problem is a forward one.

    Notes
    -----
    Geng, Zhang, Bai, Wang, Lin, "On training implicit models", NeurIPS 2021.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 20, adjoint=Phantom(steps=8), rng=0)
    >>> Y, pull = model(np.ones((4, 3)))
    >>> pull(np.ones((4, 2)))[1]["A"].shape
    (20, 20)
    """

    steps: int = 5
    tau: float = 0.5

    def __post_init__(self) -> None:
        known = is_whole(self.steps) and is_real(self.tau)
        if not (known and self.steps >= 1 and 0 < self.tau <= 1):
            raise InputError(
                f"steps is {self.steps!r} and tau is {self.tau!r}; use an integer, at least 1, "
                "and 0 < tau <= 1"
            )
        # One of NumPy's would make float64 of float32.
        object.__setattr__(self, "tau", float(self.tau))

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Take the steps, from 0: what the bound is for. x0 is not used."""
        right_side(problem, f"{self!r}, a truncated adjoint,")
        tau, traces = self.tau, []
        y, h = problem.start()
        y, v = tau * y, tau * h
        y_image = problem.pre(v)
        for _ in range(self.steps - 1):
            if trace:
                traces.append(problem.measure(v, y_image, problem.image(y_image))[0])
            y = (1.0 - tau) * y + tau * y_image
            v = problem.image(y)
            y_image = problem.pre(v)
        residual, _ = problem.measure(v, y_image, problem.image(y_image))
        status = np.where(np.isfinite(residual), Status.CONVERGED, Status.NONFINITE)
        taken, allowed = np.full(len(residual), self.steps), np.full(len(residual), np.inf)
        kept = np.stack([*traces, residual]) if trace else None
        return Solution(v, y, status, taken, residual, allowed, f"{self!r}, biased", kept)

    def at(self, tol: float | None) -> Self:
        """The solver itself, which no tolerance controls."""
        return self


@dataclass(frozen=True)
class Neumann(Phantom):
    """The first k terms of ``v = h + J^T h + (J^T)^2 h + ...``: `Phantom` with tau = 1.

    Biased: relative error up to ``rho^steps``.

    Parameters
    ----------
    steps : int
        k.

    Examples
    --------
    >>> Neumann(steps=3)
    Neumann(steps=3)
    """

    tau: float = field(default=1.0, init=False)

    def __repr__(self) -> str:
        return f"Neumann(steps={self.steps})"


@dataclass(frozen=True)
class JacobianFree(Phantom):
    """``v = h``: the loop is left out of the gradient; `Neumann` with one term.

    Biased: relative error up to rho, so with kappa = 0.99 there may be nothing right in
    it.

    Notes
    -----
    Fung, Heaton, Li, McKenzie, Osher, Yin, "JFB: Jacobian-free backpropagation for
    implicit networks", AAAI 2022.

    Examples
    --------
    >>> JacobianFree()
    JacobianFree()
    """

    steps: int = field(default=1, init=False)
    tau: float = field(default=1.0, init=False)

    def __repr__(self) -> str:
        return "JacobianFree()"
