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

from collections.abc import Iterable
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.sim.networks import AffineMap, Branch, Chain, Step, biased, chain, read_chain
from pyidl.sim.states import joint_activation
from pyidl.sim.torch_network import is_torch, steps_of
from pyidl.wellposed import BlockTriangular, InfNorm, StrictlyTriangular

__all__ = ["exact_model"]


def exact_model(network: Any) -> ImplicitModel:
    """The network itself as an implicit model, with the pattern of its layers.

    Its states are those of `collect_states`, its outputs those of the network, before
    an activation of the output.

    Parameters
    ----------
    network : Sequential, Feedforward, MLPClassifier, MLPRegressor or torch.nn.Sequential
        As for `collect_states`, of linear layers and activations: not with implicit
        models in it, whose states feed back.

    Raises
    ------
    InputError
        If the network is none of these.

    Examples
    --------
    >>> from pyidl import Linear, Sequential, activations
    >>> net = Sequential(Linear(4, 3, rng=0), activations.relu, Linear(3, 2, rng=1), activations.relu, Linear(2, 1, rng=2))
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
    form: dict[int, np.ndarray] = {
        -1: np.eye(p)
    }  # by the number of the activation, -1 for the input
    constant: np.ndarray = np.zeros(p)
    rows: list[tuple[dict[int, np.ndarray], np.ndarray]] = []
    phis: list[tuple[Activation, int]] = []

    def through(
        parts: Iterable[Step], form: dict[int, np.ndarray], constant: np.ndarray
    ) -> tuple[dict[int, np.ndarray], np.ndarray]:
        for step in parts:
            if isinstance(step, ImplicitModel):
                raise InputError(
                    "the network contains an ImplicitModel, whose states feed back; it is an "
                    "implicit model already"
                )
            if isinstance(step, Branch):
                after, shift = through(step.steps, form, constant)
                form = {
                    key: np.sum([M[key] for M in (form, after) if key in M], axis=0)
                    for key in form | after
                }
                constant = constant + shift
            elif isinstance(step, AffineMap):
                W = to_numpy(step.W).astype(np.float64)
                form = {source: W @ M for source, M in form.items()}
                constant = W @ constant + (0.0 if step.b is None else to_numpy(step.b))
            else:
                rows.append((form, constant))
                phis.append((step, len(constant)))
                form, constant = {len(phis) - 1: np.eye(len(constant))}, np.zeros(len(constant))
        return form, constant

    form, constant = through(steps.steps, form, constant)
    n, q = sum(width for _, width in phis), len(constant)
    ends = n - np.cumsum(
        [0, *(width for _, width in phis)]
    )  # state i occupies ends[i + 1] : ends[i]
    A, B, C, D, b = (
        np.zeros((n, n)),
        np.zeros((n, p)),
        np.zeros((q, n)),
        np.zeros((q, p)),
        np.zeros(n),
    )
    masks = {key: np.zeros(M.shape, bool) for key, M in (("A", A), ("B", B), ("C", C), ("D", D))}
    for i, (own, c) in enumerate(rows):
        here = slice(ends[i + 1], ends[i])
        b[here] = c
        _place(own, here, ends, (A, B), (masks["A"], masks["B"]))
    _place(form, slice(0, q), ends, (C, D), (masks["C"], masks["D"]))
    bias = biased(steps.steps)
    phis.reverse()
    together = any(phi.vector_blocks(width) for phi, width in phis)
    model = ImplicitModel(
        p,
        q,
        n,
        activation=joint_activation(phis),
        constraint=BlockTriangular(tuple(width for _, width in phis), InfNorm(0.99))
        if together
        else StrictlyTriangular(),
        pattern=Pattern(**masks),
        bias=bias,
        feedthrough=bool(masks["D"].any()),
        dtype=steps.dtype,
        rng=0,
    )
    found = {"A": A, "B": B, "C": C, "D": D, "b": b, "d": constant}
    model.params = {
        key: from_host(steps.xp, found[key].astype(steps.dtype)) for key in model.params
    }
    return model


def _of_torch(module: Any) -> Chain:
    steps = steps_of(module)
    double = any(isinstance(step, AffineMap) and step.W.dtype == np.float64 for step in steps)
    return chain(steps, np, "float64" if double else "float32")


def _place(form: dict[int, np.ndarray], here: slice, ends: Any, matrices: Any, masks: Any) -> None:
    """Write a form into the rows `here` of (A, B) or (C, D)."""
    for source, M in form.items():
        side, columns = (
            (1, slice(None)) if source < 0 else (0, slice(ends[source + 1], ends[source]))
        )
        matrices[side][here, columns] = M
        masks[side][here, columns] = True
