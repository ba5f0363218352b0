"""Certificates at a solution.

No search finds two solutions where one is proven, or one outside its bound.
"""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from conditions import solve_exactly
from helpers import host, moved, random_model
from hypothesis import given
from hypothesis import strategies as st

from pyidl import ImplicitModel, InfNorm, Linear, activations, certify_solution
from pyidl.activations import Activation, Blocks
from pyidl.activations.base import pieces
from pyidl.certify import enclosure
from pyidl.errors import InputError, WellPosednessWarning

EPS = np.finfo(float).eps
BUILT_IN = [*activations.builtin.BUILT_IN.values(), activations.leaky_relu(0.1)]


def model_of(A, B, b, activation=activations.relu, dtype="float64"):
    """A model with these A, B, b, inside its constraint or not."""
    n, p = B.shape
    model = ImplicitModel(p, 1, n, activation=activation, dtype=dtype, rng=0)
    model.params = {**model.params, "A": A, "B": B, "b": b}
    return model


# ----------------------------------------------- exact oracle: ReLU in rational numbers


def relu_solutions(A, z):
    """All isolated solutions of ``x = max(A x + z, 0)``, exactly.

    One linear system for each active set.
    """
    n = len(z)
    found = set()
    for active in itertools.product((False, True), repeat=n):
        S = [i for i in range(n) if active[i]]
        x_S = (
            solve_exactly(
                [[Fraction(int(i == j)) - A[i][j] for j in S] for i in S], [z[i] for i in S]
            )
            if S
            else []
        )
        if x_S is None:
            continue
        x = [Fraction(0)] * n
        for i, value in zip(S, x_S):
            x[i] = value
        y = [sum((A[i][j] * x[j] for j in range(n)), z[i]) for i in range(n)]
        if all(x[i] == max(y[i], 0) for i in range(n)):
            found.add(tuple(x))
    return sorted(found)


def rational(a):
    return [rational(row) for row in a] if np.ndim(a) else Fraction(float(a))


def violations(model, u, points, found=None):
    """What a certificate says that the exact solutions contradict."""
    A, b = rational(model.params["A"]), rational(model.params["b"])
    B = rational(model.params["B"])
    z = [sum((B[i][j] * Fraction(float(u[j])) for j in range(len(u))), b[i]) for i in range(len(b))]
    solutions = relu_solutions(A, z)
    found = found or certify_solution(model, np.tile(u, (len(points), 1)), points)
    wrong = []
    for i in np.flatnonzero(found.proven):
        p = rational(found.point[i])
        distances = [[abs(a - c) for a, c in zip(x, p)] for x in solutions]
        inside = sum(
            all(d <= Fraction(e) for d, e in zip(ds, rational(found.error[i]))) for ds in distances
        )
        near = (
            len(solutions)
            if np.isinf(found.radius[i])
            else sum(max(ds) <= Fraction(found.radius[i]) for ds in distances)
        )
        if inside != 1 or near > 1:
            wrong.append((i, inside, near))
    return wrong, found, solutions


