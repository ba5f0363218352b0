"""Boxes and affine forms of one implicit model: what theory says of them, case by case."""

import itertools

import boxes
import numpy as np
import pytest
from boxes import equation, measured, model_of, offsets, true_ends
from hypothesis import given
from hypothesis import strategies as st

from pyidl import activations, robustness
from pyidl.certify.forms import Form
from pyidl.errors import InputError
from pyidl.robustness.embedded import Embedded, split
from pyidl.robustness.states import exactly
from pyidl.wellposed import SpectralNorm, StrictlyTriangular, Unconstrained

M, P, Q = 6, 3, 2
RISING = pytest.mark.parametrize("phi", boxes.RISING, ids=lambda phi: phi.name)


def close(pair, low, high, tol=2e-9):
    np.testing.assert_allclose(pair[0], low, atol=tol, rtol=tol)
    np.testing.assert_allclose(pair[1], high, atol=tol, rtol=tol)


# ------------------------------------------------------------------------- boxes alone


@RISING
@pytest.mark.parametrize("n", [1, 4, 20])
def test_nothing_is_lost_where_nothing_falls(phi, n):
    rng = np.random.default_rng(n)
    A = measured(rng, n, phi)
    A = np.where(np.eye(n) > 0, A, np.abs(A))
    B, b = np.abs(rng.normal(size=(n, P))), rng.normal(size=n)
    model, (lo, hi) = model_of(A, B, b=b, phi=phi), boxes.boxes(rng, M, P, 0.5)
    found = robustness.bounds(model, lo, hi, method="box")
    close(found.states, model.predict(lo), model.predict(hi), 1e-7)


@pytest.mark.parametrize("phi", [activations.relu, activations.tanh], ids=lambda phi: phi.name)
def test_a_triangular_model_has_the_intervals_of_its_layers(phi):
    rng = np.random.default_rng(0)
    widths = [4, 5, 3]
    n, starts = sum(widths), np.cumsum([0, *widths])
    A, B, b = np.zeros((n, n)), np.zeros((n, P)), rng.normal(size=n)
    B[: widths[0]] = rng.normal(size=(widths[0], P))
    for i, j, k in zip(starts, starts[1:], starts[2:], strict=False):
        A[j:k, i:j] = 3.0 * rng.normal(size=(k - j, j - i))
    model, (lo, hi) = (
        model_of(A, B, b=b, phi=phi, constraint=StrictlyTriangular()),
        boxes.boxes(rng, M, P, 0.3),
    )
    ends, (c, r) = [], (0.5 * (lo + hi), 0.5 * (hi - lo))
    for k, W in enumerate([B[: widths[0]], A[4:9, :4], A[9:, 4:9]]):
        c, r = c @ W.T + b[starts[k] : starts[k + 1]], r @ np.abs(W).T
        low, high = phi(c - r), phi(c + r)
        ends.append((low, high))
        c, r = 0.5 * (low + high), 0.5 * (high - low)
    found = robustness.bounds(model, lo, hi, method="box")
    close(found.states, *(np.concatenate(parts, axis=1) for parts in zip(*ends, strict=True)))


def with_diagonal_split(A, B, b, phi, lo, hi):
    """The ends where ``A = A+ + A-``, by plain iteration."""
    up, down = np.maximum(A, 0.0), np.minimum(A, 0.0)
    z_lo = lo @ np.maximum(B, 0).T + hi @ np.minimum(B, 0).T + b
    z_hi = hi @ np.maximum(B, 0).T + lo @ np.minimum(B, 0).T + b
    x_lo = x_hi = np.zeros_like(z_lo)
    for _ in range(2000):
        x_lo, x_hi = (
            phi(x_lo @ up.T + x_hi @ down.T + z_lo),
            phi(x_hi @ up.T + x_lo @ down.T + z_hi),
        )
    return x_lo, x_hi


@given(st.integers(0, 10**6))
def test_splitting_the_diagonal_too_is_wider(seed):
    rng = np.random.default_rng(seed)
    n, phi = 5, boxes.RISING[seed % 9]
    A = rng.normal(size=(n, n))
    A *= 0.9 / (phi.lipschitz * np.abs(A).sum(axis=1, keepdims=True))
    B, b = rng.normal(size=(n, P)), rng.normal(size=n)
    lo, hi = boxes.boxes(rng, M, P, 1.0)
    found = robustness.bounds(model_of(A, B, b=b, phi=phi), lo, hi, method="box")
    low, high = with_diagonal_split(A, B, b, phi, lo, hi)
    assert np.all(found.states[0] >= low - 1e-8)
    assert np.all(found.states[1] <= high + 1e-8)


