r"""Certified training: logits, and what they may become within a box around the input.

Let ``|u' - u| <= eps``, entry by entry. The embedded model
(`pyidl.robustness.embedded`) encloses the states, ``x_lo <= x(u') <= x_hi``. With
centres c and radii r of the boxes of ``w = [x, u']``, and ``W = [C D]``, the logit of
class k minus that of the label t is at most

    V_k = (W_k - W_t) c + |W_k - W_t| r + d_k - d_t,    V_t = 0.

The difference of the rows comes first: what they share cancels. ``log sum_k exp(V_k)``
is at least the cross-entropy at any u' of the box.

**At zeros.** V has kinks where an entry of A or B changes its sign. Let P be what the
entry gets if it belongs to M (it is positive), Q if to N (negative), g what it gets
from the plain logits. The bounds widen with ``|A_ij|``, so that ``P >= Q`` for a loss
that rises with V, and of an entry that is 0 the derivative to the right is ``g + P``,
to the left ``g + Q``. The gradient is

    median(g + Q, 0, g + P),

0 where both sides rise, and otherwise the lesser slope: a step against it descends.
Where a difference of rows is 0 it is the mean of both sides.

**Which models.** The embedded model has exactly one solution if ``diag(L) A' s < s``
for some s > 0, A' = A on the diagonal and |A| beside it. Row sums (`InfNorm`), their
optimum over s (`PerronFrobenius`), measures (`MatrixMeasure`) and triangles of such
blocks imply it for every A in their sets, Euclidean norms do not. Where softmax acts on
w components together, the sets bound Euclidean norms N of blocks, and the ends of the
block I move by at most ``max_i sum_j |A_ij| s_j / 2 <= w^(1/2) sum_J N_IJ s_J / 2``, so
that ``kappa w^(1/2) < 1`` implies it.

Sources: Gowal et al., "On the effectiveness of interval bound propagation for training
verifiably robust models", arXiv 1810.12715, 2018; Jafarpour, Davydov, Abate, Bullo,
Coogan, arXiv 2208.03889, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np

from pyidl.activations.ranges import parts
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.equilibrium import DEFAULT_ADJOINT, EquilibriumPullback, solved
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel
from pyidl.layers.base import Call, finite_output
from pyidl.layers.composite import Composite, CompositePullback, joined
from pyidl.losses import one_hot
from pyidl.robustness.door import distance, domain
from pyidl.robustness.embedded import embedded_cell, rising
from pyidl.solvers.solution import OnFail, Solution
from pyidl.typing import END, Array, Grads, Params, Rng
from pyidl.wellposed import (
    Constraint,
    InfNorm,
    MatrixMeasure,
    PerronFrobenius,
    StrictlyTriangular,
)
from pyidl.wellposed.blocktriangular import innermost

__all__ = ["WorstCase"]

AT_ONCE = 2**22
"""Entries of differences of rows, ``W_k - W_t``, that are formed at a time."""


@dataclass(frozen=True)
class _Labelled(Call):
    """A call with the rows of the unit matrix that its labels stand for, (m, q)."""

    own: Any = None

    def of(self, samples: slice) -> _Labelled:
        return replace(self, own=self.own[samples, :])


@dataclass(frozen=True, repr=False)
class WorstCasePullback(CompositePullback):
    """The derivative of the plain logits and of their bounds."""

    equilibrium: EquilibriumPullback
    backward: Callable[[Any, bool], tuple[Any, Grads]]

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """Call the closure of the forward pass."""
        return self.backward(dY, inputs)

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The one solve for the states and their bounds."""
        return (self.equilibrium.forward,)

    @property
    def converged(self) -> np.ndarray:
        """Which samples converged."""
        return self.equilibrium.forward.converged


