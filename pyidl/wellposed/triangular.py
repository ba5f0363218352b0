r"""Without feedback: A strictly upper triangular, of any size.

    A_ij = 0 for j <= i.

The last component depends on the input alone, the one before it on the last, and so on:
the equation is solved by substitution, and ``x = phi(A x + z)`` has exactly one
solution for every z and every phi. (The papers number the units of a network from its
last layer.) Any A whose graph has no cycles is of this kind after renumbering, and is
certified as well.

The error of an approximate solution: ``|x - x*| <= B |x - x*| + |f(x) - x|`` with B =
diag(L) |A|, and ``I - B`` has a nonnegative inverse, the finite sum of the powers of B.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, SIAM J. Math. Data Sci. 3(3), 2021,
section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace, to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, size_of, unproven
from pyidl.wellposed.blocknorms import acts_together, gains
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.comparison import lower, positive_solution

__all__ = ["StrictlyTriangular", "full_matrix"]


def full_matrix(params: Params, name: str) -> Array:
    """A, where a condition on its zeros needs it whole."""
    if "A" not in params:
        raise InputError(
            f"{name} is a condition on zeros of A, which factors A = L R^T do not show; use "
            "rank=None"
        )
    return params["A"]


def has_no_cycles(A: np.ndarray) -> bool:
    """Whether A is strictly triangular, after renumbering."""
    if np.any(np.diagonal(A)):
        return False
    if not (np.any(np.tril(A)) and np.any(np.triu(A))):
        return True
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    return bool(connected_components(csr_array(A != 0), connection="strong")[0] == len(A))


@dataclass(frozen=True)
class StrictlyTriangular(Constraint):
    """The set of strictly upper triangular A.

    `project` sets all other entries to zero, which gives the nearest point. The solver
    finds the zeros when the parameters are set, and substitutes: one pass, exact,
    forward and adjoint.

    Examples
    --------
    >>> from pyidl import activations
    >>> A = StrictlyTriangular().project({"A": np.ones((2, 2))}, activations.relu)["A"]
    >>> A
    array([[0., 1.],
           [0., 0.]])
    >>> StrictlyTriangular().certificate({"A": A}, activations.relu).reason
    'A has no cycles, so that substitution solves the equation in one pass'
    """

    def refusal(self, activation: Activation) -> str:
        """An activation of several components feeds back what a triangle does not."""
        if acts_together(activation, 2):
            return (
                "it acts on several components together, which then feed each other; use "
                "BlockTriangular with these blocks"
            )
        return ""

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Zeros on and below the diagonal."""
        A = full_matrix(params, "StrictlyTriangular")
        if self.contains(params, activation):
            return dict(params)
        return {**params, "A": namespace(A).triu(A, k=1)}

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether A is zero on and below the diagonal."""
        A = full_matrix(params, "StrictlyTriangular")
        xp = namespace(A)
        return not bool(xp.any(xp.tril(A) != 0))

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """Proven for every A without cycles.

        The margin is that of ``I - diag(L) |A|``, in a norm of its own.
        """
        if "A" not in params:
            return unproven("the zeros of A decide, which factors A = L R^T do not show")
        refused = self.refusal(activation)
        if refused:
            return unproven(refused)
        if not has_no_cycles(to_numpy(params["A"])):
            return unproven(
                "A has cycles: entries on both sides of the diagonal that feed each other, or on it"
            )
        name, n = "Substitution", size_of(params)
        reason = "A has no cycles, so that substitution solves the equation in one pass"
        if activation.row_lipschitz(n) is None:  # no error follows from the residual
            return Certificate(True, 0.0, Norm(), name, reason, margin=0.0)
        M = lower(np.eye(n) - gains(params, activation).matrix)
        s, margin = positive_solution(M)
        return Certificate(True, 0.0, Norm(weights=s), name, reason, margin, M)
