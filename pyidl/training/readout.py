r"""The best read-out of fixed states, in closed form.

    min over K and d of  sum_i w_i |K f_i + d - y_i|^2 + ridge |K|^2,

where f_i holds all that the last matrices of a model multiply: for ``y = C x + D u +
d`` it is ``f = (x, u)``, and ``K = [C D]``. The hidden state stays as it is.

A free d centres f and y by their weighted means, exactly. Let F and Y have the centred
rows, times ``w_i^{1/2}``, and ``F = P S Q^T`` with r positive singular values. Then

    K^T = Q diag(s / (s^2 + ridge)) P^T Y,    d = mean(y) - K mean(f).

**The sample that is left out.** The fit without sample i misses y_i by

    e_i / (1 - h_i),    h_i = w_i / sum(w) + sum_j P_ij^2 s_j^2 / (s_j^2 + ridge),

with e_i the residual of the fit to all. *Proof.* The fit to the others does not change
if sample i comes back with the target t that it predicts there. So this t is a linear
function of all targets, ``t = g + h_i t``, and with the true target ``yhat_i = g + h_i
y_i``. Subtract: ``y_i - yhat_i = (1 - h_i) (y_i - t)``.

Where all samples are met, e_i and 1 - h_i are both near 0. With ``c = ridge / (s^2 +
ridge)`` they are sums without cancellation,

    e_i = (Y - P P^T Y)_i + (P diag(c) P^T Y)_i,
    1 - h_i = (1 - w_i / sum(w) - sum_j P_ij^2) + sum_j P_ij^2 c_j,

and where the first bracket is only rounding, both first terms are 0. The quotient has a
limit for ridge -> 0, which is that of the solution of least norm.

Source: Golub, Heath, Wahba, "Generalized cross-validation as a method for choosing a
good ridge parameter", Technometrics 21(2), 1979; the forms with c derived here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays import backend
from pyidl.errors import ConvergenceError, InputError, expect, is_real
from pyidl.layers.base import Layer, check_width
from pyidl.training.samples import (
    Failed,
    OnFailedSamples,
    Samples,
    check_on_fail,
    gathered,
)
from pyidl.typing import Array

__all__ = ["ReadOut", "install", "readout"]

RIDGES = np.append(10.0 ** np.arange(3.0, -16.5, -0.5), 0.0)
"""Those that are tried, in units of s_1^2, the largest first: it wins a tie."""
ROUNDING, VANISHING = 1e-12, 1e-30
"""A first bracket below `ROUNDING` is 0; `VANISHING` stands for ridge -> 0."""
LARGEST = 1e100
"""Of states and targets; their squares, and those of their roundings, are numbers."""
CONSTANT = 64 * np.finfo(np.float64).eps
"""A centred column below this share of the largest entry is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class ReadOut:
    """What `readout` has found.

    Attributes
    ----------
    ridge : float
        The weight of ``|K|^2``, beside the sum of squares over all samples.
    error, left_out_error : numpy.ndarray, shape (q,)
        Mean squared error of each output: of the samples that were fitted, and of each
        sample by the read-out of all the others. In float64, before the parameters are
        rounded to the dtype of the model.
    left_out : numpy.ndarray
        What the read-out of all the others says of each sample, with the shape of the
        output. Samples of weight 0 are not there; of steps of weight 0, and of samples
        whose solve failed, it is NaN.
    rank, width : int
        How many directions the columns have, and how many columns there are; with a
        pattern, of the output for which the rank is smallest.
    condition : float
        The largest singular value divided by the smallest of those that count; with a
        pattern the worst of all outputs, and NaN where no column varies.
    names : tuple of str
        The parameters that were replaced.
    failed : int
        Samples that were not fitted, since their solve failed.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> U = np.linspace(-2, 2, 40)[:, None]
    >>> found = readout(ImplicitModel(1, 1, 20, rng=0), U, np.sin(U), ridge=1e-6)
    >>> found.ridge, found.left_out.shape, bool(found.error < found.left_out_error)
    (1e-06, (40, 1), True)
    """

    ridge: float
    error: np.ndarray
    left_out_error: np.ndarray
    left_out: np.ndarray
    rank: int
    width: int
    condition: float
    names: tuple[str, ...]
    failed: int = 0

    def __repr__(self) -> str:
        failed = f", {self.failed} samples failed" if self.failed else ""
        return (
            f"ReadOut(ridge {self.ridge:.3g}, mean squared error {np.mean(self.error):.4g}, of "
            f"samples left out {np.mean(self.left_out_error):.4g}, rank {self.rank} of "
            f"{self.width}, condition {self.condition:.2g}{failed})"
        )


