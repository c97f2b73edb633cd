"""Norms for TensorFlow, in float64, in a form that XLA computes as fast as it reads.

It adds arrays up fast, many elements at a time, but the elements of one array one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

Tensor = Any

_SHORT = 2**16
"""Elements that may well be added up one by one."""
_TOGETHER = 16
"""How many arrays are added up at a time: with more, compiling takes longer than it saves."""


def norm(arrays: Sequence[Tensor]) -> Tensor:
    """Return the norm over all elements of arrays of float32 and float64."""
    if not arrays:
        return tf.zeros((), tf.float64)
    if all(array.dtype == tf.float32 for array in arrays):
        # Their squares are normal numbers of float64.
        return tf.sqrt(_sum_of_squares(arrays))
    largest = tf.reduce_max([tf.cast(tf.reduce_max(tf.abs(a)), tf.float64) for a in arrays])
    unit = tf.where((largest > 0.0) & tf.math.is_finite(largest), largest, 1.0)
    return tf.sqrt(_sum_of_squares([tf.cast(a, tf.float64) / unit for a in arrays])) * unit


def _sum_of_squares(arrays: Sequence[Tensor]) -> Tensor:
    if tf.executing_eagerly():
        # Each result is memory: squares are gone before the next array's are made.
        return tf.add_n([tf.reduce_sum(tf.square(tf.cast(array, tf.float64))) for array in arrays])
    flat = [tf.reshape(array, (-1,)) for array in arrays]
    sums = [tf.square(tf.cast(piece, tf.float64)) for array in flat for piece in _pieces(array)]
    while len(sums) > len({array.shape[0] for array in sums}) or any(map(_is_long, sums)):
        sums = [piece for total in _added(sums) for piece in _pieces(total)]
    return tf.add_n([tf.reduce_sum(array) for array in sums])


def _is_long(array: Tensor) -> bool:
    return bool(array.shape[0] > _SHORT)


def _pieces(array: Tensor) -> list[Tensor]:
    """Return a long array in pieces of one size and what remains, a short one as it is."""
    if not _is_long(array):
        return [array]
    size = array.shape[0] // _TOGETHER
    return [array[start : start + size] for start in range(0, array.shape[0], size)]


def _added(arrays: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield arrays with the same sum: up to so many of one size are added up."""
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for array in arrays:
        by_size[array.shape[0]].append(array)
    for group in by_size.values():
        for start in range(0, len(group), _TOGETHER):
            total, *others = group[start : start + _TOGETHER]
            for other in others:
                total += other
            yield total
