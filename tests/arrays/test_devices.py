"""Models and data on two devices.

What lives in two places is refused with the cure, every layer moves there and back.
"""

import pickle
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import stand_in
from conftest import require_gpu
from helpers import host
from kernel_compilers import small_numbers_flushed

import pyidl
from pyidl import activations, load, losses, optim, save, sim
from pyidl.arrays import fusion
from pyidl.arrays.backend import to_device
from pyidl.attention import ImplicitAttentionHead, ImplicitTransformerBlock
from pyidl.errors import DeviceError, DeviceMismatchError, InputError
from pyidl.layers import (
    Dropout,
    Embedding,
    ImplicitModel,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)
from pyidl.recurrent import Bidirectional, ImplicitRNN

E, T, M = 6, 5, 4


cupy = stand_in.cupy


@pytest.fixture(autouse=True, params=["stand_in", pytest.param("cupy", marks=pytest.mark.gpu)])
def library(request, monkeypatch):
    """The stand-in, or CuPy itself."""
    if request.param == "cupy":
        monkeypatch.setattr(sys.modules[__name__], "cupy", require_gpu())
        return
    for name, module in stand_in.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(stand_in.Device, "current", 0)


@pytest.fixture
def two_gpus():
    if cupy.cuda.runtime.getDeviceCount() != 2:
        pytest.skip("needs two GPUs that CuPy can use")


@pytest.fixture
def pretended(library):
    if cupy is not stand_in.cupy:
        pytest.skip("is about the stand-in alone")


def there(a):
    return cupy.asarray(np.asarray(a))


def block():
    return ImplicitTransformerBlock(E, num_heads=2, head_dim=3, block_size=T, rng=0)


LAYERS = {
    "implicit": lambda: ImplicitModel(E, 3, 12, rng=0),
    "low rank": lambda: ImplicitModel(E, 3, 24, rank=2, rng=0),
    "several activations": lambda: ImplicitModel(
        E,
        3,
        12,
        activation=activations.Blocks((activations.relu, 8), (activations.softmax, 4)),
        rng=0,
    ),
    "linear": lambda: Linear(E, 3, rng=0),
    "layer norm": lambda: LayerNorm(E),
    "dropout": lambda: Dropout(0.5),
    "pointwise": lambda: Pointwise(activations.tanh),
    "sequential": lambda: Sequential(
        Linear(E, 8, rng=0), activations.tanh, ImplicitModel(8, 3, 12, rng=1)
    ),
    "residual": lambda: Residual(Linear(E, E, rng=0)),
    "recurrent": lambda: ImplicitRNN(E, 3, 4, 12, rng=0),
    "in both directions": lambda: Bidirectional(
        ImplicitRNN(E, 3, 4, 12, rng=0), ImplicitRNN(E, 3, 4, 12, rng=1)
    ),
    "embedding": lambda: Sequential(
        Embedding(9, E, rng=0), PositionEmbedding(T, E, rng=1), Linear(E, 9, rng=2)
    ),
    "attention": lambda: ImplicitAttentionHead(E, 3, num_heads=2, block_size=T, rng=0),
    "transformer": block,
}


def inputs(name):
    rng = np.random.default_rng(0)
    if name == "embedding":
        return rng.integers(0, 9, (M, T))
    sequences = name in ("recurrent", "in both directions", "attention", "transformer")
    return rng.normal(size=(M, T, E) if sequences else (M, E)).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_moves_there_and_back(name, tmp_path):
    """Outputs and gradients are those of the CPU.

    What comes back, by a file too, is equal to the last bit.
    """
    layer, U = LAYERS[name](), inputs(name)
    far = layer.to("cuda")
    assert all(type(a) is cupy.ndarray for a in far.params.values())
    Y, pull = layer(U, rng=0)
    Z, push = far(there(U), rng=0)
    np.testing.assert_allclose(host(Z), Y, rtol=1e-4, atol=1e-5)
    dY = np.random.default_rng(1).normal(size=Y.shape).astype(np.float32)
    (dU, grads), (dV, slopes) = pull(dY), push(there(dY))
    assert (dU is None) == (dV is None)
    assert set(grads) == set(slopes)
    for here, away in ([] if dU is None else [(dU, dV)]) + [
        (grads[key], slopes[key]) for key in grads
    ]:
        np.testing.assert_allclose(
            host(away), here, rtol=2e-3, atol=2e-4 * max(1.0, np.abs(here).max())
        )
    save(tmp_path / "model", far)
    for back in (
        far.to("cpu"),
        load(tmp_path / "model"),
        load(tmp_path / "model", device="cuda").to("cpu"),
    ):
        assert all(
            type(a) is np.ndarray and np.array_equal(a, layer.params[key])
            for key, a in back.params.items()
        )


