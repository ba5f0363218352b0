"""Matrices in compressed rows.

The same answers and gradients as full ones, wherever A, B, C and D are multiplied.
"""

import sys
import types

import numpy as np
import pytest
import scipy.sparse
import stand_in
from helpers import assert_close, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, Pattern, activations, load, save, solvers
from pyidl.errors import InputError
from pyidl.matrices import sparse
from pyidl.matrices.full import Full
from pyidl.matrices.read import read_model
from pyidl.matrices.sparse import Sparse

P, Q, N = 5, 3, 24


@pytest.fixture(autouse=True)
def small_products_count(monkeypatch):
    """Compressed rows for products of any size."""
    monkeypatch.setattr(sparse, "WORK", 0)
    monkeypatch.setattr(sparse, "SMALLEST", 0)


def thin(shape, density, rng):
    return np.where(rng.random(shape) < density, rng.normal(size=shape), 0.0)


def sparse_model(seed=0, dtype="float64", density=0.15, **options):
    """A model with few nonzero entries, full and compressed.

    Without a pattern its units form a ring, so that A is one block.
    """
    rng, model = (
        np.random.default_rng(seed),
        random_model(ImplicitModel, P, Q, N, dtype=dtype, **options),
    )
    keep = {key: rng.random(a.shape) < density for key, a in model.params.items() if key in "ABCD"}
    ring = np.roll(np.eye(N, dtype=dtype), 1, axis=1)
    params = {
        key: a * keep[key].astype(a.dtype) if key in keep else a for key, a in model.params.items()
    }
    if "pattern" not in options:
        params["A"] = params["A"] + 0.1 * ring
        params["A"] *= 0.9 / np.abs(params["A"]).sum(axis=1, keepdims=True)
    model.params = params
    return model, model.sparsify(0.5)


@given(
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["float32", "float64"]),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 9),
)
def test_products_are_those_of_the_full_matrix(m, r, c, dtype, density, transposed, seed):
    rng = np.random.default_rng(seed)
    A = thin((r, c), density, rng).astype(dtype)
    S, F = Sparse.of(A, 1.0), Full(A)
    assert type(S) is Sparse
    S, F = (S.T, F.T) if transposed else (S, F)
    x = rng.normal(size=(m, F.A.shape[1])).astype(dtype)
    room = np.full((m, F.A.shape[0] + 3), np.nan, dtype)
    eps = 20 * np.finfo(dtype).eps
    assert_close(S.rows(x), F.rows(x), rtol=eps, atol=c * eps)
    assert S.rows(x, room[:, 2:-1]) is not None
    np.testing.assert_allclose(room[:, 2:-1], F.rows(x), rtol=eps, atol=r * c * eps)
    assert np.isnan(room[:, [0, 1, -1]]).all()  # nothing beside its place is written
    np.testing.assert_array_equal(S.dense(), F.dense())
    if r == c:
        scale = rng.normal(size=r).astype(dtype)
        off = S.off_diagonal(scale)
        assert type(off) is Sparse
        assert_close(off.rows(x), F.off_diagonal(scale).rows(x), rtol=eps, atol=10 * r * eps)
        np.testing.assert_array_equal(off.dense(), F.off_diagonal(scale).dense())


@pytest.mark.parametrize(
    "m", [1, sparse.SAMPLES - 1, sparse.SAMPLES, sparse.SAMPLES + 1, 2 * sparse.SAMPLES + 1]
)
def test_no_sample_is_left_out(m):
    x = np.arange(1.0, m + 1)[:, None] * np.ones(3)
    np.testing.assert_array_equal(Sparse.of(np.eye(3), 1.0).rows(x, np.zeros((m, 3))), x)


def test_the_stored_matrix_is_what_is_multiplied():
    """So that the tests below compare two ways of computing, and not one with itself."""
    A = np.eye(4)
    S = Sparse(A, stored=sparse.compressed(2 * A), turned=sparse.compressed(3 * A))
    assert (S.rows(np.ones((3, 4))) == 2).all()
    assert (S.T.rows(np.ones((3, 4))) == 3).all()


