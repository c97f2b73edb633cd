"""The command `python -m benchmarks`."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

import oneadam
from benchmarks import keras_steps, machine, memory, startup, steps
from benchmarks.report import Table, console


class Benchmark(NamedTuple):
    """What is measured, and what measures it, given the number of rounds and `--quick`."""

    title: str
    run: Callable[[int | None, bool], Table]


def _through_jax(name: str) -> Callable[[int | None, bool], Table]:
    """Return a benchmark that loads JAX only when it runs."""

    def run(rounds: int | None, quick: bool) -> Table:
        table: Table = getattr(importlib.import_module("benchmarks.jax_steps"), name)(rounds, quick)
        return table

    return run


BENCHMARKS = {
    "numpy": {
        "step": Benchmark("Plain Adam, float32", partial(steps.step, door="numpy")),
        "recipe": Benchmark(
            "Global clipping + decoupled decay + moving average",
            partial(steps.recipe, door="numpy"),
        ),
        "bfloat16": Benchmark("bfloat16 variables and gradients, float32 state", steps.bfloat16),
        "accumulation": Benchmark("A call that only accumulates, float32", steps.accumulation),
        "memory": Benchmark(
            "Memory of a step, beyond variables, gradients, state",
            partial(memory.memory, door="numpy"),
        ),
        "startup": Benchmark("Whole processes, from start to end", startup.startup),
    },
    "torch": {
        "step": Benchmark("AdamW on tensors, float32", partial(steps.step, door="torch")),
        "recipe": Benchmark(
            "Global clipping + decoupled decay + moving average on tensors",
            partial(steps.recipe, door="torch"),
        ),
        "host": Benchmark("A step on tensors with next to nothing to compute", steps.host),
        "memory": Benchmark(
            "Memory of a step on tensors, beyond parameters, gradients, state",
            partial(memory.memory, door="torch"),
        ),
    },
    "jax": {
        "step": Benchmark("Plain Adam compiled by JAX, float32", _through_jax("step")),
        "recipe": Benchmark(
            "Global clipping + decoupled decay + moving average compiled by JAX",
            _through_jax("recipe"),
        ),
        "accumulation": Benchmark(
            "Calls of accumulation windows of 4, with clipping and decay, compiled by JAX",
            _through_jax("accumulation"),
        ),
        "keras-adam": Benchmark("Steps of Keras's Adam on JAX", _through_jax("keras")),
        "compilation": Benchmark(
            "The time to trace and compile the recipe", _through_jax("compilation")
        ),
    },
    "keras": {
        "step": Benchmark(
            "Plain Adam in Keras, float32", partial(keras_steps.compare, kind="step")
        ),
        "recipe": Benchmark(
            "Global clipping + decoupled decay + moving average in Keras",
            partial(keras_steps.compare, kind="recipe"),
        ),
        "accumulation": Benchmark(
            "Calls of accumulation windows of 4 in Keras",
            partial(keras_steps.compare, kind="accumulation"),
        ),
        "fit": Benchmark(
            "Training the demo's network with fit", partial(keras_steps.compare, kind="fit")
        ),
    },
}
"""By door and name."""
NAMES = list(dict.fromkeys(name for door in BENCHMARKS.values() for name in door))


def chosen(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return doors and names of benchmarks, given any of either; without one of a kind, all."""
    doors = [door for door in BENCHMARKS if door in words] or list(BENCHMARKS)
    names = [name for name in NAMES if name in words] or NAMES
    return [(door, name) for door in doors for name in BENCHMARKS[door] if name in names]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    known = [*BENCHMARKS, *NAMES]
    parser.add_argument(
        "words",
        nargs="*",
        metavar="door or name",
        help=f"any of {', '.join(BENCHMARKS)} and of {', '.join(NAMES)}; default: all",
    )
    parser.add_argument("--rounds", type=int, help="how often each contestant is timed")
    parser.add_argument("--threads", type=int, default=oneadam.get_num_threads())
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small models and few rounds: shows that it runs, not how fast",
    )
    arguments = parser.parse_intermixed_args()
    if unknown := sorted(set(arguments.words) - set(known)):
        parser.error(f"names must be of {', '.join(known)}, received {', '.join(unknown)}")
    for name in ("rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, received {value}")
    return arguments


def main() -> None:
    arguments = _arguments()
    oneadam.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    to = console()
    for line in machine.described(arguments.threads):
        to.print(line)
    if arguments.quick:
        to.print("--quick: the numbers below mean nothing")
    to.print()
    for door, name in chosen(arguments.words):
        start = time.perf_counter()
        benchmark = BENCHMARKS[door][name]
        table = benchmark.run(arguments.rounds, arguments.quick)
        table.note(f"{door} {name} took {time.perf_counter() - start:.0f} s")
        table.show(to, benchmark.title)


if __name__ == "__main__":
    main()
