r"""Pictures of a training run, a solve, a spectrum, a pattern, and attention.

Each function draws into the `Axes` that it is given, or makes one, and returns it.

The bounds that are drawn follow from a certificate. Let ``f(x) = phi(A x + z)``
contract by c in some norm, for every phi with slopes up to L_i; among them is ``phi(y)
= diag(L) y``, so ``diag(L) A`` contracts too, and its eigenvalues lie in the circle of
radius c. And with ``|x|_inf <= p |x| <= p q |x|_inf``, a residual r_k after k steps is
at most ``K c^k p q`` times the first one, in the largest entry, which is what solves
measure (K is the certificate's constant).

Nothing here uses the state of pyplot. An `Axes` made here belongs to ``ax.figure``,
which a notebook shows and ``savefig`` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pyidl.arrays.backend import is_array, to_numpy
from pyidl.errors import InputError, PyidlError, expect
from pyidl.layers.base import Layer
from pyidl.matrices.pattern import levels
from pyidl.solvers.solution import Solution
from pyidl.typing import Array
from pyidl.wellposed.certificate import Certificate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["attention", "rates", "residuals", "sparsity", "spectrum", "training"]

BOUND: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1.2}


class _Records(Protocol):
    """What `training` asks of a history: numbers by name, one for each epoch."""

    @property
    def records(self) -> tuple[Mapping[str, float], ...]:
        """A mapping for each epoch."""
        ...

    def __getitem__(self, key: str) -> np.ndarray:
        """The numbers of all epochs."""
        ...


def training(
    history: _Records, keys: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Recorded numbers over the epochs.

    The scale is logarithmic where all of them are positive.

    Parameters
    ----------
    history : History
        What `fit` returned.
    keys : sequence of str, optional
        Which of its numbers; the losses, if left out.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If the history has no epochs, or not this number.

    Examples
    --------
    >>> model = pyidl.ImplicitModel(1, 1, 4, rng=0)
    >>> U = np.ones((4, 1))
    >>> history = pyidl.fit(model, U, U, loss="mse", epochs=2, rng=0, verbose=0)
    >>> training(history).get_yscale()
    'log'
    """
    expect("history", getattr(history, "records", history), tuple, "give what fit returned")
    expect("keys", keys, (list, tuple, NoneType), "name some of the history's numbers, in a list")
    if not history.records:
        raise InputError(
            "the history has no epochs, so there is nothing to draw; train for at least one"
        )
    known = list(history.records[0])
    chosen = [key for key in ("loss", "val_loss") if key in known] if keys is None else list(keys)
    missing = [key for key in chosen if key not in known]
    if missing or not chosen:
        raise InputError(
            f"keys: the history has no {', '.join(map(str, missing)) or 'loss'}; "
            f"it has {', '.join(known)}"
        )
    ax = axes(ax)
    for key in chosen:
        ax.plot(history["epoch"], history[key], label=key)
    if all(np.all(history[key] > 0) for key in chosen):
        ax.set_yscale("log")
    ax.set(title="training", xlabel="epoch", ylabel=", ".join(chosen))
    ax.legend()
    return ax


