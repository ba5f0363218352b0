"""Moments of chunks.

The same whether added here or by Dask, with a worker that dies in the middle or
without.
"""

import functools
import logging
import math
import operator
import os
import signal

import numpy as np
import pytest
from helpers import relative

from pyidl import Linear, Sequential, activations, sim
from pyidl.arrays.backend import from_host
from pyidl.errors import InputError

FIELDS = ("mean", "target_mean", "G", "H", "square")


def network():
    return Sequential(
        Linear(4, 6, rng=0, dtype="float64"),
        activations.relu,
        Linear(6, 5, rng=1, dtype="float64"),
        activations.tanh,
        Linear(5, 3, rng=2, dtype="float64"),
    )


def samples(m=100, seed=0):
    return np.random.default_rng(seed).normal(size=(m, 4))


def assert_same(one, two, rtol=0.0):
    """Equal; or, with rtol, up to so many of the largest entry."""
    assert one.count == two.count
    for name in FIELDS:
        a, b = getattr(one, name), getattr(two, name)
        assert np.array_equal(a, b) if rtol == 0 else relative(a, b) <= rtol, name


@pytest.mark.parametrize("batch_size", [1, 7, 33, 100])
def test_chunked_equals_whole(batch_size):
    whole = sim.collect_states(network(), samples()).moments()
    parts = sim.accumulate(sim.iter_states(network(), samples(), batch_size))
    assert_same(parts, whole, 1e-13)
    one_less = sim.accumulate(sim.iter_states(network(), samples()[1:], batch_size))
    with pytest.raises(AssertionError):
        assert_same(one_less, whole, 1e-13)


def test_chunks_on_another_library(xp):
    W = from_host(xp, np.random.default_rng(0).normal(size=(3, 4)))
    net = sim.Feedforward([(W, None), (W[:2, :3], None)], activations.relu)
    parts = sim.accumulate(sim.iter_states(net, from_host(xp, samples()), 30))
    assert parts.count == 100
    assert type(parts.G) is type(W)


def test_sums_of_other_machines_are_added_too():
    halves = [sim.collect_states(network(), U).moments() for U in (samples()[:50], samples()[50:])]
    assert_same(sim.accumulate(halves), sim.collect_states(network(), samples()).moments(), 1e-13)


def test_the_sums_form_a_tree():
    """Five chunks: ((0 1) (2 3)) 4, and at most three sums at a time."""

    class Word(sim.Moments):
        def __add__(self, other):
            return word(f"({self.count} {other.count})")

    def word(text):
        return Word(text, *[None] * 5)

    assert sim.accumulate(word(str(i)) for i in range(5)).count == "(((0 1) (2 3)) 4)"
    assert sim.accumulate(word(str(i)) for i in range(7)).count == "(((0 1) (2 3)) ((4 5) 6))"


def test_a_long_sum_keeps_its_digits():
    """In units of a rounding; a running sum of 3,000 chunks loses more."""
    t = np.random.default_rng(0).normal(size=3000)
    mean = math.fsum(t) / 3000
    square = math.fsum((t - mean) ** 2)
    chunks = [sim.Moments.of(a[None, None], a[None, None]) for a in t]
    error = [
        abs(float(total.square[0]) / square - 1) / 2**-52
        for total in (sim.accumulate(chunks), functools.reduce(operator.add, chunks))
    ]
    assert error[0] < 2 < error[1]


@pytest.mark.parametrize(
    ("chunks", "words"),
    [([], "no chunks"), ([np.ones(3)], "a chunk is ndarray"), ([None], "a chunk is NoneType")],
)
def test_what_is_refused(chunks, words):
    with pytest.raises(InputError, match=words):
        sim.accumulate(chunks)


def test_rows_without_dask():
    assert sim.map_rows(functools.partial(pow, 2), range(4)) == [1, 2, 4, 8]


# --------------------------------------------------------------------------------- Dask


@pytest.fixture
def dask():
    return pytest.importorskip("dask", reason="Dask is not installed")


def test_arrays_of_dask(dask):
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    U = array.from_array(samples(), chunks=(30, 3))  # columns in pieces, too
    local = sim.accumulate(sim.iter_states(network(), samples(), 30))
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            assert_same(sim.accumulate(sim.iter_states(network(), U)), local)
            joined = sim.collect_states(network(), U)
            one_block = sim.collect_states(network(), samples(), batch_size=30)
            assert all(
                np.array_equal(getattr(joined, name), getattr(one_block, name))
                for name in ("U", "Z", "X", "Y")
            )
            assert sim.collect_states(network(), U, at=(0,)).widths == (6,)
            assert sim.map_rows(functools.partial(pow, 2), range(4), scheduler) == [1, 2, 4, 8]


def test_of_a_dask_array_the_chunks_are_its_own(dask):
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    with pytest.raises(InputError, match="rechunk"):
        sim.iter_states(network(), array.ones((10, 4), chunks=(5, 4)), 3)


def dies_once(flag, chunk):
    """The first worker that comes here is killed."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return sim.collect_states(network(), chunk)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def dies_once_powers(flag, number):
    dies_once(flag, samples(1))
    return 2**number


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


def test_a_cluster_of_two_processes_of_which_one_dies(dask, cluster, tmp_path):
    flag = str(tmp_path / "killed")
    before = set(cluster.run(os.getpid).values())
    chunks = [samples(20, seed) for seed in range(12)]
    task = dask.delayed(functools.partial(dies_once, flag), pure=False)
    far = sim.accumulate(task(chunk) for chunk in chunks)
    assert os.path.exists(flag)  # one was killed
    local = sim.accumulate(sim.collect_states(network(), chunk) for chunk in chunks)
    assert_same(far, local, 1e-15)
    cluster.wait_for_workers(2)
    assert set(cluster.run(os.getpid).values()) != before
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    U = np.concatenate(chunks)
    assert_same(
        sim.accumulate(sim.iter_states(network(), array.from_array(U, chunks=(20, 4)))),
        local,
        1e-15,
    )
    os.remove(flag)
    assert sim.map_rows(functools.partial(dies_once_powers, flag), range(6), cluster) == [
        1,
        2,
        4,
        8,
        16,
        32,
    ]


def test_a_fit_on_a_cluster_is_the_fit_here(dask, cluster):
    """States, sums, fixed points and rows: all of them are tasks."""
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    U = samples(200)
    here = sim.fit(network(), U, penalty=sim.L1(1e-3), solver=sim.ADMM(tol=1e-9), dtype="float64")
    far = sim.fit(
        network(),
        array.from_array(U, chunks=(60, 4)),
        penalty=sim.L1(1e-3),
        solver=sim.ADMM(tol=1e-9),
        dtype="float64",
        scheduler=cluster,
    )
    assert "in 8 tasks" in far.report.states.method
    for key, a in here.model.params.items():
        np.testing.assert_allclose(far.model.params[key], a, rtol=1e-5, atol=1e-7)
