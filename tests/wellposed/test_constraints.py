"""Every projection is feasible, idempotent, and nearest where the set is convex.

And training does not leave the set.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
from conditions import AROUND, CONSTRAINTS, ETA, N, SoftmaxInside, hard_matrix, mixed, slack_of
from helpers import host
from hypothesis import given
from hypothesis import strategies as st

import pyidl
from pyidl import ImplicitModel, ImplicitRNN, Pattern, activations, losses, optim
from pyidl.activations import Activation
from pyidl.arrays.backend import from_host, namespace
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.wellposed import (
    BlockTriangular,
    InfNorm,
    LipschitzBound,
    MatrixMeasure,
    Monotone,
    PerronFrobenius,
    SpectralNorm,
    StrictlyTriangular,
    Unconstrained,
)
from pyidl.wellposed.blocktriangular import innermost
from pyidl.wellposed.eigenvalues import spectral_bound
from pyidl.wellposed.perronfrobenius import factor_of, positive_scaling
from pyidl.wellposed.projections import l1_ball_rows, measure_rows, weighted_l1_ball_rows

CONVEX = [c for c in CONSTRAINTS if "PerronFrobenius" not in repr(c)]
LOW_RANK = [
    InfNorm(0.9),
    InfNorm(0.9, ETA),
    PerronFrobenius(0.9),
    SpectralNorm(0.9),
    MatrixMeasure(0.9, ETA),
    Monotone(0.2),
    Unconstrained(),
]
together = SoftmaxInside()


def by_definition(constraint, A, activation, slack=1e-9):
    """Whether A lies in the set, up to `slack`: an oracle for `contains`.

    Computed from the definition with an eigenvalue or a sum.
    """
    L = np.array(activation.row_lipschitz(len(A)))
    eta = np.array(getattr(constraint, "weights", None) or np.ones(len(A)))
    even = np.abs(A) * eta / eta[:, None] * L[:, None]
    match constraint:
        case InfNorm():
            return even.sum(axis=1).max() <= constraint.kappa * (1 + slack)
        case PerronFrobenius():
            return np.abs(np.linalg.eigvals(even)).max() <= constraint.kappa * (1 + slack) + 1e-7
        case StrictlyTriangular():
            return not np.tril(A).any()
        case SpectralNorm():
            return np.linalg.norm(A, 2) * L.max() <= constraint.kappa * (1 + slack)
        case MatrixMeasure():
            off = even - np.diag(np.diagonal(even))
            return np.all(
                L * np.diagonal(A) + off.sum(axis=1)
                <= constraint.kappa + slack * (1 + np.abs(A).max())
            )
        case Monotone():
            top = np.linalg.eigvalsh((A + A.T) / 2)[-1]
            return top * L.max() <= 1 - constraint.margin + slack * (1 + np.abs(A).max())
        case LipschitzBound():
            F = slack_of(constraint.gamma, A, **AROUND, lam=eta, margin=constraint.margin)
            return np.linalg.eigvalsh(F)[0] >= -2 * slack * (1 + np.abs(even).max())
        case BlockTriangular():
            ends = np.cumsum([0, *constraint.blocks])
            pieces = [slice(a, b) for a, b in pairwise(ends)]
            return all(
                by_definition(inner, A[p, p], activation.columns(p), slack)
                and not A[p, : p.start].any()
                for p, inner in zip(pieces, inner_sets(constraint), strict=True)
            )
    return True


def inner_sets(constraint):
    """Of a block triangular one, the set of every block."""
    inner = constraint.inner
    return inner if isinstance(inner, tuple) else (inner,) * len(constraint.blocks)


def tame(A, dtype):
    """Within the range of the dtype."""
    return np.clip(A, -1e30, 1e30).astype(dtype)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([activations.relu, activations.sigmoid, mixed]),
)
def test_projection_is_feasible_and_idempotent(constraint, seed, dtype, activation):
    params = {**AROUND, "A": tame(hard_matrix(np.random.default_rng(seed), N), dtype)}
    projected = constraint.project(params, activation)
    assert projected["B"] is params["B"]
    assert projected["A"].dtype == dtype
    assert constraint.contains(projected, activation)
    assert by_definition(constraint, projected["A"].astype(float), activation)
    assert constraint.project(projected, activation)["A"] is projected["A"]
    if constraint.contains(params, activation):
        assert projected["A"] is params["A"]
    else:
        assert not by_definition(constraint, params["A"].astype(float), activation, slack=-1e-6)


def normal_cone_violation(constraint, A, P):
    """How far A - P is from the normal cone of the set at P, relative.

    Zero exactly for the nearest point of a convex set.
    """
    D = A - P
    size = np.abs(A).max() + 1e-300
    eta = np.array(getattr(constraint, "weights", None) or np.ones(len(A)))
    w = eta / eta[:, None]
    match constraint:
        case InfNorm():  # <a - p, p> = r max |a - p| / w, and p on the boundary, where a is outside
            gauge = (np.abs(D) / w).max(axis=1)
            return np.abs((D * P).sum(axis=1) - constraint.kappa * gauge).max() / size
        case SpectralNorm():
            return abs((D * P).sum() - constraint.kappa * np.linalg.norm(D, "nuc")) / size
        case Monotone():  # D is symmetric, positive semidefinite, and orthogonal to the slack
            r = 1 - constraint.margin
            slack = r * np.eye(len(A)) - (P + P.T) / 2
            return (
                max(
                    np.abs(D - D.T).max(),
                    -np.linalg.eigvalsh((D + D.T) / 2)[0],
                    abs((D * slack).sum()) / (1 + size),
                )
                / size
            )
        case LipschitzBound():  # the same, in the metric
            D, r = D / np.sqrt(w), slack_of(constraint.gamma, P, **AROUND, lam=eta)
            slack = r / 2 - constraint.margin * np.eye(len(A))
            size = np.abs(A / np.sqrt(w)).max() + np.abs(D).max()
            return (
                max(
                    np.abs(D - D.T).max(),
                    -np.linalg.eigvalsh((D + D.T) / 2)[0],
                    abs((D * slack).sum()) / (1 + size),
                )
                / size
            )
        case MatrixMeasure():
            # D = tau (1 on the diagonal, w sign(p) off it), w at most where p = 0
            tau = np.diagonal(D)
            off = ~np.eye(len(A), dtype=bool)
            excess = np.where(
                off,
                np.where(
                    P != 0, np.abs(np.abs(D) - tau[:, None] * w), np.abs(D) - tau[:, None] * w
                ),
                -tau[:, None],
            )
            measure = np.diagonal(P) + (np.abs(P) * w * off).sum(axis=1)
            return max(
                (excess / w).max(), np.abs(np.where(tau > 0, measure - constraint.kappa, 0)).max()
            ) / (size * w.max())
        case StrictlyTriangular():
            return np.abs(np.triu(D, 1)).max() / size
        case BlockTriangular():
            ends = np.cumsum([0, *constraint.blocks])
            pieces = [slice(a, b) for a, b in pairwise(ends)]
            return max(
                max(
                    normal_cone_violation(inner, A[p, p], P[p, p]),
                    np.abs(D[p, p.stop :]).max(initial=0) / size,
                )
                for p, inner in zip(pieces, inner_sets(constraint), strict=True)
            )
    return np.abs(D).max() / size


@pytest.mark.parametrize("constraint", CONVEX, ids=repr)
@given(st.integers(0, 10**6))
def test_projection_is_the_nearest_point(constraint, seed):
    A = 10.0 ** np.random.default_rng(seed).uniform(-1, 2) * np.random.default_rng(seed).normal(
        size=(N, N)
    )
    A = np.where(np.random.default_rng(seed + 1).random((N, N)) < 0.2, 0.0, A)
    P = constraint.project({**AROUND, "A": A}, activations.relu)["A"]
    assert normal_cone_violation(constraint, A, P) < 1e-9


@pytest.mark.parametrize("constraint", CONVEX, ids=repr)
def test_no_feasible_matrix_is_nearer(constraint):
    """No competitor is nearer: the same without the theory.

    Competitors are mixtures of the projection with feasible matrices, and what is near
    it.
    """
    rng = np.random.default_rng(0)
    A = 4 * rng.normal(size=(N, N))
    P = constraint.project({**AROUND, "A": A}, activations.relu)["A"]
    lam = np.ones(N) if constraint.metric is None else constraint.metric
    even = np.sqrt(lam[:, None] / lam)
    distance = np.linalg.norm(even * (A - P))
    for t in 10.0 ** rng.uniform(-6, 0, size=200):
        Q = constraint.project(
            {**AROUND, "A": P + rng.normal(size=(N, N)) * 10.0 ** rng.uniform(-3, 1)},
            activations.relu,
        )["A"]
        Q = (1 - t) * P + t * Q
        assert by_definition(constraint, Q, activations.relu, 1e-7)
        assert np.linalg.norm(even * (A - Q)) >= distance * (1 - 1e-12)


def test_scaling_is_not_the_projection():
    """The broken twins, which divide by the norm.

    They are feasible, and both tests above must know them from the nearest point.
    """
    A = np.random.default_rng(0).normal(size=(N, N)) * 4
    sums = np.abs(A).sum(axis=1, keepdims=True)
    assert normal_cone_violation(InfNorm(0.9), A, 0.9 * A / sums) > 1e-3
    assert normal_cone_violation(SpectralNorm(0.9), A, 0.9 * A / np.linalg.norm(A, 2)) > 1e-3
    assert (
        normal_cone_violation(Monotone(0.2), A, 0.8 * A / np.linalg.eigvalsh((A + A.T) / 2)[-1])
        > 1e-3
    )
    assert (
        normal_cone_violation(
            MatrixMeasure(0.9), A, A - np.diag(np.maximum(np.diagonal(A) + sums[:, 0], 0))
        )
        > 1e-3
    )


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_projection_everywhere(xp, constraint, dtype):
    A = (3 * np.random.default_rng(1).normal(size=(N, N))).astype(dtype)
    expected = constraint.project({**AROUND, "A": A}, activations.relu)["A"]
    params = {key: from_host(xp, M) for key, M in {**AROUND, "A": A}.items()}
    projected = constraint.project(params, activations.relu)
    assert namespace(projected["A"]) is xp
    np.testing.assert_allclose(
        host(projected["A"]), expected, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-12
    )
    assert host(projected["A"]).dtype == dtype
    assert constraint.contains(projected, activations.relu)
    again = constraint.project(projected, activations.relu)["A"]
    assert again is projected["A"] or (
        xp.__name__ == "cupy" and np.array_equal(host(again), host(projected["A"]))
    )
    assert constraint.certificate(projected, activations.relu).proven is not isinstance(
        constraint, Unconstrained
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["float32", "float64"]),
)
def test_weighted_balls_are_feasible_and_idempotent(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    A = tame(hard_matrix(rng, max(n, k))[:n, :k], dtype)
    w, r = 10.0 ** rng.uniform(-6, 6, size=k), 10.0 ** rng.uniform(-3, 3, size=n)
    P = weighted_l1_ball_rows(A, r, w)
    assert np.all((np.abs(P.astype(float)) * w).sum(axis=1) <= r)
    assert weighted_l1_ball_rows(P, r, w) is P
    eps = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(
        weighted_l1_ball_rows(A, r, np.ones(k)), l1_ball_rows(A, r), rtol=eps, atol=eps * r.max()
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.sampled_from(["float32", "float64"]),
    st.floats(-5, 0.99),
)
def test_measures_are_feasible_and_idempotent(seed, n, dtype, kappa):
    rng = np.random.default_rng(seed)
    A, eta = tame(hard_matrix(rng, n), dtype), 10.0 ** rng.uniform(-3, 3, size=n)
    P = measure_rows(A, kappa, eta)
    assert measure_rows(P, kappa, eta) is P
    off = np.abs(P.astype(float)) * eta / eta[:, None] * (1 - np.eye(n))
    assert np.all(
        np.diagonal(P).astype(float) + off.sum(axis=1) <= kappa + 1e-13 * (1 + off.sum(axis=1))
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted_l1_ball_rows(np.ones((2, 2)), 1.0, np.ones(3)),
        lambda: weighted_l1_ball_rows(np.ones((2, 2)), 1.0, np.array([1.0, 0.0])),
        lambda: measure_rows(np.ones((2, 3)), 0.5, None),
        lambda: measure_rows(np.ones((2, 2)), math.inf, None),
        lambda: InfNorm(0.9, weights=(1.0, -1.0)),
        lambda: InfNorm(0.9, weights=[[1.0]]),
        lambda: MatrixMeasure(1.0),
        lambda: MatrixMeasure(-math.inf),
        lambda: MatrixMeasure(0.5, weights=()),
        lambda: Monotone(0.0),
        lambda: Monotone(math.nan),
        lambda: SpectralNorm(1.0),
        lambda: PerronFrobenius(0.0),
        lambda: BlockTriangular((), InfNorm()),
        lambda: BlockTriangular((2, 0), InfNorm()),
        lambda: BlockTriangular((2, 1.5), InfNorm()),
        lambda: BlockTriangular((2, 1), 0.9),
        lambda: BlockTriangular((2, 1), (InfNorm(),)),
        lambda: BlockTriangular((2, 1), (InfNorm(), 0.9)),
        lambda: BlockTriangular((2, 1), InfNorm()).project({"A": np.eye(4)}, activations.relu),
        lambda: InfNorm(0.9, weights=(1.0, 1.0)).project({"A": np.eye(3)}, activations.relu),
        lambda: StrictlyTriangular().project(
            {"L": np.ones((2, 1)), "R": np.ones((2, 1))}, activations.relu
        ),
        lambda: BlockTriangular((2,), InfNorm()).contains(
            {"L": np.ones((2, 1)), "R": np.ones((2, 1))}, activations.relu
        ),
        lambda: Monotone(1.0),
        lambda: LipschitzBound(0.0),
        lambda: LipschitzBound(math.inf),
        lambda: LipschitzBound(1.0, margin=1.0),
        lambda: LipschitzBound(1.0, weights=(1.0, 0.0)),
        lambda: LipschitzBound(1.0, weights=(1.0,)).contains(
            {"A": np.eye(N), **AROUND}, activations.relu
        ),
        lambda: MatrixMeasure(-0.5).project(
            {"L": np.ones((2, 1)), "R": np.ones((2, 1))}, activations.relu
        ),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_weights_can_be_compared_and_hashed():
    weights = np.array([1.0, 2.0])
    ball = InfNorm(0.9, weights=weights)
    weights[0] = 7.0
    assert ball == InfNorm(0.9, weights=[1.0, 2.0])
    assert hash(ball) == hash(InfNorm(0.9, weights=(1, 2)))


# ------------------------------------------------------------------------------ factors


@pytest.mark.parametrize("constraint", LOW_RANK, ids=repr)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(["float32", "float64"]))
def test_factors_are_made_feasible(constraint, seed, k, dtype):
    rng = np.random.default_rng(seed)
    L, R = hard_matrix(rng, N)[:, :k], hard_matrix(rng, N)[:, :k]
    if seed % 3 == 0 and k > 1:  # heavy cancellation in L R^T
        L[:, 0], R[:, 0] = L[:, 1] * (1 + 1e-6), -R[:, 1]
    params = {
        "L": np.clip(L, -1e12, 1e12).astype(dtype),
        "R": np.clip(R, -1e12, 1e12).astype(dtype),
    }
    projected = constraint.project(params, activations.relu)
    assert constraint.contains(projected, activations.relu)
    # which scales both alike
    assert projected["R"] is params["R"] or isinstance(constraint, Monotone)
    assert constraint.project(projected, activations.relu)["L"] is projected["L"]
    exact = projected["L"].astype(float) @ projected["R"].astype(float).T
    assert by_definition(constraint, exact, activations.relu, slack=1e-9)


def test_clipped_factors_are_the_nearest_matrix():
    rng = np.random.default_rng(0)
    L, R = rng.normal(size=(N, 2)), rng.normal(size=(N, 2))
    ball = SpectralNorm(0.9)
    P = ball.project({"L": L, "R": R}, activations.relu)
    np.testing.assert_allclose(
        P["L"] @ P["R"].T, ball.project({"A": L @ R.T}, activations.relu)["A"], atol=1e-12
    )


# ---------------------------------------------------- activations of several components


@pytest.mark.parametrize(
    "constraint",
    [
        InfNorm(0.9),
        InfNorm(0.5, (1.0, 2.0, 2.0, 2.0, 0.1, 1.0)),
        PerronFrobenius(0.9),
        SpectralNorm(0.9),
    ],
)
@pytest.mark.parametrize("factors", [False, True])
@given(st.integers(0, 10**6), st.sampled_from(["float32", "float64"]))
def test_block_norms_are_made_feasible(constraint, factors, seed, dtype):
    rng = np.random.default_rng(seed)
    A = np.clip(hard_matrix(rng, N), -1e12, 1e12).astype(dtype)
    params = {"L": A[:, :2], "R": rng.normal(size=(N, 2)).astype(dtype)} if factors else {"A": A}
    projected = constraint.project(params, together)
    key = "L" if factors else "A"
    assert constraint.contains(projected, together)
    assert np.array_equal(constraint.project(projected, together)[key], projected[key])
    exact = (
        (projected["L"].astype(float) @ projected["R"].astype(float).T)
        if factors
        else projected["A"].astype(float)
    )
    eta = np.array(getattr(constraint, "weights", None) or np.ones(N))[[0, 1, 4, 5]]
    starts, ends = [0, 1, 4, 5], [1, 4, 5, 6]
    gamma = np.array([1.0, 0.5, 1.0, 1.0])
    norms = np.array(
        [
            [np.linalg.norm(exact[a:b, c:d], 2) for c, d in zip(starts, ends)]
            for a, b in zip(starts, ends)
        ]
    )
    norms = gamma[:, None] * norms * eta / eta[:, None]
    if isinstance(constraint, InfNorm):
        assert norms.sum(axis=1).max() <= constraint.kappa * (1 + 1e-12)
    elif isinstance(constraint, PerronFrobenius):
        assert np.abs(np.linalg.eigvals(norms)).max() <= constraint.kappa * (1 + 1e-7)


def test_conditions_refuse_what_they_say_nothing_about():
    for constraint in (
        MatrixMeasure(),
        Monotone(),
        StrictlyTriangular(),
        BlockTriangular((2, 4), MatrixMeasure()),
    ):
        assert "together" in constraint.refusal(together) or "fit" in constraint.refusal(together)
    assert "weights differ" in InfNorm(0.9, ETA).refusal(together)
    assert not InfNorm(0.9, (1.0, 2.0, 2.0, 2.0, 0.1, 1.0)).refusal(together)
    for phi in (activations.abs, activations.sin, activations.silu):
        for constraint in (MatrixMeasure(), Monotone(), BlockTriangular((2, 4), Monotone())):
            assert "[0, L]" in constraint.refusal(phi)
            assert not constraint.certificate({"A": np.zeros((N, N))}, phi).proven
            with pytest.raises(InputError, match="does not go with"):
                ImplicitModel(2, 2, N, activation=phi, constraint=constraint)
    with pytest.warns(WellPosednessWarning):
        mine = Activation("mine", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    assert "not known" in MatrixMeasure().refusal(mine)
    for constraint in CONSTRAINTS:
        if not any(name in repr(constraint) for name in ("Measure", "Monotone", "Lipschitz")):
            assert not constraint.refusal(mine)
            assert constraint.contains(constraint.project({"A": np.ones((N, N))}, mine), mine)
            proven = constraint.certificate({"A": np.zeros((N, N))}, mine).proven
            # without feedback any phi will do
            assert proven == isinstance(constraint, StrictlyTriangular)
        assert not constraint.refusal(activations.sigmoid)


# --------------------------------------------------------------------- Perron-Frobenius


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_scaling_comes_near_the_spectral_radius(seed, n):
    B = np.abs(hard_matrix(np.random.default_rng(seed), n))
    radius = np.abs(np.linalg.eigvals(B)).max()
    s, c = positive_scaling(B)
    assert np.all(s > 0)
    assert c == factor_of(B, s)
    assert c >= radius * (1 - 1e-3) - 1e-3 * np.abs(B).max() * (radius == 0)
    # irreducible
    if np.all(np.linalg.matrix_power(B + np.eye(n), n) > 0) and B.max() < 1e4 * B.min() + 1e300 * (
        B.min() == 0
    ):
        assert c <= radius * (1 + 1e-2)


@pytest.mark.parametrize(
    ("B", "proven"),
    [
        (np.zeros((3, 3)), True),
        (np.array([[1.0]]), False),
        (np.array([[np.nextafter(1, 0)]]), False),  # rounding cannot tell
        (np.array([[1 - 1e-12]]), True),
        (np.array([[0.0, 4.0], [0.25, 0.0]]), False),  # exactly on the boundary
        (np.array([[0.0, 4.0], [0.2499, 0.0]]), True),
        (np.array([[0.9, 1e8], [0.0, 0.9]]), True),  # reducible, with a zero in the Perron vector
        (np.triu(np.full((40, 40), 3.0), 1), True),  # nilpotent
        (np.diag(np.full(30, 1e6), 1), True),
        (np.diag([0.5, 0.1, 0.0]), True),
        (np.array([[0.0, 1e150], [1e-151, 0.0]]), True),
        (np.full((2, 2), 1e300), False),
    ],
)
def test_perron_frobenius_at_the_edges(B, proven):
    assert PerronFrobenius().certificate({"A": B}, activations.relu).proven == proven
    projected = PerronFrobenius(0.5).project({"A": B}, activations.relu)
    assert PerronFrobenius(0.5).contains(projected, activations.relu)


def test_the_perron_frobenius_set_is_larger_than_the_ball():
    A = np.array([[0.0, 16.0], [0.01, 0.0]])
    assert PerronFrobenius(0.9).project({"A": A}, activations.relu)["A"] is A
    assert not InfNorm(0.9).contains({"A": A}, activations.relu)


# ------------------------------------------------------------------------- upper bounds


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_the_bound_of_the_spectral_norm_is_one(seed, r, c):
    rng = np.random.default_rng(seed)
    A = hard_matrix(rng, 9)[:r, :c]
    scale = np.abs(A).max()
    true = (
        0.0
        if scale == 0
        else float(scale * np.linalg.norm((A / scale).astype(np.longdouble).astype(float), 2))
    )
    assert true * (1 - 1e-15) <= spectral_bound(A) <= true * (1 + 1e-9)


# ----------------------------------------------------------------------------- training


def digits_like(rng):
    """Ten noisy patterns."""
    labels = rng.integers(0, 10, 60)
    return (rng.normal(size=(10, 8))[labels] + 0.3 * rng.normal(size=(60, 8))).astype(
        "float32"
    ), labels


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_training_does_not_leave_the_set(constraint, factors):
    if factors and constraint not in LOW_RANK:
        pytest.skip("the constraint has no condition on factors")
    U, labels = digits_like(np.random.default_rng(0))
    model = ImplicitModel(8, 10, N, constraint=constraint, rank=2 if factors else None, rng=0)
    optimizer, first = optim.Adam(0.03), None
    assert constraint.contains(model.params, model.activation)
    for _ in range(20):
        Y, pull = model(U)
        value, dY = losses.cross_entropy(Y, labels)
        first = value if first is None else first
        model.params = model.project(optimizer.step(model.params, pull(dY)[1]))
        assert constraint.contains(model.params, model.activation)
    assert float(value) < float(first)
    assert constraint.certificate(model.params, model.activation).proven or isinstance(
        constraint, Unconstrained
    )


# -------------------------------------------------------------------------------- files


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_files_keep_the_constraint(tmp_path, constraint):
    model = ImplicitModel(2, 3, N, constraint=constraint, rng=0)
    pyidl.save(tmp_path / "model.npz", model)
    loaded = pyidl.load(tmp_path / "model.npz")
    assert loaded.constraint == constraint
    assert hash(loaded.constraint) == hash(constraint)
    assert repr(loaded.certificate()) == repr(model.certificate())


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_which_sets_contract(constraint):
    """Where `contracts` says yes, plain Picard contracts for every projected matrix.

    So what it says must be true.
    """
    sure = (InfNorm, PerronFrobenius, SpectralNorm, StrictlyTriangular)
    assert constraint.contracts == all(isinstance(one, sure) for one in innermost(constraint))
    mixed_sets = BlockTriangular((2, 4), (InfNorm(0.9), Monotone()))
    assert not mixed_sets.contracts
    assert not mixed_sets.keeps_zeros
    assert set(innermost(mixed_sets)) == {InfNorm(0.9), Monotone()}


def test_a_pattern_needs_a_projection_that_keeps_zeros():
    pattern = Pattern(A=np.triu(np.ones((N, N), bool)))
    for constraint in CONSTRAINTS:
        if constraint.keeps_zeros and not isinstance(
            constraint, (StrictlyTriangular, BlockTriangular)
        ):
            model = ImplicitModel(3, 2, N, constraint=constraint, pattern=pattern, rng=0)
            model.params = model.project(
                {**model.params, "A": (3 * np.triu(np.ones((N, N)))).astype("float32")}
            )
        elif not constraint.keeps_zeros:
            with pytest.raises(InputError, match="does not keep the zeros"):
                ImplicitModel(3, 2, N, constraint=constraint, pattern=pattern)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_a_recurrent_network_does_not_leave_the_set(constraint):
    rng = np.random.default_rng(0)
    U, target = rng.normal(size=(12, 4, 2)), rng.normal(size=(12, 1))
    model, optimizer = ImplicitRNN(2, 1, 3, N, constraint=constraint, rng=0), optim.Adam(0.03)
    assert constraint.contains(model.params, model.activation)
    values = []
    for _ in range(20):
        Y, pull = model(U)
        value, dY = losses.mse(Y, target)
        values.append(float(value))
        model.params = model.project(optimizer.step(model.params, pull(dY, inputs=False)[1]))
        assert constraint.contains(model.params, model.activation)
    assert values[-1] < values[0]
