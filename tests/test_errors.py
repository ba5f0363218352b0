"""Numbers are refused by name, value and need, whatever their type.

No comparison of a string with a number reaches the user.
"""

import inspect
from fractions import Fraction

import numpy as np
import pytest

import pyidl
from pyidl import (
    Checkpoint,
    Dropout,
    EarlyStopping,
    ImplicitModel,
    LayerNorm,
    Linear,
    Sequential,
    activations,
    attention,
    fit,
    losses,
    optim,
    sim,
    solvers,
    training,
    wellposed,
)
from pyidl.errors import InputError, is_real, is_whole

U = np.ones((4, 2))
SIM_SOLVERS = ["ADMM", "CoordinateDescent", "FISTA", "LeastSquares", "ReducedRank"]


def trained(**options):
    model = ImplicitModel(2, 2, 3, rng=0, dtype="float64")
    return fit(
        model,
        (U, U),
        **{"loss": losses.mse, "optimizer": optim.SGD(0.1), "epochs": 1, "verbose": 0} | options,
    )


SOLVERS = [
    found
    for room, names in ((solvers, solvers.__all__), (sim, SIM_SOLVERS))
    for name in names
    if isinstance(found := getattr(room, name), type) and not inspect.isabstract(found)
]

REAL = {
    "kappa": [
        wellposed.InfNorm,
        wellposed.SpectralNorm,
        wellposed.PerronFrobenius,
        wellposed.MatrixMeasure,
        pyidl.AttentionBall,
    ],
    "theta": [pyidl.AttentionBall],
    "margin": [wellposed.Monotone],
    "damping": [solvers.Picard],
    "alpha": [solvers.ForwardBackward, solvers.PeacemanRachford, training.ridge],
    "tau": [solvers.Phantom, attention.BoundedSoftmax, attention.Softmax],
    "tol": [solver for solver in SOLVERS if "tol" in inspect.signature(solver).parameters],
    "learning_rate": [optim.SGD, optim.Adam, optim.AdamW],
    "clip_norm": [lambda clip_norm=None: optim.Adam(clip_norm=clip_norm)],
    "momentum": [lambda momentum: optim.SGD(0.1, momentum=momentum)],
    "weight_decay": [optim.AdamW, lambda weight_decay: optim.SGD(0.1, weight_decay=weight_decay)],
    "betas": [lambda betas: optim.Adam(betas=(0.9, betas))],
    "eps": [optim.Adam, activations.layer_norm, lambda eps: LayerNorm(2, eps=eps)],
    "rate": [Dropout, lambda rate: optim.Exponential(1.0, rate)],
    "slope": [activations.leaky_relu],
    "peak": [lambda peak: optim.Cosine(peak, 10)],
    "final": [lambda final: optim.Cosine(1.0, 10, final=final)],
    "initial": [lambda initial: optim.Exponential(initial, 0.5)],
    "bandwidth": [attention.KernelAttention],
    "c": [attention.KernelAttention],
    "lam": [sim.L1, sim.ElasticNet],
    "ridge": [
        sim.Ridge,
        lambda ridge: sim.ElasticNet(0.1, ridge),
        lambda ridge: sim.ReverseHuber(0.1, ridge),
        lambda ridge: training.readout(Linear(2, 2, rng=0), U, U, ridge=ridge),
    ],
    "price": [lambda price: sim.ReverseHuber(price, 0.1)],
    "delta": [lambda delta: losses.huber(U, U, delta=delta)],
    "min_delta": [EarlyStopping],
}
WHOLE = {
    "max_iter": [
        solver for solver in SOLVERS if "max_iter" in inspect.signature(solver).parameters
    ],
    "memory": [solvers.Anderson],
    "restart": [solvers.GMRES],
    "steps": [solvers.Neumann, solvers.Phantom, lambda steps: optim.Cosine(1.0, steps)],
    "hidden_dim": [lambda hidden_dim: ImplicitModel(2, 2, hidden_dim)],
    "rank": [lambda rank=None: ImplicitModel(2, 2, 4, rank=rank), sim.ReducedRank],
    "epochs": [lambda epochs: trained(epochs=epochs)],
    "batch_size": [lambda batch_size=None: trained(batch_size=batch_size)],
    "tile": [attention.KernelAttention, attention.BoundedSoftmax, attention.Softmax],
    "patience": [EarlyStopping],
    "every": [
        lambda every: Checkpoint("run.npz", every),
        lambda every: optim.Exponential(1.0, 0.5, every),
    ],
}

