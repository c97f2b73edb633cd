"""What schedules and functions answer in a call of TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from oneadam import _hyperparameters as hyper
from oneadam import _plan
from oneadam._hyperparameters import Hyperparameters, Rates
from oneadam.keras import _rows
from oneadam.keras import _tensorflow_names as xp
from oneadam.keras._run import BETAS

Tensor = Any

ASKING = "oneadam_asks_a_function_of_Python_which_needs_jit_compile_False"
"""The name of the operation, which XLA's refusal to compile it shows."""


def scheduled(h: Hyperparameters, calls: Tensor) -> Tensor:
    """Return the learning rate that a schedule has for a call."""
    schedule: Any = h.learning_rate
    return schedule(_rows.step(calls))


def asked(h: Hyperparameters, assigned: Tensor) -> dict[str, Any]:
    """Return what functions without arguments answer when the step runs, by argument.

    Args:
        h: the arguments.
        assigned: a learning rate that stands in the place of its function, if not negative.
    """
    names = [
        name
        for name in Rates._fields
        if callable(getattr(h, name)) and not (name == "learning_rate" and h.takes_calls)
    ]
    if not names:
        return {}
    if h.takes_calls:
        h = dataclasses.replace(h, learning_rate=0.0)

    def ask(assigned: Tensor) -> list[float]:
        rate = float(assigned)
        now = h if rate < 0 else dataclasses.replace(h, learning_rate=rate)
        answers = hyper.now(now, 0)._asdict()
        return [answers[name] for name in names]

    if tf.executing_eagerly():
        answers = [tf.constant(answer, tf.float64) for answer in ask(assigned)]
    else:
        answers = tf.py_function(ask, [assigned], [tf.float64] * len(names), name=ASKING)
        answers = [tf.ensure_shape(answer, ()) for answer in answers]
    return {
        name: _plan.weights(answer, xp) if name in BETAS else answer
        for name, answer in zip(names, answers, strict=True)
    }
