r"""Penalties that keep a model insensitive, with their gradients, for `pyidl.fit`.

**Sensitivity**, weighted: ``f = t^T S delta``, S = |C| K^{-1} diag(L) |B| + |D| with
K = I - diag(L) A', A' the absolute values of A, but for the diagonal where phi does not
fall. With ``K a = L * |B| delta``, ``K^T h = |C|^T t`` and g = L * h

    dA = g a^T * sign(A), the diagonal g * a where phi does not fall,
    dB = g delta^T * sign(B),    dC = t a^T * sign(C),    dD = t delta^T * sign(D).

**Gamma**, the Euclidean Lipschitz constant for given weights lam
(`pyidl.robustness.lipschitz`): with its eigenvector (z_u, z_y), and r,

    dA = 2 (lam * r) r^T,    dB = -2 (lam * r) z_u^T,
    dC = 2 z_y r^T,          dD = -2 z_y z_u^T,

for slopes in [0, 1]; for others, A and C have their columns times L.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from pyidl.activations.ranges import falls, gain
from pyidl.arrays import backend
from pyidl.arrays.backend import as_real, namespace, to_numpy
from pyidl.errors import InputError, expect, is_real
from pyidl.layers import ImplicitModel
from pyidl.robustness.lipschitz import Angles
from pyidl.typing import Grads, Params
from pyidl.wellposed.bounds import entries

__all__ = ["LipschitzPenalty", "SensitivityPenalty"]


@dataclass(frozen=True, eq=False)
class _Penalty(ABC):
    """``params -> (value, grads)``, computed on the host in float64."""

    model: ImplicitModel
    weight: float
    _: KW_ONLY
    prefix: str = ""

    def __post_init__(self) -> None:
        expect("model", self.model, ImplicitModel, "a penalty is for an ImplicitModel")
        expect("prefix", self.prefix, str, 'use what stands before the names, such as "0."')
        phi, n = self.model.activation, self.model.hidden_dim
        if not (is_real(self.weight) and 0 <= self.weight < math.inf):
            raise InputError(f"weight is {self.weight!r}; a finite number, at least 0, is needed")
        if phi.vector_blocks(n) or (not self.falling and falls(phi, n).any()):
            raise InputError(f"model has {phi.name}, and {type(self).__name__} is not for it")
        for name, size in self.sizes.items():
            given = getattr(self, name)
            v = (
                np.ones(size)
                if given is None
                else as_real(given, name=name, xp=np, dtype="float64")
            )
            if v.shape != (size,) or not np.all(v >= 0):
                raise InputError(f"{name} has shape {v.shape}; {size} numbers >= 0 are needed")
            object.__setattr__(self, name, v)

    def __call__(self, params: Params) -> tuple[float, Grads]:
        """The value and its gradients, each in library and dtype of its parameter."""
        names = [key for key in ("A", "L", "R", "B", "C", "D") if self.prefix + key in params]
        if {"B", "C"} - set(names):
            raise InputError(f"params have {sorted(params)}, none with the prefix {self.prefix!r}")
        given = {key: params[self.prefix + key] for key in names}
        p = {key: to_numpy(a).astype(np.float64) for key, a in given.items()}
        A, n = entries(p)[0], self.model.hidden_dim
        try:
            value, grads = self.found(A, p, gain(self.model.activation, np.ones(n)))
        except np.linalg.LinAlgError:
            raise InputError(
                f"{type(self).__name__} has no value for these params, outside of the set in which "
                "its bound is proven; train the model in MatrixMeasure or InfNorm, for "
                "LipschitzPenalty without weights in Monotone"
            ) from None
        if "L" in p:
            grads |= {"L": grads["A"] @ p["R"], "R": grads["A"].T @ p["L"]}
        back = {}
        for key, a in given.items():
            mask, xp = self.model.support(key), namespace(a)
            g = self.weight * grads[key] * (1.0 if mask is None else to_numpy(mask))
            back[self.prefix + key] = backend.astype(xp, backend.from_host(xp, g), a.dtype)
        return self.weight * value, back

    falling: ClassVar[bool]

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Names and widths of the vectors."""

    @abstractmethod
    def found(
        self, A: np.ndarray, p: dict[str, np.ndarray], L: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The value and its derivatives by A, B, C and D."""


@dataclass(frozen=True, eq=False)
class SensitivityPenalty(_Penalty):
    """``weight * outputs^T S inputs`` for ``fit(penalty=...)``, S of `sensitivity`.

    Parameters
    ----------
    model : ImplicitModel
        The one that is trained, or that is part of it; for its activation and shapes.
    weight : float
        At least 0.
    outputs, inputs : sequence of float, optional
        t (q,) and delta (p,), at least 0; 1 if left out. With the ranges of the inputs
        as delta, ``S delta`` bounds how far outputs move over them.
    prefix : str
        What stands before the names of the parameters, such as "0." in a `Sequential`.

    Raises
    ------
    InputError
        If an argument is out of range; in a call, if there is no S.

    Notes
    -----
    Source: as `sensitivity`; the gradient is derived at the head of
    `pyidl.robustness.penalties`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness
    >>> model = ImplicitModel(3, 2, 10, rng=0, dtype="float64")
    >>> value, grads = robustness.SensitivityPenalty(model, 1.0)(model.params)
    >>> bool(abs(value - robustness.sensitivity(model).sum()) < 1e-9), sorted(grads)
    (True, ['A', 'B', 'C', 'D'])
    """

    outputs: Any = None
    inputs: Any = None
    falling = True

    @property
    def sizes(self) -> dict[str, int]:
        """Of t and delta."""
        return {"outputs": self.model.output_dim, "inputs": self.model.input_dim}

    def found(
        self, A: np.ndarray, p: dict[str, np.ndarray], L: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Two solves with K, one of them transposed."""
        n, t, delta = len(A), self.outputs, self.inputs
        signed = np.diag(~falls(self.model.activation, n))
        K = np.eye(n) - L[:, None] * np.where(signed, A, np.abs(A))
        moved = L * (np.abs(p["B"]) @ delta)
        s, a = np.linalg.solve(K, np.stack([np.ones(n), moved], axis=1)).T
        if not np.all(s > 0):
            raise np.linalg.LinAlgError
        g = L * np.linalg.solve(K.T, np.abs(p["C"]).T @ t)
        D = p.get("D", np.zeros((len(t), len(delta))))
        return float(t @ (np.abs(p["C"]) @ a + np.abs(D) @ delta)), {
            "A": np.outer(g, a) * np.where(signed, 1.0, np.sign(A)),
            "B": np.outer(g, delta) * np.sign(p["B"]),
            "C": np.outer(t, a) * np.sign(p["C"]),
            "D": np.outer(t, delta) * np.sign(D),
        }


@dataclass(frozen=True, eq=False)
class LipschitzPenalty(_Penalty):
    """``weight * gamma(lam)`` for ``fit(penalty=...)``: a Euclidean Lipschitz bound.

    gamma is differentiable where one eigenvalue is the largest; where two are, the
    gradient is that of one of them.

    Parameters
    ----------
    model : ImplicitModel
        The one that is trained, or that is part of it; its activation must not fall.
    weight : float
        At least 0.
    weights : sequence of float, optional
        lam (n,), positive; 1 if left out, which suits `wellposed.Monotone`.
    prefix : str
        What stands before the names of the parameters, such as "0." in a `Sequential`.

    Raises
    ------
    InputError
        If an argument is out of range; in a call, if ``2 lam - lam A - A^T lam`` is not
        positive.

    Notes
    -----
    Source: as `lipschitz`; the gradient is derived at the head of
    `pyidl.robustness.lipschitz`.

    Examples
    --------
    >>> from pyidl import ImplicitModel, robustness, wellposed
    >>> model = ImplicitModel(3, 2, 10, constraint=wellposed.Monotone(0.1), rng=0)
    >>> value, grads = robustness.LipschitzPenalty(model, 1.0)(model.params)
    >>> bool(value >= robustness.lipschitz(model, 2) / 1.001), sorted(grads)
    (True, ['A', 'B', 'C', 'D'])
    """

    weights: Any = None
    falling = False

    @property
    def sizes(self) -> dict[str, int]:
        """Of lam."""
        return {"weights": self.model.hidden_dim}

    def found(
        self, A: np.ndarray, p: dict[str, np.ndarray], L: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        """One Cholesky factorisation, and the eigenvalues of a matrix of p + q."""
        angles = Angles.of(A, 0.0, p, L)
        (b, c), inputs = angles.scale, len(p["B"].T)
        lam = self.weights * (b / c)
        values, Z, R = angles.eigen(lam)
        (u, y), r = np.split(Z[:, -1], [inputs]), R[:, -1]
        return float(values[-1]) * b * c, {
            "A": 2.0 * b * c * np.outer(lam * r, r * L),
            "B": -2.0 * c * np.outer(lam * r, u),
            "C": 2.0 * b * np.outer(y, r * L),
            "D": -2.0 * np.outer(y, u),
        }
