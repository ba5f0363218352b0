r"""Convolutions and poolings as matrices and numbers of components.

Components of an image of c channels are numbered ``(channel h + row) w + column``. With
stride s, padding P and dilation e, tap a of output row i lies in row

    i s - P + a e,    i = 0, ..., (h + 2 P - e (k - 1) - 1) // s,

and the same holds for columns. Images of one axis have h = 1. What lies outside is not
there: a convolution adds nothing, an average counts it or not, a maximum leaves it out.

    convolution  row (o, i, j) has K[o, c, a, b] in the column of channel c and that tap
    average      1 / k in the column of each tap
    maximum      the numbers of its taps
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

__all__ = ["Windows", "averages", "convolution", "diagonal", "maxima", "means"]

Sizes = tuple[int, ...]


class Windows(NamedTuple):
    """The pixels of taps and positions, (taps, positions), and which are there."""

    pixel: np.ndarray
    there: np.ndarray
    shape: Sizes

    @classmethod
    def of(
        cls, image: Sizes, kernel: Sizes, stride: Sizes, padding: Any, dilation: Sizes
    ) -> Windows:
        """For images of one or two axes; `padding` is before and after each."""
        k, d = len(image), range(len(image))
        sizes = [
            (image[i] + sum(padding[i]) - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in d
        ]
        places = np.indices((*kernel, *sizes), sparse=True)
        at = [places[k + i] * stride[i] - padding[i][0] + places[i] * dilation[i] for i in d]
        there: Any = math.prod((at[i] >= 0) & (at[i] < image[i]) for i in d)
        pixel: Any = 0
        for i in d:
            pixel = pixel * image[i] + at[i]
        shape = math.prod(kernel), math.prod(sizes)
        return cls(pixel.reshape(shape), there.astype(bool).reshape(shape), tuple(sizes))


def convolution(K: np.ndarray, windows: Windows, pixels: int, groups: int) -> csr_array:
    """The matrix of a kernel (channels out, channels in / groups, taps ...)."""
    o, c = K.shape[:2]
    out, inside, tap, position = np.nonzero(
        np.broadcast_to(windows.there, (o, c, *windows.there.shape))
    )
    channel = out // (o // groups) * c + inside
    rows = out * windows.there.shape[1] + position
    columns = channel * pixels + windows.pixel[tap, position]
    entries = K.reshape(o, c, -1)[out, inside, tap]
    shape = o * windows.there.shape[1], groups * c * pixels
    return csr_array((entries, (rows, columns)), shape=shape)


def diagonal(entries: np.ndarray) -> csr_array:
    """With a place for each entry, be it zero."""
    n = np.arange(len(entries))
    return csr_array((entries, (n, n)))


def averages(channels: int, windows: Windows, pixels: int, divisor: Any) -> csr_array:
    """Of every channel alone; `divisor` is a number, or one for each position."""
    K = np.ones((channels, 1, len(windows.pixel)))
    whole = convolution(K, windows, pixels, channels)
    counts = np.broadcast_to(divisor, windows.pixel.shape[1])
    return diagonal(1.0 / np.tile(counts, channels)) @ whole


def maxima(channels: int, windows: Windows, pixels: int) -> np.ndarray:
    """Components, (taps, outputs); for one that is missing, the first that is there."""
    first = np.argmax(windows.there, axis=0)
    present = windows.pixel[first, np.arange(len(first))]
    pixel = np.where(windows.there, windows.pixel, present)
    return np.hstack([channel * pixels + pixel for channel in range(channels)])


def means(shape: Sizes, axes: Sizes) -> csr_array:
    """The mean over some axes."""
    numbers = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axes, range(-len(axes), 0))
    k = math.prod(shape[axis] for axis in axes)
    columns = numbers.reshape(-1)
    rows = np.repeat(np.arange(len(columns) // k), k)
    return csr_array((np.full(len(columns), 1.0 / k), (rows, columns)))
