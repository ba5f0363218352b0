r"""All states of an implicit model for a set of inputs: first a box, then affine forms.

**Boxes.** The embedded model (`pyidl.robustness.embedded`) is solved to whatever
accuracy; nothing that a solver returns is believed. Let X = (x_lo, x_hi) be its answer,
rho its residual, ``r = max(|rho_lo|, |rho_hi|)`` with all roundings. The distance e to
the solution obeys, row by row, ``e <= T(e) + w r`` with

    T_i(e) = L_i / (1 - L_i A_ii) sum_{j != i} |A_ij| e_j,    where phi_i rises,
    T_i(e) = how far the ends move for ``|A| e``              where it falls,

and ``w_i = 1 / (1 - max(L_i A_ii, 0))``, or 1. *Proof* of the first: ``e_i (1 - s A_ii)
<= s sum_{j != i} |A_ij| e_j + r_i`` with a mean slope s in [0, L_i], and both ``s / (1
- s A_ii)`` and w are largest at s = L_i (the latter for A_ii >= 0; else it is at most
1). If ``T(s) <= kappa s`` for an s > 0 and kappa < 1, then ``e <= s max(w r / s) / (1 -
kappa)``, and ``[x_lo - e, x_hi + e]`` holds every state. The same T decides whether
there is an embedded model at all: ``diag(L) A' s < s`` is ``T(s) < s``.

*A model's own certificate does not do here*, where it is Euclidean: such a statement
about A says nothing of E.

**Without an embedded model** (A monotone, or small in the spectral norm alone) every
certificate bounds the distance to one solution x0: at x0 the residual for an input u is
that of its own, and at most ``L |z(u) - z0|`` more.

**Affine forms.** With lines ``|phi(y) - D y - k| <= rho`` on the known intervals, every
state solves ``(I - D A) x = D z + k + xi``, ``|xi| <= rho``, so that for *any* matrix H

    x = H (D z + k) + H xi + (I - H (I - D A)) x,

exactly: H is an approximate inverse, and the last term, a matrix of roundings times a
known box, is own noise. No contraction is used. Then ``y = A x + z`` bounds the
pre-activations anew, and so on in rounds.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 4, for boxes; Krawczyk's operator for the last equation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.activations.ranges import ends, falls, gain, parts, ranged
from pyidl.arrays.backend import to_numpy
from pyidl.certify.enclosure import up
from pyidl.certify.forms import EPS, LIMIT, Form, outward, padded, where
from pyidl.equilibrium import solved
from pyidl.errors import InputError
from pyidl.layers import Layer
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.robustness.embedded import Embedded, split
from pyidl.robustness.slopes import evaluation, lines, range_of
from pyidl.solvers import Auto
from pyidl.solvers.problem import Affine
from pyidl.wellposed.bounds import absolute, entries
from pyidl.wellposed.certificate import Certificate

__all__ = ["States", "Weights", "exactly"]

ENOUGH = 0.99
"""A round that leaves more than this share of a sample's rho is its last one."""


@dataclass(frozen=True)
class Weights:
    """``T(s) <= kappa s``: what widens a box by its residual; w as above.

    `off` is |A| without the diagonal of rows that rise, which is in `room`, ``1 - L_i
    A_ii`` rounded down.
    """

    s: np.ndarray
    kappa: float
    w: np.ndarray
    off: np.ndarray
    room: np.ndarray

    @classmethod
    def of(cls, A: np.ndarray, size: np.ndarray, phi: Activation) -> Weights | None:
        """For a matrix and a bound of its absolute values; None where none is found."""
        n = len(A)
        rises, L = ~falls(phi, n), gain(phi, np.ones(n))
        d = np.where(rises, np.diagonal(A) + (np.diagonal(size) - np.abs(np.diagonal(A))), 0.0)
        room = 1.0 - L * d - 4 * EPS * (1.0 + np.abs(L * d))
        if not np.all(room > 0):
            return None
        off = np.where(np.diag(rises), 0.0, size)

        def T(e: np.ndarray) -> np.ndarray:
            return up(gain(phi, up(off @ e, n)) / room, 3)

        s = np.ones(n)
        for _ in range(16):  # T is a greatest of linear maps: that of softmax at its largest row
            rows = np.arange(n)
            for start, stop in phi.vector_blocks(n):
                rows[start:stop] = start + np.argmax(off[start:stop] @ s)
            try:
                s = np.linalg.solve(np.eye(n) - (L / room)[:, None] * off[rows], np.ones(n))
            except np.linalg.LinAlgError:
                return None
            if not np.all((s > 0) & (s < 1e100)):
                return None
            kappa = float(np.max(up(T(s) / s, 1)))
            if kappa < 1:
                return cls(s, kappa, np.where(d > 0, up(1.0 / room, 1), 1.0), off, room)
        return None

    def error(self, r: np.ndarray) -> np.ndarray:
        """A bound of the distance to the solution for residuals r, (m, n)."""
        largest = np.max(up(self.w * r / self.s, 2), axis=1, keepdims=True)
        return up(self.s * largest / (1.0 - self.kappa), 4)


