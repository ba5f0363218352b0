"""Numbers, distances and domains, as bounds and training take them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyidl.arrays.backend import as_real, looks_are_free, namespace, read_array, to_numpy
from pyidl.errors import InputError, is_real
from pyidl.layers import Layer
from pyidl.layers.timeline import Timeline

__all__ = ["distance", "domain", "numbers", "timeline"]


def numbers(name: str, a: Any) -> np.ndarray:
    """Exactly as they are, real and finite; in float64, on the host."""
    return np.asarray(as_real(to_numpy(read_array(a, name)), name=name, xp=np, dtype="float64"))


def distance(eps: Any) -> float:
    """Half the width of a box."""
    if not (is_real(eps) and 0 <= eps < math.inf):
        raise InputError(f"eps is {eps!r}; a finite distance, at least 0, is needed")
    return float(eps)


def domain(clip: Any, U: Any = None) -> tuple[float, float]:
    """The ends of a domain, in which all of U lies; infinite where there is none.

    U is looked at where that is free.
    """
    if clip is None:
        return -math.inf, math.inf
    pair = tuple(clip) if isinstance(clip, (tuple, list)) else ()
    if not (len(pair) == 2 and all(map(is_real, pair)) and pair[0] < pair[1]):
        raise InputError(f"clip is {clip!r}; give (smallest, largest), such as (0, 1)")
    if U is not None and looks_are_free(namespace(U)):
        xp, least, most = namespace(U), *map(float, pair)
        outside = int(xp.count_nonzero((least > U) | (most < U)))
        if outside:
            raise InputError(
                f"{outside} entries of U lie outside of clip={clip}; scale U, or widen clip"
            )
    return float(pair[0]), float(pair[1])


def timeline(model: Layer, U: Any, lengths: Any) -> Timeline | None:
    """Which steps the sequences of U have; None where these are no sequences."""
    if lengths is not None and not model.takes_lengths:
        raise InputError(f"{type(model).__name__} takes no lengths of sequences; leave them out")
    return None if U.ndim < 3 else Timeline.read(lengths, *U.shape[:2])
