r"""Partly feed-forward: A is block upper triangular, with conditions on the diagonal.

    x_I = phi(A_II x_I + (sum over J > I of A_IJ x_J) + z_I),    I from last to first.

Each is an equation for x_I alone once the later blocks are known. If every diagonal
block is well-posed, so is A; what lies above the diagonal blocks may be of any size.
Only the error feels it. Let ``M_I |e_I| <= |r_I|`` entry by entry for block I alone.
The residual that block I would have if the others were exact differs from r_I by at
most ``L |A_IJ| |e_J|``, hence

    M_I |e_I| - sum_{J > I} diag(L) |A_IJ| |e_J| <= |r_I|,

a comparison matrix of the whole. (Row i of M_I may have been divided by a number d_i >=
1, as the matrix measure does; the inequality then holds a fortiori.) Where a block has
an error bound in the Euclidean norm only, ``m_I |e_I|_2 <= |r_I|_2``, the same holds
for block norms.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, SIAM J. Math. Data Sci. 3(3), 2021,
section 2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import namespace, to_numpy
from pyidl.errors import InputError
from pyidl.typing import Array, Params
from pyidl.wellposed.base import Constraint, lipschitz_rows, unproven
from pyidl.wellposed.blocknorms import gains
from pyidl.wellposed.bounds import EPS
from pyidl.wellposed.certificate import Certificate, Norm
from pyidl.wellposed.comparison import lower, positive_solution
from pyidl.wellposed.eigenvalues import spectral_bound
from pyidl.wellposed.triangular import full_matrix

__all__ = ["BlockTriangular", "innermost"]


@dataclass(frozen=True)
class BlockTriangular(Constraint):
    """The set of block upper triangular A with diagonal blocks in a set of their own.

    `project` sets what lies below to zero and projects the diagonal blocks: the nearest
    point where that of `inner` is. Blocks follow the order of the state, and the
    papers' order of a network: the last layer first.

    Parameters
    ----------
    blocks : tuple of int
        Sizes, of sum n. Where the activation acts on several components together, these
        lie in one block.
    inner : Constraint or tuple of Constraint
        For each diagonal block with the activation of its components: one for all, or
        one for each.

    Raises
    ------
    InputError
        If a size is not positive, or `inner` is no constraint, nor one for each block.

    Examples
    --------
    >>> from pyidl import activations
    >>> from pyidl.wellposed import InfNorm
    >>> two = BlockTriangular((1, 1), InfNorm(0.5))
    >>> two.project({"A": np.ones((2, 2))}, activations.relu)["A"].round(6)
    array([[0.5, 1. ],
           [0. , 0.5]])
    >>> each = BlockTriangular((1, 1), (InfNorm(0.5), InfNorm(0.25)))
    >>> each.project({"A": np.ones((2, 2))}, activations.relu)["A"].round(6)
    array([[0.5 , 1.  ],
           [0.  , 0.25]])
    """

    blocks: tuple[int, ...]
    inner: Constraint | tuple[Constraint, ...]

    def __post_init__(self) -> None:
        try:
            sizes = tuple(int(size) for size in self.blocks)
        except (TypeError, ValueError):
            sizes = ()
        if not sizes or min(sizes) < 1 or sizes != tuple(self.blocks):
            raise InputError(
                f"blocks is {self.blocks!r}; use the sizes of the blocks, positive integers"
            )
        object.__setattr__(self, "blocks", sizes)
        each = self._each() if isinstance(self.inner, (Constraint, tuple)) else ()
        if len(each) != len(sizes) or not all(isinstance(one, Constraint) for one in each):
            raise InputError(
                f"inner is {self.inner!r}; use one of pyidl.wellposed, such as InfNorm(0.99), or "
                f"a tuple of {len(sizes)}, one for each block"
            )
        object.__setattr__(self, "contracts", all(one.contracts for one in each))
        object.__setattr__(self, "keeps_zeros", all(one.keeps_zeros for one in each))

    def _each(self) -> tuple[Constraint, ...]:
        """The set of every block."""
        return self.inner if isinstance(self.inner, tuple) else (self.inner,) * len(self.blocks)

    def _pieces(self) -> list[slice]:
        ends = np.cumsum([0, *self.blocks])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]

    def _parts(self, activation: Activation) -> list[tuple[slice, Activation, Constraint]]:
        """Of every block: where it stands, its activation, its set."""
        one = len(self.blocks) == 1
        pieces = self._pieces()
        phis = [activation if one else activation.columns(piece) for piece in pieces]
        return list(zip(pieces, phis, self._each(), strict=True))

    def _matrix(self, params: Params) -> Array:
        A = full_matrix(params, "BlockTriangular")
        if sum(self.blocks) != A.shape[0]:
            raise InputError(
                f"the blocks {self.blocks} have {sum(self.blocks)} components together, the state "
                f"has {A.shape[0]}"
            )
        return A

    def _below(self, A: Array) -> bool:
        """Whether anything below the diagonal blocks differs from zero."""
        xp = namespace(A)
        return any(
            bool(xp.any(A[piece, : piece.start] != 0)) for piece in self._pieces() if piece.start
        )

    def refusal(self, activation: Activation) -> str:
        """What the inner set refuses in a block, or a block that cuts a vector."""
        try:
            refusals = [inner.refusal(part) for _, part, inner in self._parts(activation)]
        except (InputError, IndexError) as error:
            return f"the blocks {self.blocks} do not fit it: {error}"
        return next((refused for refused in refusals if refused), "")

    def project(self, params: Params, activation: Activation) -> dict[str, Array]:
        """Zeros below, and every diagonal block projected."""
        A = self._matrix(params)
        xp, n = namespace(A), A.shape[0]
        rows, same = [], not self._below(A)
        for piece, part, inner in self._parts(activation):
            before = A[piece, piece]
            block = inner.project({"A": before}, part)["A"]
            same = same and block is before
            zeros = xp.zeros((block.shape[0], piece.start), dtype=A.dtype)
            rows.append(xp.concat([zeros, block, A[piece, piece.stop : n]], axis=1))
        return dict(params) if same else {**params, "A": xp.concat(rows, axis=0)}

    def contains(self, params: Params, activation: Activation) -> bool:
        """Whether there are zeros below, and every diagonal block lies in its set."""
        A = self._matrix(params)
        return not self._below(A) and all(
            inner.contains({"A": A[piece, piece]}, part)
            for piece, part, inner in self._parts(activation)
        )

    def certificate(self, params: Params, activation: Activation) -> Certificate:
        """Proven if every block is.

        The factor is the largest of theirs, for the iteration inside a block.
        """
        if "A" not in params:
            return unproven("the zeros of A decide, which factors A = L R^T do not show")
        A, refused = self._matrix(params), self.refusal(activation)
        if refused:
            return unproven(refused)
        if self._below(A):
            return unproven(f"A is not block upper triangular with the blocks {self.blocks}")
        found = [
            inner.certificate({"A": A[piece, piece]}, part)
            for piece, part, inner in self._parts(activation)
        ]
        for i, inside in enumerate(found):
            if not inside.proven:
                return unproven(
                    f"A is block triangular, but its diagonal block {i} is not certified: "
                    f"{inside.reason}"
                )
        worst = max(found, key=lambda c: c.contraction)
        reason = (
            f"A is block triangular with {len(found)} blocks, solved one after the other; the "
            f"slowest: {worst.reason}"
        )
        norm, margin, M = self._error(to_numpy(A).astype(np.float64), activation, found)
        by = "Substitution" if worst.contraction == 0 else f"{worst.applies_to} within a block"
        constant = max(c.constant for c in found)
        return Certificate(True, worst.contraction, norm, by, reason, margin, M, constant)

    def _error(
        self, A: np.ndarray, activation: Activation, found: list[Certificate]
    ) -> tuple[Norm, float, np.ndarray | None]:
        """The norm, the margin and, if all blocks have one, the comparison matrix."""
        if activation.row_lipschitz(len(A)) is None:
            return Norm(), 0.0, None
        pieces, lipschitz = self._pieces(), lipschitz_rows(activation, len(A))
        if all(c.comparison is not None or _plain(c) for c in found):
            coupling = gains({"A": A}, activation).matrix
            M = -coupling
            for piece, c in zip(pieces, found, strict=True):
                own = c.comparison
                if own is None:
                    own = lower(np.eye(piece.stop - piece.start) - coupling[piece, piece])
                M[piece, piece] = own
            s, margin = positive_solution(M)
            return Norm(weights=s), margin, M
        if not all(c.norm.kind == "Euclidean" and c.norm.weights is None for c in found):
            return Norm(), 0.0, None  # no common norm: honestly nothing
        M = np.diag([c.margin for c in found])
        for (i, rows), (j, columns) in itertools.combinations(enumerate(pieces), 2):
            norm = spectral_bound(A[rows, columns])
            M[i, j] = -float(np.max(lipschitz[rows])) * norm * (1.0 + 4 * EPS)
        s, margin = positive_solution(M)
        ends = tuple((p.start, p.stop) for p in pieces)
        return Norm("largest entry", np.repeat(s, self.blocks), ends), margin, None


def _plain(c: Certificate) -> bool:
    """Whether row sums certify a block: then ``I - diag(L) |A|`` compares entries."""
    return c.norm.kind == "largest entry" and not c.norm.blocks and c.applies_to == "Picard"


def innermost(constraint: Constraint) -> tuple[Constraint, ...]:
    """The sets of the smallest blocks; a set without blocks is its own."""
    if not isinstance(constraint, BlockTriangular):
        return (constraint,)
    return tuple(leaf for inner in constraint._each() for leaf in innermost(inner))
