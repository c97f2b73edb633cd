"""Learning rate and betas of a call, in numbers that compiled code can change."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

from oneadam import _hyperparameters as hyper
from oneadam import _plan
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Weights
from oneadam.jax import _numbers
from oneadam.jax._arguments import Arguments
from oneadam.jax._state import Rates

Array = Any


def first(own: Arguments) -> Rates:
    """Return the rates before the first call; those of callables without arguments are zero."""
    rate = own.value("learning_rate")
    if own.checked.takes_calls:
        rate = rate(_numbers.as_step(_numbers.counter()))
    betas = (own.value("beta_1"), own.value("beta_2"))
    return Rates(
        _numbers.rate(0.0 if callable(rate) else rate),
        *(_numbers.weights(0.0 if callable(beta) else beta) for beta in betas),
    )


def now(own: Arguments, calls: Array, before: Rates) -> Rates:
    """Return the rates of a call.

    Args:
        own: the arguments.
        calls: the counter of finished calls.
        before: the rates that the state has; numbers stay as they are there.
    """
    found: dict[str, Any] = {}
    asked: list[str] = []
    for name in Rates._fields:
        value = own.value(name)
        if name in own.arrays:
            found[name] = _converted(name, value)
        elif name == "learning_rate" and own.checked.takes_calls:
            found[name] = _numbers.rate(value(_numbers.as_step(calls)))
        elif callable(value):
            asked.append(name)
    if asked:
        answers = _asked(own.checked)
        found |= {name: getattr(answers, name) for name in asked}
    return before._replace(**found)


def _converted(name: str, value: Any) -> Any:
    return _numbers.rate(value) if name == "learning_rate" else _numbers.weights(value)


def _asked(hyperparameters: Hyperparameters) -> Rates:
    """Return what callables without arguments answer when the compiled step runs."""
    if hyperparameters.takes_calls:
        hyperparameters = dataclasses.replace(hyperparameters, learning_rate=0.0)
    dtype = _numbers.real()

    def ask() -> Rates:
        answers = hyper.now(hyperparameters, 0)
        betas = (_plan.weights(beta) for beta in answers[1:])
        found = Rates(answers.learning_rate, *betas)
        rounded: Rates = jax.tree.map(lambda number: np.asarray(number, dtype), found)
        return rounded

    number = jax.ShapeDtypeStruct((), dtype)
    weights = Weights(number, number, number, number)
    answers: Rates = io_callback(ask, Rates(number, weights, weights))
    return answers
