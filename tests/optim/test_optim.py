"""Optimisers against hand-written loops, their state, their schedules, and what they
refuse."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import sys
from types import MappingProxyType

import array_api_strict
import numpy as np
import pytest
import stand_in
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st

from pyidl.arrays.backend import from_host, to_numpy
from pyidl.errors import DeviceMismatchError, InputError
from pyidl.layers.linear import Linear
from pyidl.optim import SGD, Adam, AdamW, Constant, Cosine, Exponential, Piecewise

SHAPES = {"A": (3, 3), "b": (3,), "c": ()}
MAKERS = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.1),
    "adamw": lambda: AdamW(0.1, weight_decay=0.1),
    "clipped": lambda: Adam(Cosine(0.1, steps=20, warmup=3), clip_norm=0.5),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def draw(seed, shapes=SHAPES, dtype="float64"):
    rng = np.random.default_rng(seed)
    return {key: np.asarray(rng.normal(size=shape), dtype) for key, shape in shapes.items()}


def moved(xp, arrays):
    return {key: from_host(xp, a) for key, a in arrays.items()}


def run(optimizer, params, seeds):
    for seed in seeds:
        params = optimizer.step(params, draw(seed))
    return params


def assert_same(actual, desired):
    """Equal keys, and equal arrays to the last bit."""
    assert actual.keys() == desired.keys()
    for key, a in desired.items():
        assert_close(actual[key], a, rtol=0)


# ------------------------------------------------------------------------- the formulas


def sgd_loop(p, grads, lr, mu, nesterov, decay):
    """SGD as PyTorch documents it, with dampening 0."""
    buffer = None
    for g in grads:
        g = g + decay * p
        if mu != 0:
            buffer = g if buffer is None else mu * buffer + g
            g = g + mu * buffer if nesterov else buffer
        p = p - lr * g
    return p


def adam_loop(p, grads, lr, b1, b2, eps, decay):
    """Adam, and AdamW with decay, as PyTorch documents them."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(grads, start=1):
        p = p - lr * decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + eps)
    return p


