"""CuPy on the emulated card (`tests/emulated_card`), with the counters of the stand-in:
what CuPy itself launches, sends and waits for."""

import ctypes

import pytest
from conftest import require_gpu


class Counters(ctypes.Structure):
    """`EmulatedCounters` in card.h."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            "launches",
            "products",
            "solves",
            "uploads",
            "downloads",
            "moves",
            "fills",
            "waits",
            "allocations",
            "compilations",
        )
    ]


class Counted:
    """The module `cupy`, and the three counters, which can be set."""

    def __init__(self, cupy):
        try:
            library = ctypes.CDLL("libemulated.so")
        except OSError:
            pytest.skip("needs the emulated card, which alone counts")
        self.__dict__.update(
            cupy=cupy, counters=Counters.in_dll(library, "emulated_counters"), start={}
        )
        self.waits = self.uploads = self.launches = 0

    def total(self, name):
        c = self.counters
        return {
            "waits": c.downloads,
            "uploads": c.uploads,
            "launches": c.launches + c.products + c.solves + c.moves + c.fills,
        }[name]

    def __getattr__(self, name):
        return (
            self.total(name) - self.start[name] if name in self.start else getattr(self.cupy, name)
        )

    def __setattr__(self, name, value):
        self.start[name] = self.total(name) - value


def counted():
    return Counted(require_gpu())
