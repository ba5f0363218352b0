"""A pullback answers for the inputs of its forward call.

Also after the caller has used their buffers again.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close

import pyidl
from pyidl import activations
from pyidl.arrays import backend
from pyidl.cells import AffineCell
from pyidl.equilibrium import equilibrium
from pyidl.matrices.full import Full

RNG = np.random.default_rng(0)
ROWS, SEQUENCES = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 5, 3))


def sequence(dtype):
    return pyidl.ImplicitRNN(3, 2, 6, 8, dtype=dtype, rng=0, return_sequences=True)


LAYERS = {
    "linear": (lambda d: pyidl.Linear(3, 2, dtype=d, rng=0), ROWS),
    "implicit": (lambda d: pyidl.ImplicitModel(3, 2, 6, dtype=d, rng=0), ROWS),
    "low rank": (lambda d: pyidl.ImplicitModel(3, 2, 6, rank=2, dtype=d, rng=0), ROWS),
    "norm": (lambda d: pyidl.LayerNorm(3, dtype=d), ROWS),
    "pointwise": (lambda d: pyidl.Sequential(activations.tanh), ROWS),
    "sequential": (
        lambda d: pyidl.Sequential(pyidl.Linear(3, 3, dtype=d, rng=0), activations.tanh),
        ROWS,
    ),
    "pointwise first": (
        lambda d: pyidl.Sequential(activations.tanh, pyidl.Linear(3, 2, dtype=d, rng=0)),
        ROWS,
    ),
    "residual": (lambda d: pyidl.Residual(pyidl.Linear(3, 3, dtype=d, rng=0)), ROWS),
    "rnn": (sequence, SEQUENCES),
    "bidirectional": (
        lambda d: pyidl.Bidirectional(sequence(d), sequence(d).replace(warm_start=False)),
        SEQUENCES,
    ),
    "attention": (
        lambda d: pyidl.ImplicitAttentionHead(3, 4, block_size=5, dtype=d, rng=0),
        SEQUENCES,
    ),
}


def gradients(pull, Y):
    dU, grads = pull(np.cos(np.arange(Y.size)).reshape(Y.shape))
    return {"U": dU, **grads}


def overwritten(call, U, expected):
    """The same gradients where U is overwritten between the two passes."""
    U = U.copy()
    Y, pull = call(U)
    U[...] = 5 if U.dtype.kind == "f" else 0
    found = gradients(pull, Y)
    for key, g in expected.items():
        if g is not None:
            assert_close(found[key], g, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["float32", "float64"])
def test_a_buffer_that_is_used_again(kind, dtype, given):
    make, U = LAYERS[kind]
    layer, U = make(dtype), U.astype(given)
    Y, pull = layer(U)
    overwritten(layer, U, gradients(pull, Y))


@pytest.mark.parametrize("given", ["int32", "int64"])
def test_tokens(given):
    layer = pyidl.Sequential(pyidl.Embedding(7, 3, rng=0), pyidl.Linear(3, 2, rng=1))
    tokens = np.array([[1, 2, 6], [0, 1, 1]], given)
    Y, pull = layer(tokens)
    expected = gradients(pull, Y)
    for call in (layer, layer.parts["0"]):
        if call is not layer:
            Y, pull = call(tokens)
            expected = gradients(pull, Y)
        overwritten(call, tokens, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_starts_and_cotangents(dtype):
    model = pyidl.ImplicitModel(3, 2, 6, dtype=dtype, rng=0)
    rnn, h0 = sequence(dtype), RNG.normal(size=(4, 6)).astype(dtype)
    U, x0 = ROWS.astype(dtype), RNG.normal(size=(4, 6)).astype(dtype)
    Y, pull = model(U, x0=x0)
    expected = gradients(pull, Y)
    overwritten(lambda x: model(U, x0=x), x0, expected)
    S = SEQUENCES.astype(dtype)
    Y, pull = rnn(S, h0=h0)
    dY = np.cos(np.arange(Y.size)).reshape(Y.shape)
    (dU, dh0), grads = pull(dY)
    start = h0.copy()
    _, again = rnn(S, h0=start)
    start[...] = 5.0
    (dV, dg0), others = again(dY)
    for found, g in ((dV, dU), (dg0, dh0), *((others[key], g) for key, g in grads.items())):
        assert_close(found, g, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_equilibrium_of_a_cell(dtype):
    A, B, u = (RNG.normal(size=s).astype(dtype) / 4 for s in ((5, 5), (5, 3), (4, 3)))
    cell = AffineCell(Full(A), Full(B), None, activations.tanh)
    Y, pull = equilibrium(cell, u)
    overwritten(lambda v: equilibrium(cell, v), u, gradients(pull, Y))


def test_only_a_call_copies_and_only_what_could_change(monkeypatch):
    kept = []
    monkeypatch.setattr(
        pyidl.Linear,
        "_forward",
        lambda self, U, call, _forward=pyidl.Linear._forward: (
            kept.append(U) or _forward(self, U, call)
        ),
    )
    layer = pyidl.Sequential(pyidl.Linear(3, 3, rng=0), pyidl.Linear(3, 2, rng=0))
    U = ROWS.astype("float32")
    layer.predict(U)
    layer.parts["0"].predict(U)
    layer(backend.freeze(U.copy()))
    layer(U)
    shared = [np.shares_memory(U, a) for a in kept if a.shape == U.shape]
    assert shared == [True, False, True, False, False, False, False]
    frozen = backend.freeze(U.copy())
    kept.clear()
    layer(frozen)
    assert kept[0] is frozen
    view = U[:]
    view.flags.writeable = False
    kept.clear()
    layer(view)
    assert not np.shares_memory(kept[0], U)