def draw(seed, dtype="float64"):
    """A small ReLU model, rarely well-posed, often degenerate on purpose.

    With points near its solutions and elsewhere.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))
    kind = rng.integers(0, 5)
    if kind == 0:  # kinks are hit exactly, solutions meet there
        A, B, b = (
            rng.integers(-2, 3, (n, n)) / 1.0,
            rng.integers(-1, 2, (n, 1)) / 1.0,
            rng.integers(-1, 2, n) / 1.0,
        )
    else:
        A, B, b = (
            rng.normal(size=shape) * 10 ** rng.uniform(-1, 1) for shape in ((n, n), (n, 1), n)
        )
    if kind == 2:
        A = np.abs(A)
    if kind == 3:  # nearly singular
        A = np.eye(n) * (1 - 10.0 ** rng.uniform(-17, -1)) + 1e-3 * rng.normal(
            size=(n, n)
        ) * rng.integers(0, 2)
    if kind == 4:  # pre-activations at rounding distance from a kink
        b = -(A @ np.maximum(rng.normal(size=n), 0)) * (1 + rng.integers(-1, 2) * EPS)
        B = np.zeros((n, 1))
    A, B, b = (a.astype(dtype).astype(float) for a in (A, B, b))
    model = model_of(A, B, b, dtype=dtype)
    u = np.array([float(np.float32(rng.normal()))])
    z = B @ u + b
    points = [np.maximum(z, 0), rng.normal(size=n)]
    exact = relu_solutions(
        rational(A), [sum((rational(B[i])[0] * Fraction(u[0]),), Fraction(b[i])) for i in range(n)]
    )
    for x in exact:
        x = np.array([float(v) for v in x])
        points += [x] + [x + 10.0 ** rng.uniform(-16, 1) * rng.normal(size=n) for _ in range(4)]
    points += [
        0.5 * (np.array([float(v) for v in x]) + np.array([float(v) for v in y]))
        for x, y in itertools.combinations(exact, 2)
    ]
    return model, u, np.array(points).astype(dtype).astype(float)


def test_the_oracle():
    one = rational(np.array([[2.0]]))
    assert relu_solutions(one, [Fraction(-1)]) == [(0,), (1,)]
    assert relu_solutions(one, [Fraction(1)]) == []
    assert relu_solutions(rational(np.array([[-5.0]])), [Fraction(3)]) == [(Fraction(1, 2),)]


@given(st.integers(0, 10**9), st.sampled_from(["float64", "float32"]))
def test_exactly_one_solution_where_it_says_so(seed, dtype):
    wrong, _, _ = violations(*draw(seed, dtype))
    assert wrong == []


def test_the_search_covers_what_it_should():
    """Among its cases are many proofs, many with other solutions around, and solutions at kinks."""
    proven = crowded = kinks = 0
    for seed in range(80):
        wrong, found, solutions = violations(*draw(seed))
        assert wrong == []
        proven += int(found.proven.sum())
        crowded += int(found.proven.sum()) * (len(solutions) > 1)
        kinks += int(np.sum(found.at_kink > 0))
    assert proven > 300
    assert crowded > 100
    assert kinks > 100


LIES = {
    "a kink elsewhere": Activation(
        "relu",
        activations.relu.phi,
        activations.relu.dphi,
        slope_range=(0.0, 1.0),
        curvature=0.0,
        kinks=(1e6,),
    ),
    "slopes": Activation(
        "relu", activations.relu.phi, activations.relu.dphi, slope_range=(0.4, 0.6)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_search_finds_an_activation_that_lies(lie):
    assert any(
        violations((model := draw(seed))[0].replace(activation=LIES[lie]), *model[1:])[0]
        for seed in range(200)
    )


def test_the_search_finds_a_forgotten_delta(monkeypatch):
    grow = enclosure.Equation.grow
    monkeypatch.setattr(
        enclosure.Equation,
        "grow",
        lambda self, linear, Delta, w: grow(self, linear, 0.0 * Delta, w),
    )
    assert any(violations(*draw(seed))[0] for seed in range(200))


def test_the_search_finds_a_forgotten_residual(monkeypatch):
    step = enclosure.Search.step
    monkeypatch.setattr(enclosure.Search, "step", lambda self, linear: 0.5 * step(self, linear))
    assert any(violations(*draw(seed))[0] for seed in range(200))


def test_the_search_finds_forgotten_rounding(monkeypatch):
    monkeypatch.setattr(enclosure, "EPS", 0.0)
    monkeypatch.setattr(enclosure, "TINY", 1e-300)
    assert any(violations(*draw(seed))[0] for seed in range(200))


# ------------------------------------------------------------------- known difficulties


@pytest.mark.parametrize("p", [0.0, 1e-300, 1e-8, 0.5, 3.0])
def test_a_continuum_is_never_certified(p):
    """``x = max(x, 0)`` holds for every x >= 0.

    Also in two dimensions: ``x = max(P x, 0)`` with a permutation P.
    """
    assert not certify_solution(
        model_of(np.eye(1), np.zeros((1, 1)), np.zeros(1)), np.zeros((1, 1)), np.array([[p]])
    ).proven.any()
    swap = model_of(np.eye(2)[::-1].copy(), np.zeros((2, 1)), np.zeros(2))
    assert not certify_solution(swap, np.zeros((1, 1)), np.array([[p, p]])).proven.any()


@given(st.floats(-16, 0), st.floats(-17, 0), st.sampled_from([-1, 0, 1]), st.booleans())
def test_a_pitchfork(log_gap, log_shift, root, beyond):
    """x = tanh(a x): one solution for a <= 1, three for a > 1, which meet as a falls to 1."""
    a = 1 + 10.0**log_gap if beyond else 1 - 10.0**log_gap
    outer = 0.0
    if a > 1:
        low, high = 0.0, 1.0  # the positive solution, by bisection on a - atanh(x) / x, which falls
        for _ in range(200):
            middle = 0.5 * (low + high)
            low, high = (
                (middle, high)
                if middle == 0 or np.arctanh(np.longdouble(middle)) / np.longdouble(middle) < a
                else (low, middle)
            )
        outer = low
    point = root * outer + 10.0**log_shift * (root or 1)
    model = model_of(np.array([[a]]), np.zeros((1, 1)), np.zeros(1), activations.tanh)
    found = certify_solution(model, np.zeros((1, 1)), np.array([[point]]))
    if found.proven[0]:
        solutions = [0.0, outer, -outer] if outer else [0.0]
        slack = 1e-8 * outer  # of the bisection, where the root is ill-conditioned
        assert sum(abs(x - point) <= found.error[0, 0] + slack for x in solutions) >= 1
        assert sum(abs(x - point) <= found.error[0, 0] - slack for x in solutions) <= 1
        assert sum(abs(x - point) <= found.radius[0] - slack for x in solutions) <= 1


def test_several_solutions_each_with_its_own_certificate():
    """``x = max(2 x - 1, 0)`` has the solutions 0 and 1.

    The model fails the constraint, and each is certified for itself.
    """
    model = model_of(np.array([[2.0]]), np.zeros((1, 1)), np.array([-1.0]))
    assert not model.certificate().proven
    found = certify_solution(model, np.zeros((4, 1)), np.array([[0.0], [1.0], [0.5], [1.3]]))
    assert found.proven.tolist() == [True, True, False, True]
    assert found.error[:2].max() < 1e-12
    assert 0.3 <= found.error[3, 0] < 0.32
    assert np.all(found.radius[:2] <= 1)
    assert np.all(found.radius[:2] > 0.4)
    assert "1 of 1 units lie within its reach of a kink" in found.reason[2]


def test_a_unit_at_its_kink():
    """``y = 0`` exactly, so the slope is any number in [0, 1].

    Q may bear that (here |A| = 0.9) or not (A = 3).
    """
    for a, proven in ((0.9, True), (-0.9, True), (3.0, False)):
        found = certify_solution(
            model_of(np.array([[a]]), np.zeros((1, 1)), np.zeros(1)), np.zeros((1, 1))
        )
        assert found.at_kink.tolist() == [1]
        assert found.proven.tolist() == [proven]


# ----------------------------------------------------- smooth: long double as reference


def long_erf(z):
    """``2 / sqrt(pi) exp(-z^2) sum 2^k z^(2k+1) / (2k+1)!!``, all terms of one sign; 1 far out."""
    term = total = np.clip(z, -8, 8)
    z = term
    for k in range(1, 400):
        term = term * 2 * z * z / (2 * k + 1)
        total = total + term
    return 2 / np.sqrt(4 * np.arctan(np.longdouble(1))) * np.exp(-z * z) * total


def long_phi(activation, y):
    """phi in extended precision: the built-in formulas, on long doubles; GELU by its own series."""
    if activation is activations.gelu:
        return y / 2 * (1 + long_erf(y / np.sqrt(np.longdouble(2))))
    return activation.phi(y)


def long_dphi(activation, y):
    if activation is activations.gelu:
        density = np.exp(-y * y / 2) / np.sqrt(8 * np.arctan(np.longdouble(1)))
        return (1 + long_erf(y / np.sqrt(np.longdouble(2)))) / 2 + y * density
    return activation.dphi(y)


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 2e-19, reason="long double is no longer than double here"
)
@pytest.mark.parametrize("activation", BUILT_IN, ids=repr)
def test_phi_and_its_slope_are_rounded_as_assumed(activation):
    """Errors of at most 16 eps (|y| + |phi|) and 64 eps (1 + L).

    It is the only assumption about floating point that is not IEEE's.
    """
    rng = np.random.default_rng(0)
    y = np.concatenate(
        [
            rng.normal(size=4000) * 10.0 ** rng.uniform(-12, 3, 4000),
            rng.uniform(-40, 40, 8000),
            np.linspace(-9, 9, 4001),
        ]
    )
    with np.errstate(under="ignore", over="ignore"):
        value, slope = activation.phi(y), activation.dphi(y)
        assert np.all(
            np.abs(value - long_phi(activation, np.longdouble(y)))
            <= 16 * EPS * (np.abs(y) + np.abs(value))
        )
        assert np.all(
            np.abs(slope - long_dphi(activation, np.longdouble(y)))
            <= 64 * EPS * (1 + activation.lipschitz)
        )


def reference(model, u, x):
    """The solution near x: Newton's method with float64 slopes and long double residuals."""
    A, B, b = (np.longdouble(host(model.params[key])) for key in "ABb")
    z = B @ np.longdouble(u) + b
    x = np.longdouble(x)
    for _ in range(40):
        y = A @ x + z
        F = x - long_phi(model.activation, y)
        D = model.activation.dphi(y.astype(float))
        step = np.linalg.solve(np.eye(len(x)) - D[:, None] * A.astype(float), F.astype(float))
        x = x - step
        if np.abs(step).max() <= 1e-19:
            break
    return x


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 2e-19, reason="long double is no longer than double here"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", BUILT_IN, ids=repr)
def test_the_bound_holds_and_is_sharp(activation, dtype):
    """Models three times outside their constraint: all 260 solutions are proven.

    The bounds are hardly wider than the error.
    """
    n, m = 24, 10
    model = random_model(
        ImplicitModel, 3, 2, n, activation=activation, dtype=dtype, constraint=InfNorm(0.5)
    )
    model.params = {**model.params, "A": 3 * model.params["A"], "b": model.params["b"] * 3}
    U = np.random.default_rng(1).normal(size=(m, 3)).astype(dtype)
    solution = model.equilibrium(U, on_fail="ignore")
    found = certify_solution(model, U)
    assert np.all(found.proven[solution.converged])
    assert found.proven.sum() >= 5
    for i in np.flatnonzero(found.proven):
        error = np.abs(reference(model, U[i].astype(float), found.point[i]) - found.point[i])
        assert np.all(error <= found.error[i])
        assert found.max_error[i] <= 1.1 * error.max() + 3e-12 * (1 + np.abs(found.point[i]).max())
        assert found.radius[i] >= found.error[i].max()


