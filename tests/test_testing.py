"""The checks are themselves checked: each broken twin must be caught, and by name."""

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import random_model

from pyidl import ImplicitModel, Linear, Sequential, activations
from pyidl.activations import Activation
from pyidl.errors import GradientMismatchError, InputError
from pyidl.layers.base import Explicit
from pyidl.testing import check_activation, check_pullback

P, Q, N = 4, 3, 8
U = np.random.default_rng(0).normal(size=(6, P))


def broken(change):
    """A linear layer whose pullback is spoilt by `change(dU, grads, inputs, calls)`."""

    @dataclass(eq=False, repr=False)
    class Broken(Linear):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            calls = []

            def backward(dY, inputs):
                calls.append(1)
                return change(*pull.backward(dY, inputs), inputs, len(calls))

            return Y, Explicit(Y, backward)

    return Broken(P, Q, rng=0)


BROKEN = {
    "sign of the input gradient": (
        lambda dU, g, i, k: (-dU if i else None, g),
        "with respect to U",
    ),
    "a factor in W": (lambda dU, g, i, k: (dU, {**g, "W": 2 * g["W"]}), "with respect to W"),
    "one wrong entry of W": (
        lambda dU, g, i, k: (dU, {**g, "W": g["W"] + np.eye(Q, P)}),
        "with respect to W",
    ),
    "b is forgotten": (lambda dU, g, i, k: (dU, {**g, "b": 0 * g["b"]}), "with respect to b"),
    "a tiny error": (
        lambda dU, g, i, k: (dU, {**g, "b": g["b"] * (1 + 1e-4)}),
        "with respect to b",
    ),
    "a missing key": (lambda dU, g, i, k: (dU, {"W": g["W"]}), "returns gradients of"),
    "an extra key": (lambda dU, g, i, k: (dU, {**g, "c": g["b"]}), "returns gradients of"),
    "a transposed gradient": (
        lambda dU, g, i, k: (dU, {**g, "W": g["W"].T}),
        "the gradient of Broken with respect to W has",
    ),
    "a dtype": (lambda dU, g, i, k: (dU, {**g, "W": g["W"].astype("f4")}), "float32"),
    "memory of the last call": (lambda dU, g, i, k: (dU, {**g, "W": k * g["W"]}), "called again"),
    "inputs=False is ignored": (lambda dU, g, i, k: (U, g), "although inputs=False"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_layers_are_caught(case):
    change, message = BROKEN[case]
    with pytest.raises(GradientMismatchError, match=message):
        check_pullback(broken(change), U)


def test_the_unbroken_twin_passes():
    assert check_pullback(broken(lambda dU, g, i, k: (dU, g)), U).max_error < 1e-8


def test_a_broken_layer_is_caught_behind_another_one():
    change, _ = BROKEN["sign of the input gradient"]
    layer = broken(change).replace()
    with pytest.raises(GradientMismatchError, match=r"with respect to U|with respect to 0"):
        check_pullback(Sequential(Linear(P, P, rng=1), layer), U)


def test_a_wrong_dphi_is_caught_through_the_equilibrium():
    wrong = Activation("wrong", np.tanh, lambda z: 1 - np.tanh(z), lipschitz=1.0)
    model = random_model(ImplicitModel, P, Q, N, activation=wrong)
    with pytest.raises(GradientMismatchError):
        check_pullback(model, U)


def test_a_gradient_through_one_step_only_is_caught():
    """The Jacobian-free shortcut v = s * g is biased, and the check says so."""
    model = random_model(ImplicitModel, P, Q, N, dtype="float64")
    Y, pull = model(U)
    G = np.ones_like(Y)
    exact = pull.solve(G).value
    one_step = pull.equilibrium.cell.linearize(pull.forward, U, G @ model.params["C"]).start()[1]
    assert np.abs(one_step - exact).max() > 1e-2 * np.abs(exact).max()


def test_the_layer_is_not_changed():
    model = random_model(ImplicitModel, P, Q, N)
    before = dict(model.params)
    check_pullback(model, U)
    assert all(model.params[k] is before[k] for k in before)


def test_a_point_on_a_kink_is_said():
    with pytest.raises(InputError, match="kink"):
        check_pullback(Sequential(activations.relu), np.zeros((3, 2)))


def test_a_layer_that_is_no_function_is_said():
    class Noisy(Linear):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            return Y + np.random.default_rng().normal(size=Y.shape), pull

    with pytest.raises(InputError, match="random"):
        check_pullback(Noisy(P, Q, rng=0), U)


def test_what_is_no_layer_is_refused():
    with pytest.raises(InputError, match="check_activation"):
        check_pullback(activations.relu, U)


def test_the_report():
    report = check_pullback(random_model(ImplicitModel, P, Q, N), U)
    assert report.max_error == report.errors[report.worst] < 1e-6
    same = check_pullback(random_model(ImplicitModel, P, Q, N), U)
    assert same.errors == report.errors


ACTIVATIONS = {
    "wrong derivative": (
        lambda z: np.tanh(z),
        lambda z: 1 - np.tanh(z),
        {"lipschitz": 1.0},
        "wrong at z",
    ),
    "wrong on the left only": (
        lambda z: np.maximum(z, 0),
        lambda z: np.ones_like(z),
        {"lipschitz": 1.0},
        "wrong at z",
    ),
    "a slope outside the range": (np.sin, np.cos, {"slope_range": (0.0, 1.0)}, "claims slopes"),
    "a constant too small": (
        lambda z: 2 * z,
        lambda z: 0 * z + 2,
        {"lipschitz": 1.5},
        "claims slopes",
    ),
    "not homogeneous": (
        np.tanh,
        lambda z: 1 - np.tanh(z) ** 2,
        {"lipschitz": 1.0, "homogeneous": True},
        "claims phi",
    ),
    "no fixed point": (
        lambda z: np.maximum(z, 0),
        lambda z: (z > 0).astype(z.dtype),
        {"lipschitz": 1.0, "scalar_solve": lambda r, d: np.maximum(r, 0)},
        "scalar_solve",
    ),
    "no proximal map": (
        lambda z: np.maximum(z, 0),
        lambda z: (z > 0).astype(z.dtype),
        {"slope_range": (0.0, 1.0), "resolvent": lambda u, alpha: u},
        "resolvent of 'case' does not solve",
    ),
    "a jump that is no kink": (
        lambda z: np.maximum(z, 0),
        lambda z: (z > 0).astype(z.dtype),
        {"lipschitz": 1.0, "curvature": 1.0},
        "curvature of 1 away",
    ),
    "a kink in the wrong place": (
        lambda z: np.clip(z, -1, 1),
        lambda z: (np.abs(z) < 1).astype(z.dtype),
        {"slope_range": (0.0, 1.0), "curvature": 0.0, "kinks": (-1.0, 1.1)},
        r"away from the kinks \(-1.0, 1.1\)",
    ),
    "more curved than it says": (
        np.sin,
        np.cos,
        {"lipschitz": 1.0, "curvature": 0.99},
        "curvature of 0.99",
    ),
    "curved at one place": (
        lambda z: z + 1e-3 * np.sin(z * 1e3) * np.exp(-(z**2)) / 1e3,
        lambda z: 1 + 1e-3 * (np.cos(z * 1e3) - 2 * z * np.sin(z * 1e3) / 1e3) * np.exp(-(z**2)),
        {"slope_range": (0.99, 1.01), "curvature": 0.5},
        "per unit",
    ),
    "not piecewise linear": (
        np.tanh,
        lambda z: 1 - np.tanh(z) ** 2,
        {"lipschitz": 1.0, "curvature": 0.0, "kinks": (100.0,)},
        "curvature of 0",
    ),
    "another dtype": (
        lambda z: z.astype(float),
        lambda z: np.ones_like(z),
        {"lipschitz": 1.0},
        "must keep both",
    ),
    "a kink everywhere": (
        lambda z: np.round(z * 1e6) / 1e6,
        lambda z: np.ones_like(z),
        {"lipschitz": 1.0},
        "kink",
    ),
}


UPPER = np.triu(np.ones((7, 7)))
VECTORS = {
    "wrong vjp": (
        activations.softmax.phi,
        lambda z, w: activations.softmax(z) * w,
        {"lipschitz": 0.5},
        "vjp of 'case' is wrong",
    ),
    "not transposed": (
        lambda z: z @ UPPER.astype(z.dtype),
        lambda z, w: w @ UPPER.astype(z.dtype),
        {"lipschitz": 5.0},
        "is wrong",
    ),
    "a constant too small": (
        activations.softmax.phi,
        activations.softmax.vjp,
        {"lipschitz": 0.45},
        "claims to be 0.45-Lipschitz",
    ),
    "not homogeneous": (
        activations.softmax.phi,
        activations.softmax.vjp,
        {"lipschitz": 0.5, "homogeneous": True},
        "claims phi",
    ),
    "another dtype": (
        lambda z: z.astype(float),
        lambda z, w: w,
        {"lipschitz": 1.0},
        "must keep both",
    ),
    "another shape": (lambda z: z, lambda z, w: w[:1], {"lipschitz": 1.0}, "vjp of 'case' turns"),
    "a kink everywhere": (
        lambda z: np.round(z * 1e6) / 1e6,
        lambda z, w: w,
        {"lipschitz": 1.0},
        "kink",
    ),
}


@pytest.mark.parametrize("case", VECTORS)
@pytest.mark.parametrize("alone", [True, False])
def test_broken_vector_activations_are_caught(case, alone):
    phi, vjp, claims, message = VECTORS[case]
    if case in ("not homogeneous", "another shape") and not alone:
        return  # a claim that Blocks do not make, and a shape that they cannot join
    broken = activations.VectorActivation("case", phi, vjp, **claims)
    with pytest.raises(GradientMismatchError, match=message if alone else None):
        check_activation(
            broken if alone else activations.Blocks((activations.relu, 2), (broken, 7))
        )


def test_good_vector_activations_pass():
    matrix = np.random.default_rng(0).normal(size=(7, 7))
    linear = activations.VectorActivation(
        "linear",
        lambda z: z @ matrix.T.astype(z.dtype),
        lambda z, w: w @ matrix.astype(w.dtype),
        np.linalg.norm(matrix, 2),
        homogeneous=True,
    )
    report = check_activation(linear)
    assert report.max_error < 1e-7
    assert report.slope_range[1] == pytest.approx(linear.lipschitz)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_broken_activations_are_caught(case):
    phi, dphi, claims, message = ACTIVATIONS[case]
    with pytest.raises(GradientMismatchError, match=message):
        check_activation(Activation("case", phi, dphi, **claims))


def test_good_activations_pass():
    report = check_activation(
        Activation(
            "mine", lambda z: z / (1 + z * z) ** 0.5, lambda z: (1 + z * z) ** -1.5, lipschitz=1.0
        )
    )
    assert report.max_error < 1e-8
    assert report.slope_range == pytest.approx((0.0, 1.0), abs=1e-3)
    blocks = activations.Blocks((activations.relu, 3), (activations.gelu, 4))
    assert check_activation(blocks).max_error < 1e-6


def test_blocks_are_tried_with_their_scalar_solutions():
    """d is then different for every entry, and is cut along its last axis."""
    blocks = activations.Blocks((activations.relu, 2), (activations.abs, 4))
    assert blocks.scalar_solve is not None
    assert check_activation(blocks).max_error < 1e-6


def test_a_false_curvature_is_caught_inside_blocks():
    lying = Activation("lying", np.sin, np.cos, lipschitz=1.0, curvature=0.5)
    with pytest.raises(GradientMismatchError, match="'lying' claims a curvature"):
        check_activation(activations.Blocks((activations.relu, 3), (lying, 4)))
