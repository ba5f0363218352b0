r"""How far outputs can move with the inputs, entry by entry, and proven.

    |y(u) - y(u')| <= S |u - u'|.

**Everywhere.** Move one input after another from u' to u. Let e bound how far the
states move when input k alone moves by 1, and b be column k of |B|. With a mean slope s
in [0, L_i], unit i obeys ``(1 - s A_ii) e_i <= s (sum_{j != i} |A_ij| e_j + b_i)``, and
``s / (1 - s A_ii)`` is largest at s = L_i, whatever the sign of A_ii. Where phi falls
somewhere, the diagonal stands among the others; the parts of a softmax move by at most
half the largest change of their pre-activations. In short

    e <= G(|A|' e + b),    T(e) = G(|A|' e),    T(s) <= kappa s,  kappa < 1,

with T of `pyidl.robustness.states`. *Every* E with ``G(|A|' E + b) <= E`` is a bound:
G is subadditive and rises, so ``d = (e - E)+`` has ``d <= T(d)``, hence d = 0. If t is
the largest entry of ``(G(|A|' E + b) - E) / ((1 - kappa) s)``, then E + t s is such a
bound, whatever E was: a solver need not be believed. For a rising phi

    S = |C| (I - diag(L) A')^{-1} diag(L) |B| + |D|,    A' = |A| beside the diagonal.

**On a box of inputs.** There the slopes lie in known intervals, ``|s_i - Lam_i| <=
T_i``. First, s_i cannot exceed its own bound in the above, which takes the place of L.
Second, with v = x - x', w = u - u', ``y = A v + B w`` and *any* matrix H, the equation
``(I - Lam A) v = Lam B w + (S - Lam) y`` gives exactly, with G = H Lam B,

    v = G w + H (S - Lam) y + (I - H (I - Lam A)) v,
    y = (A G + B) w + A H (S - Lam) y + A (I - H (I - Lam A)) v.

v is bounded already, so that the last terms are. Begin with ``|y| <= |A| E + |B|`` and
put bounds of y into the second line: what comes out bounds y too, and the smaller one
stays. No condition is needed for that. Then

    |C v + D w| <= |C G + D| |w| + |C H| T |y| + |C| |I - H (I - Lam A)| |v|.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 4, for S with absolute values everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations.ranges import falls, gain, parts
from pyidl.certify.enclosure import Equation, up
from pyidl.certify.forms import EPS
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel
from pyidl.robustness.bounds import bounds
from pyidl.robustness.states import States, exactly

__all__ = ["sensitivity"]

SWEEPS = 50
"""At most so many times a bound is put in for itself."""


def sensitivity(model: ImplicitModel, lower: Any = None, upper: Any = None) -> np.ndarray:
    """Bound how far each output can move for each input: ``|dy| <= S |du|``.

    It holds for any two inputs, near or far; with a box, for any two of the box. Every
    derivative is bounded too, ``|dy_k / du_j| <= S_kj``. Where S_kj is 0, output k does
    not depend on input j at all.

    Parameters
    ----------
    model : ImplicitModel
        With any activation that has bounds.
    lower, upper : array, shape (m, p), optional
        The ends of m boxes, both or none. S is then found for each of them: it is never
        larger, and often much smaller. About ``4 n^3`` operations a box.

    Returns
    -------
    numpy.ndarray, shape (q, p), or (m, q, p) for boxes
        float64, on the host, every rounding upwards.

    Raises
    ------
    InputError
        If the model is none of these; without boxes also if nothing bounds its states
        entry by entry, as for one that is `Monotone` or small in the `SpectralNorm`
        alone; if only one end is given, or ends do not fit.

    Notes
    -----
    Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J.
    Math. Data Sci. 3(3), 2021, section 4, with absolute values on the diagonal too.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> S = robustness.sensitivity(model)
    >>> U = np.ones((1, 3))
    >>> near = robustness.sensitivity(model, U - 0.01, U + 0.01)[0]
    >>> J = np.abs(robustness.jacobian(model, U)[0])
    >>> S.shape, bool(np.all(J <= near * 1.00001)), bool(np.all(near <= S))
    ((2, 3), True, True)
    """
    expect("model", model, ImplicitModel, "sensitivity is that of an ImplicitModel")
    if (lower is None) != (upper is None):
        raise InputError("lower and upper go together: give both ends of the boxes, or none")
    moved = _Moved(States.of(model, exactly(model)))
    if lower is None:
        if moved.states.weights is None:
            raise InputError(
                "sensitivity needs an s > 0 with A_ii s_i + sum_j |A_ij| s_j < s_i / L_i (absolute "
                "values everywhere for a phi that falls), and there is none; the model is "
                f"{model.certificate().in_a_line()}; use lipschitz(model, norm=2), give a box, or "
                "train with wellposed.MatrixMeasure or InfNorm"
            )
        return moved.outputs(moved.everywhere(1.0))
    pre = bounds(model, lower, upper).pre
    assert pre is not None
    equation = Equation.of(model, parts(model.activation, model.hidden_dim))
    with np.errstate(all="ignore"):  # what overflows is unbounded
        y = 0.5 * pre[0] + 0.5 * pre[1]
        low, high, _ = equation.slopes(y, up(np.maximum(pre[1] - y, y - pre[0]), 1))
        return np.stack([moved.locally(*slopes) for slopes in zip(low, high, strict=True)])


@dataclass(frozen=True)
class _Moved:
    """Bounds of what moves with a unit of each input; a row for every input, (p, n)."""

    states: States

    @property
    def inputs(self) -> np.ndarray:
        """``|B|^T``."""
        return np.asarray(np.abs(self.states.params["B"]).T)

    def everywhere(self, share: np.ndarray | float) -> np.ndarray:
        """E of the file's head, where G is multiplied by a share of at most 1.

        A unit that no path leads to from an input does not move with it at all.
        """
        weights, phi, b = self.states.weights, self.states.phi, self.inputs
        assert weights is not None
        n, off, scale = len(weights.s), weights.off, share / weights.room

        def G(e: np.ndarray) -> np.ndarray:
            return up(scale * gain(phi, up(e @ off.T + b, n + 1)), 3)

        reached, paths = gain(phi, 1.0 * (b > 0)) > 0, 1.0 * (off.T > 0)
        for _ in range(n):
            wider = reached | (gain(phi, reached @ paths) > 0)
            if np.array_equal(wider, reached):
                break
            reached = wider
        slopes = scale * gain(phi, np.ones(n))
        try:
            E = np.linalg.solve(np.eye(n) - slopes[:, None] * off, (b * slopes).T).T
        except np.linalg.LinAlgError:
            E = np.zeros_like(b)
        E = np.where((E >= 0) & np.isfinite(E), E, 0.0)
        for _ in range(SWEEPS if phi.vector_blocks(n) else 1):  # softmax: nearer from anywhere
            E = G(E)
        missing = np.max(up(G(E) - E, 1) / weights.s, axis=1, keepdims=True)
        E = up(E + np.maximum(missing, 0.0) / (1.0 - weights.kappa) * weights.s, 5)
        return np.where(reached, E, 0.0)

    def outputs(self, E: np.ndarray) -> np.ndarray:
        """``|C| E + |D|``, (q, p); 0 where no path leads."""
        C = np.abs(self.states.params["C"])
        D = np.abs(self.states.params.get("D", np.zeros((len(C), len(E)))))
        linked = ((C > 0) @ (E > 0).T) | (D > 0)
        return np.where(linked, up(C @ E.T + D, len(C.T) + 2), 0.0)

    def locally(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """S where the slopes of phi lie between these, (n,); infinite for softmax."""
        states, phi, b = self.states, self.states.phi, self.inputs
        n, A, size, B = len(low), states.A, states.size, states.params["B"]
        known, L = np.isfinite(low) & np.isfinite(high), gain(phi, np.ones(n))
        if states.weights is None:
            E = states.certificate().entrywise(up(gain(phi, b), 1))
        else:
            E = self.everywhere(self._share(np.maximum(np.abs(low), np.abs(high)), L))
        start = self.outputs(E)
        Lam = np.where(known, 0.5 * low + 0.5 * high, 0.0)
        T = np.where(known, up(np.maximum(high - Lam, Lam - low), 1), 0.0)
        J = np.eye(n) - Lam[:, None] * A
        try:
            H = np.linalg.inv(J)
        except np.linalg.LinAlgError:
            return start

        def noise(y: np.ndarray) -> np.ndarray:
            """``|S - Lam| y``; of a softmax all that moves."""
            return np.where(known, T * y, gain(phi, y))

        # Rows are inputs: every product is one with a transpose.
        lam, h, eps = np.abs(Lam), np.abs(H), (n + 8) * EPS
        inner = eps * (E + lam * (E @ size.T)) + lam * states.doubt(E)
        rest = up(E @ np.abs(np.eye(n) - H @ J).T + inner @ h.T, 3 * n + 16)
        G = (Lam * B.T) @ H.T
        blur = up(eps * ((lam * b) @ h.T), 2 * n)
        far = np.abs(G) + blur
        moved = np.abs(G @ A.T + B.T) + eps * (np.abs(G) @ size.T + b) + states.doubt(np.abs(G))
        moved = up(moved + (blur + rest) @ size.T, 3 * n + 16)
        AH = up(np.abs(A @ H) + eps * (size @ h) + states.doubt(h.T).T, 2 * n)
        y = up(E @ size.T + b, n + 1)
        for _ in range(SWEEPS):
            new = np.fmin(y, up(moved + noise(y) @ AH.T, n + 4))
            done = np.all(new > 0.999 * y)
            y = new
            if done:
                break
        C, q = states.params["C"], len(states.params["C"])
        D = states.params.get("D", np.zeros((q, len(b))))
        CH = up(np.abs(C @ H) + eps * (np.abs(C) @ h), 2 * n)
        S = np.abs(C @ G.T + D) + eps * (np.abs(C) @ far.T + np.abs(D))
        S = up(S + np.abs(C) @ (blur + rest).T + CH @ noise(y).T, 3 * n + 16)
        return np.where(start > 0, np.fmin(S, start), 0.0)

    def _share(self, slope: np.ndarray, L: np.ndarray) -> np.ndarray:
        """What G has of itself where slopes are at most these, componentwise."""
        assert self.states.weights is not None
        rises, A = ~falls(self.states.phi, len(L)), self.states.A
        error = np.diagonal(self.states.size) - np.abs(np.diagonal(A))
        d = np.where(rises, np.diagonal(A) + error, 0.0)
        room = 1.0 - slope * d - 4 * EPS * (1.0 + np.abs(slope * d))
        share = up(slope / room * self.states.weights.room / L, 4)
        return np.fmin(np.where(np.isfinite(slope), share, 1.0), 1.0)
