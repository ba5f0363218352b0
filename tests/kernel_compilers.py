"""Compilers of kernels that need no GPU.

NVRTC makes CUDA's text PTX, a compiler of C++ makes it functions of the host.
"""

import contextlib
import ctypes
import platform
import shutil
import subprocess

import numpy as np
import pytest

C_TYPE = {"float32": "float", "float64": "double"}


def compiler():
    """That of C++; without one the test is skipped."""
    return shutil.which("g++") or shutil.which("c++") or pytest.skip("needs a C++ compiler")


def library(folder, text):
    """A library of functions in C++, compiled and loaded."""
    (folder / "k.cc").write_text("#include <cmath>\nusing namespace std;\n" + text)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler(), *flags, "-o", folder / "k.so", folder / "k.cc"], check=True)
    return ctypes.CDLL(str(folder / "k.so"))


MODE = """
#include <xmmintrin.h>
extern "C" unsigned mode(unsigned next)
{ unsigned before = _mm_getcsr(); _mm_setcsr(next); return before; }
"""


@contextlib.contextmanager
def small_numbers_flushed(folder):
    """Numbers below the smallest normal one count as 0, as in CuPy's kernels of float32
    (``-ftz=true``); here in float64 too."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs a mode of x86 processors")
    mode = library(folder, MODE).mode
    mode.argtypes, mode.restype = (ctypes.c_uint,), ctypes.c_uint
    before = mode(0x1F80 | 0x8040)  # exceptions masked, as always; results flushed, operands too
    try:
        yield
    finally:
        mode(before)


def as_cupy_writes_it(name, dtype, inputs, outputs, text, ndim):
    """The kernel that CuPy puts around an elementwise text, without a GPU.

    Arrays of two dimensions have strides.
    """
    import cupy
    from cupy._core import _kernel

    kernel, array, indexer, number = cupy.ElementwiseKernel(inputs, outputs, text, name), 1, 2, 3
    arguments = [
        (number, None, np.dtype(float), 0, True)
        if p.ctype == "double"
        else (array, cupy.ndarray, np.dtype(p.dtype or dtype), ndim, ndim < 2)
        for p in kernel.params[:-1]
    ]
    given = tuple(
        _kernel._ArgInfo(*a, True) for a in [*arguments, (indexer, None, None, ndim, True)]
    )
    types = _kernel._TypeMap((("T", np.dtype(dtype)),))
    return _kernel._get_elementwise_kernel_code(
        given, types, kernel.params, kernel.operation, name, kernel.preamble
    )


def cupy_headers():
    """What CuPy puts before its elementwise kernels."""
    from cupy._core import core

    return "".join(f"#include <{name}>\n" for name in core._cupy_header_list)
