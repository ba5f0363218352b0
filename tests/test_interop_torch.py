"""Layers as modules of torch: gradients by torch's own checker, memory shared, edits noticed; models of torchidl, read and written."""

import copy
import io
import pickle
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import Bidirectional, ImplicitModel, ImplicitRNN, Linear, Pattern, Pointwise, Sequential, activations
from pyidl.errors import ConvergenceError, ConvergenceWarning, DeviceError, GradientConvergenceError, InputError
from pyidl.layers.base import Explicit
from pyidl.solvers import Neumann, Picard
from pyidl.wellposed import InfNorm, StrictlyTriangular, Unconstrained

torch = pytest.importorskip("torch", reason="torch is not installed; it is the extra torch")
interop = pytest.importorskip("pyidl.interop.torch", reason="torch is not installed")
Module, from_torchidl, to_torchidl = interop.Module, interop.from_torchidl, interop.to_torchidl
tanh = activations.tanh


def model(cls, *args, seed=0, **options):
    return random_model(cls, *args, seed=seed, spread=0.3, dtype="float64", **options)


def values(*shape, seed=7, dtype=torch.float64, grad=False):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype).requires_grad_(grad)


LAYERS = {
    "linear": (lambda: model(Linear, 3, 2), [(4, 3)]),
    "pointwise": (lambda: Pointwise(activations.gelu), [(4, 3)]),
    "implicit": (lambda: model(ImplicitModel, 3, 2, 6, activation=tanh), [(4, 3)]),
    "low rank": (lambda: model(ImplicitModel, 3, 2, 6, activation=tanh, rank=2, bias=False), [(4, 3)]),
    "without D": (lambda: model(ImplicitModel, 3, 2, 6, activation=activations.softmax, feedthrough=False), [(1, 3)]),
    "sequential": (lambda: Sequential(model(Linear, 3, 4), tanh, model(ImplicitModel, 4, 2, 5, activation=tanh)), [(4, 3)]),
    "recurrent": (lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh), [(3, 4, 2)]),
    "h0": (lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, feedthrough="input"), [(3, 4, 2), None, (3, 3)]),
    "lengths and h0": (lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, return_sequences=True), [(3, 4, 2), "lengths", (3, 3)]),
    "lengths": (
        lambda: Bidirectional(*(model(ImplicitRNN, 2, 1, 3, 4, activation=tanh, seed=seed) for seed in (0, 1))),
        [(3, 4, 2), "lengths"],
    ),
}  # fmt: skip


def case(name):
    layer, shapes = LAYERS[name]
    inputs = [torch.tensor([4, 1, 3]) if shape == "lengths" else shape and values(*shape, grad=True) for shape in shapes]
    return Module(layer()), inputs


@pytest.mark.parametrize("name", LAYERS)
def test_torch_accepts_the_gradients(name):
    """With respect to all inputs and all parameters."""
    module, inputs = case(name)
    parameters = dict(module.named_parameters())
    live = [i for i, t in enumerate(inputs) if t is not None and t.requires_grad]

    def f(*tensors):
        arguments = list(inputs)
        for i, t in zip(live, tensors):
            arguments[i] = t
        return torch.func.functional_call(module, dict(zip(parameters, tensors[len(live) :])), tuple(arguments))

    assert torch.autograd.gradcheck(f, (*(inputs[i] for i in live), *parameters.values()))


def test_the_checker_catches_a_wrong_gradient():
    class Twin(Linear):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            return Y, Explicit(Y, lambda dY, inputs: (1.01 * pull.rule(dY, True)[0], pull.rule(dY, True)[1]))

    with pytest.raises(torch.autograd.gradcheck.__globals__["GradcheckError"]):
        torch.autograd.gradcheck(Module(Twin(3, 2, rng=0, dtype="float64")), (values(4, 3, grad=True),))