@dataclass(frozen=True)
class States:
    """The equation ``x = phi(A x + z)``, and what is known of all its solutions.

    `spread` bounds the error of A where it is a product of factors.
    """

    A: np.ndarray
    spread: np.ndarray | float
    params: dict[str, np.ndarray]
    phi: Activation
    certificate: Callable[[], Certificate]
    weights: Weights | None

    @classmethod
    def of(cls, layer: Any, params: dict[str, np.ndarray]) -> States:
        """That of a layer, from its parameters in float64."""
        phi, (A, spread) = layer.activation, entries(params)
        parts(phi, len(A))  # refuses what has no known range
        return cls(A, spread, params, phi, layer.certificate, Weights.of(A, absolute(params), phi))

    def answered(self, u: Form, rounds: int) -> tuple[Form, Form, Form]:
        """``C x + D u + d`` for ``z = B u + b``, with x and ``A x + z``.

        D may act on the first entries of u alone.
        """
        C, B, b = self.params["C"], self.params["B"], self.params.get("b", 0.0)
        x, y = self.enclosed(u.linear(B, b) if rounds else Form.box(*u.interval(B, b)), rounds)
        D = np.zeros((len(C), B.shape[1]))  # all of it, so that columns are those of z
        given = self.params.get("D", D)
        D[:, : given.shape[1]] = given
        w = u.linear(D, self.params.get("d", 0.0))
        x, _ = padded([x, w])
        return x.linear(C).plus(w), x, y

    @property
    def size(self) -> np.ndarray:
        """``|A|``, not too small."""
        return up(np.abs(self.A) + self.spread, 1)

    def doubt(self, reach: np.ndarray) -> np.ndarray:
        """What the error of A moves in ``A x``, for ``|x| <= reach``, (m, n)."""
        return 0.0 * reach if isinstance(self.spread, float) else reach @ self.spread.T

    def enclosed(self, z: Form, rounds: int) -> tuple[Form, Form]:
        """Forms of the states and of the pre-activations, for all z of a form.

        Without rounds they are boxes.
        """
        if self.weights is not None:
            x, y = self.verified(self._embedded(z), z)
        else:
            x, y = self._around_a_solution(z, rounds)
        if rounds == 0:
            return x, y
        z, left = z.promoted(), np.full(len(z.c), np.inf)
        x, _ = padded([x, z])  # what is added later lies behind the columns of z
        for _ in range(rounds):
            D, k, rho = lines(self.phi, y.lo, y.hi)
            total = rho.sum(axis=1)
            going = total < ENOUGH * left
            if not going.any():
                break
            left = total
            new = self.affine(z, x, D, k, rho)
            reach = np.maximum(np.abs(new.lo), np.abs(new.hi))
            pre = (
                new.linear(self.A)
                .widened(up(self.doubt(reach), len(self.A)))
                .plus(z)
                .within(y.lo, y.hi)
            )
            y = where(going, pre, y)
            x = where(going, new.within(*range_of(self.phi, y.lo, y.hi)), x)
        return x, y

    def _embedded(self, z: Form) -> np.ndarray:
        """``[x_lo, x_hi]``, nearly."""
        E = with_gains(Embedded.of(*split(self.A, self.phi)), doubtful=True)
        problem = Affine(E, np.concatenate([z.lo, z.hi], axis=1), ends(self.phi, len(self.A)))
        return to_numpy(solved(problem, Auto(1e-10), on_fail="ignore").value)

    def verified(self, X: np.ndarray, z: Form) -> tuple[Form, Form]:
        """Boxes of states and pre-activations, from any approximation of the ends."""
        assert self.weights is not None
        n, (M, N) = len(self.A), split(self.A, self.phi)
        x_lo, x_hi = X[:, :n], X[:, n:]
        reach = np.maximum(np.abs(x_lo), np.abs(x_hi))
        blur = (2 * n + 4) * EPS * (reach @ self.size.T + np.maximum(np.abs(z.lo), np.abs(z.hi)))
        blur = up(blur + self.doubt(reach), 2 * n)
        y_lo, y_hi = x_lo @ M.T + x_hi @ N.T + z.lo, x_hi @ M.T + x_lo @ N.T + z.hi
        lo, hi = ranged(self.phi, y_lo, y_hi)
        r = np.maximum(np.abs(lo - x_lo), np.abs(hi - x_hi)) * (1.0 + 2 * EPS)
        e = self.weights.error(r + gain(self.phi, blur) + evaluation(self.phi, y_lo, y_hi, lo, hi))
        return self._boxes(x_lo, x_hi, e, *outward(y_lo, y_hi, up(e @ self.size.T + blur, n)))

    def _boxes(
        self, x_lo: np.ndarray, x_hi: np.ndarray, e: np.ndarray, *y: np.ndarray
    ) -> tuple[Form, Form]:
        """Of states within e of what is given, and the images of pre-activations."""
        low, high = outward(x_lo, x_hi, e)
        lo, hi = range_of(self.phi, *y)
        return Form.box(np.fmax(lo, low), np.fmin(hi, high)), Form.box(*y)

    def _around_a_solution(self, z: Form, rounds: int) -> tuple[Form, Form]:
        """The same where there is no embedded model, by the certificate."""
        proof, n = self.certificate(), len(self.A)
        if rounds == 0 or not proof.proven:
            cure = "use method='affine'" if proof.proven else "project the model"
            raise InputError(
                "boxes need an s > 0 with A_ii s_i + sum_j |A_ij| s_j < s_i / L_i (absolute values "
                f"everywhere for a phi that falls), and there is none; the model is "
                f"{proof.in_a_line()}; {cure}, or train with wellposed.MatrixMeasure or InfNorm"
            )
        problem = Affine(Full(self.A), z.c, self.phi)
        x0 = to_numpy(solved(problem, Auto(1e-10), on_fail="ignore").value)
        y0 = x0 @ self.A.T + z.c
        blur = (n + 4) * EPS * (np.abs(x0) @ self.size.T + np.abs(z.c)) + self.doubt(np.abs(x0))
        image, far = self.phi(y0), up(np.maximum(z.hi - z.c, z.c - z.lo), 1)
        r = np.abs(image - x0) + evaluation(self.phi, y0, image)
        r = up(r + gain(self.phi, up(blur, n)) + gain(self.phi, far), n + 4)
        e, moved = proof.entrywise(r), self.size
        ahead = e @ moved.T
        if proof.norm.kind == "Euclidean":  # Cauchy and Schwarz, row by row
            weighted = moved if proof.norm.weights is None else moved * proof.norm.weights
            rows = np.linalg.norm(weighted, axis=1)
            ahead = np.fmin(ahead, np.asarray(proof.error(proof.norm(r)))[:, None] * rows)
        y = outward(y0, y0, up(ahead + far + blur, 2 * n + 8))
        return self._boxes(x0, x0, e, *y)

    # ------------------------------------------------------------------- then affine forms

    def affine(self, z: Form, x: Form, D: np.ndarray, k: np.ndarray, rho: np.ndarray) -> Form:
        """``H (D z + k) + H xi + (I - H (I - D A)) x``."""
        n = D.shape[1]
        J = np.eye(n) - D[:, :, None] * self.A
        try:
            H = np.linalg.inv(J)
        except np.linalg.LinAlgError:  # of one sample; any H will do
            H = np.linalg.pinv(J)
        H = np.where(np.isfinite(H).all(axis=(1, 2), keepdims=True), H, np.eye(n))
        size, d, reach = np.abs(H), np.abs(D), np.maximum(np.abs(x.lo), np.abs(x.hi))
        # Of J as computed, of its product with H, and of A itself.
        inner = (n + 8) * EPS * (reach + d * (reach @ self.size.T)) + d * self.doubt(reach)
        rest = _times(np.abs(np.eye(n) - H @ J), reach) + _times(size, inner)
        blur = (n + 6) * EPS * _times(size, d * (np.abs(z.c) + z.sizes()) + np.abs(k) + rho)
        r = up(_times(size, d * z.r) + rest + blur, 3 * n + 16)
        turned, used = np.swapaxes(H, 1, 2), (rho > 0).any(axis=0)
        own = turned[:, used] * rho[:, used, None]  # a column for every undecided unit
        G = np.concatenate([(D[:, None] * z.G) @ turned, own], axis=1)
        form = Form(_times(H, D * z.c + k), G, r, x.lo, x.hi, z.ball)
        return form.reduced(z.columns, max(LIMIT - z.columns, 0)).within(x.lo, x.hi)


def _times(H: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``H v``, sample by sample."""
    return np.asarray((H @ v[:, :, None])[:, :, 0])


def exactly(layer: Layer) -> dict[str, np.ndarray]:
    """Its parameters in float64, which holds them as they are."""
    return {key: to_numpy(a).astype(np.float64) for key, a in layer.params.items()}
