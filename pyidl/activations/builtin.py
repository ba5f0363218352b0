"""The built-in activations, each with its derivative under it, and the way to others.

What an activation is, and what its fields mean, stands in `pyidl.activations.base`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyidl.activations import resolvents
from pyidl.activations.base import Activation
from pyidl.activations.blocks import named as _vector_named
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.arrays.fusion import fused
from pyidl.errors import InputError, expect, is_real

__all__ = [
    "abs",
    "elu",
    "gelu",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "named",
    "relu",
    "sigmoid",
    "silu",
    "sin",
    "softplus",
    "softsign",
    "tanh",
]


class _BuiltIn(Activation):
    """A copy of a built-in activation is the built-in activation."""

    def __reduce__(self) -> tuple[Any, ...]:
        return named, (self.name,)


def _into(function: Callable[..., Any], *operands: Any, out: Any) -> Any:
    """Call an elementwise function, with ``out=`` only where it is wanted."""
    return function(*operands) if out is None else function(*operands, out=out)


def _zero(z: Any) -> Any:
    """0, as a row where z is large.

    NumPy's maximum with a number takes twice as long as with a row (measured, 2.4).
    """
    large = z.size > 2**14 and z.ndim > 1 and z.shape[0] > 1
    return namespace(z).zeros_like(z[0, ...]) if large else 0.0


# In every pair below phi comes first and its derivative stands under it. Where `out` is
# given (it never overlaps z), phi works in it step by step and allocates nothing.


@fused
def _relu(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).maximum, z, _zero(z), out=out)


@fused
def _drelu(z: Any) -> Any:
    return backend.astype(namespace(z), z > 0, z.dtype)


def _leaky_relu(z: Any, out: Any = None, *, slope: float) -> Any:
    xp = namespace(z)
    # slope < 1, so the larger one is z on the right of 0 and slope z on the left
    s = _into(xp.multiply, z, slope, out=out)
    return _into(xp.maximum, s, z, out=out)


def _dleaky_relu(z: Any, *, slope: float) -> Any:
    positive = backend.astype(namespace(z), z > 0, z.dtype)
    return slope + (1.0 - slope) * positive


def _solve_leaky_relu(r: Any, d: Any, *, slope: float) -> Any:
    return namespace(r).where(r >= 0, r / (1.0 - d), slope * r / (1.0 - slope * d))


@fused
def _tanh(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).tanh, z, out=out)


@fused
def _dtanh(z: Any) -> Any:
    return 1.0 - namespace(z).tanh(z) ** 2


@fused
def _hard_tanh(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).clip, z, -1.0, 1.0, out=out)


@fused
def _dhard_tanh(z: Any) -> Any:
    xp = namespace(z)
    return backend.astype(xp, xp.abs(z) < 1, z.dtype)


@fused
def _softsign(z: Any, out: Any = None) -> Any:
    s = _into(namespace(z).abs, z, out=out)
    s += 1.0
    return _into(namespace(z).divide, z, s, out=out)


@fused
def _dsoftsign(z: Any) -> Any:
    s = 1.0 / (1.0 + namespace(z).abs(z))
    return s * s


@fused
def _sigmoid(z: Any, out: Any = None) -> Any:
    return backend.expit(namespace(z), z, out)


@fused
def _dsigmoid(z: Any) -> Any:
    s = _sigmoid(z)
    return s * (1.0 - s)


@fused
def _softplus(z: Any, out: Any = None) -> Any:
    # log(e^z + e^0), with derivative e^z / (e^z + 1): the sigmoid
    return _into(namespace(z).logaddexp, z, 0.0, out=out)


@fused
def _silu(z: Any, out: Any = None) -> Any:
    s = _sigmoid(z, out)
    s *= z
    return s


@fused
def _dsilu(z: Any) -> Any:
    s = _sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@fused
def _gelu(z: Any, out: Any = None) -> Any:
    xp = namespace(z)  # z Phi(z), Phi the normal distribution function (1 + erf(z / sqrt 2)) / 2
    s = _into(xp.multiply, z, math.sqrt(0.5), out=out)
    s = backend.erf(xp, s, out)
    s += 1.0
    s *= 0.5
    s *= z
    return s


@fused
def _dgelu(z: Any) -> Any:
    xp = namespace(z)
    distribution = 0.5 * (1.0 + backend.erf(xp, z * math.sqrt(0.5)))
    # 0 beyond 40, where no square overflows
    density = xp.exp(-0.5 * xp.clip(z, -40.0, 40.0) ** 2) / math.sqrt(2.0 * math.pi)
    return distribution + z * density


@fused
def _elu(z: Any, out: Any = None) -> Any:
    xp = namespace(z)  # expm1(min(z, 0)) is 0 on the right of 0, and lies above z on the left of it
    s = _into(xp.minimum, z, 0.0, out=out)
    s = _into(xp.expm1, s, out=out)
    return _into(xp.maximum, s, z, out=out)


@fused
def _delu(z: Any) -> Any:
    xp = namespace(z)
    return xp.exp(xp.minimum(z, 0.0))


@fused
def _identity(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).positive, z, out=out)


@fused
def _didentity(z: Any) -> Any:
    return namespace(z).ones_like(z)


@fused
def _abs(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).abs, z, out=out)


@fused
def _dabs(z: Any) -> Any:
    return namespace(z).sign(z)


@fused
def _solve_abs(r: Any, d: Any) -> Any:
    return namespace(r).where(r >= 0, r / (1.0 - d), -r / (1.0 + d))


@fused
def _sin(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).sin, z, out=out)


@fused
def _dsin(z: Any) -> Any:
    return namespace(z).cos(z)


# The slope of SiLU, s + z s (1 - s), is extremal where z tanh(z / 2) = 2, at z =
# +-2.3993572805; the slope of GELU, Phi(z) + z Phi'(z), where z = +-sqrt(2). Both
# bounds are rounded outwards.
_SILU_SLOPE = 1.0998393194
_GELU_SLOPE = 1.1289041452

# The largest |phi''|, rounded outwards, in the order of the table below.
#   tanh      4 / (3 sqrt 3) = 0.76980...   2 t (1 - t^2), t = tanh z, at t^2 = 1/3
#   softsign  2                             2 / (1 + |z|)^3 at 0, where phi' is
#                                           continuous: no kink
#   sigmoid   sqrt(3) / 18 = 0.096225...    s (1 - s) (1 - 2 s) at s = (1 - 1 / sqrt 3) / 2
#   softplus  1/4                           s (1 - s) at 0
#   silu      1/2                           s (1 - s) (2 - z tanh(z / 2)) at 0; it falls
#                                           to -0.033
#   gelu      sqrt(2 / pi) = 0.797884...    (2 - z^2) Phi'(z) at 0; it falls to -0.108 at
#                                           z = +-2
#   elu       1                             e^z on the left of 0, 0 on the right, where
#                                           phi' is continuous: no kink
#   sin       1                             |sin z|
_TANH_BEND, _SIGMOID_BEND, _GELU_BEND = 0.7698003590, 0.0962250449, 0.7978845609


def _against_zeros(like: np.ndarray) -> Callable[..., Any]:
    """NumPy's maximum with an array of zeros.

    A quarter of the time that it takes with the number (measured, 2.4).
    """
    return functools.partial(
        np.maximum, np.zeros(like.shape if like.size <= 2**16 else like.shape[1:], like.dtype)
    )


relu = _BuiltIn(
    "relu",
    _relu,
    _drelu,
    slope_range=(0.0, 1.0),
    homogeneous=True,
    divides=True,
    takes_out=True,
    resolvent=resolvents.relu,
    curvature=0.0,
    kinks=(0.0,),
    ready=_against_zeros,
)
tanh = _BuiltIn(
    "tanh",
    _tanh,
    _dtanh,
    slope_range=(0.0, 1.0),
    takes_out=True,
    resolvent=resolvents.tanh,
    curvature=_TANH_BEND,
    ready=lambda like: np.tanh,
)
hard_tanh = _BuiltIn(
    "hard_tanh",
    _hard_tanh,
    _dhard_tanh,
    slope_range=(0.0, 1.0),
    divides=True,
    takes_out=True,
    resolvent=resolvents.hard_tanh,
    curvature=0.0,
    kinks=(-1.0, 1.0),
)
softsign = _BuiltIn(
    "softsign", _softsign, _dsoftsign, slope_range=(0.0, 1.0), takes_out=True, curvature=2.0
)
sigmoid = _BuiltIn(
    "sigmoid",
    _sigmoid,
    _dsigmoid,
    slope_range=(0.0, 0.25),
    takes_out=True,
    resolvent=resolvents.sigmoid,
    curvature=_SIGMOID_BEND,
)
softplus = _BuiltIn(
    "softplus",
    _softplus,
    _sigmoid,
    slope_range=(0.0, 1.0),
    takes_out=True,
    curvature=0.25,
)
silu = _BuiltIn(
    "silu",
    _silu,
    _dsilu,
    slope_range=(1.0 - _SILU_SLOPE, _SILU_SLOPE),
    takes_out=True,
    curvature=0.5,
)
gelu = _BuiltIn(
    "gelu",
    _gelu,
    _dgelu,
    slope_range=(1.0 - _GELU_SLOPE, _GELU_SLOPE),
    takes_out=True,
    curvature=_GELU_BEND,
)
elu = _BuiltIn("elu", _elu, _delu, slope_range=(0.0, 1.0), takes_out=True, curvature=1.0)
identity = _BuiltIn(
    "identity",
    _identity,
    _didentity,
    slope_range=(1.0, 1.0),
    homogeneous=True,
    divides=True,
    takes_out=True,
    resolvent=resolvents.identity,
    curvature=0.0,
)
sin = _BuiltIn("sin", _sin, _dsin, slope_range=(-1.0, 1.0), takes_out=True, curvature=1.0)
abs = _BuiltIn(
    "abs",
    _abs,
    _dabs,
    slope_range=(-1.0, 1.0),
    homogeneous=True,
    scalar_solve=_solve_abs,
    takes_out=True,
    curvature=0.0,
    kinks=(0.0,),
)


def leaky_relu(slope: float = 0.01) -> Activation:
    """``max(z, slope z)`` with 0 < slope < 1.

    Parameters
    ----------
    slope : float
        On the left of 0.

    Raises
    ------
    InputError
        If the slope does not lie between 0 and 1.

    Examples
    --------
    >>> from pyidl import activations
    >>> activations.leaky_relu(0.1)(np.array([-1.0, 2.0]))
    array([-0.1,  2. ])
    """
    if not (is_real(slope) and 0 < slope < 1):
        raise InputError(f"the slope of leaky_relu is {slope!r}; it must lie between 0 and 1")
    return _leaky_relu_of(float(slope))


@functools.cache
def _leaky_relu_of(slope: float) -> Activation:
    return _BuiltIn(
        f"leaky_relu({slope!r})",
        fused(functools.partial(_leaky_relu, slope=slope)),
        fused(functools.partial(_dleaky_relu, slope=slope)),
        slope_range=(slope, 1.0),
        homogeneous=True,
        scalar_solve=fused(functools.partial(_solve_leaky_relu, slope=slope)),
        takes_out=True,
        resolvent=fused(functools.partial(resolvents.leaky_relu, slope=slope)),
        curvature=0.0,
        kinks=(0.0,),
    )


BUILT_IN = {
    a.name: a
    for a in (
        relu,
        tanh,
        hard_tanh,
        softsign,
        sigmoid,
        softplus,
        silu,
        gelu,
        elu,
        identity,
        sin,
        abs,
    )
}


def named(name: str) -> Activation | None:
    """The built-in activation of that name, as files hold it.

    Parameters
    ----------
    name : str
        Such as ``"relu"`` or ``"leaky_relu(0.1)"``.

    Returns
    -------
    Activation or None
        None for a name that is not built in.

    Examples
    --------
    >>> named("tanh"), named("leaky_relu(0.1)"), named("mine")
    (tanh, leaky_relu(0.1), None)
    """
    expect("name", name, str, "give the name of an activation, such as 'relu'")
    if name.startswith("leaky_relu(") and name.endswith(")"):
        return leaky_relu(float(name[len("leaky_relu(") : -1]))
    return BUILT_IN.get(name) or _vector_named(name)
