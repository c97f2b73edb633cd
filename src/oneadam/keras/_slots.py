"""The state of an optimizer in variables of Keras, made when it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

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
    rows: int
    updates: Variable
    """Of all variables together."""
    counts: Variable
    """A vector of integers: `Counts`."""
    last: Variable
    """A vector of numbers: `Last`."""

    def column(self, slot: str) -> Sequence[Variable | None]:
        """Return what each row has of a slot, None for each where there is none."""
        return self.arrays.get(slot) or [None] * self.rows

    def counts_in(self, vector: Any) -> Counts:
        """Return the parts of what `counts` holds, views where a vector can be written to."""
        end = _BEFORE_ROWS + self.rows
        return Counts(
            skipped_calls=vector[0, ...],
            accumulated_calls=vector[1, ...],
            averaged=vector[2, ...],
            overflows=vector[3:_BEFORE_ROWS],
            row_updates=vector[_BEFORE_ROWS:end],
            in_window=vector[end:],
        )


class Counts(NamedTuple):
    """What is counted, but for calls and updates; one variable, for each costs time in a call."""

    skipped_calls: Any
    accumulated_calls: Any
    averaged: Any
    """Whether averages have been taken yet."""
    overflows: Any
    """A vector: how often calls, updates and skipped calls have gone beyond 31 bits."""
    row_updates: Any
    """A vector: the updates that each row has taken part in."""
    in_window: Any
    """A vector: whether a call of the open accumulation window has given each a gradient, rows
    first, then what is overwritten."""

    def joined(self) -> Any:
        """Return the vector of these parts."""
        dtype = _rows.dtype_of(self.row_updates)
        *heads, overflows, row_updates, in_window = (ops.cast(part, dtype) for part in self)
        return ops.concatenate([ops.stack(heads), overflows, row_updates, in_window])


class Last(NamedTuple):
    """What is known of the last call, and of the last update."""

    learning_rate: Any
    gradient_norm: Any
    clip_scale: Any


_BEFORE_ROWS = 6
"""The length of the parts of `Counts` that do not depend on how many rows there are."""


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
        len(rows),
        updates=own((), "int", "updates"),
        counts=own((_BEFORE_ROWS + 2 * len(rows) + overwritten,), "int", "counts"),
        last=own((len(Last._fields),), number, "last"),
    )
