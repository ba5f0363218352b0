"""What reaches LAPACK is finite.

Its SVD and eigenvalues raise, or do not return, where it is not.
"""

from __future__ import annotations

import numpy as np
import pytest

import pyidl
from pyidl import certify, plotting, sim, wellposed
from pyidl.activations import VectorActivation, softmax
from pyidl.errors import GradientMismatchError, InputError
from pyidl.recurrent.error_bound import _radius
from pyidl.testing import check_activation


def overflowing():
    """Finite factors, the product of which is not."""
    options: dict = {
        "rank": 1,
        "dtype": "float64",
        "constraint": wellposed.Unconstrained(),
        "rng": 0,
    }
    model = pyidl.ImplicitModel(2, 1, 3, **options)
    large = {"L": np.full((3, 1), 1e200), "R": np.array([[1e200], [-1e200], [1.0]])}
    model.params = {**model.params, **large}
    return model


def test_a_rescaling_of_what_overflows_is_refused():
    with pytest.raises(InputError, match=r"best found shows inf\. Use smaller entries"):
        certify.rescale(overflowing())


def test_a_spectrum_of_what_overflows_is_refused():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed").use("Agg")
    with pytest.raises(InputError, match="6 entries of A, times slopes, are too large"):
        plotting.spectrum(overflowing())


def test_the_radius_of_a_recurrence_that_overflows_is_infinite():
    assert _radius(np.array([[np.inf, 0.0], [0.0, 1.0]])) == np.inf
    assert _radius(np.diag([0.25, 0.5])) == 0.5


def test_a_jacobian_that_is_not_finite_is_no_derivative():
    def vjp(z, w):
        return np.where(z > 1, np.nan, softmax.vjp(z, w)).astype(z.dtype)

    with pytest.raises(GradientMismatchError, match="entries that are NaN or infinite"):
        check_activation(VectorActivation("bad", softmax.phi, vjp, lipschitz=1.0))


def test_sums_of_products_that_overflow_are_refused():
    R = 1e200 * np.random.default_rng(0).normal(size=(5, 3))
    with np.errstate(over="ignore"):
        moments = sim.Moments.of(R, R)
    with pytest.raises(InputError, match="sums of products of inputs and targets are too large"):
        sim.RowProblem.of(moments, sim.ElasticNet(1.0, 0.0))