@pytest.mark.parametrize(("mu", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd(xp, mu, nesterov, decay):
    start, grads = draw(0), [draw(seed) for seed in range(1, 9)]
    optimizer, params = (
        SGD(0.05, momentum=mu, nesterov=nesterov, weight_decay=decay),
        moved(xp, start),
    )
    for g in grads:
        params = optimizer.step(params, moved(xp, g))
    for key in SHAPES:
        desired = sgd_loop(start[key], [g[key] for g in grads], 0.05, mu, nesterov, decay)
        assert_close(params[key], from_host(xp, np.asarray(desired)), rtol=1e-12)


@pytest.mark.parametrize("decay", [None, 0.0, 0.2])
@pytest.mark.parametrize(
    ("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.8), 1e-2), ((0.0, 0.0), 1e-8)]
)
def test_adam(xp, decay, betas, eps):
    start, grads = draw(0), [draw(seed) for seed in range(1, 9)]
    optimizer = (
        Adam(0.05, betas=betas, eps=eps)
        if decay is None
        else AdamW(0.05, betas=betas, eps=eps, weight_decay=decay)
    )
    params = moved(xp, start)
    for g in grads:
        params = optimizer.step(params, moved(xp, g))
    for key in SHAPES:
        desired = adam_loop(start[key], [g[key] for g in grads], 0.05, *betas, eps, decay or 0.0)
        assert_close(params[key], from_host(xp, np.asarray(desired)), rtol=1e-12)


@given(g=st.floats(-1e3, 1e3).filter(lambda g: abs(g) > 1e-3), lr=st.floats(1e-4, 1.0))
def test_with_a_constant_gradient_every_step_of_adam_is_lr_times_its_sign(g, lr):
    eps, optimizer, params = 1e-8, Adam(lr), {"w": np.array([2.0])}
    for k in range(1, 4):  # m^ = g and v^ = g^2 exactly, so each step is lr g / (|g| + eps)
        params = optimizer.step(params, {"w": np.array([g])})
        assert_close(
            params["w"], np.array([2.0 - k * lr * g / (abs(g) + eps)]), rtol=1e-12, atol=1e-12
        )


def test_repr():
    assert (
        repr(SGD(0.5, momentum=0.9, clip_norm=2.0))
        == "SGD(0.5, clip_norm=2.0, momentum=0.9), 0 steps"
    )
    assert repr(SGD(Constant(0.5))) == "SGD(Constant(value=0.5)), 0 steps"
    assert repr(SGD(np.float64(0.5), clip_norm=np.float32(2))) == "SGD(0.5, clip_norm=2.0), 0 steps"
    # not the default
    assert repr(AdamW(weight_decay=0.0)) == "AdamW(0.001, weight_decay=0.0), 0 steps"
    optimizer = Adam(betas=[0.5, 0.9])
    optimizer.step(draw(0), draw(1))
    assert repr(optimizer) == "Adam(0.001, betas=(0.5, 0.9)), 1 steps"


def test_defaults():
    assert (Adam().learning_rate, Adam().betas, Adam().eps, Adam().clip_norm) == (
        1e-3,
        (0.9, 0.999),
        1e-8,
        None,
    )
    assert (SGD(0.1).momentum, SGD(0.1).nesterov, SGD(0.1).weight_decay, SGD(0.1).clip_norm) == (
        0.0,
        False,
        0.0,
        None,
    )
    w, g = {"w": np.ones(2)}, {"w": np.zeros(2)}
    assert_close(AdamW().step(w, g)["w"], np.full(2, 1 - 1e-3 * 1e-2), rtol=1e-15)
    assert_close(Adam().step(w, g)["w"], np.ones(2), rtol=0)


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_library_dtype_and_shape_are_kept(xp, make, dtype):
    params, grads, optimizer = (
        moved(xp, draw(0, dtype=dtype)),
        moved(xp, draw(1, dtype=dtype)),
        make(),
    )
    new = params
    for _ in range(3):
        new = optimizer.step(new, grads)
    for key, shape in SHAPES.items():
        assert type(new[key]) is type(params[key])
        assert new[key].dtype == params[key].dtype
        assert new[key].shape == shape
        assert not np.array_equal(to_numpy(new[key]), to_numpy(params[key]))
    for key, a in optimizer.state.items():
        if not key.startswith("k."):
            assert type(a) is type(params["A"])
            assert a.dtype == params["A"].dtype


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (SGD, 0.0),
        (lambda lr: SGD(lr, momentum=0.8), 0.0),
        # decay is the penalty decay |x|^2 / 2
        (
            lambda lr: SGD(lr, momentum=0.8, nesterov=True, weight_decay=0.5),
            0.5,
        ),
        (lambda lr: SGD(lr, clip_norm=0.5), 0.0),
        (Adam, 0.0),
        (lambda lr: AdamW(lr, weight_decay=0.0), 0.0),
    ],
)
def test_a_convex_quadratic_is_minimised(xp, make, decay):
    H, b = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]]), np.array([1.0, -2.0, 3.0])
    optimizer = make(Cosine(0.1, steps=500))
    there, x = moved(xp, {"H": H, "b": b}), from_host(xp, np.zeros(3))
    for _ in range(500):
        x = optimizer.step({"x": x}, {"x": there["H"] @ x - there["b"]})["x"]
    assert_close(x, from_host(xp, np.linalg.solve(H + decay * np.eye(3), b)), rtol=1e-4)


# --------------------------------------------------------------------------- what stays


@every_optimizer
def test_old_arrays_are_untouched(make):
    optimizer, params, grads = make(), draw(0), draw(1)
    kept = {
        key: a.copy() for key, a in (params | {f"g{key}": g for key, g in grads.items()}).items()
    }
    for a in (*params.values(), *grads.values()):
        a.flags.writeable = False
    first = optimizer.step(MappingProxyType(params), grads)
    state = {key: a.copy() for key, a in optimizer.state.items()}
    before = optimizer.state
    optimizer.step(first, grads)
    assert_same(params | {f"g{key}": g for key, g in grads.items()}, kept)
    assert_same(before, state)
    assert set(optimizer.state) == set(state)


