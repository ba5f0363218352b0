"""Every claim about the attention head, tried on random problems and by search.

The search is adversarial, and it must fail for twins that are broken on purpose.
"""

import math

import numpy as np
import pytest
from attention_problems import CERTIFIED, cell, feedback, jacobian, kappa, solved, squash
from helpers import host, moved, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from pyidl import (
    BoundedSoftmax,
    ImplicitAttentionHead,
    KernelAttention,
    Softmax,
    certify_attention,
    solvers,
)
from pyidl.arrays.backend import from_host
from pyidl.attention import AttentionBall
from pyidl.attention.cell import AttentionCell
from pyidl.attention.certify import curvature, diagonal_blocks, input_factor, local_factor
from pyidl.attention.feedback import Feedback, combined, lambert, mu, own_key
from pyidl.attention.maps import ETA, phi_slope
from pyidl.attention.weighted_mean import Mask
from pyidl.attention.wellposed import attention_certificate
from pyidl.equilibrium import equilibrium
from pyidl.errors import InputError
from pyidl.wellposed import Unconstrained

CASES = given(st.sampled_from(CERTIFIED), st.integers(0, 10**6))
EXACT = 1 + 1e-9


def one(c, Z, r=0):
    """The cell and Z of one sample."""
    rows = np.array([r])
    return AttentionCell(c.R, c.attention, c.mask.take(rows)), Z[rows]


def cube(rng, Z, size=1.0):
    return rng.uniform(-size, size, (*Z.shape[:-1], Z.shape[-1] // 3))


# ---------------------------------------------------------------------------- constants


def test_mu_is_the_maximum():
    y = np.linspace(0, 40, 400_001)
    for t in (1e-4, 0.01, 0.05, 0.25, 1.0, 2.0, 30.0):
        assert mu(t) == pytest.approx(
            (np.sqrt(y) / (1 + t * np.exp(np.minimum(y, 700)))).max(), abs=1e-6
        )
    for c in (0.01, 0.25, 0.5, 1.0, 10.0):
        y, S = np.linspace(0, 12, 601)[:, None], np.geomspace(1e-4, 1e2, 601)
        best = np.sqrt(
            np.where(np.exp(-y) <= S * (1 + 1e-12), y * np.exp(-y) * S / (c + S) ** 2, 0.0).max()
        )
        assert 0.998 * own_key(c) < best <= own_key(c)
    assert mu(0.25) == pytest.approx(0.59927, abs=1e-5)
    assert mu(0.25 / 64) == pytest.approx(1.661, abs=1e-3)


@given(st.floats(1e-12, 1e12))
def test_lambert(z):
    w = lambert(z)
    assert abs(w * math.exp(w) - z) <= 1e-13 * max(z, 1e-300) * (1 + w)


@given(st.floats(0, 100), st.floats(0, 100))
def test_combined_is_its_maximum(a, b):
    x = np.linspace(0, 1, 20001)
    assert combined(a, b) == pytest.approx((a * x + b * (1 - x * x)).max(), abs=1e-6 * (1 + a + b))
    assert max(a, b) <= combined(a, b) * EXACT
    assert combined(a, b) <= math.hypot(a, b) * EXACT
    assert combined(0.8, 0.8) == pytest.approx(1.0, abs=1e-15)


@given(st.integers(0, 10**6))
def test_lemma_2(seed):
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 40)), float(10 ** rng.uniform(-2, 1))
    y = rng.exponential(size=n) * 10 ** rng.uniform(-2, 1) + rng.choice([0, 1]) * rng.uniform(0, 5)
    p = np.exp(-y) / (c + np.exp(-y).sum())
    assert p.sum() * (p @ y) <= mu(c / n) ** 2 * EXACT
    assert p @ y <= lambert(n / (math.e * c)) * EXACT
    S = n * np.exp(-(0.5 + lambert(0.5 / (c / n * math.sqrt(math.e)))))  # all y equal attains it
    assert (S / (c + S)) ** 2 * math.log(n / S) == pytest.approx(mu(c / n) ** 2, rel=1e-9)


