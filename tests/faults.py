"""A correct optimizer in plain NumPy, and deliberately wrong ones: what the checks must reject.

`Reference` computes in each variable's compute dtype, whole arrays at a time, and shares nothing
with `src` nor with the oracle. Each fault overrides exactly one of its methods, with a mistake
that an existing optimizer makes or that a reader of its code would not notice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class Reference:
    """The NumPy door's interface, as much of it as the conformance check needs."""

    def __init__(self, **config: Any) -> None:
        defaults: dict[str, Any] = {
            "learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7,
            "amsgrad": False, "weight_decay": None, "clipnorm": None, "clipvalue": None,
            "global_clipnorm": None, "use_ema": False, "ema_momentum": 0.99,
            "ema_overwrite_frequency": None, "loss_scale_factor": None,
            "gradient_accumulation_steps": None, "name": "adam", "epsilon_hat": True,
            "on_nonfinite": "propagate",
        }  # fmt: skip
        self.config = {**defaults, **config}
        self.rate = self.config["learning_rate"]
        self.window = self.config["gradient_accumulation_steps"] or 1
        self.calls = self.updates = self.skipped = self.fill = 0
        self.patterns: tuple[str, ...] = ()

    def exclude_from_weight_decay(self, var_names: list[str]) -> None:
        self.patterns = tuple(var_names)

    def build(self, variables: Any) -> None:
        self.variables: Arrays = dict(leaves(variables))
        self.state: dict[str, Arrays] = {
            what: {key: np.zeros(w.shape, wide(w)) for key, w in self.variables.items()}
            for what in ("momentum", "velocity", "velocity_hat", "average", "accumulator")
        }
        self.counts = dict.fromkeys(self.variables, 0)
        self.contributions = dict.fromkeys(self.variables, 0)

    @property
    def iterations(self) -> int:
        return self.updates

    @property
    def learning_rate(self) -> float:
        return self.number(self.rate)

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        self.rate = rate

    def number(self, number: Any) -> float:
        if not callable(number):
            return float(number)
        return float(number(self.calls) if inspect.signature(number).parameters else number())

    def beta_1(self) -> float:
        return self.number(self.config["beta_1"])

    def beta_2(self) -> float:
        return self.number(self.config["beta_2"])

    def metrics(self) -> dict[str, float]:
        return {"skipped_calls": self.skipped}

    def state_dict(self) -> Arrays:
        kept = {
            "momentum": True,
            "velocity": True,
            "velocity_hat": self.config["amsgrad"],
            "average": self.config["use_ema"],
            "accumulator": self.window > 1,
        }
        names = {"accumulator": "gradient_accumulator"}
        state = {
            f"{key}/{names.get(what, what)}": array.copy()
            for what, arrays in self.state.items()
            if kept[what]
            for key, array in arrays.items()
        }
        prefix = self.config["name"]
        counters = {"calls": np.array(self.calls), "updates": np.array(self.updates)}
        return state | {f"{prefix}/{what}": number for what, number in counters.items()}

    def apply(self, gradients: Any) -> None:
        given = dict(zip(self.variables, (leaf for _, leaf in leaves(gradients)), strict=True))
        if all(gradient is None for gradient in given.values()):
            raise ValueError("no variable has a gradient")
        with np.errstate(all="ignore"):
            self.take({key: g for key, g in given.items() if g is not None})

    def take(self, given: Arrays) -> None:
        prepared = {
            key: self.unscale(g.astype(wide(self.variables[key]))) for key, g in given.items()
        }
        totals = {key: self.state["accumulator"][key] + g for key, g in prepared.items()}
        policy = self.config["on_nonfinite"]
        if policy != "propagate" and not finite(given) & finite(prepared) & finite(totals):
            if policy == "raise":
                raise FloatingPointError("non-finite gradients")
            self.skipped += 1
            return
        self.accumulate(prepared)
        self.fill += 1
        self.before_update()
        if self.fill == self.window:
            self.update(self.window)
        self.calls += 1

    def before_update(self) -> None:
        """A place for what must not happen on a call that is no update."""

    def unscale(self, gradient: np.ndarray) -> np.ndarray:
        factor = self.config["loss_scale_factor"]
        return gradient if factor is None else gradient / factor

    def accumulate(self, gradients: Arrays) -> None:
        for key, gradient in gradients.items():
            self.state["accumulator"][key] += gradient
            self.contributions[key] += 1

    def flush(self) -> None:
        if self.fill:
            with np.errstate(all="ignore"):
                self.update(self.fill)

    def mean(self, key: str, divisor: int) -> np.ndarray:
        return self.state["accumulator"][key] / divisor

    def reset(self, accumulator: np.ndarray) -> None:
        accumulator.fill(0.0)

    def update(self, divisor: int) -> None:
        taking_part = [key for key, seen in self.contributions.items() if seen]
        gradients = self.clip({key: self.mean(key, divisor) for key in taking_part})
        for accumulator in self.state["accumulator"].values():
            self.reset(accumulator)
        self.contributions = dict.fromkeys(self.variables, 0)
        self.fill = 0
        rate = self.learning_rate
        for key, gradient in gradients.items():
            self.counts[key] += 1
            self.write(key, self.step(key, gradient, rate))
        self.updates += 1
        if self.config["use_ema"]:
            self.take_averages()

    def clip(self, gradients: Arrays) -> Arrays:
        limit = self.config["clipvalue"]
        if limit is not None:
            return {key: self.clamp(g, limit) for key, g in gradients.items()}
        limit = self.config["clipnorm"]
        if limit is not None:
            return {key: shorten(g, self.norm([g]), limit) for key, g in gradients.items()}
        limit = self.config["global_clipnorm"]
        if limit is not None:
            length = self.norm(list(gradients.values()))
            return {key: shorten(g, length, limit) for key, g in gradients.items()}
        return gradients

    def norm(self, gradients: list[np.ndarray]) -> float:
        total = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients)
        return math.sqrt(total)

    def clamp(self, gradient: np.ndarray, limit: float) -> np.ndarray:
        return np.clip(gradient, -limit, limit)

    def step(self, key: str, gradient: np.ndarray, rate: float) -> np.ndarray:
        m, v = self.moments(key, gradient)
        if self.config["amsgrad"]:
            v = self.state["velocity_hat"][key][...] = self.maximum(key, v)
        value = self.decay(key, self.variables[key].astype(wide(self.variables[key])), rate)
        return value - self.adam_term(key, m, v, rate)

    def moments(self, key: str, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m, v = self.state["momentum"][key], self.state["velocity"][key]
        m += (gradient - m) * (1.0 - self.beta_1())
        v += (gradient * gradient - v) * (1.0 - self.beta_2())
        return m, v

    def maximum(self, key: str, velocity: np.ndarray) -> np.ndarray:
        return np.maximum(self.state["velocity_hat"][key], velocity)

    def decay(self, key: str, value: np.ndarray, rate: float) -> np.ndarray:
        if any(pattern in key for pattern in self.patterns):
            return value
        return value - value * ((self.config["weight_decay"] or 0.0) * rate)

    def adam_term(self, key: str, m: np.ndarray, v: np.ndarray, rate: float) -> np.ndarray:
        return self.alpha(key, rate) * m / self.denominator(key, v)

    def count(self, key: str) -> int:
        return self.counts[key]

    def correction(self, beta: float, count: int) -> float:
        return -math.expm1(count * math.log(beta)) if beta else 1.0

    def alpha(self, key: str, rate: float) -> float:
        first = self.correction(self.beta_1(), self.count(key))
        return rate * math.sqrt(self.correction(self.beta_2(), self.count(key))) / first

    def epsilon(self, key: str) -> float:
        if self.config["epsilon_hat"]:
            return self.config["epsilon"]
        second = self.correction(self.beta_2(), self.count(key))
        return self.config["epsilon"] * math.sqrt(second)

    def denominator(self, key: str, v: np.ndarray) -> np.ndarray:
        return np.sqrt(v) + self.epsilon(key)

    def write(self, key: str, value: np.ndarray) -> None:
        self.variables[key][...] = value.astype(self.variables[key].dtype)

    def take_averages(self) -> None:
        every = self.config["ema_overwrite_frequency"]
        for key in self.variables:
            self.take_average(key)
            if every is not None and self.updates % every == 0:
                self.write(key, self.state["average"][key])

    def take_average(self, key: str) -> None:
        value = self.variables[key].astype(wide(self.variables[key]))
        average, momentum = self.state["average"][key], self.config["ema_momentum"]
        first = self.updates == 1
        # Not momentum·avg + (1 - momentum)·w: the two weights, rounded, do not add up to 1.
        average[...] = value if first else average + (value - average) * (1.0 - momentum)

    def finalize_variable_values(self, variables: list[np.ndarray]) -> None:
        if not self.config["use_ema"] or not self.updates:
            return
        for key, value in self.variables.items():
            if any(value is wanted for wanted in variables):
                self.write(key, self.state["average"][key])


class ReferenceLossScale:
    """The dynamic loss scale around a `Reference`."""

    def __init__(
        self,
        inner: Reference,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        minimum_scale: float = 1.0,
    ) -> None:
        self.inner_optimizer = inner
        self.scale = float(initial_scale)
        self.growth_steps = dynamic_growth_steps
        self.minimum_scale = minimum_scale
        self.finite_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "learning_rate":
            self.inner_optimizer.learning_rate = value
        else:
            super().__setattr__(name, value)

    def apply(self, gradients: Any) -> None:
        inner = self.inner_optimizer
        given = [leaf for _, leaf in leaves(gradients)]
        with np.errstate(all="ignore"):
            unscaled = [
                None if g is None else self.unscale(g.astype(wide(w)))
                for g, w in zip(given, inner.variables.values(), strict=True)
            ]
            totals = {
                key: total + g
                for (key, total), g in zip(
                    inner.state["accumulator"].items(), unscaled, strict=True
                )
                if g is not None
            }
        if not finite(totals):
            self.scale = self.smaller()
            self.finite_calls = 0
            return
        inner.apply(unscaled)
        self.finite_calls += 1
        if self.finite_calls == self.growth_steps:
            self.scale, self.finite_calls = min(2.0 * self.scale, 2.0**127), 0

    def unscale(self, gradient: np.ndarray) -> np.ndarray:
        return gradient / self.scale

    def smaller(self) -> float:
        return max(self.scale / 2.0, self.minimum_scale)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Name and leaf of a list, dict or nested dict, in order."""
    if not isinstance(tree, (list, dict)):
        yield path, tree
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, branch in items:
        yield from leaves(branch, f"{path}/{key}" if path else str(key))


def wide(array: np.ndarray) -> np.dtype[Any]:
    """The dtype to compute in for a variable."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def finite(arrays: Arrays) -> bool:
    """Whether every element of every array is finite."""
    return all(bool(np.isfinite(array.astype(np.float64)).all()) for array in arrays.values())


def shorten(gradient: np.ndarray, length: float, limit: float) -> np.ndarray:
    """Scales to at most `limit`, in float64 so that the factor may be subnormal in float32."""
    if math.isinf(limit):
        return gradient
    factor = limit / max(length, limit) if math.isfinite(length) else math.nan
    return (gradient.astype(np.float64) * factor).astype(gradient.dtype)


class NoBiasCorrection(Reference):
    def correction(self, beta: float, count: int) -> float:
        return 1.0


class AmsgradIgnored(Reference):
    def maximum(self, key: str, velocity: np.ndarray) -> np.ndarray:
        return velocity


class AmsgradOnCorrectedVelocity(Reference):
    def maximum(self, key: str, velocity: np.ndarray) -> np.ndarray:
        now = velocity / self.correction(self.beta_2(), self.count(key))
        return np.maximum(self.state["velocity_hat"][key], now)


class NanSwallowedByMaximum(Reference):
    def maximum(self, key: str, velocity: np.ndarray) -> np.ndarray:
        return np.fmax(self.state["velocity_hat"][key], velocity)


class EpsilonInsideRoot(Reference):
    def denominator(self, key: str, v: np.ndarray) -> np.ndarray:
        return np.sqrt(v + self.epsilon(key))


class EpsilonOfAlgorithmOne(Reference):
    def epsilon(self, key: str) -> float:
        second = self.correction(self.beta_2(), self.count(key))
        return self.config["epsilon"] * math.sqrt(second)


class EpsilonHatAlways(Reference):
    def epsilon(self, key: str) -> float:
        return self.config["epsilon"]


class DecayCoupled(Reference):
    def step(self, key: str, gradient: np.ndarray, rate: float) -> np.ndarray:
        decay = self.config["weight_decay"] or 0.0
        value = self.variables[key].astype(gradient.dtype)
        m, v = self.moments(key, gradient + value * decay)
        return value - self.adam_term(key, m, v, rate)


class DecayAfterTheStep(Reference):
    def step(self, key: str, gradient: np.ndarray, rate: float) -> np.ndarray:
        m, v = self.moments(key, gradient)
        value = self.variables[key].astype(gradient.dtype)
        return self.decay(key, value - self.adam_term(key, m, v, rate), rate)


class DecayWithoutLearningRate(Reference):
    def decay(self, key: str, value: np.ndarray, rate: float) -> np.ndarray:
        return super().decay(key, value, 1.0)


class DecayOfExcluded(Reference):
    def exclude_from_weight_decay(self, var_names: list[str]) -> None:
        self.patterns = ()


class EmaOnEveryCall(Reference):
    def before_update(self) -> None:
        if self.config["use_ema"] and self.updates and self.fill < self.window:
            for key in self.variables:
                self.take_average(key)


class EmaFromZero(Reference):
    def take_average(self, key: str) -> None:
        average, momentum = self.state["average"][key], self.config["ema_momentum"]
        average[...] = momentum * average + (1.0 - momentum) * self.variables[key]


class WeightsOfTheAverageRounded(Reference):
    def take_average(self, key: str) -> None:
        value = self.variables[key].astype(wide(self.variables[key]))
        average, momentum = self.state["average"][key], self.config["ema_momentum"]
        first = self.updates == 1
        average[...] = value if first else momentum * average + (1.0 - momentum) * value


class OverwriteCountedInCalls(Reference):
    def take_averages(self) -> None:
        every = self.config["ema_overwrite_frequency"]
        for key in self.variables:
            self.take_average(key)
            if every is not None and (self.calls + 1) % every == 0:
                self.write(key, self.state["average"][key])


class ClipBeforeAveraging(Reference):
    def accumulate(self, gradients: Arrays) -> None:
        super().accumulate(self.clip(gradients))


class GlobalNormPerVariable(Reference):
    def clip(self, gradients: Arrays) -> Arrays:
        self.config["clipnorm"] = self.config["global_clipnorm"] or self.config["clipnorm"]
        return super().clip(gradients)


class NormOverAllVariables(Reference):
    def clip(self, gradients: Arrays) -> Arrays:
        both = self.config["global_clipnorm"] or self.config["clipnorm"]
        self.config.update(global_clipnorm=both, clipnorm=None)
        return super().clip(gradients)


class NormInFloat32(Reference):
    def norm(self, gradients: list[np.ndarray]) -> float:
        return float(np.sqrt(sum(np.sum(g * g) for g in gradients)))


class NanSwallowedByClip(Reference):
    def clamp(self, gradient: np.ndarray, limit: float) -> np.ndarray:
        return np.fmin(np.fmax(gradient, -limit), limit).astype(gradient.dtype)


class BetaLost(Reference):
    def beta_2(self) -> float:
        return 0.999


class ResetByMultiplying(Reference):
    def reset(self, accumulator: np.ndarray) -> None:
        accumulator *= 0.0


class PowersInFloat32(Reference):
    def correction(self, beta: float, count: int) -> float:
        return float(np.float32(1.0) - np.float32(beta) ** np.float32(count))


class MeanOverGradientsSeen(Reference):
    def mean(self, key: str, divisor: int) -> np.ndarray:
        return super().mean(key, self.contributions[key])


class CountedGlobally(Reference):
    def count(self, key: str) -> int:
        return self.updates + 1


class ScheduleSeesUpdates(Reference):
    def number(self, number: Any) -> float:
        if callable(number) and inspect.signature(number).parameters:
            return float(number(self.updates))
        return super().number(number)


class LossScaleFactorNotUndone(Reference):
    def unscale(self, gradient: np.ndarray) -> np.ndarray:
        return gradient


class NonfinitePropagatesAlways(Reference):
    def take(self, given: Arrays) -> None:
        self.config["on_nonfinite"] = "propagate"
        super().take(given)


class MomentsInTheNarrowDtype(Reference):
    def moments(self, key: str, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m, v = super().moments(key, gradient)
        narrow = self.variables[key].dtype
        m[...], v[...] = m.astype(narrow), v.astype(narrow)
        return m, v


class ValueTruncated(Reference):
    def write(self, key: str, value: np.ndarray) -> None:
        bits = value.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        super().write(key, bits.view(np.float32))


class DynamicScaleNotUndone(ReferenceLossScale):
    def unscale(self, gradient: np.ndarray) -> np.ndarray:
        return gradient


class DynamicScaleWithoutFloor(ReferenceLossScale):
    def smaller(self) -> float:
        return self.scale / 2.0
