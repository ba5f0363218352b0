"""Three oracles for every gradient.

Central differences, the unrolled iteration differentiated by hand, a dense adjoint
solve.
"""

import numpy as np
import pytest
from helpers import ONE_LIBRARY, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pyidl import (
    ImplicitModel,
    InfNorm,
    Linear,
    Pattern,
    Pointwise,
    Sequential,
    activations,
    solvers,
)
from pyidl.activations import Activation, Blocks, VectorActivation
from pyidl.arrays.backend import from_host, namespace
from pyidl.testing import check_pullback

P, Q, N, M = 4, 3, 12, 7


def length(z):
    return (1 + namespace(z).sum(z * z, axis=-1, keepdims=True)) ** 0.5


OWN_VECTOR = VectorActivation(  # y = z / r with r^2 = 1 + |z|^2: J = (I - y y^T) / r
    "normalised",
    lambda z: z / length(z),
    lambda z, w: (
        (w - z * namespace(z).sum(z * w, axis=-1, keepdims=True) / length(z) ** 2) / length(z)
    ),
    lipschitz=1.0,
)
VECTOR = {  # written anew, and without what a complex step would not pass through
    "softmax": lambda z: np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True),
    "layer_norm(1.0)": lambda z: (
        centred(z) / np.sqrt(1 + np.mean(centred(z) ** 2, axis=-1, keepdims=True))
    ),
    "layer_norm(0.5)": lambda z: (
        centred(z) / np.sqrt(0.5 + np.mean(centred(z) ** 2, axis=-1, keepdims=True))
    ),
    "normalised": lambda z: z / np.sqrt(1 + np.sum(z * z, axis=-1, keepdims=True)),
}


def centred(z):
    return z - np.mean(z, axis=-1, keepdims=True)


def jacobian(activation, z):
    """Oracle: the Jacobian of phi for every row of z, (m, n, n).

    By a complex step where phi acts on several components together.
    """
    m, n = z.shape
    if isinstance(activation, Blocks):
        J = np.zeros((m, n, n))
        for b in activation.blocks:
            J[:, b.start : b.stop, b.start : b.stop] = jacobian(
                b.activation, z[:, b.start : b.stop]
            )
        return J
    if activation.name not in VECTOR:
        return activation.dphi(z)[:, :, None] * np.eye(n)
    return np.stack(
        [VECTOR[activation.name](z + 1e-30j * e).imag / 1e-30 for e in np.eye(n)], axis=2
    )


OWN = Activation(
    "own", lambda z: z / (1 + z * z) ** 0.5, lambda z: (1 + z * z) ** -1.5, lipschitz=1.0
)

MASK = np.random.default_rng(0).random((N, N)) < 0.12  # cycles of several sizes, in no order
MASK[3, 3] = MASK[5, 6] = MASK[6, 5] = True