def test_the_curvature_of_phi():
    s = np.linspace(-5, 5, 1_000_001)
    assert np.abs(-3 * s * (1 + s * s) ** -2.5).max() == pytest.approx(ETA, rel=1e-9)


def test_the_constant_of_the_queries_is_attained():
    """Half the keys on either side of q, values of the same sign at infinity.

    So every term has one sign.
    """
    for n, h, g in ((2, 1, 1.0), (4, 3, 0.7), (8, 2, 0.5), (64, 4, 0.25)):
        attention = KernelAttention(bandwidth=g)
        y = 0.5 + lambert(0.5 / (0.25 / n * math.sqrt(math.e)))
        side = np.repeat([1.0, -1.0], n // 2)[:, None]
        K = np.broadcast_to(side * math.sqrt(y / g) / math.sqrt(h) * np.ones(h), (1, 1, n, h))
        V = np.broadcast_to(1e4 * side * np.ones(h), (1, 1, n, h))
        at = attention.at(K, np.zeros((1, 1, 1, h)), V)
        change = np.abs(at.jvp(np.zeros_like(K), np.ones((1, 1, 1, h)), np.zeros_like(V))).max()
        assert change == pytest.approx(2 * math.sqrt(g * h) * mu(0.25 / n), rel=1e-6)


@given(st.integers(0, 10**6))
def test_nu_bounds_the_norm(seed):
    rng = np.random.default_rng(seed)
    h = int(rng.integers(1, 6))
    R = feedback(rng, 1, int(rng.integers(1, 3)) * h, h)
    found = Feedback.of({"R": R})[0]
    o = rng.choice([-1.0, 1.0], (200, R.shape[1]))
    assert np.linalg.norm(o @ R[0, :, :h], axis=1).max() <= found.nu_k * EXACT
    assert np.linalg.norm(o @ R[0, :, h : 2 * h], axis=1).max() <= found.nu_q * EXACT
    assert np.allclose(np.abs(R[0, :, 2 * h :]).sum(axis=0), found.v)


# -------------------------------------------------------------------------- contraction


@CASES
def test_two_states_come_closer(attention, seed):
    """Random pairs, near and far, and the pairs along the iteration."""
    c, Z = cell(seed, attention)
    rng, problem = np.random.default_rng(seed), c.bind(Z)
    for size in (1.0, 100.0):
        a = cube(rng, Z, size)
        for b in (cube(rng, Z, size), a + 1e-3 * cube(rng, Z)):
            assert np.abs(problem.f(a) - problem.f(b)).max() <= 0.95 * EXACT * np.abs(a - b).max()
    a, b = cube(rng, Z), problem.f(cube(rng, Z))
    for _ in range(40):
        before = np.abs(a - b).max()
        if before < 1e-9:
            break
        a, b = problem.f(a), problem.f(b)
        assert np.abs(a - b).max() <= 0.95 * EXACT * before


@CASES
def test_jacobians_are_bounded(attention, seed):
    """|J| <= kappa_loc <= kappa, in rows forward and in columns backward."""
    c, Z = one(*cell(seed, attention))
    X = cube(np.random.default_rng(seed), Z)
    J = jacobian(c, X, Z)
    local = local_factor(c, c.at(X, Z), Feedback.of({"R": c.R}))
    assert np.abs(J).sum(axis=1).max() <= local * EXACT
    assert local <= 0.95 * EXACT
    L = np.random.default_rng(seed).normal(size=X.shape)
    for v in (L, *np.eye(X.size)[:3].reshape(-1, *X.shape)):
        pulled = c.feed_back(np.concatenate(c.at(X, Z).vjp(v), axis=-1))
        assert np.abs(pulled).sum() <= 0.95 * EXACT * np.abs(v).sum()


@CASES
def test_the_solution_is_unique_and_picard_keeps_its_promise(attention, seed):
    c, Z = cell(seed, attention)
    rng, limit, certified = (
        np.random.default_rng(seed),
        solved(c, Z),
        attention_certificate({"R": c.R}, attention, Z.shape[2], False),
    )
    assert certified.proven
    for start in (cube(rng, Z), np.ones_like(limit), -np.ones_like(limit)):
        x, steps, residual = start, 0, np.inf
        problem = c.bind(Z)
        while residual > 1e-11:
            image = problem.f(x)
            now = np.abs(image - x).max()
            if residual > 1e-9 and steps:
                assert now <= 0.95 * (1 + 1e-6) * residual
                assert np.abs(image - limit).max() <= 0.95 / 0.05 * (1 + 1e-6) * now + 1e-13
                assert np.abs(x - limit).max() <= certified.error(now) * (1 + 1e-6)
            x, residual, steps = image, now, steps + 1
            assert steps <= 1000
        assert np.abs(x - limit).max() < 1e-9
    found = solvers.Picard(tol=1e-8)(c.bind(Z))
    assert found.all_converged
    # and at most two more until it is measured
    assert found.n_iter.max() <= certified.steps(1e-8, 1.0) + 3


@CASES
def test_kappa_is_homogeneous(attention, seed):
    c, Z = cell(seed, attention, size=None)
    n = Z.shape[2]
    for t in (0.1, 7.0):
        assert kappa(t * c.R, attention, n) == pytest.approx(t * kappa(c.R, attention, n), rel=1e-9)


def ascent(attention, c, rng, n, h, steps=150):
    """Pre-activations at which J is as large as a random search makes it."""
    best, Z = 0.0, rng.normal(size=(1, 1, n, 3 * h))
    x, size = np.zeros((1, 1, n, h)), 1.0
    for k in range(steps):
        trial = Z + size * rng.normal(size=Z.shape) * (rng.random(Z.shape) < 0.5)
        norm = np.abs(jacobian(c, x, trial)).sum(axis=1).max()
        if norm > best:
            best, Z = norm, trial
        size = 3.0 * 0.97**k + 0.02
    return best


@pytest.mark.parametrize("attention", [KernelAttention(), BoundedSoftmax()], ids=repr)
@pytest.mark.parametrize("kind", ["q", "k", "v", "all"])
def test_adversarial_search(attention, kind):
    """A search for the worst inputs never beats kappa, and comes near it.

    The bound is right, and not idle.
    """
    rng, ratio = np.random.default_rng(0), 0.0
    for _ in range(3):
        R = np.ones((1, 1, 3)) * rng.choice([-1.0, 1.0], (1, 1, 3))
        keep = {"q": [0, 1, 0], "k": [1, 0, 0], "v": [0, 0, 1], "all": [1, 1, 1]}[kind]
        R = R * np.array(keep)
        c = AttentionCell(R / kappa(R, attention, 4), attention, Mask())
        ratio = max(ratio, ascent(attention, c, rng, 4, 1))
    assert ratio <= EXACT
    assert ratio >= 0.5


@pytest.mark.parametrize(("size", "limits"), [(0.98, 1), (1.02, 2)])
def test_the_bound_is_sharp(size, limits):
    """Feedback through the values alone, identical tokens.

    Unique below kappa = 1, two limits above. For the queries likewise.
    """
    for T in (1, 4):
        R = np.array([[[0.0, 0.0, size * (T + 0.25) / T]]])
        c = AttentionCell(R, KernelAttention(), Mask())
        assert kappa(R, KernelAttention(), T) == pytest.approx(size)
        ends = []
        for start in (0.5, -0.5):
            X, problem = np.full((1, 1, T, 1), start), c.bind(np.zeros((1, 1, T, 3)))
            for _ in range(1000):
                X = problem.f(X)
            ends.append(float(X[0, 0, 0, 0]))
        assert (abs(ends[0] - ends[1]) > 0.1) == (limits == 2)


def test_row_sums_certify_nothing():
    """Rows of A sum to 0.95, and yet there are two limits.

    The value hears itself and its output.
    """
    R = np.array([[[0.0, 0.0, 0.95 / (1 - 0.95)]]])  # what the four-block form reduces to
    problem = AttentionCell(R, KernelAttention(), Mask()).bind(np.zeros((1, 1, 1, 3)))
    ends = []
    for start in (1.0, -1.0):
        X = np.full((1, 1, 1, 1), start)
        for _ in range(500):
            X = problem.f(X)
        ends.append(float(X[0, 0, 0, 0]))
    assert ends == pytest.approx([0.7983, -0.7983], abs=1e-4)
    assert not attention_certificate({"R": R}, KernelAttention(), 1, False).proven


def test_a_constant_that_is_too_small_is_caught():
    """The twin that is broken on purpose.

    With half the constant of the queries, two states do not come closer by that much.
    """
    R = np.array([[[0.0, 1.0, 0.0]]])
    c = AttentionCell(R, KernelAttention(), Mask())
    assert ascent(KernelAttention(), c, np.random.default_rng(3), 4, 1) > 0.5 * kappa(
        R, KernelAttention(), 4
    )


# ------------------------------------------------------------------------- causal masks


@given(st.sampled_from([*CERTIFIED, Softmax()]), st.integers(0, 10**6))
def test_diagonal_blocks(attention, seed):
    c, Z = one(*cell(seed, attention, size=0.95 if attention in CERTIFIED else None, mask="causal"))
    X = cube(np.random.default_rng(seed), Z)
    H, T, h = X.shape[1:]
    J = jacobian(c, X, Z).reshape(H, T, h, H, T, h)  # output first
    blocks, coupled = diagonal_blocks(c, c.at(X, Z)), c.R.shape[1] > h
    for t in range(T):
        full = J[:, t, :, :, t, :].transpose(2, 3, 0, 1).reshape(H * h, H * h)  # row vectors
        if coupled:
            desired = blocks[t]
        else:
            desired = np.zeros((H * h, H * h))
            for i in range(H):
                desired[i * h : (i + 1) * h, i * h : (i + 1) * h] = blocks[t * H + i]
        assert np.abs(full - desired).max() < 1e-12 * max(1, np.abs(full).max())
        assert not np.any(J[:, t, :, :, t + 1 :, :])
    rho = max(np.abs(np.linalg.eigvals(b)).max() for b in blocks)
    assert rho == pytest.approx(
        np.abs(np.linalg.eigvals(J.reshape(H * T * h, -1))).max(), rel=1e-3, abs=1e-3
    )


@settings(max_examples=10)
@given(st.sampled_from(CERTIFIED[:3]), st.integers(0, 10**6))
def test_token_by_token(attention, seed):
    """Feedback between the two bounds is no contraction, but the solution is unique.

    Every start ends there within the promised steps.
    """
    c, Z = cell(seed, attention, mask="causal")
    n, h = Z.shape[2], Z.shape[3] // 3
    if c.R.shape[1] > h:
        return
    R = c.R.copy()
    R[..., h : 2 * h] = 0.0
    R[..., 2 * h :] *= 0.01
    grow, least = 1.0, 1.0 / kappa(R, attention, n)
    while (
        grow < 5 and attention_certificate({"R": least * grow * 1.1 * R}, attention, n, True).proven
    ):
        grow *= 1.1
    found = attention_certificate({"R": least * grow * R}, attention, n, True, explain=True)
    if grow < 1.05:
        return
    assert "token by token" in found.reason
    assert not attention_certificate({"R": least * grow * R}, attention, n, False).proven
    problem, rng = (
        AttentionCell(least * grow * R, attention, c.mask).bind(Z),
        np.random.default_rng(seed),
    )
    ends = []
    for _ in range(3):
        x = cube(rng, Z)
        first = np.abs(problem.f(x) - x).max()
        for k in range(600):
            x = problem.f(x)
            if k % 50 == 0:
                assert (
                    np.abs(problem.f(x) - x).max()
                    <= found.constant * found.contraction ** (k + 1) * first * EXACT + 1e-12
                )
        ends.append(x)
    assert max(np.abs(x - ends[0]).max() for x in ends) < 1e-8


# ---------------------------------------------------------- inputs, and at the solution


@given(st.integers(0, 10**6))
def test_softmax_from_its_input(seed):
    """Where kappa_U < 1, the box holds the solution, and pairs in it come closer by kappa_U."""
    c, Z = one(*cell(seed, Softmax(), size=None))
    rng = np.random.default_rng(seed)
    c = AttentionCell(c.R * 0.3 / np.abs(c.R).sum(axis=1).max(), c.attention, c.mask)
    boxes, factor = input_factor(c, Z, Feedback.of({"R": c.R}))
    if not factor < 1:
        return
    problem, box = c.bind(Z), boxes[None, :, None, None]
    a, b = (box * cube(rng, Z) for _ in range(2))
    assert np.all(np.abs(problem.f(a)) <= box * EXACT)
    assert np.abs(problem.f(a) - problem.f(b)).max() <= factor * EXACT * np.abs(a - b).max()
    assert np.all(np.abs(solved(c, Z)) <= box * EXACT)


@given(st.sampled_from([*CERTIFIED, Softmax()]), st.integers(0, 10**6))
def test_second_derivatives_are_bounded(attention, seed):
    c, Z = one(
        *cell(
            seed,
            attention,
            size=float(np.random.default_rng(seed).choice([0.5, 2.0]))
            if attention in CERTIFIED
            else None,
        )
    )
    if isinstance(attention, Softmax):
        c = AttentionCell(c.R * 0.5 / np.abs(c.R).sum(axis=1).max(), c.attention, c.mask)
    rng = np.random.default_rng(seed)
    X, d, t = cube(rng, Z), rng.choice([-1.0, 1.0], (*Z.shape[:-1], Z.shape[-1] // 3)), 1e-4
    f = c.bind(Z).f
    measured = np.abs(f(X + t * d) - 2 * f(X) + f(X - t * d)).max() / t**2
    assert measured <= curvature(c, c.at(X, Z), Feedback.of({"R": c.R}), t) * (1 + 1e-3) + 1e-6


def loud(attention, size, seed=0, **options):
    """A head whose feedback is so large that its parameters prove nothing."""
    head = ImplicitAttentionHead(
        4, 3, num_heads=2, attention=attention, block_size=6, dtype="float64", rng=seed, **options
    )
    head = head.replace(constraint=Unconstrained())
    rng = np.random.default_rng(seed)
    head.params = {
        key: size * rng.normal(size=a.shape) if key == "R" else host(a)
        for key, a in head.params.items()
    }
    return head


@pytest.mark.parametrize(
    ("attention", "size"),
    [(KernelAttention(), 0.15), (BoundedSoftmax(), 0.25), (Softmax(), 0.1)],
    ids=repr,
)
@pytest.mark.parametrize("causal", [True, False])
def test_at_the_solution(attention, size, causal):
    proven = 0
    for seed in range(4):
        head = loud(attention, size, seed, causal=causal)
        U = np.random.default_rng(seed).normal(size=(3, 6, 4))
        exact = split(head.with_tol(1e-14).predict(U), 2)
        found = certify_attention(head, U, X=exact + 1e-6)
        proven += int(found.proven.sum())
        off = np.abs(exact - found.X).max(axis=(1, 2, 3))
        assert np.all(off <= found.error)
        assert np.all(found.error[found.proven] < 1e-3)
        assert np.all(found.radius[found.proven] >= found.error[found.proven])
        for r in range(3):
            c, Z = one(head._cell(Mask(causal)), head._inject(U), r)
            J = jacobian(c, found.X[r : r + 1], Z)
            assert np.abs(J).sum(axis=1).max() <= found.local[r] * EXACT
            if causal:
                assert found.diagonal[r] == pytest.approx(
                    np.abs(np.linalg.eigvals(J)).max(), rel=1e-4
                )
        assert causal or np.all(np.isnan(found.diagonal))
    assert proven >= 11
    far = certify_attention(loud(attention, 30 * size, causal=causal), U, X=exact)
    assert not far.proven.any()
    assert np.all(np.isinf(far.error))


def split(Y, H):
    return Y.reshape(*Y.shape[:2], H, -1).transpose(0, 2, 1, 3)


def test_what_is_certified_is_said():
    head = loud(BoundedSoftmax(), 0.25)
    U = np.random.default_rng(0).normal(size=(3, 6, 4))
    assert not head.certificate().proven
    assert "not below 1" in repr(head.certificate())
    found = certify_attention(head, U, [6, 2, 4])
    assert "3 of 3 solutions proven, 0 of them to be the only one" in repr(found)
    calm = head.replace(constraint=AttentionBall())
    calm.params = calm.project(calm.params)
    found = certify_attention(calm, U)
    assert "3 of 3 solutions proven, 3 of them to be the only one" in repr(found)
    assert np.all(np.isinf(found.radius))
    assert np.all(found.factor == calm.certificate().contraction)
    with pytest.raises(InputError, match="takes an ImplicitAttentionHead"):
        certify_attention("head", U)
    with pytest.raises(InputError, match="X has shape"):
        certify_attention(head, U, X=np.ones((3, 2)))


def test_softmax_is_never_certified_from_its_parameters():
    head = ImplicitAttentionHead(4, 3, attention=Softmax(), dtype="float64", rng=0)
    assert not head.certificate().proven
    assert "nothing follows from the parameters alone" in repr(head.certificate())
    U = np.random.default_rng(0).normal(size=(2, 5, 4))
    small = certify_attention(head, 0.05 * U)
    assert np.all(small.factor < 1)
    assert np.all(np.isinf(small.radius))
    large = certify_attention(head, 10 * U)
    assert np.all(large.factor > 1)
    assert not np.any(np.isinf(large.radius))
    values = head.replace()
    values.params = {"R": head.params["R"] * np.repeat([0.0, 0.0, 1.0], 3), "S": head.params["S"]}
    assert values.certificate().proven  # without feedback through q and k, it is that of the values


def test_softmax_has_several_solutions_for_any_size_of_feedback():
    """R_q = 0.05 alone, and pre-activations that are large enough: 0 and +-9.965 are solutions."""
    n = 5
    Z = np.zeros((1, 1, n, 3))
    Z[0, 0, :4, 0] = Z[0, 0, :4, 2] = [10, -10, 10, -10]
    c = AttentionCell(np.array([[[0.0, 0.05, 0.0]]]), Softmax(tau=1.0), Mask(causal=True))
    ends = []
    for start in (0.0, 5.0, -5.0):
        X = np.full((1, 1, n, 1), start)
        for _ in range(300):
            X = c.bind(Z).f(X)
        ends.append(float(X[0, 0, -1, 0]))
    assert ends[1] > 9
    assert ends[2] < -9
    assert input_factor(c, Z, Feedback.of({"R": c.R}))[1] > 1


# --------------------------------------------------------------------------- projection


@given(
    st.sampled_from([*CERTIFIED, Softmax()]),
    st.floats(0.5, 0.99),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 10**6),
)
def test_projection(attention, theta, dtype, seed):
    ball, rng = AttentionBall(0.95, theta), np.random.default_rng(seed)
    H, h = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    rows, n = h * int(rng.choice([1, H])), int(rng.integers(1, 40))
    params = {"R": feedback(rng, H, rows, h).astype(dtype)}
    inside = ball.project(params, attention, n)
    assert inside["R"].dtype == dtype
    assert ball.contains(inside, attention, n)
    assert np.array_equal(ball.project(inside, attention, n)["R"], inside["R"])
    if attention in CERTIFIED:
        assert kappa(inside["R"], attention, n) <= 0.95 * (1 + 1e-12)
    else:
        assert np.abs(inside["R"][..., 2 * h :].astype(float)).sum(axis=1).max() <= 0.95 * theta
        assert np.array_equal(inside["R"][..., : 2 * h], params["R"][..., : 2 * h])
    other = {"R": params["R"] + feedback(rng, H, rows, h).astype(dtype)}
    shorter = np.linalg.norm(ball.project(other, attention, n)["R"] - inside["R"].astype(float))
    assert shorter <= np.linalg.norm(other["R"] - params["R"].astype(float)) * (1 + 1e-6)


@given(
    st.sampled_from([*CERTIFIED, Softmax()]),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 10**6),
)
def test_projection_of_factors(attention, dtype, seed):
    ball, rng = AttentionBall(0.9), np.random.default_rng(seed)
    H, h, r = (int(rng.integers(1, top + 1)) for top in (3, 5, 4))
    params = {
        "L": rng.normal(size=(H, h, r)).astype(dtype),
        "M": rng.normal(size=(H, r, 3 * h)).astype(dtype),
    }
    inside = ball.project(params, attention, 7)
    assert ball.contains(inside, attention, 7)
    assert all(inside[key].dtype == dtype for key in "LM")
    again = ball.project(inside, attention, 7)
    assert all(np.array_equal(again[key], inside[key]) for key in "LM")
    certified = attention_certificate(inside, attention, 7, False)
    assert certified.proven == (attention in CERTIFIED)
    if certified.proven and not ball.contains(params, attention, 7):
        assert certified.contraction == pytest.approx(0.9, rel=1e-4)


def test_projection_on_every_library(xp):
    head = moved(ImplicitAttentionHead(4, 3, num_heads=2, block_size=6, dtype="float64", rng=0), xp)
    params = {key: 5 * a for key, a in head.params.items()}
    desired = head.constraint.project({"R": host(params["R"])}, head.attention, 6)["R"]
    assert relative(head.project(params)["R"], desired) == 0
    low = moved(ImplicitAttentionHead(4, 3, num_heads=2, block_size=6, rank=2, rng=0), xp)
    low.params = low.project({key: 5 * a for key, a in low.params.items()})
    assert low.certificate().proven
    assert np.all(certify_attention(low, from_host(xp, np.ones((2, 6, 4), np.float32))).proven)


def test_the_ball_is_checked():
    for options in ({"kappa": 1.0}, {"kappa": 0.0}, {"theta": 0.4}, {"theta": 1.0}):
        with pytest.raises(InputError, match=r"kappa|theta"):
            AttentionBall(**options)
    with pytest.raises(InputError, match="block_size"):
        AttentionBall().project({"R": np.ones((1, 2, 6))}, KernelAttention(), None)
    with pytest.raises(InputError, match="block_size"):
        AttentionBall().project(
            {"L": np.ones((1, 2, 1)), "M": np.ones((1, 1, 6))}, KernelAttention(), None
        )
    assert "block_size" in repr(
        attention_certificate({"R": np.ones((1, 2, 6))}, KernelAttention(), None, True)
    )


def test_float32_contracts_too():
    for attention in CERTIFIED:
        for seed in range(10):
            c, Z = cell(seed, attention, dtype=np.float32)
            rng, problem = np.random.default_rng(seed), c.bind(Z)
            a, b = (cube(rng, Z).astype(np.float32) for _ in range(2))
            for _ in range(30):
                before = np.abs(a - b).max()
                if before < 1e-3:
                    break
                a, b = problem.f(a), problem.f(b)
                assert a.dtype == np.float32
                assert np.abs(a - b).max() <= 0.95 * (1 + 1e-4) * before
            found, pull = equilibrium(c, Z)
            assert found.dtype == np.float32
            assert pull(np.ones_like(found))[0].dtype == np.float32


def test_phi_is_damped_where_it_is_large():
    s = np.linspace(-50, 50, 10001)
    assert np.all(phi_slope(s) <= 1 - squash(s) ** 2 + 1e-15)
