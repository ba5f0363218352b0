r"""Anderson acceleration, per sample: the next iterate from the last few, so chosen that their residuals cancel.

Let ``F(y) = y(x) - y`` be the residual of the fixed-point map on pre-activations, ``G(y) = y(x)`` its image. From the last
k differences ``dF_j, dG_j`` of one sample,

    gamma = argmin |F - sum_j gamma_j dF_j|,      y <- G - sum_j gamma_j dG_j.

On a linear problem this is GMRES in disguise: it removes the few slow modes that a fixed-point iteration leaves. The normal
equations have size k; with every dF_j scaled to length 1, a ridge of 30 roundings keeps them solvable.

*Safeguard.* If the residual of the accelerated point is not below that of the point it came from, the point is dropped
and the plain step is taken instead, ``y <- G`` of the last good point. A plain step is always accepted, so an iteration
that converges without acceleration goes on converging.

Sources: Anderson, J. ACM 12(4), 1965; Walker and Ni, SIAM J. Numer. Anal. 49(4), 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl import kernels
from pyidl.backend import astype, from_host
from pyidl.errors import InputError, expect_flags, is_whole
from pyidl.rows import max_abs, put_rows, take_rows
from pyidl.solvers.base import Iterative
from pyidl.solvers.jacobi import split
from pyidl.solvers.loop import Advance, iterate
from pyidl.solvers.problem import Problem
from pyidl.solvers.solution import Solution
from pyidl.typing import Array, Namespace

__all__ = ["Anderson", "Mixing"]


RIDGE = 30.0
"""In roundings, for differences of length 1."""
CHEAP = 50.0
"""Up to this many steps saved, an acceleration that was not needed costs little."""


class Mixing(Advance):
    """Anderson's step for the samples that are engaged, the plain step for the others.

    Samples that were engaged in the same step share a past; so each goes its way as if it were alone. Those steps are 1, 2,
    3, 4, 6, 8, 12, 16, ..., so that there are few such groups.

    Parameters
    ----------
    problem : Problem
        What is solved.
    memory : int
        k.
    pays_from : float
        A sample takes plain steps until its own rate has twice (once, if this is below 50) predicted more steps than this; 0
        engages all of them at once.
    """

    def __init__(self, problem: Problem, memory: int, pays_from: float = 0.0) -> None:
        m = problem.like.shape[0]
        self.xp, self.in_place, self.memory, self.pays_from = (
            problem.xp,
            problem.in_place,
            memory,
            pays_from,
        )
        # Who is accelerated; who is slow, and not yet accelerated; who was slow when last measured. One measurement may be a transient;
        # where acceleration costs little, it is enough.
        self.engaged, self.slow, self.suspect = np.zeros((3, m), bool)
        self.slow[:] = self.waiting = pays_from == 0.0  # whether any is slow
        self.suspect[:] = pays_from < CHEAP
        self.steps = 0
        self.pasts: list[_Past | _FusedPast] = []
        self.count = 0

    @property
    def steady(self) -> bool:
        """Unless all are accelerated from the start."""
        return self.pays_from > 0.0

    @property
    def plain(self) -> bool:
        """While nobody is engaged."""
        return not self.pasts

    def observe(self, rows: np.ndarray, to_go: np.ndarray) -> np.ndarray:
        """Engage the samples that are slow."""
        if self.pays_from > 0.0:
            slow = to_go > self.pays_from
            self.slow[rows] = slow & self.suspect[rows] & ~self.engaged[rows]
            self.suspect[rows] = slow
            self.waiting = bool(self.slow.any())
        often: np.ndarray = self.engaged[rows]
        return often

    def take(self, rows: np.ndarray) -> None:
        """Forget the others."""
        place = np.full(len(self.engaged), -1)
        place[rows] = np.arange(len(rows))
        self.engaged, self.slow, self.suspect = (
            self.engaged[rows],
            self.slow[rows],
            self.suspect[rows],
        )
        pasts = self.pasts
        self.pasts = []
        for past in pasts:
            kept = np.flatnonzero(place[past.rows] >= 0)
            if len(kept):
                past.take(kept, place[past.rows[kept]], len(rows))
                self.pasts.append(past)

    def __call__(self, y: Any, y_image: Any) -> Any:
        """The plain step while nobody is engaged, then the accelerated one."""
        self.steps += 1
        pasts = list(self.pasts)
        if self.waiting:
            self._engage(y, y_image)  # these take the plain step once more
        following: Any = None
        for past in pasts:
            following = past.step(y, y_image if following is None else following)
        return following

    def _engage(self, y: Any, y_image: Any) -> None:
        """Begin a past for the slow samples."""
        new = np.flatnonzero(self.slow)
        if self.steps // (self.steps & -self.steps) not in (1, 3) or len(new) == 0:
            return
        if self.xp.__name__ == "cupy" and self.memory <= kernels.MEMORY:
            self.pasts.append(_FusedPast(self.xp, y, y_image, new, self.memory, self.in_place))
        else:
            self.pasts.append(
                _Past(self.xp, y, y_image, new, self.memory, self.in_place and self.xp is np)
            )
        self.engaged |= self.slow
        self.slow[:] = self.waiting = False
        self.count += len(new)


class _Past:
    """What is kept of the samples that are accelerated.

    dF, dG   k differences of residuals and of images, (m, n) each; a dropped point leaves zeros, which take part in nothing
    F, G     residual and image of the last good point
    gram     ``dF_i . dF_j``, (m, k, k)
    """

    def __init__(
        self, xp: Namespace, y: Any, y_image: Any, rows: np.ndarray, memory: int, in_place: bool
    ) -> None:
        self.xp, self.rows, self.all, self.in_place, self.step_count = (
            xp,
            rows,
            len(rows) == y.shape[0],
            in_place,
            0,
        )
        y, y_image = self._own(y), self._own(y_image)
        # One block of memory for all, as in Problem.buffers. Differences that do not exist yet are never looked at.
        block = xp.empty((2 * memory + 4, *y.shape), dtype=y.dtype) if self.in_place else None
        room: list[Any] = (
            [None] * (2 * memory + 4)
            if block is None
            else [block[i, ...] for i in range(2 * memory + 4)]
        )
        self.dF: list[Any] = room[:memory]
        self.dG: list[Any] = room[memory : 2 * memory]
        self.F, self.G, self.new, self.work = room[2 * memory :]
        self.F, self.G = (
            self._into(xp.subtract, y_image, y, out=self.F),
            self._into(xp.multiply, y_image, 1.0, out=self.G),
        )
        self.size, self.plain = self._sizes(self.F), xp.ones(y.shape[0], dtype=y.dtype)
        self.gram = xp.zeros((y.shape[0], memory, memory), dtype=xp.float64)
        self.units = xp.eye(memory, dtype=xp.float64)

    def _own(self, a: Any) -> Any:
        """The rows of these samples."""
        return a if self.all else take_rows(self.xp, a, self.rows)

    def _into(self, function: Any, a: Any, b: Any, out: Any) -> Any:
        return function(a, b, out=out) if self.in_place else function(a, b)

    def _sizes(self, F: Any) -> Any:
        """``max|F|``: in this norm a plain step of a certified model comes closer."""
        if not self.in_place:
            return max_abs(self.xp, F)
        flat = np.abs(F, out=self.work).reshape(-1)
        return np.maximum.reduceat(flat, np.arange(0, flat.size, flat.size // len(F)))

    def take(self, kept: np.ndarray, rows: np.ndarray, count: int) -> None:
        """Keep some of the samples; these are their new numbers among `count`."""
        self.rows, self.all = rows, len(rows) == count
        for name in ("F", "G", "size", "plain", "gram", "new", "work"):
            if getattr(self, name) is not None:
                setattr(self, name, take_rows(self.xp, getattr(self, name), kept))
        self.dF, self.dG = (
            [a if a is None else take_rows(self.xp, a, kept) for a in arrays]
            for arrays in (self.dF, self.dG)
        )

    def step(self, y: Any, y_image: Any) -> Any:
        """The next y of these samples, among the images of the others; y or y_image are written into if that is allowed."""
        following = self._step(self._own(y), self._own(y_image))
        if self.all:
            return following
        target = y_image if self.in_place else self.xp.asarray(y_image, copy=True)
        return put_rows(self.xp, target, self.rows, following, np.arange(len(self.rows)))

    def _step(self, y: Any, y_image: Any) -> Any:
        """Remember this point, drop it where it is no good, and return the next; y is written into if that is allowed."""
        xp, k = self.xp, len(self.dF)
        i, known = self.step_count % k, min(self.step_count + 1, k)
        self.step_count += 1
        F = self._into(xp.subtract, y_image, y, out=self.new)  # F(y) = G(y) - y
        self.dF[i] = self._into(xp.subtract, F, self.F, out=self.dF[i])
        self.dG[i] = self._into(xp.subtract, y_image, self.G, out=self.dG[i])
        size = self._sizes(F)
        good = xp.logical_or(self.plain > 0, size < self.size)  # False for NaN
        self._drop(good, i, F, y_image)
        self.size = xp.where(good, size, self.size)
        # The Gram matrix, of which row and column i are new, and the right-hand side dF . F.
        dF = self.dF[:known]
        zero = xp.zeros_like(self.size)
        row = xp.stack([_dots(xp, a, self.dF[i]) for a in dF] + [zero] * (k - known), axis=1)
        b = xp.stack([_dots(xp, a, self.F) for a in dF] + [zero] * (k - known), axis=1)
        unit = self.units[i, :]
        keep = (1.0 - unit)[:, None] * (1.0 - unit)[None, :]
        cross = row[:, :, None] * unit[None, None, :] + row[:, None, :] * unit[None, :, None]
        self.gram = self.gram * keep + cross * (1.0 - 0.5 * unit[:, None] * unit[None, :])
        gamma = astype(xp, _solve(xp, self.gram, b, float(xp.finfo(y.dtype).eps)), y.dtype)
        gamma = xp.where(good[:, None], gamma, 0.0)
        self.plain = astype(xp, xp.logical_not(xp.any(gamma != 0, axis=1)), y.dtype)
        following = self.G  # y <- G - sum_j gamma_j dG_j
        for j in range(known):
            change = self._into(xp.multiply, _wide(gamma[:, j], y), self.dG[j], out=self.work)
            following = self._into(xp.subtract, following, change, out=y)
        return following

    def _drop(self, good: Any, i: int, F: Any, y_image: Any) -> None:
        """F and G become those of the point at hand; where it is no good they stay, and the differences are 0."""
        xp = self.xp
        if self.in_place:
            bad = np.flatnonzero(~good)  # few, if any
            kept = self.F[bad], self.G[bad]
            self.F, self.new = F, self.F
            np.copyto(self.G, y_image)
            self.F[bad], self.G[bad] = kept
            self.dF[i][bad] = self.dG[i][bad] = 0.0
            return
        wide = _wide(good, y_image)
        self.F, self.G = xp.where(wide, F, self.F), xp.where(wide, y_image, self.G)
        self.dF[i], self.dG[i] = xp.where(wide, self.dF[i], 0.0), xp.where(wide, self.dG[i], 0.0)


class _FusedPast:
    """The same on CuPy, where a step is one kernel (`kernels.mix`); dF, dG, F and G are one array, (2 k + 2, m, n)."""

    def __init__(
        self, xp: Namespace, y: Any, y_image: Any, rows: np.ndarray, memory: int, in_place: bool
    ) -> None:
        self.xp, self.rows, self.memory, self.in_place, self.step_count = (
            xp,
            rows,
            memory,
            in_place,
            0,
        )
        self.places = from_host(xp, rows)
        self.kept = xp.zeros((2 * memory + 2, len(rows), *y.shape[1:]), dtype=y.dtype)
        F, G = self.kept[2 * memory, ...], self.kept[2 * memory + 1, ...]
        G[...] = xp.take(y_image, self.places, axis=0)
        xp.subtract(G, xp.take(y, self.places, axis=0), out=F)
        self.size, self.plain = max_abs(xp, F), xp.ones(len(rows), dtype=y.dtype)
        self.gram = xp.zeros((len(rows), memory, memory), dtype=xp.float64)

    def take(self, kept: np.ndarray, rows: np.ndarray, count: int) -> None:
        """Keep some of the samples; these are their new numbers."""
        self.rows, self.places = rows, from_host(self.xp, rows)
        index = from_host(self.xp, kept)
        self.kept = self.xp.take(self.kept, index, axis=1)
        self.size, self.plain, self.gram = (
            self.xp.take(a, index, axis=0) for a in (self.size, self.plain, self.gram)
        )

    def step(self, y: Any, y_image: Any) -> Any:
        """The next y of these samples, among the images of the others, in y_image if that is allowed."""
        y_image = y_image if self.in_place else self.xp.asarray(y_image, copy=True)
        k, slot = self.memory, self.step_count % self.memory
        self.step_count += 1
        dF, dG, F, G = (
            self.kept[:k, ...],
            self.kept[k : 2 * k, ...],
            self.kept[2 * k, ...],
            self.kept[2 * k + 1, ...],
        )
        ridge, known = RIDGE * float(self.xp.finfo(y.dtype).eps), min(self.step_count, k)
        kernels.mix(
            self.xp,
            self.places,
            y,
            y_image,
            F,
            G,
            dF,
            dG,
            self.gram,
            self.size,
            self.plain,
            slot,
            known,
            ridge,
        )
        return y_image


def _wide(column: Any, like: Any) -> Any:
    """A number for each sample, in a shape that meets the state's."""
    return column if like.ndim == 1 else column[(slice(None), *[None] * (like.ndim - 1))]


