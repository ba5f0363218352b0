r"""Compressed models, and what the compression changes at most.

**Staying in the set.** With ``|A0| <= |A|``, entry by entry, row sums and lambda_pf do
not grow: entries are rounded towards zero, and any may be pruned. The matrix measure
does not grow if beside the diagonal ``|A0_ij| <= |A_ij|``, and on it ``A0_ii <= A_ii``:
the diagonal is rounded down, and no negative entry of it is pruned. Zeros stay zeros.
Everything else is rounded to nearest. Where that leaves the set, A is multiplied by
``1 - t`` before (L of factors; A, B, C and D where the constraint is `LipschitzBound`),
with t = 2^-20, 2^-19, ..., until the rounded one is inside. The room around ``(1 - t)
A`` grows with t: the sets are convex and have 0 inside (`LipschitzBound`: a linear
matrix inequality in all four, F of `pyidl.robustness.lipschitz`), and lambda_pf is
homogeneous.

**At given inputs** both models are evaluated, each with a proof: y lies in ``[l, h]``,
y0 in ``[l0, h0]``, so that ``|y - y0| <= max(h - l0, h0 - l)``.

**On a box of inputs** such a difference is as wide as the box. There the change itself
is enclosed. For every input, with states x of the model and x0 of the compressed one,

    v = x - x0 = S (A v + g),    g = (A - A0) x0 + (B - B0) u + b - b0,

where S holds mean slopes of phi between ``y0 = A0 x0 + B0 u + b0`` and ``A v + g``
more. Let D and T be middle and half width of what slopes may be there, ``|A v + g| <=
W``:

    v = D (A v + g) + xi,    |xi| <= T W.

That is the equation of the affine forms of `pyidl.robustness.states`, with g in the
place of z: g is signed, and an affine form in the input. From a first W, of ``|v| <=
e``, it is solved again and again, which makes W smaller. That e is what the model's
weights (`states.Weights`) or its certificate say of a point with the residual ``phi(y0
+ g) - phi(y0)``, at most ``L |g|``: x0 is such a point. At last

    y - y0 = C v + (C - C0) x0 + (D - D0) u + d - d0.

Source: the first-order form of such a bound is the perturbation theory of Higham,
"Accuracy and stability of numerical algorithms", 2nd ed., chapter 7; slopes in place of
derivatives: Krawczyk's operator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyidl.activations.base import pieces
from pyidl.activations.ranges import gain
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.arrays.table import Table, abridged
from pyidl.certify.enclosure import Equation, up
from pyidl.certify.forms import EPS, Form, padded
from pyidl.errors import InputError, expect, is_real
from pyidl.layers import ImplicitModel, Layer
from pyidl.layers.composite import Composite
from pyidl.robustness.bounds import ROOM, bounds, certified, margins
from pyidl.robustness.door import numbers
from pyidl.robustness.states import ENOUGH, States, exactly
from pyidl.robustness.through import refuse
from pyidl.typing import Array
from pyidl.wellposed import InfNorm, LipschitzBound, MatrixMeasure, PerronFrobenius
from pyidl.wellposed.blocktriangular import innermost

__all__ = ["Compression", "compress"]

Kind = Literal["float16", "int8", "prune"]

ROUNDS, MOST = 5, 30
"""Of affine forms; and so often W is made smaller at most."""

SHRUNK = (0.0, *(2.0**k for k in range(-20, -1)))
"""By so much of it A may be made smaller, so that its rounding stays in the set."""

SHARP = 1e-7
"""Of an output: a wider box of its value at a point is refined by affine forms."""


@dataclass(frozen=True, repr=False, eq=False)
class Compression:
    """What `compress` proved; float64, on the host.

    Attributes
    ----------
    kind : str
        What was done: "float16", "int8" or "prune".
    before, after : int
        Bytes of the parameters: as they are, and in the compressed format. That is 2 an
        entry (float16); 1 an entry and a number for each row (int8); a bit for each
        entry of a matrix, and the entries that are left (prune).
    change : numpy.ndarray, shape (m, ..., q)
        No output changes by more, for each of m inputs or boxes.
    kept : numpy.ndarray of bool, shape (m,)
        Whether both models are proven to have the same largest output, for the input or
        for all of the box.
    shrunk : float
        The largest t by which an A was made smaller before; 0 in most cases.
    """

    kind: str
    before: int
    after: int
    change: np.ndarray
    kept: np.ndarray
    shrunk: float = 0.0

    @property
    def largest(self) -> np.ndarray:
        """The largest change of each output over all that was given, (q,)."""
        return np.asarray(self.change.max(axis=tuple(range(self.change.ndim - 1))))

    def _table(self) -> Table:
        rows = [(f"{k}", f"{change:.3g}") for k, change in enumerate(self.largest)]
        notes = (
            f"{self.after:,} bytes, {self.before:,} before",
            f"the largest output is the same for certain: {self.kept.sum()} of {len(self.kept)}",
            *([f"A was made smaller by {self.shrunk:.2g} of it before"] if self.shrunk else []),
        )
        title = f"Compressed ({self.kind})"
        return Table(title, ("output", "changes at most by"), abridged(rows), notes)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        return self._table()._repr_html_()


def compress(
    model: Layer,
    kind: Kind = "float16",
    *,
    U: Array | None = None,
    lower: Array | None = None,
    upper: Array | None = None,
    share: float = 0.2,
) -> tuple[Layer, Compression]:
    """Round or prune the parameters of a model, and prove what that changes.

    The compressed model stays in its set, and is a model as any other: its parameters
    are numbers of the smaller format, held in the model's own dtype.

    Parameters
    ----------
    model : Layer
        What `bounds` covers.
    kind : {"float16", "int8", "prune"}
        "int8": entries are whole multiples, from -128 to 127, of a number for each row.
        "prune": the smallest entries of every matrix become 0; biases stay.
    U : array, shape (m, p) or (m, T, p), optional
        Inputs at which the change is bounded. They are taken exactly as they are.
    lower, upper : array, shape (m, p), optional
        In the place of U: ends of boxes. The change is bounded for all inputs of a box;
        for an `ImplicitModel`.
    share : float
        Of the entries that are pruned, between 0 and 1.

    Returns
    -------
    Layer
        The compressed model.
    Compression
        The proof. It is about the exact outputs of both models.

    Raises
    ------
    InputError
        If an entry is too large for float16; if the compressed parameters leave the
        set, even if A is made smaller by a quarter; as `bounds`, for either model; if
        options do not fit.

    Notes
    -----
    Where phi acts on several components together (softmax), no slopes are known, and
    the bound of a box is as wide as the outputs on it.

    Source: see the head of `pyidl.robustness.compress`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> U = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    >>> small, report = robustness.compress(model, "int8", U=U)
    >>> report.before, report.after
    (672, 272)
    >>> far = np.abs(small.predict(U) - model.predict(U))
    >>> bool(np.all(far <= report.change + 1e-5))
    True
    """
    expect("model", model, Layer, "a Layer is needed")
    refuse(model)
    if kind not in ("float16", "int8", "prune"):
        raise InputError(f"kind is {kind!r}; use 'float16', 'int8' or 'prune'")
    if not (is_real(share) and 0 < share < 1):
        raise InputError(f"share is {share!r}; a number between 0 and 1 is needed")
    if (U is None) == (lower is None) or (lower is None) != (upper is None):
        raise InputError("give U, or else lower and upper: where the change is to be bounded")
    if U is None and type(model) is not ImplicitModel:
        raise InputError(
            "lower and upper are for an ImplicitModel, and model is "
            f"{type(model).__name__}; give U, or compress its implicit models one by one"
        )
    given = {"U": U} if U is not None else {"lower": lower, "upper": upper}
    ends = [numbers(name, a) for name, a in given.items()]
    low, high = ends[0], ends[-1]
    twin = copy.deepcopy(model)
    params, after, shrunk = _compressed(model, kind, float(share))
    twin.params = {key: from_host(model.xp, a) for key, a in params.items()}
    found, new = (_outputs(m, low, high) for m in (model, twin))
    change = np.maximum(found[1] - new[0], new[1] - found[0])
    labels = (0.5 * new[0] + 0.5 * new[1]).argmax(axis=-1)
    if U is not None:
        kept = certified(model, low, labels, 0.0) & certified(twin, low, labels, 0.0)
    else:
        assert isinstance(model, ImplicitModel)
        assert isinstance(twin, ImplicitModel)
        change = np.fmin(change, _moved(model, twin, low, high))
        V = np.maximum(*(margins(m, low, high, labels) for m in (model, twin)))
        kept = np.all((V < 0) | (np.arange(V.shape[1]) == labels[:, None]), axis=1)
    before = sum(to_numpy(a).nbytes for a in model.params.values())
    return twin, Compression(kind, before, after, np.nextafter(change, np.inf), kept, shrunk)


# ------------------------------------------------------------------- rounding and pruning


def _leaves(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    if isinstance(layer, Composite):
        for name, part in layer.parts.items():
            yield from _leaves(part, f"{prefix}{name}.")
    else:
        yield prefix, layer


def _compressed(model: Layer, kind: Kind, share: float) -> tuple[dict[str, np.ndarray], int, float]:
    """All parameters compressed, the bytes of their format, and the largest t."""
    found: dict[str, np.ndarray] = {}
    size, shrunk = 0, 0.0
    for prefix, layer in _leaves(model):
        constraint: Any = getattr(layer, "constraint", None)
        before = {key: to_numpy(a) for key, a in layer.params.items()}
        phi: Any = getattr(layer, "activation", None)
        bound = constraint is not None and constraint.contains(before, phi)
        smaller = "ABCD" if isinstance(constraint, LipschitzBound) else "AL"
        for t in SHRUNK:
            own, count = {}, 0
            for key, a in before.items():
                W = a.astype(np.float64) * (1.0 - t if key in smaller else 1.0)
                limits, dtype = _limits(layer, key, W), np.dtype(layer.dtype)
                own[key], more = _rounded(W, kind, share, dtype, prefix + key, *limits)
                count += more
            if not bound or constraint.contains(own, phi):
                break
        else:
            where = f" of layer {prefix[:-1]}" if prefix else ""
            raise InputError(
                f"compressed ({kind}), the parameters{where} leave the set {constraint}, "
                f"even if A is made smaller by {t:.0%}; project the model into a smaller set "
                "first, or change less"
            )
        size, shrunk = size + count, max(shrunk, t)
        found |= {prefix + key: a for key, a in own.items()}
    return found, size, shrunk


def _limits(layer: Any, key: str, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between what compressed entries must lie, so that the set is not left."""
    sets = innermost(getattr(layer, "constraint", None))  # type: ignore[arg-type]
    safe = [isinstance(one, InfNorm | PerronFrobenius | MatrixMeasure) for one in sets]
    if key != "A" or not all(safe) or layer.activation.vector_blocks(len(W)):
        far = np.full(W.shape, np.inf)
        return -far, far
    low, high = np.minimum(W, 0.0), np.maximum(W, 0.0)
    measures = [isinstance(one, MatrixMeasure) for one in sets]
    if any(measures):
        np.fill_diagonal(high, np.diagonal(W))
    if all(measures):
        np.fill_diagonal(low, -np.inf)
    return low, high


