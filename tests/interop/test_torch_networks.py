"""Networks of torch as implicit models: values, gradients, borders, refusals."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch.nn.functional as F  # noqa: E402
from example_runs import number, run  # noqa: E402
from helpers import relative  # noqa: E402
from torch import nn  # noqa: E402

import pyidl  # noqa: E402
from pyidl.errors import InputError  # noqa: E402
from pyidl.interop.torch import Module, to_implicit  # noqa: E402
from pyidl.interop.torch_compose_maps import Windows, convolution  # noqa: E402
from pyidl.solvers import Substitution  # noqa: E402

torch.set_num_threads(1)


def seeds(count, more=200):
    return [*range(count), *(pytest.param(s, marks=pytest.mark.slow) for s in range(count, more))]


def some(rng, *choices):
    return choices[int(rng.integers(len(choices)))]


def phi(rng):
    return some(rng, nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.SiLU(), nn.ReLU(inplace=True))


def settled(net, seed):
    """Evaluation mode, with statistics and biases that are not zero."""
    torch.manual_seed(seed)
    for part in net.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 2.0)
            nn.init.normal_(part.bias)
    return net.eval()


def perceptron(rng):
    p, *widths = (int(k) for k in rng.integers(2, 9, int(rng.integers(3, 6))))
    parts, last = [], p
    for width in widths:
        parts += [nn.Linear(last, width, bias=bool(rng.random() < 0.8))]
        parts += [nn.BatchNorm1d(width)] if rng.random() < 0.5 else []
        parts += [nn.LayerNorm(width, eps=0.1)] if rng.random() < 0.2 else []
        parts += [phi(rng), nn.Dropout(0.5)]
        last = width
    return nn.Sequential(*parts, nn.Linear(last, 3)), (p,)


def images(rng):
    """Norm before a padded convolution, strides, dilation, groups, pools."""
    c, h, w = (int(k) for k in (2 * rng.integers(1, 3), rng.integers(8, 11), rng.integers(8, 11)))
    dilation, padding = int(rng.integers(1, 3)), some(rng, 0, 1, 2, "same")
    stride = 1 if padding == "same" else int(rng.integers(1, 3))
    first = nn.Conv2d(
        c, 4, some(rng, 1, 2, 3, (3, 2)), stride, padding, dilation, groups=some(rng, 1, 2)
    )
    pools = [
        nn.MaxPool2d(2, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(2, 1),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, 1, divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d((1, None)),
    ]
    second = nn.Conv2d(4, 3, 3, padding=1, bias=bool(rng.random() < 0.5))
    body = [
        nn.BatchNorm2d(c),
        first,
        phi(rng),
        some(rng, *pools),
        nn.BatchNorm2d(4),
        second,
        phi(rng),
    ]
    net = nn.Sequential(*body, nn.Flatten())
    with torch.no_grad():
        width = net.eval()(torch.zeros(1, c, h, w)).shape[1]
    return nn.Sequential(*net, nn.Linear(width, 3)), (c, h, w)


def series(rng):
    c, n = 2 * int(rng.integers(1, 3)), int(rng.integers(16, 22))
    pool = some(rng, nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2), nn.AvgPool1d(3, 1, 1))
    net = nn.Sequential(
        nn.BatchNorm1d(c),
        nn.Conv1d(c, 4, 3, int(rng.integers(1, 3)), int(rng.integers(0, 3)), groups=2),
        phi(rng),
        pool,
        nn.Conv1d(4, 3, 2, dilation=int(rng.integers(1, 3))),
        phi(rng),
        nn.Flatten(),
    )
    with torch.no_grad():
        width = net.eval()(torch.zeros(1, c, n)).shape[1]
    return nn.Sequential(*net, nn.Linear(width, 2)), (c, n)


class Block(nn.Module):
    """``phi(norm(conv(v)) + shortcut(v))``, or without the last phi; and channels side by side."""

    def __init__(self, rng, c, out):
        super().__init__()
        self.one, self.two = nn.Conv2d(c, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.norm, self.phi = nn.BatchNorm2d(out), phi(rng)
        self.shortcut = nn.Identity() if c == out else nn.Conv2d(c, out, 1)
        self.last, self.wide = bool(rng.random() < 0.5), bool(rng.random() < 0.5)

    def forward(self, v):
        f = self.norm(self.two(F.relu(self.one(v))))
        f = f + self.shortcut(v) if self.last else self.shortcut(v) - 0.5 * f
        f = self.phi(f) if self.last else f
        return torch.cat([f, torch.tanh(v)], 1) if self.wide else f


class Residuals(nn.Module):
    def __init__(self, rng, c=2):
        super().__init__()
        blocks = []
        for _ in range(int(rng.integers(1, 4))):
            out = some(rng, c, 3)
            blocks.append(Block(rng, c, out))
            c = out + c * blocks[-1].wide
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(c, 3)

    def forward(self, v):
        v = self.blocks(v)
        return self.head(v.mean((2, 3)).view(v.size(0), -1))


KINDS = {
    "perceptron": perceptron,
    "images": images,
    "series": series,
    "residuals": lambda rng: (Residuals(rng), (2, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")  # torch says how it pads
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", seeds(8))
def test_a_network_is_a_model(kind, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net, shape = KINDS[kind](rng)
    net = settled(net, seed).double()
    U = torch.tensor(rng.normal(size=(5, *shape)), requires_grad=True)
    Y = net(U)
    dY = torch.tensor(rng.normal(size=Y.shape))
    (dU,) = torch.autograd.grad(Y, U, dY)
    model = to_implicit(net, shape)
    rows = U.detach().reshape(5, -1).numpy()
    assert relative(model.predict(rows), Y.detach().numpy()) < 1e-12
    assert relative(model(rows)[1](dY.numpy())[0], dU.reshape(5, -1).numpy()) < 1e-11
    assert model.certificate().proven
    if not model.activation.vector_blocks(model.hidden_dim):
        assert model.certificate().applies_to == "Substitution"
        once = model.replace(forward=Substitution())
        assert (once.equilibrium(rows).n_iter == 1).all()
    single = to_implicit(net.float(), shape)
    assert single.dtype == "float32"
    with torch.no_grad():
        wanted = net.double()(U).numpy()  # the rounded weights, exactly
    assert relative(single.predict(rows), wanted.astype("float32")) < 1e-6


# ------------------------------------------------------------------------------- borders


def test_the_shift_of_a_norm_ends_at_the_border():
    """Folded into a bias, it would be added to the padding as well."""
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)
    net = settled(nn.Sequential(norm, conv, nn.Tanh(), nn.Flatten()), 0).double()
    U = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    Y = net(U).detach().numpy()
    model = to_implicit(net, (2, 5, 5))
    assert relative(model.predict(U.reshape(4, -1).numpy()), Y) < 1e-14
    g = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - g * norm.running_mean
    folded = F.conv2d(U, conv.weight * g[None, :, None, None], padding=1)
    bias = conv.bias + torch.einsum("ocab,c->o", conv.weight, shift)
    wrong = torch.tanh(folded + bias[None, :, None, None]).detach().numpy()
    apart = np.abs(wrong - Y.reshape(wrong.shape))
    assert apart[:, :, 1:-1, 1:-1].max() < 1e-14
    assert apart.max() > 0.1


def test_the_padding_of_a_maximum_is_not_zero():
    net = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten()).double()
    U = -1.0 - torch.rand(4, 2, 5, 5, dtype=torch.float64)
    model = to_implicit(net, (2, 5, 5)).astype("float64")
    wanted = net(U).numpy()
    assert relative(model.predict(U.reshape(4, -1).numpy()), wanted) < 1e-14
    padded = F.max_pool2d(F.pad(U, (1, 1, 1, 1)), 3, 2).reshape(4, -1).numpy()
    assert np.abs(padded - wanted).max() > 1


@pytest.mark.parametrize("groups", [1, 2])
def test_a_zero_weight_has_its_place(groups):
    K = np.zeros((2, 2 // groups, 3, 3))
    windows = Windows.of((4, 5), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1))
    W = convolution(K, windows, 20, groups)
    assert W.shape == (40, 40)
    assert W.nnz == 2 * (2 // groups) * int(windows.there.sum())


# -------------------------------------------------------------------- what else there is


class Functions(nn.Module):
    """The same by functions, methods and operators."""

    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(2, 3, 2), nn.Linear(6, 4)

    def forward(self, v):
        v = F.leaky_relu(self.conv(2.0 * v - 1.0), 0.2)
        v = F.max_pool2d(v, 2, 1) + F.avg_pool2d(v, 2, stride=1) / 3
        w = 1.0 - v
        w += v.relu()
        w = F.dropout(torch.flatten(w, 1), training=self.training)
        n, k = w.shape[0], w.size(1)
        w = self.line(w.reshape(n, k // 6, 6)).reshape((n, -1))
        return F.softmax(w, dim=1)


def same(net, shape, goal=1e-12):
    U = torch.tensor(np.random.default_rng(0).normal(size=(4, *shape)))
    with torch.no_grad():
        wanted = net.double().eval()(U).reshape(4, -1).numpy()
    model = to_implicit(net, shape)
    assert relative(model.predict(U.reshape(4, -1).numpy()), wanted) < goal
    return model


def test_functions_are_modules():
    same(Functions(), (2, 4, 3))


class InPlace(nn.Module):
    """What works in place changes what its input is called later, and its views."""

    def __init__(self, view=False):
        super().__init__()
        self.line, self.phi, self.view = nn.Linear(4, 4), nn.ReLU(inplace=True), view

    def forward(self, v):
        v = self.line(v)
        w = v.view(-1, 2, 2) if self.view else v
        y = self.phi(v)
        return torch.flatten(w, 1) + y


@pytest.mark.parametrize("view", [False, True])
def test_what_works_in_place_changes_its_input(view):
    torch.manual_seed(0)
    same(InPlace(view), (4,))


def test_a_network_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    net[2].eval()
    before = {key: a.clone() for key, a in net.state_dict().items()}
    to_implicit(net, (3,))
    assert [part.training for part in net.modules()] == [True, True, True, False, True]
    assert all(torch.equal(a, before[key]) for key, a in net.state_dict().items())


class Modes(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, v):
        v = torch.relu(self.line(v))
        return 0.5 * v if self.training else v


def test_evaluation_mode_is_meant_and_the_other_one_kept():
    net = Modes()
    model = to_implicit(net, (3,))
    assert net.training
    U = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    with torch.no_grad():
        assert relative(model.predict(U), net.eval()(torch.tensor(U)).numpy()) < 1e-6


def test_layers_of_pyidl_inside():
    inner = pyidl.ImplicitModel(4, 3, 6, dtype="float64", rng=0)
    net = nn.Sequential(nn.Linear(5, 4).double(), nn.Tanh(), Module(inner), nn.ReLU())
    model = same(net, (5,), goal=1e-10)
    assert model.constraint.inner[1] == inner.constraint
    assert model.certificate().proven


def test_what_is_kept_is_said():
    net = nn.Sequential(nn.Linear(30, 2), nn.Linear(2, 30), nn.ReLU())
    assert [to_implicit(net, (30,), keep=keep).hidden_dim for keep in (None, False)] == [32, 30]
    with pytest.raises(InputError, match="keep"):
        to_implicit(net, (30,), keep="yes")


def test_several_axes():
    same(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)), (5, 3))
    same(nn.Sequential(nn.Flatten(2, 3), nn.Conv1d(2, 3, 2), nn.ReLU()), (2, 2, 3))


class Switch(nn.Module):
    def forward(self, v):
        return v if v.sum() > 0 else -v


class Hidden(nn.Module):
    """What it does, it does behind the back of torch.fx."""

    def __init__(self, factor):
        super().__init__()
        self.line = nn.Linear(3, 3).double()
        self.line.register_forward_hook(lambda part, inputs, output: factor * output)

    def forward(self, v):
        return torch.relu(self.line(v))


class Two(nn.Module):
    def forward(self, u, v):
        return u + v


class Call(nn.Module):
    """One function, between layers."""

    def __init__(self, function):
        super().__init__()
        self.line, self.function, self.both = nn.Linear(4, 4), function, nn.Bilinear(4, 4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, v):
        return self.function(self, torch.relu(self.line(v)))


@pytest.mark.parametrize(
    ("net", "shape", "match"),
    [
        (None, (3,), "module is None"),
        (nn.Linear(3, 2), (3,), "no activation"),
        (nn.Linear(3, 2), (), "input_shape"),
        (nn.Linear(3, 2), (0,), "input_shape"),
        (nn.Linear(3, 2), (2.0,), "input_shape"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()).half(), (3,), "float16"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()), (3,), "float64"),
        (Switch(), (3,), "torch.fx cannot write down Switch"),
        (Two(), (2,), "Two takes 2 inputs"),
        (nn.Sequential(nn.Linear(3, 4), nn.GLU()), (3,), r"1 \(GLU\)|GLU"),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 2), nn.ReLU()), (1, 3, 3), "ConvTranspose2d"),
        (nn.Sequential(nn.LSTM(3, 3)), (2, 3), "LSTM"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 2, padding=1, padding_mode="circular")),
            (1, 3, 3),
            "circular",
        ),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), (1, 3, 3), "ceil_mode"),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), (3,), "running"),
        (nn.Sequential(nn.AdaptiveAvgPool1d(2)), (1, 3), "does not divide"),
        (nn.Sequential(nn.LayerNorm(3)), (2, 3), "norms parts"),
        (nn.Sequential(nn.Softmax(-1)), (2, 3), "Softmax"),
        (nn.Sequential(nn.Conv2d(1, 1, 5), nn.ReLU()), (1, 3, 3), "does not take samples"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (4,), r"does not take samples.*\(4,\)"),
        (Hidden(2.0), (3,), "does not see"),
        (Hidden(1 + 1e-6), (3,), "does not see"),
        (nn.Linear(3, 2), (True,), "input_shape"),
        (Call(lambda net, v: torch.relu(input=v)), (4,), "by position"),
        (Call(lambda net, v: net.line(input=v)), (4,), "by position"),
        (Call(lambda net, v: torch.cat(tensors=[v, v], dim=1)), (4,), "by position"),
        (Call(lambda net, v: v.view(v.size(0) // 1, -1)), (4,), "number of samples"),
        (Call(lambda net, v: net.both(v, v)), (4,), "both .*Bilinear.* one tensor"),
        (nn.Sequential(nn.MaxPool2d(2, 1, 1, dilation=4)), (1, 3, 3), "padding alone"),
        (Call(lambda net, v: v * v), (4,), "product with a number"),
        (Call(lambda net, v: 1 / v), (4,), "product with a number"),
        (Call(lambda net, v: v * net.scale), (4,), "scale"),
        (Call(lambda net, v: torch.exp(v)), (4,), "exp"),
        (Call(lambda net, v: torch.flatten(v)), (4,), "samples"),
        (Call(lambda net, v: torch.cat([v, v])), (4,), "joins samples"),
        (Call(lambda net, v: v.mean(0)), (4,), "samples"),
        (Call(lambda net, v: (v, v)), (4,), "returns tuple"),
        (Call(lambda net, v: v.view(2, -1)), (4,), "first axis"),
        (Call(lambda net, v: v + v[:, :1]), (4,), "getitem"),
        (Call(lambda net, v: torch.add(v, v, alpha=2)), (4,), "option that is not known"),
        (Call(lambda net, v: F.max_pool1d(v, 2, input=v)), (4,), "torch.fx cannot"),
    ],
    ids=lambda case: None if isinstance(case, (tuple, str)) else type(case).__name__,
)
def test_what_cannot_be_converted_is_refused_by_name(net, shape, match):
    with pytest.raises(InputError, match=match):
        to_implicit(net, shape)


def test_the_example(tmp_path):
    result = run("compose.py", tmp_path, 2)
    assert result.returncode == 0, result.stderr
    assert number(r"test accuracy: (\S+)", result.stdout) > 0.7
    assert number(r"apart from torch: (\S+)", result.stdout) < 1e-6
    assert "Substitution(8 groups, 0 with cycles)" in result.stdout
    assert "loop 0.05: gain proved" in result.stdout
    assert "the small gain theorem proves nothing here" in result.stdout
    assert (tmp_path / "output" / "compose.png").read_bytes().startswith(b"\x89PNG")
