"""The layer of certified training: its bounds hold, and its gradient is right, at zeros too."""

import itertools

import array_api_strict
import numpy as np
import pytest
from helpers import host, moved, relative

from pyidl import (
    ImplicitModel,
    InfNorm,
    Pattern,
    WorstCase,
    activations,
    losses,
    metrics,
    optim,
    solvers,
)
from pyidl.activations import Blocks
from pyidl.errors import GradientMismatchError, InputError
from pyidl.robustness import embedded, worst_case
from pyidl.testing import check_pullback
from pyidl.wellposed import (
    BlockTriangular,
    LipschitzBound,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    Unconstrained,
)

P, Q, N, M = 4, 3, 8, 6
EPS, CLIP = 0.15, (-1.0, 1.0)
AVERAGE = 0.3  # of the unrolled iteration, which then converges for negative diagonals too
LEAST = {"silu": -1.2784645427610738, "gelu": -0.7517915246935645, "abs": 0.0}
MASK = np.random.default_rng(3).random((N, N)) < 0.5

BLOCKS = Blocks((activations.softmax, 3), (activations.tanh, 3), (activations.silu, 2))
RISING = Blocks((activations.tanh, 3), (activations.relu, 5))
MEASURE = {"constraint": MatrixMeasure(0.95)}
MODELS = {
    **dict.fromkeys(("relu", "leaky_relu", "tanh", "sigmoid", "softplus", "identity"), MEASURE),
    **{name: {"constraint": InfNorm(0.95)} for name in ("silu", "gelu", "abs", "sin")},
    "softmax and others": {"constraint": InfNorm(0.57), "activation": BLOCKS},
    "two that rise": {
        **MEASURE,
        "activation": Blocks((activations.tanh, 3), (activations.relu, 5)),
    },
    "rank": {"rank": 2, "activation": "tanh"},
    "rank, falling": {"rank": 2, "activation": "silu"},
    "pattern": {"pattern": Pattern(A=MASK, C=np.arange(Q * N).reshape(Q, N) % 2 > 0)},
    "triangular": {"constraint": StrictlyTriangular(), "activation": "tanh"},
    "blocks": {
        "constraint": BlockTriangular((3, 5), (InfNorm(0.9), PerronFrobenius(0.9))),
        "activation": "tanh",
    },
    "no bias": {"bias": False},
    "no feedthrough": {"feedthrough": False, "constraint": PerronFrobenius(0.95)},
    "neither": {"feedthrough": False, "bias": False},
}


def layer_of(name, seed=0, clip=CLIP, eps=EPS):
    """All parameters random, inside of their set, none of them zero by projection."""
    options = {"activation": name} | MODELS[name] if name in activations_of() else MODELS[name]
    if options.get("activation") == "leaky_relu":
        options = {**options, "activation": activations.leaky_relu(0.2)}
    model = ImplicitModel(P, Q, N, dtype="float64", rng=seed, **options)
    rng = np.random.default_rng(seed)
    params = {key: rng.normal(size=a.shape) for key, a in model.params.items()}
    for key in params:
        mask = model.support(key)
        params[key] *= 1.0 if mask is None else mask
    ball = model.constraint
    if "A" in params:
        A = params["A"] = np.triu(params["A"], 1 if isinstance(ball, StrictlyTriangular) else -N)
        if isinstance(ball, BlockTriangular):
            A[3:, :3] = 0.0
        if not isinstance(ball, StrictlyTriangular):
            A *= 0.5 / np.abs(A).sum(axis=1, keepdims=True)
        if isinstance(ball, MatrixMeasure):
            A[::3, ::3] -= 1.5 * np.eye(N)[::3, ::3]
    else:
        params["L"] *= 0.5 / np.abs(params["L"] @ params["R"].T).sum(axis=1, keepdims=True)
    model.params = model.project(params)
    return WorstCase(model, eps, clip=clip)


def activations_of():
    return {"relu", "leaky_relu", "tanh", "sigmoid", "softplus", "identity", *LEAST, "sin"}


def data(seed=0):
    """Inputs of which some boxes are cut, and labels."""
    rng = np.random.default_rng(seed + 50)
    return rng.uniform(-1, 1, (M, P)), rng.integers(0, Q, M)


# ------------------------------------------------------------- an oracle, in plain NumPy