def test_gradients_are_those_of_torch_through_the_iteration():
    """The oracle: torch differentiates 200 steps of the iteration, written in torch."""
    module = Module(model(ImplicitModel, 3, 2, 6, constraint=InfNorm(0.7)))
    U, dY = values(5, 3, grad=True), values(5, 2, seed=8)
    module(U).backward(dY)
    p = {name: a.detach().clone().requires_grad_() for name, a in module.named_parameters()}
    V = U.detach().clone().requires_grad_()
    X = torch.zeros(5, 6, dtype=torch.float64)
    for _ in range(200):
        X = torch.relu(X @ p["A"].T + V @ p["B"].T + p["b"])
    Y = X @ p["C"].T + V @ p["D"].T + p["d"]
    Y.backward(dY)
    torch.testing.assert_close(module(U).detach(), Y.detach(), rtol=0, atol=1e-11)
    for name, t in module.named_parameters():
        torch.testing.assert_close(t.grad, p[name].grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(U.grad, V.grad, rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------------------------------------- memory


def test_memory_is_shared():
    t = values(4, 3, grad=True)
    assert interop.to_array(t).ctypes.data == t.data_ptr()
    assert interop.to_array(t.T).strides == tuple(8 * s for s in t.T.stride())
    a = np.ones((3, 4))
    assert interop.to_tensor(a.T).data_ptr() == a.ctypes.data
    a.flags.writeable = False
    assert interop.to_tensor(a).data_ptr() != a.ctypes.data
    np.testing.assert_array_equal(interop.to_tensor(a[:, ::-1]).numpy(), a)


@dataclass(eq=False, repr=False)
class Spy(Pointwise):
    """Twice its input, with what it saw."""

    def _forward(self, U, call):
        Y = 2 * U
        SEEN.append((U, Y))

        def backward(dY, inputs):
            SEEN.append((dY, inputs))
            return (2 * dY if inputs else None), {}

        return Y, Explicit(Y, backward)


SEEN = []


def test_inputs_outputs_and_cotangents_are_not_copied():
    SEEN.clear()
    U, dY = values(4, 3, grad=True), values(4, 3, seed=8)
    Y = Module(Spy(tanh))(U)
    Y.backward(dY)
    (seen, out), (cotangent, inputs) = SEEN
    assert (seen.ctypes.data, out.ctypes.data, cotangent.ctypes.data) == (U.data_ptr(), Y.data_ptr(), dY.data_ptr())
    assert inputs is True
    assert torch.equal(U.grad, 2 * dY)


def test_only_what_is_asked_for_is_formed():
    SEEN.clear()
    module = Module(Sequential(Spy(tanh), model(Linear, 3, 2)))
    module.get_submodule("1").b.requires_grad_(False)
    module(values(4, 3)).sum().backward()
    assert SEEN[1][1] is False
    assert module.get_submodule("1").b.grad is None
    assert module.get_submodule("1").W.grad is not None
    for p in module.parameters():
        p.requires_grad_(False)
    assert not module(values(4, 3)).requires_grad
    U = values(4, 3, grad=True)
    module(U).sum().backward()
    assert SEEN[-1][1] is True
    assert U.grad is not None
    with torch.no_grad():
        assert not module(U).requires_grad


def test_an_output_that_nobody_uses_costs_nothing():
    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return b.clone()

        @staticmethod
        def backward(ctx, g):
            return None, g

    SEEN.clear()
    Y = Module(Spy(tanh))(values(4, 3, grad=True))
    Two.apply(Y, values(1, grad=True)).sum().backward()
    assert len(SEEN) == 1


@pytest.mark.parametrize("what", ["input", "parameter"])
def test_edits_between_the_passes_are_noticed(what):
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3)
    Y = module(U)
    with torch.no_grad():
        (U if what == "input" else module.B).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Y.sum().backward()


def test_a_pullback_is_that_of_its_forward_call():
    """Also where torch does not see the edit."""
    module, twin, U = (Module(model(ImplicitModel, 3, 2, 6)) for _ in range(2)), None, values(4, 3)
    module, twin = module
    Y = module(U)
    module.B.data.add_(1.0)
    module(U)
    Y.sum().backward()
    twin(U).sum().backward()
    assert torch.equal(module.B.grad, twin.B.grad)


def test_a_graph_serves_twice_only_if_it_is_retained():
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    Y = module(U)
    (one,) = torch.autograd.grad(Y.sum(), U, retain_graph=True)
    (other,) = torch.autograd.grad(Y.sum(), U)
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        Y.sum().backward()


# ----------------------------------------------------------------------------------------------- derivatives of order two


def test_second_order_is_refused():
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    (g,) = torch.autograd.grad(module(U).sum(), U, create_graph=True)
    (plain,) = torch.autograd.grad(module(U).sum(), U)
    assert torch.equal(g, plain)
    with pytest.raises(InputError, match="first order only"):
        g.square().sum().backward()


def test_second_order_is_refused_also_where_a_zero_would_pass_unseen():
    """The cotangent is constant, and the loss has a part with a gradient: a node without history would add nothing to it."""
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    Y = module(U)
    (g,) = torch.autograd.grad(Y, module.B, torch.ones_like(Y), create_graph=True)
    with pytest.raises(InputError, match="first order only"):
        (g.sum() + U.square().sum()).backward()
    (g.detach().sum() + module(U).sum()).backward()


def test_transforms_of_functions():
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    module(U).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda u: module(u).sum())(U.detach()), U.grad, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------- dtypes


