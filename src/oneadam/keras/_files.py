"""State in files of Keras: what they keep, and taking it over, also from Keras's own Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from oneadam import _interrupts
from oneadam._messages import listed
from oneadam._warnings import warn
from oneadam.keras import _rows, _run

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any

_RATE = "learning_rate"


def kept(optimizer: Adam) -> dict[str, Variable]:
    """Return what files of Keras keep, by place and name; arguments are not state.

    Paths are no names for it: a model that is loaded has others than when it was saved.
    """
    own, (calls, *rate) = optimizer._own, first(optimizer)
    apart = {id(variable) for variable in (calls, own.numbers, own.rate)}
    every = [calls, *(v for v in optimizer.variables if id(v) not in apart)]
    short = own.short_names
    found = {f"{place}_{short.get(id(v), v.name)}": v for place, v in enumerate(every)}
    return found | ({_RATE: rate[0]} if rate else {})


def adopt(optimizer: Adam, values: Mapping[str, Any]) -> None:
    """Take over saved state, of this class or of Keras's Adam."""
    if values and all(name.isdecimal() for name in values):
        adopt_keras(optimizer, [values[str(place)] for place in range(len(values))])
        return
    here, values = kept(optimizer), dict(values)
    if (_RATE in here) != (_RATE in values):
        # A number may have taken the place of a schedule, or the other way round.
        warn(
            f"the saved state has {'a' if _RATE in values else 'no'} learning rate, and the"
            f" optimizer goes on with {'its own' if _RATE in here else 'its schedule or function'}"
        )
        here.pop(_RATE, None)
        values.pop(_RATE, None)
    problems = [
        *(f"missing: {name}" for name in sorted(here.keys() - values.keys())),
        *(f"unexpected: {name}" for name in sorted(values.keys() - here.keys())),
        *(
            f"{name} of shape {values[name].shape}, here {tuple(variable.shape)}"
            for name, variable in here.items()
            if name in values and values[name].shape != tuple(variable.shape)
        ),
    ]
    if problems:
        raise ValueError(
            "the saved state must fit the optimizer by names and shapes;"
            f" {listed(problems)}; nothing was loaded. Make the optimizer with the arguments"
            " that it was saved with, or use the portable save and load"
        )
    with _interrupts.held_back():
        for name, variable in here.items():
            variable.assign(values[name])
        write_numbers(optimizer)


def write_numbers(optimizer: Adam) -> None:
    """Have compiled code see the arguments, whatever was loaded into its variable."""
    own = optimizer._own
    own.numbers.assign(_run.numbers_of(own.hyperparameters, own.numbers.shape[0]))
    if callable(own.hyperparameters.learning_rate):
        own.rate.assign(_run.NO_RATE)


def adopt_list(optimizer: Adam, variables: Sequence[Variable], weights: Sequence[Any]) -> None:
    """Take over values of variables of an optimizer."""
    pairs = [
        (variable, weight)
        for variable, weight in zip(variables, weights, strict=True)
        if variable is not optimizer._own.numbers
    ]
    for variable, weight in pairs:
        if tuple(variable.shape) != weight.shape:
            raise ValueError(
                f"Optimizer variable {variable.path} has shape {tuple(variable.shape)} not"
                f" compatible with provided weight shape {weight.shape}."
            )
    with _interrupts.held_back():
        for variable, weight in pairs:
            variable.assign(weight)
        write_numbers(optimizer)


def first(optimizer: Adam) -> list[Variable]:
    """Return the variables that every optimizer of Keras has."""
    rate = optimizer._learning_rate
    return [optimizer._iterations, *([rate] if isinstance(rate, keras.Variable) else [])]


def of_keras(optimizer: Adam) -> list[Variable]:
    """Return the variables that Keras's Adam has too, in its order."""
    pairs = zip(optimizer._momentums, optimizer._velocities, strict=True)
    columns = [optimizer._model_variables_moving_average, optimizer._accumulated_gradients,
               chain.from_iterable(pairs), optimizer._velocity_hats]  # fmt: skip
    return [*first(optimizer), *(v for v in chain.from_iterable(columns) if v is not None)]


def adopt_keras(optimizer: Adam, weights: Sequence[Any]) -> None:
    """Take over the variables of Keras's Adam."""
    slots, h, here = optimizer._own.slots, optimizer._own.hyperparameters, of_keras(optimizer)
    if len(weights) != len(here):
        raise ValueError(
            f"the state of Keras's Adam must have {len(here)} variables for these arguments,"
            f" received {len(weights)}; make the optimizer with the arguments of the saved one"
        )
    updates, accumulated = divmod(int(weights[0]), h.gradient_accumulation_steps or 1)
    counts = np.zeros(slots.counts.shape, _rows.dtype_of(slots.counts))
    parts = slots.counts_in(counts)
    parts.accumulated_calls[...] = accumulated
    parts.averaged[...] = h.use_ema and updates > 0
    parts.row_updates[...] = updates
    parts.in_window[...] = accumulated > 0
    with _interrupts.held_back():
        adopt_list(optimizer, here, weights)
        slots.updates.assign(updates)
        slots.counts.assign(counts)
