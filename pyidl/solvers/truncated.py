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
from pyidl.solvers.base import Solver
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.typing import Array

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

    Notes
    -----
    Geng, Zhang, Bai, Wang, Lin, "On training implicit models", NeurIPS 2021.
    """

    steps: int = 5
    tau: float = 0.5

    def __post_init__(self) -> None:
        if not (
            is_whole(self.steps) and self.steps >= 1 and is_real(self.tau) and 0 < self.tau <= 1
        ):
            raise InputError(
                f"steps is {self.steps!r} and tau is {self.tau!r}; use an integer, at least 1, "
                "and 0 < tau <= 1"
            )
        # One of NumPy's would make float64 of float32.
        object.__setattr__(self, "tau", float(self.tau))

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Take the steps, from 0: what the bound is for. x0 is not used."""
        if problem.reference is None:
            raise InputError(
                f"{self!r} is a truncated adjoint; the forward equation is solved, as by Picard"
            )
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
        m = len(residual)
        status = np.where(np.isfinite(residual), Status.CONVERGED, Status.NONFINITE)
        kept = np.stack([*traces, residual]) if trace else None
        return Solution(
            v,
            y,
            status,
            np.full(m, self.steps),
            residual,
            np.full(m, np.inf),
            f"{self!r}, biased",
            kept,
        )

    def at(self, tol: float | None) -> Self:
        """Itself: no tolerance controls it."""
        return self


@dataclass(frozen=True)
class Neumann(Phantom):
    """The first k terms of ``v = h + J^T h + (J^T)^2 h + ...``: `Phantom` with tau = 1.

    Biased: relative error up to ``rho^steps``.
    """

    tau: float = field(default=1.0, init=False)

    def __repr__(self) -> str:
        return f"Neumann(steps={self.steps})"


@dataclass(frozen=True)
class JacobianFree(Phantom):
    """``v = h``: the loop is left out of the gradient altogether.

    `Neumann` with one term.

    Biased: relative error up to rho, so with kappa = 0.99 there may be nothing right in
    it.

    Notes
    -----
    Fung, Heaton, Li, McKenzie, Osher, Yin, "JFB: Jacobian-free backpropagation for
    implicit networks", AAAI 2022.
    """

    steps: int = field(default=1, init=False)
    tau: float = field(default=1.0, init=False)

    def __repr__(self) -> str:
        return "JacobianFree()"
