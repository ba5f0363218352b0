r"""Bounds of all outputs for a box of inputs, and verdicts: which class is certain.

    lower <= u <= upper    =>    L <= y(u) <= U.

Everything is evaluated in float64 on the host, and every rounding is counted: a bound
is a statement about the exact equilibrium of the parameters as they are, whatever the
dtype of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from pyidl.arrays.backend import read_array, to_numpy
from pyidl.certify.enclosure import up
from pyidl.certify.forms import EPS, Form, outward
from pyidl.errors import InputError, expect
from pyidl.layers import Layer
from pyidl.layers.base import check_width
from pyidl.layers.timeline import Timeline
from pyidl.robustness.door import distance, domain, numbers, timeline
from pyidl.robustness.through import Walk, refuse
from pyidl.typing import Array

__all__ = ["Bounds", "bounds", "certified", "margins"]

Pair = tuple[np.ndarray, np.ndarray]
Method = Literal["affine", "box"]

ROOM = 2**21
"""Numbers that the columns of the samples treated at once may have, about."""


@dataclass(frozen=True)
class Bounds:
    """What is proven of a model for every input of m boxes; float64, on the host.

    Attributes
    ----------
    outputs : (numpy.ndarray, numpy.ndarray), shape (m, ..., q) each
        Lower and upper bounds of Y.
    states, pre : (numpy.ndarray, numpy.ndarray) or None
        The same of X and of ``A X + B U + b``, (m, n), where the model is an
        `ImplicitModel`; (m, T, n) for an `ImplicitRNN`, NaN in steps in which a
        sequence takes no part. None for a model of layers.
    layers : mapping of str to Bounds
        For a model of layers: the bounds of each of them, by its name, such as "1" or
        "0.ahead".
    """

    outputs: Pair
    states: Pair | None = None
    pre: Pair | None = None
    layers: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def width(self) -> np.ndarray:
        """How wide the bounds of the outputs are."""
        return self.outputs[1] - self.outputs[0]


def bounds(
    model: Layer,
    lower: Array,
    upper: Array,
    lengths: Any = None,
    *,
    method: Method = "affine",
    rounds: int = 5,
) -> Bounds:
    """Bound states, pre-activations and outputs for all inputs of a box.

    Parameters
    ----------
    model : Layer
        An `ImplicitModel` or `ImplicitRNN`, a `Linear`, a `Pointwise`, or these in
        `Sequential`, `Residual`, `Bidirectional`, with `Dropout`.
    lower, upper : array, shape (m, p) or (m, T, p)
        The ends of the boxes. They are taken exactly as they are: a box around float32
        numbers is rounded outwards by whoever makes it, as `certified` does.
    lengths : array, optional
        For sequences of several lengths, as the model takes them.
    method : {"affine", "box"}
        "box": the embedded model, one solve of twice the width; for training and for
        many samples. "affine": boxes, refined by affine forms, never wider; they keep
        which states move together.
    rounds : int
        At most so many refinements, of about ``2 n^3`` operations a sample each; fewer
        where they gain less than a hundredth.

    Returns
    -------
    Bounds

    Raises
    ------
    InputError
        If the model has a part that is not covered, or a fixed point that is not
        proven; if lower exceeds upper, or shapes do not fit.

    Notes
    -----
    Sources: Jafarpour, Davydov, Abate, Bullo, Coogan, arXiv 2208.03889, 2022, for
    boxes; Singh et al., "Fast and effective robustness certification", NeurIPS 2018,
    for affine forms of layers. The theorems, with proofs, stand in
    `pyidl.robustness.embedded` and `pyidl.robustness.states`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.zeros((5, 3))
    >>> found = robustness.bounds(model, U - 0.1, U + 0.1)
    >>> Y = model.predict(U + 0.05)
    >>> bool(np.all((found.outputs[0] <= Y) & (Y <= found.outputs[1])))
    True
    """
    asked, rounds = _Asked.read(model, {"lower": lower, "upper": upper}, lengths, method, rounds)
    walks = [asked.walked(rows, rounds) for rows in asked.pieces()]
    layers = {name: _joined([walk.found[name] for walk in walks]) for name in walks[0].found}
    whole = layers.pop("")
    return Bounds(whole.outputs, whole.states, whole.pre, layers)


def margins(
    model: Layer,
    lower: Array,
    upper: Array,
    labels: Any,
    lengths: Any = None,
    *,
    method: Method = "affine",
    rounds: int = 5,
) -> np.ndarray:
    """Upper bounds of ``y_k - y_label`` for all inputs of a box.

    Rows are subtracted before bounds are taken, so that what they share cancels. The
    class is certain where all but the label's own entry, which is 0, are negative.

    Parameters
    ----------
    model, lower, upper, lengths, method, rounds
        As for `bounds`.
    labels : array of integers, shape (m,), or (m, T) where there is an output a step
        One class of 0, ..., q - 1 for every output.

    Returns
    -------
    numpy.ndarray, shape (m, q) or (m, T, q)

    Raises
    ------
    InputError
        As `bounds`, and if labels do not fit.

    Notes
    -----
    Sources: as `bounds`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.ones((1, 3))
    >>> robustness.margins(model, U - 0.01, U + 0.01, [0]).shape
    (1, 2)
    """
    asked, rounds = _Asked.read(model, {"lower": lower, "upper": upper}, lengths, method, rounds)
    t = _labels(labels, asked.low)
    parts = []
    for rows in asked.pieces():
        found = _margins(asked.walked(rows, rounds).out, t[rows])
        if rounds:  # on the box of states alone a difference of rows may be smaller
            with suppress(InputError):
                found = np.fmin(found, _margins(asked.walked(rows, 0).out, t[rows]))
        parts.append(found)
    return np.concatenate(parts)


def certified(
    model: Layer,
    U: Array,
    labels: Any,
    eps: float,
    lengths: Any = None,
    *,
    norm: Literal["inf", 2] = "inf",
    clip: tuple[float, float] | None = None,
    rounds: int = 5,
) -> np.ndarray:
    """Whether the class of an input is the label, and stays it within a distance eps.

    Boxes decide what they can, then one round of affine forms, then `rounds` of them.
    False says that nothing is proven: an attack may exist or not.

    Parameters
    ----------
    model, lengths, rounds
        As for `bounds`.
    U : array, shape (m, p) or (m, T, p)
        Inputs.
    labels : array of integers
        As for `margins`.
    eps : float
        The distance, at least 0, in the units of U.
    norm : {"inf", 2}
        Of a whole sample: the largest entry, or the Euclidean norm.
    clip : (float, float), optional
        The domain, such as (0, 1) for pixels: what lies outside of it is no input.

    Returns
    -------
    numpy.ndarray of bool, shape (m,)
        For sequences with an output a step, whether all of them are certain.

    Raises
    ------
    InputError
        As `margins`; if eps or clip is out of range, or an input lies outside clip.

    Notes
    -----
    Sources: as `bounds`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.random.default_rng(0).normal(size=(5, 3))
    >>> labels = model.predict(U).argmax(axis=1)
    >>> bool(robustness.certified(model, U, labels, eps=0.0).all())
    True
    """
    asked, rounds = _Asked.read(model, {"U": U}, lengths, "affine", rounds)
    eps = distance(eps)
    if norm not in ("inf", 2):
        raise InputError(f"norm is {norm!r}; use 'inf' or 2")
    u, t, found = asked.low, _labels(labels, asked.low), np.zeros(len(asked.low), bool)
    floor, ceiling = domain(clip, u)
    with np.errstate(over="ignore"):
        low, high = outward(u, u, eps) if eps else (u, u)
    near = asked._replace(
        low=np.maximum(low, floor),
        high=np.minimum(high, ceiling),
        ball=None if norm == "inf" else (u, math.nextafter(eps, math.inf)),
    )
    for count in (0, 1, rounds):
        for rows in near.pieces(~found):
            try:
                V = _margins(near.walked(rows, count).out, t[rows])
            except InputError:
                if count:  # without an embedded model there are affine forms alone
                    raise
                break
            others = np.arange(V.shape[-1]) != t[rows][..., None]
            found[rows] = np.all((V < 0) | ~others, axis=tuple(range(1, V.ndim)))
    return found


class _Asked(NamedTuple):
    """What was asked: a model, and the boxes, or the balls ``(centres, radius)``."""

    model: Layer
    low: np.ndarray
    high: np.ndarray
    line: Timeline | None
    ball: tuple[np.ndarray, float] | None = None

    @classmethod
    def read(
        cls, model: Any, given: dict[str, Any], lengths: Any, method: Any, rounds: Any
    ) -> tuple[_Asked, int]:
        """Checked, in float64 and exactly; and the number of rounds, 0 for boxes."""
        expect("model", model, Layer, "bounds are those of a Layer")
        refuse(model)
        if method not in ("affine", "box"):
            raise InputError(f"method is {method!r}; use 'affine' or 'box'")
        rounds = check_width("rounds", rounds)
        ends = [numbers(name, a) for name, a in given.items()]
        low, high = ends[0], ends[-1]
        try:
            model._check(low)
        except InputError as error:
            raise InputError(f"{next(iter(given))}, as an input: {error}") from None
        if low.shape != high.shape or np.any(low > high):
            raise InputError(
                f"lower has shape {low.shape} and upper {high.shape}; they must be equal, and no "
                "entry of lower larger than that of upper"
            )
        return cls(
            model, low, high, timeline(model, low, lengths)
        ), rounds if method == "affine" else 0

    def pieces(self, left: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Numbers of samples whose columns fit into memory together."""
        rows = np.arange(len(self.low)) if left is None else np.flatnonzero(left)
        heights = [shape[0] for shape in self.model._shapes().values()] or [1]
        steps = self.low.shape[1] if self.low.ndim == 3 else 1
        numbers = (self.low[0].size + steps * sum(heights)) * steps * max(heights)
        count = max(1, min(256, ROOM // numbers))
        yield from (rows[i : i + count] for i in range(0, len(rows), count))

    def walked(self, rows: np.ndarray, count: int) -> Walk:
        """These samples through the model."""
        walk = Walk(count, None if self.line is None else self.line.of(rows))
        with np.errstate(all="ignore"):  # what overflows is unbounded
            u = Form.box(self.low[rows], self.high[rows])
            if self.ball is not None and count:  # boxes have no columns
                u = Form.around(self.ball[0][rows], self.ball[1], u.lo, u.hi)
            walk.through(self.model, u)
        return walk


def _labels(labels: Any, u: np.ndarray) -> np.ndarray:
    t = to_numpy(read_array(labels, "labels"))
    if t.dtype.kind not in "iu" or t.shape not in (u.shape[:1], u.shape[:2]):
        raise InputError(
            f"labels have shape {t.shape} and dtype {t.dtype}; one integer for each of the "
            f"{len(u)} samples is needed, or for each of its steps"
        )
    return t.astype(np.int64)


def _joined(parts: list[tuple[Form, ...]]) -> Bounds:
    """Of outputs, and of states and pre-activations where there are, of all samples."""
    pairs = [
        (np.concatenate([f.lo for f in forms]), np.concatenate([f.hi for f in forms]))
        for forms in zip(*parts, strict=True)
    ]
    return Bounds(*pairs)  # type: ignore[arg-type]


def _margins(y: Form, t: np.ndarray) -> np.ndarray:
    """``y_k - y_t``: columns that both have cancel."""
    q = y.c.shape[-1]
    if t.shape != y.c.shape[:-1] or t.min() < 0 or t.max() >= q:
        raise InputError(
            f"labels have shape {t.shape} and lie between {t.min()} and {t.max()}; outputs are "
            f"{y.c.shape}: one label of 0, ..., {q - 1} for each"
        )

    def labelled(a: np.ndarray) -> np.ndarray:
        return np.take_along_axis(a, np.repeat(t, len(a) // len(t), axis=0)[..., None], -1)

    with np.errstate(all="ignore"):
        own = y.of(labelled)
        c, hi = y.c - own.c, y.hi - own.lo
        r = up(y.r + own.r + EPS * (np.abs(c) + y.sizes() + own.sizes()), y.columns + 4)
        far = Form(c, y.G - own.G, r, -hi, hi, y.ball).radius()
        found = np.nextafter(np.fmin(c + far, hi), np.inf)
    np.put_along_axis(found, t[..., None], 0.0, -1)
    return np.where(np.isnan(found), np.inf, found)
