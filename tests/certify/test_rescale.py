"""Rescaled models have the same outputs, and row sums near lambda_pf."""

import numpy as np
import pytest
from helpers import host, moved, random_model
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, InfNorm, Linear, Pattern, Sequential, activations, rescale
from pyidl.activations import Activation, Blocks
from pyidl.errors import InputError
from pyidl.wellposed.infnorm import absolute_row_sums
from pyidl.wellposed.triangular import has_no_cycles

HOMOGENEOUS = [
    a
    for a in [*activations.builtin.BUILT_IN.values(), activations.leaky_relu(0.2)]
    if a.homogeneous
]


def radius_of(A):
    return np.abs(np.linalg.eigvals(np.abs(A))).max()


def with_radius(rng, n, radius, spread, dense=1.0):
    """A badly scaled matrix with its ``lambda_pf(|A|)``, `radius` unless it has no cycles.

    Its row sums range over many powers of ten.
    """
    A = rng.normal(size=(n, n)) * (rng.random((n, n)) < dense)
    rho = radius_of(A)
    A, radius = (A * radius / rho, radius) if rho > 1e-6 else (A, 0.0)
    t = 10.0 ** rng.uniform(-spread, spread, n)
    return A * t[:, None] / t[None, :], radius


@given(
    st.integers(0, 10**9),
    st.floats(0.05, 0.995),
    st.floats(0, 6),
    st.booleans(),
    st.sampled_from(HOMOGENEOUS),
)
def test_the_outputs_are_the_same_and_the_row_sums_are_as_derived(
    seed, radius, spread, sparse, activation
):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    model = ImplicitModel(3, 2, n, activation=activation, dtype="float64", rng=seed)
    A, radius = with_radius(rng, n, radius, spread, 0.3 if sparse else 1.0)
    model.params = {**model.params, "A": A, "b": rng.normal(size=n), "d": rng.normal(size=2)}
    twin = rescale(model)
    assert 1 - absolute_row_sums(twin.params).max() >= (0.98 * (1 - radius) if radius else 0.5)
    assert twin.certificate().proven
    assert np.array_equal(twin.params["A"] == 0, A == 0)
    s = model.params["B"][:, 0] / twin.params["B"][:, 0]
    assert s.max() * s.min() == pytest.approx(1)
    U = rng.normal(size=(4, 3))
    # the states of the twin, in the units of the model, satisfy the model's own
    # equation: a tolerance is one for the largest state of the twin
    states = twin.with_tol(1e-14).equilibrium(U, on_fail="ignore").value
    X, blur = states * s, 1e-9 * s * (1 + np.abs(states).max(axis=1, keepdims=True))
    Z = U @ model.params["B"].T + model.params["b"]
    size = np.abs(X) @ np.abs(A).T + np.abs(Z) + 1
    assert np.all(np.abs(X - activation(X @ A.T + Z)) <= 1e-12 * size + blur + blur @ np.abs(A).T)
    Y = X @ model.params["C"].T + U @ model.params["D"].T + model.params["d"]
    room = blur / (1 - radius) @ np.abs(model.params["C"]).T + 1e-9 * (1 + np.abs(Y))
    assert np.all(np.abs(twin.predict(U, on_fail="ignore") - Y) <= room)


# A row sum of 1 - 4e-8 proves next to nothing, where lambda_pf = 0.9 allows 0.9.
BADLY_SCALED = {
    "scales 1e-4 to 1e4": (1.0, 4, "float64", None),
    "float32": (1.0, 4, "float32", None),
    "factors": (1.0, 4, "float64", 3),
    "factors in float32": (1.0, 4, "float32", 3),
    "reducible": (0.3, 4, "float64", None),
    "without cycles": (0.1, 4, "float64", None),
    "scales 1e-75 to 1e75": (1.0, 75, "float64", None),
    "factors, scales 1e-75 to 1e75": (1.0, 75, "float64", 3),
}


