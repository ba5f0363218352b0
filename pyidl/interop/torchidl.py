r"""Models of torchidl, read and written.

The equations that it implements, in the letters of pyidl.

torchidl (0.0.4) stores what its optimiser edits, and uses something else. With ``s(M) =
M min(1, kappa / ||M||_inf)``, it solves

    X = relu(A X + B [U, 1]),    Y = C X + D [U, 1]          columns; the 1 only with ``bias=True``, D only without ``no_D=True``
    A = s(A_stored)                                          ImplicitFunctionInf, the default
    A = s(s(L) s(R^T))                                       the same with ``is_low_rank=True``; the outer s changes nothing for kappa <= 1
    A = the strict upper triangle of A_stored or of s(L) s(R^T)       ImplicitFunctionTriu
    A = A_stored or s(L) s(R^T)                              ImplicitFunction

s scales the whole matrix where a single row is too long; it is no projection. Here the
A that is used becomes the parameter, so that outputs agree. Gradients with respect to A
are those at the A that is used, in both; torchidl applies them to the A that is stored,
as if s were not there. (For factors it differentiates the inner s.) The last columns of
B and D become b and d.

Its ImplicitRNN has ``H_t = Y`` of the above for the input ``[U_t, H_{t-1}]``, ``H_0 =
0``, and ``Y = E H_T + e``; the model of a step is "recurrent.layer", E and e are
"linear.weight" and "linear.bias". So D acts on [U_t, H_{t-1}]: ``feedthrough=True`` in
pyidl.

What a `state_dict` does not hold is asked for: kappa, whether there is a bias (the
width of B does not say), whether A is triangular.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyidl import activations
from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel
from pyidl.recurrent import ImplicitRNN
from pyidl.wellposed import Constraint, InfNorm, StrictlyTriangular, Unconstrained

__all__ = ["from_torchidl", "to_torchidl"]

STEP = "recurrent.layer."
KINDS = {
    "ImplicitFunctionInf": "inf",
    "ImplicitFunctionTriu": "triangular",
    "ImplicitFunction": "none",
}


def from_torchidl(
    source: torch.nn.Module | Mapping[str, Any],
    *,
    kappa: float = 0.99,
    bias: bool = False,
    function: str = "inf",
) -> ImplicitModel | ImplicitRNN:
    """Return the pyidl layer that computes what a torchidl `ImplicitModel` or `ImplicitRNN` computes.

    Parameters
    ----------
    source : torch.nn.Module or mapping of str to Tensor or array
        The model, or its `state_dict`. A model says itself what the other arguments
        say, and they are ignored. (Its kappa is that of the last model that was built:
        torchidl keeps it in a class.)
    kappa : float
        The radius that the model was built with.
    bias : bool
        Whether it was built with ``bias=True``.
    function : {"inf", "triangular", "none"}
        Its `f`: ImplicitFunctionInf, ImplicitFunctionTriu, or ImplicitFunction.

    Returns
    -------
    ImplicitModel or ImplicitRNN
        In the dtype of the source, with ReLU, and `InfNorm` of kappa,
        `StrictlyTriangular` or `Unconstrained` as constraint. Inputs of shape (m, a,
        b), which torchidl's ImplicitModel flattens, must be flattened before.

    Raises
    ------
    InputError
        If the source is no such model: a name is missing or not known, a shape does not
        fit, or `f` is a function of your own.

    Examples
    --------
    >>> state = {"A": [[3.0, 1.0], [0.0, 1.0]], "B": np.ones((2, 3)), "C": np.ones((1, 2)), "D": np.ones((1, 3))}
    >>> model = from_torchidl(state, kappa=0.8, bias=True)
    >>> model.params["A"], model.input_dim
    (array([[0.6, 0.2],
           [0. , 0.2]]), 2)
    """
    if isinstance(source, torch.nn.Module):
        step = source.get_submodule(STEP[:-1]) if hasattr(source, "recurrent") else source
        if not (hasattr(step, "f") and hasattr(step, "bias")):
            raise InputError(
                f"from_torchidl reads models of torchidl and their state_dict, not {type(source).__name__}"
            )
        name = type(step.f).__name__
        if name not in KINDS:
            raise InputError(
                f"f is {name}, whose equation pyidl does not know; it knows {', '.join(KINDS)}: build the layer by hand"
            )
        return from_torchidl(
            source.state_dict(),
            kappa=float(step.f.kappa),
            bias=bool(step.bias),
            function=KINDS[name],
        )
    _check(kappa, function)
    state = {key: _host(value) for key, value in source.items()}
    recurrent = any(key.startswith(STEP) for key in state)
    maps = {key.removeprefix(STEP): a for key, a in state.items()} if recurrent else state
    needed = {"L", "R", "B", "C"} if "L" in maps else {"A", "B", "C"}
    ends = {"linear.weight", "linear.bias"} if recurrent else set()
    if not needed | ends <= set(maps) <= needed | ends | {"D"}:
        raise InputError(
            f"a state_dict of torchidl has {sorted(needed | ends)}, and perhaps D; here there are {sorted(maps)}"
        )

    dtype = "float64" if maps["B"].dtype == np.float64 else "float32"
    constraint: Constraint = InfNorm(kappa) if kappa < 1 else Unconstrained()
    if function != "inf":
        constraint = StrictlyTriangular() if function == "triangular" else Unconstrained()
    params = _used(maps, kappa, function)
    n, width = maps["B"].shape
    p = width - 1 if bias else width
    r = maps["C"].shape[0]
    has_d, biased = "D" in maps, bias or recurrent
    params |= {"B": maps["B"][:, :p], "C": maps["C"]}
    if has_d:
        params["D"] = maps["D"][:, :p]
    if biased:
        params["b"] = maps["B"][:, p] if bias else np.zeros(n)
        params["d"] = maps["D"][:, p] if bias and has_d else np.zeros(r)
    rank = params["L"].shape[1] if "L" in params else None
    common: dict[str, Any] = {
        "constraint": constraint,
        "rank": rank,
        "bias": biased,
        "feedthrough": has_d,
        "dtype": dtype,
    }
    if recurrent:
        E, e = maps["linear.weight"], maps["linear.bias"]
        layer: ImplicitModel | ImplicitRNN = ImplicitRNN(p - r, len(E), r, n, rng=0, **common)
        params |= {"E": E, "e": e}
    else:
        layer = ImplicitModel(p, r, n, rng=0, **common)
    layer.params = params
    return layer


def to_torchidl(
    layer: ImplicitModel | ImplicitRNN, *, kappa: float = 0.99, function: str = "inf"
) -> dict[str, torch.Tensor]:
    """Return the `state_dict` of the torchidl model that computes what the layer computes.

    Load it into ``torchidl.ImplicitModel(p, q, n, bias=layer.bias, kappa=kappa, ...)``
    or ``torchidl.ImplicitRNN(p, q, n, r, ...)``, with ``no_D=True`` where the result
    has no D, ``is_low_rank=True, rank=k`` for a layer of rank k, and the `f` of
    `function`.

    Parameters
    ----------
    layer : ImplicitModel or ImplicitRNN
        With ReLU; a network without outputs for every step.
    kappa : float
        The radius of torchidl's model.
    function : {"inf", "triangular", "none"}
        Its `f`: ImplicitFunctionInf, ImplicitFunctionTriu, or ImplicitFunction.

    Raises
    ------
    InputError
        If torchidl has no such model: another activation, outputs for every step, or an
        A (or factors, however balanced) that it would change.
    """
    if not isinstance(layer, (ImplicitModel, ImplicitRNN)):
        raise InputError(f"torchidl has ImplicitModel and ImplicitRNN; got {type(layer).__name__}")
    if layer.activation is not activations.relu:
        raise InputError(f"torchidl's models have ReLU; the activation is {layer.activation.name}")
    if isinstance(layer, ImplicitRNN) and layer.return_sequences:
        raise InputError(
            "torchidl's ImplicitRNN gives the last output alone; use layer.replace(return_sequences=False)"
        )
    _check(kappa, function)
    maps = {key: to_numpy(a) for key, a in layer.params.items()}
    state = _stored(maps, kappa, function)
    n, r = maps["B"].shape[0], maps["C"].shape[0]
    D = maps.get("D")
    if D is not None and D.shape[1] < maps["B"].shape[1]:  # feedthrough="input"
        D = np.concatenate([D, np.zeros((r, r), D.dtype)], axis=1)
    B, d = maps["B"], maps.get("d")
    if layer.bias:
        B = np.concatenate([B, maps["b"].reshape(n, 1)], axis=1)
        if D is None and d is not None and d.any():
            D = np.zeros((r, maps["B"].shape[1]), d.dtype)
        if D is not None and d is not None:
            D = np.concatenate([D, d.reshape(r, 1)], axis=1)
    state |= {"B": B, "C": maps["C"]} | ({} if D is None else {"D": D})
    if isinstance(layer, ImplicitRNN):
        state = {STEP + key: a for key, a in state.items()}
        state |= {
            "linear.weight": maps["E"],
            "linear.bias": maps["e"] if layer.bias else np.zeros(len(maps["E"]), B.dtype),
        }
    return {key: torch.from_numpy(a.copy()) for key, a in state.items()}


def _size(M: np.ndarray) -> float:
    """``||M||_inf``."""
    return float(np.abs(M).sum(axis=1).max())


def _scaled(M: np.ndarray, kappa: float) -> np.ndarray:
    """``s(M)``."""
    size = _size(M)
    return M if size <= kappa else M * M.dtype.type(kappa / size)


def _used(maps: Mapping[str, np.ndarray], kappa: float, function: str) -> dict[str, np.ndarray]:
    """A, or L and R, as torchidl uses them."""
    if "A" in maps:
        A = maps["A"]
        return {"A": {"inf": _scaled(A, kappa), "triangular": np.triu(A, 1), "none": A}[function]}
    L, R = (
        _scaled(maps["L"], kappa),
        np.ascontiguousarray(_scaled(np.ascontiguousarray(maps["R"].T), kappa).T),
    )
    if function == "triangular":
        return {"A": np.triu(L @ R.T, 1)}
    if function == "inf":
        size = _size(L @ R.T)
        L = L if size <= kappa else L * L.dtype.type(kappa / size)
    return {"L": L, "R": R}


def _stored(maps: Mapping[str, np.ndarray], kappa: float, function: str) -> dict[str, np.ndarray]:
    """A, or L and R, that torchidl uses as they are, but for the rounding of s."""
    up = 1.0 + 8 * float(np.finfo(maps["B"].dtype).eps)
    if "A" in maps:
        A, size = maps["A"], _size(maps["A"])
        if function == "inf" and size > kappa * up:
            raise InputError(
                f"||A||_inf is {size:.6g}, and torchidl would scale A to {kappa}; project with InfNorm({kappa}) first"
            )
        if function == "triangular" and np.any(np.tril(A)):
            raise InputError(
                f"{np.count_nonzero(np.tril(A))} entries of A on or below the diagonal are not 0; torchidl would drop them"
            )
        return {"A": A}
    if function == "triangular":
        raise InputError(
            "A = L R^T is not triangular, and torchidl would drop its lower half; use function='inf'"
        )
    L, R = maps["L"], maps["R"]
    left, right = _size(L), _size(R.T)
    c = (
        (right / left) ** 0.5 if left > 0 and right > 0 else 1.0
    )  # (c L)(R / c)^T = L R^T, with two equal norms
    if max(c * left, right / c) > kappa * up:
        raise InputError(
            f"torchidl scales the factors to ||L||_inf, ||R^T||_inf <= {kappa}; here both are {c * left:.4g} after balancing: write "
            "A = L R^T into a layer with rank=None, and convert that"
        )
    return {"L": L * L.dtype.type(c), "R": R / R.dtype.type(c)}


def _check(kappa: float, function: str) -> None:
    if function not in KINDS.values():
        raise InputError(f"function is {function!r}; use 'inf', 'triangular' or 'none'")
    if not kappa > 0:
        raise InputError(f"kappa is {kappa}; it is the radius of a ball, a positive number")


def _host(value: Any) -> np.ndarray:
    """A tensor or an array as a floating-point array on the host."""
    a = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return (
        a
        if a.dtype in (np.float32, np.float64)
        else a.astype(np.float32 if a.dtype == np.float16 else np.float64)
    )
