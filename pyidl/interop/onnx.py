r"""Layers as ONNX graphs: ``x <- phi(A x + z)`` as a `Loop`, and time as a `Scan`.

    Z = U B^T + b                               once; attention: Z = U S
    Loop: X <- phi(X A^T + Z)                   until max|f(x) - x| <= tol (1 + max|x|) for every sample, or a number of times;
                                                attention: X <- att(X R + Z)
    Y = X C^T + U D^T + d

ONNX has one trip count for a batch, so that all samples go on until the slowest has converged: a row may come out closer to its fixed
point in company than alone, by no more than the tolerance. What is returned is f at the point that was measured: if f contracts by kappa,
its residual is at most kappa times the measured one. There is one method, the plain iteration; it converges where a certificate rests
on it, and elsewhere perhaps. A graph cannot raise: a second output says for every sample whether it converged.

Opset 18 (ReduceMax with its axes as an input), IR version 8: what onnxruntime reads since 1.14.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from pyidl.backend import to_numpy
from pyidl.errors import InputError, WellPosednessWarning
from pyidl.interop.onnx_attention import attention_nodes
from pyidl.interop.onnx_graph import Graph, phi_node
from pyidl.io import replacing
from pyidl.layers import (
    Bidirectional,
    Dropout,
    Embedding,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    Layer,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)
from pyidl.solvers.base import check_limits

__all__ = ["export"]

OPSET, IR_VERSION = 18, 8
KNOWN = (
    Bidirectional, Dropout, Embedding, ImplicitAttentionHead, ImplicitModel, ImplicitRNN, LayerNorm, Linear, Pointwise, PositionEmbedding,
    Residual, Sequential,
)  # fmt: skip
TOL = {"float32": 1e-6, "float64": 1e-12}


def export(
    layer: Layer,
    path: str | Path | None = None,
    *,
    steps: int | None = None,
    tol: float | None = None,
    max_iter: int = 5000,
    lengths: bool = False,
) -> onnx.ModelProto:
    """Write a layer as an ONNX model.

    Its input is U, (m, p), or (m, T, p) for sequences, or tokens (m, T), int64, where an `Embedding` comes first, with any m and T; its
    outputs are Y and, without `steps`, `converged`: for every sample whether all of its solves reached the tolerance.

    Parameters
    ----------
    layer : Layer
        ImplicitModel, ImplicitRNN, ImplicitAttentionHead, Linear, Pointwise, LayerNorm, Embedding, PositionEmbedding, Dropout (which does
        nothing), or a Sequential, Residual or Bidirectional of those, such as a transformer block; on any device. Activations are the
        built-in ones, and `Blocks` of them.
    path : str or Path, optional
        Where the model is written, too.
    steps : int, optional
        Every solve takes exactly so many steps, written one after another, without a measurement: what suffices must be known.
    tol : float, optional
        Without `steps`: ``max|f(x) - x| <= tol (1 + max|x|)`` ends a solve, once it holds for all samples. Default 1e-6 for float32, 1e-12
        for float64. Solvers that the layer was given play no part.
    max_iter : int
        Without `steps`: the largest number of steps of a solve.
    lengths : bool
        For sequences: whether there is a second input `lengths`, int64, (m,): how many steps each sequence has.

    Returns
    -------
    onnx.ModelProto
        Checked by `onnx.checker`, shapes included.

    Raises
    ------
    InputError
        If there is no graph for a layer or an activation, or none in its dtype, or an argument is out of range.

    Warns
    -----
    WellPosednessWarning
        If nothing proves that the plain iteration converges for this layer.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> model = export(ImplicitModel(3, 2, 10, rng=0))
    >>> [v.name for v in model.graph.input], [v.name for v in model.graph.output]
    (['U'], ['Y', 'converged'])
    """
    if not isinstance(layer, Layer):
        raise InputError(f"export takes a Layer, got {type(layer).__name__}")
    check_limits(tol, max_iter)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or tol is not None):
        raise InputError(f"steps is {steps!r} and tol is {tol!r}; give a positive integer, or a tolerance, or neither")
    if lengths and not layer.takes_lengths:
        raise InputError(f"{type(layer).__name__} takes no lengths of sequences; leave lengths=True out")
    dtype = layer.dtype if layer.params else "float32"
    graph = Graph(np.dtype(dtype))
    stop = _Stop(steps, TOL[dtype] if tol is None else tol, max_iter)
    Y, excess = _layer(graph, layer, "U", stop, "lengths" if lengths else "")
    graph.op("Identity", Y, out="Y")
    (p, q), info = layer._widths(), helper.make_tensor_value_info
    tokens, sequences = _reads_tokens(layer), layer.takes_lengths or _reads_tokens(layer)
    rows = ["m", "T"] if sequences else ["m"]
    inputs = [info("U", onnx.TensorProto.INT64 if tokens else graph.type, rows if tokens else [*rows, p])]
    inputs += [info("lengths", onnx.TensorProto.INT64, ["m"])] if lengths else []
    outputs = [info("Y", graph.type, [*(rows if _keeps_steps(layer) else ["m"]), q])]
    if excess:
        graph.op("LessOrEqual", excess, graph.constant(0.0), out="converged")
        outputs.append(info("converged", onnx.TensorProto.BOOL, ["m"]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, type(layer).__name__, inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pyidl",
    )
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        with replacing(Path(path)) as file:
            file.write(model.SerializeToString())
    return model


@dataclass(frozen=True)
class _Stop:
    """When a solve ends."""

    steps: int | None
    tol: float
    max_iter: int


# ---------------------------------------------------------------------------------------------------------- layers


def _layer(graph: Graph, layer: Layer, U: str, stop: _Stop, lengths: str) -> tuple[str, str]:
    """``(Y, excess)``: names of the output, and of residual less tolerance for every sample, "" where nothing is measured."""
    if type(layer) not in KNOWN:  # a class of your own may do anything
        raise InputError(f"there is no ONNX graph for {type(layer).__name__}; there is one for {', '.join(cls.__name__ for cls in KNOWN)}")
    match layer:
        case Linear():
            return graph.plus(graph.rows(U, layer.params["W"]), layer.params.get("b")), ""
        case Pointwise():
            return phi_node(graph, layer.activation, U), ""
        case Dropout():
            return U, ""
        case LayerNorm():
            normed = graph.normed(U, layer.eps)
            return graph.plus(graph.op("Mul", normed, graph.constant(to_numpy(layer.params["g"]))), layer.params["b"]), ""
        case Embedding():
            return graph.op("Gather", graph.constant(to_numpy(layer.params["W"])), U, axis=0), ""
        case PositionEmbedding():
            zero, T = graph.constant([0], np.int64), _dimension(graph, U, 1)
            return graph.op("Add", U, graph.op("Slice", graph.constant(to_numpy(layer.params["P"])), zero, T)), ""
        case ImplicitAttentionHead():
            _warn(layer, stop)
            return attention_nodes(graph, layer, U, lengths, partial(_solve, stop=stop))
        case ImplicitModel():
            return _implicit(graph, layer, U, stop)
        case ImplicitRNN():
            return _recurrent(graph, layer, U, stop, lengths)
        case Sequential():
            Y, excess = U, ""
            for part in layer.layers:
                Y, measured = _layer(graph, part, Y, stop, lengths)
                excess = _worse(graph, excess, measured)
            return graph.op("Add", U, Y) if isinstance(layer, Residual) else Y, excess
        case Bidirectional():
            steps = lengths or graph.op("Expand", _dimension(graph, U, 1), _dimension(graph, U, 0))
            Y1, ahead = _layer(graph, layer.ahead, U, stop, lengths)
            Y2, back = _layer(graph, layer.back, graph.reverse(U, steps), stop, lengths)
            Y2 = graph.reverse(Y2, steps) if _keeps_steps(layer.back) else Y2
            return graph.op("Concat", Y1, Y2, axis=-1), _worse(graph, ahead, back)
    raise AssertionError(layer)


def _reads_tokens(layer: Layer) -> bool:
    """Whether the input is numbers of tokens."""
    match layer:
        case Sequential() | Bidirectional():
            return _reads_tokens(next(iter(layer.parts.values())))
    return isinstance(layer, Embedding)


def _keeps_steps(layer: Layer) -> bool:
    """Whether a sequence gives a sequence."""
    match layer:
        case ImplicitRNN():
            return layer.return_sequences
        case Sequential() | Bidirectional():
            return all(_keeps_steps(part) for part in layer.parts.values())
    return True


def _worse(graph: Graph, one: str, other: str) -> str:
    """The larger excess of every sample; one of them may not be there."""
    return graph.op("Max", one, other) if one and other else one or other


def _dimension(graph: Graph, x: str, axis: int) -> str:
    """The size of x along an axis, as a vector of one entry."""
    return graph.op("Slice", graph.op("Shape", x), *(graph.constant([i], np.int64) for i in (axis, axis + 1)))


def _implicit(graph: Graph, layer: ImplicitModel, U: str, stop: _Stop) -> tuple[str, str]:
    _warn(layer, stop)
    params = layer.params
    Z = graph.plus(graph.rows(U, params["B"]), params.get("b"))
    X, excess = _affine(graph, layer, Z, "", stop)
    Y = graph.rows(X, params["C"])
    if layer.feedthrough:
        Y = graph.op("Add", Y, graph.rows(U, params["D"]))
    return graph.plus(Y, params.get("d")), excess


def _recurrent(graph: Graph, layer: ImplicitRNN, U: str, stop: _Stop, lengths: str) -> tuple[str, str]:
    """``X_t = phi(A X_t + B_h H_{t-1} + Z_t)``, ``H_t = C X_t + D_h H_{t-1} + G_t``; Z and G for all t in one product each."""
    _warn(layer, stop)
    params, p, r, n = layer.params, layer.input_dim, layer.hidden_dim, layer.implicit_hidden_dim
    D = params.get("D")
    Z = graph.plus(graph.rows(U, params["B"][:, :p]), params.get("b"))
    G = graph.constant(np.zeros((1, 1, r))) if D is None else graph.rows(U, D[:, :p])
    G = graph.plus(G, params.get("d"))

    m, T = (_dimension(graph, U, axis) for axis in (0, 1))
    G = graph.op("Expand", G, graph.op("Concat", m, T, graph.constant([r], np.int64), axis=0))
    starts = [
        graph.op("Expand", graph.constant(np.zeros((1, k))), graph.op("Concat", m, graph.constant([k], np.int64), axis=0)) for k in (r, n)
    ]
    starts += [graph.op("Expand", graph.constant([-1.0]), m), graph.constant(0, np.int64)]

    step = graph.body()
    h, x, excess, t, z, g = (step.name(kind) for kind in ("h", "x", "excess", "t", "z", "g"))
    pre = step.op("Add", z, step.rows(h, params["B"][:, p:]))
    new_x, measured = _affine(step, layer, pre, x if layer.warm_start else "", stop)
    new_h = step.op("Add", step.rows(new_x, params["C"]), g)
    if D is not None and D.shape[1] > p:
        new_h = step.op("Add", new_h, step.rows(h, D[:, p:]))
    if lengths:  # a sequence that has ended keeps its h, and its solves do not count
        going = step.op("Less", t, lengths)
        new_h = step.op("Where", step.op("Unsqueeze", going, step.constant([1], np.int64)), new_h, h)
        measured = measured and step.op("Where", going, measured, step.constant(-1.0))
    new_excess = step.op("Max", excess, measured) if measured else step.op("Identity", excess)
    new_t = step.op("Add", t, step.constant(1, np.int64))
    every = step.op("Identity", new_h)
    carried = [(h, new_h, ["m", r]), (x, new_x, ["m", n]), (excess, new_excess, ["m"]), (t, new_t, [])]
    types = [graph.type, graph.type, graph.type, onnx.TensorProto.INT64]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        step.nodes,
        "step",
        [info(old, kind, shape) for (old, _, shape), kind in zip(carried, types, strict=True)]
        + [info(z, graph.type, ["m", n]), info(g, graph.type, ["m", r])],
        [info(new, kind, shape) for (_, new, shape), kind in zip(carried, types, strict=True)] + [info(every, graph.type, ["m", r])],
    )
    last, H, worst = graph.name("h"), graph.name("H"), graph.name("excess")
    graph.nodes.append(
        helper.make_node(
            "Scan",
            [*starts, Z, G],
            [last, graph.name("x"), worst, graph.name("t"), H],
            body=body,
            num_scan_inputs=2,
            scan_input_axes=[1, 1],
            scan_output_axes=[1],
        )
    )
    Y = graph.plus(graph.rows(H if layer.return_sequences else last, params["E"]), params.get("e"))
    return Y, worst if stop.steps is None else ""


def _warn(layer: ImplicitModel | ImplicitRNN | ImplicitAttentionHead, stop: _Stop) -> None:
    """The plain iteration converges if f contracts in some norm, or if A has no cycles."""
    certificate = layer.certificate(explain=True)
    methods = [c.applies_to for c in (certificate, *certificate.others) if c.proven]
    if stop.steps is None and not any(name.startswith(("Picard", "Substitution")) and "damping" not in name for name in methods):
        warnings.warn(
            f"nothing proves that the plain iteration of the exported graph converges ({layer.certificate()!r}); read its output "
            "`converged`, or project the layer into a set where it does, such as InfNorm",
            WellPosednessWarning,
            stacklevel=5,
        )


# ----------------------------------------------------------------------------------------------------------- solves


def _affine(graph: Graph, layer: ImplicitModel | ImplicitRNN, Z: str, x0: str, stop: _Stop) -> tuple[str, str]:
    """``(X, excess)`` for ``x = phi(A x + z)``, from x0 or from ``f(0) = phi(z)``."""
    params, activation = layer.params, layer.activation
    weights = [graph.constant(to_numpy(params[key]).T if key != "R" else to_numpy(params[key])) for key in ("R", "L", "A") if key in params]

    def f(inner: Graph, x: str) -> str:
        for W in weights:
            x = inner.op("MatMul", x, W)
        return phi_node(inner, activation, inner.op("Add", x, Z))

    return _solve(graph, f, f(graph, x0) if x0 else phi_node(graph, activation, Z), (-1,), stop=stop)


def _solve(graph: Graph, f: Callable[[Graph, str], str], x: str, axes: tuple[int, ...], *, stop: _Stop) -> tuple[str, str]:
    """``(X, excess)`` of ``x = f(x)`` from x, whose samples have these axes; "" for an excess that is not measured."""
    if stop.steps is None:
        return _loop(graph, f, x, axes, stop)
    for _ in range(stop.steps - 1):
        x = f(graph, x)
    return x, ""


def _loop(graph: Graph, f: Callable[[Graph, str], str], x: str, axes: tuple[int, ...], stop: _Stop) -> tuple[str, str]:
    """``x <- f(x)`` while ``max|f(x) - x| - tol (1 + max|x|) > 0`` for some sample."""
    start = graph.largest(x, axes)  # of the right shape; not used
    body = graph.body()
    i, going, old, before = (body.name(kind) for kind in ("i", "going", "x", "excess"))
    new = f(body, old)
    allowed = body.op("Mul", body.op("Add", body.largest(old, axes), body.constant(1.0)), body.constant(stop.tol))
    excess = body.op("Sub", body.largest(body.op("Sub", new, old), axes), allowed)
    go_on = body.op("Greater", body.op("ReduceMax", excess, keepdims=False), body.constant(0.0))
    info, boolean = helper.make_tensor_value_info, onnx.TensorProto.BOOL
    inner = helper.make_graph(
        body.nodes,
        "iteration",
        [info(i, onnx.TensorProto.INT64, []), info(going, boolean, []), info(old, graph.type, None), info(before, graph.type, None)],
        [info(go_on, boolean, []), info(new, graph.type, None), info(excess, graph.type, None)],
    )
    X, last = graph.name("X"), graph.name("excess")
    trips, true = graph.constant(stop.max_iter, np.int64), graph.constant(True, np.bool_)
    graph.nodes.append(helper.make_node("Loop", [trips, true, x, start], [X, last], body=inner))
    return X, last
