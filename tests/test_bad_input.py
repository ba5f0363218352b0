"""Every public door, each argument in turn replaced by what it is not.

It is refused by name, or possible by its annotation.
"""

import functools
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import pyidl
from pyidl import (
    Bidirectional,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Sequential,
    activations,
    attention,
    compose,
    equilibrium,
    errors,
    losses,
    metrics,
    optim,
    plotting,
    robustness,
    sim,
    solvers,
    testing,
    training,
    wellposed,
)
from pyidl.layers import initializers
from pyidl.matrices import pattern

ROOT = Path(__file__).parent.parent
U, S, T = np.ones((4, 2)), np.ones((2, 3, 2)), np.ones((2, 3, 4))
RELU, BALL, A = activations.relu, wellposed.InfNorm(0.9), {"A": 0.1 * np.eye(3)}
RNG = np.random.default_rng(0)

MODEL = ImplicitModel(2, 2, 3, activation=activations.tanh, rng=0, dtype="float64")
RNN, RNN2 = (ImplicitRNN(2, 2, 2, 2, rng=0, dtype="float64") for _ in range(2))
NET = Sequential(Linear(2, 3, rng=0, dtype="float64"), RELU, Linear(3, 2, rng=1, dtype="float64"))
HEAD = ImplicitAttentionHead(4, 2, block_size=5, rng=0, dtype="float64")
STATES = sim.collect_states(NET, U)
LABELS, BOUNDED = np.zeros(4, int), pyidl.WorstCase(MODEL, 0.1)
SOLUTION = MODEL.equilibrium(U, trace=True)
HISTORY = training.History(({"epoch": 1, "loss": 1.0, "seconds": 0.1},))
FIT = {
    "model": MODEL,
    "data": (U, U),
    "loss": losses.mse,
    "optimizer": optim.SGD(0.1),
    "epochs": 1,
    "verbose": 0,
}


@functools.wraps(sim.iter_states)
def states(*args, **options):
    return list(sim.iter_states(*args, **options))


def every(room, names, **valid):
    return {f"{room.__name__}.{name}": (getattr(room, name), valid) for name in names.split()}


