"""A cure that a message gives for a wrong shape is a line of code: followed, it works."""

import re

import numpy as np
import pytest

from pyidl import (
    Bidirectional,
    ImplicitAttentionHead,
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Sequential,
    losses,
)
from pyidl.errors import InputError


def ones(*shape):
    return np.ones(shape, "float32")


def network(width):
    return ImplicitRNN(width, 2, 3, 4, rng=0)


HINTS = {  # a call, what is wrong with its argument, and the shape that it should get
    "one sequence": (network(3), ones(7, 3), (1, 7, 3)),
    "windows of one series": (network(1), ones(4, 7), (4, 7, 1)),
    "one sequence of numbers": (network(1), ones(7, 1), (1, 7, 1)),
    "windows, into two directions": (Bidirectional(network(1), network(1)), ones(4, 7), (4, 7, 1)),
    "windows, into several layers": (Sequential(network(1), Linear(2, 2)), ones(4, 7), (4, 7, 1)),
    "one sequence of tokens": (
        ImplicitAttentionHead(3, 2, block_size=9, rng=0),
        ones(7, 3),
        (1, 7, 3),
    ),
    "one sample": (ImplicitModel(3, 2, 4, rng=0), ones(3), (1, 3)),
    "samples of one number": (ImplicitModel(1, 2, 4, rng=0), ones(5), (5, 1)),
    "one sample of one number": (ImplicitModel(1, 2, 4, rng=0), ones(1), (1, 1)),
    "a flat target": (lambda U: losses.mse(ones(5, 1), U), ones(5), (5, 1)),
}


@pytest.mark.parametrize("case", HINTS)
def test_a_hint_followed_literally_works(case):
    call, U, shape = HINTS[case]
    with pytest.raises(InputError) as refused:
        call(U)
    hint = re.search(r"(?:use U|it, target)(.+)$", str(refused.value))[1]
    cured = eval(f"U{hint}")
    assert cured.shape == shape
    call(cured)


@pytest.mark.parametrize(
    ("layer", "U"),
    [
        (network(3), ones(4, 7)),
        (network(3), ones(3)),
        (network(1), ones(0, 7)),
        (network(3), ones(4, 7, 2)),
        (Bidirectional(network(3), network(3)), ones(4, 7)),
        (ImplicitModel(3, 2, 4, rng=0), ones(5)),
        (ImplicitModel(3, 2, 4, rng=0), ones(5, 2)),
    ],
)
def test_no_index_is_named_that_would_not_do(layer, U):
    with pytest.raises(InputError) as refused:
        layer(U)
    assert "use U" not in str(refused.value)