def reached(phi, low, high):
    """The range of phi over boxes, and its Jacobian with respect to [low, high]."""
    m, n = low.shape
    x, J = np.zeros((m, 2 * n)), np.zeros((m, 2 * n, 2 * n))
    blocks = phi.blocks if isinstance(phi, Blocks) else [Blocks((phi, n)).blocks[0]]
    for part, start, stop in ((b.activation, b.start, b.stop) for b in blocks):
        for i, (end, other, row) in itertools.product(
            range(start, stop), ((low, high, 0), (high, low, n))
        ):
            mine, theirs = (i + row, n - row)
            if part is activations.softmax:
                z = other[:, start:stop].copy()
                z[:, i - start] = end[:, i]
                p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
                x[:, mine] = p[:, i - start]
                D = p[:, [i - start]] * (np.eye(stop - start)[i - start] - p)
                J[:, mine, theirs + start : theirs + stop] = D
                J[:, mine, theirs + i] = 0.0
                J[:, mine, row + i] = D[:, i - start]
                continue
            points = [low[:, i], high[:, i]]
            turns = [LEAST[part.name]] if part.name in LEAST else []
            if part.name == "sin":
                turns = np.pi * (np.arange(-8, 8) + 0.5)
            points += [np.clip(t, low[:, i], high[:, i]) for t in turns]
            values = part(np.stack(points))
            k = values.argmin(axis=0) if row == 0 else values.argmax(axis=0)
            best = np.stack(points)[k, np.arange(m)]
            x[:, mine], slope = part(best), part.dphi(best)
            J[:, mine, i] = slope * (best == low[:, i])
            J[:, mine, n + i] = slope * (best == high[:, i]) * (low[:, i] < high[:, i])
    return x, J


def iterated(phi, E, Z):
    """All iterates of the averaged embedded map, and the last pre-activation."""
    path = [np.zeros((M, 2 * N))]
    for _ in range(400):
        y = path[-1] @ E.T + Z
        path.append((1 - AVERAGE) * path[-1] + AVERAGE * reached(phi, y[:, :N], y[:, N:])[0])
        if np.max(np.abs(path[-1] - path[-2])) < 1e-15:
            break
    return path, y


