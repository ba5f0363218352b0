r"""From layer to layer: what the graphs of all layers share.

The graph of a layer is a function ``(graph, layer, u, options) -> Flow`` in the file of
its wing (`onnx_layers`, ...), which lists them by class in `GRAPHS`, and in `SEQUENCES`
the layers whose input is (m, T, p).

A solve starts from f(0) and takes ``x <- f(x)``; the loop goes on while for some
sample, with the largest entries of all its axes,

    excess = max|f(x) - x| - tol (1 + max|x|) > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from pyidl.errors import InputError
from pyidl.interop.onnx_graph import Graph
from pyidl.interop.wings import beside
from pyidl.io import offered
from pyidl.layers import Embedding, Layer, Sequential

__all__ = ["Flow", "Options", "Writer", "flow", "looped", "reads", "worse"]


@dataclass(frozen=True)
class Options:
    """When a solve ends, and the name of the lengths of sequences, "" without them."""

    steps: int | None
    tol: float
    max_iter: int
    lengths: str = ""


class Flow(NamedTuple):
    """What goes from layer to layer.

    An array's name and shape; the excess of every sample so far, "" where none was
    measured; the layers in which something was solved.
    """

    name: str
    shape: tuple[str | int | None, ...]
    excess: str = ""
    solved: tuple[Layer, ...] = ()

    def to(self, name: str, width: int | None = None) -> Flow:
        """The array of that name; its last axis has another width, or the same."""
        shape = self.shape if width is None else (*self.shape[:-1], width)
        return self._replace(name=name, shape=shape)

    def after(self, graph: Graph, layer: Layer, excess: str) -> Flow:
        """The same after a solve of this layer."""
        solved = (*self.solved, layer)
        return self._replace(excess=worse(graph, self.excess, excess), solved=solved)


Writer = Callable[[Graph, Any, Flow, Options], Flow]


def flow(graph: Graph, layer: Layer, u: Flow, options: Options) -> Flow:
    """Write the graph of a layer.

    Raises
    ------
    InputError
        If there is no graph for the layer, or for what it is made of.
    """
    write = _graphs(type(layer)).get(type(layer))
    if write is None:  # a class derived from a known one may compute something else
        known = [name for name, cls in offered(Layer).items() if cls in _graphs(cls)]
        raise InputError(
            f"there is no ONNX graph for {type(layer).__name__}; there is one for "
            f"{', '.join(known)}"
        )
    return write(graph, layer, u, options)


def _graphs(cls: type) -> Mapping[type, Writer]:
    """Those of the wing of a class."""
    return getattr(beside("onnx", cls), "GRAPHS", {})


def reads(layer: Layer) -> tuple[bool, list[str | int | None]]:
    """Whether the input are tokens, and its shape."""
    width = layer._widths()[0]
    if isinstance(layer, Embedding):
        return True, ["m", "T"]
    if isinstance(layer, Sequential):
        if reads(layer.layers[0])[0]:
            return True, ["m", "T"]
        longest = max(len(reads(part)[1]) for part in layer.layers)
        return False, [*["m", "T"][: longest - 1], width]
    sequences = getattr(beside("onnx", type(layer)), "SEQUENCES", ())
    return False, ["m", "T", width] if isinstance(layer, sequences) else ["m", width]


def worse(graph: Graph, one: str, other: str) -> str:
    """The larger excess of every sample; one of them may not be there."""
    return graph.op("Max", one, other) if one and other else one or other


def looped(
    graph: Graph, f: Callable[[Graph, str], str], x: str, axes: list[int], options: Options
) -> tuple[str, str]:
    """``(X, excess)`` after ``x <- f(x)``, from x = f(0).

    x has these axes besides that of the samples. The excess is "" if none is measured.
    """
    if options.steps is not None:
        for _ in range(options.steps - 1):
            x = f(graph, x)
        return x, ""
    start = graph.largest(x, axes)  # of the right shape; not used
    body = graph.body()
    i, going, old, before = (body.name(kind) for kind in ("i", "going", "x", "excess"))
    new, number = f(body, old), body.constant
    allowed = body.op("Add", body.largest(old, axes), number(1.0))
    allowed = body.op("Mul", allowed, number(options.tol))
    excess = body.op("Sub", body.largest(body.op("Sub", new, old), axes), allowed)
    # 0 for NaN, so that the loop ends.
    late = body.op("Where", body.op("Greater", excess, number(0.0)), number(1.0), number(0.0))
    go_on = body.op("Greater", body.op("ReduceMax", late, keepdims=False), number(0.0))
    inputs = [graph.info(i, "integer", []), graph.info(going, "boolean", [])]
    inputs += [graph.info(name) for name in (old, before)]
    outputs = [graph.info(go_on, "boolean", []), graph.info(new), graph.info(excess)]
    inner = helper.make_graph(body.nodes, "iteration", inputs, outputs)
    X, last = graph.name("X"), graph.name("excess")
    trips, true = graph.constant(options.max_iter, np.int64), graph.constant(True, np.bool_)
    graph.nodes.append(helper.make_node("Loop", [trips, true, x, start], [X, last], body=inner))
    return X, last
