"""The measurements run, and count what they say. No test looks at a clock."""

import dataclasses
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pyidl import activations, solvers
from pyidl.matrices.full import Full
from pyidl.matrices.low_rank import LowRank
from pyidl.solvers.problem import Affine

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import auto  # noqa: E402
import cost  # noqa: E402
import estimators  # noqa: E402
import latency  # noqa: E402
import recurrent  # noqa: E402
import recurrent_floor  # noqa: E402
import series  # noqa: E402
import timing  # noqa: E402
import tracking  # noqa: E402
import training  # noqa: E402
from counting import Counts, counting  # noqa: E402

SMALL = ((6, 3), (7, 1))
PEERS = ("torch", "torchidl", "torchdeq", "jax", "jaxopt", "mlxtend", "sklearn", "cvxpy")


def case(name, n=6, m=3, phi="relu", dtype="float64"):
    draw = auto.Draw(np.random.default_rng(0), n, m, getattr(activations, phi), dtype)
    return auto.FAMILIES[name](draw)


def test_no_peer_is_needed_to_import_them():
    names = ("auto", "cost", "counting", "estimators", "latency", "timing", "training")
    names += ("recurrent", "recurrent_floor", "series", "tracking")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in PEERS)
    path = f"sys.path.insert(0, {str(BENCHMARKS)!r}); "
    command = [sys.executable, "-c", f"import sys; {blocked}{path}import {', '.join(names)}"]
    root = BENCHMARKS.parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------- counting


def affine(matrix, m=5):
    rng = np.random.default_rng(0)
    return Affine(matrix, rng.normal(size=(m, 12)), activations.relu)


def full(kappa=0.7):
    A = np.random.default_rng(1).normal(size=(12, 12))
    return Full(kappa * A / np.abs(A).sum(axis=1, keepdims=True))


def test_a_step_of_picard_is_a_product():
    with counting(12) as counts:
        solution = solvers.Picard()(affine(full(), m=1))
    assert counts.products == counts.rows == solution.n_iter[0] > 3
    assert 0 < counts.measurements == counts.measured < counts.products
    assert counts.systems == 0


def test_samples_that_have_left_are_not_counted():
    problem = affine(full(0.9), m=40)
    problem.offset[4:] = -1.0  # x = 0: they converge at once
    with counting(12) as counts:
        solution = solvers.Picard()(problem)
    assert counts.products == solution.n_iter.max()
    assert counts.rows == 40 * 6 + 4 * (counts.products - 6)  # all until the first measurement


def test_factors_count_for_what_they_read():
    rng = np.random.default_rng(0)
    matrix = LowRank(*(0.1 * rng.normal(size=(2, 12, 3))))
    with counting(12) as counts:
        matrix.rows(np.ones((4, 12)))
    assert counts == Counts(products=1, rows=4 * 2 * 12 * 3 / 12**2)


def test_matrices_that_a_solver_makes_count_too():
    with counting(12) as counts:
        solution = solvers.PeacemanRachford()(affine(full()))
    assert counts.products >= solution.n_iter.max()
    assert counts.systems == 1


def test_dense_systems_are_counted_one_a_sample():
    one = case("gaussian", n=9, m=4)
    assert one.count("adjoint", solvers.Direct()).systems == 4
    assert one.count("adjoint", solvers.Picard()).systems == 0


def test_everything_is_as_it_was_afterwards():
    before = Full.rows, LowRank.rows, Affine.measure, np.linalg.solve, np.linalg.inv
    with pytest.raises(ZeroDivisionError), counting(12):
        assert Full.rows is before[0] or 1 / 0
    assert (Full.rows, LowRank.rows, Affine.measure, np.linalg.solve, np.linalg.inv) == before


# ------------------------------------------------------------------ the default solver


def test_the_suite_has_56_models():
    cases = list(auto.suite())
    assert len(cases) == 56
    assert len({one.family for one in cases}) == len(auto.SUITE) == 8
    again = list(auto.suite("suite: roll"))
    assert [str(one) for one in again] == [str(one) for one in cases[21:28]]
    assert all(np.array_equal(a.U, b.U) for a, b in zip(again, cases[21:28]))


@pytest.mark.parametrize("name", auto.FAMILIES)
def test_every_family_is_solved_and_counted(name):
    if name == "trained":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for one in auto.family(name, SMALL, full=True):
        assert one.run("forward", None)().all_converged, str(one)
        assert one.run("adjoint", None)().all_converged, str(one)
        for direction in ("forward", "adjoint"):
            counts = one.count(direction)
            assert counts.steps >= 1
            assert counts.products >= 1
            assert counts == one.count(direction), "a count can be repeated"


