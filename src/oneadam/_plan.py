"""What one call does: counters and hyperparameters in, decisions and scalars out.

Engines and doors decide nothing: they ask here. Everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from oneadam._hyperparameters import Hyperparameters, Rates


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


class Weights(NamedTuple):
    """What an update needs of a beta; a number, or a column, each."""

    complement: Any
    """1 - beta."""
    logarithm: Any
    """log(beta), minus infinity for zero."""
    kept: Any
    """What is kept of the moment."""
    compared: Any
    """What the gradient is compared with."""


class Settings(NamedTuple):
    """What an update is computed with: numbers, or columns with one for each variable."""

    rates: tuple[Any, Any, Any]
    """`Rates`; the betas may be their weights."""
    epsilon: Any
    weight_decay: Any
    epsilon_hat: bool
    ema_momentum: float

    @classmethod
    def of(cls, hyperparameters: Hyperparameters, rates: Rates) -> Settings:
        """Return the settings of an optimizer whose variables are all treated alike."""
        h = hyperparameters
        return cls(rates, h.epsilon, h.weight_decay or 0.0, h.epsilon_hat, h.ema_momentum)


def scalars(
    settings: Settings,
    *,
    steps: Any,
    decayed: Any,
    averaged: Any,
    grad_scales: Any,
    xp: Any = np,
) -> Scalars:
    """Return the scalars of an update.

    Args:
        settings: of this call.
        steps: t for each variable, this update included; or one for all.
        decayed: bool, which variables decay.
        averaged: bool, which variables have a moving average already; the others start theirs.
        grad_scales: float64, what the sum of the window is multiplied by; or a pair of what
            it is multiplied by one after the other, each a normal number.
        xp: the namespace of the columns.
    """
    (learning_rate, beta_1, beta_2), epsilon = settings.rates, settings.epsilon
    decayed, averaged, grad_scales = (
        _once(column, xp) for column in (decayed, averaged, grad_scales)
    )
    first, second = (
        beta if isinstance(beta, Weights) else weights(beta, xp) for beta in (beta_1, beta_2)
    )
    # 1 - beta**t without the cancellation of the plain formula.
    correction_1 = -xp.expm1(steps * first.logarithm)
    root_of_correction_2 = xp.sqrt(-xp.expm1(steps * second.logarithm))
    pair = grad_scales if isinstance(grad_scales, tuple) else split(grad_scales, xp)
    grad_scale, grad_scale_power = pair
    return Scalars(
        grad_scale=grad_scale,
        grad_scale_power=grad_scale_power,
        one_minus_beta_1=first.complement,
        one_minus_beta_2=second.complement,
        step_size=learning_rate * root_of_correction_2 / correction_1,
        epsilon=epsilon if settings.epsilon_hat else epsilon * root_of_correction_2,
        one_minus_ema_momentum=xp.where(averaged, 1.0 - settings.ema_momentum, 1.0),
        decay=xp.where(decayed, settings.weight_decay * learning_rate, 0.0),
        kept_1=first.kept,
        compared_1=first.compared,
        kept_2=second.kept,
        compared_2=second.compared,
    )


def steps(updates: Any, participants: Any, xp: Any = np) -> Any:
    """Return t for each variable, or once where it is the same for all, this update included.

    Args:
        updates: the number of updates that each variable has taken part in.
        participants: bool, which variables take part in this one.
        xp: the namespace of both.
    """
    # A variable that sits its first updates out has no t yet, and its scalars no use.
    return _once(xp.maximum(updates + participants, 1), xp)


def _once(column: Any, xp: Any) -> Any:
    """Return a column, or one row of it where NumPy knows that all are the same."""
    return (
        column[:1] if xp is np and np.size(column) > 1 and (column == column[0]).all() else column
    )


def weights(beta: Any, xp: Any = np) -> Weights:
    """Return what an update needs of a beta, a number or a column."""
    if isinstance(beta, float):
        logarithm = math.log(beta) if beta > 0.0 else -math.inf
        return Weights(1.0 - beta, logarithm, *((1.0, 1.0) if beta >= 0.5 else (beta, 0.0)))
    is_zero = beta <= 0.0
    logarithm = xp.where(is_zero, -math.inf, xp.log(xp.where(is_zero, 1.0, beta)))
    is_large = beta >= 0.5
    return Weights(
        1.0 - beta, logarithm, xp.where(is_large, 1.0, beta), xp.where(is_large, 1.0, 0.0)
    )


def split(scale: Any, xp: Any = np) -> tuple[Any, Any]:
    """Split a factor into two whose product it is, each a normal number of float32.

    Only a factor far from one is really split; the second is a power of two, 1 elsewhere.

    Example:
        >>> split(np.array([0.25, 2.0**-130]))
        (array([2.50000000e-01, 9.31322575e-10]), array([1.00000000e+00, 7.88860905e-31]))
    """
    power = xp.where(scale < 2.0**-100, 2.0**-100, 1.0)
    return scale / power, power
