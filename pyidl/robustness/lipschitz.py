r"""Lipschitz constants of a model, proven: ``|y(u) - y(u')| <= gamma |u - u'|``.

In the largest entry, gamma is the largest row sum of the sensitivity S, in the sum of
entries its largest column sum, in the Euclidean norm at most |S|_2. That counts
absolute values. The following counts angles. Let phi have slopes in [0, 1], v = x - x',
w = u - u', and Lam = diag(lam) > 0. As ``v = s (A v + B w)``,

    0 <= 2 <Lam (A v + B w - v), v>,        since s_i (1 - s_i) >= 0,

and if the symmetric matrix

    F = [[2 Lam - Lam A - A^T Lam,  -Lam B,   C^T],
         [.,                        gamma I,  D^T],
         [.,                        .,    gamma I]]

is positive, then |C v + D w| <= gamma |w|. *Proof.* With z = (v, w, -(C v + D w) /
gamma), ``0 <= z^T F z = <v, (2 Lam - Lam A - A^T Lam) v> - 2 <v, Lam B w> + gamma |w|^2
- |C v + D w|^2 / gamma``, and the first two terms are at most 0. It also implies
that there is exactly one solution, by the theorem of `pyidl.solvers.splitting` for
``Lam^{1/2} A Lam^{-1/2}``. With H, the block at the top left,

    gamma(Lam) = lambda_max(N^T H^{-1} N - [[0, D^T], [D, 0]]),    N = [-Lam B, C^T],

is the least gamma. With its eigenvector z = (z_u, z_y), where it is simple, and r =
H^{-1} N z, ``dgamma/dlam = -2 r * (B z_u + (I - A) r)``. For slopes in [0, L_i] take
A diag(L), C diag(L). H is positive for Lam = I if A is monotone; and for lam = w / s
if ``(I - A') s = 1, (I - A')^T w = 1`` have positive solutions, A' being A with
absolute values beside the diagonal.

Whatever lam was found, F is proven to be positive by a Cholesky factorisation.

Sources: Revay, Wang, Manchester, "Lipschitz bounded equilibrium networks", arXiv
2010.01732, 2020, for D = 0; Berman, Plemmons, "Nonnegative matrices in the mathematical
sciences", 1979, theorem 6.2.3, for w / s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyidl.activations.ranges import falls, gain
from pyidl.certify.forms import EPS
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel
from pyidl.robustness.sensitivity import sensitivity
from pyidl.robustness.states import States, exactly
from pyidl.wellposed.eigenvalues import is_below, spectral_bound

__all__ = ["Angles", "lipschitz"]

BLURS = (0.1, 0.03, 0.01, 0.003)
"""How far eigenvalues below the largest count, in shares of it, one after another."""

STEPS = 30
"""So many steps of descent over log lam for each of them."""


def lipschitz(model: ImplicitModel, norm: Literal["inf", 1, 2] = "inf") -> float:
    """An upper bound of the Lipschitz constant of a model: ``|dy| <= gamma |du|``.

    Parameters
    ----------
    model : ImplicitModel
        With any activation that has bounds.
    norm : {"inf", 1, 2}
        In which inputs and outputs are measured: the largest entry, the sum of
        absolute values, the Euclidean norm. The last takes about two
        hundred factorisations of an n by n matrix.

    Returns
    -------
    float
        Rounded up.

    Raises
    ------
    InputError
        If the model is no `ImplicitModel`, or nothing is proven in this norm: the first
        two need what `sensitivity` needs, the last one that, or a monotone A, or a
        small spectral norm.

    Notes
    -----
    Source: Revay, Wang, Manchester, "Lipschitz bounded equilibrium networks", arXiv
    2010.01732, 2020, for the Euclidean norm.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> J = robustness.jacobian(model, np.ones((1, 3)))[0]
    >>> bool(robustness.lipschitz(model, 2) >= np.linalg.norm(J, 2))
    True
    """
    expect("model", model, ImplicitModel, "Lipschitz constants are those of an ImplicitModel")
    if norm not in ("inf", 1, 2) or isinstance(norm, bool):
        raise InputError(f"norm is {norm!r}; use 'inf', 1 or 2")
    if norm != 2:
        sums = sensitivity(model).sum(axis=1 if norm == "inf" else 0)
        return float(np.max(sums)) * (1.0 + (model.input_dim + model.output_dim + 4) * EPS)
    found = min(_euclidean(model))
    if found < math.inf:
        return found
    raise InputError(
        "nothing bounds the outputs in the Euclidean norm; the model is "
        f"{model.certificate().in_a_line()}; project it to wellposed.Monotone, SpectralNorm, "
        "MatrixMeasure or InfNorm"
    )


def _euclidean(model: ImplicitModel) -> Iterator[float]:
    """All that is known."""
    states = States.of(model, exactly(model))
    if states.weights is not None:
        yield spectral_bound(sensitivity(model))
    L, p, n = model.activation.row_lipschitz(model.hidden_dim), states.params, model.hidden_dim
    if L is not None:  # |.|_2 <= |.|_F <= n^(1/2) |.|_2 of what is doubtful, and of roundings
        steep, more = np.asarray(L)[:, None], 1.0 + (n * n + 16) * EPS
        doubt = float(np.max(steep)) * float(np.linalg.norm(states.spread))
        gap = 1.0 - (spectral_bound(steep * states.A) + doubt) * more - EPS
        if gap > 0:
            through = spectral_bound(p["C"]) * spectral_bound(steep * p["B"]) / gap
            yield (through + spectral_bound(p.get("D", np.zeros((1, 1))))) * more
    if not falls(model.activation, n).any():
        yield Angles.of(states.A, states.spread, p, gain(states.phi, np.ones(n))).proven()
    yield math.inf


@dataclass(frozen=True)
class Angles:
    """A, B, C, D for slopes in [0, 1]; B and C scaled, so that neither is large.

    `off` bounds the error of A; gamma is divided by both scales.
    """

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    off: np.ndarray
    scale: tuple[float, float]

    @classmethod
    def of(cls, A: np.ndarray, spread: Any, p: dict[str, np.ndarray], L: np.ndarray) -> Angles:
        """For slopes in [0, L_i]. By powers of two nothing is rounded."""
        B, C = p["B"], p["C"] * L
        b, c = (math.ldexp(1.0, math.frexp(float(np.abs(W).max()))[1]) for W in (B, C))
        D = p.get("D", np.zeros((len(C), B.shape[1])))
        off = (EPS * np.abs(A) + spread) * L * (1.0 + 4 * EPS)
        return cls(A * L, B / b, C / c, D / b / c, off, (b, c))

    def eigen(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All eigenvalues, the largest last, their vectors z, and r of each."""
        H = -lam[:, None] * self.A
        H = H + H.T + np.diag(2.0 * lam)
        N, p = np.concatenate([-lam[:, None] * self.B, self.C.T], axis=1), self.B.shape[1]
        root = np.linalg.cholesky(H)
        half = np.linalg.solve(root, N)
        Q = half.T @ half
        Q[p:, :p] -= self.D
        Q[:p, p:] -= self.D.T
        values, Z = np.linalg.eigh(Q)
        return values, Z, np.linalg.solve(root.T, half @ Z)

    def least(self, lam: np.ndarray, t: float = 0.0) -> tuple[float, np.ndarray]:
        """``gamma(Lam)``, its derivative by log lam; infinite where H is not positive.

        With t > 0 all large eigenvalues count, ``g + t log sum_k exp((g_k - g) / t)``:
        that has a derivative also where the largest one is double.
        """
        try:
            values, Z, R = self.eigen(lam)
        except np.linalg.LinAlgError:
            return math.inf, lam
        g, flow = float(values[-1]), self.B @ Z[: self.B.shape[1]] + R - self.A @ R
        share = np.exp((values - g) / max(t, 1e-300))
        slope = -2.0 * lam * ((R * flow) @ share)
        return g + t * math.log(share.sum()), slope / share.sum()

    def starts(self) -> Iterator[np.ndarray]:
        """Lam for which H may be positive."""
        n = len(self.A)
        yield np.ones(n)
        K = np.eye(n) - np.where(np.eye(n) > 0, self.A, np.abs(self.A))
        try:
            lam = np.linalg.solve(K.T, np.ones(n)) / np.linalg.solve(K, np.ones(n))
        except np.linalg.LinAlgError:
            return
        if np.all((lam > 0) & np.isfinite(lam)):
            yield lam / np.exp(np.mean(np.log(lam)))

    def best(self) -> tuple[float, np.ndarray]:
        """One number t for each start, then descent over log lam from the best."""
        from scipy.optimize import minimize

        tried = [t * lam for lam in self.starts() for t in 2.0 ** np.arange(-12, 13)]
        first, lam = min(((self.least(lam)[0], lam) for lam in tried), key=lambda pair: pair[0])
        gamma, known = first, lam
        for blur in BLURS if first < math.inf else ():

            def price(log: np.ndarray, t: float = blur * first) -> tuple[float, np.ndarray]:
                value, slope = self.least(np.exp(log), t)
                return min(value, 1e3 * first), slope  # the search turns back

            log = minimize(
                price, np.log(lam), jac=True, method="L-BFGS-B", options={"maxiter": STEPS}
            ).x
            lam = np.exp(log)
            if self.least(lam)[0] < gamma:
                gamma, known = self.least(lam)[0], lam
        return gamma, known

    def proven(self) -> float:
        """The gamma that is proven, hardly above the best; infinite without one."""
        with np.errstate(all="ignore"):
            gamma, lam = self.best()
            room = 1e-10
            while gamma < math.inf and room < 1.0:
                found = max(gamma, 1e-12) * (1.0 + room)
                if self.holds(lam, found):
                    return float(np.nextafter(found * math.prod(self.scale), math.inf))
                room *= 8.0
        return math.inf

    def holds(self, lam: np.ndarray, gamma: float) -> bool:
        """Whether F is proven to be positive, with all roundings of its entries."""
        (q, n), p = self.C.shape, self.B.shape[1]
        F, E = np.zeros((n + p + q, n + p + q)), np.zeros((n + p + q, n + p + q))
        LA, LB = lam[:, None] * self.A, lam[:, None] * self.B
        F[:n, :n] = np.diag(2.0 * lam) - (LA + LA.T)
        F[n : n + p, :n], F[n + p :, :n], F[n + p :, n : n + p] = -LB.T, self.C, self.D
        F[range(n, n + p + q), range(n, n + p + q)] = gamma
        far = lam[:, None] * self.off + 4 * EPS * np.abs(LA)
        E[:n, :n] = far + far.T + 4 * EPS * np.diag(lam)
        E[n : n + p, :n], E[n + p :, :n] = 2 * EPS * np.abs(LB.T), 2 * EPS * np.abs(self.C)
        E[n + p :, n : n + p] = 4 * EPS * np.abs(self.D)
        F, E = (np.tril(W) + np.tril(W, -1).T for W in (F, E))
        # Rows and columns times powers of two: then all weigh alike.
        size = 2.0 ** -np.round(0.5 * np.log2(np.diagonal(F)))
        F, E = (size[:, None] * W * size for W in (F, E))
        F[np.diag_indices(len(F))] -= E.sum(axis=1) * (1.0 + 2 * (len(F) + 4) * EPS)
        return bool(np.all(np.isfinite(F))) and is_below(-F, 0.0)
