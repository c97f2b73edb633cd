"""What an optimizer can be put through, as plain data, and how to draw it.

A scenario holds no arrays: values and gradients are made from its seed, so that drawing is fast
and a failing example prints as a few lines that can be pasted into a test.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Variable:
    """One variable; `initial` replaces the random start."""

    name: str
    shape: tuple[int, ...] = (3,)
    dtype: str = "float32"
    layout: str = "C"
    size: float = 1.0
    initial: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Gradient:
    """One gradient of one call.

    `kind` "steady" keeps every element's sign and stays within a factor of four, "noisy" is
    normal, "wide" spreads from 1e-25 to 1e30, "huge" stays near the largest float32. `poison` is
    written over the first element. `values` replaces everything random.
    """

    dtype: str = "float32"
    size: float = 1.0
    kind: str = "noisy"
    poison: float | None = None
    layout: str = "C"
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Call:
    """One hand-over: a gradient, or None, for each variable."""

    gradients: tuple[Gradient | None, ...]


@dataclass(frozen=True)
class Assign:
    """`optimizer.learning_rate = rate`."""

    rate: Any


@dataclass(frozen=True)
class Flush:
    """`optimizer.flush()`."""


@dataclass(frozen=True)
class Finalize:
    """`optimizer.finalize_variable_values` of the variables at these positions."""

    positions: tuple[int, ...]


@dataclass(frozen=True)
class Dial:
    """A callable without arguments that returns another number at every step of the scenario."""

    numbers: tuple[float, ...]


@dataclass(frozen=True)
class ByCalls:
    """A schedule of one argument, first / (1 + slope * calls)."""

    first: float
    slope: float = 1.0

    def __call__(self, calls: Any) -> Any:
        return self.first / (1.0 + self.slope * calls)


Step = Call | Assign | Flush | Finalize


@dataclass(frozen=True)
class Scenario:
    """Variables, configuration and everything that happens to them, in order."""

    variables: tuple[Variable, ...]
    steps: tuple[Step, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    container: str = "dict"
    loss_scale: Mapping[str, Any] | None = None
    seed: int = 0

    def values(self) -> dict[str, np.ndarray]:
        """Fresh arrays for all variables, by name."""
        return {v.name: self._initial(i, v) for i, v in enumerate(self.variables)}

    def _initial(self, index: int, variable: Variable) -> np.ndarray:
        if variable.initial is not None:
            content = np.reshape(np.array(variable.initial), variable.shape)
        else:
            rng = np.random.default_rng((self.seed, index))
            content = rng.normal(size=variable.shape) * variable.size
        return lay_out(content.astype(DTYPES[variable.dtype]), variable.layout)

    def gradients(self, step: int, factor: float = 1.0) -> list[np.ndarray | None]:
        """Fresh gradients for the call at position `step`, times `factor`."""
        call = self.steps[step]
        assert isinstance(call, Call)
        return [
            None if g is None else self._gradient(step, i, g, factor)
            for i, g in enumerate(call.gradients)
        ]

    def _gradient(self, step: int, index: int, wanted: Gradient, factor: float) -> np.ndarray:
        shape = self.variables[index].shape
        if wanted.values is not None:
            content = np.reshape(np.array(wanted.values), shape)
        else:
            signs = np.random.default_rng((self.seed, index, 7)).choice((-1.0, 1.0), size=shape)
            rng = np.random.default_rng((self.seed, index, 8, step))
            content = KINDS[wanted.kind](rng, signs) * wanted.size
        content = np.array(content * factor)
        if wanted.poison is not None and content.size:
            content.flat[0] = wanted.poison
        with np.errstate(over="ignore"):
            return lay_out(content.astype(DTYPES[wanted.dtype]), wanted.layout)


def _steady(rng: np.random.Generator, signs: np.ndarray) -> np.ndarray:
    return signs * rng.uniform(0.5, 2.0, size=signs.shape)


def _noisy(rng: np.random.Generator, signs: np.ndarray) -> np.ndarray:
    return rng.normal(size=signs.shape)


def _wide(rng: np.random.Generator, signs: np.ndarray) -> np.ndarray:
    exponents = rng.uniform(-25.0, 30.0, size=signs.shape)
    if exponents.size > 1:
        exponents.flat[0], exponents.flat[-1] = -25.0, 30.0
    return signs * 10.0**exponents


def _huge(rng: np.random.Generator, signs: np.ndarray) -> np.ndarray:
    return signs * rng.uniform(0.9, 1.0, size=signs.shape) * float(np.finfo(np.float32).max)


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "steady": _steady,
    "noisy": _noisy,
    "wide": _wide,
    "huge": _huge,
}


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """A fresh array of the same elements, "C", "F" or "strided" (every other of a larger one)."""
    if layout == "strided" and array.ndim:
        host = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        host[..., ::2] = array
        return host[..., ::2]
    return np.array(array, order="F" if layout == "F" else "C")


def constant(
    config: Mapping[str, Any] | None = None,
    *,
    calls: int = 5,
    names: tuple[str, ...] = ("kernel", "bias"),
    gradient: Gradient | None = None,
    **rest: Any,
) -> Scenario:
    """A plain scenario to start from: `calls` calls, every variable with a gradient."""
    variables = rest.pop("variables", None) or tuple(Variable(name) for name in names)
    call = Call((gradient or Gradient(),) * len(variables))
    steps = rest.pop("steps", None) or (call,) * calls
    return Scenario(variables, steps, config or {}, **rest)


SHAPES = ((), (1,), (3,), (2, 3), (4, 2), (0,), (2, 0), (7,))
LAYOUTS = ("C", "C", "C", "F", "strided")
VARIABLE_DTYPES = ("float32", "float32", "float64", "bfloat16", "float16")
GRADIENT_DTYPES = VARIABLE_DTYPES
Choose = Callable[[random.Random], Any]


def _one_of(*values: Any) -> Choose:
    return lambda rng: rng.choice(values)


def _rate(rng: random.Random) -> Any:
    number = 10.0 ** rng.uniform(-4, -0.5)
    dial = Dial((number, 10.0 ** rng.uniform(-4, -1), 0.01))
    return rng.choice((number, number, ByCalls(number, rng.uniform(0.1, 2.0)), dial, 0, 1))


def _beta(fixed: tuple[float, ...], low: float, high: float) -> Choose:
    def beta(rng: random.Random) -> Any:
        between = [rng.uniform(low, high) for _ in range(3)]
        return rng.choice((rng.choice(fixed), rng.choice(fixed), between[0], Dial((*between,))))

    return beta


ARGUMENTS: dict[str, Choose] = {
    "learning_rate": _rate,
    "beta_1": _beta((0.0, 0.5, 0.9, 0.99, 0.9999999), 0.8, 0.95),
    "beta_2": _beta((0.0, 0.5, 0.9, 0.99, 0.999, 0.9999999), 0.95, 0.9999),
    "epsilon": _one_of(1e-10, 1e-8, 1e-3, 1.0),
    "amsgrad": _one_of(False, True, True),
    "weight_decay": _one_of(None, 0, 0.01, 0.3),
    "loss_scale_factor": _one_of(None, 3.0, 0.5, 1024),
    "gradient_accumulation_steps": _one_of(None, 1, 2, 2, 3),
    "name": _one_of("adam", "second_adam"),
    "epsilon_hat": _one_of(False, True),
    "on_nonfinite": _one_of("propagate", "skip", "raise"),
}
CLIPS = (None, "clipnorm", "clipvalue", "global_clipnorm")


def scenarios(*, loss_scale: bool = False) -> st.SearchStrategy[Scenario]:
    """Scenarios over all arguments, dtypes, shapes, patterns of None and events.

    Each is made from one drawn number. Drawn choice by choice, Hypothesis repeats itself: of 500
    runs none had an average that moves, is overwritten, and meets an accumulation window.
    """
    return st.integers(0, 2**32 - 1).map(lambda seed: drawn(seed, loss_scale=loss_scale))


def drawn(seed: int, *, loss_scale: bool = False) -> Scenario:
    """The scenario of this number."""
    rng = random.Random(seed)
    config = _config(rng)
    scale = None
    if loss_scale:
        config.pop("loss_scale_factor", None)
        scale = {
            "initial_scale": rng.choice((1, 3.0, 2**4, 2.0**10)),
            "dynamic_growth_steps": rng.randint(1, 4),
            "minimum_scale": rng.choice((1.0, 0.25)),
        }
    container = rng.choice(("dict", "list", "nested"))
    count = rng.randint(1, 4)
    gradient = _gradients(rng, config)
    return Scenario(
        variables=tuple(_variable(rng, _name(container, i)) for i in range(count)),
        steps=tuple(_step(rng, count, gradient) for _ in range(rng.randint(1, 10))),
        config=config,
        exclude=rng.choice(((), ("kernel", "0"), ("bias",), ("1",))),
        container=container,
        loss_scale=scale,
        seed=seed,
    )


def _config(rng: random.Random) -> dict[str, Any]:
    """Any combination of the arguments, each now and then left at its default."""
    config = {name: choose(rng) for name, choose in ARGUMENTS.items() if rng.random() < 0.7}
    clip = rng.choice(CLIPS)
    if clip:
        config[clip] = rng.choice((0.1, 1, 2.5, math.inf))
    if rng.random() < 0.5:
        config["use_ema"] = True
        config["ema_momentum"] = rng.choice((0, 0.5, 0.9, 0.99, 1))
        config["ema_overwrite_frequency"] = rng.choice((None, 1, 2, 3))
    return config


def _gradients(rng: random.Random, config: Mapping[str, Any]) -> Choose:
    """Settles what the gradients of one scenario have in common."""
    # A beta near 0 forgets by cancellation: v + (g² - v) keeps nothing of a g that is small
    # beside the last one, whoever computes it. There, the gradients keep their magnitude.
    forgetful = any(
        isinstance(beta, float) and beta < 0.8
        for beta in (config.get("beta_1"), config.get("beta_2"))
    )
    # Only behind a norm, squares of 1e30 are nothing that float32 would have to hold.
    norms = [config.get(name) for name in ("clipnorm", "global_clipnorm")]
    shortened = any(limit is not None and math.isfinite(limit) for limit in norms)
    kinds = ["steady"] + ["noisy"] * (not forgetful) + ["wide"] * (shortened and not forgetful)
    sizes = (1.0,) if forgetful else rng.choice(((1.0,), (1e-3, 10.0), (1e-6, 1e6)))
    poisons = (*[None] * 12, math.inf, -math.inf, math.nan) if rng.random() < 0.5 else (None,)

    def gradient(rng: random.Random) -> Gradient:
        kind, dtype, size = rng.choice(kinds), rng.choice(GRADIENT_DTYPES), rng.choice(sizes)
        if kind == "wide":
            size = 1.0
        # float16 has normal numbers for few sizes, fewer still times a loss scale.
        if dtype == "float16" and (kind == "wide" or not 1e-3 <= size <= 10.0):
            dtype = "bfloat16"
        return Gradient(dtype, size, kind, rng.choice(poisons), rng.choice(LAYOUTS))

    return gradient


def _step(rng: random.Random, count: int, gradient: Choose) -> Step:
    if rng.random() < 0.85:
        given = [gradient(rng) if rng.random() < 0.8 else None for _ in range(count)]
        if not any(given):
            given[rng.randrange(count)] = gradient(rng)
        return Call(tuple(given))
    some = tuple(rng.sample(range(count), rng.randint(1, count)))
    return rng.choice((Assign(_rate(rng)), Flush(), Finalize(some)))


def _name(container: str, index: int) -> str:
    if container == "list":
        return str(index)
    part = "bias" if index % 2 else "kernel"
    return f"layer{index // 2}{'/' if container == 'nested' else '_'}{part}"


def _variable(rng: random.Random, name: str) -> Variable:
    dtype, size = rng.choice(VARIABLE_DTYPES), rng.choice((0.0, 1e-3, 1.0, 100.0))
    return Variable(name, rng.choice(SHAPES), dtype, rng.choice(LAYOUTS), size)


def simplest(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """Leaves out steps and arguments for as long as what remains still fails."""
    for smaller in _smaller(scenario):
        if fails(smaller):
            return simplest(smaller, fails)
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for i in reversed(range(len(scenario.steps))):
        yield replace(scenario, steps=scenario.steps[:i] + scenario.steps[i + 1 :])
    for name in scenario.config:
        rest = {key: value for key, value in scenario.config.items() if key != name}
        if name != "use_ema" or not any(key.startswith("ema") for key in rest):
            yield replace(scenario, config=rest)
    if scenario.exclude:
        yield replace(scenario, exclude=())
