"""Compilers of kernels that need no GPU: NVRTC makes CUDA's text PTX, a compiler of C++ makes it functions of the host."""

import ctypes
import shutil
import subprocess

import pytest

C_TYPE = {"float32": "float", "float64": "double"}


def compiler():
    """That of C++; without one the test is skipped."""
    return shutil.which("g++") or shutil.which("c++") or pytest.skip("there is no C++ compiler")


def library(folder, text):
    """C++, loaded."""
    (folder / "k.cc").write_text("#include <cmath>\nusing namespace std;\n" + text)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler(), *flags, "-o", folder / "k.so", folder / "k.cc"], check=True)
    return ctypes.CDLL(str(folder / "k.so"))