# A door, and arguments with which it opens.
DOORS = {
    **every(
        pyidl, "AttentionBall BoundedSoftmax EarlyStopping InfNorm KernelAttention Pattern Softmax"
    ),
    **every(pyidl, "Residual Sequential", layers=RELU),
    **every(pyidl, "ImplicitAttentionHead", embed_dim=4, head_dim=2, block_size=5),
    **every(pyidl, "ImplicitModel", input_dim=2, output_dim=2, hidden_dim=3),
    **every(pyidl, "ImplicitRNN", input_dim=2, output_dim=2, hidden_dim=3, implicit_hidden_dim=3),
    **every(pyidl, "ImplicitTransformerBlock", embed_dim=4, num_heads=2, block_size=5),
    "WorstCase": (pyidl.WorstCase, {"model": MODEL, "eps": 0.1}),
    "Bidirectional": (Bidirectional, {"ahead": RNN, "back": RNN2}),
    "Checkpoint": (pyidl.Checkpoint, {"path": "run.npz"}),
    "Dropout": (pyidl.Dropout, {"rate": 0.5}),
    "Embedding": (pyidl.Embedding, {"num_tokens": 3, "embed_dim": 2}),
    "LayerNorm": (pyidl.LayerNorm, {"dim": 2}),
    "Linear": (Linear, {"input_dim": 2, "output_dim": 2}),
    "Pointwise": (pyidl.Pointwise, {"activation": RELU}),
    "PositionEmbedding": (pyidl.PositionEmbedding, {"block_size": 3, "embed_dim": 2}),
    "certify_attention": (pyidl.certify_attention, {"head": HEAD, "U": T}),
    "certify_solution": (pyidl.certify_solution, {"model": MODEL, "U": U}),
    "fit": (pyidl.fit, FIT),
    "fit apart": (pyidl.fit, {**FIT, "data": U, "targets": U, "weights": U[:, 0]}),
    "fused": (pyidl.fused, {"function": abs}),
    "load": (pyidl.load, {"path": "model.npz"}),
    "load_notes": (pyidl.load_notes, {"path": "model.npz"}),
    "readout": (pyidl.readout, {"model": MODEL.replace(), "data": (U, U)}),
    "readout apart": (
        pyidl.readout,
        {"model": MODEL.replace(), "data": U, "targets": U, "weights": U[:, 0]},
    ),
    "rescale": (pyidl.rescale, {"model": ImplicitModel(2, 2, 3, rng=0)}),
    "save": (pyidl.save, {"path": "model.npz", "model": MODEL}),
    "to_device": (pyidl.to_device, {"a": U, "device": "cpu"}),
    # what a layer does
    "model(U)": (MODEL, {"U": U}),
    "model.predict": (MODEL.predict, {"U": U}),
    "model.equilibrium": (MODEL.equilibrium, {"U": U}),
    "model.to": (MODEL.to, {"device": "cpu"}),
    "model.astype": (MODEL.astype, {"dtype": "float32"}),
    "model.with_tol": (MODEL.with_tol, {"tol": 1e-3}),
    "model.sparsify": (MODEL.sparsify, {}),
    "model.certificate": (MODEL.certificate, {}),
    "model.summary": (MODEL.summary, {}),
    "net.summary": (NET.summary, {}),
    "model.project": (MODEL.project, {"params": MODEL.params}),
    "model.params": (
        lambda params: setattr(MODEL.replace(), "params", params),
        {"params": MODEL.params},
    ),
    "pullback": (MODEL(U)[1], {"dY": U}),
    "net(U)": (NET, {"U": U}),
    "net.predict": (NET.predict, {"U": U}),
    "bounded(U)": (BOUNDED, {"U": U, "labels": LABELS}),
    "bounded.predict": (BOUNDED.predict, {"U": U, "labels": LABELS}),
    "rnn(U)": (RNN, {"U": S}),
    "rnn.predict": (RNN.predict, {"U": S}),
    "head(U)": (HEAD, {"U": T}),
    "head.predict": (HEAD.predict, {"U": T}),
    "head.equilibrium": (HEAD.equilibrium, {"U": T}),
    "head.certificate": (HEAD.certificate, {}),
    "head.start": (HEAD.start, {"m": 2}),
    "head.step": (HEAD.step, {"u": np.ones((2, 4)), "cache": HEAD.start(2)}),
    "sequential.step": (Sequential(Linear(2, 2, rng=0)).step, {"u": U, "cache": (None,)}),
    "position.step": (pyidl.PositionEmbedding(3, 2, rng=0).step, {"u": U, "cache": 0}),
    # rooms
    "Activation": (
        activations.Activation,
        {"name": "x", "phi": np.tanh, "dphi": np.cosh, "lipschitz": 1.0},
    ),
    "Blocks": (activations.Blocks, {"blocks": (RELU, 2)}),
    "VectorActivation": (
        activations.VectorActivation,
        {"name": "x", "phi": np.tanh, "vjp": np.add, "lipschitz": 1.0},
    ),
    **every(activations, "layer_norm leaky_relu"),
    "named": (activations.named, {"name": "relu"}),
    "Mask": (attention.maps.Mask, {}),
    **every(
        wellposed,
        "MatrixMeasure Monotone PerronFrobenius SpectralNorm StrictlyTriangular Unconstrained",
    ),
    "LipschitzBound": (wellposed.LipschitzBound, {"gamma": 1.0}),
    **{
        f"LipschitzBound.{does}": (
            getattr(wellposed.LipschitzBound(1.0), does),
            {"params": MODEL.params, "activation": RELU},
        )
        for does in ("project", "contains", "certificate")
    },
    "BlockTriangular": (wellposed.BlockTriangular, {"blocks": (1, 2), "inner": BALL}),
    "optimal_weights": (wellposed.optimal_weights, {"params": A, "activation": RELU}),
    "strongest": (wellposed.strongest, {"params": A, "activation": RELU, "constraint": BALL}),
    **{
        f"{type(ball).__name__}.{does}": (getattr(ball, does), {"params": A, "activation": RELU})
        for ball in (
            BALL,
            *(
                getattr(wellposed, name)()
                for name in ("MatrixMeasure", "Monotone", "PerronFrobenius", "SpectralNorm")
            ),
        )
        for does in ("project", "contains", "certificate")
    },
    **every(
        solvers,
        "Anderson Auto Direct ForwardBackward GMRES Jacobi JacobianFree Neumann Newton "
        "PeacemanRachford Phantom Picard",
    ),
    "Fallback": (solvers.Fallback, {"first": solvers.Picard(), "then": solvers.Direct()}),
    "Substitution": (solvers.Substitution, {}),
    **every(sim, "ADMM CoordinateDescent FISTA LeastSquares NoPenalty ReducedRank Ridge"),
    **every(sim, "ElasticNet L1", lam=0.1),
    "ReverseHuber": (sim.ReverseHuber, {"price": 0.1, "ridge": 0.1}),
    "Feedforward": (
        sim.Feedforward,
        {"layers": [(np.ones((3, 2)), np.ones(3)), (np.ones((2, 3)), None)], "activation": RELU},
    ),
    "States": (
        sim.States,
        {name: getattr(STATES, name) for name in ("U", "Z", "X", "Y", "activation")},
    ),
    "Moments.of": (sim.Moments.of, {"inputs": U, "targets": U}),
    "accumulate": (sim.accumulate, {"chunks": [STATES]}),
    "collect_states": (sim.collect_states, {"network": NET, "U": U}),
    "exact_model": (sim.exact_model, {"network": NET}),
    "sim.fit": (sim.fit, {"network": NET, "U": U}),
    "iter_states": (states, {"network": NET, "U": U}),
    "map_rows": (sim.map_rows, {"function": str, "blocks": [1]}),
    "path": (sim.path, {"network": STATES, "penalties": [sim.L1(0.1)], "score": lambda model: 1.0}),
    "PenaltyPath.best": (sim.path(STATES, [sim.L1(0.1)], lambda model: 1.0).best, {}),
    "ridge": (training.ridge, {"alpha": 0.1}),
    **every(losses, "binary_cross_entropy huber mae mse", Y=U, target=U),
    "cross_entropy": (losses.cross_entropy, {"Y": U, "target": np.zeros(4, int)}),
    "certified": (losses.certified, {"mix": 0.5}),
    "certified loss": (losses.certified(0.5), {"Y": np.ones((4, 2, 2)), "target": LABELS}),
    **every(metrics, "certified_accuracy clean_accuracy", Y=np.ones((4, 2, 2)), target=LABELS),
    "accuracy": (metrics.accuracy, {"Y": U, "target": np.zeros(4, int)}),
    **every(metrics, "f1 log_loss", Y=U, target=np.zeros(4, int)),
    "mae of metrics": (metrics.mae, {"Y": U, "target": U}),
    "top_k": (metrics.top_k, {"k": 1}),
    "r2": (metrics.r2, {"Y": U, "target": np.arange(8.0).reshape(4, 2)}),
    **every(optim, "Adam AdamW"),
    "SGD": (optim.SGD, {"learning_rate": 0.1}),
    "step": (optim.SGD(0.1).step, {"params": A, "grads": A}),
    "Constant": (optim.Constant, {"value": 0.1}),
    "Cosine": (optim.Cosine, {"peak": 1.0, "steps": 10}),
    "Exponential": (optim.Exponential, {"initial": 1.0, "rate": 0.5}),
    "Piecewise": (optim.Piecewise, {"boundaries": (1,), "values": (1.0, 0.1)}),
    "Ramp": (optim.Ramp, {"first": 0.0, "last": 1.0, "steps": 10}),
    **every(initializers, "glorot_uniform he_normal lecun_normal", rng=RNG, rows=2, columns=2),
    **every(initializers, "orthogonal uniform_contraction", rng=RNG, n=2),
    **every(compose, "cascade parallel concatenate add", models=MODEL),
    **every(compose, "Interconnection interconnect", parts=(MODEL,)),
    "affine_before": (compose.affine_before, {"model": MODEL, "P": np.eye(2)}),
    "affine_after": (compose.affine_after, {"model": MODEL, "Q": np.eye(2)}),
    "compose.to_implicit": (compose.to_implicit, {"network": NET}),
    "feedback": (compose.feedback, {"model": MODEL, "K": 0.1 * np.eye(2)}),
    "gradients": (compose.Interconnection((MODEL,)).gradients, {"grads": MODEL.params}),
    "bounds": (robustness.bounds, {"model": MODEL, "lower": U, "upper": U}),
    "margins": (
        robustness.margins,
        {"model": MODEL, "lower": U, "upper": U, "labels": np.zeros(4, int)},
    ),
    "compress": (robustness.compress, {"model": MODEL, "U": U}),
    "compress boxes": (robustness.compress, {"model": MODEL, "lower": U, "upper": U}),
    "robustness.certified": (
        robustness.certified,
        {"model": MODEL, "U": U, "labels": np.zeros(4, int), "eps": 0.1},
    ),
    **every(robustness, "fgsm pgd", model=MODEL, U=U, labels=LABELS, eps=0.1),
    "sensitivity": (robustness.sensitivity, {"model": MODEL}),
    "jacobian": (robustness.jacobian, {"model": MODEL, "U": U}),
    "robustness.lipschitz": (robustness.lipschitz, {"model": MODEL}),
    **every(robustness, "SensitivityPenalty LipschitzPenalty", model=MODEL, weight=1.0),
    "pictures.sensitivity": (robustness.pictures.sensitivity, {"S": U}),
    "pictures.bounds": (robustness.pictures.bounds, {"lower": U, "upper": U}),
    "pictures.curve": (robustness.pictures.curve, {"eps": [0.1], "certified": [0.5]}),
    "plotting.attention": (plotting.attention, {"weights": U}),
    "rates": (plotting.rates, {"solution": SOLUTION, "certificate": MODEL.certificate()}),
    "residuals": (plotting.residuals, {"solutions": SOLUTION}),
    "sparsity": (plotting.sparsity, {"A": np.eye(3)}),
    "spectrum": (plotting.spectrum, {"model": MODEL}),
    "training": (plotting.training, {"history": HISTORY}),
    "check_activation": (testing.check_activation, {"activation": RELU}),
    "check_pullback": (testing.check_pullback, {"layer": MODEL, "U": U}),
    "equilibrium": (equilibrium.equilibrium, {"cell": MODEL._cell(), "u": U}),
    "levels": (pattern.levels, {"support": np.eye(3, dtype=bool)}),
    "Certificate.steps": (MODEL.certificate().steps, {"tol": 1e-3, "first": 1.0}),
    "entrywise": (MODEL.certificate().entrywise, {"residual": np.ones((2, 3))}),
}