OPTIONS = {
    "default": {},
    "feed-forward": {"pattern": Pattern.feed_forward(P, 5, 4, 3, Q)},
    "one hidden layer": {"pattern": Pattern.feed_forward(P, N, Q), "feedthrough": False},
    "scattered pattern": {
        "pattern": Pattern(
            A=MASK,
            B=np.arange(N * P).reshape(N, P) % 3 > 0,
            C=np.arange(Q * N).reshape(Q, N) % 2 > 0,
        )
    },
    "pattern of B and D alone": {
        "pattern": Pattern(B=np.arange(N * P).reshape(N, P) % 3 > 0, D=np.eye(Q, P) > 0)
    },
    "pattern and rank": {"rank": 2, "pattern": Pattern(C=np.arange(Q * N).reshape(Q, N) % 2 > 0)},
    "jacobi": {"forward": solvers.Jacobi(), "adjoint": solvers.Jacobi()},
    "anderson": {"forward": solvers.Anderson(), "adjoint": solvers.Anderson(splitting=True)},
    "peaceman-rachford": {
        "forward": solvers.PeacemanRachford(),
        "adjoint": solvers.PeacemanRachford(alpha=0.5),
    },
    "forward-backward": {
        "forward": solvers.ForwardBackward(alpha=0.8),
        "adjoint": solvers.PeacemanRachford(),
        "activation": activations.leaky_relu(0.3),
        "constraint": InfNorm(0.4),
    },
    "newton and gmres": {"forward": solvers.Newton(), "adjoint": solvers.GMRES()},
    "no bias": {"bias": False},
    "no feedthrough": {"feedthrough": False},
    "neither": {"bias": False, "feedthrough": False},
    "rank 1": {"rank": 1},
    "rank 3": {"rank": 3},
    "full rank factors": {"rank": N, "bias": False},
    "small ball": {"constraint": InfNorm(0.3)},
    "own activation": {"activation": OWN},
    "blocks": {
        "activation": Blocks((activations.relu, 5), (activations.tanh, 4), (activations.silu, 3))
    },
    "softmax": {"activation": activations.softmax},
    "relu and softmax": {
        "activation": Blocks((activations.relu, 7), (activations.softmax, 5)),
        "constraint": InfNorm(0.3),
    },
    "layer norm and tanh": {
        "activation": Blocks(
            (activations.layer_norm(0.5), 4),
            (activations.tanh, 3),
            (activations.softmax, 2),
            (activations.layer_norm(), 3),
        ),
        "constraint": InfNorm(0.3),
        "adjoint": solvers.Direct(),
    },
    "rank and own vector activation": {
        "rank": 2,
        "activation": OWN_VECTOR,
        "constraint": InfNorm(0.3),
        "adjoint": solvers.GMRES(),
    },
    "pattern and softmax": {
        "pattern": Pattern(A=MASK),
        "activation": Blocks((activations.softmax, 5), (activations.relu, 7)),
        "constraint": InfNorm(0.3),
        "forward": solvers.Anderson(),
    },
    "rank and blocks": {
        "rank": 2,
        "activation": Blocks((activations.gelu, 6), (activations.sin, 6)),
    },
    "damped": {"forward": solvers.Picard(damping=0.4)},
    "direct adjoint": {"adjoint": solvers.Direct()},
    "picard adjoint": {"adjoint": solvers.Picard(damping=0.2)},
    **{a.name: {"activation": a} for a in map(activations.named, activations.builtin.BUILT_IN)},
    "leaky_relu": {"activation": activations.leaky_relu(0.2)},
}


def build(option, seed=0):
    return random_model(ImplicitModel, P, Q, N, seed=seed, dtype="float64", **OPTIONS[option])


def inputs(seed=0, m=M):
    return np.random.default_rng(100 + seed).normal(size=(m, P))


def matrix(params):
    return params["A"] if "A" in params else params["L"] @ params["R"].T


def by_dense_solve(model, U, G):
    """Oracle: ``(I - J^T A^T) v = J^T C^T g`` sample by sample.

    A, X and slopes as dense matrices, all in NumPy.
    """
    p = {key: host(a) for key, a in model.params.items()}
    A, phi = matrix(p), model.activation.phi
    Z = U @ p["B"].T + p.get("b", 0.0)
    X = np.zeros((len(U), N))
    for _ in range(20000):
        X, old = phi(X @ A.T + Z), X
        if np.max(np.abs(X - old)) <= 1e-15:
            break
    J = jacobian(model.activation, X @ A.T + Z)
    V = np.stack(
        [np.linalg.solve(np.eye(N) - j.T @ A.T, j.T @ (p["C"].T @ g)) for j, g in zip(J, G)]
    )
    return confined(model, assemble(p, U, X, V, G))


def confined(model, grads):
    """Gradients outside a pattern are not asked for."""
    masks = {key: getattr(model.pattern, key, None) for key in grads}
    return {key: g if masks[key] is None else g * masks[key] for key, g in grads.items()}


