r"""Anderson acceleration: the last few iterates, mixed so that residuals cancel.

Let ``F(y) = y(x) - y`` be the residual of the fixed-point map on pre-activations,
``G(y) = y(x)`` its image. From the last k differences ``dF_j, dG_j`` of one sample,

    gamma = argmin |F - sum_j gamma_j dF_j|,      y <- G - sum_j gamma_j dG_j.

On a linear problem this is GMRES in disguise: it removes the few slow modes that a
fixed-point iteration leaves. It replaces the last step of a round; the plain steps
before it have damped the fast modes, which would else fill the memory. The normal
equations have size k; with every dF_j scaled to length 1, a ridge of 30 roundings keeps
them solvable.

*Safeguard.* If F is not smaller than a round ago, the point is dropped and the plain
step is taken from the last good one, ``y <- G``. After a plain step a point is always
accepted, so an iteration that converges without acceleration goes on converging.

Sources: Anderson, J. ACM 12(4), 1965; Walker and Ni, SIAM J. Numer. Anal. 49(4), 2011;
with plain steps in between: Pratapa, Suryanarayana, Pask, J. Comput. Phys. 306, 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays import kernels
from pyidl.arrays.backend import astype, from_host
from pyidl.arrays.batch import max_abs, put_rows, take_rows
from pyidl.errors import expect_flags
from pyidl.solvers.base import Iterative, check_count
from pyidl.solvers.jacobi import split
from pyidl.solvers.loop import Advance
from pyidl.solvers.problem import Problem, Start
from pyidl.solvers.solution import Solution
from pyidl.typing import Namespace

__all__ = ["Anderson", "Mixing"]

RIDGE = 30.0
"""In roundings, for differences of length 1."""


class Mixing(Advance):
    """Anderson's step at the end of a round, for the samples that are engaged.

    Parameters
    ----------
    problem : Problem
        What is solved.
    memory : int
        k.
    """

    every_step = False

    def __init__(self, problem: Problem, memory: int) -> None:
        self.xp, self.in_place, self.memory = problem.xp, problem.in_place, memory
        self.new = np.arange(problem.like.shape[0])  # who will be accelerated from this round on
        self.past: Any = None
        self._engage(np.empty(0, int))

    def _engage(self, rows: np.ndarray) -> None:
        self.rows = rows  # who is accelerated, by their places at hand,
        self.index: Any = None  # and the same on a card, sent once

    def take(self, rows: np.ndarray) -> None:
        """Forget the others."""
        place = np.full(1 + max(rows.max(initial=0), self.rows.max(initial=0)), -1)
        place[rows] = np.arange(len(rows))
        kept = np.flatnonzero(place[self.rows] >= 0)
        if self.past is not None and len(kept) < len(self.rows):
            self.past.take(kept)
        self._engage(place[self.rows[kept]])

    def release(self, leave: np.ndarray) -> None:
        """No longer accelerate these of `rows`, given by a mask."""
        kept = np.flatnonzero(~leave)
        self.past.take(kept)
        self._engage(self.rows[kept])

    def __call__(self, y: Any, y_image: Any) -> Any:
        """Mix the past of those engaged; begin one for the new."""
        following = self._mixed(y, y_image) if len(self.rows) else y_image
        if len(self.new):
            own = [take_rows(self.xp, a, self.new) for a in (y, y_image)]
            kernel = self.xp.__name__ == "cupy" and self.memory <= kernels.MEMORY
            begun = (_FusedPast if kernel else _Past)(self.xp, self.memory, *own)
            rows = np.concatenate([self.rows, self.new])
            if self.past is None:
                self.past = begun
            else:
                self.past.join(begun)
                self.past.take(np.argsort(rows))  # in the order of y
            self._engage(np.sort(rows))
            self.new = self.new[:0]
        return following

    def _mixed(self, y: Any, y_image: Any) -> Any:
        whole, fused = len(self.rows) == y.shape[0], isinstance(self.past, _FusedPast)
        if whole and not fused:
            return self.past.step(y, y_image)
        target = y_image if self.in_place else self.xp.asarray(y_image, copy=True)
        if fused:
            if self.index is None:
                self.index = from_host(self.xp, self.rows)
            return self.past.write(self.index, y, target)
        own = (take_rows(self.xp, a, self.rows) for a in (y, y_image))
        mixed, every = self.past.step(*own), np.arange(len(self.rows))
        return put_rows(self.xp, target, self.rows, mixed, every)


KEPT = ("F", "G", "gram", "size", "plain")


class _Past:
    """What is kept of the samples that are accelerated.

    dF, dG   k differences of residuals and of images, (k, m, n), each dF_j scaled to
             length 1 and dG_j with it; zeros take part in nothing
    F, G     residual and image of the last good point, (m, n)
    gram     ``dF_i . dF_j``, and a ridge; (m, k, k), in float64
    size     ``max|F|``: in this norm a plain step of a certified model comes closer
    plain    1 where a plain step led here
    """

    def __init__(self, xp: Namespace, memory: int, y: Any, y_image: Any) -> None:
        self.xp, self.memory, self.count, self.shape = xp, memory, 0, y.shape[1:]
        m = y.shape[0]
        self.G = xp.asarray(xp.reshape(y_image, (m, -1)), copy=True)
        self.F = self.G - xp.reshape(y, (m, -1))
        self.dF, self.dG = (xp.zeros((memory, *self.F.shape), dtype=y.dtype) for _ in range(2))
        self.ridge = RIDGE * float(xp.finfo(y.dtype).eps)
        eye = (1.0 + self.ridge) * xp.eye(memory, dtype=xp.float64)
        self.gram = xp.zeros((m, memory, memory), dtype=xp.float64) + eye
        self.size, self.plain = max_abs(xp, self.F), xp.ones(m, dtype=y.dtype)

    def join(self, other: _Past) -> None:
        """Have more samples."""
        for name in KEPT:
            setattr(self, name, self.xp.concat([getattr(self, name), getattr(other, name)]))
        self.dF = self.xp.concat([self.dF, other.dF], axis=1)
        self.dG = self.xp.concat([self.dG, other.dG], axis=1)

    def take(self, kept: np.ndarray) -> None:
        """Have only these samples."""
        index = from_host(self.xp, kept)
        for name in KEPT:
            setattr(self, name, self.xp.take(getattr(self, name), index, axis=0))
        self.dF, self.dG = (self.xp.take(a, index, axis=1) for a in (self.dF, self.dG))

    def step(self, y: Any, y_image: Any) -> Any:
        """Remember this point, or drop it where it is no good, and return the next."""
        xp, i = self.xp, self.count % self.memory
        self.count += 1
        y, y_image = (xp.reshape(a, self.F.shape) for a in (y, y_image))
        F, dF, dG = y_image - y, self.dF[i, ...], self.dG[i, ...]
        size = max_abs(xp, F)
        good = xp.logical_or(self.plain > 0, size < self.size)  # False for NaN
        wide = good[:, None]
        dF[...], dG[...] = F - self.F, y_image - self.G
        length = xp.sqrt((dF[:, None, :] @ dF[:, :, None])[:, 0, 0])
        usable = xp.logical_and(good, xp.logical_and(length > 0, xp.isfinite(length)))
        scale = (1.0 / xp.where(usable, length, 1.0))[:, None]
        dF *= scale
        dG *= scale
        if xp is not np or not usable.all():  # what is not finite times 0 is not 0
            dF[...], dG[...] = (xp.where(usable[:, None], a, 0.0) for a in (dF, dG))
        if xp is np and good.all():
            self.F = F
            self.G[...] = y_image
        else:
            self.F, self.G = xp.where(wide, F, self.F), xp.where(wide, y_image, self.G)
        self.size = xp.where(good, size, self.size)
        # The Gram matrix, of which row and column i are new, and the right-hand side dF
        # . F.
        past, images = (xp.permute_dims(a, (1, 0, 2)) for a in (self.dF, self.dG))
        row = astype(xp, past @ dF[:, :, None], xp.float64)[:, :, 0]
        self.gram[:, i, :] = self.gram[:, :, i] = row
        self.gram[:, i, i] = 1.0 + self.ridge
        right = astype(xp, past @ self.F[:, :, None], xp.float64)
        gamma = astype(xp, xp.linalg.solve(self.gram, right)[:, :, 0], y.dtype)
        gamma = xp.where(wide, gamma, 0.0)
        self.plain = astype(xp, xp.logical_not(xp.any(gamma != 0, axis=1)), y.dtype)
        following = (-gamma[:, None, :] @ images)[:, 0, :]  # y <- G - sum_j gamma_j dG_j
        following += self.G
        return xp.reshape(following, (-1, *self.shape))


class _FusedPast(_Past):
    """The past on CuPy.

    A step is one kernel, in which differences keep their lengths.
    """

    def __init__(self, xp: Namespace, memory: int, y: Any, y_image: Any) -> None:
        super().__init__(xp, memory, y, y_image)
        self.gram = xp.zeros_like(self.gram)

    def write(self, rows: Any, y: Any, y_image: Any) -> Any:
        """The next points, into these rows of y_image."""
        flat, following = (self.xp.reshape(a, (a.shape[0], -1)) for a in (y, y_image))
        slot, known = self.count % self.memory, min(self.count + 1, self.memory)
        self.count += 1
        kept = self.F, self.G, self.dF, self.dG, self.gram, self.size, self.plain
        kernels.mix(self.xp, rows, flat, following, *kept, slot, known, self.ridge)
        return self.xp.reshape(following, y_image.shape)


@dataclass(frozen=True)
class Anderson(Iterative):
    """Anderson acceleration of Picard or of the Jacobi splitting, once a round.

    It pays where their rate is slow and few modes make it so. It keeps 2 k + 4 states.

    Parameters
    ----------
    tol, max_iter
        As for `Picard`.
    memory : int
        k, the number of differences kept.
    splitting : bool
        Whether to accelerate `Jacobi` instead of Picard.

    Raises
    ------
    InputError
        If a number is out of range; in a call, where `Jacobi` would raise it.

    Examples
    --------
    >>> from pyidl.matrices.full import Full
    >>> from pyidl import activations
    >>> from pyidl.solvers import Picard
    >>> from pyidl.solvers.problem import Affine
    >>> A, z = np.full((20, 20), 0.99 / 20), np.linspace(0.1, 1, 20)[None, :]
    >>> slow = Affine(Full(A), z, activations.relu)
    >>> int(Anderson()(slow).n_iter[0]) < 20, int(Picard()(slow).n_iter[0]) > 2000
    (True, True)
    """

    memory: int = 3
    splitting: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("memory", self.memory)
        expect_flags(self, "splitting")

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Accelerate from f(x0), or from f(0)."""
        target = split(problem) if self.splitting else problem
        method = f"Anderson({self.memory}) of {'Jacobi' if self.splitting else 'Picard'}"
        mixing = Mixing(target, self.memory)
        return target.restore(self._iterate(target, x0, trace, method, mixing))
