"""The state of an optimizer in variables of Keras, made when it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oneadam import _state
from oneadam._hyperparameters import Hyperparameters
from oneadam.keras import _rows

Variable = Any
Make = Callable[..., Variable]


@dataclass
class Slots:
    """State beside what every optimizer of Keras has; lists have one entry for each row."""

    arrays: dict[str, list[Variable]]
    """By the names in portable checkpoints."""
    updates: Variable
    """Of all variables together."""
    row_updates: Variable
    """A vector: the updates that each row has taken part in."""
    skipped_calls: Variable
    accumulated_calls: Variable
    in_window: Variable
    """A vector: whether a call of the open accumulation window has given each a gradient, rows
    first, then what is overwritten."""
    averaged: Variable
    learning_rate: Variable
    """Of the last call."""
    gradient_norm: Variable
    clip_scale: Variable
    overflows: Variable
    """A vector: how often calls, updates and skipped calls have gone beyond 31 bits in JAX."""

    def column(self, slot: str) -> Sequence[Variable | None]:
        """Return what each row has of a slot, None for each where there is none."""
        return self.arrays.get(slot) or [None] * int(self.row_updates.shape[0])


def made(
    hyperparameters: Hyperparameters,
    rows: Sequence[Variable],
    overwritten: int,
    number: str,
    own: Make,
    beside: Make,
) -> Slots:
    """Return the state at the beginning.

    Args:
        hyperparameters: the optimizer's.
        rows: the variables that it trains.
        overwritten: how many others there are.
        number: the dtype of numbers.
        own: makes a variable of the optimizer, from shape, dtype and name.
        beside: makes one where another variable lies, from that, dtype and name.
    """
    # In the order of Keras's own, whose weights then stand at the same places.
    order = [_state.AVERAGE, _state.ACCUMULATOR, (_state.MOMENTUM, _state.VELOCITY),
             _state.VELOCITY_HAT]  # fmt: skip
    used = _state.array_slots(hyperparameters)
    arrays: dict[str, list[Variable]] = {}
    for entry in order:
        slots = [slot for slot in ([entry] if isinstance(entry, str) else entry) if slot in used]
        for variable in rows:
            for slot in slots:
                dtype = _rows.compute_dtype(variable)
                arrays.setdefault(slot, []).append(beside(variable, dtype, slot))
    return Slots(
        arrays,
        updates=own((), "int", "updates"),
        row_updates=own((len(rows),), "int", "row_updates"),
        skipped_calls=own((), "int", "skipped_calls"),
        accumulated_calls=own((), "int32", "accumulated_calls"),
        in_window=own((len(rows) + overwritten,), "bool", "in_window"),
        averaged=own((), "bool", "averaged"),
        learning_rate=own((), number, "last_learning_rate"),
        gradient_norm=own((), number, "gradient_norm"),
        clip_scale=own((), number, "clip_scale"),
        overflows=own((3,), "int32", "overflows"),
    )
