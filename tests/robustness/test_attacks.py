"""Attacks: what they attain, where they stay, and that they break nothing certified."""

from fractions import Fraction

import boxes
import numpy as np
import pytest
import recurrences
from helpers import host, moved
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits

import pyidl
from pyidl import (
    Bidirectional,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    LayerNorm,
    Linear,
    Residual,
    Sequential,
    activations,
    losses,
    optim,
    robustness,
    solvers,
)
from pyidl.arrays.backend import from_host, namespace
from pyidl.errors import ConvergenceError, ConvergenceWarning, InputError
from pyidl.robustness import attacks
from pyidl.wellposed import MatrixMeasure, SpectralNorm, Unconstrained

M, P, Q, EPS = 12, 3, 3, 0.1
MODEL = ImplicitModel(P, Q, 8, activation=activations.tanh, rng=0, dtype="float64")
U = np.random.default_rng(0).normal(size=(M, P))
LABELS = MODEL.predict(U).argmax(axis=1)
NORMS = pytest.mark.parametrize("norm", ["inf", 2])


def first_output(Y, target, weights=None):
    """A loss that is linear: the mean of the first output."""
    dY = np.zeros_like(Y)
    dY[..., 0] = 1.0 / len(Y)
    return Y[..., 0].mean(), dY


def linear(dtype="float64", p=7):
    """An implicit model that is a linear map: A = 0, and the identity."""
    model = ImplicitModel(p, 2, 5, activation=activations.identity, rng=0, dtype=dtype)
    model.params = {**model.params, "A": np.zeros((5, 5))}
    return model


def check_feasible(V, U, eps, norm, clip=None):
    """Within the distance, in exact arithmetic."""
    assert V.dtype == U.dtype
    assert V.shape == U.shape
    for v, u in zip(V.reshape(len(V), -1), U.reshape(len(U), -1), strict=True):
        far = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(v, u, strict=True)]
        size = max(far) ** 2 if norm == "inf" else sum(d * d for d in far)
        assert size <= Fraction(eps) ** 2
    if clip is not None:
        assert V.min() >= clip[0]
        assert V.max() <= clip[1]


def check_exact(dtype, tol):
    """A linear model: the best there is, in closed form."""
    model = linear(dtype)
    U = np.random.default_rng(1).normal(size=(4, 7)).astype(dtype)
    labels = np.zeros(4, int)
    p = {key: host(a).astype(np.float64) for key, a in model.params.items()}
    row = p["C"][0] @ p["B"] + p["D"][0]

    def gain(V):
        return (V.astype(np.float64) - U) @ row

    best = EPS * np.abs(row).sum()
    V = robustness.fgsm(model, U, labels, EPS, loss=first_output)
    np.testing.assert_allclose(gain(V), best, rtol=tol)
    V = robustness.pgd(model, U, labels, EPS, loss=first_output, rng=0)
    np.testing.assert_allclose(gain(V), best, rtol=tol)
    best = EPS * np.sqrt(row @ row)
    V = robustness.pgd(model, U, labels, EPS, norm=2, step=4 * EPS, loss=first_output, rng=0)
    np.testing.assert_allclose(gain(V), best, rtol=4 * tol)
    check_feasible(V, U, EPS, 2)


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 4e-6), ("float64", 1e-14)])
def test_a_linear_model_loses_exactly_what_it_can(dtype, tol):
    check_exact(dtype, tol)


whole = attacks._Attack.allowed


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("uphill", lambda self, g: -np.sign(g)),
        ("allowed", lambda self, V: V),
        ("allowed", lambda self, V: np.clip(V, self.low, self.high)),
        ("allowed", lambda self, V: whole(self, np.clip(V, self.low, self.high))),
    ],
    ids=["descends", "is not confined", "to a box alone", "to the box before the ball"],
)
def test_an_attack_that_is_wrong_is_noticed(name, twin, monkeypatch):
    monkeypatch.setattr(attacks._Attack, name, twin)
    with pytest.raises(AssertionError):
        check_exact("float64", 1e-14)