# What pyidl returns, or is subclassed; and what is called in the middle of a
# computation, with what has been checked.
NO_DOORS = """
AttentionCertificate History ImplicitRNNCell LocalCertificate Pullback Recurrence Attended
Bounds Compression Solution Status Moments PenaltyPath Problem RowProblem
Report Rows SIMResult Solved Run ReadOut ActivationReport
GradientReport EquilibriumPullback Certificate Norm Groups AffineCell
Call Explicit check_widths
Layer Composite Attention Constraint Solver Iterative Advance Affine iterate
Penalty RowSolver Optimizer Schedule Cell FunctionCell
DEFAULT_ADJOINT DEFAULT_FORWARD phi phi_slope check_positive read_npz replacing write_npz to_numpy
"""
INSIDE = {
    "pyidl.errors",
    "pyidl.arrays.backend",
    "pyidl.arrays.batch",
    "pyidl.matrices.base",
    "pyidl.matrices.growth",
    "pyidl.matrices.read",
    "pyidl.wellposed.projections",
}
# Whatever NumPy reads; ignored by the layers that draw nothing, as documented; the
# cell's own business.
FREE = {
    ("to_device", "a"),
    ("model(U)", "rng"),
    ("rnn(U)", "rng"),
    ("bounded(U)", "rng"),
    ("head(U)", "rng"),
    ("position.step", "on_fail"),
    ("equilibrium", "u"),
}

