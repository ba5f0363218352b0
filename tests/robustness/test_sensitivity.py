"""``|y(u) - y(u')| <= S |u - u'|``: by theory, by search, and without belief in solvers."""

from fractions import Fraction

import boxes
import numpy as np
import pytest
from boxes import measured, model_of
from gains import P, Q, linear, random, weights
from helpers import host, moved
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, activations, robustness
from pyidl.errors import InputError
from pyidl.robustness.sensitivity import _Moved
from pyidl.wellposed import InfNorm, Monotone, SpectralNorm, Unconstrained


def exactly_linear(model, s):
    """The same in rational arithmetic, by Gauss and Jordan."""
    turn = np.vectorize(Fraction, otypes=[object])
    p = {key: turn(host(a).astype(float)) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    n, s = len(A), turn(s)
    M = np.concatenate([turn(np.eye(n)) - s[:, None] * A, s[:, None] * p["B"]], axis=1)
    for i in range(n):
        M[i] = M[i] / M[i, i]
        for j in set(range(n)) - {i}:
            M[j] = M[j] - M[j, i] * M[i]
    return p["C"] @ M[:, n:] + p["D"]


# --------------------------------------------------------------------------- by theory


def test_a_unit_that_inhibits_itself():
    """``x = relu(-3 x + u)`` has the slopes 0 and 1/4; absolute values would prove nothing."""
    S = robustness.sensitivity(model_of([[-3.0]], [[1.0]]))
    assert 0.25 <= S[0, 0] < 0.25 * (1 + 1e-13)
    model = model_of([[-3.0]], [[1.0]], phi=activations.silu, constraint=Unconstrained())
    with pytest.raises(InputError, match="absolute values"):
        robustness.sensitivity(model)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("phi", [activations.identity, activations.tanh, boxes.STEEP], ids=str)
def test_nothing_is_lost_where_nothing_inhibits(n, phi):
    """All slopes at their largest: the linear model itself, and not less, to the last bit."""
    rng = np.random.default_rng(n)
    A = measured(rng, n, phi)
    A = np.where(np.eye(n) > 0, A, np.abs(A))
    model = random(rng, n, A, phi, sign=True)
    S, exact = robustness.sensitivity(model), exactly_linear(model, np.full(n, phi.lipschitz))
    assert np.all(np.vectorize(Fraction, otypes=[object])(S) >= exact)
    np.testing.assert_allclose(S, exact.astype(float), rtol=1e-11)


def test_factors_that_cancel():
    """A = L R^T is known to ``|L| |R|^T eps`` alone, which is large beside its entries."""
    rng, large = np.random.default_rng(0), 2.0**26
    model = ImplicitModel(2, 2, 3, rank=2, dtype="float64", constraint=InfNorm(0.9), rng=0)
    for _ in range(20):
        a, b = rng.uniform(0, 1, size=(3, 1)), rng.uniform(0, 0.3, size=(3, 1))
        L = np.concatenate([large * (1 + a), -large * (1 + a) + a / large], axis=1)
        R = np.concatenate([1 + b, 1 + b], axis=1)
        more = {key: np.abs(rng.normal(size=model.params[key].shape)) for key in "BCD"}
        model.params = {**model.params, "L": L, "R": R, **more}
        S, exact = robustness.sensitivity(model), exactly_linear(model, np.ones(3))
        assert np.all(np.vectorize(Fraction, otypes=[object])(S) >= exact)


def test_a_chain_has_no_loop_and_no_path_no_entry():
    A, B = np.zeros((4, 4)), np.eye(4)[:, :2]
    A[1, 0], A[3, 2] = 5.0, 7.0
    B[2, 1] = B[1, 1] = 0.0
    B[2, 1] = -2.0
    S = robustness.sensitivity(model_of(A, B))
    np.testing.assert_allclose(S, [[1, 0], [5, 0], [0, 2], [0, 14]], rtol=1e-12)
    assert np.count_nonzero(S) == 4
    box = robustness.sensitivity(model_of(A, B), -np.ones((1, 2)), np.ones((1, 2)))
    assert np.count_nonzero(box) == 4


@pytest.mark.parametrize("n", [1, 3, 20])
def test_nothing_is_lost_where_no_unit_is_undecided(n):
    rng = np.random.default_rng(n)
    model, U = random(rng, n, measured(rng, n, activations.relu)), rng.normal(size=(5, P))
    found = robustness.sensitivity(model, U - 1e-9, U + 1e-9)
    J = robustness.jacobian(model, U)
    np.testing.assert_allclose(found, np.abs(J), rtol=1e-9, atol=1e-9)


def test_without_a_box_of_states():
    """Monotone models have S on boxes, from their certificates, and none everywhere."""
    rng = np.random.default_rng(0)
    for constraint in (Monotone(0.3), SpectralNorm(0.8)):
        A = constraint.project({"A": rng.normal(size=(8, 8))}, activations.relu)["A"]
        model, U = random(rng, 8, A, constraint=constraint), rng.normal(size=(4, P))
        with pytest.raises(InputError, match="lipschitz"):
            robustness.sensitivity(model)
        J = robustness.jacobian(model, U)
        np.testing.assert_allclose(
            robustness.sensitivity(model, U - 1e-9, U + 1e-9), np.abs(J), rtol=1e-5, atol=1e-5
        )


# --------------------------------------------------------------------------- by search


def search(model, rng, scale=1.0):
    """Jacobians, differences and slopes, beside S and beside that of each box."""
    centre, size = rng.normal(size=(2, P)) * scale, scale * 10.0 ** rng.uniform(-3, 0.5)
    lo, hi = centre - size, centre + size
    twin = boxes.spelled_out(model)
    local = robustness.sensitivity(model, lo, hi)
    try:
        S = robustness.sensitivity(model)
    except InputError:
        S = np.full((Q, P), 1e200)
    assert np.all(local <= S)
    U = boxes.points(rng, lo, hi, 30)
    Y, slack = boxes.evaluated(twin, U.reshape(-1, P))
    Y, slack = (a[:, -Q:].reshape(2, 30, Q) for a in (Y, slack))
    for i in range(2):
        for j in range(1, 30):
            du = np.abs(U[i, j] - U[i, j - 1]) * (1 + 1e-15)
            moved = np.abs(Y[i, j] - Y[i, j - 1]) - slack[i, j] - slack[i, j - 1]
            assert np.all(moved <= local[i] @ du)
            assert np.all(moved <= S @ du)
    J = robustness.jacobian(twin, U.reshape(-1, P))[:, -Q:].reshape(2, 30, Q, P)
    J = np.abs(J).max(axis=1)
    room = 1e-8 * np.max(local, axis=(1, 2), keepdims=True)  # the solves of J
    assert np.all(local + room >= J)
    phi = model.activation
    if phi.slope_range is not None and S.max() < 1e200:
        least, most = phi.slope_range
        for _ in range(20):
            s = np.where(rng.random(model.hidden_dim) < 0.5, least, most)
            met = np.abs(linear(model, s))
            assert np.all(met <= S * (1 + 1e-9))
    return S, local, J


@boxes.FEW
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 9, 30]), st.data())
def test_no_search_finds_more(seed, n, data):
    kind = data.draw(st.sampled_from(sorted(boxes.kinds(n))))
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    search(boxes.drawn(kind, n, seed, dtype=dtype), np.random.default_rng(seed))


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e10])
@pytest.mark.parametrize("kind", ["relu measure", "tanh measure", "softmax", "monotone", "rank"])
def test_in_any_units(kind, scale):
    """Inputs in other units: B and D by 1 / scale, and outputs by its square."""
    model = boxes.drawn(kind, 8, 1)
    params = dict(model.params)
    params["B"], params["D"] = params["B"] / scale, params["D"] * scale
    params["C"] = params["C"] * scale**2
    model.params = params
    search(model, np.random.default_rng(0), scale)