@every_optimizer
def test_a_gradient_that_is_overwritten_later_does_not_matter(make):
    careless, careful = make(), make()
    for optimizer in (careless, careful):
        params = draw(0)
        for seed in (1, 2, 3):
            grads = draw(seed)
            params = optimizer.step(params, grads)
            if optimizer is careless:
                for g in grads.values():
                    g[...] = 1e6
    assert_same(careless.state, careful.state)


@every_optimizer
def test_parameters_without_gradient_are_the_same_arrays(make):
    optimizer, params = make(), draw(0)
    new = optimizer.step(params, {"b": draw(1)["b"]})
    assert list(new) == list(params)
    assert new["A"] is params["A"]
    assert new["c"] is params["c"]
    assert new["b"] is not params["b"]
    assert all(key.endswith(".b") for key in optimizer.state)
    assert optimizer.step(params, {}) == params
    assert optimizer.count == 2


def test_a_parameter_that_joins_late_is_corrected_for_its_own_start():
    late, alone = Adam(0.1), Adam(0.1)
    params, grads = draw(0), draw(1)
    for _ in range(5):
        late.step(params, {"A": grads["A"]})
    for seed in (2, 3, 4):
        grads = draw(seed)
        own = alone.step({"b": params["b"]}, {"b": grads["b"]})
        params = late.step(params, grads)
        assert_same({"b": params["b"]}, own)


# -------------------------------------------------------------------------------- state


@every_optimizer
def test_a_run_continues_to_the_last_bit(make):
    whole = run(make(), draw(0), range(1, 9))
    first, second = make(), make()
    half = run(first, draw(0), range(1, 5))
    second.state = {key: np.array(a) for key, a in first.state.items()}
    second.count = first.count
    assert_same(run(second, half, range(5, 9)), whole)
    assert second.count == 8


@every_optimizer
def test_a_run_moves_to_another_library(xp, make):
    first, second = make(), make()
    half = run(first, draw(0), range(1, 5))
    second.state, second.count = moved(xp, first.state), first.count
    there = second.step(moved(xp, half), moved(xp, draw(5)))
    here = first.step(half, draw(5))
    for key in SHAPES:
        assert_close(there[key], from_host(xp, here[key]), rtol=1e-14)


def test_state_keys():
    for optimizer, slots in (
        (SGD(0.1), ""),
        (SGD(0.1, momentum=0.5), "velocity"),
        (Adam(), "m v k"),
        (AdamW(), "m v k"),
    ):
        assert optimizer.state == {}
        assert optimizer.count == 0
        optimizer.step(draw(0), draw(1))
        assert set(optimizer.state) == {f"{slot}.{key}" for slot in slots.split() for key in SHAPES}
        assert optimizer.count == 1


def test_the_state_that_is_read_is_a_copy_of_the_dictionary():
    optimizer = Adam()
    optimizer.step(draw(0), draw(1))
    optimizer.state.clear()
    assert len(optimizer.state) == 9


@every_optimizer
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_a_copy_goes_its_own_way(make, duplicate):
    optimizer = make()
    params = run(optimizer, draw(0), (1, 2))
    twin = duplicate(optimizer)
    assert_same(run(twin, params, (3, 4)), run(optimizer, params, (3, 4)))
    run(twin, params, (5,))
    assert (optimizer.count, twin.count) == (4, 5)