def _dots(xp: Namespace, a: Any, b: Any) -> Any:
    """The inner product of each sample's part, float64."""
    m = a.shape[0]
    product = (
        np.vecdot(a.reshape(m, -1), b.reshape(m, -1))
        if xp is np
        else xp.sum(a * b, axis=tuple(range(1, a.ndim)))
    )
    return astype(xp, product, "float64")


def _solve(xp: Namespace, H: Any, b: Any, eps: float) -> Any:
    """``H gamma = b``, with each difference scaled to length 1 and a ridge; 0 for differences that are 0."""
    k = H.shape[1]
    eye = xp.eye(k, dtype=H.dtype)
    length = xp.sqrt(xp.sum(H * eye, axis=2))
    usable = xp.logical_and(length > 0, xp.isfinite(length))
    inverse = xp.where(usable, 1.0 / xp.where(usable, length, 1.0), 0.0)
    H = xp.where(xp.isfinite(H), H, 0.0) * inverse[:, :, None] * inverse[:, None, :]
    H = H + eye * (RIDGE * eps + astype(xp, xp.logical_not(usable), H.dtype)[:, None, :])
    b = xp.where(usable, b, 0.0) * inverse
    return xp.linalg.solve(H, b[:, :, None])[:, :, 0] * inverse


@dataclass(frozen=True)
class Anderson(Iterative):
    """Anderson acceleration of Picard or of the Jacobi splitting; pays where their rate is slow and few modes make it so.

    It keeps 2 k + 4 states (2 k + 2 on a GPU) and moves some ten more of them a step, so for small n, where a product is cheap, plain
    steps may be faster.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.
    memory : int
        k, the number of differences kept.
    splitting : bool
        Whether to accelerate `Jacobi` instead of Picard.

    Examples
    --------
    >>> from pyidl.structure import Full
    >>> from pyidl import activations
    >>> from pyidl.solvers import Picard
    >>> from pyidl.solvers.problem import Affine
    >>> slow = Affine(Full(np.full((20, 20), 0.99 / 20)), np.linspace(0.1, 1, 20)[None, :], activations.relu)
    >>> int(Anderson()(slow).n_iter[0]) < 10, int(Picard()(slow).n_iter[0]) > 2000
    (True, True)
    """

    memory: int = 3
    splitting: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_whole(self.memory) and self.memory >= 1):
            raise InputError(f"memory is {self.memory!r}; an integer is needed, at least 1")
        expect_flags(self, "splitting")

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Accelerate from f(x0), or from f(0)."""
        method = f"Anderson({self.memory}) of {'Jacobi' if self.splitting else 'Picard'}"
        target = split(problem) if self.splitting else problem
        solution = iterate(
            target,
            x0,
            Mixing(target, self.memory),
            tol=self.tol,
            max_iter=self.max_iter,
            method=method,
            trace=trace,
        )
        return target.restore(solution)
