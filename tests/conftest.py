"""One test, every array library: the fixture `xp`."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("pyidl", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("pyidl")


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The namespaces that pyidl runs on; CuPy where a device answers."""
    if request.param == "numpy":
        return np
    if request.param == "array_api_strict":
        return array_api_strict
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU")
    return cupy
