"""What is proven of a wiring, attacked: gains, rates, weights."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from helpers import random_model, relative
from wirings import block_diagonal, exact, gain_by_hand, part, random_wiring, spectral_radius

from pyidl import ImplicitModel, activations, plotting
from pyidl.compose import Interconnection, cascade, feedback
from pyidl.compose.gains import chain_certificate
from pyidl.errors import InputError
from pyidl.wellposed import BlockTriangular, InfNorm, Monotone, PerronFrobenius, SpectralNorm


def lipschitz_bound(model):
    """``L |A|``, by hand."""
    m = exact(model)
    L = np.array(m.activation.row_lipschitz(m.hidden_dim))[:, None]
    return L * np.abs(m.params["A"])


def has_one_answer(model):
    """Whether ``det(I - S A) > 0`` for every choice of slopes 0 and L.

    A determinant is affine in each slope, so the corners decide for all between. Where
    one is negative, some piecewise linear phi has two answers, or none.
    """
    m = exact(model)
    A, L = m.params["A"], np.array(m.activation.row_lipschitz(m.hidden_dim))
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=len(A)))) * L
    return bool(np.all(np.linalg.det(np.eye(len(A)) - corners[:, :, None] * A) > 0))


def pairs(count, strongest):
    """Two parts that hear each other, K of random strength."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        parts = [part(rng, 2, 2, n=3, rank=None) for _ in range(2)]
        K = np.zeros((4, 4))
        K[:2, 2:], K[2:, :2] = rng.normal(size=(2, 2, 2))
        radius = spectral_radius(block_diagonal([gain_by_hand(m) for m in parts]) @ np.abs(K))
        yield Interconnection(parts, loop=K * (rng.uniform(0.0, strongest) / max(radius, 1e-3)))


def kept_bound(whole):
    """``N = [[P, L|B||K|], [|C|, |D||K|]]``."""
    parts = [exact(m) for m in whole.parts]
    L = np.concatenate([m.activation.row_lipschitz(m.hidden_dim) for m in parts])[:, None]
    A, B, C = (block_diagonal([np.abs(m.params[k]) for m in parts]) for k in "ABC")
    D = block_diagonal([np.abs(m.params.get("D", np.zeros((2, 2)))) for m in parts])
    K = np.abs(whole.loop)
    return np.block([[L * A, L * B @ K], [C, D @ K]])


def counted(count):
    """How often the small gain holds, and the model is certified; each attacked."""
    small = certified = 0
    for whole in pairs(count, 2.0):
        proven = spectral_radius(
            block_diagonal([gain_by_hand(m) for m in whole.parts]) @ np.abs(whole.loop)
        )
        assert (proven < 1) == (spectral_radius(kept_bound(whole)) < 1)
        try:
            whole.gain()
            answers = True  # perhaps by gains that are sharper than those of |A|
        except InputError:
            assert proven > 1
            answers = False
        try:
            model = whole.model()
        except InputError:  # a loop through D that is singular
            assert proven > 1
            continue
        proof = whole.certificate()
        radius = spectral_radius(lipschitz_bound(model))
        assert not answers or has_one_answer(model)
        if proven < 1:
            small += 1
            assert answers
            assert proof.proven
            assert isinstance(model.constraint, PerronFrobenius) == (radius < 0.99)
        if proof.proven and proof.applies_to == "Picard" and "block" in proof.reason:
            assert radius < 1
            assert proof.contraction >= radius * (1 - 1e-12)
        if proof.proven:
            certified += 1
            assert has_one_answer(model)
    return small, certified


def test_small_gain_decides_as_the_kept_form_does():
    small, certified = counted(40)
    assert 5 < small < certified < 40


@pytest.mark.slow
def test_small_gain_decides_two_thousand_times():
    small, certified = counted(2000)
    assert 500 < small < certified < 2000


def test_the_attack_finds_what_is_not_well_posed():
    model = random_model(ImplicitModel, 1, 1, 3, seed=0, dtype="float64", activation="tanh")
    model.params = {**model.params, "A": 1.1 * np.eye(3)}
    assert not has_one_answer(model)


@pytest.mark.parametrize("loops", [True, False])
def test_no_two_inputs_beat_the_gain(loops):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        parts = [part(rng, p, q) for p, q in ((2, 1), (1, 2), (2, 2))]
        whole = Interconnection(parts, **random_wiring(rng, parts, loops=loops))
        gamma, model = whole.gain(), exact(whole.model())
        U = rng.normal(size=(200, 2))
        V = U + rng.normal(size=U.shape) * 10.0 ** rng.uniform(-3, 1, size=(200, 1))
        V[:100, 0] = U[:100, 0]  # only one of them moves
        moved, allowed = np.abs(model.predict(V) - model.predict(U)), np.abs(V - U) @ gamma.T
        assert np.all(moved <= allowed * (1 + 1e-9) + 1e-12)
        assert (moved / allowed).max() > 1e-3


