r"""From a trained network to an implicit model, row by row a convex problem.

Given inputs U, pre-activations Z, states X and outputs Y of the network on m samples,
(A, B) and (C, D) solve

    minimise  |Z - X A^T - U B^T - b|^2 / (2m) + p(A, B)
              subject to  sum_j |A_ij| <= kappa_i for every row i,
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
from types import NoneType
from typing import Any, Literal

import numpy as np

from pyidl.arrays.backend import (
    as_generator,
    astype,
    is_array,
    namespace,
    to_numpy,
)
from pyidl.errors import ConvergenceWarning, InputError, expect, is_real, is_whole
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.sim.accumulate import accumulate
from pyidl.sim.moments import Moments
from pyidl.sim.part import Answer, Part
from pyidl.sim.penalties import L1, Penalty
from pyidl.sim.report import Report, SIMResult
from pyidl.sim.solvers import ADMM, ReducedRank, RowSolver
from pyidl.sim.source import Shape, Source
from pyidl.typing import Array, Rng
from pyidl.wellposed import Constraint, InfNorm, PerronFrobenius, StrictlyTriangular, Unconstrained
from pyidl.wellposed.base import lipschitz_rows
from pyidl.wellposed.infnorm import absolute_row_sums

__all__ = ["fit"]

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
    network : Sequential, ImplicitModel, Feedforward, a perceptron, a Module, or States
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
    pattern : str, Pattern, or array of bool (n, n), optional
        Where weights may be. "free": everywhere. "no_self_loops": not on the diagonal
        of A, where a unit that is active on most samples would explain itself.
        "block_triangular": where the network's own order allows it, a block of states
        seeing earlier blocks and the input. Or any mask. The model keeps it.
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
    batch_size : int, optional
        At most so many samples are at work at a time. By default as many as make 2^20
        numbers (inputs, states and outputs), however large an array U is.
    at : tuple of int, optional
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
    >>> relu = activations.relu
    >>> layers = [Linear(5, 8, rng=0), Linear(8, 4, rng=1), Linear(4, 2, rng=2)]
    >>> net = Sequential(layers[0], relu, layers[1], relu, layers[2])
    >>> U = np.random.default_rng(0).normal(size=(200, 5))
    >>> result = sim.fit(net, U, penalty=sim.L1(1e-3))
    >>> report = result.report
    >>> result.model.certificate().proven, report.norm <= 0.99
    (True, True)
    >>> bool(report.states.converged.all())
    True
    """
    clock = _Clock()
    penalties = {"penalty": penalty, "output_penalty": output_penalty, "relaxed": relaxed}
    _check_options(U, penalties, state_cost, whole_row, solver, refit_rounds, start)
    source = Source.of(network, U, samples, batch_size, at, as_generator(rng))
    shape = source.shape
    masks = _masks(pattern, constraint, shape)
    model = _model(shape, constraint, masks, solver, bias, dtype)
    AB, CD = _starts(start, shape)
    bound = _bound(constraint, shape, whole_row, float(state_cost))
    hidden = _hidden(shape, masks, penalty, relaxed, float(state_cost), bound, solver, scheduler)
    output = _output(shape, masks, output_penalty or penalty, relaxed, solver, scheduler)

    moments = total = _about(accumulate(source.states()), bias)
    clock.stop("collect")
    states = hidden.solve(moments, AB)
    clock.stop("states")
    outputs = output.solve(moments, CD)
    clock.stop("outputs")
    model = _fitted(model, states, outputs, moments)
    for i in range(refit_rounds):
        if i > 0:
            states = hidden.solve(moments, states.W, chosen=relaxed is not None)
            model = _fitted(model, states, outputs, moments)
            clock.stop("states")
        intercepts, moments = moments, _about(accumulate(source.regenerated(model)), bias)
        clock.stop("regenerate")
        outputs = output.solve(moments, outputs.W)
        model = _fitted(model, states, outputs, intercepts, moments)
        clock.stop("outputs")
    dropped = total.count - moments.count
    if dropped:
        warnings.warn(
            f"the fixed points of {dropped} of {total.count} samples were not found, and these "
            "samples dropped; use a constraint that makes the model well-posed, or "
            "model.equilibrium(U, on_fail='ignore') to see why",
            ConvergenceWarning,
            stacklevel=2,
        )
    return SIMResult(model, _report(model, states, outputs, total.count, dropped, clock))


# ------------------------------------------------------------------- what is asked for


def _check_options(
    U: Any,
    penalties: dict[str, Penalty | None],
    state_cost: float,
    whole_row: bool,
    solver: RowSolver | None,
    refit_rounds: int,
    start: SIMResult | None,
) -> None:
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
    for name, p in penalties.items():
        if not (isinstance(p, Penalty) or (p is None and name != "penalty")):
            raise InputError(f"{name} is {p!r}; use a penalty of pyidl.sim, such as L1(1e-3)")
    expect("solver", solver, (RowSolver, NoneType), "use one of pyidl.sim, such as ADMM()")
    cure = "give what fit returned for a neighbouring penalty"
    expect("start", start, (SIMResult, NoneType), cure)
    expect("whole_row", whole_row, bool, "use True or False")


