"""The state of a run as named arrays and strings, and taking it over again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from oneadam import _interrupts, _saved_state
from oneadam._saved_state import Axes, Restoring
from oneadam.numpy._run import Run

Array = NDArray[Any]


def state(run: Run) -> dict[str, Array]:
    """Return the whole state by name; the large arrays are the run's own, not copies."""
    return run.built().present() | _saved_state.state(run.hyperparameters, run.counters)


def restoring(
    run: Run, saved: Mapping[str, Any], keep_learning_rate: bool, also: Sequence[str] = ()
) -> Restoring:
    """Check saved state against a run, and warn of what only one of them has.

    Args:
        run: built on the variables that the state is of.
        saved: arrays by name.
        keep_learning_rate: keep the configured learning rate.
        also: further state of the optimizer's own that is wanted.
    """
    run.check_trained()
    model = run.built()
    return _saved_state.restoring(
        saved,
        model.slots(),
        model.wanted(),
        run.hyperparameters,
        keep_learning_rate=keep_learning_rate,
        also=also,
    )


def restore(run: Run, restoring: Restoring) -> None:
    """Take over saved state that has been checked."""
    with _interrupts.held_back():
        run.built().adopt(restoring.arrays)
        run.counters, run.hyperparameters = restoring.counters, restoring.hyperparameters


def metadata(run: Run) -> dict[str, str]:
    """Return what a checkpoint says besides the state."""
    variables = {
        name: (array.shape, array.dtype.name) for name, array in run.built().variables.items()
    }
    return _saved_state.metadata(run.hyperparameters, run.exclusions, variables)


def read(
    run: Run,
    path: str | os.PathLike[str],
    names: Mapping[str, str] | Callable[[str], str] | None,
    transposed: Axes | None,
) -> dict[str, Array]:
    """Return the state in a file under the names, and with the axes, that it has in this run."""
    return _saved_state.read(path, names, run.hyperparameters.name, transposed)
