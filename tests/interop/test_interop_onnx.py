"""Layers as ONNX graphs, run by onnxruntime: outputs beside pyidl's, stopping, what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from example_runs import run as run_example
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

from pyidl import (
    Bidirectional,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
    activations,
)
from pyidl.activations import Activation, Blocks, relu, tanh
from pyidl.attention import BoundedSoftmax, KernelAttention, Softmax
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.wellposed import InfNorm, MatrixMeasure, StrictlyTriangular, Unconstrained

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from pyidl.interop.onnx import export  # noqa: E402  (after the lines that skip)


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )


def run(runs, U, lengths=None):
    """Every output."""
    return runs.run(
        None, {"U": U} | ({} if lengths is None else {"lengths": np.asarray(lengths, np.int64)})
    )


def normal(shape, dtype="float64", seed=5):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def chain(dtype):
    """A small language model."""
    return Sequential(
        Embedding(7, 4, dtype=dtype, rng=0),
        PositionEmbedding(6, 4, dtype=dtype, rng=1),
        ImplicitTransformerBlock(4, 2, mlp_dim=5, block_size=6, dropout=0.5, dtype=dtype, rng=2),
        LayerNorm(4, dtype=dtype),
        Linear(4, 7, dtype=dtype, rng=3),
    )


def head(**options):
    return lambda dtype: random_model(
        ImplicitAttentionHead, 3, 4, num_heads=2, block_size=6, spread=0.2, dtype=dtype, **options
    )


def network(*widths, **options):
    return lambda dtype: random_model(
        ImplicitRNN, *widths, dtype=dtype, constraint=InfNorm(0.8), **options
    )


ROWS = {
    "model": lambda dtype: random_model(
        ImplicitModel, 3, 2, 6, dtype=dtype, constraint=InfNorm(0.8)
    ),
    "low rank": lambda dtype: random_model(
        ImplicitModel, 3, 2, 6, rank=2, bias=False, feedthrough=False, dtype=dtype, activation=tanh
    ),
    "triangular": lambda dtype: random_model(
        ImplicitModel, 3, 2, 6, constraint=StrictlyTriangular(), dtype=dtype
    ),
    "chain": lambda dtype: Sequential(
        Linear(3, 4, bias=False, dtype=dtype, rng=0),
        tanh,
        Residual(
            ImplicitModel(4, 5, 8, dtype=dtype, rng=1),
            Dropout(0.5),
            Linear(5, 4, dtype=dtype, rng=2),
        ),
        LayerNorm(4, dtype=dtype),
        ImplicitModel(4, 2, 8, dtype=dtype, rng=3),
    ),
}
SEQUENCES = {
    "recurrent": network(3, 2, 4, 6),
    "outputs for all steps": network(
        3, 2, 4, 6, return_sequences=True, warm_start=False, activation=tanh
    ),
    "mean over time": network(3, 2, 4, 6, pool="mean"),
    "maximum over time": network(3, 2, 4, 6, pool="max", timescale=9),
    "D on the input": network(3, 2, 4, 6, feedthrough="input", rank=3),
    "without D and b": network(3, 2, 4, 6, feedthrough=False, bias=False),
    "stacked": lambda dtype: Sequential(
        Linear(3, 3, dtype=dtype, rng=0),
        network(3, 5, 4, 6, return_sequences=True)(dtype),
        relu,
        network(5, 2, 3, 6, seed=1)(dtype),
    ),
    "both directions": lambda dtype: Bidirectional(
        network(3, 2, 4, 6, return_sequences=True)(dtype),
        network(3, 1, 4, 6, return_sequences=True, seed=1)(dtype),
    ),
    "both directions, last": lambda dtype: Bidirectional(
        network(3, 2, 4, 6)(dtype), network(3, 1, 4, 6, seed=1)(dtype)
    ),
    "kernel": head(),
    "kernel, sharp": head(attention=KernelAttention(bandwidth=2.0, c=0.01), causal=False),
    "bounded softmax": head(attention=BoundedSoftmax(tau=3.0), coupled=True),
    "softmax": head(
        attention=Softmax(), causal=False, coupled=True, rank=2, constraint=Unconstrained()
    ),
}


def assert_near(Y, expected):
    """To the tolerance of both solves, which is relative to the size of the state."""
    assert (Y.dtype, Y.shape) == (expected.dtype, expected.shape)
    tol = 1e-11 if Y.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(Y, expected, rtol=0, atol=tol * (1 + np.abs(expected).max()))


def exported(layer, **options):
    """Without the warning for softmax."""
    if (
        isinstance(layer, ImplicitAttentionHead)
        and isinstance(layer.attention, Softmax)
        and options.get("steps") is None
    ):
        with pytest.warns(WellPosednessWarning, match="nothing proves"):
            return export(layer, **options)
    return export(layer, **options)


def shape_of(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, dtype):
    layer = ROWS[name](dtype)
    model = export(layer)
    assert [shape_of(v) for v in (*model.graph.input, *model.graph.output)] == [
        ["m", 3],
        ["m", 2],
        ["m"],
    ]
    runs = session(model)
    for m in (1, 2, 33):
        U = normal((m, 3), dtype, seed=m)
        Y, converged = run(runs, U)
        assert converged.tolist() == [True] * m
        assert_near(Y, layer.predict(U))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name, dtype):
    layer = SEQUENCES[name](dtype)
    model = exported(layer)
    assert shape_of(model.graph.input[0]) == ["m", "T", 3]
    runs, with_lengths = session(model), session(exported(layer, lengths=True))
    for m, T in ((1, 1), (4, 6), (7, 2)):
        U = normal((m, T, 3), dtype, seed=m)
        Y, converged = run(runs, U)
        assert converged.tolist() == [True] * m
        assert len(shape_of(model.graph.output[0])) == Y.ndim
        assert_near(Y, layer.predict(U))
        lengths = np.random.default_rng(T).integers(1, T + 1, size=m)
        Y, converged = run(with_lengths, U, lengths)
        assert converged.all()
        assert_near(Y, layer.predict(U, lengths))
    assert np.abs(Y - layer.predict(U)).max() > 1e-3 or T == 1, "lengths matter"


@pytest.mark.parametrize("size", [10.0, 100.0])
@pytest.mark.parametrize("kind", ["offset", "spread"])
def test_keys_far_from_zero(kind, size):
    """Distances of a kernel do not cancel in float32, in the graph neither."""
    layer = head()("float32")
    S = np.array(layer.params["S"])
    S[..., 4:8] = S[..., :4]  # q and k alike, so that tokens are near some
    layer.params = {**layer.params, "S": S}
    U = normal((3, 6, 3), "float32", seed=1)
    U = U + np.float32(size) if kind == "offset" else U * np.float32(size)
    Y, converged = run(session(export(layer)), U)
    assert converged.all()
    assert_near(Y, layer.predict(U))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tokens(dtype):
    layer = chain(dtype)
    model = export(layer)
    assert [shape_of(v) for v in (*model.graph.input, *model.graph.output)] == [
        ["m", "T"],
        ["m", "T", 7],
        ["m"],
    ]
    runs = session(model)
    for shape in ((1, 1), (5, 6)):
        U = np.random.default_rng(0).integers(7, size=shape)
        assert_near(run(runs, U)[0], layer.predict(U))
    for bad in ([[0] * 7] * 2, [[7]], [[0, -1]], [[-7]], [[-8, 3]]):
        refused(runs, np.array(bad))


def refused(runs, *inputs):
    """A look-up that fails; the classes of onnxruntime's errors have no common name."""
    with pytest.raises(Exception, match=r"out of data bounds|cannot be reshaped"):
        run(runs, *inputs)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("name", ["kernel", "kernel, sharp", "bounded softmax", "softmax"])
