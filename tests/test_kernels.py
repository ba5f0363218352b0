"""The fused kernels of a GPU, without one: their text is compiled by NVRTC, which needs no device, and run as C++ on the host.

A kernel of the first kind is one expression (`Activation.cuda`, `Problem.expression`); its plain twin is the activation. Both have to agree
everywhere, at infinities, NaN and the ends of the range too. Those of the second kind have a block of threads for each sample; on the host
the threads are real ones, which wait for each other where the kernel says so.
"""

import ctypes
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import stand_in

from pyidl import activations, kernels, optim
from pyidl.activations import Activation
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import reflected
from pyidl.structure import Full

ACTIVATIONS = [*map(activations.named, activations._BUILT_IN), activations.leaky_relu(0.1)]
T = {"float32": "float", "float64": "double"}


def told(kernel, *arguments):
    """What CuPy would be told to compile: (inputs, outputs, operation)."""
    return kernel.__wrapped__(SimpleNamespace(ElementwiseKernel=lambda *texts: texts[:3]), *arguments)


def reflection():
    """Peaceman and Rachford's, which has two statements."""
    return reflected(Affine(Full(np.zeros((1, 1))), np.ones((1, 1)), activations.relu), 1.0).expression()[0]


IMAGES = {a.name: ("", a.cuda) for a in ACTIVATIONS if a.cuda} | {"slopes": (", T s", "y * s"), "reflected": ("", reflection())}
OPERATIONS = {name: told(kernels._step, *texts) for name, texts in IMAGES.items()} | {"adam": told(kernels._adam)}


def source(name, dtype, entry, loop):
    """A function that applies a kernel's operation to every entry, as CuPy's template does; numbers are arrays of one entry."""
    inputs, outputs, text = OPERATIONS[name]
    ins, outs = ([p.split() for p in parameters.split(",")] for parameters in (inputs, outputs))
    parameters = [f"const {T.get(kind, T[dtype])}* {v}_" for kind, v in ins] + [f"{T[dtype]}* {v}_" for _, v in outs]
    variables = [f"const T {v} = {v}_[i];" if kind == "T" else f"const {T[kind]} {v} = *{v}_;" for kind, v in ins]
    variables += [f"T& {v} = {v}_[i];" for _, v in outs]
    body = f"typedef {T[dtype]} T; {loop} {{ {' '.join(variables)} {text}; }}"
    return f'extern "C" {entry}({", ".join(parameters)}, long n) {{ {body} }}'


def test_every_built_in_activation_has_a_kernel():
    assert all(a.cuda for a in ACTIVATIONS)


@pytest.fixture(scope="module")
def compiled():
    """From a text to PTX, by NVRTC. CuPy brings it with its extra ctk."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed: {error}")

    def compiled(text):
        """What CuPy does with a text."""
        program = nvrtc.createProgram(text, "kernel.cu", (), ())
        nvrtc.compileProgram(program, ("-arch=compute_80",))
        return nvrtc.getPTX(program)

    compiled.error = nvrtc.NVRTCError
    return compiled


@pytest.mark.parametrize("dtype", T)
def test_kernels_compile_for_a_gpu(dtype, compiled):
    loop = "long i = blockDim.x * (long)blockIdx.x + threadIdx.x; if (i < n)"
    for name in OPERATIONS:
        ptx = compiled(source(name, dtype, "__global__ void step", loop))
        assert b".entry step" in ptx, name
        double = b".f64" in ptx
        # CUDA reduces large arguments of sin in float64, and Adam is told its numbers in it.
        assert double == (dtype == "float64") or name in ("sin", "adam"), name
    with pytest.raises(compiled.error):
        compiled(source("tanh", dtype, "__global__ void step", loop).replace("tanh", "tangent"))


@pytest.mark.parametrize("memory", [1, 3, 8])
@pytest.mark.parametrize("dtype", T)
def test_block_kernels_compile_for_a_gpu(dtype, memory, compiled):
    for name in ("measure", "mix"):
        assert f".entry {name}".encode() in compiled(kernels.source(name, dtype, memory))


def test_cupy_accepts_the_declarations():
    """It reads the parameters when a kernel is built, and needs no GPU for that."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert kernels._adam.__wrapped__(cupy).nargs == 14
    for name, texts in IMAGES.items():
        assert kernels._step.__wrapped__(cupy, *texts).nin == 2 + (name == "slopes")
    with pytest.raises(Exception, match="foo"):
        cupy.ElementwiseKernel("foo z", "T x", "x = z", "wrong")


def compiler():
    """That of C++; without one the test is skipped."""
    return shutil.which("g++") or shutil.which("c++") or pytest.skip("there is no C++ compiler")


def library(folder, text):
    """C++, loaded."""
    (folder / "k.cc").write_text("#include <cmath>\nusing namespace std;\n" + text)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler(), *flags, "-o", folder / "k.so", folder / "k.cc"], check=True)
    return ctypes.CDLL(str(folder / "k.so"))