def test_nobody_writes_into_the_state():
    optimizer = Adam()
    optimizer.step(draw(0), draw(1))
    with pytest.raises(ValueError, match="read-only"):
        optimizer.state["m.A"][...] = 0.0
    mine = {key: np.array(a) for key, a in optimizer.state.items()}
    kept = {key: a.copy() for key, a in mine.items()}
    optimizer.state = mine
    for a in mine.values():  # they are still mine to write into
        a[...] = 7
    assert_same(optimizer.state, kept)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1], r"the state is \[1\]; a mapping"),
        (None, "the state is None; a mapping"),
        ({1: np.ones(1)}, "1 is no state of Adam"),
        (
            {"m.A": np.ones(1), "v.A": np.ones(1), "k.A": np.asarray(np.inf)},
            r"'k.A' is array\(inf\)",
        ),
        ({"m.A": np.ones(1), "v.A": np.ones(1), "k.A": np.asarray("2")}, "'k.A' is"),
        ({"velocity.A": np.ones(1)}, "'velocity.A' is no state of Adam, which keeps m, v, k"),
        ({"m": np.ones(1)}, "'m' is no state of Adam"),
        (
            {"m.A": [1.0], "v.A": np.ones(1), "k.A": np.asarray(1)},
            r"'m.A' is \[1.0\]; an array is needed",
        ),
        ({"m.A": np.ones(1)}, "v.A, k.A is missing"),
        (
            {"m.A": np.ones(1), "v.A": np.ones(1), "k.A": np.asarray(0)},
            r"'k.A' is array\(0\); .* a number of steps",
        ),
        ({"m.A": np.ones(1), "v.A": np.ones(1), "k.A": np.asarray(1.5)}, r"'k.A' is array\(1.5\)"),
        ({"m.A": np.ones(1), "v.A": np.ones(1), "k.A": np.ones(2, int)}, "'k.A' is"),
    ],
)
def test_bad_state(state, words):
    optimizer = Adam()
    optimizer.step(draw(0), draw(1))
    before = optimizer.state
    with pytest.raises(InputError, match=words):
        optimizer.state = state
    assert_same(optimizer.state, before)


def test_plain_sgd_keeps_no_state():
    with pytest.raises(InputError, match="SGD, which keeps no state"):
        SGD(0.1).state = {"velocity.A": np.ones(1)}


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None])
def test_bad_count(count):
    optimizer = Adam()
    with pytest.raises(InputError, match="count is"):
        optimizer.count = count
    assert optimizer.count == 0


def test_a_count_from_a_file_is_a_number_too():
    optimizer = Adam()
    optimizer.count = np.int64(3)
    assert optimizer.count == 3
    assert type(optimizer.count) is int


# ----------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_scales_all_gradients_together(xp, dtype):
    grads = {"A": np.array([[3.0, 0.0]], dtype), "b": np.array([4.0], dtype)}  # norm 5
    params = moved(xp, {key: np.zeros_like(g) for key, g in grads.items()})
    for clip_norm, scale in ((1.0, 0.2), (5.0, 1.0), (50.0, 1.0)):
        new = SGD(1.0, clip_norm=clip_norm).step(params, moved(xp, grads))
        for key, g in grads.items():
            assert_close(
                new[key],
                from_host(xp, np.asarray(-scale * g, dtype)),
                rtol=4 * float(np.finfo(dtype).eps),
            )


