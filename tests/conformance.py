"""Drives an optimizer and the oracle side by side and says where they part."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from oracle import LossScaleOracle, Oracle, evaluate, flat
from scenarios import Assign, Call, Dial, Finalize, Flush, Scenario, simplest
from tolerances import allowed, spacing, unit

MakeOptimizer = Callable[..., Any]
# A door may keep further, scalar entries beside these arrays.
ENTRIES = ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator")


class ConformanceError(AssertionError):
    """The optimizer does not do what the definition says."""


class TurnedDial:
    """A callable without arguments whose number `run` changes at every step."""

    def __init__(self, numbers: tuple[float, ...]) -> None:
        self.numbers = numbers
        self.step = 0

    def __call__(self) -> float:
        return self.numbers[self.step % len(self.numbers)]


class Numbers:
    """Turns what a scenario says about a number into a number or a callable for one side."""

    def __init__(self) -> None:
        self.dials: list[TurnedDial] = []

    def make(self, number: Any) -> Any:
        """A plain number or schedule as it is, a `Dial` as a callable that `turn` moves."""
        if not isinstance(number, Dial):
            return number
        self.dials.append(TurnedDial(number.numbers))
        return self.dials[-1]

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with every `Dial` made callable."""
        return {key: self.make(value) for key, value in config.items()}

    def turn(self, step: int) -> None:
        """Moves all callables to the number of this step."""
        for dial in self.dials:
            dial.step = step


