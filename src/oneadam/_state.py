"""The names, shapes and dtypes of optimizer state, and matching saved state to them by name.

Names: `<variable>/<slot>` for what each variable has, `<optimizer>/<counter>` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._hyperparameters import Hyperparameters
from oneadam._messages import listed

Array = NDArray[Any]

MOMENTUM = "momentum"
VELOCITY = "velocity"
VELOCITY_HAT = "velocity_hat"
AVERAGE = "average"
ACCUMULATOR = "gradient_accumulator"
UPDATES = "updates"
IN_WINDOW = "in_window"
AVERAGED = "averaged"

ARRAYS = (MOMENTUM, VELOCITY, VELOCITY_HAT, AVERAGE, ACCUMULATOR)
"""The slots that have the shape of their variable; the others are numbers."""


class Slot(NamedTuple):
    """One piece of state: what it must look like, and whether a checkpoint may lack it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    optional: bool = False


class Matched(NamedTuple):
    """Saved state that fits, by name, and what differs in the optional parts."""

    found: dict[str, Array]
    afresh: list[str]
    """Optional parts that the saved state lacks."""
    ignored: list[str]
    """Optional parts that only the saved state has."""


def full(owner: str, slot: str) -> str:
    """Return the name of a piece of state of a variable or an optimizer, given its name."""
    return f"{owner}/{slot}"


def owners(names: Iterable[str], slot: str) -> list[str]:
    """Return whose slot is meant by those of the full names that are of this slot."""
    ending = full("", slot)
    return [name.removesuffix(ending) for name in names if name.endswith(ending)]


def array_slots(hyperparameters: Hyperparameters) -> tuple[str, ...]:
    """Return which arrays every variable has."""
    wanted = {
        VELOCITY_HAT: hyperparameters.amsgrad,
        AVERAGE: hyperparameters.use_ema,
        ACCUMULATOR: (hyperparameters.gradient_accumulation_steps or 1) > 1,
    }
    return (MOMENTUM, VELOCITY, *(name for name, is_wanted in wanted.items() if is_wanted))


def variable_slots(variable: str, shape: tuple[int, ...], computed: str) -> dict[str, Slot]:
    """Return all state that a variable may have, by full name.

    Args:
        variable: its name.
        shape: its shape.
        computed: the name of the dtype that it is computed in, "float32" or "float64".
    """
    dtype = np.dtype(computed)
    slots = {
        MOMENTUM: Slot(shape, dtype),
        VELOCITY: Slot(shape, dtype),
        VELOCITY_HAT: Slot(shape, dtype, optional=True),
        AVERAGE: Slot(shape, dtype, optional=True),
        ACCUMULATOR: Slot(shape, dtype, optional=True),
        UPDATES: Slot((), np.dtype(np.int64)),
        IN_WINDOW: Slot((), np.dtype(np.bool_), optional=True),
        AVERAGED: Slot((), np.dtype(np.bool_), optional=True),
    }
    return {full(variable, name): slot for name, slot in slots.items()}


def optimizer_slots(name: str) -> dict[str, Slot]:
    """Return all state that is the optimizer's own, by full name."""
    integer, number = np.dtype(np.int64), np.dtype(np.float64)
    slots = {
        "calls": Slot((), integer),
        "updates": Slot((), integer),
        "accumulated_calls": Slot((), integer),
        "skipped_calls": Slot((), integer),
        "learning_rate": Slot((), number, optional=True),
        "loss_scale": Slot((), number, optional=True),
        "loss_scale_finite_calls": Slot((), integer, optional=True),
        "loss_scale_skipped_in_a_row": Slot((), integer, optional=True),
    }
    return {full(name, key): slot for key, slot in slots.items()}


def check_distinct(name: str, variables: Mapping[str, Any]) -> None:
    """Refuse names of variables that would give two pieces of state the same name."""
    own = optimizer_slots(name)
    for variable in variables:
        clashes = sorted(own.keys() & variable_slots(variable, (), "float32").keys())
        if clashes:
            raise ValueError(
                f"name must keep the optimizer's state apart from the variables', received {name!r}"
                f" and a variable {variable!r}, which both have {clashes[0]!r}; rename one of them"
            )


def match(slots: Mapping[str, Slot], wanted: set[str], saved: Mapping[str, Any]) -> Matched:
    """Match saved state to what an optimizer has, by name.

    Args:
        slots: everything that there may be.
        wanted: the names of what this optimizer has.
        saved: arrays by name.

    Raises:
        ValueError: something is missing, unexpected, or of another shape or dtype.
    """
    arrays = {name: np.asarray(value) for name, value in saved.items()}
    required = {name for name in wanted if not slots[name].optional}
    misshapen = [
        f"{name} (saved {array.dtype} {array.shape}, here {slots[name].dtype} {slots[name].shape})"
        for name, array in arrays.items()
        if name in slots and (array.shape, array.dtype) != slots[name][:2]
    ]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("missing", sorted(required - arrays.keys())),
            ("unexpected", sorted(arrays.keys() - slots.keys())),
            ("of another shape or dtype", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(
            "the saved state must fit the optimizer's variables by name, shape and dtype; "
            + "; ".join(problems)
            + "; nothing was loaded. Build the optimizer on the variables that the state was"
            " saved for, or rename or transpose the saved ones with load(path, names=...,"
            " transposed=...)"
        )
    return Matched(
        found={name: array for name, array in arrays.items() if name in wanted},
        afresh=sorted(wanted - arrays.keys()),
        ignored=sorted(arrays.keys() - wanted),
    )
