r"""Block substitution: solve a block triangular equation block by block.

With the groups of A's pattern in topological order (`pyidl.matrices.pattern`), one i
after the other,

    x_i = phi(A_ii x_i + (sum over earlier j of A_ij x_j) + z_i).

A group without cycles is solved by that one line if A_ii = 0, and by k applications of
it if it joins k layers, as those of a very deep net are (A_ii^k = 0); for the others an
inner solver is called. A feed-forward network in implicit form thus costs the products
of its layers. The adjoint, with A transposed, runs through the groups in reverse:
backpropagation.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, SIAM J. Math. Data Sci. 3(3), 2021,
section 2 (block triangular A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.arrays.batch import max_abs
from pyidl.errors import InputError, expect
from pyidl.matrices.tiled import Tiled
from pyidl.solvers.base import Solver
from pyidl.solvers.cost import ORDINARY, Costs
from pyidl.solvers.loop import resolve_tol
from pyidl.solvers.picard import Picard
from pyidl.solvers.problem import Affine, Problem, Start
from pyidl.solvers.solution import Solution, Status

__all__ = ["Substitution", "worthwhile"]

GROUP = 15.0
"""What a group costs besides its arithmetic, in microseconds, as `Costs` counts."""


def worthwhile(problem: Problem, costs: Costs, dtype: str) -> bool:
    """Whether it costs less than plain steps of the whole, as far as `Costs` says.

    Without cycles plain steps are exact after as many as there are layers; a group with
    cycles is taken to need as many as an ordinary solve.
    """
    if problem.lacking or not (isinstance(problem, Affine) and isinstance(problem.matrix, Tiled)):
        return False
    groups, m = problem.matrix.row_groups, problem.like.shape[0]
    books = GROUP * len(groups.sizes)
    if not any(groups.cyclic):
        depth = sum(groups.layers) or len(groups.sizes)
        return books < costs.plain(depth) + costs.measure
    cycles = (size for size, cyclic in zip(groups.sizes, groups.cyclic, strict=True) if cyclic)
    inside = (Costs.of(m, size, dtype, costs.stride).plain(ORDINARY) for size in cycles)
    return sum(inside, books) < 0.8 * costs.plain(ORDINARY)


@dataclass(frozen=True)
class Substitution(Solver):
    """Solve group by group, where A is block triangular.

    `ImplicitModel` finds such groups, or a pattern says them. The residual of a group
    without cycles is zero by construction, up to the rounding of its product; that of a
    sample is the largest of its groups', its number of steps the largest too.

    Parameters
    ----------
    inner : Solver
        For groups with cycles.

    Raises
    ------
    InputError
        If `inner` is no solver; in a call, if A is not block triangular, or not known.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(1, 1, 2, forward=Substitution(), rng=0)
    >>> model.params = {**model.params, "A": np.array([[0.0, 3.0], [0.0, 0.0]])}
    >>> model.equilibrium(np.ones((1, 1))).method
    'Substitution(2 groups, 0 with cycles)'
    """

    inner: Solver = Picard()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        expect("inner", self.inner, Solver, "use one of pyidl.solvers, such as Picard()")

    def __call__(self, problem: Problem, x0: Start = None, *, trace: bool = False) -> Solution:
        """Substitute; x0 is of use to groups with cycles only.

        A trace has one row, the last.
        """
        if problem.lacking or not isinstance(problem, Affine):
            raise InputError(
                "Substitution needs a block triangular A and a componentwise phi, and "
                f"{problem.lacking}; use Picard or Anderson"
            )
        matrix = problem.matrix
        if not isinstance(matrix, Tiled):
            raise InputError(
                "Substitution needs a block triangular A, and this one is not; give the model a "
                "pattern, or use Picard, Jacobi or Anderson"
            )
        groups, m, count = matrix.row_groups, problem.like.shape[0], len(matrix.row_groups.members)
        order = range(count) if all(j <= i for i, j in matrix.tiles) else range(count - 1, -1, -1)
        xp, solved = problem.xp, dict[int, Any]()  # the image of every group so far
        both = xp.empty((2, *problem.like.shape), dtype=problem.like.dtype)
        pre, value = both[0, ...], both[1, ...]  # one block: see `Problem.buffers`
        status, n_iter = np.zeros(m, int), np.ones(m, int)
        residual, tolerance = np.zeros(m), np.zeros(m)
        with np.errstate(over="ignore", invalid="ignore"):
            for i in order:
                block, offset = matrix.tiles.get((i, i)), groups.piece(problem.offset, i)
                cycle = block if groups.cyclic[i] else None
                # Without a cycle, y and x are written where they belong.
                here, there = (groups.view(a, i) if cycle is None else None for a in (pre, value))
                total = matrix.product(i, solved, here)
                if total is None:
                    total = offset
                else:
                    total += offset
                if cycle is None:
                    layers = groups.layers[i] if block is not None and groups.layers else 1
                    part = problem.part(matrix if block is None else block, total, groups, i)
                    y, x = total, part.image(total, out=there)
                    for _ in range(layers - 1):
                        y, x = part.step(x)
                else:
                    start = None if x0 is None else groups.piece(x0, i)
                    inside = self.inner(problem.part(cycle, total, groups, i), start)
                    y, x = inside.pre, inside.value
                    status = np.maximum(status, inside.status)
                    n_iter = np.maximum(n_iter, inside.n_iter)
                    tolerance = np.where(inside.residual > residual, inside.tolerance, tolerance)
                    residual = np.maximum(residual, inside.residual)
                if y is not here:
                    groups.put(pre, i, y)
                if x is not there:
                    groups.put(value, i, x)
                solved[i] = x
            size = to_numpy(max_abs(xp, value)).astype(np.float64)
        asked = problem.tolerance(size, resolve_tol(None, problem.like, xp))
        tolerance = np.where(residual > 0, tolerance, asked)
        status[~np.isfinite(size)] = Status.NONFINITE
        method = f"Substitution({count} groups, {sum(groups.cyclic)} with cycles)"
        last = residual[None, :] if trace else None
        return Solution(value, pre, status, n_iter, residual, tolerance, method, last)

    def at(self, tol: float | None) -> Self:
        """The inner solver with another tolerance."""
        return replace(self, inner=self.inner.at(tol))