def test_a_diagonal_far_below_zero_stays_where_it_is():
    """``x = relu(-5 x + u)``: x = u / 6. In N, the ends would not even exist."""
    model = model_of([[-5.0]], [[1.0]])
    found = robustness.bounds(model, np.array([[0.5]]), np.array([[1.0]]), method="box")
    close(found.states, 0.5 / 6, 1 / 6)
    close(found.pre, 0.5 / 6, 1 / 6)
    A = [[-5.0, 0.4, -0.4], [0.3, -5.0, 0.5], [-0.2, 0.6, -5.0]]
    model = model_of(A, np.eye(3), b=np.ones(3))
    lo, hi = np.full((1, 3), -0.1), np.full((1, 3), 0.1)
    found = robustness.bounds(model, lo, hi, method="box")
    low, high = with_diagonal_split(0.1 * np.array(A), np.eye(3), np.ones(3), np.tanh, lo, hi)
    assert np.all(high - low < 0.3)  # the other rule has ends where A is small
    assert np.all(found.states[1] - found.states[0] < 0.06)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_spectrum_of_the_embedded_matrix_is_that_of_its_two_parts(n):
    rng = np.random.default_rng(n)
    A = measured(rng, n, activations.relu)
    parts = split(A, activations.relu)
    E = Embedded.of(*parts).A
    assert np.array_equal(np.diagonal(parts[0]), np.diagonal(A))
    assert np.array_equal(parts[0] + parts[1], A)
    beside = np.abs(A) - np.diag(np.abs(np.diagonal(A)) - np.diagonal(A))
    expected = np.concatenate([np.linalg.eigvals(A), np.linalg.eigvals(beside)])
    left = list(np.linalg.eigvals(E))
    for value in expected:
        nearest = int(np.argmin(np.abs(np.array(left) - value)))
        assert abs(left.pop(nearest) - value) < 1e-6 * (1 + np.abs(A).max())
    measure = np.diagonal(A) + np.abs(A).sum(1) - np.abs(np.diagonal(A))
    both = np.diagonal(E) + np.abs(E).sum(1) - np.abs(np.diagonal(E))
    np.testing.assert_allclose(both, np.concatenate([measure, measure]))


@given(st.integers(0, 10**6))
def test_a_box_is_never_wider_than_that_of_the_mean_value(seed):
    """``x(uc) -+ K^-1 diag(L) |B| del``."""
    rng = np.random.default_rng(seed)
    n, phi = 6, boxes.RISING[seed % 9]
    A, B, b = measured(rng, n, phi), rng.normal(size=(n, P)), rng.normal(size=n)
    model, (lo, hi) = model_of(A, B, b=b, phi=phi), boxes.boxes(rng, M, P, 1.0)
    beside = np.abs(A) - np.diag(np.abs(np.diagonal(A)) - np.diagonal(A))
    K, L = np.eye(n) - phi.lipschitz * beside, phi.lipschitz
    e = np.linalg.solve(K, (L * 0.5 * (hi - lo) @ np.abs(B).T).T).T
    centre = model.predict(0.5 * (lo + hi))
    found = robustness.bounds(model, lo, hi, method="box")
    off = 1e-7 * (1 + np.abs(centre) + e)
    assert np.all(found.states[0] >= centre - e - off)
    assert np.all(found.states[1] <= centre + e + off)


def test_pre_activations_are_closer_than_those_of_the_box_of_states():
    rng = np.random.default_rng(0)
    A, B = measured(rng, 8, activations.relu), rng.normal(size=(8, P))
    model, (lo, hi) = model_of(A, B), boxes.boxes(rng, M, P, 1.0)
    found = robustness.bounds(model, lo, hi, method="box")
    (x_lo, x_hi), (low, _) = found.states, found.pre
    plain = (
        x_lo @ np.maximum(A, 0).T
        + x_hi @ np.minimum(A, 0).T
        + lo @ np.maximum(B, 0).T
        + hi @ np.minimum(B, 0).T
    )
    down = np.diagonal(A) < 0
    assert np.all(low >= plain - 1e-8)
    assert np.mean((low - plain)[:, down] > 1e-3) > 0.5


