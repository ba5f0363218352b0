r"""`ImplicitModel` of torchidl, and what torchidl does to A.

The equations: `pyidl.interop.torchidl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError, is_real
from pyidl.layers import ImplicitModel
from pyidl.typing import Params
from pyidl.wellposed import Constraint, InfNorm, StrictlyTriangular, Unconstrained

__all__ = ["KIND", "STEP", "Rule", "Step", "read", "read_step", "write", "write_step"]

KIND = ImplicitModel
STEP = "recurrent.layer."
"""Where a network of torchidl holds the model of its step."""


@dataclass(frozen=True)
class Rule:
    """How torchidl makes A from what it stores.

    Parameters
    ----------
    kappa : float
        The radius, positive.
    function : {"inf", "triangular", "none"}
        Its function f.
    """

    kappa: float
    function: str

    def __post_init__(self) -> None:
        if self.function not in ("inf", "triangular", "none"):
            raise InputError(f"function is {self.function!r}; use 'inf', 'triangular' or 'none'")
        if not (is_real(self.kappa) and self.kappa > 0):
            raise InputError(
                f"kappa is {self.kappa!r}; it is the radius of a ball, a positive number"
            )

    @property
    def constraint(self) -> Constraint:
        """The set that f maps into."""
        if self.function == "triangular":
            return StrictlyTriangular()
        bounded = self.function == "inf" and self.kappa < 1
        return InfNorm(self.kappa) if bounded else Unconstrained()

    def scaled(self, M: np.ndarray, size: float) -> np.ndarray:
        """``s(M) = M min(1, kappa / size)``."""
        return M if size <= self.kappa else M * M.dtype.type(self.kappa / size)

    def used(self, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A, or L and R, as torchidl uses them."""
        if "A" in maps:
            A = maps["A"]
            if self.function == "triangular":
                return {"A": np.triu(A, 1)}
            return {"A": self.scaled(A, _size(A)) if self.function == "inf" else A}
        L, right = maps["L"], np.ascontiguousarray(maps["R"].T)
        L, right = self.scaled(L, _size(L)), self.scaled(right, _size(right))
        R = np.ascontiguousarray(right.T)
        if self.function == "triangular":
            return {"A": np.triu(L @ R.T, 1)}
        return {"L": self.scaled(L, _size(L @ R.T)) if self.function == "inf" else L, "R": R}

    def stored(self, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A, or L and R, that torchidl uses as they are, but for the rounding of s."""
        largest = self.kappa * (1.0 + 8 * float(np.finfo(maps["B"].dtype).eps))
        if "A" in maps:
            A, size = maps["A"], _size(maps["A"])
            if self.function == "inf" and size > largest:
                raise InputError(
                    f"||A||_inf is {size:.6g}, and torchidl would scale A to {self.kappa}; "
                    f"project with InfNorm({self.kappa}) first"
                )
            if self.function == "triangular" and np.any(np.tril(A)):
                raise InputError(
                    f"{np.count_nonzero(np.tril(A))} entries of A on or below the diagonal are "
                    "not 0; torchidl would drop them"
                )
            return {"A": A}
        if self.function == "triangular":
            raise InputError(
                "A = L R^T is not triangular, and torchidl would drop its lower half; use "
                "function='inf'"
            )
        L, R = maps["L"], maps["R"]
        left, right = _size(L), _size(R.T)
        # (c L)(R / c)^T = L R^T, with two equal norms.
        c = (right / left) ** 0.5 if left > 0 and right > 0 else 1.0
        if max(c * left, right / c) > largest:
            raise InputError(
                f"torchidl scales the factors to ||L||_inf, ||R^T||_inf <= {self.kappa}; here "
                f"both are {c * left:.4g} after balancing: write A = L R^T into a layer with "
                "rank=None, and convert that"
            )
        return {"L": L * L.dtype.type(c), "R": R / R.dtype.type(c)}


class Step(NamedTuple):
    """The model of a step, as it was read.

    Attributes
    ----------
    p, r, n : int
        Widths of inputs, outputs and state.
    params, options : dict
        Of the layer of pyidl.
    """

    p: int
    r: int
    n: int
    params: dict[str, Any]
    options: dict[str, Any]


def read(state: Mapping[str, np.ndarray], bias: bool, rule: Rule) -> ImplicitModel:
    """The layer that a `state_dict` describes."""
    step = read_step(state, set(), bias, rule)
    layer = ImplicitModel(step.p, step.r, step.n, rng=0, **step.options)
    layer.params = step.params
    return layer


def read_step(maps: Mapping[str, np.ndarray], ends: set[str], bias: bool, rule: Rule) -> Step:
    """From A (or L and R), B, C and D.

    The other maps `ends` must be there too; with them comes a bias.
    """
    needed = {"L", "R", "B", "C"} if "L" in maps else {"A", "B", "C"}
    if not needed | ends <= set(maps) <= needed | ends | {"D"}:
        raise InputError(
            f"a state_dict of torchidl has {sorted(needed | ends)}, and perhaps D; here there are "
            f"{sorted(maps)}"
        )
    for name, a in maps.items():
        if a.ndim != (1 if name.endswith("bias") else 2) or not a.size:
            raise InputError(f"{name} has shape {a.shape}; torchidl has matrices, and linear.bias")
    for one, other in (("L", "R"), ("B", "D")):
        if {one, other} <= set(maps) and maps[one].shape[1] != maps[other].shape[1]:
            raise InputError(
                f"{one} has shape {maps[one].shape} and {other} {maps[other].shape}; both have "
                "the same number of columns"
            )
    params, biased, has_d = rule.used(maps), bias or bool(ends), "D" in maps
    (n, width), r = maps["B"].shape, maps["C"].shape[0]
    p = width - 1 if bias else width
    params |= {"B": maps["B"][:, :p], "C": maps["C"]}
    if has_d:
        params["D"] = maps["D"][:, :p]
    if biased:
        params["b"] = maps["B"][:, p] if bias else np.zeros(n)
        params["d"] = maps["D"][:, p] if bias and has_d else np.zeros(r)
    options = {
        "constraint": rule.constraint,
        "rank": params["L"].shape[1] if "L" in params else None,
        "bias": biased,
        "feedthrough": has_d,
        "dtype": "float64" if maps["B"].dtype == np.float64 else "float32",
    }
    return Step(p, r, n, params, options)


def write(layer: ImplicitModel, rule: Rule, bias: bool | None) -> dict[str, np.ndarray]:
    """The `state_dict` of a layer."""
    return write_step(layer.params, layer.bias if bias is None else bias, rule)


def write_step(params: Params, bias: bool, rule: Rule) -> dict[str, np.ndarray]:
    """A (or L and R), B, C and D of torchidl."""
    maps = {key: to_numpy(a) for key, a in params.items()}
    B, D = maps["B"], maps.get("D")
    state, (n, width), r = rule.stored(maps), B.shape, maps["C"].shape[0]
    b, d = maps.get("b", np.zeros(n, B.dtype)), maps.get("d", np.zeros(r, B.dtype))
    if not bias and (b.any() or d.any()):
        raise InputError(
            "b and d are not 0, and torchidl's model with bias=False has none; leave bias=False "
            "out, and build that model with bias=True"
        )
    if D is not None and D.shape[1] < width:  # feedthrough="input"
        D = np.concatenate([D, np.zeros((r, r), D.dtype)], axis=1)
    if bias:
        B = np.concatenate([B, b.reshape(n, 1)], axis=1)
        if D is None and d.any():
            D = np.zeros((r, width), d.dtype)
        if D is not None:
            D = np.concatenate([D, d.reshape(r, 1)], axis=1)
    return state | {"B": B, "C": maps["C"]} | ({} if D is None else {"D": D})


def _size(M: np.ndarray) -> float:
    """The norm ``||M||_inf``: the largest sum of absolute values in a row."""
    return float(np.abs(M).sum(axis=1).max())
