"""Learning-rate schedules: Keras's six, with Keras's arguments, and the base for your own.

A schedule is a pure function of the number of finished calls. On an int it returns a float,
computed in float64; on a framework's scalar, traced or not, it returns that framework's scalar in
its default floating dtype, a few spacings of that dtype from the float64 value.

Every schedule is immutable, compares by value and survives `pickle` and `serialize`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oneadam._schedule import LearningRateSchedule, normalise
from oneadam._serialization import deserialize, serialize
from oneadam._step import Step

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "serialize",
]


def _blend(start: float, share: Any, end: float, rest: Any) -> Any:
    """Return start * share + end * rest, which is exactly start or end where it should be."""
    return start * share + end * rest


def _angle(left: Any, length: float) -> Any:
    """Return half of pi * (1 - x), where x is how far the steps that are left are along a cycle."""
    return left * (math.pi / 2.0 / length)


def _cosine(step: Step, angle: Any) -> Any:
    """Return (1 + cos(pi * x)) / 2; squaring a sine keeps its digits where x is almost 1."""
    sine = step.xp.sin(angle)
    return sine * sine


@dataclass(frozen=True)
class ExponentialDecay(LearningRateSchedule):
    """Multiply the learning rate by a factor over each period of steps.

    `initial_learning_rate * decay_rate ** (step / decay_steps)`, where `staircase` rounds the
    quotient down.

    Args:
        initial_learning_rate: finite number >= 0, the value at step 0.
        decay_steps: finite number > 0, the length of a period.
        decay_rate: finite number >= 0, the factor.
        staircase: bool, decay at the end of each period instead of at every step.
        name: str.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> ExponentialDecay(0.5, decay_steps=100, decay_rate=0.25)(50)
        0.25
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str = "ExponentialDecay"

    def __post_init__(self) -> None:
        normalise(self)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        periods, rest, _ = step.divide(self.decay_steps)
        rate = self.initial_learning_rate * step.power(self.decay_rate, periods)
        if self.staircase:
            return rate
        return rate * step.xp.pow(self.decay_rate, rest / float(self.decay_steps))


@dataclass(frozen=True)
class PiecewiseConstantDecay(LearningRateSchedule):
    """Hold the learning rate constant between boundaries.

    `values[0]` up to and including step `boundaries[0]`, then `values[1]` up to and including
    `boundaries[1]`, and `values[-1]` after the last boundary.

    Args:
        boundaries: sequence of finite numbers, strictly increasing.
        values: sequence of finite numbers >= 0, one more than there are boundaries.
        name: str.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, the boundaries do not increase, or the numbers of
            boundaries and values do not fit.

    Example:
        >>> schedule = PiecewiseConstantDecay([100, 200], [0.1, 0.01, 0.001])
        >>> schedule(100), schedule(101), schedule(1000)
        (0.1, 0.01, 0.001)
    """

    boundaries: Sequence[float]
    values: Sequence[float]
    name: str = "PiecewiseConstant"

    def __post_init__(self) -> None:
        normalise(self)
        if len(self.boundaries) != len(self.values) - 1:
            raise ValueError(
                "boundaries must number one less than values, received "
                f"{len(self.boundaries)} boundaries and {len(self.values)} values. "
                "Pass a value for before, between and after the boundaries."
            )

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        rate = step.xp.full_like(step.value, self.values[-1])
        for boundary, value in zip(self.boundaries[::-1], self.values[-2::-1], strict=True):
            rate = step.xp.where(step.passed(boundary), rate, value)
        return rate


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """Move the learning rate to an end value along a polynomial.

    `(initial_learning_rate - end_learning_rate) * (1 - s / decay_steps) ** power +
    end_learning_rate` with `s = min(step, decay_steps)`. With `cycle`, s is the step, and
    `decay_steps` is stretched to its first multiple that the step does not exceed, itself at
    step 0.

    Args:
        initial_learning_rate: finite number >= 0, the value at step 0.
        decay_steps: finite number > 0.
        end_learning_rate: finite number >= 0, the value from `decay_steps` on.
        power: finite number >= 0; 1 is a straight line.
        cycle: bool, start again, lower each time, after every `decay_steps`.
        name: str.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> schedule = PolynomialDecay(0.5, decay_steps=100, end_learning_rate=0.25)
        >>> schedule(0), schedule(50), schedule(1000)
        (0.5, 0.375, 0.25)
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str = "PolynomialDecay"

    def __post_init__(self) -> None:
        normalise(self)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        left, done = self._shares(step)
        if self.power != 1.0:
            left = step.xp.pow(left, self.power)
            done = 1.0 - left
        return _blend(self.initial_learning_rate, left, self.end_learning_rate, done)

    def _shares(self, step: Step) -> tuple[Any, Any]:
        """Return how much of the way is left and how much is done; the two add up to 1."""
        length = float(self.decay_steps)
        if not self.cycle:
            return step.until(length) / length, step.share(length)
        cycles, rest, left = step.divide(length)
        within = (rest > 0.0) | (cycles < 1.0)
        stretched = length * step.xp.where(within, cycles + 1.0, cycles)
        left = step.xp.where(within, left, 0.0)
        return left / stretched, step.value / stretched


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """Divide the learning rate by a number that grows linearly with the step.

    `initial_learning_rate / (1 + decay_rate * step / decay_steps)`, where `staircase` rounds
    `step / decay_steps` down.

    Args:
        initial_learning_rate: finite number >= 0, the value at step 0.
        decay_steps: finite number > 0.
        decay_rate: finite number >= 0, by how much the divisor grows in `decay_steps` steps.
        staircase: bool, decay after every `decay_steps` instead of at every step.
        name: str.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> InverseTimeDecay(0.5, decay_steps=100, decay_rate=1)(100)
        0.25
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str = "InverseTimeDecay"

    def __post_init__(self) -> None:
        normalise(self)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        periods = step.value / float(self.decay_steps)
        if self.staircase:
            periods, _, _ = step.divide(self.decay_steps)
        return self.initial_learning_rate / (1.0 + self.decay_rate * periods)


