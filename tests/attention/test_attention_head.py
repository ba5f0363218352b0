"""The implicit attention head.

Gradients against three oracles, what must be equal, decoding, padding, files, and the
door.
"""

import copy
import pickle

import numpy as np
import pytest
from attention_problems import ALL, cell, jacobian, plain, solved, squash, unrolled
from helpers import host, moved, relative
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import (
    BoundedSoftmax,
    ImplicitAttentionHead,
    KernelAttention,
    Sequential,
    Softmax,
    activations,
    solvers,
)
from pyidl.arrays.backend import from_host
from pyidl.attention import AttentionBall
from pyidl.attention.cell import AttentionCell
from pyidl.attention.weighted_mean import Mask
from pyidl.equilibrium import equilibrium
from pyidl.errors import ConvergenceError, InputError
from pyidl.layers import Linear
from pyidl.testing import check_pullback
from pyidl.wellposed import InfNorm, Unconstrained

E, M, T = 4, 3, 6
OPTIONS = {
    "kernel": {},
    "kernel, full": {"causal": False, "attention": KernelAttention(bandwidth=0.7, c=1.0)},
    "bounded": {"attention": BoundedSoftmax()},
    "bounded, full": {"attention": BoundedSoftmax(tau=1.0), "causal": False, "num_heads": 1},
    "softmax": {"attention": Softmax()},
    "softmax, full": {"attention": Softmax(tau=0.2), "causal": False},
    "coupled": {"coupled": True},
    "coupled softmax": {"coupled": True, "attention": Softmax()},
    "rank": {"rank": 2},
    "coupled, rank": {"coupled": True, "rank": 4, "attention": BoundedSoftmax()},
    "tiles": {"attention": KernelAttention(tile=4)},
    "tiles, softmax": {"attention": Softmax(tile=2), "causal": False},
    "anderson and gmres": {"forward": solvers.Anderson(), "adjoint": solvers.GMRES()},
    "damped and direct": {"forward": solvers.Picard(damping=0.2), "adjoint": solvers.Direct()},
    "one number": {"num_heads": 1, "head_dim": 1},
}


def build(option, seed=0, dtype="float64"):
    options = {"num_heads": 2, "head_dim": 3, "block_size": T} | OPTIONS[option]
    head = ImplicitAttentionHead(E, options.pop("head_dim"), dtype=dtype, rng=seed, **options)
    rng = np.random.default_rng(seed + 1)
    noisy = {
        key: host(a) + rng.normal(size=a.shape) * (0.3 if key == "S" else 1.0)
        for key, a in head.params.items()
    }
    # what its constraint leaves free must not grow too large
    if isinstance(head.attention, Softmax):
        noisy = {key: a if key == "S" else 0.12 * a for key, a in noisy.items()}
    head.params = head.project({key: a.astype(dtype) for key, a in noisy.items()})
    return head


def tokens(seed=0, m=M):
    return np.random.default_rng(100 + seed).normal(size=(m, T, E))


def product(p):
    return p["R"] if "R" in p else p["L"] @ p["M"]


def split(Y, H):
    return Y.reshape(*Y.shape[:2], H, -1).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("option", OPTIONS)
def test_against_central_differences(option):
    head = build(option)
    report = check_pullback(head, tokens(), rng=3, rtol=1e-6)
    assert set(report.errors) == {"U", *head.params}
    assert report.max_error < 1e-6


@pytest.mark.parametrize("option", OPTIONS)
def test_against_the_unrolled_iteration(option, xp):
    """``<G, dY>`` along a direction of all parameters and inputs.

    By a complex step through every step of the iteration.
    """
    head, U, rng = build(option, 1), tokens(1), np.random.default_rng(5)
    p = {key: host(a) for key, a in head.params.items()}
    d = {key: rng.normal(size=a.shape) for key, a in {"U": U, **p}.items()}
    G = rng.normal(size=(M, T, head.num_heads * head.head_dim))
    turned = {key: a + 1e-30j * d[key] for key, a in p.items()}
    X = unrolled(
        head.attention, product(turned), turned["S"], U + 1e-30j * d["U"], head.causal, 150
    )
    desired = np.sum(split(G, head.num_heads) * X.imag) / 1e-30
    Y, pull = moved(head, xp).with_tol(1e-14)(from_host(xp, U))
    assert np.abs(split(host(Y), head.num_heads) - X.real).max() < 1e-12
    dU, grads = pull(from_host(xp, G))
    terms = np.concatenate([(host(g) * d[key]).ravel() for key, g in {"U": dU, **grads}.items()])
    assert abs(terms.sum() - desired) < 1e-11 * np.abs(terms).sum()


