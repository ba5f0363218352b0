"""The door, the lookup, and the places where libraries differ."""

import warnings

import array_api_strict
import numpy as np
import pytest
import scipy.special
from helpers import assert_close, host
from hypothesis import given
from hypothesis import strategies as st

from pyidl.arrays import backend
from pyidl.arrays.backend import as_real, from_host, namespace, to_device, to_numpy
from pyidl.arrays.batch import CHUNK, FEW, change_and_size, max_abs, sum_rows
from pyidl.errors import DeviceMismatchError, InputError


def test_lookup(xp):
    a = from_host(xp, np.ones(3))
    assert namespace(a) is xp
    assert namespace(a, a) is xp
    assert backend.is_array(a)
    assert not any(backend.is_array(x) for x in ([1.0], 1.0, "a", None))
    assert namespace(np.ones(2), np.float64(1.0)) is np
    assert namespace(np.ma.ones(2)) is np


def test_mixed_and_unknown_arrays_are_refused():
    with pytest.raises(DeviceMismatchError, match="array_api_strict and cpu"):
        namespace(np.ones(2), array_api_strict.ones(2))
    for other in ([1.0], 1.0, None):
        with pytest.raises(TypeError, match="expected an array"):
            namespace(other)
        with pytest.raises(TypeError, match="expected an array"):
            namespace(np.ones(2), other)


def test_devices(xp):
    a = from_host(xp, np.ones(3))
    assert type(to_numpy(a)) is np.ndarray
    assert type(to_device(a, "cpu")) is np.ndarray
    assert backend.device_of(a) == {"numpy": "cpu", "cupy": "cuda:0"}.get(xp.__name__, xp.__name__)
    backend.synchronize(xp)
    for bad in ("gpu", "cuda:", "cuda:-1", "CPU", "cuda:1.5"):
        if bad != "cuda:":
            with pytest.raises(InputError, match="unknown device"):
                to_device(a, bad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "source", ["float16", "float32", "float64", "int8", "uint64", "bool", ">f8", "longdouble"]
)
def test_real_numbers_are_cast(source, dtype):
    a = np.array([[0, 1], [1, 0]]).astype(source)
    admitted = as_real(a, name="U", xp=np, dtype=dtype)
    assert_close(admitted, np.array([[0, 1], [1, 0]], dtype), rtol=0)
    assert admitted.dtype.isnative


def test_nothing_is_copied_without_need(xp):
    a = from_host(xp, np.ones((2, 2)))
    assert as_real(a, name="U", xp=xp, dtype="float64") is a or xp is not np


def test_lists_become_arrays_of_the_model(xp):
    assert_close(
        as_real([[1, 2.5]], name="U", xp=xp, dtype="float32"),
        np.array([[1, 2.5]], np.float32),
        rtol=0,
        xp=xp,
    )


BAD = {
    "nan": (np.array([1.0, np.nan]), r"U has 1 entries .* first at \(1,\)"),
    "inf": (np.array([[1.0, -np.inf]]), r"first at \(0, 1\)"),
    "overflow": (np.array([1e39]), "too large for float32"),
    "complex": (np.array([1j]), "complex128"),
    "objects": (np.array([None]), "object"),
    "text": (["a"], "dtype <U1"),
    "bytes": (b"abc", r"dtype \|S3"),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    "structured": (np.zeros(2, [("a", float)]), "dtype"),
    "ragged": ([[1.0], [1.0, 2.0]], "cannot be read"),
    "masked": (np.ma.masked_equal([1.0, 2.0], 2.0), "masked"),
    "none": (None, "object"),
    "a dictionary": ({"a": 1}, "object"),
}


@pytest.mark.parametrize("case", BAD)
def test_everything_else_is_refused_without_a_warning(case):
    value, message = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=message):
            as_real(value, name="U", xp=np, dtype="float32")


def test_arrays_of_another_library_are_refused():
    with pytest.raises(DeviceMismatchError, match="the model on numpy"):
        as_real(array_api_strict.ones(2), name="U", xp=np, dtype="float64")
    with pytest.raises(DeviceMismatchError, match="the model on array_api_strict"):
        as_real(np.ones(2), name="U", xp=array_api_strict, dtype="float64")


@given(st.integers(1, 200), st.integers(1, 700), st.booleans(), st.integers(0, 100))
def test_change_and_size(m, n, difference, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(m, n)), rng.normal(size=(m, n))
    change, size = change_and_size(np, a, b if difference else a)
    assert np.array_equal(change, np.abs(a - (b if difference else a)).max(axis=1))
    assert np.array_equal(size, np.abs(b if difference else a).max(axis=1))


