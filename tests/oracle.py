"""The definition, naively: one Python float at a time, in float64, sharing no code with `src`.

Section and step numbers are those of docs/definition.md. Every step is a small method of its own,
so that reading the oracle beside the definition is a line-by-line affair.

Where float64 alone would not say what the definition says, the dtype of a variable enters twice:
a stored number has the range of the dtype that it is stored in, and the value of a float16 or
bfloat16 variable is rounded to nearest even on every write. Nothing else is rounded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Explicit bits of the significand, smallest normal exponent, largest finite number.
FORMATS = {
    "float64": (52, -1022, float(np.finfo(np.float64).max)),
    "float32": (23, -126, float(np.finfo(np.float32).max)),
    "float16": (10, -14, 65504.0),
    "bfloat16": (7, -126, 2.0**127 * (2.0 - 2.0**-7)),
}
NARROW = ("float16", "bfloat16")

Number = float | Callable[..., Any]


def round_to(number: float, dtype: str) -> float:
    """Returns `number` rounded to nearest even in `dtype`, straight from float64."""
    bits, smallest, largest = FORMATS[dtype]
    if dtype == "float64" or number == 0.0 or not math.isfinite(number):
        return number
    exponent = max(math.frexp(number)[1] - 1, smallest)
    spacing = math.ldexp(1.0, exponent - bits)
    rounded = round(number / spacing) * spacing
    return rounded if abs(rounded) <= largest else math.copysign(math.inf, number)


def evaluate(number: Number, calls: int) -> float:
    """Returns the number that `number` stands for, were it a callable of nothing or of `calls`."""
    if not callable(number):
        return float(number)
    wanted = len(inspect.signature(number).parameters)
    return float(number(calls) if wanted else number())


class Oracle:
    """The state of one optimizer and the values of its variables, as flat lists of floats."""

    def __init__(
        self,
        variables: Mapping[str, np.ndarray],
        *,
        learning_rate: Number = 0.001,
        beta_1: Number = 0.9,
        beta_2: Number = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adam",
        epsilon_hat: bool = True,
        on_nonfinite: str = "propagate",
        exclude: Collection[str] = (),
    ) -> None:
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.window = gradient_accumulation_steps or 1
        self.name = name
        self.epsilon_hat = epsilon_hat
        self.on_nonfinite = on_nonfinite
        self.exclude = frozenset(exclude)

        self.dtypes = {key: array.dtype.name for key, array in variables.items()}
        self.shapes = {key: array.shape for key, array in variables.items()}
        self.values = {key: flat(array) for key, array in variables.items()}
        self.momentum = self._zeros()
        self.velocity = self._zeros()
        self.velocity_hat = self._zeros()
        self.average: dict[str, list[float] | None] = dict.fromkeys(variables)
        self.gradient_accumulator = self._zeros()
        self.calls = 0
        self.updates = 0
        self.skipped_calls = 0
        self.update_counts = dict.fromkeys(variables, 0)
        self.fill = 0
        self.seen: set[str] = set()
        # What the last update used, for whoever has to judge how exact a result can be.
        self.used: dict[str, list[float]] = {}
        self.clip_scales: dict[str, float] = {}
        self.scalars: dict[str, tuple[float, float]] = {}

    def _zeros(self) -> dict[str, list[float]]:
        return {key: [0.0] * len(values) for key, values in self.values.items()}

    def call(self, gradients: Mapping[str, Any]) -> None:
        """Takes one call's gradients: a mapping from every variable's name to an array or None."""
        if not gradients:
            return
        if all(gradient is None for gradient in gradients.values()):
            raise ValueError("no variable has a gradient")
        numbers = self.numbers()
        given = {
            key: self.read(key, gradient)
            for key, gradient in gradients.items()
            if gradient is not None
        }
        broken = self.nonfinite(given)
        if broken and self.on_nonfinite == "raise":
            raise FloatingPointError(f"non-finite gradients: {broken}")
        if broken and self.on_nonfinite == "skip":
            self.skipped_calls += 1
            return
        for key, gradient in given.items():
            self.accumulate(key, [self.unscale(key, g) for g in gradient])
        self.fill += 1
        if self.fill == self.window:
            self.update(*numbers, divisor=self.window)
        self.calls += 1

    def flush(self) -> None:
        """Closes an incomplete window; this is no call, so that only `updates` advances."""
        if self.fill:
            self.update(*self.numbers(), divisor=self.fill)

    def finalize(self, names: Iterable[str] | None = None) -> None:
        """Sets each named variable to its own average, where there is one."""
        for key in self.values if names is None else names:
            self.overwrite(key)

    def numbers(self) -> tuple[float, float, float]:
        """Learning rate and betas of this call; a schedule sees the calls finished before it."""
        rate = evaluate(self.learning_rate, self.calls)
        return rate, evaluate(self.beta_1, self.calls), evaluate(self.beta_2, self.calls)

    def compute_dtype(self, key: str) -> str:
        """Section 3: float64 for float64 variables, float32 for everything narrower."""
        return "float64" if self.dtypes[key] == "float64" else "float32"

    def read(self, key: str, gradient: Any) -> list[float]:
        """A gradient of any float dtype enters as numbers of the variable's compute dtype."""
        dtype = self.compute_dtype(key)
        return [round_to(number, dtype) for number in flat(gradient)]

    def in_range(self, key: str, number: float) -> float:
        """What is beyond the range of the compute dtype is infinite there."""
        largest = FORMATS[self.compute_dtype(key)][2]
        return number if not abs(number) > largest else math.copysign(math.inf, number)

    def nonfinite(self, given: Mapping[str, list[float]]) -> list[str]:
        """Names whose gradient, or whose sum with the accumulator, is not finite."""
        broken = []
        for key, gradient in given.items():
            totals = [
                self.in_range(key, total + self.unscale(key, g))
                for total, g in zip(self.gradient_accumulator[key], gradient, strict=True)
            ]
            if not all(map(math.isfinite, gradient + totals)):
                broken.append(key)
        return broken

    def unscale(self, key: str, gradient: float) -> float:
        """Step 2."""
        factor = self.loss_scale_factor
        return gradient if factor is None else self.in_range(key, gradient / factor)

    def accumulate(self, key: str, gradient: list[float]) -> None:
        """Step 3, first half; a window of one call passes through here too, unchanged."""
        totals = self.gradient_accumulator[key]
        for i, g in enumerate(gradient):
            totals[i] = self.in_range(key, totals[i] + g)
        self.seen.add(key)

    def close_window(self, divisor: int) -> dict[str, list[float]]:
        """Step 3, second half: the mean of what was gathered, and true zeros left behind."""
        means = {
            key: [total / divisor for total in totals]
            for key, totals in self.gradient_accumulator.items()
            if key in self.seen
        }
        self.gradient_accumulator = self._zeros()
        self.seen = set()
        self.fill = 0
        return means

    def update(self, rate: float, beta_1: float, beta_2: float, divisor: int) -> None:
        """Steps 3 (its end) to 9."""
        self.used = self.clip(self.close_window(divisor))
        self.scalars = {}
        for key, gradient in self.used.items():
            self.update_counts[key] += 1
            alpha = self.step_size(rate, beta_1, beta_2, self.update_counts[key])
            epsilon = self.epsilon_in_force(beta_2, self.update_counts[key])
            self.scalars[key] = alpha, epsilon
            for i, g in enumerate(gradient):
                m = self.momentum[key][i] = self.next_momentum(self.momentum[key][i], g, beta_1)
                v = self.velocity[key][i] = self.next_velocity(self.velocity[key][i], g, beta_2)
                if self.amsgrad:
                    v = self.velocity_hat[key][i] = self.maximum(self.velocity_hat[key][i], v)
                w = self.decay(key, self.values[key][i], rate)
                self.write(key, i, self.adam(w, m, v, alpha, epsilon))
        self.updates += 1
        if self.use_ema:
            self.take_averages()

    def clip(self, gradients: dict[str, list[float]]) -> dict[str, list[float]]:
        """Step 4; an infinite limit is no limit."""
        if self.clipvalue is not None and math.isfinite(self.clipvalue):
            self.clip_scales = dict.fromkeys(gradients, 1.0)
            return {key: [self.clamp(g) for g in values] for key, values in gradients.items()}
        self.clip_scales = self.norm_scales(gradients)
        return {
            key: [g * self.clip_scales[key] for g in values] for key, values in gradients.items()
        }

    def norm_scales(self, gradients: dict[str, list[float]]) -> dict[str, float]:
        """One factor per variable, c / max(norm, c); NaN where the norm is not finite."""
        if self.clipnorm is not None and math.isfinite(self.clipnorm):
            return {key: scale(norm(values), self.clipnorm) for key, values in gradients.items()}
        if self.global_clipnorm is not None and math.isfinite(self.global_clipnorm):
            total = norm([g for values in gradients.values() for g in values])
            return dict.fromkeys(gradients, scale(total, self.global_clipnorm))
        return dict.fromkeys(gradients, 1.0)

    def clamp(self, gradient: float) -> float:
        """Clamps to ±clipvalue and leaves NaN as it is."""
        limit = self.clipvalue
        assert limit is not None
        if gradient > limit:
            return limit
        return -limit if gradient < -limit else gradient

    def decay(self, key: str, value: float, rate: float) -> float:
        """Step 5."""
        if self.weight_decay is None or key in self.exclude:
            return value
        return value - value * self.weight_decay * rate

    def next_momentum(self, momentum: float, gradient: float, beta_1: float) -> float:
        """Step 6, m."""
        return momentum + (gradient - momentum) * (1.0 - beta_1)

    def next_velocity(self, velocity: float, gradient: float, beta_2: float) -> float:
        """Step 6, v."""
        return velocity + (gradient * gradient - velocity) * (1.0 - beta_2)

    def maximum(self, velocity_hat: float, velocity: float) -> float:
        """Step 6, AMSGrad on the uncorrected velocity; NaN wins."""
        if math.isnan(velocity_hat) or math.isnan(velocity):
            return math.nan
        return velocity if velocity > velocity_hat else velocity_hat

    def step_size(self, rate: float, beta_1: float, beta_2: float, count: int) -> float:
        """Step 6, alpha."""
        return rate * math.sqrt(correction(beta_2, count)) / correction(beta_1, count)

    def epsilon_in_force(self, beta_2: float, count: int) -> float:
        """Section 1, epsilon_hat: Kingma and Ba's epsilon-hat, or the epsilon of Algorithm 1."""
        if self.epsilon_hat:
            return self.epsilon
        return self.epsilon * math.sqrt(correction(beta_2, count))

    def adam(self, value: float, m: float, v: float, alpha: float, epsilon: float) -> float:
        """Step 6, w."""
        return value - alpha * m / (math.sqrt(v) + epsilon)

    def write(self, key: str, i: int, value: float) -> None:
        """Section 3: narrow variables round to nearest even, the others only have a range."""
        narrow = self.dtypes[key] in NARROW
        value = round_to(value, self.dtypes[key]) if narrow else self.in_range(key, value)
        self.values[key][i] = value

    def take_averages(self) -> None:
        """Steps 8 and 9, for every variable."""
        for key, values in self.values.items():
            previous = self.average[key]
            self.average[key] = (
                list(values)
                if previous is None
                else [self.next_average(a, w) for a, w in zip(previous, values, strict=True)]
            )
            every = self.ema_overwrite_frequency
            if every is not None and self.updates % every == 0:
                self.overwrite(key)

    def next_average(self, average: float, value: float) -> float:
        """Step 8."""
        return self.ema_momentum * average + (1.0 - self.ema_momentum) * value

    def overwrite(self, key: str) -> None:
        """Step 9, and what finalizing does."""
        for i, average in enumerate(self.average[key] or ()):
            self.write(key, i, average)