def test_more_tokens_than_the_certificate_holds_for_are_refused(name, steps):
    head = SEQUENCES[name]("float32")
    runs = session(exported(head, steps=steps))
    assert run(runs, normal((2, head.block_size, 3), "float32"))[0].shape == (2, 6, 8)
    for T in (0, head.block_size + 1, 2 * head.block_size):
        refused(runs, normal((2, T, 3), "float32"))


@pytest.mark.parametrize("block_size", [1, 4])
def test_more_positions_than_there_are_are_refused(block_size):
    """Also one that would stand beside every token."""
    layer = PositionEmbedding(block_size, 3, rng=0)
    runs, U = session(export(layer)), normal((2, block_size + 1, 3), "float32")
    np.testing.assert_array_equal(run(runs, U[:, :-1])[0], layer.predict(U[:, :-1]))
    refused(runs, U)


@pytest.mark.parametrize(
    "name", ["recurrent", "both directions", "both directions, last", "kernel"]
)
def test_lengths_that_are_none_are_refused(name):
    layer, U = SEQUENCES[name]("float64"), normal((2, 4, 3))
    runs = session(export(layer, lengths=True))
    assert_near(run(runs, U, [1, 4])[0], layer.predict(U, [1, 4]))
    for lengths in ([0, 4], [4, 5], [-1, 4], [3], [3, 3, 3]):
        with pytest.raises(InputError):
            layer.predict(U, lengths)
        refused(runs, U, lengths)


