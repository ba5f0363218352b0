r"""A network of pyidl as one implicit model.

Layer by layer, on the forms of `Assembly`:

    Linear          W v + b
    activation      x = phi(v)
    LayerNorm       g * x + b,  x = n(v), the normalisation as an activation
    Residual        v + f(v), where v has two readers
    Dropout         v, as in a prediction
    ImplicitModel   x = phi(A x + B v + b),  C x + D v + d
    ImplicitRNN     `pyidl.compose.recurrent`

What is done to each token of a sequence is done to each of its forms.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 3.
"""

from __future__ import annotations

import numpy as np

from pyidl.activations import layer_norm
from pyidl.compose.assembly import Assembly, Step, host, vector
from pyidl.compose.forms import Entries, Form, add, stack, take
from pyidl.errors import InputError, expect
from pyidl.layers import (
    Dropout,
    ImplicitModel,
    Layer,
    LayerNorm,
    Linear,
    Pointwise,
    Residual,
    Sequential,
)
from pyidl.layers.base import check_width

__all__ = ["input_width", "through", "to_implicit"]


def to_implicit(
    network: Layer, *, steps: int | None = None, keep: bool | None = None
) -> ImplicitModel:
    """The network as one implicit model, ``x = phi(A x + B u + b)``.

    Its answers are those of the network up to rounding: matrices are multiplied in
    float64 and rounded once. Where the network has no fixed point, A is strictly block
    triangular, and a solve is one pass.

    Parameters
    ----------
    network : Layer
        Made of `Linear`, activations, `LayerNorm`, `Dropout`, `Residual`, `Sequential`,
        `ImplicitModel` and `ImplicitRNN`.
    steps : int, optional
        T, for networks of sequences: inputs (m, T, p) become rows (m, T p), outputs for
        each step (m, T q).
    keep : bool, optional
        Whether every quantity that a matrix reads is kept as states, with the identity
        as activation. None: where that leaves fewer entries.

    Returns
    -------
    ImplicitModel
        In the dtype and on the device of the network, with the pattern of its layers
        and the default solvers. Its set has the sets of the implicit models on its
        blocks. Weights that are used at every step stand in A once for each, and are
        trained apart.

    Raises
    ------
    InputError
        If a layer is none of these; it is named. If there is no activation, or `steps`
        is missing or not a positive integer.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 3; kept quantities by counting: derived here.

    Examples
    --------
    >>> from pyidl import Linear, Residual, Sequential
    >>> block = Residual(Linear(3, 8, rng=1), "relu", Linear(8, 3, rng=2))
    >>> net = Sequential(Linear(5, 3, rng=0), block, Linear(3, 2, rng=3))
    >>> model = to_implicit(net)
    >>> U = np.ones((4, 5))
    >>> bool(np.allclose(model.predict(U), net.predict(U), atol=1e-5))
    True
    >>> model.hidden_dim, model.certificate().applies_to
    (11, 'Substitution')
    """
    expect("network", network, Layer, "use Sequential(...) of the layers of pyidl")
    p = input_width(network)
    if p is None:
        raise InputError(
            "nothing tells the number of inputs: the network is activations alone, or reads "
            "tokens; begin with a Linear layer"
        )
    T = 1 if steps is None else check_width("steps", steps)
    assembly = Assembly(p * T, keep)
    tokens = [take(assembly.input, slice(t * p, (t + 1) * p)) for t in range(T)]
    value = through(assembly, network, tokens, steps is not None)
    return assembly.model(stack(value), network.xp, network.dtype)


def input_width(layer: Layer) -> int | None:
    """p, of the first part that tells it: activations and dropout keep a width."""
    if isinstance(layer, Sequential):
        return next((width for part in layer.layers if (width := input_width(part))), None)
    return layer._widths()[0]


def through(assembly: Assembly, layer: Layer, value: list[Form], timed: bool) -> list[Form]:
    """What the layer makes of a row, a list of one, or of the steps of a sequence."""
    if isinstance(layer, Residual):
        for form in value:
            form.readers += 1
    if isinstance(layer, Sequential):
        after = value
        for part in layer.layers:
            after = through(assembly, part, after, timed)
        residual = isinstance(layer, Residual)
        return list(map(add, value, after)) if residual else after
    if type(layer).__module__.startswith("pyidl.recurrent."):
        from pyidl.compose import recurrent  # there, since one of its layers is

        return recurrent.unrolled(assembly, layer, value, timed)
    return [_row(assembly, layer, form) for form in value]


def _row(assembly: Assembly, layer: Layer, form: Form) -> Form:
    """Layers that know no time."""
    if isinstance(layer, Dropout):  # without a generator it does nothing
        return form
    if isinstance(layer, Pointwise):
        return assembly.activation(form, layer.activation)
    if isinstance(layer, Linear):
        return assembly.affine(form, host(layer, "W"), vector(layer, "b"))
    if isinstance(layer, LayerNorm):
        x = assembly.activation(form, layer_norm(layer.eps))
        gain = Entries.of(np.diag(host(layer, "g")), np.eye(layer.dim, dtype=bool))
        return assembly.affine(x, gain, vector(layer, "b"))
    if isinstance(layer, ImplicitModel):
        return assembly.implicit(Step.of(layer), form)
    raise InputError(
        f"{type(layer).__name__} is not written as affine maps and activations; use Linear, "
        "activations, LayerNorm, Dropout, Residual, Sequential, ImplicitModel and ImplicitRNN"
    )
