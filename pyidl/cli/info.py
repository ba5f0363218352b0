"""``info``: versions, devices, BLAS and threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

import pyidl

__all__ = ["info"]

NEEDED = ("numpy", "scipy")
OPTIONAL = (
    "cupy-cuda12x",
    "cupy-cuda13x",
    "scikit-learn",
    "matplotlib",
    "tqdm",
    "dask",
    "torch",
    "onnx",
    "onnxruntime",
    "threadpoolctl",
)
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def info(options: Any) -> int:
    """Print what a report of a fault should contain."""
    print(f"pyidl         {pyidl.__version__}")
    print(f"Python        {platform.python_version()}, {platform.platform()}")
    for name in (*NEEDED, *OPTIONAL):
        try:
            print(f"{name:13s} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in NEEDED:
                raise
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"BLAS          {blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip())
    print(f"processors    {os.cpu_count()}")
    for threads in _threads():
        print(f"threads       {threads}")
    print(f"devices       {', '.join(_devices())}")
    return 0


def _threads() -> list[str]:
    """Of each library that has threads, or what limits them."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        shown = {name: os.environ[name] for name in LIMITS if name in os.environ}
        limits = shown or "not limited"
        return [f"{limits} (install threadpoolctl to see those of each library)"]
    return [
        f"{pool['num_threads']} of {pool['internal_api']} {pool.get('version') or ''}".rstrip()
        for pool in threadpool_info()
    ]


def _devices() -> list[str]:
    """The host, and the GPUs that CuPy can use."""
    try:
        import cupy
    except ImportError:
        return ["cpu", "(no GPU: CuPy is not installed)"]
    count = cupy.cuda.runtime.getDeviceCount() if cupy.is_available() else 0
    names = (cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count))
    return ["cpu", *(f"cuda:{i} {name}" for i, name in enumerate(names))]