@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(["float32", "float64"]),
    norm=st.sampled_from(["inf", 2]),
    power=st.floats(-12, 1),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    clipped=st.booleans(),
)
def test_every_point_is_feasible_in_exact_arithmetic(seed, dtype, norm, power, scale, clipped):
    rng = np.random.default_rng(seed)
    p, eps = int(rng.integers(1, 9)), scale * 10.0**power
    model = ImplicitModel(p, Q, 5, rng=seed, dtype=dtype)
    V = (scale * rng.normal(size=(3, p))).astype(dtype)
    labels = model.predict(V).argmax(axis=1)
    clip = (float(V.min()), float(V.max())) if clipped and V.min() < V.max() else None
    options = {"clip": clip, "on_fail": "ignore"}
    found = robustness.pgd(model, V, labels, eps, norm=norm, steps=3, rng=rng, **options)
    check_feasible(found, V, eps, norm, clip)
    if norm == "inf":
        check_feasible(robustness.fgsm(model, V, labels, eps, **options), V, eps, norm, clip)


def test_points_by_nearest_rounding_would_not_be_feasible():
    """So that the check above can fail: u + eps, as it is rounded, is often too far."""
    rng = np.random.default_rng(0)
    V = rng.normal(size=(200, 1)).astype(np.float32)
    with pytest.raises(AssertionError):
        check_feasible((V + np.float64(EPS)).astype(np.float32), V, EPS, "inf")
    check_feasible(attacks._inwards(V, EPS, np.inf), V, EPS, "inf")


@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(["float32", "float64"]))
def test_the_ends_of_a_box_are_the_nearest_ones_that_are_feasible(seed, dtype):
    rng = np.random.default_rng(seed)
    u = (rng.normal(size=50) * 10.0 ** rng.uniform(-8, 8, 50)).astype(dtype)
    eps = float(10.0 ** rng.uniform(-8, 8))
    end = attacks._inwards(u, eps, np.inf)
    for a, b in zip(u, end, strict=True):
        exact = Fraction(float(a)) + Fraction(eps)
        assert Fraction(float(b)) <= exact < Fraction(float(np.nextafter(b, b.dtype.type(np.inf))))


def test_the_ends_of_the_largest_boxes_are_finite():
    most = np.finfo(np.float32).max
    assert attacks._inwards(np.array([most, -1.0], np.float32), 1e300, np.inf).max() == most
    most = np.finfo(np.float64).max
    assert attacks._inwards(np.array([most, -1.0]), float(most), np.inf).max() == most


@NORMS
def test_nothing_is_left_of_a_ball_that_rounding_would_leave(norm):
    V = np.full((2, P), 1e4, np.float32)
    for eps in (1e-9, 1e-320):
        model = ImplicitModel(P, Q, 5, rng=0)
        found = robustness.pgd(model, V, [0, 1], eps, norm=norm, rng=0, steps=2)
        assert np.array_equal(found, V)


@NORMS
def test_no_distance_is_no_attack(norm):
    assert np.array_equal(robustness.pgd(MODEL, U, LABELS, 0, norm=norm, rng=0), U)
    assert np.array_equal(robustness.fgsm(MODEL, U, LABELS, 0.0), U)


# ------------------------------------------------------------------- bounds and attacks


@boxes.QUESTIONS
def test_no_certified_sample_is_broken(kind, seed, norm, clipped):
    rng, model, V, clip, labels, eps = boxes.question(kind, seed, clipped)
    sure = robustness.certified(model, V, labels, eps, norm=norm, clip=clip, rounds=2)
    found = robustness.pgd(
        model, V, labels, eps, norm=norm, clip=clip, rng=rng, steps=6, restarts=2
    )
    survive = model.predict(found).argmax(axis=1) == labels
    assert np.all(survive[sure])


def digits(epochs=8):
    data = load_digits()
    images, labels = (data.data / 16).astype(np.float32), data.target
    model = ImplicitModel(64, 10, 20, constraint=MatrixMeasure(0.95), rng=0)
    pyidl.fit(
        model,
        (images[:800], labels[:800]),
        loss="cross_entropy",
        optimizer=optim.Adam(2e-2),
        epochs=epochs,
        rng=0,
        verbose=0,
    )
    return model, images[800:900], labels[800:900]


