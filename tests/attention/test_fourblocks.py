"""The four-block form and the reduced one.

The same fixed points and gradients, and what has no effect.
"""

import numpy as np
import pytest
from attention_problems import ALL, kappa
from helpers import host, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitAttentionHead, KernelAttention, Softmax
from pyidl.arrays.backend import from_host
from pyidl.attention.feedback import combined, mu
from pyidl.attention.fourblocks import from_four_blocks, pull_four_blocks, to_four_blocks
from pyidl.attention.weighted_mean import Mask
from pyidl.errors import InputError

H, E, N, T, M = 2, 4, 3, 5, 2


def problem(seed, radius=0.5):
    """A and B whose leading block has this spectral radius, and inputs."""
    rng = np.random.default_rng(seed)
    A, B = 0.1 * rng.normal(size=(H, 4 * N, 4 * N)), rng.normal(size=(H, E, 4 * N))
    for a in A:
        a[: 3 * N, : 3 * N] = rng.normal(size=(3 * N, 3 * N))
        a[: 3 * N, : 3 * N] *= radius / np.abs(np.linalg.eigvals(a[: 3 * N, : 3 * N])).max()
    return A, B, rng.normal(size=(M, T, E))


def four_block(attention, A, B, U, causal=True, tol=1e-14, limit=20_000):
    """Oracle: Picard on all four blocks; ``(outputs, steps)``."""
    X = np.zeros((len(U), H, T, 4 * N))
    Z = np.stack([U @ b for b in B], axis=1)
    for k in range(limit):  # noqa: B007
        pre = X @ A + Z
        out = attention(pre[..., :N], pre[..., N : 2 * N], pre[..., 2 * N : 3 * N], Mask(causal))
        X, old = np.concatenate([pre[..., : 3 * N], out], axis=-1), X
        if np.abs(X - old).max() <= tol:
            break
    return X[..., 3 * N :], k


def head_of(attention, params):
    head = ImplicitAttentionHead(
        E, N, num_heads=H, attention=attention, block_size=T, dtype="float64", rng=0
    )
    head.params = params
    return head.with_tol(1e-14)


@pytest.mark.parametrize("attention", ALL, ids=repr)
def test_the_same_outputs(attention):
    A, B, U = problem(0)
    desired, _ = four_block(attention, A, B, U)
    found = head_of(attention, from_four_blocks(A, B))(U)[1].forward.value
    assert np.abs(found - desired).max() < 1e-9
    other, turned = A.copy(), B.copy()
    other[..., 3 * N :], turned[..., 3 * N :] = 7.0, -3.0
    assert np.array_equal(four_block(attention, other, turned, U)[0], desired)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(from_four_blocks(other, turned).values(), from_four_blocks(A, B).values())
    )


def test_the_reduced_iteration_does_not_know_the_leading_block():
    steps = []
    for radius in (0.3, 0.9):
        A, B, U = problem(1, radius)
        R = from_four_blocks(A, B)["R"]
        A[:, 3 * N :, : 3 * N] *= 0.5 / kappa(R, KernelAttention(), T)
        head = head_of(KernelAttention(), from_four_blocks(A, B))
        steps.append(
            (four_block(KernelAttention(), A, B, U, tol=1e-12)[1], head(U)[1].forward.n_iter.max())
        )
    assert steps[1][0] > 2 * steps[0][0]
    assert steps[1][1] < 60


@pytest.mark.parametrize("attention", ALL[::3], ids=repr)
def test_gradients_by_central_differences(attention):
    (A, B, U), rng = problem(2), np.random.default_rng(0)
    G = rng.normal(size=(M, T, H * N))
    head = head_of(attention, from_four_blocks(A, B))
    grads = pull_four_blocks(A, B, head(U)[1](G)[1])
    for key, value in (("A", A), ("B", B)):
        d = rng.normal(size=value.shape)
        d /= np.linalg.norm(d)

        def loss(t, key=key, d=d):
            at = {"A": A, "B": B}
            at[key] = at[key] + t * d
            return np.sum(G * head_of(attention, from_four_blocks(at["A"], at["B"])).predict(U))

        h = 3e-4
        measured = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        assert abs(measured - np.sum(grads[key] * d)) < 1e-7 * np.linalg.norm(grads[key])
        assert not np.any(grads[key][..., 3 * N :])


def test_there_and_back(xp):
    head = ImplicitAttentionHead(E, N, num_heads=H, attention=Softmax(), dtype="float64", rng=0)
    params = {key: from_host(xp, np.array(host(a))) for key, a in head.params.items()}
    A, B = to_four_blocks(params)
    back = from_four_blocks(A, B)
    assert all(relative(back[key], params[key]) < 1e-15 for key in "RS")
    low = ImplicitAttentionHead(
        E, N, num_heads=H, attention=Softmax(), dtype="float64", rank=1, rng=0
    )
    assert (
        relative(
            from_four_blocks(*to_four_blocks(low.params))["R"], low.params["L"] @ low.params["M"]
        )
        < 1e-15
    )
    A, B, _ = problem(3)
    desired = pull_four_blocks(A, B, head.params)
    found = pull_four_blocks(from_host(xp, A), from_host(xp, B), params)
    assert all(relative(found[key], desired[key]) < 1e-12 for key in "AB")


@given(st.integers(0, 10**6))
def test_the_reduced_condition_is_never_the_stronger(seed):
    """What block norms certify in the four-block state, the reduced form certifies too.

    The condition is ``N(alpha (z_k + z_q), z_v n / (n + c)) < 1``.
    """
    A, B, _ = problem(seed, float(np.random.default_rng(seed).uniform(0.05, 0.4)))
    R = from_four_blocks(A, B)["R"]
    for i in range(H):
        norms = np.array(
            [
                [np.abs(A[i, a : a + N, b : b + N]).sum(axis=0).max() for b in (0, N, 2 * N)]
                for a in (0, N, 2 * N, 3 * N)
            ]
        )
        if np.abs(np.linalg.eigvals(norms[:3])).max() >= 1:
            continue
        z = norms[3] @ np.linalg.inv(np.eye(3) - norms[:3])
        attention, n = KernelAttention(), T
        alpha = 2 * np.sqrt(attention.scale(N) * N) * mu(attention.c / n)
        assert kappa(R[i : i + 1], attention, n) <= combined(
            alpha * (z[0] + z[1]), n / (n + attention.c) * z[2]
        ) * (1 + 1e-12)


def test_what_does_not_fit():
    A, B, _ = problem(0)
    for a, b in (
        (A[0], B),
        (A[..., :8], B),
        (A, B[:1]),
        (A, B[..., :4]),
        (np.ones((1, 6, 6)), np.ones((1, 4, 6))),
    ):
        with pytest.raises(InputError, match="four-block form"):
            from_four_blocks(a, b)
    coupled = ImplicitAttentionHead(E, N, num_heads=H, attention=Softmax(), coupled=True, rng=0)
    with pytest.raises(InputError, match="coupled=False"):
        to_four_blocks(coupled.params)


def test_a_singular_block_is_refused(xp):
    """Also where the library returns numbers for its inverse."""
    A, B = from_host(xp, np.stack([np.zeros((8, 8)), np.eye(8)])), from_host(xp, np.ones((2, 3, 8)))
    with pytest.raises(InputError, match="singular"):
        from_four_blocks(A, B)
