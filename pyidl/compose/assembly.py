r"""Affine maps, sums, activations and implicit models without a loop are one model.

Every quantity is an affine form of the states so far and the input,

    v = M_u u + M_1 x_1 + ... + M_l x_l + c                     (`pyidl.compose.forms`)

An activation starts states: its form becomes a block of rows of B, A and b. An implicit
model ``x = phi(A x + B v + b)``, ``y = C x + D v + d`` does so too, with its A on the
diagonal. The form of the output is C, D, d. With x = (x_L, ..., x_1), what is solved
last first, A is block upper triangular: well-posed if the parts are, and solved by one
substitution.

**Multiplied out or kept.** A quantity may be named: states y = v, with the identity as
activation. Whoever reads v then reads y. If r readers want v, and one of them W v, then

    nnz(W M) + (r - 1) nnz(M)                         multiplied out
    nnz(M) + width + nnz(W) + (r - 1) width           kept

entries of A are written. It is kept where that is less: behind a narrow layer, and in a
residual stream, ``h + f(h)`` over and over, where each block would otherwise read all
before it: L blocks write L (L - 1) / 2 products instead of 2 L.

**Maximum.** ``max(a, b) = b + relu(a - b)``, and of more a tree of these: exact in real
arithmetic. In floating point a - b is rounded, so that the error is an ulp of the
*larger in size* of a and b, even where the other one is the maximum.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2 and 3 (networks as implicit models); the counting:
derived here.
"""

from __future__ import annotations

import itertools
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from pyidl import activations
from pyidl.activations import Activation
from pyidl.activations.base import joint
from pyidl.arrays.backend import from_host, to_numpy
from pyidl.compose import sets
from pyidl.compose.forms import INPUT, Entries, Form, add, applied, minus, stack, take
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel, Layer
from pyidl.matrices.pattern import Pattern
from pyidl.matrices.sparse import DENSITY
from pyidl.typing import Namespace
from pyidl.wellposed import Constraint, StrictlyTriangular

__all__ = ["Assembly", "Step", "host", "vector"]


class Step(NamedTuple):
    """``x = phi(A x + B v + b)``, ``y = C x + D v + d``.

    With the set in which A lies; None where it is about more than A.
    """

    A: Entries
    B: Entries
    C: Entries
    D: Entries
    b: np.ndarray | None
    d: np.ndarray | None
    activation: Activation
    constraint: Constraint | None

    @classmethod
    def of(cls, layer: Any) -> Step:
        """An `ImplicitModel`, or what a recurrent one does in a time step."""
        L = layer.params.get("L")
        A = host(layer, "A") if L is None else to_numpy(L) @ host(layer, "R").T
        B, C = host(layer, "B"), host(layer, "C")
        D = np.zeros((len(C), B.shape[1]))
        own = host(layer, "D") if "D" in layer.params else D[:, :0]
        D[:, : own.shape[1]] = own  # of all that B reads, of u_t alone, or none
        there = np.arange(D.shape[1]) < own.shape[1]
        masks = {key: layer.support(key) for key in "ABCD"}
        masks["D"] = np.broadcast_to(there, D.shape) if masks["D"] is None else masks["D"]
        entries = {
            key: Entries.of(M, masks[key]) for key, M in zip("ABCD", (A, B, C, D), strict=True)
        }
        constraint = layer.constraint if layer.constraint.projects == ("A",) else None
        b, d = vector(layer, "b"), vector(layer, "d")
        return cls(**entries, b=b, d=d, activation=layer.activation, constraint=constraint)


def host(layer: Layer, key: str) -> np.ndarray:
    """A parameter in float64, on the host."""
    return to_numpy(layer.params[key]).astype(np.float64)


def vector(layer: Layer, key: str) -> np.ndarray | None:
    """A bias, if the layer has it."""
    return host(layer, key) if key in layer.params else None


class _Block(NamedTuple):
    """Rows of A, B and b: a form, and what the states feed back to themselves."""

    form: Form
    activation: Activation
    own: Entries | None = None
    constraint: Constraint | None = StrictlyTriangular()


