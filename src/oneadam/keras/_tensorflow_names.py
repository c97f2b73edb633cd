"""TensorFlow under the array API's names, as far as the rule, the plan and schedules need them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import tensorflow as tf

Tensor = Any

float32, float64 = tf.float32, tf.float64
sqrt, exp, expm1, sin = tf.sqrt, tf.exp, tf.math.expm1, tf.sin
isfinite, log = tf.math.is_finite, tf.math.log
zeros_like, min = tf.zeros_like, tf.reduce_min


def asarray(value: Any, dtype: Any = None) -> Tensor:
    """Return a tensor of a dtype; a float of Python is one of float64."""
    if dtype is None and isinstance(value, float):
        dtype = tf.float64
    return tf.convert_to_tensor(value) if dtype is None else tf.cast(value, dtype)


def full_like(like: Tensor, value: float) -> Tensor:
    """Return a tensor of another one's shape and dtype that is filled with a number."""
    return tf.fill(tf.shape(like), tf.cast(value, like.dtype))


def iinfo(dtype: Any) -> Any:
    """Return the largest integer of a dtype."""
    return SimpleNamespace(max=int(dtype.max))


def where(condition: Any, chosen: Any, other: Any) -> Tensor:
    """Return what a condition chooses; numbers of Python have the dtype of the other."""
    dtype = next((v.dtype for v in (chosen, other) if tf.is_tensor(v)), tf.float64)
    return tf.where(condition, *(tf.convert_to_tensor(v, dtype) for v in (chosen, other)))


def pow(base: Any, exponent: Any) -> Tensor:
    """Return a power; of two, one may be a number of Python."""
    dtype = next(v.dtype for v in (base, exponent) if tf.is_tensor(v))
    return tf.pow(tf.cast(base, dtype), tf.cast(exponent, dtype))


def maximum(one: Tensor, other: Tensor) -> Tensor:
    """Return the larger, NaN if one is."""
    return tf.where(tf.math.is_nan(one), one, tf.maximum(other, one))


def minimum(one: Tensor, other: Tensor) -> Tensor:
    """Return the smaller, NaN if one is."""
    return tf.where(tf.math.is_nan(one), one, tf.minimum(other, one))
