"""The memory that a step needs on top of variables, gradients and state."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import fresh
from benchmarks.models import ONE, THOUSANDS, Model
from benchmarks.report import Table, target
from oneadam.numpy import Adam

_RECIPE = {"global_clipnorm": 1.0, "weight_decay": 0.01, "use_ema": True}
_STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (np.float32, {}),
    "recipe": (np.float32, _RECIPE),
    "recipe, amsgrad, window of 2": (
        np.float32,
        _RECIPE | {"amsgrad": True, "gradient_accumulation_steps": 2},
    ),
    "recipe, bfloat16": (ml_dtypes.bfloat16, _RECIPE),
}
_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CALLS = 4


def memory(rounds: int | None, quick: bool) -> Table:
    """Return the peak of a step by model size; the number of rounds makes no difference."""
    models = [Model(1, 1_000_000), THOUSANDS]
    if not quick:
        models += [Model(1, 10_000_000), ONE]
    table = Table(
        "model", "step", "variables", "allocated", "resident", "% of variables", "target", "met"
    )
    table.note("in MB: the variables, and what a call allocates and makes resident at its peak")
    for model in models:
        for name in _STEPS:
            _, output = fresh.run(
                f"from benchmarks.memory import probe\nprobe({tuple(model)}, {name!r})"
            )
            variables, allocated, resident = json.loads(output)
            share = 100 * max(allocated, resident or 0) / variables
            table.add(
                str(model) if name == "plain" else "",
                name,
                _megabytes(variables),
                _megabytes(allocated),
                "unknown" if resident is None else _megabytes(resident),
                f"{share:.2f}",
                *target(share, at_most=1.0 if model == ONE else None),
            )
    return table


def probe(shape: tuple[int, int], name: str) -> None:
    """Print the bytes of the variables, and by how much calls raised two peaks.

    The first peak is of what Python and NumPy allocate, the second of what is resident, which
    not every system tells.
    """
    dtype, arguments = _STEPS[name]
    variables = [np.ones(size, dtype) for size in Model(*shape).sizes]
    grads = [np.ones(size, dtype) for size in Model(*shape).sizes]
    optimizer = Adam(**arguments)
    optimizer.build(variables)
    for _ in range(_CALLS):  # compile, and touch the state
        optimizer.apply(grads)
    resident = _growth_of_resident(lambda: optimizer.apply(grads))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(_CALLS):
        optimizer.apply(grads)
    _, peak = tracemalloc.get_traced_memory()
    print(json.dumps([sum(v.nbytes for v in variables), peak - before, resident]))


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