def test_a_hundred_states():
    S, local, J = search(boxes.drawn("relu measure", 100, 0), np.random.default_rng(0))
    assert S.max() > local.max() >= J.max() > 0


def test_the_search_would_find_more():
    """Of a twin with ``|A_ii|`` taken off the diagonal, S would be too small."""
    rng, small = np.random.default_rng(0), 0
    for _ in range(50):
        A = rng.normal(size=(4, 4))
        A *= 0.9 / np.abs(A).sum(axis=1, keepdims=True)
        model = random(rng, 4, A)
        _, B, C, D = (np.abs(W) for W in weights(model))
        K = np.eye(4) + np.diag(2 * np.abs(np.diagonal(A))) - np.abs(A)
        wrong = C @ np.linalg.solve(K, B) + D
        small += any(
            np.any(np.abs(linear(model, rng.integers(0, 2, 4).astype(float))) > wrong)
            for _ in range(30)
        )
    assert small > 0


# ------------------------------------------------------------- solvers are not believed


@pytest.mark.parametrize("name", ["solve", "inv"])
@pytest.mark.parametrize("kind", ["relu measure", "tanh measure", "blocks", "rank"])
def test_wrong_answers_of_solvers_cost_only_sharpness(kind, name, monkeypatch):
    rng, model = np.random.default_rng(0), boxes.drawn(kind, 8, 3)
    U = rng.normal(size=(3, P))
    right = robustness.sensitivity(model), robustness.sensitivity(model, U - 0.01, U + 0.01)
    sound, slopes = getattr(np.linalg, name), _Moved.locally
    wrong = lambda *a: sound(*a) * (1 + 1e-3 * rng.normal(size=sound(*a).shape))  # noqa: E731

    def disturbed(self, low, high):
        with monkeypatch.context() as m:
            m.setattr(np.linalg, name, wrong)
            return slopes(self, low, high)

    monkeypatch.setattr(_Moved, "locally", disturbed)
    found = robustness.sensitivity(model, U - 0.01, U + 0.01)
    J = np.abs(robustness.jacobian(model, U))
    assert np.all(found >= J * (1 - 1e-9))
    assert np.any(found != right[1]) or kind == "blocks"  # sweeps lead back
    assert np.median(found / right[1]) < 2
    if name == "solve":
        moved = _Moved(robustness.sensitivity.__globals__["States"].of(model, weights_of(model)))
        with monkeypatch.context() as m:
            m.setattr(np.linalg, "solve", wrong)
            assert np.all(moved.outputs(moved.everywhere(1.0)) >= right[0] * (1 - 1e-9))


def weights_of(model):
    return {key: host(a).astype(float) for key, a in model.params.items()}


# ------------------------------------------------------------------------------ refused


def test_every_library_has_the_same_bounds(xp):
    model = boxes.drawn("relu measure", 6, 0, dtype="float32")
    other, U = moved(model, xp), np.ones((2, P))
    for ends in ((), (U, U + 0.1)):
        here, there = (robustness.sensitivity(m, *ends) for m in (model, other))
        np.testing.assert_array_equal(here, there)
    assert robustness.lipschitz(model, 2) == robustness.lipschitz(other, 2)


def test_what_is_refused():
    model, U = ImplicitModel(2, 2, 3, rng=0), np.ones((4, 2))
    for wrong in (None, robustness, "model"):
        with pytest.raises(InputError, match="model"):
            robustness.sensitivity(wrong)
    with pytest.raises(InputError, match="go together"):
        robustness.sensitivity(model, U)
    with pytest.raises(InputError, match="lower has shape"):
        robustness.sensitivity(model, U, U[:2])
