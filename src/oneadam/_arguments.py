"""Checks of argument values: each returns plain Python or raises an error with a way out.

Nothing here knows which optimizer or schedule it serves, and no framework is imported: a 0-d
array or tensor of any framework is read through Python's own `bool`, `int` and `float`.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

LONGEST_VALUE_SHOWN = 200


class Rule(NamedTuple):
    """Which numbers an argument takes; NaN fails every comparison and so is never accepted."""

    text: str
    accepts: Callable[[float], bool]
    example: str


def _at_least_zero(value: float) -> bool:
    return 0.0 <= value < math.inf


LEARNING_RATE = Rule("a finite number >= 0", _at_least_zero, "0.001")
NOT_NEGATIVE = Rule("a finite number >= 0", _at_least_zero, "0.5")
POSITIVE = Rule("a finite number > 0", lambda value: 0.0 < value < math.inf, "1000")
NORMAL_POSITIVE = Rule(
    f"a finite number > 0 and not below {sys.float_info.min!r}, the smallest normal float64",
    lambda value: sys.float_info.min <= value < math.inf,
    "1e-7",
)
BOUND = Rule("a number > 0 (inf: no clipping)", lambda value: value > 0.0, "1.0")
BETA = Rule("a number in [0, 1)", lambda value: 0.0 <= value < 1.0, "0.9")
FRACTION = Rule("a number in [0, 1]", lambda value: 0.0 <= value <= 1.0, "0.99")
AT_LEAST_ONE = Rule("a finite number >= 1", lambda value: 1.0 <= value < math.inf, "2.0")
FINITE = Rule("a finite number", math.isfinite, "1000")


def plain(value: Any) -> Any:
    """Return a 0-d array or tensor as the Python number it holds, anything else as it is."""
    dtype = str(getattr(value, "dtype", ""))
    if not dtype or tuple(getattr(value, "shape", (None,))) != ():
        return value
    if hasattr(value, "detach"):
        # PyTorch warns about a conversion that would cut a gradient; none is wanted here.
        value = value.detach()
    for kind, convert in (("bool", bool), ("int", int), ("float", float)):
        if kind in dtype:
            return convert(value)
    return value


def number(argument: str, value: Any, rule: Rule, source: str = "") -> float:
    """Return a real number as a float, checked against a rule.

    Args:
        argument: the name that the error gives.
        value: int, float, or 0-d array or tensor.
        rule: which numbers are accepted.
        source: where the value came from, if it is not what the user wrote, for the error.

    Raises:
        TypeError: if the value is not a real number; a bool is none.
        ValueError: if the number breaks the rule.
    """
    try:
        held = plain(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{argument} must be {rule.text}, but the number in {shown(value)}{source} cannot be "
            "read here. Inside a traced function pass plain numbers, and where the value is to "
            "change use a schedule or a callable."
        ) from error
    if isinstance(held, bool) or not isinstance(held, numbers.Real):
        raise TypeError(_refusal(argument, rule.text, value, rule.example, source))
    try:
        converted = float(held)
    except OverflowError:
        converted = math.inf
    if not rule.accepts(converted):
        raise ValueError(_refusal(argument, rule.text, value, rule.example, source))
    return converted


def steps(argument: str, value: Any, rule: Rule) -> float:
    """Return a number of steps: like `number`, but an int stays an int, which counts exactly."""
    converted = number(argument, value, rule)
    held = plain(value)
    return int(held) if isinstance(held, numbers.Integral) else converted


def count(argument: str, value: Any) -> int:
    """Return an integer that is at least 1; a bool or a float is refused."""
    held = plain(value)
    if isinstance(held, bool) or not isinstance(held, numbers.Integral):
        raise TypeError(_refusal(argument, "an int >= 1", value, "4"))
    if held < 1:
        raise ValueError(_refusal(argument, "an int >= 1", value, "4"))
    return int(held)


def flag(argument: str, value: Any) -> bool:
    """Return a bool, Python's or NumPy's; an int is refused."""
    held = plain(value)
    if not isinstance(held, bool):
        raise TypeError(_refusal(argument, "True or False", value, "True"))
    return held


def text(argument: str, value: Any) -> str:
    """Return a non-empty string."""
    if not isinstance(value, str):
        raise TypeError(_refusal(argument, "a non-empty str", value, "'adam'"))
    if not value:
        raise ValueError(_refusal(argument, "a non-empty str", value, "'adam'"))
    return value


def choice(argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return a string that is one of those given."""
    rule = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise TypeError(_refusal(argument, rule, value, repr(choices[0])))
    if value not in choices:
        raise ValueError(_refusal(argument, rule, value, repr(choices[0])))
    return value


def listed(argument: str, value: Any) -> list[Any]:
    """Return the items of a list, tuple or 1-d array."""
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise TypeError(_refusal(argument, "a list of numbers", value, "[100, 200]"))
    return list(value)


def shown(value: Any) -> str:
    """Return a value as an error shows it: its repr, cut where it would flood the message."""
    whole = repr(value)
    return whole if len(whole) <= LONGEST_VALUE_SHOWN else whole[:LONGEST_VALUE_SHOWN] + "..."


def _refusal(argument: str, rule: str, value: Any, example: str, source: str = "") -> str:
    got = f"{shown(value)} ({type(value).__name__})"
    return (
        f"{argument} must be {rule}, received {got}{source}. Pass for example {argument}={example}."
    )
