"""What only the engine for TensorFlow has."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("of the engine for TensorFlow", allow_module_level=True)

import tensorflow as tf

from oneadam.keras import _tensorflow_norms

SIZES = [(1, 7), (65_536,), (65_537,), (3, 700_001), (0,), ()]
WAYS = pytest.mark.parametrize("how", ["eager", "graph", "compiled"])


def norm(arrays: list[np.ndarray], how: str) -> float:
    def added(*tensors: Any) -> Any:
        return _tensorflow_norms.norm(tensors)

    if how != "eager":
        added = tf.function(added, jit_compile=how == "compiled", autograph=False)
    found = added(*map(tf.constant, arrays))
    assert found.dtype == tf.float64
    return float(found)


@WAYS
def test_norms_are_those_of_all_elements(how: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.normal(size=size), np.float32) for size in (*SIZES, *SIZES, (70,))]
    truth = math.sqrt(sum(math.fsum(np.square(a.astype(np.float64)).ravel()) for a in arrays))
    assert norm(arrays, how) == pytest.approx(truth, rel=1e-13)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3e38, np.float32), (1e-38, np.float32), (1e300, np.float64), (1e-300, np.float64)],
)
@WAYS
def test_squares_neither_overflow_nor_vanish(value: float, dtype: Any, how: str) -> None:
    found = norm([np.full((2, 2), value, dtype)], how)
    assert found == pytest.approx(2.0 * float(dtype(value)), rel=1e-13)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_element_that_is_not_finite_is_enough(value: float, dtype: Any) -> None:
    array = np.ones(70_000, dtype)
    array[-1] = value
    assert not math.isfinite(norm([array, np.ones(3, dtype)], "graph"))


def test_nothing_has_no_norm() -> None:
    assert norm([], "graph") == 0.0
    assert norm([np.zeros(5)], "graph") == 0.0
