"""A step takes no memory that grows with the model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from oneadam.numpy import Adam

SMALL, LARGE = 400_000, 1_600_000
GROWTH = 4 * (LARGE - SMALL)
"""What a single float32 array more would take."""
# Pieces are counted in a table: 24 bytes for each 16,384 elements, a few copies of it.
ALLOWED = GROWTH // 20

Make = Callable[[int], np.ndarray]


def plain(size: int) -> np.ndarray:
    return np.full(size, 0.5, np.float32)


def brain(size: int) -> np.ndarray:
    return np.full(size, 0.5, ml_dtypes.bfloat16)


def double(size: int) -> np.ndarray:
    return np.full(size, 0.5)


def sparse(size: int) -> np.ndarray:
    return np.full(2 * size, 0.5, np.float32)[::2]


def fortran(size: int) -> np.ndarray:
    return np.full((size // 400, 400), 0.5, np.float32).T


def swapped(size: int) -> np.ndarray:
    return np.full(size, 0.5, ">f4")


EVERYTHING: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_overwrite_frequency": 2,
    "loss_scale_factor": 8.0,
    "gradient_accumulation_steps": 2,
    "on_nonfinite": "skip",
}


def peak(config: dict[str, Any], make: Make, make_gradient: Make, size: int, calls: int) -> int:
    """The most memory that calls held at once, above what there was before them."""
    variables, grads = [make(size)], [make_gradient(size)]
    optimizer = Adam(**config)
    optimizer.build(variables)
    optimizer.apply(grads)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(calls):
            optimizer.apply(grads)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("config", [{}, {"clipnorm": 1.0}, EVERYTHING], ids=["bare", "clip", "all"])
@pytest.mark.parametrize(
    ("variable", "gradient"),
    [
        (plain, plain), (brain, brain), (double, double), (plain, double), (plain, brain),
        (sparse, sparse), (sparse, plain), (plain, sparse), (fortran, fortran), (swapped, plain),
    ],
)  # fmt: skip
def test_a_step_holds_no_array_of_the_models_size(
    config: dict[str, Any], variable: Make, gradient: Make
) -> None:
    small = peak(config, variable, gradient, SMALL, 3)
    large = peak(config, variable, gradient, LARGE, 3)
    assert large - small < ALLOWED, f"{small} bytes at {SMALL} elements, {large} at {LARGE}"


def test_the_measurement_sees_an_array() -> None:
    def hungry(size: int) -> int:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            np.ones(size, np.float32).sum()
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    assert hungry(LARGE) - hungry(SMALL) > ALLOWED
