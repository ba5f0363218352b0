"""How much a model and its compressed twin differ, by an adversary that knows no bounds."""

import boxes
import numpy as np

Q = 3
"""Outputs of the models."""


def own_answers(model, twin, U):
    """``y - y0`` of an independent evaluation, what it may be off by, and both outputs."""
    found = [boxes.evaluated(boxes.spelled_out(m), U.astype(float)) for m in (model, twin)]
    (Y, off), (Y0, off0) = ((a[:, -Q:], b[:, -Q:]) for a, b in found)
    return Y - Y0, off + off0, Y, Y0


def attained(model, twin, lo, hi, rng):
    """The largest changes that sampled and attacked inputs of boxes attain."""
    pair = [boxes.spelled_out(m) for m in (model, twin)]

    def both(U):
        (Y, pull), (Y0, pull0) = (m(U, on_fail="ignore") for m in pair)
        return Y - Y0, lambda dY: (pull(dY)[0] - pull0(dY)[0], None)

    width = pair[0].output_dim
    tried = boxes.attacked(both, lo, hi, np.arange(width - Q, width))
    U = np.concatenate([boxes.points(rng, lo, hi, 30), tried], axis=1)
    change, off, Y, Y0 = own_answers(model, twin, U.reshape(-1, lo.shape[1]))
    lost = (Y.argmax(axis=1) != Y0.argmax(axis=1)).reshape(len(lo), -1)
    least = (np.abs(change) - off).reshape(len(lo), -1, Q).max(axis=1)
    return least, lost.any(axis=1)
