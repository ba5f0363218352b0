r"""How an error travels through a recurrence, entry by entry.

Let ``|phi_i(a) - phi_i(b)| <= L_i |a - b|``, and let P = diag(L) |A| have a spectral
radius below 1. Run the recurrence twice: once exactly, once so that the solve of step t
ends with a residual of at most rho_t in every entry. The states satisfy

    |dX_t| <= P |dX_t| + diag(L) |B_h| |dH_{t-1}| + rho_t

entry by entry, and so, since (I - P)^{-1} is nonnegative,

    |dX_t| <= (I - P)^{-1} (diag(L) |B_h| |dH_{t-1}| + rho_t).

With ``dH_t = C dX_t + D_h dH_{t-1}`` this gives

    |dH_t| <= M |dH_{t-1}| + c rho_t,
    M = |C| (I - P)^{-1} diag(L) |B_h| + |D_h|,    c = |C| (I - P)^{-1} 1.

Unrolled, ``|dH_T| <= M^T |dH_0| + sum_t M^{T-t} c rho_t``. With row sums in place of
the entries this is the well-known ``|dH_t| <= (|C| k_B / (1 - kappa) + |D_h|)
|dH_{t-1}| + |C| rho / (1 - kappa)``, which is never smaller. The adjoint carries
cotangents back by matrices that M^T bounds, so M also says how much of a gradient can
survive k steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError
from pyidl.recurrent.step import Step
from pyidl.typing import Array
from pyidl.wellposed.certificate import Certificate

__all__ = ["Recurrence"]

ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True, repr=False, eq=False)
class Recurrence:
    """A bound on how errors travel through an `ImplicitRNN`, whatever its inputs.

    It holds for the parameters of the moment at which it was asked for.

    Attributes
    ----------
    step : Certificate
        That of the fixed point of a step.
    proven : bool
        Whether there is a bound.
    reason : str
        What it rests on or, where there is none, why.
    M : numpy.ndarray, shape (r, r)
        ``|dH_t| <= M |dH_{t-1}|``, entry by entry.
    c : numpy.ndarray, shape (r,)
        ``|dH_t| <= c`` for a residual of 1 in the solve of step t.
    E : numpy.ndarray, shape (q, r)
        ``|dY| <= E |dH|``.

    Examples
    --------
    >>> from pyidl import ImplicitRNN
    >>> bound = ImplicitRNN(1, 1, 4, 6, rng=0).recurrence()
    >>> bool(bound.proven and bound.amplification(10) <= bound.amplification(11))
    True
    """

    step: Certificate
    proven: bool
    reason: str
    M: np.ndarray
    c: np.ndarray
    E: np.ndarray

    @classmethod
    def of(cls, certificate: Certificate, step: Step) -> Recurrence:
        """From the parameters, in float64 on the host, rounded up."""
        n, r = step.width
        E = np.abs(_host(step.E))
        lipschitz = step.activation.row_lipschitz(n)
        unknown = np.full((r, r), np.inf), np.full(r, np.inf), E
        if lipschitz is None:
            reason = (
                f"the Lipschitz constant of the activation {step.activation.name!r} is not known"
            )
            return cls(certificate, False, reason, *unknown)
        L = np.asarray(lipschitz)[:, None]
        P = L * np.abs(_host(step.A.dense()))
        columns = np.concatenate([L * np.abs(_host(step.bh.A)), np.ones((n, 1))], axis=1)
        solved = _bounded(P, columns)
        if solved is None:
            reason = (
                "the entries of A are too large: diag(L) |A| is not seen to have a spectral "
                "radius below 1; lower kappa, or project"
            )
            return cls(certificate, False, reason, *unknown)
        both = np.abs(_host(step.C.dense())) @ solved
        M = both[:, :-1] + (0.0 if step.dh is None else np.abs(_host(step.dh.A)))
        up = 1.0 + (n + r) * ROUNDING
        return cls(
            certificate, True, f"spectral radius of M {_radius(M):.4g}", M * up, both[:, -1] * up, E
        )

    @property
    def rate(self) -> float:
        """Spectral radius of M.

        Below 1, errors of the past are forgotten at this rate, and `amplification`
        stays bounded.
        """
        return _radius(self.M) if self.proven else np.inf

    def errors(self, residuals: Any, h0: float = 0.0) -> np.ndarray:
        """A bound on ``max|dY_t|`` after each step.

        Parameters
        ----------
        residuals : array, shape (..., T)
            The largest residual of the solve of every step, at the returned point.
        h0 : float
            The largest error of an entry of H_0.

        Returns
        -------
        numpy.ndarray, shape (..., T)
            inf where nothing is proven.

        Raises
        ------
        InputError
            If a residual is negative or not a number.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> ImplicitRNN(1, 1, 4, 6, rng=0).recurrence().errors([0.0, 1e-6, 0.0]).shape
        (3,)
        """
        rho = to_numpy(residuals).astype(np.float64)
        if rho.ndim == 0 or rho.shape[-1] == 0 or not np.all(rho >= 0):
            raise InputError("residuals are one number >= 0 for every step, (..., T) with T >= 1")
        if not self.proven:
            return np.full(rho.shape, np.inf)
        d = np.full((*rho.shape[:-1], len(self.c)), float(h0))
        found = np.empty(rho.shape)
        with np.errstate(over="ignore"):
            for t in range(rho.shape[-1]):
                d = np.minimum(d @ self.M.T + self.c * rho[..., t, None], np.finfo(np.float64).max)
                up = 1.0 + (2 * len(self.c) + t) * ROUNDING
                found[..., t] = (d @ self.E.T).max(axis=-1) * up
        return found

    def amplification(self, T: int) -> float:
        """The largest error of an entry of Y_T, for residuals of at most 1.

        Parameters
        ----------
        T : int
            The number of steps.

        Returns
        -------
        float
            inf where nothing is proven.
        """
        return float(self.errors(np.ones(_steps(T)))[-1])

    def memory(self, k: int) -> float:
        """The largest row sum of M^k.

        After k steps, at most this is left of a change of H by 1, or of a cotangent of
        size 1. (Changes are measured by their largest entry, cotangents by the sum of
        their absolute entries, which is the dual norm.)

        Parameters
        ----------
        k : int
            The number of steps.

        Returns
        -------
        float
            inf where nothing is proven.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> bound = ImplicitRNN(1, 1, 4, 6, rng=0).recurrence()
        >>> bool(bound.memory(3) <= 1.001 * bound.memory(1) ** 3)
        True
        """
        if not self.proven:
            return np.inf
        with np.errstate(over="ignore"):
            power: np.ndarray = np.linalg.matrix_power(self.M, _steps(k))
        return float(power.sum(axis=1).max())

    def tolerance(self, error: float, T: int, size: float = 1.0) -> float:
        """The tol of the forward solves that keeps Y_1, ..., Y_T within `error`.

        A solve with tolerance tol ends with a residual of at most ``tol (1 + max|x|)``.
        (What the dtype cannot resolve, no tolerance brings.)

        Parameters
        ----------
        error : float
            By how much no entry of an output may be wrong.
        T : int
            The number of steps.
        size : float
            The largest state that is expected.

        Returns
        -------
        float

        Raises
        ------
        InputError
            If a number is out of range, or nothing is proven.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> network = ImplicitRNN(1, 1, 4, 6, rng=0)
        >>> tol = network.recurrence().tolerance(1e-3, T=10)
        >>> bool(0 < network.with_tol(tol).forward.tol < 1e-3)
        True
        """
        if not (error > 0 and size >= 0):
            raise InputError(f"tolerance needs error > 0 and size >= 0, got {error} and {size}")
        if not self.proven:
            raise InputError(f"no tolerance is proven: {self.reason}")
        return float(error / (self.errors(np.ones(_steps(T))).max() * (1.0 + size)))

    def __repr__(self) -> str:
        if not self.proven:
            return f"no bound for the recurrence: {self.reason}"
        verdict = "are forgotten" if self.rate < 1 else "may grow with the number of steps"
        return (
            "the error of a solve, of residual 1, moves Y by at most "
            f"{float((self.E @ self.c).max()):.4g}; "
            f"errors {verdict} ({self.reason})"
        )


def _bounded(P: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """An upper bound of ``(I - P)^{-1} columns`` for nonnegative P and columns.

    None if the spectral radius of P is not seen to be below 1. If ``w - P w >= s > 0``
    for a positive w, the radius is below 1 (Collatz, Wielandt). What a solution in
    floating point lacks, d, is made up for by a multiple of w: ``(I - P)(z + max(d / s)
    w) >= columns``.
    """
    n = len(P)
    try:
        z = np.linalg.solve(np.eye(n) - P, np.concatenate([np.ones((n, 1)), columns], axis=1))
    except np.linalg.LinAlgError:
        return None
    w, z = z[:, :1], z[:, 1:]
    slack = (w - P @ w) - n * ROUNDING * (w + P @ w)
    if not (np.all(np.isfinite(z)) and np.all(w > 0) and np.all(slack > 0)):
        return None
    z = np.maximum(z, 0.0)
    lacking = columns - (z - P @ z) + n * ROUNDING * (z + P @ z + columns)
    bound: np.ndarray = z + np.maximum(lacking / slack, 0.0).max(axis=0) * w
    return bound


def _radius(M: np.ndarray) -> float:
    """The spectral radius; inf for an M that has overflowed."""
    if not np.all(np.isfinite(M)):
        return np.inf
    return float(np.abs(np.linalg.eigvals(M)).max())


def _steps(T: int) -> int:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise InputError(f"the number of steps is {T!r}; it must be a positive integer")
    return int(T)


def _host(a: Array) -> np.ndarray:
    return to_numpy(a).astype(np.float64)
