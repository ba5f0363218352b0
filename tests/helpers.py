"""What the tests share: comparing arrays strictly, and bringing models to another library."""

import numpy as np
import pytest

from pyidl.arrays.backend import from_host, namespace, to_numpy

ONE_LIBRARY = pytest.mark.parametrize(
    "xp",
    [
        "numpy",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("array_api_strict", "stand_in")),
        pytest.param("cupy", marks=pytest.mark.gpu),
    ],
    indirect=True,
)
"""For central differences: beside them, an exact oracle is asked in every library."""


def host(a):
    """Copy to NumPy."""
    return to_numpy(a)


def assert_close(actual, desired, *, rtol, atol=0.0, xp=None):
    """Compare library, dtype and shape, then values.

    With `xp`, `actual` must live there, and `desired` is NumPy.
    """
    if xp is None:
        assert namespace(actual) is namespace(desired), (
            f"{namespace(actual).__name__} is not {namespace(desired).__name__}"
        )
    else:
        assert namespace(actual) is xp, f"{namespace(actual).__name__} is not {xp.__name__}"
    a, d = host(actual), host(desired)
    assert a.dtype == d.dtype, f"dtype {a.dtype} is not {d.dtype}"
    assert a.shape == d.shape, f"shape {a.shape} is not {d.shape}"
    np.testing.assert_allclose(a, d, rtol=rtol, atol=atol, equal_nan=False)


def relative(actual, desired):
    """The largest difference, relative to the largest entry of what is desired."""
    a, d = host(actual), host(desired)
    assert a.shape == d.shape
    return float(np.max(np.abs(a - d)) / max(np.max(np.abs(d)), np.finfo(float).tiny))


def moved(layer, xp):
    """The same layer with its parameters in another library."""
    twin = layer.replace()
    twin.params = {key: from_host(xp, np.array(host(a))) for key, a in layer.params.items()}
    return twin


def random_model(cls, *args, seed=0, spread=0.5, **options):
    """A model whose parameters are all random, none zero, and projected."""
    model = cls(*args, rng=seed, **options)
    rng = np.random.default_rng(seed + 1)
    noisy = {key: host(a) + spread * rng.normal(size=a.shape) for key, a in model.params.items()}
    masks = {key: getattr(options.get("pattern"), key, None) for key in noisy}
    noisy = {key: a if masks[key] is None else a * masks[key] for key, a in noisy.items()}
    model.params = model.project({key: a.astype(model.dtype) for key, a in noisy.items()})
    return model


def same_fit(one, other):
    """Two fitted estimators are the same, to the last bit."""
    A, B = one._standardised, other._standardised
    assert all(
        np.array_equal(host(A.network.params[k]), host(a)) for k, a in B.network.params.items()
    )
    for mine, others in ((A.inputs, B.inputs), (A.outputs, B.outputs)):
        assert np.array_equal(mine.mean, others.mean)
        assert np.array_equal(mine.scale, others.scale)
