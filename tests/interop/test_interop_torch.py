"""Layers as modules of torch: gradients by torch's own checker, memory shared, edits noticed."""

import copy
import functools
import io
import pickle
import shutil
import sys
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import require_gpu
from example_runs import number, run
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
    Linear,
    Pattern,
    Pointwise,
    Sequential,
    activations,
)
from pyidl.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DeviceError,
    GradientConvergenceError,
    InputError,
)
from pyidl.layers.base import Explicit
from pyidl.solvers import Neumann, Picard
from pyidl.wellposed import InfNorm

torch = pytest.importorskip("torch", reason="torch is not installed")

from pyidl.interop import torch as interop  # noqa: E402  (after the line that skips)

Module, tanh = interop.Module, activations.tanh


def model(cls, *args, seed=0, **options):
    return random_model(cls, *args, seed=seed, spread=0.3, dtype="float64", **options)


def values(*shape, seed=7, dtype=torch.float64, grad=False):
    return (
        torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
        .to(dtype)
        .requires_grad_(grad)
    )


LAYERS = {
    "linear": (lambda: model(Linear, 3, 2), [(4, 3)]),
    "pointwise": (lambda: Pointwise(activations.gelu), [(4, 3)]),
    "implicit": (lambda: model(ImplicitModel, 3, 2, 6, activation=tanh), [(4, 3)]),
    "low rank": (
        lambda: model(ImplicitModel, 3, 2, 6, activation=tanh, rank=2, bias=False),
        [(4, 3)],
    ),
    "without D": (
        lambda: model(ImplicitModel, 3, 2, 6, activation=activations.softmax, feedthrough=False),
        [(1, 3)],
    ),
    "sequential": (
        lambda: Sequential(
            model(Linear, 3, 4), tanh, model(ImplicitModel, 4, 2, 5, activation=tanh)
        ),
        [(4, 3)],
    ),
    "recurrent": (lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh), [(3, 4, 2)]),
    "h0": (
        lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, feedthrough="input"),
        [(3, 4, 2), None, (3, 3)],
    ),
    "lengths and h0": (
        lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, return_sequences=True),
        [(3, 4, 2), "lengths", (3, 3)],
    ),
    "mean over time": (
        lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, pool="mean"),
        [(3, 4, 2), "lengths", (3, 3)],
    ),
    "maximum over time": (
        lambda: model(ImplicitRNN, 2, 2, 3, 4, activation=tanh, pool="max"),
        [(3, 4, 2), "lengths"],
    ),
    "lengths": (
        lambda: Bidirectional(
            *(model(ImplicitRNN, 2, 1, 3, 4, activation=tanh, seed=seed) for seed in (0, 1))
        ),
        [(3, 4, 2), "lengths"],
    ),
    "attention": (
        lambda: model(ImplicitAttentionHead, 2, 3, num_heads=2, block_size=4),
        [(3, 4, 2), "lengths"],
    ),
    "transformer": (
        lambda: Sequential(
            Embedding(5, 4, dtype="float64", rng=0),
            ImplicitTransformerBlock(4, 2, mlp_dim=3, block_size=4, dtype="float64", rng=1),
        ),
        ["tokens"],
    ),
}


def case(name):
    layer, shapes = LAYERS[name]
    integers = {"lengths": torch.tensor([4, 1, 3]), "tokens": torch.tensor([[0, 3, 3], [1, 4, 0]])}
    inputs = [
        integers[shape] if isinstance(shape, str) else shape and values(*shape, grad=True)
        for shape in shapes
    ]
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
        return torch.func.functional_call(
            module, dict(zip(parameters, tensors[len(live) :])), tuple(arguments)
        )

    assert torch.autograd.gradcheck(f, (*(inputs[i] for i in live), *parameters.values()))


def test_the_checker_catches_a_wrong_gradient():
    class Twin(Linear):
        def _forward(self, U, call):
            Y, pull = super()._forward(U, call)
            return Y, Explicit(
                Y, lambda dY, inputs: (1.01 * pull.rule(dY, True)[0], pull.rule(dY, True)[1])
            )

    wrong = Module(Twin(3, 2, rng=0, dtype="float64"))
    assert not torch.autograd.gradcheck(wrong, (values(4, 3, grad=True),), raise_exception=False)


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


# ------------------------------------------------------------------------------- memory


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


