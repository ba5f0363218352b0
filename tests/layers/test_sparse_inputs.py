"""Sparse inputs: every format of SciPy, never filled in, and refused where they do not belong."""

import sys
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import moved

import pyidl
from pyidl import (
    Embedding,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Pattern,
    Pointwise,
    Residual,
    Sequential,
    activations,
    losses,
    optim,
)
from pyidl.arrays import backend
from pyidl.errors import DeviceMismatchError, InputError
from pyidl.matrices.tiled import Tiled
from pyidl.testing import check_pullback

P, Q, N = 6, 3, 8
FORMATS = [
    f"{name}_{kind}"
    for name in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for kind in ("array", "matrix")
]


def table(m=7, p=P, seed=0):
    """Rows and columns of zeros among others."""
    rng = np.random.default_rng(seed)
    U = np.where(rng.random((m, p)) < 0.4, rng.normal(size=(m, p)), 0.0)
    if m > 2:
        U[1] = 0.0
    if p > 2:
        U[:, 2] = 0.0
    return U


def layered():
    """A recognised block triangular A: B is then cut like it."""
    model = ImplicitModel(P, Q, 40, rng=0, dtype="float64")
    model.params = {**model.params, "A": np.triu(model.params["A"], 20)}
    assert type(model.maps["B"]) is Tiled
    return model