def readout(
    model: Layer,
    data: Any,
    targets: Any = None,
    weights: Any = None,
    *,
    ridge: float | str = "loo",
    batch_size: int | None = None,
    on_fail: OnFailedSamples = "skip",
) -> ReadOut:
    """Replace the last matrices of a model by the best ones, in closed form.

    ``min sum_i w_i |y(u_i) - t_i|^2 + ridge |K|^2``; K is C and D of an
    `ImplicitModel`, E of an `ImplicitRNN`, W of a `Linear`, or those of the last layer
    of a `Sequential`. All other parameters stay as they are, and so do hidden states
    and certificates.

    Computed on the host in float64, by QR and singular values. Besides the states it
    needs about four times the memory of [X U] in float64.

    Parameters
    ----------
    model : Layer
        Its parameters are replaced. Layers that draw random numbers behave as in
        `predict`.
    data, targets, weights
        As for `pyidl.fit`. Integers of one dimension less than the output, which must
        have two columns or more, are labels: the target is 1 for the class, and -1 for
        the others.
    ridge : float or "loo"
        Beside the sum of squares (not the mean), as in `sklearn.linear_model.Ridge`;
        biases are free. 0 gives the solution of least norm. "loo" tries 0 and 39
        values, from 1e-16 to 1e3 times the largest squared singular value, and takes
        that for which the squared error of samples that are left out is least. Of
        sequences with an output for every step, single steps are left out; neighbours
        are alike, so that this is too optimistic.
    batch_size : int, optional
        How many samples are solved at once, where memory matters; all if left out.
    on_fail : {"skip", "raise", "warn", "ignore"}
        What happens to samples whose solve does not converge. "skip" leaves them out
        and says so, and raises if they are more than a tenth.

    Returns
    -------
    ReadOut

    Raises
    ------
    InputError
        If the data do not fit, the model ends in something else, inputs that D
        multiplies are sparse, or the parameters that were found leave the constraint,
        as they may with `LipschitzBound`. The model is then as it was.
    ConvergenceError
        As `on_fail` says.

    Notes
    -----
    With G the gradient of the mean squared error at this read-out, ``pull(G)`` gives
    for A, B and b the gradient of the least error as a function of A, B and b alone,
    for ridge 0: the error does not change to first order with K and d. (Derived here;
    for another ridge, of the least sum with its penalty.)

    Source: the minimum is that of Hoerl, Kennard, "Ridge regression", Technometrics
    12(1), 1970; for fixed random states Huang, Zhu, Siew, "Extreme learning machine",
    Neurocomputing 70, 2006.

    Examples
    --------
    >>> from pyidl import ImplicitModel, metrics
    >>> U = np.linspace(-2, 2, 64)[:, None]
    >>> model = ImplicitModel(1, 1, 50, rng=0)
    >>> model.params = {**model.params, "b": np.linspace(-2, 2, 50)}
    >>> found = readout(model, U, np.sin(U))
    >>> bool(np.mean((model.predict(U) - np.sin(U)) ** 2) < 1e-4)
    True
    """
    expect("model", model, Layer, "readout solves for the last matrices of a Layer")
    loo = isinstance(ridge, str) and ridge == "loo"
    if not (loo or (is_real(ridge) and 0 <= float(ridge) < math.inf)):
        raise InputError(f"ridge is {ridge!r}; use 'loo', or a finite number, at least 0")
    if batch_size is not None:
        batch_size = check_width("batch_size", batch_size)
    check_on_fail(on_fail)
    given = Samples.read(gathered("readout", data, targets, weights), model, "data")
    failed = Failed(np.zeros(given.m, bool))
    batches = list(_states(model, given, batch_size or given.m, on_fail, failed))
    count = failed.count("failed", 2)
    rows = _Rows.of(batches)
    del batches  # their states are in F
    if loo and rows.bias and np.count_nonzero(rows.w) == 1:
        raise InputError(
            "ridge is 'loo', which leaves one sample out, and there is 1; give a number"
        )
    targets, total = rows.Y.copy(), float(np.sum(rows.w))
    means = rows.centre()
    parts = _parts(model, rows)
    if loo:
        unit = max(part.largest for part in parts) ** 2
        errors = [sum(np.sum(part.left_out(r * unit) ** 2) for part in parts) for r in RIDGES]
        least = float(RIDGES[np.argmin(errors)]) * unit
    else:
        least = float(ridge) / given.unit
    K = np.zeros((rows.F.shape[1], targets.shape[1]))
    e, left = np.zeros_like(targets), np.zeros_like(targets)
    for part in parts:
        K[np.ix_(part.columns, part.outputs)] = part.weights(least)
        e[:, part.outputs], left[:, part.outputs] = part.residual(least), part.left_out(least)
    found = {name: K[columns].T for name, columns in rows.names.items()}
    if rows.bias:
        found[rows.bias] = means[1] - means[0] @ K
    install(model, found)
    root = np.where(rows.w > 0, np.sqrt(rows.w), math.nan)  # steps of weight 0 have no error
    left_out: np.ndarray = np.full((given.m, *rows.shape), math.nan)
    left_out[~failed.samples] = (targets - left / root[:, None]).reshape(-1, *rows.shape)
    worst = min(parts, key=lambda part: len(part.s))
    return ReadOut(
        least * given.unit,
        np.sum(e * e, axis=0) / total,
        np.sum(left * left, axis=0) / total,
        left_out,
        len(worst.s),
        worst.width,
        max(part.condition for part in parts),
        tuple(found),
        count,
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the last matrices multiply, for some samples, and what is wanted."""

    reads: Mapping[str, Any]
    targets: np.ndarray
    weights: np.ndarray | None


def _states(
    model: Layer, given: Samples, size: int, on_fail: OnFailedSamples, failed: Failed
) -> Iterator[_Seen]:
    """Batch by batch, without the samples whose solve fails, if they are skipped."""
    targets = weights = None
    for i in range(0, given.m, size):
        samples = np.arange(i, min(i + size, given.m))
        while len(samples):
            inputs = given.take(samples).inputs
            try:
                Y, pull = model(*inputs, on_fail="raise" if on_fail == "skip" else on_fail)
            except ConvergenceError as error:
                if on_fail != "skip":
                    raise
                samples = failed.note(samples, error)
                continue
            if targets is None:
                _check_reads(model, pull.reads)
                targets = _targets(given.target, (given.m, *Y.shape[1:]))
                weights = _weights(given, targets.shape[:-1])
            yield _Seen(pull.reads, targets[samples], None if weights is None else weights[samples])
            break


def _check_reads(model: Layer, reads: Mapping[str, Any]) -> None:
    if not any(seen is not None for seen in reads.values()):
        raise InputError(
            f"model is a {type(model).__name__} whose output is not known to be linear in matrices "
            "of its own; let it end in an ImplicitModel, an ImplicitRNN or a Linear"
        )
    sparse = [name for name, seen in reads.items() if backend.is_sparse(seen)]
    if sparse:
        raise InputError(
            f"data has sparse inputs, which {sparse[0]} multiplies; shifted by their means they "
            "are full: give U.toarray(), or a model with feedthrough=False"
        )


def _targets(target: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values as they are; of labels, 1 for the class and -1 elsewhere."""
    q = shape[-1]
    if target.shape == shape[:-1] and q > 1 and backend.is_integral(target):
        labels = backend.to_numpy(target)
        if labels.min() < 0 or labels.max() >= q:
            raise InputError(
                f"targets has labels between {labels.min()} and {labels.max()}; with {q} outputs "
                f"they lie in 0, ..., {q - 1}"
            )
        return np.where(labels[..., None] == np.arange(q), 1.0, -1.0)
    if target.shape != shape:
        labels_too = f", or labels (integers) of shape {shape[:-1]}" if q > 1 else ""
        raise InputError(
            f"targets has shape {target.shape}; values of the shape of the output, {shape}"
            f"{labels_too} are needed"
        )
    values = backend.to_numpy(target)
    return np.asarray(backend.as_real(values, name="targets", xp=np, dtype="float64"))


def _weights(given: Samples, positions: tuple[int, ...]) -> np.ndarray | None:
    """One for each row, in units of the largest."""
    if given.weights is None:
        return None
    w: np.ndarray = backend.to_numpy(given.weights).astype(np.float64) / given.unit
    if w.shape not in (positions[:1], positions):
        raise InputError(
            f"weights has shape {w.shape}; one for each sample, {positions[:1]}, or for each "
            f"row of the output, {positions}, is needed"
        )
    wide = w.reshape(*w.shape, *[1] * (len(positions) - w.ndim))
    return np.asarray(wide * np.ones(positions))


@dataclass(frozen=True, eq=False)
class _Rows:
    """F and Y, a row for each sample or step, in float64, with weights w."""

    F: np.ndarray
    Y: np.ndarray
    w: np.ndarray
    names: Mapping[str, slice]
    bias: str | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, batches: list[_Seen]) -> _Rows:
        first = batches[0]
        matrices = {name: seen for name, seen in first.reads.items() if seen is not None}
        ends = np.cumsum([0, *(seen.shape[-1] for seen in matrices.values())])
        names = {name: slice(*ends[i : i + 2]) for i, name in enumerate(matrices)}
        Y = np.concatenate([batch.targets for batch in batches])
        F: np.ndarray = np.empty((Y[..., 0].size, ends[-1]), order="F")
        stop = 0
        for batch in batches:
            start, stop = stop, stop + batch.targets[..., 0].size
            for name, columns in names.items():
                seen = backend.to_numpy(batch.reads[name])
                F[start:stop, columns] = seen.reshape(stop - start, -1)
        if not np.all(np.isfinite(F)):
            raise InputError(
                "model has hidden states that are NaN or infinite, and no read-out fits them; use "
                "on_fail='skip', or project the parameters"
            )
        sizes = [float(np.max(np.abs(a), initial=0.0)) for a in (F, Y)]
        if any(size and not 1 / LARGEST <= size <= LARGEST for size in sizes):
            raise InputError(
                f"data gives states and targets up to {sizes[0]:.3g} and {sizes[1]:.3g}, of which "
                f"squares are formed; use units in which they lie below {LARGEST:g}, and above its "
                "reciprocal"
            )
        w: np.ndarray = np.ones(len(F))
        if first.weights is not None:
            w = np.concatenate([np.ravel(b.weights) for b in batches])  # type: ignore[arg-type]
        bias = next((name for name, seen in first.reads.items() if seen is None), None)
        return cls(F, Y.reshape(len(F), -1), w, names, bias, Y.shape[1:])

    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """Subtract the means of columns, if there is a bias; then weigh the rows."""
        means = np.zeros(self.F.shape[1]), np.zeros(self.Y.shape[1])
        if self.bias:
            share = self.w / np.sum(self.w)
            for a, mean in zip((self.F, self.Y), means, strict=True):
                largest = np.max(np.abs(a), axis=0)
                mean[:] = share @ a
                a -= mean
                a[:, np.max(np.abs(a), axis=0) <= CONSTANT * largest] = 0.0
        for a in (self.F, self.Y):
            a *= np.sqrt(self.w)[:, None]
        return means


