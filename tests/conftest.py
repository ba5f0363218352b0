"""What every test has: the fixture `xp` of array libraries, and a summary of skips."""

import importlib
import os
import sys
from collections import Counter

# Several workers share the cores: a thread each, to be said before NumPy is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import array_api_strict
import numpy as np
import pytest
import stand_in
from hypothesis import HealthCheck, settings

# The default run repeats the same examples, so that a red run means a change;
# --hypothesis-profile=search draws new ones.
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("pyidl", derandomize=True, max_examples=40, **COMMON)
settings.register_profile("search", max_examples=200, print_blob=True, **COMMON)
settings.load_profile("pyidl")


def pytest_terminal_summary(terminalreporter):
    """Why tests were skipped, and how many for each reason, the most frequent first."""
    reports = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:6d}  " + reason.split("\n")[0])


@pytest.fixture(
    params=["numpy", "array_api_strict", "stand_in", pytest.param("cupy", marks=pytest.mark.gpu)]
)
def xp(request, monkeypatch):
    """The namespaces that pyidl runs on.

    CuPy where a device answers, and everywhere a stand-in with its strictness.
    """
    if request.param == "stand_in":
        for name, module in stand_in.MODULES.items():
            monkeypatch.setitem(sys.modules, name, module)
        return stand_in.cupy
    if request.param == "numpy":
        return np
    if request.param == "array_api_strict":
        return array_api_strict
    return require_gpu()


def require_gpu():
    """CuPy where it finds a GPU; otherwise the test is skipped."""
    reason = "needs a GPU that CuPy can use"
    cupy = pytest.importorskip("cupy", reason=reason)
    if not cupy.is_available():
        pytest.skip(reason)
    return cupy


@pytest.fixture(scope="session")
def compiled():
    """From a text to PTX, or to the machine code of an architecture, by NVRTC."""
    reason = "needs NVRTC and CUDA's headers, which CuPy brings with its extra ctk"
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason=reason)
    try:
        nvrtc.getVersion()
        options = importlib.import_module("cupy._core.core").assemble_cupy_compiler_options(())
    except Exception as error:
        pytest.skip(f"{reason}: {error}")

    def compiled(text, arch="compute_80"):
        """What CuPy makes of a text: PTX.

        Or, for an architecture such as sm_80, what the assembler says of it.
        """
        program = nvrtc.createProgram(text, "kernel.cu", (), ())
        nvrtc.compileProgram(
            program, (*options, "-ftz=true", f"-arch={arch}", "--ptxas-options=-v")
        )
        return nvrtc.getPTX(program) if arch.startswith("compute") else nvrtc.getProgramLog(program)

    compiled.error = nvrtc.NVRTCError
    return compiled