def imaginary(t):
    """t, as a view in which torch has put off a change of sign."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg()
    return view


VIEWS = {
    "sign put off": imaginary,
    "transposed": lambda t: t.T.clone().T,
    "every second": lambda t: torch.stack([t, -t], dim=-1)[..., 0],
    "one row, expanded": lambda t: t[:1].expand_as(t),
    "no leaf": lambda t: t.clone().requires_grad_() + 0,
}


@pytest.mark.parametrize("where", ["input", "parameter", "cotangent", "h0"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_what_they_show(name, where):
    """Whatever torch has put off, and however the entries lie."""
    shapes = {"input": (4, 3), "parameter": (2, 6), "cotangent": (4, 2), "h0": (4, 3)}
    view = VIEWS[name](values(*shapes[where], seed=9))
    plain = view.detach().clone(memory_format=torch.contiguous_format)

    def gradients(t):
        recurrent = model(ImplicitRNN, 2, 2, 3, 4, activation=tanh)
        module = Module(recurrent if where == "h0" else model(ImplicitModel, 3, 2, 6))
        U = t if where == "input" else values(*((4, 5, 2) if where == "h0" else (4, 3)), grad=True)
        with_C = {"C": t} if where == "parameter" else {}
        inputs = (U, None, t) if where == "h0" else (U,)
        Y = torch.func.functional_call(module, with_C, inputs)
        dY = t.detach() if where == "cotangent" else values(*Y.shape, seed=8)
        names = [key for key in dict(module.named_parameters()) if key not in with_C]
        wanted = [module.get_parameter(key) for key in names] + [U] * U.requires_grad
        return Y.detach(), *torch.autograd.grad(Y, wanted, dY)

    for one, other in zip(gradients(view.detach()), gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_has_no_array_is_refused():
    complex_one = torch.complex(torch.ones(2), torch.ones(2)).conj()
    np.testing.assert_array_equal(interop.to_array(complex_one), [1 - 1j, 1 - 1j])
    for t in (torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.bfloat16)):
        with pytest.raises(InputError, match="a tensor has no array"):
            interop.to_array(t)
    with pytest.raises(InputError, match="no rows"):
        Module(model(ImplicitModel, 3, 2, 6))(torch.empty(0, 3))


def test_outputs_and_cotangents_are_not_copied_and_the_input_once():
    """As in every call, a pullback has an input of its own."""
    SEEN.clear()
    U, dY = values(4, 3, grad=True), values(4, 3, seed=8)
    Y = Module(Spy(tanh))(U)
    Y.backward(dY)
    (seen, out), (cotangent, inputs) = SEEN
    assert (out.ctypes.data, cotangent.ctypes.data) == (Y.data_ptr(), dY.data_ptr())
    assert seen.ctypes.data != U.data_ptr()
    assert np.array_equal(seen, U.detach().numpy())
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


def test_an_edit_of_the_output_is_noticed():
    """One head: Y is the memory of the solution, which the pullback needs."""
    Y = Module(model(ImplicitAttentionHead, 3, 4, block_size=5))(values(2, 5, 3))
    Y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Y.sum().backward()


def test_an_output_is_never_the_memory_of_the_input():
    U = values(2, 3)
    Y = Module(Sequential(Dropout(0.5))).eval()(U)
    assert torch.equal(Y, U)
    assert Y.data_ptr() != U.data_ptr()


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


# ------------------------------------------------------------- derivatives of order two


def test_second_order_is_refused():
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    (g,) = torch.autograd.grad(module(U).sum(), U, create_graph=True)
    (plain,) = torch.autograd.grad(module(U).sum(), U)
    assert torch.equal(g, plain)
    with pytest.raises(InputError, match="first order only"):
        g.square().sum().backward()


def test_second_order_is_refused_also_where_a_zero_would_pass_unseen():
    """The cotangent is constant, and the loss has a part with a gradient.

    A node without history would add nothing to it.
    """
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    Y = module(U)
    (g,) = torch.autograd.grad(Y, module.B, torch.ones_like(Y), create_graph=True)
    with pytest.raises(InputError, match="first order only"):
        (g.sum() + U.square().sum()).backward()
    (g.detach().sum() + module(U).sum()).backward()


def test_transforms_of_functions():
    module, U = Module(model(ImplicitModel, 3, 2, 6)), values(4, 3, grad=True)
    module(U).sum().backward()
    torch.testing.assert_close(
        torch.func.grad(lambda u: module(u).sum())(U.detach()), U.grad, rtol=0, atol=0
    )
    jacobian = torch.autograd.functional.jacobian(module, U)
    torch.testing.assert_close(jacobian.sum((0, 1)), U.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.func.jacrev(module, chunk_size=1)(U), jacobian)


TRANSFORMS = {
    "vmap": lambda f, U: torch.vmap(f)(U[:, None]),
    "gradients sample by sample": lambda f, U: torch.vmap(torch.func.grad(lambda u: f(u).sum()))(
        U[:, None]
    ),
    "jacrev": lambda f, U: torch.func.jacrev(f)(U),
    "jacfwd": lambda f, U: torch.func.jacfwd(f)(U),
    "jvp": lambda f, U: torch.func.jvp(f, (U,), (U,)),
    "jacobian, vectorised": lambda f, U: torch.autograd.functional.jacobian(f, U, vectorize=True),
    "batched gradients": lambda f, U: torch.autograd.grad(
        f(U.requires_grad_()), U, torch.ones(5, 4, 2, dtype=U.dtype), is_grads_batched=True
    ),
    "export": lambda f, U: torch.export.export(f, (U,), strict=False),
    "jit.trace": lambda f, U: torch.jit.trace(f, (U,)),
    "fx": lambda f, U: torch.fx.symbolic_trace(torch.nn.Sequential(f)),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_that_cannot_look_inside_are_refused(name, training):
    module = Module(model(ImplicitModel, 3, 2, 6)).train(training)
    with pytest.raises(InputError, match=r"what transforms a program .* cannot look into a layer"):
        TRANSFORMS[name](module, values(4, 3))


# by torch itself, while it compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("name", ["implicit", "sequential", "lengths and h0", "transformer"])
def test_compiled_networks_compute_the_same(name, backend):
    """In a network, and alone: value and gradients, twice, and with more samples."""
    module, inputs = case(name)
    dynamo = pytest.importorskip("torch._dynamo", reason="this torch does not compile")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = module

        def forward(self, *inputs):
            return 2 * self.part(*inputs) + 1

    net, many = Net(), [t if t is None else torch.cat([t, t]) for t in inputs]
    for whole in (net, module):
        dynamo.reset()
        compiled = torch.compile(whole, backend=backend)
        for given in (inputs, inputs, many):
            results = []
            for f in (whole, compiled):
                whole.zero_grad()
                Y = f(*given)
                Y.square().sum().backward()
                results.append([Y.detach(), *(p.grad for p in whole.parameters())])
            torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    dynamo.reset()


# ------------------------------------------------------------------------------- dtypes


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
    for low in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match=r"are b?float16; .* module.float"):
            module.to(low)(U)


def test_parameters_of_two_dtypes_are_refused():
    module = Module(random_model(ImplicitModel, 3, 2, 6))
    module.B.data = module.B.data.double()
    with pytest.raises(InputError, match="float32 and float64"):
        module(values(4, 3))


# --------------------------------------------------------------- optimisers, projection


def test_it_learns_between_modules_of_torch():
    torch.manual_seed(0)
    U = torch.randn(64, 5)
    t = torch.sin(U.sum(dim=1, keepdim=True))
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 8),
        Module(ImplicitModel(8, 8, 16, rng=0)),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 1),
    )
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


# ----------------------------------------------------------------------------- failures


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
    with pytest.raises(InputError, match=r"takes tensors, got ndarray; .* module.layer"):
        Module(slow)(np.ones((4, 3)))
    with pytest.raises(InputError, match="takes a Layer"):
        Module(torch.nn.Linear(3, 2))


def on_second_gpu():
    """What `to_array` asks a tensor for before it goes to CuPy."""
    tensor = SimpleNamespace(device=torch.device("cuda:1"))
    tensor.detach = tensor.resolve_conj = tensor.resolve_neg = lambda: tensor
    return tensor


def test_devices_without_arrays_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match="a tensor is on meta"):
        interop.to_array(torch.empty(3, device="meta"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"cuda:1, where pyidl needs CuPy.*extra cuda12"):
        interop.to_array(on_second_gpu())


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

    tensor = on_second_gpu()
    fake = SimpleNamespace(
        cuda=SimpleNamespace(Device=Device), from_dlpack=lambda t: ("array of", t)
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert interop.to_array(tensor) == ("array of", tensor)
    assert asked == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_on_a_gpu():
    cupy = require_gpu()
    module = Module(model(ImplicitModel, 3, 2, 6, activation=tanh)).to("cuda")
    U = values(4, 3).to("cuda").requires_grad_()
    assert isinstance(module.layer.params["A"], cupy.ndarray)
    assert interop.to_array(U).data.ptr == U.data_ptr()
    assert torch.autograd.gradcheck(module, (U,))
    host = Module(model(ImplicitModel, 3, 2, 6, activation=tanh))
    torch.testing.assert_close(module(U).cpu(), host(U.cpu()), rtol=1e-10, atol=1e-10)


# ----------------------------------------------------------------- names, copies, files


def test_the_names_are_those_of_pyidl():
    layer = Sequential(Linear(3, 4, rng=0), Sequential(tanh, ImplicitModel(4, 2, 5, rank=2, rng=0)))
    module = Module(layer)
    assert list(module.state_dict()) == list(layer.params)
    assert [name for name, _ in module.named_parameters()] == list(layer.params)
    assert "ImplicitModel" in repr(module)
    module.get_submodule("0").W.data.zero_()
    assert layer.params["0.W"].any()
    assert not module.layer.params["0.W"].any()


# torch 2.4 says so whatever is asked for
@pytest.mark.filterwarnings("ignore:You are using .torch.load.:FutureWarning")
@pytest.mark.parametrize("name", ["implicit", "sequential", "lengths and h0"])
def test_copies_compute_the_same(name):
    module, inputs = case(name)
    Y = module(*inputs)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
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


@dataclass(eq=False, repr=False)
class Meeting(Linear):
    """Computes when as many calls are under way as it waits for."""

    def _forward(self, U, call):
        MEETING[0].wait(timeout=60)
        return super()._forward(U, call)


MEETING = []


def replica(module, tensors):
    """What DataParallel makes of a module for each device."""
    twin = module._replicate_for_data_parallel()
    for name, child in twin.named_children():
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items()}
        twin._modules[name] = replica(child, own)
    for name, t in tensors.items():
        if "." not in name:
            setattr(twin, name, t)
    return twin


def loaded(module, tensors):
    module.load_state_dict(tensors)
    return module


SHARED = {
    "replicas": replica,
    "functional calls": lambda module, tensors: functools.partial(
        torch.func.functional_call, module, tensors
    ),
    "shallow copies": lambda module, tensors: functools.partial(
        torch.func.functional_call, copy.copy(module), tensors
    ),
    "deep copies": lambda module, tensors: loaded(copy.deepcopy(module), tensors),
}


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_threads_share_nothing(name, within):
    """Calls with other parameters at the same time, as in DataParallel."""
    MEETING[:] = [threading.Barrier(3)]
    layer, U = Meeting(3, 2, bias=False, rng=0, dtype="float64"), values(4, 3)
    module, results = Module(Sequential(tanh, layer) if within else layer), {}

    def call(i):
        tensors = {"1.W" if within else "W": values(2, 3, seed=i)}
        results[i] = SHARED[name](module, tensors)(U).detach()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    V = U.tanh() if within else U
    for i in range(3):
        torch.testing.assert_close(results[i], V @ values(2, 3, seed=i).T, rtol=1e-12, atol=0)


def test_the_layer_is_a_copy(tmp_path):
    module = Module(model(ImplicitModel, 3, 2, 6))
    layer = module.layer
    layer.params = {key: 0 * a for key, a in layer.params.items()}
    assert module(values(4, 3)).detach().abs().sum() > 0
    pyidl.save(tmp_path / "model.npz", module.layer)
    np.testing.assert_array_equal(
        pyidl.load(tmp_path / "model.npz").predict(values(4, 3).numpy()),
        module(values(4, 3)).detach().numpy(),
    )


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
    torch.testing.assert_close(
        module.parametrizations.A.original.grad, 0.5 * plain.A.grad, rtol=1e-14, atol=0
    )


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


@pytest.mark.parametrize("generator", [None, torch.Generator()])
@pytest.mark.parametrize(
    ("draws", "layer"),
    [
        (False, lambda: model(ImplicitModel, 3, 2, 6)),
        (False, lambda: Sequential(model(Linear, 3, 2), tanh)),
        (False, lambda: Sequential(Dropout(0.0))),
        (True, lambda: Dropout(0.5)),
        (True, lambda: Sequential(model(Linear, 3, 2), Dropout(0.5))),
        (True, lambda: Noise(tanh)),
    ],
)
def test_only_layers_that_draw_take_from_the_generator(draws, layer, generator):
    module, source = Module(layer()), generator or torch.default_generator
    before = source.get_state()
    module.eval()(values(4, 3), generator=generator)
    assert torch.equal(source.get_state(), before)
    module.train()(values(4, 3), generator=generator)
    assert torch.equal(source.get_state(), before) is not draws


def test_example(tmp_path):
    result = run("torch_layer.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "gradcheck: True" in result.stdout
    assert number(r"epoch 15: loss \S+, test accuracy (\S+)", result.stdout) > 0.95
    assert "certified: the fixed point exists and is unique for every input" in result.stdout
    assert number(r"without torch: (\S+)", result.stdout) == 0
    assert (tmp_path / "output" / "implicit_part.npz").is_file()
