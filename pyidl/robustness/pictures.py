r"""Pictures of sensitivities, of bounds, and of what is certified.

Each draws numbers that were computed before, into the `Axes` that it is given, or makes
some, and returns them; as `pyidl.plotting`. What is proven and what is not is a matter
of comparing two of the numbers drawn:

    least of the label > most of all others    =>    the class is certain,
    certified <= the truth <= survives an attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyidl.arrays.backend import read_array, to_numpy
from pyidl.errors import InputError, expect
from pyidl.layers.base import check_width
from pyidl.plotting import BOUND, axes
from pyidl.robustness.door import numbers
from pyidl.typing import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bounds", "curve", "sensitivity"]

ABREAST = 5
"""So many images stand in a row."""

TICKS = 20
"""So many samples are numbered at most."""


def sensitivity(
    S: Array,
    shape: tuple[int, int] | None = None,
    *,
    outputs: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How far each output can move with each input: a row of S an output, or an image.

    Parameters
    ----------
    S : array, shape (q, p)
        What `robustness.sensitivity` returns, for one box if there are several; or any
        sizes, such as absolute values of a Jacobian.
    shape : (int, int), optional
        Height and width of the inputs, if they are images of p pixels. Each output then
        has an image of its own.
    outputs, inputs : sequence of str, optional
        Their names. Pixels have none.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If an entry of S is negative or not finite, or names or shape do not fit.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> S = robustness.sensitivity(ImplicitModel(6, 2, 5, rng=0))
    >>> robustness.pictures.sensitivity(S, (2, 3)).get_title()
    'sensitivity'
    """
    S = numbers("S", S)
    if S.ndim != 2 or not S.size or S.min() < 0:
        raise InputError(
            f"S has shape {S.shape}, or a negative entry; give S of one box, or |J|, (q, p)"
        )
    for name, given, count in ("outputs", outputs, len(S)), ("inputs", inputs, len(S.T)):
        expect(name, given, (Sequence, NoneType), "give names, in a list")
        if given is not None and (len(given) != count or (name == "inputs" and shape)):
            raise InputError(
                f"{len(given)} {name} have names; give one to each of {count}, and none to pixels"
            )
    expect("shape", shape, (tuple, list, NoneType), "give (height, width) of images")
    sizes = [len(S.T), 1] if shape is None else [check_width("shape", k) for k in shape]
    if len(sizes) != 2 or math.prod(sizes) != len(S.T):
        raise InputError(f"shape is {shape}; (height, width) of {len(S.T)} pixels is needed")
    ax, options = axes(ax), {"vmin": 0.0, "cmap": "viridis", "interpolation": "nearest"}
    if shape is None:
        image = ax.imshow(S, aspect="auto", **options)
        ax.locator_params(integer=True)
        if inputs is not None:
            ax.set_xticks(range(len(inputs)), inputs, rotation=90)
        if outputs is not None:
            ax.set_yticks(range(len(outputs)), outputs)
        ax.set(xlabel="input", ylabel="output")
    else:
        picture, corners = _tiled(S, shape)
        image = ax.imshow(picture, **options)
        for k, corner in enumerate(corners):
            ax.text(*corner, outputs[k] if outputs is not None else str(k), va="bottom")
        ax.set(
            xticks=[], yticks=[], xlabel="pixel", ylabel="an image for each output", frame_on=False
        )
    ax.set_title("sensitivity")
    ax.figure.colorbar(image, ax=ax, label="moves at most so far")
    return ax