def test_the_slow_sample_is_alone():
    for phi in ("relu", "tanh"):
        one = case("slow sample", n=20, m=30, phi=phi)
        n_iter = one.model.replace(forward=solvers.Picard()).equilibrium(one.U).n_iter
        assert n_iter[0] > 4 * n_iter[1:].max()


def test_counts_add_up():
    cases = list(auto.family("gaussian", SMALL))
    counts = [one.count("forward") for one in cases]
    summed = auto.total(cases)
    for name in ("products", "rows", "measurements", "measured", "systems", "steps"):
        assert getattr(summed, name) == sum(getattr(one, name) for one in counts)


def test_choices_that_do_not_apply_are_left_out():
    assert auto.compare(case("gaussian"), rounds=1).best != "Substitution"
    result = auto.compare(case("triangular"), "adjoint", rounds=1)
    assert 0 < result.ratio < np.inf
    assert "best" in str(result)


def test_a_failure_of_the_default_is_no_ratio():
    result = auto.Result("one", np.inf, "Picard", 1.0)
    assert result.ratio == np.inf
    assert dataclasses.replace(result, auto=1.0, least=np.inf, best="").ratio == 0
    assert dataclasses.replace(result, least=np.inf).ratio == np.inf


def test_bars_decide_the_exit_status(capsys):
    arguments = ["triangular", "--shapes", "6x3", "--rounds", "1", "--bars"]
    assert auto.main([*arguments, "0", "inf"]) == 0
    assert auto.main([*arguments, "0", "0"]) == 1
    out = capsys.readouterr().out
    assert "triangular, adjoint" in out
    assert "all of the families" in out
    assert auto.main(["small cycle", "--shapes", "6x3", "--counts"]) == 0
    assert "within" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no family spiral"):
        auto.main(["spiral"])


# -------------------------------------------------------------------------- the others


def test_turns_are_taken_by_all():
    seen = []
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = timing.turns(runs, 3, 2, pause=0)
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    assert seen.count("a") == seen.count("b") == 1 + 3 * 3  # two, after one that does not count


def test_constants_are_found_again():
    truth = {"1": 2.0, "m n": 1e-3, "m n^2": 1e-5}
    pairs = [(n, m) for n in (1, 10, 100, 1000) for m in (1, 10, 100)]
    rows = []
    for n, m in pairs:
        us = sum(constant * cost.TERMS[term](n, m) for term, constant in truth.items())
        rows.append({"n": n, "m": m, "us": us})
    constants, median, worst, _ = cost.fit(cost.PRODUCT, rows)
    assert worst < 1e-6
    assert median <= worst
    for term in cost.PRODUCT:
        assert constants[term] == pytest.approx(truth.get(term, 0.0), rel=1e-5, abs=1e-9)


def test_every_part_is_measured_and_the_table_is_python(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost, "TURNS", 1)
    monkeypatch.setattr(cost, "TURN", 0.0)
    monkeypatch.setattr(cost, "grid", lambda part: [(n, m) for n in (1, 3, 8) for m in (1, 5)])
    raw = tmp_path / "raw.json"
    cost.main(["--dtype", "float64", "--raw", str(raw)])
    cost.main(["step", "--dtype", "float64", "--raw", str(raw)])  # in place of what was there
    capsys.readouterr()
    cost.main(["none", "--raw", str(raw)])
    found = {}
    exec(capsys.readouterr().out, found)
    assert set(found["COST"]) == {(part, "float64") for part in cost.PARTS}


