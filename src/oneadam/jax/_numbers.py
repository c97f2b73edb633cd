"""Numbers in traced code: rates, and counters that never stop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneadam import _plan
from oneadam._plan import Weights

Array = Any

_LOW, _HIGH = 0, 1
_WORD = 2.0**32


def real() -> Any:
    """Return the dtype of numbers: float64 where JAX has that, float32 elsewhere."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def number(value: Any) -> Array:
    """Return a number of Python or NumPy, or a 0-d array, in the dtype of numbers."""
    return jnp.asarray(value, real())


def rate(value: Any) -> Array:
    """Return a learning rate in the dtype of numbers.

    Raises:
        ValueError: it is not one number.
    """
    array = number(value)
    if array.ndim:
        raise ValueError(
            f"learning_rate must be one number, received an array of shape {array.shape}; return"
            " one of shape (), and for several models map over them with jax.vmap"
        )
    return array


def counter(count: Any = 0) -> Array:
    """Return a counter, or a row of them: uint32, the low and the high word.

    Without 64-bit integers, one word would stop or overflow.
    """
    counts = np.asarray(count, np.uint64)
    words = [counts & np.uint64(0xFFFFFFFF), counts >> np.uint64(32)]
    return jnp.asarray(np.stack(words).astype(np.uint32))


def counted(counter: Array, more: Any) -> Array:
    """Return a counter after one more, or where `more` tells."""
    low = counter[_LOW] + jnp.asarray(more, np.uint32)
    carry = (low < counter[_LOW]).astype(np.uint32)
    return jnp.stack([low, counter[_HIGH] + carry])


def count_of(counter: Array) -> Any:
    """Return what a counter has counted as integers of NumPy; not in traced code."""
    low, high = np.asarray(counter).astype(np.uint64)
    return (high << np.uint64(32)) + low


def as_number(counter: Array) -> Array:
    """Return what a counter has counted, rounded to the dtype of numbers."""
    low, high = counter.astype(real())
    return high * _WORD + low


def as_step(counter: Array) -> Array:
    """Return what a counter has counted as the integer that schedules are given.

    Where JAX has no 64-bit integers it stays at the largest one of 32 bits.
    """
    integer = jax.dtypes.canonicalize_dtype(np.int64)
    low, high = counter[_LOW], counter[_HIGH]
    if integer == np.int64:
        return (high.astype(np.int64) << 32) + low.astype(np.int64)
    most = np.uint32(2**31 - 1)
    return jnp.where(high > 0, most, jnp.minimum(low, most)).astype(np.int32)


def is_multiple(counter: Array, of: int) -> Array:
    """Return whether a counter has counted a multiple of a number."""
    if of >= 2**31:
        return (counter[_LOW] == np.uint32(of % 2**32)) & (counter[_HIGH] == np.uint32(of >> 32))
    divisor = np.uint32(of)
    rest = counter[_HIGH] % divisor
    for _ in range(32):
        rest = (rest * np.uint32(2)) % divisor
    return (rest + counter[_LOW] % divisor) % divisor == 0


def weights(beta: Any) -> Weights:
    """Return the weights of a beta, in float64 where it is known as a number."""
    if isinstance(beta, jax.core.Tracer):
        # As strongly typed as those of numbers: else the next call would be compiled once more.
        return Weights(*map(number, _plan.weights(number(beta), jnp)))
    return Weights(*map(number, _plan.weights(float(beta))))
