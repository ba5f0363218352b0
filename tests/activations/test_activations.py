"""Every activation keeps its word.

Derivative, slopes, homogeneity, scalar fixed point, in-place form.
"""

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_close, host
from hypothesis import given
from hypothesis import strategies as st

from pyidl import activations
from pyidl.activations import Activation, Blocks, leaky_relu, named
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.testing import check_activation
from pyidl.wellposed import InfNorm, PerronFrobenius, SpectralNorm

ALL = [*activations.builtin.BUILT_IN.values(), leaky_relu(), leaky_relu(0.5)]
MIXED = Blocks((activations.relu, 2), (activations.gelu, 1), (activations.sin, 3))
FORMULAS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "hard_tanh": lambda z: np.clip(z, -1, 1),
    "softsign": lambda z: z / (1 + np.abs(z)),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu": lambda z: np.array([x * 0.5 * (1 + math.erf(x / 2**0.5)) for x in z]),
    "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    "identity": lambda z: z,
    "sin": np.sin,
    "abs": np.abs,
    "leaky_relu(0.01)": lambda z: np.where(z > 0, z, 0.01 * z),
    "leaky_relu(0.5)": lambda z: np.where(z > 0, z, 0.5 * z),
}


@pytest.mark.parametrize("activation", ALL, ids=repr)
def test_formulas(activation, xp):
    z = np.linspace(-8, 8, 401)
    assert_close(
        activation(from_host(xp, z)), FORMULAS[activation.name](z), rtol=1e-12, atol=1e-15, xp=xp
    )


@pytest.mark.parametrize("activation", [*ALL, MIXED], ids=repr)
def test_claims(activation):
    report = check_activation(activation, rng=1)
    low, high = activation.slope_range
    assert report.max_error < 1e-6
    assert activation.lipschitz == max(-low, high)
    assert activation.nonexpansive == (
        activation.name not in ("silu", "gelu") and activation is not MIXED
    )
    if activation is not MIXED:  # the bounds are not only safe but attained
        assert report.slope_range == pytest.approx(
            (low, high), abs=2e-3 if activation.name != "softsign" else 3e-3
        )


@pytest.mark.parametrize("activation", ALL, ids=repr)
def test_curvature_is_a_bound_that_is_attained_and_kinks_are_jumps(activation):
    """A dense search: no slope changes faster between neighbours, and some nearly do.

    At every kink phi' jumps.
    """
    z = np.concatenate([np.linspace(-40, 0, 400_001), np.linspace(0, 40, 400_001)[1:]])
    slope = activation.dphi(z)
    away = ~np.any(
        [(z[:-1] <= kink) & (kink <= z[1:]) for kink in activation.kinks or (np.inf,)], axis=0
    )
    rate = (np.abs(np.diff(slope)) / np.diff(z))[away]
    assert rate.max() <= activation.curvature + 1e-10
    assert rate.max() >= activation.curvature * (1 - 1e-3)
    for kink in activation.kinks:
        left, right = activation.dphi(kink + np.array([-1e-12, 1e-12]))
        assert abs(right - left) > 0.5 or activation.name.startswith("leaky")
        assert left != right


@pytest.mark.parametrize("activation", ALL, ids=repr)
def test_homogeneity_is_claimed_exactly_where_it_holds(activation):
    z = np.random.default_rng(0).normal(size=1000)
    assert activation.homogeneous == np.allclose(activation(3 * z), 3 * activation(z), rtol=1e-12)


@given(
    st.floats(-1e6, 1e6), st.floats(-20, 0.999), st.sampled_from([a for a in ALL if a.scalar_solve])
)
def test_scalar_fixed_points(r, d, activation):
    if activation.slope_range[0] < 0:
        d = max(d, -0.999)
    r, d = np.array([r]), np.array([d])
    x = activation.scalar_solve(r, d)
    assert np.abs(activation(d * x + r) - x) <= 1e-12 * (np.abs(r) + np.abs(d * x) + 1)


@pytest.mark.parametrize("activation", [*ALL, MIXED], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_place_is_the_same_to_the_last_bit(activation, dtype):
    z = np.random.default_rng(0).normal(size=(50, 6)).astype(dtype)
    before, out = z.copy(), np.full_like(z, np.nan)
    assert activation(z, out=out) is out
    assert np.array_equal(out, activation(z))
    assert np.array_equal(z, before)
    assert activation(z).dtype == activation.dphi(z).dtype == dtype
    assert not np.shares_memory(activation(z), z)


@pytest.mark.parametrize("activation", [*ALL, MIXED], ids=repr)
def test_dtype_and_library_are_kept(activation, xp):
    z = from_host(xp, np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32))
    for y in (activation(z), activation.dphi(z)):
        assert_close(y, host(y), rtol=0, xp=xp)
        assert host(y).dtype == np.float32