def test_digits_certified_attacked_and_in_between():
    model, V, t = digits()
    left = []
    for eps in (0.02, 0.05, 0.1):
        found = robustness.pgd(model, V, t, eps, clip=(0, 1), rng=0)
        once = robustness.fgsm(model, V, t, eps, clip=(0, 1))
        check_feasible(found, V, eps, "inf", (0, 1))
        survive, single = (model.predict(a).argmax(axis=1) == t for a in (found, once))
        sure = robustness.certified(model, V, t, eps, clip=(0, 1))
        assert np.all(survive[sure])
        assert np.all(single[sure])
        assert survive.sum() <= single.sum()
        left.append((sure.mean(), survive.mean()))
    sure, survive = np.array(left).T
    assert np.all(np.diff(survive) < 0)
    assert sure[0] > survive[0] - 0.15  # and they lie close together for a small eps
    assert sure[0] > 0.7


# ----------------------------------------------------------------------- what is better


def each_loss(model, V, labels):
    return losses.each(losses.cross_entropy, model.predict(V), labels)


@NORMS
def test_restarts_and_steps_never_do_worse(norm):
    model = boxes.drawn("sin", 6, 3)
    before = each_loss(model, U, LABELS)
    for options in ({"restarts": 1}, {"restarts": 3}, {"restarts": 8}):
        V = robustness.pgd(model, U, LABELS, 1.0, norm=norm, rng=5, steps=3, **options)
        now = each_loss(model, V, LABELS)
        wrong = model.predict(V).argmax(axis=1) != LABELS
        assert np.all((now >= before - 1e-9) | wrong)
        before = now
    before = -np.inf
    for steps in (1, 4, 16):  # of the same length, from the same point
        V = robustness.pgd(
            model, U, np.eye(Q)[LABELS], 1.0, norm=norm, rng=5, steps=steps, step=0.3
        )
        now = each_loss(model, V, LABELS)
        assert np.all(now >= before - 1e-9)
        before = now


def test_a_point_that_is_misclassified_goes_before_a_larger_loss():
    """Of two points: (1) right, of loss log 3; (2) wrong, of loss log 2."""
    xp_old = (np.zeros((1, 2)), np.array([np.log(3.0)]), np.array([False]))
    xp_new = (np.ones((1, 2)), np.array([np.log(2.0)]), np.array([True]))
    for pair in ((xp_old, xp_new), (xp_new, xp_old)):
        V, loss, wrong = attacks._worse(*pair)
        assert (V.min(), loss[0], wrong[0]) == (1.0, np.log(2.0), True)
    V, loss, _ = attacks._worse(xp_old, (np.ones((1, 2)), np.array([np.nan]), np.array([False])))
    assert V.max() == 0
    assert loss[0] == np.log(3.0)


def test_warm_solves_find_what_cold_ones_do(monkeypatch):
    model = boxes.drawn("tanh measure", 12, 1)
    warm = robustness.pgd(model, U, LABELS, 0.3, rng=0)
    look, starts = attacks._Attack.look, []

    def cold(self, V, x0=None, v0=None):
        starts.append(x0 is not None and v0 is not None)
        return look(self, V)

    monkeypatch.setattr(attacks._Attack, "look", cold)
    found = robustness.pgd(model, U, LABELS, 0.3, rng=0)
    np.testing.assert_allclose(warm, found, atol=1e-9)
    assert starts == [False] + [True] * 21


