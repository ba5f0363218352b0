r"""The attention head as an ONNX graph: ``X <- att(X R + Z)``, ``Z = U S``, on arrays (m, H, T, h).

    kernel            E = exp(min(2g q.k - g|q|^2 - g|k|^2, 0)) where q may see k, else 0;     out = E phi(v) / (c + sum E)
    softmax           softmax over the keys that are seen of tau q.k;                          out = W v
    bounded softmax   the same of phi(q), phi(k) and phi(v),  phi(s) = s / (1 + s^2)^(1/2)

The mask is made in the graph, from T and the lengths, so that both may be anything; there are no tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyidl.attention import FAR, BoundedSoftmax, KernelAttention, Softmax
from pyidl.averaging import lowest
from pyidl.backend import to_numpy
from pyidl.errors import InputError
from pyidl.interop.onnx_graph import Graph
from pyidl.layers import ImplicitAttentionHead

__all__ = ["attention_nodes"]

Solve = Callable[[Graph, Callable[[Graph, str], str], str, tuple[int, ...]], tuple[str, str]]


def attention_nodes(graph: Graph, head: ImplicitAttentionHead, U: str, lengths: str, solve: Solve) -> tuple[str, str]:
    """``(Y, excess)`` of a head for inputs U, (m, T, e); `solve` iterates a map from a start."""
    if type(head.attention) not in (KernelAttention, BoundedSoftmax, Softmax):  # one of your own may do anything
        raise InputError(f"there is no ONNX graph for {head.attention!r}; use KernelAttention, BoundedSoftmax or Softmax")
    params = {key: to_numpy(a) for key, a in head.params.items()}
    R = graph.constant(params["R"] if "R" in params else params["L"] @ params["M"])
    axis = graph.constant([1], np.int64)
    Z = graph.op("MatMul", graph.op("Unsqueeze", U, axis), graph.constant(params["S"]))
    keys, present = _masks(graph, head.causal, U, lengths)
    H, h = head.num_heads, head.head_dim
    side_by_side = graph.constant([0, 0, H * h], np.int64)

    def beside(inner: Graph, X: str) -> str:
        """``(m, H, T, h) -> (m, T, H h)``."""
        return inner.op("Reshape", inner.transposed(X, (0, 2, 1, 3)), side_by_side)

    def f(inner: Graph, X: str) -> str:
        heard = inner.op("Unsqueeze", beside(inner, X), axis) if head.coupled else X
        return attend(inner, inner.op("Add", inner.op("MatMul", heard, R), Z))

    def attend(inner: Graph, N: str) -> str:
        out = _attend(inner, head.attention, h, inner.split(N, 3), keys)
        return inner.op("Where", present, out, inner.constant(0.0)) if present else out

    X, excess = solve(graph, f, attend(graph, Z), (1, 2, 3))
    return beside(graph, X), excess


def _masks(graph: Graph, causal: bool, U: str, lengths: str) -> tuple[str, str]:
    """Which keys a query sees, broadcasting to (m, H, T, T), and which tokens are there, to (m, H, T, h); "" for all."""
    if not (causal or lengths):
        return "", ""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    T = graph.op("Gather", graph.op("Shape", U), one, axis=0)
    places = graph.op("Range", zero, T, one)
    column = graph.op("Unsqueeze", places, graph.constant([1], np.int64))
    seen = graph.op("GreaterOrEqual", column, places) if causal else ""
    if not lengths:
        return seen, ""
    ends = graph.op("Unsqueeze", lengths, graph.constant([1, 2, 3], np.int64))
    keys = graph.op("Less", places, ends)  # (m, 1, 1, T)
    return graph.op("And", seen, keys) if causal else keys, graph.op("Less", column, ends)


def _attend(graph: Graph, attention: Any, h: int, kqv: list[str], seen: str) -> str:
    k, q, v = kqv
    if isinstance(attention, BoundedSoftmax):
        k, q = _phi(graph, k), _phi(graph, q)
    if not isinstance(attention, Softmax):
        v = _phi(graph, v)
    inner = graph.inner(q, k)
    if isinstance(attention, KernelAttention):
        g = graph.constant(attention.scale(h))
        of_q = graph.op("Mul", _square(graph, q), g)
        of_k = graph.transposed(graph.op("Mul", _square(graph, k), g), (0, 1, 3, 2))
        twice = graph.op("Mul", inner, graph.constant(2.0 * attention.scale(h)))
        Z = graph.op("Sub", graph.op("Sub", twice, of_q), of_k)
        E = graph.op("Exp", graph.op("Min", Z, graph.constant(0.0)))
        E = graph.op("Where", seen, E, graph.constant(0.0)) if seen else E
        total = graph.op("ReduceSum", E, graph.constant([-1], np.int64), keepdims=True)
        return graph.op("Div", graph.op("MatMul", E, v), graph.op("Add", total, graph.constant(attention.c)))
    Z = graph.op("Mul", inner, graph.constant(attention.scale(h)))
    Z = graph.op("Where", seen, Z, graph.constant(lowest(np, graph.dtype))) if seen else Z
    return graph.op("MatMul", graph.op("Softmax", Z, axis=-1), v)


def _square(graph: Graph, x: str) -> str:
    """``|x|^2`` of every row."""
    return graph.op("ReduceSum", graph.op("Mul", x, x), graph.constant([-1], np.int64), keepdims=True)


def _phi(graph: Graph, s: str) -> str:
    s = graph.op("Clip", s, graph.constant(-FAR), graph.constant(FAR))
    return graph.op("Div", s, graph.op("Sqrt", graph.op("Add", graph.op("Mul", s, s), graph.constant(1.0))))