@pytest.mark.parametrize("option", OPTIONS)
def test_against_a_dense_adjoint_solve(option):
    """J and the derivatives of one step by complex steps, ``(I - J^T) L = g`` sample by sample."""
    head, U, rng = build(option, 2), tokens(2), np.random.default_rng(6)
    p = {key: host(a) for key, a in head.params.items()}
    R, G, H = product(p), rng.normal(size=(M, T, head.num_heads * head.head_dim)), head.num_heads
    X = unrolled(head.attention, R, p["S"], U, head.causal, 300)

    def step(X, R=R, S=p["S"], U=U):
        return plain(head.attention, R, S, U, head.causal, X)

    L = np.zeros_like(X)
    for r in range(M):
        n = X[r].size
        J = (
            np.stack(
                [
                    step(
                        X[r : r + 1] + 1e-30j * e.reshape(X[r : r + 1].shape), U=U[r : r + 1]
                    ).imag.ravel()
                    for e in np.eye(n)
                ]
            )
            / 1e-30
        )
        # row j of this J is column j of the Jacobian
        L[r] = np.linalg.solve(np.eye(n) - J, split(G, H)[r].ravel()).reshape(X[r].shape)

    def derivative(**turned):
        return np.sum(L * step(X + 0j, **turned).imag) / 1e-30

    grad_R = np.array(
        [derivative(R=R + 1e-30j * e.reshape(R.shape)) for e in np.eye(R.size)]
    ).reshape(R.shape)
    grad_S = np.array(
        [derivative(S=p["S"] + 1e-30j * e.reshape(p["S"].shape)) for e in np.eye(p["S"].size)]
    ).reshape(p["S"].shape)
    grad_U = np.array(
        [derivative(U=U + 1e-30j * e.reshape(U.shape)) for e in np.eye(U.size)]
    ).reshape(U.shape)
    oracle = {"U": grad_U, "S": grad_S, "R": grad_R}
    if "L" in p:
        oracle |= {"L": grad_R @ p["M"].transpose(0, 2, 1), "M": p["L"].transpose(0, 2, 1) @ grad_R}
    dU, grads = head.with_tol(1e-14)(U)[1](G)
    for key, g in {"U": dU, **grads}.items():
        assert relative(g, oracle[key]) < 1e-10, key


@given(st.sampled_from(ALL[:5]), st.integers(0, 10**6))
def test_two_adjoints_agree(attention, seed):
    c, Z = cell(seed, attention)
    X = solved(c, Z)
    G = np.random.default_rng(seed).normal(size=X.shape)
    _, pull = equilibrium(
        c, Z, forward=solvers.Picard(tol=1e-14), adjoint=solvers.Picard(tol=1e-14)
    )
    v = pull.solve(G).value
    for r in range(len(X)):
        own = AttentionCell(c.R, c.attention, c.mask.take(np.array([r])))
        J = jacobian(own, X[r : r + 1], Z[r : r + 1])
        desired = np.linalg.solve(np.eye(len(J)) - J.T, G[r].ravel())
        assert np.abs(v[r].ravel() - desired).max() < 1e-10 * max(1, np.abs(desired).max())


@pytest.mark.parametrize("attention", ALL, ids=repr)
def test_without_feedback_it_is_attention(attention):
    head = ImplicitAttentionHead(
        E, 3, num_heads=2, attention=attention, block_size=T, dtype="float64", rng=0
    )
    head.params = {**head.params, "R": np.zeros_like(head.params["R"])}
    U, G = tokens(), np.random.default_rng(0).normal(size=(M, T, 6))
    Y, pull = head(U)
    Z = np.stack([U @ S for S in head.params["S"]], axis=1)
    once = attention(Z[..., :3], Z[..., 3:6], Z[..., 6:], Mask(causal=True))
    assert relative(split(Y, 2), once) < 1e-14
    assert np.all(pull.forward.n_iter == 1)  # the first measurement
    assert np.all(pull.forward.residual <= 1e-15)
    assert np.array_equal(pull.equilibrium.solve(split(G, 2)).value, split(G, 2))
    assert np.any(pull(G)[1]["R"])  # and training can leave it


