"""ONNX graphs compute what the layers compute, to the tolerance, for any batch and any length of sequence."""

import numpy as np
import pytest
from helpers import random_model

from pyidl import (
    Bidirectional,
    BoundedSoftmax,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    InfNorm,
    KernelAttention,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
    Softmax,
    activations,
)
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.wellposed import StrictlyTriangular, Unconstrained

onnx = pytest.importorskip("onnx", reason="onnx is not installed; it is in the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; it is in the extra onnx")
export = pytest.importorskip("pyidl.interop.onnx", reason="onnx is not installed").export

P, Q = 4, 3
CLOSE = {"float32": 5e-5, "float64": 1e-10}


def model(cls, *args, dtype="float64", **options):
    return random_model(cls, *args, spread=0.3, dtype=dtype, **options)


def session(graph):
    return runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def inputs(layer, m, T, seed=0):
    rng = np.random.default_rng(seed)
    first = next(iter(layer.parts.values())) if hasattr(layer, "parts") else layer
    if isinstance(first, Embedding):
        return rng.integers(0, first.num_tokens, (m, T))
    shape = (m, T, P) if layer.takes_lengths else (m, P)
    return rng.normal(size=shape).astype(layer.dtype if layer.params else "float32")


def compare(layer, sizes=((1, 1), (5, 3), (2, 6)), lengths=False, **options):
    """One graph for all sizes."""
    graph = export(layer, lengths=lengths, **options)
    onnx.checker.check_model(graph, full_check=True)
    run, dtype = session(graph), layer.dtype if layer.params else "float32"
    for m, T in sizes:
        U = inputs(layer, m, T)
        feed, more = {"U": U}, ()
        if lengths:
            ends = np.random.default_rng(m).integers(1, T + 1, m)
            feed["lengths"], more = ends, (ends,)
        Y, *converged = run.run(None, feed)
        desired = layer.predict(U, *more)
        assert Y.dtype == desired.dtype
        assert Y.shape == desired.shape
        assert np.abs(Y - desired).max() <= CLOSE[dtype] * (1 + np.abs(desired).max())
        assert all(flag.all() and flag.shape == (m,) for flag in converged)
    return graph


TANH = activations.tanh
LAYERS = {
    "linear": lambda dtype: model(Linear, P, Q, dtype=dtype),
    "pointwise": lambda dtype: Pointwise(TANH),
    "implicit": lambda dtype: model(ImplicitModel, P, Q, 8, dtype=dtype),
    "low rank, no biases": lambda dtype: model(ImplicitModel, P, Q, 8, rank=2, bias=False, activation=TANH, dtype=dtype),
    "without D": lambda dtype: model(ImplicitModel, P, Q, 8, feedthrough=False, dtype=dtype),
    "triangular": lambda dtype: model(ImplicitModel, P, Q, 8, constraint=StrictlyTriangular(), dtype=dtype),
    "sequential": lambda dtype: Sequential(
        model(Linear, P, 5, dtype=dtype), TANH, Dropout(0.5), model(ImplicitModel, 5, 4, 6, dtype=dtype), LayerNorm(4, dtype=dtype)
    ),
    "residual": lambda dtype: Sequential(Residual(model(ImplicitModel, P, P, 6, dtype=dtype), TANH), model(Linear, P, Q, dtype=dtype)),
}
SEQUENCES = {
    "recurrent": lambda dtype: model(ImplicitRNN, P, Q, 3, 5, dtype=dtype),
    "recurrent, every step": lambda dtype: model(ImplicitRNN, P, Q, 3, 5, return_sequences=True, activation=TANH, dtype=dtype),
    "recurrent, D of inputs": lambda dtype: model(ImplicitRNN, P, Q, 3, 5, feedthrough="input", bias=False, dtype=dtype),
    "recurrent, no D, rank": lambda dtype: model(ImplicitRNN, P, Q, 3, 5, feedthrough=False, rank=2, warm_start=False, dtype=dtype),
    "both directions": lambda dtype: Bidirectional(*(model(ImplicitRNN, P, 2, 3, 4, dtype=dtype) for _ in range(2))),
    "stacked": lambda dtype: Sequential(
        Bidirectional(*(model(ImplicitRNN, P, 2, 3, 4, return_sequences=True, dtype=dtype) for _ in range(2))),
        model(ImplicitRNN, 4, Q, 3, 4, dtype=dtype),
    ),
}
for attention in (KernelAttention(), BoundedSoftmax(), Softmax(), KernelAttention(bandwidth=0.4, c=2.0), BoundedSoftmax(tau=0.2)):
    for causal in (True, False):
        SEQUENCES[f"{attention!r}, causal {causal}"] = lambda dtype, attention=attention, causal=causal: ImplicitAttentionHead(
            P, 3, num_heads=2, attention=attention, causal=causal, block_size=6, dtype=dtype, rng=0
        )
