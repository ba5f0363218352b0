r"""Layers as ONNX graphs: ``x <- f(x)`` as a `Loop`, or written out; time as a `Scan`.

    Z = U B^T + b                               once
    Loop: X <- phi(X A^T + Z)                   until max|f(x) - x| <= tol (1 + max|x|)
                                                for every sample, or a number of times
    Y = X C^T + U D^T + d

and the same with ``f(X) = att(X R + U S)`` for an attention head.

ONNX has one trip count for a batch, so that all samples go on until the slowest has
converged: a row may come out closer to its fixed point in company than alone, by no
more than the tolerance. What is returned is f at the point that was measured: if f
contracts by kappa, its residual is at most kappa times the measured one. There is one
method, the plain iteration; it converges where a certificate rests on it, and elsewhere
perhaps. A graph cannot say what failed: a second output says for every sample whether
it converged. Tokens, lengths, and more tokens than the `block_size` of an attention
head are refused as the layer does, where a place outside a table ends a run: on the CPU
of onnxruntime.

Opset 18 (ReduceMax with its axes as an input), IR version 8: what onnxruntime reads
since 1.14.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from pyidl.arrays.backend import DTYPES
from pyidl.errors import InputError, WellPosednessWarning, expect, is_whole
from pyidl.interop.onnx_flow import Flow, Options, flow, reads
from pyidl.interop.onnx_graph import Graph
from pyidl.io import replacing
from pyidl.layers import Layer
from pyidl.solvers.base import check_limits

__all__ = ["export"]

OPSET, IR_VERSION = 18, 8
TOL = dict(zip(DTYPES, (1e-6, 1e-12), strict=True))


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

    Its input is U, with any m and T: (m, p); or (m, T, p), where a layer reads
    sequences; or tokens (m, T), int64, where an `Embedding` stands first. Its outputs
    are Y and, where something is solved without `steps`, `converged`, (m,): whether all
    solves of a sample reached the tolerance.

    Parameters
    ----------
    layer : Layer
        `ImplicitModel`, `ImplicitRNN`, `ImplicitAttentionHead`, `Linear`, `Pointwise`,
        `LayerNorm`, `Embedding`, `PositionEmbedding`, `Dropout` (which draws nothing
        here), or a `Sequential`, `Residual` or `Bidirectional` of those; on any device.
        Activations are the built-in ones, and `Blocks` of them.
    path : str or Path, optional
        Where the model is written, too.
    steps : int, optional
        Every solve takes exactly so many steps, written one after another, without a
        measurement: what suffices must be known, from ``pull.forward.n_iter.max()`` or
        ``certificate().steps``.
    tol : float, optional
        Without `steps`: ``max|f(x) - x| <= tol (1 + max|x|)`` ends a solve, once it
        holds for all samples. Default 1e-6 for float32, 1e-12 for float64. Solvers that
        the layer was given play no part.
    max_iter : int
        Without `steps`: the largest number of steps of a solve.
    lengths : bool
        For recurrent networks and attention: whether there is a second input `lengths`,
        int64, (m,): how many steps each sequence has, from 1 to T.

    Returns
    -------
    onnx.ModelProto
        Checked by `onnx.checker`, shapes included.

    Raises
    ------
    InputError
        If there is no graph for a layer or an activation, or none in its dtype, or an
        argument is out of range.

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
    expect("lengths", lengths, bool, "use True or False")
    if steps is not None and not (is_whole(steps) and steps >= 1 and tol is None):
        raise InputError(
            f"steps is {steps!r} and tol is {tol!r}; give a positive integer, or a tolerance, or "
            "neither"
        )
    if lengths and not layer.takes_lengths:
        raise InputError(
            f"{type(layer).__name__} takes no lengths of sequences; leave lengths=True out"
        )
    dtype = layer.dtype if layer.params else "float32"
    graph = Graph(np.dtype(dtype))
    tokens, shape = reads(layer)
    inputs = [graph.info("U", "integer" if tokens else "number", shape)]
    inputs += [graph.info("lengths", "integer", ["m"])] if lengths else []
    read = _lengths(graph) if lengths else ""
    options = Options(steps, TOL[dtype] if tol is None else tol, max_iter, read)
    end = flow(graph, layer, Flow("U", tuple(shape)), options)
    graph.op("Identity", end.name, out="Y")
    outputs = [graph.info("Y", shape=end.shape)]
    if end.excess:
        graph.op("LessOrEqual", end.excess, graph.constant(0.0), out="converged")
        outputs.append(graph.info("converged", "boolean", ["m"]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, type(layer).__name__, inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pyidl",
    )
    onnx.checker.check_model(model, full_check=True)
    for part in filter(_unproven, end.solved if steps is None else ()):
        warnings.warn(
            "nothing proves that the plain iteration of the exported graph converges "
            f"({part.certificate()!r}); read its output `converged`, or project the layer into a "
            "set where it does, such as InfNorm",
            WellPosednessWarning,
            stacklevel=2,
        )
    if path is not None:
        with replacing(Path(path)) as file:
            file.write(model.SerializeToString())
    return model


def _lengths(graph: Graph) -> str:
    """The lengths, one for each sample, where all are 1, ..., T; else the run fails."""
    one = graph.constant(1, np.int64)
    all_m = graph.op("Reshape", "lengths", graph.dimension("U", 0))
    return graph.op("Add", graph.look_up(graph.places("U"), graph.op("Sub", all_m, one)), one)


def _unproven(layer: Layer) -> bool:
    """Whether nothing proves that ``x <- f(x)`` converges.

    Neither that f contracts in some norm, nor that A has no cycles.
    """
    certificate = layer.certificate(explain=True)
    methods = [c.applies_to for c in (certificate, *certificate.others) if c.proven]
    return not any(
        name.startswith(("Picard", "Substitution")) and "damping" not in name for name in methods
    )
