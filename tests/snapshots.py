"""Everything that a step could change, to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np


class Snapshot(NamedTuple):
    """What there was."""

    variables: list[tuple[Any, ...]]
    state: dict[str, tuple[Any, ...]]
    numbers: dict[str, Any]


def described(array: Any) -> tuple[Any, ...]:
    """An array's shape, dtype and bytes, with those of the memory around it."""
    array = np.asarray(array)
    base = array.base
    around = base.tobytes() if isinstance(base, np.ndarray) else b""
    return array.shape, array.dtype.str, array.tobytes(), around


def taken(optimizer: Any, variables: Iterable[Any]) -> Snapshot:
    """A snapshot of an optimizer, built or not, and of arrays."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    try:
        state = {name: described(array) for name, array in optimizer.state_dict().items()}
    except RuntimeError:  # not built yet
        state = {}
    numbers = {
        "calls": optimizer.calls,
        "updates": optimizer.updates,
        "iterations": optimizer.iterations,
        "metrics": repr(optimizer.metrics()),
        "scale": getattr(optimizer, "scale", None),
        "learning_rate": inner._run.hyperparameters.learning_rate,
    }
    return Snapshot([described(array) for array in variables], state, numbers)


@contextmanager
def unchanged(optimizer: Any, variables: Iterable[Any]) -> Iterator[None]:
    """Hold a block to changing nothing at all."""
    variables = list(variables)
    before = taken(optimizer, variables)
    yield
    after = taken(optimizer, variables)
    assert after.numbers == before.numbers
    assert after.variables == before.variables
    assert after.state == before.state


def bits(optimizer: Any, variables: Iterable[Any]) -> tuple[Any, ...]:
    """All variables and the whole state, to compare two runs by, whatever their memory is like."""
    state = optimizer.state_dict()
    named = [*((str(i), v) for i, v in enumerate(variables)), *sorted(state.items())]
    return tuple(
        (name, array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("=")).tobytes())
        for name, array in named
    )
