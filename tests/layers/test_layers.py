"""Layers as a user meets them.

What they compute, what they refuse, and that nothing is half-changed.
"""

import copy
import pickle
import threading
import warnings

import array_api_strict
import numpy as np
import pytest
from helpers import assert_close, host, moved, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from pyidl import (
    ImplicitModel,
    ImplicitRNN,
    InfNorm,
    Linear,
    Pointwise,
    Sequential,
    activations,
    solvers,
)
from pyidl.activations import Activation, Blocks
from pyidl.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DeviceError,
    DeviceMismatchError,
    GradientConvergenceError,
    GradientConvergenceWarning,
    InputError,
)
from pyidl.matrices import read
from pyidl.recurrent import bptt

P, Q, N = 4, 3, 10


def build(**options):
    return random_model(ImplicitModel, P, Q, N, **options)


def inputs(m=6, seed=0):
    return np.random.default_rng(seed).normal(size=(m, P))


# --------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"bias": False}, {"feedthrough": False}])
def test_the_equations(options, xp):
    model = moved(build(dtype="float64", **options), xp)
    U = inputs()
    Y, pull = model(xp.asarray(U))
    X, p = host(pull.forward.value), {key: host(a) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    np.testing.assert_allclose(X, np.maximum(X @ A.T + U @ p["B"].T + p.get("b", 0), 0), atol=1e-10)
    expected = X @ p["C"].T + U @ p.get("D", np.zeros((Q, P))).T + p.get("d", 0)
    assert_close(Y, expected, rtol=1e-12, atol=1e-12, xp=xp)


def test_the_seed_decides_everything():
    one, two, other = (ImplicitModel(P, Q, N, rng=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one.params[k], two.params[k]) for k in one.params)
    assert not np.array_equal(one.params["A"], other.params["A"])
    generator = np.random.default_rng(3)
    assert np.array_equal(ImplicitModel(P, Q, N, rng=generator).params["A"], one.params["A"])


@pytest.mark.parametrize("rank", [None, 1, 4])
@pytest.mark.parametrize("n", [1, 4, 64])
def test_a_new_model_is_certified(rank, n):
    if rank is None or rank <= n:
        model = ImplicitModel(P, Q, n, rank=rank, rng=0)
        assert model.certificate().proven
        assert 0 <= model.certificate().contraction < 0.9901


def test_values_and_slopes_come_from_the_same_pre_activation():
    _, pull = build()(inputs())
    assert np.array_equal(pull.forward.value, np.maximum(pull.forward.pre, 0))
    V = pull.solve(np.ones((6, Q))).value
    assert not np.any(V[pull.forward.value == 0])


def test_predict_in_batches_is_predict():
    model = build()
    assert_close(
        model.predict(inputs(17), batch_size=5), model.predict(inputs(17)), rtol=1e-4, atol=1e-4
    )
    assert_close(model.predict(inputs(17), batch_size=100), model(inputs(17))[0], rtol=0)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        build().predict(inputs(), batch_size=batch_size)


@given(st.integers(0, 50), st.sampled_from([0.3, 0.9, 0.99]))
def test_samples_do_not_interact(seed, kappa):
    """A sample's answer is its own, up to 2 tol / (1 - kappa).

    Alone, in a batch, in another order, beside a hard neighbour.
    """
    model = build(seed=seed, dtype="float64", constraint=InfNorm(kappa), spread=2.0)
    U = inputs(9, seed) * np.logspace(-2, 2, 9)[:, None]
    together = model.equilibrium(U).value
    order = np.random.default_rng(seed).permutation(9)
    bound = 2e-12 / (1 - kappa) * (1 + np.abs(together).max(axis=1, keepdims=True))
    assert np.all(np.abs(model.equilibrium(U[order]).value - together[order]) <= bound[order])
    for i in range(9):
        assert np.all(np.abs(model.equilibrium(U[i : i + 1]).value - together[i]) <= bound[i])


def test_a_call_and_its_pullback_start_warm():
    model = random_model(ImplicitModel, P, Q, N, constraint=InfNorm(0.95), dtype="float64").replace(
        adjoint=solvers.Picard()
    )
    U, dY = inputs(), np.ones((6, Q))
    Y, pull = model(U)
    dU, grads = pull(dY)
    V = pull.solve(dY)
    Y2, warm = model(U, x0=pull.forward.value)
    dU2, grads2 = warm(dY, v0=V.value)
    assert warm.forward.n_iter.max() == 1 < pull.forward.n_iter.min()
    assert warm.solve(dY, v0=V.value).n_iter.max() < V.n_iter.min()
    np.testing.assert_allclose(Y2, Y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dU2, dU, rtol=0, atol=1e-9)
    for key in grads:
        np.testing.assert_allclose(grads2[key], grads[key], rtol=0, atol=1e-8)
    far, _ = model(U, x0=1e3 * np.ones((6, N)))
    np.testing.assert_allclose(far, Y, rtol=0, atol=1e-9)
    for bad in (np.ones((5, N)), np.full((6, N), np.nan), np.ones((6, N), complex)):
        with pytest.raises(InputError, match="x0"):
            model(U, x0=bad)
        with pytest.raises(InputError, match="v0"):
            pull(dY, v0=bad)


def test_a_warm_start_changes_nothing_but_the_steps():
    model = build(dtype="float64")
    cold = model.equilibrium(inputs())
    warm = model.equilibrium(inputs(), x0=cold.value)
    far = model.equilibrium(inputs(), x0=1e3 * np.ones((6, N)))
    assert warm.n_iter.max() <= 2 < cold.n_iter.max()
    assert_close(warm.value, cold.value, rtol=0, atol=1e-9)
    assert_close(far.value, cold.value, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="x0 has shape"):
        model.equilibrium(inputs(), x0=np.ones((5, N)))


# ---------------------------------------------------------------------- what is refused

GOOD = inputs()
BAD_INPUTS = {
    "nan": np.where(np.arange(P) == 1, np.nan, GOOD),
    "inf": np.where(np.arange(P) == 1, np.inf, GOOD),
    "too large for float32": GOOD * 1e300,
    "empty": GOOD[:0],
    "too narrow": GOOD[:, :2],
    "one sample as a vector": GOOD[0],
    "a number": np.float64(3.0),
    "three dimensions": GOOD[None],
    "complex": GOOD + 1j,
    "objects": GOOD.astype(object),
    "text": np.full((6, P), "a"),
    "masked": np.ma.masked_invalid(GOOD),
    "ragged": [[1.0, 2.0], [3.0]],
    "none": None,
    "dates": np.full((6, P), np.datetime64("2020-01-01")),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("call", ["__call__", "predict", "equilibrium"])
def test_bad_input_is_refused_at_the_door(case, call):
    model = build()
    before = dict(model.params)
    with pytest.raises(InputError) as error:
        getattr(model, call)(BAD_INPUTS[case])
    assert "U" in str(error.value)
    assert all(model.params[k] is before[k] for k in before)


@pytest.mark.parametrize("case", ["nan", "empty", "too narrow", "a number", "complex", "objects"])
def test_explicit_layers_refuse_the_same(case):
    for layer in (
        Linear(P, Q, rng=0),
        Sequential(Linear(P, Q, rng=0)),
        Sequential(activations.relu, Linear(P, Q, rng=0)),
    ):
        with pytest.raises(InputError):
            layer(BAD_INPUTS[case])


@pytest.mark.parametrize("case", ["nan", "empty", "one sample as a vector", "complex", "objects"])
def test_an_activation_refuses_the_same(case):
    with pytest.raises(InputError):
        Pointwise(activations.relu)(BAD_INPUTS[case])


GOOD_INPUTS = {
    "list": GOOD.tolist(),
    "integers": np.arange(6 * P).reshape(6, P),
    "bools": GOOD > 0,
    "float16": GOOD.astype(np.float16),
    "float32": GOOD.astype(np.float32),
    "longdouble": GOOD.astype(np.longdouble),
    "big-endian": GOOD.astype(">f8"),
    "read-only": np.frombuffer(GOOD.tobytes()).reshape(6, P),
    "reversed": GOOD[::-1, ::-1],
    "every other column": np.repeat(GOOD, 2, axis=1)[:, ::2],
    "Fortran order": np.asfortranarray(GOOD),
    "matrix": GOOD.view(np.matrix),
    "huge": GOOD * 1e25,
    "tiny": GOOD * 1e-35,
}


@pytest.mark.parametrize("case", GOOD_INPUTS)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_good_input_in_any_clothes(case):
    model = build(bias=False)
    U = GOOD_INPUTS[case]
    Y, pull = model(U)
    plain = np.array(np.asarray(U), dtype=np.float32, order="C")
    assert type(Y) is np.ndarray
    assert_close(Y, model.predict(plain), rtol=1e-5, atol=1e-5 * np.abs(Y).max())
    dU, _ = pull(np.ones_like(Y))
    assert dU.dtype == np.float32


def test_mixed_libraries_are_refused_with_the_cure():
    model = build()
    with pytest.raises(DeviceMismatchError, match=r"model\.to"):
        model(array_api_strict.asarray(GOOD))
    strict = moved(model, array_api_strict)
    with pytest.raises(DeviceMismatchError, match="to_device"):
        strict(GOOD)
    _, pull = model(GOOD)
    with pytest.raises(DeviceMismatchError):
        pull(array_api_strict.ones((6, Q)))
    with pytest.raises(DeviceMismatchError):
        model.params = {**model.params, "A": array_api_strict.zeros((N, N))}


@pytest.mark.parametrize(
    "dY",
    [
        np.ones((6, Q + 1)),
        np.ones((5, Q)),
        np.ones(Q),
        np.full((6, Q), np.nan),
        np.ones((6, Q)) * 1j,
    ],
    ids=str,
)
def test_bad_cotangents_are_refused(dY):
    for layer in (build(), Linear(P, Q, rng=0)):
        with pytest.raises(InputError, match="dY"):
            layer(GOOD)[1](dY)


BAD_OPTIONS = {
    "no inputs": ((0, Q, N), {}),
    "negative": ((P, -1, N), {}),
    "fraction": ((P, Q, 2.5), {}),
    "bool": ((P, Q, True), {}),
    "rank 0": ((P, Q, N), {"rank": 0}),
    "rank above n": ((P, Q, N), {"rank": N + 1}),
    "half precision": ((P, Q, N), {"dtype": "float16"}),
    "no precision": ((P, Q, N), {"dtype": None}),
    "dtype unheard of": ((P, Q, N), {"dtype": "real"}),
    "activation by name": ((P, Q, N), {"activation": "rely"}),
    "activation as a function": ((P, Q, N), {"activation": np.tanh}),
    "blocks of another width": ((P, Q, N), {"activation": Blocks((activations.relu, 3))}),
    "constraint as a number": ((P, Q, N), {"constraint": 0.9}),
    "solver by name": ((P, Q, N), {"forward": "picard"}),
    "adjoint as a function": ((P, Q, N), {"adjoint": lambda p: p}),
    "bias as text": ((P, Q, N), {"bias": "yes"}),
    "phi that changes the shape": (
        (P, Q, N),
        {"activation": Activation("sum", lambda z: z.sum(), lambda z: z, 1.0)},
    ),
    "phi that changes the dtype": (
        (P, Q, N),
        {"activation": Activation("up", lambda z: z.astype(float), lambda z: z, 1.0)},
    ),
    "dphi that returns nan": (
        (P, Q, N),
        {"activation": Activation("nan", lambda z: z, lambda z: z * np.nan, 1.0)},
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(case):
    arguments, options = BAD_OPTIONS[case]
    with pytest.raises(InputError):
        ImplicitModel(*arguments, **options)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError):
        ImplicitModel(P, Q, N, kappa=0.9)
    with pytest.raises(InputError, match="kappa"):
        build().replace(kappa=0.9)


BAD_PARAMS = {
    "missing": lambda p: {k: a for k, a in p.items() if k != "b"},
    "unknown": lambda p: {**p, "E": p["A"]},
    "misshapen": lambda p: {**p, "A": p["A"][:, :-1]},
    "transposed": lambda p: {**p, "B": p["B"].T},
    "nan": lambda p: {**p, "C": p["C"] * np.nan},
    "complex": lambda p: {**p, "C": p["C"] * 1j},
    "text": lambda p: {**p, "C": "C"},
}


@pytest.mark.parametrize("case", BAD_PARAMS)
@pytest.mark.parametrize("nested", [False, True])
def test_bad_parameters_leave_the_model_as_it_was(case, nested):
    inner = build()
    model = Sequential(Linear(P, P, rng=0), inner) if nested else inner
    before = dict(model.params)
    bad = BAD_PARAMS[case](dict(inner.params))
    with pytest.raises(InputError):
        model.params = (
            {
                **{k: a * 2 for k, a in before.items() if k.startswith("0.")},
                **{f"1.{k}": a for k, a in bad.items()},
            }
            if nested
            else bad
        )
    assert all(model.params[k] is before[k] for k in before)


# ---------------------------------------------------------------- parameters and copies


@pytest.mark.parametrize(
    ("model", "room", "name", "count"),
    [
        (Sequential(build(), ImplicitModel(Q, 2, 6, rng=1)), read, "read_model", 1),
        (Sequential(build(), ImplicitModel(Q, 2, 6, rng=1)), read, "read_model", 2),
        (ImplicitRNN(P, Q, 2, N, rng=0), read, "read_model", 1),
        (ImplicitRNN(P, Q, 2, N, rng=0), bptt.Step, "of", 1),
    ],
)
def test_memory_that_ends_while_structure_is_read_leaves_the_model_as_it_was(
    model, room, name, count, monkeypatch
):
    U = inputs() if isinstance(model, Sequential) else inputs()[:, None, :]
    before, Y, function, calls = dict(model.params), model.predict(U), getattr(room, name), []

    def limited(*arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise MemoryError
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(room, name, limited)
        with pytest.raises(MemoryError):
            model.params = {key: 0.5 * a for key, a in model.params.items()}
    assert all(model.params[key] is a for key, a in before.items())
    assert np.array_equal(model.predict(U), Y)


def test_parameters_are_read_only_and_separate():
    model = build()
    A = np.zeros((N, N), np.float32)
    model.params = {**model.params, "A": A}
    A[:] = 7
    assert not model.params["A"].any()
    with pytest.raises(ValueError, match="read-only"):
        model.params["A"][0, 0] = 1
    with pytest.raises(TypeError):
        model.params["A"] = A
    with pytest.raises(AttributeError, match="replace"):
        model.activation = activations.tanh


def test_an_old_pullback_survives_new_parameters():
    model = build()
    Y, pull = model(GOOD)
    before = pull(np.ones_like(Y))
    model.params = {k: 0 * a for k, a in model.params.items()}
    after = pull(np.ones_like(Y))
    assert np.array_equal(before[0], after[0])
    assert all(np.array_equal(before[1][k], after[1][k]) for k in before[1])


def test_pullbacks_are_pure():
    model = Sequential(Linear(P, 5, rng=0), random_model(ImplicitModel, 5, Q, N))
    Y, pull = model(GOOD)
    one, two = pull(np.ones_like(Y)), pull(np.ones_like(Y))
    assert np.array_equal(one[0], two[0])
    dU, grads = pull(np.ones_like(Y), inputs=False)
    assert dU is None
    assert all(np.array_equal(grads[k], one[1][k]) for k in grads)


def test_copies_that_differ():
    model = build()
    double = model.astype("float64")
    assert {a.dtype for a in double.params.values()} == {np.dtype("float64")}
    assert double.dtype == "float64"
    assert model.dtype == "float32"
    assert model.astype(np.float64).dtype == "float64"
    smooth = model.replace(activation=activations.tanh, forward=solvers.Picard(tol=1e-4))
    assert smooth.activation is activations.tanh
    assert np.array_equal(smooth.params["A"], model.params["A"])
    with pytest.raises(InputError, match="needs"):
        model.replace(hidden_dim=N + 1)
    assert np.array_equal(model.to("cpu").params["A"], model.params["A"])
    for bad in ("gpu", "cuda:x", ""):
        with pytest.raises(InputError, match="device"):
            model.to(bad)


def test_a_missing_gpu_is_said():
    try:
        import cupy

        if cupy.is_available():
            pytest.skip("needs a machine without a GPU")
    except ImportError:
        pass
    with pytest.raises(DeviceError, match=r"cuda12|GPUs"):
        build().to("cuda")


@pytest.mark.parametrize(
    "layer",
    [
        build(activation=Blocks((activations.relu, 6), (activations.leaky_relu(0.3), 4)), rank=2),
        Linear(P, Q, rng=0),
        Sequential(Linear(P, 5, rng=0), activations.gelu, random_model(ImplicitModel, 5, Q, N)),
    ],
    ids=["implicit", "linear", "sequential"],
)
def test_pickle_and_deepcopy(layer):
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert np.array_equal(twin.predict(GOOD), layer.predict(GOOD))
        assert repr(twin) == repr(layer)
        twin.params = {k: 0 * a for k, a in twin.params.items()}
        assert np.any(layer.predict(GOOD))


def test_repr_says_what_it_is():
    assert (
        repr(ImplicitModel(64, 10, 32, rng=0))
        == "ImplicitModel(input_dim=64, output_dim=10, hidden_dim=32), 4074 parameters on cpu"
    )
    text = repr(Sequential(Linear(2, 3), activations.tanh, ImplicitModel(3, 1, 4, rank=2)))
    assert "0: Linear" in text
    assert "1: Pointwise(activation=tanh)" in text
    assert "rank=2" in text
    assert "converged" in repr(build()(GOOD)[1]).lower()


def test_two_threads_use_one_model():
    model = random_model(ImplicitModel, P, Q, 50)
    batches = [inputs(40, seed) for seed in range(8)]
    alone = [(Y, pull(np.ones_like(Y))) for Y, pull in map(model, batches)]
    found, errors = [None] * 8, []

    def work(i):
        try:
            for _ in range(20):
                Y, pull = model(batches[i])
                found[i] = (Y, pull(np.ones_like(Y)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for (Y, (dU, grads)), (Y2, (dU2, grads2)) in zip(alone, found):
        assert np.array_equal(Y, Y2)
        assert np.array_equal(dU, dU2)
        assert all(np.array_equal(grads[k], grads2[k]) for k in grads)


# ----------------------------------------------------------------------- failing solves

CERTIFIED = [
    activations.relu,
    activations.tanh,
    activations.silu,
    activations.elu,
    activations.identity,
    activations.abs,
    activations.softplus,
]


@settings(max_examples=150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 10, 60]),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from(CERTIFIED),
    st.booleans(),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.floats(-6, 4),
    st.floats(-10, 6),
)
def test_the_default_solvers_solve_every_certified_model(
    seed, n, kappa, dtype, activation, factors, spread, size, cotangent
):
    """Up to kappa = 0.99, in both precisions.

    For inputs from 1e-6 to 1e4 and cotangents from 1e-10 to 1e6.
    """
    rng = np.random.default_rng(seed)
    options = {
        "activation": activation,
        "constraint": InfNorm(kappa),
        "dtype": dtype,
        "rank": min(n, 3) if factors else None,
    }
    model = random_model(ImplicitModel, 5, Q, n, seed=seed, spread=spread, **options)
    if not factors and seed % 2:  # all eigenvalues at one end of the interval
        model.params = {**model.params, "A": np.abs(model.params["A"]) * (-1) ** (seed // 2)}
    assert model.certificate().proven
    Y, pull = model(rng.normal(size=(10, 5)) * 10.0**size)
    dU, _ = pull((rng.normal(size=Y.shape) * 10.0**cotangent).astype(dtype))
    assert np.all(np.isfinite(dU))


def expanding(**options):
    """A model outside its set, on which Picard diverges for nonzero inputs."""
    model = build(forward=solvers.Picard(), **options)
    model.params = {
        **model.params,
        "A": 3 * np.eye(N),
        "b": np.zeros(N),
        "B": np.abs(model.params["B"]),
    }
    return model


def test_a_failed_solve_follows_on_fail():
    model = expanding()
    assert not model.certificate().proven
    U = np.vstack([np.zeros(P), np.ones(P)])
    with pytest.raises(
        ConvergenceError, match=r"1 of 2 samples ended DIVERGED.*not certified.*Cure: .*project"
    ) as error:
        model(U)
    assert error.value.converged.tolist() == [True, False]
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        Y, _ = model(U, on_fail="warn")
    assert np.all(np.isfinite(Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, pull = model(U, on_fail="ignore")
    assert pull.forward.converged.tolist() == [True, False]
    with pytest.raises(InputError, match="on_fail"):
        model(U, on_fail="skip")


def test_on_fail_reaches_through_a_sequence():
    model = Sequential(activations.identity, expanding(), Linear(Q, 2, rng=0))
    with pytest.raises(ConvergenceError):
        model(np.ones((2, P)))
    with pytest.warns(ConvergenceWarning):
        model(np.ones((2, P)), on_fail="warn")


def test_a_failed_adjoint_never_looks_like_a_gradient():
    model = build(adjoint=solvers.Picard(max_iter=2))
    _, pull = model(GOOD)
    with pytest.raises(GradientConvergenceError, match=r"adjoint solve .* MAX_ITER") as error:
        pull(np.ones((6, Q)))
    assert not error.value.converged.all()
    _, pull = model(GOOD, on_fail="warn")
    with pytest.warns(GradientConvergenceWarning):
        dU, _ = pull(np.ones((6, Q)))
    assert np.any(dU)


@pytest.mark.parametrize("n", [1, 200])
def test_the_default_adjoint_repairs_itself(n):
    """Where nothing contracts, the gradient is exact all the same: x = -2 x + z, so dx/dz = 1/3."""
    model = ImplicitModel(
        1,
        1,
        n,
        activation=activations.identity,
        dtype="float64",
        bias=False,
        feedthrough=False,
        forward=solvers.Picard(damping=0.7),
    )
    model.params = {"A": -2.0 * np.eye(n), "B": np.ones((n, 1)), "C": np.ones((1, n)) / n}
    Y, pull = model([[3.0]])
    assert Y[0, 0] == pytest.approx(1.0, abs=1e-10)
    dU, _ = pull([[1.0]])
    assert dU[0, 0] == pytest.approx(1 / 3, abs=1e-12)
    assert ("Auto(Direct" if n == 1 else "Auto(Jacobi") in pull.solve([[1.0]]).method


# --------------------------------------------------------------------------- Sequential


def test_sequential_is_checked_when_it_is_built():
    with pytest.raises(InputError, match="at least one"):
        Sequential()
    with pytest.raises(InputError, match="layer 1"):
        Sequential(Linear(2, 3), "rely")
    with pytest.raises(InputError, match="takes 4 inputs"):
        Sequential(Linear(2, 3), activations.relu, Linear(4, 1))
    with pytest.raises(InputError, match="float32 and float64"):
        Sequential(Linear(2, 3), Linear(3, 1, dtype="float64"))
    layer = Linear(2, 2)
    with pytest.raises(InputError, match="twice"):
        Sequential(layer, layer)
    with pytest.raises(InputError, match="ImplicitModel takes"):
        Sequential(Linear(2, 3, rng=0), ImplicitModel(3, 1, 4, rng=0))(np.ones((2, 5, 2)))


def test_sequential_certificate_is_the_weakest():
    good, bad = build(), expanding()
    assert (
        Sequential(Linear(P, P), good).certificate().contraction == good.certificate().contraction
    )
    assert not Sequential(Linear(P, P), bad, Linear(Q, P), good).certificate().proven
    assert Sequential(Linear(P, P), Linear(P, P)).certificate().proven


def test_sequential_parameters_are_those_of_its_layers():
    linear, implicit = Linear(P, P, rng=0), build()
    model = Sequential(linear, activations.relu, implicit)
    assert set(model.params) == {"0.W", "0.b", *(f"2.{k}" for k in implicit.params)}
    model.params = {k: 0 * a for k, a in model.params.items()}
    assert not linear.params["W"].any()
    assert not implicit.params["A"].any()
    big = model.params | {"2.A": np.full((N, N), 5.0)}
    assert InfNorm(0.99).contains({"A": model.project(big)["2.A"]}, activations.relu)
    assert model.replace().layers[0] is not linear
    assert model.astype("float64").layers[0].params["W"].dtype == np.float64
