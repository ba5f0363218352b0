r"""What is proven of a wiring from its parts: gains, and the rate of Picard.

**Gain.** For a certified part with ``P = diag(L) |A|``, two inputs and their states
obey ``|dx| <= P |dx| + diag(L) |B| |du|``, and ``(I - P)^{-1} >= 0``, so that

    |dy| <= Gamma |du|,    Gamma = |C| (I - P)^{-1} diag(L) |B| + |D|.

Another condition may certify the part where pf(P) >= 1. The state of the old input has,
for the new one, a residual of at most ``diag(L) |B| |du|``, and every certificate turns
residuals into distances. Inputs are changed one at a time; distances add up.

**Small gain.** Let Gamma be the block diagonal matrix of the parts' gains. In ``w = K y
+ E u + k`` changes obey ``|dy| <= Gamma (|K| |dy| + |E| |du|)``. If ``pf(Gamma |K|) <
1``, hence

    |dy| <= (I - Gamma |K|)^{-1} Gamma |E| |du|.

Then the loop is well-posed: what the parts answer to ``K y + E u + k`` contracts in y,
in a weighted norm. With the gains of P it says the same as the states do: with the
joints kept, their comparison matrix is ``I - [[P, L|B||K|], [|C|, |D||K|]]``, a
nonsingular M-matrix if and only if its corner I - P is one and the Schur complement ``I
- |D||K| - |C| (I - P)^{-1} L|B||K| = I - Gamma |K|`` is. A matrix of the size of all
outputs decides, not of all states.

**Weights of a chain.** Let ``P_I s_I <= kappa_I s_I`` for the diagonal blocks of a
block triangular P, and kappa above all kappa_I. What is solved earlier is shrunk by

    eps = (kappa - kappa_I) min_i (s_I)_i / (sum_{J > I} P_IJ s_J)_i,

block by block. Then ``P s <= kappa s``: rows of I give ``kappa_I + (kappa - kappa_I)``.
So Picard contracts by kappa in the norm ``max_i |x_i| / s_i``, however large the
couplings are. eps is rounded down to a power of two, by which scaling is exact.

Source: small gain is classical (Desoer, Vidyasagar, "Feedback systems: input-output
properties", 1975, chapter 3); entry by entry, and the weights, derived here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import to_numpy
from pyidl.certify.enclosure import up
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import components
from pyidl.typing import Params
from pyidl.wellposed import Certificate, Norm, PerronFrobenius
from pyidl.wellposed.base import known_lipschitz, unproven
from pyidl.wellposed.blocknorms import gains
from pyidl.wellposed.comparison import lower
from pyidl.wellposed.perronfrobenius import factor_of, positive_scaling

__all__ = ["chain_certificate", "closed_gain", "gain_of", "plus", "times"]

SHARE = 0.125
"""Of what is left between the slowest block's factor and 1, given to the couplings."""


def times(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """``P Q`` of nonnegative matrices, rounded up; what no term feeds is 0."""
    fed = (P != 0).astype(np.float32) @ (Q != 0).astype(np.float32) > 0
    return np.where(fed, up(P @ Q, P.shape[1]), 0.0)


def plus(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """``P + Q`` of nonnegative matrices, rounded up; 0 stays 0."""
    return np.where((P > 0) | (Q > 0), up(P + Q, 1), 0.0)


def gain_of(model: ImplicitModel, name: str) -> np.ndarray:
    """Gamma of one part, rounded up."""
    params, phi, n = model.params, model.activation, model.hidden_dim
    host = {key: np.abs(to_numpy(params[key]).astype(np.float64)) for key in "BCD" if key in params}
    proofs = [PerronFrobenius().certificate(params, phi), model.certificate()]
    lipschitz = np.asarray(known_lipschitz(phi, n) or [math.inf] * n)[:, None]
    for start, stop in phi.vector_blocks(n):  # Lipschitz in the norm of the block
        host["B"][start:stop] = up(np.linalg.norm(host["B"][start:stop], axis=0), stop - start)
    with np.errstate(invalid="ignore"):
        moved = np.where(host["B"] > 0, up(lipschitz * host["B"], 1), 0.0)
        X = np.minimum(*(proof.entrywise(moved.T).T for proof in proofs))
    if not np.all(np.isfinite(X)):
        raise InputError(
            f"{name} has no gain that is known, since it is {proofs[1].in_a_line()}; project it "
            "into its set, or take another constraint"
        )
    gamma = times(host["C"], X)
    return plus(gamma, host["D"]) if "D" in host else gamma


def closed_gain(G: np.ndarray, K: np.ndarray, E: np.ndarray) -> np.ndarray:
    """``(I - G |K|)^{-1} G |E|``, rounded up, for the gains G of the parts.

    By substitution along ``G |K|``: only its loops need a proof.
    """
    N, X = times(G, np.abs(K)), times(G, np.abs(E))
    label, depth, cyclic = components(N > 0)
    for c in np.argsort(depth, kind="stable"):
        own = np.flatnonzero(label == c)
        X[own] = plus(X[own], times(np.where(label == c, 0.0, N[own]), X))
        if not cyclic[c]:
            continue
        loop = N[np.ix_(own, own)]
        s, radius = positive_scaling(loop)
        if not radius < 1:
            raise InputError(
                "the small gain theorem proves nothing here: pf(Gamma |K|) must be below 1, and "
                f"the best bound found is {radius:.4g}; take a weaker loop, or look at "
                "model().certificate(), which sees the signs"
            )
        M = lower(np.eye(len(own)) - loop)
        proof = Certificate(True, radius, Norm(weights=s), "the loop", "small gain", comparison=M)
        X[own] = proof.entrywise(X[own].T).T
    return X


def chain_certificate(params: Params, phi: Activation, sizes: Sequence[int]) -> Certificate:
    """Picard's factor for a block triangular A, in weights made block by block."""
    if known_lipschitz(phi, sum(sizes)) is None:
        return unproven(f"the Lipschitz constant of {phi.name} is not known")
    found = gains(params, phi)
    P, ends = found.matrix, np.searchsorted(found.starts, np.cumsum([0, *sizes]))
    pieces = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    scaled = [positive_scaling(P[piece, piece]) for piece in pieces]
    worst = max(c for _, c in scaled)
    s, kappa = np.zeros(len(P)), worst + SHARE * (1.0 - worst)
    for piece, (own, c) in reversed(list(zip(pieces, scaled, strict=True))):
        later = slice(piece.stop, None)
        with np.errstate(all="ignore"):
            eps = float(np.min((kappa - c) * own / (P[piece, later] @ s[later])))
        if eps < 1.0:
            s[later] *= 2.0 ** math.floor(math.log2(eps)) if eps > 0 else 0.0
        s[piece] = own
    factor = factor_of(P, s)
    if not factor < 1:
        return unproven(f"weights show no factor below 1; those of the blocks reach {worst:.4g}")
    chain = f"{len(sizes)} blocks, one after the other, contract by at most {worst:.4g} each, in "
    chain += "weights that shrink what is solved earlier"
    reason = chain if len(sizes) > 1 else f"one block contracts by {worst:.4g}, in weights"
    M = None if found.vectors else lower(np.eye(len(P)) - P)
    return Certificate(True, factor, found.norm(s), "Picard", reason, comparison=M)