@given(
    p=st.integers(1, 4),
    q=st.integers(1, 3),
    n=st.integers(1, 6),
    m=st.integers(1, 5),
    bias=st.booleans(),
    feedthrough=st.booleans(),
    low=st.booleans(),
    seed=st.integers(0, 9),
)
def test_models_of_all_kinds(p, q, n, m, bias, feedthrough, low, seed):
    options = {"bias": bias, "feedthrough": feedthrough, "rank": 1 if low else None}
    layer = random_model(
        ImplicitModel, p, q, n, seed=seed, dtype="float64", constraint=InfNorm(0.8), **options
    )
    U = normal((m, p), seed=seed)
    assert_near(run(session(export(layer)), U)[0], layer.predict(U))


# -------------------------------------------------------------------------- activations


def built_in():
    names = [
        name for name in activations.__all__ if isinstance(getattr(activations, name), Activation)
    ]
    return [
        *(getattr(activations, name) for name in names),
        activations.leaky_relu(0.2),
        activations.layer_norm(0.5),
    ]


BUILT_IN = built_in()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("phi", BUILT_IN, ids=repr)
def test_activations(phi, dtype):
    if phi is activations.gelu and dtype == "float64":
        with pytest.raises(InputError, match=r"gelu needs Erf.*astype\('float32'\)"):
            export(ImplicitModel(3, 2, 4, activation=phi, dtype=dtype, rng=0))
        return
    z = np.concatenate([np.linspace(-30, 30, 61), [0.0, 1e-3, -1e-3]]).reshape(16, 4).astype(dtype)
    # a layer that has a dtype
    layer = Sequential(Linear(4, 4, bias=False, dtype=dtype, rng=0), phi)
    layer.params = {"0.W": np.eye(4)}
    (Y,) = run(session(export(layer)), z)
    tol = 1e-13 if dtype == "float64" else 3e-6
    np.testing.assert_allclose(Y, phi(z), rtol=tol, atol=tol)
    assert np.abs(Y - activations.sin(z)).max() > 0.1 or phi is activations.sin


def test_all_activations_are_there():
    assert len(BUILT_IN) == 15


def test_activations_side_by_side():
    phi = Blocks((relu, 2), (activations.softmax, 3), (tanh, 1))
    layer = random_model(
        ImplicitModel, 3, 2, 6, activation=phi, constraint=InfNorm(0.8), dtype="float64"
    )
    U = normal((4, 3))
    assert_near(run(session(export(layer)), U)[0], layer.predict(U))