def test_dtypes_follow_the_parameters():
    module = Module(random_model(ImplicitModel, 3, 2, 6))
    U = values(4, 3, grad=True)
    Y = module(U)
    assert Y.dtype == torch.float32
    Y.sum().backward()
    assert U.grad.dtype == torch.float64
    assert module.A.grad.dtype == torch.float32
    module.double()
    assert module(U).dtype == torch.float64
    assert module.layer.dtype == "float64"
    assert module(torch.ones(4, 3, dtype=torch.int64)).dtype == torch.float64
    V = values(4, 3, dtype=torch.bfloat16, grad=True)
    module.float()(V).sum().backward()
    assert V.grad.dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"float16; .* module.float"):
        module.half()(U)


def test_parameters_of_two_dtypes_are_refused():
    module = Module(random_model(ImplicitModel, 3, 2, 6))
    module.B.data = module.B.data.double()
    with pytest.raises(InputError, match="float32 and float64"):
        module(values(4, 3))


# ------------------------------------------------------------------------------------------------- optimisers, projection


def test_it_learns_between_modules_of_torch():
    torch.manual_seed(0)
    U = torch.randn(64, 5)
    t = torch.sin(U.sum(dim=1, keepdim=True))
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), Module(ImplicitModel(8, 8, 16, rng=0)), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        adam.zero_grad()
        loss = torch.nn.functional.mse_loss(net(U), t)
        loss.backward()
        adam.step()
        net[1].project_()
        losses.append(loss.item())
        assert net[1].layer.certificate().proven
    assert losses[-1] < 0.1 * losses[0]


def test_a_step_is_that_of_pyidl():
    """SGD without momentum, by torch and by hand."""
    layer = model(ImplicitModel, 3, 2, 6)
    module, U = Module(layer), values(4, 3)
    sgd = torch.optim.SGD(module.parameters(), lr=0.5)
    module(U).square().sum().backward()
    sgd.step()
    module.project_()
    Y, pull = layer(U.numpy())
    grads = pull(2 * Y)[1]
    layer.params = layer.project({key: a - 0.5 * grads[key] for key, a in layer.params.items()})
    for key, a in module.layer.params.items():
        np.testing.assert_array_equal(a, layer.params[key])


def test_projection_keeps_what_is_inside():
    module = Module(model(ImplicitModel, 3, 2, 6, constraint=InfNorm(0.5)))
    versions = {name: p._version for name, p in module.named_parameters()}
    module.project_()
    assert {name: p._version for name, p in module.named_parameters()} == versions
    with torch.no_grad():
        module.A.mul_(10)
    assert not module.layer.certificate().proven
    module.project_()
    assert module.layer.certificate().contraction <= 0.5 * (1 + 1e-12)
    assert module.A.requires_grad


