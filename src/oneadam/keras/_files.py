"""State in files of Keras: what they keep, and taking it over, also from Keras's own Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from oneadam import _arguments, _interrupts
from oneadam._messages import listed
from oneadam._warnings import warn
from oneadam.keras import _rows, _run

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any

_RATE = "learning_rate"


def save(optimizer: Adam, store: Any) -> None:
    """Write the state into a file of Keras."""
    own = optimizer._own
    has_it = optimizer.built and own.pending is None
    found: Mapping[str, Any] = kept(optimizer) if has_it else own.pending or {}
    for name, value in found.items():
        store[name] = _rows.fetched(value) if isinstance(value, keras.Variable) else value


def load(optimizer: Adam, store: Any) -> None:
    """Take over the state in a file of Keras, or keep it until there are variables."""
    values = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
    if len(values) <= len(first(optimizer)):
        if optimizer.built and optimizer.calls:
            warn("the file has no state of the optimizer, which goes on with what it has")
    elif optimizer.built:
        adopt(optimizer, values)
    else:
        optimizer._own.pending = values


def adopt_pending(optimizer: Adam) -> None:
    """Take over what was loaded before there were variables; what does not fit stays."""
    if optimizer._own.pending is not None:
        with _rows.outside_of_graphs():
            adopt(optimizer, optimizer._own.pending)


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
    rate, own_rate = values.pop(_RATE, _run.NO_RATE), here.pop(_RATE, None)
    problems = [
        *(f"missing: {name}" for name in sorted(here.keys() - values.keys())),
        *(f"unexpected: {name}" for name in sorted(values.keys() - here.keys())),
        *(
            f"{name} of shape {values[name].shape}, here {tuple(variable.shape)}"
            for name, variable in here.items()
            if name in values and values[name].shape != tuple(variable.shape)
        ),
        *(f"{_RATE} of shape {np.shape(rate)}, here ()" for _ in range(np.ndim(rate) > 0)),
        *_negative({name: values[name] for name in here.keys() & values.keys()}, here),
    ]
    if problems:
        raise ValueError(
            "the saved state must fit the optimizer by names and shapes;"
            f" {listed(problems)}; nothing was loaded. Make the optimizer with the arguments"
            " that it was saved with, or use the portable save and load"
        )
    takes_rate = _takes_rate(optimizer, rate)
    with _interrupts.held_back():
        for name, variable in here.items():
            variable.assign(values[name])
        if takes_rate:
            own_rate.assign(rate)
        _write_arguments(optimizer, is_rate_new=takes_rate)
        optimizer._own.pending = None


def _negative(values: Mapping[str, Any], variables: Mapping[str, Variable]) -> list[str]:
    """Return what is wrong with values of counters, by the names of these."""
    return [
        f"{name} is negative, a counter is not"
        for name, value in values.items()
        if "int" in _rows.dtype_of(variables[name]) and np.less(value, 0).any()
    ]


def _write_arguments(optimizer: Adam, *, is_rate_new: bool) -> None:
    """Have compiled code see the arguments, whatever was loaded into their variables.

    Keras's own LossScaleOptimizer loads all variables of what it wraps.
    """
    own, rate = optimizer._own, optimizer._own.hyperparameters.learning_rate
    own.numbers.assign(_run.numbers_of(own.hyperparameters, own.numbers.shape[0]))
    if callable(rate):
        own.rate.assign(_run.NO_RATE)
    elif not is_rate_new and _rows.fetched(own.rate) == _run.NO_RATE:
        own.rate.assign(rate)


def _takes_rate(optimizer: Adam, rate: Any) -> bool:
    """Return whether a saved learning rate has its place here, having refused what is none.

    A number may have taken the place of a schedule, or the other way round.
    """
    is_here = not callable(optimizer._own.hyperparameters.learning_rate)
    is_there = not np.array_equal(rate, _run.NO_RATE)
    if is_here != is_there:
        warn(
            f"the saved state has {'a' if is_there else 'no'} learning rate, and the"
            f" optimizer goes on with {'its own' if is_here else 'its schedule or function'}"
        )
    elif is_there:
        _arguments.number("the saved learning rate", rate, _arguments.LEARNING_RATE)
    return is_here and is_there


def adopt_weights(optimizer: Adam, weights: Sequence[Any]) -> None:
    """Take over values of all variables, or of those that Keras's Adam has."""
    every, of_theirs = optimizer.variables, of_keras(optimizer)
    if len(weights) == len(of_theirs) != len(every):
        adopt_keras(optimizer, weights)
        return
    if len(weights) != len(every):
        raise ValueError(
            f"weights must have {len(every)} entries as `variables` has, or"
            f" {len(of_theirs)} as those of Keras's Adam, received {len(weights)}"
        )
    _adopt_list(optimizer, every, weights)


def _adopt_list(optimizer: Adam, variables: Sequence[Variable], weights: Sequence[Any]) -> None:
    """Take over values of variables of an optimizer, all but its arguments."""
    own = optimizer._own
    pairs = [
        (variable, weight)
        for variable, weight in zip(variables, weights, strict=True)
        if variable is not own.numbers
    ]
    for variable, weight in pairs:
        if tuple(variable.shape) != weight.shape:
            raise ValueError(
                f"Optimizer variable {variable.path} has shape {tuple(variable.shape)} not"
                f" compatible with provided weight shape {weight.shape}."
            )
    problems = _negative(
        {variable.path: weight for variable, weight in pairs},
        {variable.path: variable for variable, _ in pairs},
    )
    if problems:
        raise ValueError(
            f"weights must be those of an optimizer; {listed(problems)}; nothing was loaded. Pass"
            " what `variables` of one had"
        )
    taken = [
        (variable, weight)
        for variable, weight in pairs
        if variable is not own.rate or _takes_rate(optimizer, weight)
    ]
    with _interrupts.held_back():
        for variable, weight in taken:
            variable.assign(weight)
        own.pending = None


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
        _adopt_list(optimizer, here, weights)
        slots.updates.assign(updates)
        slots.counts.assign(counts)