@dataclass(eq=False, repr=False)
class WorstCase(Composite):
    """``Y = [y(u), V]``: logits, and bounds of what they may become around u.

    ``Y[:, 0]`` are the logits of an implicit model. ``Y[:, 1]`` bounds, for every u'
    with ``|u' - u| <= eps`` in all entries, the differences to the logit of the label
    t: ``V_k >= y_k(u') - y_t(u')``, and ``V_t = 0``. Where V_t is the largest, u' has
    the class t for sure, as far as the precision of the solves goes: this layer is for
    training, by `pyidl.losses.certified`. One solve of width 3n finds states and ends.

    Inputs are ``(U, labels)``. To `pyidl.fit` give ``((U, labels), labels)``. The
    parameters are those of the model, "model.A" and so on, and so is the projection.

    Parameters
    ----------
    model : ImplicitModel
        In a set in which bounds exist: `InfNorm`, `PerronFrobenius`, `MatrixMeasure`,
        or triangular. It is trained in place.
    eps : float or Schedule
        Half the width of the box, at least 0; or a function of the number of steps
        taken, which `pyidl.fit` follows. Elsewhere a schedule has its last value.
    clip : (float, float), optional
        The domain of the inputs, such as (0, 1) for pixels, to which the box is cut.

    Raises
    ------
    InputError
        If the model is none that has bounds, or a number is out of range; in a call
        also if U leaves the domain or labels do not fit.

    Notes
    -----
    Sources: Gowal et al., arXiv 1810.12715, 2018; Jafarpour et al., arXiv 2208.03889,
    2022.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import ImplicitModel, WorstCase, fit, losses, metrics, optim
    >>> rng = np.random.default_rng(0)
    >>> U, t = rng.random((60, 2)), rng.integers(0, 2, 60)
    >>> U[:, 0] += 2 * t
    >>> layer = WorstCase(ImplicitModel(2, 2, 9, rng=0), optim.Ramp(0.0, 0.3, steps=20))
    >>> history = fit(
    ...     layer, ((U, t), t), loss=losses.certified(0.5), optimizer=optim.Adam(0.02),
    ...     epochs=40, rng=0, verbose=0,
    ... )
    >>> metrics.certified_accuracy(layer.predict(U, t), t) > 0.8
    True
    """

    model: ImplicitModel
    eps: float | Callable[[int], float]
    _: KW_ONLY
    clip: tuple[float, float] | None = None

    @property
    def parts(self) -> Mapping[str, ImplicitModel]:
        """The model."""
        return {"model": self.model}

    @property
    def options(self) -> Mapping[str, Any]:
        """The size of the box."""
        return {"eps": self.eps, "clip": self.clip}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> WorstCase:
        """The layer of this model and these options."""
        return WorstCase(**parts)

    def _validate(self) -> None:
        expect("model", self.model, ImplicitModel, "bounds are those of an ImplicitModel alone")
        parts(self.model.activation, self.model.hidden_dim)  # refuses those without a range
        _refuse(self.model.constraint, self.model)
        now = distance(self._now)
        self.eps = self.eps if callable(self.eps) else now
        self.clip = None if self.clip is None else domain(self.clip)
        super()._validate()

    @property
    def _now(self) -> Any:
        return self.eps(END) if callable(self.eps) else self.eps

    def at_step(self, count: int) -> WorstCase:
        """The layer of the same model with the eps of step `count` + 1."""
        if not callable(self.eps):
            return self
        return WorstCase(self.model, self.eps(count), clip=self.clip)

    def _widths(self) -> tuple[int, int]:
        return self.model._widths()

    # ----------------------------------------------------------------------- calling it

    def __call__(
        self, U: Any, labels: Any = None, *, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, CompositePullback]:
        """Return ``(Y, pullback)``.

        As for every `Layer`; and:

        Parameters
        ----------
        labels : array of integers, shape (m,)
            The classes against which V is measured. The pullback returns ``(dU,
            None)`` for both inputs.

        Returns
        -------
        Y : array, shape (m, 2, q)
        pullback
        """
        U = backend.own(self._admit(U), U)
        Y, pull = self._forward(U, _Labelled(None, on_fail, own=self._own(U, labels)))
        return finite_output(Y, on_fail), pull

    def predict(
        self,
        U: Any,
        labels: Any = None,
        *,
        batch_size: int | None = None,
        on_fail: OnFail = "raise",
    ) -> Any:
        """Return Y alone, in batches of at most `batch_size` rows.

        Parameters
        ----------
        U, labels, on_fail
            As in a call.
        batch_size : int, optional
            A number to choose where memory matters; all rows at once if left out.

        Examples
        --------
        >>> import numpy as np
        >>> from pyidl import ImplicitModel, WorstCase
        >>> layer = WorstCase(ImplicitModel(3, 2, 5, rng=0), 0.1)
        >>> layer.predict(np.ones((4, 3)), [0, 1, 1, 0]).shape
        (4, 2, 2)
        """
        U = self._admit(U)
        return self._in_batches(U, batch_size, _Labelled(None, on_fail, own=self._own(U, labels)))

    def _check(self, U: Any) -> None:
        self.model._check(U)
        domain(self.clip, U)

    def _own(self, U: Any, labels: Any) -> Any:
        if labels is None:
            raise InputError(
                "labels are missing: V is measured against the class of each sample; call "
                "layer(U, labels), and in training fit(layer, ((U, labels), labels), ...)"
            )
        own = one_hot(U, labels, self.model.output_dim)
        if own.shape[:-1] != U.shape[:1]:
            raise InputError(
                f"labels has shape {own.shape[:-1]}; one class for each of the {U.shape[0]} "
                "samples is needed"
            )
        return own

    # ------------------------------------------------------- the map and its derivative

    def _forward(self, U: Any, call: Call) -> tuple[Any, WorstCasePullback]:
        """Both halves of Y, one derivative under the other."""
        assert isinstance(call, _Labelled)
        xp, model, params, p = namespace(U), self.model, self.model.params, self.model.input_dim
        low, high, moves = self._box(U)
        cell, box = embedded_cell(model), xp.concat([low, high, U], axis=1)
        problem, proof = cell.bind(box), model.certificate
        found = solved(problem, model.forward, on_fail=call.on_fail, certificate=proof)
        W = xp.concat([params["C"], params["D"]], axis=1) if model.feedthrough else params["C"]
        w_low, w_high, w = (
            xp.concat([x, u], axis=1) if model.feedthrough else x
            for x, u in zip(_thirds(found.value), (low, high, U), strict=True)
        )
        y = w @ W.T + params["d"] if model.bias else w @ W.T
        c, r = 0.5 * (w_low + w_high), 0.5 * (w_high - w_low)
        V, margins = _margins(W, params.get("d"), c, r, call.own)
        adjoint = model.adjoint or DEFAULT_ADJOINT
        equilibrium = EquilibriumPullback(cell, box, found, adjoint, call.on_fail)

        def backward(dY: Any, inputs: bool) -> tuple[Any, Grads]:
            dy = dY[:, 0, :]
            dc, dr, dW, dd = margins(dY[:, 1, :])
            dw = 0.5 * (dc - dr), 0.5 * (dc + dr), dy @ W
            n, dW = model.hidden_dim, dW + dy.T @ w
            dbox, grads = equilibrium(xp.concat([g[:, :n] for g in dw], axis=1), inputs)
            grads |= {"C": dW[:, :n]} | ({"D": dW[:, n:]} if model.feedthrough else {})
            if model.bias:
                grads |= {"b": sum(_thirds(grads["b"])), "d": dd + xp.sum(dy, axis=0)}
            if not inputs:
                return None, _named(model, params, grads)
            parts = [
                du + g[:, n:] if model.feedthrough else du
                for du, g in zip(
                    (dbox[:, :p], dbox[:, p : 2 * p], dbox[:, 2 * p :]), dw, strict=True
                )
            ]
            if moves is not None:  # where an end is that of the domain, it stays
                parts[:2] = (xp.where(m, d, 0.0) for m, d in zip(moves, parts, strict=False))
            return sum(parts), _named(model, params, grads)

        Y = xp.stack([y, V], axis=1)
        return Y, WorstCasePullback(Y, {}, equilibrium, backward, lengths=True)

    def _box(self, U: Any) -> tuple[Any, Any, tuple[Any, Any] | None]:
        """The ends of the box, and which of them move with u; None for all."""
        eps = float(self._now)  # a number of Python's keeps the dtype of U
        low, high = U - eps, U + eps
        if self.clip is None:
            return low, high, None
        xp, (least, most) = namespace(U), self.clip
        return xp.clip(low, least, None), xp.clip(high, None, most), (low >= least, high <= most)