class LossScaleOracle:
    """Section 5, around an `Oracle` whose own loss_scale_factor is None."""

    def __init__(
        self,
        inner: Oracle,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        minimum_scale: float = 1.0,
    ) -> None:
        self.inner = inner
        self.scale = float(initial_scale)
        self.dynamic_growth_steps = dynamic_growth_steps
        self.minimum_scale = minimum_scale
        self.finite_calls = 0
        self.skipped_calls = 0

    def call(self, gradients: Mapping[str, Any]) -> None:
        """Takes one call's scaled gradients."""
        given = {key: self.inner.read(key, g) for key, g in gradients.items() if g is not None}
        unscaled = {key: [self.unscale(g) for g in values] for key, values in given.items()}
        finite = all(math.isfinite(g) for values in given.values() for g in values)
        if not finite or self.inner.nonfinite(unscaled):
            self.shrink()
            return
        self.inner.call({key: unscaled.get(key) for key in gradients})
        self.grow()

    def unscale(self, gradient: float) -> float:
        """Undoes the scale that the loss was multiplied with."""
        return gradient / self.scale

    def shrink(self) -> None:
        """A call with a non-finite gradient changes the scale and nothing else."""
        self.scale = max(self.scale / 2.0, self.minimum_scale)
        self.finite_calls = 0
        self.skipped_calls += 1

    def grow(self) -> None:
        """Doubles after `dynamic_growth_steps` finite calls in a row."""
        self.finite_calls += 1
        if self.finite_calls == self.dynamic_growth_steps:
            self.scale = min(self.scale * 2.0, 2.0**127)
            self.finite_calls = 0


def flat(array: Any) -> list[float]:
    """The elements of an array of any float dtype, in C order."""
    return np.asarray(array).astype(np.float64).ravel().tolist()


def correction(beta: float, count: int) -> float:
    """1 - beta**count, without its cancellation."""
    return 1.0 if beta == 0.0 else -math.expm1(count * math.log(beta))


def norm(values: Sequence[float]) -> float:
    """The Euclidean norm; hypot scales, so that no square overflows or underflows."""
    return math.hypot(*values)


def scale(length: float, limit: float) -> float:
    """The factor that brings a vector of this length to at most `limit`."""
    return limit / max(length, limit) if math.isfinite(length) else math.nan
