"""What every learning-rate schedule is, and what its arguments may be."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from oneadam import _arguments as arguments

Schedule = TypeVar("Schedule", bound="LearningRateSchedule")


class LearningRateSchedule:
    """A learning rate as a function of the number of calls so far; subclass it for your own.

    A subclass defines `__call__`, and `get_config` if it is to be saved. One that is a dataclass
    gets `get_config`, equality and a readable `repr` from its fields.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Harmonic(LearningRateSchedule):
        ...     first: float
        ...     def __call__(self, step):
        ...         return self.first / (step + 1)
        >>> Harmonic(0.1)(4)
        0.02
        >>> Harmonic(0.1).get_config()
        {'first': 0.1}
    """

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a call.

        Args:
            step: the number of finished calls: an int, or a framework's scalar, which may be
                traced.

        Returns:
            A float for an int, the framework's scalar for a framework's scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, step).")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule, ready for JSON.

        Raises:
            NotImplementedError: if a subclass that is no dataclass does not define it.
        """
        kind: Any = type(self)
        if not dataclasses.is_dataclass(kind):
            raise NotImplementedError(
                f"{kind.__name__} must define get_config(self), which returns the arguments "
                "of its __init__ as a dict, in order to be saved."
            )
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if f.init}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}

    @classmethod
    def from_config(cls: type[Schedule], config: Mapping[str, Any]) -> Schedule:
        """Return the schedule whose `get_config` gave this dict, which stays as it is."""
        return cls(**config)


def _rate(argument: str, value: Any) -> float:
    return arguments.number(argument, value, arguments.LEARNING_RATE)


def _factor(argument: str, value: Any) -> float:
    return arguments.number(argument, value, arguments.NOT_NEGATIVE)


def _steps(argument: str, value: Any) -> float:
    return arguments.steps(argument, value, arguments.POSITIVE)


def _boundaries(argument: str, values: Any) -> tuple[float, ...]:
    boundaries = tuple(
        arguments.steps(f"{argument}[{i}]", value, arguments.FINITE)
        for i, value in enumerate(arguments.listed(argument, values))
    )
    for i, (earlier, later) in enumerate(itertools.pairwise(boundaries)):
        if not earlier < later:
            raise ValueError(
                f"{argument} must increase strictly, received {earlier!r} before {later!r} at "
                f"{argument}[{i}]. Sort them, with their values, and drop the repeated ones."
            )
    return boundaries


def _rates(argument: str, values: Any) -> tuple[float, ...]:
    rates = arguments.listed(argument, values)
    return tuple(_rate(f"{argument}[{i}]", rate) for i, rate in enumerate(rates))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "initial_learning_rate": _rate,
    "end_learning_rate": _rate,
    "warmup_target": lambda name, value: None if value is None else _rate(name, value),
    "values": _rates,
    "boundaries": _boundaries,
    "decay_steps": _steps,
    "first_decay_steps": _steps,
    "warmup_steps": lambda name, value: arguments.steps(name, value, arguments.NOT_NEGATIVE),
    "decay_rate": _factor,
    "power": _factor,
    "m_mul": _factor,
    "t_mul": lambda name, value: arguments.number(name, value, arguments.AT_LEAST_ONE),
    "alpha": lambda name, value: arguments.number(name, value, arguments.FRACTION),
    "staircase": arguments.flag,
    "cycle": arguments.flag,
    "name": arguments.text,
}


def normalise(schedule: Any) -> None:
    """Replace each field of a frozen schedule by what its check makes of it."""
    for field in dataclasses.fields(schedule):
        value = _CHECKS[field.name](field.name, getattr(schedule, field.name))
        object.__setattr__(schedule, field.name, value)
