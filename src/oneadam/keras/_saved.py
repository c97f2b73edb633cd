"""Portable checkpoints: the state by the names of the variables' paths, the same in every door."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from oneadam import _saved_state, _state
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Counters
from oneadam._saved_state import Axes, Restoring
from oneadam._state import full
from oneadam.keras import _rows
from oneadam.keras._run import Run

Array = NDArray[Any]

_WORD = 31
"""Bits of the lower word of a counter in JAX."""


def state(run: Run, hyperparameters: Hyperparameters) -> dict[str, Array]:
    """Return the whole state by name.

    Args:
        run: of an optimizer.
        hyperparameters: with the learning rate that it has now.
    """
    found = {
        full(name, slot): _rows.fetched(variable)
        for slot, column in run.slots.arrays.items()
        for name, variable in zip(run.names, column, strict=True)
    }
    for slot, numbers in _vectors(run).items():
        for name, number in zip(run.names, numbers, strict=True):
            found[full(name, slot)] = np.array(number)
    return found | _saved_state.state(hyperparameters, counters(run))


def counters(run: Run) -> Counters:
    """Return how far an optimizer has come."""
    counts = run.slots.counts_in(_rows.fetched(run.slots.counts))
    high = [int(word) << _WORD for word in counts.overflows]
    return Counters(
        calls=high[0] + int(_rows.fetched(run.calls)),
        updates=high[1] + int(_rows.fetched(run.slots.updates)),
        accumulated_calls=int(counts.accumulated_calls),
        skipped_calls=high[2] + int(counts.skipped_calls),
    )


def _vectors(run: Run) -> dict[str, Array]:
    """Return what there is one number of for each row, by slot."""
    counts, rows = run.slots.counts_in(_rows.fetched(run.slots.counts)), len(run.rows)
    vectors = {_state.UPDATES: counts.row_updates.astype(np.int64)}
    if _state.ACCUMULATOR in _state.array_slots(run.hyperparameters):
        vectors[_state.IN_WINDOW] = counts.in_window[:rows].astype(np.bool_)
    if run.hyperparameters.use_ema:
        vectors[_state.AVERAGED] = np.full(rows, bool(counts.averaged))
    return vectors


def metadata(run: Run, hyperparameters: Hyperparameters, exclusions: Exclusions) -> dict[str, str]:
    """Return what a checkpoint says besides the state."""
    variables = {
        name: (tuple(variable.shape), _rows.dtype_of(variable))
        for name, variable in zip(run.names, run.rows, strict=True)
    }
    return _saved_state.metadata(hyperparameters, exclusions, variables)


def read(
    path: str | os.PathLike[str],
    optimizer_name: str,
    names: Mapping[str, str] | Callable[[str], str] | None,
    transposed: Axes | None,
) -> dict[str, Array]:
    """Return the state in a file under the names, and with the axes, that it has here."""
    return _saved_state.read(path, names, optimizer_name, transposed)


def restoring(
    run: Run,
    hyperparameters: Hyperparameters,
    saved: Mapping[str, Any],
    keep_learning_rate: bool,
    also: Sequence[str],
) -> Restoring:
    """Check saved state against an optimizer, and warn of what only one of them has."""
    slots: dict[str, _state.Slot] = {}
    for name, variable in zip(run.names, run.rows, strict=True):
        computed = _rows.compute_dtype(variable)
        slots |= _state.variable_slots(name, tuple(variable.shape), computed)
    used = [*run.slots.arrays, *_vectors(run)]
    return _saved_state.restoring(
        saved,
        slots,
        {full(name, slot) for name in run.names for slot in used},
        hyperparameters,
        keep_learning_rate=keep_learning_rate,
        also=also,
    )


def restore(run: Run, restoring: Restoring) -> None:
    """Take over saved state that has been checked, all but the learning rate."""
    found, slots, counted = restoring.arrays, run.slots, restoring.counters

    def vector(slot: str) -> Array:
        return np.array([found.get(full(name, slot), 0) for name in run.names])

    averaged = vector(_state.AVERAGED).astype(np.bool_)
    words = (counted.calls, counted.updates, counted.skipped_calls)
    wide = _rows.dtype_of(run.calls) == "int64"
    high = [0 if wide else count >> _WORD for count in words]
    low = [count if wide else count & (2**_WORD - 1) for count in words]
    dtype = np.iinfo(_rows.dtype_of(slots.counts))
    # What is too large for these is an error before anything has changed.
    counts = np.zeros(slots.counts.shape, dtype.dtype)
    parts = slots.counts_in(counts)
    parts.skipped_calls[...] = low[2]
    parts.accumulated_calls[...] = counted.accumulated_calls
    parts.averaged[...] = averaged.any()
    parts.overflows[...] = high
    parts.row_updates[...] = np.minimum(vector(_state.UPDATES), dtype.max)
    parts.in_window[: len(run.rows)] = vector(_state.IN_WINDOW)
    for slot, column in slots.arrays.items():
        for name, variable in zip(run.names, column, strict=True):
            array = found.get(full(name, slot))
            variable.assign(ops.zeros(variable.shape, variable.dtype) if array is None else array)
    if averaged.any() and not averaged.all():
        # There is one flag for all, and an average that is taken for the first time is the value.
        for row, average in enumerate(slots.arrays[_state.AVERAGE]):
            if not averaged[row]:
                average.assign(ops.cast(run.rows[row], average.dtype))
    run.calls.assign(low[0])
    slots.updates.assign(low[1])
    slots.counts.assign(counts)
