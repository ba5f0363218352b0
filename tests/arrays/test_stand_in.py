"""The stand-in for CuPy is as strict as it claims.

And a solve on it waits for nothing between two checks.
"""

import sys

import numpy as np
import pytest
import stand_in
from helpers import moved, random_model
from stand_in import cupy

from pyidl import ImplicitModel, activations, load, save
from pyidl.errors import DeviceMismatchError
from pyidl.solvers import Picard
from pyidl.solvers.jacobi import split


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    for name, module in stand_in.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a, h: a + h,
        lambda a, h: h + a,
        lambda a, h: a @ h,
        lambda a, h: a < h,
        lambda a, h: cupy.add(a, h),
        lambda a, h: cupy.exp(h),
        lambda a, h: cupy.concat([a, h]),
        lambda a, h: a.__iadd__(h),
        lambda a, h: a.__setitem__(0, h[0]),
        lambda a, h: a[np.zeros(1, int)],
        lambda a, h: np.asarray(a),
        lambda a, h: np.float64(2.0) * a,
    ],
)
def test_host_operands_are_refused(mixed):
    with pytest.raises(TypeError):
        mixed(cupy.asarray(np.ones((2, 2))), np.ones((2, 2)))


def test_it_has_what_cupy_has():
    for name in ("vecdot", "unstack", "nothing"):
        with pytest.raises(AttributeError):
            getattr(cupy, name)
    assert not hasattr(cupy.asarray([1.0]), "__array_namespace__")
    assert cupy.sum(cupy.asarray(np.ones(3))).shape == ()


def test_a_model_moves_there_and_back(tmp_path):
    model = random_model(ImplicitModel, 4, 3, 10)
    U = np.random.default_rng(0).normal(size=(5, 4))
    there = model.to("cuda")
    assert repr(there).endswith("on cuda:0")
    Y = there.predict(cupy.asarray(U))
    np.testing.assert_allclose(cupy.asnumpy(Y), model.predict(U), rtol=1e-5)
    assert np.array_equal(there.to("cpu").params["A"], model.params["A"])
    with pytest.raises(DeviceMismatchError, match=r"U lives on cpu .* model\.to"):
        there(U)
    with pytest.raises(DeviceMismatchError, match=r"to_device\(U, 'cpu'\)"):
        model(cupy.asarray(U))
    save(tmp_path / "m", there)
    assert type(load(tmp_path / "m").params["A"]) is np.ndarray
    assert load(tmp_path / "m", device="cuda").xp is cupy


def test_the_host_waits_only_at_checks():
    model = moved(random_model(ImplicitModel, 4, 3, 10, dtype="float64", spread=2.0), cupy)
    problem = model._cell().bind(cupy.asarray(np.random.default_rng(0).normal(size=(6, 4))))
    cupy.waits = 0
    solution = Picard()(problem)
    checks, k = 1, 1  # at most: every step at first, later after an eighth of the steps done
    while k < solution.n_iter.max():
        checks, k = checks + 1, k + max(1, k // 8)
    assert solution.n_iter.max() > 50
    assert len(np.unique(solution.n_iter)) <= cupy.waits <= checks < solution.n_iter.max()


@pytest.mark.parametrize(
    "activation",
    [*map(activations.named, activations.builtin.BUILT_IN), activations.leaky_relu(0.1)],
    ids=repr,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_are_one_kernel(activation, dtype):
    """With and without `out`, the derivative too, and what a NaN becomes."""
    z = np.concatenate([np.linspace(-9, 9, 301), [-80.0, 80.0, np.nan]]).astype(dtype)[None, :]
    y, x, eps = cupy.asarray(z), cupy.asarray(np.zeros_like(z)), np.finfo(dtype).eps
    before = cupy.launches
    found = activation(y), activation(y, x), activation.dphi(y)
    assert cupy.launches - before == 3
    assert found[1] is x
    with np.errstate(invalid="ignore"):
        expected = activation(z), activation(z), activation.dphi(z)
    for ours, twin in zip(found, expected):
        assert ours.dtype == dtype
        np.testing.assert_allclose(cupy.asnumpy(ours), twin, rtol=20 * eps, atol=20 * eps)


def test_a_step_is_a_product_and_one_kernel():
    """No elementwise function of the library is called between two checks.

    Forward, adjoint and split.
    """
    model = moved(random_model(ImplicitModel, 4, 3, 10, dtype="float64"), cupy)
    p = model._cell().bind(cupy.asarray(np.random.default_rng(0).normal(size=(6, 4))))
    x = Picard()(p)
    q = model._cell().linearize(x, None, cupy.asarray(np.ones((6, 10))))
    for problem in (p, q, split(p), split(q)):
        out = problem.buffers()[0]
        y, image = problem.step(x.value, out)
        plain = problem.pre(x.value)
        np.testing.assert_allclose(cupy.asnumpy(y), cupy.asnumpy(plain), rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(
            cupy.asnumpy(image), cupy.asnumpy(problem.image(plain)), rtol=1e-14, atol=1e-14
        )
        assert problem.map.entrywise()[0]
    before = stand_in.ElementwiseKernel.compiled
    Picard()(p)
    assert stand_in.ElementwiseKernel.compiled == before  # compiled once
