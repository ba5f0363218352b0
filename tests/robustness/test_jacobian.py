"""Jacobians by rows and by columns, and by differences."""

import boxes
import numpy as np
import pytest
from helpers import host, moved

from pyidl import (
    Embedding,
    ImplicitModel,
    ImplicitRNN,
    LayerNorm,
    Linear,
    Residual,
    Sequential,
    activations,
    robustness,
)
from pyidl.errors import ConvergenceError, InputError
from pyidl.solvers import Picard
from pyidl.wellposed import Unconstrained


def differences(model, U, h=1e-6):
    """``(y(u + h e_j) - y(u - h e_j)) / 2h``."""
    E = h * np.eye(U.shape[1])
    columns = [(model.predict(U + e) - model.predict(U - e)) / (2 * h) for e in E]
    return np.stack(columns, axis=2)


@pytest.mark.parametrize(("p", "q"), [(2, 5), (5, 2)], ids=["columns", "rows"])
@pytest.mark.parametrize("kind", ["tanh measure", "rank", "blocks", "no D", "monotone tanh"])
def test_it_is_the_derivative(kind, p, q):
    model, U = boxes.drawn(kind, 8, 0, p=p, q=q), np.random.default_rng(0).normal(size=(4, p))
    J = robustness.jacobian(model, U)
    assert J.shape == (4, q, p)
    np.testing.assert_allclose(J, differences(model.with_tol(1e-13), U), atol=2e-8)


@pytest.mark.parametrize("kind", ["relu measure", "STEEP", "softplus measure", "rank", "spectral"])
def test_rows_and_columns_agree(kind):
    kind = f"{boxes.STEEP.name} measure" if kind == "STEEP" else kind
    model, U = boxes.drawn(kind, 9, 1, p=2, q=5), np.random.default_rng(1).normal(size=(6, 2))
    model = model.with_tol(1e-14)
    columns, (Y, pull) = robustness.jacobian(model, U), model(U)
    for k in range(5):
        dY = np.zeros_like(Y)
        dY[:, k] = 1.0
        row = pull(dY)[0]
        np.testing.assert_allclose(columns[:, k], row, rtol=0, atol=1e-12 * np.abs(row).max())


def test_of_layers():
    net = Sequential(
        Linear(3, 6, rng=0, dtype="float64"),
        LayerNorm(6, dtype="float64"),
        Residual(ImplicitModel(6, 6, 5, activation=activations.tanh, dtype="float64", rng=0)),
        Linear(6, 2, rng=1, dtype="float64"),
    )
    U = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(robustness.jacobian(net, U), differences(net, U), atol=1e-7)


def test_it_keeps_library_and_dtype(xp):
    for p, q in ((2, 4), (4, 2)):
        model = ImplicitModel(p, q, 5, rng=0)
        U = np.random.default_rng(0).normal(size=(3, p)).astype(np.float32)
        J = robustness.jacobian(moved(model, xp), xp.asarray(U))
        assert J.dtype == xp.float32
        np.testing.assert_allclose(host(J), robustness.jacobian(model, U), atol=1e-5)


def test_a_tangent_that_fails_is_no_answer():
    """``x = 3 x + u`` has a solution, which the adjoint's plain steps never reach."""
    model = ImplicitModel(
        1,
        2,
        1,
        activation=activations.identity,
        constraint=Unconstrained(),
        adjoint=Picard(max_iter=50),
        dtype="float64",
        rng=0,
    )
    model.params = {**model.params, "A": np.array([[3.0]])}
    with pytest.raises(ConvergenceError):
        robustness.jacobian(model, np.ones((2, 1)))


def test_what_is_refused():
    rnn = ImplicitRNN(2, 2, 2, 2, rng=0, return_sequences=True)
    with pytest.raises(InputError, match="one sample a row"):
        robustness.jacobian(rnn, np.ones((2, 3, 2)))
    tokens = Sequential(Embedding(5, 3, rng=0), ImplicitRNN(3, 2, 2, 4, rng=0))
    with pytest.raises(InputError, match="tokens"):
        robustness.jacobian(tokens, np.array([[0, 1], [2, 3]]))
    with pytest.raises(InputError, match="model"):
        robustness.jacobian("model", np.ones((2, 3)))
