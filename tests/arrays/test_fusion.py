"""Elementwise functions that become kernels, without a GPU.

Their text is compiled by NVRTC, and run as C++ on the host. It is written by the
function itself, traced, and has to give what the function gives on NumPy, at
infinities, NaN and the ends of the range too. Every function in pyidl that is marked
`fused` is tested here (test_no_function_is_forgotten).
"""

import copy
import ctypes
import functools
import gc
import importlib
import math
import pickle
import pkgutil
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
import stand_in
from conftest import require_gpu
from kernel_compilers import C_TYPE, as_cupy_writes_it, cupy_headers, library

import pyidl
from pyidl import activations, testing
from pyidl.activations import Activation
from pyidl.arrays import fusion
from pyidl.arrays.backend import namespace
from pyidl.arrays.fusion import fused
from pyidl.attention import maps, weighted_mean
from pyidl.errors import InputError
from pyidl.matrices.full import Full
from pyidl.optim import adam
from pyidl.solvers import image, problem, splitting

ACTIVATIONS = [*map(activations.named, activations.builtin.BUILT_IN), activations.leaky_relu(0.1)]


def functions():
    """``name -> (function, kinds of its operands)``."""
    found = {}
    for a in ACTIVATIONS:
        found[a.name] = a.phi, "T"
        found[f"{a.name}'"] = a.dphi, "T"
        found[f"step of {a.name}"] = problem._sum_and_image(a.phi), "TT"
        if isinstance(a.scalar_solve, fused):
            found[f"x = {a.name}(d x + r)"] = a.scalar_solve, "TT"
        if isinstance(a.resolvent, fused):
            found[f"resolvent of {a.name}"] = a.resolvent, "Td"
            found[f"reflected {a.name}"] = splitting._proximal_map(a.phi, a.resolvent, True), "Td"
    found["product"] = image._product, "TT"
    found["step of the adjoint"] = problem._sum_and_image(image._product), "TTT"
    found["Adam"], found["the first step of Adam"] = (
        (adam._adam, "TTTTdddd"),
        (adam._adam, "TTdddddd"),
    )
    found["attention's phi"], found["attention's phi'"] = (maps.phi, "T"), (maps.phi_slope, "T")
    found["kernel's pull"], found["inverse of a sum"] = (
        (maps._difference, "TTTdd"),
        (weighted_mean._inverse, "Td"),
    )
    return found


FUNCTIONS = functions()


def texts(name):
    function, kinds = FUNCTIONS[name]
    return function.text(*({"T": "T", "d": "double", "b": "bool"}[k] for k in kinds))


def source(name, dtype, entry, loop):
    """A function that applies a kernel to every entry, as CuPy's template does.

    A number is an array of one entry.
    """
    T, (inputs, outputs, text) = C_TYPE[dtype], texts(name)
    ins, outs = ([p.split() for p in parameters.split(", ")] for parameters in (inputs, outputs))
    types = {"T": T, "float64": "double", "bool": "bool"}
    parameters = [f"const {types[kind]}* {v}_" for kind, v in ins] + [f"{T}* {v}_" for _, v in outs]
    variables = [
        f"const {types[kind]}& {v} = {v}_[{0 if kind == 'float64' else 'i'}];" for kind, v in ins
    ]
    variables += [f"T& {v} = {v}_[i];" for _, v in outs]
    body = f"typedef {T} T; {loop} {{ {' '.join(variables)} {text}; }}"
    return f'extern "C" {entry}({", ".join(parameters)}, long n) {{ {body} }}'


def test_no_function_is_forgotten():
    for module in pkgutil.walk_packages(pyidl.__path__, "pyidl."):
        if not module.name.startswith(("pyidl.interop", "pyidl.sklearn", "pyidl.__main__")):
            importlib.import_module(module.name)
    tested = {id(function) for function, _ in FUNCTIONS.values()}
    marked = [
        f
        for f in gc.get_objects()
        if type(f) is fused and getattr(f, "__module__", "").startswith("pyidl.")
    ]
    assert len(marked) > 30
    assert {repr(f) for f in marked if id(f) not in tested and "<locals>" not in repr(f)} == set()


