r"""The four-block form of an implicit attention head, and the reduced one.

The reduced form is what pyidl solves. In the literature the state of a head is X = [K Q
V O], a token a row, and with A (4h, 4h) and B (e, 4h)

    X = post(X A + U B),     post([k q v .]) = [k q v att(k, q, v)].

**Proposition.** Write N for the blocks K, Q, V together: A_NN is the leading (3h, 3h)
block of A, A_ON the first 3h columns of its last h rows, B_N the first 3h columns of B.
If ``I - A_NN`` is invertible, X is a fixed point if and only if

    O = att(O R + U S),     N = O R + U S,
    E = (I - A_NN)^{-1},    R = A_ON E,    S = B_N E.

*Proof.* The first three blocks say ``N = N A_NN + O A_ON + U B_N``; solve for N. ∎

So A_NN changes nothing that R and S could not (no bound of it is needed), and the last
h columns of A and B have no effect. For the gradients, ``dE = E dA_NN E`` gives ``dR =
dA_ON E + R dA_NN E`` and ``dS = dB_N E + S dA_NN E``, hence

    G_A_ON = G_R E^T,     G_B_N = G_S E^T,     G_A_NN = (R^T G_R + S^T G_S) E^T.

All arrays have one more axis in front, the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyidl.arrays.backend import namespace
from pyidl.errors import InputError
from pyidl.typing import Array, Grads

__all__ = ["from_four_blocks", "pull_four_blocks", "to_four_blocks"]


def from_four_blocks(A: Array, B: Array) -> dict[str, Array]:
    """Return the parameters R and S of the head with the same outputs.

    Parameters
    ----------
    A : array, shape (H, 4h, 4h)
    B : array, shape (H, e, 4h)

    Returns
    -------
    dict
        R (H, h, 3h) and S (H, e, 3h), for an `ImplicitAttentionHead` without `coupled`
        and `rank`.

    Raises
    ------
    InputError
        If the shapes do not fit, or a block ``I - A_NN`` is singular.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import ImplicitAttentionHead
    >>> rng = np.random.default_rng(0)
    >>> head = ImplicitAttentionHead(5, 2, num_heads=3, block_size=8, rng=0)
    >>> A, B = 0.1 * rng.normal(size=(3, 8, 8)), rng.normal(size=(3, 5, 8))
    >>> head.params = from_four_blocks(A, B)
    >>> head.params["R"].shape
    (3, 2, 6)
    """
    E = _inverse(A, B)
    width = E.shape[-1]
    return {"R": A[:, width:, :width] @ E, "S": B[..., :width] @ E}


def pull_four_blocks(A: Array, B: Array, grads: Mapping[str, Array]) -> Grads:
    """Return the gradients with respect to A and B, from those with respect to R and S.

    Parameters
    ----------
    A, B : array
        As for `from_four_blocks`.
    grads : mapping
        With the keys "R" and "S", as a pullback of the head returns it.

    Returns
    -------
    dict
        With the keys "A" and "B".

    Raises
    ------
    InputError
        As `from_four_blocks`.

    Examples
    --------
    >>> import numpy as np
    >>> A, B = np.zeros((1, 8, 8)), np.ones((1, 5, 8))
    >>> grads = {"R": np.ones((1, 2, 6)), "S": np.ones((1, 5, 6))}
    >>> found = pull_four_blocks(A, B, grads)
    >>> found["A"].shape, found["B"].shape
    ((1, 8, 8), (1, 5, 8))
    """
    xp, E = namespace(A), _inverse(A, B)
    width, h = E.shape[-1], A.shape[-1] - E.shape[-1]
    Et, own = xp.matrix_transpose(E), from_four_blocks(A, B)
    G_N = sum(xp.matrix_transpose(own[key]) @ grads[key] for key in ("R", "S")) @ Et
    G_A = xp.concat([G_N, grads["R"] @ Et], axis=1)
    return {
        "A": xp.concat([G_A, xp.zeros((*G_A.shape[:2], h), dtype=G_A.dtype)], axis=-1),
        "B": xp.concat([grads["S"] @ Et, xp.zeros_like(B[..., width:])], axis=-1),
    }


def to_four_blocks(params: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return ``(A, B)`` with A_NN = 0.

    A four-block head with the same outputs as R (or ``L M``) and S.

    Parameters
    ----------
    params : mapping
        Those of an `ImplicitAttentionHead`.

    Returns
    -------
    A : array, shape (H, 4h, 4h)
    B : array, shape (H, e, 4h)

    Raises
    ------
    InputError
        If the heads are coupled; the four-block form has none that hear each other.

    Examples
    --------
    >>> from pyidl import ImplicitAttentionHead
    >>> A, B = to_four_blocks(ImplicitAttentionHead(5, 2, block_size=8, rng=0).params)
    >>> A.shape, B.shape
    ((1, 8, 8), (1, 5, 8))
    """
    S = params["S"]
    xp, (H, _, width) = namespace(S), S.shape
    R, h = params["R"] if "R" in params else params["L"] @ params["M"], width // 3
    if R.shape[1] != h:
        raise InputError(
            f"R has shape {R.shape}, so each head hears {R.shape[1]} outputs; the four-block form "
            f"needs {h}, coupled=False"
        )
    A = xp.concat([xp.zeros((H, width, width), dtype=S.dtype), R], axis=1)
    return tuple(
        xp.concat([a, xp.zeros((*a.shape[:2], h), dtype=S.dtype)], axis=-1) for a in (A, S)
    )


def _inverse(A: Any, B: Any) -> Any:
    """``(I - A_NN)^{-1}`` of every head."""
    if (
        A.ndim != 3
        or B.ndim != 3
        or A.shape[1] != A.shape[2]
        or A.shape[2] % 4
        or B.shape[0] != A.shape[0]
        or B.shape[2] != A.shape[2]
    ):
        raise InputError(
            f"A has shape {A.shape} and B {B.shape}; the four-block form has (H, 4h, 4h) and "
            "(H, e, 4h)"
        )
    xp, width = namespace(A, B), 3 * (A.shape[2] // 4)
    M = xp.eye(width, dtype=A.dtype) - A[:, :width, :width]
    try:
        E = xp.linalg.inv(M)
    except np.linalg.LinAlgError:
        # NumPy raises; CuPy says nothing, and leaves anything in the place of the
        # inverse.
        E = xp.full_like(M, xp.nan)
    if not bool(xp.max(xp.abs(M @ E - xp.eye(width, dtype=A.dtype))) < 0.5):
        raise InputError(
            "I - A_NN is singular for some head, so that K, Q and V do not follow from the "
            "outputs; change A"
        )
    return E
