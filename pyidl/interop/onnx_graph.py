"""Writing an ONNX graph.

Nodes with fresh names, constants, and the activations in ONNX's operators.

A name stands for the array that a node gives: ``graph.op("Add", x, z)`` writes a node
and returns the name of x + z. The body of a loop is a graph of its own, which sees the
names of the graph around it. An activation without an operator of its own is composed
of others. (In float64 onnxruntime lacks one operator of those that are used here: Erf.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError

__all__ = ["Graph", "normalised", "phi_node"]

OPERATORS = {
    "relu": "Relu",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "elu": "Elu",
    "identity": "Identity",
    "sin": "Sin",
    "abs": "Abs",
}
"""Activations that are operators of ONNX."""


@dataclass
class Graph:
    """A graph being written. The body of a loop is one, too.

    It shares the constants and the numbering of the whole.
    """

    dtype: np.dtype[Any]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    count: list[int] = field(default_factory=lambda: [0])

    def body(self) -> Graph:
        """An empty graph for the body of a loop."""
        return Graph(self.dtype, [], self.constants, self.count)

    @property
    def type(self) -> int:
        """The number that ONNX has for the dtype."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def name(self, kind: str) -> str:
        """A name that is not yet used."""
        self.count[0] += 1
        return f"{kind}_{self.count[0]}"

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant of the graph, in its dtype unless another is given."""
        name, array = self.name("c"), np.array(value, dtype=dtype or self.dtype, order="C")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """A vector of integers: axes, or a shape."""
        return self.constant(values, np.int64)

    def op(
        self,
        kind: str,
        *inputs: str,
        out: str = "",
        axis: int | None = None,
        keepdims: bool | None = None,
        perm: tuple[int, ...] | None = None,
    ) -> str:
        """One node with one output; returns its name."""
        out = out or self.name(kind)
        node = helper.make_node(kind, list(inputs), [out])
        for key, value in (
            ("axis", axis),
            ("keepdims", None if keepdims is None else int(keepdims)),
            ("perm", perm),
        ):
            if value is not None:
                node.attribute.append(helper.make_attribute(key, value))
        self.nodes.append(node)
        return out

    def info(
        self, name: str, kind: str = "number", shape: Sequence[str | int | None] | None = None
    ) -> onnx.ValueInfoProto:
        """An input or an output: a "number" of the dtype, an "integer", a "boolean"."""
        types = {
            "number": self.type,
            "integer": onnx.TensorProto.INT64,
            "boolean": onnx.TensorProto.BOOL,
        }
        return helper.make_tensor_value_info(name, types[kind], shape)

    def dimension(self, x: str, axis: int) -> str:
        """The size of x along an axis, as a vector of one entry."""
        return self.op("Slice", self.op("Shape", x), self.integers(axis), self.integers(axis + 1))

    def places(self, x: str) -> str:
        """``0, ..., T - 1`` for x of shape (m, T, ...)."""
        zero, one = (self.constant(i, np.int64) for i in (0, 1))
        return self.op("Range", zero, self.op("Squeeze", self.dimension(x, 1)), one)

    def look_up(self, table: str, places: str) -> str:
        """``table[places]``; a place outside the table ends the run with an error.

        That is how a graph refuses an input. `Gather` counts negative places from the
        end, so they are moved beyond it.
        """
        beyond = self.op("Squeeze", self.dimension(table, 0))
        negative = self.op("Less", places, self.constant(0, np.int64))
        return self.op("Gather", table, self.op("Where", negative, beyond, places), axis=0)

    def split(self, x: str, widths: list[int]) -> list[str]:
        """The parts of x along its last axis."""
        parts = [self.name("part") for _ in widths]
        self.nodes.append(helper.make_node("Split", [x, self.integers(*widths)], parts, axis=-1))
        return parts

    def reverse(self, x: str, lengths: str) -> str:
        """x, (m, T, k), with the steps of every sample in the opposite order.

        Those beyond its length stay.
        """
        out = self.name("reversed")
        self.nodes.append(
            helper.make_node("ReverseSequence", [x, lengths], [out], batch_axis=0, time_axis=1)
        )
        return out

    def products(self, a: str, b: str) -> str:
        """``<a_i, b_j>`` for all rows, (m, H, T, k).

        onnxruntime fuses a `MatMul` with the `Transpose` before it; in float64 it then
        has no code for it, up to version 1.24 at least.
        """
        if self.dtype == np.float32:
            return self.op("MatMul", a, self.op("Transpose", b, perm=(0, 1, 3, 2)))
        out = self.name("products")
        self.nodes.append(helper.make_node("Einsum", [a, b], [out], equation="mhik,mhjk->mhij"))
        return out

    def rows(self, x: str, W: Any) -> str:
        """The product ``x W^T``, with W as a constant."""
        return self.op("MatMul", x, self.constant(to_numpy(W).T))

    def plus(self, x: str, b: Any) -> str:
        """``x + b``; x where there is no b."""
        return x if b is None else self.op("Add", x, self.constant(to_numpy(b)))

    def largest(self, x: str, axes: list[int]) -> str:
        """``max |x|`` along some axes."""
        return self.op("ReduceMax", self.op("Abs", x), self.integers(*axes), keepdims=False)


def phi_node(graph: Graph, phi: Activation, z: str) -> str:
    """``phi(z)`` along the last axis."""
    if isinstance(phi, Blocks):
        parts = graph.split(z, [b.stop - b.start for b in phi.blocks])
        return graph.op(
            "Concat",
            *(
                phi_node(graph, b.activation, part)
                for b, part in zip(phi.blocks, parts, strict=True)
            ),
            axis=-1,
        )
    if activations.named(phi.name) is not phi:
        raise InputError(
            f"the activation {phi.name!r} is not built in, and ONNX cannot be told what it does; "
            "use one of pyidl.activations"
        )
    if phi.name in OPERATORS:
        return graph.op(OPERATORS[phi.name], z)
    kind, _, argument = phi.name.partition("(")
    number = float(argument[:-1]) if argument else 0.0
    match kind:
        case "softmax":
            return graph.op("Softmax", z, axis=-1)
        case "hard_tanh":
            return graph.op("Clip", z, graph.constant(-1.0), graph.constant(1.0))
        case "silu":
            # z / (1 + exp(-z)). onnxruntime fuses z times Sigmoid; older ones then lose
            # it in float64.
            return graph.op(
                "Div", z, graph.op("Add", graph.op("Exp", graph.op("Neg", z)), graph.constant(1.0))
            )
        case "leaky_relu":
            return graph.op("Max", z, graph.op("Mul", z, graph.constant(number)))
        case "gelu":  # z (1 + erf(z / sqrt 2)) / 2
            if graph.dtype == np.float64:
                raise InputError(
                    "gelu needs Erf, which onnxruntime has in float32 alone; export "
                    "layer.astype('float32')"
                )
            erf = graph.op("Erf", graph.op("Mul", z, graph.constant(0.5**0.5)))
            return graph.op(
                "Mul",
                graph.op("Mul", z, graph.constant(0.5)),
                graph.op("Add", erf, graph.constant(1.0)),
            )
        case "layer_norm":
            return normalised(graph, z, number)
    raise InputError(
        f"there is no ONNX graph for the activation {phi.name!r}; use another of pyidl.activations"
    )


def normalised(graph: Graph, z: str, eps: float) -> str:
    """``c / (eps + mean of c^2)^(1/2)``, ``c = z - mean of z``, along the last axis."""
    axis = graph.integers(-1)
    c = graph.op("Sub", z, graph.op("ReduceMean", z, axis, keepdims=True))
    variance = graph.op("ReduceMean", graph.op("Mul", c, c), axis, keepdims=True)
    return graph.op("Div", c, graph.op("Sqrt", graph.op("Add", variance, graph.constant(eps))))
