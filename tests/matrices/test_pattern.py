"""Block triangular models.

The order is found, one pass is exact, and what a pattern forbids stays zero.
"""

from itertools import pairwise

import numpy as np
import pytest
from helpers import assert_close, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st
from problems import adjoint, adjoint_solution, fixed_point, residual

import pyidl
from pyidl import ImplicitModel, Pattern, activations, losses, optim, wellposed
from pyidl.activations import Blocks
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError
from pyidl.matrices import tiled
from pyidl.matrices.full import Full
from pyidl.matrices.growth import growth
from pyidl.matrices.low_rank import LowRank
from pyidl.matrices.pattern import Groups, levels
from pyidl.matrices.tiled import TILE, Tiled
from pyidl.solvers import Auto, Direct, Picard, Status, Substitution
from pyidl.solvers.problem import Affine

WIDTHS = (5, 7, 6, 4, 3)


@pytest.fixture(autouse=True, scope="module", params=[TILE, 0], ids=["as it is", "tile by tile"])
def products(request):
    """Products with so small tiles are made in one piece; here also tile by tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE", request.param)
        yield


def network(rng, widths=WIDTHS):
    """Weights and biases, and the same network as an implicit model, the last layer
    first in x."""
    weights = [rng.normal(size=(b, a)) / a**0.5 for a, b in pairwise(widths)]
    biases = [rng.normal(size=b) for b in widths[1:]]
    n, ends = sum(widths[1:-1]), sum(widths[1:-1]) - np.cumsum([0, *widths[1:-1]])
    A, B, C, b = np.zeros((n, n)), np.zeros((n, widths[0])), np.zeros((widths[-1], n)), np.zeros(n)
    for layer in range(len(widths) - 2):
        rows = slice(ends[layer + 1], ends[layer])
        b[rows] = biases[layer]
        if layer == 0:
            B[rows] = weights[0]
        else:
            A[rows, ends[layer] : ends[layer - 1]] = weights[layer]
    C[:, : widths[-2]] = weights[-1]
    params = {
        "A": A,
        "B": B,
        "C": C,
        "D": np.zeros((widths[-1], widths[0])),
        "b": b,
        "d": biases[-1],
    }
    return weights, biases, params


def explicit(weights, biases, U):
    for W, b in zip(weights[:-1], biases[:-1]):
        U = np.maximum(U @ W.T + b, 0)
    return U @ weights[-1].T + biases[-1]


def test_masks_may_live_where_the_model_does(xp):
    """They are kept on the host, where the blocks are searched."""
    mask = np.random.default_rng(0).random((5, 5)) < 0.5
    assert Pattern(A=from_host(xp, mask)) == Pattern(A=mask)
    with pytest.raises(InputError, match="boolean matrix"):
        Pattern(A=from_host(xp, mask * 1.0))


@pytest.mark.parametrize("pattern", [Pattern.feed_forward(*WIDTHS), None], ids=["pattern", "found"])
def test_a_feed_forward_network_is_solved_in_one_pass(pattern, xp):
    rng = np.random.default_rng(0)
    weights, biases, params = network(rng)
    model = ImplicitModel(5, 3, 17, pattern=pattern, dtype="float64")
    model.params = params
    model = moved(model, xp)
    U = rng.normal(size=(8, 5))
    Y, pull = model(from_host(xp, U))
    assert_close(Y, explicit(weights, biases, U), rtol=1e-13, atol=1e-13, xp=xp)
    # so few units: six steps and a measurement cost no more than three groups
    assert pull.forward.n_iter.max() <= 6
    assert not pull.forward.residual.any()
    model = model.replace(forward=Substitution(), adjoint=Substitution())
    Y, pull = model(from_host(xp, U))
    assert_close(Y, explicit(weights, biases, U), rtol=1e-13, atol=1e-13, xp=xp)
    assert pull.forward.n_iter.tolist() == [1] * 8
    assert pull.forward.method == "Substitution(3 groups, 0 with cycles)"
    p = model._cell().bind(from_host(xp, U))
    assert residual(p, pull.forward.value).max() < 1e-14
    assert not pull.forward.residual.any()
    back = pull.solve(from_host(xp, np.ones((8, 3))))
    assert back.n_iter.max() == 1
    assert np.array_equal(host(pull.forward.value), np.maximum(host(pull.forward.pre), 0))


def test_weights_of_any_size_are_fine_where_nothing_feeds_back():
    """Row sums of 1000: a feed-forward net needs no contraction."""
    rng = np.random.default_rng(1)
    weights, biases, params = network(rng)
    weights = [300 * W for W in weights]
    model = ImplicitModel(5, 3, 17, dtype="float64")
    model.params = {
        **params,
        "A": 300 * params["A"],
        "B": 300 * params["B"],
        "C": 300 * params["C"],
    }
    U = rng.normal(size=(4, 5))
    assert relative(model.predict(U), explicit(weights, biases, U)) < 1e-12


def test_gradients_are_those_of_backpropagation():
    rng = np.random.default_rng(0)
    weights, biases, params = network(rng)
    model = ImplicitModel(5, 3, 17, pattern=Pattern.feed_forward(*WIDTHS), dtype="float64")
    model.params = params
    U, dY = rng.normal(size=(8, 5)), rng.normal(size=(8, 3))
    X, hidden = U, []
    for W, b in zip(weights[:-1], biases[:-1]):
        hidden.append((X, X @ W.T + b))
        X = np.maximum(hidden[-1][1], 0)
    grads, V = {"C": dY.T @ X}, dY @ weights[-1]
    by_layer = []
    for (X, Y), W in zip(hidden[::-1], weights[-2::-1]):
        V = V * (Y > 0)
        by_layer.append(V.T @ X)
        V = V @ W
    dU, found = model(U)[1](dY)
    np.testing.assert_allclose(dU, V, atol=1e-13)
    np.testing.assert_allclose(found["C"][:, :4], grads["C"], atol=1e-13)
    assert not found["C"][:, 4:].any()
    np.testing.assert_allclose(found["A"][0:4, 4:10], by_layer[0], atol=1e-13)
    np.testing.assert_allclose(found["A"][4:10, 10:17], by_layer[1], atol=1e-13)
    np.testing.assert_allclose(found["B"][10:17], by_layer[2], atol=1e-13)
    assert np.count_nonzero(found["A"]) == np.count_nonzero(by_layer[0]) + np.count_nonzero(
        by_layer[1]
    )
    assert not found["D"].any()


def test_zeros_stay_zeros_through_training():
    pattern = Pattern.feed_forward(4, 6, 5, 2)
    model = ImplicitModel(4, 2, 11, pattern=pattern, rng=0)
    rng, optimizer = np.random.default_rng(0), optim.AdamW(1e-2, weight_decay=0.1)
    U, t = rng.normal(size=(20, 4)), rng.integers(0, 2, 20)
    first = losses.cross_entropy(model.predict(U), t)[0]
    for _ in range(30):
        Y, pull = model(U)
        loss, dY = losses.cross_entropy(Y, t)
        model.params = model.project(optimizer.step(model.params, pull(dY)[1]))
    assert loss < 0.7 * first
    for key in "ABCD":
        assert not model.params[key][~getattr(pattern, key)].any()
    for key in "BC":
        assert np.all(model.params[key][getattr(pattern, key)] != 0)


@given(st.integers(1, 32), st.floats(0.0, 0.2), st.integers(0, 1000))
def test_levels_are_a_topological_order(n, density, seed):
    rng = np.random.default_rng(seed)
    support = rng.random((n, n)) < density
    groups = levels(support)
    reach = np.linalg.matrix_power(np.eye(n) + support, n) > 0
    if groups is None:
        assert np.all(reach & reach.T)
        return
    place = np.zeros(n, int)
    for i, member in enumerate(groups.members):
        place[member] = i
        inside = support[member][:, member]
        assert groups.cyclic[i] == bool(inside.any())
    assert sum(groups.sizes) == n
    i, j = np.nonzero(support)
    assert np.all(place[j] <= place[i])  # what feeds a unit comes before it, or with it
    same = reach & reach.T
    assert np.all(place[np.nonzero(same)[0]] == place[np.nonzero(same)[1]])


@given(st.integers(2, 24), st.floats(0.02, 0.2), st.integers(0, 300), st.booleans())
def test_substitution_agrees_with_iteration(n, density, seed, mixed):
    """Any pattern, in any order, cycles and all; forward and adjoint."""
    rng = np.random.default_rng(seed)
    support = rng.random((n, n)) < density
    groups = levels(support)
    if groups is None:
        return
    A = rng.normal(size=(n, n)) * support
    A *= 0.9 / max(1.0, np.abs(A).sum(axis=1).max())
    activation = (
        Blocks((activations.relu, n // 2), (activations.tanh, n - n // 2))
        if mixed
        else activations.relu
    )
    p = Affine(
        Tiled.of(A, groups, groups, support, confined=False), rng.normal(size=(5, n)), activation
    )
    for solver in (Substitution(), Auto(), Picard()):
        s = solver(p)
        assert s.converged.all()
        assert relative(s.value, fixed_point(p)) < 1e-9
        assert np.array_equal(s.value, activation(s.pre))
        assert np.all(residual(p, s.value) <= s.residual + 1e-14 * (1 + np.abs(s.value).max()))
    q = adjoint(p, s, rng.normal(size=(5, n)))
    for solver in (Substitution(), Auto(), Picard(), Direct()):
        v = solver(q)
        assert v.converged.all()
        assert relative(v.value, adjoint_solution(q)) < 1e-9


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100), st.booleans())
def test_tiles_are_the_matrix(r, c, seed, confined):
    rng = np.random.default_rng(seed)
    support = rng.random((r, c)) < 0.4

    def partition(k):
        labels = rng.integers(0, 3, k)
        lists = [np.flatnonzero(labels == i) for i in np.unique(labels)]
        return Groups.of(lists, [True] * len(lists))

    A = rng.normal(size=(r, c)) * support
    tiled = Tiled.of(A, partition(r), partition(c), support, confined)
    x, v = rng.normal(size=(4, c)), rng.normal(size=(4, r))
    np.testing.assert_allclose(tiled.rows(x), x @ A.T, atol=1e-13)
    np.testing.assert_allclose(tiled.rows(x, np.full((4, r), np.nan)), x @ A.T, atol=1e-13)
    np.testing.assert_allclose(tiled.T.rows(v), v @ A, atol=1e-13)
    np.testing.assert_allclose(
        tiled.grads("A", v, x)["A"], v.T @ x * (support if confined else 1), atol=1e-13
    )
    np.testing.assert_allclose(
        tiled.T.grads("A", x, v)["A"], x.T @ v * (support.T if confined else 1), atol=1e-13
    )
    assert np.array_equal(tiled.dense(), A)


def test_what_overflows_on_the_way_through_a_chain_says_so():
    model = ImplicitModel(1, 1, 3, constraint=wellposed.StrictlyTriangular(), bias=False, rng=0)
    model.params = {
        **model.params,
        "A": np.diag([1e30, 1e30], 1),
        "B": np.array([[0.0], [0.0], [1.0]]),
    }
    assert model.equilibrium(np.array([[1.0], [0.0]]), on_fail="ignore").status.tolist() == [
        Status.NONFINITE,
        Status.CONVERGED,
    ]


def test_residual_and_tolerance_are_those_of_one_group():
    """The first group's states are a million times as large as the last one's."""
    A = np.kron(np.eye(2), np.array([[0.0, 0.9], [0.8, 0.0]]))
    A[0, 2] = 1e-12
    model = ImplicitModel(
        1, 1, 4, constraint=wellposed.Unconstrained(), bias=False, dtype="float64", rng=0
    )
    model = model.replace(forward=Substitution())
    model.params = {**model.params, "A": A, "B": np.array([[1.0], [1.0], [1e6], [1e6]])}
    s = model.equilibrium(np.ones((1, 1)))
    assert "2 groups, 2 with cycles" in s.method
    assert s.converged.all()
    assert 0 < s.residual[0] <= s.tolerance[0]


def test_long_chains_are_joined_to_groups():
    """A dense triangle of 200 units is 200 layers of one.

    Groups of 15 of them, each exact after 15 applications.
    """
    groups = levels(np.tri(200, k=-1, dtype=bool))
    assert groups.sizes == (15,) * 13 + (5,)
    assert groups.layers == groups.sizes
    assert all(isinstance(member, slice) for member in groups.members)
    assert not any(groups.cyclic)
    assert len(levels(np.tri(20, k=-1, dtype=bool)).members) == 20
    looped = np.tri(200, k=-1, dtype=bool)
    looped[3, 3] = True
    assert levels(looped) is None  # with cycles, so many blocks take longer than the whole


@pytest.mark.parametrize("n", [33, 100, 200])
@pytest.mark.parametrize("renumbered", [False, True])
@pytest.mark.parametrize("size", [0.1, 3.0])
def test_a_long_chain_is_solved_exactly(n, renumbered, size):
    """Entries that make every iteration grow beyond bounds first.

    States and gradients are those of plain substitution, to rounding.
    """
    rng = np.random.default_rng(n)
    A = size * np.triu(rng.normal(size=(n, n)), 1) / n**0.5
    if renumbered:
        order = rng.permutation(n)
        A = A[order][:, order]
    model = ImplicitModel(
        2,
        2,
        n,
        activation=activations.tanh,
        constraint=wellposed.Unconstrained(),
        dtype="float64",
        rng=0,
    )
    model.params = {**model.params, "A": A}
    U, dY = rng.normal(size=(4, 2)), rng.normal(size=(4, 2))
    _, pull = model(U)
    assert "Substitution" in pull.forward.method
    X, Z = np.zeros((4, n)), U @ model.params["B"].T + model.params["b"]
    for _ in range(n):
        X = np.tanh(X @ A.T + Z)
    S = 1 - np.tanh(X @ A.T + Z) ** 2
    G, V = dY @ model.params["C"], np.zeros((4, n))
    for _ in range(n):
        V = S * (V @ A + G)
    np.testing.assert_allclose(pull.forward.value, X, rtol=0, atol=1e-12)
    grads = pull(dY)[1]
    np.testing.assert_allclose(grads["A"], V.T @ X, rtol=0, atol=1e-12 * np.abs(V.T @ X).max())
    np.testing.assert_allclose(grads["B"], V.T @ U, rtol=0, atol=1e-12 * np.abs(V.T @ U).max())


def test_structure_is_read_when_the_parameters_are_set():
    model = random_model(ImplicitModel, 3, 2, 12, dtype="float64")
    assert isinstance(model.maps["A"], Full)
    upper = np.triu(np.ones((12, 12)), 4) * model.params["A"]
    model.params = {**model.params, "A": upper}
    first = model.maps["A"]
    assert isinstance(first, Tiled)
    assert first.row_groups.sizes == (4, 4, 4)
    model.params = {**model.params, "A": 0.5 * upper}
    # zeros have not moved: nothing is searched again
    assert model.maps["A"].row_groups is first.row_groups
    model.params = {**model.params, "A": np.eye(12) * 0.9 + 0.01}
    assert model.maps["A"].gains is not None
    assert isinstance(random_model(ImplicitModel, 3, 2, 12, rank=2).maps["A"], LowRank)


def test_bad_patterns_are_refused():
    for bad in (np.ones((3, 3)), [[True]], np.ones(3, bool)):
        with pytest.raises(InputError, match="pattern of A"):
            Pattern(A=bad)
    with pytest.raises(InputError, match=r"pattern of A has shape \(3, 3\)"):
        ImplicitModel(2, 2, 4, pattern=Pattern(A=np.ones((3, 3), bool)))
    with pytest.raises(InputError, match="mask for A"):
        ImplicitModel(2, 2, 4, rank=2, pattern=Pattern(A=np.ones((4, 4), bool)))
    with pytest.raises(InputError, match="mask for D"):
        ImplicitModel(2, 2, 4, feedthrough=False, pattern=Pattern(D=np.ones((2, 2), bool)))
    with pytest.raises(InputError, match="feed_forward takes"):
        Pattern.feed_forward(3, 2)
    with pytest.raises(InputError, match=r"use Pattern\("):
        ImplicitModel(2, 2, 4, pattern="mlp")
    model = ImplicitModel(2, 2, 4, pattern=Pattern(A=np.tri(4, k=-1, dtype=bool)))
    before = model.params
    with pytest.raises(InputError, match="A has 10 nonzero entries outside its pattern"):
        model.params = {**before, "A": np.ones((4, 4))}
    assert model.params is before
    with pytest.raises(InputError, match="Substitution needs a block triangular A"):
        Substitution()(Affine(Full(np.eye(2)), np.ones((1, 2)), activations.relu))


def test_a_model_with_a_pattern_is_an_object_like_any_other(tmp_path):
    import copy
    import pickle

    pattern = Pattern.feed_forward(4, 6, 5, 2)
    model = ImplicitModel(4, 2, 11, pattern=pattern, rng=0)
    pyidl.save(tmp_path / "m", model)
    U = np.random.default_rng(0).normal(size=(3, 4))
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        model.replace(),
        model.astype("float32"),
    ]
    for twin in (pyidl.load(tmp_path / "m"), *copies):
        assert twin.pattern == pattern
        assert np.array_equal(twin.predict(U), model.predict(U))
    assert "Pattern(A: 30 of 121" in repr(model)
    assert pattern != Pattern()
    assert pattern != 3
    with pytest.raises(ValueError, match="read-only"):
        pattern.A[0, 0] = True


def test_failures_inside_a_block_are_reported():
    """A block that diverges behind one that is fine.

    The status and the residual are those of the worst block.
    """
    A = np.zeros((4, 4))
    A[2, 0] = 1.0
    A[2:, 2:] += np.array([[0.0, 2.0], [2.0, 0.0]])
    support = A != 0
    groups = levels(support)
    p = Affine(
        Tiled.of(A, groups, groups, support, confined=False),
        np.array([[1.0, 1, 1, 1], [-1, -1, -1, -1]]),
        activations.relu,
    )
    s = Substitution()(p)
    assert s.converged.tolist() == [False, True]
    assert s.residual[0] > s.tolerance[0]
    assert np.isclose(residual(p, s.value)[0], s.residual[0])
    assert Substitution()(p, trace=True).trace.shape == (1, 2)


def test_the_gains_of_a_block_triangular_matrix_are_those_of_its_blocks():
    """A large diagonal in one block, and the other block without.

    The default solver splits it as it would split a full A.
    """
    rng, h = np.random.default_rng(0), 8
    slow, fast = np.diag(np.full(h, 0.97)), rng.normal(size=(h, h))
    slow[0, 1:] = slow[1:, 0] = 0.002
    fast *= 0.6 / np.abs(fast).sum(axis=1, keepdims=True)
    A = np.block([[slow, np.full((h, h), 1e-3)], [np.zeros((h, h)), fast]])
    model = ImplicitModel(1, 1, 2 * h, dtype="float64", rng=0)
    model.params = {**model.params, "A": A}
    tiled = model.maps["A"]
    assert isinstance(tiled, Tiled)
    split = (slow - np.diag(np.diag(slow))) / 0.03
    rest = (fast - np.diag(np.diag(fast))) / (1 - np.diag(fast))[:, None]
    largest = [max(growth(Full(a)) for a in pair) for pair in ((slow, fast), (split, rest))]
    np.testing.assert_allclose(tiled.gains, largest, rtol=1e-9)
    assert largest[1] < 0.5 < 0.95 < largest[0]
    s = model.equilibrium(rng.normal(size=(300, 1)))
    assert s.method.startswith("Auto(Jacobi")
    assert s.all_converged
    assert s.n_iter.max() < 60
