r"""The operations of the algebra: wirings with a name.

Each is an `Interconnection`, multiplied out or with joints kept, whichever has fewer
nonzeros. For gradients of the parts, use that class.

Source of all: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J.
Math. Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from pyidl.compose.interconnection import CURE, Interconnection, as_matrix
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel
from pyidl.wellposed import Constraint

__all__ = [
    "add",
    "affine_after",
    "affine_before",
    "cascade",
    "concatenate",
    "feedback",
    "interconnect",
    "parallel",
]


def interconnect(
    parts: Iterable[ImplicitModel],
    *,
    loop: Any = None,
    inputs: Any = None,
    outputs: Any = None,
    direct: Any = None,
    offset: Any = None,
    shift: Any = None,
    keep: bool | None = None,
    constraint: Constraint | None = None,
) -> ImplicitModel:
    """Close parts by ``w = K y + E u + k`` and read ``F y + H u + f``.

    Parameters
    ----------
    parts, loop, inputs, outputs, direct, offset, shift, keep, constraint
        As for `Interconnection`.

    Returns
    -------
    ImplicitModel
        With p inputs and q outputs, where E is (P, p) and F is (q, Q).

    Raises
    ------
    InputError, DeviceMismatchError
        As there; and where the loop is singular.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    Two models that hear each other:

    >>> one, two = (ImplicitModel(2, 2, 5, rng=i) for i in range(2))
    >>> swap = 0.1 * np.kron([[0, 1], [1, 0]], np.eye(2))
    >>> interconnect([one, two], loop=swap).hidden_dim
    10
    """
    wiring = (loop, inputs, outputs, direct, offset, shift)
    return Interconnection(parts, *wiring, keep, constraint).model()  # type: ignore[arg-type]


def cascade(*models: ImplicitModel) -> ImplicitModel:
    """``u -> M_k(... M_2(M_1(u)))``: one after the other, the first one first.

    For two, with the states of the second on top,

        A = [[A2, B2 C1], [0, A1]],    B = [B2 D1; B1],    b = [B2 d1 + b2; b1],
        C = [C2, D2 C1],               D = D2 D1,          d = D2 d1 + d2.

    Parameters
    ----------
    *models : ImplicitModel
        Each with as many inputs as the one before it has outputs.

    Returns
    -------
    ImplicitModel
        From the inputs of the first to the outputs of the last.

    Raises
    ------
    InputError
        If widths do not fit; otherwise as `Interconnection`.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> first, second = ImplicitModel(3, 4, 5, rng=0), ImplicitModel(4, 2, 6, rng=1)
    >>> U = np.ones((1, 3))
    >>> both = cascade(first, second)
    >>> bool(np.allclose(both.predict(U), second.predict(first.predict(U)), rtol=1e-4))
    True
    """
    parts = Interconnection(models).parts
    for i, (one, two) in enumerate(itertools.pairwise(parts)):
        if one.output_dim != two.input_dim:
            raise InputError(
                f"models[{i}] has {one.output_dim} outputs, models[{i + 1}] takes "
                f"{two.input_dim} inputs; they must be equal: affine_after changes their number"
            )
    P, Q = sum(part.input_dim for part in parts), sum(part.output_dim for part in parts)
    first, last = parts[0].input_dim, parts[-1].output_dim
    # What comes out of one goes into the next: the identity, below the first inputs.
    return interconnect(
        parts,
        loop=np.eye(P, Q, -first),
        inputs=np.eye(P, first),
        outputs=np.eye(last, Q, Q - last),
    )


def parallel(*models: ImplicitModel) -> ImplicitModel:
    """``(u_1, ..., u_k) -> (M_1(u_1), ..., M_k(u_k))``: side by side.

    A, B, C, D are block diagonal.

    Parameters
    ----------
    *models : ImplicitModel
        Each with its own inputs.

    Returns
    -------
    ImplicitModel
        With all inputs and all outputs.

    Raises
    ------
    InputError, DeviceMismatchError
        As `Interconnection`.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> both = parallel(ImplicitModel(3, 1, 5, rng=0), ImplicitModel(4, 2, 6, rng=1))
    >>> both.input_dim, both.output_dim
    (7, 3)
    """
    return interconnect(models)


def concatenate(*models: ImplicitModel) -> ImplicitModel:
    """``u -> (M_1(u), ..., M_k(u))``: one input for all, outputs side by side.

    A and C are block diagonal, B and D are stacked.

    Parameters
    ----------
    *models : ImplicitModel
        With as many inputs each.

    Returns
    -------
    ImplicitModel
        With these inputs, and all outputs.

    Raises
    ------
    InputError
        If the numbers of inputs differ; otherwise as `Interconnection`.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> both = concatenate(ImplicitModel(3, 1, 5, rng=0), ImplicitModel(3, 2, 6, rng=1))
    >>> both.input_dim, both.output_dim
    (3, 3)
    """
    return interconnect(models, inputs=_copies(models, "input_dim"))


def add(*models: ImplicitModel) -> ImplicitModel:
    """``u -> M_1(u) + ... + M_k(u)``.

    A is block diagonal, B is stacked, ``C = [C_1 ... C_k]``, D and d are sums.

    Parameters
    ----------
    *models : ImplicitModel
        With as many inputs each, and as many outputs.

    Returns
    -------
    ImplicitModel
        With these inputs and outputs.

    Raises
    ------
    InputError
        If these numbers differ; otherwise as `Interconnection`.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> one, two = (ImplicitModel(3, 2, 5, rng=i) for i in range(2))
    >>> U = np.ones((1, 3))
    >>> found = add(one, two).predict(U)
    >>> bool(np.allclose(found, one.predict(U) + two.predict(U), rtol=1e-4))
    True
    """
    E, F = _copies(models, "input_dim"), _copies(models, "output_dim")
    return interconnect(models, inputs=E, outputs=F.T)


def affine_before(model: ImplicitModel, P: Any, c: Any = None) -> ImplicitModel:
    """``u -> M(P u + c)``: B P, b + B c, D P, d + D c.

    Parameters
    ----------
    model : ImplicitModel
        M, with p inputs.
    P : array, shape (p, r)
        What the inputs are multiplied with.
    c : array, shape (p,), optional
        What is added to them.

    Returns
    -------
    ImplicitModel
        With r inputs.

    Raises
    ------
    InputError
        If a shape does not fit.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> affine_before(ImplicitModel(3, 2, 5, rng=0), np.ones((3, 1))).input_dim
    1
    """
    expect("model", model, ImplicitModel, CURE)
    E = as_matrix("P", P, (model.input_dim, None))
    k = as_matrix("c", c, (model.input_dim,), np.zeros(model.input_dim))
    return interconnect([model], inputs=E, offset=k)


def affine_after(model: ImplicitModel, Q: Any, e: Any = None) -> ImplicitModel:
    """``u -> Q M(u) + e``: Q C, Q D, Q d + e.

    Parameters
    ----------
    model : ImplicitModel
        M, with q outputs.
    Q : array, shape (r, q)
        What the outputs are multiplied with.
    e : array, shape (r,), optional
        What is added to them.

    Returns
    -------
    ImplicitModel
        With r outputs.

    Raises
    ------
    InputError
        If a shape does not fit.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> affine_after(ImplicitModel(3, 2, 5, rng=0), np.ones((1, 2))).output_dim
    1
    """
    expect("model", model, ImplicitModel, CURE)
    F = as_matrix("Q", Q, (None, model.output_dim))
    f = as_matrix("e", e, (len(F),), np.zeros(len(F)))
    return interconnect([model], outputs=F, shift=f)


def feedback(model: ImplicitModel, K: Any) -> ImplicitModel:
    """``y = M(K y + u)``: the model hears its own outputs.

    With ``R = (I - D K)^{-1}``,

        A' = A + B K R C,    B' = B (I + K R D),    b' = b + B K R d,
        C' = R C,            D' = R D,              d' = R d.

    Parameters
    ----------
    model : ImplicitModel
        M, with p inputs and q outputs.
    K : array, shape (p, q)
        What comes back.

    Returns
    -------
    ImplicitModel
        With p inputs and q outputs.

    Raises
    ------
    InputError
        If a shape does not fit, or ``I - D K`` is singular.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 2.

    Examples
    --------
    >>> model = ImplicitModel(2, 2, 5, dtype="float64", rng=0)
    >>> U, K = np.ones((1, 2)), 0.1 * np.eye(2)
    >>> Y = feedback(model, K).predict(U)
    >>> bool(np.allclose(Y, model.predict(Y @ K.T + U)))
    True
    """
    expect("model", model, ImplicitModel, CURE)
    return interconnect([model], loop=as_matrix("K", K, (model.input_dim, model.output_dim)))


def _copies(models: tuple[ImplicitModel, ...], name: str) -> np.ndarray:
    """Identity matrices on top of each other, one for each model."""
    widths = [getattr(part, name) for part in Interconnection(models).parts]
    if len(set(widths)) > 1:
        raise InputError(f"models have the {name} {widths}; they must be equal")
    return np.tile(np.eye(widths[0]), (len(widths), 1))