def oracle(layer, U, labels, G, dense):
    """Y and all gradients for the cotangent G, by dense solves or an unrolled iteration."""
    model, params = layer.model, {k: host(a) for k, a in layer.model.params.items()}
    A = params["A"] if "A" in params else params["L"] @ params["R"].T
    B, C, phi = params["B"], params["C"], model.activation
    D, b, d = params.get("D", np.zeros((Q, P))), params.get("b", 0.0), params.get("d", np.zeros(Q))
    blocks = phi.blocks if isinstance(phi, Blocks) else [Blocks((phi, N)).blocks[0]]
    rises = np.zeros(N, bool)
    for part in blocks:
        rises[part.start : part.stop] = (part.activation.slope_range or (-1,))[0] >= 0
    own = np.diag(rises)
    Mp = np.where(own, A, np.maximum(A, 0))
    E = np.block([[Mp, A - Mp], [A - Mp, Mp]])
    F = np.block([[np.maximum(B, 0), np.minimum(B, 0)], [np.minimum(B, 0), np.maximum(B, 0)]])
    lo, hi = np.clip(U - layer.eps, *(layer.clip or (None, None))), U + layer.eps
    hi = hi if layer.clip is None else np.clip(hi, *layer.clip)
    box = np.concatenate([lo, hi], axis=1)
    Z = box @ F.T + np.concatenate([b + np.zeros(N)] * 2)
    path, y = iterated(phi, E, Z)
    x, J = reached(phi, y[:, :N], y[:, N:])
    x_lo, x_hi = x[:, :N], x[:, N:]
    V, dx, dbox = np.zeros((M, Q)), np.zeros((M, 2 * N)), np.zeros((M, 2 * P))
    dC, dD, dd = np.zeros_like(C), np.zeros_like(D), np.zeros(Q)
    for i, k in itertools.product(range(M), range(Q)):
        t, g = labels[i], G[i, 1, k]
        if k == t:
            continue
        W, S = C[k] - C[t], D[k] - D[t]
        V[i, k] = np.sum(np.where(W > 0, W * x_hi[i], W * x_lo[i])) + d[k] - d[t]
        V[i, k] += np.sum(np.where(S > 0, S * hi[i], S * lo[i]))
        mean = 0.5 * (x_lo[i] + x_hi[i])  # where rows are equal
        w = g * np.where(W > 0, x_hi[i], np.where(W < 0, x_lo[i], mean))
        s = g * np.where(S > 0, hi[i], np.where(S < 0, lo[i], 0.5 * (lo[i] + hi[i])))
        dC[k], dC[t], dD[k], dD[t] = dC[k] + w, dC[t] - w, dD[k] + s, dD[t] - s
        dd[k], dd[t] = dd[k] + g, dd[t] - g
        dx[i] += g * np.concatenate([np.minimum(W, 0), np.maximum(W, 0)])
        dbox[i] += g * np.concatenate([np.minimum(S, 0), np.maximum(S, 0)])
    dE, v = np.zeros_like(E), np.zeros((M, 2 * N))
    if dense:
        for i in range(M):
            v[i] = np.linalg.solve(np.eye(2 * N) - J[i].T @ E.T, J[i].T @ dx[i])
        dE = v.T @ x
    else:
        for before in path[-2::-1]:
            y = before @ E.T + Z
            slopes = AVERAGE * reached(phi, y[:, :N], y[:, N:])[1]
            step = np.einsum("mij,mi->mj", slopes, dx)
            dE, v, dx = dE + step.T @ before, v + step, (1 - AVERAGE) * dx + step @ E
    dF, dbox = v.T @ box, dbox + v @ F
    Y0, pull = model(U)
    dU, found = pull(G[:, 0])
    signs = {}
    for key, W, whole in (("A", A, dE), ("B", B, dF)):
        r, c = W.shape
        right = whole[:r, :c] + whole[r:, c:]
        left = whole[:r, c:] + whole[r:, :c]
        g0 = found.get(key, np.zeros_like(W))
        if key == "A" and model.rank is not None:
            X, v0 = pull.forward.value, pull.solve(G[:, 0]).value
            g0 = v0.T @ X
        both = np.stack([g0 + left, np.zeros_like(W), g0 + right])
        signs[key] = np.where(W > 0, both[2], np.where(W < 0, both[0], np.median(both, axis=0)))
        if key == "A":
            signs[key] = np.where(own, both[2], signs[key])
    grads = {"B": signs["B"], "C": found["C"] + dC}
    if model.rank is None:
        grads["A"] = signs["A"]
    else:
        grads |= {"L": signs["A"] @ params["R"], "R": signs["A"].T @ params["L"]}
    if model.feedthrough:
        grads["D"] = found["D"] + dD
    if model.bias:
        grads |= {"b": found["b"] + v[:, :N].sum(0) + v[:, N:].sum(0), "d": found["d"] + dd}
    for key in grads:
        mask = model.support(key)
        grads[key] = grads[key] * (1.0 if mask is None else mask)
    least, most = layer.clip or (-np.inf, np.inf)
    dU = dU + dbox[:, :P] * (U - layer.eps >= least) + dbox[:, P:] * (U + layer.eps <= most)
    return np.stack([Y0, V], axis=1), dU, {f"model.{key}": g for key, g in grads.items()}


