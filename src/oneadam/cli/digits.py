"""Real data: 1,797 handwritten digits, shipped with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

HELD_OUT = 360


class Examples(NamedTuple):
    """Images, (n, 64) float32 in [0, 1], and their labels, (n,) int64 in 0 ... 9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


class Digits(NamedTuple):
    """What is trained on, and what is held out to judge the result."""

    training: Examples
    held_out: Examples


def load() -> Digits:
    """Load the digits, split in the same way for every seed, so that runs can be compared."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = (images[order] / 16).astype(np.float32)
    answers = labels[order].astype(np.int64)
    return Digits(
        training=Examples(pixels[HELD_OUT:], answers[HELD_OUT:]),
        held_out=Examples(pixels[:HELD_OUT], answers[:HELD_OUT]),
    )


def batches(examples: Examples, *, size: int, seed: int, epoch: int) -> Iterator[Examples]:
    """Yield the full batches of one epoch, shuffled.

    The order follows from `seed` and `epoch` (1, 2, ...) alone: a run that is resumed needs no
    state of a random generator to see what it would have seen.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(examples.labels))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield Examples(examples.images[chosen], examples.labels[chosen])
