"""Variables that hold their moving averages, for a block or for good."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from oneadam import _interrupts, _messages
from oneadam.keras import _rows

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any
Tensor = Any


def finalize(optimizer: Adam, variables: Sequence[Variable]) -> None:
    """Set variables to their moving averages where they have one."""
    slots = optimizer._own.slots
    if not _rows.is_at_hand(slots.counts) and sys.exc_info()[0] is not None:
        # After an error JAX's fit comes here without its values, and the error is what to see.
        return
    averages = _averages(optimizer, variables)
    with _interrupts.held_back():
        _hand_out(averages)


@contextmanager
def averaged(optimizer: Adam) -> Iterator[None]:
    """Let the variables hold their moving averages for a block."""
    own = optimizer._own
    check_not_held(optimizer)
    averages = _averages(optimizer, own.variables)
    trained = [(variable, _copy(variable)) for variable, _ in averages]
    before = optimizer._counters()
    own.holds_averages = True
    try:
        _hand_out(averages)
        yield
    finally:
        with _interrupts.held_back():
            _hand_out(trained)
            own.holds_averages = False
    # A step that is compiled already does not ask.
    if optimizer._counters() != before:
        raise RuntimeError(_messages.averages_held())


def check_not_held(optimizer: Adam) -> None:
    """Refuse to go on while the variables hold their averages."""
    if optimizer._own.holds_averages:
        raise RuntimeError(_messages.averages_held())


def _averages(optimizer: Adam, variables: Sequence[Variable]) -> list[tuple[Variable, Tensor]]:
    """Return variables that have a moving average, with what they are to become."""
    own = optimizer._own
    if not own.hyperparameters.use_ema or not optimizer.built:
        return []
    if not own.slots.counts_in(_rows.fetched(own.slots.counts)).averaged:
        return []
    averages = optimizer._model_variables_moving_average
    found = []
    for variable in variables:
        average = averages[optimizer._get_variable_index(variable)]
        if average is not None:
            value = ops.cast(_copy(average), _rows.dtype_of(variable))
            constraint = getattr(variable, "constraint", None)
            found.append((variable, value if constraint is None else constraint(value)))
    return found


def _hand_out(values: list[tuple[Variable, Tensor]]) -> None:
    """Set variables to values, and keep none of these, which are as large as the model."""
    while values:
        variable, value = values.pop()
        variable.assign(value)


def _copy(variable: Variable) -> Tensor:
    """Return what a variable holds, in memory of its own, for JAX may be told to give its away."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return ops.stop_gradient(ops.copy(value))