def _starts(start: SIMResult | None, shape: Shape) -> tuple[Array | None, Array | None]:
    """Where (A, B) and (C, D) start; factors of A are no start for rows."""
    if start is None:
        return None, None
    model = start.model
    if (model.hidden_dim, model.input_dim, model.output_dim) != (shape.n, shape.p, shape.q):
        raise InputError(
            f"start has {model!r}; the states to fit have {shape.n} components, {shape.p} "
            f"inputs and {shape.q} outputs"
        )
    xp, params = model.xp, {key: astype(model.xp, a, "float64") for key, a in model.params.items()}
    AB = xp.concat([params["A"], params["B"]], axis=1) if "A" in params else None
    return AB, xp.concat([params["C"], params["D"]], axis=1)


def _hidden(
    shape: Shape,
    masks: dict[str, np.ndarray | None],
    penalty: Penalty,
    relaxed: Penalty | None,
    state_cost: float,
    bound: tuple[int, np.ndarray | None],
    solver: RowSolver | None,
    scheduler: Any,
) -> Part:
    """The rows of (A, B)."""
    if isinstance(solver, ReducedRank) and scheduler is not None:
        raise InputError(
            "factors of A belong to all rows together, which blocks of a scheduler are not; leave "
            "out one of solver and scheduler"
        )
    mask = _joined(masks, shape, "A", "B", shape.n)
    cost = np.concatenate([np.full(shape.n, state_cost), np.ones(shape.p)])
    rows = slice(0, shape.n)
    return Part(rows, penalty, relaxed, mask, cost, *bound, solver or ADMM(), scheduler)


def _output(
    shape: Shape,
    masks: dict[str, np.ndarray | None],
    penalty: Penalty,
    relaxed: Penalty | None,
    solver: RowSolver | None,
    scheduler: Any,
) -> Part:
    """The rows of (C, D): no bound, and no rank."""
    solver = ADMM(solver.tol) if isinstance(solver, ReducedRank) else solver or ADMM()
    mask = _joined(masks, shape, "C", "D", shape.q)
    cost, rows = np.ones(shape.n + shape.p), slice(shape.n, None)
    return Part(rows, penalty, relaxed, mask, cost, 0, None, solver, scheduler)


def _bound(
    constraint: Constraint, shape: Shape, whole_row: bool, state_cost: float
) -> tuple[int, np.ndarray | None]:
    """How many leading entries of ``cost * w`` are bounded, and by how much."""
    if isinstance(constraint, (StrictlyTriangular, Unconstrained)):
        if whole_row:
            raise InputError(
                f"whole_row bounds weights by the kappa of the constraint, and {constraint!r} has "
                "none; use InfNorm(kappa)"
            )
        return 0, None
    if not isinstance(constraint, (InfNorm, PerronFrobenius)) or getattr(
        constraint, "weights", None
    ):
        raise InputError(
            f"{constraint!r} is no condition on single rows with the plain sum of sizes; use "
            "InfNorm(kappa), PerronFrobenius(kappa), StrictlyTriangular() or Unconstrained(), and "
            "project afterwards onto the set that you want"
        )
    if whole_row and state_cost != 1:
        raise InputError(
            "whole_row bounds A and B together, and state_cost counts them differently; use "
            "one of them"
        )
    radius = constraint.kappa / lipschitz_rows(shape.activation, shape.n)
    return shape.n + (shape.p if whole_row else 0), radius * state_cost


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


def _model(
    shape: Shape,
    constraint: Constraint,
    masks: dict[str, np.ndarray | None],
    solver: RowSolver | None,
    bias: bool,
    dtype: str,
) -> ImplicitModel:
    """A model of these widths, whose parameters are to be found."""
    return ImplicitModel(
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


def _about(moments: Moments, bias: bool) -> Moments:
    """About the means where there are intercepts, about zero where not."""
    return moments if bias else moments.uncentred()


def _fitted(
    model: ImplicitModel,
    hidden: Answer,
    output: Answer,
    states: Moments,
    outputs: Moments | None = None,
) -> ImplicitModel:
    """The model with these weights, and the intercepts that follow from the moments.

    Everything is rounded to the model's dtype, and projected into its constraint.
    """
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


def _report(
    model: ImplicitModel,
    states: Answer,
    outputs: Answer,
    samples: int,
    dropped: int,
    clock: _Clock,
) -> Report:
    nonzeros = {
        key: (int(np.count_nonzero(to_numpy(a))), a.size)
        for key, a in model.params.items()
        if key in "ABCDLR"
    }
    return Report(
        samples,
        states.solved,
        outputs.solved,
        nonzeros,
        float(np.max(absolute_row_sums(model.params, None))),
        model.certificate(),
        dropped,
        clock.seconds,
    )


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