@pytest.mark.parametrize("dtype", C_TYPE)
@pytest.mark.parametrize("ndim", [0, 1, 2])
def test_functions_compile_for_a_gpu(ndim, dtype, compiled):
    """As CuPy compiles them: inside its own kernel, with its headers and options."""
    texts_of = {f"f{i}": (name, texts(name)) for i, name in enumerate(FUNCTIONS)}
    program = cupy_headers() + "".join(
        as_cupy_writes_it(entry, dtype, *found, ndim) for entry, (_, found) in texts_of.items()
    )
    written = {
        piece.split(b"(")[0].decode(): piece for piece in compiled(program).split(b".entry ")[1:]
    }
    assert written.keys() == texts_of.keys()
    for entry, ptx in written.items():
        name = texts_of[entry][0]
        # in the precision of the arrays: numbers are told in float64, and CUDA reduces
        # large arguments of sin and cos in it
        assert (
            b".f64" not in ptx or dtype == "float64" or "d" in FUNCTIONS[name][1] or "sin" in name
        ), name
    with pytest.raises(compiled.error):
        compiled(program.replace("tanh", "tangent"))


@pytest.fixture(scope="module")
def on_the_host(tmp_path_factory):
    """``(name, dtype, *operands) -> outputs``: all functions as C++."""
    entries = {
        key: f"k{i}"
        for i, key in enumerate((name, dtype) for name in FUNCTIONS for dtype in C_TYPE)
    }
    built = library(
        tmp_path_factory.mktemp("kernels"),
        "\n".join(
            source(*key, f"void {entry}", "for (long i = 0; i < n; ++i)")
            for key, entry in entries.items()
        ),
    )

    def call(name, dtype, *operands, out=None):
        count = len(texts(name)[1].split(", "))
        out = [np.empty_like(operands[0]) for _ in range(count)] if out is None else out
        sent = [np.asarray(a) for a in operands] + list(out)
        getattr(built, entries[name, dtype])(
            *(a.ctypes.data_as(ctypes.c_void_p) for a in sent), ctypes.c_long(operands[0].size)
        )
        return out

    return call


