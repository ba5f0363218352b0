"""Componentwise activations ``x_i = phi(z_i)``, their derivatives, and what is known of their slopes.

Well-posedness needs one number: with slopes ``phi'`` in ``[lo, hi]``, phi is Lipschitz with ``L = max(|lo|, |hi|)``. The
fixed point ``x = phi(A x + z)`` then contracts in the largest-entry norm by ``L ||A||_inf``. At a kink, ``dphi`` returns
one element of the Clarke derivative.

A phi whose scalar equation ``x = phi(d x + r)`` has a closed-form solution carries it as ``scalar_solve(r, d)``: a
solver can then take the diagonal of A implicitly.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from pyidl import backend
from pyidl.backend import namespace
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.typing import Array

__all__ = [
    *("Activation", "Blocks", "named"),
    *("abs", "elu", "gelu", "hard_tanh", "identity", "leaky_relu", "relu", "sigmoid", "silu", "sin", "softplus", "softsign", "tanh"),
]


@dataclass(frozen=True, repr=False)
class Activation:
    """A componentwise map phi with its derivative.

    A custom activation is two functions of the model's arrays. Say what is known of its slopes, and the model can be
    certified; `pyidl.testing.check_activation` tests both the derivative and the claim.

    Parameters
    ----------
    name : str
        What messages and files call it.
    phi, dphi : callable
        ``z -> phi(z)`` and ``z -> phi'(z)``, elementwise, keeping library and dtype.
    lipschitz : float, optional
        Smallest known L with ``|phi(a) - phi(b)| <= L |a - b|``. Taken from `slope_range` where that is given.
    slope_range : (float, float), optional
        Bounds of ``phi'``; ``(-lipschitz, lipschitz)`` when only `lipschitz` is given.
    homogeneous : bool
        Whether ``phi(t z) = t phi(z)`` for all t >= 0.
    scalar_solve : callable, optional
        ``(r, d) -> x`` with ``x = phi(d x + r)`` for d < 1 (for |d| < 1 where slopes are negative).
    takes_out : bool
        Whether ``phi(z, out=...)`` writes into a given array, which does not overlap z.

    Examples
    --------
    >>> from pyidl import activations
    >>> cube = activations.Activation("bend", lambda z: z - z**3 / 3, lambda z: 1 - z**2, lipschitz=1.0)
    >>> cube.nonexpansive
    True
    """

    name: str
    phi: Callable[..., Any]
    dphi: Callable[[Any], Any]
    lipschitz: float | None = None
    slope_range: tuple[float, float] | None = None
    homogeneous: bool = False
    scalar_solve: Callable[[Any, Any], Any] | None = None
    takes_out: bool = False

    def __post_init__(self) -> None:
        if not (callable(self.phi) and callable(self.dphi)):
            raise InputError(f"activation {self.name!r}: phi and dphi must be functions of an array")
        lipschitz, slopes = self.lipschitz, self.slope_range
        if slopes is not None:
            if not (len(slopes) == 2 and math.isfinite(slopes[0]) and math.isfinite(slopes[1]) and slopes[0] <= slopes[1]):
                raise InputError(f"activation {self.name!r}: slope_range {slopes} must be two finite numbers, the smaller one first")
            lipschitz = max(-slopes[0], slopes[1]) if lipschitz is None else lipschitz
        elif lipschitz is not None:
            slopes = (-lipschitz, lipschitz)
        if lipschitz is None:
            warnings.warn(
                f"activation {self.name!r} has neither lipschitz nor slope_range, so no model with it can be certified; "
                "give one (pyidl.testing.check_activation measures it)",
                WellPosednessWarning,
                stacklevel=3,
            )
        elif not 0 < lipschitz < math.inf:
            raise InputError(f"activation {self.name!r}: lipschitz is {lipschitz}, it must be positive and finite")
        object.__setattr__(self, "lipschitz", lipschitz)
        object.__setattr__(self, "slope_range", slopes)

    def __call__(self, z: Any, out: Any = None) -> Any:
        """``phi(z)``, into `out` if given."""
        if out is None:
            return self.phi(z)
        if self.takes_out:
            return self.phi(z, out=out)
        out[...] = self.phi(z)
        return out

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a built-in activation is the built-in activation
        if named(self.name) is self:
            return named, (self.name,)
        return Activation, tuple(getattr(self, f.name) for f in fields(self))

    @property
    def nonexpansive(self) -> bool:
        """Whether ``|phi(a) - phi(b)| <= |a - b|`` is known."""
        return self.lipschitz is not None and self.lipschitz <= 1

    def row_lipschitz(self, n: int) -> list[float] | None:
        """Lipschitz constant of each of n components, or None if unknown."""
        return None if self.lipschitz is None else [self.lipschitz] * n


class _Block(NamedTuple):
    """The columns ``start:stop`` of the state, and their activation."""

    activation: Activation
    start: int
    stop: int


class Blocks(Activation):
    """Several activations side by side: the first ``n_1`` components, the next ``n_2``, and so on.

    Examples
    --------
    >>> from pyidl import activations
    >>> mixed = activations.Blocks((activations.relu, 2), (activations.tanh, 1))
    >>> mixed(np.array([[-1.0, 2.0, 0.0]]))
    array([[0., 2., 0.]])
    """

    blocks: tuple[_Block, ...]

    def __init__(self, *blocks: tuple[Activation, int]) -> None:
        if not blocks or not all(
            isinstance(b, tuple) and len(b) == 2 and isinstance(b[0], Activation) and isinstance(b[1], int) and b[1] > 0 for b in blocks
        ):
            raise InputError("Blocks takes pairs (activation, width), such as Blocks((relu, 64), (tanh, 32))")
        pieces, start = [], 0
        for activation, width in blocks:
            pieces.append(_Block(activation, start, start + width))
            start += width
        object.__setattr__(self, "blocks", tuple(pieces))
        slopes = [a.slope_range for a, _ in blocks if a.slope_range is not None]
        known = len(slopes) == len(blocks)
        super().__init__(
            name="Blocks(" + ", ".join(f"({a.name}, {width})" for a, width in blocks) + ")",
            phi=self._phi,
            dphi=self._dphi,
            slope_range=(min(lo for lo, _ in slopes), max(hi for _, hi in slopes)) if known else None,
            homogeneous=all(a.homogeneous for a, _ in blocks),
            takes_out=True,
        )

    @property
    def width(self) -> int:
        """The number of components that the blocks cover."""
        return self.blocks[-1].stop

    def _phi(self, z: Any, out: Any = None) -> Any:
        if out is None:
            return namespace(z).concat([b.activation(z[..., b.start : b.stop]) for b in self.blocks], axis=-1)
        for b in self.blocks:
            b.activation(z[..., b.start : b.stop], out=out[..., b.start : b.stop])
        return out

    def _dphi(self, z: Any) -> Any:
        return namespace(z).concat([b.activation.dphi(z[..., b.start : b.stop]) for b in self.blocks], axis=-1)

    def row_lipschitz(self, n: int) -> list[float] | None:
        """Lipschitz constant of each component: that of its own block."""
        rows: list[float] = []
        for b in self.blocks:
            if b.activation.lipschitz is None:
                return None
            rows += [b.activation.lipschitz] * (b.stop - b.start)
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, tuple((b.activation, b.stop - b.start) for b in self.blocks)


def _into(function: Callable[..., Any], *operands: Any, out: Any) -> Any:
    """Call an elementwise function of the namespace; ``out=`` is passed only where it is wanted."""
    return function(*operands) if out is None else function(*operands, out=out)


# In every pair below phi comes first and its derivative stands under it. Where `out` is given (it never overlaps z),
# phi works in it step by step and allocates nothing.


def _relu(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).maximum, z, 0.0, out=out)


def _drelu(z: Any) -> Any:
    return backend.astype(namespace(z), z > 0, z.dtype)


def _solve_relu(r: Array, d: Array) -> Any:
    return namespace(r).maximum(r, 0.0) / (1.0 - d)


def _leaky_relu(z: Any, out: Any = None, *, slope: float) -> Any:
    xp = namespace(z)  # slope < 1, so the larger of z and slope z is z on the right of 0 and slope z on the left
    s = _into(xp.multiply, z, slope, out=out)
    return _into(xp.maximum, s, z, out=out)


def _dleaky_relu(z: Any, *, slope: float) -> Any:
    positive = backend.astype(namespace(z), z > 0, z.dtype)
    return slope + (1.0 - slope) * positive


def _solve_leaky_relu(r: Any, d: Any, *, slope: float) -> Any:
    return namespace(r).where(r >= 0, r / (1.0 - d), slope * r / (1.0 - slope * d))


def _tanh(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).tanh, z, out=out)


def _dtanh(z: Any) -> Any:
    return 1.0 - namespace(z).tanh(z) ** 2


def _hard_tanh(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).clip, z, -1.0, 1.0, out=out)


def _dhard_tanh(z: Any) -> Any:
    xp = namespace(z)
    return backend.astype(xp, xp.abs(z) < 1, z.dtype)


def _solve_hard_tanh(r: Any, d: Any) -> Any:
    return namespace(r).clip(r / (1.0 - d), -1.0, 1.0)


def _softsign(z: Any, out: Any = None) -> Any:
    s = _into(namespace(z).abs, z, out=out)
    s += 1.0
    return _into(namespace(z).divide, z, s, out=out)


def _dsoftsign(z: Any) -> Any:
    return 1.0 / (1.0 + namespace(z).abs(z)) ** 2


def _sigmoid(z: Any, out: Any = None) -> Any:
    return backend.expit(namespace(z), z, out)


def _dsigmoid(z: Any) -> Any:
    s = _sigmoid(z)
    return s * (1.0 - s)


def _softplus(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).logaddexp, z, 0.0, out=out)  # log(e^z + e^0), with derivative e^z / (e^z + 1): the sigmoid


def _silu(z: Any, out: Any = None) -> Any:
    s = _sigmoid(z, out)
    s *= z
    return s


def _dsilu(z: Any) -> Any:
    s = _sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


def _gelu(z: Any, out: Any = None) -> Any:
    xp = namespace(z)  # z Phi(z), Phi the normal distribution function (1 + erf(z / sqrt 2)) / 2
    s = _into(xp.multiply, z, math.sqrt(0.5), out=out)
    s = backend.erf(xp, s, out)
    s += 1.0
    s *= 0.5
    s *= z
    return s


def _dgelu(z: Any) -> Any:
    xp = namespace(z)
    distribution = 0.5 * (1.0 + backend.erf(xp, z * math.sqrt(0.5)))
    density = xp.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return distribution + z * density


def _elu(z: Any, out: Any = None) -> Any:
    xp = namespace(z)  # expm1(min(z, 0)) is 0 on the right of 0, and lies above z on the left of it
    s = _into(xp.minimum, z, 0.0, out=out)
    s = _into(xp.expm1, s, out=out)
    return _into(xp.maximum, s, z, out=out)


def _delu(z: Any) -> Any:
    xp = namespace(z)
    return xp.exp(xp.minimum(z, 0.0))


def _identity(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).positive, z, out=out)


def _didentity(z: Any) -> Any:
    return namespace(z).ones_like(z)


def _solve_identity(r: Any, d: Any) -> Any:
    return r / (1.0 - d)


def _abs(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).abs, z, out=out)


def _dabs(z: Any) -> Any:
    return namespace(z).sign(z)


def _solve_abs(r: Any, d: Any) -> Any:
    return namespace(r).where(r >= 0, r / (1.0 - d), -r / (1.0 + d))


def _sin(z: Any, out: Any = None) -> Any:
    return _into(namespace(z).sin, z, out=out)


def _dsin(z: Any) -> Any:
    return namespace(z).cos(z)


# The slope of SiLU, s + z s (1 - s), is extremal where z tanh(z / 2) = 2, at z = +-2.3993572805; the slope of GELU,
# Phi(z) + z Phi'(z), where z = +-sqrt(2). Both bounds are rounded outwards.
_SILU_SLOPE = 1.0998393194
_GELU_SLOPE = 1.1289041452

relu = Activation("relu", _relu, _drelu, slope_range=(0.0, 1.0), homogeneous=True, scalar_solve=_solve_relu, takes_out=True)
tanh = Activation("tanh", _tanh, _dtanh, slope_range=(0.0, 1.0), takes_out=True)
hard_tanh = Activation("hard_tanh", _hard_tanh, _dhard_tanh, slope_range=(0.0, 1.0), scalar_solve=_solve_hard_tanh, takes_out=True)
softsign = Activation("softsign", _softsign, _dsoftsign, slope_range=(0.0, 1.0), takes_out=True)
sigmoid = Activation("sigmoid", _sigmoid, _dsigmoid, slope_range=(0.0, 0.25), takes_out=True)
softplus = Activation("softplus", _softplus, _sigmoid, slope_range=(0.0, 1.0), takes_out=True)
silu = Activation("silu", _silu, _dsilu, slope_range=(1.0 - _SILU_SLOPE, _SILU_SLOPE), takes_out=True)
gelu = Activation("gelu", _gelu, _dgelu, slope_range=(1.0 - _GELU_SLOPE, _GELU_SLOPE), takes_out=True)
elu = Activation("elu", _elu, _delu, slope_range=(0.0, 1.0), takes_out=True)
identity = Activation(
    "identity", _identity, _didentity, slope_range=(1.0, 1.0), homogeneous=True, scalar_solve=_solve_identity, takes_out=True
)
sin = Activation("sin", _sin, _dsin, slope_range=(-1.0, 1.0), takes_out=True)
abs = Activation("abs", _abs, _dabs, slope_range=(-1.0, 1.0), homogeneous=True, scalar_solve=_solve_abs, takes_out=True)


def leaky_relu(slope: float = 0.01) -> Activation:
    """``max(z, slope z)`` with 0 < slope < 1.

    Examples
    --------
    >>> from pyidl import activations
    >>> activations.leaky_relu(0.1)(np.array([-1.0, 2.0]))
    array([-0.1,  2. ])
    """
    if not 0 < slope < 1:
        raise InputError(f"the slope of leaky_relu is {slope}; it must lie between 0 and 1")
    return _leaky_relu_of(float(slope))


@functools.cache
def _leaky_relu_of(slope: float) -> Activation:
    return Activation(
        f"leaky_relu({slope!r})",
        functools.partial(_leaky_relu, slope=slope),
        functools.partial(_dleaky_relu, slope=slope),
        slope_range=(slope, 1.0),
        homogeneous=True,
        scalar_solve=functools.partial(_solve_leaky_relu, slope=slope),
        takes_out=True,
    )


_BUILT_IN = {a.name: a for a in (relu, tanh, hard_tanh, softsign, sigmoid, softplus, silu, gelu, elu, identity, sin, abs)}


def named(name: str) -> Activation | None:
    """Return the built-in activation of that name, as files hold it, or None for a name that is not built in."""
    if name.startswith("leaky_relu(") and name.endswith(")"):
        return leaky_relu(float(name[len("leaky_relu(") : -1]))
    return _BUILT_IN.get(name)
