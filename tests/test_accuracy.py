"""Where a float32 update easily strays from float64, held to plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import PROMISE, spacing

from oneadam.numpy import Adam

UPDATES, SIZE = 1000, 400


def spacings_off(gradients: np.ndarray, rate: float, beta_1: float, beta_2: float, decay: float):
    """The largest distance from float64 on the way, in float32 spacings of the largest value."""
    rng = np.random.default_rng(0)
    variable = rng.normal(size=gradients.shape[1]).astype(np.float32)
    optimizer = Adam(rate, beta_1, beta_2, weight_decay=decay)
    optimizer.build([variable])
    exact = variable.astype(np.float64)
    momentum, velocity, largest = np.zeros_like(exact), np.zeros_like(exact), np.abs(exact)
    for t, gradient in enumerate(gradients.astype(np.float32), start=1):
        optimizer.apply([gradient])
        g = gradient.astype(np.float64)
        momentum = beta_1 * momentum + (1 - beta_1) * g
        velocity = beta_2 * velocity + (1 - beta_2) * g * g
        exact = exact - exact * decay * rate
        alpha = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        exact = exact - alpha * momentum / (np.sqrt(velocity) + 1e-7)
        largest = np.maximum(largest, np.abs(exact))
    return float(np.max(np.abs(variable - exact) / spacing(largest, "float32")))


@pytest.mark.parametrize(("beta_1", "beta_2"), [(0.9, 0.0), (0.0, 0.0), (0.0, 1e-3), (0.4, 0.49)])
def test_small_betas_do_not_lose_a_gradient_after_a_much_larger_one(
    beta_1: float, beta_2: float
) -> None:
    falling = np.array([1.0, 1e-4, 1e-2, 1e-6])[:, None] * np.linspace(0.5, 2.0, SIZE)
    assert spacings_off(falling, 1e-3, beta_1, beta_2, 0.0) < 16, PROMISE


@pytest.mark.parametrize(("rate", "decay"), [(3e-4, 1e-2), (1e-3, 1e-2), (1e-3, 0.1), (1e-3, 0.0)])
def test_weight_decay_of_any_strength_stays_near_float64(rate: float, decay: float) -> None:
    gradients = np.random.default_rng(1).normal(size=(UPDATES, SIZE))
    assert spacings_off(gradients, rate, 0.9, 0.999, decay) < 64, PROMISE