@dataclass(frozen=True)
class CosineDecay(LearningRateSchedule):
    """Lower the learning rate along half a cosine, after an optional linear warm-up.

    With `warmup_target`, the rate moves in a straight line from `initial_learning_rate` at step 0
    to `peak = warmup_target` at step `warmup_steps`; without it there is no warm-up, and `peak =
    initial_learning_rate`. From then on, with s the steps since, at most `decay_steps`:
    `peak * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)`.

    Source: Loshchilov & Hutter, "SGDR", 2017, equation 5; warm-up: Goyal et al., "Accurate, Large
    Minibatch SGD", 2017, section 2.2.

    Args:
        initial_learning_rate: finite number >= 0, the value at step 0.
        decay_steps: finite number > 0, warm-up not included.
        alpha: number in [0, 1], the last value as a fraction of the peak.
        name: str.
        warmup_target: None or finite number >= 0, the peak.
        warmup_steps: finite number >= 0; without `warmup_target` it has no effect.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> schedule = CosineDecay(0, 1000, warmup_target=1, warmup_steps=100)
        >>> schedule(0), schedule(25), schedule(100), schedule(1100)
        (0.0, 0.25, 1.0, 0.0)
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: float = 0

    def __post_init__(self) -> None:
        normalise(self)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        peak, warmup = self.warmup_target, self.warmup_steps
        if peak is None:
            peak, warmup = self.initial_learning_rate, 0
        left = step.until(warmup + self.decay_steps)
        lowest = peak * self.alpha
        share = _cosine(step, _angle(left, self.decay_steps))
        decayed = _blend(peak, share, lowest, 1.0 - share)
        if warmup == 0:
            return decayed
        warming = _blend(
            self.initial_learning_rate, step.until(warmup) / float(warmup), peak, step.share(warmup)
        )
        return step.xp.where(step.reached(warmup), decayed, warming)


@dataclass(frozen=True)
class CosineDecayRestarts(LearningRateSchedule):
    """Lower the learning rate along half a cosine, again and again.

    Cycle i (0, 1, ...) lasts `first_decay_steps * t_mul ** i` steps. At a fraction x of it the
    rate is `initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * x)) / 2 + alpha)`.
    The first step of a cycle belongs to it: there the rate has jumped back up.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    section 3.

    Args:
        initial_learning_rate: finite number >= 0, the value at step 0.
        first_decay_steps: finite number > 0, the length of cycle 0.
        t_mul: finite number >= 1, how many times longer each cycle is than the one before.
        m_mul: finite number >= 0, how many times higher each cycle starts.
        alpha: number in [0, 1], the lowest value as a fraction of `initial_learning_rate`.
        name: str.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> schedule = CosineDecayRestarts(1.0, first_decay_steps=100, m_mul=0.5)
        >>> schedule(0), schedule(100), schedule(300)
        (1.0, 0.5, 0.25)
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str = "SGDRDecay"

    def __post_init__(self) -> None:
        normalise(self)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step."""
        step = Step.of(step)
        cycle = self._equal_cycles if self.t_mul == 1.0 else self._growing_cycles
        angle, height = cycle(step)
        share = height * _cosine(step, angle)
        lowest = self.initial_learning_rate * self.alpha
        return _blend(self.initial_learning_rate, share, lowest, 1.0 - share)

    def _equal_cycles(self, step: Step) -> tuple[Any, Any]:
        """Return the angle in the step's cycle and the height of that cycle."""
        cycles, _, left = step.divide(self.first_decay_steps)
        return _angle(left, self.first_decay_steps), step.power(self.m_mul, cycles)

    def _growing_cycles(self, step: Step) -> tuple[Any, Any]:
        """Do the same by comparing with every start: a logarithm would miss some by rounding."""
        angle = height = step.value
        for start, length, its_height in self._spans(step.last):
            begun = step.reached(start)
            angle = step.xp.where(begun, _angle(step.until(start + length), length), angle)
            height = step.xp.where(begun, its_height, height)
        return angle, height

    def _spans(self, last: float) -> Iterator[tuple[float, float, float]]:
        """Yield start, length and height of each cycle that starts by the last step."""
        start, length, height = 0.0, float(self.first_decay_steps), 1.0
        while start <= last:
            yield start, length, height
            start += length
            # 3000 * (1 + 1.1 + 1.1**2 + 1.1**3) is meant to be 13923, and rounding makes it more.
            nearest = float(round(start))
            if abs(start - nearest) <= 1e-9 * start:
                start = nearest
            length *= self.t_mul
            height *= self.m_mul
