"""One formula for every wiring: values, structure, gradients, refusals, files."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import moved, random_model, relative
from wirings import after, block_diagonal, exact, gain_by_hand, part, random_wiring, spectral_radius

import pyidl
from pyidl import ImplicitModel, Linear, activations, optim
from pyidl.arrays.backend import from_host, namespace
from pyidl.compose import (
    Interconnection,
    add,
    affine_after,
    affine_before,
    cascade,
    concatenate,
    feedback,
    interconnect,
    parallel,
)
from pyidl.errors import DeviceMismatchError, InputError
from pyidl.matrices.pattern import Pattern
from pyidl.matrices.tiled import Tiled
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    LipschitzBound,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    Unconstrained,
)

GOAL = {"float64": 1e-12, "float32": 1e-6}


# -------------------------------------------------------------------------------- values


def of_cascade(rng, dtype):
    parts = [
        part(rng, 3, 2, dtype=dtype),
        part(rng, 2, 4, dtype=dtype),
        part(rng, 4, 1, dtype=dtype),
    ]
    count = int(rng.integers(1, 4))

    def by_hand(U):
        for model in parts[:count]:
            U = after(model, U)
        return U

    return cascade(*parts[:count]), by_hand


def of_parallel(rng, dtype):
    one, two = part(rng, 1, 2, dtype=dtype), part(rng, 2, 1, dtype=dtype)
    return parallel(one, two), lambda U: np.hstack([after(one, U[:, :1]), after(two, U[:, 1:])])


def of_concatenate(rng, dtype):
    one, two = part(rng, 3, 2, dtype=dtype), part(rng, 3, 1, dtype=dtype)
    return concatenate(one, two), lambda U: np.hstack([after(one, U), after(two, U)])


def of_add(rng, dtype):
    models = [part(rng, 3, 2, dtype=dtype) for _ in range(3)]
    return add(*models), lambda U: sum(after(m, U) for m in models)


def of_affine(rng, dtype):
    model, P, c = part(rng, 2, 3, dtype=dtype), rng.normal(size=(2, 3)), rng.normal(size=2)
    Q, e = rng.normal(size=(2, 3)), rng.normal(size=2)
    whole = affine_after(affine_before(model, P, c), Q, e)
    return whole, lambda U: after(model, U @ P.T + c) @ Q.T + e


def of_feedback(rng, dtype):
    model = part(rng, 3, 2, dtype=dtype)
    K = rng.normal(size=(3, 2))
    K *= 0.5 / spectral_radius(gain_by_hand(model) @ np.abs(K))
    whole = feedback(model, K)
    return whole, lambda U: after(model, U + after(whole, U) @ K.T)


def of_residual(rng, dtype):
    model = part(rng, 3, 3, dtype=dtype)
    whole = interconnect([model], direct=np.eye(3))
    return whole, lambda U: U + after(model, U)


def of_nested(rng, dtype):
    inner, by_hand = of_feedback(rng, dtype)
    outer, last = part(rng, 2, 2, dtype=dtype), part(rng, 3, 2, dtype=dtype)
    whole = add(cascade(inner, outer), last)
    return whole, lambda U: after(outer, by_hand(U)) + after(last, U)


def of_anything(rng, dtype, keep=None, loops=True):
    """All outputs are read, so that the wiring itself says what the parts are given."""
    parts = [part(rng, p, q, dtype=dtype) for p, q in ((2, 1), (1, 2), (2, 2))]
    wiring = random_wiring(rng, parts, loops=loops) | {"outputs": np.eye(5)}
    wiring |= {"direct": np.zeros((5, 2)), "shift": np.zeros(5)}
    E = np.hstack([wiring["inputs"], np.zeros((5, 1))])
    whole = interconnect(parts, **wiring | {"inputs": E, "direct": np.zeros((5, 3))}, keep=keep)

    def by_hand(U):
        W = after(whole, U) @ wiring["loop"].T + U @ E.T + wiring["offset"]
        return np.hstack(
            [after(m, W[:, a:b]) for m, a, b in zip(parts, (0, 2, 3), (2, 3, 5), strict=True)]
        )

    return whole, by_hand


KINDS = {
    "cascade": of_cascade,
    "parallel": of_parallel,
    "concatenate": of_concatenate,
    "add": of_add,
    "affine": of_affine,
    "feedback": of_feedback,
    "residual": of_residual,
    "nested": of_nested,
    "anything": of_anything,
    "kept": lambda rng, dtype: of_anything(rng, dtype, keep=True),
    "kept, no loop": lambda rng, dtype: of_anything(rng, dtype, keep=True, loops=False),
}


def errors_of(kind, dtype, count):
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        whole, by_hand = KINDS[kind](rng, dtype)
        U = rng.normal(size=(4, 3))
        assert whole.dtype == dtype
        found.append(relative(after(whole, U), by_hand(U)))
    return found


@pytest.mark.parametrize("dtype", GOAL)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_parts_one_after_the_other(kind, dtype):
    assert max(errors_of(kind, dtype, 4)) < GOAL[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", GOAL)
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_of_each_kind(kind, dtype):
    assert max(errors_of(kind, dtype, 200)) < GOAL[dtype]


@pytest.mark.parametrize("dropped", ["D of the first", "d of the first", "b of the second"])
def test_the_measure_notices_a_missing_term(dropped):
    rng = np.random.default_rng(0)
    always = {"bias": True, "feedthrough": True, "rank": None}
    first, second = part(rng, 3, 2, **always), part(rng, 2, 2, **always)
    U, poor = rng.normal(size=(4, 3)), {"first": first.replace(), "second": second.replace()}
    name, of = dropped[0], dropped.split()[-1]
    poor[of].params = {**poor[of].params, name: 0 * poor[of].params[name]}
    whole = cascade(poor["first"], poor["second"])
    assert relative(after(whole, U), after(second, after(first, U))) > 1e-3


def test_the_table_of_a_cascade():
    rng = np.random.default_rng(1)
    always = {"bias": True, "feedthrough": True, "rank": None}
    one, two = part(rng, 3, 2, **always), part(rng, 2, 4, **always)
    M1, M2 = one.params, two.params
    wiring = {"loop": np.eye(5, 6, -3), "inputs": np.eye(5, 3), "outputs": np.eye(4, 6, 2)}
    found = interconnect([one, two], **wiring, keep=False).params
    zero = np.zeros((one.hidden_dim, two.hidden_dim))
    wanted = {
        "A": np.block([[M2["A"], M2["B"] @ M1["C"]], [zero, M1["A"]]]),
        "B": np.vstack([M2["B"] @ M1["D"], M1["B"]]),
        "b": np.concatenate([M2["B"] @ M1["d"] + M2["b"], M1["b"]]),
        "C": np.hstack([M2["C"], M2["D"] @ M1["C"]]),
        "D": M2["D"] @ M1["D"],
        "d": M2["D"] @ M1["d"] + M2["d"],
    }
    for key, a in wanted.items():
        np.testing.assert_allclose(found[key], a, rtol=1e-15, atol=1e-15)
    assert not found["A"][two.hidden_dim :, : two.hidden_dim].any()


def test_kept_joints_change_nothing():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        parts = [part(rng, p, q) for p, q in ((2, 1), (1, 2), (2, 2))]
        wiring, U = random_wiring(rng, parts), rng.normal(size=(4, 2))
        out, kept = (interconnect(parts, **wiring, keep=keep) for keep in (False, True))
        assert kept.hidden_dim > out.hidden_dim
        assert relative(after(kept, U), after(out, U)) < 1e-12


# ----------------------------------------------------------------------------- structure


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_in_any_order_give_a_triangle(order):
    """A chain of three, listed in any order; what is solved last stands first."""
    rng = np.random.default_rng(0)
    chain = [part(rng, 2, 2, n=n) for n in (2, 3, 4)]
    place = {i: order.index(i) for i in range(3)}
    K, E = np.zeros((6, 6)), np.zeros((6, 2))
    for i in range(2):
        a, b = 2 * place[i + 1], 2 * place[i]
        K[a : a + 2, b : b + 2] = np.eye(2)
    E[2 * place[0] : 2 * place[0] + 2] = np.eye(2)
    F = np.eye(6)[2 * place[2] : 2 * place[2] + 2]
    whole = interconnect([chain[i] for i in order], loop=K, inputs=E, outputs=F, keep=False)
    assert whole.constraint == BlockTriangular((4, 3, 2), InfNorm(0.7))
    wiring = {"loop": np.eye(6, 6, -2), "inputs": np.eye(6, 2), "outputs": np.eye(2, 6, 4)}
    in_order = interconnect(chain, **wiring, keep=False).params
    for key, a in whole.params.items():
        np.testing.assert_allclose(a, in_order[key], rtol=1e-15, atol=1e-15)
    assert whole.constraint.contains(whole.params, whole.activation)
    U = rng.normal(size=(4, 2))
    assert relative(after(whole, U), after(chain[2], after(chain[1], after(chain[0], U)))) < 1e-12


def test_parts_on_one_loop_stand_side_by_side():
    rng = np.random.default_rng(0)
    parts = [part(rng, 1, 1, n=n, rank=None) for n in (2, 3, 4, 5)]
    K = np.zeros((4, 4))
    K[1, 0] = K[3, 2] = 1.0  # 0 -> 1 <-> 2 -> 3
    K[1, 2] = K[2, 1] = 1e-3
    whole = Interconnection(parts, loop=K, keep=False).model()
    sets = (InfNorm(0.7), PerronFrobenius(), InfNorm(0.7))
    assert whole.constraint == BlockTriangular((5, 7, 2), sets)
    K[1, 2] = K[2, 1] = 1e3
    whole = Interconnection(parts, loop=K, keep=False).model()
    assert whole.constraint.inner[1] == Unconstrained()
    assert not whole.certificate().proven


def test_solvers_use_the_blocks():
    parts = [ImplicitModel(5, 5, 60, rng=i) for i in (0, 1)]
    K = np.kron([[0, 0], [1, 0]], np.eye(5))
    whole = Interconnection(parts, loop=K, keep=False).model()
    assert type(whole.maps["A"]) is Tiled
    assert whole.maps["A"].row_groups.sizes == (60, 60)
    layers = [ImplicitModel(99, 99, 99, constraint=StrictlyTriangular(), rng=i) for i in (0, 1)]
    for layer in layers:
        layer.params = {**layer.params, "A": 0 * layer.params["A"]}
    whole = cascade(*layers)
    solution = whole.equilibrium(np.ones((3, 99)))
    assert solution.method == "Auto(Substitution(2 groups, 0 with cycles))"
    assert solution.n_iter.max() == 1
    assert whole.certificate().contraction == 0


def test_a_thin_joint_is_kept_and_a_wide_one_is_not():
    thin = [random_model(ImplicitModel, 2, 2, 30, seed=i) for i in (0, 1)]
    wide = [random_model(ImplicitModel, 30, 30, 30, seed=i) for i in (0, 1)]
    assert cascade(*thin).hidden_dim == 62
    assert cascade(*wide).hidden_dim == 60
    assert cascade(*thin).params["A"][:30, 32:].any() == np.False_


def stream(depth, width):
    """``h -> h + W2 relu(W1 h)``, again and again."""
    made = []
    for i in range(depth):
        model = random_model(
            ImplicitModel, width, width, width, seed=i, constraint=StrictlyTriangular()
        )
        model.params = {**model.params, "A": 0 * model.params["A"], "D": np.eye(width)}
        made.append(model)
    return made


def test_a_residual_stream_is_kept():
    parts = stream(8, 16)
    n, w = 8 * 16, 16
    wiring = {
        "loop": np.eye(n, n, -w),
        "inputs": np.eye(n, w),
        "outputs": np.eye(w, n, n - w),
    }
    counts = {
        keep: np.count_nonzero(Interconnection(parts, **wiring, keep=keep).model().params["A"])
        for keep in (False, True, None)
    }
    assert counts[False] == 8 * 7 // 2 * w * w  # W1 W2 of every pair
    assert counts[None] == counts[True] == (2 * 7 * w + 6) * w
    U = np.random.default_rng(0).normal(size=(3, w))
    H = U
    for model in parts:
        H = after(model, H)
    assert relative(after(cascade(*parts), U), H) < 1e-6


def test_patterns_are_carried_over_and_gradients_confined():
    rng = np.random.default_rng(0)
    mask = Pattern(A=np.triu(np.ones((4, 4), bool)), B=np.tri(4, 2, dtype=bool))
    one = part(rng, 2, 2, n=4, pattern=mask, rank=None)
    two = part(rng, 2, 2, n=3, rank=None)
    K = np.kron([[0, 0], [1, 0]], np.eye(2))
    whole = Interconnection((one, two), loop=K)
    model = whole.model()
    assert not model.pattern.A[3:, :3].any()
    np.testing.assert_array_equal(model.pattern.A[-4:, -4:], mask.A)
    of_one, _ = whole.gradients(model(rng.normal(size=(3, 4)))[1](np.ones((3, 4)))[1])
    assert of_one["A"].any()
    assert not of_one["A"][~mask.A].any()
    assert not of_one["B"][~mask.B].any()
    spectral = part(rng, 2, 2, constraint=SpectralNorm(0.5), rank=None)
    free = Interconnection((one, spectral), loop=K).model().pattern
    assert free.A is None
    assert free.B is not None


def test_options_come_from_the_parts():
    plain = {"bias": False, "feedthrough": False, "rank": None, "activation": "tanh"}
    rng = np.random.default_rng(0)
    one, two = part(rng, 2, 2, sparse_below=0.1, **plain), part(rng, 2, 2, **plain)
    whole = cascade(one, two)
    assert (whole.bias, whole.feedthrough, whole.sparse_below) == (False, False, 0.1)
    assert add(one, two).activation is activations.tanh
    assert affine_before(one, np.eye(2), np.ones(2)).bias
    zero = part(rng, 2, 2, rank=None, feedthrough=True)
    zero.params = {**zero.params, "D": np.zeros((2, 2))}
    assert affine_after(zero, np.eye(2)).feedthrough  # it may be learnt
    lipschitz = part(rng, 2, 2, rank=None, constraint=LipschitzBound(1.0), activation="relu")
    assert affine_after(lipschitz, np.eye(2)).constraint in (PerronFrobenius(), Unconstrained())
    assert affine_after(one, np.eye(2)).constraint == InfNorm(0.7)
    own = Interconnection((one, two), constraint=PerronFrobenius(0.9)).model()
    assert own.constraint == PerronFrobenius(0.9)


def test_vectors_are_built_too():
    rng = np.random.default_rng(0)
    one = part(rng, 2, 2, n=3, rank=None, activation=activations.softmax, constraint=InfNorm(0.3))
    two = part(rng, 2, 2, n=3, rank=None, activation=activations.softmax, constraint=InfNorm(0.3))
    U = rng.normal(size=(4, 2))
    whole = cascade(one, two)
    assert whole.activation.vector_blocks(whole.hidden_dim)[-1] == (
        whole.hidden_dim - 3,
        whole.hidden_dim,
    )
    assert relative(after(whole, U), after(two, after(one, U))) < 1e-12


def test_it_stays_with_its_library(xp):
    rng = np.random.default_rng(0)
    hosts = [part(rng, 2, 2, dtype="float32") for _ in range(2)]
    parts, K = [moved(m, xp) for m in hosts], np.kron([[0, 0.05], [1, 0]], np.eye(2))
    U = rng.normal(size=(3, 4)).astype(np.float32)
    whole = Interconnection(parts, loop=from_host(xp, K))
    Y, pull = whole.model()(from_host(xp, U))
    assert namespace(Y) is xp
    found = whole.gradients(pull(Y)[1])
    wanted_Y, wanted = Interconnection(hosts, loop=K).model()(U)
    assert relative(Y, wanted_Y) < 1e-5
    for mine, theirs in zip(
        found, Interconnection(hosts, loop=K).gradients(wanted(wanted_Y)[1]), strict=True
    ):
        assert all(namespace(a) is xp for a in mine.values())
        assert {k: a.shape for k, a in mine.items()} == {k: a.shape for k, a in theirs.items()}
        assert max(relative(mine[k], theirs[k]) for k in mine) < 1e-4


# ----------------------------------------------------------------------------- gradients


def wired(seed, keep, loops=True):
    """Low rank, a pattern, no bias, no feedthrough: each in one part."""
    rng = np.random.default_rng(seed)
    plain = {"rank": None, "bias": True, "feedthrough": True, "activation": activations.tanh}
    mask = Pattern(A=np.eye(3, dtype=bool) | (rng.random((3, 3)) < 0.5), C=rng.random((2, 3)) < 0.7)
    parts = (
        part(rng, 2, 1, n=3, **plain | {"rank": 2}),
        part(rng, 1, 2, n=3, **plain | {"pattern": mask}),
        part(rng, 2, 2, n=2, **plain | {"bias": False, "feedthrough": False}),
    )
    wiring = random_wiring(rng, parts, loops=loops)
    return Interconnection(parts, **wiring, keep=keep), rng.normal(size=(3, 2)), rng


def answer(whole, U):
    return whole.model().with_tol(1e-14)(U)


@pytest.mark.parametrize(
    ("keep", "loops"),
    [
        (True, True),
        (False, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_central_differences(keep, loops):
    whole, U, rng = wired(0, keep, loops)
    Y, pull = answer(whole, U)
    G = rng.normal(size=Y.shape)
    dU, grads = pull(G)
    h, found = 1e-5, whole.gradients(grads)

    def value(U):
        return float(np.sum(answer(whole, U)[0] * G))

    for i, j in itertools.product(*map(range, U.shape)):
        step = np.zeros_like(U)
        step[i, j] = h
        np.testing.assert_allclose(
            (value(U + step) - value(U - step)) / (2 * h), dU[i, j], rtol=1e-7, atol=1e-8
        )
    for one, of in zip(whole.parts, found, strict=True):
        before = one.params
        assert set(of) == set(before)
        for key, a in before.items():
            mask = one.support(key)
            for place in np.ndindex(a.shape):
                if mask is not None and not mask[place]:
                    assert of[key][place] == 0
                    continue
                ends = []
                for sign in (1, -1):
                    there = np.array(a)
                    there[place] += sign * h
                    one.params = {**before, key: there}
                    ends.append(value(U))
                one.params = before
                difference = (ends[0] - ends[1]) / (2 * h)
                np.testing.assert_allclose(difference, of[key][place], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_a_dense_adjoint(keep, seed):
    """Of all equations at once, (x, y) with w put in; no R anywhere."""
    whole, U, rng = wired(seed, keep)
    Y, pull = answer(whole, U)
    G = rng.normal(size=Y.shape)
    found = whole.gradients(pull(G)[1])
    params = [exact(p).params for p in whole.parts]
    As = [p["A"] if "A" in p else p["L"] @ p["R"].T for p in params]
    A, B, C = block_diagonal(As), *(block_diagonal([p[k] for p in params]) for k in "BC")
    D = block_diagonal([p.get("D", np.zeros((2, 2))) for p in params])
    b, d = (np.concatenate([p.get(k, np.zeros(2)) for p in params]) for k in "bd")
    K, E, k = whole.loop, whole.inputs, whole.offset
    n = len(A)
    for u, g in zip(U, G, strict=True):
        x, y = np.zeros(n), np.zeros(len(C))
        for _ in range(400):
            w = K @ y + E @ u + k
            x, y = np.tanh(A @ x + B @ w + b), C @ x + D @ w + d
        S = np.diag(1 - x**2)
        J = np.block([[S @ A, S @ B @ K], [C, D @ K]])
        v = np.linalg.solve(
            (np.eye(len(J)) - J).T, np.concatenate([np.zeros(n), whole.outputs.T @ g])
        )
        vx, vy = S @ v[:n], v[n:]
        parts = zip(found, whole.parts, (0, 3, 6), (0, 2, 3), (0, 1, 3), strict=True)
        for of, model, at, into, out in parts:
            rows = slice(at, at + model.hidden_dim)
            given, given_to = (
                slice(into, into + model.input_dim),
                slice(out, out + model.output_dim),
            )
            dA = np.outer(vx[rows], x[rows])
            by_hand = {
                "A": dA,
                "B": np.outer(vx[rows], w[given]),
                "C": np.outer(vy[given_to], x[rows]),
                "D": np.outer(vy[given_to], w[given]),
                "b": vx[rows],
                "d": vy[given_to],
            }
            if model.rank:
                by_hand |= {"L": dA @ model.params["R"], "R": dA.T @ model.params["L"]}
            for key in of:
                mask = model.support(key)
                of[key] = of[key] - (by_hand[key] if mask is None else by_hand[key] * mask)
    assert max(np.abs(a).max() for of in found for a in of.values()) < 1e-10


@pytest.mark.parametrize("keep", [True, False])
def test_gradients_of_a_cascade_are_the_chain_of_pullbacks(keep):
    rng = np.random.default_rng(3)
    one, two = (exact(part(rng, p, q)) for p, q in ((3, 2), (2, 4)))
    wiring = {"loop": np.eye(5, 6, -3), "inputs": np.eye(5, 3), "outputs": np.eye(4, 6, 2)}
    whole, U = Interconnection((one, two), **wiring, keep=keep), rng.normal(size=(5, 3))
    Y, pull = answer(whole, U)
    G = rng.normal(size=Y.shape)
    middle, back = one(U)
    _, again = two(middle)
    dmiddle, of_two = again(G)
    dU, of_one = back(dmiddle)
    mine, grads = pull(G)
    assert relative(mine, dU) < 1e-10
    for found, wanted in zip(whole.gradients(grads), (of_one, of_two), strict=True):
        assert set(found) == set(wanted)
        assert max(relative(found[k], wanted[k]) for k in found) < 1e-10


def test_a_loop_is_trained_through_its_parts():
    rng = np.random.default_rng(0)
    parts = [part(rng, 2, 2, n=6, rank=None, bias=True, feedthrough=True) for _ in range(2)]
    U, swap = rng.normal(size=(40, 2)), 0.1 * np.kron([[0, 1], [1, 0]], np.eye(2))
    target = np.sin(U)
    whole = Interconnection(parts, loop=swap, inputs=np.eye(4, 2), outputs=np.eye(2, 4))
    optimizers, values = [optim.Adam(0.02) for _ in parts], []
    for _ in range(60):
        Y, pull = whole.model()(U)
        values.append(float(np.mean((Y - target) ** 2)))
        found = whole.gradients(pull(2 * (Y - target) / Y.size)[1])
        for i, (model, grads) in enumerate(zip(parts, found, strict=True)):
            model.params = model.project(optimizers[i].step(model.params, grads))
    assert values[-1] < 0.2 * values[0]
    assert all(model.constraint.contains(model.params, model.activation) for model in parts)


# ------------------------------------------------------------------------------ refusals


def with_D(D, seed=0, dtype="float64"):
    q, p = np.shape(D)
    model = random_model(ImplicitModel, p, q, 3, seed=seed, dtype=dtype)
    model.params = {**model.params, "D": np.asarray(D, dtype)}
    return model


def test_a_singular_loop_is_refused_with_its_parts():
    ring = np.zeros((4, 4))
    ring[0, 3] = 1.0  # 3 -> 0, which feeds nothing back
    ring[1, 2] = ring[2, 1] = 1.0
    parts = [with_D([[d]], i) for i, d in enumerate((1.0, 0.5, 2.0, 1.0))]
    for keep in (True, False, None):
        with pytest.raises(InputError, match=r"parts 1 \(1 inputs, 1 outputs\), 2 \(.*condition"):
            interconnect(parts, loop=ring, keep=keep)
    parts[2] = with_D([[2.0 + 1e-15]])
    with pytest.raises(InputError, match=r"reciprocal condition [\d.]+e-1[67]"):
        interconnect(parts, loop=ring)
    parts[2] = with_D([[2.1]])
    assert np.isfinite(interconnect(parts, loop=ring).params["A"]).all()


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-7), ("float64", 1e-15)])
def test_a_loop_within_rounding_of_singular_is_refused(dtype, gap):
    with pytest.raises(InputError, match="no answer, or many"):
        feedback(with_D([[1.0]], dtype=dtype), [[1.0 - gap]])
    assert feedback(with_D([[1.0]], dtype=dtype), [[1.0 - 1e3 * gap]]).hidden_dim == 3


def test_units_of_signals_do_not_count():
    """A loop of 0.1 through numbers of very different size."""
    parts = [with_D([[1e6]]), with_D([[1e-7]], 1)]
    assert interconnect(parts, loop=[[0.0, 1.0], [1.0, 0.0]]).hidden_dim == 6


def test_a_nilpotent_loop_is_exact():
    """Through D it is a chain, with couplings that no inverse would survive."""
    D = np.array([[0.0, 1e9, 3.0], [0.0, 0.0, 1e9], [0.0, 0.0, 0.0]])
    model = with_D(D)
    found = feedback(model, np.eye(3)).params
    R = np.eye(3) + D + D @ D
    np.testing.assert_array_equal(found["D"], R @ D)
    np.testing.assert_array_equal(found["C"], R @ model.params["C"])


def test_what_is_refused():
    model = with_D([[1.0, 0.5]])
    with pytest.raises(InputError, match=r"parts\[1\] is Linear.*to_implicit"):
        Interconnection((model, Linear(1, 1)))
    with pytest.raises(InputError, match="dtypes"):
        cascade(model, with_D([[1.0]], dtype="float32"))
    with pytest.raises(InputError, match=r"models\[0\] has 1 outputs, models\[1\] takes 2"):
        cascade(model, model)
    with pytest.raises(InputError, match="input_dim"):
        add(model, with_D([[1.0]]))
    with pytest.raises(InputError, match=r"K has shape \(1, 2\).*\(2, 1\)"):
        feedback(model, [[1.0, 1.0]])
    with pytest.raises(InputError, match=r"P has shape \(3, 2\).*\(2, any\)"):
        affine_before(model, np.ones((3, 2)))
    with pytest.raises(InputError, match="empty"):
        cascade()
    whole = Interconnection((model,))
    with pytest.raises(InputError, match="grads has no A"):
        whole.gradients({})
    _, grads = whole.model()(np.ones((1, 2)))[1](np.ones((1, 1)))
    with pytest.raises(InputError, match=r"grads\['A'\] has shape"):
        whole.gradients({**grads, "A": np.ones((2, 2))})


def test_parts_of_two_libraries_are_refused(xp):
    one = with_D([[1.0]])
    if xp is np:
        assert cascade(one, one).xp is np
    else:
        with pytest.raises(DeviceMismatchError):
            cascade(one, moved(one, xp))


def test_files_hold_what_was_composed():
    rng = np.random.default_rng(0)
    one, two = part(rng, 2, 2), part(rng, 2, 2, constraint=PerronFrobenius(0.8), rank=None)
    whole = Interconnection(
        (one, two), loop=np.kron([[0, 0], [1, 0]], np.eye(2)), keep=True
    ).model()
    with tempfile.TemporaryDirectory() as folder:
        pyidl.save(Path(folder) / "whole.npz", whole)
        again = pyidl.load(Path(folder) / "whole.npz")
    assert again.constraint == whole.constraint
    assert again.activation.name == whole.activation.name
    U = rng.normal(size=(3, 4))
    np.testing.assert_array_equal(again.predict(U), whole.predict(U))
