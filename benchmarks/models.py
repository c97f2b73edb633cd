"""Models to take steps on: arrays of given sizes, placed alike in memory for every contestant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

_LINE = 64


class Model(NamedTuple):
    """A number of variables of one size."""

    variables: int
    elements: int

    def __str__(self) -> str:
        return f"{self.variables:,} × {self.elements:,}"

    @property
    def sizes(self) -> list[int]:
        return [self.elements] * self.variables


ONE = Model(1, 30_000_000)
HUNDREDS = Model(300, 10_000)
THOUSANDS = Model(1_000, 256)
QUICK_ONE = Model(1, 300_000)


def shortened(model: Model, quick: bool) -> Model:
    """Return a model to try a benchmark on, which says nothing about speed."""
    return QUICK_ONE if quick and model == ONE else model


def aligned(values: Array) -> Array:
    """Return a copy that starts at a cache line, in memory that NumPy has allocated.

    NumPy asks for huge pages where it allocates much, torch does not, and torch aligns what
    it allocates, NumPy does not: each would be compared with the other's allocator.
    """
    memory = np.empty(values.nbytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    copy: Array = memory[start : start + values.nbytes].view(values.dtype)
    copy[...] = values
    return copy


def random(sizes: Sequence[int], seed: int, dtype: DTypeLike = np.float32) -> list[Array]:
    """Return normally distributed arrays, the same for the same arguments."""
    generator = np.random.default_rng(seed)
    return [
        aligned(generator.standard_normal(size, np.float32).astype(dtype, copy=False))
        for size in sizes
    ]