def test_the_gain_is_attained_where_nothing_cancels():
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(2):
        one = part(rng, 2, 2, rank=None, activation=activations.relu, constraint=InfNorm(0.5))
        one.params = {key: np.abs(a) for key, a in one.params.items()}
        parts.append(one)
    K = np.abs(rng.normal(size=(4, 4)))
    K *= 0.5 / spectral_radius(block_diagonal([gain_by_hand(m) for m in parts]) @ K)
    whole = Interconnection(parts, loop=K)
    ends = exact(whole.model()).predict(np.vstack([np.zeros(4), np.eye(4)]))
    attained = (ends[1:] - ends[0]).T
    assert np.all(whole.gain() >= attained * (1 - 1e-12))
    assert relative(whole.gain(), attained) < 1e-9


def test_gains_of_parts_under_every_condition():
    """Where absolute values prove nothing, the part's own certificate does."""
    rng = np.random.default_rng(0)
    A = np.array([[0.0, 0.9, 0.0], [-0.9, 0.0, 0.4], [0.3, -0.6, 0.0]])
    for constraint in (SpectralNorm(0.99), Monotone(0.1)):
        one = part(rng, 2, 2, n=3, rank=None, activation=activations.tanh, constraint=constraint)
        one.params = {**one.params, "A": constraint.project({"A": 1.2 * A}, one.activation)["A"]}
        U = rng.normal(size=(100, 2))
        V, gamma = U + 0.1 * rng.normal(size=U.shape), Interconnection((one,)).gain()
        moved = np.abs(exact(one).predict(V) - exact(one).predict(U))
        assert np.all(moved <= np.abs(V - U) @ gamma.T)
    soft = part(rng, 2, 2, n=3, rank=None, activation=activations.softmax, constraint=InfNorm(0.3))
    V, gamma = U + 0.1 * rng.normal(size=U.shape), Interconnection((soft,)).gain()
    assert np.all(
        np.abs(exact(soft).predict(V) - exact(soft).predict(U)) <= np.abs(V - U) @ gamma.T
    )


def test_a_chain_always_has_a_gain():
    """However large the couplings are: only loops need a proof, and zeros stay."""
    rng = np.random.default_rng(0)
    parts = [part(rng, 2, 2, rank=None) for _ in range(4)]
    K = 1e9 * np.eye(8, 8, -2)
    gamma = Interconnection(parts, loop=K).gain()
    wanted = gain_by_hand(parts[3])
    for one in parts[2::-1]:
        wanted = wanted @ (1e9 * gain_by_hand(one))
    assert np.all(gamma[6:, :2] <= wanted * (1 + 1e-9))
    assert np.all(gamma[6:, :2] > 0)
    assert not gamma[:2, 2:].any()


def test_a_proof_without_an_error_bound_gives_no_gain():
    """A block triangular part whose blocks are certified in two different norms."""
    rng = np.random.default_rng(0)
    sets = BlockTriangular((2, 2), (SpectralNorm(0.99), InfNorm(0.99)))
    one = part(rng, 2, 2, n=4, rank=None, activation=activations.tanh, constraint=sets)
    turn = 0.69 * np.array([[1.0, 1.0], [-1.0, 1.0]])
    A = np.block([[turn, 100 * np.eye(2)], [np.zeros((2, 2)), 0.3 * np.eye(2)]])
    one.params = {**one.params, "A": A}
    assert one.certificate().proven
    with pytest.raises(InputError, match="no gain that is known"):
        Interconnection((one,)).gain()