def bounds(
    lower: Array,
    upper: Array,
    outputs: Array | None = None,
    labels: Any = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """What the outputs can be: a bar from the least to the most, sample beside sample.

    With labels, a broken line continues the least of the label's output. Where all
    other bars end below it, the class is certain. Where one does not, it may be certain
    all the same: `margins` of `pyidl.robustness` are sharper than two bars.

    Parameters
    ----------
    lower, upper : array, shape (q,) or (m, q)
        As in ``outputs`` of what `robustness.bounds` returns, of the samples to draw.
    outputs : array, optional
        The outputs themselves, drawn as dots.
    labels : int, or array of m integers, optional
        The classes, 0, ..., q - 1.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If a bound is not finite, lower exceeds upper, or shapes or labels do not fit.

    Examples
    --------
    >>> from pyidl import robustness
    >>> robustness.pictures.bounds([0.5, 2.0], [1.5, 3.0], labels=1).get_title()
    'bounds of outputs, 1 of 1 classes certain'
    """
    low, high = np.atleast_2d(numbers("lower", lower)), np.atleast_2d(numbers("upper", upper))
    if low.ndim != 2 or not low.size or low.shape != high.shape or np.any(low > high):
        raise InputError(
            f"lower has shape {low.shape} and upper {high.shape}; they must be (q,) or (m, q), "
            "both alike, and no entry of lower larger than that of upper"
        )
    m, q = low.shape
    Y = None if outputs is None else np.atleast_2d(numbers("outputs", outputs))
    if Y is not None and Y.shape != low.shape:
        raise InputError(f"outputs have shape {Y.shape}, and bounds {low.shape}; give one for each")
    at, title = np.arange(q) + (q + 1) * np.arange(m)[:, None], "bounds of outputs"
    kinds = {"proven": np.ones((m, q), bool)}
    if labels is not None:
        t = np.atleast_1d(to_numpy(read_array(labels, "labels")))
        if t.dtype.kind not in "iu" or t.shape != (m,) or t.min() < 0 or t.max() >= q:
            raise InputError(
                f"labels have shape {t.shape} and dtype {t.dtype}; {m} classes of 0, ..., {q - 1} "
                "are needed"
            )
        own, floor = np.arange(q) == t[:, None], low[np.arange(m), t]
        below = ~own & (high < floor[:, None])
        kinds = {"of the label": own, "stays below it": below, "may reach it": ~own & ~below}
        title += f", {np.sum((own | below).all(axis=1))} of {m} classes certain"
    ax = axes(ax)
    for (name, which), color in zip(kinds.items(), ("C0", "0.75", "C3"), strict=False):
        if which.any():  # an edge, so that a bar without a height is seen
            size, look = high[which] - low[which], {"color": color, "edgecolor": color}
            ax.bar(at[which], size, bottom=low[which], label=name, **look)
    if labels is not None:
        ax.hlines(floor, at[:, 0] - 0.5, at[:, -1] + 0.5, label="least of the label", **BOUND)
    if Y is not None:
        ax.plot(at.ravel(), Y.ravel(), "k.", label="the output itself")
    places = at[0] if m == 1 else at.mean(axis=1)
    step = -(-len(places) // TICKS)
    ax.set_xticks(places[::step], range(0, len(places), step))
    where = "output" if m == 1 else f"sample; its {q} outputs from left to right"
    ax.set(title=title, xlabel=where, ylabel="value")
    ax.use_sticky_edges = False
    ax.margins(y=0.08)
    ax.set_ylim(top=ax.get_ylim()[1] + 0.3 * np.ptp(ax.get_ylim()))  # the legend hides no bar
    ax.legend(loc="upper center", ncols=3)
    return ax


def curve(
    eps: Any,
    certified: Any,
    attacked: Any = None,
    clean: float | None = None,
    *,
    name: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The share of samples that are certified, and that survive an attack, against eps.

    The truth lies between both; what they leave open is shaded. Points are joined by
    lines, and nothing is computed between them.

    Parameters
    ----------
    eps : sequence of k floats
        Distances, at least 0, rising.
    certified : array, shape (k,), or (k, m) of bool
        Shares, or verdicts: a list of what `robustness.certified` returns.
    attacked : array, shape (k,), or (k, m) of bool, optional
        The same of classes that are right under an attack, such as `robustness.pgd`.
    clean : float, optional
        The accuracy without an attack.
    name : str
        What stands before the names in the legend. Call again with ``ax`` to compare.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The given ones, or those of a new figure.

    Raises
    ------
    InputError
        If numbers are out of range or do not fit; if more is certified than survives.

    Examples
    --------
    >>> from pyidl import robustness
    >>> ax = robustness.pictures.curve([0.0, 0.1], [0.9, 0.5], [0.9, 0.7], clean=0.9)
    >>> [line.get_label() for line in ax.get_lines()]
    ['certified', 'survive the attack', 'clean']
    """
    expect("name", name, str, "give words for the legend")
    eps = numbers("eps", eps)
    if eps.ndim != 1 or not eps.size or eps[0] < 0 or np.any(np.diff(eps) <= 0):
        raise InputError(f"eps is {eps}; distances are needed, at least 0 and rising, in a list")
    low = _shares("certified", certified, eps)
    high = None if attacked is None else _shares("attacked", attacked, eps)
    most = None if clean is None else _shares("clean", [clean], eps[:1])
    for what, share in ("attacked", high), ("clean", most):
        if share is not None and np.any(more := low > share + 1e-9):
            raise InputError(
                f"certified is more than {what} at eps {eps[more]}; give shares of the same samples"
            )
    ax, before = axes(ax), f"{name}: " if name else ""
    (line,) = ax.plot(eps, low, "o-", label=f"{before}certified")
    color = line.get_color()
    if high is not None:
        ax.plot(eps, high, "s--", color=color, label=f"{before}survive the attack")
        ax.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0, label=f"{before}open")
    if clean is not None:
        ax.axhline(clean, color=color, linestyle=":", label=f"{before}clean")
    ax.set(title="what no small change can turn", xlabel="eps", ylabel="share of samples")
    ax.set_ylim(0.0, 1.02)
    ax.legend()
    return ax


def _tiled(S: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Images side by side, nothing between; x and y of their upper left corners."""
    (h, w), columns = shape, min(len(S), ABREAST)
    down, right = h + max(2, h // 4), w + max(1, w // 8)
    tiles = np.full((-(-len(S) // columns), columns, down, right), np.nan)
    tiles.reshape(-1, down, right)[: len(S), -h:, -w:] = S.reshape(-1, h, w)
    corners = [
        ((k % columns + 1) * right - w - 0.5, (k // columns + 1) * down - h - 0.6)
        for k in range(len(S))
    ]
    return np.concatenate(np.concatenate(tiles, axis=1), axis=1), corners


def _shares(name: str, given: Any, eps: np.ndarray) -> np.ndarray:
    """One for each eps, of verdicts their mean."""
    a = to_numpy(read_array(given, name))
    if a.dtype.kind == "b" and a.ndim == 2 and a.size:
        a = a.mean(axis=1)
    a = numbers(name, a)
    if a.shape != eps.shape or a.min() < 0 or a.max() > 1:
        raise InputError(
            f"{name} has shape {a.shape}, or leaves [0, 1]; give a share, or a row of verdicts, "
            f"for each of {len(eps)} distances"
        )
    return a