def test_an_activation_alone():
    model = export(Pointwise(tanh))
    np.testing.assert_allclose(
        run(session(model), normal((4, 3), "float32"))[0],
        np.tanh(normal((4, 3), "float32")),
        rtol=0,
        atol=1e-6,
    )
    assert [v.name for v in model.graph.output] == ["Y"]


# ----------------------------------------------------------------------------- stopping


def bare(n=8, kappa=0.9, dtype="float64"):
    """A model whose output is its state."""
    layer = random_model(
        ImplicitModel,
        3,
        n,
        n,
        bias=False,
        feedthrough=False,
        dtype=dtype,
        constraint=InfNorm(kappa),
        activation=tanh,
    )
    layer.params = {**layer.params, "C": np.eye(n)}
    return layer


def excess(layer, X, U, tol):
    p = layer.params
    return np.abs(np.tanh(X @ p["A"].T + U @ p["B"].T) - X).max(axis=1) - tol * (
        1 + np.abs(X).max(axis=1)
    )


def test_a_loop_ends_at_its_tolerance():
    """And not long after: the state before the last step is what was measured."""
    layer, U = bare(), normal((6, 3))
    for tol in (1e-2, 1e-4, 1e-8):
        X, converged = run(session(export(layer, tol=tol)), U)
        assert converged.all()
        assert excess(layer, X, U, tol).max() <= 0
        assert excess(layer, X, U, 1e-3 * tol).max() > 0


def test_company_changes_a_row_by_the_tolerance_alone():
    layer, tol = bare(), 1e-4
    U = normal((6, 3)) * np.array([1e-3, 1, 1, 1, 1, 5])[:, None]
    runs = session(export(layer, tol=tol))
    together = run(runs, U)[0]
    alone = np.concatenate([run(runs, U[i : i + 1])[0] for i in range(6)])
    assert 0 < np.abs(together - alone).max() <= 2 * 0.9 * 2 * tol / (1 - 0.9)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_number_of_steps(steps):
    layer, U = bare(), normal((6, 3))
    model = export(layer, steps=steps)
    assert [v.name for v in model.graph.output] == ["Y"]
    states, p = [np.zeros((6, 8))], layer.params
    for _ in range(steps):
        states.append(np.tanh(states[-1] @ p["A"].T + U @ p["B"].T))
    (X,) = run(session(model), U)
    np.testing.assert_allclose(X, states[-1], rtol=0, atol=1e-14)
    assert np.abs(X - states[-2]).max() > 1e-3


@pytest.mark.parametrize("name", ["recurrent", "both directions", "kernel", "softmax"])
def test_enough_steps_are_as_good_as_a_loop(name):
    layer = SEQUENCES[name]("float64")
    U = normal((3, 4, 3))
    for lengths in (None, [4, 1, 2]):
        outputs = run(session(export(layer, steps=120, lengths=lengths is not None)), U, lengths)
        assert len(outputs) == 1
        assert_near(outputs[0], layer.predict(U) if lengths is None else layer.predict(U, lengths))


@pytest.mark.parametrize("warm", [True, False])
def test_a_number_of_steps_at_each_time(warm):
    layer, U = network(3, 2, 4, 6, warm_start=warm, activation=tanh)("float64"), normal((5, 4, 3))
    p, H, X = layer.params, np.zeros((5, 4)), np.zeros((5, 6))
    for t in range(4):
        V = np.concatenate([U[:, t], H], axis=1)
        X = X if warm else np.zeros_like(X)
        for _ in range(2):
            X = np.tanh(X @ p["A"].T + V @ p["B"].T + p["b"])
        H = X @ p["C"].T + V @ p["D"].T + p["d"]
    (Y,) = run(session(export(layer, steps=2)), U)
    np.testing.assert_allclose(Y, H @ p["E"].T + p["e"], rtol=0, atol=1e-12)
    assert np.abs(Y - layer.predict(U)).max() > 1e-4