def test_zeros_of_a_pattern_stay():
    mask = np.triu(np.ones((6, 6), bool))
    module = Module(model(ImplicitModel, 3, 2, 6, pattern=Pattern(A=mask)))
    adam = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(values(4, 3)).square().sum().backward()
    adam.step()
    module.project_()
    assert not module.A.detach().numpy()[~mask].any()
    assert np.isfinite(module(values(4, 3)).detach().numpy()).all()


# ------------------------------------------------------------------------------------------------------------ failures


def test_failures_are_those_of_the_layer():
    slow = model(ImplicitModel, 3, 2, 6, forward=Picard(max_iter=2))
    module = Module(slow)
    with pytest.raises(ConvergenceError) as caught:
        module(values(4, 3))
    assert caught.value.converged.shape == (4,)
    module.on_fail = "warn"
    with pytest.warns(ConvergenceWarning):
        module(values(4, 3))
    assert Module(slow, on_fail="ignore")(values(4, 3)).shape == (4, 2)
    backward = Module(model(ImplicitModel, 3, 2, 6, adjoint=Picard(max_iter=1)))
    with pytest.raises(GradientConvergenceError):
        backward(values(4, 3)).sum().backward()
    Module(model(ImplicitModel, 3, 2, 6, adjoint=Neumann(2)))(values(4, 3)).sum().backward()
    with pytest.raises(InputError, match="NaN"):
        module(torch.full((4, 3), torch.nan))
    with pytest.raises(InputError, match="takes a Layer"):
        Module(torch.nn.Linear(3, 2))


def test_devices_without_arrays_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match="a tensor is on meta"):
        interop.to_array(torch.empty(3, device="meta"))
    cuda = SimpleNamespace(device=torch.device("cuda:1"))
    cuda.detach = lambda: cuda
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"cuda:1, where pyidl needs CuPy.*extra cuda12"):
        interop.to_array(cuda)


