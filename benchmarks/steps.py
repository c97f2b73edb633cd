"""The time of a step: against torch, and against the memory's own limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import limit, rivals
from benchmarks.models import HUNDREDS, ONE, THOUSANDS, Model, shortened
from benchmarks.report import Table, spread, target
from benchmarks.rivals import Rival
from benchmarks.timing import Contestant, Spread, in_turns, ratios

_WITHOUT_END = 2**30


class Comparison(NamedTuple):
    """A step of oneadam, first, and of others who move so many bytes for each element."""

    model: Model
    bytes: int
    contestants: list[Contestant]
    note: str = ""


def step(rounds: int | None, quick: bool) -> Table:
    """Compare plain Adam in float32."""
    compared = _against_torch(
        {ONE: (1.0, 0.95), HUNDREDS: (1.8, None), THOUSANDS: (6.0, None)}, quick, recipe=False
    )
    return _measured(compared, rounds, quick)


def recipe(rounds: int | None, quick: bool) -> Table:
    """Compare clipping by the global norm, decoupled decay and a moving average in one call."""
    compared = _against_torch(
        {ONE: (1.3, 0.9), HUNDREDS: (2.5, None), THOUSANDS: (9.0, None)}, quick, recipe=True
    )
    return _measured(compared, rounds, quick)


def bfloat16(rounds: int | None, quick: bool) -> Table:
    """Compare plain Adam on bfloat16; torch keeps its state in bfloat16 too, another task."""
    model = shortened(ONE, quick)
    ours = rivals.oneadam_step(model, ml_dtypes.bfloat16)
    contestants = [
        Contestant("oneadam", ours.step),
        Contestant("limit, 22 bytes", limit.bfloat16(model.sizes), 0.85),
    ]
    return _measured([Comparison(model, 22, contestants)], rounds, quick)


def accumulation(rounds: int | None, quick: bool) -> Table:
    """Compare a call that only adds its gradients to those before it."""
    return _measured(_accumulations(quick), rounds, quick)


def _accumulations(quick: bool) -> Iterator[Comparison]:
    for model in (shortened(ONE, quick), THOUSANDS):
        ours = rivals.oneadam_step(model, gradient_accumulation_steps=_WITHOUT_END)
        contestants = [
            Contestant("oneadam", ours.step),
            Contestant("torch _foreach_add_", rivals.torch_accumulation(model).step),
            Contestant("limit, 12 bytes", limit.accumulation(model.sizes)),
        ]
        yield Comparison(model, 12, contestants)


def _against_torch(
    targets: dict[Model, tuple[float, float | None]], quick: bool, *, recipe: bool
) -> Iterator[Comparison]:
    """Yield one comparison after the other: the models together could fill the memory."""
    for full_model, (of_torch, of_limit) in targets.items():
        model = shortened(full_model, quick)
        if recipe:
            ours, theirs = rivals.oneadam_recipe(model), rivals.torch_recipe(model)
            name, size, floor = "torch clip + AdamW + lerp", 40, limit.recipe(model.sizes)
        else:
            ours, theirs = rivals.oneadam_step(model), rivals.torch_step(model)
            name, size, floor = "torch Adam(fused)", 28, limit.step(model.sizes)
        contestants = [
            Contestant("oneadam", ours.step),
            Contestant(name, theirs.step, of_torch),
            Contestant(f"limit, {size} bytes", floor, of_limit),
        ]
        yield Comparison(model, size, contestants, _agreement(ours, theirs))


def _agreement(ours: Rival, theirs: Rival) -> str:
    """Compare variables, moments and averages, to be sure that both compute the same."""
    for rival in (ours, theirs):
        rival.step()
    pairs = zip(ours.results(), theirs.results(), strict=True)
    difference = max(float(np.abs(our - their).max() / np.abs(our).max()) for our, their in pairs)
    return (
        f"largest difference of results, relative to an array's largest element: {difference:.0e}"
    )


def _measured(compared: Iterable[Comparison], rounds: int | None, quick: bool) -> Table:
    table = Table("model", "who", "ms", "GB/s", "× oneadam's time", "target", "met")
    for model, size, contestants, note in compared:
        default = 3 if quick else 15 if model == ONE else 100
        seconds = in_turns(contestants, rounds or default)
        for contestant, taken in zip(contestants, seconds, strict=True):
            ours = contestant is contestants[0]
            median = Spread.of(taken).median
            moved = model.variables * model.elements * size / median / 1e9
            ratio = ratios(taken, seconds[0])
            table.add(
                str(model) if ours else "",
                contestant.name,
                f"{1e3 * median:.3f}",
                "" if contestant.name.startswith("torch") else f"{moved:.1f}",
                "" if ours else spread(ratio),
                *target(ratio.median, at_least=contestant.at_least),
            )
        if note:
            table.note(f"{model}: {note}")
    return table
