"""The memory that a step needs on top of variables, gradients and state."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import oneadam.numpy
import oneadam.torch
from benchmarks import fresh
from benchmarks.models import ONE, RESNET_50, THOUSANDS, Model, uniform
from benchmarks.report import Table, target

_RECIPE = {"global_clipnorm": 1.0, "weight_decay": 0.01, "use_ema": True}
_STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("float32", {}),
    "recipe": ("float32", _RECIPE),
    "recipe, amsgrad, window of 2": (
        "float32",
        _RECIPE | {"amsgrad": True, "gradient_accumulation_steps": 2},
    ),
    "recipe, bfloat16": ("bfloat16", _RECIPE),
}
_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CALLS = 4
# glibc's allocator would take memory for a tensor from what it has kept, which no peak shows.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_MEBIBYTE = 2**20 / 1e6

_SMALL = [uniform(1, 1_000_000), THOUSANDS]
_MODELS = {
    "numpy": [*_SMALL, uniform(1, 10_000_000), ONE],
    "torch": [*_SMALL, RESNET_50, ONE],
}


def memory(rounds: int | None, quick: bool, door: str) -> Table:
    """Return the peak of a step by model size; the number of rounds makes no difference."""
    table = Table(
        "model", "step", "variables", "allocated", "resident", "% of variables", "target", "met"
    )
    table.note("in MB: the variables, and what a call allocates and makes resident at its peak")
    for number, model in enumerate(_MODELS[door]):
        if quick and model not in _SMALL:
            continue
        for name in _STEPS:
            _, output = fresh.run(
                f"from benchmarks.memory import probe\nprobe({door!r}, {number}, {name!r})",
                **_ENVIRONMENT,
            )
            variables, allocated, resident = json.loads(output)
            more = max(allocated, resident or 0)
            share = 100 * more / variables
            if door == "torch":
                held = target(more / 1e6, at_most=_MEBIBYTE)
            else:
                held = target(share, at_most=1.0 if model == ONE else None)
            table.add(
                model.name if name == "plain" else "",
                name,
                _megabytes(variables),
                _megabytes(allocated),
                "unknown" if resident is None else _megabytes(resident),
                f"{share:.2f}",
                *held,
            )
    return table


def probe(door: str, model: int, name: str) -> None:
    """Print the bytes of the variables, and by how much calls raised two peaks.

    The first peak is of what Python and NumPy allocate, the second of what is resident, which
    not every system tells.
    """
    dtype, arguments = _STEPS[name]
    call, variables = _DOORS[door](_MODELS[door][model], dtype, arguments)
    for _ in range(_CALLS):  # compile, and touch the state
        call()
    resident = _growth_of_resident(call)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(_CALLS):
        call()
    _, peak = tracemalloc.get_traced_memory()
    print(json.dumps([variables, peak - before, resident]))


def _through_numpy(
    model: Model, dtype: str, arguments: dict[str, Any]
) -> tuple[Callable[[], None], int]:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    variables, grads = ([np.ones(shape, kind) for shape in model.shapes] for _ in range(2))
    optimizer = oneadam.numpy.Adam(**arguments)
    optimizer.build(variables)
    return lambda: optimizer.apply(grads), sum(v.nbytes for v in variables)


def _through_torch(
    model: Model, dtype: str, arguments: dict[str, Any]
) -> tuple[Callable[[], None], int]:
    kind = getattr(torch, dtype)
    variables = [torch.ones(shape, dtype=kind).requires_grad_() for shape in model.shapes]
    # The gradients of one call lie elsewhere than those of the call before, as in training.
    grads = cycle([[torch.ones(shape, dtype=kind) for shape in model.shapes] for _ in range(2)])
    optimizer = oneadam.torch.Adam(variables, **arguments)

    def call() -> None:
        for variable, grad in zip(variables, next(grads), strict=True):
            variable.grad = grad
        optimizer.step()

    return call, sum(v.nbytes for v in variables)


_DOORS = {"numpy": _through_numpy, "torch": _through_torch}


def _growth_of_resident(call: Any) -> int | None:
    if not _REFERENCES.exists():
        return None
    _REFERENCES.write_text(_RESET_PEAK)
    before = _resident_peak()
    for _ in range(_CALLS):
        call()
    return _resident_peak() - before


def _resident_peak() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} must have a line VmHWM, received none")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f}"
