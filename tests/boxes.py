"""Models with boxes of inputs, and an adversary: what states and outputs attain in a box.

The adversary evaluates a model of the same equation whose outputs are the states, the
pre-activations and the outputs, in float64 to 1e-13; it knows nothing of bounds. What
its own solves may be off by is proven by the model's certificate.
"""

import numpy as np
from helpers import host
from hypothesis import given, settings
from hypothesis import strategies as st

from pyidl import (
    Bidirectional,
    Dropout,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Pattern,
    Pointwise,
    Residual,
    Sequential,
    activations,
)
from pyidl.activations import Activation, Blocks, leaky_relu, softmax
from pyidl.activations.ranges import ends
from pyidl.cells import AffineCell
from pyidl.certify.forms import Form
from pyidl.equilibrium import equilibrium
from pyidl.robustness.embedded import Embedded, split
from pyidl.robustness.states import States, exactly
from pyidl.solvers import Auto
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
)

EPS = float(np.finfo(np.float64).eps)

FEW = settings(max_examples=settings.default.max_examples // 4)
"""Where one example is many values; a profile that searches longer searches longer."""

BENT = Activation(
    "bent",
    lambda z: np.maximum(0.2 * z, np.minimum(z, 1.0 + 0.5 * z)),
    lambda z: np.where(z < 0, 0.2, np.where(z < 2, 1.0, 0.5)).astype(z.dtype),
    slope_range=(0.2, 1.0),
    curvature=0.0,
    kinks=(0.0, 2.0),
)
"""Custom, of straight pieces."""

UNKNOWN = Activation(
    "z / sqrt(1 + z^2)",
    lambda z: z / np.sqrt(1.0 + z * z),
    lambda z: (1.0 + z * z) ** -1.5,
    slope_range=(0.0, 1.0),
)
"""Custom, with nothing known but its slopes."""

STEEP = Activation(
    "3 z + tanh(2 z)",
    lambda z: 3.0 * z + np.tanh(2.0 * z),
    lambda z: 3.0 + 2.0 / np.cosh(np.clip(2.0 * z, -300, 300)) ** 2,
    slope_range=(3.0, 5.0),
    curvature=4.0,
)

RISING = (
    *(getattr(activations, name) for name in ["relu", "tanh", "sigmoid", "hard_tanh", "elu"]),
    *(getattr(activations, name) for name in ["softplus", "softsign", "identity"]),
    leaky_relu(0.3),
    BENT,
    UNKNOWN,
    STEEP,
)
FALLING = tuple(getattr(activations, name) for name in ("silu", "gelu", "abs", "sin"))


def mixed(n):
    """Blocks of several kinds, one within another, for n >= 5."""
    inner = Blocks((activations.tanh, 1), (softmax, n - 4))
    return Blocks(
        (activations.relu, 1), (activations.silu, 1), (inner, n - 3), (activations.sin, 1)
    )


def _blocks(n):
    return {"softmax": Blocks((softmax, n)), "blocks": mixed(n)} if n >= 5 else {}


def kinds(n):
    """Options of models of n states, by name."""
    table = {f"{phi.name} measure": {"activation": phi} for phi in RISING}
    found = {key: {**more, "constraint": MatrixMeasure(0.95)} for key, more in table.items()}
    found |= {f"{phi.name}": {"activation": phi, "constraint": InfNorm(0.9)} for phi in FALLING}
    found |= {
        key: {"activation": phi, "constraint": InfNorm(0.9)} for key, phi in _blocks(n).items()
    }
    keep = np.random.default_rng(n).random((n, n)) < 0.5
    found |= {
        "rank": {"rank": max(1, n // 3), "constraint": InfNorm(0.95)},
        "pattern": {"pattern": Pattern(A=keep), "constraint": InfNorm(0.95)},
        "no bias": {"bias": False, "constraint": InfNorm(0.95)},
        "no D": {"feedthrough": False, "constraint": InfNorm(0.95)},
        "perron": {"constraint": PerronFrobenius(0.9)},
        "monotone": {"constraint": Monotone(0.2)},
        "monotone tanh": {"constraint": Monotone(0.2), "activation": activations.tanh},
        "spectral": {"constraint": SpectralNorm(0.8)},
        "spectral sin": {"constraint": SpectralNorm(0.8), "activation": activations.sin},
        "triangular": {"constraint": StrictlyTriangular()},
    }
    if n >= 2:
        inner = MatrixMeasure(0.8)
        found["block triangular"] = {"constraint": BlockTriangular((n // 2, n - n // 2), inner)}
    return found


def drawn(kind, n, seed, p=3, q=3, scale=1.0, dtype="float64"):
    """A model with random parameters, some with a large negative diagonal."""
    rng = np.random.default_rng(seed)
    model = ImplicitModel(p, q, n, dtype=dtype, rng=seed, **kinds(n)[kind])
    spread = {"A": 2.0 / np.sqrt(n), "L": 0.7, "R": 0.7}
    params = {
        key: host(a).astype(float) + spread.get(key, 1.0) * scale * rng.normal(size=a.shape)
        for key, a in model.params.items()
    }
    if isinstance(model.constraint, MatrixMeasure | Monotone):
        params["A"] -= np.diag(np.where(rng.random(n) < 0.4, rng.uniform(0, 6, n), 0.0))
    if model.pattern is not None:
        params["A"] *= host(model.pattern.A)
    model.params = model.project({key: a.astype(dtype) for key, a in params.items()})
    return model


def boxes(rng, m, p, eps, scale=1.0):
    """Lower and upper ends around random centres, some of them points."""
    centre = scale * rng.normal(size=(m, p))
    radius = eps * rng.uniform(0.3, 1.0, size=(m, p)) * (rng.random((m, p)) < 0.9)
    return centre - radius, centre + radius


def points(rng, lo, hi, count):
    """(m, count, ...) of each box: ends, centre, corners, faces and random points."""
    share = rng.random((len(lo), count, *lo.shape[1:]))
    corner, kind = rng.random(share.shape) < 0.5, rng.random((len(lo), count))
    face = corner ^ (rng.random(share.shape) < 0.5)
    shape = (*kind.shape, *[1] * (lo.ndim - 1))
    share = np.where((kind < 0.4).reshape(shape), corner, share)
    share = np.where(((kind > 0.4) & (kind < 0.6)).reshape(shape) & face, corner, share)
    share[:, :3] = np.array([0.0, 1.0, 0.5]).reshape(1, 3, *[1] * (lo.ndim - 1))[:, :count]
    low, high = lo[:, None], hi[:, None]
    # The ends themselves, to the last bit, and nothing beyond them.
    inner = np.clip(low + share * (high - low), low, high)
    return np.where(share == 1.0, high, np.where(share == 0.0, low, inner))


def spelled_out(model):
    """The same equation in float64, with the outputs [x, A x + B u + b, y]."""
    p = {key: host(a).astype(float) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    (n, inputs), q = p["B"].shape, len(p["C"])
    b, d, D = p.get("b", np.zeros(n)), p.get("d", np.zeros(q)), p.get("D", np.zeros((q, inputs)))
    twin = ImplicitModel(
        inputs,
        2 * n + q,
        n,
        activation=model.activation,
        constraint=model.constraint,
        forward=Auto(1e-13),
        adjoint=Auto(1e-10),
        dtype="float64",
        rng=0,
    )
    twin.params = {
        "A": A,
        "B": p["B"],
        "b": b,
        "C": np.concatenate([np.eye(n), A, p["C"]]),
        "D": np.concatenate([np.zeros((n, inputs)), p["B"], D]),
        "d": np.concatenate([np.zeros(n), b, d]),
    }
    return twin


def evaluated(twin, U):
    """``[x, y, outputs]`` of many inputs, and what they may be off by."""
    solution = twin.equilibrium(U, on_fail="ignore")
    X, p = solution.value, twin.params
    size = np.abs(X) @ np.abs(p["A"]).T + np.abs(U) @ np.abs(p["B"]).T + np.abs(p["b"])
    Y = X @ p["A"].T + U @ p["B"].T + p["b"]
    blur = (sum(p["B"].shape) + 4) * EPS * size
    steep = twin.activation.lipschitz or 1.0
    residual = (
        np.abs(X - twin.activation(Y))
        + steep * blur.max(axis=1, keepdims=True)
        + 16 * EPS * (np.abs(Y) + np.abs(X))
    )
    off = twin.certificate().entrywise(residual + 1e-300)
    C, D, d = p["C"], p["D"], p["d"]
    size = np.abs(X) @ np.abs(C).T + np.abs(U) @ np.abs(D).T + np.abs(d)
    slack = off @ np.abs(C).T + (sum(D.shape) + 4) * EPS * size
    return X @ C.T + U @ D.T + d, slack


def attacked(pull_of, lo, hi, columns, steps=2):
    """Sign ascent and descent on some columns of an output, in every box: inputs.

    (m, 2 columns, ...). From the centre each step goes to the corner that the gradient
    points to, where an affine map attains its bounds.
    """
    k, m = len(columns), len(lo)
    low, high = (np.repeat(a, 2 * k, axis=0) for a in (lo, hi))
    U = 0.5 * low + 0.5 * high
    for _ in range(steps):
        output, pull = pull_of(U)
        dY = np.zeros((m, 2 * k, *output.shape[1:]))
        for j, column in enumerate(columns):
            dY[:, 2 * j, ..., column], dY[:, 2 * j + 1, ..., column] = 1.0, -1.0
        dU = pull(dY.reshape(output.shape))[0]
        dU = dU[0] if isinstance(dU, tuple) else dU  # a recurrence has a start, too
        U = np.where(dU > 0, high, np.where(dU < 0, low, U))
    return U.reshape(m, 2 * k, *lo.shape[1:])


def attained(model, lo, hi, rng, count=40, most=24, steps=2):
    """``(values, slack)``, (m, S, 2 n + q): of sampled and of attacked inputs of boxes."""
    twin = spelled_out(model)
    width = twin.output_dim
    chosen = rng.permutation(width)[:most]
    chosen = np.union1d(chosen, np.arange(width - min(len(model.params["C"]), 10), width))
    tried = attacked(lambda U: twin(U, on_fail="ignore"), lo, hi, chosen, steps)
    U = np.concatenate([points(rng, lo, hi, count), tried], axis=1)
    values, slack = evaluated(twin, U.reshape(-1, lo.shape[1]))
    shape = (len(lo), -1, width)
    return U, values.reshape(shape), slack.reshape(shape)


def outside(values, slack, pair):
    """How many of the values, (m, S, k), lie outside of bounds (m, k) for certain.

    Bounds that are NaN hold nothing.
    """
    low, high = (a[:, None] for a in pair)
    return int(np.count_nonzero(~((low <= values + slack) & (values - slack <= high))))


def violations(model, found, margins, labels, values, slack):
    """How many states, pre-activations, outputs and margins lie outside of bounds."""
    n, t = model.hidden_dim, labels[:, None, None]
    x, pre, y = np.split(values, [n, 2 * n], axis=-1)
    off_x, off_pre, off_y = np.split(slack, [n, 2 * n], axis=-1)
    gaps = y - np.take_along_axis(y, np.broadcast_to(t, (*y.shape[:2], 1)), -1)
    off = off_y + np.take_along_axis(off_y, np.broadcast_to(t, (*y.shape[:2], 1)), -1)
    off = off + 4 * EPS * np.abs(gaps)
    return {
        "states": outside(x, off_x, found.states),
        "pre": outside(pre, off_pre, found.pre),
        "outputs": outside(y, off_y, found.outputs),
        "margins": outside(gaps, off, (np.full_like(margins, -np.inf), margins)),
    }


# -------------------------------------------------------------------- models of layers


def _chain(make):
    return lambda rng: make(lambda: int(rng.integers(1 << 30)))


def _implicit(p, q, n, seed, **options):
    return ImplicitModel(p, q, n, rng=seed, dtype="float64", **options)


def _rnn(seed, p=3, q=3, **options):
    return ImplicitRNN(p, q, 4, 5, rng=seed, dtype="float64", **options)


def _linear(p, q, seed):
    return Linear(p, q, rng=seed, dtype="float64")


MEASURE = MatrixMeasure(0.9)
NETS = {
    "linear": _chain(lambda s: _linear(3, 3, s())),
    "pointwise": lambda rng: Pointwise(mixed(5)),
    "layers": _chain(
        lambda s: Sequential(
            _linear(3, 6, s()), activations.gelu, _linear(6, 5, s()), Dropout(0.5), mixed(5)
        )
    ),
    "residual": _chain(
        lambda s: Residual(_linear(3, 5, s()), activations.relu, _linear(5, 3, s()))
    ),
    "implicit residual": _chain(
        lambda s: Residual(_implicit(3, 3, 7, s(), feedthrough=False, constraint=MEASURE))
    ),
    "nested": _chain(
        lambda s: Sequential(
            _linear(3, 4, s()),
            activations.tanh,
            _implicit(4, 4, 6, s(), constraint=MEASURE),
            Residual(Residual(_implicit(4, 4, 5, s())), activations.relu, _linear(4, 4, s())),
            _linear(4, 3, s()),
        )
    ),
}

SEQUENCES = {
    "last": _chain(lambda s: _rnn(s())),
    "sequences": _chain(lambda s: _rnn(s(), return_sequences=True, activation=activations.tanh)),
    "mean": _chain(lambda s: _rnn(s(), pool="mean")),
    "max": _chain(lambda s: _rnn(s(), pool="max")),
    "no D": _chain(lambda s: _rnn(s(), feedthrough=False)),
    "input D": _chain(lambda s: _rnn(s(), feedthrough="input", bias=False)),
    "rank": _chain(lambda s: _rnn(s(), rank=2, activation=mixed(5))),
    "both ways": _chain(
        lambda s: Bidirectional(*(_rnn(s(), q=2, return_sequences=True) for _ in range(2)))
    ),
    "both ways, last": _chain(lambda s: Bidirectional(_rnn(s(), q=2), _rnn(s(), q=2))),
    "both ways, max and mean": _chain(
        lambda s: Bidirectional(_rnn(s(), q=2, pool="max"), _rnn(s(), q=2, pool="mean"))
    ),
    "both ways, max": _chain(
        lambda s: Bidirectional(_rnn(s(), q=2, pool="max"), _rnn(s(), q=2, pool="max"))
    ),
    "stacked": _chain(
        lambda s: Sequential(
            _linear(3, 3, s()),
            Residual(_rnn(s(), return_sequences=True, feedthrough=False)),
            activations.tanh,
            Bidirectional(*(_rnn(s(), q=2, return_sequences=True) for _ in range(2))),
            _rnn(s(), p=4, pool="max"),
            _linear(3, 3, s()),
        )
    ),
}


def net(table, name, seed, scale=0.5):
    """A model of layers with random parameters."""
    rng = np.random.default_rng(seed)
    model = table[name](rng)
    params = {k: host(a) + scale * rng.normal(size=a.shape) for k, a in model.params.items()}
    model.params = model.project(params)
    return model.with_tol(1e-12) if model.params else model


def net_values(model, U, lengths=None):
    """Outputs of inputs (m, S, ...), (m, S, ...), solved to 1e-12."""
    m, s = U.shape[:2]
    more = {} if lengths is None else {"lengths": np.repeat(lengths, s, axis=0)}
    Y = model.predict(U.reshape(m * s, *U.shape[2:]), **more)
    return np.asarray(Y).reshape(m, s, *Y.shape[1:])


def net_attacked(model, lo, hi, columns, lengths=None, steps=2):
    """As `attacked`, for a model of layers."""
    more = {}
    if lengths is not None:
        more = {"lengths": np.repeat(lengths, 2 * len(columns), axis=0)}
    return attacked(lambda U: model(U, **more), lo, hi, columns, steps)


def net_outside(values, pair, slack=1e-9):
    """How many outputs lie outside of bounds, by more than solves to 1e-12 are off."""
    low, high = (a[:, None] for a in pair)
    off = slack * (1.0 + np.abs(values))
    return int(np.count_nonzero(~((low <= values + off) & (values - off <= high))))


def model_of(A, B, C=None, D=None, b=None, phi=activations.relu, constraint=None):
    """A model with these parameters; outputs are the states if nothing is said."""
    A, B = np.asarray(A, float), np.asarray(B, float)
    (n, p), C = B.shape, np.eye(len(A)) if C is None else np.asarray(C, float)
    model = ImplicitModel(
        p,
        len(C),
        n,
        activation=phi,
        constraint=constraint or MatrixMeasure(0.97),
        dtype="float64",
        rng=0,
    )
    model.params = {
        "A": A,
        "B": B,
        "C": C,
        "D": np.zeros((len(C), p)) if D is None else np.asarray(D, float),
        "b": np.zeros(n) if b is None else np.asarray(b, float),
        "d": np.zeros(len(C)),
    }
    return model.with_tol(1e-13)


def equation(model):
    return States.of(model, exactly(model))


def offsets(model, lo, hi):
    """The box of ``z = B u + b``."""
    p = exactly(model)
    return Form.box(lo, hi).linear(p["B"], p.get("b", 0.0))


def true_ends(model, lo, hi, tol=1e-13, dtype="float64"):
    """Of the embedded model, by the layers' own solver."""
    p = {key: a.astype(dtype) for key, a in exactly(model).items()}
    phi, b = model.activation, p.get("b", np.zeros(len(p["B"]), dtype))
    E, B = Embedded.of(*split(p["A"], phi)), Embedded.of(*split(p["B"]))
    cell = AffineCell(E, B, np.concatenate([b, b]), ends(phi, len(b)))
    both = np.concatenate([lo, hi], axis=1).astype(dtype)
    return equilibrium(cell, both, forward=Auto(tol), on_fail="ignore")[0]


def measured(rng, n, phi, kappa=0.9):
    """A random A of that measure in every row, some of its diagonal far below 0."""
    A = rng.normal(size=(n, n))
    np.fill_diagonal(A, np.where(rng.random(n) < 0.4, -rng.uniform(0, 8, n), 0.0))
    off = np.abs(A).sum(axis=1) - np.abs(np.diagonal(A))
    scale = (kappa / phi.lipschitz - np.diagonal(A)) / np.maximum(off, 1e-300)
    return np.where(np.eye(n) > 0, A, A * scale[:, None])


QUESTIONS = given(
    kind=st.sampled_from(list(kinds(6))),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["inf", 2]),
    clipped=st.booleans(),
)
"""Which samples are certain? Asked of any model, in either norm, with or without a domain."""


def question(kind, seed, clipped, m=12):
    """``(rng, model, V, clip, labels, eps)``: labels are what the model says of V."""
    rng = np.random.default_rng(seed)
    model = drawn(kind, 6, seed).with_tol(1e-12)
    V = rng.normal(size=(m, 3))
    clip = (float(V.min()), float(V.max())) if clipped else None
    return rng, model, V, clip, model.predict(V).argmax(axis=1), 10.0 ** rng.uniform(-3, 0)