@pytest.mark.parametrize(
    ("adjoint", "dull"),
    [(solvers.Direct(), 0), (solvers.Neumann(5), 1), (solvers.JacobianFree(), 1)],
    ids=repr,
)
def test_a_wrong_gradient_weakens_an_attack_as_proven(adjoint, dull):
    """``g . sign h >= |g|_1 - 2 |g - h|_1``, and at most ``|g|_1``."""
    worse = 0
    for seed in range(20):
        model = ImplicitModel(
            P, Q, 10, activation=activations.leaky_relu(0.8), constraint=SpectralNorm(0.98),
            rng=seed, dtype="float64",
        )  # fmt: skip
        A = np.linalg.qr(np.random.default_rng(seed).normal(size=(10, 10)))[0]
        model.params = {**model.params, "A": 0.97 * A}  # powers of it decay slowly
        twin = model.replace(adjoint=adjoint)
        g, h = (
            pull(losses.cross_entropy(Y, LABELS)[1])[0]
            for Y, pull in (model(U), twin(U))
        )  # fmt: skip
        delta = robustness.fgsm(twin, U, LABELS, EPS) - U
        gain, best = np.sum(g * delta, axis=1) / EPS, np.abs(g).sum(axis=1)
        lost = np.abs(g - h).sum(axis=1)
        assert np.all(gain >= best - 2 * lost - 1e-12)
        assert np.all(gain <= best * (1 + 1e-12))
        worse += np.sum(gain < best * (1 - 1e-6))
    assert (worse > 0) == bool(dull)


def test_a_gradient_of_zero_is_no_trap():
    """Where all units are off nothing is known; where one is not, it is found."""
    model = ImplicitModel(2, 2, 3, feedthrough=False, rng=0, dtype="float64")
    dead = {"B": np.eye(3, 2), "b": np.full(3, -1.0), "C": np.eye(2, 3), "d": np.array([0.0, 0.5])}
    model.params = {**model.params, "A": np.zeros((3, 3)), **dead}
    V, t = np.zeros((1, 2)), [1]
    assert np.array_equal(robustness.fgsm(model, V, t, 0.9), V)
    for norm in ("inf", 2):
        found = robustness.pgd(model, V, t, 0.9, norm=norm, rng=0, steps=2)
        assert np.all(np.isfinite(found))
        found = robustness.pgd(model, V, t, 2.0, norm=norm, rng=0, steps=2, restarts=20)
        assert model.predict(found).argmax(axis=1) == [0]


# ---------------------------------------------------------------------- layers, lengths


def sequences():
    lengths = np.array([4, 2, 1])
    V = np.random.default_rng(3).normal(size=(3, 4, 4))
    return V, lengths


def rnn(**options):
    return ImplicitRNN(4, 2, 3, 5, rng=0, dtype="float64", **options)


LAYERS = {
    "rnn": lambda: rnn(),
    "rnn, every step": lambda: rnn(return_sequences=True),
    "attention": lambda: ImplicitAttentionHead(4, 2, block_size=5, rng=0, dtype="float64"),
    "block": lambda: ImplicitTransformerBlock(4, num_heads=2, block_size=5, rng=0, dtype="float64"),
    "two ways": lambda: Sequential(
        Bidirectional(rnn(return_sequences=True), rnn(return_sequences=True).replace()),
        Linear(4, 2, rng=0, dtype="float64"),
    ),
}


@NORMS
@pytest.mark.parametrize("name", LAYERS)
def test_sequences_of_several_lengths(name, norm):
    layer = LAYERS[name]()
    V, lengths = sequences()
    Y = layer.predict(V, lengths)
    labels = Y.argmax(axis=-1)
    found = robustness.pgd(layer, V, labels, 0.3, lengths, norm=norm, rng=0, steps=4)
    check_feasible(found, V, 0.3, norm)
    there = np.arange(4) < lengths[:, None]
    assert np.array_equal(found[~there], V[~there])
    w = there if labels.ndim == 2 else None
    before, now = (
        losses.each(losses.cross_entropy, layer.predict(a, lengths), labels, w) for a in (V, found)
    )
    assert np.all(now > before)
    # a sample alone, without the steps that it does not have, is attacked as much
    alone = robustness.pgd(
        layer, V[2:, :1], labels[2:, :1] if labels.ndim == 2 else labels[2:], 0.3, norm=norm,
        rng=0, steps=30,
    )  # fmt: skip
    longer = robustness.pgd(layer, V[2:], labels[2:], 0.3, lengths[2:], norm=norm, rng=0, steps=30)
    values = [
        losses.each(losses.cross_entropy, Y, t, w)[0]
        for Y, t, w in (
            (layer.predict(alone), labels[2:, :1] if labels.ndim == 2 else labels[2:], None),
            (layer.predict(longer, lengths[2:]), labels[2:], None if w is None else w[2:]),
        )
    ]
    np.testing.assert_allclose(*values, rtol=0.02)