def by_unrolling(model, U, G):
    """Oracle: x_0 = 0, x_{k+1} = phi(A x_k + z) until nothing moves, twice as long.

    And the chain rule through every step.
    """
    p = {key: host(a) for key, a in model.params.items()}
    A, phi = matrix(p), model.activation.phi
    Z = U @ p["B"].T + p.get("b", 0.0)
    states, slopes = [np.zeros((len(U), N))], []
    while len(states) < 3 or np.max(np.abs(states[-1] - states[len(states) // 2])) > 1e-15:
        pre = states[-1] @ A.T + Z
        states.append(phi(pre))
        slopes.append(jacobian(model.activation, pre))
    grad_A, grad_Z, gX = np.zeros((N, N)), np.zeros_like(Z), G @ p["C"]
    for k in range(len(slopes), 0, -1):
        v = np.einsum("mij,mi->mj", slopes[k - 1], gX)
        grad_A += v.T @ states[k - 1]
        grad_Z += v
        gX = v @ A
    grads = assemble(p, U, states[-1], grad_Z, G)
    return confined(
        model,
        {
            **grads,
            **({"A": grad_A} if "A" in p else {"L": grad_A @ p["R"], "R": grad_A.T @ p["L"]}),
        },
    )


def assemble(p, U, X, V, G):
    grad_A = V.T @ X
    grads = {"U": V @ p["B"], "B": V.T @ U, "C": G.T @ X}
    grads |= {"A": grad_A} if "A" in p else {"L": grad_A @ p["R"], "R": grad_A.T @ p["L"]}
    if "D" in p:
        grads |= {"D": G.T @ U, "U": grads["U"] + G @ p["D"]}
    if "b" in p:
        grads |= {"b": V.sum(axis=0), "d": G.sum(axis=0)}
    return grads


def by_pyidl(model, U, G, xp):
    exact = moved(model, xp).with_tol(1e-14)
    _, pull = exact(from_host(xp, U))
    dU, grads = pull(from_host(xp, G))
    assert set(grads) == set(model.params)
    return {"U": dU, **grads}


@pytest.mark.parametrize("option", OPTIONS)
def test_against_a_dense_adjoint_solve(option, xp):
    model, U = build(option), inputs()
    G = np.random.default_rng(5).normal(size=(M, Q))
    oracle = by_dense_solve(model, U, G)
    for key, gradient in by_pyidl(model, U, G, xp).items():
        assert relative(gradient, oracle[key]) < 1e-10, key


@pytest.mark.parametrize("option", OPTIONS)
def test_against_the_unrolled_iteration(option):
    model, U = build(option, seed=1), inputs(1)
    G = np.random.default_rng(6).normal(size=(M, Q))
    oracle = by_unrolling(model, U, G)
    for key, gradient in by_pyidl(model, U, G, np).items():
        assert relative(gradient, oracle[key]) < 1e-10, key


@ONE_LIBRARY
@pytest.mark.parametrize("option", OPTIONS)
def test_against_central_differences(option, xp):
    model = moved(build(option, seed=2), xp)
    report = check_pullback(model, from_host(xp, inputs(2)), rng=3, rtol=1e-6)
    assert set(report.errors) == {
        "U",
        *(key for key in model.params if (s := model.support(key)) is None or s.any()),
    }
    assert report.max_error < 1e-6


@pytest.mark.parametrize("option", OPTIONS)
def test_sparse_inputs_against_three_oracles(option):
    """Compressed rows; central differences along a random direction of each parameter."""
    model, rng = build(option, seed=2), np.random.default_rng(7)
    U = np.where(rng.random((M, P)) < 0.4, inputs(2), 0.0)
    U[3], U[:, 1], G = 0.0, 0.0, rng.normal(size=(M, Q))
    S = csr_array(U)
    exact = model.with_tol(1e-14)
    dU, grads = exact(S)[1](G)
    by_solve, by_steps = by_dense_solve(model, U, G), by_unrolling(model, U, G)
    for key, gradient in {"U": dU, **grads}.items():
        assert type(gradient) is np.ndarray
        assert relative(gradient, by_solve[key]) < 1e-10, key
        assert relative(gradient, by_steps[key]) < 1e-10, key
    for key, gradient in grads.items():
        way = rng.normal(size=gradient.shape) * (gradient != 0)  # inside a pattern

        def moved_by(t, key=key, way=way):
            twin = exact.replace()
            twin.params = {**model.params, key: model.params[key] + t * way}
            return np.sum(G * twin.predict(S))

        difference = (moved_by(1e-6) - moved_by(-1e-6)) / 2e-6
        assert difference == pytest.approx(np.sum(gradient * way), rel=1e-6, abs=1e-6), key


def test_a_stiff_model_on_the_edge_of_its_ball():
    model = random_model(ImplicitModel, P, Q, N, seed=3, spread=5.0, dtype="float64")
    assert model.certificate().contraction == pytest.approx(0.99, abs=1e-6)
    assert check_pullback(model, inputs(3)).max_error < 1e-6


LAYERS = {
    "linear": lambda: random_model(Linear, P, Q, dtype="float64"),
    "linear without bias": lambda: random_model(Linear, P, Q, bias=False, dtype="float64"),
    "activation": lambda: Pointwise(activations.gelu),
    "mlp": lambda: Sequential(Linear(P, 9, rng=0), activations.relu, Linear(9, Q, rng=1)),
    "implicit first": lambda: Sequential(
        random_model(ImplicitModel, P, 5, 6), activations.tanh, Linear(5, Q, rng=1)
    ),
    "implicit between": lambda: Sequential(
        Linear(P, 5, rng=0), random_model(ImplicitModel, 5, 4, 8, rank=2), Linear(4, Q, rng=2)
    ),
    "implicit last": lambda: Sequential(
        Linear(P, 5, rng=0), activations.softplus, random_model(ImplicitModel, 5, Q, 6)
    ),
    "two implicit": lambda: Sequential(
        random_model(ImplicitModel, P, 5, 6), random_model(ImplicitModel, 5, Q, 7, seed=9)
    ),
    "nested": lambda: Sequential(
        Sequential(Linear(P, 5, rng=0), activations.silu),
        Sequential(random_model(ImplicitModel, 5, Q, 6)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_and_combination(name, xp):
    layer = LAYERS[name]()
    U = inputs(4)
    if layer.params:
        layer = layer if xp is np else _moved_deep(layer, xp)
    assert check_pullback(layer, from_host(xp, U)).max_error < 1e-6
    # dot test against the derivative of the map: <G, J d> = <J^T G, d>, J d by a
    # fourth-order difference of smooth layers
    assert "implicit" in name or "relu" in repr(layer) or _dot_test(layer, from_host(xp, U)) < 1e-9


def _moved_deep(layer, xp):
    twin = layer.replace()
    twin.params = {key: from_host(xp, np.array(host(a))) for key, a in layer.params.items()}
    return twin


def _dot_test(layer, U):
    layer = layer.astype("float64").with_tol(1e-14)
    rng = np.random.default_rng(0)
    d, h = rng.normal(size=U.shape), 1e-3
    Y, pull = layer(U)
    G = rng.normal(size=Y.shape)

    def at(t):
        return host(layer.predict(U + t * from_host(_xp(U), d)))

    Jd = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    dU = host(pull(from_host(_xp(U), G))[0])
    return abs(np.sum(G * Jd) - np.sum(dU * d)) / np.sum(np.abs(G * Jd))


def _xp(a):
    from pyidl.arrays.backend import namespace

    return namespace(a)


def test_a_sequence_goes_through_linear():
    layer = random_model(Linear, P, Q, dtype="float64")
    U = np.random.default_rng(0).normal(size=(3, 5, P))
    assert check_pullback(layer, U).max_error < 1e-6


@given(st.integers(-8, 8), st.sampled_from(["float32", "float64"]), st.integers(0, 10))
def test_the_pullback_is_homogeneous(exponent, dtype, seed):
    """pull(c dY) = c pull(dY), which an absolute tolerance of the adjoint solve would fail."""
    model = random_model(ImplicitModel, P, Q, N, seed=seed, dtype=dtype, spread=2.0)
    c, G = 10.0**exponent, np.random.default_rng(seed).normal(size=(M, Q)).astype(dtype)
    _, pull = model(inputs(seed))
    dU, grads = pull(G)
    dU_c, grads_c = pull(np.asarray(c, dtype) * G)
    rtol = 2e-4 if dtype == "float32" else 1e-9  # 2 tol / (1 - kappa)
    assert relative(dU_c / c, dU) < rtol
    for key in grads:
        assert relative(grads_c[key] / c, grads[key]) < rtol, key


def test_an_absolute_tolerance_would_fail_that_property():
    """The twin that is broken on purpose.

    Stopped by an absolute residual, small cotangents get a wrong gradient.
    """
    model = random_model(ImplicitModel, P, Q, N, dtype="float64", spread=2.0)
    _, pull = model(inputs())
    G = np.random.default_rng(0).normal(size=(M, N))

    def absolute(g, tol=1e-6):
        problem = pull.equilibrium.cell.linearize(pull.forward, inputs(), g)
        v = np.zeros_like(g)
        while np.max(np.abs((image := problem.f(v)) - v)) > tol:
            v = image
        return v

    assert relative(absolute(1e-8 * G) / 1e-8, absolute(G)) > 0.1
    assert (
        relative(pull.equilibrium.solve(1e-8 * G).value / 1e-8, pull.equilibrium.solve(G).value)
        < 1e-9
    )


def test_a_zero_cotangent_gives_exact_zeros():
    model = random_model(ImplicitModel, P, Q, N)
    _, pull = model(inputs())
    dU, grads = pull(np.zeros((M, Q)))
    assert not np.any(dU)
    assert all(not np.any(g) for g in grads.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float32_gradients_are_those_of_float64(dtype):
    exact = random_model(ImplicitModel, P, Q, N, dtype="float64")
    G = np.random.default_rng(0).normal(size=(M, Q))
    reference = by_pyidl(exact, inputs(), G, np)
    _, pull = exact.astype(dtype)(inputs())
    dU, grads = pull(G)
    for key, gradient in {"U": dU, **grads}.items():
        assert gradient.dtype == dtype
        assert relative(gradient, reference[key]) < (1e-4 if dtype == "float32" else 1e-9)
