"""The time of a step: against torch, and against the memory's own limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import limit, rivals
from benchmarks.models import (
    GPT_2,
    HUNDREDS,
    ONE,
    RESNET_50,
    SINGLES,
    THOUSANDS,
    Model,
    shortened,
)
from benchmarks.report import Table, spread, target
from benchmarks.rivals import Rival
from benchmarks.timing import Contestant, Spread, in_turns, ratios

_WITHOUT_END = 2**30

# How many times oneadam's time others should take: torch's fastest, and the memory's limit.
_Targets = dict[Model, tuple[float | None, float | None]]
_STEP: dict[str, _Targets] = {
    "numpy": {ONE: (1.0, 0.95), HUNDREDS: (1.8, None), THOUSANDS: (6.0, None)},
    "torch": {
        ONE: (1.0, None),
        HUNDREDS: (2.0, None),
        THOUSANDS: (6.0, None),
        RESNET_50: (1.2, None),
        GPT_2: (1.2, None),
    },
}
_RECIPE: dict[str, _Targets] = {
    "numpy": {ONE: (1.3, 0.9), HUNDREDS: (2.5, None), THOUSANDS: (9.0, None)},
    "torch": {
        ONE: (None, None),
        HUNDREDS: (2.5, None),
        THOUSANDS: (9.0, None),
        RESNET_50: (1.6, None),
        GPT_2: (1.3, None),
    },
}
_SLOWER = {"torch AdamW()": {}, "torch AdamW(foreach)": {"foreach": True}}
_OF_SLOWER = 4.0
_OF_HOST = 4.0
AGREEMENT = "largest difference of results, relative to an array's largest element:"


class Comparison(NamedTuple):
    """A step of oneadam, first, and of others who move so many bytes for each element."""

    model: Model
    bytes: int
    contestants: list[Contestant]
    note: str = ""


def step(rounds: int | None, quick: bool, door: str) -> Table:
    """Compare plain Adam in float32; through torch's door with AdamW's decay."""
    return _measured(_steps(_STEP[door], quick, door), rounds, quick)


def recipe(rounds: int | None, quick: bool, door: str) -> Table:
    """Compare clipping by the global norm, decoupled decay and a moving average in one call."""
    return _measured(_recipes(_RECIPE[door], quick, door), rounds, quick)


def host(rounds: int | None, quick: bool) -> Table:
    """Compare what a step through torch's door costs before anything is computed."""
    return _measured(_steps({SINGLES: (_OF_HOST, None)}, quick, "torch"), rounds, quick)


def bfloat16(rounds: int | None, quick: bool) -> Table:
    """Compare plain Adam on bfloat16; torch keeps its state in bfloat16 too, another task."""
    model = shortened(ONE, quick)
    contestants = [
        _of("oneadam", rivals.oneadam_step(model, ml_dtypes.bfloat16)),
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
            _of("oneadam", ours),
            _of("torch _foreach_add_", rivals.torch_accumulation(model)),
            Contestant("limit, 12 bytes", limit.accumulation(model.sizes)),
        ]
        yield Comparison(model, 12, contestants)


# One comparison after the other: the models together could fill the memory.


def _steps(targets: _Targets, quick: bool, door: str) -> Iterator[Comparison]:
    decay = 0.01 if door == "torch" else 0.0
    for full_model, (of_torch, of_limit) in targets.items():
        model = shortened(full_model, quick)
        ours = rivals.oneadam_step(model, door=door, weight_decay=decay or None)
        theirs = rivals.torch_step(model, door=door, weight_decay=decay, fused=True)
        contestants = [
            _of("oneadam", ours),
            _of("torch AdamW(fused)", theirs, of_torch),
            Contestant("limit, 28 bytes", limit.step(model.sizes, door), of_limit),
        ]
        if door == "torch" and full_model is not SINGLES:
            contestants[2:2] = [
                _of(name, rivals.torch_step(model, door=door, **arguments), _OF_SLOWER)
                for name, arguments in _SLOWER.items()
            ]
        yield Comparison(model, 28, contestants, _agreement(ours, theirs))


def _recipes(targets: _Targets, quick: bool, door: str) -> Iterator[Comparison]:
    for full_model, (of_torch, of_limit) in targets.items():
        model = shortened(full_model, quick)
        ours = rivals.oneadam_step(model, door=door, **rivals.RECIPE)
        theirs = rivals.torch_recipe(model, door=door)
        contestants = [
            _of("oneadam", ours),
            _of("torch clip + AdamW + lerp", theirs, of_torch),
            Contestant("limit, 40 bytes", limit.recipe(model.sizes, door), of_limit),
        ]
        yield Comparison(model, 40, contestants, _agreement(ours, theirs))


def _of(name: str, rival: Rival, at_least: float | None = None) -> Contestant:
    return Contestant(name, rival.step, at_least, rival.prepare)


def _agreement(ours: Rival, theirs: Rival) -> str:
    """Compare variables, moments and averages, to be sure that both compute the same."""
    return f"{AGREEMENT} {difference(ours, theirs):.0e}"


def difference(ours: Rival, theirs: Rival) -> float:
    """Return how far the results of two differ after another step, relative to the largest."""
    for rival in (ours, theirs):
        rival.prepare()
        rival.step()
    pairs = zip(ours.results(), theirs.results(), strict=True)
    return max(float(np.abs(our - their).max() / np.abs(our).max()) for our, their in pairs)


def _measured(compared: Iterable[Comparison], rounds: int | None, quick: bool) -> Table:
    table = Table("model", "who", "ms", "GB/s", "× oneadam's time", "target", "met")
    for model, size, contestants, note in compared:
        default = 3 if quick else 15 if model.is_large else 100
        seconds = in_turns(contestants, rounds or default)
        for contestant, taken in zip(contestants, seconds, strict=True):
            ours = contestant is contestants[0]
            median = Spread.of(taken).median
            moved = model.elements * size / median / 1e9
            ratio = ratios(taken, seconds[0])
            table.add(
                model.name if ours else "",
                contestant.name,
                f"{1e3 * median:.3f}",
                "" if contestant.name.startswith("torch") else f"{moved:.1f}",
                "" if ours else spread(ratio),
                *target(ratio.median, at_least=contestant.at_least),
            )
        if note:
            table.note(f"{model.name}: {note}")
    return table