def test_the_step_bound_of_a_certificate_suffices():
    layer, U = bare(kappa=0.5), normal((6, 3))
    certificate, p = layer.certificate(), layer.params
    (first,) = run(session(export(layer, steps=1)), U)
    (X,) = run(
        session(export(layer, steps=certificate.steps(1e-9, first=certificate.norm(first).max()))),
        U,
    )
    assert certificate.norm(np.tanh(X @ p["A"].T + U @ p["B"].T) - X).max() <= 1e-9


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_steps_may_be_what_a_solve_took(dtype):
    layer, U = bare(), normal((6, 3))
    steps = layer(U)[1].forward.n_iter.max()
    assert isinstance(steps, np.integer)
    model = export(layer, steps=dtype(steps))
    assert model.SerializeToString() == export(layer, steps=int(steps)).SerializeToString()


def test_what_has_not_converged_is_said():
    layer, U = bare(), normal((6, 3))
    X, converged = run(session(export(layer, max_iter=3)), U)
    assert not converged.any()
    assert np.isfinite(X).all()
    U[0] = 0.0  # its solution is 0, at once
    assert run(session(export(layer, max_iter=3)), U)[1].tolist() == [True] + [False] * 5


def without_feedback(layer):
    """A = 0: one step is the solution, whatever it starts from."""
    layer.params = {**layer.params, "A": np.zeros_like(layer.params["A"])}
    return layer


def test_the_worst_of_all_solves_counts():
    easy, U = without_feedback(ImplicitModel(3, 3, 8, dtype="float64", rng=0)), normal((6, 3))
    assert run(session(export(easy, max_iter=2)), U)[1].all()
    hard, back = bare(), Linear(8, 3, dtype="float64", rng=0)
    for two in (Sequential(easy, hard), Sequential(hard, back, easy.replace())):
        assert not run(session(export(two, max_iter=3)), U)[1].any()
    V = normal((6, 5, 3))
    ahead, hard = without_feedback(network(3, 2, 4, 6)("float64")), network(3, 2, 4, 6)("float64")
    for two in (Bidirectional(ahead, hard), Bidirectional(hard.replace(), ahead.replace())):
        assert not run(session(export(two, max_iter=2)), V)[1].any()
    # with a memory that forgets, the last step is solved at once, and the first ones are not
    V[:, -1] = 0.0
    hard = network(3, 2, 4, 6, bias=False, warm_start=False)("float64")
    hard.params = {
        **hard.params,
        "B": np.concatenate([hard.params["B"][:, :3], np.zeros((6, 4))], axis=1),
    }
    assert run(session(export(hard, max_iter=2)), V[:, -1:])[1].all()
    assert not run(session(export(hard, max_iter=2)), V)[1].any()


def test_steps_after_the_end_do_not_count():
    """A sequence of zeros is solved at once; what follows its end is not."""
    layer = network(3, 2, 4, 6, bias=False)("float64")
    U = normal((2, 5, 3))
    U[0, :2] = 0.0
    assert run(session(export(layer, max_iter=2, lengths=True)), U, [2, 5])[1].tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [1, 5, 8, 33])
def test_a_bad_row_does_not_stop_the_others(n, dtype):
    layer = random_model(ImplicitModel, 3, 2, n, dtype=dtype, constraint=InfNorm(0.8))
    U = normal((4, 3), dtype)
    expected = layer.predict(U)
    U[1, 2] = np.nan
    Y, converged = run(session(export(layer)), U)
    assert converged.tolist() == [True, False, True, True]
    assert_near(Y[[0, 2, 3]], expected[[0, 2, 3]])


def test_divergence_is_said():
    layer = ImplicitModel(3, 2, 6, constraint=Unconstrained(), rng=0)
    layer.params = {**layer.params, "A": np.full((6, 6), 2.0), "b": np.ones(6)}
    within = Sequential(Linear(3, 3, rng=0), Residual(layer.replace(), Linear(2, 3, rng=1)))
    for either in (layer, within):
        with pytest.warns(
            WellPosednessWarning, match="nothing proves that the plain iteration"
        ) as caught:
            model = export(either)
        assert [Path(w.filename) for w in caught] == [Path(__file__)]
        assert not run(session(model), normal((4, 3), "float32"))[1].any()
    export(layer, steps=3)  # who counts steps knows what for


