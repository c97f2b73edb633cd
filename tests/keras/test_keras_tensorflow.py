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

from oneadam.keras import Adam, _tensorflow_norms

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


@pytest.mark.parametrize("config", [{}, {"global_clipnorm": 0.5}], ids=["plain", "clipped"])
@pytest.mark.parametrize("compiled", [False, True])
def test_shapes_may_be_known_only_when_a_step_runs(config: dict[str, Any], compiled: bool) -> None:
    shapes = {"kernel": (2, 3), "bias": (3,)}
    trained = [
        keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in shapes.items()
    ]
    others = [
        keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in shapes.items()
    ]
    optimizer, other = Adam(0.1, name="adam", **config), Adam(0.1, name="adam", **config)
    optimizer.build(trained)
    signature = [tf.TensorSpec(None), tf.TensorSpec((None,))]

    @tf.function(input_signature=signature, jit_compile=compiled, autograph=False)
    def step(*grads: Any) -> None:
        optimizer.apply(grads, trained)

    fits = [tf.ones((2, 3)), tf.constant([0.5, 1.0, 2.0])]
    other.apply(fits, others)
    step(*fits)
    for variable, wanted in zip(trained, others, strict=True):
        np.testing.assert_allclose(variable.numpy(), wanted.numpy(), rtol=1e-6)
    before = [variable.numpy() for variable in (*trained, *optimizer.variables)]
    # What would be broadcast, as a first and as a last one.
    for wrong in ([tf.ones((3,)), fits[1]], [fits[0], tf.ones((1,))]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
            step(*wrong)
        for variable, value in zip((*trained, *optimizer.variables), before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_sparse_gradients_are_made_dense() -> None:
    sparse = tf.SparseTensor([[0, 1], [1, 2]], [0.5, 2.0], (2, 3))
    trained, others = (
        [keras.Variable(np.ones((2, 3), np.float32), name="kernel")] for _ in range(2)
    )
    Adam(0.1).apply([sparse], trained)
    Adam(0.1).apply([tf.sparse.to_dense(sparse)], others)
    np.testing.assert_array_equal(trained[0].numpy(), others[0].numpy())
