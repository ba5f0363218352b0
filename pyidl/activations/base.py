"""What a componentwise activation ``x_i = phi(z_i)`` is, and several side by side.

Well-posedness needs one number: with slopes ``phi'`` in ``[lo, hi]``, phi is Lipschitz
with ``L = max(|lo|, |hi|)``. The fixed point ``x = phi(A x + z)`` then contracts in the
largest-entry norm by ``L ||A||_inf``. At a kink, ``dphi`` returns one element of the
Clarke derivative.

A phi whose scalar equation ``x = phi(d x + r)`` has a closed-form solution carries it
as ``scalar_solve(r, d)``: a solver can then take the diagonal of A implicitly.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, WellPosednessWarning, expect, expect_flags, is_real, is_whole

__all__ = ["Activation", "Blocks", "joint", "pieces"]


@dataclass(frozen=True, repr=False)
class Activation:
    """A componentwise map phi with its derivative.

    A custom activation is two functions of the model's arrays. Say what is known of its
    slopes, and the model can be certified; `pyidl.testing.check_activation` tests both
    the derivative and the claim.

    Parameters
    ----------
    name : str
        What messages and files call it.
    phi, dphi : callable
        ``z -> phi(z)`` and ``z -> phi'(z)``, elementwise, keeping library and dtype.
        Under `pyidl.fused` they are one kernel each on a GPU, and all that a solve does
        between two products is one.
    lipschitz : float, optional
        Smallest known L with ``|phi(a) - phi(b)| <= L |a - b|``. Taken from
        `slope_range` where that is given; another number beside it is refused.
    slope_range : (float, float), optional
        Bounds of ``phi'``; ``(-lipschitz, lipschitz)`` when only `lipschitz` is given.
    homogeneous : bool
        Whether ``phi(t z) = t phi(z)`` for all t >= 0.
    scalar_solve : callable, optional
        ``(r, d) -> x`` with ``x = phi(d x + r)`` for d < 1 (for ``|d| < 1`` where
        slopes are negative).
    divides : bool
        Whether that solution is ``phi(r / (1 - d))``; `scalar_solve` may then be left
        out.
    takes_out : bool
        Whether ``phi(z, out=...)`` writes into a given array, which does not overlap z.
    resolvent : callable, optional
        ``(u, alpha) -> y`` with ``(1 - alpha) phi(y) + alpha y = u``, for slopes in [0,
        1] and alpha > 0: then ``phi(y)`` is the proximal map of ``alpha f`` at u, where
        phi is that of f. Operator splittings with a step other than 1 need it.
    curvature : float, optional
        A number c with ``|phi'(a) - phi'(b)| <= c |a - b|`` where no kink lies between
        a and b; 0 for a piecewise linear phi. It lets `pyidl.certify_solution` use the
        slopes near a point; without it, it uses `slope_range` for all of them.
    kinks : tuple of float
        Where phi' jumps. A kink where it is continuous, as that of softsign at 0, is
        none.
    ready : callable, optional
        ``ready(like)`` returns phi for NumPy arrays of that shape, called as ``phi(z,
        out=x)``: a ufunc, and what it needs.

    Raises
    ------
    InputError
        If a function is none, a number is not finite or out of range, or two of the
        declarations contradict each other: a certificate would rest on both.

    Warns
    -----
    WellPosednessWarning
        If nothing is known of the slopes.

    Examples
    --------
    >>> from pyidl import activations
    >>> bend = activations.Activation(
    ...     "bend",
    ...     phi=lambda z: z / (1 + z * z) ** 0.5,
    ...     dphi=lambda z: (1 + z * z) ** -1.5,
    ...     slope_range=(0.0, 1.0),
    ... )
    >>> bend.nonexpansive, bend(np.array([0.0, 0.75]))
    (True, array([0. , 0.6]))
    >>> pyidl.testing.check_activation(bend).max_error < 1e-6
    True
    """

    name: str
    phi: Callable[..., Any]
    dphi: Callable[[Any], Any]
    lipschitz: float | None = None
    slope_range: tuple[float, float] | None = None
    homogeneous: bool = False
    scalar_solve: Callable[[Any, Any], Any] | None = None
    divides: bool = False
    takes_out: bool = False
    resolvent: Callable[[Any, float], Any] | None = None
    curvature: float | None = None
    kinks: tuple[float, ...] = ()
    ready: Callable[[np.ndarray], Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        expect("name", self.name, str, "it is what messages and files call the activation")
        expect_flags(self, "homogeneous", "divides", "takes_out")

        def demand(holds: bool, what: str) -> None:
            if not holds:
                raise InputError(f"activation {self.name!r}: {what}")

        demand(
            callable(self.phi) and callable(self.dphi),
            "phi and dphi must be functions of an array",
        )
        for name, takes in (
            ("scalar_solve", "two arguments"),
            ("resolvent", "two arguments"),
            ("ready", "an array"),
        ):
            wanted = f"it must be a function of {takes}, or None"
            kind = (Callable, NoneType)
            expect(f"{name} of {self.name!r}", getattr(self, name), kind, wanted)
        L, slopes, c = self.lipschitz, self.slope_range, self.curvature
        demand(
            L is None or (is_real(L) and 0 < L < math.inf),
            f"lipschitz is {L!r}, it must be positive and finite",
        )
        demand(
            slopes is None
            or (_finite(slopes) and len(slopes) == 2 and slopes[0] <= slopes[1] and any(slopes)),
            f"slope_range {slopes} must be two finite numbers, the smaller one first, not both 0",
        )
        demand(
            c is None or (is_real(c) and 0 <= c < math.inf),
            f"curvature is {c!r}; it must be a finite number, at least 0, or None",
        )
        demand(
            _finite(self.kinks),
            f"kinks are {self.kinks!r}; they must be finite numbers, in a tuple",
        )
        # In float64, in which certificates reckon: a float32 would round their products.
        L = None if L is None else float(L)
        slopes = (-L, L) if slopes is None and L is not None else slopes
        slopes = None if slopes is None else (float(slopes[0]), float(slopes[1]))
        if slopes is None:
            warnings.warn(
                f"activation {self.name!r} has neither lipschitz nor slope_range, so no model with "
                "it can be certified; give one (pyidl.testing.check_activation measures it)",
                WellPosednessWarning,
                stacklevel=3,
            )
        elif L is None:
            L = _steepest(slopes)
        object.__setattr__(self, "lipschitz", L)
        object.__setattr__(self, "slope_range", slopes)
        object.__setattr__(self, "kinks", tuple(sorted(float(kink) for kink in self.kinks)))
        for holds, what in self._agreements():
            demand(holds, what)
        if self.divides and self.scalar_solve is None:
            object.__setattr__(self, "scalar_solve", functools.partial(_divide, self.phi))

    def _agreements(self) -> Iterator[tuple[bool, str]]:
        """What the declarations say of each other, and what is wrong where they do not.

        A homogeneous phi has one slope on either side of 0. One that *divides* is the
        nearest point of an interval: ``x = phi(r / (1 - d))`` for all d < 1 means that
        all points behind y, seen from phi(y), have the image phi(y).
        """
        L, slopes, kinks = self.lipschitz, self.slope_range, self.kinks
        given = f"slope_range is {slopes}"
        yield (
            not self.homogeneous or not any(kinks),
            f"kinks are {kinks}, but a homogeneous phi is a line on either side of 0; leave out "
            "all but 0, or homogeneous",
        )
        if slopes is None:
            return
        steepest = _steepest(slopes)
        yield (
            steepest == L,
            f"lipschitz is {L} and {given}, so that the slopes reach {steepest}; leave out "
            "lipschitz, or correct one of the two",
        )
        bent = self.curvature is None or not (
            self.curvature == 0 or self.homogeneous or self.divides
        )
        yield (
            bent or bool(kinks) or slopes[0] == slopes[1],
            f"{given}, but a phi of straight pieces without kinks has one slope; name its kinks, "
            "or leave out curvature",
        )
        yield (
            not self.divides or (slopes[1] == 1 and (slopes[0] <= 0 or slopes[0] == 1)),
            f"{given}, but a phi that divides is the nearest point of an interval, with the slopes "
            "0 and 1; leave out divides, and give scalar_solve if there is one",
        )
        yield (
            self.resolvent is None or (slopes[0] >= 0 and slopes[1] <= 1),
            f"{given}, but phi is a proximal map, and has a resolvent, only where its slopes lie "
            "in [0, 1]; leave out resolvent, or correct slope_range",
        )

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

    def __reduce__(self) -> tuple[Any, ...]:
        return Activation, tuple(getattr(self, f.name) for f in fields(self))

    def vjp(self, z: Any, w: Any) -> Any:
        """``J(z)^T w``, with J the Jacobian of phi.

        ``phi'(z) * w`` where phi is componentwise.
        """
        return self.dphi(z) * w

    @property
    def nonexpansive(self) -> bool:
        """Whether ``|phi(a) - phi(b)| <= |a - b|`` is known."""
        return self.lipschitz is not None and self.lipschitz <= 1

    def columns(self, members: slice | np.ndarray) -> Activation:
        """The activation of some of the components: here the same for all of them."""
        return self

    def vector_blocks(self, n: int) -> tuple[tuple[int, int], ...]:
        """``(start, stop)`` of the blocks of components on which phi acts as a whole.

        There are none for a componentwise phi.
        """
        return ()

    def row_lipschitz(self, n: int) -> list[float] | None:
        """Lipschitz constant of each of n components, or None if unknown."""
        return None if self.lipschitz is None else [self.lipschitz] * n


def _steepest(slopes: tuple[float, float]) -> float:
    return max(-slopes[0], slopes[1])


def _finite(several: Any) -> bool:
    """Whether it is a tuple or list of finite numbers."""
    return isinstance(several, (tuple, list)) and all(
        is_real(number) and math.isfinite(number) for number in several
    )


def _side_by_side(z: Any, parts: Iterable[Any]) -> Any:
    return namespace(z).concat(list(parts), axis=-1)


def _divide(phi: Callable[..., Any], r: Any, d: Any) -> Any:
    return phi(r / (1.0 - d))


class _Block(NamedTuple):
    """An activation, and the columns ``start:stop`` of the state on which it acts."""

    activation: Activation
    start: int
    stop: int

    def of(self, z: Any) -> Any:
        """These columns, the last axis of z; a view."""
        return z[..., self.start : self.stop]


class Blocks(Activation):
    """Several activations side by side.

    The first ``n_1`` components, the next ``n_2``, and so on.

    Parameters
    ----------
    *blocks : (Activation, int)
        Activations with their numbers of components.

    Raises
    ------
    InputError
        If one of them is no such pair.

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
            isinstance(b, tuple)
            and len(b) == 2
            and isinstance(b[0], Activation)
            and is_whole(b[1])
            and b[1] > 0
            for b in blocks
        ):
            raise InputError(
                f"blocks are {blocks}; give pairs (activation, width), "
                "such as Blocks((relu, 64), (tanh, 32))"
            )
        parts = [a for a, _ in blocks]
        stops = [int(stop) for stop in np.cumsum([width for _, width in blocks])]
        starts = [0, *stops[:-1]]
        object.__setattr__(self, "blocks", tuple(map(_Block, parts, starts, stops)))
        slopes = [a.slope_range for a in parts if a.slope_range is not None]
        bounds = [a.lipschitz for a in parts if a.lipschitz is not None]
        known = len(slopes) == len(parts)
        super().__init__(
            name="Blocks(" + ", ".join(f"({a.name}, {width})" for a, width in blocks) + ")",
            phi=self._phi,
            dphi=self._dphi,
            lipschitz=max(bounds) if len(bounds) == len(parts) else None,
            slope_range=(min(lo for lo, _ in slopes), max(hi for _, hi in slopes))
            if known
            else None,
            homogeneous=all(a.homogeneous for a in parts),
            scalar_solve=self._solve if all(a.scalar_solve is not None for a in parts) else None,
            divides=all(a.divides for a in parts),
            takes_out=True,
            resolvent=self._resolvent if all(a.resolvent is not None for a in parts) else None,
        )
        if self.vector_blocks(self.width):
            object.__setattr__(self, "slope_range", None)

    @property
    def width(self) -> int:
        """The number of components that the blocks cover."""
        return self.blocks[-1].stop

    def _phi(self, z: Any, out: Any = None) -> Any:
        if out is None:
            return _side_by_side(z, (b.activation(b.of(z)) for b in self.blocks))
        for b in self.blocks:
            b.activation(b.of(z), out=b.of(out))
        return out

    def _dphi(self, z: Any) -> Any:
        return _side_by_side(z, (b.activation.dphi(b.of(z)) for b in self.blocks))

    def _solve(self, r: Any, d: Any) -> Any:
        parts = (
            b.activation.scalar_solve(b.of(r), b.of(d))  # type: ignore[misc]
            for b in self.blocks
        )
        return _side_by_side(r, parts)

    def _resolvent(self, u: Any, alpha: float) -> Any:
        parts = (b.activation.resolvent(b.of(u), alpha) for b in self.blocks)  # type: ignore[misc]
        return _side_by_side(u, parts)

    def columns(self, members: slice | np.ndarray) -> Activation:
        """That of some of the components, in their order.

        A block on which phi acts as a whole is among them as a whole, or not at all.
        """
        flat = pieces(self, 0, self.width)
        together = self.vector_blocks(self.width)
        if isinstance(members, slice) and members.step is None and not together:
            start, stop, _ = members.indices(self.width)  # a group of a solver
            shared = [(phi, min(stop, s.stop) - max(start, s.start)) for phi, s in flat]
            parts = [(phi, width) for phi, width in shared if width > 0]
            return parts[0][0] if len(parts) == 1 else Blocks(*parts)
        chosen = np.arange(self.width)[members]
        for start, stop in together:
            place = np.flatnonzero((chosen >= start) & (chosen < stop))
            whole = len(place) == stop - start and np.array_equal(
                chosen[place[0] : place[0] + stop - start], np.arange(start, stop)
            )
            if len(place) and not whole:
                raise InputError(
                    f"{self.name} acts on the components {start} to {stop - 1} together; "
                    "some of them have no activation alone"
                )
        owner = np.repeat(np.arange(len(flat)), [s.stop - s.start for _, s in flat])[members]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        runs = np.diff(starts, append=len(owner))
        parts = [(flat[owner[i]][0], int(w)) for i, w in zip(starts, runs, strict=True)]
        return parts[0][0] if len(parts) == 1 else Blocks(*parts)

    def vjp(self, z: Any, w: Any) -> Any:
        """``J(z)^T w``, block by block."""
        return _side_by_side(z, (b.activation.vjp(b.of(z), b.of(w)) for b in self.blocks))

    def vector_blocks(self, n: int) -> tuple[tuple[int, int], ...]:
        """Those of the parts, where they stand."""
        inside = [(b.start, b.activation.vector_blocks(b.stop - b.start)) for b in self.blocks]
        return tuple(
            (first + start, first + stop) for first, pieces in inside for start, stop in pieces
        )

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


def joint(parts: Iterable[tuple[Activation, int]]) -> Activation:
    """Activations of so many components side by side, in as few blocks as there can be.

    Neighbours with the same one are joined, unless it acts on its components together.
    """
    runs: list[tuple[Activation, int]] = []

    def add(phi: Activation, width: int) -> None:
        if isinstance(phi, Blocks):
            for block in phi.blocks:
                add(block.activation, block.stop - block.start)
        elif runs and runs[-1][0] == phi and not phi.vector_blocks(width):
            runs[-1] = (phi, runs[-1][1] + width)
        else:
            runs.append((phi, width))

    for phi, width in parts:
        add(phi, width)
    return runs[0][0] if len(runs) == 1 else Blocks(*runs)


def pieces(activation: Activation, start: int, stop: int) -> list[tuple[Activation, slice]]:
    """The activations that are no `Blocks`, with their columns in start:stop."""
    if not isinstance(activation, Blocks):
        return [(activation, slice(start, stop))]
    return [
        piece
        for b in activation.blocks
        for piece in pieces(b.activation, start + b.start, start + b.stop)
    ]
