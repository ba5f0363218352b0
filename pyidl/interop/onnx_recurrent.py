r"""The graphs of the layers in `pyidl.recurrent`: time as a `Scan`.

    ImplicitRNN      X_t = phi(A X_t + B_h H_{t-1} + Z_t),
                     H_t = C X_t + D_h H_{t-1} + G_t,    Y = E R + e
    Bidirectional    Y = [f(U), g(U reversed) reversed]

Z and G for all t take one product each.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from pyidl.interop.onnx_flow import Flow, Options, Writer, flow, worse
from pyidl.interop.onnx_graph import Graph
from pyidl.interop.onnx_layers import solve
from pyidl.recurrent import Bidirectional, ImplicitRNN

__all__ = ["GRAPHS", "SEQUENCES"]


def _recurrent(graph: Graph, layer: ImplicitRNN, u: Flow, options: Options) -> Flow:
    params, p, r = layer.params, layer.input_dim, layer.hidden_dim
    D, n = params.get("D"), layer.implicit_hidden_dim
    Z = graph.plus(graph.rows(u.name, params["B"][:, :p]), params.get("b"))
    G = graph.constant(np.zeros((1, 1, r))) if D is None else graph.rows(u.name, D[:, :p])
    G = graph.plus(G, params.get("d"))

    m, T = (graph.dimension(u.name, axis) for axis in (0, 1))
    G = graph.op("Expand", G, graph.op("Concat", m, T, graph.integers(r), axis=0))
    starts = []
    for k in (r, n):
        zero, width = graph.constant(np.zeros((1, k))), graph.integers(k)
        starts.append(graph.op("Expand", zero, graph.op("Concat", m, width, axis=0)))
    starts += [graph.op("Expand", graph.constant([-1.0]), m), graph.constant(0, np.int64)]

    body = _step(graph, layer, options)
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
    R, shape = (H, u.shape[:-1]) if layer.return_sequences else (last, u.shape[:1])
    if layer.pool != "last":
        R = _pooled(graph, layer.pool, H, options)
    Y = graph.plus(graph.rows(R, params["E"]), params.get("e"))
    y = u._replace(name=Y, shape=(*shape, layer.output_dim))
    return y.after(graph, layer, worst if options.steps is None else "")


def _pooled(graph: Graph, pool: str, H: str, options: Options) -> str:
    """The mean or the maximum of H, (m, T, r), over the steps that a sequence has."""
    kind, time = {"mean": "ReduceMean", "max": "ReduceMax"}[pool], graph.integers(1)
    if not options.lengths:
        return graph.op(kind, H, time, keepdims=False)
    last = graph.op("Unsqueeze", options.lengths, time)  # (m, 1)
    part = graph.op("Unsqueeze", graph.op("Less", graph.places(H), last), graph.integers(2))
    if pool == "max":
        beyond = graph.op("Where", part, H, graph.constant(-np.inf))
        return graph.op(kind, beyond, time, keepdims=False)
    zero, one = graph.constant(0.0), graph.constant(1.0)
    total, count = (
        graph.op("ReduceSum", graph.op("Where", part, x, zero), time, keepdims=False)
        for x in (H, one)
    )
    return graph.op("Div", total, count)


def _step(graph: Graph, layer: ImplicitRNN, options: Options) -> onnx.GraphProto:
    """From ``(h, x, excess, t)`` and ``(Z_t, G_t)`` to the next four, and h again."""
    params, p, r = layer.params, layer.input_dim, layer.hidden_dim
    D, n, step = params.get("D"), layer.implicit_hidden_dim, graph.body()
    h, x, excess, t, z, g = (step.name(kind) for kind in ("h", "x", "excess", "t", "z", "g"))
    pre = step.op("Add", z, step.rows(h, params["B"][:, p:]))
    new_x, measured = solve(step, layer, pre, x if layer.warm_start else "", options)
    new_h = step.op("Add", step.rows(new_x, params["C"]), g)
    if D is not None and D.shape[1] > p:
        new_h = step.op("Add", new_h, step.rows(h, D[:, p:]))
    if options.lengths:  # a sequence that has ended keeps its h, and its solves do not count
        going = step.op("Less", t, options.lengths)
        new_h = step.op("Where", step.op("Unsqueeze", going, step.integers(1)), new_h, h)
        measured = measured and step.op("Where", going, measured, step.constant(-1.0))
    new_excess = step.op("Max", excess, measured) if measured else step.op("Identity", excess)
    new_t = step.op("Add", t, step.constant(1, np.int64))
    every = step.op("Identity", new_h)

    def state(h: str, x: str, excess: str, t: str) -> list[onnx.ValueInfoProto]:
        known = [step.info(h, shape=["m", r]), step.info(x, shape=["m", n])]
        return [*known, step.info(excess, shape=["m"]), step.info(t, "integer", [])]

    inputs = [*state(h, x, excess, t), step.info(z, shape=["m", n]), step.info(g, shape=["m", r])]
    outputs = [*state(new_h, new_x, new_excess, new_t), step.info(every, shape=["m", r])]
    return helper.make_graph(step.nodes, "step", inputs, outputs)


def _bidirectional(graph: Graph, layer: Bidirectional, u: Flow, options: Options) -> Flow:
    U = u.name
    steps = options.lengths or graph.op("Expand", graph.dimension(U, 1), graph.dimension(U, 0))
    ahead = flow(graph, layer.ahead, u, options)
    back = flow(graph, layer.back, u._replace(name=graph.reverse(U, steps), solved=()), options)
    last = graph.reverse(back.name, steps) if len(back.shape) == 3 else back.name
    Y = graph.op("Concat", ahead.name, last, axis=-1)
    return ahead.to(Y, layer._widths()[1])._replace(
        excess=worse(graph, ahead.excess, back.excess), solved=ahead.solved + back.solved
    )


GRAPHS: dict[type, Writer] = {ImplicitRNN: _recurrent, Bidirectional: _bidirectional}
SEQUENCES = (ImplicitRNN, Bidirectional)