SEQUENCES["coupled heads"] = lambda dtype: ImplicitAttentionHead(P, 3, num_heads=2, coupled=True, block_size=6, dtype=dtype, rng=0)
SEQUENCES["heads of rank 1"] = lambda dtype: ImplicitAttentionHead(P, 3, num_heads=2, rank=1, block_size=6, dtype=dtype, rng=0)
SEQUENCES["a character model"] = lambda dtype: Sequential(
    Embedding(9, 6, dtype=dtype, rng=0),
    PositionEmbedding(6, 6, dtype=dtype, rng=1),
    ImplicitTransformerBlock(6, 2, block_size=6, dropout=0.1, dtype=dtype, rng=2),
    LayerNorm(6, dtype=dtype),
    Linear(6, 9, dtype=dtype, rng=3),
)


@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")  # a softmax is certified for no parameters
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*LAYERS, *SEQUENCES])
def test_a_graph_is_its_layer(name, dtype):
    layer = (LAYERS | SEQUENCES)[name](dtype)
    compare(layer)
    compare(layer, steps=80)


@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_several_lengths(name):
    compare(SEQUENCES[name]("float64"), lengths=True)


NAMES = [
    "abs", "elu", "gelu", "hard_tanh", "identity", "relu", "sigmoid", "silu", "sin", "softplus", "softsign", "tanh", "softmax",
    "leaky_relu(0.1)", "layer_norm(0.5)",
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_every_activation(name, dtype):
    phi = activations.named(name)
    layer = Pointwise(phi)
    U = np.concatenate([np.linspace(-30, 30, 41), [0.0, 1e-8, -1e4]]).reshape(11, 4).astype("float32")
    Y = session(export(layer)).run(None, {"U": U})[0]
    np.testing.assert_allclose(Y, layer.predict(U), rtol=3e-5, atol=3e-6)
    implicit = ImplicitModel(P, Q, 7, activation=phi, constraint=InfNorm(0.5), dtype=dtype, rng=0)
    if (name, dtype) == ("gelu", "float64"):
        with pytest.raises(InputError, match="float32 alone"):
            export(implicit)
    else:
        compare(implicit)


def test_the_list_of_activations_is_complete():
    known = {name.partition("(")[0] for name in NAMES}
    public = {name for name in activations.__all__ if name[0].islower() and name != "named"}
    assert public == known


def test_blocks_of_activations():
    mixed = activations.Blocks((activations.relu, 3), (TANH, 2), (activations.softmax, 4))
    compare(model(ImplicitModel, P, Q, 9, activation=mixed))


# ------------------------------------------------------------------------------------------------------------------ when a solve ends


def test_a_number_of_steps_is_that_number():
    layer = model(ImplicitModel, P, Q, 8, activation=TANH)
    A, B, C, D, b, d = (np.asarray(layer.params[key]) for key in "ABCDbd")
    U = inputs(layer, 4, 1)
    for steps in (1, 2, 5):
        X = np.zeros((4, 8))
        for _ in range(steps):
            X = np.tanh(X @ A.T + U @ B.T + b)
        Y = session(export(layer, steps=steps)).run(None, {"U": U})
        assert len(Y) == 1
        np.testing.assert_allclose(Y[0], X @ C.T + U @ D.T + d, rtol=1e-12)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_a_tolerance_is_met(tol):
    """And not by far: a loose one is a short solve."""
    layer = model(ImplicitModel, P, 8, 8, activation=TANH, feedthrough=False, bias=False, constraint=InfNorm(0.9))
    layer.params = {**layer.params, "A": layer.project({**layer.params, "A": 9 * np.eye(8)})["A"], "C": np.eye(8)}
    U = inputs(layer, 6, 1)
    X, converged = session(export(layer, tol=tol)).run(None, {"U": U})
    A, B = (np.asarray(layer.params[key]) for key in "AB")
    residual = np.abs(np.tanh(X @ A.T + U @ B.T) - X).max(axis=1)
    assert converged.all()
    assert np.all(residual <= tol * (1 + np.abs(X).max(axis=1)))
    assert residual.max() > 1e-4 * tol


def test_who_has_not_converged_is_told():
    layer = model(ImplicitModel, P, Q, 8, activation=TANH, constraint=InfNorm(0.99))
    layer.params = {**layer.params, "A": 0.99 * np.eye(8), "b": np.zeros(8)}
    U = inputs(layer, 3, 1)
    U[0] = 0.0  # solved by 0
    assert session(export(layer, max_iter=3)).run(None, {"U": U})[1].tolist() == [True, False, False]


def test_what_nothing_proves_is_said():
    layer = ImplicitModel(P, Q, 6, constraint=Unconstrained(), dtype="float64", rng=0)
    layer.params = {**layer.params, "A": -3 * np.eye(6)}
    with pytest.warns(WellPosednessWarning, match="nothing proves that the plain iteration"):
        graph = export(layer, max_iter=50)
    assert not session(graph).run(None, {"U": inputs(layer, 2, 1)})[1].any()


# -------------------------------------------------------------------------------------------------------------------- files, refusals


def test_the_file_is_the_model(tmp_path):
    layer, path = model(ImplicitModel, P, Q, 8, dtype="float32"), tmp_path / "model.onnx"
    graph = export(layer, path)
    assert path.read_bytes() == graph.SerializeToString()
    U = inputs(layer, 3, 1)
    run = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run.run(["Y"], {"U": U})[0], layer.predict(U), atol=1e-5)
    assert [i.name for i in run.get_inputs()] == ["U"]
    with pytest.raises(FileNotFoundError):
        export(layer, tmp_path / "none" / "model.onnx")


