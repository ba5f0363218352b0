r"""A feed-forward network is an implicit model.

The exact one, from which states can be learned more sparsely.

Every quantity in the network is an affine form of the states so far and the input,
``sum_l M_l x_l + M_u u + c``. A layer W, b makes of it the form with ``W M_l, W M_u, W
c + b``, a branch around layers the sum of two forms. An activation turns its form into
a block of rows of A, B and b, and starts a new state. What is left at the end is C, D,
d. With x = (x_L, ..., x_1), A is strictly block upper triangular, and substitution
solves the equation in one pass.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyidl.activations import Activation
from pyidl.activations.base import joint
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.sim.networks import AffineMap, Branch, Chain, Step, biased, chain, read_chain
from pyidl.sim.torch_network import is_torch, steps_of
from pyidl.wellposed import BlockTriangular, InfNorm, StrictlyTriangular

__all__ = ["exact_model"]


def exact_model(network: Any) -> ImplicitModel:
    """The network itself as an implicit model, with the pattern of its layers.

    Its states are those of `collect_states`, its outputs those of the network, before
    an activation of the output.

    Parameters
    ----------
    network : Sequential, Feedforward, a perceptron, or torch.nn.Sequential
        As for `collect_states`, of linear layers and activations: not with implicit
        models in it, whose states feed back.

    Returns
    -------
    ImplicitModel

    Raises
    ------
    InputError
        If the network is none of these.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations
    >>> relu = activations.relu
    >>> layers = [Linear(4, 3, rng=0), Linear(3, 2, rng=1), Linear(2, 1, rng=2)]
    >>> net = Sequential(layers[0], relu, layers[1], relu, layers[2])
    >>> model = exact_model(net)
    >>> model.pattern == Pattern.feed_forward(4, 3, 2, 1)
    True
    >>> U = np.ones((5, 4), np.float32)
    >>> bool(np.allclose(model.predict(U), net.predict(U)))
    True
    """
    steps = _of_torch(network) if is_torch(network) else read_chain(network)
    p = steps.input_dim
    if p is None:
        raise InputError(
            "the network is activations alone, of which nothing tells the number of inputs; use a "
            "Linear layer"
        )
    states: list[tuple[_Form, Activation]] = []
    output = _through(steps.steps, _Form({-1: np.eye(p)}, np.zeros(p)), states)
    widths = [len(form.constant) for form, _ in states]
    n, q = sum(widths), len(output.constant)
    ends = n - np.cumsum([0, *widths])  # state i occupies ends[i + 1] : ends[i]
    shapes = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
    found: dict[str, np.ndarray] = {key: np.zeros(shape) for key, shape in shapes.items()}
    found |= {"b": np.zeros(n), "d": output.constant}
    masks = {key: np.zeros(shape, bool) for key, shape in shapes.items()}
    for i, (form, _) in enumerate(states):
        rows = slice(ends[i + 1], ends[i])
        found["b"][rows] = form.constant
        _place(form, rows, ends, (found["A"], found["B"]), (masks["A"], masks["B"]))
    _place(output, slice(0, q), ends, (found["C"], found["D"]), (masks["C"], masks["D"]))
    phis = [(phi, width) for (_, phi), width in zip(states, widths, strict=True)][::-1]
    together = any(phi.vector_blocks(width) for phi, width in phis)
    model = ImplicitModel(
        p,
        q,
        n,
        activation=joint(phis),
        constraint=BlockTriangular(tuple(widths[::-1]), InfNorm(0.99))
        if together
        else StrictlyTriangular(),
        pattern=Pattern(**masks),
        bias=biased(steps.steps),
        feedthrough=bool(masks["D"].any()),
        dtype=steps.dtype,
        rng=0,
    )
    model.params = {
        key: from_host(steps.xp, found[key].astype(steps.dtype)) for key in model.params
    }
    return model


class _Form(NamedTuple):
    """``sum_l M_l x_l + M_u u + c``.

    The matrices are numbered as the states are; -1 is that of the input.
    """

    matrices: dict[int, np.ndarray]
    constant: np.ndarray


def _through(steps: tuple[Step, ...], form: _Form, states: list[tuple[_Form, Activation]]) -> _Form:
    """The form after all steps.

    New states are noted on the way, with the form that their activation takes.
    """
    for step in steps:
        if isinstance(step, ImplicitModel):
            raise InputError(
                "the network contains an ImplicitModel, whose states feed back; it is an "
                "implicit model already"
            )
        if isinstance(step, Branch):
            after = _through(step.steps, form, states)
            both = (form.matrices, after.matrices)
            keys = form.matrices | after.matrices
            form = _Form(
                {key: np.sum([M[key] for M in both if key in M], axis=0) for key in keys},
                form.constant + after.constant,
            )
        elif isinstance(step, AffineMap):
            W = to_numpy(step.W).astype(np.float64)
            b = 0.0 if step.b is None else to_numpy(step.b)
            form = _Form({key: W @ M for key, M in form.matrices.items()}, W @ form.constant + b)
        else:
            states.append((form, step))
            width = len(form.constant)
            form = _Form({len(states) - 1: np.eye(width)}, np.zeros(width))
    return form


def _of_torch(module: Any) -> Chain:
    steps = steps_of(module)
    double = any(isinstance(step, AffineMap) and step.W.dtype == np.float64 for step in steps)
    return chain(steps, np, "float64" if double else "float32")


def _place(form: _Form, rows: slice, ends: np.ndarray, matrices: Any, masks: Any) -> None:
    """Write a form into these rows of (A, B) or (C, D)."""
    for source, M in form.matrices.items():
        side = 1 if source < 0 else 0
        columns = slice(None) if source < 0 else slice(ends[source + 1], ends[source])
        matrices[side][rows, columns] = M
        masks[side][rows, columns] = True