class Reach:
    """The largest magnitude that each element of each tensor has had so far."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.largest: dict[tuple[str, str], np.ndarray] = {}
        self.gathered = {key: np.zeros(len(w)) for key, w in oracle.values.items()}
        self.steepest = dict.fromkeys(oracle.values, 1.0)
        """How often a value may lose what a first moment, or its product with the rate, loses."""
        self.tell_state()

    def tell(self, key: str, what: str, numbers: Any) -> None:
        """Takes further magnitudes into account; what is not finite has no spacing."""
        magnitude = np.abs(np.asarray(numbers, dtype=np.float64))
        magnitude = np.where(np.isfinite(magnitude), magnitude, 0.0)
        before = self.largest.get((key, what), np.zeros_like(magnitude))
        self.largest[key, what] = np.maximum(before, magnitude)

    def tell_gradients(self, gradients: Mapping[str, Any], factor: float) -> None:
        """A sum is as exact as its largest part: call before the oracle closes a window."""
        for key, totals in self.oracle.gradient_accumulator.items():
            given = gradients.get(key)
            part = 0.0 if given is None else np.abs(np.array(self.oracle.read(key, given))) / factor
            magnitude = np.maximum(np.abs(np.array(totals)), part)
            magnitude = np.maximum(magnitude, np.abs(np.array(totals)) + part)
            magnitude = np.where(np.isfinite(magnitude), magnitude, 0.0)
            self.gathered[key] = np.maximum(self.gathered[key], magnitude)
            self.tell(key, "gradient_accumulator", self.gathered[key])

    def tell_update(self, betas: tuple[float, float], divisor: int) -> None:
        """Rounding errors of the gradient enter the moments, those of the moments the value."""
        oracle = self.oracle
        for key, used in oracle.used.items():
            g = np.array(used)
            coarse = self.gathered[key] / divisor * oracle.clip_scales[key]
            coarse = np.maximum(coarse, np.abs(g))
            self.tell(key, "momentum", (1.0 - betas[0]) * coarse)
            self.tell(key, "velocity", (1.0 - betas[1]) * coarse * np.abs(g))
            self.tell(key, "velocity_hat", self.largest[key, "velocity"])
            alpha, epsilon = oracle.scalars[key]
            self.steepest[key] = max(self.steepest[key], max(alpha, 1.0) / epsilon)
            v = np.array((oracle.velocity_hat if oracle.amsgrad else oracle.velocity)[key])
            self.tell(key, "momentum", oracle.momentum[key])
            # Below the smallest normal number, the spacing of a numerator shrinks no further.
            tiny = float(np.finfo(oracle.compute_dtype(key)).tiny)
            numerator = alpha * np.maximum(self.largest[key, "momentum"], tiny)
            self.tell(key, "value", np.maximum(numerator, tiny) / (np.sqrt(v) + epsilon))
        for gathered in self.gathered.values():
            gathered[:] = 0.0

    def tell_state(self) -> None:
        """Takes all present numbers into account."""
        for key, values in self.oracle.values.items():
            self.tell(key, "value", values)
            for what, numbers in state_of(self.oracle, key).items():
                if numbers is not None:
                    self.tell(key, what, numbers)
            self.tell(key, "average", self.largest[key, "value"])


def state_of(oracle: Oracle, key: str) -> dict[str, list[float] | None]:
    """The state entries that a variable must have; None where the content is not yet defined."""
    state: dict[str, list[float] | None] = {
        "momentum": oracle.momentum[key],
        "velocity": oracle.velocity[key],
    }
    if oracle.amsgrad:
        state["velocity_hat"] = oracle.velocity_hat[key]
    if oracle.use_ema:
        state["average"] = oracle.average[key]
    if oracle.window > 1:
        state["gradient_accumulator"] = oracle.gradient_accumulator[key]
    return state


class Run:
    """One optimizer, its oracle and the variables of one scenario."""

    def __init__(self, make: MakeOptimizer, scenario: Scenario, wrap: MakeOptimizer | None) -> None:
        self.scenario = scenario
        self.arrays = scenario.values()
        self.layout = {key: (id(a), a.ctypes.data, a.strides) for key, a in self.arrays.items()}
        self.numbers = Numbers()
        self.oracle = Oracle(
            self.arrays, **self.numbers.config(scenario.config), exclude=self._exclude()
        )
        self.door = make(**self.numbers.config(scenario.config))
        self.scaled: LossScaleOracle | None = None
        if scenario.loss_scale is not None:
            if wrap is None:
                raise TypeError("a scenario with a loss scale needs `wrap`")
            self.scaled = LossScaleOracle(self.oracle, **scenario.loss_scale)
            self.door = wrap(self.door, **scenario.loss_scale)
        if scenario.exclude:
            self.door.exclude_from_weight_decay(var_names=list(scenario.exclude))
        self.door.build(self._structure(self.arrays))
        self.reach = Reach(self.oracle)

    def _exclude(self) -> set[str]:
        parts = self.scenario.exclude
        return {key for key in self.arrays if any(part in key for part in parts)}

    def _structure(self, leaves: Mapping[str, Any]) -> Any:
        if self.scenario.container == "list":
            return list(leaves.values())
        if self.scenario.container == "dict":
            return dict(leaves)
        nested: dict[str, Any] = {}
        for key, leaf in leaves.items():
            *path, last = key.split("/")
            place = nested
            for part in path:
                place = place.setdefault(part, {})
            place[last] = leaf
        return nested

    def step(self, index: int) -> None:
        """Does step `index` of the scenario on both sides."""
        self.numbers.turn(index)
        match self.scenario.steps[index]:
            case Assign(rate):
                self.oracle.learning_rate = self.numbers.make(rate)
                self.door.learning_rate = self.numbers.make(rate)
                self.numbers.turn(index)
            case Flush():
                betas, fill, updates = self._betas(), self.oracle.fill, self.oracle.updates
                self.oracle.flush()
                self.door.flush()
                if self.oracle.updates > updates:
                    self.reach.tell_update(betas, fill)
            case Finalize(positions):
                names = [list(self.arrays)[position] for position in positions]
                self.oracle.finalize(names)
                self.door.finalize_variable_values([self.arrays[name] for name in names])
            case Call():
                self.call(index)
        self.reach.tell_state()

    def _betas(self) -> tuple[float, float]:
        calls = self.oracle.calls
        return evaluate(self.oracle.beta_1, calls), evaluate(self.oracle.beta_2, calls)

    def call(self, index: int) -> None:
        """Hands the same gradients to both sides."""
        factor = float(self.oracle.loss_scale_factor or 1.0)
        if self.scaled is not None:
            factor = self.scaled.scale
        gradients = dict(zip(self.arrays, self.scenario.gradients(index, factor), strict=True))
        before = {key: None if g is None else g.tobytes() for key, g in gradients.items()}
        betas, updates = self._betas(), self.oracle.updates
        self.reach.tell_gradients(gradients, factor)
        refused = outcome(lambda: (self.scaled or self.oracle).call(gradients))
        given = self._structure(gradients) if index % 3 else list(gradients.values())
        with allowing_none_warnings(any(g is None for g in gradients.values())):
            answered = outcome(lambda: self.door.apply(given))
        if type(refused) is not type(answered):
            raise ConformanceError(
                f"step {index}: the optimizer answered {answered!r}, the definition {refused!r}"
            ) from answered
        for key, gradient in gradients.items():
            if gradient is not None and gradient.tobytes() != before[key]:
                raise ConformanceError(f"step {index}: the gradient of {key!r} was written to")
        if self.oracle.updates > updates:
            self.reach.tell_update(betas, self.oracle.window)

    def compare(self, place: str) -> None:
        """Compares counters, values and every state entry."""
        self._compare_counters(place)
        state = self.door.state_dict()
        for key, array in self.arrays.items():
            if (id(array), array.ctypes.data, array.strides) != self.layout[key]:
                raise ConformanceError(f"{place}: {key!r} was not updated in place")
            self._compare_tensor(place, key, "value", array, self.oracle.values[key])
            self._compare_states(place, key, state)

    def _compare_states(self, place: str, key: str, state: Mapping[str, np.ndarray]) -> None:
        wanted = state_of(self.oracle, key)
        needed = {what for what, numbers in wanted.items() if numbers is not None}
        present = {what for what in ENTRIES if f"{key}/{what}" in state}
        if not needed <= present <= set(wanted):
            raise ConformanceError(
                f"{place}: {key!r} has the state {sorted(present)}, not {sorted(wanted)}"
            )
        for what in sorted(present):
            self._compare_state(place, key, what, state[f"{key}/{what}"], wanted[what])
        count = int(state.get(f"{key}/updates", self.oracle.update_counts[key]))
        if count != self.oracle.update_counts[key]:
            raise ConformanceError(
                f"{place}: {key!r} took part in {self.oracle.update_counts[key]} updates, the "
                f"state says {count}"
            )

    def _compare_counters(self, place: str) -> None:
        oracle, door, state = self.oracle, self.door, self.door.state_dict()
        counts = {"calls": oracle.calls, "updates": oracle.updates}
        found = {
            **{name: (wanted, getattr(door, name)) for name, wanted in counts.items()},
            **{
                f"state_dict()[{oracle.name}/{name}]": (wanted, state.get(f"{oracle.name}/{name}"))
                for name, wanted in counts.items()
            },
            "iterations": (oracle.updates, door.iterations),
            "learning_rate": (oracle.numbers()[0], door.learning_rate),
        }
        if self.scaled is not None:
            found["scale"] = (self.scaled.scale, door.scale)
        else:
            skipped = door.metrics()["skipped_calls"]
            found["metrics()[skipped_calls]"] = (oracle.skipped_calls, skipped)
        for what, (wanted, answer) in found.items():
            # A door may keep numbers in float32.
            precision = getattr(door, "precision", 1e-15)
            if answer is None or not math.isclose(float(answer), wanted, rel_tol=precision):
                raise ConformanceError(f"{place}: {what} is {answer}, the definition has {wanted}")

    def _compare_state(
        self, place: str, key: str, what: str, answer: Any, numbers: list[float] | None
    ) -> None:
        if not isinstance(answer, np.ndarray) or answer.shape != self.oracle.shapes[key]:
            raise ConformanceError(f"{place}: {key}/{what} is {answer!r}, not an array like {key}")
        if answer.dtype.name != self.oracle.compute_dtype(key):
            raise ConformanceError(f"{place}: {key}/{what} is kept in {answer.dtype.name}")
        if numbers is not None:
            self._compare_tensor(place, key, what, answer, numbers)

    def _compare_tensor(
        self, place: str, key: str, what: str, answer: np.ndarray, numbers: list[float]
    ) -> None:
        dtype = "float32" if self.shares_a_float32_norm(key) else self.oracle.dtypes[key]
        limit = allowed(what, dtype, self.oracle.updates, self.preparation())
        off = spacings_off(answer, numbers, self.reach.largest[key, what], unit(what, dtype))
        if getattr(self.door, "flushes_subnormals", False):
            # Every product and sum may lose as much as the smallest normal number.
            lost = self.oracle.updates * float(np.finfo(self.oracle.compute_dtype(key)).tiny)
            if what in ("value", "average"):
                lost *= self.reach.steepest[key]
            with np.errstate(invalid="ignore"):
                is_lost = np.abs(np.array(flat(answer)) - np.array(numbers)) <= lost
            off = np.where(is_lost, 0.0, off)
        if off.size and off.max() > limit:
            i = int(off.argmax())
            raise ConformanceError(
                f"{place}: {what} of {key!r} ({dtype}), element {i}: {flat(answer)[i]!r}, the "
                f"definition has {numbers[i]!r}; {off[i]:.3g} {unit(what, dtype)} spacings off, "
                f"{limit:.3g} allowed after {self.oracle.updates} updates"
            )

    def shares_a_float32_norm(self, key: str) -> bool:
        """A norm over float32 gradients too, rounded when summed, is exact to float32 only."""
        narrower = any(dtype != "float64" for dtype in self.oracle.dtypes.values())
        clipped = self.oracle.global_clipnorm is not None
        return clipped and narrower and self.oracle.dtypes[key] == "float64"

    def preparation(self) -> int:
        """How many roundings a gradient goes through before it meets the moments."""
        oracle = self.oracle
        clipped = any((oracle.clipnorm, oracle.global_clipnorm))
        unscaled = oracle.loss_scale_factor is not None or self.scaled is not None
        return unscaled + (oracle.window if oracle.window > 1 else 0) + 2 * clipped


def run(
    make_optimizer: MakeOptimizer,
    scenario: Scenario,
    *,
    wrap: MakeOptimizer | None = None,
    compare_at: Callable[[int], bool] = lambda index: True,
) -> Run:
    """Takes `make_optimizer(**config)` through a scenario beside the oracle.

    Args:
        make_optimizer: the door's class, or anything with the same interface.
        scenario: what happens.
        wrap: the door's loss scale optimizer, for scenarios with a `loss_scale`.
        compare_at: after which steps to compare; always after building and after the last one.

    Returns:
        What is left of both sides, for further questions.

    Raises:
        ConformanceError: naming step, tensor, element, both values and the distance.
    """
    both = Run(make_optimizer, scenario, wrap)
    both.compare("built")
    last = len(scenario.steps) - 1
    for index, step in enumerate(scenario.steps):
        both.step(index)
        if compare_at(index) or index == last:
            both.compare(f"step {index} ({type(step).__name__})")
    return both


def check(
    make_optimizer: MakeOptimizer, scenario: Scenario, *, wrap: MakeOptimizer | None = None
) -> None:
    """`run` for drawn scenarios: what fails is simplified for as long as it still fails.

    Raises:
        ConformanceError: as `run` does, with the scenario.
    """

    def rejected(candidate: Scenario) -> bool:
        try:
            run(make_optimizer, candidate, wrap=wrap)
        except Exception:
            return True
        return False

    if rejected(scenario):
        culprit = simplest(scenario, rejected)
        try:
            run(make_optimizer, culprit, wrap=wrap)
        except Exception as error:
            raise ConformanceError(f"{error}\nin {culprit}") from error


def spacings_off(
    answer: np.ndarray, numbers: list[float], reach: np.ndarray, dtype: str
) -> np.ndarray:
    """The distance of each element in spacings at its reach; inf where NaN or inf disagree."""
    got, wanted = np.array(flat(answer)), np.array(numbers)
    finite = np.isfinite(wanted)
    with np.errstate(invalid="ignore"):
        off = np.abs(got - wanted) / spacing(
            np.maximum(reach, np.abs(np.nan_to_num(wanted))), dtype
        )
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    return np.where(finite & np.isfinite(got), off, np.where(same, 0.0, np.inf))


def outcome(action: Callable[[], object]) -> Exception | None:
    """The error that `action` answers with, where the definition provides for one."""
    try:
        action()
    except (FloatingPointError, ValueError) as error:
        return error
    return None


@contextlib.contextmanager
def allowing_none_warnings(expected: bool) -> Iterator[None]:
    """Lets the warning about variables without a gradient pass where there are such."""
    with warnings.catch_warnings():
        if expected:
            warnings.simplefilter("ignore", UserWarning)
        yield