MASKS = {key: np.random.default_rng(1).random(s) < 0.6 for key, s in (("B", (N, P)), ("D", (Q, P)))}
BUILDS = {
    "full": lambda **o: ImplicitModel(P, Q, N, rng=0, **o),
    "low rank": lambda **o: ImplicitModel(P, Q, N, rank=2, rng=0, **o),
    "bare": lambda **o: ImplicitModel(P, Q, N, bias=False, feedthrough=False, rng=0, **o),
    "layers": lambda **o: ImplicitModel(
        P, Q, N, pattern=Pattern.feed_forward(P, 5, 3, Q), rng=0, **o
    ),
    "a pattern": lambda **o: ImplicitModel(
        P, Q, N, pattern=Pattern(A=np.triu(np.ones((N, N), bool)), **MASKS), rng=0, **o
    ),
    "linear": lambda **o: Linear(P, Q, rng=0, **o),
    "one after another": lambda **o: Sequential(
        Linear(P, 4, rng=0, **o), activations.tanh, ImplicitModel(4, Q, 5, rng=1, **o)
    ),
    "residual": lambda **o: Residual(Linear(P, P, rng=0, **o)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("build", BUILDS)
def test_answers_and_gradients_are_those_of_the_full_array(build, dtype):
    layer, bound = BUILDS[build](dtype=dtype), 1e-9 if dtype == "float64" else 1e-3
    check_alike(layer, table(), bound)


def check_alike(layer, U, bound):
    Y, pull = layer(U)
    G = np.random.default_rng(2).normal(size=Y.shape)
    dU, grads = pull(G)
    S = sp.csr_array(U)
    Z, sparse_pull = layer(S)
    dS, sparse_grads = sparse_pull(G)
    assert set(sparse_grads) == set(grads)
    pairs = [(Z, Y), (dS, dU), *((sparse_grads[key], g) for key, g in grads.items())]
    for batch_size in (None, 2):
        pairs.append((layer.predict(S, batch_size=batch_size), Y))
    for ours, wanted in pairs:
        assert type(ours) is np.ndarray
        assert ours.dtype == wanted.dtype
        assert np.allclose(ours, wanted, rtol=bound, atol=bound)
    assert sparse_pull(G, inputs=False)[0] is None


@pytest.mark.parametrize(("m", "p"), [(1, P), (7, 1), (1, 1), (3, 700)])
def test_shapes_for_which_full_products_take_another_way(m, p):
    U = table(m, p)
    U[0, 0] = 2.0
    for layer in (ImplicitModel(p, Q, N, rng=0, dtype="float64"), Linear(p, Q, dtype="float64")):
        check_alike(layer, U, 1e-9)


def test_a_recognised_pattern_and_compressed_parameters():
    check_alike(layered(), table(), 1e-9)
    large = ImplicitModel(700, Q, 300, rng=0, dtype="float64").sparsify(1.0)
    check_alike(large, table(40, 700), 1e-9)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form):
    """Whole numbers and truth values, too."""
    model, U = ImplicitModel(P, Q, N, rng=0), np.round(2 * table())
    for dtype in (float, np.float32, np.int64, np.int8, bool):
        S = getattr(sp, form)(U.astype(dtype))
        assert np.allclose(model.predict(S), model.predict(U.astype(dtype)), atol=1e-5)


def untidy():
    """Not sorted, several entries of one place, and stored zeros, with long indices."""
    data = np.array([1.0, 2.0, 5.0, 0.0, -1.0, 3.0, -3.0])
    columns = np.array([4, 4, 0, 3, 5, 1, 1], np.int64)
    S = sp.csr_array((data, columns, np.array([0, 4, 4, 7], np.int64)), shape=(3, P))
    full = np.zeros((3, P))
    full[0, [4, 0]], full[2, 5] = (3.0, 5.0), -1.0
    assert np.array_equal(S.toarray(), full)
    return S, full


def test_untidy_entries_mean_what_they_mean_and_stay_as_they_are():
    S, full = untidy()
    before = [a.copy() for a in (S.data, S.indices, S.indptr)]
    for layer in (ImplicitModel(P, Q, N, rng=0, dtype="float64"), Linear(P, Q, dtype="float64")):
        Y, pull = layer(S)
        wanted, full_pull = layer(full)
        assert np.allclose(Y, wanted, atol=1e-10)
        for key, g in pull(np.ones_like(Y))[1].items():
            assert np.allclose(g, full_pull(np.ones_like(Y))[1][key], atol=1e-9)
    for a, b in zip((S.data, S.indices, S.indptr), before, strict=True):
        assert np.array_equal(a, b)
    assert S.indices.dtype == np.int64


def test_the_caller_may_use_the_buffers_again():
    S = sp.csr_array(table())
    for layer in (ImplicitModel(P, Q, N, rng=0, dtype="float64"), Linear(P, Q, dtype="float64")):
        Y, pull = layer(S)
        wanted = layer(S.copy())[1](np.ones_like(Y))[1]
        kept = S.data.copy()
        S.data[:] = 99.0
        for key, g in pull(np.ones_like(Y))[1].items():
            assert np.array_equal(g, wanted[key])
        S.data[:] = kept


def test_read_only_entries_are_taken():
    S = sp.csr_array(table())
    for a in (S.data, S.indices, S.indptr):
        a.flags.writeable = False
    Y, pull = ImplicitModel(P, Q, N, rng=0)(S)
    assert np.isfinite(pull(np.ones_like(Y))[1]["B"]).all()


# ------------------------------------------------------------------------------ training


def fit(model, data, **options):
    given = {"epochs": 3, "batch_size": 4, "rng": 0, "verbose": 0, "tol": None} | options
    return pyidl.fit(model, data, loss=losses.mse, optimizer=optim.Adam(1e-2), **given)


def test_training_takes_the_steps_of_the_full_array():
    U, T = table(30), np.random.default_rng(3).normal(size=(30, Q))
    weights = np.arange(30) % 3.0
    full, sparse = (BUILDS["full"](dtype="float64") for _ in range(2))
    for model, X in ((full, U), (sparse, sp.coo_array(U))):
        history = fit(model, (X, T, weights), validation=(X, T))
        assert len(history["val_loss"]) == 3
    for key, a in full.params.items():
        assert np.allclose(sparse.params[key], a, atol=1e-8)


def test_entries_that_are_not_finite_count_where_the_sample_has_a_weight():
    U, T = table(5), np.ones((5, Q))
    U[4, 0] = np.nan
    model = BUILDS["full"]()
    fit(model, (sp.csr_array(U), T, np.array([1.0, 1.0, 1.0, 1.0, 0.0])))
    with pytest.raises(InputError, match="the inputs of data have entries that are NaN"):
        fit(model, (sp.csr_array(U), T))


def test_a_table_that_would_not_fit_if_it_were_filled():
    """100 rows of a million columns; filled, 800 MB. B and D are full, (n, p)."""
    m, p = 100, 10**6
    rng = np.random.default_rng(0)
    S = sp.csr_array(
        (rng.normal(size=50 * m), rng.integers(0, p, 50 * m), 50 * np.arange(m + 1)), shape=(m, p)
    )
    model = ImplicitModel(p, 1, 2, feedthrough=False, rng=0)
    own = sum(a.nbytes for a in model.params.values())
    assert own < 10e6
    tracemalloc.start()
    Y, pull = model(S)
    dU, grads = pull(np.ones_like(Y), inputs=False)
    fit(model, (S, np.ones((m, 1))), epochs=1, batch_size=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dU is None
    assert grads["B"].shape == (2, p)
    assert peak < 20 * own < 8 * m * p / 4


# --------------------------------------------------------------------------- what is refused

EYE = sp.eye_array(P)
MODEL = ImplicitModel(P, Q, N, rng=0)
REFUSED = {
    "NaN": (
        sp.csr_array([[0, np.nan, 0, 0, 0, 0]]),
        r"U.tocsr\(\).data has 1 entries that are NaN",
    ),
    "too large": (sp.csr_array([[0, 0, 1e200, 0, 0, 0]]), "too large for float32"),
    "complex": (EYE * 1j, r"U.tocsr\(\).data has dtype complex128; .*take its real part"),
    "no rows": (sp.csr_array((0, P)), "U has no rows"),
    "other columns": (sp.csr_array((2, 4)), r"U has shape \(2, 4\); ImplicitModel takes \(m, 6\)"),
    "one axis": (sp.coo_array(np.ones(P)), r"U has shape \(6,\); .*U\[None, :\]"),
    "lost indices": (
        sp.csr_array((np.ones(1), [7], [0, 1]), shape=(1, P)),
        "U cannot be read as compressed rows: indices",
    ),
}


try:
    cube = sp.coo_array(np.ones((2, 2, P)))
except ValueError:  # before SciPy 1.15 there are none
    pass
else:
    REFUSED["three axes"] = (cube, "U cannot be read as compressed rows")


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_sparse_input_is(case):
    S, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        MODEL(S)
    with pytest.raises(InputError, match=words):
        MODEL.predict(S)
    with pytest.raises(InputError):
        Linear(P, Q)(S)


FULL = "is sparse; a full array is needed here"
ELSEWHERE = {
    "a recurrent network": (
        lambda: ImplicitRNN(P, Q, 4, 4, rng=0)(EYE),
        r"U is sparse, and ImplicitRNN takes full arrays; give U.toarray\(\)",
    ),
    "an activation": (lambda: Pointwise(activations.relu)(EYE), f"U {FULL}"),
    "tokens": (lambda: Embedding(P, 2, rng=0)(EYE), f"U {FULL}"),
    "a start": (lambda: MODEL(EYE, x0=sp.csr_array((P, N))), f"x0 {FULL}"),
    "a cotangent": (lambda: MODEL(EYE)[1](sp.csr_array((P, Q))), f"dY {FULL}"),
    "targets": (lambda: fit(MODEL, (EYE, sp.csr_array((P, Q)))), f"targets of data {FULL}"),
    "a loss": (lambda: losses.mse(sp.csr_array((P, Q)), np.ones((P, Q))), "sparse|array"),
    "a proof": (lambda: pyidl.certify_solution(MODEL, EYE), f"U {FULL}"),
    "a check": (lambda: check_pullback(MODEL, EYE), f"U {FULL}"),
    "training a recurrent network": (
        lambda: fit(ImplicitRNN(P, Q, 4, 4, rng=0), (EYE, np.ones((P, Q)))),
        "U is sparse, and ImplicitRNN takes full arrays",
    ),
    "another model's parameters": (
        lambda: setattr(MODEL, "params", {**MODEL.params, "B": sp.csr_array((N, P))}),
        f"B {FULL}",
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_where_full_arrays_are_needed(case):
    call, words = ELSEWHERE[case]
    with pytest.raises((InputError, TypeError), match=words):
        call()


def test_a_model_elsewhere_refuses_them(xp):
    if xp is np:
        return
    for layer in (MODEL, Linear(P, Q, rng=0)):
        with pytest.raises(DeviceMismatchError, match=r"multiplied by SciPy, on the CPU: model.to"):
            moved(layer, xp)(EYE)


def test_those_of_another_library_are_refused(monkeypatch):
    """CuPy's have the same methods as SciPy's."""
    module = ModuleType("cupyx.scipy.sparse")
    theirs = type("csr_matrix", (), {"tocsr": lambda self: self, "__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert backend.is_sparse(theirs())
    with pytest.raises(DeviceMismatchError, match=r"sparse cupyx.scipy.sparse.csr_matrix.*get\(\)"):
        MODEL(theirs())
