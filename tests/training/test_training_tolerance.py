"""`fit(tol=...)`: training solves run to tolerances of their own, and nothing else does."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers import host, moved

from pyidl import (
    Bidirectional,
    Checkpoint,
    EarlyStopping,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    ImplicitTransformerBlock,
    Linear,
    Residual,
    Sequential,
    activations,
    fit,
    losses,
    optim,
)
from pyidl.arrays.backend import from_host
from pyidl.errors import FileFormatError, InputError
from pyidl.io import read_npz, write_npz
from pyidl.solvers import Auto, Jacobi, Phantom, Solver
from pyidl.training import ridge

LOOSE = (1e-3, 1e-2)
RNG = np.random.default_rng(0)
ROWS, SEQUENCES = RNG.normal(size=(40, 4)), RNG.normal(size=(12, 5, 4))


@dataclass(frozen=True)
class Spy(Solver):
    """A solver that notes for how many samples, and at which tolerance, it was called."""

    inner: Solver = field(default_factory=Auto)
    seen: list = field(default_factory=list)

    def __call__(self, problem, x0=None, *, trace=False):
        self.seen.append((problem.like.shape[0], self.inner.tol))
        return self.inner(problem, x0, trace=trace)

    def at(self, tol):
        return replace(self, inner=self.inner.at(tol))


def rnn(seed=0, **options):
    return ImplicitRNN(4, 4, 5, 8, return_sequences=True, rng=seed, **options)


def sequential(**options):
    implicit = ImplicitModel(6, 4, 8, rng=1, **options)
    return Sequential(Linear(4, 6, rng=0), activations.tanh, implicit)


def nested(**options):
    first, second = (ImplicitModel(4, 4, n, rng=n, **options) for n in (8, 9))
    return Sequential(Residual(first), Sequential(second))


def bidirectional(**options):
    return Sequential(Bidirectional(rnn(0, **options), rnn(1, **options)), Linear(8, 4, rng=2))


MODELS = {
    "implicit": lambda **o: ImplicitModel(4, 4, 12, rng=0, **o),
    "low rank": lambda **o: ImplicitModel(4, 4, 12, rank=3, rng=0, **o),
    "rnn": lambda **o: rnn(warm_start=True, **o),
    "sequential": sequential,
    "nested": nested,
    "bidirectional": bidirectional,
    "attention": lambda **o: ImplicitAttentionHead(4, 4, block_size=5, rng=0, **o),
    "transformer": lambda **o: ImplicitTransformerBlock(4, 2, block_size=5, rng=0, **o),
}
SEQUENTIAL = ("rnn", "bidirectional", "attention", "transformer")


def data_of(name):
    U = SEQUENCES if name in SEQUENTIAL else ROWS
    return U, np.sin(2 * U)


def train(model, data, epochs=3, optimizer=None, **options):
    settings = {"loss": losses.mse, "batch_size": 8, "rng": 0, "verbose": 0, "tol": None} | options
    return fit(model, data, optimizer=optimizer or optim.Adam(1e-2), epochs=epochs, **settings)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(host(one[key]), host(other[key])) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_every_solve_of_training_and_no_other_has_the_tolerances(name):
    U, T = data_of(name)
    forward, adjoint = Spy(), Spy()
    model = MODELS[name](forward=forward, adjoint=adjoint)
    train(model, (U, T), epochs=1, batch_size=4, validation=(U[:3], T[:3]), tol=LOOSE)
    assert set(forward.seen) == {(4, LOOSE[0]), (3, None)}
    assert set(adjoint.seen) == {(4, LOOSE[1])}
    forward.seen.clear()
    model.predict(U[:2])
    assert set(forward.seen) == {(2, None)}


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_as_a_model_with_these_tolerances_does(name):
    data, options = data_of(name), {"penalty": ridge(1e-2)}
    model, loose, tight = MODELS[name](), MODELS[name]().with_tol(LOOSE), MODELS[name]()
    histories = [train(model, data, tol=LOOSE, **options), train(loose, data, **options)]
    train(tight, data, **options)
    assert equal(model.params, loose.params)
    assert not equal(model.params, tight.params)
    assert histories[0]["loss"].tolist() == histories[1]["loss"].tolist()
    assert np.array_equal(model.predict(data[0]), loose.with_tol(None).predict(data[0]))
    assert not np.array_equal(model.predict(data[0]), loose.predict(data[0]))


def test_evaluation_keeps_the_tolerances_of_the_model():
    U, T = data_of("implicit")
    model = ImplicitModel(4, 4, 12, rng=0).with_tol((1e-4, None))
    # slow enough for the tolerance to show
    model.params = {
        **model.params,
        "A": np.full((12, 12), 0.9 / 12),
    }
    history = train(model, (U, T), tol=LOOSE, batch_size=None, validation=(U, T))
    # a mean over batches is rounded otherwise
    own = pytest.approx(float(losses.mse(model.predict(U), T)[0]), rel=1e-7)
    assert history["val_loss"][-1] == own
    assert float(losses.mse(model.with_tol(1e-3).predict(U), T)[0]) != own
    assert float(losses.mse(model.with_tol(None).predict(U), T)[0]) != own


def test_training_on_another_library(xp):
    reference = Sequential(Linear(4, 6, rng=0), ImplicitModel(6, 4, 8, rng=1)).astype("float64")
    model, own = moved(reference, xp), moved(reference, xp)
    (U, T), tol = data_of("implicit"), (1e-9, 1e-8)
    there = from_host(xp, U), from_host(xp, T)
    history = train(model, there, tol=tol)
    train(reference, (U, T), tol=tol)
    for key, a in model.params.items():
        np.testing.assert_allclose(host(a), reference.params[key], rtol=1e-4, atol=1e-6)
    assert np.all(history["steps"] < train(own, there)["steps"])


@pytest.mark.parametrize(("given", "pair"), [(1e-3, (1e-3, 1e-3)), (LOOSE, LOOSE)])
def test_a_layer_has_one_tolerance_or_two(given, pair):
    for name in ("implicit", "rnn", "attention"):
        layer = MODELS[name](forward=Jacobi()).with_tol(given)
        assert (layer.forward, layer.adjoint) == (Jacobi(pair[0]), Auto(pair[1]))
        layer = layer.with_tol((None, 1e-4))
        assert (layer.forward, layer.adjoint) == (Jacobi(), Auto(1e-4))
    for wrong in ((1e-3,), (1e-3, 1e-3, 1e-3), (1e-3, "a"), (2.0, 1e-3)):
        with pytest.raises(InputError, match="tol is"):
            MODELS["sequential"]().with_tol(wrong)


def test_without_tolerances_the_model_itself_is_trained():
    model, same = MODELS["implicit"](), []

    def penalty(params):
        same.append(params is model.params)
        return 0.0, {}

    assert train(model, data_of("implicit"), penalty=penalty).tol is None
    assert all(same)
    train(model, data_of("implicit"), penalty=penalty, tol=LOOSE)
    assert not same[-1]


def test_a_layer_of_ones_own_without_tolerances_is_trained_with_its_own():
    class Own(ImplicitModel):
        def with_tol(self, tol):
            return self

    U, T = data_of("implicit")
    own, model = Own(4, 4, 12, rng=0), ImplicitModel(4, 4, 12, rng=0)
    train(own, (U, T), tol=LOOSE)
    train(model, (U, T))
    assert equal(own.params, model.params)
    other = ImplicitModel(4, 4, 8, rng=1)
    train(Sequential(own, other), (U, T), tol=LOOSE)
    mixed = Sequential(model, ImplicitModel(4, 4, 8, rng=1).with_tol(LOOSE))
    train(mixed, (U, T))
    assert equal(own.params, model.params)
    assert equal(other.params, mixed.layers[1].params)


def test_a_tolerance_must_not_change_the_class():
    class Wrong(ImplicitModel):
        def with_tol(self, tol):
            return None

    with pytest.raises(InputError, match=r"model\.with_tol\(tol\) is None; it returns a layer"):
        train(Wrong(4, 4, 12, rng=0), data_of("implicit"), tol=LOOSE)


def test_a_biased_adjoint_has_no_tolerance():
    data = data_of("implicit")
    model = ImplicitModel(4, 4, 12, adjoint=Phantom(3), rng=0)
    same = model.replace(forward=Auto(LOOSE[0]))
    train(model, data, tol=LOOSE)
    train(same, data)
    assert equal(model.params, same.params)


# --------------------------------------------------------------------------------- callbacks, files


def test_callbacks_see_the_model_and_may_change_it():
    data = data_of("rnn")
    model, loose = MODELS["rnn"](), MODELS["rnn"]().with_tol(LOOSE)
    seen = []

    def shrink(run):
        seen.append((run.model, run.tol, run.model.params["A"]))
        run.model.params = {key: a / 2 for key, a in run.model.params.items()}

    train(model, data, tol=LOOSE, callbacks=[shrink])
    shrunk = len(seen)
    train(loose, data, callbacks=[shrink])
    assert all(found is model and tol == LOOSE for found, tol, _ in seen[:shrunk])
    for (_, _, one), (_, _, other) in zip(seen[:shrunk], seen[shrunk:], strict=True):
        assert np.array_equal(one, other)
    assert equal(model.params, loose.params)


def test_early_stopping_restores_the_model():
    U, T = data_of("implicit")
    model, seen = MODELS["implicit"](), []
    history = train(
        model,
        (U, T),
        epochs=200,
        optimizer=optim.Adam(optim.Piecewise((40,), (0.01, 0.5))),  # then far too large
        validation=(U, T),
        tol=LOOSE,
        callbacks=[lambda run: seen.append(dict(run.model.params)), EarlyStopping(patience=2)],
    )
    best = int(np.argmin(history["val_loss"]))
    assert len(history) == best + 3 < 200
    assert equal(model.params, seen[best])


@pytest.mark.parametrize("name", ["implicit", "bidirectional", "transformer"])
def test_resume_is_exact_to_the_last_bit(name, tmp_path):
    data, path = data_of(name), tmp_path / "run.npz"
    whole, broken, fresh = (MODELS[name]() for _ in range(3))
    options = {"epochs": 5, "tol": LOOSE, "validation": data}
    full = train(whole, data, **options)
    train(broken, data, callbacks=[Checkpoint(path), lambda run: run.epoch == 3], **options)
    resumed = train(fresh, data, resume=path, **options)
    assert equal(whole.params, fresh.params)
    assert full.tol == resumed.tol == LOOSE
    for key in ("loss", "val_loss", "steps"):
        assert np.array_equal(full[key], resumed[key])


def test_a_run_goes_on_at_its_tolerances_only(tmp_path):
    data, (path, old) = data_of("implicit"), (tmp_path / "run.npz", tmp_path / "old.npz")
    train(MODELS["implicit"](), data, epochs=1, tol=LOOSE, callbacks=[Checkpoint(path)])
    for tol, words in ((None, "None"), ((1e-3, 1e-3), r"\(0.001, 0.001\)")):
        model, adam = MODELS["implicit"](), optim.Adam(1e-2)
        before = model.params
        cure = rf"tol = \(0.001, 0.01\), this run uses {words}; go on with tol=\(0.001, 0.01\)"
        with pytest.raises(InputError, match=cure):
            train(model, data, optimizer=adam, tol=tol, resume=path)
        assert model.params is before
        assert adam.count == 0
    train(MODELS["implicit"](), data, epochs=1, callbacks=[Checkpoint(old)])
    header, arrays = read_npz(old)
    assert header.pop("tol") is None
    write_npz(old, arrays, header)  # as it was before there were tolerances of training
    assert len(train(MODELS["implicit"](), data, resume=old)) == 3
    with pytest.raises(InputError, match="tol = None, this run uses"):
        train(MODELS["implicit"](), data, tol=LOOSE, resume=old)
    for wrong in (3, "ab"):
        write_npz(old, arrays, header | {"tol": wrong})
        with pytest.raises(FileFormatError, match="not a complete checkpoint"):
            train(MODELS["implicit"](), data, resume=old)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, InputError])
@pytest.mark.parametrize("name", ["implicit", "bidirectional"])
def test_after_an_error_the_model_has_the_last_completed_step(name, error):
    """And the optimiser has taken as many."""
    model, adam, seen = MODELS[name](), optim.Adam(1e-2), []
    per_epoch = -(-len(data_of(name)[0]) // 8)

    def penalty(params):
        seen.append(dict(params))
        if len(seen) == per_epoch + 2:
            raise error("enough")
        return 0.0, {}

    with pytest.raises(error):
        train(model, data_of(name), optimizer=adam, tol=LOOSE, penalty=penalty)
    assert equal(model.params, seen[-1])
    assert not equal(model.params, seen[-2])
    assert adam.count == len(seen) - 1
    assert model.predict(data_of(name)[0]).shape == data_of(name)[1].shape


def test_a_step_that_fails_is_no_step(monkeypatch):
    """And nothing is lost, although no memory is left for what is read from parameters."""
    model, adam, seen = MODELS["implicit"](), optim.Adam(1e-2), []

    def full(*arguments):
        raise MemoryError

    def penalty(params):
        seen.append(dict(params))
        if len(seen) == 3:
            monkeypatch.setattr(ImplicitModel, "_read", full)
        return 0.0, {}

    with pytest.raises(MemoryError):
        train(model, data_of("implicit"), optimizer=adam, tol=LOOSE, penalty=penalty)
    assert equal(model.params, seen[2])
    assert adam.count == 2


@pytest.mark.parametrize("name", ["implicit", "nested"])
def test_what_is_refused_in_the_first_epoch_changes_nothing(name):
    model, adam, steps = MODELS[name](), optim.Adam(1e-2), []
    rng = np.random.default_rng(0)
    before, bits = dict(model.params), rng.bit_generator.state

    def loss(Y, target):
        steps.append(adam.count)
        if len(steps) == 4:
            raise InputError("enough")
        return losses.mse(Y, target)

    with pytest.raises(InputError, match="enough"):
        train(model, data_of(name), optimizer=adam, tol=LOOSE, loss=loss, rng=rng)
    assert steps[-1] == 3
    assert equal(model.params, before)
    assert adam.count == 0
    assert rng.bit_generator.state == bits


# ----------------------------------------------------------------------------------------- the door

WRONG = [1e-3, "loose", (), (1e-3,), (1e-3, 1e-3, 1e-3), (1e-3, None), (1e-3, "a"), (True, 1e-3)]
WRONG += [(0.0, 1e-3), (1e-3, 1.0), (-1e-3, 1e-3), (float("nan"), 1e-3), {1e-3: 1, 1e-2: 2}]


@pytest.mark.parametrize("tol", WRONG, ids=str)
def test_what_is_no_pair_of_tolerances_is_refused(tol):
    with pytest.raises(InputError, match=r"tol is .*; a pair \(forward, adjoint\) of numbers"):
        train(MODELS["implicit"](), "not looked at", tol=tol)


@pytest.mark.parametrize("tol", [(1e-8, 1e-3), (1e-3, 1e-8)])
def test_what_the_dtype_cannot_resolve_is_refused(tol):
    model = MODELS["nested"]()
    with pytest.raises(InputError, match=r"tol = 1e-08 is below 9\.54e-07.*dtype='float64'"):
        train(model, "not looked at", tol=tol)
    history = train(model.astype("float64"), data_of("nested"), epochs=1, tol=list(tol))
    assert history.tol == tol


def test_numbers_of_any_kind_are_tolerances():
    tol = (np.float32(1e-3), np.array(1e-2))
    history = train(MODELS["implicit"](), data_of("implicit"), epochs=1, tol=tol)
    assert [type(value) for value in history.tol] == [float, float]
    assert len(train(Sequential(activations.tanh), data_of("implicit"), epochs=1, tol=LOOSE)) == 1