def points(dtype):
    """Many points, and the extreme ones."""
    limits, rng = np.finfo(dtype), np.random.default_rng(0)
    ends = [
        0.0,
        np.inf,
        np.nan,
        limits.max,
        limits.max / 2,
        limits.tiny,
        limits.smallest_subnormal,
        1.0,
        87.0,
        89.0,
        103.9,
        709.0,
        745.0,
    ]
    many = np.concatenate(
        [np.linspace(-20, 20, 4001), rng.normal(size=2000) * 10.0 ** rng.uniform(-30, 30, 2000)]
    )
    return np.concatenate([many, ends, np.negative(ends)]).astype(dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("dtype", C_TYPE)
def test_activations_and_their_derivatives(activation, dtype, on_the_host):
    """As numbers, everywhere, and in place of y where a step puts them."""
    z, eps = points(dtype), float(np.finfo(dtype).eps)
    if activation is activations.sin:
        z = z[~(np.abs(z) > 1e4)]
    with np.errstate(all="ignore"):
        phi, slope = activation.phi(z), activation.dphi(z)
    for expected, name in ((phi, activation.name), (slope, f"{activation.name}'")):
        np.testing.assert_allclose(
            *on_the_host(name, dtype, z), expected, rtol=8 * eps, atol=4 * eps, err_msg=name
        )
    y, x = z.copy(), np.empty_like(z)
    on_the_host(f"step of {activation.name}", dtype, y, np.zeros_like(z), out=(y, x))
    np.testing.assert_array_equal(y, z)
    np.testing.assert_allclose(x, phi, rtol=8 * eps, atol=4 * eps)


def operands_of(name, dtype):
    """Random entries, and 0 and 1; numbers between 0 and 1."""
    kinds, rng = FUNCTIONS[name][1], np.random.default_rng(0)
    rows = [np.append(rng.normal(size=500), [0.0, 1.0]).astype(dtype) for _ in kinds]
    if name.startswith("x ="):
        rows[1] = rng.uniform(-0.9, 0.9, 502).astype(dtype)
    if "Adam" in name:
        rows[3] = np.abs(rows[3])
    operands = [
        row if kind == "T" else row > 0 if kind == "b" else float(np.abs(row[0])) % 1.0
        for row, kind in zip(rows, kinds)
    ]
    if name == "the first step of Adam":
        operands[2:4] = 0.0, 0.0
    return operands


@pytest.mark.parametrize("name", [name for name, (_, kinds) in FUNCTIONS.items() if len(kinds) > 1])
@pytest.mark.parametrize("dtype", C_TYPE)
def test_functions_of_several_operands(name, dtype, on_the_host):
    operands, eps = operands_of(name, dtype), float(np.finfo(dtype).eps)
    expected = FUNCTIONS[name][0](*operands)
    for ours, twin in zip(
        on_the_host(name, dtype, *operands),
        expected if isinstance(expected, tuple) else (expected,),
    ):
        assert twin.dtype == dtype
        np.testing.assert_allclose(ours, twin, rtol=20 * eps, atol=20 * eps)


def test_a_wrong_text_is_noticed(on_the_host):
    """NaN into relu, as CUDA's fmax would have it: 0."""
    z, eps = points("float64"), float(np.finfo("float64").eps)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        np.testing.assert_allclose(np.fmax(z, 0.0), activations.relu(z), rtol=8 * eps, atol=4 * eps)


# ------------------------------------------------------------------ functions of a user


def everything(z):
    """Every array function that a kernel can have, as a user writes them."""
    a = np.where((z > 0) & ~(z >= 3) | (z == -1), np.tanh(z) + 1, -z) * np.sqrt(np.abs(z)) - 2 / (
        1 + z**2
    )
    b = (
        np.exp(-np.square(z))
        + np.expm1(z) * np.log1p(np.absolute(z))
        + np.log(1 + abs(z))
        + np.logaddexp(z, -z)
        + z**3
        + (+z)
    )
    c = (
        np.maximum(z, 0.5)
        - np.minimum(z, np.float32(0.25))
        + np.clip(z, -1, 1)
        + np.sign(z)
        + np.sinh(z / 8)
        + np.cosh(z / 8)
    )
    d = (
        np.arctan(z) * np.arcsinh(z)
        + np.floor(z)
        + np.cos(z) * np.sin(z)
        + 2.0 ** np.tanh(z)
        + np.abs(z) ** 0.5
        + np.negative(z)
    )
    e = (
        np.where(z < 1, 1.0, 0 * z)
        + np.where(z <= 1, z, 0.0)
        + np.where(z != 1, 1.0, z)
        + np.where(np.logical_not(z > 0), np.ones_like(z), z)
    )
    f = (
        np.add(z, 1)
        + np.subtract(z, 1) * np.multiply(z, np.float32(2))
        + np.divide(1, 1 + abs(z))
        + np.zeros_like(z)
        + np.full_like(z, 3)
    )
    g = (
        np.atan(z)
        + np.asinh(z)
        + np.tan(z / 9)
        + np.exp2(z / 4)
        + np.log2(1 + abs(z)) * np.log10(2 + abs(z))
        + np.ceil(z)
    )
    return (
        a
        + b
        + c
        + d
        + e
        + f
        + g
        + np.where(np.logical_or(z > 5, np.logical_and(z < 0, z > -2)), 1, z)
        + np.positive(z)
    )


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in."""
    for name, module in stand_in.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in.cupy


def test_everything_that_a_kernel_can_have(tmp_path, monkeypatch, cupy):
    monkeypatch.setitem(FUNCTIONS, "everything", (fused(everything), "T"))
    for dtype in C_TYPE:
        (tmp_path / dtype).mkdir()
        built = library(
            tmp_path / dtype, source("everything", dtype, "void f", "for (long i = 0; i < n; ++i)")
        )
        z = np.concatenate(
            [np.random.default_rng(0).normal(size=1000) * 3, [0, 1, -1, 3, 5, -2]]
        ).astype(dtype)
        x = np.empty_like(z)
        built.f(
            z.ctypes.data_as(ctypes.c_void_p),
            x.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_long(z.size),
        )
        expected = everything(z)
        assert expected.dtype == dtype
        np.testing.assert_allclose(x, expected, rtol=2e3 * np.finfo(dtype).eps)
        moved = fused(everything)(cupy.asarray(z))  # the stand-in reads the same text
        np.testing.assert_allclose(cupy.asnumpy(moved), expected, rtol=2e3 * np.finfo(dtype).eps)


def expression(rng, depth):
    """Random text of a function of the entries z and w and the number k."""
    if depth == 0:
        return ["z", "w", "k", f"{rng.normal():.3f}"][rng.integers(4)]
    a, b, kind = expression(rng, depth - 1), expression(rng, depth - 1), rng.integers(8)
    if kind < 3:
        return f"({a} {'+-*/'[rng.integers(4)]} {b})"
    if kind < 5:
        names = ["tanh", "sin", "exp", "abs", "arctan", "sign", "negative", "square"]
        return f"np.{names[rng.integers(8)]}({a})"
    if kind == 5:
        return f"np.{['maximum', 'minimum', 'logaddexp'][rng.integers(3)]}({a}, {b})"
    if kind == 6:
        return f"np.clip({a}, -1, {b})"
    signs = ["<", "<=", ">", ">=", "!="]
    compared = [
        f"({expression(rng, depth - 1)} + 0 * z {signs[rng.integers(5)]} {c})" for c in (a, b)
    ]
    negated, both = ["", "~"][rng.integers(2)], "&|"[rng.integers(2)]
    return f"np.where({negated}{compared[0]} {both} {compared[1]}, {a}, {b})"


def test_random_functions(tmp_path, monkeypatch):
    """They are the same as C++ and on NumPy; a few entries may lie on a jump."""
    rng = np.random.default_rng(0)
    texts = [f"z * 0 + {expression(rng, 4)}" for _ in range(100)]
    for i, text in enumerate(texts):
        monkeypatch.setitem(
            FUNCTIONS, f"random {i}", (fused(eval(f"lambda z, w, k: {text}", {"np": np})), "TTd")
        )
    loop = "for (long i = 0; i < n; ++i)"
    built = library(
        tmp_path,
        "\n".join(source(f"random {i}", "float64", f"void f{i}", loop) for i in range(len(texts))),
    )
    z, w, k, numbers = *rng.normal(scale=2.0, size=(2, 400)), np.array(0.37), 0
    for i, text in enumerate(texts):
        x = np.empty_like(z)
        getattr(built, f"f{i}")(
            *(a.ctypes.data_as(ctypes.c_void_p) for a in (z, w, k, x)), ctypes.c_long(z.size)
        )
        with np.errstate(all="ignore"):
            expected = FUNCTIONS[f"random {i}"][0](z, w, float(k))
        assert np.mean(np.isclose(x, expected, rtol=1e-9, atol=1e-9, equal_nan=True)) > 0.99, text
        numbers += np.isfinite(expected).mean() > 0.5
    assert numbers > 80


@pytest.fixture(params=["stand_in", pytest.param("cupy", marks=pytest.mark.gpu)])
def card(request):
    """A card, and its stand-in."""
    return request.getfixturevalue("cupy") if request.param == "stand_in" else require_gpu()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", C_TYPE)
def test_functions_on_a_card(name, dtype, card):
    """Beside NumPy: whole, in some columns and rows, without entries, as a single one,
    and into given arrays, the first operand too."""
    function, eps = FUNCTIONS[name][0], float(np.finfo(dtype).eps)
    for view in (lambda a: a, lambda a: a[::2, ::3], lambda a: a[:0, :], lambda a: a[1, 1, ...]):
        there, here = [], []
        for a in operands_of(name, dtype):
            whole = isinstance(a, float) or card.asarray(np.reshape(a, (2, 251)))
            there.append(a if isinstance(a, float) else view(whole))
            here.append(a if isinstance(a, float) else np.asarray(view(np.reshape(a, (2, 251)))))
        desired, found = function(*here), function(*there)
        assert isinstance(found, tuple) == isinstance(desired, tuple)
        desired, found = (a if isinstance(a, tuple) else (a,) for a in (desired, found))
        out = tuple(there[0] if i == 0 else card.empty_like(a) for i, a in enumerate(found))
        for ours, twin in zip(found, desired, strict=True):
            assert (ours.dtype, ours.shape) == (twin.dtype, twin.shape)
            np.testing.assert_allclose(card.asnumpy(ours), twin, rtol=20 * eps, atol=20 * eps)
        written = function(*there, out=out if len(out) > 1 else out[0])
        assert written is out[0] or all(a is b for a, b in zip(written, out, strict=True))
        for ours, twin in zip(out, desired, strict=True):
            np.testing.assert_allclose(card.asnumpy(ours), twin, rtol=20 * eps, atol=20 * eps)


@pytest.mark.parametrize(
    "shapes",
    [[(4, 3), (3,)], [(4, 1), (3,)], [(1, 3), (4, 1)], [(3,), (4, 3)], [(2, 4, 3), (4, 1)]],
    ids=str,
)
def test_operands_are_broadcast(shapes, card):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape) for shape in shapes)
    ours = image._product(card.asarray(a), card.asarray(b))
    np.testing.assert_array_equal(card.asnumpy(ours), a * b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", C_TYPE)
def test_everything_on_a_card(dtype):
    """One kernel, beside CuPy's own function after function, and NumPy."""
    cupy = require_gpu()
    z = (np.random.default_rng(0).normal(size=1000) * 3).astype(dtype)
    one, many, rtol = (
        fused(everything)(cupy.asarray(z)),
        everything(cupy.asarray(z)),
        2e3 * np.finfo(dtype).eps,
    )
    np.testing.assert_allclose(cupy.asnumpy(one), cupy.asnumpy(many), rtol=rtol)
    np.testing.assert_allclose(cupy.asnumpy(one), everything(z), rtol=rtol)


def test_everything_compiles_for_a_gpu(compiled):
    assert b".entry f" in compiled(
        cupy_headers() + as_cupy_writes_it("f", "float32", *fused(everything).text("T"), 1)
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda z: z if z > 0 else -z, "branch on the value"),
        (lambda z: z - np.sum(z), "no attribute 'sum'|sum is not among"),
        (lambda z: z - z.mean(), "no attribute 'mean'"),
        (lambda z: np.add.reduce(z), "add.reduce works on several entries"),
        (lambda z: z + np.ones(3), "met an entry of an array"),
        (lambda z: z * math.inf, "inf met an entry"),
        (lambda z: z[0], "not subscriptable"),
        (lambda z: math.tanh(z), "real number"),
        (lambda z: np.spacing(z), "spacing is not among"),
        (lambda z: np.round(z), "around|round"),
        (lambda z: "z", "'z' met an entry"),
    ],
)
def test_what_is_not_elementwise_is_refused(function, reason):
    with pytest.raises(InputError, match=f"cannot be one kernel: .*({reason}).*leave out @fused"):
        fused(function).text("T")