@pytest.mark.parametrize("activation", ALL, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_arguments(activation, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    z = np.array([0.0, -0.0, tiny, -tiny, 1e4, -1e4, 1e30, -1e30], dtype)
    with np.errstate(over="raise", under="ignore"):
        y, slope = activation(z), activation.dphi(z)
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(slope))
    low, high = activation.slope_range
    assert np.all((slope >= low - 1e-6) & (slope <= high + 1e-6))
    assert np.all(np.abs(y) <= np.abs(z) * activation.lipschitz * (1 + 1e-6) + 1)


def test_names():
    for activation in ALL:
        assert named(activation.name) is activation
        assert repr(activation) == activation.name
    assert named("swish") is None
    assert leaky_relu(0.3) is leaky_relu(0.3)


@pytest.mark.parametrize("activation", [*ALL, MIXED], ids=repr)
def test_pickle_and_deepcopy(activation):
    z = np.linspace(-2, 2, 6)
    for twin in (pickle.loads(pickle.dumps(activation)), copy.deepcopy(activation)):
        assert np.array_equal(twin(z), activation(z))
        assert twin is activation or isinstance(activation, Blocks)


def test_what_is_known_of_a_custom_activation():
    both = Activation("a", np.tanh, lambda z: 1 - np.tanh(z) ** 2, lipschitz=1.0)
    assert both.slope_range == (-1.0, 1.0)
    assert both.curvature is None
    assert Activation("a", np.tanh, np.tanh, lipschitz=1.0, curvature=0.0, kinks=(1, -1)).kinks == (
        -1.0,
        1.0,
    )
    assert Activation("a", np.tanh, np.tanh, slope_range=(-0.5, 0.2)).lipschitz == 0.5
    with pytest.warns(WellPosednessWarning, match="neither lipschitz nor slope_range"):
        unknown = Activation("a", np.tanh, np.tanh)
    assert not unknown.nonexpansive
    assert unknown.row_lipschitz(3) is None
    assert Blocks((activations.relu, 1), (activations.silu, 2)).row_lipschitz(3) == pytest.approx(
        [1, 1.09984, 1.09984], abs=1e-5
    )


def test_bad_arguments_are_refused():
    for options in (
        {"lipschitz": 0.0},
        {"lipschitz": np.inf},
        {"lipschitz": -1.0},
        {"slope_range": (1.0, 0.0)},
        {"slope_range": (0.0, np.nan)},
        {"slope_range": (0.0, 0.0)},
        {"lipschitz": 1.0, "curvature": -1.0},
        {"lipschitz": 1.0, "curvature": np.nan},
        {"lipschitz": 1.0, "curvature": 1.0, "kinks": (np.inf,)},
    ):
        with pytest.raises(InputError, match="'a'"):
            Activation("a", np.tanh, np.tanh, **options)
    with pytest.raises(InputError, match="functions"):
        Activation("a", np.tanh, 1.0, lipschitz=1.0)
    for slope in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(InputError, match="slope"):
            leaky_relu(slope)
    for blocks in (
        (),
        ((activations.relu, 0),),
        ((activations.relu,),),
        (("relu", 2),),
        ((activations.relu, 1.5),),
    ):
        with pytest.raises(InputError, match="pairs"):
            Blocks(*blocks)


def identity(u, alpha):
    return u


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"lipschitz": 0.5, "slope_range": (0, 2)}, r"lipschitz is 0\.5 and .* reach 2\.0"),
        ({"lipschitz": 0.5, "slope_range": (-2, 0)}, r"lipschitz is 0\.5 and .* reach 2\.0"),
        ({"lipschitz": 3.0, "slope_range": (0, 2)}, r"lipschitz is 3\.0 and .* reach 2\.0"),
        ({"slope_range": (0, 1), "curvature": 0.0}, "name its kinks"),
        ({"lipschitz": 1.0, "curvature": 0.0}, "name its kinks"),
        ({"slope_range": (0, 1), "curvature": 1.0, "homogeneous": True}, "name its kinks"),
        ({"slope_range": (0, 1), "curvature": 1.0, "divides": True}, "name its kinks"),
        ({"lipschitz": 1.0, "homogeneous": True, "kinks": (0, 1)}, "all but 0, or homogeneous"),
        ({"slope_range": (0, 2), "divides": True}, "with the slopes 0 and 1"),
        ({"slope_range": (0, 0.5), "divides": True}, "with the slopes 0 and 1"),
        ({"slope_range": (0.5, 1), "divides": True}, "with the slopes 0 and 1"),
        ({"slope_range": (0, 2), "resolvent": identity}, r"slopes lie in \[0, 1\]"),
        ({"slope_range": (-1, 1), "resolvent": identity}, r"slopes lie in \[0, 1\]"),
        ({"lipschitz": 1.0, "resolvent": identity}, r"slopes lie in \[0, 1\]"),
    ],
)
def test_declarations_that_contradict_each_other_are_refused(options, cause):
    """A certificate would rest on both, and be false where one is."""
    with pytest.raises(InputError, match=f"'a': .*{cause}"):
        Activation("a", np.tanh, np.tanh, **options)


def test_a_lipschitz_constant_in_float32_does_not_round_factors():
    """Of float32, ``L |A|_2`` would be rounded to the nearest one, here downwards."""
    L, A = np.float32(0.7), np.array([[0.3]])
    phi = Activation("a", np.tanh, np.tanh, lipschitz=L)
    assert (type(phi.lipschitz), phi.lipschitz) == (float, float(L))
    exact = Fraction(float(L)) * Fraction(0.3)
    for condition in (InfNorm(), SpectralNorm(), PerronFrobenius()):
        assert Fraction(condition.certificate({"A": A}, phi).contraction) >= exact
