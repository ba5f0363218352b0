r"""The graph of the attention head, ``X = att(X R + Z)``, ``Z = U S``, and of its maps.

The state is (m, H, T, h), and so is what a head hears, or (m, 1, T, H h) with
`coupled`. Each map has its formula here once more, in ONNX's operators; see
`pyidl.attention.maps`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pyidl.arrays.backend import to_numpy
from pyidl.attention import (
    Attention,
    BoundedSoftmax,
    ImplicitAttentionHead,
    KernelAttention,
    Softmax,
)
from pyidl.attention.maps import FAR
from pyidl.attention.weighted_mean import lowest
from pyidl.errors import InputError
from pyidl.interop.onnx_flow import Flow, Options, Writer, looped
from pyidl.interop.onnx_graph import Graph

__all__ = ["GRAPHS", "MAPS", "SEQUENCES"]


def _attention(graph: Graph, head: ImplicitAttentionHead, u: Flow, options: Options) -> Flow:
    attend = MAPS.get(type(head.attention))
    if attend is None:  # a class derived from a known one may compute something else
        raise InputError(
            f"the attention {head.attention!r} is not built in, and ONNX cannot be told what it "
            "does"
        )
    if head.block_size is not None:  # what the certificate holds for
        last = graph.op("Sub", graph.dimension(u.name, 1), graph.integers(1))
        zero = graph.look_up(graph.constant(np.zeros(head.block_size)), last)
        u = u.to(graph.op("Add", u.name, zero))
    params = {key: to_numpy(a) for key, a in head.params.items()}
    R = graph.constant(params["R"] if "R" in params else params["L"] @ params["M"])
    tokens, S = graph.op("Unsqueeze", u.name, graph.integers(1)), graph.constant(params["S"])
    Z = graph.op("MatMul", tokens, S)
    if isinstance(head.attention, KernelAttention):
        Z = _placed(graph, Z, head.head_dim)
    seen = _seen(graph, head.causal, u.name, options.lengths)

    def att(inner: Graph, N: str) -> str:
        K, Q, V = inner.split(N, [head.head_dim] * 3)
        return attend(inner, head.attention, head.head_dim, (K, Q, V), seen)

    def f(inner: Graph, x: str) -> str:
        if head.coupled:
            rows = inner.op("Transpose", x, perm=(0, 2, 1, 3))
            width = head.num_heads * head.head_dim
            x = inner.op("Reshape", rows, inner.integers(0, 1, -1, width))
        return att(inner, inner.op("Add", inner.op("MatMul", x, R), Z))

    X, excess = looped(graph, f, att(graph, Z), [1, 2, 3], options)
    rows = graph.op("Transpose", X, perm=(0, 2, 1, 3))
    Y = graph.op("Reshape", rows, graph.integers(0, 0, -1))
    return u.to(Y, head._widths()[1]).after(graph, head, excess)


def _placed(graph: Graph, Z: str, h: int) -> str:
    """Z with the first key taken from keys and queries: distances stay."""
    K, Q, V = graph.split(Z, [h] * 3)
    first = graph.op("Gather", K, graph.integers(0), axis=2)
    K, Q = (graph.op("Sub", x, first) for x in (K, Q))
    return graph.op("Concat", K, Q, V, axis=-1)


Parts = tuple[str, str, str]
Seen = tuple[str, str]


def _seen(graph: Graph, causal: bool, U: str, lengths: str) -> Seen:
    """Which keys a query sees, and which queries are there; "" for all.

    (T, T) or (m, 1, T, T), and (m, 1, T, 1).
    """
    if not (causal or lengths):
        return "", ""
    t = graph.places(U)
    row, column = (graph.op("Unsqueeze", t, graph.integers(axis)) for axis in (0, 1))
    before = graph.op("GreaterOrEqual", column, row) if causal else ""
    if not lengths:
        return before, ""
    there = graph.op("Less", row, graph.op("Unsqueeze", lengths, graph.integers(1)))
    query, key = (graph.op("Unsqueeze", there, graph.integers(1, axis)) for axis in (3, 2))
    seen = graph.op("And", query, key)
    return (graph.op("And", seen, before) if before else seen), query


def _kernel(graph: Graph, of: KernelAttention, h: int, parts: Parts, seen: Seen) -> str:
    """``E phi(V)``, each row over ``c + sum_j E_ij``.

    ``E_ij = exp(2g <q_i, k_j> - g |q_i|^2 - g |k_j|^2)``, its exponent at most 0, a
    difference that is formed in float64.
    """
    (K, Q, V), op, number = parts, graph.op, graph.constant
    g, axis, wide = of.scale(h), graph.integers(-1), replace(graph, dtype=np.dtype(np.float64))
    zero = wide.constant(0.0)
    Q, K = (op("CastLike", x, zero) for x in (Q, K))
    q, k = (
        op("Mul", op("ReduceSum", op("Mul", x, x), axis, keepdims=True), wide.constant(g))
        for x in (Q, K)
    )
    Z = op("Sub", wide.products(op("Mul", Q, wide.constant(2 * g)), K), q)
    Z = op("Sub", Z, op("Transpose", k, perm=(0, 1, 3, 2)))
    E = op("Exp", op("CastLike", op("Min", Z, zero), number(0.0)))
    E = op("Where", seen[0], E, number(0.0)) if seen[0] else E
    total = op("MatMul", E, _phi(graph, V))
    return op("Div", total, op("Add", op("ReduceSum", E, axis, keepdims=True), number(of.c)))


def _softmax(graph: Graph, of: Softmax | BoundedSoftmax, h: int, parts: Parts, seen: Seen) -> str:
    """``softmax(tau Q K^T) V``; a token that is not there has the output 0."""
    (K, Q, V), op, number = parts, graph.op, graph.constant
    Z = graph.products(op("Mul", Q, number(of.scale(h))), K)
    Z = op("Where", seen[0], Z, number(lowest(np, graph.dtype))) if seen[0] else Z
    out = op("MatMul", op("Softmax", Z, axis=-1), V)
    return op("Where", seen[1], out, number(0.0)) if seen[1] else out


def _bounded(graph: Graph, of: BoundedSoftmax, h: int, parts: Parts, seen: Seen) -> str:
    """The same of ``phi(K)``, ``phi(Q)`` and ``phi(V)``."""
    K, Q, V = (_phi(graph, x) for x in parts)
    return _softmax(graph, of, h, (K, Q, V), seen)


def _phi(graph: Graph, s: str) -> str:
    """``s / sqrt(1 + s^2)``."""
    s = graph.op("Clip", s, graph.constant(-FAR), graph.constant(FAR))
    square = graph.op("Add", graph.op("Mul", s, s), graph.constant(1.0))
    return graph.op("Div", s, graph.op("Sqrt", square))


MAPS: dict[type[Attention], Callable[[Graph, Any, int, Parts, Seen], str]] = {
    KernelAttention: _kernel,
    BoundedSoftmax: _bounded,
    Softmax: _softmax,
}
GRAPHS: dict[type, Writer] = {ImplicitAttentionHead: _attention}
SEQUENCES = (ImplicitAttentionHead,)
