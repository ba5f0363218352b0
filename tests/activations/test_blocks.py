"""Activations of several components together.

Derivative, constants, their place in Blocks, models, solvers and files.
"""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_close, host, moved, random_model, relative
from hypothesis import given
from hypothesis import strategies as st

from pyidl import (
    ImplicitModel,
    InfNorm,
    Linear,
    Pattern,
    Pointwise,
    Sequential,
    activations,
    load,
    save,
    solvers,
)
from pyidl.activations import Blocks, VectorActivation, layer_norm, named, softmax
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.matrices.full import Full
from pyidl.matrices.tiled import Tiled
from pyidl.solvers.image import Jacobians, Phi
from pyidl.solvers.problem import Affine
from pyidl.testing import check_activation, check_pullback

BUILT_IN = [softmax, layer_norm(), layer_norm(0.01)]
MIXED = Blocks((activations.relu, 4), (softmax, 3), (layer_norm(), 5))
FORMULAS = {
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "layer_norm(1.0)": lambda z: (
        (z - z.mean(axis=-1, keepdims=True)) / np.sqrt(1 + z.var(axis=-1, keepdims=True))
    ),
    "layer_norm(0.01)": lambda z: (
        (z - z.mean(axis=-1, keepdims=True)) / np.sqrt(0.01 + z.var(axis=-1, keepdims=True))
    ),
}


def model(seed=0, activation=MIXED, **options):
    options = {"constraint": InfNorm(0.4), "dtype": "float64", **options}
    return random_model(ImplicitModel, 4, 3, 12, seed=seed, activation=activation, **options)


def inputs(m=7, seed=0):
    return np.random.default_rng(seed).normal(size=(m, 4))


# ------------------------------------------------------------------------ the functions


@pytest.mark.parametrize("activation", BUILT_IN, ids=repr)
def test_formulas_and_libraries(activation, xp):
    rng = np.random.default_rng(0)
    z, w = 3 * rng.normal(size=(2, 5, 6))
    assert_close(
        activation(from_host(xp, z)), FORMULAS[activation.name](z), rtol=1e-12, atol=1e-14, xp=xp
    )
    assert_close(
        activation.vjp(from_host(xp, z), from_host(xp, w)),
        activation.vjp(z, w),
        rtol=1e-12,
        atol=1e-14,
        xp=xp,
    )
    single = activation.vjp(from_host(xp, z.astype("f4")), from_host(xp, w.astype("f4")))
    assert_close(single, activation.vjp(z, w).astype("f4"), rtol=1e-3, atol=1e-5, xp=xp)


@pytest.mark.parametrize(
    "activation", [*BUILT_IN, MIXED, Blocks((softmax, 2), (MIXED, 12))], ids=repr
)
def test_claims(activation):
    report = check_activation(activation, rng=2)
    assert report.max_error < 1e-7
    assert report.slope_range[1] <= activation.lipschitz * (1 + 1e-9)


@given(
    st.sampled_from(BUILT_IN),
    st.integers(1, 6),
    st.integers(0, 10_000),
    st.floats(-4, 2),
    st.floats(-6, 2),
)
def test_no_pair_of_points_beats_the_constant(activation, k, seed, size, distance):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(50, k)) * 10.0**size
    # nearly equal entries: where softmax is steepest
    a[::2, : k // 2 + 1] = a[::2, :1] + 1e-3 * a[::2, : k // 2 + 1]
    d = rng.normal(size=(50, k))
    for _ in range(3):  # the power method turns d into the direction that is stretched most
        d = activation.vjp(a, d)
        d /= np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-300)
    b = a + d * 10.0**distance
    moved_by = np.linalg.norm(activation(a) - activation(b), axis=1)
    assert np.all(
        moved_by <= activation.lipschitz * np.linalg.norm(a - b, axis=1) * (1 + 1e-6) + 1e-14
    )


def test_the_constants_are_attained():
    d = np.array([[1.0, -1.0]])
    zero = np.zeros((1, 2))
    np.testing.assert_allclose(softmax.vjp(zero, d), 0.5 * d)
    np.testing.assert_allclose(
        softmax.vjp(np.array([[3.0, 3.0, -900.0]]), np.array([[1.0, -1.0, 0.0]])),
        [[0.5, -0.5, 0.0]],
    )
    for eps in (0.01, 1.0, 4.0):
        np.testing.assert_allclose(layer_norm(eps).vjp(zero, d), d / eps**0.5)