@pytest.mark.parametrize("case", BADLY_SCALED)
@pytest.mark.parametrize("seed", range(5))
def test_row_sums_come_near_lambda_pf(case, seed):
    """As near as the weights of the Perron-Frobenius certificate, which it uses."""
    dense, spread, dtype, rank = BADLY_SCALED[case]
    rng, n = np.random.default_rng(seed), 12
    model = ImplicitModel(2, 2, n, rank=rank, dtype=dtype, rng=seed)
    t = 10.0 ** rng.uniform(-spread, spread, (n, 1))
    if rank is None:
        A = with_radius(rng, n, 0.9, 0, dense)[0]
        A[seed] = 0.0
        model.params = {**model.params, "A": A * t / t[:, 0]}
    else:
        L, R = rng.normal(size=(2, n, rank))
        L *= 0.9 / radius_of(L @ R.T)
        A = L @ R.T
        model.params = {**model.params, "L": L * t, "R": R / t}
    assert not InfNorm().certificate(model.params, model.activation).proven
    found = absolute_row_sums(rescale(model).params).max()
    assert found <= (0.5 if has_no_cycles(A) else 1 - 0.97 * (1 - radius_of(A)))


def test_what_the_dtype_cannot_hold_is_refused():
    """``s`` from 1e-40 to 1e40, in float32: two cycles of their own, far apart."""
    A = np.zeros((4, 4))
    A[[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]] = [1e30, 1e-31, 1e30, 1e-31, 1e30, 1e-31]
    model = ImplicitModel(1, 1, 4, rng=0)
    model.params = {**model.params, "A": A}
    with pytest.raises(InputError, match=r"from .*e-4\d to .*e\+4\d, .* too large for float32"):
        rescale(model)
    assert rescale(model.astype("float64")).certificate().proven


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [None, 3])
def test_predictions_agree(rank, dtype):
    model = random_model(ImplicitModel, 4, 3, 12, rank=rank, dtype=dtype)
    shrink = np.geomspace(1, 50, 12).astype(dtype)
    name = "A" if rank is None else "L"
    stretched = {**model.params, name: model.params[name] * shrink[:, None]}
    other = "A" if rank is None else "R"
    stretched[other] = stretched[other] / (shrink if rank is None else shrink[:, None])
    model.params = stretched
    assert not InfNorm().certificate(model.params, model.activation).proven
    twin = rescale(model)
    assert InfNorm().certificate(twin.params, twin.activation).proven
    assert twin.rank == rank
    U = np.random.default_rng(0).normal(size=(20, 4))
    np.testing.assert_allclose(
        twin.predict(U), model.predict(U), rtol=1e-3 if dtype == "float32" else 1e-9, atol=1e-4
    )
    assert all(np.array_equal(twin.params[key], model.params[key]) for key in "Dd")


def test_the_gradient_of_the_rescaled_model_is_the_rescaled_gradient():
    """y is the same function of u, so the input gradients agree."""
    model = random_model(ImplicitModel, 4, 3, 12, dtype="float64", spread=1.0)
    U, G = np.random.default_rng(0).normal(size=(20, 4)), np.ones((20, 3))
    np.testing.assert_allclose(rescale(model)(U)[1](G)[0], model(U)[1](G)[0], rtol=1e-8, atol=1e-10)


def test_patterns_blocks_and_lipschitz_constants():
    pattern = Pattern.feed_forward(4, 5, 3, 2)
    model = random_model(ImplicitModel, 4, 2, 8, pattern=pattern, dtype="float64")
    model.params = {**model.params, "A": 30 * model.params["A"]}
    twin = rescale(model)
    assert twin.pattern == pattern
    assert twin.certificate().proven
    U = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_allclose(twin.predict(U), model.predict(U), rtol=1e-9)
    mixed = Blocks((activations.relu, 4), (activations.abs, 4))
    assert rescale(model.replace(activation=mixed)).certificate().proven
    # with slopes up to 2, it is the radius of 2 |A| that counts
    steep = Activation(
        "steep",
        lambda z: np.maximum(2 * z, 0),
        lambda z: 2.0 * (z > 0),
        slope_range=(0.0, 2.0),
        homogeneous=True,
    )
    full = random_model(
        ImplicitModel, 4, 2, 8, activation=steep, constraint=InfNorm(0.9), dtype="float64"
    )
    assert rescale(full).certificate().proven
    A = 0.6 * np.ones((8, 8)) / 8
    full.params = {**full.params, "A": A}
    with pytest.raises(
        InputError,
        match=r"lambda_pf\(\|A\|\), rows times their Lipschitz constants, .* shows 1\.2\. Use",
    ):
        rescale(full)


