r"""The parameters of an implicit model, apart from what is done with it.

    x = phi(A x + B u + b),    y = C x + D u + d

A layer whose states solve such an equation, once or at every time step, holds one
`ParameterSpace`. That knows the shapes of the parameters, where they may differ from
zero, in which set the fixed point is certain, and how to read the structure of the
matrices. `Implicit` is what such layers have in common.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from pyidl.activations import Activation, Blocks
from pyidl.arrays import backend
from pyidl.errors import InputError, expect
from pyidl.layers.base import Layer, check_width
from pyidl.layers.tolerance import in_words, solvers_at
from pyidl.matrices import read
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.matrices.pattern import Pattern
from pyidl.solvers import Solver
from pyidl.typing import Array, Params, Tol
from pyidl.wellposed import Constraint, strongest
from pyidl.wellposed.certificate import Certificate

__all__ = ["Implicit", "ParameterSpace"]


@dataclass(frozen=True)
class ParameterSpace:
    """What A (or L and R), B, C, D, b and d may be.

    Parameters
    ----------
    input_dim, output_dim, hidden_dim : int
        p, q, n: the lengths of u, y and x.
    activation, constraint, rank, pattern, bias, feedthrough, dtype, sparse_below
        As for `ImplicitModel`.

    Raises
    ------
    InputError
        If these do not go together.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.wellposed import InfNorm
    >>> space = ParameterSpace(3, 2, 10, activations.relu, InfNorm(0.99), rank=4)
    >>> space.shapes()["L"], space.shapes()["B"]
    ((10, 4), (10, 3))
    """

    input_dim: int
    output_dim: int
    hidden_dim: int
    activation: Activation
    constraint: Constraint
    rank: int | None = None
    pattern: Pattern | None = None
    bias: bool = True
    feedthrough: bool = True
    dtype: str = "float32"
    sparse_below: float = 0.0

    def __post_init__(self) -> None:
        if self.rank is not None and check_width("rank", self.rank) > self.hidden_dim:
            raise InputError(
                f"rank is {self.rank}, but A has only {self.hidden_dim} rows; "
                "use rank=None for a full A"
            )
        cure = "use one of pyidl.wellposed, such as InfNorm(0.99)"
        expect("constraint", self.constraint, Constraint, cure)
        if self.pattern is not None:
            self._check_pattern(self.pattern)
        _check_activation(self.activation, self.hidden_dim, self.dtype)
        refusal = self.constraint.refusal(self.activation)
        if refusal:
            raise InputError(
                f"{self.constraint!r} does not go with {self.activation.name}: {refusal}"
            )

    def _check_pattern(self, pattern: Pattern) -> None:
        """A mask must have the shape of its parameter, which must be there."""
        cure = "use Pattern(A=mask, ...) or Pattern.feed_forward(widths)"
        expect("pattern", pattern, Pattern, cure)
        shapes = self.shapes()
        for key in "ABCD":
            mask = getattr(pattern, key)
            if mask is None or (key == "D" and key not in shapes and not mask.any()):
                continue
            if key not in shapes:
                raise InputError(
                    f"pattern has a mask for {key}, "
                    f"but the model has the parameters {', '.join(shapes)}"
                )
            if mask.shape != shapes[key]:
                raise InputError(
                    f"the pattern of {key} has shape {mask.shape}, the parameter {shapes[key]}"
                )
        moved = [key for key in self.constraint.projects if getattr(pattern, key) is not None]
        if moved and not self.constraint.keeps_zeros:
            raise InputError(
                f"the projection of {self.constraint!r} does not keep the zeros of a pattern of "
                f"{moved[0]}; use InfNorm or PerronFrobenius, or no pattern"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""
        p, q, n, k = self.input_dim, self.output_dim, self.hidden_dim, self.rank
        A: dict[str, tuple[int, ...]] = {"A": (n, n)} if k is None else {"L": (n, k), "R": (n, k)}
        D: dict[str, tuple[int, ...]] = {"D": (q, p)} if self.feedthrough else {}
        b: dict[str, tuple[int, ...]] = {"b": (n,), "d": (q,)} if self.bias else {}
        return {**A, "B": (n, p), "C": (q, n), **D, **b}

    def refuse_outside(self, params: Params) -> None:
        """Refuse parameters with nonzero entries outside their pattern."""
        for key in params:
            mask = getattr(self.pattern, key, None)
            outside = 0 if mask is None else np.count_nonzero(backend.to_numpy(params[key])[~mask])
            if outside:
                raise InputError(
                    f"parameter {key} has {outside} nonzero entries outside its pattern; "
                    f"set them to zero: {key} * pattern.{key}"
                )

    def read(self, params: Params, before: Mapping[str, Matrix] | None) -> dict[str, Matrix]:
        """A, B, C and D with their structure; `before`: those of earlier parameters."""
        own, doubtful = {key: params[key] for key in self.shapes()}, not self.constraint.contracts
        maps = read.read_model(own, self.pattern, before, doubtful, self.sparse_below)
        if self.constraint.metric is not None and type(maps["A"]) is Full:
            maps["A"] = replace(maps["A"], metric=self.constraint.metric)
        return maps


class Implicit(Layer):
    """Base class of the layers whose states solve ``x = phi(A x + B u + b)``.

    `_validate` of a subclass sets `_space`, the `ParameterSpace` of the equation; its
    `_read` keeps the matrices that `ParameterSpace.read` makes of the parameters.
    """

    forward: Solver | None
    adjoint: Solver | None
    _space: ParameterSpace

    def support(self, name: str) -> np.ndarray | None:
        """The mask of the pattern, if there is one."""
        return getattr(self._space.pattern, name, None)

    def _checked(self, new: Mapping[str, Any]) -> Params:
        checked = super()._checked(new)
        self._space.refuse_outside(checked)
        return checked

    def project(self, params: Params) -> dict[str, Array]:
        """Return parameters inside `constraint`.

        The nearest ones where that set is convex.

        Parameters
        ----------
        params : mapping
            Such as an optimiser's step returns.

        Returns
        -------
        dict
            The matrices in the set, and all other parameters as they are given.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> model = ImplicitModel(3, 2, 4, rng=0)
        >>> inside = model.project({**model.params, "A": np.ones((4, 4), np.float32)})
        >>> bool(np.abs(inside["A"]).sum(axis=1).max() <= 0.99)
        True
        """
        inside = self._space.constraint.project(params, self._space.activation)
        return {**params, **inside}

    def certificate(self, explain: bool = False) -> Certificate:
        """The strongest of what is proven about the fixed point, for every input.

        For an `ImplicitRNN`, that of every time step; how errors travel from one step
        to the next is told by its `recurrence`.

        Parameters
        ----------
        explain : bool
            Whether the other conditions are listed too, with what they prove or why
            they fail.

        Returns
        -------
        Certificate
            For the present parameters.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> ImplicitModel(3, 2, 10, rng=0).certificate().proven
        True
        """
        space = self._space
        return strongest(self.params, space.activation, space.constraint, explain)

    def _equation(self) -> str:
        space = self._space
        state = f"{space.hidden_dim} states a {'sample' if self.tokenwise else 'step'}"
        return in_words(state, space.constraint, self.forward, self.adjoint)

    def with_tol(self, tol: Tol) -> Self:
        """Return the same layer at this tolerance, or at a pair (forward, adjoint).

        Parameters
        ----------
        tol : float or pair of floats
            Between 0 and 1.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> ImplicitRNN(3, 2, 5, 8, rng=0).with_tol(1e-4).adjoint.tol
        0.0001
        """
        forward, adjoint = solvers_at(self.forward, self.adjoint, tol)
        return self.replace(forward=forward, adjoint=adjoint)


def _check_activation(activation: Activation, n: int, dtype: str) -> None:
    """Try the activation, block by block where it has blocks."""
    if not isinstance(activation, Blocks):
        return _try(activation, n, dtype)
    if activation.width != n:
        raise InputError(
            f"{activation.name} covers {activation.width} components, the state has {n}"
        )
    for block in activation.blocks:
        _try(block.activation, block.stop - block.start, dtype)


def _try(part: Activation, width: int, dtype: str) -> None:
    """Of a few zeros, phi and its derivative keep shape and dtype, and are finite."""
    z = np.zeros((2, width), dtype)
    together = part.vector_blocks(width)
    derivative = ("vjp", functools.partial(part.vjp, z)) if together else ("dphi", part.dphi)
    for name, function in (("phi", part.phi), derivative):
        try:
            y = function(z)
        except TypeError as error:
            raise InputError(
                f"{name} of the activation {part.name!r} does not take an array of NumPy "
                f"({error}); take its functions from the library of its array, "
                "pyidl.arrays.backend.namespace(z)"
            ) from error
        kept = isinstance(y, np.ndarray) and y.shape == z.shape and y.dtype == z.dtype
        if not (kept and np.all(np.isfinite(y))):
            raise InputError(
                f"{name} of the activation {part.name!r} turns zeros of shape {z.shape}, "
                f"{z.dtype}, into {type(y).__name__} {getattr(y, 'shape', '')} "
                f"{getattr(y, 'dtype', '')}; it must keep shape and dtype, and be finite"
            )
