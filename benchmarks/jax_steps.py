"""Compiled steps through JAX's door: their time, and what the compiler counts of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from benchmarks import jax_rivals as rivals
from benchmarks.jax_rivals import Recipe, Rival
from benchmarks.models import GPT_2, HUNDREDS, Model, shortened
from benchmarks.report import Table, spread, target
from benchmarks.rivals import RECIPE
from benchmarks.steps import AGREEMENT, difference
from benchmarks.timing import Contestant, Spread, in_turns, ratios

_VARIED = Model("300 × 9,000 to 9,299", tuple((9_000 + number,) for number in range(300)))
_MODELS = (HUNDREDS, GPT_2)
_FEW = 4

# How many times oneadam's time others should take. GPT-2 is what the targets are for.
_OF_STEP = 1.0
_OF_WINDOW = 2.0
_OF_COMPILATION = 0.834  # at most 1.2 of theirs
_OF_COUNTED = 1.0


class Comparison(NamedTuple):
    """A compiled step of oneadam, first, and those of others."""

    model: Model
    rivals: dict[str, Rival]
    at_least: float | None
    """How many times oneadam's time others should take."""
    of_counted: float | None = None
    """And how many times its bytes, of both kinds."""
    is_window: bool = False
    """Whether a turn is all calls of an accumulation window."""


def step(rounds: int | None, quick: bool) -> Table:
    """Compare plain Adam with optax's."""
    return _measured(
        _comparisons({"oneadam": rivals.oneadam_recipe, "optax.adam": rivals.optax_plain}, quick),
        rounds,
        quick,
    )


def recipe(rounds: int | None, quick: bool) -> Table:
    """Compare clipping by the global norm, decoupled decay and a moving average in one call."""
    return _measured(_comparisons(_RECIPES, quick), rounds, quick)


def accumulation(rounds: int | None, quick: bool) -> Table:
    """Compare the calls of whole accumulation windows, on average."""
    recipes = {
        "oneadam": rivals.oneadam_accumulating,
        "optax.MultiSteps": rivals.optax_accumulating,
    }
    compared = (
        each._replace(is_window=True, at_least=each.at_least and _OF_WINDOW, of_counted=None)
        for each in _comparisons(recipes, quick)
    )
    return _measured(compared, rounds, quick)


def keras(rounds: int | None, quick: bool) -> Table:
    """Compare plain Adam, and then clipping, decay and a moving average, with Keras's on JAX."""
    return _measured(_against_keras(quick), rounds, quick)


def compilation(rounds: int | None, quick: bool) -> Table:
    """Compare the time until a step of 300 parameters is compiled."""
    # What was compiled in another process would not be compiled here.
    jax.config.update("jax_enable_compilation_cache", False)
    table = _table()
    for full_model in (HUNDREDS, _VARIED):
        model = _tried(full_model, quick)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in _RECIPES}
        for _ in range(rounds or (1 if quick else 5)):
            for name, make in _RECIPES.items():
                taken[name].append(_compiled(make(), model))
        whole = {name: [sum(pair) for pair in pairs] for name, pairs in taken.items()}
        _add(table, model.name, "s, all in all", whole, 1.0, _OF_COMPILATION)
        for number, what in enumerate(("s to trace", "s to compile")):
            part = {name: [pair[number] for pair in pairs] for name, pairs in taken.items()}
            _add(table, "", what, part, 1.0)
    return table


_RECIPES = {
    "oneadam": lambda: rivals.oneadam_recipe(**RECIPE),
    "optax clip + adamw + EMA": rivals.optax_full,
}


def _compiled(recipe: Recipe, model: Model) -> tuple[float, float]:
    """Return the seconds that tracing and compiling take where nothing is remembered."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = rivals.lowered(recipe, model)
    between = time.perf_counter()
    lowered.compile()
    return between - start, time.perf_counter() - between


def _tried(model: Model, quick: bool) -> Model:
    """Return a model with so few parameters that little is compiled, if it is only a trial."""
    tried = shortened(model, quick)
    return tried._replace(shapes=tried.shapes[:_FEW]) if quick else tried


def _comparisons(recipes: dict, quick: bool) -> Iterator[Comparison]:
    for full_model in _MODELS[-1:] if quick else _MODELS:
        model = _tried(full_model, quick)
        grads = rivals.gradients(model)
        ready = {name: Rival(make(), model, grads) for name, make in recipes.items()}
        targets = (_OF_STEP, _OF_COUNTED) if full_model is GPT_2 else (None, None)
        yield Comparison(model, ready, *targets)


def _against_keras(quick: bool) -> Iterator[Comparison]:
    model = _tried(GPT_2, quick)
    grads = rivals.gradients(model)
    # Keras's formula and its epsilon are oneadam's defaults.
    own = {"epsilon": 1e-7, "epsilon_hat": True}
    for name, arguments in {"": {}, ", recipe": RECIPE}.items():
        ready = {
            "oneadam": Rival(rivals.oneadam_recipe(**own, **arguments), model, grads),
            "keras Adam": Rival(rivals.keras_recipe(model, **arguments), model, grads),
        }
        yield Comparison(model._replace(name=f"{model.name}{name}"), ready, _OF_STEP)


def _table() -> Table:
    return Table("model", "what", "who", "median", "× oneadam's", "target", "met")


def _measured(compared: Iterable[Comparison], rounds: int | None, quick: bool) -> Table:
    table = _table()
    for model, ready, at_least, of_counted, is_window in compared:
        contestants = [
            Contestant(name, rival.window if is_window else rival.step)
            for name, rival in ready.items()
        ]
        default = 3 if quick else 15 if model.is_large else 100
        seconds = in_turns(contestants, rounds or default)
        calls = rivals.WINDOW if is_window else 1
        times = dict(zip(ready, seconds, strict=True))
        _add(table, model.name, "ms per call", times, 1e3 / calls, at_least)
        if not is_window:  # the compiler counts both branches
            counted = {name: [rival.bytes_accessed] for name, rival in ready.items()}
            _add(table, "", "bytes per element", counted, 1 / model.elements, of_counted)
        peaks = {name: [rival.arguments + rival.beyond] for name, rival in ready.items()}
        _add(table, "", "MB at the peak", peaks, 1e-6, of_counted)
        own, *others = ready.items()
        for name, rival in others:
            table.note(
                f"{model.name}: MB beyond parameters, state, gradients: {own[1].beyond / 1e6:,.2f},"
                f" {name} {rival.beyond / 1e6:,.2f}"
            )
            table.note(f"{model.name}: {AGREEMENT} {difference(own[1], rival):.0e}")
    return table


def _add(
    table: Table,
    model: str,
    what: str,
    measured: dict[str, Sequence[float]],
    unit: float,
    at_least: float | None = None,
) -> None:
    """Add a row for each contestant, with what was measured of it, in its turns or once."""
    own, *_ = measured.values()
    for name, values in measured.items():
        is_own = values is own
        ratio = ratios(values, own)
        table.add(
            model if is_own else "",
            what if is_own else "",
            name,
            f"{unit * Spread.of(values).median:,.2f}",
            "" if is_own else spread(ratio) if len(values) > 1 else f"{ratio.median:.3f}",
            # Some numbers of the state, beside all its arrays, are not what a target is about.
            *target(round(ratio.median, 3), at_least=None if is_own else at_least),
        )
