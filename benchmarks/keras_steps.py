"""Calls through Keras's door on each backend: their time in units of that of Keras's own Adam."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import oneadam
from benchmarks import fresh
from benchmarks.models import HUNDREDS, Model
from benchmarks.report import Table, spread, target
from benchmarks.rivals import RECIPE
from benchmarks.timing import Contestant, Spread, in_turns, ratios

BACKENDS = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
"""Their titles, by the names that Keras has for them."""

_WINDOW = 4
_SQUARES = Model("20 × (1000, 1000)", ((1000, 1000),) * 20)
_MODELS = (_SQUARES, HUNDREDS)
_TRIED = Model("2 × (8, 8)", ((8, 8),) * 2)
_KINDS: dict[str, dict[str, Any]] = {
    "step": {},
    "recipe": RECIPE,
    "accumulation": {"gradient_accumulation_steps": _WINDOW},
}
# How many times oneadam's time Keras's should take.
_TARGETS = {
    "torch": {"step": 4.0, "recipe": 4.0},
    "jax": {"step": 1.0, "recipe": 1.0, "accumulation": 3.0},
    "tensorflow": {"step": 1.0, "recipe": 1.2},
}
_OF_FIT = 1.0


class Measured(NamedTuple):
    """What a process has measured of one comparison."""

    title: str
    seconds: dict[str, list[float]]
    """By contestants, oneadam first."""
    difference: float | None = None
    """Of the results, relative to an array's largest element."""


def compare(rounds: int | None, quick: bool, kind: str) -> Table:
    """Compare on every backend, each in a process of its own.

    Args:
        rounds: how often each contestant is timed.
        quick: whether to try it out only.
        kind: step, recipe, accumulation or fit.
    """
    table = Table("backend", "model", "who", "ms", "× oneadam's time", "target", "met")
    for backend, title in BACKENDS.items():
        code = "from benchmarks.keras_steps import measure\n"
        call = f"measure({kind!r}, {rounds!r}, {quick!r}, {oneadam.get_num_threads()})"
        _, output = fresh.run(code + call, KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")
        at_least = _OF_FIT if kind == "fit" else _TARGETS[backend].get(kind)
        for found in (Measured(*entry) for entry in json.loads(output.splitlines()[-1])):
            _add(table, title, found, at_least)
            title = ""
    return table


def _add(table: Table, backend: str, found: Measured, at_least: float | None) -> None:
    own, *_ = found.seconds.values()
    for who, seconds in found.seconds.items():
        is_own = seconds is own
        ratio = ratios(seconds, own)
        table.add(
            backend if is_own else "",
            found.title if is_own else "",
            who,
            f"{1e3 * Spread.of(seconds).median:,.2f}",
            "" if is_own else spread(ratio),
            *target(round(ratio.median, 2), at_least=None if is_own else at_least),
        )
    if found.difference is not None:
        table.note(
            f"{backend or '  and'}, {found.title}: largest difference of results, relative to an"
            f" array's largest element: {found.difference:.0e}"
        )


def measure(kind: str, rounds: int | None, quick: bool, threads: int) -> None:
    """Measure on Keras's backend, and print what was found in a line of JSON."""
    oneadam.set_num_threads(threads)
    # In a network as small as the demo's, further threads only wait for each other.
    importlib.import_module("torch").set_num_threads(1 if kind == "fit" else threads)
    found = _fits(rounds, quick) if kind == "fit" else _calls(kind, rounds, quick)
    print(json.dumps(list(found)))


def _calls(kind: str, rounds: int | None, quick: bool) -> Iterator[Measured]:
    from benchmarks import keras_rivals
    from benchmarks.steps import difference

    calls = _WINDOW if kind == "accumulation" else 1
    for model in (_TRIED,) if quick else _MODELS:
        ready = {
            who: keras_rivals.Rival(who, model, **_KINDS[kind]) for who in keras_rivals.CLASSES
        }

        def turn(step: Any) -> Any:
            return lambda: [step() for _ in range(calls)]

        contestants = [Contestant(who, turn(rival.step)) for who, rival in ready.items()]
        taken = in_turns(contestants, rounds or (3 if quick else 50))
        seconds = {who: [one / calls for one in own] for who, own in zip(ready, taken, strict=True)}
        yield Measured(model.name, seconds, difference(*ready.values()))


def _fits(rounds: int | None, quick: bool) -> Iterator[Measured]:
    from benchmarks import keras_rivals
    from oneadam.cli import digits
    from oneadam.cli.recipe import Recipe

    data = digits.load()
    if quick:
        data = data._replace(training=digits.Examples(*(part[:64] for part in data.training)))
    for title, recipe in (("plain", None), ("the demo's recipe", Recipe())):
        contestants = [
            Contestant(who, keras_rivals.fitting(who, data, recipe)) for who in keras_rivals.CLASSES
        ]
        taken = in_turns(contestants, rounds or (1 if quick else 15))
        seconds = {one.name: own for one, own in zip(contestants, taken, strict=True)}
        yield Measured(f"an epoch of the demo, {title}", seconds)