def test_one_token_tied():
    """R_q = R_k, S_q = S_k and one token: q = k, so that o = phi(v) / (1 + c)."""
    head = build("kernel")
    R, S = (np.array(head.params[key]) for key in "RS")
    R[..., 3:6], S[..., 3:6] = R[..., :3], S[..., :3]
    head.params = {"R": R, "S": S}
    U = tokens()[:, :1]
    out = split(head.with_tol(1e-14).predict(U), 2)
    v = out @ R[..., 6:] + np.stack([U @ s for s in S[..., 6:]], axis=1)
    assert np.abs(out - squash(v) / 1.25).max() < 1e-12


@pytest.mark.parametrize("option", OPTIONS)
def test_symmetries(option):
    head = build(option, 3).with_tol(1e-14)
    U = tokens(3)
    Y = head.predict(U)
    for r in range(M):
        assert np.abs(head.predict(U[r : r + 1])[0] - Y[r]).max() < 1e-10, "samples meet"
    if head.causal:
        for i in (1, 3, T):
            assert np.abs(head.predict(U[:, :i]) - Y[:, :i]).max() < 1e-10, "the future is seen"
    else:
        order = np.random.default_rng(0).permutation(T)
        assert np.abs(head.predict(U[:, order]) - Y[:, order]).max() < 1e-10
    if not head.coupled:
        for i in range(head.num_heads):
            own = type(head)._with(
                {**head._config(), "num_heads": 1},
                {k: a[i : i + 1] for k, a in head.params.items()},
            )
            h = head.head_dim
            assert np.abs(own.predict(U) - Y[..., i * h : (i + 1) * h]).max() < 1e-10, "heads meet"


def test_a_coupled_head_hears_the_others():
    """The property that heads do not meet fails where they are meant to."""
    head = build("coupled", 3)
    moved_ = np.array(head.params["S"])
    moved_[1] += 0.5
    other = head.replace()
    other.params = {**head.params, "S": moved_}
    assert np.abs(other.predict(tokens()) - head.predict(tokens()))[..., :3].max() > 1e-3


@pytest.mark.parametrize(
    "option", ["kernel", "bounded, full", "softmax", "coupled", "rank", "tiles, softmax"]
)
def test_padding_is_neither_seen_nor_sees(option, xp):
    head = build(option, 4).with_tol(1e-14)
    U, lengths = tokens(4), np.array([2, T, 4])
    twin = moved(head, xp)
    Y, pull = twin(from_host(xp, U), lengths)
    G = np.random.default_rng(0).normal(size=Y.shape)
    (dU, none), grads = pull(from_host(xp, G))
    assert none is None
    Y, dU, sums = host(Y), host(dU), dict.fromkeys(grads, 0.0)
    for r, length in enumerate(lengths):
        alone, own = head(U[r : r + 1, :length])
        assert np.abs(Y[r, :length] - alone[0]).max() < 1e-10
        dalone, galone = own(G[r : r + 1, :length])
        assert np.abs(dU[r, :length] - dalone[0]).max() < 1e-9
        assert not np.any(Y[r, length:])
        assert not np.any(dU[r, length:])
        sums = {key: sums[key] + galone[key] for key in sums}
    for key, g in grads.items():
        assert relative(g, sums[key]) < 1e-9, key
    assert np.abs(host(twin.predict(from_host(xp, U), lengths, batch_size=2)) - Y).max() < 1e-10
    scattered = np.array([[1, 0, 1, 1, 0, 1]] * M, bool)
    assert (
        np.abs(head.predict(U, scattered)[:, scattered[0]] - head.predict(U[:, scattered[0]])).max()
        < 1e-10
    )


