r"""Columns of mean 0 and deviation 1, and a model that takes them as they are.

With ``v = (u - m) / s`` and ``y = t + r z``, componentwise, a model trained on v and z
is, exactly, one of u and y:

    x = phi(A x + B v + b)   = phi(A x + (B / s) u + (b - (B / s) m))
    y = t + r (C x + D v + d) = (r C) x + (r D / s) u + (r (d - (D / s) m) + t)

A is the same, and so is the state: what is certified of one model is certified of the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import is_sparse, to_numpy
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel

__all__ = ["Standardiser", "absorbed", "fold"]

CONSTANT = 64 * np.finfo(np.float64).eps
"""A deviation below this share of the largest entry is rounding."""


@dataclass(frozen=True, eq=False)
class Standardiser:
    """``u -> (u - mean) / scale``, column by column, on the host and in float64.

    Parameters
    ----------
    mean, scale : numpy.ndarray, shape (p,)
        Each scale is positive.

    Examples
    --------
    >>> columns = Standardiser.of(np.array([[1.0, 7.0], [3.0, 7.0]]))
    >>> columns(np.array([[5.0, 8.0]]))
    array([[3., 1.]])
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, U: Any, weights: np.ndarray | None = None) -> Standardiser:
        """Mean and deviation, weighted; the scale of a constant column is 1.

        A sparse U is not shifted, for that would fill it: the mean counts as 0. The
        scale is then the largest ``|u|``, also of columns with few entries, which in
        units of their deviation would be large.
        """
        if is_sparse(U):
            U = U.tocsr(copy=True)
            U.sum_duplicates()
            largest = np.abs(U).max(axis=0).toarray().ravel()
            return cls(np.zeros(len(largest)), np.where(largest > 0, largest, 1.0))
        U = np.asarray(U, dtype=np.float64)
        # Weights of any size: neither their sum nor a product with them overflows.
        weights = None if weights is None else weights / np.max(weights)
        # In units of a power of two near the largest entry no square overflows or
        # vanishes.
        unit = np.exp2(
            np.frexp(np.maximum(np.max(np.abs(U), axis=0), np.finfo(np.float64).tiny))[1] - 1.0
        )
        V = U / unit
        mean = np.average(V, axis=0, weights=weights)
        deviation = np.sqrt(np.average((V - mean) ** 2, axis=0, weights=weights))
        return cls(mean * unit, np.where(deviation > CONSTANT, deviation * unit, 1.0))

    @classmethod
    def identity(cls, p: int) -> Standardiser:
        """Columns as they are."""
        return cls(np.zeros(p), np.ones(p))

    def __call__(self, U: Any) -> Any:
        """``(U - mean) / scale``; a sparse U gives a sparse result, if the mean is 0.

        Raises
        ------
        InputError
            If U is sparse, and the mean is not 0.
        """
        if is_sparse(U):
            if self.mean.any():
                raise InputError(
                    "U is sparse, and its columns are to be shifted by their means, which would "
                    "fill it: the first data were a full array. Give U.toarray(), or begin with "
                    "sparse data"
                )
            V = U.tocsr(copy=True)
            V.data = V.data / self.scale[V.indices]
            return V
        return np.asarray((U - self.mean) / self.scale)

    def undo(self, V: np.ndarray) -> np.ndarray:
        """``mean + scale V``."""
        return np.asarray(self.mean + self.scale * V)


def fold(model: ImplicitModel, inputs: Standardiser, outputs: Standardiser) -> ImplicitModel:
    """The model whose outputs are ``outputs.undo(model(inputs(U)))``, up to rounding.

    Parameters
    ----------
    model : ImplicitModel
        With biases.
    inputs, outputs : Standardiser
        Of its p inputs and q outputs.

    Returns
    -------
    ImplicitModel

    Raises
    ------
    InputError
        If the model has no biases, or widths differ.

    Examples
    --------
    >>> import pyidl
    >>> model = pyidl.ImplicitModel(2, 1, 5, dtype="float64", rng=0)
    >>> U = np.array([[1.0, 7.0], [3.0, 9.0]])
    >>> inputs = Standardiser.of(U)
    >>> outputs = Standardiser(np.array([10.0]), np.array([2.0]))
    >>> Y = 10 + 2 * model.predict(inputs(U))
    >>> bool(np.allclose(fold(model, inputs, outputs).predict(U), Y))
    True
    """
    if not model.bias:
        raise InputError(
            "a model without biases cannot take a shift of its inputs or outputs; build it with "
            "bias=True"
        )
    widths = len(inputs.mean), len(outputs.mean)
    if widths != (model.input_dim, model.output_dim):
        raise InputError(
            f"the standardisers have {widths} columns, the model has "
            f"{(model.input_dim, model.output_dim)} inputs and outputs"
        )
    old: dict[str, Any] = {key: to_numpy(a).astype(np.float64) for key, a in model.params.items()}
    column = outputs.scale[:, None]
    # What overflows is refused by the model, by name.
    with np.errstate(over="ignore", invalid="ignore"):
        new = {**old, "C": column * old["C"], "d": outputs.undo(old["d"])}
        if model.feedthrough:
            new["D"] = column * old["D"]
        new = absorbed(new, inputs)
    folded = model.replace()
    folded.params = new
    return folded


def absorbed(params: Mapping[str, np.ndarray], inputs: Standardiser) -> dict[str, np.ndarray]:
    """The parameters that take inputs as they are: ``B v + b`` and ``D v + d`` of u.

    Parameters
    ----------
    params : mapping
        With B and b, and perhaps D and d. Columns beyond those of u, as of H_{t-1} in a
        recurrent network, stay.
    inputs : Standardiser
        Of the columns of u.

    Returns
    -------
    dict

    Examples
    --------
    >>> inputs = Standardiser(np.array([1.0]), np.array([2.0]))
    >>> absorbed({"B": np.array([[4.0, 3.0]]), "b": np.zeros(1)}, inputs)
    {'B': array([[2., 3.]]), 'b': array([-2.])}
    """
    p, new = len(inputs.mean), dict(params)
    for matrix, bias in (("B", "b"), ("D", "d")):
        if matrix in params:
            of_u = params[matrix][:, :p] / inputs.scale
            new[matrix] = np.concatenate([of_u, params[matrix][:, p:]], axis=1)
            new[bias] = params[bias] - of_u @ inputs.mean
    return new
