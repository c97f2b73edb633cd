"""What one call does: counters and hyperparameters in, decisions and scalars out.

Engines and doors decide nothing: they ask here. Everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._hyperparameters import Hyperparameters, Rates

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]


class Counters(NamedTuple):
    """How far an optimizer has come."""

    calls: int = 0
    updates: int = 0
    accumulated_calls: int = 0
    """Calls that the open accumulation window has taken."""
    skipped_calls: int = 0


class Call(NamedTuple):
    """What one call does."""

    updates: bool
    """Whether variables change; if not, the gradients are only accumulated."""
    divisor: int
    """What the window's sum is divided by."""
    overwrite: bool
    """Whether the variables become their moving averages."""
    after: Counters
    """The counters once the call is done."""


class Scalars(NamedTuple):
    """The scalars of an update: numbers, or columns with one for each variable or one for all."""

    grad_scale: Any
    grad_scale_power: Any
    one_minus_beta_1: Any
    one_minus_beta_2: Any
    step_size: Any
    epsilon: Any
    one_minus_ema_momentum: Any
    decay: Any
    kept_1: Any = 1.0
    compared_1: Any = 1.0
    kept_2: Any = 1.0
    compared_2: Any = 1.0


def plan_call(hyperparameters: Hyperparameters, counters: Counters) -> Call:
    """Return what the next call does, given the counters before it."""
    window = hyperparameters.gradient_accumulation_steps or 1
    taken = counters.accumulated_calls + 1
    if taken < window:
        after = counters._replace(calls=counters.calls + 1, accumulated_calls=taken)
        return Call(False, window, False, after)
    # A window loaded from a run with more steps closes here with the mean over its calls.
    return _update(hyperparameters, counters, max(window, taken), calls=counters.calls + 1)


def plan_flush(hyperparameters: Hyperparameters, counters: Counters) -> Call:
    """Return what closing an incomplete accumulation window does."""
    divisor = counters.accumulated_calls
    return _update(hyperparameters, counters, divisor, calls=counters.calls)


def _update(hyperparameters: Hyperparameters, counters: Counters, divisor: int, calls: int) -> Call:
    updates = counters.updates + 1
    every = hyperparameters.ema_overwrite_frequency
    overwrite = hyperparameters.use_ema and every is not None and updates % every == 0
    return Call(True, divisor, overwrite, Counters(calls, updates, 0, counters.skipped_calls))


def scalars(
    hyperparameters: Hyperparameters,
    rates: Rates,
    *,
    steps: Int64s,
    decayed: NDArray[np.bool_],
    averaged: NDArray[np.bool_],
    grad_scales: Float64s,
) -> Scalars:
    """Return the scalars of an update.

    Args:
        hyperparameters: the optimizer's.
        rates: learning rate and betas of this call.
        steps: int64, t for each variable, this update included.
        decayed: which variables decay.
        averaged: which variables have a moving average already; the others start theirs.
        grad_scales: float64, what the sum of the window is multiplied by.
    """
    if len(steps) and (steps == steps[0]).all():
        steps = steps[:1]  # as long as all variables take part in every update
    correction_1 = _bias_correction(rates.beta_1, steps)
    root_of_correction_2 = np.sqrt(_bias_correction(rates.beta_2, steps))
    decay = (hyperparameters.weight_decay or 0.0) * rates.learning_rate
    epsilon = hyperparameters.epsilon
    grad_scale, grad_scale_power = split(grad_scales)
    kept_1, compared_1 = _weights(rates.beta_1)
    kept_2, compared_2 = _weights(rates.beta_2)
    return Scalars(
        grad_scale=grad_scale,
        grad_scale_power=grad_scale_power,
        one_minus_beta_1=1.0 - rates.beta_1,
        one_minus_beta_2=1.0 - rates.beta_2,
        step_size=rates.learning_rate * root_of_correction_2 / correction_1,
        epsilon=epsilon if hyperparameters.epsilon_hat else epsilon * root_of_correction_2,
        one_minus_ema_momentum=np.where(averaged, 1.0 - hyperparameters.ema_momentum, 1.0),
        decay=np.where(decayed, decay, 0.0),
        kept_1=kept_1,
        compared_1=compared_1,
        kept_2=kept_2,
        compared_2=compared_2,
    )


def _weights(beta: float) -> tuple[float, float]:
    """Return what is kept of a moment, and what of it the gradient is compared with."""
    return (1.0, 1.0) if beta >= 0.5 else (beta, 0.0)


def _bias_correction(beta: float, steps: Int64s) -> Float64s:
    """Return 1 - beta**t without the cancellation of the plain formula."""
    log_beta = math.log(beta) if beta > 0.0 else -math.inf
    corrections: Float64s = -np.expm1(steps * log_beta)
    return corrections


def split(scale: Float64s) -> tuple[Float64s, Float64s]:
    """Split a factor into two whose product it is, each a normal number of float32.

    Only a factor far from one is really split; the second is a power of two, 1 elsewhere.

    Example:
        >>> split(np.array([0.25, 2.0**-130]))
        (array([2.50000000e-01, 9.31322575e-10]), array([1.00000000e+00, 7.88860905e-31]))
    """
    power = np.where(scale < 2.0**-100, 2.0**-100, 1.0)
    return scale / power, power
