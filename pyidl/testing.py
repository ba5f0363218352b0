r"""Checks for hand-derived derivatives, for pyidl's own layers and for yours.

A pullback computes ``g = J^T G`` for a cotangent G of the output. For any direction d
of an input or a parameter theta,

    <g, d> = <G, J d> = d/dt <G, Y(theta + t d)>  at t = 0,

and the right-hand side can be measured by the central difference ``(s(h) - s(-h)) /
2h`` of ``s(t) = <G, Y(theta + t d)>``. A kink of the activation between the two points
spoils the difference, not the gradient; it shows in that the difference changes with h,
and then another direction is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation, Blocks
from pyidl.arrays import backend
from pyidl.arrays.backend import from_host, namespace, to_numpy
from pyidl.arrays.fusion import fused
from pyidl.errors import GradientMismatchError, InputError, expect
from pyidl.layers.base import Layer
from pyidl.optim.schedules import check_positive
from pyidl.typing import Array, Rng

__all__ = ["ActivationReport", "GradientReport", "check_activation", "check_pullback"]

SOLVE_TOL = 1e-14
"""Of the solves inside a check: a few units in the last place of float64."""

STEPS, ATTEMPTS = (1e-5, 1e-6, 1e-7), 8
"""Steps h of a central difference, and directions that are tried, until one settles."""

TOGETHER = 7
"""So many components are tried of a phi that acts on all of them."""


@dataclass(frozen=True)
class GradientReport:
    """What `check_pullback` measured.

    Attributes
    ----------
    errors : dict of str to float
        Relative error of the derivative along one random direction, for "U" and every
        parameter.
    """

    errors: Mapping[str, float]

    @property
    def max_error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())

    @property
    def worst(self) -> str:
        """The name under which the largest error stands."""
        return max(self.errors, key=lambda name: self.errors[name])


def check_pullback(
    layer: Layer, U: Array | tuple[Any, ...], *, rng: Rng = 0, rtol: float = 1e-6
) -> GradientReport:
    """Compare a layer's pullback with central differences.

    That is done on a float64 copy whose solves run to rounding. Also checked: `grads`
    has the keys, shapes and dtypes of `params`, the pullback answers the same when it
    is called twice, and ``inputs=False`` gives no input gradient and the same others.

    Parameters
    ----------
    layer : Layer
        Any layer or model; it is not changed.
    U : array, shape (m, input_dim), or tokens for an `Embedding`
        Where to check. A handful of samples is enough. For a layer of several inputs a
        tuple of them, such as ``(U, lengths)``; the first is differentiated.
    rng : Generator, int or None
        Draws the cotangent and the directions, and is handed to the layer as a seed.
    rtol : float
        Largest relative error.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientMismatchError
        If an error exceeds rtol; the message names the worst parameter and both
        numbers.
    InputError
        If finite differences make no sense here: a kink at the very point, or a layer
        that is not a smooth function.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> from pyidl.testing import check_pullback
    >>> check_pullback(ImplicitModel(3, 2, 5, rng=0), np.ones((4, 3))).max_error < 1e-6
    True
    """
    expect(
        "layer",
        layer,
        Layer,
        "check_pullback takes a Layer; for an activation there is check_activation",
    )
    check_positive("rtol", rtol)
    generator = backend.as_generator(rng)
    seed = int(generator.integers(2**31))
    exact = layer.astype("float64").with_tol(SOLVE_TOL)
    given, *others = U if isinstance(U, tuple) else (U,)
    start = exact._admit(backend.read_array(given, "U"))
    xp = namespace(start)
    if not xp.isdtype(start.dtype, "integral"):  # tokens stay what they are
        start = backend.as_real(start, name="U", xp=xp, dtype="float64")
    Y, pull = exact(start, *others, rng=seed)
    G = from_host(xp, generator.normal(size=Y.shape))
    dU, grads = pull(G)
    dU = dU[0] if isinstance(dU, tuple) else dU  # of lengths or labels there is none
    _check_contract(exact, pull, G, grads)

    def output(name: str, value: Any) -> float:
        if name == "U":
            return _dot(G, exact(value, *others, rng=seed)[0])
        moved = exact.replace()
        moved.params = {**exact.params, name: value}
        return _dot(G, moved(start, *others, rng=seed)[0])

    found = {} if dU is None else {"U": _compare("U", start, dU, None, output, generator, rtol)}
    for key, g in grads.items():
        support = exact.support(key)
        if support is None or support.any():
            point = exact.params[key]
            found[key] = _compare(key, point, g, support, output, generator, rtol)
    report = GradientReport({name: error for name, (error, _) in found.items()})
    measured, derived = found[report.worst][1]
    _require(
        report.max_error <= rtol,
        f"the gradient of {type(layer).__name__} with respect to {report.worst} is wrong: "
        f"along a random direction the pullback says {derived:.10g}, central differences "
        f"{measured:.10g}, a relative error of {report.max_error:.3g} where {rtol:.3g} "
        "is allowed; compare the derivative with the line above it",
    )
    return report


def _compare(
    name: str,
    point: Array,
    gradient: Array,
    support: np.ndarray | None,
    output: Callable[[str, Any], float],
    generator: np.random.Generator,
    rtol: float,
) -> tuple[float, tuple[float, float]]:
    """The relative error along one random direction, and the two numbers behind it."""
    xp, change = namespace(point), 0.0
    # that of <g, d> over directions of this length
    typical = float(np.linalg.norm(to_numpy(gradient).ravel()))
    for _ in range(ATTEMPTS):
        d = generator.normal(size=point.shape) * (1.0 if support is None else support)
        direction = from_host(xp, d / np.sqrt(np.mean(d**2)))
        derived = _dot(gradient, direction)

        def s(t: float, direction: Any = direction) -> float:
            return output(name, point + t * direction)

        middle = s(0.0)
        for h in STEPS:
            wide, narrow = (s(h), s(-h)), (s(h / 2), s(-h / 2))
            measured, coarse = (narrow[0] - narrow[1]) / h, (wide[0] - wide[1]) / (2 * h)
            scale = max(abs(derived), abs(measured), typical, np.finfo(np.float64).tiny)
            # right slope minus left slope: of a smooth s, proportional to h
            bend = abs(sum(narrow) - 2 * middle) / (h / 2)
            wide_bend = abs(sum(wide) - 2 * middle) / h
            settled = abs(measured - coarse) <= 0.1 * rtol * scale
            if settled and bend <= max(rtol * scale, 0.75 * wide_bend):
                return abs(measured - derived) / scale, (measured, derived)
            change = abs(measured - coarse) / scale
    raise InputError(
        f"central differences with respect to {name} do not settle: halving the step changes them "
        f"by {change:.3g}, relatively. The point lies on a kink (perturb U or the parameters), or "
        "the layer is not a function of its input (does it draw random numbers?)"
    )


def _require(holds: Any, otherwise: str) -> None:
    """What a check asserts, and what it says where that does not hold."""
    if not holds:
        raise GradientMismatchError(otherwise)


def _check_contract(layer: Layer, pull: Any, G: Array, grads: Mapping[str, Array]) -> None:
    """The promises of a pullback that need no differences."""
    name = type(layer).__name__
    _require(
        set(grads) == set(layer.params),
        f"the pullback of {name} returns gradients of {sorted(grads)}, "
        f"its parameters are {sorted(layer.params)}",
    )
    for key, p in layer.params.items():
        _require(
            grads[key].shape == p.shape and grads[key].dtype == p.dtype,
            f"the gradient of {name} with respect to {key} has {grads[key].shape}, "
            f"{grads[key].dtype}; {key} has {p.shape}, {p.dtype}",
        )
    again, skipped = pull(G), pull(G, inputs=False)
    _require(
        skipped[0] is None,
        f"the pullback of {name} returns an input gradient although inputs=False",
    )
    for key, g in grads.items():
        _require(
            all(np.array_equal(to_numpy(g), to_numpy(x[1][key])) for x in (again, skipped)),
            f"the pullback of {name}, called again with the same cotangent, "
            f"returns another gradient of {key}",
        )


def _dot(a: Array, b: Array) -> float:
    return float(np.vdot(to_numpy(a), to_numpy(b)))


@dataclass(frozen=True)
class ActivationReport:
    """What `check_activation` measured.

    Attributes
    ----------
    max_error : float
        Largest difference between dphi and a central difference, away from kinks,
        relative to ``1 + |phi'|``.
    slope_range : (float, float)
        Smallest and largest slope that was met: a lower estimate of the true range.

    Notes
    -----
    Where phi acts on several components together, these are the same of vjp and of the
    singular values of the Jacobian.
    """

    max_error: float
    slope_range: tuple[float, float]


def check_activation(
    activation: Activation, *, span: float = 20.0, rng: Rng = 0, rtol: float = 1e-6
) -> ActivationReport:
    """Compare dphi, or vjp, with central differences, and test every claim.

    A phi that acts on all components together is tried on seven of them, `Blocks` on
    its own.

    Parameters
    ----------
    activation : Activation
        Built in or your own.
    span : float
        Points are drawn from (-span, span), and more densely around 0.
    rng : Generator, int or None
        Draws them.
    rtol : float
        Largest error of dphi, relative to ``1 + |phi'|``.

    Returns
    -------
    ActivationReport

    Raises
    ------
    GradientMismatchError
        If dphi or vjp is wrong, or a slope lies outside `slope_range`, or a Jacobian
        has a norm above `lipschitz`, or phi is not homogeneous though it claims so, or
        `scalar_solve` or `resolvent` does not solve its equation, or phi' changes
        faster than `curvature` says where `kinks` has no jump, or shape or dtype is not
        kept.
    InputError
        If phi or dphi is `fused`, but cannot be one kernel.

    Examples
    --------
    >>> from pyidl import activations
    >>> check_activation(activations.silu).max_error < 1e-6
    True
    """
    expect(
        "activation",
        activation,
        Activation,
        "use one of pyidl.activations, or Activation(name, phi, dphi)",
    )
    check_positive("span", span)
    check_positive("rtol", rtol)
    generator, width = backend.as_generator(rng), getattr(activation, "width", None)
    if activation.vector_blocks(width or TOGETHER):
        return _check_vector(activation, width or TOGETHER, span, generator, rtol)
    z = np.concatenate([generator.uniform(-span, span, 20000), generator.normal(size=20000)])
    width = width or 1
    z = z[: z.size // width * width].reshape(-1, width)
    _check_kept(activation.name, {"phi": activation.phi, "dphi": activation.dphi}, z)
    report = _check_slopes(activation, z, rtol)
    _check_homogeneous(activation, z, 1e-12)
    _check_equations(activation, z, generator)
    blocks = activation.blocks if isinstance(activation, Blocks) else ()
    for part in [b.activation for b in blocks] or [activation]:
        _check_curvature(part, span, generator)
        for function in (part.phi, part.dphi):
            if isinstance(function, fused):
                function.text("T")
    return report


def _check_kept(
    name: str, functions: Mapping[str, Callable[..., Any]], z: np.ndarray, *others: np.ndarray
) -> None:
    """Shape and dtype of z are those of what the functions return."""
    for dtype in ("float32", "float64"):
        for label, function in functions.items():
            y = function(*(a.astype(dtype) for a in (z, *others)))
            _require(
                y.shape == z.shape and y.dtype == dtype,
                f"{label} of {name!r} turns {z.shape}, {dtype}, into {y.shape}, {y.dtype}; "
                "it must keep both",
            )


def _one_sided(activation: Activation, z: np.ndarray, d: Any, h: Any) -> tuple[Any, Any]:
    """The difference quotients of phi along d, to the right and to the left."""
    middle = activation.phi(z)
    return (activation.phi(z + h * d) - middle) / h, (middle - activation.phi(z - h * d)) / h


def _check_smooth(name: str, smooth: np.ndarray, share: float) -> None:
    """At most points there is no kink."""
    _require(
        smooth.mean() >= share,
        f"phi of {name!r} has a kink at {1 - smooth.mean():.1%} of random points; "
        "it is not piecewise smooth",
    )


def _check_slopes(activation: Activation, z: np.ndarray, rtol: float) -> ActivationReport:
    """``dphi`` is what central differences say, and lies in the claimed range."""
    name = activation.name
    right, left = _one_sided(activation, z, 1.0, 1e-6 * np.maximum(1.0, np.abs(z) / 10))
    smooth = np.abs(right - left) <= 1e-3 * (1.0 + np.abs(right))
    _check_smooth(name, smooth, 0.99)
    slope, derived = 0.5 * (right + left), activation.dphi(z)
    error = np.where(smooth, np.abs(slope - derived) / (1.0 + np.abs(slope)), 0.0)
    report = ActivationReport(
        float(error.max()), (float(slope[smooth].min()), float(slope[smooth].max()))
    )
    i = np.unravel_index(int(error.argmax()), error.shape)
    _require(
        report.max_error <= rtol,
        f"dphi of {name!r} is wrong at z = {z[i]:.6g}: it says {derived[i]:.8g}, "
        f"central differences {slope[i]:.8g}",
    )
    if activation.slope_range is not None:
        low, high = activation.slope_range
        _require(
            low - 1e-6 <= report.slope_range[0] and report.slope_range[1] <= high + 1e-6,
            f"{name!r} claims slopes in [{low:.6g}, {high:.6g}], "
            f"but has slopes in {report.slope_range}",
        )
    return report


def _check_homogeneous(activation: Activation, z: np.ndarray, rtol: float) -> None:
    """``phi(3 z) = 3 phi(z)``, if that is claimed."""
    if activation.homogeneous:
        _require(
            np.allclose(activation.phi(3.0 * z), 3.0 * activation.phi(z), rtol=rtol, atol=0.0),
            f"{activation.name!r} claims phi(t z) = t phi(z), but phi(3 z) differs from 3 phi(z)",
        )


def _check_equations(activation: Activation, z: np.ndarray, generator: np.random.Generator) -> None:
    """What `scalar_solve` and `resolvent` return solves their equations."""
    name, phi = activation.name, activation.phi
    if activation.scalar_solve is not None:
        d = generator.uniform(-0.9, 0.9, z.shape)
        x = activation.scalar_solve(z, d)
        _require(
            np.allclose(phi(d * x + z), x, rtol=1e-10, atol=1e-10),
            f"scalar_solve of {name!r} does not solve x = phi(d x + r)",
        )
    if activation.resolvent is not None:
        for alpha in (0.05, 0.5, 4.0):
            y = activation.resolvent(z, alpha)
            _require(
                np.allclose((1.0 - alpha) * phi(y) + alpha * y, z, rtol=1e-10, atol=1e-10),
                f"resolvent of {name!r} does not solve (1 - alpha) phi(y) + alpha y = u "
                f"for alpha = {alpha}",
            )


def _check_vector(
    activation: Activation, n: int, span: float, generator: np.random.Generator, rtol: float
) -> ActivationReport:
    """The checks for a phi that acts on several of n components together."""
    name, m = activation.name, 2000
    z = generator.normal(size=(m, n)) * 10.0 ** generator.uniform(-4, np.log10(span), (m, 1))
    w, d = generator.normal(size=(2, m, n))
    _check_kept(name, {"phi": lambda z, w: activation(z), "vjp": activation.vjp}, z, w)
    right, left = _one_sided(activation, z, d, 1e-6)
    smooth = np.abs(right - left).max(axis=1) <= 1e-3 * (1.0 + np.abs(right).max(axis=1))
    _check_smooth(name, smooth, 0.9)
    derived = np.sum(activation.vjp(z, w) * d, axis=1)
    measured = 0.5 * np.sum(w * (right + left), axis=1)
    error = np.where(smooth, np.abs(measured - derived) / (1.0 + np.abs(measured)), 0.0)
    J = np.stack([activation.vjp(z, np.broadcast_to(e, z.shape)) for e in np.eye(n)], axis=1)
    _require(  # an SVD of LAPACK's need not return from such a matrix
        np.all(np.isfinite(J)),
        f"vjp of {name!r} has {np.sum(~np.isfinite(J))} entries that are NaN or infinite "
        "at random points",
    )
    singular = np.linalg.svd(J, compute_uv=False)
    report = ActivationReport(float(error.max()), (float(singular.min()), float(singular.max())))
    i = int(error.argmax())
    _require(
        report.max_error <= rtol,
        f"vjp of {name!r} is wrong: along a random direction it says {derived[i]:.8g}, "
        f"central differences {measured[i]:.8g}",
    )
    _check_norms(activation, J)
    _check_homogeneous(activation, z, 1e-10)
    return report


def _check_norms(activation: Activation, J: np.ndarray) -> None:
    """No Jacobian, of a block or of a component alone, is larger than is claimed."""
    n = J.shape[1]
    claims, together = activation.row_lipschitz(n), activation.vector_blocks(n)
    if claims is None:
        return
    alone = [(i, i + 1) for i in range(n) if not any(start <= i < stop for start, stop in together)]
    for start, stop in (*together, *alone):
        norm = float(np.linalg.norm(J[:, start:stop, start:stop], 2, axis=(1, 2)).max())
        _require(
            norm <= claims[start] * (1.0 + 1e-6),
            f"{activation.name!r} claims to be {claims[start]:.6g}-Lipschitz on the components "
            f"{start} to {stop - 1}, but has a Jacobian of norm {norm:.6g} there",
        )


def _check_curvature(activation: Activation, span: float, generator: np.random.Generator) -> None:
    """``|phi'(a) - phi'(b)| <= c |a - b|`` for neighbours that no kink separates.

    Neighbours among many points suffice: where it holds for them, it holds for all, by
    the triangle inequality. A jump that is not among the kinks stands out because
    neighbours are close.
    """
    if activation.curvature is None:
        return
    near = [
        kink + generator.normal(size=2000) * 10.0 ** generator.uniform(-6, 0, 2000)
        for kink in (0.0, *activation.kinks)
    ]
    even = np.linspace(-span, span, 200_001)
    z = np.unique(np.concatenate([even, generator.uniform(-span, span, 20_000), *near]))
    slope = activation.dphi(z)
    apart = np.zeros(len(z) - 1, bool)
    for kink in activation.kinks:
        apart |= (z[:-1] <= kink) & (kink <= z[1:])
    change, gap = np.abs(np.diff(slope)), np.diff(z)
    rounding = 64 * np.finfo(np.float64).eps * (1.0 + np.abs(slope[1:]))
    excess = np.where(apart, 0.0, change - activation.curvature * gap - rounding)
    i = int(excess.argmax())
    _require(
        not excess[i] > 0,
        f"{activation.name!r} claims a curvature of {activation.curvature:.6g} away from the "
        f"kinks {activation.kinks}, but between {z[i]:.8g} and {z[i + 1]:.8g} its slope "
        f"changes from {slope[i]:.8g} to {slope[i + 1]:.8g}, {change[i] / gap[i]:.6g} per unit",
    )