@pytest.mark.parametrize("dense", [False, True], ids=["unrolled", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_oracle(name, dense):
    layer, (U, labels) = layer_of(name).with_tol(1e-13), data()
    Y, pull = layer(U, labels)
    G = np.random.default_rng(1).normal(size=Y.shape)
    (dU, none), grads = pull(G)
    expected, dU2, grads2 = oracle(layer, U, labels, G, dense)
    assert none is None
    assert relative(Y, expected) < 1e-11
    assert relative(dU, dU2) < 1e-9
    assert set(grads) == set(grads2) == set(layer.params)
    for key, g in grads.items():
        assert relative(g, grads2[key]) < 1e-9, key


@pytest.mark.parametrize("name", [name for name in MODELS if "triang" not in name])
def test_gradients_are_those_of_differences(name):
    layer = layer_of(name)
    if name == "blocks":  # zeros below the blocks are kinks
        layer = layer.replace(
            model=layer.model.replace(pattern=Pattern(A=layer.params["model.A"] != 0))
        )
    report = check_pullback(layer, data())
    assert report.max_error < 1e-6
    assert set(report.errors) == {"U", *layer.params}


def test_lengths_are_inputs_that_are_not_differentiated():
    from pyidl import ImplicitRNN

    rnn = ImplicitRNN(3, 2, 4, 5, activation="tanh", rng=0)
    report = check_pullback(rnn, (np.random.default_rng(0).normal(size=(3, 5, 3)), [5, 2, 3]))
    assert report.max_error < 1e-6


# ----------------------------------------------------------------- twins broken on purpose


def _backwards(grads):
    def swapped(self, name, v, x):
        right, left = grads(self, name, v, x)[name]
        return {name: (left, right)}

    return swapped


def _unclipped(box):
    return lambda self, U: (*box(self, U)[:2], None)


BROKEN = {
    "P and Q swapped": (embedded.Embedded, "grads", _backwards),
    "the diagonal has the gradient of N": (worst_case, "rising", lambda f: lambda A, phi: 0.0 * A),
    "the ends of the domain move": (WorstCase, "_box", _unclipped),
    "lower and upper states swapped": (
        worst_case,
        "_thirds",
        lambda f: lambda x: (f(x)[1], f(x)[0], f(x)[2]),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_catches_a_broken_rule(case, monkeypatch):
    owner, name, change = BROKEN[case]
    layer, inputs = layer_of("tanh"), data()
    check_pullback(layer, inputs)
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    with pytest.raises(GradientMismatchError):
        check_pullback(layer, inputs)


def attacks(layer, u, t, rng):
    """Points of the box around one sample: corners, random ones, ascent by signs."""
    lo = np.clip(u - layer.eps, *layer.clip)
    hi = np.clip(u + layer.eps, *layer.clip)
    corners = np.array([np.where(c, hi, lo) for c in itertools.product((0, 1), repeat=P)])
    points = [*corners, *rng.uniform(lo, hi, (40, P))]
    climb = rng.uniform(lo, hi, (10, P))
    for _ in range(20):
        Y, pull = layer.model(climb)
        _, dY = losses.cross_entropy(Y, np.full(10, t))
        climb = np.clip(climb + 0.2 * layer.eps * np.sign(pull(dY)[0]), lo, hi)
        points += [*climb]
    return np.array(points)


def violations(layer, seed):
    """How far logits leave their bounds, and losses theirs, at points of the boxes."""
    U, labels = data(seed)
    Y = layer.predict(U, labels)
    rng, worst = np.random.default_rng(seed), []
    for i, t in enumerate(labels):
        found = layer.model.predict(attacks(layer, U[i], t, rng))
        worst.append(np.max(found - found[:, [t]] - Y[i, 1]))
        bound = losses.cross_entropy(Y[i : i + 1, 1], labels[i : i + 1])[0]
        attacked = [losses.cross_entropy(y[None], labels[i : i + 1])[0] for y in found]
        worst.append(max(attacked) - bound)
    return max(worst)


@pytest.mark.parametrize("name", MODELS)
def test_no_point_of_the_box_is_worse(name):
    assert violations(layer_of(name), 0) <= 1e-9


@pytest.mark.parametrize("case", ["swapped", "inwards", "diagonal"])
def test_a_broken_bound_is_caught(case, monkeypatch):
    layer = layer_of("tanh")
    before = layer.predict(*data())[:, 1]
    if case == "swapped":
        thirds = worst_case._thirds
        monkeypatch.setattr(worst_case, "_thirds", lambda x: (*thirds(x)[1::-1], thirds(x)[2]))
        assert violations(layer, 0) > 1e-3
    elif case == "inwards":
        monkeypatch.setattr(WorstCase, "_now", 0.3 * EPS)
        assert violations(layer, 0) > 1e-3
    else:  # sound, and wider
        monkeypatch.setattr(embedded, "rising", lambda A, phi=None: 0.0 * A)
        assert np.max(layer.predict(*data())[:, 1] - before) > 1e-3


# ------------------------------------------------------------------------------- zeros


def test_at_zeros_the_gradient_is_the_median_of_both_sides_and_0():
    """200 of them: the one-sided slopes are measured, and a step goes down or nowhere."""
    rng, seen, nothing = np.random.default_rng(0), 0, 0
    for seed in range(6):
        layer = layer_of("tanh", seed, clip=None).with_tol(1e-14)
        zeros = {"model.A": (N, N), "model.B": (N, P)}
        zeros = {key: rng.random(shape) < 0.45 for key, shape in zeros.items()}
        zeros["model.A"] &= ~np.eye(N, dtype=bool)
        params = {k: np.where(zeros.get(k, False), 0.0, a) for k, a in layer.params.items()}
        layer.params = params
        U, labels = data(seed)
        loss = losses.certified(0.5)

        def value(key, place, t, layer=layer, params=params, inputs=(U, labels)):
            moved = np.array(params[key])
            moved[place] += t
            layer.params = {**params, key: moved}
            return float(loss(layer.predict(*inputs), inputs[1])[0])

        Y, pull = layer(U, labels)
        _, grads = pull(loss(Y, labels)[1])
        for key, places in zeros.items():
            for place in map(tuple, np.argwhere(places)):
                middle, h = value(key, place, 0.0), 1e-6
                right = (value(key, place, h) - middle) / h
                left = (middle - value(key, place, -h)) / h
                slope = grads[key][place]
                assert right >= left - 1e-7
                assert abs(slope - np.median([left, 0.0, right])) < 1e-6
                seen, nothing = seen + 1, nothing + (slope == 0.0)
                if abs(slope) > 1e-5:
                    assert value(key, place, -1e-4 * slope / abs(slope)) < middle
    assert seen >= 200
    assert 20 <= nothing <= seen - 20  # both cases occur


def test_equal_rows_get_the_mean_of_both_sides():
    layer = layer_of("tanh", clip=None).with_tol(1e-14)
    layer.params = {**layer.params, "model.D": np.zeros((Q, P))}
    U, labels = data()
    Y, pull = layer(U, labels)
    G = np.random.default_rng(0).normal(size=Y.shape)
    slope, h = pull(G)[1]["model.D"], 1e-6

    def value(t, place):
        D = np.zeros((Q, P))
        D[place] = t
        layer.params = {**layer.params, "model.D": D}
        return np.vdot(G, layer.predict(U, labels))

    for place in np.ndindex(Q, P):
        assert abs(slope[place] - (value(h, place) - value(-h, place)) / (2 * h)) < 1e-7


def test_zeros_of_a_pattern_get_nothing():
    layer, inputs = layer_of("pattern"), data()
    Y, pull = layer(*inputs)
    assert not np.any(pull(np.ones_like(Y))[1]["model.A"][~MASK])


# ---------------------------------------------------------------------- eps 0, and scales


@pytest.mark.parametrize("name", MODELS)
def test_without_a_box_loss_and_gradient_are_the_plain_ones(name):
    layer, (U, labels) = layer_of(name, eps=0.0).with_tol(1e-14), data()
    Y, pull = layer(U, labels)
    value, dY = losses.certified(0.3)(Y, labels)
    (dU, _), grads = pull(dY)
    y, plain = layer.model(U)
    expected, dy = losses.cross_entropy(y, labels)
    dU2, grads2 = plain(dy)
    assert relative(Y[:, 1], y - y[np.arange(M), labels][:, None]) < 1e-12
    assert abs(value - expected) < 1e-12
    assert relative(dU, dU2) < 1e-9
    for key, g in grads2.items():
        inside = np.ones(g.shape, bool) if key != "A" else host(layer.model.params["A"]) != 0
        assert relative(grads[f"model.{key}"][inside], g[inside]) < 1e-9, key


@pytest.mark.parametrize(
    ("forward", "adjoint"),
    [
        (solvers.Picard(), solvers.GMRES()),
        (solvers.Anderson(), solvers.Direct()),
        (solvers.Jacobi(), solvers.Jacobi()),
        (solvers.Newton(), solvers.PeacemanRachford()),
        (solvers.PeacemanRachford(), solvers.Anderson(splitting=True)),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_of_the_model_solve_for_the_ends_too(forward, adjoint):
    """Some want products alone, others a diagonal, or the whole matrix."""
    layer = layer_of("leaky_relu")
    model = layer.model.replace(forward=forward, adjoint=adjoint)
    if isinstance(forward, (solvers.Picard, solvers.Anderson)):
        A = host(layer.params["model.A"]) * (1.0 - 0.9 * np.eye(N))
        model.params = {**model.params, "A": A}
    assert check_pullback(layer.replace(model=model), data()).max_error < 1e-6


@pytest.mark.parametrize("diagonal", [-5.0, -50.0])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_a_large_negative_diagonal_is_no_obstacle(name, diagonal):
    """It stays in M: split by sign, it would leave no solution."""
    layer = layer_of(name)
    A = host(layer.params["model.A"]) + diagonal * np.eye(N)
    layer.params = {**layer.params, "model.A": A}
    assert check_pullback(layer, data()).max_error < 1e-6
    assert violations(layer, 0) <= 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-100, -20, 20, 100])
def test_a_change_of_units_changes_nothing(power, dtype):
    layer, (U, labels) = layer_of("relu", clip=None).astype(dtype), data()
    unit = 2.0**power
    other = layer.replace(eps=layer.eps * unit)
    other.params = {
        k: a / np.array(unit, dtype) if k in ("model.B", "model.D") else a
        for k, a in layer.params.items()
    }
    Y, pull = layer(U.astype(dtype), labels)
    Y2, pull2 = other((U * unit).astype(dtype), labels)
    assert relative(Y2, Y) < 1e-4 if dtype == "float32" else 1e-10
    (dU, _), grads = pull(np.ones_like(Y))
    (dU2, _), grads2 = pull2(np.ones_like(Y))
    assert relative(dU2 * np.array(unit, dtype), dU) < (1e-3 if dtype == "float32" else 1e-9)
    assert relative(grads2["model.A"], grads["model.A"]) < (1e-3 if dtype == "float32" else 1e-9)


def test_many_classes_are_taken_some_at_a_time(monkeypatch):
    layer, inputs = layer_of("tanh"), data()
    G = np.random.default_rng(0).normal(size=(M, 2, Q))
    Y, pull = layer(*inputs)
    whole = pull(G)
    monkeypatch.setattr(worst_case, "AT_ONCE", 1)
    Y2, pull = layer(*inputs)
    parts = pull(G)
    assert relative(Y2, Y) < 1e-13
    assert all(relative(parts[1][key], g) < 1e-12 for key, g in whole[1].items())


def test_on_every_library(xp):
    layer, (U, labels) = layer_of("tanh").with_tol(1e-12), data()
    Y, pull = layer(U, labels)
    twin, to = moved(layer, xp), worst_case.backend.from_host
    Y2, pull2 = twin(to(xp, U), to(xp, labels))
    assert relative(Y2, Y) < 1e-10
    loss = losses.certified(0.4)
    value, dY = loss(Y, labels)
    value2, dY2 = loss(Y2, to(xp, labels))
    assert abs(float(value2) - float(value)) < 1e-10
    (dU, _), grads = pull(dY)
    (dU2, _), grads2 = pull2(dY2)
    assert relative(dU2, dU) < 1e-8
    assert all(relative(grads2[key], g) < 1e-8 for key, g in grads.items())
    assert metrics.certified_accuracy(Y2, to(xp, labels)) == metrics.certified_accuracy(Y, labels)


@pytest.mark.parametrize("name", ["softmax and others", "silu", "pattern", "rank"])
def test_other_activations_on_the_strict_library(name):
    layer, (U, labels) = layer_of(name), data()
    twin, to = moved(layer, array_api_strict), worst_case.backend.from_host
    Y, pull = layer(U, labels)
    Y2, pull2 = twin(to(array_api_strict, U), to(array_api_strict, labels))
    assert relative(Y2, Y) < 1e-9
    grads, grads2 = (
        f(worst_case.namespace(y).ones_like(y))[1] for f, y in ((pull, Y), (pull2, Y2))
    )
    assert all(relative(grads2[key], g) < 1e-7 for key, g in grads.items())


# ------------------------------------------------------------------------------ the door


@pytest.mark.parametrize(
    "constraint",
    [
        SpectralNorm(0.9),
        Monotone(),
        LipschitzBound(1.0),
        Unconstrained(),
        BlockTriangular((4, 4), (InfNorm(), Monotone())),
    ],
)
@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")
def test_sets_that_imply_no_bounds_are_refused(constraint):
    model = ImplicitModel(P, Q, N, constraint=constraint, rng=0)
    with pytest.raises(InputError, match="does not imply that bounds"):
        WorstCase(model, 0.1)


def test_a_softmax_needs_a_smaller_radius():
    """A matrix at the radius, with equal signs, moves the ends by the root of its width."""
    options = {"activation": activations.softmax, "rng": 0}
    with pytest.raises(InputError, match="kappa must be below"):
        WorstCase(ImplicitModel(P, Q, 9, constraint=InfNorm(0.34), **options), 0.1)
    WorstCase(ImplicitModel(P, Q, 9, constraint=InfNorm(0.33), **options), 0.1)
    A = np.zeros((9, 9))
    A[0] = 0.33 * 2 / 3  # a norm of 0.66, so that the radius is 0.33
    assert InfNorm(0.331).contains({"A": A}, activations.softmax)
    assert 0.5 * np.abs(A).sum(axis=1).max() < 1.0


def test_what_the_layer_refuses():
    model, (U, labels) = ImplicitModel(P, Q, N, rng=0), data()
    own = activations.Activation("own", np.tanh, lambda z: 1 - np.tanh(z) ** 2, lipschitz=1.0)
    for wrong, match in (
        ({"model": worst_case}, "model is"),
        ({"model": model.replace(activation=own)}, "range of own"),
        *(({"eps": eps}, "eps is") for eps in (-0.1, np.inf, np.nan, "a", lambda k: -1.0)),
        *(({"clip": clip}, "clip is") for clip in ((1, 0), (0,), 1.0, (0, np.nan), "ab")),
    ):
        with pytest.raises(InputError, match=match):
            WorstCase(**{"model": model, "eps": 0.1, **wrong})
    layer = WorstCase(model, 0.1, clip=(0, 1))
    for inputs, match in (
        ((U, labels), "outside of clip"),
        ((abs(U),), "labels are missing"),
        ((abs(U), labels[:-1]), "labels has shape"),
        ((abs(U), labels + Q), "labels lie between"),
        ((abs(U), labels + 0.5), "labels have dtype"),
        ((abs(U)[:, 1:], labels), "U has shape"),
    ):
        for call in (layer, layer.predict):
            with pytest.raises(InputError, match=match):
                call(*inputs)
    from scipy.sparse import csr_array

    with pytest.raises(InputError, match="sparse"):
        layer(csr_array(abs(U)), labels)


def test_the_loss_refuses_and_weighs():
    layer, (U, labels) = layer_of("tanh"), data()
    Y, loss = layer.predict(U, labels), losses.certified(0.25)
    w = np.array([0.0, 1, 2, 3, 4, 5])
    value, dY = loss(Y, labels, weights=w)
    parts = [losses.cross_entropy(Y[:, i], labels, weights=w) for i in (0, 1)]
    assert abs(value - 0.75 * parts[0][0] - 0.25 * parts[1][0]) < 1e-12
    assert relative(dY[:, 0], 0.75 * parts[0][1]) < 1e-12
    assert relative(dY[:, 1], 0.25 * parts[1][1]) < 1e-12
    chances = np.eye(Q)[labels]
    assert abs(loss(Y, chances)[0] - loss(Y, labels)[0]) < 1e-12
    for mix in (-0.1, 1.1, "a", None, lambda k: 2.0):
        with pytest.raises(InputError, match="mix is"):
            losses.certified(mix)
    for wrong, match in (
        ((Y[:, 0], labels), "m, 2, classes"),
        ((Y, labels[:-1]), "target has shape"),
        ((Y, labels + Q), "labels lie"),
    ):
        with pytest.raises(InputError, match=match):
            loss(*wrong)
    with pytest.raises(InputError, match="weights has shape"):
        loss(Y, labels, weights=w[:-1])
    for metric in (metrics.clean_accuracy, metrics.certified_accuracy):
        with pytest.raises(InputError, match="m, 2, classes"):
            metric(Y[:, 0], labels)


def test_ramps():
    ramp = optim.Ramp(0.2, 0.7, 10)
    assert [ramp(k) for k in (0, 10, 10**15)] == [0.2, 0.7, 0.7]
    assert np.allclose([ramp(k) for k in range(11)], np.linspace(0.2, 0.7, 11))
    for wrong in ((-1, 1, 5), (0, np.inf, 5), (0, 1, 0), (0, 1, 2.5), ("a", 1, 5)):
        with pytest.raises(InputError):
            optim.Ramp(*wrong)
