"""The time from starting Python to the end of the first step."""

from __future__ import annotations

import tempfile
from typing import NamedTuple

from benchmarks import fresh
from benchmarks.report import Table, spread, target
from benchmarks.timing import Spread

_STEP = """
import numpy as np
from oneadam.numpy import Adam
variables = [np.ones((100, 10), np.float32), np.ones(10, np.float32)]
Adam({arguments}).apply([np.ones_like(variable) for variable in variables], variables)
"""
_PLAIN = _STEP.format(arguments="")
_RECIPE = _STEP.format(arguments="global_clipnorm=1.0, weight_decay=0.01, use_ema=True")
_LOADED = """
import sys
print(", ".join(name for name in ("numpy", "numba") if name in sys.modules))
"""


class _Start(NamedTuple):
    name: str
    code: str
    at_most: float | None = None
    cold: bool = False


_STARTS = [
    _Start("python", ""),
    _Start("import numpy", "import numpy"),
    _Start("import numba", "import numba"),
    _Start("import oneadam", "import oneadam", 0.2),
    _Start("import oneadam.numpy", "import oneadam.numpy"),
    _Start("first step, compiled before", _PLAIN, 0.7),
    _Start("first step, cold", _PLAIN, 2.5, cold=True),
    _Start("first step of the full recipe, compiled before", _RECIPE, 0.7),
    _Start("first step of the full recipe, cold", _RECIPE, 2.5, cold=True),
]


def startup(rounds: int | None, quick: bool) -> Table:
    """Return the time of whole processes, taken in turns, and what they load."""
    seconds: dict[str, list[float]] = {start.name: [] for start in _STARTS}
    with tempfile.TemporaryDirectory() as parent:
        warm = tempfile.mkdtemp(dir=parent)

        def run(start: _Start, more: str = "") -> tuple[float, str]:
            folder = tempfile.mkdtemp(dir=parent) if start.cold else warm
            return fresh.run(start.code + more, folder)

        fresh.run(_PLAIN, warm)
        fresh.run(_RECIPE, warm)
        loaded = {start.name: run(start, _LOADED)[1].strip() for start in _STARTS}
        for _ in range(rounds or (1 if quick else 9)):
            for start in _STARTS:
                seconds[start.name].append(run(start)[0])
    table = Table("process", "loads", "seconds", "target", "met")
    for start in _STARTS:
        of = Spread.of(seconds[start.name])
        met = target(of.median, at_most=start.at_most)
        table.add(start.name, loaded[start.name], spread(of), *met)
    return table
