r"""GMRES for the adjoint equation of all samples, from products with J^T.

    (I - J^T) v = h

After k products, v is the point of ``v_0 + span(r_0, (I - J^T) r_0, ..., (I -
J^T)^{k-1} r_0)`` with the smallest residual in the 2-norm. It needs no contraction,
only that ``I - J^T`` is invertible (and, with restarts, some luck where nothing
contracts). Orthogonal vectors are kept for each sample, `restart` of them; their small
Hessenberg systems are solved on the host.

Source: Saad and Schultz, SIAM J. Sci. Stat. Comput. 7(3), 1986.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import astype, from_host, to_numpy
from pyidl.arrays.batch import put_rows, take_rows
from pyidl.solvers.base import Iterative, check_count, right_side
from pyidl.solvers.loop import growth_limit, resolve_tol
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution, Status

__all__ = ["GMRES"]


@dataclass(frozen=True)
class GMRES(Iterative):
    """Restarted GMRES, one Krylov space for each sample.

    The residual is computed anew, not estimated, before it counts.

    Parameters
    ----------
    tol : float, optional
        As for `Picard`.
    max_iter : int
        Largest number of products.
    restart : int
        Largest dimension of a Krylov space: (restart + 1) states of memory.

    Raises
    ------
    InputError
        If one of them is out of range; in a call, if the problem is a forward one.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 20, adjoint=GMRES(restart=10), rng=0)
    >>> Y, pull = model(np.ones((4, 3)))
    >>> pull(np.ones((4, 2)))[1]["A"].shape
    (20, 20)
    """

    max_iter: int = 500
    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("restart", self.restart)

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Solve from x0, or from 0. A trace has one row for each restart."""
        most = right_side(problem, "GMRES") * growth_limit(problem.like, problem.xp)
        xp, m, tol = problem.xp, len(most), resolve_tol(self.tol, problem.like, problem.xp)
        status, n_iter = np.full(m, int(Status.MAX_ITER)), np.zeros(m, int)
        residual, tolerance, traces = np.full(m, np.inf), np.zeros(m), []
        v = xp.zeros_like(problem.like) if x0 is None else xp.asarray(x0, copy=True)
        rows, part = np.arange(m), problem
        best, pre = xp.zeros_like(v), xp.zeros_like(v)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            while len(rows):
                y, image = part.step(v)
                now, size = part.measure(v, y, image)
                limit = part.tolerance(np.minimum(size, most[rows]), tol)
                n_iter[rows] += 1
                better = (now < residual[rows]) | (now <= limit)
                # v itself, not f(v): where J is large, one more step makes its error
                # larger.
                chosen, places = rows[better], np.flatnonzero(better)
                best = put_rows(xp, best, chosen, v, places)
                pre = put_rows(xp, pre, chosen, y, places)
                residual[chosen], tolerance[chosen] = now[better], limit[better]
                status[rows[now <= limit]] = Status.CONVERGED
                status[rows[~np.isfinite(now)]] = Status.NONFINITE
                more = n_iter[rows] < self.max_iter
                status[rows[np.isfinite(now) & ~better & more]] = Status.STAGNATED
                traces.append(np.full(m, np.nan))
                traces[-1][rows] = now
                keep = np.flatnonzero((status[rows] == Status.MAX_ITER) & more)
                rows = rows[keep]
                if len(rows) == 0:
                    break
                v, r, part = take_rows(xp, v, keep), take_rows(xp, image - v, keep), part.take(keep)
                left = self.max_iter - int(n_iter[rows].min())
                dimension = min(self.restart, left, problem.like.size // m)
                correction, products = _cycle(xp, part, r, dimension, limit[keep])
                v = v + correction
                n_iter[rows] += products
        steps, method = np.stack(traces) if trace else None, f"GMRES({self.restart})"
        return Solution(best, pre, status, n_iter, residual, tolerance, method, steps)


def _cycle(
    xp: Any, problem: Problem, r: Any, size: int, limit: np.ndarray
) -> tuple[Any, np.ndarray]:
    """``c = argmin |r - (I - J^T) c|`` in the Krylov space of r, and products used.

    Let Q be an orthogonal basis of the space, Q' the same with one vector more. Then

        r = beta q_1,    (I - J^T) Q = Q' H,    c = Q y,    y = argmin |beta e_1 - H y|.

    A sample's space grows until its residual is small, or nothing is left outside that
    a product could add, or a product has overflowed: then c is NaN.
    """
    m, n = r.shape[0], r.size // r.shape[0]
    h, one = problem.start()[1], xp.ones((1,), dtype=r.dtype)
    beta = _norm(xp, r)
    basis = xp.zeros((m, size + 1, n), dtype=r.dtype)
    basis[:, 0, :] = xp.reshape(_divide(xp, r, beta), (m, n))
    H, y, right = np.zeros((m, size + 1, size)), np.zeros((m, size)), np.zeros((m, size + 1))
    right[:, 0] = beta
    used, grows, broken = np.zeros(m, int), np.ones(m, bool), np.zeros(m, bool)
    for j in range(size):
        q, Q = basis[:, j, :], basis[:, : j + 1, :]
        w = q - xp.reshape(problem.f(xp.reshape(q, r.shape)) - h, (m, n))
        c = xp.zeros((m, j + 1), dtype=r.dtype)
        for _ in range(2):  # Gram and Schmidt: where the basis is long, once is not enough
            part = Q @ w[:, :, None]
            w, c = w - (xp.matrix_transpose(Q) @ part)[:, :, 0], c + part[:, :, 0]
        largest = xp.max(xp.abs(w), axis=1, keepdims=True)
        w = w / xp.where(largest > 0, largest, one)  # whose squares neither overflow nor vanish
        length = xp.sqrt(xp.sum(w * w, axis=1, keepdims=True))
        basis[:, j + 1, :] = w / xp.where(length > 0, length, one)
        H[:, : j + 2, j] = to_numpy(xp.concat([c, largest * length], axis=1))  # the one wait
        # LAPACK's SVD may not return from a matrix that is not finite.
        broken |= grows & ~np.all(np.isfinite(H[:, : j + 2, j]), axis=1)
        H[broken] = 0.0
        small, fits = H[:, : j + 2, : j + 1], grows & ~broken
        y[fits, : j + 1] = (np.linalg.pinv(small) @ right[:, : j + 2, None])[fits, :, 0]
        left = np.linalg.norm(right[:, : j + 2] - (small @ y[:, : j + 1, None])[:, :, 0], axis=1)
        close = left <= 0.5 * limit
        exhausted = H[:, j + 1, j] <= 1e-14 * np.abs(small).max(axis=(1, 2))
        used[grows] = j + 1
        grows &= ~(close | exhausted | broken)
        if not grows.any():
            break
    y[broken] = np.nan
    along = astype(xp, from_host(xp, y[:, : j + 1]), r.dtype)
    c = along[:, None, :] @ basis[:, : j + 1, :]
    return xp.reshape(c, r.shape), used


def _norm(xp: Any, a: Any) -> np.ndarray:
    """The 2-norm of each sample, scaled so that squares do not vanish."""
    axes = tuple(range(1, a.ndim))
    largest = to_numpy(xp.max(xp.abs(a), axis=axes)).astype(np.float64)
    scaled = _divide(xp, a, largest)
    squares = to_numpy(xp.sum(scaled * scaled, axis=axes, dtype=xp.float64))
    return np.asarray(largest * np.sqrt(squares))


def _divide(xp: Any, a: Any, by: np.ndarray) -> Any:
    """Every sample divided by its number, or 0 where that is 0."""
    c = np.where(by > 0, 1.0 / np.where(by > 0, by, 1.0), 0.0)
    return a * astype(xp, from_host(xp, c.reshape(-1, *[1] * (a.ndim - 1))), a.dtype)
