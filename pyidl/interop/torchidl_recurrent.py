r"""`ImplicitRNN` of torchidl: ``H_t = Y`` of its `ImplicitModel`.

With the input ``[U_t, H_{t-1}]``, ``H_0 = 0``, and ``Y = E H_T + e``. The model of a
step is "recurrent.layer", E and e are "linear.weight" and "linear.bias". So D acts on
[U_t, H_{t-1}]: ``feedthrough=True`` in pyidl.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError
from pyidl.interop.torchidl_layers import STEP, Rule, read_step, write_step
from pyidl.recurrent import ImplicitRNN

__all__ = ["KIND", "read", "write"]

KIND = ImplicitRNN
ENDS = "linear.weight", "linear.bias"


def read(state: Mapping[str, np.ndarray], bias: bool, rule: Rule) -> ImplicitRNN:
    """The network that a `state_dict` describes."""
    maps = {key.removeprefix(STEP): a for key, a in state.items()}
    p, r, n, params, options = read_step(maps, set(ENDS), bias, rule)
    E, e = (maps[key] for key in ENDS)
    layer = ImplicitRNN(p - r, len(E), r, n, rng=0, **options)
    layer.params = params | {"E": E, "e": e}
    return layer


def write(layer: ImplicitRNN, rule: Rule, bias: bool | None) -> dict[str, np.ndarray]:
    """The `state_dict` of a network that reads its last state alone.

    torchidl has e with any step; here a network read from one without b and d has
    zeros in their place, which are not written.
    """
    if layer.return_sequences:
        raise InputError(
            "torchidl's ImplicitRNN gives the last output alone; use "
            "layer.replace(return_sequences=False)"
        )
    if bias is None:
        bias = layer.bias and any(bool(to_numpy(layer.params[key]).any()) for key in "bd")
    if layer.pool != "last":
        raise InputError(
            f"torchidl's ImplicitRNN reads the last state alone, and this one pools all, "
            f"pool={layer.pool!r}; layer.replace(pool='last') is another map, to be trained anew"
        )
    state = write_step(layer.params, bias, rule)
    E = to_numpy(layer.params["E"])
    e = to_numpy(layer.params["e"]) if layer.bias else np.zeros(len(E), E.dtype)
    return {STEP + key: a for key, a in state.items()} | dict(zip(ENDS, (E, e), strict=True))