def test_the_floor_computes_what_pyidl_does():
    rng = np.random.default_rng(0)
    U, t = rng.random((200, 784)), rng.integers(0, 10, 200)
    built = training.contenders(1e-3, "float64", peers=False)
    floor, loop = built["floor"], built["pyidl, loop"]
    for one in (floor, loop):
        one.epoch(U, t, np.arange(200))
    for key, a in floor.params.items():
        np.testing.assert_allclose(a, loop.model.params[key], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(floor.predict(U), loop.predict(U), rtol=1e-6, atol=1e-8)
    # pyidl measures every fifth step
    assert 0 < loop.steps[0] < floor.steps[0] + 5 * (200 // training.BATCH)
    assert np.abs(floor.params["A"]).sum(axis=1).max() <= training.KAPPA * (1 + 1e-14)


def test_a_race_is_in_turns_and_bounded(capsys, monkeypatch):
    monkeypatch.setattr(training, "PAUSE", 0.0)
    rng = np.random.default_rng(0)
    data = rng.random((70, 784)).astype("f4"), rng.integers(0, 10, 70)
    built = training.contenders(1e-3, "float32", peers=False)
    times = training.race(built, data, data, 3, seconds=0)
    assert {name: len(t) for name, t in times.items()} == dict.fromkeys(built, 1)
    assert "stopped after 1 epochs" in capsys.readouterr().out
    ratios = training.ratios({"torchidl": [9, 6, 4], "floor": [1, 1, 1], "pyidl, loop": [1, 2, 2]})
    assert ratios == {("torchidl", "pyidl, loop"): 2.5, ("floor", "pyidl, loop"): 0.5}


def test_missing_images_say_where_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        training.main([str(tmp_path)])


def test_calls_are_counted():
    def inner():
        return len([])

    def outer():
        return inner() + inner()

    assert latency.count_calls(outer) == (3, 2)
    assert sys.getprofile() is None


def test_calls_of_a_solve(capsys):
    found = latency.calls(n=10, m=4)
    assert found == latency.calls(n=10, m=4)
    assert "Python functions" in capsys.readouterr().out


def test_estimators_beside_perceptrons(capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pair = estimators.pair

    def quick(labels, seed):
        return {who: one.set_params(max_iter=2) for who, one in pair(labels, seed).items()}

    monkeypatch.setattr(estimators, "pair", quick)
    estimators.main(["--sets", "iris", "diabetes", "--splits", "2"])
    out = capsys.readouterr().out
    assert out.count(" x ") == 2
    assert "nan" not in out


def test_a_default_is_chosen_without_the_set_it_is_judged_on(capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    few = {"two epochs": (0.5, {"max_iter": 2}), "one": (0.5, {"max_iter": 1})}
    monkeypatch.setattr(estimators, "SLOWEST", 1e9)
    monkeypatch.setattr(estimators, "candidates", lambda: few)
    with warnings.catch_warnings():  # main ignores those of the perceptrons
        estimators.main(["--select", "--sets", "iris", "wine", "--splits", "2"])
    out = capsys.readouterr().out
    assert out.count("without ") == 2
    assert "on all: " in out
    assert "nan" not in out


def test_few_samples(capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.setattr(estimators, "ROWS", 40)
    with warnings.catch_warnings():
        estimators.main(["--few", "--sets", "iris", "sine", "--splits", "2"])
        with pytest.raises(SystemExit):
            estimators.main(["--sets", "sine"])
    out = capsys.readouterr().out
    assert out.count("warnings ") == 2
    assert "nan" not in out


def test_what_one_set_wins_does_not_pay_for_another():
    found = {
        "one": {"x": (1.0, 9.0, 0.9), "y": (1.0, 0.1, 0.0), "z": (6.0, 1.0, 0.1)},
        "two": {"x": (1.0, -0.5, -0.1), "y": (2.0, 0.0, 0.0), "z": (1.0, 1.0, 0.1)},
    }
    assert estimators.choose(found, ["one", "two"]) == ("y", 0.0)  # z is too slow
    assert estimators.choose(found, ["one"]) == ("x", 0.0)  # neither falls short, both as fast
    assert estimators.choose(found, ["two"]) == ("z", 0.0)
    assert len(estimators.candidates()) == 36


# ------------------------------------------------------------------ recurrent networks


def floor_case(slow="", bias=True, m=3, T=11, n=4):
    model, U = recurrent.network(n, slow, bias=bias), recurrent.smooth(m, T)
    dY = np.random.default_rng(0).normal(size=(m, 1)).astype("f4")
    return model, U, dY, recurrent_floor.matrix(model.params, 1)


@pytest.mark.parametrize(("slow", "bias"), [("", True), ("", False), ("slow", True)])
def test_every_way_of_the_floor_computes_what_pyidl_does(slow, bias):
    model, U, dY, M = floor_case(slow, bias)
    dH, truth = dY @ model.params["E"], recurrent.Truth.of(model, U, dY)
    ahead, back = recurrent.step_rounds(M, 4, U, dH, 1e-6)
    for split in (False, True):
        found = recurrent.forward(recurrent.Way(ahead, split), M, 4, U)
        dM = recurrent.backward(recurrent.Way(back, split), M, 4, found, dH)
        assert truth.accepts(found, dM)
        assert not truth.accepts(found, -dM)
        assert not truth.accepts((found[0] * np.float32(1.001),), dM)
    for width in (1, 4, 11):
        for doubling in (False, True):
            way = recurrent.Way(4, width=width, doubling=doubling)
            found = recurrent.forward(way, M, 4, U)
            dM = recurrent.backward(way, M, 4, found, dH)
            assert truth.accepts(found, dM)
            assert not truth.accepts((found[0], found[1] * np.float32(1.001)), dM)
    wrong = M.copy()
    wrong[4:, 4:8] = wrong[4:, 4:8].T  # D_h
    assert not truth.accepts(recurrent.forward(way, wrong, 4, U), None)


def test_rounds_are_the_fewest_that_suffice():
    for needed in (2, 3, 7, 8, 9, 130):
        assert recurrent.rounds_needed(lambda k, needed=needed: k >= needed) == needed
    with pytest.raises(RuntimeError, match="4,096 rounds"):
        recurrent.rounds_needed(lambda k: False)
    model, U, dY, M = floor_case("slow")
    dH = dY @ model.params["E"]
    ahead, back = recurrent.step_rounds(M, 4, U, dH, 1e-6)
    assert ahead > 20
    assert not recurrent_floor.met(M, 4, recurrent_floor.steps(M, 4, U, ahead - 1, True), 1e-6)
    S = recurrent_floor.steps(M, 4, U, ahead, False)
    Q = recurrent_floor.back_steps(M, 4, S, dH, back // 2, False, 1e-6)
    assert not recurrent_floor.adjoint_met(M, 4, S, Q, 1e-6)


def test_rounds_fall_where_cotangents_do():
    model, U, dY, M = floor_case(m=2, T=90)
    S = recurrent_floor.steps(M, 4, U, 12, False)
    with counting_dots() as fewer:
        Q = recurrent_floor.back_steps(M, 4, S, dY[:2] @ model.params["E"], 12, False, 1e-6)
    assert fewer[0] < 0.8 * 90 * 12
    assert recurrent_floor.adjoint_met(M, 4, S, Q, 1e-6)


@contextmanager
def counting_dots():
    calls, dot = [0], np.dot

    def counted(*arguments, **options):
        calls[0] += 1
        return dot(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "dot", counted)
        yield calls


def test_the_floor_and_calls_have_tables(capsys):
    recurrent.against_floor([(2, 6, 3, ""), (1, 5, 3, "slow")], rounds=1)
    out = capsys.readouterr().out
    assert "| 2, 6, 3 | " in out
    assert "| 1, 5, 3, slow | " in out
    assert "nan" not in out
    few = ((2, 6, 3, ""),)
    assert recurrent.counts(few) == recurrent.counts(few)
    assert "built-in" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no part spiral"):
        recurrent.main(["spiral"])


def test_recurrent_networks_beside_their_peers(capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchidl", reason="torchidl is not installed")
    with warnings.catch_warnings():  # torchidl's are ignored there
        recurrent.training(m=4, T=6, n=3, count=2, rounds=1)
        recurrent.large(m=9, T=5, r=4, n=3, epochs=2, rounds=1)
        recurrent.single((6,), n=3, rounds=1)
    out = capsys.readouterr().out
    for name in ("pyidl", "floor", "torchidl, 1 thread", "LSTM, 1 thread", "GRU, 1 thread"):
        assert f"| {name} | " in out
    assert "nan" not in out


SERIES = """# A comment.
@problemName Small
@classLabel true b a
@data
1,2,3:4,5,6:a
7,8:9,10:b
"""


def test_series_are_read_from_their_files(tmp_path):
    path = tmp_path / "Small_TRAIN.ts"
    path.write_text(SERIES)
    sequences, labels = series.read(path)
    np.testing.assert_array_equal(sequences[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(sequences[1], [[7, 9], [8, 10]])
    np.testing.assert_array_equal(labels, [1, 0])


def test_series_are_padded_and_standardised_by_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "Small.ts"
    path.write_text(SERIES)
    monkeypatch.setattr(series, "locate", lambda name, part: path)
    (U, lengths, labels), _ = series.load("Small")
    assert (U.shape, lengths.tolist(), labels.tolist()) == ((2, 3, 2), [3, 2], [1, 0])
    there = U[np.arange(3) < lengths[:, None]]
    np.testing.assert_allclose(there.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(there.std(axis=0), 1, rtol=1e-6)
    assert not U[1, 2].any()


def small_set():
    rng = np.random.default_rng(0)
    U, lengths = rng.normal(size=(12, 5, 2)).astype("f4"), np.array([5, 3, 4] * 4)
    return U, lengths, np.arange(12) % 3


def test_series_are_classified(monkeypatch, capsys):
    monkeypatch.setattr(series, "load", lambda name: [small_set()] * 2)
    found = series.main(["GunPoint", "--seeds", "0", "1", "--epochs", "2", "--alone"])
    assert found["GunPoint", "pyidl"].shape == (2,)
    assert "| GunPoint (12, 5, 2) | " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no set Spiral"):
        series.main(["Spiral"])


@pytest.mark.parametrize("pool", series.POOLS)
def test_networks_of_torch_do_not_read_beyond_a_length(pool):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    U, lengths, labels = small_set()
    setting = series.Setting("small", 4, 2, 5, 1e-2, "last", 1e-2, pool)
    accuracy, seconds = series.theirs("GRU", setting, (U, lengths, labels), small_set(), 0)
    assert 0 <= accuracy <= 1
    assert seconds > 0
    net = series.pooled_network("LSTM", 2, 3, 4, pool)
    other = np.where(np.arange(5)[:, None] < lengths[:, None, None], U, 7).astype("f4")
    with torch.no_grad():
        Y, again = (net(torch.as_tensor(u), torch.as_tensor(lengths)) for u in (U, other))
    np.testing.assert_allclose(Y, again, rtol=1e-6)


@pytest.mark.parametrize("title", tracking.TASKS)
def test_one_layer_without_a_fixed_point_can_track_every_state(title):
    """The weights of `by_hand` are right on 500 moves, to the last digit."""
    task, rng = tracking.TASKS[title], np.random.default_rng(0)
    U, cups = tracking.sequences(task, 20, 500, rng)
    model, h0 = tracking.by_hand(task)
    Y = model.predict(U, h0=np.repeat(h0, 20, axis=0))
    np.testing.assert_array_equal(Y.reshape(*cups.shape, task.k), np.eye(task.k)[cups])


def test_moves_are_followed():
    """Against products of permutation matrices."""
    task = tracking.TASKS["S5"]
    U, cups = tracking.sequences(task, 3, 7, np.random.default_rng(0))
    matrices = np.eye(5)[np.array(task.moves)]  # row j: whence the cup comes
    for told, seen in zip(U, cups):
        at = np.eye(5)
        for move, now in zip(told, seen):
            at = matrices[move.argmax()] @ at
            np.testing.assert_array_equal(at @ np.arange(5), now)


def test_contenders_have_as_many_parameters():
    for title, task in tracking.TASKS.items():
        budget = tracking.free(tracking.network("ImplicitRNN", task, 0))
        for name in tracking.NAMES[1:4]:
            count = tracking.free(tracking.network(name, task, 0))
            unit = len(task.moves) + 2 * task.r + 1
            assert budget - unit < count <= budget, (title, name)


def test_states_are_tracked(capsys):
    small = ["parity", "--steps", "6", "--seeds", "0", "1", "--contenders", "ImplicitRNN", "tanh"]
    found = tracking.main(small)
    assert found["parity", "tanh"].shape == (2, 3)
    assert "| parity | ImplicitRNN | 1,788 | " in capsys.readouterr().out
    tracking.main(["parity", "--steps", "2", "--contenders", "A = 0", "--tune"])
    assert "parity, A = 0: " in capsys.readouterr().out
    tracking.long(["parity"], 6, (70,))
    assert "64 steps at once" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no S4"):
        tracking.main(["S4"])


def test_a_gru_of_torch_has_no_more_parameters():
    pytest.importorskip("torch", reason="torch is not installed")
    task = tracking.TASKS["S3"]
    shares, count, seconds = tracking.run("GRU", task, 1e-2, 2, 0, (4,))
    assert 0 <= shares[0] <= 1
    assert 0.95 * 5913 < count <= 5913
    assert seconds > 0


def test_missing_series_say_where_to_get_them(monkeypatch):
    monkeypatch.setattr(series, "locate", lambda name, part: None)
    with pytest.raises(SystemExit, match="pip install --no-deps aeon"):
        series.load("GunPoint")
