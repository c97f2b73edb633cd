"""Making the state of an optimizer, and what takes its calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import keras

from oneadam import _state
from oneadam.keras import _exemptions, _rows, _run, _slots
from oneadam.keras._run import Overwritten, Run

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any


def build(optimizer: Adam, variables: Sequence[Variable]) -> None:
    """Make the state for variables, and have an engine."""
    variables, key = list(variables), optimizer._var_key
    own = optimizer._own
    keys = [key(variable) for variable in variables]
    if len(set(keys)) != len(keys):
        raise ValueError(
            "variables must be given once each, received one of them twice; pass"
            " model.trainable_variables"
        )
    trained = [variable for variable in variables if not _rows.is_overwritten(variable)]
    _rows.check_trained(own.hyperparameters, trained)
    names = _rows.names_of(variables)
    _state.check_distinct(optimizer.name, dict.fromkeys(names))
    paths = dict(zip(names, map(_rows.name_of, variables), strict=True))
    own.exclusions = _exemptions.resolved(own.exclusions, own.exempted, paths)
    own.variables, own.keys = variables, keys
    own.slots = _slots.made(
        own.hyperparameters,
        trained,
        len(variables) - len(trained),
        _rows.number_dtype(),
        partial(_variable, optimizer),
        partial(_variable_beside, optimizer),
    )
    own.numbers = numbers(optimizer)
    own.rate = optimizer._learning_rate
    if not isinstance(own.rate, keras.Variable):
        # For a number that may be assigned when steps are compiled.
        own.rate = _variable(optimizer, (), _rows.number_dtype(), "learning_rate", _run.NO_RATE)
        # Where a number has it: Keras's own LossScaleOptimizer saves variables by their places.
        optimizer._variables.insert(1, optimizer._variables.pop())
    own.accumulators = {
        key(variable): _variable_beside(
            optimizer, variable, _rows.dtype_of(variable), _state.ACCUMULATOR
        )
        for variable in variables
        if _rows.is_overwritten(variable) and own.accumulates
    }
    optimizer._trainable_variables_indices = {key: place for place, key in enumerate(keys)}
    object.__setattr__(optimizer, "_trainable_variables", variables)
    optimizer.built = True
    start(optimizer)


def start(optimizer: Adam) -> None:
    """Put together what an engine works on, and get one."""
    own, key = optimizer._own, optimizer._var_key
    names = dict(zip(map(key, own.variables), _rows.names_of(own.variables), strict=True))
    excluded = {key(variable) for variable in own.excluded}
    rows = [variable for variable in own.variables if not _rows.is_overwritten(variable)]
    overwritten = [variable for variable in own.variables if _rows.is_overwritten(variable)]
    own.keys_of_parts = (list(map(key, rows)), list(map(key, overwritten)))
    own.exclusions = own.exclusions.extended(
        names=[names[key(variable)] for variable in own.excluded if key(variable) in names]
    )
    own.run = Run(
        hyperparameters=own.hyperparameters,
        rows=rows,
        names=[names[key(variable)] for variable in rows],
        decayed=[
            key(row) not in excluded and not own.exclusions.covers(names[key(row)]) for row in rows
        ],
        overwritten=[
            Overwritten(variable, own.accumulators.get(key(variable))) for variable in overwritten
        ],
        slots=own.slots,
        calls=optimizer._iterations,
        learning_rate=own.rate,
        numbers=own.numbers,
        loss_scale=own.loss_scale,
    )
    backend = import_module(f"oneadam.keras._{_rows.backend_name()}")
    own.engine = backend.Engine(own.run)


def numbers(optimizer: Adam, length: int | None = None) -> Variable:
    """Make the variable of numbers that compiled code reads; see `_run.numbers_of`."""
    found = _run.numbers_of(optimizer._own.hyperparameters, length)
    return _variable(optimizer, found.shape, _rows.number_dtype(), "numbers", found)


def _variable(
    optimizer: Adam, shape: tuple[int, ...], dtype: str, name: str, value: Any = None
) -> Variable:
    """Make a variable with its value, which a graph that is being traced could not set."""
    return optimizer.add_variable(
        shape=shape,
        initializer="zeros" if value is None else keras.initializers.Constant(value),
        dtype=dtype,
        name=name,
        aggregation="only_first_replica",
    )


def _variable_beside(optimizer: Adam, other: Variable, dtype: str, slot: str) -> Variable:
    """Make a variable of another one's shape, where and how that lies."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    path = _rows.name_of(other)
    with (
        nullcontext()
        if strategy is None
        else strategy.extended.colocate_vars_with(_rows.own(other))
    ):
        variable: Variable = optimizer.add_variable(
            shape=tuple(other.shape),
            dtype=dtype,
            name=f"{path.replace('/', '_').replace(':', '_')}_{slot}",
            layout=getattr(other, "_layout", None),
        )
    optimizer._own.short_names[id(variable)] = f"{path.rpartition('/')[2]}_{slot}"
    return variable
