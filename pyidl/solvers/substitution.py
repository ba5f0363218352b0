r"""Block substitution: solve a block triangular equation block by block.

With the groups of A's pattern in topological order (`pyidl.pattern`),

    x_i = phi(A_ii x_i + (sum over earlier j of A_ij x_j) + z_i),    one i after the other.

A group without cycles is solved by that one line if A_ii = 0, and by k applications of it if it joins k layers, as those of a very deep
net are (A_ii^k = 0); for the others an inner solver is called. A feed-forward network in implicit form thus costs the products of its
layers. The adjoint, with A transposed, runs through the groups in reverse: backpropagation.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, SIAM J. Math. Data Sci. 3(3), 2021, section 2 (block triangular A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np

from pyidl.backend import to_numpy
from pyidl.errors import InputError, expect
from pyidl.rows import max_abs
from pyidl.solvers.base import Solver
from pyidl.solvers.loop import resolve_tol
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import AffineMap, Problem
from pyidl.solvers.solution import Solution, Status
from pyidl.structure import Tiled
from pyidl.typing import Array

__all__ = ["Substitution"]


@dataclass(frozen=True)
class Substitution(Solver):
    """Solve group by group. Needs an A that is block triangular, as `ImplicitModel` finds it or as its pattern says.

    The residual of a group without cycles is zero by construction, up to the rounding of its product; that of a sample is
    the largest of its groups', its number of steps the largest too.

    Parameters
    ----------
    inner : Solver
        For groups with cycles.
    """

    inner: Solver = Picard()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        expect("inner", self.inner, Solver, "use one of pyidl.solvers, such as Picard()")

    def __call__(
        self, problem: Problem, x0: Array | None = None, *, trace: bool = False
    ) -> Solution:
        """Substitute; x0 is of use to groups with cycles only. A trace has one row, the final residuals."""
        if not isinstance(problem, AffineMap):
            raise InputError(
                f"Substitution needs a block triangular A and a componentwise phi, and {problem.lacking}; use Picard or Anderson"
            )
        if not isinstance(problem.matrix, Tiled):
            raise InputError(
                "Substitution needs a block triangular A, and this one is not; give the model a pattern, or use Picard, Jacobi or Anderson"
            )
        xp, matrix, groups = problem.xp, problem.matrix, problem.matrix.row_groups
        m, count = problem.like.shape[0], len(groups.members)
        order = range(count) if all(j <= i for i, j in matrix.tiles) else range(count - 1, -1, -1)
        room = (
            xp.empty((2, *problem.like.shape), dtype=problem.like.dtype)
            if groups.in_order and problem.in_place
            else None
        )
        xs: dict[int, Any] = {}
        ys: dict[int, Any] = {}
        status, n_iter, residual, tolerance = (
            np.zeros(m, int),
            np.ones(m, int),
            np.zeros(m),
            np.zeros(m),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            for i in order:
                offset = groups.piece(problem.offset, i)
                into_y, into_x = (
                    (None, None)
                    if room is None
                    else (room[j, :, groups.members[i]] for j in range(2))
                )
                total = matrix.product(i, xs, into_y)
                if total is None:
                    total = offset
                elif into_y is None:
                    total = total + offset
                else:
                    total += offset
                block = matrix.tiles.get((i, i))
                if block is None or not groups.cyclic[i]:
                    part, y = problem.part(matrix, total, groups, i), total
                    for _ in range(
                        1, groups.layers[i] if block is not None and groups.layers else 1
                    ):
                        y = block.rows(part.image(y))  # type: ignore[union-attr]
                        y += total
                    ys[i], xs[i] = y, part.image(y, into_x)
                else:
                    start = None if x0 is None else groups.piece(x0, i)
                    inside = self.inner(problem.part(block, total, groups, i), start)
                    ys[i], xs[i] = inside.pre, inside.value
                    status, n_iter = (
                        np.maximum(status, inside.status),
                        np.maximum(n_iter, inside.n_iter),
                    )
                    tolerance = np.where(inside.residual > residual, inside.tolerance, tolerance)
                    residual = np.maximum(residual, inside.residual)
                if into_y is not None:
                    for target, source in ((into_y, ys[i]), (into_x, xs[i])):
                        if source is not target:
                            cast(Any, target)[...] = source
            if room is not None:
                y, x = room[0, ...], room[1, ...]
            else:
                y, x = (groups.join([a[i] for i in range(count)]) for a in (ys, xs))
            size = to_numpy(max_abs(xp, x)).astype(np.float64)
        tolerance = np.where(
            residual > 0, tolerance, problem.tolerance(size, resolve_tol(None, problem.like, xp))
        )
        status[~np.isfinite(size)] = Status.NONFINITE
        cycles = sum(groups.cyclic)
        method = f"Substitution({count} groups, {cycles} with cycles)"
        return Solution(
            x, y, status, n_iter, residual, tolerance, method, residual[None, :] if trace else None
        )

    def at(self, tol: float | None) -> Self:
        """The inner solver with another tolerance."""
        return replace(self, inner=self.inner.at(tol))
