"""What a GPU asks of the code, checked without one: CuPy's names, kernels that compile, a host that seldom waits, one device a call."""

import configparser
import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import stand_in
from helpers import random_model

import pyidl
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
    losses,
    optim,
    sim,
)
from pyidl.errors import DeviceMismatchError
from pyidl.solvers import (
    Auto,
)
from pyidl.solvers.jacobi import split
from pyidl.solvers.splitting import reflected
from pyidl.wellposed import Monotone

cupy = stand_in.cupy
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """The stand-in under CuPy's name, but for the tests that look at CuPy itself."""
    if "real" not in request.node.name:
        for name, module in stand_in.MODULES.items():
            monkeypatch.setitem(__import__("sys").modules, name, module)


def there(*shape, seed=0, dtype="float64"):
    return cupy.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


# ---------------------------------------------------------------------------------------------------------- CuPy, without a device


def expressions():
    """Every expression that becomes a kernel: of the activations, the adjoint, and the splittings."""
    found = {
        phi.cuda for phi in (*map(activations.named, activations._BUILT_IN), activations.leaky_relu(0.1), activations.leaky_relu(1e-20))
    }
    model = random_model(ImplicitModel, 4, 3, 10, dtype="float64", constraint=Monotone(0.2))
    U = np.random.default_rng(0).normal(size=(6, 4))
    forward = model._cell().bind(U)
    adjoint = model._cell().linearize(Auto()(forward), None, np.ones((6, 10)))
    for problem in (forward, adjoint):
        for p in (problem, split(problem), reflected(problem, 1.0)):
            found.add(p.expression()[0])
    return sorted(found - {""})