@pytest.mark.parametrize(
    "shape", [(3, CHUNK), (CHUNK + 1, 1), (2 * CHUNK + 3, 2), (7, 50, 200), (1, CHUNK + 1)]
)
def test_change_and_size_of_large_arrays_in_pieces(shape, xp):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    rest = tuple(range(1, len(shape)))
    change, size = change_and_size(xp, from_host(xp, a), from_host(xp, b))
    assert np.array_equal(change, np.abs(a - b).max(axis=rest))
    assert np.array_equal(size, np.abs(b).max(axis=rest))
    assert change.dtype == size.dtype == np.float64
    assert_close(max_abs(xp, from_host(xp, a)), np.abs(a).max(axis=rest), rtol=0, xp=xp)


def test_max_abs_does_not_hide_a_nan():
    a = np.zeros((3, CHUNK))
    a[1, 7] = np.nan
    assert np.isnan(max_abs(np, a)).tolist() == [False, True, False]
    for first, second in ((a, np.zeros_like(a)), (np.zeros_like(a), a)):
        assert np.isnan(change_and_size(np, first, second)[0]).tolist() == [False, True, False]


def test_special_functions(xp):
    z = np.concatenate([np.linspace(-30, 30, 101), [-800.0, 800.0]])
    assert_close(backend.expit(xp, from_host(xp, z)), scipy.special.expit(z), rtol=1e-14, xp=xp)
    assert_close(backend.erf(xp, from_host(xp, z)), scipy.special.erf(z), rtol=1e-14, xp=xp)
    # Each library sums in an order of its own: without cancellation, two times as many
    # roundings as terms.
    positive = np.abs(z[None])
    assert_close(
        backend.cumsum(xp, from_host(xp, positive), axis=1),
        np.cumsum(positive, axis=1),
        rtol=2 * z.size * 2**-53,
        xp=xp,
    )
    single = backend.astype(xp, from_host(xp, z), "float32")
    assert host(single).dtype == np.float32
    assert host(backend.erf(xp, single)).dtype == np.float32
    assert host(backend.expit(xp, single)).dtype == np.float32


def test_numbers_whose_sum_overflows_are_finite_all_the_same():
    large = np.full((4, 3), 3e38, np.float32)
    assert as_real(large, name="a", xp=np, dtype="float32") is large
    for hole in (np.nan, np.inf, -np.inf):
        spoilt = large.copy()
        spoilt[2, 1] = hole
        with pytest.raises(InputError, match=r"1 entries .* \(2, 1\)"):
            as_real(spoilt, name="a", xp=np, dtype="float32")
    both = np.array([np.inf, -np.inf])
    with pytest.raises(InputError, match="2 entries"):
        as_real(both, name="a", xp=np, dtype="float64")


@pytest.mark.parametrize(("n", "count"), [(1, 1), (40, 7), (40, 1000), (70_000, 600)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_are_summed_where_they_belong(n, count, dtype, xp):
    rng = np.random.default_rng(0)
    # whole numbers: sums are exact
    place, source = (
        rng.integers(0, count, n),
        rng.integers(-9, 10, (n, 2)).astype(dtype),
    )
    there = np.zeros((count, 2), dtype)
    np.add.at(there, place, source)
    assert_close(
        sum_rows(xp, from_host(xp, source), from_host(xp, place), count), there, rtol=0, xp=xp
    )


def test_a_row_that_is_not_finite_spoils_its_own_sum_only(xp):
    """What a sum over sorted rows, and a sparse product, promise.

    A product with zeros does not.
    """
    place, source = (
        np.array([4, 0, 4, 3, 0, 1]),
        np.array([[1.0], [np.inf], [2.0], [3.0], [4.0], [5.0]]),
    )
    sums = host(sum_rows(xp, from_host(xp, source), from_host(xp, place), FEW + 1))[:, 0]
    assert sums[:5].tolist() == [np.inf, 5.0, 0.0, 3.0, 3.0]
    assert not sums[5:].any()


@pytest.mark.parametrize("shape", [(3, 5), (700, 130), (70, 13, 90), (2, 80_000), (90_000,)])
def test_sizes_of_samples_large_and_small(shape, xp):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    axes = tuple(range(1, len(shape)))
    assert_close(max_abs(xp, from_host(xp, a)), np.abs(a).max(axis=axes), rtol=0, xp=xp)
    assert_close(
        max_abs(xp, from_host(xp, a), from_host(xp, b)), np.abs(a * b).max(axis=axes), rtol=0, xp=xp
    )
    a[1] = np.nan
    assert np.isnan(host(max_abs(xp, from_host(xp, a)))[1])