@given(st.integers(0, 10**9), st.sampled_from([a for a in BUILT_IN if a.curvature]))
def test_the_bound_holds_at_points_that_are_far_off(seed, activation):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    scale = 10.0 ** rng.uniform(-0.5, 0.5)
    model = model_of(
        scale * rng.normal(size=(n, n)), rng.normal(size=(n, 1)), rng.normal(size=n), activation
    )
    u = rng.normal(size=1)
    x = host(model.equilibrium(u[None, :], on_fail="ignore").value)[0]
    points = np.stack([x + 10.0**k * rng.normal(size=n) for k in (-8, -4, -3, -2, -1, 0)])
    found = certify_solution(model, np.tile(u, (len(points), 1)), points)
    for i in np.flatnonzero(found.proven):
        solution = reference(model, u, found.point[i])
        if (
            np.abs(
                solution
                - long_phi(
                    activation,
                    model.params["A"] @ solution + model.params["B"] @ u + model.params["b"],
                )
            ).max()
            < 1e-12
        ):
            inside = np.all(np.abs(solution - found.point[i]) <= found.error[i])
            assert inside or np.max(np.abs(solution - found.point[i])) > found.radius[i]


def several(model, u, rng):
    """Distinct solutions of a small smooth model, by Newton's method from many points."""
    A, b = host(model.params["A"]), host(model.params["B"]) @ u + host(model.params["b"])
    found = []
    for _ in range(30):
        x = 3 * rng.normal(size=len(b))
        for _ in range(40):
            y = A @ x + b
            K = np.eye(len(b)) - model.activation.dphi(y)[:, None] * A
            if not np.linalg.cond(K) < 1e10:
                break
            x = np.clip(x - np.linalg.solve(K, x - model.activation.phi(y)), -1e3, 1e3)
        if np.abs(x - model.activation.phi(A @ x + b)).max() < 1e-14 * (1 + np.abs(x).max()):
            K = np.eye(len(b)) - model.activation.dphi(A @ x + b)[:, None] * A
            near = 1e-12 * np.linalg.norm(np.linalg.inv(K)) * (1 + np.abs(x).max())
            if near < 1e-6 and all(np.abs(x - other).max() > 1e-5 for other, _ in found):
                found.append((x, near))
    return found