def test_sequential_rescales_every_implicit_layer():
    first, last = (random_model(ImplicitModel, 3, 3, 6, seed=i, dtype="float64") for i in (0, 1))
    t = np.geomspace(1, 100, 6)
    for layer in (first, last):
        layer.params = {**layer.params, "A": layer.params["A"] * t[:, None] / t}
    model = Sequential(
        first, activations.tanh, Sequential(Linear(3, 3, rng=0, dtype="float64"), last)
    )
    twin = rescale(model)
    for layer in (twin.layers[0], twin.layers[2].layers[1]):
        assert InfNorm().certificate(layer.params, layer.activation).proven
    assert not InfNorm().certificate(first.params, first.activation).proven
    U = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(twin.predict(U), model.predict(U), rtol=1e-8)
    assert twin.layers[2].layers[0] is not model.layers[2].layers[0]
    assert np.array_equal(twin.params["2.0.W"], model.params["2.0.W"])


def test_models_that_live_elsewhere(xp):
    model = random_model(ImplicitModel, 3, 2, 5)
    there = rescale(moved(model, xp))
    assert there.xp is xp
    for key, value in rescale(model).params.items():
        np.testing.assert_allclose(host(there.params[key]), value, rtol=1e-6)
        assert host(there.params[key]).dtype == np.float32


def test_what_cannot_be_rescaled_says_why():
    with pytest.raises(InputError, match="tanh does not claim"):
        rescale(ImplicitModel(3, 2, 4, activation=activations.tanh, rng=0))
    with pytest.raises(InputError, match=r"model is Linear.*rescale takes an ImplicitModel"):
        rescale(Linear(3, 2, rng=0))
    model = ImplicitModel(1, 1, 2, rng=0, dtype="float64")
    model.params = {**model.params, "A": np.array([[0.5, 0.5], [0.5, 0.5]])}
    with pytest.raises(InputError, match=r"lambda_pf\(\|A\|\) to be below 1; .* shows 1\. Use"):
        rescale(model)
    model.params = {**model.params, "A": np.array([[-3.0, 0.1], [0.0, 0.2]])}
    with pytest.raises(InputError, match=r"lambda_pf\(\|A\|\) .* shows 3\. Use smaller"):
        rescale(model)
    model.params = {**model.params, "A": np.array([[0.0, 1.0], [1 - 1e-10, 0.0]])}
    assert rescale(model).certificate().proven

    class Pooled(Activation):
        def vector_blocks(self, n):
            return ((0, n),)

    pooled = Pooled("pooled", np.abs, np.sign, lipschitz=1.0, homogeneous=True)
    with pytest.raises(InputError, match="entry by entry"):
        rescale(model.replace(activation=pooled))


def test_what_the_dtype_cannot_tell_from_1_is_refused():
    """Row sums within a rounding of 1.

    The rounded model is certified, or it is said that it is not.
    """
    refused = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        model = ImplicitModel(1, 1, 4, rng=0)
        A = with_radius(rng, 4, 1 - 1e-8, 1)[0].astype("float32")
        model.params = {**model.params, "A": A}
        try:
            assert rescale(model).certificate().proven
        except InputError as error:
            refused += "in float32 are not below it" in str(error)
    assert refused > 0


def test_the_model_is_not_changed():
    model = random_model(ImplicitModel, 3, 2, 5)
    before = dict(model.params)
    rescale(model)
    assert all(model.params[key] is before[key] for key in before)