def slow_tanh(z):
    return 2 * namespace(z).tanh(z / 2)


def dslow_tanh(z):
    return 1 - namespace(z).tanh(z / 2) ** 2


@fused
def by_name(z):
    return np.arctan(z)


def test_an_activation_of_ones_own_is_one_kernel(cupy):
    """On the stand-in: two launches a step with @fused, six without.

    The same numbers.
    """
    plain = Activation("slow", slow_tanh, dslow_tanh, slope_range=(0.0, 1.0))
    marked = Activation("slow", fused(slow_tanh), fused(dslow_tanh), slope_range=(0.0, 1.0))
    testing.check_activation(marked)
    rng = np.random.default_rng(0)
    A, Z = 0.3 * rng.normal(size=(6, 6)), rng.normal(size=(5, 6))
    ends, launches = [], []
    for activation in (plain, marked):
        p = problem.Affine(Full(cupy.asarray(A)), cupy.asarray(Z), activation)
        out = p.buffers()[0]
        x = cupy.asarray(np.ones_like(Z))
        p.step(x, out)
        before = cupy.launches
        y, image = p.step(x, out)
        launches.append(cupy.launches - before)
        ends.append([cupy.asnumpy(a) for a in (y, image)])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-15)
    assert launches == [6, 2]


@fused
def größer(z, k, w=0.0):
    return namespace(z).where(z > k, z * k, z) + w


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "k",
    [0.5, np.float64(0.5), np.float32(0.5), np.int64(1), 1, True, Fraction(1, 2)],
    ids=lambda k: type(k).__name__,
)
def test_numbers_of_any_kind_are_told(k, dtype, cupy):
    """And a name that is none in C++ is no name of a kernel."""
    z, before = np.linspace(-2, 2, 9).astype(dtype), cupy.launches
    x = größer(cupy.asarray(z), k)
    assert cupy.launches == before + 1
    assert x.dtype == dtype
    np.testing.assert_array_equal(cupy.asnumpy(x), größer(z, float(k)))


