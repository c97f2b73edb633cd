"""The command `python -m benchmarks`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import oneadam
from benchmarks import machine, memory, startup, steps
from benchmarks.report import Table, console


class Benchmark(NamedTuple):
    """What is measured, and what measures it, given the number of rounds and `--quick`."""

    title: str
    run: Callable[[int | None, bool], Table]


BENCHMARKS = {
    "step": Benchmark("Plain Adam, float32", steps.step),
    "recipe": Benchmark("Global clipping + decoupled decay + moving average", steps.recipe),
    "bfloat16": Benchmark("bfloat16 variables and gradients, float32 state", steps.bfloat16),
    "accumulation": Benchmark("A call that only accumulates, float32", steps.accumulation),
    "memory": Benchmark("Memory of a step, beyond variables, gradients, state", memory.memory),
    "startup": Benchmark("Whole processes, from start to end", startup.startup),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"any of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, help="how often each contestant is timed")
    parser.add_argument("--threads", type=int, default=oneadam.get_num_threads())
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small models and few rounds: shows that it runs, not how fast",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"names must be of {', '.join(BENCHMARKS)}, received {', '.join(unknown)}")
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
    for name, benchmark in BENCHMARKS.items():
        if not arguments.names or name in arguments.names:
            start = time.perf_counter()
            table = benchmark.run(arguments.rounds, arguments.quick)
            table.note(f"{name} took {time.perf_counter() - start:.0f} s")
            table.show(to, benchmark.title)


if __name__ == "__main__":
    main()
