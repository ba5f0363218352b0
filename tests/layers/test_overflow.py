"""What overflows on the way to Y, or in a gradient, is said, by every layer and every door."""

import array_api_strict
import numpy as np
import pytest
from helpers import moved

from pyidl import (
    ImplicitModel,
    ImplicitRNN,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
    activations,
    optim,
)
from pyidl.errors import ConvergenceWarning, InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's
P = 3


def with_params(layer, **values):
    """The layer with these numbers in all entries of some parameters."""
    full = {key: np.full(layer.params[key].shape, value) for key, value in values.items()}
    layer.params = {**layer.params, **full}
    return layer


def largest(dtype):
    return float(np.finfo(dtype).max)


def model(dtype):
    """Its states are those of tanh; its outputs are linear in the inputs besides."""
    return with_params(
        ImplicitModel(P, 2, 5, activation=activations.tanh, dtype=dtype, rng=0), D=2.0
    )


def network(dtype, **options):
    """Its steps do not overflow; what is read from them does."""
    layer = ImplicitRNN(P, 2, 4, 5, activation=activations.tanh, dtype=dtype, rng=0, **options)
    return with_params(layer, d=9.0, E=largest(dtype))


def linear(dtype):
    return with_params(Linear(P, P, dtype=dtype), W=2.0)


LAYERS = {
    "a tanh model": model,
    "a linear layer": linear,
    "layers one after another": lambda dtype: Sequential(
        linear(dtype), activations.relu, with_params(Linear(P, 2, dtype=dtype), W=1.0)
    ),
    "a residual": lambda dtype: Residual(
        with_params(Linear(P, P, dtype=dtype), W=0.0, b=largest(dtype))
    ),
    "layer norm": lambda dtype: LayerNorm(P, dtype=dtype),
    "an activation": lambda dtype: Pointwise(activations.layer_norm(P)),
    "a recurrent network": network,
    "a recurrent network, every step": lambda dtype: network(dtype, return_sequences=True),
    "positions": lambda dtype: with_params(PositionEmbedding(4, P, dtype=dtype), P=largest(dtype)),
}


def case(name, dtype):
    """A layer, and finite inputs for which its output is not finite."""
    layer = LAYERS[name](dtype)
    if isinstance(layer, ImplicitRNN):
        return layer, np.ones((2, 4, P), dtype)
    return layer, np.full((2, 4, P) if name == "positions" else (2, P), largest(dtype), dtype)


def doors(layer, U):
    """All ways to an output: calls that take `on_fail`."""
    yield lambda **o: layer(U, **o)[0]
    yield lambda **o: layer.predict(U, **o)
    yield lambda **o: layer.predict(U, batch_size=1, **o)
    u = U[:, 0, :] if U.ndim == 3 else U
    if isinstance(layer, ImplicitRNN):
        yield lambda **o: layer.cell.step(u, **o)[0]
    elif not isinstance(layer, (ImplicitModel, Sequential)):  # its layers refuse infinite inputs
        yield lambda **o: layer.step(u, layer.start(2), **o)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_an_output_that_is_not_finite_is_refused(name, dtype):
    layer, U = case(name, dtype)
    for door in doors(layer, U):
        with pytest.raises(InputError, match=f"Y has .* too large for {dtype}"):
            door()
        with pytest.warns(ConvergenceWarning, match="Y has"):
            Y = door(on_fail="warn")
        assert not np.isfinite(Y).all()
        assert np.array_equal(Y, door(on_fail="ignore"), equal_nan=True)


def test_other_libraries_are_looked_at_where_that_is_free():
    layer, U = case("a linear layer", "float64")
    with pytest.raises(InputError, match="Y has 6 entries"):
        moved(layer, array_api_strict)(array_api_strict.asarray(U))


@pytest.mark.parametrize("name", ["a tanh model", "a linear layer", "layers one after another"])
@pytest.mark.parametrize("method", [optim.SGD, optim.Adam])
def test_a_gradient_that_overflows_is_not_taken(name, method):
    """The sum over the batch does; the optimiser's step is refused, and the model stays."""
    layer, U = case(name, "float64")
    U, before = U / 64, dict(layer.params)
    Y, pull = layer(U)
    _, grads = pull(np.full(Y.shape, 1e3))
    assert not all(np.isfinite(g).all() for g in grads.values())
    with pytest.raises(InputError, match="NaN, infinite, or too large"):
        layer.params = layer.project(method(1e-3).step(layer.params, grads))
    assert all(layer.params[key] is a for key, a in before.items())
