r"""From a trained network to an implicit model, row by row a convex problem.

Given inputs U, pre-activations Z, states X and outputs Y of the network on m samples,
(A, B) and (C, D) solve

    minimise  |Z - X A^T - U B^T - b|^2 / (2m) + p(A, B)    subject to  sum_j |A_ij| <= kappa_i for every row,
    minimise  |Y - X C^T - U D^T - d|^2 / (2m) + p(C, D).

Of the samples only sums are needed (`pyidl.sim.moments`). At work X is the model's own
fixed point, which differs from the network's states; so (C, D), and in further rounds
(A, B), are fitted once more to the fixed points that the model itself has. A round is a
pass over the data that solves for them.

*Relaxation.* A penalty chooses weights, and shrinks those that it chooses. With
`relaxed` the chosen ones are fitted once more under a weaker penalty, the others stay
zero (Meinshausen, "Relaxed lasso", Comput. Stat. Data Anal. 52(1), 2007).

Source: Tsai, Decugis, El Ghaoui, Atamtürk, "State-driven implicit modeling for sparsity
and robustness in neural networks", 2022; Tsai, Gao, El Ghaoui, "Constrained implicit
learning framework for neural network sparsification", ACML 2024.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import Any, Literal

import numpy as np

from pyidl.arrays.backend import (
    as_generator,
    astype,
    from_host,
    is_array,
    namespace,
    on_device_of,
    to_numpy,
)
from pyidl.arrays.batch import take_rows
from pyidl.errors import ConvergenceWarning, InputError, expect, is_real, is_whole
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.sim.accumulate import accumulate, map_rows
from pyidl.sim.moments import Moments
from pyidl.sim.penalties import L1, Penalty
from pyidl.sim.report import Report, SIMResult, Solved
from pyidl.sim.row_problem import RowProblem
from pyidl.sim.solvers import ADMM, ReducedRank, Rows, RowSolver
from pyidl.sim.source import Shape, Source
from pyidl.typing import Array, Rng
from pyidl.wellposed import Constraint, InfNorm, PerronFrobenius, StrictlyTriangular, Unconstrained
from pyidl.wellposed.base import lipschitz_rows
from pyidl.wellposed.infnorm import row_sums

__all__ = ["fit"]

ROW_BLOCKS = 8
"""Into how many tasks the rows are divided where a scheduler solves them."""

Structure = Literal["free", "no_self_loops", "block_triangular"]


def fit(
    network: Any,
    U: Any = None,
    *,
    constraint: Constraint = InfNorm(0.99),  # noqa: B008 (frozen)
    penalty: Penalty = L1(1e-3),  # noqa: B008 (frozen)
    output_penalty: Penalty | None = None,
    relaxed: Penalty | None = None,
    pattern: Structure | Pattern | np.ndarray | None = None,
    state_cost: float = 1.0,
    whole_row: bool = False,
    bias: bool = True,
    solver: RowSolver | None = None,
    refit_rounds: int = 1,
    samples: int | None = None,
    batch_size: int | None = None,
    at: tuple[int, ...] | None = None,
    scheduler: Any = None,
    start: SIMResult | None = None,
    dtype: str = "float32",
    rng: Rng = None,
) -> SIMResult:
    r"""Learn an implicit model from the states of a trained network.

    Parameters
    ----------
    network : Sequential, ImplicitModel, Feedforward, MLPClassifier, MLPRegressor, torch.nn.Module or States
        As for `collect_states`; or states that were collected before.
    U : array, list of arrays, iterator of arrays, or dask.array, shape (m, p)
        The inputs; in chunks, neither they nor the states need fit in memory. None
        where `network` is `States`. An iterator can be read only once, so with it
        ``refit_rounds=0``.
    constraint : InfNorm, PerronFrobenius, StrictlyTriangular or Unconstrained
        The set in which (A, B) is sought. Of Perron-Frobenius the part with row sums
        below kappa; `StrictlyTriangular`, without feedback, needs no bound of the row
        sums, and goes well with ``pattern="block_triangular"``.
    penalty : Penalty
        p, of (A, B); on the mean loss.
    output_penalty : Penalty, optional
        That of (C, D), if it is another one.
    relaxed : Penalty, optional
        The penalty under which the weights that p has chosen are fitted once more.
    pattern : "free", "no_self_loops", "block_triangular", Pattern, or array of bool (n, n), optional
        Where weights may be: everywhere; not on the diagonal of A, where a unit that is
        active on most samples would explain itself; where the network's own order
        allows it, a block of states seeing earlier blocks and the input; or any mask.
        The model keeps it.
    state_cost : float
        How many times the penalty counts an entry of A, compared with one of B.
    whole_row : bool
        Bound the whole row, ``sum_j |A_ij| + sum_j |B_ij| <= kappa_i``, as a part of
        the literature does.
    bias : bool
        Whether there are b and d, which no penalty touches.
    solver : RowSolver, optional
        Default: `sim.ADMM()`, to a relative gap of 1e-4.
    refit_rounds : int
        How often the fixed points are found again: once, and (C, D) is fitted to them;
        from the second time on (A, B) too.
    samples : int, optional
        Use so many samples, drawn by `rng`.
    batch_size, at : optional
        As for `iter_states`.
    scheduler : optional
        Solves blocks of rows as tasks of Dask: "threads", "processes", or a
        ``distributed.Client``.
    start : SIMResult, optional
        Where (A, B) and (C, D) start, for instance the result for a neighbouring
        penalty.
    dtype : {"float32", "float64"}
        That of the model; the problems are solved in float64.
    rng : Generator, int or None
        Draws the samples.

    Returns
    -------
    SIMResult
        The model, and a report of what was achieved.

    Raises
    ------
    InputError
        If the network is not known, the data do not fit, or the constraint does not
        decompose into rows.
    ConvergenceError
        If no fixed point of the model was found in a chunk.

    Warns
    -----
    ConvergenceWarning
        If rows miss the tolerance, or samples are dropped because their fixed point was
        not found.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(5, 8, rng=0), activations.relu, Linear(8, 4, rng=1), activations.relu, Linear(4, 2, rng=2))
    >>> U = np.random.default_rng(0).normal(size=(200, 5))
    >>> result = sim.fit(net, U, penalty=sim.L1(1e-3))
    >>> result.model.certificate().proven, result.report.norm <= 0.99, bool(result.report.states.converged.all())
    (True, True, True)
    """
    clock = _Clock()
    if not (is_whole(refit_rounds) and refit_rounds >= 0):
        raise InputError(
            f"refit_rounds is {refit_rounds!r}; it is a number of passes over the data, 0 or more"
        )
    if refit_rounds and isinstance(U, Iterator):
        raise InputError(
            "U is an iterator, which can be read once; use refit_rounds=0, or give a list of "
            "chunks or a dask.array"
        )
    if not (is_real(state_cost) and 0 < state_cost < np.inf):
        raise InputError(f"state_cost is {state_cost!r}; it is a positive factor")
    state_cost = float(state_cost)
    for name, p in {
        "penalty": penalty,
        "output_penalty": output_penalty,
        "relaxed": relaxed,
    }.items():
        if not (isinstance(p, Penalty) or (p is None and name != "penalty")):
            raise InputError(f"{name} is {p!r}; use a penalty of pyidl.sim, such as L1(1e-3)")
    expect("solver", solver, (RowSolver, NoneType), "use one of pyidl.sim, such as ADMM()")
    expect(
        "start", start, (SIMResult, NoneType), "give what fit returned for a neighbouring penalty"
    )
    expect("whole_row", whole_row, bool, "use True or False")
    source = Source.of(network, U, samples, batch_size, at, as_generator(rng))
    shape = source.shape
    if start is not None and [
        start.model.hidden_dim,
        start.model.input_dim,
        start.model.output_dim,
    ] != [shape.n, shape.p, shape.q]:
        raise InputError(
            f"start has {start.model!r}; the states to fit have {shape.n} components, {shape.p} "
            f"inputs and {shape.q} outputs"
        )
    masks = _masks(pattern, constraint, shape)
    model = ImplicitModel(
        shape.p,
        shape.q,
        shape.n,
        activation=shape.activation,
        constraint=constraint,
        pattern=None if all(mask is None for mask in masks.values()) else Pattern(**masks),
        rank=solver.rank if isinstance(solver, ReducedRank) else None,
        bias=bias,
        dtype=dtype,
        rng=0,
    )
    ball, radius = _bound(constraint, shape, whole_row)
    cost = np.concatenate([np.full(shape.n, state_cost), np.ones(shape.p)])
    if radius is not None:
        if whole_row and state_cost != 1:
            raise InputError(
                "whole_row bounds A and B together, and state_cost counts them differently; use "
                "one of them"
            )
        radius = radius * state_cost
    mask_of = partial(_joined, masks, shape)
    hidden = _Part(
        slice(0, shape.n), penalty, relaxed, mask_of("A", "B", shape.n), cost, ball, radius
    )
    output = _Part(
        slice(shape.n, None),
        output_penalty or penalty,
        relaxed,
        mask_of("C", "D", shape.q),
        np.ones_like(cost),
        0,
        None,
    )
    if isinstance(solver, ReducedRank) and scheduler is not None:
        raise InputError(
            "factors of A belong to all rows together, which blocks of a scheduler are not; leave "
            "out one of solver and scheduler"
        )
    using = partial(_solved, solver=solver or ADMM(), scheduler=scheduler)
    output_using = partial(
        _solved,
        solver=ADMM(solver.tol) if isinstance(solver, ReducedRank) else solver or ADMM(),
        scheduler=scheduler,
    )

    moments = total = _about(accumulate(source.states()), bias)
    clock.stop("collect")
    first, second = (
        (None, None) if start is None else (_weights(start.model, *pair) for pair in ("AB", "CD"))
    )
    states = using(hidden, moments, start=first)
    clock.stop("states")
    outputs = output_using(output, moments, start=second)
    clock.stop("outputs")
    model = _with(model, states, outputs, moments)
    for i in range(refit_rounds):
        if i > 0:
            states = using(hidden, moments, start=states.W, chosen=relaxed is not None)
            model = _with(model, states, outputs, moments)
            clock.stop("states")
        intercepts = moments
        moments = _about(accumulate(source.regenerated(model)), bias)
        clock.stop("regenerate")
        outputs = output_using(output, moments, start=outputs.W)
        model = _with(model, states, outputs, intercepts, moments)
        clock.stop("outputs")
    dropped = total.count - moments.count
    if dropped:
        warnings.warn(
            f"the fixed points of {dropped} of {total.count} samples were not found, and these "
            "samples dropped; use a constraint that "
            "makes the model well-posed, or model.equilibrium(U, on_fail='ignore') to see why",
            ConvergenceWarning,
            stacklevel=2,
        )
    nonzeros = {
        key: (int(np.count_nonzero(to_numpy(a))), a.size)
        for key, a in model.params.items()
        if key in "ABCDLR"
    }
    norm = float(np.max(row_sums(model.params, None)))
    report = Report(
        total.count,
        states.solved,
        outputs.solved,
        nonzeros,
        norm,
        model.certificate(),
        dropped,
        clock.seconds,
    )
    return SIMResult(model, report)


# --------------------------------------------------------------------- the two problems


@dataclass(frozen=True)
class _Part:
    """The rows of (A, B), or those of (C, D): what is asked of them."""

    rows: slice
    penalty: Penalty
    relaxed: Penalty | None
    mask: np.ndarray | None
    cost: np.ndarray
    """By which the penalty counts each weight.

    The problem is solved for ``cost * w``, of inputs divided by it.
    """
    ball: int
    radius: np.ndarray | None


@dataclass(frozen=True)
class _Answer:
    W: Array
    factors: tuple[Array, Array] | None
    solved: Solved


def _solved(
    part: _Part, moments: Moments, *, start: Array | None, solver: RowSolver, scheduler: Any, chosen: bool = False
) -> _Answer:  # fmt: skip
    """Solve for the rows; `chosen` says that the support of `start` is to stay."""
    xp = namespace(moments.G)
    cost = from_host(xp, part.cost)
    scaled = replace(
        moments, mean=moments.mean / cost, G=moments.G / cost / cost[:, None], H=moments.H / cost
    )
    if start is not None:
        start = start * cost
    of = partial(RowProblem.of, scaled, rows=part.rows, ball=part.ball, radius=part.radius)
    problem = of(part.penalty, mask=part.mask)
    lam_max = problem.lam_max
    if not (chosen and start is not None):
        found = _rows(problem, solver, start, scheduler)
        start = found.W
    if part.relaxed is not None:
        problem = of(part.relaxed, mask=to_numpy(start) != 0)
        found = _rows(problem, solver, start, scheduler)
    W = found.W
    fit = to_numpy(xp.sum(W * (2.0 * problem.H - W @ (scaled.G / scaled.count)), axis=1))
    square = to_numpy(problem.square)
    unexplained = np.where(
        square > 0, np.maximum(1.0 - fit / np.where(square > 0, square, 1.0), 0.0), 0.0
    )
    gap = float(np.max(found.gap / np.maximum(found.scale, np.finfo(np.float64).tiny)))
    factors = None if found.factors is None else (found.factors[0] / cost[0], found.factors[1])
    return _Answer(
        W / cost,
        factors,
        Solved(
            found.objective,
            found.gap,
            gap,
            found.n_iter,
            found.converged,
            unexplained,
            lam_max,
            found.method,
        ),
    )


def _rows(problem: RowProblem, solver: RowSolver, start: Array | None, scheduler: Any) -> Rows:
    """Solve here, or in blocks wherever the scheduler says."""
    if scheduler is None:
        return solver(problem, start)
    blocks = np.array_split(np.arange(problem.H.shape[0]), ROW_BLOCKS)
    parts = map_rows(
        partial(_block, solver, problem, start), [rows for rows in blocks if len(rows)], scheduler
    )
    gap, objective, n_iter, converged, scale = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("gap", "objective", "n_iter", "converged", "scale")
    )
    W = namespace(problem.H).concat([part.W for part in parts])
    return Rows(
        W, gap, objective, n_iter, converged, f"{parts[0].method}; in {len(parts)} tasks", scale
    )


def _block(solver: RowSolver, problem: RowProblem, start: Array | None, rows: np.ndarray) -> Rows:
    with on_device_of(problem.H):
        return solver(
            problem.take(rows), None if start is None else take_rows(namespace(start), start, rows)
        )


def _bound(constraint: Constraint, shape: Shape, whole_row: bool) -> tuple[int, np.ndarray | None]:
    """How many leading entries of a row are bounded, and by how much."""
    if isinstance(constraint, (InfNorm, PerronFrobenius)) and not getattr(
        constraint, "weights", None
    ):
        return shape.n + (shape.p if whole_row else 0), constraint.kappa / lipschitz_rows(
            shape.activation, shape.n
        )
    if isinstance(constraint, (StrictlyTriangular, Unconstrained)):
        if whole_row:
            raise InputError(
                f"whole_row bounds weights by the kappa of the constraint, and {constraint!r} has "
                "none; use InfNorm(kappa)"
            )
        return 0, None
    raise InputError(
        f"{constraint!r} is no condition on single rows with the plain sum of sizes; use "
        "InfNorm(kappa), PerronFrobenius(kappa), "
        "StrictlyTriangular() or Unconstrained(), and project afterwards onto the set that you want"
    )


def _masks(
    pattern: Structure | Pattern | np.ndarray | None, constraint: Constraint, shape: Shape
) -> dict[str, np.ndarray | None]:
    """Where A, B, C and D may be nonzero."""
    masks: dict[str, np.ndarray | None] = dict.fromkeys("ABCD")
    n = shape.n
    if isinstance(pattern, Pattern):
        masks = {key: getattr(pattern, key) for key in "ABCD"}
    elif is_array(pattern):
        mask = to_numpy(pattern)
        if mask.shape != (n, n) or mask.dtype != np.bool_:
            raise InputError(
                f"pattern has shape {mask.shape} and dtype {mask.dtype}; a mask of A is boolean, "
                f"({n}, {n})"
            )
        masks["A"] = mask
    elif pattern == "no_self_loops":
        masks["A"] = ~np.eye(n, dtype=bool)
    elif pattern == "block_triangular":
        block = np.repeat(np.arange(len(shape.widths)), shape.widths)
        masks["A"] = block[None, :] > block[:, None]
    elif pattern not in (None, "free"):
        raise InputError(
            f"pattern is {pattern!r}; use 'free', 'no_self_loops', 'block_triangular', a Pattern, "
            "or a boolean array for A"
        )
    if isinstance(constraint, StrictlyTriangular):
        masks["A"] = np.triu(np.ones((n, n), bool) if masks["A"] is None else masks["A"], 1)
    return masks


def _joined(
    masks: dict[str, np.ndarray | None], shape: Shape, state: str, inputs: str, rows: int
) -> np.ndarray | None:
    """The mask of (A, B) or of (C, D)."""
    if masks[state] is None and masks[inputs] is None:
        return None
    widths = {state: shape.n, inputs: shape.p}
    both = [
        np.ones((rows, widths[key]), bool) if (mask := masks[key]) is None else mask
        for key in (state, inputs)
    ]
    if any(
        mask.shape != (rows, widths[key]) for key, mask in zip((state, inputs), both, strict=True)
    ):
        raise InputError(
            f"the pattern of {state} and {inputs} has the shapes {both[0].shape} and "
            f"{both[1].shape}; the states need "
            f"({rows}, {shape.n}) and ({rows}, {shape.p})"
        )
    return np.concatenate(both, axis=1)


# ---------------------------------------------------------------------------- the model


def _about(moments: Moments, bias: bool) -> Moments:
    """About the means where there are intercepts, about zero where not."""
    return moments if bias else moments.uncentred()


def _weights(model: ImplicitModel, state: str, inputs: str) -> Array | None:
    """Where a fit may start; factors are no start for rows."""
    xp = model.xp
    if state not in model.params:
        return None
    return xp.concat([astype(xp, model.params[key], "float64") for key in (state, inputs)], axis=1)  # type: ignore[no-any-return]


def _with(
    model: ImplicitModel,
    hidden: _Answer,
    output: _Answer,
    states: Moments,
    outputs: Moments | None = None,
) -> ImplicitModel:
    """The model with these weights, intercepts that follow from the moments, everything rounded and inside the constraint."""
    n, outputs = model.hidden_dim, outputs or states
    AB, CD = hidden.W, output.W
    both = namespace(AB).concat([AB, CD])
    A = {"A": AB[:, :n]} if hidden.factors is None else dict(zip("LR", hidden.factors, strict=True))
    found = {**A, "B": AB[:, n:], "C": CD[:, :n], "D": CD[:, n:]}
    if model.bias:
        found |= {"b": states.intercept(both)[:n], "d": outputs.intercept(both)[n:]}
    twin = model.replace()
    twin.params = found
    twin.params = twin.project(twin.params)
    return twin


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