@given(st.integers(0, 10**9), st.sampled_from([a for a in BUILT_IN if a.curvature]))
def test_smooth_models_with_several_solutions(seed, activation):
    """What Newton's method finds elsewhere is never inside `radius`.

    And exactly one solution is inside `error`.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))
    A = 10.0 ** rng.uniform(0, 1) * rng.normal(size=(n, n)) / activation.lipschitz
    model, u = model_of(A, np.zeros((n, 1)), rng.normal(size=n), activation), np.zeros(1)
    known = several(model, u, rng)
    if not known:
        return
    points = [x for x, _ in known] + [
        x + 10.0 ** rng.uniform(-6, 0) * rng.normal(size=n) for x, _ in known for _ in range(3)
    ]
    points += [0.5 * (x + y) for (x, _), (y, _) in itertools.combinations(known[:4], 2)]
    found = certify_solution(model, np.zeros((len(points), 1)), np.stack(points))
    assert found.proven[: len(known)].all()
    for i in np.flatnonzero(found.proven):
        distances = [(np.abs(x - found.point[i]), near) for x, near in known]
        assert sum(np.all(d <= found.error[i] - near) for d, near in distances) <= 1
        assert sum(d.max() <= found.radius[i] - near for d, near in distances) <= 1


# -------------------------------------------------------------------------- other forms


def test_no_other_solution_anywhere_where_row_sums_prove_it():
    """The search for other solutions includes what the Perron-Frobenius condition says."""
    U = np.random.default_rng(0).normal(size=(3, 4))
    for activation in (activations.relu, activations.abs, activations.tanh, activations.sin):
        model = random_model(
            ImplicitModel, 4, 2, 12, activation=activation, constraint=InfNorm(0.95)
        )
        assert np.all(np.isinf(certify_solution(model, U).radius))
        model.params = {**model.params, "A": 20 * model.params["A"]}
        assert not np.any(np.isinf(certify_solution(model, U).radius))


def test_factors_are_as_good_as_their_product():
    rng = np.random.default_rng(3)
    factors = random_model(
        ImplicitModel, 3, 2, 20, rank=3, activation=activations.tanh, dtype="float64"
    )
    factors.params = {**factors.params, "L": 4 * factors.params["L"]}
    full = ImplicitModel(3, 2, 20, activation=activations.tanh, dtype="float64", rng=0)
    rest = {key: factors.params[key] for key in "BCDbd"}
    full.params = {**rest, "A": factors.params["L"] @ factors.params["R"].T}
    U = rng.normal(size=(6, 3))
    ours, theirs = certify_solution(factors, U), certify_solution(full, U)
    assert ours.proven.all()
    assert theirs.proven.all()
    assert ours.max_error.max() < 1e-10
    # the search halves a factor of 8 four times
    np.testing.assert_allclose(ours.radius, theirs.radius, rtol=0.14)
    # the error of the product is counted: entries of L R^T that cancel leave it behind
    factors.params = {
        **factors.params,
        "L": np.tile([1e8, 1e8, 1.0], (20, 1)),
        "R": np.tile([1e8, -1e8, 0.01], (20, 1)),
    }
    assert certify_solution(factors, U).error.min() > 1e-3


def test_blocks_and_models_without_bias():
    mixed = Blocks((activations.relu, 4), (activations.tanh, 3), (activations.hard_tanh, 3))
    model = random_model(
        ImplicitModel, 3, 2, 10, activation=mixed, bias=False, spread=1.0, dtype="float64"
    )
    model.params = {**model.params, "A": 1.5 * model.params["A"]}
    U = np.random.default_rng(0).normal(size=(8, 3))
    found = certify_solution(model, U)
    assert found.proven.all()
    assert found.max_error.max() < 1e-9
    nested = pieces(Blocks((mixed, 10), (activations.sin, 2)), 0, 12)
    assert [(a.name, c.start, c.stop) for a, c in nested] == [
        ("relu", 0, 4), ("tanh", 4, 7), ("hard_tanh", 7, 10), ("sin", 10, 12)
    ]  # fmt: skip


def test_a_custom_activation_by_its_slopes_alone():
    slow = Activation(
        "slow", lambda z: 0.5 * np.tanh(z), lambda z: 0.5 / np.cosh(z) ** 2, slope_range=(0.0, 0.5)
    )
    model = random_model(ImplicitModel, 3, 2, 10, activation=slow, dtype="float64")
    U = np.random.default_rng(0).normal(size=(4, 3))
    assert certify_solution(model, U).proven.all()
    with pytest.warns(WellPosednessWarning):
        unknown = Activation("mystery", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    found = certify_solution(model.replace(activation=unknown), U)
    assert not found.proven.any()
    assert "mystery" in found.reason[0]
    assert "slope_range" in found.reason[0]


def test_models_that_live_elsewhere(xp):
    model = random_model(ImplicitModel, 3, 2, 10, dtype="float64")
    U = np.random.default_rng(0).normal(size=(4, 3))
    there = certify_solution(moved(model, xp), xp.asarray(U))
    here = certify_solution(model, U)
    assert type(there.error) is np.ndarray
    assert there.proven.all()
    np.testing.assert_allclose(there.max_error, here.max_error, rtol=100)  # roundings of the solves
    assert np.array_equal(there.radius, here.radius)


def test_samples_do_not_interact_and_share_inverses(monkeypatch):
    model = random_model(ImplicitModel, 2, 1, 6, dtype="float64")
    U = np.random.default_rng(0).normal(size=(5, 2))
    U = np.concatenate([U, U * (1 + 1e-9), U * (1 - 1e-9)])
    calls, inverse = [], np.linalg.inv
    monkeypatch.setattr(np.linalg, "inv", lambda K: calls.append(1) or inverse(K))
    found = certify_solution(model, U)
    assert len(calls) <= 1 + 5
    for i in (0, 7):
        alone = certify_solution(model, U[i : i + 1])
        assert alone.proven[0] == found.proven[i]
        np.testing.assert_allclose(alone.error[0], found.error[i], rtol=1e-3, atol=1e-13)


def test_extreme_numbers():
    """Overflow and points without meaning are not certified, and nothing warns."""
    model = model_of(np.array([[1e200, 0], [0, 0.5]]), np.array([[1e200], [1.0]]), np.zeros(2))
    found = certify_solution(
        model, np.array([[1e200], [1.0]]), np.array([[1e300, 0], [1e300, 1.0]])
    )
    assert not found.proven.any()
    tiny = model_of(np.full((2, 2), 1e-310), np.full((2, 1), 1e-310), np.full(2, 5e-324))
    assert certify_solution(tiny, np.ones((1, 1))).proven.all()
    diverging = model_of(np.array([[3.0]]), np.ones((1, 1)), np.zeros(1))
    found = certify_solution(diverging, np.ones((1, 1)))
    assert not found.proven.any()
    assert np.isinf(found.max_error[0])
    assert found.radius[0] == 0


def test_words():
    model = model_of(np.array([[2.0]]), np.zeros((1, 1)), np.array([-1.0]))
    text = repr(certify_solution(model, np.zeros((2, 1)), np.array([[1.0], [0.5]])))
    assert text.startswith(
        "1 of 2 samples certified at the given points; exactly one solution within "
    )
    assert (
        "sample 1: not certified: I - D A is singular; the residual is 0.5, "
        "and 1 of 1 units lie within its reach of a kink" in text
    )
    good = certify_solution(random_model(ImplicitModel, 1, 1, 3), np.ones((1, 1)))
    assert "no other solution at all" in repr(good)
    assert "no other solution at all" in good.reason[0]
    singular = certify_solution(
        model_of(np.eye(1), np.zeros((1, 1)), np.zeros(1)), np.zeros((1, 1)), np.ones((1, 1))
    )
    assert (
        "the Newton map is not seen to contract near the point (it grows by 1 on"
        in singular.reason[0]
    )


def test_bad_arguments_are_refused():
    class Pooled(Activation):
        def vector_blocks(self, n):
            return ((0, n),)

    pooled = Pooled("pooled", np.tanh, lambda z: 1 - np.tanh(z) ** 2, lipschitz=1.0)
    model = ImplicitModel(3, 2, 4, rng=0)
    with pytest.raises(InputError, match="pooled acts on whole vectors"):
        certify_solution(model.replace(activation=pooled), np.ones((1, 3)))
    with pytest.raises(InputError, match="Linear"):
        certify_solution(Linear(3, 2, rng=0), np.ones((1, 3)))
    with pytest.raises(InputError, match=r"X has shape \(1, 3\)"):
        certify_solution(model, np.ones((1, 3)), np.ones((1, 3)))
    with pytest.raises(InputError, match="X has 1 entries that are NaN"):
        certify_solution(model, np.ones((1, 3)), np.array([[np.nan, 0, 0, 0]]))
    with pytest.raises(InputError, match="U has shape"):
        certify_solution(model, np.ones((1, 4)))
