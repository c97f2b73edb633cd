"""What an engine is told: the configuration, and the variables that it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from oneadam import _plan
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Weights
from oneadam.keras._slots import Slots

Variable = Any
Tensor = Any

NUMBERS = (
    "epsilon",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema_momentum",
    "loss_scale_factor",
)
BETAS = ("beta_1", "beta_2")

NO_RATE = -1.0
"""What the variable of the learning rate holds where that is no number."""


class Overwritten(NamedTuple):
    """A variable that takes its gradient as its value."""

    variable: Variable
    accumulator: Variable | None
    """The largest of the open window's gradients."""


@dataclass
class Run:
    """An optimizer that is built."""

    hyperparameters: Hyperparameters
    rows: Sequence[Variable]
    """The variables that Adam trains."""
    names: Sequence[str]
    """Of the rows."""
    decayed: Sequence[bool]
    """Which rows are not exempt from weight decay."""
    overwritten: Sequence[Overwritten]
    slots: Slots
    calls: Variable
    """The counter of finished calls."""
    learning_rate: Variable
    """`NO_RATE` where a schedule or a function decides."""
    numbers: Variable
    """A vector, for compiled code to see changes; more may stand behind what is named."""
    loss_scale: Variable | None = None
    """What a dynamic loss scale divides gradients by."""

    @property
    def skips(self) -> bool:
        """Whether a call with an inf or NaN changes nothing."""
        return self.loss_scale is not None or self.hyperparameters.on_nonfinite == "skip"


class Engine(Protocol):
    """What takes calls on one backend."""

    def take(self, grads: Sequence[Tensor | None], raw: Sequence[Tensor | None]) -> None:
        """Take one call: update the variables, or accumulate.

        Args:
            grads: for each row.
            raw: for each variable that is overwritten.
        """

    def flush(self) -> None:
        """Close the open accumulation window, if there is one."""

    def check_rate(self, rate: Any) -> None:
        """Refuse a learning rate of another kind that compiled steps could not take up."""


def kind(value: Any) -> Any:
    """Return what compiled code depends on of an argument: a number may become another one."""
    return float if isinstance(value, float) else value


def numbers_of(hyperparameters: Hyperparameters, length: int | None = None) -> np.ndarray[Any, Any]:
    """Return the numbers that compiled code reads from a variable; 0 for None and functions.

    Args:
        hyperparameters: the optimizer's.
        length: of a longer vector, with zeros behind.
    """
    h = hyperparameters
    plain = [getattr(h, name) or 0.0 for name in NUMBERS]
    betas = [getattr(h, name) for name in BETAS]
    weights = [_plan.weights(0.0 if callable(beta) else beta) for beta in betas]
    # The logarithm of zero is infinite, and fits into every dtype.
    numbers = np.array([*plain, *weights[0], *weights[1]])
    return np.append(numbers, np.zeros((length or numbers.size) - numbers.size))


def named(numbers: Sequence[Any]) -> Mapping[str, Any]:
    """Return the entries of that vector by name; of betas, their weights."""
    width, first = len(Weights._fields), len(NUMBERS)
    found: dict[str, Any] = dict(zip(NUMBERS, numbers[:first], strict=True))
    for place, name in enumerate(BETAS):
        begin = first + place * width
        found[name] = Weights(*numbers[begin : begin + width])
    return found