@given(
    seed=st.integers(0, 2**32 - 1),
    clip_norm=st.floats(1e-3, 1e3),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_the_clipped_norm(seed, clip_norm, size):
    grads = {key: np.asarray(size * g) for key, g in draw(seed).items()}
    params = {key: np.zeros_like(g) for key, g in grads.items()}
    step = np.concatenate(
        [g.ravel() for g in SGD(1.0, clip_norm=clip_norm).step(params, grads).values()]
    )
    norm = np.linalg.norm(np.concatenate([g.ravel() for g in grads.values()]))
    assert np.linalg.norm(step) == pytest.approx(min(norm, clip_norm), rel=1e-12)


@every_optimizer
def test_no_step_waits_for_a_gpu(make, monkeypatch):
    for name, module in stand_in.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    params, grads, optimizer = moved(stand_in.cupy, draw(0)), moved(stand_in.cupy, draw(1)), make()
    before = stand_in.cupy.waits
    for _ in range(3):
        params = optimizer.step(params, grads)
    assert stand_in.cupy.waits == before
    float(params["c"])
    assert stand_in.cupy.waits == before + 1  # the count counts


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_zero_gradient_is_safe(xp, optimizer):
    params = draw(0, dtype="float32")
    zero = {key: np.zeros_like(a) for key, a in params.items()}
    new = optimizer(0.1, clip_norm=1.0).step(moved(xp, params), moved(xp, zero))
    assert_same(new, moved(xp, params))


def test_large_float32_gradients_do_not_overflow_the_norm():
    g = np.full(4, 1e30, np.float32)
    new = SGD(1.0, clip_norm=1.0).step({"w": np.zeros(4, np.float32)}, {"w": g})["w"]
    assert_close(new, np.full(4, -0.5, np.float32), rtol=1e-6)


@pytest.mark.parametrize("size", [1e150, 1e154, 1e160, 1e308])
@pytest.mark.parametrize("clip_norm", [1.0, 1e200])
def test_large_float64_gradients_do_not_overflow_the_norm(xp, size, clip_norm):
    grads = {
        "v": np.array([0.6, -0.8, 0.0]) * size,
        "w": np.full((2, 2), size),
        "small": np.ones(3, np.float32),
    }
    params = {key: np.zeros_like(g) for key, g in grads.items()}
    new = SGD(1.0, clip_norm=clip_norm).step(moved(xp, params), moved(xp, grads))
    scale = min(1.0, clip_norm / size / math.sqrt(5.0))
    for key in "vw":
        assert_close(new[key], -scale * grads[key], rtol=1e-14, xp=xp)


def test_a_clipped_gradient_that_is_not_finite_leaves_nothing_finite_or_nothing_changed(xp):
    params = moved(xp, {"a": np.ones(2), "b": np.ones(2)})
    with np.errstate(invalid="ignore"):
        new = SGD(1.0, clip_norm=1.0).step(
            params, moved(xp, {"a": np.array([math.nan, 1.0]), "b": np.ones(2)})
        )
        assert all(np.isnan(to_numpy(a)).all() for a in new.values())
        new = SGD(1.0, clip_norm=1.0).step(
            params, moved(xp, {"a": np.array([math.inf, 1.0]), "b": np.ones(2)})
        )
    assert_close(new["b"], np.ones(2), rtol=0, xp=xp)
    assert_close(xp.isnan(new["a"]), np.array([True, False]), rtol=0, xp=xp)


# ----------------------------------------------------------------------------- refusals


@every_optimizer
@pytest.mark.parametrize(
    ("params", "grads", "words"),
    [
        ({}, {"Z": np.ones(1)}, "gradients of Z, but the parameters are A, b, c"),
        (
            {},
            {"b": np.ones((3, 1))},
            r"b is float64 of shape \(3,\), its gradient float64 of shape \(3, 1\)",
        ),
        ({}, {"b": np.ones(3, np.float32)}, "its gradient float32"),
    ],
)
def test_gradients_that_do_not_fit(make, params, grads, words):
    optimizer, params = make(), draw(0) | params
    optimizer.step(params, draw(1))
    before = optimizer.state
    with pytest.raises(InputError, match=words):
        optimizer.step(params, {"A": np.ones((3, 3))} | grads)
    assert optimizer.count == 1
    assert_same(optimizer.state, before)


@pytest.mark.parametrize("make", [MAKERS["momentum"], MAKERS["adam"]])
@pytest.mark.parametrize(
    ("shapes", "dtype", "words"),
    [
        ({"b": (4,)}, "float64", r"state float64 of shape \(3,\)"),
        ({"b": (3,)}, "float32", r"state float64 of shape \(3,\)"),
    ],
)
def test_a_parameter_that_changed_between_steps(make, shapes, dtype, words):
    optimizer = make()
    optimizer.step(draw(0), draw(1))
    with pytest.raises(InputError, match=f"{words}; for a changed model use a new optimiser"):
        optimizer.step(draw(0, shapes, dtype), draw(1, shapes, dtype))


@pytest.mark.parametrize("make", [MAKERS["momentum"], MAKERS["adam"], MAKERS["clipped"]])
def test_two_libraries(make):
    here, there = draw(0), moved(array_api_strict, draw(0))
    with pytest.raises(DeviceMismatchError):
        make().step(here, there)
    optimizer = make()
    optimizer.step(here, here)
    with pytest.raises(DeviceMismatchError):
        optimizer.step(there, there)


@pytest.mark.parametrize(
    "build",
    [
        lambda bad: SGD(bad),
        lambda bad: Adam(bad),
        lambda bad: AdamW(bad),
        lambda bad: SGD(0.1, clip_norm=bad),
        lambda bad: Constant(bad),
        lambda bad: Cosine(bad, steps=10),
        lambda bad: Exponential(bad, 0.5),
        lambda bad: Piecewise((1,), (0.1, bad)),
    ],
)
@pytest.mark.parametrize("bad", [0.0, -0.1, math.inf, math.nan, True, "0.1", np.ones(1)])
def test_what_must_be_a_positive_number(build, bad):
    with pytest.raises(InputError, match="positive and finite"):
        build(bad)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SGD(0.1, momentum=1.0),
        lambda: SGD(0.1, momentum="0.9"),
        lambda: SGD(0.1, momentum=True),
        lambda: SGD(0.1, momentum=0.9, nesterov="no"),
        lambda: SGD(0.1, weight_decay=None),
        lambda: Adam(betas=0.9),
        lambda: Adam(betas=("a", "b")),
        lambda: Adam(eps="1e-8"),
        lambda: AdamW(weight_decay=None),
        lambda: SGD(0.1, momentum=-0.1),
        lambda: SGD(0.1, nesterov=True),
        lambda: SGD(0.1, weight_decay=-1.0),
        lambda: SGD(0.1, weight_decay=math.inf),
        lambda: Adam(betas=(1.0, 0.9)),
        lambda: Adam(betas=(0.9, -0.1)),
        lambda: Adam(betas=(0.9,)),
        lambda: Adam(eps=0.0),
        lambda: AdamW(weight_decay=-0.1),
        lambda: AdamW(weight_decay=math.nan),
        lambda: Cosine(0.1, steps=0),
        lambda: Cosine(0.1, steps=10, warmup=10),
        lambda: Cosine(0.1, steps=10, warmup=-1),
        lambda: Cosine(0.1, steps=10.5),
        lambda: Cosine(0.1, steps=10, final=0.2),
        lambda: Cosine(0.1, steps=10, final=-0.1),
        lambda: Exponential(0.1, rate=0.0),
        lambda: Exponential(0.1, rate=1.1),
        lambda: Exponential(0.1, rate=0.5, every=0),
        lambda: Exponential(0.1, rate=0.5, every=1.5),
        lambda: Piecewise((10, 10), (1.0, 0.1, 0.01)),
        lambda: Piecewise((20, 10), (1.0, 0.1, 0.01)),
        lambda: Piecewise((10,), (1.0,)),
        lambda: Piecewise((-1,), (1.0, 0.1)),
        lambda: Piecewise((1.5,), (1.0, 0.1)),
    ],
)
def test_bad_configuration(build):
    with pytest.raises(InputError):
        build()


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, None, "fast", np.ones(2)])
def test_a_schedule_that_leaves_the_numbers(rate):
    optimizer = SGD(lambda count: 0.1 if count == 0 else rate)
    optimizer.step(draw(0), draw(1))
    with pytest.raises(InputError, match="at step 1; a learning rate is finite"):
        optimizer.step(draw(0), draw(1))
    assert optimizer.count == 1