class Mine(Linear):
    """A layer of one's own, which may compute something else."""


class MySoftmax(Softmax):
    """An attention of one's own."""


BASE = model(ImplicitModel, P, Q, 5)
REFUSED = {
    "no layer": (lambda: export("model"), "export takes a Layer, got str"),
    "steps": (lambda: export(BASE, steps=0), "steps is 0"),
    "a boolean": (lambda: export(BASE, steps=True), "steps is True"),
    "steps and tol": (lambda: export(BASE, steps=3, tol=1e-3), "give a positive integer, or a tolerance"),
    "a tolerance": (lambda: export(BASE, tol=-1.0), "tol"),
    "a limit": (lambda: export(BASE, max_iter=0), "max_iter"),
    "lengths": (lambda: export(BASE, lengths=True), "takes no lengths"),
    "a layer": (lambda: export(Sequential(Mine(P, Q, rng=0))), "there is no ONNX graph for Mine; there is one for Bidirectional, Dropout"),
    "an attention": (lambda: export(ImplicitAttentionHead(P, 3, attention=MySoftmax(), rng=0)), "no ONNX graph for MySoftmax"),
    "an activation": (
        lambda: export(Pointwise(activations.Activation("cube", lambda z: z**3, lambda z: 3 * z**2, lipschitz=1.0))),
        "the activation 'cube' is not built in",
    ),
}


@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_graph_is_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        call()