def test_absent_steps_do_not_count_in_the_verdict():
    layer, (V, lengths) = rnn(return_sequences=True), sequences()
    labels = layer.predict(V, lengths).argmax(axis=-1)
    there = np.arange(4) < lengths[:, None]
    labels[~there] = 1 - labels[~there]
    attack = attacks._Attack.read(
        layer, V, labels, 0.1, lengths, "inf", None, losses.cross_entropy, "raise"
    )
    (_, _, wrong), _, _ = attack.look(V)
    assert not wrong.any()
    attack = attacks._Attack.read(
        layer, V, labels, 0.1, None, "inf", None, losses.cross_entropy, "raise"
    )
    assert list(attack.look(V)[0][2]) == [False, True, True]


def test_chains_of_layers():
    chain = Sequential(
        ImplicitModel(P, 4, 6, rng=0), Residual(LayerNorm(4), Linear(4, 4, rng=1)), "tanh",
        Linear(4, 2, rng=2),
    ).astype("float64")  # fmt: skip
    labels = chain.predict(U).argmax(axis=1)
    V = robustness.pgd(chain, U, labels, 0.5, rng=0)
    check_feasible(V, U, 0.5, "inf")
    assert np.all(each_loss(chain, V, labels) > each_loss(chain, U, labels))


def test_behind_an_embedding_the_embedded_input_is_attacked():
    chain = Sequential(Embedding(9, 4, rng=0), rnn().astype("float32"))
    tokens = np.random.default_rng(0).integers(0, 9, (5, 4))
    labels = chain.predict(tokens).argmax(axis=1)
    with pytest.raises(InputError, match="behind the Embedding"):
        robustness.pgd(chain, tokens, labels, 0.5)
    with pytest.raises(InputError, match="Embedding"):
        robustness.fgsm(chain, tokens.astype(float), labels, 0.5)
    first, *others = chain.layers
    V = first.predict(tokens)
    found = robustness.pgd(Sequential(*others), V, labels, 2.0, rng=0)
    assert np.any(Sequential(*others).predict(found).argmax(axis=1) != labels)


@pytest.mark.parametrize("name", ["mse", "huber", "mae"])
def test_other_losses_are_compared_sample_by_sample(name):
    loss = getattr(losses, name)
    target = MODEL.predict(U) + 0.3
    V = robustness.pgd(MODEL, U, target, 0.2, loss=loss, rng=0)
    before, now = (losses.each(loss, MODEL.predict(a), target) for a in (U, V))
    assert before.shape == (M,)
    assert np.all(now > before)
    np.testing.assert_allclose(before.mean(), loss(MODEL.predict(U), target)[0], rtol=1e-12)


def test_the_loss_of_each_sample_is_its_loss_alone():
    rng = np.random.default_rng(0)
    Y, t = rng.normal(size=(5, 4, 3)), rng.integers(0, 3, (5, 4))
    w = (np.arange(4) < np.array([4, 3, 1, 2, 4])[:, None]).astype(float)

    def own(Y, target, weights=None):
        return losses.cross_entropy(Y, target, weights=weights)

    for weights in (None, w):
        each = losses.each(losses.cross_entropy, Y, t, weights)
        np.testing.assert_allclose(each, losses.each(own, Y, t, weights), rtol=1e-13)
    Y[1, 3], t[1, 3] = [1.7e308, -1.7e308, 0.0], 1
    assert np.isinf(losses.each(losses.cross_entropy, Y, t)[1])
    assert np.isfinite(losses.each(losses.cross_entropy, Y, t, w)[1])


