"""Inputs at which a bound is attained, or nearly: with anything taken from it it is false.

Random inputs stay far below these bounds, so that they cannot tell a false one.
"""

import math

import numpy as np
import pytest
from attention_problems import jacobian, kappa

from pyidl import (
    BoundedSoftmax,
    ImplicitAttentionHead,
    KernelAttention,
    Softmax,
    certify_attention,
)
from pyidl.attention.cell import AttentionCell
from pyidl.attention.certify import curvature, input_factor
from pyidl.attention.feedback import Feedback, lambert
from pyidl.attention.maps import ETA
from pyidl.attention.weighted_mean import Mask
from pyidl.attention.wellposed import attention_certificate
from pyidl.wellposed import Unconstrained

FAR = 1e6
"""Where phi is 1, and flat."""


def blocks(k=0.0, q=0.0, v=0.0):
    """Z or R of one head, from its blocks, broadcast against each other."""
    return np.concatenate([np.array(a, float) for a in np.broadcast_arrays(k, q, v)], axis=-1)


def sides(n, h):
    """1 for half of the tokens, -1 for the others, (n, h)."""
    return np.repeat([1.0, -1.0], n // 2)[:, None] * np.ones(h)


@pytest.mark.parametrize("h", [1, 16, 36])
@pytest.mark.parametrize("through", ["q", "k"])
@pytest.mark.parametrize("attention", [KernelAttention(), BoundedSoftmax()], ids=repr)
@pytest.mark.parametrize("rows", [1, None])
def test_what_moves_all_of_a_query_or_a_key(attention, through, h, rows):
    """One dense row of R, or all, and all values at infinity: the step expands by kappa."""
    n, M = 8, np.zeros((h, h))
    M[:rows] = 1.0
    R = blocks(**{"k": 0 * M, "q": 0 * M, "v": 0 * M, through: M})[None]
    R *= 0.9 / kappa(R, attention, n)
    s = sides(n, h)
    if isinstance(attention, KernelAttention):
        y = 0.5 + lambert(0.5 / (attention.c / n * math.sqrt(math.e)))
        Z = blocks(s * math.sqrt(y), 0.0, FAR * s)  # g = 1 / h, so that g |q - k|^2 = y
    else:
        Z = blocks(FAR * s, 0.0, FAR * s) if through == "q" else blocks(0 * s, FAR, FAR * s)
    J = jacobian(AttentionCell(R, attention, Mask()), np.zeros((1, 1, n, h)), Z[None, None])
    assert np.abs(J).sum(axis=1).max() == pytest.approx(0.9, rel=1e-6)


def test_errors_grow_from_token_to_token():
    """Layers of tokens, each of which listens to the keys of the layer before.

    A token contracts while those before it rest, and yet the error grows: the distance
    to the solution, 0, is five times what the residual would allow of a contraction.
    """
    attention, layers, m = KernelAttention(bandwidth=1.0, c=1.0), 5, 16
    n, place, s = layers * m, 10.0, sides(m, 1)
    R = np.array([[[1.0, 0.0, 0.0]]])
    y = math.sqrt(0.5 + lambert(0.5 / (attention.c / m * math.sqrt(math.e))))
    Z = np.concatenate([blocks(place * i + y * s, place * (i - 1), FAR * s) for i in range(layers)])
    problem = AttentionCell(R, attention, Mask(causal=True)).bind(Z[None, None])
    assert np.abs(problem.f(np.zeros((1, 1, n, 1)))).max() < 1e-12
    wrong = 1e-6 * np.repeat((-1.0) ** np.arange(layers), m)[None, None, :, None]
    x = wrong
    for _ in range(layers):
        x = problem.f(x) + wrong
    found = attention_certificate({"R": R}, attention, n, True)
    residual = np.abs(problem.f(x) - x).max()
    assert "token by token" in found.reason
    assert residual == pytest.approx(1e-6, rel=1e-3)
    assert np.abs(x).max() <= found.error(residual)
    assert np.abs(x).max() > found.error(residual) / found.constant


# ---------------------------------------------------------------------- softmax in a box


@pytest.mark.parametrize("h", [1, 3])
@pytest.mark.parametrize("coupled", [False, True])
def test_in_the_box_a_step_may_expand_by_the_factor(h, coupled):
    """Keys and queries come from the state alone, which is at a corner of the box.

    Two of seven tokens are on one side, so that the first hears as much of either.
    """
    n, size, H = 7, 10.0, 2 if coupled else 1
    R = np.tile(blocks(np.ones((H * h, h)), 1.0, 0.0), (H, 1, 1))
    s = np.where(np.arange(n) < 2, 1.0, -1.0)[:, None] * np.ones(h)
    Z = np.tile(blocks(0.0, 0.0, size * s), (1, H, 1, 1))
    R *= math.sqrt(0.9 / input_factor(AttentionCell(R, Softmax(), Mask()), Z, of(R)).factor)
    cell = AttentionCell(R, Softmax(), Mask())
    box = input_factor(cell, Z, of(R))
    assert box.factor == pytest.approx(0.9, rel=1e-6)
    assert np.all(box.sizes >= size)
    X = np.tile(size * s, (1, H, 1, 1))
    assert np.abs(jacobian(cell, X, Z)).sum(axis=1).max() == pytest.approx(0.9, rel=2e-3)


def of(R):
    return Feedback.of({"R": R})


def test_a_point_outside_the_box_is_not_said_to_be_near():
    """It nearly satisfies the equation, and is farther from the solution than a contraction allows.

    The first token is so loud there that it hears only itself.
    """
    n, loud, eps = 8, 40.0, 0.4 / (2 * 41)
    head = ImplicitAttentionHead(
        1,
        1,
        attention=Softmax(tau=1.0),
        causal=False,
        constraint=Unconstrained(),
        dtype="float64",
        rng=0,
    )
    head.params = {
        "R": np.array([[[math.sqrt(eps), math.sqrt(eps), 0.5]]]),
        "S": np.array([[[0.0, 0.0, 0.5]]]),
    }
    U = -np.ones((1, n, 1))
    U[0, 0] = 1.0
    problem = head._cell(Mask()).bind(head._inject(U))
    X = np.zeros((1, 1, n, 1))
    for _ in range(100):
        X[:, :, 0] = loud
        X = problem.f(X)
    X[:, :, 0] = loud
    found = certify_attention(head, U, X=X)
    assert found.factor[0] < 1
    assert found.proven.all()
    off = np.abs(X - head.equilibrium(U).value).max()
    residual = np.abs(problem.f(X) - X).max()
    assert off > residual / (1 - found.factor[0])  # what holds inside
    assert off <= found.error[0]


# -------------------------------------------------------------------- second derivatives


def second(cell, X, Z, d, t=1e-3):
    """The largest entry of the second derivative along d, by fourth-order differences."""
    f = cell.bind(Z).f
    a, b = f(X + t * d) + f(X - t * d), f(X + 2 * t * d) + f(X - 2 * t * d)
    return np.abs(16 * a - b - 30 * f(X)).max() / (12 * t * t)


SKEW = np.where(np.arange(19) < 4, 1.0, -1.0)[:, None]
"""A share of 0.21, with which ``E (z - Ez)^2 (u - Eu)`` is largest for z and u of two values."""
HALF = sides(10, 1)
ONES = np.ones((10, 1))
TERMS = {  # attention, the columns of R, Z, the direction of every token, and the term
    "softmax, 2 V D^2": (
        Softmax(tau=1.0),
        (0.0, 0.01, 0.0),
        blocks(100.0 * SKEW, 0.0, SKEW),
        SKEW * SKEW,
        2.0,
    ),
    "softmax, 2 V tau q k": (
        Softmax(tau=1.0),
        (0.1, 0.1, 0.0),
        blocks(0.0, 0.0, 10.0 * HALF),
        HALF,
        2 * 10 * 0.1 * 0.1,
    ),
    "softmax, 2 D beta": (
        Softmax(tau=1.0),
        (0.1, 0.0, 0.5),
        blocks(0.0, 1.0, 0.0 * HALF),
        HALF,
        2 * 0.1 * 0.5,
    ),
    "bounded, 2 D^2": (
        BoundedSoftmax(tau=10.0),
        (0.0, 0.1, 0.0),
        blocks(FAR * SKEW, 0.0, FAR * SKEW),
        SKEW * SKEW,
        2.0,
    ),
    "bounded, eta q^2": (
        BoundedSoftmax(tau=0.01),
        (0.0, 1.0, 0.0),
        blocks(FAR * HALF, 0.5, FAR * HALF),
        ONES,
        0.01 * ETA,
    ),
    "bounded, eta k^2": (
        BoundedSoftmax(tau=0.01),
        (1.0, 0.0, 0.0),
        blocks(0.5 * HALF, FAR, FAR * HALF),
        ONES,
        0.01 * ETA,
    ),
    "bounded, 2 q k": (
        BoundedSoftmax(tau=0.01),
        (1.0, 1.0, 0.0),
        blocks(0.0, 0.0, FAR * HALF),
        HALF,
        0.01 * 2,
    ),
    "bounded, eta beta^2": (
        BoundedSoftmax(),
        (0.0, 0.0, 1.0),
        blocks(0.0, 0.0, 0.5 * ONES),
        ONES,
        ETA,
    ),
    "kernel, 8 g B^2 w": (
        KernelAttention(bandwidth=1.0, c=1e-3),
        (0.0, 0.1, 0.0),
        blocks(1.4 * SKEW, 0.0, FAR * SKEW),
        SKEW * SKEW,
        8 * 0.01 * lambert(19 / (math.e * 1e-3)),
    ),
    "kernel, eta beta^2": (
        KernelAttention(c=1e-3),
        (0.0, 0.0, 1.0),
        blocks(0.0, 0.0, 0.5 * ONES),
        ONES,
        ETA,
    ),
}


@pytest.mark.parametrize("case", TERMS)
def test_no_term_of_the_curvature_can_be_left_out(case):
    attention, columns, Z, d, term = TERMS[case]
    R, Z, d = np.array(columns)[None, None], Z[None, None], d[None, None]
    cell, X = AttentionCell(R, attention, Mask()), np.zeros(d.shape)
    bound = curvature(cell, cell.at(X, Z), of(R), 2e-3)
    found = second(cell, X, Z, d)
    assert found <= bound * (1 + 1e-6)
    assert found > (bound - term) * (1 + 1e-2)