@dataclass(frozen=True, eq=False)
class _Part:
    """Outputs that read the same columns: ``F = P S Q^T``, and ``T = P^T Y``.

    And what is orthogonal to all columns: of each sample the share `free`, and of its
    targets `rest`.
    """

    outputs: np.ndarray
    columns: np.ndarray
    width: int
    P: np.ndarray
    s: np.ndarray
    Q: np.ndarray
    T: np.ndarray
    free: np.ndarray
    rest: np.ndarray

    @property
    def largest(self) -> float:
        return float(self.s[0]) if len(self.s) else 0.0

    @property
    def condition(self) -> float:
        return float(self.s[0] / self.s[-1]) if len(self.s) else math.nan

    def _shrunk(self, ridge: float) -> np.ndarray:
        """``c = ridge / (s^2 + ridge)``, without squares that overflow."""
        t = ridge / self.s
        return np.asarray(t / (self.s + t))

    def weights(self, ridge: float) -> np.ndarray:
        """``K^T = Q diag(s / (s^2 + ridge)) P^T Y``."""
        return np.asarray(self.Q @ (self.T / (self.s + ridge / self.s)[:, None]))

    def residual(self, ridge: float) -> np.ndarray:
        """``Y - F K^T``."""
        return np.asarray(self.rest + self.P @ (self._shrunk(ridge)[:, None] * self.T))

    def left_out(self, ridge: float) -> np.ndarray:
        """The residual of each sample, fitted without it."""
        c = self._shrunk(max(ridge, VANISHING * self.s[-1] ** 2 if len(self.s) else 0.0))
        within = self.P @ (c[:, None] * self.T)
        with np.errstate(invalid="ignore"):  # of one sample and a bias nothing is left
            share = self.free + np.einsum("ij,ij,j->i", self.P, self.P, c)
            return np.asarray((self.rest * (self.free > 0)[:, None] + within) / share[:, None])