@pytest.mark.parametrize("activation", BUILT_IN, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_arguments(activation, dtype):
    z = np.array(
        [
            [1e30, -1e30, 0.0],
            [1e4, 1e4, 1e4],
            [-1e30, -1e30, -1e30],
            [1e-38, 0.0, -1e-38],
            [800.0, -800.0, 0.0],
        ],
        dtype,
    )
    with np.errstate(under="ignore"):
        y, v = activation(z), activation.vjp(z, np.ones_like(z))
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(v))
    assert np.all(np.linalg.norm(y, axis=1) <= 3**0.5 * (1 + 1e-6))
    np.testing.assert_allclose(v, 0.0, atol=1e-5)  # neither changes along (1, 1, 1)
    expected = (
        np.array([1.0, 0.0, 0.0])
        if activation is softmax
        else np.array([1.0, -1.0, 0.0]) * 1.5**0.5
    )
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)


def test_a_user_writes_phi_and_vjp():
    with pytest.raises(InputError, match="vjp must be a function"):
        VectorActivation("a", np.tanh, 1.0, lipschitz=1.0)
    with pytest.raises(InputError, match="phi and dphi must be functions"):
        VectorActivation("a", None, np.multiply, lipschitz=1.0)
    with pytest.warns(WellPosednessWarning, match="neither"):
        assert VectorActivation("a", np.tanh, np.multiply).row_lipschitz(2) is None
    with pytest.raises(
        InputError, match="softmax acts on its components together and has no slopes"
    ):
        softmax.dphi(np.ones((1, 2)))
    with pytest.raises(InputError, match="no slopes"):
        MIXED.dphi(np.ones((1, 12)))
    for eps in (0.0, -1.0, np.inf):
        with pytest.raises(InputError, match="eps of layer_norm"):
            layer_norm(eps)


@given(st.floats(1e-300, 1e300))
def test_the_lipschitz_constant_of_layer_norm_is_rounded_up(eps):
    L = layer_norm(eps).lipschitz
    assert 1 <= Fraction(L) ** 2 * Fraction(eps) <= 1 + Fraction(1e-15)


def test_what_is_known_of_them():
    assert softmax.slope_range is MIXED.slope_range is None
    assert softmax.nonexpansive
    assert not layer_norm(0.01).nonexpansive
    assert (softmax.lipschitz, layer_norm(0.01).lipschitz, MIXED.lipschitz) == (0.5, 10.0, 1.0)
    assert softmax.row_lipschitz(2) == [0.5, 0.5]
    assert MIXED.row_lipschitz(12) == [1.0] * 4 + [0.5] * 3 + [1.0] * 5
    assert activations.relu.vector_blocks(9) == ()
    assert softmax.vector_blocks(9) == ((0, 9),)
    assert MIXED.vector_blocks(12) == ((4, 7), (7, 12))
    assert Blocks((softmax, 2), (MIXED, 12)).vector_blocks(14) == ((0, 2), (6, 9), (9, 14))
    assert Blocks((activations.relu, 2), (activations.tanh, 2)).slope_range == (0.0, 1.0)
    z, w = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert np.array_equal(activations.tanh.vjp(z, w), activations.tanh.dphi(z) * w)


def test_columns_take_a_block_as_a_whole_or_not_at_all():
    assert MIXED.columns(slice(4, 7)) is softmax
    assert MIXED.columns(slice(2, 7)).vector_blocks(5) == ((2, 5),)
    assert MIXED.columns(np.array([7, 8, 9, 10, 11, 0])).vector_blocks(6) == ((0, 5),)
    assert softmax.columns(slice(None)) is softmax
    for members in (slice(4, 6), slice(5, 12), np.array([4, 6, 5]), np.array([4, 5, 0, 6])):
        with pytest.raises(InputError, match="together"):
            MIXED.columns(members)
    with pytest.raises(InputError, match="together"):
        softmax.columns(slice(0, 2))


@pytest.mark.parametrize(
    "members", [slice(1, 4), slice(None), slice(-2, None), slice(0, 5, 2), np.array([0, 2, 3])]
)
def test_columns_of_blocks_in_blocks(members):
    inner = Blocks((activations.relu, 1), (activations.tanh, 2))
    nested = Blocks((inner, 3), (activations.sigmoid, 2))
    z = np.random.default_rng(0).normal(size=(4, 5))
    part = nested.columns(members)
    assert np.array_equal(part(z[:, members]), nested(z)[:, members])
    if isinstance(part, Blocks):
        assert part.width == z[:, members].shape[1]


