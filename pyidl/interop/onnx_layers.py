r"""The graphs of the layers in `pyidl.layers`, line for line what those compute.

Linear              Y = U W^T + b
ImplicitModel       X = phi(A X + Z),  Z = U B^T + b,  Y = X C^T + U D^T + d
"""

from __future__ import annotations

from typing import Any

from pyidl.arrays.backend import to_numpy
from pyidl.interop.onnx_flow import Flow, Options, Writer, flow, looped
from pyidl.interop.onnx_graph import Graph, normalised, phi_node
from pyidl.layers import (
    Dropout,
    Embedding,
    ImplicitModel,
    LayerNorm,
    Linear,
    Pointwise,
    PositionEmbedding,
    Residual,
    Sequential,
)

__all__ = ["GRAPHS", "SEQUENCES", "solve"]


def _linear(graph: Graph, layer: Linear, u: Flow, options: Options) -> Flow:
    W, b = layer.params["W"], layer.params.get("b")
    return u.to(graph.plus(graph.rows(u.name, W), b), layer.output_dim)


def _pointwise(graph: Graph, layer: Pointwise, u: Flow, options: Options) -> Flow:
    return u.to(phi_node(graph, layer.activation, u.name))


def _dropout(graph: Graph, layer: Dropout, u: Flow, options: Options) -> Flow:
    return u  # draws nothing outside training


def _layer_norm(graph: Graph, layer: LayerNorm, u: Flow, options: Options) -> Flow:
    rows, g = normalised(graph, u.name, layer.eps), graph.constant(to_numpy(layer.params["g"]))
    return u.to(graph.plus(graph.op("Mul", rows, g), layer.params["b"]))


def _embedding(graph: Graph, layer: Embedding, u: Flow, options: Options) -> Flow:
    rows = graph.look_up(graph.constant(to_numpy(layer.params["W"])), u.name)
    return u._replace(name=rows, shape=(*u.shape, layer.embed_dim))


def _position(graph: Graph, layer: PositionEmbedding, u: Flow, options: Options) -> Flow:
    P, places = graph.constant(to_numpy(layer.params["P"])), graph.places(u.name)
    return u.to(graph.op("Add", u.name, graph.look_up(P, places)))


def _implicit(graph: Graph, layer: ImplicitModel, u: Flow, options: Options) -> Flow:
    p = layer.params
    Z = graph.plus(graph.rows(u.name, p["B"]), p.get("b"))
    X, excess = solve(graph, layer, Z, "", options)
    Y = graph.rows(X, p["C"])
    if layer.feedthrough:
        Y = graph.op("Add", Y, graph.rows(u.name, p["D"]))
    return u.to(graph.plus(Y, p.get("d")), layer.output_dim).after(graph, layer, excess)


def _sequential(graph: Graph, layer: Sequential, u: Flow, options: Options) -> Flow:
    for part in layer.layers:
        u = flow(graph, part, u, options)
    return u


def _residual(graph: Graph, layer: Residual, u: Flow, options: Options) -> Flow:
    y = _sequential(graph, layer, u, options)
    return y.to(graph.op("Add", u.name, y.name))


def solve(graph: Graph, layer: Any, Z: str, x0: str, options: Options) -> tuple[str, str]:
    """``(X, excess)`` for ``X = phi(A X + Z)``, from x0, or from 0 if that is ""."""
    factors = {key: to_numpy(layer.params[key]) for key in "RLA" if key in layer.params}
    weights = [graph.constant(W if key == "R" else W.T) for key, W in factors.items()]

    def f(inner: Graph, x: str) -> str:
        for W in weights:
            x = inner.op("MatMul", x, W)
        return phi_node(inner, layer.activation, inner.op("Add", x, Z))

    first = f(graph, x0) if x0 else phi_node(graph, layer.activation, Z)
    return looped(graph, f, first, [1], options)


GRAPHS: dict[type, Writer] = {
    ImplicitModel: _implicit,
    Linear: _linear,
    Pointwise: _pointwise,
    LayerNorm: _layer_norm,
    Embedding: _embedding,
    PositionEmbedding: _position,
    Dropout: _dropout,
    Sequential: _sequential,
    Residual: _residual,
}
SEQUENCES = (PositionEmbedding,)
