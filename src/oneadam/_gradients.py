"""What must see whole gradients before any element is updated: their norms.

From the norms of the gradients follow one factor for each variable, which averages the
accumulation window and clips by norm, and whether all gradients are finite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._hyperparameters import Hyperparameters

Float64s = NDArray[np.float64]


class Scaling(NamedTuple):
    """What the gradients of a call are multiplied by, and what is known of their size."""

    factors: Float64s
    """For each variable, what the sum of the window is multiplied by."""
    gradient_norm: float | None
    """The norm over all variables of the averaged gradient, before clipping."""
    clip_scale: float | None
    """The smallest factor that clipping by norm applied to a variable."""


def needs_norms(hyperparameters: Hyperparameters) -> bool:
    """Return whether an update clips by a norm."""
    return any(
        limit is not None and limit != math.inf
        for limit in (hyperparameters.clipnorm, hyperparameters.global_clipnorm)
    )


def total_norm(norms: Float64s) -> float:
    """Return the norm over all variables from the norm of each, without overflow."""
    return math.hypot(*norms)


def scaling(
    hyperparameters: Hyperparameters, norms: Float64s | None, divisor: int, variables: int
) -> Scaling:
    """Return how the sums of a window are averaged and clipped by norm.

    Args:
        hyperparameters: the optimizer's.
        norms: float64, the norm of each variable's sum; None where nothing needs them.
        divisor: the number of calls that the window counts.
        variables: the number of variables.
    """
    if norms is None:
        return Scaling(np.full(variables, 1.0 / divisor), None, None)
    norms = norms / divisor
    gradient_norm = total_norm(norms)
    clipping = _clipping(hyperparameters, norms, gradient_norm)
    if clipping is None:
        return Scaling(np.full(variables, 1.0 / divisor), gradient_norm, None)
    smallest = float(clipping.min()) if variables else 1.0
    return Scaling(clipping / divisor, gradient_norm, smallest)


def _clipping(
    hyperparameters: Hyperparameters, norms: Float64s, gradient_norm: float
) -> Float64s | None:
    """Return limit / max(norm, limit) for each variable: NaN where the norm is not finite."""
    limit = hyperparameters.clipnorm
    if hyperparameters.global_clipnorm is not None:
        limit = hyperparameters.global_clipnorm
        norms = np.full_like(norms, gradient_norm)
    if limit is None or limit == math.inf:
        return None
    factors = np.full_like(norms, np.nan)
    return np.divide(limit, np.maximum(norms, limit), out=factors, where=np.isfinite(norms))