@pytest.fixture(scope="module")
def on_the_host(tmp_path_factory):
    """``(name, dtype) -> function of arrays``: all kernels of the first kind as C++."""
    entries = {key: f"k{i}" for i, key in enumerate((name, dtype) for name in OPERATIONS for dtype in T)}
    functions = [source(*key, f"void {entry}", "for (long i = 0; i < n; ++i)") for key, entry in entries.items()]
    built = library(tmp_path_factory.mktemp("kernels"), "\n".join(functions))

    def call(name, dtype, *arrays):
        getattr(built, entries[name, dtype])(*(a.ctypes.data_as(ctypes.c_void_p) for a in arrays), ctypes.c_long(arrays[0].size))

    return call


def points(dtype):
    """Many points, and the extreme ones."""
    limits, rng = np.finfo(dtype), np.random.default_rng(0)
    ends = [0.0, np.inf, np.nan, limits.max, limits.max / 2, limits.tiny, limits.smallest_subnormal, 1.0, 87.0, 89.0, 103.9, 709.0, 745.0]
    many = np.concatenate([np.linspace(-20, 20, 4001), rng.normal(size=2000) * 10.0 ** rng.uniform(-30, 30, 2000)])
    return np.concatenate([many, ends, np.negative(ends)]).astype(dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("dtype", T)
def test_kernels_are_the_activations(activation, dtype, on_the_host):
    """As numbers, everywhere: y + 0 and phi(y), in place of y."""
    z = points(dtype)
    if activation is activations.sin:
        z = z[~(np.abs(z) > 1e4)]
    y, x = z.copy(), np.empty_like(z)
    on_the_host(activation.name, dtype, y, np.zeros_like(z), y, x)
    with np.errstate(all="ignore"):
        expected = activation(z)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_allclose(x, expected, rtol=8 * eps, atol=4 * eps)


def test_a_wrong_expression_is_noticed(on_the_host):
    """NaN into relu, as CUDA's fmax would have it: 0."""
    z, eps = points("float64"), float(np.finfo("float64").eps)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        np.testing.assert_allclose(np.fmax(z, 0.0), activations.relu(z), rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", T)
def test_other_kernels_are_their_twins(dtype, on_the_host):
    rng = np.random.default_rng(0)
    w, z, s = rng.normal(size=(3, 500)).astype(dtype)
    y, x = w.copy(), np.empty_like(w)
    on_the_host("slopes", dtype, y, z, s, y, x)
    np.testing.assert_array_equal(x, (w + z) * s)
    y = w.copy()
    on_the_host("reflected", dtype, y, z, y, x)
    np.testing.assert_array_equal(y, w + z)
    np.testing.assert_array_equal(x, 2 * np.maximum(y, 0) - y)


@pytest.mark.parametrize("dtype", T)
def test_adam_is_its_twin(dtype, on_the_host, monkeypatch):
    """Five steps, the first from nothing, with gradients of every size."""
    rng, twin, eps = np.random.default_rng(0), optim.AdamW(0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1), float(np.finfo(dtype).eps)
    p = rng.normal(size=40).astype(dtype)
    params, m, v = {"w": p}, np.zeros_like(p), np.zeros_like(p)

    monkeypatch.setattr(kernels, "_adam", lambda xp: lambda *arrays: on_the_host("adam", dtype, *map(np.asarray, arrays)))
    for k in range(1, 6):
        g = (rng.normal(size=40) * 10.0 ** rng.uniform(-6, 6, 40)).astype(dtype)
        params = twin.step(params, {"w": g})
        p = (1.0 - 0.1 * 0.1) * p
        p, m, v = kernels.adam(np, p, g, m, v, 0.8, 0.95, 1.0 / (1.0 - 0.95**k) ** 0.5, 1e-6, 0.1 / (1.0 - 0.8**k))
        for ours, theirs in ((p, params["w"]), (m, twin.state["m.w"]), (v, twin.state["v.w"])):
            np.testing.assert_allclose(ours, theirs, rtol=50 * eps, atol=0 if ours is v else 5 * eps * np.abs(theirs).max())


def test_an_activation_without_an_expression_has_no_kernel():
    bend = Activation("bend", lambda z: z - z**3 / 3, lambda z: 1 - z**2, lipschitz=1.0)
    assert not kernels.step(SimpleNamespace(__name__="cupy"), None, None, None, bend.cuda)


# ------------------------------------------------------------------------------------------------- a block for each sample


THREADS = """
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
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
template <class Kernel, class... Arguments> void launch(unsigned blocks, unsigned threads, Kernel kernel, Arguments... arguments)
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
    """``(name, dtype, memory, blocks, threads, arguments)``: runs a kernel of the second kind as C++."""
    keys, parts = [("measure", dtype, 1) for dtype in T] + [("mix", dtype, k) for dtype in T for k in (1, 3)], [THREADS]
    for i, (name, dtype, memory) in enumerate(keys):
        text = kernels.source(name, dtype, memory).replace('extern "C" ', "")
        signature = re.search(rf"void {name}\((.*?)\)", text, re.S).group(1)
        names = ", ".join(p.split()[-1] for p in signature.split(","))
        entry = f'extern "C" void run{i}(unsigned blocks, unsigned threads, {signature}) {{ launch(blocks, threads, {name}, {names}); }}'
        parts.append(f"namespace n{i} {{\n{text}\n{entry}\n}}\n#undef K\n")
    built = library(tmp_path_factory.mktemp("blocks"), "\n".join(parts))

    def run(name, dtype, memory, count, threads, *arguments):
        kinds = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "float64": ctypes.c_double}
        sent = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else kinds[a.dtype.name](a) for a in arguments]
        getattr(built, f"run{keys.index((name, dtype, memory))}")(ctypes.c_uint(count), ctypes.c_uint(threads), *sent)

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
@pytest.mark.parametrize(("n", "memory", "threads"), [(1, 1, 2), (37, 3, 8), (40, 3, 1), (20, 1, 4)])
def test_a_step_of_anderson_is_its_twin(n, memory, threads, dtype, blocks):
    """Ten steps of seven samples of nine: one that repeats itself, one with a NaN at last, all others with points that are dropped."""
    rng, rows = np.random.default_rng(0), np.array([8, 0, 3, 1, 5, 6, 2])
    m = len(rows)
    state = [np.zeros((2 * memory + 2, m, n), dtype), np.zeros((m, memory, memory)), np.full(m, np.inf, dtype), np.ones(m, dtype)]
    dropped, eps = 0, float(np.finfo(dtype).eps)
    for count in range(10):
        y, image = rng.normal(size=(2, 9, n)).astype(dtype)
        if count == 9:
            image[5, n // 2] = np.nan
        y[6], image[6] = 1.0, 2.0
        untouched, ends = image.copy(), []
        for run in (lambda *a: blocks("mix", dtype, memory, m, threads, *a), lambda *a: stand_in.mix(m, *a)):
            kept, gram, size, plain = (a.copy() for a in state)
            dF, dG, F, G = kept[:memory], kept[memory : 2 * memory], kept[2 * memory], kept[2 * memory + 1]
            following = image.copy()
            scalars = np.int64(n), np.int32(count % memory), np.int32(min(count + 1, memory)), np.float64(30 * eps)
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
    static float y[M * n], image[M * n], F[m * n], G[m * n], dF[K * m * n], dG[K * m * n], size[m], plain[m] = {1, 1, 1};
    static double gram[m * K * K], out[2 * M];
    static const long long rows[m] = {4, 0, 2};
    for (int k = 0; k < 6; ++k) {
        for (float* a : {y, image}) for (int i = 0; i < M * n; ++i) a[i] = rand() / float(RAND_MAX);
        launch(M, 8, one::measure, (const float*)y, (const float*)image, (double*)out, (long long)n);
        launch(m, 8, two::mix, (const long long*)rows, (const float*)y, (float*)image, (float*)F, (float*)G, (float*)dF, (float*)dG,
               (double*)gram, (float*)size, (float*)plain, (long long)n, k % K, k < K ? k + 1 : K, 1e-6);
    }
}
"""


@pytest.mark.parametrize("without", [None, 0, 1, 2, 3], ids=lambda i: "as it is" if i is None else f"without barrier {i}")
def test_threads_of_a_block_do_not_race(without, tmp_path):
    """ThreadSanitizer finds nothing, and finds something where one of the barriers is taken out."""
    measure, mix = (kernels.source(name, "float32", 3).replace('extern "C" ', "") for name in ("measure", "mix"))
    pieces = mix.split("__syncthreads();")
    assert len(pieces) == 5  # three in the reduction, one before the last pass
    mix = "".join(piece + ("" if i in (without, 4) else "__syncthreads();") for i, piece in enumerate(pieces))
    spaces = f"namespace one {{ {measure} }}\n#undef K\nnamespace two {{ {mix} }}\n"
    (tmp_path / "race.cc").write_text(f"#include <cmath>\n#include <cstdlib>\nusing namespace std;\n{THREADS}{spaces}{RACE}")
    flags = ["-std=c++17", "-O1", "-fsanitize=thread", "-pthread"]
    built = subprocess.run([compiler(), *flags, "-o", tmp_path / "race", tmp_path / "race.cc"], capture_output=True, text=True)
    if "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "race"], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("ThreadSanitizer does not run on this system")
    assert ("data race" in ran.stderr) == (without is not None)
    assert (ran.returncode == 0) == (without is None), ran.stderr
