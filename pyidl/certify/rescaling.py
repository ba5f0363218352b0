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

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.errors import InputError, expect
from pyidl.layers.base import Layer
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.sequential import Sequential
from pyidl.typing import Params
from pyidl.wellposed.blocknorms import gains
from pyidl.wellposed.infnorm import InfNorm
from pyidl.wellposed.perronfrobenius import PerronFrobenius, positive_scaling
from pyidl.wellposed.triangular import StrictlyTriangular

__all__ = ["rescale"]

Model = TypeVar("Model", ImplicitModel, Sequential)


def rescale(model: Model) -> Model:
    r"""Return a model with the same outputs whose row sums of ``|A|`` are below 1.

    There is one where the Perron-Frobenius condition holds. Let phi be positively
    homogeneous, and let ``lambda_pf(diag(L) |A|) < 1``, where L_i are the Lipschitz
    constants of phi (1 for ReLU, leaky ReLU, abs, identity). Then there is an s > 0
    with ``diag(L) |A| s <= c s``, c < 1, and

        A' = S^{-1} A S,   B' = S^{-1} B,   b' = S^{-1} b,
        C' = C S,          D' = D,          d' = d

    (of factors, ``L' = S^{-1} L``, ``R' = S R``) has the states ``x' = S^{-1} x`` and
    the same outputs, for every input. Its row sums ``L_i sum_j |A'_ij|`` are at most c.
    They come near lambda_pf: 1 - c is 0.99 times the margin of the Perron-Frobenius
    certificate. The last hundredth would cost a reducible A a far more uneven s, and so
    states of very different sizes. For the same reason c is 1/2 where A has no cycles:
    lambda_pf is then 0, which no s attains. The largest entry of s is the inverse of
    its smallest.

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
        to it for the dtype, or if what is rescaled is too large for that.

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
    lengths = _lengths(params, phi)
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
    largest = max(float(model.xp.max(model.xp.abs(a))) for a in wide.values())
    if not largest <= float(np.finfo(model.dtype).max):
        raise InputError(
            f"the s that makes row sums small has entries from {np.min(lengths):.3g} to "
            f"{np.max(lengths):.3g}, and rescaled parameters of {largest:.3g} are too large for "
            f"{model.dtype}; use model.astype('float64'), or project onto wellposed.InfNorm"
        )
    twin = model.replace()
    twin.params = wide
    found = InfNorm().certificate(twin.params, phi)
    if not found.proven:
        raise InputError(
            f"lambda_pf(|A|) is so near to 1 that rescaled row sums in {model.dtype} are not below "
            f"it ({found.reason}); use model.astype('float64'), or project onto a smaller kappa "
            "first"
        )
    return twin


def _rescaled(layer: Layer) -> Layer:
    """A layer of a `Sequential`: rescaled, or as it is where it has no fixed point."""
    if isinstance(layer, ImplicitModel):
        return rescale(layer)
    return rescale(layer) if isinstance(layer, Sequential) else layer.replace()


def _lengths(params: Params, phi: Activation) -> np.ndarray:
    """The s of the head, of `pyidl.wellposed.perronfrobenius`."""
    proof = PerronFrobenius().certificate(params, phi)
    if not proof.proven:
        raise InputError(
            f"{proof.reason}. Use smaller entries, or project first: "
            "model.params = wellposed.PerronFrobenius(0.99).project(model.params, model.activation)"
        )
    acyclic = StrictlyTriangular().certificate(params, phi).proven
    goal = 0.5 if acyclic else 1.0 - 0.99 * proof.margin
    s, _ = positive_scaling(gains(params, phi).matrix, goal)
    return np.asarray(s / np.sqrt(np.max(s) * np.min(s)))
