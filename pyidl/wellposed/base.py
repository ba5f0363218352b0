"""A constraint is a set of parameters in which well-posedness is certain.

It works on a layer's flat dictionary, so that a matrix A and a pair of factors ``A = L
R^T`` fit alike. It never acts behind the forward pass: a training step projects,
``model.params = model.project(params)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import as_real
from pyidl.errors import InputError, expect, is_real
from pyidl.typing import Array, Params
from pyidl.wellposed.certificate import Certificate, Norm

__all__ = [
    "Constraint",
    "expect_activation",
    "check_kappa",
    "check_weights",
    "known_lipschitz",
    "lipschitz_rows",
    "lowered",
    "needs_slopes",
    "rowwise",
    "size_of",
    "unknown_lipschitz",
    "unproven",
    "weights_for",
]


T = TypeVar("T")

SMALLEST = 1e-150
"""Of weights.

What underflows in a product with one of them is nothing beside the roundings of the sum
of the others.
"""


class Constraint(ABC):
    """A set of parameters in which well-posedness is certain.

    Subclasses are frozen dataclasses and give `project`, `contains` and `certificate`.
    What is projected is feasible as it is rounded, and projecting twice changes
    nothing.

    Examples
    --------
    ``|A_ij| <= kappa / n``, a set inside the ball of `InfNorm`:

    >>> from dataclasses import dataclass
    >>> from pyidl.wellposed import InfNorm
    >>> @dataclass(frozen=True)
    ... class Entries(Constraint):
    ...     kappa: float = 0.9
    ...
    ...     def project(self, params, activation):
    ...         A = params["A"]
    ...         most = self.kappa / len(A)
    ...         return {**params, "A": np.clip(A, -most, most)}
    ...
    ...     def contains(self, params, activation):
    ...         A = params["A"]
    ...         return bool(np.all(np.abs(A) <= self.kappa / len(A)))
    ...
    ...     def certificate(self, params, activation):
    ...         return InfNorm(self.kappa).certificate(params, activation)
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(3, 2, 10, constraint=Entries(), rng=0)
    >>> model.params = model.project(model.params)
    >>> model.constraint.contains(model.params, model.activation)
    True
    """

    contracts: ClassVar[bool] = True
    """Whether the plain iteration contracts in the whole set."""
    keeps_zeros: ClassVar[bool] = True
    """Whether `project` leaves zeros of A zeros, as a pattern needs it."""
    projects: ClassVar[tuple[str, ...]] = ("A",)
    """What `project` changes, of A (or L and R), B, C and D."""

    @property
    def metric(self) -> np.ndarray | None:
        """The diagonal lam > 0 of a metric in which I - A is monotone; None if plain.

        ``lam (I - A) + (I - A)^T lam > 0``, for solvers to make use of.
        """
        return None

    def refusal(self, activation: Activation) -> str:
        """Why the condition says nothing for this activation; "" where it does."""
        return ""

    @abstractmethod
    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Feasible parameters near the given ones.

        Parameters
        ----------
        params : mapping
            By name: A, or the factors L and R, and others that are not looked at.
        activation : Activation
            phi.

        Returns
        -------
        dict
            The nearest ones where the set is convex, those given where they are
            feasible.
        """

    @abstractmethod
    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether the parameters lie in the set."""

    @abstractmethod
    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """What is proven for these parameters, inside the set or not.

        The radius of the set plays no part in it.

        Returns
        -------
        Certificate
            One that says why not, where nothing is proven.
        """


# -------------------------------------------------------- what several conditions share


def unproven(reason: str) -> Certificate:
    """A certificate that says why there is none."""
    return Certificate(False, math.inf, Norm(), "no iteration", reason)


def unknown_lipschitz(activation: Activation) -> Certificate:
    """A certificate that says that too little is known of the activation."""
    return unproven(f"the Lipschitz constant of the activation {activation.name!r} is not known")


def size_of(params: Params) -> int:
    """The number n of components of the state."""
    if not (isinstance(params, Mapping) and ("A" in params or "L" in params)):
        raise InputError(
            f"params is {params!r}; a mapping with the array A, or L and R, is needed, such as "
            "model.params"
        )
    return int(rowwise(params).shape[0])


def rowwise(params: Params) -> Array:
    """A, or its factor L: the array that has a row for every component of the state."""
    return params["A" if "A" in params else "L"]


def expect_activation(activation: Any) -> None:
    """Refuse what is no activation."""
    expect("activation", activation, Activation, "use one of pyidl.activations")


def known_lipschitz(activation: Activation, n: int) -> list[float] | None:
    """L_i for every component, or None."""
    expect_activation(activation)
    return activation.row_lipschitz(n)


def lipschitz_rows(activation: Activation, n: int) -> np.ndarray:
    """L_i for every component; 1 where it is unknown and nothing can be certified."""
    return np.asarray(known_lipschitz(activation, n) or [1.0] * n, dtype=np.float64)


def needs_slopes(activation: Activation) -> str:
    """Why a condition that needs slopes in [0, L] says nothing, or ""."""
    expect_activation(activation)
    if any(stop - start > 1 for start, stop in activation.vector_blocks(2)):
        return (
            "it acts on several components together, and the condition needs an activation of "
            "single components"
        )
    if activation.slope_range is None:
        return (
            "its slopes are not known, and the condition needs them to lie in [0, L]; give the "
            "activation a slope_range"
        )
    if activation.slope_range[0] < 0:
        return (
            f"its slopes reach {activation.slope_range[0]:.4g}, and the condition needs them to "
            "lie in [0, L]"
        )
    return ""


def check_kappa(kappa: Any, name: str = "kappa") -> float:
    """A radius between 0 and 1."""
    if not (is_real(kappa) and 0 < float(kappa) < 1):
        raise InputError(f"{name} is {kappa!r}; a contraction needs 0 < {name} < 1")
    return float(kappa)


def check_weights(weights: Any, why: str = ": only their ratios matter") -> Any:
    """Positive weights as a tuple, which can be compared, hashed, written; or None."""
    if weights is None:
        return None
    eta: Any = as_real(weights, name="weights", xp=np, dtype="float64")
    if eta.ndim != 1 or not len(eta) or not np.all((eta >= SMALLEST) & (eta <= 1.0 / SMALLEST)):
        least, most = (eta.min(), eta.max()) if eta.size else (None, None)
        raise InputError(
            f"weights has shape {eta.shape} and entries between {least} and {most}; use n positive "
            f"numbers, in a unit in which they lie between {SMALLEST} and {1.0 / SMALLEST}{why}"
        )
    return tuple(float(w) for w in eta)


def weights_for(weights: tuple[float, ...] | None, n: int) -> np.ndarray | None:
    """The weights as an array, if there are n of them."""
    if weights is None:
        return None
    if len(weights) != n:
        raise InputError(
            f"there are {len(weights)} weights, the state has {n} components; give one for each"
        )
    return np.asarray(weights)


def lowered(candidate: Callable[[float], T], inside: Callable[[T], bool], first: float) -> T:
    """``candidate(1 - t)`` for the least t of ``first, 4 first, ...`` that is inside.

    A result that is scaled onto the boundary may be rounded out of it; by how much is
    measured, not estimated.
    """
    t = first
    while t < 1.0:
        found = candidate(1.0 - t)
        if inside(found):
            return found
        t *= 4.0
    return candidate(0.0)
