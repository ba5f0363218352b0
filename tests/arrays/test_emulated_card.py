"""The emulated card itself.

It computes what a card computes, and finds what a card would suffer from.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from counted import counted

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cupy():
    return counted()


def run(body, **environment):
    """A process of its own, without CuPy's pool, which hides the ends of arrays."""
    code = f"import cupy; cupy.cuda.set_allocator(None); {body}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=None if not environment else {**os.environ, **environment},
    )


def kernel(name, body):
    text = f'extern "C" __global__ void {name}(float* x, int n) {{ {body} }}'
    return f"cupy.RawKernel({text!r}, {name!r})"


@pytest.mark.parametrize("n", [1, 31, 32, 33, 700, 5000])
def test_threads_that_wait_for_each_other(cupy, n):
    """Sums, running sums and the numbers of the nonzero entries.

    Barriers of blocks and warps, memory that they share, shuffles.
    """
    a = np.random.default_rng(0).integers(-9, 9, (3, n)).astype(float)
    b = cupy.asarray(a)
    for name, axis in (
        ("sum", None),
        ("sum", 1),
        ("max", 0),
        ("argmin", 1),
        ("cumsum", 1),
        ("cumprod", None),
    ):
        np.testing.assert_allclose(
            cupy.asnumpy(getattr(cupy, name)(b, axis=axis)),
            getattr(np, name)(a, axis=axis),
            rtol=1e-12,
        )
    for there, here in zip(cupy.nonzero(b), np.nonzero(a)):
        assert np.array_equal(cupy.asnumpy(there), here)


def test_a_shuffle_within_a_part_of_a_warp(cupy):
    text = kernel(
        "turn",
        "int i = threadIdx.x; float y = __shfl_down_sync(0xffffffffu, x[i], 3, 8); "
        "float z = __shfl_xor_sync(0xffffffffu, y, 1); x[i] = z;",
    )
    x = cupy.arange(64, dtype="float32")
    eval(text)((1,), (64,), (x, np.int32(64)))
    down = np.arange(64).reshape(-1, 8)
    down[:, :5] += 3
    assert np.array_equal(cupy.asnumpy(x), down.reshape(-1, 2)[:, ::-1].ravel())


def test_memory_that_nobody_has_written_is_nan():
    assert run("assert cupy.isnan(cupy.empty(100)).all()").returncode == 0


def test_writing_behind_the_end_ends_the_process():
    body = (
        f"f = {kernel('f', 'x[threadIdx.x] = 0;')}; x = cupy.empty(64, 'float32'); "
        "f((1,), (THREADS,), (x, 64)); print('done')"
    )
    assert run(body.replace("THREADS", "64")).stdout == "done\n"
    assert run(body.replace("THREADS", "65")).returncode < 0


def test_a_barrier_that_some_threads_do_not_reach_ends_the_process():
    def said(condition):
        return run(
            f"f = {kernel('f', condition + ' __syncthreads();')}; "
            "f((1,), (64,), (cupy.empty(1, 'float32'), 64))"
        ).stderr

    # the card does not wait for those that have ended
    assert said("if (threadIdx.x < 40) return;") == ""
    assert "different barriers" in said("if (threadIdx.x < 40) __syncwarp(); else")


def test_a_race_gives_another_result_in_the_other_order():
    body = (
        f"f = {kernel('f', 'x[0] = threadIdx.x;')}; x = cupy.empty(1, 'float32'); "
        "f((1,), (64,), (x, 64)); print(float(x[0]))"
    )
    assert (run(body, EMULATED_ORDER="").stdout, run(body, EMULATED_ORDER="reversed").stdout) == (
        "63.0\n",
        "0.0\n",
    )


def test_memory_ends():
    assert "cudaErrorMemoryAllocation" in run("cupy.empty(2**20)", EMULATED_MEGABYTES="4").stderr