def residuals(
    solutions: Solution | Mapping[str, Solution],
    certificate: Certificate | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The residual of every step over its tolerance, of the worst sample.

    A solve ends below 1.

    Parameters
    ----------
    solutions : Solution, or several by name
        Solved with ``trace=True``.
    certificate : Certificate, optional
        Its bound is drawn for the first of them. It is one of the iteration that the
        certificate applies to: Picard's, in most cases.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If a solution has no trace, or there is none.

    Examples
    --------
    >>> model = pyidl.ImplicitModel(3, 2, 5, rng=0)
    >>> solution = model.equilibrium(np.ones((4, 3)), trace=True)
    >>> residuals(solution, model.certificate()).get_xlabel()
    'steps after the first'
    """
    expect(
        "solutions",
        solutions,
        (Solution, Mapping),
        "give a Solution, or several by name in a dictionary",
    )
    expect("certificate", certificate, (Certificate, NoneType), "give model.certificate()")
    named = {"": solutions} if isinstance(solutions, Solution) else dict(solutions)
    traces = {name: _trace(solution) for name, solution in named.items()}
    if not traces:
        raise InputError("no solution was given; pass one, or a dictionary of at least one")
    ax = axes(ax)
    for name, solution in named.items():
        ratio = traces[name] / solution.tolerance
        ax.semilogy(np.max(np.where(np.isnan(ratio), 0.0, ratio), axis=1), label=name or "residual")
    if certificate is not None and certificate.proven:
        solution, trace = next((named[name], trace) for name, trace in traces.items())
        first = _slack(certificate, solution) * np.max(trace[0] / solution.tolerance)
        label = f"certified: a factor {certificate.contraction:.3g} a step"
        ax.semilogy(first * certificate.contraction ** np.arange(len(trace)), label=label, **BOUND)
    ax.axhline(1.0, color="0.7", linewidth=0.8, label="tolerance")
    ax.set(
        title="residuals",
        xlabel="steps after the first",
        ylabel="residual / tolerance, worst sample",
    )
    ax.legend()
    return ax


def rates(solution: Solution, certificate: Certificate, *, ax: Axes | None = None) -> Axes:
    """How fast each sample converged, beside the factor that is certified.

    Counted is the mean factor per step, ``(r_k / r_0)^(1/k)``.

    Parameters
    ----------
    solution : Solution
        Solved with ``trace=True``, by the iteration that the certificate applies to.
    certificate : Certificate
        Of the model.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If the solution has no trace, or no sample took two steps.

    Examples
    --------
    >>> model = pyidl.ImplicitModel(3, 2, 5, dtype="float64", rng=0)
    >>> U = np.random.default_rng(0).normal(size=(4, 3))
    >>> solution = model.equilibrium(U, trace=True)
    >>> rates(solution, model.certificate()).get_ylabel()
    'samples'
    """
    expect("certificate", certificate, Certificate, "give model.certificate()")
    trace = _trace(solution)
    steps = np.sum(~np.isnan(trace), axis=0) - 1
    moved = np.flatnonzero((steps > 0) & (trace[0] > 0))
    if not moved.size:
        raise InputError(
            "no sample took two steps, so none has a rate; "
            "start further from the solution, or lower tol"
        )
    observed = (trace[steps[moved], moved] / trace[0, moved]) ** (1.0 / steps[moved])
    ax = axes(ax)
    ax.hist(observed, bins=30, label=f"{moved.size} samples")
    if certificate.proven:
        label = f"certified: {certificate.contraction:.3g} ({certificate.applies_to})"
        ax.axvline(certificate.contraction, label=label, **BOUND)
    ax.set(
        title="rates of convergence",
        xlabel="mean factor per step",
        ylabel="samples",
        xlim=(0.0, max(1.0, 1.05 * float(observed.max()))),
    )
    ax.legend()
    return ax


def spectrum(model: Layer, *, ax: Axes | None = None) -> Axes:
    """The eigenvalues of diag(L) A in the plane, and their certified bound.

    L holds the Lipschitz constants of the activation, one a row of A. A contraction of
    the plain iteration by c keeps them in the circle of radius c. The other conditions
    keep their real parts below 1.

    Parameters
    ----------
    model : ImplicitModel, ImplicitRNN, ...
        A layer with a parameter A, or factors L and R.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If the model has no such parameter.

    Examples
    --------
    >>> spectrum(pyidl.ImplicitModel(3, 2, 5, rng=0)).get_xlabel()
    'real part'
    """
    expect("model", model, Layer, "give an implicit model")
    params = {
        key: to_numpy(a).astype(np.float64) for key, a in model.params.items() if key in "ALR"
    }
    activation = getattr(model, "activation", None)
    if activation is None or not ("A" in params or {"L", "R"} <= set(params)):
        raise InputError(
            f"{type(model).__name__} has no parameter A, and so no spectrum; give an implicit model"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        A = params["A"] if "A" in params else params["L"] @ params["R"].T
        lipschitz = np.asarray(activation.row_lipschitz(len(A)) or [1.0] * len(A))
        A = lipschitz[:, None] * A
    if not np.all(np.isfinite(A)):
        raise InputError(
            f"{np.sum(~np.isfinite(A))} entries of A, times slopes, are too large for float64, "
            "and have no spectrum; project the parameters: model.project(model.params)"
        )
    eigenvalues, certificate = np.linalg.eigvals(A), model.certificate()
    ax, span = axes(ax), max(0.5, float(np.max(np.abs(eigenvalues))))
    what = "A" if np.all(lipschitz == 1.0) else "A times slopes"
    ax.plot(eigenvalues.real, eigenvalues.imag, ".", label=f"eigenvalues of {what}")
    if certificate.proven and certificate.applies_to in ("Picard", "Picard within a block"):
        span = max(span, certificate.contraction)
        circle = certificate.contraction * np.exp(2j * np.pi * np.linspace(0.0, 1.0, 200))
        ax.plot(
            circle.real,
            circle.imag,
            label=f"certified: within {certificate.contraction:.3g}",
            **BOUND,
        )
    elif certificate.proven and certificate.contraction > 0:
        ax.axvline(1.0, label="certified: real parts below 1", **BOUND)
    ax.set(
        title=f"spectrum of {what}",
        xlabel="real part",
        ylabel="imaginary part",
        xlim=(-1.1 * span, 1.1 * span),
        ylim=(-1.1 * span, 1.8 * span),
    )
    ax.set_aspect("equal")
    ax.legend(loc="upper right")
    return ax


def sparsity(A: Array, *, ax: Axes | None = None) -> Axes:
    """Where a square matrix is not zero, and the blocks that are solved together.

    Its units stand in the order in which they can be solved.

    Parameters
    ----------
    A : array, shape (n, n)
        ``model.params["A"]``, or a mask.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If A is not a square matrix.

    Examples
    --------
    >>> sparsity(np.triu(np.ones((4, 4)), 1)).get_title()
    '38% of A is not zero'
    """
    if not is_array(A):
        raise InputError(f"A is {type(A).__name__}; an array is needed, such as model.params['A']")
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise InputError(f"A has shape {A.shape}; a pattern is drawn of a square matrix")
    support = to_numpy(A) != 0
    groups = levels(support)
    units = np.arange(len(support))
    order = units if groups is None else np.concatenate([units[m] for m in groups.members])
    ax = axes(ax)
    from matplotlib.patches import Rectangle

    ax.imshow(
        support[np.ix_(order, order)], cmap="Greys", vmin=0.0, vmax=2.0, interpolation="nearest"
    )
    ax.locator_params(integer=True)
    start, kinds = 0, {}
    for size, cyclic in [] if groups is None else zip(groups.sizes, groups.cyclic, strict=True):
        corner, color = (start - 0.5, start - 0.5), "C1" if cyclic else "C0"
        box = Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=1.5)
        kinds["a cycle, solved together" if cyclic else "without a cycle"] = ax.add_patch(box)
        start += size
    if kinds:
        ax.legend(list(kinds.values()), list(kinds), loc="upper right")
    where = "unit" if groups is None else "unit, in the order of solving"
    ax.set(
        xlabel=f"from {where}", ylabel=f"to {where}", title=f"{support.mean():.0%} of A is not zero"
    )
    return ax


def attention(
    weights: Array, names: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """How much each position attends to each other one, with a scale beside it.

    Parameters
    ----------
    weights : array, shape (T, S)
        One position a row; what it attends to in its columns.
    names : sequence of str, optional
        Of the S positions that are attended to, and of the rows, if these are as many.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If `weights` is not a matrix of numbers that are not negative, or there are not
        S names.

    Examples
    --------
    >>> ax = attention(np.full((2, 2), 0.5), ["she", "sings"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['she', 'sings']
    """
    if not is_array(weights):
        raise InputError(
            f"weights is {type(weights).__name__}; an array is needed, such as pull.weights()[0, 0]"
        )
    expect("names", names, (Sequence, NoneType), "give one for each position, in a list")
    if weights.ndim != 2:
        raise InputError(
            f"weights has shape {weights.shape}; give those of one sample and one head, (T, S)"
        )
    shown = to_numpy(weights)
    if not np.all(shown >= 0):
        raise InputError(
            f"the smallest weight is {shown.min():.3g}; attention weights are numbers >= 0, "
            "as after a softmax"
        )
    if names is not None and len(names) != shown.shape[1]:
        raise InputError(
            f"there are {len(names)} names for {shown.shape[1]} positions; give one for each"
        )
    ax = axes(ax)
    image = ax.imshow(shown, vmin=0.0, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="weight")
    if names is not None:
        ax.set_xticks(range(len(names)), names, rotation=90)
        if len(shown) == len(names):
            ax.set_yticks(range(len(names)), names)
    ax.set(title="weights of attention", xlabel="attended to", ylabel="position")
    return ax


def axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        expect("ax", ax, "plot", "give Axes of matplotlib, or None for new ones")
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PyidlError(
            "plotting needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    made: Axes = Figure(layout="constrained").subplots()
    return made


def _trace(solution: Solution) -> np.ndarray:
    expect("solution", solution, Solution, "give what model.equilibrium(U, trace=True) returns")
    if solution.trace is None:
        raise InputError(
            "the solution has no trace; solve with trace=True: "
            "model.equilibrium(U, trace=True), pull.solve(dY, trace=True)"
        )
    return solution.trace


def _slack(certificate: Certificate, solution: Solution) -> float:
    """``K p q``, with ``|x|_inf <= p |x| <= p q |x|_inf``.

    Weights cost their ratio, a Euclidean norm of n entries its square root.
    """
    norm, n = certificate.norm, solution.value.shape[-1]
    ratio = 1.0 if norm.weights is None else float(np.max(norm.weights) / np.min(norm.weights))
    together = (
        n if norm.kind == "Euclidean" else max([1, *(stop - start for start, stop in norm.blocks)])
    )
    return float(certificate.constant * ratio * np.sqrt(together))
