"""States of networks of PyTorch, watched by hooks; skipped where torch is not installed."""

import threading

import numpy as np
import pytest

from pyidl import activations, sim
from pyidl.errors import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def chain(*extra, dtype=torch.float64, inplace=False):
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(inplace),
        nn.Dropout(0.5),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
        *extra,
    ).to(dtype)


def inputs(*shape, dtype=np.float64):
    return np.random.default_rng(0).normal(size=shape or (7, 4)).astype(dtype)


def weights(net):
    return [
        (f.weight.detach().numpy(), f.bias.detach().numpy())
        for f in net
        if isinstance(f, nn.Linear)
    ]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_as_from_its_arrays(inplace, dtype):
    net = chain(dtype=dtype, inplace=inplace)
    plain = sim.Feedforward(weights(net), [activations.relu, activations.tanh])
    one, two = (sim.collect_states(n, inputs(), batch_size=3) for n in (net, plain))
    for name in ("U", "Z", "X", "Y"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            a,
            b,
            rtol=1e-5 if dtype == torch.float32 else 1e-13,
            atol=1e-6 if dtype == torch.float32 else 1e-14,
        )
    assert one.widths == (5, 6)
    assert one.activation.name == two.activation.name


def test_a_tensor_may_be_given():
    np.testing.assert_array_equal(
        sim.collect_states(chain(), torch.as_tensor(inputs())).U, inputs()
    )


@pytest.mark.parametrize("end", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.ReLU(True), nn.Sigmoid()])
def test_an_activation_of_the_output_is_no_state(end):
    net = chain(end)
    states = sim.collect_states(net, inputs())
    assert states.widths == (5, 6)
    np.testing.assert_allclose(
        states.Y, net[:-1].eval()(torch.as_tensor(inputs())).detach().numpy(), rtol=1e-12
    )


class Skip(nn.Module):
    """A network with everything that has to be told apart.

    Convolutions, a skip connection, one activation module for two places, an activation
    that is left out by `at`.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.phi, self.out = nn.SiLU(), nn.Linear(32, 3)

    def forward(self, u):
        x = self.phi(self.first(u))
        x = self.phi(self.second(x) + x)
        return self.out(x.flatten(1))


def test_convolutions_and_skip_connections():
    net, U = Skip(), inputs(5, 1, 4, 4, dtype=np.float32)
    states = sim.collect_states(net, U)
    assert states.U.shape == (5, 16)
    assert states.widths == (32, 32)
    assert states.activation is activations.silu
    with torch.no_grad():
        last = (
            net.second(torch.as_tensor(states.X[:, 32:].reshape(5, 2, 4, 4))).numpy().reshape(5, -1)
            + states.X[:, 32:]
        )
        np.testing.assert_allclose(states.Z[:, :32], last, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            states.Y, net.out(torch.as_tensor(states.X[:, :32])).numpy(), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(sim.collect_states(net, U, at=(-1,)).Z, states.Z[:, :32])


def hooks(net):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())


def test_the_module_is_left_as_it_was():
    net = chain()
    net[2].eval()  # one part in another mode than the rest
    modes = [part.training for part in net.modules()]
    one, two = sim.collect_states(net, inputs()), sim.collect_states(net, inputs())
    np.testing.assert_array_equal(one.Z, two.Z)  # no dropout
    assert [part.training for part in net.modules()] == modes
    assert hooks(net) == 0
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(RuntimeError):  # torch's own, about shapes
        sim.collect_states(net, inputs(3, 5))
    assert [part.training for part in net.modules()] == modes
    assert hooks(net) == 0


def test_threads_do_not_hear_each_other():
    net, found = chain(), {}

    def collect(i):
        found[i] = sim.collect_states(net, inputs(200 + i, 4), batch_size=7)

    threads = [threading.Thread(target=collect, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(
            found[i].Z, sim.collect_states(net, inputs(200 + i, 4), batch_size=7).Z
        )


class Functional(nn.Module):
    def __init__(self, result=lambda y: y):
        super().__init__()
        self.layer, self.result = nn.Linear(4, 3), result

    def forward(self, u):
        return self.result(torch.relu(self.layer(u)))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Functional().double(), "cannot be watched"),
        (Functional(lambda y: (y, y)).double(), "returns tuple"),
        (nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 1)), "PReLU.*no counterpart"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.GELU(approximate="tanh"), nn.Linear(3, 1)),
            "no counterpart",
        ),
        (nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(2.0), nn.Linear(3, 1)), "no counterpart"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(-1), nn.Linear(3, 1)),
            "cannot be one of an implicit model",
        ),
        (
            nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Softmax(-1), nn.Flatten(), nn.Linear(4, 1)),
            "cannot be one of an implicit model",
        ),
    ],
)
def test_what_is_refused(net, words):
    with pytest.raises(InputError, match=words):
        sim.collect_states(net, inputs())
    assert hooks(net) == 0


@pytest.mark.parametrize("end", [(), (nn.Softmax(-1),), (nn.LogSoftmax(-1),)])
def test_a_chain_is_an_implicit_model(end):
    net = nn.Sequential(nn.Flatten(), chain(), *end)
    U = inputs(5, 2, 2)
    model, states = sim.exact_model(net), sim.collect_states(net, U)
    assert (model.dtype, model.activation.name) == ("float64", states.activation.name)
    np.testing.assert_allclose(model.equilibrium(states.U).value, states.X, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(model.predict(states.U), states.Y, rtol=1e-12)
    single = sim.exact_model(
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    )
    assert (single.dtype, single.bias) == ("float32", False)
    with pytest.raises(InputError, match="Skip is neither a linear layer"):
        sim.exact_model(Skip())


@pytest.mark.parametrize("U", [np.full((2, 4), np.nan), np.ones(4), np.ones((0, 4))])
def test_inputs_are_checked(U):
    with pytest.raises(InputError, match="all finite"):
        sim.collect_states(chain(), U)


PHIS = [
    nn.ReLU(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.Softsign(),
    nn.Tanh(),
    nn.ELU(),
    nn.GELU(),
    nn.Hardtanh(),
    nn.LeakyReLU(),
    nn.Softplus(),
]


@pytest.mark.parametrize("phi", [*PHIS, nn.Softmax(-1)], ids=str)
def test_activations_are_those_of_torch(phi):
    """`States` itself compares X with phi(Z)."""
    net = nn.Sequential(nn.Linear(4, 30), phi, nn.Linear(30, 1)).double()
    states = sim.collect_states(net, 5 * inputs(50, 4))
    np.testing.assert_allclose(states.activation(states.Z), states.X, rtol=1e-7, atol=1e-8)
