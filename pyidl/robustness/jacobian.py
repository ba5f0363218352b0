r"""Jacobians of outputs by inputs, sample by sample.

By rows, with the pullback: ``dY = e_k`` in all samples gives row k, for any layer in
which samples do not interact. By columns, with tangents: where x = phi(A x + B u + b),

    x' = S (A x' + B e_j),    y' = C x' + D e_j,    S = phi'(A x + B u + b),

an equation like that of the adjoint, with A in the place of A^T. There are q rows and p
columns: the fewer are computed.
"""

from __future__ import annotations

from typing import Any

from pyidl.arrays.backend import namespace
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel, Layer
from pyidl.layers.implicit import ImplicitPullback
from pyidl.solvers.image import Times
from pyidl.solvers.problem import Affine, sizes
from pyidl.solvers.solution import settle
from pyidl.typing import Array

__all__ = ["jacobian"]


def jacobian(model: Layer, U: Array) -> Any:
    """Return ``dY / dU`` of every sample, exact up to the tolerance of the solves.

    It takes as many linear solves, for all samples at once, as the model has outputs
    or, for an `ImplicitModel` with a componentwise activation, inputs if they are
    fewer.

    Parameters
    ----------
    model : Layer
        With inputs (m, p) and outputs (m, q), one sample a row.
    U : array, shape (m, p)
        Inputs.

    Returns
    -------
    array, shape (m, q, p)
        In the model's library and dtype.

    Raises
    ------
    InputError
        If the input or the output of a sample is no vector.
    ConvergenceError, GradientConvergenceError
        If a solve fails.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import Linear, robustness
    >>> layer = Linear(3, 2, rng=0)
    >>> J = robustness.jacobian(layer, np.ones((5, 3)))
    >>> J.shape, bool(np.all(J == layer.params["W"]))
    ((5, 2, 3), True)
    """
    expect("model", model, Layer, "a Jacobian is that of a Layer")
    Y, pull = model(U)
    xp, shape = namespace(Y), tuple(getattr(U, "shape", ()))
    if len(shape) != 2 or Y.ndim != 2:
        raise InputError(
            f"U has shape {shape} and the output {Y.shape}; a Jacobian needs inputs (m, p) "
            "and outputs (m, q), one sample a row"
        )
    m, p, q = *shape, Y.shape[1]

    def unit(width: int, k: int) -> Any:
        """A row of the unit matrix for every sample."""
        return xp.zeros((m, width), dtype=Y.dtype) + xp.eye(width, dtype=Y.dtype)[k, :]

    if p < q and isinstance(model, ImplicitModel) and isinstance(pull, ImplicitPullback):
        phi, found = model.activation, pull.forward
        if not phi.vector_blocks(found.value.shape[1]):
            S, maps = phi.dphi(found.pre), pull.maps

            def column(e: Any) -> Any:
                z = maps["B"].rows(e)
                problem = Affine(maps["A"], z, Times(S), sizes(z, S))
                moved = settle(pull.equilibrium.adjoint(problem), "raise", adjoint=True)
                y = maps["C"].rows(moved.value)
                return y + maps["D"].rows(e) if "D" in maps else y

            return xp.stack([column(unit(p, j)) for j in range(p)], axis=2)
    rows = [pull(unit(q, k))[0] for k in range(q)]
    if rows[0] is None:
        raise InputError("U are tokens, which have no derivative; use what is behind the embedding")
    return xp.stack(rows, axis=1)
