"""Models of torchidl, read and written.

Beside its equations in NumPy, and beside torchidl itself where it is installed.
"""

from pathlib import Path

import numpy as np
import pytest
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, ImplicitRNN, Linear
from pyidl.activations import tanh
from pyidl.errors import InputError
from pyidl.wellposed import InfNorm, StrictlyTriangular, Unconstrained

torch = pytest.importorskip("torch", reason="torch is not installed")

from pyidl.interop.torch import from_torchidl, to_torchidl  # noqa: E402 (after a skip)


def values(*shape):
    return torch.from_numpy(np.random.default_rng(7).normal(size=shape))


def reference(state, U, *, kappa=0.99, bias=False, function="inf"):
    """Its equations in NumPy.

    Columns, the bias as a last row of ones, the largest row sum scaled to kappa.
    """

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
    return {
        key: rng.normal(0, spread if key in "ALR" else 0.5, shape) for key, shape in shapes.items()
    }


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
    if (function == "none" and spread == 1.0) or (
        kappa > 1 and function != "triangular" and spread == 1.0
    ):
        spread = 0.01  # nothing promises a fixed point
    state = random_state(rank=rank, bias=bias, D=D, spread=spread)
    layer = from_torchidl(state, kappa=kappa, bias=bias, function=function)
    U = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(
        layer.predict(U),
        reference(state, U, kappa=kappa, bias=bias, function=function),
        rtol=0,
        atol=1e-9,
    )
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


def test_the_product_of_factors_is_scaled_again():
    """Only for kappa > 1 is it larger than its factors."""
    state = {
        "L": np.array([[3.0], [0.0]]),
        "R": np.array([[1.0], [2.0]]),
        "B": np.ones((2, 1)),
        "C": np.ones((1, 2)),
    }
    params = from_torchidl(
        state, kappa=1.5
    ).params  # s(L) = 1.5 e_1, s(R^T) = (0.5, 1): a row sum of 2.25
    np.testing.assert_allclose(params["L"] @ params["R"].T, [[0.5, 1.0], [0.0, 0.0]], rtol=1e-14)


def test_a_recurrent_state_is_read():
    state = random_state(p=2 + 3, q=3, bias=True)
    E, e = np.random.default_rng(2).normal(size=(1, 3)), np.array([0.25])
    whole = {f"recurrent.layer.{key}": a for key, a in state.items()} | {
        "linear.weight": E,
        "linear.bias": e,
    }
    layer = from_torchidl(whole, kappa=0.9, bias=True)
    assert (
        layer.input_dim,
        layer.output_dim,
        layer.hidden_dim,
        layer.implicit_hidden_dim,
        layer.feedthrough,
    ) == (2, 1, 3, 6, True)
    U, h = np.random.default_rng(1).normal(size=(4, 5, 2)), np.zeros((4, 3))
    for t in range(5):
        h = reference(state, np.concatenate([U[:, t], h], axis=1), kappa=0.9, bias=True)
    np.testing.assert_allclose(layer.predict(U), h @ E.T + e, rtol=0, atol=1e-9)


