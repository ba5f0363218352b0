"""The kernels with a block of threads for each sample, without a GPU.

Their text is compiled by NVRTC, and run as C++ on the host. There the threads are real
ones, which wait for each other where the kernel says so. Elementwise kernels:
test_fusion.py.
"""

import ctypes
import itertools
import re
import subprocess

import numpy as np
import pytest
import stand_in
from kernel_compilers import C_TYPE as T
from kernel_compilers import compiler, library

from pyidl.arrays import kernels


@pytest.mark.parametrize("memory", [1, 3, 8])
@pytest.mark.parametrize("dtype", T)
def test_block_kernels_compile_for_a_gpu(dtype, memory, compiled):
    for name in ("measure", "mix"):
        assert f".entry {name}".encode() in compiled(kernels.source(name, dtype, memory))


@pytest.mark.parametrize("memory", [1, 3, 5, 8, kernels.MEMORY])
@pytest.mark.parametrize("dtype", T)
def test_a_card_can_launch_them(dtype, memory, compiled):
    """A multiprocessor has 65536 registers, and room for 48 KiB that a block shares.

    What threads have for themselves is small.
    """
    for name, arch in itertools.product(("measure", "mix"), ("sm_75", "sm_80", "sm_90")):
        said = compiled(kernels.source(name, dtype, memory), arch)
        registers, shared, own = (
            int(re.search(text, said)[1])
            for text in (r"(\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes stack")
        )
        assert registers * kernels._threads(10**6) <= 65536, said
        assert shared <= 48 * 1024
        assert own <= 32 * memory


THREADS = """
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx;
static Index blockDim, gridDim;
struct Barrier {
    unsigned missing, all, round = 0;
    std::mutex mutex;
    std::condition_variable complete;
    Barrier(unsigned n) : missing(n), all(n) {}
    void wait()
    {
        std::unique_lock<std::mutex> lock(mutex);
        unsigned mine = round;
        if (--missing == 0) { missing = all; ++round; complete.notify_all(); }
        else complete.wait(lock, [&] { return round != mine; });
    }
};
static Barrier* meeting;
static void __syncthreads() { meeting->wait(); }
template <class Kernel, class... Arguments>
void launch(unsigned blocks, unsigned threads, Kernel kernel, Arguments... arguments)
{
    gridDim.x = blocks; blockDim.x = threads;
    for (unsigned b = 0; b < blocks; ++b) {
        Barrier meet(threads);
        meeting = &meet;
        std::vector<std::thread> team;
        for (unsigned t = 0; t < threads; ++t)
            team.emplace_back([=] { blockIdx.x = b; threadIdx.x = t; kernel(arguments...); });
        for (auto& thread : team) thread.join();
    }
}
"""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """``(name, dtype, memory, blocks, threads, arguments)``.

    Runs a kernel of the second kind as C++.
    """
    keys, parts = (
        [("measure", dtype, 1) for dtype in T] + [("mix", dtype, k) for dtype in T for k in (1, 3)],
        [THREADS],
    )
    for i, (name, dtype, memory) in enumerate(keys):
        text = kernels.source(name, dtype, memory).replace('extern "C" ', "")
        signature = re.search(rf"void {name}\((.*?)\)", text, re.S).group(1)
        names = ", ".join(p.split()[-1] for p in signature.split(","))
        entry = (
            f'extern "C" void run{i}(unsigned blocks, unsigned threads, {signature}) '
            f"{{ launch(blocks, threads, {name}, {names}); }}"
        )
        parts.append(f"namespace n{i} {{\n{text}\n{entry}\n}}\n#undef K\n")
    built = library(tmp_path_factory.mktemp("blocks"), "\n".join(parts))

    def run(name, dtype, memory, count, threads, *arguments):
        kinds = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "float64": ctypes.c_double}
        sent = [
            a.ctypes.data_as(ctypes.c_void_p)
            if isinstance(a, np.ndarray)
            else kinds[a.dtype.name](a)
            for a in arguments
        ]
        getattr(built, f"run{keys.index((name, dtype, memory))}")(
            ctypes.c_uint(count), ctypes.c_uint(threads), *sent
        )

    return run