WRONG = {
    "str": "wrong",
    "None": None,
    "int": 3,
    "nan": float("nan"),
    "list": [1.5],
    "dict": {},
    "object": object(),
    "function": print,
}
FITS = {  # which annotations each of them, or a class, may be right for
    "str": r"\bstr\b|Iterable\[Any",
    "None": r"None|Rng|Tol",
    "int": r"int\b|float|Any|Array|Rng",
    "list": r"tuple|Sequence|Iterable|Any|Array",
    "dict": r"Mapping|dict|Params|Iterable",
    "function": r"Callable|Loss|Metric|Schedule|^Penalty",
    "class": r"Callable|Loss|Metric|Schedule|^Penalty",
}


def cases():
    for name, (door, valid) in DOORS.items():
        for argument in inspect.signature(door).parameters.values():
            if (name, argument.name) not in FREE:
                yield pytest.param(door, valid, argument, id=f"{name}-{argument.name}")


@pytest.mark.filterwarnings("ignore::pyidl.errors.WellPosednessWarning")
@pytest.mark.parametrize(("door", "valid", "argument"), list(cases()))
def test_what_an_argument_is_not(door, valid, argument, tmp_path, monkeypatch):
    needs = (
        "dask"
        if argument.name == "scheduler"
        else "matplotlib"
        if getattr(door, "__module__", "") in ("pyidl.plotting", "pyidl.robustness.pictures")
        else "numpy"
    )
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    monkeypatch.chdir(tmp_path)
    pyidl.save("model.npz", MODEL)
    for kind, value in {**WRONG, "class": type(valid.get(argument.name, {}))}.items():
        fits = bool(re.search(FITS.get(kind, "^$"), str(argument.annotation))) or (
            value is None and argument.default is None
        )
        if callable(value) and (fits or argument.name == "scheduler"):
            continue  # what it does when it is called is its own
        given = {**valid, argument.name: value}
        several = [given.pop(argument.name)] if argument.kind is argument.VAR_POSITIONAL else []
        message = None
        try:
            door(*several, **given)
        except errors.InputError as error:
            message = str(error)
        except OSError:
            assert fits and argument.name in ("path", "resume")  # noqa: PT018
            continue
        assert message or fits, f"{argument.name} = {value!r} is accepted"
        assert message is None or re.search(argument.name.rstrip("s"), message, re.IGNORECASE), (
            f"{argument.name} is not named: {message}"
        )
        assert message is None or re.search("[;,:] ", message), message


def test_every_public_name_has_its_case():
    rooms = [
        "pyidl",
        *re.findall(r"^   (pyidl\.\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE),
    ]
    known = {id(inspect.unwrap(door)) for door, _ in DOORS.values()}
    for room in set(rooms) - INSIDE - {"pyidl.sklearn"}:
        module = importlib.import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            error = inspect.isclass(value) and issubclass(value, Exception)
            if callable(value) and not error and not isinstance(value, activations.Activation):
                assert name in NO_DOORS.split() or id(value) in known, (
                    f"{room}.{name} has no case above"
                )