def test_a_file_from_a_gpu_loads_where_there_is_none(tmp_path, monkeypatch):
    save(tmp_path / "model", LAYERS["sequential"]().to("cuda"))
    for name in stand_in.MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # an import fails
    assert type(load(tmp_path / "model").params["0.W"]) is np.ndarray
    with pytest.raises(DeviceError, match="extra cuda12 or cuda13"):
        load(tmp_path / "model", device="cuda")


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("dropout", "pointwise")])
def test_inputs_and_cotangents_from_elsewhere_are_refused(name):
    layer, U = LAYERS[name](), inputs(name)
    far = layer.to("cuda")
    with pytest.raises(
        DeviceMismatchError,
        match=r"U lives on cpu .* model on cupy; move one of them: .*to_device\(U, 'cuda'\)",
    ):
        far(U)
    with pytest.raises(
        DeviceMismatchError,
        match=r"U lives on cuda:0 .* model on numpy; move one of them: .*to_device\(U, 'cpu'\)",
    ):
        layer(there(U))
    Y, pull = far(there(U))
    with pytest.raises(DeviceMismatchError, match=r"dY lives on cpu .*to_device\(dY, 'cuda'\)"):
        pull(np.zeros(Y.shape, np.float32))


def test_states_from_elsewhere_are_refused():
    model, rnn = LAYERS["implicit"]().to("cuda"), LAYERS["recurrent"]().to("cuda")
    U, S = there(inputs("implicit")), there(inputs("recurrent"))
    with pytest.raises(DeviceMismatchError, match=r"x0 lives on cpu .*to_device\(x0, 'cuda'\)"):
        model(U, x0=np.zeros((M, 12), np.float32))
    with pytest.raises(DeviceMismatchError, match=r"h0 lives on cpu .*to_device\(h0, 'cuda'\)"):
        rnn(S, h0=np.zeros((M, 4), np.float32))
    with pytest.raises(DeviceMismatchError, match="bring them together with to_device"):
        model.params = {**model.params, "b": np.zeros(12)}


@pytest.mark.parametrize(
    "loss",
    [losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy, losses.cross_entropy],
)
def test_targets_and_weights_from_elsewhere_are_refused(loss):
    Y, target = there(np.ones((M, 3))), np.full((M, 3), 1 / 3)
    with pytest.raises(DeviceMismatchError, match="to_device"):
        loss(Y, target)
    with pytest.raises(DeviceMismatchError, match="to_device"):
        loss(Y, there(target), weights=np.ones(M))


@pytest.mark.parametrize("optimizer", [optim.SGD(0.1), optim.Adam(), optim.AdamW()])
def test_gradients_from_elsewhere_are_refused(optimizer):
    with pytest.raises(DeviceMismatchError, match="to_device"):
        optimizer.step({"w": there(np.ones(3))}, {"w": np.ones(3)})


def test_fit_refuses_data_from_elsewhere_before_any_work():
    model, U, target = (
        LAYERS["implicit"]().to("cuda"),
        inputs("implicit"),
        np.zeros((M, 3), np.float32),
    )
    for data in ((U, there(target)), (there(U), target), (there(U), there(target), np.ones(M))):
        with pytest.raises(DeviceMismatchError, match=r"to_device\(array, device\) or model\.to"):
            pyidl.fit(model, data, loss=losses.mse, optimizer=optim.Adam(), epochs=1, verbose=0)


def test_an_activation_of_one_library_alone_is_refused():
    mine = activations.Activation(
        "mine", lambda z: cupy.tanh(z), lambda z: 1 - cupy.tanh(z) ** 2, slope_range=(0.0, 1.0)
    )
    with pytest.raises(
        InputError,
        match=r"phi of the activation 'mine' does not take an array of NumPy .*namespace\(z\)",
    ):
        ImplicitModel(E, 3, 12, activation=mine)