NONE = {
    "a file's name": "x.pt",
    "a path": Path("x.pt"),
    "nothing": None,
    "pairs": lambda state: list(state.items()),
    "a layer": lambda state: from_torchidl(state),
    "a checkpoint": lambda state: {"model": state, "epoch": 3},
    "no names": lambda state: {1: state["A"]},
    "text": lambda state: {**state, "A": "x"},
    "ragged": lambda state: {**state, "A": [[1.0], [1.0, 2.0]]},
    "complex": lambda state: {**state, "A": 1j * state["A"]},
    "NaN": lambda state: {**state, "C": np.nan * state["C"]},
    "a vector": lambda state: {**state, "B": state["B"][:, 0]},
    "a number": lambda state: {**state, "C": 3.0},
    "no rows": lambda state: {**state, "A": np.ones((0, 0))},
    "another width": lambda state: {**state, "D": np.ones((2, 5))},
    "factors of two ranks": lambda state: {
        **{key: state[key] for key in "BC"},
        "L": np.ones((6, 2)),
        "R": np.ones((6, 3)),
    },
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_model_is_refused(name):
    source = NONE[name]
    state = {key: np.asarray(a, np.float32) for key, a in random_state().items()}
    with pytest.raises(InputError):
        from_torchidl(source(state) if callable(source) else source)
    assert from_torchidl(state).dtype == "float32"


def test_files_are_read_by_torch(tmp_path):
    state = {key: torch.from_numpy(a) for key, a in random_state().items()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"torch\.load\(path, weights_only=True\)"):
        from_torchidl(tmp_path / "x.pt")
    read = from_torchidl(torch.load(tmp_path / "x.pt", weights_only=True))
    assert read.params["A"].shape == (6, 6)
    half = from_torchidl({key: t.bfloat16() for key, t in state.items()})
    assert half.dtype == "float32"


def test_other_states_are_refused():
    state = random_state()
    with pytest.raises(
        InputError, match=r"has \['A', 'B', 'C'\], and perhaps D; here there are \['A', 'B', 'D'\]"
    ):
        from_torchidl({key: a for key, a in state.items() if key != "C"})
    with pytest.raises(InputError, match="perhaps D"):
        from_torchidl({**state, "E": np.ones(3)})
    with pytest.raises(InputError, match="not Linear"):
        from_torchidl(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="function is 'tril'"):
        from_torchidl(state, function="tril")
    for kappa in (0, None, "0.9", float("nan")):
        with pytest.raises(InputError, match=f"kappa is {kappa!r}"):
            from_torchidl(state, kappa=kappa)
    for bias in ("yes", 1, None):
        with pytest.raises(InputError, match=f"bias is {bias!r}"):
            from_torchidl(state, bias=bias)


WRITTEN = {
    "plain": lambda: random_model(ImplicitModel, 3, 2, 6),
    "without bias": lambda: random_model(
        ImplicitModel, 3, 2, 6, bias=False, feedthrough=False, dtype="float64"
    ),
    "without D but with d": lambda: random_model(ImplicitModel, 3, 2, 6, feedthrough=False),
    "low rank": lambda: random_model(
        ImplicitModel, 3, 2, 6, rank=2, constraint=InfNorm(0.3), dtype="float64"
    ),
    "recurrent": lambda: random_model(ImplicitRNN, 3, 2, 4, 6),
    "recurrent, D on the input": lambda: random_model(
        ImplicitRNN, 3, 2, 4, 6, feedthrough="input", bias=False, dtype="float64"
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read(name):
    layer = WRITTEN[name]()
    state = to_torchidl(layer)
    back = from_torchidl(state, bias=layer.bias)
    U = (
        np.random.default_rng(1)
        .normal(size=(5, 3) if isinstance(layer, ImplicitModel) else (5, 4, 3))
        .astype(layer.dtype)
    )
    scale = 1 + np.abs(layer.predict(U)).max()
    np.testing.assert_allclose(
        back.predict(U),
        layer.predict(U),
        rtol=0,
        atol=(1e-5 if layer.dtype == "float32" else 1e-11) * scale,
    )


@pytest.mark.parametrize("bias", [None, True, False])
@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize(
    ("cls", "widths", "B", "p"),
    [(ImplicitModel, (3, 2, 6), "B", 3), (ImplicitRNN, (3, 2, 4, 6), "recurrent.layer.B", 7)],
)
def test_a_bias_is_written_where_torchidl_has_one(cls, widths, B, p, has, bias):
    """A new layer's are 0: a network, whose e is its own, can do without."""
    layer = cls(*widths, bias=has, rng=0)
    columns = (has and cls is ImplicitModel) if bias is None else bias
    assert to_torchidl(layer, bias=bias)[B].shape == (6, p + columns)
    if has:
        layer.params = {**layer.params, "d": layer.params["d"] + 1}
        assert to_torchidl(layer)[B].shape == (6, p + 1)
        with pytest.raises(InputError, match="b and d are not 0"):
            to_torchidl(layer, bias=False)
    with pytest.raises(InputError, match="bias is 'no'"):
        to_torchidl(layer, bias="no")


def test_what_torchidl_lacks_is_refused():
    with pytest.raises(InputError, match="the activation is tanh"):
        to_torchidl(ImplicitModel(3, 2, 6, activation=tanh, rng=0))
    with pytest.raises(InputError, match="last output alone"):
        to_torchidl(ImplicitRNN(3, 2, 4, 6, return_sequences=True, rng=0))
    with pytest.raises(InputError, match="pools all, pool='mean'"):
        to_torchidl(ImplicitRNN(3, 2, 4, 6, pool="mean", rng=0))
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
    factors.params = {
        **factors.params,
        "L": 0.9 * np.eye(6),
        "R": np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0],
    }
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


# torchidl makes an instance of its autograd function.
instantiates = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(scope="module")
def torchidl():
    return pytest.importorskip("torchidl", reason="torchidl is not installed")


def grown(theirs, D):
    """Larger parameters than a new model has, so that s is at work.

    In float64, D too, which is no parameter where it is zero.
    """
    torch.manual_seed(0)
    theirs = theirs.double()
    for p in theirs.parameters():
        p.data.copy_(torch.randn(p.shape, dtype=torch.float64) / p.shape[-1] ** 0.5)
    if not isinstance(D.D, torch.nn.Parameter):
        D.D = D.D.double()
    return theirs


@instantiates
@pytest.mark.parametrize("options", OPTIONS)
def test_torchidl_itself_model(torchidl, options):
    from torchidl import implicit_function

    options = {
        key: getattr(implicit_function, v) if key == "f" else v for key, v in options.items()
    }
    theirs = torchidl.ImplicitModel(3, 2, 8, tol=1e-10, mitr=5000, **options)
    grown(theirs, theirs)
    U = values(5, 3)
    ours = from_torchidl(theirs)
    Y = theirs(U).detach().numpy()
    np.testing.assert_allclose(ours.predict(U.numpy()), Y, rtol=0, atol=1e-7)
    low = {key: options[key] for key in ("is_low_rank", "rank") if key in options}
    if "f" in options:
        low["f"] = options["f"]
    function = "triangular" if "f" in options else "inf"
    again = torchidl.ImplicitModel(
        3, 2, 8, tol=1e-10, mitr=5000, bias=ours.bias, no_D=not ours.feedthrough, **low
    ).double()
    if not ours.feedthrough:
        again.D = again.D.double()
    again.load_state_dict(to_torchidl(ours, function=function))
    np.testing.assert_allclose(again(U).detach().numpy(), Y, rtol=0, atol=1e-7)


@instantiates
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"no_D": True, "kappa": 0.7}])
def test_torchidl_itself_recurrent(torchidl, options):
    theirs = torchidl.ImplicitRNN(3, 2, 8, 4, tol=1e-10, mitr=5000, **options)
    grown(theirs, theirs.recurrent.layer)
    U = values(5, 6, 3)
    ours = from_torchidl(theirs)
    Y = theirs(U).detach().numpy()
    np.testing.assert_allclose(ours.predict(U.numpy()), Y, rtol=0, atol=1e-6)
    torchidl.ImplicitRNN(3, 2, 8, 4, bias=True, no_D=not ours.feedthrough).load_state_dict(
        to_torchidl(ours, bias=True)
    )