NO_NUMBERS = [
    "a",
    "0.5",
    b"1",
    True,
    [0.5],
    {},
    0.5j,
    np.array([0.5, 0.6]),
    np.array("a"),
    object(),
    float("nan"),
    None,
]


def cases(table):
    return [
        pytest.param(name, make, id=f"{getattr(make, '__name__', '')}-{name}")
        for name, makers in table.items()
        for make in makers
    ]


def refused(name, make, values):
    for value in values:
        if not (value is None and inspect.signature(make).parameters[name].default is None):
            with pytest.raises(InputError, match=rf"\b{name}\b"):
                make(**{name: value})


@pytest.mark.parametrize(("name", "make"), cases(REAL))
def test_what_is_no_number_is_refused_by_name(name, make):
    refused(name, make, NO_NUMBERS)
    for value in (0.5, np.float32(0.5), np.float64(0.5)):
        make(**{name: value})


@pytest.mark.parametrize(("name", "make"), cases(WHOLE))
def test_what_is_no_integer_is_refused_by_name(name, make):
    refused(name, make, [*NO_NUMBERS, 2.5, 0, -1, float("inf")])
    for value in (2, np.int64(2), np.uint8(2)):
        make(**{name: value})


@pytest.mark.parametrize(
    "weights",
    ["a", ["a", "b"], 2.0, {}, 1j, object(), [1.0, np.nan], [1.0, 0.0], [1.0, np.inf], []],
)
def test_weights_of_a_norm(weights):
    for constraint in (wellposed.InfNorm, wellposed.MatrixMeasure):
        with pytest.raises(InputError, match="weights has"):
            constraint(weights=weights)


@pytest.mark.parametrize(
    "blocks", ["a", None, 2, 2.5, {}, (1, 2.5), (1, "a"), (2, 0), [None], [float("nan")]]
)
def test_blocks_of_a_condition(blocks):
    with pytest.raises(InputError, match="blocks is"):
        wellposed.BlockTriangular(blocks, wellposed.InfNorm(0.9))


@pytest.mark.parametrize(
    ("boundaries", "values"),
    [
        (None, (1.0, 0.1)),
        (1, (1.0, 0.1)),
        ((1,), None),
        ((1,), 0.5),
        ((1,), "ab"),
        ("a", (1.0, 0.1)),
    ],
)
def test_tuples_of_a_schedule(boundaries, values):
    with pytest.raises(InputError, match=r"boundaries|learning rate"):
        optim.Piecewise(boundaries, values)