def test_what_is_not_certified_has_no_gain():
    rng = np.random.default_rng(0)
    wild, tame = part(rng, 2, 2, rank=None), part(rng, 2, 2)
    wild.params = {**wild.params, "A": 50 * np.ones_like(wild.params["A"])}
    with pytest.raises(InputError, match=r"parts\[1\] has no gain.*, since it is not certified"):
        Interconnection((tame, wild)).gain()
    assert not Interconnection((tame, wild)).certificate().proven
    with pytest.raises(InputError, match="pf\\(Gamma"):
        Interconnection((tame,), loop=1e3 * np.eye(2)).gain()
    with pytest.warns(match="can be certified"):
        unknown = activations.Activation("unknown", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    odd = part(rng, 2, 2, rank=None, activation=unknown)
    with pytest.raises(InputError, match=r"not certified.*unknown"):
        Interconnection((odd,)).gain()
    with pytest.warns(match="can be certified"):
        assert not Interconnection((odd, tame)).certificate().proven


def test_a_chain_has_the_rate_of_its_slowest_part():
    """Four blocks, couplings of 50: row sums of A say nothing, weights do."""
    rng = np.random.default_rng(0)
    parts = []
    for kappa in (0.95, 0.9, 0.6, 0.8):
        one = part(
            rng, 4, 4, n=5, rank=None, activation=activations.relu, constraint=InfNorm(kappa)
        )
        one.params = {**one.params, "B": 50 * one.params["B"]}
        parts.append(one)
    K, worst = np.eye(16, 16, -4), 0.0
    for keep in (False, True):
        whole = Interconnection(parts, loop=K, keep=keep)
        model, proof = whole.model(), whole.certificate()
        worst = max(spectral_radius(lipschitz_bound(m)) for m in parts)
        s, A = proof.norm.weights, model.params["A"]
        assert np.abs(A).sum(axis=1).max() > 50
        assert worst <= proof.contraction < worst + (1 - worst) / 7
        for row, weight in zip(np.abs(A), s, strict=True):  # P s <= kappa s, in fractions
            total = sum(Fraction(a) * Fraction(b) for a, b in zip(row, s, strict=True))
            assert total <= Fraction(proof.contraction) * Fraction(weight)


def test_picard_keeps_to_the_proven_rate():
    whole = next(pairs(1, 0.5))
    model, proof = whole.model(), whole.certificate()
    U = np.random.default_rng(0).normal(size=(4, 4))
    X = exact(model).equilibrium(U).value
    x = X + 100.0
    Z = U @ model.params["B"].T + model.params.get("b", 0.0)
    for _ in range(20):
        before = proof.norm(x - X)
        x = model.activation(x @ model.params["A"].T + Z)
        assert np.all(proof.norm(x - X) <= proof.contraction * before + 1e-10)


def test_the_error_bound_is_one():
    rng = np.random.default_rng(1)
    parts = [part(rng, 2, 2, n=4, rank=None, constraint=InfNorm(0.6)) for _ in range(3)]
    whole = Interconnection(parts, loop=np.eye(6, 6, -2), keep=True)
    model, proof = exact(whole.model()), whole.certificate()
    U = rng.normal(size=(50, 6))
    X = model.equilibrium(U).value
    x = X + rng.normal(size=X.shape) * 10.0 ** rng.uniform(-3, 3, size=(50, 1))
    residual = (
        model.activation(
            x @ model.params["A"].T + U @ model.params["B"].T + model.params.get("b", 0.0)
        )
        - x
    )
    assert np.all(np.abs(x - X) <= proof.entrywise(residual) * (1 + 1e-9))


def test_what_weights_do_not_prove_the_model_may():
    """A rotation: absolute values fail, the symmetric part does not."""
    rng = np.random.default_rng(0)
    one, two = (
        part(rng, 2, 2, n=2, rank=None, activation=activations.tanh, constraint=Monotone(0.5))
        for _ in range(2)
    )
    for each in (one, two):
        each.params = {**each.params, "A": np.array([[0.0, 3.0], [-3.0, 0.0]])}
    whole = Interconnection((one, two), loop=np.eye(4, 4, -2), keep=False)
    assert whole.certificate().proven
    model = whole.model()
    assert not chain_certificate(model.params, model.activation, (2, 2)).proven
    assert has_one_answer(model)


def test_vectors_are_certified_as_far_as_they_can_be():
    rng = np.random.default_rng(0)
    soft = {"rank": None, "activation": activations.softmax, "constraint": InfNorm(0.3)}
    one, two = part(rng, 2, 2, n=3, **soft), part(rng, 2, 2, n=4, **soft)
    proof = Interconnection((one, two), loop=np.eye(4, 4, -2)).certificate()
    assert proof.proven
    assert proof.norm.blocks


def test_the_certificate_goes_where_others_go():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    whole = next(pairs(1, 0.5))
    model = whole.model()
    solution = model.equilibrium(np.ones((3, 4)), trace=True)
    assert plotting.rates(solution, whole.certificate()).get_ylabel() == "samples"


def test_a_model_alone_and_inside_itself():
    rng = np.random.default_rng(2)
    one = part(rng, 2, 2, rank=None)
    K = rng.normal(size=(2, 2))
    K *= 0.3 / spectral_radius(gain_by_hand(one) @ np.abs(K))
    assert relative(Interconnection((one,)).gain(), gain_by_hand(one)) < 1e-9
    loop = feedback(one, K)
    sharper, known = Interconnection((loop,)).gain(), Interconnection((one,), loop=K).gain()
    assert np.all(sharper <= known * (1 + 1e-9))  # A' knows the signs
    chain = Interconnection((cascade(loop, one),)).gain()
    assert np.all(chain <= gain_by_hand(one) @ known * (1 + 1e-9))