def _parts(model: Layer, rows: _Rows) -> list[_Part]:
    """The outputs, gathered by the columns that they may read."""
    from scipy.linalg import qr

    q = rows.Y.shape[1]
    masks = [model.support(name) for name in rows.names]
    reads = np.concatenate(
        [
            np.ones((q, at.stop - at.start), bool) if mask is None else mask
            for at, mask in zip(rows.names.values(), masks, strict=True)
        ],
        axis=1,
    )
    kinds, kind = np.unique(reads, axis=0, return_inverse=True)
    own, R = qr(rows.F, mode="economic", overwrite_a=True, check_finite=False)
    mean = rows.w / np.sum(rows.w) if rows.bias else np.zeros(len(own))
    live = R.any(axis=0)  # what is 0 for all samples is not read, to the last bit
    parts = []
    for i, mask in enumerate(kinds):
        columns, outputs = np.flatnonzero(mask & live), np.flatnonzero(kind.ravel() == i)
        W, s, Qt = np.linalg.svd(R[:, columns], full_matrices=False)
        kept = s > max(rows.F.shape) * np.finfo(np.float64).eps * np.max(s, initial=0.0)
        P = own @ W[:, kept]
        Y = rows.Y[:, outputs]
        T = P.T @ Y
        free = 1.0 - mean - np.einsum("ij,ij->i", P, P)
        free = np.where(free > ROUNDING, free, 0.0)
        width = int(mask.sum())
        parts.append(_Part(outputs, columns, width, P, s[kept], Qt[kept].T, T, free, Y - P @ T))
    return parts


def install(model: Layer, found: Mapping[str, np.ndarray]) -> None:
    """Give the model these parameters, cast to its dtype.

    Raises
    ------
    InputError
        If they lie outside its constraint; it is then as it was.
    """
    new: dict[str, Array] = dict(model.params)
    for name, a in found.items():
        with backend.on_device_of(new[name]), np.errstate(over="ignore"):
            new[name] = backend.from_host(model.xp, a.astype(model.dtype))
    before, after = (_moved(model, params) for params in (dict(model.params), new))
    if set(after) - set(before):
        raise InputError(
            f"with the read-out that was found, model lies outside its constraint, whose "
            f"projection would change {', '.join(after)}; give a larger ridge, a wider constraint, "
            "or one that C and D have no say in, such as InfNorm"
        )
    model.params = new


def _moved(model: Layer, params: Mapping[str, Array]) -> list[str]:
    """Which parameters a projection changes."""
    inside = model.project(params)
    return [
        name
        for name, a in params.items()
        if not np.array_equal(backend.to_numpy(inside[name]), backend.to_numpy(a))
    ]
