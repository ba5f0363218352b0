"""The fused kernels of a GPU, without one: their text is compiled by NVRTC, which needs no device, and run as C++ on the host.

A kernel is one expression (`Activation.cuda`, `Problem.expression`); its plain twin is the activation. Both have to agree everywhere, at
infinities, NaN and the ends of the range too.
"""

import ctypes
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from pyidl import activations, backend
from pyidl.activations import Activation
from pyidl.solvers.problem import Affine
from pyidl.solvers.splitting import reflected
from pyidl.structure import Full

ACTIVATIONS = [*map(activations.named, activations._BUILT_IN), activations.leaky_relu(0.1)]
T = {"float32": "float", "float64": "double"}


def operation(inputs, image):
    """What CuPy would be told to compile: (inputs, outputs, operation)."""
    told = []
    backend._kernel.__wrapped__(SimpleNamespace(ElementwiseKernel=lambda *texts: told.append(texts)), inputs, image)
    return told[0][:3]


def reflection():
    """Peaceman and Rachford's, which has two statements."""
    return reflected(Affine(Full(np.zeros((1, 1))), np.ones((1, 1)), activations.relu), 1.0).expression()[0]


IMAGES = {a.name: ("", a.cuda) for a in ACTIVATIONS if a.cuda} | {"slopes": (", T s", "y * s"), "reflected": ("", reflection())}


def source(name, dtype, entry, loop):
    """A function that applies a kernel's operation to every entry, as CuPy's template does."""
    inputs, outputs, text = operation(*IMAGES[name])
    ins, outs = ([p.split()[1] for p in parameters.split(",")] for parameters in (inputs, outputs))
    parameters = [f"const {T[dtype]}* {v}_" for v in ins] + [f"{T[dtype]}* {v}_" for v in outs]
    variables = [f"const T {v} = {v}_[i];" for v in ins] + [f"T& {v} = {v}_[i];" for v in outs]
    body = f"typedef {T[dtype]} T; {loop} {{ {' '.join(variables)} {text}; }}"
    return f'extern "C" {entry}({", ".join(parameters)}, long n) {{ {body} }}'


def test_every_built_in_activation_has_a_kernel():
    assert all(a.cuda for a in ACTIVATIONS)


@pytest.mark.parametrize("dtype", T)
def test_kernels_compile_for_a_gpu(dtype):
    """NVRTC makes PTX of every kernel. CuPy brings it with its extra ctk."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed: {error}")

    def compiled(text):
        program = nvrtc.createProgram(text, "kernel.cu", (), ())
        nvrtc.compileProgram(program, ("-arch=compute_80",))
        return nvrtc.getPTX(program)

    loop = "long i = blockDim.x * (long)blockIdx.x + threadIdx.x; if (i < n)"
    for name in IMAGES:
        ptx = compiled(source(name, dtype, "__global__ void step", loop))
        assert b".entry step" in ptx, name
        double = b".f64" in ptx
        assert double == (dtype == "float64") or name == "sin", name  # CUDA reduces large arguments of sin in float64
    with pytest.raises(nvrtc.NVRTCError):
        compiled(source("tanh", dtype, "__global__ void step", loop).replace("tanh", "tangent"))


@pytest.fixture(scope="module")
def on_the_host(tmp_path_factory):
    """``(name, dtype) -> function of arrays``: all kernels as C++."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    entries = {key: f"k{i}" for i, key in enumerate((name, dtype) for name in IMAGES for dtype in T)}
    functions = [source(*key, f"void {entry}", "for (long i = 0; i < n; ++i)") for key, entry in entries.items()]
    (folder / "k.cc").write_text("#include <cmath>\nusing namespace std;\n" + "\n".join(functions))
    subprocess.run([compiler, "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", folder / "k.so", folder / "k.cc"], check=True)
    library = ctypes.CDLL(str(folder / "k.so"))

    def call(name, dtype, *arrays):
        getattr(library, entries[name, dtype])(*(a.ctypes.data_as(ctypes.c_void_p) for a in arrays), ctypes.c_long(arrays[0].size))

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


def test_an_activation_without_an_expression_has_no_kernel():
    bend = Activation("bend", lambda z: z - z**3 / 3, lambda z: 1 - z**2, lipschitz=1.0)
    assert not backend.fused_step(SimpleNamespace(__name__="cupy"), None, None, None, bend.cuda)