def _rounded(
    W: np.ndarray,
    kind: Kind,
    share: float,
    dtype: np.dtype[Any],
    name: str,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, int]:
    """The entries, nearest between low and high; and how many bytes they take."""
    near, size = W.copy(), W.size
    if kind == "prune":
        if W.ndim > 1:
            free = (low <= 0) & (high >= 0)
            count = min(int(share * W.size), int(free.sum()))
            order = np.argsort(np.where(free, np.abs(W), np.inf), axis=None, kind="stable")
            near.flat[order[:count]] = 0.0
            size = int(np.count_nonzero(near))
        return near.astype(dtype), size * dtype.itemsize + (-(-W.size // 8) if W.ndim > 1 else 0)
    if kind == "float16":
        with np.errstate(over="ignore", under="ignore"):
            half = W.astype(np.float16)
            near, below, above = (
                a.astype(np.float64)
                for a in (half, *(np.nextafter(half, np.float16(end)) for end in (-np.inf, np.inf)))
            )
        count = 2 * W.size
    else:
        # Scales of 16 bits: their multiples are numbers of the dtype, exactly.
        scale = np.abs(W).max(axis=-1, keepdims=True) / 127.0
        finest = round(math.log2(np.finfo(dtype).smallest_subnormal))
        unit = np.ldexp(1.0, np.maximum(np.frexp(scale)[1] - 16, finest))
        scale = np.floor(scale / unit) * unit  # down, so that the largest entry is 127 times it
        near = scale * np.clip(np.rint(W / np.where(scale > 0, scale, 1.0)), -127, 127)
        below, above = near - scale, near + scale
        count = W.size + scale.size * dtype.itemsize
    near = np.where(near > high, below, near)
    near = np.where(near < low, above, near)
    with np.errstate(over="ignore"):
        found = (near + 0.0).astype(dtype)  # no negative zero
    if not np.all(np.isfinite(found)):
        raise InputError(
            f"{name} has an entry of size {np.abs(W).max():.4g}, which overflows in {kind}; scale "
            "inputs and outputs, or use kind='prune'"
        )
    return found, count


# ------------------------------------------------------------------------ what is changed


def _outputs(model: Layer, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the outputs; by boxes at points, where these are narrow."""
    if np.array_equal(low, high):
        with suppress(InputError):
            found = bounds(model, low, high, method="box")
            if np.all(found.width <= SHARP * (1.0 + np.abs(found.outputs[0]))):
                return found.outputs
    return bounds(model, low, high).outputs


def _moved(
    model: ImplicitModel, twin: ImplicitModel, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """``|y - y0|`` at most, for all inputs of boxes; infinite if slopes are unknown."""
    phi, n, (m, p) = model.activation, model.hidden_dim, low.shape
    if phi.vector_blocks(n):
        return np.full((m, model.output_dim), np.inf)
    pair = States.of(model, exactly(model)), States.of(twin, exactly(twin))
    slopes = Equation.of(model, pieces(phi, 0, n)).slopes
    count = max(1, ROOM // ((p + 4 * n) * n))
    parts = [slice(i, i + count) for i in range(0, m, count)]
    with np.errstate(all="ignore"):  # what overflows is unbounded
        return np.concatenate([_change(*pair, slopes, low[i], high[i]) for i in parts])


def _change(
    one: States, other: States, slopes: Any, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The head of this file, for some boxes."""
    u, n = Form.box(low, high), len(one.A)
    (_, x, y), (_, x0, y0) = one.answered(u, ROUNDS), other.answered(u, ROUNDS)
    none: dict[str, Any] = {"b": 0.0, "d": 0.0, "D": np.zeros((len(one.params["C"]), low.shape[1]))}
    P, P0 = none | one.params, none | other.params
    input_part = _apart(u, P["B"] - P0["B"], P["b"] - P0["b"])
    x0, _ = padded([x0, input_part])
    g = _apart(x0, one.A - other.A, 0.0, one.spread + other.spread).plus(input_part).promoted()
    # The slopes, and a first box of v.
    least, most = np.fmin(y.lo, y0.lo), np.fmax(y.hi, y0.hi)
    middle = 0.5 * least + 0.5 * most
    least, most, _ = slopes(middle, up(np.maximum(most - middle, middle - least), 1))
    D = 0.5 * least + 0.5 * most
    T = up(np.maximum(most - D, D - least), 1)
    error = one.weights.error if one.weights is not None else one.certificate().entrywise
    far = np.fmin(error(up(gain(one.phi, _size(g)), 1)), np.maximum(x.hi - x0.lo, x0.hi - x.lo))
    far = up(far, 1)
    v, _ = padded([Form.box(-far, far), g])
    W = up(far @ one.size.T + _size(g), n)
    going = np.ones(len(W), bool)
    for _ in range(MOST):
        v = one.affine(g, v, D, np.zeros_like(D), up(T * W, 1))
        new = np.fmin(W, _size(v.linear(one.A).widened(up(one.doubt(_size(v)), n)).plus(g)))
        going &= new.sum(axis=1) < ENOUGH * W.sum(axis=1)  # each sample by itself
        if not going.any():
            break
        W = np.where(going[:, None], new, W)
    answer = _apart(x0, P["C"] - P0["C"]).plus(_apart(u, P["D"] - P0["D"], P["d"] - P0["d"]))
    return _size(v.linear(P["C"]).plus(answer))


def _size(v: Form) -> np.ndarray:
    """``|v|`` at most."""
    return np.asarray(np.maximum(np.abs(v.lo), np.abs(v.hi)))


def _apart(v: Form, W: np.ndarray, b: np.ndarray | float = 0.0, doubt: Any = 0.0) -> Form:
    """``W v + b`` for differences W and b: off by one rounding each, W by a doubt."""
    off = _size(v) @ (EPS * np.abs(W) + doubt).T + EPS * np.abs(b)
    return v.linear(W, b).widened(up(off, W.shape[1]))
