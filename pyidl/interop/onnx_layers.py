r"""The graph of each layer.

What a layer of pyidl computes in rows stands here in ONNX's operators, line for line.

A solve starts from f(0) and takes ``x <- f(x)``; the loop goes on while for some
sample, with the largest entries of all its axes,

    excess = max|f(x) - x| - tol (1 + max|x|) > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from pyidl.arrays.backend import to_numpy
from pyidl.attention import BoundedSoftmax, ImplicitAttentionHead, KernelAttention, Softmax
from pyidl.attention.maps import FAR
from pyidl.attention.weighted_mean import lowest
from pyidl.errors import InputError
from pyidl.interop.onnx_graph import Graph, normalised, phi_node
from pyidl.layers import (
    Dropout,
    Embedding,
    ImplicitModel,
    Layer,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)
from pyidl.recurrent import Bidirectional, ImplicitRNN

__all__ = ["Flow", "Stop", "flow", "reads", "unproven"]

KNOWN = (
    *(ImplicitModel, ImplicitRNN, ImplicitAttentionHead, Linear, Pointwise, LayerNorm),
    *(Embedding, PositionEmbedding, Dropout, Sequential, Residual, Bidirectional),
)


@dataclass(frozen=True)
class Stop:
    """When a solve ends."""

    steps: int | None
    tol: float
    max_iter: int


class Flow(NamedTuple):
    """What goes from layer to layer.

    An array's name and shape, and the excess of every sample so far, "" where none was
    measured.
    """

    name: str
    shape: tuple[str | int | None, ...]
    excess: str = ""


def reads(layer: Layer) -> tuple[bool, list[str | int | None]]:
    """Whether the input are tokens, and its shape."""
    match layer:
        case Embedding():
            return True, ["m", "T"]
        case ImplicitRNN() | ImplicitAttentionHead() | PositionEmbedding() | Bidirectional():
            return False, ["m", "T", layer._widths()[0]]
        case Sequential():
            if reads(layer.layers[0])[0]:
                return True, ["m", "T"]
            longest = max(len(reads(part)[1]) for part in layer.layers)
            return False, [*["m", "T"][: longest - 1], layer._widths()[0]]
    return False, ["m", layer._widths()[0]]


def flow(graph: Graph, layer: Layer, u: Flow, stop: Stop, lengths: str) -> Flow:
    """Write the layer; `lengths` is the name of the lengths of sequences, or "".

    Raises
    ------
    InputError
        If there is no graph for the layer, or for what it is made of.
    """
    if type(layer) not in KNOWN:  # a class derived from one of them may compute something else
        raise InputError(
            f"there is no ONNX graph for {type(layer).__name__}; there is one for {', '.join(cls.__name__ for cls in KNOWN)}"
        )
    U, params, (_, width) = u.name, layer.params, layer._widths()
    shape = (*u.shape[:-1], u.shape[-1] if width is None else width)
    match layer:
        case Linear():
            return Flow(graph.plus(graph.rows(U, params["W"]), params.get("b")), shape, u.excess)
        case Pointwise():
            return Flow(phi_node(graph, layer.activation, U), shape, u.excess)
        case Dropout():
            return u
        case LayerNorm():
            scaled = graph.op(
                "Mul", normalised(graph, U, layer.eps), graph.constant(to_numpy(params["g"]))
            )
            return Flow(graph.plus(scaled, params["b"]), shape, u.excess)
        case Embedding():
            return Flow(
                graph.op("Gather", graph.constant(to_numpy(params["W"])), U, axis=0),
                (*u.shape, width),
                u.excess,
            )
        case PositionEmbedding():
            P = graph.op("Gather", graph.constant(to_numpy(params["P"])), _count(graph, U), axis=0)
            return Flow(graph.op("Add", U, P), shape, u.excess)
        case ImplicitModel():
            Y, excess = _implicit(graph, layer, U, stop)
            return Flow(Y, shape, _worse(graph, u.excess, excess))
        case ImplicitRNN():
            Y, excess = _recurrent(graph, layer, U, stop, lengths)
            return Flow(
                Y,
                shape if layer.return_sequences else ("m", width),
                _worse(graph, u.excess, excess),
            )
        case ImplicitAttentionHead():
            Y, excess = _attention(graph, layer, U, stop, lengths)
            return Flow(Y, shape, _worse(graph, u.excess, excess))
        case Sequential():
            y = u
            for part in layer.layers:
                y = flow(graph, part, y, stop, lengths)
            return y._replace(name=graph.op("Add", U, y.name)) if isinstance(layer, Residual) else y
    assert isinstance(layer, Bidirectional)
    steps = lengths or graph.op("Expand", _dimension(graph, U, 1), _dimension(graph, U, 0))
    ahead = flow(graph, layer.ahead, u, stop, lengths)
    back = flow(graph, layer.back, u._replace(name=graph.reverse(U, steps)), stop, lengths)
    last = graph.reverse(back.name, steps) if len(back.shape) == 3 else back.name
    Y = graph.op("Concat", ahead.name, last, axis=-1)
    return Flow(Y, (*ahead.shape[:-1], width), _worse(graph, ahead.excess, back.excess))


def unproven(layer: Layer) -> Iterator[Layer]:
    """The layers of which nothing proves that ``x <- f(x)`` converges.

    That f contracts in some norm, or that A has no cycles.
    """
    match layer:
        case Sequential() | Bidirectional():
            for part in layer.parts.values():
                yield from unproven(part)
        case ImplicitModel() | ImplicitRNN() | ImplicitAttentionHead():
            certificate = layer.certificate(explain=True)
            methods = [c.applies_to for c in (certificate, *certificate.others) if c.proven]
            if not any(
                name.startswith(("Picard", "Substitution")) and "damping" not in name
                for name in methods
            ):
                yield layer


def _worse(graph: Graph, one: str, other: str) -> str:
    """The larger excess of every sample; one of them may not be there."""
    return graph.op("Max", one, other) if one and other else one or other


def _dimension(graph: Graph, x: str, axis: int) -> str:
    """The size of x along an axis, as a vector of one entry."""
    return graph.op("Slice", graph.op("Shape", x), graph.integers(axis), graph.integers(axis + 1))


def _count(graph: Graph, U: str) -> str:
    """``0, ..., T - 1``."""
    zero, one = (graph.constant(i, np.int64) for i in (0, 1))
    return graph.op("Range", zero, graph.op("Squeeze", _dimension(graph, U, 1)), one)


# ------------------------------------------------------------- the base model, and time


def _implicit(graph: Graph, layer: ImplicitModel, U: str, stop: Stop) -> tuple[str, str]:
    params = layer.params
    Z = graph.plus(graph.rows(U, params["B"]), params.get("b"))
    X, excess = _solve(graph, layer, Z, "", stop)
    Y = graph.rows(X, params["C"])
    if layer.feedthrough:
        Y = graph.op("Add", Y, graph.rows(U, params["D"]))
    return graph.plus(Y, params.get("d")), excess


def _recurrent(
    graph: Graph, layer: ImplicitRNN, U: str, stop: Stop, lengths: str
) -> tuple[str, str]:
    """``X_t = phi(A X_t + B_h H_{t-1} + Z_t)``, ``H_t = C X_t + D_h H_{t-1} + G_t``.

    Z and G for all t in one product each.
    """
    params, p, r, n = layer.params, layer.input_dim, layer.hidden_dim, layer.implicit_hidden_dim
    D = params.get("D")
    Z = graph.plus(graph.rows(U, params["B"][:, :p]), params.get("b"))
    G = graph.constant(np.zeros((1, 1, r))) if D is None else graph.rows(U, D[:, :p])
    G = graph.plus(G, params.get("d"))

    m, T = (_dimension(graph, U, axis) for axis in (0, 1))
    G = graph.op("Expand", G, graph.op("Concat", m, T, graph.integers(r), axis=0))
    starts = [
        graph.op(
            "Expand",
            graph.constant(np.zeros((1, k))),
            graph.op("Concat", m, graph.integers(k), axis=0),
        )
        for k in (r, n)
    ]
    starts += [graph.op("Expand", graph.constant([-1.0]), m), graph.constant(0, np.int64)]

    step = graph.body()
    h, x, excess, t, z, g = (step.name(kind) for kind in ("h", "x", "excess", "t", "z", "g"))
    pre = step.op("Add", z, step.rows(h, params["B"][:, p:]))
    new_x, measured = _solve(step, layer, pre, x if layer.warm_start else "", stop)
    new_h = step.op("Add", step.rows(new_x, params["C"]), g)
    if D is not None and D.shape[1] > p:
        new_h = step.op("Add", new_h, step.rows(h, D[:, p:]))
    if lengths:  # a sequence that has ended keeps its h, and its solves do not count
        going = step.op("Less", t, lengths)
        new_h = step.op("Where", step.op("Unsqueeze", going, step.integers(1)), new_h, h)
        measured = measured and step.op("Where", going, measured, step.constant(-1.0))
    new_excess = step.op("Max", excess, measured) if measured else step.op("Identity", excess)
    new_t = step.op("Add", t, step.constant(1, np.int64))
    every = step.op("Identity", new_h)
    carried = [
        (h, new_h, ["m", r]),
        (x, new_x, ["m", n]),
        (excess, new_excess, ["m"]),
        (t, new_t, []),
    ]
    types = [graph.type, graph.type, graph.type, onnx.TensorProto.INT64]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        step.nodes,
        "step",
        [info(old, kind, shape) for (old, _, shape), kind in zip(carried, types, strict=True)]
        + [info(z, graph.type, ["m", n]), info(g, graph.type, ["m", r])],
        [info(new, kind, shape) for (_, new, shape), kind in zip(carried, types, strict=True)]
        + [info(every, graph.type, ["m", r])],
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


def _solve(
    graph: Graph, layer: ImplicitModel | ImplicitRNN, Z: str, x0: str, stop: Stop
) -> tuple[str, str]:
    """``(X, excess)`` for ``x = phi(A x + z)``, from x0, or from 0."""
    params, activation = layer.params, layer.activation
    keys = [key for key in ("R", "L", "A") if key in params]
    weights = [
        graph.constant(to_numpy(params[key]) if key == "R" else to_numpy(params[key]).T)
        for key in keys
    ]

    def f(inner: Graph, x: str) -> str:
        for W in weights:
            x = inner.op("MatMul", x, W)
        return phi_node(inner, activation, inner.op("Add", x, Z))

    return _iterate(graph, f, f(graph, x0) if x0 else phi_node(graph, activation, Z), [1], stop)


# ---------------------------------------------------------------------------- attention


def _attention(
    graph: Graph, head: ImplicitAttentionHead, U: str, stop: Stop, lengths: str
) -> tuple[str, str]:
    """``X = att(X R + Z)``, ``Z = U S``.

    The state is (m, H, T, h), and so is what a head hears, or (m, 1, T, H h) with
    `coupled`.
    """
    if type(head.attention) not in (KernelAttention, Softmax, BoundedSoftmax):
        raise InputError(
            f"the attention {head.attention!r} is not built in, and ONNX cannot be told what it does"
        )
    params = {key: to_numpy(a) for key, a in head.params.items()}
    R = graph.constant(params["R"] if "R" in params else params["L"] @ params["M"])
    Z = graph.op("MatMul", graph.op("Unsqueeze", U, graph.integers(1)), graph.constant(params["S"]))
    seen, present = _seen(graph, head.causal, U, lengths)

    def f(inner: Graph, x: str) -> str:
        if head.coupled:
            x = inner.op(
                "Reshape",
                inner.op("Transpose", x, perm=(0, 2, 1, 3)),
                inner.integers(0, 1, -1, head.num_heads * head.head_dim),
            )
        return _attend(inner, head, inner.op("Add", inner.op("MatMul", x, R), Z), seen, present)

    X, excess = _iterate(graph, f, _attend(graph, head, Z, seen, present), [1, 2, 3], stop)
    return graph.op(
        "Reshape", graph.op("Transpose", X, perm=(0, 2, 1, 3)), graph.integers(0, 0, -1)
    ), excess


def _attend(graph: Graph, head: ImplicitAttentionHead, N: str, seen: str, present: str) -> str:
    """``att(K, Q, V)`` for ``N = [K Q V]``: the formulas of `pyidl.attention`."""
    of, h, op, number = head.attention, head.head_dim, graph.op, graph.constant
    K, Q, V = graph.split(N, [h] * 3)
    if isinstance(
        of, KernelAttention
    ):  # E_ij = exp(2g <q_i, k_j> - g |q_i|^2 - g |k_j|^2), s_i = 1 / (c + sum_j E_ij)
        g, axis = of.scale(h), graph.integers(-1)
        q, k = (
            op("Mul", op("ReduceSum", op("Mul", x, x), axis, keepdims=True), number(g))
            for x in (Q, K)
        )
        Z = op(
            "Sub",
            op("Sub", graph.products(op("Mul", Q, number(2 * g)), K), q),
            op("Transpose", k, perm=(0, 1, 3, 2)),
        )
        E = op("Exp", op("Min", Z, number(0.0)))
        E = op("Where", seen, E, number(0.0)) if seen else E
        return op(
            "Div",
            op("MatMul", E, _phi(graph, V)),
            op("Add", op("ReduceSum", E, axis, keepdims=True), number(of.c)),
        )
    if isinstance(of, BoundedSoftmax):
        K, Q, V = (_phi(graph, x) for x in (K, Q, V))
    Z = graph.products(op("Mul", Q, number(of.scale(h))), K)  # type: ignore[attr-defined]
    Z = op("Where", seen, Z, number(lowest(np, graph.dtype))) if seen else Z
    out = op("MatMul", op("Softmax", Z, axis=-1), V)
    return (
        op("Where", present, out, number(0.0)) if present else out
    )  # a token that is not there sees none: softmax of nothing


def _phi(graph: Graph, s: str) -> str:
    """``s / sqrt(1 + s^2)``."""
    s = graph.op("Clip", s, graph.constant(-FAR), graph.constant(FAR))
    return graph.op(
        "Div", s, graph.op("Sqrt", graph.op("Add", graph.op("Mul", s, s), graph.constant(1.0)))
    )


def _seen(graph: Graph, causal: bool, U: str, lengths: str) -> tuple[str, str]:
    """Which keys a query sees, (T, T) or (m, 1, T, T), and which queries are there, (m, 1, T, 1); "" for all."""
    if not (causal or lengths):
        return "", ""
    t = _count(graph, U)
    row, column = (graph.op("Unsqueeze", t, graph.integers(axis)) for axis in (0, 1))
    before = graph.op("GreaterOrEqual", column, row) if causal else ""
    if not lengths:
        return before, ""
    there = graph.op("Less", row, graph.op("Unsqueeze", lengths, graph.integers(1)))
    query, key = (graph.op("Unsqueeze", there, graph.integers(1, axis)) for axis in (3, 2))
    seen = graph.op("And", query, key)
    return (graph.op("And", seen, before) if before else seen), query


# ------------------------------------------------------------------------------- solves


def _iterate(
    graph: Graph, f: Callable[[Graph, str], str], x: str, axes: list[int], stop: Stop
) -> tuple[str, str]:
    """``(X, excess)`` after ``x <- f(x)``, x with these axes besides that of the samples; "" for an excess that is not measured."""
    if stop.steps is not None:
        for _ in range(stop.steps - 1):  # x is f(0) already
            x = f(graph, x)
        return x, ""
    start = graph.largest(x, axes)  # of the right shape; not used
    body = graph.body()
    i, going, old, before = (body.name(kind) for kind in ("i", "going", "x", "excess"))
    new = f(body, old)
    allowed = body.op(
        "Mul", body.op("Add", body.largest(old, axes), body.constant(1.0)), body.constant(stop.tol)
    )
    excess = body.op("Sub", body.largest(body.op("Sub", new, old), axes), allowed)
    late = body.op(
        "Where",
        body.op("Greater", excess, body.constant(0.0)),
        body.constant(1.0),
        body.constant(0.0),
    )  # 0 for NaN
    go_on = body.op("Greater", body.op("ReduceMax", late, keepdims=False), body.constant(0.0))
    info, boolean = helper.make_tensor_value_info, onnx.TensorProto.BOOL
    inner = helper.make_graph(
        body.nodes,
        "iteration",
        [
            info(i, onnx.TensorProto.INT64, []),
            info(going, boolean, []),
            info(old, graph.type, None),
            info(before, graph.type, None),
        ],
        [info(go_on, boolean, []), info(new, graph.type, None), info(excess, graph.type, None)],
    )
    X, last = graph.name("X"), graph.name("excess")
    trips, true = graph.constant(stop.max_iter, np.int64), graph.constant(True, np.bool_)
    graph.nodes.append(helper.make_node("Loop", [trips, true, x, start], [X, last], body=inner))
    return X, last
