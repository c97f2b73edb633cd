"""Closing windows of accumulation: what it takes its learning rate from."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from oneadam.jax import adam, flush, metrics, step  # noqa: E402
from oneadam.schedules import PolynomialDecay  # noqa: E402


def test_only_an_open_window_is_flushed_with_the_next_learning_rate() -> None:
    transformation = adam(PolynomialDecay(0.5, 4, 0.25), gradient_accumulation_steps=2)
    taken = jax.jit(lambda params, state: step(transformation, params, state, params))
    closing = jax.jit(lambda params, state: flush(transformation, state, params))
    params = {"w": jnp.ones(2)}
    state = transformation.init(params)
    rates = []
    for _ in range(3):
        params, state = taken(params, state)
        flushed, after = closing(params, state)
        rates.append((metrics(state)["learning_rate"], metrics(after)["learning_rate"]))
        if not int(state.accumulated_calls):
            jax.tree.map(np.testing.assert_array_equal, (flushed, after), (params, state))
    # Before the first call 0.5, which each call brings down by 0.0625.
    assert rates == [(0.5, 0.4375), (0.4375, 0.4375), (0.375, 0.3125)]
