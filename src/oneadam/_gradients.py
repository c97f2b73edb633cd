"""What must see whole gradients before any element is updated: their norms.

From the norms of the gradients follow one factor for each variable, which averages the
accumulation window and clips by norm.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from oneadam._hyperparameters import Hyperparameters


class Scaling(NamedTuple):
    """What the gradients of a call are multiplied by, and what is known of their size."""

    factors: Any
    """float64; for each variable, or once for all, what the sum of the window is multiplied by."""
    gradient_norm: Any | None
    """The norm over all variables of the averaged gradient, before clipping."""
    clip_scale: Any | None
    """The smallest factor that clipping by norm applied to a variable."""


def needs_norms(hyperparameters: Hyperparameters) -> bool:
    """Return whether an update clips by a norm."""
    return any(
        limit is not None and limit != math.inf
        for limit in (hyperparameters.clipnorm, hyperparameters.global_clipnorm)
    )


def total_norm(norms: Any) -> float:
    """Return the norm over all variables from the norm of each, without overflow."""
    return math.hypot(*norms)


def averaging(divisor: int, gradient_norm: Any | None = None) -> Scaling:
    """Return how the sums of a window are averaged where nothing is clipped by norm.

    Args:
        divisor: the number of calls that the window counts.
        gradient_norm: the norm over all variables of the sums, where it is known.
    """
    norm = None if gradient_norm is None else gradient_norm / divisor
    return Scaling(np.array([1.0 / divisor]), norm, None)


def clipping(
    limits: Any, norms: Any, gradient_norm: Any | None, divisor: int, xp: Any = np
) -> Scaling:
    """Return how the sums of a window are averaged and clipped by norm.

    Args:
        limits: numbers > 0: one for all variables, or one for each; inf does not clip.
        norms: float64, the norms of the sums that are held to the limits.
        gradient_norm: the norm over all variables of the sums, where it is known.
        divisor: the number of calls that the window counts.
        xp: the namespace of the norms.
    """
    norms = norms / divisor
    # The limit over a norm that is not finite would be zero, and hide it.
    norms = xp.where(xp.isfinite(norms), norms, math.nan)
    within = (norms <= limits) | (limits == math.inf)
    factors = xp.where(within, 1.0, limits / xp.where(within, 1.0, norms))
    return Scaling(
        factors / divisor,
        None if gradient_norm is None else gradient_norm / divisor,
        xp.min(factors) if factors.shape[0] else 1.0,
    )
