r"""What a least-squares fit needs to know of its data.

Counts, means, and sums of squares and products.

For inputs R (m, k) and targets T (m, l), one sample a row, with means r and t,

    G = sum_i (R_i - r)(R_i - r)^T,
    H = sum_i (T_i - t)(R_i - r)^T,
    square = sum_i (T_i - t)^2,

and ``sum_i |T_i - W R_i - c|^2`` is least for ``c = t - W r``, where it is ``square - 2
<W, H> + <W G, W>``, row by row. So the samples are not needed any more, and they may
come in chunks. For two chunks with means r and s of m and l samples, let ``d = s - r``.
About the joint mean ``r + d l / (m + l)`` the first chunk's sum grows by ``m (d l / (m
+ l))^2`` and the second's by ``l (d m / (m + l))^2``, together by ``d d^T m l / (m +
l)``: nothing is subtracted, so nothing cancels.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The
American Statistician 37(3), 1983.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import as_real, is_array, namespace
from pyidl.errors import InputError
from pyidl.typing import Array

__all__ = ["Moments"]

_whatever_overflows = np.errstate(over="ignore", invalid="ignore")
"""`RowProblem.of` looks at the sums, and refuses them by name."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred sums of inputs and targets.

    Float64, in the library of the data.

    Moments of disjoint data are added with ``+``.

    Parameters
    ----------
    count : int
        Number of samples m.
    mean : array, shape (k,)
        Mean of the inputs.
    target_mean : array, shape (l,)
        Mean of the targets.
    G : array, shape (k, k)
        Centred sums of products of the inputs.
    H : array, shape (l, k)
        Centred sums of products of targets and inputs.
    square : array, shape (l,)
        Centred sums of squares of the targets.

    Examples
    --------
    >>> import numpy as np
    >>> R, T = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])
    >>> whole = Moments.of(R[:1], T[:1]) + Moments.of(R[1:], T[1:])
    >>> whole.G, whole.H, whole.intercept(whole.H / whole.G)
    (array([[2.]]), array([[4.]]), array([1.]))
    """

    count: int
    mean: Array
    target_mean: Array
    G: Array
    H: Array
    square: Array

    @classmethod
    @_whatever_overflows
    def of(cls, inputs: Any, targets: Any) -> Moments:
        """The moments of one chunk.

        Parameters
        ----------
        inputs : array, shape (m, k)
            States and inputs of a network side by side, one sample a row, m >= 1.
        targets : array, shape (m, l)
            Pre-activations and outputs side by side.

        Raises
        ------
        InputError
            If the arrays have other shapes or no sample, or an entry is NaN or
            infinite.
        DeviceMismatchError
            If they belong to different libraries.
        """
        xp = namespace(next((a for a in (inputs, targets) if is_array(a)), inputs))
        R = as_real(inputs, name="inputs", xp=xp, dtype="float64")
        T = as_real(targets, name="targets", xp=xp, dtype="float64")
        if R.ndim != 2 or T.ndim != 2 or R.shape[0] != T.shape[0] or R.shape[0] == 0:
            raise InputError(
                f"inputs have shape {R.shape}, targets {T.shape}; give two matrices with one row "
                "for each of m >= 1 samples"
            )
        mean, target_mean = xp.mean(R, axis=0), xp.mean(T, axis=0)
        R, T = R - mean, T - target_mean
        return cls(R.shape[0], mean, target_mean, R.T @ R, T.T @ R, xp.sum(T * T, axis=0))

    @_whatever_overflows
    def __add__(self, other: Moments) -> Moments:
        """The moments of both together.

        Raises
        ------
        InputError
            If they have other numbers of inputs or targets.
        DeviceMismatchError
            If they belong to different libraries.
        """
        if not isinstance(other, Moments):
            return NotImplemented
        if self.H.shape != other.H.shape:
            raise InputError(
                f"moments of {self.H.shape} and {other.H.shape} targets and inputs cannot be "
                "added; collect the same columns"
            )
        namespace(self.G, other.G)  # refuses what lives in two places
        m, share = self.count + other.count, other.count / (self.count + other.count)
        d, e = other.mean - self.mean, other.target_mean - self.target_mean
        # m l / (m + l) times the products of the shifts.
        weight = self.count * share
        return Moments(
            m,
            self.mean + d * share,
            self.target_mean + e * share,
            self.G + other.G + (d[:, None] * d) * weight,
            self.H + other.H + (e[:, None] * d) * weight,
            self.square + other.square + e * e * weight,
        )

    @_whatever_overflows
    def uncentred(self) -> Moments:
        """The same sums about zero instead of the means, for a fit without intercept.

        The means count as zero then.
        """
        r, t, m = self.mean, self.target_mean, self.count
        return Moments(
            m,
            0.0 * r,
            0.0 * t,
            self.G + (r[:, None] * r) * m,
            self.H + (t[:, None] * r) * m,
            self.square + t * t * m,
        )

    def intercept(self, W: Array) -> Array:
        """The best intercepts for weights W of shape (l, k).

        ``c = t - W r``, shape (l,).
        """
        return self.target_mean - W @ self.mean  # type: ignore[no-any-return]
