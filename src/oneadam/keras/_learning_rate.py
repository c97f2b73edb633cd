"""The learning rate of an optimizer: where it is kept, and how it becomes another one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from oneadam import _arguments
from oneadam._hyperparameters import Hyperparameters
from oneadam.keras import _building, _rows, _run

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any


def variable(optimizer: Adam, rate: float) -> Variable:
    """Make a variable in the dtype that the scalars of an update are computed in."""
    with keras.name_scope(optimizer.name, caller=optimizer):
        return keras.Variable(
            rate,
            dtype=_rows.number_dtype(),
            trainable=False,
            name="learning_rate",
            aggregation="only_first_replica",
        )


def now(optimizer: Adam) -> Any:
    """Return the variable, or what a schedule or function says for the next call."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable) or not callable(rate):
        return rate
    if not optimizer._own.hyperparameters.takes_calls:
        return rate()
    return rate(_rows.step(optimizer._iterations.value))


def assign(optimizer: Adam, value: Any) -> None:
    """Have the next call take another learning rate, of whatever kind."""
    _rows.check_at_hand(optimizer._iterations)
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        is_known = not _rows.is_traced(value)
        value = _rows.fetched(value) if is_known else _rows.own(value)
        if isinstance(optimizer._learning_rate, keras.Variable):
            if is_known:
                _arguments.number("learning_rate", value, _arguments.LEARNING_RATE)
            optimizer._learning_rate.assign(value)  # which also a step may do
            return
    own = optimizer._own
    changed = dataclasses.replace(own.hyperparameters, learning_rate=value)
    if own.run is None:
        _keep(optimizer, changed.learning_rate)
    else:
        _keep_in_steps(optimizer, changed.learning_rate)
        own.run.hyperparameters = changed
    own.hyperparameters = changed


def _keep(optimizer: Adam, rate: Any) -> None:
    """Keep a learning rate where there is no state yet."""
    before = optimizer._learning_rate
    if isinstance(rate, float) and isinstance(before, keras.Variable):
        before.assign(rate)
        return
    optimizer._learning_rate = variable(optimizer, rate) if isinstance(rate, float) else rate
    if isinstance(before, keras.Variable):
        optimizer._untrack_variable(before)


def _keep_in_steps(optimizer: Adam, rate: Any) -> None:
    """Keep a learning rate where steps may be compiled, and have these take it up."""
    own = optimizer._own
    assert own.engine is not None
    if _run.kind(rate) != _run.kind(own.hyperparameters.learning_rate):
        own.engine.check_rate(rate)
        if _rows.backend_name() == "jax":
            _have_steps_compiled_anew(optimizer)
    own.rate.assign(rate if isinstance(rate, float) else _run.NO_RATE)
    optimizer._learning_rate = own.rate if isinstance(rate, float) else rate


def _have_steps_compiled_anew(optimizer: Adam) -> None:
    """Exchange the numbers for a longer vector, which steps compiled by JAX do not fit."""
    own, every = optimizer._own, optimizer._variables
    before, own.numbers = own.numbers, _building.numbers(optimizer, own.numbers.shape[0] + 1)
    place = next(n for n, variable in enumerate(every) if variable is before)
    every.insert(place, every.pop())
    optimizer._untrack_variable(before)
    _building.start(optimizer)


def as_given(optimizer: Adam) -> float:
    """Return the learning rate as it was given, where the variable has only rounded it."""
    found = _rows.fetched(optimizer._learning_rate)
    given = optimizer._own.hyperparameters.learning_rate
    if isinstance(given, float) and np.asarray(given, found.dtype) == found:
        return given
    return float(found)


def in_use(optimizer: Adam) -> Hyperparameters:
    """Return the arguments with the learning rate that is in use."""
    h = optimizer._own.hyperparameters
    if not isinstance(optimizer._learning_rate, keras.Variable):
        return h
    return dataclasses.replace(h, learning_rate=as_given(optimizer))