def test_a_gpu_tensor_goes_through_dlpack(monkeypatch):
    """A stand-in for CuPy notes on which device it was asked."""
    asked = []

    class Device:
        def __init__(self, index):
            asked.append(index)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    tensor = SimpleNamespace(device=torch.device("cuda:1"))
    tensor.detach = lambda: tensor
    fake = SimpleNamespace(cuda=SimpleNamespace(Device=Device), from_dlpack=lambda t: ("array of", t))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert interop.to_array(tensor) == ("array of", tensor)
    assert asked == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_on_a_gpu():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    module = Module(model(ImplicitModel, 3, 2, 6, activation=tanh)).to("cuda")
    U = values(4, 3).to("cuda").requires_grad_()
    assert isinstance(module.layer.params["A"], cupy.ndarray)
    assert interop.to_array(U).data.ptr == U.data_ptr()
    assert torch.autograd.gradcheck(module, (U,))
    host = Module(model(ImplicitModel, 3, 2, 6, activation=tanh))
    torch.testing.assert_close(module(U).cpu(), host(U.cpu()), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------- names, copies, files


def test_the_names_are_those_of_pyidl():
    layer = Sequential(Linear(3, 4, rng=0), Sequential(tanh, ImplicitModel(4, 2, 5, rank=2, rng=0)))
    module = Module(layer)
    assert list(module.state_dict()) == list(layer.params)
    assert [name for name, _ in module.named_parameters()] == list(layer.params)
    assert "ImplicitModel" in repr(module)
    module.get_submodule("0").W.data.zero_()
    assert layer.params["0.W"].any()
    assert not module.layer.params["0.W"].any()


@pytest.mark.filterwarnings("ignore:You are using .torch.load. with .weights_only=False:FutureWarning")  # torch 2.4
@pytest.mark.parametrize("name", ["implicit", "sequential", "lengths and h0"])
def test_copies_compute_the_same(name):
    module, inputs = case(name)
    Y = module(*inputs)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    state, fresh = io.BytesIO(), Module(LAYERS[name][0]().replace())
    torch.save(module.state_dict(), state)
    state.seek(0)
    for p in fresh.parameters():
        p.data.mul_(0.5)
    assert not torch.equal(fresh(*inputs), Y)
    fresh.load_state_dict(torch.load(state, weights_only=True))
    for twin in (*copies, fresh):
        assert torch.equal(twin(*inputs), Y)
        next(iter(twin.parameters())).data.zero_()
    assert torch.equal(module(*inputs), Y)


def test_the_layer_is_a_copy(tmp_path):
    module = Module(model(ImplicitModel, 3, 2, 6))
    layer = module.layer
    layer.params = {key: 0 * a for key, a in layer.params.items()}
    assert module(values(4, 3)).detach().abs().sum() > 0
    pyidl.save(tmp_path / "model.npz", module.layer)
    np.testing.assert_array_equal(pyidl.load(tmp_path / "model.npz").predict(values(4, 3).numpy()), module(values(4, 3)).detach().numpy())


def test_parametrisations_are_seen():
    class Half(torch.nn.Module):
        def forward(self, A):
            return 0.5 * A

    plain, module = Module(model(ImplicitModel, 3, 2, 6)), Module(model(ImplicitModel, 3, 2, 6))
    torch.nn.utils.parametrize.register_parametrization(module, "A", Half())
    plain.A.data.mul_(0.5)
    U = values(4, 3)
    assert torch.equal(module(U), plain(U))
    module(U).sum().backward()
    plain(U).sum().backward()
    torch.testing.assert_close(module.parametrizations.A.original.grad, 0.5 * plain.A.grad, rtol=1e-14, atol=0)


@dataclass(eq=False, repr=False)
class Noise(Pointwise):
    """A layer that draws."""

    def _forward(self, U, call):
        Y = U + 0 if call.rng is None else U + call.rng.normal(size=U.shape)
        return Y, Explicit(Y, lambda dY, inputs: (dY, {}))


def test_random_numbers_come_from_torch():
    module, U = Module(Noise(tanh)), values(4, 3)
    torch.manual_seed(3)
    one, other = module(U), module(U)
    torch.manual_seed(3)
    assert torch.equal(module(U), one)
    assert not torch.equal(one, other)
    draw = [module(U, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draw)
    assert torch.equal(module.eval()(U), U)


# ------------------------------------------------------------------------------------------------------------ torchidl


def reference(state, U, *, kappa=0.99, bias=False, function="inf"):
    """Its equations in NumPy: columns, the bias as a last row of ones, the largest row sum scaled to kappa."""

    def s(M):
        return M * min(1.0, kappa / np.linalg.norm(M, np.inf))

    A = state["A"] if "A" in state else s(state["L"]) @ s(state["R"].T)
    A = {"inf": s, "triangular": lambda M: np.triu(M, 1), "none": lambda M: M}[function](A)
    V = np.concatenate([U.T, np.ones((1, len(U)))]) if bias else U.T
    X = np.zeros((len(A), len(U)))
    for _ in range(3000):
        X = np.maximum(A @ X + state["B"] @ V, 0)
    return (state["C"] @ X + (state["D"] @ V if "D" in state else 0)).T


def random_state(p=3, q=2, n=6, rank=None, bias=False, D=True, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"A": (n, n)} if rank is None else {"L": (n, rank), "R": (n, rank)}
    shapes |= {"B": (n, p + bias), "C": (q, n)} | ({"D": (q, p + bias)} if D else {})
    return {key: rng.normal(0, spread if key in "ALR" else 0.5, shape) for key, shape in shapes.items()}


@given(
    rank=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    D=st.booleans(),
    spread=st.sampled_from([0.01, 1.0]),
    kappa=st.sampled_from([0.5, 0.95, 1.5]),
    function=st.sampled_from(["inf", "triangular", "none"]),
)
def test_models_of_torchidl_are_read(rank, bias, D, spread, kappa, function):
    """Factors of norm 1.5 have a product that s scales again."""
    if (function == "none" and spread == 1.0) or (kappa > 1 and function != "triangular" and spread == 1.0):
        spread = 0.01  # nothing promises a fixed point
    state = random_state(rank=rank, bias=bias, D=D, spread=spread)
    layer = from_torchidl(state, kappa=kappa, bias=bias, function=function)
    U = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(layer.predict(U), reference(state, U, kappa=kappa, bias=bias, function=function), rtol=0, atol=1e-9)
    assert (layer.bias, layer.feedthrough, layer.dtype) == (bias, D, "float64")


def test_options_of_torchidl_matter():
    """The twins: another kappa, or a bias read as an input, gives something else."""
    state, U = random_state(bias=True), np.random.default_rng(1).normal(size=(5, 3))
    right = from_torchidl(state, kappa=0.5, bias=True)
    assert np.abs(from_torchidl(state, bias=True).predict(U) - right.predict(U)).max() > 1e-3
    assert from_torchidl(state).input_dim == 4
    assert isinstance(right.constraint, InfNorm)
    assert isinstance(from_torchidl(state, function="triangular").constraint, StrictlyTriangular)
    assert isinstance(from_torchidl(state, kappa=2.0).constraint, Unconstrained)


def test_a_recurrent_state_is_read():
    state = random_state(p=2 + 3, q=3, bias=True)
    E, e = np.random.default_rng(2).normal(size=(1, 3)), np.array([0.25])
    whole = {f"recurrent.layer.{key}": a for key, a in state.items()} | {"linear.weight": E, "linear.bias": e}
    layer = from_torchidl(whole, kappa=0.9, bias=True)
    assert (layer.input_dim, layer.output_dim, layer.hidden_dim, layer.implicit_hidden_dim, layer.feedthrough) == (2, 1, 3, 6, True)
    U, h = np.random.default_rng(1).normal(size=(4, 5, 2)), np.zeros((4, 3))
    for t in range(5):
        h = reference(state, np.concatenate([U[:, t], h], axis=1), kappa=0.9, bias=True)
    np.testing.assert_allclose(layer.predict(U), h @ E.T + e, rtol=0, atol=1e-9)


def test_other_states_are_refused():
    state = random_state()
    with pytest.raises(InputError, match=r"has \['A', 'B', 'C'\], and perhaps D; here there are \['A', 'B', 'D'\]"):
        from_torchidl({key: a for key, a in state.items() if key != "C"})
    with pytest.raises(InputError, match="perhaps D"):
        from_torchidl({**state, "E": np.ones(3)})
    with pytest.raises(InputError, match="not Linear"):
        from_torchidl(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="function is 'tril'"):
        from_torchidl(state, function="tril")
    with pytest.raises(InputError, match="kappa is 0"):
        from_torchidl(state, kappa=0)


WRITTEN = {
    "plain": lambda: random_model(ImplicitModel, 3, 2, 6),
    "without bias": lambda: random_model(ImplicitModel, 3, 2, 6, bias=False, feedthrough=False, dtype="float64"),
    "without D but with d": lambda: random_model(ImplicitModel, 3, 2, 6, feedthrough=False),
    "low rank": lambda: random_model(ImplicitModel, 3, 2, 6, rank=2, constraint=InfNorm(0.3), dtype="float64"),
    "recurrent": lambda: random_model(ImplicitRNN, 3, 2, 4, 6),
    "recurrent, D on the input": lambda: random_model(ImplicitRNN, 3, 2, 4, 6, feedthrough="input", bias=False, dtype="float64"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read(name):
    layer = WRITTEN[name]()
    state = to_torchidl(layer)
    back = from_torchidl(state, bias=layer.bias)
    U = np.random.default_rng(1).normal(size=(5, 3) if isinstance(layer, ImplicitModel) else (5, 4, 3)).astype(layer.dtype)
    scale = 1 + np.abs(layer.predict(U)).max()
    np.testing.assert_allclose(back.predict(U), layer.predict(U), rtol=0, atol=(1e-5 if layer.dtype == "float32" else 1e-11) * scale)


def test_what_torchidl_lacks_is_refused():
    with pytest.raises(InputError, match="the activation is tanh"):
        to_torchidl(ImplicitModel(3, 2, 6, activation=tanh, rng=0))
    with pytest.raises(InputError, match="last output alone"):
        to_torchidl(ImplicitRNN(3, 2, 4, 6, return_sequences=True, rng=0))
    with pytest.raises(InputError, match="got Linear"):
        to_torchidl(Linear(3, 2))
    wide = ImplicitModel(3, 2, 6, constraint=Unconstrained(), rng=0)
    wide.params = {**wide.params, "A": 5 * np.eye(6)}
    with pytest.raises(InputError, match=r"is 5, and torchidl would scale A to 0.99"):
        to_torchidl(wide)
    assert "A" in to_torchidl(wide, function="none")
    with pytest.raises(InputError, match="6 entries of A on or below the diagonal"):
        to_torchidl(wide, function="triangular")
    factors = ImplicitModel(3, 2, 6, rank=6, rng=0)
    factors.params = {**factors.params, "L": 0.9 * np.eye(6), "R": np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]}
    with pytest.raises(InputError, match="after balancing"):
        to_torchidl(factors)
    with pytest.raises(InputError, match="not triangular"):
        to_torchidl(factors, function="triangular")


OPTIONS = [
    {},
    {"bias": True, "kappa": 0.6},
    {"no_D": True},
    {"is_low_rank": True, "rank": 2, "bias": True},
    {"f": "ImplicitFunctionTriu", "bias": True},
]


@pytest.fixture(scope="module")
def torchidl():
    return pytest.importorskip("torchidl", reason="torchidl is not installed")


def grown(theirs, D):
    """Larger parameters than a new model has, so that s is at work; in float64, D too, which is no parameter where it is zero."""
    torch.manual_seed(0)
    theirs = theirs.double()
    for p in theirs.parameters():
        p.data.copy_(torch.randn(p.shape, dtype=torch.float64) / p.shape[-1] ** 0.5)
    if not isinstance(D.D, torch.nn.Parameter):
        D.D = D.D.double()
    return theirs


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torchidl makes objects of its functions
@pytest.mark.parametrize("options", OPTIONS)
def test_torchidl_itself_model(torchidl, options):
    from torchidl import implicit_function

    options = {key: getattr(implicit_function, v) if key == "f" else v for key, v in options.items()}
    theirs = torchidl.ImplicitModel(3, 2, 8, tol=1e-10, mitr=5000, **options)
    grown(theirs, theirs)
    U = values(5, 3)
    ours = from_torchidl(theirs)
    Y = theirs(U).detach().numpy()
    np.testing.assert_allclose(ours.predict(U.numpy()), Y, rtol=0, atol=1e-7)
    low = {key: options[key] for key in ("is_low_rank", "rank") if key in options}
    function = "triangular" if "f" in options else "inf"
    again = torchidl.ImplicitModel(
        3, 2, 8, tol=1e-10, mitr=5000, bias=ours.bias, no_D=not ours.feedthrough, **low, **({"f": options["f"]} if "f" in options else {})
    ).double()  # fmt: skip
    if not ours.feedthrough:
        again.D = again.D.double()
    again.load_state_dict(to_torchidl(ours, function=function))
    np.testing.assert_allclose(again(U).detach().numpy(), Y, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torchidl makes objects of its functions
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"no_D": True, "kappa": 0.7}])
def test_torchidl_itself_recurrent(torchidl, options):
    theirs = torchidl.ImplicitRNN(3, 2, 8, 4, tol=1e-10, mitr=5000, **options)
    grown(theirs, theirs.recurrent.layer)
    U = values(5, 6, 3)
    ours = from_torchidl(theirs)
    Y = theirs(U).detach().numpy()
    np.testing.assert_allclose(ours.predict(U.numpy()), Y, rtol=0, atol=1e-6)
    torchidl.ImplicitRNN(3, 2, 8, 4, bias=True, no_D=not ours.feedthrough).load_state_dict(to_torchidl(ours))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torchidl makes objects of its functions
def test_a_function_of_your_own_is_refused(torchidl):
    from torchidl.implicit_function import ImplicitFunction

    class Own(ImplicitFunction):
        pass

    with pytest.raises(InputError, match="f is Own"):
        from_torchidl(torchidl.ImplicitModel(3, 2, 8, f=Own))