def test_lengths_pass_through_a_chain():
    chain = Sequential(Linear(E, E, rng=0), activations.tanh, build("kernel", dtype="float32"))
    Y, pull = chain(tokens(), lengths=[1, 6, 3])
    assert not np.any(Y[0, 1:])
    (dU, _), grads = pull(np.ones_like(Y))
    assert dU.shape == tokens().shape
    assert "2.R" in grads


# ----------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "option", ["kernel", "bounded", "softmax", "coupled", "rank", "tiles", "anderson and gmres"]
)
def test_decoding_is_the_whole_forward(option, xp):
    head = moved(build(option, 5).with_tol(1e-14 if xp is np else 1e-11), xp)
    U = tokens(5)
    Y, cache = host(head.predict(from_host(xp, U))), head.start(M)
    for t in range(T):
        y, cache = head.step(from_host(xp, U[:, t]), cache)
        assert np.abs(host(y) - Y[:, t]).max() < 1e-10
    assert cache.length == T
    assert repr(cache) == "Cache(3 sequences of 6 tokens)"


def test_the_solve_alone():
    """The states, with a trace, from any start; padding as in a call."""
    U = np.random.default_rng(5).normal(size=(2, 6, 4))
    head = ImplicitAttentionHead(4, 3, num_heads=2, block_size=6, dtype="float64", rng=0)
    for lengths in (None, [6, 2]):
        found = head.equilibrium(U, lengths, trace=True)
        desired = head(U, lengths)[1].forward
        assert np.array_equal(found.value, desired.value)
        assert found.trace.shape == (found.n_iter.max(), 2)
        again = head.equilibrium(U, lengths, x0=found.value)
        assert again.n_iter.max() <= 2
        assert np.abs(again.value - found.value).max() < 1e-11
    with pytest.raises(
        InputError,
        match=r"x0 has shape \(2, 6, 6\); the states of these inputs have \(2, 2, 6, 3\)",
    ):
        head.equilibrium(U, x0=np.zeros((2, 6, 6)))


def test_two_continuations_of_one_cache():
    head, U = build("kernel").with_tol(1e-14), tokens()
    cache = head.start(M)
    for t in range(3):
        _, cache = head.step(U[:, t], cache)
    first, _ = head.step(U[:, 3], cache)
    _, other = head.step(U[:, 4], cache)
    again, _ = head.step(U[:, 3], cache)
    assert np.array_equal(first, again)
    assert (cache.length, other.length) == (3, 4)


def test_decoding_refuses():
    head = build("kernel")
    with pytest.raises(InputError, match="not causal"):
        build("kernel, full").start(1)
    cache = head.start(2)
    with pytest.raises(InputError, match=r"u has shape \(3, 4\)"):
        head.step(np.ones((3, E)), cache)
    for _ in range(T):
        _, cache = head.step(np.ones((2, E)), cache)
    with pytest.raises(InputError, match="holds 6 tokens, which is block_size"):
        head.step(np.ones((2, E)), cache)


# ------------------------------------------------------------------------ being a layer


def test_float32_is_close_to_float64():
    for option in OPTIONS:
        exact = build(option)
        single = exact.astype("float32")
        G = np.random.default_rng(0).normal(size=(M, T, exact.num_heads * exact.head_dim))
        (Y, pull), (Y32, pull32) = exact(tokens()), single(tokens())
        assert Y32.dtype == np.float32
        assert relative(Y32, Y) < 1e-5
        for a, b in zip(pull32(G)[1].values(), pull(G)[1].values()):
            assert relative(a, b) < 1e-4


@pytest.mark.parametrize("option", OPTIONS)
def test_files_pickles_and_copies(option, tmp_path):
    head = build(option)
    pyidl.save(tmp_path / "head.npz", head)
    for twin in (
        pyidl.load(tmp_path / "head.npz"),
        pickle.loads(pickle.dumps(head)),
        copy.deepcopy(head),
        head.to("cpu"),
        head.replace(),
    ):
        assert np.array_equal(twin.predict(tokens()), head.predict(tokens()))
        assert repr(twin) == repr(head)
        assert twin.attention == head.attention
        assert twin.constraint == head.constraint