def test_a_penalty_from_elsewhere_is_refused():
    model, data = (
        LAYERS["implicit"]().to("cuda"),
        (there(inputs("implicit")), there(np.zeros((M, 3)))),
    )
    with pytest.raises(DeviceMismatchError, match=r"cpu .* and cuda:0"):
        pyidl.fit(
            model,
            data,
            loss=losses.mse,
            optimizer=optim.Adam(),
            epochs=1,
            verbose=0,
            penalty=lambda p: (0.0, {"A": np.ones((12, 12))}),
        )


def test_sim_runs_there_and_refuses_what_is_elsewhere():
    rng = np.random.default_rng(0)
    U = rng.normal(size=(60, E)).astype(np.float32)
    net = Sequential(Linear(E, 5, rng=0), activations.relu, Linear(5, 3, rng=1))
    near = sim.fit(net, U, penalty=sim.L1(1e-3), samples=40, rng=0)
    far = sim.fit(net.to("cuda"), there(U), penalty=sim.L1(1e-3), samples=40, rng=0)
    assert far.model.xp is cupy
    np.testing.assert_allclose(host(far.model.params["A"]), near.model.params["A"], atol=1e-4)
    with pytest.raises(DeviceMismatchError, match="to_device"):
        sim.fit(net.to("cuda"), U, penalty=sim.L1(1e-3))
    with pytest.raises(DeviceMismatchError, match="to_device"):
        sim.Moments.of(there(U), U)


# ------------------------------------------------------------------------- several GPUs


def test_one_gpu_at_a_time(two_gpus):
    """CuPy makes new arrays on its current GPU, so models and data live there.

    The others are refused with the cure.
    """
    model, U = LAYERS["implicit"](), inputs("implicit")
    with pytest.raises(
        DeviceError,
        match=r"current GPU is cuda:0.*cupy\.cuda\.Device\(1\)\.use\(\).*CUDA_VISIBLE_DEVICES=1",
    ):
        model.to("cuda:1")
    with pytest.raises(DeviceError, match="finds 2 GPUs"):
        model.to("cuda:2")
    with cupy.cuda.Device(1):
        other, V = model.to("cuda:1"), there(U)
        assert repr(other).endswith("on cuda:1")
        np.testing.assert_allclose(host(other.predict(V)), model.predict(U), rtol=1e-5)
    for away in (V, there(U)):
        with pytest.raises(
            DeviceMismatchError,
            match=r"parameters .* live on cuda:1, but the current GPU is cuda:0"
            r".*Device\(1\)\.use\(\)",
        ):
            other(away)
    with pytest.raises(
        DeviceMismatchError,
        match=r"U lives on cuda:1, but the current GPU is cuda:0.*Device\(1\)\.use\(\)",
    ):
        model.to("cuda")(V)
    assert pyidl.to_device(V, "cuda").device.id == 0
    assert model.to("cuda").to("cuda:0").params["A"].device.id == 0


def test_what_lives_on_another_gpu_is_refused_everywhere(two_gpus):
    """CuPy may read it from there, and would leave what follows on the current one."""
    with cupy.cuda.Device(1):
        model, V, Y = (
            LAYERS["implicit"]().to("cuda"),
            there(inputs("implicit")),
            there(np.ones((M, 3))),
        )
        pull = model(V)[1]
        net = Sequential(Linear(E, 5, rng=0), activations.relu, Linear(5, 3, rng=1)).to("cuda")
        moments = sim.collect_states(net, V).moments()
    before, adam = dict(model.params), optim.Adam()
    calls = {
        "loss": lambda: losses.mse(Y, Y),
        "labels": lambda: losses.cross_entropy(Y, there(np.zeros(M, int))),
        "pullback": lambda: pull(there(np.ones((M, 3)))),
        "optimiser": lambda: adam.step(model.params, model.params),
        "projection": lambda: model.project(model.params),
        "certificate": model.certificate,
        "activation": lambda: activations.tanh(Y),
        "fit": lambda: pyidl.fit(
            model, (V, Y), loss=losses.mse, optimizer=adam, epochs=1, verbose=0
        ),
        "fused": lambda: fusion.fused(lambda z: 2 * z)(Y),
        "sim": lambda: sim.fit(net, V),
        "sums": lambda: moments + moments,
        "rows": lambda: sim.RowProblem.of(moments, sim.L1(0.1)),
    }
    for name, call in calls.items():
        with pytest.raises(
            DeviceMismatchError,
            match=r"cuda:1.* current GPU is cuda:0.*Device\(1\)\.use\(\).*to\('cuda'\)"
            r"|cuda:0 .* and cuda:1",
        ):
            print(name, call())
    assert all(model.params[key] is a for key, a in before.items())
    assert adam.count == 0
    for moved in (model.to("cuda"), pickle.loads(pickle.dumps(model))):
        assert moved.params["A"].device.id == 0
    assert type(model.to("cpu").params["A"]) is np.ndarray