@pytest.mark.parametrize(
    "dtypes",
    [("float32", "float64"), ("float64", "float32"), ("int64", "int64"), ("float64", "int32")],
)
def test_other_dtypes_are_computed_as_the_function_stands(dtypes, cupy):
    z, w = (np.linspace(-2, 2, 9).astype(dtype) for dtype in dtypes)
    x, desired = größer(cupy.asarray(z), 0.5, cupy.asarray(w)), größer(z, 0.5, w)
    assert x.dtype == desired.dtype
    np.testing.assert_array_equal(cupy.asnumpy(x), desired)
    x, desired = activations.tanh(cupy.asarray(z)), activations.tanh(z)
    assert x.dtype == desired.dtype
    np.testing.assert_allclose(cupy.asnumpy(x), desired, rtol=1e-6)


def test_what_is_left_out_is_no_operand_of_a_kernel(cupy):
    @fusion.fused
    def shifted(z, by=None):
        return z if by is None else z + by

    z = cupy.asarray(np.arange(3.0))
    for by, expected in ((None, [0.0, 1.0, 2.0]), (z, [0.0, 2.0, 4.0])):
        assert np.array_equal(cupy.asnumpy(shifted(z, by)), expected)


def test_functions_of_a_user_do_not_pile_up():
    """Activations that are made in a loop are let go.

    No table of functions is without bound.
    """
    assert all(
        table.cache_info().maxsize
        for table in (fusion._kernel, problem._sum_and_image, splitting._proximal_map)
    )