def test_training_stays_in_the_ball():
    """Gradient steps that would leave the set are brought back.

    Every fixed point on the way is certified.
    """
    head, U = (
        ImplicitAttentionHead(
            E, 3, block_size=T, attention=BoundedSoftmax(), rng=0, constraint=AttentionBall(0.7)
        ),
        tokens(),
    )
    optimiser, target = pyidl.optim.Adam(0.1), np.ones((M, T, 3), np.float32)
    for _ in range(30):
        Y, pull = head(U)
        grads = pull(Y - target, inputs=False)[1]
        head.params = head.project(optimiser.step(head.params, grads))
        assert head.certificate().contraction <= 0.7 * (1 + 1e-6)
    assert np.abs(head.predict(U) - target).mean() < 0.5 * np.abs(target).mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_dim": 0}, "head_dim is 0"),
        ({"num_heads": 1.5}, "num_heads is 1.5"),
        ({"block_size": None}, "give the head a block_size"),
        ({"block_size": 0}, "block_size is 0"),
        ({"attention": "softmax"}, "attention is 'softmax'"),
        ({"constraint": InfNorm(0.9)}, "use AttentionBall"),
        ({"causal": 1}, "causal is 1"),
        ({"forward": "picard"}, "forward is 'picard'"),
        ({"rank": 9}, "rank is 9, but R has only 3 rows"),
        ({"dtype": "float16"}, "dtype 'float16'"),
    ],
)
def test_the_configuration_is_checked(options, words):
    with pytest.raises(InputError, match=words):
        ImplicitAttentionHead(E, **{"head_dim": 3, "block_size": T, **options})


def test_inputs_are_checked():
    head = build("kernel")
    for shape in ((M, E), (M, T, E + 1), (0, T, E), (M, 0, E)):
        with pytest.raises(InputError, match="takes tokens"):
            head(np.ones(shape))
    with pytest.raises(InputError, match=r"7 tokens, block_size is 6; .*replace\(block_size=7\)"):
        head(np.ones((M, T + 1, E)))
    with pytest.raises(InputError, match="lengths lie between 0 and 6"):
        head(tokens(), [0, 6, 3])
    with pytest.raises(InputError, match="use head"):
        build("softmax, full").start(1)


@pytest.mark.parametrize(
    ("width", "shape", "index"),
    [
        (E, (T, E), "[None, :, :]"),
        (1, (M, T), "[:, :, None]"),
        (1, (T, 1), "[None, :, :]"),
        (E, (M, T), ""),
        (1, (0, T), ""),
        (E, (E,), ""),
    ],
)
def test_a_hint_is_given_where_it_works(width, shape, index):
    layer, U = ImplicitAttentionHead(width, 2, block_size=T, rng=0), np.ones(shape, "float32")
    with pytest.raises(InputError, match="takes tokens") as refused:
        layer(U)
    _, use, found = str(refused.value).partition(" use U")
    assert (bool(use), found) == (bool(index), index)
    if index:
        layer(eval(f"U{index}"))


def test_a_longer_context_is_certified_anew():
    head = build("kernel")
    head.params = head.project({key: 10 * a for key, a in head.params.items()})
    longer = head.replace(block_size=500)
    assert head.certificate().proven
    assert longer.certificate().contraction > head.certificate().contraction
    longer.params = longer.project(longer.params)
    assert longer.certificate().proven
    assert longer.predict(np.ones((1, 500, E))).shape == (1, 500, 6)


def test_without_a_solution_it_says_so():
    """Softmax whose values feed back by more than 1 diverges.

    The failure is raised, with the certificate.
    """
    options = {"constraint": Unconstrained(), "forward": solvers.Picard()}
    head = ImplicitAttentionHead(1, 1, attention=Softmax(), dtype="float64", rng=0, **options)
    head.params = {"R": np.array([[[0.0, 0.0, 1.9]]]), "S": np.array([[[0.0, 0.0, 1.0]]])}
    with pytest.raises(ConvergenceError, match="DIVERGED") as failure:
        head(np.ones((1, 1, 1)))
    assert "not certified" in str(failure.value)


def test_the_printed_form():
    head = build("bounded")
    assert "BoundedSoftmax" in repr(head)
    _, pull = head(tokens())
    assert "AttentionPullback" in repr(pull)
    assert pull.solutions[0].value.shape == (M, 2, T, 3)
    assert relative(pull.weights().sum(axis=-1), np.ones((M, 2, T))) < 1e-14