class Assembly:
    """The states so far; every method gives the form of what it computes.

    Parameters
    ----------
    input_dim : int
        p.
    keep : bool, optional
        Whether what is neither a state nor the input is named before a matrix reads it.
        None: where that leaves fewer entries.

    Attributes
    ----------
    input : Form
        u.
    biased : bool
        Whether some map has had a bias.

    Examples
    --------
    A perceptron:

    >>> net = Assembly(2)
    >>> z = net.affine(net.input, np.ones((3, 2)))
    >>> hidden = net.activation(z, activations.relu)
    >>> model = net.model(net.affine(hidden, np.ones((1, 3))), np, "float64")
    >>> model.predict(np.ones((1, 2))).tolist()
    [[6.0]]
    """

    def __init__(self, input_dim: int, keep: bool | None = None) -> None:
        expect("keep", keep, (bool, NoneType), "use True, False or None")
        self.input = Form({INPUT: Entries.identity(input_dim)}, np.zeros(input_dim))
        self.biased = False
        self._keep = keep
        self._blocks: list[_Block] = []

    def affine(self, form: Form, W: Any, b: np.ndarray | None = None) -> Form:
        """``W v + b``; W is an array, a sparse array, or `Entries`."""
        W = W if isinstance(W, Entries) else Entries.of(W)
        out = applied(W, form)
        if self._worth_naming(form, W.nnz, out.nnz):
            self._name(form)
            out = applied(W, form)
        return self._plus(b, out)

    def activation(self, form: Form, phi: Activation) -> Form:
        """``phi(v)``: new states."""
        if self._worth_naming(form, form.width, form.nnz):
            self._name(form)
        together = bool(phi.vector_blocks(form.width))  # in no triangle of its own
        return self._states(_Block(form, phi, None, None if together else StrictlyTriangular()))

    def implicit(self, step: Step, *forms: Form) -> Form:
        """The output of an implicit model that is given these forms, side by side."""
        ends = np.cumsum([0, *(form.width for form in forms)])
        pieces = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        B, D = ([M.block(columns=piece) for piece in pieces] for M in (step.B, step.D))
        for v, M in zip(forms, D, strict=True):
            v.readers += M.nnz > 0
        z = map(self.affine, forms, B)
        x = self._states(_Block(self._plus(step.b, *z), step.activation, step.A, step.constraint))
        y = [self.affine(v, M) for v, M in zip(forms, D, strict=True) if M.nnz]
        return self._plus(step.d, self.affine(x, step.C), *y)

    def maximum(self, form: Form, windows: np.ndarray) -> Form:
        """``max_k v[windows[k, i]]`` for every i, by pairs.

        Where fewer than k components are in a window, one of them stands there twice.
        """
        level = [take(form, rows) for rows in windows]
        if self._worth_naming(form, windows.size, sum(one.nnz for one in level)):
            self._name(form)
            level = [take(form, rows) for rows in windows]
        width = windows.shape[1]
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=False))
            x = self._states(_Block(stack([add(a, minus(b)) for a, b in pairs]), activations.relu))
            above = [take(x, slice(i, i + width)) for i in range(0, x.width, width)]
            odd = level[-1:] if len(level) % 2 else []
            level = [add(b, r) for (_, b), r in zip(pairs, above, strict=True)] + odd
        return level[0]

    def model(self, output: Form, xp: Namespace, dtype: str) -> ImplicitModel:
        """The whole, with this output, in the library and the dtype of the network.

        Raises
        ------
        InputError
            If there are no states, or a number overflows in this dtype.
        """
        if not self._blocks:
            raise InputError(
                "the network has no activation, and so no state; it is the affine map y = D u + d "
                "already"
            )
        p, q = self.input.width, output.width
        widths = [block.form.width for block in self._blocks]
        n = sum(widths)
        ends = n - np.cumsum([0, *widths])  # block i occupies ends[i + 1] : ends[i]
        shapes = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
        found: dict[str, Any] = {key: np.zeros(shape, dtype) for key, shape in shapes.items()}
        found |= {"b": np.zeros(n, dtype), "d": output.constant.astype(dtype)}
        masks = {key: np.zeros(shape, bool) for key, shape in shapes.items()}

        def place(M: Entries, key: str, rows: slice, columns: slice) -> None:
            found[key][rows, columns] = M.values.toarray()
            masks[key][rows, columns] = M.places.toarray() > 0

        def place_all(form: Form, keys: str, rows: slice) -> None:
            for j, M in form.matrices.items():
                here = slice(None) if j == INPUT else slice(ends[j + 1], ends[j])
                place(M, keys[1] if j == INPUT else keys[0], rows, here)

        with np.errstate(over="ignore"):  # what overflows is refused by name
            for i, block in enumerate(self._blocks):
                rows = slice(ends[i + 1], ends[i])
                place_all(block.form, "AB", rows)
                found["b"][rows] = block.form.constant
                if block.own is not None:
                    place(block.own, "A", rows, rows)
            place_all(output, "CD", slice(0, q))
        blocks: list[sets.Block] = [
            ([(block.activation, width)], block.constraint)
            for block, width in zip(reversed(self._blocks), reversed(widths), strict=True)
        ]
        constraint = sets.set_of(blocks, found["A"])
        free = () if constraint.keeps_zeros else constraint.projects
        feedthrough = bool(masks["D"].any())
        names = ["A", "B", "C", *("D" if feedthrough else ""), *("bd" if self.biased else "")]
        config = {
            "input_dim": p,
            "output_dim": q,
            "hidden_dim": n,
            "activation": joint(pair for phis, _ in blocks for pair in phis),
            "constraint": constraint,
            "rank": None,
            "pattern": Pattern(**{key: None if key in free else masks[key] for key in masks}),
            "bias": self.biased,
            "feedthrough": feedthrough,
            "forward": None,
            "adjoint": None,
            "dtype": dtype,
            "sparse_below": DENSITY,
        }
        return ImplicitModel._with(config, {key: from_host(xp, found[key]) for key in names})

    def _plus(self, b: np.ndarray | None, *forms: Form) -> Form:
        out = add(*forms)
        if b is not None:
            self.biased = True
            out.constant = out.constant + b
        return out

    def _states(self, block: _Block) -> Form:
        # a copy of the form: it stays what it is where its original is named later
        form = Form(block.form.matrices, block.form.constant)
        self._blocks.append(block._replace(form=form))
        return Form({len(self._blocks) - 1: Entries.identity(form.width)}, np.zeros(form.width))

    def _worth_naming(self, form: Form, read: int, multiplied: int) -> bool:
        """For a matrix of `read` entries that are `multiplied` when multiplied out."""
        if self._keep is not None:
            return self._keep and form.nnz > form.width  # a state already has a name
        others, width = form.readers - 1, form.width
        kept = form.nnz + width + read + others * width
        return kept < multiplied + others * form.nnz

    def _name(self, form: Form) -> None:
        name = self._states(_Block(form, activations.identity))
        form.matrices, form.constant = name.matrices, name.constant