def test_check_activation_traces():
    wrong = Activation(
        "slow",
        fused(lambda z: slow_tanh(z) + 0 * np.sum(z)),
        fused(dslow_tanh),
        slope_range=(0.0, 1.0),
    )
    with pytest.raises(InputError, match="cannot be one kernel"):
        testing.check_activation(wrong)


def test_only_functions_are_fused():
    with pytest.raises(InputError, match="given 3; it takes a function"):
        fused(3)


def test_outputs_may_be_inputs(on_the_host):
    """All are read before one is written: a swap."""
    swap = fused(lambda a, b: (b, a))
    assert re.fullmatch(
        r"const T (\w+) = a1; const T (\w+) = a0; x0 = \1; x1 = \2", swap.text("T", "T")[2]
    )


def test_numbers_meet_in_float64():
    """1 - b loses nothing before it is rounded to the dtype of the array that it meets."""
    text = fused(lambda a, b: (1.0 - b) * a).text("T", "double")[2]
    assert text == "const double t0 = double(1.0) - a1; const T t1 = T(t0) * a0; x0 = t1"


def test_copies_and_files():
    """By name where it has one, with its function otherwise."""
    assert pickle.loads(pickle.dumps(by_name)) is by_name is copy.deepcopy(by_name)
    other = pickle.loads(pickle.dumps(fused(functools.partial(slow_tanh))))
    assert other(np.ones(1)) == slow_tanh(np.ones(1))
    assert pickle.loads(pickle.dumps(fused(slow_tanh)))(np.ones(1)) == slow_tanh(np.ones(1))
    assert pickle.loads(pickle.dumps(activations.leaky_relu(0.3))) is activations.leaky_relu(0.3)
    assert by_name.__name__ == "by_name"
    assert repr(by_name) == "fused by_name"
