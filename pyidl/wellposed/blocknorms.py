r"""The matrix of block norms: how far block j of the state can move block i.

Where phi acts on some components together (softmax, layer norm), it is Lipschitz in the
Euclidean norm of such a block, and of a single component elsewhere. With the state cut
into these blocks, I and J,

    |f(x)_I - f(x')_I|_2 <= g_I |sum_J A_IJ (x_J - x'_J)|_2
                         <= sum_J g_I |A_IJ|_2 |x_J - x'_J|_2 = (G N |x - x'|)_I,

``N_IJ = |A_IJ|_2``, G = diag(g). So whatever is proven with ``G N`` in place of
``diag(L) |A|`` holds for the vector of block norms. For a componentwise phi it is
``diag(L) |A|``.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2.3 ("BLIP" maps).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.typing import Array, Params
from pyidl.wellposed.base import expect_activation, lipschitz_rows, lowered, rowwise, size_of
from pyidl.wellposed.bounds import EPS, absolute, entries
from pyidl.wellposed.certificate import Norm
from pyidl.wellposed.eigenvalues import spectral_bound

__all__ = ["Gains", "acts_together", "gains", "scale_rows", "shrunk_rows"]


def acts_together(activation: Activation, n: int) -> tuple[tuple[int, int], ...]:
    """The blocks of two or more components on which phi acts as a whole."""
    expect_activation(activation)
    return tuple((start, stop) for start, stop in activation.vector_blocks(n) if stop - start > 1)


@dataclass(frozen=True)
class Gains:
    """``G N``, rounded up, with the blocks that its rows stand for."""

    matrix: np.ndarray
    starts: np.ndarray
    """The first component of every block."""
    sizes: np.ndarray
    vectors: tuple[tuple[int, int], ...]
    """Blocks of more than one component."""

    def norm(self, weights: np.ndarray | None = None) -> Norm:
        """``max_I |x_I|_2 / w_I``, w given for each block."""
        spread = None if weights is None else self.spread(weights)
        return Norm("largest entry", spread, self.vectors)

    def spread(self, per_block: np.ndarray) -> np.ndarray:
        """A number for each component from one for each block."""
        return np.repeat(per_block, self.sizes)


def gains(params: Params, activation: Activation) -> Gains:
    """``diag(L) |A|``, or ``G N`` where phi has blocks.

    The Lipschitz constants are taken as 1 where they are not known.
    """
    n, up = size_of(params), 1.0 + 2 * EPS
    lipschitz, vectors = lipschitz_rows(activation, n), acts_together(activation, n)
    if not vectors:
        with np.errstate(over="ignore"):
            matrix = lipschitz[:, None] * absolute(params) * up
        return Gains(matrix, np.arange(n), np.ones(n, int), ())
    inside = np.zeros(n, bool)
    for start, stop in vectors:
        inside[start + 1 : stop] = True
    starts = np.flatnonzero(~inside)
    sizes = np.diff(starts, append=n)
    A, error = entries(params)
    # |A_IJ|_2 is that of the computed block, and at most |error_IJ|_F more; row and
    # column norms first, then blocks with blocks.
    with np.errstate(over="ignore"):
        total = np.abs(A) + error
        squares = np.add.reduceat(np.add.reduceat(total * total, starts, axis=0), starts, axis=1)
    norms = squares**0.5 * (1.0 + 4 * n * EPS)
    blocks = {i: slice(starts[i], starts[i] + sizes[i]) for i in np.flatnonzero(sizes > 1)}
    for (i, rows), (j, columns) in itertools.product(blocks.items(), blocks.items()):
        rest = 0.0 if isinstance(error, float) else float(np.linalg.norm(error[rows, columns]))
        sharper = (spectral_bound(A[rows, columns]) + rest) * (1.0 + 4 * EPS)
        norms[i, j] = min(norms[i, j], sharper)
    return Gains(lipschitz[starts][:, None] * norms * up, starts, sizes, vectors)


def scale_rows(params: Params, shrink: np.ndarray) -> dict[str, Array]:
    """A with its rows multiplied by these numbers: A itself, or the rows of L.

    Rows with a 1 stay bit for bit.
    """
    key = "A" if "A" in params else "L"
    P = params[key]
    xp = namespace(P)
    by = backend.astype(xp, backend.from_host(xp, np.ascontiguousarray(shrink)), P.dtype)
    return {**params, key: P * by[:, None]}


def shrunk_rows(
    params: Params, outside: np.ndarray, shrink: np.ndarray, inside: Callable[[Params], bool]
) -> dict[str, Array]:
    """A with its rows that are outside shrunk, and a little more against rounding."""
    A = rowwise(params)
    room = 4 * float(namespace(A).finfo(A.dtype).eps)
    return lowered(lambda t: scale_rows(params, np.where(outside, t * shrink, 1.0)), inside, room)