@pytest.mark.parametrize("kind", ["tanh measure", "rank", "no D"])
@NORMS
def test_every_library_finds_the_same(kind, norm, xp):
    model = boxes.drawn(kind, 6, 0)
    labels = host(model.predict(U)).argmax(axis=1)
    options = {"norm": norm, "rng": 0, "steps": 5, "clip": (-5, 5)}
    ours = robustness.pgd(model, U, labels, EPS, **options)
    twin, V, t = moved(model, xp), from_host(xp, U), from_host(xp, labels)
    theirs = robustness.pgd(twin, V, t, EPS, **options)
    assert namespace(theirs) is xp
    np.testing.assert_allclose(host(theirs), ours, atol=1e-9)
    check_feasible(host(theirs), U, EPS, norm)
    once = robustness.fgsm(twin, V, t, EPS)
    np.testing.assert_allclose(host(once), robustness.fgsm(model, U, labels, EPS), atol=1e-12)


def test_recurrent_networks_on_every_library(xp):
    model, V = rnn(return_sequences=True), sequences()[0]
    labels, lengths = model.predict(V).argmax(axis=-1), sequences()[1]
    options = {"rng": 0, "steps": 3, "lengths": lengths}
    ours = robustness.pgd(model, V, labels, EPS, **options)
    theirs = robustness.pgd(
        recurrences.moved(model, xp), from_host(xp, V), from_host(xp, labels), EPS, **options
    )
    np.testing.assert_allclose(host(theirs), ours, atol=1e-9)


# ------------------------------------------------------------------------ what may fail


def fails():
    """A model whose solve fails for large inputs, and goes well near zero."""
    model = ImplicitModel(
        1, 2, 1, constraint=Unconstrained(), forward=solvers.Picard(max_iter=200), rng=0,
        dtype="float64",
    )  # fmt: skip
    model.params = {
        "A": [[1.5]], "B": [[1.0]], "C": [[1.0], [0.0]], "D": [[1.0], [0.0]], "b": [-1.0],
        "d": [0.0, 0.1],
    }  # fmt: skip
    return model, np.array([[0.0], [0.2]]), [1, 1]


def test_a_solve_that_fails_is_not_silent():
    model, V, t = fails()
    with pytest.raises(ConvergenceError):
        robustness.pgd(model, V, t, 2.0, rng=0)
    with pytest.warns(ConvergenceWarning):
        found = robustness.pgd(model, V, t, 2.0, rng=0, on_fail="warn")
    ignored = robustness.pgd(model, V, t, 2.0, rng=0, on_fail="ignore")
    assert np.array_equal(found, ignored)
    _, pull = model(found, on_fail="ignore")
    assert pull.converged.all()
    assert not model(V + 2.0, on_fail="ignore")[1].converged.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": -1.0}, "eps is -1.0"),
        ({"norm": 1}, "norm is 1"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"step": 0.0}, "step is 0.0"),
        ({"step": np.inf}, "step is inf"),
        ({"clip": (0.0, 0.1)}, "lie outside of clip"),
        ({"loss": "cross_entropy"}, "loss is 'cross_entropy'"),
        ({"on_fail": "hide"}, "on_fail is 'hide'"),
        ({"labels": LABELS + 5}, "labels lie between"),
        ({"labels": LABELS[:3]}, "labels have"),
        ({"lengths": [1] * M}, "takes no lengths"),
        ({"model": pyidl.WorstCase(boxes.drawn("no D", 6, 0), 0.1)}, "label"),
        ({"U": U[:, :2]}, "U has shape"),
    ],
)
def test_bad_questions_are_refused(options, words):
    asked = {"model": MODEL, "U": U, "labels": LABELS, "eps": EPS, "rng": 0, **options}
    with pytest.raises(InputError, match=words):
        robustness.pgd(**asked)


def test_sparse_inputs_are_refused_by_name():
    with pytest.raises(InputError, match="U is sparse"):
        robustness.fgsm(MODEL, sparse.csr_array(U), LABELS, EPS)
