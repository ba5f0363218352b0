"""Inputs of every size: the right answer or a clear error, in bounded time.

Sizes go from the smallest to the largest that a dtype holds in full precision. What is
right is what the stopping rule promises, `tol (1 + max|x|)`: states much smaller than 1
are known to an absolute error.
"""

import signal
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

from pyidl import (
    Bidirectional,
    BoundedSoftmax,
    Dropout,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    KernelAttention,
    LayerNorm,
    Linear,
    Pattern,
    Pointwise,
    PositionEmbedding,
    PyidlError,
    Residual,
    Sequential,
    Softmax,
    activations,
    wellposed,
)

P, Q, N, T = 3, 2, 8, 4
SECONDS = 20
EXPONENTS = {
    "float32": (-30, -20, -10, -5, 0, 5, 10, 15, 19, 25, 30),
    "float64": (-300, -200, -100, -30, -8, 0, 8, 30, 100, 150, 154, 160, 200, 250, 300),
}


def model(**options):
    return lambda dtype: ImplicitModel(P, Q, N, dtype=dtype, rng=0, **options)


def head(attention):
    return lambda dtype: ImplicitAttentionHead(
        P, 4, attention=attention, block_size=8, dtype=dtype, rng=0
    )


ACTIVATIONS = [
    name
    for name in activations.__all__
    if isinstance(getattr(activations, name), activations.Activation)
]
CONSTRAINTS = [
    "SpectralNorm",
    "Monotone",
    "MatrixMeasure",
    "PerronFrobenius",
    "StrictlyTriangular",
    "Unconstrained",
]
ROWS = {
    **{name: model(activation=getattr(activations, name)) for name in ACTIVATIONS},
    **{name: model(constraint=getattr(wellposed, name)()) for name in CONSTRAINTS},
    "leaky relu": model(activation=activations.leaky_relu(0.1)),
    "layer norm": model(activation=activations.layer_norm(4)),
    "LipschitzBound": model(constraint=wellposed.LipschitzBound(5.0)),
    "rank": model(rank=2),
    "linear": lambda dtype: Linear(P, Q, dtype=dtype, rng=0),
    "deep": lambda dtype: Sequential(
        Linear(P, 5, dtype=dtype, rng=0),
        activations.tanh,
        ImplicitModel(5, Q, N, dtype=dtype, rng=0),
    ),
    "normalised": lambda dtype: Sequential(
        LayerNorm(P, dtype=dtype), ImplicitModel(P, Q, N, dtype=dtype, rng=0)
    ),
    "residual": lambda dtype: Residual(Linear(P, P, dtype=dtype, rng=0)),
    "pattern": model(pattern=Pattern.feed_forward(P, 4, 4, Q)),
    "blocks": model(constraint=wellposed.BlockTriangular((4, 4), wellposed.InfNorm(0.9))),
    "pointwise": lambda dtype: Pointwise(activations.gelu),
    "dropout": lambda dtype: Sequential(Dropout(0.5), Linear(P, Q, dtype=dtype, rng=0)),
}
SEQUENCES = {
    **{
        f"rnn {name}": lambda dtype, name=name: ImplicitRNN(
            P, Q, 6, 6, activation=getattr(activations, name), dtype=dtype, rng=0
        )
        for name in ("relu", "tanh", "sigmoid")
    },
    "bidirectional": lambda dtype: Bidirectional(
        *(ImplicitRNN(P, Q, 6, 6, dtype=dtype, rng=seed) for seed in (0, 1))
    ),
    "softmax head": head(Softmax()),
    "bounded head": head(BoundedSoftmax()),
    "kernel head": head(KernelAttention()),
    "positions": lambda dtype: PositionEmbedding(8, P, dtype=dtype, rng=0),
    "block": lambda dtype: ImplicitTransformerBlock(
        P, num_heads=1, block_size=8, dtype=dtype, rng=0
    ),
}
ALL = ROWS | SEQUENCES


class TimeIsUp(BaseException):
    """No pyidl code may catch it."""


@contextmanager
def limit(seconds):
    """Raise `TimeIsUp` where the body takes longer, on systems that can."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TimeIsUp(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the system has no alarm")
def test_the_limit_stops_what_does_not_end():
    with pytest.raises(TimeIsUp), limit(1):
        signal.pause()


def answer(layer, U):
    """``(Y, pullback)`` or None, and the gradients or None; no other error than ours."""
    try:
        Y, pull = layer(U)
    except PyidlError:
        return None, None
    try:
        du, grads = pull(np.random.default_rng(1).normal(size=Y.shape).astype(Y.dtype))
    except PyidlError:
        return (Y, pull), None
    return (Y, pull), {"the input": du, **grads}


def exact_residual(layer, U, X):
    """``max|phi(A X + B U + b) - X| / (1 + max|X|)`` in extended precision."""
    p = {key: np.asarray(a, np.longdouble) for key, a in layer.params.items()}
    A = p["L"] @ p["R"].T if "L" in p else p["A"]
    X, U = X.astype(np.longdouble), U.astype(np.longdouble)
    change = np.abs(layer.activation(X @ A.T + U @ p["B"].T + p["b"]) - X).max(axis=1)
    return float((change / (1 + np.abs(X).max(axis=1))).max())


def sweep(name, dtype):
    """Every size; how many were answered, forward and with gradients."""
    layer, precise, answered = ALL[name](dtype), ALL[name]("float64"), [0, 0]
    shape = (5, P) if name in ROWS else (3, T, P)
    base = np.random.default_rng(0).normal(size=shape)
    precise.params = {key: np.asarray(a, "f8") for key, a in layer.params.items()}
    for exponent in EXPONENTS[dtype]:
        U = (base * 10.0**exponent).astype(dtype)
        with limit(SECONDS):
            found, grads = answer(layer, U)
            reference, exact = (
                answer(precise, U.astype("f8")) if dtype == "float32" else (None, None)
            )
        if found is None:
            continue
        answered[0] += 1
        answered[1] += grads is not None
        Y, pull = found
        assert np.isfinite(Y).all(), exponent
        if name in AMPLIFIED and exponent < 0:
            reference = exact = None
        if reference is not None:
            allowed = 1e-4 * (1 + np.abs(reference[0]).max())
            assert np.abs(Y - reference[0]).max() <= allowed, exponent
        if dtype == "float64" and isinstance(layer, ImplicitModel) and name not in NO_LONG_DOUBLE:
            assert exact_residual(layer, U, pull.forward.value) < 1e-11, exponent
        for key, a in (grads or {}).items():
            assert np.isfinite(a).all(), (exponent, key)
            if exact is not None and abs(exponent) <= 5:
                allowed = 1e-4 + 1e-3 * np.abs(exact[key]).max()
                assert np.abs(a - exact[key]).max() <= allowed, (exponent, key)
    return answered


AMPLIFIED = {"block"}
"""Its last part divides by the size of the state, and so the error of a small one."""

NO_LONG_DOUBLE = {"gelu", "softmax", "layer norm", "sin"}
"""phi in extended precision is another function; sin of 1e8 is known to 1e-8."""


@pytest.mark.parametrize("dtype", EXPONENTS)
@pytest.mark.parametrize("name", ALL)
def test_inputs_of_every_size(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward, backward = sweep(name, dtype)
    assert forward >= 7
    assert backward >= 5
