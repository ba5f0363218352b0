r"""Models of torchidl, read and written.

The equations that it implements, in the letters of pyidl.

torchidl (0.0.4) stores what its optimiser edits, and uses something else. With ``s(M) =
M min(1, kappa / ||M||_inf)``, it solves

    X = relu(A X + B [U, 1]),    Y = C X + D [U, 1]

in columns, with the 1 only with ``bias=True``, D only without ``no_D=True``, and

    A = s(A_stored)                  ImplicitFunctionInf, the default
    A = s(s(L) s(R^T))               the same with ``is_low_rank=True``; the outer s
                                     changes nothing for kappa <= 1
    A = the strict upper triangle of A_stored or of s(L) s(R^T)     ImplicitFunctionTriu
    A = A_stored or s(L) s(R^T)      ImplicitFunction

s scales the whole matrix where a single row is too long; it is no projection. Here the
A that is used becomes the parameter, so that outputs agree. Gradients with respect to A
are those at the A that is used, in both; torchidl applies them to the A that is stored,
as if s were not there. (For factors it differentiates the inner s.) The last columns of
B and D become b and d.

Its recurrent network iterates that model: see the file of that wing,
`pyidl.interop.torchidl_recurrent`.

What a `state_dict` does not hold is asked for: kappa, whether there is a bias (the
width of B does not say), whether A is triangular.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
import torch

from pyidl import activations
from pyidl.arrays import backend
from pyidl.errors import InputError, expect
from pyidl.interop.torchidl_layers import STEP, Rule
from pyidl.interop.wings import beside
from pyidl.layers import Layer

__all__ = ["from_torchidl", "to_torchidl"]

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
) -> Layer:
    """Return the layer that computes what a model of torchidl computes.

    Of its `ImplicitModel` or its `ImplicitRNN`.

    Parameters
    ----------
    source : torch.nn.Module or mapping of str to Tensor or array
        The model, or its `state_dict`; a file is read before, by
        ``torch.load(path, weights_only=True)``. A model says itself what the other
        arguments say, and they are ignored. (Its kappa is that of the last model that
        was built: torchidl keeps it in a class.)
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
        `StrictlyTriangular` or `Unconstrained` as constraint. The triangle of a product
        of factors has no low rank, and becomes a full A. Inputs of shape (m, a, b),
        which torchidl's ImplicitModel flattens, must be flattened before.

    Raises
    ------
    InputError
        If the source is no such model: a name is missing or not known, an entry is no
        array of finite real numbers, a shape does not fit, or `f` is a function of your
        own.

    Examples
    --------
    >>> state = {"A": [[3.0, 1.0], [0.0, 1.0]], "B": np.ones((2, 3))}
    >>> state |= {"C": np.ones((1, 2)), "D": np.ones((1, 3))}
    >>> model = from_torchidl(state, kappa=0.8, bias=True)
    >>> model.params["A"], model.input_dim
    (array([[0.6, 0.2],
           [0. , 0.2]]), 2)
    """
    if isinstance(source, torch.nn.Module):
        step = source.get_submodule(STEP[:-1]) if hasattr(source, "recurrent") else source
        if not (hasattr(step, "f") and hasattr(step, "bias")):
            raise InputError(
                "from_torchidl reads models of torchidl and their state_dict, not "
                f"{type(source).__name__}"
            )
        name = type(step.f).__name__
        if name not in KINDS:
            raise InputError(
                f"f is {name}, whose equation pyidl does not know; it knows {', '.join(KINDS)}: "
                "build the layer by hand"
            )
        kappa, bias, function = float(step.f.kappa), bool(step.bias), KINDS[name]
        source = source.state_dict()
    wanted = "a model of torchidl or its state_dict is needed, of a file torch.load(path, "
    expect("source", source, Mapping, wanted + "weights_only=True)")
    expect("bias", bias, bool, "use True or False")
    rule = Rule(kappa, function)
    state = {str(key): _host(str(key), value) for key, value in source.items()}
    # torchidl has named its network as pyidl its wing.
    wing = STEP.split(".")[0] if any(key.startswith(STEP) for key in state) else "layers"
    file = importlib.import_module(f"pyidl.interop.torchidl_{wing}")
    layer: Layer = file.read(state, bias, rule)
    return layer


def to_torchidl(
    layer: Layer, *, kappa: float = 0.99, function: str = "inf", bias: bool | None = None
) -> dict[str, torch.Tensor]:
    """Return the `state_dict` of the model of torchidl that computes what a layer does.

    Load it into ``torchidl.ImplicitModel(p, q, n, bias=bias, kappa=kappa, ...)`` or
    ``torchidl.ImplicitRNN(p, q, n, r, ...)``, with ``no_D=True`` where the result has
    no D, ``is_low_rank=True, rank=k`` for a layer of rank k, and the `f` of `function`.

    Parameters
    ----------
    layer : ImplicitModel or ImplicitRNN
        With ReLU; a network without outputs for every step.
    kappa : float
        The radius of torchidl's model.
    function : {"inf", "triangular", "none"}
        Its `f`: ImplicitFunctionInf, ImplicitFunctionTriu, or ImplicitFunction.
    bias : bool, optional
        Whether torchidl's model was built with ``bias=True``. Left out, it is as the
        layer has it; for a network, whose e torchidl has in any case, it is whether b
        or d differ from 0.

    Returns
    -------
    dict of str to Tensor
        In the dtype of the layer.

    Raises
    ------
    InputError
        If torchidl has no such model: another activation, outputs for every step, an A
        (or factors, however balanced) that it would change, or b and d with
        ``bias=False``.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> sorted(to_torchidl(ImplicitModel(3, 2, 6, rng=0)))
    ['A', 'B', 'C', 'D']
    """
    file = beside("torchidl", type(layer))
    if file is None or not isinstance(layer, file.KIND):
        raise InputError(f"torchidl has ImplicitModel and ImplicitRNN; got {type(layer).__name__}")
    activation = layer.activation
    if activation is not activations.relu:
        raise InputError(f"torchidl's models have ReLU; the activation is {activation.name}")
    expect("bias", bias, (bool, NoneType), "use True, False or None")
    state = file.write(layer, Rule(kappa, function), bias)
    return {key: torch.from_numpy(a.copy()) for key, a in state.items()}


def _host(name: str, value: Any) -> np.ndarray:
    """A tensor or an array as a floating-point array on the host."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    a = backend.read_array(value, name)
    dtype = "float32" if a.dtype in (np.float16, np.float32) else "float64"
    return np.asarray(backend.as_real(a, name=name, xp=np, dtype=dtype))