def test_a_task_of_a_scheduler_works_where_its_problem_lives(two_gpus):
    """A thread begins on the first GPU."""
    dask = pytest.importorskip("dask", reason="Dask is not installed")

    def on_the_first(*arguments, **options):
        with cupy.cuda.Device(0):
            return dask.get(*arguments, **options)

    rng = np.random.default_rng(0)
    with cupy.cuda.Device(1):
        net = Sequential(Linear(E, 5, rng=0), activations.relu, Linear(5, 3, rng=1)).to("cuda")
        result = sim.fit(
            net, there(rng.normal(size=(40, E))), penalty=sim.L1(1e-2), scheduler=on_the_first
        )
    assert result.model.params["A"].device.id == 1


def test_a_release_of_cupy_that_is_too_old_is_refused(monkeypatch, pretended):
    monkeypatch.delitem(stand_in.PARAMETERS, "matrix_transpose")
    monkeypatch.setattr(cupy, "__version__", "14.0.1", raising=False)
    with pytest.raises(DeviceError, match=r"CuPy 14\.0\.1 lacks .* install 14\.1\.1 or newer"):
        LAYERS["implicit"]().to("cuda")


def test_a_model_travels_in_a_pickle_of_its_own_device():
    far = LAYERS["implicit"]().to("cuda")
    assert np.array_equal(host(pickle.loads(pickle.dumps(far)).params["A"]), host(far.params["A"]))


def test_the_clock_of_the_page_starts_when_all_kernels_are_compiled(monkeypatch, pretended):
    """The code by which docs/cpu_or_gpu.md measures runs as it stands, and no kernel is
    compiled while its clock runs."""
    page = (Path(__file__).parents[2] / "docs" / "cpu_or_gpu.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "perf_counter" in block
    ]
    compiled = []
    monkeypatch.setattr(
        time,
        "perf_counter",
        lambda: float(compiled.append(stand_in.ElementwiseKernel.compiled) or len(compiled)),
    )
    fusion._kernel.cache_clear()
    rng, model = (
        np.random.default_rng(0),
        ImplicitModel(4, 3, 10, dtype="float64", rng=0).to("cuda"),
    )
    exec(
        code,
        {"model": model, "U": there(rng.normal(size=(6, 4))), "dY": there(rng.normal(size=(6, 3)))},
    )
    began, ended = compiled
    assert 0 < began == ended


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_may_vanish_where_small_numbers_are_0(device, tmp_path, pretended):
    """Back through 500 steps in float32, from cotangents of 1e-20 to nothing.

    No solve ends before a residual that it cannot reach.
    """
    for seed in range(6):
        model = ImplicitRNN(4, 3, 8, 12, rng=seed).to(device)
        U = np.random.default_rng(seed).normal(size=(2, 500, 4)).astype(np.float32)
        with small_numbers_flushed(tmp_path):
            assert np.float32(1e-30) * np.float32(1e-10) == 0
            Y, pull = model(to_device(U, device))
            dU, _ = pull(to_device(np.full(Y.shape, 1e-20, np.float32), device))
        sizes = np.abs(host(dU)).max(axis=(0, 2))
        assert np.all(np.isfinite(sizes))
        assert sizes[-1] > 1e-21
