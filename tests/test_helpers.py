"""The comparison that all tests rely on must itself be able to fail."""

import array_api_strict
import numpy as np
import pytest
from helpers import assert_close

GOOD = np.array([1.0, 2.0])


def test_equal_arrays_pass():
    assert_close(GOOD, GOOD.copy(), rtol=0)
    assert_close(array_api_strict.asarray(GOOD), GOOD, rtol=0, xp=array_api_strict)


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.astype("float32"),
        GOOD[:, None],
        GOOD * (1 + 1e-6),
        np.array([1.0, np.nan]),
        array_api_strict.asarray(GOOD),
    ],
    ids=["dtype", "shape", "value", "nan", "library"],
)
def test_differences_are_found(bad):
    with pytest.raises(AssertionError):
        assert_close(bad, GOOD, rtol=1e-9)


def test_wrong_library_is_found_when_one_is_asked_for():
    with pytest.raises(AssertionError):
        assert_close(GOOD, GOOD, rtol=0, xp=array_api_strict)
