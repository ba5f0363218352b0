"""Certified training by `fit`: schedules, checkpoints, files, copies."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

import pyidl
from pyidl import ImplicitModel, Linear, Sequential, WorstCase, losses, metrics, optim
from pyidl.errors import InputError
from pyidl.layers.base import Call
from pyidl.layers.dropout import Dropout
from pyidl.robustness import worst_case
from pyidl.wellposed import MatrixMeasure

CLIP, STEPS, EPOCHS = (0.0, 1.0), 5, 6
RAMP = optim.Ramp(0.0, 0.05, 15)


def digits():
    found = load_digits()
    return (found.data[:320] / 16).astype(np.float32), found.target[:320]


def layer(eps=RAMP, seed=0):
    constraint = MatrixMeasure(0.95)
    return WorstCase(ImplicitModel(64, 10, 20, constraint=constraint, rng=seed), eps, clip=CLIP)


def trained(model, epochs=EPOCHS, mix=None, **options):
    U, t = digits()
    mix = optim.Ramp(0.0, 0.5, 15) if mix is None else mix
    return pyidl.fit(
        model,
        ((U, t), t),
        loss=losses.certified(mix),
        optimizer=optim.Adam(optim.Ramp(2e-2, 5e-3, 30)),
        epochs=epochs,
        rng=0,
        verbose=0,
        **options,
    )


def test_training_certifies_what_plain_training_does_not():
    (U, t), robust, plain = digits(), layer(), layer(0.05)
    shares = [metrics.clean_accuracy, metrics.certified_accuracy]
    history = trained(robust, 12, metrics=shares)
    pyidl.fit(
        plain.model,
        U,
        t,
        loss="cross_entropy",
        optimizer=optim.Adam(2e-2),
        epochs=12,
        rng=0,
        verbose=0,
    )
    Y, Y2 = (model.predict(U, t) for model in (robust, plain))
    assert metrics.clean_accuracy(Y, t) > 0.9
    assert metrics.certified_accuracy(Y, t) > metrics.certified_accuracy(Y2, t) + 0.5
    assert history["certified_accuracy"][-1] == metrics.certified_accuracy(Y, t)
    assert robust.model.constraint.contains(robust.model.params, robust.model.activation)
    assert robust.certificate().proven
    assert not np.any(history["failed"])


def test_a_step_has_the_values_of_its_number():
    """By hand: 5 steps an epoch, each with eps and mix of its number."""
    (U, t), seen = digits(), []

    def eps(k):
        seen.append(k)
        return 0.001 * min(k, 7)

    one, two = layer(eps), layer(0.0)
    seen.clear()
    history = trained(one, 2)
    assert [k for k in seen if k < 10**9] == list(range(10))
    adam, rng = optim.Adam(optim.Ramp(2e-2, 5e-3, 30)), np.random.default_rng(0)
    mix = optim.Ramp(0.0, 0.5, 15)
    for epoch in range(2):
        order = rng.permutation(len(t))
        for i in range(5):
            k, rows = 5 * epoch + i, order[64 * i : 64 * i + 64]
            now = two.replace(eps=0.001 * min(k, 7)).with_tol((1e-4, 1e-3))
            Y, pull = now(U[rows], t[rows])
            _, dY = losses.certified(mix(k))(Y, t[rows])
            two.params = two.project(adam.step(two.params, pull(dY, inputs=False)[1]))
    assert all(np.array_equal(a, two.params[key]) for key, a in one.params.items())
    assert len(history) == 2


def test_outside_of_training_schedules_have_ended():
    (U, t), model = digits(), layer()
    last = model.replace(eps=0.05)
    trained(model, 1, validation=((U, t), t))
    last.params = model.params
    assert np.array_equal(model.predict(U, t), last.predict(U, t))
    assert np.array_equal(model(U, t)[0], last(U, t)[0])
    Y, loss = model(U, t)[0], losses.certified(optim.Ramp(0.0, 0.5, 15))
    assert float(loss(Y, t)[0]) == float(losses.certified(0.5)(Y, t)[0])
    wide = model.replace(eps=lambda k: np.float64(0.05))  # which would widen float32
    assert np.array_equal(wide.predict(U, t), last.predict(U, t))
    assert wide.predict(U, t).dtype == np.float32


def test_a_run_goes_on_to_the_last_bit(tmp_path):
    path, whole, first, second = tmp_path / "run.npz", layer(), layer(), layer(seed=1)
    expected = trained(whole)
    trained(first, 2, callbacks=[pyidl.Checkpoint(path)])  # in the middle of both ramps
    history = trained(second, resume=path)
    assert list(history["loss"]) == list(expected["loss"])
    assert all(np.array_equal(a, second.params[key]) for key, a in whole.params.items())


def test_schedules_and_clip_are_in_the_file(tmp_path):
    (U, t), path = digits(), tmp_path / "model.npz"
    for eps in (0.03, RAMP, optim.Cosine(0.1, 10, final=0.05)):
        model = layer(eps)
        pyidl.save(path, model)
        other = pyidl.load(path)
        assert (type(other), other.eps, other.clip) == (WorstCase, model.eps, CLIP)
        assert np.array_equal(other.predict(U, t), model.predict(U, t))
    with pytest.raises(InputError, match="function cannot be saved"):
        pyidl.save(path, layer(lambda k: 0.1))


def test_copies():
    (U, t), model = digits(), layer()
    Y = model.predict(U, t)
    opened = pickle.loads(pickle.dumps(model))
    for other in (opened, copy.deepcopy(model), model.replace(), model.to("cpu")):
        assert other.model is not model.model
        assert (other.eps, other.clip) == (RAMP, CLIP)
        assert np.array_equal(other.predict(U, t), Y)
    wide = model.astype("float64")
    assert wide.predict(U, t).dtype == np.float64
    assert (wide.eps, wide.clip) == (RAMP, CLIP)
    other = model.replace(eps=0.2, clip=None)
    assert (other.eps, other.clip) == (0.2, None)
    assert model.with_tol(1e-3).model.forward.tol == 1e-3
    with pytest.raises(InputError, match="has no part radius"):
        model.replace(radius=1)
    assert model.at_step(3).model is model.model
    assert model.at_step(3).eps == RAMP(3)
    assert other.at_step(3) is other


def test_batches_and_weights():
    (U, t), model = digits(), layer(0.05)
    Y = model.predict(U, t)
    assert np.max(np.abs(model.predict(U, t, batch_size=50) - Y)) < 1e-3
    w = np.where(np.arange(len(t)) % 3 == 0, 0.0, 1.0)
    trained_on = pyidl.fit(
        model, ((U, t), t, w), loss=losses.certified(0.5), epochs=1, rng=0, verbose=0
    )
    assert trained_on["loss"][0] > 0


def test_a_layer_within_layers_is_told_the_step():
    class Fading(Dropout):
        def at_step(self, count):
            return Fading(0.5 / (1 + count))

    model = Sequential(Linear(3, 4, rng=0), Sequential(Fading(0.5), Linear(4, 2, rng=1)))
    later = model.at_step(4)
    assert later.parts["1"].parts["0"].rate == 0.1
    assert later.parts["0"] is model.parts["0"]
    plain = Sequential(Linear(3, 4, rng=0), Linear(4, 2, rng=1))
    assert plain.at_step(4) is plain


def test_samples_that_fail_are_left_out():
    """The mask of an error has an entry for each sample, not for each solve."""
    (U, t), model = digits(), layer(0.05)
    short = model.replace(model=model.model.replace(forward=pyidl.solvers.Picard(1e-6, max_iter=2)))
    with pytest.raises(pyidl.ConvergenceError) as caught:
        short(U, t)
    assert caught.value.converged.shape == t.shape
    _, pull = short(U, t, on_fail="ignore")
    assert pull.converged.shape == t.shape
    assert not pull.converged.all()
    assert len(pull.solutions) == 1


def test_calls_carry_labels_through_batches():
    call = worst_case._Labelled(None, "raise", own=np.eye(4))
    assert isinstance(call, Call)
    assert np.array_equal(call.of(slice(1, 3)).own, np.eye(4)[1:3])