def test_functions_of_fit():
    for options in (
        {"metrics": losses.mse},
        {"callbacks": print},
        {"metrics": None},
        {"callbacks": 1},
        {"penalty": {}},
        {"metrics": "a"},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            trained(**options)


@pytest.mark.parametrize("option", ["loss", "penalty", "metrics"])
def test_what_functions_of_fit_return(option):
    def nothing(*given, **named):
        return None

    with pytest.raises(InputError, match="returned None"):
        trained(**{option: [nothing] if option == "metrics" else nothing})


HALVES = [np.array(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), Fraction(1, 2)]


@pytest.mark.parametrize("half", HALVES, ids=lambda half: type(half).__name__)
def test_a_number_of_any_type_is_kept_as_a_float(half):
    """It would else give its own dtype to the arrays that it meets."""
    for made in (
        *(sim.L1(half), sim.Ridge(half), sim.ElasticNet(half, half), sim.ReverseHuber(half, half)),
        *(solvers.ForwardBackward(alpha=half), solvers.PeacemanRachford(alpha=half)),
        *(solvers.Picard(damping=half), solvers.Phantom(tau=half)),
    ):
        kept = [
            getattr(made, name)
            for name in ("lam", "ridge", "price", "alpha", "damping", "tau")
            if hasattr(made, name)
        ]
        assert all(type(number) is float for number in kept)
        assert 0.5 in kept
    value, grads = training.ridge(half)({"A": U})
    assert value.dtype == grads["A"].dtype == U.dtype


def test_a_number_of_a_gpu_is_kept_as_a_float(xp):
    """Tolerances meet residuals on the host, rates and margins numbers there; files hold floats."""
    half = xp.asarray(0.5)
    if not hasattr(half, "item"):
        pytest.skip("arrays of this library do not tell their number")
    for made in (
        *(make(tol=half) for make in REAL["tol"]),
        *(
            pyidl.AttentionBall(half, half),
            EarlyStopping(min_delta=half),
            solvers.Picard(damping=half),
        ),
        *(
            optim.Constant(half),
            optim.Cosine(half, 10, final=half),
            optim.Exponential(half, half),
            optim.SGD(half, clip_norm=half),
        ),
    ):
        kept = [
            value
            for value in vars(made).values()
            if not isinstance(value, (int, str, dict, type(None)))
        ]
        assert all(type(value) is float for value in kept)
        assert 0.5 in kept
    assert optim.Piecewise((1,), (half, half)).values == (0.5, 0.5)
    model, V = (
        ImplicitModel(2, 2, 3, rng=0, dtype="float64").with_tol(xp.asarray(1e-9)),
        xp.asarray(U),
    )
    model.params = {key: xp.asarray(a) for key, a in model.params.items()}
    Y, pull = model(V)
    pull(Y)
    net = Sequential(
        Linear(2, 3, rng=0, dtype="float64"), activations.relu, Linear(3, 2, rng=1, dtype="float64")
    )
    net.params = {key: xp.asarray(a) for key, a in net.params.items()}
    sim.fit(
        net,
        xp.asarray(np.random.default_rng(0).normal(size=(9, 2))),
        state_cost=half,
        solver=sim.ADMM(tol=half),
    )


@pytest.mark.parametrize(
    "make",
    [optim.SGD, optim.Constant, lambda x: sim.ReverseHuber(x, 1), lambda x: sim.ReverseHuber(1, x)],
)
def test_what_no_float_can_hold_is_refused(make):
    for number in (10**400, Fraction(1, 10**400)):
        with pytest.raises(InputError, match=r"is (10|Frac)"):
            make(number)


def test_what_rounds_to_the_bound_is_refused():
    below = Fraction(10**30 - 1, 10**30)
    for options in ({"betas": (below, 0.9)}, {"betas": (0.9, below)}):
        with pytest.raises(InputError, match="betas"):
            optim.Adam(**options)
    with pytest.raises(InputError, match="kappa"):
        wellposed.InfNorm(below)
    with pytest.raises(InputError, match="eps"):
        activations.layer_norm(Fraction(1, 10**400))


def test_an_array_without_dimensions_is_a_number():
    assert wellposed.InfNorm(np.array(0.5)) == wellposed.InfNorm(0.5)
    assert wellposed.Monotone(np.array(0.5)) == wellposed.Monotone(0.5)


def test_numbers():
    assert all(
        map(is_real, (1, 0.5, np.float16(1), np.int8(1), np.array(0.5), np.array(3), float("nan")))
    )
    assert not any(
        map(
            is_real,
            (
                True,
                np.bool_(True),
                np.array(True),
                "1",
                np.str_("1"),
                np.array("1"),
                1j,
                None,
                [1],
                np.ones(1),
            ),
        )
    )
    assert all(map(is_whole, (1, np.int64(1), np.uint8(1))))
    assert not any(map(is_whole, (1.0, True, np.bool_(True), "1", np.float64(1), None)))
