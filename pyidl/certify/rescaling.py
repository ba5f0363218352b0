r"""Rescaling: for a positively homogeneous phi, units may be measured in other lengths.

    phi(S y) = S phi(y),    S = diag(s) > 0.

So x solves ``x = phi(A x + z)`` if and only if ``x' = S^{-1} x`` solves ``x' =
phi(S^{-1} A S x' + S^{-1} z)``. In the right units of length the Perron-Frobenius
condition is a condition on row sums.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from pyidl.arrays import backend
from pyidl.certify.enclosure import up
from pyidl.errors import InputError, expect
from pyidl.layers.base import Layer
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.sequential import Sequential
from pyidl.wellposed.bounds import entries
from pyidl.wellposed.infnorm import InfNorm

__all__ = ["rescale"]

Model = TypeVar("Model", ImplicitModel, Sequential)


def rescale(model: Model) -> Model:
    r"""Return a model with the same outputs whose row sums of ``|A|`` are below 1.

    There is one where the Perron-Frobenius condition holds. Let phi be positively
    homogeneous, and let ``lambda_pf(diag(L) |A|) < 1``, where L_i are the Lipschitz
    constants of phi (1 for ReLU, leaky ReLU, abs, identity). Then ``s = (I - diag(L)
    |A|)^{-1} 1`` is at least 1 in every entry, and

        A' = S^{-1} A S,   B' = S^{-1} B,   b' = S^{-1} b,
        C' = C S,          D' = D,          d' = d

    (of factors, ``L' = S^{-1} L``, ``R' = S R``) has the states ``x' = S^{-1} x`` and
    the same outputs, for every input. Since ``L_i sum_j |A_ij| s_j = s_i - 1``,

        max_i L_i sum_j |A'_ij| = max_i (s_i - 1) / s_i = 1 - 1 / max_i s_i < 1.

    Zeros stay zeros, so that a pattern fits. The constraint of the model is kept,
    although another may now suit it.

    Parameters
    ----------
    model : ImplicitModel or Sequential
        Of a `Sequential`, every implicit layer is rescaled.

    Returns
    -------
    ImplicitModel or Sequential
        A new model; that given is not changed.

    Raises
    ------
    InputError
        If phi is not positively homogeneous, if lambda_pf is not below 1, or too near
        to it for the dtype.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> model = ImplicitModel(1, 1, 2, rng=0)
    >>> model.params = {**model.params, "A": [[0.0, 9.0], [0.01, 0.0]]}
    >>> condition, phi = model.constraint, model.activation
    >>> twin = rescale(model)
    >>> [condition.contains(m.params, phi) for m in (model, twin)]
    [False, True]
    """
    if isinstance(model, Sequential):
        return model.replace(layers=[_rescaled(layer) for layer in model.layers])
    expect(
        "model",
        model,
        ImplicitModel,
        "rescale takes an ImplicitModel, or a Sequential in which there may be one",
    )
    phi, n, params = model.activation, model.hidden_dim, model.params
    lipschitz = phi.row_lipschitz(n)
    if not phi.homogeneous or phi.vector_blocks(n) or lipschitz is None:
        raise InputError(
            "rescaling needs phi(t z) = t phi(z) for t >= 0, entry by entry, and its Lipschitz "
            f"constant; {phi.name} does not claim that. ReLU, leaky ReLU, abs and identity do; "
            "otherwise the Perron-Frobenius certificate holds without rescaling"
        )
    lengths = _lengths(model, np.asarray(lipschitz))
    s = backend.from_host(model.xp, lengths)
    wide = {key: backend.astype(model.xp, a, "float64") for key, a in params.items()}
    for key in wide.keys() & {"A", "L", "B"}:
        wide[key] = wide[key] / s[:, None]
    for key in wide.keys() & {"A", "C"}:
        wide[key] = wide[key] * s
    if "R" in wide:
        wide["R"] = wide["R"] * s[:, None]
    if "b" in wide:
        wide["b"] = wide["b"] / s
    twin = model.replace()
    twin.params = wide
    if not InfNorm().certificate(twin.params, phi).proven:
        raise InputError(
            f"the largest rescaled row sum is 1 - 1 / max s = 1 - {1 / np.max(lengths):.3g}, which "
            f"{model.dtype} does not tell from 1; use model.astype('float64'), or project onto a "
            "smaller kappa first"
        )
    return twin


def _rescaled(layer: Layer) -> Layer:
    """A layer of a `Sequential`: rescaled, or as it is where it has no fixed point."""
    if isinstance(layer, ImplicitModel):
        return rescale(layer)
    return rescale(layer) if isinstance(layer, Sequential) else layer.replace()


def _lengths(model: ImplicitModel, lipschitz: np.ndarray) -> np.ndarray:
    """``s = (I - diag(L) |A|)^{-1} 1``, with the proof that lambda_pf < 1.

    That is s > 0 with ``diag(L) |A| s < s``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        size = lipschitz[:, None] * np.abs(entries(model.params)[0])
    if not np.all(np.isfinite(size)):
        raise InputError(
            f"{np.sum(~np.isfinite(size))} entries of |A| are too large for float64, so that its "
            "lambda_pf is not below 1; project first, or use smaller factors"
        )
    try:
        s: np.ndarray = np.linalg.solve(np.eye(len(size)) - size, np.ones(len(size)))
    except np.linalg.LinAlgError:
        s = np.full(len(size), -1.0)
    if not (np.all(s > 0) and np.all(up(size @ s, len(s) + 2) < s)):
        radius = float(np.max(np.abs(np.linalg.eigvals(size))))
        raise InputError(
            f"lambda_pf(|A|) is {radius:.6g}, with the Lipschitz constants of "
            f"{model.activation.name} as factors; it must be below 1. Project first: "
            "model.params = wellposed.PerronFrobenius(0.99).project(model.params, model.activation)"
        )
    return s