# ------------------------------------------------------------- rigour, whatever is solved


def held(form, low, high):
    """Whether a form holds the ends, which are known to 1e-12."""
    off = 1e-12 * (1 + np.abs(low) + np.abs(high))
    return bool(np.all((form.lo <= low + off) & (high - off <= form.hi)))


EVERY = pytest.mark.parametrize("kind", ["relu", "tanh", "silu", "abs", "sin", "softmax", "blocks"])


def some(kind, n=6, seed=0):
    """A model with an embedded one; a softmax in the largest entry."""
    if kind != "softmax":
        key = f"{kind} measure" if kind in ("relu", "tanh") else kind
        return boxes.drawn(key, n, seed)
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    A *= 1.8 / np.abs(A).sum(axis=1, keepdims=True)
    phi = boxes.Blocks((boxes.softmax, n))
    return model_of(A, rng.normal(size=(n, P)), phi=phi, constraint=Unconstrained())


@EVERY
@pytest.mark.parametrize("size", [1e-8, 1e-3, 0.1])
@given(seed=st.integers(0, 10**6))
@boxes.FEW
def test_a_disturbed_solution_widens_the_box_and_still_holds(kind, size, seed):
    model, rng = some(kind, seed=seed % 50), np.random.default_rng(seed)
    lo, hi = boxes.boxes(rng, M, P, 0.3)
    X = true_ends(model, lo, hi)
    n = X.shape[1] // 2
    known, z = equation(model), offsets(model, lo, hi)
    exact, _ = known.verified(X, z)
    x, y = known.verified(X + size * rng.uniform(-1, 1, size=X.shape), z)
    assert held(exact, X[:, :n], X[:, n:])
    assert held(x, X[:, :n], X[:, n:])
    A = exactly(model)["A"]
    M_, N_ = split(A, model.activation)
    low = X[:, :n] @ M_.T + X[:, n:] @ N_.T + z.lo
    high = X[:, n:] @ M_.T + X[:, :n] @ N_.T + z.hi
    assert held(y, low, high)
    wide, base = x.hi - x.lo, exact.hi - exact.lo
    assert np.mean(wide - base) > 0.01 * size


@EVERY
def test_single_precision_answers_are_made_rigorous(kind):
    """200 boxes a kind, solved in float32 by the library."""
    model, rng = some(kind, seed=3), np.random.default_rng(3)
    lo, hi = boxes.boxes(rng, 200, P, 0.3)
    rough = true_ends(model, lo, hi, 1e-5, "float32")
    assert rough.dtype == np.float32
    X, n = true_ends(model, lo, hi), model.hidden_dim
    x, _ = equation(model).verified(rough.astype(float), offsets(model, lo, hi))
    assert held(x, X[:, :n], X[:, n:])
    assert np.max(np.maximum(X[:, :n] - x.lo, x.hi - X[:, n:])) < 0.05


def test_not_the_models_own_certificate_but_that_of_the_ends():
    """A residual of -0.001 below and 0.001 above means an error of 0.025."""
    A = 0.24 * np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1.0]])
    model = model_of(A, np.eye(4), b=10 * np.ones(4), constraint=SpectralNorm(0.9))
    model.params = {**model.params, "A": A}
    lo, hi = np.full((1, 4), -0.1), np.full((1, 4), 0.1)
    X = true_ends(model, lo, hi)
    assert np.all(X > 0)  # all units are on
    E = Embedded.of(*split(A, activations.relu)).A
    shift = np.linalg.solve(np.eye(8) - E, 0.001 * np.repeat([-1.0, 1.0], 4))
    np.testing.assert_allclose(np.abs(shift), 0.025)
    own = model.certificate()
    assert own.norm.kind == "Euclidean"
    assert own.entrywise(np.full((1, 4), 0.001)).max() < 0.004
    known = equation(model)
    assert np.all(known.weights.error(np.full((1, 4), 0.001)) >= 0.025)
    x, _ = known.verified(X - shift, offsets(model, lo, hi))
    assert held(x, X[:, :4], X[:, 4:])


def test_an_answer_that_is_no_number_bounds_nothing():
    model, z = some("relu"), Form.box(np.zeros((2, 6)), np.ones((2, 6)))
    for X in (np.full((2, 12), np.nan), np.full((2, 12), np.inf)):
        with np.errstate(all="ignore"):
            x, y = equation(model).verified(X, z)
        assert np.all(np.isinf(x.lo) | (x.lo <= 0))
        assert np.all(np.isinf(y.lo) & np.isinf(y.hi))
        assert np.all(np.isinf(x.hi))