def _refuse(constraint: Constraint, model: ImplicitModel) -> None:
    """Refuse a model of which nothing says that its bounds exist."""
    sets = innermost(constraint)
    fit = (InfNorm, MatrixMeasure, PerronFrobenius, StrictlyTriangular)
    if not all(isinstance(one, fit) for one in sets):
        raise InputError(
            f"the model lies in {constraint!r}, which does not imply that bounds of its states "
            "exist; train it in MatrixMeasure(0.95) (for activations that do not fall), InfNorm or "
            "PerronFrobenius: model.replace(constraint=...), then params = project(params)"
        )
    blocks = model.activation.vector_blocks(model.hidden_dim)
    width = max((stop - start for start, stop in blocks), default=1)
    kappa = max(getattr(one, "kappa", 0.0) for one in sets)
    if width > 1 and kappa * width**0.5 >= 1.0:
        raise InputError(
            f"the model lies in {constraint!r}, and its activation acts on {width} components "
            f"together; for bounds kappa must be below {width**-0.5:.4g}, 1 / {width}^(1/2)"
        )


def _margins(W: Array, d: Array | None, c: Any, r: Any, own: Any) -> tuple[Any, Any]:
    """``V_k = (W_k - W_t) c + |W_k - W_t| r + d_k - d_t``, and its derivative."""
    xp, (q, _) = namespace(W), W.shape
    y = c @ W.T if d is None else c @ W.T + d
    V = y - xp.sum(own * y, axis=1, keepdims=True)
    for t, gap in _gaps(W):
        spread = xp.reshape(r @ xp.reshape(xp.abs(gap), (-1, W.shape[1])).T, (-1, gap.shape[0], q))
        V = V + xp.sum(own[:, t, None] * spread, axis=1)

    def backward(dV: Any) -> tuple[Any, Any, Any, Any]:
        dy = dV - own * xp.sum(dV, axis=1, keepdims=True)
        dW, dr = dy.T @ c, xp.zeros_like(r)
        for t, gap in _gaps(W):
            weight = xp.reshape(own[:, t, None] * dV[:, None, :], (dV.shape[0], -1))
            dr = dr + weight @ xp.reshape(xp.abs(gap), (-1, W.shape[1]))
            seen = xp.sign(gap) * xp.reshape(weight.T @ r, gap.shape)
            dW = dW + xp.sum(seen, axis=0)
            dW[t, :] -= xp.sum(seen, axis=1)
        return dy @ W, dr, dW, xp.sum(dy, axis=0)

    return V, backward


