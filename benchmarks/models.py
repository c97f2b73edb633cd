"""Models to take steps on: arrays of given shapes, placed alike in memory for every contestant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from benchmarks import architectures

Array = NDArray[Any]
Shape = tuple[int, ...]

_LINE = 64
_LARGE = 20_000_000
_CAP = 16


class Model(NamedTuple):
    """Variables by their shapes."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    @property
    def is_large(self) -> bool:
        return self.elements > _LARGE


def uniform(variables: int, elements: int) -> Model:
    """Return a model of a number of variables of one size."""
    return Model(f"{variables:,} × {elements:,}", ((elements,),) * variables)


ONE = uniform(1, 30_000_000)
HUNDREDS = uniform(300, 10_000)
THOUSANDS = uniform(1_000, 256)
SINGLES = uniform(1_000, 1)
RESNET_50 = Model("ResNet-50", tuple(architectures.resnet_50()))
GPT_2 = Model("GPT-2 small", tuple(architectures.gpt_2()))


def shortened(model: Model, quick: bool) -> Model:
    """Return a model to try a benchmark on, which says nothing about speed."""
    if not quick or not model.is_large:
        return model
    if len(model.shapes) == 1:
        return uniform(1, 300_000)
    return Model(model.name, tuple(tuple(min(n, _CAP) for n in s) for s in model.shapes))


def _memory_of_numpy(size: int) -> Array:
    return np.empty(size, np.uint8)


def _memory_of_torch(size: int) -> Array:
    memory: Array = torch.empty(size, dtype=torch.uint8).numpy()
    return memory


_MEMORY: dict[str, Callable[[int], Array]] = {"numpy": _memory_of_numpy, "torch": _memory_of_torch}


def aligned(values: Array, door: str = "numpy") -> Array:
    """Return a copy that starts at a cache line, in memory that the door's framework allocates.

    NumPy asks for huge pages where it allocates much, torch does not, and torch aligns what
    it allocates, NumPy does not: each would be compared with the other's allocator.
    """
    memory = _MEMORY[door](values.nbytes + _LINE)
    start = -memory.ctypes.data % _LINE
    copy: Array = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def random(
    shapes: Sequence[int] | Sequence[Shape],
    seed: int,
    dtype: DTypeLike = np.float32,
    door: str = "numpy",
) -> list[Array]:
    """Return normally distributed arrays, the same for the same shapes, seed and dtype."""
    generator = np.random.default_rng(seed)
    return [
        aligned(generator.standard_normal(shape, np.float32).astype(dtype, copy=False), door)
        for shape in shapes
    ]