# ---------------------------------------------------------------------- affine forms


def test_one_undecided_unit_by_hand():
    """``x = relu(x / 2 + u)``, u in [-1, 1]: ``x in u + [0, 1]``, and x - u keeps it."""
    model = model_of([[0.5]], [[1.0]], C=[[1.0], [1.0]], D=[[0.0], [-1.0]])
    lo, hi = np.array([[-1.0]]), np.array([[1.0]])
    box = robustness.bounds(model, lo, hi, method="box")
    close(box.pre, -1, 2)
    close(box.outputs, [[0, -1]], [[2, 3]])
    found = robustness.bounds(model, lo, hi, rounds=1)
    close(found.outputs, [[0, 0]], [[2, 1]])
    values = model.predict(np.linspace(-1, 1, 201)[:, None])
    np.testing.assert_allclose(values.max(axis=0), [2, 1])


STRAIGHT = [phi for phi in boxes.RISING if phi.curvature == 0]


@pytest.mark.parametrize("phi", STRAIGHT, ids=lambda phi: phi.name)
def test_decided_units_leave_the_exact_affine_map(phi):
    """Where no kink is in reach of pieces that are straight: the Jacobian, times the radius."""
    rng = np.random.default_rng(0)
    n, A, B = 7, measured(rng, 7, phi), rng.normal(size=(7, P))
    C, D, b = rng.normal(size=(Q, 7)), rng.normal(size=(Q, P)), rng.normal(size=7)
    model, U = model_of(A, B, C, D, b=b, phi=phi), rng.normal(size=(M, P))
    X = model.equilibrium(U).value
    Y = X @ A.T + U @ B.T + b
    assert all(np.min(np.abs(Y - kink)) > 1e-4 for kink in phi.kinks)
    eps = 1e-6
    found = robustness.bounds(model, U - eps, U + eps)
    for i in range(M):
        S = phi.dphi(Y[i])[:, None]
        J = C @ np.linalg.solve(np.eye(n) - S * A, S * B) + D
        reach, y = eps * np.abs(J).sum(axis=1), model.predict(U[i : i + 1])[0]
        close([a[i] for a in found.outputs], y - reach, y + reach, 1e-11)


def disturbed(monkeypatch, change):
    """With another matrix where affine forms ask for an inverse."""
    inverse = np.linalg.inv
    calls = []

    def inv(J):
        if J.ndim < 3:
            return inverse(J)
        calls.append(J)
        return change(J, inverse)

    monkeypatch.setattr(np.linalg, "inv", inv)
    return calls


def singular(J, inverse):
    raise np.linalg.LinAlgError


NOISE = np.random.default_rng(0).normal(size=(1, 6, 6))
WRONG = {
    "disturbed": lambda J, inv: inv(J) + 1e-3 * NOISE,
    "much disturbed": lambda J, inv: inv(J) + NOISE,
    "zero": lambda J, inv: 0.0 * J,
    "identity": lambda J, inv: np.broadcast_to(np.eye(6), J.shape),
    "transposed": lambda J, inv: np.swapaxes(inv(J), 1, 2),
    "not a number": lambda J, inv: np.nan * J,
    "singular": singular,
}


@EVERY
@pytest.mark.parametrize("name", WRONG)
def test_any_matrix_in_place_of_the_inverse_is_sound(kind, name, monkeypatch):
    rng = np.random.default_rng(1)
    model, (lo, hi) = some(kind, seed=1), boxes.boxes(rng, M, P, 0.5)
    labels = rng.integers(0, len(model.params["C"]), M)
    _, values, slack = boxes.attained(model, lo, hi, rng)
    calls = disturbed(monkeypatch, WRONG[name])
    found = robustness.bounds(model, lo, hi)
    margins = robustness.margins(model, lo, hi, labels)
    assert calls
    bad = boxes.violations(model, found, margins, labels, values, slack)
    assert not any(bad.values()), bad