def _gaps(W: Array) -> Iterator[tuple[slice, Any]]:
    """``W_k - W_t`` for some t at a time, (number of t, q, width)."""
    some = max(1, AT_ONCE // W.size)
    for i in range(0, W.shape[0], some):
        t = slice(i, min(i + some, W.shape[0]))
        yield t, W[None, :, :] - W[t, None, :]


def _thirds(x: Any) -> tuple[Any, Any, Any]:
    n = x.shape[-1] // 3
    return x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]


def _named(model: ImplicitModel, params: Params, grads: dict[str, Any]) -> Grads:
    """The gradients of the parameters, from those to the right and to the left."""
    xp, phi = namespace(grads["C"]), model.activation
    L: Any = params.get("L")  # A = L R^T
    R: Any = params.get("R")
    A = params["A"] if L is None else L @ R.T
    dA = _signed(A, grads.pop("A"), rising(A, phi))
    grads |= {"A": dA} if L is None else {"L": dA @ R, "R": dA.T @ L}
    grads["B"] = _signed(params["B"], grads["B"])
    for key in grads:
        mask = model.support(key)
        if mask is not None:
            inside = backend.astype(xp, backend.from_host(xp, mask), grads[key].dtype)
            grads[key] = grads[key] * inside
    return joined([("model", grads)])


def _signed(W: Array, sides: tuple[Any, Any], always: Any = None) -> Any:
    """The right side where W > 0 or `always`, the left where W < 0, else the median."""
    xp, (right, left) = namespace(W), sides
    least, most = xp.minimum(right, left), xp.maximum(right, left)
    middle = xp.maximum(least, xp.minimum(most, 0.0 * most))
    found = xp.where(W > 0, right, xp.where(W < 0, left, middle))
    return found if always is None else xp.where(always > 0, right, found)