ROUND_TRIPS = [
    {},
    {"bias": True},
    {"no_D": True},
    {"no_D": True, "bias": True},
    {"is_low_rank": True, "rank": 3},
    {"is_low_rank": True, "rank": 3, "bias": True},
    {"f": "ImplicitFunctionTriu"},
    {"f": "ImplicitFunctionTriu", "bias": True},
    {"kappa": 0.5},
]


@instantiates
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("options", ROUND_TRIPS)
def test_what_was_read_is_written_with_the_shapes_that_it_had(torchidl, options, recurrent):
    """And a model of torchidl with the same options takes it, and computes the same."""
    from torchidl import implicit_function

    options = {
        key: getattr(implicit_function, v) if key == "f" else v for key, v in options.items()
    }

    def build():
        if recurrent:
            return torchidl.ImplicitRNN(5, 3, 8, 4, tol=1e-7, **options)
        return torchidl.ImplicitModel(5, 3, 8, tol=1e-7, **options)

    torch.manual_seed(0)
    theirs, again = build(), build()
    function = "triangular" if "f" in options else "inf"
    state = to_torchidl(from_torchidl(theirs), function=function, kappa=options.get("kappa", 0.99))
    shapes = [{key: a.shape for key, a in s.items()} for s in (state, theirs.state_dict())]
    assert shapes[0] == shapes[1]
    U = values(6, 7, 5).float() if recurrent else values(6, 5).float()
    before = theirs(U).detach()
    assert not torch.allclose(again(U), before, atol=1e-3)
    again.load_state_dict(state)
    torch.testing.assert_close(again(U).detach(), before, rtol=0, atol=1e-5)


@instantiates
def test_the_triangle_of_factors_is_a_full_matrix(torchidl):
    from torchidl.implicit_function import ImplicitFunctionTriu

    theirs = torchidl.ImplicitModel(5, 3, 8, f=ImplicitFunctionTriu, is_low_rank=True, rank=2)
    layer = from_torchidl(theirs)
    assert layer.rank is None
    assert set(to_torchidl(layer, function="triangular")) == set("ABCD")


@instantiates
def test_a_function_of_your_own_is_refused(torchidl):
    from torchidl.implicit_function import ImplicitFunction

    class Own(ImplicitFunction):
        pass

    with pytest.raises(InputError, match="f is Own"):
        from_torchidl(torchidl.ImplicitModel(3, 2, 8, f=Own))