@EVERY
def test_rounds_only_shrink(kind):
    rng = np.random.default_rng(2)
    model, (lo, hi) = some(kind, seed=2), boxes.boxes(rng, M, P, 0.5)
    found = [robustness.bounds(model, lo, hi, method="box")]
    found += [robustness.bounds(model, lo, hi, rounds=k) for k in range(1, 7)]
    for one, next_ in itertools.pairwise(found):
        for name in ("states", "pre"):
            (low, high), (lower, upper) = getattr(one, name), getattr(next_, name)
            assert np.all((low <= lower) & (lower <= upper) & (upper <= high))
    box, best = found[0], found[-1]
    # Those of outputs are not intersected over rounds, only with the box.
    assert np.all(box.outputs[0] <= best.outputs[0] + 1e-12)
    assert np.all(box.outputs[1] >= best.outputs[1] - 1e-12)
    gained = np.mean(best.width) / np.mean(box.width)
    assert gained < (1.0 + 1e-9 if kind == "softmax" else 0.999)  # a softmax has constant lines


@EVERY
def test_margins_by_forms_are_never_larger_than_by_boxes(kind):
    rng = np.random.default_rng(3)
    for seed in range(5):
        model = some(kind, n=5, seed=seed)
        lo, hi = boxes.boxes(rng, M, P, 10.0 ** rng.uniform(-2, 1))
        labels = rng.integers(0, len(model.params["C"]), M)
        box = robustness.margins(model, lo, hi, labels, method="box")
        assert np.all(robustness.margins(model, lo, hi, labels) <= box)


@EVERY
def test_boxes_within_boxes(kind):
    rng = np.random.default_rng(4)
    model, (lo, hi) = some(kind, seed=4), boxes.boxes(rng, M, P, 1.0)
    share = rng.uniform(0, 0.4, size=(2, M, P))
    outer = robustness.bounds(model, lo, hi, method="box")
    low, high = lo + share[0] * (hi - lo), hi - share[1] * (hi - lo)
    inner = robustness.bounds(model, low, high, method="box")
    for name in ("states", "pre", "outputs"):
        (a, b), (c, d) = getattr(outer, name), getattr(inner, name)
        assert np.all((a <= c + 1e-7) & (d <= b + 1e-7))


@EVERY
@pytest.mark.parametrize("method", ["box", "affine"])
def test_samples_do_not_know_of_each_other(kind, method):
    """A batch, in any order, is its samples: but for rounding."""
    rng = np.random.default_rng(5)
    model, (lo, hi) = some(kind, seed=5), boxes.boxes(rng, M, P, 0.5)
    order = rng.permutation(M)
    whole = robustness.bounds(model, lo, hi, method=method)
    turned = robustness.bounds(model, lo[order], hi[order], method=method)
    alone = [robustness.bounds(model, lo[i : i + 1], hi[i : i + 1], method=method) for i in order]
    for name in ("states", "pre", "outputs"):
        for side in (0, 1):
            a = getattr(whole, name)[side][order]
            np.testing.assert_allclose(getattr(turned, name)[side], a, atol=1e-8)
            single = np.concatenate([getattr(one, name)[side] for one in alone])
            np.testing.assert_allclose(single, a, atol=1e-8)


@EVERY
@pytest.mark.parametrize("method", ["box", "affine"])
def test_a_point_has_its_own_output(kind, method):
    rng = np.random.default_rng(6)
    model, U = some(kind, seed=6), rng.normal(size=(M, P))
    found = robustness.bounds(model, U, U, method=method)
    Y = model.with_tol(1e-13).predict(U)
    close(found.outputs, Y, Y, 1e-7)


@pytest.mark.parametrize("kind", ["monotone", "spectral", "monotone tanh", "spectral sin"])
def test_a_euclidean_certificate_does_for_forms_and_not_for_boxes(kind):
    refused = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        model, (lo, hi) = boxes.drawn(kind, 12, seed), boxes.boxes(rng, M, P, 0.05)
        labels = rng.integers(0, Q, M)
        _, values, slack = boxes.attained(model, lo, hi, rng)
        if equation(model).weights is None:
            refused += 1
            with pytest.raises(InputError, match=r"boxes need .* use method='affine'"):
                robustness.bounds(model, lo, hi, method="box")
        for rounds in (1, 30):  # such a start is wide, and every round gains
            found = robustness.bounds(model, lo, hi, rounds=rounds)
            margins = robustness.margins(model, lo, hi, labels, rounds=rounds)
            bad = boxes.violations(model, found, margins, labels, values, slack)
            assert not any(bad.values()), bad
        wide = found.width / np.maximum(np.ptp(values[..., -3:], axis=1), 1e-9)
        assert np.median(wide) < 1.5
    assert refused >= 3