@pytest.mark.parametrize("phi", [relu, tanh])
def test_certified_for_another_iteration_is_not_enough(phi):
    """For tanh there is a damped one, too."""
    layer = ImplicitModel(3, 2, 6, constraint=MatrixMeasure(), activation=phi, rng=0)
    layer.params = {**layer.params, "A": -5 * np.eye(6)}
    assert layer.certificate().proven
    with pytest.warns(WellPosednessWarning, match="plain iteration"):
        export(layer)


# ---------------------------------------------------------------------- files, refusals


def test_files(tmp_path):
    layer, U = SEQUENCES["recurrent"]("float32"), normal((2, 4, 3), "float32")
    model = export(layer, tmp_path / "model.onnx")
    np.testing.assert_array_equal(
        run(session(str(tmp_path / "model.onnx")), U)[0], run(session(model), U)[0]
    )
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert (model.ir_version, model.producer_name) == (8, "pyidl")


def test_refusals():
    class Mine(Linear):
        pass

    class Sharper(Softmax):
        pass

    own = Activation("mine", np.tanh, lambda z: 1 - np.tanh(z) ** 2, lipschitz=1.0)
    like = Activation("tanh", np.sin, np.cos, lipschitz=1.0)
    model = ImplicitModel(3, 2, 4, rng=0)
    for words, call in {
        "takes a Layer, got int": lambda: export(3),
        "no ONNX graph for Mine; there is one for Bidirectional": lambda: export(
            Sequential(model, Mine(2, 2))
        ),
        "'mine' is not built in": lambda: export(ImplicitModel(3, 2, 4, activation=own, rng=0)),
        "'tanh' is not built in": lambda: export(Pointwise(like)),
        "Sharper.* is not built in": lambda: export(
            ImplicitAttentionHead(3, 4, attention=Sharper(), constraint=Unconstrained(), rng=0)
        ),
        "ImplicitModel takes no lengths": lambda: export(model, lengths=True),
        "steps is 0": lambda: export(model, steps=0),
        "steps is True": lambda: export(model, steps=True),
        "steps is 3 and tol is 0.1": lambda: export(model, steps=3, tol=0.1),
        "steps is 2.0": lambda: export(model, steps=2.0),
        r"steps is np\.True_": lambda: export(model, steps=np.True_),
        "lengths is 'yes'": lambda: export(ImplicitRNN(3, 2, 4, 6, rng=0), lengths="yes"),
        "lengths is 0": lambda: export(model, lengths=0),
        "lengths is None": lambda: export(model, lengths=None),
        "tol is 2": lambda: export(model, tol=2),
        "max_iter is 0": lambda: export(model, max_iter=0),
    }.items():
        with pytest.raises(InputError, match=words):
            call()


def test_example(tmp_path):
    result = run_example("onnx_export.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"(\d+) of (\d+) samples converged", result.stdout) == [
        ("100", "100"),
        ("20", "20"),
        ("4", "4"),
    ]
    assert max(float(x) for x in re.findall(r"largest difference (\S+)", result.stdout)) < 1e-4
    assert len(list(tmp_path.glob("output/*.onnx"))) == 4


def test_the_code_of_the_page_runs_as_it_is_written(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
    (code,) = (fence for fence in re.findall(r"```python\n(.*?)```", page, re.S) if "onnx" in fence)
    monkeypatch.chdir(tmp_path)
    names = {
        "model": ImplicitModel(5, 3, 8, rng=0),
        "rnn": ImplicitRNN(4, 2, 5, 8, rng=0),
        "onnxruntime": ort,
    }
    names["U"] = np.random.default_rng(0).normal(size=(7, 5)).astype("float32")
    exec(code, names)
    assert names["converged"].all()
    np.testing.assert_allclose(names["Y"], names["model"].predict(names["U"]), rtol=0, atol=1e-4)
