r"""The optimum on a guessed support: a primal-dual active-set method, row by row.

Let S be the support of w, with signs s, and let ``q'(w) = s (c + d |w|)`` on the
present pieces of the penalty (c = lam, d = 0 for L1). Then w and the multiplier nu of
the bound solve the linear system

    (G_SS + diag d) w = h_S - c s - nu s_a,
    s_a . w_a = kappa,  or nu = 0 where the bound is slack.

Entries that come out with the other sign leave S; entries outside with ``|h - G w| >
q'(0) + nu`` enter, with the sign of that correlation. This is Newton's method for the
nonsmooth optimality conditions: from a support that is nearly right it ends after a few
systems with the exact optimum, and from elsewhere it may not end at all. So it proves
nothing, and its result counts only where its duality gap is smaller.

Source: Hintermüller, Ito, Kunisch, "The primal-dual active set strategy as a semismooth
Newton method", SIAM J. Optim. 13(3), 2003.
"""

from __future__ import annotations

import numpy as np

from pyidl.arrays.backend import from_host, namespace, to_numpy
from pyidl.sim.penalties import Penalty
from pyidl.sim.row_problem import RowProblem
from pyidl.typing import Array

__all__ = ["guess", "work"]

ROUNDS = 12


def work(W: Array) -> float:
    """Operations of about four systems for every row."""
    xp = namespace(W)
    sizes = to_numpy(xp.sum(xp.abs(xp.sign(W)), axis=1))
    return float(np.sum(4.0 * (2.0 / 3.0 * sizes**3 + 4.0 * sizes * W.shape[1])))


def guess(problem: RowProblem, W: Array) -> Array:
    """The optimum of every row as its support suggests.

    A row itself where the systems are singular. Not projected.
    """
    G, H, rows = to_numpy(problem.G), to_numpy(problem.H), np.array(to_numpy(W))
    allowed = np.ones(H.shape, bool) if problem.mask is None else to_numpy(problem.mask)
    for i in range(len(rows)):
        radius = np.inf if problem.radius is None else float(problem.radius[i])
        found = _row(G, H[i], rows[i], allowed[i], problem.ball, radius, problem.penalty)
        if found is not None:
            rows[i] = found
    return from_host(namespace(W), rows)


def _row(
    G: np.ndarray,
    h: np.ndarray,
    w: np.ndarray,
    allowed: np.ndarray,
    ball: int,
    radius: float,
    penalty: Penalty,
) -> np.ndarray | None:
    """One row, or None."""
    k = len(h)
    held = np.arange(k) < ball
    # So little that it counts only where the data cannot tell: duplicate columns, more
    # weights than samples.
    shift = 1e-12 * float(np.mean(np.diagonal(G)))
    for _ in range(ROUNDS):
        S = np.flatnonzero(w)
        s = np.sign(w[S])
        c, d = penalty.pieces(np.abs(w[S]))
        K = G[np.ix_(S, S)] + np.diag(d + shift)
        task = (K, shift, h[S] - c * s, s * held[S], radius)
        try:
            v, nu = _system(*task, np.zeros(len(S)), 0.0)
        except np.linalg.LinAlgError:
            return None
        if not np.all(np.isfinite(v)):
            return None
        g = h - v @ G[S]
        turned = v * s < 0
        entering = allowed & (w == 0) & (np.abs(g) > (penalty.slope + nu * held) * (1.0 + 1e-10))
        settled = all(
            np.array_equal(a, b) for a, b in zip(penalty.pieces(np.abs(v)), (c, d), strict=True)
        )
        w = np.zeros(k)
        w[S] = np.where(turned, 0.0, v)
        if not turned.any() and not entering.any() and settled:
            w[S] = _system(*task, *_system(*task, v, nu))[0]
            return w
        # The size matters for its piece alone: as small as can be.
        w[entering] = np.sign(g[entering]) * np.finfo(np.float64).tiny
    return w


def _system(
    K: np.ndarray,
    shift: float,
    target: np.ndarray,
    bounded: np.ndarray,
    radius: float,
    v: np.ndarray,
    nu: float,
) -> tuple[np.ndarray, float]:
    """``(v, nu)`` of the linear system from an earlier pair.

    Repeated, it undoes what the shift in K has changed.
    """
    step, by_nu = np.linalg.solve(
        K, np.stack([target - nu * bounded - K @ v + shift * v, bounded], axis=1)
    ).T
    v, fall = v + step, float(bounded @ by_nu)
    change = max((float(bounded @ v) - radius) / fall, -nu) if fall > 0 else 0.0
    return v - change * by_nu, nu + change
