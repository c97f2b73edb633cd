"""One update by an engine, beside the same update in float64.

A `Case` says which arrays there are and what is done with them. `reference` is the array engine
on float64 copies, with a rounding to the variable's dtype where the definition has one. `check`
holds an engine to it, element by element, in spacings of the dtype that the element is kept in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product

import ml_dtypes
import numpy as np
from tolerances import spacing

from oneadam._engines import Buffers, Options, arrays
from oneadam._plan import Scalars

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
NARROW = ("float16", "bfloat16")
Engine = Callable[[Buffers, Scalars, Options], Buffers]


class EngineError(AssertionError):
    """The engine does not do what the rule says."""


@dataclass(frozen=True)
class Case:
    """What one update of one variable is made of."""

    param: str = "float32"
    grad: str | None = "float32"
    accumulated: bool = False
    maximum: bool = False
    averaged: bool = False
    scaled: bool = False
    limited: bool = False
    decays: bool = False
    overwrite: bool = False

    @property
    def options(self) -> Options:
        """The same as the engines are told."""
        return Options(
            loss_scale=3.0 if self.scaled else None,
            limit=0.75 if self.limited else None,
            decays=self.decays,
            overwrite=self.overwrite,
        )

    @property
    def computed(self) -> str:
        """The dtype of the state."""
        return "float64" if self.param == "float64" else "float32"


SWITCHES = tuple(f.name for f in fields(Case) if f.type == "bool")
BARE, EVERYTHING = dict.fromkeys(SWITCHES, False), dict.fromkeys(SWITCHES, True)


def cases(params: tuple[str, ...], grads: tuple[str | None, ...]) -> list[Case]:
    """Every pair of dtypes with nothing and with everything, and each switch alone and missing."""
    drawn = [
        Case(param, grad, **switches)
        for param, grad in product(params, grads)
        for switches in (BARE, EVERYTHING)
        if _possible(grad, switches)
    ]
    for name in SWITCHES:
        for base in (BARE, EVERYTHING):
            switches = {**base, name: not base[name]}
            switches["averaged"] |= switches["overwrite"]
            drawn.append(Case(params[-1], grads[0], **switches))
    return list(dict.fromkeys(drawn))


def _possible(grad: str | None, switches: dict[str, bool]) -> bool:
    # A variable without a gradient takes part if an earlier call of the window gave it one.
    return grad is not None or switches["accumulated"]


# Finite numbers of all sizes, the first ones where implementations differ.
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-7, -1e-7, 1e-30, 1e-38, 300.0, -2e4)


def values(case: Case, size: int = 257, seed: int = 0, *, poison: bool = False) -> Buffers:
    """Fresh arrays for a case; `poison` puts inf and NaN among them."""
    rng = np.random.default_rng((seed, size))
    state, computed = np.random.default_rng((seed, size, 1)), DTYPES[case.computed]

    def sprinkled(dtype: str, spread: float) -> np.ndarray:
        content = rng.normal(size=size) * np.exp(rng.normal(size=size) * spread)
        count = min(size, len(SPECIAL))
        content[:count] = SPECIAL[:count]
        if poison and size > 40:
            content[rng.permutation(np.arange(20, 40))[:3]] = np.nan, np.inf, -np.inf
        return content.astype(DTYPES[dtype])

    velocity = np.abs(state.normal(size=size)) ** 3
    larger = velocity * state.choice([0.25, 4.0], size=size)
    if poison and size > 60:
        larger[50:53], velocity[53:56] = np.nan, np.nan
    return Buffers(
        param=sprinkled(case.param, 1.0),
        grad=None if case.grad is None else sprinkled(case.grad, 1.5),
        accumulator=sprinkled(case.computed, 0.5) if case.accumulated else None,
        momentum=state.normal(size=size).astype(computed),
        velocity=velocity.astype(computed),
        velocity_max=larger.astype(computed) if case.maximum else None,
        average=state.normal(size=size).astype(computed) if case.averaged else None,
    )


def scalars(seed: int = 0, *, decays: bool = True, **chosen: float) -> Scalars:
    """Scalars as after some updates, no two alike; the decay is zero where there is none."""
    rng = np.random.default_rng((seed, 99))
    drawn = {
        "grad_scale": rng.uniform(0.1, 0.4),
        "grad_scale_power": 0.5,
        "one_minus_beta_1": rng.uniform(0.05, 0.2),
        "one_minus_beta_2": rng.uniform(0.001, 0.1),
        "step_size": rng.uniform(0.01, 0.1),
        "epsilon": 1e-3,
        "one_minus_ema_momentum": 0.1,
        "decay": rng.uniform(0.01, 0.1) if decays else 0.0,
    }
    return Scalars(**{**drawn, **chosen})


def copied(buffers: Buffers) -> Buffers:
    """Copies of all arrays, in C order."""
    return Buffers(*(None if a is None else np.array(a, order="C") for a in buffers))


def widened(buffers: Buffers) -> Buffers:
    """The same numbers in float64."""
    return Buffers(*(None if a is None else np.array(a, np.float64) for a in buffers))


def reference(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    """The update in float64; the variable is rounded where it is stored."""
    narrow = buffers.param.dtype
    with np.errstate(all="ignore"):
        wide = widened(buffers)
        after = arrays.update(wide._replace(average=None), s, options, np)
        stored = after.param.astype(narrow).astype(np.float64)
        if wide.average is None:
            return after._replace(param=stored)
        after = after._replace(param=stored, average=wide.average)
        after = arrays.average(after, s, options, np)
        return after._replace(param=after.param.astype(narrow).astype(np.float64))


def check(engine: Engine, case: Case, *, size: int = 257, seed: int = 0, poison: bool = True,
          subnormals: bool = True) -> None:  # fmt: skip
    """Hold an engine to the reference on one case.

    Raises:
        EngineError: naming the array, the element and both values.
    """
    before, s = values(case, size, seed, poison=poison), scalars(seed, decays=case.decays)
    after = engine(copied(before), s, case.options)
    compare(before, after, reference(before, s, case.options), case, s, subnormals=subnormals)


def compare(before: Buffers, after: Buffers, wanted: Buffers, case: Case, s: Scalars, *,
            subnormals: bool = True) -> None:  # fmt: skip
    """Compare what an engine made of `before` with what it should have."""
    reach = _reach(before, s, case)
    if case.averaged and not case.overwrite:
        # The variable may be rounded to a neighbour; the average is then that of the neighbour.
        own = wanted._replace(param=widened(after).param, average=widened(before).average)
        with np.errstate(all="ignore"):
            wanted = wanted._replace(average=arrays.average(own, s, case.options, np).average)
    for name in Buffers._fields:
        got, right = getattr(after, name), getattr(wanted, name)
        if name == "grad":
            continue
        if (got is None) != (right is None):
            raise EngineError(f"{case}: {name} is {got!r}, wanted {right!r}")
        if right is None:
            continue
        dtype = case.param if name == "param" else case.computed
        if got.dtype != DTYPES[dtype]:
            raise EngineError(f"{case}: {name} is kept in {got.dtype}, not in {dtype}")
        unit = dtype
        if name == "average" and case.overwrite and case.param in NARROW:
            # Which of two neighbours was stored before the overwrite cannot be seen any more.
            unit = case.param
        limit = 1.0 if unit in NARROW else 6.0
        if name == "accumulator":
            limit = 0.0
        off = _off(got.astype(np.float64), right, reach[name], unit, subnormals)
        if off.size and off.max() > limit:
            i = int(off.argmax())
            raise EngineError(
                f"{case}: element {i} of {name} is {got[i]!r}, the rule has {right[i]!r};"
                f" {off[i]:.3g} spacings of {unit} off, {limit} allowed"
            )


def _reach(before: Buffers, s: Scalars, case: Case) -> dict[str, np.ndarray]:
    """The largest magnitude that the elements of each array had on the way."""
    with np.errstate(all="ignore"):
        wide = widened(before)
        zero = np.zeros(wide.param.shape)
        grad = zero if wide.grad is None else np.abs(wide.grad)
        grad = grad + (zero if wide.accumulator is None else np.abs(wide.accumulator))
        grad = grad * s.grad_scale * s.grad_scale_power
        step = (
            s.step_size
            * (np.abs(wide.momentum) + grad)
            / (np.sqrt(np.abs(wide.velocity) * (1 - s.one_minus_beta_2)) + s.epsilon)
        )
        param = np.abs(wide.param) + np.where(np.isfinite(step), step, 0.0)
        average = param if wide.average is None else np.maximum(np.abs(wide.average), param)
        velocity = np.maximum(np.abs(wide.velocity), s.one_minus_beta_2 * grad * grad)
        return {
            "param": average if case.overwrite else param,
            "average": average,
            "accumulator": zero,
            "momentum": np.maximum(np.abs(wide.momentum), grad),
            "velocity": velocity,
            "velocity_max": velocity,
        }


def _off(got: np.ndarray, right: np.ndarray, reach: np.ndarray, unit: str,
         subnormals: bool) -> np.ndarray:  # fmt: skip
    reach = np.where(np.isfinite(reach), reach, 0.0)
    with np.errstate(all="ignore"):
        # What float32 cannot hold is infinite there.
        right = right.astype(DTYPES[unit]).astype(np.float64) if unit != "bfloat16" else right
        largest = np.maximum(reach, np.where(np.isfinite(right), np.abs(right), 0.0))
        if not subnormals:
            largest = np.maximum(largest, float(np.finfo(np.float32).tiny) * 2.0**23)
        off = np.abs(got - right) / spacing(largest, unit)
    same = (got == right) | (np.isnan(got) & np.isnan(right))
    return np.where(np.isfinite(got) & np.isfinite(right), off, np.where(same, 0.0, np.inf))