@pytest.mark.parametrize("activation", [*BUILT_IN, MIXED], ids=repr)
def test_names_copies_and_in_place_form(activation):
    z = np.random.default_rng(0).normal(size=(3, 12))
    w = np.ones_like(z) * np.arange(12)
    for twin in (pickle.loads(pickle.dumps(activation)), copy.deepcopy(activation)):
        assert np.array_equal(twin(z), activation(z))
        assert np.array_equal(twin.vjp(z, w), activation.vjp(z, w))
        assert twin is activation or isinstance(activation, Blocks)
    out = np.full_like(z, np.nan)
    assert activation(z, out=out) is out
    assert np.array_equal(out, activation(z))
    if activation is not MIXED:
        assert named(activation.name) is activation
    assert named("softmin") is None


# ---------------------------------------------------------------------------- the model


def test_the_cell_chooses_its_problem():
    vector = model()._cell()
    p = vector.bind(inputs())
    assert isinstance(p.map, Phi)
    assert "together" in p.lacking
    assert not model(activation=activations.relu)._cell().bind(inputs()).lacking
    x = model().equilibrium(inputs())
    assert x.method == "Auto(Picard)"
    assert np.array_equal(x.value, MIXED(x.pre))
    q = vector.linearize(x, inputs(), np.ones((7, 12)))
    assert isinstance(q.map, Jacobians)
    assert "together" in q.lacking
    np.testing.assert_allclose(q.reference, np.abs(MIXED.vjp(x.pre, np.ones((7, 12)))).max(axis=1))
    J, h = q.system()
    v = solvers.Picard()(q)
    np.testing.assert_allclose(
        np.stack([np.linalg.solve(j, g) for j, g in zip(J, h)]), v.value, atol=1e-11
    )