@pytest.mark.parametrize("dtype", T)
@pytest.mark.parametrize(("n", "threads"), [(1, 2), (7, 4), (100, 8), (100, 1)])
def test_a_measurement_is_its_twin(n, threads, dtype, blocks):
    a, b = np.random.default_rng(0).normal(size=(2, 5, n)).astype(dtype)
    a[1, n // 2], b[2, 0], a[3, -1] = np.nan, np.nan, -np.inf
    ours, twin = np.zeros((2, 2, 5))
    blocks("measure", dtype, 1, 5, threads, a, b, ours, np.int64(n))
    with np.errstate(invalid="ignore"):
        stand_in.measure(5, a, b, twin, n)
    np.testing.assert_array_equal(ours, twin)
    assert np.isnan(ours).sum() == 3


@pytest.mark.parametrize("dtype", T)
@pytest.mark.parametrize(
    ("n", "memory", "threads"), [(1, 1, 2), (37, 3, 8), (40, 3, 1), (20, 1, 4)]
)
def test_a_step_of_anderson_is_its_twin(n, memory, threads, dtype, blocks):
    """Ten steps of seven samples of nine.

    One that repeats itself, one with a NaN at last, all others with points that are
    dropped.
    """
    rng, rows = np.random.default_rng(0), np.array([8, 0, 3, 1, 5, 6, 2])
    m = len(rows)
    state = [
        np.zeros((2 * memory + 2, m, n), dtype),
        np.zeros((m, memory, memory)),
        np.full(m, np.inf, dtype),
        np.ones(m, dtype),
    ]
    dropped, eps = 0, float(np.finfo(dtype).eps)
    for count in range(10):
        y, image = rng.normal(size=(2, 9, n)).astype(dtype)
        if count == 9:
            image[5, n // 2] = np.nan
        y[6], image[6] = 1.0, 2.0
        untouched, ends = image.copy(), []
        for run in (
            lambda *a: blocks("mix", dtype, memory, m, threads, *a),
            lambda *a: stand_in.mix(m, *a),
        ):
            kept, gram, size, plain = (a.copy() for a in state)
            dF, dG, F, G = (
                kept[:memory],
                kept[memory : 2 * memory],
                kept[2 * memory],
                kept[2 * memory + 1],
            )
            following = image.copy()
            scalars = (
                np.int64(n),
                np.int32(count % memory),
                np.int32(min(count + 1, memory)),
                np.float64(30 * eps),
            )
            run(rows, y, following, F, G, dF, dG, gram, size, plain, *scalars)
            ends.append((kept, gram, size, plain, following))
        for ours, twin in zip(*ends):
            np.testing.assert_allclose(ours, twin, rtol=2e3 * eps, atol=2e3 * eps)
        np.testing.assert_array_equal(ends[0][-1][[4, 7]], untouched[[4, 7]])
        state, before = list(ends[0][:-1]), state
        dropped += np.count_nonzero(state[2] == before[2])
    assert dropped > 5


RACE = """
int main()
{
    const int m = 3, n = 37, M = 5;
    static float y[M * n], image[M * n], F[m * n], G[m * n], dF[K * m * n], dG[K * m * n];
    static float size[m], plain[m] = {1, 1, 1};
    static double gram[m * K * K], out[2 * M];
    static const long long rows[m] = {4, 0, 2};
    for (int k = 0; k < 6; ++k) {
        for (float* a : {y, image}) for (int i = 0; i < M * n; ++i) a[i] = rand() / float(RAND_MAX);
        launch(M, 8, one::measure, (const float*)y, (const float*)image, (double*)out,
               (long long)n);
        launch(m, 8, two::mix, (const long long*)rows, (const float*)y, (float*)image,
               (float*)F, (float*)G, (float*)dF, (float*)dG, (double*)gram, (float*)size,
               (float*)plain, (long long)n, k % K, k < K ? k + 1 : K, 1e-6);
    }
}
"""


@pytest.mark.parametrize(
    "without", [None, 0, 1, 2, 3], ids=lambda i: "as it is" if i is None else f"without barrier {i}"
)
def test_threads_of_a_block_do_not_race(without, tmp_path):
    """ThreadSanitizer finds nothing, and finds something where one of the barriers is
    taken out."""
    measure, mix = (
        kernels.source(name, "float32", 3).replace('extern "C" ', "") for name in ("measure", "mix")
    )
    pieces = mix.split("__syncthreads();")
    assert len(pieces) == 5  # three in the reduction, one before the last pass
    mix = "".join(
        piece + ("" if i in (without, 4) else "__syncthreads();") for i, piece in enumerate(pieces)
    )
    spaces = f"namespace one {{ {measure} }}\n#undef K\nnamespace two {{ {mix} }}\n"
    (tmp_path / "race.cc").write_text(
        f"#include <cmath>\n#include <cstdlib>\nusing namespace std;\n{THREADS}{spaces}{RACE}"
    )
    flags = ["-std=c++17", "-O1", "-fsanitize=thread", "-pthread"]
    built = subprocess.run(
        [compiler(), *flags, "-o", tmp_path / "race", tmp_path / "race.cc"],
        capture_output=True,
        text=True,
    )
    if "tsan" in built.stderr:
        pytest.skip("needs a compiler with ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "race"], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("needs a system on which ThreadSanitizer runs")
    assert ("data race" in ran.stderr) == (without is not None)
    assert (ran.returncode == 0) == (without is None), ran.stderr