# ---------------------------------------------------------------------------- schedules


def test_the_schedule_sees_the_steps_already_taken():
    seen = []

    def schedule(count):
        seen.append(count)
        return 0.5**count

    optimizer, params = SGD(schedule), {"w": np.zeros(1)}
    for _ in range(3):
        params = optimizer.step(params, {"w": np.ones(1)})
    assert seen == [0, 1, 2]
    assert_close(params["w"], np.array([-1.75]), rtol=0)
    optimizer.count = 10
    assert optimizer.current_rate == 0.5**10


def test_a_numpy_learning_rate_does_not_upcast():
    for rate in (
        np.float64(0.1),
        lambda count: np.float64(0.1),
        lambda count: np.where(count < 9, 0.1, 0.01),
    ):
        assert (
            SGD(rate).step({"w": np.ones(1, np.float32)}, {"w": np.ones(1, np.float32)})["w"].dtype
            == np.float32
        )


def test_constant():
    assert [Constant(0.3)(count) for count in (0, 1, 1000)] == [0.3, 0.3, 0.3]


def test_cosine():
    schedule = Cosine(2.0, steps=20, warmup=4, final=0.5)
    assert [schedule(count) for count in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(12) == pytest.approx(1.25, rel=1e-15)
    assert schedule(8) == pytest.approx(0.5 + 0.75 * (1 + math.sqrt(0.5)), rel=1e-15)
    assert schedule(20) == schedule(1000) == 0.5
    falling = [schedule(count) for count in range(4, 21)]
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_exponential():
    assert [Exponential(8.0, 0.5)(count) for count in range(4)] == [8.0, 4.0, 2.0, 1.0]
    assert [Exponential(8.0, 0.5, every=2)(count) for count in range(5)] == [
        8.0,
        8.0,
        4.0,
        4.0,
        2.0,
    ]


def test_piecewise():
    schedule = Piecewise((2, 5), (1.0, 0.1, 0.01))
    assert [schedule(count) for count in range(7)] == [1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert Piecewise((), (0.5,))(7) == 0.5


def test_the_configuration_is_fixed():
    for optimizer in (SGD(0.1, momentum=0.9), Adam(), AdamW()):
        for name in ("learning_rate", "lr", "clip_norm", "weight_decay", "slots"):
            with pytest.raises(AttributeError, match=f"{name} cannot be set.* build another"):
                setattr(optimizer, name, 1.0)
        optimizer.count = 3
        assert optimizer.count == 3


# ---------------------------------------------------------------- whose arrays they are


@every_optimizer
def test_a_layer_keeps_what_an_optimizer_made_and_nobody_can_write_into_it(make):
    layer, optimizer = Linear(3, 2, dtype="float64", rng=0), make()
    grads = {key: np.ones_like(a) for key, a in layer.params.items()}
    new = optimizer.step(layer.params, grads)
    layer.params = new
    for key, a in new.items():
        assert layer.params[key] is a
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0.0


def test_a_layer_copies_what_somebody_could_write_into():
    owner = np.ones((2, 3))
    view = owner[:]
    view.flags.writeable = False
    for array in (owner, view):
        layer = Linear(3, 2, dtype="float64", rng=0)
        layer.params = {**layer.params, "W": array}
        owner[...] = 7.0
        assert_close(layer.params["W"], np.ones((2, 3)), rtol=0)
        owner[...] = 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_refused_when_it_is_set(bad):
    layer = Linear(3, 2, rng=0)
    grads = {key: np.ones_like(a) for key, a in layer.params.items()}
    grads["W"][1, 1] = bad
    with np.errstate(invalid="ignore"):
        new = SGD(0.1).step(layer.params, grads)
    before = dict(layer.params)
    with pytest.raises(InputError, match="W has 1 entries that are NaN"):
        layer.params = new
    assert all(layer.params[key] is a for key, a in before.items())
    # squares overflow, entries do not
    new = {key: np.full_like(a, 3e38) for key, a in layer.params.items()}
    layer.params = new