@pytest.mark.parametrize(
    "solver",
    [
        solvers.Jacobi(),
        solvers.Anderson(splitting=True),
        solvers.Newton(),
        solvers.Substitution(),
        solvers.PeacemanRachford(),
        solvers.ForwardBackward(),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "options",
    [{}, {"pattern": Pattern.feed_forward(4, 5, 4, 3, 3)}, {"rank": 2}],
    ids=["full", "tiled", "factors"],
)
def test_solvers_that_need_slopes_refuse_by_name(solver, options):
    U, name = inputs(), type(solver).__name__
    refused_by = "Jacobi" if solver == solvers.Anderson(splitting=True) else name
    with pytest.raises(InputError, match=rf"^{refused_by} .*together"):
        model(forward=solver, **options)(U)
    _, pull = model(adjoint=solver, **options)(U)
    with pytest.raises(InputError, match="together"):
        pull(np.ones((7, 3)))


FORWARD = [solvers.Anderson(), solvers.Auto()]


@pytest.mark.parametrize("solver", FORWARD, ids=repr)
@pytest.mark.parametrize(
    "options",
    [{}, {"pattern": Pattern.feed_forward(4, 6, 6, 3)}, {"rank": 2}],
    ids=["full", "tiled", "factors"],
)
def test_the_others_find_the_same_point_and_gradient(solver, options, xp):
    U, dY = from_host(xp, inputs()), from_host(xp, np.random.default_rng(1).normal(size=(7, 3)))
    reference = moved(model(forward=solvers.Picard(), adjoint=solvers.Direct(), **options), xp)
    for adjoint in (solver, solvers.GMRES()):
        other = moved(model(forward=solver, adjoint=adjoint, **options), xp)
        Y, pull = other(U)
        expected, expected_pull = reference(U)
        assert relative(Y, expected) < 1e-10
        for key, g in pull(dY)[1].items():
            assert relative(g, expected_pull(dY)[1][key]) < 1e-9, key


def test_a_block_triangular_matrix_is_multiplied_by_its_tiles():
    """Groups may cut through a softmax, so it is not solved group by group.

    The products are those of the tiles all the same.
    """
    masked = model(pattern=Pattern.feed_forward(4, 5, 4, 3, 3))
    assert isinstance(masked.maps["A"], Tiled)
    assert masked.equilibrium(inputs()).method == "Auto(Picard)"
    assert check_pullback(masked, inputs()).max_error < 1e-6


def test_alone_in_a_batch_and_shuffled():
    net, U = model(), inputs(9)
    dY, order = (
        np.random.default_rng(1).normal(size=(9, 3)),
        np.random.default_rng(2).permutation(9),
    )
    Y, pull = net(U)
    shuffled, shuffled_pull = net(U[order])
    np.testing.assert_allclose(shuffled, Y[order], atol=1e-11)
    dU = pull(dY)[0]
    np.testing.assert_allclose(shuffled_pull(dY[order])[0], dU[order], atol=1e-11)
    for i in range(9):
        alone, alone_pull = net(U[i : i + 1])
        np.testing.assert_allclose(alone[0], Y[i], atol=1e-11)
        np.testing.assert_allclose(alone_pull(dY[i : i + 1])[0][0], dU[i], atol=1e-11)


def test_an_adjoint_is_solved_where_no_iteration_contracts():
    """At a point where layer norm stretches tenfold.

    The adjoint ends in GMRES or a direct solve, as for a componentwise phi.
    """
    rng = np.random.default_rng(4)
    A, Y, G = (
        np.linalg.qr(rng.normal(size=(12, 12)))[0],
        1e-3 * rng.normal(size=(5, 12)),
        rng.normal(size=(5, 12)),
    )
    phi = Blocks((layer_norm(0.01), 12))
    q = Affine(Full(A.T.copy()), G, Jacobians(phi, Y), np.abs(phi.vjp(Y, G)).max(axis=1))
    J, h = q.system()
    assert np.all(np.abs(np.linalg.eigvals(np.eye(12) - J)).max(axis=1) > 5)
    assert not solvers.Picard()(q).converged.any()
    v = solvers.Auto()(q)
    assert v.converged.all()
    assert "then GMRES(20) for 5 of 5 samples" in v.method
    assert relative(v.value, np.stack([np.linalg.solve(j, g) for j, g in zip(J, h)])) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes(dtype):
    exact = model()
    Y, pull = exact.astype(dtype)(inputs())
    assert Y.dtype == dtype
    dU, grads = pull(np.ones((7, 3)))
    reference = exact(inputs())[1](np.ones((7, 3)))
    assert relative(dU.astype(float), reference[0]) < (1e-4 if dtype == "float32" else 1e-9)
    assert all(g.dtype == dtype for g in grads.values())


def test_pointwise_layers():
    layer = Sequential(Linear(4, 6, rng=0), softmax, Linear(6, 5, rng=1), Pointwise(layer_norm()))
    assert check_pullback(layer, inputs()).max_error < 1e-6
    np.testing.assert_allclose(
        host(Pointwise(softmax).predict(inputs())),
        FORMULAS["softmax"](inputs().astype("f4")),
        rtol=1e-5,
    )


def test_bad_activations_are_refused_at_the_door():
    wrong = {
        "shape": VectorActivation("wrong", lambda z: z, lambda z, w: w[:1], lipschitz=1.0),
        "dtype": VectorActivation("wrong", lambda z: z, lambda z, w: w.astype("f8"), lipschitz=1.0),
        "value": VectorActivation("wrong", lambda z: z, lambda z, w: w + np.inf, lipschitz=1.0),
    }
    for activation in wrong.values():
        with pytest.raises(InputError, match="vjp of the activation 'wrong'"):
            ImplicitModel(4, 3, 12, activation=activation)
        with pytest.raises(InputError, match="vjp of the activation 'wrong'"):
            ImplicitModel(4, 3, 12, activation=Blocks((activations.relu, 2), (activation, 10)))
    seen = []
    own = VectorActivation(
        "own", lambda z: seen.append(z.shape[-1]) or 0.5 * z, lambda z, w: 0.5 * w, lipschitz=0.5
    )
    ImplicitModel(4, 3, 12, activation=Blocks((activations.relu, 2), (own, 10)), rng=0)
    assert set(seen) == {10}  # it is tried on as many components as it will see


def test_files(tmp_path):
    own = VectorActivation("own", lambda z: 0.5 * z, lambda z, w: 0.5 * w, lipschitz=0.5)
    for activation in (softmax, layer_norm(0.25), MIXED, own, Blocks((own, 5), (softmax, 7))):
        net = model(activation=activation)
        save(tmp_path / "m", net)
        again = load(tmp_path / "m", activation=own)
        assert np.array_equal(again.predict(inputs()), net.predict(inputs()))
        assert again.activation.name == net.activation.name
        assert again.activation is activation or isinstance(activation, Blocks)
    with pytest.raises(InputError, match="'own', which is not built in"):
        load(tmp_path / "m")


def test_a_block_counts_by_its_spectral_norm():
    """Not by its Frobenius norm, which is twice as large."""
    certificate = InfNorm().certificate({"A": 1.5 * np.eye(4)}, activations.softmax)
    assert certificate.contraction == pytest.approx(0.75)