def compiled(nvrtc, source):
    """PTX of a CUDA source; NVRTC needs no device."""
    program = nvrtc.createProgram(source, "step.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("--gpu-architecture=compute_80",))
        return nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("kind", ["float", "double"])
def test_real_compiler(kind):
    """Every expression is CUDA, and of the type that it should be: a double in a float kernel is found in its PTX."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("NVRTC is not installed; it comes with the extras cuda12 and cuda13")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (OSError, RuntimeError, ctypes.ArgumentError):
        pytest.skip("NVRTC cannot be loaded")
    for expression in expressions():
        body = f"typedef {kind} T; T w = a[i], z = b[i], s = c[i], y, x; y = w + z; x = {expression}; a[i] = y; b[i] = x;"
        source = f'extern "C" __global__ void step({kind}* a, {kind}* b, const {kind}* c) {{ int i = threadIdx.x; {body} }}'
        ptx = compiled(nvrtc, source)
        assert b"step" in ptx if isinstance(ptx, bytes) else "step" in ptx
        if kind == "float" and expression != "sin(y)":  # whose reduction of large arguments uses one product in double precision
            assert ".f64" not in (ptx.decode() if isinstance(ptx, bytes) else ptx), f"{expression!r} computes in double precision"


def test_the_extras_are_what_cupy_needs():
    text = configparser.ConfigParser()
    text.read(ROOT / "setup.cfg")
    for cuda in ("12", "13"):
        (line,) = text["options.extras_require"][f"cuda{cuda}"].split()
        assert line == f"cupy-cuda{cuda}x[ctk]>=14.0.1,!=14.1.0"


# ------------------------------------------------------------------------------------------------------------------------ one device

LAYERS = {
    "linear": (lambda: Linear(4, 3, dtype="float64", rng=0), (5, 4)),
    "implicit": (lambda: ImplicitModel(4, 3, 8, dtype="float64", rng=0), (5, 4)),
    "low rank": (lambda: ImplicitModel(4, 3, 8, rank=2, dtype="float64", rng=0), (5, 4)),
    "normalisation": (lambda: LayerNorm(4, dtype="float64"), (5, 4)),
    "chain": (lambda: Sequential(Linear(4, 4, dtype="float64", rng=0), activations.tanh, Dropout(0.5)), (5, 4)),
    "residual": (lambda: Residual(Linear(4, 4, dtype="float64", rng=0), Pointwise(activations.relu)), (5, 4)),
    "recurrent": (lambda: ImplicitRNN(4, 3, 5, 6, dtype="float64", rng=0), (3, 6, 4)),
    "both directions": (lambda: Bidirectional(*(ImplicitRNN(4, 2, 3, 4, dtype="float64", rng=i) for i in (0, 1))), (3, 6, 4)),
    "attention": (lambda: ImplicitAttentionHead(4, 3, num_heads=2, block_size=6, dtype="float64", rng=0), (3, 6, 4)),
    "positions": (lambda: PositionEmbedding(6, 4, dtype="float64", rng=0), (3, 6, 4)),
    "block": (lambda: ImplicitTransformerBlock(4, 2, block_size=6, dtype="float64", rng=0), (3, 6, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_to_a_device_and_back(name, tmp_path):
    """The same answers and gradients there; a file that was written there is read here; arrays of two places are refused, with the cure."""
    make, shape = LAYERS[name]
    layer, U = make(), np.random.default_rng(0).normal(size=shape)
    far = layer.to("cuda")
    assert all(isinstance(a, cupy.ndarray) for a in far.params.values())
    Y, pull = layer(U)
    dY = np.random.default_rng(1).normal(size=Y.shape)
    Z, far_pull = far(cupy.asarray(U))
    np.testing.assert_allclose(cupy.asnumpy(Z), Y, rtol=1e-9, atol=1e-10)
    (dU, grads), (far_dU, far_grads) = pull(dY), far_pull(cupy.asarray(dY))
    np.testing.assert_allclose(cupy.asnumpy(far_dU), dU, rtol=1e-8, atol=1e-9)
    for key, g in grads.items():
        np.testing.assert_allclose(cupy.asnumpy(far_grads[key]), g, rtol=1e-8, atol=1e-9)
    back = far.to("cpu")
    assert all(np.array_equal(back.params[key], a) for key, a in layer.params.items())
    pyidl.save(tmp_path / "m.npz", far)
    assert all(type(a) is np.ndarray for a in pyidl.load(tmp_path / "m.npz").params.values())
    if layer.params:
        with pytest.raises(DeviceMismatchError, match=r"U lives on cpu \(numpy\), .*to"):
            far(U)
        with pytest.raises(DeviceMismatchError, match=r"cpu"):
            layer(cupy.asarray(U))
        with pytest.raises(DeviceMismatchError):
            pull(cupy.asarray(dY))


def test_tokens_live_where_the_layer_does():
    layer, tokens = Embedding(9, 4, rng=0), np.array([[1, 2, 3]])
    far = layer.to("cuda")
    assert np.array_equal(cupy.asnumpy(far(cupy.asarray(tokens))[0]), layer(tokens)[0])
    with pytest.raises(DeviceMismatchError):
        far(tokens)


def test_mixed_devices_are_refused_everywhere():
    U, near = np.ones((5, 4)), ImplicitModel(4, 3, 6, dtype="float64", rng=0)
    far = near.to("cuda")
    rnn = ImplicitRNN(4, 3, 5, 6, dtype="float64", rng=0).to("cuda")
    with pytest.raises(DeviceMismatchError):
        far.equilibrium(cupy.asarray(U), x0=np.zeros((5, 6)))
    with pytest.raises(DeviceMismatchError):
        rnn(cupy.asarray(np.ones((2, 3, 4))), None, np.zeros((2, 5)))
    with pytest.raises(DeviceMismatchError):
        losses.mse(cupy.asarray(U), U)
    with pytest.raises(DeviceMismatchError):
        near.params = {**near.params, "A": far.params["A"]}
    grads = {key: np.ones(a.shape) for key, a in near.params.items()}
    with pytest.raises(DeviceMismatchError):
        optim.SGD(0.1).step(far.params, grads)
    for data in ((U, cupy.asarray(np.ones((5, 3)))), (cupy.asarray(U), np.ones((5, 3)))):
        with pytest.raises(DeviceMismatchError):
            pyidl.fit(far, data, loss=losses.mse, optimizer=optim.Adam(1e-3), epochs=1, verbose=0)
    net = Sequential(Linear(4, 6, rng=0), activations.relu, Linear(6, 2, rng=1)).to("cuda")
    with pytest.raises(DeviceMismatchError):
        sim.collect_states(net, U)