def test_small_products_are_full(monkeypatch):
    A = np.eye(4)
    S = Sparse(A, stored=sparse.compressed(2 * A), turned=sparse.compressed(3 * A))
    monkeypatch.setattr(sparse, "WORK", 4 * 4 * 10)
    assert (S.rows(np.ones((9, 4))) == 1).all()
    assert (S.rows(np.ones((10, 4))) == 2).all()


SOLVERS = [
    None,
    solvers.Picard(),
    solvers.Jacobi(),
    solvers.Anderson(),
    solvers.Anderson(splitting=True),
    solvers.Newton(),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_answers_and_gradients_are_the_same(solver):
    full, compressed = sparse_model(forward=solver, adjoint=solver)
    assert [type(compressed.maps[key]) for key in "ABCD"] == [Sparse] * 4
    assert [type(full.maps[key]) for key in "ABCD"] == [Full] * 4
    rng = np.random.default_rng(1)
    U, dY = rng.normal(size=(7, P)), rng.normal(size=(7, Q))
    (Y, pull), (Ys, pulls) = full(U), compressed(U)
    assert relative(Ys, Y) < 1e-12
    (dU, grads), (dUs, sparse_grads) = pull(dY), pulls(dY)
    # twice the tolerance of two solves, amplified by 1 / (1 - kappa)
    assert relative(dUs, dU) < 1e-11
    assert {key for key in grads if relative(sparse_grads[key], grads[key]) > 1e-11} == set()
    # zeros may become nonzero
    assert np.count_nonzero(sparse_grads["A"]) > np.count_nonzero(full.params["A"])


def test_a_large_diagonal_is_split_as_in_full():
    rng = np.random.default_rng(0)
    full, _ = sparse_model()
    A = thin((N, N), 0.1, rng)
    np.fill_diagonal(A, 0)
    A[0, 1:] = A[1:, 0] = 0.001  # every unit feeds every other
    A *= 0.02 / np.abs(A).sum(axis=1)[:, None]
    full.params = {**full.params, "A": A + 0.95 * np.eye(N)}
    compressed = full.sparsify(0.5)
    assert type(compressed.maps["A"]) is Sparse
    U = rng.normal(size=(6, P))
    one, two = (model.equilibrium(U) for model in (full, compressed))
    assert "Jacobi" in two.method
    assert one.method == two.method
    assert relative(two.value, one.value) < 1e-12


def test_tiles_of_a_pattern_are_compressed_one_by_one():
    pattern = Pattern.feed_forward(P, 8, 10, 6, Q)
    full, compressed = sparse_model(density=0.4, pattern=pattern)
    tiles = compressed.maps["A"].tiles.values()
    assert {type(tile) for tile in tiles} <= {Full, Sparse}
    assert all(
        any(type(tile) is Sparse for tile in compressed.maps[key].tiles.values()) for key in "ABC"
    )
    U, dY = np.random.default_rng(2).normal(size=(9, P)), np.ones((9, Q))
    (Y, pull), (Ys, pulls) = full(U), compressed(U)
    assert relative(Ys, Y) < 1e-13
    (dU, grads), (dUs, sparse_grads) = pull(dY), pulls(dY)
    assert relative(dUs, dU) < 1e-13
    assert all(relative(sparse_grads[key], grads[key]) < 1e-13 for key in grads)
    assert not sparse_grads["A"][~pattern.A].any()


def rows_like_cupy(a, shape=None):
    if isinstance(a, tuple):
        values, (row, col) = a
        a = (stand_in.bare(values), (stand_in.bare(row), stand_in.bare(col)))
    else:
        a = stand_in.bare(a)
    return RowsLikeCupy(scipy.sparse.csr_array(a, shape=shape))


class RowsLikeCupy:
    """What is used of ``cupyx.scipy.sparse.csr_matrix``, with arrays of the stand-in."""

    def __init__(self, s):
        self.s, self.shape = s, s.shape

    def __matmul__(self, x):
        return stand_in.wrap(self.s @ stand_in.bare(x))

    @property
    def T(self):
        return RowsLikeCupy(self.s.T)

    def tocoo(self):
        s = self.s.tocoo()
        return types.SimpleNamespace(
            data=stand_in.wrap(s.data), row=stand_in.wrap(s.row), col=stand_in.wrap(s.col)
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cupyx", [False, True])
def test_every_library_gives_the_same(xp, dtype, cupyx, monkeypatch):
    """Libraries without compressed rows multiply in full."""
    if cupyx and xp is not stand_in.cupy:
        pytest.skip("is about the stand-in alone")
    if cupyx:
        module = types.SimpleNamespace(csr_matrix=rows_like_cupy)
        monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse", module)
    _, model = sparse_model(dtype=dtype)
    there = moved(model, xp)
    assert (type(there.maps["A"]) is Sparse) == (
        cupyx or xp is np or (xp.__name__ == "cupy" and xp is not stand_in.cupy)
    )
    U = np.random.default_rng(3).normal(size=(6, P)).astype(dtype)
    (Y, pull), (Yh, pullh) = there(xp.asarray(U)), model(U)
    eps = 1e-5 if dtype == "float32" else 1e-11
    assert_close(Y, Yh, rtol=eps, atol=eps, xp=xp)
    (dU, grads), (dUh, gradsh) = pull(xp.ones_like(Y)), pullh(np.ones_like(Yh))
    for one, other in ((dU, dUh), *((grads[key], gradsh[key]) for key in grads)):
        assert host(one).dtype == dtype
        assert relative(one, other) < eps
    stiff = there.replace(forward=solvers.Jacobi())
    assert_close(stiff.predict(xp.asarray(U)), Yh, rtol=eps, atol=eps, xp=xp)


def test_only_what_has_few_entries_is_compressed():
    rng = np.random.default_rng(0)
    params = {
        "A": rng.normal(size=(20, 20)),
        "B": thin((20, 30), 0.08, rng),
        "C": rng.normal(size=(2, 20)),
    }
    maps = read_model(params, None, None, below=0.1)
    assert [type(maps[key]) for key in "ABC"] == [Full, Sparse, Full]
    assert all(type(m) is Full for m in read_model(params, None, None).values())


def test_only_what_is_large_is_compressed(monkeypatch):
    monkeypatch.setattr(sparse, "SMALLEST", 100)
    assert [type(Sparse.of(np.zeros(shape), 0.1)) for shape in ((10, 10), (10, 9))] == [
        Sparse,
        Full,
    ]


def test_new_parameters_are_read_anew():
    full, compressed = sparse_model()
    compressed.params = {**full.params, "B": np.ones((N, P))}
    full.params = compressed.params
    U = np.ones((2, P))
    assert relative(compressed.predict(U), full.predict(U)) < 1e-12
    low = random_model(ImplicitModel, P, Q, N, rank=2).sparsify(1.0)  # factors stay factors
    assert low.predict(U).shape == (2, Q)


def test_a_file_keeps_the_choice(tmp_path):
    _, model = sparse_model()
    save(tmp_path / "model.npz", model)
    back = load(tmp_path / "model.npz")
    assert back.sparse_below == 0.5
    np.testing.assert_array_equal(back.predict(np.ones((2, P))), model.predict(np.ones((2, P))))


@pytest.mark.parametrize("below", [-0.1, 1.5, np.nan, "all"])
def test_a_share_lies_between_0_and_1(below):
    with pytest.raises(InputError, match="share of nonzero entries"):
        ImplicitModel(P, Q, N, rng=0).sparsify(below)


def test_default_threshold():
    model = ImplicitModel(P, Q, N, rng=0, activation=activations.tanh)
    assert (model.sparse_below, model.sparsify().sparse_below) == (0.0, sparse.DENSITY)
